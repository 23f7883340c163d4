//! The write-ahead log, ahead of the commit that would wait for it.

use pgrx::pg_sys;

/// Bytes for which it is worth another flush.
const MUCH: u64 = 512 * 1024;

/// Flushes what the transaction has logged so far, if that is much and its commit is going to wait for it
/// anyway: called while other servers work, it leaves little to be flushed then.
pub fn flush_ahead() {
    // SAFETY: plain reads of variables of this backend, and what a commit does a moment later.
    unsafe {
        let end = pg_sys::XactLastRecEnd;
        let waits =
            pg_sys::synchronous_commit > pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32;
        if waits && end.saturating_sub(pg_sys::GetFlushRecPtr(std::ptr::null_mut())) > MUCH {
            pg_sys::XLogFlush(end);
        }
    }
}
