//! From a row event to a [`Change`].

use super::descriptor::Descriptor;
use crate::change::{Change, Op, Policy, RowStorage, Stamp};
use crate::error::{Error, Result, SqlState};
use crate::pg::large::Stored;
use crate::pg::output;
use crate::pg::slot::Slot;
use crate::pg::trigger::Event;

/// A change, and what it does not hold: the columns of its row, as positions, whose text stands for a value
/// that was not read.
pub struct Captured<'call> {
    pub change: Change<&'call str>,
    pub unread: Unread,
}

/// Positions of columns, and the values that were left where they are stored.
pub type Unread = Vec<(u32, Stored)>;

impl<'call> From<Change<&'call str>> for Captured<'call> {
    fn from(change: Change<&'call str>) -> Self {
        Self {
            change,
            unread: Vec::new(),
        }
    }
}

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
    take: impl Fn(&Captured<'_>) -> Result<()>,
) -> Result<()> {
    if op == Op::Truncate {
        return take(&Change::truncation().into());
    }
    let settings = (!descriptor.output.are_met()).then(output::pinned);
    let (first, second) = match op {
        Op::Insert => (inserted(descriptor, event, event.row()?)?, None),
        Op::Update if replaces(descriptor, event)? => {
            let (old, new) = (deleted(descriptor, event)?, event.new_row()?);
            (old.into(), Some(inserted(descriptor, event, new)?))
        }
        Op::Update => (updated(descriptor, event)?, None),
        Op::Delete | Op::Truncate => (deleted(descriptor, event)?.into(), None),
    };
    drop(settings);
    for mut one in std::iter::once(first).chain(second) {
        let change = &mut one.change;
        check_key(descriptor, change)?;
        if descriptor.route.key_deferrable {
            let (before, after) = match change.op {
                Op::Insert if op == Op::Insert => (0, event.row()?.stored()),
                Op::Insert => (0, event.new_row()?.stored()),
                Op::Update => (event.row()?.stored(), event.new_row()?.stored()),
                Op::Delete | Op::Truncate => (event.row()?.stored(), 0),
            };
            change.stored = RowStorage {
                before,
                after,
                file: event.file(),
                transaction: 0,
            };
        }
        take(&one)?;
    }
    Ok(())
}

fn inserted<'call>(
    descriptor: &Descriptor,
    event: &Event<'call>,
    row: Slot<'call>,
) -> Result<Captured<'call>> {
    let unread = unread_of(descriptor, row)?;
    let mut insert = change(
        Op::Insert,
        row.command()?,
        read_row_but(descriptor, row, &unread)?,
    );
    insert.stamp = stamp_of(descriptor, event, row, &insert, None)?;
    Ok(Captured {
        change: insert,
        unread,
    })
}

fn deleted<'call>(descriptor: &Descriptor, event: &Event<'call>) -> Result<Change<&'call str>> {
    let (key, version) = read_key(descriptor, event.row()?)?;
    let tombstone = tombstone(descriptor, event, version, true)?;
    let command = event.row()?.ending_command()?;
    Ok(Change {
        key,
        tombstone,
        ..change(Op::Delete, command, Vec::new())
    })
}

fn updated<'call>(descriptor: &Descriptor, event: &Event<'call>) -> Result<Captured<'call>> {
    let new = event.new_row()?;
    let unread = unread_of(descriptor, new)?;
    let row = read_row_but(descriptor, new, &unread)?;
    let mut update = change(Op::Update, new.command()?, row);
    let (key, version) = read_key(descriptor, event.row()?)?;
    let moves = !update
        .new_key_values(&descriptor.route)
        .eq(key.iter().copied());
    if moves {
        update.key = key;
    }
    match &descriptor.versioned {
        Some(versioned) => {
            // A key that is only written differently is still the row's.
            let stays = !moves || versioned.hash(event.row()?)? == versioned.hash(new)?;
            if moves {
                update.tombstone = tombstone(descriptor, event, version, !stays)?;
            }
            let replaced = stays.then_some(version);
            update.stamp = stamp_of(descriptor, event, new, &update, replaced)?;
        }
        None if !moves && descriptor.sees_every_row => {
            update.unchanged = untouched(descriptor, event)?
        }
        // What a row is moved to may be inserted, and what the target has may be older.
        None => {}
    }
    Ok(Captured {
        change: update,
        unread,
    })
}

/// What a new row counts as, where that is not its version. `replaced`: the version of the row it was.
fn stamp_of<'call>(
    descriptor: &Descriptor,
    event: &Event<'call>,
    row: Slot<'call>,
    change: &Change<&'call str>,
    replaced: Option<Option<&str>>,
) -> Result<Option<Stamp<&'call str>>> {
    let (Some(versioned), Some(at)) = (&descriptor.versioned, descriptor.route.version()) else {
        return Ok(None);
    };
    check_key(descriptor, change)?;
    let version = change.row.get(at).copied().flatten();
    let stamp = versioned.written(&descriptor.extension, row, version, replaced)?;
    Ok(stamp.map(|stamp| keep(event, &stamp)))
}

/// What the deletion of the old row counts as; `gives_up`: its key is nobody's now.
fn tombstone<'call>(
    descriptor: &Descriptor,
    event: &Event<'call>,
    version: Option<&str>,
    gives_up: bool,
) -> Result<Option<Stamp<&'call str>>> {
    let Some(versioned) = &descriptor.versioned else {
        return Ok(None);
    };
    let stamp = versioned.deleted(&descriptor.extension, event.row()?, version, gives_up)?;
    Ok(Some(keep(event, &stamp)))
}

fn keep<'call>(event: &Event<'call>, stamp: &Stamp<String>) -> Stamp<&'call str> {
    let version = stamp.version.as_deref().map(|version| event.keep(version));
    Stamp {
        version,
        rank: stamp.rank,
    }
}

/// Whether an UPDATE changed a column that no UPDATE may set on the other side.
fn replaces(descriptor: &Descriptor, event: &Event<'_>) -> Result<bool> {
    let columns = &descriptor.route.columns;
    if !columns.iter().any(|column| column.identity_always) {
        return Ok(false);
    }
    let old = read_row(descriptor, event.row()?)?;
    let new = read_row(descriptor, event.new_row()?)?;
    Ok(columns
        .iter()
        .zip(old.iter().zip(&new))
        .any(|(c, (old, new))| c.identity_always && old != new))
}

fn change(op: Op, command: u32, row: Vec<Option<&str>>) -> Change<&str> {
    let key = Vec::new();
    let unchanged = Vec::new();
    Change {
        op,
        command,
        key,
        row,
        stamp: None,
        tombstone: None,
        unchanged,
        stored: RowStorage::default(),
        overtaken: false,
    }
}

/// Columns outside the key whose large value need not be read now. None under `newest`, which compares
/// whole rows; and all are read where changes of a row are merged.
fn unread_of(descriptor: &Descriptor, row: Slot<'_>) -> Result<Unread> {
    if descriptor.versioned.is_some() || descriptor.route.key_deferrable {
        return Ok(Vec::new());
    }
    let reader = descriptor.row.try_borrow().map_err(|_| reentered())?;
    let stored = reader.stored(row)?;
    if stored.is_empty() {
        return Ok(Vec::new());
    }
    Ok(stored
        .into_iter()
        .filter(|(at, _)| !descriptor.route.key.contains(at))
        .map(|(at, stored)| (at as u32, stored))
        .collect())
}

/// Columns outside the key whose large value the UPDATE left where it was.
fn untouched(descriptor: &Descriptor, event: &Event<'_>) -> Result<Vec<u32>> {
    let reader = descriptor.row.try_borrow().map_err(|_| reentered())?;
    let same = reader
        .untouched(event.row()?, event.new_row()?)?
        .into_iter();
    Ok(same
        .filter(|at| !descriptor.route.key.contains(at))
        .map(|at| at as u32)
        .collect())
}

fn read_row_but<'call>(
    descriptor: &Descriptor,
    slot: Slot<'call>,
    unread: &[(u32, Stored)],
) -> Result<Vec<Option<&'call str>>> {
    let mut reader = descriptor.row.try_borrow_mut().map_err(|_| reentered())?;
    reader.read_but(slot, |at| {
        unread.iter().any(|(unread, _)| *unread as usize == at)
    })
}

fn read_row<'call>(descriptor: &Descriptor, slot: Slot<'call>) -> Result<Vec<Option<&'call str>>> {
    read_row_but(descriptor, slot, &[])
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
    let found = (change.key.iter().position(Option::is_none)).or_else(|| {
        let mut new = change.new_key_values(route);
        new.position(|value| value.is_none())
    });
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
