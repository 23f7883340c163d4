//! Faults that a test asks for, at the points that [`fault_point`](crate::fault) names. Not part of a build
//! that people install.
//!
//! A test asks through files, so that no setting, function or memory of the server knows of it, and so that
//! it can ask from outside of every session. Where the data directory holds the directory
//! `pg_rowsync.faults`, a process that comes to a point looks there for a file named after its database's
//! OID, which holds three words: the point, what is to happen, and `session` or `worker`. The process that
//! finds itself meant renames the file, so that no other is, and waits for the renamed one to be removed:
//! until then the test can do what is to happen meanwhile. Then it does what was asked for.

use super::report;
use crate::error::{Error, SqlState};
use pgrx::pg_sys;
use pgrx::prelude::pg_guard;
use std::cell::{Cell, OnceCell};
use std::ffi::c_void;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where something may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A row's change is about to be put into the change set.
    Capture,
    /// A connection is about to be begun.
    Connect,
    /// All is ready to be sent; nothing was sent but what makes a connection.
    BeforeSend,
    /// Everything was sent, the end of the pipeline that commits included.
    CommitSent,
    /// The server has said that it has committed.
    Answered,
    /// All that is done before the local commit is done.
    BeforeCommit,
    /// The local transaction has committed. What is raised here ends here.
    AfterCommit,
    /// A record has been written into the queue, and perhaps others follow.
    QueueWrite,
    /// A change set has been queued.
    Queued,
    /// A drain has taken records out of the queue to apply them.
    Claimed,
    /// A drain has applied a batch; its transaction is open.
    Applied,
    /// A drain has removed from the queue what it has applied.
    Removed,
    /// The worker has looked which servers have work.
    LookUp,
    /// PREPARE TRANSACTION is about to be sent.
    BeforePrepare,
    /// A server has prepared its transaction; nothing of that is known here but in memory.
    Prepared,
    /// The local transaction has ended, and the end of what it has prepared is about to be sent. What
    /// is raised here ends here.
    SecondPhase,
    /// The servers have answered that. What is raised here ends here.
    Finished,
    /// The resolver knows what a server has prepared.
    Resolving,
}

const DIRECTORY: &str = "pg_rowsync.faults";

thread_local! {
    /// The transaction has come to [`Point::BeforeCommit`].
    static ENDS: Cell<bool> = const { Cell::new(false) };
}

/// How long a process waits for its test.
const TEST_RELEASE_TIMEOUT: Duration = Duration::from_secs(30);

/// The process is at a point.
pub fn reach(point: Point) {
    thread_local! {
        /// Whether the data directory, which is where a server's processes work, has the directory.
        static ENABLED: OnceCell<bool> = const { OnceCell::new() };
    }
    if !ENABLED.with(|enabled| *enabled.get_or_init(|| Path::new(DIRECTORY).is_dir())) {
        return;
    }
    // The end of a transaction that has nothing to do with us is no point.
    let is_end = point == Point::AfterCommit;
    if is_end && !ENDS.take() {
        return;
    }
    ENDS.set(point == Point::BeforeCommit);
    // SAFETY: plain reads of variables that are set when the process begins.
    let (database, is_worker) = unsafe {
        let kind = pg_sys::MyBackendType;
        (
            pg_sys::MyDatabaseId.to_u32(),
            kind == pg_sys::BackendType::B_BG_WORKER,
        )
    };
    let asked = format!("{DIRECTORY}/{database}");
    let Ok(text) = std::fs::read_to_string(&asked) else {
        return;
    };
    let process = if is_worker { "worker" } else { "session" };
    let words: Vec<&str> = text.split_whitespace().collect();
    let [name, what, who] = words[..] else { return };
    if name != format!("{point:?}") || who != process {
        return;
    }
    let taken = format!("{asked}.taken");
    if std::fs::rename(&asked, &taken).is_err() {
        return;
    }
    let end = Instant::now() + TEST_RELEASE_TIMEOUT;
    while Path::new(&taken).exists() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    act(what, name);
}

fn act(what: &str, point: &str) {
    match what {
        "error" => report::raise(&Error::local(STATE, format!("fault at point {point}"))),
        "fatal" => fatal(),
        "kill" => kill(),
        "files" => limit(libc::RLIMIT_NOFILE, first_free_descriptor()),
        "memory" => {
            grow_stack();
            limit(libc::RLIMIT_AS, crate::pq::address_space());
            exhaust();
        }
        _ => {}
    }
}

/// Of what is raised: `io_error`.
const STATE: SqlState = SqlState::new("58030");

fn fatal() {
    let message = c"fault that ends the session".as_ptr().cast_mut();
    let mut data = pg_sys::ErrorData {
        elevel: pg_sys::FATAL as i32,
        sqlerrcode: STATE.packed(),
        message,
        ..Default::default()
    };
    // SAFETY: every pointer is null or a C string that lives as long as the program. Does not return.
    unsafe { pg_sys::ThrowErrorData(&mut data) }
}

fn kill() {
    // SAFETY: a signal to this process, which it does not survive.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

/// The number that the next descriptor would have.
fn first_free_descriptor() -> Option<u64> {
    // SAFETY: a descriptor that is closed again at once.
    unsafe {
        let free = libc::dup(0);
        (free >= 0 && libc::close(free) == 0).then_some(free as u64)
    }
}

thread_local! {
    /// What is limited, and what its limit was.
    static LIMITED: Cell<Option<(libc::__rlimit_resource_t, libc::rlimit)>> = const { Cell::new(None) };
    /// A list of blocks that are kept from `malloc`: each begins with the address of the next.
    static HOARD: Cell<*mut c_void> = const { Cell::new(std::ptr::null_mut()) };
}

/// Allows the process no more than this to the end of the transaction.
fn limit(resource: libc::__rlimit_resource_t, most: Option<u64>) {
    let Some(most) = most else { return };
    let mut before = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a plain struct to be filled in.
    unsafe { libc::getrlimit(resource, &mut before) };
    LIMITED.set(Some((resource, before)));
    let now = libc::rlimit {
        rlim_cur: most,
        ..before
    };
    // SAFETY: a plain struct.
    unsafe { libc::setrlimit(resource, &now) };
}

/// Takes what `malloc` still has of what it got from the system.
fn exhaust() {
    let sizes = (11..=20).rev().map(|power| 1 << power);
    for size in sizes.chain((16..2048).rev().step_by(16)) {
        loop {
            // SAFETY: a block of at least 16 bytes, of which the first are written to.
            unsafe {
                let block = libc::malloc(size);
                if block.is_null() {
                    break;
                }
                block.cast::<*mut c_void>().write(HOARD.replace(block));
            }
        }
    }
}

/// Has the system give the stack what the rest of the transaction needs: a stack that cannot grow is no
/// allocation that fails.
#[inline(never)]
fn grow_stack() {
    let room = [1u8; 512 * 1024];
    std::hint::black_box(&room);
}

/// Has the limits lifted at the end of every transaction, after whatever is registered later.
pub fn lift_at_end() {
    // SAFETY: the callback is a function of this library, which is never unloaded.
    unsafe { pg_sys::RegisterXactCallback(Some(lift), std::ptr::null_mut()) };
}

#[pg_guard]
unsafe extern "C-unwind" fn lift(event: pg_sys::XactEvent::Type, _arg: *mut c_void) {
    use pg_sys::XactEvent::*;
    if matches!(
        event,
        XACT_EVENT_COMMIT | XACT_EVENT_ABORT | XACT_EVENT_PREPARE
    ) && let Some((resource, before)) = LIMITED.take()
    {
        // SAFETY: a plain struct.
        unsafe { libc::setrlimit(resource, &before) };
        let mut block = HOARD.replace(std::ptr::null_mut());
        while !block.is_null() {
            // SAFETY: a block of exhaust(), freed once; it begins with the next one's address.
            unsafe {
                let next = block.cast::<*mut c_void>().read();
                libc::free(block);
                block = next;
            }
        }
    }
}
