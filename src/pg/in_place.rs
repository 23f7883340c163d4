//! Bytes of our own rows that are overwritten where they are: what is to be known whatever becomes of the
//! transaction, as the number of a sequence is. It is written ahead like every change, so a crash and a standby
//! have it too.
//!
//! The bytes are the beginning of a `bytea` column that is stored PLAIN: its length never changes, and with it
//! nothing that others look at. Whoever writes keeps other writers and readers of the row away, by a lock of its
//! own.

use super::lookup::Table;
use super::spi::Extension;
use crate::error::{Error, Result};
use pgrx::pg_sys;
use std::ffi::CStr;

/// A row: where it was seen, and what tells that it is still there.
pub struct Place {
    block: u32,
    offset: u16,
    id: i64,
}

impl Place {
    /// The row with this `id`, of which `ctid` was read.
    ///
    /// # Errors
    /// For text that is no `ctid`.
    pub fn new(ctid: &str, id: i64) -> Result<Self> {
        let (block, offset) = ctid
            .trim_matches(['(', ')'])
            .split_once(',')
            .and_then(|(block, offset)| Some((block.parse().ok()?, offset.parse().ok()?)))
            .ok_or_else(|| Error::internal("malformed ctid"))?;
        Ok(Self { block, offset, id })
    }
}

/// Overwrites the beginning of a column of a table that has a column `id`, and returns once no crash takes that
/// back. Says whether the row was there, with room for all of it.
///
/// # Errors
/// When the table is not there; 25P01 outside of a transaction.
pub fn overwrite(
    extension: &Extension,
    table: &str,
    column: &CStr,
    place: &Place,
    bytes: &[u8],
) -> Result<bool> {
    let table = Table::open(extension, table, pg_sys::RowExclusiveLock as i32)?;
    let relation = table.relation();
    // SAFETY: the relation is open and locked; the block is one of it, which nobody truncates under this lock.
    // The page that is changed is a copy, which takes the place of the page when the change is logged. What is
    // raised in between lets go of the buffer with the transaction.
    let end = unsafe {
        let is_heap = (*(*relation).rd_rel).relam == pg_sys::HEAP_TABLE_AM_OID;
        let pages =
            pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM);
        let columns = [c"id", column].map(|name| pg_sys::get_attnum(table.oid(), name.as_ptr()));
        if is_heap && place.block < pages && columns.iter().all(|number| *number > 0) {
            let buffer = pg_sys::ReadBuffer(relation, place.block);
            pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_EXCLUSIVE as i32);
            let log = pg_sys::GenericXLogStart(relation);
            let page = pg_sys::GenericXLogRegisterBuffer(log, buffer, 0);
            let end = match find(page, relation, place, columns, bytes.len()) {
                Some(room) => {
                    room.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
                    Some(pg_sys::GenericXLogFinish(log))
                }
                None => {
                    pg_sys::GenericXLogAbort(log);
                    None
                }
            };
            pg_sys::UnlockReleaseBuffer(buffer);
            end
        } else {
            None
        }
    };
    table.close_locked();
    if let Some(end) = end {
        // SAFETY: a position that was just logged.
        unsafe { pg_sys::XLogFlush(end) }
    }
    Ok(end.is_some())
}

/// Where the column's bytes are on a page, if the row is there and has that much room.
///
/// # Safety
/// A page of the relation, which is open; columns of it, the first of type `bigint`, the second `bytea`.
unsafe fn find(
    page: pg_sys::Page,
    relation: pg_sys::Relation,
    place: &Place,
    [id, column]: [i16; 2],
    room: usize,
) -> Option<*mut u8> {
    // SAFETY: item identifiers follow the page's header, as many as it says; one that is in use leads to a row on
    // the page, which the relation's descriptor describes. What is read of it is on the page too: a value that is
    // neither compressed nor elsewhere.
    unsafe {
        let header = page.cast::<pg_sys::PageHeaderData>();
        let items = (&raw mut (*header).pd_linp).cast::<pg_sys::ItemIdData>();
        let begin = items.addr() - page.addr();
        let count =
            usize::from((*header).pd_lower).saturating_sub(begin) / size_of::<pg_sys::ItemIdData>();
        let at = usize::from(place.offset)
            .checked_sub(1)
            .filter(|at| *at < count)?;
        let item = *items.add(at);
        if item.lp_flags() != pg_sys::LP_NORMAL {
            return None;
        }
        let mut row: pg_sys::HeapTupleData = std::mem::zeroed();
        row.t_len = item.lp_len();
        row.t_data = page.add(item.lp_off() as usize).cast();
        let descriptor = (*relation).rd_att;
        let count = (*descriptor).natts as usize;
        let mut values = vec![pg_sys::Datum::null(); count];
        let mut nulls = vec![true; count];
        pg_sys::heap_deform_tuple(
            &mut row,
            descriptor,
            values.as_mut_ptr(),
            nulls.as_mut_ptr(),
        );
        let [id, column] = [id, column].map(|number| number as usize - 1);
        if nulls[id] || nulls[column] || values[id].value() as i64 != place.id {
            return None;
        }
        let value = values[column].cast_mut_ptr::<pg_sys::varlena>();
        let is_plain = pgrx::varlena::varatt_is_4b_u(value);
        let fits = is_plain && pgrx::varlena::varsize_any_exhdr(value) >= room;
        fits.then(|| value.cast::<u8>().add(pg_sys::VARHDRSZ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_from_its_text() {
        let place = Place::new("(17,3)", 5).expect("a place");
        assert_eq!((place.block, place.offset, place.id), (17, 3, 5));
        for text in ["", "(1)", "(1,)", "(-1,2)", "(1,70000)"] {
            assert!(Place::new(text, 5).is_err(), "{text:?}");
        }
    }
}
