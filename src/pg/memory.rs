//! The memory of the Rust side, for when there is no more of it: where the system does not overcommit,
//! `malloc` says so. Rust's own answer is to abort the process, at which PostgreSQL restarts every session of
//! the cluster. Here the session ends and no other.
//!
//! Not with an ERROR: an allocator must not unwind. FATAL does not, it leaves. At the end of a transaction not
//! even FATAL may be said: a session that leaves aborts its transaction, and one that is committed or prepared
//! already cannot be, so the server panics. What is done there has a reserve, which is taken before. So has what
//! follows once a commit was sent to another server: a failure here would undo the changes here only.

use crate::error::{Error, Result, SqlState};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::thread::LocalKey;

/// How much either may need, for as many servers as anybody has. Not so much that `malloc` would give it back to
/// the system when it is freed, which glibc considers from 64 kB on: then others could take it, and each
/// transaction would pay for having it back.
const RESERVE: Layout = Layout::new::<[u8; 48 * 1024]>();
/// The smallest there are.
const PAGE: usize = 4096;

thread_local! {
    /// Who asks can do without.
    static TRIES: Cell<bool> = const { Cell::new(false) };
    /// A [`RESERVE`] for the end of the transaction, or null.
    static FOR_END: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
    /// One for the answers to a commit elsewhere, or null.
    static FOR_COMMIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
    /// One for what follows those answers up to the local commit, or null.
    static FOR_ANSWERED: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
    /// All three are there: what is asked for each row.
    static ARE_TAKEN: Cell<bool> = const { Cell::new(false) };
    /// The reserve may be used.
    static MUST_NOT_FAIL: Cell<bool> = const { Cell::new(false) };
}

/// Makes room for so many more items; false where there is none.
pub fn try_reserve<T>(items: &mut Vec<T>, more: usize) -> bool {
    TRIES.set(true);
    let is_there = items.try_reserve(more).is_ok();
    TRIES.set(false);
    is_there
}

/// Sees to it that there are reserves for a commit elsewhere and for the end of the transaction.
///
/// # Errors
/// 53200 where there is no memory for them.
#[inline]
pub fn take_reserves() -> Result<()> {
    if ARE_TAKEN.get() {
        return Ok(());
    }
    take_all()
}

#[cold]
fn take_all() -> Result<()> {
    take(&FOR_END)?;
    take(&FOR_COMMIT)?;
    take(&FOR_ANSWERED)?;
    ARE_TAKEN.set(true);
    Ok(())
}

fn take(reserve: &'static LocalKey<Cell<*mut u8>>) -> Result<()> {
    if !reserve.get().is_null() {
        return Ok(());
    }
    // SAFETY: the layout has a size.
    let memory = unsafe { System.alloc(RESERVE) };
    if memory.is_null() {
        return Err(Error::local(SqlState::OUT_OF_MEMORY, "out of memory"));
    }
    // SAFETY: so many bytes are there and are ours. Once a page is written to, it is more than promised.
    unsafe {
        for page in (0..RESERVE.size()).step_by(PAGE) {
            memory.add(page).write_volatile(1);
        }
    }
    reserve.set(memory);
    Ok(())
}

/// Gives a reserve to `malloc`, and so to whoever asks it next, libpq and the server too. False where there is none.
fn release(reserve: &'static LocalKey<Cell<*mut u8>>) -> bool {
    ARE_TAKEN.set(false);
    let memory = reserve.replace(std::ptr::null_mut());
    if memory.is_null() {
        return false;
    }
    // SAFETY: take() has got it with this layout; freed once.
    unsafe { System.dealloc(memory, RESERVE) };
    true
}

/// A commit was sent to another server: what follows gets its reserve at once, since libpq does not tell when
/// there is no memory but takes the connection to be broken.
pub fn commit_sent() {
    release(&FOR_COMMIT);
}

/// A server has said that it has committed, or its outcome is left to the queue: other servers' commits, what is
/// queued for those that failed and the local commit are still to come.
pub fn answered() {
    release(&FOR_ANSWERED);
}

/// Runs what may neither raise nor end the session. Where there is no memory, it gets what was reserved.
pub fn with_reserve<T>(body: impl FnOnce() -> T) -> T {
    let _section = Section(MUST_NOT_FAIL.replace(true));
    body()
}

/// What [`MUST_NOT_FAIL`] is again when this goes.
struct Section(bool);

impl Drop for Section {
    fn drop(&mut self) {
        MUST_NOT_FAIL.set(self.0);
    }
}

/// Not in unit tests, which have no server whose session could end.
#[cfg(not(test))]
mod allocator {
    use super::{FOR_END, GlobalAlloc, Layout, MUST_NOT_FAIL, System, TRIES, release};
    use pgrx::pg_sys;

    #[global_allocator]
    static ALLOCATOR: Allocator = Allocator;

    /// The system's allocator, which says that there is no memory only where [`super::try_reserve`] asks.
    struct Allocator;

    // SAFETY: that of the system, but for calls that do not return.
    unsafe impl GlobalAlloc for Allocator {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: by the caller.
            or_end(|| unsafe { System.alloc(layout) })
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            // SAFETY: by the caller.
            or_end(|| unsafe { System.alloc_zeroed(layout) })
        }

        unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            // SAFETY: by the caller. Where there is no memory, the old one stays as it is.
            or_end(|| unsafe { System.realloc(memory, layout, size) })
        }

        unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
            // SAFETY: by the caller.
            unsafe { System.dealloc(memory, layout) }
        }
    }

    fn or_end(allocate: impl Fn() -> *mut u8) -> *mut u8 {
        let memory = allocate();
        if !memory.is_null() || TRIES.get() {
            return memory;
        }
        if MUST_NOT_FAIL.get() && release(&FOR_END) {
            let memory = allocate();
            if !memory.is_null() {
                return memory;
            }
        }
        end();
        memory
    }

    /// Ends the session. What the server needs for that, it has marked failed.
    #[cold]
    fn end() {
        let mut data = pg_sys::ErrorData {
            elevel: pg_sys::FATAL as i32,
            sqlerrcode: pg_sys::errcodes::PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY as i32,
            message: c"out of memory".as_ptr().cast_mut(),
            detail: c"pg_rowsync could not get the memory that it needs."
                .as_ptr()
                .cast_mut(),
            ..Default::default()
        };
        // SAFETY: every pointer is null or a C string that lives as long as the program. Does not return.
        unsafe { pg_sys::ThrowErrorData(&mut data) }
    }
}
