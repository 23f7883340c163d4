//! What writers pay while the other side refuses connections.

use std::time::Duration;

use anyhow::{Context, Result};

use super::contender::Contender;
use super::lane::Lane;
use super::load::Load;
use super::measure::{Figures, Unit};
use super::plan::{Plan, down};
use super::rig::Via;
use super::run::Run;
use super::shape::Shape;

/// The others fail, or wait for ever.
const SURVIVORS: [Contender; 4] = [
    Contender::None,
    Contender::Recipe,
    Contender::Async,
    Contender::Queue,
];

pub fn run(run: &mut Run) -> Result<()> {
    let contenders = run.plan.among(&SURVIVORS);
    run.rig.go(Via::Proxy(Duration::ZERO))?;
    for clients in [1, 8] {
        run.interleave(&contenders, Shape::Narrow, |figures, lane, plan| {
            turn(figures, lane, plan, clients)
        })?;
    }
    run.rig.go(Via::Direct)
}

fn turn(figures: &mut Figures, lane: &Lane, plan: &Plan, clients: u32) -> Result<()> {
    let title = down(clients);
    lane.tidy()?;
    lane.rig.refuse();
    let rate = Load::start(lane, 1, clients, plan.seconds)?.finish();
    lane.rig.accept()?;
    let rate = rate.with_context(|| format!("{title}, {}", lane.contender))?;
    if lane.contender != Contender::None {
        replay(lane)?;
        lane.ensure_equal().with_context(|| title.clone())?;
    }
    figures.add(&title, lane.contender, Unit::Transactions, rate);
    Ok(())
}

/// By calls: the worker may not look again for a while.
fn replay(lane: &Lane) -> Result<()> {
    if lane.contender == Contender::Recipe {
        return Ok(lane
            .session()?
            .batch_execute("select bench.recipe_drain('recipe_dst')")?);
    }
    let all = "select deal_sync_err_rec(1000000) and not exists (select from sync_queue)";
    lane.rig.await_here("the queue is empty", all)
}
