//! Databases of the cluster, and who wants one for itself.

use super::Oid;
use super::lock_tag::object_tag;
use super::xact;
use pgrx::pg_sys;

/// The current database; invalid in a process without one.
pub fn current() -> Oid {
    // SAFETY: plain read of a variable of this process.
    unsafe { pg_sys::MyDatabaseId }
}

/// What tells the cluster from all others; a physical copy has the same.
pub fn system_identifier() -> u64 {
    // SAFETY: reads what the process has mapped of the control file.
    unsafe { pg_sys::GetSystemIdentifier() }
}

/// The server's major version.
pub fn server_major() -> u32 {
    pg_sys::PG_VERSION_NUM / 10_000
}

/// The databases that can be connected to. In a process that is connected to none, SQL is not to be had, so
/// this reads the shared catalog as autovacuum's launcher does. In a transaction, else this raises 25P01.
pub fn connectable() -> Vec<Oid> {
    xact::demand();
    let mut found = Vec::new();
    // SAFETY: a catalog scan in its order; tuples are read while the scan is on them. What it raises
    // unwinds, and the end of the transaction cleans up.
    unsafe {
        // A snapshot keeps the horizon in place while the scan goes on.
        pg_sys::GetTransactionSnapshot();
        let mode = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, mode);
        let scan = pg_sys::table_beginscan_catalog(relation, 0, std::ptr::null_mut());
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
            // -2 marks one whose DROP was interrupted.
            if (*form).datallowconn && (*form).datconnlimit != -2 {
                found.push((*form).oid);
            }
        }
        pg_sys::table_endscan(scan);
        pg_sys::table_close(relation, mode);
    }
    found
}

/// Whether a session could connect to the database now. Not while someone drops, renames, moves or
/// copies it: they hold a lock on it and wait, for some seconds, until all others have left. Needs
/// no transaction and does not wait.
pub fn is_open(database: Oid) -> bool {
    // As InitPostgres takes it: the object is shared, so it is of no database.
    let tag = object_tag(Oid::INVALID, pg_sys::DatabaseRelationId, database, 0);
    let mode = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;
    // SAFETY: a plain lock tag; released at once, as a session's lock, which belongs to no resource
    // owner.
    unsafe {
        let got = pg_sys::LockAcquire(&tag, mode, true, true);
        let open = got != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL;
        if open {
            pg_sys::LockRelease(&tag, mode, true);
        }
        open
    }
}

/// Whether the database has files, as far as this can be told without being connected: what is not
/// there was dropped.
pub fn has_files(database: Oid) -> bool {
    let name = database.to_u32().to_string();
    // The working directory of every server process is the data directory.
    if std::path::Path::new("base").join(&name).is_dir() {
        return true;
    }
    let entries = |dir: &std::path::Path| {
        let list = std::fs::read_dir(dir).into_iter().flatten().flatten();
        list.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    // pg_tblspc/tablespace/PG_15_202209061/database
    entries("pg_tblspc".as_ref())
        .iter()
        .flat_map(|space| entries(space))
        .any(|version| version.join(&name).is_dir())
}
