//! What is to be seen of several tables or several servers together: parents that are left out, and masters
//! that do not reach all others. Pure.

use super::facts::RelationFacts;
use super::finding::Finding;
use super::problems::CheckSubject;
use crate::change::Relation;
use crate::error::SqlState;

/// A table with the target that was found.
pub struct Pair<'s> {
    pub subject: &'s CheckSubject<'s>,
    pub target: &'s RelationFacts,
}

/// Foreign keys there whose parents get nothing from here. `targets`: all relations that are sent to the
/// server, whether the caller may see them or not.
pub fn parents(pair: &Pair<'_>, targets: &[Relation]) -> Vec<Finding> {
    let own = &pair.subject.route.target;
    let is_sent = |(schema, table): &&(String, String)| {
        targets
            .iter()
            .any(|one| one.schema == *schema && one.table == *table)
            || (&own.schema, &own.table) == (schema, table)
    };
    let left_out = pair.target.parents.iter().filter(|parent| !is_sent(parent));
    left_out
        .map(|(schema, table)| {
            Finding::warning(
                SqlState::FOREIGN_KEY_VIOLATION,
                format!(
                    "{} refers to \"{schema}.{table}\", which is not sent there: rows whose parent is missing are \
                     refused",
                    pair.subject.target_name()
                ),
                "Attach the parent too, or see to it that its rows are there.",
            )
        })
        .collect()
}

/// Whether changes made there come back here, and do not reach the other servers that this table is sent to.
/// `others`: how many those are.
pub fn gap(pair: &Pair<'_>, others: usize) -> Option<Finding> {
    let Pair { subject, target } = pair;
    let is_master = target
        .active_triggers()
        .any(|trigger| subject.is_back(trigger));
    let reached = target
        .active_triggers()
        .filter(|trigger| !subject.is_back(trigger))
        .count();
    (is_master && reached < others).then(|| {
        let server = subject.server;
        let table = &subject.local.table;
        Finding::warning(
            SqlState::OBJECT_NOT_READY,
            format!(
                "table \"{table}\" is sent back from server \"{server}\", which sends it to {reached} other servers, \
                 while it is sent to {others} others from here: what is written there does not reach all"
            ),
            "What arrives here is not sent on. Attach the table there to every other master.",
        )
    })
}
