//! Arguments and results of SQL functions as UTF-8, whatever the database's encoding. pgrx's own
//! conversions take the bytes of a text for UTF-8, which holds in UTF-8 databases only.

use super::Oid;
use super::text;
use crate::error::{Error, Result, SqlState};
use pgrx::fcinfo::{pg_arg_is_null, pg_getarg_datum_raw};
use pgrx::pg_sys;

/// The arguments of the running call.
pub struct Args(pg_sys::FunctionCallInfo);

impl Args {
    /// Those of the call that PostgreSQL makes.
    pub fn of(fcinfo: pg_sys::FunctionCallInfo) -> Self {
        Self(fcinfo)
    }

    /// The function that is called.
    pub fn function(&self) -> Oid {
        // SAFETY: as for text().
        unsafe { (*(*self.0).flinfo).fn_oid }
    }

    /// An argument's text as its type writes it; `None` for NULL.
    ///
    /// # Errors
    /// For text that is not UTF-8 in a SQL_ASCII database.
    pub fn text(&self, number: usize) -> Result<Option<String>> {
        // SAFETY: the call information is the server's own; its arguments have the types that the
        // function's declaration gives them.
        unsafe {
            if number >= (*self.0).nargs as usize || pg_arg_is_null(self.0, number) {
                return Ok(None);
            }
            let type_oid = pg_sys::get_fn_expr_argtype((*self.0).flinfo, number as i32);
            if type_oid == pg_sys::InvalidOid {
                return Err(Error::internal("could not determine an argument's type"));
            }
            let mut function = pg_sys::InvalidOid;
            let mut is_varlena = false;
            pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut is_varlena);
            let datum = pg_getarg_datum_raw(self.0, number);
            text::to_string(pg_sys::OidOutputFunctionCall(function, datum))
        }
    }

    /// An argument's text, which must not be NULL.
    ///
    /// # Errors
    /// 22023 for NULL.
    pub fn required(&self, number: usize, name: &str) -> Result<String> {
        self.text(number)?.ok_or_else(|| {
            let message = format!("argument \"{name}\" must not be null");
            Error::local(SqlState::INVALID_PARAMETER, message)
        })
    }

    /// An argument of type `regclass` or `oid`, which must not be NULL.
    ///
    /// # Errors
    /// 22023 for NULL.
    pub fn oid(&self, number: usize, name: &str) -> Result<Oid> {
        // SAFETY: as for text().
        unsafe {
            if pg_arg_is_null(self.0, number) {
                self.required(number, name)?;
            }
            Ok(Oid::from(pg_getarg_datum_raw(self.0, number).value() as u32))
        }
    }
}

/// The bytes of a `text` result: declared `text` in SQL, which is stored as these bytes are.
///
/// # Errors
/// PostgreSQL raises what the database's encoding cannot hold.
pub fn result(text: &str) -> Result<Vec<u8>> {
    Ok(text::to_server(text)?.into_bytes())
}
