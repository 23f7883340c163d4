//! Cancel and termination requests, when they must not be acted upon at once.

use pgrx::pg_sys;
use std::cell::Cell;

thread_local! {
    /// A termination request held back until the commit point, see [`absorb`].
    static DIE_LATER: Cell<bool> = const { Cell::new(false) };
}

/// Whether the user asked for a cancel, or someone for the end of this backend. Serves every other
/// kind of interrupt (barriers, catalog invalidation) on the way. In a background worker that
/// somebody waits for to leave its database, that counts as a request.
pub fn pending() -> bool {
    super::bgworker::poll();
    // SAFETY: plain reads of flags that signal handlers set; ProcessInterrupts with cancel held
    // off serves the rest. The counter is restored on unwinding too.
    unsafe {
        if pg_sys::InterruptPending == 0 {
            return false;
        }
        if requested() {
            return true;
        }
        let held = HoldCancel::new();
        pg_sys::ProcessInterrupts();
        drop(held);
        requested()
    }
}

fn requested() -> bool {
    // SAFETY: plain reads of flags that signal handlers set.
    unsafe { pg_sys::QueryCancelPending != 0 || pg_sys::ProcDiePending != 0 }
}

/// Acts on a pending request: raises, or ends the backend.
pub fn check() {
    pgrx::check_for_interrupts!();
}

/// The transaction is committed on the other side: a pending cancel comes too late and is dropped,
/// as PostgreSQL drops one that arrives after its own commit point; a pending termination waits
/// for [`release`].
pub fn absorb() {
    // SAFETY: plain writes of flags; a signal that arrives in between sets them again, which is
    // the same race as one that arrives before the commit point.
    unsafe {
        pg_sys::QueryCancelPending = 0;
        if pg_sys::ProcDiePending != 0 {
            pg_sys::ProcDiePending = 0;
            DIE_LATER.set(true);
        }
    }
}

/// After the local commit or abort: a termination held back is due.
pub fn release() {
    if DIE_LATER.replace(false) {
        // SAFETY: as the handler of SIGTERM does it.
        unsafe {
            pg_sys::ProcDiePending = 1;
            pg_sys::InterruptPending = 1;
        }
    }
}

/// Keeps cancel requests pending while it lives (`HOLD_CANCEL_INTERRUPTS`).
struct HoldCancel(());

impl HoldCancel {
    fn new() -> Self {
        // SAFETY: a counter of this backend.
        unsafe { pg_sys::QueryCancelHoldoffCount += 1 }
        Self(())
    }
}

impl Drop for HoldCancel {
    fn drop(&mut self) {
        // SAFETY: paired with new(); an ERROR resets the counter to zero before we unwind, so it
        // must not be taken below that.
        unsafe {
            pg_sys::QueryCancelHoldoffCount = pg_sys::QueryCancelHoldoffCount.saturating_sub(1);
        }
    }
}

/// Keeps every interrupt pending while it lives (`HOLD_INTERRUPTS`). Nothing under it may wait for long:
/// `lock_timeout` too is an interrupt.
pub struct Hold {
    /// The counter as it was found.
    outer: u32,
}

impl Hold {
    /// From now on.
    pub fn new() -> Self {
        // SAFETY: a counter of this backend.
        let hold = Self { outer: unsafe { pg_sys::InterruptHoldoffCount } };
        hold.renew();
        hold
    }

    /// After an ERROR that was caught, which has set the counter to zero.
    pub fn renew(&self) {
        // SAFETY: a counter of this backend.
        unsafe { pg_sys::InterruptHoldoffCount = self.outer + 1 }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // SAFETY: puts back what new() found; who holds interrupts outside of this lives on.
        unsafe { pg_sys::InterruptHoldoffCount = self.outer }
    }
}
