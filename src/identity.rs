//! Which database this is. What was captured in one database is delivered by that one only, so a copy of it
//! captures nothing and delivers nothing before [`adopt`] says that it is the database now.
//!
//! The table `sync_home` says whose the extension's tables are: a node, which is a random number, with the
//! cluster's system identifier and the database's oid. The node is also in the table `sync_node` and in the
//! extension's comment: of all that a dump carries, a table's rows are left out of one of the schema alone,
//! and a comment of one of the rows alone. A copy shows by what it has brought along:
//!
//! - a dump: the node of its origin, in `sync_node` besides its own, in the comment instead of it;
//! - CREATE DATABASE ... TEMPLATE: another oid;
//! - a clone that was made a cluster of its own, as by pg_createsubscriber: another system identifier. After
//!   pg_upgrade that is another one too, but so is the major version, and the row is renewed.
//!
//! A standby that is promoted has nothing of this and goes on by itself. So does a physical backup that is
//! restored elsewhere: the two cannot be told apart.

use crate::error::{Error, Result, SqlState};
use crate::pg::context::Settings;
use crate::pg::invalidation::{self, Epoch};
use crate::pg::spi::{self, Extension};
use crate::pg::{Oid, context, database, lookup, report};
use crate::sql::quote::{ident, literal};
use std::cell::Cell;

/// What `sync_home` and `sync_node` say of the current database.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Identity {
    Itself,
    /// The database itself, of which `sync_home` has an older major version.
    Upgraded,
    Copy,
}

thread_local! {
    /// The last answer, and when it was true.
    static CACHED: Cell<Option<(Epoch, Identity)>> = const { Cell::new(None) };
    /// The session was warned that it writes into a copy.
    static WARNED: Cell<bool> = const { Cell::new(false) };
}

/// Whether the current database is a copy. Cheap enough to be asked for every row.
///
/// # Errors
/// 42704 when the extension is not installed; what reading its tables reports.
pub fn is_copy() -> Result<bool> {
    let now = invalidation::now();
    if let Some((_, identity)) = CACHED.get().filter(|(then, _)| *then == now) {
        return Ok(identity == Identity::Copy);
    }
    Ok(look(&Extension::find()?)? == Identity::Copy)
}

/// Makes sure that the database is no copy, before anything is delivered from its queue.
///
/// # Errors
/// 55000 for a copy, and as for [`is_copy`].
pub fn check(extension: &Extension) -> Result<()> {
    match look(extension)? {
        Identity::Itself => Ok(()),
        Identity::Upgraded => renew(extension),
        Identity::Copy => Err(copy()),
    }
}

/// The error of whoever would deliver from a copy.
fn copy() -> Error {
    let message = "this database is a copy of the one that pg_rowsync was set up in";
    Error::local(SqlState::OBJECT_NOT_READY, message).with_hint(HINT)
}

const HINT: &str = "adopt_sync() makes it a database of its own: its changes are captured from then on, and \
                    what is in its queue is delivered.";

/// Tells, once a session, that a change was not captured. Not those that bring changes from other nodes.
pub fn warn() {
    if !WARNED.replace(true) {
        report::warn(
            "changes of this database are neither captured nor sent",
            &copy(),
            Some(HINT),
        );
    }
}

/// Tells it again, to who has just asked for changes to be captured.
pub fn warn_again() {
    WARNED.set(false);
    warn();
}

/// Looks anew, unless nothing has changed since the last time.
fn look(extension: &Extension) -> Result<Identity> {
    // Looked up first, which also watches them: what changes while they are read must not go unseen.
    for table in ["sync_home", "sync_node"] {
        lookup::table(extension, table)?;
    }
    let now = invalidation::now();
    if let Some((_, identity)) = CACHED.get().filter(|(then, _)| *then == now) {
        return Ok(identity);
    }
    let schema = ident(&extension.schema);
    // Without a node of its own, a database that has triggers is a copy as well. As everywhere, each table by
    // an index.
    let sql = format!(
        "SELECT h.system_identifier = $2::int8 FROM {schema}.sync_home h \
         WHERE h.database = $1::oid \
           AND (h.system_identifier = $2::int8 \
             OR h.server_major < $3::int4) \
           AND NOT EXISTS (SELECT FROM {schema}.sync_node n WHERE n.node < h.node) \
           AND NOT EXISTS (SELECT FROM {schema}.sync_node n WHERE n.node > h.node) \
           AND NOT EXISTS (SELECT FROM pg_extension e \
             JOIN pg_description d ON d.objoid = e.oid \
              AND d.classoid = 'pg_extension'::regclass \
              AND d.objsubid = 0 \
             WHERE e.extname = 'pg_rowsync' \
               AND d.description ~~ '%(node ____________________________________)' \
               AND right(d.description, 37) <> \
                   (h.node::text || ')'))"
    );
    let here = Here::new();
    let is_same_system = spi::select_first::<Option<bool>>(extension, &sql, &here.args())?;
    let identity = match is_same_system.flatten() {
        Some(true) => Identity::Itself,
        Some(false) => Identity::Upgraded,
        None => Identity::Copy,
    };
    if identity != Identity::Copy {
        WARNED.set(false);
    }
    CACHED.set(Some((now, identity)));
    Ok(identity)
}

/// Makes a copy the database itself: it captures and delivers from now on, and the queue that it has brought
/// along is its own. True if it was a copy.
///
/// # Errors
/// What writing the tables reports.
pub fn adopt(extension: &Extension) -> Result<bool> {
    let schema = ident(&extension.schema);
    // What has no condition is read whole, which is made to look dear, and would be compiled for that.
    let _settings = Settings::set(&[(c"jit", c"off")]);
    // One at a time; whoever comes second finds that it is done.
    spi::write(
        extension,
        &format!("LOCK TABLE {schema}.sync_home IN SHARE ROW EXCLUSIVE MODE"),
        &[],
    )?;
    match look(extension)? {
        Identity::Itself => return Ok(false),
        Identity::Upgraded => return renew(extension).map(|()| false),
        Identity::Copy => {}
    }
    for table in ["sync_home", "sync_node"] {
        spi::write(extension, &format!("DELETE FROM {schema}.{table}"), &[])?;
    }
    let sql = format!(
        "WITH home AS ( \
           INSERT INTO {schema}.sync_home (database, system_identifier, server_major) \
           VALUES ($1::oid, $2::int8, $3::int4) RETURNING node) \
         INSERT INTO {schema}.sync_node SELECT node FROM home RETURNING node"
    );
    let made = spi::write(extension, &sql, &Here::new().args())?;
    let node: String = spi::only(made)?;
    comment(extension, &node)?;
    Ok(true)
}

/// Adds the node to the extension's comment, at its end, instead of another.
fn comment(extension: &Extension, node: &str) -> Result<()> {
    let sql = "SELECT regexp_replace(COALESCE( \
                 obj_description(e.oid, 'pg_extension'), ''), $1, '') \
               FROM pg_extension e WHERE e.extname = 'pg_rowsync'";
    let words: String = spi::select_one(extension, sql, &[Some(r" \(node [^)]*\)$")])?;
    let comment = literal(&format!("{words} (node {node})"));
    spi::write(
        extension,
        &format!("COMMENT ON EXTENSION pg_rowsync IS {comment}"),
        &[],
    )?;
    // A comment is not seen to change.
    invalidation::announce(lookup::table(extension, "sync_home")?);
    Ok(())
}

/// Where the log was when the extension was made, or the database made its home: what its tables do not say of
/// an earlier time, nobody knows.
///
/// # Errors
/// What reading the table reports.
pub fn since(extension: &Extension) -> Result<u64> {
    let sql = format!(
        "SELECT (h.since_position - '0/0'::pg_lsn)::int8 FROM {}.sync_home h \
         WHERE h.database = $1::oid",
        ident(&extension.schema)
    );
    spi::select_one(extension, &sql, &[Some(&Here::new().0[0])])
}

/// After pg_upgrade: the same node, with the system identifier that it has now.
fn renew(extension: &Extension) -> Result<()> {
    let sql = format!(
        "UPDATE {}.sync_home SET system_identifier = $2::int8, \
                server_major = $3::int4 \
         WHERE database = $1::oid",
        ident(&extension.schema)
    );
    spi::write(extension, &sql, &Here::new().args())?;
    Ok(())
}

/// What tells the current database, as arguments of SQL.
struct Here([String; 3]);

impl Here {
    fn new() -> Self {
        Self([
            database::current().to_u32().to_string(),
            database::system_identifier().to_string(),
            database::server_major().to_string(),
        ])
    }

    fn args(&self) -> [Option<&str>; 3] {
        [Some(&self.0[0]), Some(&self.0[1]), Some(&self.0[2])]
    }
}

/// One of the two tables has changed: every session looks again.
pub fn changed(table: Oid) {
    invalidation::announce(table);
}

/// Whether a row that is about to be written to one of the extension's tables is another database's: it has
/// come by logical replication, and not from the extension at work in the process that applies it.
pub fn is_foreign_row() -> bool {
    context::is_logical_worker() && !context::is_own_work()
}

/// What this database is called in the paths of changes, see [`crate::path`]. Not the node of `sync_home`: the
/// other side must know its own name without the extension's tables.
pub fn name() -> String {
    format!(
        "{}.{}",
        database::system_identifier(),
        database::current().to_u32()
    )
}
