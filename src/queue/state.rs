//! What is known of a server from the attempts to drain it: a row of `sync_server_state` each. Written
//! by who holds the server's drain lock; commits of applications never write here, so they never wait
//! for each other.

use crate::error::{Error, Result};
use crate::pg::spi::{self, Extension};
use crate::pg::text::displayable;
use crate::sql::quote::ident;
use std::time::Duration;

/// The channel on which changes between reachable and unreachable are announced, and that something is
/// left prepared.
const CHANNEL: &str = "pg_rowsync";

/// Notes a failed attempt; `next` is when the next one is planned.
///
/// # Errors
/// What writing the table reports.
pub fn failed(
    extension: &Extension,
    server_name: &str,
    reason: &Error,
    next: Option<Duration>,
) -> Result<()> {
    let unreachable = reason.is_unreachable();
    let sql = format!(
        "INSERT INTO {}.sync_server_state AS s (dst_server, failures, unreachable, last_error, \
            last_sqlstate, last_error_at, next_attempt_at) \
         VALUES ($1, 1, $2::bool, $3, $4, clock_timestamp(), \
            clock_timestamp() + $5::interval) \
         ON CONFLICT (dst_server) DO UPDATE SET failures = s.failures + 1, \
            unreachable = s.unreachable OR excluded.unreachable, last_error = excluded.last_error, \
            last_sqlstate = excluded.last_sqlstate, last_error_at = excluded.last_error_at, \
            next_attempt_at = excluded.next_attempt_at",
        ident(&extension.schema)
    );
    let was = is_unreachable(extension, server_name)?;
    let state = reason.sqlstate().to_string();
    let message = displayable(&reason.in_full());
    let next = next.map(|time| format!("{} milliseconds", time.as_millis()));
    let args = [
        Some(server_name),
        Some(flag(unreachable)),
        Some(&*message),
        Some(&*state),
    ];
    let args: Vec<_> = args.into_iter().chain([next.as_deref()]).collect();
    spi::write(extension, &sql, &args)?;
    if unreachable && !was {
        announce(extension, server_name, "unreachable", Some(reason))?;
    }
    Ok(())
}

/// Notes an attempt that found the server there and took its changes.
///
/// # Errors
/// What writing the table reports.
pub fn succeeded(extension: &Extension, server_name: &str) -> Result<()> {
    let sql = format!(
        "INSERT INTO {}.sync_server_state (dst_server, last_success_at) \
         VALUES ($1, clock_timestamp()) \
         ON CONFLICT (dst_server) DO UPDATE SET failures = 0, unreachable = false, \
            last_success_at = excluded.last_success_at, next_attempt_at = NULL",
        ident(&extension.schema)
    );
    let was = is_unreachable(extension, server_name)?;
    spi::write(extension, &sql, &[Some(server_name)])?;
    if was {
        announce(extension, server_name, "reachable", None)?;
    }
    Ok(())
}

/// How often in a row a server has failed, and how long it is until its next attempt; `None` if it has not
/// failed or its time has come.
///
/// # Errors
/// What reading the table reports.
pub fn until_next_attempt(
    extension: &Extension,
    server_name: &str,
) -> Result<Option<(u32, Duration)>> {
    let sql = format!(
        "SELECT failures, (extract(epoch FROM next_attempt_at - \
            clock_timestamp()) * 1000)::int8 \
         FROM {}.sync_server_state WHERE dst_server = $1 \
           AND failures > 0 \
           AND next_attempt_at > clock_timestamp()",
        ident(&extension.schema)
    );
    let state = spi::select_first::<(u32, u64)>(extension, &sql, &[Some(server_name)])?;
    Ok(state.map(|(failures, millis)| (failures, Duration::from_millis(millis))))
}

/// How often in a row the attempts at a server have failed.
///
/// # Errors
/// What reading the table reports.
pub fn failures(extension: &Extension, server_name: &str) -> Result<u32> {
    let sql = format!(
        "SELECT failures FROM {}.sync_server_state WHERE dst_server = $1",
        ident(&extension.schema)
    );
    let failures = spi::select_first::<u32>(extension, &sql, &[Some(server_name)])?;
    Ok(failures.unwrap_or_default())
}

fn is_unreachable(extension: &Extension, server_name: &str) -> Result<bool> {
    let sql = format!(
        "SELECT 1 FROM {}.sync_server_state \
         WHERE dst_server = $1 AND unreachable",
        ident(&extension.schema)
    );
    Ok(!spi::read(extension, &sql, &[Some(server_name)])?.is_empty())
}

fn flag(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

/// NOTIFY at the end of the transaction.
///
/// # Errors
/// What NOTIFY reports.
pub fn announce(
    extension: &Extension,
    server_name: &str,
    state: &str,
    reason: Option<&Error>,
) -> Result<()> {
    let payload = serde_json::json!({
        "server": server_name,
        "state": state,
        "sqlstate": reason.map(|e| e.sqlstate().to_string()),
        // A payload has less than 8,000 bytes.
        "message": reason.map(|e| displayable(&e.one_line()).chars().take(1_000).collect::<String>()),
    });
    let sql = "SELECT pg_notify($1, $2)";
    spi::write(extension, sql, &[Some(CHANNEL), Some(&payload.to_string())])?;
    Ok(())
}
