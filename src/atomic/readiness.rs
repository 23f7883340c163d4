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
use crate::sql::BEGIN_ON_PRIMARY;
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a server that gave no answer is not asked again.
const ASK_AGAIN: Duration = Duration::from_secs(60);

const PLACES: &str = "SELECT pg_catalog.current_setting('max_prepared_transactions')";

/// What to do about a server that prepares nothing.
pub const HINT: &str = "Mode \"atomic\" needs max_prepared_transactions on the server: as many as there are sessions \
     that write.";

/// What a session knows of an account.
#[derive(Clone, Copy)]
enum Known {
    /// It can prepare.
    Ready,
    /// There was no answer then.
    Unknown(Instant),
}

process_local! {
    static KNOWN: RefCell<HashMap<AccountKey, Known>> = RefCell::default();
}

/// Refuses to write for a server in mode `atomic` that has `max_prepared_transactions = 0`. One that is
/// paused is not asked, and one that gives no answer is left to the COMMIT.
///
/// # Errors
/// 55000 with a hint; missing objects, and what reading the tables reports; a request to cancel.
pub fn require(descriptor: &Descriptor) -> Result<()> {
    if descriptor.mode != Mode::Atomic {
        return Ok(());
    }
    let account = &descriptor.account;
    let known = KNOWN.with_borrow(|all| all.get(&account.key()).copied());
    match known {
        Some(Known::Ready) => return Ok(()),
        Some(Known::Unknown(asked)) if asked.elapsed() < ASK_AGAIN => return Ok(()),
        _ => {}
    }
    let server_name = &account.server_name;
    if pause::is_paused(&descriptor.extension, server_name)? {
        return Ok(());
    }
    let known = match places(descriptor) {
        Ok(Some(0)) => {
            let message = format!("server \"{server_name}\" has max_prepared_transactions = 0");
            return Err(Error::local(SqlState::OBJECT_NOT_READY, message).with_hint(HINT));
        }
        Ok(_) => Known::Ready,
        Err(Error::Canceled) => return Err(Error::Canceled),
        Err(_) => Known::Unknown(Instant::now()),
    };
    KNOWN.with_borrow_mut(|all| all.insert(account.key(), known));
    Ok(())
}

/// What was known of servers is true no more: one has refused to prepare.
pub fn forget() {
    KNOWN.with_borrow_mut(HashMap::clear);
}

/// Asks the server how many transactions it can have prepared; `None` for an answer that is no number.
fn places(descriptor: &Descriptor) -> Result<Option<u32>> {
    let endpoint = Endpoint::resolve(&descriptor.extension, &descriptor.account)?;
    let mut link = Link::open(&endpoint)?;
    let mut answer = ask(&mut link);
    if link.was_stale() {
        link = Link::connect(&endpoint)?;
        answer = ask(&mut link);
    }
    answer?;
    let rows = link.answers().first().cloned().unwrap_or_default();
    remote_transaction::release(link);
    let text = rows.into_iter().flatten().next();
    Ok(text.and_then(|text| text.parse().ok()))
}

fn ask(link: &mut Link<'_>) -> Result<()> {
    let texts = [BEGIN_ON_PRIMARY, PLACES, remote_transaction::COMMIT];
    remote_transaction::execute(link, texts)
}
