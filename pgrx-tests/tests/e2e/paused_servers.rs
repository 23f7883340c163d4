//! `pause_sync` and `resume_sync`: one server gets nothing, its changes are queued, everything else flows.

use std::sync::Arc;

use rowsync_harness::cluster::{Cluster, TEST_SETTINGS};
use rowsync_harness::testbed::clusters;
use rowsync_harness::{Side, Testbed, await_until};

use crate::common::{
    Role, attach, attach_sql, both_have, deal, linked, mirror, one_way, query, queued, records,
    refused, rows, run, superuser_with_notices, table, warnings,
};
use crate::gate;
use crate::preloaded::{EAGER, WORKING, await_drained, preloaded_one_way, worker};
use crate::set_aside::{retry, the_failed};

const COLUMNS: &str = "id int primary key, v text";

fn pause(bed: &Testbed) -> bool {
    bed.left.query_one("select pause_sync('dst')")
}

fn resume(bed: &Testbed) -> bool {
    bed.left.query_one("select resume_sync('dst')")
}

#[test]
fn changes_are_queued_without_a_word_and_arrive_in_order_afterwards() {
    let bed = one_way("paused", COLUMNS, "{}");
    let (mut client, notices) = superuser_with_notices(&bed.left);
    run(&mut client, &format!("set search_path = {}, public", bed.left.user));
    run(&mut client, "insert into t values (1, 'a')");
    assert!(pause(&bed) && !pause(&bed));
    run(&mut client, "update t set v = 'b'; insert into t values (2, 'c'); update t set v = 'd'");
    assert!(warnings(&notices).is_empty());
    assert_eq!(table(&bed.right, "t"), ["1|a"]);
    assert_eq!(queued(&bed), 4);
    // Neither a call for all servers nor one for it takes anything; both say why.
    for args in ["100", "100, 'dst'"] {
        assert_eq!(query(&mut client, &format!("select deal_sync_err_rec({args})")), ["t"]);
        let said = std::mem::take(&mut *notices.lock().expect("notices"));
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].message().contains("server \"dst\" is paused"), "{said:?}");
        assert!(said[0].hint().is_some_and(|hint| hint.contains("resume_sync()")), "{said:?}");
    }
    assert_eq!(queued(&bed), 4);
    assert_eq!(table(&bed.right, "t"), ["1|a"]);
    assert!(resume(&bed) && !resume(&bed));
    // Still behind what is queued.
    run(&mut client, "update t set v = 'e' where id = 1");
    assert_eq!(queued(&bed), 5);
    assert!(deal(&bed, "100"));
    both_have(&bed, "t", &["1|e", "2|d"]);
    run(&mut client, "delete from t where id = 2");
    both_have(&bed, "t", &["1|e"]);
    assert_eq!(queued(&bed), 0);
}

#[test]
fn synchronous_tables_refuse_and_queued_ones_queue() {
    let bed = one_way("pausedsync", COLUMNS, r#"{"mode": "sync"}"#);
    mirror(&bed, "q", COLUMNS, r#"{"mode": "queue"}"#);
    let mut client = bed.left.client();
    assert!(pause(&bed));
    let error = refused(&mut client, "insert into t values (1, 'a')", "55000");
    assert!(error.message().contains("server \"dst\" is paused"), "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("resume_sync()")), "{error:?}");
    assert_eq!(table(&bed.left, "t"), [""; 0]);
    run(&mut client, "insert into q values (1, 'a')");
    // Prepared transactions queue as ever.
    assert_eq!(records(&bed), ["INSERT|~|0|pending"]);
    assert!(resume(&bed));
    assert!(deal(&bed, "10"));
    run(&mut client, "insert into t values (1, 'a')");
    both_have(&bed, "t", &["1|a"]);
    both_have(&bed, "q", &["1|a"]);
}

#[test]
fn other_servers_are_served() {
    let bed = one_way("pausedother", COLUMNS, "{}");
    bed.link(&bed.left, &bed.right, "also", &[]);
    let schema = &bed.right.user;
    bed.right.exec(&format!("create table u ({COLUMNS})"));
    bed.left.exec(&format!("select attach_sync('t', 'also', '{schema}.u')"));
    assert!(pause(&bed));
    let mut client = bed.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    assert_eq!(table(&bed.right, "t"), [""; 0]);
    assert_eq!(table(&bed.right, "u"), ["1|a"]);
    let state = "select server, pending, paused_since > now() - interval '1 minute' from sync_status order by 1";
    assert_eq!(rows(&bed.left, state), ["also|0|~", "dst|1|t"]);
    let state = "select server, state from sync_tables order by 1";
    assert_eq!(rows(&bed.left, state), ["also|live", "dst|paused"]);
    assert!(resume(&bed));
    assert_eq!(rows(&bed.left, state), ["also|live", "dst|queueing"]);
    assert!(deal(&bed, "10"));
    assert_eq!(table(&bed.right, "t"), ["1|a"]);
    assert_eq!(rows(&bed.left, state), ["also|live", "dst|live"]);
}

#[test]
fn a_pause_holds_once_it_is_committed() {
    let bed = one_way("pausecommit", COLUMNS, "{}");
    let (mut client, mut admin) = (bed.left.client(), bed.left.superuser());
    run(&mut client, "insert into t values (1, 'a')");
    run(&mut admin, "begin; select pause_sync('dst')");
    run(&mut client, "insert into t values (2, 'b')");
    assert_eq!(table(&bed.right, "t"), ["1|a", "2|b"]);
    run(&mut admin, "rollback");
    run(&mut client, "insert into t values (3, 'c')");
    // A transaction that began before, whatever its isolation.
    run(&mut client, "begin isolation level repeatable read; insert into t values (4, 'd')");
    run(&mut admin, "select pause_sync('dst')");
    run(&mut client, "commit");
    assert_eq!(table(&bed.right, "t"), ["1|a", "2|b", "3|c"]);
    assert_eq!(queued(&bed), 1);
}

#[test]
fn what_is_set_aside_stays_so_until_the_server_is_resumed() {
    let bed = one_way("pausedfail", COLUMNS, "{}");
    gate::build(&bed);
    gate::close(&bed, "bad", "23514", None);
    bed.left.exec("insert into t values (1, 'bad'), (2, 'good')");
    assert!(!deal(&bed, "10"));
    assert!(pause(&bed));
    bed.left.exec("update t set v = 'x' where id = 1; insert into t values (3, 'good')");
    gate::open(&bed, "bad");
    assert!(retry(&bed, the_failed(&bed)));
    assert_eq!(table(&bed.right, "t"), ["2|good"]);
    assert!(resume(&bed));
    assert!(deal(&bed, "10"));
    both_have(&bed, "t", &["1|x", "2|good", "3|good"]);
    assert_eq!(queued(&bed), 0);
}

#[test]
fn the_servers_owner_may_and_who_drains_and_nobody_else() {
    let bed = one_way("pauserights", COLUMNS, "{}");
    let (outsider, operator) =
        (Role::create(&bed.left, "outsider", ""), Role::create(&bed.left, "drainer", ""));
    bed.left.exec_superuser(&format!(
        "grant execute on function deal_sync_err_rec(integer, text) to {}",
        operator.name
    ));
    for call in ["pause_sync('dst')", "resume_sync('dst')", "pause_sync('nowhere')"] {
        refused(&mut outsider.client(), &format!("select {call}"), "42501");
    }
    for client in [&mut bed.left.client(), &mut operator.client()] {
        assert_eq!(query(client, "select pause_sync('dst')"), ["t"]);
        assert_eq!(query(client, "select resume_sync('dst')"), ["t"]);
    }
    let mut client = bed.left.superuser();
    refused(&mut client, "select pause_sync('nowhere')", "42704");
    refused(&mut client, "select resume_sync('nowhere')", "42704");
    refused(&mut client, "select pause_sync(null)", "22023");
    refused(&mut outsider.client(), "table sync_pause", "42501");
    // A pause outlasts its server, and can be ended.
    run(&mut client, "select pause_sync('dst'); drop server dst cascade");
    assert_eq!(query(&mut client, "select resume_sync('dst')"), ["t"]);
}

#[test]
fn the_worker_keeps_off_until_it_is_resumed() {
    let bed = preloaded_one_way("pausework", EAGER, COLUMNS, r#"{"mode": "queue"}"#);
    bed.link(&bed.left, &bed.right, "also", &[]);
    bed.right.exec(&format!("create table u ({COLUMNS})"));
    bed.left.exec(&format!(
        "create table u ({COLUMNS}); select attach_sync('u', 'also', '{}.u', '{{\"mode\": \"queue\"}}')",
        bed.right.user
    ));
    bed.left.exec("insert into t values (1, 'a')");
    await_drained(&bed);
    worker(&bed);
    assert!(pause(&bed));
    bed.left.exec("insert into t values (2, 'b')");
    // What the worker delivers later shows that it has looked, again and again.
    for n in 1..=5 {
        bed.left.exec(&format!("insert into u values ({n}, 'x')"));
        await_until(WORKING, "the other server's row", || table(&bed.right, "u").len() == n);
    }
    assert_eq!(table(&bed.right, "t"), ["1|a"]);
    assert_eq!(queued(&bed), 1);
    assert!(resume(&bed));
    await_until(WORKING, "the row", || table(&bed.right, "t") == ["1|a", "2|b"]);
}

#[test]
fn a_pause_outlasts_a_restart_and_goes_with_a_dump() {
    let preload = [("shared_preload_libraries", "pg_rowsync")];
    let settings = [TEST_SETTINGS, &preload, EAGER].concat();
    let own = Arc::new(Cluster::start_with("pauserestart", &settings).expect("a cluster"));
    let create = |cluster, name: &str| Side::create(cluster, name).expect("a database");
    let bed = Testbed {
        left: create(&own, "local_pauserestart"),
        right: create(clusters().1, "remote_pauserestart"),
    };
    bed.link(&bed.left, &bed.right, "dst", &[]);
    mirror(&bed, "t", COLUMNS, "{}");
    assert!(pause(&bed));
    own.restart().expect("a restart");
    bed.left.exec("insert into t values (1, 'a')");
    assert_eq!(queued(&bed), 1);
    // The copy is a database of its own once it is adopted; the link is still held.
    let copy = Side { db: "copy_pauserestart".to_owned(), ..bed.left.clone() };
    run(
        &mut own.superuser("postgres").expect("a session"),
        &format!("create database {}", copy.db),
    );
    let dump = own.client_program("pg_dump", &bed.left.db, &[], "").expect("a dump");
    own.client_program("psql", &copy.db, &["-X", "-q", "-v", "ON_ERROR_STOP=1"], &dump)
        .expect("a restore");
    assert_eq!(rows(&copy, "select state from sync_tables"), ["database copy"]);
    assert_eq!(rows(&copy, "select adopt_sync()"), ["t"]);
    assert_eq!(rows(&copy, "select state from sync_tables"), ["paused"]);
    copy.exec("insert into t values (2, 'copy')");
    assert_eq!(table(&bed.right, "t"), [""; 0]);
    assert!(copy.query_one::<bool>("select resume_sync('dst')"));
    await_until(WORKING, "the copy's rows", || table(&bed.right, "t") == ["1|a", "2|copy"]);
    assert!(resume(&bed));
    await_drained(&bed);
    assert_eq!(table(&bed.right, "t"), ["1|a", "2|copy"]);
}

#[test]
fn what_is_attached_to_a_paused_server_is_held_too() {
    let bed = linked("pauseattach");
    assert!(pause(&bed));
    for side in [&bed.left, &bed.right] {
        side.exec(&format!("create table t ({COLUMNS})"));
    }
    attach(&bed, "t", "{}");
    let mut client = bed.left.client();
    run(&mut client, &attach_sql(&bed, "t", r#"{"mode": "queue"}"#));
    run(&mut client, "insert into t values (1, 'a')");
    assert!(resume(&bed));
    assert!(deal(&bed, "10"));
    both_have(&bed, "t", &["1|a"]);
}
