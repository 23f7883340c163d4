//! Two clusters with fsync on and a proxy in front of each, on which all contenders are set up.

use std::cell::RefCell;
use std::fs;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postgres::types::FromSqlOwned;
use postgres::{Client, Config, NoTls};

use super::bucardo;
use super::contender::Contender;
use super::schema::{self, SUBSCRIPTION};
use crate::cluster::Cluster;
use crate::pooler::{IGNORE_OPTIONS, PoolMode, Pooler};
use crate::proxy::{Direction, Proxy};
use crate::reaper;
use crate::setup;
use crate::side::Side;

/// What differs from the defaults, on both clusters and for all contenders. Checkpoints are made
/// between the runs, none within one.
pub const SETTINGS: [(&str, &str); 8] = [
    ("shared_buffers", "128MB"),
    ("wal_level", "logical"),
    ("max_wal_size", "16GB"),
    ("checkpoint_timeout", "1h"),
    ("shared_preload_libraries", "pg_rowsync"),
    ("synchronous_standby_names", SUBSCRIPTION),
    ("synchronous_commit", "local"),
    ("max_prepared_transactions", "64"),
];

/// How long anything may take that is not timed, or that nothing hinders.
pub const PATIENCE: Duration = Duration::from_secs(600);

pub struct Rig {
    pub local: Side,
    pub remote: Side,
    /// In front of the remote cluster, for those that connect from here to there.
    to_remote: Proxy,
    /// In front of the local one, for the subscriber, which connects from there to here.
    to_local: Proxy,
    /// In front of the remote one, from when it is asked for.
    pooler: RefCell<Option<Pooler>>,
    via: RefCell<Via>,
    here: RefCell<Client>,
    there: RefCell<Client>,
}

/// How the two clusters reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Direct,
    /// So long for a round trip.
    Proxy(Duration),
    /// PgBouncer in transaction mode, to the remote cluster only.
    Pooler,
}

/// Between two looks at what has gone on since then: soon at first, later seldom, since a look at a
/// long queue takes its part of the processors.
pub fn pause(since: Instant) {
    sleep((since.elapsed() / 50).max(Duration::from_millis(2)));
}

/// Makes every flush of a server take so much longer.
fn slow_down(cluster: &Cluster, delay: Duration) -> Result<()> {
    let status = setup::cargo()
        .args(["build", "--quiet", "--package", "slow-flush"])
        .status()?;
    ensure!(status.success(), "it could not be built");
    let library = cluster.dir().join("slow_flush.so");
    fs::copy(setup::target().join("debug/libslow_flush.so"), &library)?;
    reaper::hand_over(&library)?;
    let library = library
        .to_str()
        .context("the cluster's directory is not UTF-8")?;
    let delay = delay.as_micros().to_string();
    cluster.set_environment(&[("LD_PRELOAD", library), ("SLOW_FLUSH_MICROSECONDS", &delay)]);
    cluster.restart()
}

impl Rig {
    /// `slower`: by how much every flush of both servers takes longer than the disk.
    pub fn start(contenders: &[Contender], slower: Duration) -> Result<Rig> {
        let cluster = |name| {
            let cluster = Cluster::start_with(name, &SETTINGS)?;
            if !slower.is_zero() {
                slow_down(&cluster, slower).context("could not make flushes slower")?;
            }
            anyhow::Ok(Arc::new(cluster))
        };
        let local = Side::create(&cluster("local")?, "local")?;
        let remote = Side::create(&cluster("remote")?, "remote")?;
        schema::create(&local, &remote, contenders)?;
        if contenders.contains(&Contender::Bucardo) {
            bucardo::start(&local, &remote).context("could not set Bucardo up")?;
        }
        let rig = Rig {
            to_remote: Proxy::start(remote.cluster.port())?,
            to_local: Proxy::start(local.cluster.port())?,
            pooler: RefCell::new(None),
            via: RefCell::new(Via::Direct),
            here: RefCell::new(local.connect_superuser()?),
            there: RefCell::new(remote.connect_superuser()?),
            local,
            remote,
        };
        Ok(rig)
    }

    /// From now on new connections take that way, which a new delay does not change.
    pub fn go(&self, via: Via) -> Result<()> {
        match via {
            Via::Direct => (),
            Via::Proxy(round_trip) => {
                self.to_remote.set_delay(round_trip / 2);
                self.to_local.set_delay(round_trip / 2);
            }
            Via::Pooler => {
                let mut pooler = self.pooler.borrow_mut();
                if pooler.is_none() {
                    let settings = [IGNORE_OPTIONS];
                    let started = Pooler::start(&[&self.remote], PoolMode::Transaction, &settings)?;
                    *pooler = Some(started);
                }
            }
        }
        let before = self.port_there()?;
        self.via.replace(via);
        if before != self.port_there()? {
            self.here(&schema::reach(self.port_there()?))?;
        }
        Ok(())
    }

    /// The port by which the remote cluster is reached.
    pub fn port_there(&self) -> Result<u16> {
        Ok(match *self.via.borrow() {
            Via::Direct => self.remote.cluster.port(),
            Via::Proxy(_) => self.to_remote.port(),
            Via::Pooler => {
                let pooler = self.pooler.borrow();
                pooler.as_ref().context("there is no pooler yet")?.port()
            }
        })
    }

    fn port_here(&self) -> u16 {
        match *self.via.borrow() {
            Via::Direct | Via::Pooler => self.local.cluster.port(),
            Via::Proxy(_) => self.to_local.port(),
        }
    }

    /// A session there, on the way that the others take.
    pub fn visit(&self) -> Result<Client> {
        let mut config = Config::new();
        config
            .host("127.0.0.1")
            .port(self.port_there()?)
            .dbname(&self.remote.db);
        config
            .user(&self.remote.user)
            .password(&self.remote.password);
        Ok(config.connect(NoTls)?)
    }

    /// Until [`Rig::accept`], the proxy's port refuses connections, and there are none.
    pub fn refuse(&self) {
        self.to_remote.refuse();
        self.to_remote.cut();
    }

    pub fn accept(&self) -> Result<()> {
        self.to_remote.accept()
    }

    /// Bytes that have gone from here to there by way of the proxies.
    pub fn bytes_sent(&self) -> u64 {
        self.to_remote.bytes(Direction::ToServer) + self.to_local.bytes(Direction::ToClient)
    }

    /// Bytes that have gone to the remote side and back by way of the proxy.
    pub fn bytes_exchanged(&self) -> u64 {
        self.to_remote.bytes(Direction::ToServer) + self.to_remote.bytes(Direction::ToClient)
    }

    /// As superuser, on the local side.
    pub fn here(&self, sql: &str) -> Result<()> {
        self.here
            .borrow_mut()
            .batch_execute(sql)
            .with_context(|| sql.to_owned())
    }

    /// As superuser, on the remote side.
    pub fn there(&self, sql: &str) -> Result<()> {
        self.there
            .borrow_mut()
            .batch_execute(sql)
            .with_context(|| sql.to_owned())
    }

    pub fn ask_here<T: FromSqlOwned>(&self, sql: &str) -> Result<T> {
        let row = self.here.borrow_mut().query_one(sql, &[]);
        Ok(row.with_context(|| sql.to_owned())?.try_get(0)?)
    }

    pub fn ask_there<T: FromSqlOwned>(&self, sql: &str) -> Result<T> {
        let row = self.there.borrow_mut().query_one(sql, &[]);
        Ok(row.with_context(|| sql.to_owned())?.try_get(0)?)
    }

    /// A statement on both sides as superuser, outside of what is timed.
    pub fn both(&self, sql: &str) -> Result<()> {
        self.here(sql)?;
        self.there(sql)
    }

    pub fn await_here(&self, what: &str, condition: &str) -> Result<()> {
        let start = Instant::now();
        while !self.ask_here::<bool>(condition)? {
            ensure!(start.elapsed() < PATIENCE, "gave up waiting: {what}");
            pause(start);
        }
        Ok(())
    }

    /// Logical replication runs only while it is its turn: it reads what all others write.
    pub fn subscribe(&self) -> Result<()> {
        let port = self.port_here();
        self.there(&format!(
            "create subscription {SUBSCRIPTION}
               connection 'host=127.0.0.1 port={port} dbname={} user=postgres password={}'
               publication bench with (copy_data = false, synchronous_commit = 'local')",
            self.local.db,
            self.local.cluster.superuser_password()
        ))?;
        self.await_here(
            "the subscription is in step",
            &format!(
                "select exists (select from pg_stat_replication
                   where application_name = '{SUBSCRIPTION}' and state = 'streaming'
                     and sync_state = 'sync')"
            ),
        )
    }

    pub fn unsubscribe(&self) -> Result<()> {
        self.there(&format!("drop subscription {SUBSCRIPTION}"))
    }
}
