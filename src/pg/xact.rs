//! Whether there is a transaction, and which.

use super::compat;
use super::lock_tag::{is_held, transaction_tag};
use crate::error::{Error, Result, SqlState};
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys};

/// Whether a transaction is in progress, so that catalogs may be read: a look-up outside of one is no ERROR
/// but the end of the process, and with it of every session of the cluster.
pub fn in_progress() -> bool {
    // Not pg_sys's guarded one: asked often, and it raises nothing.
    unsafe extern "C-unwind" {
        fn IsTransactionState() -> bool;
    }
    // SAFETY: plain read of transaction state.
    unsafe { IsTransactionState() }
}

const OUTSIDE: &str = "tables cannot be read outside of a transaction";

/// Refuses what reads catalogs or tables outside of a transaction.
///
/// # Errors
/// 25P01.
pub fn require() -> Result<()> {
    if in_progress() {
        Ok(())
    } else {
        Err(Error::local(SqlState::NO_TRANSACTION, OUTSIDE))
    }
}

/// As [`require`], for functions that give no [`Result`]: raises 25P01.
pub(super) fn demand() {
    if !in_progress() {
        // Not by way of [`super::report`], which would convert the text and stands above this module.
        pgrx::ereport!(
            PgLogLevel::ERROR,
            PgSqlErrorCode::ERRCODE_NO_ACTIVE_SQL_TRANSACTION,
            OUTSIDE
        );
    }
}

/// A transaction of this process, for what must not be used any more when that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transaction(u32);

impl Transaction {
    /// The one that is in progress.
    pub fn current() -> Self {
        Self(compat::local_transaction())
    }

    /// Whether it is not the one that is in progress.
    pub fn is_over(self) -> bool {
        self != Self::current()
    }
}

/// Waits until a transaction of another session has ended; for one of this session not at all. PostgreSQL
/// raises requests to cancel, `lock_timeout` and deadlocks.
pub fn await_end(number: u32) {
    demand();
    let number = pg_sys::TransactionId::from(number);
    let none = std::ptr::null_mut();
    let no_row = std::ptr::null_mut();
    // SAFETY: inside a transaction. The server waits for ever for this very one, and takes numbers that are no
    // transaction's for a mistake.
    unsafe {
        if number < pg_sys::FirstNormalTransactionId
            || pg_sys::TransactionIdIsCurrentTransactionId(number)
        {
            return;
        }
        pg_sys::XactLockTableWait(number, none, no_row, pg_sys::XLTW_Oper::XLTW_None)
    }
}

/// Whether another transaction has not ended, which it has not before all is done that its session does at
/// its end.
pub fn is_under_way(number: u32) -> bool {
    demand();
    is_held(&transaction_tag(number.into()))
}
