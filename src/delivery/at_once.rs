//! One change set and nothing else: applied and committed, or prepared, in one pipelined exchange.

use super::assumption::{Assume, Manner, feed_of};
use super::feed::Fixed;
use super::link::{Ending, Link, Unmet};
use super::remote_transaction::{self, BEGIN, COMMIT, current_id, finish};
use super::settle::{Delivery, Queued, finish_prepare, question_of, settle_commit, settle_prepare};
use super::tries::Tries;
use crate::atomic::gid::Gid;
use crate::atomic::phases;
use crate::capture::change_set::ChangeSet;
use crate::error::{Error, Result};
use crate::fault::fault_point;
use crate::options::Mode;
use crate::sql::Statement;
use crate::sql::shared::WHAT_IS_THERE;

/// How a delivery in one exchange ends on its server.
enum Close {
    Commit,
    Prepare(Gid),
}

impl Close {
    /// For a delivery in this mode.
    fn of(set: &ChangeSet) -> Result<Self> {
        match set.mode {
            Mode::Atomic => Ok(Self::Prepare(Gid::new(set.account.owner)?)),
            _ => Ok(Self::Commit),
        }
    }

    /// Runs the changes in a transaction up to its end, after the end of one that has failed; says whether
    /// that was asked to cancel.
    fn run<'s>(&self, set: &'s ChangeSet, link: &mut Link<'s>, manner: Manner) -> Result<bool> {
        let before = remote_transaction::ended(link);
        let feed = feed_of(set, link, manner);
        match self {
            Self::Commit => {
                let feed = feed
                    .between(before, &[])
                    .in_block(&BEGIN, &[COMMIT])
                    .after_answer(question_of(set));
                link.run(feed, Ending::Commits);
                finish(std::slice::from_mut(link))
            }
            Self::Prepare(gid) => {
                let mut last = remote_transaction::describe(link);
                last.push(Statement::plain(remote_transaction::prepared(gid)));
                let feed = feed.between(&[before, &BEGIN].concat(), &[]).ending(last);
                link.run(feed, Ending::Prepares);
                fault_point!(BeforePrepare);
                finish_prepare(std::slice::from_mut(link), std::slice::from_ref(gid))?;
                Ok(false)
            }
        }
    }
}

/// Applies and commits, or prepares, in one exchange; in another one where what it took for granted is not
/// so.
pub fn at_once(mut delivery: Delivery<'_>) -> Result<Option<Queued<'_>>> {
    let Delivery {
        set,
        link,
        conflicts,
        xact,
    } = &mut delivery;
    let mut close = Close::of(set)?;
    let mut tries = Tries::new(set, link);
    let first = tries.first();
    let mut interrupted = if matches!(close, Close::Commit) && wants_to_ask(link) {
        run_asking(set, link, first, &close)?
    } else {
        allow_shared(link);
        close.run(set, link, first)?
    };
    if !interrupted && link.unmet() == Unmet::SharedStatement {
        interrupted = match close {
            Close::Commit => run_asking(set, link, first, &close)?,
            Close::Prepare(_) => close.run(set, link, first)?,
        };
    }
    if !interrupted && link.was_stale() {
        if let Close::Prepare(gid) = std::mem::replace(&mut close, Close::of(set)?) {
            // Its name must not be met by a decision that is not its own.
            phases::leave(link.endpoint(), gid, Some(link.lost_session()));
            phases::settle_left(link.endpoint())?;
        }
        *link = Link::connect(link.endpoint())?;
        tries = Tries::new(set, link);
        interrupted = close.run(set, link, tries.first())?;
    }
    while !interrupted && let Some(manner) = tries.next(link) {
        interrupted = close.run(set, link, manner)?;
    }
    // What it refers to may be prepared there, and is not seen.
    if !interrupted
        && link.result().is_err_and(|error| error.is_about_others())
        && phases::settle_others(set)?
    {
        interrupted = close.run(set, link, Manner::assuming(Assume::Nothing))?;
    }
    if link.result().is_ok()
        && let Some(session) = link.session()
    {
        session.set_accepted(set.upsert_routes());
    }
    *conflicts = link.take_conflicts();
    *xact = question_of(set).and_then(|_| current_id(link));
    match close {
        Close::Commit => settle_commit(delivery, interrupted, false),
        Close::Prepare(gid) => settle_prepare(delivery, gid).map(|()| None),
    }
}

/// What processes of a pool have had may be executed by name in this try. It is tried again if the one that
/// serves it does not have it.
fn allow_shared(link: &mut Link<'_>) {
    if let Some(session) = link.session() {
        session.shared.allow();
    }
}

/// Whether the process that serves the transaction is to be asked what it has.
fn wants_to_ask(link: &mut Link<'_>) -> bool {
    link.session()
        .is_some_and(|session| session.shared.wants_to_ask())
}

/// Applies and commits in two exchanges: in the first the process that serves the transaction is asked what it
/// has, so that what it has not can be prepared there.
fn run_asking<'s>(
    set: &'s ChangeSet,
    link: &mut Link<'s>,
    manner: Manner,
    close: &Close,
) -> Result<bool> {
    let mut begin = remote_transaction::begin(link);
    begin.push(WHAT_IS_THERE);
    link.run(Fixed::new(begin), Ending::Open);
    finish(std::slice::from_mut(link))?;
    match link.result() {
        Ok(()) => {}
        Err(Error::Remote(_)) => {
            if let Some(session) = link.session() {
                session.shared.pause();
            }
            return close.run(set, link, manner);
        }
        Err(_) => return Ok(false),
    }
    let answer: Vec<String> = link.answers().iter().flatten().flatten().cloned().collect();
    let prepare = (link.session())
        .map(|session| session.shared.asked(answer.iter().map(String::as_str)))
        .unwrap_or_default();
    let feed = feed_of(set, link, manner)
        .in_open_block(prepare, COMMIT)
        .after_answer(question_of(set));
    link.run(feed, Ending::Commits);
    finish(std::slice::from_mut(link))
}
