//! Once a session's drains have proven a table's unique index, they too send rows as if the remote were as
//! expected, and read the next batch while the remote is at work. That must not be seen in anything but
//! the time it takes.

use postgres::Client;
use rowsync_harness::fixture::Fixture;

use crate::support::common::{one_way, queued, rows, same};

const COLUMNS: &str = "id int primary key, v text";
const QUEUE: &str = r#"{"mode": "queue"}"#;

/// Drains over this session; everything is applied.
#[track_caller]
fn drain(client: &mut Client, limit: i64) {
    let dealt = client.query_one("select deal_sync_err_rec($1)", &[&(limit as i32)]);
    assert!(dealt.expect("a drain").get::<_, bool>(0));
}

/// A table `t` with rows 1 to 3 on both sides, and a session whose next drains trust the remote.
fn trusting(label: &str, columns: &str) -> (Fixture, Client) {
    let fixture = one_way(label, columns, QUEUE);
    fixture
        .left
        .exec("insert into t (id, v) values (1, 'old'), (2, 'old'), (3, 'old')");
    let mut admin = fixture.left.superuser();
    drain(&mut admin, 10);
    same(&fixture, "t");
    (fixture, admin)
}

/// The conflicts logged so far, oldest first: type and key.
fn conflicts(fixture: &Fixture) -> Vec<String> {
    rows(
        &fixture.left,
        "select type, key ->> 'id' from sync_conflicts order by id",
    )
}

#[test]
fn single_rows_are_prepared_and_executed_often() {
    let (fixture, mut admin) = trusting("prepared", COLUMNS);
    let user = fixture.right.user.clone();
    fixture.right.exec(&format!(
        "create table seen (executions bigint);
         create function look() returns trigger language plpgsql as $$ begin
           insert into seen select coalesce(sum(generic_plans + custom_plans), 0)
             from pg_prepared_statements;
           return null; end $$;
         alter function look() set search_path = {user}, pg_catalog;
         create trigger look after insert or update or delete on t for each row
           execute function look()"
    ));
    for n in 10..15 {
        fixture
            .left
            .exec(&format!("insert into t values ({n}, 'new')"));
        drain(&mut admin, 10);
        fixture
            .left
            .exec(&format!("update t set v = 'changed' where id = {n}"));
        drain(&mut admin, 10);
    }
    assert_eq!(
        rows(&fixture.right, "select max(executions) >= 10 from seen"),
        ["t"]
    );
    same(&fixture, "t");
}

#[test]
fn conflicts_are_overwritten_and_told_whatever_was_expected() {
    let all = "insert into t select g, 'many' from generate_series(100, 2000) g";
    // What the remote has before, what happens there and here, and the conflicts.
    let met: [(&str, &str, &str, &[&str]); 6] = [
        (
            "",
            "insert into t values (5, 'theirs')",
            "insert into t values (5, 'ours'), (6, 'ours')",
            &["insert_exists|5"],
        ),
        (
            "",
            "delete from t where id = 1",
            "update t set v = 'back' where id <= 2",
            &["update_missing|1"],
        ),
        (
            "",
            "delete from t where id = 3",
            "delete from t where id = 3",
            &["delete_missing|3"],
        ),
        (
            "",
            "insert into t values (200, 'theirs'), (1999, 'theirs')",
            all,
            &["insert_exists|200", "insert_exists|1999"],
        ),
        (
            all,
            "delete from t where id = 700",
            "update t set v = 'more' where id >= 100",
            &["update_missing|700"],
        ),
        (
            all,
            "delete from t where id in (300, 1500)",
            "delete from t where id >= 100",
            &["delete_missing|300", "delete_missing|1500"],
        ),
    ];
    for (number, (before, there, here, expected)) in met.into_iter().enumerate() {
        let (fixture, mut admin) = trusting(&format!("met{number}"), COLUMNS);
        fixture.left.exec(before);
        drain(&mut admin, 10_000);
        fixture.right.exec(there);
        fixture.left.exec(here);
        drain(&mut admin, 10_000);
        assert_eq!(queued(&fixture), 0, "{here}");
        same(&fixture, "t");
        // Once, although it was tried twice.
        assert_eq!(conflicts(&fixture), expected, "{here}");
    }
}

/// In binary form nothing would fit.
#[test]
fn rows_arrive_where_columns_are_of_other_types() {
    let columns = "id int primary key, n bigint, at timestamptz, v text";
    for (number, change) in [
        "alter id type bigint, alter n type numeric, alter at type text, alter v type varchar(20)",
        "alter n type text, alter v type int using null",
    ]
    .into_iter()
    .enumerate()
    {
        let (fixture, mut admin) = trusting(&format!("types{number}"), columns);
        fixture
            .right
            .exec(&format!("update t set v = null; alter table t {change}"));
        fixture.left.exec(
            "insert into t select g, g * 1000, timestamptz '2001-01-01 00:00:00+00' + g * interval '1 hour', g
               from generate_series(10, 1200) g",
        );
        drain(&mut admin, 10_000);
        assert_eq!(queued(&fixture), 0, "{change}");
        let all = "select id, n, v from t where id >= 10 order by id::int";
        assert_eq!(
            rows(&fixture.right, all),
            rows(&fixture.left, all),
            "{change}"
        );
    }
}

/// What makes the remote refuse a row is found, and the row alone is marked failed.
#[test]
fn a_row_that_is_refused_stops_no_other() {
    let (fixture, mut admin) = trusting("refused", COLUMNS);
    fixture.right.exec("alter table t add check (v <> 'bad')");
    fixture.left.exec(
        "insert into t select g, case g when 777 then 'bad' else 'good' end
           from generate_series(10, 1500) g",
    );
    let dealt = admin
        .query_one("select deal_sync_err_rec(10000)", &[])
        .expect("a drain");
    assert!(!dealt.get::<_, bool>(0));
    let records = rows(
        &fixture.left,
        "select op, sqlstate, status from sync_err_rec",
    );
    assert_eq!(records, ["INSERT|23514|failed"]);
    assert_eq!(
        rows(&fixture.right, "select count(*) from t where id >= 10"),
        ["1490"]
    );
    // And over a table that takes it, it arrives.
    fixture
        .right
        .exec("alter table t drop constraint t_v_check");
    drain(&mut admin, 10);
    same(&fixture, "t");
}

/// The batch that was read ahead is no part of what a call may apply beyond its limit, nor is it lost.
#[test]
fn a_limit_is_kept_over_several_batches() {
    let (fixture, mut admin) = trusting("limit", COLUMNS);
    fixture
        .left
        .exec("insert into t select g, 'many' from generate_series(1001, 13000) g");
    for (limit, left) in [(5_000, 7_000), (6_000, 1_000), (1, 999), (5_000, 0)] {
        drain(&mut admin, limit);
        assert_eq!(queued(&fixture), left);
        let arrived = rows(
            &fixture.right,
            "select count(*), max(id) from t where id > 1000",
        );
        let so_far = 12_000 - left;
        assert_eq!(arrived, [format!("{so_far}|{}", 1000 + so_far)]);
    }
    same(&fixture, "t");
}

/// Several batches of changes that depend on each other, of which the remote contradicts one.
#[test]
fn a_batch_read_ahead_is_applied_after_one_that_is_tried_twice() {
    let (fixture, mut admin) = trusting("ahead", COLUMNS);
    fixture.right.exec("insert into t values (4000, 'theirs')");
    fixture.left.exec(
        "insert into t select g, 'first' from generate_series(10, 6000) g;
         update t set v = 'second' where id between 3000 and 6000;
         update t set id = id + 10000 where id between 3500 and 4500;
         delete from t where id between 5000 and 5500;
         insert into t select g, 'again' from generate_series(3500, 4500) g",
    );
    drain(&mut admin, 100_000);
    assert_eq!(queued(&fixture), 0);
    same(&fixture, "t");
    assert_eq!(conflicts(&fixture), ["insert_exists|4000"]);
}

/// The other side ends the session, or falls silent, over a batch while the one after it is being read.
#[test]
fn a_connection_lost_over_a_later_batch_loses_nothing() {
    for (label, act) in [
        ("ends", "pg_terminate_backend(pg_backend_pid())"),
        ("silent", "pg_sleep(3)"),
    ] {
        let (fixture, mut admin) = trusting(label, COLUMNS);
        let user = fixture.right.user.clone();
        fixture.right.exec_superuser(&format!(
            "create function {user}.act() returns trigger language plpgsql security definer
               set search_path = pg_catalog as $$ begin perform {act}; return null; end $$;
             create trigger act after insert on {user}.t for each row when (new.id = 7000)
               execute function {user}.act()"
        ));
        fixture
            .left
            .exec("insert into t select g, 'many' from generate_series(1001, 17000) g");
        admin
            .batch_execute("set pg_rowsync.delivery_timeout = '500ms'")
            .expect("a setting");
        let dealt = admin
            .query_one("select deal_sync_err_rec(100000)", &[])
            .expect("a drain");
        assert!(!dealt.get::<_, bool>(0), "{label}");
        assert_eq!(queued(&fixture), 16_000, "{label}");
        assert_eq!(
            rows(&fixture.left, "select distinct status from sync_err_rec"),
            ["pending"]
        );
        let arrived = || rows(&fixture.right, "select count(*) from t where id > 1000");
        assert_eq!(arrived(), ["0"], "{label}");
        fixture
            .right
            .exec_superuser(&format!("drop function {user}.act() cascade"));
        admin
            .batch_execute("reset pg_rowsync.delivery_timeout")
            .expect("a setting");
        drain(&mut admin, 100_000);
        assert_eq!(queued(&fixture), 0, "{label}");
        same(&fixture, "t");
    }
}
