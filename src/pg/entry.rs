//! Where the server enters background workers: functions that it finds by their names.

use super::Oid;
use pgrx::pg_sys;

/// Entry point of the launcher.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn pg_rowsync_launcher_main(_arg: pg_sys::Datum) {
    crate::worker::run_launcher();
}

/// Entry point of a worker; the argument is the database's OID.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn pg_rowsync_worker_main(database: pg_sys::Datum) {
    crate::worker::run_worker(Oid::from(database.value() as u32));
}

/// Entry point of a copier; the argument is the database's OID.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn pg_rowsync_copier_main(database: pg_sys::Datum) {
    crate::copy::copier::run(Oid::from(database.value() as u32));
}
