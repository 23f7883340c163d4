//! The remote side of a drain: one transaction, with savepoints to go back to.
//!
//! Savepoint `drain` stands before the batch under way, `unit` before the part of it that is being
//! tried. Constraints that can wait do so within a batch.
//!
//! A batch is first sent as a delivery is that takes the server's rows to be as expected, see
//! [`crate::delivery::assumption`]; once they were not, batches are sent without that to the end of the drain.

use crate::change::{Change, Op, Route, Source};
use crate::conflict::Tally;
use crate::delivery::assumption::{self, Assume};
use crate::delivery::commit::BEGIN;
use crate::delivery::event_loop::{self, Stop};
use crate::delivery::feed::{Asked, Changes, Fixed};
use crate::delivery::link::{Ending, Link};
use crate::delivery::lost;
use crate::delivery::truncations::Truncations;
use crate::delivery::whole::Span;
use crate::error::{Error, Result, SqlState};
use crate::queue::claim::{Record, Unit};
use crate::sql::{self, Statement};
use std::rc::Rc;

/// Checks what was deferred, here and not at COMMIT, where it would be too late to tell which record
/// is to blame.
const CHECK: &str = "SET CONSTRAINTS ALL IMMEDIATE";

/// Rows that the server is asked for at once.
const MAX_ASKED: usize = 5_000;

/// See the module's head.
pub struct Replay {
    /// `None` once the connection is of no more use, and with it goes everything applied so far.
    link: Option<Link<'static>>,
    /// The remote transaction has begun.
    begun: bool,
    /// No batch has found the server's rows other than expected.
    trusting: bool,
    /// A batch has found two of its changes to be of one row there.
    one_by_one: bool,
    /// Conflicts met by batches that stand, and by the one under way.
    conflicts: (Tally, Tally),
    /// Changes that were not sent because they have been at the server.
    held_back: u64,
    /// Rows move in waves, see [`Changes::in_waves`].
    in_waves: bool,
    /// Rows were inserted that nothing tells apart.
    keyless: bool,
}

impl Replay {
    /// Over a link that is up; `begun` if its transaction is open already.
    pub fn new(link: Link<'static>, begun: bool) -> Self {
        Self {
            link: Some(link),
            begun,
            trusting: true,
            one_by_one: false,
            conflicts: Default::default(),
            held_back: 0,
            in_waves: false,
            keyless: false,
        }
    }

    /// The open transaction's full id there, where rows do not tell whether it was committed. A link that
    /// fails is given up.
    pub fn transaction(&mut self) -> Option<i64> {
        let mut link = self.link.take_if(|_| self.keyless)?;
        link.run(Fixed::new([lost::CURRENT_TRANSACTION]), Ending::Open);
        lost::run(&mut link).ok()?;
        let xact = lost::transaction_of(&link);
        self.link = Some(link);
        xact
    }

    /// The link, unless it was lost. With a transaction that has failed it is: a COMMIT would roll it back
    /// without an error.
    pub fn into_link(mut self) -> Option<Link<'static>> {
        let aborted =
            |link: &mut Link<'_>| link.session().is_none_or(|s| s.connection.is_aborted());
        if self.link.as_mut().is_some_and(aborted) {
            self.give_up();
        }
        self.link
    }

    /// Closes the connection, which rolls everything back.
    pub fn give_up(&mut self) {
        self.link = None;
    }

    /// Takes out the conflicts met by what stands.
    pub fn take_conflicts(&mut self) -> Tally {
        self.keep_conflicts();
        std::mem::take(&mut self.conflicts.0)
    }

    /// How many changes were not sent because they have been at the server.
    pub fn held_back(&self) -> u64 {
        self.held_back
    }

    fn keep_conflicts(&mut self) {
        let under_way = std::mem::take(&mut self.conflicts.1);
        self.conflicts.0.merge(under_way);
    }

    /// Whether the failure is one of the records, and the connection none the worse for it.
    pub fn can_go_on(&self, error: &Error) -> bool {
        self.link.is_some() && matches!(error, Error::Remote(_) | Error::Local { .. })
    }

    /// Begins a batch and applies it whole, constraints checked, in one exchange. `meanwhile` is called
    /// while the server works.
    ///
    /// # Errors
    /// What the link reports. If it can go on, [`Replay::undo`] leads back to the batch's beginning.
    pub fn whole(&mut self, units: &[&Unit], meanwhile: impl FnOnce()) -> Result<()> {
        let begin: &[&str] = if self.begun {
            &[BEGIN[1], "RELEASE SAVEPOINT drain", "SAVEPOINT drain"]
        } else {
            &[BEGIN[0], BEGIN[1], "SAVEPOINT drain"]
        };
        self.begun = true;
        self.keep_conflicts();
        let assume = self.assume(units);
        let error = match self.attempt(units, begin, &[CHECK], (assume, None), meanwhile) {
            Err(error) if self.can_go_on(&error) => error,
            result => return result,
        };
        let mut again = self.must_ask_kinds(units, &error);
        if assume == Assume::Rows && !error.is_transient() {
            again = true;
            self.trusting = false;
            if let Some(link) = &mut self.link {
                assumption::set_text_only(link, &error);
            }
        }
        let result = if again {
            self.instead(units)
        } else {
            Err(error)
        };
        self.again_one_by_one(units, result)
    }

    /// Applies a batch once more that has met itself, each change by itself, and from now on all of them.
    fn again_one_by_one(&mut self, units: &[&Unit], result: Result<()>) -> Result<()> {
        match result {
            Err(error)
                if assumption::is_of_one_row(&error)
                    && !self.one_by_one
                    && self.can_go_on(&error) =>
            {
                self.one_by_one = true;
                self.instead(units)
            }
            result => result,
        }
    }

    /// Whether the server has refused a TRUNCATE for what the session asks from now on.
    fn must_ask_kinds(&mut self, units: &[&Unit], error: &Error) -> bool {
        empties(units)
            && self
                .link
                .as_mut()
                .is_some_and(|link| assumption::must_ask_kinds(link, error))
    }

    /// How a batch is tried first.
    fn assume(&mut self, units: &[&Unit]) -> Assume {
        let routes = routes(units, |_| true);
        let session = self.link.as_mut().and_then(Link::session);
        if self.trusting && session.is_some_and(|session| session.has_accepted(&routes)) {
            Assume::Rows
        } else {
            Assume::Nothing
        }
    }

    /// Applies a part of the batch.
    ///
    /// # Errors
    /// What the link reports. If it can go on, what was applied before the part stands.
    pub fn part(&mut self, units: &[&Unit]) -> Result<()> {
        self.part_as(units, None, &["RELEASE SAVEPOINT unit"])
    }

    /// Applies a part of the batch in one statement, or in one for each of its commands.
    ///
    /// # Errors
    /// As for [`Replay::part`].
    pub fn part_whole(&mut self, units: &[&Unit], span: Span) -> Result<()> {
        self.part_as(units, Some(span), &["RELEASE SAVEPOINT unit"])
    }

    /// Applies records before the batch, constraints checked.
    ///
    /// # Errors
    /// As for [`Replay::part`].
    pub fn apart(&mut self, units: &[&Unit], span: Option<Span>) -> Result<()> {
        self.part_as(units, span, &[CHECK, BEGIN[1], "RELEASE SAVEPOINT unit"])
    }

    fn part_as(&mut self, units: &[&Unit], span: Option<Span>, after: &[&str]) -> Result<()> {
        const AGAIN: [&str; 1] = ["ROLLBACK TO SAVEPOINT unit"];
        let how = (Assume::Nothing, span);
        let mut result = self.attempt(units, &["SAVEPOINT unit"], after, how, || ());
        if let Err(error) = &result
            && self.can_go_on(error)
            && self.must_ask_kinds(units, error)
        {
            result = self.attempt(units, &AGAIN, after, how, || ());
        }
        if let Err(error) = &result
            && self.can_go_on(error)
        {
            let routes = routes(units, |record| record.change.moves());
            let moved = match &mut self.link {
                Some(link) => assumption::moved_at_once(&routes, link, error),
                None => Vec::new(),
            };
            if !moved.is_empty() {
                self.in_waves = true;
                let done = self.attempt(units, &AGAIN, after, how, || ());
                self.in_waves = false;
                if done.is_ok() {
                    result = done;
                    let session = self.link.as_mut().and_then(Link::session);
                    session
                        .into_iter()
                        .for_each(|s| assumption::keep_in_waves(s, &moved));
                }
            }
        }
        // Of tables to be emptied something is still to be checked, from parts before this one.
        if let Err(error) = &result
            && self.can_go_on(error)
            && empties(units)
            && error.sqlstate() == SqlState::OBJECT_IN_USE
        {
            let again = [AGAIN[0], CHECK, BEGIN[1]];
            if let done @ Ok(()) = self.attempt(units, &again, after, how, || ()) {
                result = done;
            }
        }
        if let Err(error) = &result
            && self.can_go_on(error)
            && self
                .statements(&["ROLLBACK TO SAVEPOINT unit", "RELEASE SAVEPOINT unit"])
                .is_err()
        {
            self.give_up();
        }
        result
    }

    /// Takes back the batch and applies this much of it instead, constraints checked.
    ///
    /// # Errors
    /// As for [`Replay::whole`].
    pub fn instead(&mut self, units: &[&Unit]) -> Result<()> {
        self.conflicts.1 = Tally::default();
        let again = ["ROLLBACK TO SAVEPOINT drain", BEGIN[1]];
        self.attempt(units, &again, &[CHECK], (Assume::Nothing, None), || ())
    }

    /// Takes back the batch.
    ///
    /// # Errors
    /// What the link reports.
    pub fn undo(&mut self) -> Result<()> {
        self.conflicts.1 = Tally::default();
        self.statements(&["ROLLBACK TO SAVEPOINT drain", BEGIN[1]])
    }

    /// Checks what the batch deferred.
    ///
    /// # Errors
    /// As for [`Replay::whole`].
    pub fn check(&mut self) -> Result<()> {
        self.statements(&[CHECK])
    }

    /// Applies units between other statements.
    fn attempt(
        &mut self,
        units: &[&Unit],
        before: &[&str],
        after: &[&str],
        (assume, span): (Assume, Option<Span>),
        meanwhile: impl FnOnce(),
    ) -> Result<()> {
        if units.is_empty() {
            return self.statements(&[before, after].concat());
        }
        let session = self
            .link
            .take()
            .and_then(Link::into_session)
            .ok_or_else(connection_gone)?;
        let name = session.endpoint.application_name.clone();
        // A link of its own: it borrows the records.
        let mut link = Link::over(session);
        let records = || units.iter().flat_map(|unit| &unit.records);
        let bytes = || {
            records()
                .map(|record| record.change.encoded_size() as u64)
                .sum()
        };
        self.keyless |= units.iter().any(|unit| unit.is_keyless());
        let many = assume == Assume::Rows && assumption::are_many(records().count(), bytes());
        let changes = Changes::new(Records(records()), &name)
            .optimistic(assume == Assume::Rows)
            .one_by_one(self.one_by_one)
            .in_binary(many && link.takes_binary())
            .in_waves(self.in_waves)
            .truncating(if empties(units) {
                let mut records = Records(records());
                Truncations::of(|take| records.next(take))
            } else {
                Ok(Truncations::default())
            })
            .newest(records().any(|record| record.route.version().is_some()))
            .forwarded(records().any(|record| !record.route.path.is_empty()))
            .whole(span)
            .between(before, after);
        link.run(changes, Ending::Open);
        if event_loop::send(std::slice::from_mut(&mut link)) == Stop::Done && !link.is_done() {
            meanwhile();
        }
        let result = lost::run(&mut link);
        // What was prepared is forgotten if that may be why it failed.
        link.was_outdated();
        if result.is_ok() {
            self.conflicts.1.merge(link.take_conflicts());
            self.held_back += link.take_held_back();
            if let Some(session) = link.session() {
                session.set_accepted(routes(units, |record| record.change.is_upsert()).iter());
            }
        }
        self.link = link.into_session().map(Link::over);
        result
    }

    /// Whether the server's rows are what these changes lead to, of which no two concern the same row;
    /// false where that cannot be told.
    ///
    /// # Errors
    /// What the link reports, where it cannot go on.
    pub fn reached(&mut self, outcomes: &[(Rc<Route>, Change<String>)]) -> Result<Vec<bool>> {
        let mut reached = vec![false; outcomes.len()];
        let mut batches: Vec<(sql::Batch, Vec<usize>)> = Vec::new();
        for (at, (route, change)) in outcomes.iter().enumerate() {
            let kind = match change.op {
                Op::Delete => sql::BatchKind::Delete,
                _ => sql::BatchKind::Insert,
            };
            let fits = |(batch, _): &&mut (sql::Batch, Vec<usize>)| {
                batch.kind == kind && batch.rows < MAX_ASKED && batch.route == *route
            };
            let found = batches.iter_mut().rev().find(fits);
            let (batch, places) = match found {
                Some(found) => found,
                None => {
                    let batch = sql::Batch::new(route.clone(), kind).in_arrays();
                    batches.push_mut((batch, Vec::new()))
                }
            };
            batch.push(&change.borrowed());
            places.push(at);
        }
        for (batch, places) in batches {
            let mut link = self.link.take().ok_or_else(connection_gone)?;
            let mut statements = vec![Statement::plain("SAVEPOINT unit")];
            if batch.route.compared().next().is_some()
                && let Some(session) = link.session()
            {
                let own = session.endpoint.settings.search_path();
                statements.push(Statement::plain(sql::with_type_schemas(&batch.route, own)));
            }
            statements.push(sql::reached(batch));
            statements.push(Statement::plain("ROLLBACK TO SAVEPOINT unit"));
            statements.push(Statement::plain("RELEASE SAVEPOINT unit"));
            link.run(Asked::new(statements), Ending::Open);
            let result = lost::run(&mut link);
            let answer = link
                .answers()
                .last()
                .and_then(|rows| rows.first())
                .cloned()
                .flatten();
            self.link = Some(link).filter(Link::is_up);
            match result {
                Ok(()) => {
                    let answer = answer.unwrap_or_default();
                    let answers = answer.bytes().map(|byte| byte == b'1');
                    places
                        .iter()
                        .zip(answers)
                        .for_each(|(at, answers)| reached[*at] = answers);
                }
                Err(error) if self.can_go_on(&error) => {
                    self.statements(&["ROLLBACK TO SAVEPOINT unit", "RELEASE SAVEPOINT unit"])?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(reached)
    }

    /// Whether there is a row with the key that a change gives its row; false where that cannot be told.
    pub fn finds(&mut self, route: &Route, change: &Change<String>) -> bool {
        let Some(look) = sql::look_for(route, change) else {
            return false;
        };
        let Some(mut link) = self.link.take() else {
            return false;
        };
        link.run(Fixed::new([look]), Ending::Open);
        let found = lost::run(&mut link).is_ok() && !link.answers().is_empty();
        self.link = Some(link).filter(Link::is_up);
        found
    }

    /// Runs plain statements.
    fn statements(&mut self, texts: &[&str]) -> Result<()> {
        let mut link = self.link.take().ok_or_else(connection_gone)?;
        link.run(Fixed::new(texts.iter().copied()), Ending::Open);
        let result = lost::run(&mut link);
        self.link = Some(link).filter(Link::is_up);
        result
    }
}

/// The routes of those records that are meant.
fn routes(units: &[&Unit], meant: impl Fn(&Record) -> bool) -> Vec<Rc<Route>> {
    let mut routes: Vec<Rc<Route>> = Vec::new();
    for record in units
        .iter()
        .flat_map(|unit| &unit.records)
        .filter(|record| meant(record))
    {
        if !routes.iter().any(|route| Rc::ptr_eq(route, &record.route)) {
            routes.push(record.route.clone());
        }
    }
    routes
}

/// Whether some record is a TRUNCATE.
fn empties(units: &[&Unit]) -> bool {
    let mut records = units.iter().flat_map(|unit| &unit.records);
    records.any(|record| record.change.op == Op::Truncate)
}

fn connection_gone() -> Error {
    Error::internal("drain goes on without a connection")
}

/// Records as a source of changes.
struct Records<I>(I);

impl<'r, I: Iterator<Item = &'r Record>> Source for Records<I> {
    fn next(&mut self, take: &mut dyn FnMut(&Rc<Route>, &Change<&str>)) -> Result<bool> {
        let Some(record) = self.0.next() else {
            return Ok(false);
        };
        take(&record.route, &record.change.borrowed());
        Ok(true)
    }
}
