//! Requests to cancel and to end, when they must not be acted upon at once.
//!
//! From the moment in which a commit is sent to another server, interrupts are held (`HOLD_INTERRUPTS`) until
//! its outcome is known, and if it took effect, until the local transaction has ended. An ERROR sets the
//! server's counter to zero, whoever holds interrupts, so nothing here subtracts what may not be there any
//! more.

use super::{compat, wait};
use pgrx::pg_sys;
use std::cell::Cell;

thread_local! {
    static STAGE: Cell<Stage> = const { Cell::new(Stage::Open) };
}

/// How far the transaction's commits on other servers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// None was sent: any interrupt may be served.
    Open,
    /// One was sent and its outcome is not known. From here on interrupts are held; `outer` is the holdoff
    /// counter as it was found.
    Sent { outer: u32 },
    /// One took effect, so no request from outside may fail the transaction any more.
    Committed { outer: u32 },
}

/// Whether someone asked for the end of the statement, or of this backend, in a way that still counts. Serves
/// other interrupts (barriers, checks of the client) on the way. In a background worker that somebody waits for
/// to leave its database, that counts as a request.
///
/// Where nothing can have been committed on another server, what ends the backend may end it here. Otherwise
/// nothing in here does: the outcome there is followed first.
pub fn pending() -> bool {
    super::bgworker::poll();
    // SAFETY: plain reads of flags that signal handlers set; ProcessInterrupts with cancel held
    // off serves the rest or ends the process. The counter is restored on unwinding too.
    unsafe {
        if pg_sys::InterruptPending == 0 {
            return false;
        }
        match STAGE.get() {
            Stage::Open if requested() => return true,
            // As below: the server holds interrupts at the end of a transaction.
            Stage::Open if pg_sys::InterruptHoldoffCount > 0 => serve_barrier(),
            Stage::Open => {
                let held = HoldCancel::new();
                pg_sys::ProcessInterrupts();
                drop(held);
            }
            // ProcessInterrupts might find a request to end that has just come.
            Stage::Sent { .. } | Stage::Committed { .. } => serve_barrier(),
        }
        !matches!(STAGE.get(), Stage::Committed { .. }) && requested()
    }
}

fn serve_barrier() {
    // SAFETY: a plain read of a flag, and what the server itself does about it between commands.
    unsafe {
        if pg_sys::ProcSignalBarrierPending != 0 {
            pg_sys::ProcessProcSignalBarrier();
        }
    }
}

fn requested() -> bool {
    // SAFETY: plain reads of flags that signal handlers set.
    unsafe {
        wait::is_orphaned()
            || pg_sys::QueryCancelPending != 0
            || pg_sys::ProcDiePending != 0
            || compat::transaction_timed_out()
    }
}

/// Acts on a pending request: raises, or ends the backend. While interrupts are held, nothing.
pub fn check() {
    pgrx::check_for_interrupts!();
}

/// A commit has been sent to another server. Until its outcome is known, and from then to the end of the
/// transaction if it took effect, interrupts are held: requests to cancel and to end, timeouts, a client that
/// has gone.
pub fn commit_sent() {
    if STAGE.get() == Stage::Open {
        // SAFETY: a counter of this backend.
        let outer = unsafe { pg_sys::InterruptHoldoffCount };
        STAGE.set(Stage::Sent { outer });
        hold(outer + 1);
    }
}

/// No commit that was sent took effect, and none can any more: interrupts are served again.
pub fn nothing_committed() {
    if let Stage::Sent { outer } = STAGE.get() {
        STAGE.set(Stage::Open);
        hold(outer);
    }
}

/// The transaction is committed on another server, or may be and the queue sees to the rest. A pending
/// request to cancel comes too late and is dropped, as PostgreSQL drops one that arrives after its own commit
/// point; one to end the backend waits for the end of the transaction.
pub fn committed() {
    commit_sent();
    if let Stage::Sent { outer } = STAGE.get() {
        STAGE.set(Stage::Committed { outer });
    }
    // SAFETY: plain write of a flag; a signal that arrives in between sets it again, which is the same race as
    // one that arrives before the commit point.
    unsafe { pg_sys::QueryCancelPending = 0 }
}

/// The transaction has ended. What was held back and ends the backend is due; a request to cancel was about the
/// commit and is dropped.
pub fn transaction_ended(committed: bool) {
    let (Stage::Sent { outer } | Stage::Committed { outer }) = STAGE.replace(Stage::Open) else {
        return;
    };
    // An abort comes of an ERROR, which has set the counter to zero, or of the process's end.
    if !committed {
        return;
    }
    // SAFETY: a counter and flags of this backend. The server holds interrupts too while it commits: its part
    // of the counter stays.
    unsafe {
        if pg_sys::InterruptHoldoffCount > outer + 1 {
            pg_sys::InterruptHoldoffCount -= 1;
        }
        pg_sys::QueryCancelPending = 0;
        compat::forget_transaction_timeout();
    }
    renew_timeouts();
}

/// Timeouts that ran out meanwhile: that of a lock is over. That of a statement goes on where the statement
/// does, which only a procedure's does: for others the server has stopped it before it commits.
fn renew_timeouts() {
    // From utils/timeout.h: pgrx binds none of it. The numbers are the same in all supported majors.
    const LOCK_TIMEOUT: i32 = 2;
    const STATEMENT_TIMEOUT: i32 = 3;
    const AT_ONCE_MS: i32 = 1;
    unsafe extern "C-unwind" {
        fn get_timeout_indicator(id: i32, reset_indicator: bool) -> bool;
        fn enable_timeout_after(id: i32, delay_ms: i32);
    }
    // SAFETY: both timeouts are registered in every backend that has a database; neither call raises.
    unsafe {
        get_timeout_indicator(LOCK_TIMEOUT, true);
        if get_timeout_indicator(STATEMENT_TIMEOUT, true) && pg_sys::StatementTimeout > 0 {
            enable_timeout_after(STATEMENT_TIMEOUT, AT_ONCE_MS);
        }
    }
}

/// While it lives, requests to cancel and to end count again, whatever the transaction has committed on other
/// servers: for what is awaited after the local transaction has ended, which nothing can fail any more.
pub struct Afterwards {
    stage: Stage,
}

impl Afterwards {
    /// From now on.
    pub fn new() -> Self {
        Self {
            stage: STAGE.replace(Stage::Open),
        }
    }
}

impl Drop for Afterwards {
    fn drop(&mut self) {
        STAGE.set(self.stage);
    }
}

fn hold(count: u32) {
    // SAFETY: a counter of this backend.
    unsafe { pg_sys::InterruptHoldoffCount = count }
}

/// What the server counts while it holds interrupts. An ERROR sets it to zero; where one is caught at the end of a
/// transaction, the server goes on to count down.
pub struct Counters {
    all: u32,
    cancel: u32,
}

impl Counters {
    /// As they are.
    pub fn read() -> Self {
        // SAFETY: counters of this backend.
        unsafe {
            Self {
                all: pg_sys::InterruptHoldoffCount,
                cancel: pg_sys::QueryCancelHoldoffCount,
            }
        }
    }

    /// As they were.
    pub fn put_back(&self) {
        // SAFETY: counters of this backend.
        unsafe {
            pg_sys::InterruptHoldoffCount = self.all;
            pg_sys::QueryCancelHoldoffCount = self.cancel;
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
        let outer = unsafe { pg_sys::InterruptHoldoffCount };
        let hold = Self { outer };
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
