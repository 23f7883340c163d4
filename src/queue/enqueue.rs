//! Writes change sets into the queue.

use super::claim;
use super::drained;
use super::failed::Blockers;
use super::stored::to_json;
use super::writeset::Writeset;
use crate::capture::change_set::ChangeSet;
use crate::capture::log::Rows;
use crate::change::{Change, Route, Source};
use crate::error::{Error, Result};
use crate::fault::fault_point;
use crate::local::{ProcessLocal, process_local};
use crate::pg::append::{Appender, Value};
use crate::pg::invalidation::{self, Epoch};
use crate::pg::lookup::{self, IndexRef, Status};
use crate::pg::spi::{self, Extension};
use crate::pg::text::displayable;
use crate::pg::{Oid, context, sequence};
use crate::sql::quote::ident;
use crate::{stats, transaction};
use std::cell::RefCell;
use std::rc::Rc;

/// Queues a change set, whole rows. `reason` is why it was not delivered, if that was tried. What
/// depends on `behind` waits there.
///
/// # Errors
/// What writing the queue reports.
pub fn enqueue(set: &ChangeSet, reason: Option<&Error>, behind: Option<Blockers>) -> Result<()> {
    let _writable = context::Writable::new();
    stats::queued(set.account.server, set.len() as u64);
    transaction::wake_worker();
    let mut writer = Writer::open(set, reason, behind.is_some())?;
    let mut changes = set.changes(Rows::Whole);
    let Some(mut behind) = behind else {
        while {
            let mut written = Ok(());
            let more = changes.next(&mut |route, change| {
                written = writer.write(route, change, None);
            })?;
            written?;
            more
        } {}
        writer.close();
        fault_point!(Queued);
        return Ok(());
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
    writer.close();
    Ok(())
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
    /// Why it was not delivered, if that was tried: SQLSTATE, message, constraint.
    reason: Option<(String, String, Option<String>)>,
    routes: RouteIds<'s>,
    /// The id of the next record. Those of a change set follow each other, and were drawn when all its rows
    /// were locked: what depends on it draws later.
    next_id: i64,
    records: Appender,
}

impl<'s> Writer<'s> {
    /// `waiting`: some of them may have to wait behind others.
    fn open(set: &'s ChangeSet, reason: Option<&Error>, waiting: bool) -> Result<Self> {
        let reason = reason.map(|reason| {
            let constraint = reason.constraint().map(displayable);
            (
                reason.sqlstate().to_string(),
                displayable(&reason.in_full()),
                constraint,
            )
        });
        let routes = RouteIds {
            extension: &set.extension,
            server_name: &set.account.server_name,
            owner: set.account.owner,
            cached: Vec::new(),
        };
        // As long as the lock is held, floors stay below what is drawn.
        lookup::reserve(&set.extension, "sync_queue")?;
        let next_id = sequence::draw(&set.extension, "sync_queue_id_seq", set.len() as i64)?;
        let rows = if waiting {
            Status::Any
        } else {
            Status::Pending
        };
        let records = Appender::open(&set.extension, "sync_queue", rows)?;
        Ok(Self {
            set,
            reason,
            routes,
            next_id,
            records,
        })
    }

    /// `behind`: the record it waits for, and its writes.
    fn write(
        &mut self,
        route: &Rc<Route>,
        change: &Change<&str>,
        behind: Option<(i64, Vec<i64>)>,
    ) -> Result<()> {
        let route_id = self.routes.id_of(route)?;
        let json = to_json(change)?;
        let mut row = vec![
            ("id", Value::Int8(self.next_id)),
            ("dst_server", Value::Text(&self.set.account.server_name)),
            ("owner", Value::Oid(self.set.account.owner)),
            ("route_id", Value::Int8(route_id)),
            ("nsp_name", Value::Name(&route.source.schema)),
            ("table_name", Value::Name(&route.source.table)),
            ("op", Value::Text(change.op.keyword())),
            ("change", Value::Text(&json)),
            ("xact", Value::Transaction),
            ("create_time", Value::Time(context::now())),
            (
                "status",
                Value::Text(if behind.is_some() {
                    "waiting"
                } else {
                    "pending"
                }),
            ),
            ("attempts", Value::Int4(self.reason.is_some().into())),
            ("times_failed", Value::Int4(0)),
        ];
        if let Some((state, message, constraint)) = &self.reason {
            row.push(("sqlstate", Value::Text(state)));
            row.push(("message", Value::Text(message)));
            row.extend(
                constraint
                    .as_deref()
                    .map(|name| ("constraint_name", Value::Text(name))),
            );
            row.push(("last_attempt_at", Value::Time(context::now())));
        }
        if let Some((root, writes)) = &behind {
            row.push(("waits_for", Value::Int8(*root)));
            row.push(("blocks", Value::Int8s(writes)));
        }
        self.next_id += 1;
        self.records.append(&row)?;
        fault_point!(QueueWrite);
        Ok(())
    }

    fn close(self) {
        self.records.close();
    }

    fn write_run(&mut self, run: &Run, behind: &mut Blockers) -> Result<()> {
        let unit = run
            .changes
            .iter()
            .any(|(route, change)| claim::makes_unit(route, change));
        let mut whole = Writeset::default();
        if unit && run.forced.is_none() {
            let changes = run.changes.iter();
            whole.join(changes.map(|(route, change)| Writeset::of(route, change)));
        }
        let together = match run.forced {
            None if unit => behind.join(&whole),
            forced => forced,
        };
        for (route, change) in run.changes.iter().skip(usize::from(run.written)) {
            let writeset = Writeset::of(route, change);
            let root = if unit || together.is_some() {
                together
            } else {
                behind.join(&writeset)
            };
            if let Some(root) = together {
                behind.mark(root, &writeset);
            }
            self.write(
                route,
                &change.borrowed(),
                root.map(|root| (root, writeset.writes)),
            )?;
        }
        Ok(())
    }
}

/// A route's id in a table `sync_route`.
struct CachedRoute {
    route: Rc<Route>,
    /// The owner whose changes take the route.
    owner: Oid,
    table: Oid,
    id: i64,
    /// The transaction that found or wrote it.
    by: u64,
    /// When another transaction has seen it: it is committed, and there as long as the table is.
    settled: Option<Epoch>,
}

process_local! {
    static ROUTES: RefCell<Vec<CachedRoute>> = RefCell::default();
}

const ROUTE: IndexRef = IndexRef {
    table: "sync_route",
    column: 1,
    status: Status::Any,
};

/// So many routes are remembered at most.
const MOST_KNOWN: usize = 256;

/// Ids of routes in `sync_route`, each looked up or inserted once.
struct RouteIds<'h> {
    extension: &'h Extension,
    server_name: &'h str,
    owner: Oid,
    cached: Vec<(Rc<Route>, i64)>,
}

impl RouteIds<'_> {
    fn id_of(&mut self, route: &Rc<Route>) -> Result<i64> {
        if let Some((_, id)) = self
            .cached
            .iter()
            .find(|(cached, _)| Rc::ptr_eq(cached, route))
        {
            return Ok(*id);
        }
        let id = match self.remembered(route)? {
            Some(id) => id,
            None => self.find_or_insert(route)?,
        };
        self.cached.push((route.clone(), id));
        Ok(id)
    }

    /// The id that an earlier transaction of the session found, if it is still there: that one may have
    /// been rolled back, and the extension be another.
    fn remembered(&self, route: &Rc<Route>) -> Result<Option<i64>> {
        let table = lookup::table(self.extension, "sync_route")?;
        let owner = self.owner;
        let is = |cached: &CachedRoute| {
            cached.table == table && cached.owner == owner && cached.route == *route
        };
        let found = ROUTES.with_borrow(|all| {
            all.iter()
                .find(|cached| is(cached))
                .map(|cached| (cached.id, cached.by, cached.settled))
        });
        let Some((id, by, settled)) = found else {
            return Ok(None);
        };
        let now = invalidation::now();
        if settled == Some(now) {
            return Ok(Some(id));
        }
        if !lookup::has_id(self.extension, &ROUTE, id)? {
            return Ok(None);
        }
        if by != context::transaction() {
            ROUTES.with_borrow_mut(|all| {
                all.iter_mut()
                    .filter(|cached| is(cached))
                    .for_each(|k| k.settled = Some(now));
            });
        }
        Ok(Some(id))
    }

    /// Routes are never changed or removed, so one that is visible stays valid. Two transactions
    /// that insert the same one at once give it two ids, which does no harm.
    fn find_or_insert(&self, route: &Rc<Route>) -> Result<i64> {
        let body = to_json(&**route)?;
        let table = format!("{}.sync_route", ident(&self.extension.schema));
        let find = format!(
            "SELECT id FROM {table} WHERE md5(body) = \
             md5($1) AND body = $1 \
             AND owner::oid = $2::oid \
             ORDER BY id LIMIT 1"
        );
        let insert = format!(
            "INSERT INTO {table} (id, body, owner) OVERRIDING SYSTEM VALUE \
             VALUES ($1::int8, $2, $3::oid)"
        );
        let owner = self.owner.to_u32().to_string();
        let found = spi::read(self.extension, &find, &[Some(&body), Some(&owner)])?
            .into_iter()
            .next();
        let id = match found.and_then(|mut row| row.pop()).flatten() {
            Some(id) => id
                .parse()
                .map_err(|_| Error::internal("malformed id of a route"))?,
            None => {
                drained::prepare(self.extension, self.server_name, self.owner)?;
                let id = sequence::draw(self.extension, "sync_route_id_seq", 1)?;
                let args = [Some(&*id.to_string()), Some(&*body), Some(&*owner)];
                spi::write(self.extension, &insert, &args)?;
                id
            }
        };
        let table = lookup::table(self.extension, "sync_route")?;
        let by = context::transaction();
        ROUTES.with_borrow_mut(|cached| {
            cached.retain(|cached| cached.route != *route || cached.owner != self.owner);
            cached.truncate(MOST_KNOWN - 1);
            let route = route.clone();
            let owner = self.owner;
            cached.push(CachedRoute {
                route,
                owner,
                table,
                id,
                by,
                settled: None,
            });
        });
        Ok(id)
    }
}
