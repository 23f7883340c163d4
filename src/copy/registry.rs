//! The table `sync_copy`: which copies are under way and how far they are; and of the queue what waits for
//! them.

use super::plan::{Key, Plan};
use crate::change::{Change, Op, Relation, Route};
use crate::error::{Error, Result, SqlState};
use crate::guc;
use crate::pg::columns::{Columns as _, Json};
use crate::pg::snapshot::Snapshot;
use crate::pg::spi::{self, Extension};
use crate::pg::text::displayable;
use crate::pg::{Oid, sequence};
use crate::queue::{self, copies};
use crate::sql::quote::{ArrayLiteral, ident};
use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

/// What becomes of rows that the target has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// An error: there must be no rows.
    Error,
    /// The rows are removed.
    Truncate,
    /// The rows stay, or give way as the trigger's policy says.
    Merge,
}

impl Existing {
    /// From the word that users write.
    ///
    /// # Errors
    /// 22023.
    pub fn parse(word: &str) -> Result<Self> {
        Ok(match word {
            "error" => Self::Error,
            "truncate" => Self::Truncate,
            "merge" => Self::Merge,
            _ => {
                let message = format!("invalid value for \"existing\": \"{word}\"");
                return Err(Error::local(SqlState::INVALID_PARAMETER, message)
                    .with_hint("Use error, truncate or merge."));
            }
        })
    }

    fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Truncate => "truncate",
            Self::Merge => "merge",
        }
    }
}

/// A copy under way.
#[derive(Clone, Debug)]
pub struct Copy {
    pub id: i64,
    pub server: String,
    pub target: Relation,
    pub relation: Oid,
    pub existing: Existing,
    /// The target was emptied, or found empty.
    pub prepared: bool,
    /// The key of the last row that the target has; `None` before the first.
    pub position: Option<Key>,
    /// The target has all rows.
    pub complete: bool,
    /// The step that was about to be committed on the server: its transaction there, and what it has seen.
    pub step: Option<(String, String)>,
    pub state: String,
    pub attempts: i32,
}

/// What a step has brought to one table.
#[derive(Clone, Debug, Default)]
pub struct Brought {
    pub position: Option<Key>,
    pub complete: bool,
    /// The table was emptied there.
    pub emptied: bool,
    pub rows: i64,
    pub bytes: i64,
}

fn table(extension: &Extension) -> String {
    format!("{}.{}", ident(&extension.schema), copies::TABLE)
}

/// Registers a copy, or begins one anew that has failed, and gives its number.
///
/// # Errors
/// 55006 for a table that is being copied to that target; what writing the table reports.
pub fn register(extension: &Extension, plan: &Plan, existing: Existing) -> Result<i64> {
    let server = &plan.account().server_name;
    let route = &plan.route;
    let Relation {
        schema,
        table: name,
    } = &route.target;
    let sql = format!(
        "SELECT id, relation, state, prepared FROM {} WHERE dst_server = $1 \
           AND target_schema = $2 AND target_table = $3 \
         FOR UPDATE",
        table(extension)
    );
    let place = [server.as_str(), schema, name].map(Some);
    let relation = plan.table.oid.to_u32().to_string();
    let owner = plan.table.owner.to_u32().to_string();
    let found = spi::write(extension, &sql, &place)?.into_iter().next();
    if let Some(row) = found {
        let (number, of, state, prepared) = <(i64, String, String, bool)>::of_row(row)?;
        let id = number.to_string();
        if state != "failed" {
            let message = if of == relation {
                format!(
                    "table \"{}\" is being copied to server \"{server}\"",
                    plan.table.name.table
                )
            } else {
                format!(
                    "another table is being copied to \"{schema}.{name}\" of server \"{server}\""
                )
            };
            return Err(Error::local(SqlState::OBJECT_IN_USE, message)
                .with_hint("See sync_progress. Wait for its end, or end it with detach_sync()."));
        }
        // Rows without a key that it has brought would be there twice: it goes on where it stood.
        let goes_on =
            plan.is_keyless() && existing == Existing::Merge && prepared && of == relation;
        if goes_on {
            let sql = format!(
                "UPDATE {} SET state = 'pending', owner = $2::oid, attempts = 0, \
                   next_attempt_at = NULL, sqlstate = NULL, message = NULL, grp = id, \
                   registered_by = pg_current_xact_id() \
                 WHERE id = $1::int8",
                table(extension)
            );
            spi::write(extension, &sql, &[Some(&id), Some(&owner)])?;
            join_group(extension, &id)?;
            return Ok(number);
        }
        // What is there is what it has brought itself.
        let is_own = prepared && existing == Existing::Error;
        let existing = if is_own { Existing::Truncate } else { existing };
        let sql = format!(
            "UPDATE {} SET state = 'pending', existing = $2, relation = $3::oid, \
               owner = $4::oid, prepared = false, \"position\" = NULL, complete = false, \
               step_xact = NULL, rows_done = 0, bytes_done = 0, attempts = 0, \
               next_attempt_at = NULL, sqlstate = NULL, message = NULL, \
               started_at = clock_timestamp(), grp = id, \
               registered_by = pg_current_xact_id() \
             WHERE id = $1::int8",
            table(extension)
        );
        let args = [id.as_str(), existing.word(), &relation, &owner].map(Some);
        spi::write(extension, &sql, &args)?;
        join_group(extension, &id)?;
        return Ok(number);
    }
    let id = sequence::draw(extension, "sync_copy_id_seq", 1)?;
    let sql = format!(
        "INSERT INTO {} (id, dst_server, target_schema, target_table, writes, grp, relation, owner, \
            existing, rows_total) OVERRIDING SYSTEM VALUE \
         VALUES ($1::int8, $2, $3, $4, $5::int8[], $1::int8, \
            $6::oid, $7::oid, $8, (SELECT sum(GREATEST( \
              c.reltuples, 0::float4))::int8 \
            FROM pg_class c WHERE c.relkind = 'r' \
              AND c.oid = ANY (ARRAY({}))))",
        table(extension),
        tree("$6::oid")
    );
    let mut writes = ArrayLiteral::default();
    copies::writes(route)
        .iter()
        .for_each(|mark| writes.push(Some(&mark.to_string())));
    let number = id.to_string();
    let writes = writes.into_text();
    let args = [
        &number,
        server,
        schema,
        name,
        &writes,
        &relation,
        &owner,
        existing.word(),
    ];
    spi::write(extension, &sql, &args.map(Some))?;
    join_group(extension, &number)?;
    Ok(id)
}

/// A query for a table and its partitions.
fn tree(relation: &str) -> String {
    format!(
        "SELECT {relation} UNION SELECT p.relid::oid \
         FROM pg_partition_tree({relation}::regclass) p"
    )
}

/// Puts a copy into one group with those that this transaction has registered before and that foreign keys tie
/// to it.
fn join_group(extension: &Extension, id: &str) -> Result<()> {
    let copies = table(extension);
    let sql = format!(
        "WITH own AS (SELECT * FROM {copies} WHERE id = $1::int8), \
           tied AS (SELECT c.grp FROM {copies} c, own \
             WHERE c.registered_by = own.registered_by \
               AND c.dst_server = own.dst_server \
               AND c.owner = own.owner \
               AND (c.id = own.id OR EXISTS (SELECT FROM pg_constraint f \
                 WHERE f.contype = 'f' \
                   AND (f.conrelid = c.relation \
                     AND f.confrelid = own.relation \
                     OR f.conrelid = own.relation \
                     AND f.confrelid = c.relation)))) \
         UPDATE {copies} c SET grp = (SELECT min(t.grp) FROM tied t) \
          WHERE c.grp = ANY (ARRAY(SELECT t.grp FROM tied t))"
    );
    spi::write(extension, &sql, &[Some(id)])?;
    Ok(())
}

/// Ends the copies of a table to a server, and says whether there were any.
///
/// # Errors
/// What writing the tables reports.
pub fn cancel(extension: &Extension, relation: Oid, server: &str) -> Result<bool> {
    let sql = format!(
        "WITH deleted AS (DELETE FROM {} WHERE relation = $1::oid \
             AND dst_server = $2 RETURNING *) \
         INSERT INTO {}.sync_progress_log (id, relation, dst_server, state, rows_done, bytes_done, started_at) \
         SELECT id, relation, dst_server, 'cancelled', rows_done, bytes_done, started_at FROM deleted \
         RETURNING id",
        table(extension),
        ident(&extension.schema)
    );
    let relation = relation.to_u32().to_string();
    Ok(!spi::write(extension, &sql, &[Some(&relation), Some(server)])?.is_empty())
}

/// Groups of copies with something to do now, the oldest first; and how long it is until the next of the
/// others. Those to servers that are paused are not among them: whoever resumes a server wakes the worker.
///
/// # Errors
/// What reading the table reports.
pub fn due(extension: &Extension) -> Result<(Vec<i64>, Option<Duration>)> {
    let sql = format!(
        "SELECT grp, ceil(extract(epoch FROM max(next_attempt_at) \
            - clock_timestamp()) \
            * 1000)::int8 \
         FROM {} c WHERE NOT EXISTS (SELECT FROM {}.sync_pause h \
           WHERE h.dst_server = c.dst_server) \
         GROUP BY grp \
         HAVING bool_and(state <> 'failed') ORDER BY grp",
        table(extension),
        ident(&extension.schema)
    );
    let mut due = Vec::new();
    let mut wait = None;
    for (group, millis) in spi::select::<(i64, Option<i64>)>(extension, &sql, &[])? {
        match u64::try_from(millis.unwrap_or_default()) {
            Ok(millis @ 1..) => {
                let own = Duration::from_millis(millis);
                wait = Some(wait.map_or(own, |wait: Duration| wait.min(own)));
            }
            _ => due.push(group),
        }
    }
    Ok((due, wait))
}

/// The copies of a group, those first to whose rows others refer; locked, so that nobody ends them meanwhile.
///
/// # Errors
/// What reading the table reports.
pub fn group(extension: &Extension, group: i64) -> Result<Vec<Copy>> {
    let sql = format!(
        "SELECT id, dst_server, target_schema, target_table, relation, existing, prepared, \"position\", \
            complete, step_xact, step_snapshot, state, attempts \
         FROM {} WHERE grp = $1::int8 ORDER BY id FOR UPDATE",
        table(extension)
    );
    let rows = spi::write(extension, &sql, &[Some(&group.to_string())])?;
    let mut copies = spi::typed::<Columns>(rows)?
        .into_iter()
        .map(copy)
        .collect::<Result<Vec<_>>>()?;
    if copies.iter().any(|copy| copy.state == "failed") {
        return Ok(Vec::new());
    }
    if copies.len() > 1 {
        let refers = references(extension, &copies)?;
        let mut sorted: Vec<Copy> = Vec::new();
        while !copies.is_empty() {
            let is_free = |copy: &Copy| {
                let waits =
                    |of: &Copy| of.id != copy.id && refers.contains(&(copy.relation, of.relation));
                !copies.iter().any(waits)
            };
            // In a circle, the oldest.
            let at = copies.iter().position(is_free).unwrap_or(0);
            sorted.push(copies.remove(at));
        }
        copies = sorted;
    }
    Ok(copies)
}

fn references(extension: &Extension, copies: &[Copy]) -> Result<HashSet<(Oid, Oid)>> {
    let mut relations = ArrayLiteral::default();
    copies
        .iter()
        .for_each(|copy| relations.push(Some(&copy.relation.to_u32().to_string())));
    let sql = "SELECT conrelid, confrelid FROM pg_constraint \
         WHERE contype = 'f' \
           AND conrelid = ANY ($1::oid[]) \
           AND confrelid = ANY ($1::oid[])";
    let found: Vec<(Oid, Oid)> = spi::select(extension, sql, &[Some(&relations.into_text())])?;
    Ok(found.into_iter().collect())
}

/// The columns of a copy as [`group`] selects them.
type Columns = (
    i64,
    String,
    String,
    String,
    Oid,
    String,
    bool,
    Option<Json<Key>>,
    bool,
    Option<String>,
    Option<String>,
    String,
    i32,
);

fn copy(
    (
        id,
        server,
        schema,
        table,
        relation,
        existing,
        prepared,
        position,
        complete,
        transaction,
        snapshot,
        state,
        attempts,
    ): Columns,
) -> Result<Copy> {
    Ok(Copy {
        id,
        server,
        target: Relation { schema, table },
        relation,
        existing: Existing::parse(&existing)?,
        prepared,
        position: position.map(|Json(position)| position),
        complete,
        step: transaction.zip(snapshot),
        state,
        attempts,
    })
}

/// Notes how a group is doing.
///
/// # Errors
/// What writing the table reports.
pub fn set_state(extension: &Extension, group: i64, state: &str) -> Result<()> {
    let sql = format!(
        "UPDATE {} SET state = $2, sqlstate = NULL, message = NULL, next_attempt_at = NULL, attempts = 0 \
         WHERE grp = $1::int8",
        table(extension)
    );
    spi::write(extension, &sql, &[Some(&group.to_string()), Some(state)])?;
    Ok(())
}

/// The targets of a group have been prepared.
///
/// # Errors
/// What writing the table reports.
pub fn set_prepared(extension: &Extension, group: i64) -> Result<()> {
    let sql = format!(
        "UPDATE {} SET prepared = true, state = 'copying', sqlstate = NULL, message = NULL, \
           \"position\" = NULL, complete = false, step_xact = NULL, rows_done = 0, bytes_done = 0 \
         WHERE grp = $1::int8",
        table(extension)
    );
    spi::write(extension, &sql, &[Some(&group.to_string())])?;
    Ok(())
}

/// A group is to begin anew: nobody knows any more what became of a step.
///
/// # Errors
/// What writing the table reports.
pub fn begin_anew(extension: &Extension, group: i64) -> Result<()> {
    let sql = format!(
        "UPDATE {} SET prepared = false, step_xact = NULL, existing = CASE existing \
           WHEN 'error' THEN 'truncate' ELSE existing END \
         WHERE grp = $1::int8",
        table(extension)
    );
    spi::write(extension, &sql, &[Some(&group.to_string())])?;
    Ok(())
}

/// A step is about to be committed on the server.
///
/// # Errors
/// What writing the table reports.
pub fn note_step(
    extension: &Extension,
    step: (&str, &str),
    brought: &[(i64, Brought)],
) -> Result<()> {
    let sql = format!(
        "UPDATE {} SET step_xact = $2, step_snapshot = $3, step_position = $4, \
           step_complete = $5::bool, step_emptied = $6::bool, \
           step_rows = $7::int8, step_bytes = $8::int8 \
         WHERE id = $1::int8",
        table(extension)
    );
    for (id, one) in brought {
        let position = one.position.as_ref().map(serde_json::to_string).transpose();
        let position =
            position.map_err(|e| Error::internal(format!("could not write JSON: {e}")))?;
        let flag = |value: bool| if value { "true" } else { "false" };
        let id = id.to_string();
        let rows = one.rows.to_string();
        let bytes = one.bytes.to_string();
        let args = [
            Some(id.as_str()),
            Some(step.0),
            Some(step.1),
            position.as_deref(),
            Some(flag(one.complete)),
            Some(flag(one.emptied)),
            Some(&rows),
            Some(&bytes),
        ];
        spi::write(extension, &sql, &args)?;
    }
    Ok(())
}

/// The step that was about to be committed on the server was rolled back there.
///
/// # Errors
/// What writing the table reports.
pub fn forget_step(extension: &Extension, group: i64) -> Result<()> {
    let sql = format!(
        "UPDATE {} SET step_xact = NULL WHERE grp = $1::int8",
        table(extension)
    );
    spi::write(extension, &sql, &[Some(&group.to_string())])?;
    Ok(())
}

/// The step is committed on the server: it is where the group stands now, and the records that it has seen are
/// done with.
///
/// # Errors
/// What writing the tables reports.
pub fn settle_step(extension: &Extension, group: i64, plans: &[Plan], seen: &str) -> Result<()> {
    let sql = format!(
        "UPDATE {} SET \"position\" = step_position, complete = step_complete, step_xact = NULL, \
           rows_done = CASE WHEN step_emptied THEN 0 ELSE rows_done + step_rows END, \
           bytes_done = bytes_done + step_bytes, \
           existing = CASE WHEN step_emptied THEN 'truncate' ELSE existing END, \
           state = 'copying', attempts = 0, next_attempt_at = NULL, sqlstate = NULL, message = NULL \
         WHERE grp = $1::int8",
        table(extension)
    );
    spi::write(extension, &sql, &[Some(&group.to_string())])?;
    plans
        .iter()
        .try_for_each(|plan| forget_records(extension, plan, seen))
}

/// The condition that a record `q` of server `$1` is one of a copy's: its route is one of those whose numbers
/// are `$2`, and the snapshot `$3` has seen it. A transaction whose number is yet to come here is another
/// cluster's.
const OF_COPY: &str = "q.dst_server = $1 \
    AND q.route_id = ANY ($2::int8[]) \
    AND (pg_visible_in_snapshot(q.xact, (SELECT $3::pg_snapshot)) \
      OR q.xact >= \
         (SELECT pg_snapshot_xmax(pg_current_snapshot())))";

fn forget_records(extension: &Extension, plan: &Plan, seen: &str) -> Result<()> {
    let Some(routes) = routes(extension, plan)? else {
        return Ok(());
    };
    let sql = format!(
        "DELETE FROM {}.sync_queue q WHERE {OF_COPY}",
        ident(&extension.schema)
    );
    spi::write(
        extension,
        &sql,
        &[Some(&plan.account().server_name), Some(&routes), Some(seen)],
    )?;
    Ok(())
}

/// The numbers of the routes from the table, or a partition of it, to the target; none if there are none.
/// What was captured under a name that no other table has now is taken for the table's own.
fn routes(extension: &Extension, plan: &Plan) -> Result<Option<String>> {
    let sql = format!(
        "SELECT array_agg(r.id) FROM {}.sync_route r \
         WHERE (r.body::json ->> 'target') = $1 \
           AND NOT EXISTS (SELECT FROM pg_class c \
             JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname::text = \
                 (r.body::json #>> '{{source,schema}}') \
               AND c.relname::text = \
                 (r.body::json #>> '{{source,table}}') \
               AND c.oid <> ALL (ARRAY({})))",
        ident(&extension.schema),
        tree("$2::oid")
    );
    let target = serde_json::to_string(&plan.route.target)
        .map_err(|e| Error::internal(format!("could not write JSON: {e}")))?;
    let relation = plan.table.oid.to_u32().to_string();
    let routes =
        spi::select_first::<Option<String>>(extension, &sql, &[Some(&target), Some(&relation)])?;
    Ok(routes.flatten())
}

/// What has become of a copied table since the step before, as far as a moment has seen.
#[derive(Default)]
pub struct Dirty {
    /// Keys of rows that were written, before and after.
    pub keys: Vec<Key>,
    /// Under `newest`, where they bring what they count as, and of a table without a key: the changes themselves.
    pub changes: Vec<(Rc<Route>, Change<String>)>,
    /// The table was emptied.
    pub emptied: bool,
}

impl Dirty {
    /// Whether nothing has become of it.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.changes.is_empty() && !self.emptied
    }
}

/// Records read at once.
const CHUNK: usize = 5_000;

/// What the queue has of a copied table, as of a moment whose snapshot reads `seen`.
///
/// # Errors
/// What reading the queue reports; 55000 where the key was another one then.
pub fn dirty(extension: &Extension, moment: &Snapshot, plan: &Plan, seen: &str) -> Result<Dirty> {
    let mut dirty = Dirty::default();
    let Some(routes) = routes(extension, plan)? else {
        return Ok(dirty);
    };
    let sql = format!(
        "SELECT q.id, r.body, q.change FROM {schema}.sync_queue q \
         JOIN {schema}.sync_route r ON r.id = q.route_id \
         WHERE {OF_COPY} AND q.id > $4::int8 \
         ORDER BY q.id LIMIT {CHUNK}",
        schema = ident(&extension.schema)
    );
    let keeps_changes = plan.route.version().is_some() || plan.is_keyless();
    let mut after = "0".to_owned();
    let mut keys = HashSet::new();
    let mut bodies: Vec<(String, Rc<Route>)> = Vec::new();
    loop {
        let args = [&*plan.account().server_name, &routes, seen, &after].map(Some);
        let rows = spi::read_as_of(extension, moment, &sql, &args)?;
        let count = rows.len();
        for (id, body, change) in spi::typed::<(String, String, String)>(rows)? {
            after = id;
            let known = bodies
                .iter()
                .find(|(known, _)| *known == body)
                .map(|(_, r)| r.clone());
            let route = match known {
                Some(route) => route,
                None => {
                    let route = Rc::new(queue::stored::to_route(&body)?);
                    plan.check_key(&route)?;
                    bodies.push((body, route.clone()));
                    route
                }
            };
            let change = queue::stored::to_change(&route, &change)?;
            if change.op == Op::Truncate {
                dirty = Dirty {
                    emptied: true,
                    ..Dirty::default()
                };
                keys.clear();
                continue;
            }
            if keeps_changes {
                dirty.changes.push((route, change));
                continue;
            }
            for key in [change.old_key(&route), change.new_key(&route)] {
                if !key.is_empty() {
                    let owned = |value: &Option<&str>| value.map(str::to_owned);
                    keys.insert(plan.in_own_order(&route, key.iter().map(owned).collect()));
                }
            }
        }
        if count < CHUNK {
            dirty.keys = keys.into_iter().collect();
            return Ok(dirty);
        }
    }
}

/// A group has arrived: the records of these plans that the snapshot `seen` has seen are done with, and nothing waits
/// for it any more.
///
/// # Errors
/// What writing the tables reports.
pub fn finish(extension: &Extension, group: i64, plans: &[Plan], seen: &str) -> Result<()> {
    plans
        .iter()
        .try_for_each(|plan| forget_records(extension, plan, seen))?;
    let schema = ident(&extension.schema);
    let sql = format!(
        "WITH deleted AS (DELETE FROM {} WHERE grp = $1::int8 RETURNING *), \
           old AS (DELETE FROM {schema}.sync_progress_log WHERE ended_at < \
             (clock_timestamp() - '1 day'::interval)), \
           new AS (INSERT INTO {schema}.sync_progress_log \
             (id, relation, dst_server, state, rows_done, bytes_done, started_at) \
             SELECT id, relation, dst_server, 'done', rows_done, bytes_done, started_at FROM deleted \
             ON CONFLICT (id) DO UPDATE SET state = excluded.state, rows_done = excluded.rows_done, \
               bytes_done = excluded.bytes_done, started_at = excluded.started_at, sqlstate = NULL, \
               message = NULL, ended_at = clock_timestamp() RETURNING *) \
         SELECT {} FROM new n",
        table(extension),
        announce("n", "'done'")
    );
    spi::write(extension, &sql, &[Some(&group.to_string())])?;
    Ok(())
}

/// Tells who listens what became of copies.
fn announce(row: &str, state: &str) -> String {
    format!(
        "pg_notify('pg_rowsync', json_build_object('copy', {row}.id, \
           'relation', {row}.relation::regclass::text, 'server', {row}.dst_server, \
           'state', {state}, 'sqlstate', {row}.sqlstate, \
           'message', left({row}.message, 1000))::text)"
    )
}

/// An attempt has failed: the group is tried again after a while that doubles with each time, or, if `lasts`,
/// stays where it is until a person does something.
///
/// # Errors
/// What writing the table reports.
pub fn fail(extension: &Extension, group: i64, reason: &Error, lasts: bool) -> Result<()> {
    let sql = format!(
        "WITH c AS (UPDATE {} SET attempts = attempts + 1, sqlstate = $2, message = $3, \
             state = CASE WHEN $4::bool THEN 'failed' ELSE 'waiting' END, \
             next_attempt_at = CASE WHEN NOT $4::bool THEN clock_timestamp() \
               + LEAST($5::interval * \
                 power(2, LEAST(attempts, 20)), $6::interval) END \
           WHERE grp = $1::int8 RETURNING *) \
         SELECT CASE WHEN c.state = 'failed' THEN {} END FROM c",
        table(extension),
        announce("c", "'failed'")
    );
    let millis = |time: Duration| format!("{} milliseconds", time.as_millis());
    let first = millis(guc::retry_interval());
    let longest = millis(guc::max_retry_interval());
    let state = reason.sqlstate().to_string();
    let message = displayable(&reason.in_full());
    let lasts = if lasts { "true" } else { "false" };
    let group = group.to_string();
    let args = [&*group, &state, &message, lasts, &first, &longest].map(Some);
    spi::write(extension, &sql, &args)?;
    Ok(())
}

/// Whether rows may still come to the same server that are not this group's: other copies are under way, or the
/// queue has records that do not wait for this group.
///
/// # Errors
/// What reading the tables reports.
pub fn has_others(extension: &Extension, group: i64) -> Result<bool> {
    let sql = format!(
        "WITH own AS (SELECT c.id, c.dst_server FROM {copies} c \
            WHERE c.grp = $1::int8) \
         SELECT EXISTS (SELECT FROM {copies} o WHERE o.grp <> $1::int8 \
              AND o.state <> 'failed' \
              AND o.dst_server = ANY (ARRAY(SELECT own.dst_server FROM own))) \
           OR EXISTS (SELECT FROM {schema}.sync_queue q \
             WHERE q.dst_server = ANY (ARRAY(SELECT own.dst_server FROM own)) \
               AND COALESCE(q.waits_for, 0::int8) <> \
                 ALL (ARRAY(SELECT - own.id FROM own)))",
        copies = table(extension),
        schema = ident(&extension.schema)
    );
    spi::select_one(extension, &sql, &[Some(&group.to_string())])
}

/// Copies that wait because rows were missing to which theirs refer are due now.
///
/// # Errors
/// What writing the table reports.
pub fn encourage(extension: &Extension) -> Result<()> {
    let sql = format!(
        "UPDATE {copies} SET next_attempt_at = NULL, attempts = 0 WHERE id = ANY (ARRAY( \
           SELECT c.id FROM {copies} c WHERE c.state = 'waiting' \
             AND c.sqlstate = '23503' FOR UPDATE SKIP LOCKED))",
        copies = table(extension)
    );
    spi::write(extension, &sql, &[])?;
    Ok(())
}

/// The table of a copy is gone: so is the copy.
///
/// # Errors
/// What writing the tables reports.
pub fn drop_without_table(extension: &Extension, group: i64) -> Result<bool> {
    let sql = format!(
        "WITH deleted AS (DELETE FROM {} c WHERE c.grp = $1::int8 \
             AND NOT EXISTS (SELECT FROM pg_class r \
               WHERE r.oid = c.relation) RETURNING *) \
         INSERT INTO {}.sync_progress_log (id, relation, dst_server, state, rows_done, bytes_done, started_at, \
           sqlstate, message) \
         SELECT id, relation, dst_server, 'failed', rows_done, bytes_done, started_at, '42P01', \
           'the table was dropped' FROM deleted RETURNING id",
        table(extension),
        ident(&extension.schema)
    );
    Ok(!spi::write(extension, &sql, &[Some(&group.to_string())])?.is_empty())
}

/// Transactions that write one of the tables, as `pg_locks` names them, but for this one.
///
/// # Errors
/// What reading the locks reports.
pub fn writers(extension: &Extension, copies: &[Copy]) -> Result<HashSet<String>> {
    let sql = format!(
        "SELECT DISTINCT l.virtualtransaction FROM pg_locks l \
         WHERE l.locktype = 'relation' AND l.granted \
           AND l.pid IS DISTINCT FROM pg_backend_pid() \
           AND l.database = (SELECT d.oid FROM pg_database d \
             WHERE d.datname = current_database()) \
           AND l.mode = ANY (ARRAY['RowExclusiveLock', 'ShareRowExclusiveLock', \
             'ExclusiveLock', 'AccessExclusiveLock']) \
           AND l.relation = ANY (ARRAY({}))",
        tree("$1::oid")
    );
    let mut found = HashSet::new();
    for copy in copies {
        let relation = copy.relation.to_u32().to_string();
        found.extend(spi::select::<String>(extension, &sql, &[Some(&relation)])?);
    }
    Ok(found)
}
