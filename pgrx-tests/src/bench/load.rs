//! pgbench with a script of our own, for a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::lane::Lane;
use crate::faults::pgbench;
use crate::reaper;

/// A running pgbench; dropped, it ends.
pub struct Load {
    child: Child,
    dir: PathBuf,
    clients: u32,
}

/// While connections are made and caches filled: not counted.
const WARM: u64 = 1;

/// Transactions without which a rate would be a matter of when the last of them ended.
const ENOUGH: usize = 10;

impl Load {
    /// So many rows in every transaction, under keys of their own.
    pub fn start(lane: &Lane, rows: u32, clients: u32, seconds: u64) -> Result<Load> {
        let script = format!("{};\n", lane.shape.insert_new(&lane.table, rows));
        Load::here(lane, &script, clients, seconds)
    }

    /// Every transaction updates one of so many rows.
    pub fn updates(lane: &Lane, rows: u32, clients: u32, seconds: u64) -> Result<Load> {
        let update = lane.shape.update_one(&lane.table, ":row");
        let script = format!("\\set row random(1, {rows})\n{update};\n");
        Load::here(lane, &script, clients, seconds)
    }

    /// Single rows, written on the other side itself, on the way that leads there.
    pub fn there(lane: &Lane, clients: u32, seconds: u64) -> Result<Load> {
        let script = format!("{};\n", lane.shape.insert_new(&lane.table, 1));
        let mut command = pgbench::command(&lane.rig.remote)?;
        command.env("PGPORT", lane.rig.port_there()?.to_string());
        Load::run(lane, command, &script, clients, seconds)
    }

    fn here(lane: &Lane, commands: &str, clients: u32, seconds: u64) -> Result<Load> {
        let command = pgbench::command(&lane.rig.local)?;
        Load::run(lane, command, commands, clients, seconds)
    }

    fn run(
        lane: &Lane,
        mut command: Command,
        commands: &str,
        clients: u32,
        seconds: u64,
    ) -> Result<Load> {
        let dir = reaper::base()?.join(format!("load-{}", &reaper::random_hex()?[..8]));
        fs::create_dir(&dir)?;
        let script = dir.join("script");
        fs::write(&script, commands)?;
        let child = command
            .env(
                "PGOPTIONS",
                format!(
                    "-csynchronous_commit={}",
                    lane.contender.synchronous_commit()
                ),
            )
            .args(["--no-vacuum", "--protocol=simple", "--log", "--file"])
            .arg(&script)
            .arg(format!("--client={clients}"))
            .arg(format!("--jobs={}", clients.min(2)))
            .arg(format!("--time={}", seconds + WARM))
            .current_dir(&dir)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("could not run pgbench")?;
        Ok(Load {
            child,
            dir,
            clients,
        })
    }

    /// Waits for its end: transactions a second once it was warm. An error if any client saw one.
    pub fn finish(mut self) -> Result<f64> {
        let mut said = String::new();
        if let Some(pipe) = &mut self.child.stderr {
            std::io::Read::read_to_string(pipe, &mut said)?;
        }
        let status = self.child.wait()?;
        let failed = said
            .lines()
            .any(|line| line.contains("error:") || line.contains("abort"));
        ensure!(
            status.success() && !failed,
            "pgbench saw errors ({status}):\n{said}"
        );
        rate(&samples(&self.dir)?, self.clients)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A transaction from pgbench's log, in seconds.
#[derive(Clone, Copy)]
struct Sample {
    end: f64,
    latency: f64,
}

/// `client transaction latency script seconds microseconds`, the latency in microseconds.
fn samples(dir: &Path) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if !path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("pgbench_log"))
        {
            continue;
        }
        for line in fs::read_to_string(&path)?.lines() {
            let fields: Vec<f64> = line
                .split_whitespace()
                .filter_map(|field| field.parse().ok())
                .collect();
            let [_, _, latency, _, seconds, microseconds, ..] = fields[..] else {
                bail!("pgbench logged: {line}")
            };
            samples.push(Sample {
                end: seconds + microseconds / 1e6,
                latency: latency / 1e6,
            });
        }
    }
    Ok(samples)
}

/// Transactions a second, of those that ended once it was warm. With too few for that, of all: as
/// many as the clients can have had by their latencies.
fn rate(samples: &[Sample], clients: u32) -> Result<f64> {
    let warm = samples
        .iter()
        .map(|one| one.end)
        .fold(f64::INFINITY, f64::min)
        + WARM as f64;
    let last = samples
        .iter()
        .map(|one| one.end)
        .fold(f64::NEG_INFINITY, f64::max);
    let counted = samples.iter().filter(|one| one.end > warm).count();
    if counted >= ENOUGH {
        return Ok(counted as f64 / (last - warm));
    }
    ensure!(
        !samples.is_empty(),
        "pgbench ended no transaction in its time"
    );
    let busy: f64 = samples.iter().map(|one| one.latency).sum();
    Ok(samples.len() as f64 * f64::from(clients) / busy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(end: f64) -> Sample {
        Sample { end, latency: 0.5 }
    }

    #[test]
    fn the_first_second_does_not_count() {
        // Half as fast while it warms up.
        let warming = (0..5).map(|n| at(1000.0 + f64::from(n) / 5.0));
        let warm = (0..=20).map(|n| at(1001.0 + f64::from(n) / 10.0));
        let rate = rate(&warming.chain(warm).collect::<Vec<_>>(), 1).unwrap();
        assert!((rate - 10.0).abs() < 1e-6, "{rate}");
    }

    #[test]
    fn few_transactions_count_by_their_latency() {
        assert_eq!(rate(&[at(5.0)], 1).unwrap(), 2.0);
        assert_eq!(rate(&[at(5.0), at(5.1), at(5.5)], 2).unwrap(), 4.0);
    }

    #[test]
    fn no_transaction_is_no_rate() {
        assert!(rate(&[], 1).is_err());
    }
}
