//! What the first try of a delivery takes for granted, to be cheap, and when to try again without.

use super::feed::Changes;
use super::link::Link;
use super::plan::{FIRST_ROWS, moves_at_once};
use super::remote_transaction::{CHECK_CONSTRAINTS, DEFER_CONSTRAINTS};
use super::truncations::Truncations;
use super::whole::Span;
use crate::capture::change_set::ChangeSet;
use crate::capture::log::{Reader, Rows};
use crate::change::{Policy, Relation, Route, Source};
use crate::connect::session::Session;
use crate::error::{Error, SqlState};
use std::collections::HashSet;
use std::rc::Rc;

/// How much is taken for granted of the server's rows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Assume {
    /// Rows are as expected: plain INSERT and UPDATE, untouched large columns left out.
    Rows,
    /// Rows that are updated have the large columns that the UPDATE left alone.
    LargeColumns,
    /// Of the rows nothing; that changes of different keys are of different rows there.
    Nothing,
    /// Not even that: each change has a statement of its own.
    NotKeys,
}

/// How the changes of a set are sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    pub assume: Assume,
    /// Rows move in waves also where the server's key is not known to need that.
    pub in_waves: bool,
    /// What is put together in one statement.
    pub span: Option<Span>,
    /// Deferred constraints are checked before each TRUNCATE, which PostgreSQL refuses for a table with
    /// pending checks.
    pub checks: bool,
}

impl Manner {
    pub const fn assuming(assume: Assume) -> Self {
        Self {
            assume,
            in_waves: false,
            span: None,
            checks: false,
        }
    }
}

impl Manner {
    /// What is sent before each TRUNCATE.
    pub fn before_truncates(self) -> &'static [&'static str] {
        if self.checks {
            &[CHECK_CONSTRAINTS, DEFER_CONSTRAINTS]
        } else {
            &[]
        }
    }
}

/// How a change set is tried first. A plain INSERT is sent only where upserts have been seen to work: without the
/// unique index that they need, it would double a row.
pub fn first_assumption(set: &ChangeSet, link: &mut Link<'_>) -> Assume {
    let accepted = |session: &mut Session| session.has_accepted(set.routes());
    if link.session().is_some_and(accepted) {
        Assume::Rows
    } else {
        Assume::LargeColumns
    }
}

/// Whether the run may have failed because the assumption was wrong: a row was missing or there already, or what
/// the server checks at the end of a statement was asked of too few rows at once.
pub fn assumption_failed(set: &ChangeSet, link: &mut Link<'_>, assume: Assume) -> bool {
    if let Some(error) = link.result().err()
        && set.has_truncates()
        && must_ask_kinds(link, &error)
    {
        return true;
    }
    let refused = |e: &Error| matches!(e, Error::Remote(_)) && !e.is_transient();
    if is_large(set, assume)
        && let Some(error) = link.result().err().filter(refused)
    {
        set_text_only(link, &error);
        return true;
    }
    let unexpected = |e: Error| {
        let state = e.sqlstate();
        state == SqlState::NO_DATA_FOUND
            || (state == SqlState::UNIQUE_VIOLATION && assume == Assume::Rows)
    };
    let overwrites = set
        .routes()
        .iter()
        .any(|route| route.policy == Policy::Overwrite);
    let assumed = assume == Assume::Rows || (assume == Assume::LargeColumns && set.has_unsent());
    assumed && overwrites && link.result().err().is_some_and(unexpected)
}

/// Whether a statement has failed since keys that differ here are equal there, so that two of its changes were
/// of one row.
pub fn is_twice_one_row(link: &mut Link<'_>) -> bool {
    link.result()
        .err()
        .is_some_and(|error| is_of_one_row(&error))
}

/// Whether a failure says so.
pub fn is_of_one_row(error: &Error) -> bool {
    matches!(error, Error::Remote(_)) && error.sqlstate() == SqlState::CARDINALITY_VIOLATION
}

/// A set with a TRUNCATE was refused, maybe for a table that is partitioned there. From now on the session
/// asks.
pub fn must_ask_kinds(link: &mut Link<'_>, refusal: &Error) -> bool {
    let refused =
        matches!(refusal, Error::Remote(_)) && refusal.sqlstate() == SqlState::WRONG_OBJECT_TYPE;
    link.session()
        .filter(|_| refused)
        .is_some_and(|session| !std::mem::replace(&mut session.asks_kinds, true))
}

/// Whether a TRUNCATE was refused since something of its table was still to be checked.
pub fn has_pending_checks(refusal: &Error) -> bool {
    matches!(refusal, Error::Remote(_)) && refusal.sqlstate() == SqlState::OBJECT_IN_USE
}

/// Routes of rows that may have been refused for having been moved at once: they are moved in waves then.
pub fn moved_at_once<'r>(
    routes: impl IntoIterator<Item = &'r Rc<Route>>,
    link: &mut Link<'_>,
    refusal: &Error,
) -> Vec<Rc<Route>> {
    if refusal.sqlstate() != SqlState::UNIQUE_VIOLATION {
        return Vec::new();
    }
    let Some(session) = link.session() else {
        return Vec::new();
    };
    let known = |route: &&Rc<Route>| session.moves_in_waves.contains(&route.target);
    routes
        .into_iter()
        .filter(|route| moves_at_once(route) && !known(route))
        .cloned()
        .collect()
}

/// Rows of these have been moved in waves, which has worked: they are from now on. Not under a policy that
/// lets a row stay for one that is in its way: that may have been why, and the next time none is.
pub fn keep_in_waves(session: &mut Session, routes: &[Rc<Route>]) {
    let known: HashSet<Relation> = session.moves_in_waves.drain(..).collect();
    let kept = routes.iter().filter(|route| route.policy != Policy::Skip);
    let all: HashSet<Relation> = known
        .into_iter()
        .chain(kept.map(|r| r.target.clone()))
        .collect();
    session.moves_in_waves.extend(all);
}

/// What was sent in batches that grow and in binary form was refused.
pub fn set_text_only(link: &mut Link<'_>, refusal: &Error) {
    if refusal.sqlstate().is_about_table()
        && let Some(session) = link.session()
    {
        // Its columns may be of types for which the binary form is none.
        session.only_text = true;
    }
}

/// Fewer changes are many if they have so many bytes.
const LARGE: u64 = 256 * 1024;

/// Whether so many changes of so many bytes are worth batches that grow and the binary form.
pub fn are_many(changes: usize, bytes: u64) -> bool {
    changes > FIRST_ROWS || (changes > 1 && bytes > LARGE)
}

/// Whether a set is sent in batches that grow and in binary form.
fn is_large(set: &ChangeSet, assume: Assume) -> bool {
    assume == Assume::Rows && are_many(set.len(), set.size())
}

/// The changes of a set as a feed for a link.
pub fn feed_of<'s>(set: &'s ChangeSet, link: &Link<'_>, manner: Manner) -> Changes<Reader<'s>> {
    let assume = manner.assume;
    let rows = match assume {
        Assume::Rows | Assume::LargeColumns => Rows::Lean,
        Assume::Nothing | Assume::NotKeys => Rows::Whole,
    };
    Changes::new(set.changes(rows), &link.endpoint().application_name)
        .optimistic(assume == Assume::Rows)
        .one_by_one(assume == Assume::NotKeys)
        .in_binary(is_large(set, assume) && link.takes_binary())
        .truncating(if set.has_truncates() {
            let mut changes = set.changes(Rows::Keys);
            Truncations::of(|take| changes.next(take))
        } else {
            Ok(Truncations::default())
        })
        .newest(set.routes().iter().any(|route| route.version().is_some()))
        .forwarded(set.routes().iter().any(|route| !route.path.is_empty()))
        .in_waves(manner.in_waves)
        .whole(manner.span)
        .before_truncates(manner.before_truncates())
}
