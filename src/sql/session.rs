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
/// because it sends changes of its own; see [`crate::versions`].
pub const REMOTE_SCHEMA: &str = "SELECT (SELECT n.nspname FROM pg_catalog.pg_extension e \
     JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace \
     WHERE e.extname OPERATOR(pg_catalog.=) 'pg_rowsync' \
       AND (pg_catalog.has_schema_privilege(n.oid, 'USAGE') OR EXISTS ( \
         SELECT FROM pg_catalog.pg_trigger t \
         JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) t.tgfoid \
         WHERE p.proname OPERATOR(pg_catalog.=) 'sync_dml' \
           AND p.pronamespace OPERATOR(pg_catalog.=) n.oid)))";

/// Asks a server for its name in the paths of changes, see [`crate::path`].
pub const NODE: &str = "SELECT c.system_identifier OPERATOR(pg_catalog.||) '.' \
       OPERATOR(pg_catalog.||) d.oid::pg_catalog.text \
     FROM pg_catalog.pg_control_system() c, pg_catalog.pg_database d \
     WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()";

/// Tells the remote transaction the path of the changes that follow.
pub fn on_path(path: &str) -> Statement {
    let text = "SELECT pg_catalog.set_config('pg_rowsync.path', $1, true)";
    Statement::query(text.to_owned(), vec![Param::Text(path.to_owned())], Conflicts::Never)
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
    format!("SELECT pg_catalog.set_config('search_path', {}, true)", literal(search_path))
}

/// For a route whose keys are compared with operators that are not PostgreSQL's own: adds the schemas
/// in which the remote has the types of those columns to the transaction's search_path. Everything
/// else in our statements is qualified, so that these schemas can offer nothing but operators.
pub fn with_type_schemas(route: &Route, search_path: &str) -> String {
    let types: Vec<String> = route
        .compared()
        .map(|at| ident(&route.columns[at].name))
        .map(|name| format!("pg_catalog.pg_typeof((NULL::{}).{name})", relation(&route.target)))
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

/// What the first statement of a transaction asks for and sets.
pub struct Introduce<'a> {
    /// What is set for the transaction.
    pub settings: &'a [(String, String)],
    /// What the session should have been found with, if that is asked.
    pub expected: &'a [Setting],
    /// The transaction's advisory lock.
    pub token: i64,
    /// It must begin before that, in microseconds since 1970 by the server's clock.
    pub not_after: Option<i64>,
    /// The process ID that the server gave to libpq, if the server must be reached directly.
    pub only_direct: Option<i32>,
    /// The database from which the changes come: its OID, and when its cluster was started.
    pub local: (u32, i64),
}

/// Introduces a transaction and the server to each other: the only row's first column is a JSON object, see
/// [`crate::connect::peer::Introduction`]. Whoever answers may have any search_path, so every name is
/// qualified.
///
/// The lock is taken before the clock is read, which [`end_session`] relies on.
pub fn introduce(with: &Introduce<'_>) -> Statement {
    // With something that is not known before it is executed: else it fails when it is planned.
    let fail = |why: &str, number: &str| {
        let mark = literal(&format!("{SESSION_MARK}{why} "));
        format!("pg_catalog.concat({mark}, {number})::pg_catalog.bool::pg_catalog.text")
    };
    const BACKEND: &str = "pg_catalog.pg_backend_pid()";
    let token = with.token;
    let mut cases = format!(
        "WHEN NOT pg_catalog.pg_try_advisory_xact_lock_shared({token}) THEN {} ",
        fail("ended", BACKEND)
    );
    if let Some(not_after) = with.not_after {
        // Microseconds differ in seconds of this type until the year 2255.
        const CLOCK: &str = "pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())";
        let late = fail("late", &micros("pg_catalog.clock_timestamp()"));
        let (seconds, micros) = (not_after.div_euclid(1_000_000), not_after.rem_euclid(1_000_000));
        cases.push_str(&format!(
            "WHEN {CLOCK} OPERATOR(pg_catalog.>) '{seconds}.{micros:06}'::pg_catalog.float8 \
             THEN {late} "
        ));
    }
    // Where a connection leads is asked once.
    let is_first = !with.expected.is_empty();
    if is_first {
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
    let mut answer = format!(
        "'{{\"pid\":', {BACKEND}, ',\"clock\":', {}",
        micros("pg_catalog.clock_timestamp()")
    );
    if is_first {
        let rows: Vec<String> = (with.expected.iter())
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
    let answer = format!("pg_catalog.concat({answer}, '}}')");
    let set: String = (with.settings.iter())
        .map(|(name, value)| {
            format!(", pg_catalog.set_config({}, {}, true)", literal(name), literal(value))
        })
        .collect();
    let limit = ", CASE WHEN pg_catalog.current_setting('transaction_timeout', true) \
                 OPERATOR(pg_catalog.<>) '0' \
                 THEN pg_catalog.set_config('transaction_timeout', '0', true) END";
    Statement::plain(format!("SELECT CASE {cases}ELSE {answer} END{set}{limit}"))
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
        let (upper, lower) = ((token >> 32) as u32, token as u32);
        let holder = format!(
            "(SELECT {end} FROM pg_catalog.pg_locks l \
              JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid \
              WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory' \
                AND l.database OPERATOR(pg_catalog.=) (SELECT d.oid FROM pg_catalog.pg_database d \
                  WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()) \
                AND l.classid OPERATOR(pg_catalog.=) {upper}::pg_catalog.oid \
                AND l.objid OPERATOR(pg_catalog.=) {lower}::pg_catalog.oid \
                AND l.objsubid OPERATOR(pg_catalog.=) 1::pg_catalog.int2 LIMIT 1)"
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
    let Some(pid) = lost.backend_pid else { return "SELECT 'gone'".to_owned() };
    let other_start = lost.backend_start.map_or(String::new(), |started| {
        format!("WHEN {} OPERATOR(pg_catalog.<>) {started} THEN 'gone' ", micros("a.backend_start"))
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

/// Undoes a role that was set for the session, for the transaction.
pub const AS_LOGGED_IN: &str = "SELECT pg_catalog.set_config('role', 'none', true)";
