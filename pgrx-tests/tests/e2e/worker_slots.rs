//! More databases than slots for workers: idle workers make room.

use std::sync::Arc;
use std::time::Duration;

use rowsync_harness::cluster::{Cluster, TEST_SETTINGS};
use rowsync_harness::testbed::{await_until, clusters};
use rowsync_harness::{Side, Testbed};

use crate::common::{attach, closed_port, same};
use crate::one_way::SOON;

const FEW: [(&str, &str); 4] = [
    ("shared_preload_libraries", "pg_rowsync"),
    // The launcher, that of logical replication, and two workers.
    ("max_worker_processes", "4"),
    ("pg_rowsync.retry_interval", "200ms"),
    ("pg_rowsync.max_retry_interval", "1s"),
];

/// Databases of one cluster, each of which queues for a target of its own.
fn many(label: &str, number: usize) -> Vec<Testbed> {
    let cluster = Cluster::start_with(label, &[TEST_SETTINGS, &FEW].concat()).expect("a cluster");
    let cluster = Arc::new(cluster);
    (0..number)
        .map(|at| {
            let create = |cluster, side| {
                Side::create(cluster, &format!("{side}_{label}_{at}")).expect("a database")
            };
            let bed =
                Testbed { left: create(&cluster, "local"), right: create(clusters().1, "remote") };
            bed.link(&bed.left, &bed.right, "dst", &[]);
            for side in [&bed.left, &bed.right] {
                side.exec("create table t (id int primary key)");
            }
            attach(&bed, "t", r#"{"mode": "queue"}"#);
            bed
        })
        .collect()
}

fn workers(bed: &Testbed) -> i64 {
    bed.left
        .query_one("select count(*) from pg_stat_activity where backend_type = 'pg_rowsync worker'")
}

#[test]
fn every_database_is_served_whoever_was_first() {
    let beds = many("slots", 5);
    for round in 0..3 {
        for bed in &beds {
            bed.left.exec(&format!("insert into t values ({round})"));
        }
        for bed in &beds {
            await_until(SOON, "a database to be served", || {
                bed.left.queued().expect("a queue") == 0
            });
            assert_eq!(same(bed, "t").len(), round + 1);
        }
        assert!(workers(&beds[0]) <= 2);
    }
}

#[test]
fn databases_whose_target_is_away_leave_their_slots_to_others() {
    let beds = many("away", 4);
    let port = closed_port();
    for bed in &beds[..3] {
        bed.left.exec(&format!("alter server dst options (set port '{port}')"));
        bed.left.exec("insert into t values (1)");
    }
    for id in 1..=3 {
        beds[3].left.exec(&format!("insert into t values ({id})"));
        await_until(SOON, "the last one to be served", || {
            beds[3].left.queued().expect("a queue") == 0
        });
    }
    assert_eq!(same(&beds[3], "t").len(), 3);
    // They are served once their targets are back.
    for bed in &beds[..3] {
        let port = bed.right.cluster.port();
        bed.left.exec(&format!("alter server dst options (set port '{port}')"));
    }
    for bed in &beds[..3] {
        await_until(SOON, "a database to be served", || bed.left.queued().expect("a queue") == 0);
        assert_eq!(same(bed, "t").len(), 1);
    }
}

#[test]
fn the_status_says_whether_there_is_a_worker() {
    let cluster = Arc::new(
        Cluster::start_with(
            "noslot",
            &[
                TEST_SETTINGS,
                &[("shared_preload_libraries", "pg_rowsync"), ("max_worker_processes", "2")],
            ]
            .concat(),
        )
        .expect("a cluster"),
    );
    let create = |cluster, name| Side::create(cluster, name).expect("a database");
    let bed = Testbed {
        left: create(&cluster, "local_noslot"),
        right: create(clusters().1, "remote_noslot"),
    };
    bed.link(&bed.left, &bed.right, "dst", &[]);
    for side in [&bed.left, &bed.right] {
        side.exec("create table t (id int primary key)");
    }
    attach(&bed, "t", r#"{"mode": "queue"}"#);
    bed.left.exec("insert into t values (1)");
    let worker = || bed.left.query_one::<String>("select worker from sync_status");
    await_until(SOON, "the status to say that there is no slot", || worker() == "no slot");
    await_until(Duration::from_secs(5), "the log to say so", || {
        cluster.log().contains("max_worker_processes is too low")
    });
    assert_eq!(bed.left.query_one::<i64>("select pending from sync_status"), 1);
    bed.left.exec_superuser("select stop_sync_worker()");
    assert_eq!(worker(), "stopped");
    bed.left.exec_superuser("select deal_sync_err_rec(10)");
    assert_eq!(same(&bed, "t").len(), 1);
}
