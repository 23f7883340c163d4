//! From a row event to a [`Change`].

use super::descriptor::Descriptor;
use crate::change::{Change, Op, Policy};
use crate::error::{Error, Result, SqlState};
use crate::pg::context;
use crate::pg::row::canonical_output;
use crate::pg::trigger::{Event, Slot};

/// Hands the changes that an event stands for to `take`: one, or two where an UPDATE gave a GENERATED
/// ALWAYS identity column another value, which no UPDATE elsewhere may do. Runs the types' output
/// functions.
///
/// # Errors
/// 23502 for NULL in a key column; text that is not UTF-8; what `take` reports. PostgreSQL raises
/// what an output function does.
pub fn changes_of(
    event: &Event<'_>,
    op: Op,
    descriptor: &Descriptor,
    take: impl Fn(&Change<&str>) -> Result<()>,
) -> Result<()> {
    if op == Op::Truncate {
        return take(&change(op, 0, Vec::new()));
    }
    let canonical = !descriptor.sensitive && context::output_is_canonical();
    let settings = (!canonical).then(canonical_output);
    let mut captured = match op {
        Op::Insert => vec![inserted(descriptor, event.row())?],
        Op::Update if replaces(descriptor, event)? => {
            vec![deleted(descriptor, event.row())?, inserted(descriptor, event.new_row())?]
        }
        Op::Update => vec![updated(descriptor, event)?],
        Op::Delete | Op::Truncate => vec![deleted(descriptor, event.row())?],
    };
    drop(settings);
    for change in &mut captured {
        check_key(descriptor, change)?;
        if descriptor.route.key_deferrable {
            change.stored = match change.op {
                Op::Insert if op == Op::Insert => (0, event.row().stored()),
                Op::Insert => (0, event.new_row().stored()),
                Op::Update => (event.row().stored(), event.new_row().stored()),
                Op::Delete | Op::Truncate => (event.row().stored(), 0),
            };
        }
        take(change)?;
    }
    Ok(())
}

fn inserted<'call>(descriptor: &Descriptor, slot: Slot<'call>) -> Result<Change<&'call str>> {
    Ok(change(Op::Insert, slot.command(), read_row(descriptor, slot)?))
}

fn deleted<'call>(descriptor: &Descriptor, slot: Slot<'call>) -> Result<Change<&'call str>> {
    let (key, seen) = read_key(descriptor, slot)?;
    Ok(Change { key, seen, ..change(Op::Delete, 0, Vec::new()) })
}

fn updated<'call>(descriptor: &Descriptor, event: &Event<'call>) -> Result<Change<&'call str>> {
    let row = read_row(descriptor, event.new_row())?;
    let mut update = change(Op::Update, event.new_row().command(), row);
    let (key, _) = read_key(descriptor, event.row())?;
    if update.new_key(&descriptor.route) != key {
        update.key = key;
    } else if !matches!(descriptor.route.policy, Policy::Newest(_)) {
        update.unchanged = untouched(descriptor, event)?;
    }
    Ok(update)
}

/// Whether an UPDATE changed a column that no UPDATE may set on the other side.
fn replaces(descriptor: &Descriptor, event: &Event<'_>) -> Result<bool> {
    let columns = &descriptor.route.columns;
    if !columns.iter().any(|column| column.fixed) {
        return Ok(false);
    }
    let (old, new) = (read_row(descriptor, event.row())?, read_row(descriptor, event.new_row())?);
    Ok(columns.iter().zip(old.iter().zip(&new)).any(|(c, (old, new))| c.fixed && old != new))
}

fn change(op: Op, command: u32, row: Vec<Option<&str>>) -> Change<&str> {
    let (key, unchanged) = (Vec::new(), Vec::new());
    Change { op, command, key, row, seen: None, unchanged, stored: (0, 0) }
}

/// Columns outside the key whose large value the UPDATE left where it was. Not under `newest`,
/// which compares whole rows.
fn untouched(descriptor: &Descriptor, event: &Event<'_>) -> Result<Vec<u32>> {
    let reader = descriptor.row.try_borrow().map_err(|_| reentered())?;
    let key = &descriptor.route.key;
    let same = reader.untouched(event.row(), event.new_row());
    Ok(same.filter(|at| !key.contains(at)).map(|at| at as u32).collect())
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
fn check_key(descriptor: &Descriptor, change: &Change<&str>) -> Result<()> {
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
