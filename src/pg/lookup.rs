//! Rows of the extension's tables by an index, for what is asked at every commit or for every row of a
//! change: several times cheaper than SQL. As [`super::spi`] does, under a fresh snapshot and whatever
//! the user's rights.
//!
//! Tables and indexes are remembered, but only believed under a lock of the table: taking it shows what
//! others have committed, and from then on no index that was found goes away or stops getting entries
//! (REINDEX CONCURRENTLY waits for those who hold the lock before it does either). An index is known by its
//! definition and not by its name, which anybody may give to another. Snapshots are taken under the lock,
//! too: an older one sees nothing in a table that was rewritten meanwhile.

use super::invalidation::{self, Epoch};
use super::rows_of_key::{OtherTransaction, writer_under_way};
use super::snapshot::{Scanned, Snapshot};
use super::spi::{self, Extension, Row};
use super::tables;
use super::text;
use super::xact;
use super::{Oid, compat};
use crate::error::{Error, Result};
use crate::local::{ProcessLocal, process_local};
use pgrx::pg_sys;
use std::cell::RefCell;

/// Rows of a table: those that have a value in a column, a `bigint`.
pub struct IndexRef {
    pub table: &'static str,
    /// Its number in the table, from 1 on.
    pub column: i16,
    pub status: Status,
}

/// Which rows of a table with a column `status` are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// All rows; the table need not have the column.
    Any,
    Pending,
    NotPending,
}

/// The status of records that are to be sent.
const PENDING: &str = "pending";

impl Status {
    fn holds(self, status: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Pending => status == PENDING,
            Self::NotPending => status != PENDING,
        }
    }
}

/// A condition on a column, by its number in the table.
pub type Key<'k> = (i16, Is<'k>);

/// What is asked of a column.
#[derive(Clone, Copy)]
pub enum Is<'k> {
    Text(&'k str),
    /// In the order of the database's collation: any text at all comes after the empty one, or is it.
    TextFrom(&'k str),
    TextBelow(&'k str),
    Oid(Oid),
    /// Smaller than this.
    OidBelow(Oid),
    Int8(i64),
    Int8Above(i64),
}

/// At which end of an index a scan begins.
#[derive(Clone, Copy)]
enum From {
    Beginning,
    End,
}

impl From {
    fn direction(self) -> pg_sys::ScanDirection::Type {
        match self {
            Self::Beginning => pg_sys::ScanDirection::ForwardScanDirection,
            Self::End => pg_sys::ScanDirection::BackwardScanDirection,
        }
    }
}

/// A row that was found by its key.
pub struct ByKey {
    pub row: Row,
    /// Where it is: the text of its `ctid`.
    pub place: String,
}

/// Reads a row of a table whose primary key is its first two columns, an `oid` and a `bigint`; the first so
/// many columns, as text. And another transaction that is under way and has written a row with the key.
///
/// # Errors
/// When there is no such table, or text is not UTF-8.
pub fn by_key(
    extension: &Extension,
    table: &'static str,
    key: (Oid, i64),
    columns: i16,
) -> Result<(Option<ByKey>, Option<OtherTransaction>)> {
    let keys = [(1, Is::Oid(key.0)), (2, Is::Int8(key.1))];
    View::look(extension, &[table], |view| {
        let mut found = None;
        let mut writer = None;
        view.each(
            From::End,
            table,
            &keys,
            Status::Any,
            true,
            |tuple, shape, is_seen| {
                // SAFETY: a row that the scan holds.
                writer = writer.or(unsafe { writer_under_way((*tuple).t_data) });
                if is_seen {
                    let row: Result<Row> =
                        (1..=columns).map(|at| value(tuple, shape, at)).collect();
                    let place = place(tuple);
                    found = Some(row.map(|row| ByKey { row, place }));
                }
                true
            },
        )?;
        Ok((found.transpose()?, writer))
    })
}

/// The first of the places that has a row with this text, all seen at one moment.
///
/// # Errors
/// When there is no such table.
pub fn first_with(
    extension: &Extension,
    value: &str,
    places: &[IndexRef],
) -> Result<Option<usize>> {
    let tables: Vec<_> = places.iter().map(|place| place.table).collect();
    View::look(extension, &tables, |view| {
        for (at, place) in places.iter().enumerate() {
            if view.has(
                place.table,
                &[(place.column, Is::Text(value))],
                place.status,
            )? {
                return Ok(Some(at));
            }
        }
        Ok(None)
    })
}

/// Whether there is a row of this place with this number.
///
/// # Errors
/// When there is no such table.
pub fn has_id(extension: &Extension, place: &IndexRef, id: i64) -> Result<bool> {
    let keys = [(place.column, Is::Int8(id))];
    View::look(extension, &[place.table], |view| {
        view.has(place.table, &keys, place.status)
    })
}

/// Tables of the extension's as of one moment.
///
/// What is read takes no part in the conflicts of SERIALIZABLE transactions: see [`Snapshot`].
pub struct View<'h> {
    extension: &'h Extension,
    tables: Vec<Viewed>,
    snapshot: Snapshot,
}

/// A table of a view.
struct Viewed {
    name: &'static str,
    table: Table,
    /// It has no pages: most of the time there is nothing in the queue, and VACUUM has given back the pages of
    /// what there was.
    is_vacant: bool,
}

impl<'h> View<'h> {
    /// Hands a view of tables to `look`.
    ///
    /// # Errors
    /// When one is not there; what `look` reports.
    pub fn look<T>(
        extension: &'h Extension,
        tables: &[&'static str],
        look: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<T> {
        let view = Self::open(extension, tables)?;
        let result = look(&view);
        view.snapshot.release();
        let relations: Vec<_> = view.tables.iter().map(|one| one.table.relation).collect();
        // SAFETY: opened under this lock, closed once.
        unsafe { tables::close(&relations, READ) };
        result
    }

    /// Locks tables and takes the moment. What PostgreSQL raises before the view is closed leaves it to the
    /// transaction's abort.
    fn open(extension: &'h Extension, names: &[&'static str]) -> Result<Self> {
        let mut all = Vec::with_capacity(names.len());
        for name in names {
            if !all.contains(name) {
                all.push(*name);
            }
        }
        let relations = open_all(extension, &all)?;
        let snapshot = Snapshot::latest();
        // SAFETY: they are open. Looked at after the moment was taken: what is seen then has its page.
        let vacant = unsafe { tables::are_vacant(&relations) };
        let tables = all.into_iter().zip(relations).zip(vacant);
        Ok(Self {
            extension,
            tables: tables
                .map(|((name, relation), is_vacant)| Viewed {
                    name,
                    table: Table { relation },
                    is_vacant,
                })
                .collect(),
            snapshot,
        })
    }

    /// Whether a table has such a row. Looked for from the end of the index, since of a queue that is being
    /// drained it is the first entries whose rows are gone.
    ///
    /// # Errors
    /// XX000 for a table that is not of the view.
    pub fn has(&self, table: &str, keys: &[Key<'_>], status: Status) -> Result<bool> {
        self.has_from(From::End, table, keys, status)
    }

    /// As [`View::has`], looked for from the beginning of the index.
    ///
    /// # Errors
    /// As for [`View::has`].
    pub fn has_first(&self, table: &str, keys: &[Key<'_>], status: Status) -> Result<bool> {
        self.has_from(From::Beginning, table, keys, status)
    }

    fn has_from(&self, from: From, table: &str, keys: &[Key<'_>], status: Status) -> Result<bool> {
        let mut found = false;
        self.each(from, table, keys, status, false, |_, _, _| {
            found = true;
            false
        })?;
        Ok(found)
    }

    /// The largest value that such rows have in the column of the last key, an `oid`, also those that are gone:
    /// whatever became of them, the last entry of the index tells at once.
    ///
    /// # Errors
    /// As for [`View::has`].
    pub fn last_oid(&self, table: &str, keys: &[Key<'_>], status: Status) -> Result<Option<Oid>> {
        let as_oid = |datum: pg_sys::Datum| Oid::from(datum.value() as u32);
        if let Some(last) = self.last_entry(table, keys, status, as_oid)? {
            return Ok(last);
        }
        let mut last: Option<u32> = None;
        let column = keys.last().map_or(0, |(column, _)| *column);
        self.each(From::End, table, keys, status, true, |tuple, shape, _| {
            last = last.max(oid(tuple, shape, column).map(|oid| oid.to_u32()));
            true
        })?;
        Ok(last.map(Oid::from))
    }

    /// As [`View::last_oid`], of a text: one of the values where no index has their order, which is not the
    /// largest one then.
    ///
    /// # Errors
    /// As for [`View::has`], and for text that is not UTF-8.
    pub fn last_text(
        &self,
        table: &str,
        keys: &[Key<'_>],
        status: Status,
    ) -> Result<Option<String>> {
        // SAFETY: a text of an entry that the scan holds.
        let as_text = |datum: pg_sys::Datum| unsafe {
            text::to_string(pg_sys::text_to_cstring(datum.cast_mut_ptr()))
        };
        if let Some(last) = self.last_entry(table, keys, status, as_text)? {
            return Ok(last.transpose()?.flatten());
        }
        let mut last = None;
        let column = keys.last().map_or(0, |(column, _)| *column);
        self.each(From::End, table, keys, status, true, |tuple, shape, _| {
            last = Some(value(tuple, shape, column));
            false
        })?;
        Ok(last.transpose()?.flatten())
    }

    /// What the last entry for such rows has in the column of the last key, if there is an entry; `None` if there
    /// is no index.
    fn last_entry<T>(
        &self,
        table: &str,
        keys: &[Key<'_>],
        status: Status,
        take: impl FnOnce(pg_sys::Datum) -> T,
    ) -> Result<Option<Option<T>>> {
        let viewed = self.table(table)?;
        if viewed.is_vacant {
            return Ok(Some(None));
        }
        let mut keys = scan_keys(keys)?;
        let index = viewed.table.index_for(&keys, status);
        // SAFETY: the keys are the first columns of the index; what they point to lives as long as the memory
        // context.
        Ok(index.map(|index| unsafe { viewed.table.last_entry(index, &mut keys, take) }))
    }

    /// What such a row has in a column, a `bigint`.
    ///
    /// # Errors
    /// As for [`View::has`].
    pub fn int8(&self, table: &str, keys: &[Key<'_>], column: i16) -> Result<Option<i64>> {
        let mut found = None;
        self.each(
            From::End,
            table,
            keys,
            Status::Any,
            false,
            |tuple, shape, _| {
                found = int8(tuple, shape, column);
                false
            },
        )?;
        Ok(found)
    }

    /// What such rows have in a column, an `oid`.
    ///
    /// # Errors
    /// As for [`View::has`].
    pub fn oids(&self, table: &str, keys: &[Key<'_>], column: i16) -> Result<Vec<Oid>> {
        let mut values = Vec::new();
        self.each(
            From::End,
            table,
            keys,
            Status::Any,
            false,
            |tuple, shape, _| {
                values.extend(oid(tuple, shape, column));
                true
            },
        )?;
        Ok(values)
    }

    /// Shows such rows, while `visit` wants more.
    ///
    /// # Errors
    /// As for [`View::has`]; what `visit` reports.
    pub fn each_row(
        &self,
        table: &str,
        keys: &[Key<'_>],
        status: Status,
        mut visit: impl FnMut(&Shown) -> Result<bool>,
    ) -> Result<()> {
        let mut visited = Ok(true);
        self.each(
            From::Beginning,
            table,
            keys,
            status,
            false,
            |tuple, shape, _| {
                visited = visit(&Shown { tuple, shape });
                matches!(visited, Ok(true))
            },
        )?;
        visited.map(|_| ())
    }

    /// As [`spi::read`], of the same moment.
    ///
    /// # Errors
    /// As for [`spi::read`].
    pub fn read(&self, sql: &str, args: &[Option<&str>]) -> Result<Vec<Row>> {
        spi::read_as_of(self.extension, &self.snapshot, sql, args)
    }

    fn table(&self, name: &str) -> Result<&Viewed> {
        let table = self.tables.iter().find(|one| one.name == name);
        table.ok_or_else(|| Error::internal(format!("table \"{name}\" is not in view")))
    }

    /// Shows such rows, while `visit` wants more; in the order of the index, if there is one. `whole`: also
    /// those that are not seen, with whether they are.
    fn each(
        &self,
        from: From,
        table: &str,
        keys: &[Key<'_>],
        status: Status,
        whole: bool,
        visit: impl FnMut(pg_sys::HeapTuple, pg_sys::TupleDesc, bool) -> bool,
    ) -> Result<()> {
        let viewed = self.table(table)?;
        if viewed.is_vacant {
            return Ok(());
        }
        let mut keys = scan_keys(keys)?;
        // SAFETY: the keys fit the columns; what they point to lives as long as the memory context.
        unsafe {
            viewed
                .table
                .scan(from, &self.snapshot, &mut keys, status, whole, visit)
        };
        Ok(())
    }
}

/// A row while a view shows it. Columns are known by their numbers in the table.
pub struct Shown {
    tuple: pg_sys::HeapTuple,
    shape: pg_sys::TupleDesc,
}

impl Shown {
    /// A column as text.
    ///
    /// # Errors
    /// For text that is not UTF-8.
    pub fn text(&self, column: i16) -> Result<Option<String>> {
        value(self.tuple, self.shape, column)
    }

    /// A column that is a `bigint`.
    pub fn int8(&self, column: i16) -> Option<i64> {
        int8(self.tuple, self.shape, column)
    }

    /// A column that is a `bigint[]`.
    pub fn int8s(&self, column: i16) -> Option<Vec<i64>> {
        int8s(self.tuple, self.shape, column)
    }

    /// Where the row is stored.
    pub(super) fn place(&self) -> pg_sys::ItemPointerData {
        // SAFETY: a row that a scan holds.
        unsafe { (*self.tuple).t_self }
    }
}

fn scan_keys(keys: &[Key<'_>]) -> Result<Vec<pg_sys::ScanKeyData>> {
    let equal = pg_sys::BTEqualStrategyNumber;
    let less = pg_sys::BTLessStrategyNumber;
    let from = pg_sys::BTGreaterEqualStrategyNumber;
    let above = pg_sys::BTGreaterStrategyNumber;
    let none = pg_sys::InvalidOid;
    let collation = pg_sys::DEFAULT_COLLATION_OID;
    keys.iter()
        .map(|(column, is)| {
            // Texts as the columns are declared: the index is ordered by it.
            let (strategy, collation, function, value) = match *is {
                Is::Text(text) => (equal, collation, pg_sys::F_TEXTEQ, text::to_datum(text)?),
                Is::TextFrom(text) => (from, collation, pg_sys::F_TEXT_GE, text::to_datum(text)?),
                Is::TextBelow(text) => (less, collation, pg_sys::F_TEXT_LT, text::to_datum(text)?),
                Is::Oid(oid) => (equal, none, pg_sys::F_OIDEQ, oid.into()),
                Is::OidBelow(oid) => (less, none, pg_sys::F_OIDLT, oid.into()),
                Is::Int8(number) => (equal, none, pg_sys::F_INT8EQ, pg_sys::Datum::from(number)),
                Is::Int8Above(number) => {
                    (above, none, pg_sys::F_INT8GT, pg_sys::Datum::from(number))
                }
            };
            let mut key = pg_sys::ScanKeyData::default();
            // SAFETY: plain data; the function is there.
            unsafe {
                pg_sys::ScanKeyEntryInitialize(
                    &mut key,
                    0,
                    *column,
                    strategy as u16,
                    none,
                    collation,
                    function.into(),
                    value,
                );
            }
            Ok(key)
        })
        .collect()
}

/// A column of a row as text.
fn value(
    tuple: pg_sys::HeapTuple,
    shape: pg_sys::TupleDesc,
    column: i16,
) -> Result<Option<String>> {
    // SAFETY: a row of an open table and its description, while a scan shows it; the text is palloc'd.
    unsafe { text::to_string(pg_sys::SPI_getvalue(tuple, shape, column.into())) }
}

/// A column of a row, of a type that is an `oid`.
fn oid(tuple: pg_sys::HeapTuple, shape: pg_sys::TupleDesc, column: i16) -> Option<Oid> {
    let mut is_null = true;
    // SAFETY: as for value(); a plain read.
    let value = unsafe { pg_sys::SPI_getbinval(tuple, shape, column.into(), &mut is_null) };
    (!is_null).then(|| Oid::from(value.value() as u32))
}

/// A column of a row, a `bigint`.
fn int8(tuple: pg_sys::HeapTuple, shape: pg_sys::TupleDesc, column: i16) -> Option<i64> {
    let mut is_null = true;
    // SAFETY: as for value(); eight bytes are passed by value.
    let value = unsafe { pg_sys::SPI_getbinval(tuple, shape, column.into(), &mut is_null) };
    (!is_null).then(|| value.value() as i64)
}

/// A column of a row, an array of `bigint`s.
fn int8s(tuple: pg_sys::HeapTuple, shape: pg_sys::TupleDesc, column: i16) -> Option<Vec<i64>> {
    let mut is_null = true;
    // SAFETY: as for value(); an array of this type, which is copied before its memory is given back.
    unsafe {
        let value = pg_sys::SPI_getbinval(tuple, shape, column.into(), &mut is_null);
        if is_null {
            return None;
        }
        let stored = value.cast_mut_ptr::<pg_sys::varlena>();
        let array = pg_sys::pg_detoast_datum(stored);
        let mut values = std::ptr::null_mut();
        let mut nulls = std::ptr::null_mut();
        let mut count = 0;
        pg_sys::deconstruct_array(
            array.cast(),
            pg_sys::INT8OID,
            size_of::<i64>() as i32,
            true,
            pg_sys::TYPALIGN_DOUBLE as _,
            &mut values,
            &mut nulls,
            &mut count,
        );
        let numbers = (0..count as usize)
            .filter(|at| !*nulls.add(*at))
            .map(|at| (*values.add(at)).value() as i64)
            .collect();
        pg_sys::pfree(values.cast());
        pg_sys::pfree(nulls.cast());
        if array != stored {
            pg_sys::pfree(array.cast());
        }
        Some(numbers)
    }
}

/// Where a row is, as the text of a `ctid`.
fn place(tuple: pg_sys::HeapTuple) -> String {
    // SAFETY: a row that a scan has found.
    let id = unsafe { (*tuple).t_self };
    let block = u32::from(id.ip_blkid.bi_hi) << 16 | u32::from(id.ip_blkid.bi_lo);
    format!("({block},{})", id.ip_posid)
}

/// Sees to it that a table can be written until the end of the transaction, without a wait for who changes or
/// locks it.
///
/// # Errors
/// When there is no such table. PostgreSQL raises what a wait ends with.
pub fn reserve(extension: &Extension, table: &str) -> Result<()> {
    // The lock stays.
    Table::open(extension, table, pg_sys::RowExclusiveLock as i32)?.close_locked();
    Ok(())
}

/// A relation that was found.
struct Found {
    schema: String,
    name: String,
    oid: Oid,
    at: Epoch,
}

/// The index for a kind of look-up, if the table has any that will do.
struct Choice {
    table: Oid,
    columns: Vec<i16>,
    status: Status,
    index: Option<Oid>,
    at: Epoch,
}

/// Indexes of a table that get no entry of a row that is pending.
struct WithoutPending {
    table: Oid,
    indexes: Vec<Oid>,
    at: Epoch,
}

process_local! {
    /// Relations that were found; with the next change of one they are looked for again, as are the others
    /// here.
    static FOUND: RefCell<Vec<Found>> = const { RefCell::new(Vec::new()) };
    static CHOICES: RefCell<Vec<Choice>> = const { RefCell::new(Vec::new()) };
    static WITHOUT_PENDING: RefCell<Vec<WithoutPending>> = const { RefCell::new(Vec::new()) };
}

/// A table of the extension's or a sequence, as far as this session has heard. See [`Table::open`].
///
/// # Errors
/// When it is not there; 25P01 outside of a transaction.
pub fn table(extension: &Extension, name: &str) -> Result<Oid> {
    xact::require()?;
    let at = invalidation::now();
    let known = FOUND.with_borrow(|found| {
        let is = |f: &&Found| f.at == at && f.name == name && f.schema == extension.schema;
        found.iter().find(is).map(|found| found.oid)
    });
    if let Some(known) = known {
        return Ok(known);
    }
    let oid = find(extension, name)?;
    invalidation::watch(oid);
    let found = Found {
        schema: extension.schema.clone(),
        name: name.to_owned(),
        oid,
        at,
    };
    FOUND.with_borrow_mut(|all| {
        all.retain(|found| found.at == at);
        all.push(found);
    });
    Ok(oid)
}

fn find(extension: &Extension, name: &str) -> Result<Oid> {
    let [schema, relation] = [extension.schema.as_str(), name].map(text::to_server);
    let schema = schema?;
    let relation = relation?;
    // SAFETY: look-ups by C strings, in a transaction.
    let found = unsafe {
        let namespace = pg_sys::get_namespace_oid(schema.as_ptr(), true);
        pg_sys::get_relname_relid(relation.as_ptr(), namespace)
    };
    if found == pg_sys::InvalidOid {
        Err(Error::internal(format!("table \"{name}\" is not there")))
    } else {
        Ok(found)
    }
}

const READ: i32 = pg_sys::AccessShareLock as i32;

/// Opens tables for reading, as [`Table::open`] does each.
fn open_all(extension: &Extension, names: &[&'static str]) -> Result<Vec<pg_sys::Relation>> {
    loop {
        let at = invalidation::now();
        let oids = names
            .iter()
            .map(|name| table(extension, name))
            .collect::<Result<Vec<_>>>()?;
        // SAFETY: table() has required a transaction; the test reads counters.
        let opened = unsafe { tables::open(&oids, READ, || invalidation::now() == at) };
        if let Some(opened) = opened {
            return Ok(opened);
        }
    }
}

/// A table of the extension's, open and locked. One that is not closed in the end is left to the transaction's
/// abort.
pub(super) struct Table {
    relation: pg_sys::Relation,
}

impl Table {
    /// Locks the table of this name.
    ///
    /// # Errors
    /// When there is none; 25P01 outside of a transaction. PostgreSQL raises what a wait for the lock ends
    /// with.
    pub fn open(extension: &Extension, name: &str, lock: i32) -> Result<Self> {
        let mut oid = table(extension, name)?;
        loop {
            // SAFETY: locks may be taken on what is not there any more; what has the name under the lock is.
            unsafe {
                pg_sys::LockRelationOid(oid, lock);
                let now = table(extension, name);
                if now.as_ref().is_ok_and(|now| *now == oid) {
                    let relation = pg_sys::table_open(oid, pg_sys::NoLock as i32);
                    return Ok(Self { relation });
                }
                pg_sys::UnlockRelationOid(oid, lock);
                oid = now?;
            }
        }
    }

    /// The server's own.
    pub fn relation(&self) -> pg_sys::Relation {
        self.relation
    }

    /// Its OID.
    pub fn oid(&self) -> Oid {
        // SAFETY: open while this lives.
        unsafe { (*self.relation).rd_id }
    }

    /// Closes it; the lock stays until the end of the transaction.
    pub fn close_locked(self) {
        // SAFETY: opened by open(), closed once.
        unsafe { pg_sys::table_close(self.relation, pg_sys::NoLock as i32) }
    }

    /// Indexes that get no entry of a row whose status is pending.
    pub fn indexes_without_pending(&self) -> Vec<Oid> {
        let at = invalidation::now();
        let table = self.oid();
        let known = WITHOUT_PENDING.with_borrow(|all| {
            let known = all
                .iter()
                .find(|known| known.table == table && known.at == at);
            known.map(|known| known.indexes.clone())
        });
        if let Some(known) = known {
            return known;
        }
        // SAFETY: the table is open and locked.
        let indexes = unsafe {
            let clauses = self.clauses(Status::Pending);
            self.indexes_where(|index| {
                let predicate = pg_sys::RelationGetIndexPredicate(index);
                !predicate.is_null()
                    && !clauses.is_null()
                    && pg_sys::predicate_refuted_by(predicate, clauses, false)
            })
        };
        WITHOUT_PENDING.with_borrow_mut(|all| {
            all.retain(|known| known.at == at && known.table != table);
            all.push(WithoutPending {
                table,
                indexes: indexes.clone(),
                at,
            });
        });
        indexes
    }

    /// Shows rows that the keys find, that have this status and that the snapshot sees, while `visit` wants
    /// more. Or the `whole` of them, with whether it sees them.
    ///
    /// # Safety
    /// The keys must fit columns of the table; what they point to must live on.
    unsafe fn scan(
        &self,
        from: From,
        snapshot: &Snapshot,
        keys: &mut [pg_sys::ScanKeyData],
        status: Status,
        whole: bool,
        mut visit: impl FnMut(pg_sys::HeapTuple, pg_sys::TupleDesc, bool) -> bool,
    ) {
        // SAFETY: relations that are open while they are used; a scan in its order, whose tuple is used
        // before it ends.
        unsafe {
            let relation = self.relation;
            let number = keys.len() as i32;
            let shape = (*relation).rd_att;
            let status_column = self.status_column(status);
            let fits = |tuple| match status_column {
                None => true,
                Some(at) => value(tuple, shape, at)
                    .is_ok_and(|value| value.is_some_and(|value| status.holds(&value))),
            };
            let mut scanned = snapshot.scanned(relation, whole);
            let is_seen = matches!(scanned, Scanned::ByItself(_));
            let mut wants_more = |scan: pg_sys::SysScanDesc, tuple: pg_sys::HeapTuple| {
                let seen = is_seen || snapshot.sees(relation, (*scan).slot);
                !(seen || whole) || !fits(tuple) || visit(tuple, shape, seen)
            };
            let Some(index) = self.index_for(keys, status) else {
                // Somebody has taken the index away: slowly, then, but rightly.
                let scan = pg_sys::systable_beginscan(
                    relation,
                    pg_sys::InvalidOid,
                    false,
                    scanned.get(),
                    number,
                    keys.as_mut_ptr(),
                );
                loop {
                    let tuple = pg_sys::systable_getnext(scan);
                    if tuple.is_null() || !wants_more(scan, tuple) {
                        break;
                    }
                }
                pg_sys::systable_endscan(scan);
                return;
            };
            let index = pg_sys::index_open(index, READ);
            // There is no row in an index that has had no entry since it was built: all it has is its metapage.
            if pages(index) > 1 {
                let scan = pg_sys::systable_beginscan_ordered(
                    relation,
                    index,
                    scanned.get(),
                    number,
                    keys.as_mut_ptr(),
                );
                loop {
                    let tuple = pg_sys::systable_getnext_ordered(scan, from.direction());
                    if tuple.is_null() || !wants_more(scan, tuple) {
                        break;
                    }
                }
                pg_sys::systable_endscan_ordered(scan);
            }
            pg_sys::index_close(index, READ);
        }
    }

    /// What the last entry of an index for these keys has in the column of the last of them. An entry is not asked
    /// what became of its row: those of rows that are gone stay until VACUUM comes, however many.
    ///
    /// # Safety
    /// It is an index of the table, and the keys are for its first columns, as [`Table::index_for`] finds it;
    /// what they point to must live on.
    unsafe fn last_entry<T>(
        &self,
        index: Oid,
        keys: &mut [pg_sys::ScanKeyData],
        take: impl FnOnce(pg_sys::Datum) -> T,
    ) -> Option<T> {
        let number = keys.len();
        for (at, key) in keys.iter_mut().enumerate() {
            key.sk_attno = at as i16 + 1;
        }
        let mut found = None;
        // SAFETY: relations that are open while they are used; the entry is looked at while the scan has it.
        unsafe {
            let index = pg_sys::index_open(index, READ);
            if pages(index) > 1 {
                let any = &raw mut pg_sys::SnapshotAnyData;
                let scan = compat::begin_index_scan(self.relation, index, any, number as i32);
                (*scan).xs_want_itup = true;
                (*scan).ignore_killed_tuples = false;
                pg_sys::index_rescan(
                    scan,
                    keys.as_mut_ptr(),
                    number as i32,
                    std::ptr::null_mut(),
                    0,
                );
                let backward = pg_sys::ScanDirection::BackwardScanDirection;
                if !pg_sys::index_getnext_tid(scan, backward).is_null() {
                    let mut values = [pg_sys::Datum::from(0usize); pg_sys::INDEX_MAX_KEYS as usize];
                    let mut nulls = [true; pg_sys::INDEX_MAX_KEYS as usize];
                    let entry = (*scan).xs_itup;
                    let shape = (*scan).xs_itupdesc;
                    pg_sys::index_deform_tuple(
                        entry,
                        shape,
                        values.as_mut_ptr(),
                        nulls.as_mut_ptr(),
                    );
                    if let (Some(value), Some(false)) =
                        (values.get(number - 1), nulls.get(number - 1))
                    {
                        found = Some(take(*value));
                    }
                }
                pg_sys::index_endscan(scan);
            }
            pg_sys::index_close(index, READ);
        }
        found
    }

    /// The index that leads to rows by these keys.
    fn index_for(&self, keys: &[pg_sys::ScanKeyData], status: Status) -> Option<Oid> {
        let at = invalidation::now();
        let table = self.oid();
        let columns = || keys.iter().map(|key| key.sk_attno);
        let known = CHOICES.with_borrow(|all| {
            let is = |known: &&Choice| {
                (known.table, known.status, known.at) == (table, status, at)
                    && known.columns.iter().copied().eq(columns())
            };
            all.iter().find(is).map(|known| known.index)
        });
        if let Some(known) = known {
            return known;
        }
        // SAFETY: the table is open and locked.
        let index = unsafe {
            let clauses = self.clauses(status);
            let fitting = self.indexes_where(|index| {
                let predicate = pg_sys::RelationGetIndexPredicate(index);
                let has_all = predicate.is_null()
                    || (!clauses.is_null()
                        && pg_sys::predicate_implied_by(predicate, clauses, false));
                has_all && finds(index, keys)
            });
            // The fewer rows it has, the better.
            fitting
                .iter()
                .copied()
                .find(|oid| is_partial(*oid))
                .or(fitting.first().copied())
        };
        CHOICES.with_borrow_mut(|all| {
            all.retain(|known| known.at == at);
            all.push(Choice {
                table,
                columns: columns().collect(),
                status,
                index,
                at,
            });
        });
        index
    }

    /// The table's indexes that can be used and of which this is true.
    ///
    /// # Safety
    /// The condition is handed an open index.
    unsafe fn indexes_where(&self, condition: impl Fn(pg_sys::Relation) -> bool) -> Vec<Oid> {
        // SAFETY: a list of OIDs; under the table's lock none of them goes away.
        unsafe {
            let list = pg_sys::RelationGetIndexList(self.relation);
            let length = list.as_ref().map_or(0, |list| list.length as usize);
            let all: Vec<Oid> = (0..length)
                .map(|at| (*(*list).elements.add(at)).oid_value)
                .collect();
            pg_sys::list_free(list);
            let fits = |oid: &Oid| {
                let index = pg_sys::index_open(*oid, READ);
                let fits = (*(*index).rd_index).indisvalid && condition(index);
                pg_sys::index_close(index, READ);
                fits
            };
            all.into_iter().filter(fits).collect()
        }
    }

    /// The number of the column `status`, where it matters.
    fn status_column(&self, status: Status) -> Option<i16> {
        if status == Status::Any {
            return None;
        }
        // SAFETY: a look-up by a C string.
        let number = unsafe { pg_sys::get_attnum(self.oid(), c"status".as_ptr()) };
        (number > 0).then_some(number)
    }

    /// The condition on the status, as the planner's prover takes it; an empty list for none.
    ///
    /// # Safety
    /// What it gives lives as long as the current memory context.
    unsafe fn clauses(&self, status: Status) -> *mut pg_sys::List {
        /// `text <> text` of pg_operator.dat.
        const TEXT_NOT_EQUAL: u32 = 531;
        let Some(column) = self.status_column(status) else {
            return std::ptr::null_mut();
        };
        let operator = match status {
            Status::NotPending => TEXT_NOT_EQUAL,
            Status::Pending | Status::Any => pg_sys::TextEqualOperator,
        };
        // SAFETY: nodes of the server's own making.
        unsafe {
            let text = pg_sys::TEXTOID;
            let collation = pg_sys::DEFAULT_COLLATION_OID;
            let variable = pg_sys::makeVar(1, column, text, -1, collation, 0);
            let value =
                pg_sys::cstring_to_text_with_len(PENDING.as_ptr().cast(), PENDING.len() as i32);
            let value = pg_sys::Datum::from(value);
            let constant = pg_sys::makeConst(text, -1, collation, -1, value, false, false);
            let clause = pg_sys::make_opclause(
                operator.into(),
                pg_sys::BOOLOID,
                false,
                variable.cast(),
                constant.cast(),
                pg_sys::InvalidOid,
                collation,
            );
            pg_sys::lappend(std::ptr::null_mut(), clause.cast())
        }
    }
}

/// Pages of a relation.
///
/// # Safety
/// It must be open.
unsafe fn pages(relation: pg_sys::Relation) -> u32 {
    // SAFETY: by the caller.
    unsafe { pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM) }
}

/// Whether an index finds rows by these keys: a btree that begins with their columns, under their operators and
/// collations.
///
/// # Safety
/// It must be open.
unsafe fn finds(index: pg_sys::Relation, keys: &[pg_sys::ScanKeyData]) -> bool {
    // SAFETY: arrays with an element for each key column, of an open index.
    unsafe {
        let form = (*index).rd_index;
        let is_btree = (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID;
        let column = |at: usize| *(*form).indkey.values.as_ptr().add(at);
        let fits = |(at, key): (usize, &pg_sys::ScanKeyData)| {
            let family = *(*index).rd_opfamily.add(at);
            let input = *(*index).rd_opcintype.add(at);
            let strategy = key.sk_strategy as i16;
            let operator = pg_sys::get_opfamily_member(family, input, input, strategy);
            column(at) == key.sk_attno
                && operator != pg_sys::InvalidOid
                && pg_sys::get_opcode(operator) == key.sk_func.fn_oid
                && (key.sk_collation == pg_sys::InvalidOid
                    || *(*index).rd_indcollation.add(at) == key.sk_collation)
        };
        is_btree && (*form).indnkeyatts as usize >= keys.len() && keys.iter().enumerate().all(fits)
    }
}

/// Whether an index has only some of the rows.
///
/// # Safety
/// Its table must be locked.
unsafe fn is_partial(index: Oid) -> bool {
    // SAFETY: under the table's lock it does not go away.
    unsafe {
        let index = pg_sys::index_open(index, READ);
        let partial = !pg_sys::RelationGetIndexPredicate(index).is_null();
        pg_sys::index_close(index, READ);
        partial
    }
}
