//! Rounds of load with one fault each, chosen by a seed. After every round the fault is put right,
//! the queue drains, and both sides are compared row by row.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::Ordering;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::fault::Fault;
use super::rig::{Drain, MAX_WAIT, Mode, Rig};
use super::verdict;
use super::workload::{Stage, TABLES, Tally, Writer};
use crate::pooler::PoolMode;
use crate::rng::Rng;

/// Sessions that write at the same time.
const WRITERS: usize = 4;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub mode: Mode,
    pub drain: Drain,
    pub seed: u64,
    /// The first round's number: what is rolled in a round depends on the seed and its number only.
    pub from: u64,
    pub rounds: u64,
    /// Always the same fault.
    pub fault: Option<Fault>,
    /// Put between the proxy and the right side.
    pub pooler: Option<PoolMode>,
    /// How many servers are sent to. A fault meets one of them.
    pub servers: u32,
}

/// What the rounds with one fault came to.
#[derive(Default)]
pub struct Line {
    pub rounds: u64,
    pub committed: u64,
    pub unknown: u64,
    /// Transactions that only the other side had.
    pub ghosts: usize,
    pub slow: u64,
    pub slowest: Duration,
    /// The longest time from the end of the load until nothing was left to replay.
    pub drained: Duration,
}

#[derive(Default)]
pub struct Summary(pub BTreeMap<String, Line>);

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<24}{:>8}{:>11}{:>9}{:>11}{:>7}{:>11}{:>11}",
            "fault",
            "rounds",
            "committed",
            "unknown",
            "right only",
            "slow",
            "slowest",
            "drained in"
        )?;
        for (fault, line) in &self.0 {
            writeln!(
                f,
                "{fault:<24}{:>8}{:>11}{:>9}{:>11}{:>7}{:>8.0} ms{:>8.0} ms",
                line.rounds,
                line.committed,
                line.unknown,
                line.ghosts,
                line.slow,
                line.slowest.as_secs_f64() * 1e3,
                line.drained.as_secs_f64() * 1e3,
            )?;
        }
        Ok(())
    }
}

/// Runs them all, on two clusters made for them.
///
/// # Errors
/// The first round that fails, with what it takes to run it again.
pub fn run(plan: Plan, say: &mut dyn FnMut(&str)) -> Result<Summary> {
    let label = format!("rounds_{}", plan.mode);
    let rig = Rig::start_behind(&label, plan.mode, plan.drain, plan.pooler, plan.servers)?;
    for (table, columns) in TABLES {
        rig.mirror(table, columns)?;
    }
    let mut summary = Summary::default();
    // A transaction in doubt may arrive late, where nobody is left who knows of it.
    let mut unknown = BTreeSet::new();
    let mut next_tag = 1;
    for number in plan.from..plan.from + plan.rounds {
        let mut rng = Rng::new(plan.seed, number);
        let chosen = Fault::choose(&mut rng, &rig);
        let fault = plan.fault.unwrap_or(chosen);
        let start = Instant::now();
        let stage = Stage::new(fault.touch(), WRITERS);
        stage.tags.store(next_tag, Ordering::Relaxed);
        let (tally, drained, ghosts) = round(&rig, &stage, fault, &mut rng, &mut unknown)
            .with_context(|| {
                let Plan { seed, mode, .. } = plan;
                format!(
                    "mode {mode}, seed {seed}, round {number}, fault {fault}{}{}",
                    rig.describe_queue(),
                    rig.describe_logs()
                )
            })?;
        next_tag = stage.tags.load(Ordering::Relaxed);
        say(&format!(
            "{:>5} {number:>4} {fault:<23} {:>5} committed {:>4} not {:>3} unknown {ghosts:>2} right only, \
             slowest {:>5} ms, drained in {:>5} ms, {:.1} s {:?}",
            plan.mode.to_string(),
            tally.committed,
            tally.failed,
            tally.unknown.len(),
            tally.slowest.as_millis(),
            drained.as_millis(),
            start.elapsed().as_secs_f64(),
            tally.errors,
        ));
        let line = summary.0.entry(fault.to_string()).or_default();
        line.rounds += 1;
        line.committed += tally.committed;
        line.unknown += tally.unknown.len() as u64;
        line.ghosts += ghosts;
        line.slow += tally.slow;
        line.slowest = line.slowest.max(tally.slowest);
        line.drained = line.drained.max(drained);
    }
    Ok(summary)
}

fn round(
    rig: &Rig,
    stage: &Stage,
    fault: Fault,
    rng: &mut Rng,
    unknown: &mut BTreeSet<i64>,
) -> Result<(Tally, Duration, usize)> {
    let tally = play(rig, stage, fault, rng)?;
    let drained = rig.await_drained()?;
    rig.await_sessions_gone(if rig.drain.has_worker() { 1 } else { 0 })?;
    match rig.mode {
        Mode::Queue => {}
        Mode::Async if fault.kills_left() => unknown.extend(&tally.unknown),
        // Never one without the other.
        Mode::Async | Mode::Atomic => {}
        Mode::Sync => unknown.extend(&tally.unknown),
    }
    let ghosts = rig
        .rights()
        .map(|side| verdict::settle(rig, side, &tally, unknown))
        .sum::<Result<_>>()?;
    verdict::forget_tags(rig)?;
    Ok((tally, drained, ghosts))
}

/// The load, with the fault in its middle.
fn play(rig: &Rig, stage: &Stage, fault: Fault, rng: &mut Rng) -> Result<Tally> {
    let streams: Vec<Rng> = (0..WRITERS)
        .map(|who| Rng::new(rng.roll(1 << 40), who as u64))
        .collect();
    let limit = 1 + rng.roll(300) as u32;
    thread::scope(|scope| {
        let mut writers: Vec<_> = streams
            .into_iter()
            .enumerate()
            .map(|(number, rng)| {
                let writer = Writer::new(rig, stage, number, rng);
                scope.spawn(move || writer.run())
            })
            .collect();
        if rig.drain.has_calls() {
            scope.spawn(move || rig.call_drain(limit, || stage.is_over()));
        }
        let failed = await_begun(stage).and_then(|()| {
            rng.pause(30, 150);
            let met = match rig.rights().count() {
                1 => 0,
                servers => rng.roll(servers as u64) as usize,
            };
            fault.run(rig, met, stage, rng)
        });
        // Some load after it as well: direct delivery comes back and meets the last of the queue.
        rng.pause(50, 250);
        stage.stop.store(true, Ordering::Relaxed);
        let end = Instant::now() + MAX_WAIT;
        while writers.iter().any(|writer| !writer.is_finished()) {
            if Instant::now() > end {
                let stuck = rig.describe_sessions();
                // The only way to bring a session back that waits for ever.
                rig.left.cluster.kill()?;
                bail!("writers hang: {stuck}");
            }
            sleep(Duration::from_millis(5));
        }
        let mut total = Tally::default();
        for writer in writers.drain(..) {
            total.add(writer.join().map_err(|_| anyhow!("a writer panicked"))??);
        }
        failed?;
        Ok(total)
    })
}

/// A fault that meets the very first delivery may let nobody commit before the load ends: in mode
/// `sync`, a server that stands still is enough.
fn await_begun(stage: &Stage) -> Result<()> {
    let start = Instant::now();
    while !stage.begun.load(Ordering::Relaxed) {
        ensure!(start.elapsed() < MAX_WAIT, "nobody could commit anything");
        sleep(Duration::from_millis(5));
    }
    Ok(())
}
