//! Rows appended to one of the extension's tables, several times cheaper than by SQL: without a plan, and
//! without the values being written as text and read again. Indexes and triggers are seen to as for any
//! INSERT; the table's own constraints, which these rows fulfil, are only checked where there are
//! triggers. As in [`super::spi`], whatever the user's rights, and in a pre-commit callback too.

use super::Oid;
use super::compat;
use super::context::{AsUser, Settings};
use super::lookup;
use super::spi::Home;
use super::text;
use crate::error::Result;
use pgrx::PgTupleDesc;
use pgrx::pg_sys::{self, Datum};
use std::ffi::CStr;

/// A value of a column.
pub enum Value<'v> {
    Text(&'v str),
    Name(&'v str),
    Oid(Oid),
    Int4(i32),
    Int8(i64),
    Int8s(&'v [i64]),
    /// A point in time, as PostgreSQL counts.
    Time(i64),
    /// The current transaction.
    Transaction,
    /// The next number of a sequence.
    Next(Oid),
}

/// Appends rows to a table.
pub struct Appender {
    relation: pg_sys::Relation,
    state: *mut pg_sys::EState,
    result: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    /// Holds the values of one row.
    row: pg_sys::MemoryContext,
    /// Names of the table's columns; empty for a dropped one.
    columns: Vec<pg_sys::NameData>,
    triggers: Option<Triggers>,
    _user: AsUser,
}

/// Of triggers that somebody has added.
struct Triggers {
    _settings: Settings,
}

impl Appender {
    /// Begins to append. What is not closed in the end is left to the transaction's abort. `without`: partial
    /// indexes that no row to be appended belongs into; to open one costs as much as to write a row.
    ///
    /// # Errors
    /// When there is no such table.
    pub fn open(home: &Home, table: &str, without: &[&str]) -> Result<Self> {
        let oid = lookup::table(home, table)?;
        // One that is not there need not be left out.
        let without: Vec<Oid> =
            without.iter().filter_map(|index| lookup::table(home, index).ok()).collect();
        let user = AsUser::switch(home.owner);
        // SAFETY: calls in their order, as the server's own worker for logical replication makes them;
        // what they raise unwinds, and the transaction's abort cleans up.
        unsafe {
            pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
            let relation = pg_sys::table_open(oid, pg_sys::RowExclusiveLock as i32);
            let state = pg_sys::CreateExecutorState();
            (*state).es_output_cid = pg_sys::GetCurrentCommandId(true);
            let size = size_of::<pg_sys::ResultRelInfo>();
            let result: *mut pg_sys::ResultRelInfo =
                pg_sys::MemoryContextAllocZero((*state).es_query_cxt, size).cast();
            pg_sys::InitResultRelInfo(result, relation, 0, std::ptr::null_mut(), 0);
            open_indexes(relation, result, &without);
            let slot = pg_sys::table_slot_create(relation, std::ptr::null_mut());
            let row = pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                c"pg_rowsync row".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            );
            let triggers = fire_on_insert((*relation).trigdesc).then(|| {
                let path = [(c"search_path", c"pg_catalog, pg_temp")];
                let _settings = Settings::set(&path);
                pg_sys::AfterTriggerBeginQuery();
                pg_sys::ExecBSInsertTriggers(state, result);
                Triggers { _settings }
            });
            let columns = PgTupleDesc::from_pg_unchecked((*relation).rd_att)
                .iter()
                .map(|column| match column.attisdropped {
                    true => pg_sys::NameData::default(),
                    false => column.attname,
                })
                .collect();
            Ok(Self { relation, state, result, slot, row, columns, triggers, _user: user })
        }
    }

    /// Appends a row. Columns that are not named are NULL, whatever their defaults.
    ///
    /// # Errors
    /// For text that the database's encoding lacks; PostgreSQL raises everything else.
    pub fn append(&mut self, values: &[(&str, Value<'_>)]) -> Result<()> {
        // SAFETY: the slot has a value and a flag for each of the table's columns; the values live in a
        // context that is reset after the row was stored, not before.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.row);
            pg_sys::ExecClearTuple(self.slot);
            for (at, column) in self.columns.iter().enumerate() {
                let column = CStr::from_ptr(column.data.as_ptr()).to_bytes();
                let value = values.iter().find(|(name, _)| name.as_bytes() == column);
                *(*self.slot).tts_isnull.add(at) = value.is_none();
                if let Some((_, value)) = value {
                    *(*self.slot).tts_values.add(at) = datum(value)?;
                }
            }
            pg_sys::ExecStoreVirtualTuple(self.slot);
            if self.triggers.is_some() {
                pg_sys::ExecSimpleRelationInsert(self.result, self.state, self.slot);
            } else {
                pg_sys::simple_table_tuple_insert(self.relation, self.slot);
                compat::insert_index_entries(self.result, self.slot, self.state);
            }
            pg_sys::ExecClearTuple(self.slot);
            pg_sys::MemoryContextSwitchTo(before);
            pg_sys::MemoryContextReset(self.row);
            let scratch = (*self.state).es_per_tuple_exprcontext;
            if !scratch.is_null() {
                pg_sys::ReScanExprContext(scratch);
            }
        }
        Ok(())
    }

    /// Ends it; the rows can be seen now.
    pub fn close(self) {
        // SAFETY: as in open(), in reverse.
        unsafe {
            if self.triggers.is_some() {
                pg_sys::ExecASInsertTriggers(self.state, self.result, std::ptr::null_mut());
                pg_sys::AfterTriggerEndQuery(self.state);
            }
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            pg_sys::ExecCloseIndices(self.result);
            pg_sys::ExecCloseResultRelations(self.state);
            pg_sys::FreeExecutorState(self.state);
            pg_sys::MemoryContextDelete(self.row);
            // The lock stays until the end of the transaction.
            pg_sys::table_close(self.relation, pg_sys::NoLock as i32);
            pg_sys::PopActiveSnapshot();
            pg_sys::CommandCounterIncrement();
        }
    }
}

/// Whether some trigger would fire for an INSERT. The extension's own, which are for replication, fire only where
/// `session_replication_role` says so.
///
/// # Safety
/// Null or the triggers of an open relation.
unsafe fn fire_on_insert(triggers: *mut pg_sys::TriggerDesc) -> bool {
    // SAFETY: the list is as long as it says; a plain read of a setting.
    unsafe {
        let Some(triggers) = triggers.as_ref() else { return false };
        let as_replica =
            pg_sys::SessionReplicationRole == pg_sys::SESSION_REPLICATION_ROLE_REPLICA as i32;
        let silent = if as_replica { b'O' } else { b'R' };
        (0..triggers.numtriggers as usize).map(|at| &*triggers.triggers.add(at)).any(|trigger| {
            let enabled = trigger.tgenabled as u8;
            enabled != b'D'
                && enabled != silent
                && u32::from(trigger.tgtype as u16) & pg_sys::TRIGGER_TYPE_INSERT != 0
        })
    }
}

/// `ExecOpenIndices`, for all indexes but some.
///
/// # Safety
/// The relation is open, and the result was made for it in the current memory context or one that lives
/// as long.
unsafe fn open_indexes(
    relation: pg_sys::Relation,
    result: *mut pg_sys::ResultRelInfo,
    without: &[Oid],
) {
    // SAFETY: a list of OIDs; the arrays have room for all of them.
    unsafe {
        let list = pg_sys::RelationGetIndexList(relation);
        let length = list.as_ref().map_or(0, |list| list.length as usize);
        let room = length.max(1) * size_of::<*mut u8>();
        (*result).ri_IndexRelationDescs = pg_sys::palloc(room).cast();
        (*result).ri_IndexRelationInfo = pg_sys::palloc(room).cast();
        let oids = (0..length).map(|at| (*(*list).elements.add(at)).oid_value);
        let mut number = 0;
        for oid in oids.filter(|oid| !without.contains(oid)) {
            let index = pg_sys::index_open(oid, pg_sys::RowExclusiveLock as i32);
            *(*result).ri_IndexRelationDescs.add(number) = index;
            *(*result).ri_IndexRelationInfo.add(number) = pg_sys::BuildIndexInfo(index);
            number += 1;
        }
        (*result).ri_NumIndices = number as i32;
        pg_sys::list_free(list);
    }
}

/// # Safety
/// The result must not outlive the current memory context.
unsafe fn datum(value: &Value<'_>) -> Result<Datum> {
    // SAFETY: pointers into memory that was just allocated, of the types' own layouts.
    Ok(unsafe {
        match *value {
            Value::Text(value) => text::to_datum(value)?,
            Value::Name(value) => {
                let value = text::to_server(value)?;
                let name: *mut pg_sys::NameData =
                    pg_sys::palloc0(size_of::<pg_sys::NameData>()).cast();
                pg_sys::namestrcpy(name, value.as_ptr());
                Datum::from(name)
            }
            Value::Oid(value) => Datum::from(value),
            Value::Int4(value) => Datum::from(value),
            Value::Int8(value) | Value::Time(value) => Datum::from(value),
            Value::Int8s(values) => {
                let mut values: Vec<Datum> = values.iter().copied().map(Datum::from).collect();
                let (length, align) = (size_of::<i64>() as i32, pg_sys::TYPALIGN_DOUBLE as _);
                Datum::from(pg_sys::construct_array(
                    values.as_mut_ptr(),
                    values.len() as i32,
                    pg_sys::INT8OID,
                    length,
                    true,
                    align,
                ))
            }
            Value::Transaction => Datum::from(pg_sys::GetTopFullTransactionId().value),
            Value::Next(sequence) => pg_sys::OidFunctionCall1Coll(
                pg_sys::F_NEXTVAL.into(),
                pg_sys::InvalidOid,
                Datum::from(sequence),
            ),
        }
    })
}
