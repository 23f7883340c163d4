//! Connections are given back where a server grants no more of them.
//!
//! A session that is refused a connection queues its changes, and all later sessions must queue behind these. The
//! drain needs a connection as well, while sessions hold theirs idle. So a drain that was refused a connection
//! announces this, as a change of the server's definition is announced, and wakes the sessions of the database: each
//! closes its idle connections. A pooler whose pool is full refuses nobody; it lets a client in and makes it wait. So
//! a drain that gets no answer does the same. A server's limit holds for all databases of the cluster, so the
//! announcement goes to them as well: their sessions close idle connections to the same host and port. A transaction
//! that must not queue fails over a refusal and asks like a drain; otherwise idle sessions would keep it from being
//! delivered for as long as they stay.
//!
//! A session that was refused a connection does not ask again for a moment.

use crate::connect::account::{Account, AccountKey, oid, server_oid};
use crate::connect::endpoint::Endpoint;
use crate::connect::session;
use crate::error::{Error, Result};
use crate::local::{ProcessLocal, process_local};
use crate::pg::invalidation::{self, Nudged};
use crate::pg::spi::Extension;
use crate::queue::lanes;
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
    if !failure.is_unreachable() {
        return Ok(());
    }
    // One that has been dropped has no connections either.
    let Ok(server) = server_oid(extension, server_name) else {
        return Ok(());
    };
    session::close(Some(server));
    invalidation::announce_server(server);
    let mut whose = Nudged::Database;
    if failure.is_connection_refusal() || matches!(failure, Error::Timeout { .. }) {
        for lane in lanes::all(extension, server_name, true)? {
            let account = Account::look_up(extension, server_name, oid(&lane.owner)?);
            if let Ok(endpoint) = account.and_then(|one| Endpoint::resolve(extension, &one)) {
                invalidation::announce_place(endpoint.host());
                whose = Nudged::Cluster;
            }
        }
    }
    transaction::nudge_sessions(whose);
    Ok(())
}

/// A delivery has failed: if the server refused it a connection, gives back those that this session holds
/// to it, and remembers that. `must_not_queue`: asks all others for those that they hold idle.
pub fn note_refusal(endpoint: &Endpoint, failure: &Error, must_not_queue: bool) {
    if failure.is_connection_refusal() {
        session::close(Some(endpoint.account.server));
        let refusal = (Instant::now(), failure.clone());
        let key = endpoint.account.key();
        let before = REFUSED.with_borrow_mut(|refused| refused.insert(key, refusal));
        let is_first = before.is_none_or(|(at, _)| at.elapsed() >= REFUSAL_MEMORY);
        if must_not_queue && is_first {
            invalidation::announce_place(endpoint.host());
            invalidation::nudge_sessions(Nudged::Cluster);
        }
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
