//! `wait_sync`: true once what was committed before the call is on the server, and not a moment earlier.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use rowsync_harness::{Proxy, Testbed, await_until};

use crate::common::{
    deal, mirror, one_way, query, queued, refused, rows, run, superuser_with_notices, table,
    warnings,
};
use crate::gate;
use crate::preloaded::{EAGER, WORKING, preloaded, preloaded_one_way};
use crate::set_aside::{discard, the_failed};

const COLUMNS: &str = "id int primary key, v text";
const QUEUE: &str = r#"{"mode": "queue"}"#;

/// A session that waits, and has begun to.
fn waiter<'s>(
    scope: &'s thread::Scope<'s, '_>,
    bed: &'s Testbed,
    args: &str,
) -> ScopedJoinHandle<'s, bool> {
    let sql = format!("select wait_sync({args})");
    let asked = sql.clone();
    let waiter = scope.spawn(move || bed.left.query_one::<bool>(&sql));
    let waits = format!(
        "select count(*) from pg_stat_activity where query = $q${asked}$q$ and wait_event = 'Extension'"
    );
    await_until(Duration::from_secs(20), "someone to wait", || {
        waiter.is_finished() || bed.left.query_one::<i64>(&waits) == 1
    });
    waiter
}

#[test]
fn what_the_worker_delivers_is_there_when_it_says_so() {
    let bed = preloaded_one_way("arrive", EAGER, COLUMNS, QUEUE);
    let mut client = bed.left.client();
    assert_eq!(query(&mut client, "select wait_sync(), wait_sync('dst')"), ["t|t"]);
    for n in 1..=20 {
        run(
            &mut client,
            &format!("insert into t select {n} * 1000 + i, 'x' from generate_series(1, 500) i"),
        );
        let call = if n % 2 == 0 { "wait_sync()" } else { "wait_sync('dst', '1 min')" };
        assert_eq!(query(&mut client, &format!("select {call}")), ["t"]);
        assert_eq!(rows(&bed.right, "select count(*) from t"), [(n * 500).to_string()]);
    }
    assert_eq!(queued(&bed), 0);
}

#[test]
fn what_comes_later_is_not_waited_for() {
    let bed = preloaded_one_way("arrivelater", EAGER, COLUMNS, QUEUE);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        // The queue is never seen empty.
        for writer in 0..2 {
            let (bed, over) = (&bed, &over);
            scope.spawn(move || {
                let mut client = bed.left.client();
                let mut n = 0;
                while !over.load(Ordering::Relaxed) {
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
        let mut client = bed.left.client();
        for n in 1..=10 {
            run(&mut client, &format!("insert into t values (-{n}, 'mine')"));
            assert_eq!(query(&mut client, "select wait_sync('dst', '1 min')"), ["t"]);
            let there = format!("select v from t where id = -{n}");
            assert_eq!(rows(&bed.right, &there), ["mine"]);
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_record_set_aside_later_does_not_matter_and_one_before_does() {
    let bed = preloaded("arrivefail", EAGER);
    let proxy = Proxy::start(bed.right.cluster.port()).expect("a proxy");
    bed.link_via(&proxy, &bed.left, &bed.right, "dst", &[]);
    mirror(&bed, "t", COLUMNS, QUEUE);
    gate::build(&bed);
    gate::close(&bed, "bad", "23514", None);
    proxy.refuse();
    bed.left.exec("insert into t values (1, 'a')");
    thread::scope(|scope| {
        let waiter = waiter(scope, &bed, "'dst', '2 min'");
        bed.left.exec("insert into t values (2, 'bad')");
        assert!(!waiter.is_finished());
        proxy.accept().expect("listening again");
        assert!(waiter.join().expect("an answer"));
    });
    await_until(WORKING, "the record to be set aside", || {
        rows(&bed.left, "select status from sync_err_rec") == ["failed"]
    });
    assert_eq!(table(&bed.right, "t"), ["1|a"]);
    let (mut client, notices) = superuser_with_notices(&bed.left);
    let start = Instant::now();
    assert_eq!(query(&mut client, "select wait_sync('dst', '1.5 s')"), ["f"]);
    let took = start.elapsed();
    assert!((Duration::from_millis(1500)..Duration::from_secs(20)).contains(&took), "{took:?}");
    let told = warnings(&notices);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].code().code(), "55000");
    assert!(told[0].message().contains("set aside"), "{told:?}");
    // Somebody decides.
    let id = the_failed(&bed);
    thread::scope(|scope| {
        let waiter = waiter(scope, &bed, "'dst'");
        assert!(!waiter.is_finished());
        discard(&bed, id);
        assert!(waiter.join().expect("an answer"));
    });
}

#[test]
fn without_a_worker_it_says_what_to_start() {
    let bed = one_way("arrivenone", COLUMNS, QUEUE);
    bed.left.exec("insert into t values (1, 'a')");
    let (mut client, notices) = superuser_with_notices(&bed.left);
    assert_eq!(query(&mut client, "select wait_sync('dst', '0')"), ["f"]);
    assert_eq!(query(&mut client, "select wait_sync(null, '-1 day')"), ["f"]);
    assert_eq!(query(&mut client, "select wait_sync(timeout => '1200 ms')"), ["f"]);
    let told = warnings(&notices);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].hint().is_some_and(|hint| hint.contains("start_sync_worker()")), "{told:?}");
    thread::scope(|scope| {
        let waiter = waiter(scope, &bed, "");
        assert!(!waiter.is_finished());
        assert!(deal(&bed, "10"));
        assert!(waiter.join().expect("an answer"));
    });
    assert_eq!(table(&bed.right, "t"), ["1|a"]);
}

#[test]
fn a_pause_is_told_and_waited_out() {
    let bed = one_way("arrivepause", COLUMNS, "{}");
    bed.left.exec("select pause_sync('dst'); insert into t values (1, 'a')");
    let (mut client, notices) = superuser_with_notices(&bed.left);
    assert_eq!(query(&mut client, "select wait_sync('dst', '50 ms')"), ["f"]);
    let told = warnings(&notices);
    assert!(told.iter().any(|told| told.message().contains("\"dst\" is paused")), "{told:?}");
}

#[test]
fn another_servers_changes_are_not_waited_for() {
    let bed = one_way("arriveother", COLUMNS, "{}");
    bed.link(&bed.left, &bed.right, "also", &[]);
    bed.right.exec(&format!("create table u ({COLUMNS})"));
    bed.left.exec(&format!("select attach_sync('t', 'also', '{}.u', '{QUEUE}')", bed.right.user));
    bed.left.exec("insert into t values (1, 'a')");
    // One that waits for the other's is of the one's.
    let waits = "select wait_sync('also', '0'), wait_sync(null, '0')";
    assert_eq!(rows(&bed.left, waits), ["f|f"]);
    assert!(deal(&bed, "10, 'dst'"));
    assert_eq!(rows(&bed.left, "select wait_sync('dst', '0')"), ["t"]);
    assert_eq!(rows(&bed.left, waits), ["f|f"]);
    assert!(deal(&bed, "10"));
    assert_eq!(rows(&bed.left, waits), ["t|t"]);
}

#[test]
fn it_can_be_cancelled_and_refuses_what_it_cannot_answer() {
    let bed = one_way("arrivecancel", COLUMNS, QUEUE);
    bed.left.exec("insert into t values (1, 'a')");
    let mut client = bed.left.superuser();
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
    run(&mut client, "begin isolation level repeatable read; select 1");
    assert!(deal(&bed, "10"));
    assert_eq!(query(&mut client, "select wait_sync('dst', '0')"), ["t"]);
    bed.left.exec("insert into t values (2, 'b')");
    assert_eq!(query(&mut client, "select wait_sync('dst', '0')"), ["f"]);
    run(&mut client, "commit");
    // Its own changes are not committed.
    assert!(deal(&bed, "10"));
    let own = format!("begin; insert into {}.t values (3, 'c')", bed.left.user);
    run(&mut client, &own);
    assert_eq!(query(&mut client, "select wait_sync('dst', '0')"), ["t"]);
    run(&mut client, "commit");
    assert_eq!(query(&mut client, "select wait_sync('dst', '0')"), ["f"]);
    let mut anybody = bed.left.client();
    assert_eq!(query(&mut anybody, "select wait_sync('dst', '0')"), ["f"]);
}
