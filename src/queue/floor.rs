//! Where in a server's queue to begin to look for what is pending, and for what is failed or waits.
//!
//! What was delivered leaves dead entries in the indexes. VACUUM cannot remove them as long as any snapshot
//! is held that is older, and whoever looks for a record in an empty queue would walk over all of them. So
//! the drains keep two *floors* for each server: none of its records up to the one id is pending, none up to
//! the other is failed or waits, and none will be. Looks begin above them.
//!
//! Ids grow, but a transaction may commit long after it has drawn one. A floor therefore never passes an id
//! that a transaction under way may have drawn: who draws holds a lock of the queue until its end, see
//! [`lock::writers`]. A record that is there already may become pending again, or failed, or wait, under its
//! old id: who sees to that lowers the floor in the same transaction. Both are done under the server's drain
//! lock.
//!
//! Rows of `sync_queue_floor` leave dead versions too: a floor is raised by [`STEP`] records at least.

use super::columns;
use crate::error::Result;
use crate::local::{ProcessLocal, process_local};
use crate::pg::lookup::{self, Is, Key, Status, View};
use crate::pg::spi::{self, Extension};
use crate::pg::{Oid, lock, sequence};
use crate::sql::quote::{ArrayLiteral, ident};
use std::cell::RefCell;

/// Its rows: a server's name, the floor of what is pending, that of what is failed or waits.
pub const TABLE: &str = "sync_queue_floor";

/// The number of its column for what is failed or waits.
pub const CLEAR: i16 = 3;

/// Statuses of records that are not pending.
const NOT_PENDING: [&str; 2] = ["failed", "waiting"];

/// Records by which a floor is raised at least.
const STEP: i64 = 2_000;

/// A floor once these transactions have ended.
struct Candidate {
    server_name: String,
    until: i64,
    writers: Vec<lock::Writer>,
}

process_local! {
    static CANDIDATES: RefCell<Vec<Candidate>> = const { RefCell::new(Vec::new()) };
}

/// A condition on the ids of a server's records that a query `q` is about: those above the floor. `server` is
/// the server's name in SQL.
pub fn above(schema: &str, server: &str) -> String {
    format!(
        "q.id > COALESCE((SELECT f.id FROM {schema}.{TABLE} f \
           WHERE f.dst_server = {server}), 0)"
    )
}

/// As [`above`], of records that are failed or wait.
pub fn above_clear(schema: &str, server: &str) -> String {
    format!(
        "q.id > COALESCE((SELECT f.clear_id FROM {schema}.{TABLE} f \
           WHERE f.dst_server = {server}), 0)"
    )
}

/// Whether records of a server are failed or wait, from the view of [`TABLE`] and the queue.
///
/// # Errors
/// What reading the queue reports.
pub fn has_not_pending(view: &View<'_>, server_name: &str) -> Result<bool> {
    let server: Key<'_> = (columns::SERVER, Is::Text(server_name));
    let status = Status::NotPending;
    // Most of the time there has been none since VACUUM: no entry says that at once.
    if view.last_text("sync_queue", &[server], status)?.is_none() {
        return Ok(false);
    }
    let floor = view.int8(TABLE, &[(1, Is::Text(server_name))], CLEAR)?;
    for name in NOT_PENDING {
        let keys = [
            server,
            (columns::STATUS, Is::Text(name)),
            (columns::ID, Is::Int8Above(floor.unwrap_or(0))),
        ];
        // The first of them is not far above the floor.
        if view.has_first("sync_queue", &keys, status)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The owners that have pending records for a server, one after the other, from the view of [`TABLE`] and the
/// queue.
pub struct Owners<'v> {
    view: &'v View<'v>,
    server: Is<'v>,
    /// All of them are below this one.
    below: Oid,
    floor: Option<i64>,
}

impl<'v> Owners<'v> {
    /// Of this server.
    pub fn of(view: &'v View<'v>, server_name: &'v str) -> Self {
        Self {
            view,
            server: Is::Text(server_name),
            below: Oid::from(u32::MAX),
            floor: None,
        }
    }

    /// The next of them.
    ///
    /// # Errors
    /// What reading the queue reports.
    pub fn next(&mut self) -> Result<Option<Oid>> {
        let server: Key<'_> = (2, self.server);
        loop {
            // From one owner to the next in the index, also of those whose records are gone.
            let keys = [server, (columns::OWNER, Is::OidBelow(self.below))];
            let Some(owner) = self.view.last_oid("sync_queue", &keys, Status::Pending)? else {
                return Ok(None);
            };
            self.below = owner;
            let floor = match self.floor {
                Some(floor) => floor,
                None => self.view.int8(TABLE, &[(1, self.server)], 2)?.unwrap_or(0),
            };
            self.floor = Some(floor);
            let keys = [
                server,
                (columns::OWNER, Is::Oid(owner)),
                (columns::ID, Is::Int8Above(floor)),
            ];
            if self.view.has("sync_queue", &keys, Status::Pending)? {
                return Ok(Some(owner));
            }
        }
    }
}

/// Servers with records in the queue.
pub struct Servers {
    /// With records that are pending.
    pub pending: Vec<String>,
    /// With records that are failed or wait.
    pub not_pending: Vec<String>,
}

impl Servers {
    /// Of this moment.
    ///
    /// # Errors
    /// What reading the queue reports.
    pub fn find(extension: &Extension) -> Result<Self> {
        View::look(extension, &["sync_queue", TABLE], |view| {
            Ok(Self {
                pending: servers(view, Status::Pending, |server| {
                    Ok(Owners::of(view, server).next()?.is_some())
                })?,
                not_pending: servers(view, Status::NotPending, |server| {
                    has_not_pending(view, server)
                })?,
            })
        })
    }
}

/// Servers whose records of this status are in an index, from one to the next, and that have some.
fn servers(
    view: &View<'_>,
    status: Status,
    has: impl Fn(&str) -> Result<bool>,
) -> Result<Vec<String>> {
    let mut servers = Vec::new();
    let mut below: Option<String> = None;
    loop {
        let key = below.as_deref().map_or(Is::TextFrom(""), Is::TextBelow);
        let Some(server) = view.last_text("sync_queue", &[(2, key)], status)? else {
            return Ok(servers);
        };
        if has(&server)? {
            servers.push(server.clone());
        }
        below = Some(server);
    }
}

/// Owners with pending records for a server, as an array's text.
///
/// # Errors
/// What reading the queue reports.
pub fn owners(extension: &Extension, server_name: &str) -> Result<String> {
    let mut owners = ArrayLiteral::default();
    View::look(extension, &["sync_queue", TABLE], |view| {
        let mut found = Owners::of(view, server_name);
        while let Some(owner) = found.next()? {
            owners.push(Some(&owner.to_u32().to_string()));
        }
        Ok(())
    })?;
    Ok(owners.into_text())
}

/// A query for the oldest of an owner's pending records for server `$1`, or for another by this order.
pub fn edge(schema: &str, owner: &str, order: &str) -> String {
    format!(
        "SELECT q.id FROM {schema}.sync_queue q WHERE q.dst_server = $1 \
            AND q.owner::oid = {owner} \
            AND q.status = 'pending' AND {} ORDER BY q.id {order} LIMIT 1",
        above(schema, "$1")
    )
}

/// The oldest pending record of a server.
fn first_pending(extension: &Extension, server_name: &str) -> Result<Option<i64>> {
    let owners = owners(extension, server_name)?;
    let sql = format!(
        "SELECT min(r.id) FROM unnest($2::oid[]) AS o(owner) \
         CROSS JOIN LATERAL ({}) r",
        edge(&ident(&extension.schema), "o.owner", "")
    );
    spi::select_one(extension, &sql, &[Some(server_name), Some(&owners)])
}

/// The oldest record of a server that is failed or waits.
fn first_not_pending(extension: &Extension, server_name: &str) -> Result<Option<i64>> {
    let schema = ident(&extension.schema);
    let sql = format!(
        "SELECT min(r.id) FROM unnest($2::text[]) AS s(status) CROSS JOIN LATERAL ( \
           SELECT q.id FROM {schema}.sync_queue q WHERE q.dst_server = $1 \
             AND q.status = s.status AND q.status <> 'pending' AND {} \
           ORDER BY q.id LIMIT 1) r",
        above_clear(&schema, "$1")
    );
    let mut statuses = ArrayLiteral::default();
    NOT_PENDING
        .iter()
        .for_each(|name| statuses.push(Some(name)));
    let statuses = statuses.into_text();
    spi::select_one(extension, &sql, &[server_name, &statuses].map(Some))
}

/// The ids above which a server's records are: those that are pending, those that are failed or wait.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Floors {
    pending: i64,
    clear: i64,
}

impl Floors {
    fn of(extension: &Extension, server_name: &str) -> Result<Self> {
        let sql = format!(
            "SELECT id, clear_id FROM {}.{TABLE} WHERE dst_server = $1",
            ident(&extension.schema)
        );
        let found: Vec<(i64, i64)> = spi::select(extension, &sql, &[Some(server_name)])?;
        let (pending, clear) = found.into_iter().next().unwrap_or_default();
        Ok(Self { pending, clear })
    }
}

/// The id above which a server's pending records are.
///
/// # Errors
/// What reading the table reports.
pub fn of(extension: &Extension, server_name: &str) -> Result<i64> {
    Ok(Floors::of(extension, server_name)?.pending)
}

/// Raises a server's floors if that is worth it. Under the server's drain lock.
///
/// # Errors
/// What reading the queue or writing the table reports.
pub fn raise(extension: &Extension, server_name: &str) -> Result<()> {
    let floors = Floors::of(extension, server_name)?;
    // Before the writers: who draws later has greater ids.
    let drawn = sequence::last(extension, "sync_queue_id_seq")?.unwrap_or(0);
    if floors.pending.max(floors.clear) > drawn {
        // Somebody has set the sequence back: ids are not what they were.
        lower(extension, server_name, 1)?;
        return lower_clear(extension, server_name, 1);
    }
    let is_due = |floor: i64| drawn - floor >= STEP;
    if !is_due(floors.pending) && !is_due(floors.clear) {
        return Ok(());
    }
    let writers = lock::writers(lookup::table(extension, "sync_queue")?);
    let Some(settled) = settled(server_name, drawn, writers) else {
        return Ok(());
    };
    let raised = |floor: i64, first: Option<i64>| {
        let until = first.map_or(settled, |first| settled.min(first - 1));
        if until - floor < STEP { floor } else { until }
    };
    // As of now, after all that is settled has ended.
    let next = Floors {
        pending: raised(floors.pending, first_pending(extension, server_name)?),
        clear: raised(floors.clear, first_not_pending(extension, server_name)?),
    };
    if next == floors {
        return Ok(());
    }
    let sql = format!(
        "INSERT INTO {}.{TABLE} AS f (dst_server, id, clear_id) \
         VALUES ($1, $2::int8, $3::int8) \
         ON CONFLICT (dst_server) DO UPDATE \
           SET id = excluded.id, clear_id = excluded.clear_id",
        ident(&extension.schema)
    );
    let [pending, clear] = [next.pending, next.clear].map(|id| id.to_string());
    spi::write(extension, &sql, &[server_name, &pending, &clear].map(Some))?;
    Ok(())
}

/// An id up to which no transaction under way has drawn any: of those drawn by now if nobody writes, else of
/// those drawn at an earlier look, whose writers have ended.
fn settled(server_name: &str, drawn: i64, writers: Vec<lock::Writer>) -> Option<i64> {
    CANDIDATES.with_borrow_mut(|all| {
        let at = all.iter().position(|one| one.server_name == server_name);
        let earlier = at.map(|at| all.swap_remove(at));
        if writers.is_empty() {
            return Some(drawn);
        }
        let has_ended = |one: &Candidate| !one.writers.iter().any(|w| writers.contains(w));
        let (next, settled) = match earlier {
            Some(earlier) if !has_ended(&earlier) => (earlier, None),
            earlier => {
                let server_name = server_name.to_owned();
                let next = Candidate {
                    server_name,
                    until: drawn,
                    writers: writers.clone(),
                };
                (next, earlier.map(|earlier| earlier.until))
            }
        };
        all.push(next);
        settled
    })
}

/// A record with this id becomes pending again, and perhaps later ones. Under the server's drain lock, in the
/// transaction that makes it so.
///
/// # Errors
/// What writing the table reports.
pub fn lower(extension: &Extension, server_name: &str, id: i64) -> Result<()> {
    lower_column(extension, server_name, "id", id)
}

/// A record with this id is marked failed or waits from now on, and perhaps later ones; as [`lower`].
///
/// # Errors
/// What writing the table reports.
pub fn lower_clear(extension: &Extension, server_name: &str, id: i64) -> Result<()> {
    lower_column(extension, server_name, "clear_id", id)
}

fn lower_column(extension: &Extension, server_name: &str, column: &str, id: i64) -> Result<()> {
    let sql = format!(
        "UPDATE {}.{TABLE} SET {column} = $2::int8 - 1 \
         WHERE dst_server = $1 \
           AND {column} >= $2::int8",
        ident(&extension.schema)
    );
    spi::write(extension, &sql, &[Some(server_name), Some(&id.to_string())])?;
    Ok(())
}
