//! What a session behind a pooler executes by name, see [`shared`]: a name means the same to all, so a
//! statement is executed without preparing it where a process has it, whoever has prepared it.
//!
//! Which process serves a transaction is not known before it answers. So a run takes it that the process has
//! what processes of the pool have had; one that has not fails the run with 26000 before anything was
//! written, and the run is sent once more, after the process was asked what it has and with what it has not.
//! A statement is learnt in the same way once a session has executed it repeatedly. Where a pooler or other
//! clients discard what is prepared, that would cost more than it saves: then the session stops for a while.

use crate::change::Route;
use crate::error::{Error, SqlState};
use crate::sql::shared::{self, Found};
use crate::sql::{Batch, BatchKind, Statement, prepared};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Statements that a session executes by name, at most.
const MOST: usize = 64;
/// Statements of ours that a process has, at most: more are not prepared. Each takes some 20 kB there.
const MOST_OF_PROCESS: usize = 256;
/// How often a statement is executed before it is prepared.
const USES_BEFORE: u32 = 2;
/// A text is changed so often, at most, because what processes have under its name is out of date.
const MOST_GENERATIONS: u32 = 4;

/// What failures may cost: each run by name that succeeds adds one, up to the most; each that fails takes more,
/// as it costs more.
const FIRST_CREDIT: i32 = 40;
const MOST_CREDIT: i32 = 100;
const COST_OF_FAILURE: i32 = 8;
/// How long nothing is executed by name once it is used up.
const NAMES_UNUSED_PERIOD: Duration = Duration::from_secs(300);

/// The statements that a session executes by name behind a pooler.
pub struct SharedStatements {
    entries: Vec<Entry>,
    run: Run,
    /// The pooler carries statements from process to process itself.
    is_carried: bool,
    credit: i32,
    paused_until: Option<Instant>,
}

/// What the run under way may execute by name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Run {
    Nothing,
    /// What processes of the pool have had.
    Known,
    /// What its process has, or is sent before.
    Asked,
}

struct Entry {
    what: What,
    name: Rc<str>,
    text: String,
    generation: u32,
    uses: u32,
    /// Processes of the pool have had it.
    is_known: bool,
    /// It was prepared over this connection, and no process was found to lack it since.
    was_prepared: bool,
    /// The process that serves the run has it, or is sent it before.
    is_there: bool,
    /// The run under way executes it by name.
    is_used: bool,
    /// It is to be learnt.
    is_wanted: bool,
    /// A run that has executed it by name has failed, maybe over that.
    is_suspect: bool,
}

#[derive(PartialEq, Eq)]
enum What {
    Introduction,
    Batch {
        route: Rc<Route>,
        kind: BatchKind,
        unchanged: Vec<u32>,
        alone: bool,
    },
}

impl What {
    /// What a batch is executed by.
    fn of(batch: &Batch) -> Self {
        Self::Batch {
            route: batch.route.clone(),
            kind: batch.kind,
            unchanged: batch.unchanged.clone(),
            alone: batch.alone,
        }
    }

    /// Whether that is this one.
    fn is_of(&self, batch: &Batch) -> bool {
        match self {
            Self::Batch {
                route,
                kind,
                unchanged,
                alone,
            } => {
                (*kind, *alone) == (batch.kind, batch.alone)
                    && *unchanged == batch.unchanged
                    && *route == batch.route
            }
            Self::Introduction => false,
        }
    }

    /// Whether another will do where this one is refused.
    fn is_alone(&self) -> bool {
        matches!(self, Self::Batch { alone: true, .. })
    }
}

impl Default for SharedStatements {
    fn default() -> Self {
        let entries = Vec::new();
        let run = Run::Nothing;
        Self {
            entries,
            run,
            is_carried: false,
            credit: FIRST_CREDIT,
            paused_until: None,
        }
    }
}

impl SharedStatements {
    /// The next run may execute what processes of the pool have had: it is repeated if it fails over that.
    pub fn allow(&mut self) {
        if !self.is_paused() {
            self.begin(Run::Known);
        }
    }

    /// Whether the next run is to ask its process first.
    pub fn wants_to_ask(&mut self) -> bool {
        !self.is_paused() && self.entries.iter().any(|entry| entry.is_wanted)
    }

    fn is_paused(&mut self) -> bool {
        let is_over = self
            .paused_until
            .is_some_and(|until| Instant::now() >= until);
        if is_over {
            (self.paused_until, self.credit) = (None, COST_OF_FAILURE);
        }
        self.paused_until.is_some()
    }

    fn begin(&mut self, run: Run) {
        self.run = run;
        for entry in &mut self.entries {
            (entry.is_used, entry.is_there) = (false, false);
        }
    }

    /// The process that serves the open transaction, and will serve the next run in it, has answered to
    /// [`shared::WHAT_IS_THERE`]: gives what prepares the rest there.
    pub fn asked<'a>(&mut self, answer: impl Iterator<Item = &'a str>) -> Vec<Statement> {
        self.begin(Run::Asked);
        let (mut right, mut wrong): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
        for found in answer.filter_map(Found::parse) {
            match found {
                Found::Carried => self.is_carried = true,
                Found::Right(name) => right.push(name),
                // Somebody has prepared something else under a name of ours.
                Found::Wrong(name) => wrong.push(name),
            }
        }
        let mut of_process = right.len() + wrong.len();
        let mut statements = Vec::new();
        for entry in &mut self.entries {
            entry.compare(&right, &wrong);
            if !entry.is_wanted || entry.is_there {
                continue;
            }
            // Maybe the pooler knows it by a name of its own: to prepare it twice would end the connection.
            if entry.was_prepared && self.is_carried {
                entry.is_there = true;
                continue;
            } else if entry.was_prepared {
                entry.renew();
                entry.compare(&right, &wrong);
            }
            if !entry.is_wanted || entry.is_there {
                continue;
            }
            if of_process >= MOST_OF_PROCESS {
                self.paused_until = Instant::now().checked_add(NAMES_UNUSED_PERIOD);
                break;
            }
            of_process += 1;
            (entry.is_there, entry.was_prepared) = (true, true);
            statements.push(Statement::prepare(entry.text.clone(), entry.name.clone()));
        }
        statements
    }

    /// Nothing is executed by name for a while.
    pub fn pause(&mut self) {
        self.paused_until = Instant::now().checked_add(NAMES_UNUSED_PERIOD);
        self.run = Run::Nothing;
    }

    /// The name under which a batch is to be executed; `None` if it is to be sent as it is.
    pub fn name_for(&mut self, batch: &mut Batch) -> Option<Rc<str>> {
        // Operators that the search_path must find are none that a text alone says.
        let is_told = batch.route.compared().next().is_none();
        if self.run == Run::Nothing || !is_told || !prepared::can_last(batch) {
            return None;
        }
        batch.alone &= batch.kind == BatchKind::Update;
        let is_given_up =
            |entry: &Entry| entry.generation > MOST_GENERATIONS && entry.what.is_of(batch);
        if batch.alone && self.entries.iter().any(is_given_up) {
            batch.alone = false;
        }
        let batch = &*batch;
        let what = || Some((What::of(batch), prepared::text(batch)?));
        self.name_of(|entry| entry.what.is_of(batch), what)
    }

    /// The name of the statement that introduces transactions, as for [`SharedStatements::name_for`].
    pub fn name_of_introduction(&mut self, text: impl FnOnce() -> String) -> Option<Rc<str>> {
        if self.run == Run::Nothing {
            return None;
        }
        let what = || Some((What::Introduction, text()));
        self.name_of(|entry| entry.what == What::Introduction, what)
    }

    fn name_of(
        &mut self,
        same: impl Fn(&Entry) -> bool,
        what: impl FnOnce() -> Option<(What, String)>,
    ) -> Option<Rc<str>> {
        let at = match self.entries.iter().position(same) {
            Some(at) => at,
            None if self.entries.len() < MOST => {
                let (what, text) = what()?;
                self.entries.push(Entry::new(what, text));
                self.entries.len() - 1
            }
            None => return None,
        };
        let run = self.run;
        let entry = self.entries.get_mut(at)?;
        if entry.generation > MOST_GENERATIONS {
            return None;
        }
        entry.uses = entry.uses.saturating_add(1);
        entry.is_used = match run {
            Run::Nothing => false,
            Run::Known => entry.is_known,
            Run::Asked => entry.is_there,
        };
        entry.is_wanted |= !entry.is_known && entry.uses >= USES_BEFORE;
        entry.is_used.then(|| entry.name.clone())
    }

    /// The run has ended. Says whether it has executed any by name.
    pub fn settle(&mut self, failure: Option<&Error>) -> bool {
        let run = std::mem::replace(&mut self.run, Run::Nothing);
        // What was to be prepared may be what has failed.
        let is_at_fault = failure.is_some() && run == Run::Asked;
        for entry in self.entries.iter_mut().filter(|_| is_at_fault) {
            entry.is_used |= entry.is_there;
        }
        let was_used = run != Run::Nothing && self.entries.iter().any(|entry| entry.is_used);
        match failure {
            None => {
                let gained = i32::from(was_used);
                self.credit = self.credit.saturating_add(gained).min(MOST_CREDIT);
                for entry in &mut self.entries {
                    entry.succeeded(was_used);
                }
            }
            Some(error) if run == Run::Known && was_used && is_missing(error) => {
                self.count_failure();
                for entry in self.entries.iter_mut().filter(|entry| entry.is_used) {
                    (entry.is_known, entry.was_prepared) = (false, false);
                    entry.is_wanted = true;
                }
            }
            // Without a name it fails as well.
            Some(_) if !was_used => {
                for entry in &mut self.entries {
                    entry.is_suspect = false;
                }
            }
            Some(_) => {}
        }
        for entry in &mut self.entries {
            entry.is_there = false;
        }
        was_used
    }

    /// What the last run has executed by name may be why it has failed: it is sent again without. The statement
    /// that introduces it depends on no table, so that others are suspected first.
    pub fn suspect(&mut self) {
        self.count_failure();
        let is_about_rows = |entry: &Entry| entry.is_used && entry.what != What::Introduction;
        let only_rows = self.entries.iter().any(is_about_rows);
        for entry in self.entries.iter_mut().filter(|entry| entry.is_used) {
            entry.is_suspect = !only_rows || is_about_rows(entry);
        }
    }

    fn count_failure(&mut self) {
        self.credit -= COST_OF_FAILURE;
        if self.credit < 0 {
            self.pause();
        }
    }
}

/// Whether a process does not have what it was to execute.
pub fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Remote(_)) && error.sqlstate() == SqlState::INVALID_STATEMENT_NAME
}

impl Entry {
    fn new(what: What, text: String) -> Self {
        Self {
            what,
            name: shared::name_of(&text),
            text,
            generation: 0,
            uses: 0,
            is_known: false,
            was_prepared: false,
            is_there: false,
            is_used: false,
            is_wanted: false,
            is_suspect: false,
        }
    }

    /// These are what the process has under names of ours.
    fn compare(&mut self, right: &[&str], wrong: &[&str]) {
        if wrong.contains(&&*self.name) {
            self.give_up();
        }
        self.is_there = right.contains(&&*self.name);
    }

    /// A run has succeeded; `by_name`: it has executed something by name.
    fn succeeded(&mut self, by_name: bool) {
        match self.is_suspect && !by_name {
            true if self.what.is_alone() => self.give_up(),
            true => self.renew(),
            false => {}
        }
        if self.is_there {
            (self.is_known, self.is_wanted) = (true, false);
        }
        self.is_suspect = false;
    }

    /// What processes have under the name is out of date: gives it another one by another text.
    fn renew(&mut self) {
        self.generation += 1;
        if self.generation > MOST_GENERATIONS {
            return self.give_up();
        }
        if self.generation > 1 {
            self.text
                .truncate(self.text.rfind(" /* ").unwrap_or(self.text.len()));
        }
        self.text.push_str(&format!(" /* {} */", self.generation));
        self.name = shared::name_of(&self.text);
        (self.is_known, self.was_prepared, self.is_wanted) = (false, false, true);
    }

    /// It is not executed by name any more.
    fn give_up(&mut self) {
        self.generation = MOST_GENERATIONS + 1;
        (self.is_known, self.is_there, self.is_wanted) = (false, false, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::RemoteError;

    const TEXT: &str = "SELECT 1";

    fn name(shared: &mut SharedStatements) -> Option<Rc<str>> {
        shared.name_of_introduction(|| TEXT.to_owned())
    }

    fn failure(sqlstate: &'static str) -> Error {
        Error::Remote(Box::new(RemoteError {
            server: "s".to_owned(),
            sqlstate: SqlState::new(sqlstate),
            message: String::new(),
            detail: None,
            hint: None,
            context: None,
            schema: None,
            table: None,
            column: None,
            constraint: None,
        }))
    }

    /// One that has sent the statement as it is until it wants to prepare it.
    fn wanting() -> SharedStatements {
        let mut shared = SharedStatements::default();
        for _ in 0..USES_BEFORE {
            assert!(!shared.wants_to_ask());
            shared.allow();
            assert_eq!(name(&mut shared), None);
            shared.settle(None);
        }
        assert!(shared.wants_to_ask());
        shared
    }

    /// Asks a process that answers so, and runs there; gives what is prepared.
    fn ask(shared: &mut SharedStatements, answer: &[&str], failure: Option<&Error>) -> usize {
        let prepared = shared.asked(answer.iter().copied()).len();
        name(shared);
        shared.settle(failure);
        prepared
    }

    #[test]
    fn a_statement_is_prepared_where_it_is_missing_and_then_taken_to_be_there() {
        let mut shared = wanting();
        assert_eq!(ask(&mut shared, &[], None), 1);
        for _ in 0..3 {
            assert!(!shared.wants_to_ask());
            shared.allow();
            assert_eq!(name(&mut shared), Some(shared::name_of(TEXT)));
            assert!(shared.settle(None));
        }
        // Another process has not got it; the next one has.
        shared.allow();
        name(&mut shared);
        shared.settle(Some(&failure("26000")));
        assert!(shared.wants_to_ask());
        assert_eq!(
            ask(
                &mut shared,
                &[&format!("right {}", shared::name_of(TEXT))],
                None
            ),
            0
        );
        shared.allow();
        assert!(name(&mut shared).is_some());
        // Nothing is executed by name where that was not allowed.
        shared.settle(None);
        assert_eq!(name(&mut shared), None);
    }

    #[test]
    fn what_somebody_else_has_prepared_under_the_name_is_never_executed() {
        let mut shared = wanting();
        assert_eq!(
            ask(
                &mut shared,
                &[&format!("wrong {}", shared::name_of(TEXT))],
                None
            ),
            0
        );
        for _ in 0..5 {
            assert!(!shared.wants_to_ask());
            shared.allow();
            assert_eq!(name(&mut shared), None);
            shared.settle(None);
        }
    }

    #[test]
    fn no_name_is_prepared_twice_unless_a_process_was_found_to_lack_it() {
        // A pooler that carries statements knows it by a name of its own.
        let mut shared = wanting();
        let broken = failure("23514");
        assert_eq!(ask(&mut shared, &[], Some(&broken)), 1);
        assert!(shared.wants_to_ask());
        assert_eq!(ask(&mut shared, &["carried"], None), 0);
        shared.allow();
        assert_eq!(name(&mut shared), Some(shared::name_of(TEXT)));
        // Where it is not known to be one, it is prepared under another name.
        let mut shared = wanting();
        ask(&mut shared, &[], Some(&broken));
        assert_eq!(ask(&mut shared, &[], None), 1);
        shared.allow();
        assert_eq!(name(&mut shared), Some(shared::name_of("SELECT 1 /* 1 */")));
    }

    #[test]
    fn what_works_only_without_the_name_gets_another_one_a_few_times() {
        let mut shared = wanting();
        for generation in 1..=MOST_GENERATIONS {
            ask(&mut shared, &[], None);
            shared.allow();
            name(&mut shared);
            assert!(shared.settle(Some(&failure("42804"))));
            shared.suspect();
            shared.settle(None);
            let text = format!("{TEXT} /* {generation} */");
            assert_eq!(shared.entries[0].text, text);
        }
        // What fails without as well does not.
        ask(&mut shared, &[], None);
        shared.allow();
        name(&mut shared);
        shared.settle(Some(&failure("22003")));
        shared.suspect();
        shared.settle(Some(&failure("22003")));
        assert_eq!(shared.entries[0].generation, MOST_GENERATIONS);
        assert!(shared.entries[0].is_known);
    }

    #[test]
    fn where_statements_are_discarded_it_stops_for_a_while() {
        let mut shared = wanting();
        let mut failures = 0;
        for _ in 0..100 {
            if shared.wants_to_ask() {
                ask(&mut shared, &[], None);
            }
            shared.allow();
            if name(&mut shared).is_some() {
                failures += 1;
                shared.settle(Some(&failure("26000")));
            } else {
                shared.settle(None);
            }
        }
        assert!((2..10).contains(&failures), "{failures}");
        // Afterwards it is tried again, and soon given up.
        shared.paused_until = Some(Instant::now());
        assert!(shared.wants_to_ask());
    }
}
