//! The remote side of a drain: one transaction, with savepoints to go back to.
//!
//! [`Savepoint::BATCH`] stands before the batch under way, [`Savepoint::PART`] before the part of it that
//! is being tried. Constraints that can wait do so within a batch.
//!
//! A batch is first sent as a delivery is that takes the server's rows to be as expected, see
//! [`crate::delivery::assumption`]; once they were not, batches are sent without that to the end of the drain.

use crate::change::{Change, Op, Relation, Route, Source};
use crate::conflict::Tally;
use crate::delivery::assumption::{self, Assume, Manner};
use crate::delivery::event_loop::{self, LoopEnd};
use crate::delivery::feed::{Changes, Statements};
use crate::delivery::link::{Ending, Link};
use crate::delivery::remote_transaction::{
    self, BEGIN, CHECK_CONSTRAINTS, DEFER_CONSTRAINTS, IDENTIFY, RemoteTransaction, Savepoint,
};
use crate::delivery::truncations::Truncations;
use crate::delivery::whole::Span;
use crate::error::{Error, Result};
use crate::queue::claim::{Record, Unit};
use crate::sql::{self, Statement};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

const BATCH: Savepoint = Savepoint::BATCH;
const PART: Savepoint = Savepoint::PART;

/// Rows that the server is asked for at once.
const MAX_ASKED: usize = 5_000;

/// What may help a part that was refused, in the order in which it is tried.
#[derive(Clone, Copy)]
enum Remedy {
    /// The server is asked which tables are partitioned.
    AskKinds,
    /// Rows move in waves.
    Waves,
    /// What is still to be checked, from parts before, is checked first: of tables to be emptied something
    /// may be.
    CheckBefore,
}

/// A row, unless the transaction cannot write.
const CAN_WRITE: &str = "SELECT 1 WHERE NOT pg_catalog.pg_is_in_recovery() \
    AND pg_catalog.current_setting('transaction_read_only') OPERATOR(pg_catalog.=) 'off'";

const REMEDIES: [Remedy; 3] = [Remedy::AskKinds, Remedy::Waves, Remedy::CheckBefore];

/// The remote transaction of a drain. It has one batch under way at a time.
pub struct Replay {
    /// `None` once the connection is of no more use, and with it goes everything applied so far.
    link: Option<Link<'static>>,
    /// The remote transaction has begun.
    begun: bool,
    /// No batch has found the server's rows other than expected.
    trusting: bool,
    /// A batch has found two of its changes to be of one row there.
    one_by_one: bool,
    /// A TRUNCATE was refused since something of its table was still to be checked: that is done before each.
    checks: bool,
    /// Conflicts met by batches that stand, and by the one under way.
    conflicts: (Tally, Tally),
    /// Changes that were not sent because they have been at the server.
    held_back: u64,
    /// The remote transaction, once the server has named it.
    identity: Option<RemoteTransaction>,
    /// Tables of which parts of the batch that stand have deleted or moved rows, by source transaction: what
    /// cascades have taken along is not missed by later parts.
    vanished: HashMap<u32, HashSet<Relation>>,
    /// What the server has said of that.
    can_write: Option<bool>,
}

impl Replay {
    /// Over a link that is up; `begun` if its transaction is open already.
    pub fn new(link: Link<'static>, begun: bool) -> Self {
        Self {
            link: Some(link),
            begun,
            trusting: true,
            one_by_one: false,
            checks: false,
            conflicts: Default::default(),
            held_back: 0,
            identity: None,
            vanished: HashMap::new(),
            can_write: None,
        }
    }

    /// The remote transaction; `None` also where it was begun by an earlier drain.
    pub fn identity(&self) -> Option<RemoteTransaction> {
        self.identity.clone()
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
            &[DEFER_CONSTRAINTS, BATCH.release, BATCH.set]
        } else {
            &[BEGIN[0], BEGIN[1], IDENTIFY, BATCH.set]
        };
        self.begun = true;
        self.keep_conflicts();
        self.vanished.clear();
        let assume = self.assume(units);
        let error = match self.attempt(
            units,
            begin,
            &[CHECK_CONSTRAINTS],
            Manner::assuming(assume),
            meanwhile,
        ) {
            Err(error) if self.can_go_on(&error) => error,
            result => return result,
        };
        let mut again = self.must_ask_kinds(units, &error) | self.must_check(units, &error);
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

    /// Whether a TRUNCATE was refused since something of its table was still to be checked, for the first time.
    fn must_check(&mut self, units: &[&Unit], error: &Error) -> bool {
        let must = !self.checks && empties(units) && assumption::has_pending_checks(error);
        self.checks |= must;
        must
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
        self.part_as(units, None, &[PART.release])
    }

    /// Applies a part of the batch in one statement, or in one for each of its commands.
    ///
    /// # Errors
    /// As for [`Replay::part`].
    pub fn part_whole(&mut self, units: &[&Unit], span: Span) -> Result<()> {
        self.part_as(units, Some(span), &[PART.release])
    }

    /// Applies records before the batch, constraints checked.
    ///
    /// # Errors
    /// As for [`Replay::part`].
    pub fn apart(&mut self, units: &[&Unit], span: Option<Span>) -> Result<()> {
        self.part_as(
            units,
            span,
            &[CHECK_CONSTRAINTS, DEFER_CONSTRAINTS, PART.release],
        )
    }

    /// Applies records as their net effect, after all that was applied so far, constraints checked.
    ///
    /// # Errors
    /// As for [`Replay::part`].
    pub fn apart_whole(&mut self, units: &[&Unit]) -> Result<()> {
        self.whole(&[], || ())?;
        self.apart(units, Some(Span::All))
    }

    fn part_as(&mut self, units: &[&Unit], span: Option<Span>, after: &[&str]) -> Result<()> {
        let result = self.try_part(units, span, after);
        if result.is_ok() {
            self.note_vanished(units);
        }
        result
    }

    /// Tries a part between the part's savepoint and `after`, and each of the remedies that may help.
    fn try_part(&mut self, units: &[&Unit], span: Option<Span>, after: &[&str]) -> Result<()> {
        let how = Manner {
            span,
            ..Manner::assuming(Assume::Nothing)
        };
        let mut result = self.attempt(units, &[PART.set], after, how, || ());
        for remedy in REMEDIES {
            match &result {
                Err(error) if self.can_go_on(error) => {
                    if let Some(remedied) = self.remedy(remedy, units, error, (how, after)) {
                        result = remedied;
                    }
                }
                _ => return result,
            }
        }
        if let Err(error) = &result
            && self.can_go_on(error)
            && self.statements(&[PART.roll_back, PART.release]).is_err()
        {
            self.give_up();
        }
        result
    }

    /// What a part comes to that was refused with `error`, where a remedy applies.
    fn remedy(
        &mut self,
        remedy: Remedy,
        units: &[&Unit],
        error: &Error,
        (how, after): (Manner, &[&str]),
    ) -> Option<Result<()>> {
        match remedy {
            Remedy::AskKinds => {
                let asks = self.must_ask_kinds(units, error);
                asks.then(|| self.attempt(units, &[PART.roll_back], after, how, || ()))
            }
            Remedy::Waves => {
                let routes = routes(units, |record| record.change.moves());
                let link = self.link.as_mut()?;
                let moved = assumption::moved_at_once(&routes, link, error);
                if moved.is_empty() {
                    return None;
                }
                let how = Manner {
                    in_waves: true,
                    ..how
                };
                self.attempt(units, &[PART.roll_back], after, how, || ())
                    .ok()?;
                let session = self.link.as_mut().and_then(Link::session);
                session
                    .into_iter()
                    .for_each(|session| assumption::keep_in_waves(session, &moved));
                Some(Ok(()))
            }
            Remedy::CheckBefore => {
                if !empties(units) || !assumption::has_pending_checks(error) {
                    return None;
                }
                let again = [PART.roll_back, CHECK_CONSTRAINTS, DEFER_CONSTRAINTS];
                let how = Manner {
                    checks: true,
                    ..how
                };
                let done = self.attempt(units, &again, after, how, || ());
                done.ok().map(Ok)
            }
        }
    }

    /// Takes back the batch and applies this much of it instead, constraints checked.
    ///
    /// # Errors
    /// As for [`Replay::whole`].
    pub fn instead(&mut self, units: &[&Unit]) -> Result<()> {
        self.conflicts.1 = Tally::default();
        self.vanished.clear();
        let again = [BATCH.roll_back, DEFER_CONSTRAINTS];
        self.attempt(
            units,
            &again,
            &[CHECK_CONSTRAINTS],
            Manner::assuming(Assume::Nothing),
            || (),
        )
    }

    /// Takes back the batch.
    ///
    /// # Errors
    /// What the link reports.
    pub fn undo(&mut self) -> Result<()> {
        self.conflicts.1 = Tally::default();
        self.vanished.clear();
        self.statements(&[BATCH.roll_back, DEFER_CONSTRAINTS])
    }

    /// Checks what the batch deferred.
    ///
    /// # Errors
    /// As for [`Replay::whole`].
    pub fn check(&mut self) -> Result<()> {
        self.statements(&[CHECK_CONSTRAINTS])
    }

    /// Applies units between other statements.
    fn attempt(
        &mut self,
        units: &[&Unit],
        before: &[&str],
        after: &[&str],
        manner: Manner,
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
        let manner = Manner {
            checks: self.checks,
            ..manner
        };
        let assume = manner.assume;
        let many = assume == Assume::Rows && assumption::are_many(records().count(), bytes());
        let changes = Changes::new(Records(records()), &name)
            .optimistic(assume == Assume::Rows)
            .one_by_one(self.one_by_one)
            .in_binary(many && link.takes_binary())
            .in_waves(manner.in_waves)
            .truncating(if empties(units) {
                let mut records = Records(records());
                Truncations::of(|take| records.next(take))
            } else {
                Ok(Truncations::default())
            })
            .newest(records().any(|record| record.route.version().is_some()))
            .forwarded(records().any(|record| !record.route.path.is_empty()))
            .whole(manner.span)
            .before_truncates(manner.before_truncates())
            .following(&self.vanished_before(units))
            .between(before, after);
        link.run(changes, Ending::Open);
        if event_loop::send(std::slice::from_mut(&mut link)) == LoopEnd::Done && !link.is_done() {
            meanwhile();
        }
        let result = remote_transaction::run(&mut link);
        self.identify(&link, before);
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

    fn note_vanished(&mut self, units: &[&Unit]) {
        for unit in units {
            for record in unit
                .records
                .iter()
                .filter(|record| record.takes_rows_away())
            {
                let tables = self.vanished.entry(unit.transaction()).or_default();
                if !tables.contains(&record.route.source) {
                    tables.insert(record.route.source.clone());
                }
            }
        }
    }

    /// Tables of which the transactions of these units have deleted or moved rows in parts before.
    fn vanished_before(&self, units: &[&Unit]) -> HashSet<Relation> {
        if self.vanished.is_empty() {
            return HashSet::new();
        }
        let transactions: HashSet<u32> = units.iter().map(|unit| unit.transaction()).collect();
        let tables = transactions
            .iter()
            .filter_map(|transaction| self.vanished.get(transaction));
        tables.flatten().cloned().collect()
    }

    /// Remembers which transaction it is, if that was asked.
    fn identify(&mut self, link: &Link<'_>, asked: &[&str]) {
        if asked.contains(&IDENTIFY) {
            self.identity = remote_transaction::identity(link);
        }
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
            let mut statements = vec![Statement::plain(PART.set)];
            if batch.route.compared().next().is_some()
                && let Some(session) = link.session()
            {
                let own = session.endpoint.settings.search_path();
                statements.push(Statement::plain(sql::with_type_schemas(
                    [&*batch.route],
                    own,
                )));
            }
            statements.push(sql::reached(batch));
            statements.push(Statement::plain(PART.roll_back));
            statements.push(Statement::plain(PART.release));
            link.run(Statements::new(statements), Ending::Open);
            let result = remote_transaction::run(&mut link);
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
                    self.statements(&[PART.roll_back, PART.release])?;
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
        let looked = remote_transaction::execute(&mut link, [look]);
        let found = looked.is_ok() && !link.answers().is_empty();
        self.link = Some(link).filter(Link::is_up);
        found
    }

    /// Whether the server says that its transaction may write, within one that has not failed. Asked once.
    pub fn can_write(&mut self) -> bool {
        if let Some(known) = self.can_write {
            return known;
        }
        let Some(mut link) = self.link.take() else {
            return false;
        };
        let asked = remote_transaction::execute(&mut link, [CAN_WRITE]);
        let can_write = asked.is_ok() && !link.answers().is_empty();
        self.link = Some(link).filter(Link::is_up);
        self.can_write = Some(can_write);
        can_write
    }

    /// Runs plain statements.
    fn statements(&mut self, texts: &[&str]) -> Result<()> {
        let mut link = self.link.take().ok_or_else(connection_gone)?;
        let result = remote_transaction::execute(&mut link, texts.iter().copied());
        self.identify(&link, texts);
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
