//! When a server is tried next.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

/// The two settings.
#[derive(Clone, Copy, Debug)]
pub struct Intervals {
    pub retry: Duration,
    pub max: Duration,
}

/// One server's schedule.
#[derive(Debug)]
pub struct Schedule {
    state: State,
    /// `None` while it has nothing to do.
    due: Option<Instant>,
}

#[derive(Debug)]
enum State {
    Well,
    /// Another session drains it.
    Busy,
    /// Failed so many times in a row, last at that time; `jitter` stretches the wait.
    Failing {
        failures: u32,
        since: Instant,
        jitter: f64,
        /// New work need not wait: it may be another owner's.
        awake: bool,
    },
}

impl Schedule {
    /// A server that has something to do.
    pub fn new(now: Instant) -> Self {
        Self {
            state: State::Well,
            due: Some(now),
        }
    }

    /// A server that has failed so many times in a row before `now`, to be tried at that time.
    pub fn failing(failures: u32, due: Instant, now: Instant) -> Self {
        Self {
            state: State::Failing {
                failures,
                since: now,
                jitter: 1.0,
                awake: false,
            },
            due: Some(due),
        }
    }

    /// When it is to be tried.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        match self.state {
            State::Failing { failures, .. } => failures,
            _ => 0,
        }
    }

    /// There may be something to do. What waits for its next attempt goes on waiting.
    pub fn wake(&mut self, now: Instant) {
        if matches!(self.state, State::Well | State::Failing { awake: true, .. }) {
            self.due = Some(now);
        }
    }

    /// It was served; `more` is left.
    pub fn succeed(&mut self, more: bool, now: Instant) {
        self.state = State::Well;
        self.due = more.then_some(now);
    }

    /// What there is waits for that time; what is new does not.
    pub fn postpone(&mut self, until: Instant) {
        self.due = Some(until);
    }

    /// It failed for one owner's sake: new work, which may be another's, is looked at at once.
    pub fn keep_awake(&mut self) {
        if let State::Failing { awake, .. } = &mut self.state {
            *awake = true;
        }
    }

    /// Another session drains it.
    pub fn keep_off(&mut self, now: Instant, intervals: Intervals) {
        self.state = State::Busy;
        self.due = Some(now + intervals.retry);
    }

    /// The time of a busy one has come: it counts as well again, so that it can be woken.
    pub fn try_now(&mut self) {
        if matches!(self.state, State::Busy) {
            self.state = State::Well;
        }
        self.due = None;
    }

    /// It failed once more. Gives the time until the next attempt.
    pub fn fail(&mut self, now: Instant, intervals: Intervals) -> Duration {
        let failures = self.failures().saturating_add(1);
        self.state = State::Failing {
            failures,
            since: now,
            jitter: jitter(),
            awake: false,
        };
        self.adopt(intervals);
        self.due
            .map_or(Duration::ZERO, |due| due.saturating_duration_since(now))
    }

    /// The settings have changed.
    pub fn adopt(&mut self, intervals: Intervals) {
        if let State::Failing {
            failures,
            since,
            jitter,
            ..
        } = self.state
        {
            self.due = Some(since + backoff(failures, intervals).mul_f64(jitter));
        }
    }
}

/// Doubles with each failure, from the first interval to the longest.
fn backoff(failures: u32, intervals: Intervals) -> Duration {
    let doublings = failures.saturating_sub(1).min(30);
    intervals
        .retry
        .saturating_mul(1 << doublings)
        .min(intervals.max)
}

/// Between 0.8 and 1.2, so that servers and clusters that failed together are not tried together.
fn jitter() -> f64 {
    // The standard library's only source of randomness.
    let random = RandomState::new().build_hasher().finish();
    0.8 + 0.4 * (random as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVALS: Intervals = Intervals {
        retry: Duration::from_secs(1),
        max: Duration::from_secs(30),
    };

    #[test]
    fn attempts_become_rarer_up_to_the_longest_interval_and_never_line_up() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        for expected in [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] {
            let wait = schedule.fail(now, INTERVALS).as_secs_f64();
            assert!(
                (expected * 0.8..=expected * 1.2).contains(&wait),
                "{wait} for {expected}"
            );
        }
        let waits: Vec<Duration> = (0..4).map(|_| schedule.fail(now, INTERVALS)).collect();
        assert!(waits.windows(2).any(|pair| pair[0] != pair[1]), "{waits:?}");
        for _ in 0..100 {
            assert!(schedule.fail(now, INTERVALS) <= Duration::from_secs(36));
        }
    }

    #[test]
    fn new_work_does_not_hasten_a_server_that_failed() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        let wait = schedule.fail(now, INTERVALS);
        schedule.wake(now);
        assert_eq!(schedule.due(), Some(now + wait));
        schedule.succeed(false, now);
        assert_eq!((schedule.due(), schedule.failures()), (None, 0));
        schedule.wake(now);
        assert_eq!(schedule.due(), Some(now));
    }

    #[test]
    fn new_settings_count_at_once() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        for _ in 0..10 {
            schedule.fail(now, INTERVALS);
        }
        let short = Duration::from_millis(10);
        schedule.adopt(Intervals {
            retry: short,
            max: short,
        });
        assert!(
            schedule
                .due()
                .is_some_and(|due| due <= now + short.mul_f64(1.2))
        );
    }

    #[test]
    fn a_server_that_another_session_drains_is_left_alone_for_a_moment() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        schedule.keep_off(now, INTERVALS);
        schedule.wake(now);
        assert_eq!(schedule.due(), Some(now + INTERVALS.retry));
        assert_eq!(schedule.failures(), 0);
    }
}
