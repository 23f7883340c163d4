//! Statements that are run as the current user, with that user's rights.

use super::text::to_server;
use crate::error::{Error, Result};
use pgrx::pg_sys;

/// Runs a utility statement whose names are all qualified.
///
/// # Errors
/// When SPI refuses; PostgreSQL raises what the statement does.
pub fn run(sql: &str) -> Result<()> {
    let sql = to_server(sql)?;
    // SAFETY: SPI calls in their order; what they raise unwinds, and the abort cleans up.
    let code = unsafe {
        if pg_sys::SPI_connect() != pg_sys::SPI_OK_CONNECT as i32 {
            return Err(Error::internal("SPI_connect failed"));
        }
        let code = pg_sys::SPI_execute(sql.as_ptr(), false, 0);
        pg_sys::SPI_finish();
        code
    };
    if code < 0 {
        return Err(Error::internal(format!("could not run a statement: code {code}")));
    }
    Ok(())
}
