//! Errors reach clients as PostgreSQL reports them, whatever the session has captured before.

use std::sync::Arc;

use postgres::Client;
use postgres::error::{DbError, ErrorPosition};
use rowsync_harness::{Cluster, Fixture, Side, fails};

use crate::support::common::{linked, mirror, one_way, query, refused, run};

const LARGE: &str =
    "insert into doc select 1, string_agg(md5(i::text), '') from generate_series(1, 2000) i";

/// All fields that PostgreSQL fills in.
fn fields(error: &DbError) -> Vec<String> {
    let position = match error.position() {
        Some(ErrorPosition::Original(at)) => format!("at {at}"),
        Some(ErrorPosition::Internal { position, query }) => format!("at {position} of {query}"),
        None => String::new(),
    };
    let text = |field: Option<&str>| field.unwrap_or("~").to_owned();
    vec![
        error.severity().to_owned(),
        error.code().code().to_owned(),
        error.message().to_owned(),
        text(error.detail()),
        text(error.hint()),
        position,
        text(error.where_()),
        text(error.schema()),
        text(error.table()),
        text(error.column()),
        text(error.datatype()),
        text(error.constraint()),
        text(error.file()),
        text(error.routine()),
    ]
}

/// What goes wrong in statements of all kinds.
fn failures(client: &mut Client) -> Vec<Vec<String>> {
    [
        "alter table e1 add constraint e1_a check (a > 1)",
        "create table e2 (a nosuchtype)",
        "call pp()",
        "do $$ begin execute 'selct 1'; end $$",
        "do $$ begin insert into e1 values (7, -7); end $$",
        "prepare q1(int) as insert into e1 values (9, $1); execute q1(-3)",
        "deallocate all; prepare q2 as select nosuchcolumn from e1",
        "alter table e1 alter column a type posint using -1",
        "create unique index on e1 ((1))",
        "explain analyze insert into e1 values (1, 1)",
        "create view v as select * from nosuchtable",
        "grant select on e1 to nosuchrole",
        "drop table e1parent",
        "truncate e1parent",
        "comment on column e1.nosuch is 'x'",
        "set statement_timeout = 'x'",
    ]
    .iter()
    .map(|sql| fields(&fails(client.batch_execute(sql))))
    .collect()
}

#[test]
fn errors_of_utility_statements_keep_all_fields_after_a_large_value() {
    let fixture = one_way("fields", "id int primary key", "{}");
    mirror(&fixture, "doc", "id int primary key, body text", "{}");
    fixture.left.exec(
        "create domain posint as int check (value > 0);
         create table e1 (a int primary key, c int constraint cc check (c > 0));
         insert into e1 values (1, 1), (2, 2);
         create table e1parent (a int primary key);
         create table e1child (a int references e1parent);
         create procedure pp() language plpgsql as $$ begin insert into e1 values (1, 5); end $$",
    );
    let (mut client, notices) = fixture.left.client_with_notices();
    let before = failures(&mut client);
    assert_eq!(before[0][11], "e1_a");
    assert!(
        before[2][6].contains("PL/pgSQL function pp()"),
        "{:?}",
        before[2]
    );
    assert_eq!(before[7][10], "posint");
    let tell = "do $$ begin raise warning using message = 'w', detail = 'd', hint = 'h', \
                errcode = '01234', column = 'c', table = 't'; end $$";
    run(&mut client, tell);
    run(&mut client, "deallocate all");
    run(&mut client, LARGE);
    assert_eq!(failures(&mut client), before);
    run(&mut client, tell);
    let said = std::mem::take(&mut *notices.lock().expect("notices"));
    let said: Vec<_> = said
        .iter()
        .filter(|n| n.severity() == "WARNING")
        .map(fields)
        .collect();
    assert_eq!(said.len(), 2);
    assert_eq!(said[0], said[1]);
    let stacked = "create function pg_temp.name() returns text language plpgsql as $$
        declare c text; t text; begin
          execute 'alter table e1 add constraint e1_a check (a > 1)'; return null;
        exception when check_violation then
          get stacked diagnostics c = constraint_name, t = table_name; return c || ' of ' || t;
        end $$";
    run(&mut client, stacked);
    assert_eq!(query(&mut client, "select pg_temp.name()"), ["e1_a of e1"]);
    assert_eq!(fixture.checksum(&fixture.right, "doc").1, 1);
}

#[test]
fn values_are_still_read_before_a_statement_takes_their_table_away() {
    let fixture = linked("hooked");
    mirror(&fixture, "doc", "id int primary key, body text", "{}");
    mirror(&fixture, "other", "id int primary key, body text", "{}");
    let mut client = fixture.left.client();
    run(
        &mut client,
        &format!("begin; {LARGE}; alter table doc alter id type bigint; commit"),
    );
    assert_eq!(fixture.checksum(&fixture.right, "doc").1, 1);
    run(&mut client, "begin");
    refused(&mut client, "drop table nosuch", "42P01");
    run(&mut client, "rollback; insert into other values (1, 'x')");
    assert_eq!(fixture.checksum(&fixture.right, "other").1, 1);
}

#[test]
fn backtraces_are_for_nobody() {
    let cluster = Arc::new(Cluster::start("backtrace").expect("a cluster"));
    cluster
        .stop(rowsync_harness::cluster::Shutdown::Fast)
        .expect("a stop");
    cluster.set_environment(&[("RUST_BACKTRACE", "1"), ("RUST_LIB_BACKTRACE", "1")]);
    cluster.start_again().expect("a start");
    let create = |name| Side::create(&cluster, name).expect("a database");
    let fixture = Fixture {
        left: create("trace_left"),
        right: create("trace_right"),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    let mut client = fixture.left.client();
    run(&mut client, "create table t (id int primary key)");
    // Raised by the extension itself, by the server below it, and as a Rust panic would be.
    for (sql, state) in [
        ("select attach_sync('t', 'dst', 'a.b.c.d')", "22023"),
        ("select attach_sync('t', 'nosuch')", "42704"),
        ("select sync_change_sql('x', 'y')", "XX000"),
        (
            "select sync_compare_versions('t', 1, 'int', 'x', 1, 'y')",
            "22P02",
        ),
    ] {
        let error = refused(&mut client, sql, state);
        let detail = error.detail().unwrap_or_default();
        assert!(
            !detail.contains("pg_rowsync") && !detail.contains(".rs"),
            "{sql}: {detail}"
        );
        assert!(detail.lines().count() <= 1, "{sql}: {detail}");
    }
    let log = cluster.log();
    assert!(
        !log.contains("stack backtrace") && !log.contains("pgrx"),
        "{log}"
    );
    drop(client);
    drop(fixture);
}
