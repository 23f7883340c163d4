//! Makes both sides equal: `repair_sync`.
//!
//! What goes to the server goes as changes of the local transaction, captured under the lock of the row: its
//! later changes come after, and earlier ones have been delivered or queued before. A row that only the
//! server has can be locked nowhere; while such rows are deleted nobody writes the table. What comes from the
//! server is written here under the guard's name, so that it is not sent back, and only over the row that was
//! compared.

use super::compare::Comparison;
use super::difference::{Difference, Kind};
use super::expressions::KeyText;
use super::options::{Direction, RepairOptions};
use super::parts::Wanted;
use super::progress::{Command, Phase, Progress, summary};
use super::reading::{self, Values};
use super::sides::Side;
use super::subject::Subject;
use crate::capture::row::Captured;
use crate::change::{Change, Op, Policy, Route, RowStorage};
use crate::error::{Error, Result, SqlState};
use crate::pg::spi::{Extension, Row, required};
use crate::pg::text::{is_representable, to_server};
use crate::pg::{Oid, query};
use crate::sql::quote::{ident, literal_or_null, relation};
use crate::{crash, guc, identity, transaction};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Rows that are locked and read together.
const LOCKED: usize = 64;
/// All rows of a repair are written by one command of the transaction, and may be true only together.
const COMMAND: u32 = u32::MAX;

/// What is done about a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The row here is sent.
    WriteThere,
    DeleteThere,
    /// The row there is written here.
    WriteHere,
    DeleteHere,
    /// Nothing: options say so, the row was written meanwhile, the types of the other side cannot hold it, or it
    /// has no key by which it could be found.
    Leave,
}

impl Action {
    /// As users see it.
    pub fn name(self) -> &'static str {
        match self {
            Self::WriteThere => "write there",
            Self::DeleteThere => "delete there",
            Self::WriteHere => "write here",
            Self::DeleteHere => "delete here",
            Self::Leave => "left",
        }
    }
}

/// Compares, and makes equal what differs; what was done about each difference.
///
/// # Errors
/// As for [`super::verify`]; 55000 in a copy of a database; what writing reports.
pub fn repair(
    extension: &Extension,
    rel: Oid,
    server: &str,
    options: &str,
) -> Result<Vec<(Difference, Action)>> {
    let options = RepairOptions::parse(options)?;
    identity::check(extension)?;
    let condition = options.condition.as_deref();
    let (subject, sides) = Subject::look_up(extension, rel, server, condition, Command::Repair)?;
    subject.check_may_write()?;
    let is_newest = matches!(subject.descriptor.route.policy, Policy::Newest(_));
    if options.direction == Some(Direction::Newest) && !is_newest {
        return Err(Error::local(
            SqlState::INVALID_PARAMETER,
            "option \"direction\": \"newest\" needs a table with \"on_conflict\": \"newest\"",
        )
        .with_hint("Say which side is right: \"to_server\" or \"from_server\"."));
    }
    let mut comparison = Comparison::new(&subject, sides, options.max_differences, Wanted::Texts);
    comparison.run()?;
    let (is_cut_short, is_whole) = (comparison.is_cut_short(), comparison.is_whole());
    let (differences, mut progress) = comparison.into_differences();
    let found = summary(differences.len(), is_cut_short);
    let repair = Repair {
        subject: &subject,
        options: &options,
    };
    progress.enter(Phase::Repairing);
    let readable = repair.readable(&differences)?;
    let actions: Vec<Action> = (differences.iter().zip(&readable))
        .zip(are_named(&differences))
        .map(|((difference, is_readable), is_named)| {
            if is_named {
                repair.plan(difference, *is_readable)
            } else {
                Ok(Action::Leave)
            }
        })
        .collect::<Result<_>>()?;
    let planned: Vec<(Difference, Action)> = differences.into_iter().zip(actions).collect();
    if options.dry_run {
        progress.end(extension, rel, server, &format!("{found}, dry run"))?;
        return Ok(planned);
    }
    let done = repair.carry_out(planned, &mut progress)?;
    let left = count(&done, Action::Leave);
    if is_whole && options.condition.is_none() && left == 0 {
        crash::settle(extension, rel, server)?;
    }
    let came_to = format!("{found}, {left} left");
    progress.end(extension, rel, server, &came_to)?;
    Ok(done)
}

fn count(planned: &[(Difference, Action)], wanted: Action) -> usize {
    (planned.iter().filter(|(_, action)| *action == wanted)).count()
}

/// Whether the key of each difference names its row: not where it is NULL, nor where the target, without a unique
/// key, has several rows of it, nor where no record here could hold it.
fn are_named(differences: &[Difference]) -> Vec<bool> {
    let mut times: BTreeMap<&KeyText, usize> = BTreeMap::new();
    for difference in differences {
        *times.entry(difference.matched()).or_default() += 1;
    }
    let is_named = |difference: &Difference| {
        let names = |text: &Option<String>| text.as_deref().is_some_and(is_representable);
        difference.key_texts.iter().all(names) && times.get(difference.matched()) == Some(&1)
    };
    differences.iter().map(is_named).collect()
}

struct Repair<'s> {
    subject: &'s Subject,
    options: &'s RepairOptions,
}

impl Repair<'_> {
    fn route(&self) -> &Rc<Route> {
        &self.subject.descriptor.route
    }

    fn direction(&self) -> Direction {
        let newest = matches!(self.route().policy, Policy::Newest(_));
        let default = if newest {
            Direction::Newest
        } else {
            Direction::ToServer
        };
        self.options.direction.unwrap_or(default)
    }

    /// Which rows that could be written here the types here can read.
    fn readable(&self, differences: &[Difference]) -> Result<Vec<bool>> {
        if self.direction() == Direction::ToServer {
            return Ok(vec![true; differences.len()]);
        }
        let mut readable = Vec::with_capacity(differences.len());
        for some in differences.chunks(LOCKED) {
            let rows: Vec<Values<'_>> = some.iter().map(Values::of_row).collect();
            readable.extend(reading::can_be_read(self.subject, &rows)?);
        }
        // What is too long to be fetched cannot be written here.
        let is_fetched = |one: &Difference| one.kind == Kind::Missing || one.texts.is_some();
        for (readable, difference) in readable.iter_mut().zip(differences) {
            *readable &= is_fetched(difference);
        }
        Ok(readable)
    }

    /// Whether the version of the row there can be compared here.
    fn reads_version(&self, difference: &Difference) -> Result<bool> {
        let Some(at) = self.route().version() else {
            return Ok(true);
        };
        let version = Values::of_column(difference, at);
        Ok(reading::can_be_read(self.subject, &[version])? == [true])
    }

    /// What is to be done; `is_readable`: the types here can read the row there.
    fn plan(&self, difference: &Difference, is_readable: bool) -> Result<Action> {
        if self.direction() == Direction::Newest && !is_readable {
            // Which is newer can be told only where both are read.
            let is_older = difference.kind == Kind::Differs
                && self.reads_version(difference)?
                && !self.is_newer_there(difference)?;
            let is_sent = is_older && difference.fits;
            return Ok(if is_sent {
                Action::WriteThere
            } else {
                Action::Leave
            });
        }
        let deletes = self.options.delete_extra;
        let action = match (self.direction(), difference.kind) {
            (Direction::ToServer, Kind::Missing | Kind::Differs) => Action::WriteThere,
            (Direction::ToServer, Kind::Extra) if deletes => Action::DeleteThere,
            (Direction::FromServer, Kind::Extra | Kind::Differs) => Action::WriteHere,
            (Direction::FromServer, Kind::Missing) if deletes => Action::DeleteHere,
            (Direction::ToServer | Direction::FromServer, _) => Action::Leave,
            // The server knows whether it has deleted the row later.
            (Direction::Newest, Kind::Missing) => Action::WriteThere,
            (Direction::Newest, Kind::Extra) if self.was_deleted_later(difference)? => {
                Action::DeleteThere
            }
            (Direction::Newest, Kind::Extra) => Action::WriteHere,
            (Direction::Newest, Kind::Differs) if self.is_newer_there(difference)? => {
                Action::WriteHere
            }
            (Direction::Newest, Kind::Differs) => Action::WriteThere,
        };
        // It would fail, and all others with it, there in a strict mode.
        let is_refused = match action {
            Action::WriteThere => !difference.fits,
            Action::WriteHere => !is_readable,
            Action::DeleteThere | Action::DeleteHere | Action::Leave => false,
        };
        Ok(if is_refused { Action::Leave } else { action })
    }

    fn there(&self, difference: &Difference, at: usize) -> Option<String> {
        difference
            .texts
            .as_ref()
            .and_then(|texts| texts.get(at).cloned())
            .flatten()
    }

    /// Whether the row there has a larger version than the one here; of equal ones the one here stays.
    fn is_newer_there(&self, difference: &Difference) -> Result<bool> {
        let Some(at) = self.route().version() else {
            return Ok(false);
        };
        let expressions = &self.subject.expressions;
        let Some(version) = self.there(difference, at) else {
            return Ok(false);
        };
        let condition = expressions.key_is_one_of(Side::Here, &[&difference.key_texts]);
        let newer = expressions.is_smaller(at, self.route().columns[at].collated, &version);
        let sql = format!(
            "SELECT {newer} {}",
            expressions.rows(Side::Here, &[&condition])
        );
        let rows = query::read_as(self.subject.table.owner, &sql)?;
        Ok(rows
            .first()
            .and_then(|row| row.first())
            .is_some_and(|is| is.as_deref() == Some("t")))
    }

    /// Whether it is remembered here that the row was deleted, by something newer than the row there.
    fn was_deleted_later(&self, difference: &Difference) -> Result<bool> {
        let Some(at) = self.route().version() else {
            return Ok(false);
        };
        let expressions = &self.subject.expressions;
        let named = self.route().named_key();
        let key: Vec<String> = named
            .iter()
            .map(|at| expressions.typed(*at, self.there(difference, *at).as_deref()))
            .collect();
        let sql = format!(
            "SELECT {}.sync_deleted_later({}::pg_catalog.oid::pg_catalog.regclass, \
               pg_catalog.hash_record_extended(ROW({}), 0), \
               pg_catalog.pg_typeof({}), {}::pg_catalog.text, 0)",
            ident(&self.subject.extension.schema),
            self.subject.table.oid.to_u32(),
            key.join(", "),
            expressions.typed(at, None),
            literal_or_null(self.there(difference, at).as_deref()),
        );
        let rows = query::read_as(self.subject.table.owner, &sql)?;
        Ok(rows
            .first()
            .and_then(|row| row.first())
            .is_some_and(|is| is.as_deref() == Some("t")))
    }

    fn carry_out(
        &self,
        mut planned: Vec<(Difference, Action)>,
        progress: &mut Progress,
    ) -> Result<Vec<(Difference, Action)>> {
        // Before any row is locked: who holds one may wait for the table.
        if planned
            .iter()
            .any(|(_, action)| *action == Action::DeleteThere)
        {
            self.lock_table()?;
        }
        for chunk in planned.chunks_mut(LOCKED) {
            let planned = count(chunk, Action::DeleteThere);
            self.delete_there(chunk)?;
            progress.repaired(planned);
        }
        for chunk in planned.chunks_mut(LOCKED) {
            let planned = count(chunk, Action::WriteThere);
            self.write_there(chunk)?;
            progress.repaired(planned);
        }
        // Rows that go make room for the unique values of those that come.
        for chunk in planned.chunks_mut(LOCKED) {
            progress.repaired(count(chunk, Action::DeleteHere));
            for (difference, action) in chunk {
                if *action == Action::DeleteHere && !self.delete_here(difference)? {
                    *action = Action::Leave;
                }
            }
        }
        for chunk in planned.chunks_mut(LOCKED) {
            progress.repaired(count(chunk, Action::WriteHere));
            for (difference, action) in chunk {
                if *action == Action::WriteHere && !self.write_here(difference)? {
                    *action = Action::Leave;
                }
            }
        }
        Ok(planned)
    }

    /// Waits for those who write the table, and keeps others from it.
    fn lock_table(&self) -> Result<()> {
        let name = relation(&self.subject.table.name);
        let sql = format!("LOCK TABLE {name} IN SHARE ROW EXCLUSIVE MODE");
        query::lock_as(self.subject.table.owner, &sql).map(|_| ())
    }

    /// The rows here with the keys of some differences, locked.
    fn locked(&self, some: &[&Difference]) -> Result<BTreeMap<KeyText, KeyText>> {
        let expressions = &self.subject.expressions;
        let keys: Vec<&[Option<String>]> = some
            .iter()
            .map(|difference| difference.key_texts.as_slice())
            .collect();
        let condition = expressions.key_is_one_of(Side::Here, &keys);
        let sql = format!(
            "SELECT pg_catalog.json_build_array({}), {} {} ORDER BY {} FOR NO KEY UPDATE",
            expressions.key_texts().join(", "),
            expressions.row_texts(i32::MAX as usize),
            expressions.rows(Side::Here, &[&condition]),
            expressions.key_order()
        );
        let rows = query::lock_as(self.subject.table.owner, &sql)?;
        rows.into_iter()
            .map(|mut row| Ok((texts(&mut row, 0)?, texts(&mut row, 1)?)))
            .collect()
    }

    fn write_there(&self, planned: &mut [(Difference, Action)]) -> Result<()> {
        let some: Vec<&Difference> = planned
            .iter()
            .filter(|(_, action)| *action == Action::WriteThere)
            .map(|(difference, _)| difference)
            .collect();
        if some.is_empty() {
            return Ok(());
        }
        let rows = self.locked(&some)?;
        let overwriting = self.overwriting();
        for (difference, action) in planned.iter_mut() {
            if *action != Action::WriteThere {
                continue;
            }
            let Some(row) = rows.get(&difference.key_texts) else {
                *action = Action::Leave;
                continue;
            };
            // Under newest the server may know of a later deletion.
            let asks = self.direction() == Direction::Newest && difference.kind == Kind::Missing;
            let route = if asks { self.route() } else { &overwriting };
            let row: Vec<Option<&str>> = row.iter().map(Option::as_deref).collect();
            let replaces = |column: &crate::change::Column| {
                let name = column.local.as_ref().unwrap_or(&column.name);
                column.identity_always && difference.columns.contains(name)
            };
            let place = next_place();
            if difference.kind == Kind::Differs && route.columns.iter().any(replaces) {
                self.push(route, self.deletion(difference, place))?;
                self.push(route, change(Op::Insert, row, (0, place)))?;
            } else if difference.kind == Kind::Differs {
                self.push(route, change(Op::Update, row, (place, place)))?;
            } else {
                self.push(route, change(Op::Insert, row, (0, place)))?;
            }
        }
        Ok(())
    }

    fn delete_there(&self, planned: &mut [(Difference, Action)]) -> Result<()> {
        let some: Vec<&Difference> = planned
            .iter()
            .filter(|(_, action)| *action == Action::DeleteThere)
            .map(|(difference, _)| difference)
            .collect();
        if some.is_empty() {
            return Ok(());
        }
        // A key that cannot be read here is that of no row here.
        let keys: Vec<Values<'_>> = (some.iter())
            .map(|difference| Values::of_key(difference, &self.route().key))
            .collect();
        let readable = reading::can_be_read(self.subject, &keys)?;
        let known: Vec<&Difference> = (some.into_iter().zip(readable))
            .filter_map(|(difference, is_readable)| is_readable.then_some(difference))
            .collect();
        let rows = if known.is_empty() {
            BTreeMap::new()
        } else {
            self.locked(&known)?
        };
        let route = self.overwriting();
        for (difference, action) in planned.iter_mut() {
            if *action != Action::DeleteThere {
                continue;
            }
            let is_null = difference.key_texts.iter().any(Option::is_none);
            if is_null || rows.contains_key(&difference.key_texts) {
                *action = Action::Leave;
                continue;
            }
            self.push(&route, self.deletion(difference, next_place()))?;
        }
        Ok(())
    }

    /// The route by which the row here wins; a target that takes no ON CONFLICT is left to its own policy.
    fn overwriting(&self) -> Rc<Route> {
        match self.route().policy {
            Policy::Overwrite | Policy::Error => self.route().clone(),
            Policy::Skip | Policy::Newest(_) => Rc::new(Route {
                policy: Policy::Overwrite,
                ..(**self.route()).clone()
            }),
        }
    }

    fn deletion<'d>(&self, difference: &'d Difference, place: u64) -> Change<&'d str> {
        let key = difference.key_texts.iter().map(Option::as_deref).collect();
        Change {
            key,
            ..change(Op::Delete, Vec::new(), (place, 0))
        }
    }

    fn push(&self, route: &Rc<Route>, change: Change<&str>) -> Result<()> {
        let captured: Captured<'_> = change.into();
        transaction::add_change(&self.subject.descriptor, route, &captured)
    }

    /// Whether the row that was compared is still here, and is gone now.
    fn delete_here(&self, difference: &Difference) -> Result<bool> {
        let sql = format!(
            "DELETE FROM {} {} RETURNING 1",
            self.target(),
            self.unchanged(difference)
        );
        self.write_guarded(&sql)
    }

    /// Whether the row there could be written here.
    fn write_here(&self, difference: &Difference) -> Result<bool> {
        let Some(texts) = &difference.texts else {
            return Ok(false);
        };
        let expressions = &self.subject.expressions;
        let columns = expressions.columns();
        let key = &self.route().key;
        let named = |at: usize| ident(&columns[at].name);
        let value = |at: usize| literal_or_null(texts.get(at).and_then(Option::as_deref));
        let all: Vec<usize> = (0..columns.len()).collect();
        let list = |what: &dyn Fn(usize) -> String| -> String {
            all.iter()
                .map(|at| what(*at))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let sql = match difference.kind {
            Kind::Differs => {
                let sets: Vec<String> = all
                    .iter()
                    .filter(|at| !key.contains(at) && !self.route().columns[**at].identity_always)
                    .map(|at| format!("{} = {}", named(*at), value(*at)))
                    .collect();
                if sets.is_empty() {
                    return Ok(false);
                }
                format!(
                    "UPDATE {} SET {} {} RETURNING 1",
                    self.target(),
                    sets.join(", "),
                    self.unchanged(difference)
                )
            }
            // No ON CONFLICT: a constraint of the table may be deferrable. Who inserts the row at the same time
            // fails this with 23505.
            Kind::Missing | Kind::Extra => format!(
                "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} \
                 WHERE NOT EXISTS (SELECT FROM {} WHERE {}) RETURNING 1",
                relation(&self.subject.table.name),
                list(&named),
                list(&|at| expressions.typed(at, texts.get(at).and_then(Option::as_deref))),
                self.target(),
                expressions.key_is_one_of(Side::Here, &[&difference.key_texts])
            ),
        };
        self.write_guarded(&sql)
    }

    fn target(&self) -> String {
        let only = if self.subject.table.partitioned {
            ""
        } else {
            "ONLY "
        };
        format!("{only}{} AS new", relation(&self.subject.table.name))
    }

    /// The row as it was compared.
    fn unchanged(&self, difference: &Difference) -> String {
        let expressions = &self.subject.expressions;
        let hash = difference.hash.as_deref().unwrap_or("0");
        format!(
            "WHERE ({}) AND {} OPERATOR(pg_catalog.=) ({hash})::pg_catalog.int8",
            expressions.key_is_one_of(Side::Here, &[&difference.key_texts]),
            expressions.row_hash(Side::Here)
        )
    }

    /// Runs a statement as the caller under the guard's name; whether it has written a row.
    fn write_guarded(&self, sql: &str) -> Result<bool> {
        let guard = match &self.subject.descriptor.guard {
            Some(guard) => guard.clone(),
            None => to_server(&guc::application_name())?,
        };
        let rows = query::write_under(&[(c"application_name", &guard)], sql)?;
        Ok(!rows.is_empty())
    }
}

/// Tells rows apart where the key is deferrable: no two changes that a session repairs by have the same one.
fn next_place() -> u64 {
    thread_local! {
        static LAST: Cell<u64> = const { Cell::new(0) };
    }
    LAST.set(LAST.get() + 1);
    LAST.get()
}

fn change(op: Op, row: Vec<Option<&str>>, (before, after): (u64, u64)) -> Change<&str> {
    Change {
        op,
        command: COMMAND,
        key: Vec::new(),
        row,
        stamp: None,
        tombstone: None,
        unchanged: Vec::new(),
        // No row of the table is stored in this file.
        stored: RowStorage {
            before,
            after,
            ..RowStorage::default()
        },
        overtaken: false,
    }
}

/// A JSON array of texts.
fn texts(row: &mut Row, at: usize) -> Result<KeyText> {
    serde_json::from_str(&required(row, at)?)
        .map_err(|_| Error::internal("malformed row of a table"))
}
