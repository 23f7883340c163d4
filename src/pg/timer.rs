//! A timer that wakes a session which waits for its client, to end a transaction of nothing: what is to be
//! done then is done in the callback for that.
//!
//! An idle session looks at few signs. One is the request to catch up with catalog invalidations, for
//! which it runs an empty transaction, so that is what the timer asks for.

use super::compat;
use pgrx::pg_sys;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

unsafe extern "C-unwind" {
    // pgrx has no bindings for them; declared in utils/timeout.h. They may raise FATAL only, for a reason
    // that was not registered.
    fn RegisterTimeout(id: i32, handler: unsafe extern "C-unwind" fn()) -> i32;
    fn enable_timeout_after(id: i32, delay_ms: i32);
    fn get_timeout_active(id: i32) -> bool;
}

static FIRED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Number of the timer, once it is registered.
    static ID: Cell<Option<i32>> = const { Cell::new(None) };
    /// When it is to fire.
    static DUE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// In the signal handler of the server's timeouts, which wakes the process.
unsafe extern "C-unwind" fn on_time() {
    FIRED.store(true, Relaxed);
    // SAFETY: a flag that a signal handler of the server's own sets in the same way.
    unsafe { pg_sys::catchupInterruptPending = 1 }
}

/// Whether the timer has fired since the last call.
pub fn take_fired() -> bool {
    FIRED.load(Relaxed) && FIRED.swap(false, Relaxed)
}

/// Takes a number for the timer, if that was not done. Ends the session where other extensions have them all:
/// not to be done at the end of a transaction.
pub fn register() {
    if ID.get().is_none() {
        // SAFETY: a function of this library, which is never unloaded; there are ten numbers for
        // extensions, and each process takes one of them here once.
        ID.set(Some(unsafe {
            RegisterTimeout(compat::USER_TIMEOUT, on_time)
        }));
    }
}

/// Sees to it that the timer fires by then. An ERROR stops all timers, so this is to be called at the end
/// of every transaction. Cannot fail.
pub fn fire_by(due: Instant) {
    let Some(id) = ID.get() else { return };
    // SAFETY: a registered number.
    let is_set = unsafe { get_timeout_active(id) } && DUE.get().is_some_and(|set| set <= due);
    if is_set {
        return;
    }
    let delay = due
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1));
    let millis = i32::try_from(delay.as_millis()).unwrap_or(i32::MAX);
    DUE.set(Some(due));
    // SAFETY: as above.
    unsafe { enable_timeout_after(id, millis) }
}
