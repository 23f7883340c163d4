//! Connections are given back where a server grants no more of them.
//!
//! Who is refused one queues, and then all do; the drain needs a connection as well, while sessions hold
//! theirs idle. So a drain that was refused one announces it, as a change of the server's definition is
//! announced, and wakes the sessions of the database: each closes what it holds idle. A pooler whose pool is
//! full refuses nobody: who comes is let in and waits, so a drain that gets no answer does the same. Who was
//! refused one does not ask again for a moment.

use crate::connect::account::{AccountKey, server_oid};
use crate::connect::endpoint::Endpoint;
use crate::connect::session;
use crate::error::{Error, Result};
use crate::local::{ProcessLocal, process_local};
use crate::pg::invalidation;
use crate::pg::spi::Extension;
use crate::transaction;
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a session that was refused a connection queues without asking again.
const REFUSAL_MEMORY: Duration = Duration::from_secs(1);

process_local! {
    /// Refusals, and when.
    static REFUSED: RefCell<HashMap<AccountKey, (Instant, Error)>> = RefCell::default();
}

/// A drain has failed: if the server refused it a connection, or kept it waiting for one as far as can be told,
/// asks for those that sessions hold idle. They are closed once the current transaction has committed.
///
/// # Errors
/// What the catalogs report.
pub fn ask_if_refused(extension: &Extension, server_name: &str, failure: &Error) -> Result<()> {
    if failure.is_unreachable() {
        // One that has been dropped has no connections either.
        if let Ok(server) = server_oid(extension, server_name) {
            session::close(Some(server));
            invalidation::announce_server(server);
            transaction::nudge_sessions();
        }
    }
    Ok(())
}

/// A delivery has failed: if the server refused it a connection, gives back those that this session holds
/// to it, and remembers that.
pub fn note_refusal(endpoint: &Endpoint, failure: &Error) {
    if failure.is_connection_refusal() {
        session::close(Some(endpoint.account.server));
        let refusal = (Instant::now(), failure.clone());
        REFUSED.with_borrow_mut(|refused| refused.insert(endpoint.account.key(), refusal));
    }
}

/// Refuses to ask a server for a connection that has just refused one.
///
/// # Errors
/// The refusal.
pub fn check(endpoint: &Endpoint) -> Result<()> {
    let key = endpoint.account.key();
    if session::is_idle(&key) {
        return Ok(());
    }
    REFUSED.with_borrow_mut(|refused| match refused.get(&key) {
        None => Ok(()),
        Some((at, failure)) if at.elapsed() < REFUSAL_MEMORY => Err(failure.clone()),
        Some(_) => {
            refused.remove(&key);
            Ok(())
        }
    })
}
