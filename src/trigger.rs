//! `sync_dml`: the guard, then capture.

use crate::capture::{descriptor, row};
use crate::change::Op;
use crate::error::{Error, Result, SqlState};
use crate::pg::trigger::Event;
use crate::{stats, transaction};

/// Captures one event, unless the session is one of ours.
///
/// # Errors
/// Everything that makes the user's statement fail: a trigger of the wrong kind or with wrong
/// arguments, what [`check_order`] finds and what capturing the row reports.
pub fn fire(event: &Event<'_>) -> Result<()> {
    let op = event.op()?;
    let descriptor = descriptor::of_trigger(event)?;
    if descriptor.guards_against_session() {
        stats::guarded(descriptor.account.server);
        return Ok(());
    }
    check_order(event, op)?;
    row::changes_of(event, op, &descriptor, |change| transaction::add_change(&descriptor, change))
}

/// Refuses to capture a row's change after a later one. That happens where another AFTER ROW trigger
/// fires first and changes the same row: its statement's events come before the one under way, and
/// the older row would be sent last.
fn check_order(event: &Event<'_>, op: Op) -> Result<()> {
    let trigger = event.trigger_oid();
    if matches!(op, Op::Update | Op::Delete) && event.row().is_own() && event.is_nested() {
        transaction::note_superseded(trigger, event.row().stored());
    }
    let new = match op {
        Op::Insert => event.row(),
        Op::Update => event.new_row(),
        Op::Delete | Op::Truncate => return Ok(()),
    };
    if transaction::was_superseded(trigger, new.stored()) && event.is_superseded(new) {
        return Err(Error::local(
            SqlState::new("27000"),
            "row was changed again by another trigger before its change could be captured",
        )
        .with_hint(
            "Triggers fire in the order of their names: give the trigger that calls sync_dml a name \
             that sorts before the other's.",
        ));
    }
    Ok(())
}
