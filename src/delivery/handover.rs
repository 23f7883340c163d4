//! From queueing back to sending, while commits go on.
//!
//! As long as anything is pending, commits queue; and as long as commits queue, something is pending. So
//! when the worker has nearly caught up it closes the queue for its next visit: those who are about to
//! queue wait for it a moment, and find the queue empty then. Only progress depends on this, never
//! order: who does not want to wait any longer queues all the same.
//!
//! Where a server grants fewer connections than sessions ask for, sessions without a connection queue all the time.
//! They would always be the first at a queue that is empty again, since they need not connect. So a session that was
//! refused a connection waits for a moment before it queues; meanwhile the others find the queue empty. A session
//! that has a connection waits for the queue to be emptied also before the queue is closed, if the worker promises
//! to come.
//!
//! A commit that waits here has written its rows and holds their locks. Among masters, deliveries from the other side
//! may wait for these locks, while the other side's queue is closed for its own commits: each worker would wait for
//! commits that wait for the other worker. So a commit that holds up a delivery does not wait.

use crate::capture::change_set::ChangeSet;
use crate::error::{Error, Result};
use crate::local::{ProcessLocal, process_local};
use crate::pg::wait;
use crate::pg::{Oid, interrupt, lock};
use crate::queue::admission;
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Longest time a commit waits for the queue to be opened again.
const QUEUE_OPENING_TIMEOUT: Duration = Duration::from_millis(100);
/// Between two looks.
const OPENING_LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// For how long an empty queue is left to those who have a connection.
const HEAD_START: Duration = Duration::from_millis(5);
/// For how long a promise counts for nothing after it was not kept in time.
const BROKEN_PROMISE_PERIOD: Duration = Duration::from_secs(1);

process_local! {
    /// Servers for which a promise was not kept in time, and when.
    static BROKEN: RefCell<HashMap<u32, Instant>> = RefCell::default();
}

/// Between two looks at who waits for the transaction.
const WAITERS_LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Until when the waits of a commit that begins now are over.
pub fn deadline() -> Instant {
    Instant::now() + QUEUE_OPENING_TIMEOUT
}

/// A commit that is about to queue changes for a server.
pub struct QueueingCommit<'s> {
    set: &'s ChangeSet,
    is_connected: bool,
    deadline: Instant,
    /// In the queue, which cannot be closed as long as anybody is.
    has_entered: bool,
    /// It has waited on the strength of a promise.
    has_relied: bool,
    /// When it has looked who waits for it.
    looked: Option<Instant>,
}

impl<'s> QueueingCommit<'s> {
    /// `is_connected`: it could send over a connection that it has.
    pub fn new(set: &'s ChangeSet, is_connected: bool, deadline: Instant) -> Self {
        Self {
            set,
            is_connected,
            deadline,
            has_entered: false,
            has_relied: false,
            looked: None,
        }
    }

    /// Waits until the queue may have been emptied. True: the caller should look once more whether it must queue,
    /// and ask again if so. False: there is nothing to wait for, it is to queue.
    ///
    /// # Errors
    /// 57014 for a request to cancel.
    pub fn await_emptied(&mut self) -> Result<bool> {
        let mut was_closed = false;
        loop {
            if self.try_enter() && was_closed {
                return Ok(true);
            }
            if self.has_entered && !self.relies() {
                return Ok(false);
            }
            if self.is_over() {
                self.note_broken();
                return Ok(false);
            }
            if self.holds_up_delivery()? {
                return Ok(false);
            }
            if self.has_entered {
                self.leave();
                pause(OPENING_LOOK_INTERVAL)?;
                return Ok(true);
            }
            was_closed = true;
            pause(OPENING_LOOK_INTERVAL)?;
        }
    }

    /// Lets those who have a connection go first, and enters the queue. For who has been refused one, which may have
    /// taken longer than it would wait here.
    ///
    /// # Errors
    /// 57014 for a request to cancel.
    pub fn give_way(&mut self) -> Result<()> {
        loop {
            pause(HEAD_START)?;
            if self.try_enter() {
                return Ok(());
            }
            // Once it is open again it is empty again.
            while !self.try_enter() {
                if self.is_over() || self.holds_up_delivery()? {
                    return Ok(());
                }
                pause(OPENING_LOOK_INTERVAL)?;
            }
            if self.is_over() || self.holds_up_delivery()? {
                return Ok(());
            }
            self.leave();
        }
    }

    /// Nothing is queued: the next visit need not wait for the end of the transaction.
    pub fn leave(&mut self) {
        if std::mem::take(&mut self.has_entered) {
            lock::leave(self.server());
        }
    }

    fn try_enter(&mut self) -> bool {
        self.has_entered = self.has_entered || lock::try_enter(self.server());
        self.has_entered
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Whether it waits for a queue that is open.
    fn relies(&mut self) -> bool {
        let server = self.server().to_u32();
        let broken = BROKEN.with_borrow(|broken| broken.get(&server).copied());
        let relies = self.is_connected
            && broken.is_none_or(|at| at.elapsed() >= BROKEN_PROMISE_PERIOD)
            && lock::is_promised(self.server());
        self.has_relied |= relies;
        relies
    }

    /// Whether a session that brings changes from elsewhere waits for this transaction, or behind others who do.
    fn holds_up_delivery(&mut self) -> Result<bool> {
        if !lock::has_waiters()
            || self
                .looked
                .is_some_and(|at| at.elapsed() < WAITERS_LOOK_INTERVAL)
        {
            return Ok(false);
        }
        self.looked = Some(Instant::now());
        admission::holds_up_delivery(self.set)
    }

    fn server(&self) -> Oid {
        self.set.account.server
    }

    fn note_broken(&self) {
        if self.has_relied {
            let server = self.server().to_u32();
            BROKEN.with_borrow_mut(|broken| broken.insert(server, Instant::now()));
        }
    }
}

fn pause(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        if interrupt::pending() {
            interrupt::check();
            return Err(Error::Canceled);
        }
        wait::wait(&[], left.max(OPENING_LOOK_INTERVAL));
    }
    Ok(())
}
