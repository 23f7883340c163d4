//! Targets that are a standby for a while, or crash after they have answered.

use std::sync::Arc;

use rowsync_harness::cluster::Shutdown;
use rowsync_harness::fixture::{Fixture, await_until, clusters};
use rowsync_harness::proxy::{Direction, Proxy};
use rowsync_harness::{Cluster, IGNORE_OPTIONS, PoolMode, Pooler, Side};

use crate::support::common::{both_have, deal, link_with, mirror, queued, rows, run};
use crate::support::one_way::SOON;

/// The right side is in a cluster of its own.
fn with_own_right(label: &str) -> Fixture {
    let own = Arc::new(Cluster::start(label).expect("a cluster"));
    let create = |cluster, name: String| Side::create(cluster, &name).expect("a database");
    Fixture {
        left: create(clusters().0, format!("local_{label}")),
        right: create(&own, format!("remote_{label}")),
    }
}

/// The right cluster becomes a standby; what is written meanwhile waits, and nothing is blamed; after the
/// promotion all of it drains.
fn waits_for_the_promotion(fixture: &Fixture) {
    for table in ["t", "u"] {
        mirror(fixture, table, "id int primary key, v text", "{}");
    }
    let own = &fixture.right.cluster;
    own.stop(Shutdown::Fast).expect("a stop");
    std::fs::write(own.dir().join("data").join("standby.signal"), "").expect("a file");
    own.start_again().expect("a standby");
    let mut client = fixture.left.client();
    for id in 1..=3 {
        run(&mut client, &format!("insert into t values ({id}, 'x')"));
        run(&mut client, &format!("insert into u values ({id}, 'x')"));
    }
    let status = "select pending, failed, waiting, last_sqlstate from sync_status";
    await_until(SOON, "the standby's word", || {
        assert!(!deal(fixture, "1000"));
        rows(&fixture.left, status) == ["6|0|0|25006"]
    });
    fixture.right.exec_superuser("select pg_promote()");
    await_until(SOON, "the queue to drain", || {
        deal(fixture, "1000") && queued(fixture) == 0
    });
    run(&mut client, "insert into t values (4, 'after')");
    both_have(fixture, "t", &["1|x", "2|x", "3|x", "4|after"]);
    both_have(fixture, "u", &["1|x", "2|x", "3|x"]);
}

#[test]
fn what_a_standby_refuses_waits_for_its_promotion() {
    let fixture = with_own_right("wasstandby");
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    waits_for_the_promotion(&fixture);
}

#[test]
fn what_a_standby_behind_a_pooler_refuses_waits_for_its_promotion() {
    let fixture = with_own_right("pooledstandby");
    let pooler = Pooler::start(&[&fixture.right], PoolMode::Transaction, &[IGNORE_OPTIONS]);
    let pooler = pooler.expect("a pooler");
    link_with(&fixture, "dst", pooler.port(), &fixture.right.password);
    waits_for_the_promotion(&fixture);
}

/// What was answered is there after a crash of the right cluster, whose database does not flush before it
/// answers.
fn outlasts_a_crash(fixture: &Fixture) {
    mirror(
        fixture,
        "t",
        "id int primary key, v text",
        r#"{"mode": "sync"}"#,
    );
    mirror(
        fixture,
        "q",
        "id int primary key, v text",
        r#"{"mode": "queue"}"#,
    );
    mirror(fixture, "a", "id int primary key, v text", "{}");
    let mut client = fixture.left.client();
    for id in 1..=5 {
        run(
            &mut client,
            &format!("insert into a values ({id}, 'x'); update a set v = 'y'"),
        );
        run(&mut client, &format!("insert into q values ({id}, 'x')"));
        assert!(deal(fixture, "10"));
        run(&mut client, &format!("insert into t values ({id}, 'x')"));
    }
    assert_eq!(queued(fixture), 0);
    let own = &fixture.right.cluster;
    own.kill().expect("a crash");
    own.start_again().expect("a recovery");
    both_have(fixture, "t", &["1|x", "2|x", "3|x", "4|x", "5|x"]);
    both_have(fixture, "q", &["1|x", "2|x", "3|x", "4|x", "5|x"]);
    both_have(fixture, "a", &["1|y", "2|y", "3|y", "4|y", "5|y"]);
}

/// Its database and role do not want to wait for a flush.
fn lazy(label: &str) -> Fixture {
    let fixture = with_own_right(label);
    let db = &fixture.right.db;
    let user = &fixture.right.user;
    fixture.right.exec_superuser(&format!(
        "alter database {db} set synchronous_commit = off;
         alter role {user} set synchronous_commit = off"
    ));
    fixture
        .right
        .exec_superuser("alter system set wal_writer_delay = '10s'");
    fixture.right.cluster.restart().expect("a restart");
    fixture
}

#[test]
fn what_was_answered_outlasts_a_crash_there_whatever_the_database_says() {
    let fixture = lazy("lazy");
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    outlasts_a_crash(&fixture);
}

#[test]
fn what_was_answered_through_a_pooler_outlasts_a_crash_too() {
    let fixture = lazy("pooledlazy");
    let pooler = Pooler::start(&[&fixture.right], PoolMode::Transaction, &[IGNORE_OPTIONS]);
    let pooler = pooler.expect("a pooler");
    link_with(&fixture, "dst", pooler.port(), &fixture.right.password);
    outlasts_a_crash(&fixture);
}

/// A session whose outcome is unknown is none of a standby's: it says nothing of what its primary runs.
#[test]
fn a_standby_does_not_tell_that_a_lost_session_is_gone() {
    let fixture = with_own_right("loststandby");
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", "id int primary key, v text", "{}");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    proxy.cut_after(0, Direction::ToClient);
    run(&mut client, "insert into t values (2, 'b')");
    drop(client);
    let lost = || rows(&fixture.left, "select count(*) from sync_lost_session");
    assert_eq!(lost(), ["1"]);
    let own = &fixture.right.cluster;
    own.stop(Shutdown::Fast).expect("a stop");
    std::fs::write(own.dir().join("data").join("standby.signal"), "").expect("a file");
    own.start_again().expect("a standby");
    proxy.cut_after(u64::MAX, Direction::ToClient);
    assert!(!deal(&fixture, "1000"));
    let state = "select last_sqlstate from sync_status";
    assert_eq!(
        (lost(), rows(&fixture.left, state)),
        (vec!["1".to_owned()], vec!["25006".to_owned()])
    );
    fixture.right.exec_superuser("select pg_promote()");
    await_until(SOON, "the queue to drain", || {
        deal(&fixture, "1000") && queued(&fixture) == 0
    });
    assert_eq!(lost(), ["0"]);
    both_have(&fixture, "t", &["1|a", "2|b"]);
}
