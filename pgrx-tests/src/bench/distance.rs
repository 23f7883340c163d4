//! Transactions with a round trip of some milliseconds to the other side.

use std::time::Duration;

use anyhow::{Context, Result};
use postgres::Client;

use super::contender::Contender;
use super::lane::Lane;
use super::measure::{Figures, Unit, time};
use super::plan::{Plan, distance, round_trip};
use super::rig::{Rig, Via};
use super::run::Run;
use super::shape::Shape;

/// Seconds that a transaction may take by what a smaller one took. There are many of them: less than
/// elsewhere.
const PATIENCE: f64 = 20.0;

/// Queries whose mean is what a round trip takes.
const PINGS: u32 = 20;

pub fn run(run: &mut Run) -> Result<()> {
    let delays = run.plan.delays.clone();
    for _ in 0..run.plan.rounds {
        // All delays in a round, so that their differences are not those of two moments.
        for delay in &delays {
            run.rig.go(Via::Proxy(Duration::from_millis(*delay)))?;
            let ping = ping(&run.rig)?;
            let title = round_trip(*delay);
            run.figures
                .add(&title, Contender::None, Unit::Milliseconds, ping);
            for contender in run.plan.contenders.iter().filter(|one| one.is_led()) {
                let lane = Lane::start(&run.rig, *contender, Shape::Narrow)?;
                turn(&mut run.figures, &lane, &run.plan, *delay)?;
                lane.end()?;
            }
        }
    }
    run.rig.go(Via::Direct)
}

fn turn(figures: &mut Figures, lane: &Lane, plan: &Plan, delay: u64) -> Result<()> {
    let mut session = lane.session()?;
    let mut hundred = 0.0;
    for (rows, repeats) in [
        (1, plan.repeats),
        (100, plan.repeats.div_ceil(10)),
        (plan.rows, 1),
    ] {
        let title = distance(rows, delay);
        let too_long = hundred * f64::from(rows) / 100.0 / 1e3 > PATIENCE && !plan.slow;
        if too_long || figures.is_left_out(&title, lane.contender) {
            figures.leave_out(&title, lane.contender);
            continue;
        }
        lane.hold()?;
        lane.tidy()?;
        lane.warm(&mut session)?;
        let took = mean(lane, &mut session, rows, repeats).with_context(|| title.clone())?;
        lane.settle().with_context(|| title.clone())?;
        if rows == 100 {
            hundred = took;
        }
        figures.add(&title, lane.contender, Unit::Milliseconds, took);
    }
    Ok(())
}

/// Milliseconds of one of so many transactions after each other.
fn mean(lane: &Lane, session: &mut Client, rows: u32, repeats: u32) -> Result<f64> {
    let statement = lane.shape.insert_new(&lane.table, rows);
    let took = time(|| (0..repeats).try_for_each(|_| session.batch_execute(&statement)))?;
    Ok(took / f64::from(repeats))
}

/// What the proxy's delay is in fact.
fn ping(rig: &Rig) -> Result<f64> {
    let mut client = rig.visit()?;
    client.batch_execute("")?;
    let took = time(|| (0..PINGS).try_for_each(|_| client.batch_execute("")))?;
    Ok(took / f64::from(PINGS))
}
