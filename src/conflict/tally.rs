//! What the conflicts of a delivery came to.

use super::kind::{Conflict, ConflictType};
use crate::change::{Relation, Route};
use std::rc::Rc;

/// Conflicts of one delivery that are kept with their particulars: memory must not grow with a delivery
/// that meets nothing but conflicts.
pub const MAX_DETAILS: usize = 1_000;

/// What the conflicts of a delivery came to: the number of all, particulars of the first [`MAX_DETAILS`].
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// A route of each local table, and how many conflicts there were of each kind.
    tables: Vec<(Rc<Route>, [u64; ConflictType::ALL.len()])>,
    details: Vec<(Rc<Route>, Conflict)>,
}

impl Tally {
    /// Counts a conflict of a change that took this route, and keeps it while there is room.
    pub fn add(&mut self, route: &Rc<Route>, conflict: Conflict) {
        self.counts_of(route)[conflict.kind as usize] += 1;
        self.keep(route.clone(), conflict);
    }

    /// Adds what another one has, after what is here.
    pub fn merge(&mut self, other: Self) {
        for (route, counts) in &other.tables {
            let sums = self.counts_of(route).iter_mut();
            sums.zip(counts).for_each(|(sum, count)| *sum += count);
        }
        for (route, conflict) in other.details {
            self.keep(route, conflict);
        }
    }

    /// How many there are of all kinds.
    pub fn total(&self) -> u64 {
        self.tables.iter().flat_map(|(_, counts)| counts).sum()
    }

    /// Whether there was no conflict.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// How many there are, by local table and kind; each only where there are any.
    pub fn counts(&self) -> impl Iterator<Item = (&Relation, ConflictType, u64)> {
        self.tables.iter().flat_map(|(route, counts)| {
            let counts = ConflictType::ALL
                .into_iter()
                .zip(counts)
                .filter(|(_, count)| **count > 0);
            counts.map(|(kind, count)| (&route.source, kind, *count))
        })
    }

    /// The first conflicts, with their local tables.
    pub fn details(&self) -> impl Iterator<Item = (&Relation, &Conflict)> {
        self.details
            .iter()
            .map(|(route, conflict)| (&route.source, conflict))
    }

    /// The counts of a route's local table. Several triggers may send one table, each by a route of its
    /// own; there are few tables.
    fn counts_of(&mut self, route: &Rc<Route>) -> &mut [u64; ConflictType::ALL.len()] {
        let same = |known: &Rc<Route>| Rc::ptr_eq(known, route) || known.source == route.source;
        let at = self
            .tables
            .iter()
            .position(|(known, _)| same(known))
            .unwrap_or_else(|| {
                self.tables
                    .push((route.clone(), [0; ConflictType::ALL.len()]));
                self.tables.len() - 1
            });
        &mut self.tables[at].1
    }

    fn keep(&mut self, route: Rc<Route>, conflict: Conflict) {
        if self.details.len() < MAX_DETAILS {
            self.details.push((route, conflict));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::kind::Decision;
    use super::*;
    use crate::change::Policy;

    fn route(table: &str, target: &str) -> Rc<Route> {
        let relation = |table: &str| Relation {
            schema: "s".into(),
            table: table.into(),
        };
        Rc::new(Route {
            source: relation(table),
            target: relation(target),
            columns: Vec::new(),
            key: Vec::new(),
            key_deferrable: false,
            key_exact: true,
            policy: Policy::Overwrite,
            truncate_children: false,
            cascades_from: Vec::new(),
            application_name: None,
            path: Default::default(),
        })
    }

    fn conflict(kind: ConflictType, id: usize) -> Conflict {
        Conflict {
            kind,
            decision: Decision::Applied,
            key: Some(serde_json::json!({ "id": id.to_string() })),
            server_key: None,
            version: None,
            server_version: None,
            constraint: None,
        }
    }

    fn counts(tally: &Tally) -> Vec<(&str, &'static str, u64)> {
        tally
            .counts()
            .map(|(table, kind, n)| (table.table.as_str(), kind.name(), n))
            .collect()
    }

    #[test]
    fn counts_by_local_table_and_kind() {
        let mut tally = Tally::default();
        assert!(tally.is_empty());
        let (a, again, b) = (route("a", "x"), route("a", "y"), route("b", "x"));
        tally.add(&a, conflict(ConflictType::DeleteMissing, 1));
        tally.add(&b, conflict(ConflictType::InsertExists, 2));
        tally.add(&again, conflict(ConflictType::DeleteMissing, 3));
        tally.add(&a, conflict(ConflictType::UpdateMissing, 4));
        assert!(!tally.is_empty());
        assert_eq!(tally.total(), 4);
        let expected = [
            ("a", "update_missing", 1),
            ("a", "delete_missing", 2),
            ("b", "insert_exists", 1),
        ];
        assert_eq!(counts(&tally), expected);
        let details: Vec<_> = tally
            .details()
            .map(|(table, c)| (&*table.table, c.kind))
            .collect();
        let expected = [
            ("a", ConflictType::DeleteMissing),
            ("b", ConflictType::InsertExists),
            ("a", ConflictType::DeleteMissing),
        ];
        assert_eq!(details[..3], expected);
    }

    #[test]
    fn all_are_counted_and_the_first_are_kept() {
        let mut tally = Tally::default();
        let route = route("t", "t");
        for id in 0..MAX_DETAILS + 5 {
            tally.add(&route, conflict(ConflictType::InsertExists, id));
        }
        assert_eq!(tally.total(), MAX_DETAILS as u64 + 5);
        assert_eq!(tally.details().count(), MAX_DETAILS);
        let last = tally.details().last().and_then(|(_, c)| c.key.clone());
        assert_eq!(
            last,
            Some(serde_json::json!({ "id": (MAX_DETAILS - 1).to_string() }))
        );
    }

    #[test]
    fn what_is_merged_comes_after() {
        let a = route("a", "a");
        let b = route("b", "b");
        let mut one = Tally::default();
        let mut two = Tally::default();
        one.add(&a, conflict(ConflictType::InsertExists, 1));
        for id in 0..MAX_DETAILS {
            two.add(&b, conflict(ConflictType::UpdateMissing, id));
        }
        two.add(&a, conflict(ConflictType::InsertExists, 2));
        one.merge(two);
        one.merge(Tally::default());
        let expected = [
            ("a", "insert_exists", 2),
            ("b", "update_missing", MAX_DETAILS as u64),
        ];
        assert_eq!(counts(&one), expected);
        assert_eq!(one.details().count(), MAX_DETAILS);
        assert_eq!(
            one.details().next().map(|(table, _)| &*table.table),
            Some("a")
        );
    }
}
