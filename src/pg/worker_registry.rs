//! Shared memory between the launcher and everyone else: which databases want a worker, which must
//! not have one. There when the library was preloaded, else not, which every function bears.
//!
//! Atomics only, so it can be used where nothing may fail. A database takes the first free slot;
//! when none is left, requests become a request to look at all databases.

use super::Oid;
use pgrx::pg_sys;
use pgrx::{PGRXSharedMemory, PgAtomic, pg_guard, pg_shmem_init};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicUsize, Ordering::SeqCst};

/// Databases that can be kept apart.
const SLOTS: usize = 512;

/// What is known of a database, as bits.
pub mod flag {
    /// Changes wait there and no worker was found.
    pub const WANTED: u32 = 1;
    /// `stop_sync_worker()` was called.
    pub const PAUSED: u32 = 2;
    /// A worker has found out whether it has anything to do, or has ended.
    pub const SETTLED: u32 = 4;
    /// A worker that was at work has ended.
    pub const ENDED: u32 = 8;
    /// A worker is at work.
    pub const WORKING: u32 = 16;
    /// Something was queued since the worker has last looked, and it was woken for it.
    pub const NOTIFIED: u32 = 32;
    /// A worker was wanted and there was no slot for it.
    pub const NO_SLOT: u32 = 64;
    /// The worker has ended to make room; the next one goes on where it stood.
    pub const YIELDED: u32 = 128;
}

struct Registry {
    /// Address of the launcher's latch, 0 without one. Latches are never freed, and setting one that
    /// meanwhile serves another process only wakes that.
    launcher: AtomicUsize,
    /// A request could not be noted.
    look_everywhere: AtomicBool,
    /// A database waits for the slot of another's worker.
    slots_wanted: AtomicBool,
    slots: [WorkerSlot; SLOTS],
}

#[derive(Default)]
struct WorkerSlot {
    /// 0 while free.
    database: AtomicU32,
    flags: AtomicU32,
    /// When a worker that made room has something to do again, as PostgreSQL counts time; 0 for nothing.
    due: AtomicI64,
}

// SAFETY: atomics and nothing else, without pointers into one process's memory.
unsafe impl PGRXSharedMemory for Registry {}

impl Registry {
    fn new() -> Self {
        Self {
            launcher: AtomicUsize::new(0),
            look_everywhere: AtomicBool::new(false),
            slots_wanted: AtomicBool::new(false),
            slots: std::array::from_fn(|_| WorkerSlot::default()),
        }
    }

    fn find(&self, database: u32) -> Option<&WorkerSlot> {
        self.slots
            .iter()
            .find(|slot| slot.database.load(SeqCst) == database)
    }

    fn find_or_take(&self, database: u32) -> Option<&WorkerSlot> {
        self.find(database).or_else(|| {
            self.slots.iter().find(|slot| {
                match slot.database.compare_exchange(0, database, SeqCst, SeqCst) {
                    Ok(_) => true,
                    // Another process may have taken it for the same database meanwhile.
                    Err(taken) => taken == database,
                }
            })
        })
    }
}

// SAFETY: no other shared memory of this name.
static REGISTRY: PgAtomic<Registry> = unsafe { PgAtomic::new(c"pg_rowsync launcher") };
/// Set in the postmaster and inherited by every process.
static RESERVED: AtomicBool = AtomicBool::new(false);

/// Asks for the memory; only while libraries are preloaded.
#[allow(unexpected_cfgs)] // the macro asks for majors that this crate has no feature for
pub fn reserve() {
    pg_shmem_init!(REGISTRY = Registry::new());
    RESERVED.store(true, SeqCst);
}

/// Whether there is a board, that is, a launcher.
pub fn exists() -> bool {
    RESERVED.load(SeqCst)
}

fn registry() -> Option<&'static Registry> {
    exists().then(|| REGISTRY.get())
}

/// Says that this process is the launcher.
pub fn announce_launcher() {
    if let Some(registry) = registry() {
        // SAFETY: plain read of a pointer that is set in every process.
        registry
            .launcher
            .store(unsafe { pg_sys::MyLatch } as usize, SeqCst);
    }
}

/// Sets marks of a database and wakes the launcher. False when there is no room for the database;
/// one that is wanted then makes the launcher look at all. Neither waits nor fails.
pub fn set(database: Oid, flags: u32) -> bool {
    let Some(registry) = registry() else {
        return false;
    };
    let slot = registry.find_or_take(database.to_u32());
    match slot {
        Some(slot) => drop(slot.flags.fetch_or(flags, SeqCst)),
        None if flags & flag::WANTED != 0 => registry.look_everywhere.store(true, SeqCst),
        None => {}
    }
    let latch = registry.launcher.load(SeqCst) as *mut pg_sys::Latch;
    if !latch.is_null() {
        // SAFETY: a latch in shared memory, which is never freed; SetLatch neither waits nor fails.
        unsafe { pg_sys::SetLatch(latch) }
    }
    slot.is_some()
}

/// Sets marks of a database that the launcher does not look for; which ones were set before. `None` if
/// nothing was noted of it yet. Neither waits nor fails.
pub fn note(database: Oid, flags: u32) -> Option<u32> {
    let slot = registry().and_then(|registry| registry.find(database.to_u32()));
    slot.map(|slot| slot.flags.fetch_or(flags, SeqCst))
}

/// Clears marks of a database and says which of them were set.
pub fn clear(database: Oid, flags: u32) -> u32 {
    let slot = registry().and_then(|registry| registry.find(database.to_u32()));
    slot.map_or(0, |slot| slot.flags.fetch_and(!flags, SeqCst) & flags)
}

/// The marks of a database; `None` if it has none or there is no room for it.
pub fn flags(database: Oid) -> Option<u32> {
    let slot = registry().and_then(|registry| registry.find(database.to_u32()));
    slot.map(|slot| slot.flags.load(SeqCst))
}

/// Whether a database has one of the marks.
pub fn has(database: Oid, wanted: u32) -> bool {
    flags(database).is_some_and(|flags| flags & wanted != 0)
}

/// The worker of a database makes room: `due` is when it has something to do again, as PostgreSQL counts
/// time, 0 for nothing. Neither waits nor fails.
pub fn yield_until(database: Oid, due: i64) {
    if let Some(slot) = registry().and_then(|registry| registry.find(database.to_u32())) {
        slot.due.store(due, SeqCst);
    }
    set(database, flag::YIELDED);
}

/// For the launcher: takes out when the worker of a database that made room has something to do again.
pub fn take_due(database: Oid) -> Option<i64> {
    let slot = registry().and_then(|registry| registry.find(database.to_u32()))?;
    Some(slot.due.swap(0, SeqCst)).filter(|due| *due != 0)
}

/// Whether a database waits for the slot of another's worker.
pub fn slots_are_wanted() -> bool {
    registry().is_some_and(|registry| registry.slots_wanted.load(SeqCst))
}

/// For the launcher: whether a database waits for the slot of another's worker.
pub fn want_slots(wanted: bool) {
    if let Some(registry) = registry() {
        registry.slots_wanted.store(wanted, SeqCst);
    }
}

/// For the launcher: the databases that have marks.
pub fn flagged() -> Vec<Oid> {
    let slots = registry()
        .map(|registry| registry.slots.iter())
        .into_iter()
        .flatten();
    slots
        .filter(|slot| slot.flags.load(SeqCst) != 0)
        .map(|slot| Oid::from(slot.database.load(SeqCst)))
        .filter(|database| *database != Oid::INVALID)
        .collect()
}

/// For the launcher: takes the request to look at all databases.
pub fn take_look_everywhere() -> bool {
    registry().is_some_and(|registry| registry.look_everywhere.swap(false, SeqCst))
}

/// For the launcher: frees the slots of databases that are no more.
pub fn keep_only(databases: &[Oid]) {
    for slot in registry()
        .map(|registry| registry.slots.iter())
        .into_iter()
        .flatten()
    {
        let database = slot.database.load(SeqCst);
        if database != 0 && !databases.contains(&Oid::from(database)) {
            slot.flags.store(0, SeqCst);
            slot.due.store(0, SeqCst);
            slot.database.store(0, SeqCst);
        }
    }
}
