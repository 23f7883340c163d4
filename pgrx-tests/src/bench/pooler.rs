//! Transactions of one row through PgBouncer in transaction mode, and without it.

use anyhow::{Context, Result};

use super::contender::Contender;
use super::lane::Lane;
use super::load::Load;
use super::measure::{Figures, Unit};
use super::number::many;
use super::plan::Plan;
use super::rig::Via;
use super::run::Run;
use super::shape::Shape;

pub const CLIENTS: [u32; 2] = [1, 8];

/// Those that can be reached through a pooler that drops `options`: nobody stands for pgbench that writes
/// the other side itself, which shows what the pooler costs whoever uses it.
const CONTENDERS: [Contender; 3] = [Contender::None, Contender::Async, Contender::Sync];

pub fn run(run: &mut Run) -> Result<()> {
    let contenders = run.plan.among(&CONTENDERS);
    for clients in CLIENTS {
        for _ in 0..run.plan.rounds {
            for contender in &contenders {
                // One after the other, so that the two are of the same moment.
                for via in [Via::Direct, Via::Pooler] {
                    run.rig.go(via)?;
                    let lane = Lane::start(&run.rig, *contender, Shape::Narrow)?;
                    turn(&mut run.figures, &lane, &run.plan, clients, via)?;
                    lane.end()?;
                }
            }
        }
    }
    run.rig.go(Via::Direct)
}

fn turn(figures: &mut Figures, lane: &Lane, plan: &Plan, clients: u32, via: Via) -> Result<()> {
    let title = title(clients, via == Via::Pooler);
    lane.tidy()?;
    let load = match lane.contender {
        Contender::None => Load::there(lane, clients, plan.seconds)?,
        _ => Load::start(lane, 1, clients, plan.seconds)?,
    };
    let rate = load
        .finish()
        .with_context(|| format!("{title}, {}", lane.contender))?;
    lane.settle().with_context(|| title.clone())?;
    figures.add(&title, lane.contender, Unit::Transactions, rate);
    Ok(())
}

/// What the rate with or without the pooler is called.
pub fn title(clients: u32, is_pooled: bool) -> String {
    let way = if is_pooled {
        "through PgBouncer"
    } else {
        "without a pooler"
    };
    format!("transactions of 1 row, {way}, {}", many(clients, "client"))
}
