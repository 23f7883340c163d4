//! What is kept of conflicts: counters in shared memory, and the table `sync_conflict_log`.
//!
//! Written when the server has committed already and the local transaction is about to: from here on
//! nothing may fail it, and it must not wait. So the table is written in subtransactions, with
//! interrupts held, and no lock of another session is waited for.

use crate::change::Relation;
use crate::conflict::Tally;
use crate::error::{Error, Result};
use crate::guc::{self, LogConflicts};
use crate::pg::context::{self, Settings, Writable};
use crate::pg::spi::{self, Extension};
use crate::pg::subtransaction::attempt;
use crate::pg::text::displayable;
use crate::pg::{Oid, interrupt, report, sequence};
use crate::sql::quote::{ArrayLiteral, ident};
use crate::stats;

/// Counts and logs the conflicts of a delivery, or of what was drained. For a pre-commit callback, after
/// the server has committed: never raises, what fails is a WARNING.
pub fn record(extension: &Extension, server: Oid, server_name: &str, tally: &Tally) {
    if tally.is_empty() {
        return;
    }
    stats::conflicts(server, tally.total());
    let wanted = guc::log_conflicts();
    if wanted == LogConflicts::Off {
        return;
    }
    let _hold = interrupt::Hold::new();
    let _writable = Writable::new();
    let warn = |what, result: Result<()>| {
        if let Err(error) = result {
            let message = format!("conflicts with server \"{server_name}\" were not {what}");
            // Without its DETAIL, which may show the row.
            let error = Error::local(error.sqlstate(), error.to_string());
            report::warn(&message, &error, None);
        }
    };
    if stats::are_kept() {
        warn(
            "counted by table",
            attempt(|| count(extension, server, tally)),
        );
    }
    if wanted == LogConflicts::Log {
        match attempt(|| write(extension, server_name, tally)) {
            Ok(ids) => warn("purged", purge_after(extension, ids)),
            Err(error) => warn("logged", Err(error)),
        }
    }
}

fn count(extension: &Extension, server: Oid, tally: &Tally) -> Result<()> {
    let mut tables: Vec<&Relation> = tally.counts().map(|(table, ..)| table).collect();
    tables.dedup();
    let oids = oids(extension, &tables)?;
    for (table, kind, changes) in tally.counts() {
        let known = tables
            .iter()
            .position(|known| *known == table)
            .and_then(|at| oids[at]);
        if let Some(oid) = known {
            stats::conflicts_of(server, oid, kind, changes);
        }
    }
    Ok(())
}

/// The tables as they are now; `None` for one that was dropped.
fn oids(extension: &Extension, tables: &[&Relation]) -> Result<Vec<Option<Oid>>> {
    let mut schemas = ArrayLiteral::default();
    let mut names = ArrayLiteral::default();
    for table in tables {
        schemas.push(Some(&table.schema));
        names.push(Some(&table.table));
    }
    let rows = spi::read(
        extension,
        "SELECT c.oid FROM ROWS FROM (unnest($1::name[]), \
            unnest($2::name[])) WITH ORDINALITY AS v(nsp, tab, ord) \
         LEFT JOIN pg_namespace n ON n.nspname = v.nsp \
         LEFT JOIN pg_class c ON c.relnamespace = n.oid \
            AND c.relname = v.tab ORDER BY v.ord",
        &[Some(&schemas.into_text()), Some(&names.into_text())],
    )?;
    let oid = |row: spi::Row| row.into_iter().next().flatten()?.parse::<u32>().ok();
    let found: Vec<_> = rows
        .into_iter()
        .map(|row| oid(row).map(Oid::from))
        .collect();
    if found.len() == tables.len() {
        Ok(found)
    } else {
        Err(Error::internal(
            "tables of conflicts were not all looked up",
        ))
    }
}

/// Appends to the log, and gives the first and the last id of what it appended; `None` for nothing.
fn write(extension: &Extension, server_name: &str, tally: &Tally) -> Result<Option<(i64, i64)>> {
    // A lock that cannot be had is an error: while interrupts are held, nothing ends a wait for it.
    let log = format!("{}.sync_conflict_log", ident(&extension.schema));
    spi::write(
        extension,
        &format!("LOCK TABLE ONLY {log} IN ROW EXCLUSIVE MODE NOWAIT"),
        &[],
    )?;
    let mut columns: [ArrayLiteral; 9] = Default::default();
    let rows = tally.details().count() as i64;
    if rows == 0 {
        return Ok(None);
    }
    for (table, conflict) in tally.details() {
        let json = |value: &Option<serde_json::Value>| value.as_ref().map(|v| v.to_string());
        let values = [
            Some(table.schema.clone()),
            Some(table.table.clone()),
            Some(conflict.kind.name().to_owned()),
            Some(conflict.decision.name().to_owned()),
            json(&conflict.key),
            json(&conflict.server_key),
            conflict.version.clone(),
            conflict.server_version.clone(),
            conflict.constraint.clone(),
        ];
        for (column, value) in columns.iter_mut().zip(values) {
            // What the server's encoding knows and this database's lacks is no reason to lose the rest.
            column.push(value.map(|value| displayable(&value)).as_deref());
        }
    }
    let sql = format!(
        "INSERT INTO {log} (id, server, nsp_name, table_name, type, decision, key, server_key, \
            version, server_version, constraint_name) OVERRIDING SYSTEM VALUE \
         SELECT $11::int8 + v.ord, $1, v.nsp, v.tab, v.type, v.decision, \
            v.key::json, v.server_key::json, v.version, v.server_version, \
            v.constraint_name \
         FROM ROWS FROM (unnest($2::text[]), \
            unnest($3::text[]), unnest($4::text[]), \
            unnest($5::text[]), unnest($6::text[]), \
            unnest($7::text[]), unnest($8::text[]), \
            unnest($9::text[]), unnest($10::text[])) \
            WITH ORDINALITY AS v(nsp, tab, type, decision, key, server_key, version, \
               server_version, constraint_name, ord)"
    );
    let first = sequence::draw(extension, "sync_conflict_log_id_seq", rows)?;
    let before = (first - 1).to_string();
    let columns = columns.map(ArrayLiteral::into_text);
    let columns = columns.iter().map(String::as_str);
    let args: Vec<_> = [server_name]
        .into_iter()
        .chain(columns)
        .chain([&*before])
        .map(Some)
        .collect();
    // Most of these are NULL somewhere.
    let _settings = Settings::set(&[(c"array_nulls", c"on")]);
    spi::write(extension, &sql, &args)?;
    Ok(Some((first, first + rows - 1)))
}

/// Rows to look at in a purge, beside twice as many as were written before it, so that a log that is too
/// long becomes shorter.
const PURGE_ROWS: i64 = 100;

/// Purges after rows were written, if this transaction is one to do it.
fn purge_after(extension: &Extension, ids: Option<(i64, i64)>) -> Result<()> {
    let Some((first, last)) = ids else {
        return Ok(());
    };
    // A SERIALIZABLE transaction that reads the log conflicts with all others that write it at their commits. So
    // only one in many reads it.
    let section = |id: i64| id / PURGE_ROWS;
    if context::is_serializable() && section(first - 1) == section(last) {
        return Ok(());
    }
    match attempt(|| purge(extension, last, 2 * (last - first + 1 + PURGE_ROWS))) {
        // Others have removed the rows since the snapshot.
        Err(error) if error.sqlstate().as_str() == "40001" => Ok(()),
        result => result,
    }
}

/// Removes those of the oldest rows that the log is not to keep. Its size is that of the range of ids: what
/// was rolled back counts too, and no row need be counted. What another session is removing is passed over.
fn purge(extension: &Extension, last: i64, rows: i64) -> Result<()> {
    let sql = format!(
        "DELETE FROM ONLY {log} WHERE id = ANY (ARRAY( \
           SELECT l.id FROM ONLY {log} l \
           WHERE l.id = ANY (ARRAY( \
                SELECT o.id FROM ONLY {log} o ORDER BY o.id LIMIT $1::int8)) \
             AND (l.id <= $2::int8 \
               OR l.logged_at < (clock_timestamp() \
                  - make_interval(secs => $3::float8))) \
           FOR UPDATE SKIP LOCKED))",
        log = format_args!("{}.sync_conflict_log", ident(&extension.schema))
    );
    let beyond = last - i64::from(guc::conflict_log_size());
    let args = [rows, beyond, guc::conflict_retention().as_secs() as i64].map(|n| n.to_string());
    spi::write(
        extension,
        &sql,
        &args.each_ref().map(|arg| Some(arg.as_str())),
    )?;
    Ok(())
}
