//! Failed records that the server takes only together with what waits behind them.
//!
//! What does not depend on a failed record goes past it. That may make the state impossible that the record leads
//! to: another row has the unique value that its row was to have for a while, the row that it refers to is gone.
//! What follows of its own rows, and would put that right, waits behind it. So a record that is refused over
//! other rows is tried once more at the end of a drain, with all that waits for it, as their net effect.

use super::rekeyed;
use super::replay::Replay;
use crate::error::{Error, Result};
use crate::pg::spi::Extension;
use crate::queue::claim::{Claims, HeldUnit, Unit};
use std::collections::{HashMap, HashSet};

/// Failed and waiting records of a lane that are held in memory, at most. With more, each waits for a person.
const MAX_APART: i64 = 50_000;

/// Records that are sent for this in one turn, at most: each group may be refused again.
const MAX_SENT: usize = 200_000;

/// What came of the attempts.
#[derive(Default)]
pub struct TogetherOutcome {
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
    (extension, server_name): (&Extension, &str),
    failed: &[(i64, Error)],
    replay: &mut Replay,
    claims: &mut Claims<'_>,
) -> Result<TogetherOutcome> {
    let mut outcome = TogetherOutcome::default();
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
    let single = failed.iter().map(|id| HashSet::from([*id]));
    let several = sharing_transactions(&apart, &failed);
    let mut sent = 0;
    for roots in single.chain(several) {
        let is_settled = |id: &i64| outcome.settled.contains(id);
        if roots.iter().any(is_settled) {
            continue;
        }
        let group = group_of(&apart, &roots);
        let records = group.iter().flat_map(|unit| &unit.records);
        let ids: Vec<i64> = records.map(|record| record.id).collect();
        sent += ids.len();
        if ids.len() < 2 || sent > MAX_SENT || is_rekeyed(extension, server_name, &group)? {
            continue;
        }
        match replay.apart_whole(&group) {
            Ok(()) => {
                outcome.settled.extend(roots);
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

/// Whether newer changes may have gone past one of these, since it names its row by another key.
fn is_rekeyed(extension: &Extension, server_name: &str, group: &[&Unit]) -> Result<bool> {
    for record in group.iter().flat_map(|unit| &unit.records) {
        if rekeyed::refusal(extension, server_name, &record.route)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Sets of failed records that share a local transaction, by themselves or by way of what waits for them, each of
/// several and with one that has `failed` in this turn. None that was refused for itself.
fn sharing_transactions(apart: &[HeldUnit], failed: &[i64]) -> Vec<HashSet<i64>> {
    let mut transactions: HashMap<i64, HashSet<u32>> = HashMap::new();
    let mut roots: HashMap<u32, Vec<i64>> = HashMap::new();
    let met_states: HashSet<i64> = apart
        .iter()
        .filter(|one| one.met_states)
        .map(|one| one.root)
        .chain(failed.iter().copied())
        .collect();
    for one in apart.iter().filter(|one| met_states.contains(&one.root)) {
        let transaction = one.unit.transaction();
        if transactions
            .entry(one.root)
            .or_default()
            .insert(transaction)
        {
            roots.entry(transaction).or_default().push(one.root);
        }
    }
    let mut sets = Vec::new();
    for id in failed {
        let mut set = HashSet::new();
        let mut ahead = vec![*id];
        while let Some(root) = ahead.pop() {
            set.insert(root);
            for transaction in transactions.remove(&root).unwrap_or_default() {
                ahead.extend(roots.remove(&transaction).unwrap_or_default());
            }
        }
        if set.len() > 1 {
            sets.push(set);
        }
    }
    sets
}

/// The units of failed records and what waits for them, but for what depends on something else that is apart.
fn group_of<'a>(apart: &'a [HeldUnit], roots: &HashSet<i64>) -> Vec<&'a Unit> {
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
        if roots.contains(&one.root) && is_free() {
            group.push(&one.unit);
        } else {
            others.extend(&one.blocks);
            others.extend(&writeset.writes);
        }
    }
    group
}
