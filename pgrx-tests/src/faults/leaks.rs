//! One backend that runs very many transactions, a fifth of which fail: what it holds must not grow.

use std::fmt;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use postgres::Client;

use super::rig::{Drain, Mode, Rig};
use crate::cluster::free_port;

/// What a backend holds.
#[derive(Clone, Copy, Debug)]
pub struct Holdings {
    pub transactions: u64,
    /// VmRSS, less the shared memory in it: that grows with the pages of the buffer cache touched.
    pub resident_kb: i64,
    /// Of it, what is not backed by a file.
    pub anonymous_kb: i64,
    /// The sum of pg_backend_memory_contexts.
    pub contexts_kb: i64,
    /// Open files, except those of tables and of the log, which the server keeps as it sees fit.
    pub descriptors: usize,
    /// Sessions of it on the right.
    pub sessions: i64,
}

/// How much more there may be in the end than at a tenth of the way.
pub const TOLERANCE: Holdings = Holdings {
    transactions: 0,
    // The kernel accounts for pages in batches, and malloc's heap breathes.
    resident_kb: 1024,
    anonymous_kb: 768,
    // A statement's plan is kept for good once it has been planned five times, which happens late for
    // those that only run when a table was analyzed.
    contexts_kb: 512,
    descriptors: 0,
    sessions: 0,
};

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>8} transactions: resident {:>7} kB, anonymous {:>7} kB, contexts {:>6} kB, \
             {:>3} descriptors, {} remote sessions",
            self.transactions,
            self.resident_kb,
            self.anonymous_kb,
            self.contexts_kb,
            self.descriptors,
            self.sessions
        )
    }
}

/// Runs that many transactions and says at each tenth what the backend holds.
///
/// # Errors
/// A transaction that ends otherwise than it should, or growth beyond [`TOLERANCE`].
pub fn run(transactions: u64, say: &mut dyn FnMut(&Holdings)) -> Result<Vec<Holdings>> {
    let rig = Rig::start("leaks", Mode::Sync, Drain::Calls)?;
    rig.mirror("t", "id int primary key, v int, filler text")?;
    rig.right
        .connect()?
        .batch_execute("alter table t add constraint t_v check (v >= 0)")?;
    // Nobody listens there, so the transaction fails at once.
    rig.left.link(&rig.right, free_port()?, "nowhere", &[])?;
    rig.left.connect()?.batch_execute(
        r#"create table lost (id int primary key, v int);
           select attach_sync('lost', 'nowhere', options => '{"mode": "sync"}')"#,
    )?;
    let mut client = rig.left.connect_superuser()?;
    client.batch_execute(&format!(
        "set search_path = {}, public; set pg_rowsync.buffer_size = '64kB';
         insert into t select g, 0, '' from generate_series(0, 99) g",
        rig.left.user
    ))?;
    let pid: i32 = client.query_one("select pg_backend_pid()", &[])?.get(0);
    let mut observer = rig.right.connect_superuser()?;

    let mut samples: Vec<Holdings> = Vec::new();
    let tenth = (transactions / 10).max(1);
    for n in 1..=transactions {
        transaction(&mut client, n).with_context(|| format!("transaction {n}"))?;
        if n % tenth == 0 {
            let holdings = look(&mut client, &mut observer, pid, n)?;
            say(&holdings);
            samples.push(holdings);
        }
    }
    let left = rig.left.checksum("t")?;
    let right = rig.right.checksum("t")?;
    ensure!(
        left == right,
        "the sides differ: left {left:?}, right {right:?}"
    );
    judge(&samples)?;
    Ok(samples)
}

fn judge(samples: &[Holdings]) -> Result<()> {
    let [first, .., last] = samples else {
        bail!("too few transactions to compare")
    };
    let limits = TOLERANCE;
    let grown = [
        (
            "resident memory",
            last.resident_kb - first.resident_kb,
            limits.resident_kb,
        ),
        (
            "anonymous memory",
            last.anonymous_kb - first.anonymous_kb,
            limits.anonymous_kb,
        ),
        (
            "memory contexts",
            last.contexts_kb - first.contexts_kb,
            limits.contexts_kb,
        ),
        (
            "descriptors",
            last.descriptors as i64 - first.descriptors as i64,
            limits.descriptors as i64,
        ),
        (
            "remote sessions",
            last.sessions - first.sessions,
            limits.sessions,
        ),
    ];
    for (what, growth, limit) in grown {
        ensure!(
            growth <= limit,
            "{what} grew by {growth}, allowed is {limit}:\n{first}\n{last}"
        );
    }
    Ok(())
}

/// Of twenty, two break a constraint on the right, one is rolled back or fails here, and one finds
/// nobody; the others are of every kind.
fn transaction(client: &mut Client, n: u64) -> Result<()> {
    let id = n % 100;
    let v = n % 1000;
    let update = format!("update t set v = {v} where id = {id}");
    // More than the buffer: goes through a temporary file.
    let large = format!("filler = repeat('{}', 4000)", n % 10);
    let (sql, expected) = match n % 20 {
        7 if n % 500 == 7 => (format!("update t set {large}"), None),
        10 if n % 500 == 10 => (format!("update t set v = -{n}, {large}"), Some("23514")),
        0 | 10 => (
            format!("update t set v = -{n} where id = {id}"),
            Some("23514"),
        ),
        5 if n % 40 == 5 => (format!("begin; {update}; rollback"), None),
        5 => (
            format!("{update}; insert into t values ({id}, 0, '')"),
            Some("23505"),
        ),
        15 => (format!("insert into lost values ({n}, 1)"), Some("08001")),
        1 => (
            format!("begin; {update}; savepoint s; delete from t; rollback to s; commit"),
            None,
        ),
        2 => (
            format!("update t set v = {v} where id between {id} and {id} + 20"),
            None,
        ),
        3 => (
            format!("delete from t where id = {id}; insert into t values ({id}, {v}, '')"),
            None,
        ),
        4 => (
            format!("update t set filler = repeat('x', {v}) where id = {id}"),
            None,
        ),
        _ => (update, None),
    };
    let start = Instant::now();
    let result = client.batch_execute(&sql);
    let code = result
        .as_ref()
        .err()
        .and_then(|error| error.code())
        .map(|code| code.code());
    if code != expected || (expected.is_none() && result.is_err()) {
        bail!(
            "expected {expected:?} of \"{sql}\", but: {result:?} ({:?})",
            start.elapsed()
        );
    }
    Ok(())
}

fn look(client: &mut Client, observer: &mut Client, pid: i32, n: u64) -> Result<Holdings> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Result<i64> {
        let line = status.lines().find(|line| line.starts_with(name));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(number
            .with_context(|| format!("no {name} of the backend"))?
            .parse()?)
    };
    let contexts = "select sum(total_bytes)::bigint / 1024 from pg_backend_memory_contexts";
    let sessions = "select count(*) from pg_stat_activity where application_name = 'pg_rowsync'";
    Ok(Holdings {
        transactions: n,
        resident_kb: field("VmRSS:")? - field("RssShmem:")?,
        anonymous_kb: field("RssAnon:")?,
        contexts_kb: client.query_one(contexts, &[])?.get(0),
        descriptors: descriptors(pid)?,
        sessions: observer.query_one(sessions, &[])?.get(0),
    })
}

fn descriptors(pid: i32) -> Result<usize> {
    let of_server = |path: &str| {
        ["/base/", "/global/", "/pg_wal/", "/pg_xact/"]
            .iter()
            .any(|dir| path.contains(dir))
            && !path.contains("pgsql_tmp")
    };
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|path| !of_server(&path.to_string_lossy()))
        .count())
}
