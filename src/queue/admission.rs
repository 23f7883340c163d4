//! Whether a change set may be sent, or what of its server's records it must wait for.

use super::failed::Blockers;
use super::floor::{self, Owners};
use super::stored::to_json;
use super::writeset::Writeset;
use super::{copies, lanes, pause};
use crate::atomic::decision::{self, TransactionDecision};
use crate::atomic::done;
use crate::capture::change_set::ChangeSet;
use crate::capture::log::Rows;
use crate::change::Source;
use crate::connect::account::Account;
use crate::error::Result;
use crate::guc;
use crate::pg::lookup::{IndexRef, Is, Status, View};
use crate::pg::spi::{self, Extension};
use crate::sql::quote::ArrayLiteral;
use std::collections::HashSet;

/// What the queue has for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueStatus {
    /// Nothing: changes may be sent.
    Free,
    /// Only failed records, and what waits behind them: what does not depend on them may
    /// be sent.
    Failed,
    /// Only copies under way: what does not go to a table that is being copied may be sent.
    Copying,
    /// Records that are to be sent first, or a lost backend that may still act.
    Pending,
    /// Nothing may be sent, whatever there is.
    Paused,
}

/// What the queue has for a server.
///
/// # Errors
/// What reading the queue reports.
pub fn status(extension: &Extension, server_name: &str) -> Result<QueueStatus> {
    Ok(look(extension, server_name, |_| Ok(false))?.0)
}

/// Sessions that may still commit on a server.
const LOST: IndexRef = IndexRef {
    table: "sync_lost_session",
    column: 2,
    status: Status::Any,
};

/// Whether a view has rows of a server.
fn has(view: &View<'_>, rows: &IndexRef, server_name: &str) -> Result<bool> {
    view.has(
        rows.table,
        &[(rows.column, Is::Text(server_name))],
        rows.status,
    )
}

/// As [`status`], and what `is_undecided` says of the same moment, for which decisions are in view.
fn look(
    extension: &Extension,
    server_name: &str,
    is_undecided: impl FnOnce(&View<'_>) -> Result<bool>,
) -> Result<(QueueStatus, bool)> {
    let paused = pause::OF_SERVER;
    let copies = copies::OF_SERVER;
    let decisions = decision::OF_SERVER;
    let tables = [
        paused.table,
        LOST.table,
        "sync_queue",
        floor::TABLE,
        copies.table,
        decisions.table,
    ];
    View::look(extension, &tables, |view| {
        let status = if has(view, &paused, server_name)? {
            QueueStatus::Paused
        } else if has(view, &LOST, server_name)? || Owners::of(view, server_name).next()?.is_some()
        {
            QueueStatus::Pending
        } else if floor::has_not_pending(view, server_name)? {
            QueueStatus::Failed
        } else if has(view, &copies, server_name)? {
            QueueStatus::Copying
        } else {
            QueueStatus::Free
        };
        Ok((status, is_undecided(view)?))
    })
}

/// Whether records of a server are marked failed or wait, or tables of it are being copied.
///
/// # Errors
/// What reading the queue reports.
pub fn has_failed(extension: &Extension, server_name: &str) -> Result<bool> {
    let copies = copies::OF_SERVER;
    View::look(
        extension,
        &["sync_queue", floor::TABLE, copies.table],
        |view| Ok(floor::has_not_pending(view, server_name)? || has(view, &copies, server_name)?),
    )
}

/// What a change set must wait for.
pub enum Admission {
    /// Nothing: it may be sent.
    Free,
    /// Records that are to be sent first.
    Pending,
    /// Failed records, or that wait themselves.
    Blocked(Blockers),
    /// Older transactions that are prepared on the server, and cannot be seen there before they are committed.
    Undecided(Vec<TransactionDecision>),
    /// Somebody who resumes the server.
    Paused,
}

/// Whether a change set may pass the records of its server.
///
/// # Errors
/// What reading the queue or the change set reports.
pub fn admit(set: &ChangeSet) -> Result<Admission> {
    let mut blockers = Blockers::default();
    let server_name = &set.account.server_name;
    let (status, is_undecided) = look(&set.extension, server_name, |view| {
        meets_decisions(view, set)
    })?;
    if is_undecided && !matches!(status, QueueStatus::Pending | QueueStatus::Paused) {
        let found = decisions_before(set)?;
        if !found.is_empty() {
            return Ok(Admission::Undecided(found));
        }
    }
    match status {
        QueueStatus::Free => return Ok(Admission::Free),
        QueueStatus::Paused => return Ok(Admission::Paused),
        QueueStatus::Pending => {
            if lanes::must_wait(&set.extension, server_name, set.account.owner)? {
                return Ok(Admission::Pending);
            }
            let owner = set.account.owner.to_u32().to_string();
            // What is pending is of lanes apart.
            let mut targets = Vec::new();
            for route in set.routes() {
                targets.push(to_json(&route.target)?);
            }
            for (target, last) in
                lanes::apart_before(&set.extension, server_name, &owner, &targets)?
            {
                let routes = targets
                    .iter()
                    .zip(set.routes())
                    .filter(|(own, _)| **own == target);
                for (_, route) in routes {
                    blockers.add(last, last, &Writeset::of_table(route).writes);
                }
            }
        }
        QueueStatus::Copying
            if !copies::concern(&set.extension, &set.account.server_name, set.routes())? =>
        {
            return Ok(Admission::Free);
        }
        QueueStatus::Failed | QueueStatus::Copying => {}
    }
    let depends_on = depends_on(set)?;
    let Account {
        server_name, owner, ..
    } = &set.account;
    let pending = blockers.load(&set.extension, server_name, *owner, &depends_on)?;
    Ok(match (pending, blockers.is_empty()) {
        (true, _) => Admission::Pending,
        (false, true) => Admission::Free,
        (false, false) => Admission::Blocked(blockers),
    })
}

/// Whether a view has decisions that a change set must wait for, which the session does not know to be carried
/// out.
fn meets_decisions(view: &View<'_>, set: &ChangeSet) -> Result<bool> {
    let of_server = decision::OF_SERVER;
    let keys = [(of_server.column, Is::Text(&set.account.server_name))];
    let mut own: Option<HashSet<i64>> = None;
    let mut found = false;
    view.each_row(of_server.table, &keys, of_server.status, |row| {
        let is_to_commit = row.text(decision::DECISION)?.as_deref() == Some("commit");
        if !is_to_commit || row.text(decision::GID)?.is_some_and(|gid| done::has(&gid)) {
            return Ok(true);
        }
        let Some(writes) = row.int8s(decision::WRITES) else {
            found = true;
            return Ok(false);
        };
        let own = match &mut own {
            Some(own) => own,
            None => own.insert(depends_on(set)?.into_iter().collect()),
        };
        found = writes.iter().any(|hash| own.contains(hash));
        Ok(!found)
    })?;
    Ok(found)
}

/// Decisions of others that a change set must wait for.
fn decisions_before(set: &ChangeSet) -> Result<Vec<TransactionDecision>> {
    let depends_on = depends_on(set)?;
    decision::conflicting_with(
        &set.extension,
        &set.account.server_name,
        &depends_on,
        &done::all(),
    )
}

/// Whether a session that brings changes from elsewhere waits for the current transaction, which has made these, or
/// behind others who do.
///
/// # Errors
/// What reading the locks reports.
pub fn holds_up_delivery(set: &ChangeSet) -> Result<bool> {
    let mut names = ArrayLiteral::default();
    for route in set.routes() {
        let own = route.application_name.clone();
        names.push(Some(&own.unwrap_or_else(guc::application_name)));
    }
    let sql = "SELECT EXISTS (
         SELECT FROM pg_locks AS waits
           JOIN pg_stat_activity AS session ON session.pid = waits.pid
           JOIN pg_locks AS own ON own.pid = pg_backend_pid() AND own.granted
          WHERE NOT waits.granted AND session.application_name = ANY ($1::text[])
            AND (waits.locktype = 'transactionid' AND own.locktype = 'transactionid'
                 AND waits.transactionid = own.transactionid
                 OR waits.locktype = 'tuple' AND own.locktype = 'relation'
                 AND waits.relation = own.relation AND waits.database = own.database))";
    spi::select_one(&set.extension, sql, &[Some(&names.into_text())])
}

/// Hashes that a prepared transaction leaves, at most; one with more concerns everything on its server.
const MAX_WRITES: usize = 1_000;

/// What a change set leaves, which later ones must not meet; `None` for too much.
///
/// # Errors
/// What reading the change set reports.
pub fn writes_of(set: &ChangeSet) -> Result<Option<Vec<i64>>> {
    if set.len() > MAX_WRITES {
        return Ok(None);
    }
    let mut writes = Vec::new();
    let mut changes = set.changes(Rows::Keys);
    while changes.next(&mut |route, change| {
        writes.extend(Writeset::of(route, change).writes);
    })? {}
    writes.sort_unstable();
    writes.dedup();
    Ok((writes.len() <= MAX_WRITES).then_some(writes))
}

/// What a change set must not meet among the writes of older changes.
fn depends_on(set: &ChangeSet) -> Result<Vec<i64>> {
    let mut depends_on = Vec::new();
    let mut changes = set.changes(Rows::Keys);
    while changes.next(&mut |route, change| {
        depends_on.extend(Writeset::of(route, change).depends_on);
    })? {}
    depends_on.sort_unstable();
    depends_on.dedup();
    Ok(depends_on)
}
