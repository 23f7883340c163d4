//! Text between the database's encoding and UTF-8, which is all that the rest of the crate knows.

use super::xact;
use crate::error::{Error, Result, SqlState};
use pgrx::pg_sys::{self, Datum};
use std::cell::Cell;
use std::ffi::{CStr, CString, c_char};

/// Whether the database's encoding is UTF-8, so that nothing need be converted. Asked for every value.
pub(super) fn server_speaks_utf8() -> bool {
    thread_local! {
        /// Once it is true it stays so: a session has one database. A launcher has none at first.
        static IS_UTF8: Cell<bool> = const { Cell::new(false) };
    }
    if !IS_UTF8.get() {
        // SAFETY: reads a variable of this backend.
        IS_UTF8.set(unsafe { pg_sys::GetDatabaseEncoding() } == pg_sys::pg_enc::PG_UTF8 as i32);
    }
    IS_UTF8.get()
}

/// Whether the database's encoding is UTF-8.
pub fn is_utf8() -> bool {
    server_speaks_utf8()
}

/// A server string as UTF-8. The result lives as long as the memory context of `text`, or the
/// current one where it had to be converted.
///
/// # Errors
/// Where the encodings differ, PostgreSQL raises 22021 or 22P05 for what cannot be converted; 25P01 where
/// that is asked for outside of a transaction.
///
/// # Safety
/// `text` must be a valid C string in the database's encoding, and `'a` must not outlive the
/// memory context that is current now.
pub unsafe fn to_utf8<'a>(text: *const c_char) -> Result<&'a str> {
    // SAFETY: a valid C string by contract; conversion returns it or a palloc'd C string.
    let bytes: &'a [u8] = unsafe {
        let bytes = CStr::from_ptr(text).to_bytes();
        if server_speaks_utf8() || bytes.is_ascii() {
            bytes
        } else {
            xact::require()?;
            let len = bytes.len() as i32;
            let utf8 = pg_sys::pg_enc::PG_UTF8 as i32;
            CStr::from_ptr(pg_sys::pg_server_to_any(text, len, utf8)).to_bytes()
        }
    };
    std::str::from_utf8(bytes).map_err(|_| {
        Error::local(
            SqlState::new("22021"),
            "text is not valid in encoding \"UTF8\"",
        )
        .with_hint("The database has encoding SQL_ASCII; convert the text to UTF-8.")
    })
}

/// Like [`to_utf8`], copied.
///
/// # Safety
/// As for [`to_utf8`]; null gives `None`.
pub unsafe fn to_string(text: *const c_char) -> Result<Option<String>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: not null, valid by contract; copied at once.
    unsafe { to_utf8(text) }.map(|s| Some(s.to_owned()))
}

/// UTF-8 to a C string in the database's encoding.
///
/// # Errors
/// 22021 for a NUL byte; PostgreSQL raises 22P05 for what the database's encoding lacks; 25P01 for text that
/// is to be converted outside of a transaction.
pub fn to_server(text: &str) -> Result<CString> {
    let text = c_string(text)?;
    if text.as_bytes().is_ascii() || server_speaks_utf8() {
        return Ok(text);
    }
    xact::require()?;
    // SAFETY: a valid C string in, the same or a palloc'd C string out, copied at once.
    unsafe {
        let len = text.as_bytes().len() as i32;
        let converted =
            pg_sys::pg_any_to_server(text.as_ptr(), len, pg_sys::pg_enc::PG_UTF8 as i32);
        if std::ptr::eq(converted.cast_const(), text.as_ptr()) {
            return Ok(text);
        }
        Ok(CStr::from_ptr(converted).to_owned())
    }
}

/// UTF-8 as a value of type `text` in the current memory context.
///
/// # Errors
/// As for [`to_server`].
pub fn to_datum(text: &str) -> Result<Datum> {
    let value = |text: &[u8]| {
        let (text, length) = (text.as_ptr().cast(), text.len() as i32);
        // SAFETY: copies a slice.
        Datum::from(unsafe { pg_sys::cstring_to_text_with_len(text, length) })
    };
    if server_speaks_utf8() && !text.as_bytes().contains(&0) {
        Ok(value(text.as_bytes()))
    } else {
        Ok(value(to_server(text)?.as_bytes()))
    }
}

/// UTF-8 as a C string.
///
/// # Errors
/// 22021 for a NUL byte.
pub fn c_string(text: &str) -> Result<CString> {
    CString::new(text)
        .map_err(|_| Error::local(SqlState::new("22021"), "text contains a null byte"))
}

/// Text as it can be shown where nothing can be converted: outside of transactions. In another
/// encoding than UTF-8 only ASCII is left.
pub fn outside_transaction(text: &str) -> String {
    // SAFETY: plain read of a variable of this process.
    let utf8 = unsafe { pg_sys::GetDatabaseEncoding() } == pg_sys::pg_enc::PG_UTF8 as i32;
    let fits = |c: char| c != '\0' && (utf8 || c.is_ascii());
    text.chars()
        .map(|c| if fits(c) { c } else { '?' })
        .collect()
}

/// Whether the database's encoding has all of a text; asked inside of a transaction.
pub fn is_representable(text: &str) -> bool {
    server_speaks_utf8() || text.is_ascii() || displayable(text) == text
}

/// Text that is told and not kept, in the database's encoding: `?` for what that lacks, and outside of a
/// transaction, where the conversion cannot be looked up, for all that is not ASCII.
pub fn displayable(text: &str) -> String {
    if !xact::in_progress() {
        return outside_transaction(text);
    }
    let utf8 = pg_sys::pg_enc::PG_UTF8 as i32;
    // SAFETY: the buffer has room for the longest conversion of the input, which is a slice that lives
    // through the call; without an error the call says how much of it was converted.
    let convertible = |rest: &str| unsafe {
        let server = pg_sys::GetDatabaseEncoding();
        if server == utf8 || rest.is_ascii() {
            return rest.len();
        }
        let procedure = pg_sys::FindDefaultConversionProc(utf8, server);
        if procedure == pg_sys::InvalidOid {
            return if server == pg_sys::pg_enc::PG_SQL_ASCII as i32 {
                rest.len()
            } else {
                0
            };
        }
        let mut source = rest.as_bytes().to_vec();
        let mut buffer = vec![0u8; rest.len() * pg_sys::MAX_CONVERSION_GROWTH as usize + 1];
        let from = source.as_mut_ptr();
        let to = buffer.as_mut_ptr();
        let len = source.len() as i32;
        let room = buffer.len() as i32;
        pg_sys::pg_do_encoding_conversion_buf(procedure, utf8, server, from, len, to, room, true)
            as usize
    };
    let mut cleaned = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let fits = (0..=convertible(rest))
            .rev()
            .find(|at| rest.is_char_boundary(*at))
            .unwrap_or(0);
        cleaned.push_str(&rest[..fits]);
        rest = &rest[fits..];
        if let Some(lacking) = rest.chars().next() {
            cleaned.push('?');
            rest = &rest[lacking.len_utf8()..];
        }
    }
    cleaned
}
