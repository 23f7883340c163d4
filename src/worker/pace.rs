//! Whether a server's queue is closed during the next visit, so that the worker catches up.

use std::time::{Duration, Instant};

/// The queue is closed for a visit that takes no longer than this. Commits wait longer for the queue.
const MAX_CLOSED_VISIT: Duration = Duration::from_millis(50);
/// The queue is closed for a visit with no more records than this, however long the last visit took: that one may
/// have waited for other things.
const MAX_CLOSED_RECORDS: i64 = 200;
/// How long a longer queue may take to become noticeably shorter by itself.
const WINDOW: Duration = Duration::from_secs(10);
/// For how long the queue stays open after closing it took too long.
const REOPENED_PERIOD: Duration = Duration::from_secs(1);
/// What is queued so soon after the queue was emptied comes from those who queue all the time.
const RECENTLY_EMPTIED_PERIOD: Duration = Duration::from_secs(1);

/// How fast a server's backlog shrinks, from visit to visit.
#[derive(Debug, Default)]
pub struct Pace {
    /// The backlog at the beginning of the window.
    window: Option<(Instant, i64)>,
    closed: bool,
    emptied: Option<Emptied>,
    open_until: Option<Instant>,
}

/// A visit that has emptied the queue.
#[derive(Clone, Copy, Debug)]
struct Emptied {
    at: Instant,
    took: Duration,
    /// Another one had done so shortly before, and at least one of them was quick.
    again: bool,
}

impl Pace {
    /// Whether to close the queue.
    pub fn closes(&self, now: Instant) -> bool {
        // Whoever queues all the time would let nobody else deliver.
        (self.closed || self.is_refilled(now)) && self.open_until.is_none_or(|until| until <= now)
    }

    /// Whether the queue was emptied a moment ago, and so shortly after it had been: what is queued now is no
    /// backlog, but comes from those who queue all the time.
    pub fn is_refilled(&self, now: Instant) -> bool {
        self.was_emptied(now) && self.emptied.is_some_and(|last| last.again)
    }

    /// Whether the queue was emptied a moment ago.
    pub fn was_emptied(&self, now: Instant) -> bool {
        self.emptied
            .is_some_and(|last| now.duration_since(last.at) < RECENTLY_EMPTIED_PERIOD)
    }

    /// A visit has applied `done` records within `took`, and left so many.
    pub fn remaining(&mut self, backlog: i64, done: u64, took: Duration, now: Instant) {
        if backlog == 0 {
            let before = self.emptied.filter(|_| self.was_emptied(now));
            let again = before.is_some_and(|before| before.took.min(took) <= MAX_CLOSED_VISIT);
            *self = Self {
                emptied: Some(Emptied {
                    at: now,
                    took,
                    again,
                }),
                ..Self::default()
            };
            return;
        }
        // A few may have been queued past the closed queue; the next visit takes them.
        if let Some(last) = &mut self.emptied
            && backlog > MAX_CLOSED_RECORDS
        {
            last.again = false;
        }
        let (since, before) = *self.window.get_or_insert((now, backlog));
        // Not less than the last one took, which it mostly spent on what every visit costs.
        let next = took.mul_f64((backlog as f64 / done.max(1) as f64).max(1.0));
        let over = now.duration_since(since) >= WINDOW;
        let stuck = over && backlog > before - before / 10;
        if over {
            self.window = Some((now, backlog));
        }
        // Once it has not got shorter by itself, it stays closed until it is empty.
        self.closed = backlog <= MAX_CLOSED_RECORDS
            || next <= MAX_CLOSED_VISIT
            || stuck
            || (self.closed && !over);
    }

    /// The queue could not be closed.
    pub fn could_not_close(&mut self, now: Instant) {
        self.open_until = Some(now + REOPENED_PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_queue_is_closed_and_a_long_one_only_if_it_does_not_shrink() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let second = Duration::from_secs(1);
        let mut pace = Pace::default();
        pace.remaining(100_000, 5_000, second, at(0));
        pace.remaining(98_000, 5_000, second, at(5));
        assert!(!pace.closes(at(5)));
        pace.remaining(97_000, 5_000, second, at(10));
        assert!(pace.closes(at(10)), "it shrinks too slowly");
        pace.remaining(60_000, 5_000, second, at(20));
        assert!(!pace.closes(at(20)), "it shrinks");
        pace.remaining(4_000, 5_000, second, at(21));
        assert!(!pace.closes(at(21)), "commits would wait too long");
        pace.remaining(1_000, 50, second, at(22));
        assert!(!pace.closes(at(22)));
        pace.remaining(200, 50, second, at(22));
        assert!(pace.closes(at(22)), "it is short");
        pace.could_not_close(at(22));
        assert!(!pace.closes(at(22)) && pace.closes(at(23)));
        pace.remaining(0, 200, second, at(24));
        assert!(!pace.closes(at(30)));
    }

    #[test]
    fn a_queue_that_is_filled_again_at_once_is_closed_again() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let moment = Duration::from_millis(5);
        let mut pace = Pace::default();
        pace.remaining(0, 3, moment, at(0));
        assert!(!pace.closes(at(1)), "perhaps that was all");
        for time in [10, 20, 500] {
            pace.remaining(0, 2, moment, at(time));
            assert!(
                pace.is_refilled(at(time + 1)) && pace.closes(at(time + 1)),
                "it is filled again"
            );
        }
        pace.remaining(300, 2, moment, at(510));
        assert!(!pace.is_refilled(at(511)), "it is not emptied any more");
        pace.remaining(0, 300, 20 * moment, at(520));
        assert!(pace.is_refilled(at(521)), "that one was slow");
        assert!(!pace.is_refilled(at(1_520)), "it was not filled for long");
        pace.remaining(0, 2, 20 * moment, at(1_521));
        pace.remaining(0, 2, 20 * moment, at(1_522));
        assert!(!pace.is_refilled(at(1_523)), "commits would wait too long");
    }
}
