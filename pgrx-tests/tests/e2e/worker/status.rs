//! `sync_status`, and the NOTIFY when a server can no longer be reached and when it can again.

use std::time::Duration;

use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;
use rowsync_harness::{Fixture, Proxy, await_until};

use crate::support::common::{
    closed_port, deal, link_with, linked, mirror, one_way, query, rows, run, same,
};
use crate::support::failed::{retry, the_failed};
use crate::support::preloaded::{EAGER, WORKING, preloaded};
use crate::support::reject_values;

const COLUMNS: &str = "id int primary key, v text";
const QUEUE: &str = r#"{"mode": "queue"}"#;

#[test]
fn the_status_has_the_columns_of_the_contract() {
    let fixture = linked("statuscols");
    let columns = "select string_agg(attname, ', ' order by attnum) from pg_attribute
                    where attrelid = 'sync_status'::regclass and attnum > 0";
    let expected = "server, pending, failed, waiting, oldest, last_error, last_sqlstate, \
         last_attempt_at, last_success_at, next_attempt_at, consecutive_failures, blocked, \
         lost_sessions, connected, delivered_transactions, delivered_changes, queued, conflicts, guarded, looped, \
         home, worker, paused_since, may_be_ahead_since, prepared, resolved";
    assert_eq!(rows(&fixture.left, columns), [expected]);
}

#[test]
fn pending_failed_and_waiting_are_counted_apart() {
    let fixture = one_way("apart", COLUMNS, QUEUE);
    reject_values::build(&fixture);
    let counted =
        "select pending, failed, waiting,
                            oldest = (select min(create_time) from sync_err_rec where status = 'pending')
                     from sync_status";
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t values (1, 'a'), (2, 'bad'), (3, 'c')",
    );
    assert_eq!(rows(&fixture.left, counted), ["3|0|0|t"]);
    reject_values::close(&fixture, "bad", "23514", None);
    assert!(!deal(&fixture, "100"));
    assert_eq!(rows(&fixture.left, counted), ["0|1|0|~"]);
    run(&mut client, "update t set v = 'x' where id > 1");
    assert!(!deal(&fixture, "100"));
    run(&mut client, "insert into t values (4, 'd'), (5, 'e')");
    assert_eq!(rows(&fixture.left, counted), ["2|1|1|t"]);
    reject_values::open(&fixture, "bad");
    assert!(deal(&fixture, "100"));
    assert_eq!(rows(&fixture.left, counted), ["0|0|0|~"]);
}

#[test]
fn failures_in_a_row_are_counted_until_one_attempt_succeeds() {
    let fixture = Fixture::new("inarow");
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, QUEUE);
    let before =
        "select last_error, last_sqlstate, last_success_at, coalesce(consecutive_failures, 0)
                    from sync_status";
    assert_eq!(rows(&fixture.left, before), ["~|~|~|0"]);
    proxy.refuse();
    for n in 1..=3 {
        fixture
            .left
            .exec(&format!("insert into t values ({n}, 'v')"));
        assert!(!deal(&fixture, "100"));
        let failing = "select pending, failed, last_sqlstate, consecutive_failures,
                         last_attempt_at > now() - interval '10 s', last_success_at,
                         last_error like '%could not connect to server \"dst\"%' from sync_status";
        assert_eq!(
            rows(&fixture.left, failing),
            [format!("{n}|0|08001|{n}|t|~|t")]
        );
    }
    // An attempt that its caller rolls back has not been.
    run(
        &mut fixture.left.superuser(),
        "begin; select deal_sync_err_rec(1); rollback",
    );
    assert_eq!(
        rows(
            &fixture.left,
            "select consecutive_failures from sync_status"
        ),
        ["3"]
    );
    proxy.accept().expect("listening again");
    assert!(deal(&fixture, "100"));
    same(&fixture, "t");
    let well = "select pending, consecutive_failures, last_success_at >= last_attempt_at
                       or last_attempt_at is null from sync_status";
    assert_eq!(rows(&fixture.left, well), ["0|0|t"]);
    proxy.refuse();
    proxy.cut();
    fixture.left.exec("insert into t values (9, 'v')");
    assert!(!deal(&fixture, "100"));
    assert_eq!(
        rows(
            &fixture.left,
            "select consecutive_failures from sync_status"
        ),
        ["1"]
    );
}

#[test]
fn a_record_failed_is_no_failure_of_the_server() {
    let fixture = one_way("noserver", COLUMNS, QUEUE);
    reject_values::build(&fixture);
    reject_values::close(&fixture, "bad", "23514", None);
    fixture
        .left
        .exec("insert into t values (1, 'bad'), (2, 'good')");
    assert!(!deal(&fixture, "100"));
    let status =
        "select failed, consecutive_failures, last_success_at is not null from sync_status";
    assert_eq!(rows(&fixture.left, status), ["1|0|t"]);
    reject_values::open(&fixture, "bad");
    assert!(retry(&fixture, the_failed(&fixture)));
    assert_eq!(rows(&fixture.left, status), ["0|0|t"]);
}

#[test]
fn each_server_has_failures_of_its_own() {
    let fixture = one_way("ownfail", COLUMNS, QUEUE);
    link_with(&fixture, "down", closed_port(), &fixture.right.password);
    let schema = &fixture.right.user;
    fixture.left.exec(&format!(
        "select attach_sync('t', 'down', '{schema}.t', '{QUEUE}')"
    ));
    fixture.left.exec("insert into t values (1, 'a')");
    assert!(!deal(&fixture, "100"));
    let status = "select server, pending, consecutive_failures, last_sqlstate from sync_status
                   order by 1";
    assert_eq!(rows(&fixture.left, status), ["down|1|1|08001", "dst|0|0|~"]);
}

#[test]
fn without_preload_the_counters_of_shared_memory_are_unknown() {
    let fixture = one_way("nocounters", COLUMNS, "{}");
    fixture.left.exec("insert into t values (1, 'a')");
    let counters = "select delivered_transactions, delivered_changes, queued, conflicts, guarded
                      from sync_status";
    assert_eq!(rows(&fixture.left, counters), ["~|~|~|~|~"]);
}

#[test]
fn the_worker_says_when_it_will_try_again() {
    let settings = [
        ("pg_rowsync.retry_interval", "200ms"),
        ("pg_rowsync.max_retry_interval", "2s"),
    ];
    let fixture = preloaded("nextattempt", &settings);
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, QUEUE);
    proxy.refuse();
    fixture.left.exec("insert into t values (1, 'a')");
    let failures = "select coalesce(max(consecutive_failures), 0)::bigint from sync_status";
    await_until(WORKING, "five failures", || {
        fixture.left.query_one::<i64>(failures) >= 5
    });
    // By now the pace is the slowest; the jitter is part of it.
    let next = "select next_attempt_at > last_attempt_at,
                  next_attempt_at - last_attempt_at < interval '4 s', failed from sync_status";
    assert_eq!(rows(&fixture.left, next), ["t|t|0"]);
    proxy.accept().expect("listening again");
    await_until(Duration::from_secs(20), "the row to arrive", || {
        rows(&fixture.right, "select v from t") == ["a"]
    });
    let well = "select pending, consecutive_failures, last_success_at is not null from sync_status";
    await_until(WORKING, "the status to tell", || {
        rows(&fixture.left, well) == ["0|0|t"]
    });
}

fn listen(fixture: &Fixture) -> Client {
    let mut client = fixture.left.client();
    run(&mut client, "listen pg_rowsync");
    client
}

/// What has been notified so far: server, state and SQLSTATE.
fn notified(client: &mut Client) -> Vec<String> {
    // The answer to a query comes after the notifications of what was committed before it.
    query(client, "select 1");
    let arrived: Vec<_> = client
        .notifications()
        .iter()
        .collect()
        .expect("notifications");
    let payloads: Vec<_> = arrived
        .into_iter()
        .map(|one| {
            assert_eq!(one.channel(), "pg_rowsync");
            one.payload().to_owned()
        })
        .collect();
    let fields = |payload: String| {
        let sql = "select ($1::text::json->>'server') || '|' || ($1::text::json->>'state') || '|'
                     || coalesce($1::text::json->>'sqlstate', '~')";
        client.query_one(sql, &[&payload]).expect("JSON").get(0)
    };
    payloads.into_iter().map(fields).collect()
}

#[test]
fn a_listener_hears_once_that_a_server_has_gone_and_once_that_it_is_back() {
    let fixture = Fixture::new("listen");
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, QUEUE);
    let mut listener = listen(&fixture);
    fixture.left.exec("insert into t values (1, 'a')");
    assert!(deal(&fixture, "100"));
    assert_eq!(notified(&mut listener), [""; 0], "nothing has changed");
    for _ in 0..2 {
        proxy.refuse();
        proxy.cut();
        fixture
            .left
            .exec("insert into t values (2, 'b'); delete from t where id = 2");
        for _ in 0..3 {
            assert!(!deal(&fixture, "100"));
        }
        assert_eq!(notified(&mut listener), ["dst|unreachable|08001"]);
        proxy.accept().expect("listening again");
        assert!(deal(&fixture, "100"));
        assert!(deal(&fixture, "100"));
        let back = notified(&mut listener);
        assert_eq!(back.len(), 1, "{back:?}");
        assert!(back[0].starts_with("dst|reachable|"), "{back:?}");
    }
}

#[test]
fn a_listener_hears_of_an_outage_that_only_the_worker_saw() {
    let fixture = preloaded("listenwork", EAGER);
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, QUEUE);
    let mut listener = listen(&fixture);
    proxy.refuse();
    fixture.left.exec("insert into t values (1, 'a')");
    let failures = "select coalesce(max(consecutive_failures), 0)::bigint from sync_status";
    await_until(WORKING, "four failures", || {
        fixture.left.query_one::<i64>(failures) >= 4
    });
    assert_eq!(notified(&mut listener), ["dst|unreachable|08001"]);
    proxy.accept().expect("listening again");
    let mut back = Vec::new();
    await_until(WORKING, "word that the server is back", || {
        back.extend(notified(&mut listener));
        !back.is_empty()
    });
    assert_eq!(rows(&fixture.right, "select v from t"), ["a"]);
    fixture.left.exec("insert into t values (2, 'b')");
    await_until(WORKING, "the second row to arrive", || {
        rows(&fixture.right, "select count(*) from t") == ["2"]
    });
    back.extend(notified(&mut listener));
    assert_eq!(back.len(), 1, "{back:?}");
    assert!(back[0].starts_with("dst|reachable|"), "{back:?}");
}

#[test]
fn a_failing_is_no_outage() {
    let fixture = one_way("noalarm", COLUMNS, QUEUE);
    reject_values::build(&fixture);
    reject_values::close(&fixture, "bad", "23514", None);
    let mut listener = listen(&fixture);
    fixture
        .left
        .exec("insert into t values (1, 'bad'), (2, 'good')");
    assert!(!deal(&fixture, "100"));
    reject_values::open(&fixture, "bad");
    assert!(deal(&fixture, "100"));
    assert_eq!(notified(&mut listener), [""; 0]);
}
