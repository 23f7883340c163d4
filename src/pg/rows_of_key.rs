//! The rows of a user's table that have a key, whoever has written them and whether that is committed or not:
//! what an ordinary look does not show. As [`super::lookup`] does, whatever the user's rights, and without
//! taking part in the conflicts of SERIALIZABLE transactions; what is found decides about waiting and failing
//! only.

use super::Oid;
use super::compare::RecordHash;
use super::compat;
use super::snapshot::Snapshot;
use super::text;
use super::xact;
use crate::error::{Error, Result, SqlState};
use pgrx::pg_sys;
use std::marker::PhantomData;

/// A key as a record, its columns in the order of their names. An argument of a SQL function's call.
#[derive(Clone, Copy)]
pub struct KeyRecord<'call>(pg_sys::HeapTupleHeader, PhantomData<&'call ()>);

impl KeyRecord<'_> {
    /// From a value of type `record`.
    ///
    /// # Safety
    /// It is one, and lives as long as the call.
    pub(super) unsafe fn new(record: pg_sys::Datum) -> Self {
        // SAFETY: by the caller.
        Self(
            unsafe { pg_sys::pg_detoast_datum(record.cast_mut_ptr()).cast() },
            PhantomData,
        )
    }

    /// What `hash_record_extended(key, 0)` gives.
    pub fn hash(&self) -> i64 {
        let record = pg_sys::Datum::from(self.0);
        let seed = pg_sys::Datum::from(0u64);
        // SAFETY: a function of the server's own for a record and a bigint; it raises for types without a hash.
        let hash = unsafe {
            let function = Oid::from(pg_sys::F_HASH_RECORD_EXTENDED);
            pg_sys::OidFunctionCall2Coll(function, pg_sys::InvalidOid, record, seed)
        };
        hash.value() as i64
    }

    /// The values, each with its type.
    fn values(&self) -> Vec<(Oid, Option<pg_sys::Datum>)> {
        // SAFETY: a whole record, whose header tells its type; the description is a copy in this memory
        // context.
        unsafe {
            let about = (*self.0).t_choice.t_datum;
            let shape = pg_sys::lookup_rowtype_tupdesc_copy(about.datum_typeid, about.datum_typmod);
            let number = (*shape).natts as usize;
            let mut values = vec![pg_sys::Datum::from(0usize); number];
            let mut nulls = vec![false; number];
            let mut tuple = pg_sys::HeapTupleData {
                t_data: self.0,
                ..Default::default()
            };
            pg_sys::heap_deform_tuple(
                &raw mut tuple,
                shape,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
            let one = |at: usize| {
                (
                    (*compat::attribute(shape, at)).atttypid,
                    (!nulls[at]).then_some(values[at]),
                )
            };
            (0..number).map(one).collect()
        }
    }
}

/// What transactions have to do with a key.
#[derive(Debug, Default)]
pub struct Holders {
    /// A row with the key is there that the current transaction has written.
    pub is_written: bool,
    /// The current transaction has deleted a row with the key, or replaced it.
    pub is_deleted: bool,
    /// A row is committed that the running statement does not see, since it has come after its beginning.
    pub has_come: bool,
    /// Another transaction that is under way has written a row with the key.
    pub writer: Option<OtherTransaction>,
}

/// A transaction that is under way, or was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherTransaction(pg_sys::TransactionId);

impl OtherTransaction {
    /// Waits until it has ended. PostgreSQL raises lock_timeout, deadlocks and requests to cancel.
    pub fn await_end(self) {
        xact::await_end(self.0.into_inner());
    }
}

/// Looks for the rows of tables (one, or the partitions of one) with a key, by a unique index on its columns.
///
/// # Errors
/// 22023 for a key that does not have these columns, or whose hash is another one than that of its values as
/// the columns' types; 42P10 without such an index; 25P01 outside of a transaction.
pub fn holders(tables: &[Oid], columns: &[String], key: KeyRecord<'_>) -> Result<Holders> {
    xact::require()?;
    let values = key.values();
    if values.len() != columns.len() {
        return Err(Error::local(
            SqlState::INVALID_PARAMETER,
            "key does not have these columns",
        ));
    }
    let mut holders = Holders::default();
    for table in tables {
        // SAFETY: a table or partition; null if it is gone. What PostgreSQL raises before it is closed leaves
        // it to the transaction's abort.
        unsafe {
            let lock = pg_sys::AccessShareLock as i32;
            let relation = pg_sys::try_relation_open(*table, lock);
            if !relation.is_null() {
                let looked = look(relation, columns, (key, &values), &mut holders);
                pg_sys::relation_close(relation, lock);
                looked?;
            }
        }
    }
    Ok(holders)
}

/// # Safety
/// The table must be open and locked.
unsafe fn look(
    relation: pg_sys::Relation,
    columns: &[String],
    (record, values): (KeyRecord<'_>, &[(Oid, Option<pg_sys::Datum>)]),
    holders: &mut Holders,
) -> Result<()> {
    // SAFETY: by the caller; indexes are open while they are used, a scan's rows are looked at before it ends.
    unsafe {
        let mut key = Vec::with_capacity(columns.len());
        for (name, (type_oid, value)) in columns.iter().zip(values) {
            // NULL is in no key.
            let Some(value) = value else { return Ok(()) };
            let number = pg_sys::get_attnum((*relation).rd_id, text::to_server(name)?.as_ptr());
            // An index has 0 where it has an expression.
            if number <= 0 {
                return Err(no_index());
            }
            let attribute = compat::attribute((*relation).rd_att, (number - 1) as usize);
            key.push((number, as_type(*value, *type_oid, attribute)));
        }
        if has_other_hash(relation, record, values, &key)? {
            return Err(Error::local(
                SqlState::INVALID_PARAMETER,
                "key does not have the types of these columns",
            ));
        }
        let index = index_on(relation, &key).ok_or_else(no_index)?;
        let lock = pg_sys::AccessShareLock as i32;
        let index = pg_sys::index_open(index, lock);
        let mut keys = scan_keys(index, &key);
        let snapshot = Snapshot::latest();
        let mut scanned = snapshot.scanned(relation, true);
        let number = keys.len() as i32;
        let scan = pg_sys::systable_beginscan_ordered(
            relation,
            index,
            scanned.get(),
            number,
            keys.as_mut_ptr(),
        );
        loop {
            let forward = pg_sys::ScanDirection::ForwardScanDirection;
            let tuple = pg_sys::systable_getnext_ordered(scan, forward);
            if tuple.is_null() {
                break;
            }
            let row = (*tuple).t_data;
            let own = is_own(row);
            let deleted = is_deleted_here(row);
            holders.is_written |= own && !deleted;
            holders.is_deleted |= deleted;
            holders.writer = holders.writer.or(writer_under_way(row));
            holders.has_come |= !own
                && snapshot.sees(relation, (*scan).slot)
                && !Snapshot::statement_sees(relation, (*scan).slot);
        }
        pg_sys::systable_endscan_ordered(scan);
        snapshot.release();
        pg_sys::index_close(index, lock);
        Ok(())
    }
}

fn no_index() -> Error {
    Error::local(
        SqlState::INVALID_COLUMN_REFERENCE,
        "there is no unique index on the key",
    )
}

/// Whether a record hashes to something else than its values do once they are of the columns' types. Stamps are
/// found by the hash, rows by the values: a record of other types could name one row by its values and another
/// one's stamp by its hash (`'a '` as `bpchar` hashes as `'a'` does as `text`).
///
/// # Safety
/// The table must be open and locked; `key` has the values as its columns' types.
unsafe fn has_other_hash(
    relation: pg_sys::Relation,
    record: KeyRecord<'_>,
    values: &[(Oid, Option<pg_sys::Datum>)],
    key: &[(i16, pg_sys::Datum)],
) -> Result<bool> {
    let mut hash = RecordHash::default();
    let mut is_converted = false;
    for ((number, value), (type_oid, _)) in key.iter().zip(values) {
        // SAFETY: an attribute of an open table, and a value of its type.
        unsafe {
            let attribute = compat::attribute((*relation).rd_att, (*number - 1) as usize);
            is_converted |= (*attribute).atttypid != *type_oid;
            hash.add((*attribute).atttypid, Some(*value))?;
        }
    }
    Ok(is_converted && hash.value() != record.hash())
}

/// A unique index on these columns, for all rows.
///
/// # Safety
/// The table must be open and locked.
unsafe fn index_on(relation: pg_sys::Relation, key: &[(i16, pg_sys::Datum)]) -> Option<Oid> {
    // SAFETY: a list of OIDs; under the table's lock none of them goes away.
    unsafe {
        let list = pg_sys::RelationGetIndexList(relation);
        let length = list.as_ref().map_or(0, |list| list.length as usize);
        let all: Vec<Oid> = (0..length)
            .map(|at| (*(*list).elements.add(at)).oid_value)
            .collect();
        pg_sys::list_free(list);
        let lock = pg_sys::AccessShareLock as i32;
        all.into_iter().find(|oid| {
            let index = pg_sys::index_open(*oid, lock);
            let form = (*index).rd_index;
            let number = (*form).indnkeyatts as usize;
            let column = |at: usize| *(*form).indkey.values.as_ptr().add(at);
            let fits = (*form).indisunique
                && (*form).indisvalid
                && (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID
                && number == key.len()
                && (0..number).all(|at| key.iter().any(|(column_of, _)| *column_of == column(at)))
                && pg_sys::RelationGetIndexPredicate(index).is_null();
            pg_sys::index_close(index, lock);
            fits
        })
    }
}

/// What finds the key in an index on its columns.
///
/// # Safety
/// The index must be open, and one on columns; what the values, of the columns' types, point to must outlive the
/// scan.
unsafe fn scan_keys(
    index: pg_sys::Relation,
    key: &[(i16, pg_sys::Datum)],
) -> Vec<pg_sys::ScanKeyData> {
    // SAFETY: arrays with an element for each key column, of an open index.
    unsafe {
        let form = (*index).rd_index;
        let one = |at: usize| {
            let column = *(*form).indkey.values.as_ptr().add(at);
            let (_, value) = key.iter().find(|(number, _)| *number == column)?;
            let family = *(*index).rd_opfamily.add(at);
            let input = *(*index).rd_opcintype.add(at);
            let equal = pg_sys::BTEqualStrategyNumber;
            let operator = pg_sys::get_opfamily_member(family, input, input, equal as i16);
            let mut scan_key = pg_sys::ScanKeyData::default();
            pg_sys::ScanKeyEntryInitialize(
                &mut scan_key,
                0,
                column,
                equal as u16,
                pg_sys::InvalidOid,
                *(*index).rd_indcollation.add(at),
                pg_sys::get_opcode(operator),
                *value,
            );
            Some(scan_key)
        };
        (0..key.len()).filter_map(one).collect()
    }
}

/// A value as one of a column's type.
///
/// # Safety
/// It is of the type given; the column is one of an open table.
unsafe fn as_type(
    value: pg_sys::Datum,
    type_oid: Oid,
    column: *const pg_sys::FormData_pg_attribute,
) -> pg_sys::Datum {
    // SAFETY: by the caller; output and input functions of the types, with what they take.
    unsafe {
        let wanted = (*column).atttypid;
        if wanted == type_oid {
            return value;
        }
        let mut function = pg_sys::InvalidOid;
        let mut is_varlena = false;
        pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut is_varlena);
        let text = pg_sys::OidOutputFunctionCall(function, value);
        let mut parameter = pg_sys::InvalidOid;
        pg_sys::getTypeInputInfo(wanted, &mut function, &mut parameter);
        pg_sys::OidInputFunctionCall(function, text, parameter, (*column).atttypmod)
    }
}

/// Another transaction that has written a row version and is under way.
///
/// # Safety
/// The row's buffer is held.
pub(super) unsafe fn writer_under_way(row: pg_sys::HeapTupleHeader) -> Option<OtherTransaction> {
    // SAFETY: by the caller; hints are only set once a transaction has ended.
    unsafe {
        let known = pg_sys::HEAP_XMIN_COMMITTED | pg_sys::HEAP_XMIN_INVALID;
        if u32::from((*row).t_infomask) & known != 0 {
            return None;
        }
        let writer = (*row).t_choice.t_heap.t_xmin;
        let under_way = !pg_sys::TransactionIdIsCurrentTransactionId(writer)
            && pg_sys::TransactionIdIsInProgress(writer);
        under_way.then_some(OtherTransaction(writer))
    }
}

/// Whether the current transaction has written a row version.
///
/// # Safety
/// The row's buffer is held.
unsafe fn is_own(row: pg_sys::HeapTupleHeader) -> bool {
    // SAFETY: by the caller. Of a frozen row both hints are set: the number says nothing.
    unsafe {
        let known = pg_sys::HEAP_XMIN_COMMITTED | pg_sys::HEAP_XMIN_INVALID;
        u32::from((*row).t_infomask) & known == 0
            && pg_sys::TransactionIdIsCurrentTransactionId((*row).t_choice.t_heap.t_xmin)
    }
}

/// Whether the current transaction has deleted or replaced a row version. Locks are no change, whoever has
/// them.
///
/// # Safety
/// The row's buffer is held.
unsafe fn is_deleted_here(row: pg_sys::HeapTupleHeader) -> bool {
    // SAFETY: by the caller; the number of a multixact that has an updater is read where its flags say so.
    unsafe {
        let flags = u32::from((*row).t_infomask);
        let is_multi = flags & pg_sys::HEAP_XMAX_IS_MULTI != 0;
        let is_lock = flags & pg_sys::HEAP_XMAX_LOCK_ONLY != 0
            || (!is_multi && flags & pg_sys::HEAP_LOCK_MASK == pg_sys::HEAP_XMAX_EXCL_LOCK);
        if flags & pg_sys::HEAP_XMAX_INVALID != 0 || is_lock {
            return false;
        }
        let deleter = if is_multi {
            pg_sys::HeapTupleGetUpdateXid(row)
        } else {
            (*row).t_choice.t_heap.t_xmax
        };
        pg_sys::TransactionIdIsCurrentTransactionId(deleter)
    }
}
