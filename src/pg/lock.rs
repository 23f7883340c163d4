//! One drainer per server at a time, and the entry to a server's queue. Object locks and not advisory ones:
//! no user can take them, and DROP SERVER waits for them.

use super::Oid;
use super::compat;
use super::context::Settings;
use super::database::current;
use super::lock_tag::{is_held, object_tag, outlasting_aborts, transaction_tag};
use super::xact;
use pgrx::pg_sys;

/// Takes the drain lock of a foreign server until the end of the transaction, without waiting.
/// False when another session holds it.
pub fn try_drain(server: Oid) -> bool {
    acquire(server, DRAIN, true)
}

/// Takes the same lock, waiting for who holds it. PostgreSQL raises a request to cancel, `lock_timeout`
/// and deadlocks.
pub fn drain(server: Oid) {
    acquire(server, DRAIN, false);
}

/// Enters the queue of a server until the end of the transaction, without waiting; many may. False
/// when it is closed, or about to be.
pub fn try_enter(server: Oid) -> bool {
    acquire(server, ENTER, true)
}

/// Gives up what [`try_enter`] took.
pub fn leave(server: Oid) {
    let (number, mode) = ENTER;
    xact::demand();
    // SAFETY: a plain lock tag, in a transaction; the lock is held, else PostgreSQL warns.
    unsafe {
        pg_sys::LockRelease(&tag(server, number), mode as i32, false);
    }
}

/// Closes the queue of a server until the end of the transaction, waiting for those who have entered;
/// nobody enters meanwhile. PostgreSQL raises 55P03 when they take too long.
pub fn close(server: Oid) {
    let _patience = Settings::set(&[(c"lock_timeout", c"200ms")]);
    acquire(server, CLOSE, false);
}

/// A promise that is kept from transaction to transaction until it is dropped, or the process ends: what is queued
/// for a server is removed from the queue at once.
pub struct Promise(Oid);

impl Promise {
    /// Without waiting: `None` while somebody looks whether it is made.
    pub fn make(server: Oid) -> Option<Self> {
        xact::demand();
        let (tag, mode) = (promise(server), pg_sys::ExclusiveLock as pg_sys::LOCKMODE);
        // SAFETY: a plain lock tag; the session owns the lock.
        let got = unsafe { pg_sys::LockAcquire(&tag, mode, true, true) };
        (got != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL).then_some(Self(server))
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let (tag, mode) = (promise(self.0), pg_sys::ExclusiveLock as pg_sys::LOCKMODE);
        // SAFETY: as taken; the session has it.
        unsafe {
            pg_sys::LockRelease(&tag, mode, true);
        }
    }
}

/// Whether somebody has made a [`Promise`] for a server.
pub fn is_promised(server: Oid) -> bool {
    xact::demand();
    is_held(&promise(server))
}

fn promise(server: Oid) -> pg_sys::LOCKTAG {
    outlasting_aborts(tag(server, 3))
}

/// Takes the right to note that an owner of this server's records cannot be served, until the end of the
/// transaction, without waiting. False when another session has it.
pub fn try_note(server: Oid) -> bool {
    acquire(server, NOTE, true)
}

/// Says of a number, until the end of the transaction, that the transaction has not ended: not before all is
/// done that its session does at its end. A crash ends it as well.
pub fn hold_undecided(number: u64) {
    xact::demand();
    // SAFETY: a plain lock tag; the transaction owns the lock.
    unsafe {
        let mode = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;
        pg_sys::LockAcquire(&undecided(number), mode, false, false);
    }
}

/// Whether a transaction has said so of a number and has not ended. Of two numbers that are alike in parts, one
/// may be taken for the other.
pub fn is_undecided(number: u64) -> bool {
    xact::demand();
    is_held(&undecided(number))
}

/// Whether another session waits for the end of the current transaction.
pub fn has_waiters() -> bool {
    xact::demand();
    let mode = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;
    // SAFETY: a plain read of a variable of this backend, and the tag of a lock that a transaction with a number
    // holds.
    unsafe {
        let number = pg_sys::GetTopTransactionIdIfAny();
        number != pg_sys::InvalidTransactionId
            && pg_sys::LockHasWaiters(&transaction_tag(number), mode, false)
    }
}

/// No object of the catalogs, nor one of this file's others: databases are none of a database's own.
fn undecided(number: u64) -> pg_sys::LOCKTAG {
    let object = Oid::from(number as u32);
    object_tag(
        current(),
        pg_sys::DatabaseRelationId,
        object,
        (number >> 32) as u16,
    )
}

/// A transaction under way.
pub type Writer = (i32, u32);

/// The transactions of others that hold a lock of a table under which they may write to it, prepared ones
/// among them. VACUUM, ANALYZE and REINDEX CONCURRENTLY hold one that writes nothing.
pub fn writers(table: Oid) -> Vec<Writer> {
    xact::demand();
    let tag = pg_sys::LOCKTAG {
        locktag_field1: current().to_u32(),
        locktag_field2: table.to_u32(),
        locktag_field3: 0,
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_RELATION as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    };
    let mut found = holders_against(&tag, pg_sys::ShareLock);
    if found.is_empty() {
        return found;
    }
    // Every mode in which a table is written conflicts with what the maintenance of it conflicts with.
    let maintaining = holders_against(&tag, pg_sys::ShareUpdateExclusiveLock);
    if found.iter().any(|one| maintaining.contains(one)) {
        let writing = holders_of_writing_modes(&tag);
        found.retain(|one| writing.contains(one));
    }
    found
}

/// The transactions of others that hold a lock which conflicts with a mode.
fn holders_against(tag: &pg_sys::LOCKTAG, mode: u32) -> Vec<Writer> {
    let mut count = 0;
    // SAFETY: a plain lock tag, laid out as SET_LOCKTAG_RELATION does it, in a transaction; the array, which
    // the current memory context frees, has as many elements as is said.
    unsafe {
        let found = pg_sys::GetLockConflicts(tag, mode as i32, &mut count);
        let found = std::slice::from_raw_parts(found, count as usize);
        found.iter().map(compat::transaction_of).collect()
    }
}

/// The transactions that hold a lock of a relation under which they may write to it. Reads all locks of the
/// server.
fn holders_of_writing_modes(tag: &pg_sys::LOCKTAG) -> Vec<Writer> {
    const MODES: [u32; 4] = [
        pg_sys::RowExclusiveLock,
        pg_sys::ShareRowExclusiveLock,
        pg_sys::ExclusiveLock,
        pg_sys::AccessExclusiveLock,
    ];
    let mask = MODES.iter().fold(0, |mask, mode| mask | 1 << mode);
    let is_relation = |lock: &&pg_sys::LockInstanceData| {
        let of = &lock.locktag;
        of.locktag_type == tag.locktag_type
            && of.locktag_lockmethodid == tag.locktag_lockmethodid
            && of.locktag_field1 == tag.locktag_field1
            && of.locktag_field2 == tag.locktag_field2
    };
    // SAFETY: a copy that the current memory context frees, with as many elements as it says.
    unsafe {
        let all = &*pg_sys::GetLockStatusData();
        let locks = std::slice::from_raw_parts(all.locks, all.nelements as usize);
        (locks.iter().filter(is_relation))
            .filter(|lock| lock.holdMask & mask != 0)
            .map(compat::holder_of)
            .collect()
    }
}

/// Which of a server's locks, and how.
type Kind = (u16, u32);

const DRAIN: Kind = (0, pg_sys::ShareUpdateExclusiveLock);
const ENTER: Kind = (1, pg_sys::ShareLock);
const CLOSE: Kind = (1, pg_sys::ExclusiveLock);
const NOTE: Kind = (2, pg_sys::ExclusiveLock);

fn acquire(server: Oid, (number, mode): Kind, only_try: bool) -> bool {
    xact::demand();
    // SAFETY: a plain lock tag; the transaction owns the lock.
    let got = unsafe { pg_sys::LockAcquire(&tag(server, number), mode as i32, false, only_try) };
    got != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
}

fn tag(server: Oid, number: u16) -> pg_sys::LOCKTAG {
    object_tag(current(), pg_sys::ForeignServerRelationId, server, number)
}
