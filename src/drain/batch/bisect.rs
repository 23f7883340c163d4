//! Which records are to blame for a failure, of the units of a batch that were refused together.
//!
//! Units are halved between transactions first. A transaction that is refused by itself is tried in ways
//! that let it be true as a whole: each of its commands in one statement, then all of it. Only then are
//! its commands told apart, and last its records. Where a constraint looks at other rows too, a record
//! that is refused is tried again after the others of its transaction, with those that were refused like
//! it, before it is blamed.

use super::postponed::{MAX_POSTPONED, Postponed};
use super::{RecordBatch, UnitState, is_away};
use crate::delivery::whole::Span;
use crate::drain::replay::Replay;
use crate::error::{Error, Result, SqlState};
use std::collections::HashMap;

impl RecordBatch<'_> {
    /// Applies what can be applied of the units that are open.
    ///
    /// # Errors
    /// As for [`RecordBatch::apply`].
    pub(super) fn apply_in_parts(&mut self, replay: &mut Replay) -> Result<()> {
        let units = self.admit(0..self.units.len());
        let transactions = self.by_transaction(units);
        self.bisect_transactions(replay, &transactions)
    }

    /// Units by source transaction, in the order of their beginnings.
    pub(super) fn by_transaction(&self, units: Vec<usize>) -> Vec<Vec<usize>> {
        grouped(units, |at| self.units[at].transaction())
    }

    /// Units of a transaction by command. A command that was interrupted by others, which its triggers
    /// have run, takes these in.
    fn by_command(&self, units: Vec<usize>) -> Vec<Vec<usize>> {
        let mut last: HashMap<u32, usize> = HashMap::new();
        for (place, at) in units.iter().enumerate() {
            last.insert(self.units[*at].command(), place);
        }
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut end = None;
        for (place, at) in units.into_iter().enumerate() {
            match groups.last_mut() {
                Some(group) if end >= Some(place) => group.push(at),
                _ => groups.push(vec![at]),
            }
            end = end.max(last.get(&self.units[at].command()).copied());
        }
        groups
    }

    fn bisect_transactions(
        &mut self,
        replay: &mut Replay,
        transactions: &[Vec<usize>],
    ) -> Result<()> {
        let units = self.admit(transactions.concat());
        if units.is_empty() || self.is_over() {
            return Ok(());
        }
        let Some(error) = self.refusal(replay, &units)? else {
            return Ok(());
        };
        if transactions.len() > 1 && !self.ends_attempt(replay, &units, &error) {
            let (first, second) = transactions.split_at(transactions.len() / 2);
            self.bisect_transactions(replay, first)?;
            return self.bisect_transactions(replay, second);
        }
        if units.len() == 1 {
            return self.bisect_refused(replay, units, error);
        }
        if error.is_transient() {
            return self.bisect_torn(replay, units, error);
        }
        let commands = self.by_command(units.clone());
        if commands.len() > 1 && error.is_about_others() {
            for span in [Span::Command, Span::All] {
                if self.fits_whole(replay, &units, span)? || self.is_over() {
                    return Ok(());
                }
            }
        }
        self.postpone();
        match commands.len() {
            1 => self.bisect_command(replay, units, error)?,
            _ => {
                let (first, second) = commands.split_at(commands.len() / 2);
                self.bisect_commands(replay, first)?;
                self.bisect_commands(replay, second)?;
            }
        }
        self.settle_postponed(replay)
    }

    /// Looks within a transaction for what meets something that may pass. Parts of the transaction may be
    /// refused over other rows only because they are parts: they share the failure of the whole.
    fn bisect_torn(&mut self, replay: &mut Replay, units: Vec<usize>, error: Error) -> Result<()> {
        self.postpone();
        self.postponed.torn_over = Some(error.clone());
        self.bisect_refused(replay, units, error)?;
        self.settle_postponed(replay)
    }

    /// From now on units that are refused over other rows are tried again before they are blamed.
    pub(super) fn postpone(&mut self) {
        self.postponed = Postponed {
            is_on: true,
            ..Postponed::default()
        };
    }

    fn bisect_commands(&mut self, replay: &mut Replay, commands: &[Vec<usize>]) -> Result<()> {
        let units = self.admit(commands.concat());
        if units.is_empty() || self.is_over() || self.postpone_rest(&units) {
            return Ok(());
        }
        let Some(error) = self.refusal(replay, &units)? else {
            return Ok(());
        };
        if commands.len() > 1 && !self.ends_attempt(replay, &units, &error) {
            let (first, second) = commands.split_at(commands.len() / 2);
            self.bisect_commands(replay, first)?;
            return self.bisect_commands(replay, second);
        }
        self.bisect_command(replay, units, error)
    }

    /// Units of one command that were refused together.
    fn bisect_command(
        &mut self,
        replay: &mut Replay,
        units: Vec<usize>,
        error: Error,
    ) -> Result<()> {
        let is_whole = units.len() > 1
            && error.is_about_others()
            && self.fits_whole(replay, &units, Span::All)?;
        if is_whole || self.is_over() {
            return Ok(());
        }
        self.bisect_refused(replay, units, error)
    }

    /// Applies units; of those that fail together, the first half is tried alone, until the one that
    /// fails is found.
    ///
    /// # Errors
    /// As for [`RecordBatch::apply`].
    pub(super) fn bisect(&mut self, replay: &mut Replay, units: Vec<usize>) -> Result<()> {
        let units = self.admit(units);
        if units.is_empty() || self.is_over() || self.postpone_rest(&units) {
            return Ok(());
        }
        match self.refusal(replay, &units)? {
            Some(error) => self.bisect_refused(replay, units, error),
            None => Ok(()),
        }
    }

    fn bisect_refused(
        &mut self,
        replay: &mut Replay,
        units: Vec<usize>,
        error: Error,
    ) -> Result<()> {
        match units.as_slice() {
            [one] if error.is_transient() && !is_away(replay, &error) => {
                self.fail_for_now(*one, error)
            }
            _ if self.stops(replay, &error) => self.stop = Some(error),
            [one] if self.postponed.is_on && error.is_about_others() => {
                let id = self.units[*one].id();
                let writeset = self.units[*one].writeset();
                self.postponed
                    .add((*one, id), &writeset.writes, Some(error));
            }
            [one] => self.blame(replay, *one, error),
            several => {
                let (first, second) = several.split_at(several.len() / 2);
                self.bisect(replay, first.to_vec())?;
                self.bisect(replay, second.to_vec())?;
            }
        }
        Ok(())
    }

    fn blame(&mut self, replay: &mut Replay, at: usize, error: Error) {
        if error.is_about_others()
            && let Some(culprit) = self.failed_for_now_beside(at)
        {
            return self.wait_for(culprit, vec![at]);
        }
        let first = &self.units[at].records[0];
        let is_there = error.sqlstate() == SqlState::UNIQUE_VIOLATION
            && !first.route.is_keyless()
            && replay.finds(&first.route, &first.change);
        self.fail(at, error, is_there);
    }

    /// Why units were refused; `None` where they were not, or where the connection is gone.
    fn refusal(&mut self, replay: &mut Replay, units: &[usize]) -> Result<Option<Error>> {
        match replay.part(&self.chosen(units)) {
            Ok(()) => {
                self.set_applied(units);
                Ok(None)
            }
            Err(error) if replay.can_go_on(&error) => Ok(Some(error)),
            Err(error) => self.lost_over(units.to_vec(), error).map(|()| None),
        }
    }

    /// Whether units can be applied as a whole. They are, if so.
    fn fits_whole(&mut self, replay: &mut Replay, units: &[usize], span: Span) -> Result<bool> {
        match replay.part_whole(&self.chosen(units), span) {
            Ok(()) => {
                self.set_applied(units);
                self.wholes.push((units.to_vec(), span));
            }
            Err(error) if !replay.can_go_on(&error) => {
                self.lost_over(units.to_vec(), error)?;
                return Ok(false);
            }
            Err(error) if self.stops(replay, &error) => {
                self.stop = Some(error);
                return Ok(false);
            }
            Err(_) => return Ok(false),
        }
        Ok(true)
    }

    /// Whether nothing more is tried.
    fn is_over(&self) -> bool {
        self.stop.is_some() || self.budget == 0
    }

    /// Whether a failure is not one for which units are told apart.
    fn ends_attempt(&self, replay: &mut Replay, units: &[usize], error: &Error) -> bool {
        units.len() == 1 || self.stops(replay, error)
    }

    /// Postpones units without a trial where too many have been already.
    fn postpone_rest(&mut self, units: &[usize]) -> bool {
        if !self.postponed.is_full() {
            return false;
        }
        for at in units {
            let id = self.units[*at].id();
            let writeset = self.units[*at].writeset();
            self.postponed.add((*at, id), &writeset.writes, None);
        }
        true
    }

    /// Of units that need not wait for what was marked failed, postpones those that concern rows of
    /// postponed ones.
    pub(super) fn admit_beside_postponed(&mut self, units: Vec<usize>) -> Vec<usize> {
        if !self.postponed.is_on || self.postponed.units.is_empty() {
            return units;
        }
        let mut free = Vec::new();
        for at in units {
            let id = self.units[at].id();
            let writeset = self.units[at].writeset();
            match self.postponed.writes.find(id, &writeset) {
                Some(_) => self.postponed.add((at, id), &writeset.writes, None),
                None => free.push(at),
            }
        }
        free
    }

    /// Tries postponed units again, together and one by one, until no more of them are taken. What is
    /// left is to blame.
    ///
    /// # Errors
    /// As for [`RecordBatch::apply`].
    pub(super) fn settle_postponed(&mut self, replay: &mut Replay) -> Result<()> {
        let mut before = usize::MAX;
        loop {
            let Postponed {
                units: mut remaining,
                torn_over,
                ..
            } = std::mem::take(&mut self.postponed);
            remaining.sort_by_key(|(at, _)| *at);
            remaining.dedup_by_key(|(at, _)| *at);
            if remaining.is_empty() || self.is_over() {
                return Ok(());
            }
            let units: Vec<usize> = remaining.iter().map(|(at, _)| *at).collect();
            if units.len() > 1 && self.fits_whole(replay, &units, Span::All)? || self.is_over() {
                return Ok(());
            }
            // Only what was applied since can have made a difference.
            if units.len() >= before.min(MAX_POSTPONED) {
                let culprit = self.failed_for_now_beside(units[0]);
                return match (culprit, torn_over) {
                    (Some(culprit), _) => {
                        let units = self.admit(units);
                        self.wait_for(culprit, units);
                        Ok(())
                    }
                    (None, Some(error)) => {
                        self.fail_torn(units, error);
                        Ok(())
                    }
                    (None, None) => self.blame_postponed(replay, remaining),
                };
            }
            before = units.len();
            self.postponed.is_on = true;
            self.postponed.torn_over = torn_over;
            self.bisect(replay, units)?;
        }
    }

    /// A unit of the same transaction that is marked failed over something that may pass: what is refused over
    /// other rows may be so only without it.
    fn failed_for_now_beside(&self, at: usize) -> Option<usize> {
        let transaction = self.units[at].transaction();
        (0..self.units.len()).find(|at| {
            self.units[*at].transaction() == transaction
                && matches!(&self.states[*at], UnitState::Failed(error, _) if error.is_transient())
        })
    }

    /// Units that are refused without the rest of their transaction, which has met something that may pass: the
    /// first is marked failed over that, and the others wait for it.
    fn fail_torn(&mut self, units: Vec<usize>, error: Error) {
        let units = self.admit(units);
        let Some((first, others)) = units.split_first() else {
            return;
        };
        if self.may_fail_for_now(*first) {
            self.fail_for_now(*first, error);
            self.wait_for(*first, others.to_vec());
        } else {
            self.stop = Some(error);
        }
    }

    fn blame_postponed(
        &mut self,
        replay: &mut Replay,
        remaining: Vec<(usize, Option<Error>)>,
    ) -> Result<()> {
        if remaining.len() >= MAX_POSTPONED.min(self.budget) {
            let Some(why) = remaining.iter().find_map(|(_, error)| error.clone()) else {
                return Ok(());
            };
            self.fail_together(
                remaining
                    .into_iter()
                    .map(|(at, _)| (at, why.clone()))
                    .collect(),
            );
            return Ok(());
        }
        for (at, error) in remaining {
            match (self.admit([at]).is_empty(), error) {
                (false, Some(error)) => self.blame(replay, at, error),
                // What it was postponed for has been blamed, or is there now.
                (false, None) => self.bisect(replay, vec![at])?,
                (true, _) => {}
            }
        }
        Ok(())
    }
}

/// Groups by a number, in the order in which the groups begin.
fn grouped(units: Vec<usize>, number: impl Fn(usize) -> u32) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut places: HashMap<u32, usize> = HashMap::new();
    for at in units {
        let place = *places.entry(number(at)).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[place].push(at);
    }
    groups
}
