//! The launcher: with the library preloaded, sees to it that every database that has the extension
//! has a worker.
//!
//! It cannot look into databases, so it starts a worker in each, one after the other (slots are few),
//! and those without the extension end at once. That happens at server start and every few minutes;
//! in between, a session that queues a change and finds no worker asks for one.

use crate::pg::bgworker::{self, Handle, Startup};
use crate::pg::worker_registry::{self, flag};
use crate::pg::worker_transaction::run_in_transaction;
use crate::pg::{Oid, context, database, interrupt, report, wait, wal};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Time between looks at all databases, for changes queued by other ways than a commit here: a
/// restored dump, a prepared transaction.
const LOOK_EVERYWHERE: Duration = Duration::from_secs(300);
/// Pause before a worker that has ended is started again.
const RESTART: Duration = Duration::from_secs(5);
/// Pause when the server has no slot for a worker. Idle workers are asked to make room.
const NO_SLOT: Duration = Duration::from_secs(1);
/// Pause while someone wants a database for itself, or a worker there is about to end.
const CLOSED: Duration = Duration::from_secs(1);
/// Longest time to wait for a worker to find out whether it has anything to do.
const SETTLE: Duration = Duration::from_secs(3);
/// Shortest time between looks at all databases.
const LOOK_GAP: Duration = Duration::from_secs(10);

/// Main function of the launcher.
pub fn run() -> ! {
    bgworker::enter_none();
    worker_registry::announce_launcher();
    wal::remember_start();
    bgworker::show(
        false,
        "pg_rowsync: waiting for databases that want a worker",
    );
    let mut launcher = Launcher {
        wanted: BTreeMap::new(),
        starting: None,
        look_at: Instant::now(),
        looked: Instant::now(),
        warned_no_slot: false,
        without_slot: BTreeSet::new(),
        try_at: Instant::now(),
    };
    while bgworker::ending().is_none() {
        launcher.run_in_transaction();
    }
    // The postmaster would not start it again after exit code 0; at shutdown it does not anyway.
    bgworker::exit(1)
}

/// What came of starting a worker.
enum Start {
    /// It was started, or is not needed.
    Done,
    /// To be tried again after this pause.
    Later(Duration),
    /// The server has no slot for it.
    NoSlot,
}

struct Launcher {
    /// Databases that may want a worker, and when to start one.
    wanted: BTreeMap<u32, Instant>,
    /// One at a time, until it has settled or at the latest then.
    starting: Option<(Oid, Handle, Instant)>,
    look_at: Instant,
    looked: Instant,
    warned_no_slot: bool,
    /// Databases for whose workers there was no slot.
    without_slot: BTreeSet<u32>,
    /// Nothing is started before, since there was no slot.
    try_at: Instant,
}

impl Launcher {
    fn run_in_transaction(&mut self) {
        interrupt::pending();
        bgworker::forget_cancel();
        bgworker::reload();
        if worker_registry::take_look_everywhere() {
            self.look_at = self.look_at.min(self.looked + LOOK_GAP);
        }
        if self.look_at <= Instant::now() {
            self.look_everywhere();
        }
        self.take_requests();
        self.settle();
        if self.starting.is_none() {
            self.start_next();
        }
        let now = Instant::now();
        let next = match &self.starting {
            Some((_, _, until)) => *until,
            None => self
                .wanted
                .values()
                .fold(self.look_at, |next, due| next.min((*due).max(self.try_at))),
        };
        // A request to end may have come while something above waited, which has reset the latch.
        if bgworker::ending().is_none() {
            wait::wait(&[], next.saturating_duration_since(now));
        }
    }

    fn look_everywhere(&mut self) {
        let now = Instant::now();
        self.look_at = now + LOOK_EVERYWHERE;
        self.looked = now;
        self.warned_no_slot = false;
        let Some(databases) = databases() else { return };
        worker_registry::keep_only(&databases);
        self.without_slot
            .retain(|own| databases.contains(&Oid::from(*own)));
        worker_registry::want_slots(!self.without_slot.is_empty());
        for database in databases {
            self.wanted.entry(database.to_u32()).or_insert(now);
        }
    }

    fn take_requests(&mut self) {
        let now = Instant::now();
        for database in worker_registry::flagged() {
            let flags = worker_registry::clear(database, flag::ENDED | flag::WANTED);
            if let Some(due) = worker_registry::take_due(database) {
                let wait = u64::try_from(due - context::now()).unwrap_or(0);
                let due = now + Duration::from_micros(wait);
                let wanted = self.wanted.entry(database.to_u32()).or_insert(due);
                *wanted = due.min(*wanted);
            }
            if flags & flag::ENDED != 0 {
                self.wanted.insert(database.to_u32(), now + RESTART);
            }
            if flags & flag::WANTED != 0 {
                let wanted = self.wanted.entry(database.to_u32()).or_insert(now);
                *wanted = now.min(*wanted);
            }
        }
    }

    /// Whether the worker being started has settled. One that ended before that failed.
    fn settle(&mut self) {
        let Some((database, handle, until)) = &self.starting else {
            return;
        };
        let now = Instant::now();
        let database = *database;
        // Asked in this order: a worker marks first and ends then.
        let ended = handle.state() == Startup::Ended;
        let settled = worker_registry::has(database, flag::SETTLED);
        if ended && !settled && worker_registry::flags(database).is_some() {
            self.wanted.insert(database.to_u32(), now + RESTART);
        }
        if ended || settled || *until <= now {
            self.starting = None;
        }
    }

    fn start_next(&mut self) {
        while self.starting.is_none()
            && self.try_at <= Instant::now()
            && let Some(database) = self.next_due()
        {
            match self.start(Oid::from(database)) {
                // Its turn stays where it is among those that wait for a slot.
                Start::NoSlot => {
                    self.ask_for_slots();
                    self.try_at = Instant::now() + NO_SLOT;
                    return;
                }
                Start::Later(pause) => drop(self.wanted.insert(database, Instant::now() + pause)),
                Start::Done => drop(self.wanted.remove(&database)),
            }
        }
    }

    /// There is no slot for the workers whose time has come: idle ones are asked to make room.
    fn ask_for_slots(&mut self) {
        let now = Instant::now();
        for (database, _) in self.wanted.iter().filter(|(_, due)| **due <= now) {
            self.without_slot.insert(*database);
            worker_registry::set(Oid::from(*database), flag::NO_SLOT);
        }
        worker_registry::want_slots(true);
        for other in worker_registry::flagged() {
            if worker_registry::has(other, flag::WORKING)
                && let Some(worker) = bgworker::find(other)
            {
                worker.wake();
            }
        }
    }

    fn got_slot(&mut self, database: Oid) {
        self.without_slot.remove(&database.to_u32());
        worker_registry::clear(database, flag::NO_SLOT);
        worker_registry::want_slots(!self.without_slot.is_empty());
    }

    fn next_due(&self) -> Option<u32> {
        let now = Instant::now();
        // Who has waited longest, so that nobody is passed over for ever.
        let due = self.wanted.iter().filter(|(_, due)| **due <= now);
        due.min_by_key(|(_, due)| **due)
            .map(|(database, _)| *database)
    }

    /// Starts a worker.
    fn start(&mut self, database: Oid) -> Start {
        if worker_registry::has(database, flag::PAUSED | flag::WORKING) {
            self.got_slot(database);
            return Start::Done;
        }
        if bgworker::find(database).is_some() {
            // A worker without a slot in the registry counts as working.
            return worker_registry::flags(database).map_or(Start::Done, |_| Start::Later(CLOSED));
        }
        if !database::is_open(database) {
            return Start::Later(CLOSED);
        }
        // It may have been dropped since it was asked for.
        if !databases().is_some_and(|databases| databases.contains(&database)) {
            self.got_slot(database);
            return Start::Done;
        }
        worker_registry::clear(database, flag::SETTLED);
        if let Some(handle) = bgworker::start_worker(database, false) {
            self.starting = Some((database, handle, Instant::now() + SETTLE));
            self.got_slot(database);
            return Start::Done;
        }
        if !std::mem::replace(&mut self.warned_no_slot, true) {
            let message = "pg_rowsync cannot start a worker: max_worker_processes is too low";
            report::log(message, None);
        }
        Start::NoSlot
    }
}

fn databases() -> Option<Vec<Oid>> {
    match run_in_transaction(|| Ok(database::connectable())) {
        Ok(databases) => Some(databases),
        Err(error) => {
            if bgworker::ending().is_none() {
                report::log("the list of databases could not be read", Some(&error));
            }
            None
        }
    }
}
