//! The queue's rows: what could not be delivered, and the backends of lost connections.
//!
//! Records are data (a route and a change as JSON), never SQL text. Their ids come from a sequence
//! at pre-commit, while the transaction still holds its row locks, so of two changes that depend on
//! each other the older has the smaller id.
//!
//! A record is `pending`, `failed` (marked failed: it can never apply as things are) or `waiting` (behind one
//! that is marked failed, see [`failed`]).

pub mod admission;
pub mod claim;
mod columns;
pub mod copies;
pub mod drained;
mod enqueue;
pub mod failed;
pub mod floor;
pub mod lanes;
pub mod pause;
pub mod state;
pub mod stored;
mod waiting;
pub mod writeset;

pub use self::enqueue::enqueue;

use self::admission::QueueStatus;
use self::stored::{CHUNK_ROWS, to_change, to_ids, to_route};
use crate::capture::change_set::ChangeSet;
use crate::connect::lost_session::LostSession;
use crate::error::{Result, SqlState};
use crate::pg::lookup::{self, IndexRef, Status};
use crate::pg::spi::{self, Extension};
use crate::pg::{context, sequence};
use crate::sql::micros;
use crate::sql::quote::{ArrayLiteral, ident};
use std::rc::Rc;

const RECORD: IndexRef = IndexRef {
    table: "sync_queue",
    column: 1,
    status: Status::Pending,
};

/// Whether there is a record with this id, whatever its status.
///
/// # Errors
/// What reading the queue reports.
pub fn exists(extension: &Extension, id: i64) -> Result<bool> {
    let status = Status::Any;
    lookup::has_id(extension, &IndexRef { status, ..RECORD }, id)
}

/// Whether there is a pending record with this id.
///
/// # Errors
/// What reading the queue reports.
pub fn is_pending(extension: &Extension, id: i64) -> Result<bool> {
    lookup::has_id(extension, &RECORD, id)
}

/// Whether there is such a record, and it is this owner's for this server.
///
/// # Errors
/// What reading the queue reports.
pub fn is_of(extension: &Extension, id: i64, server_name: &str, owner: &str) -> Result<bool> {
    // Over the index of ids: the server's name is disguised from the others.
    let sql = format!(
        "SELECT 1 FROM {}.sync_queue WHERE id = $1::int8 AND dst_server || '' = $2 \
         AND owner::oid = $3::oid",
        ident(&extension.schema)
    );
    let id = id.to_string();
    let args = [Some(&*id), Some(server_name), Some(owner)];
    Ok(!spi::read(extension, &sql, &args)?.is_empty())
}

/// Sees to it that changes can be queued until the end of the transaction without a wait for who alters or
/// locks the queue's tables.
///
/// # Errors
/// When they are not there. PostgreSQL raises what a wait ends with.
pub fn reserve(extension: &Extension) -> Result<()> {
    [
        "sync_queue",
        "sync_route",
        "sync_drain",
        "sync_lost_session",
    ]
    .iter()
    .try_for_each(|table| lookup::reserve(extension, table))
}

/// Remembers the session of a connection lost in doubt, until a drain has seen it gone.
///
/// # Errors
/// What writing the table reports.
pub fn remember_lost(set: &ChangeSet, lost: &LostSession) -> Result<()> {
    let _writable = context::Writable::new();
    let sql = format!(
        "INSERT INTO {}.sync_lost_session \
           (dst_server, owner, backend_pid, backend_start, token, not_after, id, remote_xact) \
           OVERRIDING SYSTEM VALUE \
         VALUES ($1, $2::oid, $3::int4, {}, $5::int8, {}, \
           $7::int8, $8::int8)",
        ident(&set.extension.schema),
        time("$4"),
        time("$6")
    );
    let number = |number: Option<i64>| number.map(|number| number.to_string());
    let args = [
        Some(set.account.server_name.clone()),
        Some(set.account.owner.to_u32().to_string()),
        number(lost.backend_pid.map(i64::from)),
        number(lost.backend_start),
        number(lost.token),
        number(lost.not_after),
        number(Some(sequence::draw(
            &set.extension,
            "sync_lost_session_id_seq",
            1,
        )?)),
        number(lost.xact),
    ];
    let args: Vec<Option<&str>> = args.iter().map(Option::as_deref).collect();
    spi::write(&set.extension, &sql, &args)?;
    Ok(())
}

/// A time from microseconds since 1970, exactly.
fn time(micros: &str) -> String {
    format!(
        "('epoch'::timestamptz + \
           ({micros}::float8 * '1 microsecond'::interval))"
    )
}

/// Whether any record names this server.
///
/// # Errors
/// What reading the queue reports.
pub fn knows(extension: &Extension, server_name: &str) -> Result<bool> {
    Ok(admission::status(extension, server_name)? != QueueStatus::Free)
}

/// Whether the database has prepared transactions, which queue what they have changed when they are
/// committed.
///
/// # Errors
/// What reading the view reports.
pub fn has_prepared(extension: &Extension) -> Result<bool> {
    let sql = "SELECT 1 FROM pg_prepared_xacts \
         WHERE database = current_database() LIMIT 1";
    Ok(!spi::read(extension, sql, &[])?.is_empty())
}

/// Removes delivered records.
///
/// # Errors
/// What writing the queue reports.
pub fn remove(extension: &Extension, ids: &[i64]) -> Result<()> {
    for chunk in ids.chunks(CHUNK_ROWS) {
        let sql = format!(
            "DELETE FROM {}.sync_queue WHERE id = \
             ANY (ARRAY(SELECT unnest($1::int8[])))",
            ident(&extension.schema)
        );
        spi::write(extension, &sql, &[Some(&to_ids(chunk))])?;
    }
    Ok(())
}

/// Servers with anything to do: pending records, records that need not wait any more, lost backends, records
/// marked failed that are tried again by themselves; and, if asked for, others that are marked failed.
///
/// # Errors
/// What reading the queue reports.
pub fn servers(extension: &Extension, with_failed: bool) -> Result<Vec<String>> {
    let schema = ident(&extension.schema);
    let queue = format!("{schema}.sync_queue");
    let servers = floor::Servers::find(extension)?;
    let [pending, not_pending] = [servers.pending, servers.not_pending].map(|names| {
        let mut array = ArrayLiteral::default();
        names.iter().for_each(|name| array.push(Some(name)));
        array.into_text()
    });
    let sql = format!(
        "SELECT unnest($2::text[]) \
         UNION SELECT o.server FROM unnest($3::text[]) AS o(server) WHERE $1::bool \
           OR EXISTS ({}) OR EXISTS (SELECT FROM {queue} q \
             WHERE q.dst_server = o.server \
               AND q.status = 'failed' \
               AND q.next_attempt_at IS NOT NULL) \
         UNION SELECT dst_server FROM {schema}.sync_lost_session ORDER BY 1",
        waiting::released(&queue, "o.server"),
    );
    let with_failed = if with_failed { "true" } else { "false" };
    spi::select(
        extension,
        &sql,
        &[with_failed, &pending, &not_pending].map(Some),
    )
}

/// A lost session and the owner over whose account it was.
pub struct QueuedLostSession {
    id: String,
    pub owner: String,
    pub session: LostSession,
    /// The local transaction that has queued what was on its way.
    xact: String,
}

/// The lost sessions of a server.
///
/// # Errors
/// What reading the table reports.
pub fn lost(extension: &Extension, server_name: &str) -> Result<Vec<QueuedLostSession>> {
    let sql = format!(
        "SELECT id, owner::oid, backend_pid, {}, token, {}, remote_xact, xact \
         FROM {}.sync_lost_session \
         WHERE dst_server = $1 ORDER BY lost_at",
        micros("backend_start"),
        micros("not_after"),
        ident(&extension.schema)
    );
    type Columns = (
        String,
        String,
        Option<i32>,
        Option<i64>,
        Option<i64>,
        Option<i64>,
        Option<i64>,
        String,
    );
    let rows: Vec<Columns> = spi::select(extension, &sql, &[Some(server_name)])?;
    let lost = rows.into_iter().map(
        |(id, owner, backend_pid, backend_start, token, not_after, remote_xact, xact)| {
            let session = LostSession {
                backend_pid,
                backend_start,
                token,
                not_after,
                xact: remote_xact,
            };
            QueuedLostSession {
                id,
                owner,
                session,
                xact,
            }
        },
    );
    Ok(lost.collect())
}

/// Removes the records of what a lost session has committed, or lets them count as not delivered: what became
/// of its transaction is known.
///
/// # Errors
/// What writing the queue reports.
pub fn settle_lost(
    extension: &Extension,
    server_name: &str,
    lost: &QueuedLostSession,
    committed: bool,
) -> Result<()> {
    let schema = ident(&extension.schema);
    let what = if committed {
        format!("DELETE FROM {schema}.sync_queue q")
    } else {
        format!(
            "UPDATE {schema}.sync_queue q SET sqlstate = '{}'",
            SqlState::CONNECTION_FAILURE
        )
    };
    let sql = format!(
        "{what} WHERE q.dst_server = $1 \
           AND q.owner::oid = $2::oid \
           AND q.status = 'pending' AND {} \
           AND q.xact = $3::xid8 \
           AND q.sqlstate = '{}'",
        floor::above(&schema, "$1"),
        SqlState::RESOLUTION_UNKNOWN
    );
    spi::write(
        extension,
        &sql,
        &[server_name, &lost.owner, &lost.xact].map(Some),
    )?;
    Ok(())
}

/// Forgets a lost session that is gone.
///
/// # Errors
/// What writing the table reports.
pub fn forget_lost(extension: &Extension, lost: &QueuedLostSession) -> Result<()> {
    let sql = format!(
        "DELETE FROM {}.sync_lost_session WHERE id = $1::int8",
        ident(&extension.schema)
    );
    spi::write(extension, &sql, &[Some(&lost.id)])?;
    Ok(())
}

/// A record's change as the SQL that people see.
///
/// # Errors
/// When the JSON is not that of a route and a change.
pub fn describe(route: &str, change: &str) -> Result<String> {
    let route = Rc::new(to_route(route)?);
    let change = to_change(&route, change)?;
    Ok(crate::sql::literal::of_change(&route, &change))
}
