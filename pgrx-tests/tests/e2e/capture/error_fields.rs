//! Errors reach clients as PostgreSQL reports them, whatever the session has captured before.

use std::io::Write;
use std::sync::Arc;

use postgres::Client;
use postgres::error::{DbError, ErrorPosition};
use rowsync_harness::{Cluster, Fixture, Side, fails};

use crate::support::common::{linked, mirror, one_way, query, refused, rows, run};

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
        // COPY, of data that it refuses: for its type, for a constraint, for a column too few; and before any.
        "copy e1 from program $$printf '2\\tzz\\n'$$",
        "copy e1 from program $$printf '3\\t3\\n4\\t-4\\n'$$",
        "copy e1 (c, a) from program 'echo 5' (format csv)",
        "copy e1 (a, nosuch) from stdin",
        "copy nosuch to stdout",
    ]
    .iter()
    .map(|sql| fields(&fails(client.batch_execute(sql))))
    .collect()
}

/// Runs COPY FROM with these lines.
fn copy(client: &mut Client, sql: &str, lines: &str) -> u64 {
    let mut writer = client.copy_in(sql).expect("a copy");
    writer.write_all(lines.as_bytes()).expect("lines");
    writer.finish().expect("rows")
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
    fixture.left.exec_superuser(&format!(
        "grant pg_execute_server_program to {}",
        fixture.left.user
    ));
    let (mut client, notices) = fixture.left.client_with_notices();
    let before = failures(&mut client);
    assert_eq!(before[0][11], "e1_a");
    assert!(
        before[2][6].contains("PL/pgSQL function pp()"),
        "{:?}",
        before[2]
    );
    assert_eq!(before[7][10], "posint");
    assert!(
        before[16][6].contains("COPY e1, line 1, column c: \"zz\""),
        "{:?}",
        before[16]
    );
    assert_eq!(before[17][11], "cc");
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

/// What clients do with two tables that differ by their names only.
fn work(client: &mut Client, table: &str) -> Vec<String> {
    let mut told = Vec::new();
    let large = LARGE.replace("into doc", &format!("into {table}"));
    run(client, &large);
    for sql in [
        format!("insert into {table} values (2, 'b'), (3, 'c') returning id, body"),
        format!("update {table} set body = body || 'x' where id > 1 returning id, body"),
        format!("with gone as (delete from {table} where id = 3 returning id) select * from gone"),
        format!("explain (costs off) update {table} set body = 'y' where id = 2"),
        format!("prepare mine(int) as select id from {table} where id = $1"),
        "execute mine(2)".to_owned(),
        "deallocate mine".to_owned(),
        format!("copy (select id from {table} where id = 2) to stdout"),
        format!("do $$ begin update {table} set body = 'do' where id = 2; end $$"),
        format!("create index {table}_body on {table} (md5(body))"),
        format!("drop index {table}_body"),
    ] {
        if sql.starts_with("copy") {
            let mut out = String::new();
            let mut reader = client.copy_out(&sql).expect("a copy");
            std::io::Read::read_to_string(&mut reader, &mut out).expect("rows");
            told.push(out);
        } else {
            told.extend(query(client, &sql));
        }
    }
    let copied = copy(
        client,
        &format!("copy {table} from stdin"),
        "7\tseven\n8\teight\n",
    );
    told.push(copied.to_string());
    let tag = client.execute(&format!("update {table} set body = 'z' where id > 6"), &[]);
    told.push(format!("{:?}", tag.expect("an update")));
    told.into_iter()
        .map(|line| line.replace(table, "it"))
        .collect()
}

/// What other extensions hear of a client's statements: those that it has sent, each as often as it was, with as
/// many rows. Of ours nothing but what runs inside of them.
#[test]
fn the_statements_that_others_see_are_the_clients() {
    let settings = [
        rowsync_harness::cluster::TEST_SETTINGS,
        &[
            ("shared_preload_libraries", "pg_stat_statements"),
            ("pg_stat_statements.track", "top"),
        ],
    ]
    .concat();
    let cluster = Arc::new(Cluster::start_with("statements", &settings).expect("a cluster"));
    let create = |cluster, name| Side::create(cluster, name).expect("a database");
    let fixture = Fixture {
        left: create(&cluster, "statements_left"),
        right: create(rowsync_harness::fixture::clusters().1, "statements_right"),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    fixture
        .left
        .exec_superuser("create extension pg_stat_statements schema public");
    for policy in ["overwrite", "skip"] {
        let (plain, sent) = (format!("plain_{policy}"), format!("sent_{policy}"));
        let columns = "id int primary key, body text";
        fixture
            .left
            .exec(&format!("create table {plain} ({columns})"));
        let options = format!(r#"{{"on_conflict": "{policy}"}}"#);
        mirror(&fixture, &sent, columns, &options);
        let mut client = fixture.left.client();
        let mut seen = |table: &str| {
            fixture
                .left
                .exec_superuser("select pg_stat_statements_reset()");
            let told = work(&mut client, table);
            let statements = rows(
                &fixture.left,
                &format!(
                    "select replace(query, '{table}', 'it'), calls, s.rows from pg_stat_statements s
                       join pg_roles r on r.oid = s.userid
                       where r.rolname = '{}' and query !~ 'reset' order by 1",
                    fixture.left.user
                ),
            );
            (told, statements)
        };
        let expected = seen(&plain);
        assert!(expected.1.len() >= 12, "{expected:#?}");
        assert_eq!(seen(&sent), expected, "{policy}");
        drop(client);
        assert_eq!(fixture.checksum(&fixture.right, &sent).1, 4);
    }
    // Nothing of what we do here runs as somebody else's statement.
    let others = rows(
        &fixture.left,
        "select query from pg_stat_statements where toplevel and query ~ 'sync_(queue|route|state)'",
    );
    assert_eq!(others, [""; 0]);
    drop(fixture);
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
