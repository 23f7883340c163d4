//! One statement that writes many rows.

use anyhow::{Context, Result};
use postgres::Client;

use super::contender::Contender;
use super::lane::Lane;
use super::measure::{Figures, Unit, time};
use super::number::many;
use super::plan::Plan;
use super::run::Run;
use super::shape::{Operation, Shape};

/// What is measured with [`Plan::many`] rows, unless all are asked for.
const MANY: [Contender; 2] = [Contender::None, Contender::Async];

pub fn run(run: &mut Run, shape: Shape) -> Result<()> {
    let rows = match shape {
        Shape::Toast => run.plan.toast_rows,
        Shape::Narrow | Shape::Wide => run.plan.rows,
    };
    measure(run, shape, rows, &run.plan.contenders.clone(), false)
}

pub fn run_many(run: &mut Run) -> Result<()> {
    let contenders = if run.plan.slow {
        run.plan.contenders.clone()
    } else {
        run.plan.among(&MANY)
    };
    measure(run, Shape::Narrow, run.plan.many, &contenders, true)
}

fn measure(
    run: &mut Run,
    shape: Shape,
    rows: u32,
    contenders: &[Contender],
    memory: bool,
) -> Result<()> {
    let mut fast = Vec::new();
    for contender in contenders {
        if estimate(run, shape, rows, *contender)? <= Plan::PATIENCE || run.plan.slow {
            fast.push(*contender);
        } else {
            for operation in Operation::ALL {
                run.figures
                    .leave_out(&shape.title(operation, rows), *contender);
            }
        }
    }
    run.interleave(&fast, shape, |figures, lane, _| {
        turn(figures, lane, rows, memory)
    })
}

fn turn(figures: &mut Figures, lane: &Lane, rows: u32, memory: bool) -> Result<()> {
    let mut session = lane.session()?;
    for operation in Operation::ALL {
        let title = lane.shape.title(operation, rows);
        let statement = lane.shape.statement(operation, &lane.table, rows);
        lane.tidy()?;
        lane.warm(&mut session)?;
        // The worker wakes up with the commit of the statement, and has nothing else to do.
        lane.catch_up()?;
        let took = time(|| session.batch_execute(&statement))
            .with_context(|| format!("{title}, {}", lane.contender))?;
        let drained = lane.settle().with_context(|| title.clone())?;
        figures.add(&title, lane.contender, Unit::Milliseconds, took);
        if let Some(drained) = drained {
            let title = format!("{title}, until the other side has them");
            figures.add(&title, lane.contender, Unit::Milliseconds, took + drained);
        }
    }
    if memory {
        let title = format!("peak memory of the session, {}", many(rows, "row"));
        figures.add(
            &title,
            lane.contender,
            Unit::Megabytes,
            peak_memory(&mut session)?,
        );
    }
    Ok(())
}

/// Seconds that the slowest of the three statements will take, by what a small one takes beyond
/// a single row. Also a first turn, whose figures are not kept.
fn estimate(run: &Run, shape: Shape, rows: u32, contender: Contender) -> Result<f64> {
    let lane = Lane::start(&run.rig, contender, shape)?;
    let few = (rows / 100).max(rows.min(100));
    let mut session = lane.session()?;
    let mut slowest = 0.0f64;
    for operation in Operation::ALL {
        let statement = lane.shape.statement(operation, &lane.table, few);
        let single = lane.warm(&mut session)?;
        let took = time(|| session.batch_execute(&statement))?;
        lane.settle()?;
        slowest = slowest.max(single + (took - single) * f64::from(rows) / f64::from(few));
    }
    lane.end()?;
    Ok(slowest / 1e3)
}

/// The most memory that the session's process ever had, in MB, with what it touched of
/// shared_buffers.
fn peak_memory(session: &mut Client) -> Result<f64> {
    let pid: i32 = session.query_one("select pg_backend_pid()", &[])?.get(0);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = peak
        .and_then(|text| text.split_whitespace().next())
        .context("no VmHWM")?;
    Ok(kilobytes.parse::<f64>()? / 1024.0)
}
