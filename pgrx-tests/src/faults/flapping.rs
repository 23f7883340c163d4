//! Many sessions that update the same few rows while the other side comes and goes, and several
//! drainers at once: a change that overtook an older one would leave its row different.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use super::rig::{Mode, Rig};
use crate::flag::Flag;
use crate::rng::Rng;

const CLIENTS: u64 = 8;
const ROWS: u64 = 20;

pub struct Report {
    pub committed: u64,
    pub outages: u64,
    /// How many records there have been.
    pub queued: i64,
}

/// Runs for that long, with two callers of `deal_sync_err_rec` besides what the rig has.
///
/// # Errors
/// A client's error, or sides that differ.
pub fn run(rig: &Rig, seed: u64, time: Duration) -> Result<Report> {
    ensure!(rig.mode == Mode::Async, "clients must not notice anything");
    rig.mirror("t", "id int primary key, v text not null")?;
    rig.left.connect()?.batch_execute(&format!(
        "insert into t select g, '' from generate_series(1, {ROWS}) g"
    ))?;
    let end = Instant::now() + time;
    let done = Flag::default();
    let (committed, outages) = thread::scope(|scope| {
        let _end = done.set_at_end();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|who| scope.spawn(move || update(rig, seed, who, end)))
            .collect();
        for limit in [50, 1000] {
            let done = &done;
            scope.spawn(move || rig.call_drain(limit, || done.is_set()));
        }
        let outages = flap(rig, &mut Rng::new(seed, CLIENTS), end);
        let committed = clients
            .into_iter()
            .map(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
            .sum::<Result<u64>>();
        done.set();
        Ok::<_, anyhow::Error>((committed?, outages?))
    })?;
    rig.await_drained()?;
    let all = |side: &crate::Side| -> Result<Vec<(i32, String)>> {
        let rows = side
            .connect()?
            .query("select id, v from t order by id", &[])?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    };
    let left = all(&rig.left)?;
    let right = all(&rig.right)?;
    let differ: Vec<_> = left
        .iter()
        .zip(&right)
        .filter(|(left, right)| left != right)
        .collect();
    ensure!(
        left.len() == right.len() && differ.is_empty(),
        "seed {seed}: the sides differ in {differ:?}{}",
        rig.describe_logs()
    );
    let sql = "select last_value from sync_queue_id_seq";
    let queued = rig.left.connect_superuser()?.query_one(sql, &[])?.get(0);
    Ok(Report {
        committed,
        outages,
        queued,
    })
}

/// Every update appends to what was there, so a lost or overtaken one cannot go unseen.
fn update(rig: &Rig, seed: u64, who: u64, end: Instant) -> Result<u64> {
    let mut client = rig.left.connect()?;
    let mut rng = Rng::new(seed, who);
    let mut committed = 0;
    while Instant::now() < end {
        let id = 1 + rng.roll(ROWS);
        let other = 1 + rng.roll(ROWS);
        // In the order of the keys, so that sessions do not wait for each other in a circle.
        let rows = [id.min(other), id.max(other)];
        let update = rows.map(|id| {
            format!("update t set v = right(v || '{who}.{committed};', 60) where id = {id}; ")
        });
        let count = 1 + rng.roll(2) as usize;
        client.batch_execute(&format!("begin; {}commit", update[..count].concat()))?;
        committed += 1;
        rng.pause(0, 2);
    }
    Ok(committed)
}

/// Away for up to a second, back for up to a second, again and again; back in the end.
fn flap(rig: &Rig, rng: &mut Rng, end: Instant) -> Result<u64> {
    let mut outages = 0;
    while Instant::now() < end {
        rng.pause(200, 1000);
        if rng.chance(30) {
            rig.proxy.freeze();
            rng.pause(1000, 1500);
            rig.proxy.cut();
            rig.proxy.thaw();
        } else {
            rig.proxy.refuse();
            rig.proxy.cut();
            rng.pause(300, 1000);
            rig.proxy.accept()?;
        }
        outages += 1;
    }
    Ok(outages)
}
