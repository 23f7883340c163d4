//! The first copy of a table, next to native table synchronisation and to COPY piped from psql to psql; of
//! many small tables; and what writers notice of it meanwhile.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::contender::Contender;
use super::measure::{Figures, Unit, milliseconds, own_memory, time};
use super::number::many;
use super::plan::Plan;
use super::rig::Rig;
use super::run::Run;
use super::shape::Shape;
use crate::setup::Postgres;
use crate::side::Side;

const TABLE: &str = "bench.copied";
/// Sent to the server too, and not copied.
const BESIDE: &str = "bench.beside";
/// The schema of many small tables.
const SMALL: &str = "bench_small";
const SUBSCRIPTION: &str = "bench_copy";
const CLIENTS: u32 = 8;

/// Whether all that was registered has arrived.
const DONE: &str = "select coalesce(bool_and(state = 'done'), false) from sync_progress
                     where started_at > now() - interval '1 h'";

pub fn run(run: &mut Run) -> Result<()> {
    let rig = &run.rig;
    for name in [TABLE, BESIDE] {
        let columns = Shape::Narrow.definition();
        let create = format!("create table {name} ({columns}, primary key (pk1, pk2))");
        rig.local.connect()?.batch_execute(&create)?;
        rig.remote.connect()?.batch_execute(&create)?;
    }
    for rows in [run.plan.many, run.plan.large] {
        fill(rig, rows)?;
        for _ in 0..run.plan.rounds {
            tables(&mut run.figures, rig, &run.plan, rows)?;
        }
    }
    // The large one is still there.
    for _ in 0..run.plan.rounds {
        beside(&mut run.figures, rig, &run.plan)?;
    }
    create_small(rig, run.plan.tables)?;
    for _ in 0..run.plan.rounds {
        small(&mut run.figures, rig, &run.plan)?;
    }
    rig.both(&format!("drop table {TABLE}, {BESIDE}"))
}

pub fn title(rows: u32) -> String {
    format!("copy of {}", many(rows, "row"))
}

pub fn title_small(plan: &Plan) -> String {
    format!("copy of {}", many(plan.tables, "table"))
}

pub fn title_rate(is_copied: bool, meanwhile: bool) -> String {
    let which = if is_copied {
        "on the copied table"
    } else {
        "on another table"
    };
    let when = if meanwhile { ", during its copy" } else { "" };
    let when = if meanwhile && !is_copied {
        ", during a copy"
    } else {
        when
    };
    format!(
        "transactions of 1 row, {}, {which}{when}",
        many(CLIENTS, "client")
    )
}

pub const LONGEST_COMMIT: &str =
    "longest transaction of 1 row on the copied table, during its copy";
pub const SNAPSHOT: &str = "longest life of a snapshot of the copier";
pub const MEMORY: &str = "memory of a copier of its own";

fn fill(rig: &Rig, rows: u32) -> Result<()> {
    rig.here(&format!("truncate {TABLE}"))?;
    rig.here(&format!(
        "insert into {TABLE} select i, 'key', md5(i::text), now()::timestamp, now()::timestamp
           from generate_series(1, {rows}) i"
    ))?;
    rig.here(&format!("vacuum analyze {TABLE}"))?;
    rig.here("checkpoint")
}

fn ensure_equal(rig: &Rig, table: &str) -> Result<()> {
    let sql = format!(
        "select concat(count(*), ' rows ', sum(hashtext(t.*::text)::bigint)) from {table} t"
    );
    let (here, there) = (
        rig.ask_here::<String>(&sql)?,
        rig.ask_there::<String>(&sql)?,
    );
    ensure!(here == there, "\"{table}\": {here} here, {there} there");
    Ok(())
}

/// Each way once.
fn tables(figures: &mut Figures, rig: &Rig, plan: &Plan, rows: u32) -> Result<()> {
    let title = title(rows);
    for (form, binary) in [("text", false), ("binary", true)] {
        empty(rig)?;
        let took = time(|| piped(rig, binary))?;
        let title = format!("{title}, COPY piped as {form}");
        figures.add(&title, Contender::None, Unit::Milliseconds, took);
    }
    ensure_equal(rig, TABLE)?;
    if plan.has(Contender::Native) {
        empty(rig)?;
        let took = natively(rig, &format!("table {TABLE}"))?;
        figures.add(&title, Contender::Native, Unit::Milliseconds, took);
        ensure_equal(rig, TABLE)?;
    }
    if plan.has(Contender::Async) {
        empty(rig)?;
        let took = time(|| {
            attach(rig, TABLE, true)?;
            rig.await_here("the copy", DONE)
        })?;
        figures.add(&title, Contender::Async, Unit::Milliseconds, took);
        ensure_equal(rig, TABLE)?;
        detach(rig, TABLE)?;
    }
    Ok(())
}

fn empty(rig: &Rig) -> Result<()> {
    rig.there(&format!("truncate {TABLE}; checkpoint"))?;
    rig.here("delete from sync_progress_log; checkpoint")
}

fn attach(rig: &Rig, table: &str, copies: bool) -> Result<()> {
    let attach = format!("select attach_sync('{table}', 'dst', '{table}', copy_data => {copies})");
    Ok(rig.local.connect()?.batch_execute(&attach)?)
}

fn detach(rig: &Rig, table: &str) -> Result<()> {
    Ok(rig
        .local
        .connect()?
        .batch_execute(&format!("select detach_sync('{table}', 'dst')"))?)
}

fn piped(rig: &Rig, binary: bool) -> Result<()> {
    let psql = |side: &Side, direction: &str| -> Result<Command> {
        let format = if binary { " (format binary)" } else { "" };
        let mut command = Command::new(Postgres::find()?.program("psql"));
        command
            .args(["--no-psqlrc", "--quiet", "--host=127.0.0.1"])
            .arg(format!("--port={}", side.cluster.port()))
            .args(["--username", &side.user, "--dbname", &side.db, "--command"])
            .arg(format!("copy {TABLE} {direction}{format}"))
            .env("PGPASSWORD", &side.password);
        Ok(command)
    };
    let mut from = psql(&rig.local, "to stdout")?
        .stdout(Stdio::piped())
        .spawn()?;
    let rows = from.stdout.take().context("psql without output")?;
    let into = psql(&rig.remote, "from stdin")?.stdin(rows).status()?;
    ensure!(from.wait()?.success() && into.success(), "psql has failed");
    Ok(())
}

/// By a subscription that begins with a copy: the milliseconds until it is in step.
fn natively(rig: &Rig, what: &str) -> Result<f64> {
    rig.here(&format!("create publication {SUBSCRIPTION} for {what}"))?;
    let create = format!(
        "create subscription {SUBSCRIPTION}
           connection 'host=127.0.0.1 port={} dbname={} user=postgres password={}'
           publication {SUBSCRIPTION} with (synchronous_commit = 'local')",
        rig.local.cluster.port(),
        rig.local.db,
        rig.local.cluster.superuser_password()
    );
    let start = Instant::now();
    rig.there(&create)?;
    let ready = "select bool_and(srsubstate = 'r') from pg_subscription_rel";
    while rig.ask_there::<Option<bool>>(ready)? != Some(true) {
        sleep(Duration::from_millis(2));
    }
    let took = milliseconds(start);
    rig.there(&format!("drop subscription {SUBSCRIPTION}"))?;
    rig.here(&format!("drop publication {SUBSCRIPTION}"))?;
    Ok(took)
}

/// Clients that insert a row in each transaction, under keys that no other has.
struct Writers {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    /// Microseconds of the longest transaction.
    longest: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Writers {
    fn start(rig: &Rig, table: &'static str) -> Result<Writers> {
        static KEY: AtomicU64 = AtomicU64::new(100_000_000);
        let (stop, done, longest) = (Arc::default(), Arc::default(), Arc::default());
        let mut writers = Writers {
            stop,
            done,
            longest,
            threads: Vec::new(),
        };
        for _ in 0..CLIENTS {
            let mut client = rig.local.connect()?;
            let stop = writers.stop.clone();
            let (done, longest) = (writers.done.clone(), writers.longest.clone());
            writers.threads.push(thread::spawn(move || {
                let insert = client.prepare(&format!(
                    "insert into {table} values ($1, 'new', 'row', now(), now())"
                ))?;
                while !stop.load(Ordering::Relaxed) {
                    let key = KEY.fetch_add(1, Ordering::Relaxed) as i32;
                    let start = Instant::now();
                    client.execute(&insert, &[&key])?;
                    longest.fetch_max(start.elapsed().as_micros() as u64, Ordering::Relaxed);
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }));
        }
        Ok(writers)
    }

    /// Transactions a second while `what` goes on.
    fn rate(&self, what: impl FnOnce() -> Result<()>) -> Result<f64> {
        let (before, start) = (self.done.load(Ordering::Relaxed), Instant::now());
        self.longest.store(0, Ordering::Relaxed);
        what()?;
        let done = self.done.load(Ordering::Relaxed) - before;
        Ok(done as f64 * 1e3 / milliseconds(start))
    }

    fn longest(&self) -> f64 {
        self.longest.load(Ordering::Relaxed) as f64 / 1e3
    }

    fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.threads.into_iter().map(|thread| {
            thread
                .join()
                .map_err(|_| anyhow!("a writer panicked"))
                .and_then(|result| result)
        });
        ended.collect()
    }
}

/// What writers notice of a copy, on its table and on another one.
fn beside(figures: &mut Figures, rig: &Rig, plan: &Plan) -> Result<()> {
    if !plan.has(Contender::Async) {
        return Ok(());
    }
    for (table, is_copied) in [(TABLE, true), (BESIDE, false)] {
        empty(rig)?;
        attach(rig, BESIDE, false)?;
        attach(rig, TABLE, false)?;
        // Both are sent as always, and the copied one's rows are there that were written before.
        let writers = Writers::start(rig, table)?;
        sleep(Duration::from_secs(1));
        let seconds = Duration::from_secs(plan.seconds);
        let without = writers.rate(|| {
            sleep(seconds);
            Ok(())
        })?;
        let (mut snapshot, mut memory) = (0.0, 0.0);
        let during = writers.rate(|| {
            let copy = format!("select copy_sync('{TABLE}', 'dst', 'truncate')");
            rig.local.connect()?.batch_execute(&copy)?;
            (snapshot, memory) = watch(rig)?;
            Ok(())
        })?;
        let longest = writers.longest();
        writers.end()?;
        let mut add =
            |title: &str, unit, sample| figures.add(title, Contender::Async, unit, sample);
        add(&title_rate(is_copied, false), Unit::Transactions, without);
        add(&title_rate(is_copied, true), Unit::Transactions, during);
        if is_copied {
            add(LONGEST_COMMIT, Unit::Milliseconds, longest);
            add(SNAPSHOT, Unit::Milliseconds, snapshot);
            add(MEMORY, Unit::Megabytes, memory);
        }
        rig.await_here(
            "the queue is empty",
            "select not exists (select from sync_queue)",
        )?;
        ensure_equal(rig, TABLE)?;
        detach(rig, TABLE)?;
        detach(rig, BESIDE)?;
        rig.here(&format!("delete from {TABLE} where pk1 >= 100000000"))?;
        rig.here(&format!("vacuum {TABLE}"))?;
    }
    Ok(())
}

/// Until the copy is done: milliseconds that a copier was seen with one snapshot, and MB of memory of its own.
fn watch(rig: &Rig) -> Result<(f64, f64)> {
    let start = Instant::now();
    let (mut longest, mut memory) = (0.0f64, 0.0f64);
    let mut held: Option<(i32, String, Instant)> = None;
    let mut client = rig.local.connect_superuser()?;
    loop {
        ensure!(
            start.elapsed() < super::rig::PATIENCE,
            "the copy takes too long"
        );
        let rows = client.query(
            "select pid, coalesce(backend_xmin::text, '') from pg_stat_activity
              where backend_type = 'pg_rowsync copier'",
            &[],
        )?;
        for row in &rows {
            let (pid, xmin): (i32, String) = (row.get(0), row.get(1));
            memory = memory.max(own_memory(pid).unwrap_or_default());
            match &held {
                Some((of, same, since)) if *of == pid && *same == xmin => {
                    let lasts = if xmin.is_empty() {
                        0.0
                    } else {
                        milliseconds(*since)
                    };
                    longest = longest.max(lasts);
                }
                _ => held = Some((pid, xmin, Instant::now())),
            }
        }
        if rig.ask_here::<bool>(DONE)? {
            return Ok((longest, memory));
        }
        sleep(Duration::from_millis(5));
    }
}

fn create_small(rig: &Rig, tables: u32) -> Result<()> {
    for (side, rows) in [(&rig.local, 10), (&rig.remote, 0)] {
        let owner = &side.user;
        side.connect_superuser()?
            .batch_execute(&format!("create schema {SMALL} authorization {owner}"))?;
        side.connect()?.batch_execute(&format!(
            "do $$ begin for i in 1..{tables} loop
               execute format('create table {SMALL}.t%s (id int primary key, v text)', i);
               execute format('insert into {SMALL}.t%s select n, ''v'' from generate_series(1, {rows}) n', i);
             end loop; end $$"
        ))?;
    }
    rig.both("checkpoint")
}

/// Many small tables, each way once.
fn small(figures: &mut Figures, rig: &Rig, plan: &Plan) -> Result<()> {
    let title = title_small(plan);
    let each = |what: &str| {
        format!(
            "do $$ begin for i in 1..{} loop execute format('{what}', i); end loop; end $$",
            plan.tables
        )
    };
    if plan.has(Contender::Native) {
        let took = natively(rig, &format!("tables in schema {SMALL}"))?;
        figures.add(&title, Contender::Native, Unit::Milliseconds, took);
    }
    rig.there(&each(&format!("truncate {SMALL}.t%s")))?;
    if plan.has(Contender::Async) {
        rig.here("delete from sync_progress_log")?;
        let mut client = rig.local.connect()?;
        let attach = format!(
            "select count(*) filter (where attached)
               from attach_sync_schema('{SMALL}', 'dst', '{SMALL}', copy_data => true)"
        );
        let start = Instant::now();
        let attached: i64 = client.query_one(&attach, &[])?.get(0);
        let attaching = milliseconds(start);
        ensure!(
            attached == i64::from(plan.tables),
            "{attached} tables were attached"
        );
        let arrived = client.query_one("select wait_sync('dst', timeout => '10 min')", &[])?;
        let took = milliseconds(start);
        ensure!(arrived.get::<_, bool>(0), "the copies have not arrived");
        figures.add(&title, Contender::Async, Unit::Milliseconds, took);
        let title = format!("{title}: until they are attached");
        figures.add(&title, Contender::Async, Unit::Milliseconds, attaching);
        ensure_equal(rig, &format!("{SMALL}.t{}", plan.tables))?;
        rig.local.connect()?.batch_execute(&each(&format!(
            "select detach_sync(''{SMALL}.t%s'', ''dst'')"
        )))?;
        rig.there(&each(&format!("truncate {SMALL}.t%s")))?;
    }
    Ok(())
}
