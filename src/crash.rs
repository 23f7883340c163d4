//! Whether the local server has crashed, after which targets may be ahead of it.
//!
//! In modes `async` and `sync` a server commits a moment before the local transaction does. A crash in between
//! leaves the target with what this side has lost, and nothing here tells of it. What tells of the crash is an
//! unlogged table with one row, `sync_alive`: recovery empties it, and a clean shutdown does not. A standby that is
//! promoted has it empty too, and may be behind its primary in the same way.
//!
//! The first drain or visit of the worker after a crash notes every table concerned in `sync_crash`. A note goes when a whole
//! comparison has found no difference, or its differences were repaired.

use crate::error::Result;
use crate::pg::spi::{self, Extension};
use crate::pg::{Oid, context, wal};
use crate::sql::quote::ident;

/// Whether the server has crashed and nobody has noted it yet. False on a standby, which cannot read the table.
///
/// # Errors
/// What reading the table reports.
pub fn has_happened(extension: &Extension) -> Result<bool> {
    if wal::is_in_recovery() {
        return Ok(false);
    }
    let sql = format!(
        "SELECT EXISTS (SELECT FROM {}.sync_alive)",
        ident(&extension.schema)
    );
    let is_alive: bool = spi::select_one(extension, &sql, &[])?;
    Ok(!is_alive)
}

/// Notes a crash that nobody has noted yet, for all tables whose targets may be ahead.
///
/// # Errors
/// What reading and writing the tables reports.
pub fn note(extension: &Extension) -> Result<()> {
    if !context::is_read_only() && has_happened(extension)? {
        let schema = ident(&extension.schema);
        let sql = format!(
            "WITH alive AS (INSERT INTO {schema}.sync_alive VALUES (true) ON CONFLICT DO NOTHING) \
             INSERT INTO {schema}.sync_crash (relation, dst_server) \
             SELECT DISTINCT a.relation::oid, a.server FROM {schema}.sync_attachments() a \
              WHERE a.mode = ANY (ARRAY['async', 'sync']) ON CONFLICT DO NOTHING"
        );
        spi::write(extension, &sql, &[])?;
    }
    Ok(())
}

/// A table was compared with its target, all of it, and is equal now.
///
/// # Errors
/// What reading and writing the table reports.
pub fn settle(extension: &Extension, relation: Oid, server_name: &str) -> Result<()> {
    note(extension)?;
    let schema = ident(&extension.schema);
    let condition = "c.relation = $1::oid AND c.dst_server = $2";
    let relation = relation.to_u32().to_string();
    let args = [&*relation, server_name].map(Some);
    let sql = format!("SELECT 1 FROM {schema}.sync_crash c WHERE {condition}");
    if context::is_read_only() || spi::read(extension, &sql, &args)?.is_empty() {
        return Ok(());
    }
    let sql = format!("DELETE FROM {schema}.sync_crash c WHERE {condition}");
    spi::write(extension, &sql, &args)?;
    Ok(())
}
