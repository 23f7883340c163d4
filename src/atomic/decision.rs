//! The table `sync_prepared_transaction`: a row for each transaction that is prepared on a server and to
//! be committed there, written by the local transaction that decides it. And rows of the resolver, for what
//! it found prepared and could not finish.
//!
//! A session that sees a row knows that the local transaction is committed, and on disk. It may remove the row once
//! the server has said that the remote transaction is committed. That the remote transaction is not prepared any
//! more says too little: the server may have been set back to an earlier time, or have given way to a standby that
//! was behind.

use super::gid::Gid;
use crate::delivery::remote_transaction::{History, PreparedTransaction};
use crate::error::{Error, Result};
use crate::pg::append::{Appender, Value};
use crate::pg::lookup::{IndexRef, Shown, Status};
use crate::pg::spi::{self, Extension};
use crate::pg::text::displayable;
use crate::pg::{Oid, context, removal};
use crate::queue::state;
use crate::sql::quote::{ArrayLiteral, ident};

pub const TABLE: &str = "sync_prepared_transaction";
/// Rows of a server.
pub const OF_SERVER: IndexRef = IndexRef {
    table: TABLE,
    column: SERVER,
    status: Status::Any,
};

/// Numbers of its columns.
pub const GID: i16 = 1;
const SERVER: i16 = 2;
pub const DECISION: i16 = 5;
pub const WRITES: i16 = 8;
const ATTEMPTS: i16 = 9;

/// What is to become of a transaction that is prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Commit,
    Rollback,
}

impl Verdict {
    /// The command's first word, which is also how the table says it, but for the case.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Commit => "COMMIT",
            Self::Rollback => "ROLLBACK",
        }
    }
}

/// A row.
#[derive(Clone, Debug)]
pub struct TransactionDecision {
    pub gid: String,
    /// The owner's OID.
    pub owner: u32,
    /// Where it was prepared and as whom, in words.
    pub place: String,
    /// `None` where that is a person's to say.
    pub verdict: Option<Verdict>,
    /// The local transaction, without its epoch.
    pub transaction: u32,
    /// Attempts to finish it that have failed.
    pub attempts: u32,
    /// What the server knows it by, if it was asked.
    pub there: Option<PreparedTransaction>,
}

impl TransactionDecision {
    fn of((gid, owner, place, decision, transaction, attempts, id, at): Columns) -> Self {
        let at = at.and_then(|at| History::parse(&at));
        Self {
            there: id.zip(at).map(|(id, at)| PreparedTransaction { id, at }),
            gid,
            owner,
            place,
            verdict: match decision.as_deref() {
                Some("commit") => Some(Verdict::Commit),
                Some(_) => Some(Verdict::Rollback),
                None => None,
            },
            transaction: transaction as u32,
            attempts,
        }
    }
}

/// The last two are not there before the extension's objects are updated to 0.2.0.
const COLUMNS: &str = "d.gid, d.owner::oid, d.place, d.decision, d.xact, d.attempts, \
     to_jsonb(d) ->> 'remote_xact', to_jsonb(d) ->> 'remote_history'";
type Columns = (
    String,
    u32,
    String,
    Option<String>,
    u64,
    u32,
    Option<i64>,
    Option<String>,
);

/// The current transaction decides that what was prepared on a server, for an owner and at a place, is to be
/// committed, if it is committed itself. Its commit waits for the disk, whatever `synchronous_commit` says.
/// `there`: what the server will know it by. `writes`: hashes of what it has touched, `None` for everything.
///
/// # Errors
/// What writing the table reports.
pub fn write(
    extension: &Extension,
    (server_name, owner, place): (&str, Oid, &str),
    (gid, there): (&Gid, Option<&PreparedTransaction>),
    writes: Option<&[i64]>,
) -> Result<()> {
    let gid = gid.to_string();
    let history = there.map(|there| there.at.to_string()).unwrap_or_default();
    let mut values = vec![
        ("gid", Value::Text(&gid)),
        ("dst_server", Value::Text(server_name)),
        ("owner", Value::Oid(owner)),
        ("place", Value::Text(place)),
        ("decision", Value::Text("commit")),
        ("xact", Value::Transaction),
        ("prepared_at", Value::Time(context::now())),
        ("attempts", Value::Int4(0)),
    ];
    if let Some(there) = there {
        values.push(("remote_xact", Value::Int8(there.id)));
        values.push(("remote_history", Value::Text(&history)));
    }
    if let Some(writes) = writes {
        values.push(("writes", Value::Int8s(writes)));
    }
    let _writable = context::Writable::new();
    let mut appender = Appender::open(extension, TABLE, Status::Any)?;
    appender.append(&values)?;
    appender.close();
    context::force_flush();
    Ok(())
}

/// Decisions for a server that changes with these hashes must wait for, but for those that the session
/// knows to be carried out.
///
/// # Errors
/// What reading the table reports.
pub fn conflicting_with(
    extension: &Extension,
    server_name: &str,
    depends_on: &[i64],
    done: &[String],
) -> Result<Vec<TransactionDecision>> {
    let mut array = ArrayLiteral::default();
    depends_on
        .iter()
        .for_each(|check| array.push(Some(&check.to_string())));
    let sql = format!(
        "SELECT {COLUMNS} FROM {}.{TABLE} d WHERE d.dst_server = $1 \
           AND d.decision = 'commit' \
           AND (d.writes IS NULL OR d.writes && \
             ARRAY(SELECT unnest($2::int8[]))) \
         ORDER BY d.xact",
        ident(&extension.schema)
    );
    let depends_on = array.into_text();
    let args = [server_name, &depends_on].map(Some);
    let all = spi::select(extension, &sql, &args)?
        .into_iter()
        .map(TransactionDecision::of);
    Ok(all.filter(|one| !done.contains(&one.gid)).collect())
}

/// All rows of a server.
///
/// # Errors
/// What reading the table reports.
pub fn of_server(extension: &Extension, server_name: &str) -> Result<Vec<TransactionDecision>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM {}.{TABLE} d WHERE d.dst_server = $1 \
         ORDER BY d.xact",
        ident(&extension.schema)
    );
    let rows = spi::select(extension, &sql, &[Some(server_name)])?;
    Ok(rows.into_iter().map(TransactionDecision::of).collect())
}

/// Servers and names of what was committed here, or may have been, and is not known to be finished there.
///
/// # Errors
/// What reading the table reports.
pub fn committed(extension: &Extension) -> Result<Vec<(String, String)>> {
    let sql = format!(
        "SELECT d.dst_server, d.gid FROM {}.{TABLE} d \
         WHERE d.decision IS DISTINCT FROM 'rollback' ORDER BY d.xact",
        ident(&extension.schema)
    );
    spi::select(extension, &sql, &[])
}

/// What decisions with these names have touched, as hashes; `None` for everything.
///
/// # Errors
/// What reading the table reports.
pub fn writes(extension: &Extension, names: &[String]) -> Result<Vec<Option<Vec<i64>>>> {
    let mut array = ArrayLiteral::default();
    names.iter().for_each(|name| array.push(Some(name)));
    let sql = format!(
        "SELECT array_to_json(d.writes) FROM {}.{TABLE} d \
         WHERE d.gid = ANY (ARRAY(SELECT unnest($1::text[]))) AND d.decision = 'commit'",
        ident(&extension.schema)
    );
    let rows = spi::read(extension, &sql, &[Some(&array.into_text())])?;
    let hashes = |text: Option<String>| {
        text.map(|text| serde_json::from_str(&text))
            .transpose()
            .map_err(|_| Error::internal("malformed hashes of a decision"))
    };
    rows.into_iter()
        .map(|mut row| hashes(row.pop().flatten()))
        .collect()
}

/// Whether there is a decision with this name, as of now.
///
/// # Errors
/// What reading the table reports.
pub fn exists(extension: &Extension, gid: &str) -> Result<bool> {
    let sql = format!(
        "SELECT 1 FROM {}.{TABLE} d WHERE d.gid = $1 \
           AND d.decision = 'commit'",
        ident(&extension.schema)
    );
    Ok(!spi::read(extension, &sql, &[Some(gid)])?.is_empty())
}

/// Removes rows of transactions that are prepared no more. Those that another session is about to remove
/// are left to it. When a server has none left that could not be finished, listeners hear of it.
///
/// # Errors
/// What writing the table reports, and NOTIFY.
pub fn remove(extension: &Extension, gids: &[String]) -> Result<()> {
    if gids.is_empty() {
        return Ok(());
    }
    let mut were_stuck = Vec::new();
    let note_stuck = |row: &Shown| {
        if row.text(ATTEMPTS)?.is_some_and(|attempts| attempts != "0") {
            were_stuck.extend(row.text(SERVER)?);
        }
        Ok(())
    };
    let is_plain = context::is_read_committed();
    if !(is_plain && removal::remove(extension, TABLE, (GID, gids), note_stuck)?) {
        were_stuck = remove_by_sql(extension, gids)?;
    }
    were_stuck.sort_unstable();
    were_stuck.dedup();
    for server_name in were_stuck {
        if !has_stuck(extension, &server_name)? {
            state::announce(extension, &server_name, "resolved", None)?;
        }
    }
    Ok(())
}

/// Removes such rows; the servers of those that could not be finished at first.
fn remove_by_sql(extension: &Extension, gids: &[String]) -> Result<Vec<String>> {
    let mut array = ArrayLiteral::default();
    gids.iter().for_each(|gid| array.push(Some(gid)));
    let table = format!("{}.{TABLE}", ident(&extension.schema));
    let sql = format!(
        "DELETE FROM {table} WHERE gid = ANY (ARRAY( \
           SELECT d.gid FROM {table} d WHERE d.gid = \
             ANY (ARRAY(SELECT unnest($1::text[]))) \
           FOR UPDATE SKIP LOCKED)) \
         RETURNING CASE WHEN attempts > 0 THEN dst_server END"
    );
    let _writable = context::Writable::new();
    let removed = spi::write(extension, &sql, &[Some(&array.into_text())])?;
    Ok(removed.into_iter().flatten().flatten().collect())
}

/// Whether a server has a row of a transaction that could not be finished.
fn has_stuck(extension: &Extension, server_name: &str) -> Result<bool> {
    let sql = format!(
        "SELECT 1 FROM {}.{TABLE} d WHERE d.dst_server = $1 \
           AND d.attempts > 0 LIMIT 1",
        ident(&extension.schema)
    );
    Ok(!spi::read(extension, &sql, &[Some(server_name)])?.is_empty())
}

/// Notes that a prepared transaction could not be finished. One that is not known yet gets a row. Listeners
/// hear of a server's first.
///
/// # Errors
/// What writing the table reports, and NOTIFY.
pub fn note_failure(
    extension: &Extension,
    (server_name, owner, place): (&str, u32, &str),
    gid: &str,
    verdict: Option<Verdict>,
    reason: &Error,
) -> Result<()> {
    let sql = format!(
        "INSERT INTO {}.{TABLE} AS d (gid, dst_server, owner, place, decision, attempts, \
            last_attempt_at, sqlstate, message) \
         VALUES ($1, $2, $3::oid, $4, $5, 1, clock_timestamp(), $6, $7) \
         ON CONFLICT (gid) DO UPDATE SET attempts = d.attempts + 1, \
            last_attempt_at = excluded.last_attempt_at, sqlstate = excluded.sqlstate, \
            message = excluded.message",
        ident(&extension.schema)
    );
    let owner = owner.to_string();
    let state = reason.sqlstate().to_string();
    let message = displayable(&reason.in_full());
    let verdict = verdict.map(|verdict| verdict.verb().to_lowercase());
    let args = [
        Some(gid),
        Some(server_name),
        Some(&*owner),
        Some(place),
        verdict.as_deref(),
        Some(&*state),
        Some(&*message),
    ];
    let was = has_stuck(extension, server_name)?;
    spi::write(extension, &sql, &args)?;
    if !was {
        state::announce(extension, server_name, "stuck", Some(reason))?;
    }
    Ok(())
}
