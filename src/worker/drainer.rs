//! The worker of a database: connects to servers with work, each on its own schedule, and drains
//! them as they come up.
//!
//! Nothing but a visit to a server that has just answered happens inside a transaction; connecting
//! and waiting do not, so an unreachable server neither keeps the others waiting nor holds back the
//! horizon of vacuum. No error ends the process: the error is logged, the server waits for its next attempt.

use super::pace::Pace;
use super::resolver::{Resolver, ServerOwner};
use super::schedule::{Intervals, Schedule};
use crate::conflict::versions;
use crate::copy::copier;
use crate::delivery::event_loop;
use crate::delivery::feed::Fixed;
use crate::delivery::link::{Ending, Link};
use crate::drain::{self, Approach, Visit};
use crate::error::{Error, Result, SqlState};
use crate::fault::fault_point;
use crate::guc;
use crate::pg::bgworker::{self, ExitReason, Handle, Startup};
use crate::pg::lock::Promise;
use crate::pg::spi::Extension;
use crate::pg::worker_transaction::run_in_transaction;
use crate::pg::{Oid, compat, context, database, interrupt, report, wait, worker_registry};
use crate::queue::state;
use crate::{crash, identity, queue};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Records of one visit: a transaction here and one there.
const VISIT: i64 = 5_000;
/// A connection that has answered so recently is not asked whether it still works, where no other server
/// could be kept waiting.
const ANSWER_VALIDITY: Duration = Duration::from_secs(1);
/// A worker that has had nothing to do for so long ends: others may need its slot. The launcher starts one
/// again when something is queued.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a worker with work keeps its slot while other databases wait for one, and one without while none is
/// free.
const SLOT_TIME: Duration = Duration::from_secs(5);
/// Looking at the queue takes at most this part of the time, however often the worker is woken.
const LOOK_SHARE: u32 = 10;
/// Pause when the server has no slot for a copier.
const NO_SLOT: Duration = Duration::from_secs(1);
/// Longest time that a change waits for that.
const LOOK_GAP: Duration = Duration::from_millis(500);

/// Main function of the worker of a database.
pub fn run(database: Oid) {
    if !bgworker::enter(database) {
        return;
    }
    let begun = begin(database);
    worker_registry::set(database, worker_registry::flag::SETTLED);
    if report::or_raise(begun) {
        finish(Drainer::new().run());
    }
}

/// Whether this process is to be the worker.
fn begin(database: Oid) -> Result<bool> {
    match run_in_transaction(Extension::look_up) {
        Ok(None) => Ok(false),
        // The mark last: who sets it either sees the worker then or is seen.
        Ok(Some(_)) => Ok(bgworker::become_worker()
            && !worker_registry::has(database, worker_registry::flag::PAUSED)),
        // Told to end meanwhile.
        Err(_) if bgworker::ending().is_some() => Ok(false),
        Err(error) => Err(error),
    }
}

fn finish(end: ExitReason) {
    // The launcher starts it again if the database is still there. Without one the postmaster does
    // that, after exit code 1.
    if end == ExitReason::Evicted && !worker_registry::exists() {
        bgworker::exit(1);
    }
}

struct Drainer {
    servers: BTreeMap<String, Server>,
    /// On their way to a server, in step with `visitors`.
    links: Vec<Link<'static>>,
    visitors: Vec<Visitor>,
    resolver: Resolver,
    /// When to look at the queue without having been woken.
    look_at: Instant,
    looked: Instant,
    look_gap: Duration,
    /// When old deletions were last forgotten.
    tidied: Option<Instant>,
    /// When the process became the worker.
    began: Instant,
    /// When there was last something to do.
    busy_at: Instant,
    /// Goes on where a worker that made room has left its servers.
    resumes: bool,
    /// The queue has been looked at.
    has_looked: bool,
    /// There are prepared transactions in the database.
    has_prepared: bool,
    /// There are copies to be done, now or later.
    has_copies: bool,
    /// Processes that copy.
    copiers: Vec<Handle>,
    shown: String,
    complained: Option<(String, Instant)>,
    /// A warning has said that the database is a copy.
    warned_copy: bool,
}

struct Server {
    schedule: Schedule,
    pace: Pace,
    /// When it last answered.
    answered: Option<Instant>,
    /// What the log says while it fails.
    trouble: &'static str,
    round: Round,
    /// Its queue is filled again and again, and emptied at once: who has a connection may wait for that.
    promise: Option<Promise>,
}

/// Owners over whose accounts a server was approached in turn, since the last that was let in.
#[derive(Default)]
struct Round {
    /// Those who were not.
    refused: Vec<Oid>,
    /// Why, of the first whose lane is not apart.
    failure: Option<Error>,
    /// Attempts to which the server has said nothing, since it was due.
    unanswered: u32,
}

/// Attempts at a server that says nothing, each as long as `connect_timeout`, until it is given up for now. The
/// next time other owners have their turn.
const MAX_UNANSWERED: u32 = 2;

impl Server {
    fn new(now: Instant) -> Self {
        Self {
            schedule: Schedule::new(now),
            pace: Pace::default(),
            answered: None,
            trouble: "",
            round: Round::default(),
            promise: None,
        }
    }

    /// One that has failed so many times in a row, to be tried at that time.
    fn failing(failures: u32, due: Instant, now: Instant) -> Self {
        let schedule = Schedule::failing(failures, due, now);
        Self {
            schedule,
            trouble: "failed",
            ..Self::new(now)
        }
    }
}

struct Visitor {
    server: String,
    /// The connection was there before.
    kept: bool,
    /// It looks after what is prepared over this account, and drains nothing.
    resolves: Option<ServerOwner>,
}

/// Whether something was queued since the last look.
fn is_notified() -> bool {
    worker_registry::has(database::current(), worker_registry::flag::NOTIFIED)
}

/// The database has nothing to do for a worker any more.
struct Dropped;

impl Drainer {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            servers: BTreeMap::new(),
            links: Vec::new(),
            visitors: Vec::new(),
            resolver: Resolver::new(now),
            look_at: now,
            looked: now,
            look_gap: Duration::ZERO,
            tidied: None,
            began: now,
            busy_at: now,
            has_looked: false,
            has_prepared: false,
            has_copies: false,
            copiers: Vec::new(),
            resumes: worker_registry::clear(database::current(), worker_registry::flag::YIELDED)
                != 0,
            shown: String::new(),
            complained: None,
            warned_copy: false,
        }
    }

    /// Until a signal asks it to end, or the extension is dropped.
    fn run(mut self) -> ExitReason {
        loop {
            // Barriers and the like, and whether the database is wanted by someone else.
            interrupt::pending();
            bgworker::forget_cancel();
            if let Some(end) = bgworker::ending() {
                return end;
            }
            if bgworker::reload() {
                let intervals = intervals();
                let waiting = self.servers.values_mut();
                waiting.for_each(|server| server.schedule.adopt(intervals));
                self.look_at = self.look_at.min(Instant::now() + intervals.max);
            }
            if wait::take_woken() || is_notified() {
                self.look_at = self.look_at.min(self.looked + self.look_gap);
                self.resolver.wake();
                self.visit_again();
            }
            let before = self.copiers.len();
            self.copiers
                .retain(|copier| copier.state() != Startup::Ended);
            if self.copiers.len() < before {
                self.look_at = self.look_at.min(self.looked + self.look_gap);
            }
            if self.look_at <= Instant::now()
                && let Err(Dropped) = self.look()
            {
                return ExitReason::Requested;
            }
            self.approach();
            self.resolve();
            self.visit();
            if self.makes_room() {
                return ExitReason::Yielded;
            }
            bgworker::report_statistics(false);
            self.show_idle();
            // A request to end may have come while something above waited, which has reset the latch.
            if bgworker::ending().is_some() {
                continue;
            }
            let next = self.next().saturating_duration_since(Instant::now());
            event_loop::run_for(&mut self.links, next);
        }
    }

    /// Something was queued: servers whose queues are filled again and again are visited without a look at all of
    /// them, which may not come yet.
    fn visit_again(&mut self) {
        let now = Instant::now();
        let mut is_any = false;
        let servers = self.servers.values_mut();
        for server in servers.filter(|server| server.pace.is_refilled(now)) {
            server.schedule.wake(now);
            is_any = true;
        }
        if is_any {
            // What is queued from now on may not be seen; that of other servers is looked for all the same.
            worker_registry::clear(database::current(), worker_registry::flag::NOTIFIED);
        }
    }

    /// Whether the process is to end so that another can have its slot: it has nothing to do now and other
    /// databases wait or all slots are taken, or it has had nothing to do for long, or its time is over.
    fn makes_room(&mut self) -> bool {
        let now = Instant::now();
        let due = self
            .servers
            .values()
            .filter_map(|server| server.schedule.due())
            .min();
        if !self.links.is_empty() || due.is_some_and(|due| due <= now) {
            self.busy_at = now;
        }
        // Without a launcher nobody would start one again.
        if !worker_registry::exists() || !self.links.is_empty() || !self.has_looked {
            return false;
        }
        let waits = due.is_none_or(|due| due > now);
        let idle = now.duration_since(self.busy_at);
        // What is prepared is queued when it is committed, which wakes nobody; a copy waits for its next attempt.
        let looks_again = self.has_prepared || self.has_copies;
        let makes_room = if worker_registry::slots_are_wanted() {
            waits || now.duration_since(self.began) >= SLOT_TIME
        } else if due.is_none() && idle >= SLOT_TIME && compat::are_worker_slots_taken() {
            // Subscriptions, for one, ask nobody.
            true
        } else {
            due.is_none() && idle >= IDLE_TIMEOUT && !looks_again
        };
        if !makes_room || !self.copiers.is_empty() {
            return false;
        }
        let due = match due {
            _ if !looks_again => due,
            Some(due) => Some(due.min(self.look_at)),
            None => Some(self.look_at),
        };
        let due =
            due.map(|due| context::now() + due.saturating_duration_since(now).as_micros() as i64);
        bgworker::try_yield(due)
    }

    /// When something is to be done next.
    fn next(&self) -> Instant {
        let due = self
            .servers
            .iter()
            .filter(|(name, _)| !self.is_visited(name));
        let due = due.filter_map(|(_, server)| server.schedule.due());
        // Waits that are not ours may have taken the latch's sign.
        let notified = is_notified().then(|| self.looked + self.look_gap);
        let prepared = (self.has_looked && !self.warned_copy).then(|| self.resolver.next());
        due.chain(notified)
            .chain(prepared)
            .fold(self.look_at, Instant::min)
    }

    fn is_visited(&self, server: &str) -> bool {
        self.visitors
            .iter()
            .any(|one| one.server == server && one.resolves.is_none())
    }

    /// Looks which servers have work.
    fn look(&mut self) -> std::result::Result<(), Dropped> {
        let began = Instant::now();
        // What is queued from now on may not be seen.
        worker_registry::clear(database::current(), worker_registry::flag::NOTIFIED);
        let tidy = self
            .tidied
            .is_none_or(|at| at.elapsed() >= guc::max_retry_interval());
        let resumes = std::mem::take(&mut self.resumes);
        let found = run_in_transaction(|| match Extension::look_up()? {
            Some(_) if identity::is_copy()? => Ok(Some(None)),
            Some(extension) => {
                identity::check(&extension)?;
                crash::note(&extension)?;
                if tidy {
                    versions::forget_old(&extension)?;
                }
                let servers = queue::servers(&extension, false)?;
                fault_point!(LookUp);
                let waits = servers.into_iter().map(|server| {
                    let wait = if resumes {
                        state::until_next_attempt(&extension, &server)?
                    } else {
                        None
                    };
                    Ok((server, wait))
                });
                let waits = waits.collect::<Result<Vec<_>>>()?;
                Ok(Some(Some((
                    waits,
                    queue::has_prepared(&extension)?,
                    copier::due(&extension)?,
                ))))
            }
            None => Ok(None),
        });
        self.looked = Instant::now();
        self.look_gap = ((self.looked - began) * LOOK_SHARE).min(LOOK_GAP);
        match found {
            Ok(None) => return Err(Dropped),
            Ok(Some(found)) => {
                if found.is_none() && !self.warned_copy {
                    report::log(
                        "the database is a copy: nothing is sent from it before adopt_sync() is called",
                        None,
                    );
                }
                self.warned_copy = found.is_none();
                let (waits, has_prepared, copies) = found.unwrap_or_default();
                (self.has_looked, self.has_prepared) = (true, has_prepared);
                let names: Vec<&String> = waits.iter().map(|(name, _)| name).collect();
                if tidy {
                    self.tidied = Some(self.looked);
                }
                self.look_at = self.looked + guc::max_retry_interval();
                self.copy(copies);
                let visited: Vec<&str> = self.visitors.iter().map(|v| v.server.as_str()).collect();
                let now = self.looked;
                self.servers.retain(|name, server| {
                    names.contains(&name)
                        || visited.contains(&name.as_str())
                        || server.pace.was_emptied(now)
                });
                for (name, wait) in waits {
                    let new = || match wait {
                        Some((failures, wait)) => Server::failing(failures, now + wait, now),
                        None => Server::new(now),
                    };
                    self.servers
                        .entry(name)
                        .and_modify(|server| server.schedule.wake(now))
                        .or_insert_with(new);
                }
            }
            Err(error) => {
                self.look_at = self.looked + guc::retry_interval();
                self.complain("the queue could not be read", &error);
            }
        }
        Ok(())
    }

    /// Starts processes for groups of copies that are to be done now; `later`: others are then.
    fn copy(&mut self, (now, later): (usize, Option<Duration>)) {
        self.has_copies = now > 0 || later.is_some();
        if let Some(later) = later {
            self.look_at = self.look_at.min(self.looked + later);
        }
        while self.copiers.len() < now.min(guc::copy_workers()) {
            match bgworker::start_copier(database::current()) {
                Some(copier) => self.copiers.push(copier),
                None => {
                    self.look_at = self.look_at.min(self.looked + NO_SLOT);
                    return;
                }
            }
        }
    }

    /// Sets out for what is prepared.
    fn resolve(&mut self) {
        if self.warned_copy || !self.has_looked {
            return;
        }
        if let Err(error) = self.resolver.look() {
            self.complain("what is prepared could not be read", &error);
        }
        for (account, link) in self.resolver.approach() {
            let server = account.0.clone();
            let kept = link.is_up();
            self.links.push(link);
            self.visitors.push(Visitor {
                server,
                kept,
                resolves: Some(account),
            });
        }
    }

    /// Sets out for the servers whose time has come.
    fn approach(&mut self) {
        let now = Instant::now();
        let due: Vec<String> = self
            .servers
            .iter()
            .filter(|(name, server)| {
                server.schedule.due().is_some_and(|due| due <= now) && !self.is_visited(name)
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            let Some(server) = self.servers.get_mut(&name) else {
                continue;
            };
            server.round.unanswered = 0;
            let approach = |refused: &[Oid]| {
                run_in_transaction(|| drain::approach(&Extension::find()?, &name, refused))
            };
            let mut link = approach(&server.round.refused);
            if !matches!(link, Ok(Approach::Link(_))) && !server.round.refused.is_empty() {
                server.round = Round::default();
                link = approach(&[]);
            }
            match link {
                Ok(Approach::Link(link)) => {
                    server.schedule.try_now();
                    self.set_out(&name, *link);
                }
                Ok(Approach::Later(wait)) => server.schedule.postpone(now + wait),
                Ok(Approach::Nothing) => server.schedule.succeed(false, now),
                Ok(Approach::Refused(error)) | Err(error) => self.fail(&name, &error),
            }
        }
    }

    fn set_out(&mut self, name: &str, mut link: Link<'static>) {
        let alone = self.servers.len() == 1;
        let answered = self.servers.get(name).and_then(|server| server.answered);
        let kept = link.is_up();
        let has_answered = answered.is_some_and(|at| at.elapsed() < ANSWER_VALIDITY);
        if kept && !(alone && has_answered) {
            // It may have died without a sign. Found out here, that keeps nobody waiting.
            link.run(Fixed::new(["SELECT 1"]), Ending::Open);
        }
        self.links.push(link);
        self.visitors.push(Visitor {
            server: name.to_owned(),
            kept,
            resolves: None,
        });
    }

    /// Drains the servers that have been reached.
    fn visit(&mut self) {
        while let Some(at) = self.links.iter().position(Link::is_done)
            && bgworker::ending().is_none()
        {
            let link = self.links.swap_remove(at);
            let Visitor {
                server: name,
                kept,
                resolves,
            } = self.visitors.swap_remove(at);
            if let Some(account) = resolves {
                self.resolver.serve(&account, link);
                continue;
            }
            match link.result() {
                Ok(()) => self.drain(&name, link),
                // A new connection may be had at once.
                Err(Error::Lost { .. }) if kept => {
                    if let Some(server) = self.servers.get_mut(&name) {
                        server.schedule.succeed(true, Instant::now());
                    }
                }
                Err(error) => {
                    let owner = link.endpoint().account.owner;
                    if error.is_about_owner() {
                        self.note_owner(&name, owner, &error);
                        self.fail(&name, &error);
                    } else {
                        self.try_another(&name, owner, error);
                    }
                }
            }
        }
    }

    /// A connection could not be had for an owner: perhaps for another one, which tells whether it is the server.
    fn try_another(&mut self, name: &str, owner: Oid, error: Error) {
        let Some(server) = self.servers.get_mut(name) else {
            return;
        };
        if bgworker::ending().is_some() {
            return;
        }
        let round = &mut server.round;
        round.refused.push(owner);
        round.unanswered += u32::from(!error.is_answered_refusal());
        let goes_on = round.unanswered < MAX_UNANSWERED;
        let found = run_in_transaction(|| {
            let extension = Extension::find()?;
            let is_apart = drain::stays_apart(&extension, name, owner, &error)?;
            let next = if goes_on {
                drain::approach(&extension, name, &round.refused)?
            } else {
                Approach::Nothing
            };
            Ok((is_apart, next))
        });
        let (is_apart, next) = found.unwrap_or((false, Approach::Nothing));
        if !is_apart {
            round.failure.get_or_insert(error);
        }
        if let Approach::Link(link) = next {
            return self.set_out(name, *link);
        }
        if goes_on {
            round.refused.clear();
        }
        match round.failure.take() {
            Some(failure) => self.fail(name, &failure),
            // What is apart waits for its next attempt.
            None => server
                .schedule
                .postpone(Instant::now() + guc::retry_interval()),
        }
    }

    fn drain(&mut self, name: &str, link: Link<'static>) {
        self.show(true, format!("pg_rowsync: draining server \"{name}\""));
        // After a failure with less: a visit may have been too large for the server's time limits.
        let failures = self.servers.get_mut(name).map_or(0, |server| {
            server.round = Round::default();
            server.schedule.failures()
        });
        let limit = (VISIT >> (2 * failures).min(12)).max(1);
        let began = Instant::now();
        let closes = self.servers.get(name).is_some_and(|s| s.pace.closes(began));
        let number = link.endpoint().account.server;
        let visit =
            run_in_transaction(|| drain::visit(&Extension::find()?, name, link, limit, closes));
        let now = Instant::now();
        // Waits inside of the visit that are not ours may have taken the latch's sign.
        self.look_at = self.look_at.min(now + LOOK_GAP);
        let (remaining, done) = match visit {
            Ok(Visit::Done) => (0, 0),
            Ok(Visit::More { remaining, done }) => (remaining, done),
            // Not the server's fault: someone holds the queue, or its records.
            Err(error) if error.sqlstate() == SqlState::LOCK_NOT_AVAILABLE => {
                if let Some(server) = self.servers.get_mut(name) {
                    server.pace.could_not_close(now);
                    server.promise = None;
                    if closes {
                        server.schedule.succeed(true, now)
                    } else {
                        server.schedule.keep_off(now, intervals())
                    }
                }
                return;
            }
            Ok(Visit::Busy) => {
                if let Some(server) = self.servers.get_mut(name) {
                    server.promise = None;
                    server.schedule.keep_off(now, intervals());
                }
                return;
            }
            Ok(Visit::Failed(error)) | Err(error) => return self.fail(name, &error),
        };
        let Some(server) = self.servers.get_mut(name) else {
            return;
        };
        let failures = server.schedule.failures();
        server.pace.remaining(remaining, done, now - began, now);
        server.schedule.succeed(remaining > 0, now);
        server.answered = Some(now);
        if !server.pace.is_refilled(now) {
            server.promise = None;
        } else if server.promise.is_none() {
            let promise = run_in_transaction(|| Ok(Promise::make(number)));
            server.promise = promise.unwrap_or_default();
        }
        if failures > 0 {
            report::log(&format!("server \"{name}\" is reached again"), None);
        }
    }

    /// A server failed: it is tried again after a while.
    fn fail(&mut self, name: &str, error: &Error) {
        // What was cut short by a request to end is no failure.
        if bgworker::ending().is_some() {
            return;
        }
        let Some(server) = self.servers.get_mut(name) else {
            return;
        };
        let wait = server.schedule.fail(Instant::now(), intervals());
        if error.is_about_owner() {
            server.schedule.keep_awake();
        }
        server.answered = None;
        server.promise = None;
        server.trouble = trouble(error);
        if server.schedule.failures() == 1 {
            let wait = wait.as_millis();
            let message = format!("server \"{name}\" failed, next attempt in {wait} ms");
            report::log(&message, Some(error));
        }
        // Perhaps the extension is gone.
        if matches!(error, Error::Local { .. }) {
            self.look_at = self.look_at.min(Instant::now());
        }
        self.note(name, error, wait);
    }

    /// A connection could not be had, perhaps for its owner's sake.
    fn note_owner(&mut self, name: &str, owner: Oid, failure: &Error) {
        if bgworker::ending().is_some() || !failure.is_about_owner() {
            return;
        }
        let noted = run_in_transaction(|| match Extension::look_up()? {
            Some(extension) => drain::note_owner(&extension, name, owner, failure),
            None => Ok(()),
        });
        if let Err(error) = noted {
            self.complain("the state of an owner could not be noted", &error);
        }
    }

    fn note(&mut self, name: &str, failure: &Error, next_attempt: Duration) {
        let noted = run_in_transaction(|| match Extension::look_up()? {
            Some(extension) => drain::note(&extension, name, failure, next_attempt),
            None => Ok(()),
        });
        if let Err(error) = noted {
            self.complain("the state of a server could not be noted", &error);
        }
    }

    /// Logs a failure of our own, not over and over.
    fn complain(&mut self, what: &str, error: &Error) {
        const AGAIN: Duration = Duration::from_secs(60);
        if bgworker::ending().is_some() || error.sqlstate() == SqlState::UNDEFINED_TABLE {
            return;
        }
        let text = format!("{what} {}", error.one_line());
        let notified = self.complained.as_ref();
        if notified.is_some_and(|(before, at)| *before == text && at.elapsed() < AGAIN) {
            return;
        }
        report::log(what, Some(error));
        self.complained = Some((text, Instant::now()));
    }

    fn show_idle(&mut self) {
        let now = Instant::now();
        if let Some(visitor) = self.visitors.first() {
            let text = format!("pg_rowsync: connecting to server \"{}\"", visitor.server);
            return self.show(true, text);
        }
        let failing = self
            .servers
            .iter()
            .find(|(_, server)| server.schedule.failures() > 0);
        let text = failing.and_then(|(name, server)| {
            let seconds = server
                .schedule
                .due()?
                .saturating_duration_since(now)
                .as_secs()
                + 1;
            let what = server.trouble;
            Some(format!(
                "pg_rowsync: server \"{name}\" {what}, next attempt in {seconds} s"
            ))
        });
        self.show(
            false,
            text.unwrap_or_else(|| "pg_rowsync: waiting for changes".to_owned()),
        );
    }

    fn show(&mut self, busy: bool, text: String) {
        if self.shown != text {
            bgworker::show(busy, &text);
            self.shown = text;
        }
    }
}

/// What the log says of a server that failed so.
fn trouble(error: &Error) -> &'static str {
    match error {
        _ if error.is_connection_refusal() => "grants no connection",
        _ if error.is_login_refusal() => "refuses the login",
        _ if error.is_unreachable() => "not reachable",
        _ if error.is_transient() => "busy",
        _ => "not served",
    }
}

fn intervals() -> Intervals {
    Intervals {
        retry: guc::retry_interval(),
        max: guc::max_retry_interval(),
    }
}
