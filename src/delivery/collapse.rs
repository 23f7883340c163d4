//! Net effect of a transaction's changes on a table whose key is deferrable. Pure.
//!
//! Within a transaction two of its rows may hold the same key until the constraint is checked: "move
//! 1 to 2, then the other 2 to 1" names the same key twice and means two rows. So consecutive changes
//! are not replayed one by one but collapsed: rows are told apart by where they are stored, and each
//! ends up deleted, changed or inserted once. Holds the group in memory.
//!
//! Where a row is stored tells it from others within one file. A group ends where the table is rewritten: that
//! is refused while a check of the key is still to come, so each key is held by one row then.

use crate::change::{Change, Op, Route, RowStorage, Stamp};
use crate::error::{Error, Result, SqlState};
use std::collections::HashMap;
use std::rc::Rc;

type Key = Vec<Option<String>>;

/// A row that the group touches.
struct Row {
    /// Its key before the group; `None` for a row that the group inserted.
    before: Option<Key>,
    /// What leaving that key counts as.
    tombstone: Option<Stamp<String>>,
    /// Its last change.
    last: Change<String>,
}

/// Changes of one route on their way to their net effect.
#[derive(Default)]
pub struct Collapse {
    route: Option<Rc<Route>>,
    rows: Vec<Row>,
    /// Where a row is stored now, to its position in `rows`.
    stored: HashMap<u64, usize>,
    /// Of groups done before in the same transaction: who holds a key, as file and place.
    holders: HashMap<(usize, Key), (u32, u64)>,
    transaction: u32,
    /// The file in which the group's rows are stored.
    file: u32,
}

/// What a group comes to.
#[derive(Default)]
pub struct Net {
    pub deletes: Vec<Change<String>>,
    /// UPDATEs that leave the key alone.
    pub updates: Vec<Change<String>>,
    pub moves: Vec<Change<String>>,
    pub inserts: Vec<Change<String>>,
}

impl Collapse {
    /// Whether there is no group.
    pub fn is_empty(&self) -> bool {
        self.route.is_none()
    }

    /// Whether the change belongs to the group under way.
    pub fn continues(&self, route: &Rc<Route>, change: &Change<&str>) -> bool {
        self.route.as_ref().is_none_or(|own| Rc::ptr_eq(own, route))
            && (self.rows.is_empty()
                || (self.transaction, self.file) == (change.stored.transaction, change.stored.file))
    }

    /// Adds a change to the group.
    ///
    /// # Errors
    /// 0A000 when an earlier group of the transaction left its key to another row: which of the two
    /// the remote's row is cannot be told.
    pub fn push(&mut self, route: &Rc<Route>, change: &Change<&str>) -> Result<()> {
        let RowStorage {
            before: from,
            after: to,
            file,
            transaction,
        } = change.stored;
        if self.transaction != transaction {
            self.transaction = transaction;
            self.holders.clear();
        }
        self.route = Some(route.clone());
        self.file = file;
        let known = self
            .stored
            .remove(&from)
            .filter(|_| change.op != Op::Insert);
        let at = match known {
            Some(at) => at,
            None => {
                let before = (change.op != Op::Insert).then(|| owned(&change.old_key(route)));
                if let Some(key) = &before {
                    self.check_holder(route, key, from)?;
                }
                self.rows.push(Row {
                    before,
                    tombstone: None,
                    last: change.owned(),
                });
                self.rows.len() - 1
            }
        };
        let row = &mut self.rows[at];
        row.last = change.owned();
        row.tombstone = row.tombstone.take().or_else(|| row.last.tombstone.clone());
        if known.is_some() {
            // An earlier change of the group may have touched what this one left alone.
            row.last.unchanged.clear();
        }
        if to != 0 {
            self.stored.insert(to, at);
        }
        Ok(())
    }

    fn check_holder(&self, route: &Rc<Route>, key: &Key, stored: u64) -> Result<()> {
        let id = (Rc::as_ptr(route) as usize, key.clone());
        match self.holders.get(&id) {
            Some((file, holder)) if *file == self.file && *holder != stored => Err(Error::local(
                SqlState::FEATURE_NOT_SUPPORTED,
                format!(
                    "two rows of \"{}\" held the same deferrable key while other tables changed",
                    route.source.table
                ),
            )
            .with_hint("Swap keys in statements that follow each other directly.")),
            _ => Ok(()),
        }
    }

    /// Ends the group.
    pub fn take(&mut self) -> Option<(Rc<Route>, Net)> {
        let route = self.route.take()?;
        for (stored, at) in self.stored.drain() {
            let key = owned(&self.rows[at].last.new_key(&route));
            self.holders
                .insert((Rc::as_ptr(&route) as usize, key), (self.file, stored));
        }
        let mut net = Net::default();
        for Row {
            before,
            tombstone,
            mut last,
        } in self.rows.drain(..)
        {
            last.tombstone = tombstone;
            match (before, last.op) {
                // Inserted and deleted again: nothing happened.
                (None, Op::Delete) => {}
                (None, _) => {
                    (last.op, last.key) = (Op::Insert, Vec::new());
                    net.inserts.push(last);
                }
                (Some(key), Op::Delete) => {
                    last.key = key;
                    net.deletes.push(last);
                }
                (Some(key), _) => {
                    last.op = Op::Update;
                    if owned(&last.new_key(&route)) == key {
                        last.key = Vec::new();
                        net.updates.push(last);
                    } else {
                        last.key = key;
                        net.moves.push(last);
                    }
                }
            }
        }
        Some((route, net))
    }
}

fn owned(key: &[Option<&str>]) -> Key {
    key.iter().map(|v| v.map(str::to_owned)).collect()
}
