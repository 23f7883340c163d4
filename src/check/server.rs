//! From what a server says of itself to what will surprise there. Pure.

use super::facts::ServerFacts;
use super::finding::Finding;
use super::problems;
use crate::connect::peer::PeerKind;
use crate::connect::settings::Pooled;
use crate::error::SqlState;
use crate::options::Mode;

/// Clocks may differ by so many microseconds without a finding.
const CLOCK_TOLERANCE: i64 = 1_000_000;

/// Seconds before a password expires in which that is a finding.
const PASSWORD_NOTICE: i64 = 14 * 86_400;

/// A limit of fewer connections is a finding.
const FEW_CONNECTIONS: i64 = 20;

/// How a server was reached, and what for.
pub struct Reached<'s> {
    pub server: &'s str,
    /// The owner whose user mapping was used.
    pub owner: &'s str,
    pub peer: PeerKind,
    /// The server's option.
    pub pooled: Pooled,
    /// Microseconds by which the clock there is ahead; the least that it can be.
    pub clock_ahead: i64,
    /// The strictest mode of what is attached.
    pub mode: Mode,
    /// Something is decided by the newest.
    pub by_newest: bool,
}

/// What there is to be said of the server and the role there.
pub fn findings(reached: &Reached<'_>, here: &ServerFacts, there: &ServerFacts) -> Vec<Finding> {
    let server = reached.server;
    let mut found = Vec::new();
    found.extend(problems::in_recovery(server, there));
    found.extend(encodings(server, here, there));
    found.extend(role(reached, there));
    found.extend(way(reached));
    if reached.by_newest {
        found.extend(newest(reached, here, there));
    }
    // Stricter than "sync" is what prepares there before it commits here.
    if reached.mode > Mode::Sync && there.max_prepared_transactions == 0 {
        found.push(Finding::error(
            SqlState::OBJECT_NOT_READY,
            format!("server \"{server}\" has max_prepared_transactions = 0, and a table's mode prepares there"),
            "Set max_prepared_transactions there to at least its max_connections, and restart it.",
        ));
    }
    found
}

fn encodings(server: &str, here: &ServerFacts, there: &ServerFacts) -> Option<Finding> {
    let ours = here.encoding.as_str();
    let theirs = there.encoding.as_str();
    let problem = format!("this database is in {ours}, that on server \"{server}\" in {theirs}");
    let state = SqlState::new("22P05");
    if ours == theirs {
        return None;
    }
    match (ours, theirs) {
        (_, "UTF8") if ours != "SQL_ASCII" => None,
        ("SQL_ASCII", _) => Some(Finding::warning(
            SqlState::new("22021"),
            format!("{problem}: text here that is not UTF-8 is refused when it is written"),
            "Store UTF-8 only, or give this database an encoding.",
        )),
        (_, "SQL_ASCII") => Some(Finding::notice(
            format!("{problem}: text is stored there as UTF-8 and not looked at"),
            "Give the database there the encoding UTF8.",
        )),
        _ => Some(Finding::warning(
            state,
            format!("{problem}: characters that it lacks are refused there"),
            "Give the database there the encoding UTF8.",
        )),
    }
}

fn role(reached: &Reached<'_>, there: &ServerFacts) -> Vec<Finding> {
    let server = reached.server;
    let role = &there.role;
    let mut found = Vec::new();
    let state = SqlState::OBJECT_NOT_READY;
    if there.replication_role == "replica" {
        found.push(Finding::warning(
            state,
            format!(
                "session_replication_role is \"replica\" for role \"{role}\" on server \"{server}\": foreign keys \
                 and ordinary triggers there do not look at what arrives"
            ),
            format!("Unless that is meant: ALTER ROLE {role} RESET session_replication_role there."),
        ));
    }
    if let Some(other) = &there.acts_as {
        found.push(Finding::notice(
            format!("role \"{role}\" on server \"{server}\" acts as role \"{other}\", by a setting there"),
            format!("Privileges are those of \"{other}\". Unless that is meant: ALTER ROLE {role} RESET role there."),
        ));
    }
    if matches!(there.log_statement.as_str(), "all" | "mod") {
        found.push(Finding::notice(
            format!(
                "log_statement is \"{}\" on server \"{server}\": values of rows that arrive are written to its log",
                there.log_statement
            ),
            format!("ALTER ROLE {role} SET log_statement = 'ddl' there, as a superuser."),
        ));
    }
    if let Some(limit) = there
        .connection_limit
        .filter(|limit| *limit < FEW_CONNECTIONS)
    {
        found.push(Finding::warning(
            SqlState::new("53300"),
            format!("server \"{server}\" lets role \"{role}\" or its database have {limit} connections only"),
            "Each session that writes keeps one. Raise CONNECTION LIMIT there, put a pooler in between, or set \
             the server's option \"keep_connections\" to off.",
        ));
    }
    if let Some(left) = there
        .password_expires
        .filter(|left| *left < PASSWORD_NOTICE)
    {
        found.push(Finding::warning(
            SqlState::new("28P01"),
            format!(
                "the password of role \"{role}\" on server \"{server}\" is good for {} days more",
                left.max(0) / 86_400
            ),
            format!(
                "ALTER ROLE {role} VALID UNTIL there, and the user mapping of \"{}\" here.",
                reached.owner
            ),
        ));
    }
    found
}

fn way(reached: &Reached<'_>) -> Option<Finding> {
    let server = reached.server;
    match (reached.peer, reached.pooled) {
        (PeerKind::Pooled, Pooled::Auto) => Some(Finding::notice(
            format!("server \"{server}\" is reached through a pooler"),
            "That works; every transaction then carries its settings. Set the server's option \"pooled\" to on, and \
             nothing has to be found out.",
        )),
        (PeerKind::Unset, _) => Some(Finding::notice(
            format!(
                "something on server \"{server}\" changes the settings that a connection asks for"
            ),
            "Every transaction sets them again. Look for a login trigger, or for a pooler that drops them.",
        )),
        _ => None,
    }
}

fn newest(reached: &Reached<'_>, here: &ServerFacts, there: &ServerFacts) -> Vec<Finding> {
    let server = reached.server;
    let mut found = Vec::new();
    if reached.clock_ahead.abs() > CLOCK_TOLERANCE {
        let seconds = reached.clock_ahead.abs() / 1_000_000;
        let way = if reached.clock_ahead > 0 {
            "ahead"
        } else {
            "behind"
        };
        found.push(Finding::warning(
            SqlState::OBJECT_NOT_READY,
            format!("the clock of server \"{server}\" is {seconds} s {way}: where versions are times, its rows count as that much {}",
                if reached.clock_ahead > 0 { "newer" } else { "older" }),
            "Set both clocks by the same source.",
        ));
    }
    match (&here.extension, &there.extension) {
        (_, None) => found.push(Finding::notice(
            format!("server \"{server}\" has no extension pg_rowsync, and \"newest\" decides there"),
            "What was deleted there is not known then: an older change that arrives late brings it back. CREATE \
             EXTENSION pg_rowsync there.",
        )),
        (Some(ours), Some(theirs)) if ours != theirs => found.push(Finding::notice(
            format!("the extension is version {ours} here and {theirs} on server \"{server}\""),
            "ALTER EXTENSION pg_rowsync UPDATE on the older side.",
        )),
        _ => {}
    }
    found
}
