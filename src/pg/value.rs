//! Whether a type can hold a value.

use super::subtransaction::attempt;
use super::{Oid, text};
use crate::error::{Error, Result, SqlState};
use pgrx::pg_sys;

/// Whether a type with this modifier reads a text. Only one of PostgreSQL's own is asked, whose input function
/// calls nobody's.
///
/// # Errors
/// 22023 for another type; what has nothing to do with the value, such as a lack of memory.
pub fn is_held(value: &str, of: Oid, modifier: i32) -> Result<bool> {
    if of.to_u32() >= pg_sys::FirstUnpinnedObjectId {
        let message = "only types of PostgreSQL's own can be asked for";
        return Err(Error::local(SqlState::INVALID_PARAMETER, message));
    }
    let source = text::to_server(value)?;
    // It raises nothing but over the value, and waits for nobody.
    let read = attempt(|| {
        // SAFETY: a type and a C string; a type that does not exist raises, as a value does that cannot be read.
        unsafe {
            let mut input = pg_sys::InvalidOid;
            let mut parameter = pg_sys::InvalidOid;
            pg_sys::getTypeInputInfo(of, &mut input, &mut parameter);
            pg_sys::OidInputFunctionCall(input, source.as_ptr().cast_mut(), parameter, modifier);
        }
        Ok(())
    });
    match read {
        Ok(()) => Ok(true),
        Err(error) if error.is_about_value() => Ok(false),
        Err(error) => Err(error),
    }
}
