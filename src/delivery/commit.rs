//! What becomes of the transaction's changes when it commits.
//!
//! 1. Admission: change sets of servers with pending records are queued (`sync`: the transaction fails).
//! 2. Apply and commit. One change set and nothing else: one pipelined exchange that also commits.
//!    Otherwise every server first applies in an open transaction; then what failed is queued; only
//!    then the commits are sent, those that may fail the local transaction (`sync`, drains) before
//!    those that may not.
//! 3. What is `atomic` is prepared instead, before anything is committed anywhere, and committed after
//!    the local transaction, see [`crate::atomic`].
//!
//! No user-defined code runs here. Any error returned fails the local transaction; connections
//! still in flight are closed by unwinding, which rolls back what they had not committed.

use super::at_once::at_once;
use super::handover::{self, QueueingCommit};
use super::link::Link;
use super::settle::{Delivery, Queued, failed, warn_queued, write_queue};
use super::two_steps::in_two_steps;
use super::{lost, remote_transaction};
use crate::atomic::{done, phases};
use crate::capture::change_set::ChangeSet;
use crate::conflict::Tally;
use crate::connect::endpoint::Endpoint;
use crate::connect::{release, session};
use crate::error::{Error, Result, SqlState};
use crate::fault::fault_point;
use crate::options::Mode;
use crate::pg::{context, memory};
use crate::queue;
use crate::queue::admission::{self, Admission};
use crate::queue::failed::Blockers;
use crate::transaction::{self, Drained, OpenDrain, TransactionState};
use std::rc::Rc;
use std::time::Instant;

/// Delivers or queues everything the transaction captured, and commits what it drained.
///
/// # Errors
/// In modes `sync` and `atomic`, what admission and delivery report; in all, what writing the queue reports.
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
    let deadline = handover::deadline();
    for set in sets.iter().filter(|set| !set.is_empty()) {
        let server = &set.account.server_name;
        match gate(set, &blocked, alone.then_some(deadline))? {
            Disposition::Queue(reason) => {
                blocked.push(server.clone());
                queued.push(Queued::new(set, reason, None));
            }
            Disposition::Wait(blockers) => {
                blocked.push(server.clone());
                queued.push(Queued {
                    behind: Some(blockers),
                    ..Queued::new(set, None, None)
                });
            }
            Disposition::Deliver(endpoint) => match Link::open(&endpoint) {
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
        remote_transaction::release(link);
        queued.push(Queued::new(set, None, None));
    }
    fault_point!(BeforeSend if !deliveries.is_empty() || !drains.is_empty());
    match (deliveries.len(), drains.is_empty()) {
        (0, true) => {
            if alone {
                give_way(&queued, deadline)?;
            }
            write_queue(queued)
        }
        // What cannot be told by rows is told by its transaction, which is to be known before it is committed.
        (1, true) if !deliveries.iter().any(|delivery| delivery.set.is_keyless()) => {
            write_queue(queued)?;
            deliveries.into_iter().try_for_each(|delivery| {
                let queued = at_once(delivery)?;
                if alone {
                    give_way(queued.as_slice(), deadline)?;
                }
                write_queue(queued)
            })
        }
        _ => in_two_steps(deliveries, drains, queued),
    }
}

/// A session that queues because it was refused a connection lets sessions that have one go first, see
/// [`handover`].
fn give_way(queued: &[Queued<'_>], deadline: Instant) -> Result<()> {
    let is_refused =
        |one: &&Queued<'_>| (one.reason.as_ref()).is_some_and(Error::is_connection_refusal);
    for Queued { set, .. } in queued.iter().filter(is_refused) {
        QueueingCommit::new(set, false, deadline).give_way()?;
    }
    Ok(())
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

enum Disposition {
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
/// `deadline`: how long it may wait for an empty queue. Only where nothing else is delivered, so that who enters the
/// queue is out of it again at once.
fn gate(set: &ChangeSet, blocked: &[String], deadline: Option<Instant>) -> Result<Disposition> {
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
    if let Some(deadline) = deadline
        && matches!(admitted, Admission::Pending)
        && set.mode == Mode::Async
    {
        let is_connected = session::is_idle(&set.account.key());
        let mut queueing = QueueingCommit::new(set, is_connected, deadline);
        while matches!(admitted, Admission::Pending) && queueing.await_emptied()? {
            admitted = admission::admit(set)?;
        }
        if matches!(admitted, Admission::Free) {
            queueing.leave();
        }
    }
    match (admitted, set.mode) {
        (Admission::Free, Mode::Queue) => return Ok(Disposition::Queue(None)),
        (Admission::Free, _) => {}
        // Both sides differ until the copy ends: what is synchronous is so from then on.
        (Admission::Blocked(blockers), _) if blockers.are_copies() => {
            return Ok(Disposition::Wait(blockers));
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
            return Ok(Disposition::Queue(None));
        }
        (Admission::Blocked(blockers), _) => return Ok(Disposition::Wait(blockers)),
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
        Ok(endpoint) => Ok(Disposition::Deliver(endpoint)),
        Err(error) => not_sent(set, error),
    }
}

/// A change set could not be sent: queued, or in a strict mode the transaction's error.
fn not_sent(set: &ChangeSet, error: Error) -> Result<Disposition> {
    if set.mode.is_strict() {
        return Err(error);
    }
    warn_queued(set, &error);
    Ok(Disposition::Queue(Some(error)))
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
