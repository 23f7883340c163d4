//! `verify_sync`, next to what one side alone takes to hash its rows: of equal tables, with a few differences
//! and with many; what it sends, and what memory it takes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use postgres::Client;

use super::contender::Contender;
use super::measure::{Figures, Unit, own_memory, time};
use super::number::many;
use super::plan::Plan;
use super::rig::{Rig, Via};
use super::run::Run;
use super::shape::Shape;

const TABLE: &str = "bench.verified";
/// Differences of which a usual comparison has some.
pub const FEW: u32 = 10;

pub fn run(run: &mut Run) -> Result<()> {
    if !run.plan.has(Contender::Async) {
        return Ok(());
    }
    let rig = &run.rig;
    let columns = Shape::Narrow.definition();
    let create = format!("create table {TABLE} ({columns}, primary key (pk1, pk2))");
    rig.local.connect()?.batch_execute(&create)?;
    rig.remote.connect()?.batch_execute(&create)?;
    fill(rig, run.plan.many)?;
    for _ in 0..run.plan.rounds {
        scans(&mut run.figures, rig, run.plan.many)?;
        equal(&mut run.figures, rig, run.plan.many)?;
        differing(&mut run.figures, rig, run.plan.many, FEW)?;
        differing(
            &mut run.figures,
            rig,
            run.plan.many,
            many_differences(&run.plan),
        )?;
    }
    if run.plan.slow {
        fill(rig, run.plan.huge)?;
        scans(&mut run.figures, rig, run.plan.huge)?;
        equal(&mut run.figures, rig, run.plan.huge)?;
    }
    rig.both(&format!("drop table {TABLE}"))
}

/// One row in ten.
pub fn many_differences(plan: &Plan) -> u32 {
    plan.many / 10
}

pub fn title(rows: u32) -> String {
    format!("verify {}", many(rows, "equal row"))
}

pub fn title_differing(rows: u32, differences: u32) -> String {
    let differences = many(differences, "difference");
    format!("verify {} with {differences}", many(rows, "row"))
}

/// `function` is one that takes a hash.
pub fn title_scan(function: &str, rows: u32) -> String {
    format!(
        "one side's own {function} of {}, in one process",
        many(rows, "row")
    )
}

pub fn title_traffic(title: &str) -> String {
    format!("{title}: exchanged, both ways")
}

pub fn title_memory(title: &str) -> String {
    format!("{title}: memory of the session's own")
}

/// The same rows on both sides.
fn fill(rig: &Rig, rows: u32) -> Result<()> {
    rig.both(&format!("truncate {TABLE}"))?;
    rig.both(&format!(
        "insert into {TABLE} select i, 'key', md5(i::text), timestamp '2024-01-01' + i * interval '1 s',
                timestamp '2024-06-01' + i * interval '1 ms' from generate_series(1, {rows}) i"
    ))?;
    rig.both(&format!("vacuum analyze {TABLE}"))?;
    rig.both("checkpoint")
}

fn scans(figures: &mut Figures, rig: &Rig, rows: u32) -> Result<()> {
    for (function, hash) in [
        ("md5", "md5(t::text)"),
        ("hashtextextended", "hashtextextended(t::text, 0)"),
    ] {
        let mut client = rig.local.connect()?;
        client.batch_execute("set max_parallel_workers_per_gather = 0; set jit = off")?;
        let scan = format!("select count({hash}) from {TABLE} t");
        let took = time(|| client.batch_execute(&scan))?;
        let title = title_scan(function, rows);
        figures.add(&title, Contender::None, Unit::Milliseconds, took);
    }
    Ok(())
}

/// Compares twice: for the time, and by way of the proxy for what is exchanged. Both in sessions of their own,
/// whose connections are counted.
fn compare(figures: &mut Figures, rig: &Rig, title: &str, differences: u32) -> Result<()> {
    let call = format!(
        "select count(*) from verify_sync('{TABLE}', 'dst', '{{\"max_differences\": 1000000}}')"
    );
    let count = |client: &mut Client| -> Result<()> {
        let found: i64 = client.query_one(&call, &[])?.get(0);
        ensure!(
            found == i64::from(differences),
            "{title}: {found} differences"
        );
        Ok(())
    };
    let mut client = rig.local.connect()?;
    let (took, memory) = watched(&mut client, |client| time(|| count(client)))?;
    figures.add(title, Contender::Async, Unit::Milliseconds, took);
    let memory_title = title_memory(title);
    figures.add(&memory_title, Contender::Async, Unit::Megabytes, memory);
    drop(client);
    rig.go(Via::Proxy(Duration::ZERO))?;
    let before = rig.bytes_exchanged();
    count(&mut rig.local.connect()?)?;
    let exchanged = (rig.bytes_exchanged() - before) as f64 / 1e3;
    let traffic = title_traffic(title);
    figures.add(&traffic, Contender::Async, Unit::Kilobytes, exchanged);
    rig.go(Via::Direct)
}

/// What a call comes to, and the MB that its session had for itself alone at the most.
fn watched<T>(
    client: &mut Client,
    call: impl FnOnce(&mut Client) -> Result<T>,
) -> Result<(T, f64)> {
    let pid: i32 = client.query_one("select pg_backend_pid()", &[])?.get(0);
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most: f64 = 0.0;
            while !ended.load(Ordering::Relaxed) {
                most = most.max(own_memory(pid).unwrap_or_default());
                sleep(Duration::from_millis(5));
            }
            most
        });
        let result = call(client);
        ended.store(true, Ordering::Relaxed);
        let most = watch.join().map_err(|_| anyhow!("the watch panicked"))?;
        Ok((result?, most))
    })
}

fn attached(rig: &Rig, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut client = rig.local.connect()?;
    client.batch_execute(&format!("select attach_sync('{TABLE}', 'dst', '{TABLE}')"))?;
    body()?;
    Ok(client.batch_execute(&format!("select detach_sync('{TABLE}', 'dst')"))?)
}

fn equal(figures: &mut Figures, rig: &Rig, rows: u32) -> Result<()> {
    attached(rig, || compare(figures, rig, &title(rows), 0))
}

/// With so many rows changed there, spread over the table, which are as they were afterwards.
fn differing(figures: &mut Figures, rig: &Rig, rows: u32, differences: u32) -> Result<()> {
    let every = rows / differences;
    let change = |value: &str| {
        rig.there(&format!(
            "update {TABLE} set info = {value} where pk1 % {every} = 0"
        ))?;
        rig.there(&format!("vacuum {TABLE}"))?;
        rig.there("checkpoint")
    };
    change("info || '!'")?;
    attached(rig, || {
        compare(
            figures,
            rig,
            &title_differing(rows, differences),
            differences,
        )
    })?;
    change("rtrim(info, '!')")
}
