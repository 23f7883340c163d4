//! What becomes of the transaction's changes when it commits.
//!
//! 1. Gate: change sets of servers with pending records are queued (`sync`: the transaction fails).
//! 2. Apply and commit. One change set and nothing else: one pipelined exchange that also commits.
//!    Otherwise every server first applies in an open transaction; then what failed is queued; only
//!    then the commits are sent, those that may fail the local transaction (`sync`, drains) before
//!    those that may not.
//! 3. What is `atomic` is prepared instead, before anything is committed anywhere, and committed after
//!    the local transaction, see [`crate::atomic`].
//!
//! No user-defined code runs here. Any error returned fails the local transaction; connections
//! still in flight are closed by unwinding, which rolls back what they had not committed.

use super::assumption::{
    self, Assume, assumption_failed, feed_of, first_assumption, is_twice_one_row,
};
use super::event_loop::{self, Stop};
use super::feed::{Changes, Fixed};
use super::handover;
use super::link::{Ending, Link, Unmet};
use super::lost;
use super::whole::Span;
use crate::atomic::gid::Gid;
use crate::atomic::{done, phases};
use crate::capture::change_set::ChangeSet;
use crate::capture::log::Reader;
use crate::change::Route;
use crate::conflict::Tally;
use crate::connect::account::Account;
use crate::connect::endpoint::Endpoint;
use crate::connect::lost_session::LostSession;
use crate::connect::release;
use crate::connect::session;
use crate::error::{Error, Result, SqlState};
use crate::fault::fault_point;
use crate::options::Mode;
use crate::pg::{context, interrupt, lock, memory, report, wal};
use crate::queue::admission::{self, Admission};
use crate::queue::failed::Blockers;
use crate::queue::{self, lanes};
use crate::sql::shared::WHAT_IS_THERE;
use crate::transaction::{self, Drained, OpenDrain, TransactionState};
use crate::{conflicts, loops, stats};
use std::rc::Rc;

/// Begins a remote transaction. Constraints that can wait do: what was true at the local commit need
/// not be true after each batch.
pub const BEGIN: [&str; 2] = [
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
    "SET CONSTRAINTS ALL DEFERRED",
];

/// A change set on its way, or why it is not.
struct Delivery<'s> {
    set: &'s ChangeSet,
    link: Link<'s>,
    /// See [`Link::take_conflicts`]; known once the changes have been applied.
    conflicts: Tally,
    /// The transaction there, where its outcome must be known.
    xact: Option<i64>,
}

/// What to queue, with the reason if delivery was tried, and the session that may still act.
struct Queued<'s> {
    set: &'s ChangeSet,
    reason: Option<Error>,
    lost: Option<LostSession>,
    /// Failed records that the set must wait for.
    behind: Option<Blockers>,
}

impl<'s> Queued<'s> {
    fn new(set: &'s ChangeSet, reason: Option<Error>, lost: Option<LostSession>) -> Self {
        Self {
            set,
            reason,
            lost,
            behind: None,
        }
    }
}

/// Delivers or queues everything the transaction captured, and commits what it drained.
///
/// # Errors
/// What fails the local transaction: see the module's head.
pub fn pre_commit() -> Result<()> {
    memory::take_reserves()?;
    let TransactionState {
        mut sets, drains, ..
    } = transaction::take_all();
    sets.iter_mut()
        .try_for_each(ChangeSet::follow_alterations)?;
    let mut sets = strictest_per_server(sets);
    let has_work = !sets.is_empty() || !drains.is_empty();
    if has_work {
        fail_early(&mut sets)?;
    }
    if let Some(set) = sets.iter().find(|set| !set.is_empty()) {
        done::remove(&set.extension)?;
    }
    deliver(&sets, drains)?;
    sets.into_iter().for_each(ChangeSet::close);
    fault_point!(BeforeCommit if has_work);
    Ok(())
}

/// Does now what PostgreSQL does after this callback and what may fail: once another server has committed, that
/// would undo the changes here only.
fn fail_early(sets: &mut [ChangeSet]) -> Result<()> {
    if context::uses_temporary_tables() {
        // They may be emptied or dropped now.
        sets.iter_mut()
            .filter(|set| set.has_unread())
            .try_for_each(ChangeSet::read_unread)?;
        context::run_on_commit_actions();
    }
    context::check_serializable();
    Ok(())
}

fn deliver(sets: &[ChangeSet], drains: Vec<OpenDrain>) -> Result<()> {
    let mut blocked: Vec<String> = drains.iter().map(|d| d.server_name.clone()).collect();
    let drains = drains
        .into_iter()
        .map(drain_link)
        .collect::<Result<Vec<_>>>()?;
    let mut deliveries = Vec::new();
    let mut queued = Vec::new();
    let alone = drains.is_empty() && sets.iter().filter(|set| !set.is_empty()).count() == 1;
    for set in sets.iter().filter(|set| !set.is_empty()) {
        let server = &set.account.server_name;
        match gate(set, &blocked, alone)? {
            Gate::Queue(reason) => {
                blocked.push(server.clone());
                queued.push(Queued::new(set, reason, None));
            }
            Gate::Wait(blockers) => {
                blocked.push(server.clone());
                queued.push(Queued {
                    behind: Some(blockers),
                    ..Queued::new(set, None, None)
                });
            }
            Gate::Deliver(endpoint) => match Link::open(&endpoint) {
                Ok(link) => {
                    let conflicts = Tally::default();
                    deliveries.push(Delivery {
                        set,
                        link,
                        conflicts,
                        xact: None,
                    });
                }
                Err(error) => {
                    blocked.push(server.clone());
                    queued.push(failed(set, error, None)?);
                }
            },
        }
    }
    // Nor may what another owner's tables send to the same server pass what is queued after all.
    for Delivery { set, link, .. } in
        deliveries.extract_if(.., |d| blocked.contains(&d.set.account.server_name))
    {
        release(link, false);
        queued.push(Queued::new(set, None, None));
    }
    fault_point!(BeforeSend if !deliveries.is_empty() || !drains.is_empty());
    match (deliveries.len(), drains.is_empty()) {
        (0, true) => write_queue(queued),
        // What cannot be told by rows is told by its transaction, which is to be known before it is committed.
        (1, true) if !deliveries.iter().any(|delivery| delivery.set.is_keyless()) => {
            write_queue(queued)?;
            deliveries
                .into_iter()
                .try_for_each(|delivery| write_queue(at_once(delivery)?))
        }
        _ => in_two_steps(deliveries, drains, queued),
    }
}

/// Tables of several owners may send to one server, each owner's changes over a connection of its
/// own; the mode is the server's all the same.
fn strictest_per_server(mut sets: Vec<ChangeSet>) -> Vec<ChangeSet> {
    let modes: Vec<Mode> = sets
        .iter()
        .map(|set| {
            let same = |other: &&ChangeSet| other.account.server == set.account.server;
            sets.iter()
                .filter(same)
                .map(|other| other.mode)
                .max()
                .unwrap_or(set.mode)
        })
        .collect();
    sets.iter_mut()
        .zip(modes)
        .for_each(|(set, mode)| set.mode = mode);
    sets
}

/// Two-phase commit cannot carry a delivery: `queue` and `async` changes are queued with the
/// prepared transaction.
///
/// # Errors
/// 0A000 for `sync` changes and for drained records.
pub fn pre_prepare() -> Result<()> {
    memory::take_reserves()?;
    let TransactionState {
        mut sets,
        has_drained,
        ..
    } = transaction::take_all();
    let refuse = |what: &str| {
        Err(Error::local(
            SqlState::FEATURE_NOT_SUPPORTED,
            format!("cannot PREPARE a transaction that {what}"),
        ))
    };
    if has_drained {
        return refuse("has called deal_sync_err_rec");
    }
    if let Some(set) = sets
        .iter()
        .find(|set| !set.is_empty() && set.mode.is_strict())
    {
        let mode = set.mode.name();
        return refuse(&format!(
            "has changed a table synchronised in mode \"{mode}\""
        ));
    }
    sets.iter_mut()
        .try_for_each(ChangeSet::follow_alterations)?;
    for set in sets.iter().filter(|set| !set.is_empty()) {
        let behind = match admission::admit(set)? {
            Admission::Blocked(blockers) => Some(blockers),
            Admission::Free | Admission::Pending | Admission::Paused | Admission::Undecided(_) => {
                None
            }
        };
        queue::enqueue(set, None, behind)?;
    }
    sets.into_iter().for_each(ChangeSet::close);
    Ok(())
}

enum Gate {
    Queue(Option<Error>),
    /// Behind failed records.
    Wait(Blockers),
    Deliver(Rc<Endpoint>),
}

/// Whether a change set may be sent. With records pending it would overtake them; seen under a
/// fresh snapshot that is enough without a lock, since a change that depends on a queued one could
/// only be made after that one's transaction had committed its record. For the same reason it passes
/// failed records if it touches none of their rows.
/// `blocked` names servers whose older changes this very transaction drains or queues.
/// `alone`: nothing else is delivered, so that who enters the queue is out of it again at once.
fn gate(set: &ChangeSet, blocked: &[String], alone: bool) -> Result<Gate> {
    let server = &set.account.server_name;
    let mut admitted = match blocked.contains(server) {
        true => Admission::Pending,
        // Who queues in any case need only know whether to wait.
        false if set.mode == Mode::Queue && !admission::has_failed(&set.extension, server)? => {
            Admission::Pending
        }
        false => admission::admit(set)?,
    };
    if let Admission::Undecided(decisions) = &admitted
        && set.mode != Mode::Queue
    {
        if let Err(error) = phases::settle(set, decisions) {
            return not_sent(set, error);
        }
        admitted = admission::admit(set)?;
    }
    if matches!(admitted, Admission::Pending)
        && set.mode == Mode::Async
        && alone
        && handover::enter(set.account.server)?
    {
        admitted = admission::admit(set)?;
        if matches!(admitted, Admission::Free) {
            lock::leave(set.account.server);
        }
    }
    match (admitted, set.mode) {
        (Admission::Free, Mode::Queue) => return Ok(Gate::Queue(None)),
        (Admission::Free, _) => {}
        // Both sides differ until the copy ends: what is synchronous is so from then on.
        (Admission::Blocked(blockers), _) if blockers.are_copies() => {
            return Ok(Gate::Wait(blockers));
        }
        (Admission::Paused, mode) if mode.is_strict() => {
            return Err(Error::Paused {
                server: server.clone(),
            });
        }
        (_, mode) if mode.is_strict() => {
            return Err(Error::Pending {
                server: server.clone(),
            });
        }
        (Admission::Pending | Admission::Paused | Admission::Undecided(_), _) => {
            return Ok(Gate::Queue(None));
        }
        (Admission::Blocked(blockers), _) => return Ok(Gate::Wait(blockers)),
    }
    let endpoint = Endpoint::resolve(&set.extension, &set.account);
    let ready = |endpoint: Rc<Endpoint>| {
        // Who must not queue asks whatever was answered a moment ago.
        if !set.mode.is_strict() {
            release::check(&endpoint)?;
        }
        lost::settle(&endpoint)?;
        phases::settle_left(&endpoint)?;
        Ok(endpoint)
    };
    match endpoint.and_then(ready) {
        Ok(endpoint) => Ok(Gate::Deliver(endpoint)),
        Err(error) => not_sent(set, error),
    }
}

/// A change set could not be sent: queued, or in a strict mode the transaction's error.
fn not_sent(set: &ChangeSet, error: Error) -> Result<Gate> {
    if set.mode.is_strict() {
        return Err(error);
    }
    warn_queued(set, &error);
    Ok(Gate::Queue(Some(error)))
}

/// A delivery that failed: queued, or in a strict mode the transaction's error.
fn failed(set: &ChangeSet, error: Error, lost: Option<LostSession>) -> Result<Queued<'_>> {
    if set.mode.is_strict() {
        return Err(error);
    }
    warn_queued(set, &error);
    Ok(Queued::new(set, Some(error), lost))
}

fn warn_queued(set: &ChangeSet, error: &Error) {
    report::warn(
        &format!(
            "{} changes for server \"{}\" were queued",
            set.len(),
            set.account.server_name
        ),
        error,
        Some("deal_sync_err_rec() replays them once the cause is gone; see sync_err_rec."),
    );
}

fn write_queue<'s>(queued: impl IntoIterator<Item = Queued<'s>>) -> Result<()> {
    let mut queued: Vec<_> = queued.into_iter().collect();
    // In the order in which the transaction began them, which is that of the slice they are in: what
    // refers to another owner's rows comes after these.
    queued.sort_by_key(|queued| std::ptr::from_ref(queued.set));
    for Queued {
        set,
        reason,
        lost,
        behind,
    } in queued
    {
        queue::enqueue(set, reason.as_ref(), behind)?;
        if let Some(reason) = reason.filter(Error::is_about_owner) {
            let Account {
                server,
                server_name,
                owner,
                ..
            } = &set.account;
            let _writable = context::Writable::new();
            let (server, owner) = ((*server, &**server_name), owner.to_u32().to_string());
            lanes::note_refused(&set.extension, server, &owner, &reason)?;
        }
        if let Some(lost) = lost {
            queue::remember_lost(set, &lost)?;
        }
    }
    Ok(())
}

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
    fn run<'s>(&self, feed: Changes<Reader<'s>>, link: &mut Link<'s>) -> Result<bool> {
        // A COMMIT that failed has rolled back already; a second ROLLBACK only warns.
        let is_open = link.is_up() && !link.is_idle();
        let before: &[&str] = if is_open { &["ROLLBACK"] } else { &[] };
        match self {
            Self::Commit => {
                let feed = feed.between(before, &[]).in_block(&BEGIN, &["COMMIT"]);
                link.run(feed, Ending::Commits);
                finish(std::slice::from_mut(link))
            }
            Self::Prepare(gid) => {
                let prepare = phases::prepare(gid);
                let feed = feed.between(&[before, &BEGIN].concat(), &[prepare.as_str()]);
                link.run(feed, Ending::Prepares);
                fault_point!(BeforePrepare);
                finish_prepare(std::slice::from_mut(link), std::slice::from_ref(gid))?;
                Ok(false)
            }
        }
    }
}

/// Applies and commits, or prepares, in one exchange, or in a second one if the first was too trusting or
/// what it relied on is out of date.
fn at_once(mut delivery: Delivery<'_>) -> Result<Option<Queued<'_>>> {
    let Delivery {
        set,
        link,
        conflicts,
        ..
    } = &mut delivery;
    let mut close = Close::of(set)?;
    let mut assumption = first_assumption(set, link);
    let mut interrupted = if matches!(close, Close::Commit) && wants_to_ask(link) {
        run_asking(set, link, assumption, &close)?
    } else {
        allow_shared(link);
        close.run(feed_of(set, link, assumption), link)?
    };
    if !interrupted && link.unmet() == Unmet::SharedStatement {
        interrupted = match close {
            Close::Commit => run_asking(set, link, assumption, &close)?,
            Close::Prepare(_) => close.run(feed_of(set, link, assumption), link)?,
        };
    }
    if !interrupted && link.was_idle() && matches!(link.result(), Err(Error::Lost { .. })) {
        // The server had ended the idle session: a new one is as good.
        if let Close::Prepare(gid) = std::mem::replace(&mut close, Close::of(set)?) {
            // Its name must not be met by a decision that is not its own.
            phases::leave(link.endpoint(), gid, Some(link.lost_session()));
            phases::settle_left(link.endpoint())?;
        }
        *link = Link::connect(link.endpoint())?;
        assumption = first_assumption(set, link);
        interrupted = close.run(feed_of(set, link, assumption), link)?;
    }
    if !interrupted && matches!(link.unmet(), Unmet::Clock | Unmet::ImplicitBegin) {
        interrupted = close.run(feed_of(set, link, assumption), link)?;
    }
    // Both are asked: each forgets what it finds to be wrong.
    let again = assumption_failed(set, link, assumption) | link.was_outdated();
    // What is tried as a whole takes nothing for granted either.
    let as_whole = may_hold_as_whole(set, link) && !link.result().is_err_and(is_taken);
    if !interrupted && again && !as_whole {
        interrupted = close.run(feed_of(set, link, Assume::Nothing), link)?;
    }
    let at_once = refused_at_once(set, link);
    if !interrupted && !at_once.is_empty() {
        let feed = feed_of(set, link, Assume::Nothing).in_waves(true);
        interrupted = close.run(feed, link)?;
        keep_in_waves(link, &at_once);
    }
    if !interrupted && is_twice_one_row(link) {
        interrupted = close.run(feed_of(set, link, Assume::NotKeys), link)?;
    }
    for span in [Span::Command, Span::All] {
        if !interrupted && may_hold_as_whole(set, link) {
            let feed = feed_of(set, link, Assume::Nothing).whole(Some(span));
            interrupted = close.run(feed, link)?;
        }
    }
    // What it refers to may be prepared there, and is not seen.
    if !interrupted
        && link.result().is_err_and(|error| error.is_about_others())
        && phases::settle_others(set)?
    {
        interrupted = close.run(feed_of(set, link, Assume::Nothing), link)?;
    }
    if link.result().is_ok()
        && let Some(session) = link.session()
    {
        session.set_accepted(set.upsert_routes());
    }
    *conflicts = link.take_conflicts();
    match close {
        Close::Commit => settle_commit(delivery, interrupted, false),
        Close::Prepare(gid) => settle_prepare(delivery, gid).map(|()| None),
    }
}

/// What processes of a pool have had may be executed by name: who allows it tries again if one has not got it.
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
    assumption: Assume,
    close: &Close,
) -> Result<bool> {
    let open: &[&str] = if link.is_up() && !link.is_idle() {
        &["ROLLBACK"]
    } else {
        &[]
    };
    let begin = [open, &BEGIN, &[WHAT_IS_THERE]].concat();
    link.run(Fixed::new(begin), Ending::Open);
    finish(std::slice::from_mut(link))?;
    match link.result() {
        Ok(()) => {}
        Err(Error::Remote(_)) => {
            if let Some(session) = link.session() {
                session.shared.pause();
            }
            return close.run(feed_of(set, link, assumption), link);
        }
        Err(_) => return Ok(false),
    }
    let answer: Vec<String> = link.answers().iter().flatten().flatten().cloned().collect();
    let prepare = (link.session())
        .map(|session| session.shared.asked(answer.iter().map(String::as_str)))
        .unwrap_or_default();
    let feed = feed_of(set, link, assumption).in_open_block(prepare, "COMMIT");
    link.run(feed, Ending::Commits);
    finish(std::slice::from_mut(link))
}

/// See [`assumption::moved_at_once`].
fn refused_at_once(set: &ChangeSet, link: &mut Link<'_>) -> Vec<Rc<Route>> {
    match link.result() {
        Err(error @ Error::Remote(_)) => assumption::moved_at_once(set.routes(), link, &error),
        _ => Vec::new(),
    }
}

/// Rows of these have been moved in waves, see [`assumption::keep_in_waves`].
fn keep_in_waves(link: &mut Link<'_>, routes: &[Rc<Route>]) {
    if link.result().is_ok()
        && let Some(session) = link.session()
    {
        assumption::keep_in_waves(session, routes);
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

/// What a commit came to. Committed: the session goes back. Rolled back over a request to cancel:
/// the local transaction is cancelled too, unless another server has `committed` its part already.
/// Otherwise see [`failed`].
fn settle_commit(
    delivery: Delivery<'_>,
    interrupted: bool,
    committed: bool,
) -> Result<Option<Queued<'_>>> {
    let Delivery {
        set,
        mut link,
        conflicts,
        xact,
    } = delivery;
    match link.result() {
        Ok(()) => {
            let Account {
                server,
                server_name,
                ..
            } = &set.account;
            let held_back = link.take_held_back();
            loops::not_sent(*server, server_name, held_back);
            stats::delivered(*server, (set.len() as u64).saturating_sub(held_back));
            conflicts::record(&set.extension, *server, server_name, &conflicts);
            release(link, interrupted);
            Ok(None)
        }
        Err(error @ Error::InDoubt { .. }) => {
            let lost = LostSession {
                xact,
                ..link.lost_session()
            };
            if set.mode.is_strict() {
                lost::end_or_remember(link.endpoint(), &lost);
            } else {
                // The records will bring about what the server may have done already.
                interrupt::committed();
            }
            failed(set, error, Some(lost)).map(Some)
        }
        Err(_) if interrupted && !committed => {
            interrupt::check();
            Err(Error::Canceled)
        }
        Err(error) => {
            release::note_refusal(link.endpoint(), &error);
            if !interrupted {
                roll_back(link);
            }
            failed(set, error, None).map(Some)
        }
    }
}

/// What a PREPARE TRANSACTION came to. Prepared: the session is held until the local transaction has ended.
///
/// # Errors
/// Whatever it failed over.
fn settle_prepare(delivery: Delivery<'_>, gid: Gid) -> Result<()> {
    let Delivery {
        set,
        mut link,
        conflicts,
        ..
    } = delivery;
    let endpoint = link.endpoint().clone();
    if let Err(error) = link.result() {
        release::note_refusal(&endpoint, &error);
        if !matches!(error, Error::Remote(_)) {
            phases::leave(&endpoint, gid, Some(link.lost_session()));
        }
        roll_back(link);
        return Err(phases::explained(error));
    }
    let Account {
        server,
        server_name,
        ..
    } = &set.account;
    let held_back = link.take_held_back();
    let Some(session) = link.into_session() else {
        return Err(Error::internal("prepared without a session"));
    };
    let changes = (set.len() as u64).saturating_sub(held_back);
    phases::hold(set, session, gid, changes)?;
    loops::not_sent(*server, server_name, held_back);
    conflicts::record(&set.extension, *server, server_name, &conflicts);
    Ok(())
}

/// Prepares what has been applied, on all servers, before anything is committed on any.
///
/// # Errors
/// The first failure, after all have answered: the abort of the local transaction rolls the others back.
fn prepare_all(deliveries: Vec<Delivery<'_>>) -> Result<()> {
    let (mut sets, mut links, mut gids) = (Vec::new(), Vec::new(), Vec::new());
    for Delivery {
        set,
        mut link,
        conflicts,
        ..
    } in deliveries
    {
        let gid = Gid::new(set.account.owner)?;
        link.run(Fixed::new([phases::prepare(&gid)]), Ending::Prepares);
        sets.push((set, conflicts));
        links.push(link);
        gids.push(gid);
    }
    if links.is_empty() {
        return Ok(());
    }
    fault_point!(BeforePrepare);
    finish_prepare(&mut links, &gids)?;
    let mut all = Ok(());
    for (((set, conflicts), link), gid) in sets.into_iter().zip(links).zip(gids) {
        let settled = settle_prepare(
            Delivery {
                set,
                link,
                conflicts,
                xact: None,
            },
            gid,
        );
        all = all.and(settled);
    }
    all
}

/// Drives links that prepare to their end. Nothing is committed by them, so a request to cancel is raised;
/// what may be prepared all the same is left to be rolled back.
fn finish_prepare(links: &mut [Link<'_>], gids: &[Gid]) -> Result<()> {
    if event_loop::send(links) == Stop::Done && !links.iter().all(Link::is_done) {
        wal::flush_ahead();
    }
    if event_loop::run(links) == Stop::Interrupted {
        for (link, gid) in links.iter_mut().zip(gids) {
            if !link.is_done() {
                link.in_doubt("A request to cancel came first");
                phases::leave(link.endpoint(), gid.clone(), Some(link.lost_session()));
            } else if link.result().is_ok() {
                phases::leave(link.endpoint(), gid.clone(), None);
            }
        }
        interrupt::check();
        return Err(Error::Canceled);
    }
    Ok(())
}

/// Puts the session back, unless a cancel request may still be on its way to it.
fn release(link: Link<'_>, interrupted: bool) {
    if !interrupted {
        link.into_session().into_iter().for_each(session::put_back);
    }
}

/// Keeps the session of a transaction that failed, if it can be rolled back; else its connection is
/// closed, which does the same.
pub fn roll_back(mut link: Link<'_>) {
    if link.is_up() && !link.is_idle() {
        link.run(Fixed::new(["ROLLBACK"]), Ending::Open);
        if event_loop::run(std::slice::from_mut(&mut link)) == Stop::Interrupted {
            return;
        }
    }
    release(link, false);
}

/// Drives links to their end, and says whether they were asked to cancel. A request to cancel is
/// raised if nothing can have been committed; else the servers are asked to cancel and their answers
/// followed. Once a server has committed, no request counts any more, see [`interrupt::committed`].
fn finish(links: &mut [Link<'_>]) -> Result<bool> {
    if event_loop::send(links) == Stop::Done && !links.iter().all(Link::is_done) {
        // The servers have their work: time for some of ours.
        wal::flush_ahead();
    }
    let interrupted = event_loop::run(links) == Stop::Interrupted;
    if interrupted {
        if !links.iter().any(Link::commit_sent) {
            interrupt::check();
            return Err(Error::Canceled);
        }
        event_loop::cancel(links);
    }
    if links
        .iter()
        .any(|link| link.commit_sent() && link.result().is_ok())
    {
        interrupt::committed();
        fault_point!(Answered);
    } else if !links.iter().any(may_have_committed) {
        interrupt::nothing_committed();
    }
    Ok(interrupted)
}

/// Whether what a link has run took effect, for all that is known.
fn may_have_committed(link: &Link<'_>) -> bool {
    link.commit_sent() && matches!(link.result(), Ok(()) | Err(Error::InDoubt { .. }))
}

/// The link of an open drain.
fn drain_link(drain: OpenDrain) -> Result<(Link<'static>, Drained)> {
    match drain.session {
        Some(session) => Ok((Link::over(session), drain.drained)),
        None => Err(Error::local(
            SqlState::TRANSACTION_ROLLBACK,
            format!(
                "drain of server \"{}\" was lost or partly rolled back with a savepoint",
                drain.server_name
            ),
        )
        .with_hint("Roll back the whole transaction and drain again.")),
    }
}

/// Applies everywhere, queues what failed, then commits everywhere.
fn in_two_steps<'s>(
    deliveries: Vec<Delivery<'s>>,
    drains: Vec<(Link<'s>, Drained)>,
    mut queued: Vec<Queued<'s>>,
) -> Result<()> {
    let (sets, mut links): (Vec<_>, Vec<_>) = deliveries
        .into_iter()
        .map(|Delivery { set, link, .. }| (set, link))
        .unzip();
    for (set, link) in sets.iter().zip(&mut links) {
        link.run(
            feed_of(set, link, Assume::LargeColumns).between(&BEGIN, &[]),
            Ending::Open,
        );
    }
    finish(&mut links)?;
    for (set, link) in sets.iter().zip(&mut links) {
        // The server had ended the idle session: a new one is as good.
        let stale = link.was_idle() && matches!(link.result(), Err(Error::Lost { .. }));
        if stale {
            *link = Link::connect(link.endpoint())?;
        }
        if stale || link.unmet() == Unmet::Clock {
            let open: &[&str] = if stale || link.is_idle() {
                &[]
            } else {
                &["ROLLBACK"]
            };
            let begin = [open, &BEGIN].concat();
            link.run(
                feed_of(set, link, Assume::LargeColumns).between(&begin, &[]),
                Ending::Open,
            );
        }
    }
    finish(&mut links)?;
    for (set, link) in sets.iter().zip(&mut links) {
        if assumption_failed(set, link, Assume::LargeColumns) {
            let again = ["ROLLBACK", BEGIN[0], BEGIN[1]];
            link.run(
                feed_of(set, link, Assume::Nothing).between(&again, &[]),
                Ending::Open,
            );
        }
    }
    finish(&mut links)?;
    let refused: Vec<Vec<Rc<Route>>> = sets
        .iter()
        .zip(&mut links)
        .map(|(set, link)| {
            let routes = refused_at_once(set, link);
            if !routes.is_empty() {
                let again = ["ROLLBACK", BEGIN[0], BEGIN[1]];
                let feed = feed_of(set, link, Assume::Nothing).in_waves(true);
                link.run(feed.between(&again, &[]), Ending::Open);
            }
            routes
        })
        .collect();
    finish(&mut links)?;
    links
        .iter_mut()
        .zip(refused)
        .for_each(|(link, routes)| keep_in_waves(link, &routes));
    for (set, link) in sets.iter().zip(&mut links) {
        if is_twice_one_row(link) {
            let again = ["ROLLBACK", BEGIN[0], BEGIN[1]];
            link.run(
                feed_of(set, link, Assume::NotKeys).between(&again, &[]),
                Ending::Open,
            );
        }
    }
    finish(&mut links)?;
    for span in [Span::Command, Span::All] {
        for (set, link) in sets.iter().zip(&mut links) {
            if may_hold_as_whole(set, link) {
                let again = ["ROLLBACK", BEGIN[0], BEGIN[1]];
                let feed = feed_of(set, link, Assume::Nothing).whole(Some(span));
                link.run(feed.between(&again, &[]), Ending::Open);
            }
        }
        finish(&mut links)?;
    }
    let tallies: Vec<Tally> = links.iter_mut().map(Link::take_conflicts).collect();
    let xacts = transactions_of(&sets, &mut links)?;
    let (mut atomic, mut strict, mut lenient) = (Vec::new(), Vec::new(), Vec::new());
    let mut failing: Vec<_> = queued.iter().map(|q| q.set.account.server).collect();
    let failed_now = sets
        .iter()
        .zip(&links)
        .filter(|(_, link)| link.result().is_err());
    failing.extend(failed_now.map(|(set, _)| set.account.server));
    for ((set, link), (conflicts, xact)) in sets
        .into_iter()
        .zip(links)
        .zip(tallies.into_iter().zip(xacts))
    {
        match link.result() {
            // The failed transaction goes with its connection: the next use makes a new one.
            Err(error) => queued.push(failed(set, error, None)?),
            // What another owner's tables send to the same server must not pass what was queued.
            Ok(()) if failing.contains(&set.account.server) => {
                queued.push(Queued::new(set, None, None));
            }
            Ok(()) => {
                let to = match set.mode {
                    Mode::Atomic => &mut atomic,
                    Mode::Sync => &mut strict,
                    Mode::Async | Mode::Queue => &mut lenient,
                };
                to.push(Delivery {
                    set,
                    link,
                    conflicts,
                    xact,
                });
            }
        }
    }
    write_queue(queued)?;
    prepare_all(atomic)?;
    // What cannot be committed everywhere is queued then, when it must not fail any more.
    lenient
        .iter()
        .try_for_each(|delivery| queue::reserve(&delivery.set.extension))?;
    let committed = !strict.is_empty() || !drains.is_empty();
    commit_all(strict, drains, false)?;
    commit_all(lenient, Vec::new(), committed)
}

/// Asks for the transactions whose outcome rows would not tell, of the links that are well.
fn transactions_of(sets: &[&ChangeSet], links: &mut [Link<'_>]) -> Result<Vec<Option<i64>>> {
    let asked = |set: &ChangeSet, link: &Link<'_>| set.is_keyless() && link.result().is_ok();
    let asked: Vec<bool> = sets
        .iter()
        .zip(&*links)
        .map(|(set, link)| asked(set, link))
        .collect();
    for (link, _) in links.iter_mut().zip(&asked).filter(|(_, asked)| **asked) {
        link.run(Fixed::new([lost::CURRENT_TRANSACTION]), Ending::Open);
    }
    if asked.contains(&true) {
        finish(links)?;
    }
    let told = |(link, asked): (&Link<'_>, bool)| {
        if asked {
            lost::transaction_of(link)
        } else {
            None
        }
    };
    Ok(links.iter().zip(asked).map(told).collect())
}

/// Sends COMMIT to all and settles each. A drain that cannot be committed fails the local
/// transaction, so that its records stay. `committed`: servers have committed before, and a request
/// to cancel comes too late.
fn commit_all(
    deliveries: Vec<Delivery<'_>>,
    drains: Vec<(Link<'_>, Drained)>,
    committed: bool,
) -> Result<()> {
    let (drains, drained): (Vec<_>, Vec<_>) = drains.into_iter().unzip();
    let (sets, links): (Vec<_>, Vec<_>) = (deliveries.into_iter())
        .map(
            |Delivery {
                 set,
                 link,
                 conflicts,
                 xact,
             }| ((set, conflicts, xact), link),
        )
        .unzip();
    if !drains.is_empty() {
        transaction::commits_drains();
    }
    let mut links: Vec<Link<'_>> = links.into_iter().chain(drains).collect();
    for link in &mut links {
        link.run(Fixed::new(["COMMIT"]), Ending::Commits);
    }
    let interrupted = finish(&mut links)?;
    let committed = committed || links.iter().any(may_have_committed);
    let drains = links.split_off(sets.len());
    let mut failure = Ok(());
    for (link, drained) in drains.into_iter().zip(drained) {
        // In doubt, the rows it wrote stay locked on the server until it has ended either way, so
        // nothing newer can be applied to them before; no need to remember the backend.
        match link.result() {
            Ok(()) => {
                let Account {
                    server,
                    server_name,
                    ..
                } = &link.endpoint().account;
                stats::delivered(*server, drained.changes);
                conflicts::record(&drained.extension, *server, server_name, &drained.conflicts);
                release(link, interrupted);
            }
            Err(error) => failure = failure.and(Err(error)),
        }
    }
    failure?;
    for ((set, conflicts, xact), link) in sets.into_iter().zip(links) {
        let delivery = Delivery {
            set,
            link,
            conflicts,
            xact,
        };
        write_queue(settle_commit(delivery, interrupted, committed)?)?;
    }
    Ok(())
}
