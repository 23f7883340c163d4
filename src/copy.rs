//! Copies: the rows that a table has when it is attached, brought over once, while it is written.
//!
//! # How it stays exact
//! While a table is being copied, its changes wait in the queue behind the copy (see
//! [`crate::queue::copies`]). A background worker goes through the table in ranges of its key, a step each. A
//! step takes a snapshot of its own, looks which rows the queue has changes of, and in one transaction on the
//! server brings these to what the snapshot shows (written, or removed if they are not there), then adds the
//! next range as the snapshot shows it. So after every step the target has exactly the rows of the ranges so
//! far as of one moment: a part of a state that the source has had, under whatever constraints. The records
//! that the snapshot has seen are done with. Nothing is replayed, so nothing comes back and nothing
//! overtakes.
//!
//! Tables tied by foreign keys that are registered in one transaction share their steps: those that are
//! referred to come first, and all of them are caught up in every step.
//!
//! # What could go wrong
//! - A transaction that has looked at the queue before the copy was seen delivers directly. The copy begins when
//!   all that wrote the table then have ended, and so has the drain under way.
//! - The connection is lost, or a process ends, between the commit there and the one here. Before it commits
//!   there, a step notes its transaction's number there, and what it is about to bring. Whoever goes on asks
//!   what became of that transaction, after an advisory lock that every step takes has shown that it has ended.
//! - At the end, the last changes are brought under a short lock of the table. Where a transaction holds it for
//!   long, it is left to the queue to deliver what is left, in order.
//! - No snapshot outlives a step, and a step takes no more rows than go within a fraction of a second.

pub mod copier;
mod held;
mod plan;
mod referring;
pub mod registry;
mod steps;
mod target;

use self::plan::Plan;
use self::registry::Existing;
use crate::error::{Error, Result, SqlState};
use crate::pg::spi::{self, Extension};
use crate::pg::{Oid, context, report};
use crate::{identity, transaction, worker};

/// Registers a copy of a table to a server that it is sent to, and gives its number. The worker is woken once
/// the transaction has committed.
///
/// # Errors
/// 42501 for who does not own the table; 55000 in a copy of a database; what [`Plan::new`] and
/// [`registry::register`] report; 22023 for another word than error, truncate or merge.
pub fn start(extension: &Extension, rel: Oid, server: &str, existing: &str) -> Result<i64> {
    let id = register(extension, rel, server, existing)?;
    advise(extension, &format!("copy {id} waits"))?;
    Ok(id)
}

/// As [`start`], without a look for a worker.
///
/// # Errors
/// As for [`start`].
pub fn register(extension: &Extension, rel: Oid, server: &str, existing: &str) -> Result<i64> {
    identity::check(extension)?;
    let existing = Existing::parse(existing)?;
    check_owner(extension, rel)?;
    let plan = Plan::new(extension, rel, server, None)?;
    let id = registry::register(extension, &plan, existing)?;
    transaction::wake_worker();
    Ok(id)
}

/// Tells what waits for a worker, if there is none.
///
/// # Errors
/// What [`worker::state`] reports.
pub fn advise(extension: &Extension, what: &str) -> Result<()> {
    if matches!(worker::state(extension)?, "none" | "stopped") {
        report::advise(
            &format!("{what} for a worker, of which there is none"),
            "Call start_sync_worker(), or put pg_rowsync into shared_preload_libraries.",
        );
    }
    Ok(())
}

/// Ends the copies of a table to a server.
///
/// # Errors
/// What [`registry::cancel`] reports.
pub fn cancel(extension: &Extension, rel: Oid, server: &str) -> Result<()> {
    if registry::cancel(extension, rel, server)? {
        transaction::wake_worker();
    }
    Ok(())
}

/// A copy may empty the target, over the owner's account.
fn check_owner(extension: &Extension, rel: Oid) -> Result<()> {
    let rows = spi::read(
        extension,
        "SELECT pg_has_role($1::oid, c.relowner, 'USAGE') \
         FROM pg_class c WHERE c.oid = $2::oid",
        &[
            Some(&context::user().to_u32().to_string()),
            Some(&rel.to_u32().to_string()),
        ],
    )?;
    if rows
        .first()
        .and_then(|row| row.first())
        .is_none_or(|may| may.as_deref() == Some("t"))
    {
        return Ok(());
    }
    let message = "only the owner of a table may copy it to a server";
    Err(Error::local(SqlState::INSUFFICIENT_PRIVILEGE, message))
}
