//! What became of a drain whose COMMIT was not answered, where rows do not tell: rows of a table without a
//! key look alike whether they were inserted once or twice.
//!
//! Before such a drain commits, it asks for the transaction's id there, and the session remembers it with the
//! records that it has applied. The next drain of the session asks the server what became of it. A session
//! that ends in between takes that with it: then a person decides, see [`super::batch`].

use crate::delivery::link::Link;
use crate::delivery::remote_transaction;
use crate::error::Result;
use crate::local::{ProcessLocal, process_local};
use crate::pg::spi::Extension;
use crate::queue;
use std::cell::RefCell;

/// A drain that was about to be committed.
#[derive(Clone)]
pub struct Unanswered {
    server_name: String,
    owner: String,
    /// The transaction there.
    xact: i64,
    /// The records that it has applied.
    ids: Vec<i64>,
    /// The record up to which it was noted that they may have been applied.
    until: i64,
}

process_local! {
    static NOTED: RefCell<Vec<Unanswered>> = const { RefCell::new(Vec::new()) };
}

/// Remembers a drain, or that one goes on.
pub fn note(server_name: &str, owner: &str, xact: i64, ids: &[i64], until: i64) {
    NOTED.with_borrow_mut(|all| {
        let is = |one: &Unanswered| one.server_name == server_name && one.owner == owner;
        let goes_on = all.iter_mut().find(|one| is(one) && one.xact == xact);
        if let Some(one) = goes_on {
            one.ids.extend(ids);
            one.until = one.until.max(until);
            return;
        }
        all.retain(|one| !is(one));
        let (server_name, owner) = (server_name.to_owned(), owner.to_owned());
        all.push(Unanswered {
            server_name,
            owner,
            xact,
            ids: ids.to_vec(),
            until,
        });
    });
}

/// Settles what the session remembers of a lane: records that are known to have been applied are removed.
/// Gives the record up to which they are known not to have been.
///
/// # Errors
/// What the link or the queue reports; a transient error while the transaction is under way there.
pub fn settle(
    extension: &Extension,
    server_name: &str,
    owner: &str,
    link: &mut Link<'static>,
) -> Result<Option<i64>> {
    let is = |one: &Unanswered| one.server_name == server_name && one.owner == owner;
    let Some(noted) = NOTED.with_borrow(|all| all.iter().find(|one| is(one)).cloned()) else {
        return Ok(None);
    };
    let is_open = match noted.ids.last() {
        Some(last) => queue::is_pending(extension, *last)?,
        None => false,
    };
    if !is_open {
        NOTED.with_borrow_mut(|all| all.retain(|one| !is(one)));
        return Ok(None);
    }
    match remote_transaction::outcome(link, noted.xact)? {
        Some(true) => queue::remove(extension, &noted.ids).map(|()| None),
        Some(false) => Ok(Some(noted.until)),
        None => Ok(None),
    }
}
