//! Two clusters of their own, of which the left one takes faults.

use std::fs;
use std::path::PathBuf;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use postgres::Client;

use super::{Case, Point, Seen, Told, Trial, What};
use crate::faults::rig::{Drain, Mode, PATIENCE, Rig};
use crate::reaper;
use crate::side::Side;

/// What a transaction of a trial does to a table with the rows 1 to 4.
const WORK: &str = "update $t set v = 'new' where id <= 2; insert into $t values (5, 'new');
    delete from $t where id = 4";
/// And what is left then of rows 1 to 9.
const NEW: &[&str] = &["1 new", "2 new", "3 old", "5 new"];
/// What it does besides where memory is short: more than a process has at hand.
const MUCH: &str =
    "; insert into $t select n, repeat(md5(n::text), 40) from generate_series(10, 6000) n";

/// How long a crash may take to be noticed by the postmaster, where there may be none.
const CRASH: Duration = Duration::from_millis(300);

/// The two sides, and the directory through which faults are asked for.
pub struct Bed {
    rig: Rig,
    directory: PathBuf,
    database: u32,
    trials: u32,
}

impl Bed {
    /// For the cases with this way to drain.
    ///
    /// # Errors
    /// What keeps the clusters from starting, or an extension built without the feature `faults`.
    pub fn start(drain: Drain) -> Result<Bed> {
        let rig = Rig::start(&format!("points_{drain}"), Mode::Queue, drain)?;
        let directory = rig.left.cluster.dir().join("data/pg_rowsync.faults");
        fs::create_dir(&directory)?;
        reaper::hand_over(&directory)?;
        // Processes look for the directory once.
        rig.left.cluster.restart()?;
        let oid = "select oid from pg_database where datname = current_database()";
        let database: u32 = rig.left_session()?.query_one(oid, &[])?.get(0);
        Ok(Bed { rig, directory, database, trials: 0 })
    }

    /// Tries something in a transaction, or a drain of one.
    ///
    /// # Errors
    /// What keeps it from being tried.
    pub fn run(&mut self, trial: &Trial) -> Result<Seen> {
        self.trials += 1;
        let table = format!("t{}", self.trials);
        let much = if trial.what == What::Memory { MUCH } else { "" };
        let work = format!("{WORK}{much}").replace("$t", &table);
        let Rig { left, right, .. } = &self.rig;
        for side in [left, right] {
            side.connect()?.batch_execute(&format!(
                "create table {table} (id int primary key, v text);
                 insert into {table} select n, 'old' from generate_series(1, 4) n"
            ))?;
        }
        let (mode, schema) = (trial.case.mode(), &right.user);
        left.connect()?.batch_execute(&format!(
            r#"select attach_sync('{table}', 'dst', '{schema}.{table}', '{{"mode": "{mode}"}}')"#
        ))?;
        if trial.case == Case::Away {
            self.lead_to(1)?;
        }
        if trial.case == Case::Call {
            left.connect()?.batch_execute(&work)?;
        }
        let mut witness = left.connect_superuser()?;
        let worker = self.worker(&mut witness, trial.case)?;
        let mut session = match trial.case {
            Case::Call => left.connect_superuser()?,
            _ => left.connect()?,
        };
        let pid: i32 = session.query_one("select pg_backend_pid()", &[])?.get(0);
        self.ask(trial)?;
        let is_call = trial.case == Case::Call;
        let running = thread::spawn(move || match is_call {
            true => call(&mut session),
            false => told(session.batch_execute(&work)),
        });
        let is_over = || match worker {
            Some(_) => running.is_finished() && self.is_drained(),
            None => running.is_finished(),
        };
        let reached = self.await_taken(is_over)?;
        if reached {
            self.meanwhile(trial, &table, worker.unwrap_or(pid))?;
        }
        let told = running.join().map_err(|_| anyhow!("{trial}: the session panicked"))?;
        let crashed = reached && self.await_crash(&mut witness, trial)?;
        drop(witness);
        self.await_quiet()?;
        let mut observer = self.rig.left_session()?;
        if trial.case == Case::Away {
            self.lead_to(self.rig.proxy.port())?;
        }
        // First the queue: what is not there any more is on the other side by then.
        let queued = self.rig.backlog(&mut observer)? > 0;
        let here = rows(&self.rig.left, &table)? == NEW;
        let there = rows(&self.rig.right, &table)? == NEW;
        self.rig.await_drained()?;
        let equal = all(&self.rig.left, &table)? == all(&self.rig.right, &table)?;
        for side in [&self.rig.left, &self.rig.right] {
            side.connect()?.batch_execute(&format!("drop table {table}"))?;
        }
        Ok(Seen { reached, told, crashed, here, there, queued, equal })
    }

    fn file(&self) -> PathBuf {
        self.directory.join(self.database.to_string())
    }

    fn taken(&self) -> PathBuf {
        self.directory.join(format!("{}.taken", self.database))
    }

    /// Asks for a fault. The file is written elsewhere first, so that nobody reads half of it.
    fn ask(&self, trial: &Trial) -> Result<()> {
        let who = if trial.case == Case::Worker { "worker" } else { "session" };
        let draft = self.directory.join("draft");
        fs::write(&draft, format!("{:?} {} {who}", trial.point, trial.what.word()))?;
        Ok(fs::rename(draft, self.file())?)
    }

    /// Waits until a process has come to the point, or is past it: then the fault is taken back.
    fn await_taken(&self, is_over: impl Fn() -> bool) -> Result<bool> {
        let start = Instant::now();
        loop {
            if self.taken().exists() {
                return Ok(true);
            }
            if is_over() {
                // If it can be taken back, nobody has come.
                return Ok(fs::remove_file(self.file()).is_err());
            }
            ensure!(start.elapsed() < PATIENCE, "nobody comes to the point, and nobody ends");
            sleep(Duration::from_millis(2));
        }
    }

    /// Does what happens while the process waits at the point, and lets it go on.
    fn meanwhile(&self, trial: &Trial, table: &str, pid: i32) -> Result<()> {
        if trial.point == Point::CommitSent && trial.case != Case::Call {
            // What was sent arrives, whatever becomes of who sent it.
            let start = Instant::now();
            while rows(&self.rig.right, table)? != NEW && start.elapsed() < PATIENCE {
                sleep(Duration::from_millis(2));
            }
        }
        let request = match trial.what {
            What::Cancel => Some("pg_cancel_backend"),
            What::Terminate => Some("pg_terminate_backend"),
            _ => None,
        };
        if let Some(request) = request {
            let mut client = self.rig.left.connect_superuser()?;
            client.query_one(&format!("select {request}({pid})"), &[])?;
        }
        Ok(fs::remove_file(self.taken())?)
    }

    /// Whether the server has restarted, and is there again.
    fn await_crash(&self, witness: &mut Client, trial: &Trial) -> Result<bool> {
        let patience = match trial.what {
            What::Kill => PATIENCE,
            What::Memory => CRASH,
            _ => Duration::ZERO,
        };
        let start = Instant::now();
        while witness.simple_query("select 1").is_ok() {
            if start.elapsed() >= patience {
                return Ok(false);
            }
            sleep(Duration::from_millis(5));
        }
        self.rig.left.cluster.wait_ready()?;
        Ok(true)
    }

    /// Waits until the other side has nothing under way.
    fn await_quiet(&self) -> Result<()> {
        let mut observer = self.rig.right.connect_superuser()?;
        let sql = "select count(*) from pg_stat_activity
                   where application_name = 'pg_rowsync' and state <> 'idle'";
        let start = Instant::now();
        while observer.query_one(sql, &[])?.get::<_, i64>(0) > 0 {
            ensure!(start.elapsed() < PATIENCE, "the other side is not quiet");
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn is_drained(&self) -> bool {
        let client = self.rig.left.connect_superuser();
        client.and_then(|mut one| self.rig.backlog(&mut one)).is_ok_and(|left| left == 0)
    }

    fn worker(&self, observer: &mut Client, case: Case) -> Result<Option<i32>> {
        if case != Case::Worker {
            return Ok(None);
        }
        let sql = "select pid from pg_stat_activity where datname = current_database()
                   and backend_type = 'pg_rowsync worker'";
        let start = Instant::now();
        loop {
            match observer.query_opt(sql, &[])? {
                Some(row) => return Ok(Some(row.get(0))),
                None if start.elapsed() > PATIENCE => bail!("there is no worker"),
                None => sleep(Duration::from_millis(10)),
            }
        }
    }

    fn lead_to(&self, port: u16) -> Result<()> {
        let sql = format!("alter server dst options (set port '{port}')");
        Ok(self.rig.left.connect()?.batch_execute(&sql)?)
    }
}

fn told<T>(result: Result<T, postgres::Error>) -> Told {
    match result {
        Ok(_) => Told::Success,
        Err(error) => match error.as_db_error().map(|said| said.severity()) {
            Some("ERROR") => Told::Error,
            _ => Told::Nothing,
        },
    }
}

fn call(session: &mut Client) -> Told {
    let done = session.query_one("select deal_sync_err_rec(10000)", &[]);
    match done.as_ref().map(|row| row.get(0)) {
        Ok(false) => Told::False,
        _ => told(done),
    }
}

fn rows(side: &Side, table: &str) -> Result<Vec<String>> {
    let sql = format!("select concat_ws(' ', id, v) from {table} where id < 10 order by id");
    Ok(side.connect()?.query(&sql, &[])?.iter().map(|row| row.get(0)).collect())
}

/// Number and checksum of all rows.
fn all(side: &Side, table: &str) -> Result<(i64, Option<i64>)> {
    let sql = format!("select count(*), sum(hashtext(t::text)) from {table} t");
    let row = side.connect()?.query_one(&sql, &[])?;
    Ok((row.get(0), row.get(1)))
}
