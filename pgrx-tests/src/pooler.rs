//! PgBouncer between a source and its target, on a free port of 127.0.0.1.
//!
//! It works in a directory of its own below [`reaper::base`], so that it ends with this process at the
//! latest.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cluster::free_port;
use crate::reaper;
use crate::setup;
use crate::side::Side;

/// When a session gets another process of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// With each connection.
    Session,
    /// With each transaction.
    Transaction,
}

impl std::str::FromStr for PoolMode {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<PoolMode> {
        match name {
            "session" => Ok(PoolMode::Session),
            "transaction" => Ok(PoolMode::Transaction),
            _ => anyhow::bail!("unknown pool mode \"{name}\""),
        }
    }
}

/// What is usually told to a pooler that refuses the start-up parameter `options`.
pub const IGNORE_OPTIONS: (&str, &str) =
    ("ignore_startup_parameters", "extra_float_digits,options");

/// A running PgBouncer; ended on drop.
pub struct Pooler {
    dir: PathBuf,
    port: u16,
    child: Child,
}

impl Pooler {
    /// Leads to the clusters of the sides, which must be the same one, for their roles. `settings` are those
    /// of its section `[pgbouncer]`.
    pub fn start(sides: &[&Side], mode: PoolMode, settings: &[(&str, &str)]) -> Result<Pooler> {
        let port = sides.first().context("no side to lead to")?.cluster.port();
        Self::start_before(port, sides, mode, settings)
    }

    /// As `start`, leading to another port, where a proxy listens for instance.
    pub fn start_before(
        server: u16,
        sides: &[&Side],
        mode: PoolMode,
        settings: &[(&str, &str)],
    ) -> Result<Pooler> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let program = setup::pgbouncer().context("there is no pgbouncer")?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = reaper::base()?.join(format!("pgbouncer-{number}"));
        fs::create_dir(&dir)?;
        reaper::hand_over(&dir)?;
        let port = free_port()?;
        let mode = match mode {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
        };
        let users: String = sides
            .iter()
            .map(|side| format!("\"{}\" \"{}\"\n", side.user, side.password))
            .collect();
        let mut config = format!(
            "[databases]\n* = host=127.0.0.1 port={server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\n\
             auth_file = users\npool_mode = {mode}\nlogfile = log\nserver_login_retry = 1\n"
        );
        for (name, value) in settings {
            config.push_str(&format!("{name} = {value}\n"));
        }
        for (name, text) in [("users", users), ("pgbouncer.ini", config)] {
            fs::write(dir.join(name), text)?;
            reaper::hand_over(&dir.join(name))?;
        }
        let output = || fs::File::create(dir.join("output"));
        let child = reaper::server_command(program)?
            .arg("pgbouncer.ini")
            .current_dir(&dir)
            .stdout(output()?)
            .stderr(output()?)
            .spawn()
            .context("could not start pgbouncer")?;
        let mut pooler = Pooler { dir, port, child };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let ended = pooler.child.try_wait()?;
            ensure!(ended.is_none(), "pgbouncer ended: {}", pooler.log());
            ensure!(
                Instant::now() < deadline,
                "pgbouncer does not listen: {}",
                pooler.log()
            );
            sleep(Duration::from_millis(10));
        }
        Ok(pooler)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// All that it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
