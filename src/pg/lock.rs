//! One drainer per server at a time.

use super::Oid;
use pgrx::pg_sys;

/// Takes the drain lock of a foreign server until the end of the transaction, without waiting.
/// False when another session holds it. An object lock and not an advisory one: no user can take
/// it, and DROP SERVER waits for it.
pub fn try_drain(server: Oid) -> bool {
    acquire(server, true)
}

/// Takes the same lock, waiting for who holds it. PostgreSQL raises a request to cancel, `lock_timeout`
/// and deadlocks.
pub fn drain(server: Oid) {
    acquire(server, false);
}

fn acquire(server: Oid, only_try: bool) -> bool {
    // SAFETY: a plain lock tag, laid out as SET_LOCKTAG_OBJECT does it.
    unsafe {
        let tag = pg_sys::LOCKTAG {
            locktag_field1: pg_sys::MyDatabaseId.to_u32(),
            locktag_field2: pg_sys::ForeignServerRelationId.to_u32(),
            locktag_field3: server.to_u32(),
            locktag_field4: 0,
            locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
            locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
        };
        let mode = pg_sys::ShareUpdateExclusiveLock as i32;
        let got = pg_sys::LockAcquire(&tag, mode, false, only_try);
        got != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
    }
}
