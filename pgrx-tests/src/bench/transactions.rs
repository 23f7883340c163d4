//! Small transactions by one client and by several.

use anyhow::{Context, Result};

use super::contender::Contender;
use super::lane::Lane;
use super::load::Load;
use super::measure::{Figures, Unit};
use super::plan::{Plan, transactions};
use super::run::Run;
use super::shape::Shape;

/// Rows in a transaction, and clients.
const SIZES: [(u32, u32); 3] = [(1, 1), (1, 8), (100, 1)];

pub fn run(run: &mut Run) -> Result<()> {
    let contenders = run.plan.contenders.clone();
    for (rows, clients) in SIZES {
        run.interleave(&contenders, Shape::Narrow, |figures, lane, plan| {
            turn(figures, lane, plan, rows, clients)
        })?;
    }
    // The worker and the other side take their part of the processors now.
    run.interleave(&run.plan.among(&[Contender::Queue]), Shape::Narrow, |figures, lane, plan| {
        let title = format!("{}, worker draining meanwhile", transactions(1, 8));
        measure(figures, lane, plan, 1, 8, &title)
    })
}

fn turn(figures: &mut Figures, lane: &Lane, plan: &Plan, rows: u32, clients: u32) -> Result<()> {
    lane.hold()?;
    measure(figures, lane, plan, rows, clients, &transactions(rows, clients))
}

fn measure(
    figures: &mut Figures,
    lane: &Lane,
    plan: &Plan,
    rows: u32,
    clients: u32,
    title: &str,
) -> Result<()> {
    lane.tidy()?;
    let load = Load::start(lane, rows, clients, plan.seconds)?;
    let rate = load.finish().with_context(|| format!("{title}, {}", lane.contender))?;
    lane.settle().with_context(|| title.to_owned())?;
    figures.add(title, lane.contender, Unit::Transactions, rate);
    Ok(())
}
