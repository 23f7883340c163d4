//! From queueing back to sending, while commits go on.
//!
//! As long as anything is pending, commits queue; and as long as commits queue, something is pending. So
//! when the worker has nearly caught up it closes the queue for its next visit: those who are about to
//! queue wait for it a moment, and find the queue empty then. Only progress depends on this, never
//! order: who does not want to wait any longer queues all the same.

use crate::error::{Error, Result};
use crate::pg::wait;
use crate::pg::{Oid, interrupt, lock};
use std::time::{Duration, Instant};

/// Longest time a commit waits for the queue to be opened again.
const PATIENCE: Duration = Duration::from_millis(100);
/// Between two looks.
const STEP: Duration = Duration::from_millis(1);

/// Enters the queue of a server. True when it was closed and is open again: the caller should look
/// once more whether it must queue.
///
/// # Errors
/// 57014 for a request to cancel.
pub fn enter(server: Oid) -> Result<bool> {
    if lock::try_enter(server) {
        return Ok(false);
    }
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if interrupt::pending() {
            interrupt::check();
            return Err(Error::Canceled);
        }
        wait::wait(&[], STEP);
        if lock::try_enter(server) {
            return Ok(true);
        }
    }
    Ok(false)
}
