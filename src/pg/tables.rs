//! Tables locked, opened, measured and closed several at a time. pgrx guards each call of the server, which
//! costs as much as one of these does; here one guard holds for all.

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

// Not pg_sys's guarded ones.
unsafe extern "C-unwind" {
    fn LockRelationOid(relation: pg_sys::Oid, lock: i32);
    fn UnlockRelationOid(relation: pg_sys::Oid, lock: i32);
    fn table_open(relation: pg_sys::Oid, lock: i32) -> pg_sys::Relation;
    fn table_close(relation: pg_sys::Relation, lock: i32);
    fn RelationGetNumberOfBlocksInFork(
        relation: pg_sys::Relation,
        fork: pg_sys::ForkNumber::Type,
    ) -> pg_sys::BlockNumber;
}

/// Locks tables and opens them, in their order. `None`, and no lock, where `is_current` says under the locks
/// that something has changed.
///
/// # Safety
/// In a transaction; `is_current` must not panic.
pub unsafe fn open(
    tables: &[pg_sys::Oid],
    lock: i32,
    is_current: impl Fn() -> bool,
) -> Option<Vec<pg_sys::Relation>> {
    let mut opened = Vec::with_capacity(tables.len());
    // SAFETY: locks may be taken on what is not there any more; what is current is. Nothing within has a
    // destructor, and the vector has its room.
    let is_open = unsafe {
        pg_guard_ffi_boundary(|| {
            for table in tables {
                LockRelationOid(*table, lock);
            }
            if !is_current() {
                for table in tables {
                    UnlockRelationOid(*table, lock);
                }
                return false;
            }
            for table in tables {
                opened.push(table_open(*table, pg_sys::NoLock as i32));
            }
            true
        })
    };
    is_open.then_some(opened)
}

/// Whether each has no pages, now.
///
/// # Safety
/// They are open.
pub unsafe fn are_vacant(tables: &[pg_sys::Relation]) -> Vec<bool> {
    let mut vacant = Vec::with_capacity(tables.len());
    // SAFETY: by the caller; as above.
    unsafe {
        pg_guard_ffi_boundary(|| {
            for table in tables {
                let pages =
                    RelationGetNumberOfBlocksInFork(*table, pg_sys::ForkNumber::MAIN_FORKNUM);
                vacant.push(pages == 0);
            }
        });
    }
    vacant
}

/// Closes them and gives up their locks.
///
/// # Safety
/// They are open, under this lock.
pub unsafe fn close(tables: &[pg_sys::Relation], lock: i32) {
    // SAFETY: by the caller; as above.
    unsafe {
        pg_guard_ffi_boundary(|| {
            for table in tables {
                table_close(*table, lock);
            }
        });
    }
}
