//! The SQL functions: the edges, where an [`crate::error::Error`] is raised. Text arguments
//! and results go through [`Args`], so that they are right in every database encoding; the SQL
//! declarations stand beside them.

use crate::atomic::resolver;
use crate::capture::descriptor::Arguments;
use crate::change::Stamp;
use crate::conflict::versions::{self, Arrived, Shape};
use crate::error::{Error, Result};
use crate::pg::args::{Args, Name, result};
use crate::pg::json::{Jsonb, TextArray};
use crate::pg::report::or_raise;
use crate::pg::spi::Extension;
use crate::pg::text::displayable;
use crate::pg::trigger::with_event;
use crate::pg::value;
use crate::queue::pause;
use crate::sql::quote::ArrayLiteral;
use crate::{
    admin, arrival, attached, check, copy, crash, drain, fdw, identity, queue, stats, transaction,
    trigger, verify, worker,
};
use pgrx::prelude::*;

/// The trigger function: captures row changes and TRUNCATE. See [`trigger::fire`]. Not pgrx's
/// `#[pg_trigger]`, which panics when it is called as an ordinary function.
#[pg_extern(sql = r#"
CREATE FUNCTION sync_dml() RETURNS trigger LANGUAGE c AS 'MODULE_PATHNAME', 'sync_dml_wrapper';
"#)]
fn sync_dml(call: Args<'_>) -> i64 {
    or_raise(with_event(&call, "sync_dml", trigger::fire));
    // By the trigger protocol: a null pointer for "no row", which is not SQL NULL.
    0
}

/// Replays queued changes. See [`drain::deal`].
#[pg_extern(sql = r#"
CREATE FUNCTION deal_sync_err_rec(i_limit integer, i_server text DEFAULT NULL) RETURNS boolean
    VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'deal_sync_err_rec_wrapper';
"#)]
fn deal_sync_err_rec(args: Args<'_>) -> bool {
    let deal = || -> Result<bool> {
        let limit = args.text(0)?.map(|n| n.parse::<i32>()).transpose();
        let limit = limit.map_err(|_| Error::internal("malformed integer"))?;
        drain::deal(&Extension::find()?, limit, args.text(1)?.as_deref())
    };
    or_raise(deal())
}

/// Retries a failed record. See [`drain::retry`].
#[pg_extern(sql = r#"
CREATE FUNCTION retry_sync_err_rec(i_id bigint) RETURNS boolean
    VOLATILE STRICT PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'retry_sync_err_rec_wrapper';
"#)]
fn retry_sync_err_rec(args: Args<'_>) -> bool {
    let retry = || -> Result<bool> {
        let id = args.required(0, "i_id")?.parse();
        drain::retry(
            &Extension::find()?,
            id.map_err(|_| Error::internal("malformed bigint"))?,
        )
    };
    or_raise(retry())
}

/// Finishes what is prepared on servers in mode `atomic`. See [`resolver::resolve_all`].
#[pg_extern(sql = r#"
CREATE FUNCTION resolve_sync_prepared(server text DEFAULT NULL) RETURNS boolean
    VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'resolve_sync_prepared_wrapper';
"#)]
fn resolve_sync_prepared(args: Args<'_>) -> bool {
    let resolve = || resolver::resolve_all(&Extension::find()?, args.text(0)?.as_deref());
    or_raise(resolve())
}

/// Starts the current database's worker. See [`worker::start`].
#[pg_extern(sql = r#"
CREATE FUNCTION start_sync_worker() RETURNS boolean
    VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'start_sync_worker_wrapper';
"#)]
fn start_sync_worker() -> bool {
    let start = || worker::start(&Extension::find()?);
    or_raise(start())
}

/// Ends the current database's worker. See [`worker::stop`].
#[pg_extern(sql = r#"
CREATE FUNCTION stop_sync_worker() RETURNS boolean
    VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'stop_sync_worker_wrapper';
"#)]
fn stop_sync_worker() -> bool {
    let stop = || worker::stop(&Extension::find()?);
    or_raise(stop())
}

/// What the current database's worker does. Open to everyone, as `pg_stat_activity` is. See
/// [`worker::state`].
#[pg_extern(sql = r#"
CREATE FUNCTION sync_worker_state() RETURNS text
    VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'sync_worker_state_wrapper';
"#)]
fn sync_worker_state() -> &'static str {
    let state = || worker::state(&Extension::find()?);
    or_raise(state())
}

/// Trigger of the queue: a failed record has been discarded, and the worker may go on with
/// what waited behind it.
#[pg_extern(sql = r#"
CREATE FUNCTION sync_queue_discarded() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'sync_queue_discarded_wrapper';
"#)]
fn sync_queue_discarded(_args: Args<'_>) -> i64 {
    transaction::wake_worker();
    // As for sync_dml.
    0
}

/// Makes a copy of a database a database of its own. See [`identity::adopt`].
#[pg_extern(sql = r#"
CREATE FUNCTION adopt_sync() RETURNS boolean
    VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'adopt_sync_wrapper';
"#)]
fn adopt_sync() -> bool {
    let adopt = || {
        let extension = Extension::find()?;
        let was_copy = identity::adopt(&extension)?;
        if was_copy && !queue::servers(&extension, false)?.is_empty() {
            transaction::wake_worker();
        }
        Ok(was_copy)
    };
    or_raise(adopt())
}

/// Whether the current database is a copy, which captures and delivers nothing. Open to everyone. See
/// [`identity::is_copy`].
#[pg_extern(sql = r#"
CREATE FUNCTION sync_is_copy() RETURNS boolean
    STABLE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'sync_is_copy_wrapper';
"#)]
fn sync_is_copy() -> bool {
    or_raise(identity::is_copy())
}

/// Whether the server has crashed and nobody has noted it yet. Open to everyone. See [`crash::has_happened`].
#[pg_extern(sql = r#"
CREATE FUNCTION sync_has_crashed() RETURNS boolean
    STABLE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'sync_has_crashed_wrapper';
"#)]
fn sync_has_crashed() -> bool {
    let has_crashed = || crash::has_happened(&Extension::find()?);
    or_raise(has_crashed())
}

/// Trigger of the tables that say which database this is. See [`identity::changed`].
#[pg_extern(sql = r#"
CREATE FUNCTION sync_identity_changed() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'sync_identity_changed_wrapper';
"#)]
fn sync_identity_changed(call: Args<'_>) -> i64 {
    or_raise(with_event(&call, "sync_identity_changed", |event| {
        identity::changed(event.relation_oid());
        Ok(())
    }));
    // As for sync_dml.
    0
}

/// Trigger of all tables of the extension: drops rows that arrive by logical replication. See
/// [`identity::is_foreign_row`].
#[pg_extern(sql = r#"
CREATE FUNCTION sync_not_replicated() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'sync_not_replicated_wrapper';
"#)]
fn sync_not_replicated(call: Args<'_>) -> i64 {
    // By the trigger protocol: a null pointer leaves the row out.
    or_raise(with_event(&call, "sync_not_replicated", |event| {
        Ok(if identity::is_foreign_row() {
            0
        } else {
            event.row_to_write()
        })
    }))
}

/// The SQL that delivers a queued change, for `sync_err_rec.dst_query`. See [`queue::describe`].
#[pg_extern(sql = r#"
CREATE FUNCTION sync_change_sql(route text, change text) RETURNS text
    IMMUTABLE STRICT PARALLEL SAFE LANGUAGE c AS 'MODULE_PATHNAME', 'sync_change_sql_wrapper';
"#)]
fn sync_change_sql(args: Args<'_>) -> Vec<u8> {
    let describe = || -> Result<Vec<u8>> {
        result(&queue::describe(
            &args.required(0, "route")?,
            &args.required(1, "change")?,
        )?)
    };
    or_raise(describe())
}

/// The current session's cached connections. See [`admin::connections`].
#[pg_extern(sql = r#"
CREATE FUNCTION sync_connections() RETURNS TABLE (
    server_name text, user_name text, backend_pid integer, valid boolean, pooled boolean,
    idle_since timestamptz
) VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'sync_connections_wrapper';
"#)]
#[allow(clippy::type_complexity)] // the shape pgrx asks for in a set-returning function
fn sync_connections() -> TableIterator<
    'static,
    (
        name!(server_name, Vec<u8>),
        name!(user_name, Option<Vec<u8>>),
        name!(backend_pid, i32),
        name!(valid, bool),
        name!(pooled, Option<bool>),
        name!(idle_since, Option<TimestampWithTimeZone>),
    ),
> {
    let list = || -> Result<Vec<_>> {
        admin::connections(&Extension::find()?)?
            .into_iter()
            .map(|row| {
                let user = row.user.as_deref().map(result).transpose()?;
                let since = row.idle_since.try_into().ok();
                Ok((
                    result(&row.server)?,
                    user,
                    row.pid,
                    row.valid,
                    row.pooled,
                    since,
                ))
            })
            .collect()
    };
    TableIterator::new(or_raise(list()))
}

/// Closes the current session's cached connections to a server, or all. See [`admin::disconnect`].
#[pg_extern(sql = r#"
CREATE FUNCTION sync_disconnect(server text DEFAULT NULL) RETURNS boolean
    VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'sync_disconnect_wrapper';
"#)]
fn sync_disconnect(args: Args<'_>) -> bool {
    let disconnect = || admin::disconnect(&Extension::find()?, args.text(0)?.as_deref());
    or_raise(disconnect())
}

/// The counters of the current database's servers; the row without a server stands for those that have
/// none, and is left out when such are not counted. No rows where the library is not preloaded. Open
/// to everyone, as PostgreSQL's own statistics are. See [`stats::counts`].
#[pg_extern(sql = r#"
CREATE FUNCTION sync_counters() RETURNS TABLE (
    server oid, delivered_transactions bigint, delivered_changes bigint, queued bigint,
    conflicts bigint, guarded bigint, looped bigint, last_success timestamptz, prepared bigint,
    resolved bigint
) VOLATILE PARALLEL SAFE LANGUAGE c AS 'MODULE_PATHNAME', 'sync_counters_wrapper';
"#)]
#[allow(clippy::type_complexity)] // the shape pgrx asks for in a set-returning function
fn sync_counters() -> TableIterator<
    'static,
    (
        name!(server, Option<pg_sys::Oid>),
        name!(delivered_transactions, i64),
        name!(delivered_changes, i64),
        name!(queued, i64),
        name!(conflicts, i64),
        name!(guarded, i64),
        name!(looped, i64),
        name!(last_success, Option<TimestampWithTimeZone>),
        name!(prepared, i64),
        name!(resolved, i64),
    ),
> {
    TableIterator::new(stats::counts().into_iter().map(|counts| {
        (
            counts.server,
            counts.delivered_transactions as i64,
            counts.delivered_changes as i64,
            counts.queued as i64,
            counts.conflicts as i64,
            counts.guarded as i64,
            counts.looped as i64,
            counts.last_success.and_then(|time| time.try_into().ok()),
            counts.prepared as i64,
            counts.resolved as i64,
        )
    }))
}

/// How a change that arrives compares to the row that it meets: 1 for newer, 0 for the same, -1. Called by
/// the statements that apply changes under `newest`, by whoever may write the table. See
/// [`Arrived::compare`].
#[pg_extern(sql = r#"
CREATE FUNCTION sync_compare_versions(
    relation regclass, key_hash bigint, version_type regtype, version text, rank bigint, there text
) RETURNS integer VOLATILE PARALLEL UNSAFE
    LANGUAGE c AS 'MODULE_PATHNAME', 'sync_compare_versions_wrapper';
"#)]
fn sync_compare_versions(args: Args<'_>) -> i32 {
    let compare = || {
        arrived(&args)?.compare(
            &versions::extension_of(args.function())?,
            args.text(5)?.as_deref(),
        )
    };
    or_raise(compare()) as i32
}

/// Whether the row of a change that arrives was deleted by something newer. Called as the one above. See
/// [`Arrived::is_deleted_later`].
#[pg_extern(sql = r#"
CREATE FUNCTION sync_deleted_later(
    relation regclass, key_hash bigint, version_type regtype, version text, rank bigint
) RETURNS boolean VOLATILE PARALLEL UNSAFE
    LANGUAGE c AS 'MODULE_PATHNAME', 'sync_deleted_later_wrapper';
"#)]
fn sync_deleted_later(args: Args<'_>) -> bool {
    let is_deleted = || arrived(&args)?.is_deleted_later(&versions::extension_of(args.function())?);
    or_raise(is_deleted())
}

/// Keeps what a change that was applied counts as, where the row does not show it: `shown` is the version of
/// the row as it was stored, `key` its key, the columns in the order of their names. Called as those above;
/// false. See [`Arrived::keep`].
#[pg_extern(sql = r#"
CREATE FUNCTION sync_keep_version(
    relation regclass, key record, version_type regtype, version text, rank bigint,
    deleted boolean, met boolean, shown text
) RETURNS boolean VOLATILE PARALLEL UNSAFE
    LANGUAGE c AS 'MODULE_PATHNAME', 'sync_keep_version_wrapper';
"#)]
fn sync_keep_version(args: Args<'_>) -> bool {
    let keep = || {
        let shown = args.text(7)?;
        let found = args.required(6, "met")? == "t";
        let shape = if args.required(5, "deleted")? == "t" {
            Shape::Deletion
        } else {
            Shape::Row(shown.as_deref())
        };
        let extension = versions::extension_of(args.function())?;
        let key = args.key(1, "key")?;
        arrived_with(&args, key.hash())?.keep(&extension, key, shape, found)
    };
    or_raise(keep());
    false
}

/// Whether a type of PostgreSQL's own can hold a value, given as text, as `verify_sync` asks of the types that
/// values get on a server. See [`value::is_held`].
#[pg_extern(sql = r#"
CREATE FUNCTION sync_holds(value text, type regtype, modifier integer) RETURNS boolean
    STABLE STRICT PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'sync_holds_wrapper';
"#)]
fn sync_holds(args: Args<'_>) -> bool {
    let holds = || {
        let modifier = args.required(2, "modifier")?.parse();
        let modifier = modifier.map_err(|_| Error::internal("malformed integer"))?;
        value::is_held(&args.required(0, "value")?, args.oid(1, "type")?, modifier)
    };
    or_raise(holds())
}

/// Whether a row with a key has come since the running statement began, which could not write it. Called as
/// those above. See [`versions::has_come`].
#[pg_extern(sql = r#"
CREATE FUNCTION sync_row_has_come(relation regclass, key record) RETURNS boolean
    VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'sync_row_has_come_wrapper';
"#)]
fn sync_row_has_come(args: Args<'_>) -> bool {
    let has_come = || {
        let extension = versions::extension_of(args.function())?;
        versions::has_come(&extension, args.oid(0, "relation")?, args.key(1, "key")?)
    };
    or_raise(has_come())
}

/// The arguments that the functions above share.
fn arrived(args: &Args<'_>) -> Result<Arrived> {
    arrived_with(args, number(args, 1, "key_hash")?)
}

fn arrived_with(args: &Args<'_>, hash: i64) -> Result<Arrived> {
    Ok(Arrived {
        relation: args.oid(0, "relation")?,
        hash,
        version_type: args.oid(2, "version_type")?,
        stamp: Stamp {
            version: args.text(3)?,
            rank: number(args, 4, "rank")?,
        },
    })
}

fn number(args: &Args<'_>, at: usize, name: &str) -> Result<i64> {
    args.required(at, name)?
        .parse()
        .map_err(|_| Error::internal("malformed bigint"))
}

/// The conflicts of the current database's tables with its servers, by kind; what has not occurred is
/// left out. No rows where the library is not preloaded. Open to everyone, as [`sync_counters`] is. See
/// [`stats::conflict_counts`].
#[pg_extern(sql = r#"
CREATE FUNCTION sync_conflict_counters() RETURNS TABLE (
    server oid, relation oid, type text, conflicts bigint
) VOLATILE PARALLEL SAFE LANGUAGE c AS 'MODULE_PATHNAME', 'sync_conflict_counters_wrapper';
"#)]
fn sync_conflict_counters() -> TableIterator<
    'static,
    (
        name!(server, pg_sys::Oid),
        name!(relation, pg_sys::Oid),
        name!(kind, &'static str),
        name!(conflicts, i64),
    ),
> {
    TableIterator::new(stats::conflict_counts().into_iter().map(|count| {
        (
            count.server,
            count.relation,
            count.kind.name(),
            count.conflicts as i64,
        )
    }))
}

/// How far calls of `verify_sync` and `repair_sync` are. Open to everyone, as `pg_locks` is: it tells numbers by
/// OID. See [`verify::running`].
#[pg_extern(sql = r#"
CREATE FUNCTION sync_comparisons() RETURNS TABLE (
    pid integer, id bigint, command text, relation oid, server oid, state text, rows_total bigint,
    rows_done bigint, bytes_done bigint, ranges bigint, differences bigint, repaired bigint,
    started_at timestamptz
) VOLATILE PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'sync_comparisons_wrapper';
"#)]
#[allow(clippy::type_complexity)] // the shape pgrx asks for in a set-returning function
fn sync_comparisons() -> TableIterator<
    'static,
    (
        name!(pid, i32),
        name!(id, Option<i64>),
        name!(command, &'static str),
        name!(relation, pg_sys::Oid),
        name!(server, pg_sys::Oid),
        name!(state, &'static str),
        name!(rows_total, i64),
        name!(rows_done, i64),
        name!(bytes_done, i64),
        name!(ranges, i64),
        name!(differences, i64),
        name!(repaired, i64),
        name!(started_at, Option<TimestampWithTimeZone>),
    ),
> {
    TableIterator::new(verify::running().into_iter().map(|one| {
        (
            one.pid,
            one.id,
            one.command,
            one.relation,
            one.server,
            one.state,
            one.rows_total,
            one.rows_done,
            one.bytes_done,
            one.ranges,
            one.differences,
            one.repaired,
            one.started_at.try_into().ok(),
        )
    }))
}

/// Makes both triggers on a table, and registers a copy of its rows if `copy_data` says so. See
/// [`admin::attach`] and [`copy::start`].
#[pg_extern(sql = r#"
CREATE FUNCTION attach_sync(
    rel regclass, server text, target text DEFAULT NULL, options jsonb DEFAULT '{}',
    copy_data boolean DEFAULT false
) RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'attach_sync_wrapper';
"#)]
fn attach_sync(args: Args<'_>) {
    let attach = || -> Result<()> {
        let rel = args.oid(0, "rel")?;
        let server = args.required(1, "server")?;
        let options = args.text(3)?.unwrap_or_else(|| "{}".to_owned());
        let extension = Extension::find()?;
        admin::attach(&extension, rel, &server, args.text(2)?.as_deref(), &options)?;
        match args.text(4)?.as_deref() {
            Some("t") => copy::start(&extension, rel, &server, "error").map(drop),
            _ => Ok(()),
        }
    };
    or_raise(attach());
}

/// Says what is wrong between tables here and their targets. See [`check::check`].
#[pg_extern(sql = r#"
CREATE FUNCTION check_sync(rel regclass DEFAULT NULL, server text DEFAULT NULL) RETURNS TABLE (
    rel regclass, server name, severity text, problem text, hint text
) VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'check_sync_wrapper';
"#)]
#[allow(clippy::type_complexity)] // the shape pgrx asks for in a set-returning function
fn check_sync(
    args: Args<'_>,
) -> TableIterator<
    'static,
    (
        name!(rel, Option<pg_sys::Oid>),
        name!(server, Option<Name>),
        name!(severity, &'static str),
        name!(problem, Vec<u8>),
        name!(hint, Vec<u8>),
    ),
> {
    let check = || -> Result<Vec<_>> {
        let table = args
            .text(0)?
            .is_some()
            .then(|| args.oid(0, "rel"))
            .transpose()?;
        check::check(&Extension::find()?, table, args.text(1)?.as_deref())?
            .into_iter()
            .map(|row| {
                let server = row.server.as_deref().map(Name::new).transpose()?;
                Ok((
                    row.table,
                    server,
                    row.severity.name(),
                    result(&row.problem)?,
                    result(&row.hint)?,
                ))
            })
            .collect()
    };
    TableIterator::new(or_raise(check()))
}

/// Attaches the tables of a schema. See [`admin::attach_schema`].
#[pg_extern(sql = r#"
CREATE FUNCTION attach_sync_schema(
    schema text, server text, target_schema text DEFAULT NULL, options jsonb DEFAULT '{}',
    copy_data boolean DEFAULT false
) RETURNS TABLE (rel regclass, attached boolean, reason text)
    VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'attach_sync_schema_wrapper';
"#)]
#[allow(clippy::type_complexity)] // the shape pgrx asks for in a set-returning function
fn attach_sync_schema(
    args: Args<'_>,
) -> TableIterator<
    'static,
    (
        name!(rel, pg_sys::Oid),
        name!(attached, bool),
        name!(reason, Option<Vec<u8>>),
    ),
> {
    let attach = || -> Result<Vec<_>> {
        let schema = args.required(0, "schema")?;
        let server = args.required(1, "server")?;
        let target = args.text(2)?;
        let options = args.text(3)?;
        let options = options.unwrap_or_else(|| "{}".to_owned());
        let copy_data = args.text(4)?.as_deref() == Some("t");
        let extension = Extension::find()?;
        let target = target.as_deref();
        admin::attach_schema(&extension, &schema, &server, target, &options, copy_data)?
            .into_iter()
            .map(|one| {
                Ok((
                    one.rel,
                    one.attached,
                    one.reason.as_deref().map(result).transpose()?,
                ))
            })
            .collect()
    };
    TableIterator::new(or_raise(attach()))
}

/// What is attached, from the triggers' arguments, for the view `sync_tables`. Open to everyone, as the
/// catalogs are that it reads. See [`attached::all`].
#[pg_extern(sql = r#"
CREATE FUNCTION sync_attachments() RETURNS TABLE (
    relation regclass, server text, target_schema text, target_table text, mode text, policy text,
    options text, enabled boolean, problem text
) STABLE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'sync_attachments_wrapper';
"#)]
#[allow(clippy::type_complexity)] // the shape pgrx asks for in a set-returning function
fn sync_attachments() -> TableIterator<
    'static,
    (
        name!(relation, pg_sys::Oid),
        name!(server, Vec<u8>),
        name!(target_schema, Option<Vec<u8>>),
        name!(target_table, Option<Vec<u8>>),
        name!(mode, Option<&'static str>),
        name!(policy, Option<&'static str>),
        name!(options, Option<Vec<u8>>),
        name!(enabled, bool),
        name!(problem, Option<Vec<u8>>),
    ),
> {
    let list = || -> Result<Vec<_>> {
        attached::all(&Extension::find()?)?
            .into_iter()
            .map(|one| {
                let server = result(&one.server)?;
                let relation = one.relation;
                let enabled = one.is_enabled;
                Ok(match one.arguments {
                    Ok(Arguments {
                        target, options, ..
                    }) => (
                        relation,
                        server,
                        Some(result(&target.schema)?),
                        Some(result(&target.table)?),
                        Some(one.mode.name()),
                        Some(options.on_conflict.name()),
                        Some(result(&one.options)?),
                        enabled,
                        None,
                    ),
                    Err(error) => {
                        let problem = Some(result(&error.one_line())?);
                        (
                            relation, server, None, None, None, None, None, enabled, problem,
                        )
                    }
                })
            })
            .collect()
    };
    TableIterator::new(or_raise(list()))
}

/// Holds what is for a server. See [`pause::pause`].
#[pg_extern(sql = r#"
CREATE FUNCTION pause_sync(server text) RETURNS boolean
    VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'pause_sync_wrapper';
"#)]
fn pause_sync(args: Args<'_>) -> bool {
    let pause = || pause::pause(&Extension::find()?, &args.required(0, "server")?);
    or_raise(pause())
}

/// Sends again what is for a server. See [`pause::resume`].
#[pg_extern(sql = r#"
CREATE FUNCTION resume_sync(server text) RETURNS boolean
    VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'resume_sync_wrapper';
"#)]
fn resume_sync(args: Args<'_>) -> bool {
    let resume = || pause::resume(&Extension::find()?, &args.required(0, "server")?);
    or_raise(resume())
}

/// Waits until what was committed before has arrived. Open to everyone: it tells no more than that. See
/// [`arrival::wait_for`].
#[pg_extern(sql = r#"
CREATE FUNCTION wait_sync(server text DEFAULT NULL, timeout interval DEFAULT NULL) RETURNS boolean
    VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'wait_sync_wrapper';
"#)]
fn wait_sync(args: Args<'_>) -> bool {
    let wait = || {
        arrival::wait_for(
            &Extension::find()?,
            args.text(0)?.as_deref(),
            args.text(1)?.as_deref(),
        )
    };
    or_raise(wait())
}

/// Registers a copy of a table's rows to a server that it is sent to; gives its number. See [`copy::start`].
#[pg_extern(sql = r#"
CREATE FUNCTION copy_sync(rel regclass, server text, existing text DEFAULT 'error') RETURNS bigint
    VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'copy_sync_wrapper';
"#)]
fn copy_sync(args: Args<'_>) -> i64 {
    let start = || {
        let rel = args.oid(0, "rel")?;
        let server = args.required(1, "server")?;
        copy::start(
            &Extension::find()?,
            rel,
            &server,
            &args.required(2, "existing")?,
        )
    };
    or_raise(start())
}

/// Drops the triggers that send a table to a server. See [`admin::detach`].
#[pg_extern(sql = r#"
CREATE FUNCTION detach_sync(rel regclass, server text) RETURNS void
    LANGUAGE c AS 'MODULE_PATHNAME', 'detach_sync_wrapper';
"#)]
fn detach_sync(args: Args<'_>) {
    let detach = || {
        let extension = Extension::find()?;
        let rel = args.oid(0, "rel")?;
        let server = args.required(1, "server")?;
        admin::detach(&extension, rel, &server)?;
        crash::settle(&extension, rel, &server)?;
        copy::cancel(&extension, rel, &server)
    };
    or_raise(detach());
}

/// Compares a table with its target on a server. See [`verify::verify`].
#[pg_extern(sql = r#"
CREATE FUNCTION verify_sync(rel regclass, server text, options jsonb DEFAULT '{}') RETURNS TABLE (
    difference text, key jsonb, columns text[], local_row jsonb, remote_row jsonb
) VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'verify_sync_wrapper';
"#)]
#[allow(clippy::type_complexity)] // the shape pgrx asks for in a set-returning function
fn verify_sync(
    args: Args<'_>,
) -> TableIterator<
    'static,
    (
        name!(difference, &'static str),
        name!(key, Jsonb),
        name!(columns, TextArray),
        name!(local_row, Option<Jsonb>),
        name!(remote_row, Option<Jsonb>),
    ),
> {
    let verify = || -> Result<Vec<verify::Difference>> {
        let rel = args.oid(0, "rel")?;
        let server = args.required(1, "server")?;
        let options = args.text(2)?.unwrap_or_else(|| "{}".to_owned());
        verify::verify(&Extension::find()?, rel, &server, &options)
    };
    TableIterator::new(or_raise(verify()).into_iter().map(|found| {
        let mut columns = ArrayLiteral::default();
        found
            .columns
            .iter()
            .for_each(|name| columns.push(Some(name)));
        (
            found.kind.name(),
            shown_row(&found.key),
            TextArray(columns.into_text()),
            found.here.as_deref().map(shown_row),
            found.there.as_deref().map(shown_row),
        )
    }))
}

/// Makes a table and its target on a server equal. See [`verify::repair`].
#[pg_extern(sql = r#"
CREATE FUNCTION repair_sync(rel regclass, server text, options jsonb DEFAULT '{}') RETURNS TABLE (
    difference text, key jsonb, action text
) VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'repair_sync_wrapper';
"#)]
#[allow(clippy::type_complexity)] // the shape pgrx asks for in a set-returning function
fn repair_sync(
    args: Args<'_>,
) -> TableIterator<
    'static,
    (
        name!(difference, &'static str),
        name!(key, Jsonb),
        name!(action, &'static str),
    ),
> {
    let repair = || {
        let rel = args.oid(0, "rel")?;
        let server = args.required(1, "server")?;
        let options = args.text(2)?.unwrap_or_else(|| "{}".to_owned());
        verify::repair(&Extension::find()?, rel, &server, &options)
    };
    TableIterator::new(
        or_raise(repair())
            .into_iter()
            .map(|(found, action)| (found.kind.name(), shown_row(&found.key), action.name())),
    )
}

/// A row as the result shows it, whichever side it is on: with `?` for characters that this database's encoding lacks.
fn shown_row(row: &str) -> Jsonb {
    Jsonb(displayable(row))
}

/// Checks the options of CREATE and ALTER SERVER and USER MAPPING. See [`fdw::validate`].
#[pg_extern(sql = r#"
CREATE FUNCTION pg_rowsync_fdw_validator(options text[], catalog oid) RETURNS void
    STRICT LANGUAGE c AS 'MODULE_PATHNAME', 'pg_rowsync_fdw_validator_wrapper';
"#)]
fn pg_rowsync_fdw_validator(options: Array<&[u8]>, catalog: pg_sys::Oid) {
    // Option names are ASCII; values are looked at only where they are booleans.
    let options: Vec<String> = options
        .iter()
        .flatten()
        .map(|option| String::from_utf8_lossy(option).into_owned())
        .collect();
    or_raise(fdw::validate(&options, catalog));
}
