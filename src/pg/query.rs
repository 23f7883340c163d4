//! SQL on tables of users: as the role that is named, under the settings under which a value and its text are
//! one thing, and under a fresh snapshot. Statements are not kept: their text is made for one use.

use super::Oid;
use super::context::{AsUser, Settings};
use super::spi::{self, Row};
use super::{text, xact};
use crate::canonical::TEXT_SETTINGS;
use crate::error::{Error, Result};
use pgrx::pg_sys;
use std::ffi::CStr;

/// A policy that hides rows is an error, and compiling would take longer than anything here.
const FIXED: [(&CStr, &CStr); 2] = [(c"row_security", c"off"), (c"jit", c"off")];

/// Runs a query that changes nothing as `role`, with the restrictions of a security-definer operation, so that
/// functions of the table's owner are called with the owner's rights.
///
/// # Errors
/// 25P01 outside of a transaction, and for text that is not UTF-8. PostgreSQL raises what the query does.
pub fn read_as(role: Oid, sql: &str) -> Result<Vec<Row>> {
    let _identity = AsUser::switch(role);
    run(sql, true, &pinned())
}

/// Runs a statement that may lock rows as `role`, with the same restrictions.
///
/// # Errors
/// As for [`read_as`].
pub fn lock_as(role: Oid, sql: &str) -> Result<Vec<Row>> {
    let _identity = AsUser::switch(role);
    run(sql, false, &pinned())
}

/// Runs a statement whose names are all qualified as the current user, while these settings hold too. Triggers
/// that fire find what they find when the user writes.
///
/// # Errors
/// As for [`read_as`].
pub fn write_under(settings: &[(&CStr, &CStr)], sql: &str) -> Result<Vec<Row>> {
    let mut all = pinned();
    all.retain(|(name, _)| *name != c"search_path");
    all.extend(settings);
    run(sql, false, &all)
}

fn pinned<'s>() -> Vec<(&'s CStr, &'s CStr)> {
    TEXT_SETTINGS.iter().chain(&FIXED).copied().collect()
}

fn run(sql: &str, read_only: bool, settings: &[(&CStr, &CStr)]) -> Result<Vec<Row>> {
    xact::require()?;
    let source = text::to_server(sql)?;
    let _settings = Settings::set(settings);
    // SAFETY: SPI calls in their order; what they raise unwinds, and the transaction's abort then
    // cleans up SPI and the snapshot stack, so only the successful path ends them here.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
        if pg_sys::SPI_connect() != pg_sys::SPI_OK_CONNECT as i32 {
            return Err(Error::internal("SPI_connect failed"));
        }
        let code = pg_sys::SPI_execute(source.as_ptr(), read_only, 0);
        if code < 0 {
            return Err(Error::internal(format!("SPI_execute failed: code {code}")));
        }
        let rows = spi::rows();
        pg_sys::SPI_freetuptable(pg_sys::SPI_tuptable);
        pg_sys::SPI_finish();
        pg_sys::PopActiveSnapshot();
        rows
    }
}
