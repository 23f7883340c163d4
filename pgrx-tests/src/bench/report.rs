//! All of a run: as text for people, as JSON for programs and for the chart.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::measure::Figures;
use super::number::many;
use super::plan::Plan;
use super::table;
use super::targets::{self, Verdict};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub machine: Machine,
    pub plan: Plan,
    pub figures: Figures,
    pub targets: Vec<Verdict>,
}

impl Report {
    pub fn new(machine: Machine, plan: Plan, figures: Figures) -> Report {
        let targets = targets::judge(&figures, &plan);
        Report {
            machine,
            plan,
            figures,
            targets,
        }
    }

    /// What [`Report::write_json`] has written, its figures judged anew.
    pub fn read(file: &Path) -> Result<Report> {
        let text = fs::read_to_string(file)
            .with_context(|| format!("could not read \"{}\"", file.display()))?;
        let Report {
            machine,
            plan,
            figures,
            ..
        } = serde_json::from_str(&text).with_context(|| format!("in \"{}\"", file.display()))?;
        Ok(Report::new(machine, plan, figures))
    }

    pub fn write_json(&self, file: &Path) -> Result<()> {
        write(file, &format!("{}\n", serde_json::to_string_pretty(self)?))
    }

    pub fn text(&self) -> Result<String> {
        let Machine {
            processor,
            cores,
            memory_gib,
            kernel,
            flush,
            ..
        } = &self.machine;
        let Machine {
            postgresql,
            pg_rowsync,
            settings,
            ..
        } = &self.machine;
        let slower = match self.plan.flush {
            0 => String::new(),
            added => format!(", made {} ms longer here", added as f64 / 1000.0),
        };
        let mut text = format!(
            "{processor}, {cores} cores, {memory_gib} GiB, Linux {kernel}\n\
             a block written and flushed: {flush:.2} ms{slower}\n\
             PostgreSQL {postgresql}, pg_rowsync {pg_rowsync}; both clusters on this machine, with "
        );
        let settings: Vec<_> = settings
            .iter()
            .map(|(name, value)| format!("{name} = {value}"))
            .collect();
        writeln!(text, "{}", settings.join(", "))?;
        writeln!(
            text,
            "synchronous_commit is remote_apply in the sessions of native; local is what on is \
             without a standby\n{}, the contenders in turn\n",
            many(self.plan.rounds as u32, "round")
        )?;
        for contender in &self.plan.contenders {
            writeln!(text, "{contender:<8} {}", contender.says())?;
        }
        writeln!(
            text,
            "\nof none: median as a multiple of that of none; than recipe, ...: how many times \
             better; -: left out, it would take too long\n"
        )?;
        text.push_str(&table::render(&self.figures));
        writeln!(
            text,
            "\ntargets, of pg_rowsync in mode async unless they say otherwise\n"
        )?;
        for verdict in &self.targets {
            // Whoever asks for a part knows that the rest is missing.
            if verdict.found.is_some() || self.plan.only.is_none() {
                writeln!(text, "{verdict}")?;
            }
        }
        let count = |met| {
            self.targets
                .iter()
                .filter(|one| one.is_met() == met)
                .count()
        };
        let (met, missed, open) = (count(Some(true)), count(Some(false)), count(None));
        let beyond = self
            .targets
            .iter()
            .filter(|one| one.is_out_of_reach())
            .count();
        let beyond = format!("{beyond} of them out of reach on this machine");
        writeln!(
            text,
            "\n{met} met, {missed} not met ({beyond}), {open} not measured"
        )?;
        Ok(text)
    }
}

/// Writes a file.
pub(super) fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("could not write \"{}\"", file.display()))
}
