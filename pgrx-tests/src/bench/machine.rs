//! Where a run took place: what a reader needs to judge its figures.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread::available_parallelism;
use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::rig::{Rig, SETTINGS};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_gib: u64,
    pub kernel: String,
    /// Milliseconds in which a block of 8 kB is written and flushed where the clusters are.
    pub flush: f64,
    pub postgresql: String,
    pub pg_rowsync: String,
    /// Names and values, as both clusters show them, of what is set and what matters most.
    pub settings: Vec<(String, String)>,
}

/// Left at their defaults, and shown.
const DEFAULTS: [&str; 3] = ["fsync", "full_page_writes", "autovacuum"];

impl Machine {
    pub fn look(rig: &Rig) -> Result<Machine> {
        let set = SETTINGS.iter().map(|(name, _)| *name);
        let settings = set.chain(DEFAULTS).map(|name| {
            Ok((
                name.to_owned(),
                rig.ask_here(&format!("select current_setting('{name}')"))?,
            ))
        });
        Ok(Machine {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: available_parallelism()?.get(),
            memory_gib: memory(),
            flush: flush(rig.local.cluster.dir())?,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            postgresql: rig.ask_here("select current_setting('server_version')")?,
            pg_rowsync: rig
                .ask_here("select extversion from pg_extension where extname = 'pg_rowsync'")?,
            settings: settings.collect::<Result<_>>()?,
        })
    }
}

/// The median of some flushes.
fn flush(dir: &Path) -> Result<f64> {
    const TIMES: usize = 101;
    let path = dir.join("flush");
    let mut file = File::create(&path)?;
    let mut took = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        let begun = Instant::now();
        file.write_all(&[1; 8192])?;
        file.sync_data()?;
        took.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    fs::remove_file(path)?;
    took.sort_by(f64::total_cmp);
    Ok(took[TIMES / 2])
}

/// `name : value`.
fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory() -> u64 {
    let kilobytes = field("/proc/meminfo", "MemTotal")
        .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.map_or(0, |kilobytes| (kilobytes + (1 << 19)) >> 20)
}
