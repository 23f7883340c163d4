//! The versions of rows that their version column does not show, where the newest wins: what deletions
//! count as, and rows whose version did not grow (see [`Stamp`]). They are kept by key in the table
//! `sync_row_version` of every database that has triggers under `newest`; a row that is not in it counts as
//! the version in its column.
//!
//! Written by the trigger for local changes, and for those that arrive by the statements that apply
//! them, through the functions here. Always after the row itself, whose lock keeps two writers of a key
//! apart; where there is none, the lock of [`Place::enter`] and [`Place::close`] does.

mod kept;

use self::kept::{Kept, Place};
use crate::change::Stamp;
use crate::delivery::endpoint::oid;
use crate::error::{Error, Result, SqlState};
use crate::pg::compare::{Comparable, KeyHash};
use crate::pg::invalidation::{self, Epoch};
use crate::pg::row::Attribute;
use crate::pg::spi::{self, Home, required};
use crate::pg::trigger::Slot;
use crate::pg::{Oid, context};
use crate::sql::quote::ident;
use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::HashMap;

pub use self::kept::forget_old;

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
        Ok(Self { relation, key: KeyHash::new(key)?, version })
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
        home: &Home,
        row: Slot<'_>,
        version: Option<&str>,
        replaced: Option<Option<&str>>,
    ) -> Result<Option<Stamp<String>>> {
        let (place, stored) = (self.place(home, row)?, row.stored());
        if replaced.is_none() {
            place.enter();
        }
        let mut kept = match place.find(stored)? {
            Some(kept) if kept.by_event && !kept.deleted => return Ok(Some(kept.stamp)),
            None if replaced.is_none() => return Ok(None),
            None => None,
            Some(_) => place.lock()?,
        };
        loop {
            let before = match replaced {
                Some(replaced) => counts_as(kept.as_ref(), replaced),
                None => match &kept {
                    Some(kept) => kept.stamp.clone(),
                    None => return Ok(None),
                },
            };
            if self.version.compare(version, before.version.as_deref())? == Ordering::Greater {
                if kept.is_some() {
                    place.clear()?;
                }
                return Ok(None);
            }
            let stamp = next(before);
            if place.put(&stamp, false, stored, kept.is_some())? {
                return Ok(Some(stamp));
            }
            kept = place.lock()?;
        }
    }

    /// A row has been deleted: what that counts as. `gives_up`: its key is nobody's now.
    ///
    /// # Errors
    /// What writing the table reports.
    pub fn deleted(
        &self,
        home: &Home,
        row: Slot<'_>,
        version: Option<&str>,
        gives_up: bool,
    ) -> Result<Stamp<String>> {
        let (place, stored) = (self.place(home, row)?, row.stored());
        let mut kept = match place.find(stored)? {
            Some(kept) if kept.by_event && kept.deleted => return Ok(kept.stamp),
            None => None,
            Some(_) => place.lock()?,
        };
        loop {
            let stamp = next(counts_as(kept.as_ref(), version));
            if !gives_up || place.put(&stamp, true, stored, kept.is_some())? {
                return Ok(stamp);
            }
            kept = place.lock()?;
        }
    }

    fn place<'h>(&self, home: &'h Home, row: Slot<'_>) -> Result<Place<'h>> {
        Ok(Place { home, relation: self.relation, hash: self.hash(row)? })
    }
}

/// What a row that is there counts as.
fn counts_as(kept: Option<&Kept>, version: Option<&str>) -> Stamp<String> {
    match kept {
        Some(kept) if !kept.deleted => kept.stamp.clone(),
        _ => Stamp { version: version.map(str::to_owned), rank: 0 },
    }
}

/// What anything counts as that was written with knowledge of this.
fn next(stamp: Stamp<String>) -> Stamp<String> {
    Stamp { rank: stamp.rank.saturating_add(1), ..stamp }
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
    pub fn compare(&self, home: &Home, there: Option<&str>) -> Result<Ordering> {
        let there = counts_as(self.kept(home)?.as_ref(), there);
        self.order(&there)
    }

    /// Whether a deletion of the key is kept that counts for more.
    ///
    /// # Errors
    /// As for [`Arrived::compare`].
    pub fn is_deleted_later(&self, home: &Home) -> Result<bool> {
        match self.kept(home)?.filter(|kept| kept.deleted) {
            Some(kept) => Ok(self.order(&kept.stamp)? == Ordering::Less),
            None => Ok(false),
        }
    }

    /// Keeps it, where the row does not show it and nothing counts for more. `met`: a row was there.
    ///
    /// # Errors
    /// 40001 when another session has deleted the row meanwhile, unseen; 42501 as above; what writing
    /// reports.
    pub fn keep(&self, home: &Home, deleted: bool, met: bool) -> Result<()> {
        let Some(relation) = self.keeping_relation(home)? else { return Ok(()) };
        let place = Place { home, relation, hash: self.hash };
        match (met, deleted) {
            (true, _) => {}
            (false, true) => place.close(),
            (false, false) => place.enter(),
        }
        let is_shown = !deleted && self.stamp.rank == 0;
        if is_shown && place.find(0)?.is_none() {
            return Ok(());
        }
        loop {
            let kept = place.lock()?;
            if let Some(kept) = &kept
                && self.is_beaten_by(kept, deleted)?
            {
                match kept.deleted && !deleted {
                    false => return Ok(()),
                    true if !met => return Err(deleted_meanwhile()),
                    // A row that was there, and its deletion not the last word.
                    true => {}
                }
            }
            let done = match (&kept, is_shown) {
                (None, true) => true,
                (Some(_), true) => place.clear().map(|()| true)?,
                (_, false) => place.put(&self.stamp, deleted, 0, kept.is_some())?,
            };
            if done {
                return Ok(());
            }
        }
    }

    /// Whether what is kept counts for more; of equal stamps a row does.
    fn is_beaten_by(&self, kept: &Kept, deleted: bool) -> Result<bool> {
        Ok(match self.order(&kept.stamp)? {
            Ordering::Less => true,
            Ordering::Equal => deleted && !kept.deleted,
            Ordering::Greater => false,
        })
    }

    fn kept(&self, home: &Home) -> Result<Option<Kept>> {
        match self.keeping_relation(home)? {
            Some(relation) => Place { home, relation, hash: self.hash }.find(0),
            None => Ok(None),
        }
    }

    fn order(&self, other: &Stamp<String>) -> Result<Ordering> {
        let version = Comparable::new(self.version_type)?;
        let versions = version.compare(self.stamp.version.as_deref(), other.version.as_deref())?;
        Ok(versions.then(self.stamp.rank.cmp(&other.rank)))
    }

    /// The table by which versions are kept, if it sends changes itself.
    fn keeping_relation(&self, home: &Home) -> Result<Option<Oid>> {
        context::check_may_write(self.relation)?;
        let now = invalidation::now();
        let known = KEEPING.with_borrow(|known| known.get(&self.relation.to_u32()).copied());
        if let Some((_, keeping)) = known.filter(|(epoch, _)| *epoch == now) {
            return Ok(keeping);
        }
        invalidation::watch(self.relation);
        let epoch = invalidation::now();
        let sql = "SELECT COALESCE(pg_catalog.pg_partition_root(c.oid)::pg_catalog.oid, c.oid) \
             FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) $1::pg_catalog.oid \
               AND EXISTS (SELECT FROM pg_catalog.pg_trigger t \
                 WHERE t.tgrelid OPERATOR(pg_catalog.=) c.oid AND t.tgfoid OPERATOR(pg_catalog.=) \
                   $2::pg_catalog.regprocedure)";
        let relation = self.relation.to_u32().to_string();
        let function = format!("{}.sync_dml()", ident(&home.schema));
        let row = spi::read(home, sql, &[Some(&relation), Some(&function)])?.into_iter().next();
        let keeping = row.map(|mut row| oid(&required(&mut row, 0)?)).transpose()?;
        KEEPING.with_borrow_mut(|known| known.insert(self.relation.to_u32(), (epoch, keeping)));
        Ok(keeping)
    }
}

/// Where the extension of a function lives that is called for every row.
///
/// # Errors
/// As for [`Home::find`].
pub fn home_of(function: Oid) -> Result<Home> {
    if let Some((_, home)) =
        HOME_OF.with_borrow(Clone::clone).filter(|(known, _)| *known == function)
    {
        return Ok(home);
    }
    let home = Home::find()?;
    HOME_OF.set(Some((function, home.clone())));
    Ok(home)
}

thread_local! {
    /// What [`home_of`] has found last.
    static HOME_OF: RefCell<Option<(Oid, Home)>> = const { RefCell::new(None) };
    /// What [`Arrived::keeping_relation`] has found, and when that was true.
    static KEEPING: RefCell<HashMap<u32, (Epoch, Option<Oid>)>> = RefCell::default();
}

fn deleted_meanwhile() -> Error {
    Error::local(
        SqlState::SERIALIZATION_FAILURE,
        "row was deleted by another session while it was being written",
    )
}
