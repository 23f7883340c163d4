//! `pause_sync` and `resume_sync`: one server gets nothing, its changes are queued, everything else flows.

use std::sync::Arc;

use rowsync_harness::cluster::{Cluster, TEST_SETTINGS};
use rowsync_harness::fixture::clusters;
use rowsync_harness::{Fixture, Side, await_until};

use crate::support::common::{
    Role, attach, attach_sql, both_have, deal, linked, mirror, one_way, query, queued, records,
    refused, rows, run, superuser_with_notices, table, warnings,
};
use crate::support::failed::{retry, the_failed};
use crate::support::preloaded::{EAGER, WORKING, await_drained, preloaded_one_way, worker};
use crate::support::reject_values;

const COLUMNS: &str = "id int primary key, v text";

fn pause(fixture: &Fixture) -> bool {
    fixture.left.query_one("select pause_sync('dst')")
}

fn resume(fixture: &Fixture) -> bool {
    fixture.left.query_one("select resume_sync('dst')")
}

#[test]
fn changes_are_queued_without_a_word_and_arrive_in_order_afterwards() {
    let fixture = one_way("paused", COLUMNS, "{}");
    let (mut client, notices) = superuser_with_notices(&fixture.left);
    run(
        &mut client,
        &format!("set search_path = {}, public", fixture.left.user),
    );
    run(&mut client, "insert into t values (1, 'a')");
    assert!(pause(&fixture) && !pause(&fixture));
    run(
        &mut client,
        "update t set v = 'b'; insert into t values (2, 'c'); update t set v = 'd'",
    );
    assert!(warnings(&notices).is_empty());
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    assert_eq!(queued(&fixture), 4);
    // Neither a call for all servers nor one for it takes anything; both say why.
    for args in ["100", "100, 'dst'"] {
        assert_eq!(
            query(&mut client, &format!("select deal_sync_err_rec({args})")),
            ["t"]
        );
        let said = std::mem::take(&mut *notices.lock().expect("notices"));
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0].message().contains("server \"dst\" is paused"),
            "{said:?}"
        );
        assert!(
            said[0]
                .hint()
                .is_some_and(|hint| hint.contains("resume_sync()")),
            "{said:?}"
        );
    }
    assert_eq!(queued(&fixture), 4);
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    assert!(resume(&fixture) && !resume(&fixture));
    // Still behind what is queued.
    run(&mut client, "update t set v = 'e' where id = 1");
    assert_eq!(queued(&fixture), 5);
    assert!(deal(&fixture, "100"));
    both_have(&fixture, "t", &["1|e", "2|d"]);
    run(&mut client, "delete from t where id = 2");
    both_have(&fixture, "t", &["1|e"]);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn synchronous_tables_refuse_and_queued_ones_queue() {
    let fixture = one_way("pausedsync", COLUMNS, r#"{"mode": "sync"}"#);
    mirror(&fixture, "q", COLUMNS, r#"{"mode": "queue"}"#);
    let mut client = fixture.left.client();
    assert!(pause(&fixture));
    let error = refused(&mut client, "insert into t values (1, 'a')", "55000");
    assert!(
        error.message().contains("server \"dst\" is paused"),
        "{error:?}"
    );
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("resume_sync()")),
        "{error:?}"
    );
    assert_eq!(table(&fixture.left, "t"), [""; 0]);
    run(&mut client, "insert into q values (1, 'a')");
    // Prepared transactions queue as ever.
    assert_eq!(records(&fixture), ["INSERT|~|0|pending"]);
    assert!(resume(&fixture));
    assert!(deal(&fixture, "10"));
    run(&mut client, "insert into t values (1, 'a')");
    both_have(&fixture, "t", &["1|a"]);
    both_have(&fixture, "q", &["1|a"]);
}

#[test]
fn other_servers_are_served() {
    let fixture = one_way("pausedother", COLUMNS, "{}");
    fixture.link(&fixture.left, &fixture.right, "also", &[]);
    let schema = &fixture.right.user;
    fixture.right.exec(&format!("create table u ({COLUMNS})"));
    fixture
        .left
        .exec(&format!("select attach_sync('t', 'also', '{schema}.u')"));
    assert!(pause(&fixture));
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    assert_eq!(table(&fixture.right, "t"), [""; 0]);
    assert_eq!(table(&fixture.right, "u"), ["1|a"]);
    let state = "select server, pending, paused_since > now() - interval '1 minute' from sync_status order by 1";
    assert_eq!(rows(&fixture.left, state), ["also|0|~", "dst|1|t"]);
    let state = "select server, state from sync_tables order by 1";
    assert_eq!(rows(&fixture.left, state), ["also|live", "dst|paused"]);
    assert!(resume(&fixture));
    assert_eq!(rows(&fixture.left, state), ["also|live", "dst|queueing"]);
    assert!(deal(&fixture, "10"));
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    assert_eq!(rows(&fixture.left, state), ["also|live", "dst|live"]);
}

#[test]
fn a_pause_holds_once_it_is_committed() {
    let fixture = one_way("pausecommit", COLUMNS, "{}");
    let mut client = fixture.left.client();
    let mut admin = fixture.left.superuser();
    run(&mut client, "insert into t values (1, 'a')");
    run(&mut admin, "begin; select pause_sync('dst')");
    run(&mut client, "insert into t values (2, 'b')");
    assert_eq!(table(&fixture.right, "t"), ["1|a", "2|b"]);
    run(&mut admin, "rollback");
    run(&mut client, "insert into t values (3, 'c')");
    // A transaction that began before, whatever its isolation.
    run(
        &mut client,
        "begin isolation level repeatable read; insert into t values (4, 'd')",
    );
    run(&mut admin, "select pause_sync('dst')");
    run(&mut client, "commit");
    assert_eq!(table(&fixture.right, "t"), ["1|a", "2|b", "3|c"]);
    assert_eq!(queued(&fixture), 1);
}

#[test]
fn what_is_failed_stays_so_until_the_server_is_resumed() {
    let fixture = one_way("pausedfail", COLUMNS, "{}");
    reject_values::build(&fixture);
    reject_values::close(&fixture, "bad", "23514", None);
    fixture
        .left
        .exec("insert into t values (1, 'bad'), (2, 'good')");
    assert!(!deal(&fixture, "10"));
    assert!(pause(&fixture));
    fixture
        .left
        .exec("update t set v = 'x' where id = 1; insert into t values (3, 'good')");
    reject_values::open(&fixture, "bad");
    assert!(retry(&fixture, the_failed(&fixture)));
    assert_eq!(table(&fixture.right, "t"), ["2|good"]);
    assert!(resume(&fixture));
    assert!(deal(&fixture, "10"));
    both_have(&fixture, "t", &["1|x", "2|good", "3|good"]);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn the_servers_owner_may_and_who_drains_and_nobody_else() {
    let fixture = one_way("pauserights", COLUMNS, "{}");
    let outsider = Role::create(&fixture.left, "outsider", "");
    let operator = Role::create(&fixture.left, "drainer", "");
    fixture.left.exec_superuser(&format!(
        "grant execute on function deal_sync_err_rec(integer, text) to {}",
        operator.name
    ));
    for call in [
        "pause_sync('dst')",
        "resume_sync('dst')",
        "pause_sync('nowhere')",
    ] {
        refused(&mut outsider.client(), &format!("select {call}"), "42501");
    }
    for client in [&mut fixture.left.client(), &mut operator.client()] {
        assert_eq!(query(client, "select pause_sync('dst')"), ["t"]);
        assert_eq!(query(client, "select resume_sync('dst')"), ["t"]);
    }
    let mut client = fixture.left.superuser();
    refused(&mut client, "select pause_sync('nowhere')", "42704");
    refused(&mut client, "select resume_sync('nowhere')", "42704");
    refused(&mut client, "select pause_sync(null)", "22023");
    refused(&mut outsider.client(), "table sync_pause", "42501");
    // A pause outlasts its server, and can be ended.
    run(
        &mut client,
        "select pause_sync('dst'); drop server dst cascade",
    );
    assert_eq!(query(&mut client, "select resume_sync('dst')"), ["t"]);
}

#[test]
fn the_worker_keeps_off_until_it_is_resumed() {
    let fixture = preloaded_one_way("pausework", EAGER, COLUMNS, r#"{"mode": "queue"}"#);
    fixture.link(&fixture.left, &fixture.right, "also", &[]);
    fixture.right.exec(&format!("create table u ({COLUMNS})"));
    fixture.left.exec(&format!(
        "create table u ({COLUMNS}); select attach_sync('u', 'also', '{}.u', '{{\"mode\": \"queue\"}}')",
        fixture.right.user
    ));
    fixture.left.exec("insert into t values (1, 'a')");
    await_drained(&fixture);
    worker(&fixture);
    assert!(pause(&fixture));
    fixture.left.exec("insert into t values (2, 'b')");
    // What the worker delivers later shows that it has looked, again and again.
    for n in 1..=5 {
        fixture
            .left
            .exec(&format!("insert into u values ({n}, 'x')"));
        await_until(WORKING, "the other server's row", || {
            table(&fixture.right, "u").len() == n
        });
    }
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    assert_eq!(queued(&fixture), 1);
    assert!(resume(&fixture));
    await_until(WORKING, "the row", || {
        table(&fixture.right, "t") == ["1|a", "2|b"]
    });
}

#[test]
fn a_pause_outlasts_a_restart_and_goes_with_a_dump() {
    let preload = [("shared_preload_libraries", "pg_rowsync")];
    let settings = [TEST_SETTINGS, &preload, EAGER].concat();
    let own = Arc::new(Cluster::start_with("pauserestart", &settings).expect("a cluster"));
    let create = |cluster, name: &str| Side::create(cluster, name).expect("a database");
    let fixture = Fixture {
        left: create(&own, "local_pauserestart"),
        right: create(clusters().1, "remote_pauserestart"),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, "{}");
    assert!(pause(&fixture));
    own.restart().expect("a restart");
    fixture.left.exec("insert into t values (1, 'a')");
    assert_eq!(queued(&fixture), 1);
    // The copy is a database of its own once it is adopted; the link is still held.
    let copy = Side {
        db: "copy_pauserestart".to_owned(),
        ..fixture.left.clone()
    };
    run(
        &mut own.superuser("postgres").expect("a session"),
        &format!("create database {}", copy.db),
    );
    let dump = own
        .client_program("pg_dump", &fixture.left.db, &[], "")
        .expect("a dump");
    own.client_program(
        "psql",
        &copy.db,
        &["-X", "-q", "-v", "ON_ERROR_STOP=1"],
        &dump,
    )
    .expect("a restore");
    assert_eq!(
        rows(&copy, "select state from sync_tables"),
        ["database copy"]
    );
    assert_eq!(rows(&copy, "select adopt_sync()"), ["t"]);
    assert_eq!(rows(&copy, "select state from sync_tables"), ["paused"]);
    copy.exec("insert into t values (2, 'copy')");
    assert_eq!(table(&fixture.right, "t"), [""; 0]);
    assert!(copy.query_one::<bool>("select resume_sync('dst')"));
    await_until(WORKING, "the copy's rows", || {
        table(&fixture.right, "t") == ["1|a", "2|copy"]
    });
    assert!(resume(&fixture));
    await_drained(&fixture);
    assert_eq!(table(&fixture.right, "t"), ["1|a", "2|copy"]);
}

#[test]
fn what_is_attached_to_a_paused_server_is_held_too() {
    let fixture = linked("pauseattach");
    assert!(pause(&fixture));
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table t ({COLUMNS})"));
    }
    attach(&fixture, "t", "{}");
    let mut client = fixture.left.client();
    run(
        &mut client,
        &attach_sql(&fixture, "t", r#"{"mode": "queue"}"#),
    );
    run(&mut client, "insert into t values (1, 'a')");
    assert!(resume(&fixture));
    assert!(deal(&fixture, "10"));
    both_have(&fixture, "t", &["1|a"]);
}
