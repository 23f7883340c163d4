//! What those may do who only write to a table that is sent, and how they may write.

use postgres::Client;
use rowsync_harness::{Fixture, Side};

use crate::support::common::{
    Role, attach_sql, both_have, linked, mirror, one_way, outage, query, queued, recover, refused,
    rows, run, same, table,
};

const COLUMNS: &str = "id int primary key, v text";
const SYNC: &str = r#"{"mode": "sync"}"#;

/// A role that may write the table `t` of the side, and a session of it.
fn writer(fixture: &Fixture) -> (Role, Client) {
    let role = Role::create(&fixture.left, "writer", "");
    fixture.left.exec(&format!(
        "grant all on t to {0}; revoke trigger on t from {0}",
        role.name
    ));
    let client = role.client();
    (role, client)
}

#[test]
fn a_writer_sees_and_touches_nothing_of_the_extensions() {
    let fixture = one_way("outsider", COLUMNS, "{}");
    let (_role, mut client) = writer(&fixture);
    outage(&fixture.right);
    run(&mut client, "insert into t values (1, 'a')");
    recover(&fixture.right);
    assert_eq!(queued(&fixture), 1);
    let relations = rows(
        &fixture.left,
        "select c.oid::regclass from pg_depend d join pg_class c on c.oid = d.objid
          where d.classid = 'pg_class'::regclass and d.deptype = 'e' and c.relkind in ('r', 'v')
            and d.refobjid = (select oid from pg_extension where extname = 'pg_rowsync')
            and c.relname <> 'sync_tables'",
    );
    // It shows owners what is theirs.
    assert_eq!(
        query(&mut client, "select count(*) from sync_tables"),
        ["0"]
    );
    assert!(relations.len() >= 10, "{relations:?}");
    for name in &relations {
        for sql in [
            format!("select from {name}"),
            format!("select count(*) from {name}"),
            format!("insert into {name} default values"),
            format!("delete from {name}"),
            format!("truncate {name}"),
            format!("begin; lock table {name} in access share mode"),
            format!("comment on table {name} is ''"),
        ] {
            let error = client.batch_execute(&sql).expect_err(&sql);
            run(&mut client, "rollback");
            let code = error.code().map(|code| code.code().to_owned());
            // Some statements stumble over the kind of a view first.
            assert!(
                matches!(code.as_deref(), Some("42501" | "42809" | "55000")),
                "{sql}: {error:?}"
            );
        }
        let any = format!(
            "select has_table_privilege('{name}', 'select, insert, update, delete, truncate, references, trigger')
                 or has_any_column_privilege('{name}', 'select, insert, update, references')"
        );
        assert_eq!(query(&mut client, &any), ["f"], "{name}");
    }
    for name in [
        "sync_queue_id_seq",
        "sync_route_id_seq",
        "sync_drain_id_seq",
        "sync_conflict_log_id_seq",
    ] {
        refused(&mut client, &format!("select nextval('{name}')"), "42501");
        refused(&mut client, &format!("select setval('{name}', 1)"), "42501");
    }
    for call in [
        "deal_sync_err_rec(1)",
        "deal_sync_err_rec(1, 'dst')",
        "retry_sync_err_rec(1)",
        "start_sync_worker()",
        "stop_sync_worker()",
    ] {
        let error = refused(&mut client, &format!("select {call}"), "42501");
        assert!(
            error
                .message()
                .starts_with("permission denied for function"),
            "{error:?}"
        );
    }
    refused(&mut client, "select detach_sync('t', 'dst')", "42501");
    refused(
        &mut client,
        "alter server dst options (set port '1')",
        "42501",
    );
    refused(
        &mut client,
        "set pg_rowsync.application_name = 'x'",
        "42501",
    );
    refused(&mut client, "set pg_rowsync.log_conflicts = 'off'", "42501");
    assert_eq!(queued(&fixture), 1);
}

#[test]
fn rows_are_sent_whoever_writes_them_and_however() {
    let fixture = one_way("however", COLUMNS, SYNC);
    let (role, mut client) = writer(&fixture);
    let user = &fixture.left.user;
    let name = &role.name;
    run(&mut client, "insert into t values (1, 'a')");
    // Under a role that the session has set, and under one that may do nothing else at all.
    fixture
        .left
        .exec_superuser(&format!("grant {name} to {user}"));
    let mut owner = fixture.left.client();
    run(&mut owner, &format!("set search_path = {user}"));
    run(
        &mut owner,
        &format!("set role {name}; insert into t values (2, 'b'); reset role"),
    );
    run(
        &mut owner,
        &format!("begin; set local role {name}; insert into t values (3, 'c'); commit"),
    );
    // Through functions with the rights of their owner: the table's, and one who may only write.
    let definer = |name: &str, id: i32| {
        format!(
            "create function {name}() returns void language sql security definer
               set search_path = {user} as $$ insert into t values ({id}, 'f') $$"
        )
    };
    run(&mut owner, &definer("as_owner", 4));
    run(&mut client, &definer("as_writer", 5));
    let other = Role::create(&fixture.left, "caller", "");
    let mut caller = other.client();
    refused(&mut caller, "insert into t values (6, 'x')", "42501");
    run(&mut caller, "select as_owner(); select as_writer()");
    // Where the role changes between writing and commit.
    let mut superuser = fixture.left.superuser();
    run(
        &mut superuser,
        &format!(
            "set search_path = {user}; begin; set session authorization {name};
             insert into t values (6, 'g'); set local role none; commit"
        ),
    );
    // The other side knows only the mapping's role.
    let sessions = format!(
        "select distinct usename from pg_stat_activity
          where application_name = 'pg_rowsync' and datname = '{}'",
        fixture.right.db
    );
    assert_eq!(
        rows(&fixture.right, &sessions),
        [fixture.right.user.as_str()]
    );
    both_have(&fixture, "t", &["1|a", "2|b", "3|c", "4|f", "5|f", "6|g"]);
    assert_eq!(queued(&fixture), 0);
}

/// Row security decides which rows a writer reaches. What has been written is sent as it is.
#[test]
fn row_security_here_hides_nothing_from_the_other_side() {
    for mode in ["sync", "queue"] {
        let fixture = one_way("source_rls", COLUMNS, &format!(r#"{{"mode": "{mode}"}}"#));
        let (role, mut client) = writer(&fixture);
        run(
            &mut fixture.left.client(),
            "insert into t values (1, 'a'), (2, 'b'), (3, 'b')",
        );
        fixture.left.exec(&format!(
            "alter table t enable row level security, force row level security;
             create policy reach on t to {} using (id < 3);
             create policy put on t for insert to {0} with check (true)",
            role.name
        ));
        // It may put a row that it cannot see, and reach one through a key only if it sees it.
        run(
            &mut client,
            "insert into t values (10, 'x'); update t set v = 'y'; delete from t where id = 2",
        );
        assert_eq!(query(&mut client, "select * from t"), ["1|y"]);
        run(&mut client, "delete from t where id in (3, 10)");
        // The owner sees nothing at all, and what a cascade or a superuser does is sent all the same.
        run(
            &mut fixture.left.client(),
            "update t set v = 'z'; delete from t",
        );
        fixture.left.exec_superuser(&format!(
            "update {}.t set v = 'w' where id = 3",
            fixture.left.user
        ));
        if mode == "queue" {
            assert!(crate::support::common::deal(&fixture, "100"));
        }
        both_have(&fixture, "t", &["1|y", "10|x", "3|w"]);
    }
}

#[test]
fn attaching_takes_the_trigger_right_and_the_owners_usage() {
    let fixture = linked("attaching");
    let user = fixture.left.user.clone();
    let holder = Role::create(&fixture.left, "holder", "");
    let stranger = Role::create(&fixture.left, "stranger", "");
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!(
            "create table t ({COLUMNS}); create table u ({COLUMNS})"
        ));
    }
    fixture
        .left
        .exec(&format!("grant trigger on t, u to {}", holder.name));
    fixture
        .left
        .exec_superuser(&format!("alter table {user}.u owner to {}", stranger.name));
    fixture
        .left
        .exec_superuser(&format!("grant trigger on {user}.u to {}", holder.name));
    refused(
        &mut stranger.client(),
        &attach_sql(&fixture, "t", SYNC),
        "42501",
    );
    let mut client = holder.client();
    // Whose rows they are must be allowed to use the server: not who attaches.
    let error = refused(&mut client, &attach_sql(&fixture, "u", SYNC), "42501");
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains(&stranger.name)),
        "{error:?}"
    );
    run(&mut client, &attach_sql(&fixture, "t", SYNC));
    // Nor may an owner's table be sent by CREATE TRIGGER where attach_sync refuses.
    run(
        &mut client,
        &format!(
            "create trigger s after insert on {user}.u for each row
               execute function sync_dml('dst', '{}', 'u')",
            fixture.right.user
        ),
    );
    let error = refused(
        &mut stranger.client(),
        "insert into u values (1, 'a')",
        "42501",
    );
    assert_eq!(error.message(), "permission denied for foreign server dst");
    fixture.left.exec("insert into t values (1, 'a')");
    both_have(&fixture, "t", &["1|a"]);
    assert_eq!(table(&fixture.right, "u"), [""; 0]);
    refused(
        &mut stranger.client(),
        "select detach_sync('t', 'dst')",
        "42501",
    );
    refused(&mut client, "select detach_sync('t', 'dst')", "42501");
}

#[test]
fn the_queue_is_written_for_a_writer_and_not_by_him() {
    let fixture = linked("for_writer");
    mirror(&fixture, "t", COLUMNS, r#"{"mode": "queue"}"#);
    let (role, mut client) = writer(&fixture);
    run(
        &mut client,
        "begin; insert into t values (1, 'a'); set local role none; commit",
    );
    // What he defines is not met on the way there.
    let name = &role.name;
    fixture.left.exec_superuser(&format!(
        "grant create on database {} to {name}",
        fixture.left.db
    ));
    run(
        &mut client,
        &format!(
            "create schema {name}_evil; set search_path = {name}_evil, {user}, pg_catalog;
             create table sync_queue (like t);
             create function lower(text) returns text language plpgsql as
               $$ begin raise 'mine'; end $$;
             create function md5(text) returns text language plpgsql as
               $$ begin raise 'mine'; end $$;
             create function {name}_evil.no(text, text) returns boolean language plpgsql as
               $$ begin raise 'mine'; end $$;
             create operator {name}_evil.= (function = no, leftarg = text, rightarg = text);
             create temp table sync_route (id int); create temp table pg_foreign_server (oid oid);
             insert into {user}.t values (2, 'b')",
            user = fixture.left.user
        ),
    );
    assert_eq!(
        rows(&fixture.left, "select op from public.sync_err_rec"),
        ["INSERT", "INSERT"]
    );
    assert!(crate::support::common::deal(&fixture, "10"));
    assert_eq!(same(&fixture, "t"), ["1|a", "2|b"]);
    // And what reaches the other side is that of the owner's mapping.
    let Side { user, .. } = &fixture.right;
    let owners = rows(
        &fixture.right,
        &format!(
            "select tableowner from pg_tables where tablename = 't' and schemaname = '{user}'"
        ),
    );
    assert_eq!(owners, [user.as_str()]);
}
