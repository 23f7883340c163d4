//! The one error type, its SQLSTATEs and the line between transient and permanent.
//!
//! Functions return [`Result`]; only the edges (SQL functions, the trigger, the transaction
//! callbacks) raise, through `pg::report`. No message carries a password or a row value; what another
//! server says may quote a value, and is only kept where its [reader](Error::in_full) may see rows.

use std::fmt;

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A five-character SQLSTATE.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

/// Constraints that look at other rows, too.
const ABOUT_OTHERS: [SqlState; 4] = [
    SqlState::FOREIGN_KEY_VIOLATION,
    SqlState::UNIQUE_VIOLATION,
    SqlState::EXCLUSION_VIOLATION,
    SqlState::RESTRICT_VIOLATION,
];

impl SqlState {
    pub const CONFIGURATION_LIMIT: Self = Self::new("53400");
    pub const CONNECTION_FAILURE: Self = Self::new("08006");
    pub const CANNOT_CONNECT: Self = Self::new("08001");
    pub const RESOLUTION_UNKNOWN: Self = Self::new("08007");
    pub const COMPLETION_UNKNOWN: Self = Self::new("40003");
    pub const REJECTED_CONNECTION: Self = Self::new("08004");
    pub const PROTOCOL_VIOLATION: Self = Self::new("08P01");
    pub const DATATYPE_MISMATCH: Self = Self::new("42804");
    pub const FDW_INVALID_OPTION: Self = Self::new("HV00D");
    pub const FEATURE_NOT_SUPPORTED: Self = Self::new("0A000");
    pub const FOREIGN_KEY_VIOLATION: Self = Self::new("23503");
    pub const INSUFFICIENT_PRIVILEGE: Self = Self::new("42501");
    /// A statement of ours two of whose changes are of one row there.
    pub const CARDINALITY_VIOLATION: Self = Self::new("21000");
    pub const INVALID_COLUMN_REFERENCE: Self = Self::new("42P10");
    pub const INVALID_PARAMETER: Self = Self::new("22023");
    pub const INVALID_TEXT: Self = Self::new("22P02");
    pub const READ_ONLY: Self = Self::new("25006");
    pub const NO_TRANSACTION: Self = Self::new("25P01");
    pub const NOT_NULL_VIOLATION: Self = Self::new("23502");
    pub const NO_DATA_FOUND: Self = Self::new("P0002");
    pub const INVALID_STATEMENT_NAME: Self = Self::new("26000");
    pub const LOCK_NOT_AVAILABLE: Self = Self::new("55P03");
    pub const OUT_OF_MEMORY: Self = Self::new("53200");
    pub const OBJECT_IN_USE: Self = Self::new("55006");
    pub const OBJECT_NOT_READY: Self = Self::new("55000");
    pub const PASSWORD_REQUIRED: Self = Self::new("2F003");
    pub const QUERY_CANCELED: Self = Self::new("57014");
    pub const SERIALIZATION_FAILURE: Self = Self::new("40001");
    pub const TRIGGER_PROTOCOL: Self = Self::new("39P01");
    pub const UNDEFINED_COLUMN: Self = Self::new("42703");
    pub const UNDEFINED_FUNCTION: Self = Self::new("42883");
    pub const UNDEFINED_OBJECT: Self = Self::new("42704");
    pub const WRONG_OBJECT_TYPE: Self = Self::new("42809");
    pub const EXCLUSION_VIOLATION: Self = Self::new("23P01");
    pub const RESTRICT_VIOLATION: Self = Self::new("23001");
    pub const UNIQUE_VIOLATION: Self = Self::new("23505");
    pub const UNDEFINED_TABLE: Self = Self::new("42P01");
    pub const INTERNAL: Self = Self::new("XX000");
    pub const TRANSACTION_ROLLBACK: Self = Self::new("40000");

    /// A state from its five characters; anything else becomes `XX000`, as PostgreSQL reports
    /// what it cannot classify.
    pub const fn new(code: &str) -> Self {
        let b = code.as_bytes();
        if b.len() == 5 {
            Self([b[0], b[1], b[2], b[3], b[4]])
        } else {
            Self(*b"XX000")
        }
    }

    /// The state of a failure as a server tells it, which may be anything: `XX000` for what is none,
    /// or is that of a success.
    pub fn of_failure(code: &str) -> Self {
        let redacted = code
            .bytes()
            .all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
        if redacted && !code.starts_with("00") {
            Self::new(code)
        } else {
            Self::INTERNAL
        }
    }

    /// The five characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }

    /// PostgreSQL's packed form (`MAKE_SQLSTATE` in `utils/elog.h`): six bits a character.
    pub fn packed(&self) -> i32 {
        self.0.iter().enumerate().fold(0, |acc, (i, c)| {
            acc | ((i32::from(*c) - i32::from(b'0')) & 0x3f) << (6 * i)
        })
    }

    /// The state behind PostgreSQL's packed form.
    pub fn unpacked(code: i32) -> Self {
        Self(std::array::from_fn(|i| {
            (((code >> (6 * i)) & 0x3f) as u8) + b'0'
        }))
    }

    /// What a failure with this state, of a statement on a server that is otherwise there, says of the change:
    /// see [`Outlook`] and [`OUTLOOKS`]. What is in no row is the change's own fault.
    pub fn outlook(&self) -> Outlook {
        let state = self.as_str();
        let row = OUTLOOKS.iter().find(|row| state.starts_with(row.0));
        row.map_or(Outlook::Lasts, |row| row.1)
    }

    /// Whether a failure with this state concerns the whole table and not the one row: missing or
    /// altered objects and missing privileges (class 42), unsupported operations, missing schemas,
    /// a key there that is deferrable (55000).
    pub fn is_about_table(&self) -> bool {
        let s = self.as_str();
        s.starts_with("42")
            || s.starts_with("0A")
            || s.starts_with("3F")
            || *self == Self::OBJECT_NOT_READY
    }

    /// Whether a failure with this state may come of a prepared statement that is out of date: values that
    /// do not fit types of then, other objects, types or schemas that are gone, which the server may call an
    /// internal error, or a statement that it has not got any more.
    pub fn may_be_outdated(&self) -> bool {
        ["0A", "22", "26", "3F", "42", "XX"]
            .iter()
            .any(|class| self.as_str().starts_with(class))
    }

    /// As [`Error::is_about_states`], of the state of a record in the queue.
    pub fn is_about_states(stored: &str) -> bool {
        let mut all = ABOUT_OTHERS.iter().chain([&Self::NO_DATA_FOUND]);
        all.any(|state| state.as_str() == stored)
    }

    /// Whether the server's own messages with this state name objects, limits and other sessions, and
    /// quote no values. Those of syntax errors quote what is near them.
    fn names_only_objects(&self) -> bool {
        let s = self.as_str();
        let class = [
            "08", "0A", "23", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57",
        ];
        (class.iter().any(|class| s.starts_with(class)) && s != "42601")
            || *self == Self::NO_DATA_FOUND
    }

    /// What a failure is about, by the class of its state, for those whose messages may quote values.
    fn subject(&self) -> &'static str {
        match &self.as_str()[..2] {
            "21" => "cardinality violation",
            "22" => "data exception",
            "23" => "integrity constraint violation",
            "38" | "39" | "P0" => "error of a function",
            "42" => "syntax error or access rule violation",
            _ => "error",
        }
    }
}

/// Whether a failure can pass by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// The server cannot take any change for now, and no record is to blame.
    Away,
    /// It may pass, or it may come of the one change: tried a few times, then that change by itself.
    Passes,
    /// It lasts until a person removes the cause.
    Lasts,
}

/// SQLSTATEs and classes of them, the first that fits counts. Whoever ends the session itself (25P03, 25P04,
/// 57P05 and shutdowns) closes the connection, which is away whatever the state.
const OUTLOOKS: [(&str, Outlook, &str); 19] = [
    (
        "08P01",
        Outlook::Lasts,
        "a message that one side does not understand it never will",
    ),
    (
        "08",
        Outlook::Passes,
        "a connection that a function there makes, to a third server",
    ),
    (
        "25006",
        Outlook::Away,
        "a standby, or a server that is read-only for a while",
    ),
    (
        "25P03",
        Outlook::Passes,
        "a session that was ended for being idle: the next one is not",
    ),
    (
        "25P04",
        Outlook::Passes,
        "a transaction that took too long: the next one is smaller",
    ),
    (
        "40002",
        Outlook::Lasts,
        "a constraint, which looks at the rows",
    ),
    (
        "40",
        Outlook::Passes,
        "serialization failures and deadlocks, which depend on who else is there",
    ),
    (
        "53",
        Outlook::Passes,
        "disk, memory and connections come back",
    ),
    (
        "55006",
        Outlook::Passes,
        "an object in use, by a DDL command for one, is let go",
    ),
    ("55P03", Outlook::Passes, "a lock is released"),
    (
        "57014",
        Outlook::Passes,
        "canceled by an administrator, or too slow this time",
    ),
    (
        "57P01",
        Outlook::Passes,
        "a shutdown that a function there met on a third server",
    ),
    ("57P02", Outlook::Passes, "a crash there, as above"),
    ("57P03", Outlook::Passes, "a start there, as above"),
    ("57P05", Outlook::Passes, "an idle session there, as above"),
    (
        "58P",
        Outlook::Lasts,
        "a file that is missing or doubled does not come by itself",
    ),
    (
        "58",
        Outlook::Passes,
        "errors of the operating system and of input and output",
    ),
    (
        "72000",
        Outlook::Passes,
        "a snapshot that was too old: the next one is new",
    ),
    (
        "HV00N",
        Outlook::Passes,
        "a foreign server of a function there that cannot be reached",
    ),
];

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a server said of a failed statement, field by field as the protocol carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteError {
    /// The local name of the foreign server.
    pub server: String,
    pub sqlstate: SqlState,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    pub context: Option<String>,
    pub schema: Option<String>,
    pub table: Option<String>,
    pub column: Option<String>,
    pub constraint: Option<String>,
}

impl RemoteError {
    /// What delivery makes of an answer that is no error by itself.
    pub fn of_answer(server: &str, sqlstate: SqlState, message: String) -> Self {
        Self {
            server: server.to_owned(),
            sqlstate,
            message,
            detail: None,
            hint: None,
            context: None,
            schema: None,
            table: None,
            column: None,
            constraint: None,
        }
    }

    /// Whether the message comes from the server itself and quotes no value of a row. What functions
    /// raise there may say anything under any state; a CONTEXT shows them. The server's own contexts
    /// tell only of tuples by their place.
    fn is_plain(&self) -> bool {
        let places = |context: &String| context.lines().all(|line| line.starts_with("while "));
        self.sqlstate.names_only_objects() && self.context.as_ref().is_none_or(places)
    }

    /// The message, or words of our own for one that may quote values.
    fn redacted(&self) -> String {
        if self.is_plain() {
            return self.message.clone();
        }
        let server = &self.server;
        let state = self.sqlstate;
        format!(
            "server \"{server}\" reported: {} (SQLSTATE {state})",
            state.subject()
        )
    }

    /// What to do about a name without a schema that was not found there: statements of ours have none.
    fn advice(&self) -> Option<String> {
        let of_objects = [
            SqlState::UNDEFINED_FUNCTION,
            SqlState::UNDEFINED_TABLE,
            SqlState::UNDEFINED_OBJECT,
        ];
        let kinds = ["function ", "procedure ", "relation ", "type "];
        let rest = kinds
            .iter()
            .find_map(|kind| self.message.strip_prefix(kind))?;
        let name = rest.split(['(', ' ']).next().unwrap_or_default();
        (of_objects.contains(&self.sqlstate) && !name.contains('.')).then(|| {
            format!(
                "Names are looked for with search_path=pg_catalog on server \"{}\". Qualify the name in the \
                 function, trigger or expression there that uses it, give that function a SET search_path, or name \
                 its schema in the server's option \"search_path_append\".",
                self.server
            )
        })
    }

    /// The DETAIL, unless it may quote values: that of a constraint shows the key or the row.
    fn redacted_detail(&self) -> Option<&String> {
        let violation = self.sqlstate.as_str().starts_with("23");
        self.detail
            .as_ref()
            .filter(|_| self.is_plain() && !violation)
    }
}

/// Everything that can go wrong here.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A statement failed on the server, which is otherwise well.
    #[error("{}", .0.redacted())]
    Remote(Box<RemoteError>),

    /// No connection could be made. `sqlstate` is the server's own where it gave one.
    #[error("could not connect to server \"{server}\"")]
    Connect {
        server: String,
        sqlstate: SqlState,
        reason: String,
    },

    /// The connection broke before the commit had been asked for: nothing took effect.
    #[error("connection to server \"{server}\" was lost")]
    Lost { server: String, reason: String },

    /// The connection broke, or no answer came in time, after the commit had been asked for.
    #[error("outcome of the delivery to server \"{server}\" is unknown")]
    InDoubt { server: String, reason: String },

    /// One of our own deadlines passed before the commit had been asked for.
    #[error("server \"{server}\" did not answer in time")]
    Timeout {
        server: String,
        what: &'static str,
        millis: i64,
    },

    /// A session whose connection was lost may still commit an earlier delivery.
    #[error("an earlier delivery to server \"{server}\" may still be committed")]
    Lingering {
        server: String,
        reason: String,
        hint: &'static str,
    },

    /// The user asked for a cancel while we waited, and nothing took effect on the server.
    #[error("canceling statement due to user request")]
    Canceled,

    /// Synchronous delivery refused because older changes wait.
    #[error("server \"{server}\" has pending changes")]
    Pending { server: String },

    /// Synchronous delivery refused because the server is paused.
    #[error("server \"{server}\" is paused")]
    Paused { server: String },

    /// A failure that is not about a server: bad arguments, missing objects or rights.
    #[error("{message}")]
    Local {
        sqlstate: SqlState,
        message: String,
        detail: Option<String>,
        hint: Option<String>,
    },
}

impl Error {
    /// A local failure with its state and message; see [`Error::with_detail`] and [`Error::with_hint`].
    pub fn local(sqlstate: SqlState, message: impl Into<String>) -> Self {
        Self::Local {
            sqlstate,
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    /// Something that cannot happen unless the server or this code is broken.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::local(SqlState::INTERNAL, message)
    }

    /// This error with a DETAIL (local failures only).
    pub fn with_detail(mut self, text: impl Into<String>) -> Self {
        if let Self::Local { detail, .. } = &mut self {
            *detail = Some(text.into());
        }
        self
    }

    /// This error with a HINT (local failures only).
    pub fn with_hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Local { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    /// The SQLSTATE under which this is raised or recorded.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            Self::Remote(e) => e.sqlstate,
            Self::Connect { sqlstate, .. } | Self::Local { sqlstate, .. } => *sqlstate,
            Self::Lost { .. } | Self::Timeout { .. } => SqlState::CONNECTION_FAILURE,
            Self::InDoubt { .. } => SqlState::RESOLUTION_UNKNOWN,
            Self::Lingering { .. } => SqlState::OBJECT_IN_USE,
            Self::Canceled => SqlState::QUERY_CANCELED,
            Self::Pending { .. } | Self::Paused { .. } => SqlState::OBJECT_NOT_READY,
        }
    }

    /// The violated constraint, if the server named one.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Remote(e) => e.constraint.as_deref(),
            _ => None,
        }
    }

    /// Whether the server could not be reached, or left.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Lost { .. } | Self::InDoubt { .. } => true,
            Self::Timeout { .. } => true,
            Self::Remote(e) => matches!(e.sqlstate.as_str(), "57P01" | "57P02" | "57P03"),
            // Caught, after it had been raised at a commit.
            Self::Local { sqlstate, .. } => sqlstate.as_str().starts_with("08"),
            _ => false,
        }
    }

    /// Whether a connection could not be made, and the server has said why.
    pub fn is_answered_refusal(&self) -> bool {
        matches!(self, Self::Connect { sqlstate, .. } if !sqlstate.as_str().starts_with("08"))
    }

    /// Whether the server, or a pooler on the way, grants no more connections.
    pub fn is_connection_refusal(&self) -> bool {
        match self {
            Self::Connect {
                sqlstate, reason, ..
            } => {
                sqlstate.as_str().starts_with("53")
                    || reason.contains("no more connections allowed")
            }
            _ => false,
        }
    }

    /// Whether the server answers and lets the user mapping's user not in: over the password, the role, the
    /// database or a rule of pg_hba.conf.
    pub fn is_login_refusal(&self) -> bool {
        match self {
            Self::Connect { sqlstate, .. } => ["28", "3D", "42501"]
                .iter()
                .any(|class| sqlstate.as_str().starts_with(class)),
            _ => false,
        }
    }

    /// Whether a constraint was violated that looks at other rows, too: it may hold once these are
    /// written, or have left, in the same statement.
    pub fn is_about_others(&self) -> bool {
        matches!(self, Self::Remote(e) if ABOUT_OTHERS.contains(&e.sqlstate))
    }

    /// Whether a change may have failed over a state of the server's rows that it was not made for: one that is past,
    /// or one that others have made meanwhile.
    pub fn is_about_states(&self) -> bool {
        self.is_about_others() || self.sqlstate() == SqlState::NO_DATA_FOUND
    }

    /// Whether what fails is the whole table and not one row of it.
    pub fn is_about_table(&self) -> bool {
        matches!(self, Self::Remote(e) if e.sqlstate.is_about_table())
    }

    /// The DETAIL line, if there is one.
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::Remote(e) => e.redacted_detail().cloned(),
            Self::Connect { reason, .. } | Self::Lost { reason, .. } => Some(reason.clone()),
            Self::InDoubt { reason, .. } | Self::Lingering { reason, .. } => Some(reason.clone()),
            Self::Timeout { what, millis, .. } => {
                Some(format!("No progress for {millis} ms while {what}."))
            }
            Self::Local { detail, .. } => detail.clone(),
            Self::Canceled | Self::Pending { .. } | Self::Paused { .. } => None,
        }
    }

    /// The HINT line, if there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Remote(e) if e.advice().is_some() => e.advice(),
            Self::Remote(e) if self.withheld().is_none() => e.hint.clone(),
            Self::Remote(_) => Some(
                "What the server said may quote values and is not logged: clients are told in a \
                 WARNING."
                    .into(),
            ),
            Self::Local { hint, .. } => hint.clone(),
            Self::Lingering { hint, .. } => Some((*hint).to_owned()),
            Self::Pending { .. } => {
                Some("Run deal_sync_err_rec() until sync_err_rec is empty for this server.".into())
            }
            Self::Paused { .. } => Some(
                "resume_sync() lets it have its changes again. Tables in modes \"async\" and \"queue\" are \
                 queued meanwhile."
                    .into(),
            ),
            Self::InDoubt { .. } => {
                Some("The server may have committed this transaction; compare both sides.".into())
            }
            _ => None,
        }
    }

    /// Whether the moment is wrong and not the change: it may be tried again as it is.
    pub fn is_transient(&self) -> bool {
        match self {
            // Failing to connect is always about the server, whatever state it gave.
            Self::Connect { .. } | Self::Lost { .. } | Self::InDoubt { .. } => true,
            Self::Timeout { .. } | Self::Canceled | Self::Pending { .. } | Self::Paused { .. } => {
                true
            }
            Self::Lingering { .. } => true,
            Self::Remote(e) => e.sqlstate.outlook() != Outlook::Lasts,
            Self::Local { .. } => false,
        }
    }

    /// Whether no change can be applied for now, and none is to blame. Timeouts are not: a single change may
    /// always take too long.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Remote(e) => e.sqlstate.outlook() == Outlook::Away,
            Self::Timeout { .. } => false,
            _ => self.is_transient(),
        }
    }

    /// Whether it is about the role for which a connection is made, and not about the server: its password,
    /// mapping, rights, or a session of its own that may still commit.
    pub fn is_about_owner(&self) -> bool {
        let state = self.sqlstate();
        match self {
            Self::Connect { .. } => {
                state.as_str().starts_with("28") || state == SqlState::INSUFFICIENT_PRIVILEGE
            }
            Self::Lingering { .. } => true,
            Self::Local { .. } => [
                SqlState::INSUFFICIENT_PRIVILEGE,
                SqlState::UNDEFINED_OBJECT,
                SqlState::PASSWORD_REQUIRED,
                SqlState::FDW_INVALID_OPTION,
            ]
            .contains(&state),
            _ => false,
        }
    }

    /// What the server said, if a part of it must not be logged.
    pub fn withheld(&self) -> Option<&RemoteError> {
        match self {
            Self::Remote(e) if !e.is_plain() || e.redacted_detail() != e.detail.as_ref() => Some(e),
            _ => None,
        }
    }

    /// Whether it is about a value that a type cannot hold, or an operation is not made for (class 22).
    pub fn is_about_value(&self) -> bool {
        self.sqlstate().as_str().starts_with("22")
    }

    /// Message and detail in one line, for logs and listeners, who may see neither rows nor the queue.
    pub fn one_line(&self) -> String {
        match (self, self.detail()) {
            (Self::Remote(_), _) | (_, None) => self.to_string(),
            (_, Some(detail)) => format!("{self}: {}", detail.trim_end()),
        }
    }

    /// The error in one line with the server's own message, which may quote a value: for our tables, and for
    /// the client whose changes they are. The server's DETAIL is left out where it may quote keys. The table
    /// that a lock timeout names only in its CONTEXT is included.
    pub fn in_full(&self) -> String {
        let Self::Remote(e) = self else {
            return self.one_line();
        };
        let place = e
            .context
            .as_ref()
            .filter(|_| e.is_plain())
            .and_then(|c| c.lines().next());
        let place = place.map(|place| format!(" {place}")).unwrap_or_default();
        let detail = e
            .redacted_detail()
            .map(|detail| format!(": {}", detail.trim_end()));
        let redacted = format!("{}{place}{}", e.message, detail.unwrap_or_default());
        match e.advice() {
            Some(advice) => format!("{redacted}. {advice}"),
            None => redacted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_a_sqlstate_as_postgres_does() {
        // ERRCODE_UNIQUE_VIOLATION and ERRCODE_SUCCESSFUL_COMPLETION of utils/errcodes.h
        assert_eq!(SqlState::new("23505").packed(), 83906754);
        assert_eq!(SqlState::new("00000").packed(), 0);
        assert_eq!(SqlState::unpacked(83906754).as_str(), "23505");
        assert_eq!(SqlState::new("too long").as_str(), "XX000");
        assert_eq!(SqlState::of_failure("23505").as_str(), "23505");
        for odd in ["00000", "2350", "23\n05", "23\u{e9}5", ""] {
            assert_eq!(SqlState::of_failure(odd), SqlState::INTERNAL, "{odd:?}");
        }
    }

    #[test]
    fn what_is_stored_has_the_place_and_a_detail_that_quotes_nothing() {
        let stored = |sqlstate: &str, message: &str, detail: &str, context: Option<&str>| {
            Error::Remote(Box::new(RemoteError {
                server: "dst".to_owned(),
                sqlstate: SqlState::new(sqlstate),
                message: message.to_owned(),
                detail: Some(detail.to_owned()).filter(|detail| !detail.is_empty()),
                hint: None,
                context: context.map(str::to_owned),
                schema: None,
                table: None,
                column: None,
                constraint: None,
            }))
            .in_full()
        };
        let place = "while updating tuple (0,1) in relation \"t\"";
        for (sqlstate, detail, context, expected) in [
            ("55P03", "", Some(place), format!("m {place}")),
            (
                "40P01",
                "Process 1 waits.",
                Some(place),
                format!("m {place}: Process 1 waits."),
            ),
            (
                "23505",
                "Key (id)=(1) already exists.",
                None,
                "m".to_owned(),
            ),
            (
                "22012",
                "secret",
                Some("PL/pgSQL function f(text)"),
                "m".to_owned(),
            ),
            (
                "42501",
                "It quotes secret.",
                Some("SQL statement \"x\""),
                "m".to_owned(),
            ),
        ] {
            assert_eq!(
                stored(sqlstate, "m", detail, context),
                expected,
                "{sqlstate}"
            );
        }
    }

    #[test]
    fn a_name_without_a_schema_that_is_not_found_is_told_with_the_path() {
        for (sqlstate, message, is_said) in [
            ("42883", "function norm(text) does not exist", true),
            (
                "42883",
                "function app.norm(text, pg_catalog.int4) does not exist",
                false,
            ),
            ("42P01", "relation \"settings\" does not exist", true),
            ("42P01", "relation \"s.settings\" does not exist", false),
            ("42704", "type \"mood\" does not exist", true),
            ("42703", "column \"mood\" does not exist", false),
        ] {
            let error = Error::Remote(Box::new(RemoteError {
                server: "dst".to_owned(),
                sqlstate: SqlState::new(sqlstate),
                message: message.to_owned(),
                detail: None,
                hint: None,
                context: Some("SQL function \"slug\" during inlining".to_owned()),
                schema: None,
                table: None,
                column: None,
                constraint: None,
            }));
            let is_in = |text: String| text.contains("search_path=pg_catalog");
            assert_eq!(error.hint().is_some_and(is_in), is_said, "{message}");
            assert_eq!(is_in(error.in_full()), is_said, "{message}");
        }
    }

    #[test]
    fn every_state_says_whether_it_can_pass_by_itself() {
        let all = |outlook: Outlook, states: &[&str]| {
            for state in states {
                assert_eq!(SqlState::new(state).outlook(), outlook, "{state}");
            }
        };
        all(Outlook::Away, &["25006"]);
        all(
            Outlook::Passes,
            &[
                "08000", "08001", "08003", "08004", "08006", "08007", "25P03", "25P04", "40000",
                "40001", "40003", "40P01", "53000", "53100", "53200", "53300", "53400", "55006",
                "55P03", "57014", "57P01", "57P02", "57P03", "57P05", "58000", "58030", "72000",
                "HV00N",
            ],
        );
        all(
            Outlook::Lasts,
            &[
                "03000", "08P01", "09000", "0A000", "0B000", "0LP01", "0P000", "21000", "22001",
                "23502", "23503", "23505", "23514", "23P01", "25000", "25001", "25P01", "25P02",
                "26000", "27000", "28000", "28P01", "2BP01", "2F003", "34000", "38000", "39P01",
                "3B001", "3D000", "3F000", "40002", "42501", "42601", "42703", "42P01", "44000",
                "54000", "54001", "55000", "55P02", "55P04", "57000", "57P04", "58P01", "58P02",
                "F0000", "HV000", "P0001", "P0002", "P0004", "XX000", "XX001", "XX002",
            ],
        );
    }

    #[test]
    fn every_row_of_the_table_counts_and_has_its_reason() {
        for (at, (prefix, outlook, reason)) in OUTLOOKS.iter().enumerate() {
            assert!(!reason.is_empty(), "{prefix}");
            let before = &OUTLOOKS[..at];
            assert!(
                !before.iter().any(|row| prefix.starts_with(row.0)),
                "{prefix} is hidden"
            );
            let general = OUTLOOKS[at + 1..]
                .iter()
                .find(|row| prefix.starts_with(row.0));
            assert_ne!(
                general.map_or(Outlook::Lasts, |row| row.1),
                *outlook,
                "{prefix} is needless"
            );
        }
    }

    #[test]
    fn an_owners_failure_is_not_the_servers() {
        let connect = |state: &str| Error::Connect {
            server: "dst".into(),
            sqlstate: SqlState::new(state),
            reason: String::new(),
        };
        assert!(connect("28P01").is_about_owner() && connect("42501").is_about_owner());
        assert!(!connect("08001").is_about_owner() && !connect("53300").is_about_owner());
        assert!(connect("08001").is_away() && !remote("55P03", None).is_away());
        assert!(remote("25006", None).is_away() && remote("25006", None).is_transient());
        assert!(Error::local(SqlState::UNDEFINED_OBJECT, "no mapping").is_about_owner());
        assert!(!remote("42501", None).is_about_owner());
    }

    #[test]
    fn a_failed_connection_is_transient_whatever_the_server_said() {
        let wrong_password = Error::Connect {
            server: "dst".into(),
            sqlstate: SqlState::new("28P01"),
            reason: "password authentication failed".into(),
        };
        assert!(wrong_password.is_transient());
        assert_eq!(wrong_password.sqlstate().as_str(), "28P01");
    }

    fn remote(state: &str, context: Option<&str>) -> Error {
        let text = |text: &str| Some(text.to_owned());
        Error::Remote(Box::new(RemoteError {
            server: "dst".into(),
            sqlstate: SqlState::new(state),
            message: "about 4711".into(),
            detail: text("Key (id)=(4711) is there."),
            hint: text("Not 4711."),
            context: context.map(str::to_owned),
            schema: None,
            table: None,
            column: None,
            constraint: None,
        }))
    }

    #[test]
    fn what_may_quote_a_value_is_for_the_queue_and_the_client_only() {
        for (state, context) in [
            ("22P02", None),
            ("P0001", Some("PL/pgSQL function f() line 3 at RAISE")),
            ("42P01", Some("PL/pgSQL function f() line 3 at RAISE")),
            (
                "40001",
                Some("while locking tuple (0,1) in relation \"t\"\nSQL function \"f\""),
            ),
            ("42601", None),
            ("XX000", None),
            ("ZZ999", None),
        ] {
            let error = remote(state, context);
            let redacted = [Some(error.to_string()), error.detail(), error.hint()];
            assert!(
                redacted.iter().flatten().all(|text| !text.contains("4711")),
                "{state} {redacted:?}"
            );
            assert!(!error.one_line().contains("4711") && error.one_line().contains(state));
            assert!(error.withheld().is_some() && error.in_full() == "about 4711");
        }
    }

    #[test]
    fn what_names_objects_is_passed_on() {
        let error = remote("55P03", Some("while locking tuple (0,1) in relation \"t\""));
        assert!(error.withheld().is_none() && error.to_string() == "about 4711");
        assert!(error.detail().is_some() && error.hint().as_deref() == Some("Not 4711."));
        // The message of a violation names the constraint, its DETAIL shows the key.
        let error = remote("23505", None);
        assert_eq!(
            (error.to_string().as_str(), error.detail()),
            ("about 4711", None)
        );
        assert!(error.withheld().is_some());
    }
}
