//! What becomes of the units of a batch: applied, marked failed, made to wait, or left for later.
//!
//! A batch is first applied whole. If that fails over a record, the units that cannot be applied are
//! found by halving, see [`bisect`]; each is marked failed, what depends on it waits, and the rest is applied
//! without them. What may have been applied before is looked at first, see [`doubt`].

mod bisect;
mod doubt;
mod postponed;

use self::postponed::Postponed;
use super::classify::conflict_of;
use super::rekeyed;
use super::replay::Replay;
use crate::atomic::decision::{self, TransactionDecision};
use crate::change::{Op, Relation, Route};
use crate::conflict::Tally;
use crate::delivery::plan::Planner;
use crate::delivery::whole::Span;
use crate::error::{Error, Result, SqlState};
use crate::pg::spi::Extension;
use crate::pg::{Oid, sequence};
use crate::queue::claim::{Claims, Record, Unit};
use crate::queue::failed::{self, Blockers, Waiting};
use crate::queue::writeset::Writeset;
use crate::queue::{floor, lanes};
use crate::transaction;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// What becomes of a unit.
enum UnitState {
    /// Not known yet; in the end: left pending.
    Open,
    Applied,
    /// Applied before the batch, or by an earlier drain.
    Settled,
    /// Refused with this error; and whether the row of its change was there.
    Failed(Error, bool),
    /// Depends on this failed record.
    Waits(i64),
}

/// Units of a source transaction that break a deferred constraint.
#[derive(Default)]
struct Culprits {
    units: Vec<(usize, Error)>,
    /// Which of them is not certain.
    together: bool,
}

/// Units of a source transaction that are suspected one by one.
const MAX_CANDIDATES: usize = 4;

/// How records are tried, and what the batches of a lane have met so far.
#[derive(Default)]
pub struct Trial {
    /// A record that fails over something that may pass by itself is marked failed, too.
    pub isolates: bool,
    /// Failed records over such a thing: each is tried by itself.
    pub alone: HashSet<i64>,
    /// What fails may do so over other lanes' changes, which are not committed or applied yet.
    pub beside_others: bool,
    /// Other lanes are served afterwards: what is refused over other rows may need those that the same transactions
    /// have written for these.
    pub before_others: bool,
    /// Records are apart or marked failed that may be applied later by themselves: what refers to their rows
    /// can wait for that.
    pub may_pass: bool,
    /// Targets of failed records over something that may pass by itself.
    pub busy: Vec<Relation>,
    /// Other owners' transactions that are prepared there and not finished: records of their rows are newer.
    pub unfinished: Vec<TransactionDecision>,
    /// An earlier drain was about to commit records up to this one, and did so or not.
    pub replayed_until: Option<i64>,
    /// As far as records can have been applied before.
    pub maybe_until: i64,
    /// As far as this is known to whoever comes after a crash.
    pub noted_until: i64,
    /// Whether they were is not asked any more: the connection is lost whenever that is settled.
    pub gives_up_doubt: bool,
}

/// Units by which a batch is completed, at most, but for those of its last command.
const MAX_COMPLETED: usize = 20_000;

/// Units that a cascade takes along with a batch, at most: they are held in memory.
const MAX_CASCADED: usize = 100_000;

/// Failed records over something that may pass by itself in one turn: each may take as long as a lock is
/// waited for.
const MAX_BUSY: usize = 4;

/// Records of a lane that are tried together.
pub struct RecordBatch<'h> {
    extension: &'h Extension,
    server_name: &'h str,
    owner: Oid,
    trial: &'h mut Trial,
    /// Units whose tables are at fault, whatever the failure says.
    whole_tables: HashSet<usize>,
    units: Vec<Unit>,
    states: Vec<UnitState>,
    /// Marks of older records that are failed or wait, and of those in the batch.
    blockers: Blockers,
    /// The server has such older records.
    has_failed: bool,
    /// Units that may still be marked failed.
    budget: usize,
    /// Why nothing more is tried on the server.
    stop: Option<Error>,
    /// It failed beside other lanes' changes.
    deferred: bool,
    /// The connection was lost over a unit that was marked failed for it.
    lost_one: bool,
    postponed: Postponed,
    /// Units that were refused one after the other and applied as a whole.
    wholes: Vec<(Vec<usize>, Span)>,
}

/// What a batch came to.
pub struct BatchOutcome {
    /// Ids of records that were applied.
    pub applied: Vec<i64>,
    /// How many units were marked failed, and why the first.
    pub failed: Vec<(i64, Error)>,
    /// The conflicts that marks them failed, each for the first time.
    pub conflicts: Tally,
    /// Why nothing more is to be tried on the server.
    pub stop: Option<Error>,
    /// Nothing more is to be tried before other lanes' changes are committed.
    pub deferred: bool,
    /// The connection was lost over a record that was marked failed for it: the rest is to be tried over another.
    pub lost_one: bool,
}

impl<'h> RecordBatch<'h> {
    /// A batch of units, of which at most `budget` are marked failed.
    ///
    /// # Errors
    /// What reading the queue reports.
    pub fn new(
        extension: &'h Extension,
        server_name: &'h str,
        owner: Oid,
        units: Vec<Unit>,
        budget: usize,
        trial: &'h mut Trial,
    ) -> Result<Self> {
        let has_failed = failed::exist(extension, server_name)?;
        let mut batch = Self {
            extension,
            server_name,
            owner,
            trial,
            whole_tables: HashSet::new(),
            units: Vec::new(),
            states: Vec::new(),
            blockers: Blockers::default(),
            has_failed,
            budget,
            stop: None,
            deferred: false,
            lost_one: false,
            postponed: Postponed::default(),
            wholes: Vec::new(),
        };
        batch.add(units)?;
        Ok(batch)
    }

    fn add(&mut self, units: Vec<Unit>) -> Result<()> {
        if self.has_failed {
            let mut depends_on: Vec<i64> = units
                .iter()
                .flat_map(|unit| unit.writeset().depends_on)
                .collect();
            depends_on.sort_unstable();
            depends_on.dedup();
            self.blockers
                .load(self.extension, self.server_name, self.owner, &depends_on)?;
        }
        self.states.extend(units.iter().map(|_| UnitState::Open));
        self.units.extend(units);
        Ok(())
    }

    /// Applies what can be applied. `claims` gives more where a transaction is incomplete, and reads `left`
    /// records ahead for the next batch.
    ///
    /// # Errors
    /// What reading the queue reports; 57014 for a request to cancel.
    pub fn apply(&mut self, replay: &mut Replay, claims: &mut Claims<'_>, left: i64) -> Result<()> {
        self.complete_cascades(claims)?;
        self.hold_behind_prepared()?;
        self.refuse_rekeyed()?;
        self.refuse_unplannable();
        self.settle_doubt(replay, claims)?;
        let open = self.admit(0..self.units.len());
        if open.is_empty() || self.stop.is_some() {
            return Ok(());
        }
        let is_alone = |at: &usize| self.trial.alone.contains(&self.units[*at].id());
        let alone: Vec<usize> = open.iter().copied().filter(is_alone).collect();
        if !alone.is_empty() {
            return self.apply_alone_first(replay, claims, alone);
        }
        let extension = self.extension;
        let last = self.last_id();
        let mut noted = Ok(());
        let meanwhile = || {
            claims.read_ahead(left);
            noted = note_replay(extension, last);
        };
        let result = replay.whole(&self.chosen(&open), meanwhile);
        noted?;
        self.trial.noted_until = self.trial.noted_until.max(last);
        let failure = match result {
            Ok(()) => {
                self.set_applied(&open);
                return Ok(());
            }
            Err(error) if replay.can_go_on(&error) => error,
            Err(error) => return self.lost_over(open, error),
        };
        let undone = replay.undo();
        self.deferred = !is_away(replay, &failure)
            && (self.trial.beside_others || self.is_part_of_others(&failure)?);
        if !self.deferred && self.stops(replay, &failure) {
            self.stop = Some(failure.clone());
        }
        // What failed first tells more than what that has led to.
        if undone.is_err() {
            return self.lost(failure);
        }
        if self.deferred {
            return Ok(());
        }
        if self.stop.is_none() && self.may_be_replayed(&failure) {
            self.settle_until(replay, self.trial.maybe_until)?;
        }
        if self.stop.is_none() && !failure.is_transient() {
            self.complete(claims)?;
        }
        self.apply_in_parts(replay)?;
        self.check(replay, claims)
    }

    /// Whether a failure is one over other rows, which the same transactions may have written for lanes that are
    /// served later.
    fn is_part_of_others(&self, failure: &Error) -> Result<bool> {
        if !self.trial.before_others || !failure.is_about_others() {
            return Ok(false);
        }
        lanes::have_parts(
            self.extension,
            (self.server_name, self.owner),
            (self.first_id(), self.last_id()),
        )
    }

    fn last_id(&self) -> i64 {
        self.units
            .iter()
            .flat_map(|unit| &unit.records)
            .map(|r| r.id)
            .max()
            .unwrap_or_default()
    }

    /// See [`Trial::noted_until`].
    pub fn noted(&self) -> i64 {
        self.trial.noted_until
    }

    /// The transaction and the command of its last record.
    fn end(&self) -> Option<(u32, u32)> {
        self.units
            .last()
            .map(|unit| (unit.transaction(), unit.command()))
    }

    /// Applies units, some of them each by itself before the others: these have failed before over something
    /// that may not have passed.
    fn apply_alone_first(
        &mut self,
        replay: &mut Replay,
        claims: &mut Claims<'_>,
        alone: Vec<usize>,
    ) -> Result<()> {
        if let Err(error) = replay.whole(&[], || ()).and_then(|()| replay.undo()) {
            return self.lost(error);
        }
        self.complete(claims)?;
        self.postpone();
        for at in alone {
            self.bisect(replay, vec![at])?;
        }
        // Refused over other rows, a unit is tried again with the rest of its transaction.
        self.postponed = Postponed::default();
        self.apply_in_parts(replay)?;
        self.check(replay, claims)
    }

    /// Whether a failure ends the attempt without a look for the unit to blame. A statement that ran into its
    /// timeout may have done so for its size alone.
    fn stops(&self, replay: &mut Replay, error: &Error) -> bool {
        is_away(replay, error)
            || (error.is_transient()
                && !self.trial.isolates
                && error.sqlstate() != SqlState::QUERY_CANCELED)
    }

    /// The connection was lost or given up over these units. One that this happens to by itself again is to
    /// blame: a connection may also be lost for reasons of its own.
    fn lost_over(&mut self, units: Vec<usize>, error: Error) -> Result<()> {
        self.lost(error.clone())?;
        if !matches!(error, Error::Timeout { .. } | Error::Lost { .. }) {
            return Ok(());
        }
        let [one] = units[..] else {
            return Ok(());
        };
        let id = self.units[one].id();
        let is_to_blame = match error {
            _ if self.trial.alone.contains(&id) => true,
            _ if !self.trial.isolates => false,
            Error::Timeout { .. } => true,
            _ => !failed::note_try(self.extension, id)?,
        };
        if is_to_blame {
            let target = &self.units[one].records[0].route.target;
            if failed::are_lost_over(self.extension, self.server_name, self.owner, id, target)? {
                self.whole_tables.insert(one);
            }
            self.fail(one, error, false);
            self.lost_one = true;
        }
        Ok(())
    }

    /// Whether a unit that failed over something that may pass is to be marked failed.
    fn may_fail_for_now(&self, at: usize) -> bool {
        let again = self.trial.alone.contains(&self.units[at].id());
        self.trial.busy.len() < MAX_BUSY && (self.trial.isolates || again)
    }

    /// Marks a unit failed that failed by itself over something that may pass, if that is to be done. A second
    /// one of a table tells that it is the table.
    fn fail_for_now(&mut self, at: usize, error: Error) {
        let again = self.trial.alone.contains(&self.units[at].id());
        if self.trial.busy.len() >= MAX_BUSY && again {
            return;
        }
        if !self.may_fail_for_now(at) {
            self.stop = Some(error);
            return;
        }
        let target = self.units[at].records[0].route.target.clone();
        if self.trial.busy.contains(&target) {
            self.whole_tables.insert(at);
        }
        self.trial.busy.push(target);
        self.fail(at, error, false);
    }

    /// Checks deferred constraints, and marks failed what breaks them.
    ///
    /// The constraints hold at the end of every source transaction, or that would not have been committed. So the
    /// batch is completed to such an end first. The culprit is sought among whole transactions, then among the units
    /// of the transaction that is refused. If none of these is found out, the whole transaction is marked failed.
    fn check(&mut self, replay: &mut Replay, claims: &mut Claims<'_>) -> Result<()> {
        let mut complete = false;
        while !self.applied().is_empty() {
            if self.budget == 0 {
                return self.take_back_if_broken(replay);
            }
            let error = match replay.check() {
                Ok(()) => return Ok(()),
                Err(error) if is_to_blame(replay, &error) => error,
                Err(error) => return self.give_up(replay, error),
            };
            let mut culprits = Culprits::default();
            if !complete {
                self.complete(claims)?;
                complete = true;
            } else {
                culprits = match self.find_culprits(replay, error) {
                    Ok(culprits) => culprits,
                    Err(error) => return self.give_up(replay, error),
                };
            }
            if let Err(error) = replay.undo() {
                return self.give_up(replay, error);
            }
            self.reopen();
            let Culprits { units, together } = culprits;
            if together {
                self.fail_together(units)
            } else {
                units
                    .into_iter()
                    .for_each(|(at, why)| self.fail(at, why, false))
            }
            self.refuse_unplannable();
            self.apply_in_parts(replay)?;
        }
        Ok(())
    }

    /// Adds changes of rows that a cascade takes along with rows of the batch: in another remote transaction they
    /// would be missed.
    fn complete_cascades(&mut self, claims: &mut Claims<'_>) -> Result<()> {
        let most = self.units.len() + MAX_CASCADED;
        while let Some(last) = self.units.last().map(Unit::transaction)
            && self.units.len() < most
        {
            let own = self.units.iter().rev();
            let own = own.take_while(|unit| unit.transaction() == last);
            let vanished: HashSet<&Relation> = own
                .flat_map(|unit| &unit.records)
                .filter(|record| record.takes_rows_away())
                .map(|record| &record.route.source)
                .collect();
            if vanished.is_empty() {
                return Ok(());
            }
            let goes_along = |record: &Record| {
                let from = &record.route.cascades_from;
                from.iter().any(|table| vanished.contains(table))
            };
            let more = claims
                .next_of_transaction_while(last, |unit| unit.records.iter().any(goes_along))?;
            if more.is_empty() {
                return Ok(());
            }
            self.add(more)?;
        }
        Ok(())
    }

    /// Adds the rest of the batch's last source transaction; of a very large one, that of its last
    /// command.
    fn complete(&mut self, claims: &mut Claims<'_>) -> Result<()> {
        let most = self.units.len() + MAX_COMPLETED;
        while let Some(last) = self.units.last().map(Unit::transaction)
            && self.units.len() < most
        {
            let more = claims.next_of_transaction(last)?;
            if more.is_empty() {
                return Ok(());
            }
            self.add(more)?;
        }
        while let Some(last) = self.end() {
            let more = claims.next_of_command(last)?;
            if more.is_empty() {
                break;
            }
            self.add(more)?;
        }
        Ok(())
    }

    /// Finds what of the applied units breaks a deferred constraint, over the failure of all of them.
    ///
    /// # Errors
    /// What says nothing about the units.
    fn find_culprits(&self, replay: &mut Replay, error: Error) -> Result<Culprits> {
        let parts = self.by_transaction(self.applied());
        let (found, error) = self.first_bad(replay, &[], &parts, error)?;
        let base = parts[..found].concat();
        let mut rest = parts[found].clone();
        let mut candidates: Vec<(usize, Error)> = Vec::new();
        let mut why = error.clone();
        loop {
            if candidates.len() >= MAX_CANDIDATES || rest.is_empty() {
                let whole = parts[found].iter().map(|at| (*at, error.clone())).collect();
                return Ok(Culprits {
                    units: whole,
                    together: true,
                });
            }
            let single: Vec<Vec<usize>> = rest.iter().map(|at| vec![*at]).collect();
            let (at, reason) = self.first_bad(replay, &base, &single, why)?;
            candidates.push((rest.remove(at), reason));
            match self.trial(replay, &[&base[..], &rest[..]].concat()) {
                Ok(()) => break,
                Err(broken) if is_to_blame(replay, &broken) => why = broken,
                Err(broken) => return Err(broken),
            }
        }
        // One that does no harm among all the others only stood before what it needs.
        let mut units = Vec::new();
        for (at, reason) in candidates {
            let mut with = rest.clone();
            with.push(at);
            with.sort_unstable();
            match self.trial(replay, &[&base[..], &with[..]].concat()) {
                Ok(()) => rest = with,
                Err(broken) if is_to_blame(replay, &broken) => units.push((at, reason)),
                Err(broken) => return Err(broken),
            }
        }
        // All cleared: the server's rows have changed meanwhile.
        if units.is_empty() {
            Err(error)
        } else {
            Ok(Culprits {
                units,
                together: false,
            })
        }
    }

    /// The part with which the given ones, after `base`, begin to break a deferred constraint, and how:
    /// found by halving.
    ///
    /// # Errors
    /// What says nothing about the units.
    fn first_bad(
        &self,
        replay: &mut Replay,
        base: &[usize],
        parts: &[Vec<usize>],
        mut error: Error,
    ) -> Result<(usize, Error)> {
        let mut good = 0;
        let mut bad = parts.len();
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            let mut units = [base, &parts[..middle].concat()].concat();
            units.sort_unstable();
            match self.trial(replay, &units) {
                Ok(()) => good = middle,
                Err(broken) if is_to_blame(replay, &broken) => (bad, error) = (middle, broken),
                Err(broken) => return Err(broken),
            }
        }
        Ok((good, error))
    }

    /// Applies units instead of what stands, and checks deferred constraints: all as they are, or those as a
    /// whole that were true as a whole only.
    fn trial(&self, replay: &mut Replay, units: &[usize]) -> Result<()> {
        let error = match replay.instead(&self.chosen(units)) {
            Err(error) if error.is_about_others() && replay.can_go_on(&error) => error,
            result => return result,
        };
        let chosen: HashSet<usize> = units.iter().copied().collect();
        let mut wholes = HashMap::new();
        let mut within = HashSet::new();
        for (group, span) in &self.wholes {
            if group
                .iter()
                .all(|at| chosen.contains(at) && !within.contains(at))
            {
                within.extend(group.iter().copied());
                wholes.extend(group.first().map(|first| (*first, (group, span))));
            }
        }
        if wholes.is_empty() {
            return Err(error);
        }
        replay.undo()?;
        let mut plain: Vec<usize> = Vec::new();
        for at in units.iter().copied() {
            if let Some((group, span)) = wholes.get(&at) {
                replay.part(&self.chosen(&std::mem::take(&mut plain)))?;
                replay.part_whole(&self.chosen(group), **span)?;
            } else if !within.contains(&at) {
                plain.push(at);
            }
        }
        replay.part(&self.chosen(&plain))?;
        replay.check()
    }

    /// No more may be marked failed: nothing of a batch that still breaks a constraint stays.
    fn take_back_if_broken(&mut self, replay: &mut Replay) -> Result<()> {
        match replay.check() {
            Ok(()) => return Ok(()),
            Err(error) if !replay.can_go_on(&error) => return self.lost(error),
            Err(_) => {}
        }
        self.reopen();
        match replay.undo() {
            Ok(()) => Ok(()),
            Err(error) => self.lost(error),
        }
    }

    /// Nothing of the batch stays, over a failure that says nothing about its units.
    fn give_up(&mut self, replay: &mut Replay, error: Error) -> Result<()> {
        if replay.can_go_on(&error) && replay.undo().is_err() {
            replay.give_up();
        }
        self.lost(error)
    }

    /// Fails units that cannot be turned into statements.
    fn refuse_unplannable(&mut self) {
        let deferrable = |unit: &Unit| unit.records.iter().any(|r| r.route.key_deferrable);
        if !self.units.iter().any(deferrable) {
            return;
        }
        let mut planner = Planner::default();
        for at in 0..self.units.len() {
            let push = |planner: &mut Planner| {
                let mut records = self.units[at].records.iter();
                records.try_for_each(|r| planner.push(&r.route, &r.change.borrowed()))
            };
            if matches!(self.states[at], UnitState::Open)
                && let Err(error) = push(&mut planner)
            {
                self.fail(at, error, false);
                planner = Planner::default();
            }
            while planner.pop().is_some() {}
        }
    }

    /// Fails units that newer changes may have gone past, where rows are told by another key by now, and lets their
    /// tables wait.
    fn refuse_rekeyed(&mut self) -> Result<()> {
        let mut known: Vec<(Rc<Route>, Option<Error>)> = Vec::new();
        for at in 0..self.units.len() {
            let records = self.units[at].records.iter();
            let mut refused = None;
            let may_set_back =
                |record: &&Record| record.may_be_passed && record.change.op != Op::Truncate;
            for record in records.filter(may_set_back) {
                let route = &record.route;
                if !known.iter().any(|(one, _)| Rc::ptr_eq(one, route)) {
                    let found = rekeyed::refusal(self.extension, self.server_name, route)?;
                    known.push((route.clone(), found));
                }
                let found = known.iter().find(|(one, _)| Rc::ptr_eq(one, route));
                refused = refused.or(found.and_then(|(_, found)| found.clone()));
            }
            if let Some(error) = refused
                && !self.admit([at]).is_empty()
            {
                self.whole_tables.insert(at);
                self.fail(at, error, false);
            }
        }
        Ok(())
    }

    /// Fails, for now, units that concern rows of transactions that other owners have prepared and that could not
    /// be finished: there they would pass them.
    fn hold_behind_prepared(&mut self) -> Result<()> {
        if self.trial.unfinished.is_empty() {
            return Ok(());
        }
        let mut held = Vec::new();
        let mut unsettled: Vec<Vec<usize>> = vec![(0..self.units.len()).collect()];
        while let Some(part) = unsettled.pop() {
            if part.is_empty() || !self.meets_prepared(&part)? {
                continue;
            }
            if let [one] = part.as_slice() {
                held.push(*one);
            } else {
                let (first, second) = part.split_at(part.len() / 2);
                unsettled.push(second.to_vec());
                unsettled.push(first.to_vec());
            }
        }
        for at in held {
            if !self.admit([at]).is_empty() {
                let server = self.server_name.to_owned();
                self.fail(at, Error::Pending { server }, false);
            }
        }
        Ok(())
    }

    /// Whether one of these units concerns a row of such a transaction.
    fn meets_prepared(&self, units: &[usize]) -> Result<bool> {
        let mut writeset = Writeset::default();
        writeset.join(units.iter().map(|at| self.units[*at].writeset()));
        let depends_on = &writeset.depends_on;
        let found = decision::conflicting_with(self.extension, self.server_name, depends_on, &[])?;
        let is_left = |gid: &String| self.trial.unfinished.iter().any(|one| one.gid == *gid);
        Ok(found.iter().any(|one| is_left(&one.gid)))
    }

    /// Of units not decided yet, those that need not wait; the others do from now on.
    fn admit(&mut self, units: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let mut free = Vec::new();
        for at in units {
            if !matches!(self.states[at], UnitState::Open) {
                continue;
            }
            if !self.blockers.is_empty() {
                let id = self.units[at].id();
                let writeset = self.units[at].writeset();
                if let Some(root) = self.blockers.find(id, &writeset) {
                    self.blockers.add(id, root, &writeset.writes);
                    self.states[at] = UnitState::Waits(root);
                    continue;
                }
            }
            free.push(at);
        }
        self.admit_beside_postponed(free)
    }

    fn fail(&mut self, at: usize, error: Error, is_there: bool) {
        let id = self.units[at].id();
        self.blockers.add(id, id, &self.writes(at, &error));
        self.states[at] = UnitState::Failed(error, is_there);
        self.budget = self.budget.saturating_sub(1);
    }

    /// Marks the first unit failed, and lets the others wait for it.
    fn fail_together(&mut self, units: Vec<(usize, Error)>) {
        let mut units = units.into_iter();
        let Some((first, error)) = units.next() else {
            return;
        };
        self.fail(first, error, false);
        self.wait_for(first, units.map(|(at, _)| at).collect());
    }

    /// Lets units wait for one that is marked failed.
    fn wait_for(&mut self, failed: usize, units: Vec<usize>) {
        let root = self.units[failed].id();
        for at in units {
            self.blockers
                .add(self.units[at].id(), root, &self.units[at].writeset().writes);
            self.states[at] = UnitState::Waits(root);
        }
    }

    /// What a unit that failed leaves: if its table is at fault, nothing of the table goes on.
    fn writes(&self, at: usize, error: &Error) -> Vec<i64> {
        let mut writeset = self.units[at].writeset();
        if error.is_about_table() || self.whole_tables.contains(&at) {
            let records = self.units[at].records.iter();
            writeset.join(records.map(|r| Writeset::of_table(&r.route)));
        }
        writeset.writes
    }

    fn chosen(&self, units: &[usize]) -> Vec<&Unit> {
        units.iter().map(|at| &self.units[*at]).collect()
    }

    fn applied(&self) -> Vec<usize> {
        let applied = |at: &usize| matches!(self.states[*at], UnitState::Applied);
        (0..self.units.len()).filter(applied).collect()
    }

    fn set_applied(&mut self, units: &[usize]) {
        units
            .iter()
            .for_each(|at| self.states[*at] = UnitState::Applied);
    }

    fn reopen(&mut self) {
        self.applied()
            .into_iter()
            .for_each(|at| self.states[at] = UnitState::Open);
    }

    /// Nothing of the batch stays.
    fn lost(&mut self, error: Error) -> Result<()> {
        self.reopen();
        match error {
            Error::Canceled => Err(error),
            _ => {
                self.stop = Some(error);
                Ok(())
            }
        }
    }

    /// Writes to the queue what was marked failed and what waits. What was applied stays in it until the
    /// caller removes it.
    ///
    /// # Errors
    /// What writing the queue reports.
    pub fn settle(self) -> Result<BatchOutcome> {
        let applied = Vec::new();
        let failed = Vec::new();
        let conflicts = Tally::default();
        let mut outcome = BatchOutcome {
            applied,
            failed,
            conflicts,
            stop: None,
            deferred: self.deferred,
            lost_one: self.lost_one,
        };
        let mut waiting = Vec::new();
        for at in 0..self.units.len() {
            let ids = || self.units[at].records.iter().map(|record| record.id);
            let wait = |root| {
                self.units[at].records.iter().map(move |r| {
                    let writes = Writeset::of(&r.route, &r.change).writes;
                    Waiting {
                        id: r.id,
                        root,
                        writes,
                    }
                })
            };
            match &self.states[at] {
                UnitState::Open => {}
                UnitState::Applied | UnitState::Settled => outcome.applied.extend(ids()),
                UnitState::Waits(root) => waiting.extend(wait(*root)),
                UnitState::Failed(error, is_there) => {
                    let id = self.units[at].id();
                    let first = &self.units[at].records[0];
                    let passes = error.is_transient()
                        || (self.trial.may_pass
                            && error.sqlstate() == SqlState::FOREIGN_KEY_VIOLATION);
                    if failed::set_failed(
                        self.extension,
                        id,
                        &self.writes(at, error),
                        error,
                        passes,
                    )? && let Some(conflict) = conflict_of(first, error, *is_there)
                    {
                        outcome.conflicts.add(&first.route, conflict);
                    }
                    waiting.extend(wait(id).skip(1));
                    outcome.failed.push((id, error.clone()));
                }
            }
        }
        failed::set_waiting(self.extension, &waiting)?;
        let failed = outcome.failed.iter().map(|(id, _)| *id);
        if let Some(first) = waiting.iter().map(|one| one.id).chain(failed).min() {
            floor::lower_clear(self.extension, self.server_name, first)?;
        }
        outcome.stop = self.stop;
        Ok(outcome)
    }
}

/// Makes it known, whatever happens to this session, that records up to one may have been applied: before
/// the server is asked to commit them. See [`doubt`].
///
/// # Errors
/// When the sequence is not there.
pub fn note_replay(extension: &Extension, last: i64) -> Result<()> {
    transaction::note_replay(last);
    sequence::raise(extension, REPLAYED, last)
}

/// The last record that a drain was about to commit; `None` also if that was one of this session, which knows
/// better.
///
/// # Errors
/// When the sequence is not there.
pub fn noted_replay(extension: &Extension) -> Result<Option<i64>> {
    Ok(sequence::last(extension, REPLAYED)?.filter(|last| !transaction::has_not_committed(*last)))
}

/// The sequence that has the number of that record: it is not rolled back with the drain.
const REPLAYED: &str = "sync_replay_seq";

/// Whether no change can be applied for now, by what the server says when it is asked: a trigger there may call
/// its transaction read-only that is not.
fn is_away(replay: &mut Replay, error: &Error) -> bool {
    error.is_away() && !(error.sqlstate() == SqlState::READ_ONLY && replay.can_write())
}

/// Whether units are to blame for a failure.
fn is_to_blame(replay: &Replay, error: &Error) -> bool {
    replay.can_go_on(error) && !error.is_transient()
}
