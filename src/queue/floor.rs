//! Where in a server's queue to begin to look for what is pending.
//!
//! What was delivered leaves dead entries in the index. VACUUM cannot remove them as long as any snapshot is
//! held that is older, and whoever looks for a pending record of an empty queue would walk over all of them.
//! So the drains keep a *floor* for each server: none of its records up to that id is pending, and none will
//! be. Looks begin above it.
//!
//! Ids grow, but a transaction may commit long after it has drawn one. A floor therefore never passes an id
//! that a transaction under way may have drawn: who draws holds a lock of the queue until its end, see
//! [`lock::writers`]. A failed record gets pending again under its old id: who sees to that lowers the floor
//! in the same transaction. Both are done under the server's drain lock.
//!
//! Rows of `sync_queue_floor` leave dead versions too: a floor is raised by [`STEP`] records at least.

use crate::error::Result;
use crate::local::{ProcessLocal, process_local};
use crate::pg::lookup::{self, Is, Key, Status, View};
use crate::pg::spi::{self, Extension};
use crate::pg::{Oid, lock, sequence};
use crate::sql::quote::{ArrayLiteral, ident};
use std::cell::RefCell;

/// Its rows: a server's name, an id.
pub const TABLE: &str = "sync_queue_floor";

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
            let keys = [server, (3, Is::OidBelow(self.below))];
            let Some(owner) = self.view.last_oid("sync_queue", &keys, Status::Pending)? else {
                return Ok(None);
            };
            self.below = owner;
            let floor = match self.floor {
                Some(floor) => floor,
                None => self.view.int8(TABLE, &[(1, self.server)], 2)?.unwrap_or(0),
            };
            self.floor = Some(floor);
            let keys = [server, (3, Is::Oid(owner)), (1, Is::Int8Above(floor))];
            if self.view.has("sync_queue", &keys, Status::Pending)? {
                return Ok(Some(owner));
            }
        }
    }
}

/// Servers with pending records.
///
/// # Errors
/// What reading the queue reports.
pub fn servers(extension: &Extension) -> Result<Vec<String>> {
    View::look(extension, &["sync_queue", TABLE], |view| {
        let mut servers = Vec::new();
        let mut below: Option<String> = None;
        loop {
            let key = below.as_deref().map_or(Is::TextFrom(""), Is::TextBelow);
            let Some(server) = view.last_text("sync_queue", &[(2, key)], Status::Pending)? else {
                return Ok(servers);
            };
            if Owners::of(view, &server).next()?.is_some() {
                servers.push(server.clone());
            }
            below = Some(server);
        }
    })
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

/// The id above which a server's pending records are.
///
/// # Errors
/// What reading the table reports.
pub fn of(extension: &Extension, server_name: &str) -> Result<i64> {
    let sql = format!(
        "SELECT id FROM {}.{TABLE} WHERE dst_server = $1",
        ident(&extension.schema)
    );
    let floor = spi::select_first(extension, &sql, &[Some(server_name)])?;
    Ok(floor.unwrap_or(0))
}

/// Raises a server's floor if that is worth it. Under the server's drain lock.
///
/// # Errors
/// What reading the queue or writing the table reports.
pub fn raise(extension: &Extension, server_name: &str) -> Result<()> {
    let floor = of(extension, server_name)?;
    // Before the writers: who draws later has greater ids.
    let drawn = sequence::last(extension, "sync_queue_id_seq")?.unwrap_or(0);
    if floor > drawn {
        // Somebody has set the sequence back: ids are not what they were.
        return lower(extension, server_name, 1);
    }
    if drawn - floor < STEP {
        return Ok(());
    }
    let writers = lock::writers(lookup::table(extension, "sync_queue")?);
    let Some(settled) = settled(server_name, drawn, writers) else {
        return Ok(());
    };
    // As of now, after all that is settled has ended.
    let first = first_pending(extension, server_name)?;
    let until = first.map_or(settled, |first| settled.min(first - 1));
    if until - floor < STEP {
        return Ok(());
    }
    let sql = format!(
        "INSERT INTO {}.{TABLE} AS f (dst_server, id) VALUES ($1, $2::int8) \
         ON CONFLICT (dst_server) DO UPDATE SET id = excluded.id",
        ident(&extension.schema)
    );
    spi::write(
        extension,
        &sql,
        &[Some(server_name), Some(&until.to_string())],
    )?;
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
    let sql = format!(
        "UPDATE {}.{TABLE} SET id = $2::int8 - 1 \
         WHERE dst_server = $1 \
           AND id >= $2::int8",
        ident(&extension.schema)
    );
    spi::write(extension, &sql, &[Some(server_name), Some(&id.to_string())])?;
    Ok(())
}
