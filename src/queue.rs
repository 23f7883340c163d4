//! The queue's rows: what could not be delivered, and the backends of lost connections.
//!
//! Records are data (a route and a change as JSON), never SQL text. Their ids come from a sequence
//! at pre-commit, while the transaction still holds its row locks, so of two changes that depend on
//! each other the older has the smaller id.
//!
//! A record is `pending`, `failed` (set aside: it can never apply as things are) or `waiting` (behind one
//! that is set aside, see [`aside`]).

pub mod aside;
pub mod claim;
pub mod footprint;
pub mod state;

use self::aside::Blockers;
use self::footprint::Footprint;
use crate::capture::change_set::ChangeSet;
use crate::change::{Change, Route};
use crate::delivery::feed::Source;
use crate::error::{Error, Result};
use crate::pg::context;
use crate::pg::spi::{self, Home, required};
use crate::sql::quote::{ArrayLiteral, ident};
use crate::{stats, transaction};
use std::rc::Rc;

/// Records handed to the database in one statement.
const CHUNK_ROWS: usize = 5_000;
/// Bytes of changes in one statement.
const CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// What the queue has for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing: changes may be sent.
    Free,
    /// Only records that are set aside, and what waits behind them: what does not depend on them may
    /// be sent.
    Aside,
    /// Records that are to be sent first, or a lost backend that may still act.
    Pending,
}

/// What the queue has for a server.
///
/// # Errors
/// What reading the queue reports.
pub fn standing(home: &Home, server_name: &str) -> Result<Standing> {
    let schema = ident(&home.schema);
    let rows = spi::read(
        home,
        &format!(
            "SELECT CASE WHEN EXISTS (SELECT FROM {schema}.sync_queue \
                  WHERE dst_server OPERATOR(pg_catalog.=) $1 \
                    AND status OPERATOR(pg_catalog.=) 'pending') \
                OR EXISTS (SELECT FROM {schema}.sync_lost_session \
                  WHERE dst_server OPERATOR(pg_catalog.=) $1) THEN 'pending' \
              WHEN EXISTS (SELECT FROM {schema}.sync_queue \
                  WHERE dst_server OPERATOR(pg_catalog.=) $1 \
                    AND status OPERATOR(pg_catalog.<>) 'pending') THEN 'aside' \
              ELSE 'free' END"
        ),
        &[Some(server_name)],
    )?;
    let mut row = rows.into_iter().next().unwrap_or_default();
    Ok(match required(&mut row, 0)?.as_str() {
        "free" => Standing::Free,
        "aside" => Standing::Aside,
        _ => Standing::Pending,
    })
}

/// What a change set must wait for.
pub enum Way {
    /// Nothing: it may be sent.
    Free,
    /// Records that are to be sent first.
    Pending,
    /// Records that are set aside, or that wait themselves.
    Blocked(Blockers),
}

/// Whether a change set may pass the records of its server.
///
/// # Errors
/// What reading the queue or the change set reports.
pub fn way(set: &ChangeSet) -> Result<Way> {
    match standing(&set.home, &set.account.server_name)? {
        Standing::Free => return Ok(Way::Free),
        Standing::Pending => return Ok(Way::Pending),
        Standing::Aside => {}
    }
    let mut checks = Vec::new();
    let mut changes = set.changes();
    while changes.next(&mut |route, change| {
        checks.extend(Footprint::of(route, change).checks);
    })? {}
    checks.sort_unstable();
    checks.dedup();
    let mut blockers = Blockers::default();
    let pending = blockers.load(&set.home, &set.account.server_name, &checks)?;
    Ok(match (pending, blockers.is_empty()) {
        (true, _) => Way::Pending,
        (false, true) => Way::Free,
        (false, false) => Way::Blocked(blockers),
    })
}

/// Queues a change set, whole rows. `reason` is why it was not delivered, if that was tried. What
/// depends on `behind` waits there.
///
/// # Errors
/// What writing the queue reports.
pub fn enqueue(set: &ChangeSet, reason: Option<&Error>, behind: Option<Blockers>) -> Result<()> {
    let _writable = context::Writable::new();
    stats::queued(set.account.server, set.len() as u64);
    transaction::wake_worker();
    let routes = RouteIds { home: &set.home, known: Vec::new() };
    let mut writer = Writer { set, reason, routes, chunk: Chunk::default() };
    let mut changes = set.changes();
    let Some(mut behind) = behind else {
        while {
            let mut written = Ok(());
            let more = changes.next(&mut |route, change| {
                written = writer.write(route, change, None);
            })?;
            written?;
            more
        } {}
        return writer.flush();
    };
    // What belongs together waits together.
    let mut run: Vec<(Rc<Route>, Change<String>)> = Vec::new();
    loop {
        let mut next = None;
        let more = changes.next(&mut |route, change| {
            next = Some((route.clone(), change.owned()));
        })?;
        let continues = match (run.last(), &next) {
            (Some(last), Some(next)) => claim::run_on((&last.0, &last.1), (&next.0, &next.1)),
            _ => run.is_empty(),
        };
        if !continues {
            writer.write_run(&std::mem::take(&mut run), &mut behind)?;
        }
        run.extend(next);
        if !more {
            writer.write_run(&run, &mut behind)?;
            return writer.flush();
        }
    }
}

/// Writes a change set's records.
struct Writer<'s> {
    set: &'s ChangeSet,
    reason: Option<&'s Error>,
    routes: RouteIds<'s>,
    chunk: Chunk,
}

impl Writer<'_> {
    /// `behind`: the record it waits for, and its marks.
    fn write(
        &mut self,
        route: &Rc<Route>,
        change: &Change<&str>,
        behind: Option<(i64, Vec<i64>)>,
    ) -> Result<()> {
        self.chunk.push(self.routes.id_of(route)?, route, change, behind)?;
        match self.chunk.rows >= CHUNK_ROWS || self.chunk.change.len() >= CHUNK_BYTES {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// A run of changes that belong together, or may.
    fn write_run(
        &mut self,
        run: &[(Rc<Route>, Change<String>)],
        behind: &mut Blockers,
    ) -> Result<()> {
        let unit = run.iter().any(|(route, change)| claim::makes_unit(route, change));
        let mut whole = Footprint::default();
        if unit {
            run.iter().for_each(|(route, change)| whole.join(Footprint::of(route, change)));
        }
        let root = if unit { behind.join(&whole) } else { None };
        for (route, change) in run {
            let footprint = Footprint::of(route, change);
            let root = if unit { root } else { behind.join(&footprint) };
            self.write(route, &change.borrowed(), root.map(|root| (root, footprint.marks)))?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        std::mem::take(&mut self.chunk).write(self.set, self.reason)
    }
}

/// Columns of records to insert.
#[derive(Default)]
struct Chunk {
    rows: usize,
    route: ArrayLiteral,
    schema: ArrayLiteral,
    table: ArrayLiteral,
    op: ArrayLiteral,
    change: ArrayLiteral,
    /// Of a change that waits: the record that it waits for, and its marks. Else empty, and not NULL,
    /// which `array_nulls` may forbid.
    waits_for: ArrayLiteral,
    blocks: ArrayLiteral,
}

impl Chunk {
    fn push(
        &mut self,
        route_id: &str,
        route: &Route,
        change: &Change<&str>,
        behind: Option<(i64, Vec<i64>)>,
    ) -> Result<()> {
        self.rows += 1;
        self.route.push(Some(route_id));
        self.schema.push(Some(&route.source.schema));
        self.table.push(Some(&route.source.table));
        self.op.push(Some(change.op.keyword()));
        let whole = Change { unchanged: Vec::new(), ..change.clone() };
        self.change.push(Some(&to_json(&whole)?));
        let behind = behind.map(|(root, marks)| (root.to_string(), to_ids(&marks)));
        let (root, marks) = behind.unwrap_or_default();
        self.waits_for.push(Some(&root));
        self.blocks.push(Some(&marks));
        Ok(())
    }

    fn write(self, set: &ChangeSet, reason: Option<&Error>) -> Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        let home = &set.home;
        let sql = format!(
            "INSERT INTO {}.sync_queue (dst_server, owner, route_id, nsp_name, table_name, op, \
                change, status, waits_for, blocks, sqlstate, message, constraint_name, attempts, \
                last_attempt_at) \
             SELECT $1, $2::pg_catalog.oid, v.route::pg_catalog.int8, v.nsp, v.tab, v.op, \
                v.change::pg_catalog.json, \
                CASE v.waits_for WHEN '' THEN 'pending' ELSE 'waiting' END, \
                NULLIF(v.waits_for, '')::pg_catalog.int8, \
                NULLIF(v.blocks, '')::pg_catalog.int8[], $3, $4, $5, \
                CASE WHEN $3 IS NULL THEN 0 ELSE 1 END, \
                CASE WHEN $3 IS NULL THEN NULL ELSE pg_catalog.clock_timestamp() END \
             FROM ROWS FROM (pg_catalog.unnest($6::pg_catalog.text[]), \
                pg_catalog.unnest($7::pg_catalog.text[]), pg_catalog.unnest($8::pg_catalog.text[]), \
                pg_catalog.unnest($9::pg_catalog.text[]), \
                pg_catalog.unnest($10::pg_catalog.text[]), \
                pg_catalog.unnest($11::pg_catalog.text[]), \
                pg_catalog.unnest($12::pg_catalog.text[])) \
                AS v(route, nsp, tab, op, change, waits_for, blocks)",
            ident(&home.schema)
        );
        let owner = set.account.owner.to_u32().to_string();
        let state = reason.map(|e| e.sqlstate().to_string());
        let message = reason.map(Error::one_line);
        spi::write(
            home,
            &sql,
            &[
                Some(&set.account.server_name),
                Some(&owner),
                state.as_deref(),
                message.as_deref(),
                reason.and_then(Error::constraint),
                Some(&self.route.into_text()),
                Some(&self.schema.into_text()),
                Some(&self.table.into_text()),
                Some(&self.op.into_text()),
                Some(&self.change.into_text()),
                Some(&self.waits_for.into_text()),
                Some(&self.blocks.into_text()),
            ],
        )?;
        Ok(())
    }
}

/// Ids of routes in `sync_route`, each looked up or inserted once.
struct RouteIds<'h> {
    home: &'h Home,
    known: Vec<(Rc<Route>, String)>,
}

impl RouteIds<'_> {
    fn id_of(&mut self, route: &Rc<Route>) -> Result<&str> {
        let known = self.known.iter().position(|(r, _)| Rc::ptr_eq(r, route));
        let at = match known {
            Some(at) => at,
            None => {
                let id = self.find_or_insert(route)?;
                self.known.push((route.clone(), id));
                self.known.len() - 1
            }
        };
        Ok(&self.known[at].1)
    }

    /// Routes are never changed or removed, so one that is visible stays valid. Two transactions
    /// that insert the same one at once give it two ids, which does no harm.
    fn find_or_insert(&self, route: &Route) -> Result<String> {
        let body = to_json(route)?;
        let table = format!("{}.sync_route", ident(&self.home.schema));
        let find = format!(
            "SELECT id FROM {table} WHERE pg_catalog.md5(body) OPERATOR(pg_catalog.=) \
             pg_catalog.md5($1) AND body OPERATOR(pg_catalog.=) $1 ORDER BY id LIMIT 1"
        );
        let insert = format!("INSERT INTO {table} (body) VALUES ($1) RETURNING id");
        let found = spi::read(self.home, &find, &[Some(&body)])?.into_iter().next();
        let row = match found {
            Some(row) => Some(row),
            None => spi::write(self.home, &insert, &[Some(&body)])?.into_iter().next(),
        };
        required(&mut row.unwrap_or_default(), 0)
    }
}

/// Remembers the backend of a connection lost in doubt, until a drain has seen it gone.
///
/// # Errors
/// What writing the table reports.
pub fn remember_lost(set: &ChangeSet, backend_pid: i32) -> Result<()> {
    let _writable = context::Writable::new();
    let sql = format!(
        "INSERT INTO {}.sync_lost_session (dst_server, owner, backend_pid) \
         VALUES ($1, $2::pg_catalog.oid, $3::pg_catalog.int4)",
        ident(&set.home.schema)
    );
    let owner = set.account.owner.to_u32().to_string();
    let pid = backend_pid.to_string();
    spi::write(&set.home, &sql, &[Some(&set.account.server_name), Some(&owner), Some(&pid)])?;
    Ok(())
}

/// The owner of a server's oldest record that can be sent, as text. Locks nothing.
///
/// # Errors
/// What reading the queue reports.
pub fn oldest_owner(home: &Home, server_name: &str) -> Result<Option<String>> {
    let queue = format!("{}.sync_queue", ident(&home.schema));
    let sql = format!(
        "SELECT owner FROM ((SELECT q.owner::pg_catalog.oid, q.id FROM {queue} q \
              WHERE q.dst_server OPERATOR(pg_catalog.=) $1 \
                AND q.status OPERATOR(pg_catalog.=) 'pending' ORDER BY q.id LIMIT 1) \
           UNION ALL (SELECT q.owner::pg_catalog.oid, q.id FROM {queue} q \
              WHERE q.dst_server OPERATOR(pg_catalog.=) $1 \
                AND q.status OPERATOR(pg_catalog.=) 'waiting' \
                AND q.waits_for OPERATOR(pg_catalog.=) ANY (ARRAY({})) \
              ORDER BY q.id LIMIT 1)) AS s(owner, id) ORDER BY id LIMIT 1",
        aside::released(&queue, "$1")
    );
    let row = spi::read(home, &sql, &[Some(server_name)])?.into_iter().next();
    Ok(row.and_then(|mut row| row.pop()).flatten())
}

/// About how many records are pending for a server: the span of their ids, 0 only if there are none.
///
/// # Errors
/// What reading the queue reports.
pub fn backlog(home: &Home, server_name: &str) -> Result<i64> {
    let pending = format!(
        "FROM {}.sync_queue WHERE dst_server OPERATOR(pg_catalog.=) $1 \
         AND status OPERATOR(pg_catalog.=) 'pending'",
        ident(&home.schema)
    );
    let sql = format!(
        "SELECT COALESCE((SELECT id {pending} ORDER BY id DESC LIMIT 1) OPERATOR(pg_catalog.-) \
           (SELECT id {pending} ORDER BY id LIMIT 1) OPERATOR(pg_catalog.+) 1, 0)"
    );
    let row = spi::read(home, &sql, &[Some(server_name)])?.into_iter().next();
    let count = required(&mut row.unwrap_or_default(), 0)?;
    count.parse().map_err(|_| Error::internal("malformed number"))
}

/// Whether any record names this server.
///
/// # Errors
/// What reading the queue reports.
pub fn knows(home: &Home, server_name: &str) -> Result<bool> {
    Ok(standing(home, server_name)? != Standing::Free)
}

/// Removes delivered records.
///
/// # Errors
/// What writing the queue reports.
pub fn remove(home: &Home, ids: &[i64]) -> Result<()> {
    for chunk in ids.chunks(CHUNK_ROWS) {
        let sql = format!(
            "DELETE FROM {}.sync_queue WHERE id OPERATOR(pg_catalog.=) \
             ANY (ARRAY(SELECT pg_catalog.unnest($1::pg_catalog.int8[])))",
            ident(&home.schema)
        );
        spi::write(home, &sql, &[Some(&to_ids(chunk))])?;
    }
    Ok(())
}

/// Servers with anything to do: pending records, records that need not wait any more, lost backends;
/// and, if asked for, records that are set aside.
///
/// # Errors
/// What reading the queue reports.
pub fn servers(home: &Home, with_failed: bool) -> Result<Vec<String>> {
    let queue = format!("{}.sync_queue", ident(&home.schema));
    // Hops over each index from name to name: the queue may be long, servers are few.
    let hops = |name: &str, condition: &str| {
        format!(
            "{name}(server) AS (SELECT pg_catalog.min(dst_server) FROM {queue} \
                WHERE status OPERATOR(pg_catalog.{condition}) 'pending' \
              UNION ALL SELECT (SELECT pg_catalog.min(q.dst_server) FROM {queue} q \
                WHERE q.status OPERATOR(pg_catalog.{condition}) 'pending' \
                  AND q.dst_server OPERATOR(pg_catalog.>) {name}.server) \
              FROM {name} WHERE {name}.server IS NOT NULL)"
        )
    };
    let sql = format!(
        "WITH RECURSIVE {}, {} \
         SELECT server FROM pending WHERE server IS NOT NULL \
         UNION SELECT server FROM aside WHERE server IS NOT NULL AND ($1::pg_catalog.bool \
           OR EXISTS ({})) \
         UNION SELECT dst_server FROM {}.sync_lost_session ORDER BY 1",
        hops("pending", "="),
        hops("aside", "<>"),
        aside::released(&queue, "aside.server"),
        ident(&home.schema)
    );
    let with_failed = if with_failed { "true" } else { "false" };
    spi::read(home, &sql, &[Some(with_failed)])?
        .into_iter()
        .map(|mut row| required(&mut row, 0))
        .collect()
}

/// A lost backend.
pub struct Lost {
    pub owner: String,
    pub backend_pid: i32,
}

/// The lost backends of a server.
///
/// # Errors
/// What reading the table reports.
pub fn lost(home: &Home, server_name: &str) -> Result<Vec<Lost>> {
    let sql = format!(
        "SELECT owner::pg_catalog.oid, backend_pid FROM {}.sync_lost_session \
         WHERE dst_server OPERATOR(pg_catalog.=) $1 ORDER BY lost_at",
        ident(&home.schema)
    );
    spi::read(home, &sql, &[Some(server_name)])?
        .into_iter()
        .map(|mut row| {
            let backend_pid = required(&mut row, 1)?
                .parse()
                .map_err(|_| Error::internal("malformed backend_pid"))?;
            Ok(Lost { owner: required(&mut row, 0)?, backend_pid })
        })
        .collect()
}

/// Forgets a lost backend that is gone.
///
/// # Errors
/// What writing the table reports.
pub fn forget_lost(home: &Home, server_name: &str, lost: &Lost) -> Result<()> {
    let sql = format!(
        "DELETE FROM {}.sync_lost_session WHERE dst_server OPERATOR(pg_catalog.=) $1 \
         AND owner OPERATOR(pg_catalog.=) $2::pg_catalog.oid \
         AND backend_pid OPERATOR(pg_catalog.=) $3::pg_catalog.int4",
        ident(&home.schema)
    );
    let pid = lost.backend_pid.to_string();
    spi::write(home, &sql, &[Some(server_name), Some(&lost.owner), Some(&pid)])?;
    Ok(())
}

/// A record's change as the SQL that people see.
///
/// # Errors
/// When the JSON is not that of a route and a change.
pub fn describe(route: &str, change: &str) -> Result<String> {
    let route: Rc<Route> = Rc::new(from_json(route)?);
    let change: Change<String> = from_json(change)?;
    Ok(crate::sql::literal::of_change(&route, &change))
}

/// Numbers as an array literal.
fn to_ids(ids: &[i64]) -> String {
    let mut array = ArrayLiteral::default();
    ids.iter().for_each(|id| array.push(Some(&id.to_string())));
    array.into_text()
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::internal(format!("could not write JSON: {e}")))
}

fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text)
        .map_err(|e| Error::internal(format!("could not read a queued change: {e}")))
}
