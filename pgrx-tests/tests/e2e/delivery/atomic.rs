//! Mode `atomic`: both databases have a transaction, or neither has, whatever happens in between.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;
use rowsync_harness::cluster::{Cluster, Shutdown, TEST_SETTINGS};
use rowsync_harness::fixture::clusters;
use rowsync_harness::proxy::{Proxy, Strike};
use rowsync_harness::{Fixture, IGNORE_OPTIONS, PoolMode, Pooler, Side, await_until};

use crate::support::common::{
    Role, attach, both_have, deal, link_with, linked, mirror, one_way, outage, query, queued,
    recover, refused, rows, run, same, superuser_with_notices, table, warnings,
};
use crate::support::one_way::SOON;
use crate::support::preloaded::{EAGER, WORKING, preloaded};

const COLUMNS: &str = "id int primary key, v text";
const ATOMIC: &str = r#"{"mode": "atomic"}"#;
const PREPARE: &str = "PREPARE TRANSACTION 'pg_rowsync:";
const COMMIT: &str = "COMMIT PREPARED 'pg_rowsync:";

/// A table `t` whose changes go through a proxy.
fn behind_proxy(label: &str) -> (Fixture, Proxy) {
    let fixture = Fixture::new(label);
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, ATOMIC);
    (fixture, proxy)
}

/// As `behind_proxy`, from a cluster that a test may stop and kill.
fn from_its_own(label: &str) -> (Fixture, Proxy) {
    let left = Arc::new(Cluster::start(label).expect("a cluster"));
    let create = |cluster, side| {
        let name = format!("{side}_atomic_{label}");
        Side::create(cluster, &name).expect("a database")
    };
    let fixture = Fixture {
        left: create(&left, "local"),
        right: create(clusters().1, "remote"),
    };
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, ATOMIC);
    (fixture, proxy)
}

/// Names of what is prepared in a database.
fn prepared(side: &Side) -> Vec<String> {
    let own = "select gid from pg_prepared_xacts where database = current_database()";
    rows(side, own)
}

/// A transaction whose COMMIT makes its connection: over one that had been idle it would be tried again.
fn connecting(statement: &str) -> String {
    format!("begin; {statement}; select sync_disconnect(); commit")
}

/// Everything that is prepared is finished by the left side.
fn resolve(fixture: &Fixture) {
    assert!(
        fixture
            .left
            .query_one::<bool>("select resolve_sync_prepared()")
    );
    assert_eq!(prepared(&fixture.right), [""; 0]);
    assert_eq!(rows(&fixture.left, "select * from sync_prepared"), [""; 0]);
}

#[test]
fn a_transaction_is_on_both_sides_when_its_commit_returns() {
    let fixture = one_way("atomic_plain", COLUMNS, ATOMIC);
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a'), (2, 'b')");
    both_have(&fixture, "t", &["1|a", "2|b"]);
    assert_eq!(prepared(&fixture.right), [""; 0]);
    run(
        &mut client,
        "begin; update t set v = 'c' where id = 1; savepoint s; insert into t values (9, 'no');
         rollback to s; delete from t where id = 2; insert into t values (3, 'd'); commit",
    );
    both_have(&fixture, "t", &["1|c", "3|d"]);
    run(
        &mut client,
        "begin; insert into t values (4, 'e'); rollback",
    );
    both_have(&fixture, "t", &["1|c", "3|d"]);
    // The name says whose it was.
    let row = rows(
        &fixture.left,
        "select gid, server, decision, attempts from sync_prepared",
    );
    assert_eq!(row.len(), 1, "{row:?}");
    let own = fixture.left.query_one::<String>(
        "select format('pg_rowsync:%s.%s:', system_identifier,
                       (select oid from pg_database where datname = current_database()))
           from pg_control_system()",
    );
    assert!(
        row[0].starts_with(&own) && row[0].ends_with("|dst|commit|0"),
        "{row:?}"
    );
    resolve(&fixture);
    run(&mut client, "truncate t");
    both_have(&fixture, "t", &[]);
}

#[test]
fn what_the_server_refuses_fails_the_transaction_and_leaves_nothing() {
    let fixture = one_way("atomic_refused", COLUMNS, ATOMIC);
    fixture
        .right
        .exec("alter table t add constraint short check (v <> 'long')");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    let error = refused(&mut client, "insert into t values (2, 'long')", "23514");
    assert_eq!(error.constraint(), Some("short"), "{error:?}");
    both_have(&fixture, "t", &["1|a"]);
    outage(&fixture.right);
    refused(&mut client, "insert into t values (3, 'b')", "28000");
    recover(&fixture.right);
    run(&mut client, "insert into t values (3, 'b')");
    both_have(&fixture, "t", &["1|a", "3|b"]);
    assert_eq!(queued(&fixture), 0);
    resolve(&fixture);
}

#[test]
fn what_cannot_be_prepared_is_refused_with_what_to_do_about_it() {
    let fixture = one_way("atomic_temporary", COLUMNS, ATOMIC);
    fixture.right.exec(
        "create function note() returns trigger language plpgsql as
           'begin perform pg_notify(''news'', new.v); return null; end';
         create trigger note after insert on t for each row execute function note()",
    );
    let mut client = fixture.left.client();
    let error = refused(&mut client, "insert into t values (1, 'a')", "0A000");
    assert!(
        error.hint().is_some_and(|hint| hint.contains("NOTIFY")),
        "{error:?}"
    );
    both_have(&fixture, "t", &[]);
    fixture.right.exec(
        "create or replace function note() returns trigger language plpgsql as
           'begin create temporary table seen on commit drop as select new.v; return null; end'",
    );
    let error = refused(&mut client, "insert into t values (1, 'a')", "0A000");
    let hint = error.hint().unwrap_or_default();
    assert!(hint.contains("temporary tables"), "{error:?}");
    both_have(&fixture, "t", &[]);
    let error = refused(
        &mut client,
        "begin; delete from t; insert into t values (1, 'a'); prepare transaction 'own'",
        "0A000",
    );
    assert!(error.message().contains("mode \"atomic\""), "{error:?}");
    run(&mut client, "rollback");
    assert_eq!(prepared(&fixture.right), [""; 0]);
}

#[test]
fn the_strictest_mode_wins_and_pending_records_refuse() {
    let fixture = linked("atomic_strict");
    for (name, options) in [
        ("t", ATOMIC),
        ("s", r#"{"mode": "sync"}"#),
        ("a", r#"{"mode": "async"}"#),
        ("q", r#"{"mode": "queue"}"#),
    ] {
        mirror(&fixture, name, COLUMNS, options);
    }
    let mut client = fixture.left.client();
    let all = |n: i32| ["q", "a", "s", "t"].map(|t| format!("insert into {t} values ({n}, 'a');"));
    run(&mut client, &format!("begin; {} commit", all(1).concat()));
    for name in ["t", "s", "a", "q"] {
        both_have(&fixture, name, &["1|a"]);
    }
    fixture
        .right
        .exec("alter table t add constraint none check (id < 2)");
    run(&mut client, &format!("begin; {}", all(2).concat()));
    refused(&mut client, "commit", "23514");
    for name in ["t", "s", "a", "q"] {
        both_have(&fixture, name, &["1|a"]);
    }
    run(&mut client, "insert into q values (3, 'b')");
    let error = refused(&mut client, "update t set v = 'x'", "55000");
    assert_eq!(error.message(), "server \"dst\" has pending changes");
    assert!(deal(&fixture, "10"));
    run(&mut client, "update t set v = 'x'");
    both_have(&fixture, "t", &["1|x"]);
}

#[test]
fn several_servers_have_it_or_none_has() {
    let fixture = linked("atomic_several");
    fixture.left.exec(&format!("create table t ({COLUMNS})"));
    let schema = fixture.right.user.clone();
    for n in 1..=3 {
        link_with(
            &fixture,
            &format!("s{n}"),
            fixture.right.cluster.port(),
            &fixture.right.password,
        );
        fixture
            .right
            .exec(&format!("create table t{n} ({COLUMNS})"));
        fixture.left.exec(&format!(
            "select attach_sync('t', 's{n}', '{schema}.t{n}', '{ATOMIC}')"
        ));
    }
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    fixture
        .right
        .exec("alter table t2 add constraint none check (id < 2)");
    refused(&mut client, "insert into t values (2, 'b')", "23514");
    run(&mut client, "update t set v = 'c'");
    for n in 1..=3 {
        assert_eq!(table(&fixture.right, &format!("t{n}")), ["1|c"]);
    }
    assert_eq!(table(&fixture.left, "t"), ["1|c"]);
    // Refused only when it is prepared: the others are prepared by then.
    fixture.right.exec(
        "alter table t2 drop constraint none;
         create table allowed (id int primary key); insert into allowed values (1);
         alter table t2 add constraint late foreign key (id) references allowed
           deferrable initially deferred",
    );
    refused(&mut client, "insert into t values (2, 'b')", "23503");
    assert_eq!(prepared(&fixture.right), [""; 0]);
    assert_eq!(table(&fixture.right, "t1"), ["1|c"]);
    resolve(&fixture);
}

#[test]
fn a_connection_lost_before_the_decision_leaves_neither_side_with_it() {
    let (fixture, proxy) = behind_proxy("atomic_first");
    run(&mut fixture.left.client(), "insert into t values (1, 'a')");
    for strike in [Strike::LoseRequest, Strike::LoseAnswer] {
        // Who finds an older decision has a connection before it sends anything.
        resolve(&fixture);
        let mut client = fixture.left.client();
        proxy.strike(PREPARE, strike);
        let lost = connecting("update t set v = 'lost' where id = 1");
        let error = refused(&mut client, &lost, "08006");
        assert!(error.message().contains("\"dst\""), "{error:?}");
        assert_eq!(table(&fixture.left, "t"), table(&fixture.right, "t"));
        // What the server may have prepared is no obstacle for the session that has left it there.
        run(
            &mut client,
            &format!("update t set v = '{strike:?}' where id = 1"),
        );
        both_have(&fixture, "t", &[&format!("1|{strike:?}")]);
        // Nor for one whose connection had been idle, which tries again.
        proxy.strike(PREPARE, strike);
        run(&mut client, "update t set v = 'again' where id = 1");
        both_have(&fixture, "t", &["1|again"]);
        assert_eq!(prepared(&fixture.right), [""; 0]);
    }
    resolve(&fixture);
}

#[test]
fn a_connection_lost_after_the_decision_leaves_both_sides_with_it() {
    for strike in [Strike::LoseRequest, Strike::LoseAnswer] {
        let (fixture, proxy) = behind_proxy("atomic_second");
        let (mut client, notices) = fixture.left.client_with_notices();
        run(&mut client, "insert into t values (1, 'a'), (2, 'a')");
        proxy.strike(COMMIT, strike);
        run(
            &mut client,
            "delete from t where id = 1; insert into t values (3, 'b')",
        );
        let said = warnings(&notices);
        assert_eq!(said.len(), 1, "{said:?}");
        assert_eq!(said[0].code().code(), "08006");
        assert!(
            said[0]
                .message()
                .contains("not yet visible on server \"dst\""),
            "{said:?}"
        );
        assert_eq!(table(&fixture.left, "t"), ["2|a", "3|b"]);
        resolve(&fixture);
        both_have(&fixture, "t", &["2|a", "3|b"]);
    }
}

/// What has been notified so far: server, state, and whether there is a SQLSTATE.
fn notified(listener: &mut Client) -> Vec<String> {
    // The answer to a query comes after the notifications of what was committed before it.
    run(listener, "select 1");
    let arrived: Vec<_> = listener
        .notifications()
        .iter()
        .collect()
        .expect("notifications");
    let fields = |payload: &str| {
        let sql = "select ($1::text::json->>'server') || '|' || ($1::text::json->>'state') || '|'
                     || (($1::text::json->>'sqlstate') is not null)::text";
        listener.query_one(sql, &[&payload]).expect("JSON").get(0)
    };
    arrived
        .iter()
        .map(|one| one.payload())
        .map(fields)
        .collect()
}

#[test]
fn a_listener_hears_once_that_a_transaction_is_stuck_and_once_that_none_is_any_more() {
    let (fixture, proxy) = behind_proxy("atomic_listen");
    let mut listener = fixture.left.client();
    run(&mut listener, "listen pg_rowsync");
    let mut client = fixture.left.client();
    for (number, by_session) in [(1, false), (2, true)] {
        run(
            &mut client,
            &format!("insert into t values ({number}, 'a')"),
        );
        assert_eq!(notified(&mut listener), [""; 0], "nothing is stuck");
        proxy.strike(COMMIT, Strike::LoseRequest);
        run(
            &mut client,
            &format!("update t set v = 'b' where id = {number}"),
        );
        assert_eq!(notified(&mut listener), [""; 0], "nobody has tried again");
        proxy.refuse();
        for _ in 0..3 {
            assert!(
                !fixture
                    .left
                    .query_one::<bool>("select resolve_sync_prepared()")
            );
        }
        assert_eq!(notified(&mut listener), ["dst|stuck|true"]);
        proxy.accept().expect("listening again");
        if by_session {
            // It meets the row, so that it sees to the older one first.
            run(
                &mut client,
                &format!("update t set v = 'b' where id = {number}"),
            );
        } else {
            resolve(&fixture);
        }
        assert_eq!(notified(&mut listener), ["dst|resolved|false"]);
        resolve(&fixture);
        assert_eq!(notified(&mut listener), [""; 0], "once");
    }
    both_have(&fixture, "t", &["1|b", "2|b"]);
}

/// Under every isolation level a session removes the decisions that it has carried out, and nothing of them grows
/// with the number of its transactions. What another session has removed meanwhile is no failure.
#[test]
fn decisions_that_were_carried_out_do_not_pile_up_under_any_isolation_level() {
    for level in ["read committed", "repeatable read", "serializable"] {
        let fixture = linked("atomic_levels");
        mirror(&fixture, "t", COLUMNS, ATOMIC);
        let mut client = fixture.left.client();
        run(
            &mut client,
            &format!("set default_transaction_isolation = '{level}'"),
        );
        for id in 0..40 {
            run(&mut client, &format!("insert into t values ({id}, 'a')"));
            run(&mut client, "update t set v = 'b' where id = 0");
        }
        let decisions = "select count(*) from sync_prepared_transaction";
        assert_eq!(rows(&fixture.left, decisions), ["1"], "{level}");
        // Removed by the worker between the snapshot and the commit.
        run(&mut client, "begin; select * from t where id = 0");
        run(
            &mut fixture.left.superuser(),
            "delete from sync_prepared_transaction",
        );
        run(
            &mut client,
            "update t set v = 'c' where id = 0; insert into t values (100, 'a'); commit",
        );
        assert_eq!(rows(&fixture.left, decisions), ["1"], "{level}");
        // By one that has not ended: nobody waits for it.
        let mut remover = fixture.left.superuser();
        run(&mut remover, "begin; delete from sync_prepared_transaction");
        run(&mut client, "update t set v = 'd' where id = 0");
        run(&mut remover, "commit");
        run(&mut client, "update t set v = 'e' where id = 0");
        assert_eq!(rows(&fixture.left, decisions), ["1"], "{level}");
        let there = "select count(*), max(v) from t where id in (0, 100)";
        assert_eq!(rows(&fixture.right, there), ["2|e"], "{level}");
        assert_eq!(prepared(&fixture.right), [""; 0], "{level}");
    }
}

/// What a session asks with every transaction is prepared there once, and once more when the server has lost it.
#[test]
fn a_server_that_deallocates_is_asked_all_the_same() {
    let fixture = one_way("atomic_deallocated", COLUMNS, ATOMIC);
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    fixture.right.exec(
        "create function forgets() returns trigger language plpgsql as $$ begin
           execute 'deallocate all'; return null; end $$;
         create trigger forgets after update on t execute function forgets()",
    );
    for round in 0..12 {
        run(&mut client, &format!("update t set v = '{round}'"));
        both_have(&fixture, "t", &[&format!("1|{round}")]);
    }
    let told = "select count(*), bool_and(remote_xact is not null) from sync_prepared_transaction";
    assert_eq!(rows(&fixture.left, told), ["1|t"]);
    resolve(&fixture);
}

/// An administrator may keep a book of them.
#[test]
fn triggers_on_the_table_of_decisions_see_them_removed() {
    let fixture = one_way("atomic_book", COLUMNS, ATOMIC);
    fixture.left.exec_superuser(
        "create table book (gid text);
         create function enter() returns trigger language plpgsql as $$ begin
           insert into public.book values (old.gid); return null; end $$;
         create trigger enter after delete on sync_prepared_transaction
           for each row execute function enter()",
    );
    let mut client = fixture.left.client();
    for id in 0..3 {
        run(&mut client, &format!("insert into t values ({id}, 'a')"));
    }
    let book = "select count(distinct gid) from book";
    let mut superuser = fixture.left.superuser();
    assert_eq!(query(&mut superuser, book), ["2"]);
    resolve(&fixture);
    assert_eq!(query(&mut superuser, book), ["3"]);
}

/// Nothing can be prepared there at all: check_sync says so before, and the statement with what to do.
#[test]
fn a_server_that_prepares_nothing_is_told_of_and_refused_with_what_to_do_about_it() {
    let settings = [TEST_SETTINGS, &[("max_prepared_transactions", "0")]].concat();
    let right = Arc::new(Cluster::start_with("noplace", &settings).expect("a cluster"));
    let create = |cluster, name: &str| Side::create(cluster, name).expect("a database");
    let fixture = Fixture {
        left: create(clusters().0, "local_atomic_none"),
        right: create(&right, "remote_atomic_none"),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, ATOMIC);
    mirror(&fixture, "a", COLUMNS, r#"{"mode": "async"}"#);
    let reported = rows(
        &fixture.left,
        "select c::text from check_sync() c where c::text like '%max_prepared_transactions = 0%'",
    );
    assert!(!reported.is_empty(), "check_sync says nothing");
    let mut client = fixture.left.client();
    let refused_for_good = |client: &mut Client, sql: &str| {
        let error = refused(client, sql, "55000");
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains("max_prepared_transactions"), "{error:?}");
    };
    // Every time, before the COMMIT, and what goes with it is not queued.
    for _ in 0..2 {
        run(&mut client, "begin; insert into a values (1, 'a')");
        refused_for_good(&mut client, "insert into t values (1, 'a')");
        run(&mut client, "rollback");
    }
    assert_eq!(queued(&fixture), 0);
    both_have(&fixture, "t", &[]);
    both_have(&fixture, "a", &[]);
    // Without a table in mode atomic nothing is prepared.
    run(
        &mut client,
        "begin; insert into a values (2, 'b'); savepoint s",
    );
    refused_for_good(&mut client, "insert into t values (1, 'a')");
    run(&mut client, "rollback to s; commit");
    both_have(&fixture, "a", &["2|b"]);
    // What was asked once is found out by the COMMIT, and then by the statement again.
    let places = |number: &str| {
        let set = format!("alter system set max_prepared_transactions = {number}");
        fixture.right.exec_superuser(&set);
        right.restart().expect("a restart");
    };
    places("5");
    run(&mut client, "insert into t values (1, 'a')");
    both_have(&fixture, "t", &["1|a"]);
    places("0");
    run(&mut client, "begin; insert into t values (2, 'b')");
    refused_for_good(&mut client, "commit");
    run(&mut client, "begin");
    refused_for_good(&mut client, "insert into t values (2, 'b')");
    run(&mut client, "rollback");
    both_have(&fixture, "t", &["1|a"]);
}

#[test]
fn nothing_newer_passes_what_is_prepared_and_cannot_be_seen() {
    for mode in ["atomic", "sync", "async"] {
        let (fixture, proxy) = behind_proxy("atomic_order");
        attach_other(&fixture, mode);
        let mut client = fixture.left.client();
        run(&mut client, "insert into t values (1, 'a')");
        proxy.strike(COMMIT, Strike::LoseRequest);
        run(&mut client, "insert into t values (2, 'new')");
        assert_eq!(prepared(&fixture.right).len(), 1);
        // A DELETE that does not find the row there would be forgotten, and the row come back.
        let mut other = fixture.left.client();
        run(&mut other, "delete from t where id = 2");
        both_have(&fixture, "t", &["1|a"]);
        // And what is queued behind it is applied after it.
        proxy.strike(COMMIT, Strike::LoseRequest);
        run(&mut client, "insert into t values (3, 'new')");
        run(&mut other, "update u set v = 'c' where id = 0");
        if mode == "async" {
            proxy.refuse();
            proxy.cut();
            run(&mut other, "insert into u values (1, 'b')");
            proxy.accept().expect("listening again");
            assert_eq!(queued(&fixture), 1);
            assert!(deal(&fixture, "100"));
            assert_eq!(prepared(&fixture.right), [""; 0]);
            same(&fixture, "u");
        }
        resolve(&fixture);
        both_have(&fixture, "t", &["1|a", "3|new"]);
    }
}

/// Another table in this mode.
fn attach_other(fixture: &Fixture, mode: &str) {
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table u ({COLUMNS})"));
    }
    attach(fixture, "u", &format!(r#"{{"mode": "{mode}"}}"#));
}

#[test]
fn a_row_that_refers_to_one_that_is_prepared_waits_for_it() {
    let (fixture, proxy) = behind_proxy("atomic_refers");
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table c (id int primary key, t int references t)");
    }
    attach(&fixture, "c", ATOMIC);
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    proxy.strike(COMMIT, Strike::LoseRequest);
    run(&mut client, "insert into t values (2, 'b')");
    run(&mut fixture.left.client(), "insert into c values (1, 2)");
    both_have(&fixture, "c", &["1|2"]);
    both_have(&fixture, "t", &["1|a", "2|b"]);
    resolve(&fixture);
}

#[test]
fn a_request_to_cancel_ends_the_wait_for_the_second_phase_and_not_the_transaction() {
    let (fixture, proxy) = behind_proxy("atomic_cancel");
    for request in ["pg_cancel_backend", "pg_terminate_backend"] {
        let mut client = fixture.left.client();
        run(
            &mut client,
            "insert into t values (1, 'a') on conflict (id) do nothing",
        );
        run(
            &mut client,
            "set statement_timeout = '20s'; set pg_rowsync.delivery_timeout = '60s'",
        );
        let pid: i32 = client
            .query_one("select pg_backend_pid()", &[])
            .expect("a pid")
            .get(0);
        proxy.strike(COMMIT, Strike::Silence);
        let waiting = thread::spawn(move || {
            let done = client.batch_execute(&format!("update t set v = '{request}'"));
            (done, client)
        });
        await_until(SOON, "the silence", || proxy.has_struck());
        let start = Instant::now();
        fixture
            .left
            .query_one::<bool>(&format!("select {request}({pid})"));
        let (done, client) = waiting.join().expect("a session");
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{:?}",
            start.elapsed()
        );
        if request == "pg_cancel_backend" {
            done.expect("the local commit");
        }
        drop(client);
        proxy.cut();
        proxy.thaw();
        resolve(&fixture);
        both_have(&fixture, "t", &[&format!("1|{request}")]);
    }
}

#[test]
fn a_statement_timeout_does_not_count_for_the_second_phase() {
    let (fixture, proxy) = behind_proxy("atomic_timeout");
    let (mut client, notices) = fixture.left.client_with_notices();
    run(&mut client, "insert into t values (1, 'a')");
    run(
        &mut client,
        "set statement_timeout = '300ms'; set lock_timeout = '300ms'; \
         set pg_rowsync.delivery_timeout = '1500ms'",
    );
    proxy.strike(COMMIT, Strike::Silence);
    let start = Instant::now();
    run(&mut client, "update t set v = 'b'");
    assert!(
        start.elapsed() >= Duration::from_millis(1400),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(warnings(&notices).len(), 1);
    proxy.cut();
    proxy.thaw();
    resolve(&fixture);
    both_have(&fixture, "t", &["1|b"]);
}

/// What somebody else has prepared there keeps its locks until somebody ends it.
#[test]
fn a_change_that_meets_what_others_have_prepared_waits_and_is_not_marked_failed() {
    let (fixture, _proxy) = behind_proxy("atomic_others");
    attach_other(&fixture, "async");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t values (1, 'a'); insert into u values (1, 'a')",
    );
    run(&mut client, "set pg_rowsync.lock_timeout = '300ms'");
    let mut other = fixture.right.client();
    run(
        &mut other,
        "begin; update t set v = 'x'; update u set v = 'x'; prepare transaction 'others'",
    );
    refused(&mut client, "update t set v = 'b'", "55P03");
    assert_eq!(table(&fixture.left, "t"), ["1|a"]);
    // Direct at first, then by drains: as often as they like.
    run(&mut client, "update u set v = 'b'");
    run(&mut client, "update u set v = 'c'");
    assert_eq!(queued(&fixture), 2);
    for _ in 0..3 {
        assert!(!deal(&fixture, "100"));
    }
    let states = "select distinct status from sync_err_rec";
    assert_eq!(rows(&fixture.left, states), ["pending"]);
    run(&mut other, "rollback prepared 'others'");
    assert!(deal(&fixture, "100"));
    both_have(&fixture, "u", &["1|c"]);
    run(&mut client, "update t set v = 'b'");
    both_have(&fixture, "t", &["1|b"]);
    resolve(&fixture);
}

#[test]
fn a_postmaster_that_dies_during_the_second_phase_aborts_nothing_that_is_committed() {
    let (fixture, proxy) = from_its_own("orphaned");
    let left = fixture.left.cluster.clone();
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    proxy.strike(COMMIT, Strike::Silence);
    let waiting = thread::spawn(move || client.batch_execute("update t set v = 'b'"));
    await_until(SOON, "the silence", || proxy.has_struck());
    kill(left.pid().expect("a postmaster"), Signal::SIGKILL).expect("a signal");
    // The session may hear of its commit, or lose its connection; nothing else.
    let heard = waiting.join().expect("a session");
    let state = heard
        .err()
        .and_then(|error| error.code().map(|state| state.code().to_owned()));
    assert!(
        state.as_deref().is_none_or(|state| state == "57P01"),
        "{state:?}: {}",
        left.log()
    );
    await_until(SOON, "the others to end", || left.processes().is_empty());
    assert!(!left.log().contains("PANIC"), "{}", left.log());
    left.kill().expect("the end of the postmaster");
    left.start_again().expect("a start");
    proxy.cut();
    proxy.thaw();
    resolve(&fixture);
    both_have(&fixture, "t", &["1|b"]);
}

#[test]
fn a_transaction_that_is_asked_to_cancel_while_it_prepares_leaves_nothing() {
    let (fixture, proxy) = behind_proxy("atomic_cancel_first");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    let pid: i32 = client
        .query_one("select pg_backend_pid()", &[])
        .expect("a pid")
        .get(0);
    proxy.strike(PREPARE, Strike::Silence);
    let waiting = thread::spawn(move || {
        let error = refused(&mut client, "update t set v = 'b'", "57014");
        (error, client)
    });
    await_until(SOON, "the silence", || proxy.has_struck());
    await_until(SOON, "the end", || {
        fixture
            .left
            .query_one::<bool>(&format!("select pg_cancel_backend({pid})"));
        waiting.is_finished()
    });
    let (_, mut client) = waiting.join().expect("a session");
    proxy.cut();
    proxy.thaw();
    run(&mut client, "update t set v = 'c'");
    both_have(&fixture, "t", &["1|c"]);
    resolve(&fixture);
}

#[test]
fn the_worker_finishes_what_sessions_have_left() {
    let fixture = preloaded("atomic_worker", EAGER);
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, ATOMIC);
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    let nothing_left = || {
        prepared(&fixture.right).is_empty()
            && fixture
                .left
                .query_one::<i64>("select count(*) from sync_prepared")
                == 0
    };
    await_until(WORKING, "the worker to remove what is done", nothing_left);
    let counted = "select prepared, resolved from sync_status";
    assert_eq!(rows(&fixture.left, counted), ["1|0"]);
    proxy.strike(COMMIT, Strike::LoseRequest);
    run(&mut client, "insert into t values (2, 'b')");
    drop(client);
    await_until(WORKING, "the worker to commit", nothing_left);
    both_have(&fixture, "t", &["1|a", "2|b"]);
    let mut client = fixture.left.client();
    proxy.strike(PREPARE, Strike::LoseAnswer);
    let lost = connecting("insert into t values (3, 'c')");
    refused(&mut client, &lost, "08006");
    drop(client);
    await_until(WORKING, "the worker to roll back", nothing_left);
    both_have(&fixture, "t", &["1|a", "2|b"]);
    // The one of which nobody heard is not known to have been prepared.
    assert_eq!(rows(&fixture.left, counted), ["2|2"]);
    // A crash of all processes, with one of each.
    proxy.strike(COMMIT, Strike::Silence);
    let mut client = fixture.left.client();
    let waiting = thread::spawn(move || client.batch_execute("insert into t values (4, 'd')"));
    await_until(WORKING, "the silence", || proxy.has_struck());
    let decided = "select count(*) from sync_prepared";
    await_until(WORKING, "the decision", || {
        fixture.left.query_one::<i64>(decided) == 1
    });
    fixture.left.cluster.kill().expect("a kill");
    assert!(waiting.join().expect("a session").is_err());
    proxy.cut();
    proxy.thaw();
    fixture.left.cluster.start_again().expect("a start");
    await_until(WORKING, "the worker to commit after a crash", nothing_left);
    both_have(&fixture, "t", &["1|a", "2|b", "4|d"]);
}

#[test]
fn a_decision_outlives_a_server_that_leads_elsewhere_or_is_gone() {
    let (fixture, proxy) = behind_proxy("atomic_moved");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    proxy.strike(COMMIT, Strike::LoseRequest);
    run(&mut client, "insert into t values (2, 'b')");
    drop(client);
    let direct = fixture.right.cluster.port();
    fixture
        .left
        .exec(&format!("alter server dst options (set port '{direct}')"));
    let resolved = "select resolve_sync_prepared()";
    // It is there, whatever the way to it: it is committed, and shown no more.
    assert!(fixture.left.query_one::<bool>(resolved));
    both_have(&fixture, "t", &["1|a", "2|b"]);
    assert_eq!(prepared(&fixture.right), [""; 0]);
    fixture.left.exec(&format!(
        "alter server dst options (set port '{}')",
        proxy.port()
    ));
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (3, 'c')");
    proxy.strike(COMMIT, Strike::LoseRequest);
    run(&mut client, "insert into t values (4, 'd')");
    drop(client);
    fixture.left.exec("drop server dst cascade");
    assert!(!fixture.left.query_one::<bool>(resolved));
    let shown =
        "select server, decision, sqlstate, attempts > 0, place like '%port=%' from sync_prepared";
    assert_eq!(rows(&fixture.left, shown), ["dst|commit|42704|t|t"]);
    let gid: String = fixture.left.query_one("select gid from sync_prepared");
    fixture.right.exec(&format!("commit prepared '{gid}'"));
    fixture.left.exec_superuser("delete from sync_prepared");
    both_have(&fixture, "t", &["1|a", "2|b", "3|c", "4|d"]);
}

#[test]
fn transactions_of_others_and_of_other_histories_are_left_alone() {
    let fixture = one_way("atomic_foreign", COLUMNS, ATOMIC);
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    let own: String = fixture.left.query_one("select gid from sync_prepared");
    resolve(&fixture);
    let parts: Vec<&str> = own.split(':').collect();
    let [name, home, place, number, owner, _] = parts[..] else {
        panic!("{own}")
    };
    let [timeline, _, started] = place.split('/').collect::<Vec<_>>()[..] else {
        panic!("{own}")
    };
    let token = "0000000000000001";
    let foreign = format!("{name}:1.1:{place}:{number}:{owner}:{token}");
    let future =
        format!("{name}:{home}:{timeline}/FFFFFFFFFFFF/{started}:{number}:{owner}:{token}");
    let other_timeline = format!("{name}:{home}:77/1/{started}:{number}:{owner}:{token}");
    let aborted: i64 = {
        run(&mut client, "begin");
        let id = client.query_one("select pg_current_xact_id()::text::bigint", &[]);
        run(&mut client, "rollback");
        id.expect("a number").get(0)
    };
    let orphan = format!("{name}:{home}:{place}:{aborted}:{owner}:{token}");
    for (n, gid) in [&foreign, &future, &other_timeline, &orphan]
        .into_iter()
        .enumerate()
    {
        let id = 10 + n;
        fixture.right.exec(&format!(
            "begin; insert into t values ({id}, 'x'); prepare transaction '{gid}'"
        ));
    }
    assert!(
        !fixture
            .left
            .query_one::<bool>("select resolve_sync_prepared('dst')")
    );
    let mut left = prepared(&fixture.right);
    left.sort();
    let mut expected = vec![foreign.clone(), future.clone(), other_timeline.clone()];
    expected.sort();
    assert_eq!(left, expected);
    let shown = "select coalesce(decision, 'none'), sqlstate, message like '%cannot be decided%'
                   from sync_prepared order by gid";
    assert_eq!(rows(&fixture.left, shown), ["none|55000|t", "none|55000|t"]);
    for gid in &expected {
        fixture.right.exec(&format!("rollback prepared '{gid}'"));
    }
    resolve(&fixture);
}

#[test]
fn sessions_that_write_the_same_rows_at_once_stay_in_order() {
    let fixture = one_way("atomic_busy", COLUMNS, ATOMIC);
    fixture
        .left
        .exec("insert into t select n, '0' from generate_series(1, 3) n");
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let mut client: Client = fixture.left.client();
            thread::spawn(move || {
                for turn in 0..40 {
                    let id = 1 + (writer + turn) % 3;
                    let sql = match turn % 4 {
                        0 => format!("delete from t where id = {id}"),
                        _ => format!(
                            "insert into t values ({id}, '{writer} {turn}')
                               on conflict (id) do update set v = excluded.v"
                        ),
                    };
                    run(&mut client, &sql);
                }
            })
        })
        .collect();
    writers
        .into_iter()
        .for_each(|writer| writer.join().expect("a writer"));
    same(&fixture, "t");
    resolve(&fixture);
    same(&fixture, "t");
}

#[test]
fn a_serializable_transaction_that_fails_at_its_end_leaves_nothing() {
    let fixture = one_way("atomic_serializable", COLUMNS, ATOMIC);
    fixture.left.exec("insert into t values (1, 'a'), (2, 'a')");
    let mut one = fixture.left.client();
    let mut two = fixture.left.client();
    for client in [&mut one, &mut two] {
        run(
            client,
            "begin isolation level serializable; select count(*) from t where v = 'a'",
        );
    }
    run(&mut one, "update t set v = 'b' where id = 1");
    run(&mut two, "update t set v = 'b' where id = 2");
    run(&mut one, "commit");
    refused(&mut two, "commit", "40001");
    both_have(&fixture, "t", &["1|b", "2|a"]);
    assert_eq!(prepared(&fixture.right), [""; 0]);
    run(
        &mut two,
        "rollback; begin isolation level repeatable read; update t set v = 'c'; commit",
    );
    both_have(&fixture, "t", &["1|c", "2|c"]);
    resolve(&fixture);
}

/// A pooler hands the second phase to another backend than the first one, which may be.
#[test]
fn poolers_of_both_modes_carry_both_phases() {
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let fixture = Fixture::new(&format!("atomic_pooled_{mode:?}").to_lowercase());
        let settings = [
            IGNORE_OPTIONS,
            ("default_pool_size", "2"),
            ("query_wait_timeout", "30"),
        ];
        let pooler = Pooler::start(&[&fixture.right], mode, &settings).expect("a pooler");
        link_with(&fixture, "dst", pooler.port(), &fixture.right.password);
        mirror(&fixture, "t", COLUMNS, ATOMIC);
        let sessions = if mode == PoolMode::Session { 1 } else { 6 };
        let writers: Vec<_> = (0..sessions)
            .map(|number| {
                let mut client = fixture.left.client();
                thread::spawn(move || {
                    for row in 0..10 {
                        let id = 100 * number + row;
                        run(&mut client, &format!("insert into t values ({id}, 'a')"));
                        run(
                            &mut client,
                            &format!("update t set v = 'b' where id = {id}"),
                        );
                    }
                })
            })
            .collect();
        writers
            .into_iter()
            .for_each(|one| one.join().expect("a writer"));
        assert_eq!(same(&fixture, "t").len(), 10 * sessions);
        refused(
            &mut fixture.left.client(),
            "insert into t values (1000, repeat('x', 10)); select 1/0",
            "22012",
        );
        resolve(&fixture);
    }
}

/// Each owner's changes are a transaction of their own there: all of them are prepared, or none stays.
#[test]
fn the_tables_of_several_owners_are_one_transaction() {
    let fixture = one_way("atomic_owners", COLUMNS, ATOMIC);
    let left = &fixture.left.user;
    let right = &fixture.right;
    let other = Role::create(&fixture.left, "other", "");
    right.exec(&format!("create table mine ({COLUMNS})"));
    fixture.left.exec_superuser(&format!(
        "grant usage on foreign server dst to {0};
         create user mapping for {0} server dst options (user '{1}', password '{2}');
         create table {left}.mine ({COLUMNS}); alter table {left}.mine owner to {0};
         select attach_sync('{left}.mine', 'dst', '{1}.mine', '{ATOMIC}')",
        other.name, right.user, right.password
    ));
    let mut client = fixture.left.superuser();
    run(
        &mut client,
        &format!(
            "set search_path = {left}, public; insert into t values (1, 'a'); insert into mine values (1, 'a')"
        ),
    );
    run(
        &mut client,
        "begin; insert into t values (2, 'b'); insert into mine values (2, 'b'); commit",
    );
    both_have(&fixture, "t", &["1|a", "2|b"]);
    assert_eq!(table(&fixture.right, "mine"), ["1|a", "2|b"]);
    // The second owner's part is refused.
    right.exec("alter table mine add check (v <> 'c')");
    refused(
        &mut client,
        "begin; insert into t values (3, 'c'); insert into mine values (3, 'c'); commit",
        "23514",
    );
    run(&mut client, "rollback");
    assert_eq!(prepared(&fixture.right), [""; 0]);
    both_have(&fixture, "t", &["1|a", "2|b"]);
    assert_eq!(table(&fixture.right, "mine"), ["1|a", "2|b"]);
    resolve(&fixture);
}

/// A table `o` of another owner's, in mode `atomic`, which goes over a login of its own; `t` is in mode `queue`.
fn with_another_owner(label: &str) -> (Fixture, Proxy, Role, Role) {
    let fixture = Fixture::new(label);
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, r#"{"mode": "queue"}"#);
    let local = Role::create(&fixture.left, "other", "");
    let remote = Role::create(&fixture.right, "other", "");
    let left = &fixture.left.user;
    let right = &fixture.right.user;
    fixture.right.exec(&format!(
        "create table o ({COLUMNS}); grant all on o to {}",
        remote.name
    ));
    fixture.left.exec_superuser(&format!(
        "grant usage on foreign server dst to {0};
         create user mapping for {0} server dst options (user '{1}', password '{1}');
         create table {left}.o ({COLUMNS}); alter table {left}.o owner to {0};
         select attach_sync('{left}.o', 'dst', '{right}.o', '{ATOMIC}')",
        local.name, remote.name
    ));
    (fixture, proxy, local, remote)
}

#[test]
fn an_owner_whose_decision_is_stuck_keeps_no_other_from_draining() {
    let (fixture, proxy, _local, remote) = with_another_owner("atomic_apart");
    let left = &fixture.left.user;
    let mut client = fixture.left.superuser();
    run(&mut client, &format!("set search_path = {left}, public"));
    run(&mut client, "insert into o values (1, 'a')");
    proxy.strike(COMMIT, Strike::LoseRequest);
    run(&mut client, "insert into o values (2, 'b')");
    assert_eq!(prepared(&fixture.right).len(), 1);
    fixture
        .right
        .exec_superuser(&format!("alter role {} password 'another'", remote.name));
    drop(client);
    fixture
        .left
        .exec("insert into t values (1, 'a'); insert into t values (2, 'b')");
    for _ in 0..3 {
        deal(&fixture, "100");
    }
    both_have(&fixture, "t", &["1|a", "2|b"]);
    assert_eq!(queued(&fixture), 0);
    let blocked = "select blocked is null, consecutive_failures from sync_status";
    assert_eq!(rows(&fixture.left, blocked), ["t|0"]);
    assert_eq!(prepared(&fixture.right).len(), 1);
    fixture
        .right
        .exec_superuser(&format!("alter role {0} password '{0}'", remote.name));
    resolve(&fixture);
    both_have(&fixture, "o", &["1|a", "2|b"]);
}

#[test]
fn a_record_of_a_row_that_another_owner_has_prepared_does_not_pass_it() {
    let (fixture, proxy, _local, remote) = with_another_owner("atomic_handed");
    let left = &fixture.left.user;
    let right = &fixture.right.user;
    let mut client = fixture.left.superuser();
    run(&mut client, &format!("set search_path = {left}, public"));
    proxy.strike(COMMIT, Strike::LoseRequest);
    run(&mut client, "insert into o values (2, 'b')");
    fixture
        .right
        .exec_superuser(&format!("alter role {} password 'another'", remote.name));
    run(
        &mut client,
        &format!(
            r#"alter table o owner to {left};
               select attach_sync('o', 'dst', '{right}.o', '{{"mode": "queue"}}')"#
        ),
    );
    drop(client);
    fixture.left.exec(
        "delete from o where id = 2; insert into o values (3, 'c'); insert into t values (1, 'a')",
    );
    for _ in 0..3 {
        assert!(!deal(&fixture, "100"));
    }
    // What meets it waits, the rest is there.
    assert_eq!(table(&fixture.right, "o"), ["3|c"]);
    both_have(&fixture, "t", &["1|a"]);
    let left_over = "select table_name, op from sync_err_rec";
    assert_eq!(rows(&fixture.left, left_over), ["o|DELETE"]);
    fixture
        .right
        .exec_superuser(&format!("alter role {0} password '{0}'", remote.name));
    assert!(deal(&fixture, "100"));
    assert_eq!(queued(&fixture), 0);
    resolve(&fixture);
    both_have(&fixture, "o", &["3|c"]);
}

/// All of the server's places for prepared transactions are taken: as if it could not be reached.
#[test]
fn a_server_without_a_place_for_it_is_tried_again_later() {
    let settings = [TEST_SETTINGS, &[("max_prepared_transactions", "1")]].concat();
    let right = Arc::new(Cluster::start_with("oneplace", &settings).expect("a cluster"));
    let create = |cluster, name: &str| Side::create(cluster, name).expect("a database");
    let fixture = Fixture {
        left: create(clusters().0, "local_atomic_places"),
        right: create(&right, "remote_atomic_places"),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, ATOMIC);
    let mut holder = fixture.right.client();
    run(
        &mut holder,
        "begin; insert into t values (9, 'x'); prepare transaction 'taken'",
    );
    let mut client = fixture.left.client();
    refused(&mut client, "insert into t values (1, 'a')", "53200");
    assert_eq!(table(&fixture.left, "t"), [""; 0]);
    run(&mut holder, "rollback prepared 'taken'");
    run(&mut client, "insert into t values (1, 'a')");
    both_have(&fixture, "t", &["1|a"]);
    resolve(&fixture);
}

/// The target is promoted from a standby between the two phases: what was prepared is there, and is committed.
#[test]
fn a_target_that_fails_over_between_the_phases_has_the_transaction() {
    let right = Arc::new(Cluster::start("failover").expect("a cluster"));
    let create = |cluster, name: &str| Side::create(cluster, name).expect("a database");
    let fixture = Fixture {
        left: create(clusters().0, "local_atomic_failover"),
        right: create(&right, "remote_atomic_failover"),
    };
    let proxy = Proxy::start(right.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, ATOMIC);
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    proxy.strike(COMMIT, Strike::LoseRequest);
    run(&mut client, "insert into t values (2, 'b')");
    assert_eq!(prepared(&fixture.right).len(), 1);
    assert_eq!(table(&fixture.left, "t"), ["1|a", "2|b"]);
    right.stop(Shutdown::Fast).expect("a stop");
    std::fs::write(right.dir().join("data").join("standby.signal"), "").expect("a file");
    right.start_again().expect("a standby");
    let left: bool = fixture.left.query_one("select resolve_sync_prepared()");
    assert!(!left, "a standby commits nothing");
    fixture.right.exec_superuser("select pg_promote()");
    resolve(&fixture);
    both_have(&fixture, "t", &["1|a", "2|b"]);
}

/// The source is promoted from a standby between the two phases: on its new timeline it decides as before, of
/// what has a decision and of what has none.
#[test]
fn a_source_that_fails_over_between_the_phases_decides_as_before() {
    let (fixture, proxy) = from_its_own("promoted");
    let left = fixture.left.cluster.clone();
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    proxy.strike(COMMIT, Strike::LoseRequest);
    run(&mut client, "insert into t values (2, 'b')");
    drop(client);
    let mut client = fixture.left.client();
    proxy.strike(PREPARE, Strike::LoseAnswer);
    let lost = connecting("insert into t values (3, 'c')");
    refused(&mut client, &lost, "08006");
    drop(client);
    assert_eq!(prepared(&fixture.right).len(), 2);
    left.stop(Shutdown::Fast).expect("a stop");
    std::fs::write(left.dir().join("data").join("standby.signal"), "").expect("a file");
    left.start_again().expect("a standby");
    fixture.left.exec_superuser("select pg_promote()");
    resolve(&fixture);
    both_have(&fixture, "t", &["1|a", "2|b"]);
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (4, 'd')");
    both_have(&fixture, "t", &["1|a", "2|b", "4|d"]);
    resolve(&fixture);
}

/// The source is set back to an earlier time, and goes on from there under the same timeline: what it lost had
/// been decided.
#[test]
fn what_was_decided_after_the_backup_that_was_restored_is_a_persons_to_say() {
    let (fixture, proxy) = from_its_own("restored");
    let left = fixture.left.cluster.clone();
    run(&mut fixture.left.client(), "insert into t values (1, 'a')");
    resolve(&fixture);
    let data = left.dir().join("data");
    let backup = left.dir().join("backup");
    let copy = |from: &Path, to: &Path| {
        let done = Command::new("cp").arg("-a").args([from, to]).status();
        assert!(done.expect("cp").success());
    };
    left.stop(Shutdown::Fast).expect("a stop");
    copy(&data, &backup);
    left.start_again().expect("a start");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (2, 'b')");
    proxy.strike(COMMIT, Strike::LoseRequest);
    run(&mut client, "insert into t values (3, 'c')");
    drop(client);
    left.stop(Shutdown::Immediate).expect("a stop");
    std::fs::remove_dir_all(&data).expect("no data");
    copy(&backup, &data);
    left.start_again().expect("a start");
    // It comes to that place once more, before it looks as well as later.
    let write = |table: &str| {
        let rows = "select g, repeat('x', 1000) from generate_series(1, 2000) g";
        fixture
            .left
            .exec(&format!("create table {table} as {rows}"));
    };
    write("u");
    let shown = "select server, decision, sqlstate from sync_prepared";
    let look = || {
        fixture
            .left
            .query_one::<bool>("select resolve_sync_prepared()")
    };
    assert!(!look());
    assert_eq!(rows(&fixture.left, shown), ["dst|~|55000"]);
    write("w");
    left.restart().expect("a restart");
    assert!(!look());
    assert_eq!(rows(&fixture.left, shown), ["dst|~|55000"]);
    let gid: String = fixture.left.query_one("select gid from sync_prepared");
    fixture.right.exec(&format!("rollback prepared '{gid}'"));
    resolve(&fixture);
    assert_eq!(table(&fixture.left, "t"), ["1|a"]);
    assert_eq!(table(&fixture.right, "t"), ["1|a", "2|b"]);
}

/// The decisions go with the extension: one that is made anew does not know that they were made.
#[test]
fn what_was_decided_before_the_extension_was_made_anew_is_a_persons_to_say() {
    let (fixture, proxy) = behind_proxy("atomic_anew");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    proxy.strike(COMMIT, Strike::LoseRequest);
    run(&mut client, "insert into t values (2, 'b')");
    drop(client);
    fixture.left.exec_superuser(&format!(
        "drop extension pg_rowsync cascade; create extension pg_rowsync schema public;
         grant usage on foreign data wrapper pg_rowsync to {}",
        fixture.left.user
    ));
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    attach(&fixture, "t", ATOMIC);
    let left = prepared(&fixture.right);
    assert_eq!(left.len(), 1);
    fixture
        .left
        .exec_superuser("select resolve_sync_prepared()");
    assert_eq!(prepared(&fixture.right), left);
    let shown = "select server, decision, sqlstate from sync_prepared";
    assert_eq!(rows(&fixture.left, shown), ["dst|~|55000"]);
    // What has come since is decided as ever.
    proxy.strike(COMMIT, Strike::LoseRequest);
    run(&mut fixture.left.client(), "insert into t values (3, 'c')");
    let gid = &left[0];
    fixture.right.exec(&format!("commit prepared '{gid}'"));
    resolve(&fixture);
    both_have(&fixture, "t", &["1|a", "2|b", "3|c"]);
}

/// The mapping leads to another account, which may not finish what the old one has prepared.
#[test]
fn a_decision_outlives_a_mapping_that_leads_to_another_account() {
    let (fixture, proxy) = behind_proxy("atomic_mapped");
    let other = Role::create(&fixture.right, "other", "");
    let mut client = fixture.left.client();
    proxy.strike(COMMIT, Strike::LoseRequest);
    run(&mut client, "insert into t values (1, 'a')");
    drop(client);
    let map_to = |user: &str, password: &str| {
        fixture.left.exec(&format!(
            "alter user mapping for current_user server dst
               options (set user '{user}', set password '{password}')"
        ));
    };
    map_to(&other.name, &other.name);
    let resolved = "select resolve_sync_prepared()";
    assert!(!fixture.left.query_one::<bool>(resolved));
    let shown =
        "select server, decision, sqlstate, message like '%leads elsewhere%' from sync_prepared";
    assert_eq!(rows(&fixture.left, shown), ["dst|commit|55000|t"]);
    assert_eq!(prepared(&fixture.right).len(), 1);
    map_to(&fixture.right.user, &fixture.right.password);
    resolve(&fixture);
    both_have(&fixture, "t", &["1|a"]);
}

/// Committed here and only prepared there: whoever waits for what was committed waits for its second phase.
#[test]
fn what_waits_for_its_second_phase_has_not_arrived() {
    let (fixture, proxy) = behind_proxy("atomic_arrives");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    proxy.strike(COMMIT, Strike::LoseRequest);
    run(&mut client, "insert into t values (2, 'b')");
    assert_eq!(prepared(&fixture.right).len(), 1);
    drop(client);
    proxy.refuse();
    let (mut waiter, notices) = superuser_with_notices(&fixture.left);
    for call in ["wait_sync('dst', '300 ms')", "wait_sync(null, '0')"] {
        assert_eq!(query(&mut waiter, &format!("select {call}")), ["f"]);
    }
    let reported = warnings(&notices);
    assert!(
        reported.iter().any(|reported| {
            reported.code().code() == "08001"
                && reported.message().contains("only prepared on server")
        }),
        "{reported:?}"
    );
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    proxy.accept().expect("listening again");
    // There is no worker: who waits sees to it.
    assert_eq!(
        query(&mut waiter, "select wait_sync('dst', '1 min')"),
        ["t"]
    );
    both_have(&fixture, "t", &["1|a", "2|b"]);
    assert_eq!(prepared(&fixture.right), [""; 0]);
    // Rows of what is finished are left for later, and nobody waits for them.
    assert!(!rows(&fixture.left, "select gid from sync_prepared").is_empty());
    let mut other = fixture.left.client();
    assert_eq!(query(&mut other, "select wait_sync('dst', '0')"), ["t"]);
    resolve(&fixture);
}

/// A session that is about to send its COMMIT PREPARED is waited for, and what is committed later is not.
#[test]
fn a_session_in_its_second_phase_is_waited_for() {
    let (fixture, proxy) = behind_proxy("atomic_arriving");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    run(&mut client, "set pg_rowsync.delivery_timeout = '60s'");
    proxy.strike(COMMIT, Strike::Silence);
    let session = thread::spawn(move || client.batch_execute("update t set v = 'b'"));
    await_until(SOON, "the silence", || proxy.has_struck());
    await_until(SOON, "the local commit", || {
        table(&fixture.left, "t") == ["1|b"]
    });
    let (mut waiter, notices) = superuser_with_notices(&fixture.left);
    assert_eq!(
        query(&mut waiter, "select wait_sync('dst', '300 ms')"),
        ["f"]
    );
    assert!(
        warnings(&notices)
            .iter()
            .all(|reported| !reported.message().contains("prepared"))
    );
    let waiting = thread::spawn(move || query(&mut waiter, "select wait_sync('dst', '1 min')"));
    proxy.cut();
    proxy.thaw();
    session.join().expect("a session").expect("a commit");
    assert_eq!(waiting.join().expect("an answer"), ["t"]);
    both_have(&fixture, "t", &["1|b"]);
    resolve(&fixture);
}

/// What nobody here can decide may have been committed here: it is waited for until a person has decided.
#[test]
fn what_a_person_has_to_decide_has_not_arrived() {
    let fixture = one_way("atomic_arrives_undecided", COLUMNS, ATOMIC);
    let gid = of_the_future(&fixture);
    fixture.right.exec(&format!(
        "begin; insert into t values (2, 'x'); prepare transaction '{gid}'"
    ));
    assert!(
        !fixture
            .left
            .query_one::<bool>("select resolve_sync_prepared('dst')")
    );
    let (mut waiter, notices) = superuser_with_notices(&fixture.left);
    assert_eq!(
        query(&mut waiter, "select wait_sync('dst', '50 ms')"),
        ["f"]
    );
    let reported = warnings(&notices);
    assert!(
        reported.iter().any(|reported| {
            reported.code().code() == "55000" && reported.message().contains("cannot be decided")
        }),
        "{reported:?}"
    );
    fixture.right.exec(&format!("rollback prepared '{gid}'"));
    resolve(&fixture);
    assert_eq!(query(&mut waiter, "select wait_sync('dst', '0')"), ["t"]);
}

/// The name of a transaction of this database, of a position that it has not come to.
fn of_the_future(fixture: &Fixture) -> String {
    fixture.left.exec("insert into t values (1, 'a')");
    let own: String = fixture.left.query_one("select gid from sync_prepared");
    resolve(fixture);
    let parts: Vec<&str> = own.split(':').collect();
    let [name, home, place, number, owner, _] = parts[..] else {
        panic!("{own}")
    };
    let [timeline, _, started] = place.split('/').collect::<Vec<_>>()[..] else {
        panic!("{own}")
    };
    format!("{name}:{home}:{timeline}/FFFFFFFFFFFF/{started}:{number}:{owner}:0000000000000001")
}

/// What `sync_prepared` says of the one transaction that is left, but for its name.
const SHOWN: &str = "select server, decision, sqlstate, attempts > 0 from sync_prepared";

/// Somebody rolls back there what was decided to be committed: that is told, and not taken for finished.
#[test]
fn what_the_server_has_not_committed_is_not_taken_for_finished() {
    let (fixture, proxy) = behind_proxy("atomic_lost");
    let mut listener = fixture.left.client();
    run(&mut listener, "listen pg_rowsync");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a'), (2, 'a')");
    proxy.strike(COMMIT, Strike::LoseRequest);
    run(&mut client, "update t set v = 'lost' where id = 1");
    drop(client);
    let gid = prepared(&fixture.right).remove(0);
    fixture.right.exec(&format!("rollback prepared '{gid}'"));
    let resolved = "select resolve_sync_prepared()";
    for _ in 0..2 {
        assert!(!fixture.left.query_one::<bool>(resolved));
        assert_eq!(rows(&fixture.left, SHOWN), ["dst|commit|55000|t"]);
    }
    let said = "select message like '%was rolled back there%' from sync_prepared";
    assert_eq!(rows(&fixture.left, said), ["t"]);
    assert_eq!(notified(&mut listener), ["dst|stuck|true"]);
    // It is waited for, and nothing passes it.
    let (mut waiter, notices) = superuser_with_notices(&fixture.left);
    assert_eq!(
        query(&mut waiter, "select wait_sync('dst', '200 ms')"),
        ["f"]
    );
    let reported = warnings(&notices);
    assert!(
        reported
            .iter()
            .any(|reported| reported.code().code() == "55000"),
        "{reported:?}"
    );
    let mut other = fixture.left.client();
    let error = refused(&mut other, "update t set v = 'b' where id = 1", "55000");
    assert!(error.message().contains("has lost"), "{error:?}");
    run(&mut other, "update t set v = 'b' where id = 2");
    assert_eq!(table(&fixture.right, "t"), ["1|a", "2|b"]);
    // A person decides: here, that this side is right.
    assert_eq!(
        query(
            &mut other,
            "select difference, key from verify_sync('t', 'dst')"
        ),
        [r#"differs|{"id": 1}"#]
    );
    fixture
        .left
        .exec_superuser("delete from sync_prepared where attempts > 0");
    run(&mut other, "select repair_sync('t', 'dst')");
    both_have(&fixture, "t", &["1|lost", "2|b"]);
    resolve(&fixture);
}

/// The session hears itself that what it has decided is not there any more.
#[test]
fn a_session_that_finds_its_transaction_gone_says_so() {
    let (fixture, proxy) = behind_proxy("atomic_gone");
    let (mut client, notices) = fixture.left.client_with_notices();
    run(&mut client, "insert into t values (1, 'a')");
    proxy.set_delay(Duration::from_millis(1500));
    let session = thread::spawn(move || {
        run(&mut client, "update t set v = 'b'");
        client
    });
    await_until(SOON, "the local commit", || {
        table(&fixture.left, "t") == ["1|b"]
    });
    let gid = prepared(&fixture.right).remove(0);
    fixture.right.exec(&format!("rollback prepared '{gid}'"));
    let _client = session.join().expect("a session");
    proxy.set_delay(Duration::ZERO);
    let said = warnings(&notices);
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(said[0].code().code(), "42704");
    assert!(
        !fixture
            .left
            .query_one::<bool>("select resolve_sync_prepared()")
    );
    assert_eq!(rows(&fixture.left, SHOWN), ["dst|commit|55000|t"]);
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    fixture.left.exec_superuser("delete from sync_prepared");
}

/// Copies a cluster's files.
fn copy_files(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(done.expect("cp").success());
}

/// The target is set back to an earlier time: it has neither what was prepared nor what was committed.
#[test]
fn a_target_that_was_restored_has_not_finished_what_it_does_not_know() {
    let right = Arc::new(Cluster::start("setback").expect("a cluster"));
    let create = |cluster, name: &str| Side::create(cluster, name).expect("a database");
    let fixture = Fixture {
        left: create(clusters().0, "local_atomic_setback"),
        right: create(&right, "remote_atomic_setback"),
    };
    let proxy = Proxy::start(right.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, ATOMIC);
    run(&mut fixture.left.client(), "insert into t values (1, 'a')");
    resolve(&fixture);
    let data = right.dir().join("data");
    let backup = right.dir().join("backup");
    right.stop(Shutdown::Fast).expect("a stop");
    copy_files(&data, &backup);
    right.start_again().expect("a start");
    run(
        &mut fixture.left.client(),
        "insert into t values (2, 'committed')",
    );
    proxy.strike(COMMIT, Strike::LoseRequest);
    run(
        &mut fixture.left.client(),
        "insert into t values (3, 'prepared')",
    );
    assert_eq!(prepared(&fixture.right).len(), 1);
    right.stop(Shutdown::Immediate).expect("a stop");
    std::fs::remove_dir_all(&data).expect("no data");
    copy_files(&backup, &data);
    right.start_again().expect("a start");
    proxy.cut();
    assert!(
        !fixture
            .left
            .query_one::<bool>("select resolve_sync_prepared()")
    );
    let both = ["dst|commit|55000|t", "dst|commit|55000|t"];
    assert_eq!(rows(&fixture.left, SHOWN), both);
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    fixture.left.exec_superuser("delete from sync_prepared");
}

/// A standby that takes the target's place may not have what was committed there, and may give its number again:
/// what it says of that number is no answer.
#[test]
fn a_target_of_another_timeline_is_not_believed_to_have_committed() {
    let right = Arc::new(Cluster::start("timeline").expect("a cluster"));
    let create = |cluster, name: &str| Side::create(cluster, name).expect("a database");
    let fixture = Fixture {
        left: create(clusters().0, "local_atomic_timeline"),
        right: create(&right, "remote_atomic_timeline"),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, ATOMIC);
    run(&mut fixture.left.client(), "insert into t values (1, 'a')");
    // Started again, it is the same.
    right.restart().expect("a restart");
    resolve(&fixture);
    run(&mut fixture.left.client(), "insert into t values (2, 'b')");
    right.stop(Shutdown::Fast).expect("a stop");
    std::fs::write(right.dir().join("data").join("standby.signal"), "").expect("a file");
    right.start_again().expect("a standby");
    fixture.right.exec_superuser("select pg_promote()");
    assert!(
        !fixture
            .left
            .query_one::<bool>("select resolve_sync_prepared()")
    );
    assert_eq!(rows(&fixture.left, SHOWN), ["dst|commit|55000|t"]);
    both_have(&fixture, "t", &["1|a", "2|b"]);
    fixture.left.exec_superuser("delete from sync_prepared");
}

/// Files of an earlier time, under the same timeline and without the launcher: where this run of the server began
/// is known after a checkpoint too, or nothing is decided.
#[test]
fn a_checkpoint_after_a_restore_makes_nobody_decide_what_is_not_known() {
    for (label, how) in [("cold", Shutdown::Fast), ("warm", Shutdown::Immediate)] {
        let (fixture, proxy) = from_its_own(label);
        let left = fixture.left.cluster.clone();
        run(&mut fixture.left.client(), "insert into t values (1, 'a')");
        resolve(&fixture);
        let data = left.dir().join("data");
        let backup = left.dir().join("backup");
        left.stop(how).expect("a stop");
        copy_files(&data, &backup);
        left.start_again().expect("a start");
        let mut client = fixture.left.client();
        run(&mut client, "insert into t values (2, 'b')");
        proxy.strike(COMMIT, Strike::LoseRequest);
        run(&mut client, "insert into t values (3, 'c')");
        drop(client);
        left.stop(Shutdown::Immediate).expect("a stop");
        std::fs::remove_dir_all(&data).expect("no data");
        copy_files(&backup, &data);
        left.start_again().expect("a start");
        go_on(&fixture);
        assert!(
            !fixture
                .left
                .query_one::<bool>("select resolve_sync_prepared()")
        );
        let shown = "select server, decision, sqlstate from sync_prepared";
        assert_eq!(rows(&fixture.left, shown), ["dst|~|55000"], "{label}");
        let gid = prepared(&fixture.right).remove(0);
        fixture.right.exec(&format!("commit prepared '{gid}'"));
        resolve(&fixture);
        assert_eq!(table(&fixture.right, "t"), ["1|a", "2|b", "3|c"]);
    }
}

/// The log goes on, past where it has been before, and the next run of the server would begin there.
fn go_on(fixture: &Fixture) {
    let rows = "select g, repeat('x', 1000) from generate_series(1, 2000) g";
    fixture
        .left
        .exec(&format!("create table filler as {rows}; drop table filler"));
    fixture.left.exec_superuser("checkpoint");
    fixture.left.exec_superuser("checkpoint");
}

/// Without the launcher, and without a restore: what a crash has left is decided, whenever it is looked at.
#[test]
fn a_start_after_a_crash_decides_what_was_left_after_any_checkpoint() {
    let (fixture, proxy) = from_its_own("crashed");
    let left = fixture.left.cluster.clone();
    run(&mut fixture.left.client(), "insert into t values (1, 'a')");
    let leave = |value: &str| {
        proxy.strike(PREPARE, Strike::LoseAnswer);
        let mut client = fixture.left.client();
        let lost = connecting(&format!("insert into t values (2, '{value}')"));
        refused(&mut client, &lost, "08006");
        assert_eq!(prepared(&fixture.right).len(), 1);
    };
    leave("crash");
    left.stop(Shutdown::Immediate).expect("a stop");
    left.start_again().expect("a start");
    go_on(&fixture);
    resolve(&fixture);
    both_have(&fixture, "t", &["1|a"]);
    // After an orderly stop, before the first checkpoint.
    leave("stop");
    left.stop(Shutdown::Fast).expect("a stop");
    thread::sleep(Duration::from_millis(1100));
    left.start_again().expect("a start");
    resolve(&fixture);
    both_have(&fixture, "t", &["1|a"]);
}

/// The launcher knows where this run of the server began, and a crash of a session changes nothing of it.
#[test]
fn a_session_that_crashes_after_a_restore_makes_nobody_decide_what_is_not_known() {
    let fixture = preloaded("atomic_reinit", EAGER);
    let left = fixture.left.cluster.clone();
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, ATOMIC);
    run(&mut fixture.left.client(), "insert into t values (1, 'a')");
    let data = left.dir().join("data");
    let backup = left.dir().join("backup");
    left.stop(Shutdown::Fast).expect("a stop");
    copy_files(&data, &backup);
    left.start_again().expect("a start");
    // Not a byte passes: the worker cannot finish it either.
    proxy.strike(COMMIT, Strike::Silence);
    let mut client = fixture.left.client();
    let session = thread::spawn(move || client.batch_execute("insert into t values (2, 'b')"));
    await_until(WORKING, "the silence", || proxy.has_struck());
    left.stop(Shutdown::Immediate).expect("a stop");
    assert!(session.join().expect("a session").is_err());
    proxy.refuse();
    proxy.cut();
    proxy.thaw();
    assert_eq!(prepared(&fixture.right).len(), 1);
    std::fs::remove_dir_all(&data).expect("no data");
    copy_files(&backup, &data);
    left.start_again().expect("a start");
    go_on(&fixture);
    let mut client = fixture.left.client();
    let pid: i32 = client
        .query_one("select pg_backend_pid()", &[])
        .expect("a pid")
        .get(0);
    kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).expect("a signal");
    await_until(WORKING, "the others to be back", || {
        fixture
            .left
            .connect_superuser()
            .is_ok_and(|mut client| client.batch_execute("select 1").is_ok())
    });
    go_on(&fixture);
    proxy.accept().expect("listening again");
    let shown = "select server, decision, sqlstate from sync_prepared where decision is null";
    await_until(WORKING, "the worker to look", || {
        prepared(&fixture.right).is_empty() || rows(&fixture.left, shown) == ["dst|~|55000"]
    });
    assert_eq!(prepared(&fixture.right).len(), 1);
    fixture.right.exec(&format!(
        "rollback prepared '{}'",
        prepared(&fixture.right)[0]
    ));
}

/// What another server has committed in the same transaction makes nobody deaf in the second phase.
#[test]
fn a_request_to_cancel_ends_the_wait_after_another_server_has_committed() {
    let (fixture, proxy) = behind_proxy("atomic_cancel_several");
    link_with(
        &fixture,
        "also",
        fixture.right.cluster.port(),
        &fixture.right.password,
    );
    fixture.right.exec(&format!("create table s ({COLUMNS})"));
    fixture.left.exec(&format!(
        r#"create table s ({COLUMNS});
           select attach_sync('s', 'also', '{}.s', '{{"mode": "sync"}}')"#,
        fixture.right.user
    ));
    for (id, request) in [(1, "pg_cancel_backend"), (2, "pg_terminate_backend")] {
        let mut client = fixture.left.client();
        run(&mut client, "set pg_rowsync.delivery_timeout = '60s'");
        let pid: i32 = client
            .query_one("select pg_backend_pid()", &[])
            .expect("a pid")
            .get(0);
        proxy.strike(COMMIT, Strike::Silence);
        let waiting = thread::spawn(move || {
            client.batch_execute(&format!(
                "begin; insert into s values ({id}, 'a'); insert into t values ({id}, 'a'); commit"
            ))
        });
        await_until(SOON, "the silence", || proxy.has_struck());
        let start = Instant::now();
        fixture
            .left
            .query_one::<bool>(&format!("select {request}({pid})"));
        let done = waiting.join().expect("a session");
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{request}: {:?}",
            start.elapsed()
        );
        if request == "pg_cancel_backend" {
            done.expect("the local commit");
        }
        proxy.cut();
        proxy.thaw();
    }
    resolve(&fixture);
    both_have(&fixture, "t", &["1|a", "2|a"]);
    both_have(&fixture, "s", &["1|a", "2|a"]);
}

/// A database whose objects are those of 0.1.0 has no room for what the server knows a transaction by: there, what
/// is not prepared any more counts as committed, until the objects are updated.
#[test]
fn with_the_objects_of_the_first_version_all_goes_on_as_before() {
    let (fixture, proxy) = behind_proxy("atomic_first_objects");
    fixture.left.exec_superuser(&format!(
        "drop extension pg_rowsync cascade; create extension pg_rowsync schema public version '0.1.0';
         grant usage on foreign data wrapper pg_rowsync to {}",
        fixture.left.user
    ));
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    attach(&fixture, "t", ATOMIC);
    let leave = |client: &mut Client, id: i32| {
        proxy.strike(COMMIT, Strike::LoseRequest);
        run(client, &format!("insert into t values ({id}, 'a')"));
        assert_eq!(prepared(&fixture.right).len(), 1);
    };
    let mut client = fixture.left.client();
    leave(&mut client, 1);
    assert_eq!(
        query(&mut client, "select wait_sync('dst', '1 min')"),
        ["t"]
    );
    leave(&mut client, 2);
    let compared = "select count(*) from verify_sync('t', 'dst')";
    assert_eq!(query(&mut client, compared), ["0"]);
    resolve(&fixture);
    leave(&mut client, 3);
    let gid = prepared(&fixture.right).remove(0);
    fixture.right.exec(&format!("rollback prepared '{gid}'"));
    resolve(&fixture);
    // Updated, the next is known by its number.
    fixture
        .left
        .exec_superuser("alter extension pg_rowsync update");
    leave(&mut client, 4);
    let gid = prepared(&fixture.right).remove(0);
    fixture.right.exec(&format!("rollback prepared '{gid}'"));
    assert!(
        !fixture
            .left
            .query_one::<bool>("select resolve_sync_prepared()")
    );
    assert_eq!(rows(&fixture.left, SHOWN), ["dst|commit|55000|t"]);
    assert_eq!(table(&fixture.right, "t"), ["1|a", "2|a"]);
}
