//! Failed records because they can never apply as things are, and what waits behind them.
//!
//! A failed record (`failed`) and those that wait behind it (`waiting`) leave the writes of their
//! [`Writeset`] in the queue. A later change that meets a mark waits too; everything else flows. What
//! waits is released when the record that it waits for is gone or pending again, and looked at anew in
//! its turn.

use super::stored::{CHUNK_ROWS, to_ids, to_json};
use super::writeset::Writeset;
use super::{columns, copies, floor, lanes, waiting};
use crate::change::Relation;
use crate::error::{Error, Result, SqlState};
use crate::guc;
use crate::pg::lookup::{Is, Status, View};
use crate::pg::spi::{self, Extension};
use crate::pg::text::displayable;
use crate::pg::{Oid, context};
use crate::sql::quote::{ArrayLiteral, ident};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// The record that left a mark.
#[derive(Clone, Copy)]
struct Origin {
    /// The oldest record that left it.
    id: i64,
    /// The failed record that it is, or waits for.
    root: i64,
}

/// Marks of records that are failed or wait.
#[derive(Default)]
pub struct Blockers {
    writes: HashMap<i64, Origin>,
}

impl Blockers {
    /// Adds from the queue what a server's records have left of these writes. Says whether records are
    /// pending too that an owner's changes must wait for, as of the same moment: who asks whether to wait
    /// must not miss one that changed from one to the other in between.
    ///
    /// # Errors
    /// What reading the queue reports.
    pub fn load(
        &mut self,
        extension: &Extension,
        server_name: &str,
        owner: Oid,
        depends_on: &[i64],
    ) -> Result<bool> {
        let queue = format!("{}.sync_queue", ident(&extension.schema));
        // Over the index of writes only: the others would lead through everything that waits, so the
        // server's name is disguised from them.
        let sql = format!(
            "SELECT m.mark, min(q.id), \
                min(COALESCE(q.waits_for, q.id)) \
             FROM {queue} q CROSS JOIN LATERAL unnest(q.blocks) AS m(mark) \
             JOIN unnest($2::int8[]) AS c(mark) \
               ON c.mark = m.mark \
             WHERE q.dst_server || '' = $1 \
               AND q.status <> 'pending' \
               AND q.blocks && \
                 ARRAY(SELECT unnest($2::int8[])) \
             GROUP BY m.mark \
             UNION ALL SELECT m.mark, - c.id, - c.id \
             FROM {copies} c CROSS JOIN LATERAL unnest(c.writes) AS m(mark) \
             WHERE c.dst_server = $1 \
               AND m.mark = \
                 ANY (ARRAY(SELECT unnest($2::int8[])))",
            copies = table_of_copies(extension)
        );
        let hashes = to_ids(depends_on);
        let [queue, floor, lost, owners] = lanes::TABLES;
        let tables = [queue, floor, lost, owners, copies::TABLE];
        let (pending, found) = View::look(extension, &tables, |view| {
            let pending = lanes::goes_before(view, server_name, owner)?;
            if context::is_serializable()
                && let Some(found) = walk(view, server_name, depends_on)?
            {
                return Ok((pending, found));
            }
            let rows = view.read(&sql, &[Some(server_name), Some(&hashes)])?;
            Ok((pending, spi::typed::<Blocking>(rows)?))
        })?;
        for (mark, id, root) in found {
            self.add(id, root, &[mark]);
        }
        Ok(pending)
    }

    /// A record leaves writes; `root` is the one marked failed that it is or waits for.
    pub fn add(&mut self, id: i64, root: i64, writes: &[i64]) {
        for mark in writes {
            let origin = self.writes.entry(*mark).or_insert(Origin { id, root });
            if id < origin.id {
                *origin = Origin { id, root };
            }
        }
    }

    /// the failed record that a change must wait for. Only records older than `id` count.
    pub fn find(&self, id: i64, writeset: &Writeset) -> Option<i64> {
        let found = writeset
            .depends_on
            .iter()
            .filter_map(|check| self.writes.get(check));
        found
            .filter(|origin| origin.id < id)
            .map(|origin| origin.root)
            .min()
    }

    /// Changes about to be queued that belong together: if they must wait, what for. They leave their
    /// writes then, which those queued after them meet.
    pub fn join(&mut self, writeset: &Writeset) -> Option<i64> {
        let root = self.find(i64::MAX, writeset)?;
        self.mark(root, writeset);
        Some(root)
    }

    /// A change about to be queued waits for this record, and leaves its writes.
    pub fn mark(&mut self, root: i64, writeset: &Writeset) {
        self.add(0, root, &writeset.writes);
    }

    /// The oldest record that others wait for.
    pub fn oldest(&self) -> Option<i64> {
        self.writes.values().map(|origin| origin.root).min()
    }

    /// Whether all there is to wait for are copies.
    pub fn are_copies(&self) -> bool {
        self.writes
            .values()
            .all(|origin| copies::is_copy(origin.root))
    }

    /// Whether there is nothing to wait for.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

/// A write that is to be waited for, as its hash; the oldest record that leaves it; and the oldest failed record
/// that those which leave it are, or wait for.
type Blocking = (i64, i64, i64);

/// Records that are walked over at most.
const WALKED: usize = 10_000;

/// What a server's records have left of these writes, in order, found without taking part in the conflicts of
/// SERIALIZABLE transactions, as [`View::look`] does: each of them would read here what others write. By the
/// index of servers, since only one of that kind can be walked so; `None` if there are too many for that.
fn walk(view: &View<'_>, server_name: &str, depends_on: &[i64]) -> Result<Option<Vec<Blocking>>> {
    let depends_on: HashSet<&i64> = depends_on.iter().collect();
    let mut blocking = HashMap::<i64, (i64, i64)>::new();
    let mut walked = 0;
    let mut take = |id: i64, root: i64, writes: &[i64]| {
        walked += 1;
        for write in writes.iter().filter(|write| depends_on.contains(write)) {
            let oldest = blocking.entry(*write).or_insert((id, root));
            *oldest = (oldest.0.min(id), oldest.1.min(root));
        }
        walked <= WALKED
    };
    let server = (columns::SERVER, Is::Text(server_name));
    let floor = view.int8(floor::TABLE, &[(1, Is::Text(server_name))], floor::CLEAR)?;
    let above = (columns::ID, Is::Int8Above(floor.unwrap_or(0)));
    for status in ["failed", "waiting"] {
        let keys = [server, (columns::STATUS, Is::Text(status)), above];
        view.each_row("sync_queue", &keys, Status::NotPending, |row| {
            let id = row.int8(columns::ID).unwrap_or_default();
            let root = row.int8(columns::WAITS_FOR).unwrap_or(id);
            Ok(take(
                id,
                root,
                &row.int8s(columns::BLOCKS).unwrap_or_default(),
            ))
        })?;
    }
    let of_server = copies::OF_SERVER;
    let keys = [(of_server.column, Is::Text(server_name))];
    view.each_row(of_server.table, &keys, of_server.status, |row| {
        let id = -row.int8(copies::ID).unwrap_or_default();
        Ok(take(id, id, &row.int8s(copies::WRITES).unwrap_or_default()))
    })?;
    let found = (blocking.into_iter()).map(|(write, (id, root))| (write, id, root));
    Ok((walked <= WALKED).then(|| found.collect()))
}

/// The table of copies under way, for a statement.
fn table_of_copies(extension: &Extension) -> String {
    format!("{}.{}", ident(&extension.schema), copies::TABLE)
}

/// Whether any of a server's tables is being copied.
///
/// # Errors
/// What reading the table reports.
pub fn is_copying(extension: &Extension, server_name: &str) -> Result<bool> {
    let sql = format!(
        "SELECT 1 FROM {} WHERE dst_server = $1 LIMIT 1",
        table_of_copies(extension)
    );
    Ok(!spi::read(extension, &sql, &[Some(server_name)])?.is_empty())
}

/// Whether any of a server's records is marked failed or waits, or is to wait for a copy.
///
/// # Errors
/// What reading the queue reports.
pub fn exist(extension: &Extension, server_name: &str) -> Result<bool> {
    let schema = ident(&extension.schema);
    let sql = format!(
        "SELECT 1 FROM {schema}.sync_queue q WHERE q.dst_server = $1 \
         AND q.status <> 'pending' AND {} \
         UNION ALL SELECT 1 FROM {} WHERE dst_server = $1 LIMIT 1",
        floor::above_clear(&schema, "$1"),
        table_of_copies(extension)
    );
    Ok(!spi::read(extension, &sql, &[Some(server_name)])?.is_empty())
}

/// Marks a record failed. Says whether for the first time. `passes`: what it failed over may pass by itself, so
/// it is tried again, after a while that doubles with each time.
///
/// # Errors
/// What writing the queue reports.
pub fn set_failed(
    extension: &Extension,
    id: i64,
    writes: &[i64],
    reason: &Error,
    passes: bool,
) -> Result<bool> {
    let sql = format!(
        "UPDATE {}.sync_queue SET status = 'failed', waits_for = NULL, \
            blocks = $2::int8[], sqlstate = $3, message = $4, constraint_name = $5, \
            attempts = attempts + 1, \
            last_attempt_at = clock_timestamp(), \
            next_attempt_at = CASE WHEN $6::bool THEN clock_timestamp() \
              + LEAST($7::interval * \
                power(2, LEAST(times_failed, 20)), $8::interval) END, \
            times_failed = times_failed + 1 \
         WHERE id = $1::int8 RETURNING times_failed",
        ident(&extension.schema)
    );
    let id = id.to_string();
    let writes = to_ids(writes);
    let state = reason.sqlstate().to_string();
    let message = displayable(&reason.in_full());
    let millis = |time: Duration| format!("{} milliseconds", time.as_millis());
    let first = millis(guc::retry_interval());
    let longest = millis(guc::max_retry_interval());
    let passes = if passes { "true" } else { "false" };
    let constraint = reason.constraint().map(displayable);
    let args = [
        Some(&*id),
        Some(&*writes),
        Some(&*state),
        Some(&*message),
        constraint.as_deref(),
        Some(passes),
        Some(&*first),
        Some(&*longest),
    ];
    let row = spi::write(extension, &sql, &args)?.into_iter().next();
    Ok(row.is_some_and(|row| row == [Some("1".to_owned())]))
}

/// Counts a try of a pending record that came to nothing for no reason that is known to be the record's. Says
/// whether it is to be tried again: the first such try, and where no commit has tried it before, the second.
///
/// # Errors
/// What writing the queue reports.
pub fn note_try(extension: &Extension, id: i64) -> Result<bool> {
    let sql = format!(
        "UPDATE {}.sync_queue SET attempts = attempts + 1, last_attempt_at = clock_timestamp() \
         WHERE id = $1::int8 AND attempts < 2 RETURNING id",
        ident(&extension.schema)
    );
    Ok(!spi::write(extension, &sql, &[Some(&id.to_string())])?.is_empty())
}

/// Of these records it is not asked any more whether the server has them.
///
/// # Errors
/// What writing the queue reports.
pub fn forget_doubt(extension: &Extension, ids: &[i64]) -> Result<()> {
    let sql = format!(
        "UPDATE {}.sync_queue SET sqlstate = $2 \
         WHERE id = ANY (ARRAY(SELECT unnest($1::int8[]))) AND sqlstate = $3",
        ident(&extension.schema)
    );
    let ids = to_ids(ids);
    let lost = SqlState::CONNECTION_FAILURE.to_string();
    let doubt = SqlState::RESOLUTION_UNKNOWN.to_string();
    spi::write(
        extension,
        &sql,
        &[&ids, &lost, &doubt].map(|arg| Some(&**arg)),
    )
    .map(drop)
}

/// Whether a connection was lost over another of an owner's records for this target.
///
/// # Errors
/// What reading the queue reports.
pub fn are_lost_over(
    extension: &Extension,
    server_name: &str,
    owner: Oid,
    but: i64,
    target: &Relation,
) -> Result<bool> {
    let schema = ident(&extension.schema);
    let sql = format!(
        "SELECT 1 FROM {schema}.sync_queue q JOIN {schema}.sync_route r ON r.id = q.route_id \
         WHERE q.dst_server = $1 AND q.owner::oid = $2::oid AND q.status = 'failed' \
           AND q.next_attempt_at IS NOT NULL AND q.sqlstate = $3 AND q.id <> $4::int8 \
           AND (r.body::json ->> 'target') = $5 LIMIT 1"
    );
    let owner = owner.to_u32().to_string();
    let state = SqlState::CONNECTION_FAILURE.to_string();
    let but = but.to_string();
    let target = to_json(target)?;
    let args = [server_name, &owner, &state, &but, &target].map(Some);
    Ok(!spi::read(extension, &sql, &args)?.is_empty())
}

/// An owner's failed records for a server over something that may pass by itself, and whose time
/// has come to be tried again, or `all` of them.
///
/// # Errors
/// What reading the queue reports.
pub fn due(
    extension: &Extension,
    server_name: &str,
    owner: Oid,
    all: bool,
    limit: usize,
) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT id FROM {}.sync_queue WHERE dst_server = $1 \
           AND owner::oid = $2::oid \
           AND status = 'failed' \
           AND next_attempt_at <= CASE WHEN $4::bool \
             THEN 'infinity' ELSE clock_timestamp() END \
         ORDER BY next_attempt_at, id LIMIT $3::int8",
        ident(&extension.schema)
    );
    let owner = owner.to_u32().to_string();
    let limit = limit.to_string();
    let all = if all { "true" } else { "false" };
    spi::select(
        extension,
        &sql,
        &[server_name, &owner, &limit, all].map(Some),
    )
}

/// How long it is until a failed record is tried again.
///
/// # Errors
/// What reading the queue reports.
pub fn until_next_attempt(extension: &Extension, server_name: &str) -> Result<Option<Duration>> {
    let sql = format!(
        "SELECT ceil(extract(epoch FROM min(next_attempt_at) \
             - clock_timestamp()) \
             * 1000)::int8 \
         FROM {}.sync_queue WHERE dst_server = $1 \
           AND status = 'failed' AND next_attempt_at IS NOT NULL",
        ident(&extension.schema)
    );
    let millis: Option<i64> = spi::select_one(extension, &sql, &[Some(server_name)])?;
    Ok(millis.map(|millis| Duration::from_millis(millis.max(0) as u64)))
}

/// A record that waits: its id, the record it waits for, the writes it leaves.
pub struct Waiting {
    pub id: i64,
    pub root: i64,
    pub writes: Vec<i64>,
}

/// Makes records wait.
///
/// # Errors
/// What writing the queue reports.
pub fn set_waiting(extension: &Extension, records: &[Waiting]) -> Result<()> {
    let sql = format!(
        "UPDATE {}.sync_queue q SET status = 'waiting', waits_for = v.root::int8, \
            blocks = v.writes::int8[] \
         FROM ROWS FROM (unnest($1::text[]), \
            unnest($2::text[]), unnest($3::text[])) \
            AS v(id, root, writes) \
         WHERE q.id = v.id::int8",
        ident(&extension.schema)
    );
    for chunk in records.chunks(CHUNK_ROWS) {
        let mut columns: [ArrayLiteral; 3] = Default::default();
        for one in chunk {
            columns[0].push(Some(&one.id.to_string()));
            columns[1].push(Some(&one.root.to_string()));
            columns[2].push(Some(&to_ids(&one.writes)));
        }
        let columns = columns.map(ArrayLiteral::into_text);
        spi::write(
            extension,
            &sql,
            &[Some(&*columns[0]), Some(&*columns[1]), Some(&*columns[2])],
        )?;
    }
    Ok(())
}

/// Makes what waits for nothing any more pending, and says whether there was any. What it blocked is kept, which
/// tells that newer records may have gone past it. Under the server's drain lock only: a drain under way would
/// pass over it, and take what depends on it.
///
/// # Errors
/// What writing the queue reports.
pub fn release(extension: &Extension, server_name: &str) -> Result<bool> {
    let schema = ident(&extension.schema);
    let queue = format!("{schema}.sync_queue");
    let sql = format!(
        "WITH u AS (UPDATE {queue} q SET status = 'pending', waits_for = NULL \
           WHERE q.dst_server = $1 \
             AND q.status = 'waiting' AND {} \
             AND q.waits_for = ANY (ARRAY({})) RETURNING q.id) \
         SELECT min(id) FROM u",
        floor::above_clear(&schema, "$1"),
        waiting::released(&queue, "$1")
    );
    let released = spi::write(extension, &sql, &[Some(server_name)])?;
    let first = spi::typed::<Option<i64>>(released)?.pop().flatten();
    let Some(first) = first else {
        return Ok(false);
    };
    floor::lower(extension, server_name, first)?;
    Ok(true)
}

/// An owner's failed records for a server until a person does something, those first that were
/// tried longest ago, at most so many. Not those that may be there already, which must not be tried unasked.
///
/// # Errors
/// What reading the queue reports.
pub fn oldest(
    extension: &Extension,
    server_name: &str,
    owner: Oid,
    limit: usize,
) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT id FROM {}.sync_queue WHERE dst_server = $1 \
         AND status = 'failed' \
         AND owner::oid = $2::oid \
         AND next_attempt_at IS NULL \
         AND COALESCE(sqlstate <> '{}', true) \
         ORDER BY last_attempt_at NULLS FIRST, id LIMIT $3::int8",
        ident(&extension.schema),
        SqlState::COMPLETION_UNKNOWN
    );
    let owner = owner.to_u32().to_string();
    let limit = limit.to_string();
    spi::select(
        extension,
        &sql,
        &[Some(server_name), Some(&owner), Some(&limit)],
    )
}

/// The server of a failed record.
///
/// # Errors
/// What reading the queue reports.
pub fn server_of(extension: &Extension, id: i64) -> Result<Option<String>> {
    let sql = format!(
        "SELECT dst_server FROM {}.sync_queue WHERE id = $1::int8 \
         AND status = 'failed'",
        ident(&extension.schema)
    );
    spi::select_first(extension, &sql, &[Some(&id.to_string())])
}

/// Makes failed records pending again, and what their transactions have waiting behind them:
/// they may be units. Nothing else that waits. Under the server's drain lock only, as [`release`].
///
/// # Errors
/// What writing the queue reports.
pub fn retry(extension: &Extension, server_name: &str, ids: &[String]) -> Result<()> {
    change_status(
        extension,
        server_name,
        ids,
        ["failed", "pending"],
        ["waiting", "pending"],
    )?;
    // What waited for them is newer.
    match oldest_of(ids) {
        Some(first) => floor::lower(extension, server_name, first),
        None => Ok(()),
    }
}

/// Marks failed again those of them that have not been tried, and lets what waited behind those that are
/// still there wait again.
///
/// # Errors
/// What writing the queue reports.
pub fn give_back(extension: &Extension, server_name: &str, ids: &[String]) -> Result<()> {
    change_status(
        extension,
        server_name,
        ids,
        ["pending", "failed"],
        ["pending", "waiting"],
    )?;
    // What waits for them is newer.
    match oldest_of(ids) {
        Some(first) => floor::lower_clear(extension, server_name, first),
        None => Ok(()),
    }
}

fn oldest_of(ids: &[String]) -> Option<i64> {
    ids.iter().filter_map(|id| id.parse().ok()).min()
}

/// Gives records another status, and those of the same transactions that wait for them; also for those
/// that have it already.
fn change_status(
    extension: &Extension,
    server_name: &str,
    ids: &[String],
    own: [&str; 2],
    others: [&str; 2],
) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let mut array = ArrayLiteral::default();
    ids.iter().for_each(|id| array.push(Some(id)));
    let queue = format!("{}.sync_queue", ident(&extension.schema));
    let these = "dst_server = $1 AND id = \
        ANY (ARRAY(SELECT unnest($2::int8[])))";
    let sql = format!(
        "WITH turned AS (UPDATE {queue} SET status = $4 \
             WHERE {these} AND status = $3 RETURNING id, xact), \
           o AS MATERIALIZED (SELECT id, xact FROM turned UNION ALL SELECT id, xact FROM {queue} \
             WHERE {these} AND status = $4) \
         UPDATE {queue} q SET status = $6 FROM o \
         WHERE q.dst_server = $1 \
           AND q.status = $5 AND q.waits_for = o.id \
           AND q.xact = o.xact"
    );
    let array = array.into_text();
    let args = [server_name, &array, own[0], own[1], others[0], others[1]].map(Some);
    spi::write(extension, &sql, &args)?;
    Ok(())
}
