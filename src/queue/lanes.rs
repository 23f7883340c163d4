//! Lanes: what of a server's queue goes over one owner's account.
//!
//! The records of a server are one order, whoever owns their tables: a visit takes the oldest of all owners,
//! and who is about to send waits for everybody's. That ends where an owner cannot be served (a password, a
//! right, a mapping, a session of that owner that may still commit) while the server takes what is others':
//! such a lane is *apart*. Nobody waits for it, and it has its own attempts, until all of its records are
//! delivered. Order within a lane is never given up, nor between lanes that have records for the same table
//! there; else between owners it is only as long as one of them is apart, and what the target's foreign keys
//! then refuse is tried again.

use super::floor::Owners;
use super::{floor, waiting};
use crate::error::{Error, Result, SqlState};
use crate::guc;
use crate::pg::lookup::{Is, Status, View};
use crate::pg::spi::{self, Extension};
use crate::pg::subtransaction::attempt;
use crate::pg::text::displayable;
use crate::pg::{Oid, lock};
use crate::sql::quote::{ArrayLiteral, ident};
use std::time::Duration;

/// One owner's records in the queue of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// The owner's OID as text.
    pub owner: String,
    /// Its oldest and its newest pending record.
    pub pending: Option<(i64, i64)>,
    pub apart: Option<Apart>,
}

/// A lane that nobody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Apart {
    /// Attempts that have failed since the last that did not.
    pub failures: u32,
    /// Until its next attempt.
    pub wait: Duration,
}

impl Lane {
    /// Whether it may be tried now.
    pub fn is_due(&self) -> bool {
        self.apart.is_none_or(|apart| apart.wait.is_zero())
    }

    /// Whether its records are being delivered.
    pub fn is_served(&self) -> bool {
        self.apart.is_none_or(|apart| apart.failures == 0)
    }
}

/// The lanes of a server that have something to do, those apart last, else the one with the oldest record
/// first. `with_failed`: also those that only have failed records.
///
/// # Errors
/// What reading the queue reports.
pub fn all(extension: &Extension, server_name: &str, with_failed: bool) -> Result<Vec<Lane>> {
    let schema = ident(&extension.schema);
    let queue = format!("{schema}.sync_queue");
    let owners = floor::owners(extension, server_name)?;
    let clear = floor::above_clear(&schema, "$1");
    let sql = format!(
        "WITH work(owner, first, last) AS ( \
             SELECT o.owner, a.id, z.id FROM unnest($3::oid[]) AS o(owner) \
                CROSS JOIN LATERAL ({}) a CROSS JOIN LATERAL ({}) z \
           UNION ALL SELECT q.owner::oid, NULL, NULL FROM {queue} q \
              WHERE q.dst_server = $1 \
                AND q.status = 'waiting' AND {clear} \
                AND q.waits_for = ANY (ARRAY({})) \
           UNION ALL SELECT l.owner::oid, NULL, NULL FROM {schema}.sync_lost_session l \
              WHERE l.dst_server = $1 \
           UNION ALL SELECT q.owner::oid, NULL, NULL FROM {queue} q \
              WHERE q.dst_server = $1 \
                AND q.status = 'failed' AND q.next_attempt_at \
                  <= clock_timestamp() \
           UNION ALL SELECT q.owner::oid, NULL, NULL FROM {queue} q \
              WHERE q.dst_server = $1 AND $2::bool \
                AND q.status = 'failed' AND {clear}) \
         SELECT w.owner, min(w.first), max(w.last), s.failures, \
            ceil(extract(epoch FROM s.next_attempt_at \
               - clock_timestamp()) \
               * 1000)::int8 \
         FROM work w LEFT JOIN {schema}.sync_owner_state s \
           ON s.dst_server = $1 \
          AND s.owner::oid = w.owner \
         GROUP BY w.owner, s.failures, s.next_attempt_at \
         ORDER BY s.failures IS NOT NULL, min(w.first), w.owner",
        floor::edge(&schema, "o.owner", ""),
        floor::edge(&schema, "o.owner", "DESC"),
        waiting::released(&queue, "$1"),
    );
    let with_failed = if with_failed { "true" } else { "false" };
    let args = [server_name, with_failed, &owners].map(Some);
    type Columns = (String, Option<i64>, Option<i64>, Option<u32>, Option<i64>);
    let rows: Vec<Columns> = spi::select(extension, &sql, &args)?;
    let lanes = rows
        .into_iter()
        .map(|(owner, first, last, failures, millis)| {
            let wait = Duration::from_millis(millis.unwrap_or_default().max(0) as u64);
            Lane {
                owner,
                pending: first.zip(last),
                apart: failures.map(|failures| Apart { failures, wait }),
            }
        });
    Ok(lanes.collect())
}

/// The last of the `limit` oldest pending records of these owners' together.
///
/// # Errors
/// What reading the queue reports.
pub fn bound(extension: &Extension, server_name: &str, owners: &[&str], limit: i64) -> Result<i64> {
    let mut array = ArrayLiteral::default();
    owners.iter().for_each(|owner| array.push(Some(owner)));
    let sql = format!(
        "SELECT COALESCE(max(id), 0) FROM (SELECT r.id \
           FROM unnest($2::oid[]) AS o(owner) CROSS JOIN LATERAL ( \
             SELECT q.id FROM {}.sync_queue q WHERE q.dst_server = $1 \
               AND q.owner::oid = o.owner \
               AND q.status = 'pending' AND {} \
             ORDER BY q.id LIMIT $3::int8) r \
           ORDER BY r.id LIMIT $3::int8) s",
        ident(&extension.schema),
        floor::above(&ident(&extension.schema), "$1")
    );
    let owners = array.into_text();
    let limit = limit.to_string();
    let args = [server_name, &owners, &limit].map(Some);
    spi::select_one(extension, &sql, &args)
}

/// How far the records of one transaction are looked for from those of another owner.
const MAX_DISTANCE: i64 = 1_000_000;

/// Whether transactions with records of an owner from one to another have pending ones of other owners too.
///
/// # Errors
/// What reading the queue reports.
pub fn have_parts(
    extension: &Extension,
    (server_name, owner): (&str, Oid),
    (first, last): (i64, i64),
) -> Result<bool> {
    let sql = format!(
        "WITH own AS (SELECT DISTINCT q.xact FROM {0}.sync_queue q \
           WHERE q.dst_server = $1 AND q.owner::oid = $2::oid AND q.status = 'pending' \
             AND q.id BETWEEN $3::int8 AND $4::int8) \
         SELECT 1 FROM {0}.sync_queue o JOIN own USING (xact) WHERE o.dst_server = $1 \
           AND o.owner::oid <> $2::oid AND o.status = 'pending' \
           AND o.id BETWEEN $3::int8 - {MAX_DISTANCE} AND $4::int8 + {MAX_DISTANCE} LIMIT 1",
        ident(&extension.schema)
    );
    let [owner, first, last] = [
        owner.to_u32().to_string(),
        first.to_string(),
        last.to_string(),
    ];
    let args = [server_name, &owner, &first, &last].map(Some);
    Ok(!spi::read(extension, &sql, &args)?.is_empty())
}

/// What [`goes_before`] looks at.
pub const TABLES: [&str; 4] = [
    "sync_queue",
    floor::TABLE,
    "sync_lost_session",
    "sync_owner_state",
];

/// Whether something of a server's is to be sent before the changes of an owner, as its own or as that of a
/// lane that is not apart. The view is of [`TABLES`].
///
/// # Errors
/// What reading the queue reports.
pub fn goes_before(view: &View<'_>, server_name: &str, owner: Oid) -> Result<bool> {
    let server = Is::Text(server_name);
    let counts = |other: Oid| -> Result<bool> {
        let apart = [(1, server), (2, Is::Oid(other))];
        Ok(other == owner || !view.has("sync_owner_state", &apart, Status::Any)?)
    };
    let mut owners = Owners::of(view, server_name);
    while let Some(other) = owners.next()? {
        if counts(other)? {
            return Ok(true);
        }
    }
    for lost in view.oids("sync_lost_session", &[(2, server)], 3)? {
        if counts(lost)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether an owner's changes must wait for records that are pending, its own or others'.
///
/// # Errors
/// What reading the queue reports.
pub fn must_wait(extension: &Extension, server_name: &str, owner: Oid) -> Result<bool> {
    View::look(extension, &TABLES, |view| {
        goes_before(view, server_name, owner)
    })
}

/// A condition: owners `a` and `b` both have pending records for server `$1` that go to the same table there,
/// by the routes `r` of one and `o` of the other. Routes are few, so they are looked at first.
fn share_target(schema: &str) -> String {
    let pending = |route: &str| {
        format!(
            "EXISTS (SELECT FROM {schema}.sync_queue q WHERE q.dst_server = $1 \
               AND q.owner::oid = {route}.owner::oid \
               AND q.status = 'pending' AND {} \
               AND q.route_id = {route}.id)",
            floor::above(schema, "$1")
        )
    };
    format!(
        "(r.body::json ->> 'target') = \
         (o.body::json ->> 'target') \
         AND r.owner::oid <> o.owner::oid \
         AND {} AND {}",
        pending("r"),
        pending("o")
    )
}

/// Pairs of owners that both have pending records for one table of the server: a table that was handed from one
/// to the other, or tables that go to the same one. There, order between lanes is order within one table.
///
/// # Errors
/// What reading the queue reports.
pub fn sharing(extension: &Extension, server_name: &str) -> Result<Vec<(String, String)>> {
    let schema = ident(&extension.schema);
    let sql = format!(
        "SELECT DISTINCT r.owner::oid, o.owner::oid \
         FROM {schema}.sync_route r JOIN {schema}.sync_route o ON {}",
        share_target(&schema)
    );
    spi::select(extension, &sql, &[Some(server_name)])
}

/// Of these tables of the server, each as a route's JSON has it, those for which lanes apart of other owners'
/// have pending records, and the newest of these: they go first all the same.
///
/// # Errors
/// What reading the queue reports.
pub fn apart_before(
    extension: &Extension,
    server_name: &str,
    owner: &str,
    targets: &[String],
) -> Result<Vec<(String, i64)>> {
    let mut array = ArrayLiteral::default();
    targets.iter().for_each(|target| array.push(Some(target)));
    let schema = ident(&extension.schema);
    let sql = format!(
        "SELECT r.body::json ->> 'target', q.last \
         FROM {schema}.sync_owner_state s JOIN {schema}.sync_route r \
           ON r.owner::oid = s.owner::oid \
         CROSS JOIN LATERAL (SELECT max(q.id) FROM {schema}.sync_queue q \
             WHERE q.dst_server = $1 \
               AND q.owner::oid = s.owner::oid \
               AND q.status = 'pending' AND {} \
               AND q.route_id = r.id) q(last) \
         WHERE s.dst_server = $1 \
           AND s.owner::oid <> $2::oid \
           AND (r.body::json ->> 'target') \
             = ANY ($3::text[]) AND q.last IS NOT NULL",
        floor::above(&schema, "$1")
    );
    let targets = array.into_text();
    let args = [server_name, owner, &targets].map(Some);
    spi::select(extension, &sql, &args)
}

/// An owner's records could not be served: its lane is apart from now on.
///
/// # Errors
/// What writing the table reports.
pub fn set_apart(
    extension: &Extension,
    server_name: &str,
    owner: &str,
    reason: &Error,
) -> Result<()> {
    let sql = format!(
        "INSERT INTO {}.sync_owner_state AS s (dst_server, owner, failures, last_error, \
            last_sqlstate, last_error_at, next_attempt_at) \
         VALUES ($1, $2::oid, 1, $3, $4, clock_timestamp(), \
            clock_timestamp() + $5::interval) \
         ON CONFLICT (dst_server, owner) DO UPDATE SET \
            failures = s.failures + 1, last_error = excluded.last_error, \
            last_sqlstate = excluded.last_sqlstate, last_error_at = excluded.last_error_at, \
            next_attempt_at = excluded.last_error_at + LEAST( \
              $5::interval * \
                power(2, LEAST(s.failures, 20)), $6::interval)",
        ident(&extension.schema)
    );
    let state = reason.sqlstate().to_string();
    let message = displayable(&reason.in_full());
    let millis = |time: Duration| format!("{} milliseconds", time.as_millis());
    let first = millis(guc::retry_interval());
    let longest = millis(guc::max_retry_interval());
    let args = [server_name, owner, &message, &state, &first, &longest].map(Some);
    spi::write(extension, &sql, &args)?;
    Ok(())
}

/// A commit found that an owner cannot be served: unless that is known, its lane is apart from now on, and
/// nobody waits for what the commit queues. Waits for no one: whoever else finds the same at that moment
/// leaves it to the first.
///
/// # Errors
/// What writing the table reports.
pub fn note_refused(
    extension: &Extension,
    (server, server_name): (Oid, &str),
    owner: &str,
    reason: &Error,
) -> Result<()> {
    if is_apart(extension, server_name, owner)? || !lock::try_note(server) {
        return Ok(());
    }
    match attempt(|| set_apart(extension, server_name, owner, reason)) {
        // Noted by a transaction that the snapshot of this one does not see.
        Err(error) if error.sqlstate() == SqlState::SERIALIZATION_FAILURE => Ok(()),
        result => result,
    }
}

/// Records of a lane apart were delivered: it joins the others once none is left.
///
/// # Errors
/// What writing the table reports.
pub fn served(extension: &Extension, server_name: &str, owner: &str) -> Result<()> {
    let schema = ident(&extension.schema);
    let these = "s.dst_server = $1 \
        AND s.owner::oid = $2::oid";
    let sql = format!(
        "WITH d AS (DELETE FROM {schema}.sync_owner_state s WHERE {these} AND NOT EXISTS ( \
             SELECT FROM {schema}.sync_queue q WHERE q.dst_server = $1 \
               AND q.owner::oid = $2::oid \
               AND q.status = 'pending' AND {}) RETURNING 1) \
         UPDATE {schema}.sync_owner_state s SET failures = 0, next_attempt_at = NULL \
          WHERE {these} AND NOT EXISTS (SELECT FROM d)",
        floor::above(&schema, "$1")
    );
    spi::write(extension, &sql, &[Some(server_name), Some(owner)])?;
    Ok(())
}

/// Whether an owner's lane is apart.
///
/// # Errors
/// What reading the table reports.
pub fn is_apart(extension: &Extension, server_name: &str, owner: &str) -> Result<bool> {
    let sql = format!(
        "SELECT 1 FROM {}.sync_owner_state WHERE dst_server = $1 \
         AND owner::oid = $2::oid",
        ident(&extension.schema)
    );
    Ok(!spi::read(extension, &sql, &[Some(server_name), Some(owner)])?.is_empty())
}

/// Whether a lane of a server's is apart.
///
/// # Errors
/// What reading the table reports.
pub fn any_apart(extension: &Extension, server_name: &str) -> Result<bool> {
    let sql = format!(
        "SELECT 1 FROM {}.sync_owner_state WHERE dst_server = $1 LIMIT 1",
        ident(&extension.schema)
    );
    Ok(!spi::read(extension, &sql, &[Some(server_name)])?.is_empty())
}

/// Lanes of a server's that are apart and have nothing to be sent any more join the others.
///
/// # Errors
/// What writing the table reports.
pub fn join_idle(extension: &Extension, server_name: &str) -> Result<()> {
    if !any_apart(extension, server_name)? {
        return Ok(());
    }
    let schema = ident(&extension.schema);
    let sql = format!(
        "DELETE FROM {schema}.sync_owner_state s WHERE s.dst_server = $1 \
           AND NOT EXISTS (SELECT FROM {schema}.sync_queue q \
             WHERE q.dst_server = $1 \
               AND q.owner::oid = s.owner::oid \
               AND q.status = 'pending' AND {}) \
           AND NOT EXISTS (SELECT FROM {schema}.sync_lost_session l \
             WHERE l.dst_server = $1 \
               AND l.owner::oid = s.owner::oid)",
        floor::above(&schema, "$1")
    );
    spi::write(extension, &sql, &[Some(server_name)])?;
    Ok(())
}
