//! Whether a server's queue is closed during the next visit, so that the worker catches up.

use std::time::{Duration, Instant};

/// So few records are delivered in one visit; closing the queue meanwhile empties it.
const SHORT: i64 = 5_000;
/// How long a queue that is longer may take to become noticeably shorter by itself.
const WINDOW: Duration = Duration::from_secs(10);
/// For how long the queue stays open after closing it took too long.
const RESPITE: Duration = Duration::from_secs(1);

/// See the module's head.
#[derive(Debug, Default)]
pub struct Pace {
    /// The backlog at the beginning of the window.
    window: Option<(Instant, i64)>,
    closed: bool,
    open_until: Option<Instant>,
}

impl Pace {
    /// Whether to close the queue.
    pub fn closes(&self, now: Instant) -> bool {
        self.closed && self.open_until.is_none_or(|until| until <= now)
    }

    /// A visit has left so many records.
    pub fn left(&mut self, backlog: i64, now: Instant) {
        if backlog == 0 {
            *self = Self::default();
            return;
        }
        let (since, before) = *self.window.get_or_insert((now, backlog));
        if backlog <= SHORT {
            self.closed = true;
        } else if now.duration_since(since) >= WINDOW {
            self.closed = backlog > before - before / 10;
            self.window = Some((now, backlog));
        }
    }

    /// The queue could not be closed.
    pub fn could_not_close(&mut self, now: Instant) {
        self.open_until = Some(now + RESPITE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_queue_is_closed_and_a_long_one_only_if_it_does_not_shrink() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::default();
        pace.left(100_000, at(0));
        pace.left(98_000, at(5));
        assert!(!pace.closes(at(5)));
        pace.left(97_000, at(10));
        assert!(pace.closes(at(10)), "it shrinks too slowly");
        pace.left(60_000, at(20));
        assert!(!pace.closes(at(20)), "it shrinks");
        pace.left(4_000, at(21));
        assert!(pace.closes(at(21)), "it is short");
        pace.could_not_close(at(21));
        assert!(!pace.closes(at(21)) && pace.closes(at(22)));
        pace.left(0, at(23));
        assert!(!pace.closes(at(30)));
    }
}
