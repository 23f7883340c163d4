//! Which decisions this backend knows to be carried out, though their rows may still be there: it has sent
//! COMMIT PREPARED itself, or has asked the server. They are removed with its next transaction.

use super::decision;
use crate::error::Result;
use crate::local::{ProcessLocal, process_local};
use crate::pg::spi::Extension;
use crate::pg::subtransaction::remove_beside_others;
use std::cell::RefCell;

process_local! {
    static DONE: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// Those of them whose rows the current transaction has removed.
    static REMOVED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// These are carried out.
pub fn note(gids: impl IntoIterator<Item = String>) {
    DONE.with_borrow_mut(|done| {
        for gid in gids {
            if !done.contains(&gid) {
                done.push(gid);
            }
        }
    });
}

/// Whether this one is known.
pub fn has(gid: &str) -> bool {
    DONE.with_borrow(|done| done.iter().any(|one| one == gid))
}

/// Those that are known.
pub fn all() -> Vec<String> {
    DONE.with_borrow(Clone::clone)
}

/// Removes their rows, unless another session is doing so: then they stay for the next transaction, which finds
/// none.
///
/// # Errors
/// As for [`decision::remove`].
pub fn remove(extension: &Extension) -> Result<()> {
    if DONE.with_borrow(Vec::is_empty) {
        return Ok(());
    }
    let removed = REMOVED.with_borrow(Clone::clone);
    let gids: Vec<String> = all()
        .into_iter()
        .filter(|gid| !removed.contains(gid))
        .collect();
    if remove_beside_others(|| decision::remove(extension, &gids))? {
        REMOVED.with_borrow_mut(|all| all.extend(gids));
    }
    Ok(())
}

/// The local transaction has ended. Cannot fail.
pub fn end(committed: bool) {
    let removed = REMOVED.with(|all| {
        all.try_borrow_mut()
            .map(|mut all| std::mem::take(&mut *all))
    });
    let removed = removed.unwrap_or_default();
    if committed && !removed.is_empty() {
        DONE.with(|done| {
            if let Ok(mut done) = done.try_borrow_mut() {
                done.retain(|gid| !removed.contains(gid));
            }
        });
    }
}
