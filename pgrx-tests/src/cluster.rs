//! A throwaway PostgreSQL cluster: password authentication, one free port on 127.0.0.1, its socket
//! inside its own directory.
//!
//! initdb runs once per process; further clusters are copies. The server ends and its directory goes
//! when the value is dropped, and at the latest with this process (see [`crate::reaper`]).

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use postgres::{Client, Config, NoTls};

use crate::setup::Postgres;
use crate::{reaper, server_logs};

/// What [`Cluster::start`] adds: tests crash servers, never the machine, so syncing is wasted time.
pub const TEST_SETTINGS: &[(&str, &str)] = &[("fsync", "off"), ("full_page_writes", "off")];

/// The variable that names settings of all clusters besides, `name=value`, with a blank between two.
pub const SETTINGS: &str = "ROWSYNC_SETTINGS";

const MAX_WAIT: Duration = Duration::from_secs(60);

/// The three ways PostgreSQL stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Waits until all clients have left.
    Smart,
    /// Ends the sessions, then writes a checkpoint.
    Fast,
    /// Like a crash: recovery at the next start.
    Immediate,
}

/// A cluster of its own server process. All methods take `&self`, so that tests can share one.
pub struct Cluster {
    dir: PathBuf,
    data: PathBuf,
    port: u16,
    password: String,
    postgres: Postgres,
    environment: Mutex<Vec<(String, String)>>,
    child: Mutex<Option<Child>>,
}

struct Template {
    bindir: PathBuf,
    dir: PathBuf,
    password: String,
}

impl Cluster {
    /// A running cluster with [`TEST_SETTINGS`].
    pub fn start(name: &str) -> Result<Cluster> {
        Cluster::start_with(name, TEST_SETTINGS)
    }

    /// A running cluster with these settings on top of the common ones, and fsync on unless they say
    /// otherwise.
    pub fn start_with(name: &str, settings: &[(&str, &str)]) -> Result<Cluster> {
        Cluster::start_of(&Postgres::find()?, name, settings)
    }

    /// As `start_with`, of another installation than the one that is tested.
    pub fn start_of(postgres: &Postgres, name: &str, settings: &[(&str, &str)]) -> Result<Cluster> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let postgres = postgres.clone();
        let (template, password) = template(&postgres)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = reaper::base()?.join(format!("{name}-{number}"));
        fs::create_dir(&dir).with_context(|| format!("could not create \"{}\"", dir.display()))?;
        reaper::hand_over(&dir)?;
        let data = dir.join("data");
        run(reaper::server_command("cp")?
            .arg("-a")
            .arg(&template)
            .arg(&data))?;
        let environment = Mutex::default();
        let child = Mutex::new(None);
        let mut cluster = Cluster {
            dir,
            data,
            port: 0,
            password,
            postgres,
            environment,
            child,
        };
        cluster.start_somewhere(settings)?;
        Ok(cluster)
    }

    /// For the first time, on a port that is free.
    fn start_somewhere(&mut self, settings: &[(&str, &str)]) -> Result<()> {
        for attempt in 1.. {
            self.port = free_port()?;
            self.configure(settings)?;
            match self.start_again() {
                Ok(()) => break,
                // Someone took the port between the look and the start.
                Err(_) if attempt < 5 && self.log().contains("could not bind") => {
                    fs::remove_file(self.log_file())?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A physical backup of this cluster, started beside it with these settings on top of its own. It has the
    /// same system identifier, the same databases and the same passwords.
    pub fn physical_clone(&self, name: &str, settings: &[(&str, &str)]) -> Result<Cluster> {
        let dir = reaper::base()?.join(name);
        fs::create_dir(&dir).with_context(|| format!("could not create \"{}\"", dir.display()))?;
        reaper::hand_over(&dir)?;
        let data = dir.join("data");
        run(
            reaper::server_command(self.postgres.program("pg_basebackup"))?
                .args(["-h", "127.0.0.1", "-U", "postgres", "-c", "fast", "-p"])
                .arg(self.port.to_string())
                .arg("-D")
                .arg(&data)
                .env("PGPASSWORD", &self.password)
                .current_dir(&dir),
        )?;
        let environment = Mutex::default();
        let child = Mutex::new(None);
        let mut cluster = Cluster {
            dir,
            data,
            port: 0,
            password: self.password.clone(),
            postgres: self.postgres.clone(),
            environment,
            child,
        };
        cluster.start_somewhere(settings)?;
        Ok(cluster)
    }

    /// This cluster, which must be stopped, taken to a newer major by `pg_upgrade`, and started there
    /// with these settings. The new one has a data directory of its own, and this one's port and
    /// passwords.
    pub fn upgrade(&self, to: &Postgres, name: &str, settings: &[(&str, &str)]) -> Result<Cluster> {
        ensure!(self.child().is_none(), "the cluster is still running");
        let dir = reaper::base()?.join(name);
        fs::create_dir(&dir).with_context(|| format!("could not create \"{}\"", dir.display()))?;
        reaper::hand_over(&dir)?;
        let data = dir.join("data");
        // Both must agree, and before 18 the default was to have none.
        let checksums: &[&str] = if to.major >= 18 {
            &["--no-data-checksums"]
        } else {
            &[]
        };
        initdb(to, &dir, &data, &self.password, checksums)?;
        let environment = Mutex::default();
        let child = Mutex::new(None);
        let password = self.password.clone();
        let postgres = to.clone();
        let new = Cluster {
            dir,
            data,
            port: self.port,
            password,
            postgres,
            environment,
            child,
        };
        new.configure(settings)?;
        run(reaper::server_command(to.program("pg_upgrade"))?
            .arg("--old-bindir")
            .arg(&self.postgres.bindir)
            .arg("--new-bindir")
            .arg(&to.bindir)
            .arg("--old-datadir")
            .arg(&self.data)
            .arg("--new-datadir")
            .arg(&new.data)
            .args(["--username", "postgres"])
            .env("PGPASSWORD", &self.password)
            .current_dir(&new.dir))?;
        new.start_again()?;
        Ok(new)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Variables for the server's environment from its next start on, instead of those set before.
    pub fn set_environment(&self, variables: &[(&str, &str)]) {
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()));
        *self
            .environment
            .lock()
            .unwrap_or_else(|broken| broken.into_inner()) = variables.collect();
    }

    /// How roles other than the superuser's are let in from now on: a method of pg_hba.conf.
    pub fn set_authentication(&self, method: &str) -> Result<()> {
        self.set_rule(&format!("host all all 127.0.0.1/32 {method}"))
    }

    /// As `set_authentication`, by a whole rule of pg_hba.conf.
    pub fn set_rule(&self, rule: &str) -> Result<()> {
        let rules = format!("host all postgres 127.0.0.1/32 scram-sha-256\n{rule}\n");
        fs::write(self.data.join("pg_hba.conf"), rules)?;
        let mut client = self.superuser("postgres")?;
        let loaded = "select pg_conf_load_time()";
        let before: std::time::SystemTime = client.query_one(loaded, &[])?.get(0);
        client.batch_execute("select pg_reload_conf()")?;
        let deadline = Instant::now() + MAX_WAIT;
        // A session learns of a reload from the postmaster, which lets nobody in before it has read the
        // file too.
        while client
            .query_one(loaded, &[])?
            .get::<_, std::time::SystemTime>(0)
            == before
        {
            ensure!(Instant::now() < deadline, "pg_hba.conf was not read");
            sleep(Duration::from_millis(5));
        }
        let wrong = "select count(*) from pg_hba_file_rules where error is not null";
        ensure!(
            client.query_one(wrong, &[])?.get::<_, i64>(0) == 0,
            "not a rule: {rule}"
        );
        Ok(())
    }

    /// The postmaster's pid; an error when the cluster is down.
    pub fn pid(&self) -> Result<Pid> {
        let child = self.child();
        let child = child.as_ref().context("the cluster is not running")?;
        Ok(Pid::from_raw(child.id().try_into()?))
    }

    /// Holds the data directory, the socket and, unless logs are kept together, the log.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All that the server has logged so far.
    pub fn log(&self) -> String {
        fs::read(self.log_file()).map_or_else(
            |_| String::new(),
            |log| String::from_utf8_lossy(&log).into(),
        )
    }

    pub fn superuser_password(&self) -> &str {
        &self.password
    }

    pub fn superuser(&self, db: &str) -> Result<Client, postgres::Error> {
        self.connect(db, "postgres", &self.password)
    }

    pub fn connect(&self, db: &str, user: &str, password: &str) -> Result<Client, postgres::Error> {
        self.config(db, user, password).connect(NoTls)
    }

    pub fn connect_as(
        &self,
        db: &str,
        user: &str,
        password: &str,
        application_name: &str,
    ) -> Result<Client, postgres::Error> {
        self.config(db, user, password)
            .application_name(application_name)
            .connect(NoTls)
    }

    /// For connections that need more than the methods above offer.
    pub fn config(&self, db: &str, user: &str, password: &str) -> Config {
        let mut config = Config::new();
        config
            .host("127.0.0.1")
            .port(self.port)
            .dbname(db)
            .user(user)
            .password(password);
        config.connect_timeout(Duration::from_secs(10));
        config
    }

    /// Runs one of PostgreSQL's client programs on a database as the superuser, with `input` to read, and
    /// returns what it has printed.
    pub fn client_program(
        &self,
        program: &str,
        db: &str,
        arguments: &[&str],
        input: &str,
    ) -> Result<String> {
        let mut child = Command::new(self.postgres.program(program))
            .args([
                "-h",
                "127.0.0.1",
                "-U",
                "postgres",
                "-p",
                &self.port.to_string(),
                "-d",
                db,
            ])
            .args(arguments)
            .env("PGPASSWORD", &self.password)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("could not run {program}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} failed: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until the server lets a session in; an error with the log's end if it exits instead.
    pub fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + MAX_WAIT;
        loop {
            let exited = match self.child().as_mut() {
                Some(child) => child.try_wait()?,
                None => bail!("the cluster is not running"),
            };
            if let Some(status) = exited {
                *self.child() = None;
                bail!("the server did not start ({status}):\n{}", self.log_end());
            }
            match self.superuser("postgres") {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error)
                        .with_context(|| format!("server not ready:\n{}", self.log_end()));
                }
                Err(_) => sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Stops the server and waits for its end. A frozen cluster has to be thawed first.
    pub fn stop(&self, how: Shutdown) -> Result<()> {
        let signal = match how {
            Shutdown::Smart => Signal::SIGTERM,
            Shutdown::Fast => Signal::SIGINT,
            Shutdown::Immediate => Signal::SIGQUIT,
        };
        kill(self.pid()?, signal)?;
        self.wait_gone()
    }

    /// SIGKILL to the postmaster and all its children: the machine's power cord, for one cluster.
    pub fn kill(&self) -> Result<()> {
        kill(self.pid()?, Signal::SIGKILL)?;
        self.signal_all(Signal::SIGKILL);
        self.wait_gone()
    }

    /// Starts a stopped or killed cluster on the same port and data, and waits until it is ready.
    pub fn start_again(&self) -> Result<()> {
        ensure!(self.child().is_none(), "the cluster is already running");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())?;
        let environment = self
            .environment
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        let mut words = server_logs::watcher();
        words.push(self.postgres.program("postgres").into_os_string());
        let child = reaper::server_command(&words[0])?
            .args(&words[1..])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .arg("-D")
            .arg(&self.data)
            .current_dir(&self.data)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("could not start the server")?;
        *self.child() = Some(child);
        self.wait_ready()
    }

    /// Executes statements, one a line, in a database of this cluster, which must be stopped, by its
    /// stand-alone server. Gives what that has said; an ERROR is one.
    pub fn run_alone(&self, db: &str, lines: &str) -> Result<String> {
        ensure!(self.child().is_none(), "the cluster is still running");
        let mut child = reaper::server_command(self.postgres.program("postgres"))?
            .args(["--single", "-D"])
            .arg(&self.data)
            .arg(db)
            .current_dir(&self.data)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("could not start the stand-alone server")?;
        let mut input = child.stdin.take().context("no standard input")?;
        input.write_all(lines.as_bytes())?;
        drop(input);
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let failed = !output.status.success() || said.contains("ERROR:");
        ensure!(!failed, "the stand-alone server: {said}");
        Ok(said + &String::from_utf8_lossy(&output.stdout))
    }

    pub fn restart(&self) -> Result<()> {
        self.stop(Shutdown::Fast)?;
        self.start_again()
    }

    /// Signals one server process of this cluster, given by `pg_backend_pid()`.
    pub fn signal_backend(&self, pid: i32, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(pid);
        ensure!(
            self.processes().contains(&pid),
            "process {pid} does not belong to this cluster"
        );
        Ok(kill(pid, signal)?)
    }

    /// SIGKILL to one process of the cluster, and the recovery of all others from it. Another
    /// session is its witness: until the server throws that out, it may still let new ones in.
    pub fn crash_backend(&self, pid: i32) -> Result<()> {
        let mut witness = self.superuser("postgres")?;
        self.signal_backend(pid, Signal::SIGKILL)?;
        let deadline = Instant::now() + MAX_WAIT;
        while witness.simple_query("select 1").is_ok() {
            ensure!(
                Instant::now() < deadline,
                "the server did not notice the crash"
            );
            sleep(Duration::from_millis(5));
        }
        self.wait_ready()
    }

    /// Stops all processes where they are; the kernel keeps accepting connections and bytes for them.
    pub fn freeze(&self) -> Result<()> {
        // The postmaster first, so that it forks no child that would be missed.
        kill(self.pid()?, Signal::SIGSTOP)?;
        self.signal_all(Signal::SIGSTOP);
        Ok(())
    }

    pub fn thaw(&self) -> Result<()> {
        self.pid()?;
        self.signal_all(Signal::SIGCONT);
        Ok(())
    }

    /// The postmaster and all its children.
    pub fn processes(&self) -> Vec<Pid> {
        reaper::processes_in(&self.data)
    }

    fn signal_all(&self, signal: Signal) {
        for pid in self.processes() {
            // One that has just ended is as good as signalled.
            let _ = kill(pid, signal);
        }
    }

    fn wait_gone(&self) -> Result<()> {
        let deadline = Instant::now() + MAX_WAIT;
        loop {
            let mut child = self.child();
            if let Some(running) = child.as_mut()
                && running.try_wait()?.is_some()
            {
                *child = None;
            }
            if child.is_none() && self.processes().is_empty() {
                return Ok(());
            }
            drop(child);
            ensure!(
                Instant::now() < deadline,
                "the server did not stop:\n{}",
                self.log_end()
            );
            sleep(Duration::from_millis(5));
        }
    }

    fn configure(&self, settings: &[(&str, &str)]) -> Result<()> {
        let port = self.port.to_string();
        let socket = self.dir.to_string_lossy();
        let common = [
            ("listen_addresses", "127.0.0.1"),
            ("port", &port),
            ("unix_socket_directories", &socket),
            // Would leave files in /dev/shm when a cluster is killed.
            ("dynamic_shared_memory_type", "mmap"),
            ("shared_buffers", "32MB"),
            // Many clusters share a disk: segments that are neither filled before they are written nor
            // kept in stock.
            ("wal_init_zero", "off"),
            ("min_wal_size", "32MB"),
            ("max_prepared_transactions", "10"),
            ("log_line_prefix", "%m [%p] %q%a %u@%d "),
            ("log_timezone", "UTC"),
        ];
        let mut conf = fs::read_to_string(self.data.join("postgresql.conf"))?;
        let besides = std::env::var(SETTINGS).unwrap_or_default();
        let besides = besides.split(' ').filter_map(|one| one.split_once('='));
        for (name, value) in common.into_iter().chain(besides).chain(settings.to_vec()) {
            conf.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        Ok(fs::write(self.data.join("postgresql.conf"), conf)?)
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    fn log_file(&self) -> PathBuf {
        server_logs::place(&self.dir).unwrap_or_else(|| self.dir.join("log"))
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = reaper::reap(&self.dir);
        if let Some(child) = self.child().as_mut() {
            let _ = child.wait();
        }
    }
}

/// The data directory that all clusters of an installation are copied from, and the superuser's
/// password in it.
fn template(postgres: &Postgres) -> Result<(PathBuf, String)> {
    static TEMPLATES: Mutex<Vec<Template>> = Mutex::new(Vec::new());
    let mut templates = TEMPLATES
        .lock()
        .unwrap_or_else(|broken| broken.into_inner());
    if let Some(known) = templates
        .iter()
        .find(|known| known.bindir == postgres.bindir)
    {
        return Ok((known.dir.clone(), known.password.clone()));
    }
    let base = reaper::base()?;
    let dir = base.join(format!("template-{}", templates.len()));
    let password = reaper::random_hex()?;
    initdb(postgres, &base, &dir, &password, &[])?;
    let bindir = postgres.bindir.clone();
    templates.push(Template {
        bindir,
        dir: dir.clone(),
        password: password.clone(),
    });
    Ok((dir, password))
}

/// A new data directory; `base` is a directory of the servers' user.
fn initdb(
    postgres: &Postgres,
    base: &Path,
    dir: &Path,
    password: &str,
    arguments: &[&str],
) -> Result<()> {
    let password_file = base.join("password");
    fs::write(&password_file, password)?;
    reaper::hand_over(&password_file)?;
    run(reaper::server_command(postgres.program("initdb"))?
        .args([
            "--username=postgres",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
        ])
        .arg("--no-sync")
        .args(arguments)
        .arg(format!("--pwfile={}", password_file.display()))
        .arg("--pgdata")
        .arg(dir)
        .current_dir(base))?;
    Ok(fs::remove_file(&password_file)?)
}

/// A port that is free now, and that no one else is given as long as this process lives, whatever stops and
/// comes back to it meanwhile. Not one of those the kernel gives to outgoing connections.
pub(crate) fn free_port() -> Result<u16> {
    const PORTS: std::ops::Range<u16> = 20_000..32_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = u32::from(PORTS.end - PORTS.start);
    // Processes with neighbouring pids begin far apart.
    let start = std::process::id() % span * 31;
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        ensure!(
            u32::from(step) < span,
            "found no free port between {PORTS:?}"
        );
        let port = PORTS.start + ((start + u32::from(step)) % span) as u16;
        if reserve_port(port)? && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
}

/// Whether the port is ours among all processes that ask here: a byte of one file is locked for each, until
/// the process ends.
fn reserve_port(port: u16) -> Result<bool> {
    static RESERVED: OnceLock<fs::File> = OnceLock::new();
    let file = match RESERVED.get() {
        Some(file) => file,
        None => {
            let path = std::env::temp_dir().join(format!("pg_rowsync-ports-{}", geteuid()));
            let opened = fs::File::options().create(true).append(true).open(path)?;
            RESERVED.get_or_init(|| opened)
        }
    };
    let byte = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: i64::from(port),
        l_len: 1,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&byte)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn run(command: &mut std::process::Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("could not run \"{program}\""))?;
    let out = output.stdout;
    let said = String::from_utf8_lossy(&output.stderr);
    let out = String::from_utf8_lossy(&out);
    ensure!(
        output.status.success(),
        "\"{program}\" failed ({}):\n{out}{said}",
        output.status
    );
    Ok(())
}
