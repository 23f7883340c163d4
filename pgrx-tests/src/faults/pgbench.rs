//! pgbench, which comes with PostgreSQL, as a load: its tables, its process, its log.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};

use super::rig::Rig;
use crate::reaper;
use crate::setup::Postgres;
use crate::side::Side;

/// The tables that the built-in script writes.
pub const TABLES: [&str; 4] = [
    "pgbench_accounts",
    "pgbench_branches",
    "pgbench_tellers",
    "pgbench_history",
];

/// Creates the tables on both sides, with equal contents, and attaches the left ones.
pub fn create(rig: &Rig, scale: u32) -> Result<()> {
    for side in [&rig.left, &rig.right] {
        let scale = scale.to_string();
        let output = command(side)?
            .args([
                "--initialize",
                "--quiet",
                "--init-steps=dtGp",
                "--scale",
                &scale,
            ])
            .output()
            .context("could not run pgbench")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "pgbench could not create its tables:\n{said}"
        );
        side.connect()?
            .batch_execute("alter table pgbench_history add id bigserial primary key")?;
        side.connect_superuser()?.batch_execute("vacuum analyze")?;
    }
    TABLES.into_iter().try_for_each(|table| rig.attach(table))
}

/// A transaction from pgbench's log.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub end: SystemTime,
    /// From its first statement to the end of its COMMIT.
    pub latency: Duration,
}

/// A running pgbench; dropped, it ends.
pub struct Load {
    child: Child,
    said: Option<JoinHandle<String>>,
    dir: PathBuf,
    throttled: bool,
}

impl Load {
    /// The built-in script for so many seconds, at so many transactions a second or as fast as it
    /// goes.
    pub fn start(side: &Side, clients: u32, time: Duration, rate: Option<u32>) -> Result<Load> {
        let dir = side.cluster.dir().join("pgbench");
        fs::create_dir_all(&dir)?;
        let mut command = command(side)?;
        command
            .args(["--no-vacuum", "--log", "--builtin=tpcb-like"])
            .arg(format!("--client={clients}"))
            .arg(format!("--jobs={}", clients.min(2)))
            .arg(format!("--time={}", time.as_secs().max(1)))
            .args(rate.map(|rate| format!("--rate={rate}")))
            // The reaper ends what works below the base directory.
            .current_dir(&dir);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("could not run pgbench")?;
        let mut pipe = child.stderr.take().context("no error output of pgbench")?;
        let said = thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        Ok(Load {
            child,
            said: Some(said),
            dir,
            throttled: rate.is_some(),
        })
    }

    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for its end; an error if any client saw one.
    pub fn finish(mut self) -> Result<Vec<Sample>> {
        let status = self.child.wait()?;
        let said = self.said.take().context("pgbench was asked before")?;
        let said = said
            .join()
            .map_err(|_| anyhow!("reading pgbench's output panicked"))?;
        let errors: Vec<_> = said
            .lines()
            .filter(|line| line.contains("error:") || line.contains("abort"))
            .take(10)
            .collect();
        ensure!(
            status.success() && errors.is_empty(),
            "pgbench saw errors ({status}):\n{}",
            errors.join("\n")
        );
        self.samples()
    }

    fn samples(&self) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            for line in fs::read_to_string(entry?.path())?.lines() {
                samples.push(
                    self.sample(line)
                        .with_context(|| format!("in pgbench's log: {line}"))?,
                );
            }
        }
        samples.sort_by_key(|sample| sample.end);
        Ok(samples)
    }

    /// `client transaction latency script seconds microseconds [lag]`, latency and lag in
    /// microseconds. Throttled, the latency counts from when the transaction was due.
    fn sample(&self, line: &str) -> Result<Sample> {
        let fields: Vec<u64> = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let field = |at: usize| fields.get(at).copied().context("too few fields");
        let lag = if self.throttled { field(6)? } else { 0 };
        Ok(Sample {
            end: UNIX_EPOCH + Duration::from_secs(field(4)?) + Duration::from_micros(field(5)?),
            latency: Duration::from_micros(field(2)?.saturating_sub(lag)),
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// pgbench as a side's owner, in a directory that the reaper looks after.
pub fn command(side: &Side) -> Result<Command> {
    let mut command = Command::new(Postgres::find()?.program("pgbench"));
    command
        .env_clear()
        .env("LC_ALL", "C")
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", side.cluster.port().to_string())
        .env("PGDATABASE", &side.db)
        .env("PGUSER", &side.user)
        .env("PGPASSWORD", &side.password)
        .current_dir(reaper::base()?)
        .stdin(Stdio::null());
    Ok(command)
}
