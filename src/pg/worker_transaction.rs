//! Transactions of a background worker, whose errors must not end it.

use super::bgworker;
use super::report::caught;
use crate::error::{Error, Result};
use pgrx::pg_sys;

/// Runs `body` in a transaction of its own and commits it. Whatever fails (an error returned, an
/// ERROR raised, at the commit too, a panic) aborts the transaction and is returned.
///
/// # Errors
/// What `body` returns, and everything that is raised.
pub fn run_in_transaction<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    bgworker::forget_cancel();
    if bgworker::ending().is_some() {
        return Err(Error::Canceled);
    }
    let result = caught(|| {
        // SAFETY: a transaction around the body, as for a client's command.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            let result = body();
            if result.is_ok() {
                pg_sys::CommitTransactionCommand();
            }
            result
        }
    });
    if result.is_err() {
        // SAFETY: cleans up after an error, whatever state it left.
        unsafe { pg_sys::AbortCurrentTransaction() };
    }
    result
}
