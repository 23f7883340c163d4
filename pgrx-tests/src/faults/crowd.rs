//! More clients than the other side grants connections: those who have one go on delivering, the others queue,
//! and the queue drains while all of them stay.

use std::fmt;
use std::sync::Arc;
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use postgres::Client;

use crate::cluster::{Cluster, TEST_SETTINGS};
use crate::side::Side;

/// How long the queue may take to drain once nobody writes any more.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// Connections that the other side keeps for its superuser, who looks at it.
const RESERVED: u32 = 3;
/// Sessions on the left beside the clients'.
const OTHERS: u32 = 40;

#[derive(Clone, Debug)]
pub struct Plan {
    pub clients: u32,
    /// That the other side grants, to all of them, the worker included.
    pub connections: u32,
    /// How long they write.
    pub time: Duration,
    /// Between two transactions of a client.
    pub pause: Duration,
}

/// What the transactions of one part of the time came to, each of one row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Part {
    pub committed: u64,
    pub queued: u64,
}

impl Part {
    pub fn direct(&self) -> u64 {
        self.committed.saturating_sub(self.queued)
    }
}

#[derive(Debug)]
pub struct Report {
    /// The first and the second half of the time.
    pub halves: [Part; 2],
    /// From the last transaction until nothing was queued, while all clients stayed.
    pub drained: Duration,
    /// The longest queue that was seen.
    pub longest_queue: i64,
    /// The longest time that a transaction took.
    pub longest: Duration,
    pub median: Duration,
    /// Sessions that had a connection in the end.
    pub connected: usize,
    /// Transactions that the other side has committed: direct ones, and one for each visit of the worker.
    pub transactions_there: i64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, part) in ["first half", "second half"].iter().zip(&self.halves) {
            let Part { committed, queued } = part;
            writeln!(
                f,
                "{name}: {committed} committed, {} directly, {queued} queued",
                part.direct()
            )?;
        }
        write!(
            f,
            "longest queue {}, drained in {:.2} s while all clients stayed; commits took {:.1} ms in the middle, \
             {:.0} ms at most; {} sessions had a connection in the end; {} transactions there",
            self.longest_queue,
            self.drained.as_secs_f64(),
            self.median.as_secs_f64() * 1e3,
            self.longest.as_secs_f64() * 1e3,
            self.connected,
            self.transactions_there
        )
    }
}

/// Two clusters of their own, one way, with a worker.
fn start(plan: &Plan) -> Result<(Side, Side)> {
    let granted = (plan.connections + RESERVED).to_string();
    let right = thread::spawn(move || {
        let settings = [TEST_SETTINGS, &[("max_connections", granted.as_str())]].concat();
        Cluster::start_with("crowd_right", &settings)
    });
    let most = (plan.clients + OTHERS).to_string();
    let own = [
        ("shared_preload_libraries", "pg_rowsync"),
        ("max_connections", most.as_str()),
    ];
    let left = Cluster::start_with("crowd_left", &[TEST_SETTINGS, &own].concat())?;
    let right = right
        .join()
        .map_err(|_| anyhow!("the right cluster panicked"))??;
    let left = Side::create(&Arc::new(left), "local")?;
    let right = Side::create(&Arc::new(right), "remote")?;
    left.link(&right, right.cluster.port(), "dst", &[])?;
    for side in [&left, &right] {
        side.connect()?
            .batch_execute("create table t (id bigint primary key, v text)")?;
    }
    left.connect()?.batch_execute(&format!(
        "select attach_sync('t', 'dst', '{}.t')",
        right.user
    ))?;
    Ok((left, right))
}

/// A client that writes until then, and how long each of its transactions took. It stays.
type Written = (Client, Vec<Duration>);

fn write(left: Side, who: u32, plan: Plan, end: Instant) -> Result<Written> {
    let mut client = left.connect()?;
    let mut took = Vec::new();
    // Not all at the same moment.
    sleep(plan.pause.mul_f64(f64::from(who) / f64::from(plan.clients)));
    while Instant::now() < end {
        let id = u64::from(who) * 1_000_000 + took.len() as u64;
        let start = Instant::now();
        client.batch_execute(&format!("insert into t values ({id}, 'x')"))?;
        took.push(start.elapsed());
        sleep(plan.pause);
    }
    Ok((client, took))
}

/// How many changes were delivered, directly or not, and queued so far.
fn counted(observer: &mut Client) -> Result<(i64, i64)> {
    let row = observer.query_one(
        "select (select count(*) from local.t), queued::bigint from sync_status",
        &[],
    )?;
    Ok((row.get(0), row.get(1)))
}

fn backlog(observer: &mut Client) -> Result<i64> {
    Ok(observer
        .query_one("select count(*) from sync_queue", &[])?
        .get(0))
}

/// # Errors
/// A client's error, a queue that does not drain while all stay, sides that differ.
pub fn run(plan: &Plan) -> Result<Report> {
    let (left, right) = start(plan)?;
    let mut observer = left.connect_superuser()?;
    let start = Instant::now();
    let end = start + plan.time;
    let clients: Vec<JoinHandle<Result<Written>>> = (0..plan.clients)
        .map(|who| {
            let left = left.clone();
            let plan = plan.clone();
            thread::spawn(move || write(left, who, plan, end))
        })
        .collect();
    let mut longest_queue = 0;
    let mut middle = (0, 0);
    while Instant::now() < end {
        longest_queue = backlog(&mut observer)?.max(longest_queue);
        if middle == (0, 0) && start.elapsed() >= plan.time / 2 {
            middle = counted(&mut observer)?;
        }
        sleep(Duration::from_millis(200));
    }
    let mut written = clients
        .into_iter()
        .map(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
        .collect::<Result<Vec<_>>>()
        .context("a client saw an error")?;
    let stopped = Instant::now();
    while backlog(&mut observer)? > 0 {
        ensure!(
            stopped.elapsed() < MAX_WAIT,
            "{} changes were still queued after {MAX_WAIT:?}, with all clients there",
            backlog(&mut observer)?
        );
        sleep(Duration::from_millis(10));
    }
    let drained = stopped.elapsed();
    let whole = counted(&mut observer)?;
    ensure!(
        left.checksum("t")? == right.checksum("t")?,
        "the sides differ"
    );
    let mut connected = 0;
    for (client, _) in &mut written {
        let row = client.query_one("select count(*) from sync_connections()", &[])?;
        connected += usize::from(row.get::<_, i64>(0) > 0);
    }
    let mut took: Vec<Duration> = written.iter().flat_map(|(_, took)| took.clone()).collect();
    took.sort_unstable();
    let part = |from: (i64, i64), to: (i64, i64)| Part {
        committed: (to.0 - from.0) as u64,
        queued: (to.1 - from.1) as u64,
    };
    Ok(Report {
        halves: [part((0, 0), middle), part(middle, whole)],
        drained,
        longest_queue,
        longest: took.last().copied().unwrap_or_default(),
        median: took.get(took.len() / 2).copied().unwrap_or_default(),
        connected,
        transactions_there: observer
            .query_one(
                "select delivered_transactions::bigint from sync_status",
                &[],
            )?
            .get(0),
    })
}
