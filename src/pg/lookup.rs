//! Rows of the extension's tables by an index, for what is asked at every commit or for every row of a
//! change: several times cheaper than SQL. As [`super::spi`] does, under a fresh snapshot and whatever
//! the user's rights.

use super::Oid;
use super::invalidation::{self, Epoch};
use super::spi::{Home, Row};
use super::text;
use crate::error::{Error, Result};
use pgrx::pg_sys;
use std::cell::RefCell;

/// Reads a row of a table whose primary key is its first two columns, an `oid` and a `bigint`; the first so
/// many columns, as text.
///
/// # Errors
/// When there is no such table, or text is not UTF-8.
pub fn by_key(home: &Home, table: &str, key: (Oid, i64), columns: i32) -> Result<Option<Row>> {
    let indexed = Indexed::find(home, table, &format!("{table}_pkey"))?;
    // SAFETY: a snapshot for one scan; what is raised is cleaned up by the transaction's abort. The tuple
    // is used while it lasts, its columns are copied.
    unsafe {
        let mut keys = [pg_sys::ScanKeyData::default(); 2];
        let equal = pg_sys::BTEqualStrategyNumber as u16;
        let (one, two) = (key.0.into(), pg_sys::Datum::from(key.1));
        pg_sys::ScanKeyInit(&mut keys[0], 1, equal, pg_sys::F_OIDEQ.into(), one);
        pg_sys::ScanKeyInit(&mut keys[1], 2, equal, pg_sys::F_INT8EQ.into(), two);
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        let row = indexed.find_row(snapshot, &mut keys, |tuple, shape| {
            let value = |at| text::to_string(pg_sys::SPI_getvalue(tuple, shape, at));
            (1..=columns).map(value).collect::<Result<Row>>()
        });
        pg_sys::UnregisterSnapshot(snapshot);
        row.ok().transpose()
    }
}

/// Rows of a table: those that an index has, which begins with this column, a text or a `bigint`.
pub struct Place {
    pub table: &'static str,
    pub index: &'static str,
    /// Its number in the table, from 1 on.
    pub column: i16,
}

/// The first of the places that has a row with this text, all seen at one moment.
///
/// # Errors
/// When there is no such table.
pub fn first_with(home: &Home, value: &str, places: &[Place]) -> Result<Option<usize>> {
    let key = text::to_datum(value)?;
    let find = |place: &Place| Indexed::find(home, place.table, place.index);
    let indexed = places.iter().map(find).collect::<Result<Vec<_>>>()?;
    // SAFETY: as above; the key's text lives as long as the memory context, the scans end before.
    unsafe {
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        let mut vacant = None;
        let has = |(indexed, place): (&Indexed, &Place)| {
            if vacant == Some(indexed.table) {
                return false;
            }
            let mut keys = [pg_sys::ScanKeyData::default()];
            pg_sys::ScanKeyEntryInitialize(
                &mut keys[0],
                0,
                place.column,
                pg_sys::BTEqualStrategyNumber as u16,
                pg_sys::InvalidOid,
                // As the column is declared: the index is ordered by it.
                pg_sys::DEFAULT_COLLATION_OID,
                pg_sys::F_TEXTEQ.into(),
                key,
            );
            let found = indexed.find_row(snapshot, &mut keys, |_, _| ());
            if found == Err(Absent::Table) {
                vacant = Some(indexed.table);
            }
            found.is_ok()
        };
        let found = indexed.iter().zip(places).position(has);
        pg_sys::UnregisterSnapshot(snapshot);
        Ok(found)
    }
}

/// A relation that was found.
struct Found {
    schema: String,
    name: String,
    oid: Oid,
    at: Epoch,
}

thread_local! {
    /// Relations that were found; with the next change of one they are looked for again.
    static FOUND: RefCell<Vec<Found>> = const { RefCell::new(Vec::new()) };
}

/// A table of the extension's, an index or a sequence.
///
/// # Errors
/// When it is not there.
pub fn table(home: &Home, name: &str) -> Result<Oid> {
    let at = invalidation::now();
    let known = FOUND.with_borrow(|found| {
        let is = |f: &&Found| f.at == at && f.name == name && f.schema == home.schema;
        found.iter().find(is).map(|found| found.oid)
    });
    if let Some(known) = known {
        return Ok(known);
    }
    let oid = find(home, name)?;
    invalidation::watch(oid);
    let found = Found { schema: home.schema.clone(), name: name.to_owned(), oid, at };
    FOUND.with_borrow_mut(|all| {
        all.retain(|found| found.at == at);
        all.push(found);
    });
    Ok(oid)
}

fn find(home: &Home, name: &str) -> Result<Oid> {
    let [schema, relation] = [home.schema.as_str(), name].map(text::to_server);
    let (schema, relation) = (schema?, relation?);
    // SAFETY: look-ups by C strings.
    let found = unsafe {
        let namespace = pg_sys::get_namespace_oid(schema.as_ptr(), true);
        pg_sys::get_relname_relid(relation.as_ptr(), namespace)
    };
    match found == pg_sys::InvalidOid {
        true => Err(Error::internal(format!("table \"{name}\" is not there"))),
        false => Ok(found),
    }
}

/// Whether there is a row of this place with this number.
///
/// # Errors
/// When there is no such table.
pub fn has_id(home: &Home, place: &Place, id: i64) -> Result<bool> {
    let indexed = Indexed::find(home, place.table, place.index)?;
    // SAFETY: as above.
    unsafe {
        let mut keys = [pg_sys::ScanKeyData::default()];
        let equal = pg_sys::BTEqualStrategyNumber as u16;
        let id = pg_sys::Datum::from(id);
        pg_sys::ScanKeyInit(&mut keys[0], place.column, equal, pg_sys::F_INT8EQ.into(), id);
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        let found = indexed.find_row(snapshot, &mut keys, |_, _| ()).is_ok();
        pg_sys::UnregisterSnapshot(snapshot);
        Ok(found)
    }
}

/// What there is none of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    /// Such a row.
    Row,
    /// Any row: the table has no pages. Most of the time there is nothing in the queue, and VACUUM has given
    /// back the pages of what there was.
    Table,
}

/// A table and one of its indexes.
struct Indexed {
    table: pg_sys::Oid,
    index: pg_sys::Oid,
}

impl Indexed {
    fn find(home: &Home, name: &str, index: &str) -> Result<Self> {
        Ok(Self { table: table(home, name)?, index: table(home, index)? })
    }

    /// What `take` makes of a row that the keys find: the last one, since of a queue that is being drained it
    /// is the first entries whose rows are gone.
    ///
    /// # Safety
    /// A registered snapshot, and keys that fit columns of the index.
    unsafe fn find_row<T>(
        &self,
        snapshot: pg_sys::Snapshot,
        keys: &mut [pg_sys::ScanKeyData],
        take: impl FnOnce(pg_sys::HeapTuple, pg_sys::TupleDesc) -> T,
    ) -> std::result::Result<T, Absent> {
        const LOCK: i32 = pg_sys::AccessShareLock as i32;
        let pages = |relation| {
            let main = pg_sys::ForkNumber::MAIN_FORKNUM;
            // SAFETY: an open relation.
            unsafe { pg_sys::RelationGetNumberOfBlocksInFork(relation, main) }
        };
        // SAFETY: relations that are open while they are used; a scan in its order, whose tuple is used
        // before it ends.
        unsafe {
            let relation = pg_sys::table_open(self.table, LOCK);
            if pages(relation) == 0 {
                pg_sys::table_close(relation, LOCK);
                return Err(Absent::Table);
            }
            let index = pg_sys::index_open(self.index, LOCK);
            let mut taken = None;
            // Nor is there one in an index that has had no entry since it was built: all it has is its
            // metapage.
            if pages(index) > 1 {
                let (number, keys) = (keys.len() as i32, keys.as_mut_ptr());
                let scan =
                    pg_sys::systable_beginscan_ordered(relation, index, snapshot, number, keys);
                let backward = pg_sys::ScanDirection::BackwardScanDirection;
                let tuple = pg_sys::systable_getnext_ordered(scan, backward);
                taken = (!tuple.is_null()).then(|| take(tuple, (*relation).rd_att));
                pg_sys::systable_endscan_ordered(scan);
            }
            pg_sys::index_close(index, LOCK);
            pg_sys::table_close(relation, LOCK);
            taken.ok_or(Absent::Row)
        }
    }
}
