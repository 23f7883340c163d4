//! The memory of the Rust side, for when there is no more of it: where the system does not overcommit,
//! `malloc` says so. Rust's own answer is to abort the process, at which PostgreSQL restarts every session of
//! the cluster. Here the session ends and no other.
//!
//! Not with an ERROR: an allocator must not unwind. FATAL does not, it leaves.

use std::cell::Cell;

thread_local! {
    /// Who asks can do without.
    static TRIES: Cell<bool> = const { Cell::new(false) };
}

/// Makes room for so many more bytes; false where there is none.
pub fn try_reserve(bytes: &mut Vec<u8>, more: usize) -> bool {
    TRIES.set(true);
    let is_there = bytes.try_reserve(more).is_ok();
    TRIES.set(false);
    is_there
}

/// Not in unit tests, which have no server whose session could end.
#[cfg(not(test))]
mod allocator {
    use super::TRIES;
    use pgrx::pg_sys;
    use std::alloc::{GlobalAlloc, Layout, System};

    #[global_allocator]
    static ALLOCATOR: Allocator = Allocator;

    /// The system's allocator, which says that there is no memory only where [`super::try_reserve`] asks.
    struct Allocator;

    // SAFETY: that of the system, but for calls that do not return.
    unsafe impl GlobalAlloc for Allocator {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: by the caller.
            or_end(unsafe { System.alloc(layout) })
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            // SAFETY: by the caller.
            or_end(unsafe { System.alloc_zeroed(layout) })
        }

        unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            // SAFETY: by the caller.
            or_end(unsafe { System.realloc(memory, layout, size) })
        }

        unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
            // SAFETY: by the caller.
            unsafe { System.dealloc(memory, layout) }
        }
    }

    fn or_end(memory: *mut u8) -> *mut u8 {
        if memory.is_null() && !TRIES.get() {
            end();
        }
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
