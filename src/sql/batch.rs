//! A run of changes that one statement applies.

use super::binary::BinaryArray;
use super::param::Param;
use super::quote::ArrayLiteral;
use crate::change::{Carrier, Change, Column, Op, Policy, Route, Stamp};
use std::rc::Rc;

/// What a batch does; all its rows do the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchKind {
    Insert,
    /// UPDATE that leaves the key alone.
    Update,
    /// UPDATE that gives the row another key.
    Move,
    /// As [`BatchKind::Move`], for rows of which each takes the key of another one, or all of them are to keep their keys:
    /// under [`Policy::Newest`], where the key is deferrable here.
    Swap,
    Delete,
    Truncate,
}

impl BatchKind {
    /// The kind of a change.
    pub fn of<S>(change: &Change<S>) -> Self {
        match change.op {
            Op::Insert => Self::Insert,
            Op::Update if change.moves() => Self::Move,
            Op::Update => Self::Update,
            Op::Delete => Self::Delete,
            Op::Truncate => Self::Truncate,
        }
    }
}

/// The only row of a batch.
#[derive(Clone, Debug, Default)]
pub struct Single {
    /// Those columns that are sent, then the old key.
    pub params: Vec<Option<String>>,
    /// The key: of a deletion the old one.
    pub key: Vec<Option<String>>,
}

/// Values of a column as an array.
#[derive(Clone, Debug, Default)]
pub struct Elements {
    /// The values as text. Empty where all values that may come have a binary form.
    text: ArrayLiteral,
    /// The values in binary form, as long as all of them have one.
    binary: Option<BinaryArray>,
}

impl Elements {
    fn push(&mut self, value: Option<&str>) {
        if let Some(binary) = &mut self.binary {
            let understood = binary.push(value);
            if binary.is_text() {
                return;
            }
            if !understood {
                self.binary = None;
            }
        }
        self.text.push(value);
    }

    fn len(&self) -> usize {
        self.text
            .len()
            .max(self.binary.as_ref().map_or(0, BinaryArray::len))
    }

    /// Whether it will be an array of texts in binary form.
    pub fn is_binary_text(&self) -> bool {
        self.binary.as_ref().is_some_and(BinaryArray::is_text)
    }

    /// The finished array.
    pub fn into_param(self) -> Param {
        match self.binary {
            Some(binary) => {
                let (array, bytes) = binary.finish();
                Param::Binary { array, bytes }
            }
            None => Param::Text(self.text.into_text()),
        }
    }
}

/// Changes of one route and kind, column by column as arrays.
#[derive(Clone, Debug)]
pub struct Batch {
    pub route: Rc<Route>,
    pub kind: BatchKind,
    /// Changes in the batch.
    pub rows: usize,
    /// An array per column: the new rows. Empty, as `old`, for a single row that [takes
    /// parameters](Batch::takes_params).
    pub new: Vec<Elements>,
    /// An array per key column: the old keys.
    pub old: Vec<Elements>,
    /// Under [`Policy::Newest`]: what the new rows count as, versions and ranks.
    pub stamp: Option<[ArrayLiteral; 2]>,
    /// Under [`Policy::Newest`]: what the deletions of the old keys count as.
    pub tombstone: Option<[ArrayLiteral; 2]>,
    /// Its only row, if it has but one.
    pub single: Option<Single>,
    /// UPDATE: positions of columns that are not sent.
    pub unchanged: Vec<u32>,
    /// Under [`Policy::Overwrite`]: take it that the remote is as the change expects, and fail if it is
    /// not. Cheaper by half than an upsert; whoever sends it must be ready to send the other.
    pub optimistic: bool,
    /// Optimistic, and all of its transaction: what has found no row has done nothing, and may be committed.
    pub alone: bool,
    /// A cascade may have done there already what its changes do.
    pub after_cascade: bool,
    /// TRUNCATE: the routes of all tables truncated together.
    pub truncated: Vec<Rc<Route>>,
    /// A single row is in arrays too.
    pub only_arrays: bool,
}

impl Batch {
    /// An empty batch.
    pub fn new(route: Rc<Route>, kind: BatchKind) -> Self {
        let new = match kind {
            BatchKind::Insert | BatchKind::Update | BatchKind::Move | BatchKind::Swap => {
                route.columns.len()
            }
            BatchKind::Delete | BatchKind::Truncate => 0,
        };
        let old = match kind {
            BatchKind::Move | BatchKind::Swap | BatchKind::Delete => route.key.len(),
            BatchKind::Insert | BatchKind::Update | BatchKind::Truncate => 0,
        };
        let is_newest = matches!(route.policy, Policy::Newest(_));
        Self {
            new: vec![Elements::default(); new],
            old: vec![Elements::default(); old],
            stamp: (is_newest && new > 0).then(Default::default),
            // Each key that a swap leaves is taken again.
            tombstone: (is_newest && old > 0 && kind != BatchKind::Swap).then(Default::default),
            rows: 0,
            single: None,
            unchanged: Vec::new(),
            optimistic: false,
            alone: false,
            after_cascade: false,
            truncated: Vec::new(),
            only_arrays: false,
            route,
            kind,
        }
    }

    /// This batch, still empty, with arrays even for a single row.
    pub fn in_arrays(mut self) -> Self {
        self.only_arrays = true;
        self
    }

    /// This batch, still empty, with values in binary form where that is possible.
    pub fn in_binary(mut self) -> Self {
        let columns = &self.route.columns;
        let binary = |at: usize| columns[at].binary.map(BinaryArray::new);
        for (at, array) in self.new.iter_mut().enumerate() {
            array.binary = binary(at);
        }
        for (array, at) in self.old.iter_mut().zip(&self.route.key) {
            array.binary = binary(*at);
        }
        self
    }

    /// Whether a row's values can be parameters, see [`Values::of_params`](super::values::Values::of_params).
    pub fn takes_params(&self) -> bool {
        let plain = |c: &Column| c.carrier == Carrier::Element && !c.own_equality;
        match (self.kind, self.route.policy) {
            _ if self.only_arrays => false,
            (_, Policy::Newest(_)) | (BatchKind::Move | BatchKind::Truncate, _) => false,
            _ => self.route.columns.iter().all(plain),
        }
    }

    /// Appends a change of the same route and kind.
    pub fn push(&mut self, change: &Change<&str>) {
        self.rows += 1;
        if self.rows == 1 {
            self.single = Some(self.single_of(change));
            if self.takes_params() {
                // Arrays are for more than one row.
                return;
            }
        } else if let Some(single) = self.single.take()
            && self.takes_params()
        {
            self.spread(&single);
        }
        for (at, (array, value)) in self.new.iter_mut().zip(&change.row).enumerate() {
            if !self.unchanged.contains(&(at as u32)) {
                array.push(*value);
            }
        }
        for (array, value) in self.old.iter_mut().zip(&change.key) {
            array.push(*value);
        }
        if let (Some([versions, ranks]), Policy::Newest(at)) = (&mut self.stamp, self.route.policy)
        {
            let own = Stamp {
                version: change.row.get(at).copied().flatten(),
                rank: 0,
            };
            let stamp = change.stamp.as_ref().unwrap_or(&own);
            versions.push(stamp.version);
            ranks.push(Some(&stamp.rank.to_string()));
        }
        if let Some([versions, ranks]) = &mut self.tombstone {
            versions.push(
                change
                    .tombstone
                    .as_ref()
                    .and_then(|tombstone| tombstone.version),
            );
            ranks.push(Some(
                &change
                    .tombstone
                    .as_ref()
                    .map_or(0, |tombstone| tombstone.rank)
                    .to_string(),
            ));
        }
    }

    fn single_of(&self, change: &Change<&str>) -> Single {
        let sent = |at: &usize| !self.unchanged.contains(&(*at as u32));
        let row = (0..self.new.len())
            .filter(sent)
            .filter_map(|at| change.row.get(at));
        let old = change.key.iter().take(self.old.len());
        let owned = |value: &Option<&str>| value.map(str::to_owned);
        let key = match self.kind {
            BatchKind::Delete => change.key.clone(),
            _ => change.new_key(&self.route),
        };
        Single {
            params: row.chain(old).map(owned).collect(),
            key: key.iter().map(owned).collect(),
        }
    }

    /// Begins the arrays with the first row.
    fn spread(&mut self, single: &Single) {
        let new = self.new.iter_mut().enumerate();
        let sent = new.filter(|(at, _)| !self.unchanged.contains(&(*at as u32)));
        let arrays = sent.map(|(_, array)| array).chain(&mut self.old);
        arrays
            .zip(&single.params)
            .for_each(|(array, value)| array.push(value.as_deref()));
    }

    /// Size of the parameters, in bytes.
    pub fn bytes(&self) -> usize {
        let stamps = self.stamp.iter().chain(&self.tombstone).flatten();
        let arrays = self.new.iter().chain(&self.old).map(Elements::len);
        let single = self
            .single
            .iter()
            .flat_map(|single| &single.params)
            .flatten();
        arrays.sum::<usize>().max(single.map(String::len).sum())
            + stamps.map(ArrayLiteral::len).sum::<usize>()
    }
}
