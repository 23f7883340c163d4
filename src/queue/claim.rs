//! Takes the oldest records out to be applied, in units that must not be torn apart.
//!
//! A unit is a single record, but for rows that change keys: those that one command moves, and all
//! changes of a table whose key is deferrable, mean what they mean only together. "1 to 2, 2 to 1"
//! applied half would overwrite a row.

use super::from_json;
use crate::change::{Change, Op, Route};
use crate::delivery::collapse::TRANSACTION_SHIFT;
use crate::error::Result;
use crate::pg::spi::{self, Home, Row, required};
use crate::sql::quote::ident;
use std::collections::HashMap;
use std::rc::Rc;

/// Records read at a time to complete the last unit.
const MORE: i64 = 5_000;

/// A queued change.
pub struct Record {
    pub id: String,
    pub route: Rc<Route>,
    pub change: Change<String>,
}

/// Records that are applied together or not at all. Never empty.
pub struct Unit {
    pub records: Vec<Record>,
}

/// The oldest records of a server, at most `limit` and what completes the last unit; all of the same
/// owner as the oldest: those of another owner go over another connection and wait until these are
/// committed. Locked, so that they cannot be discarded meanwhile.
///
/// # Errors
/// What reading the queue reports, and records that cannot be understood.
pub fn claim(home: &Home, server_name: &str, limit: i64) -> Result<Vec<Unit>> {
    let mut reading = Reading::default();
    let mut more = limit;
    loop {
        let rows = fetch(home, server_name, reading.last_id(), more)?;
        let exhausted = (rows.len() as i64) < more;
        for row in rows {
            // Beyond the limit only what belongs to the last unit is taken.
            let beyond = reading.records.len() as i64 >= limit;
            match reading.parse(row)? {
                Some(record) if !beyond || reading.continues(&record) => {
                    reading.records.push(record);
                }
                _ => return Ok(reading.into_units()),
            }
        }
        if exhausted || !reading.is_torn() {
            return Ok(reading.into_units());
        }
        more = MORE;
    }
}

fn fetch(home: &Home, server_name: &str, after: &str, limit: i64) -> Result<Vec<Row>> {
    let schema = ident(&home.schema);
    let sql = format!(
        "SELECT q.id, q.owner::pg_catalog.oid, q.route_id, r.body, q.change, q.xact \
         FROM {schema}.sync_queue q \
         JOIN {schema}.sync_route r ON r.id OPERATOR(pg_catalog.=) q.route_id \
         WHERE q.dst_server OPERATOR(pg_catalog.=) $1 \
           AND q.id OPERATOR(pg_catalog.>) $2::pg_catalog.int8 \
         ORDER BY q.id LIMIT $3::pg_catalog.int8 FOR UPDATE OF q"
    );
    spi::write(home, &sql, &[Some(server_name), Some(after), Some(&limit.to_string())])
}

/// Records read so far. Commands and transactions are numbered anew: their own numbers mean
/// something within one transaction only.
#[derive(Default)]
struct Reading {
    records: Vec<Record>,
    owner: Option<String>,
    routes: HashMap<String, Rc<Route>>,
    transaction: Option<String>,
    transactions: u16,
    command: Option<u32>,
    commands: u32,
}

impl Reading {
    fn last_id(&self) -> &str {
        self.records.last().map_or("0", |record| &record.id)
    }

    /// A row as a record; `None` for one of another owner.
    fn parse(&mut self, mut row: Row) -> Result<Option<Record>> {
        let owner = required(&mut row, 1)?;
        if self.owner.get_or_insert_with(|| owner.clone()) != &owner {
            return Ok(None);
        }
        let (id, route_id) = (required(&mut row, 0)?, required(&mut row, 2)?);
        let route = match self.routes.get(&route_id) {
            Some(route) => route.clone(),
            None => {
                let route: Rc<Route> = Rc::new(from_json(&required(&mut row, 3)?)?);
                self.routes.insert(route_id, route.clone());
                route
            }
        };
        let mut change: Change<String> = from_json(&required(&mut row, 4)?)?;
        let transaction = Some(required(&mut row, 5)?);
        if self.transaction != transaction {
            self.transaction = transaction;
            self.transactions = self.transactions.wrapping_add(1);
            self.command = None;
        }
        if self.command != Some(change.command) {
            self.command = Some(change.command);
            self.commands += 1;
        }
        change.command = self.commands;
        let tag = |stored: u64| match stored {
            0 => 0,
            _ => stored | u64::from(self.transactions) << TRANSACTION_SHIFT,
        };
        change.stored = (tag(change.stored.0), tag(change.stored.1));
        Ok(Some(Record { id, route, change }))
    }

    /// Where the last run of records that belong together begins.
    fn last_run(&self) -> usize {
        let mut start = self.records.len().saturating_sub(1);
        while start > 0 && together(&self.records[start - 1], &self.records[start]) {
            start -= 1;
        }
        start
    }

    /// Whether the next records may belong to the last unit.
    fn is_torn(&self) -> bool {
        self.records[self.last_run()..].iter().any(is_entangled)
    }

    /// Whether the record belongs to the last unit.
    fn continues(&self, record: &Record) -> bool {
        self.records.last().is_some_and(|last| together(last, record)) && self.is_torn()
    }

    fn into_units(self) -> Vec<Unit> {
        let mut runs: Vec<Vec<Record>> = Vec::new();
        for record in self.records {
            match runs.last_mut() {
                Some(run) if run.last().is_some_and(|last| together(last, &record)) => {
                    run.push(record);
                }
                _ => runs.push(vec![record]),
            }
        }
        runs.into_iter()
            .flat_map(|run| {
                if run.iter().any(is_entangled) {
                    vec![Unit { records: run }]
                } else {
                    run.into_iter().map(|record| Unit { records: vec![record] }).collect()
                }
            })
            .collect()
    }
}

/// Whether two records that follow each other are of one run: UPDATEs of one command, or changes of
/// one transaction on a table whose key is deferrable.
fn together(one: &Record, next: &Record) -> bool {
    let transaction = |r: &Record| r.change.stored.0.max(r.change.stored.1) >> TRANSACTION_SHIFT;
    let update = |r: &Record| r.change.op == Op::Update;
    Rc::ptr_eq(&one.route, &next.route)
        && match one.route.key_deferrable {
            true => transaction(one) == transaction(next) && next.change.op != Op::Truncate,
            false => update(one) && update(next) && one.change.command == next.change.command,
        }
}

/// Whether a record makes its run a unit.
fn is_entangled(record: &Record) -> bool {
    record.change.moves() || record.route.key_deferrable
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Carrier, Column, Policy, Relation};

    fn route(key_deferrable: bool) -> Rc<Route> {
        let name = || Relation { schema: "s".into(), table: "t".into() };
        let (own_equality, fixed) = (false, false);
        Rc::new(Route {
            source: name(),
            target: name(),
            columns: vec![Column {
                name: "id".into(),
                carrier: Carrier::Element,
                fixed,
                own_equality,
            }],
            key: vec![0],
            key_deferrable,
            policy: Policy::Overwrite,
            truncate_children: false,
            application_name: None,
        })
    }

    fn record(route: &Rc<Route>, op: Op, command: u32, moves: bool, transaction: u64) -> Record {
        let key = if moves { vec![Some("1".to_owned())] } else { Vec::new() };
        let (row, stored) = (vec![Some("2".to_owned())], (1, 2 | transaction << 48));
        let (seen, unchanged) = (None, Vec::new());
        let change = Change { op, command, key, row, seen, unchanged, stored };
        Record { id: "1".into(), route: route.clone(), change }
    }

    fn sizes(records: Vec<Record>) -> Vec<usize> {
        let units = Reading { records, ..Reading::default() }.into_units();
        units.iter().map(|unit| unit.records.len()).collect()
    }

    #[test]
    fn plain_changes_stand_alone() {
        let route = route(false);
        let one = |op, command| record(&route, op, command, false, 1);
        assert_eq!(
            sizes(vec![one(Op::Insert, 1), one(Op::Update, 2), one(Op::Update, 2)]),
            [1, 1, 1]
        );
    }

    #[test]
    fn rows_that_a_command_moves_stay_together() {
        let route = route(false);
        let one = |command, moves| record(&route, Op::Update, command, moves, 1);
        assert_eq!(sizes(vec![one(1, true), one(1, false), one(1, true), one(2, true)]), [3, 1]);
    }

    #[test]
    fn a_transactions_changes_under_a_deferrable_key_stay_together() {
        let route = route(true);
        let one = |op, transaction| record(&route, op, 1, false, transaction);
        assert_eq!(sizes(vec![one(Op::Update, 1), one(Op::Insert, 1), one(Op::Update, 2)]), [2, 1]);
    }
}
