//! Two fresh databases for one test, on two clusters that all tests of the process share.
//!
//! The clusters start with the first fixture and are tuned for speed (no fsync). A test that stops,
//! kills or freezes a cluster must start its own and use [`Side::create`] on it. Everything here is
//! for tests: failures are panics.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use postgres::error::DbError;

use crate::cluster::Cluster;
use crate::proxy::Proxy;
use crate::side::{self, Side};

/// Dropped, it takes both databases and roles with it, whatever sessions they have.
pub struct Fixture {
    pub left: Side,
    pub right: Side,
}

impl Fixture {
    /// `label` becomes part of the names: a short plain lower-case identifier.
    pub fn new(label: &str) -> Fixture {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let create = |cluster, prefix| {
            Side::create(cluster, &format!("{prefix}_{label}_{number}"))
                .unwrap_or_else(|error| panic!("no database for \"{label}\": {error:#}"))
        };
        let (left, right) = clusters();
        Fixture {
            left: create(left, "local"),
            right: create(right, "remote"),
        }
    }

    /// On `from`, a server with a user mapping that lead to `to`.
    pub fn link(&self, from: &Side, to: &Side, server: &str, options: &[(&str, &str)]) {
        from.link(to, to.cluster.port(), server, options)
            .unwrap_or_else(|error| panic!("no server \"{server}\": {error:#}"));
    }

    /// As `link`, through a proxy, which must have been started on the port of `to`'s cluster.
    pub fn link_via(
        &self,
        proxy: &Proxy,
        from: &Side,
        to: &Side,
        server: &str,
        options: &[(&str, &str)],
    ) {
        from.link(to, proxy.port(), server, options)
            .unwrap_or_else(|error| panic!("no server \"{server}\": {error:#}"));
    }

    /// `loc_test` on the left, `rmt_test` on the right, both without triggers.
    pub fn recipe_tables(&self) {
        side::create_recipe_tables(&self.left, &self.right)
            .unwrap_or_else(|error| panic!("no tables: {error:#}"));
    }

    /// Triggers on both, so that each side is a master; each side needs a server of that name.
    pub fn recipe_triggers(&self, server: &str) {
        side::create_recipe_triggers(&self.left, &self.right, server)
            .expect("the recipe's triggers");
    }

    /// Sum of the rows' hashes and their number.
    pub fn checksum(&self, side: &Side, table: &str) -> (i64, i64) {
        side.checksum(table).unwrap_or_else(|error| {
            panic!("no checksum of \"{table}\": {}", side::describe(&error))
        })
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = self.left.drop();
        let _ = self.right.drop();
    }
}

/// The shared pair, started side by side with the first call.
pub fn clusters() -> (&'static Arc<Cluster>, &'static Arc<Cluster>) {
    static PAIR: OnceLock<[Arc<Cluster>; 2]> = OnceLock::new();
    let [left, right] = PAIR.get_or_init(|| {
        let start = |name| {
            move || {
                Arc::new(
                    Cluster::start(name).unwrap_or_else(|error| panic!("no cluster: {error:#}")),
                )
            }
        };
        let other = thread::spawn(start("right"));
        [start("left")(), other.join().expect("a shared cluster")]
    });
    (left, right)
}

/// Waits until the condition holds; panics when it still does not at the deadline.
pub fn await_until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !condition() {
        assert!(
            Instant::now() < end,
            "gave up after {deadline:?} waiting for: {what}"
        );
        sleep(Duration::from_millis(10));
    }
}

/// The server's error: SQLSTATE by `code()`, then `message()`, `detail()`, `hint()`. Panics if the
/// statement succeeded or failed in another way.
pub fn fails<T>(result: Result<T, postgres::Error>) -> DbError {
    match result {
        Ok(_) => panic!("expected an error, but it succeeded"),
        Err(error) => error
            .as_db_error()
            .cloned()
            .unwrap_or_else(|| panic!("not a server error: {error}")),
    }
}
