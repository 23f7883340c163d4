//! A lost delivery stays lost: the server's backend of a connection lost in doubt must be gone
//! before anything newer is applied there, or it might still commit what it holds, behind it.
//!
//! The backend is ended by its own role over a new connection, and waited for. A process ID that
//! the server has given to another session of the same role and database meanwhile costs that
//! session its connection, no more.

use super::endpoint::Endpoint;
use super::feed::Fixed;
use super::link::{Ending, Link};
use super::{drive, session};
use crate::error::{Error, Result};
use crate::guc;
use crate::pg::interrupt;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Longest time the server waits for the backend to end.
const PATIENCE_MS: u128 = 2_000;

thread_local! {
    /// Backends lost by transactions that failed over it (`sync`), by user mapping: their queue
    /// rows would have been rolled back, so the current session at least remembers.
    static LOST: RefCell<HashMap<u32, Vec<i32>>> = RefCell::default();
}

/// Sees to it that a backend lost by a transaction that fails over it commits nothing later: ends it at
/// once if the server can be reached, else remembers it for the current session.
pub fn end_or_remember(endpoint: &Rc<Endpoint>, backend_pid: i32) {
    let ended = Link::connect(endpoint).and_then(|link| terminate_unless_asked(link, backend_pid));
    if let Ok(link) = ended {
        return link.into_session().into_iter().for_each(session::put_back);
    }
    let mapping = endpoint.account.mapping.to_u32();
    LOST.with_borrow_mut(|lost| lost.entry(mapping).or_default().push(backend_pid));
}

/// Sees to it that what the current session remembers for the endpoint is gone.
///
/// # Errors
/// A transient error when a backend will not go, and what connecting reports.
pub fn settle(endpoint: &Rc<Endpoint>) -> Result<()> {
    let mapping = endpoint.account.mapping.to_u32();
    let pids = LOST.with_borrow(|lost| lost.get(&mapping).cloned()).unwrap_or_default();
    if pids.is_empty() {
        return Ok(());
    }
    let link = terminate(Link::open(endpoint)?, &pids)?;
    LOST.with_borrow_mut(|lost| lost.remove(&mapping));
    link.into_session().into_iter().for_each(session::put_back);
    Ok(())
}

/// [`terminate`], but a request to cancel is left pending.
fn terminate_unless_asked(mut link: Link<'static>, backend_pid: i32) -> Result<Link<'static>> {
    begin(&mut link, &[backend_pid]);
    match drive::drive(std::slice::from_mut(&mut link)) {
        drive::Stop::Done => finish(link),
        drive::Stop::Interrupted => Err(Error::Canceled),
    }
}

/// Ends the backends over a link and waits until they are gone; gives the link back at rest.
///
/// # Errors
/// A transient error when one of them will not go; what the link reports.
pub fn terminate<'f>(mut link: Link<'f>, pids: &[i32]) -> Result<Link<'f>> {
    begin(&mut link, pids);
    run(&mut link)?;
    finish(link)
}

fn begin(link: &mut Link<'_>, pids: &[i32]) {
    let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
    let sql = format!(
        "SELECT pg_catalog.bool_and(pg_catalog.pg_terminate_backend(pid, {})) \
         FROM pg_catalog.pg_stat_activity WHERE pid IN ({}) AND usename = CURRENT_USER \
         AND datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid()",
        patience(),
        pids.join(", ")
    );
    link.run(Fixed::new([sql]), Ending::Open);
}

fn finish(link: Link<'_>) -> Result<Link<'_>> {
    link.result()?;
    let gone = link.answers().first().and_then(|rows| rows.first()).cloned().flatten();
    // NULL: none of them is there any more.
    if gone.as_deref() == Some("f") {
        return Err(Error::Timeout {
            server: link.endpoint().account.server_name.clone(),
            what: "ending a backend that may hold an earlier delivery",
            millis: patience() as i64,
        });
    }
    Ok(link)
}

/// How long the server waits for backends to end, in milliseconds.
fn patience() -> u128 {
    (guc::delivery_timeout().as_millis() / 2).clamp(1, PATIENCE_MS)
}

/// Runs a link that commits nothing to its end.
///
/// # Errors
/// What the link reports; a request to cancel is raised.
pub fn run(link: &mut Link<'_>) -> Result<()> {
    if drive::drive(std::slice::from_mut(link)) == drive::Stop::Interrupted {
        interrupt::check();
        return Err(Error::Canceled);
    }
    link.result()
}
