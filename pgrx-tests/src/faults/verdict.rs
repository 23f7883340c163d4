//! What both sides hold after a round, and whether that may be.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

use super::rig::Rig;
use super::workload::Tally;
use crate::side::Side;

/// One side's rows of `t`, and the tags in `tx` with their keys.
struct Contents {
    rows: BTreeMap<i32, String>,
    tags: BTreeMap<i64, Vec<i32>>,
}

impl Contents {
    fn read(side: &Side) -> Result<Contents> {
        let mut client = side.connect()?;
        let rows = client.query("select id, v from t", &[])?;
        let tags = client.query("select tag, keys from tx", &[])?;
        Ok(Contents {
            rows: rows.iter().map(|row| (row.get(0), row.get(1))).collect(),
            tags: tags.iter().map(|row| (row.get(0), row.get(1))).collect(),
        })
    }
}

/// Compares the left side with another one after a drain. `excusable` are tags of transactions that the other side alone
/// may have. If it has some, writes the left's rows again until both are equal, and says how many
/// there were.
pub fn settle(rig: &Rig, other: &Side, tally: &Tally, excusable: &BTreeSet<i64>) -> Result<usize> {
    let left = Contents::read(&rig.left)?;
    let right = Contents::read(other)?;
    let unkept = tally
        .promised
        .iter()
        .find(|tag| !left.tags.contains_key(tag));
    ensure!(
        unkept.is_none(),
        "committed, but not on the left: transaction {unkept:?}"
    );
    let missing: Vec<_> = left
        .tags
        .keys()
        .filter(|tag| !right.tags.contains_key(tag))
        .take(5)
        .collect();
    ensure!(
        missing.is_empty(),
        "lost on the way to the right: transactions {missing:?}"
    );

    let ghosts: BTreeMap<_, _> = right
        .tags
        .into_iter()
        .filter(|(tag, _)| !left.tags.contains_key(tag))
        .collect();
    let inexcusable: Vec<_> = ghosts
        .keys()
        .filter(|tag| !excusable.contains(tag))
        .collect();
    ensure!(
        inexcusable.is_empty(),
        "on the right, but not on the left: {inexcusable:?}"
    );
    let explained: BTreeSet<i32> = ghosts.values().flatten().copied().collect();
    let all: BTreeSet<i32> = left.rows.keys().chain(right.rows.keys()).copied().collect();
    let differ: Vec<i32> = all
        .into_iter()
        .filter(|id| left.rows.get(id) != right.rows.get(id))
        .collect();
    for id in &differ {
        let show = |rows: &BTreeMap<i32, String>| {
            rows.get(id)
                .map_or_else(|| "none".to_owned(), |v| v.chars().take(40).collect())
        };
        ensure!(
            explained.contains(id),
            "row {id} differs: left {}, right {}; rows that differ: {differ:?}, \
             that {} transactions only on the right explain: {explained:?}",
            show(&left.rows),
            show(&right.rows),
            ghosts.len(),
        );
    }
    if !ghosts.is_empty() {
        let tags: Vec<i64> = ghosts.keys().copied().collect();
        other
            .connect()?
            .execute("delete from tx where tag = any($1)", &[&tags])?;
        other
            .connect()?
            .execute("delete from t where id = any($1)", &[&differ])?;
        rig.left
            .connect()?
            .execute("update t set v = v where id = any($1)", &[&differ])?;
        rig.await_drained()?;
        ensure!(
            Contents::read(&rig.left)?.rows == Contents::read(other)?.rows,
            "writing the rows again did not make both sides equal"
        );
    }
    Ok(ghosts.len())
}

/// Forgets the tags on both sides, so that comparing costs the same after every round.
pub fn forget_tags(rig: &Rig) -> Result<()> {
    for side in std::iter::once(&rig.left).chain(rig.rights()) {
        side.connect_superuser()?.batch_execute(&format!(
            "set session_replication_role = replica; truncate {}.tx",
            side.user
        ))?;
    }
    Ok(())
}
