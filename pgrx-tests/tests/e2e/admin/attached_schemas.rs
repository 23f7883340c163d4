//! `attach_sync_schema`: every table of a schema that can be sent, and why the others cannot.

use std::time::{Duration, Instant};

use rowsync_harness::{Fixture, await_until};

use crate::support::common::{
    Role, closed_port, link_with, linked, queued, refused, rows, run, table,
};

const COLUMNS: &str = "id int primary key, v text";

/// What `attach_sync_schema` says of the left owner's schema, as its owner.
fn attach(fixture: &Fixture, server: &str, more: &str) -> Vec<String> {
    let from = &fixture.left.user;
    let to = &fixture.right.user;
    let mut client = fixture.left.client();
    crate::support::common::query(
        &mut client,
        &format!(
            "select rel, attached, reason from attach_sync_schema('{from}', '{server}', '{to}'{more})"
        ),
    )
}

fn triggers(fixture: &Fixture) -> Vec<String> {
    rows(
        &fixture.left,
        "select tgrelid::regclass::text, count(*) from pg_trigger where tgname like '00_pg_rowsync%'
          group by 1 order by tgrelid::regclass::text collate \"C\"",
    )
}

#[test]
fn every_table_is_attached_or_says_why_not() {
    let fixture = linked("schema");
    let other = Role::create(&fixture.left, "other", "");
    let schema = &fixture.left.user;
    fixture.left.exec_superuser(&format!(
        "grant create on database {} to {schema}",
        fixture.left.db
    ));
    fixture.left.exec(&format!(
        "create table b ({COLUMNS}); create unlogged table a ({COLUMNS});
         create table nokey (v text);
         create table onlyhere ({COLUMNS});
         create table parts ({COLUMNS}) partition by range (id);
         create table parts1 partition of parts for values from (0) to (10);
         create view v as select 1; create sequence s; create materialized view m as select 1;
         create schema elsewhere;
         create table elsewhere.parent ({COLUMNS}) partition by range (id);
         create table stray partition of elsewhere.parent for values from (0) to (10)"
    ));
    run(
        &mut other.client(),
        &format!("create table {schema}.theirs ({COLUMNS})"),
    );
    fixture.right.exec(&format!(
        "create table a ({COLUMNS}); create table b ({COLUMNS}); create table parts ({COLUMNS});
         create table theirs ({COLUMNS})"
    ));
    let said = attach(&fixture, "dst", "");
    let to = &fixture.right.user;
    let expected = [
        ("a|t|~".to_owned(), true),
        ("b|t|~".to_owned(), true),
        (
            "nokey|f|table \"nokey\" has neither a primary key".to_owned(),
            false,
        ),
        (
            format!("onlyhere|t|relation \"{to}.onlyhere\" does not exist on server"),
            false,
        ),
        ("parts|t|~".to_owned(), true),
        (
            "stray|f|it is a partition of elsewhere.parent".to_owned(),
            false,
        ),
        ("theirs|f|".to_owned(), false),
    ];
    assert_eq!(said.len(), expected.len(), "{said:?}");
    for (said, (expected, is_whole)) in said.iter().zip(&expected) {
        let fits = if *is_whole {
            said == expected
        } else {
            said.starts_with(expected)
        };
        assert!(fits, "{said} for {expected}");
    }
    assert!(
        said[6].contains("user mapping") || said[6].contains("permission"),
        "{}",
        said[6]
    );
    assert_eq!(
        triggers(&fixture),
        ["a|2", "b|2", "onlyhere|2", "parts|2", "parts1|1"]
    );
    fixture.left.exec(
        "insert into a values (1, 'a'); insert into b values (1, 'b'); insert into parts values (1, 'p')",
    );
    for (name, value) in [("a", "1|a"), ("b", "1|b"), ("parts", "1|p")] {
        assert_eq!(table(&fixture.right, name), [value]);
    }
    // Again: what has come since is attached, what was is changed.
    fixture.left.exec("drop table nokey, onlyhere, stray");
    fixture.left.exec(&format!("create table late ({COLUMNS})"));
    fixture
        .right
        .exec(&format!("create table late ({COLUMNS})"));
    fixture
        .left
        .exec_superuser(&format!("drop table {schema}.theirs"));
    let said = attach(&fixture, "dst", r#", '{"mode": "queue"}'"#);
    assert_eq!(said, ["a|t|~", "b|t|~", "late|t|~", "parts|t|~"]);
    fixture
        .left
        .exec("insert into late values (1, 'l'); insert into a values (2, 'a')");
    assert_eq!(queued(&fixture), 2);
    assert_eq!(
        rows(&fixture.left, "select distinct mode from sync_tables"),
        ["queue"]
    );
    fixture.left.exec("drop schema elsewhere cascade");
}

#[test]
fn without_a_target_schema_it_is_that_of_the_same_name() {
    let fixture = linked("samename");
    let schema = &fixture.left.user;
    fixture.right.exec_superuser(&format!(
        "create schema {schema} authorization {}",
        fixture.right.user
    ));
    fixture.left.exec(&format!("create table t ({COLUMNS})"));
    fixture
        .right
        .exec(&format!("create table {schema}.t ({COLUMNS})"));
    let mut client = fixture.left.client();
    run(
        &mut client,
        &format!("select attach_sync_schema('{schema}', 'dst')"),
    );
    run(&mut client, "insert into t values (1, 'a')");
    assert_eq!(
        rows(&fixture.right, &format!("select * from {schema}.t")),
        ["1|a"]
    );
}

#[test]
fn what_is_wrong_for_all_is_an_error() {
    let fixture = linked("schemaerr");
    fixture.left.exec(&format!("create table t ({COLUMNS})"));
    let mut client = fixture.left.client();
    let schema = &fixture.left.user;
    for (call, sqlstate) in [
        ("'nowhere', 'dst'".to_owned(), "3F000"),
        (format!("'{schema}', 'nowhere'"), "42704"),
        ("null, 'dst'".to_owned(), "22023"),
        (format!("'{schema}', null"), "22023"),
        (
            format!(r#"'{schema}', 'dst', null, '{{"moed": "sync"}}'"#),
            "22023",
        ),
    ] {
        refused(
            &mut client,
            &format!("select attach_sync_schema({call})"),
            sqlstate,
        );
    }
    assert_eq!(triggers(&fixture), [""; 0]);
}

#[test]
fn a_server_that_cannot_be_reached_is_asked_once() {
    let fixture = linked("schemaaway");
    link_with(&fixture, "away", closed_port(), &fixture.right.password);
    for n in 0..5 {
        fixture.left.exec(&format!("create table t{n} ({COLUMNS})"));
    }
    let said = attach(&fixture, "away", "");
    assert_eq!(said.len(), 5);
    for (n, said) in said.iter().enumerate() {
        let start = format!("t{n}|t|server \"away\" could not be asked about the target");
        assert!(said.starts_with(&start), "{said}");
    }
}

#[test]
fn a_table_that_is_locked_keeps_no_other_from_being_attached() {
    let fixture = linked("schemalock");
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!(
            "create table a ({COLUMNS}); create table b ({COLUMNS})"
        ));
    }
    let mut writer = fixture.left.client();
    run(&mut writer, "begin; insert into a values (1, 'a')");
    let from = &fixture.left.user;
    let to = &fixture.right.user;
    let call =
        format!("select rel, attached, reason from attach_sync_schema('{from}', 'dst', '{to}')");
    let mut client = fixture.left.client();
    run(&mut client, "set lock_timeout = '200ms'");
    let said = crate::support::common::query(&mut client, &call);
    assert_eq!(
        said,
        ["a|f|canceling statement due to lock timeout", "b|t|~"]
    );
    assert_eq!(triggers(&fixture), ["b|2"]);
    // A request to cancel ends all of it.
    run(
        &mut client,
        "select detach_sync('b', 'dst'); set lock_timeout = 0; set statement_timeout = '300ms'",
    );
    refused(&mut client, &call, "57014");
    assert_eq!(triggers(&fixture), [""; 0]);
    run(&mut writer, "commit");
    run(&mut client, "set statement_timeout = 0");
    assert_eq!(
        crate::support::common::query(&mut client, &call),
        ["a|t|~", "b|t|~"]
    );
    run(&mut writer, "update a set v = 'b'");
    assert_eq!(table(&fixture.right, "a"), ["1|b"]);
}

#[test]
fn a_thousand_tables_are_attached_in_seconds() {
    const TABLES: usize = 1_000;
    let fixture = linked("thousand");
    for side in [&fixture.left, &fixture.right] {
        let mut client = side.client();
        run(
            &mut client,
            &format!(
                "do $$ begin for i in 1..{TABLES} loop
                   execute format('create table t%s (id int primary key, v text)', i);
                   if i % 100 = 0 then commit; end if;
                 end loop; end $$"
            ),
        );
    }
    let from = &fixture.left.user;
    let to = &fixture.right.user;
    let start = Instant::now();
    let count = format!(
        "select count(*), count(*) filter (where attached and reason is null)
           from attach_sync_schema('{from}', 'dst', '{to}')"
    );
    let mut client = fixture.left.client();
    assert_eq!(
        crate::support::common::query(&mut client, &count),
        [format!("{TABLES}|{TABLES}")]
    );
    let took = start.elapsed();
    println!("{TABLES} tables attached in {took:?}");
    assert!(took < Duration::from_secs(60), "{took:?}");
    let start = Instant::now();
    let live = "select count(*) from sync_tables where state = 'live'";
    assert_eq!(rows(&fixture.left, live), [TABLES.to_string()]);
    println!("and shown in {:?}", start.elapsed());
    run(
        &mut client,
        "insert into t1 values (1, 'a'); insert into t1000 values (1, 'a')",
    );
    await_until(Duration::from_secs(5), "both rows", || {
        rows(
            &fixture.right,
            "select v from t1 union all select v from t1000",
        ) == ["a", "a"]
    });
}
