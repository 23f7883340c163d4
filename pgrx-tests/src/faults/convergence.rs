//! Two or three masters under policy `newest`, every one sending to every other through a proxy of its
//! own that delays, breaks and silences the link while many clients write the same few rows. However
//! the masters' versions are made, all of them must end with the same rows, and no client may notice.

mod load;
mod mesh;
mod tables;
mod trouble;
mod verdict;

use std::fmt;
use std::thread::{self, ScopedJoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::rig::{Drain, Mode};
use crate::flag::Flag;
use crate::rng::Rng;
use load::{Tally, Writer};
use mesh::{DELIVERY_TIMEOUT, Mesh, WRITERS, join};
pub use tables::Version;

/// A client waits for its own delivery to each other master, for the clients before it that hold a row
/// it wants, and for drains of other masters that hold one: each of them bounded by timeouts, and most
/// of them not at all once a server is known to be away.
const LONGEST_WAIT: Duration = DELIVERY_TIMEOUT.saturating_mul(10);

/// Rows that clients are to write in a round, on average.
const MIN_CHANGES: u64 = 30;

/// How many times the rounds that were asked for may be run until everything has happened once.
const MAX_REPEATS: u64 = 4;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub masters: usize,
    pub version: Version,
    pub mode: Mode,
    pub drain: Drain,
    pub seed: u64,
    /// On the same masters, one after the other: what a round leaves behind meets the next one.
    pub rounds: u64,
    /// How long clients write in a round.
    pub time: Duration,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan {
            masters,
            version,
            mode,
            drain,
            seed,
            ..
        } = self;
        write!(
            f,
            "{masters} masters, version {version}, mode {mode}, drain {drain}, seed {seed}"
        )
    }
}

/// What a round, or all of them, came to.
#[derive(Default)]
pub struct Report {
    pub committed: u64,
    /// Rows written by clients' transactions that were committed.
    pub changes: u64,
    pub troubles: u64,
    /// Changes that were queued, for one other master each.
    pub queued: u64,
    /// Changes that were not: delivered at commit.
    pub direct: u64,
    /// None where the library is not preloaded, so that nobody counts.
    pub conflicts: Option<u64>,
    /// The longest that a client waited for a statement or a commit.
    pub slowest: Duration,
    /// From the end of the load until nothing was left to replay.
    pub drained: Duration,
    /// Rows in the end, the same on every master.
    pub rows: usize,
}

impl Report {
    /// What has not happened yet of all that a run is to meet.
    fn missing(&self, plan: Plan) -> Option<&'static str> {
        // Without a worker, the queue need not be empty again before the end of the load.
        let delivers_directly = plan.mode != Mode::Queue && plan.drain != Drain::Calls;
        [
            (self.troubles == 0 || self.queued == 0, "nothing was queued"),
            (
                delivers_directly && self.direct == 0,
                "nothing was delivered at commit",
            ),
            (self.conflicts == Some(0), "nobody met a conflict"),
            (
                self.changes <= MIN_CHANGES * plan.rounds,
                "hardly anything was written",
            ),
            (self.rows == 0, "all masters are empty"),
        ]
        .into_iter()
        .find_map(|(is_missing, what)| is_missing.then_some(what))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let conflicts = self
            .conflicts
            .map_or_else(|| "?".to_owned(), |count| count.to_string());
        write!(
            f,
            "{} committed, {} changes, {} troubles, {} direct, {} queued, {conflicts} conflicts, \
             slowest {} ms, drained in {} ms",
            self.committed,
            self.changes,
            self.troubles,
            self.direct,
            self.queued,
            self.slowest.as_millis(),
            self.drained.as_millis()
        )
    }
}

/// Runs all rounds, on clusters made for them.
///
/// # Errors
/// A client's error, a failed record, masters that differ, or a run in which nothing was at stake.
pub fn run(plan: Plan, say: &mut dyn FnMut(&str)) -> Result<Report> {
    ensure!(
        !plan.mode.is_strict(),
        "in strict modes clients notice every trouble"
    );
    let mesh = Mesh::start(plan.masters, plan.version, plan.mode, plan.drain)?;
    let mut total = Report::default();
    // On a machine that is busy with other things, two rounds may pass without all that is to be seen.
    for number in 0..plan.rounds * MAX_REPEATS {
        if number >= plan.rounds && total.missing(plan).is_none() {
            break;
        }
        let mut rng = Rng::new(plan.seed, number);
        let report = round(&mesh, number, plan.time, &mut rng).map_err(|error| {
            anyhow!("{plan}, round {number}: {error:#}{}", mesh.describe_logs())
        })?;
        say(&format!(
            "{plan}, round {number}: {report}, {} rows",
            report.rows
        ));
        total.committed += report.committed;
        total.changes += report.changes;
        total.troubles += report.troubles;
        total.queued += report.queued;
        total.direct += report.direct;
        total.conflicts = report
            .conflicts
            .map(|count| count + total.conflicts.unwrap_or(0));
        total.slowest = total.slowest.max(report.slowest);
        total.drained = total.drained.max(report.drained);
        total.rows = report.rows;
    }
    match total.missing(plan) {
        None => Ok(total),
        Some(missing) => bail!("{plan}: {missing}: {total}"),
    }
}

fn round(mesh: &Mesh, number: u64, time: Duration, rng: &mut Rng) -> Result<Report> {
    let before = mesh.counts()?;
    let (tallies, troubles) = play(mesh, number, time, rng)?;
    let start = Instant::now();
    mesh.await_drained()?;
    let drained = start.elapsed();
    let after = mesh.counts()?;
    let queued = after.queued - before.queued;
    let conflicts = after
        .conflicts
        .zip(before.conflicts)
        .map(|(after, before)| after - before);
    let mut report = Report {
        troubles,
        queued,
        conflicts,
        drained,
        ..Report::default()
    };
    report.committed = tallies.iter().map(|tally| tally.committed).sum();
    report.changes = tallies.iter().map(|tally| tally.changes).sum();
    report.slowest = tallies
        .iter()
        .map(|tally| tally.slowest)
        .max()
        .unwrap_or_default();
    report.direct = (report.changes * (mesh.nodes.len() as u64 - 1)).saturating_sub(queued);
    let compared = verdict::compare(mesh, &tallies);
    report.rows = compared.with_context(|| format!("{report}"))?;
    ensure!(
        report.slowest < LONGEST_WAIT,
        "a client waited for longer than {LONGEST_WAIT:?}: {report}"
    );
    Ok(report)
}

/// The load, with trouble on every link all the time; without trouble when it returns. The tallies of
/// the writers, and how many troubles there were.
fn play(mesh: &Mesh, round: u64, time: Duration, rng: &mut Rng) -> Result<(Vec<Tally>, u64)> {
    let end = Instant::now() + time;
    let done = Flag::default();
    let (done, mut chance) = (&done, |stream| Rng::new(rng.roll(1 << 40), stream));
    thread::scope(|scope| {
        let _end = done.set_at_end();
        let writers: Vec<_> = (0..WRITERS * mesh.nodes.len() as u64)
            .map(|number| {
                let writer = Writer::new(mesh, round, number as usize, chance(number));
                scope.spawn(move || writer.run(end))
            })
            .collect();
        let links: Vec<_> = mesh
            .links
            .iter()
            .zip(0..)
            .map(|(link, number)| {
                let mut rng = chance(number);
                scope.spawn(move || trouble::run(link, &mut rng, end))
            })
            .collect();
        let drains: Vec<_> = mesh
            .nodes
            .iter()
            .filter(|_| mesh.drain.has_calls())
            .zip(0..)
            .map(|(node, number)| {
                let limit = 1 + chance(number).roll(500);
                scope.spawn(move || mesh::call_drain(node, limit, done))
            })
            .collect();
        // Everything ends, whatever fails, before any of it is judged.
        let troubles: Result<u64> = links.into_iter().map(join).sum();
        let hung = await_all(mesh, &writers);
        done.set();
        let tallies: Result<Vec<Tally>> = writers.into_iter().map(join).collect();
        let drained: Result<()> = drains.into_iter().try_for_each(join);
        hung?;
        drained?;
        Ok((tallies?, troubles?))
    })
}

/// Ends the writers that hang in the only way there is, by the end of their servers.
fn await_all<T>(mesh: &Mesh, writers: &[ScopedJoinHandle<'_, T>]) -> Result<()> {
    let end = Instant::now() + 2 * LONGEST_WAIT;
    while writers.iter().any(|writer| !writer.is_finished()) {
        if Instant::now() > end {
            let stuck = mesh.describe_sessions();
            for node in &mesh.nodes {
                node.cluster.kill()?;
            }
            bail!("clients hang: {stuck}");
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}
