//! Copies of tables that eight clients write through the whole of it: rows that come, change, move to other
//! keys and go, unique values passed on, parents and children, positions of a list, TRUNCATE, savepoints; and
//! faults at random: connections cut, the server away, copiers ended, either side crashed. Afterwards both
//! sides are equal, and nothing has failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use postgres::Client;

use crate::cluster::{Cluster, Shutdown, TEST_SETTINGS};
use crate::proxy::Proxy;
use crate::rng::Rng;
use crate::side::{Side, describe};

/// Which rounds are played.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    /// The first round's number.
    pub from: u64,
    pub rounds: u64,
}

const CLIENTS: u64 = 8;

/// How long it may take until everything has arrived once no faults come any more.
const MAX_WAIT: Duration = Duration::from_secs(180);

const PRELOADED: &[(&str, &str)] = &[
    ("shared_preload_libraries", "pg_rowsync"),
    ("max_worker_processes", "40"),
    ("pg_rowsync.retry_interval", "100ms"),
    ("pg_rowsync.max_retry_interval", "1s"),
];

/// The tables, those first to which others refer.
const TABLES: [&str; 3] = ["t", "child", "list"];

/// Plays the rounds.
///
/// # Errors
/// A round after which the sides differ, that does not come to an end, or in which something failed; with
/// what it did.
pub fn run(plan: Plan, tell: &mut dyn FnMut(String)) -> Result<()> {
    let left = Cluster::start_with("source", &[TEST_SETTINGS, PRELOADED].concat())?;
    let clusters = (Arc::new(left), Arc::new(Cluster::start("target")?));
    for number in plan.from..plan.from + plan.rounds {
        let began = Instant::now();
        let mut round = Round::begin(&clusters, plan.seed, number)?;
        let played = round.play();
        let line = format!("round {number}: {}", round.history.join("; "));
        played.with_context(|| format!("seed {}, {line}", plan.seed))?;
        tell(format!("{line}; {:.1} s", began.elapsed().as_secs_f64()));
    }
    Ok(())
}

struct Round {
    rng: Rng,
    left: Side,
    right: Side,
    proxy: Proxy,
    history: Vec<String>,
    /// A crash of the source after the copy may leave the target ahead, as the tables' mode has it.
    has_window: bool,
}

impl Drop for Round {
    fn drop(&mut self) {
        let _ = self.left.drop();
        let _ = self.right.drop();
    }
}

fn reported(error: postgres::Error) -> anyhow::Error {
    anyhow::anyhow!(describe(&error))
}

impl Round {
    fn begin(clusters: &(Arc<Cluster>, Arc<Cluster>), seed: u64, number: u64) -> Result<Round> {
        let (left, right) = clusters;
        let proxy = Proxy::start(right.port())?;
        let left = Side::create(left, &format!("local_copy_{number}"))?;
        let right = Side::create(right, &format!("remote_copy_{number}"))?;
        left.link(&right, proxy.port(), "dst", &[])?;
        let rng = Rng::new(seed, number);
        let mut round = Round {
            rng,
            left,
            right,
            proxy,
            history: Vec::new(),
            has_window: false,
        };
        round.build()?;
        Ok(round)
    }

    /// Tables with rows that take several steps to copy.
    fn build(&mut self) -> Result<()> {
        let refers = *self.rng.pick(&[
            "on delete cascade",
            "on delete cascade deferrable initially deferred",
            "on delete set null",
            "",
        ]);
        let unique = *self
            .rng
            .pick(&["unique", "unique deferrable initially deferred", ""]);
        let position = *self
            .rng
            .pick(&["deferrable", "deferrable initially deferred"]);
        let tables = format!(
            "create table t (id int primary key, v text, u int {unique});
             create table child (id int primary key, parent int references t {refers}, v text);
             create index on child (parent);
             create table list (pos int primary key {position}, item int not null, v text)"
        );
        for side in [&self.left, &self.right] {
            side.connect()?.batch_execute(&tables).map_err(reported)?;
        }
        let rows = *self.rng.pick(&[3_000, 20_000, 40_000]);
        self.left
            .connect()?
            .batch_execute(&format!(
                "insert into t select i, repeat('x', 300), case when i % 3 = 0 then i end
                   from generate_series(1, {rows}) i;
                 insert into child select i, i, 'c' from generate_series(1, {rows}, 5) i;
                 insert into list select i, i, repeat('l', 100) from generate_series(1, {rows} / 4) i;
                 analyze"
            ))
            .map_err(reported)?;
        self.history.push(format!(
            "{rows} rows, unique: '{unique}', refers: '{refers}'"
        ));
        Ok(())
    }

    fn play(&mut self) -> Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        let truncates = self.rng.chance(25);
        let seed = self.rng.roll(1 << 40);
        let writers: Vec<JoinHandle<u64>> = (0..CLIENTS)
            .map(|number| {
                let side = self.left.clone();
                let stop = stop.clone();
                let rng = Rng::new(seed, number);
                thread::spawn(move || write(&side, &stop, rng, truncates))
            })
            .collect();
        let copied = self.copy_in_trouble();
        self.rng.pause(0, 300);
        stop.store(true, Ordering::Relaxed);
        let mut done = 0;
        for writer in writers {
            done += writer
                .join()
                .map_err(|_| anyhow::anyhow!("a writer panicked"))?;
        }
        self.history.push(format!("{done} transactions"));
        copied?;
        self.await_that(
            "the queue is empty",
            "select count(*) = 0 from sync_err_rec",
        )?;
        for table in TABLES {
            let left = self.left.checksum(table);
            let right = self.right.checksum(table);
            let left = left.map_err(reported)?;
            let right = right.map_err(reported)?;
            ensure!(
                left == right,
                "{table} differs: {} rows here, {} there",
                left.1,
                right.1
            );
        }
        Ok(())
    }

    /// Registers the copies, lets things happen, and waits for their end.
    fn copy_in_trouble(&mut self) -> Result<()> {
        self.register()?;
        for _ in 0..self.rng.roll(5) {
            self.rng.pause(20, 500);
            let what = self.trouble()?;
            self.history.push(what.to_owned());
        }
        let failed = "select bool_or(state = 'failed') from sync_progress";
        let end = Instant::now() + MAX_WAIT;
        loop {
            let state = "select coalesce(bool_and(state = 'done'), true) from sync_progress";
            let mut client = self.left.connect_superuser().map_err(reported)?;
            if client.query_one(state, &[]).map_err(reported)?.get(0) {
                return Ok(());
            }
            let has_failed: Option<bool> = client.query_one(failed, &[]).map_err(reported)?.get(0);
            if has_failed == Some(true) || Instant::now() > end {
                bail!("not copied: {}", self.progress()?);
            }
            sleep(Duration::from_millis(50));
        }
    }

    fn register(&mut self) -> Result<()> {
        let mode = *self.rng.pick(&["async", "sync", "queue", "atomic"]);
        self.has_window = ["async", "sync"].contains(&mode);
        let existing = *self.rng.pick(&["error", "truncate", "merge"]);
        // Parents that are always in the queue keep a copy of their children waiting.
        let together = self.rng.chance(60) || mode == "queue";
        self.history.push(format!(
            "mode {mode}, existing {existing}{}",
            if together { ", together" } else { "" }
        ));
        if existing == "truncate" {
            let junk =
                "insert into t values (-1, 'junk', -1); insert into child values (-1, -1, 'junk');
                        insert into list values (-1, -1, 'junk')";
            self.right
                .connect()?
                .batch_execute(junk)
                .map_err(reported)?;
        }
        let schema = self.right.user.clone();
        let attach = |name: &str| {
            format!(
                "select attach_sync('{name}', 'dst', '{schema}.{name}', '{{\"mode\": \"{mode}\"}}');
                 select copy_sync('{name}', 'dst', '{existing}')"
            )
        };
        // Children first: they wait for their parents.
        let mut all: Vec<String> = TABLES.iter().map(|name| attach(name)).collect();
        if self.rng.chance(50) {
            all.reverse();
        }
        let calls = if together { vec![all.join(";")] } else { all };
        let mut client = self.left.connect()?;
        for call in calls {
            let end = Instant::now() + MAX_WAIT;
            // It waits for the writers under way, who may be waiting for each other.
            while let Err(error) = client.batch_execute(&format!("begin; {call}; commit")) {
                drop(client.batch_execute("rollback"));
                ensure!(Instant::now() < end, "not attached: {}", describe(&error));
            }
            self.rng.pause(0, 100);
        }
        Ok(())
    }

    fn trouble(&mut self) -> Result<&'static str> {
        Ok(match self.rng.roll(10) {
            0..4 => {
                self.proxy.cut();
                "cut"
            }
            4 => {
                self.proxy.refuse();
                self.proxy.cut();
                self.rng.pause(50, 600);
                self.proxy.accept()?;
                "away"
            }
            5..7 => {
                let end = "select pg_terminate_backend(pid) from pg_stat_activity
                            where backend_type = 'pg_rowsync copier'";
                self.left
                    .connect_superuser()?
                    .batch_execute(end)
                    .map_err(reported)?;
                "copiers ended"
            }
            7 => {
                let end = "select pg_terminate_backend(pid) from pg_stat_activity
                            where backend_type like 'pg_rowsync%'";
                self.left
                    .connect_superuser()?
                    .batch_execute(end)
                    .map_err(reported)?;
                "workers ended"
            }
            8 => {
                self.right.cluster.stop(Shutdown::Immediate)?;
                self.right.cluster.start_again()?;
                "target crashed"
            }
            _ if self.has_window => "nothing",
            _ => {
                self.left.cluster.stop(Shutdown::Immediate)?;
                self.left.cluster.start_again()?;
                "source crashed"
            }
        })
    }

    fn await_that(&self, what: &str, sql: &str) -> Result<()> {
        let end = Instant::now() + MAX_WAIT;
        loop {
            let mut client = self.left.connect_superuser().map_err(reported)?;
            if client.query_one(sql, &[]).map_err(reported)?.get(0) {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "gave up waiting until {what}: {}",
                self.records()?
            );
            sleep(Duration::from_millis(50));
        }
    }

    fn progress(&self) -> Result<String> {
        let sql = "select string_agg(concat_ws(' ', relation::text, state, rows_done, sqlstate, message), '; '
                     order by id) from sync_progress";
        let reported: Option<String> = self.left.connect_superuser()?.query_one(sql, &[])?.get(0);
        Ok(reported.unwrap_or_default())
    }

    fn records(&self) -> Result<String> {
        let sql =
            "select string_agg(concat_ws(' ', id, table_name, op, status, sqlstate, message), '; ')
                     from (select * from sync_err_rec order by id limit 10) q";
        let reported: Option<String> = self.left.connect_superuser()?.query_one(sql, &[])?.get(0);
        Ok(reported.unwrap_or_default())
    }
}

/// Writes until it is told to stop; how many transactions were committed. Sessions that end are replaced.
fn write(side: &Side, stop: &AtomicBool, mut rng: Rng, truncates: bool) -> u64 {
    let (mut done, mut client): (u64, Option<Client>) = (0, None);
    while !stop.load(Ordering::Relaxed) {
        // They are to meet the copy, not to keep the machine busy.
        sleep(Duration::from_millis(5));
        let Some(open) = client.as_mut().filter(|client| !client.is_closed()) else {
            client = side.connect().ok();
            continue;
        };
        match open.batch_execute(&transaction(&mut rng, truncates)) {
            Ok(()) => done += 1,
            // Deadlocks and conflicts between the clients, and what mode sync does not take now.
            Err(_) => drop(open.batch_execute("rollback")),
        }
    }
    done
}

fn transaction(rng: &mut Rng, truncates: bool) -> String {
    let mut one = || rng.roll(6_000) + 1;
    let a = one();
    let b = one();
    let c = one();
    match rng.roll(15) {
        0 | 1 => format!(
            "insert into t values ({}, 'n', null) on conflict do nothing",
            40_000 + a
        ),
        2 | 3 => format!("update t set v = v || 'u' where id in ({a}, {b})"),
        4 => format!("delete from t where id = {a}"),
        5 => format!(
            "update t set id = id + 50000 where id = {a}
               and not exists (select from t x where x.id = {a} + 50000)"
        ),
        // A value passed on from a row to one far away; two rows take each other's.
        6 => format!(
            "do $$ declare w int; begin
               select u into w from t where id = {a} and u is not null for update;
               if w is not null then
                 update t set u = null where id = {a};
                 update t set u = w where id = {b} and u is null;
               end if; end $$"
        ),
        7 => format!(
            "do $$ declare v int; w int; begin
               select u into v from t where id = {a} for update;
               select u into w from t where id = {b} for update;
               update t set u = null where id = {a};
               update t set u = v where id = {b};
               update t set u = w where id = {a}; end $$"
        ),
        8 | 9 => format!(
            "begin; insert into child select {a}, id, 'c' from t where id = {b} for key share
               on conflict do nothing;
             savepoint s; delete from t where id > {c} and id < {c} + 5; rollback to s; commit"
        ),
        10 => format!("delete from child where id = {a}"),
        11 => format!(
            "begin; insert into t values ({0}, 'p', null); insert into child values ({0}, {0}, 'c'); commit",
            60_000 + a
        ),
        12 => format!(
            "update list set pos = pos + 1 where pos >= (select max(pos) from list) - {}",
            a % 50
        ),
        13 => format!(
            "begin; delete from list where pos = {0}; insert into list values ({0}, {a}, 'n'); commit",
            a % 500
        ),
        _ if truncates && a % 50 == 11 => "truncate t, child".to_owned(),
        _ => format!("begin; update t set v = 'gone' where id < {a}; rollback"),
    }
}
