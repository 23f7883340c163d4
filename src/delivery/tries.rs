//! The ways in which a change set is tried on a server, one after the other: each takes less for granted
//! than the one before.

use super::assumption::{
    self, Assume, Manner, assumption_failed, first_assumption, has_pending_checks,
    is_twice_one_row, keep_in_waves,
};
use super::link::{Link, Unmet};
use super::whole::Span;
use crate::capture::change_set::ChangeSet;
use crate::change::Route;
use crate::error::{Error, SqlState};
use std::rc::Rc;

/// When a set is tried once more, in the order in which that is considered.
#[derive(Clone, Copy)]
enum Step {
    /// The transaction could not begin as it was tried: the same again.
    Begin,
    /// What was taken for granted is not so, or what was prepared is out of date.
    Assumption,
    /// A table was to be emptied of which something was still to be checked: checked before.
    Checks,
    /// Rows that were moved at once were in each other's way: in waves.
    Waves,
    /// Two changes were of one row there: one by one.
    Rows,
    /// What was refused one batch after the other may be true at once: for each command, then for all.
    Whole(Span),
}

const STEPS: [Step; 7] = [
    Step::Begin,
    Step::Assumption,
    Step::Checks,
    Step::Waves,
    Step::Rows,
    Step::Whole(Span::Command),
    Step::Whole(Span::All),
];

/// The tries of one set over one link.
pub struct Tries<'s> {
    set: &'s ChangeSet,
    first: Manner,
    /// The steps that were not considered yet.
    steps: std::slice::Iter<'static, Step>,
    /// Routes whose rows move in waves in the try under way.
    in_waves: Vec<Rc<Route>>,
    /// See [`Manner::checks`]; from the try on that found it to be needed.
    checks: bool,
}

impl<'s> Tries<'s> {
    /// Tries that begin with what the link's session allows to assume.
    pub fn new(set: &'s ChangeSet, link: &mut Link<'_>) -> Self {
        Self::assuming(set, first_assumption(set, link))
    }

    /// Tries of which the first assumes this.
    pub fn assuming(set: &'s ChangeSet, assume: Assume) -> Self {
        Self {
            set,
            first: Manner::assuming(assume),
            steps: STEPS.iter(),
            in_waves: Vec::new(),
            checks: false,
        }
    }

    /// How the set is tried first.
    pub fn first(&self) -> Manner {
        self.first
    }

    /// How the set is to be tried next, after what the last try came to. `None` if that stands.
    pub fn next(&mut self, link: &mut Link<'_>) -> Option<Manner> {
        let in_waves = std::mem::take(&mut self.in_waves);
        if link.result().is_ok() {
            if let Some(session) = link.session().filter(|_| !in_waves.is_empty()) {
                keep_in_waves(session, &in_waves);
            }
            return None;
        }
        while let Some(step) = self.steps.next() {
            let manner = self.manner_of(*step, link);
            if manner.is_some() {
                return manner;
            }
        }
        None
    }

    fn manner_of(&mut self, step: Step, link: &mut Link<'_>) -> Option<Manner> {
        let set = self.set;
        let nothing = Manner {
            checks: self.checks,
            ..Manner::assuming(Assume::Nothing)
        };
        match step {
            Step::Begin => {
                let is_met = !matches!(link.unmet(), Unmet::Clock | Unmet::ImplicitBegin);
                (!is_met).then_some(self.first)
            }
            Step::Assumption => {
                // Both are asked: each forgets what it finds to be wrong.
                let again = assumption_failed(set, link, self.first.assume) | link.was_outdated();
                // What is tried as a whole takes nothing for granted either.
                let as_whole = may_hold_as_whole(set, link) && !link.result().is_err_and(is_taken);
                (again && !as_whole).then_some(nothing)
            }
            Step::Checks => {
                self.checks = set.has_truncates()
                    && link.result().is_err_and(|error| has_pending_checks(&error));
                self.checks.then_some(Manner {
                    checks: true,
                    ..nothing
                })
            }
            Step::Waves => {
                self.in_waves = refused_at_once(set, link);
                (!self.in_waves.is_empty()).then_some(Manner {
                    in_waves: true,
                    ..nothing
                })
            }
            Step::Rows => is_twice_one_row(link).then_some(Manner {
                assume: Assume::NotKeys,
                ..nothing
            }),
            Step::Whole(span) => may_hold_as_whole(set, link).then_some(Manner {
                span: Some(span),
                ..nothing
            }),
        }
    }
}

/// See [`assumption::moved_at_once`].
fn refused_at_once(set: &ChangeSet, link: &mut Link<'_>) -> Vec<Rc<Route>> {
    match link.result() {
        Err(error @ Error::Remote(_)) => assumption::moved_at_once(set.routes(), link, &error),
        _ => Vec::new(),
    }
}

/// Whether a row was there already.
fn is_taken(error: Error) -> bool {
    error.sqlstate() == SqlState::UNIQUE_VIOLATION
}

/// Whether what was refused, one batch after the other, may be true if it is written at once.
fn may_hold_as_whole(set: &ChangeSet, link: &Link<'_>) -> bool {
    set.len() > 1 && link.result().is_err_and(|error| error.is_about_others())
}
