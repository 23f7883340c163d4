//! The masters, on a cluster each, and a link with a proxy from each to every other.

use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};

use super::tables::{TABLES, Table, Version};
use crate::cluster::{Cluster, TEST_SETTINGS};
use crate::faults::rig::{Drain, MAX_WAIT, Mode, WORKER};
use crate::flag::Flag;
use crate::proxy::Proxy;
use crate::side::{Side, describe};

/// Sessions that write at the same time, on each master.
pub const WRITERS: u64 = 8;

/// As in [`QUICK`].
pub const DELIVERY_TIMEOUT: Duration = Duration::from_secs(2);

const QUICK: [(&str, &str); 6] = [
    ("pg_rowsync.connect_timeout", "500ms"),
    ("pg_rowsync.delivery_timeout", "2s"),
    ("pg_rowsync.cancel_timeout", "500ms"),
    ("pg_rowsync.lock_timeout", "300ms"),
    // A drain may wait for a client and the client for it. Only the drain may give up, so the client
    // must not look for deadlocks before the lock timeout has ended the drain's wait.
    ("deadlock_timeout", "10s"),
    ("max_connections", "100"),
];

pub struct Counts {
    /// Records there have been.
    pub queued: u64,
    /// None where the library is not preloaded, so that nobody counts.
    pub conflicts: Option<u64>,
}

pub struct Mesh {
    pub nodes: Vec<Side>,
    /// Each from one master to one other.
    pub links: Vec<Proxy>,
    pub drain: Drain,
}

impl Mesh {
    /// Masters with empty tables, all of them attached.
    pub fn start(masters: usize, version: Version, mode: Mode, drain: Drain) -> Result<Mesh> {
        let mut settings = [TEST_SETTINGS, &QUICK].concat();
        if drain.has_worker() {
            settings.extend(WORKER);
        }
        let nodes = thread::scope(|scope| {
            let starts: Vec<_> = (0..masters)
                .map(|master| {
                    let settings = &settings;
                    scope.spawn(move || {
                        Side::create(
                            &Arc::new(Cluster::start_with(&format!("master_{master}"), settings)?),
                            &format!("node_{master}"),
                        )
                    })
                })
                .collect();
            let nodes = starts.into_iter().map(join);
            nodes.collect::<Result<Vec<Side>>>()
        })?;
        for (master, node) in nodes.iter().enumerate() {
            for table in &TABLES {
                node.connect()?
                    .batch_execute(&table.create(master, version))?;
            }
        }
        let mut links = Vec::new();
        for (from, node) in nodes.iter().enumerate() {
            for (to, other) in nodes.iter().enumerate().filter(|(to, _)| *to != from) {
                let proxy = Proxy::start(other.cluster.port())?;
                let server = format!("to_{to}");
                let schema = &other.user;
                node.link(other, proxy.port(), &server, &[])?;
                for Table { name, .. } in &TABLES {
                    node.connect()?.batch_execute(&format!(
                        r#"select attach_sync('{name}', '{server}', '{schema}.{name}',
                             '{{"mode": "{mode}", "on_conflict": "newest",
                                "version_column": "version"}}')"#
                    ))?;
                }
                links.push(proxy);
            }
        }
        Ok(Mesh {
            nodes,
            links,
            drain,
        })
    }

    /// The master that a writer works on.
    pub fn home(&self, writer: usize) -> usize {
        writer / WRITERS as usize
    }

    /// Waits until nothing is left to replay on any master.
    ///
    /// # Errors
    /// Records that have failed for good: whatever clients did, there is none that another master could not
    /// apply. One that has met a lock is tried again by itself.
    pub fn await_drained(&self) -> Result<()> {
        let start = Instant::now();
        for (number, node) in self.nodes.iter().enumerate() {
            let mut client = node.connect_superuser()?;
            loop {
                // First, so that the last thing looked at before the end is the queue.
                if self.drain.has_calls() {
                    client
                        .query_one("select deal_sync_err_rec(100000)", &[])
                        .map_err(|error| anyhow!("drain of {number}: {}", describe(&error)))?;
                }
                let failed: i64 = client
                    .query_one(
                        "select count(*) from sync_err_rec
                          where status = 'failed' and next_attempt_at is null",
                        &[],
                    )?
                    .get(0);
                ensure!(
                    failed == 0,
                    "{failed} records of master {number} are marked failed:{}",
                    ask(
                        node,
                        "select to_jsonb(r) from sync_err_rec r where status = 'failed' limit 5"
                    )
                );
                let sql = "select (select count(*) from sync_queue)
                                + (select count(*) from sync_lost_session)";
                if client.query_one(sql, &[])?.get::<_, i64>(0) == 0 {
                    break;
                }
                ensure!(
                    start.elapsed() < MAX_WAIT,
                    "the queue of master {number} did not drain within {MAX_WAIT:?}:{}{}",
                    ask(node, "select to_jsonb(s) from sync_status s"),
                    ask(
                        node,
                        "select to_jsonb(r) from sync_err_rec r order by id limit 3"
                    )
                );
                sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// What has been counted on all masters since they were made.
    pub fn counts(&self) -> Result<Counts> {
        let mut total = Counts {
            queued: 0,
            conflicts: self.drain.has_worker().then_some(0),
        };
        for node in &self.nodes {
            let row = node.connect_superuser()?.query_one(
                "select coalesce(pg_sequence_last_value('sync_queue_id_seq'), 0),
                        (select coalesce(sum(conflicts), 0)::bigint from sync_status)",
                &[],
            )?;
            total.queued += u64::try_from(row.get::<_, i64>(0))?;
            if let Some(conflicts) = &mut total.conflicts {
                *conflicts += u64::try_from(row.get::<_, i64>(1))?;
            }
        }
        Ok(total)
    }

    /// What the sessions of all masters are doing.
    pub fn describe_sessions(&self) -> String {
        let sql = "select concat_ws(' ', pid, application_name, state, wait_event_type, wait_event,
                          now() - query_start, query)
                     from pg_stat_activity where datname = current_database()";
        self.describe(|node| ask(node, sql))
    }

    /// The last lines that the servers have logged.
    pub fn describe_logs(&self) -> String {
        self.describe(|node| {
            let log = node.cluster.log();
            let lines: Vec<_> = log.lines().collect();
            format!("\n{}", lines[lines.len().saturating_sub(15)..].join("\n"))
        })
    }

    fn describe(&self, look: impl Fn(&Side) -> String) -> String {
        let nodes = self.nodes.iter().enumerate();
        nodes
            .map(|(number, node)| format!("\nmaster {number}:{}", look(node)))
            .collect()
    }
}

/// Calls `deal_sync_err_rec` again and again until told to stop. Other servers come and go, which is
/// no error of such a call, unless one goes while it commits.
pub fn call_drain(node: &Side, limit: u64, done: &Flag) -> Result<()> {
    let mut client = node.connect_superuser()?;
    let sql = format!("select deal_sync_err_rec({limit})");
    while !done.is_set() {
        let all_done = match client.query_one(&sql, &[]) {
            Ok(row) => row.get(0),
            Err(error)
                if error
                    .code()
                    .is_some_and(|code| code.code().starts_with("08")) =>
            {
                false
            }
            Err(error) => bail!("a drain of \"{}\": {}", node.db, describe(&error)),
        };
        if !all_done {
            sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// The rows of a query with one column, a line each, for people who ask why.
fn ask(node: &Side, sql: &str) -> String {
    let asked = node.connect_superuser().and_then(|mut client| {
        client.query(&format!("select one::text from ({sql}) q (one)"), &[])
    });
    match asked {
        Ok(rows) => rows
            .iter()
            .map(|row| {
                format!(
                    "\n  {}",
                    row.get::<_, Option<String>>(0).unwrap_or_default()
                )
            })
            .collect(),
        Err(error) => format!("\n  {}", describe(&error)),
    }
}

/// What a thread has returned.
pub fn join<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}
