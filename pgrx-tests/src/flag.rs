//! A flag by which threads are told to end. It is set at the latest when whoever is to set it is over: a
//! test that fails must not wait for threads that wait for it, nor leave them at work.

use std::sync::atomic::{AtomicBool, Ordering};

/// See the module's head.
#[derive(Debug, Default)]
pub struct Flag(AtomicBool);

/// Sets its flag when it is dropped, by a panic too.
#[must_use = "the flag is set as soon as this is dropped"]
pub struct SetAtEnd<'f>(&'f Flag);

impl Flag {
    /// Sets the flag.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets it at the end of the caller's block.
    pub fn set_at_end(&self) -> SetAtEnd<'_> {
        SetAtEnd(self)
    }
}

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.set();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_failure_ends_the_threads_that_wait_for_it() {
        let over = Flag::default();
        let ended = Flag::default();
        let failed = std::panic::catch_unwind(|| {
            thread::scope(|scope| {
                let _end = over.set_at_end();
                scope.spawn(|| {
                    while !over.is_set() {
                        thread::yield_now();
                    }
                    ended.set();
                });
                panic!("as an assertion does");
            })
        });
        assert!(failed.is_err() && ended.is_set());
    }
}
