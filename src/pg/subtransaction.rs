//! Work that may fail without failing the transaction.

use super::context;
use super::interrupt::Hold;
use super::report::caught;
use super::xact;
use crate::error::{Result, SqlState};
use pgrx::pg_sys;

/// Runs `body` in a subtransaction. Whatever fails in it (an error returned, an ERROR raised, a panic)
/// rolls back what it has done and is returned; what raises nothing is kept. Also in a pre-commit
/// callback, where PostgreSQL still begins subtransactions.
///
/// There are two of them, one in the other: PostgreSQL rolls back a subtransaction of its own making only
/// where the transaction around it goes on, and one that a COMMIT is about to end does not. The one around
/// it, which does nothing, does.
///
/// Interrupts are held: what was asked for from outside must be no failure of the body. So nothing in
/// there may wait for other sessions.
///
/// # Errors
/// What `body` returns, and everything that is raised; 25P01 outside of a transaction.
pub fn attempt<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    within(Some(Hold::new()), body)
}

/// As [`attempt`], for a body that may wait: interrupts are served, so a request to cancel is one of the
/// things that fail it (57014), and the caller is not to go on then.
///
/// # Errors
/// As for [`attempt`].
pub fn attempt_interruptibly<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    within(None, body)
}

/// Runs a removal of rows that other sessions may be removing too, and that waits for none of them. Under REPEATABLE
/// READ and SERIALIZABLE their removal would fail the transaction: then nothing is removed here. Whether it was.
///
/// # Errors
/// What `body` returns or raises besides.
pub fn remove_beside_others(body: impl FnOnce() -> Result<()>) -> Result<bool> {
    if context::is_read_committed() {
        return body().map(|()| true);
    }
    match attempt(body) {
        Ok(()) => Ok(true),
        Err(error) if error.sqlstate() == SqlState::SERIALIZATION_FAILURE => Ok(false),
        Err(error) => Err(error),
    }
}

fn within<T>(hold: Option<Hold>, body: impl FnOnce() -> Result<T>) -> Result<T> {
    xact::require()?;
    // SAFETY: as the server's own languages do it (pl_exec.c): context and resource owner are those of the
    // caller before and after, so that nothing of the caller's goes with the subtransaction. Where even
    // its beginning failed, there is none to roll back.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        let level = pg_sys::GetCurrentTransactionNestLevel();
        let result = caught(|| {
            pg_sys::BeginInternalSubTransaction(std::ptr::null());
            pg_sys::BeginInternalSubTransaction(std::ptr::null());
            pg_sys::CurrentMemoryContext = context;
            let result = body();
            if result.is_ok() {
                pg_sys::ReleaseCurrentSubTransaction();
                pg_sys::ReleaseCurrentSubTransaction();
            }
            result
        });
        if result.is_err() {
            hold.iter().for_each(Hold::renew);
            if pg_sys::GetCurrentTransactionNestLevel() > level + 1 {
                pg_sys::RollbackAndReleaseCurrentSubTransaction();
                pg_sys::ReleaseCurrentSubTransaction();
            } else if pg_sys::GetCurrentTransactionNestLevel() > level {
                pg_sys::RollbackAndReleaseCurrentSubTransaction();
            }
        }
        pg_sys::CurrentMemoryContext = context;
        pg_sys::CurrentResourceOwner = owner;
        result
    }
}
