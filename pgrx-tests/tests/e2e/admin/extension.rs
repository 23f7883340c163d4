//! Installing and dropping the extension, and `attach_sync` with its defaults.

use rowsync_harness::Fixture;

use crate::support::common::{
    both_have, deal, linked, one_way, outage, query, queued, recover, refused, rows, run, table,
};

const COLUMNS: &str = "id int primary key, v text";

#[test]
fn the_extension_works_in_another_schema() {
    let fixture = linked("schema");
    fixture.left.exec_superuser(
        r#"drop extension pg_rowsync cascade; create schema "Other x. one";
           create extension pg_rowsync schema "Other x. one";"#,
    );
    let user = &fixture.left.user;
    fixture.left.exec_superuser(&format!(
        r#"grant usage on schema "Other x. one" to {user};
           grant usage on foreign data wrapper pg_rowsync to {user}"#
    ));
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table t ({COLUMNS})"));
    }
    let other = r#""Other x. one""#;
    fixture.left.exec(&format!(
        "select {other}.attach_sync('t', 'dst', '{}.t')",
        fixture.right.user
    ));
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t values (1, 'a'); update t set v = 'b'",
    );
    both_have(&fixture, "t", &["1|b"]);
    outage(&fixture.right);
    run(&mut client, "insert into t values (2, 'c')");
    recover(&fixture.right);
    assert_eq!(
        rows(
            &fixture.left,
            &format!("select op from {other}.sync_err_rec")
        ),
        ["INSERT"]
    );
    let connected = format!("select server, pending from {other}.sync_status");
    assert_eq!(rows(&fixture.left, &connected), ["dst|1"]);
    assert!(
        fixture
            .left
            .query_one::<bool>(&format!("select {other}.deal_sync_err_rec(10)"))
    );
    both_have(&fixture, "t", &["1|b", "2|c"]);
    fixture
        .left
        .exec(&format!("select {other}.detach_sync('t', 'dst')"));
    let error = refused(
        &mut fixture.left.superuser(),
        &format!("alter extension pg_rowsync set schema {user}"),
        "0A000",
    );
    assert!(
        error.message().contains("does not support SET SCHEMA"),
        "{error:?}"
    );
}

/// Everything that came with the extension or depends on it.
const OBJECTS: &str = "
    select 'function ' || proname from pg_proc where prosrc like '%_wrapper'
                                    or proname like '%sync\\_%' and proname !~ '^(pg_|binary|unique)'
    union all select 'relation ' || relname from pg_class where relname like 'sync\\_%'
    union all select 'wrapper ' || fdwname from pg_foreign_data_wrapper
    union all select 'server ' || srvname from pg_foreign_server
    union all select 'trigger ' || tgname from pg_trigger where not tgisinternal
    union all select 'event trigger ' || evtname from pg_event_trigger
    union all select 'type ' || typname from pg_type where typname like '%sync\\_%'
    union all select 'extension ' || extname from pg_extension where extname <> 'plpgsql'
    order by 1";

#[test]
fn dropped_it_leaves_nothing_and_disturbs_no_session() {
    let fixture = one_way("dropped", COLUMNS, "{}");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    both_have(&fixture, "t", &["1|a"]);
    outage(&fixture.right);
    run(&mut client, "insert into t values (2, 'b')");
    recover(&fixture.right);
    assert!(rows(&fixture.left, OBJECTS).len() > 10);
    fixture
        .left
        .exec_superuser("drop extension pg_rowsync cascade");
    assert_eq!(rows(&fixture.left, OBJECTS), [""; 0]);
    for i in 3..6 {
        run(
            &mut client,
            &format!("insert into t values ({i}, 'c'); truncate t"),
        );
        run(
            &mut client,
            "begin; savepoint a; insert into t values (0, 'x'); rollback to a; commit",
        );
    }
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    // And back again, in the same session.
    fixture
        .left
        .exec_superuser("create extension pg_rowsync schema public");
    let user = &fixture.left.user;
    fixture.left.exec_superuser(&format!(
        "grant usage on foreign data wrapper pg_rowsync to {user}"
    ));
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    crate::support::common::attach(&fixture, "t", "{}");
    run(&mut client, "insert into t values (1, 'new')");
    both_have(&fixture, "t", &["1|new"]);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn dropped_by_the_transaction_that_changed_something() {
    let fixture = one_way("dropping", COLUMNS, "{}");
    let mut admin = fixture.left.superuser();
    run(
        &mut admin,
        &format!("set search_path = {}, public", fixture.left.user),
    );
    let sql = "begin; insert into t values (1, 'a'); drop extension pg_rowsync cascade";
    // Whichever way it ends, both sides must agree.
    let ended = admin
        .batch_execute(sql)
        .and_then(|()| admin.batch_execute("commit"));
    if ended.is_err() {
        run(&mut admin, "rollback");
    }
    crate::support::common::same(&fixture, "t");
    run(&mut admin, "select 1");
}

#[test]
fn attach_and_detach_with_all_defaults() {
    let fixture = Fixture::new("defaults");
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    let schema = &fixture.left.user;
    fixture.left.exec(&format!("create table t ({COLUMNS})"));
    // Without a target it is the table of the same schema and name.
    let user = &fixture.right.user;
    fixture
        .right
        .exec_superuser(&format!("create schema {schema} authorization {user}"));
    fixture
        .right
        .exec(&format!("create table {schema}.t ({COLUMNS})"));
    let mut client = fixture.left.client();
    run(&mut client, "select attach_sync('t', 'dst')");
    run(&mut client, "insert into t values (1, 'a'), (2, 'b')");
    assert_eq!(
        rows(&fixture.right, &format!("select * from {schema}.t")),
        ["1|a", "2|b"]
    );
    run(&mut client, "truncate t; insert into t values (3, 'c')");
    assert_eq!(
        rows(&fixture.right, &format!("select * from {schema}.t")),
        ["3|c"]
    );
    let triggers = "select tgname, tgtype from pg_trigger where tgrelid = 't'::regclass order by 1";
    let made = rows(&fixture.left, triggers);
    assert_eq!(
        made,
        ["00_pg_rowsync_dst_dml|29", "00_pg_rowsync_dst_truncate|32"]
    );
    run(&mut client, "select detach_sync('t', 'dst')");
    assert_eq!(rows(&fixture.left, triggers), [""; 0]);
    run(&mut client, "delete from t");
    assert_eq!(
        rows(&fixture.right, &format!("select * from {schema}.t")),
        ["3|c"]
    );
    refused(&mut client, "select detach_sync('t', 'dst')", "42704");
}

#[test]
fn attach_takes_a_target_with_and_without_schema() {
    let fixture = linked("target");
    fixture.left.exec(&format!("create table t ({COLUMNS})"));
    fixture
        .right
        .exec(&format!(r#"create table "T.2" ({COLUMNS})"#));
    let user = &fixture.right.user;
    let schema = &fixture.left.user;
    fixture
        .right
        .exec_superuser(&format!("create schema {schema} authorization {user}"));
    fixture
        .right
        .exec(&format!("create table {schema}.plain ({COLUMNS})"));
    let mut client = fixture.left.client();
    for (target, found) in [
        (format!(r#"{user}."T.2""#), r#""T.2""#.to_owned()),
        ("plain".into(), format!("{schema}.plain")),
    ] {
        run(
            &mut client,
            &format!("select attach_sync('t', 'dst', '{target}')"),
        );
        run(&mut client, "delete from t; insert into t values (1, 'a')");
        assert_eq!(
            rows(&fixture.right, &format!("select * from {found}")),
            ["1|a"]
        );
        run(&mut client, "select detach_sync('t', 'dst')");
    }
    // A second time it changes nothing.
    run(&mut client, "select attach_sync('t', 'dst', 'plain')");
    run(&mut client, "select attach_sync('t', 'dst', 'plain')");
    assert_eq!(
        rows(
            &fixture.left,
            "select count(*) from pg_trigger where tgrelid = 't'::regclass"
        ),
        ["2"]
    );
}

#[test]
fn the_owners_mapping_is_used_whoever_writes() {
    let fixture = one_way("writer", COLUMNS, "{}");
    let schema = &fixture.left.user;
    let writer = format!("{}_w", fixture.left.user);
    fixture
        .left
        .exec_superuser(&format!("create role {writer} login password 'w'"));
    fixture.left.exec(&format!(
        "grant usage on schema {schema} to {writer}; grant all on t to {writer}"
    ));
    let mut client = fixture
        .left
        .cluster
        .connect(&fixture.left.db, &writer, "w")
        .expect("a writer");
    run(
        &mut client,
        &format!("insert into {schema}.t values (1, 'a')"),
    );
    both_have(&fixture, "t", &["1|a"]);
    outage(&fixture.right);
    run(&mut client, &format!("update {schema}.t set v = 'b'"));
    recover(&fixture.right);
    refused(&mut client, "select * from sync_err_rec", "42501");
    assert_eq!(
        query(&mut client, "select user_name from sync_connections()"),
        [""; 0]
    );
    assert!(deal(&fixture, "10"));
    both_have(&fixture, "t", &["1|b"]);
    drop(client);
    fixture
        .left
        .exec_superuser(&format!("drop owned by {writer}; drop role {writer}"));
}
