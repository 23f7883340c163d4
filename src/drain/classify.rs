//! The conflict that a record was marked failed over. Pure.

use crate::change::{Op, Policy};
use crate::conflict::{Conflict, ConflictType, Decision};
use crate::error::{Error, SqlState};
use crate::queue::claim::Record;
use crate::sql;

/// The conflict that a record failed over, if it was one. `is_there`: there is a row with its key.
pub fn conflict_of(record: &Record, error: &Error, is_there: bool) -> Option<Conflict> {
    let Record { route, change, .. } = record;
    let op = change.op;
    let state = error.sqlstate();
    let kind = match op {
        Op::Insert if state == SqlState::UNIQUE_VIOLATION => match route.policy {
            Policy::Overwrite | Policy::Skip | Policy::Newest(_) if is_there => {
                ConflictType::MultipleUniqueConflicts
            }
            _ => ConflictType::InsertExists,
        },
        Op::Update if state == SqlState::UNIQUE_VIOLATION => ConflictType::UpdateExists,
        Op::Update if state == SqlState::NO_DATA_FOUND => ConflictType::UpdateMissing,
        Op::Delete if state == SqlState::NO_DATA_FOUND => ConflictType::DeleteMissing,
        _ => return None,
    };
    let key = match kind {
        ConflictType::InsertExists | ConflictType::MultipleUniqueConflicts => change.new_key(route),
        _ => change.old_key(route),
    };
    let constraint = error.constraint().map(str::to_owned);
    let version = change.version(route).map(str::to_owned);
    Some(Conflict {
        constraint,
        version,
        ..sql::conflict_of(route, kind, Decision::Failed, &key)
    })
}
