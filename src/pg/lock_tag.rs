//! Tags of heavyweight locks, laid out as the server's macros do it.

use super::Oid;
use pgrx::pg_sys;

/// The tag of an object, laid out as SET_LOCKTAG_OBJECT does it. A number other than 0 is no object of the
/// catalogs.
pub(super) fn object_tag(database: Oid, class: Oid, object: Oid, number: u16) -> pg_sys::LOCKTAG {
    pg_sys::LOCKTAG {
        locktag_field1: database.to_u32(),
        locktag_field2: class.to_u32(),
        locktag_field3: object.to_u32(),
        locktag_field4: number,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    }
}

/// The lock that every transaction with a number has on itself, laid out as SET_LOCKTAG_TRANSACTION does it.
pub(super) fn transaction_tag(number: pg_sys::TransactionId) -> pg_sys::LOCKTAG {
    pg_sys::LOCKTAG {
        locktag_field1: number.into_inner(),
        locktag_type: pg_sys::LockTagType::LOCKTAG_TRANSACTION as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
        ..Default::default()
    }
}

/// The same object with the lock method of advisory locks: a session's lock is untouched by the end of a
/// transaction, whatever it was, and given up when the process ends, also outside of one. No user can take it.
pub(super) fn outlasting_aborts(tag: pg_sys::LOCKTAG) -> pg_sys::LOCKTAG {
    pg_sys::LOCKTAG {
        locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
        ..tag
    }
}

/// Whether a lock is held that excludes others. Inside of a transaction.
pub(super) fn is_held(tag: &pg_sys::LOCKTAG) -> bool {
    let mode = pg_sys::ShareLock as pg_sys::LOCKMODE;
    // SAFETY: a plain lock tag; the lock is given up at once.
    unsafe {
        let got = pg_sys::LockAcquire(tag, mode, false, true);
        let is_free = got != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL;
        if is_free {
            pg_sys::LockRelease(tag, mode, false);
        }
        !is_free
    }
}
