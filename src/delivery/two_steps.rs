//! Several change sets, or drains that are to be committed too: every server first applies in an open
//! transaction; then what failed is queued; only then the commits are sent, those that may fail the local
//! transaction (`sync`, drains) before those that may not.
//!
//! What is `atomic` is prepared instead, before anything is committed anywhere.

use super::assumption::{Assume, Manner, feed_of};
use super::link::{Ending, Link};
use super::remote_transaction::{self, current_id, finish, may_have_committed};
use super::settle::{
    Delivery, Queued, failed, finish_prepare, question_of, release_unless, settle_commit,
    settle_prepare, write_queue,
};
use super::tries::Tries;
use crate::atomic::gid::Gid;
use crate::capture::change_set::ChangeSet;
use crate::conflict::Tally;
use crate::conflict::log;
use crate::connect::account::Account;
use crate::error::Result;
use crate::fault::fault_point;
use crate::options::Mode;
use crate::queue;
use crate::stats;
use crate::transaction::{self, Drained};

/// Applies everywhere, queues what failed, then commits everywhere.
pub fn in_two_steps<'s>(
    deliveries: Vec<Delivery<'s>>,
    drains: Vec<(Link<'s>, Drained)>,
    mut queued: Vec<Queued<'s>>,
) -> Result<()> {
    let (sets, mut links): (Vec<_>, Vec<_>) = deliveries
        .into_iter()
        .map(|Delivery { set, link, .. }| (set, link))
        .unzip();
    let mut tries: Vec<Tries<'_>> = sets
        .iter()
        .map(|set| Tries::assuming(set, Assume::LargeColumns))
        .collect();
    for ((set, link), tries) in sets.iter().zip(&mut links).zip(&tries) {
        apply(set, link, tries.first());
    }
    finish(&mut links)?;
    for ((set, link), tries) in sets.iter().zip(&mut links).zip(&tries) {
        if link.was_stale() {
            *link = Link::connect(link.endpoint())?;
            apply(set, link, tries.first());
        }
    }
    finish(&mut links)?;
    loop {
        let mut goes_on = false;
        for ((set, link), tries) in sets.iter().zip(&mut links).zip(&mut tries) {
            if let Some(manner) = tries.next(link) {
                apply(set, link, manner);
                goes_on = true;
            }
        }
        if !goes_on {
            break;
        }
        finish(&mut links)?;
    }
    let tallies: Vec<Tally> = links.iter_mut().map(Link::take_conflicts).collect();
    let xacts: Vec<Option<i64>> = (sets.iter().zip(&links))
        .map(|(set, link)| question_of(set).and_then(|_| current_id(link)))
        .collect();
    let mut atomic = Vec::new();
    let mut strict = Vec::new();
    let mut lenient = Vec::new();
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

/// Applies a set in a transaction that stays open.
fn apply<'s>(set: &'s ChangeSet, link: &mut Link<'s>, manner: Manner) {
    let begin = remote_transaction::begin(link);
    let feed = feed_of(set, link, manner)
        .between(&begin, &[])
        .after_answer(question_of(set));
    link.run(feed, Ending::Open);
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
        remote_transaction::commit(link);
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
                log::record(&drained.extension, *server, server_name, &drained.conflicts);
                release_unless(interrupted, link);
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

/// Prepares what has been applied, on all servers, before anything is committed on any.
///
/// # Errors
/// The first failure, after all have answered: the abort of the local transaction rolls the others back.
fn prepare_all(deliveries: Vec<Delivery<'_>>) -> Result<()> {
    let mut sets = Vec::new();
    let mut links = Vec::new();
    let mut gids = Vec::new();
    for Delivery {
        set,
        mut link,
        conflicts,
        ..
    } in deliveries
    {
        let gid = Gid::new(set.account.owner)?;
        remote_transaction::prepare(&mut link, &gid);
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
