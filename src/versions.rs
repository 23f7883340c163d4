//! The versions of rows that their version column does not show, where the newest wins: what deletions
//! count as, and rows whose version did not grow (see [`Stamp`]). They are kept by key in the table
//! `sync_row_version` of every database that has triggers under `newest`; a row that is not in it counts as
//! the version in its column.
//!
//! Written by the trigger for local changes, and for those that arrive by the statements that apply
//! them, through the functions here. Always after the row itself, whose lock keeps two writers of a key
//! apart.

use crate::change::Stamp;
use crate::delivery::endpoint::oid;
use crate::error::{Error, Result, SqlState};
use crate::guc;
use crate::pg::compare::{Comparable, KeyHash};
use crate::pg::invalidation::{self, Epoch};
use crate::pg::row::Attribute;
use crate::pg::spi::{self, Home, required};
use crate::pg::trigger::Slot;
use crate::pg::{Oid, context, lookup};
use crate::sql::quote::ident;
use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::HashMap;

/// Asks a server for the schema of its extension: one whose functions can be called, or must be
/// because it sends changes of its own.
pub const HOME: &str = "SELECT n.nspname FROM pg_catalog.pg_extension e \
     JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace \
     WHERE e.extname OPERATOR(pg_catalog.=) 'pg_rowsync' \
       AND (pg_catalog.has_schema_privilege(n.oid, 'USAGE') OR EXISTS ( \
         SELECT FROM pg_catalog.pg_trigger t \
         JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) t.tgfoid \
         WHERE p.proname OPERATOR(pg_catalog.=) 'sync_dml' \
           AND p.pronamespace OPERATOR(pg_catalog.=) n.oid))";

/// What is kept of a key.
struct Kept {
    stamp: Stamp<String>,
    deleted: bool,
    /// By the very event that asks: another trigger has seen it before.
    by_event: bool,
}

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
    pub fn hash(&self, row: Slot<'_>) -> i64 {
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
        let (hash, stored) = (self.hash(row), row.stored());
        let kept = find(home, self.relation, hash, stored)?;
        if let Some(kept) = kept.as_ref().filter(|kept| kept.by_event && !kept.deleted) {
            return Ok(Some(kept.stamp.clone()));
        }
        let is_kept = kept.is_some();
        let before = match (kept, replaced) {
            (Some(kept), None) => kept.stamp,
            (kept, Some(replaced)) => counts_as(kept, replaced),
            (None, None) => return Ok(None),
        };
        if self.version.compare(version, before.version.as_deref())? == Ordering::Greater {
            if is_kept {
                forget(home, self.relation, hash)?;
            }
            return Ok(None);
        }
        let stamp = next(before);
        keep(home, self.relation, hash, &stamp, false, stored)?;
        Ok(Some(stamp))
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
        let (hash, stored) = (self.hash(row), row.stored());
        let kept = find(home, self.relation, hash, stored)?;
        if let Some(kept) = kept.as_ref().filter(|kept| kept.by_event && kept.deleted) {
            return Ok(kept.stamp.clone());
        }
        let stamp = next(counts_as(kept, version));
        if gives_up {
            keep(home, self.relation, hash, &stamp, true, stored)?;
        }
        Ok(stamp)
    }
}

/// What a row that is there counts as.
fn counts_as(kept: Option<Kept>, version: Option<&str>) -> Stamp<String> {
    match kept {
        Some(kept) if !kept.deleted => kept.stamp,
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
        let there = counts_as(self.kept(home)?, there);
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

    /// It has won: keeps it, where the row does not show it.
    ///
    /// # Errors
    /// 40001 for a row that was written while another session deleted a newer one; 42501 as above;
    /// what writing reports.
    pub fn keep(&self, home: &Home, deleted: bool) -> Result<()> {
        let Some(relation) = self.keeping_relation(home)? else { return Ok(()) };
        let kept = find(home, relation, self.hash, 0)?;
        if let Some(kept) = &kept
            && self.order(&kept.stamp)? == Ordering::Less
        {
            return match kept.deleted && !deleted {
                true => Err(Error::local(
                    SqlState::SERIALIZATION_FAILURE,
                    "row was deleted while it was being written",
                )),
                false => Ok(()),
            };
        }
        match (kept, deleted || self.stamp.rank > 0) {
            (_, true) => keep(home, relation, self.hash, &self.stamp, deleted, 0),
            (Some(_), false) => forget(home, relation, self.hash),
            (None, false) => Ok(()),
        }
    }

    fn kept(&self, home: &Home) -> Result<Option<Kept>> {
        match self.keeping_relation(home)? {
            Some(relation) => find(home, relation, self.hash, 0),
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
        let sql = format!(
            "SELECT COALESCE(pg_catalog.pg_partition_root(c.oid)::pg_catalog.oid, c.oid) \
             FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) $1::pg_catalog.oid \
               AND EXISTS (SELECT FROM pg_catalog.pg_trigger t \
                 WHERE t.tgrelid OPERATOR(pg_catalog.=) c.oid AND t.tgfoid OPERATOR(pg_catalog.=) \
                   '{}.sync_dml()'::pg_catalog.regprocedure)",
            ident(&home.schema)
        );
        let oid_text = self.relation.to_u32().to_string();
        let row = spi::read(home, &sql, &[Some(&oid_text)])?.into_iter().next();
        let keeping = row.map(|mut row| oid(&required(&mut row, 0)?)).transpose()?;
        KEEPING.with_borrow_mut(|known| known.insert(self.relation.to_u32(), (epoch, keeping)));
        Ok(keeping)
    }
}

/// Deletions that are forgotten at once, at most.
const FORGOTTEN: u32 = 1_000;
/// One of so many deletions that are kept has old ones forgotten, so that more go than come.
const FORGET_EVERY: i64 = 256;

/// Forgets deletions that are older than `pg_rowsync.tombstone_retention`, a bounded number of them; waits for
/// nobody.
///
/// # Errors
/// What writing the table reports.
pub fn forget_old(home: &Home) -> Result<()> {
    let table = format!("{}.sync_row_version", ident(&home.schema));
    let sql = format!(
        "WITH o AS (SELECT relation, key_hash FROM {table} \
           WHERE deleted AND changed_at OPERATOR(pg_catalog.<) \
             (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) $1::pg_catalog.interval) \
           ORDER BY changed_at LIMIT {FORGOTTEN} FOR UPDATE SKIP LOCKED) \
         DELETE FROM {table} k USING o WHERE k.relation OPERATOR(pg_catalog.=) o.relation \
           AND k.key_hash OPERATOR(pg_catalog.=) o.key_hash",
    );
    let age = format!("{} s", guc::tombstone_retention().as_secs());
    spi::write(home, &sql, &[Some(&age)])?;
    Ok(())
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

fn find(home: &Home, relation: Oid, hash: i64, stored: u64) -> Result<Option<Kept>> {
    let Some(mut row) = lookup::by_key(home, "sync_row_version", (relation, hash), 7)? else {
        return Ok(None);
    };
    let mut number = |at| -> Result<u64> {
        required(&mut row, at)?.parse().map_err(|_| Error::internal("malformed number"))
    };
    let (rank, place, writer) = (number(3)?, number(5)?, number(6)?);
    let rank = i64::try_from(rank).map_err(|_| Error::internal("malformed rank"))?;
    let deleted = required(&mut row, 4)? == "t";
    let by_event = place == stored && writer == context::transaction();
    Ok(Some(Kept { stamp: Stamp { version: row.swap_remove(2), rank }, deleted, by_event }))
}

fn keep(
    home: &Home,
    relation: Oid,
    key_hash: i64,
    stamp: &Stamp<String>,
    deleted: bool,
    stored: u64,
) -> Result<()> {
    let sql = format!(
        "INSERT INTO {}.sync_row_version AS k \
           (relation, key_hash, version, rank, deleted, stored, written_by, changed_at) \
         VALUES ($1::pg_catalog.oid, $2::pg_catalog.int8, $3, $4::pg_catalog.int8, \
           $5::pg_catalog.bool, $6::pg_catalog.int8, pg_catalog.pg_current_xact_id(), \
           pg_catalog.clock_timestamp()) \
         ON CONFLICT (relation, key_hash) DO UPDATE SET version = excluded.version, \
           rank = excluded.rank, deleted = excluded.deleted, stored = excluded.stored, \
           written_by = excluded.written_by, changed_at = excluded.changed_at",
        ident(&home.schema)
    );
    let numbers = [
        relation.to_u32().to_string(),
        key_hash.to_string(),
        stamp.rank.to_string(),
        stored.to_string(),
    ];
    let [relation, hash, rank, stored] = numbers.each_ref().map(|n| Some(n.as_str()));
    let deleted = Some(if deleted { "t" } else { "f" });
    spi::write(home, &sql, &[relation, hash, stamp.version.as_deref(), rank, deleted, stored])?;
    match key_hash % FORGET_EVERY {
        0 => forget_old(home),
        _ => Ok(()),
    }
}

fn forget(home: &Home, relation: Oid, hash: i64) -> Result<()> {
    let sql = format!(
        "DELETE FROM {}.sync_row_version WHERE relation OPERATOR(pg_catalog.=) $1::pg_catalog.oid \
           AND key_hash OPERATOR(pg_catalog.=) $2::pg_catalog.int8",
        ident(&home.schema)
    );
    let (relation, hash) = (relation.to_u32().to_string(), hash.to_string());
    spi::write(home, &sql, &[Some(&relation), Some(&hash)])?;
    Ok(())
}
