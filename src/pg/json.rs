//! Results of types that pgrx makes of UTF-8 only: `jsonb` and `text[]`, made from their text.

use super::text::to_server;
use super::{report, xact};
use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::datum::Datum;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::{IntoDatum, pg_sys};

/// A value of type `jsonb`, as text.
pub struct Jsonb(pub String);

/// A value of type `text[]`, in its external form.
pub struct TextArray(pub String);

/// Reads a text as the type's input function does; what that refuses is raised.
fn read(type_oid: pg_sys::Oid, text: &str) -> pg_sys::Datum {
    report::or_raise(xact::require());
    let text = report::or_raise(to_server(text));
    let mut function = pg_sys::InvalidOid;
    let mut parameter = pg_sys::InvalidOid;
    // SAFETY: catalog look-ups inside a transaction, and a C string that lives through the call.
    unsafe {
        pg_sys::getTypeInputInfo(type_oid, &mut function, &mut parameter);
        pg_sys::OidInputFunctionCall(function, text.as_ptr().cast_mut(), parameter, -1)
    }
}

macro_rules! result_type {
    ($name:ident, $oid:expr, $sql:literal) => {
        impl IntoDatum for $name {
            fn into_datum(self) -> Option<pg_sys::Datum> {
                Some(read($oid, &self.0))
            }

            fn type_oid() -> pg_sys::Oid {
                $oid
            }
        }

        // SAFETY: the datum is of the type that the declaration in SQL names.
        unsafe impl BoxRet for $name {
            unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
                // SAFETY: by the caller.
                unsafe { fcinfo.return_raw_datum(read($oid, &self.0)) }
            }
        }

        // SAFETY: the declarations stand beside the functions.
        unsafe impl SqlTranslatable for $name {
            const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!($name);
            const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
            const ARGUMENT_SQL: std::result::Result<SqlMappingRef, ArgumentError> =
                Ok(SqlMappingRef::literal($sql));
            const RETURN_SQL: std::result::Result<ReturnsRef, ReturnsError> =
                Ok(ReturnsRef::One(SqlMappingRef::literal($sql)));
        }
    };
}

result_type!(Jsonb, pg_sys::JSONBOID, "jsonb");
result_type!(TextArray, pg_sys::TEXTARRAYOID, "text[]");
