//! Background worker processes: registering and starting them, their signals, and finding the one
//! of a database.
//!
//! A request to end (SIGTERM) acts as a request to cancel, so that whatever can be interrupted
//! raises an ordinary ERROR, which the worker's loop catches; the loop then ends with the exit code
//! it wants. FATAL, the usual answer, would end it with a code that makes the postmaster start it
//! again.

use super::large::Inside;
use super::lock_tag::{object_tag, outlasting_aborts};
use super::{Oid, compat, context, database, report, text, worker_registry};
use crate::error::{Error, Result};
use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

const LIBRARY: &str = "pg_rowsync";
const LAUNCHER: &str = "pg_rowsync launcher";
const WORKER: &str = "pg_rowsync worker";
const COPIER: &str = "pg_rowsync copier";
/// After a crash of its own.
const RESTART: Duration = Duration::from_secs(5);
/// How often a worker looks whether its database is wanted by someone else.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Set by the handler of SIGTERM.
static STOP: AtomicBool = AtomicBool::new(false);
/// Someone wants the database for itself.
static EVICTED: AtomicBool = AtomicBool::new(false);
/// The worker ends to make room, and is not to be started again before it is needed.
static YIELDED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// This process is one of ours, and when it last looked at its database.
    static LAST_CHECK: Cell<Option<Instant>> = const { Cell::new(None) };
    /// The worker found last.
    static FOUND: Cell<Option<Process>> = const { Cell::new(None) };
}

/// Whether the library is being loaded at server start, and not for pg_upgrade.
pub fn preloading() -> bool {
    // SAFETY: plain read of a variable of this process.
    context::is_preloading() && !unsafe { pg_sys::IsBinaryUpgrade }
}

/// Why no worker can be started on this server now.
pub fn unable() -> Option<&'static str> {
    // SAFETY: plain reads; RecoveryInProgress looks at shared memory.
    unsafe {
        if pg_sys::IsBinaryUpgrade {
            Some("binary upgrade is in progress")
        } else if pg_sys::RecoveryInProgress() {
            Some("recovery is in progress")
        } else {
            None
        }
    }
}

/// Registers the launcher; only while libraries are preloaded.
pub fn register_launcher() {
    BackgroundWorkerBuilder::new(LAUNCHER)
        .set_type(LAUNCHER)
        .set_library(LIBRARY)
        .set_function("pg_rowsync_launcher_main")
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(RESTART))
        .load();
}

/// A worker that was asked for.
pub struct Handle(*mut pg_sys::BackgroundWorkerHandle);

/// What has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Startup {
    Pending,
    Running(i32),
    Ended,
}

impl Handle {
    /// What has become of the worker. This process is woken when that changes.
    pub fn state(&self) -> Startup {
        let mut pid = 0;
        // SAFETY: the handle is one that RegisterDynamicBackgroundWorker gave.
        match unsafe { pg_sys::GetBackgroundWorkerPid(self.0, &mut pid) } {
            pg_sys::BgwHandleStatus::BGWH_STARTED => Startup::Running(pid),
            pg_sys::BgwHandleStatus::BGWH_NOT_YET_STARTED => Startup::Pending,
            _ => Startup::Ended,
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: start_worker() had it allocated where it lives as long as the process; freed once.
        unsafe { pg_sys::pfree(self.0.cast()) }
    }
}

/// Asks the postmaster for a worker; `None` when it has no slot free. `restart`: start it again
/// after a crash of its own.
pub fn start_worker(database: Oid, restart: bool) -> Option<Handle> {
    let name = format!("{WORKER} for database {}", database.to_u32());
    let builder = BackgroundWorkerBuilder::new(&name)
        .set_type(WORKER)
        .set_library(LIBRARY)
        .set_function("pg_rowsync_worker_main")
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(restart.then_some(RESTART))
        .set_argument(Some(pg_sys::Datum::from(database.to_u32())))
        // SAFETY: plain read of a variable of this process.
        .set_notify_pid(unsafe { pg_sys::MyProcPid });
    register(&builder)
}

/// Asks the postmaster for a copier; `None` when it has no slot free. This process is woken when it has ended.
pub fn start_copier(database: Oid) -> Option<Handle> {
    let name = format!("{COPIER} for database {}", database.to_u32());
    let builder = BackgroundWorkerBuilder::new(&name)
        .set_type(COPIER)
        .set_library(LIBRARY)
        .set_function("pg_rowsync_copier_main")
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(None)
        .set_argument(Some(pg_sys::Datum::from(database.to_u32())))
        // SAFETY: plain read of a variable of this process.
        .set_notify_pid(unsafe { pg_sys::MyProcPid });
    register(&builder)
}

fn register(builder: &BackgroundWorkerBuilder) -> Option<Handle> {
    let mut worker = pg_sys::BackgroundWorker::from(builder);
    let mut handle = std::ptr::null_mut();
    // SAFETY: both live across the call; on success the handle is palloc'd.
    let registered = unsafe {
        let _memory = Inside::switch(pg_sys::TopMemoryContext);
        pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle)
    };
    registered.then(|| Handle(handle))
}

/// Takes a group of copies for this process; false when another has it. Until [`leave_copy`] or the end of the
/// process.
pub fn take_copy(group: i64) -> bool {
    let mode = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;
    // SAFETY: a plain lock tag.
    let got = unsafe { pg_sys::LockAcquire(&copy_tag(group), mode, true, true) };
    got != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
}

/// Gives up what [`take_copy`] took.
pub fn leave_copy(group: i64) {
    let mode = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;
    // SAFETY: a plain lock tag; the lock is held, else PostgreSQL warns.
    unsafe { pg_sys::LockRelease(&copy_tag(group), mode, true) };
}

/// As [`worker_tag`], with the number of the group as that of the object.
fn copy_tag(group: i64) -> pg_sys::LOCKTAG {
    let group = Oid::from(group as u32);
    outlasting_aborts(object_tag(
        database::current(),
        pg_sys::ExtensionRelationId,
        group,
        COPY_LOCK,
    ))
}

/// `pg_locks.objsubid` of a copy's lock, beside class `pg_extension` and the number of its group.
const COPY_LOCK: u16 = 2;

/// Takes over the signals of this process, a background worker, and lets them in.
fn handle_signals() {
    LAST_CHECK.set(Some(Instant::now()));
    // SAFETY: the handlers set flags and the latch, nothing else.
    unsafe {
        compat::set_signal_handler(pg_sys::SIGTERM as i32, on_terminate);
        compat::set_signal_handler(pg_sys::SIGHUP as i32, on_reload);
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

unsafe extern "C-unwind" fn on_terminate(signal: i32) {
    // Not pg_sys's guarded one: a guard does too much for a signal handler.
    unsafe extern "C-unwind" {
        fn StatementCancelHandler(signal: i32);
    }
    STOP.store(true, SeqCst);
    // SAFETY: a signal handler of PostgreSQL's own: a request to cancel, and the latch.
    unsafe { StatementCancelHandler(signal) }
}

unsafe extern "C-unwind" fn on_reload(signal: i32) {
    unsafe extern "C-unwind" {
        fn SignalHandlerForConfigReload(signal: i32);
    }
    // SAFETY: a signal handler of PostgreSQL's own.
    unsafe { SignalHandlerForConfigReload(signal) }
}

/// This process, a background worker that has just begun, enters a database, as the bootstrap superuser.
/// False when it has nothing to do there: the database is gone, or the process is to end. Raises what keeps
/// it from connecting.
pub fn enter(database: Oid) -> bool {
    handle_signals();
    // Started again after a crash, while the database was dropped: connecting would be FATAL, and again with
    // every new start.
    if !database::has_files(database) {
        return false;
    }
    let connected = report::caught(|| {
        connect(Some(database))?;
        neutral_settings();
        Ok(())
    });
    if ending().is_some() {
        return false;
    }
    report::or_raise(connected);
    true
}

/// As [`enter`], with the catalogs that all databases share and no others.
pub fn enter_none() {
    handle_signals();
    report::or_raise(connect(None));
}

fn connect(database: Option<Oid>) -> Result<()> {
    // SAFETY: in a background worker, which is what is looked at first. PostgreSQL refuses a second time.
    unsafe {
        if pg_sys::MyBgworkerEntry.is_null() {
            return Err(Error::internal("not a background worker"));
        }
        match database {
            Some(database) => {
                let user = pg_sys::InvalidOid;
                pg_sys::BackgroundWorkerInitializeConnectionByOid(database, user, 0);
            }
            None => {
                let none = std::ptr::null();
                pg_sys::BackgroundWorkerInitializeConnection(none, none, 0);
            }
        }
    }
    Ok(())
}

/// Longest time this process may wait without looking whether it is to leave its database.
pub fn longest_wait() -> Duration {
    match LAST_CHECK.get() {
        Some(_) if database::current() != pg_sys::InvalidOid => CHECK_INTERVAL,
        _ => Duration::MAX,
    }
}

/// Why this process is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// SIGTERM.
    Requested,
    /// Someone wants the database for itself.
    Evicted,
    /// It makes room for another database's.
    Yielded,
}

/// Undoes what the configuration of a database may ask of its sessions and would keep a worker from
/// its work.
fn neutral_settings() {
    for (name, value) in [
        (c"default_transaction_read_only", c"off"),
        (c"default_transaction_isolation", c"read committed"),
        (c"default_transaction_deferrable", c"off"),
        (c"statement_timeout", c"0"),
        // Someone's open transaction on the queue must not keep every server waiting.
        (c"lock_timeout", c"1s"),
        (c"session_replication_role", c"origin"),
    ] {
        let context = pg_sys::GucContext::PGC_SUSET;
        let source = pg_sys::GucSource::PGC_S_OVERRIDE;
        // SAFETY: C strings; outside of transactions, as autovacuum does it.
        unsafe { pg_sys::SetConfigOption(name.as_ptr(), value.as_ptr(), context, source) }
    }
}

/// Whether this process is to end.
pub fn ending() -> Option<ExitReason> {
    if STOP.load(SeqCst) {
        Some(ExitReason::Requested)
    } else {
        EVICTED.load(SeqCst).then_some(ExitReason::Evicted)
    }
}

/// In a worker, once in a while: looks whether someone waits for it to leave the database, and if
/// so makes that a request to cancel. In other processes nothing.
pub fn poll() {
    let Some(last) = LAST_CHECK.get() else { return };
    let database = database::current();
    if database == pg_sys::InvalidOid || last.elapsed() < CHECK_INTERVAL {
        return;
    }
    LAST_CHECK.set(Some(Instant::now()));
    if !database::is_open(database) {
        EVICTED.store(true, SeqCst);
        // SAFETY: plain writes of flags, as a signal handler makes them.
        unsafe {
            pg_sys::QueryCancelPending = 1;
            pg_sys::InterruptPending = 1;
        }
    }
}

/// Drops a request to cancel that found nothing to cancel. One to end stays.
pub fn forget_cancel() {
    // SAFETY: plain write of a flag. A request to end that comes in between sets it again; one that
    // came before is remembered by STOP.
    unsafe { pg_sys::QueryCancelPending = 0 }
}

/// Reads the configuration again if that was asked for; whether it was.
pub fn reload() -> bool {
    // SAFETY: plain flag; the configuration is read between transactions.
    unsafe {
        if pg_sys::ConfigReloadPending == 0 {
            return false;
        }
        pg_sys::ConfigReloadPending = 0;
        pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        true
    }
}

/// Ends the process with an exit code, without unwinding.
pub fn exit(code: i32) -> ! {
    #[allow(unreachable_code)] // not every major's declaration says that it does not return
    // SAFETY: runs the server's exit callbacks and leaves.
    unsafe {
        pg_sys::proc_exit(code);
        unreachable!("proc_exit does not return")
    }
}

/// Makes this process the worker of its database, the only one; false when there is one already.
/// For as long as the process lives: no transaction's end releases it.
pub fn become_worker() -> bool {
    let tag = worker_tag(database::current());
    // SAFETY: a plain lock tag.
    let got = unsafe {
        let mode = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;
        pg_sys::LockAcquire(&tag, mode, true, true)
    };
    let got = got != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL;
    if got {
        // SAFETY: a function of this library, which is never unloaded.
        unsafe { pg_sys::before_shmem_exit(Some(at_exit), pg_sys::Datum::from(0usize)) }
        worker_registry::set(database::current(), worker_registry::flag::WORKING);
    }
    got
}

/// Tells the launcher, however the worker ends. Neither waits nor fails.
unsafe extern "C-unwind" fn at_exit(_code: i32, _arg: pg_sys::Datum) {
    let database = database::current();
    worker_registry::clear(database, worker_registry::flag::WORKING);
    if !YIELDED.load(SeqCst) {
        worker_registry::set(database, worker_registry::flag::ENDED);
    }
}

/// Gives up being the worker, if nothing was queued that it has not looked at; the process is to end then.
/// `due`: when there will be something to do again, as PostgreSQL counts time. Who queues sees either
/// that there is no worker at work, or is seen here.
pub fn try_yield(due: Option<i64>) -> bool {
    let database = database::current();
    worker_registry::clear(database, worker_registry::flag::WORKING);
    if worker_registry::has(database, worker_registry::flag::NOTIFIED) {
        worker_registry::set(database, worker_registry::flag::WORKING);
        return false;
    }
    YIELDED.store(true, SeqCst);
    worker_registry::yield_until(database, due.unwrap_or(0));
    true
}

/// What [`become_worker`] locks.
fn worker_tag(database: Oid) -> pg_sys::LOCKTAG {
    outlasting_aborts(object_tag(
        database,
        pg_sys::ExtensionRelationId,
        Oid::INVALID,
        WORKER_LOCK,
    ))
}

/// `pg_locks.objsubid` of a worker's lock, beside class `pg_extension` and object 0.
pub const WORKER_LOCK: u16 = 1;

/// A process of the server.
#[derive(Clone, Copy)]
pub struct Process {
    proc: *mut pg_sys::PGPROC,
    database: Oid,
    pub pid: i32,
}

impl Process {
    /// Wakes it; false if it has ended. Neither waits nor fails.
    pub fn wake(self) -> bool {
        // SAFETY: entries of this array are in shared memory and never freed; one that now stands
        // for another process is woken for nothing.
        unsafe { pg_sys::SetLatch(&raw mut (*self.proc).procLatch) }
        self.is_there()
    }

    /// Whether it has not ended.
    pub fn is_there(self) -> bool {
        // SAFETY: as above; plain reads of values that may change at any time.
        unsafe {
            (&raw const (*self.proc).pid).read_volatile() == self.pid
                && (&raw const (*self.proc).databaseId).read_volatile() == self.database
        }
    }
}

/// The process that is a database's worker, or about to become it.
pub fn find(database: Oid) -> Option<Process> {
    if let Some(found) = FOUND.get()
        && found.database == database
        && found.is_there()
    {
        return Some(found);
    }
    let found = search(database);
    FOUND.set(found);
    found
}

fn search(database: Oid) -> Option<Process> {
    // SAFETY: the array of all processes is in shared memory and does not move; entries are read
    // without a lock, so what is found is checked by process id.
    unsafe {
        let all = pg_sys::ProcGlobal;
        for at in 0..(*all).allProcCount as usize {
            let proc = (*all).allProcs.add(at);
            let pid = (&raw const (*proc).pid).read_volatile();
            if pid == 0
                || (&raw const (*proc).databaseId).read_volatile() != database
                || !compat::is_background_worker(proc)
            {
                continue;
            }
            let kind = pg_sys::GetBackgroundWorkerTypeByPid(pid);
            if !kind.is_null() && CStr::from_ptr(kind).to_bytes() == WORKER.as_bytes() {
                return Some(Process {
                    proc,
                    database,
                    pid,
                });
            }
        }
    }
    None
}

/// Asks a process of this server to end.
pub fn terminate(pid: i32) {
    unsafe extern "C" {
        fn kill(pid: i32, signal: i32) -> i32;
    }
    // Others than one process are meant by what is no process's number.
    if pid > 0 {
        // SAFETY: a system call. One that has just ended is as good as told.
        unsafe { kill(pid, pg_sys::SIGTERM as i32) };
    }
}

/// Shows in `pg_stat_activity` what this process does.
pub fn show(busy: bool, text: &str) {
    let state = if busy {
        pg_sys::BackendState::STATE_RUNNING
    } else {
        pg_sys::BackendState::STATE_IDLE
    };
    let text = CString::new(text::outside_transaction(text)).unwrap_or_default();
    // SAFETY: the text is copied.
    unsafe { pg_sys::pgstat_report_activity(state, text.as_ptr()) };
}

/// Reports what transactions did, so that autovacuum sees it. Between transactions.
pub fn report_statistics(at_once: bool) {
    // SAFETY: plain call outside of transactions.
    unsafe { pg_sys::pgstat_report_stat(at_once) };
}
