//! What the trigger costs on the side where changes arrive, in sessions whose changes it must not
//! send back.

use anyhow::{Result, ensure};

use super::contender::Contender;
use super::lane::Lane;
use super::measure::{Figures, Unit, time};
use super::number::many;
use super::plan::Plan;
use super::run::Run;
use super::shape::Shape;

const GUARDED: [Contender; 4] = [
    Contender::None,
    Contender::Recipe,
    Contender::Fdw,
    Contender::Async,
];

/// So many times the rounds of other groups.
const TIMES: usize = 5;

pub fn run(run: &mut Run) -> Result<()> {
    let contenders = run.plan.among(&GUARDED);
    // Each takes a moment only: so many are cheap, and what is looked for is a tenth.
    (0..TIMES).try_for_each(|_| run.interleave(&contenders, Shape::Narrow, turn))
}

pub fn title(plan: &Plan) -> String {
    format!("insert {} under the guard", many(plan.rows, "row"))
}

fn turn(figures: &mut Figures, lane: &Lane, plan: &Plan) -> Result<()> {
    let side = &lane.rig.remote;
    let name = lane.contender.guard().unwrap_or_default();
    let mut session = side
        .cluster
        .connect_as(&side.db, &side.user, &side.password, name)?;
    lane.tidy()?;
    lane.warm(&mut session)?;
    let statement = lane.shape.insert(&lane.table, 1..=plan.rows.into());
    let took = time(|| session.batch_execute(&statement))?;
    let sent: i64 = lane
        .rig
        .ask_here(&format!("select count(*) from {}", lane.table))?;
    ensure!(sent == 0, "\"{}\": {sent} rows have come back", lane.table);
    figures.add(&title(plan), lane.contender, Unit::Milliseconds, took);
    Ok(())
}
