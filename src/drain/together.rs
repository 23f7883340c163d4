//! Failed records that the server takes only together with what waits behind them.
//!
//! What does not depend on a failed record goes past it. That may make the state impossible that the record leads
//! to: another row has the unique value that its row was to have for a while, the row that it refers to is gone.
//! What follows of its own rows, and would put that right, waits behind it. So a record that is refused over
//! other rows is tried once more at the end of a drain, with all that waits for it, as their net effect.

use super::replay::Replay;
use crate::error::{Error, Result};
use crate::queue::claim::{Apart, Claims, Unit};
use std::collections::HashSet;

/// Failed and waiting records of a lane that are held in memory, at most. With more, each waits for a person.
const MAX_APART: i64 = 50_000;

/// Records that are sent for this in one turn, at most: each group may be refused again.
const MAX_SENT: usize = 200_000;

/// What came of the attempts.
#[derive(Default)]
pub struct Outcome {
    /// Failed records that are there now.
    pub settled: Vec<i64>,
    /// These and what waited for them.
    pub applied: Vec<i64>,
    /// Why nothing more is to be tried on the server.
    pub stop: Option<Error>,
}

/// Tries records that have failed in this turn.
///
/// # Errors
/// What reading the queue reports.
pub fn try_together(
    failed: &[(i64, Error)],
    replay: &mut Replay,
    claims: &mut Claims<'_>,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut failed: Vec<i64> = failed
        .iter()
        .filter(|(_, error)| error.is_about_states())
        .map(|(id, _)| *id)
        .collect();
    failed.sort_unstable();
    if failed.is_empty() {
        return Ok(outcome);
    }
    let Some(apart) = claims.apart(MAX_APART)? else {
        return Ok(outcome);
    };
    let mut sent = 0;
    for id in failed {
        let group = group_of(&apart, id);
        let records = group.iter().flat_map(|unit| &unit.records);
        let ids: Vec<i64> = records.map(|record| record.id).collect();
        sent += ids.len();
        if ids.len() < 2 || sent > MAX_SENT {
            continue;
        }
        match replay.apart_whole(&group) {
            Ok(()) => {
                outcome.settled.push(id);
                outcome.applied.extend(ids);
            }
            Err(error) if replay.can_go_on(&error) => {}
            Err(error) => {
                outcome.stop = Some(error);
                break;
            }
        }
    }
    Ok(outcome)
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
