//! No change overtakes an older one that waits.

use postgres::Client;
use rowsync_harness::{Fixture, Proxy};

use crate::support::common::{
    both_have, deal, mirror, one_way, outage, query, queued, recover, run, same, table,
};

const COLUMNS: &str = "id int primary key, v text";

/// A table with rows 1 to 3 on both sides, the left one's changes sent.
fn three_rows(label: &str) -> (Fixture, Client) {
    let fixture = one_way(label, COLUMNS, "{}");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t select i, 'old' from generate_series(1, 3) i",
    );
    both_have(&fixture, "t", &["1|old", "2|old", "3|old"]);
    (fixture, client)
}

#[test]
fn changes_after_recovery_wait_behind_those_of_the_outage() {
    let (fixture, mut client) = three_rows("outage");
    outage(&fixture.right);
    run(
        &mut client,
        "update t set v = 'outage' where id < 3; insert into t values (4, 'outage')",
    );
    recover(&fixture.right);
    run(
        &mut client,
        "update t set v = 'after' where id = 1; delete from t where id = 2",
    );
    run(
        &mut client,
        "update t set id = 5 where id = 4; insert into t values (4, 'new')",
    );
    assert_eq!(
        table(&fixture.right, "t"),
        ["1|old", "2|old", "3|old"],
        "something overtook"
    );
    assert_eq!(queued(&fixture), 7);
    assert!(deal(&fixture, "4"));
    assert_eq!(queued(&fixture), 3);
    run(&mut client, "update t set v = 'last' where id = 1");
    assert_eq!(queued(&fixture), 4);
    assert!(deal(&fixture, "100"));
    both_have(&fixture, "t", &["1|last", "3|old", "4|new", "5|outage"]);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn direct_delivery_resumes_once_the_queue_is_empty() {
    let (fixture, mut client) = three_rows("resume");
    outage(&fixture.right);
    run(&mut client, "update t set v = 'outage'");
    recover(&fixture.right);
    assert!(deal(&fixture, "100"));
    run(&mut client, "update t set v = 'direct' where id = 1");
    both_have(&fixture, "t", &["1|direct", "2|outage", "3|outage"]);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn a_cut_network_is_no_different_from_a_refused_login() {
    let fixture = Fixture::new("cut");
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, "{}");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'old')");
    proxy.refuse();
    proxy.cut();
    run(&mut client, "update t set v = 'cut'");
    assert_eq!(
        crate::support::common::records(&fixture),
        ["UPDATE|08001|1|pending"]
    );
    proxy.accept().expect("listening again");
    run(&mut client, "update t set v = 'after'");
    assert_eq!(table(&fixture.right, "t"), ["1|old"]);
    assert!(deal(&fixture, "100"));
    both_have(&fixture, "t", &["1|after"]);
}

#[test]
fn a_second_session_queues_behind_the_first_ones_records() {
    let (fixture, mut first) = three_rows("two");
    let mut second = fixture.left.client();
    run(&mut second, "update t set v = 'second' where id = 3");
    outage(&fixture.right);
    run(&mut first, "update t set v = 'first' where id = 1");
    recover(&fixture.right);
    // Both had a connection; the second has seen no failure of its own.
    run(&mut second, "update t set v = 'second' where id = 1");
    run(&mut first, "update t set v = 'third' where id = 1");
    assert_eq!(table(&fixture.right, "t"), ["1|old", "2|old", "3|second"]);
    assert_eq!(queued(&fixture), 3);
    assert!(deal(&fixture, "100"));
    both_have(&fixture, "t", &["1|third", "2|old", "3|second"]);
}

#[test]
fn a_transaction_that_waits_for_the_row_lock_queues_behind_its_holder() {
    let (fixture, mut first) = three_rows("lock");
    outage(&fixture.right);
    run(&mut first, "begin; update t set v = 'first' where id = 1");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            fixture
                .left
                .exec("set application_name = 'waiter'; update t set v = 'second' where id = 1")
        });
        let waits = "select count(*) from pg_stat_activity
                     where application_name = 'waiter' and wait_event_type = 'Lock'";
        rowsync_harness::await_until(
            std::time::Duration::from_secs(10),
            "the second session to wait for the row",
            || fixture.left.query_one::<i64>(waits) == 1,
        );
        run(&mut first, "commit");
        waiter.join().expect("the second session");
    });
    recover(&fixture.right);
    assert_eq!(queued(&fixture), 2);
    assert!(deal(&fixture, "1"));
    assert_eq!(table(&fixture.right, "t")[0], "1|first");
    assert!(deal(&fixture, "1"));
    both_have(&fixture, "t", &["1|second", "2|old", "3|old"]);
}

#[test]
fn an_old_snapshot_does_not_hide_the_records_of_others() {
    for level in ["repeatable read", "serializable"] {
        let (fixture, mut other) = three_rows("snapshot");
        let mut old = fixture.left.client();
        run(&mut old, &format!("begin isolation level {level}"));
        assert_eq!(query(&mut old, "select v from t where id = 2"), ["old"]);
        outage(&fixture.right);
        run(&mut other, "update t set v = 'other' where id = 1");
        recover(&fixture.right);
        assert_eq!(
            query(&mut old, "select v from t where id = 1"),
            ["old"],
            "not the snapshot"
        );
        run(&mut old, "update t set v = 'mine' where id = 2; commit");
        assert_eq!(
            table(&fixture.right, "t"),
            ["1|old", "2|old", "3|old"],
            "{level}"
        );
        assert_eq!(queued(&fixture), 2);
        assert!(deal(&fixture, "100"));
        assert_eq!(same(&fixture, "t"), ["1|other", "2|mine", "3|old"]);
    }
}
