//! Sessions that write a few rows again and again, and remember what became of each transaction.
//!
//! Transactions carry a tag: a row of table `tx` that names the keys of `t` they may touch. A tag
//! travels with the changes, so on either side it is there exactly when they are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use postgres::Client;

use super::rig::{MAX_WAIT, Mode, Rig};
use crate::rng::Rng;
use crate::side::describe;

/// The tables that [`Writer`] writes.
pub const TABLES: [(&str, &str); 2] = [
    ("t", "id int primary key, v text not null"),
    ("tx", "tag bigint primary key, keys int[]"),
];

/// Keys are 0 to this, less one: so few that sessions meet all the time.
const KEYS: u64 = 12;

/// A commit that takes longer is worth counting.
const SLOW: Duration = Duration::from_millis(500);

/// What a fault may do to the sessions of the left side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Nothing: no application may notice anything but a slow commit.
    Nothing,
    /// Statements are cancelled.
    Cancel,
    /// Sessions end.
    Disconnect,
}

/// What a writer, or several together, came to.
#[derive(Default)]
pub struct Tally {
    pub committed: u64,
    /// Rolled back, by choice or by an error that the fault allows.
    pub failed: u64,
    /// Tags of transactions that were told they are committed.
    pub promised: BTreeSet<i64>,
    /// Tags of transactions of which nobody was told what became of them.
    pub unknown: BTreeSet<i64>,
    pub slow: u64,
    pub slowest: Duration,
    /// How often each SQLSTATE was seen.
    pub errors: BTreeMap<String, u64>,
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        self.committed += other.committed;
        self.failed += other.failed;
        self.promised.extend(other.promised);
        self.unknown.extend(other.unknown);
        self.slow += other.slow;
        self.slowest = self.slowest.max(other.slowest);
        for (code, times) in other.errors {
            *self.errors.entry(code).or_default() += times;
        }
    }
}

/// Where writers and the fault see each other.
pub struct Stage {
    pub touch: Touch,
    pub stop: AtomicBool,
    /// The process that serves each writer, 0 while there is none.
    pub backends: Vec<AtomicI32>,
    /// Gives out tags.
    pub tags: AtomicI64,
    /// Whether anything was committed yet.
    pub begun: AtomicBool,
}

impl Stage {
    pub fn new(touch: Touch, writers: usize) -> Stage {
        let backends = (0..writers).map(|_| AtomicI32::new(0)).collect();
        let stop = AtomicBool::new(false);
        let begun = AtomicBool::new(false);
        Stage {
            touch,
            stop,
            backends,
            tags: AtomicI64::new(0),
            begun,
        }
    }

    pub fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// One of the writers.
pub struct Writer<'a> {
    rig: &'a Rig,
    stage: &'a Stage,
    number: usize,
    rng: Rng,
    tally: Tally,
}

/// What came of a transaction.
enum Outcome {
    Committed,
    RolledBack,
    Unknown,
}

struct Transaction {
    statements: Vec<String>,
    tag: Option<i64>,
    commit: bool,
}

impl<'a> Writer<'a> {
    pub fn new(rig: &'a Rig, stage: &'a Stage, number: usize, rng: Rng) -> Writer<'a> {
        Writer {
            rig,
            stage,
            number,
            rng,
            tally: Tally::default(),
        }
    }

    /// Writes until the stage is over; an error when an application would have seen what it must
    /// not see.
    pub fn run(mut self) -> Result<Tally> {
        let mut session: Option<Client> = None;
        while !self.stage.is_over() {
            let mut client = match session.take() {
                Some(client) => client,
                None => match self.connect()? {
                    Some(client) => client,
                    None => break,
                },
            };
            let transaction = self.make();
            match self.play(&mut client, &transaction)? {
                Outcome::Committed => {
                    self.tally.committed += 1;
                    self.stage.begun.store(true, Ordering::Relaxed);
                    self.tally.promised.extend(transaction.tag);
                }
                Outcome::RolledBack => self.tally.failed += 1,
                Outcome::Unknown => self.tally.unknown.extend(transaction.tag),
            }
            if client.is_closed() {
                self.stage.backends[self.number].store(0, Ordering::Relaxed)
            } else {
                session = Some(client)
            }
            self.rng.pause(0, 3);
        }
        Ok(self.tally)
    }

    /// None when the stage is over first.
    fn connect(&self) -> Result<Option<Client>> {
        let start = Instant::now();
        while !self.stage.is_over() {
            let tried = self.rig.left.connect().and_then(|mut client| {
                let pid: i32 = client.query_one("select pg_backend_pid()", &[])?.get(0);
                Ok((client, pid))
            });
            match tried {
                Ok((client, pid)) => {
                    self.stage.backends[self.number].store(pid, Ordering::Relaxed);
                    return Ok(Some(client));
                }
                Err(error) if self.stage.touch == Touch::Nothing || start.elapsed() > MAX_WAIT => {
                    bail!(
                        "writer {} found no session: {}",
                        self.number,
                        describe(&error)
                    )
                }
                Err(_) => sleep(Duration::from_millis(20)),
            }
        }
        Ok(None)
    }

    fn make(&mut self) -> Transaction {
        let tag = self.stage.tags.fetch_add(1, Ordering::Relaxed);
        let rng = &mut self.rng;
        let mut keys = BTreeSet::new();
        let mut statements: Vec<String> = (0..=rng.roll(4))
            .map(|_| {
                let sql = statement(rng, tag, &mut keys);
                match rng.roll(6) {
                    0 => format!("savepoint s; {sql}; rollback to s"),
                    1 => format!("savepoint s; {sql}; release s"),
                    _ => sql,
                }
            })
            .collect();
        // Without a tag nobody can tell a transaction that only the other side has. Where there must
        // be none, most go without: a tag that is there already stops a late transaction, which then
        // does no harm that could be seen.
        let strict = self.rig.mode == Mode::Queue
            || (self.rig.mode == Mode::Async && self.stage.touch == Touch::Nothing);
        let tagged = !(strict && rng.chance(60));
        if tagged {
            let keys: Vec<String> = keys.iter().map(u64::to_string).collect();
            let sql = format!("insert into tx values ({tag}, '{{{}}}')", keys.join(","));
            let at = rng.roll(statements.len() as u64 + 1) as usize;
            statements.insert(at, sql);
        }
        Transaction {
            statements,
            tag: tagged.then_some(tag),
            commit: !rng.chance(12),
        }
    }

    fn play(&mut self, client: &mut Client, transaction: &Transaction) -> Result<Outcome> {
        let level = *self.rng.pick(&["read committed", "repeatable read"]);
        let begin = format!("begin isolation level {level}");
        for sql in std::iter::once(&begin).chain(&transaction.statements) {
            if let Err(error) = client.batch_execute(sql) {
                self.judge(&error, false)?;
                return self.end(client);
            }
        }
        if !transaction.commit {
            return self.end(client);
        }
        let start = Instant::now();
        let result = client.batch_execute("commit");
        let took = start.elapsed();
        self.tally.slowest = self.tally.slowest.max(took);
        self.tally.slow += u64::from(took > SLOW);
        let Err(error) = result else {
            return Ok(Outcome::Committed);
        };
        self.judge(&error, true)?;
        // What a session that ended had already committed, only a look can tell. A `sync` commit
        // that never heard from the other side says so itself.
        let in_doubt = code(&error) == "08007";
        if client.is_closed() || in_doubt {
            Ok(Outcome::Unknown)
        } else {
            self.end(client)
        }
    }

    fn end(&mut self, client: &mut Client) -> Result<Outcome> {
        if !client.is_closed()
            && let Err(error) = client.batch_execute("rollback")
        {
            self.judge(&error, false)?;
            // Cancelled instead of rolled back: a new session is the simplest way out.
            if !client.is_closed() {
                client
                    .batch_execute("rollback")
                    .or_else(|error| self.judge(&error, false))?;
            }
        }
        Ok(Outcome::RolledBack)
    }

    /// Whether an application may see this error now.
    fn judge(&mut self, error: &postgres::Error, at_commit: bool) -> Result<()> {
        let code = code(error);
        *self.tally.errors.entry(code.clone()).or_default() += 1;
        // Sessions that write the same rows: serialization failures, deadlocks, taken keys.
        let own = ["40001", "40P01", "23505"].contains(&code.as_str());
        let mode = self.rig.mode;
        let waits = match mode {
            // What is prepared and cannot be finished keeps newer changes of its rows waiting.
            Mode::Atomic => ["55000", "55006"].contains(&code.as_str()),
            // A pooler may still hand a delivery that was lost to a backend there.
            _ => self.rig.pooler.is_some() && code == "55006",
        };
        let remote = at_commit && mode.is_strict() && (waits || is_transient(&code));
        let allowed = match self.stage.touch {
            Touch::Nothing => false,
            Touch::Cancel => code == "57014",
            // Without a code: the connection went away without a word.
            Touch::Disconnect => code.is_empty() || code.starts_with("57P"),
        };
        if own || remote || allowed {
            return Ok(());
        }
        let what = if at_commit { "COMMIT" } else { "a statement" };
        bail!(
            "writer {} saw {what} fail: {}",
            self.number,
            describe(error)
        )
    }
}

/// The SQLSTATE, or nothing when the server did not say any.
fn code(error: &postgres::Error) -> String {
    error
        .code()
        .map(|code| code.code().to_owned())
        .unwrap_or_default()
}

/// What a remote failure may make of a commit in mode `sync`: connections, resources, locks, times
/// and shutdowns, never the change itself.
fn is_transient(code: &str) -> bool {
    ["08", "53", "57", "40"]
        .iter()
        .any(|class| code.starts_with(class))
        || code == "55P03"
}

/// A random statement; adds the keys that it may touch.
fn statement(rng: &mut Rng, tag: i64, keys: &mut BTreeSet<u64>) -> String {
    let id = rng.roll(KEYS);
    let other = rng.roll(KEYS);
    let low = id.min(other);
    let high = id.max(other);
    // Most rows are small; some make a delivery long enough to be cut in its middle.
    let filler = *rng.pick(&[0, 0, 0, 0, 100, 100, 3000]);
    let value = format!("'{tag}.{}' || repeat('x', {filler})", rng.roll(1000));
    let kind = rng.roll(9);
    match kind {
        3 | 6 | 8 => keys.extend(low..=high),
        _ => keys.extend([id, other]),
    }
    match kind {
        0 | 1 => format!("insert into t values ({id}, {value}) on conflict (id) do nothing"),
        2 => format!("update t set v = {value} where id = {id}"),
        3 => format!("update t set v = {value} || id where id between {low} and {high}"),
        4 => format!(
            "update t set id = {other} where id = {id}
               and not exists (select from t where id = {other})"
        ),
        5 => format!("delete from t where id = {id}"),
        6 => format!(
            "delete from t where id between {low} and {high} and id % 2 = {}",
            tag % 2
        ),
        7 => format!(
            "insert into t values ({id}, {value}) on conflict (id) do update set v = excluded.v"
        ),
        _ => format!(
            "insert into t select g, {value} from generate_series({low}, {high}) g
               on conflict (id) do update set v = excluded.v || t.id"
        ),
    }
}
