//! Waits for links, under their deadlines, on the process latch.

use super::feed::Fixed;
use super::link::{Ending, Link};
use crate::fault::fault_point;
use crate::guc;
use crate::pg::wait::{self, Interest};
use crate::pg::{interrupt, memory};
use crate::sql::{self, AS_LOGGED_IN};
use std::time::{Duration, Instant};

/// Why [`run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoopEnd {
    /// All links are done.
    Done,
    /// A cancel or termination was requested; links may be in the middle of anything.
    Interrupted,
}

/// Runs the links until all are done. A request to cancel is not acted upon here: what it means
/// depends on what has been sent.
pub fn run(links: &mut [Link<'_>]) -> LoopEnd {
    run_until(links, |links| links.iter().all(Link::is_done))
}

/// Runs the links until one of them is done that was not, or all are.
pub fn run_any(links: &mut [Link<'_>]) -> LoopEnd {
    let done = |links: &[Link<'_>]| links.iter().filter(|l| l.is_done()).count();
    let before = done(links);
    run_until(links, |links| {
        done(links) > before || done(links) == links.len()
    })
}

/// Runs links until all that they have to say has left, or they are done.
pub fn send(links: &mut [Link<'_>]) -> LoopEnd {
    run_until(links, |links| links.iter().all(Link::has_sent))
}

fn run_until(links: &mut [Link<'_>], over: impl Fn(&[Link<'_>]) -> bool) -> LoopEnd {
    loop {
        links.iter_mut().for_each(Link::step);
        if links.iter().any(Link::commit_sent) {
            interrupt::commit_sent();
            fault_point!(CommitSent if links.iter().all(Link::has_sent));
            memory::commit_sent();
        }
        if over(links) {
            return LoopEnd::Done;
        }
        if interrupt::pending() {
            return LoopEnd::Interrupted;
        }
        pause(links, Duration::MAX);
    }
}

/// Runs the links for a while: until one of them is done, something wakes this process, or the time
/// is up.
pub fn run_for(links: &mut [Link<'_>], longest: Duration) {
    links.iter_mut().for_each(Link::step);
    if !links.iter().any(Link::is_done) && !interrupt::pending() {
        pause(links, longest);
    }
}

/// Asks the servers to cancel what the links are running, over connections of their own (libpq's
/// PQcancel blocks), and follows each link to its end under `pg_rowsync.cancel_timeout`; what has
/// not answered by then is in doubt. Links that have not asked for a commit are simply given up:
/// closing their connections rolls back. The sessions must not be used again: the cancel request
/// might reach what they run next.
pub fn cancel(links: &mut [Link<'_>]) {
    let deadline = Instant::now() + guc::cancel_timeout();
    let mut helpers: Vec<Link<'_>> = links
        .iter()
        .filter(|link| !link.is_done() && link.commit_sent())
        .filter_map(|link| {
            let sql = sql::cancel(link.transaction()?)?;
            let mut helper = Link::connect(link.endpoint()).ok()?;
            helper.run(Fixed::new([AS_LOGGED_IN.to_owned(), sql]), Ending::Open);
            Some(helper)
        })
        .collect();
    loop {
        links.iter_mut().chain(&mut helpers).for_each(Link::step);
        let mut waiting: Vec<&mut Link<'_>> = links
            .iter_mut()
            .filter(|l| !l.is_done() && l.commit_sent())
            .collect();
        if waiting.is_empty() {
            return;
        }
        if Instant::now() >= deadline {
            let reason = "The server did not answer the cancel request";
            waiting.iter_mut().for_each(|link| link.in_doubt(reason));
            return;
        }
        // Serves barriers and the like; a second request to cancel changes nothing.
        interrupt::pending();
        let interests: Vec<Interest> = links
            .iter()
            .filter(|l| l.commit_sent())
            .chain(&helpers)
            .filter_map(Link::interest)
            .collect();
        wait::wait(
            &interests,
            deadline.saturating_duration_since(Instant::now()),
        );
    }
}

/// Lets links whose time is up expire, else waits until something may have changed, or for `longest`.
fn pause(links: &mut [Link<'_>], longest: Duration) {
    let now = Instant::now();
    let mut expired = false;
    let answered = |link: &Link<'_>| link.interest().is_some_and(|i| wait::is_ready(&i));
    for link in links
        .iter_mut()
        .filter(|l| l.deadline().is_some_and(|deadline| deadline <= now))
    {
        if answered(link) && link.may_be_late(now) {
            continue;
        }
        link.expire();
        expired = true;
    }
    if expired {
        return;
    }
    let until = links.iter().filter_map(Link::deadline).min();
    let time = until
        .map_or(longest, |t| t.saturating_duration_since(now))
        .min(longest);
    let mut waiting = links.iter_mut().filter(|l| !l.is_done());
    if let (Some(alone), None) = (waiting.next(), waiting.next()) {
        return alone.wait(time);
    }
    let interests: Vec<Interest> = links.iter().filter_map(Link::interest).collect();
    wait::wait(&interests, time);
}
