//! Settings. Times take PostgreSQL's units, without one they are milliseconds, those of how long something
//! is kept seconds; every one is bounded below, so that no setting can make a commit wait for ever.

use crate::pg::{context, setting};
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use std::ffi::{CStr, CString};
use std::time::Duration;

static APPLICATION_NAME: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"pg_rowsync"));
static PATH: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static CONNECT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(5_000);
static DELIVERY_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static CANCEL_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(3_000);
static BUFFER_SIZE: GucSetting<i32> = GucSetting::<i32>::new(16 * 1024);
static IDLE_IN_TRANSACTION_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(60_000);
static LOCK_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(1_000);
static IDLE_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(600_000);
static MAX_SERVERS: GucSetting<i32> = GucSetting::<i32>::new(128);
static RETRY_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(1_000);
static MAX_RETRY_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(30_000);
static COPY_WORKERS: GucSetting<i32> = GucSetting::<i32>::new(2);
static LOG_CONFLICTS: GucSetting<LogConflicts> = GucSetting::<LogConflicts>::new(LogConflicts::Log);
static CONFLICT_LOG_SIZE: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static CONFLICT_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(WEEK);
static TOMBSTONE_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(WEEK);

/// In seconds.
const WEEK: i32 = 7 * 24 * 3_600;

/// What is kept of conflicts. Each includes what is before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, PostgresGucEnum)]
pub enum LogConflicts {
    /// Their number per server.
    #[name = c"off"]
    Off,
    /// Their number per server, table and kind.
    #[name = c"count"]
    Count,
    /// Their particulars.
    #[name = c"log"]
    Log,
}

/// Defines the settings; called once, when the library is loaded.
pub fn define() {
    GucRegistry::define_string_guc(
        c"pg_rowsync.application_name",
        c"Loop-guard name and application_name of connections to servers.",
        c"Triggers capture nothing in a session whose application_name is this. A name in the \
          server's or the trigger's options wins.",
        &APPLICATION_NAME,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"pg_rowsync.path",
        c"Databases that the session's changes come from.",
        c"Set by pg_rowsync's own connections, so that changes do not circle.",
        &PATH,
        GucContext::Userset,
        GucFlags::NO_SHOW_ALL | GucFlags::DISALLOW_IN_FILE,
    );
    let time = |name, short, long, setting, max| {
        let flags = GucFlags::UNIT_MS;
        GucRegistry::define_int_guc(
            name,
            short,
            long,
            setting,
            1,
            max,
            GucContext::Userset,
            flags,
        );
    };
    const HOUR: i32 = 3_600_000;
    time(
        c"pg_rowsync.connect_timeout",
        c"Longest time to connect to a server.",
        c"Covers all hosts of the server and authentication.",
        &CONNECT_TIMEOUT,
        HOUR,
    );
    time(
        c"pg_rowsync.delivery_timeout",
        c"Longest time a delivery may go without progress.",
        c"Progress is a batch that was sent or answered. Also the statement_timeout on the server.",
        &DELIVERY_TIMEOUT,
        HOUR,
    );
    time(
        c"pg_rowsync.cancel_timeout",
        c"Longest time to wait for the outcome of a delivery that was asked to cancel.",
        c"After it the outcome counts as unknown.",
        &CANCEL_TIMEOUT,
        HOUR,
    );
    time(
        c"pg_rowsync.idle_in_transaction_timeout",
        c"The idle_in_transaction_session_timeout on the server.",
        c"How long a drain's transaction may wait there for the end of the local one.",
        &IDLE_IN_TRANSACTION_TIMEOUT,
        HOUR,
    );
    time(
        c"pg_rowsync.lock_timeout",
        c"The lock_timeout on the server.",
        c"Breaks deadlocks between masters that update the same rows.",
        &LOCK_TIMEOUT,
        HOUR,
    );
    GucRegistry::define_int_guc(
        c"pg_rowsync.idle_timeout",
        c"Time after which a session closes a connection that it has not used.",
        c"0 keeps it as long as the session lives.",
        &IDLE_TIMEOUT,
        0,
        i32::MAX,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    // The worker's: every session must see the same, so they come from the configuration.
    let interval = |name, short, long, setting| {
        let flags = GucFlags::UNIT_MS;
        GucRegistry::define_int_guc(
            name,
            short,
            long,
            setting,
            1,
            HOUR,
            GucContext::Sighup,
            flags,
        );
    };
    interval(
        c"pg_rowsync.retry_interval",
        c"Time from the first failure of a server to the worker's next attempt.",
        c"Doubles with every further failure.",
        &RETRY_INTERVAL,
    );
    interval(
        c"pg_rowsync.max_retry_interval",
        c"Longest time between attempts of the worker.",
        c"Also how often an idle worker looks at the queue without having been woken.",
        &MAX_RETRY_INTERVAL,
    );
    GucRegistry::define_int_guc(
        c"pg_rowsync.buffer_size",
        c"Memory for the captured changes of a transaction, for each server.",
        c"Beyond it they go to a temporary file, which temp_file_limit counts.",
        &BUFFER_SIZE,
        64,
        1024 * 1024,
        GucContext::Userset,
        GucFlags::UNIT_KB,
    );
    define_conflict_settings();
    GucRegistry::define_int_guc(
        c"pg_rowsync.copy_workers",
        c"Processes that copy tables of a database at once.",
        c"Each takes one of max_worker_processes while it copies.",
        &COPY_WORKERS,
        1,
        64,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"pg_rowsync.max_servers",
        c"Servers of all databases that have counters.",
        // 64 bytes, and as many for each of its slots for conflicts.
        c"Means something only with shared_preload_libraries; each takes 1088 bytes of shared memory, \
          those for the conflicts of 16 tables included. A dropped server keeps its place until the \
          server is restarted.",
        &MAX_SERVERS,
        1,
        10_000,
        // PostgreSQL refuses, with FATAL, to define one that needs a restart later than at its start. Where
        // it means nothing, it is defined all the same, so that a configuration may hold it.
        if context::is_preloading() { GucContext::Postmaster } else { GucContext::Sighup },
        GucFlags::default(),
    );
}

/// Not left to everyone: who sets them decides what others find in the log, or what `newest` still knows.
fn define_conflict_settings() {
    GucRegistry::define_enum_guc(
        c"pg_rowsync.log_conflicts",
        c"What is kept of conflicts.",
        c"off: their number per server; count: also per table and kind, in sync_conflict_counts; log: also \
          what they were, in sync_conflicts.",
        &LOG_CONFLICTS,
        GucContext::Suset,
        GucFlags::default(),
    );
    let define = |name, short, long, setting, max, flags| {
        GucRegistry::define_int_guc(name, short, long, setting, 1, max, GucContext::Suset, flags);
    };
    define(
        c"pg_rowsync.conflict_log_size",
        c"Rows that the log of conflicts keeps.",
        c"Older ones are removed when new ones are written.",
        &CONFLICT_LOG_SIZE,
        10_000_000,
        GucFlags::default(),
    );
    define(
        c"pg_rowsync.conflict_retention",
        c"How long the log of conflicts keeps a row.",
        c"Older ones are removed when new ones are written.",
        &CONFLICT_RETENTION,
        i32::MAX,
        GucFlags::UNIT_S,
    );
    define(
        c"pg_rowsync.tombstone_retention",
        c"How long a deletion is remembered for the policy newest.",
        c"A change that arrives later than this after the deletion of its row brings the row back.",
        &TOMBSTONE_RETENTION,
        i32::MAX,
        GucFlags::UNIT_S,
    );
}

/// `pg_rowsync.buffer_size`, in bytes.
pub fn buffer_size() -> usize {
    BUFFER_SIZE.get().max(1) as usize * 1024
}

/// `pg_rowsync.application_name`.
pub fn application_name() -> String {
    guard().to_string_lossy().into_owned()
}

/// `pg_rowsync.application_name` as the server keeps it.
pub fn guard() -> CString {
    APPLICATION_NAME.get().unwrap_or_default()
}

/// `pg_rowsync.connect_timeout`.
pub fn connect_timeout() -> Duration {
    millis(&CONNECT_TIMEOUT)
}

/// Whether `pg_rowsync.application_name` is the session's own `application_name`. Asked for every row.
pub fn guards_session() -> bool {
    context::is_application_name_of(&APPLICATION_NAME)
}

/// Whether `pg_rowsync.path` is this. Asked for every row.
pub fn is_path(path: &CStr) -> bool {
    setting::is(&PATH, path)
}

/// `pg_rowsync.path`.
pub fn path() -> CString {
    PATH.get().unwrap_or_default()
}

/// `pg_rowsync.delivery_timeout`.
pub fn delivery_timeout() -> Duration {
    millis(&DELIVERY_TIMEOUT)
}

/// `pg_rowsync.cancel_timeout`.
pub fn cancel_timeout() -> Duration {
    millis(&CANCEL_TIMEOUT)
}

/// `pg_rowsync.idle_in_transaction_timeout`.
pub fn idle_in_transaction_timeout() -> Duration {
    millis(&IDLE_IN_TRANSACTION_TIMEOUT)
}

/// `pg_rowsync.lock_timeout`.
pub fn lock_timeout() -> Duration {
    millis(&LOCK_TIMEOUT)
}

/// `pg_rowsync.idle_timeout`; `None` for never.
pub fn idle_timeout() -> Option<Duration> {
    Some(IDLE_TIMEOUT.get())
        .filter(|millis| *millis > 0)
        .map(|millis| Duration::from_millis(millis as u64))
}

/// `pg_rowsync.max_servers`.
pub fn max_servers() -> usize {
    MAX_SERVERS.get().max(1) as usize
}

/// `pg_rowsync.retry_interval`.
pub fn retry_interval() -> Duration {
    millis(&RETRY_INTERVAL)
}

/// `pg_rowsync.max_retry_interval`.
pub fn max_retry_interval() -> Duration {
    millis(&MAX_RETRY_INTERVAL)
}

/// `pg_rowsync.copy_workers`.
pub fn copy_workers() -> usize {
    COPY_WORKERS.get().max(1) as usize
}

/// `pg_rowsync.log_conflicts`.
pub fn log_conflicts() -> LogConflicts {
    LOG_CONFLICTS.get()
}

/// `pg_rowsync.conflict_log_size`.
pub fn conflict_log_size() -> u32 {
    CONFLICT_LOG_SIZE.get().max(1) as u32
}

/// `pg_rowsync.conflict_retention`.
pub fn conflict_retention() -> Duration {
    secs(&CONFLICT_RETENTION)
}

/// `pg_rowsync.tombstone_retention`.
pub fn tombstone_retention() -> Duration {
    secs(&TOMBSTONE_RETENTION)
}

fn secs(setting: &GucSetting<i32>) -> Duration {
    Duration::from_secs(setting.get().max(1) as u64)
}

fn millis(setting: &GucSetting<i32>) -> Duration {
    Duration::from_millis(setting.get().max(1) as u64)
}
