//! `wait_sync`: waits until what was committed before the call is on the servers.
//!
//! What a commit has not delivered itself is in the queue when it returns, under ids that it has drawn
//! before. So the largest id that is seen at the call bounds what is waited for: it is there once no record
//! up to that id is left. Records leave the queue with the transaction that has applied them on the server,
//! after the server's commit. What is queued later does not count, nor what the calling transaction itself
//! has changed.
//!
//! A commit in mode `atomic` may return while its transaction is only prepared on the server. Its row of
//! `sync_prepared_transaction` tells so until somebody knows that it is finished there, which may be long after:
//! so whoever waits asks the server, and finishes what is only prepared. A row that nobody here can decide is
//! waited for too: what it stands for may have been committed here.
//!
//! The queue is looked at again and again, at a pace that follows from what a look costs: whoever removes
//! records knows nothing of those who wait. A person who has to do something is told so and waited for.

use crate::atomic::{decision, resolver};
use crate::connect::account::server_oid;
use crate::error::{Error, Result, SqlState};
use crate::guc;
use crate::pg::context::Settings;
use crate::pg::spi::{self, Extension};
use crate::pg::{interrupt, report, wait};
use crate::queue::{floor, pause};
use crate::sql::quote::ident;
use crate::{identity, queue, transaction, worker};
use std::ffi::CString;
use std::time::{Duration, Instant};

/// Between the first two looks.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// Between two looks at most, unless a look itself takes long.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// Looking takes at most this part of the time.
const LOOK_SHARE: u32 = 10;
/// Between two looks at what is in the way.
const OBSTACLE_PAUSE: Duration = Duration::from_secs(1);
/// A server gets this long for an answer at least, whatever is left of the time.
const SHORTEST_ANSWER: Duration = Duration::from_secs(1);

/// A server whose records and prepared transactions are waited for.
struct Awaited {
    server_name: String,
    /// No record below this id is left of those that are waited for.
    low: i64,
    /// Records are left, or copies under way.
    is_queued: bool,
    /// Names of transactions that are not known to be finished there.
    prepared: Vec<String>,
    /// When the server is asked for them again, and what it failed over.
    ask_at: Instant,
    trouble: Option<Error>,
    /// What is in the way and was reported.
    reported: Vec<&'static str>,
}

/// Waits until everything that was committed before is on a server, or on all of them. False if it is not
/// within the `timeout`, an interval; without one it waits for ever.
///
/// # Errors
/// 55000 in a copy and in a transaction that has drained; 42704 for a server that neither exists nor has
/// records; 57014 for a request to cancel; what reading the queue reports.
pub fn wait_for(
    extension: &Extension,
    server: Option<&str>,
    timeout: Option<&str>,
) -> Result<bool> {
    if transaction::has_drained() {
        let message = "cannot wait in a transaction that has called deal_sync_err_rec";
        return Err(Error::local(SqlState::OBJECT_NOT_READY, message)
            .with_hint("What it has drained is committed on the servers when it commits."));
    }
    identity::check(extension)?;
    let timeout = timeout
        .map(|timeout| duration(extension, timeout))
        .transpose()?;
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mark = newest(extension, "sync_queue")?.unwrap_or_default();
    let copies = newest(extension, "sync_copy")?.unwrap_or_default();
    let prepared = decision::committed(extension)?;
    let servers = match server {
        Some(name) => {
            let is_prepared = prepared.iter().any(|(server, _)| server == name);
            if !is_prepared && !queue::knows(extension, name)? {
                server_oid(extension, name)?;
            }
            vec![name.to_owned()]
        }
        None => {
            let mut servers = queue::servers(extension, true)?;
            servers.extend(copied_to(extension)?);
            servers.extend(prepared.iter().map(|(server, _)| server.clone()));
            servers.sort_unstable();
            servers.dedup();
            servers
        }
    };
    let mut awaited: Vec<_> = servers
        .into_iter()
        .map(|server_name| Awaited {
            low: i64::MIN,
            is_queued: true,
            prepared: (prepared.iter())
                .filter(|(server, _)| *server == server_name)
                .map(|(_, gid)| gid.clone())
                .collect(),
            ask_at: Instant::now(),
            trouble: None,
            reported: Vec::new(),
            server_name,
        })
        .collect();
    worker::wake_now();
    let mut pause = FIRST_PAUSE;
    let mut obstacles_at = Instant::now();
    loop {
        let began = Instant::now();
        let mut left = Vec::with_capacity(awaited.len());
        for mut one in awaited {
            let oldest = oldest(extension, &one.server_name, one.low, mark)?;
            one.low = oldest.unwrap_or(one.low);
            one.is_queued =
                oldest.is_some() || is_copied_to(extension, &one.server_name, copies, "true")?;
            if one.is_queued || is_prepared_there(extension, &mut one, deadline)? {
                left.push(one);
            }
        }
        awaited = left;
        if awaited.is_empty() {
            return Ok(true);
        }
        let now = Instant::now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Ok(false);
        }
        if obstacles_at <= now {
            for one in &mut awaited {
                tell_obstacles(extension, one, mark, copies)?;
            }
            obstacles_at = now + OBSTACLE_PAUSE;
        }
        let step = pause.max((now - began) * LOOK_SHARE);
        let step = deadline.map_or(step, |deadline| {
            step.min(deadline.saturating_duration_since(now))
        });
        wait::wait(&[], step);
        interrupt::check();
        pause = pause.mul_f32(1.5).min(LONGEST_PAUSE);
    }
}

/// Whether transactions are left that are prepared on a server and not finished there; those that can be are.
/// A server that cannot be asked is asked again after a while.
fn is_prepared_there(
    extension: &Extension,
    awaited: &mut Awaited,
    deadline: Option<Instant>,
) -> Result<bool> {
    let now = Instant::now();
    if awaited.prepared.is_empty() || awaited.ask_at > now {
        return Ok(!awaited.prepared.is_empty());
    }
    let _limits = deadline.and_then(|deadline| {
        let left = deadline.saturating_duration_since(now).max(SHORTEST_ANSWER);
        let limit = |own: Duration| CString::new(format!("{}ms", own.min(left).as_millis())).ok();
        let connect = limit(guc::connect_timeout())?;
        let answer = limit(guc::delivery_timeout())?;
        Some(Settings::set(&[
            (c"pg_rowsync.connect_timeout", &connect),
            (c"pg_rowsync.delivery_timeout", &answer),
        ]))
    });
    let name = &awaited.server_name;
    awaited.trouble = match resolver::settle_named(extension, name, &mut awaited.prepared) {
        Ok(stuck) => stuck.into_iter().next().map(|(_, reason)| reason),
        Err(Error::Canceled) => return Err(Error::Canceled),
        Err(error) => {
            let message = format!("what is committed here is only prepared on server \"{name}\"");
            Some(
                Error::local(error.sqlstate(), message)
                    .with_detail(error.one_line())
                    .with_hint("It is tried again."),
            )
        }
    };
    if awaited.trouble.is_some() {
        awaited.ask_at = Instant::now() + OBSTACLE_PAUSE;
    }
    Ok(!awaited.prepared.is_empty())
}

/// An interval as a time to wait; none that has passed.
fn duration(extension: &Extension, interval: &str) -> Result<Duration> {
    let sql = "SELECT (LEAST(GREATEST(extract(epoch FROM $1::interval), 0), 1e9) \
                 * 1000)::int8";
    let millis: Option<i64> = spi::select_one(extension, sql, &[Some(interval)])?;
    let millis = millis.unwrap_or_default();
    Ok(Duration::from_millis(millis.max(0) as u64))
}

/// The largest id of a record, or of a copy, if there is any.
fn newest(extension: &Extension, table: &str) -> Result<Option<i64>> {
    let sql = format!(
        "SELECT q.id FROM {}.{table} q ORDER BY q.id DESC LIMIT 1",
        ident(&extension.schema)
    );
    spi::select_first(extension, &sql, &[])
}

/// The smallest id of a server's record between two, if there is any. Each part by an index: as many newer
/// ones there may be.
fn oldest(extension: &Extension, server_name: &str, low: i64, mark: i64) -> Result<Option<i64>> {
    let schema = ident(&extension.schema);
    let first = |condition: &str, above: &str| {
        format!(
            "(SELECT q.id FROM {schema}.sync_queue q WHERE q.dst_server = $1 AND {condition} \
                AND q.id >= $2::int8 \
                AND q.id <= $3::int8 AND {above} ORDER BY q.id LIMIT 1)"
        )
    };
    let clear = floor::above_clear(&schema, "$1");
    let sql = format!(
        "SELECT min(f.id) FROM ( \
           SELECT {} FROM unnest($4::oid[]) AS o(owner) \
           UNION ALL {} UNION ALL {}) AS f(id)",
        first(
            "q.owner::oid = o.owner \
             AND q.status = 'pending'",
            &floor::above(&schema, "$1")
        ),
        first("q.status = 'failed'", &clear),
        first("q.status = 'waiting'", &clear),
    );
    let owners = floor::owners(extension, server_name)?;
    let low = low.to_string();
    let mark = mark.to_string();
    spi::select_one(
        extension,
        &sql,
        &[server_name, &low, &mark, &owners].map(Some),
    )
}

/// Servers to which tables are being copied.
fn copied_to(extension: &Extension) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT DISTINCT c.dst_server FROM {}.sync_copy c",
        ident(&extension.schema)
    );
    spi::select(extension, &sql, &[])
}

/// Whether copies to a server up to one, of which the condition holds, are under way. Not those that the
/// calling transaction has registered: nobody sees them before it has ended.
fn is_copied_to(
    extension: &Extension,
    server_name: &str,
    until: i64,
    condition: &str,
) -> Result<bool> {
    let sql = format!(
        "SELECT 1 FROM {}.sync_copy c WHERE c.dst_server = $1 \
           AND c.id <= $2::int8 AND {condition} \
           AND NOT COALESCE(c.registered_by = \
             pg_current_xact_id_if_assigned(), false) LIMIT 1",
        ident(&extension.schema)
    );
    Ok(!spi::read(
        extension,
        &sql,
        &[Some(server_name), Some(&until.to_string())],
    )?
    .is_empty())
}

/// Tells, once each, what keeps a server's records from being delivered until somebody does something.
fn tell_obstacles(
    extension: &Extension,
    awaited: &mut Awaited,
    mark: i64,
    copies: i64,
) -> Result<()> {
    let name = &awaited.server_name;
    if let Some(error) = &awaited.trouble
        && !awaited.reported.contains(&"prepared")
    {
        awaited.reported.push("prepared");
        report::caution(error);
    }
    if !awaited.is_queued {
        return Ok(());
    }
    let mut tell = |what: &'static str, message: String, hint: &str| {
        if !awaited.reported.contains(&what) {
            awaited.reported.push(what);
            report::caution(&Error::local(SqlState::OBJECT_NOT_READY, message).with_hint(hint));
        }
    };
    if pause::is_paused(extension, name)? {
        let message = format!("server \"{name}\" is paused: what is queued for it waits");
        tell(
            "paused",
            message,
            "resume_sync() lets it have its changes again.",
        );
    }
    if has_failed(extension, name, mark)? {
        tell(
            "failed",
            format!("changes for server \"{name}\" are marked failed: they are waited for"),
            "See sync_err_rec. Remove the cause and call retry_sync_err_rec(), or discard them by deleting \
             their rows there.",
        );
    }
    if is_copied_to(extension, name, copies, "c.state = 'failed'")? {
        tell(
            "copy",
            format!("a copy to server \"{name}\" has failed: it is waited for"),
            "See sync_progress. Remove the cause and call copy_sync() again, or detach_sync().",
        );
    }
    let state = worker::state(extension)?;
    if state != "running" && state != "idle" {
        tell(
            "worker",
            format!("no background worker delivers what is queued for server \"{name}\""),
            "Call start_sync_worker(), or deal_sync_err_rec() in another session.",
        );
    }
    Ok(())
}

/// Whether records up to this one are marked failed until a person does something.
fn has_failed(extension: &Extension, server_name: &str, mark: i64) -> Result<bool> {
    let sql = format!(
        "SELECT 1 FROM {}.sync_queue q WHERE q.dst_server = $1 \
           AND q.status = 'failed' AND q.next_attempt_at IS NULL \
           AND q.id <= $2::int8 LIMIT 1",
        ident(&extension.schema)
    );
    Ok(!spi::read(
        extension,
        &sql,
        &[Some(server_name), Some(&mark.to_string())],
    )?
    .is_empty())
}
