//! The NOTICE of `attach_sync` when the other side sends the table back and the policies of the two
//! leave concurrent changes different.

use std::time::{Duration, Instant};

use rowsync_harness::{Fixture, Proxy, Side};

use crate::support::common::{closed_port, link_with, refused, rows, run, table};

const COLUMNS: &str = "id int primary key, v text, ver int";
const NEWEST: &str = r#"{"on_conflict": "newest", "version_column": "ver"}"#;

/// Servers `dst` and tables `t` on both sides; nothing is attached.
fn opposed(label: &str) -> Fixture {
    let fixture = Fixture::new(label);
    for (side, other) in [
        (&fixture.left, &fixture.right),
        (&fixture.right, &fixture.left),
    ] {
        fixture.link(side, other, "dst", &[]);
        side.exec(&format!("create table t ({COLUMNS})"));
    }
    fixture
}

/// Attaches `t` and says what was said about it: messages and hints of level NOTICE. Warnings are told in
/// [`crate::admin::attach_tells`].
fn attach(side: &Side, other: &Side, options: &str) -> Vec<(String, Option<String>)> {
    attach_as(
        side,
        &format!(
            "select attach_sync('t', 'dst', '{}.t', '{options}')",
            other.user
        ),
    )
}

fn attach_as(side: &Side, sql: &str) -> Vec<(String, Option<String>)> {
    let (mut client, notices) = side.client_with_notices();
    run(&mut client, sql);
    let mut said = std::mem::take(&mut *notices.lock().expect("notices"));
    said.retain(|notice| notice.severity() != "WARNING");
    for notice in &said {
        assert_eq!(
            (notice.severity(), notice.code().code()),
            ("NOTICE", "00000"),
            "{notice:?}"
        );
    }
    said.iter()
        .map(|n| (n.message().to_owned(), n.hint().map(str::to_owned)))
        .collect()
}

#[track_caller]
fn warned(said: &[(String, Option<String>)]) {
    let [(message, Some(hint))] = said else {
        panic!("{said:?}")
    };
    let expected =
        "table \"t\" is also sent back from server \"dst\": concurrent changes may not converge";
    assert_eq!(message, expected);
    for part in [
        "\"on_conflict\": \"newest\"",
        "\"version_column\"",
        "one side only",
    ] {
        assert!(hint.contains(part), "{hint}");
    }
}

#[test]
fn the_second_master_hears_of_a_policy_that_need_not_converge() {
    for options in [
        "{}",
        r#"{"on_conflict": "skip"}"#,
        r#"{"on_conflict": "error", "mode": "sync"}"#,
    ] {
        let fixture = opposed("second");
        assert_eq!(
            attach(&fixture.left, &fixture.right, options),
            [],
            "{options}"
        );
        warned(&attach(&fixture.right, &fixture.left, options));
        // The triggers are there all the same.
        fixture.right.exec("insert into t values (1, 'x', 1)");
        assert_eq!(table(&fixture.left, "t"), ["1|x|1"]);
    }
}

#[test]
fn it_is_heard_whatever_backslashes_mean_there() {
    let fixture = opposed("strings");
    attach(&fixture.left, &fixture.right, "{}");
    for side in [&fixture.left, &fixture.right] {
        let user = &side.user;
        side.exec_superuser(&format!(
            "alter role {user} set standard_conforming_strings = off"
        ));
    }
    warned(&attach(&fixture.right, &fixture.left, "{}"));
    // Nor here.
    for side in [&fixture.right, &fixture.left] {
        side.exec("select detach_sync('t', 'dst')");
    }
}

#[test]
fn nothing_is_said_where_both_sides_decide_by_newest() {
    let fixture = opposed("newestboth");
    assert_eq!(attach(&fixture.left, &fixture.right, NEWEST), []);
    assert_eq!(attach(&fixture.right, &fixture.left, NEWEST), []);
}

/// A trigger as frameworks have it, without and with a condition; and one that does something else.
#[test]
fn a_trigger_that_replaces_the_version_is_told_where_nothing_is_kept() {
    let touch = |set: &str| {
        format!(
            "create or replace function touch() returns trigger language plpgsql as
               $$ begin {set}; return new; end $$"
        )
    };
    let fixture = opposed("noticetouch");
    fixture.right.exec(&format!(
        "{}; create trigger touch before insert or update on t for each row execute function touch()",
        touch("new.ver := 100")
    ));
    let reported = attach(&fixture.left, &fixture.right, NEWEST);
    assert_eq!(reported.len(), 1, "{reported:?}");
    let (message, hint) = &reported[0];
    let hint = hint.as_deref().unwrap_or_default();
    assert!(message.contains("may replace column \"ver\""), "{message}");
    // The line that mends it does.
    let when = "WHEN (current_setting('application_name') <> 'pg_rowsync')";
    assert!(hint.contains(when), "{hint}");
    fixture.left.exec("select detach_sync('t', 'dst')");
    let mended = format!(
        "drop trigger touch on t; create trigger touch before insert or update on t for each row {when}
           execute function touch()"
    );
    fixture.right.exec(&mended);
    assert_eq!(attach(&fixture.left, &fixture.right, NEWEST), []);
    fixture.left.exec("select detach_sync('t', 'dst')");
    // Others have nothing to do with it.
    fixture.right.exec(&format!(
        "{}; {}",
        touch("new.id := new.id"),
        mended.replace(when, "")
    ));
    assert_eq!(attach(&fixture.left, &fixture.right, NEWEST), []);
    fixture.left.exec("select detach_sync('t', 'dst')");
    // Where the table sends as well, what was sent is kept.
    fixture.right.exec(&touch("new.ver := 100"));
    assert_eq!(attach(&fixture.right, &fixture.left, NEWEST), []);
    assert_eq!(attach(&fixture.left, &fixture.right, NEWEST), []);
}

/// How frameworks and people write such a trigger: what it is named, what it does, and how it is made. In each,
/// `"updatedAt"` is the version column, `"Größe am"` in the last ones.
const TOUCHES: &[(&str, &str, &str, &str)] = &[
    (
        "updatedAt",
        "new.\"updatedAt\" := now()",
        "before update on t",
        "when (old.* is distinct from new.*)",
    ),
    (
        "updatedAt",
        "new.\"updatedAt\" = current_timestamp",
        "before insert or update on t",
        "when (pg_trigger_depth() = 0)",
    ),
    (
        "updatedAt",
        "new := jsonb_populate_record(new, jsonb_build_object(tg_argv[0], now()))",
        "before update on t",
        "when (old.id is not distinct from new.id)",
    ),
    (
        "updated_at",
        "NEW.UPDATED_AT := NOW()",
        "before update on t",
        "when (old.v is distinct from new.v)",
    ),
    (
        "say \"when\"",
        "new.\"say \"\"when\"\"\" := now()",
        "before update of v on t",
        "",
    ),
    (
        "Größe am",
        "new := jsonb_populate_record(new, jsonb_build_object(tg_argv[0], now()))",
        "before insert on t",
        "",
    ),
];

#[test]
fn a_trigger_that_replaces_the_version_is_told_however_it_is_written() {
    for (number, (column, body, event, when)) in TOUCHES.iter().enumerate() {
        let fixture = Fixture::new(&format!("touchas{number}"));
        fixture.link(&fixture.left, &fixture.right, "dst", &[]);
        let quoted = format!("\"{}\"", column.replace('"', "\"\""));
        for side in [&fixture.left, &fixture.right] {
            side.exec(&format!(
                "create table t (id int primary key, v text, {quoted} timestamptz default now())"
            ));
        }
        let arguments = if body.contains("tg_argv") {
            *column
        } else {
            ""
        };
        fixture.right.exec(&format!(
            "create function touch() returns trigger language plpgsql as
               $$ begin {body}; return new; end $$"
        ));
        let touch = |when: &str| {
            format!(
                "create trigger touch {event} for each row {when} execute function touch('{arguments}')"
            )
        };
        fixture.right.exec(&touch(when));
        let options = format!(
            r#"{{"on_conflict": "newest", "version_column": "{}"}}"#,
            column.replace('"', "\\\"")
        );
        let told = attach(&fixture.left, &fixture.right, &options);
        assert_eq!(told.len(), 1, "{when} {body}: {told:?}");
        let expected = format!("may replace column \"{column}\"");
        assert!(told[0].0.contains(&expected), "{told:?}");
        fixture.left.exec("select detach_sync('t', 'dst')");
        // Conditions on who is at work leave what arrives alone.
        for who in [
            "current_setting('application_name') <> 'pg_rowsync'",
            "session_user <> 'sync'",
            "current_user::text <> 'sync'",
            "not pg_has_role('pg_monitor', 'member')",
        ] {
            fixture.right.exec(&format!(
                "drop trigger touch on t; {}",
                touch(&format!("when ({who})"))
            ));
            let told = attach(&fixture.left, &fixture.right, &options);
            assert_eq!(told, [], "{who}");
            fixture.left.exec("select detach_sync('t', 'dst')");
        }
    }
}

/// Of a partition's own trigger the table knows nothing.
#[test]
fn a_trigger_of_a_partition_that_replaces_the_version_is_told() {
    let fixture = Fixture::new("touchpart");
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    fixture.left.exec(&format!("create table t ({COLUMNS})"));
    fixture.right.exec(&format!(
        "create table t ({COLUMNS}) partition by range (id);
         create table low partition of t for values from (0) to (100) partition by range (id);
         create table lowest partition of low for values from (0) to (10);
         create function touch() returns trigger language plpgsql as
           $$ begin new.ver := 100; return new; end $$;
         create trigger touch before update on lowest for each row execute function touch()"
    ));
    let told = attach(&fixture.left, &fixture.right, NEWEST);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].0.contains("may replace column"), "{told:?}");
}

#[test]
fn one_side_with_newest_is_not_enough() {
    for (first, second) in [("{}", NEWEST), (NEWEST, "{}")] {
        let fixture = opposed("newestone");
        assert_eq!(attach(&fixture.left, &fixture.right, first), []);
        warned(&attach(&fixture.right, &fixture.left, second));
    }
}

#[test]
fn triggers_there_that_lead_elsewhere_are_not_meant() {
    let fixture = opposed("elsewhere");
    let left = &fixture.left.user;
    let right = &fixture.right.user;
    fixture.right.exec(&format!(
        "create table u ({COLUMNS}); select attach_sync('u', 'dst', '{left}.t');
         select attach_sync('t', 'dst', '{left}.u')"
    ));
    assert_eq!(attach(&fixture.left, &fixture.right, "{}"), []);
    // Of the same table's name, in another database.
    fixture.left.exec("select detach_sync('t', 'dst')");
    fixture.right.exec("select detach_sync('t', 'dst')");
    fixture.right.exec(&format!(
        "create server third foreign data wrapper pg_rowsync options (dbname 'third');
         create user mapping for current_user server third options (user 'x', password 'x');
         select attach_sync('t', 'third', '{left}.t')"
    ));
    assert_eq!(attach(&fixture.left, &fixture.right, "{}"), []);
    // Disabled, and then not.
    fixture.left.exec("select detach_sync('t', 'dst')");
    fixture.right.exec(&format!(
        "select attach_sync('t', 'dst', '{left}.t'); alter table t disable trigger user"
    ));
    assert_eq!(attach(&fixture.left, &fixture.right, "{}"), []);
    fixture.left.exec("select detach_sync('t', 'dst')");
    fixture.right.exec("alter table t enable trigger user");
    warned(&attach_as(
        &fixture.left,
        &format!("select attach_sync('t', 'dst', '{right}.t')"),
    ));
}

#[test]
fn a_function_of_the_same_name_is_not_meant() {
    let fixture = opposed("samename");
    let left = &fixture.left.user;
    fixture.right.exec(&format!(
        "create function sync_dml() returns trigger language plpgsql as 'begin return null; end';
         create trigger own after insert on t for each row
           execute function {}.sync_dml('dst', '{left}', 't')",
        fixture.right.user
    ));
    assert_eq!(attach(&fixture.left, &fixture.right, "{}"), []);
}

#[test]
fn a_server_that_cannot_be_reached_keeps_nobody_from_attaching() {
    let fixture = opposed("unreached");
    fixture.right.exec(&format!(
        "select attach_sync('t', 'dst', '{}.t')",
        fixture.left.user
    ));
    link_with(&fixture, "closed", closed_port(), &fixture.right.password);
    link_with(
        &fixture,
        "wrong",
        fixture.right.cluster.port(),
        "not the password",
    );
    for server in ["closed", "wrong"] {
        assert_eq!(
            attach_as(
                &fixture.left,
                &format!("select attach_sync('t', '{server}')")
            ),
            []
        );
    }
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "silent", &[]);
    proxy.freeze();
    let since = Instant::now();
    // The library must be loaded for its settings to be known.
    let sql = "select sync_disconnect(); set pg_rowsync.connect_timeout = 300;
               select attach_sync('t', 'silent')";
    assert_eq!(attach_as(&fixture.left, sql), []);
    assert!(
        since.elapsed() < Duration::from_secs(3),
        "{:?}",
        since.elapsed()
    );
    let triggers = "select count(*) from pg_trigger where tgrelid = 't'::regclass";
    assert_eq!(rows(&fixture.left, triggers), ["6"]);
}

#[test]
fn a_silent_server_is_asked_no_longer_than_connecting_may_take() {
    let fixture = Fixture::new("silentlink");
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!(
            "create table t ({COLUMNS}); create table u ({COLUMNS})"
        ));
    }
    let mut client = fixture.left.client();
    let schema = &fixture.right.user;
    run(
        &mut client,
        &format!("select attach_sync('t', 'dst', '{schema}.t')"),
    );
    run(&mut client, "set pg_rowsync.connect_timeout = 300");
    // Over the connection that the first call has left.
    proxy.freeze();
    let since = Instant::now();
    run(
        &mut client,
        &format!("select attach_sync('u', 'dst', '{schema}.u')"),
    );
    assert!(
        since.elapsed() < Duration::from_secs(3),
        "{:?}",
        since.elapsed()
    );
    proxy.thaw();
    run(&mut client, "insert into u values (1, 'x', 1)");
    assert_eq!(table(&fixture.right, "u"), ["1|x|1"]);
}

#[test]
fn no_transaction_is_left_open_there() {
    let fixture = opposed("leftopen");
    fixture.right.exec(&format!(
        "select attach_sync('t', 'dst', '{}.t')",
        fixture.left.user
    ));
    let mut client = fixture.left.client();
    run(
        &mut client,
        &format!(
            "begin; select attach_sync('t', 'dst', '{}.t')",
            fixture.right.user
        ),
    );
    let open = format!(
        "select count(*) from pg_stat_activity
          where usename = '{}' and (state <> 'idle' or backend_xmin is not null)",
        fixture.right.user
    );
    assert_eq!(rows(&fixture.right, &open), ["0"]);
    run(&mut client, "insert into t values (1, 'x', 1); rollback");
    assert_eq!(table(&fixture.right, "t"), [""; 0]);
    assert_eq!(
        rows(
            &fixture.left,
            "select * from pg_trigger where tgrelid = 't'::regclass"
        ),
        [""; 0]
    );
}

#[test]
fn who_may_not_attach_makes_no_connection() {
    let fixture = opposed("maynot");
    let left = &fixture.left.user;
    let right = &fixture.right.user;
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "watched", &[]);
    fixture.left.exec_superuser(&format!(
        "create role {left}_other; grant {left}_other to {left}; grant usage on schema {left} to {left}_other"
    ));
    let mut client = fixture.left.client();
    run(&mut client, &format!("set role {left}_other"));
    let sql = format!("select attach_sync('{left}.t', 'watched', '{right}.t')");
    refused(&mut client, &sql, "42501");
    assert_eq!(proxy.connections_total(), 0);
    drop(client);
    fixture.left.exec_superuser(&format!(
        "drop owned by {left}_other; drop role {left}_other"
    ));
}

#[test]
fn names_in_another_encoding_are_compared() {
    let fixture = Fixture::new("noticeenc");
    let left = Side {
        db: format!("{}_e", fixture.left.db),
        ..fixture.left.clone()
    };
    let db = &left.db;
    let user = &left.user;
    fixture.left.exec_superuser(&format!(
        "create database {db} template template0 encoding 'LATIN1' owner {user}"
    ));
    left.exec_superuser(&format!(
        "create schema authorization {user}; create extension pg_rowsync schema public;
         grant usage on foreign data wrapper pg_rowsync to {user}"
    ));
    for (side, other) in [(&left, &fixture.right), (&fixture.right, &left)] {
        fixture.link(side, other, "dst", &[]);
        side.exec(r#"create table "t'ä\" (id int primary key)"#);
    }
    let to = |other: &Side| {
        format!(
            r#"select attach_sync('"t''ä\"', 'dst', '{}."t''ä\"', '{{"rename": {{"id": "id"}}}}')"#,
            other.user
        )
    };
    assert_eq!(attach_as(&left, &to(&fixture.right)), []);
    assert_eq!(attach_as(&fixture.right, &to(&left)).len(), 1);
    left.exec(r#"select detach_sync('"t''ä\"', 'dst')"#);
    assert_eq!(attach_as(&left, &to(&fixture.right)).len(), 1);
    let mut client = left.cluster.superuser("postgres").expect("a session");
    run(&mut client, &format!("drop database {db} with (force)"));
}
