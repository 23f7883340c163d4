//! What a run has counted, and what it has found.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A table whose rows were not the same on both sides, or what kept them from being compared.
#[derive(Clone, Debug)]
pub struct Difference {
    pub file: String,
    /// With its schema.
    pub table: String,
    /// What was executed last, with all of its transaction.
    pub statement: String,
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference {
            file,
            table,
            statement,
            what,
        } = self;
        write!(
            f,
            "{file}: {table}: {what}\n    after: {}",
            statement.replace('\n', "\n    ")
        )
    }
}

/// A part of a file's output that is not as without the extension.
#[derive(Clone, Debug)]
pub struct Hunk {
    pub file: String,
    pub lines: String,
}

#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub files: usize,
    pub statements: u64,
    /// Tables that were attached, once for each time that one was made.
    pub attached: BTreeSet<(String, u32)>,
    /// Tables that were not, and why.
    pub refused: BTreeMap<String, String>,
    /// Comparisons of a table.
    pub equal: u64,
    /// By reason.
    pub explained: BTreeMap<&'static str, u64>,
    pub different: Vec<Difference>,
    /// Definitions that fail on the other side alone, and tables that were made there from the
    /// catalogs instead.
    pub failed_there: u64,
    pub rebuilt: u64,
    /// Outputs that are as without the extension.
    pub same_outputs: usize,
    /// By reason.
    pub explained_hunks: BTreeMap<&'static str, u64>,
    pub hunks: Vec<Hunk>,
    /// What broke off: nothing can be said of what came after.
    pub broken: Vec<String>,
}

impl Tally {
    /// Whether nothing is left unexplained.
    pub fn is_clean(&self) -> bool {
        self.different.is_empty() && self.hunks.is_empty() && self.broken.is_empty()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let explained: u64 = self.explained.values().sum();
        let hunks: u64 = self.explained_hunks.values().sum();
        writeln!(
            f,
            "{} files, {} statements, {} tables attached, {} not; {} definitions failed there, {} tables rebuilt",
            self.files,
            self.statements,
            self.attached.len(),
            self.refused.len(),
            self.failed_there,
            self.rebuilt
        )?;
        writeln!(
            f,
            "comparisons: {} equal, {explained} explained, {} different",
            self.equal,
            self.different.len()
        )?;
        for (reason, count) in &self.explained {
            writeln!(f, "  {count} explained: {reason}")?;
        }
        write!(
            f,
            "outputs: {} of {} the same; {hunks} differences explained, {} not",
            self.same_outputs,
            self.files,
            self.hunks.len()
        )?;
        for (reason, count) in &self.explained_hunks {
            write!(f, "\n  {count} explained: {reason}")?;
        }
        Ok(())
    }
}
