//! `deal_sync_err_rec` and the worker's part: replays queued changes, oldest first.
//!
//! All servers are connected to at once and served as they come up, so one that cannot be reached
//! keeps no other waiting. The records of a server are applied in a remote transaction that stays
//! open until the local one ends: what is removed from the queue here and what is applied there
//! stand or fall together.
//!
//! A failure that says something about the moment (the server, a lock) stops the work on that server
//! and is noted for it. One that says something about a record sets that record aside, and only what
//! depends on it waits.

mod batch;
mod met;
mod replay;

use self::batch::Batch;
use self::replay::Replay;
use crate::conflict::Tally;
use crate::connect::release;
use crate::delivery::commit;
use crate::delivery::drive::{self, Stop};
use crate::delivery::endpoint::{Account, Endpoint, oid, server_oid};
use crate::delivery::link::Link;
use crate::delivery::{lost, session};
use crate::error::{Error, Result, SqlState};
use crate::pg::spi::Home;
use crate::pg::{Oid, interrupt, lock, report};
use crate::queue::claim::Claims;
use crate::queue::{self, aside, state};
use crate::transaction::{self, Drained};
use crate::versions;
use crate::{conflicts, identity, loops};
use std::time::Duration;

/// Records set aside in one call, after which it leaves the rest for the next: each costs several
/// exchanges.
const MAX_ASIDE: usize = 100;

/// Records that a retry applies along, at most: the one retried and what waited behind it.
const RETRY_LIMIT: i64 = 10_000;

/// Applies at most `limit` of the oldest records of each server in turn, or of one; then, with what is
/// left of the limit, those that were set aside before. True when nothing it tried failed, also when
/// another session is draining and nothing was tried.
///
/// # Errors
/// 55000 in a copy; 22023 for a limit that is NULL or not positive; 42704 for a server that neither exists nor has
/// records; what the queue reports. Failures of servers and records are no errors: they are noted,
/// warned of, and make the answer false.
pub fn deal(home: &Home, limit: Option<i32>, server: Option<&str>) -> Result<bool> {
    identity::check(home)?;
    let limit = limit.filter(|n| *n > 0).ok_or_else(|| {
        Error::local(SqlState::INVALID_PARAMETER, "limit must be a positive number")
            .with_hint("It is the number of records to apply: deal_sync_err_rec(1000).")
    })?;
    let servers = match server {
        Some(name) => {
            // A name without records: a mistyped one must not pass for "all well".
            let name = name.to_owned();
            if !queue::knows(home, &name)? {
                server_oid(home, &name)?;
            }
            vec![name]
        }
        None => queue::servers(home, true)?,
    };
    versions::forget_old(home)?;
    drain_all(home, servers, i64::from(limit), true)
}

/// Makes a record that is set aside pending again and drains its server: the record, and what waited
/// behind it. True when nothing it tried failed.
///
/// # Errors
/// 55000 in a copy; what the queue reports.
pub fn retry(home: &Home, id: i64) -> Result<bool> {
    identity::check(home)?;
    let Some(server) = aside::server_of(home, id)? else {
        report::notice(&format!("there is no record {id} that is set aside"));
        return Ok(false);
    };
    transaction::note_drain();
    // Waits for a drain that is under way: it must not pass the record.
    lock::drain(server_oid(home, &server)?);
    aside::retry(home, &server, &[id.to_string()])?;
    // In case that more is left than is done here.
    transaction::wake_worker();
    drain_all(home, vec![server], RETRY_LIMIT, false)
}

fn drain_all(home: &Home, servers: Vec<String>, limit: i64, with_failed: bool) -> Result<bool> {
    transaction::note_drain();
    let mut all_well = true;
    let mut waiting: Vec<(Drain<'_>, Part)> = Vec::new();
    let mut links: Vec<Link<'static>> = Vec::new();
    for name in servers {
        let drain = Drain { home, server_name: name, limit, with_failed };
        match drain.begin() {
            Ok(None) => {}
            Ok(Some((part, link))) => {
                waiting.push((drain, part));
                links.push(link);
            }
            Err(error) => all_well = drain.stopped(&error)?,
        }
    }
    while !links.is_empty() {
        // Over a session that was kept, a link is up from the start.
        if !links.iter().any(Link::is_done) && drive::drive_any(&mut links) == Stop::Interrupted {
            interrupt::check();
            return Err(Error::Canceled);
        }
        while let Some(at) = links.iter().position(Link::is_done) {
            let link = links.swap_remove(at);
            let (drain, part) = waiting.swap_remove(at);
            all_well &= match drain.serve(link, part)? {
                Served { stop: Some(error), .. } => drain.stopped(&error)?,
                Served { aside, .. } => aside.is_empty(),
            };
        }
    }
    Ok(all_well)
}

/// What a visit of the worker came to.
pub enum Visit {
    /// Nothing is left that can be delivered now.
    Done,
    /// There is more: about so many records are left, so many were applied.
    More { left: i64, done: u64 },
    /// Another session drains the server, or has its records.
    Busy,
    /// The server could not be reached or could not take the changes now.
    Failed(Error),
}

/// Opens a link for a [`visit`]: over the idle session, or one that begins to connect. `None` when
/// there is nothing to do. Within a transaction that may end before the link is up.
///
/// # Errors
/// Missing objects and rights; what the catalogs report.
pub fn approach(home: &Home, server_name: &str) -> Result<Option<Link<'static>>> {
    match account(home, server_name, false)? {
        Some(account) => Ok(Some(Link::open(&Endpoint::resolve(home, &account)?)?)),
        None => Ok(None),
    }
}

/// Applies at most `limit` of a server's oldest records over a link that is connected or has failed
/// to. To be followed by the end of the transaction, which commits there and here. `closed`: keeps
/// others from queueing meanwhile, see [`handover`](crate::delivery::handover).
///
/// # Errors
/// What the queue reports; 55P03 when the queue could not be closed; 57014 for a request to cancel.
pub fn visit(
    home: &Home,
    server_name: &str,
    link: Link<'static>,
    limit: i64,
    closed: bool,
) -> Result<Visit> {
    let server = server_oid(home, server_name)?;
    if !lock::try_drain(server) {
        return Ok(Visit::Busy);
    }
    if closed {
        lock::close(server);
    }
    aside::release(home, server_name)?;
    let server_name = server_name.to_owned();
    let drain = Drain { home, server_name, limit, with_failed: false };
    // Between approach and lock another session may have drained, and left another owner's records.
    let current = account(home, &drain.server_name, false)?;
    let (mut moved, mut done) = (true, 0);
    if current.is_none() || current.as_ref() == Some(&link.endpoint().account) {
        let served = drain.serve(link, Part::First)?;
        if let Some(error) = served.stop {
            return Ok(Visit::Failed(error));
        }
        done = served.changes;
        moved = done > 0 || !served.aside.is_empty();
    }
    Ok(match queue::backlog(home, &drain.server_name)? {
        0 => Visit::Done,
        left if moved => Visit::More { left, done },
        // What is there cannot be taken yet.
        _ => Visit::Busy,
    })
}

/// Notes a failed attempt at a server, and when the next is planned; not while another session drains,
/// which does so itself.
///
/// # Errors
/// What writing the state reports.
pub fn note(home: &Home, server_name: &str, failure: &Error, next: Duration) -> Result<()> {
    // A server that has been dropped has no lock, and nobody drains it.
    if let Ok(server) = server_oid(home, server_name)
        && !lock::try_drain(server)
    {
        return Ok(());
    }
    release::ask_if_refused(home, server_name, failure)?;
    state::failed(home, server_name, failure, Some(next))
}

/// The account that the oldest pending record goes over, or else the oldest lost backend, or else the
/// oldest record that is set aside.
fn account(home: &Home, server_name: &str, with_failed: bool) -> Result<Option<Account>> {
    let lost = || -> Result<Option<String>> {
        Ok(queue::lost(home, server_name)?.into_iter().next().map(|lost| lost.owner))
    };
    let owner = match queue::oldest_owner(home, server_name)? {
        None => match lost()? {
            None if with_failed => aside::oldest_owner(home, server_name)?,
            lost => lost,
        },
        owner => owner,
    };
    owner.map(|owner| Account::look_up(home, server_name, oid(&owner)?)).transpose()
}

/// What serving one server came to.
#[derive(Default)]
struct Served {
    /// Records that were set aside.
    aside: Vec<(i64, Error)>,
    /// Why no more was tried.
    stop: Option<Error>,
    /// Records that were applied.
    changes: u64,
}

/// Serving one server, under way.
struct Work {
    replay: Replay,
    served: Served,
    /// Ids of records applied and not removed from the queue yet.
    applied: Vec<i64>,
    /// Records that were set aside before and get another chance.
    retried: Vec<String>,
    /// Records that were applied have been removed from the queue already.
    flushed: bool,
    /// The conflicts of records that were set aside.
    set_aside: Tally,
}

/// Whether the remote transaction is new or that of an earlier call in the local one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    First,
    Further,
}

/// One server's turn.
struct Drain<'h> {
    home: &'h Home,
    server_name: String,
    limit: i64,
    /// Try records again that were set aside, once nothing else is left.
    with_failed: bool,
}

impl Drain<'_> {
    /// Locks the server against other drains and opens a link to it; `None` when there is nothing
    /// to do or another session does it.
    fn begin(&self) -> Result<Option<(Part, Link<'static>)>> {
        let name = &self.server_name;
        if !lock::try_drain(server_oid(self.home, name)?) {
            report::notice(&format!("server \"{name}\" is being drained by another session"));
            return Ok(None);
        }
        // Only now: what another drain has just committed is seen.
        aside::release(self.home, name)?;
        let Some(account) = account(self.home, name, self.with_failed)? else { return Ok(None) };
        let endpoint = Endpoint::resolve(self.home, &account)?;
        lost::settle(&endpoint)?;
        // A second call in one transaction goes on where the first one left the server.
        match transaction::take_drain(name) {
            Some(Some(session)) if session.endpoint.account == account => {
                Ok(Some((Part::Further, Link::over(session))))
            }
            Some(session) => {
                // Records of another owner wait for the commit of these.
                session.into_iter().for_each(|session| transaction::put_drain(name, session));
                Ok(None)
            }
            None => Ok(Some((Part::First, Link::open(&endpoint)?))),
        }
    }

    /// Notes and warns that work on the server has stopped. False, for the answer.
    fn stopped(&self, error: &Error) -> Result<bool> {
        state::failed(self.home, &self.server_name, error, None)?;
        release::ask_if_refused(self.home, &self.server_name, error)?;
        let name = &self.server_name;
        let message = format!("changes for server \"{name}\" could not be replayed");
        report::warn(&message, error, None);
        Ok(false)
    }

    /// Applies what there is over a link that is connected or has failed to.
    fn serve(&self, link: Link<'static>, part: Part) -> Result<Served> {
        let first = part == Part::First;
        let stopped = |error| Ok(Served { stop: Some(error), ..Served::default() });
        if let Err(error) = link.result() {
            return stopped(error);
        }
        let link = match if first { self.settle_lost(link) } else { Ok(link) } {
            Ok(link) => link,
            Err(error) => return stopped(error),
        };
        let Account { owner, server, .. } = link.endpoint().account;
        let replay = Replay::new(link, !first);
        let served = Served::default();
        let (applied, retried, set_aside) = (Vec::new(), Vec::new(), Tally::default());
        let mut work = Work { replay, served, applied, retried, flushed: false, set_aside };
        self.apply(owner, &mut work)?;
        let Work { mut replay, mut served, applied, retried, flushed, set_aside } = work;
        let (home, changes) = (self.home.clone(), served.changes);
        let held_back = replay.held_back();
        loops::not_sent(server, &self.server_name, held_back);
        let sent = changes.saturating_sub(held_back);
        let drained = Drained { home, changes: sent, conflicts: replay.take_conflicts() };
        match replay.into_link() {
            Some(link) if first && changes == 0 => commit::roll_back(link),
            // Also with nothing more to do: what an earlier call applied is still to be committed.
            Some(link) => {
                queue::remove(self.home, &applied)?;
                let session =
                    link.into_session().ok_or(Error::internal("drain without session"))?;
                transaction::keep_drain(&self.server_name, session, drained);
            }
            // What had been applied before is gone, its records too.
            None if !first || (flushed && changes > 0) => {
                return Err(served.stop.unwrap_or(Error::internal("drain lost its session")));
            }
            None => {
                served.changes = 0;
                served.stop.get_or_insert(Error::internal("drain lost its transaction"));
            }
        }
        aside::give_back(self.home, &self.server_name, &retried)?;
        conflicts::record(self.home, server, &self.server_name, &set_aside);
        if let Some((id, error)) = served.aside.first() {
            self.warn_aside(*id, served.aside.len(), error);
        }
        if served.stop.is_none() {
            state::succeeded(self.home, &self.server_name)?;
        }
        Ok(served)
    }

    /// Batch by batch. Records that were applied stay in the queue until the connection is seen to
    /// have lived through it all.
    fn apply(&self, owner: Oid, work: &mut Work) -> Result<()> {
        let name = &self.server_name;
        let mut left = self.limit;
        // Known before any is set aside here.
        let mut again = match self.with_failed {
            true => aside::oldest(self.home, name, owner, MAX_ASIDE)?,
            false => Vec::new(),
        };
        let mut claims = Claims::begin(self.home, name, owner)?;
        while left > 0 && work.served.stop.is_none() && work.served.aside.len() < MAX_ASIDE {
            let units = claims.next(left)?;
            if units.is_empty() {
                // What waited for records that were applied; then those set aside before.
                queue::remove(self.home, &std::mem::take(&mut work.applied))?;
                work.flushed = true;
                if !aside::release(self.home, name)? {
                    again.truncate(left.min(i64::from(i32::MAX)) as usize);
                    if again.is_empty() {
                        break;
                    }
                    aside::retry(self.home, name, &again)?;
                    work.retried = std::mem::take(&mut again);
                }
                claims = Claims::begin(self.home, name, owner)?;
                continue;
            }
            left -= units.iter().map(|unit| unit.records.len() as i64).sum::<i64>();
            let budget = MAX_ASIDE - work.served.aside.len();
            let mut batch = Batch::new(self.home, name, units, budget)?;
            batch.apply(&mut work.replay, &mut claims, left)?;
            let outcome = batch.settle()?;
            work.served.changes += outcome.applied.len() as u64;
            work.applied.extend(outcome.applied);
            work.served.aside.extend(outcome.aside);
            work.set_aside.merge(outcome.conflicts);
            work.served.stop = outcome.stop;
        }
        Ok(())
    }

    fn warn_aside(&self, id: i64, count: usize, error: &Error) {
        let name = &self.server_name;
        let message = match count {
            1 => format!("change {id} could not be applied on server \"{name}\" and was set aside"),
            _ => format!(
                "{count} changes could not be applied on server \"{name}\" and were set aside, the \
                 first is {id}"
            ),
        };
        let hint = "See sync_err_rec. Remove the cause and call retry_sync_err_rec(), or discard the \
                    change by deleting its row there.";
        report::warn(&message, error, Some(hint));
    }

    /// Before anything is applied: the backends of connections lost in doubt must be gone.
    fn settle_lost(&self, link: Link<'static>) -> Result<Link<'static>> {
        let mine = link.endpoint().account.owner.to_u32().to_string();
        let lost = queue::lost(self.home, &self.server_name)?;
        let mut link = Some(link);
        for one in &lost {
            if one.owner == mine {
                let current = link.take().ok_or_else(|| Error::internal("link is gone"))?;
                link = Some(lost::end(current, &one.session)?);
            } else {
                // Another owner's backend can only be ended over that owner's connection.
                let account = Account::look_up(self.home, &self.server_name, oid(&one.owner)?)?;
                let endpoint = Endpoint::resolve(self.home, &account)?;
                let other = lost::end(Link::open(&endpoint)?, &one.session)?;
                other.into_session().into_iter().for_each(session::put_back);
            }
            queue::forget_lost(self.home, one)?;
        }
        link.ok_or_else(|| Error::internal("link is gone"))
    }
}
