//! Connections that a session does not use any more, and those that stand in a drain's way.

use std::time::Duration;

use postgres::Client;
use rowsync_harness::fixture::await_until;
use rowsync_harness::{Fixture, IGNORE_OPTIONS, PoolMode, Pooler, Side};

use crate::support::common::{
    attach, both_have, deal, linked, mirror, query, queued, records, refused, rows, run, same,
    set_host_apart, table,
};
use crate::support::one_way::SOON;

const COLUMNS: &str = "id int primary key, v text";

/// Sessions of the side's role that are named as deliveries are.
fn held(side: &Side) -> i64 {
    side.query_one(&format!(
        "select count(*) from pg_stat_activity where usename = '{}' and application_name = 'pg_rowsync'",
        side.user
    ))
}

/// A synchronised table, and connections that no other test asks for.
fn apart(label: &str, options: &str) -> Fixture {
    let fixture = linked(label);
    set_host_apart(&fixture);
    mirror(&fixture, "t", COLUMNS, options);
    fixture
}

#[test]
fn a_connection_that_is_not_used_is_closed_while_the_client_is_silent() {
    let fixture = apart("idle", "{}");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "set pg_rowsync.idle_timeout = '2s'; insert into t values (1, 'a')",
    );
    assert_eq!(held(&fixture.right), 1);
    await_until(SOON, "the connection to be closed", || {
        held(&fixture.right) == 0
    });
    // An ERROR stops the timers of a session.
    run(&mut client, "insert into t values (2, 'b')");
    refused(&mut client, "select 1 / 0", "22012");
    await_until(SOON, "the connection to be closed", || {
        held(&fixture.right) == 0
    });
    run(
        &mut client,
        "set pg_rowsync.idle_timeout = 0; insert into t values (3, 'c')",
    );
    let idle = query(
        &mut client,
        "select idle_since < clock_timestamp() and pooled is false from sync_connections()",
    );
    assert_eq!(idle, ["t"]);
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(held(&fixture.right), 1);
    // What was set later counts from the end of the next transaction on.
    run(&mut client, "set pg_rowsync.idle_timeout = '100ms'");
    await_until(SOON, "the connection to be closed", || {
        held(&fixture.right) == 0
    });
    assert_eq!(same(&fixture, "t").len(), 3);
}

#[test]
fn a_connection_is_closed_in_a_session_that_is_idle_in_a_transaction_once_that_ends() {
    let fixture = apart("idle_block", "{}");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "set pg_rowsync.idle_timeout = '200ms'; insert into t values (1, 'a')",
    );
    run(&mut client, "begin; select 1");
    std::thread::sleep(Duration::from_millis(500));
    run(&mut client, "insert into t values (2, 'b'); commit");
    await_until(SOON, "the connection to be closed", || {
        held(&fixture.right) == 0
    });
    both_have(&fixture, "t", &["1|a", "2|b"]);
}

#[test]
fn connections_are_kept_or_not_as_the_server_says() {
    let fixture = apart("keep", "{}");
    let mut client = fixture.left.client();
    refused(
        &mut client,
        "alter server dst options (add keep_connections 'maybe')",
        "22023",
    );
    refused(
        &mut client,
        "alter server dst options (add pooled 'maybe')",
        "22023",
    );
    run(
        &mut client,
        "alter server dst options (add keep_connections 'off')",
    );
    run(&mut client, "insert into t values (1, 'a')");
    assert_eq!(
        query(&mut client, "select * from sync_connections()"),
        [""; 0]
    );
    await_until(SOON, "the connection to be closed", || {
        held(&fixture.right) == 0
    });
    run(
        &mut client,
        "alter server dst options (set keep_connections 'on')",
    );
    // The first connection after a change of the server ends with its transaction.
    run(&mut client, "insert into t values (2, 'x')");
    run(&mut client, "update t set v = 'b' where id = 2");
    assert_eq!(
        query(&mut client, "select valid from sync_connections()"),
        ["t"]
    );
    both_have(&fixture, "t", &["1|a", "2|b"]);
}

/// Clients of the left side, each of which has written a row.
fn writers(fixture: &Fixture, number: usize) -> Vec<Client> {
    (0..number)
        .map(|at| {
            let mut client = fixture.left.client();
            run(
                &mut client,
                &format!("insert into t values ({at}, 'first')"),
            );
            client
        })
        .collect()
}

/// Connections that the right side grants to the role over which is delivered.
pub fn limit(fixture: &Fixture, connections: u32) {
    let user = &fixture.right.user;
    fixture
        .right
        .exec_superuser(&format!("alter role {user} connection limit {connections}"));
}

#[test]
fn a_drain_gets_a_connection_while_the_sessions_that_hold_all_stay() {
    let fixture = apart("limit", "{}");
    limit(&fixture, 3);
    let mut clients = writers(&fixture, 6);
    assert_eq!(held(&fixture.right), 3);
    assert_eq!(queued(&fixture), 3);
    await_until(SOON, "the queue to drain", || {
        deal(&fixture, "1000") && queued(&fixture) == 0
    });
    assert_eq!(same(&fixture, "t").len(), 6);
    // Those that were asked for theirs can have others.
    for (at, client) in clients.iter_mut().enumerate().take(2) {
        run(
            client,
            &format!("insert into t values ({}, 'second')", 100 + at),
        );
    }
    await_until(SOON, "the queue to drain", || {
        queued(&fixture) == 0 || deal(&fixture, "1000")
    });
    assert_eq!(same(&fixture, "t").len(), 8);
}

#[test]
fn a_worker_gets_a_connection_and_direct_delivery_goes_on() {
    let fixture = apart("limit_worker", "{}");
    fixture.left.exec_superuser("select start_sync_worker()");
    limit(&fixture, 4);
    let clients = writers(&fixture, 12);
    await_until(SOON, "the queue to be empty", || queued(&fixture) == 0);
    let threads: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(at, mut client)| {
            std::thread::spawn(move || {
                let direct = |client: &mut Client| {
                    query(client, "select count(*) from sync_connections()") == ["1"]
                };
                let mut delivered = 0;
                for row in 0..40 {
                    let id = 1_000 * (at + 1) + row;
                    run(&mut client, &format!("insert into t values ({id}, 'more')"));
                    delivered += usize::from(direct(&mut client));
                }
                (client, delivered)
            })
        })
        .collect();
    let (clients, delivered): (Vec<_>, Vec<_>) = threads
        .into_iter()
        .map(|thread| thread.join().expect("a writer"))
        .unzip();
    await_until(SOON, "the queue to be empty", || queued(&fixture) == 0);
    assert_eq!(same(&fixture, "t").len(), 12 + 12 * 40);
    assert!(
        delivered.iter().sum::<usize>() > 0,
        "nothing was delivered directly: {delivered:?}"
    );
    drop(clients);
    fixture.left.exec_superuser("select stop_sync_worker()");
}

#[test]
fn a_session_that_was_refused_a_connection_does_not_ask_with_every_commit() {
    let fixture = apart("refusal", "{}");
    limit(&fixture, 0);
    let mut client = fixture.left.client();
    let log = || {
        fixture
            .right
            .cluster
            .log()
            .matches(&format!(
                "too many connections for role \"{}\"",
                fixture.right.user
            ))
            .count()
    };
    run(&mut client, "insert into t values (1, 'a')");
    // Drained by nobody: it goes on to queue.
    fixture.left.exec_superuser("delete from sync_err_rec");
    let before = log();
    assert!(before > 0);
    run(&mut client, "insert into t values (2, 'b')");
    assert_eq!(log(), before);
    assert_eq!(
        rows(&fixture.left, "select sqlstate from sync_err_rec"),
        ["53300"]
    );
    limit(&fixture, 10);
    await_until(SOON, "the queue to drain", || deal(&fixture, "10"));
    await_until(SOON, "a direct delivery", || {
        run(&mut client, "update t set v = 'c'");
        query(&mut client, "select count(*) from sync_connections()") == ["1"]
            || !deal(&fixture, "10")
    });
}

/// Another database of the left cluster, whose table `t` goes to the same target over the same login.
fn another_source(fixture: &Fixture, options: &str) -> Fixture {
    let name = format!("{}_too", fixture.left.user);
    let left = Side::create(&fixture.left.cluster, &name).expect("a database");
    let right = fixture.right.clone();
    let other = Fixture { left, right };
    other.link(&other.left, &other.right, "dst", &[]);
    set_host_apart(&other);
    other.left.exec(&format!("create table t ({COLUMNS})"));
    attach(&other, "t", options);
    other
}

/// Drops the source alone.
fn drop_source(source: Fixture) {
    source.left.drop().expect("a database to be dropped");
    std::mem::forget(source);
}

#[test]
fn a_drain_gets_a_connection_though_sessions_of_another_database_hold_all() {
    let fixture = apart("limit_dbs", "{}");
    let other = another_source(&fixture, "{}");
    limit(&fixture, 3);
    let mut holders = writers(&other, 3);
    assert_eq!(held(&fixture.right), 3);
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (100, 'queued')");
    assert_eq!(records(&fixture), ["INSERT|53300|1|pending"]);
    await_until(SOON, "the queue to drain", || {
        deal(&fixture, "1000") && queued(&fixture) == 0
    });
    assert_eq!(table(&fixture.right, "t").len(), 4);
    // Whose connections were asked for go on as before.
    for (at, client) in holders.iter_mut().enumerate() {
        run(
            client,
            &format!("update t set v = 'second' where id = {at}"),
        );
    }
    await_until(SOON, "the other queue to drain", || {
        queued(&other) == 0 || deal(&other, "1000")
    });
    let second = "select count(*) from t where v = 'second'";
    assert_eq!(rows(&fixture.right, second), ["3"]);
    drop((holders, client));
    drop_source(other);
}

#[test]
fn a_transaction_that_must_not_queue_gets_a_connection_though_others_hold_all() {
    for in_another in [false, true] {
        let fixture = apart("limit_sync", r#"{"mode": "sync"}"#);
        let other = another_source(&fixture, r#"{"mode": "sync"}"#);
        limit(&fixture, 2);
        let holders = writers(if in_another { &other } else { &fixture }, 2);
        assert_eq!(held(&fixture.right), 2);
        let mut client = fixture.left.client();
        refused(&mut client, "insert into t values (100, 'x')", "53300");
        let mut tries = 1;
        while client
            .batch_execute("insert into t values (100, 'x')")
            .is_err()
        {
            tries += 1;
            assert!(tries < 50, "never");
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(table(&fixture.right, "t").len(), 3);
        drop((holders, client));
        drop_source(other);
    }
}

/// In session mode a pooler lets who comes wait in a line, behind sessions of whatever database.
#[test]
fn a_drain_gets_a_pooled_connection_though_sessions_of_another_database_hold_all() {
    let fixture = linked("limit_pool");
    set_host_apart(&fixture);
    let settings = [
        IGNORE_OPTIONS,
        ("default_pool_size", "2"),
        ("query_wait_timeout", "30"),
    ];
    let pooler = Pooler::start(&[&fixture.right], PoolMode::Session, &settings);
    let pooler = pooler.expect("a pooler");
    let port = pooler.port();
    mirror(&fixture, "t", COLUMNS, "{}");
    let other = another_source(&fixture, "{}");
    for source in [&fixture, &other] {
        source
            .left
            .exec(&format!("alter server dst options (set port '{port}')"));
    }
    let holders = writers(&other, 2);
    let mut client = fixture.left.client();
    run(
        &mut client,
        "set pg_rowsync.delivery_timeout = '1s'; set pg_rowsync.connect_timeout = '1s';
         insert into t values (100, 'queued')",
    );
    assert_eq!(queued(&fixture), 1);
    let mut drainer = fixture.left.superuser();
    run(
        &mut drainer,
        "set pg_rowsync.delivery_timeout = '1s'; set pg_rowsync.connect_timeout = '1s'",
    );
    await_until(SOON, "the queue to drain", || {
        query(&mut drainer, "select deal_sync_err_rec(1000)") == ["t"] && queued(&fixture) == 0
    });
    assert_eq!(table(&fixture.right, "t").len(), 3);
    drop((holders, client, drainer));
    drop_source(other);
}
