//! Settings, each in a block of its own: the value and its default, the definition, how it is read. Times take
//! PostgreSQL's units, without one they are milliseconds, those of how long something is kept seconds. Every
//! number is bounded below, so that no setting can make a commit wait for ever.

use crate::pg::{context, setting};
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use std::ffi::{CStr, CString};
use std::ops::RangeInclusive;
use std::time::Duration;

/// In milliseconds.
const HOUR: i32 = 3_600_000;
/// In seconds.
const WEEK: i32 = 7 * 24 * 3_600;

/// Defines the settings; called once, when the library is loaded.
pub fn define() {
    define_application_name();
    define_path();
    define_connect_timeout();
    define_delivery_timeout();
    define_cancel_timeout();
    define_idle_in_transaction_timeout();
    define_lock_timeout();
    define_idle_timeout();
    define_retry_interval();
    define_max_retry_interval();
    define_buffer_size();
    define_copy_workers();
    define_max_servers();
    define_log_conflicts();
    define_conflict_log_size();
    define_conflict_retention();
    define_tombstone_retention();
}

static APPLICATION_NAME: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"pg_rowsync"));

fn define_application_name() {
    GucRegistry::define_string_guc(
        c"pg_rowsync.application_name",
        c"Loop-guard name and application_name of connections to servers.",
        c"Triggers capture nothing in a session whose application_name is this. A name in the \
          server's or the trigger's options wins.",
        &APPLICATION_NAME,
        GucContext::Suset,
        GucFlags::default(),
    );
}

/// `pg_rowsync.application_name`.
pub fn application_name() -> String {
    guard().to_string_lossy().into_owned()
}

/// `pg_rowsync.application_name` as the server keeps it.
pub fn guard() -> CString {
    APPLICATION_NAME.get().unwrap_or_default()
}

/// Whether `pg_rowsync.application_name` is the session's own `application_name`. Asked for every row.
pub fn guards_session() -> bool {
    context::is_application_name_of(&APPLICATION_NAME)
}

static PATH: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

fn define_path() {
    GucRegistry::define_string_guc(
        c"pg_rowsync.path",
        c"Databases that the session's changes come from.",
        c"Set by pg_rowsync's own connections, so that changes do not circle.",
        &PATH,
        GucContext::Userset,
        GucFlags::NO_SHOW_ALL | GucFlags::DISALLOW_IN_FILE,
    );
}

/// Whether `pg_rowsync.path` is this. Asked for every row.
pub fn is_path(path: &CStr) -> bool {
    setting::is(&PATH, path)
}

/// `pg_rowsync.path`.
pub fn path() -> CString {
    PATH.get().unwrap_or_default()
}

static CONNECT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(5_000);

fn define_connect_timeout() {
    define_number(
        c"pg_rowsync.connect_timeout",
        c"Longest time to connect to a server.",
        c"Covers all hosts of the server and authentication.",
        &CONNECT_TIMEOUT,
        1..=HOUR,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
}

/// `pg_rowsync.connect_timeout`.
pub fn connect_timeout() -> Duration {
    millis(&CONNECT_TIMEOUT)
}

static DELIVERY_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(10_000);

fn define_delivery_timeout() {
    define_number(
        c"pg_rowsync.delivery_timeout",
        c"Longest time a delivery may go without progress.",
        c"Progress is a batch that was sent or answered. Also the statement_timeout on the server.",
        &DELIVERY_TIMEOUT,
        1..=HOUR,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
}

/// `pg_rowsync.delivery_timeout`.
pub fn delivery_timeout() -> Duration {
    millis(&DELIVERY_TIMEOUT)
}

static CANCEL_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(3_000);

fn define_cancel_timeout() {
    define_number(
        c"pg_rowsync.cancel_timeout",
        c"Longest time to wait for the outcome of a delivery that was asked to cancel.",
        c"After it the outcome counts as unknown.",
        &CANCEL_TIMEOUT,
        1..=HOUR,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
}

/// `pg_rowsync.cancel_timeout`.
pub fn cancel_timeout() -> Duration {
    millis(&CANCEL_TIMEOUT)
}

static IDLE_IN_TRANSACTION_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(60_000);

fn define_idle_in_transaction_timeout() {
    define_number(
        c"pg_rowsync.idle_in_transaction_timeout",
        c"The idle_in_transaction_session_timeout on the server.",
        c"How long a drain's transaction may wait there for the end of the local one.",
        &IDLE_IN_TRANSACTION_TIMEOUT,
        1..=HOUR,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
}

/// `pg_rowsync.idle_in_transaction_timeout`.
pub fn idle_in_transaction_timeout() -> Duration {
    millis(&IDLE_IN_TRANSACTION_TIMEOUT)
}

static LOCK_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(1_000);

fn define_lock_timeout() {
    define_number(
        c"pg_rowsync.lock_timeout",
        c"The lock_timeout on the server.",
        c"Breaks deadlocks between masters that update the same rows.",
        &LOCK_TIMEOUT,
        1..=HOUR,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
}

/// `pg_rowsync.lock_timeout`.
pub fn lock_timeout() -> Duration {
    millis(&LOCK_TIMEOUT)
}

static IDLE_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(600_000);

fn define_idle_timeout() {
    define_number(
        c"pg_rowsync.idle_timeout",
        c"Time after which a session closes a connection that it has not used.",
        c"0 keeps it as long as the session lives.",
        &IDLE_TIMEOUT,
        0..=i32::MAX,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
}

/// `pg_rowsync.idle_timeout`; `None` for never.
pub fn idle_timeout() -> Option<Duration> {
    Some(IDLE_TIMEOUT.get())
        .filter(|millis| *millis > 0)
        .map(|millis| Duration::from_millis(millis as u64))
}

static RETRY_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(1_000);

// The worker's: every session must see the same, so it comes from the configuration.
fn define_retry_interval() {
    define_number(
        c"pg_rowsync.retry_interval",
        c"Time from the first failure of a server to the worker's next attempt.",
        c"Doubles with every further failure.",
        &RETRY_INTERVAL,
        1..=HOUR,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
}

/// `pg_rowsync.retry_interval`.
pub fn retry_interval() -> Duration {
    millis(&RETRY_INTERVAL)
}

static MAX_RETRY_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(30_000);

// The worker's: every session must see the same, so it comes from the configuration.
fn define_max_retry_interval() {
    define_number(
        c"pg_rowsync.max_retry_interval",
        c"Longest time between attempts of the worker.",
        c"Also how often an idle worker looks at the queue without having been woken.",
        &MAX_RETRY_INTERVAL,
        1..=HOUR,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
}

/// `pg_rowsync.max_retry_interval`.
pub fn max_retry_interval() -> Duration {
    millis(&MAX_RETRY_INTERVAL)
}

static BUFFER_SIZE: GucSetting<i32> = GucSetting::<i32>::new(16 * 1024);

fn define_buffer_size() {
    define_number(
        c"pg_rowsync.buffer_size",
        c"Memory for the captured changes of a transaction, for each server.",
        c"Beyond it they go to a temporary file, which temp_file_limit counts.",
        &BUFFER_SIZE,
        64..=1024 * 1024,
        GucContext::Userset,
        GucFlags::UNIT_KB,
    );
}

/// `pg_rowsync.buffer_size`, in bytes.
pub fn buffer_size() -> usize {
    BUFFER_SIZE.get().max(1) as usize * 1024
}

static COPY_WORKERS: GucSetting<i32> = GucSetting::<i32>::new(2);

fn define_copy_workers() {
    define_number(
        c"pg_rowsync.copy_workers",
        c"Processes that copy tables of a database at once.",
        c"Each takes one of max_worker_processes while it copies.",
        &COPY_WORKERS,
        1..=64,
        GucContext::Sighup,
        GucFlags::default(),
    );
}

/// `pg_rowsync.copy_workers`.
pub fn copy_workers() -> usize {
    COPY_WORKERS.get().max(1) as usize
}

static MAX_SERVERS: GucSetting<i32> = GucSetting::<i32>::new(128);

fn define_max_servers() {
    define_number(
        c"pg_rowsync.max_servers",
        c"Servers of all databases that have counters.",
        // 64 bytes, and as many for each of its slots for conflicts.
        c"Means something only with shared_preload_libraries; each takes 1088 bytes of shared memory, \
          those for the conflicts of 16 tables included. A dropped server keeps its place until the \
          server is restarted.",
        &MAX_SERVERS,
        1..=10_000,
        // PostgreSQL refuses, with FATAL, to define one that needs a restart later than at its start. Where
        // it means nothing, it is defined all the same, so that a configuration may hold it.
        if context::is_preloading() { GucContext::Postmaster } else { GucContext::Sighup },
        GucFlags::default(),
    );
}

/// `pg_rowsync.max_servers`.
pub fn max_servers() -> usize {
    MAX_SERVERS.get().max(1) as usize
}

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

static LOG_CONFLICTS: GucSetting<LogConflicts> = GucSetting::<LogConflicts>::new(LogConflicts::Log);

// Not left to everyone: who sets it decides what others find in the log.
fn define_log_conflicts() {
    GucRegistry::define_enum_guc(
        c"pg_rowsync.log_conflicts",
        c"What is kept of conflicts.",
        c"off: their number per server; count: also per table and kind, in sync_conflict_counts; log: also \
          what they were, in sync_conflicts.",
        &LOG_CONFLICTS,
        GucContext::Suset,
        GucFlags::default(),
    );
}

/// `pg_rowsync.log_conflicts`.
pub fn log_conflicts() -> LogConflicts {
    LOG_CONFLICTS.get()
}

static CONFLICT_LOG_SIZE: GucSetting<i32> = GucSetting::<i32>::new(10_000);

// Not left to everyone: who sets it decides what others find in the log.
fn define_conflict_log_size() {
    define_number(
        c"pg_rowsync.conflict_log_size",
        c"Rows that the log of conflicts keeps.",
        c"Older ones are removed when new ones are written.",
        &CONFLICT_LOG_SIZE,
        1..=10_000_000,
        GucContext::Suset,
        GucFlags::default(),
    );
}

/// `pg_rowsync.conflict_log_size`.
pub fn conflict_log_size() -> u32 {
    CONFLICT_LOG_SIZE.get().max(1) as u32
}

static CONFLICT_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(WEEK);

// Not left to everyone: who sets it decides what others find in the log.
fn define_conflict_retention() {
    define_number(
        c"pg_rowsync.conflict_retention",
        c"How long the log of conflicts keeps a row.",
        c"Older ones are removed when new ones are written.",
        &CONFLICT_RETENTION,
        1..=i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_S,
    );
}

/// `pg_rowsync.conflict_retention`.
pub fn conflict_retention() -> Duration {
    secs(&CONFLICT_RETENTION)
}

static TOMBSTONE_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(WEEK);

// Not left to everyone: who sets it decides what `newest` still knows.
fn define_tombstone_retention() {
    define_number(
        c"pg_rowsync.tombstone_retention",
        c"How long a deletion is remembered for the policy newest.",
        c"A change that arrives later than this after the deletion of its row brings the row back.",
        &TOMBSTONE_RETENTION,
        1..=i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_S,
    );
}

/// `pg_rowsync.tombstone_retention`.
pub fn tombstone_retention() -> Duration {
    secs(&TOMBSTONE_RETENTION)
}

fn define_number(
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    setting: &'static GucSetting<i32>,
    range: RangeInclusive<i32>,
    context: GucContext,
    flags: GucFlags,
) {
    GucRegistry::define_int_guc(
        name,
        short,
        long,
        setting,
        *range.start(),
        *range.end(),
        context,
        flags,
    );
}

fn secs(setting: &GucSetting<i32>) -> Duration {
    Duration::from_secs(setting.get().max(1) as u64)
}

fn millis(setting: &GucSetting<i32>) -> Duration {
    Duration::from_millis(setting.get().max(1) as u64)
}
