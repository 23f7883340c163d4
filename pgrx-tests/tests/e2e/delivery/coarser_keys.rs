//! A key or version column that is coarser there is refused by whoever writes, not by `attach_sync`
//! alone: what it has looked at may have become another since, and not every trigger was made by
//! it.

use rowsync_harness::Fixture;

use crate::support::common::{
    attach, both_have, deal, linked, queued, records, refused, rows, run,
};

/// Columns here, columns there, options, what is said of them, and an INSERT.
const COARSER: &[(&str, &str, &str, &str, &str)] = &[
    (
        "k timestamptz primary key",
        "k timestamptz(0) primary key",
        "{}",
        "k timestamp(0)",
        "(now())",
    ),
    (
        "k numeric primary key",
        "k numeric(10,0) primary key",
        "{}",
        "k numeric(10,0)",
        "(1.5)",
    ),
    (
        "k numeric(10,4) primary key",
        "k stamp primary key",
        "{}",
        "k",
        "(1.5)",
    ),
    (
        "k text primary key",
        "k char(5) primary key",
        "{}",
        "k character(5)",
        "('a')",
    ),
    (
        "k varchar(9) primary key",
        "k varchar(5) primary key",
        "{}",
        "k character varying(5)",
        "('a')",
    ),
    (
        "k text primary key",
        "k jsonb primary key",
        "{}",
        "k jsonb",
        "('{}')",
    ),
    (
        "k text primary key",
        "k citext primary key",
        "{}",
        "k public.citext",
        "('a')",
    ),
    (
        "k text primary key",
        "k citext primary key",
        r#"{"on_conflict": "skip"}"#,
        "k public.citext",
        "('a')",
    ),
    (
        "k varchar(9), v int, primary key (v, k)",
        "k folded, v int, primary key (v, k)",
        "{}",
        "k",
        "('a', 1)",
    ),
    (
        "k int primary key, v timestamp",
        "k int primary key, v date",
        r#"{"on_conflict": "newest", "version_column": "v"}"#,
        "v date",
        "(1, now())",
    ),
    (
        "k int, \"V w\" float8, primary key (k, \"V w\")",
        "k bigint, \"V w\" float4, primary key (k, \"V w\")",
        "{}",
        "\"V w\" real",
        "(1, 0.1)",
    ),
];

/// Others that are not.
const FINE: &[(&str, &str, &str)] = &[
    (
        "k timestamptz(0) primary key",
        "k timestamptz primary key",
        "(now())",
    ),
    (
        "k numeric(10,2) primary key",
        "k numeric(12,4) primary key",
        "(1.5)",
    ),
    (
        "k numeric(10,2) primary key",
        "k numeric primary key",
        "(1.5)",
    ),
    ("k int primary key", "k numeric(20,0) primary key", "(1)"),
    ("k bigint primary key", "k int primary key", "(1)"),
    ("k varchar(5) primary key", "k text primary key", "('a')"),
    (
        "k uuid primary key",
        "k text primary key",
        "(gen_random_uuid())",
    ),
    ("k text primary key", "k label primary key", "('a')"),
    (
        "k int4range primary key",
        "k int8range primary key",
        "('[1,3)')",
    ),
];

const TYPES: &str = "create domain stamp as numeric(10,2); create type label as enum ('a', 'b')";
const FOLDED: &str =
    "create extension citext schema public; create domain public.folded as public.citext;
    grant usage on schema public to public";

/// A trigger that nobody has looked at.
fn by_hand(fixture: &Fixture, options: &str) {
    fixture.left.exec(&format!(
        "create trigger t_dml after insert or update or delete on t for each row
           execute function sync_dml('dst', '{}', 't', '{options}')",
        fixture.right.user
    ));
}

fn with_mode(options: &str, mode: &str) -> String {
    let rest = options.trim_start_matches('{');
    let comma = if rest == "}" { "" } else { ", " };
    format!(r#"{{"mode": "{mode}"{comma}{rest}"#)
}

#[test]
fn a_trigger_made_by_hand_sends_to_no_coarser_key_or_version() {
    let fixture = linked("coarserhand");
    for side in [&fixture.left, &fixture.right] {
        side.exec_superuser(FOLDED);
        side.exec(TYPES);
    }
    for (here, there, options, said, row) in COARSER.iter().copied() {
        fixture.left.exec(&format!("create table t ({here})"));
        fixture.right.exec(&format!("create table t ({there})"));
        for mode in ["sync", "atomic"] {
            by_hand(&fixture, &with_mode(options, mode));
            let mut client = fixture.left.client();
            let error = refused(&mut client, &format!("insert into t values {row}"), "42804");
            assert!(error.message().contains(said), "{here}: {error:?}");
            // Nor does another look at it change that.
            refused(&mut client, &format!("insert into t values {row}"), "42804");
            fixture.left.exec("drop trigger t_dml on t");
        }
        for mode in ["async", "queue"] {
            by_hand(&fixture, &with_mode(options, mode));
            fixture.left.exec(&format!("insert into t values {row}"));
            deal(&fixture, "100");
            let attempts = if mode == "async" { 2 } else { 1 };
            let failed = format!("INSERT|42804|{attempts}|failed");
            assert_eq!(records(&fixture), [failed], "{here} {mode}");
            fixture.left.exec_superuser("delete from sync_err_rec");
            fixture.left.exec("drop trigger t_dml on t; delete from t");
        }
        assert_eq!(
            rows(&fixture.right, "select count(*) from t"),
            ["0"],
            "{here}"
        );
        fixture.left.exec("drop table t");
        fixture.right.exec("drop table t");
    }
}

#[test]
fn a_key_that_is_as_fine_there_or_finer_is_sent() {
    let fixture = linked("coarserfine");
    for side in [&fixture.left, &fixture.right] {
        side.exec(TYPES);
    }
    for (here, there, row) in FINE {
        fixture.left.exec(&format!("create table t ({here})"));
        fixture.right.exec(&format!("create table t ({there})"));
        by_hand(&fixture, r#"{"mode": "sync"}"#);
        let mut client = fixture.left.client();
        run(&mut client, &format!("insert into t values {row}"));
        run(&mut client, "delete from t");
        assert_eq!(
            rows(&fixture.right, "select count(*) from t"),
            ["0"],
            "{here}"
        );
        fixture.left.exec("drop table t");
        fixture.right.exec("drop table t");
    }
}

#[test]
fn a_target_made_after_the_table_was_attached_is_looked_at_when_it_is_written() {
    let fixture = linked("coarserlater");
    fixture
        .left
        .exec("create table t (k timestamptz primary key)");
    attach(&fixture, "t", r#"{"mode": "sync"}"#);
    fixture
        .right
        .exec("create table t (k timestamptz(3) primary key)");
    let insert = "insert into t values ('2024-07-01 10:00:00.123456+00')";
    refused(&mut fixture.left.client(), insert, "42804");
    fixture.right.exec("alter table t alter k type timestamptz");
    fixture.left.exec(insert);
    assert_eq!(rows(&fixture.right, "select count(*) from t"), ["1"]);
}

#[test]
fn a_key_that_has_become_coarser_there_is_refused_by_new_sessions_and_drains() {
    let fixture = linked("coarseraltered");
    for (number, (here, there)) in [
        ("timestamptz", "timestamptz(0)"),
        ("numeric", "numeric(20,0)"),
        ("text", "varchar(40)"),
    ]
    .into_iter()
    .enumerate()
    {
        let value = ["now()", "1.5", "'a'"][number];
        for side in [&fixture.left, &fixture.right] {
            side.exec(&format!("create table t (k {here} primary key, v int)"));
        }
        attach(&fixture, "t", "{}");
        fixture
            .left
            .exec(&format!("insert into t values ({value}, 1)"));
        assert_eq!(queued(&fixture), 0);
        fixture
            .right
            .exec(&format!("alter table t alter k type {there}"));
        let mut client = fixture.left.client();
        run(&mut client, "update t set v = 2");
        deal(&fixture, "100");
        assert_eq!(records(&fixture), ["UPDATE|42804|2|failed"], "{here}");
        // The way out: as it was, and once more.
        fixture
            .right
            .exec(&format!("delete from t; alter table t alter k type {here}"));
        fixture
            .left
            .exec_superuser("select retry_sync_err_rec(id) from sync_err_rec");
        assert!(deal(&fixture, "100"));
        assert_eq!(rows(&fixture.right, "select v from t"), ["2"], "{here}");
        fixture.left.exec("drop table t");
        fixture.right.exec("drop table t");
    }
}

#[test]
fn tables_beside_one_with_a_coarser_key_are_served() {
    let fixture = linked("coarserbeside");
    fixture
        .left
        .exec("create table t (k numeric primary key); create table other (id int primary key)");
    fixture.right.exec(
        "create table t (k numeric(9,1) primary key); create table other (id int primary key)",
    );
    by_hand(&fixture, r#"{"mode": "queue"}"#);
    attach(&fixture, "other", r#"{"mode": "queue"}"#);
    fixture
        .left
        .exec("begin; insert into other values (1); commit");
    fixture
        .left
        .exec("begin; insert into t values (1.25); commit");
    fixture
        .left
        .exec("begin; insert into other values (2); commit");
    deal(&fixture, "100");
    assert_eq!(records(&fixture), ["INSERT|42804|1|failed"]);
    both_have(&fixture, "other", &["1", "2"]);
}
