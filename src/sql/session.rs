//! What is known of a server and of its sessions, and settings of a remote transaction: what pins it, the
//! guard name that changes carry, and the search_path for keys whose types bring their own operators.

use super::conflicts::Conflicts;
use super::marks::SESSION_MARK;
use super::param::Param;
use super::quote::{ident, literal, relation};
use super::statement::Statement;
use crate::change::Route;
use crate::connect::lost_session::LostSession;
use crate::connect::settings::Setting;

/// Asks a server for the schema of its extension: one whose functions can be called, or must be
/// because it sends changes of its own; see [`crate::conflict::versions`].
pub const REMOTE_SCHEMA: &str = "SELECT (SELECT n.nspname FROM pg_catalog.pg_extension e \
     JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace \
     WHERE e.extname OPERATOR(pg_catalog.=) 'pg_rowsync' \
       AND (pg_catalog.has_schema_privilege(n.oid, 'USAGE') OR EXISTS ( \
         SELECT FROM pg_catalog.pg_trigger t \
         JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) t.tgfoid \
         WHERE p.proname OPERATOR(pg_catalog.=) 'sync_dml' \
           AND p.pronamespace OPERATOR(pg_catalog.=) n.oid)))";

/// Asks a server how many transactions it can have prepared at once.
pub const MAX_PREPARED: &str = "SELECT pg_catalog.current_setting('max_prepared_transactions')";

/// Asks a server for its name in the paths of changes, see [`crate::path`].
pub const NODE: &str = "SELECT c.system_identifier OPERATOR(pg_catalog.||) '.' \
       OPERATOR(pg_catalog.||) d.oid::pg_catalog.text \
     FROM pg_catalog.pg_control_system() c, pg_catalog.pg_database d \
     WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()";

/// Tells the remote transaction the path of the changes that follow.
pub fn on_path(path: &str) -> Statement {
    let text = "SELECT pg_catalog.set_config('pg_rowsync.path', $1, true)";
    Statement::query(
        text.to_owned(),
        vec![Param::Text(path.to_owned())],
        Conflicts::Never,
    )
}

/// Gives the remote transaction another `application_name`.
pub fn named(application_name: &str) -> Statement {
    let text = "SELECT pg_catalog.set_config('application_name', $1, true)";
    Statement::query(
        text.to_owned(),
        vec![Param::Text(application_name.to_owned())],
        Conflicts::Never,
    )
}

/// Sets the remote transaction's search_path back to that of the session.
pub fn own_schemas(search_path: &str) -> String {
    format!(
        "SELECT pg_catalog.set_config('search_path', {}, true)",
        literal(search_path)
    )
}

/// For routes whose keys are compared with operators that are not PostgreSQL's own: adds the schemas
/// in which the remote has the types of those columns to the transaction's search_path. Everything
/// else in our statements is qualified, so that these schemas can offer nothing but operators.
pub fn with_type_schemas<'r>(
    routes: impl IntoIterator<Item = &'r Route>,
    search_path: &str,
) -> String {
    let type_of = |route: &Route, at: usize| {
        format!(
            "pg_catalog.pg_typeof((NULL::{}).{})",
            relation(&route.target),
            ident(&route.columns[at].name)
        )
    };
    let types: Vec<String> = routes
        .into_iter()
        .flat_map(|route| route.compared().map(move |at| type_of(route, at)))
        .collect();
    format!(
        "SELECT pg_catalog.set_config('search_path', {} OPERATOR(pg_catalog.||) \
         COALESCE(pg_catalog.string_agg(DISTINCT ', ' OPERATOR(pg_catalog.||) \
         pg_catalog.quote_ident(n.nspname), ''), ''), true) \
         FROM (WITH RECURSIVE base(id) AS (SELECT pg_catalog.unnest(ARRAY[{}]::pg_catalog.oid[]) \
           UNION ALL SELECT d.typbasetype FROM base JOIN pg_catalog.pg_type d \
             ON d.oid OPERATOR(pg_catalog.=) base.id \
             WHERE d.typbasetype OPERATOR(pg_catalog.<>) 0::pg_catalog.oid) \
           SELECT id FROM base) b \
         JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) b.id \
         JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace \
         WHERE n.nspname OPERATOR(pg_catalog.<>) 'pg_catalog'",
        literal(search_path),
        types.join(", ")
    )
}

/// What the first statement of a transaction asks for and sets. Its text is the same for all transactions of a
/// session but the first.
pub struct Introduce<'a> {
    /// What is set for the transaction: the user's own.
    pub own: &'a [(String, String)],
    /// What is set for the transaction because a delivery needs it. Values are as SHOW writes them.
    pub pinned: &'a [Setting],
    /// Where the session leads to is asked, and how it was found.
    pub is_first: bool,
    /// The process ID that the server gave to libpq, if the server must be reached directly.
    pub only_direct: Option<i32>,
    /// The database from which the changes come: its OID, and when its cluster was started.
    pub local: (u32, i64),
}

/// Introduces a transaction and the server to each other: the only row's only column is a JSON object, see
/// [`crate::connect::peer::Introduction`]. Whoever answers may have any search_path, so every name is
/// qualified; and any settings, so that the text has neither backslashes nor anything but ASCII where the
/// user's options have none. The parameters are those of [`introduced`].
///
/// The lock is taken before the clock is read, which [`end_session`] relies on. What is in force already is not
/// set again, which would cost more than to look at it.
pub fn introduce(with: &Introduce<'_>) -> String {
    // With something that is not known before it is executed: else it fails when it is planned.
    let fail = |why: &str, number: &str| {
        let mark = literal(&format!("{SESSION_MARK}{why} "));
        format!("pg_catalog.concat({mark}, {number})::pg_catalog.bool::pg_catalog.text")
    };
    const BACKEND: &str = "pg_catalog.pg_backend_pid()";
    const CLOCK: &str = "pg_catalog.clock_timestamp()";
    let mut cases = format!(
        "WHEN NOT pg_catalog.pg_try_advisory_xact_lock_shared($1::pg_catalog.int8) THEN {} \
         WHEN pg_catalog.date_part('epoch', {CLOCK}) OPERATOR(pg_catalog.>) $2::pg_catalog.float8 \
         THEN {} \
         WHEN $3::pg_catalog.bool AND ( \
             pg_catalog.current_setting('transaction_isolation') \
               OPERATOR(pg_catalog.<>) 'read committed' \
             OR pg_catalog.current_setting('transaction_read_only') \
               OPERATOR(pg_catalog.<>) 'off') \
         THEN {} ",
        fail("ended", BACKEND),
        fail("late", &micros(CLOCK)),
        fail("unlike", BACKEND)
    );
    if with.is_first {
        let (database, started) = with.local;
        cases.push_str(&format!(
            "WHEN (SELECT d.oid FROM pg_catalog.pg_database d \
                WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()) \
                OPERATOR(pg_catalog.=) {database}::pg_catalog.oid \
              AND {} OPERATOR(pg_catalog.=) {started} THEN {} ",
            micros("pg_catalog.pg_postmaster_start_time()"),
            fail("itself", BACKEND)
        ));
    }
    if let Some(given) = with.only_direct {
        cases.push_str(&format!(
            "WHEN {BACKEND} OPERATOR(pg_catalog.<>) ({given}) THEN {} ",
            fail("pooled", BACKEND)
        ));
    }
    let mut answer = format!("'{{\"pid\":', {BACKEND}, ',\"clock\":', {}", micros(CLOCK));
    if with.is_first {
        let rows: Vec<String> = (with.pinned.iter())
            .map(|(name, value)| format!("({}, {})", literal(name), literal(value)))
            .collect();
        // The last one is a limit of newer majors, which would end a session in the middle of a delivery.
        answer.push_str(&format!(
            ", ',\"started\":', COALESCE({}::pg_catalog.text, 'null'), ',\"unset\":', \
             COALESCE((SELECT pg_catalog.json_agg(w.name) \
               FROM (VALUES {}, ('transaction_timeout', '0')) AS w(name, value) \
               WHERE NOT COALESCE(pg_catalog.current_setting(w.name, true) \
                 OPERATOR(pg_catalog.=) w.value, \
                 w.name OPERATOR(pg_catalog.=) 'transaction_timeout'))::pg_catalog.text, 'null')",
            micros(
                "(SELECT a.backend_start FROM pg_catalog.pg_stat_get_activity( \
                  pg_catalog.pg_backend_pid()) a)"
            ),
            rows.join(", ")
        ));
    }
    answer.push_str(&format!(", ',\"set\":', {}", set_for_transaction(with)));
    format!("SELECT CASE {cases}ELSE pg_catalog.concat({answer}, '}}') END")
}

/// Sets what is not so already, in this order, and counts it. The user's own is set whatever it was: it may be
/// written in another form than it is shown in. One expression for each setting would cost more: whoever
/// executes a function first looks up who may.
fn set_for_transaction(with: &Introduce<'_>) -> String {
    let row = |name: &str, value: &str, always: bool| {
        format!("({}, {}, {always})", literal(name), literal(value))
    };
    let own = with.own.iter().map(|(name, value)| row(name, value, true));
    let pinned = with.pinned.iter().filter(|(name, _)| counts(name));
    let rows: Vec<String> = own
        .chain(pinned.map(|(name, value)| row(name, value, false)))
        .collect();
    // The last one is a limit of newer majors, which need not be there.
    format!(
        "(SELECT pg_catalog.count(pg_catalog.set_config(w.name, w.value, true)) \
          FROM (VALUES {}, ('transaction_timeout', '0', false)) AS w(name, value, always) \
          WHERE w.always OR COALESCE(pg_catalog.current_setting(w.name, true) \
            OPERATOR(pg_catalog.<>) w.value, \
            w.name OPERATOR(pg_catalog.<>) 'transaction_timeout'))",
        rows.join(", ")
    )
}

/// Whether a setting means anything within a transaction that has begun as ours do.
fn counts(name: &str) -> bool {
    !name.starts_with("default_transaction_") && name != "idle_session_timeout"
}

/// The parameters of [`introduce`]: the transaction's advisory lock; when it must have begun, in microseconds
/// since 1970 by the server's clock; whether it is to be refused where transactions begin otherwise than ours
/// do.
pub fn introduced(token: i64, not_after: Option<i64>, unlike: bool) -> Vec<Param> {
    // Microseconds differ in seconds of the server's type until the year 2255.
    let seconds = |time: i64| {
        Param::Text(format!(
            "{}.{:06}",
            time.div_euclid(1_000_000),
            time.rem_euclid(1_000_000)
        ))
    };
    let refused = if unlike { "t" } else { "f" };
    let not_after = not_after.map_or(Param::Null, seconds);
    vec![
        Param::Text(token.to_string()),
        not_after,
        Param::Text(refused.to_owned()),
    ]
}

/// A time as microseconds since 1970, exactly.
pub fn micros(time: &str) -> String {
    format!("(pg_catalog.extract('epoch', {time}) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8")
}

/// Ends a lost session and waits for that, `wait` milliseconds at most. The only column of the only row is
/// what [`crate::connect::lost_session::LostState`] reads. To be run as the role that has logged in: where
/// another was set, that one may not end the session.
///
/// A process that is there counts as the lost one unless it can be seen that it is not, whosever it is.
pub fn end_session(lost: &LostSession, wait: u128) -> String {
    let end = format!(
        "CASE WHEN (pg_catalog.pg_has_role(a.usesysid, 'USAGE') \
             OR pg_catalog.pg_has_role('pg_signal_backend', 'USAGE')) \
           AND (NOT COALESCE((SELECT r.rolsuper FROM pg_catalog.pg_roles r \
                  WHERE r.oid OPERATOR(pg_catalog.=) a.usesysid), false) \
             OR COALESCE((SELECT r.rolsuper FROM pg_catalog.pg_roles r \
                  WHERE r.rolname OPERATOR(pg_catalog.=) CURRENT_USER), false)) \
         THEN CASE WHEN pg_catalog.pg_terminate_backend(a.pid, {wait}) THEN 'gone' ELSE 'ending' END \
         ELSE 'other ' OPERATOR(pg_catalog.||) COALESCE(a.usename::pg_catalog.text, '') END"
    );
    if let Some(token) = lost.token {
        let holder = format!(
            "(SELECT {end} FROM pg_catalog.pg_locks l \
              JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid \
              WHERE {} LIMIT 1)",
            is_lock(token)
        );
        let Some(not_after) = lost.not_after else {
            return format!("SELECT COALESCE({holder}, 'gone')");
        };
        // The clock first: who takes the lock after it was looked for is too late then.
        let clock = micros("pg_catalog.clock_timestamp()");
        return format!(
            "SELECT CASE WHEN {clock} OPERATOR(pg_catalog.>) {not_after} \
             THEN COALESCE({holder}, 'gone') ELSE COALESCE({holder}, 'early') END"
        );
    }
    let Some(pid) = lost.backend_pid else {
        return "SELECT 'gone'".to_owned();
    };
    let other_start = lost.backend_start.map_or(String::new(), |started| {
        format!(
            "WHEN {} OPERATOR(pg_catalog.<>) {started} THEN 'gone' ",
            micros("a.backend_start")
        )
    });
    format!(
        "SELECT COALESCE((SELECT CASE \
           WHEN a.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() THEN 'gone' \
           WHEN a.datname IS NULL OR a.datname OPERATOR(pg_catalog.<>) pg_catalog.current_database() \
             THEN 'gone' \
           {other_start}ELSE {end} END \
         FROM pg_catalog.pg_stat_activity a WHERE a.pid OPERATOR(pg_catalog.=) {pid}), 'gone')"
    )
}

/// Whether `l` of pg_locks is a transaction's advisory lock.
fn is_lock(token: i64) -> String {
    let upper = (token >> 32) as u32;
    let lower = token as u32;
    format!(
        "l.locktype OPERATOR(pg_catalog.=) 'advisory' \
         AND l.database OPERATOR(pg_catalog.=) (SELECT d.oid FROM pg_catalog.pg_database d \
           WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()) \
         AND l.classid OPERATOR(pg_catalog.=) {upper}::pg_catalog.oid \
         AND l.objid OPERATOR(pg_catalog.=) {lower}::pg_catalog.oid \
         AND l.objsubid OPERATOR(pg_catalog.=) 1::pg_catalog.int2"
    )
}

/// Asks the process that runs a transaction to cancel it; `None` if there is no telling which that is.
pub fn cancel(transaction: &LostSession) -> Option<String> {
    if let Some(pid) = transaction.backend_pid {
        return Some(format!("SELECT pg_catalog.pg_cancel_backend({pid})"));
    }
    let lock = is_lock(transaction.token?);
    Some(format!(
        "SELECT pg_catalog.pg_cancel_backend(l.pid) FROM pg_catalog.pg_locks l WHERE {lock}"
    ))
}

/// Begins a transaction in which a server is asked for sessions and prepared transactions. A standby refuses it
/// (25006): it knows of neither, and what it does not list goes on at its primary.
pub const BEGIN_ON_PRIMARY: &str = "BEGIN READ WRITE";

/// Undoes a role that was set for the session, for the transaction.
pub const AS_LOGGED_IN: &str = "SELECT pg_catalog.set_config('role', 'none', true)";
