//! Waits until what was under way has arrived.
//!
//! A delivery is committed on the server a moment before the local transaction: whoever looks in between sees
//! two different rows, and so does whoever looks while a change waits in the queue. So between the two looks
//! at a row this waits for the transactions that have written the table, on either side, and for the records
//! of the table that are pending. A transaction that is idle has not begun to commit: nothing of it is to be
//! seen on any side.

use super::sides::{Side, Sides};
use super::subject::Subject;
use crate::change::{Change, Route};
use crate::error::Result;
use crate::guc;
use crate::pg::spi::{self};
use crate::pg::{interrupt, wait};
use crate::sql::quote::{ident, literal, relation};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Added to the time that a delivery may take.
const SPARE: Duration = Duration::from_secs(5);
/// How long the queue may stay as long as it is before what waits in it is left out.
const QUEUE_PATIENCE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_millis(250);
/// Records whose keys are read.
const MAX_RECORDS: usize = 100_000;

/// What has not arrived all the same.
#[derive(Default)]
pub struct UnderWay {
    /// Any row of the table.
    everything: bool,
    keys: BTreeSet<Vec<Option<String>>>,
}

impl UnderWay {
    /// Whether a change of the row with this key has not arrived.
    pub fn concerns(&self, key: &[Option<String>]) -> bool {
        self.everything || self.keys.contains(key)
    }
}

/// Waits for what is under way now; says what was waited for in vain.
///
/// # Errors
/// What either side reports; a request to cancel is raised.
pub fn wait(subject: &Subject, sides: &mut Sides) -> Result<UnderWay> {
    let questions = Side::BOTH.map(|side| writers(subject, side));
    let mut writing = ask_writers(sides, &questions)?;
    let last = last_record(subject)?;
    let began = Instant::now();
    let limit = guc::delivery_timeout() + guc::cancel_timeout() + SPARE;
    let mut pause = FIRST_PAUSE;
    let (mut queued, mut went_on) = (u64::MAX, began);
    loop {
        let now = ask_writers(sides, &questions)?;
        for (writing, now) in writing.iter_mut().zip(&now) {
            writing.retain(|one| now.contains(one));
        }
        let still = match last {
            Some(last) => records_up_to(subject, last)?,
            None => 0,
        };
        if still < queued {
            (queued, went_on) = (still, Instant::now());
        }
        let is_written = writing.iter().any(|side| !side.is_empty()) && began.elapsed() < limit;
        let is_drained = still > 0 && went_on.elapsed() < QUEUE_PATIENCE;
        if !is_written && !is_drained {
            break;
        }
        pause_for(pause);
        pause = (pause * 2).min(MAX_PAUSE);
    }
    match last.filter(|_| queued > 0) {
        Some(last) => keys_up_to(subject, last),
        None => Ok(UnderWay::default()),
    }
}

fn pause_for(time: Duration) {
    wait::wait(&[], time);
    if interrupt::pending() {
        interrupt::check();
    }
}

/// Asks for the transactions that have written a side's table and are not idle.
fn writers(subject: &Subject, side: Side) -> String {
    const EQ: &str = "=";
    let target = match side {
        Side::Here => subject.table.oid.to_u32().to_string(),
        Side::There => {
            let name = literal(&relation(&subject.descriptor.route.target));
            format!("to_regclass({name})")
        }
    };
    format!(
        "SELECT json_agg(DISTINCT concat(l.pid, ' ', l.virtualtransaction)) \
         FROM pg_locks l \
         LEFT JOIN pg_stat_get_activity(NULL) s ON s.pid {EQ} l.pid \
         WHERE l.locktype {EQ} 'relation' AND l.granted \
           AND l.database {EQ} (SELECT d.oid FROM pg_database d \
                  WHERE d.datname {EQ} current_database()) \
           AND (l.relation {EQ} {target}::oid OR l.relation {EQ} ANY ( \
                  SELECT p.relid::oid \
                    FROM pg_partition_tree({target}::regclass) p)) \
           AND l.mode {EQ} ANY ('{{RowExclusiveLock,ShareRowExclusiveLock,ExclusiveLock, \
                 AccessExclusiveLock}}') \
           AND l.pid <> pg_backend_pid() \
           AND COALESCE(s.state, '') <> ALL ('{{idle in transaction, \
                 idle in transaction (aborted)}}')"
    )
}

fn ask_writers(sides: &mut Sides, [here, there]: &[String; 2]) -> Result<[BTreeSet<String>; 2]> {
    let names = |value: Value| -> BTreeSet<String> {
        let items = value.as_array().into_iter().flatten();
        items
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect()
    };
    Ok(sides.ask(here, there)?.map(names))
}

/// Which records of the queue are about the table.
fn of_table(subject: &Subject) -> (String, [String; 1]) {
    let queue = format!("{}.sync_queue", ident(&subject.extension.schema));
    let sql = format!(
        "FROM {queue} q WHERE q.dst_server = $1 \
           AND q.status = 'pending'"
    );
    (sql, [subject.descriptor.account.server_name.clone()])
}

/// The last record that is pending for the server, if there is one. Records of other tables come before it in
/// the queue, and what is behind one waits for it.
fn last_record(subject: &Subject) -> Result<Option<i64>> {
    let (from, [server]) = of_table(subject);
    let sql = format!("SELECT max(q.id) {from}");
    spi::select_one(&subject.extension, &sql, &[Some(&server)])
}

fn records_up_to(subject: &Subject, last: i64) -> Result<u64> {
    let (from, [server]) = of_table(subject);
    let sql = format!(
        "SELECT count(*) {from} \
           AND q.id <= $2::int8"
    );
    spi::select_one(
        &subject.extension,
        &sql,
        &[Some(&server), Some(&last.to_string())],
    )
}

/// The keys of what waits for the target.
fn keys_up_to(subject: &Subject, last: i64) -> Result<UnderWay> {
    let (from, [server]) = of_table(subject);
    let schema = ident(&subject.extension.schema);
    let sql = format!(
        "SELECT (SELECT r.body FROM {schema}.sync_route r \
                  WHERE r.id = q.route_id), q.change {from} \
           AND q.id <= $2::int8 ORDER BY q.id LIMIT {MAX_RECORDS}"
    );
    let rows: Vec<(String, String)> = spi::select(
        &subject.extension,
        &sql,
        &[Some(&server), Some(&last.to_string())],
    )?;
    let mut under_way = UnderWay {
        everything: rows.len() == MAX_RECORDS,
        ..Default::default()
    };
    for (route, change) in rows {
        let route = serde_json::from_str::<Route>(&route);
        let change = serde_json::from_str::<Change<String>>(&change);
        let (Ok(route), Ok(change)) = (route, change) else {
            under_way.everything = true;
            continue;
        };
        if route.target != subject.descriptor.route.target || !route.is_sound() {
            continue;
        }
        let names = |route: &Route| -> Vec<String> {
            route
                .key
                .iter()
                .map(|at| route.columns[*at].name.clone())
                .collect()
        };
        if change.row.is_empty() && change.key.is_empty()
            || !change.fits(&route)
            || names(&route) != names(&subject.descriptor.route)
        {
            under_way.everything = true;
            continue;
        }
        for key in [change.old_key(&route), change.new_key(&route)] {
            under_way.keys.insert(
                key.into_iter()
                    .map(|text| text.map(str::to_owned))
                    .collect(),
            );
        }
    }
    Ok(under_way)
}
