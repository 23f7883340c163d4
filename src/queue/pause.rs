//! Servers that are paused: nothing is sent to them, at commit or from the queue, until somebody resumes them.
//!
//! A row of `sync_pause` each. Admission looks at it in the view that it has of the queue anyway, so a pause
//! holds for every commit that begins to deliver after it was committed. What is on its way then arrives.

use crate::connect::account::server_oid;
use crate::error::{Error, Result, SqlState};
use crate::pg::context;
use crate::pg::lookup::{self, IndexRef, Status};
use crate::pg::spi::{self, Extension};
use crate::sql::quote::ident;
use crate::transaction;

/// The pause of a server.
pub const OF_SERVER: IndexRef = IndexRef {
    table: "sync_pause",
    column: 1,
    status: Status::Any,
};

/// Whether a server is paused.
///
/// # Errors
/// What reading the table reports.
pub fn is_paused(extension: &Extension, server_name: &str) -> Result<bool> {
    Ok(lookup::first_with(extension, server_name, &[OF_SERVER])?.is_some())
}

/// Pauses a server. False if it was paused.
///
/// # Errors
/// 42704 for a server that is not there, 42501 for who may not; what writing the table reports.
pub fn pause(extension: &Extension, server_name: &str) -> Result<bool> {
    check_may(extension, server_name)?;
    server_oid(extension, server_name)?;
    let sql = format!(
        "INSERT INTO {}.sync_pause (dst_server, paused_by) \
         VALUES ($1, pg_get_userbyid($2::oid)) \
         ON CONFLICT (dst_server) DO NOTHING RETURNING 1",
        ident(&extension.schema)
    );
    let user = context::user().to_u32().to_string();
    Ok(!spi::write(extension, &sql, &[Some(server_name), Some(&user)])?.is_empty())
}

/// Lets a server have its changes again: once the transaction has committed, the worker sends what is queued.
/// False if it was not paused. One that has been dropped can be resumed as well, so that no other inherits
/// its pause.
///
/// # Errors
/// As for [`pause`].
pub fn resume(extension: &Extension, server_name: &str) -> Result<bool> {
    check_may(extension, server_name)?;
    let sql = format!(
        "DELETE FROM {}.sync_pause WHERE dst_server = $1 RETURNING 1",
        ident(&extension.schema)
    );
    let was_paused = !spi::write(extension, &sql, &[Some(server_name)])?.is_empty();
    if was_paused {
        transaction::wake_worker();
    } else {
        server_oid(extension, server_name)?;
    }
    Ok(was_paused)
}

/// Whether the current user may hold a server's changes: its owner, and whoever may drain the queue.
fn check_may(extension: &Extension, server_name: &str) -> Result<()> {
    let sql = "SELECT has_function_privilege($1::oid, $3, 'EXECUTE') \
             OR EXISTS (SELECT FROM pg_foreign_server s \
                  WHERE s.srvname = $2::name \
                    AND pg_has_role($1::oid, s.srvowner, 'USAGE'))";
    let user = context::user().to_u32().to_string();
    let drain = format!(
        "{}.deal_sync_err_rec(integer,text)",
        ident(&extension.schema)
    );
    let rows = spi::read(
        extension,
        sql,
        &[Some(&user), Some(server_name), Some(&drain)],
    )?;
    match rows.first().and_then(|row| row.first()) {
        Some(Some(may)) if may == "t" => Ok(()),
        _ => Err(Error::local(
            SqlState::INSUFFICIENT_PRIVILEGE,
            format!("must be owner of foreign server \"{server_name}\""),
        )
        .with_hint("Or may execute deal_sync_err_rec().")),
    }
}
