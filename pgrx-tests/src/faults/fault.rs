//! One thing that goes wrong, and how it is put right again.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use postgres::Client;

use super::rig::{MAX_WAIT, Mode, PAST_TIMEOUT, Rig};
use super::workload::{Stage, Touch};
use crate::cluster::{Cluster, Shutdown};
use crate::proxy::{Direction, Proxy, Strike};
use crate::rng::Rng;
use crate::side::Side;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Connections are reset, several times.
    Reset,
    /// A connection is reset after so many bytes on the way there: before, during and after COMMIT.
    CutSending,
    /// As `CutSending`, on the way back.
    CutAnswer,
    /// Not a byte passes for a while, then all that was held back does.
    Blackhole,
    /// As `Blackhole`, but what was held back is lost.
    BlackholeThenCut,
    /// Connections are reset and new ones refused for a while.
    Refuse,
    /// SIGKILL to a remote backend: the remote recovers from a crash.
    KillRemoteBackend,
    /// The remote is shut down at once and started again.
    CrashRemote,
    /// SIGSTOP to a remote backend beyond the delivery timeout, then SIGCONT.
    StopRemoteBackend,
    /// As `StopRemoteBackend`, with all remote processes.
    StopRemote,
    /// Remote backends are terminated.
    TerminateRemoteBackend,
    /// Local statements are cancelled.
    CancelLocal,
    /// Local sessions are terminated.
    TerminateLocal,
    /// SIGKILL to a local backend: the local server recovers from a crash.
    KillLocalBackend,
    /// SIGKILL to the background worker.
    KillWorker,
    /// SIGKILL to all local processes, and a start.
    KillLocal,
    /// SIGKILL to the local postmaster alone; the others notice and end. Then a start.
    KillPostmaster,
    /// A connection is lost exactly with a statement of mode `atomic`, or with its answer, or falls silent.
    Strike,
    /// SIGKILL to all local processes exactly then, and a start.
    StrikeAndKillLocal,
    /// The remote is shut down at once exactly then, and started again.
    StrikeAndCrashRemote,
    /// SIGKILL to the remote postmaster alone exactly then; the others notice and end. Then a start.
    StrikeAndKillRemotePostmaster,
}

/// Those that need what only mode `atomic` sends.
const STRIKES: [Fault; 4] = [
    Fault::Strike,
    Fault::StrikeAndKillLocal,
    Fault::StrikeAndCrashRemote,
    Fault::StrikeAndKillRemotePostmaster,
];

const REMOTE: [Fault; 11] = [
    Fault::Reset,
    Fault::CutSending,
    Fault::CutAnswer,
    Fault::Blackhole,
    Fault::BlackholeThenCut,
    Fault::Refuse,
    Fault::KillRemoteBackend,
    Fault::CrashRemote,
    Fault::StopRemoteBackend,
    Fault::StopRemote,
    Fault::TerminateRemoteBackend,
];

const LOCAL: [Fault; 6] = [
    Fault::CancelLocal,
    Fault::TerminateLocal,
    Fault::KillLocalBackend,
    Fault::KillWorker,
    Fault::KillLocal,
    Fault::KillPostmaster,
];

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Fault> {
        let mut all = REMOTE.into_iter().chain(LOCAL).chain(STRIKES);
        all.find(|fault| fault.to_string() == name)
            .with_context(|| format!("unknown fault \"{name}\""))
    }
}

impl Fault {
    /// One of those that the rig can have. Cuts in the middle of a delivery come in the greatest
    /// variety, so they come most often.
    pub fn choose(rng: &mut Rng, rig: &Rig) -> Fault {
        if rig.mode == Mode::Atomic && rng.chance(50) {
            return *rng.pick(&STRIKES);
        }
        match rng.roll(10) {
            0 => Fault::CutSending,
            1 => Fault::CutAnswer,
            2..6 => *rng.pick(&REMOTE),
            _ => match *rng.pick(&LOCAL) {
                // In mode `sync` nothing is queued, so no worker is wanted.
                Fault::KillWorker if !rig.drain.has_worker() || rig.mode.is_strict() => {
                    Fault::KillLocalBackend
                }
                fault => fault,
            },
        }
    }

    /// What the sessions of the left side may notice.
    pub fn touch(self) -> Touch {
        match self {
            Fault::CancelLocal => Touch::Cancel,
            _ if LOCAL.contains(&self) || self == Fault::StrikeAndKillLocal => Touch::Disconnect,
            _ => Touch::Nothing,
        }
    }

    /// Whether the left side may die between the remote commit and its own.
    pub fn kills_left(self) -> bool {
        use Fault::{KillLocal, KillLocalBackend, KillPostmaster, KillWorker};
        matches!(
            self,
            KillLocal | KillLocalBackend | KillPostmaster | KillWorker
        )
    }

    /// Lets it happen to the left side or to this one of the others, and puts it right again.
    pub fn run(self, rig: &Rig, met: usize, stage: &Stage, rng: &mut Rng) -> Result<()> {
        // A slow network makes most of a transaction's time its commit, where it matters most.
        if self.touch() != Touch::Nothing {
            let delay = rng.millis(0, 8);
            rig.proxies().for_each(|proxy| proxy.set_delay(delay));
        }
        let met = rig.rights().zip(rig.proxies()).nth(met);
        let result = self.act(rig, met.context("no such server")?, stage, rng);
        self.heal(rig)?;
        result
    }

    fn act(
        self,
        rig: &Rig,
        (side, proxy): (&Side, &Proxy),
        stage: &Stage,
        rng: &mut Rng,
    ) -> Result<()> {
        let left = &rig.left.cluster;
        let right = &side.cluster;
        // Longer and shorter than the timeouts.
        let outage = rng.millis(200, 1800);
        let frozen = PAST_TIMEOUT + rng.millis(0, 600);
        match self {
            Fault::Reset => repeat(rng, 6, |_| {
                proxy.cut();
                Ok(())
            })?,
            Fault::CutSending => repeat(rng, 8, |rng| {
                proxy.cut_after(rng.roll(4000), Direction::ToServer);
                Ok(())
            })?,
            Fault::CutAnswer => repeat(rng, 8, |rng| {
                proxy.cut_after(rng.roll(700), Direction::ToClient);
                Ok(())
            })?,
            Fault::Blackhole | Fault::BlackholeThenCut => {
                proxy.freeze();
                sleep(outage);
                calm(stage, rng);
                if self == Fault::BlackholeThenCut {
                    proxy.cut();
                }
                proxy.thaw();
            }
            Fault::Refuse => {
                proxy.refuse();
                proxy.cut();
                sleep(outage);
                proxy.accept()?;
            }
            Fault::KillRemoteBackend => {
                let pid = delivering(&mut side.connect_superuser()?)?;
                right.crash_backend(pid)?;
            }
            Fault::CrashRemote => {
                right.stop(Shutdown::Immediate)?;
                sleep(outage / 2);
                right.start_again()?;
            }
            Fault::StopRemoteBackend => {
                let pid = delivering(&mut side.connect_superuser()?)?;
                right.signal_backend(pid, Signal::SIGSTOP)?;
                sleep(frozen);
                calm(stage, rng);
                right.signal_backend(pid, Signal::SIGCONT)?;
            }
            Fault::StopRemote => {
                right.freeze()?;
                sleep(frozen);
                calm(stage, rng);
                right.thaw()?;
            }
            Fault::TerminateRemoteBackend => {
                let mut admin = side.connect_superuser()?;
                repeat(rng, 6, |_| {
                    let pid = delivering(&mut admin)?;
                    admin.execute("select pg_terminate_backend($1)", &[&pid])?;
                    Ok(())
                })?;
            }
            Fault::CancelLocal | Fault::TerminateLocal => {
                let mut admin = rig.left.connect_superuser()?;
                let (times, sql) = match self {
                    Fault::CancelLocal => (30, "select pg_cancel_backend($1)"),
                    _ => (10, "select pg_terminate_backend($1)"),
                };
                repeat(rng, times, |rng| {
                    let pid = rng.pick(&stage.backends).load(Ordering::Relaxed);
                    if pid != 0 {
                        admin.execute(sql, &[&pid])?;
                    }
                    Ok(())
                })?;
            }
            Fault::KillLocalBackend | Fault::KillWorker => {
                let pid = match self {
                    Fault::KillWorker => {
                        // There need not be one before something is queued.
                        proxy.cut();
                        worker(&mut rig.left.connect_superuser()?)?
                    }
                    _ => writer(stage, rng)?,
                };
                left.crash_backend(pid)?;
            }
            Fault::Strike => repeat(rng, 6, |rng| {
                strike(proxy, rng);
                rng.pause(50, 300);
                proxy.cut();
                proxy.thaw();
                Ok(())
            })?,
            Fault::StrikeAndKillLocal => {
                strike(proxy, rng);
                left.kill()?;
                proxy.cut();
                proxy.thaw();
                left.start_again()?;
            }
            Fault::StrikeAndCrashRemote => {
                strike(proxy, rng);
                right.stop(Shutdown::Immediate)?;
                proxy.thaw();
                sleep(outage / 2);
                right.start_again()?;
            }
            Fault::KillLocal => {
                left.kill()?;
                left.start_again()?;
            }
            Fault::StrikeAndKillRemotePostmaster => {
                strike(proxy, rng);
                kill_postmaster(right)?;
                proxy.thaw();
                right.start_again()?;
            }
            Fault::KillPostmaster => {
                kill_postmaster(left)?;
                left.start_again()?;
            }
        }
        Ok(())
    }

    /// Whatever happened on the way, the next round finds everything in order.
    fn heal(self, rig: &Rig) -> Result<()> {
        for proxy in rig.proxies() {
            proxy.set_delay(Duration::ZERO);
            proxy.cut_after(u64::MAX, Direction::ToServer);
            proxy.forget_strike();
            proxy.thaw();
            proxy.accept()?;
        }
        for side in std::iter::once(&rig.left).chain(rig.rights()) {
            if side.cluster.pid().is_err() {
                side.cluster.start_again()?;
            }
            side.cluster.thaw()?;
            side.cluster.wait_ready()?;
        }
        Ok(())
    }
}

/// SIGKILL to the postmaster alone: the others notice and end.
fn kill_postmaster(cluster: &Cluster) -> Result<()> {
    kill(cluster.pid()?, Signal::SIGKILL)?;
    let start = Instant::now();
    // Itself a zombie until its parent, this process, asks for it; that has no directory.
    while !cluster.processes().is_empty() {
        ensure!(
            start.elapsed() < Duration::from_secs(10),
            "processes outlive their postmaster: {:?}",
            cluster.processes()
        );
        sleep(Duration::from_millis(10));
    }
    cluster.kill()
}

/// Waits for one of the statements of mode `atomic` to come by, and lets something happen to it.
fn strike(proxy: &Proxy, rng: &mut Rng) {
    let text = *rng.pick(&["PREPARE TRANSACTION '", "COMMIT PREPARED '"]);
    let strike = *rng.pick(&[Strike::LoseRequest, Strike::LoseAnswer, Strike::Silence]);
    proxy.strike(text, strike);
    let start = Instant::now();
    while !proxy.has_struck() && start.elapsed() < Duration::from_secs(5) {
        sleep(Duration::from_millis(1));
    }
    rng.pause(0, 5);
}

/// Does it several times, with pauses in between, and one afterwards.
fn repeat(rng: &mut Rng, times: u32, mut act: impl FnMut(&mut Rng) -> Result<()>) -> Result<()> {
    for _ in 0..times {
        act(rng)?;
        rng.pause(5, 120);
    }
    Ok(())
}

/// Ends the load, most of the time, before something frozen wakes up: what it still does then must not
/// be covered by newer changes of the same rows.
fn calm(stage: &Stage, rng: &mut Rng) {
    if rng.chance(60) {
        stage.stop.store(true, Ordering::Relaxed);
        rng.pause(100, 500);
    }
}

/// A remote backend that is delivering or was the last to do so.
fn delivering(observer: &mut Client) -> Result<i32> {
    let sql = "select pid from pg_stat_activity
                where application_name = 'pg_rowsync' and pid <> pg_backend_pid()
                order by state = 'active' desc, state_change desc limit 1";
    let start = Instant::now();
    loop {
        if let Some(row) = observer.query_opt(sql, &[])? {
            return Ok(row.get(0));
        }
        ensure!(start.elapsed() < MAX_WAIT, "nobody delivers anything");
        sleep(Duration::from_millis(5));
    }
}

fn worker(observer: &mut Client) -> Result<i32> {
    let sql = "select pid from pg_stat_activity where backend_type = 'pg_rowsync worker' limit 1";
    let start = Instant::now();
    loop {
        if let Some(row) = observer.query_opt(sql, &[])? {
            return Ok(row.get(0));
        }
        ensure!(start.elapsed() < MAX_WAIT, "there is no worker");
        sleep(Duration::from_millis(5));
    }
}

fn writer(stage: &Stage, rng: &mut Rng) -> Result<i32> {
    let start = Instant::now();
    loop {
        let pid = rng.pick(&stage.backends).load(Ordering::Relaxed);
        if pid != 0 {
            return Ok(pid);
        }
        ensure!(start.elapsed() < MAX_WAIT, "nobody writes anything");
        sleep(Duration::from_millis(5));
    }
}
