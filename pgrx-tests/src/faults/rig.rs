//! Two clusters of their own with the fault proxy between them, set to notice failures within a
//! second, so that many of them fit into a minute.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use postgres::Client;

use crate::cluster::{Cluster, TEST_SETTINGS};
use crate::pooler::{IGNORE_OPTIONS, PoolMode, Pooler};
use crate::proxy::Proxy;
use crate::side::{Side, describe};

/// How long anything may take that has to happen by itself.
pub const MAX_WAIT: Duration = Duration::from_secs(40);

/// Longer than the delivery timeout of [`Rig::start`].
pub const PAST_TIMEOUT: Duration = Duration::from_millis(1200);

/// Short enough for many failures a minute, long enough for a loaded machine.
const QUICK: [(&str, &str); 6] = [
    ("pg_rowsync.connect_timeout", "1s"),
    ("pg_rowsync.delivery_timeout", "1s"),
    ("pg_rowsync.cancel_timeout", "500ms"),
    ("pg_rowsync.lock_timeout", "300ms"),
    // Sessions that update the same rows in different order find out soon.
    ("deadlock_timeout", "50ms"),
    ("max_connections", "60"),
];

/// What lets a worker replay the queue, and soon.
pub const WORKER: [(&str, &str); 3] = [
    ("shared_preload_libraries", "pg_rowsync"),
    ("pg_rowsync.retry_interval", "100ms"),
    ("pg_rowsync.max_retry_interval", "500ms"),
];

/// The trigger option of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Async,
    Queue,
    Sync,
    Atomic,
}

impl Mode {
    pub const ALL: [Mode; 4] = [Mode::Async, Mode::Queue, Mode::Sync, Mode::Atomic];

    /// Whether a delivery that fails does so to the transaction.
    pub fn is_strict(self) -> bool {
        matches!(self, Mode::Sync | Mode::Atomic)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Async => "async",
            Mode::Queue => "queue",
            Mode::Sync => "sync",
            Mode::Atomic => "atomic",
        })
    }
}

impl FromStr for Mode {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Mode> {
        let found = Mode::ALL.into_iter().find(|mode| mode.to_string() == name);
        found.with_context(|| format!("unknown mode \"{name}\""))
    }
}

/// Who replays the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// The background worker of a preloaded library.
    Worker,
    /// A session that calls `deal_sync_err_rec` again and again.
    Calls,
    /// Both, at once.
    Both,
}

impl Drain {
    pub fn has_worker(self) -> bool {
        self != Drain::Calls
    }

    pub fn has_calls(self) -> bool {
        self != Drain::Worker
    }
}

impl fmt::Display for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Drain::Worker => "worker",
            Drain::Calls => "calls",
            Drain::Both => "both",
        })
    }
}

impl FromStr for Drain {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Drain> {
        Ok(match name {
            "worker" => Drain::Worker,
            "calls" => Drain::Calls,
            "both" => Drain::Both,
            _ => bail!("unknown way to drain \"{name}\""),
        })
    }
}

/// A side that is sent to, and the proxy on the way.
pub struct Target {
    pub side: Side,
    pub proxy: Proxy,
}

/// The left side sends to the right one over server `dst`: through the proxy, and behind it through a pooler
/// if there is one.
pub struct Rig {
    pub left: Side,
    pub right: Side,
    pub proxy: Proxy,
    pub pooler: Option<Pooler>,
    /// Further ones that it sends the same to, over servers `dst2`, `dst3` and so on.
    pub others: Vec<Target>,
    pub mode: Mode,
    pub drain: Drain,
}

impl Rig {
    /// Without tables. `label` is a short plain lower-case identifier.
    pub fn start(label: &str, mode: Mode, drain: Drain) -> Result<Rig> {
        Self::start_behind(label, mode, drain, None, 1)
    }

    /// As `start`, with a pooler between the proxy and the right side, and with so many servers.
    pub fn start_behind(
        label: &str,
        mode: Mode,
        drain: Drain,
        pooler: Option<PoolMode>,
        servers: u32,
    ) -> Result<Rig> {
        let mut settings = [TEST_SETTINGS, &QUICK].concat();
        if drain.has_worker() {
            settings.extend(WORKER);
        }
        let name = format!("{label}_right");
        let other = thread::spawn(move || Cluster::start(&name));
        let left = Cluster::start_with(&format!("{label}_left"), &settings)?;
        let right = other
            .join()
            .map_err(|_| anyhow!("the right cluster panicked"))??;
        let left = Side::create(&Arc::new(left), "local")?;
        let right = Side::create(&Arc::new(right), "remote")?;
        let pooler = pooler
            .map(|mode| Pooler::start(&[&right], mode, &[IGNORE_OPTIONS]))
            .transpose()?;
        let behind = pooler.as_ref().map_or(right.cluster.port(), Pooler::port);
        let proxy = Proxy::start(behind)?;
        left.link(&right, proxy.port(), &server(1), &[])?;
        let other = |number: u32| {
            let cluster = Cluster::start(&format!("{label}_right{number}"))?;
            let side = Side::create(&Arc::new(cluster), "remote")?;
            let proxy = Proxy::start(side.cluster.port())?;
            left.link(&side, proxy.port(), &server(number), &[])?;
            anyhow::Ok(Target { side, proxy })
        };
        let others = (2..=servers).map(other).collect::<Result<_>>()?;
        Ok(Rig {
            left,
            right,
            proxy,
            pooler,
            others,
            mode,
            drain,
        })
    }

    /// A table on both sides whose changes on the left are sent.
    pub fn mirror(&self, table: &str, columns: &str) -> Result<()> {
        for side in std::iter::once(&self.left).chain(self.rights()) {
            side.connect()?
                .batch_execute(&format!("create table {table} ({columns})"))?;
        }
        self.attach(table)
    }

    /// Sends the left table to those of the same name on the other sides.
    pub fn attach(&self, table: &str) -> Result<()> {
        let mode = self.mode;
        for (number, side) in (1..).zip(self.rights()) {
            let server = server(number);
            let schema = &side.user;
            self.left.connect()?.batch_execute(&format!(
                r#"select attach_sync('{table}', '{server}', '{schema}.{table}',
                                      '{{"mode": "{mode}"}}')"#
            ))?;
        }
        Ok(())
    }

    /// All sides that are sent to.
    pub fn rights(&self) -> impl Iterator<Item = &Side> {
        std::iter::once(&self.right).chain(self.others.iter().map(|other| &other.side))
    }

    /// All proxies, in the order of [`Rig::rights`].
    pub fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        std::iter::once(&self.proxy).chain(self.others.iter().map(|other| &other.proxy))
    }

    /// Calls `deal_sync_err_rec` until told to stop, whatever becomes of it: the server it looks
    /// at, its own and its session come and go.
    pub fn call_drain(&self, limit: u32, stop: impl Fn() -> bool) {
        let mut session: Option<Client> = None;
        while !stop() {
            let client = match &mut session {
                Some(client) if !client.is_closed() => client,
                _ => match self.left.connect_superuser() {
                    Ok(client) => session.insert(client),
                    Err(_) => {
                        sleep(Duration::from_millis(20));
                        continue;
                    }
                },
            };
            let done = client.query_one(&format!("select deal_sync_err_rec({limit})"), &[]);
            if !done.is_ok_and(|row| row.get(0)) {
                sleep(Duration::from_millis(20));
            }
        }
    }

    /// Records and lost sessions on the left.
    pub fn backlog(&self, observer: &mut Client) -> Result<i64, postgres::Error> {
        let sql =
            "select (select count(*) from sync_queue) + (select count(*) from sync_lost_session)
                  + (select count(*) from sync_prepared_transaction)";
        Ok(observer.query_one(sql, &[])?.get(0))
    }

    /// Waits until nothing is left to replay, and says how long that took. With a worker only, no
    /// one lends it a hand.
    pub fn await_drained(&self) -> Result<Duration> {
        let start = Instant::now();
        let mut observer = self.left.connect_superuser()?;
        let mut others = self
            .rights()
            .map(Side::connect_superuser)
            .collect::<Result<Vec<_>, _>>()?;
        while self.backlog(&mut observer)? > 0
            || (self.mode == Mode::Atomic && has_prepared(&mut others)?)
        {
            if self.drain == Drain::Calls {
                let _ = observer.query_one("select deal_sync_err_rec(10000)", &[]);
                let _ = observer.query_one("select resolve_sync_prepared()", &[]);
            }
            if start.elapsed() > MAX_WAIT {
                bail!(
                    "the queue did not drain within {MAX_WAIT:?}: {}",
                    self.describe_queue()
                );
            }
            sleep(Duration::from_millis(10));
        }
        Ok(start.elapsed())
    }

    /// Waits until the sessions of clients that have left are gone on the other sides; those of drainers
    /// may stay.
    pub fn await_sessions_gone(&self, drainers: i64) -> Result<()> {
        self.rights()
            .try_for_each(|side| self.await_gone_from(side, drainers))
    }

    fn await_gone_from(&self, side: &Side, drainers: i64) -> Result<()> {
        let mut observer = side.connect_superuser()?;
        // A pooler keeps its own, idle.
        let and = if self.pooler.is_some() {
            "and state <> 'idle'"
        } else {
            ""
        };
        let sql = &format!(
            "select count(*) from pg_stat_activity where application_name = 'pg_rowsync' {and}"
        );
        let start = Instant::now();
        loop {
            let sessions: i64 = observer.query_one(sql.as_str(), &[])?.get(0);
            if sessions <= drainers {
                return Ok(());
            }
            ensure!(
                start.elapsed() < MAX_WAIT,
                "{sessions} sessions stay on the right, at most {drainers} were expected"
            );
            sleep(Duration::from_millis(10));
        }
    }

    /// A session of the left's superuser, as soon as there can be one.
    pub fn left_session(&self) -> Result<Client> {
        let start = Instant::now();
        loop {
            match self.left.connect_superuser() {
                Ok(client) => return Ok(client),
                Err(error) if start.elapsed() > MAX_WAIT => {
                    return Err(error).context("the left side does not come back");
                }
                Err(_) => sleep(Duration::from_millis(10)),
            }
        }
    }

    /// What the queue, its servers and the worker look like, for people who ask why.
    pub fn describe_queue(&self) -> String {
        let ask = |sql: &str| -> Result<String> {
            let row = self
                .left
                .connect_superuser()?
                .query_one(sql, &[])
                .map_err(|error| anyhow!("{}", describe(&error)))?;
            Ok(row
                .get::<_, Option<String>>(0)
                .unwrap_or_else(|| "none".to_owned()))
        };
        let parts = [
            (
                "status",
                "select string_agg(to_jsonb(s)::text, e'\\n') from sync_status s",
            ),
            (
                "oldest records",
                "select string_agg(to_jsonb(q)::text, e'\\n')
                   from (select * from sync_queue order by id limit 3) q",
            ),
            (
                "lost sessions",
                "select string_agg(to_jsonb(l)::text, e'\\n') from sync_lost_session l",
            ),
            (
                "prepared",
                "select string_agg(to_jsonb(p)::text, e'\n') from sync_prepared p",
            ),
            (
                "worker",
                "select string_agg(concat_ws(' ', pid, backend_type, wait_event, query), e'\\n')
                   from pg_stat_activity where backend_type like 'pg_rowsync%'",
            ),
        ];
        parts
            .into_iter()
            .map(|(name, sql)| match ask(sql) {
                Ok(text) => format!("\n  {name}: {text}"),
                Err(error) => format!("\n  {name}: {error:#}"),
            })
            .collect()
    }

    /// What the sessions of the left side are doing.
    pub fn describe_sessions(&self) -> String {
        let sql = "select coalesce(string_agg(concat_ws(' ', pid, backend_type, state,
                          wait_event_type, wait_event, now() - query_start, query), e'\\n'), '')
                     from pg_stat_activity where datname = current_database()";
        let asked = self
            .left
            .connect_superuser()
            .and_then(|mut one| one.query_one(sql, &[]));
        asked.map_or_else(|error| describe(&error), |row| row.get(0))
    }

    /// The last lines that the two servers have logged.
    pub fn describe_logs(&self) -> String {
        let end = |side: &Side| {
            let log = side.cluster.log();
            let lines: Vec<_> = log.lines().collect();
            lines[lines.len().saturating_sub(30)..].join("\n")
        };
        let right: String = self
            .rights()
            .map(|side| format!("\nright log:\n{}", end(side)))
            .collect();
        format!("\nleft log:\n{}{right}", end(&self.left))
    }
}

/// What the left side calls the server with this number, from 1 on.
fn server(number: u32) -> String {
    match number {
        1 => "dst".to_owned(),
        _ => format!("dst{number}"),
    }
}

/// Whether anything is prepared where these sessions are.
fn has_prepared(sessions: &mut [Client]) -> Result<bool> {
    let prepared = "select count(*) from pg_prepared_xacts where database = current_database()";
    for session in sessions {
        if session.query_one(prepared, &[])?.get::<_, i64>(0) > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}
