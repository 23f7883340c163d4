//! Arguments and results of SQL functions as UTF-8, whatever the database's encoding. pgrx's own
//! conversions take the bytes of a text for UTF-8, which holds in UTF-8 databases only.

use super::Oid;
use super::rows_of_key::KeyRecord;
use super::text;
use crate::error::{Error, Result, SqlState};
use pgrx::callconv::{Arg, ArgAbi, BoxRet, FcInfo};
use pgrx::datum::Datum;
use pgrx::fcinfo::{pg_arg_is_null, pg_getarg_datum_raw};
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::{IntoDatum, pg_sys};
use std::ffi::CString;
use std::marker::PhantomData;

/// The arguments of the running call: what a SQL function here takes, made by pgrx from the call that
/// PostgreSQL makes and by nobody else.
pub struct Args<'call>(pg_sys::FunctionCallInfo, PhantomData<&'call ()>);

// SAFETY: stands for the call itself, as pgrx's own type for it does, and lives no longer.
unsafe impl<'call> ArgAbi<'call> for Args<'call> {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'call>) -> Self {
        // SAFETY: by the caller.
        let info = unsafe { pg_sys::FunctionCallInfo::unbox_arg_unchecked(arg) };
        Self(info, PhantomData)
    }

    fn is_virtual_arg() -> bool {
        true
    }
}

// SAFETY: no argument in SQL; the declarations stand beside the functions.
unsafe impl SqlTranslatable for Args<'_> {
    const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!(Args);
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: std::result::Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::Skip);
    const RETURN_SQL: std::result::Result<ReturnsRef, ReturnsError> =
        Ok(ReturnsRef::One(SqlMappingRef::Skip));
}

impl Args<'_> {
    /// The server's own call information.
    pub(super) fn info(&self) -> pg_sys::FunctionCallInfo {
        self.0
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
            if number >= (*self.0).nargs as usize || pg_arg_is_null(self.0, number) {
                self.required(number, name)?;
            }
            Ok(Oid::from(pg_getarg_datum_raw(self.0, number).value() as u32))
        }
    }
}

impl<'call> Args<'call> {
    /// An argument of type `record`, which must not be NULL.
    ///
    /// # Errors
    /// 22023 for NULL.
    pub fn key(&self, number: usize, name: &str) -> Result<KeyRecord<'call>> {
        // SAFETY: as for text(); the value lives as long as the call.
        unsafe {
            if number >= (*self.0).nargs as usize || pg_arg_is_null(self.0, number) {
                self.required(number, name)?;
            }
            let type_oid = pg_sys::get_fn_expr_argtype((*self.0).flinfo, number as i32);
            if type_oid != pg_sys::RECORDOID && !pg_sys::type_is_rowtype(type_oid) {
                return Err(Error::internal(format!(
                    "argument \"{name}\" is not a record"
                )));
            }
            Ok(KeyRecord::new(pg_getarg_datum_raw(self.0, number)))
        }
    }
}

/// A result of type `name`.
pub struct Name(CString);

/// `NAMEDATALEN`.
const NAME_BYTES: usize = pg_sys::NAMEDATALEN as usize;

impl Name {
    /// From a name that the catalogs have: a longer one is cut.
    ///
    /// # Errors
    /// PostgreSQL raises what the database's encoding cannot hold.
    pub fn new(text: &str) -> Result<Self> {
        Ok(Self(text::to_server(text)?))
    }
}

impl IntoDatum for Name {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        let bytes = self.0.as_bytes();
        let length = bytes.len().min(NAME_BYTES - 1);
        // SAFETY: a name is so many bytes, filled up with zeroes; one at least stays.
        Some(unsafe {
            let name = pg_sys::palloc0(NAME_BYTES).cast::<u8>();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), name, length);
            pg_sys::Datum::from(name)
        })
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::NAMEOID
    }
}

// SAFETY: returns the datum that it makes.
unsafe impl BoxRet for Name {
    unsafe fn box_into<'fcx>(self, info: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        match self.into_datum() {
            // SAFETY: the datum is a `name` in memory of the call.
            Some(datum) => unsafe { info.return_raw_datum(datum) },
            None => info.return_null(),
        }
    }
}

// SAFETY: what it makes is a `name`; the declarations stand beside the functions.
unsafe impl SqlTranslatable for Name {
    const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!(Name);
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: std::result::Result<SqlMappingRef, ArgumentError> =
        Ok(SqlMappingRef::As("name"));
    const RETURN_SQL: std::result::Result<ReturnsRef, ReturnsError> =
        Ok(ReturnsRef::One(SqlMappingRef::As("name")));
}

/// The bytes of a `text` result: declared `text` in SQL, which is stored as these bytes are.
///
/// # Errors
/// PostgreSQL raises what the database's encoding cannot hold.
pub fn result(text: &str) -> Result<Vec<u8>> {
    Ok(text::to_server(text)?.into_bytes())
}
