//! `sync_dml`: the guard, then capture.

use crate::capture::{descriptor, row};
use crate::error::Result;
use crate::pg::context;
use crate::pg::trigger::Event;
use crate::transaction;

/// Captures one event, unless the session is one of ours.
///
/// # Errors
/// Everything that makes the user's statement fail: a trigger of the wrong kind or with wrong
/// arguments, and what capturing the row reports.
pub fn fire(event: &Event<'_>) -> Result<()> {
    let op = event.op()?;
    let descriptor = descriptor::of_trigger(event)?;
    // The session's own setting: what it says in pg_stat_activity may lag behind.
    if descriptor.guards_against(context::application_name()) {
        return Ok(());
    }
    let change = row::change_of(event, op, &descriptor)?;
    transaction::add_change(&descriptor, &change)
}
