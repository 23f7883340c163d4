//! What sessions share: the counters' areas in shared memory, and where the log was when the server was
//! started. Only where the library is preloaded: shared memory is laid out before the first session. The
//! postmaster sets it up anew after a crash of the cluster: the counters to zero.

use super::{compat, context};
use crate::guc;
use crate::stats::slot::{CONFLICT_SLOTS_PER_SERVER, ConflictSlot, ServerSlot};
use pgrx::pg_sys;
use pgrx::prelude::pg_guard;
use std::ffi::CStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The hooks that were there before ours, to be called first.
struct Before {
    request: pg_sys::shmem_request_hook_type,
    startup: pg_sys::shmem_startup_hook_type,
}

static BEFORE: OnceLock<Before> = OnceLock::new();
static SERVERS: Area<ServerSlot> = Area::new(c"pg_rowsync counters");
static CONFLICTS: Area<ConflictSlot> = Area::new(c"pg_rowsync conflicts");
/// A single number: where the log was when the server was started, 0 before that is known.
static STARTED_AT: Area<AtomicU64> = Area::new(c"pg_rowsync started at");

/// What can lie in shared memory.
///
/// # Safety
/// Zero bytes must be a value of it, and it must consist of atomics, without padding.
unsafe trait Shared: Sync + 'static {}

// SAFETY: atomics only, for which zero is zero.
unsafe impl Shared for ServerSlot {}
// SAFETY: as above.
unsafe impl Shared for ConflictSlot {}
// SAFETY: as above.
unsafe impl Shared for AtomicU64 {}

/// A table in shared memory. Set by the postmaster; sessions inherit it.
struct Area<S> {
    name: &'static CStr,
    at: AtomicPtr<S>,
    length: AtomicUsize,
}

impl<S: Shared> Area<S> {
    const fn new(name: &'static CStr) -> Self {
        let at = AtomicPtr::new(std::ptr::null_mut());
        Self {
            name,
            at,
            length: AtomicUsize::new(0),
        }
    }

    fn slots(&self) -> &'static [S] {
        let area = self.at.load(Relaxed);
        if area.is_null() {
            return &[];
        }
        // SAFETY: make() made this many slots here, all atomics. Sessions stay attached to shared memory
        // until they end; the postmaster, which maps it anew after a crash, does not look at slots.
        unsafe { std::slice::from_raw_parts(area, self.length.load(Relaxed)) }
    }

    fn size(slots: usize) -> usize {
        slots * std::mem::size_of::<S>()
    }

    /// Finds or makes the table.
    ///
    /// # Safety
    /// Shared memory must be being set up, under the lock for that.
    unsafe fn make(&self, slots: usize) {
        let mut found = false;
        // SAFETY: as the caller says. Zero bytes are valid slots, and the server aligns what it gives to
        // cache lines.
        let area = unsafe {
            let area =
                pg_sys::ShmemInitStruct(self.name.as_ptr(), Self::size(slots), &mut found).cast();
            if !found {
                std::ptr::write_bytes::<S>(area, 0, slots);
            }
            area
        };
        self.length.store(slots, Relaxed);
        self.at.store(area, Relaxed);
    }
}

/// Asks for the area, if the library is being preloaded. Called once, from _PG_init, after the settings
/// were defined.
pub fn reserve() {
    if !context::is_preloading() {
        return;
    }
    // SAFETY: the postmaster has one thread and is loading libraries; the hooks are functions of this
    // library, which is never unloaded.
    unsafe {
        let before = Before {
            request: pg_sys::shmem_request_hook,
            startup: pg_sys::shmem_startup_hook,
        };
        if BEFORE.set(before).is_ok() {
            pg_sys::shmem_request_hook = Some(request);
            pg_sys::shmem_startup_hook = Some(startup);
        }
    }
}

/// The slots for counters of servers; none where the library was not preloaded.
pub fn slots() -> &'static [ServerSlot] {
    SERVERS.slots()
}

/// The slots for counters of conflicts; none where the library was not preloaded.
pub fn conflict_slots() -> &'static [ConflictSlot] {
    CONFLICTS.slots()
}

/// Where [`super::wal::started_at`] is kept; none where the library was not preloaded.
pub fn started_at() -> Option<&'static AtomicU64> {
    STARTED_AT.slots().first()
}

fn lengths() -> (usize, usize) {
    let servers = guc::max_servers();
    (servers, servers * CONFLICT_SLOTS_PER_SERVER)
}

#[pg_guard]
unsafe extern "C-unwind" fn request() {
    // SAFETY: called where the server calls the hook, as the previous one expects it.
    unsafe {
        if let Some(before) = BEFORE.get().and_then(|before| before.request) {
            pg_sys::ffi::pg_guard_ffi_boundary(|| before());
        }
        let (servers, conflicts) = lengths();
        pg_sys::RequestAddinShmemSpace(Area::<ServerSlot>::size(servers));
        pg_sys::RequestAddinShmemSpace(Area::<ConflictSlot>::size(conflicts));
        pg_sys::RequestAddinShmemSpace(Area::<AtomicU64>::size(1));
    }
}

/// Of the postmaster: where the log ended when it started the server.
static KEPT_START: AtomicU64 = AtomicU64::new(0);

/// Where the log ended if the server was stopped in order, else 0. Before it is started again, which is the only
/// time when nothing else can have written that to the control file.
///
/// # Safety
/// In the postmaster, while shared memory is being set up for the first time.
unsafe fn stopped_at() -> u64 {
    let mut is_sound = false;
    // SAFETY: the postmaster has found the data directory; what is not sound is not read.
    unsafe {
        let control = pg_sys::get_controlfile(pg_sys::DataDir, &mut is_sound);
        let is_stop = !control.is_null()
            && is_sound
            && matches!(
                (*control).state,
                pg_sys::DBState::DB_SHUTDOWNED | pg_sys::DBState::DB_SHUTDOWNED_IN_RECOVERY
            );
        if is_stop {
            (*control).checkPointCopy.redo
        } else {
            0
        }
    }
}

/// After the crash of a process the postmaster gives shared memory up and makes it anew. The server has not been
/// started by that, so where the log ended then stays as it is.
#[pg_guard]
unsafe extern "C-unwind" fn keep_start(_code: i32, _arg: pg_sys::Datum) {
    if let Some(started_at) = started_at() {
        KEPT_START.store(started_at.load(Relaxed), Relaxed);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn startup() {
    // SAFETY: called where the server calls the hook; the lock is that of shared memory set-up. What is
    // raised while it is held ends the postmaster.
    unsafe {
        if let Some(before) = BEFORE.get().and_then(|before| before.startup) {
            pg_sys::ffi::pg_guard_ffi_boundary(|| before());
        }
        let (servers, conflicts) = lengths();
        let lock = compat::addin_shmem_init_lock();
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        SERVERS.make(servers);
        CONFLICTS.make(conflicts);
        STARTED_AT.make(1);
        pg_sys::LWLockRelease(lock);
        if let Some(started_at) = started_at() {
            let place = match KEPT_START.load(Relaxed) {
                0 => stopped_at(),
                kept => kept,
            };
            started_at.store(place, Relaxed);
        }
        pg_sys::on_shmem_exit(Some(keep_start), pg_sys::Datum::null());
    }
}
