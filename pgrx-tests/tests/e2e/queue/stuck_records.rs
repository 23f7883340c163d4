//! A change that a server refuses whenever it is tried, for a reason that may pass by itself: the others do not
//! wait for it, and it arrives by itself once the reason has gone, before what depends on it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rowsync_harness::cluster::TEST_SETTINGS;
use rowsync_harness::fixture::clusters;
use rowsync_harness::{Cluster, Fixture, Side, await_until};

use crate::support::common::{queued, rows, run, table};
use crate::support::reject_values;

/// The worker tries a few times before it takes the record for the one to blame.
const MAX_WAIT: Duration = Duration::from_secs(40);
/// The cluster of the fixture tries again within a second.
const SETTINGS: &[(&str, &str)] = &[
    ("shared_preload_libraries", "pg_rowsync"),
    ("pg_rowsync.retry_interval", "100ms"),
    ("pg_rowsync.max_retry_interval", "1s"),
];

/// Tables `t`, with a gate before its target, and `u` on both sides; a worker drains.
fn fixture(label: &str) -> Fixture {
    static CLUSTER: OnceLock<Arc<Cluster>> = OnceLock::new();
    let left = CLUSTER.get_or_init(|| {
        let settings = [TEST_SETTINGS, SETTINGS].concat();
        Arc::new(Cluster::start_with("stuck", &settings).expect("a cluster"))
    });
    let right = clusters().1;
    let create = |cluster, prefix| {
        Side::create(cluster, &format!("{prefix}_{label}_stuck")).expect("a database")
    };
    let fixture = Fixture {
        left: create(left, "local"),
        right: create(right, "remote"),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    for name in ["t", "u"] {
        for side in [&fixture.left, &fixture.right] {
            side.exec(&format!("create table {name} (id int primary key, v text)"));
        }
        let target = format!("{}.{name}", fixture.right.user);
        fixture
            .left
            .exec(&format!("select attach_sync('{name}', 'dst', '{target}')"));
    }
    reject_values::build(&fixture);
    fixture
}

const STATUS: &str = "select failed, waiting, pending from sync_status";

/// One row is refused with this state for as long as the gate is closed.
fn others_flow(label: &str, state: &str) {
    let fixture = fixture(label);
    reject_values::close(&fixture, "stuck", state, None);
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t values (1, 'a'), (2, 'stuck'), (3, 'c')",
    );
    run(
        &mut client,
        "insert into u select n, 'x' from generate_series(1, 5) n",
    );
    run(&mut client, "update t set v = 'later' where id = 2");
    await_until(MAX_WAIT, "the other rows and tables", || {
        table(&fixture.right, "u").len() == 5 && table(&fixture.right, "t") == ["1|a", "3|c"]
    });
    await_until(
        MAX_WAIT,
        "the record to be blamed and what depends on it to wait",
        || rows(&fixture.left, STATUS) == ["1|1|0"],
    );
    let blamed = "select table_name, sqlstate from sync_err_rec where status = 'failed'";
    assert_eq!(rows(&fixture.left, blamed), [format!("t|{state}")]);
    // Directly, while it goes on being tried.
    for id in 11..=30 {
        run(
            &mut client,
            &format!("insert into u values ({id}, 'direct')"),
        );
        assert_eq!(
            table(&fixture.right, "u").len(),
            id as usize - 5,
            "not direct"
        );
    }
    assert_eq!(reject_values::passed(&fixture), ["1:a", "3:c"]);
    reject_values::open(&fixture, "stuck");
    await_until(MAX_WAIT, "the record to arrive by itself", || {
        queued(&fixture) == 0
    });
    assert_eq!(reject_values::passed(&fixture), ["2:stuck", "2:later"]);
    assert_eq!(table(&fixture.left, "t"), table(&fixture.right, "t"));
}

#[test]
fn a_record_that_always_meets_a_deadlock_stops_no_other() {
    others_flow("deadlock", "40P01");
}

#[test]
fn a_record_that_always_finds_a_lock_stops_no_other() {
    others_flow("lock", "55P03");
}

#[test]
fn a_record_that_is_always_canceled_stops_no_other() {
    others_flow("canceled", "57014");
}

#[test]
fn a_record_for_which_there_is_never_memory_stops_no_other() {
    others_flow("memory", "53200");
}

#[test]
fn a_record_whose_trigger_never_reaches_a_third_server_stops_no_other() {
    others_flow("third", "08006");
}

#[test]
fn a_record_that_a_trigger_calls_read_only_stops_no_other() {
    others_flow("readonly", "25006");
}
