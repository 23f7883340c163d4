//! SQL against the local database: the extension's own tables and the system catalogs.
//!
//! Always as the extension's owner (writers need no right on the queue) and always under a fresh snapshot,
//! whatever the isolation level: what another transaction queued and committed must be seen even by a
//! REPEATABLE READ transaction that began earlier. Works in a pre-commit callback, where no snapshot is
//! active. All arguments and results are text. Outside of a transaction everything here is an error and
//! reads nothing. Plans are kept for the life of the backend and re-made by the plan cache when needed.
//!
//! # Names
//! Statements run under [`SEARCH_PATH`], whatever the session's is: what PostgreSQL brings needs no schema
//! in front of it, operators and functions included. What the extension brings is qualified by its schema,
//! and nothing else may be named.
//!
//! SQL that does not run here cannot rely on this path, and qualifies operators too. What is sent to
//! servers runs under one that may end with schemas of the server's options and of the types that are
//! compared, see [`crate::connect::settings`]: an operator there for exactly the argument types would be
//! preferred. The files in `sql/` set the same path for themselves.

use super::Oid;
use super::columns::Columns;
pub use super::columns::Row;
use super::context::{AsUser, Settings};
use super::snapshot::Snapshot;
use super::text;
use super::xact;
use crate::error::{Error, Result, SqlState};
use crate::local::{ProcessLocal, process_local};
use pgrx::pg_sys;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char};

/// Where the extension's objects live and who owns them, so that nothing depends on the session's
/// search_path or rights.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Extension {
    pub schema: String,
    pub owner: Oid,
}

impl Extension {
    /// Looks the extension up.
    ///
    /// # Errors
    /// 42704 when it is not installed (it was dropped by this very transaction).
    pub fn find() -> Result<Self> {
        Self::look_up()?.ok_or_else(|| {
            let message = "extension \"pg_rowsync\" is not installed";
            Error::local(SqlState::UNDEFINED_OBJECT, message)
        })
    }

    /// Looks the extension up. `None` when it is not installed.
    ///
    /// # Errors
    /// What reading the catalogs reports.
    pub fn look_up() -> Result<Option<Self>> {
        let rows = run(
            None,
            None,
            "SELECT n.nspname, e.extowner FROM pg_extension e \
             JOIN pg_namespace n ON n.oid = e.extnamespace \
             WHERE e.extname = 'pg_rowsync'",
            &[],
            true,
        )?;
        let Some(mut row) = rows.into_iter().next() else {
            return Ok(None);
        };
        let schema = required(&mut row, 0)?;
        let owner = required(&mut row, 1)?.parse::<u32>();
        let owner = owner.map_err(|_| Error::internal("malformed oid"))?;
        Ok(Some(Self {
            schema,
            owner: owner.into(),
        }))
    }
}

/// The path of all statements here, both while they are planned and while they run: the plan cache plans
/// again under the path that it finds. Functions and operators are never looked for in `pg_temp`; it is named
/// so that tables and types are found there last, not first.
const SEARCH_PATH: &CStr = c"pg_catalog, pg_temp";

process_local! {
    /// Statement text to saved plan, and how many arguments that takes.
    static PLANS: RefCell<HashMap<String, (pg_sys::SPIPlanPtr, usize)>> = RefCell::default();
}

/// Runs a query that changes nothing.
///
/// # Errors
/// For text that is not UTF-8; everything else PostgreSQL raises.
pub fn read(extension: &Extension, sql: &str, args: &[Option<&str>]) -> Result<Vec<Row>> {
    run(Some(extension.owner), None, sql, args, true)
}

/// Runs a query that changes nothing, and reads its rows by type.
///
/// # Errors
/// As for [`read`]; XX000 where the types are not those of the columns.
pub fn select<T: Columns>(
    extension: &Extension,
    sql: &str,
    args: &[Option<&str>],
) -> Result<Vec<T>> {
    typed(read(extension, sql, args)?)
}

/// Runs a query that changes nothing, and reads its first row by type, if there is one.
///
/// # Errors
/// As for [`select`].
pub fn select_first<T: Columns>(
    extension: &Extension,
    sql: &str,
    args: &[Option<&str>],
) -> Result<Option<T>> {
    let row = read(extension, sql, args)?.into_iter().next();
    row.map(T::of_row).transpose()
}

/// Runs a query that changes nothing and has one row, which it reads by type.
///
/// # Errors
/// As for [`select`]; XX000 where there is no row.
pub fn select_one<T: Columns>(
    extension: &Extension,
    sql: &str,
    args: &[Option<&str>],
) -> Result<T> {
    only(read(extension, sql, args)?)
}

/// Reads the first of rows of which there is one, by type.
///
/// # Errors
/// XX000 where there is none, and where the types are not those of the columns.
pub fn only<T: Columns>(rows: Vec<Row>) -> Result<T> {
    let first = rows.into_iter().next().map(T::of_row).transpose()?;
    first.ok_or_else(|| Error::internal("unexpected lack of a row"))
}

/// Reads rows by type.
///
/// # Errors
/// XX000 where the types are not those of the columns.
pub fn typed<T: Columns>(rows: Vec<Row>) -> Result<Vec<T>> {
    rows.into_iter().map(T::of_row).collect()
}

/// Runs a query that changes nothing on the rows of a moment.
///
/// # Errors
/// As for [`read`].
pub fn read_as_of(
    extension: &Extension,
    moment: &Snapshot,
    sql: &str,
    args: &[Option<&str>],
) -> Result<Vec<Row>> {
    run(Some(extension.owner), Some(moment), sql, args, true)
}

/// Runs a statement that may change something; the rows are those of its RETURNING.
///
/// # Errors
/// As for [`read`].
pub fn write(extension: &Extension, sql: &str, args: &[Option<&str>]) -> Result<Vec<Row>> {
    run(Some(extension.owner), None, sql, args, false)
}

/// `user`: whose rights count, the current user's if `None`. `moment`: the current one if `None`.
fn run(
    user: Option<Oid>,
    moment: Option<&Snapshot>,
    sql: &str,
    args: &[Option<&str>],
    read_only: bool,
) -> Result<Vec<Row>> {
    xact::require()?;
    // Converted before anything is begun, so that no early return leaves SPI connected.
    let args = args
        .iter()
        .map(|arg| arg.map(text::to_server).transpose())
        .collect::<Result<Vec<_>>>()?;
    let source = text::to_server(sql)?;
    let kept = kept_plan(sql, args.len())?;
    let moment = moment.map(Snapshot::get).transpose()?;
    let _identity = user.map(AsUser::switch);
    // Every statement here has its index: a plan made while the queue was short must not read the whole of
    // a long one. What has to be read whole looks dear then, and compiling it would take longer, and more
    // memory, than anything here.
    let _settings = Settings::set(&[
        (c"search_path", SEARCH_PATH),
        (c"enable_seqscan", c"off"),
        (c"jit", c"off"),
    ]);
    // SAFETY: SPI calls in their order; what they raise unwinds, and the transaction's abort then
    // cleans up SPI and the snapshot stack, so only the successful path ends them here.
    unsafe {
        pg_sys::PushActiveSnapshot(moment.unwrap_or_else(|| pg_sys::GetLatestSnapshot()));
        if pg_sys::SPI_connect() != pg_sys::SPI_OK_CONNECT as i32 {
            pgrx::error!("SPI_connect failed");
        }
        let mut nulls: Vec<c_char> = Vec::with_capacity(args.len());
        let mut values: Vec<pg_sys::Datum> = Vec::with_capacity(args.len());
        for arg in &args {
            nulls.push(if arg.is_some() { b' ' } else { b'n' } as c_char);
            values.push(match arg {
                Some(arg) => {
                    let len = arg.as_bytes().len() as i32;
                    pg_sys::Datum::from(pg_sys::cstring_to_text_with_len(arg.as_ptr(), len))
                }
                None => pg_sys::Datum::from(0usize),
            });
        }
        let plan = kept.unwrap_or_else(|| make_plan(sql, &source, args.len()));
        let code = pg_sys::SPI_execute_snapshot(
            plan,
            values.as_mut_ptr(),
            nulls.as_ptr(),
            pg_sys::GetActiveSnapshot(),
            std::ptr::null_mut(),
            read_only,
            true,
            0,
        );
        if code < 0 {
            pgrx::error!("SPI_execute_snapshot failed: code {code}");
        }
        let rows = rows();
        pg_sys::SPI_freetuptable(pg_sys::SPI_tuptable);
        pg_sys::SPI_finish();
        pg_sys::PopActiveSnapshot();
        rows
    }
}

/// The kept plan of a statement, if it was made before.
///
/// # Errors
/// XX000 where the statement had another number of arguments then.
fn kept_plan(sql: &str, args: usize) -> Result<Option<pg_sys::SPIPlanPtr>> {
    match PLANS.with_borrow(|plans| plans.get(sql).copied()) {
        Some((_, takes)) if takes != args => Err(Error::internal(format!(
            "{args} arguments for a statement that takes {takes}"
        ))),
        known => Ok(known.map(|(plan, _)| plan)),
    }
}

/// Makes the plan of a statement and keeps it.
///
/// # Safety
/// SPI must be connected.
unsafe fn make_plan(sql: &str, source: &CStr, args: usize) -> pg_sys::SPIPlanPtr {
    let mut types = vec![pg_sys::TEXTOID; args];
    // SAFETY: SPI is connected; the plan is kept, so it outlives SPI_finish.
    let plan = unsafe {
        let plan = pg_sys::SPI_prepare(source.as_ptr(), args as i32, types.as_mut_ptr());
        if plan.is_null() {
            let code = pg_sys::SPI_result;
            pgrx::error!("SPI_prepare failed: code {code}");
        }
        pg_sys::SPI_keepplan(plan);
        plan
    };
    PLANS.with_borrow_mut(|plans| plans.insert(sql.to_owned(), (plan, args)));
    plan
}

/// The rows of the statement that just ran.
///
/// # Safety
/// SPI must be connected and a statement have been run.
pub(super) unsafe fn rows() -> Result<Vec<Row>> {
    // SAFETY: SPI_tuptable is null or holds numvals tuples of tupdesc.
    unsafe {
        let table = pg_sys::SPI_tuptable;
        if table.is_null() {
            return Ok(Vec::new());
        }
        let desc = (*table).tupdesc;
        let tuples = (*table).vals;
        let width = (*desc).natts;
        let mut rows = Vec::with_capacity((*table).numvals as usize);
        for at in 0..(*table).numvals as usize {
            let tuple = *tuples.add(at);
            let row: Result<Row> = (1..=width)
                .map(|column| text::to_string(pg_sys::SPI_getvalue(tuple, desc, column)))
                .collect();
            rows.push(row?);
        }
        Ok(rows)
    }
}

/// The text in a column that cannot be NULL.
///
/// # Errors
/// When it is NULL all the same.
pub fn required(row: &mut Row, column: usize) -> Result<String> {
    row.get_mut(column)
        .and_then(Option::take)
        .ok_or_else(|| Error::internal(format!("unexpected null in column {column}")))
}
