//! The counters' area in shared memory. Only where the library is preloaded: shared memory is laid out
//! before the first session. The postmaster sets it up anew, to zero, after a crash of the cluster.

use super::compat;
use crate::guc;
use crate::stats::Slot;
use pgrx::pg_sys;
use pgrx::prelude::pg_guard;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed};

/// The hooks that were there before ours, to be called first.
struct Before {
    request: pg_sys::shmem_request_hook_type,
    startup: pg_sys::shmem_startup_hook_type,
}

static BEFORE: OnceLock<Before> = OnceLock::new();
/// Set by the postmaster; sessions inherit them.
static AREA: AtomicPtr<Slot> = AtomicPtr::new(std::ptr::null_mut());
static LENGTH: AtomicUsize = AtomicUsize::new(0);

/// Whether the library is being loaded by `shared_preload_libraries`.
pub fn is_preloading() -> bool {
    // SAFETY: plain read of a variable of the server.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Asks for the area, if the library is being preloaded. Called once, from _PG_init, after the settings
/// were defined.
pub fn reserve() {
    if !is_preloading() {
        return;
    }
    // SAFETY: the postmaster has one thread and is loading libraries; the hooks are functions of this
    // library, which is never unloaded.
    unsafe {
        let before =
            Before { request: pg_sys::shmem_request_hook, startup: pg_sys::shmem_startup_hook };
        if BEFORE.set(before).is_ok() {
            pg_sys::shmem_request_hook = Some(request);
            pg_sys::shmem_startup_hook = Some(startup);
        }
    }
}

/// The slots for counters; none where the library was not preloaded.
pub fn slots() -> &'static [Slot] {
    let area = AREA.load(Relaxed);
    if area.is_null() {
        return &[];
    }
    // SAFETY: startup() made this many slots here, all atomics. Sessions stay attached to shared memory
    // until they end; the postmaster, which maps it anew after a crash, does not look at slots.
    unsafe { std::slice::from_raw_parts(area, LENGTH.load(Relaxed)) }
}

fn size(slots: usize) -> usize {
    slots * std::mem::size_of::<Slot>()
}

#[pg_guard]
unsafe extern "C-unwind" fn request() {
    // SAFETY: called where the server calls the hook, as the previous one expects it.
    unsafe {
        if let Some(before) = BEFORE.get().and_then(|before| before.request) {
            pg_sys::ffi::pg_guard_ffi_boundary(|| before());
        }
        pg_sys::RequestAddinShmemSpace(size(guc::max_servers()));
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn startup() {
    // SAFETY: called where the server calls the hook; the lock is that of shared memory set-up. What is
    // raised while it is held ends the postmaster. Zero bytes are valid slots, and the server aligns
    // what it gives to cache lines.
    unsafe {
        if let Some(before) = BEFORE.get().and_then(|before| before.startup) {
            pg_sys::ffi::pg_guard_ffi_boundary(|| before());
        }
        let (slots, mut found) = (guc::max_servers(), false);
        let lock = compat::addin_shmem_init_lock();
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let area =
            pg_sys::ShmemInitStruct(c"pg_rowsync counters".as_ptr(), size(slots), &mut found)
                .cast::<Slot>();
        if !found {
            area.write_bytes(0, slots);
        }
        pg_sys::LWLockRelease(lock);
        LENGTH.store(slots, Relaxed);
        AREA.store(area, Relaxed);
    }
}
