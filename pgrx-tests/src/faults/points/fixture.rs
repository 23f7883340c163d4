//! Two clusters of their own, of which the left one takes faults.

use std::fs;
use std::path::PathBuf;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use postgres::Client;

use super::{Case, Point, Reported, Seen, There, Trial, What};
use crate::faults::rig::{Drain, MAX_WAIT, Mode, Rig};
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

/// The sides, and the directory through which faults are asked for.
pub struct PointsFixture {
    rig: Rig,
    /// Another database of the right cluster, which server `dst2` leads to.
    second: Side,
    directory: PathBuf,
    database: u32,
    trials: u32,
}

impl PointsFixture {
    /// For the cases with this way to drain.
    ///
    /// # Errors
    /// What keeps the clusters from starting, or an extension built without the feature `faults`.
    pub fn start(drain: Drain) -> Result<PointsFixture> {
        let rig = Rig::start(&format!("points_{drain}"), Mode::Queue, drain)?;
        let second = Side::create(&rig.right.cluster, "second")?;
        rig.left.link(&second, second.cluster.port(), "dst2", &[])?;
        let directory = rig.left.cluster.dir().join("data/pg_rowsync.faults");
        fs::create_dir(&directory)?;
        reaper::hand_over(&directory)?;
        // Processes look for the directory once.
        rig.left.cluster.restart()?;
        let oid = "select oid from pg_database where datname = current_database()";
        let database: u32 = rig.left_session()?.query_one(oid, &[])?.get(0);
        Ok(PointsFixture {
            rig,
            second,
            directory,
            database,
            trials: 0,
        })
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
        let left = &self.rig.left;
        let targets = self.targets(trial.case);
        for side in targets.iter().copied().chain([left]) {
            side.connect()?.batch_execute(&format!(
                "create table {table} (id int primary key, v text);
                 insert into {table} select n, 'old' from generate_series(1, 4) n"
            ))?;
        }
        let mode = trial.case.mode();
        for (side, server) in targets.iter().zip(["dst", "dst2"]) {
            let schema = &side.user;
            left.connect()?.batch_execute(&format!(
                r#"select attach_sync('{table}', '{server}', '{schema}.{table}',
                     '{{"mode": "{mode}"}}')"#
            ))?;
        }
        if let Some(server) = trial.case.away() {
            self.lead_to(server, 1)?;
        }
        if trial.case == Case::Call {
            left.connect()?.batch_execute(&work)?;
        }
        if trial.case.resolves() {
            self.leave_prepared(&work)?;
        }
        let mut witness = left.connect_superuser()?;
        let worker = self.worker(&mut witness, trial.case)?;
        let mut session = if trial.case.is_call() {
            left.connect_superuser()?
        } else {
            left.connect()?
        };
        let pid: i32 = session.query_one("select pg_backend_pid()", &[])?.get(0);
        self.ask(trial.point, trial.what, trial.case.is_by_worker())?;
        if trial.case.resolves() {
            self.rig.proxy.accept()?;
        }
        let case = trial.case;
        let running = thread::spawn(move || match case {
            Case::Call => call(&mut session, "deal_sync_err_rec(10000)"),
            Case::Resolve => call(&mut session, "resolve_sync_prepared()"),
            Case::Resolver => Reported::Success,
            _ => reported(session.batch_execute(&work)),
        });
        let is_over = || match worker {
            Some(_) => running.is_finished() && self.is_settled(),
            None => running.is_finished(),
        };
        let reached = self.await_taken(is_over)?;
        if reached {
            self.meanwhile(trial, &table, worker.unwrap_or(pid))?;
        }
        let reported = running
            .join()
            .map_err(|_| anyhow!("{trial}: the session panicked"))?;
        let crashed = reached && self.await_crash(&mut witness, trial)?;
        drop(witness);
        self.await_quiet()?;
        let mut observer = self.rig.left_session()?;
        match trial.case.away() {
            Some("dst") => self.lead_to("dst", self.rig.proxy.port())?,
            Some(server) => self.lead_to(server, self.second.cluster.port())?,
            None => {}
        }
        // First the queue: what is not there any more is on the other side by then.
        let waits = "select (select count(*) from sync_queue)
                          + (select count(*) from sync_lost_session)";
        let queued = observer.query_one(waits, &[])?.get::<_, i64>(0) > 0;
        let prepared = self.prepared()? > 0;
        let here = rows(left, &table)? == NEW;
        let mut there = Vec::new();
        for side in &targets {
            there.push(rows(side, &table)? == NEW);
        }
        let there = match there.iter().filter(|is_there| **is_there).count() {
            0 => There::None,
            some if some < there.len() => There::One,
            _ => There::All,
        };
        self.await_settled()?;
        let mut equal = true;
        for side in &targets {
            equal &= all(left, &table)? == all(side, &table)?;
        }
        for side in targets.iter().copied().chain([left]) {
            side.connect()?
                .batch_execute(&format!("drop table {table}"))?;
        }
        Ok(Seen {
            reached,
            reported,
            crashed,
            here,
            there,
            queued,
            prepared,
            equal,
        })
    }

    /// Where the changes go.
    fn targets(&self, case: Case) -> Vec<&Side> {
        if case.has_two() {
            vec![&self.rig.right, &self.second]
        } else {
            vec![&self.rig.right]
        }
    }

    /// A transaction that is committed here and only prepared there. The server cannot be reached afterwards.
    fn leave_prepared(&self, work: &str) -> Result<()> {
        let mut session = self.rig.left.connect()?;
        self.ask(Point::SecondPhase, What::Nothing, false)?;
        let work = work.to_owned();
        let running = thread::spawn(move || reported(session.batch_execute(&work)));
        let is_there = self.await_taken(|| running.is_finished())?;
        ensure!(is_there, "nobody comes to the second phase");
        self.rig.proxy.refuse();
        self.rig.proxy.cut();
        fs::remove_file(self.taken())?;
        let reported = running
            .join()
            .map_err(|_| anyhow!("the session panicked"))?;
        ensure!(
            reported == Reported::Success,
            "the transaction is not committed: {reported:?}"
        );
        ensure!(self.prepared()? == 1, "nothing is prepared");
        Ok(())
    }

    /// How much is prepared on the other side.
    fn prepared(&self) -> Result<i64> {
        let sql = "select count(*) from pg_prepared_xacts";
        Ok(self
            .rig
            .right
            .connect_superuser()?
            .query_one(sql, &[])?
            .get(0))
    }

    fn file(&self) -> PathBuf {
        self.directory.join(self.database.to_string())
    }

    fn taken(&self) -> PathBuf {
        self.directory.join(format!("{}.taken", self.database))
    }

    /// Asks for a fault. The file is written elsewhere first, so that nobody reads half of it.
    fn ask(&self, point: Point, what: What, of_worker: bool) -> Result<()> {
        let who = if of_worker { "worker" } else { "session" };
        let draft = self.directory.join("draft");
        fs::write(&draft, format!("{point:?} {} {who}", what.word()))?;
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
            ensure!(
                start.elapsed() < MAX_WAIT,
                "nobody comes to the point, and nobody ends"
            );
            sleep(Duration::from_millis(2));
        }
    }

    /// Does what happens while the process waits at the point, and lets it go on.
    fn meanwhile(&self, trial: &Trial, table: &str, pid: i32) -> Result<()> {
        if trial.point == Point::CommitSent && trial.case != Case::Call {
            // What was sent arrives, whatever becomes of who sent it.
            let mut targets = self.targets(trial.case);
            if trial.case == Case::Half {
                targets.pop();
            }
            let start = Instant::now();
            for side in targets {
                while rows(side, table)? != NEW && start.elapsed() < MAX_WAIT {
                    sleep(Duration::from_millis(2));
                }
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
            What::Kill => MAX_WAIT,
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
            ensure!(start.elapsed() < MAX_WAIT, "the other side is not quiet");
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Whether nothing is queued any more, and nothing prepared.
    fn is_settled(&self) -> bool {
        let client = self.rig.left.connect_superuser();
        client
            .and_then(|mut one| self.rig.backlog(&mut one))
            .is_ok_and(|left| left == 0)
            && self.prepared().is_ok_and(|prepared| prepared == 0)
    }

    /// Waits for that. Without a worker, calls do it.
    fn await_settled(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            self.rig.await_drained()?;
            if self.prepared()? == 0 {
                return Ok(());
            }
            ensure!(start.elapsed() < MAX_WAIT, "something stays prepared");
            if self.rig.drain == Drain::Calls {
                let sql = "select resolve_sync_prepared()";
                self.rig.left.connect_superuser()?.query_one(sql, &[])?;
            }
            sleep(Duration::from_millis(10));
        }
    }

    fn worker(&self, observer: &mut Client, case: Case) -> Result<Option<i32>> {
        if !case.is_by_worker() {
            return Ok(None);
        }
        let sql = "select pid from pg_stat_activity where datname = current_database()
                   and backend_type = 'pg_rowsync worker'";
        let start = Instant::now();
        loop {
            match observer.query_opt(sql, &[])? {
                Some(row) => return Ok(Some(row.get(0))),
                None if start.elapsed() > MAX_WAIT => bail!("there is no worker"),
                None => sleep(Duration::from_millis(10)),
            }
        }
    }

    fn lead_to(&self, server: &str, port: u16) -> Result<()> {
        let sql = format!("alter server {server} options (set port '{port}')");
        Ok(self.rig.left.connect()?.batch_execute(&sql)?)
    }
}

fn reported<T>(result: Result<T, postgres::Error>) -> Reported {
    match result {
        Ok(_) => Reported::Success,
        Err(error) => match error.as_db_error().map(|said| said.severity()) {
            Some("ERROR") => Reported::Error,
            _ => Reported::Nothing,
        },
    }
}

fn call(session: &mut Client, function: &str) -> Reported {
    let done = session.query_one(&format!("select {function}"), &[]);
    match done.as_ref().map(|row| row.get(0)) {
        Ok(false) => Reported::False,
        _ => reported(done),
    }
}

fn rows(side: &Side, table: &str) -> Result<Vec<String>> {
    let sql = format!("select concat_ws(' ', id, v) from {table} where id < 10 order by id");
    Ok(side
        .connect()?
        .query(&sql, &[])?
        .iter()
        .map(|row| row.get(0))
        .collect())
}

/// Number and checksum of all rows.
fn all(side: &Side, table: &str) -> Result<(i64, Option<i64>)> {
    let sql = format!("select count(*), sum(hashtext(t::text)) from {table} t");
    let row = side.connect()?.query_one(&sql, &[])?;
    Ok((row.get(0), row.get(1)))
}
