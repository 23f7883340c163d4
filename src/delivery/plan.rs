//! Cuts a stream of changes into batches whose set-based execution has the result of executing the
//! changes one by one. Pure.
//!
//! Consecutive changes of one route and kind share a batch. It is cut where a key comes up twice
//! and where it grows too large. Rows that one command moves to other keys move at once, so their
//! order is free and is chosen such that each finds its new key vacated.

use super::collapse::Collapse;
use super::waves::{circles, groups, waves};
use crate::change::{Change, Op, Policy, Relation, Route};
use crate::error::Result;
use crate::sql::{Batch, BatchKind};
use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, Hash, Hasher};
use std::rc::Rc;

/// Rows in a batch, at most.
const MAX_ROWS: usize = 5_000;
/// Rows in the first of batches that grow, at most, see [`Planner::growing`].
pub const FIRST_ROWS: usize = 500;
/// Bytes of parameters in a batch after which it is closed; a single row may be larger.
const MAX_BYTES: usize = 512 * 1024;

/// Takes changes in order, gives batches in order.
pub struct Planner {
    /// Changes of a table whose key is deferrable, see [`super::collapse`].
    deferrable: Collapse,
    open: Option<Batch>,
    /// Hashes of the keys in `open`. A collision only cuts a batch early.
    keys: foldhash::HashSet<u64>,
    hashing: foldhash::fast::RandomState,
    /// The moves of one command, held back until its end.
    moves: Vec<(Rc<Route>, Change<String>)>,
    ready: VecDeque<Batch>,
    /// Rows that a batch may have now.
    most_rows: usize,
    /// Rows that a batch may ever have.
    limit: usize,
    /// Batches are in binary form where that is possible.
    binary: bool,
    /// Targets whose keys are checked with each row, though those here are deferrable.
    in_waves: InWaves,
    /// Tables whose rows were deleted or moved by batches that are closed.
    vanished: HashSet<Relation>,
}

/// The tables whose rows move in waves, though the key is deferrable here.
#[derive(Clone, Debug, Default)]
pub enum InWaves {
    #[default]
    None,
    /// Those of these targets.
    Of(Vec<Relation>),
    All,
}

impl InWaves {
    fn includes(&self, target: &Relation) -> bool {
        match self {
            Self::None => false,
            Self::Of(targets) => targets.contains(target),
            Self::All => true,
        }
    }
}

/// Whether rows that move over a route are moved at once, where the server's key allows it: under `newest` only
/// those that take each other's keys.
pub fn moves_at_once(route: &Route) -> bool {
    route.key_deferrable
}

impl Default for Planner {
    fn default() -> Self {
        Self {
            deferrable: Collapse::default(),
            open: None,
            keys: foldhash::HashSet::default(),
            hashing: foldhash::fast::RandomState::default(),
            moves: Vec::new(),
            ready: VecDeque::new(),
            most_rows: MAX_ROWS,
            limit: MAX_ROWS,
            binary: false,
            in_waves: InWaves::None,
            vanished: HashSet::new(),
        }
    }
}

impl Planner {
    /// Begins with small batches, each of twice the rows of the one before: the server has something to do
    /// soon, while most rows are still to be encoded. But what a constraint checks at the end of a
    /// statement, rows that refer to each other for one, may be true of the larger batch only.
    pub fn growing() -> Self {
        Self {
            most_rows: FIRST_ROWS,
            ..Self::default()
        }
    }

    /// Each row a batch of its own: for keys that differ here and are equal there.
    pub fn singly() -> Self {
        Self {
            most_rows: 1,
            limit: 1,
            ..Self::default()
        }
    }

    /// Appends a change.
    ///
    /// # Errors
    /// As for [`Collapse::push`].
    pub fn push(&mut self, route: &Rc<Route>, change: &Change<&str>) -> Result<()> {
        let kind = BatchKind::of(change);
        if route.key_deferrable && kind != BatchKind::Truncate {
            self.flush_moves();
            if !self.deferrable.continues(route, change) {
                self.flush_deferrable();
            }
            return self.deferrable.push(route, change);
        }
        self.flush_deferrable();
        let same_command = self
            .moves
            .first()
            .is_some_and(|(_, m)| m.command == change.command);
        // Rows that a command updates in place have nothing to do with those it moves.
        if !(same_command && matches!(kind, BatchKind::Move | BatchKind::Update)) {
            self.flush_moves();
        }
        match kind {
            BatchKind::Move => self.moves.push((route.clone(), change.owned())),
            _ => self.append(route, kind, change),
        }
        Ok(())
    }

    /// From now on, batches are in binary form where that is possible.
    pub fn in_binary(&mut self) {
        self.binary = true;
    }

    /// From now on, rows of these move in waves.
    pub fn in_waves(&mut self, these: InWaves) {
        self.in_waves = these;
    }

    /// The next batch that no later change can join.
    pub fn pop(&mut self) -> Option<Batch> {
        self.ready.pop_front()
    }

    /// Whether another batch will come, as far as is known.
    pub fn holds_more(&self) -> bool {
        self.open.is_some()
            || !self.ready.is_empty()
            || !self.moves.is_empty()
            || !self.deferrable.is_empty()
    }

    /// Parts of the same transaction that were sent before have deleted or moved rows of these tables.
    pub fn follow(&mut self, vanished: &HashSet<Relation>) {
        self.vanished.extend(vanished.iter().cloned());
    }

    /// No more changes will come: the rest becomes ready.
    pub fn finish(&mut self) {
        self.flush_deferrable();
        self.flush_moves();
        self.close();
    }

    fn append(&mut self, route: &Rc<Route>, kind: BatchKind, change: &Change<&str>) {
        let key = self.key_hash(route, change);
        // What one statement does it does before cascades.
        let follows = |vanished: &HashSet<Relation>| {
            route
                .cascades_from
                .iter()
                .any(|table| change.overtaken || vanished.contains(table))
        };
        let joins_those = follows(&self.vanished);
        let joins = self.open.as_ref().is_some_and(|open| match kind {
            BatchKind::Truncate => open.kind == BatchKind::Truncate,
            _ => {
                open.kind == kind
                    && Rc::ptr_eq(&open.route, route)
                    && open.rows < self.most_rows
                    && open.bytes() < MAX_BYTES
                    && open.unchanged == change.unchanged
                    && open.after_cascade == joins_those
                    && (route.is_keyless() || !self.keys.contains(&key))
            }
        });
        if !joins {
            if self
                .open
                .as_ref()
                .is_some_and(|open| open.rows >= self.most_rows)
            {
                self.most_rows = (self.most_rows * 2).min(self.limit);
            }
            self.close();
        }
        self.keys.insert(key);
        let begins = self.open.is_none();
        let after_cascade = follows(&self.vanished);
        let batch = self.add(route, kind, change);
        if begins {
            batch.after_cascade = after_cascade;
        }
        if kind == BatchKind::Truncate {
            batch.truncated.push(route.clone());
        }
    }

    /// A hash of the key that the row has before the change.
    fn key_hash(&self, route: &Route, change: &Change<&str>) -> u64 {
        let mut hasher = self.hashing.build_hasher();
        change
            .old_key_values(route)
            .for_each(|value| value.hash(&mut hasher));
        hasher.finish()
    }

    /// Adds a change to the open batch, which it begins if there is none.
    fn add(&mut self, route: &Rc<Route>, kind: BatchKind, change: &Change<&str>) -> &mut Batch {
        let batch = self.open.get_or_insert_with(|| {
            let batch = Batch::new(route.clone(), kind);
            let batch = if self.binary {
                batch.in_binary()
            } else {
                batch
            };
            Batch {
                unchanged: change.unchanged.clone(),
                ..batch
            }
        });
        batch.push(change);
        batch
    }

    fn close(&mut self) {
        self.keys.clear();
        if let Some(batch) = &self.open
            && matches!(
                batch.kind,
                BatchKind::Delete | BatchKind::Move | BatchKind::Swap
            )
            && !self.vanished.contains(&batch.route.source)
        {
            self.vanished.insert(batch.route.source.clone());
        }
        self.ready.extend(self.open.take());
    }

    fn flush_moves(&mut self) {
        let mut rest = std::mem::take(&mut self.moves);
        while let Some((route, _)) = rest.first() {
            let route = route.clone();
            let (own, others): (Vec<_>, Vec<_>) =
                rest.into_iter().partition(|(r, _)| Rc::ptr_eq(r, &route));
            rest = others;
            let moves: Vec<Change<String>> = own.into_iter().map(|(_, m)| m).collect();
            self.append_moves(&route, &moves);
        }
    }

    /// Moves that the server's key allows at once, columns that only it has included.
    fn append_at_once(&mut self, route: &Rc<Route>, moves: &[Change<String>]) {
        let groups = if route.key_exact {
            groups(route, moves)
        } else {
            // Who holds a key cannot be told, but each is held by one row afterwards.
            vec![(0..moves.len()).collect()]
        };
        self.append_groups(route, BatchKind::Move, moves, groups);
    }

    /// Groups of moves, none of which is torn.
    fn append_groups(
        &mut self,
        route: &Rc<Route>,
        kind: BatchKind,
        moves: &[Change<String>],
        groups: Vec<Vec<usize>>,
    ) {
        self.close();
        for group in groups {
            let is_full =
                |open: &Batch| open.rows + group.len() > MAX_ROWS || open.bytes() >= MAX_BYTES;
            if self.open.as_ref().is_some_and(is_full) {
                self.close();
            }
            for at in group {
                self.add(route, kind, &moves[at].borrowed());
            }
        }
        self.close();
    }

    /// Whether rows that move over a route are moved at once now.
    fn goes_at_once(&self, route: &Route) -> bool {
        moves_at_once(route) && !self.in_waves.includes(&route.target) && self.limit > 1
    }

    fn append_moves(&mut self, route: &Rc<Route>, moves: &[Change<String>]) {
        if !route.key_exact {
            // Who holds a key cannot be told from its text. But the command moved them one by one in this
            // order, and found each new key free.
            for change in moves {
                self.close();
                self.append(route, BatchKind::Move, &change.borrowed());
            }
            return self.close();
        }
        // Under newest, what takes each other's keys goes in one statement, which gives the rows each other's
        // values instead where one of them is not to move.
        let swaps = matches!(route.policy, Policy::Newest(_)) && self.goes_at_once(route);
        if swaps {
            self.append_groups(route, BatchKind::Swap, moves, circles(route, moves));
        }
        for (kind, wave) in waves(route, moves) {
            if swaps && kind == BatchKind::Update {
                continue;
            }
            // A wave needs the keys that the ones before it give up.
            self.close();
            for at in wave {
                let mut change = moves[at].borrowed();
                if kind == BatchKind::Update {
                    change.key.clear();
                }
                self.append(route, kind, &change);
            }
        }
        self.close();
    }

    /// What a group comes to: first what goes, then what moves or stays, then what is new.
    fn flush_deferrable(&mut self) {
        let Some((route, mut net)) = self.deferrable.take() else {
            return;
        };
        let at_once = self.goes_at_once(&route)
            && !matches!(route.policy, Policy::Newest(_))
            && (route.key_exact || net.moves.len() <= MAX_ROWS);
        if !route.key_exact && !at_once {
            // As for other moves, but no order is known to work: all leave, then all arrive.
            for mut moved in std::mem::take(&mut net.moves) {
                let key = std::mem::take(&mut moved.key);
                net.deletes.push(Change {
                    op: Op::Delete,
                    key,
                    row: Vec::new(),
                    ..moved.clone()
                });
                net.inserts.push(Change {
                    op: Op::Insert,
                    unchanged: Vec::new(),
                    ..moved
                });
            }
        }
        for delete in &net.deletes {
            self.append(&route, BatchKind::Delete, &delete.borrowed());
        }
        for update in &net.updates {
            self.append(&route, BatchKind::Update, &update.borrowed());
        }
        if at_once {
            self.append_at_once(&route, &net.moves)
        } else {
            self.append_moves(&route, &net.moves)
        }
        for insert in &net.inserts {
            self.append(&route, BatchKind::Insert, &insert.borrowed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Carrier, Column, Op, Policy, Relation, RowStorage};
    use crate::sql::Param;
    use crate::sql::batch::Elements;

    fn route() -> Rc<Route> {
        let name = |t: &str| Relation {
            schema: "s".into(),
            table: t.into(),
        };
        let column = |n: &str| Column {
            name: n.into(),
            carrier: Carrier::Element,
            identity_always: false,
            own_equality: false,
            collated: false,
            local: None,
            binary: None,
            own_type: None,
        };
        Rc::new(Route {
            source: name("l"),
            target: name("t"),
            columns: vec![column("id"), column("v")],
            key: vec![0],
            key_deferrable: false,
            key_exact: true,
            policy: Policy::Overwrite,
            truncate_children: false,
            cascades_from: Vec::new(),
            application_name: None,
            path: Default::default(),
        })
    }

    fn first_array(batch: Batch) -> String {
        if let Some(Some(value)) = batch
            .single
            .and_then(|single| single.params.into_iter().next())
        {
            return format!(r#"{{"{value}"}}"#);
        }
        let array = batch.new.into_iter().chain(batch.old).next();
        match array.map(Elements::into_param) {
            Some(Param::Text(text)) => text,
            _ => String::new(),
        }
    }

    fn insert(id: &'static str) -> Change<&'static str> {
        let row = vec![Some(id), Some("x")];
        Change {
            op: Op::Insert,
            command: 0,
            key: vec![],
            row,
            stamp: None,
            tombstone: None,
            unchanged: vec![],
            stored: RowStorage::default(),
            overtaken: false,
        }
    }

    fn update(command: u32, from: &'static str, to: &'static str) -> Change<&'static str> {
        let key = if from == to { vec![] } else { vec![Some(from)] };
        Change {
            op: Op::Update,
            command,
            key,
            row: vec![Some(to), Some(from)],
            stamp: None,
            tombstone: None,
            unchanged: vec![],
            stored: RowStorage::default(),
            overtaken: false,
        }
    }

    fn delete(id: &'static str) -> Change<&'static str> {
        Change {
            op: Op::Delete,
            command: 0,
            key: vec![Some(id)],
            row: vec![],
            stamp: None,
            tombstone: None,
            unchanged: vec![],
            stored: RowStorage::default(),
            overtaken: false,
        }
    }

    /// The batches as (kind, first array of new rows or of old keys).
    fn plan(changes: &[Change<&str>]) -> Vec<(BatchKind, String)> {
        let mut planner = Planner::default();
        let route = route();
        for change in changes {
            planner.push(&route, change).expect("unambiguous");
        }
        planner.finish();
        std::iter::from_fn(|| planner.pop())
            .map(|b| (b.kind, first_array(b)))
            .collect()
    }

    #[test]
    fn rows_without_a_key_share_a_batch_whatever_they_look_like() {
        let keyless = Route {
            key: Vec::new(),
            policy: Policy::Error,
            ..(*route()).clone()
        };
        let mut planner = Planner::default();
        let keyless = Rc::new(keyless);
        for _ in 0..3 {
            planner.push(&keyless, &insert("1")).expect("unambiguous");
        }
        planner.finish();
        assert_eq!(planner.pop().map(|batch| batch.rows), Some(3));
        assert!(planner.pop().is_none());
    }

    #[test]
    fn a_run_of_one_kind_is_one_batch() {
        let batches = plan(&[
            insert("1"),
            insert("2"),
            delete("1"),
            delete("2"),
            insert("3"),
        ]);
        assert_eq!(
            batches,
            [
                (BatchKind::Insert, r#"{"1","2"}"#.into()),
                (BatchKind::Delete, r#"{"1","2"}"#.into()),
                (BatchKind::Insert, r#"{"3"}"#.into()),
            ]
        );
    }

    #[test]
    fn a_batch_is_cut_where_a_key_comes_again() {
        let batches = plan(&[
            update(1, "1", "1"),
            update(1, "2", "2"),
            update(2, "1", "1"),
            update(3, "1", "1"),
            update(3, "2", "2"),
        ]);
        let keys: Vec<&str> = batches.iter().map(|(_, k)| k.as_str()).collect();
        assert_eq!(keys, [r#"{"1","2"}"#, r#"{"1"}"#, r#"{"1","2"}"#]);
    }

    #[test]
    fn rows_that_go_with_those_of_another_table_are_known_to_do_so() {
        let parent = route();
        let name = Relation {
            schema: "l".into(),
            table: "c".into(),
        };
        let cascades_from = vec![parent.source.clone()];
        let child = Rc::new(Route {
            source: name,
            cascades_from,
            ..(*parent).clone()
        });
        let mut planner = Planner::default();
        for (route, change) in [
            (&child, delete("1")),
            (&parent, delete("1")),
            (&child, delete("2")),
        ] {
            planner.push(route, &change).expect("unambiguous");
        }
        planner.finish();
        let after: Vec<bool> = std::iter::from_fn(|| planner.pop())
            .map(|b| b.after_cascade)
            .collect();
        assert_eq!(after, [false, false, true]);
    }

    #[test]
    fn a_chain_of_moves_goes_from_its_end() {
        let batches = plan(&[
            update(1, "1", "2"),
            update(1, "2", "3"),
            update(1, "3", "4"),
        ]);
        let keys: Vec<&str> = batches.iter().map(|(_, k)| k.as_str()).collect();
        assert_eq!(keys, [r#"{"4"}"#, r#"{"3"}"#, r#"{"2"}"#]);
        assert!(batches.iter().all(|(kind, _)| *kind == BatchKind::Move));
    }

    #[test]
    fn moves_that_do_not_meet_are_one_batch() {
        let batches = plan(&[
            update(1, "1", "11"),
            update(1, "2", "12"),
            update(1, "3", "3"),
        ]);
        assert_eq!(
            batches,
            [
                (BatchKind::Update, r#"{"3"}"#.into()),
                (BatchKind::Move, r#"{"11","12"}"#.into())
            ]
        );
    }

    #[test]
    fn a_swap_is_written_in_place_and_feeds_no_chain_before_it() {
        let batches = plan(&[
            update(1, "1", "2"),
            update(1, "2", "1"),
            update(1, "5", "6"),
        ]);
        assert_eq!(
            batches,
            [
                (BatchKind::Update, r#"{"2","1"}"#.into()),
                (BatchKind::Move, r#"{"6"}"#.into())
            ]
        );
    }

    #[test]
    fn moves_of_different_commands_keep_their_order() {
        let batches = plan(&[update(1, "1", "2"), update(2, "2", "3")]);
        let keys: Vec<&str> = batches.iter().map(|(_, k)| k.as_str()).collect();
        assert_eq!(keys, [r#"{"2"}"#, r#"{"3"}"#]);
    }

    #[test]
    fn a_large_run_is_cut_by_rows_into_batches_that_grow() {
        let ids: Vec<String> = (0..20_000).map(|i| i.to_string()).collect();
        let mut planner = Planner::growing();
        let route = route();
        for id in &ids {
            let row = vec![Some(id.as_str()), None];
            planner
                .push(&route, &Change { row, ..insert("") })
                .expect("unambiguous");
        }
        planner.finish();
        let rows: Vec<usize> = std::iter::from_fn(|| planner.pop())
            .map(|b| b.rows)
            .collect();
        assert_eq!(rows, [500, 1_000, 2_000, 4_000, 5_000, 5_000, 2_500]);
    }

    #[test]
    fn truncates_in_a_row_become_one() {
        let truncate = Change {
            op: Op::Truncate,
            ..delete("1")
        };
        let mut planner = Planner::default();
        let one = route();
        let two = route();
        planner.push(&one, &truncate).expect("unambiguous");
        planner.push(&two, &truncate).expect("unambiguous");
        planner.finish();
        assert_eq!(planner.pop().map(|b| b.truncated.len()), Some(2));
        assert!(planner.pop().is_none());
    }

    /// A change of a table whose key is deferrable: stored there before, here after.
    fn stored(change: Change<&'static str>, stored: (u64, u64)) -> Change<&'static str> {
        stored_in(1, change, stored)
    }

    /// A change of a table whose key is deferrable, stored in this file.
    fn stored_in(
        file: u32,
        change: Change<&'static str>,
        (before, after): (u64, u64),
    ) -> Change<&'static str> {
        Change {
            stored: RowStorage {
                before,
                after,
                file,
                transaction: 1,
            },
            ..change
        }
    }

    fn plan_deferrable(changes: &[Change<&str>]) -> Result<Vec<(BatchKind, String)>> {
        plan_deferrable_in(InWaves::None, changes)
    }

    fn plan_deferrable_in(
        in_waves: InWaves,
        changes: &[Change<&str>],
    ) -> Result<Vec<(BatchKind, String)>> {
        let route = Rc::new(Route {
            key_deferrable: true,
            ..(*route()).clone()
        });
        let other = self::route();
        let mut planner = Planner::default();
        planner.in_waves(in_waves);
        for change in changes {
            // A TRUNCATE here stands for any change of another table.
            let route = if change.op == Op::Truncate {
                &other
            } else {
                &route
            };
            planner.push(route, change)?;
        }
        planner.finish();
        Ok(std::iter::from_fn(|| planner.pop())
            .filter(|b| b.kind != BatchKind::Truncate)
            .map(|b| (b.kind, first_array(b)))
            .collect())
    }

    #[test]
    fn two_commands_may_swap_keys_that_are_deferrable() {
        let swap = [
            stored(update(1, "1", "2"), (11, 13)),
            stored(update(2, "2", "1"), (12, 14)),
        ];
        let batches = plan_deferrable(&swap);
        assert_eq!(
            batches.expect("a plan"),
            [(BatchKind::Move, r#"{"2","1"}"#.into())]
        );
        let batches = plan_deferrable_in(InWaves::All, &swap);
        assert_eq!(
            batches.expect("a plan"),
            [(BatchKind::Update, r#"{"2","1"}"#.into())]
        );
    }

    #[test]
    fn rows_move_at_once_those_whose_keys_others_need_first() {
        let ids: Vec<String> = (0..=MAX_ROWS as u64 + 10)
            .map(|id| id.to_string())
            .collect();
        let route = Rc::new(Route {
            key_deferrable: true,
            ..(*route()).clone()
        });
        let mut planner = Planner::default();
        for (at, pair) in ids.windows(2).enumerate() {
            let row = vec![Some(pair[1].as_str()), None];
            let key = vec![Some(pair[0].as_str())];
            let at = at as u64 + 1;
            let places = RowStorage {
                before: at,
                after: at + 100_000,
                file: 1,
                transaction: 1,
            };
            let change = Change {
                row,
                key,
                stored: places,
                ..update(1, "1", "2")
            };
            planner.push(&route, &change).expect("unambiguous");
        }
        planner.finish();
        let batches: Vec<Batch> = std::iter::from_fn(|| planner.pop()).collect();
        let rows: Vec<usize> = batches.iter().map(|batch| batch.rows).collect();
        assert_eq!(rows, [MAX_ROWS, 10]);
        let last = first_array(batches.into_iter().next_back().expect("a batch"));
        assert_eq!(last, r#"{"10","9","8","7","6","5","4","3","2","1"}"#);
    }

    #[test]
    fn changes_of_one_row_come_to_its_last_state() {
        let batches = plan_deferrable(&[
            stored(insert("1"), (0, 11)),
            stored(update(2, "1", "2"), (11, 12)),
            stored(insert("5"), (0, 15)),
            stored(delete("5"), (15, 0)),
            stored(delete("7"), (17, 0)),
        ]);
        assert_eq!(
            batches.expect("a plan"),
            [
                (BatchKind::Delete, r#"{"7"}"#.into()),
                (BatchKind::Insert, r#"{"2"}"#.into())
            ]
        );
    }

    #[test]
    fn rows_of_a_table_that_is_rewritten_in_between_are_not_taken_for_each_other() {
        let batches = plan_deferrable(&[
            stored(insert("1"), (0, 11)),
            // Here another row is stored where that one was.
            stored_in(2, update(2, "2", "2"), (11, 13)),
            stored_in(2, update(3, "1", "1"), (12, 14)),
        ]);
        assert_eq!(
            batches.expect("a plan"),
            [
                (BatchKind::Insert, r#"{"1"}"#.into()),
                (BatchKind::Update, r#"{"2","1"}"#.into())
            ]
        );
    }

    #[test]
    fn a_key_held_twice_across_another_table_is_refused() {
        let other = Change {
            op: Op::Truncate,
            ..delete("1")
        };
        let refused = plan_deferrable(&[
            stored(update(1, "1", "2"), (11, 13)),
            other,
            stored(update(2, "2", "1"), (12, 14)),
        ]);
        assert_eq!(refused.expect_err("ambiguous").sqlstate().as_str(), "0A000");
    }
}
