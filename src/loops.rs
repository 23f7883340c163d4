//! Changes that have come back to where they have been. They are not sent and not captured, counted for each
//! server, and reported once a session.
//!
//! Where masters know each other's connections by the guard name, nothing comes back. Where the names differ,
//! each would send on what it receives, for ever, and older values would follow newer ones.

use crate::error::{Error, SqlState};
use crate::local::{ProcessLocal, process_local};
use crate::pg::{Oid, report};
use crate::stats;
use std::cell::RefCell;
use std::collections::HashSet;

const HINT: &str = "The loop guards of the two sides go by different names. Give the servers (or triggers) on \
                    both sides the same application_name.";

process_local! {
    /// Servers that the session was warned of.
    static NOTIFIED: RefCell<HashSet<u32>> = RefCell::default();
}

/// So many changes were not sent to a server, because they have been there.
pub fn not_sent(server: Oid, server_name: &str, changes: u64) {
    if changes > 0 {
        let message = format!("changes that came from server \"{server_name}\" are not sent back");
        note(server, changes, &message);
    }
}

/// A change for a server was not captured, because it comes from this database.
pub fn not_captured(server: Oid, server_name: &str) {
    let message =
        format!("changes that come back to this database are not sent to server \"{server_name}\"");
    note(server, 1, &message);
}

fn note(server: Oid, changes: u64, message: &str) {
    stats::looped(server, changes);
    if NOTIFIED.with_borrow_mut(|notified| notified.insert(server.to_u32())) {
        let reason = Error::local(
            SqlState::OBJECT_NOT_READY,
            "They would circle between the databases",
        );
        report::warn(message, &reason, Some(HINT));
    }
}
