//! Records that the server may have applied before: their delivery was lost in doubt, or the local side
//! ended between the two commits of a drain.
//!
//! The server is asked whether its rows are what all of them together lead to. If so, they are done, and
//! nothing is written. Otherwise they are applied as they are; if that is refused, their net effect is,
//! which shows no state that they have left behind. What is refused then is looked at like any other
//! record, but for rows that the server has already.
//!
//! Rows without a key tell nothing. What became of their transaction is asked where its id is known, before
//! this, see [`crate::drain::outcome`]; what is still in doubt then is marked failed for a person to decide.

use super::{RecordBatch, UnitState};
use crate::change::{Change, Op, Relation, Route};
use crate::delivery::whole::{Span, Whole};
use crate::drain::replay::Replay;
use crate::error::{Error, Result, SqlState};
use crate::queue::claim::Claims;
use crate::queue::failed;
use std::collections::HashSet;
use std::rc::Rc;

/// Records that are looked at together, at most: they are held in memory.
const MAX_DOUBTFUL: usize = 100_000;

type RoutedChange = (Rc<Route>, Change<String>);

impl RecordBatch<'_> {
    /// Settles what may have been applied before, and takes that from `claims` if the batch has a part
    /// of it.
    ///
    /// # Errors
    /// As for [`RecordBatch::apply`].
    pub(super) fn settle_doubt(
        &mut self,
        replay: &mut Replay,
        claims: &mut Claims<'_>,
    ) -> Result<()> {
        let until = self
            .trial
            .replayed_until
            .filter(|until| self.first_id() <= *until);
        if until.is_none() && !self.units.iter().any(|unit| unit.is_in_doubt()) {
            return Ok(());
        }
        let goes_on = |batch: &Self| {
            let last = batch.units.last();
            last.is_some_and(|last| last.is_in_doubt() || until > Some(last.id()))
        };
        while goes_on(self) && self.units.len() < MAX_DOUBTFUL {
            let more = claims.next_while(|unit| unit.is_in_doubt() || until >= Some(unit.id()))?;
            if more.is_empty() {
                break;
            }
            self.add(more)?;
        }
        self.refuse_undecidable(until);
        if let Err(error) = replay.whole(&[], || ()) {
            return self.lost(error);
        }
        let in_doubt = (0..self.units.len())
            .filter(|at| self.units[*at].is_in_doubt())
            .collect();
        for units in self.by_transaction(in_doubt) {
            self.settle_replayed(replay, units)?;
        }
        if let Some(until) = until {
            self.settle_until(replay, until)?;
        }
        Ok(())
    }

    /// Fails what may have been applied before and rows do not tell of: applied again, rows would be there
    /// twice.
    fn refuse_undecidable(&mut self, until: Option<i64>) {
        for at in 0..self.units.len() {
            let unit = &self.units[at];
            let is_decided = unit.records.iter().all(|record| record.is_decided);
            let is_undecidable =
                unit.is_in_doubt() || until.is_some_and(|until| unit.id() <= until);
            if !is_undecidable
                || is_decided
                || !unit.is_keyless()
                || !matches!(self.states[at], UnitState::Open)
            {
                continue;
            }
            let message = format!(
                "row of \"{}\" may have been delivered before, and has no key to tell",
                unit.records[0].route.source.table
            );
            let error = Error::local(SqlState::COMPLETION_UNKNOWN, message).with_hint(
                "If it is there, discard the change. If not, call retry_sync_err_rec(), which delivers it.",
            );
            self.fail(at, error, false);
        }
    }

    /// Settles the records up to one, which may have been applied before.
    ///
    /// # Errors
    /// As for [`RecordBatch::apply`].
    pub(super) fn settle_until(&mut self, replay: &mut Replay, until: i64) -> Result<()> {
        let units = (0..self.units.len())
            .filter(|at| self.units[*at].id() <= until)
            .collect();
        self.settle_replayed(replay, units)
    }

    /// Whether a failure may come of it that records were applied before, without that being known.
    pub(super) fn may_be_replayed(&self, failure: &Error) -> bool {
        self.first_id() <= self.trial.maybe_until && failure.is_about_states()
    }

    pub(super) fn first_id(&self) -> i64 {
        self.units.first().map_or(i64::MAX, |unit| unit.id())
    }

    /// Settles units that may have been applied before, all of them or none.
    fn settle_replayed(&mut self, replay: &mut Replay, units: Vec<usize>) -> Result<()> {
        let mut units = self.admit(units);
        units.retain(|at| !self.units[*at].is_keyless());
        if units.is_empty() || self.stop.is_some() {
            return Ok(());
        }
        let (facts, is_exact) = self.facts(&units).unzip();
        let reached = match &facts {
            Some(facts) => match replay.reached(facts) {
                Ok(reached) => reached,
                Err(error) => return self.lost_in_doubt(units, error),
            },
            None => Vec::new(),
        };
        if facts.is_some() && reached.iter().all(|reached| *reached) {
            self.set_settled(&units);
            return Ok(());
        }
        for span in [None, Some(Span::All)] {
            match replay.apart(&self.chosen(&units), span) {
                Ok(()) => {
                    self.set_settled(&units);
                    return Ok(());
                }
                Err(error) if !replay.can_go_on(&error) => return self.lost_in_doubt(units, error),
                // States that were left behind are refused over other rows only.
                Err(error) if error.is_about_states() => {}
                // What is refused for itself is tried like any other, beside what is there already.
                Err(_) => break,
            }
        }
        // Rows that are not there are no sign of it: then what others refer to for a while would be left out.
        let is_there =
            |(fact, reached): (&RoutedChange, &bool)| *reached && fact.1.op != Op::Delete;
        if !facts.iter().flatten().zip(&reached).any(is_there) {
            return Ok(());
        }
        let open: HashSet<(Relation, Vec<Option<String>>)> = facts
            .iter()
            .flatten()
            .zip(reached)
            .filter(|(_, reached)| !reached)
            .map(|((route, change), _)| key_of(route, &change.old_key(route)))
            .collect();
        let is_done = |at: &usize| {
            self.units[*at].records.iter().all(|record| {
                let route = &record.route;
                let change = &record.change;
                [change.old_key(route), change.new_key(route)]
                    .iter()
                    .filter(|key| !key.is_empty())
                    .all(|key| !open.contains(&key_of(route, key)))
            })
        };
        if is_exact == Some(true) {
            let done: Vec<usize> = units.into_iter().filter(is_done).collect();
            self.set_settled(&done);
        }
        Ok(())
    }

    /// The connection was lost over units that may have been applied before. Where that goes on, one of several
    /// must be found, so they are not taken to have been from then on.
    fn lost_in_doubt(&mut self, units: Vec<usize>, error: Error) -> Result<()> {
        let is_lost = matches!(error, Error::Timeout { .. } | Error::Lost { .. });
        if units.len() == 1 || !is_lost || !self.trial.isolates {
            return self.lost_over(units, error);
        }
        self.lost(error)?;
        if !failed::note_try(self.extension, self.units[units[0]].id())? {
            self.trial.gives_up_doubt = true;
            let records = units.iter().flat_map(|at| &self.units[*at].records);
            let ids: Vec<i64> = records.map(|record| record.id).collect();
            failed::forget_doubt(self.extension, &ids)?;
        }
        Ok(())
    }

    /// What the server has once units are applied, key by key; `None` where that cannot be told. Whether it
    /// holds for each key by itself, too: not if one row may have come under several texts of its key.
    fn facts(&self, units: &[usize]) -> Option<(Vec<RoutedChange>, bool)> {
        let mut whole = Whole::default();
        // Transactions that mix their ids do not depend on each other.
        let units = self.by_transaction(units.to_vec()).concat();
        for record in units.iter().flat_map(|at| &self.units[*at].records) {
            whole.push(&record.route, &record.change.borrowed());
        }
        let is_exact = !whole.is_inexact();
        let mut facts = Vec::new();
        for (route, mut change) in whole.net()? {
            if change.moves() {
                let key = std::mem::take(&mut change.key);
                let row = Vec::new();
                let remaining = Change {
                    op: Op::Delete,
                    key,
                    row,
                    ..change.clone()
                };
                facts.push((route.clone(), remaining));
            }
            facts.push((route, change));
        }
        Some((facts, is_exact))
    }

    fn set_settled(&mut self, units: &[usize]) {
        units
            .iter()
            .for_each(|at| self.states[*at] = UnitState::Settled);
    }
}

fn key_of(route: &Route, key: &[Option<&str>]) -> (Relation, Vec<Option<String>>) {
    (
        route.target.clone(),
        key.iter().map(|value| value.map(str::to_owned)).collect(),
    )
}
