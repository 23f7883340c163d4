//! `deal_sync_err_rec`: replays queued changes, oldest first.
//!
//! All servers are connected to at once and served as they come up, so one that cannot be reached
//! keeps no other waiting. The records of a server are applied in a remote transaction that stays
//! open until the caller's ends: what is removed from the queue here and what is applied there
//! stand or fall together. A record that fails is found by halving, under savepoints; what precedes
//! it is delivered, it is marked, and nothing passes it.

use crate::change::{Change, Route};
use crate::delivery::commit::{self, BEGIN};
use crate::delivery::drive::{self, Stop};
use crate::delivery::endpoint::{Account, Endpoint, oid, server_oid};
use crate::delivery::feed::{Changes, Fixed, Source};
use crate::delivery::link::{Ending, Link};
use crate::delivery::{lost, session};
use crate::error::{Error, Result, SqlState};
use crate::pg::spi::Home;
use crate::pg::{interrupt, lock, report};
use crate::queue;
use crate::queue::claim::{Record, Unit, claim};
use crate::transaction::{self, OpenDrain};
use std::rc::Rc;
use std::time::Duration;

/// Applies at most `limit` of the oldest records of each server in turn, or of one. True when
/// nothing it tried failed, also when another session is draining and nothing was tried.
///
/// # Errors
/// 22023 for a limit that is NULL or not positive; what the queue reports. Failures of servers and
/// records are no errors: they are marked, warned of, and make the answer false.
pub fn deal(home: &Home, limit: Option<i32>, server: Option<&str>) -> Result<bool> {
    let limit = limit.filter(|n| *n > 0).ok_or_else(|| {
        Error::local(SqlState::INVALID_PARAMETER, "limit must be a positive number")
            .with_hint("It is the number of records to apply: deal_sync_err_rec(1000).")
    })?;
    let servers = match server {
        Some(name) => {
            // A name without records: a mistyped one must not pass for "all well".
            let name = name.to_owned();
            if !queue::is_pending(home, &name)? {
                server_oid(home, &name)?;
            }
            vec![name]
        }
        None => queue::servers(home)?,
    };
    let mut all_well = true;
    let mut waiting: Vec<(Drain<'_>, Option<OpenDrain>)> = Vec::new();
    let mut links: Vec<Link<'static>> = Vec::new();
    for name in servers {
        match Drain::begin(home, &name, i64::from(limit)) {
            Ok(None) => {}
            Ok(Some((drain, open, link))) => {
                waiting.push((drain, open));
                links.push(link);
            }
            Err(error) => {
                fail(home, &name, None, &error)?;
                all_well = false;
            }
        }
    }
    while !links.is_empty() {
        if drive::drive_any(&mut links) == Stop::Interrupted {
            interrupt::check();
            return Err(Error::Canceled);
        }
        while let Some(at) = links.iter().position(Link::is_done) {
            let link = links.swap_remove(at);
            let (drain, open) = waiting.swap_remove(at);
            all_well &= drain.serve(link, open)?;
        }
    }
    Ok(all_well)
}

/// What a visit of the worker came to.
pub enum Visit {
    /// Nothing is left that can be delivered now.
    Done,
    /// The limit was reached; there is more.
    More,
    /// Another session drains the server.
    Busy,
    /// The server could not be reached or could not take the changes now; it has been noted.
    Failed(Error),
}

/// Opens a link for a [`visit`]: over the idle session, or one that begins to connect. `None` when
/// there is nothing to do. Within a transaction that may end before the link is up.
///
/// # Errors
/// Missing objects and rights; what the catalogs report.
pub fn approach(home: &Home, server_name: &str) -> Result<Option<Link<'static>>> {
    let owner = match queue::oldest_owner(home, server_name)? {
        Some(owner) => owner,
        None => match queue::lost(home, server_name)?.into_iter().next() {
            Some(lost) => lost.owner,
            None => return Ok(None),
        },
    };
    let account = Account::look_up(home, server_name, oid(&owner)?)?;
    let endpoint = Endpoint::resolve(home, &account)?;
    Ok(Some(Link::open(&endpoint)?))
}

/// Applies at most `limit` of a server's oldest records over a link that is connected or has failed
/// to. To be followed by the end of the transaction, which commits there and here.
///
/// # Errors
/// What the queue reports; 57014 for a request to cancel.
pub fn visit(home: &Home, server_name: &str, link: Link<'static>, limit: i64) -> Result<Visit> {
    if !lock::try_drain(server_oid(home, server_name)?) {
        return Ok(Visit::Busy);
    }
    let drain = Drain { home, server_name: server_name.to_owned(), limit };
    match link.result() {
        Err(error) => Ok(Visit::Failed(error)),
        Ok(()) if drain.serve(link, None)? => match queue::is_pending(home, server_name)? {
            true => Ok(Visit::More),
            false => Ok(Visit::Done),
        },
        Ok(()) => Ok(Visit::Failed(Error::Pending { server: server_name.to_owned() })),
    }
}

/// Notes what became of a visit: a failure and when the next attempt is due, or that the server is
/// well again. In a transaction of its own.
///
/// # Errors
/// What writing the note reports.
pub fn note(
    _home: &Home,
    _server_name: &str,
    _failure: Option<&Error>,
    _next_attempt: Option<Duration>,
) -> Result<()> {
    Ok(())
}

/// Marks a record (the oldest one by default) and warns.
fn fail(home: &Home, server_name: &str, id: Option<&str>, error: &Error) -> Result<()> {
    queue::mark(home, server_name, id, error)?;
    let message = match id {
        Some(id) => format!("change {id} could not be applied on server \"{server_name}\""),
        None => format!("changes for server \"{server_name}\" could not be replayed"),
    };
    report::warn(&message, error, None);
    Ok(())
}

/// One server's turn.
struct Drain<'h> {
    home: &'h Home,
    server_name: String,
    limit: i64,
}

impl<'h> Drain<'h> {
    /// Locks the server against other drains and opens a link to it; `None` when there is nothing
    /// to do or another session does it.
    fn begin(
        home: &'h Home,
        server_name: &str,
        limit: i64,
    ) -> Result<Option<(Self, Option<OpenDrain>, Link<'static>)>> {
        if !lock::try_drain(server_oid(home, server_name)?) {
            report::notice(&format!(
                "server \"{server_name}\" is being drained by another session"
            ));
            return Ok(None);
        }
        // Only now: what another drain has just committed is seen.
        let owner = match queue::oldest_owner(home, server_name)? {
            Some(owner) => owner,
            None => match queue::lost(home, server_name)?.into_iter().next() {
                Some(lost) => lost.owner,
                None => return Ok(None),
            },
        };
        let account = Account::look_up(home, server_name, oid(&owner)?)?;
        let endpoint = Endpoint::resolve(home, &account)?;
        lost::settle(&endpoint)?;
        let drain = Self { home, server_name: server_name.to_owned(), limit };
        // A second call in one transaction goes on where the first one left the server.
        if let Some(mut open) = transaction::take_drain(server_name) {
            return match open.session.take() {
                Some(session) if session.endpoint.account == account => {
                    Ok(Some((drain, Some(open), Link::over(session))))
                }
                session => {
                    // Records of another owner wait for the commit of these.
                    open.session = session;
                    transaction::put_drain(open);
                    Ok(None)
                }
            };
        }
        Ok(Some((drain, None, Link::open(&endpoint)?)))
    }

    /// Applies what there is over a link that is connected or has failed to.
    fn serve(self, link: Link<'static>, open: Option<OpenDrain>) -> Result<bool> {
        let first = open.is_none();
        if let Err(error) = link.result() {
            fail(self.home, &self.server_name, None, &error)?;
            return Ok(false);
        }
        let link = match if first { self.settle_lost(link) } else { Ok(link) } {
            Ok(link) => link,
            Err(error) => {
                fail(self.home, &self.server_name, None, &error)?;
                return Ok(false);
            }
        };
        let units = claim(self.home, &self.server_name, self.limit)?;
        let mut replay = Replay { link: Some(link), begun: !first, applied: 0, failure: None };
        replay.apply(&units)?;
        let (done, rest) = units.split_at(replay.applied);
        match replay.link {
            Some(link) if first && done.is_empty() => commit::roll_back(link),
            // Also with nothing more to do: what an earlier call applied is still to be committed.
            Some(link) => {
                queue::remove(self.home, done)?;
                let session =
                    link.into_session().ok_or(Error::internal("drain without session"))?;
                transaction::keep_drain(&self.server_name, session, open);
            }
            // What an earlier call of this transaction had applied is gone, its records too.
            None if !first => {
                return Err(replay.failure.unwrap_or(Error::internal("drain lost its session")));
            }
            _ => {}
        }
        match replay.failure {
            None => Ok(true),
            Some(error) => {
                let id = rest.first().and_then(|unit| unit.records.first()).map(|r| r.id.as_str());
                fail(self.home, &self.server_name, id, &error)?;
                Ok(false)
            }
        }
    }

    /// Before anything is applied: the backends of connections lost in doubt must be gone.
    fn settle_lost(&self, link: Link<'static>) -> Result<Link<'static>> {
        let mine = link.endpoint().account.owner.to_u32().to_string();
        let lost = queue::lost(self.home, &self.server_name)?;
        let mut link = Some(link);
        for one in &lost {
            if one.owner == mine {
                let current = link.take().ok_or_else(|| Error::internal("link is gone"))?;
                link = Some(lost::terminate(current, &[one.backend_pid])?);
            } else {
                // Another owner's backend can only be ended over that owner's connection.
                let account = Account::look_up(self.home, &self.server_name, oid(&one.owner)?)?;
                let endpoint = Endpoint::resolve(self.home, &account)?;
                let other = lost::terminate(Link::open(&endpoint)?, &[one.backend_pid])?;
                other.into_session().into_iter().for_each(session::put_back);
            }
            queue::forget_lost(self.home, &self.server_name, one)?;
        }
        link.ok_or_else(|| Error::internal("link is gone"))
    }
}

/// Records as a source of changes.
struct Records<I>(I);

impl<'r, I: Iterator<Item = &'r Record>> Source for Records<I> {
    fn next(&mut self, take: &mut dyn FnMut(&Rc<Route>, &Change<&str>)) -> Result<bool> {
        let Some(record) = self.0.next() else { return Ok(false) };
        take(&record.route, &record.change.borrowed());
        Ok(true)
    }
}

/// Applies records inside one remote transaction.
struct Replay {
    /// `None` once the connection is of no more use.
    link: Option<Link<'static>>,
    /// The remote transaction has begun.
    begun: bool,
    /// Units applied, from the first on.
    applied: usize,
    failure: Option<Error>,
}

impl Replay {
    /// Applies as many units as can be, from the first on. Deferred constraints are checked here
    /// and not at COMMIT, where it would be too late to tell which record breaks them.
    fn apply(&mut self, units: &[Unit]) -> Result<()> {
        if units.is_empty() {
            return Ok(());
        }
        let begin: &[&str] = match self.begun {
            true => &["SET CONSTRAINTS ALL DEFERRED", "SAVEPOINT drain"],
            false => &[BEGIN[0], BEGIN[1], "SAVEPOINT drain"],
        };
        self.begun = true;
        if let Err(error) = self.statements(begin) {
            return self.lost(error);
        }
        self.apply_each(units)?;
        if self.applied == 0 {
            return Ok(());
        }
        match self.statements(&["SET CONSTRAINTS ALL IMMEDIATE"]) {
            Ok(()) => Ok(()),
            Err(error @ Error::Remote(_)) => self.shorten(units, error),
            Err(error) => self.lost(error),
        }
    }

    /// Applies units until one fails. On a permanent failure of several at once, the first half of
    /// them is tried alone, until the one that fails is found.
    fn apply_each(&mut self, units: &[Unit]) -> Result<()> {
        if self.link.is_none() || self.failure.is_some() {
            return Ok(());
        }
        match self.attempt(units, &["SAVEPOINT unit"], &[]) {
            Ok(()) => {
                self.applied += units.len();
                Ok(())
            }
            Err(error) if self.link.is_some() && is_about_records(&error) => {
                if let Err(error) = self.statements(&["ROLLBACK TO SAVEPOINT unit"]) {
                    return self.lost(error);
                }
                if units.len() == 1 || error.is_transient() {
                    self.failure = Some(error);
                    return Ok(());
                }
                let (first, second) = units.split_at(units.len() / 2);
                self.apply_each(first)?;
                self.apply_each(second)
            }
            Err(error) => self.lost(error),
        }
    }

    /// The applied units break a deferred constraint together: finds by halving how many of them
    /// do not. The first one left out is the one to look at.
    fn shorten(&mut self, units: &[Unit], mut error: Error) -> Result<()> {
        const AGAIN: [&str; 2] = ["ROLLBACK TO SAVEPOINT drain", "SET CONSTRAINTS ALL DEFERRED"];
        let (mut good, mut bad) = (0, self.applied);
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            match self.attempt(&units[..middle], &AGAIN, &["SET CONSTRAINTS ALL IMMEDIATE"]) {
                Ok(()) => good = middle,
                Err(broken) if self.link.is_some() && is_about_records(&broken) => {
                    (bad, error) = (middle, broken);
                }
                Err(broken) => return self.lost(broken),
            }
        }
        match self.attempt(&units[..good], &AGAIN, &["SET CONSTRAINTS ALL IMMEDIATE"]) {
            Ok(()) => {
                (self.applied, self.failure) = (good, Some(error));
                Ok(())
            }
            Err(broken) => self.lost(broken),
        }
    }

    /// The connection is of no more use, and with it goes everything applied so far.
    fn lost(&mut self, error: Error) -> Result<()> {
        (self.link, self.applied) = (None, 0);
        match error {
            Error::Canceled => Err(error),
            _ => {
                self.failure = Some(error);
                Ok(())
            }
        }
    }

    /// Applies records between other statements.
    fn attempt(&mut self, units: &[Unit], before: &[&str], after: &[&str]) -> Result<()> {
        if units.is_empty() {
            return self.statements(&[before, after].concat());
        }
        let Some(session) = self.link.take().and_then(Link::into_session) else { return Ok(()) };
        let name = session.endpoint.application_name.clone();
        // A link of its own: it borrows the records.
        let mut link = Link::over(session);
        let records = Records(units.iter().flat_map(|unit| &unit.records));
        link.run(Changes::new(records, &name).between(before, after), Ending::Open);
        let result = lost::run(&mut link);
        self.link = link.into_session().map(Link::over);
        result
    }

    /// Runs plain statements.
    fn statements(&mut self, texts: &[&str]) -> Result<()> {
        let Some(mut link) = self.link.take() else { return Ok(()) };
        link.run(Fixed::new(texts.iter().copied()), Ending::Open);
        let result = lost::run(&mut link);
        self.link = Some(link).filter(Link::is_up);
        result
    }
}

/// Whether the failure is one of the records, and the connection none the worse for it.
fn is_about_records(error: &Error) -> bool {
    matches!(error, Error::Remote(_) | Error::Local { .. })
}
