//! Whether all masters have the same rows; if not, what they have and who wrote it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use super::load::Tally;
use super::mesh::Mesh;
use super::tables::{TABLES, Table};
use crate::side::Side;

/// How many of the rows that differ are shown.
const SHOWN: usize = 5;

/// How many transactions that wrote such a row are shown, the latest ones.
const HISTORY: usize = 8;

/// Rows as JSON, by their keys.
type Rows = BTreeMap<String, String>;

/// How many rows all masters have.
///
/// # Errors
/// What differs, if they do not have the same.
pub fn compare(mesh: &Mesh, tallies: &[Tally]) -> Result<usize> {
    let mut total = 0;
    let mut differences = String::new();
    for table in &TABLES {
        let all: Vec<Rows> = mesh
            .nodes
            .iter()
            .map(|node| rows(node, table))
            .collect::<Result<_>>()?;
        let differ: Vec<u64> = (1..=table.keys)
            .filter(|key| {
                let mut found = all.iter().map(|rows| rows.get(&table.text(*key)));
                let first = found.next();
                found.any(|row| Some(row) != first)
            })
            .collect();
        if !differ.is_empty() {
            differences += &format!("\n\"{}\" differs in rows {differ:?}", table.name);
        }
        for key in differ.into_iter().take(SHOWN) {
            differences += &format!("\n  row {}", table.text(key));
            for (number, rows) in all.iter().enumerate() {
                let row = rows.get(&table.text(key)).map_or("none", String::as_str);
                let kept = kept(&mesh.nodes[number], table, &table.text(key))?;
                differences += &format!("\n    master {number}: {row}{kept}");
            }
            for (number, node) in mesh.nodes.iter().enumerate() {
                differences += &conflicts(node, table, &table.text(key), number)?;
            }
            differences += &history(tallies, table, key);
        }
        // Nobody writes others, so where none differs all have as many.
        total += all[0].len();
        ensure!(
            all.iter().flat_map(Rows::keys).all(|text| table.has(text)),
            "\"{}\" has rows that nobody wrote: {all:?}",
            table.name
        );
    }
    if differences.is_empty() {
        Ok(total)
    } else {
        bail!("the masters are not equal:{differences}")
    }
}

/// What the master keeps of a row's version.
fn kept(node: &Side, table: &Table, key: &str) -> Result<String> {
    let columns: Vec<String> = key
        .trim_matches(['(', ')'])
        .split(',')
        .map(|value| match value.parse::<i32>() {
            Ok(number) => format!("{number}::int"),
            Err(_) => format!("'{value}'::text"),
        })
        .collect();
    let sql = format!(
        "select format('%s rank %s%s at %s', version, rank, case when deleted then ' deleted' end, \
           changed_at) \
         from sync_row_version where relation = '{}.{}'::regclass \
           and key_hash = hash_record_extended(row({}), 0)",
        node.user,
        table.name,
        columns.join(", ")
    );
    let kept = node
        .connect_superuser()?
        .query_opt(&sql, &[])
        .context("no versions are kept")?;
    Ok(kept.map_or_else(String::new, |row| {
        format!(", counts as {}", row.get::<_, String>(0))
    }))
}

/// The conflicts that a row met which the master had sent.
fn conflicts(node: &Side, table: &Table, key: &str, number: usize) -> Result<String> {
    let values: Vec<String> = key
        .trim_matches(['(', ')'])
        .split(',')
        .map(|value| format!("\"{value}\""))
        .collect();
    let sql = format!(
        "select format('%s %s %s %s, version %s, there %s', to_char(logged_at, 'HH24:MI:SS.US'), \
           server, type, decision, version, server_version) \
         from sync_conflicts where table_name = '{}' and key::text ~ '{}' \
         order by id desc limit {HISTORY}",
        table.name,
        values.join(".*: ")
    );
    let found = node
        .connect_superuser()?
        .query(&sql, &[])
        .context("no log of conflicts")?;
    let line = |row: &postgres::Row| format!("\n    from {number}: {}", row.get::<_, String>(0));
    Ok(found.iter().map(line).collect())
}

fn rows(node: &Side, table: &Table) -> Result<Rows> {
    let Table { name, key, .. } = table;
    let rows = node
        .connect()?
        .query(
            &format!("select row({key})::text, to_jsonb(t)::text from {name} t"),
            &[],
        )
        .with_context(|| format!("no rows of \"{name}\""))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The latest transactions of the round that named the row.
fn history(tallies: &[Tally], table: &Table, key: u64) -> String {
    let written = tallies.iter().flat_map(|tally| &tally.log);
    let mut entries: Vec<_> = written
        .filter(|entry| entry.keys.contains(&(table.name, key)))
        .collect();
    entries.sort_by_key(|entry| entry.committed);
    let latest = &entries[entries.len().saturating_sub(HISTORY)..];
    latest
        .iter()
        .map(|entry| format!("\n    {entry}"))
        .collect()
}
