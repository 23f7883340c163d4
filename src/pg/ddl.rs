//! Statements that are run as the current user, with that user's rights.

use crate::error::{Error, Result};

/// Runs a utility statement whose names are all qualified.
///
/// # Errors
/// When SPI refuses; PostgreSQL raises what the statement does.
pub fn run(sql: &str) -> Result<()> {
    pgrx::Spi::run(sql).map_err(|e| Error::internal(format!("could not run a statement: {e}")))
}
