//! Catalog invalidation: tells when what was learnt from the catalogs is out of date.
//!
//! The callbacks may fire in the middle of any catalog access and must neither fail nor look
//! anything up; they only move counters on.

use super::{Oid, compat, memory, xact};
use crate::local::{ProcessLocal, process_local};
use pgrx::pg_sys;
use pgrx::prelude::pg_guard;
use siphasher::sip::SipHasher13;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::hash::Hasher;

thread_local! {
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
    /// Moves on when a watched relation changes.
    static RELATIONS: Cell<u64> = const { Cell::new(0) };
    /// Moves on when a server, user mapping, role or membership changes.
    static SERVERS: Cell<u64> = const { Cell::new(0) };
    /// Others have, which could not be noted.
    static UNNOTED: Cell<bool> = const { Cell::new(false) };
}

process_local! {
    static WATCHED: RefCell<HashSet<u32>> = RefCell::default();
    /// Servers and mappings that changed since [`take_changed`], by hash.
    static CHANGED: RefCell<Vec<Changed>> = const { RefCell::new(Vec::new()) };
}

/// What changed between two looks.
pub struct CatalogChanges {
    noted: Vec<Changed>,
    /// Anything may have.
    any: bool,
}

impl CatalogChanges {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.noted.is_empty() && !self.any
    }

    /// Whether one of these is among what changed.
    pub fn concern(&self, these: &[Changed]) -> bool {
        self.any
            || self
                .noted
                .iter()
                .any(|change| these.iter().any(|this| change.concerns(this)))
    }
}

/// A server or mapping that changed: its cache and hash value; 0 stands for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    cache: i32,
    hash: u32,
}

impl Changed {
    /// What a later change of this server or mapping will be reported as. Looks at the catalogs: raises 25P01
    /// outside of a transaction.
    pub fn of_account(server: Oid, mapping: Oid) -> [Self; 2] {
        xact::demand();
        let of = |cache: pg_sys::SysCacheIdentifier::Type, oid: Oid| {
            let cache = cache as i32;
            let none = pg_sys::Datum::from(0usize);
            // SAFETY: computes the hash of a key, setting the cache up if need be.
            let hash = unsafe { pg_sys::GetSysCacheHashValue(cache, oid.into(), none, none, none) };
            Self { cache, hash }
        };
        [
            of(pg_sys::SysCacheIdentifier::FOREIGNSERVEROID, server),
            of(pg_sys::SysCacheIdentifier::USERMAPPINGOID, mapping),
        ]
    }

    /// What a place is announced as by [`announce_place`]. Whoever describes it the same way means the same one.
    pub fn of_place(place: &str) -> Self {
        let mut hasher = SipHasher13::new();
        hasher.write(place.as_bytes());
        Self {
            cache: pg_sys::SysCacheIdentifier::FOREIGNSERVEROID as i32,
            // 0 would be all of them. A server that has the hash by chance is looked up again.
            hash: (hasher.finish() as u32).max(1),
        }
    }

    /// Whether this report is about the same thing as `other`.
    fn concerns(&self, other: &Self) -> bool {
        self.cache == other.cache && (self.hash == 0 || self.hash == other.hash)
    }
}

/// What changed since the last call.
pub fn take_changed() -> CatalogChanges {
    let noted = CHANGED.with(|changed| match changed.try_borrow_mut() {
        Ok(mut changed) => std::mem::take(&mut *changed),
        Err(_) => Vec::new(),
    });
    let any = UNNOTED.replace(false);
    CatalogChanges { noted, any }
}

/// A moment in the history of the catalogs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch {
    relations: u64,
    servers: u64,
}

/// Now. What was learnt at an earlier, different moment must be learnt again.
pub fn now() -> Epoch {
    register();
    Epoch {
        relations: RELATIONS.get(),
        servers: SERVERS.get(),
    }
}

/// Counter of changes to servers, user mappings, roles and memberships alone.
pub fn servers() -> u64 {
    register();
    SERVERS.get()
}

/// Announces, as of the end of the transaction, that a server has changed, to everybody and here too.
pub fn announce_server(server: Oid) {
    xact::demand();
    // SAFETY: catalog look-ups inside a transaction; the tuple is released after its last use.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::FOREIGNSERVEROID as i32;
        let tuple = pg_sys::SearchSysCache1(cache, server.into());
        if tuple.is_null() {
            return;
        }
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let relation = pg_sys::table_open(pg_sys::ForeignServerRelationId, lock);
        pg_sys::CacheInvalidateHeapTuple(relation, tuple, std::ptr::null_mut());
        pg_sys::table_close(relation, lock);
        pg_sys::ReleaseSysCache(tuple);
    }
}

/// Announces a place to the sessions of all databases, at once. They hear of it with their next transaction.
pub fn announce_place(place: &Changed) {
    let mut message = pg_sys::SharedInvalidationMessage::default();
    message.cc = pg_sys::SharedInvalCatcacheMsg {
        id: place.cache as i8,
        // As of a shared catalog: every database's sessions read it.
        dbId: pg_sys::InvalidOid,
        hashValue: place.hash,
    };
    // SAFETY: one whole message of a kind that says no more than that entries of a cache with this hash are to
    // be looked up again, which does no harm to whoever has some.
    unsafe { pg_sys::SendSharedInvalidMessages(&raw const message, 1) }
}

/// Whose sessions are woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nudged {
    /// Those of the current database.
    Database,
    /// Those of all databases.
    Cluster,
}

/// Wakes client sessions that wait for their clients: each catches up with what was announced, in an empty
/// transaction. Neither waits nor fails.
pub fn nudge_sessions(whose: Nudged) {
    // SAFETY: the array of all processes is in shared memory and does not move; entries are read without
    // a lock, and a signal to a process that has ended, or is another by now, does no harm.
    unsafe {
        let all = pg_sys::ProcGlobal;
        for at in 0..(*all).allProcCount as usize {
            let proc = (*all).allProcs.add(at);
            let pid = (&raw const (*proc).pid).read_volatile();
            let database = (&raw const (*proc).databaseId).read_volatile();
            let is_meant = match whose {
                Nudged::Database => database == pg_sys::MyDatabaseId,
                Nudged::Cluster => database != pg_sys::InvalidOid,
            };
            let is_one = pid != 0 && pid != pg_sys::MyProcPid && is_meant;
            if is_one && !compat::is_background_worker(proc) {
                let reason = pg_sys::ProcSignalReason::PROCSIG_CATCHUP_INTERRUPT;
                // The number of its slot is not known here: the server looks for it.
                const UNKNOWN: i32 = -1;
                pg_sys::SendProcSignal(pid, reason, UNKNOWN);
            }
        }
    }
}

/// From now on, changes of this relation count.
pub fn watch(relation: Oid) {
    WATCHED.with_borrow_mut(|watched| watched.insert(relation.to_u32()));
}

/// Lets a relation count as changed: in this session at once, in all others when the transaction commits.
/// The relation must be there.
pub fn announce(relation: Oid) {
    xact::demand();
    // SAFETY: a catalog look-up inside a transaction, which raises for a relation that is not there.
    unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relation) }
}

fn register() {
    if REGISTERED.replace(true) {
        return;
    }
    let nothing = pg_sys::Datum::from(0usize);
    // SAFETY: the callbacks are functions of this library, which is never unloaded; there are a
    // few dozen slots for syscache callbacks and each backend takes five once.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), nothing);
        for cache in [
            pg_sys::SysCacheIdentifier::FOREIGNSERVEROID,
            pg_sys::SysCacheIdentifier::FOREIGNDATAWRAPPEROID,
            pg_sys::SysCacheIdentifier::USERMAPPINGOID,
            pg_sys::SysCacheIdentifier::AUTHOID,
            // USAGE may come by way of a role.
            pg_sys::SysCacheIdentifier::AUTHMEMMEMROLE,
        ] {
            pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(server_changed), nothing);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    let watched = WATCHED.with(|watched| match watched.try_borrow() {
        Ok(watched) => watched.contains(&relation.to_u32()),
        Err(_) => true,
    });
    if relation == pg_sys::InvalidOid || watched {
        RELATIONS.set(RELATIONS.get() + 1);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn server_changed(_arg: pg_sys::Datum, cache: i32, hash: u32) {
    SERVERS.set(SERVERS.get() + 1);
    let change = Changed { cache, hash };
    let noted = CHANGED.with(|changed| {
        let Ok(mut changed) = changed.try_borrow_mut() else {
            return false;
        };
        if changed.contains(&change) {
            return true;
        }
        // A session that has no memory must not end here: its transaction may have.
        let has_room = memory::try_reserve(&mut changed, 1);
        if has_room {
            changed.push(change);
        }
        has_room
    });
    if !noted {
        UNNOTED.set(true);
    }
}
