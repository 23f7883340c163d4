//! Drains that do not hear what became of their COMMIT: whoever drains next asks the server for the transaction
//! that was noted, and applies nothing twice. Rows of a table without a key show it: each would be there twice.

use std::time::Duration;

use postgres::Client;
use rowsync_harness::fixture::{await_until, clusters};
use rowsync_harness::proxy::{Direction, Proxy};
use rowsync_harness::{Cluster, Fixture, Side, fails};

use crate::support::common::{attach, deal, mirror, queued, records, rows, run, same, table};
use crate::support::one_way::{SOON, pid};

/// Tables `l`, without a key, and `t`, on both sides, linked over a proxy, in mode queue.
fn tables(fixture: &Fixture, proxy: &Proxy) {
    fixture.link_via(proxy, &fixture.left, &fixture.right, "dst", &[]);
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table l (at int, v text)");
    }
    attach(fixture, "l", r#"{"insert_only": true, "mode": "queue"}"#);
    let columns = "id int primary key, v text unique";
    mirror(fixture, "t", columns, r#"{"mode": "queue"}"#);
    fixture
        .left
        .exec("insert into l values (0, 'warm'); insert into t values (0, 'warm')");
    assert!(deal(fixture, "100"));
}

fn proxied(label: &str) -> (Fixture, Proxy) {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = Fixture::new(label);
    tables(&fixture, &proxy);
    (fixture, proxy)
}

/// Drains in a session of its own, which ends: the COMMIT is lost on its way there, or its answer.
fn lose_drain(fixture: &Fixture, proxy: &Proxy, limit: &str, what: Direction) {
    let mut drain = fixture.left.superuser();
    run(
        &mut drain,
        &format!("begin; select deal_sync_err_rec({limit})"),
    );
    let before = queued(fixture);
    proxy.cut_after(0, what);
    assert_eq!(fails(drain.batch_execute("commit")).code().code(), "08007");
    assert_eq!(queued(fixture), before, "nothing is removed here");
}

fn both_equal(fixture: &Fixture) {
    assert!(deal(fixture, "1000"), "{:?}", records(fixture));
    assert_eq!(queued(fixture), 0, "{:?}", records(fixture));
    same(fixture, "l");
    same(fixture, "t");
}

#[test]
fn another_session_learns_what_a_lost_drain_has_applied() {
    let (fixture, proxy) = proxied("lostdrain");
    for what in [Direction::ToClient, Direction::ToServer] {
        fixture.left.exec("insert into l values (1, 'a'), (1, 'a')");
        lose_drain(&fixture, &proxy, "1000", what);
        fixture.left.exec("insert into l values (2, 'later')");
        both_equal(&fixture);
    }
}

#[test]
fn a_part_of_the_queue_that_was_applied_is_not_applied_again() {
    let (fixture, proxy) = proxied("lostpart");
    for what in [Direction::ToClient, Direction::ToServer] {
        fixture
            .left
            .exec("insert into l select i, 'x' from generate_series(1, 9) i");
        lose_drain(&fixture, &proxy, "4", what);
        both_equal(&fixture);
    }
}

/// What a drain has learnt of the one before it goes back into the queue when it is lost itself.
#[test]
fn two_drains_that_are_lost_one_after_the_other_leave_nothing_behind() {
    let (fixture, proxy) = proxied("losttwice");
    for (first, second) in [
        (Direction::ToClient, Direction::ToClient),
        (Direction::ToClient, Direction::ToServer),
        (Direction::ToServer, Direction::ToClient),
        (Direction::ToServer, Direction::ToServer),
    ] {
        fixture.left.exec(
            "insert into l values (1, 'a'); insert into t values (1, 'one'), (2, 'two');
             update t set v = 'three' where id = 2",
        );
        lose_drain(&fixture, &proxy, "3", first);
        // Applied again after that, the updates would bring the rows back.
        fixture
            .left
            .exec("delete from t where id > 0; insert into t values (5, 'one')");
        lose_drain(&fixture, &proxy, "1000", second);
        both_equal(&fixture);
        fixture.left.exec("delete from t where id = 5");
        both_equal(&fixture);
    }
}

#[test]
fn what_was_set_aside_by_a_lost_drain_is_not_taken_for_applied() {
    let (fixture, proxy) = proxied("lostfailed");
    fixture
        .right
        .exec("alter table l add constraint small check (at < 100)");
    fixture
        .left
        .exec("insert into l values (1, 'a'), (100, 'bad'), (2, 'b'), (101, 'bad')");
    lose_drain(&fixture, &proxy, "1000", Direction::ToClient);
    assert!(!deal(&fixture, "1000"));
    assert_eq!(table(&fixture.right, "l"), ["0|warm", "1|a", "2|b"]);
    assert_eq!(
        records(&fixture),
        ["INSERT|23514|1|failed", "INSERT|23514|1|failed"]
    );
    fixture.right.exec("alter table l drop constraint small");
    // One that was tried again, and is there now, is not tried a third time.
    lose_drain(&fixture, &proxy, "1000", Direction::ToClient);
    both_equal(&fixture);
}

#[test]
fn several_calls_in_one_transaction_are_lost_together() {
    let (fixture, proxy) = proxied("lostcalls");
    for what in [Direction::ToClient, Direction::ToServer] {
        fixture
            .left
            .exec("insert into l select i, 'x' from generate_series(1, 9) i");
        let mut drain = fixture.left.superuser();
        run(
            &mut drain,
            "begin; select deal_sync_err_rec(2); select deal_sync_err_rec(3)",
        );
        proxy.cut_after(0, what);
        fails(drain.batch_execute("commit"));
        both_equal(&fixture);
    }
}

#[test]
fn a_drain_that_is_rolled_back_leaves_nothing_there() {
    let (fixture, _proxy) = proxied("lostrollback");
    fixture.left.exec("insert into l values (1, 'a')");
    let mut drain = fixture.left.superuser();
    run(
        &mut drain,
        "begin; select deal_sync_err_rec(1000); rollback",
    );
    run(
        &mut drain,
        "begin; savepoint s; select deal_sync_err_rec(1000); rollback to s; commit",
    );
    drop(drain);
    both_equal(&fixture);
}

/// A cluster of its own on the left, which crashes after the server has committed.
#[test]
fn a_crash_between_the_two_commits_is_survived() {
    let left = std::sync::Arc::new(Cluster::start("lostcrash").expect("a cluster"));
    let fixture = Fixture {
        left: Side::create(&left, "lostcrash_left").expect("a side"),
        right: Side::create(clusters().1, "lostcrash_right").expect("a side"),
    };
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    tables(&fixture, &proxy);
    fixture.left.exec("insert into l values (1, 'a'), (1, 'a')");
    let mut drain = fixture.left.superuser();
    run(&mut drain, "begin; select deal_sync_err_rec(1000)");
    let own = pid(&mut drain);
    // The answer is on its way for longer than the session lives.
    proxy.set_delay(SOON / 4);
    let waiting = std::thread::spawn(move || drop(drain.batch_execute("commit")));
    await_until(SOON, "the remote commit", || {
        table(&fixture.right, "l").len() == 3
    });
    left.crash_backend(own).expect("a crash and recovery");
    waiting.join().expect("the session that drains");
    proxy.cut();
    proxy.set_delay(Duration::ZERO);
    fixture.left.exec("insert into l values (2, 'later')");
    both_equal(&fixture);
    left.restart().expect("a restart");
    assert_eq!(
        rows(&fixture.left, "select count(*) from sync_queue"),
        ["0"]
    );
}

/// A server that was started since may be another that has taken its place: its transactions say nothing.
#[test]
fn a_server_that_was_started_again_is_not_asked() {
    let right = std::sync::Arc::new(Cluster::start("lostrestart").expect("a cluster"));
    let fixture = Fixture {
        left: Side::create(clusters().0, "lostrestart_left").expect("a side"),
        right: Side::create(&right, "lostrestart_right").expect("a side"),
    };
    let proxy = Proxy::start(right.port()).expect("a proxy");
    tables(&fixture, &proxy);
    fixture.left.exec(
        "insert into l values (1, 'a'); insert into t values (1, 'a'); delete from t where id = 1",
    );
    lose_drain(&fixture, &proxy, "1000", Direction::ToClient);
    right.restart().expect("a restart");
    assert!(!deal(&fixture, "1000"));
    // Rows with a key tell what is there; the others are left to a person.
    assert_eq!(records(&fixture), ["INSERT|40003|1|failed"]);
    same(&fixture, "t");
    same(&fixture, "l");
}

/// Statements of the user's own that a note must not disturb.
#[test]
fn the_note_is_no_trace_in_the_session() {
    let (fixture, _proxy) = proxied("lostquiet");
    let mut client: Client = fixture.left.superuser();
    run(
        &mut client,
        "create sequence own; select nextval('own'); delete from sync_drain",
    );
    let schema = &fixture.left.user;
    run(
        &mut client,
        &format!("insert into {schema}.l values (1, 'a')"),
    );
    run(&mut client, "select deal_sync_err_rec(1000)");
    let last: i64 = client
        .query_one("select lastval()", &[])
        .expect("a value")
        .get(0);
    assert_eq!(last, 1);
    assert_eq!(
        rows(
            &fixture.left,
            "select count(*), sum(length(note)) from sync_drain"
        ),
        ["1|7000"]
    );
}
