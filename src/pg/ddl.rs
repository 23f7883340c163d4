//! Statements that are run as the current user, with that user's rights, and what objects depend on.

use super::xact;
use super::{Oid, text::to_server};
use crate::error::{Error, Result};
use pgrx::pg_sys;

/// Runs a utility statement whose names are all qualified.
///
/// # Errors
/// When SPI refuses; 25P01 outside of a transaction. PostgreSQL raises what the statement does.
pub fn run(sql: &str) -> Result<()> {
    xact::require()?;
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
        return Err(Error::internal(format!(
            "could not run a statement: code {code}"
        )));
    }
    Ok(())
}

/// Records that a trigger depends on columns of a table, which then are not dropped without CASCADE. For a
/// trigger that this transaction has made. Raises 25P01 outside of a transaction.
pub fn depend_on_columns(trigger: Oid, table: Oid, columns: &[i16]) {
    xact::demand();
    let address = |class: Oid, object: Oid, part: i16| pg_sys::ObjectAddress {
        classId: class,
        objectId: object,
        objectSubId: part.into(),
    };
    let trigger = address(pg_sys::TriggerRelationId, trigger, 0);
    for column in columns {
        let column = address(pg_sys::RelationRelationId, table, *column);
        // SAFETY: both addresses are read before the call returns; it inserts a row of pg_depend, inside a
        // transaction.
        unsafe {
            pg_sys::recordDependencyOn(
                &trigger,
                &column,
                pg_sys::DependencyType::DEPENDENCY_NORMAL,
            );
        }
    }
}
