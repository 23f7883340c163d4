//! What is wrong between a table here and its target on a server: looked at in one exchange over a connection
//! of the table owner's, with nothing but the other side's catalogs. `question` asks, `judge` decides.

mod judge;
mod question;

pub use self::judge::{Finding, Severity};

use self::judge::Subject;
use crate::change::{Relation, Route};
use crate::delivery::drive;
use crate::delivery::endpoint::{Account, Endpoint};
use crate::delivery::feed::Fixed;
use crate::delivery::link::{Ending, Link};
use crate::delivery::session;
use crate::error::{Error, Result};
use crate::guc;
use crate::pg::interrupt;
use crate::pg::spi::{self, Home, required};
use std::time::Instant;

/// Looks at the target of a route, for `pg_rowsync.connect_timeout` at most. What is in the way of looking is
/// a finding too. A request to cancel is raised.
///
/// # Errors
/// What the local catalogs report.
pub fn look(
    home: &Home,
    account: &Account,
    local: &Relation,
    route: &Route,
) -> Result<Vec<Finding>> {
    let database = database(home)?;
    let asked = Endpoint::resolve(home, account).and_then(|endpoint| {
        let version = route.version().map(|at| route.columns[at].name.as_str());
        let answer = ask(Link::open(&endpoint)?, &question::about(&route.target, version))?;
        Ok((endpoint.application_name.clone(), answer))
    });
    let server = &account.server_name;
    Ok(match asked {
        Ok((name, Some(facts))) => {
            let guard = route.application_name.as_ref().unwrap_or(&name);
            judge::findings(&Subject { server, database: &database, local, route, guard }, &facts)
        }
        // No answer that an honest server gives.
        Ok((_, None)) => Vec::new(),
        Err(error) => vec![judge::not_asked(server, &error)],
    })
}

/// What is in the way of asking anything over an account, if something is; for `pg_rowsync.connect_timeout` at most. A
/// request to cancel is raised.
///
/// # Errors
/// What the local catalogs report.
pub fn unreachable(home: &Home, account: &Account) -> Result<Option<Finding>> {
    let asked = Endpoint::resolve(home, account)
        .and_then(|endpoint| ask(Link::open(&endpoint)?, "SELECT 1").map(drop));
    Ok(asked.err().map(|error| judge::not_asked(&account.server_name, &error)))
}

/// The current database's name.
fn database(home: &Home) -> Result<String> {
    let rows = spi::read(home, "SELECT pg_catalog.current_database()", &[])?;
    required(&mut rows.into_iter().next().unwrap_or_default(), 0)
}

/// The server's answer, if it is one.
fn ask(mut link: Link<'_>, sql: &str) -> Result<Option<question::Facts>> {
    let limit = guc::connect_timeout();
    let deadline = Instant::now() + limit;
    link.run(Fixed::new([sql]), Ending::Open);
    while !link.is_done() {
        let left = deadline.saturating_duration_since(Instant::now());
        let asked = interrupt::pending();
        if asked || left.is_zero() {
            let server = link.endpoint().account.server_name.clone();
            // Closes the connection, before a request to cancel is raised.
            drop(link);
            interrupt::check();
            let millis = limit.as_millis() as i64;
            return Err(Error::Timeout { server, what: "asking the server", millis });
        }
        drive::drive_for(std::slice::from_mut(&mut link), left);
    }
    link.result()?;
    let text = link.answers().iter().flatten().flatten().next();
    let facts: Option<question::Facts> = text.and_then(|text| serde_json::from_str(text).ok());
    link.into_session().into_iter().for_each(session::put_back);
    Ok(facts.filter(question::Facts::is_sound))
}
