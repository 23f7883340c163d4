//! The other side goes away under load and comes back. The application must notice one slow commit
//! at most, and everything must be as before without anyone doing anything.

use std::fmt;
use std::str::FromStr;
use std::thread::{self, sleep};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use postgres::Client;

use super::pgbench::{self, Load, Sample};
use super::rig::{Drain, Mode, Rig};
use crate::cluster::Shutdown;
use crate::flag::Flag;

/// In what way the right side is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away {
    /// Connections are reset and refused.
    Refused,
    /// Not a byte passes.
    Silent,
    /// The server is shut down at once.
    Stopped,
}

impl FromStr for Away {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Away> {
        Ok(match name {
            "refused" => Away::Refused,
            "silent" => Away::Silent,
            "stopped" => Away::Stopped,
            _ => bail!("unknown kind of outage \"{name}\""),
        })
    }
}

impl Away {
    fn begin(self, rig: &Rig) -> Result<()> {
        match self {
            Away::Refused => {
                rig.proxy.refuse();
                rig.proxy.cut();
            }
            Away::Silent => rig.proxy.freeze(),
            Away::Stopped => rig.right.cluster.stop(Shutdown::Immediate)?,
        }
        Ok(())
    }

    fn end(self, rig: &Rig) -> Result<()> {
        match self {
            Away::Refused => rig.proxy.accept(),
            Away::Silent => {
                // What was on its way is lost, as after a failed router.
                rig.proxy.cut();
                rig.proxy.thaw();
                Ok(())
            }
            Away::Stopped => rig.right.cluster.start_again(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub away: Away,
    pub drain: Drain,
    pub clients: u32,
    pub scale: u32,
    /// Transactions a second of all clients; as fast as it goes if none.
    pub rate: Option<u32>,
    pub before: Duration,
    pub outage: Duration,
    /// Load after the outage; direct delivery must come back while it lasts.
    pub after: Duration,
}

/// What clients saw between two moments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Phase {
    pub transactions: usize,
    pub tps: f64,
    pub median: Duration,
    pub p99: Duration,
    pub max: Duration,
    /// How many took longer than half a second.
    pub slow: usize,
}

#[derive(Debug)]
pub struct Report {
    /// Direct delivery.
    pub before: Phase,
    pub during: Phase,
    /// From the end of the outage until direct delivery was back.
    pub draining: Phase,
    pub after: Phase,
    /// The last slow transaction of the outage, counted from its beginning.
    pub last_slow: Duration,
    /// How many records waited when the outage ended.
    pub backlog: i64,
    /// From the end of the outage until the queue was seen empty.
    pub drained: Duration,
    /// From the end of the outage until transactions were delivered directly.
    pub direct: Duration,
    /// Records queued after that.
    pub requeued: i64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        writeln!(
            f,
            "{:<10}{:>13}{:>9}{:>12}{:>10}{:>10}{:>9}",
            "phase", "transactions", "tps", "median ms", "p99 ms", "max ms", "> 500 ms"
        )?;
        let phases = [
            ("before", self.before),
            ("during", self.during),
            ("draining", self.draining),
            ("after", self.after),
        ];
        for (name, phase) in phases {
            writeln!(
                f,
                "{name:<10}{:>13}{:>9.0}{:>12.2}{:>10.2}{:>10.1}{:>9}",
                phase.transactions,
                phase.tps,
                ms(phase.median),
                ms(phase.p99),
                ms(phase.max),
                phase.slow
            )?;
        }
        writeln!(
            f,
            "last slow transaction {:.1} s into the outage",
            self.last_slow.as_secs_f64()
        )?;
        writeln!(f, "records waiting at its end: {}", self.backlog)?;
        writeln!(
            f,
            "queue empty {:.2} s after the outage",
            self.drained.as_secs_f64()
        )?;
        write!(
            f,
            "direct delivery back {:.2} s after the outage, {} records queued since",
            self.direct.as_secs_f64(),
            self.requeued
        )
    }
}

/// Runs it, on two clusters made for it.
///
/// # Errors
/// A client's error, a queue that does not drain or a delivery that does not become direct while
/// the load goes on, tables that differ in the end.
pub fn run(plan: Plan) -> Result<Report> {
    let rig = Rig::start("outage", Mode::Async, plan.drain)?;
    pgbench::create(&rig, plan.scale)?;
    let measured = measure(&rig, plan);
    measured.with_context(|| format!("{plan:?}{}{}", rig.describe_queue(), rig.describe_logs()))
}

fn measure(rig: &Rig, plan: Plan) -> Result<Report> {
    let time = plan.before + plan.outage + plan.after;
    let mut load = Load::start(&rig.left, plan.clients, time, plan.rate)?;
    let stop = Flag::default();
    let stopped = || stop.is_set();
    let (moments, samples) = thread::scope(|scope| {
        let _end = stop.set_at_end();
        if plan.drain.has_calls() {
            scope.spawn(|| rig.call_drain(5000, stopped));
        }
        let watched = watch(rig, plan, &mut load);
        let samples = watched.and_then(|moments| Ok((moments, load.finish()?)));
        stop.set();
        samples
    })?;
    let requeued = ever_queued(&mut rig.left.connect_superuser()?)? - moments.queued;
    rig.await_drained()?;
    for table in pgbench::TABLES {
        let left = rig.left.checksum(table)?;
        let right = rig.right.checksum(table)?;
        ensure!(
            left == right,
            "\"{table}\" differs: left {left:?}, right {right:?}"
        );
    }

    let Moments {
        start,
        away,
        back,
        empty,
        direct,
        backlog,
        ..
    } = moments;
    let end = samples.last().map_or(direct, |sample| sample.end);
    let after =
        |moment: SystemTime, from: SystemTime| moment.duration_since(from).unwrap_or_default();
    let slow = samples
        .iter()
        .filter(|one| one.end > away && one.end <= back && one.latency > SLOW)
        .map(|one| one.end);
    Ok(Report {
        before: phase(&samples, start, away),
        during: phase(&samples, away, back),
        draining: phase(&samples, back, direct),
        after: phase(&samples, direct, end),
        last_slow: slow
            .max()
            .map_or(Duration::ZERO, |moment| after(moment, away)),
        backlog,
        drained: after(empty, back),
        direct: after(direct, back),
        requeued,
    })
}

const SLOW: Duration = Duration::from_millis(500);

struct Moments {
    start: SystemTime,
    away: SystemTime,
    back: SystemTime,
    empty: SystemTime,
    direct: SystemTime,
    backlog: i64,
    /// How many records there had been when delivery was direct again.
    queued: i64,
}

/// Lets the outage happen under the load and looks what becomes of the queue.
fn watch(rig: &Rig, plan: Plan, load: &mut Load) -> Result<Moments> {
    let mut left = rig.left.connect_superuser()?;
    // Connecting is not what is to be measured.
    sleep(plan.before / 4);
    let start = SystemTime::now();
    sleep(plan.before - plan.before / 4);
    let away = SystemTime::now();
    plan.away.begin(rig)?;
    sleep(plan.outage);
    let backlog = rig.backlog(&mut left)?;
    ensure!(backlog > 0, "nothing was queued during the outage");
    plan.away.end(rig)?;
    let back = SystemTime::now();
    let mut right = rig.right.connect_superuser()?;
    let mut empty = None;
    let mut before: Option<(SystemTime, Look)> = None;
    loop {
        ensure!(
            load.is_running()?,
            "the load ended before direct delivery was back; the queue was {} by then",
            if empty.is_some() {
                "empty once"
            } else {
                "never empty"
            }
        );
        let now = SystemTime::now();
        let look = Look::take(rig, &mut left, &mut right)?;
        if !look.waiting {
            empty.get_or_insert(now);
        }
        if let (Some((since, earlier)), Some(empty)) = (&before, empty)
            && look.is_direct_since(earlier)
        {
            let direct = *since;
            let queued = look.ever;
            return Ok(Moments {
                start,
                away,
                back,
                empty,
                direct,
                backlog,
                queued,
            });
        }
        before = Some((now, look));
        sleep(Duration::from_millis(50));
    }
}

/// Both sides at one moment.
struct Look {
    waiting: bool,
    /// How many records there have ever been.
    ever: i64,
    /// How many transactions have arrived.
    arrived: i64,
}

impl Look {
    fn take(rig: &Rig, left: &mut Client, right: &mut Client) -> Result<Look> {
        let ever = ever_queued(left)?;
        let sql = format!(
            "select coalesce(max(id), 0) from {}.pgbench_history",
            rig.right.user
        );
        let arrived = right.query_one(&sql, &[])?.get(0);
        // Counting a long queue again and again would slow down what is measured.
        let sql = "select exists (select from sync_queue)";
        Ok(Look {
            waiting: left.query_one(sql, &[])?.get(0),
            ever,
            arrived,
        })
    }

    /// Nothing was queued in between, and something arrived.
    fn is_direct_since(&self, earlier: &Look) -> bool {
        !earlier.waiting && self.ever == earlier.ever && self.arrived > earlier.arrived
    }
}

fn ever_queued(left: &mut Client) -> Result<i64> {
    Ok(left
        .query_one("select last_value from sync_queue_id_seq", &[])?
        .get(0))
}

fn phase(samples: &[Sample], from: SystemTime, to: SystemTime) -> Phase {
    let mut times: Vec<Duration> = samples
        .iter()
        .filter(|one| one.end > from && one.end <= to)
        .map(|one| one.latency)
        .collect();
    times.sort_unstable();
    let at = |percent: usize| {
        times
            .get(times.len() * percent / 100)
            .copied()
            .unwrap_or_default()
    };
    let length = to.duration_since(from).unwrap_or_default().as_secs_f64();
    Phase {
        transactions: times.len(),
        tps: times.len() as f64 / length.max(1e-3),
        median: at(50),
        p99: at(99),
        max: times.last().copied().unwrap_or_default(),
        slow: times.iter().filter(|time| **time > SLOW).count(),
    }
}
