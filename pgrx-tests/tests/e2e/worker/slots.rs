//! More databases than slots for workers: idle workers make room.

use std::sync::Arc;
use std::time::Duration;

use rowsync_harness::cluster::{Cluster, TEST_SETTINGS};
use rowsync_harness::fixture::{await_until, clusters};
use rowsync_harness::{Fixture, Side};

use crate::support::common::{attach, closed_port, query, same};
use crate::support::one_way::SOON;

const FEW: [(&str, &str); 4] = [
    ("shared_preload_libraries", "pg_rowsync"),
    // The launcher, that of logical replication, and two workers.
    ("max_worker_processes", "4"),
    ("pg_rowsync.retry_interval", "200ms"),
    ("pg_rowsync.max_retry_interval", "1s"),
];

/// Databases of one cluster, each of which queues for a target of its own.
fn many(label: &str, number: usize) -> Vec<Fixture> {
    let cluster = Cluster::start_with(label, &[TEST_SETTINGS, &FEW].concat()).expect("a cluster");
    let cluster = Arc::new(cluster);
    (0..number)
        .map(|at| {
            let create = |cluster, side| {
                Side::create(cluster, &format!("{side}_{label}_{at}")).expect("a database")
            };
            let fixture = Fixture {
                left: create(&cluster, "local"),
                right: create(clusters().1, "remote"),
            };
            fixture.link(&fixture.left, &fixture.right, "dst", &[]);
            for side in [&fixture.left, &fixture.right] {
                side.exec("create table t (id int primary key)");
            }
            attach(&fixture, "t", r#"{"mode": "queue"}"#);
            fixture
        })
        .collect()
}

fn workers(fixture: &Fixture) -> i64 {
    fixture
        .left
        .query_one("select count(*) from pg_stat_activity where backend_type = 'pg_rowsync worker'")
}

#[test]
fn every_database_is_served_whoever_was_first() {
    let fixtures = many("slots", 5);
    for round in 0..3 {
        for fixture in &fixtures {
            fixture
                .left
                .exec(&format!("insert into t values ({round})"));
        }
        for fixture in &fixtures {
            await_until(SOON, "a database to be served", || {
                fixture.left.queued().expect("a queue") == 0
            });
            assert_eq!(same(fixture, "t").len(), round + 1);
        }
        assert!(workers(&fixtures[0]) <= 2);
    }
}

#[test]
fn databases_whose_target_is_away_leave_their_slots_to_others() {
    let fixtures = many("away", 4);
    let port = closed_port();
    for fixture in &fixtures[..3] {
        fixture
            .left
            .exec(&format!("alter server dst options (set port '{port}')"));
        fixture.left.exec("insert into t values (1)");
    }
    for id in 1..=3 {
        fixtures[3]
            .left
            .exec(&format!("insert into t values ({id})"));
        await_until(SOON, "the last one to be served", || {
            fixtures[3].left.queued().expect("a queue") == 0
        });
    }
    assert_eq!(same(&fixtures[3], "t").len(), 3);
    // They are served once their targets are back.
    for fixture in &fixtures[..3] {
        let port = fixture.right.cluster.port();
        fixture
            .left
            .exec(&format!("alter server dst options (set port '{port}')"));
    }
    for fixture in &fixtures[..3] {
        await_until(SOON, "a database to be served", || {
            fixture.left.queued().expect("a queue") == 0
        });
        assert_eq!(same(fixture, "t").len(), 1);
    }
}

#[test]
fn a_prepared_transaction_keeps_no_slot() {
    let fixtures = many("prepared", 4);
    for fixture in &fixtures[..2] {
        let t = "begin; insert into t values (1); prepare transaction";
        fixture.left.exec(&format!("{t} 'own_{}'", fixture.left.db));
        // The worker has seen it.
        fixture.left.exec("insert into t values (0)");
        await_until(SOON, "a database to be served", || {
            fixture.left.queued().expect("a queue") == 0
        });
    }
    for fixture in &fixtures[2..] {
        fixture.left.exec("insert into t values (1)");
        await_until(SOON, "the others to be served", || {
            fixture.left.queued().expect("a queue") == 0
        });
    }
    // Which wakes nobody.
    for fixture in &fixtures[..2] {
        fixture
            .left
            .exec(&format!("commit prepared 'own_{}'", fixture.left.db));
    }
    for fixture in &fixtures[..2] {
        await_until(SOON, "what was prepared to be delivered", || {
            fixture.left.queued().expect("a queue") == 0
        });
        assert_eq!(same(fixture, "t"), ["0", "1"]);
    }
}

#[test]
fn a_subscription_gets_the_slot_of_an_idle_worker() {
    let settings = [TEST_SETTINGS, &[("wal_level", "logical")]].concat();
    let publisher = Arc::new(Cluster::start_with("slotpub", &settings).expect("a cluster"));
    let publisher = Side::create(&publisher, "published").expect("a database");
    publisher.exec("create table n (id int primary key)");
    publisher.exec_superuser("create publication p for all tables");
    // Its two workers have nothing to do.
    let fixtures = many("subscribed", 2);
    for fixture in &fixtures {
        fixture.left.exec("insert into t values (1)");
        await_until(SOON, "a database to be served", || {
            fixture.left.queued().expect("a queue") == 0
        });
    }
    assert_eq!(workers(&fixtures[0]), 2);
    let subscriber = &fixtures[0].left;
    let schema = &publisher.user;
    subscriber.exec_superuser(&format!(
        "create schema {schema}; create table {schema}.n (id int primary key)"
    ));
    subscriber.exec_superuser(&format!(
        "create subscription s connection 'host=127.0.0.1 port={} dbname={} user=postgres password={}'
           publication p with (copy_data = false)",
        publisher.cluster.port(),
        publisher.db,
        publisher.cluster.superuser_password()
    ));
    publisher.exec("insert into n values (1)");
    let mut client = subscriber.superuser();
    await_until(SOON, "the subscription to have a worker", || {
        query(&mut client, &format!("select count(*) from {schema}.n")) == ["1"]
    });
    // And ours comes back when there is something for it.
    fixtures[1].left.exec("insert into t values (2)");
    await_until(SOON, "a database to be served", || {
        fixtures[1].left.queued().expect("a queue") == 0
    });
    subscriber.exec_superuser("drop subscription s");
}

#[test]
fn the_status_says_whether_there_is_a_worker() {
    let cluster = Arc::new(
        Cluster::start_with(
            "noslot",
            &[
                TEST_SETTINGS,
                &[
                    ("shared_preload_libraries", "pg_rowsync"),
                    ("max_worker_processes", "2"),
                ],
            ]
            .concat(),
        )
        .expect("a cluster"),
    );
    let create = |cluster, name| Side::create(cluster, name).expect("a database");
    let fixture = Fixture {
        left: create(&cluster, "local_noslot"),
        right: create(clusters().1, "remote_noslot"),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table t (id int primary key)");
    }
    attach(&fixture, "t", r#"{"mode": "queue"}"#);
    fixture.left.exec("insert into t values (1)");
    let worker = || {
        fixture
            .left
            .query_one::<String>("select worker from sync_status")
    };
    await_until(SOON, "the status to say that there is no slot", || {
        worker() == "no slot"
    });
    await_until(Duration::from_secs(5), "the log to say so", || {
        cluster.log().contains("max_worker_processes is too low")
    });
    assert_eq!(
        fixture
            .left
            .query_one::<i64>("select pending from sync_status"),
        1
    );
    fixture.left.exec_superuser("select stop_sync_worker()");
    assert_eq!(worker(), "stopped");
    fixture.left.exec_superuser("select deal_sync_err_rec(10)");
    assert_eq!(same(&fixture, "t").len(), 1);
}
