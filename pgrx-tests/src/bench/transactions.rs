//! Small transactions by one client and by several.

use anyhow::{Context, Result};

use super::contender::Contender;
use super::lane::Lane;
use super::load::Load;
use super::measure::{Figures, Unit};
use super::plan::{Plan, transactions, updates};
use super::run::Run;
use super::shape::Shape;

/// Rows in a transaction, and clients.
const SIZES: [(u32, u32); 3] = [(1, 1), (1, 8), (100, 1)];
/// Clients that update single rows.
const CLIENTS: [u32; 2] = [1, 8];

pub fn run(run: &mut Run) -> Result<()> {
    let contenders = run.plan.contenders.clone();
    for (rows, clients) in SIZES {
        run.interleave(&contenders, Shape::Narrow, |figures, lane, plan| {
            turn(figures, lane, plan, rows, clients)
        })?;
    }
    for clients in CLIENTS {
        run.interleave(&contenders, Shape::Narrow, |figures, lane, plan| {
            update(figures, lane, plan, clients)
        })?;
    }
    // The worker and the other side take their part of the processors now.
    run.interleave(
        &run.plan.among(&[Contender::Queue]),
        Shape::Narrow,
        |figures, lane, plan| {
            let title = format!("{}, worker draining meanwhile", transactions(1, 8));
            measure(figures, lane, plan, 1, 8, &title)
        },
    )
}

fn turn(figures: &mut Figures, lane: &Lane, plan: &Plan, rows: u32, clients: u32) -> Result<()> {
    lane.hold()?;
    measure(
        figures,
        lane,
        plan,
        rows,
        clients,
        &transactions(rows, clients),
    )
}

fn update(figures: &mut Figures, lane: &Lane, plan: &Plan, clients: u32) -> Result<()> {
    let title = updates(clients);
    let fill = lane.shape.insert(&lane.table, 1..=plan.updated.into());
    lane.session()?.batch_execute(&fill)?;
    lane.settle()?;
    lane.hold()?;
    lane.tidy()?;
    let load = Load::updates(lane, plan.updated, clients, plan.seconds)?;
    finish(figures, lane, load, &title)
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
    finish(
        figures,
        lane,
        Load::start(lane, rows, clients, plan.seconds)?,
        title,
    )
}

fn finish(figures: &mut Figures, lane: &Lane, load: Load, title: &str) -> Result<()> {
    let rate = load
        .finish()
        .with_context(|| format!("{title}, {}", lane.contender))?;
    lane.settle().with_context(|| title.to_owned())?;
    figures.add(title, lane.contender, Unit::Transactions, rate);
    Ok(())
}
