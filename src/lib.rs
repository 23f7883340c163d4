//! pg_rowsync keeps chosen tables of two or more PostgreSQL databases in step, from an AFTER
//! trigger: changes are captured row by row, delivered when the transaction commits, and queued
//! when that fails. README.md is for users; ARCHITECTURE.md has the picture of the modules.

mod admin;
mod api;
mod arrival;
mod atomic;
mod attached;
mod canonical;
mod capture;
mod change;
mod check;
mod conflict;
mod connect;
mod copy;
mod crash;
mod delivery;
mod drain;
mod error;
mod fault;
mod fdw;
#[cfg(test)]
mod fuzz;
mod guc;
mod identity;
mod local;
mod loops;
mod options;
mod path;
mod pg;
mod pq;
mod queue;
mod sql;
mod stats;
mod timestamp;
mod transaction;
mod trigger;
mod verify;
mod worker;

pgrx::pg_module_magic!(name, version);

pgrx::extension_sql_file!(
    "../sql/tables.sql",
    name = "tables",
    requires = [
        api::sync_dml,
        api::sync_queue_discarded,
        api::sync_identity_changed,
        api::sync_not_replicated
    ]
);
pgrx::extension_sql_file!(
    "../sql/views.sql",
    name = "views",
    requires = [
        "tables",
        api::sync_dml,
        api::sync_change_sql,
        api::sync_connections,
        api::sync_counters,
        api::sync_conflict_counters,
        api::sync_comparisons,
        api::sync_worker_state,
        api::sync_is_copy,
        api::sync_has_crashed,
        api::sync_attachments
    ]
);
pgrx::extension_sql_file!(
    "../sql/grants.sql",
    name = "grants",
    requires = [
        "views",
        api::deal_sync_err_rec,
        api::retry_sync_err_rec,
        api::sync_queue_discarded,
        api::start_sync_worker,
        api::stop_sync_worker,
        api::adopt_sync,
        api::resolve_sync_prepared,
        api::copy_sync,
    ]
);
pgrx::extension_sql_file!(
    "../sql/wrapper.sql",
    name = "wrapper",
    requires = [api::pg_rowsync_fdw_validator]
);

/// Called by PostgreSQL when the library is loaded, in a session or at server start.
#[pgrx::pg_guard]
extern "C-unwind" fn _PG_init() {
    pg::report::without_backtraces();
    pg::report::raise_once();
    guc::define();
    pg::shmem::reserve();
    pg::context::reserve_settings(c"pg_rowsync");
    transaction::init(transaction::Ends {
        pre_commit: delivery::commit::pre_commit,
        pre_prepare: delivery::commit::pre_prepare,
        end: atomic::phases::end,
    });
    worker::init();
}
