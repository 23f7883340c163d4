//! What a queued change touches, so that what waits behind a failed record can be told
//! from what does not depend on it. Pure.
//!
//! A change depends on an older one if both concern the same row of the same target table: its key
//! before or after the change. TRUNCATE concerns every row, and so does a change of a table whose
//! keys may be equal without having the same text. Rows of a table without a key concern nothing but TRUNCATE.
//! Rows that depend on each other through a foreign
//! key are not found here; the target's own constraint finds them.
//!
//! A writeset is made of hashes that the queue stores, so they must be the same in every version:
//! SipHash 1-3 over bytes that are written out here. A collision makes a change wait for nothing.

use crate::change::{Change, Op, Relation, Route};
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// What a change writes and what it depends on, as hashes. They are stored as `bigint`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writeset {
    /// What a change leaves when it is marked failed or waits.
    pub writes: Vec<i64>,
    /// What a change must not meet among the writes of older ones.
    pub depends_on: Vec<i64>,
}

impl Writeset {
    /// The writeset of a change.
    pub fn of<S: AsRef<str>>(route: &Route, change: &Change<S>) -> Self {
        if change.op == Op::Truncate || !route.key_exact {
            return Self::of_table(route);
        }
        if route.is_keyless() {
            // Rows have nothing to do with each other.
            return Self {
                writes: vec![anything_of(route)],
                depends_on: vec![all_of(route)],
            };
        }
        let mut rows = vec![row(route, &change.old_key(route))];
        if change.moves() {
            rows.push(row(route, &change.new_key(route)));
        }
        rows.dedup();
        let with = |first| std::iter::once(first).chain(rows.iter().copied()).collect();
        Self {
            writes: with(anything_of(route)),
            depends_on: with(all_of(route)),
        }
    }

    /// The writeset of something that concerns every row.
    pub fn of_table(route: &Route) -> Self {
        let any = anything_of(route);
        Self {
            writes: vec![any, all_of(route)],
            depends_on: vec![any],
        }
    }

    /// What a change of the row with this key would depend on.
    pub fn of_key(route: &Route, key: &[Option<&str>]) -> Vec<i64> {
        if !route.key_exact {
            return Self::of_table(route).depends_on;
        }
        if route.is_keyless() {
            return vec![all_of(route)];
        }
        vec![all_of(route), row(route, key)]
    }

    /// Adds other changes'. However many there are, it is put in order once.
    pub fn join(&mut self, others: impl IntoIterator<Item = Self>) {
        for other in others {
            self.writes.extend(other.writes);
            self.depends_on.extend(other.depends_on);
        }
        for own in [&mut self.writes, &mut self.depends_on] {
            own.sort_unstable();
            own.dedup();
        }
    }
}

/// Left by every change of a target table; met by what concerns all its rows.
fn anything_of(route: &Route) -> i64 {
    finish(begin(b'T', &route.target))
}

/// Left by what concerns all rows; met by every change.
fn all_of(route: &Route) -> i64 {
    finish(begin(b'A', &route.target))
}

/// One row of the target table.
fn row(route: &Route, key: &[Option<&str>]) -> i64 {
    let mut hasher = begin(b'R', &route.target);
    for value in key {
        hasher.write(&[u8::from(value.is_some())]);
        write(&mut hasher, value.unwrap_or_default());
    }
    finish(hasher)
}

fn begin(kind: u8, target: &Relation) -> SipHasher13 {
    let mut hasher = SipHasher13::new();
    hasher.write(&[kind]);
    write(&mut hasher, &target.schema);
    write(&mut hasher, &target.table);
    hasher
}

fn write(hasher: &mut SipHasher13, text: &str) {
    hasher.write(&(text.len() as u64).to_le_bytes());
    hasher.write(text.as_bytes());
}

fn finish(hasher: SipHasher13) -> i64 {
    hasher.finish() as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Carrier, Column, Policy, RowStorage};

    fn route(table: &str, key_exact: bool) -> Route {
        let name = Relation {
            schema: "s".into(),
            table: table.into(),
        };
        let identity_always = false;
        let own_equality = false;
        let collated = false;
        let local = None;
        Route {
            source: name.clone(),
            target: name,
            columns: vec![Column {
                name: "id".into(),
                carrier: Carrier::Element,
                identity_always,
                own_equality,
                collated,
                local,
                binary: None,
                own_type: None,
            }],
            key: vec![0],
            key_deferrable: false,
            key_exact,
            policy: Policy::Overwrite,
            truncate_children: false,
            cascades_from: Vec::new(),
            application_name: None,
            path: Default::default(),
        }
    }

    fn change(op: Op, key: &[&'static str], row: &[&'static str]) -> Change<&'static str> {
        let all = |values: &[&'static str]| values.iter().map(|v| Some(*v)).collect();
        let stamp = None;
        let tombstone = None;
        let unchanged = Vec::new();
        Change {
            op,
            command: 1,
            key: all(key),
            row: all(row),
            stamp,
            tombstone,
            unchanged,
            stored: RowStorage::default(),
            overtaken: false,
        }
    }

    fn waits(later: &Writeset, earlier: &Writeset) -> bool {
        later
            .depends_on
            .iter()
            .any(|check| earlier.writes.contains(check))
    }

    #[test]
    fn changes_of_one_row_wait_for_each_other_and_others_do_not() {
        let t = route("t", true);
        let insert = change(Op::Insert, &[], &["1"]);
        let update = change(Op::Update, &[], &["1"]);
        let delete = change(Op::Delete, &["1"], &[]);
        let other = change(Op::Insert, &[], &["2"]);
        let [insert, update, delete, other] =
            [insert, update, delete, other].map(|c| Writeset::of(&t, &c));
        assert!(waits(&update, &insert) && waits(&delete, &update) && waits(&insert, &delete));
        assert!(!waits(&other, &insert) && !waits(&insert, &other));
        let elsewhere = Writeset::of(&route("u", true), &change(Op::Insert, &[], &["1"]));
        assert!(!waits(&elsewhere, &insert));
    }

    #[test]
    fn a_key_depends_on_what_its_changes_depend_on() {
        let delete = change(Op::Delete, &["1"], &[]);
        for exact in [true, false] {
            let t = route("t", exact);
            let of_change = Writeset::of(&t, &delete).depends_on;
            assert_eq!(Writeset::of_key(&t, &[Some("1")]), of_change);
        }
    }

    #[test]
    fn a_row_that_moves_ties_both_keys() {
        let t = route("t", true);
        let moved = Writeset::of(&t, &change(Op::Update, &["1"], &["2"]));
        for key in ["1", "2"] {
            let delete = Writeset::of(&t, &change(Op::Delete, &[key], &[]));
            assert!(waits(&delete, &moved) && waits(&moved, &delete), "{key}");
        }
    }

    #[test]
    fn what_concerns_the_whole_table_ties_every_row() {
        let row = |exact| Writeset::of(&route("t", exact), &change(Op::Insert, &[], &["1"]));
        let truncate = Writeset::of(&route("t", true), &change(Op::Truncate, &[], &[]));
        for table in [truncate, row(false), Writeset::of_table(&route("t", true))] {
            assert!(waits(&table, &row(true)) && waits(&row(true), &table));
            assert!(waits(&table, &table));
        }
    }

    #[test]
    fn rows_without_a_key_are_tied_by_truncate_only() {
        let keyless = Route {
            key: Vec::new(),
            policy: Policy::Error,
            ..route("t", true)
        };
        let insert = Writeset::of(&keyless, &change(Op::Insert, &[], &["1"]));
        let truncate = Writeset::of(&keyless, &change(Op::Truncate, &[], &[]));
        assert!(!waits(&insert, &insert));
        assert!(waits(&truncate, &insert) && waits(&insert, &truncate));
    }

    #[test]
    fn stored_hashes_never_change() {
        let writeset = Writeset::of(&route("t", true), &change(Op::Insert, &[], &["1"]));
        assert_eq!(
            writeset.writes,
            [-8354673576315553261, -4106621434464324438]
        );
    }
}
