//! From a row event to a [`Change`].

use super::descriptor::Descriptor;
use crate::change::{Change, Op, Policy};
use crate::error::{Error, Result, SqlState};
use crate::pg::context;
use crate::pg::row::canonical_output;
use crate::pg::trigger::{Event, Slot};

/// The change that an event stands for. Runs the types' output functions.
///
/// # Errors
/// 23502 for NULL in a key column; text that is not UTF-8. PostgreSQL raises what an output
/// function does.
pub fn change_of<'call>(
    event: &Event<'call>,
    op: Op,
    descriptor: &Descriptor,
) -> Result<Change<&'call str>> {
    if op == Op::Truncate {
        return Ok(Change { op, command: 0, key: Vec::new(), row: Vec::new(), seen: None });
    }
    let canonical = !descriptor.sensitive && context::output_is_canonical();
    let _settings = (!canonical).then(canonical_output);
    let mut change = match op {
        Op::Insert => {
            let row = read_row(descriptor, event.row())?;
            let command = event.row().command();
            Change { op, command, key: Vec::new(), row, seen: None }
        }
        Op::Update => {
            let row = read_row(descriptor, event.new_row())?;
            let command = event.new_row().command();
            let (key, _) = read_key(descriptor, event.row())?;
            let mut change = Change { op, command, key: Vec::new(), row, seen: None };
            if change.new_key(&descriptor.route) != key {
                change.key = key;
            }
            change
        }
        Op::Delete | Op::Truncate => {
            let (key, seen) = read_key(descriptor, event.row())?;
            Change { op, command: 0, key, row: Vec::new(), seen }
        }
    };
    check_key(descriptor, &mut change)?;
    Ok(change)
}

fn read_row<'call>(descriptor: &Descriptor, slot: Slot<'call>) -> Result<Vec<Option<&'call str>>> {
    let mut reader = descriptor.row.try_borrow_mut().map_err(|_| reentered())?;
    reader.read(slot)
}

/// The key, and the version where the policy needs it.
fn read_key<'call>(
    descriptor: &Descriptor,
    slot: Slot<'call>,
) -> Result<(Vec<Option<&'call str>>, Option<&'call str>)> {
    let mut reader = descriptor.key.try_borrow_mut().map_err(|_| reentered())?;
    let mut key = reader.read(slot)?;
    let seen = match descriptor.route.policy {
        Policy::Newest(_) => key.pop().flatten(),
        _ => None,
    };
    Ok((key, seen))
}

/// An output function that writes the very table it is called for.
fn reentered() -> Error {
    Error::local(
        SqlState::OBJECT_IN_USE,
        "cannot capture a row while another row of the same trigger is being captured",
    )
}

/// NULL identifies no row: such a change could neither be found nor replayed.
fn check_key(descriptor: &Descriptor, change: &mut Change<&str>) -> Result<()> {
    let route = &descriptor.route;
    let null = |key: &[Option<&str>]| key.iter().position(Option::is_none);
    let found = null(&change.key).or_else(|| null(&change.new_key(route)));
    match found {
        None => Ok(()),
        Some(at) => Err(Error::local(
            SqlState::NOT_NULL_VIOLATION,
            format!(
                "null value in key column \"{}\" of relation \"{}\"",
                route.columns[route.key[at]].name, route.source.table
            ),
        )
        .with_hint("Key columns of a synchronised table must not be null.")),
    }
}
