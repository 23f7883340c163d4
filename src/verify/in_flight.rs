//! Waits until what was under way has arrived.
//!
//! A delivery is committed on the server a moment before the local transaction: whoever looks in between sees
//! two different rows, and so does whoever looks while a change waits in the queue. So between the two looks
//! at a row this waits for the transactions that have written the table, on either side, and for the records
//! of the table that are pending. A transaction that is idle has not begun to commit: nothing of it is to be
//! seen on any side.
//!
//! So it does for what is committed here and only prepared there, which it finishes itself, and for a copy of the
//! table. What does not arrive all the same leaves out the rows that it is about. What waits for a person, a
//! record or a copy that has failed or a transaction that nobody here can decide, is not under way.

use super::difference::Kind;
use super::sides::{Side, Sides};
use super::subject::Subject;
use crate::atomic::{decision, resolver};
use crate::change::{Change, Relation, Route};
use crate::error::{Error, Result};
use crate::guc;
use crate::pg::spi;
use crate::pg::{interrupt, wait};
use crate::queue::copies;
use crate::queue::writeset::Writeset;
use crate::sql::quote::{ident, literal, relation};
use serde_json::Value;
use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

/// Added to the time that a delivery may take.
const SPARE: Duration = Duration::from_secs(5);
/// How long the queue may stay as long as it is, and a copy where it is, before what waits is left out.
const QUEUE_PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts to finish what is prepared.
const RESOLVE_PAUSE: Duration = Duration::from_millis(500);
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
    /// What transactions that are prepared there have touched, as hashes.
    writes: HashSet<i64>,
    copy: Option<CopyLeft>,
}

/// A copy that has not ended.
struct CopyLeft {
    /// It is to remove what the target has.
    empties: bool,
}

impl UnderWay {
    /// Whether a change that has not arrived may make the row with this key equal, which differs so.
    pub fn concerns(&self, subject: &Subject, kind: Kind, key: &[Option<String>]) -> bool {
        let of_copy = |copy: &CopyLeft| kind != Kind::Extra || copy.empties;
        self.everything
            || self.copy.as_ref().is_some_and(of_copy)
            || self.keys.contains(key)
            || !self.writes.is_empty() && {
                let key: Vec<Option<&str>> = key.iter().map(Option::as_deref).collect();
                (Writeset::of_key(&subject.descriptor.route, &key).iter())
                    .any(|hash| self.writes.contains(hash))
            }
    }
}

/// Waits for what is under way now; says what was waited for in vain.
///
/// # Errors
/// What either side reports; a request to cancel is raised.
pub fn wait(subject: &Subject, sides: &mut Sides) -> Result<UnderWay> {
    let questions = Side::BOTH.map(|side| writers(subject, side));
    let mut writing = ask_writers(sides, &questions)?;
    let mut prepared = Prepared::find(subject)?;
    let copy = Copying::find(subject)?;
    let mut copied = copy.as_ref().and_then(|copy| copy.at.clone());
    let copy = copy.map(|copy| copy.id);
    let last = last_record(subject, copy)?;
    let began = Instant::now();
    let limit = guc::delivery_timeout() + guc::cancel_timeout() + SPARE;
    let mut pause = FIRST_PAUSE;
    let (mut queued, mut went_on) = (u64::MAX, began);
    loop {
        let now = ask_writers(sides, &questions)?;
        for (writing, now) in writing.iter_mut().zip(&now) {
            writing.retain(|one| now.contains(one));
        }
        prepared.settle(subject)?;
        // Before the records: what waits for it is pending once it has ended.
        let still_copied = match copy {
            Some(copy) if copied.is_some() => Copying::look(subject, copy)?,
            _ => None,
        };
        let still = match last {
            Some(last) => records_up_to(subject, copy, last)?,
            None => 0,
        };
        if still < queued || still_copied != copied {
            (queued, went_on) = (still, Instant::now());
            copied = still_copied;
        }
        let is_young = began.elapsed() < limit;
        let is_written = writing.iter().any(|side| !side.is_empty()) && is_young;
        let is_prepared = prepared.may_be_finished() && is_young;
        let goes_on = (still > 0 || copied.is_some()) && went_on.elapsed() < QUEUE_PATIENCE;
        if !is_written && !is_prepared && !goes_on {
            break;
        }
        pause_for(pause);
        pause = (pause * 2).min(MAX_PAUSE);
    }
    let mut under_way = match last.filter(|_| queued > 0) {
        Some(last) => keys_up_to(subject, copy, last)?,
        None => UnderWay::default(),
    };
    for writes in decision::writes(&subject.extension, &prepared.names)? {
        match writes {
            Some(writes) => under_way.writes.extend(writes),
            None => under_way.everything = true,
        }
    }
    if let (Some(copy), true) = (copy, copied.is_some()) {
        under_way.copy = Some(CopyLeft {
            empties: empties(subject, copy)?,
        });
    }
    Ok(under_way)
}

/// Transactions that are committed here and not known to be finished on the server.
struct Prepared {
    names: Vec<String>,
    /// When it is tried again to finish them, and whether that has failed.
    try_at: Instant,
    has_failed: bool,
}

impl Prepared {
    fn find(subject: &Subject) -> Result<Self> {
        let server = &subject.descriptor.account.server_name;
        let names = (decision::committed(&subject.extension)?.into_iter())
            .filter(|(of, _)| of == server)
            .map(|(_, name)| name);
        Ok(Self {
            names: names.collect(),
            try_at: Instant::now(),
            has_failed: false,
        })
    }

    /// Finishes those that can be. What it fails over is in `sync_prepared`, or will be.
    fn settle(&mut self, subject: &Subject) -> Result<()> {
        if !self.may_be_finished() || self.try_at > Instant::now() {
            return Ok(());
        }
        let server = &subject.descriptor.account.server_name;
        match resolver::settle_named(&subject.extension, server, &mut self.names) {
            // Those are a person's: what they are about is told.
            Ok(stuck) => (self.names).retain(|name| stuck.iter().all(|(own, _)| own != name)),
            Err(Error::Canceled) => return Err(Error::Canceled),
            Err(_) => self.has_failed = true,
        }
        self.try_at = Instant::now() + RESOLVE_PAUSE;
        Ok(())
    }

    /// Sessions are about to finish some.
    fn may_be_finished(&self) -> bool {
        !self.names.is_empty() && !self.has_failed
    }
}

/// A copy of the table to its target that has not failed.
struct Copying {
    id: i64,
    /// How far it is, in words.
    at: Option<String>,
}

impl Copying {
    /// The one that is under way.
    fn find(subject: &Subject) -> Result<Option<Self>> {
        let server = &subject.descriptor.account.server_name;
        let Relation { schema, table } = &subject.descriptor.route.target;
        let sql = format!(
            "SELECT c.id FROM {}.{} c WHERE c.dst_server = $1 AND c.target_schema = $2 \
               AND c.target_table = $3 AND c.state <> 'failed'",
            ident(&subject.extension.schema),
            copies::TABLE
        );
        let args = [server, schema, table].map(|text| Some(text.as_str()));
        let Some(id) = spi::select_first(&subject.extension, &sql, &args)? else {
            return Ok(None);
        };
        let at = Self::look(subject, id)?;
        Ok(Some(Self { id, at }))
    }

    /// How far one is; `None` once it has ended, or failed.
    fn look(subject: &Subject, id: i64) -> Result<Option<String>> {
        let sql = format!(
            "SELECT concat_ws(' ', c.started_at, c.prepared, c.rows_done, c.bytes_done, \
               c.complete, c.\"position\") \
             FROM {}.{} c WHERE c.id = $1::int8 AND c.state <> 'failed'",
            ident(&subject.extension.schema),
            copies::TABLE
        );
        spi::select_first(&subject.extension, &sql, &[Some(&id.to_string())])
    }
}

/// Whether a copy is to remove what the target has, and has not done so.
fn empties(subject: &Subject, copy: i64) -> Result<bool> {
    let sql = format!(
        "SELECT c.existing = 'truncate' AND NOT c.prepared FROM {}.{} c WHERE c.id = $1::int8",
        ident(&subject.extension.schema),
        copies::TABLE
    );
    let found = spi::select_first(&subject.extension, &sql, &[Some(&copy.to_string())])?;
    Ok(found.unwrap_or(false))
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

/// FROM for the server's records that are pending, or wait for a copy.
fn of_server(subject: &Subject, copy: Option<i64>) -> String {
    let queue = format!("{}.sync_queue", ident(&subject.extension.schema));
    let rows = |status: &str| {
        format!("SELECT r.* FROM {queue} r WHERE r.dst_server = $1 AND r.status = {status}")
    };
    let mut all = rows("'pending'");
    if let Some(copy) = copy {
        let waiting = rows("'waiting'");
        all.push_str(&format!(
            " UNION ALL {waiting} AND r.waits_for = -{copy}::int8"
        ));
    }
    format!("FROM ({all}) q")
}

/// The last record that is under way to the server, if there is one. Records of other tables come before it in
/// the queue, and what is behind one waits for it.
fn last_record(subject: &Subject, copy: Option<i64>) -> Result<Option<i64>> {
    let server = &subject.descriptor.account.server_name;
    let sql = format!("SELECT max(q.id) {}", of_server(subject, copy));
    spi::select_one(&subject.extension, &sql, &[Some(server)])
}

fn records_up_to(subject: &Subject, copy: Option<i64>, last: i64) -> Result<u64> {
    let server = &subject.descriptor.account.server_name;
    let sql = format!(
        "SELECT count(*) {} WHERE q.id <= $2::int8",
        of_server(subject, copy)
    );
    spi::select_one(
        &subject.extension,
        &sql,
        &[Some(server), Some(&last.to_string())],
    )
}

/// The keys of what waits for the target.
fn keys_up_to(subject: &Subject, copy: Option<i64>, last: i64) -> Result<UnderWay> {
    let server = &subject.descriptor.account.server_name;
    let schema = ident(&subject.extension.schema);
    let sql = format!(
        "SELECT (SELECT r.body FROM {schema}.sync_route r \
                  WHERE r.id = q.route_id), q.change {} \
         WHERE q.id <= $2::int8 ORDER BY q.id LIMIT {MAX_RECORDS}",
        of_server(subject, copy)
    );
    let rows: Vec<(String, String)> = spi::select(
        &subject.extension,
        &sql,
        &[Some(server), Some(&last.to_string())],
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
