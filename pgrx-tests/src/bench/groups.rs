//! The groups of workloads that a run can consist of, one after the other.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::run::Run;
use super::shape::Shape;
use super::{bytes, copy, distance, down, drain, guard, pooler, statements, transactions, verify};

type Group = (&'static str, fn(&mut Run) -> Result<()>);

/// By the names that `--only` looks for.
const GROUPS: [Group; 13] = [
    ("narrow", |run| statements::run(run, Shape::Narrow)),
    ("wide", |run| statements::run(run, Shape::Wide)),
    ("toast", |run| statements::run(run, Shape::Toast)),
    ("many", statements::run_many),
    ("transactions", transactions::run),
    ("distance", distance::run),
    ("pooler", pooler::run),
    ("bytes", bytes::run),
    ("guard", guard::run),
    ("drain", drain::run),
    ("down", down::run),
    ("copy", copy::run),
    ("verify", verify::run),
];

pub fn group_names() -> Vec<&'static str> {
    GROUPS.iter().map(|(name, _)| *name).collect()
}

/// All groups that the plan asks for; says when one begins.
pub fn all(run: &mut Run, say: &mut dyn FnMut(&str)) -> Result<()> {
    let only = run.plan.only.clone().unwrap_or_default();
    let groups: Vec<_> = GROUPS
        .iter()
        .filter(|(name, _)| name.contains(&only))
        .collect();
    ensure!(
        !groups.is_empty(),
        "--only: one of {}",
        group_names().join(", ")
    );
    for (name, group) in groups {
        let start = Instant::now();
        group(run)?;
        say(&format!("{name}: {:.0} s", start.elapsed().as_secs_f64()));
    }
    Ok(())
}
