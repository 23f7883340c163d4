//! Where a run took place: what a reader needs to judge its figures.

use std::fs;
use std::thread::available_parallelism;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::rig::{Rig, SETTINGS};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_gib: u64,
    pub kernel: String,
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
            Ok((name.to_owned(), rig.ask_here(&format!("select current_setting('{name}')"))?))
        });
        Ok(Machine {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: available_parallelism()?.get(),
            memory_gib: memory(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            postgresql: rig.ask_here("select current_setting('server_version')")?,
            pg_rowsync: rig
                .ask_here("select extversion from pg_extension where extname = 'pg_rowsync'")?,
            settings: settings.collect::<Result<_>>()?,
        })
    }
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
