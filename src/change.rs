//! What travels: a [`Change`] and the [`Route`] it takes.
//!
//! Plain data with a serde form, free of the server. Capture makes it, the change set and the queue
//! store it, `sql` renders it, delivery and drain send it. All text is UTF-8: values are the output
//! of the type's output function, converted from the database's encoding where that differs.

use crate::error::Result;
use crate::path::Path;
use serde::{Deserialize, Serialize};
use std::rc::Rc;

/// A schema-qualified name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Relation {
    pub schema: String,
    pub table: String,
}

/// How values of a column cross over. The remote column's own type is always the one that counts;
/// no user-defined type is ever named, since its schema may differ on the other side.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Carrier {
    /// As elements of an array of the remote column's type.
    Element,
    /// As text, cast to this array type of `pg_catalog` (an array cannot be an array's element).
    Array(String),
    /// As text in a JSON object, through the remote table's row type (composites, and arrays of
    /// user-defined types).
    Record,
}

/// A column as the remote table names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    pub carrier: Carrier,
    /// GENERATED ALWAYS AS IDENTITY: an INSERT may give its value, no UPDATE may. Stored under the
    /// name that it had at first.
    #[serde(default, rename = "fixed")]
    pub identity_always: bool,
    /// The type brings its own equality operator; it is not one of PostgreSQL's.
    #[serde(default)]
    pub own_equality: bool,
    /// Its values have a collation.
    #[serde(default)]
    pub collated: bool,
    /// The local table's name for it, if that is another.
    #[serde(default)]
    pub local: Option<String>,
    /// Its values may also travel so. Not kept in the queue.
    #[serde(skip)]
    pub binary: Option<Binary>,
    /// Of key and version: what is asked of the server's column before the first change. `None` where the
    /// type is none of PostgreSQL's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_type: Option<OwnType>,
}

/// A type of PostgreSQL's own: its name and modifier; of a domain, those of what it is over.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OwnType {
    pub name: String,
    pub modifier: i32,
}

/// A type whose binary form is known here, see [`crate::sql::binary`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    Int2,
    Int4,
    Int8,
    Timestamp,
    TimestampTz,
    /// text and varchar.
    Text,
}

impl Column {
    /// A place among the columns that both sides of a pair of masters come to.
    fn order(&self) -> (&str, &str) {
        let local = self.local.as_ref().unwrap_or(&self.name);
        (local.min(&self.name), local.max(&self.name))
    }
}

/// What the remote does when it does not find what the change expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Policy {
    /// The change wins: an INSERT is an upsert, an UPDATE writes a missing row.
    Overwrite,
    /// The change set fails.
    Error,
    /// The remote row wins.
    Skip,
    /// The larger value of this column (a position in [`Route::columns`]) wins.
    Newest(usize),
}

/// Where the changes of one trigger go and in what form; the same for all changes it captures
/// until the table or the trigger is altered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Route {
    pub source: Relation,
    pub target: Relation,
    /// The columns of [`Change::row`], in its order.
    pub columns: Vec<Column>,
    /// The key, as positions in `columns`; its order is that of [`Change::key`]. Empty where rows are only
    /// inserted and nothing tells them apart, see [`Route::is_keyless`].
    pub key: Vec<usize>,
    /// The local key's constraint is deferrable: the remote's may be too, so no ON CONFLICT may
    /// rely on it, and within a transaction two rows may hold the same key.
    #[serde(default)]
    pub key_deferrable: bool,
    /// Two keys are the same exactly if their texts are. Where that is not certain, changes of the
    /// table cannot be told apart by row.
    #[serde(default)]
    pub key_exact: bool,
    pub policy: Policy,
    /// TRUNCATE without ONLY (the local table is partitioned).
    pub truncate_children: bool,
    /// The `application_name` these changes must carry on the server, where the trigger names one.
    pub application_name: Option<String>,
    /// Tables whose deleted rows, or changed keys, take rows of this one with them: here, and there before the
    /// change of such a row arrives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cascades_from: Vec<Relation>,
    /// How they came here, where they come from another node.
    #[serde(default, skip_serializing_if = "Path::is_empty")]
    pub path: Path,
}

impl Policy {
    /// This policy for other columns: `position` maps the position of the version's column.
    pub fn with_version(self, position: impl Fn(usize) -> usize) -> Self {
        match self {
            Self::Newest(at) => Self::Newest(position(at)),
            other => other,
        }
    }
}

impl Route {
    /// Whether its positions are those of columns that it has, and it has a key or need not have one: not so
    /// in a route that was not written by capture.
    pub fn is_sound(&self) -> bool {
        let known = |at| at < self.columns.len();
        let has_key = !self.is_keyless() || self.policy == Policy::Error;
        has_key && self.key.iter().copied().chain(self.version()).all(known)
    }

    /// Whether nothing tells rows apart: they are inserted, and whether that has happened cannot be seen by
    /// looking at them. Its policy is [`Policy::Error`].
    pub fn is_keyless(&self) -> bool {
        self.key.is_empty()
    }

    /// Positions of the key columns that an UPDATE may set.
    pub fn settable_key(&self) -> impl Iterator<Item = usize> + '_ {
        self.key
            .iter()
            .copied()
            .filter(|at| !self.columns[*at].identity_always)
    }

    /// Whether there is anything that an UPDATE may set.
    pub fn can_update(&self) -> bool {
        self.columns.iter().any(|column| !column.identity_always)
    }

    /// Positions of the columns that are compared by operators of their type's own schema.
    pub fn compared(&self) -> impl Iterator<Item = usize> + '_ {
        let all = self.key.iter().copied().chain(self.version());
        all.filter(|at| self.columns[*at].own_equality)
    }

    /// Position of the column whose larger value wins, under [`Policy::Newest`].
    pub fn version(&self) -> Option<usize> {
        match self.policy {
            Policy::Newest(at) => Some(at),
            _ => None,
        }
    }

    /// Positions of the key columns in the order of their names on the server, which does not depend on
    /// how a trigger there lists them.
    pub fn named_key(&self) -> Vec<usize> {
        let mut key = self.key.clone();
        key.sort_by_key(|at| &self.columns[*at].name);
        key
    }

    /// Positions of all columns in an order that both sides of a pair of masters come to.
    pub fn common_order(&self) -> Vec<usize> {
        let mut all: Vec<usize> = (0..self.columns.len()).collect();
        all.sort_by_key(|at| self.columns[*at].order());
        all
    }

    /// Positions of the columns that an UPDATE of a row sets.
    pub fn settable(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.columns.len())
            .filter(|at| !self.key.contains(at) && !self.columns[*at].identity_always)
    }
}

/// The kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Op {
    Insert,
    Update,
    Delete,
    Truncate,
}

impl Op {
    /// The SQL keyword.
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Truncate => "TRUNCATE",
        }
    }
}

/// What a row, or its deletion, counts as where the newest wins: the larger version, then the larger rank.
///
/// A write whose version is larger than that of what it replaces counts as its version, with rank 0. Any
/// other (the version was left as it was, or comes from a clock that is behind) counts as what it replaces
/// with the next rank, and so does a deletion. So what was written with knowledge of something else always
/// wins over it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp<S> {
    /// `None` is NULL, the smallest.
    pub version: Option<S>,
    pub rank: i64,
}

impl<S: AsRef<str>> Stamp<S> {
    fn borrowed(&self) -> Stamp<&str> {
        Stamp {
            version: self.version.as_ref().map(AsRef::as_ref),
            rank: self.rank,
        }
    }

    fn owned(&self) -> Stamp<String> {
        let version = self.version.as_ref().map(|v| v.as_ref().to_owned());
        Stamp {
            version,
            rank: self.rank,
        }
    }
}

/// One row event, or one TRUNCATE. `S` is `&str` where the text is borrowed from a change set and
/// `String` where it is owned. `None` is SQL NULL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change<S> {
    pub op: Op,
    /// Number of the local command within its transaction, 0 for TRUNCATE: rows that one command moves
    /// to other keys move at once, those of different commands one after the other; and what one
    /// command writes may be true only together.
    pub command: u32,
    /// DELETE: the key. UPDATE that changes the key: the old key. Otherwise empty.
    pub key: Vec<Option<S>>,
    /// INSERT and UPDATE: all columns. Otherwise empty.
    pub row: Vec<Option<S>>,
    /// INSERT and UPDATE under [`Policy::Newest`]: what the row counts as, where that is not the version in
    /// it.
    pub stamp: Option<Stamp<S>>,
    /// DELETE, and UPDATE that changes the key, under [`Policy::Newest`]: what the deletion of the row with
    /// the old key counts as.
    pub tombstone: Option<Stamp<S>>,
    /// UPDATE: positions in `row` of large values that it left untouched. They need not be sent to
    /// a server that has the row.
    #[serde(default)]
    pub unchanged: Vec<u32>,
    /// Under [`Route::key_deferrable`]: what tells rows apart that hold the same key for a while.
    #[serde(default)]
    pub stored: RowStorage,
    /// It was marked failed, or waited behind such a change: newer ones, which do not depend on it, may have been
    /// applied before it, and cascades of theirs may have done what it is to do. Not kept in the queue, which
    /// knows it of each record.
    #[serde(skip)]
    pub overtaken: bool,
}

/// Where a row was stored before and after a change, 0 for nowhere. A place means something within its file
/// only: whatever rewrites the table, or puts another one into its place, stores the rows in another file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64, u32)", into = "(u64, u64, u32)")]
pub struct RowStorage {
    pub before: u64,
    pub after: u64,
    pub file: u32,
    /// Numbers the local transaction among those that are read together: a place is used anew by the next
    /// one. Not kept in the queue, which knows of each record which transaction made it.
    pub transaction: u32,
}

impl From<(u64, u64, u32)> for RowStorage {
    fn from((before, after, file): (u64, u64, u32)) -> Self {
        Self {
            before,
            after,
            file,
            transaction: 0,
        }
    }
}

impl From<RowStorage> for (u64, u64, u32) {
    fn from(
        RowStorage {
            before,
            after,
            file,
            ..
        }: RowStorage,
    ) -> Self {
        (before, after, file)
    }
}

impl<S> Change<S> {
    /// Whether it has the values that a change by this route has; see [`Route::is_sound`].
    pub fn fits(&self, route: &Route) -> bool {
        let no_key = self.key.is_empty();
        let no_row = self.row.is_empty();
        let key = self.key.len() == route.key.len();
        let row = self.row.len() == route.columns.len();
        match self.op {
            Op::Insert => no_key && row,
            Op::Update => (no_key || key) && row && !route.is_keyless(),
            Op::Delete => key && no_row && !route.is_keyless(),
            Op::Truncate => no_key && no_row,
        }
    }

    /// A TRUNCATE.
    pub fn truncation() -> Self {
        Self {
            op: Op::Truncate,
            command: 0,
            key: Vec::new(),
            row: Vec::new(),
            stamp: None,
            tombstone: None,
            unchanged: Vec::new(),
            stored: RowStorage::default(),
            overtaken: false,
        }
    }

    /// Whether this is an UPDATE that gives the row another key.
    pub fn moves(&self) -> bool {
        self.op == Op::Update && !self.key.is_empty()
    }
}

impl<S: AsRef<str>> Change<S> {
    /// An upper bound of its size in the change set's log, in bytes.
    pub fn encoded_size(&self) -> usize {
        /// Length and presence of a value, as variable-length integers.
        const PER_VALUE: usize = 11;
        let stamps = [&self.stamp, &self.tombstone].into_iter().flatten();
        let versions = stamps.map(|stamp| &stamp.version);
        let values = self.key.iter().chain(&self.row).chain(versions);
        let size = |v: &Option<S>| PER_VALUE + v.as_ref().map_or(0, |s| s.as_ref().len());
        values.map(size).sum::<usize>() + (12 + self.unchanged.len()) * PER_VALUE
    }

    /// Whether it is sent as an upsert where nothing is taken for granted of the server's rows.
    pub fn is_upsert(&self) -> bool {
        self.op == Op::Insert || (self.op == Op::Update && self.unchanged.is_empty())
    }

    /// This change with borrowed text.
    pub fn borrowed(&self) -> Change<&str> {
        fn all<S: AsRef<str>>(values: &[Option<S>]) -> Vec<Option<&str>> {
            values
                .iter()
                .map(|v| v.as_ref().map(AsRef::as_ref))
                .collect()
        }
        Change {
            op: self.op,
            command: self.command,
            key: all(&self.key),
            row: all(&self.row),
            stamp: self.stamp.as_ref().map(Stamp::borrowed),
            tombstone: self.tombstone.as_ref().map(Stamp::borrowed),
            unchanged: self.unchanged.clone(),
            stored: self.stored,
            overtaken: self.overtaken,
        }
    }

    /// This change with text of its own.
    pub fn owned(&self) -> Change<String> {
        fn all<S: AsRef<str>>(values: &[Option<S>]) -> Vec<Option<String>> {
            values
                .iter()
                .map(|v| v.as_ref().map(|s| s.as_ref().to_owned()))
                .collect()
        }
        Change {
            op: self.op,
            command: self.command,
            key: all(&self.key),
            row: all(&self.row),
            stamp: self.stamp.as_ref().map(Stamp::owned),
            tombstone: self.tombstone.as_ref().map(Stamp::owned),
            unchanged: self.unchanged.clone(),
            stored: self.stored,
            overtaken: self.overtaken,
        }
    }

    /// The version that the change counts as, where the newest wins.
    pub fn version(&self, route: &Route) -> Option<&str> {
        let at = route.version()?;
        let stamp = self
            .stamp
            .as_ref()
            .or(self.tombstone.as_ref().filter(|_| self.row.is_empty()));
        let version = match stamp {
            Some(stamp) => stamp.version.as_ref(),
            None => self.row.get(at).and_then(Option::as_ref),
        };
        version.map(AsRef::as_ref)
    }

    /// The key the row has before the change (INSERT: the key it gets).
    pub fn old_key<'c>(&'c self, route: &Route) -> Vec<Option<&'c str>> {
        self.old_key_values(route).collect()
    }

    /// The values of [`Change::old_key`].
    pub fn old_key_values<'c>(&'c self, route: &Route) -> impl Iterator<Item = Option<&'c str>> {
        let new = self.key.is_empty().then(|| self.new_key_values(route));
        let old = self.key.iter().map(|v| v.as_ref().map(AsRef::as_ref));
        old.chain(new.into_iter().flatten())
    }

    /// The key the row has after the change; empty after a DELETE.
    pub fn new_key<'c>(&'c self, route: &Route) -> Vec<Option<&'c str>> {
        self.new_key_values(route).collect()
    }

    /// The values of [`Change::new_key`].
    pub fn new_key_values<'c>(&'c self, route: &Route) -> impl Iterator<Item = Option<&'c str>> {
        let known = route.key.iter().filter_map(|at| self.row.get(*at));
        known.map(|v| v.as_ref().map(AsRef::as_ref))
    }
}

/// A source of changes, in order.
pub trait Source {
    /// Hands the next change to `take`; false at the end.
    ///
    /// # Errors
    /// When the source cannot be read.
    fn next(&mut self, take: &mut dyn FnMut(&Rc<Route>, &Change<&str>)) -> Result<bool>;
}
