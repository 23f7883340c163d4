//! The queue's rows: what could not be delivered, and the backends of lost connections.
//!
//! Records are data (a route and a change as JSON), never SQL text. Their ids come from a sequence
//! at pre-commit, while the transaction still holds its row locks, so of two changes that depend on
//! each other the older has the smaller id.

pub mod claim;

use self::claim::Unit;
use crate::capture::change_set::ChangeSet;
use crate::change::{Change, Route};
use crate::delivery::feed::Source;
use crate::error::{Error, Result};
use crate::pg::context;
use crate::pg::spi::{self, Home, required};
use crate::sql::quote::{ArrayLiteral, ident};
use std::rc::Rc;

/// Records handed to the database in one statement.
const CHUNK_ROWS: usize = 5_000;
/// Bytes of changes in one statement.
const CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// Whether changes for this server must wait: older ones do, or a lost backend may still act.
///
/// # Errors
/// What reading the queue reports.
pub fn is_pending(home: &Home, server_name: &str) -> Result<bool> {
    let schema = ident(&home.schema);
    let rows = spi::read(
        home,
        &format!(
            "SELECT EXISTS (SELECT FROM {schema}.sync_queue \
                WHERE dst_server OPERATOR(pg_catalog.=) $1) \
             OR EXISTS (SELECT FROM {schema}.sync_lost_session \
                WHERE dst_server OPERATOR(pg_catalog.=) $1)"
        ),
        &[Some(server_name)],
    )?;
    Ok(rows.first().and_then(|row| row.first()) == Some(&Some("t".to_owned())))
}

/// Queues a change set, whole rows. `reason` is why it was not delivered, if that was tried.
///
/// # Errors
/// What writing the queue reports.
pub fn enqueue(set: &ChangeSet, reason: Option<&Error>) -> Result<()> {
    let _writable = context::Writable::new();
    let mut routes = RouteIds { home: &set.home, known: Vec::new() };
    let mut chunk = Chunk::default();
    let mut changes = set.changes();
    loop {
        let mut pushed = Ok(());
        let more = changes.next(&mut |route, change| {
            pushed = routes.id_of(route).and_then(|id| chunk.push(id, route, change));
        })?;
        pushed?;
        if !more {
            crate::transaction::wake_worker();
            return chunk.write(set, reason);
        }
        if chunk.rows >= CHUNK_ROWS || chunk.change.len() >= CHUNK_BYTES {
            std::mem::take(&mut chunk).write(set, reason)?;
        }
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
}

impl Chunk {
    fn push(&mut self, route_id: &str, route: &Route, change: &Change<&str>) -> Result<()> {
        self.rows += 1;
        self.route.push(Some(route_id));
        self.schema.push(Some(&route.source.schema));
        self.table.push(Some(&route.source.table));
        self.op.push(Some(change.op.keyword()));
        let whole = Change { unchanged: Vec::new(), ..change.clone() };
        self.change.push(Some(&to_json(&whole)?));
        Ok(())
    }

    fn write(self, set: &ChangeSet, reason: Option<&Error>) -> Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        let home = &set.home;
        let sql = format!(
            "INSERT INTO {}.sync_queue (dst_server, owner, route_id, nsp_name, table_name, op, \
                change, sqlstate, message, attempts, last_attempt_at) \
             SELECT $1, $2::pg_catalog.oid, v.route::pg_catalog.int8, v.nsp, v.tab, v.op, \
                v.change::pg_catalog.json, $3, $4, \
                CASE WHEN $3 IS NULL THEN 0 ELSE 1 END, \
                CASE WHEN $3 IS NULL THEN NULL ELSE pg_catalog.clock_timestamp() END \
             FROM ROWS FROM (pg_catalog.unnest($5::pg_catalog.text[]), \
                pg_catalog.unnest($6::pg_catalog.text[]), pg_catalog.unnest($7::pg_catalog.text[]), \
                pg_catalog.unnest($8::pg_catalog.text[]), pg_catalog.unnest($9::pg_catalog.text[])) \
                AS v(route, nsp, tab, op, change)",
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
                Some(&self.route.into_text()),
                Some(&self.schema.into_text()),
                Some(&self.table.into_text()),
                Some(&self.op.into_text()),
                Some(&self.change.into_text()),
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

/// The owner of a server's oldest record, as text. Locks nothing.
///
/// # Errors
/// What reading the queue reports.
pub fn oldest_owner(home: &Home, server_name: &str) -> Result<Option<String>> {
    let sql = format!(
        "SELECT owner::pg_catalog.oid FROM {}.sync_queue \
         WHERE dst_server OPERATOR(pg_catalog.=) $1 ORDER BY id LIMIT 1",
        ident(&home.schema)
    );
    let row = spi::read(home, &sql, &[Some(server_name)])?.into_iter().next();
    Ok(row.and_then(|mut row| row.pop()).flatten())
}

/// Removes delivered records.
///
/// # Errors
/// What writing the queue reports.
pub fn remove(home: &Home, units: &[Unit]) -> Result<()> {
    let ids: Vec<&str> = units.iter().flat_map(|u| &u.records).map(|r| r.id.as_str()).collect();
    for chunk in ids.chunks(CHUNK_ROWS) {
        let sql = format!(
            "DELETE FROM {}.sync_queue WHERE id OPERATOR(pg_catalog.=) \
             ANY ($1::pg_catalog.int8[])",
            ident(&home.schema)
        );
        let mut array = ArrayLiteral::default();
        chunk.iter().for_each(|id| array.push(Some(id)));
        spi::write(home, &sql, &[Some(&array.into_text())])?;
    }
    Ok(())
}

/// Notes on the oldest record, or on the given one, why it was not delivered.
///
/// # Errors
/// What writing the queue reports.
pub fn mark(home: &Home, server_name: &str, id: Option<&str>, reason: &Error) -> Result<()> {
    let queue = format!("{}.sync_queue", ident(&home.schema));
    let sql = format!(
        "UPDATE {queue} SET sqlstate = $3, message = $4, \
            attempts = attempts OPERATOR(pg_catalog.+) 1, \
            last_attempt_at = pg_catalog.clock_timestamp(), \
            status = CASE WHEN $5::pg_catalog.bool THEN 'pending' ELSE 'failed' END \
         WHERE id OPERATOR(pg_catalog.=) COALESCE($2::pg_catalog.int8, \
            (SELECT pg_catalog.min(id) FROM {queue} WHERE dst_server OPERATOR(pg_catalog.=) $1))"
    );
    let (state, message) = (reason.sqlstate().to_string(), reason.one_line());
    let transient = if reason.is_transient() { "true" } else { "false" };
    let args = [Some(server_name), id, Some(&state), Some(&message), Some(transient)];
    spi::write(home, &sql, &args)?;
    Ok(())
}

/// Servers with anything to do, by name. From one name to the next in the index, so that it is
/// cheap however long the queue is: the worker asks often.
///
/// # Errors
/// What reading the queue reports.
pub fn servers(home: &Home) -> Result<Vec<String>> {
    let schema = ident(&home.schema);
    let sql = format!(
        "WITH RECURSIVE s(name) AS ( \
            (SELECT q.dst_server FROM {schema}.sync_queue q ORDER BY q.dst_server, q.id LIMIT 1) \
            UNION ALL SELECT (SELECT q.dst_server FROM {schema}.sync_queue q \
                WHERE q.dst_server OPERATOR(pg_catalog.>) s.name \
                ORDER BY q.dst_server, q.id LIMIT 1) \
            FROM s WHERE s.name IS NOT NULL) \
         SELECT name FROM s WHERE name IS NOT NULL \
         UNION SELECT dst_server FROM {schema}.sync_lost_session ORDER BY name"
    );
    spi::read(home, &sql, &[])?.into_iter().map(|mut row| required(&mut row, 0)).collect()
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

fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::internal(format!("could not write JSON: {e}")))
}

fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text)
        .map_err(|e| Error::internal(format!("could not read a queued change: {e}")))
}
