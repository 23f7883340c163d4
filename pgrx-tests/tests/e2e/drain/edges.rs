//! Drains that fail half-way, that share their server with another owner's records, that find a queue
//! they did not expect; and servers that cannot even be called.

use std::time::{Duration, Instant};

use postgres::Client;
use rowsync_harness::{Fixture, Proxy, Side, await_until, fails};

use crate::support::common::{
    both_have, deal, link_with, linked, mirror, one_way, outage, query, queued, records, recover,
    refused, rows, run, same, superuser_with_notices, table, warnings,
};
use crate::support::failed::{counts, goes_directly, retry, standing, the_failed, waits_behind};
use crate::support::preloaded::{EAGER, WORKING, preloaded_one_way};
use crate::support::reject_values;

const COLUMNS: &str = "id int primary key, v text";
const QUEUE: &str = r#"{"mode": "queue"}"#;

/// A queued table `t` with rows 1 to 5 that wait.
fn five_waiting(label: &str) -> Fixture {
    let fixture = one_way(label, COLUMNS, QUEUE);
    // Where a record fails, what its transaction has written after it is tried with it, whatever the limit.
    for i in 1..=5 {
        fixture
            .left
            .exec(&format!("insert into t values ({i}, 'v{i}')"));
    }
    fixture
}

/// Ends the sessions that the left has on the right.
fn end_remote_sessions(fixture: &Fixture) {
    let user = &fixture.right.user;
    fixture.right.exec_superuser(&format!(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = '{user}'"
    ));
}

/// What the transaction has drained is lost, so that it cannot be committed; the queue has it all.
#[track_caller]
fn commit_is_refused(fixture: &Fixture, client: &mut Client) {
    refused(client, "commit", "40000");
    assert_eq!(table(&fixture.right, "t"), [""; 0]);
    assert_eq!(queued(fixture), 5);
    assert!(deal(fixture, "100"));
    assert_eq!(same(fixture, "t").len(), 5);
}

#[test]
fn a_drain_that_loses_its_connection_in_a_savepoint_cannot_be_committed() {
    for again in [
        "select deal_sync_err_rec(1)",
        "do $$ begin
           perform deal_sync_err_rec(1);
           raise assert_failure using message = 'nothing is left to drain over';
         exception when others then null;
         end $$",
    ] {
        let fixture = five_waiting("dies");
        let mut admin = fixture.left.superuser();
        run(&mut admin, "begin; select deal_sync_err_rec(2)");
        end_remote_sessions(&fixture);
        run(&mut admin, "savepoint s");
        if again.starts_with("select") {
            fails(admin.batch_execute(again));
            run(&mut admin, "rollback to s");
        } else {
            run(&mut admin, again);
        }
        commit_is_refused(&fixture, &mut admin);
    }
}

#[test]
fn a_drain_cut_short_in_a_savepoint_cannot_be_committed() {
    let fixture = five_waiting("cut");
    let mut admin = fixture.left.superuser();
    run(
        &mut admin,
        "set pg_rowsync.lock_timeout = '30s'; begin; select deal_sync_err_rec(2)",
    );
    let mut locker = fixture.right.client();
    run(&mut locker, "begin; insert into t values (3, 'theirs')");
    run(
        &mut admin,
        "set local statement_timeout = '500ms'; savepoint s",
    );
    refused(&mut admin, "select deal_sync_err_rec(2)", "57014");
    run(&mut admin, "rollback to s");
    run(&mut locker, "rollback");
    commit_is_refused(&fixture, &mut admin);
}

#[test]
fn a_drain_cut_short_over_another_servers_records_cannot_be_committed() {
    let fixture = five_waiting("cutother");
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table u ({COLUMNS})"));
    }
    let port = fixture.right.cluster.port();
    let schema = &fixture.right.user;
    // Before and behind the other one in the order of their names.
    for other in ["another", "zebra"] {
        link_with(&fixture, other, port, &fixture.right.password);
        fixture.left.exec(&format!(
            "select attach_sync('u', '{other}', '{schema}.u', '{QUEUE}'); insert into u values (1);
             select detach_sync('u', '{other}'); delete from u"
        ));
        let mut locker = fixture.left.superuser();
        run(
            &mut locker,
            "begin; select from sync_queue where dst_server <> 'dst' for update",
        );
        let mut admin = fixture.left.superuser();
        run(
            &mut admin,
            "set lock_timeout = '300ms'; begin; select deal_sync_err_rec(2, 'dst')",
        );
        run(&mut admin, "savepoint s");
        refused(&mut admin, "select deal_sync_err_rec(2)", "55P03");
        run(&mut admin, "rollback to s");
        refused(&mut admin, "commit", "40000");
        run(
            &mut locker,
            "rollback; delete from sync_err_rec where dst_server <> 'dst'",
        );
        assert_eq!(table(&fixture.right, "t"), [""; 0]);
        assert_eq!(queued(&fixture), 5);
    }
    assert!(deal(&fixture, "100"));
    assert_eq!(same(&fixture, "t").len(), 5);
}

#[test]
fn a_retry_that_loses_its_connection_in_a_savepoint_cannot_be_committed() {
    let fixture = five_waiting("retrydies");
    fixture
        .right
        .exec("alter table t add constraint not_three check (id <> 3)");
    let mut admin = fixture.left.superuser();
    run(&mut admin, "select deal_sync_err_rec(3)");
    let failing = the_failed(&fixture);
    fixture
        .right
        .exec("alter table t drop constraint not_three; truncate t");
    run(&mut admin, "begin; select deal_sync_err_rec(1)");
    end_remote_sessions(&fixture);
    run(&mut admin, "savepoint s");
    fails(admin.batch_execute(&format!("select retry_sync_err_rec({failing})")));
    run(&mut admin, "rollback to s");
    refused(&mut admin, "commit", "40000");
    assert_eq!(table(&fixture.right, "t"), [""; 0]);
    assert_eq!(counts(&fixture), (2, 1, 0));
    assert!(deal(&fixture, "100"));
    assert_eq!(table(&fixture.right, "t"), ["3|v3", "4|v4", "5|v5"]);
}

/// A second role on the left, with a table `u` that it sends over the same server, as this role of the
/// right; its session.
fn second_owner(fixture: &Fixture, user: &str, password: &str) -> Client {
    let schema = &fixture.left.user;
    let second = format!("{}_two", fixture.left.user);
    let right = &fixture.right.user;
    fixture.left.exec_superuser(&format!(
        "create role {second} login password 'x'; grant usage, create on schema {schema} to {second};
         grant usage on foreign server dst to {second};
         create user mapping for {second} server dst options (user '{user}', password '{password}')"
    ));
    fixture.right.exec(&format!(
        "create table u ({COLUMNS}, writer text default current_user)"
    ));
    let mut other = fixture
        .left
        .cluster
        .connect(&fixture.left.db, &second, "x")
        .expect("a session");
    run(
        &mut other,
        &format!("set search_path = {schema}, public; create table u ({COLUMNS})"),
    );
    run(
        &mut other,
        &format!("select attach_sync('u', 'dst', '{right}.u', '{QUEUE}')"),
    );
    other
}

fn second_owner_like_the_first(fixture: &Fixture) -> Client {
    second_owner(fixture, &fixture.right.user, &fixture.right.password)
}

#[test]
fn a_record_before_another_owners_is_applied_once() {
    for policy in ["overwrite", "error"] {
        let options = format!(r#"{{"mode": "queue", "on_conflict": "{policy}"}}"#);
        let fixture = one_way("once", COLUMNS, &options);
        reject_values::build(&fixture);
        let mut other = second_owner_like_the_first(&fixture);
        let (mut admin, notices) = superuser_with_notices(&fixture.left);
        let mut client = fixture.left.client();
        for (sql, change) in [
            ("insert into t values (1, 'a')", "1:a"),
            ("update t set v = 'b'", "1:b"),
            ("delete from t", "-1"),
        ] {
            run(&mut client, sql);
            run(&mut other, "insert into u values (1, 'two')");
            run(&mut client, "insert into t values (9, 'behind')");
            assert_eq!(
                query(&mut admin, "select deal_sync_err_rec(1000)"),
                ["t"],
                "{policy}"
            );
            assert_eq!(
                reject_values::passed(&fixture),
                [change, "9:behind"],
                "{policy}"
            );
            assert_eq!(queued(&fixture), 0, "{policy}: {:?}", records(&fixture));
            assert_eq!(rows(&fixture.right, "select id, v from u"), ["1|two"]);
            fixture.right.exec("truncate u");
            run(&mut other, "delete from u");
            run(&mut client, "delete from t where id = 9");
            fixture
                .left
                .exec_superuser("delete from sync_err_rec where table_name = 'u'");
            assert!(deal(&fixture, "1000"), "{policy}");
            reject_values::passed(&fixture);
        }
        let said = warnings(&notices);
        assert!(said.is_empty(), "{policy}: {said:?}");
    }
}

#[test]
fn rows_that_change_places_stay_together_around_another_owners_record() {
    let fixture = one_way(
        "around",
        "id int primary key deferrable initially deferred, v text",
        QUEUE,
    );
    fixture
        .left
        .exec("insert into t values (1, 'one'), (2, 'two')");
    assert!(deal(&fixture, "100"));
    let mut other = second_owner_like_the_first(&fixture);
    // Ids as of transactions that write at the same time.
    let ids = |sql: &str| fixture.left.exec_superuser(sql);
    fixture.left.exec("update t set id = 3 - id");
    run(&mut other, "insert into u values (1, 'two')");
    ids("create temp table q as select * from sync_queue;
         update q set id = case when table_name = 'u' then 104
                                when id = (select min(id) from sync_queue) then 103 else 105 end;
         delete from sync_queue; insert into sync_queue overriding system value select * from q");
    let order = "select id, table_name from sync_err_rec order by id";
    assert_eq!(rows(&fixture.left, order), ["103|t", "104|u", "105|t"]);
    assert!(deal(&fixture, "100"));
    both_have(&fixture, "t", &["1|two", "2|one"]);
    assert!(deal(&fixture, "100"));
    assert_eq!(queued(&fixture), 0);
    assert_eq!(rows(&fixture.right, "select id, v from u"), ["1|two"]);
}

#[test]
fn what_is_tried_again_goes_over_its_own_owners_connection() {
    let fixture = one_way("own", COLUMNS, QUEUE);
    let second = format!("{}_two", fixture.right.user);
    let mut other = second_owner(&fixture, &second, "y");
    let schema = &fixture.right.user;
    fixture.right.exec_superuser(&format!(
        "create role {second} login password 'y'; grant usage on schema {schema} to {second};
         grant select, insert, update, delete on {schema}.u to {second};
         alter table {schema}.u add constraint not_bad check (v <> 'bad')"
    ));
    run(&mut other, "insert into u values (1, 'bad')");
    assert!(!deal(&fixture, "10"));
    the_failed(&fixture);
    fixture.right.exec("alter table u drop constraint not_bad");
    fixture.left.exec("insert into t values (1, 'a')");
    for _ in 0..3 {
        assert!(deal(&fixture, "10"), "{:?}", records(&fixture));
    }
    assert_eq!(queued(&fixture), 0);
    both_have(&fixture, "t", &["1|a"]);
    assert_eq!(table(&fixture.right, "u"), [format!("1|bad|{second}")]);
    fixture
        .right
        .exec_superuser(&format!("drop owned by {second}; drop role {second}"));
}

/// Records that another cluster wrote, whose transactions are counted further.
const FROM_AFAR: &str = "update sync_queue set
    xact = ((pg_current_xact_id()::text::bigint + 1000000)::text)::xid8";

#[test]
fn records_restored_from_a_dump_are_delivered() {
    let fixture = five_waiting("restored");
    fixture.left.exec_superuser(FROM_AFAR);
    fixture.left.exec("update t set v = 'new' where id = 1");
    assert!(deal(&fixture, "100"));
    assert_eq!(queued(&fixture), 0);
    assert_eq!(same(&fixture, "t").len(), 5);
}

#[test]
fn the_worker_delivers_records_restored_from_a_dump() {
    let fixture = preloaded_one_way("workrestored", EAGER, COLUMNS, QUEUE);
    outage(&fixture.right);
    fixture.left.exec("insert into t values (1, 'a'), (2, 'b')");
    fixture.left.exec_superuser(FROM_AFAR);
    recover(&fixture.right);
    await_until(WORKING, "what was restored to arrive", || {
        queued(&fixture) == 0
    });
    both_have(&fixture, "t", &["1|a", "2|b"]);
}

#[test]
fn the_worker_takes_its_time_over_records_that_it_cannot_take_yet() {
    let fixture = preloaded_one_way("worktime", EAGER, COLUMNS, QUEUE);
    outage(&fixture.right);
    fixture.left.exec("insert into t values (1, 'a')");
    // As if by a transaction that is still under way.
    let mut open = fixture.left.superuser();
    run(&mut open, "begin; select pg_current_xact_id()");
    let xact = query(&mut open, "select pg_current_xact_id()").remove(0);
    fixture
        .left
        .exec_superuser(&format!("update sync_queue set xact = '{xact}'"));
    recover(&fixture.right);
    let commits = || -> i64 {
        fixture.left.query_one(
            "select xact_commit from pg_stat_database where datname = current_database()",
        )
    };
    let reached = "select count(*) from sync_status where last_success_at is not null";
    await_until(WORKING, "the worker to visit", || {
        fixture.left.query_one::<i64>(reached) == 1
    });
    let before = commits();
    std::thread::sleep(Duration::from_secs(3));
    let after = commits();
    assert!(
        after - before < 300,
        "{} transactions in three seconds",
        after - before
    );
    assert_eq!(queued(&fixture), 1);
    run(&mut open, "commit");
    await_until(WORKING, "the record to arrive", || queued(&fixture) == 0);
    both_have(&fixture, "t", &["1|a"]);
}

#[test]
fn a_connection_that_is_kept_need_not_wait_for_another_server() {
    let fixture = one_way("kept", COLUMNS, QUEUE);
    fixture
        .right
        .exec("alter table t add at timestamptz default clock_timestamp()");
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    link_with(&fixture, "hole", proxy.port(), &fixture.right.password);
    let schema = &fixture.right.user;
    let mut admin = fixture.left.superuser();
    run(&mut admin, "set pg_rowsync.connect_timeout = '4s'");
    fixture.left.exec("insert into t values (1, 'a')");
    run(&mut admin, "select deal_sync_err_rec(10)");
    fixture.left.exec(&format!(
        "select attach_sync('t', 'hole', '{schema}.t', '{QUEUE}')"
    ));
    fixture.left.exec("insert into t values (2, 'b')");
    proxy.freeze();
    let start = Instant::now();
    let begun = query(&mut admin, "select clock_timestamp()").remove(0);
    assert_eq!(query(&mut admin, "select deal_sync_err_rec(10)"), ["f"]);
    assert!(
        start.elapsed() > Duration::from_secs(3),
        "the other server was not waited for"
    );
    let soon = format!("select at < timestamptz '{begun}' + interval '2 s' from t where id = 2");
    assert_eq!(rows(&fixture.right, &soon), ["t"]);
}

#[test]
fn failed_records_stay_failed_when_a_call_fails_over_them() {
    let fixture = one_way("stay", COLUMNS, "{}");
    fixture
        .right
        .exec("alter table t add constraint is_sound check (v <> 'bad')");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t select i, 'bad' from generate_series(1, 150) i",
    );
    assert!(!deal(&fixture, "1000"));
    for limit in ["1000", "1000", "1"] {
        assert!(!deal(&fixture, limit));
        assert_eq!(counts(&fixture), (0, 150, 0), "{limit}");
        goes_directly(
            &fixture,
            &mut client,
            "insert into t values (1000, 'direct')",
        );
        goes_directly(&fixture, &mut client, "delete from t where id = 1000");
    }
    fixture.right.exec("alter table t drop constraint is_sound");
    assert!(deal(&fixture, "1000") && deal(&fixture, "1000"));
    assert_eq!(same(&fixture, "t").len(), 150);
}

/// Twenty changes of row 1 wait behind one that fails, and so it stays whatever a call may try.
fn stays_waiting(fixture: &Fixture, client: &mut Client) {
    let failing = the_failed(fixture);
    for (n, limit) in ["100", "10", "1", "1"].into_iter().enumerate() {
        assert!(!deal(fixture, limit), "{limit}");
        assert_eq!(counts(fixture), (0, 1, 20), "{limit}");
        goes_directly(
            fixture,
            client,
            &format!("insert into t values (2{n}, 'direct')"),
        );
    }
    waits_behind(
        fixture,
        client,
        "update t set v = 'last' where id = 1",
        failing,
    );
    reject_values::open(fixture, "bad");
    assert!(deal(fixture, "1") && deal(fixture, "100"));
    assert_eq!(queued(fixture), 0, "{:?}", standing(fixture));
    assert_eq!(same(fixture, "t")[0], "1|last");
}

fn gated(label: &str) -> Fixture {
    let fixture = one_way(label, COLUMNS, "{}");
    reject_values::build(&fixture);
    reject_values::close(&fixture, "bad", "23514", None);
    fixture
}

const TWENTY_UPDATES: &str = "do $$ begin
    for n in 1..20 loop update t set v = 'v' || n where id = 1; end loop; end $$";

#[test]
fn what_waits_goes_on_waiting_when_a_call_fails_over_what_it_waits_for() {
    let fixture = gated("alone");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'bad')");
    assert!(!deal(&fixture, "100"));
    (1..=20).for_each(|n| {
        run(
            &mut client,
            &format!("update t set v = 'v{n}' where id = 1"),
        )
    });
    stays_waiting(&fixture, &mut client);
}

#[test]
fn the_rest_of_a_transaction_goes_on_waiting_when_a_call_fails_over_what_it_waits_for() {
    let fixture = gated("together");
    let mut client = fixture.left.client();
    run(
        &mut client,
        &format!("begin; insert into t values (1, 'bad'); {TWENTY_UPDATES}; commit"),
    );
    assert!(!deal(&fixture, "100"));
    stays_waiting(&fixture, &mut client);
}

#[test]
fn what_has_called_for_a_drain_cannot_be_prepared() {
    let fixture = five_waiting("prepare");
    let mut admin = fixture.left.superuser();
    let prepare = format!("prepare transaction '{}'", fixture.left.db);
    let mut cannot = |call: &str| {
        run(&mut admin, &format!("begin; {call}"));
        refused(&mut admin, &prepare, "0A000");
        run(&mut admin, "rollback");
    };
    // In vain: the server is away.
    outage(&fixture.right);
    cannot("select deal_sync_err_rec(10)");
    recover(&fixture.right);
    // With a record that fails.
    fixture
        .right
        .exec("alter table t add constraint not_three check (id <> 3)");
    assert!(!deal(&fixture, "100"));
    let failing = the_failed(&fixture);
    cannot(&format!("select retry_sync_err_rec({failing})"));
    fixture
        .right
        .exec("alter table t drop constraint not_three");
    assert!(retry(&fixture, failing));
    // With nothing to do.
    cannot("select deal_sync_err_rec(10)");
    cannot("select deal_sync_err_rec(10, 'dst')");
    // And nothing of it stays, neither a lock nor the refusal.
    fixture.left.exec("update t set v = 'new'");
    assert!(deal(&fixture, "100"));
    assert_eq!(same(&fixture, "t").len(), 5);
    run(&mut admin, &format!("begin; create table x (); {prepare}"));
    run(
        &mut admin,
        &format!("rollback prepared '{}'", fixture.left.db),
    );
}

/// The left database again, in LATIN1.
fn in_latin1(side: &Side) {
    let Side { db, user, .. } = side;
    let mut admin = side.cluster.superuser("postgres").expect("a superuser");
    run(&mut admin, &format!("drop database {db} with (force)"));
    run(
        &mut admin,
        &format!("create database {db} template template0 encoding 'LATIN1'"),
    );
    side.exec_superuser(&format!(
        "create schema authorization {user}; create extension pg_rowsync schema public;
         grant usage on foreign data wrapper pg_rowsync to {user}"
    ));
}

#[test]
fn a_failure_told_in_letters_that_the_database_lacks_is_a_failure_like_any_other() {
    let fixture = Fixture::new("letters");
    in_latin1(&fixture.left);
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, "{}");
    mirror(&fixture, "s", COLUMNS, r#"{"mode": "sync"}"#);
    for name in ["t", "s"] {
        fixture.right.exec(&format!(
            r#"alter table {name} add constraint "цена: größer" check (v <> 'bad')"#
        ));
    }
    refused(
        &mut fixture.left.client(),
        "insert into s values (1, 'bad')",
        "23514",
    );
    fixture.left.exec("insert into t values (1, 'bad')");
    let why = "select status, sqlstate, constraint_name, message ~ 'größer' from sync_err_rec";
    assert_eq!(rows(&fixture.left, why), ["pending|23514|????: größer|t"]);
    fixture.left.exec("insert into t values (2, 'good')");
    assert!(!deal(&fixture, "10"));
    assert_eq!(rows(&fixture.left, why), ["failed|23514|????: größer|t"]);
    assert_eq!(table(&fixture.right, "t"), ["2|good"]);
    fixture
        .right
        .exec(r#"alter table t drop constraint "цена: größer""#);
    assert!(deal(&fixture, "10"));
    both_have(&fixture, "t", &["1|bad", "2|good"]);
    // A failure of the moment.
    fixture.right.exec(
        "create function later() returns trigger language plpgsql as $$
         begin raise exception 'потом' using errcode = '40001'; end $$;
         create trigger later before insert on t for each row execute function later()",
    );
    fixture.left.exec("insert into t values (3, 'later')");
    assert!(!deal(&fixture, "10"));
    let status = "select pending, failed, last_sqlstate, last_error ~ '[?]{5}' from sync_status";
    assert_eq!(rows(&fixture.left, status), ["1|0|40001|t"]);
    fixture.right.exec("drop trigger later on t");
    assert!(deal(&fixture, "10"));
    assert_eq!(same(&fixture, "t").len(), 3);
}

#[test]
fn a_server_that_cannot_be_called_is_a_server_that_is_down() {
    for host in ["/nonexistent", "no-such-host.invalid", "255.255.255.255"] {
        let fixture = linked("nobody");
        mirror(&fixture, "a", COLUMNS, "{}");
        mirror(&fixture, "s", COLUMNS, r#"{"mode": "sync"}"#);
        fixture
            .left
            .exec(&format!("alter server dst options (set host '{host}')"));
        let mut client = fixture.left.client();
        refused(&mut client, "insert into s values (1, 'a')", "08001");
        run(&mut client, "insert into a values (1, 'a')");
        run(
            &mut client,
            "begin; insert into a values (2, 'b'); update a set v = 'c'; commit",
        );
        assert_eq!(records(&fixture)[0], "INSERT|08001|1|pending", "{host}");
        assert_eq!(queued(&fixture), 4, "{host}");
        assert_eq!(table(&fixture.left, "s"), [""; 0]);
        assert!(!deal(&fixture, "10"), "{host}");
        assert_eq!(
            rows(&fixture.left, "select last_sqlstate from sync_status"),
            ["08001"],
            "{host}"
        );
        fixture
            .left
            .exec("alter server dst options (set host '127.0.0.1')");
        assert!(deal(&fixture, "10"), "{host}");
        both_have(&fixture, "a", &["1|c", "2|c"]);
        run(&mut client, "insert into s values (1, 'a')");
        both_have(&fixture, "s", &["1|a"]);
    }
}
