//! What sessions do with the worker of their database: start it, stop it, wake it.

use crate::error::{Error, Result, SqlState};
use crate::pg::bgworker::{self, Process, Startup, WORKER_LOCK};
use crate::pg::spi::{self, Extension};
use crate::pg::worker_registry::{self, flag};
use crate::pg::{database, interrupt, wait};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Longest time for a worker to start or to end. It ends at once, except while it waits for the
/// outcome of a COMMIT.
const WORKER_STATE_TIMEOUT: Duration = Duration::from_secs(10);
const WORKER_LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Starts the worker of the current database and waits until it is there. False when there is one.
///
/// # Errors
/// 55000 where none can run, 53400 when the server has no slot for it.
pub fn start(extension: &Extension) -> Result<bool> {
    if let Some(reason) = bgworker::unable() {
        let message = format!("cannot start a worker: {reason}");
        return Err(Error::local(SqlState::OBJECT_NOT_READY, message));
    }
    let database = database::current();
    worker_registry::clear(database, flag::PAUSED);
    if holder(extension)?.is_some() {
        return Ok(false);
    }
    // With a launcher, it is the launcher that starts it again.
    let Some(worker) = bgworker::start_worker(database, !worker_registry::exists()) else {
        return Err(Error::local(
            SqlState::CONFIGURATION_LIMIT,
            "out of background worker slots",
        )
        .with_hint("You might need to increase max_worker_processes."));
    };
    let deadline = Instant::now() + WORKER_STATE_TIMEOUT;
    loop {
        let state = worker.state();
        match (holder(extension)?, state) {
            (Some(pid), Startup::Running(own)) if pid == own => return Ok(true),
            (Some(_), _) => return Ok(false),
            (None, Startup::Ended) => break,
            (None, _) if Instant::now() >= deadline => break,
            (None, _) => pause(),
        }
    }
    Err(
        Error::local(SqlState::OBJECT_NOT_READY, "the worker did not start")
            .with_hint("See the server's log. CREATE EXTENSION must have been committed before."),
    )
}

/// Ends the worker of the current database and waits until it has gone; until [`start`] or a server
/// start none is started for it. False when there was none.
///
/// # Errors
/// 55006 when it does not end in time.
pub fn stop(extension: &Extension) -> Result<bool> {
    let database = database::current();
    if worker_registry::exists() && !worker_registry::set(database, flag::PAUSED) {
        let message = "too many databases to remember that this one is to have no worker";
        return Err(Error::local(SqlState::CONFIGURATION_LIMIT, message));
    }
    let Some(pid) = holder(extension)? else {
        return Ok(false);
    };
    bgworker::terminate(pid);
    let deadline = Instant::now() + WORKER_STATE_TIMEOUT;
    while holder(extension)? == Some(pid) {
        if Instant::now() >= deadline {
            let message = format!("the worker (PID {pid}) did not end in time");
            return Err(Error::local(SqlState::OBJECT_IN_USE, message));
        }
        pause();
    }
    Ok(true)
}

/// What becomes of the queue of the current database: `running`, a worker is there; `idle`, one will be
/// started when something is queued; `no slot`, one is wanted and `max_worker_processes` leaves no room;
/// `stopped`, by `stop_sync_worker()`; `none`, nobody starts one.
///
/// # Errors
/// What reading the locks reports.
pub fn state(extension: &Extension) -> Result<&'static str> {
    let database = database::current();
    Ok(if holder(extension)?.is_some() {
        "running"
    } else if worker_registry::has(database, flag::PAUSED) {
        "stopped"
    } else if worker_registry::has(database, flag::NO_SLOT) {
        "no slot"
    } else if worker_registry::exists() {
        "idle"
    } else {
        "none"
    })
}

fn pause() {
    wait::wait(&[], WORKER_LOOK_INTERVAL);
    interrupt::check();
}

/// The process that is the worker of the current database.
fn holder(extension: &Extension) -> Result<Option<i32>> {
    let sql = "SELECT pid FROM pg_locks \
         WHERE locktype = 'object' \
         AND database = $1::oid \
         AND classid = 'pg_extension'::regclass \
         AND objid = 0::oid \
         AND objsubid = $2::int2 AND granted";
    let database = database::current().to_u32().to_string();
    let lock = WORKER_LOCK.to_string();
    spi::select_first(extension, sql, &[Some(&database), Some(&lock)])
}

#[derive(Clone, Copy)]
enum Wake {
    Worker(Process),
    Launcher,
}

thread_local! {
    /// Whom the commit of the current transaction wakes.
    static WAKE: Cell<Option<Wake>> = const { Cell::new(None) };
    /// Whom its end wakes, however it ends.
    static WAKE_AT_END: Cell<Option<Wake>> = const { Cell::new(None) };
}

/// Something was queued: once the transaction has committed, the worker is woken, or the launcher is
/// notified that there is none. Called before the commit, where it may fail.
pub fn wake_at_commit() {
    WAKE.set(whom());
}

/// Once the transaction has ended, in whichever way, the worker is woken, or the launcher is told that there
/// is none: the transaction may leave something to the worker.
pub fn wake_at_end() {
    WAKE_AT_END.set(whom());
}

/// The transaction has left nothing: what [`wake_at_end`] asked for is forgotten. Cannot fail.
pub fn let_sleep() {
    WAKE_AT_END.set(None);
}

fn whom() -> Option<Wake> {
    let database = database::current();
    if worker_registry::has(database, flag::PAUSED) {
        return None;
    }
    match bgworker::find(database) {
        Some(worker) => Some(Wake::Worker(worker)),
        None => worker_registry::exists().then_some(Wake::Launcher),
    }
}

/// Wakes the worker now, for what may have been queued by someone who woke nobody. What the commit of the
/// current transaction does stays as it is.
pub fn wake_now() {
    let at_commit = WAKE.take();
    wake_at_commit();
    transaction_ended(true);
    WAKE.set(at_commit);
}

/// The transaction has ended. Cannot fail.
pub fn transaction_ended(committed: bool) {
    let at_commit = WAKE.take();
    let at_end = WAKE_AT_END.take();
    let Some(wake) = at_commit.filter(|_| committed).or(at_end) else {
        return;
    };
    let database = database::current();
    let at_work = match wake {
        // One that has just found no extension here is about to end.
        Wake::Worker(worker) => {
            let before = worker_registry::note(database, flag::NOTIFIED);
            // Woken by another commit, it will see what this one has queued.
            let notified = before.is_some_and(|flags| flags & flag::NOTIFIED != 0);
            let there = if notified {
                worker.is_there()
            } else {
                worker.wake()
            };
            there && before.is_none_or(|flags| flags & flag::WORKING != 0)
        }
        Wake::Launcher => false,
    };
    if !at_work {
        worker_registry::set(database, flag::WANTED);
    }
}
