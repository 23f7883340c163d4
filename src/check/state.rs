//! What waits here, and who is to deliver it. Of records only SQLSTATEs are shown: messages may quote values.

use super::attached::Caller;
use super::finding::Finding;
use crate::change::Relation;
use crate::error::{Result, SqlState};
use crate::pg::Oid;
use crate::pg::spi::{self, Extension};
use crate::sql::quote::ident;
use crate::sql::triggers;

/// The finding about the worker in this state, see [`crate::worker::state`].
pub fn of_worker(state: &str) -> Option<Finding> {
    let object_not_ready = SqlState::OBJECT_NOT_READY;
    match state {
        "none" => Some(Finding::warning(
            object_not_ready,
            "no worker replays what is queued: pg_rowsync is not in shared_preload_libraries",
            "Preload it and restart; until then call start_sync_worker(), or deal_sync_err_rec() by a schedule.",
        )),
        "stopped" => Some(Finding::warning(
            object_not_ready,
            "the worker of this database was stopped: what is queued waits",
            "SELECT start_sync_worker().",
        )),
        "no slot" => Some(Finding::warning(
            SqlState::new("53000"),
            "the worker of this database has no slot: what is queued waits",
            "Raise max_worker_processes and restart.",
        )),
        _ => None,
    }
}

/// The relations that tables here are sent to over a server, whosever they are.
///
/// # Errors
/// What the catalogs report.
pub fn targets_of(extension: &Extension, server: &str) -> Result<Vec<Relation>> {
    let sql = format!(
        "SELECT DISTINCT a.args[2], a.args[3] FROM {} \
         WHERE a.args[1] = $2 AND t.tgnargs > 2::int2",
        triggers::sending("$1")
    );
    let targets = spi::select(extension, &sql, &[Some(&extension.schema), Some(server)])?;
    let relation = |(schema, table)| Relation { schema, table };
    Ok(targets.into_iter().map(relation).collect())
}

/// What is to be said of records that the caller may know of: table, server and finding.
///
/// # Errors
/// What reading the tables reports.
pub fn of_queue(
    extension: &Extension,
    caller: &Caller,
) -> Result<Vec<(Option<Oid>, String, Finding)>> {
    let schema = ident(&extension.schema);
    let args = caller.args();
    let args = [Some(args[0].as_str()), Some(args[1].as_str())];
    let mine = |owner: &str| format!("($2::bool OR pg_has_role($1::oid, {owner}::oid, 'USAGE'))");
    let mut found = Vec::new();
    let failed = format!(
        "SELECT c.oid, q.dst_server, count(*), min(q.id), \
            COALESCE(min(q.sqlstate), '') \
         FROM {schema}.sync_queue q \
         LEFT JOIN pg_namespace n ON n.nspname = q.nsp_name \
         LEFT JOIN pg_class c ON c.relnamespace = n.oid \
          AND c.relname = q.table_name \
         WHERE q.status = 'failed' AND {} GROUP BY 1, 2",
        mine("q.owner")
    );
    type Failed = (Option<Oid>, String, i64, i64, String);
    for (table, server, count, first, state) in spi::select::<Failed>(extension, &failed, &args)? {
        let problem = format!(
            "{count} records for server \"{server}\" have failed, the first of them {first} with SQLSTATE {state}"
        );
        let hint = "See sync_err_rec. Remove the cause and call retry_sync_err_rec(id), or delete the record \
                    there, which discards the change.";
        found.push((
            table,
            server,
            Finding::error(SqlState::new(&state), problem, hint),
        ));
    }
    let pending = format!(
        "SELECT s.dst_server, p.id, COALESCE(w.last_sqlstate, '') FROM ( \
           SELECT f.srvname::text FROM pg_foreign_server f) s(dst_server) \
         CROSS JOIN LATERAL (SELECT q.id, q.create_time FROM {schema}.sync_queue q \
           WHERE q.dst_server = s.dst_server \
             AND q.status = 'pending' AND {} ORDER BY q.id LIMIT 1) p \
         LEFT JOIN {schema}.sync_server_state w \
           ON w.dst_server = s.dst_server AND w.failures > 0 \
         WHERE p.create_time < \
           (clock_timestamp() - '1 minute'::interval)",
        mine("q.owner")
    );
    let pending = spi::select::<(String, i64, String)>(extension, &pending, &args)?;
    for (server, first, state) in pending {
        let last = if state.is_empty() {
            String::new()
        } else {
            format!("; the last attempt failed with SQLSTATE {state}")
        };
        let problem = format!(
            "changes for server \"{server}\" have been pending for more than a minute, from record {first} on{last}"
        );
        let hint = "See sync_status for the last error and when it is tried again.";
        found.push((
            None,
            server,
            Finding::warning(SqlState::OBJECT_NOT_READY, problem, hint),
        ));
    }
    let blocked = format!(
        "SELECT w.dst_server, w.owner, COALESCE(w.last_sqlstate, '') FROM {schema}.sync_owner_state w \
         WHERE w.failures > 0 AND {} \
           AND EXISTS (SELECT FROM {schema}.sync_queue q \
             WHERE q.dst_server = w.dst_server \
               AND q.owner::oid = w.owner::oid \
               AND q.status = 'pending')",
        mine("w.owner")
    );
    let blocked = spi::select::<(String, String, String)>(extension, &blocked, &args)?;
    for (server, owner, state) in blocked {
        let problem = format!(
            "server \"{server}\" does not take the changes of owner {owner}: SQLSTATE {state}"
        );
        let hint = "See the column blocked of sync_status; others' changes do not wait for them.";
        found.push((
            None,
            server,
            Finding::error(SqlState::new(&state), problem, hint),
        ));
    }
    let lost = format!(
        "SELECT l.dst_server, count(*) FROM {schema}.sync_lost_session l WHERE {} GROUP BY 1",
        mine("l.owner")
    );
    for (server, count) in spi::select::<(String, i64)>(extension, &lost, &args)? {
        let problem = format!(
            "{count} sessions on server \"{server}\" whose connections were lost may still commit: newer changes wait"
        );
        let hint = "They are ended by the next drain; if that cannot, by an administrator there.";
        found.push((
            None,
            server,
            Finding::warning(SqlState::OBJECT_IN_USE, problem, hint),
        ));
    }
    Ok(found)
}
