//! What can be seen of the other direction when a table is attached: whether the target's changes are
//! sent back here, and under which policy. Concurrent writes on both sides end equal only where both
//! sides decide by `newest`.
//!
//! A courtesy: whatever fails here is not told, and it takes `pg_rowsync.connect_timeout` at most.

use crate::change::Relation;
use crate::delivery::drive;
use crate::delivery::endpoint::{Account, Endpoint};
use crate::delivery::feed::Fixed;
use crate::delivery::link::{Ending, Link};
use crate::delivery::session;
use crate::error::Result;
use crate::guc;
use crate::options::OnConflict;
use crate::pg::interrupt;
use crate::pg::spi::{self, Home, required};
use crate::sql::quote::literal;
use std::time::Instant;

/// What is to be said about a pair of policies.
pub const HINT: &str = "Use \"on_conflict\": \"newest\" with a \"version_column\" on both sides, or let \
                        each row be written on one side only.";

/// Whether the server sends changes of `target` back to `local`, and one of the two sides decides
/// otherwise than by `newest`. False as well if the server cannot be asked. A request to cancel is
/// raised.
pub fn may_diverge(
    home: &Home,
    account: &Account,
    policy: OnConflict,
    local: &Relation,
    target: &Relation,
) -> bool {
    let policies = database(home).and_then(|db| {
        let endpoint = Endpoint::resolve(home, account)?;
        ask(Link::open(&endpoint)?, &question(local, target, &db))
    });
    let Ok(Some(policies)) = policies else { return false };
    policies.iter().any(|there| policy != OnConflict::Newest || there != "newest")
}

/// The database's name.
fn database(home: &Home) -> Result<String> {
    let rows = spi::read(home, "SELECT pg_catalog.current_database()", &[])?;
    required(&mut rows.into_iter().next().unwrap_or_default(), 0)
}

/// The policies of the triggers on `target` that lead to a table named as `local` is, in a database
/// of this name. Hosts are not compared: the same server goes by many names. The session's search_path leads
/// to PostgreSQL's own functions and operators; relations and types are looked for among temporary ones first.
fn question(local: &Relation, target: &Relation, db: &str) -> String {
    let [schema, table, on_schema, on_table, db] =
        [&local.schema, &local.table, &target.schema, &target.table, db].map(literal);
    format!(
        "SELECT COALESCE(convert_from(NULLIF(btrim(a.options, e.zero), ''), e.name)::pg_catalog.json \
                             ->> 'on_conflict', 'overwrite') \
         FROM pg_catalog.pg_trigger t \
         JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid AND p.proname = 'sync_dml' \
         JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass \
          AND d.objid = p.oid AND d.deptype = 'e' \
         JOIN pg_catalog.pg_extension x \
           ON d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND x.oid = d.refobjid \
          AND x.extname = 'pg_rowsync' \
         CROSS JOIN (SELECT getdatabaseencoding(), decode('00', 'hex')) e(name, zero) \
         CROSS JOIN LATERAL (SELECT convert_to({schema}, e.name) || e.zero \
                                 || convert_to({table}, e.name) || e.zero) w(target) \
         CROSS JOIN LATERAL (SELECT position(e.zero IN t.tgargs)) s(ends) \
         CROSS JOIN LATERAL (SELECT substring(t.tgargs, 1, s.ends - 1), \
                                    substring(t.tgargs, s.ends + 1, length(w.target)), \
                                    substring(t.tgargs, s.ends + 1 + length(w.target))) \
              a(server, target, options) \
         JOIN pg_catalog.pg_foreign_server f ON convert_to(f.srvname::pg_catalog.text, e.name) = a.server \
         WHERE n.nspname = {on_schema} AND c.relname = {on_table} \
           AND t.tgenabled IN ('O', 'A') AND t.tgtype & 28 <> 0 \
           AND t.tgnargs > 2 AND a.target = w.target \
           AND NOT EXISTS (SELECT FROM pg_options_to_table(f.srvoptions) o \
                            WHERE o.option_name = 'dbname' AND o.option_value <> {db})"
    )
}

/// The first column of the answer; `None` if none came in time.
fn ask(mut link: Link<'_>, sql: &str) -> Result<Option<Vec<String>>> {
    let deadline = Instant::now() + guc::connect_timeout();
    link.run(Fixed::new([sql]), Ending::Open);
    while !link.is_done() {
        let left = deadline.saturating_duration_since(Instant::now());
        let asked = interrupt::pending();
        if asked || left.is_zero() {
            // Closes the connection, before a request to cancel is raised.
            drop(link);
            interrupt::check();
            return Ok(None);
        }
        drive::drive_for(std::slice::from_mut(&mut link), left);
    }
    link.result()?;
    let policies = link.answers().iter().flatten().flatten().cloned().collect();
    link.into_session().into_iter().for_each(session::put_back);
    Ok(Some(policies))
}
