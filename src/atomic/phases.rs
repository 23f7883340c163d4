//! What a session does about the transactions that it prepares on servers: the second phase after the
//! local commit, and the way back after an abort.
//!
//! Both run in callbacks in which an ERROR would take the server down: nothing there raises, requests to
//! cancel and to end stop the waiting, and what is not finished is left to the [`resolver`].

use super::decision::{self, TransactionDecision, Verdict};
use super::gid::Gid;
use super::{done, readiness, resolver};
use crate::capture::change_set::ChangeSet;
use crate::connect::account::AccountKey;
use crate::connect::endpoint::Endpoint;
use crate::connect::lost_session::LostSession;
use crate::connect::session::Session;
use crate::delivery::link::Link;
use crate::delivery::remote_transaction::PreparedTransaction;
use crate::delivery::{event_loop, lost, remote_transaction};
use crate::error::{Error, Result, SqlState};
use crate::fault::fault_point;
use crate::local::{ProcessLocal, process_local};
use crate::pg::report::caught;
use crate::pg::{Oid, bgworker, interrupt, lookup, report};
use crate::queue::admission;
use crate::{stats, worker};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How often a session that leaves decisions behind as a matter of course wakes the worker, which removes
/// them.
const WAKE_EVERY: Duration = Duration::from_secs(1);

/// A transaction that is prepared on a server, until the local one has ended.
struct Held {
    gid: Gid,
    session: Session,
    server: Oid,
    changes: u64,
}

/// What may be prepared on a server though its local transaction has failed.
struct Leftover {
    endpoint: Rc<Endpoint>,
    gid: Gid,
    /// The session that may still prepare it.
    lost: Option<LostSession>,
}

thread_local! {
    /// Something was prepared that its session has not finished.
    static UNFINISHED: Cell<bool> = const { Cell::new(false) };
    static WOKEN: Cell<Option<Instant>> = const { Cell::new(None) };
}

process_local! {
    static HELD: RefCell<Vec<Held>> = const { RefCell::new(Vec::new()) };
    static LEFT: RefCell<HashMap<AccountKey, Vec<Leftover>>> = RefCell::default();
}

/// Keeps a transaction that a server has prepared until the local one has ended, and decides that it is to
/// be committed if that one is. `there`: what the server will know it by.
///
/// # Errors
/// As for [`decision::write`]; what reading the change set reports.
pub fn hold(
    set: &ChangeSet,
    session: Session,
    (gid, there): (Gid, Option<PreparedTransaction>),
    changes: u64,
) -> Result<()> {
    fault_point!(Prepared);
    let endpoint = session.endpoint.clone();
    let server = set.account.server;
    stats::prepared(server);
    let held = Held {
        gid: gid.clone(),
        session,
        server,
        changes,
    };
    // Before anything that may fail: from here on the abort sees to it.
    HELD.with_borrow_mut(|all| all.push(held));
    worker::wake_at_end();
    let account = &set.account;
    let owner = account.owner;
    let place = endpoint.place();
    let writes = admission::writes_of(set)?;
    decision::write(
        &set.extension,
        (&account.server_name, owner, &place),
        (&gid, there.as_ref()),
        writes.as_deref(),
    )
}

/// A transaction may have been prepared, and its outcome is not known. It is rolled back when the session
/// uses the account next, unless the resolver comes first.
pub fn leave(endpoint: &Rc<Endpoint>, gid: Gid, lost: Option<LostSession>) {
    worker::wake_at_end();
    UNFINISHED.set(true);
    let left = Leftover {
        endpoint: endpoint.clone(),
        gid,
        lost,
    };
    LEFT.with_borrow_mut(|all| all.entry(endpoint.account.key()).or_default().push(left));
}

/// Sees to it that nothing is prepared any more that this session has left behind.
///
/// # Errors
/// What the link reports; a transient error when a session will not go.
pub fn settle_left(endpoint: &Rc<Endpoint>) -> Result<()> {
    let key = endpoint.account.key();
    let Some(left) = LEFT.with_borrow_mut(|all| all.remove(&key)) else {
        return Ok(());
    };
    let result = roll_back_left(endpoint, &left);
    if result.is_err() {
        LEFT.with_borrow_mut(|all| all.entry(key).or_default().extend(left));
    }
    result
}

fn roll_back_left(endpoint: &Rc<Endpoint>, left: &[Leftover]) -> Result<()> {
    // What was prepared elsewhere, before the server was altered, is the resolver's.
    let left: Vec<_> = left
        .iter()
        .filter(|one| one.endpoint.place() == endpoint.place())
        .collect();
    let lost = left.iter().filter_map(|one| one.lost.as_ref());
    let mut link = lost.fold(Link::open(endpoint), |link, lost| {
        lost::terminate(link?, lost)
    })?;
    let listed = resolver::list(&mut link)?;
    for one in left {
        let gid = one.gid.to_string();
        if listed.has(&gid) {
            resolver::finish(&mut link, Verdict::Rollback, &gid)?;
        }
    }
    remote_transaction::release(link);
    Ok(())
}

/// Sees to it that decisions which a change set must wait for are carried out.
///
/// # Errors
/// As for [`resolver::settle`]; 55000 where the server has lost what was prepared there.
pub fn settle(set: &ChangeSet, decisions: &[TransactionDecision]) -> Result<()> {
    let lost = resolver::settle(&set.extension, &set.account.server_name, decisions)?;
    done::remove(&set.extension)?;
    match lost.into_iter().next() {
        Some(lost) => Err(lost.reason),
        None => Ok(()),
    }
}

/// Sees to it that all decisions for a change set's server are carried out, after something that the change
/// set needs was not found there. False where there are none.
///
/// # Errors
/// As for [`resolver::settle`].
pub fn settle_others(set: &ChangeSet) -> Result<bool> {
    let server_name = &set.account.server_name;
    if lookup::first_with(&set.extension, server_name, &[decision::OF_SERVER])?.is_none() {
        return Ok(false);
    }
    let done = done::all();
    let mut decisions = decision::of_server(&set.extension, server_name)?;
    decisions.retain(|one| !done.contains(&one.gid));
    // What the server has lost helps nobody: the change set has an error of its own.
    let lost = resolver::settle(&set.extension, server_name, &decisions)?;
    done::remove(&set.extension)?;
    Ok(decisions.len() > lost.len())
}

/// The local transaction has ended. Cannot fail.
pub fn end(committed: bool) {
    done::end(committed);
    let held = HELD.with(|held| {
        held.try_borrow_mut()
            .map(|mut all| std::mem::take(&mut *all))
            .unwrap_or_default()
    });
    let mut unfinished = UNFINISHED.replace(false);
    if !held.is_empty() {
        // Nothing in here is meant to raise. Should it, that ends here.
        let hold = interrupt::Hold::new();
        let verdict = if committed {
            Verdict::Commit
        } else {
            Verdict::Rollback
        };
        let afterwards = interrupt::Afterwards::new();
        let finished = caught(|| Ok(second_phase(held, verdict)));
        drop(afterwards);
        hold.renew();
        unfinished |= !finished.unwrap_or(false);
    } else if !unfinished {
        return;
    }
    if committed {
        // What was asked for has been done: nobody waits any more.
        bgworker::forget_cancel();
    }
    let now = Instant::now();
    let is_due = WOKEN
        .get()
        .is_none_or(|at| now.duration_since(at) >= WAKE_EVERY);
    if unfinished || (committed && is_due) {
        WOKEN.set(Some(now));
    } else {
        worker::let_sleep();
    }
}

/// Finishes what is held; whether all of it was.
fn second_phase(held: Vec<Held>, verdict: Verdict) -> bool {
    let mut links = Vec::with_capacity(held.len());
    let mut owed = Vec::with_capacity(held.len());
    for Held {
        gid,
        session,
        server,
        changes,
    } in held
    {
        let mut link = Link::over(session);
        remote_transaction::finish_prepared(&mut link, verdict.verb(), &gid);
        links.push(link);
        owed.push((gid, server, changes));
    }
    fault_point!(SecondPhase);
    event_loop::run(&mut links);
    fault_point!(Finished);
    let mut all = true;
    for (link, (gid, server, changes)) in links.into_iter().zip(owed) {
        let result = match link.result() {
            result if link.is_done() => result,
            _ => Err(Error::Canceled),
        };
        let is_gone = |error: &Error| error.sqlstate() == SqlState::UNDEFINED_OBJECT;
        match (result, verdict) {
            (Ok(()), Verdict::Commit) => {
                stats::delivered(server, changes);
                done::note([gid.to_string()]);
                remote_transaction::release(link);
            }
            (Ok(()), Verdict::Rollback) => {
                remote_transaction::release(link);
            }
            (Err(error), Verdict::Rollback) if is_gone(&error) => {
                remote_transaction::release(link);
            }
            // Nobody else finishes it while this session is about to: the server has lost it, or a person has
            // ended it there. The resolver finds out how.
            (Err(error), Verdict::Commit) if is_gone(&error) => {
                all = false;
                let name = &link.endpoint().account.server_name;
                let message = format!(
                    "the transaction is committed, but server \"{name}\" has not got it prepared any more"
                );
                report::caution(
                    &Error::local(error.sqlstate(), message)
                        .with_hint("See sync_prepared for whether it was committed there."),
                );
                remote_transaction::release(link);
            }
            (Err(error), Verdict::Commit) => {
                all = false;
                let name = &link.endpoint().account.server_name;
                let message = format!(
                    "the transaction is committed, but not yet visible on server \"{name}\""
                );
                report::caution(
                    &Error::local(error.sqlstate(), message)
                        .with_detail(error.one_line())
                        .with_hint(HINT),
                );
            }
            (Err(_), Verdict::Rollback) => all = false,
        }
    }
    all
}

const HINT: &str = "The worker finishes it, or resolve_sync_prepared().";

/// The error of a transaction that a server did not prepare, with what to do about it there.
pub fn explained(error: Error) -> Error {
    let Error::Remote(mut remote) = error else {
        return error;
    };
    let hint = match remote.sqlstate {
        SqlState::OBJECT_NOT_READY => {
            readiness::forget();
            readiness::HINT
        }
        SqlState::FEATURE_NOT_SUPPORTED => {
            "Mode \"atomic\" prepares its transaction on the server: triggers there must not use \
             temporary tables, NOTIFY, or what else PREPARE TRANSACTION refuses."
        }
        SqlState::OUT_OF_MEMORY | SqlState::CONFIGURATION_LIMIT => {
            "Mode \"atomic\" needs more max_prepared_transactions on the server, or what is prepared \
             there is to be finished: see pg_prepared_xacts."
        }
        _ => return Error::Remote(remote),
    };
    remote.hint = Some(hint.to_owned());
    Error::Remote(remote)
}
