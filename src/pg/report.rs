//! From [`Error`] to the server's error machinery, with every field and any SQLSTATE (pgrx's own
//! report knows only the states that PostgreSQL names), and back.
//!
//! Whatever may quote a value of a row goes to the client only, never to the log.

use super::context::Settings;
use super::text::{displayable, outside_transaction, to_server};
use crate::error::{Error, RemoteError, Result, SqlState};
use crate::local::{ProcessLocal, process_local};
use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::{PgLogLevel, PgSqlErrorCode, PgTryBuilder, pg_sys};
use std::cell::{RefCell, UnsafeCell};
use std::ffi::{CString, c_char, c_void};
use std::panic::AssertUnwindSafe;

/// Raises an error: unwinds as pgrx's report does, so that values are dropped on the way, and says at
/// the end what is to be said (see [`fill_in`]); pgrx's report has no place for most of the fields,
/// nor for text in another encoding than UTF-8.
pub fn raise(error: &Error) -> ! {
    if let Some(remote) = error.withheld() {
        send_to_client(remote);
    }
    FIELDS.with(|fields| fields.replace(Some(Fields::of(error))));
    NODE.with(|node| {
        // SAFETY: the node lives as long as the backend. Whoever catches the error puts the stack
        // back to what it was when it began to listen, which takes the node off again.
        unsafe {
            (*node.get()).previous = pg_sys::error_context_stack;
            pg_sys::error_context_stack = node.get();
        }
    });
    let code = PgSqlErrorCode::ERRCODE_INTERNAL_ERROR;
    ErrorReport::new(code, "pg_rowsync", "").report(PgLogLevel::ERROR);
    unreachable!("ereport(ERROR) does not return")
}

/// From now on no backtrace is taken in this process: pgrx would send it to the client as the DETAIL of every
/// error that passes through here, wherever somebody has left `RUST_BACKTRACE` in the server's environment.
/// Called once, from _PG_init.
pub fn without_backtraces() {
    const VARIABLE: &str = "RUST_LIB_BACKTRACE";
    let before = std::env::var_os(VARIABLE);
    // SAFETY: the process has one thread. The standard library looks at the variable when the first backtrace
    // is asked for and never again, so it is what it was when this returns. Each library has its own copy of
    // that: no other is concerned.
    unsafe {
        std::env::set_var(VARIABLE, "0");
        drop(std::backtrace::Backtrace::capture());
        match before {
            Some(before) => std::env::set_var(VARIABLE, before),
            None => std::env::remove_var(VARIABLE),
        }
    }
}

/// Has everything made that raising an error needs once in a process: where there is no memory, the C library
/// would abort the process over the destructor of pgrx's state. Called once, from _PG_init.
pub fn raise_once() {
    // The message is for nobody.
    let _ = caught(|| -> Result<()> { raise(&Error::internal("raised once")) });
}

/// Level of what a client is told and no log.
const CLIENT_ONLY: u32 = pg_sys::WARNING_CLIENT_ONLY;
const WARNING: u32 = pg_sys::WARNING;

thread_local! {
    static NODE: UnsafeCell<pg_sys::ErrorContextCallback> =
        const {
            UnsafeCell::new(pg_sys::ErrorContextCallback {
                previous: std::ptr::null_mut(),
                callback: Some(fill_in),
                arg: std::ptr::null_mut(),
            })
        };
}

process_local! {
    /// The error being raised.
    static FIELDS: RefCell<Option<Fields>> = const { RefCell::new(None) };
}

/// Called by `errfinish` for the error that is being raised.
unsafe extern "C-unwind" fn fill_in(_arg: *mut c_void) {
    unsafe extern "C-unwind" {
        fn errcode(sqlstate: i32) -> i32;
        fn errmsg_internal(format: *const c_char, ...) -> i32;
        fn errdetail_internal(format: *const c_char, ...) -> i32;
        fn errhint(format: *const c_char, ...) -> i32;
        fn errcontext_msg(format: *const c_char, ...) -> i32;
    }
    let Some(fields) = FIELDS.take() else {
        return;
    };
    // SAFETY: an error report is under way, which is when these may be called; they copy the
    // strings. pg_sys's own wrappers are not used: nothing may be guarded inside errfinish.
    unsafe {
        errcode(fields.sqlstate);
        errmsg_internal(c"%s".as_ptr(), fields.message.as_ptr());
        if let Some(detail) = &fields.detail {
            errdetail_internal(c"%s".as_ptr(), detail.as_ptr());
        }
        if let Some(hint) = &fields.hint {
            errhint(c"%s".as_ptr(), hint.as_ptr());
        }
        for (code, value) in fields
            .generic
            .iter()
            .filter_map(|(c, v)| Some((*c, v.as_ref()?)))
        {
            pg_sys::err_generic_string(i32::from(code), value.as_ptr());
        }
        if let Some(context) = &fields.context {
            errcontext_msg(c"%s".as_ptr(), context.as_ptr());
        }
    }
}

/// A report, in the database's encoding.
struct Fields {
    sqlstate: i32,
    message: CString,
    detail: Option<CString>,
    hint: Option<CString>,
    generic: [(u8, Option<CString>); 4],
    context: Option<CString>,
}

impl Fields {
    fn of(error: &Error) -> Self {
        let remote = match error {
            Error::Remote(e) => Some(e.as_ref()),
            _ => None,
        };
        let place = |e: &RemoteError| c_text(&format!("remote server \"{}\"", e.server));
        let field = |get: fn(&RemoteError) -> &Option<String>| {
            remote.and_then(|e| get(e).as_deref()).map(c_text)
        };
        Self {
            sqlstate: error.sqlstate().packed(),
            message: c_text(&error.to_string()),
            detail: error.detail().map(|d| c_text(&sentence(&d))),
            hint: error.hint().map(|h| c_text(&h)),
            generic: [
                (pg_sys::PG_DIAG_SCHEMA_NAME, field(|e| &e.schema)),
                (pg_sys::PG_DIAG_TABLE_NAME, field(|e| &e.table)),
                (pg_sys::PG_DIAG_COLUMN_NAME, field(|e| &e.column)),
                (pg_sys::PG_DIAG_CONSTRAINT_NAME, field(|e| &e.constraint)),
            ],
            context: remote.map(place),
        }
    }
}

/// In the database's encoding; a report must not fail over its own text.
fn c_text(text: &str) -> CString {
    let clean: String = text.chars().filter(|c| *c != '\0').collect();
    if clean.is_ascii() {
        CString::new(clean).unwrap_or_default()
    } else {
        to_server(&displayable(&clean)).unwrap_or_default()
    }
}

/// Forgets an error that was raised and caught before it was reported.
fn forget() {
    FIELDS.take();
}

/// Runs `body`; what it raises becomes an error.
///
/// # Errors
/// What `body` returns, and everything that is raised.
pub fn caught<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: plain read; put back below, since whoever raised may have added to it.
    let contexts = unsafe { pg_sys::error_context_stack };
    let result = PgTryBuilder::new(AssertUnwindSafe(body))
        .catch_others(|caught| {
            let report = match &caught {
                CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
                CaughtError::RustPanic { ereport, .. } => ereport,
            };
            let state = SqlState::unpacked(report.sql_error_code() as i32);
            let error = Error::local(state, report.message());
            Err(match report.detail() {
                Some(detail) => error.with_detail(detail),
                None => error,
            })
        })
        .execute();
    // SAFETY: the stack as it was when nothing had been raised.
    unsafe { pg_sys::error_context_stack = contexts };
    forget();
    result
}

/// Unwraps at an edge: raises what is an error.
pub fn or_raise<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|e| raise(&e))
}

/// A WARNING under the error's SQLSTATE, with a message of its own and the error as DETAIL, which the log
/// gets in words that quote no value.
pub fn warn(message: &str, error: &Error, hint: Option<&str>) {
    let report = |reason: &str| {
        let report = Error::local(error.sqlstate(), message).with_detail(sentence(reason));
        hint.map_or(report.clone(), |hint| report.with_hint(hint))
    };
    let logged = error.one_line();
    let full = error.in_full();
    if logged == full {
        return emit(WARNING, &report(&full), None);
    }
    emit(CLIENT_ONLY, &report(&full), None);
    let _not_twice = Settings::set(&[(c"client_min_messages", c"error")]);
    emit(WARNING, &report(&logged), None);
}

/// A WARNING that says what an error would. For those that quote no value.
pub fn caution(error: &Error) {
    emit(WARNING, error, None);
}

/// What a server said, for the client and not for the log.
fn send_to_client(remote: &RemoteError) {
    let report = Error::Local {
        sqlstate: remote.sqlstate,
        message: format!("server \"{}\" reported: {}", remote.server, remote.message),
        detail: remote.detail.clone(),
        hint: remote.hint.clone(),
    };
    emit(CLIENT_ONLY, &report, remote.context.as_deref());
}

/// A NOTICE.
pub fn notice(message: &str) {
    let report = Error::local(SqlState::new("00000"), message);
    emit(pg_sys::NOTICE, &report, None);
}

/// A NOTICE with a HINT.
pub fn advise(message: &str, hint: &str) {
    let report = Error::local(SqlState::new("00000"), message).with_hint(hint);
    emit(pg_sys::NOTICE, &report, None);
}

/// A line for the server's log, also outside of transactions.
pub fn log(message: &str, error: Option<&Error>) {
    let state = error.map_or(SqlState::new("00000"), Error::sqlstate);
    let mut report = Error::local(state, outside_transaction(message));
    if let Some(error) = error {
        report = report.with_detail(sentence(&outside_transaction(&error.one_line())));
    }
    emit(pg_sys::LOG, &report, None);
}

fn sentence(text: &str) -> String {
    let text = text.trim_end();
    if text.ends_with(['.', '!', '?']) {
        text.to_owned()
    } else {
        format!("{text}.")
    }
}

/// Emits something that is not an error and therefore returns.
fn emit(level: u32, report: &Error, context: Option<&str>) {
    let some = |text: Option<String>| text.map(|t| c_text(&t));
    let message = c_text(&report.to_string());
    let detail = some(report.detail().map(|d| sentence(&d)));
    let hint = some(report.hint());
    let context = context.map(c_text);
    let ptr = |text: &Option<CString>| -> *mut c_char {
        text.as_ref()
            .map_or(std::ptr::null_mut(), |t| t.as_ptr().cast_mut())
    };
    let mut data = pg_sys::ErrorData {
        elevel: level as i32,
        sqlerrcode: report.sqlstate().packed(),
        message: message.as_ptr().cast_mut(),
        detail: ptr(&detail),
        hint: ptr(&hint),
        context: ptr(&context),
        ..Default::default()
    };
    // SAFETY: every pointer is null or a C string that lives until the call returns.
    unsafe { pg_sys::ThrowErrorData(&mut data) }
}
