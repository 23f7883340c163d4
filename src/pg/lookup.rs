//! A row of one of the extension's tables by its primary key, for what is asked for every row of a change:
//! several times cheaper than SQL.

use super::Oid;
use super::spi::{Home, Row};
use super::text;
use crate::error::{Error, Result};
use pgrx::pg_sys;

/// Reads a row of a table whose primary key is its first two columns, an `oid` and a `bigint`; the first so
/// many columns, as text. As [`super::spi`] does under a fresh snapshot, and whatever the user's rights.
///
/// # Errors
/// When there is no such table, or text is not UTF-8.
pub fn by_key(home: &Home, table: &str, key: (Oid, i64), columns: i32) -> Result<Option<Row>> {
    let [schema, name, index] =
        [home.schema.as_str(), table, &format!("{table}_pkey")].map(text::to_server);
    let (schema, name, index) = (schema?, name?, index?);
    // SAFETY: look-ups and a scan in their order; what they raise is cleaned up by the transaction's abort. The
    // tuple is used before the scan ends, its columns are copied.
    unsafe {
        let namespace = pg_sys::get_namespace_oid(schema.as_ptr(), true);
        let table_oid = pg_sys::get_relname_relid(name.as_ptr(), namespace);
        let index_oid = pg_sys::get_relname_relid(index.as_ptr(), namespace);
        if table_oid == pg_sys::InvalidOid || index_oid == pg_sys::InvalidOid {
            return Err(Error::internal(format!("table \"{table}\" is not there")));
        }
        let relation = pg_sys::table_open(table_oid, pg_sys::AccessShareLock as i32);
        let mut keys = [pg_sys::ScanKeyData::default(); 2];
        let equal = pg_sys::BTEqualStrategyNumber as u16;
        let (one, two) = (key.0.into(), pg_sys::Datum::from(key.1));
        pg_sys::ScanKeyInit(&mut keys[0], 1, equal, pg_sys::F_OIDEQ.into(), one);
        pg_sys::ScanKeyInit(&mut keys[1], 2, equal, pg_sys::F_INT8EQ.into(), two);
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        let scan =
            pg_sys::systable_beginscan(relation, index_oid, true, snapshot, 2, keys.as_mut_ptr());
        let tuple = pg_sys::systable_getnext(scan);
        let row = (!tuple.is_null()).then(|| {
            let value = |at| text::to_string(pg_sys::SPI_getvalue(tuple, (*relation).rd_att, at));
            (1..=columns).map(value).collect::<Result<Row>>()
        });
        pg_sys::systable_endscan(scan);
        pg_sys::UnregisterSnapshot(snapshot);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
        row.transpose()
    }
}
