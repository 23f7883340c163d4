//! Failed records that the server takes only together with what waits behind them.
//!
//! What does not depend on a failed record goes past it. That may make the state impossible that the record leads
//! to: another row has the unique value that its row was to have for a while, the row that it refers to is gone.
//! What follows of its own rows, and would put that right, waits behind it. So a record that is refused over
//! other rows is tried once more at the end of a drain, with all that waits for it, as their net effect.

use super::DrainState;
use super::batch::is_about_states;
use crate::error::Result;
use crate::pg::spi::Extension;
use crate::queue;
use crate::queue::claim::{Apart, Claims, Unit};
use std::collections::HashSet;

/// Failed and waiting records of a lane that are held in memory, at most. With more, each waits for a person.
const MAX_APART: i64 = 50_000;

/// Records that are sent for this in one turn, at most: each group may be refused again.
const MAX_SENT: usize = 200_000;

/// Tries what has failed in this turn. Says whether any of it is there now; then that has been removed from the
/// queue.
///
/// # Errors
/// What the queue reports. A failure that says nothing of records stops the turn.
pub(super) fn try_together(
    extension: &Extension,
    claims: &mut Claims<'_>,
    progress: &mut DrainState,
) -> Result<bool> {
    let failed = &progress.served.failed;
    let mut failed: Vec<i64> = failed
        .iter()
        .filter(|(_, error)| is_about_states(error))
        .map(|(id, _)| *id)
        .collect();
    failed.sort_unstable();
    if failed.is_empty() {
        return Ok(false);
    }
    let Some(apart) = claims.apart(MAX_APART)? else {
        return Ok(false);
    };
    let (mut sent, mut is_any) = (0, false);
    for id in failed {
        let group = group_of(&apart, id);
        let ids: Vec<i64> = group
            .iter()
            .flat_map(|unit| &unit.records)
            .map(|record| record.id)
            .collect();
        sent += ids.len();
        if ids.len() < 2 || sent > MAX_SENT {
            continue;
        }
        match progress.replay.apart_whole(&group) {
            Ok(()) => {
                queue::remove(extension, &ids)?;
                progress.served.changes += ids.len() as u64;
                progress.flushed.extend(ids);
                progress.served.failed.retain(|(failed, _)| *failed != id);
                is_any = true;
            }
            Err(error) if progress.replay.can_go_on(&error) => {}
            Err(error) => {
                progress.served.stop = Some(error);
                return Ok(false);
            }
        }
    }
    Ok(is_any)
}

/// A failed record's unit and what waits for it, but for what depends on something else that is apart.
fn group_of(apart: &[Apart], failed: i64) -> Vec<&Unit> {
    let mut others: HashSet<i64> = HashSet::new();
    let mut group = Vec::new();
    for one in apart {
        let writeset = one.unit.writeset();
        let is_free = || {
            writeset
                .depends_on
                .iter()
                .all(|mark| !others.contains(mark))
        };
        if one.root == failed && is_free() {
            group.push(&one.unit);
        } else {
            others.extend(&one.blocks);
            others.extend(&writeset.writes);
        }
    }
    group
}
