//! What a delivery came to: committed, prepared, or failed, and then queued or the transaction's error.

use super::event_loop::{self, LoopEnd};
use super::link::Link;
use super::remote_transaction::CURRENT_ID;
use super::{lost, remote_transaction};
use crate::atomic::gid::Gid;
use crate::atomic::phases;
use crate::capture::change_set::ChangeSet;
use crate::conflict::Tally;
use crate::conflict::log;
use crate::connect::account::Account;
use crate::connect::lost_session::LostSession;
use crate::connect::release;
use crate::error::{Error, Result};
use crate::pg::{context, interrupt, memory, report, wal};
use crate::queue::failed::Blockers;
use crate::queue::{self, lanes};
use crate::{loops, stats};

/// A change set on its way.
pub struct Delivery<'s> {
    pub set: &'s ChangeSet,
    pub link: Link<'s>,
    /// See [`Link::take_conflicts`]; known once the changes have been applied.
    pub conflicts: Tally,
    /// The transaction there, where its outcome must be known.
    pub xact: Option<i64>,
}

/// What is asked before a set is applied and committed, where rows may not tell whether it was, or applying it
/// again would not do, if the answer to its commit is lost.
pub fn question_of(set: &ChangeSet) -> Option<&'static str> {
    (set.is_hard_to_repeat() || set.is_keyless()).then_some(CURRENT_ID)
}

/// What to queue, with the reason if delivery was tried, and the session that may still act.
pub struct Queued<'s> {
    pub set: &'s ChangeSet,
    pub reason: Option<Error>,
    pub lost: Option<LostSession>,
    /// Failed records that the set must wait for.
    pub behind: Option<Blockers>,
}

impl<'s> Queued<'s> {
    pub fn new(set: &'s ChangeSet, reason: Option<Error>, lost: Option<LostSession>) -> Self {
        Self {
            set,
            reason,
            lost,
            behind: None,
        }
    }
}

/// A delivery that failed: queued, or in a strict mode the transaction's error.
pub fn failed(set: &ChangeSet, error: Error, lost: Option<LostSession>) -> Result<Queued<'_>> {
    if set.mode.is_strict() {
        return Err(error);
    }
    warn_queued(set, &error);
    Ok(Queued::new(set, Some(error), lost))
}

pub fn warn_queued(set: &ChangeSet, error: &Error) {
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

pub fn write_queue<'s>(queued: impl IntoIterator<Item = Queued<'s>>) -> Result<()> {
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
            let server = (*server, &**server_name);
            let owner = owner.to_u32().to_string();
            lanes::note_refused(&set.extension, server, &owner, &reason)?;
        }
        if let Some(lost) = lost {
            queue::remember_lost(set, &lost)?;
        }
    }
    Ok(())
}

/// What a commit came to. Committed: the session goes back. Rolled back over a request to cancel:
/// the local transaction is cancelled too, unless another server has `committed` its part already.
/// Otherwise see [`failed`].
pub fn settle_commit(
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
            log::record(&set.extension, *server, server_name, &conflicts);
            release_unless(interrupted, link);
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
                memory::answered();
            }
            failed(set, error, Some(lost)).map(Some)
        }
        Err(_) if interrupted && !committed => {
            interrupt::check();
            Err(Error::Canceled)
        }
        Err(error) => {
            release::note_refusal(link.endpoint(), &error, set.mode.is_strict());
            if !interrupted {
                remote_transaction::roll_back(link);
            }
            failed(set, error, None).map(Some)
        }
    }
}

/// What a PREPARE TRANSACTION came to. Prepared: the session is held until the local transaction has ended.
///
/// # Errors
/// Whatever it failed over.
pub fn settle_prepare(delivery: Delivery<'_>, gid: Gid) -> Result<()> {
    let Delivery {
        set,
        mut link,
        conflicts,
        ..
    } = delivery;
    let endpoint = link.endpoint().clone();
    if let Err(error) = link.result() {
        release::note_refusal(&endpoint, &error, true);
        if !matches!(error, Error::Remote(_)) {
            phases::leave(&endpoint, gid, Some(link.lost_session()));
        }
        remote_transaction::roll_back(link);
        return Err(phases::explained(error));
    }
    let Account {
        server,
        server_name,
        ..
    } = &set.account;
    let held_back = link.take_held_back();
    let there = remote_transaction::described(&mut link);
    let Some(session) = link.into_session() else {
        return Err(Error::internal("prepared without a session"));
    };
    let changes = (set.len() as u64).saturating_sub(held_back);
    phases::hold(set, session, (gid, there), changes)?;
    loops::not_sent(*server, server_name, held_back);
    log::record(&set.extension, *server, server_name, &conflicts);
    Ok(())
}

/// Runs links that prepare to their end. Nothing is committed by them, so a request to cancel is raised;
/// what may be prepared all the same is left to be rolled back.
pub fn finish_prepare(links: &mut [Link<'_>], gids: &[Gid]) -> Result<()> {
    if event_loop::send(links) == LoopEnd::Done && !links.iter().all(Link::is_done) {
        wal::flush_ahead();
    }
    if event_loop::run(links) == LoopEnd::Interrupted {
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
pub fn release_unless(interrupted: bool, link: Link<'_>) {
    if !interrupted {
        remote_transaction::release(link);
    }
}
