//! From [`Error`] to the server's error machinery, with every field and any SQLSTATE (pgrx's own
//! report knows only the states that PostgreSQL names).

use super::text::to_server;
use crate::error::Error;
use pgrx::{PgLogLevel, pg_sys};
use std::ffi::{CString, c_char};

/// Raises an error.
pub fn raise(error: &Error) -> ! {
    emit(PgLogLevel::ERROR as i32, error, None);
    unreachable!("ereport(ERROR) does not return")
}

/// Unwraps at an edge: raises what is an error.
pub fn or_raise<T>(result: crate::error::Result<T>) -> T {
    result.unwrap_or_else(|e| raise(&e))
}

/// A WARNING under the error's SQLSTATE, with a message of its own and the error as DETAIL.
pub fn warn(message: &str, error: &Error, hint: Option<&str>) {
    let detail = sentence(&error.one_line());
    let mut told = Error::local(error.sqlstate(), message).with_detail(detail);
    if let Some(hint) = hint {
        told = told.with_hint(hint);
    }
    emit(PgLogLevel::WARNING as i32, &told, None);
}

/// A NOTICE.
pub fn notice(message: &str) {
    let told = Error::local(crate::error::SqlState::new("00000"), message);
    emit(PgLogLevel::NOTICE as i32, &told, None);
}

fn sentence(text: &str) -> String {
    let text = text.trim_end();
    if text.ends_with(['.', '!', '?']) { text.to_owned() } else { format!("{text}.") }
}

/// The fields live in Rust memory: `ThrowErrorData` copies them before it jumps, and the jump
/// unwinds this frame.
fn emit(level: i32, error: &Error, context: Option<&str>) {
    let c = |text: &str| -> CString {
        // Encoding a message must not fail over the message: what cannot be converted is dropped.
        let clean: String = text.chars().filter(|c| *c != '\0').collect();
        if clean.is_ascii() {
            CString::new(clean).unwrap_or_default()
        } else {
            to_server(&clean).unwrap_or_default()
        }
    };
    let some = |text: Option<String>| text.map(|t| c(&t));
    let remote = match error {
        Error::Remote(e) => Some(e.as_ref()),
        _ => None,
    };
    let message = c(&error.to_string());
    let detail = some(error.detail().map(|d| sentence(&d)));
    let hint = some(error.hint());
    let context = some(context.map(str::to_owned).or_else(|| {
        remote.map(|e| match &e.context {
            Some(context) => format!("{context}\nremote server \"{}\"", e.server),
            None => format!("remote server \"{}\"", e.server),
        })
    }));
    let field = |get: fn(&crate::error::RemoteError) -> &Option<String>| {
        some(remote.and_then(|e| get(e).clone()))
    };
    let schema = field(|e| &e.schema);
    let table = field(|e| &e.table);
    let column = field(|e| &e.column);
    let constraint = field(|e| &e.constraint);
    let ptr = |text: &Option<CString>| -> *mut c_char {
        text.as_ref().map_or(std::ptr::null_mut(), |t| t.as_ptr().cast_mut())
    };
    let mut data = pg_sys::ErrorData {
        elevel: level,
        sqlerrcode: error.sqlstate().packed(),
        message: message.as_ptr().cast_mut(),
        detail: ptr(&detail),
        hint: ptr(&hint),
        context: ptr(&context),
        schema_name: ptr(&schema),
        table_name: ptr(&table),
        column_name: ptr(&column),
        constraint_name: ptr(&constraint),
        ..Default::default()
    };
    // SAFETY: every pointer is null or a C string that lives until the call returns or unwinds;
    // ThrowErrorData copies what it keeps.
    unsafe { pg_sys::ThrowErrorData(&mut data) }
}
