//! The versions of rows that their version column does not show, where the newest wins: what deletions
//! count as, and rows whose version did not grow (see [`Stamp`]). They are kept by key in the table
//! `sync_row_version` of every database that has triggers under `newest`; a row that is not in it counts as
//! the version in its column.
//!
//! Written by the trigger for local changes, and for those that arrive by the statements that apply them,
//! through the functions here. Always after the row itself, whose lock keeps two writers of a key apart.
//! Where a deletion arrives for a key that has no row, there is none to lock: whoever inserts a row looks for
//! what is kept only then, and waits for a transaction under way that keeps something; whoever keeps a
//! deletion looks for rows only then, committed or not. So one of two that are at it at once sees the other.
//!
//! A stamp goes with the row as it was stored with it. A row that was written since without being captured
//! (under the guard's name, with its trigger disabled) counts as its version, if that is larger. A trigger of
//! the table's own that replaces the version of a row that arrives does not change what the row counts as:
//! the version that was sent.

mod stored;

pub use self::stored::Shape;
use self::stored::VersionKey;
use crate::capture::table::Table;
use crate::change::Stamp;
use crate::error::{Error, Result, SqlState};
use crate::local::{ProcessLocal, process_local};
use crate::options::{OnConflict, Options};
use crate::pg::compare::{Comparable, KeyHash};
use crate::pg::invalidation::{self, Epoch};
use crate::pg::rows_of_key::{self, Holders, KeyRecord};
use crate::pg::slot::{Attribute, Slot};
use crate::pg::spi::{self, Extension};
use crate::pg::trigger;
use crate::pg::{Oid, context};
use crate::sql::quote::ident;
use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::rc::Rc;

pub use self::stored::{StoredVersion, forget_old, versions_at};

/// What a trigger under `newest` needs to know to tell and keep versions.
pub struct Versioned {
    relation: Oid,
    key: KeyHash,
    version: Comparable,
}

impl Versioned {
    /// For a table (of a partition the topmost one), its key columns in the order of their names, and its
    /// version column.
    ///
    /// # Errors
    /// 42883 for types that cannot be hashed or have no order.
    pub fn new(relation: Oid, key: &[Attribute], version: Attribute) -> Result<Self> {
        let version = Comparable::new(version.type_oid)?;
        Ok(Self {
            relation,
            key: KeyHash::new(key)?,
            version,
        })
    }

    /// The hash of a row's key.
    ///
    /// # Errors
    /// XX000 for a row of another table.
    pub fn hash(&self, row: Slot<'_>) -> Result<i64> {
        self.key.of(row)
    }

    /// A row has been written: what it counts as, where that is not its version. `replaced`: the version
    /// of the row it was, of an UPDATE.
    ///
    /// # Errors
    /// What writing the table reports.
    pub fn written(
        &self,
        extension: &Extension,
        row: Slot<'_>,
        version: Option<&str>,
        replaced: Option<Option<&str>>,
    ) -> Result<Option<Stamp<String>>> {
        let version_key = self.version_key(extension, row)?;
        let stored = row.stored();
        let found = match replaced {
            None => version_key.settled(stored)?,
            Some(_) => version_key.find(stored)?,
        };
        let mut known = match found {
            Some(known) if known.by_event && !known.deleted => return Ok(Some(known.stamp)),
            None if replaced.is_none() => return Ok(None),
            None => None,
            Some(_) => version_key.lock()?,
        };
        loop {
            let before = match replaced {
                Some(replaced) => counts_as(&self.version, known.as_ref(), replaced)?,
                None => match &known {
                    Some(known) => known.stamp.clone(),
                    None => return Ok(None),
                },
            };
            if self.version.compare(version, before.version.as_deref())? == Ordering::Greater {
                if known.is_some() {
                    version_key.clear()?;
                }
                return Ok(None);
            }
            let stamp = next(before);
            if version_key.put(&stamp, Shape::Row(version), stored, known.is_some())? {
                return Ok(Some(stamp));
            }
            known = version_key.lock()?;
        }
    }

    /// A row has been deleted: what that counts as. `gives_up`: its key is nobody's now.
    ///
    /// # Errors
    /// What writing the table reports.
    pub fn deleted(
        &self,
        extension: &Extension,
        row: Slot<'_>,
        version: Option<&str>,
        gives_up: bool,
    ) -> Result<Stamp<String>> {
        let version_key = self.version_key(extension, row)?;
        let stored = row.stored();
        let mut known = match version_key.find(stored)? {
            Some(known) if known.by_event && known.deleted => return Ok(known.stamp),
            None => None,
            Some(_) => version_key.lock()?,
        };
        loop {
            let stamp = next(counts_as(&self.version, known.as_ref(), version)?);
            if !gives_up || version_key.put(&stamp, Shape::Deletion, stored, known.is_some())? {
                return Ok(stamp);
            }
            known = version_key.lock()?;
        }
    }

    fn version_key<'h>(&self, extension: &'h Extension, row: Slot<'_>) -> Result<VersionKey<'h>> {
        Ok(VersionKey {
            extension,
            relation: self.relation,
            hash: self.hash(row)?,
        })
    }
}

/// What a row that is there counts as.
fn counts_as(
    order: &Comparable,
    known: Option<&StoredVersion>,
    version: Option<&str>,
) -> Result<Stamp<String>> {
    let of_row = Stamp {
        version: version.map(str::to_owned),
        rank: 0,
    };
    let Some(known) = known.filter(|known| !known.deleted) else {
        return Ok(of_row);
    };
    let is_as_stored = order.compare(version, known.shown.as_deref())? == Ordering::Equal;
    let kept_version = known.stamp.version.as_deref();
    if !is_as_stored && order.compare(version, kept_version)? == Ordering::Greater {
        Ok(of_row)
    } else {
        Ok(known.stamp.clone())
    }
}

/// What a row counts as whose version column has `there`, and of which something is stored.
///
/// # Errors
/// 42883 for a type without an order.
pub fn counts_as_stored(
    version_type: Oid,
    stored: &StoredVersion,
    there: Option<&str>,
) -> Result<Stamp<String>> {
    counts_as(&Comparable::new(version_type)?, Some(stored), there)
}

/// What anything counts as that was written with knowledge of this.
fn next(stamp: Stamp<String>) -> Stamp<String> {
    Stamp {
        rank: stamp.rank.saturating_add(1),
        ..stamp
    }
}

/// A stamp that has arrived with a change, and the key it is for: the arguments of the functions that
/// statements under `newest` call.
pub struct Arrived {
    pub relation: Oid,
    pub hash: i64,
    pub version_type: Oid,
    pub stamp: Stamp<String>,
}

impl Arrived {
    /// How it compares to what the row counts as that is there, of this version.
    ///
    /// # Errors
    /// 42501 for a user who may not write the table; what reading reports.
    pub fn compare(&self, extension: &Extension, there: Option<&str>) -> Result<Ordering> {
        let known = self.known(extension)?;
        let there = counts_as(&Comparable::new(self.version_type)?, known.as_ref(), there)?;
        self.order(&there)
    }

    /// Whether a deletion of the key is kept that counts for more.
    ///
    /// # Errors
    /// As for [`Arrived::compare`].
    pub fn is_deleted_later(&self, extension: &Extension) -> Result<bool> {
        match self.known(extension)?.filter(|known| known.deleted) {
            Some(known) => Ok(self.order(&known.stamp)? == Ordering::Less),
            None => Ok(false),
        }
    }

    /// Keeps it, where the row does not show it and nothing counts for more. `was_found`: a row was there.
    ///
    /// # Errors
    /// 40001 when another session has deleted the row meanwhile, unseen, or inserts it; 42501 as above, and
    /// for who has not written the row, or may not delete one; 22023 for a key of other columns than the
    /// table's; what writing reports.
    pub fn keep(
        &self,
        extension: &Extension,
        key: KeyRecord<'_>,
        shape: Shape<'_>,
        was_found: bool,
    ) -> Result<()> {
        let keeping = self.keeping(extension)?;
        if !keeping.keeps {
            return Ok(());
        }
        let version_key = VersionKey {
            extension,
            relation: keeping.relation,
            hash: self.hash,
        };
        let order = Comparable::new(keeping.version_type.unwrap_or(self.version_type))?;
        let (deleted, is_shown) = match shape {
            Shape::Deletion => (true, false),
            Shape::Row(version) => {
                let sent = self.stamp.version.as_deref();
                let is_same = order.compare(sent, version)? == Ordering::Equal;
                (false, self.stamp.rank == 0 && is_same)
            }
        };
        let found = if deleted || was_found {
            version_key.find(0)?
        } else {
            version_key.settled(0)?
        };
        if is_shown && found.is_none() {
            return Ok(());
        }
        self.check_right(&keeping, extension, key, deleted)?;
        self.stamp
            .version
            .as_deref()
            .map_or(Ok(()), |version| order.check(version))?;
        let unseen = deleted && !was_found;
        if unseen {
            while let Some(writer) = keeping.holders(extension, self.relation, key)?.writer {
                writer.await_end();
            }
        }
        let mut known = match found {
            Some(_) => version_key.lock()?,
            None => None,
        };
        loop {
            if let Some(known) = &known
                && self.is_beaten_by(known, deleted)?
            {
                if !known.deleted || deleted {
                    return Ok(());
                }
                // A row that was there is there again: its deletion was not the last word.
                if !was_found {
                    return Err(deleted_meanwhile());
                }
            }
            let done = match (&known, is_shown) {
                (None, true) => true,
                (Some(_), true) => version_key.clear().map(|()| true)?,
                (_, false) => version_key.put(&self.stamp, shape, 0, known.is_some())?,
            };
            if done {
                break;
            }
            known = version_key.lock()?;
        }
        if unseen
            && keeping
                .holders(extension, self.relation, key)?
                .writer
                .is_some()
        {
            return Err(inserted_meanwhile());
        }
        Ok(())
    }

    /// Stamps are written only by who may write the row: who has, in this transaction; those of deletions
    /// also by who might delete it.
    fn check_right(
        &self,
        keeping: &Keeping,
        extension: &Extension,
        key: KeyRecord<'_>,
        deleted: bool,
    ) -> Result<()> {
        let holders = || keeping.holders(extension, self.relation, key);
        if deleted {
            return match context::check_may_delete(self.relation) {
                Err(_) if holders()?.is_deleted => Ok(()),
                result => result,
            };
        }
        if holders()?.is_written {
            Ok(())
        } else {
            Err(Error::local(
                SqlState::INSUFFICIENT_PRIVILEGE,
                "row was not written by this transaction",
            ))
        }
    }

    /// Whether what is kept counts for more; of equal stamps a row does.
    fn is_beaten_by(&self, known: &StoredVersion, deleted: bool) -> Result<bool> {
        Ok(match self.order(&known.stamp)? {
            Ordering::Less => true,
            Ordering::Equal => deleted && !known.deleted,
            Ordering::Greater => false,
        })
    }

    fn known(&self, extension: &Extension) -> Result<Option<StoredVersion>> {
        let keeping = self.keeping(extension)?;
        if keeping.keeps {
            VersionKey {
                extension,
                relation: keeping.relation,
                hash: self.hash,
            }
            .find(0)
        } else {
            Ok(None)
        }
    }

    fn order(&self, other: &Stamp<String>) -> Result<Ordering> {
        let version = Comparable::new(self.version_type)?;
        let versions = version.compare(self.stamp.version.as_deref(), other.version.as_deref())?;
        Ok(versions.then(self.stamp.rank.cmp(&other.rank)))
    }

    fn keeping(&self, extension: &Extension) -> Result<Rc<Keeping>> {
        Keeping::of(extension, self.relation)
    }
}

/// Whether a row with this key has come since the running statement began, which is why that could neither find
/// nor insert one. If none has, a trigger of the table's own keeps rows from being written.
///
/// # Errors
/// 42501 for a user who may not write the table; what reading reports.
pub fn has_come(extension: &Extension, relation: Oid, key: KeyRecord<'_>) -> Result<bool> {
    let keeping = Keeping::of(extension, relation)?;
    match keeping.holders(extension, relation, key) {
        Ok(holders) => Ok(holders.has_come || holders.writer.is_some()),
        // Another key than the table's own: nothing is known.
        Err(error) if error.sqlstate() == SqlState::INVALID_PARAMETER => Ok(true),
        Err(error) => Err(error),
    }
}

/// A table to which changes arrive.
struct Keeping {
    /// Itself, or of a partition the topmost table.
    relation: Oid,
    /// Whether it sends changes itself: then versions are kept.
    keeps: bool,
    is_partitioned: bool,
    /// The key's columns, in the order of their names.
    key: Vec<String>,
    /// The type of the version column, if it is known.
    version_type: Option<Oid>,
}

impl Keeping {
    /// Of a table that the user may write.
    ///
    /// # Errors
    /// 42501; what reading the catalogs reports.
    fn of(extension: &Extension, relation: Oid) -> Result<Rc<Self>> {
        context::check_may_write(relation)?;
        let now = invalidation::now();
        let known = KEEPING.with_borrow(|known| known.get(&relation.to_u32()).cloned());
        if let Some((_, keeping)) = known.filter(|(epoch, _)| *epoch == now) {
            return Ok(keeping);
        }
        invalidation::watch(relation);
        let epoch = invalidation::now();
        let keeping = Rc::new(Self::read(extension, relation)?);
        KEEPING.with_borrow_mut(|known| known.insert(relation.to_u32(), (epoch, keeping.clone())));
        Ok(keeping)
    }

    fn read(extension: &Extension, relation: Oid) -> Result<Self> {
        let table = match Table::read(extension, relation) {
            Ok(table) => table,
            // A view, for one.
            Err(error) if error.sqlstate() == SqlState::FEATURE_NOT_SUPPORTED => {
                let keeps = false;
                let is_partitioned = false;
                let key = Vec::new();
                let version_type = None;
                return Ok(Self {
                    relation,
                    keeps,
                    is_partitioned,
                    key,
                    version_type,
                });
            }
            Err(error) => return Err(error),
        };
        let function = format!("{}.sync_dml()", ident(&extension.schema));
        let sql = "SELECT $1::regprocedure::oid";
        let function: Oid = spi::select_one(extension, sql, &[Some(&function)])?;
        let triggers = trigger::arguments_of(relation, function)?;
        let options = triggers
            .iter()
            .filter_map(|args| args.get(3).map(|o| Options::parse(o)));
        let options = options.collect::<Result<Vec<_>>>()?;
        let newest = options
            .iter()
            .find(|options| options.on_conflict == OnConflict::Newest);
        let version = newest.and_then(|options| options.version_column.as_ref());
        let version = version.and_then(|name| table.columns.iter().find(|c| c.name == *name));
        let mut key = newest
            .and_then(|options| options.key.clone())
            .unwrap_or(table.key);
        key.sort();
        Ok(Self {
            relation: table.root,
            keeps: !triggers.is_empty(),
            is_partitioned: table.partitioned,
            key,
            version_type: version.map(|column| column.attribute.type_oid),
        })
    }

    /// See [`rows_of_key::holders`].
    fn holders(&self, extension: &Extension, relation: Oid, key: KeyRecord<'_>) -> Result<Holders> {
        if !self.is_partitioned {
            return rows_of_key::holders(&[relation], &self.key, key);
        }
        let sql = "SELECT t.relid::oid \
             FROM pg_partition_tree($1::oid::regclass) AS t \
             JOIN pg_class c ON c.oid = t.relid \
             WHERE t.isleaf AND c.relkind = 'r'";
        let leaves: Vec<Oid> =
            spi::select(extension, sql, &[Some(&relation.to_u32().to_string())])?;
        rows_of_key::holders(&leaves, &self.key, key)
    }
}

/// Where the extension of a function lives that is called for every row.
///
/// # Errors
/// As for [`Extension::find`].
pub fn extension_of(function: Oid) -> Result<Extension> {
    if let Some((_, extension)) = EXTENSION_OF
        .with_borrow(Clone::clone)
        .filter(|(known, _)| *known == function)
    {
        return Ok(extension);
    }
    let extension = Extension::find()?;
    EXTENSION_OF.set(Some((function, extension.clone())));
    Ok(extension)
}

process_local! {
    /// What [`extension_of`] has found last.
    static EXTENSION_OF: RefCell<Option<(Oid, Extension)>> = const { RefCell::new(None) };
    /// What [`Keeping::of`] has found, and when that was true.
    static KEEPING: RefCell<HashMap<u32, (Epoch, Rc<Keeping>)>> = RefCell::default();
}

fn deleted_meanwhile() -> Error {
    Error::local(
        SqlState::SERIALIZATION_FAILURE,
        "row was deleted by another session while it was being written",
    )
}

fn inserted_meanwhile() -> Error {
    Error::local(
        SqlState::SERIALIZATION_FAILURE,
        "row is being inserted by another session while its deletion is kept",
    )
}
