//! Whether a server can prepare transactions at all. A session asks before it writes the first row for it, so
//! that the statement fails and not all that a transaction has done by its COMMIT.

use crate::capture::descriptor::Descriptor;
use crate::connect::account::AccountKey;
use crate::connect::endpoint::Endpoint;
use crate::delivery::link::Link;
use crate::delivery::remote_transaction;
use crate::error::{Error, Result, SqlState};
use crate::local::{ProcessLocal, process_local};
use crate::options::Mode;
use crate::queue::pause;
use crate::sql::MAX_PREPARED;
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a server that gave no answer is not asked again.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// What to do about a server that prepares nothing.
pub const HINT: &str = "Mode \"atomic\" needs max_prepared_transactions on the server: as many as there are sessions \
     that write.";

/// What a session knows of an account.
#[derive(Clone, Copy)]
enum Readiness {
    /// It can prepare.
    Ready,
    /// There was no answer then.
    Unknown(Instant),
}

process_local! {
    static READINESS: RefCell<HashMap<AccountKey, Readiness>> = RefCell::default();
}

/// Refuses to write for a server in mode `atomic` that has `max_prepared_transactions = 0`. One that is
/// paused is not asked, and one that gives no answer is left to the COMMIT.
///
/// # Errors
/// 55000 with a hint; what reading the extension's tables reports; a request to cancel.
pub fn require(descriptor: &Descriptor) -> Result<()> {
    if descriptor.mode != Mode::Atomic {
        return Ok(());
    }
    let account = &descriptor.account;
    let known = READINESS.with_borrow(|all| all.get(&account.key()).copied());
    match known {
        Some(Readiness::Ready) => return Ok(()),
        Some(Readiness::Unknown(asked)) if asked.elapsed() < ASK_AGAIN => return Ok(()),
        _ => {}
    }
    let server_name = &account.server_name;
    if pause::is_paused(&descriptor.extension, server_name)? {
        return Ok(());
    }
    let known = match max_prepared(descriptor) {
        Ok(Some(0)) => {
            let message = format!("server \"{server_name}\" has max_prepared_transactions = 0");
            return Err(Error::local(SqlState::OBJECT_NOT_READY, message).with_hint(HINT));
        }
        Ok(_) => Readiness::Ready,
        Err(Error::Canceled) => return Err(Error::Canceled),
        Err(_) => Readiness::Unknown(Instant::now()),
    };
    READINESS.with_borrow_mut(|all| all.insert(account.key(), known));
    Ok(())
}

/// What was known of servers is true no more: one has refused to prepare.
pub fn forget() {
    READINESS.with_borrow_mut(HashMap::clear);
}

/// Asks the server how many transactions it can have prepared; `None` for an answer that is no number.
fn max_prepared(descriptor: &Descriptor) -> Result<Option<u32>> {
    let endpoint = Endpoint::resolve(&descriptor.extension, &descriptor.account)?;
    let mut link = Link::open(&endpoint)?;
    let mut answer = remote_transaction::ask(&mut link, MAX_PREPARED);
    if link.was_stale() {
        link = Link::connect(&endpoint)?;
        answer = remote_transaction::ask(&mut link, MAX_PREPARED);
    }
    let text = answer?.into_iter().flatten().next();
    remote_transaction::release(link);
    Ok(text.and_then(|text| text.parse().ok()))
}
