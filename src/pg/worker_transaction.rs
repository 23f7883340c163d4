//! Transactions of a background worker, whose errors must not end it.

use super::{bgworker, report};
use crate::error::{Error, Result, SqlState};
use pgrx::PgTryBuilder;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;
use std::panic::AssertUnwindSafe;

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

/// Runs `body`; what it raises becomes an error.
///
/// # Errors
/// What `body` returns, and everything that is raised.
pub fn caught<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: plain read; put back below, since whoever raised may have added to it.
    let contexts = unsafe { pg_sys::error_context_stack };
    let result = PgTryBuilder::new(AssertUnwindSafe(body))
        .catch_others(|caught| {
            let report = match &caught {
                CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
                CaughtError::RustPanic { ereport, .. } => ereport,
            };
            let state = SqlState::unpacked(report.sql_error_code() as i32);
            let error = Error::local(state, report.message());
            Err(match report.detail() {
                Some(detail) => error.with_detail(detail),
                None => error,
            })
        })
        .execute();
    // SAFETY: the stack as it was when nothing had been raised.
    unsafe { pg_sys::error_context_stack = contexts };
    report::forget();
    result
}
