//! `wait_sync`: true once what was committed before the call is on the server, and not a moment earlier.

use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use rowsync_harness::flag::Flag;
use rowsync_harness::{Fixture, Proxy, await_until};

use crate::support::common::{
    deal, mirror, one_way, query, queued, refused, rows, run, superuser_with_notices, table,
    warnings,
};
use crate::support::failed::{discard, the_failed};
use crate::support::preloaded::{EAGER, WORKING, preloaded, preloaded_one_way};
use crate::support::reject_values;

const COLUMNS: &str = "id int primary key, v text";
const QUEUE: &str = r#"{"mode": "queue"}"#;

/// A session that waits, and has begun to.
fn waiter<'s>(
    scope: &'s thread::Scope<'s, '_>,
    fixture: &'s Fixture,
    args: &str,
) -> ScopedJoinHandle<'s, bool> {
    let sql = format!("select wait_sync({args})");
    let asked = sql.clone();
    let waiter = scope.spawn(move || fixture.left.query_one::<bool>(&sql));
    let waits = format!(
        "select count(*) from pg_stat_activity where query = $q${asked}$q$ and wait_event = 'Extension'"
    );
    await_until(Duration::from_secs(20), "someone to wait", || {
        waiter.is_finished() || fixture.left.query_one::<i64>(&waits) == 1
    });
    waiter
}

#[test]
fn what_the_worker_delivers_is_there_when_it_says_so() {
    let fixture = preloaded_one_way("arrive", EAGER, COLUMNS, QUEUE);
    let mut client = fixture.left.client();
    assert_eq!(
        query(&mut client, "select wait_sync(), wait_sync('dst')"),
        ["t|t"]
    );
    for n in 1..=20 {
        run(
            &mut client,
            &format!("insert into t select {n} * 1000 + i, 'x' from generate_series(1, 500) i"),
        );
        let call = if n % 2 == 0 {
            "wait_sync()"
        } else {
            "wait_sync('dst', '1 min')"
        };
        assert_eq!(query(&mut client, &format!("select {call}")), ["t"]);
        assert_eq!(
            rows(&fixture.right, "select count(*) from t"),
            [(n * 500).to_string()]
        );
    }
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn what_comes_later_is_not_waited_for() {
    let fixture = preloaded_one_way("arrivelater", EAGER, COLUMNS, QUEUE);
    let over = Flag::default();
    thread::scope(|scope| {
        let _end = over.set_at_end();
        // The queue is never seen empty.
        for writer in 0..2 {
            let fixture = &fixture;
            let over = &over;
            scope.spawn(move || {
                let mut client = fixture.left.client();
                let mut n = 0;
                while !over.is_set() {
                    n += 2;
                    let id = n + writer;
                    run(
                        &mut client,
                        &format!(
                            "insert into t select {id} * 100 + i, 'x' from generate_series(1, 50) i"
                        ),
                    );
                }
            });
        }
        let mut client = fixture.left.client();
        for n in 1..=10 {
            run(&mut client, &format!("insert into t values (-{n}, 'mine')"));
            assert_eq!(
                query(&mut client, "select wait_sync('dst', '1 min')"),
                ["t"]
            );
            let there = format!("select v from t where id = -{n}");
            assert_eq!(rows(&fixture.right, &there), ["mine"]);
        }
        over.set();
    });
}

#[test]
fn a_record_failed_later_does_not_matter_and_one_before_does() {
    let fixture = preloaded("arrivefail", EAGER);
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, QUEUE);
    reject_values::build(&fixture);
    reject_values::close(&fixture, "bad", "23514", None);
    proxy.refuse();
    fixture.left.exec("insert into t values (1, 'a')");
    thread::scope(|scope| {
        let waiter = waiter(scope, &fixture, "'dst', '2 min'");
        fixture.left.exec("insert into t values (2, 'bad')");
        assert!(!waiter.is_finished());
        proxy.accept().expect("listening again");
        assert!(waiter.join().expect("an answer"));
    });
    await_until(WORKING, "the record to be marked failed", || {
        rows(&fixture.left, "select status from sync_err_rec") == ["failed"]
    });
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    let (mut client, notices) = superuser_with_notices(&fixture.left);
    let start = Instant::now();
    assert_eq!(
        query(&mut client, "select wait_sync('dst', '1.5 s')"),
        ["f"]
    );
    let took = start.elapsed();
    assert!(
        (Duration::from_millis(1500)..Duration::from_secs(20)).contains(&took),
        "{took:?}"
    );
    let reported = warnings(&notices);
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert_eq!(reported[0].code().code(), "55000");
    assert!(reported[0].message().contains("failed"), "{reported:?}");
    // Somebody decides.
    let id = the_failed(&fixture);
    thread::scope(|scope| {
        let waiter = waiter(scope, &fixture, "'dst'");
        assert!(!waiter.is_finished());
        discard(&fixture, id);
        assert!(waiter.join().expect("an answer"));
    });
}

#[test]
fn without_a_worker_it_says_what_to_start() {
    let fixture = one_way("arrivenone", COLUMNS, QUEUE);
    fixture.left.exec("insert into t values (1, 'a')");
    let (mut client, notices) = superuser_with_notices(&fixture.left);
    assert_eq!(query(&mut client, "select wait_sync('dst', '0')"), ["f"]);
    assert_eq!(
        query(&mut client, "select wait_sync(null, '-1 day')"),
        ["f"]
    );
    assert_eq!(
        query(&mut client, "select wait_sync(timeout => '1200 ms')"),
        ["f"]
    );
    let reported = warnings(&notices);
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert!(
        reported[0]
            .hint()
            .is_some_and(|hint| hint.contains("start_sync_worker()")),
        "{reported:?}"
    );
    thread::scope(|scope| {
        let waiter = waiter(scope, &fixture, "");
        assert!(!waiter.is_finished());
        assert!(deal(&fixture, "10"));
        assert!(waiter.join().expect("an answer"));
    });
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
}

#[test]
fn a_pause_is_told_and_waited_out() {
    let fixture = one_way("arrivepause", COLUMNS, "{}");
    fixture
        .left
        .exec("select pause_sync('dst'); insert into t values (1, 'a')");
    let (mut client, notices) = superuser_with_notices(&fixture.left);
    assert_eq!(
        query(&mut client, "select wait_sync('dst', '50 ms')"),
        ["f"]
    );
    let reported = warnings(&notices);
    assert!(
        reported
            .iter()
            .any(|reported| reported.message().contains("\"dst\" is paused")),
        "{reported:?}"
    );
}

#[test]
fn another_servers_changes_are_not_waited_for() {
    let fixture = one_way("arriveother", COLUMNS, "{}");
    fixture.link(&fixture.left, &fixture.right, "also", &[]);
    fixture.right.exec(&format!("create table u ({COLUMNS})"));
    fixture.left.exec(&format!(
        "select attach_sync('t', 'also', '{}.u', '{QUEUE}')",
        fixture.right.user
    ));
    fixture.left.exec("insert into t values (1, 'a')");
    // One that waits for the other's is of the one's.
    let waits = "select wait_sync('also', '0'), wait_sync(null, '0')";
    assert_eq!(rows(&fixture.left, waits), ["f|f"]);
    assert!(deal(&fixture, "10, 'dst'"));
    assert_eq!(rows(&fixture.left, "select wait_sync('dst', '0')"), ["t"]);
    assert_eq!(rows(&fixture.left, waits), ["f|f"]);
    assert!(deal(&fixture, "10"));
    assert_eq!(rows(&fixture.left, waits), ["t|t"]);
}

#[test]
fn it_can_be_cancelled_and_refuses_what_it_cannot_answer() {
    let fixture = one_way("arrivecancel", COLUMNS, QUEUE);
    fixture.left.exec("insert into t values (1, 'a')");
    let mut client = fixture.left.superuser();
    run(&mut client, "set statement_timeout = '300ms'");
    let start = Instant::now();
    refused(&mut client, "select wait_sync('dst')", "57014");
    assert!(start.elapsed() < Duration::from_secs(20));
    run(&mut client, "set statement_timeout = 0");
    refused(&mut client, "select wait_sync('nowhere')", "42704");
    // Its records are out of the queue for it, and not on the server yet.
    run(&mut client, "begin; select deal_sync_err_rec(10)");
    let error = refused(&mut client, "select wait_sync('dst', '0')", "55000");
    assert!(error.message().contains("deal_sync_err_rec"), "{error:?}");
    run(&mut client, "rollback");
    // What was committed while the transaction was under way counts, whatever its isolation.
    run(
        &mut client,
        "begin isolation level repeatable read; select 1",
    );
    assert!(deal(&fixture, "10"));
    assert_eq!(query(&mut client, "select wait_sync('dst', '0')"), ["t"]);
    fixture.left.exec("insert into t values (2, 'b')");
    assert_eq!(query(&mut client, "select wait_sync('dst', '0')"), ["f"]);
    run(&mut client, "commit");
    // Its own changes are not committed.
    assert!(deal(&fixture, "10"));
    let own = format!("begin; insert into {}.t values (3, 'c')", fixture.left.user);
    run(&mut client, &own);
    assert_eq!(query(&mut client, "select wait_sync('dst', '0')"), ["t"]);
    run(&mut client, "commit");
    assert_eq!(query(&mut client, "select wait_sync('dst', '0')"), ["f"]);
    let mut anybody = fixture.left.client();
    assert_eq!(query(&mut anybody, "select wait_sync('dst', '0')"), ["f"]);
}
