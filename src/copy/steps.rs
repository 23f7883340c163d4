//! The steps of a group of copies, see [`crate::copy`]. Each ends with the group standing further on both
//! sides, or where it stood.

use super::held::Held;
use super::plan::{Key, Plan};
use super::referring::check_alone;
use super::registry::{self, Brought, Copy, Dirty, Existing};
use super::target::{CopyIn, CopyTarget, ROWS_PER_BATCH};
use crate::change::{Change, Op, Policy, Route, Stamp};
use crate::conflict::versions;
use crate::connect::endpoint::Endpoint;
use crate::delivery::link::Link;
use crate::delivery::{lost, remote_transaction};
use crate::error::{Error, Result, SqlState};
use crate::identity;
use crate::options::Mode;
use crate::pg::context::Settings;
use crate::pg::snapshot::Snapshot;
use crate::pg::spi::{self, Extension};
use crate::pg::stream::{self, StreamedRow};
use crate::pg::worker_transaction::run_in_transaction;
use crate::pg::{Oid, bgworker, ddl, interrupt, lock};
use crate::queue::{self, copies, pause};
use crate::sql::quote::{literal, relation};
use crate::transaction;
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long a step reads rows: about as long as its snapshot lives.
const SLICE: Duration = Duration::from_millis(350);
/// Rows after which it is looked how long that was.
const LOOK_EVERY: i64 = 16;
/// Keys whose rows are read at once.
const KEYS: usize = 500;
/// How many changed rows may be brought while the table is locked.
const MAX_ROWS_UNDER_LOCK: usize = 300;
/// Attempts to lock the tables of a group, after which the queue is left to bring the rest.
const MOST_LOCKS: u32 = 30;
/// Longest time to wait for the lock, and to bring what is left under it.
const LOCK_TIMEOUT: &std::ffi::CStr = c"60ms";
const LIVE_TIMEOUT: &std::ffi::CStr = c"120ms";
const STEP_DELAY: Duration = Duration::from_millis(20);

/// What a step has come to.
pub enum StepOutcome {
    /// There is more to do.
    More,
    /// There is more to do after a while.
    Wait(Duration),
    /// The group has arrived, or is gone.
    Done,
    /// The server is paused: there is more to do when it is resumed.
    Paused,
}

/// What is known of a target.
#[derive(Clone, Deserialize)]
struct Facts {
    kind: String,
    columns: HashMap<String, u32>,
    /// Rows of other tables are changed where rows are deleted.
    cascades: bool,
    /// Its rows refer to one another.
    itself: bool,
    /// Columns of constraints between rows that may be null: a row may give up what it has of them.
    yields: Vec<String>,
}

/// A group under way.
pub struct Steps {
    group: i64,
    facts: HashMap<i64, Facts>,
    /// Transactions that may not have seen the copies when they began to deliver.
    writers: Option<HashSet<String>>,
    /// Rows go as changes: COPY has met some that were there.
    as_changes: bool,
    /// Rows of a range have referred to rows of a later one: tables whose rows refer to one another go in one piece.
    whole: bool,
    locks: u32,
}

/// What the local transaction of a step hands on.
enum Begun {
    Gone,
    Paused,
    Unsettled(Vec<Copy>),
    Unprepared(Vec<Copy>),
    /// Applied on the server, to be committed there.
    Step(Box<CopyTarget>, String),
    /// Little is left to do.
    Complete,
}

impl Steps {
    /// Of this group.
    pub fn new(group: i64) -> Self {
        Self {
            group,
            facts: HashMap::new(),
            writers: None,
            as_changes: false,
            whole: false,
            locks: 0,
        }
    }

    /// Does the next step.
    ///
    /// # Errors
    /// What either side reports.
    pub fn step(&mut self) -> Result<StepOutcome> {
        match run_in_transaction(|| self.begin())? {
            Begun::Gone => Ok(StepOutcome::Done),
            Begun::Paused => Ok(StepOutcome::Paused),
            Begun::Unsettled(copies) => self.settle(&copies),
            Begun::Unprepared(copies) => self.prepare(&copies),
            Begun::Complete => self.go_live(),
            Begun::Step(target, seen) => {
                let committed = target.commit();
                interrupt::nothing_committed();
                committed?;
                self.settled(&seen)?;
                self.as_changes = false;
                Ok(StepOutcome::More)
            }
        }
    }

    fn begin(&mut self) -> Result<Begun> {
        let extension = Extension::find()?;
        identity::check(&extension)?;
        if registry::drop_without_table(&extension, self.group)? {
            transaction::wake_worker();
            return Ok(Begun::Gone);
        }
        let mut copies = registry::group(&extension, self.group)?;
        let Some(first) = copies.first() else {
            return Ok(Begun::Gone);
        };
        if pause::is_paused(&extension, &first.server)? {
            return Ok(Begun::Paused);
        }
        if copies.iter().any(|copy| copy.step.is_some()) {
            return Ok(Begun::Unsettled(copies));
        }
        if copies.iter().any(|copy| !copy.prepared) {
            return Ok(Begun::Unprepared(copies));
        }
        let plans = plans_of(&extension, &copies)?;
        let (target, xact) = self.open(&extension, &copies, &plans, &[])?;
        for (copy, plan) in copies.iter_mut().zip(&plans) {
            if self.goes_whole(copy) && plan.comes_again() && !self.is_brought_anew(copy, plan) {
                copy.position = None;
            }
        }
        let moment = Snapshot::latest();
        let seen = seen_by(&extension, &moment)?;
        let dirty = dirty_of(&extension, &moment, &plans, &seen)?;
        let is_over = copies.iter().all(|copy| copy.complete);
        if is_over && amount(&dirty) <= MAX_ROWS_UNDER_LOCK {
            moment.release();
            target.roll_back()?;
            return Ok(Begun::Complete);
        }
        let (target, brought) = self.bring(target, &moment, &copies, &plans, dirty)?;
        moment.release();
        let target = checked(target)?;
        let brought: Vec<_> = copies.iter().map(|copy| copy.id).zip(brought).collect();
        registry::note_step(&extension, (&xact, &seen), &brought)?;
        Ok(Begun::Step(Box::new(target), seen))
    }

    /// Whether what is left of a table is to go in one piece.
    fn goes_whole(&self, copy: &Copy) -> bool {
        let refers = self.facts.get(&copy.id).is_some_and(|facts| facts.itself);
        self.whole && refers && !copy.complete
    }

    /// Whether a table that goes in one piece is emptied for that. What others may have of it stays; so it does under
    /// `newest`, where deletions count.
    fn is_brought_anew(&self, copy: &Copy, plan: &Plan) -> bool {
        let is_own = copy.existing != Existing::Merge && plan.route.version().is_none();
        is_own && self.goes_whole(copy)
    }

    /// Begins a transaction on the server, alone of all steps that concern these targets; gives its number.
    fn open(
        &mut self,
        extension: &Extension,
        copies: &[Copy],
        plans: &[Plan],
        more: &[&str],
    ) -> Result<(CopyTarget, String)> {
        let account = plans
            .first()
            .map(Plan::account)
            .ok_or(Error::internal("no copies"))?;
        let endpoint = Endpoint::resolve(extension, account)?;
        let mut locks: Vec<i64> = plans
            .iter()
            .filter_map(|plan| copies::writes(&plan.route).first().copied())
            .collect();
        locks.sort_unstable();
        let locks = locks
            .iter()
            .map(|key| format!("SELECT pg_catalog.pg_advisory_xact_lock({key})"));
        let mut statements = remote_transaction::BEGIN.map(str::to_owned).to_vec();
        statements.push("SET LOCAL statement_timeout = 0".to_owned());
        statements.extend(more.iter().map(|text| (*text).to_owned()));
        statements.extend(locks);
        let unknown: Vec<(&Copy, &Plan)> = copies
            .iter()
            .zip(plans)
            .filter(|(copy, _)| !self.facts.contains_key(&copy.id))
            .collect();
        statements.extend(unknown.iter().map(|(_, plan)| ask_facts(&plan.route)));
        if let Some(name) = &plans[0].route.application_name {
            statements.push(format!(
                "SELECT pg_catalog.set_config('application_name', {}, true)",
                literal(name)
            ));
        }
        statements.push(remote_transaction::CURRENT_ID.to_owned());
        let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
        let (target, answers) = CopyTarget::begin(&endpoint, &statements)?;
        let mut values = answers
            .into_iter()
            .map(|rows| rows.into_iter().next().flatten());
        values.by_ref().take(plans.len()).for_each(drop);
        for (copy, _) in unknown {
            let answer = values.next().flatten().unwrap_or_default();
            let facts = serde_json::from_str(&answer)
                .map_err(|_| Error::internal("malformed description of a target"))?;
            self.facts.insert(copy.id, facts);
        }
        let xact = values
            .next_back()
            .flatten()
            .ok_or(Error::internal("no transaction there"))?;
        Ok((target, xact))
    }

    /// Brings what has become of the ranges so far, and the next range.
    fn bring(
        &self,
        mut target: CopyTarget,
        moment: &Snapshot,
        copies: &[Copy],
        plans: &[Plan],
        dirty: Vec<Dirty>,
    ) -> Result<(CopyTarget, Vec<Brought>)> {
        let mut brought: Vec<Brought> = copies
            .iter()
            .map(|copy| Brought {
                position: copy.position.clone(),
                complete: copy.complete,
                ..Brought::default()
            })
            .collect();
        let begins_anew = |at: &usize| {
            let copy = &copies[*at];
            let plan = &plans[*at];
            dirty[*at].emptied || copy.position.is_some() && self.is_brought_anew(copy, plan)
        };
        let emptied: Vec<usize> = (0..plans.len()).filter(begins_anew).collect();
        if !emptied.is_empty() {
            self.empty(&mut target, copies, plans, &emptied)?;
            for at in &emptied {
                brought[*at] = Brought {
                    emptied: true,
                    ..Brought::default()
                };
            }
        }
        let mut changed: Vec<ChangedRows> = Vec::with_capacity(plans.len());
        for (at, dirty) in dirty.into_iter().enumerate() {
            changed.push(if emptied.contains(&at) {
                ChangedRows::default()
            } else {
                ChangedRows::read(moment, &copies[at], &plans[at], dirty)?
            });
        }
        // Those who refer to rows go before the rows, and come after them. A row that others there refer to until they
        // are written goes in the end.
        let mut held = Held::default();
        for at in (0..plans.len()).rev() {
            let removed = std::mem::take(&mut changed[at].removed);
            for chunk in in_chunks(deletions(&plans[at], removed)) {
                held.apply(&mut target, &chunk)?;
            }
        }
        for (at, changed) in changed.into_iter().enumerate() {
            let copy = &copies[at];
            let plan = &plans[at];
            let ChangedRows {
                changes,
                mut written,
                ..
            } = changed;
            // Of a table of which no range was brought, some rows may refer to what is still to come: those come with
            // their ranges.
            if copy.position.is_none() && !copy.complete && plan.comes_again() {
                // What goes does not come again: a deletion, or a key that is given up.
                let (gone, mut there): (Vec<_>, Vec<_>) = changes
                    .into_iter()
                    .partition(|(_, change)| !change.key.is_empty());
                for chunk in in_chunks(gone) {
                    held.apply(&mut target, &chunk)?;
                }
                let route = plan.overwriting();
                let rows = std::mem::take(&mut written).into_iter();
                there.extend(rows.map(|row| (route.clone(), insertion(row, None))));
                for chunk in in_chunks(there) {
                    apply_some(&mut target, &chunk)?;
                }
                continue;
            }
            for chunk in in_chunks(changes) {
                held.apply(&mut target, &chunk)?;
            }
            target = self.write(target, copy, plan, written)?;
        }
        if emptied.is_empty()
            && let Some(at) = copies.iter().position(|copy| !copy.complete)
        {
            (target, brought[at]) = self.range(target, moment, &copies[at], &plans[at])?;
        }
        held.finish(&mut target)?;
        Ok((target, brought))
    }

    /// Writes rows, whatever of them is there.
    fn write(
        &self,
        mut target: CopyTarget,
        copy: &Copy,
        plan: &Plan,
        rows: Vec<Vec<Option<String>>>,
    ) -> Result<CopyTarget> {
        if rows.is_empty() {
            return Ok(target);
        }
        let mut rows = rows;
        if !plan.route.key_deferrable {
            let route = plan.overwriting();
            let mut has_yielded = false;
            loop {
                let before = rows.len();
                let mut refused = Refused::default();
                for chunk in rows.chunks(ROWS_PER_BATCH) {
                    upsert(&mut target, &route, chunk, &mut refused)?;
                }
                rows = refused.rows;
                let Some(error) = refused.error else {
                    return Ok(target);
                };
                // Who takes over a value finds it free once the other has given it up.
                if rows.len() < before {
                    continue;
                }
                // Values go round in a circle: all give theirs up first. Whose cannot be null are deleted.
                if !std::mem::replace(&mut has_yielded, true) {
                    target.apply(self.yielding(copy, plan, &rows))?;
                    continue;
                }
                if self.facts.get(&copy.id).is_none_or(|facts| facts.cascades) {
                    return Err(error);
                }
                break;
            }
        }
        let keys = rows.iter().map(|row| key_of(&plan.route, row)).collect();
        target.apply(deletions(plan, keys))?;
        let mut into = target.copy(&copy_sql(plan, false))?;
        for row in &rows {
            into.put_texts(row)?;
        }
        Ok(into.finish(false)?.0)
    }

    /// Changes by which rows that are there give up what other rows may want to have.
    fn yielding(
        &self,
        copy: &Copy,
        plan: &Plan,
        rows: &[Vec<Option<String>>],
    ) -> Vec<(Rc<Route>, Change<String>)> {
        let own = &plan.route;
        let yields = self
            .facts
            .get(&copy.id)
            .map_or(&[][..], |facts| &facts.yields);
        let may = |at: &usize| !own.key.contains(at) && yields.contains(&own.columns[*at].name);
        let given_up: Vec<usize> = (0..own.columns.len()).filter(may).collect();
        if given_up.is_empty() {
            return Vec::new();
        }
        let columns = own
            .key
            .iter()
            .chain(&given_up)
            .map(|at| own.columns[*at].clone())
            .collect();
        let key = (0..own.key.len()).collect();
        let policy = Policy::Skip;
        let route = Rc::new(Route {
            columns,
            key,
            policy,
            ..(**own).clone()
        });
        let change = |row: &Vec<Option<String>>| {
            let key = own.key.iter().map(|at| row[*at].clone());
            let row = key.chain(given_up.iter().map(|_| None)).collect();
            (
                route.clone(),
                Change {
                    op: Op::Update,
                    row,
                    ..Change::truncation()
                },
            )
        };
        rows.iter().map(change).collect()
    }

    /// Brings the next range of a table.
    fn range(
        &self,
        target: CopyTarget,
        moment: &Snapshot,
        copy: &Copy,
        plan: &Plan,
    ) -> Result<(CopyTarget, Brought)> {
        let fits = |facts: &Facts| plan.fits_binary(&facts.columns);
        let binary = self.facts.get(&copy.id).is_some_and(fits);
        let query = plan.rows_after(copy.position.as_ref());
        let is_whole = self.goes_whole(copy);
        let mut reading = Reading::new(plan, !is_whole);
        if copy.existing != Existing::Merge && plan.route.version().is_none() && !self.as_changes {
            let columns = plan.route.columns.len();
            let mut into: CopyIn = target.copy(&copy_sql(plan, binary))?;
            if binary {
                into.begin_binary();
            }
            stream::each(moment, plan.reader(), &query, &mut |row| {
                into.put(row, columns, binary)?;
                reading.goes_on(row)
            })?;
            let (target, bytes) = into.finish(binary)?;
            return Ok((target, reading.brought(bytes as i64)));
        }
        let route = match copy.existing {
            Existing::Merge => plan.route.clone(),
            Existing::Error | Existing::Truncate => plan.overwriting(),
        };
        // Under `newest` with the hash of the key.
        let columns = plan.route.columns.len() + usize::from(plan.route.version().is_some());
        let mut target = Some(target);
        let mut rows: Vec<Vec<Option<String>>> = Vec::new();
        let mut bytes = 0;
        let mut held = Held::default();
        let mut send = |rows: Vec<Vec<Option<String>>>| -> Result<()> {
            let Some(mut there) = target.take() else {
                return Err(Error::internal("copy goes on without a connection"));
            };
            let changes = stamped(plan, moment, rows)?.into_iter();
            let batch: Vec<_> = changes.map(|change| (route.clone(), change)).collect();
            bytes += batch
                .iter()
                .map(|(_, change)| change.encoded_size() as i64)
                .sum::<i64>();
            let in_doubt =
                route.policy == Policy::Overwrite && !batch.is_empty() && !plan.is_keyless();
            let found = if in_doubt && plan.route.key_deferrable {
                true
            } else {
                let applied = if is_whole {
                    held.apply(&mut there, &batch)
                } else {
                    there.apply(batch.clone())
                };
                match applied {
                    // Rows that are there have what others are to have.
                    Err(error) if in_doubt && may_be_taken(&error) => true,
                    result => result.map(|()| false)?,
                }
            };
            if found {
                let rows = batch.into_iter().map(|(_, change)| change.row).collect();
                there = self.write(there, copy, plan, rows)?;
            }
            target = Some(there);
            Ok(())
        };
        stream::each(moment, plan.reader(), &query, &mut |row| {
            rows.push(row.texts(0..columns)?);
            if rows.len() >= ROWS_PER_BATCH {
                send(std::mem::take(&mut rows))?;
            }
            reading.goes_on(row)
        })?;
        send(rows)?;
        let mut target = target.ok_or(Error::internal("copy goes on without a connection"))?;
        held.finish(&mut target)?;
        Ok((target, reading.brought(bytes)))
    }

    /// Empties targets.
    fn empty(
        &self,
        target: &mut CopyTarget,
        copies: &[Copy],
        plans: &[Plan],
        which: &[usize],
    ) -> Result<()> {
        if which.is_empty() {
            return Ok(());
        }
        let name = |at: &usize| {
            let kind = self
                .facts
                .get(&copies[*at].id)
                .map_or("", |facts| &facts.kind);
            let only = if kind == "p" { "" } else { "ONLY " };
            format!("{only}{}", relation(&plans[*at].route.target))
        };
        let all: Vec<String> = which.iter().map(name).collect();
        let truncate = format!("TRUNCATE {}", all.join(", "));
        let tried = target.run(&["SAVEPOINT copy", &truncate, "RELEASE SAVEPOINT copy"]);
        match tried {
            // Other tables refer to it, or the right is missing: what is there may be deleted all the same.
            Err(Error::Remote(error))
                if [
                    SqlState::FEATURE_NOT_SUPPORTED,
                    SqlState::INSUFFICIENT_PRIVILEGE,
                ]
                .contains(&error.sqlstate) =>
            {
                target.run(&["ROLLBACK TO SAVEPOINT copy"])?;
                check_alone(target, plans, which, &all)?;
                for name in all.iter().rev() {
                    target.run(&[&format!("DELETE FROM {name}")])?;
                }
                Ok(())
            }
            result => result.map(drop),
        }
    }

    /// Waits for those who may deliver directly, then sees to the targets' rows.
    fn prepare(&mut self, copies: &[Copy]) -> Result<StepOutcome> {
        let group = self.group;
        let waits = run_in_transaction(|| {
            let extension = Extension::find()?;
            let now = registry::writers(&extension, copies)?;
            let writers = self.writers.get_or_insert_with(|| now.clone());
            writers.retain(|writer| now.contains(writer));
            if !writers.is_empty() {
                if copies.iter().any(|copy| copy.state != "starting") {
                    registry::set_state(&extension, group, "starting")?;
                }
                return Ok(true);
            }
            let plans = plans_of(&extension, copies)?;
            let account = plans[0].account();
            // A drain that has begun before may not have seen the copies.
            if !lock::try_drain(account.server) {
                return Ok(true);
            }
            let owner = account.owner.to_u32().to_string();
            for one in queue::lost(&extension, &account.server_name)? {
                if one.owner == owner {
                    let endpoint = Endpoint::resolve(&extension, account)?;
                    let mut link = Link::open(&endpoint)?;
                    remote_transaction::run(&mut link)?;
                    let link = lost::terminate(link, &one.session)?;
                    remote_transaction::release(link);
                    queue::forget_lost(&extension, &one)?;
                }
            }
            Ok(false)
        })?;
        if waits {
            return Ok(StepOutcome::Wait(STEP_DELAY));
        }
        let prepared = run_in_transaction(|| {
            let extension = Extension::find()?;
            let copies = registry::group(&extension, group)?;
            if copies.is_empty() {
                return Ok(None);
            }
            let plans = plans_of(&extension, &copies)?;
            let (mut target, _) = self.open(&extension, &copies, &plans, &[])?;
            for (copy, plan) in copies.iter().zip(&plans) {
                if copy.existing == Existing::Error {
                    let there = relation(&plan.route.target);
                    let ask = format!("SELECT EXISTS (SELECT FROM {there})");
                    let answer = target.run(&[&ask])?;
                    if answer
                        .first()
                        .and_then(|rows| rows.first())
                        .cloned()
                        .flatten()
                        .as_deref()
                        != Some("f")
                    {
                        let name = &plan.route.target.table;
                        let message = format!(
                            "table \"{name}\" of server \"{}\" is not empty",
                            copy.server
                        );
                        return Err(Error::local(SqlState::OBJECT_NOT_READY, message).with_hint(
                            "Call copy_sync() again with existing => 'truncate' or 'merge'.",
                        ));
                    }
                }
            }
            let is_emptied = |at: &usize| copies[*at].existing == Existing::Truncate;
            let which: Vec<usize> = (0..copies.len()).filter(is_emptied).collect();
            self.empty(&mut target, &copies, &plans, &which)?;
            Ok(Some(target))
        })?;
        let Some(target) = prepared else {
            return Ok(StepOutcome::Done);
        };
        let committed = target.commit();
        interrupt::nothing_committed();
        committed?;
        run_in_transaction(|| registry::set_prepared(&Extension::find()?, group))?;
        Ok(StepOutcome::More)
    }

    /// Asks what became of the step that was about to be committed.
    fn settle(&mut self, copies: &[Copy]) -> Result<StepOutcome> {
        let step = copies.iter().find_map(|copy| copy.step.clone());
        let Some((xact, seen)) = step else {
            return Ok(StepOutcome::More);
        };
        let group = self.group;
        let status = run_in_transaction(|| {
            let extension = Extension::find()?;
            let plans = plans_of(&extension, copies)?;
            let (mut target, _) = self.open(&extension, copies, &plans, &[])?;
            let ask = format!(
                "SELECT pg_catalog.pg_xact_status({}::pg_catalog.xid8)",
                literal(&xact)
            );
            let answer = match target.run(&[&ask]) {
                Ok(answer) => answer
                    .into_iter()
                    .next()
                    .and_then(|rows| rows.into_iter().next()),
                // A number that the server has not given yet: it is another one, or an older state of it.
                Err(Error::Remote(error)) if error.sqlstate == SqlState::INVALID_PARAMETER => None,
                Err(error) => return Err(error),
            };
            target.roll_back()?;
            let answer = answer.flatten();
            let is_twice = |(copy, plan): (&Copy, &Plan)| {
                plan.is_keyless() && copy.existing == Existing::Merge
            };
            if answer.is_none() && copies.iter().zip(&plans).any(is_twice) {
                let message = "the server does not know whether it has the rows of this copy";
                return Err(Error::local(SqlState::OBJECT_NOT_READY, message)
                    .with_hint("Call copy_sync() again with existing => 'truncate'."));
            }
            Ok(answer)
        })?;
        match status.as_deref() {
            Some("committed") => self.settled(&seen)?,
            Some("aborted") => {
                run_in_transaction(|| registry::forget_step(&Extension::find()?, group))?
            }
            Some(_) => return Ok(StepOutcome::Wait(STEP_DELAY)),
            None => run_in_transaction(|| registry::begin_anew(&Extension::find()?, group))?,
        }
        Ok(StepOutcome::More)
    }

    fn settled(&self, seen: &str) -> Result<()> {
        let group = self.group;
        run_in_transaction(|| {
            let extension = Extension::find()?;
            let copies = registry::group(&extension, group)?;
            if copies.is_empty() {
                return Ok(());
            }
            registry::settle_step(&extension, group, &plans_of(&extension, &copies)?, seen)
        })
    }

    /// Brings what is left while nobody writes the tables, and ends the copies: what is written from then on is
    /// delivered directly.
    fn go_live(&mut self) -> Result<StepOutcome> {
        let group = self.group;
        let locks = self.locks < MOST_LOCKS;
        let result = run_in_transaction(|| {
            let extension = Extension::find()?;
            let copies = registry::group(&extension, group)?;
            if copies.is_empty() || copies.iter().any(|copy| !copy.complete) {
                return Ok(Some(StepOutcome::More));
            }
            let plans = plans_of(&extension, &copies)?;
            let is_sync = plans.iter().any(|plan| plan.mode == Mode::Sync);
            let limits = [
                "SET LOCAL statement_timeout = 100",
                "SET LOCAL lock_timeout = 50",
            ];
            let (target, _) = self.open(&extension, &copies, &plans, &limits)?;
            let _patience = Settings::set(&[(c"pg_rowsync.delivery_timeout", LIVE_TIMEOUT)]);
            let is_keyless = plans.iter().any(Plan::is_keyless);
            if (locks || is_sync) && !is_keyless {
                let _lock = Settings::set(&[(c"lock_timeout", LOCK_TIMEOUT)]);
                for plan in &plans {
                    let only = if plan.table.partitioned { "" } else { "ONLY " };
                    let name = relation(&plan.table.name);
                    ddl::run(&format!(
                        "LOCK TABLE {only}{name} IN SHARE ROW EXCLUSIVE MODE"
                    ))?;
                }
            }
            let moment = Snapshot::latest();
            let seen = seen_by(&extension, &moment)?;
            let dirty = dirty_of(&extension, &moment, &plans, &seen)?;
            // A few have come since it was found that there are few.
            let is_much = amount(&dirty) > 2 * MAX_ROWS_UNDER_LOCK;
            if is_much {
                moment.release();
                return Ok(Some(StepOutcome::More));
            }
            let is_clean = dirty.iter().all(Dirty::is_empty);
            // What became of this commit could not be told afterwards, and what is brought again is there twice: the
            // queue, which can tell, is left to bring the rest, in order.
            if is_keyless && !is_clean {
                moment.release();
                transaction::wake_worker();
                target.roll_back()?;
                registry::finish(&extension, group, &[], &seen)?;
                return Ok(None);
            }
            let (target, _) = self.bring(target, &moment, &copies, &plans, dirty)?;
            moment.release();
            transaction::wake_worker();
            if is_clean {
                target.roll_back()?
            } else {
                checked(target)?.commit()?;
                interrupt::committed();
            }
            registry::finish(&extension, group, &plans, &seen)?;
            Ok(None)
        });
        match result {
            Ok(None) => Ok(StepOutcome::Done),
            Ok(Some(outcome)) => {
                self.locks += 1;
                Ok(outcome)
            }
            // Somebody writes the tables, or the server takes longer than writers may wait.
            Err(error)
                if bgworker::ending().is_none()
                    && (error.is_transient()
                        || error.sqlstate() == SqlState::LOCK_NOT_AVAILABLE)
                    && self.locks < 10 * MOST_LOCKS =>
            {
                interrupt::nothing_committed();
                self.locks += 1;
                Ok(StepOutcome::Wait(STEP_DELAY * self.locks.min(25)))
            }
            Err(error) => Err(error),
        }
    }

    /// After a failure: whether the step is to be tried in another way.
    pub fn tries_otherwise(&mut self, error: &Error) -> bool {
        let Error::Remote(error) = error else {
            return false;
        };
        match error.sqlstate {
            SqlState::UNIQUE_VIOLATION => !std::mem::replace(&mut self.as_changes, true),
            SqlState::FOREIGN_KEY_VIOLATION if self.facts.values().any(|facts| facts.itself) => {
                !std::mem::replace(&mut self.whole, true)
            }
            _ => false,
        }
    }
}

/// What has become of a table since the step before.
#[derive(Default)]
struct ChangedRows {
    removed: Vec<Key>,
    written: Vec<Vec<Option<String>>>,
    /// Under `newest`, and of a table without a key.
    changes: Vec<(Rc<Route>, Change<String>)>,
}

impl ChangedRows {
    /// Reads the rows that the queue has changes of.
    fn read(moment: &Snapshot, copy: &Copy, plan: &Plan, dirty: Dirty) -> Result<Self> {
        // Rows without a key come with the one range, and are added from then on.
        let comes_with_range = plan.is_keyless() && !copy.complete;
        let mut changed = Self {
            changes: if comes_with_range {
                Vec::new()
            } else {
                dirty.changes
            },
            ..Self::default()
        };
        // Merged with rows that are there, every change counts; else those of the ranges so far.
        let everywhere = copy.complete || copy.existing == Existing::Merge;
        if copy.position.is_none() && !everywhere {
            return Ok(changed);
        }
        let columns = plan.route.columns.len();
        for keys in dirty.keys.chunks(KEYS) {
            let mut there = vec![false; keys.len()];
            let query = plan.rows_of(keys, copy.position.as_ref(), everywhere);
            stream::each(
                moment,
                plan.reader(),
                &query,
                &mut |row: &mut StreamedRow<'_>| {
                    let mut values = row.texts(0..columns + 2)?;
                    let at = values[0].as_deref().and_then(|at| at.parse::<usize>().ok());
                    let is_theirs = values[1].as_deref() == Some("t");
                    if let Some(found) = at.and_then(|at| there.get_mut(at)) {
                        *found = true;
                    }
                    if is_theirs {
                        changed.written.push(values.split_off(2));
                    }
                    Ok(true)
                },
            )?;
            let removed = keys.iter().zip(there).filter(|(_, there)| !there);
            changed.removed.extend(removed.map(|(key, _)| key.clone()));
        }
        Ok(changed)
    }
}

/// Reading a range.
struct Reading<'p> {
    plan: &'p Plan,
    in_ranges: bool,
    began: Instant,
    rows: i64,
    position: Option<Key>,
}

impl<'p> Reading<'p> {
    /// `in_ranges`: if the table can be read so.
    fn new(plan: &'p Plan, in_ranges: bool) -> Self {
        Self {
            plan,
            in_ranges: in_ranges && plan.in_ranges,
            began: Instant::now(),
            rows: 0,
            position: None,
        }
    }

    /// Whether to go on after this row.
    fn goes_on(&mut self, row: &mut StreamedRow<'_>) -> Result<bool> {
        self.rows += 1;
        let is_enough =
            self.in_ranges && self.rows % LOOK_EVERY == 0 && self.began.elapsed() >= SLICE;
        if is_enough {
            self.position = Some(row.texts(self.plan.route.key.iter().copied())?);
        }
        Ok(!is_enough)
    }

    fn brought(self, bytes: i64) -> Brought {
        let complete = self.position.is_none();
        Brought {
            position: self.position,
            complete,
            emptied: false,
            rows: self.rows,
            bytes,
        }
    }
}

/// Rows that constraints have refused that look at other rows.
#[derive(Default)]
struct Refused {
    rows: Vec<Vec<Option<String>>>,
    /// The last refusal.
    error: Option<Error>,
}

/// Applies changes, all but those that are refused even by themselves for what other rows have or want.
fn apply_some(target: &mut CopyTarget, changes: &[(Rc<Route>, Change<String>)]) -> Result<()> {
    match target.apply(changes.to_vec()) {
        Err(error) if error.is_about_others() => {
            if changes.len() < 2 {
                return Ok(());
            }
            let (one, other) = changes.split_at(changes.len() / 2);
            apply_some(target, one)?;
            apply_some(target, other)
        }
        result => result,
    }
}

/// Writes rows, all but those that are refused even by themselves.
fn upsert(
    target: &mut CopyTarget,
    route: &Rc<Route>,
    rows: &[Vec<Option<String>>],
    refused: &mut Refused,
) -> Result<()> {
    let inserts = rows
        .iter()
        .map(|row| (route.clone(), insertion(row.clone(), None)));
    match target.apply(inserts.collect()) {
        Err(error) if error.is_about_others() => {
            if let [row] = rows {
                refused.rows.push(row.clone());
                refused.error = Some(error);
                return Ok(());
            }
            let (one, other) = rows.split_at(rows.len() / 2);
            upsert(target, route, one, refused)?;
            upsert(target, route, other, refused)
        }
        result => result,
    }
}

/// Whether rows were refused for what other rows have.
fn may_be_taken(error: &Error) -> bool {
    error.is_about_others() && error.sqlstate() != SqlState::FOREIGN_KEY_VIOLATION
}

fn plans_of(extension: &Extension, copies: &[Copy]) -> Result<Vec<Plan>> {
    let plan = |copy: &Copy| Plan::new(extension, copy.relation, &copy.server, Some(&copy.target));
    copies.iter().map(plan).collect()
}

fn seen_by(extension: &Extension, moment: &Snapshot) -> Result<String> {
    let sql = "SELECT pg_catalog.pg_current_snapshot()";
    spi::only(spi::read_as_of(extension, moment, sql, &[])?)
}

fn dirty_of(
    extension: &Extension,
    moment: &Snapshot,
    plans: &[Plan],
    seen: &str,
) -> Result<Vec<Dirty>> {
    plans
        .iter()
        .map(|plan| registry::dirty(extension, moment, plan, seen))
        .collect()
}

/// How many changes there are; very many where a table was emptied.
fn amount(dirty: &[Dirty]) -> usize {
    let of = |one: &Dirty| {
        if one.emptied {
            usize::MAX
        } else {
            one.keys.len() + one.changes.len()
        }
    };
    dirty.iter().map(of).fold(0, usize::saturating_add)
}

/// What could be deferred is checked before the commit, where it can still be told.
fn checked(mut target: CopyTarget) -> Result<CopyTarget> {
    target.run(&["SET CONSTRAINTS ALL IMMEDIATE"])?;
    Ok(target)
}

fn ask_facts(route: &Route) -> String {
    let target = literal(&relation(&route.target));
    format!(
        "SELECT pg_catalog.json_build_object('kind', c.relkind, 'columns', \
           (SELECT pg_catalog.json_object_agg(a.attname, a.atttypid::pg_catalog.int8) \
              FROM pg_catalog.pg_attribute a WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid \
               AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped), \
           'cascades', EXISTS (SELECT FROM pg_catalog.pg_constraint f \
              WHERE f.confrelid OPERATOR(pg_catalog.=) c.oid \
                AND f.contype OPERATOR(pg_catalog.=) 'f' \
                AND f.confdeltype OPERATOR(pg_catalog.=) ANY ('{{c,n,d}}')), \
           'itself', EXISTS (SELECT FROM pg_catalog.pg_constraint f \
              WHERE f.conrelid OPERATOR(pg_catalog.=) c.oid \
                AND f.confrelid OPERATOR(pg_catalog.=) c.oid \
                AND f.contype OPERATOR(pg_catalog.=) 'f'), \
           'yields', (SELECT COALESCE(pg_catalog.json_agg(a.attname), '[]'::pg_catalog.json) \
              FROM pg_catalog.pg_attribute a WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid \
               AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped AND NOT a.attnotnull \
               AND EXISTS (SELECT FROM pg_catalog.pg_index i \
                 WHERE i.indrelid OPERATOR(pg_catalog.=) c.oid AND (i.indisunique OR i.indisexclusion) \
                   AND a.attnum OPERATOR(pg_catalog.=) ANY (i.indkey::pg_catalog.int2[])))) \
         FROM pg_catalog.pg_class c \
         WHERE c.oid OPERATOR(pg_catalog.=) {target}::pg_catalog.regclass::pg_catalog.oid"
    )
}

fn copy_sql(plan: &Plan, binary: bool) -> String {
    let target = relation(&plan.route.target);
    let columns = plan.target_columns();
    let format = if binary { " (FORMAT binary)" } else { "" };
    format!("COPY {target} ({columns}) FROM STDIN{format}")
}

fn key_of(route: &Route, row: &[Option<String>]) -> Key {
    route
        .key
        .iter()
        .map(|at| row.get(*at).cloned().flatten())
        .collect()
}

fn insertion(row: Vec<Option<String>>, stamp: Option<Stamp<String>>) -> Change<String> {
    Change {
        op: Op::Insert,
        row,
        stamp,
        ..Change::truncation()
    }
}

/// Changes that delete the rows with these keys.
fn deletions(plan: &Plan, keys: Vec<Key>) -> Vec<(Rc<Route>, Change<String>)> {
    let route = Rc::new(Route {
        policy: Policy::Overwrite,
        key_deferrable: false,
        ..(*plan.route).clone()
    });
    let deletion = |key| Change {
        op: Op::Delete,
        key,
        ..Change::truncation()
    };
    keys.into_iter()
        .map(|key| (route.clone(), deletion(key)))
        .collect()
}

fn in_chunks(
    changes: Vec<(Rc<Route>, Change<String>)>,
) -> impl Iterator<Item = Vec<(Rc<Route>, Change<String>)>> {
    let mut changes = changes.into_iter().peekable();
    std::iter::from_fn(move || {
        changes.peek()?;
        Some(changes.by_ref().take(ROWS_PER_BATCH).collect())
    })
}

/// Rows as insertions; under `newest`, where the last value of each is the hash of its key, with what they count as.
fn stamped(
    plan: &Plan,
    moment: &Snapshot,
    mut rows: Vec<Vec<Option<String>>>,
) -> Result<Vec<Change<String>>> {
    let Some(at) = plan.route.version() else {
        return Ok(rows.into_iter().map(|row| insertion(row, None)).collect());
    };
    let hashes: Vec<String> = rows
        .iter_mut()
        .map(|row| row.pop().flatten().unwrap_or_default())
        .collect();
    let known: Vec<&str> = hashes.iter().map(String::as_str).collect();
    let stored = plan.stamps(moment, &known)?;
    let name = &plan.route.columns[at].name;
    let version_type = plan.types().find(|(own, _)| own == name);
    let version_type = Oid::from(version_type.map_or(0, |(_, oid)| oid));
    // Reading and comparing versions calls functions of their type, and checks of a domain.
    stream::among(moment, plan.reader(), || {
        let insertions = rows.into_iter().zip(&hashes).map(|(row, hash)| {
            let stamp = stored
                .get(hash)
                .map(|one| versions::counts_as_stored(version_type, one, row[at].as_deref()));
            Ok(insertion(row, stamp.transpose()?))
        });
        insertions.collect()
    })
}
