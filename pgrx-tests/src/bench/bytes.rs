//! What goes over the wire to the other side.

use std::time::Duration;

use anyhow::{Context, Result};

use super::contender::Contender;
use super::lane::Lane;
use super::measure::{Figures, Unit};
use super::rig::Via;
use super::run::Run;
use super::shape::{Operation, Shape};

/// The count hardly depends on how many these are.
const ROWS: u32 = 100;

pub fn run(run: &mut Run) -> Result<()> {
    run.rig.go(Via::Proxy(Duration::ZERO))?;
    for shape in [Shape::Narrow, Shape::Toast] {
        for contender in run.plan.contenders.iter().filter(|one| one.is_led()) {
            if *contender != Contender::None {
                let lane = Lane::start(&run.rig, *contender, shape)?;
                turn(&mut run.figures, &lane)?;
                lane.end()?;
            }
        }
    }
    run.rig.go(Via::Direct)
}

fn turn(figures: &mut Figures, lane: &Lane) -> Result<()> {
    let mut session = lane.session()?;
    for operation in Operation::ALL {
        let title = format!("bytes sent: {}", lane.shape.title(operation, ROWS));
        lane.warm(&mut session)?;
        lane.settle()?;
        let before = lane.rig.bytes_sent();
        session.batch_execute(&lane.shape.statement(operation, &lane.table, ROWS))?;
        lane.settle().with_context(|| title.clone())?;
        let sent = lane.rig.bytes_sent() - before;
        figures.add(
            &title,
            lane.contender,
            Unit::Bytes,
            sent as f64 / f64::from(ROWS),
        );
    }
    Ok(())
}
