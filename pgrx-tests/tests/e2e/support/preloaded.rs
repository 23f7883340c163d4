//! A fixture whose left cluster is its own and preloads the library, so that a worker delivers what
//! its database queues.

use std::sync::Arc;
use std::time::Duration;

use rowsync_harness::cluster::{Cluster, TEST_SETTINGS};
use rowsync_harness::fixture::clusters;
use rowsync_harness::{Fixture, Side, await_until};

use crate::support::common::mirror;

/// How long the worker may take to deliver what a test has queued.
pub const WORKING: Duration = Duration::from_secs(60);

/// The worker that serves this database, where there is one: its process ID.
pub const WORKER: &str = "select coalesce((select pid from pg_stat_activity
                        where backend_type = 'pg_rowsync worker' and datname = current_database()), 0)";

/// Settings that let a test wait for a retry: they come often and at an even pace.
pub const EAGER: &[(&str, &str)] = &[
    ("pg_rowsync.retry_interval", "100ms"),
    ("pg_rowsync.max_retry_interval", "300ms"),
];

/// Two databases without a server; the right one is on the shared cluster.
pub fn preloaded(label: &str, settings: &[(&str, &str)]) -> Fixture {
    let settings = [
        TEST_SETTINGS,
        &[("shared_preload_libraries", "pg_rowsync")],
        settings,
    ]
    .concat();
    let own = Arc::new(Cluster::start_with(label, &settings).expect("a cluster that preloads"));
    let create = |cluster, name: String| Side::create(cluster, &name).expect("a database");
    Fixture {
        left: create(&own, format!("local_{label}")),
        right: create(clusters().1, format!("remote_{label}")),
    }
}

/// As `preloaded`, with a table `t` on both sides and changes of the left one sent to `dst`.
pub fn preloaded_one_way(
    label: &str,
    settings: &[(&str, &str)],
    columns: &str,
    options: &str,
) -> Fixture {
    let fixture = preloaded(label, settings);
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", columns, options);
    fixture
}

/// The process ID of the worker of the left database, once there is one.
pub fn worker(fixture: &Fixture) -> i32 {
    let mut pid = 0;
    await_until(Duration::from_secs(20), "a worker", || {
        pid = fixture.left.query_one(WORKER);
        pid != 0
    });
    pid
}

/// Waits until the worker has left only failed records or wait behind them.
pub fn await_drained(fixture: &Fixture) {
    await_until(WORKING, "the worker to deliver what is pending", || {
        fixture
            .left
            .query_one::<i64>("select count(*) from sync_err_rec where status = 'pending'")
            == 0
    });
}
