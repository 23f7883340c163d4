//! The log of conflicts: its bounds, its switch, who may read it, what it goes with.

use std::time::Duration;

use postgres::Client;
use rowsync_harness::{Fixture, await_until};

use crate::conflict::view::{counted, counting, fixture, fixture_on, logged, total};
use crate::support::common::{linked, mirror, query, refused, rows, run};

const COLUMNS: &str = "id int primary key, v text, ver int";

/// A session of the superuser that finds the owner's tables.
fn superuser(fixture: &Fixture) -> Client {
    let mut client = fixture.left.superuser();
    run(
        &mut client,
        &format!("set search_path = {}, public", fixture.left.user),
    );
    client
}

/// Meets a row that is there already, once for each ID, a transaction each.
fn meet(fixture: &Fixture, client: &mut Client, ids: std::ops::RangeInclusive<i32>) {
    for id in ids {
        fixture
            .right
            .exec(&format!("insert into t values ({id}, 'r', 1)"));
        run(client, &format!("insert into t values ({id}, 'l', 5)"));
    }
}

fn keys(fixture: &Fixture) -> Vec<String> {
    rows(
        &fixture.left,
        "select key->>'id' from sync_conflicts order by id",
    )
}

#[test]
fn the_views_have_the_columns_that_the_reference_names() {
    let fixture = linked("conflictcols");
    let columns = |view: &str| {
        let sql = format!(
            "select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attnum)
               from pg_attribute where attrelid = '{view}'::regclass and attnum > 0"
        );
        rows(&fixture.left, &sql).remove(0)
    };
    let expected = "id bigint, logged_at timestamp with time zone, server text, nsp_name name, \
         table_name name, type text, decision text, key json, server_key json, version text, \
         server_version text, constraint_name text";
    assert_eq!(columns("sync_conflicts"), expected);
    let names = "select string_agg(attname, ', ' order by attnum) from pg_attribute
                  where attrelid = 'sync_conflict_counts'::regclass and attnum > 0";
    assert_eq!(
        rows(&fixture.left, names),
        ["server, nsp_name, table_name, type, conflicts"]
    );
}

#[test]
fn only_who_is_granted_it_reads_conflicts() {
    let fixture = fixture();
    mirror(&fixture, "t", COLUMNS, "{}");
    let mut client = fixture.left.client();
    meet(&fixture, &mut client, 1..=1);
    for relation in [
        "sync_conflicts",
        "sync_conflict_log",
        "sync_conflict_counts",
    ] {
        refused(&mut client, &format!("select * from {relation}"), "42501");
    }
    refused(&mut client, "delete from sync_conflict_log", "42501");
    let user = &fixture.left.user;
    fixture.left.exec_superuser(&format!(
        "grant select on sync_conflicts, sync_conflict_counts to {user}"
    ));
    let seen = query(&mut client, "select type, table_name from sync_conflicts");
    assert_eq!(seen, ["insert_exists|t"]);
    let seen = query(
        &mut client,
        "select type, conflicts from sync_conflict_counts",
    );
    assert_eq!(seen, ["insert_exists|1"]);
    refused(&mut client, "delete from sync_conflicts", "42501");
}

#[test]
fn whoever_writes_the_conflict_is_logged() {
    // Who writes needs no right on the log.
    let fixture = fixture();
    mirror(&fixture, "t", COLUMNS, "{}");
    let user = &fixture.left.user;
    fixture.left.exec_superuser(&format!(
        "create role {user}_writer; grant usage on schema {user} to {user}_writer;
         grant insert on {user}.t to {user}_writer; grant {user}_writer to {user}"
    ));
    let mut client = fixture.left.client();
    run(
        &mut client,
        &format!("set role {user}_writer; set search_path = {user}"),
    );
    meet(&fixture, &mut client, 1..=2);
    assert_eq!(keys(&fixture), ["1", "2"]);
    assert_eq!(total(&fixture), 2);
    drop(client);
    fixture.left.exec_superuser(&format!(
        "drop owned by {user}_writer; drop role {user}_writer"
    ));
}

#[test]
fn log_conflicts_says_whether_they_are_counted_and_logged() {
    let fixture = fixture();
    mirror(&fixture, "t", COLUMNS, "{}");
    let mut client = superuser(&fixture);
    meet(&fixture, &mut client, 1..=1);
    assert_eq!((total(&fixture), keys(&fixture).len()), (1, 1));
    run(&mut client, "set pg_rowsync.log_conflicts = 'count'");
    meet(&fixture, &mut client, 2..=3);
    assert_eq!((total(&fixture), keys(&fixture).len()), (3, 1));
    assert_eq!(counted(&fixture, "t"), ["insert_exists|3"]);
    // The sum for the server is kept all the same.
    run(&mut client, "set pg_rowsync.log_conflicts = 'off'");
    meet(&fixture, &mut client, 4..=5);
    assert_eq!((total(&fixture), keys(&fixture).len()), (5, 1));
    assert_eq!(counted(&fixture, "t"), ["insert_exists|3"]);
    run(&mut client, "reset pg_rowsync.log_conflicts");
    meet(&fixture, &mut client, 6..=6);
    assert_eq!(keys(&fixture), ["1", "6"]);
    let mut owner = fixture.left.client();
    run(&mut owner, "select sync_disconnect()");
    refused(&mut owner, "set pg_rowsync.log_conflicts = 'off'", "42501");
}

#[test]
fn the_log_keeps_the_newest_up_to_its_size() {
    let cluster = counting(&[("pg_rowsync.conflict_log_size", "5")]);
    let fixture = fixture_on(&cluster);
    mirror(&fixture, "t", COLUMNS, "{}");
    let mut client = fixture.left.client();
    meet(&fixture, &mut client, 1..=12);
    assert_eq!(keys(&fixture), ["8", "9", "10", "11", "12"]);
    assert_eq!(total(&fixture), 12);
    // More at once than it holds.
    fixture
        .right
        .exec("insert into t select i, 'r', 1 from generate_series(100, 119) i");
    run(
        &mut client,
        "insert into t select i, 'l', 5 from generate_series(100, 119) i",
    );
    assert_eq!(keys(&fixture).len(), 5);
    assert_eq!(total(&fixture), 32);
}

#[test]
fn the_log_forgets_what_is_older_than_its_retention() {
    let cluster = counting(&[("pg_rowsync.conflict_retention", "1s")]);
    let fixture = fixture_on(&cluster);
    mirror(&fixture, "t", COLUMNS, "{}");
    let mut client = fixture.left.client();
    meet(&fixture, &mut client, 1..=3);
    let old = "select count(*) from sync_conflicts where logged_at < now() - interval '1 s'";
    await_until(Duration::from_secs(10), "the entries to age", || {
        let counted: i64 = fixture
            .left
            .query_one("select count(*) from sync_conflicts");
        counted == 0 || fixture.left.query_one::<i64>(old) == counted
    });
    meet(&fixture, &mut client, 4..=4);
    assert_eq!(keys(&fixture), ["4"]);
    assert_eq!(total(&fixture), 4);
}

#[test]
fn a_delivery_of_nothing_but_conflicts_is_counted_whole() {
    let fixture = fixture();
    mirror(&fixture, "t", COLUMNS, r#"{"on_conflict": "skip"}"#);
    fixture
        .right
        .exec("insert into t select i, 'r', 1 from generate_series(1, 6000) i");
    fixture
        .left
        .exec("insert into t select i, 'l', 5 from generate_series(1, 6000) i");
    assert_eq!(total(&fixture), 6000);
    assert_eq!(counted(&fixture, "t"), ["insert_exists|6000"]);
    // The particulars of the first thousand.
    assert_eq!(keys(&fixture).len(), 1000);
}

#[test]
fn conflicts_of_several_tables_and_types_are_told_apart() {
    let fixture = fixture();
    mirror(&fixture, "t", COLUMNS, "{}");
    mirror(&fixture, "u", COLUMNS, r#"{"on_conflict": "skip"}"#);
    fixture
        .right
        .exec("insert into t values (1, 'r', 1); insert into u values (1, 'r', 1)");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "begin; insert into t values (1, 'l', 5); insert into u values (1, 'l', 5), (2, 'l', 5); commit",
    );
    fixture.right.exec("truncate t, u");
    run(
        &mut client,
        "begin; update t set v = 'm'; delete from u; commit",
    );
    assert_eq!(
        counted(&fixture, "t"),
        ["insert_exists|1", "update_missing|1"]
    );
    assert_eq!(
        counted(&fixture, "u"),
        ["delete_missing|2", "insert_exists|1"]
    );
    assert_eq!(total(&fixture), 5);
    assert_eq!(
        logged(&fixture, "t"),
        [
            "insert_exists|applied|1|1|~|~|~",
            "update_missing|applied|1|~|~|~|~"
        ]
    );
}

#[test]
fn without_preload_conflicts_are_logged_and_not_counted() {
    let fixture = linked("logonly");
    mirror(&fixture, "t", COLUMNS, "{}");
    meet(&fixture, &mut fixture.left.client(), 1..=2);
    assert_eq!(keys(&fixture), ["1", "2"]);
    assert_eq!(
        rows(&fixture.left, "select * from sync_conflict_counts"),
        [""; 0]
    );
}

#[test]
fn a_log_that_cannot_be_written_fails_no_commit() {
    let fixture = fixture();
    mirror(&fixture, "t", COLUMNS, "{}");
    fixture
        .left
        .exec_superuser("alter table sync_conflict_log add check (false) not valid");
    let (mut client, notices) = fixture.left.client_with_notices();
    meet(&fixture, &mut client, 1..=1);
    let said = std::mem::take(&mut *notices.lock().expect("notices"));
    assert!(said.iter().any(|n| n.severity() == "WARNING"), "{said:?}");
    assert_eq!(total(&fixture), 1);
    assert_eq!(keys(&fixture), [""; 0]);
    assert_eq!(crate::support::common::same(&fixture, "t"), ["1|l|5"]);
    // Nor in a transaction that a COMMIT ends, or one that has savepoints.
    fixture
        .right
        .exec("insert into t values (8, 'r', 1), (9, 'r', 1)");
    run(
        &mut client,
        "begin; insert into t values (8, 'l', 5); commit",
    );
    run(
        &mut client,
        "begin; savepoint s; insert into t values (9, 'l', 5); commit",
    );
    assert_eq!((total(&fixture), keys(&fixture).len()), (3, 0));
    run(&mut client, "delete from t where id > 7");
    assert_eq!(crate::support::common::same(&fixture, "t"), ["1|l|5"]);
    // Nor is a session waited for that holds the log.
    fixture
        .left
        .exec_superuser("alter table sync_conflict_log drop constraint sync_conflict_log_check");
    let mut holder = fixture.left.superuser();
    run(&mut holder, "begin; lock table sync_conflict_log");
    meet(&fixture, &mut client, 2..=2);
    run(&mut holder, "rollback");
    assert_eq!((total(&fixture), keys(&fixture).len()), (4, 0));
    meet(&fixture, &mut client, 3..=3);
    assert_eq!(keys(&fixture), ["3"]);
}

#[test]
fn a_conflict_of_a_transaction_that_rolls_back_is_not_logged() {
    let fixture = fixture();
    mirror(&fixture, "t", COLUMNS, "{}");
    fixture.right.exec("insert into t values (1, 'r', 1)");
    run(
        &mut fixture.left.client(),
        "begin; insert into t values (1, 'l', 5); rollback",
    );
    assert_eq!((total(&fixture), keys(&fixture).len()), (0, 0));
}
