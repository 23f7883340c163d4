//! One run of the benchmark: what it is to do, on what, and what it has measured.

use std::time::Duration;

use anyhow::Result;

use super::contender::Contender;
use super::lane::Lane;
use super::measure::Figures;
use super::plan::Plan;
use super::rig::Rig;
use super::shape::Shape;

pub struct Run {
    pub rig: Rig,
    pub plan: Plan,
    pub figures: Figures,
}

impl Run {
    pub fn start(plan: Plan) -> Result<Run> {
        Ok(Run {
            rig: Rig::start(&plan.contenders, Duration::from_micros(plan.flush))?,
            plan,
            figures: Figures::default(),
        })
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
