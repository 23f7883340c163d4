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
    let (mut total, mut differences) = (0, String::new());
    for table in &TABLES {
        let all: Vec<Rows> =
            mesh.nodes.iter().map(|node| rows(node, table)).collect::<Result<_>>()?;
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
                differences += &format!("\n    master {number}: {row}");
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
    match differences.is_empty() {
        true => Ok(total),
        false => bail!("the masters are not equal:{differences}"),
    }
}

fn rows(node: &Side, table: &Table) -> Result<Rows> {
    let Table { name, key, .. } = table;
    let rows = node
        .connect()?
        .query(&format!("select row({key})::text, to_jsonb(t)::text from {name} t"), &[])
        .with_context(|| format!("no rows of \"{name}\""))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The latest transactions of the round that named the row.
fn history(tallies: &[Tally], table: &Table, key: u64) -> String {
    let written = tallies.iter().flat_map(|tally| &tally.log);
    let mut entries: Vec<_> =
        written.filter(|entry| entry.keys.contains(&(table.name, key))).collect();
    entries.sort_by_key(|entry| entry.committed);
    let latest = &entries[entries.len().saturating_sub(HISTORY)..];
    latest.iter().map(|entry| format!("\n    {entry}")).collect()
}
