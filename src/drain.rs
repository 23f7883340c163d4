//! `deal_sync_err_rec` and the worker's part: replays queued changes, oldest first.
//!
//! All servers are connected to at once and served as they come up, so one that cannot be reached
//! keeps no other waiting. The records of a server are applied in a remote transaction that stays
//! open until the local one ends: what is removed from the queue here and what is applied there
//! stand or fall together.
//!
//! A failure that says something about the moment (the server, a lock) stops the work on that server
//! and is noted for it. One that says something about a record marks that record failed, and only what
//! depends on it waits.

mod batch;
mod classify;
mod outcome;
mod rekeyed;
mod replay;
mod together;

use self::batch::{RecordBatch, Trial};
use self::outcome::Settled;
use self::replay::Replay;
use crate::atomic::decision::TransactionDecision;
use crate::atomic::resolver;
use crate::conflict::Tally;
use crate::conflict::log;
use crate::conflict::versions;
use crate::connect::account::{Account, oid, server_oid};
use crate::connect::endpoint::Endpoint;
use crate::connect::release;
use crate::connect::session;
use crate::delivery::event_loop::{self, LoopEnd};
use crate::delivery::link::Link;
use crate::delivery::{lost, remote_transaction};
use crate::error::{Error, Result, SqlState};
use crate::fault::fault_point;
use crate::pg::spi::Extension;
use crate::pg::{Oid, interrupt, lock, report};
use crate::queue::claim::{Bounds, Claims};
use crate::queue::lanes::{self, Lane};
use crate::queue::{self, failed, floor, pause, state};
use crate::transaction::{self, Drained};
use crate::{crash, identity, loops};
use std::time::Duration;

/// Failed records in one call, after which it leaves the rest for the next: each costs several
/// exchanges.
const MAX_FAILED: usize = 100;

/// So many attempts in a row stop at a failure that may pass by itself. Then the record that fails is looked
/// for, and marked failed until its own next attempt.
const PATIENT_TRIES: u32 = 3;

/// Records in a batch, at most, while such a record is looked for: each trial may take as long as a lock is
/// waited for. Once twice as many attempts have failed, records are tried one by one: a connection that is
/// given up over one takes the others' changes with it.
const ISOLATED: i64 = 64;

/// Connections that a call loses over a server's records, at most: with each of these records it goes on.
const MAX_LOST: usize = 4;

/// Records that a retry applies along, at most: the one retried and what waited behind it.
const RETRY_LIMIT: i64 = 10_000;

/// Applies at most `limit` of the oldest records of each server in turn, or of one; then, with what is
/// left of the limit, those that were marked failed before. True when nothing it tried failed, also when
/// another session is draining, or the server is paused, and nothing was tried.
///
/// # Errors
/// 55000 in a copy; 22023 for a limit that is NULL or not positive; 42704 for a server that neither exists
/// nor has records; what the queue reports. Failures of servers and records are no errors: they are noted,
/// warned of, and make the answer false.
pub fn deal(extension: &Extension, limit: Option<i32>, server: Option<&str>) -> Result<bool> {
    identity::check(extension)?;
    let limit = limit.filter(|n| *n > 0).ok_or_else(|| {
        Error::local(
            SqlState::INVALID_PARAMETER,
            "limit must be a positive number",
        )
        .with_hint("It is the number of records to apply: deal_sync_err_rec(1000).")
    })?;
    let servers = match server {
        Some(name) => {
            // A name without records: a mistyped one must not pass for "all well".
            let name = name.to_owned();
            if !queue::knows(extension, &name)? {
                server_oid(extension, &name)?;
            }
            vec![name]
        }
        None => queue::servers(extension, true)?,
    };
    versions::forget_old(extension)?;
    crash::note(extension)?;
    drain_all(extension, servers, i64::from(limit), true)
}

/// Makes a failed record pending again and drains its server: the record, and what waited
/// behind it. True when nothing it tried failed.
///
/// # Errors
/// 55000 in a copy; what the queue reports.
pub fn retry(extension: &Extension, id: i64) -> Result<bool> {
    identity::check(extension)?;
    let Some(server) = failed::server_of(extension, id)? else {
        report::notice(&format!("there is no record {id} that is marked failed"));
        return Ok(false);
    };
    transaction::note_drain();
    // Waits for a drain that is under way: it must not pass the record.
    lock::drain(server_oid(extension, &server)?);
    failed::retry(extension, &server, &[id.to_string()])?;
    // In case that more is left than is done here.
    transaction::wake_worker();
    drain_all(extension, vec![server], RETRY_LIMIT, false)
}

fn drain_all(
    extension: &Extension,
    servers: Vec<String>,
    limit: i64,
    with_failed: bool,
) -> Result<bool> {
    transaction::note_drain();
    let mut turns = Turns::default();
    for name in servers {
        let mut drain = Drain::new(extension, name, limit, with_failed);
        let begun = drain.begin();
        turns.add(drain, begun)?;
    }
    while !turns.links.is_empty() {
        // Over a session that was kept, a link is up from the start.
        if !turns.links.iter().any(Link::is_done)
            && event_loop::run_any(&mut turns.links) == LoopEnd::Interrupted
        {
            interrupt::check();
            return Err(Error::Canceled);
        }
        while let Some(at) = turns.links.iter().position(Link::is_done) {
            let link = turns.links.swap_remove(at);
            let (drain, place) = turns.places.swap_remove(at);
            turns.drains[drain].arrived(place, link);
            if !turns.drains[drain].is_connecting() {
                turns.serve(drain)?;
            }
        }
    }
    Ok(!turns.have_failed)
}

/// Turns of several servers, under way.
#[derive(Default)]
struct Turns<'h> {
    drains: Vec<Drain<'h>>,
    links: Vec<Link<'static>>,
    /// For each link, its drain and its place there.
    places: Vec<(usize, usize)>,
    have_failed: bool,
}

impl<'h> Turns<'h> {
    /// Sets out for a server, unless that has failed already.
    fn add(&mut self, mut drain: Drain<'h>, begun: Result<()>) -> Result<()> {
        match begun.and_then(|()| drain.open(None)) {
            Ok(opened) => {
                for (at, link) in opened {
                    self.links.push(link);
                    self.places.push((self.drains.len(), at));
                }
            }
            Err(error) => self.have_failed |= !drain.stopped(&error)?,
        }
        let is_up = !drain.lanes.is_empty() && !drain.is_connecting();
        self.drains.push(drain);
        if is_up {
            self.serve(self.drains.len() - 1)?;
        }
        Ok(())
    }

    fn serve(&mut self, at: usize) -> Result<()> {
        let visit = self.drains[at].serve()?;
        self.have_failed |= !visit.is_well();
        if let Some(mut next) = self.drains[at].after(&visit) {
            let begun = next.find_lanes();
            self.add(next, begun)?;
        }
        Ok(())
    }
}

/// What other lanes come to in the same turn.
#[derive(Clone, Copy)]
struct Beside {
    /// What others have applied is not committed yet, or they could not be served.
    others: bool,
    /// Others are served after this one.
    later: bool,
}

/// What a visit of the worker came to.
pub enum Visit {
    /// Nothing is left that can be delivered now.
    Done,
    /// There is more: about so many records are left, so many were applied.
    More { remaining: i64, done: u64 },
    /// Another session drains the server, or has its records.
    Busy,
    /// The server could not be reached or could not take the changes now.
    Failed(Error),
}

/// What [`approach`] found.
pub enum Approach {
    /// A link for a [`visit`].
    Link(Box<Link<'static>>),
    /// What there is waits for its next attempt.
    Later(Duration),
    /// Nothing to do.
    Nothing,
    /// Nothing can be served, for this owner's sake.
    Refused(Error),
}

/// Opens a link for a [`visit`]: over the idle session, or one that begins to connect. Within a transaction
/// that may end before the link is up. `refused`: owners for whom there is to be none now.
///
/// # Errors
/// Missing objects; what the catalogs report.
pub fn approach(extension: &Extension, server_name: &str, refused: &[Oid]) -> Result<Approach> {
    let not_let_in = refused;
    if pause::is_paused(extension, server_name)? {
        return Ok(Approach::Nothing);
    }
    let lanes = lanes::all(extension, server_name, false)?;
    let mut refused = None;
    for lane in lanes.iter().filter(|lane| lane.is_due()) {
        let owner = oid(&lane.owner)?;
        if not_let_in.contains(&owner) {
            continue;
        }
        let link = Account::look_up(extension, server_name, owner)
            .and_then(|account| Link::open(&Endpoint::resolve(extension, &account)?));
        match link {
            Ok(link) => return Ok(Approach::Link(Box::new(link))),
            Err(error) if error.is_about_owner() && server_oid(extension, server_name).is_ok() => {
                lanes::set_apart(extension, server_name, &lane.owner, &error)?;
                refused.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    if let Some(error) = refused {
        return Ok(Approach::Refused(error));
    }
    let waits = lanes
        .iter()
        .filter_map(|lane| lane.apart.map(|apart| apart.wait));
    let wait = waits
        .chain(failed::until_next_attempt(extension, server_name)?)
        .min();
    Ok(wait.map_or(Approach::Nothing, Approach::Later))
}

/// Applies at most `limit` of a server's oldest records over a link that is connected or has failed
/// to, and links of other owners'. To be followed by the end of the transaction, which commits there and
/// here. `closed`: keeps others from queueing meanwhile, see [`handover`](crate::delivery::handover).
///
/// # Errors
/// What the queue reports; 55P03 when the queue could not be closed; 57014 for a request to cancel.
pub fn visit(
    extension: &Extension,
    server_name: &str,
    link: Link<'static>,
    limit: i64,
    closed: bool,
) -> Result<Visit> {
    let server = server_oid(extension, server_name)?;
    if !lock::try_drain(server) {
        return Ok(Visit::Busy);
    }
    // Perhaps since the link was opened.
    if pause::is_paused(extension, server_name)? {
        remote_transaction::release(link);
        return Ok(Visit::Done);
    }
    if closed {
        lock::close(server);
    }
    let mut drain = Drain::new(extension, server_name.to_owned(), limit, false);
    drain.find_lanes()?;
    let opened = drain.open(Some(link))?;
    let (places, mut links): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
    // The server has just answered: others' links are up soon.
    while !links.iter().all(Link::is_done) {
        if event_loop::run_any(&mut links) == LoopEnd::Interrupted {
            interrupt::check();
            return Err(Error::Canceled);
        }
    }
    places
        .into_iter()
        .zip(links)
        .for_each(|(at, link)| drain.arrived(at, link));
    let served = drain.serve()?;
    if let Some(error) = served.stop {
        return Ok(Visit::Failed(error));
    }
    let remaining = lanes::all(extension, server_name, false)?;
    let remaining = remaining
        .iter()
        .filter(|lane| lane.is_served())
        .filter_map(|lane| lane.pending);
    let span = remaining.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
    Ok(match span {
        None => Visit::Done,
        Some((first, last)) if served.moved => Visit::More {
            remaining: last - first + 1,
            done: served.changes,
        },
        // What is there cannot be taken yet.
        Some(_) => Visit::Busy,
    })
}

/// Notes that a link for a [`visit`] could not be had for this owner's sake, if that is so.
///
/// # Errors
/// What writing the state reports.
pub fn note_owner(
    extension: &Extension,
    server_name: &str,
    owner: Oid,
    failure: &Error,
) -> Result<()> {
    if failure.is_about_owner()
        && let Ok(server) = server_oid(extension, server_name)
        && lock::try_drain(server)
    {
        lanes::set_apart(extension, server_name, &owner.to_u32().to_string(), failure)?;
    }
    Ok(())
}

/// Notes that a link for a [`visit`] could not be had, if its owner's lane is apart: it stays so. Says whether it
/// is; then that says nothing of the server.
///
/// # Errors
/// What reading or writing the state reports.
pub fn stays_apart(
    extension: &Extension,
    server_name: &str,
    owner: Oid,
    failure: &Error,
) -> Result<bool> {
    let owner = owner.to_u32().to_string();
    let is_apart = lanes::is_apart(extension, server_name, &owner)?;
    if is_apart && lock::try_drain(server_oid(extension, server_name)?) {
        lanes::set_apart(extension, server_name, &owner, failure)?;
    }
    Ok(is_apart)
}

/// Notes a failed attempt at a server, and when the next is planned; not while another session drains,
/// which does so itself.
///
/// # Errors
/// What writing the state reports.
pub fn note(
    extension: &Extension,
    server_name: &str,
    failure: &Error,
    next: Duration,
) -> Result<()> {
    // A server that has been dropped has no lock, and nobody drains it.
    if let Ok(server) = server_oid(extension, server_name)
        && !lock::try_drain(server)
    {
        return Ok(());
    }
    release::ask_if_refused(extension, server_name, failure)?;
    state::failed(extension, server_name, failure, Some(next))
}

/// What serving one lane came to.
#[derive(Default)]
struct Served {
    /// Failed records.
    failed: Vec<(i64, Error)>,
    /// Why no more was tried.
    stop: Option<Error>,
    /// Records that were applied.
    changes: u64,
    /// It failed beside what was applied of other lanes and is not committed yet, which may be why: the rest is
    /// tried again without that.
    deferred: bool,
    /// The connection was lost over a record that was marked failed for it: the rest is tried again over another.
    lost_one: bool,
}

/// What serving one server came to.
#[derive(Default)]
struct VisitResult {
    /// Why the server takes nothing more for now.
    stop: Option<Error>,
    /// Something failed that is noted elsewhere.
    failed: bool,
    /// Records were applied or marked failed.
    moved: bool,
    /// Records that were applied.
    changes: u64,
    /// A connection was lost over a record, which is known now.
    lost_one: bool,
}

impl VisitResult {
    fn is_well(&self) -> bool {
        self.stop.is_none() && !self.failed
    }
}

/// Serving one lane, under way.
struct DrainState {
    replay: Replay,
    served: Served,
    /// Ids of records applied and not removed from the queue yet.
    applied: Vec<i64>,
    /// Failed records before and get another chance.
    retried: Vec<String>,
    /// Records that were applied and have been removed from the queue already.
    flushed: Vec<i64>,
    /// The conflicts of failed records.
    failed_conflicts: Tally,
    /// See [`Trial::noted_until`].
    noted: i64,
    /// What is known of earlier drains.
    settled: Settled,
    /// Should the connection be lost: up to where the server has none of the records that are left.
    undone_until: Option<i64>,
}

/// Whether the remote transaction is new or that of an earlier call in the local one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    First,
    Further,
}

/// How far a lane's link is.
enum LaneLink {
    Connecting,
    /// Connected, or failed to.
    Arrived(Box<Link<'static>>),
    /// There is none.
    Failed(Error),
    /// Left out.
    None,
}

/// One server's turn.
struct Drain<'h> {
    extension: &'h Extension,
    server_name: String,
    limit: i64,
    /// Try records again that were marked failed, once nothing else is left.
    with_failed: bool,
    /// By the worker.
    is_visit: bool,
    lanes: Vec<(Lane, Part, LaneLink)>,
    /// The last record that is taken of lanes that are not apart.
    bound: i64,
    /// The last record that is taken of these owners', since then another's go to the same table.
    limits: Vec<(String, i64)>,
    /// Attempts at the server that have failed in a row.
    failures: u32,
    /// Connections that this call has lost over records of the server before.
    lost: usize,
}

impl<'h> Drain<'h> {
    fn new(extension: &'h Extension, server_name: String, limit: i64, with_failed: bool) -> Self {
        let is_visit = false;
        let lanes = Vec::new();
        let bound = i64::MAX;
        let failures = 0;
        let limits = Vec::new();
        Self {
            extension,
            server_name,
            limit,
            with_failed,
            is_visit,
            lanes,
            bound,
            limits,
            failures,
            lost: 0,
        }
    }

    /// A further turn of the same call, if its connection was lost over a record that is known now. What failed
    /// is not tried again.
    fn after(&self, visit: &VisitResult) -> Option<Self> {
        let goes_on = visit.lost_one && self.lost < MAX_LOST;
        let limit = self.limit - i64::try_from(visit.changes).unwrap_or(i64::MAX);
        (goes_on && limit > 0).then(|| Self {
            lost: self.lost + 1,
            ..Self::new(self.extension, self.server_name.clone(), limit, false)
        })
    }

    /// Locks the server against other drains and finds its lanes: none where another session has the lock, or
    /// the server is paused.
    fn begin(&mut self) -> Result<()> {
        let name = &self.server_name;
        if !lock::try_drain(server_oid(self.extension, name)?) {
            report::notice(&format!(
                "server \"{name}\" is being drained by another session"
            ));
            return Ok(());
        }
        if pause::is_paused(self.extension, name)? {
            report::advise(
                &format!("server \"{name}\" is paused: its changes stay in the queue"),
                "resume_sync() lets it have them again.",
            );
            return Ok(());
        }
        self.find_lanes()
    }

    /// Under the drain lock: what another drain has just committed is seen.
    fn find_lanes(&mut self) -> Result<()> {
        let extension = self.extension;
        let name = &self.server_name;
        failed::release(extension, name)?;
        lanes::join_idle(extension, name)?;
        self.failures = state::failures(extension, name)?;
        let lanes = lanes::all(extension, name, self.with_failed)?;
        let together = lanes
            .iter()
            .filter(|lane| lane.apart.is_none() && lane.pending.is_some());
        let together: Vec<&str> = together.map(|lane| lane.owner.as_str()).collect();
        if together.len() > 1 {
            self.bound = lanes::bound(extension, name, &together, self.limit)?;
        }
        let sharing = match lanes.iter().filter(|lane| lane.pending.is_some()).count() {
            0 | 1 => Vec::new(),
            _ => lanes::sharing(extension, name)?,
        };
        // Of those that share a table, only the one with the oldest record, up to where another's begin.
        let first = |owner: &String| {
            let lane = lanes.iter().find(|lane| lane.owner == *owner);
            lane.and_then(|lane| lane.pending).map(|(first, _)| first)
        };
        let mut held: Vec<&String> = Vec::new();
        for (one, other) in &sharing {
            if let (Some(own), Some(others)) = (first(one), first(other))
                && own > others
            {
                held.push(one);
                self.limits.push((other.clone(), own - 1));
            }
        }
        let is_held = |lane: &Lane| held.iter().any(|owner| **owner == lane.owner);
        let free = lanes.into_iter().filter(|lane| !is_held(lane));
        self.lanes = free
            .map(|lane| (lane, Part::First, LaneLink::None))
            .collect();
        Ok(())
    }

    /// Opens the lanes' links, but for one that is there; each with its place among the lanes. A visit leaves
    /// out what is apart and waits for its next attempt.
    fn open(&mut self, had: Option<Link<'static>>) -> Result<Vec<(usize, Link<'static>)>> {
        let extension = self.extension;
        let name = &self.server_name;
        let bound = self.bound;
        self.is_visit = had.is_some();
        let is_visit = self.is_visit;
        let mut had = had;
        let mut opened = Vec::new();
        for (at, (lane, part, way)) in self.lanes.iter_mut().enumerate() {
            let owner = oid(&lane.owner)?;
            if let Some(link) = had.take_if(|link| link.endpoint().account.owner == owner) {
                *way = LaneLink::Connecting;
                opened.push((at, link));
                continue;
            }
            let beyond =
                lane.apart.is_none() && lane.pending.is_some_and(|(first, _)| first > bound);
            if is_visit && !lane.is_due() || beyond {
                continue;
            }
            let link = Account::look_up(extension, name, owner).and_then(|account| {
                let endpoint = Endpoint::resolve(extension, &account)?;
                lost::settle(&endpoint)?;
                // A second call in one transaction goes on where the first one left the server.
                match transaction::take_drain(name, owner) {
                    Some(Some(session)) => {
                        *part = Part::Further;
                        Ok(Some(Link::over(session)))
                    }
                    Some(None) => Ok(None),
                    None => Link::open(&endpoint).map(Some),
                }
            });
            match link {
                Ok(Some(link)) => {
                    *way = LaneLink::Connecting;
                    opened.push((at, link));
                }
                Ok(None) => {}
                Err(error) => *way = LaneLink::Failed(error),
            }
        }
        // Another session has drained it meanwhile.
        if let Some(session) = had.filter(Link::is_up).and_then(Link::into_session) {
            session::put_back(session);
        }
        Ok(opened)
    }

    fn arrived(&mut self, at: usize, link: Link<'static>) {
        self.lanes[at].2 = LaneLink::Arrived(Box::new(link));
    }

    fn is_connecting(&self) -> bool {
        self.lanes
            .iter()
            .any(|(_, _, way)| matches!(way, LaneLink::Connecting))
    }

    /// Serves the lanes, and notes what came of it: of an owner's trouble with its lane, of the server's with
    /// the server.
    fn serve(&mut self) -> Result<VisitResult> {
        let extension = self.extension;
        let name = self.server_name.clone();
        let mut visit = VisitResult::default();
        let mut failures: Vec<(Lane, Error, bool)> = Vec::new();
        let mut was_there = false;
        let ways = self.lanes.iter().map(|(_, _, way)| way);
        let mut left = ways
            .filter(|way| matches!(way, LaneLink::Arrived(link) if link.result().is_ok()))
            .count();
        for (lane, part, way) in std::mem::take(&mut self.lanes) {
            // It may be over at the greeting, or never come to it.
            let has_no_link = matches!(&way, LaneLink::Arrived(link) if link.result().is_err());
            let error = match way {
                LaneLink::Arrived(link) => {
                    left -= usize::from(link.result().is_ok());
                    let others = transaction::has_other_drain(&name, oid(&lane.owner)?)
                        || visit.stop.is_some();
                    let beside = Beside {
                        others,
                        later: left > 0,
                    };
                    let served = self.serve_lane(&lane, *link, part, beside)?;
                    visit.changes += served.changes;
                    visit.moved |=
                        served.changes > 0 || !served.failed.is_empty() || served.deferred;
                    visit.failed |= !served.failed.is_empty();
                    visit.lost_one |= served.lost_one;
                    was_there |= served.stop.is_none();
                    served.stop
                }
                LaneLink::Failed(error) => Some(error),
                LaneLink::Connecting | LaneLink::None => continue,
            };
            match error {
                Some(error) => failures.push((lane, error, has_no_link)),
                None if lane.apart.is_some() => lanes::served(extension, &name, &lane.owner)?,
                None => {}
            }
        }
        // What was removed here is gone if this transaction commits, and so is the floor raised.
        floor::raise(extension, &name)?;
        // Where the server let others in, it is this one that does not get in.
        let is_refused = |error: &Error, has_no_link: bool| {
            let is_kept_out = match error {
                Error::Connect { .. } => true,
                Error::Timeout { .. } => has_no_link,
                _ => false,
            };
            error.is_about_owner() || (was_there && is_kept_out)
        };
        let (refused, stopped): (Vec<_>, Vec<_>) = failures
            .into_iter()
            .partition(|(_, error, has_no_link)| is_refused(error, *has_no_link));
        visit.stop = stopped.into_iter().next().map(|(_, error, _)| error);
        for (lane, error, _) in &refused {
            lanes::set_apart(extension, &name, &lane.owner, error)?;
            release::ask_if_refused(extension, &name, error)?;
        }
        if visit.stop.is_none() && was_there {
            // As long as records are left, there may be others like the one that was found.
            let goes_on = visit.lost_one
                && lanes::all(extension, &name, false)?
                    .iter()
                    .any(|lane| lane.pending.is_some());
            if !goes_on {
                state::succeeded(extension, &name)?;
            }
            visit.failed |= !refused.is_empty();
        } else if visit.stop.is_none() {
            visit.stop = refused.first().map(|(_, error, _)| error.clone());
        }
        if self.is_visit {
            // The worker notes it: it knows when it comes again.
            return Ok(visit);
        }
        match &visit.stop {
            Some(error) => visit.failed |= !self.stopped(error)?,
            None => refused
                .iter()
                .for_each(|(_, error, _)| self.warn_stopped(error)),
        }
        Ok(visit)
    }

    /// Notes and warns that work on the server has stopped. False, for the answer.
    fn stopped(&self, error: &Error) -> Result<bool> {
        state::failed(self.extension, &self.server_name, error, None)?;
        release::ask_if_refused(self.extension, &self.server_name, error)?;
        self.warn_stopped(error);
        Ok(false)
    }

    fn warn_stopped(&self, error: &Error) {
        let name = &self.server_name;
        report::warn(
            &format!("changes for server \"{name}\" could not be replayed"),
            error,
            None,
        );
    }

    /// Applies what a lane has over a link that is connected or has failed to. `others`: changes of other lanes
    /// are not committed yet, or were not applied though they are older.
    fn serve_lane(
        &self,
        lane: &Lane,
        link: Link<'static>,
        part: Part,
        beside: Beside,
    ) -> Result<Served> {
        let first = part == Part::First;
        let stopped = |error| {
            Ok(Served {
                stop: Some(error),
                ..Served::default()
            })
        };
        if let Err(error) = link.result() {
            return stopped(error);
        }
        // A second call in one transaction goes on after the first.
        let (link, unfinished, settled) = if first {
            let owner = oid(&lane.owner)?;
            match self.settle_earlier(lane, owner, link) {
                Ok(settled) => settled,
                Err(error) => return stopped(error),
            }
        } else {
            (link, Vec::new(), Settled::default())
        };
        let server = link.endpoint().account.server;
        let replay = Replay::new(link, !first);
        let served = Served::default();
        let applied = Vec::new();
        let retried = Vec::new();
        let failed_conflicts = Tally::default();
        let flushed = Vec::new();
        let noted = 0;
        let mut progress = DrainState {
            replay,
            served,
            applied,
            retried,
            flushed,
            failed_conflicts,
            noted,
            settled,
            undone_until: None,
        };
        let limits = self.limits.iter().filter(|(owner, _)| *owner == lane.owner);
        let bounds = Bounds {
            turn: if lane.apart.is_some() {
                i64::MAX
            } else {
                self.bound
            },
            order: limits.map(|(_, last)| *last).fold(i64::MAX, i64::min),
        };
        self.apply(lane, bounds, (beside, unfinished), &mut progress)?;
        self.conclude(lane, (server, first), progress)
    }

    /// What was under way over the account before: what is prepared there, which is older; what lost sessions may
    /// still commit; and what the last drain has committed without anybody hearing of it.
    fn settle_earlier(
        &self,
        lane: &Lane,
        owner: Oid,
        link: Link<'static>,
    ) -> Result<(Link<'static>, Vec<TransactionDecision>, Settled)> {
        let name = &self.server_name;
        let stubborn = !self.is_visit;
        let unfinished = resolver::settle_lane(self.extension, name, owner, stubborn)?;
        let mut link = self.settle_lost(link)?;
        let settled = outcome::settle(self.extension, name, &lane.owner, &mut link)?;
        Ok((link, unfinished, settled))
    }

    /// Leaves what was applied to the end of the local transaction, and notes it; or that it is lost.
    fn conclude(
        &self,
        lane: &Lane,
        (server, first): (Oid, bool),
        progress: DrainState,
    ) -> Result<Served> {
        let DrainState {
            mut replay,
            mut served,
            applied,
            retried,
            flushed,
            failed_conflicts,
            noted,
            settled,
            undone_until,
        } = progress;
        let extension = self.extension.clone();
        let changes = served.changes;
        let held_back = replay.held_back();
        loops::not_sent(server, &self.server_name, held_back);
        let sent = changes.saturating_sub(held_back);
        let drained = Drained {
            extension,
            changes: sent,
            conflicts: replay.take_conflicts(),
        };
        let transaction = replay.identity();
        match replay.into_link() {
            Some(link) if first && changes == 0 => remote_transaction::roll_back(link),
            // Also with nothing more to do: what an earlier call applied is still to be committed.
            Some(link) => {
                let ids = [&*flushed, &*applied].concat();
                let last = ids.iter().copied().fold(noted, i64::max);
                if last > noted {
                    batch::note_replay(self.extension, last)?;
                }
                let lane = (&*self.server_name, &*lane.owner);
                outcome::note(
                    self.extension,
                    lane,
                    transaction.as_ref(),
                    (&ids, last),
                    settled,
                )?;
                queue::remove(self.extension, &applied)?;
                fault_point!(Removed);
                let session = link
                    .into_session()
                    .ok_or(Error::internal("drain without session"))?;
                transaction::add_drain(&self.server_name, session, drained);
            }
            // What had been applied before is gone, its records too.
            None if !first || (!flushed.is_empty() && changes > 0) => {
                return Err(served
                    .stop
                    .unwrap_or(Error::internal("drain lost its session")));
            }
            None => {
                served.changes = 0;
                let lost = Error::internal("drain lost its transaction");
                let stop = served.stop.take().unwrap_or(lost);
                served.stop = Some(stop).filter(|_| !served.lost_one);
                if let Some(until) = undone_until {
                    let lane = (&*self.server_name, &*lane.owner);
                    outcome::note_lost(self.extension, lane, until, &settled)?;
                }
            }
        }
        failed::give_back(self.extension, &self.server_name, &retried)?;
        log::record(self.extension, server, &self.server_name, &failed_conflicts);
        if let Some((id, error)) = served.failed.first() {
            self.warn_failed(*id, served.failed.len(), error);
        }
        Ok(served)
    }

    /// Batch by batch. Records that were applied stay in the queue until the connection is seen to
    /// have lived through it all.
    fn apply(
        &self,
        lane: &Lane,
        bounds: Bounds,
        (Beside { others, later }, unfinished): (Beside, Vec<TransactionDecision>),
        progress: &mut DrainState,
    ) -> Result<()> {
        let name = &self.server_name;
        let owner = oid(&lane.owner)?;
        let mut remaining = self.limit;
        // Known before any is marked failed here.
        let mut again = if self.with_failed {
            failed::oldest(self.extension, name, owner, MAX_FAILED)?
        } else {
            Vec::new()
        };
        let (first, last) = lane.pending.unwrap_or((i64::MAX, 0));
        let noted = batch::noted_replay(self.extension)?.filter(|noted| *noted >= first);
        // What is noted for all lanes says nothing where it is known of this one.
        let noted = match (noted, progress.settled.until) {
            (Some(noted), Some(until))
                if noted <= until || !queue::is_of(self.extension, noted, name, &lane.owner)? =>
            {
                None
            }
            (noted, _) => noted,
        };
        let mut trial = Trial {
            maybe_until: noted.unwrap_or_default(),
            isolates: self.failures >= PATIENT_TRIES,
            beside_others: others,
            before_others: later,
            may_pass: !unfinished.is_empty()
                || failed::until_next_attempt(self.extension, name)?.is_some()
                || lanes::any_apart(self.extension, name)?
                || failed::is_copying(self.extension, name)?,
            unfinished,
            ..Trial::default()
        };
        // Else it is that of another lane, and what it hides of this one is not known.
        if let Some(noted) = noted.filter(|noted| *noted <= last)
            && queue::is_pending(self.extension, noted)?
        {
            trial.replayed_until = Some(noted);
        }
        if !others {
            let due = failed::due(self.extension, name, owner, self.with_failed, MAX_FAILED)?;
            failed::retry(self.extension, name, &due)?;
            trial.alone = due.iter().filter_map(|id| id.parse().ok()).collect();
            progress.retried = due;
        }
        let at_once = match self.failures {
            failures if failures >= 2 * PATIENT_TRIES => 1,
            failures if failures >= PATIENT_TRIES => ISOLATED,
            _ => i64::MAX,
        };
        let mut claims = Claims::begin(self.extension, name, owner, bounds)?;
        while remaining > 0
            && progress.served.stop.is_none()
            && progress.served.failed.len() < MAX_FAILED
        {
            let units = claims.next(remaining.min(at_once))?;
            if units.is_empty() {
                // What waited for records that were applied; then those marked failed before.
                queue::remove(self.extension, &progress.applied)?;
                progress.flushed.append(&mut progress.applied);
                if !failed::release(self.extension, name)? {
                    again.truncate(remaining.min(i64::from(i32::MAX)) as usize);
                    if !again.is_empty() {
                        failed::retry(self.extension, name, &again)?;
                        progress.retried.append(&mut again);
                    } else if !self.try_together(&mut claims, progress)? {
                        break;
                    }
                }
                claims = Claims::begin(self.extension, name, owner, bounds)?;
                continue;
            }
            fault_point!(Claimed);
            remaining -= units
                .iter()
                .map(|unit| unit.records.len() as i64)
                .sum::<i64>();
            let budget = MAX_FAILED - progress.served.failed.len();
            let mut batch =
                RecordBatch::new(self.extension, name, owner, units, budget, &mut trial)?;
            batch.apply(&mut progress.replay, &mut claims, remaining.min(at_once))?;
            let noted = batch.noted();
            let outcome = batch.settle()?;
            fault_point!(Applied);
            progress.served.changes += outcome.applied.len() as u64;
            progress.applied.extend(outcome.applied);
            progress.served.failed.extend(outcome.failed);
            progress.failed_conflicts.merge(outcome.conflicts);
            progress.served.stop = outcome.stop;
            progress.served.deferred = outcome.deferred;
            progress.served.lost_one |= outcome.lost_one;
            progress.noted = noted;
            let is_undone = trial.maybe_until == 0 || trial.gives_up_doubt;
            progress.undone_until = is_undone.then_some(noted.max(trial.maybe_until));
            if outcome.deferred {
                break;
            }
        }
        Ok(())
    }

    /// Tries what has failed in this turn with what waits for it. Says whether any of it is there now, and has been
    /// removed from the queue.
    fn try_together(&self, claims: &mut Claims<'_>, progress: &mut DrainState) -> Result<bool> {
        let served = &mut progress.served;
        let outcome = together::try_together(
            (self.extension, &self.server_name),
            &served.failed,
            &mut progress.replay,
            claims,
        )?;
        queue::remove(self.extension, &outcome.applied)?;
        served.changes += outcome.applied.len() as u64;
        served
            .failed
            .retain(|(id, _)| !outcome.settled.contains(id));
        progress.flushed.extend(outcome.applied);
        served.stop = outcome.stop;
        Ok(served.stop.is_none() && !outcome.settled.is_empty())
    }

    fn warn_failed(&self, id: i64, count: usize, error: &Error) {
        let name = &self.server_name;
        let message = match count {
            1 => format!(
                "change {id} could not be applied on server \"{name}\" and was marked failed"
            ),
            _ => format!(
                "{count} changes could not be applied on server \"{name}\" and were marked failed, the \
                 first is {id}"
            ),
        };
        let hint = "See sync_err_rec. Remove the cause and call retry_sync_err_rec(), or discard the \
                    change by deleting its row there.";
        report::warn(&message, error, Some(hint));
    }

    /// Before anything is applied: the owner's backends of connections lost in doubt must be gone.
    fn settle_lost(&self, mut link: Link<'static>) -> Result<Link<'static>> {
        let mine = link.endpoint().account.owner.to_u32().to_string();
        for one in queue::lost(self.extension, &self.server_name)? {
            if one.owner == mine {
                link = lost::terminate(link, &one.session)?;
                if let Some(xact) = one.session.xact
                    && let Some(committed) = remote_transaction::outcome(&mut link, xact)?
                {
                    queue::settle_lost(self.extension, &self.server_name, &one, committed)?;
                }
                queue::forget_lost(self.extension, &one)?;
            }
        }
        Ok(link)
    }
}
