//! The net effect of changes that are true only together, as batches for one statement. Pure.
//!
//! Each row ends up deleted, changed, moved or inserted once, whatever it went through. So states that the
//! changes leave behind again are never made, and what is written does not depend on an order: deletions
//! come first, then what stays, then what is new.

use crate::change::{Change, Op, Policy, Relation, Route, RowStorage};
use crate::sql::{Batch, BatchKind};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

type Key = Vec<Option<String>>;

/// Which changes are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// Those of one command each.
    Command,
    /// All.
    All,
}

/// What tells a row from others: the target and its key; or, where keys are deferrable, the local table and
/// its place, as long as its transaction lasts. When that ends no two rows have the same key any more.
#[derive(Clone, PartialEq, Eq, Hash)]
enum RowIdentity {
    Key(Relation, Key),
    Place(Relation, u64),
}

/// A row that the changes touch.
struct Row {
    route: Rc<Route>,
    /// Its key before the changes; `None` for one that they insert.
    before: Option<Key>,
    /// Its last change.
    last: Change<String>,
}

/// Changes of several routes on their way to their net effect, as one statement.
#[derive(Default)]
pub struct Whole {
    rows: Vec<Row>,
    holders: HashMap<RowIdentity, usize>,
    /// Rows cannot be told apart.
    refused: bool,
    /// Under `newest` rows leave their keys: what that counts as is not told of a row that goes on.
    leaves_keys: bool,
    /// Tables that are emptied before all else.
    truncated: Vec<Rc<Route>>,
    /// Commands that the changes are of, each with its transaction.
    commands: HashSet<(u32, u32)>,
    /// The file and the transaction in which places of a local table's rows mean something.
    storage: HashMap<Relation, (u32, u32)>,
    /// Keys of some table may be the same without having the same text.
    inexact: bool,
}

impl Whole {
    /// Adds a change.
    pub fn push(&mut self, route: &Rc<Route>, change: &Change<&str>) {
        self.commands
            .insert((change.stored.transaction, change.command));
        self.inexact |= !route.key_exact;
        if route.key_deferrable && change.op != Op::Truncate {
            let RowStorage {
                file, transaction, ..
            } = change.stored;
            let storage = (file, transaction);
            let known = *self.storage.entry(route.source.clone()).or_insert(storage);
            if known.1 != storage.1 {
                self.end_transaction(route);
                self.storage.insert(route.source.clone(), storage);
            } else {
                self.refused |= known.0 != storage.0;
            }
        }
        self.leaves_keys |= matches!(route.policy, Policy::Newest(_)) && change.moves();
        if change.op == Op::Truncate {
            // What it takes away is left out before, where it can be: see `truncations`.
            self.refused |= self.rows.iter().any(|row| row.route.target == route.target);
            self.truncated.push(route.clone());
        }
        if self.refused {
            self.rows.clear();
            self.holders.clear();
        }
        if self.refused || change.op == Op::Truncate {
            return;
        }
        if route.is_keyless() {
            self.rows.push(Row {
                route: route.clone(),
                before: None,
                last: change.owned(),
            });
            return;
        }
        let from = identity(route, change, true);
        let to = identity(route, change, false);
        let known = match change.op {
            // A row that was deleted, and is there again.
            Op::Insert => self
                .holders
                .get(&to)
                .copied()
                .or_else(|| self.deleted(route, change)),
            Op::Update => self
                .holders
                .remove(&from)
                .or_else(|| self.take_earlier(route, change)),
            Op::Delete | Op::Truncate => self
                .holders
                .get(&from)
                .copied()
                .or_else(|| self.take_earlier(route, change)),
        };
        let at = known.unwrap_or_else(|| {
            let before = (change.op != Op::Insert).then(|| owned(&change.old_key(route)));
            self.rows.push(Row {
                route: route.clone(),
                before,
                last: change.owned(),
            });
            self.rows.len() - 1
        });
        self.rows[at].last = change.owned();
        self.rows[at].route = route.clone();
        match change.op {
            Op::Delete | Op::Truncate => {
                self.holders.insert(from, at);
            }
            _ => {
                self.holders.insert(to, at);
            }
        }
    }

    /// From now on the rows of a table with a deferrable key are known by their keys.
    fn end_transaction(&mut self, route: &Route) {
        let ended = self.holders.extract_if(|identity, _| match identity {
            RowIdentity::Place(source, _) => *source == route.source,
            RowIdentity::Key(..) => false,
        });
        let ended: Vec<usize> = ended.map(|(_, at)| at).collect();
        let is_deleted = |at: &usize| self.rows[*at].last.op == Op::Delete;
        let (deleted, there): (Vec<usize>, Vec<usize>) = ended.into_iter().partition(is_deleted);
        // A row that is there hides one that had the key before.
        for at in deleted.into_iter().chain(there) {
            let last = &self.rows[at].last;
            let key = match last.op {
                Op::Delete => last.old_key(route),
                _ => last.new_key(route),
            };
            self.holders
                .insert(RowIdentity::Key(route.target.clone(), owned(&key)), at);
        }
    }

    /// The row of an earlier transaction that a change finds under its old key; known by its place then.
    fn take_earlier(&mut self, route: &Route, change: &Change<&str>) -> Option<usize> {
        let key = RowIdentity::Key(route.target.clone(), owned(&change.old_key(route)));
        self.holders.remove(&key).filter(|_| route.key_deferrable)
    }

    /// The row that an earlier transaction has deleted, whose key a new one has.
    fn deleted(&mut self, route: &Route, change: &Change<&str>) -> Option<usize> {
        let key = RowIdentity::Key(route.target.clone(), owned(&change.new_key(route)));
        let at = self
            .holders
            .get(&key)
            .copied()
            .filter(|_| route.key_deferrable)?;
        (self.rows[at].last.op == Op::Delete).then(|| {
            self.holders.remove(&key);
            at
        })
    }

    /// Whether rows that have the same key may have been taken for different ones, because its texts differ.
    pub fn is_inexact(&self) -> bool {
        self.inexact && self.commands.len() > 1
    }

    /// Tables to be emptied first, and the batches, in their order. `None` where the changes cannot be one
    /// statement.
    pub fn finish(mut self) -> Option<(Option<Batch>, Vec<Batch>)> {
        if self.is_inexact() || self.leaves_keys {
            return None;
        }
        let mut batches: Vec<Batch> = Vec::new();
        let mut emptied: Option<Batch> = None;
        for route in std::mem::take(&mut self.truncated) {
            let new = || Batch::new(route.clone(), BatchKind::Truncate);
            let batch = emptied.get_or_insert_with(new);
            batch.push(&Change::truncation());
            batch.truncated.push(route);
        }
        let rows = self.net()?;
        for kind in [
            BatchKind::Delete,
            BatchKind::Update,
            BatchKind::Move,
            BatchKind::Insert,
        ] {
            let first = batches.len();
            for (route, change) in rows
                .iter()
                .filter(|(_, change)| BatchKind::of(change) == kind)
            {
                let same =
                    |batch: &&mut Batch| Rc::ptr_eq(&batch.route, route) || batch.route == *route;
                let change = change.borrowed();
                match batches[first..].iter_mut().find(same) {
                    Some(batch) => batch.push(&change),
                    None => {
                        let mut batch = Batch::new(route.clone(), kind).in_arrays();
                        batch.push(&change);
                        batches.push(batch);
                    }
                }
            }
        }
        Some((emptied, batches))
    }

    /// What each row comes to; `None` where that cannot be told, or is not all: tables are emptied.
    pub fn net(self) -> Option<Vec<(Rc<Route>, Change<String>)>> {
        if self.refused || !self.truncated.is_empty() {
            return None;
        }
        let deleted: HashSet<(Relation, Key)> = (self.rows.iter())
            .filter(|row| row.last.op == Op::Delete)
            .filter_map(|row| Some((row.route.target.clone(), row.before.clone()?)))
            .collect();
        let inserted: HashSet<(Relation, Key)> = (self.rows.iter())
            .filter(|row| row.before.is_none() && row.last.op != Op::Delete)
            .map(|row| {
                (
                    row.route.target.clone(),
                    owned(&row.last.new_key(&row.route)),
                )
            })
            .collect();
        let mut taken_over = HashSet::new();
        let mut net = Vec::new();
        for Row {
            route,
            before,
            mut last,
        } in self.rows
        {
            last.unchanged.clear();
            let new = owned(&last.new_key(&route));
            match (before, last.op) {
                (None, Op::Delete) if route.policy == Policy::Error => continue,
                (None, Op::Delete) => {}
                (None, _) => {
                    let place = (route.target.clone(), new);
                    (last.op, last.key) = (Op::Insert, Vec::new());
                    if deleted.contains(&place) {
                        // The row that held the key before takes over what is written there anew.
                        taken_over.insert(place);
                        last.op = Op::Update;
                    }
                }
                (Some(key), Op::Delete) => last.key = key,
                (Some(key), _) if key == new => (last.op, last.key) = (Op::Update, Vec::new()),
                // Another row has the key that this one leaves: each is written where it ends.
                (Some(key), _) if inserted.contains(&(route.target.clone(), key.clone())) => {
                    (last.op, last.key) = (Op::Update, Vec::new());
                }
                (Some(key), _) => {
                    let place = (route.target.clone(), new);
                    if deleted.contains(&place) {
                        // The row that held the key before takes over what moves there.
                        taken_over.insert(place);
                        let row = Vec::new();
                        let tombstone = last.tombstone.take();
                        let op = Op::Delete;
                        net.push((
                            route.clone(),
                            Change {
                                op,
                                key,
                                row,
                                tombstone,
                                ..last.clone()
                            },
                        ));
                        (last.op, last.key) = (Op::Update, Vec::new());
                    } else {
                        (last.op, last.key) = (Op::Update, key);
                    }
                }
            }
            net.push((route, last));
        }
        net.retain(|(route, change)| {
            change.op != Op::Delete
                || !taken_over.contains(&(route.target.clone(), owned(&change.old_key(route))))
        });
        Some(net)
    }
}

fn identity(route: &Route, change: &Change<&str>, before: bool) -> RowIdentity {
    if route.key_deferrable {
        let place = if before {
            change.stored.before
        } else {
            change.stored.after
        };
        return RowIdentity::Place(route.source.clone(), place);
    }
    let key = if before {
        change.old_key(route)
    } else {
        change.new_key(route)
    };
    RowIdentity::Key(route.target.clone(), owned(&key))
}

fn owned(key: &[Option<&str>]) -> Key {
    key.iter().map(|v| v.map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Carrier, Column};

    fn route(table: &str) -> Rc<Route> {
        let name = Relation {
            schema: "s".into(),
            table: table.into(),
        };
        let column = |name: &str| Column {
            name: name.into(),
            carrier: Carrier::Element,
            identity_always: false,
            own_equality: false,
            collated: false,
            local: None,
            binary: None,
            own_type: None,
        };
        Rc::new(Route {
            source: name.clone(),
            target: name,
            columns: vec![column("id"), column("v")],
            key: vec![0],
            key_deferrable: false,
            key_exact: true,
            policy: Policy::Overwrite,
            truncate_children: false,
            application_name: None,
            path: Default::default(),
            cascades_from: Vec::new(),
        })
    }

    fn change(op: Op, key: &[&'static str], row: &[&'static str]) -> Change<&'static str> {
        let all = |values: &[&'static str]| values.iter().map(|v| Some(*v)).collect();
        let key = all(key);
        let row = all(row);
        let stamp = None;
        let tombstone = None;
        let unchanged = Vec::new();
        let stored = Default::default();
        Change {
            op,
            command: 1,
            key,
            row,
            stamp,
            tombstone,
            unchanged,
            stored,
            overtaken: false,
        }
    }

    fn net(changes: &[Change<&str>]) -> Vec<String> {
        let mut whole = Whole::default();
        let route = route("t");
        changes.iter().for_each(|change| whole.push(&route, change));
        let text = |values: &[Option<String>]| values.iter().flatten().cloned().collect::<String>();
        let net = whole.net().expect("rows that can be told apart");
        let shown = |(_, c): &(Rc<Route>, Change<String>)| {
            format!("{} {}:{}", c.op.keyword(), text(&c.key), text(&c.row))
        };
        net.iter().map(shown).collect()
    }

    #[test]
    fn a_row_comes_to_its_last_state() {
        assert_eq!(
            net(&[
                change(Op::Insert, &[], &["1", "a"]),
                change(Op::Update, &[], &["1", "b"]),
                change(Op::Update, &["2"], &["3", "c"]),
                change(Op::Update, &["3"], &["2", "d"]),
                change(Op::Delete, &["4"], &[]),
                change(Op::Insert, &[], &["4", "e"]),
                change(Op::Delete, &["5"], &[]),
            ]),
            ["INSERT :1b", "UPDATE :2d", "UPDATE :4e", "DELETE 5:"]
        );
    }

    #[test]
    fn rows_without_a_key_are_as_many_as_were_inserted() {
        let keyless = Route {
            key: Vec::new(),
            policy: Policy::Error,
            ..(*route("t")).clone()
        };
        let keyless = Rc::new(keyless);
        let mut whole = Whole::default();
        (0..3).for_each(|_| whole.push(&keyless, &change(Op::Insert, &[], &["1", "a"])));
        assert_eq!(whole.net().map(|net| net.len()), Some(3));
    }

    #[test]
    fn a_key_that_passes_to_another_row_is_written_where_it_is() {
        let gives = change(Op::Update, &["1"], &["9", "a"]);
        let takes = change(Op::Insert, &[], &["1", "b"]);
        assert_eq!(net(&[gives, takes]), ["UPDATE :9a", "INSERT :1b"]);
        let goes = change(Op::Delete, &["1"], &[]);
        let comes = change(Op::Update, &["2"], &["1", "b"]);
        assert_eq!(net(&[goes, comes]), ["DELETE 2:", "UPDATE :1b"]);
    }

    #[test]
    fn batches_come_in_the_order_in_which_constraints_hold() {
        let p = route("p");
        let c = route("c");
        let mut whole = Whole::default();
        whole.push(&c, &change(Op::Insert, &[], &["1", "a"]));
        whole.push(&p, &change(Op::Insert, &[], &["1", "a"]));
        whole.push(&p, &change(Op::Update, &[], &["2", "a"]));
        whole.push(&c, &change(Op::Delete, &["2"], &[]));
        let (_, batches) = whole.finish().expect("batches");
        let kinds: Vec<BatchKind> = batches.iter().map(|batch| batch.kind).collect();
        assert_eq!(
            kinds,
            [
                BatchKind::Delete,
                BatchKind::Update,
                BatchKind::Insert,
                BatchKind::Insert
            ]
        );
        let statements = crate::sql::joined(batches, None).expect("statements");
        assert_eq!(statements.len(), 1);
        let statement = &statements[0];
        assert_eq!(statement.params.len(), 1 + 2 + 2 + 2);
        assert!(statement.text.contains("$7") && !statement.text.contains("$8"));
    }

    #[test]
    fn tables_are_emptied_first_unless_they_have_been_written() {
        let mut whole = Whole::default();
        whole.push(&route("u"), &change(Op::Insert, &[], &["1", "a"]));
        whole.push(&route("t"), &change(Op::Truncate, &[], &[]));
        whole.push(&route("t"), &change(Op::Insert, &[], &["1", "a"]));
        let (emptied, batches) = whole.finish().expect("batches");
        assert_eq!(emptied.map(|batch| batch.truncated.len()), Some(1));
        assert_eq!(batches.len(), 2);
        let mut whole = Whole::default();
        whole.push(&route("t"), &change(Op::Insert, &[], &["1", "a"]));
        whole.push(&route("t"), &change(Op::Truncate, &[], &[]));
        assert!(whole.finish().is_none());
    }

    #[test]
    fn changes_of_keys_that_are_not_exact_are_not_put_together() {
        let inexact = Rc::new(Route {
            key_exact: false,
            ..(*route("t")).clone()
        });
        let mut whole = Whole::default();
        whole.push(&inexact, &change(Op::Insert, &[], &["1", "a"]));
        let later = Change {
            command: 2,
            ..change(Op::Update, &[], &["1.0", "b"])
        };
        whole.push(&inexact, &later);
        assert!(whole.finish().is_none());
    }

    #[test]
    fn commands_of_two_transactions_are_two_whatever_their_numbers() {
        let inexact = Rc::new(Route {
            key_exact: false,
            ..(*route("t")).clone()
        });
        let mut whole = Whole::default();
        whole.push(
            &inexact,
            &stored(1, 0, 11, change(Op::Insert, &[], &["1", "a"])),
        );
        whole.push(
            &inexact,
            &stored(2, 11, 12, change(Op::Update, &[], &["1.0", "b"])),
        );
        assert!(whole.is_inexact());
    }

    #[test]
    fn places_mean_nothing_in_another_transaction_however_many_lie_between() {
        let route = Rc::new(Route {
            key_deferrable: true,
            ..(*route("t")).clone()
        });
        let mut whole = Whole::default();
        whole.push(
            &route,
            &stored(1, 0, 11, change(Op::Insert, &[], &["1", "a"])),
        );
        // Another row is where that one was.
        let moved = change(Op::Update, &["2"], &["3", "b"]);
        let change = stored(1 + (1 << 16), 11, 12, moved);
        whole.push(&route, &change);
        assert_eq!(whole.net().map(|net| net.len()), Some(2));
    }

    fn stored(
        transaction: u32,
        before: u64,
        after: u64,
        change: Change<&'static str>,
    ) -> Change<&'static str> {
        let stored = RowStorage {
            before,
            after,
            file: 1,
            transaction,
        };
        Change { stored, ..change }
    }

    #[test]
    fn rows_with_deferrable_keys_are_known_by_their_keys_once_their_transaction_has_ended() {
        let route = Rc::new(Route {
            key_deferrable: true,
            ..(*route("t")).clone()
        });
        let mut whole = Whole::default();
        for change in [
            // Two rows swap their keys,
            stored(1, 11, 13, change(Op::Update, &["1"], &["2", "a"])),
            stored(1, 12, 14, change(Op::Update, &["2"], &["1", "b"])),
            stored(1, 0, 15, change(Op::Insert, &[], &["3", "c"])),
            // are changed where they are now, in places that others had,
            stored(2, 14, 11, change(Op::Update, &[], &["1", "d"])),
            stored(2, 13, 0, change(Op::Delete, &["2"], &[])),
            stored(2, 15, 0, change(Op::Delete, &["3"], &[])),
            // and one key is used anew.
            stored(3, 0, 12, change(Op::Insert, &[], &["2", "e"])),
        ] {
            whole.push(&route, &change);
        }
        let text = |values: &[Option<String>]| values.iter().flatten().cloned().collect::<String>();
        let mut net: Vec<String> = (whole.net().expect("rows that can be told apart").iter())
            .map(|(_, change)| {
                format!(
                    "{} {}:{}",
                    change.op.keyword(),
                    text(&change.key),
                    text(&change.row)
                )
            })
            .collect();
        net.sort();
        assert_eq!(net, ["DELETE 3:", "UPDATE 1:2e", "UPDATE 2:1d"]);
    }
}
