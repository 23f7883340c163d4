//! Takes the oldest records out to be applied, in batches of bounded size and in units that must not
//! be torn apart.
//!
//! A unit is a single record, but for rows that change keys: those that one command moves, and all
//! changes of a table whose key is deferrable, mean what they mean only together. "1 to 2, 2 to 1"
//! applied half would overwrite a row. TRUNCATEs that follow each other are sent as one, too, for
//! tables with foreign keys between them.
//!
//! Transactions that commit at the same time may mix their ids. Such transactions do not depend on
//! each other, so a unit may take its records together at the place of its first.

use super::floor;
use super::stored::{from_json, to_change, to_route};
use super::writeset::Writeset;
use crate::change::{Change, Op, Route};
use crate::error::{Error, Result, SqlState};
use crate::guc;
use crate::pg::Oid;
use crate::pg::spi::{self, Extension};
use crate::sql::quote::{ArrayLiteral, ident};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Records in a batch, at most, but for those that complete its last unit.
pub const RECORDS_PER_BATCH: i64 = 5_000;

/// A queued change.
pub struct Record {
    pub id: i64,
    /// Numbers the local transaction that made it, among those of these claims.
    pub transaction: u32,
    pub route: Rc<Route>,
    pub change: Change<String>,
    /// It was queued because nobody knows whether the server has committed it.
    pub in_doubt: bool,
    /// It was marked failed for that, and somebody has asked for it to be delivered.
    pub is_decided: bool,
    /// It was marked failed or waited behind such a record: newer changes may have gone past it.
    pub may_be_passed: bool,
}

impl Record {
    /// Whether a row is gone from its key after it: cascades may take others along.
    pub fn takes_rows_away(&self) -> bool {
        self.change.op == Op::Delete || self.change.moves()
    }
}

/// Records that are applied together or not at all. Never empty.
pub struct Unit {
    pub records: Vec<Record>,
}

impl Unit {
    /// What all its records touch.
    pub fn writeset(&self) -> Writeset {
        let mut whole = Writeset::default();
        let records = self.records.iter();
        whole.join(records.map(|record| Writeset::of(&record.route, &record.change)));
        whole
    }

    /// The id of its oldest record.
    pub fn id(&self) -> i64 {
        self.records.first().map_or(0, |record| record.id)
    }

    /// Of which local transaction it is, among those of its claims.
    pub fn transaction(&self) -> u32 {
        self.records.first().map_or(0, |record| record.transaction)
    }

    /// Numbers the command that made it, among those of its claims.
    pub fn command(&self) -> u32 {
        self.records
            .first()
            .map_or(0, |record| record.change.command)
    }

    /// Whether it inserts rows that nothing tells apart.
    pub fn is_keyless(&self) -> bool {
        let inserts = |record: &Record| record.change.op == Op::Insert;
        self.records
            .iter()
            .any(|record| record.route.is_keyless() && inserts(record))
    }

    /// Whether it was queued because nobody knows whether the server has committed it.
    pub fn is_in_doubt(&self) -> bool {
        self.records.iter().any(|record| record.in_doubt)
    }
}

/// A unit that is marked failed, or waits.
pub struct HeldUnit {
    pub unit: Unit,
    /// The failed record that it is, or waits for.
    pub root: i64,
    /// It is a failed record, and was refused over other rows of the server's, or missed its own.
    pub met_states: bool,
    /// What later changes meet, if they depend on it.
    pub blocks: Vec<i64>,
}

/// What is selected of a record: id, route, change, local transaction, the SQLSTATE that it has failed with, and
/// whether it was marked failed or has waited.
type Pending = (i64, String, String, String, Option<String>, bool);

/// How far a reader of the queue goes.
#[derive(Clone, Copy)]
pub struct Bounds {
    /// The last record that a batch begins with or takes for its own sake: what is to be applied in one turn. What
    /// belongs together with such records is read beyond it.
    pub turn: i64,
    /// The last record that may be read at all: behind it another owner's may be older that it depends on.
    pub order: i64,
}

/// Reads a server's pending records of one owner, oldest first. Records are locked, so that they cannot be
/// discarded meanwhile.
///
/// All batches see the queue as it was at the first: a record that becomes visible in between may have
/// a smaller id than one already taken, and what depends on it must not be taken before it.
pub struct Claims<'h> {
    extension: &'h Extension,
    server_name: String,
    snapshot: String,
    after: i64,
    /// Records after that one that were taken already, to complete units.
    taken: HashSet<i64>,
    owner: String,
    bounds: Bounds,
    /// The next batch, or why there is none.
    ahead: Option<Result<Vec<Unit>>>,
    routes: HashMap<String, Rc<Route>>,
    numbers: Numbers,
}

impl<'h> Claims<'h> {
    /// Looks at the queue as it is now.
    ///
    /// # Errors
    /// What reading it reports.
    pub fn begin(
        extension: &'h Extension,
        server_name: &str,
        owner: Oid,
        bounds: Bounds,
    ) -> Result<Self> {
        let sql = "SELECT pg_current_snapshot()";
        Ok(Self {
            extension,
            server_name: server_name.to_owned(),
            snapshot: spi::select_one(extension, sql, &[])?,
            after: floor::of(extension, server_name)?,
            taken: HashSet::new(),
            owner: owner.to_u32().to_string(),
            bounds,
            ahead: None,
            routes: HashMap::new(),
            numbers: Numbers::default(),
        })
    }

    /// The next batch: at most `limit` records, and what completes the last units. Empty at the end.
    ///
    /// # Errors
    /// What reading the queue reports, and records that cannot be understood.
    pub fn next(&mut self, limit: i64) -> Result<Vec<Unit>> {
        let mut units = match self.ahead.take() {
            Some(ahead) => ahead?,
            None => return self.next_batch(limit, self.bounds.turn),
        };
        // What was read ahead for another purpose may be more.
        let mut records = 0;
        let turn = self.bounds.turn;
        let end = units.iter().position(|unit| {
            let is_enough = records >= limit || unit.id() > turn;
            records += unit.records.len() as i64;
            is_enough
        });
        if let Some(end) = end {
            self.ahead = Some(Ok(units.split_off(end)));
        }
        Ok(units)
    }

    /// What is left of the command to which a unit belongs that was taken last: its next units. Empty once
    /// there are no more.
    ///
    /// # Errors
    /// As for [`Claims::next`].
    pub fn next_of_command(&mut self, last: (u32, u32)) -> Result<Vec<Unit>> {
        if !self.has_ahead() && self.next_command()? != Some(last) {
            return Ok(Vec::new());
        }
        self.next_while(|unit| (unit.transaction(), unit.command()) == last)
    }

    /// The next units of a transaction, as long as they are such; empty once there are no more that follow each
    /// other.
    ///
    /// # Errors
    /// As for [`Claims::next`].
    pub fn next_of_transaction_while(
        &mut self,
        last: u32,
        is_next: impl Fn(&Unit) -> bool,
    ) -> Result<Vec<Unit>> {
        let goes_on = self.has_ahead()
            || self
                .next_command()?
                .is_some_and(|(transaction, _)| transaction == last);
        if !goes_on {
            return Ok(Vec::new());
        }
        self.next_while(|unit| unit.transaction() == last && is_next(unit))
    }

    fn has_ahead(&self) -> bool {
        matches!(&self.ahead, Some(Ok(units)) if !units.is_empty())
    }

    /// The next units of a transaction; empty once there are no more that follow each other.
    ///
    /// # Errors
    /// As for [`Claims::next`].
    pub fn next_of_transaction(&mut self, last: u32) -> Result<Vec<Unit>> {
        self.next_while(|unit| unit.transaction() == last)
    }

    /// The next units, whatever is to be applied in this turn, as long as they are such; the others stay for the
    /// batch after.
    ///
    /// # Errors
    /// As for [`Claims::next`].
    pub fn next_while(&mut self, is_next: impl Fn(&Unit) -> bool) -> Result<Vec<Unit>> {
        let mut units = match self.ahead.take().transpose()? {
            Some(ahead) if !ahead.is_empty() => ahead,
            _ => self.next_batch(RECORDS_PER_BATCH, self.bounds.order)?,
        };
        let end = units
            .iter()
            .position(|unit| !is_next(unit))
            .unwrap_or(units.len());
        let rest = units.split_off(end);
        if !rest.is_empty() {
            self.ahead = Some(Ok(rest));
        }
        Ok(units)
    }

    /// Records that are marked failed or wait, oldest first, as of the same moment as the batches; `None` if there
    /// are more than `most`.
    ///
    /// # Errors
    /// As for [`Claims::next`].
    pub fn apart(&mut self, most: i64) -> Result<Option<Vec<HeldUnit>>> {
        let queue = format!("{}.sync_queue", ident(&self.extension.schema));
        let some = |status: &str| {
            format!(
                "SELECT q.id FROM {queue} q WHERE q.dst_server = $1 AND q.status = '{status}' \
                   AND q.owner::oid = $3::oid AND q.id <= $4::int8 AND {VISIBLE}"
            )
        };
        let sql = format!(
            "SELECT q.id, q.route_id, q.change, q.xact, q.sqlstate, true, COALESCE(q.waits_for, q.id), \
               array_to_string(q.blocks, ' ') \
             FROM {queue} q WHERE q.id = ANY (ARRAY( \
                 SELECT id FROM ({} UNION ALL {}) s LIMIT $5::int8)) \
             ORDER BY q.id FOR UPDATE OF q",
            some("failed"),
            some("waiting")
        );
        let last = self.bounds.turn.min(self.bounds.order).to_string();
        let limit = (most + 1).to_string();
        let args = [
            &*self.server_name,
            &*self.snapshot,
            &*self.owner,
            &*last,
            &*limit,
        ];
        let rows = spi::write(self.extension, &sql, &args.map(Some))?;
        if rows.len() as i64 > most {
            return Ok(None);
        }
        type Columns = (
            i64,
            String,
            String,
            String,
            Option<String>,
            bool,
            i64,
            Option<String>,
        );
        let mut reading = Reading::default();
        let mut marks = HashMap::new();
        for (id, route, change, own, state, overtaken, root, blocks) in spi::typed::<Columns>(rows)?
        {
            let is_about_states = state.as_deref().is_some_and(SqlState::is_about_states);
            let met_states = root == id && is_about_states;
            let blocks = blocks.unwrap_or_default();
            let blocks = blocks
                .split_whitespace()
                .map(number)
                .collect::<Result<Vec<_>>>()?;
            let record = self.parse(&mut reading, (id, route, change, own, state, overtaken))?;
            marks.insert(record.id, (root, met_states, blocks));
            reading.push(record);
        }
        let units = reading.into_units().into_iter().map(|unit| {
            let (root, met_states, mut blocks) = marks.remove(&unit.id()).unwrap_or_default();
            let others = unit.records.iter().skip(1);
            let others = others.filter_map(|record| marks.remove(&record.id));
            others.for_each(|(_, _, more)| blocks.extend(more));
            HeldUnit {
                unit,
                root,
                met_states,
                blocks,
            }
        });
        Ok(Some(units.collect()))
    }

    /// The transaction and the command of the next record.
    fn next_command(&mut self) -> Result<Option<(u32, u32)>> {
        let sql = format!(
            "SELECT q.xact, q.change FROM {}.sync_queue q WHERE {PENDING} AND {VISIBLE} \
               AND q.id > $4::int8 ORDER BY q.id LIMIT 1",
            ident(&self.extension.schema)
        );
        let after = self.after.to_string();
        let args = [&*self.server_name, &*self.snapshot, &*self.owner, &*after].map(Some);
        let next = spi::select_first::<(String, String)>(self.extension, &sql, &args)?;
        let Some((own, change)) = next else {
            return Ok(None);
        };
        let change: Change<String> = from_json(&change, |_| true)?;
        let transaction = self.numbers.transaction(&own);
        let command = self.numbers.command(transaction, change.command);
        Ok(Some((transaction, command)))
    }

    /// Reads the next batch now, for [`Claims::next`] to give: at most `limit` records, as above.
    pub fn read_ahead(&mut self, limit: i64) {
        if limit > 0 && self.ahead.is_none() {
            self.ahead = Some(self.next_batch(limit, self.bounds.turn));
        }
    }

    fn next_batch(&mut self, limit: i64, bound: i64) -> Result<Vec<Unit>> {
        let mut reading = Reading::default();
        self.numbers.next_batch();
        // Again if all that a batch has was taken before.
        while reading.runs.is_empty() {
            let Some(last) = self.boundary(limit.min(RECORDS_PER_BATCH), bound)? else {
                break;
            };
            self.read(&mut reading, last)?;
        }
        Ok(reading.into_units())
    }

    /// Reads a batch.
    fn read(&mut self, reading: &mut Reading, last: i64) -> Result<()> {
        let rows = self.fetch("q.id <= $5::int8", last, None)?;
        for row in rows {
            let record = self.parse(reading, row)?;
            if !self.taken.remove(&record.id) {
                reading.push(record);
            }
        }
        self.after = last;
        self.complete(reading, last)
    }

    /// Takes what belongs to units that the end of the batch has torn.
    fn complete(&mut self, reading: &mut Reading, last: i64) -> Result<()> {
        let mut after = last;
        loop {
            let torn = reading.torn();
            if torn.is_empty() {
                return Ok(());
            }
            let rows = self.fetch("q.id > $5::int8", after, Some(&torn))?;
            if rows.is_empty() {
                return Ok(());
            }
            for row in rows {
                let record = self.parse(reading, row)?;
                after = record.id;
                if reading.continues(&record) {
                    self.taken.insert(record.id);
                    reading.push(record);
                } else {
                    reading.closed.push(record.transaction);
                }
            }
        }
    }

    /// The id of the last record of a batch that ends at `bound`; `None` when nothing is left.
    fn boundary(&self, limit: i64, bound: i64) -> Result<Option<i64>> {
        let sql = format!(
            "SELECT max(id) FROM ( \
               SELECT id, sum(size) OVER (ORDER BY id) AS total, size FROM ( \
                 SELECT q.id, octet_length(q.change::text) AS size \
                 FROM {}.sync_queue q WHERE {PENDING} AND {VISIBLE} AND q.id > $4::int8 \
                   AND q.id <= $7::int8 \
                 ORDER BY q.id LIMIT $5::int8) s) w \
             WHERE total - size < $6::int8",
            ident(&self.extension.schema)
        );
        let args = [
            Some(self.server_name.clone()),
            Some(self.snapshot.clone()),
            Some(self.owner.clone()),
            Some(self.after.to_string()),
            Some(limit.to_string()),
            // One batch is read while another is applied.
            Some((guc::buffer_size() / 2).to_string()),
            Some(bound.min(self.bounds.order).to_string()),
        ];
        let args: Vec<Option<&str>> = args.iter().map(Option::as_deref).collect();
        let id = spi::select_first::<Option<i64>>(self.extension, &sql, &args)?;
        Ok(id.flatten())
    }

    /// Reads and locks pending records after the last batch, under a condition on `$5`; only those of
    /// certain transactions if such are named, and then only so many.
    fn fetch(&self, condition: &str, bound: i64, only: Option<&[String]>) -> Result<Vec<Pending>> {
        let mut transactions = ArrayLiteral::default();
        let some = match only {
            Some(only) => {
                only.iter().for_each(|one| transactions.push(Some(one)));
                "AND q.xact = ANY (ARRAY(SELECT unnest($6::xid8[])))"
            }
            None => "AND $6::text IS NOT NULL",
        };
        let sql = format!(
            "SELECT q.id, q.route_id, q.change, q.xact, q.sqlstate, q.blocks IS NOT NULL FROM {}.sync_queue q \
             WHERE {PENDING} AND {VISIBLE} AND q.id > $4::int8 AND {condition} \
             {some} ORDER BY q.id LIMIT {RECORDS_PER_BATCH} FOR UPDATE OF q",
            ident(&self.extension.schema)
        );
        let after = self.after.to_string();
        let bound = bound.to_string();
        let some = transactions.into_text();
        let args = [
            &*self.server_name,
            &*self.snapshot,
            &*self.owner,
            &*after,
            &*bound,
            &*some,
        ];
        spi::typed(spi::write(self.extension, &sql, &args.map(Some))?)
    }

    /// A row as a record. Commands and transactions are numbered anew: their own numbers mean something
    /// within one transaction only.
    fn parse(
        &mut self,
        reading: &mut Reading,
        (id, route, change, own, state, may_be_passed): Pending,
    ) -> Result<Record> {
        let route = self.route(route)?;
        let mut change = to_change(&route, &change)?;
        let transaction = self.numbers.transaction(&own);
        reading.transactions.insert(own, transaction);
        change.command = self.numbers.command(transaction, change.command);
        change.stored.transaction = transaction;
        let failed_with = |one: SqlState| state.as_deref() == Some(one.as_str());
        // A record that missed its row before any cascade could take it misses it still.
        change.overtaken = may_be_passed && !failed_with(SqlState::NO_DATA_FOUND);
        let in_doubt = failed_with(SqlState::RESOLUTION_UNKNOWN);
        let is_decided = failed_with(SqlState::COMPLETION_UNKNOWN);
        Ok(Record {
            id,
            transaction,
            route,
            change,
            in_doubt,
            is_decided,
            may_be_passed,
        })
    }

    /// A route by its id; each is read once.
    fn route(&mut self, id: String) -> Result<Rc<Route>> {
        if let Some(route) = self.routes.get(&id) {
            return Ok(route.clone());
        }
        let sql = format!(
            "SELECT body FROM {}.sync_route WHERE id = $1::int8",
            ident(&self.extension.schema)
        );
        let body: String = spi::select_one(self.extension, &sql, &[Some(&id)])?;
        let route = Rc::new(to_route(&body)?);
        self.routes.insert(id, route.clone());
        Ok(route)
    }
}

/// Pending records of server `$1` and owner `$3`.
const PENDING: &str = "q.dst_server = $1 \
    AND q.owner::oid = $3::oid \
    AND q.status = 'pending'";

/// Records that were visible in snapshot `$2`. A transaction whose number no transaction here has had yet made its
/// record in the cluster that a dump was taken from.
const VISIBLE: &str = "(pg_visible_in_snapshot(q.xact, (SELECT $2::pg_snapshot)) \
      OR q.xact >= \
         (SELECT pg_snapshot_xmax(pg_current_snapshot())))";

fn number(text: &str) -> Result<i64> {
    text.parse()
        .map_err(|_| Error::internal("malformed record id"))
}

/// Numbers transactions and commands, the same ones alike in batches that follow each other.
#[derive(Default)]
struct Numbers {
    transactions: HashMap<String, u32>,
    /// Those of the batch before.
    before: HashMap<String, u32>,
    transaction: u32,
    /// The commands of each transaction, and their numbers here.
    commands: HashMap<u32, HashMap<u32, u32>>,
    command: u32,
}

impl Numbers {
    fn next_batch(&mut self) {
        // A batch that had nothing is none.
        if self.transactions.is_empty() {
            return;
        }
        self.before = std::mem::take(&mut self.transactions);
        let kept: HashSet<u32> = self.before.values().copied().collect();
        self.commands
            .retain(|transaction, _| kept.contains(transaction));
    }

    fn transaction(&mut self, own: &str) -> u32 {
        let known = self
            .transactions
            .get(own)
            .or_else(|| self.before.get(own))
            .copied();
        let number = known.unwrap_or_else(|| {
            self.transaction += 1;
            self.transaction
        });
        self.transactions.insert(own.to_owned(), number);
        number
    }

    fn command(&mut self, transaction: u32, own: u32) -> u32 {
        let next = self.command + 1;
        let number = *self
            .commands
            .entry(transaction)
            .or_default()
            .entry(own)
            .or_insert(next);
        self.command = self.command.max(number);
        number
    }
}

/// Records read so far, in runs of which each is a unit or falls apart into single records.
#[derive(Default)]
struct Reading {
    runs: Vec<Vec<Record>>,
    /// The last run of each transaction.
    last: HashMap<u32, usize>,
    transactions: HashMap<String, u32>,
    /// Transactions whose last run is known to be complete.
    closed: Vec<u32>,
}

impl Reading {
    fn last_run(&self, transaction: u32) -> Option<&Vec<Record>> {
        self.last.get(&transaction).map(|at| &self.runs[*at])
    }

    /// Whether the record belongs to the last run of its transaction.
    fn continues(&self, record: &Record) -> bool {
        !self.closed.contains(&record.transaction)
            && self
                .last_run(record.transaction)
                .and_then(|run| run.last())
                .is_some_and(|last| together(last, record))
    }

    fn push(&mut self, record: Record) {
        let transaction = record.transaction;
        match self.last.get(&transaction) {
            Some(at) if self.continues(&record) => self.runs[*at].push(record),
            _ => {
                self.runs.push(vec![record]);
                self.last.insert(transaction, self.runs.len() - 1);
            }
        }
    }

    /// The transactions whose last unit may go on beyond what was read.
    fn torn(&self) -> Vec<String> {
        let torn = |number: u32| {
            !self.closed.contains(&number)
                && self
                    .last_run(number)
                    .is_some_and(|run| run.iter().any(is_entangled))
        };
        let all = self.transactions.iter();
        all.filter(|(_, number)| torn(**number))
            .map(|(own, _)| own.clone())
            .collect()
    }

    fn into_units(self) -> Vec<Unit> {
        let split = |run: Vec<Record>| {
            if run.iter().any(is_entangled) {
                vec![Unit { records: run }]
            } else {
                run.into_iter()
                    .map(|record| Unit {
                        records: vec![record],
                    })
                    .collect()
            }
        };
        self.runs.into_iter().flat_map(split).collect()
    }
}

/// Whether two records of a transaction that follow each other are of one run.
fn together(one: &Record, next: &Record) -> bool {
    run_on((&one.route, &one.change), (&next.route, &next.change))
}

fn is_entangled(record: &Record) -> bool {
    makes_unit(&record.route, &record.change)
}

/// Whether two changes of a transaction that follow each other are of one run: TRUNCATEs, UPDATEs of
/// one command, or any changes of a table whose key is deferrable.
pub fn run_on<S>(one: (&Rc<Route>, &Change<S>), next: (&Rc<Route>, &Change<S>)) -> bool {
    match (one.1.op, next.1.op) {
        (Op::Truncate, Op::Truncate) => true,
        (Op::Truncate, _) | (_, Op::Truncate) => false,
        _ if !Rc::ptr_eq(one.0, next.0) => false,
        (Op::Update, Op::Update) => one.0.key_deferrable || one.1.command == next.1.command,
        _ => one.0.key_deferrable,
    }
}

/// Whether a change makes its run a unit.
pub fn makes_unit<S>(route: &Route, change: &Change<S>) -> bool {
    route.key_deferrable || change.moves() || change.op == Op::Truncate
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Carrier, Column, Policy, Relation, RowStorage};

    fn route(key_deferrable: bool) -> Rc<Route> {
        let name = || Relation {
            schema: "s".into(),
            table: "t".into(),
        };
        let own_equality = false;
        let identity_always = false;
        let collated = false;
        let local = None;
        Rc::new(Route {
            source: name(),
            target: name(),
            columns: vec![Column {
                name: "id".into(),
                carrier: Carrier::Element,
                identity_always,
                own_equality,
                collated,
                local,
                binary: None,
                own_type: None,
            }],
            key: vec![0],
            key_deferrable,
            key_exact: true,
            policy: Policy::Overwrite,
            truncate_children: false,
            cascades_from: Vec::new(),
            application_name: None,
            path: Default::default(),
        })
    }

    fn record(route: &Rc<Route>, op: Op, command: u32, moves: bool, transaction: u32) -> Record {
        let key = if moves {
            vec![Some("1".to_owned())]
        } else {
            Vec::new()
        };
        let row = vec![Some("2".to_owned())];
        let stored = RowStorage {
            before: 1,
            after: 2,
            file: 1,
            transaction,
        };
        let stamp = None;
        let tombstone = None;
        let unchanged = Vec::new();
        let overtaken = false;
        let change = Change {
            op,
            command,
            key,
            row,
            stamp,
            tombstone,
            unchanged,
            stored,
            overtaken,
        };
        let in_doubt = false;
        let is_decided = false;
        let may_be_passed = false;
        Record {
            id: 1,
            transaction,
            route: route.clone(),
            change,
            in_doubt,
            is_decided,
            may_be_passed,
        }
    }

    fn sizes(records: Vec<Record>) -> Vec<usize> {
        let mut reading = Reading::default();
        records.into_iter().for_each(|record| reading.push(record));
        reading
            .into_units()
            .iter()
            .map(|unit| unit.records.len())
            .collect()
    }

    #[test]
    fn plain_changes_stand_alone() {
        let route = route(false);
        let one = |op, command| record(&route, op, command, false, 1);
        assert_eq!(
            sizes(vec![
                one(Op::Insert, 1),
                one(Op::Update, 2),
                one(Op::Update, 2)
            ]),
            [1, 1, 1]
        );
    }

    #[test]
    fn rows_that_a_command_moves_stay_together() {
        let route = route(false);
        let one = |command, moves| record(&route, Op::Update, command, moves, 1);
        assert_eq!(
            sizes(vec![
                one(1, true),
                one(1, false),
                one(1, true),
                one(2, true)
            ]),
            [3, 1]
        );
    }

    #[test]
    fn a_transactions_changes_under_a_deferrable_key_stay_together() {
        let route = route(true);
        let one = |op, transaction| record(&route, op, 1, false, transaction);
        assert_eq!(
            sizes(vec![
                one(Op::Update, 1),
                one(Op::Insert, 1),
                one(Op::Update, 2)
            ]),
            [2, 1]
        );
    }

    #[test]
    fn truncates_that_follow_each_other_stay_together() {
        let one = route(false);
        let two = route(false);
        let all = [&one, &two].map(|route| record(route, Op::Truncate, 1, false, 1));
        assert_eq!(sizes(all.into()), [2]);
    }

    #[test]
    fn transactions_that_mix_their_ids_do_not_tear_units() {
        let route = route(false);
        let one = |transaction| record(&route, Op::Update, 1, true, transaction);
        assert_eq!(sizes(vec![one(1), one(2), one(1), one(2)]), [2, 2]);
    }
}
