//! One run of the benchmark: its groups of workloads, one after the other.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::contender::Contender;
use super::lane::Lane;
use super::measure::Figures;
use super::plan::Plan;
use super::rig::Rig;
use super::shape::Shape;
use super::{bytes, distance, down, drain, guard, statements, transactions};

pub struct Run {
    pub rig: Rig,
    pub plan: Plan,
    pub figures: Figures,
}

type Group = (&'static str, fn(&mut Run) -> Result<()>);

/// By the names that `--only` looks for.
const GROUPS: [Group; 10] = [
    ("narrow", |run| statements::run(run, Shape::Narrow)),
    ("wide", |run| statements::run(run, Shape::Wide)),
    ("toast", |run| statements::run(run, Shape::Toast)),
    ("many", statements::run_many),
    ("transactions", transactions::run),
    ("distance", distance::run),
    ("bytes", bytes::run),
    ("guard", guard::run),
    ("drain", drain::run),
    ("down", down::run),
];

pub fn group_names() -> Vec<&'static str> {
    GROUPS.iter().map(|(name, _)| *name).collect()
}

impl Run {
    pub fn start(plan: Plan) -> Result<Run> {
        Ok(Run {
            rig: Rig::start(&plan.contenders, Duration::from_micros(plan.flush))?,
            plan,
            figures: Figures::default(),
        })
    }

    /// All groups that the plan asks for; says when one begins.
    pub fn all(&mut self, say: &mut dyn FnMut(&str)) -> Result<()> {
        let only = self.plan.only.clone().unwrap_or_default();
        let groups: Vec<_> = GROUPS.iter().filter(|(name, _)| name.contains(&only)).collect();
        ensure!(!groups.is_empty(), "--only: one of {}", group_names().join(", "));
        for (name, group) in groups {
            let start = Instant::now();
            group(self)?;
            say(&format!("{name}: {:.0} s", start.elapsed().as_secs_f64()));
        }
        Ok(())
    }

    /// Every contender in turn, as often as there are rounds, so that what else the machine does
    /// meets them all.
    pub fn interleave(
        &mut self,
        contenders: &[Contender],
        shape: Shape,
        mut turn: impl FnMut(&mut Figures, &Lane, &Plan) -> Result<()>,
    ) -> Result<()> {
        for _ in 0..self.plan.rounds {
            for contender in contenders {
                let lane = Lane::start(&self.rig, *contender, shape)?;
                turn(&mut self.figures, &lane, &self.plan)?;
                lane.end()?;
            }
        }
        Ok(())
    }
}
