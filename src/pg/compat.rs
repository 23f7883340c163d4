//! Everything that differs between PostgreSQL majors.

use pgrx::pg_sys;

/// `CreateWaitEventSet`: 17 takes a resource owner where older majors take a memory context.
///
/// # Safety
/// Must be called in a backend, with `CurrentMemoryContext` (or the resource owner) outliving the
/// set.
pub unsafe fn create_wait_event_set(events: i32) -> *mut pg_sys::WaitEventSet {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    // SAFETY: forwarded from the caller.
    unsafe {
        pg_sys::CreateWaitEventSet(pg_sys::CurrentMemoryContext, events)
    }
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    // SAFETY: forwarded from the caller.
    unsafe {
        pg_sys::CreateWaitEventSet(pg_sys::CurrentResourceOwner, events)
    }
}
