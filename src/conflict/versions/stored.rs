//! The table `sync_row_version`: what is kept of a key. Whoever changes it has it locked, and has seen what it
//! changes: two may write the same key at once where one of them finds no row to lock.

use crate::change::Stamp;
use crate::error::Result;
use crate::guc;
use crate::pg::columns::Columns as _;
use crate::pg::lookup::{self, ByKey};
use crate::pg::rows_of_key::OtherTransaction;
use crate::pg::snapshot::Snapshot;
use crate::pg::spi::{self, Extension};
use crate::pg::{Oid, context};
use crate::sql::quote::{ArrayLiteral, ident};
use std::collections::HashMap;

/// What is kept of a key.
#[derive(Clone)]
pub struct StoredVersion {
    pub stamp: Stamp<String>,
    pub deleted: bool,
    /// The version of the row as it was stored with the stamp; a trigger may have replaced the one that was
    /// sent.
    pub shown: Option<String>,
    /// By the very event that asks: another trigger has seen it before.
    pub by_event: bool,
}

/// The columns version, rank, deleted and shown.
type Stored = (Option<String>, i64, bool, Option<String>);

impl StoredVersion {
    fn new((version, rank, deleted, shown): Stored, by_event: bool) -> Self {
        Self {
            stamp: Stamp { version, rank },
            deleted,
            shown,
            by_event,
        }
    }
}

/// What a stamp is kept of.
#[derive(Clone, Copy, Debug)]
pub enum Shape<'v> {
    /// A row that has this version in its column.
    Row(Option<&'v str>),
    Deletion,
}

/// Where something is kept.
pub struct VersionKey<'h> {
    pub extension: &'h Extension,
    /// The table, of a partition the topmost one.
    pub relation: Oid,
    /// See [`KeyHash`](crate::pg::compare::KeyHash).
    pub hash: i64,
}

/// Where a statement finds what is kept: the condition on it, and the first two arguments.
type Here = (&'static str, [String; 2]);

impl VersionKey<'_> {
    /// What is kept, for an event about a row that is stored there.
    ///
    /// # Errors
    /// What reading reports.
    pub fn find(&self, stored: u64) -> Result<Option<StoredVersion>> {
        self.look(stored).map(|(known, _)| known)
    }

    /// What is kept of the key of a row that has just been inserted. Waits for those who keep a deletion of it
    /// without having found the row.
    ///
    /// # Errors
    /// What reading reports.
    pub fn settled(&self, stored: u64) -> Result<Option<StoredVersion>> {
        loop {
            match self.look(stored)? {
                (_, Some(writer)) => writer.await_end(),
                (known, None) => return Ok(known),
            }
        }
    }

    fn look(&self, stored: u64) -> Result<(Option<StoredVersion>, Option<OtherTransaction>)> {
        let key = (self.relation, self.hash);
        let (found, writer) = lookup::by_key(self.extension, "sync_row_version", key, 8)?;
        let Some(ByKey { row, .. }) = found else {
            return Ok((None, writer));
        };
        // Nothing needs what the first two columns say: they are the key.
        type Columns = (
            String,
            String,
            Option<String>,
            i64,
            bool,
            Option<String>,
            String,
            String,
        );
        let (_, _, version, rank, deleted, shown, place, by) = Columns::of_row(row)?;
        let by_event = place.parse() == Ok(stored) && by.parse() == Ok(context::transaction());
        let known = StoredVersion::new((version, rank, deleted, shown), by_event);
        Ok((Some(known), writer))
    }

    /// Where a statement finds what is kept; `None` if nothing is. By the key. A SERIALIZABLE transaction names the
    /// row by its place, which it has found without taking part in any conflict: looking for the key would lock a
    /// page of the index, on which there are the keys that others write.
    ///
    /// # Errors
    /// What reading reports.
    fn here(&self) -> Result<Option<Here>> {
        if !context::is_serializable() {
            let by_key = "relation = $1::oid AND key_hash = $2::int8";
            return Ok(Some((by_key, self.args())));
        }
        let key = (self.relation, self.hash);
        let (found, _) = lookup::by_key(self.extension, "sync_row_version", key, 0)?;
        let by_place = "ctid = $1::tid AND key_hash + 0 = $2::int8";
        Ok(found.map(|found| (by_place, [found.place, self.hash.to_string()])))
    }

    /// What is kept, locked until the end of the transaction.
    ///
    /// # Errors
    /// What reading reports.
    pub fn lock(&self) -> Result<Option<StoredVersion>> {
        let Some((condition, args)) = self.here()? else {
            return Ok(None);
        };
        let sql = format!(
            "SELECT version, rank, deleted, shown FROM {} WHERE {condition} FOR UPDATE",
            self.table()
        );
        let row = spi::write(
            self.extension,
            &sql,
            &args.each_ref().map(|arg| Some(arg.as_str())),
        )?;
        let row = row.into_iter().next().map(Stored::of_row).transpose()?;
        Ok(row.map(|stored| StoredVersion::new(stored, false)))
    }

    /// Keeps something, in place of what is there and locked, or where there is nothing. False when another
    /// session was first.
    ///
    /// # Errors
    /// What writing reports.
    pub fn put(
        &self,
        stamp: &Stamp<String>,
        shape: Shape<'_>,
        stored: u64,
        is_there: bool,
    ) -> Result<bool> {
        let here = if is_there { self.here()? } else { None };
        if is_there && here.is_none() {
            return Ok(false);
        }
        let sql = if let Some((condition, _)) = &here {
            format!(
                "UPDATE {} SET version = $3, rank = $4::int8, \
                deleted = $5::bool, stored = $6::int8, shown = $7, \
                written_by = pg_current_xact_id(), \
                changed_at = clock_timestamp() WHERE {condition} RETURNING 1",
                self.table()
            )
        } else {
            format!(
                "INSERT INTO {} (relation, key_hash, version, rank, deleted, stored, shown, \
                written_by, changed_at) \
             VALUES ($1::oid, $2::int8, $3, $4::int8, \
                $5::bool, $6::int8, $7, \
                pg_current_xact_id(), clock_timestamp()) \
             ON CONFLICT (relation, key_hash) DO NOTHING RETURNING 1",
                self.table()
            )
        };
        let [first, second] = here.map_or_else(|| self.args(), |(_, args)| args);
        let rank = stamp.rank.to_string();
        let stored = stored.to_string();
        let (deleted, shown) = match shape {
            Shape::Deletion => ("t", None),
            Shape::Row(version) => ("f", version),
        };
        let args = [
            Some(first.as_str()),
            Some(second.as_str()),
            stamp.version.as_deref(),
            Some(rank.as_str()),
            Some(deleted),
            Some(stored.as_str()),
            shown,
        ];
        let done = !spi::write(self.extension, &sql, &args)?.is_empty();
        // What a SERIALIZABLE transaction reads of others' deletions would count among its conflicts.
        let may_forget = self.hash % FORGET_EVERY == 0 && !context::is_serializable();
        if matches!(shape, Shape::Deletion) && may_forget {
            forget_old(self.extension)?;
        }
        Ok(done)
    }

    /// Keeps nothing any more.
    ///
    /// # Errors
    /// What writing reports.
    pub fn clear(&self) -> Result<()> {
        if let Some((condition, args)) = self.here()? {
            let sql = format!("DELETE FROM {} WHERE {condition}", self.table());
            let args = args.each_ref().map(|arg| Some(arg.as_str()));
            spi::write(self.extension, &sql, &args)?;
        }
        Ok(())
    }

    fn table(&self) -> String {
        format!("{}.sync_row_version", ident(&self.extension.schema))
    }

    fn args(&self) -> [String; 2] {
        [self.relation.to_u32().to_string(), self.hash.to_string()]
    }
}

/// What was kept of rows of a table (of a partition the topmost one) at a moment, by the hashes of their keys.
///
/// # Errors
/// What reading reports.
pub fn versions_at(
    extension: &Extension,
    moment: &Snapshot,
    relation: Oid,
    hashes: &[&str],
) -> Result<HashMap<String, StoredVersion>> {
    let sql = format!(
        "SELECT version, rank, deleted, shown, key_hash FROM {}.sync_row_version \
         WHERE relation = $1::oid \
           AND key_hash = ANY ($2::int8[]) AND NOT deleted",
        ident(&extension.schema)
    );
    let mut keys = ArrayLiteral::default();
    hashes.iter().for_each(|hash| keys.push(Some(hash)));
    let relation = relation.to_u32().to_string();
    let keys = keys.into_text();
    let mut found = HashMap::new();
    let rows = spi::read_as_of(extension, moment, &sql, &[Some(&relation), Some(&keys)])?;
    type WithHash = (Option<String>, i64, bool, Option<String>, String);
    for (version, rank, deleted, shown, hash) in spi::typed::<WithHash>(rows)? {
        found.insert(
            hash,
            StoredVersion::new((version, rank, deleted, shown), false),
        );
    }
    Ok(found)
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
pub fn forget_old(extension: &Extension) -> Result<()> {
    let table = format!("{}.sync_row_version", ident(&extension.schema));
    let sql = format!(
        "WITH o AS (SELECT relation, key_hash FROM {table} \
           WHERE deleted AND changed_at < \
             (clock_timestamp() - $1::interval) \
           ORDER BY changed_at LIMIT {FORGOTTEN} FOR UPDATE SKIP LOCKED) \
         DELETE FROM {table} k USING o WHERE k.relation = o.relation \
           AND k.key_hash = o.key_hash",
    );
    let age = format!("{} s", guc::tombstone_retention().as_secs());
    spi::write(extension, &sql, &[Some(&age)])?;
    Ok(())
}
