//! Clients that write random rows. None may see an error, unless clients of its own master have caused
//! it.
//!
//! Sessions of one master do not deadlock among themselves: a transaction takes the keys that it writes
//! in ascending order, and none but these.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use postgres::{Client, SimpleQueryMessage};

use super::mesh::Mesh;
use super::tables::{TABLES, Table};
use crate::rng::Rng;
use crate::side::describe;

/// What a writer came to.
#[derive(Default)]
pub struct Tally {
    pub committed: u64,
    /// Rows written by transactions that were committed.
    pub changes: u64,
    pub slowest: Duration,
    pub log: Vec<Entry>,
}

/// A transaction that was committed.
pub struct Entry {
    master: usize,
    client: usize,
    /// Since the load began: when it did, and when the client heard of its commit.
    begun: Duration,
    pub committed: Duration,
    /// The keys that it named, with their tables.
    pub keys: BTreeSet<(&'static str, u64)>,
    statements: Vec<String>,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry {
            master,
            client,
            begun,
            committed,
            statements,
            ..
        } = self;
        write!(
            f,
            "{:.3}-{:.3} s, client {client} of master {master}: {}",
            begun.as_secs_f64(),
            committed.as_secs_f64(),
            statements.join("; ")
        )
    }
}

/// What a transaction is to do.
#[derive(Default)]
struct Transaction {
    keys: BTreeSet<(&'static str, u64)>,
    statements: Vec<String>,
}

pub struct Writer<'a> {
    mesh: &'a Mesh,
    round: u64,
    number: usize,
    rng: Rng,
    /// How many values it has made in the round.
    values: u64,
    tally: Tally,
}

/// What became of a statement.
enum Outcome {
    Wrote(u64),
    /// A client of the same master was quicker to take the key.
    Taken,
}

impl<'a> Writer<'a> {
    /// `number` counts the writers of all masters.
    pub fn new(mesh: &'a Mesh, round: u64, number: usize, rng: Rng) -> Writer<'a> {
        Writer {
            mesh,
            round,
            number,
            rng,
            values: 0,
            tally: Tally::default(),
        }
    }

    pub fn run(mut self, end: Instant) -> Result<Tally> {
        let home = self.mesh.home(self.number);
        let mut client = self.mesh.nodes[home].connect()?;
        let start = Instant::now();
        self.rng.pause(0, 300);
        while Instant::now() < end {
            let transaction = self.make();
            self.play(&mut client, transaction, start)?;
            // In a rhythm of all clients: at first calm, so that commits deliver themselves. While
            // they hurry, everything is queued behind deliveries that waited too long for a row.
            let calm = (start.elapsed().as_millis() / 500).is_multiple_of(2);
            self.rng.pause(0, if calm { 500 } else { 20 });
        }
        Ok(self.tally)
    }

    fn play(
        &mut self,
        client: &mut Client,
        transaction: Transaction,
        start: Instant,
    ) -> Result<()> {
        let Transaction { keys, statements } = transaction;
        let begun = start.elapsed();
        self.send(client, "begin")?;
        let mut changes = 0;
        let mut before = 0;
        for sql in &statements {
            match self.send(client, sql)? {
                Outcome::Wrote(rows) => changes += rows,
                Outcome::Taken => return self.send(client, "rollback").map(drop),
            }
            match sql.as_str() {
                "savepoint s" => before = changes,
                "rollback to s" => changes = before,
                // Time for others to want what it holds.
                _ if self.rng.chance(10) => self.rng.pause(0, 10),
                _ => {}
            }
        }
        if self.rng.chance(8) {
            return self.send(client, "rollback").map(drop);
        }
        self.send(client, "commit")?;
        self.tally.committed += 1;
        self.tally.changes += changes;
        let client = self.number;
        let committed = start.elapsed();
        let master = self.mesh.home(client);
        self.tally.log.push(Entry {
            master,
            client,
            begun,
            committed,
            keys,
            statements,
        });
        Ok(())
    }

    fn send(&mut self, client: &mut Client, sql: &str) -> Result<Outcome> {
        let start = Instant::now();
        let result = client.simple_query(sql);
        self.tally.slowest = self.tally.slowest.max(start.elapsed());
        match result {
            Ok(messages) => match messages.last() {
                Some(SimpleQueryMessage::CommandComplete(rows)) => Ok(Outcome::Wrote(*rows)),
                _ => bail!("no end of: {sql}"),
            },
            // Between the look at a key and the move to it. Or a row that was waited for had moved on to a key
            // out of turn: two clients of this master wait for each other. Changes that arrive give up before
            // such a wait counts as a deadlock.
            Err(error)
                if error
                    .code()
                    .is_some_and(|code| ["23505", "40P01"].contains(&code.code()))
                    && sql.starts_with("update") =>
            {
                Ok(Outcome::Taken)
            }
            Err(error) => Err(anyhow!(
                "client {} of master {} saw an error after {:?}: {}: {sql}",
                self.number,
                self.mesh.home(self.number),
                start.elapsed(),
                describe(&error)
            )),
        }
    }

    fn make(&mut self) -> Transaction {
        let mut keys = BTreeSet::new();
        for _ in 0..=self.rng.roll(4) {
            let table = usize::from(self.rng.chance(30));
            keys.insert((table, 1 + self.rng.roll(TABLES[table].keys)));
        }
        let named = keys
            .iter()
            .map(|(table, key)| (TABLES[*table].name, *key))
            .collect();
        let mut transaction = Transaction {
            keys: named,
            ..Transaction::default()
        };
        let mut keys = keys.into_iter().peekable();
        while let Some((table, key)) = keys.next() {
            let mut step = Vec::new();
            let next = keys.next_if(|(other, _)| *other == table && self.rng.chance(30));
            match next {
                Some((_, other)) => step.extend(self.exchange(&TABLES[table], key, other)),
                None => {
                    for _ in 0..=u64::from(self.rng.chance(25)) {
                        step.push(self.write(&TABLES[table], key));
                    }
                }
            }
            if self.rng.chance(25) {
                let end = *self.rng.pick(&["rollback to s", "release s"]);
                step.insert(0, "savepoint s".to_owned());
                step.push(end.to_owned());
            }
            transaction.statements.append(&mut step);
        }
        transaction
    }

    /// Writes one row.
    fn write(&mut self, table: &Table, key: u64) -> String {
        let kind = self.rng.roll(10);
        let (v, n) = self.value();
        let Table {
            name,
            key: columns,
            value,
            ..
        } = table;
        let key = value(key);
        let insert = format!("insert into {name} ({columns}, v, n) values ({key}, {v}, {n})");
        match kind {
            0 | 1 => format!("{insert} on conflict ({columns}) do nothing"),
            2 | 3 => format!("{insert} on conflict ({columns}) do update set v = {v}, n = {n}"),
            4 | 5 => format!("update {name} set v = {v}, n = {n} where ({columns}) = ({key})"),
            // Some columns stay what another master may have made of them.
            6 => format!("update {name} set n = coalesce(n, 0) + 1 where ({columns}) = ({key})"),
            _ => format!("delete from {name} where ({columns}) = ({key})"),
        }
    }

    /// Moves the row of one key to the other, the lower key being locked first in any case.
    fn exchange(&mut self, table: &Table, low: u64, high: u64) -> Vec<String> {
        let Table {
            name,
            key: columns,
            value,
            ..
        } = table;
        let (v, n) = self.value();
        let low = value(low);
        let high = value(high);
        let part = if self.rng.chance(50) {
            format!(", v = {v}")
        } else {
            String::new()
        };
        let change = |from: &str, to: &str| {
            format!(
                "update {name} set ({columns}) = row({to}){part} where ({columns}) = ({from}) \
                 and not exists (select from {name} where ({columns}) = ({to}))"
            )
        };
        if self.rng.chance(60) {
            vec![change(&low, &high)]
        } else {
            // The lower key has to be taken and vacated before the higher row is.
            vec![
                format!(
                    "insert into {name} ({columns}, v, n) values ({low}, {v}, {n}) \
                 on conflict ({columns}) do update set n = {n}"
                ),
                format!("delete from {name} where ({columns}) = ({low})"),
                change(&high, &low),
            ]
        }
    }

    /// A text that says which client wrote it and that no one writes again, and a number.
    fn value(&mut self) -> (String, u64) {
        self.values += 1;
        let Writer {
            round,
            number,
            values,
            ..
        } = self;
        (format!("'{round}.{number}.{values}'"), self.rng.roll(1000))
    }
}
