//! Writes change sets into the queue.

use super::aside::Blockers;
use super::footprint::Footprint;
use super::{CHUNK_ROWS, claim, to_ids, to_json};
use crate::capture::change_set::ChangeSet;
use crate::change::{Change, Route};
use crate::delivery::feed::Source;
use crate::error::{Error, Result};
use crate::pg::context;
use crate::pg::spi::{self, Home, required};
use crate::pg::text::tellable;
use crate::sql::quote::{ArrayLiteral, ident};
use crate::{stats, transaction};
use std::rc::Rc;

/// Bytes of changes in one statement.
const CHUNK_BYTES: usize = 4 * 1024 * 1024;

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
    let mut run = Run::default();
    while {
        let mut next = None;
        let more = changes.next(&mut |route, change| {
            next = Some((route.clone(), change.owned()));
        })?;
        if next.as_ref().is_none_or(|next| !run.continues(next)) {
            writer.write_run(&std::mem::take(&mut run), &mut behind)?;
        }
        run.changes.extend(next);
        if run.changes.len() >= MAX_RUN {
            // Too long to be kept: it waits whether it needs to or not.
            run.forced = run.forced.or(behind.oldest());
            writer.write_run(&run, &mut behind)?;
            run.changes.drain(..run.changes.len() - 1);
            run.written = true;
        }
        more
    } {}
    writer.flush()
}

/// Changes of a run that are held in memory until it is known whether they must wait.
const MAX_RUN: usize = 10_000;

/// Changes that belong together, or may.
#[derive(Default)]
struct Run {
    changes: Vec<(Rc<Route>, Change<String>)>,
    /// The first of `changes` has been written already, and is kept for what follows it.
    written: bool,
    /// What all of it waits for, since a part of it was written as waiting.
    forced: Option<i64>,
}

impl Run {
    fn continues(&self, next: &(Rc<Route>, Change<String>)) -> bool {
        let last = self.changes.last();
        last.is_none_or(|last| claim::run_on((&last.0, &last.1), (&next.0, &next.1)))
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

    fn write_run(&mut self, run: &Run, behind: &mut Blockers) -> Result<()> {
        let unit = run.changes.iter().any(|(route, change)| claim::makes_unit(route, change));
        let mut whole = Footprint::default();
        if unit && run.forced.is_none() {
            run.changes.iter().for_each(|(route, change)| whole.join(Footprint::of(route, change)));
        }
        let together = match run.forced {
            None if unit => behind.join(&whole),
            forced => forced,
        };
        for (route, change) in run.changes.iter().skip(usize::from(run.written)) {
            let footprint = Footprint::of(route, change);
            let root = if unit || together.is_some() { together } else { behind.join(&footprint) };
            if let Some(root) = together {
                behind.mark(root, &footprint);
            }
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
                CASE WHEN v.waits_for OPERATOR(pg_catalog.=) '' THEN 'pending' ELSE 'waiting' END, \
                CASE WHEN v.waits_for OPERATOR(pg_catalog.<>) '' \
                  THEN v.waits_for::pg_catalog.int8 END, \
                CASE WHEN v.blocks OPERATOR(pg_catalog.<>) '' \
                  THEN v.blocks::pg_catalog.int8[] END, $3, $4, $5, \
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
        let message = reason.map(|e| tellable(&e.in_full()));
        let constraint = reason.and_then(Error::constraint).map(tellable);
        spi::write(
            home,
            &sql,
            &[
                Some(&set.account.server_name),
                Some(&owner),
                state.as_deref(),
                message.as_deref(),
                constraint.as_deref(),
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
