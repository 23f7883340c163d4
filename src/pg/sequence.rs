//! Numbers from a sequence, without a trace in the session: `nextval` would make ours the sequence that
//! `lastval()` tells of, which clients take for the key of the row they have inserted.

use super::Oid;
use super::context::AsUser;
use super::database::current;
use super::lock_tag::object_tag;
use super::lookup;
use super::spi::{self, Extension};
use super::xact;
use crate::error::{Error, Result, SqlState};
use crate::sql::quote::ident;
use pgrx::{direct_function_call, pg_sys};

/// Draws so many numbers that follow each other, and gives the first. They are greater than all that were drawn
/// before, and given back by nobody, whatever becomes of the transaction.
///
/// Whoever draws from the sequence must do so here: a lock keeps them apart, for a moment only.
///
/// # Errors
/// When there is no such sequence, or it has come to its end; 25P01 outside of a transaction.
pub fn draw(extension: &Extension, name: &str, count: i64) -> Result<i64> {
    xact::require()?;
    let sequence = lookup::table(extension, name)?;
    let _user = AsUser::switch(extension.owner);
    let tag = object_tag(current(), pg_sys::RelationRelationId, sequence, NUMBER);
    let mode = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;
    // SAFETY: a plain lock tag; what is raised in between releases it with the transaction.
    unsafe { pg_sys::LockAcquire(&tag, mode, false, false) };
    let first = next(extension, name, sequence)?;
    let last = first.checked_add(count.max(1) - 1).ok_or_else(|| {
        let message = format!("sequence \"{name}\" has come to its end");
        Error::local(SqlState::new("2200H"), message)
    })?;
    // SAFETY: the server's own functions, with arguments of their types; and the lock that was taken.
    unsafe {
        let args = [Some(sequence.into()), Some(last.into()), Some(true.into())];
        direct_function_call::<i64>(pg_sys::setval3_oid, &args);
        pg_sys::LockRelease(&tag, mode, false);
    }
    Ok(first)
}

/// Raises a sequence to a number, unless it has been there already, whatever becomes of the transaction; once
/// this returns, no crash takes it back.
///
/// # Errors
/// When there is no such sequence.
pub fn raise(extension: &Extension, name: &str, to: i64) -> Result<()> {
    let sequence = lookup::table(extension, name)?;
    let _user = AsUser::switch(extension.owner);
    let tag = object_tag(current(), pg_sys::RelationRelationId, sequence, NUMBER);
    let mode = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;
    // SAFETY: a plain lock tag; what is raised in between releases it with the transaction. The server's own
    // function, with arguments of their types. What is flushed is what the call has logged.
    unsafe {
        pg_sys::LockAcquire(&tag, mode, false, false);
        // Logged even where it changes nothing: what another session has raised it to may not be flushed.
        let to = last_of(sequence).unwrap_or(to).max(to);
        let args = [Some(sequence.into()), Some(to.into()), Some(true.into())];
        direct_function_call::<i64>(pg_sys::setval3_oid, &args);
        pg_sys::LockRelease(&tag, mode, false);
        pg_sys::XLogFlush(pg_sys::XactLastRecEnd);
    }
    Ok(())
}

/// The number that a sequence has come to; `None` before the first.
///
/// # Errors
/// When there is no such sequence.
pub fn last(extension: &Extension, name: &str) -> Result<Option<i64>> {
    let sequence = lookup::table(extension, name)?;
    let _user = AsUser::switch(extension.owner);
    Ok(last_of(sequence))
}

fn last_of(sequence: Oid) -> Option<i64> {
    // SAFETY: the server's own function, with an argument of its type. NULL before the first number is drawn.
    unsafe {
        let args = [Some(sequence.into())];
        direct_function_call::<i64>(pg_sys::pg_sequence_last_value, &args)
    }
}

/// Tells the lock from others of the relation.
const NUMBER: u16 = 1;

/// The number that comes next, while the sequence is locked.
fn next(extension: &Extension, name: &str, sequence: Oid) -> Result<i64> {
    if let Some(last) = last_of(sequence) {
        return Ok(last.saturating_add(1));
    }
    let sql = format!(
        "SELECT last_value FROM {}.{}",
        ident(&extension.schema),
        ident(name)
    );
    spi::select_one(extension, &sql, &[])
}
