//! What became of the last drain of a lane, if the local transaction did not live to hear it: the session ended,
//! the server crashed, the answer to the remote COMMIT was lost.
//!
//! A drain asks for the id of its transaction on the server, and notes it with the records that it has applied
//! before it is committed, see [`drained`]. The next one asks the server what became of that transaction. Where that cannot
//! be known, since the server was started again or another has taken its place, rows tell, see [`super::batch`].

use crate::delivery::link::Link;
use crate::delivery::remote_transaction::{self, RemoteTransaction};
use crate::error::Result;
use crate::local::{ProcessLocal, process_local};
use crate::pg::spi::Extension;
use crate::queue;
use crate::queue::drained::{self, Note, place_of};
use std::cell::RefCell;

/// A drain of the current transaction, or the last one before it.
struct Noted {
    server_name: String,
    owner: String,
    note: Note,
}

process_local! {
    static NOTED: RefCell<Vec<Noted>> = const { RefCell::new(Vec::new()) };
}

/// What is known of a lane's earlier drains.
#[derive(Default)]
pub struct Settled {
    /// None of the records up to this one that are left may have been applied by a drain; `None` where that is not
    /// known.
    pub until: Option<i64>,
    /// Records that were there, and have been removed.
    pub there: Vec<i64>,
}

/// Notes what a drain is about to commit: records that it has applied, and the one behind which it has not come.
/// `transaction`: its own there, or `None` where it goes on with that of the drain before.
///
/// # Errors
/// What writing the note reports.
pub fn note(
    extension: &Extension,
    (server_name, owner): (&str, &str),
    transaction: Option<&RemoteTransaction>,
    (ids, until): (&[i64], i64),
    settled: Settled,
) -> Result<()> {
    let is = |one: &Noted| one.server_name == server_name && one.owner == owner;
    let before = NOTED.with_borrow_mut(|all| {
        let at = all.iter().position(is);
        at.map(|at| all.swap_remove(at).note)
    });
    let mut note = match (transaction, before) {
        (Some(transaction), _) => Note {
            xact: transaction.id,
            place: place_of(&transaction.place, &transaction.started),
            until: until.max(settled.until.unwrap_or_default()),
            applied: Some(Vec::new()),
            there: Some(settled.there),
        },
        (None, Some(before)) => before,
        (None, None) => return Ok(()),
    };
    note.until = note.until.max(until);
    if let Some(applied) = &mut note.applied {
        applied.extend(ids);
    }
    for list in [&mut note.applied, &mut note.there].into_iter().flatten() {
        list.sort_unstable();
        list.dedup();
    }
    drained::write(extension, server_name, owner, &note)?;
    let server_name = server_name.to_owned();
    let owner = owner.to_owned();
    NOTED.with_borrow_mut(|all| {
        all.push(Noted {
            server_name,
            owner,
            note,
        })
    });
    Ok(())
}

/// Notes that a drain was lost before it was to be committed: of the records up to one, the server has none that is
/// left. Without it the next drain would have to ask.
///
/// # Errors
/// What writing the note reports.
pub fn note_lost(
    extension: &Extension,
    (server_name, owner): (&str, &str),
    until: i64,
    settled: &Settled,
) -> Result<()> {
    // What is known to be there is known by the last note alone, should this transaction be rolled back.
    if !settled.there.is_empty() {
        return Ok(());
    }
    let note = Note {
        xact: 0,
        place: 0,
        until: until.max(settled.until.unwrap_or_default()),
        applied: Some(Vec::new()),
        there: Some(Vec::new()),
    };
    drained::write(extension, server_name, owner, &note)
}

/// Settles what the last drain of a lane was about to commit: records that the server has are removed.
///
/// # Errors
/// What the link or the queue reports; a transient error while the transaction is under way there.
pub fn settle(
    extension: &Extension,
    server_name: &str,
    owner: &str,
    link: &mut Link<'static>,
) -> Result<Settled> {
    let Some(note) = drained::read(extension, server_name, owner)? else {
        return Ok(Settled::default());
    };
    let Some(mut there) = note.there else {
        return Ok(Settled::default());
    };
    // All of them were removed, or none.
    if let Some(applied) = &note.applied {
        let ends = [there.first(), there.last(), applied.first(), applied.last()];
        let mut is_left = false;
        for id in ends.into_iter().flatten() {
            is_left |= queue::exists(extension, *id)?;
        }
        if !is_left {
            return Ok(Settled {
                until: Some(note.until),
                there: Vec::new(),
            });
        }
    }
    let place = link.endpoint().place();
    let outcome = remote_transaction::outcome_at(link, note.xact, |started| {
        place_of(&place, started) == note.place
    })?;
    let until = match (outcome, note.applied) {
        (Some(true), Some(applied)) => {
            there.extend(applied);
            Some(note.until)
        }
        (Some(false), _) => Some(note.until),
        _ => None,
    };
    queue::remove(extension, &there)?;
    Ok(Settled { until, there })
}
