//! The scenario of the recipe that pg_rowsync replaces, step by step, on two masters: the demo prints
//! it and a test asserts it.
//!
//! Every step compares number and checksum of the rows of both sides, through sessions of its own.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postgres::Client;

use crate::side::{RECIPE_TABLES, Side};

/// Sum of the rows' hashes, and their number.
pub type Checksum = (i64, i64);

/// What is told as it happens.
pub enum Event<'a> {
    /// A step done, with what it left behind and how long the statement took.
    Step {
        name: &'a str,
        left: Checksum,
        right: Checksum,
        queued: i64,
        took: Duration,
    },
    /// How far a copy is, as `sync_progress` says.
    Progress {
        rows: i64,
        of: Option<i64>,
        bytes: i64,
        state: String,
    },
    /// A remark on the step before.
    Note(String),
}

/// Both sides need the recipe's tables and triggers, and all of it must start empty.
pub struct Scenario<'a> {
    pub left: &'a Side,
    pub right: &'a Side,
    /// The recipe has 10,000; at least 2,000.
    pub rows: i64,
}

/// What a step must leave behind: rows on either side, and records in the queue on the left.
struct Expect {
    left: i64,
    right: i64,
    queued: i64,
}

/// Rows per call of `deal_sync_err_rec`, as in the recipe.
const BATCH: i64 = 1000;

/// The longest that a copy may take.
const MAX_WAIT: Duration = Duration::from_secs(300);

impl Scenario<'_> {
    /// Runs it to the end or to the first step that does not leave what it should.
    pub fn run(&self, report: &mut dyn FnMut(Event)) -> Result<()> {
        let mut left = self.left.connect()?;
        let mut right = self.right.connect()?;
        let [left_table, right_table] = RECIPE_TABLES;
        self.statements(&mut left, left_table, "local", report)?;
        self.statements(&mut right, right_table, "remote", report)?;
        self.outage(&mut left, report)
    }

    /// Insert, update, delete and truncate on one side; the other must follow at once.
    fn statements(
        &self,
        client: &mut Client,
        table: &str,
        side: &str,
        report: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let deleted = BATCH - 1;
        let steps = [
            (
                format!("insert {} rows", self.rows),
                self.insert(table),
                self.rows,
            ),
            (
                "update all rows".into(),
                format!("update {table} set info = pk2"),
                self.rows,
            ),
            (
                format!("delete {deleted} rows"),
                format!("delete from {table} where pk1 < {BATCH}"),
                self.rows - deleted,
            ),
            ("truncate".into(), format!("truncate {table}"), 0),
        ];
        for (name, sql, rows) in steps {
            let expect = Expect {
                left: rows,
                right: rows,
                queued: 0,
            };
            self.step(&format!("{side}: {name}"), expect, report, || {
                Ok(client.batch_execute(&sql)?)
            })?;
        }
        Ok(())
    }

    /// The right side turns connections away; the left goes on, and catches up afterwards.
    fn outage(&self, left: &mut Client, report: &mut dyn FnMut(Event)) -> Result<()> {
        let rows = self.rows;
        let user = &self.right.user;
        let mut admin = self.left.connect_superuser()?;
        let mut remote_admin = self.right.connect_superuser()?;

        let empty = Expect {
            left: 0,
            right: 0,
            queued: 0,
        };
        self.step("remote: login revoked, sessions ended", empty, report, || {
            remote_admin.batch_execute(&format!("alter role {user} nologin"))?;
            let end =
                "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = $1";
            remote_admin.execute(end, &[user])?;
            Ok(())
        })?;

        let sql = self.insert(RECIPE_TABLES[0]);
        let queued = Expect {
            left: rows,
            right: 0,
            queued: rows,
        };
        let name = format!("local: insert {rows} rows, queued");
        self.step(&name, queued, report, || Ok(left.batch_execute(&sql)?))?;
        let why = "select sqlstate, message, count(*) from sync_err_rec group by 1, 2 order by 3 desc limit 1";
        let why = admin.query_one(why, &[])?;
        let (state, message): (Option<&str>, Option<&str>) = (why.get(0), why.get(1));
        let state = state.unwrap_or("?");
        let message = message.unwrap_or("?").trim_end();
        report(Event::Note(format!(
            "sync_err_rec: {} records, {state}: {message}",
            why.get::<_, i64>(2)
        )));

        let same = Expect {
            left: rows,
            right: 0,
            queued: rows,
        };
        self.step("remote: login restored", same, report, || {
            Ok(remote_admin.batch_execute(&format!("alter role {user} login"))?)
        })?;
        let first = Expect {
            left: rows,
            right: BATCH,
            queued: rows - BATCH,
        };
        let name = format!("local: deal_sync_err_rec({BATCH}), once");
        self.step(&name, first, report, || deal(&mut admin))?;
        let equal = Expect {
            left: rows,
            right: rows,
            queued: 0,
        };
        let name = format!("local: deal_sync_err_rec({BATCH}), until empty");
        self.step(&name, equal, report, || {
            for _ in 1..(rows + BATCH - 1) / BATCH {
                deal(&mut admin)?;
            }
            Ok(())
        })
    }

    /// A table with so many rows is attached on the local side, and copied while it is written.
    ///
    /// # Errors
    /// What either side reports, a copy that fails or takes minutes, and sides that differ.
    pub fn copy(&self, rows: i64, report: &mut dyn FnMut(Event)) -> Result<()> {
        let columns = "id bigint primary key, info text, crt_time timestamptz";
        for side in [self.left, self.right] {
            side.connect()?
                .batch_execute(&format!("create table copied ({columns})"))?;
        }
        let mut client = self.left.connect()?;
        client.batch_execute(&format!(
            "insert into copied select i, md5(i::text), now() from generate_series(1, {rows}) i;
             analyze copied"
        ))?;
        let mut admin = self.left.connect_superuser()?;
        admin.batch_execute("select start_sync_worker()")?;
        let start = Instant::now();
        client.batch_execute(&format!(
            "select attach_sync('copied', 'dst', '{}.copied', copy_data => true)",
            self.right.user
        ))?;
        for at in 1.. {
            client.batch_execute(&format!(
                "update copied set info = 'changed' where id = {at};
                 delete from copied where id = {rows} - {at};
                 insert into copied values ({rows} + {at}, 'new', now())"
            ))?;
            let sql = "select rows_done, rows_total, bytes_done, state, message from sync_progress";
            let row = admin.query_one(sql, &[])?;
            let (state, message): (String, Option<String>) = (row.get(3), row.get(4));
            let done = row.get(0);
            let of = row.get(1);
            let bytes = row.get(2);
            report(Event::Progress {
                rows: done,
                of,
                bytes,
                state: state.clone(),
            });
            if state == "done" {
                break;
            }
            ensure!(
                state != "failed",
                "the copy has failed: {}",
                message.unwrap_or_default()
            );
            ensure!(
                start.elapsed() < MAX_WAIT,
                "the copy takes too long: {state}"
            );
            sleep(Duration::from_millis(20));
        }
        let took = start.elapsed();
        let arrived = "select wait_sync('dst', timeout => '1 min')";
        ensure!(
            admin.query_one(arrived, &[])?.get::<_, bool>(0),
            "not everything has arrived"
        );
        let left = self.left.checksum("copied")?;
        let right = self.right.checksum("copied")?;
        let queued = self.left.queued()?;
        let name = format!("local: {rows} rows copied while they are written");
        report(Event::Step {
            name: &name,
            left,
            right,
            queued,
            took,
        });
        ensure!(left == right, "after the copy both sides differ");
        Ok(())
    }

    fn insert(&self, table: &str) -> String {
        format!(
            "insert into {table} select generate_series(1, {}), 'digoal'||random(), 'test'||random(),
             now(), clock_timestamp()",
            self.rows
        )
    }

    fn step(
        &self,
        name: &str,
        expect: Expect,
        report: &mut dyn FnMut(Event),
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let start = Instant::now();
        work().with_context(|| format!("step \"{name}\" failed"))?;
        let took = start.elapsed();
        let left = self.left.checksum(RECIPE_TABLES[0])?;
        let right = self.right.checksum(RECIPE_TABLES[1])?;
        let queued = self.left.queued()? + self.right.queued()?;
        report(Event::Step {
            name,
            left,
            right,
            queued,
            took,
        });
        for (what, found, expected) in [
            ("rows on the local side", left.1, expect.left),
            ("rows on the remote side", right.1, expect.right),
            ("changes in the queue", queued, expect.queued),
        ] {
            ensure!(
                found == expected,
                "step \"{name}\": {found} {what}, expected {expected}"
            );
        }
        let comparable = expect.left == expect.right;
        ensure!(
            !comparable || left == right,
            "step \"{name}\": checksums differ"
        );
        Ok(())
    }
}

fn deal(admin: &mut Client) -> Result<()> {
    let done: bool = admin
        .query_one(&format!("select deal_sync_err_rec({BATCH})"), &[])?
        .get(0);
    ensure!(done, "deal_sync_err_rec({BATCH}) returned false");
    Ok(())
}
