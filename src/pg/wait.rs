//! Waiting for sockets on the process latch, so that signals end the wait.
//!
//! Nothing here fails for want of a descriptor: an ERROR while the outcome of a commit is awaited would undo
//! here what the server has committed. Where no set of events can be had, sockets are looked at again and
//! again. Nor does a wait end the process when the postmaster is gone while interrupts are held: a transaction
//! that is committed, here or there, would be aborted on the way out.

use super::fd::ExternalFd;
use super::{bgworker, compat};
use pgrx::pg_sys;
use std::cell::Cell;
use std::time::{Duration, Instant};

thread_local! {
    /// The latch was set since [`take_woken`].
    static WOKEN: Cell<bool> = const { Cell::new(false) };
    /// A wait has found the postmaster gone.
    static ORPHANED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a wait since the last call has seen the latch set.
pub fn take_woken() -> bool {
    WOKEN.replace(false)
}

/// Whether a wait has found the postmaster gone, so that this process is to end as soon as it can.
pub fn is_orphaned() -> bool {
    ORPHANED.get()
}

/// A socket and what to wait for on it.
#[derive(Clone, Copy, Debug)]
pub struct Interest {
    pub socket: i32,
    pub read: bool,
    pub write: bool,
}

impl Interest {
    fn events(&self) -> u32 {
        let read = if self.read {
            pg_sys::WL_SOCKET_READABLE
        } else {
            0
        };
        let write = if self.write {
            pg_sys::WL_SOCKET_WRITEABLE
        } else {
            0
        };
        read | write
    }
}

/// Waits until a socket is ready, the latch is set or the time is up; which one does not matter,
/// callers look at their state again. Ends the process when the postmaster is gone and interrupts are not held. Sockets with
/// nothing to wait for are passed over. A background worker waits a moment at most, so that it looks
/// for requests that no signal announces.
pub fn wait(interests: &[Interest], timeout: Duration) {
    let wanted: Vec<&Interest> = interests
        .iter()
        .filter(|i| i.events() != 0 && i.socket >= 0)
        .collect();
    if wanted.is_empty() || !can_have_descriptor() {
        return wait_without_set(&wanted, timeout);
    }
    // SAFETY: sockets are open while their owners, the callers, live; the set is freed by the guard, on
    // unwinding too.
    unsafe {
        let set = EventSet(compat::create_wait_event_set(wanted.len() as i32 + 2));
        set.add_own();
        for one in wanted {
            set.add_socket(one);
        }
        set.wait(timeout);
    }
}

/// Waits for one socket again and again, as [`wait`] does, without being set up each time.
pub struct Waiter {
    set: EventSet,
    /// Number of the socket's event in the set.
    at: i32,
}

impl Waiter {
    /// For this socket, which must stay open while the waiter lives. `None` where there is no descriptor to
    /// spare.
    pub fn new(interest: &Interest) -> Option<Self> {
        if !can_have_descriptor() {
            return None;
        }
        // SAFETY: as in wait().
        unsafe {
            let set = EventSet(compat::create_lasting_wait_event_set(3));
            set.add_own();
            let at = set.add_socket(interest);
            Some(Self { set, at })
        }
    }

    /// Waits for what the interest says, whose socket must be the waiter's.
    pub fn wait(&self, interest: &Interest, timeout: Duration) {
        // SAFETY: an event of the set, which nobody else changes.
        unsafe {
            let no_latch = std::ptr::null_mut();
            pg_sys::ModifyWaitEvent(self.set.0, self.at, interest.events(), no_latch);
            self.set.wait(timeout);
        }
    }
}

/// Whether a socket is ready now; one that is gone is: its owner will find out.
pub fn is_ready(interest: &Interest) -> bool {
    let read = if interest.read { libc::POLLIN } else { 0 };
    let write = if interest.write { libc::POLLOUT } else { 0 };
    let mut one = libc::pollfd {
        fd: interest.socket,
        events: read | write,
        revents: 0,
    };
    // SAFETY: one entry, which lives through the call; a socket that is not open is reported in it. A call that
    // a signal has cut short is as good as one that found nothing.
    interest.socket < 0 || unsafe { libc::poll(&mut one, 1, 0) } > 0
}

/// Whether a descriptor can be opened now. Asked before a set of events is made, which raises if not.
fn can_have_descriptor() -> bool {
    let Some(_counted) = ExternalFd::acquire() else {
        return false;
    };
    const STDIN: i32 = 0;
    // SAFETY: a copy of a descriptor that every server process has open, closed at once.
    unsafe {
        let copy = libc::fcntl(STDIN, libc::F_DUPFD_CLOEXEC, 0);
        copy >= 0 && libc::close(copy) == 0
    }
}

/// Waits for the latch, with looks at the sockets in between.
fn wait_without_set(interests: &[&Interest], timeout: Duration) {
    const LOOK_EVERY: Duration = Duration::from_millis(5);
    let timeout = timeout.min(bgworker::longest_wait());
    let end = Instant::now().checked_add(timeout);
    loop {
        let left = end.map_or(Duration::MAX, |end| {
            end.saturating_duration_since(Instant::now())
        });
        let step = if interests.is_empty() {
            left
        } else {
            left.min(LOOK_EVERY)
        };
        let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_POSTMASTER_DEATH;
        // SAFETY: the latch of this process, with a set of events that every process has from its start.
        let occurred = unsafe {
            let millis = milliseconds(step);
            pg_sys::WaitLatch(
                pg_sys::MyLatch,
                events as i32,
                millis,
                pg_sys::PG_WAIT_EXTENSION,
            )
        };
        if occurred as u32 & pg_sys::WL_POSTMASTER_DEATH != 0 {
            return postmaster_gone();
        }
        if occurred as u32 & pg_sys::WL_LATCH_SET != 0 {
            return note_latch();
        }
        if left <= step || interests.iter().any(|interest| is_ready(interest)) {
            return;
        }
    }
}

/// The latch was set.
fn note_latch() {
    WOKEN.set(true);
    // SAFETY: the latch of this process.
    unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) }
}

/// The postmaster is gone: so is this process, unless what is under way has to come to its end first. Every wait
/// says so from now on, so none of them may return at once.
fn postmaster_gone() {
    const ORPHAN_DELAY: Duration = Duration::from_millis(5);
    // SAFETY: a counter and a flag of this process.
    unsafe {
        if pg_sys::InterruptHoldoffCount == 0 {
            bgworker::exit(1);
        }
        ORPHANED.set(true);
        pg_sys::InterruptPending = 1;
    }
    std::thread::sleep(ORPHAN_DELAY);
}

/// Rounded up: a wait of less than a millisecond must not spin.
fn milliseconds(time: Duration) -> i64 {
    time.as_micros().div_ceil(1000).min(i32::MAX as u128) as i64
}

struct EventSet(*mut pg_sys::WaitEventSet);

impl EventSet {
    /// The process latch, and the postmaster's death where there is one.
    ///
    /// # Safety
    /// In a backend; the set has room.
    unsafe fn add_own(&self) {
        let no_socket = pg_sys::PGINVALID_SOCKET;
        let no_data = std::ptr::null_mut();
        let no_latch = std::ptr::null_mut();
        // SAFETY: MyLatch is set in every backend.
        unsafe {
            let latch = pg_sys::MyLatch;
            pg_sys::AddWaitEventToSet(self.0, pg_sys::WL_LATCH_SET, no_socket, latch, no_data);
            // In single-user mode there is nobody to watch.
            if pg_sys::IsUnderPostmaster {
                let death = pg_sys::WL_POSTMASTER_DEATH;
                pg_sys::AddWaitEventToSet(self.0, death, no_socket, no_latch, no_data);
            }
        }
    }

    /// A socket; the number of its event.
    ///
    /// # Safety
    /// The socket is open, and stays so while the set is used; the set has room.
    unsafe fn add_socket(&self, one: &Interest) -> i32 {
        let no_latch = std::ptr::null_mut();
        let no_data = std::ptr::null_mut();
        // SAFETY: by the caller.
        unsafe { pg_sys::AddWaitEventToSet(self.0, one.events(), one.socket, no_latch, no_data) }
    }

    /// # Safety
    /// [`EventSet::add_own`] was called.
    unsafe fn wait(&self, timeout: Duration) {
        let timeout = timeout.min(bgworker::longest_wait());
        let mut occurred = pg_sys::WaitEvent::default();
        // SAFETY: room for one event.
        unsafe {
            let millis = milliseconds(timeout);
            pg_sys::WaitEventSetWait(self.0, millis, &mut occurred, 1, pg_sys::PG_WAIT_EXTENSION);
        }
        if occurred.events & pg_sys::WL_POSTMASTER_DEATH != 0 {
            postmaster_gone();
        } else if occurred.events & pg_sys::WL_LATCH_SET != 0 {
            note_latch();
        }
    }
}

impl Drop for EventSet {
    fn drop(&mut self) {
        // SAFETY: created by CreateWaitEventSet, freed once.
        unsafe { pg_sys::FreeWaitEventSet(self.0) }
    }
}
