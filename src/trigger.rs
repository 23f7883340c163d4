//! `sync_dml`: the guards against copies, echoes and circles, then capture.

use crate::atomic::readiness;
use crate::capture::descriptor;
use crate::capture::row::{self, Captured};
use crate::change::Op;
use crate::error::{Error, Result, SqlState};
use crate::pg::trigger::Event;
use crate::{guc, identity, loops, stats, transaction};

/// Captures one event, unless the database is a copy, the session is one of ours, or its changes have come
/// back to where they were made.
///
/// # Errors
/// Everything that makes the user's statement fail: a trigger of the wrong kind or with wrong
/// arguments, what [`check_order`] finds and what capturing the row reports.
pub fn fire(event: &Event<'_>) -> Result<()> {
    let op = event.op()?;
    if identity::is_copy()? {
        // A connection that brings changes need not know.
        if guc::is_path(c"") {
            identity::warn();
        }
        return Ok(());
    }
    let descriptor = descriptor::of_trigger(event)?;
    if descriptor.guards_against_session() {
        stats::guarded(descriptor.account.server);
        return Ok(());
    }
    descriptor.check_event(op)?;
    let Some(route) = descriptor.route_of_session() else {
        loops::not_captured(descriptor.account.server, &descriptor.account.server_name);
        return Ok(());
    };
    check_order(event, op)?;
    readiness::require(&descriptor)?;
    let add = |change: &Captured<'_>| transaction::add_change(&descriptor, &route, change);
    row::changes_of(event, op, &descriptor, add)
}

/// Refuses to capture a row's change after a later one. That happens where another AFTER ROW trigger
/// fires first and changes the same row: its statement's events come before the one under way, and
/// the older row would be sent last.
fn check_order(event: &Event<'_>, op: Op) -> Result<()> {
    let trigger = event.trigger_oid();
    if matches!(op, Op::Update | Op::Delete) && event.row()?.is_own() && event.is_nested() {
        transaction::note_superseded(trigger, event.row()?.stored());
    }
    let new = match op {
        Op::Insert => event.row()?,
        Op::Update => event.new_row()?,
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
