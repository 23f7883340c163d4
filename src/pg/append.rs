//! Rows appended to one of the extension's tables, several times cheaper than by SQL: without a plan, and
//! without the values being written as text and read again. What an administrator has added to the table is
//! seen to as for any INSERT: indexes, triggers, constraints, columns with defaults. As in [`super::spi`],
//! whatever the user's rights, and in a pre-commit callback too.

use super::Oid;
use super::context::{AsUser, Settings};
use super::lookup::{Status, Table};
use super::spi::Extension;
use super::text;
use super::xact::Transaction;
use crate::error::{Error, Result};
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
}

/// Appends rows to a table.
pub struct Appender {
    table: Table,
    state: *mut pg_sys::EState,
    result: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    /// Holds the values of one row.
    row: pg_sys::MemoryContext,
    columns: Vec<Column>,
    triggers: Option<Triggers>,
    /// With its end all of this is gone.
    of: Transaction,
    _user: AsUser,
}

/// A column of the table.
struct Column {
    /// Empty for a dropped one.
    name: pg_sys::NameData,
    /// Where no value is given.
    default: Default,
}

/// What stands for a value that is not given.
#[derive(Clone, Copy)]
enum Default {
    /// Not looked for yet.
    Unknown,
    Null,
    Of(*mut pg_sys::ExprState),
}

/// Of triggers that somebody has added.
struct Triggers {
    _settings: Settings,
}

impl Appender {
    /// Begins to append. What is not closed in the end is left to the transaction's abort. `rows`: the status
    /// that all rows have; indexes that get no entry of such rows are not even opened, which costs as much as
    /// to write a row.
    ///
    /// # Errors
    /// When there is no such table.
    pub fn open(extension: &Extension, table: &str, rows: Status) -> Result<Self> {
        let table = Table::open(extension, table, pg_sys::RowExclusiveLock as i32)?;
        let without = match rows {
            Status::Pending => table.indexes_without_pending(),
            Status::Any | Status::NotPending => Vec::new(),
        };
        let user = AsUser::switch(extension.owner);
        let relation = table.relation();
        // SAFETY: calls in their order, as the server's own worker for logical replication makes them;
        // what they raise unwinds, and the transaction's abort cleans up.
        unsafe {
            pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
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
            let insert = pg_sys::TRIGGER_TYPE_INSERT;
            let triggers = fire((*relation).trigdesc, insert).then(|| {
                let path = [(c"search_path", c"pg_catalog, pg_temp")];
                let _settings = Settings::set(&path);
                pg_sys::AfterTriggerBeginQuery();
                pg_sys::ExecBSInsertTriggers(state, result);
                Triggers { _settings }
            });
            let columns = PgTupleDesc::from_pg_unchecked((*relation).rd_att)
                .iter()
                .map(|column| {
                    if column.attisdropped {
                        Column {
                            name: pg_sys::NameData::default(),
                            default: Default::Null,
                        }
                    } else {
                        Column {
                            name: column.attname,
                            default: Default::Unknown,
                        }
                    }
                })
                .collect();
            let of = Transaction::current();
            Ok(Self {
                table,
                state,
                result,
                slot,
                row,
                columns,
                triggers,
                of,
                _user: user,
            })
        }
    }

    /// Appends a row. Columns that are not named get their defaults.
    ///
    /// # Errors
    /// For text that the database's encoding lacks; XX000 when the transaction that it was opened in is over.
    /// PostgreSQL raises everything else.
    pub fn append(&mut self, values: &[(&str, Value<'_>)]) -> Result<()> {
        if self.of.is_over() {
            return Err(Error::internal("appending goes on in another transaction"));
        }
        // SAFETY: the slot is filled before it is stored; the values live in a context that is reset after the
        // row was stored, not before.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.row);
            pg_sys::ExecClearTuple(self.slot);
            let filled = self.fill(values);
            if filled.is_ok() {
                pg_sys::ExecStoreVirtualTuple(self.slot);
                pg_sys::ExecSimpleRelationInsert(self.result, self.state, self.slot);
                pg_sys::ExecClearTuple(self.slot);
            }
            pg_sys::MemoryContextSwitchTo(before);
            pg_sys::MemoryContextReset(self.row);
            filled?;
            let scratch = (*self.state).es_per_tuple_exprcontext;
            if !scratch.is_null() {
                pg_sys::ReScanExprContext(scratch);
            }
        }
        Ok(())
    }

    /// Puts a row's values into the slot.
    ///
    /// # Safety
    /// They live in the current memory context.
    unsafe fn fill(&mut self, values: &[(&str, Value<'_>)]) -> Result<()> {
        for at in 0..self.columns.len() {
            // SAFETY: a name that ends with a zero byte; the slot has a value and a flag for each of the
            // table's columns.
            unsafe {
                let column = CStr::from_ptr(self.columns[at].name.data.as_ptr()).to_bytes();
                let given = values.iter().find(|(name, _)| name.as_bytes() == column);
                let value = match given {
                    Some((_, value)) => Some(datum(value)?),
                    None => self.default_of(at),
                };
                *(*self.slot).tts_isnull.add(at) = value.is_none();
                *(*self.slot).tts_values.add(at) = value.unwrap_or(Datum::from(0usize));
            }
        }
        Ok(())
    }

    /// The default of a column, by its position; `None` for NULL. Generated columns are worked out by the
    /// insert.
    ///
    /// # Safety
    /// The value lives until the next row.
    unsafe fn default_of(&mut self, at: usize) -> Option<Datum> {
        // SAFETY: the column is one of the table's; expressions live as long as the executor's state, values as
        // long as its memory for one row.
        unsafe {
            let default = match self.columns[at].default {
                Default::Unknown => self.find_default(at),
                known => known,
            };
            self.columns[at].default = default;
            let Default::Of(expression) = default else {
                return None;
            };
            let scratch = match (*self.state).es_per_tuple_exprcontext {
                scratch if scratch.is_null() => pg_sys::MakePerTupleExprContext(self.state),
                scratch => scratch,
            };
            let mut is_null = false;
            let value = pg_sys::ExecEvalExprSwitchContext(expression, scratch, &mut is_null);
            (!is_null).then_some(value)
        }
    }

    /// # Safety
    /// As for [`Appender::default_of`].
    unsafe fn find_default(&self, at: usize) -> Default {
        // SAFETY: as above.
        unsafe {
            let relation = self.table.relation();
            let shape = PgTupleDesc::from_pg_unchecked((*relation).rd_att);
            // Types of the server's own have no defaults, as domains may.
            let may_have = shape.get(at).is_some_and(|column| {
                let is_own = column.atttypid.to_u32() < pg_sys::FirstNormalObjectId;
                column.attgenerated == 0 && (column.atthasdef || !is_own)
            });
            if !may_have {
                return Default::Null;
            }
            let before = pg_sys::MemoryContextSwitchTo((*self.state).es_query_cxt);
            let node = pg_sys::build_column_default(relation, at as i32 + 1);
            let default = if node.is_null() {
                Default::Null
            } else {
                Default::Of(pg_sys::ExecPrepareExpr(node.cast(), self.state))
            };
            pg_sys::MemoryContextSwitchTo(before);
            default
        }
    }

    /// Ends it; the rows can be seen now.
    pub fn close(self) {
        if self.of.is_over() {
            return;
        }
        // SAFETY: as in open(), in reverse.
        unsafe {
            if self.triggers.is_some() {
                pg_sys::ExecASInsertTriggers(self.state, self.result, std::ptr::null_mut());
                pg_sys::AfterTriggerEndQuery(self.state);
            }
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            pg_sys::ExecCloseIndices(self.result);
            pg_sys::ExecCloseResultRelations(self.state);
            // Slots that triggers were given.
            pg_sys::ExecResetTupleTable((*self.state).es_tupleTable, false);
            pg_sys::FreeExecutorState(self.state);
            pg_sys::MemoryContextDelete(self.row);
            self.table.close_locked();
            pg_sys::PopActiveSnapshot();
            pg_sys::CommandCounterIncrement();
        }
    }
}

/// Whether some trigger would fire for an event, one of `TRIGGER_TYPE_INSERT` and its kin. The extension's own, which are for replication, fire only
/// where `session_replication_role` says so.
///
/// # Safety
/// Null or the triggers of an open relation.
pub(super) unsafe fn fire(triggers: *mut pg_sys::TriggerDesc, event: u32) -> bool {
    // SAFETY: the list is as long as it says; a plain read of a setting.
    unsafe {
        let Some(triggers) = triggers.as_ref() else {
            return false;
        };
        let as_replica =
            pg_sys::SessionReplicationRole == pg_sys::SESSION_REPLICATION_ROLE_REPLICA as i32;
        let silent = if as_replica { b'O' } else { b'R' };
        (0..triggers.numtriggers as usize)
            .map(|at| &*triggers.triggers.add(at))
            .any(|trigger| {
                let enabled = trigger.tgenabled as u8;
                enabled != b'D'
                    && enabled != silent
                    && u32::from(trigger.tgtype as u16) & event != 0
            })
    }
}

/// `ExecOpenIndices`, for all indexes but some.
///
/// # Safety
/// The relation is open; what is allocated in the current memory context must outlive the result.
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
                let length = size_of::<i64>() as i32;
                let align = pg_sys::TYPALIGN_DOUBLE as _;
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
        }
    })
}
