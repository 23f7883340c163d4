//! A lost delivery stays lost: the server's session of a connection lost in doubt must be gone
//! before anything newer is applied there, or it might still commit what it holds, behind it.
//!
//! The session is ended over a new connection, and its end is waited for. [`LostSession`] says what identifies
//! it. A process that may be the session counts as the session, whichever role it has. A session that the account
//! may not end is waited for.

use super::event_loop;
use super::feed::Fixed;
use super::link::{Ending, Link};
use super::remote_transaction::{release, run, value};
use crate::connect::endpoint::Endpoint;
use crate::connect::lost_session::{LostSession, LostState};
use crate::error::{Error, Result};
use crate::guc;
use crate::local::{ProcessLocal, process_local};
use crate::sql::{AS_LOGGED_IN, BEGIN_ON_PRIMARY, end_session};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Longest time the server waits for a backend to end, in milliseconds.
const BACKEND_EXIT_TIMEOUT_MS: u128 = 2_000;

process_local! {
    /// Sessions lost by transactions that failed over it (`sync`), by user mapping: their queue
    /// rows would have been rolled back, so the current session at least remembers.
    static LOST: RefCell<HashMap<u32, Vec<LostSession>>> = RefCell::default();
}

/// Sees to it that a session lost by a transaction that fails over it commits nothing later: ends it at
/// once if the server can be reached, else remembers it for the current session.
pub fn end_or_remember(endpoint: &Rc<Endpoint>, lost: &LostSession) {
    let ended = Link::connect(endpoint).and_then(|link| end_unless_asked(link, lost));
    if let Ok(link) = ended {
        return release(link);
    }
    let mapping = endpoint.account.mapping.to_u32();
    LOST.with_borrow_mut(|all| all.entry(mapping).or_default().push(lost.clone()));
}

/// Sees to it that what the current session remembers for the endpoint is gone.
///
/// # Errors
/// A transient error when a session will not go, and what connecting reports.
pub fn settle(endpoint: &Rc<Endpoint>) -> Result<()> {
    let mapping = endpoint.account.mapping.to_u32();
    let remembered = LOST
        .with_borrow(|lost| lost.get(&mapping).cloned())
        .unwrap_or_default();
    if remembered.is_empty() {
        return Ok(());
    }
    let link = remembered
        .iter()
        .try_fold(Link::open(endpoint)?, terminate)?;
    LOST.with_borrow_mut(|lost| lost.remove(&mapping));
    release(link);
    Ok(())
}

/// [`terminate`], but a request to cancel is left pending.
fn end_unless_asked(mut link: Link<'static>, lost: &LostSession) -> Result<Link<'static>> {
    begin(&mut link, lost);
    match event_loop::run(std::slice::from_mut(&mut link)) {
        event_loop::LoopEnd::Done => finish(link, lost),
        event_loop::LoopEnd::Interrupted => Err(Error::Canceled),
    }
}

/// Ends a lost session over a link and waits until it is gone; gives the link back at rest.
///
/// # Errors
/// A transient error when it will not go; what the link reports.
pub fn terminate<'f>(mut link: Link<'f>, lost: &LostSession) -> Result<Link<'f>> {
    begin(&mut link, lost);
    run(&mut link)?;
    finish(link, lost)
}

fn begin(link: &mut Link<'_>, lost: &LostSession) {
    let texts = [
        BEGIN_ON_PRIMARY,
        AS_LOGGED_IN,
        &end_session(lost, patience()),
        "COMMIT",
    ];
    link.run(Fixed::new(texts), Ending::Open);
}

fn finish<'f>(link: Link<'f>, lost: &LostSession) -> Result<Link<'f>> {
    link.result()?;
    let state = LostState::parse(value(&link, 1).unwrap_or_default());
    let server = link.endpoint().account.server_name.clone();
    let pid = lost
        .backend_pid
        .map_or("the backend".to_owned(), |pid| format!("backend {pid}"));
    match state {
        LostState::Gone => Ok(link),
        LostState::Ending => Err(Error::Timeout {
            server,
            what: "ending a backend that may hold an earlier delivery",
            millis: patience() as i64,
        }),
        LostState::OfOther(role) => Err(Error::Lingering {
            server,
            reason: format!("There, {pid} of role \"{role}\" may still commit it."),
            hint: "Another role's backend cannot be ended over this user mapping: end it there with \
                   pg_terminate_backend(), or wait until it has ended.",
        }),
        LostState::MayBegin => Err(Error::Lingering {
            server,
            reason: "A pooler may still hand it to a backend there.".to_owned(),
            hint: "It cannot begin any more once pg_rowsync.delivery_timeout has passed there.",
        }),
    }
}

/// How long the server waits for a backend to end, in milliseconds.
fn patience() -> u128 {
    (guc::delivery_timeout().as_millis() / 2).clamp(1, BACKEND_EXIT_TIMEOUT_MS)
}
