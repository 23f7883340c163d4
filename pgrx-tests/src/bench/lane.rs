//! One contender's turn on its table: what it needs while it runs, and the proof afterwards that it
//! has done what was timed.

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use postgres::Client;

use super::contender::Contender;
use super::measure::{milliseconds, time};
use super::rig::{PATIENCE, Rig, pause};
use super::schema;
use super::shape::Shape;

/// Ended by [`Lane::end`], which leaves both tables empty. If it is dropped before, something has
/// failed, and nothing further is measured.
pub struct Lane<'a> {
    pub rig: &'a Rig,
    pub contender: Contender,
    pub shape: Shape,
    pub table: String,
    queued: i64,
}

/// Nothing waits to be sent by pg_rowsync.
const DRAINED: &str = "select not exists (select from sync_queue)
                          and not exists (select from sync_lost_session)";

impl<'a> Lane<'a> {
    pub fn start(rig: &'a Rig, contender: Contender, shape: Shape) -> Result<Lane<'a>> {
        if contender == Contender::Native {
            rig.subscribe()?;
        }
        let table = schema::table(shape, contender);
        Ok(Lane {
            rig,
            contender,
            shape,
            table,
            queued: queued(rig)?,
        })
    }

    /// A session whose commits do what the contender's do.
    pub fn session(&self) -> Result<Client> {
        let mut client = self.rig.local.connect()?;
        let value = self.contender.synchronous_commit();
        client.batch_execute(&format!("set synchronous_commit = {value}"))?;
        Ok(client)
    }

    /// Both tables vacuumed and analysed, and all that is dirty written, on either side.
    pub fn tidy(&self) -> Result<()> {
        let table = &self.table;
        self.rig.both(&format!("vacuum analyze {table}"))?;
        self.rig.here("vacuum analyze sync_queue")?;
        self.rig.here("vacuum analyze bench.recipe_queue")?;
        self.rig.both("checkpoint")
    }

    /// Two small transactions, so that connections are there and caches filled. How long the first
    /// one took the second time: what any transaction takes, whatever its rows.
    pub fn warm(&self, session: &mut Client) -> Result<f64> {
        let [write, delete] = self.shape.warm(&self.table);
        session.batch_execute(&write)?;
        session.batch_execute(&delete)?;
        let took = time(|| session.batch_execute(&write))?;
        session.batch_execute(&delete)?;
        Ok(took)
    }

    /// An error unless both sides are equal, and unless the contender has done it in the way that it
    /// is compared for. The worker of mode queue does its part now, that of Bucardo is
    /// waited for: the milliseconds that took.
    pub fn settle(&self) -> Result<Option<f64>> {
        let drained = match self.contender {
            Contender::None => return Ok(None),
            Contender::Queue => Some(self.catch_up()?),
            Contender::Bucardo => Some(self.await_equal()?),
            _ => None,
        };
        if self.contender.is_direct() {
            self.ensure_direct()?;
        }
        self.ensure_equal()?;
        Ok(drained)
    }

    /// In mode queue, until the next call of [`Lane::catch_up`], nobody drains: what is timed is what
    /// writers pay.
    pub fn hold(&self) -> Result<()> {
        if self.contender == Contender::Queue {
            self.rig.ask_here::<bool>("select stop_sync_worker()")?;
        }
        Ok(())
    }

    /// Waits until the worker has sent all that pg_rowsync has queued: the milliseconds that took.
    pub fn catch_up(&self) -> Result<f64> {
        let start = Instant::now();
        self.rig.ask_here::<bool>("select start_sync_worker()")?;
        self.rig.await_here("the queue is empty", DRAINED)?;
        Ok(milliseconds(start))
    }

    pub fn ensure_equal(&self) -> Result<()> {
        let sql = format!(
            "select concat(count(*), ' rows ', sum(hashtext(t.*::text)::bigint)) from {} t",
            self.table
        );
        let (here, there) = (
            self.rig.ask_here::<String>(&sql)?,
            self.rig.ask_there::<String>(&sql)?,
        );
        ensure!(
            here == there,
            "\"{}\": {here} here, {there} there",
            self.table
        );
        Ok(())
    }

    fn await_equal(&self) -> Result<f64> {
        let start = Instant::now();
        while let Err(different) = self.ensure_equal() {
            if start.elapsed() > PATIENCE {
                return Err(different);
            }
            pause(start);
        }
        Ok(milliseconds(start))
    }

    /// Nothing was queued that should have been sent.
    fn ensure_direct(&self) -> Result<()> {
        let failed: Option<String> = self
            .rig
            .ask_here("select max(query) from bench.recipe_queue")?;
        ensure!(
            failed.is_none(),
            "the recipe has queued: {}",
            failed.unwrap_or_default()
        );
        let queued = queued(self.rig)? - self.queued;
        if queued > 0 {
            let why: Option<String> = self
                .rig
                .ask_here("select max(last_error) from sync_status")?;
            bail!("{} has queued {queued} changes: {why:?}", self.contender);
        }
        Ok(())
    }

    /// Empties both tables.
    pub fn clear(&self) -> Result<()> {
        self.rig.both(&format!(
            "set session_replication_role = replica; truncate {}; reset session_replication_role",
            self.table
        ))
    }

    pub fn end(self) -> Result<()> {
        self.clear()?;
        if self.contender == Contender::Native {
            self.rig.unsubscribe()?;
        }
        Ok(())
    }
}

/// How many changes pg_rowsync has queued instead of sending them.
fn queued(rig: &Rig) -> Result<i64> {
    rig.ask_here("select coalesce(sum(queued), 0)::bigint from sync_counters()")
}
