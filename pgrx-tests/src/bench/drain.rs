//! How fast a call drains a queue, alone and while others write.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::contender::Contender;
use super::lane::Lane;
use super::load::Load;
use super::measure::{Figures, Unit, milliseconds, time};
use super::number::many;
use super::plan::Plan;
use super::run::Run;
use super::shape::Shape;

/// Who writes meanwhile.
const PRODUCERS: u32 = 4;

/// Longer than any drain; the load is ended before.
const FOREVER: u64 = 3600;

pub fn run(run: &mut Run) -> Result<()> {
    let contenders = run.plan.among(&[Contender::Queue]);
    run.interleave(&contenders, Shape::Narrow, |figures, lane, plan| {
        fill(lane, plan)?;
        let rate = drain(lane, plan)?;
        figures.add(&title(plan), lane.contender, Unit::Records, rate);
        lane.settle().map(drop)
    })?;
    run.interleave(&contenders, Shape::Narrow, while_others_write)
}

pub fn title(plan: &Plan) -> String {
    format!("drain of {}", many(plan.backlog, "record"))
}

fn while_others_write(figures: &mut Figures, lane: &Lane, plan: &Plan) -> Result<()> {
    fill(lane, plan)?;
    let load = Load::start(lane, 1, PRODUCERS, FOREVER)?;
    let start = Instant::now();
    let written = || -> Result<i64> {
        let all: i64 = lane
            .rig
            .ask_here(&format!("select count(*) from {}", lane.table))?;
        Ok(all - i64::from(plan.backlog))
    };
    while written()? == 0 {
        ensure!(start.elapsed().as_secs() < 10, "the writers do not write");
    }
    let (before, start) = (written()?, Instant::now());
    let rate = drain(lane, plan)?;
    let wrote = (written()? - before) as f64 * 1e3 / milliseconds(start);
    drop(load);
    // What was under way when pgbench was killed ends, and only then the two sides can be equal.
    let gone =
        "select not exists (select from pg_stat_activity where application_name = 'pgbench')";
    lane.rig.await_here("the writers have left", gone)?;
    let clients = many(PRODUCERS, "client");
    let title = format!("{} while {clients} write", title(plan));
    figures.add(&title, lane.contender, Unit::Records, rate);
    let title = format!("transactions of 1 row, {clients}, while a call drains");
    figures.add(&title, lane.contender, Unit::Transactions, wrote);
    lane.settle().map(drop)
}

fn fill(lane: &Lane, plan: &Plan) -> Result<()> {
    lane.hold()?;
    let mut session = lane.session()?;
    session.batch_execute(&lane.shape.insert_new(&lane.table, plan.backlog))?;
    lane.tidy()?;
    // The session that drains has been there before: its connection is warm.
    lane.rig.here("select deal_sync_err_rec(1)")
}

/// Records a second.
fn drain(lane: &Lane, plan: &Plan) -> Result<f64> {
    let left = plan.backlog - 1;
    let mut clean = false;
    let took = time(|| -> Result<()> {
        clean = lane
            .rig
            .ask_here(&format!("select deal_sync_err_rec({left})"))?;
        Ok(())
    })?;
    ensure!(clean, "the drain has met a failure");
    Ok(f64::from(left) * 1e3 / took)
}
