//! Rows removed from one of the extension's tables, several times cheaper than by SQL: without a plan. As in
//! [`super::append`], whatever the user's rights, and in a pre-commit callback too.

use super::append;
use super::lookup::{Is, Shown, Status, Table, View};
use super::spi::Extension;
use crate::error::Result;
use pgrx::pg_sys;

/// Removes the rows that have one of some texts in a column, and shows each that was. Rows that another
/// transaction is changing, or has changed, stay: nobody is waited for. False, and nothing is removed, where
/// somebody has given the table triggers that fire for it: that is for SQL.
///
/// Under READ COMMITTED: what a transaction's snapshot does not see is removed all the same.
///
/// # Errors
/// When there is no such table; what `removed` reports.
pub fn remove(
    extension: &Extension,
    table: &'static str,
    (column, texts): (i16, &[String]),
    mut removed: impl FnMut(&Shown) -> Result<()>,
) -> Result<bool> {
    View::look(extension, &[table], |view| {
        let open = Table::open(extension, table, pg_sys::RowExclusiveLock as i32)?;
        // SAFETY: it is open.
        let fires =
            unsafe { append::fire((*open.relation()).trigdesc, pg_sys::TRIGGER_TYPE_DELETE) };
        if !fires {
            // SAFETY: a snapshot of the current transaction; it is pushed for values that are stored apart.
            unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
            for text in texts {
                let keys = [(column, Is::Text(text))];
                view.each_row(table, &keys, Status::Any, |row| {
                    if delete(&open, row) {
                        removed(row)?;
                    }
                    Ok(true)
                })?;
            }
            // SAFETY: as pushed.
            unsafe {
                pg_sys::PopActiveSnapshot();
                pg_sys::CommandCounterIncrement();
            }
        }
        open.close_locked();
        Ok(!fires)
    })
}

/// Deletes a row, unless another transaction has part in it.
fn delete(table: &Table, row: &Shown) -> bool {
    let mut place = row.place();
    let mut about = pg_sys::TM_FailureData::default();
    // SAFETY: the table is open under a lock for writing, and the view that shows the row keeps VACUUM from
    // giving its place to another; every table has this routine.
    unsafe {
        let relation = table.relation();
        let Some(delete) = (*(*relation).rd_tableam).tuple_delete else {
            return false;
        };
        let result = delete(
            relation,
            &mut place,
            pg_sys::GetCurrentCommandId(true),
            pg_sys::GetActiveSnapshot(),
            std::ptr::null_mut(),
            false,
            &mut about,
            false,
        );
        result == pg_sys::TM_Result::TM_Ok
    }
}
