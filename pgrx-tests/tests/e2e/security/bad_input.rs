//! Wrong definitions: one clear error with SQLSTATE and hint, from `attach_sync` and from the first
//! fire alike, and no committed change lost.

use postgres::Client;
use postgres::error::DbError;
use rowsync_harness::{Fixture, fails};

use crate::support::common::{attach, linked, records, refused, rows, run, table};

/// What the tests below trip over, on the left.
fn arrange(label: &str) -> Fixture {
    let fixture = linked(label);
    let user = &fixture.left.user;
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table t (id int primary key, v text, w int)");
        side.exec("create table keyless (id int, v text)");
    }
    fixture.left.exec(
        "create server unmapped foreign data wrapper pg_rowsync;
         create view v as select * from t",
    );
    fixture.left.exec_superuser(&format!(
        "create server forbidden foreign data wrapper pg_rowsync options (host '127.0.0.1');
         create user mapping for {user} server forbidden options (user 'x', password 'x')"
    ));
    fixture
}

/// Checks an error: SQLSTATE, a part of message or detail, and that there is a hint.
fn check(what: &str, error: &DbError, sqlstate: &str, text: &str) {
    assert_eq!(error.code().code(), sqlstate, "{what}: {error:?}");
    let said = format!("{} {}", error.message(), error.detail().unwrap_or_default());
    assert!(
        said.contains(text),
        "{what}: \"{text}\" is not in \"{said}\""
    );
    assert!(
        error.hint().is_some_and(|hint| !hint.is_empty()),
        "{what}: no hint in {error:?}"
    );
}

/// Table, server, options, SQLSTATE, text.
const WRONG: [(&str, &str, &str, &str, &str); 14] = [
    ("t", "dst", r#"{"moed": "sync"}"#, "22023", "moed"),
    ("t", "dst", r#"{"mode": "later"}"#, "22023", "later"),
    ("t", "dst", r#"{"columns": "id"}"#, "22023", "invalid"),
    ("t", "dst", r#"[]"#, "22023", "invalid pg_rowsync options"),
    (
        "t",
        "nowhere",
        "{}",
        "42704",
        "server \"nowhere\" does not exist",
    ),
    ("t", "unmapped", "{}", "42704", "user mapping not found"),
    (
        "t",
        "forbidden",
        "{}",
        "42501",
        "permission denied for foreign server forbidden",
    ),
    (
        "keyless",
        "dst",
        "{}",
        "55000",
        "\"keyless\" has neither a primary key",
    ),
    (
        "t",
        "dst",
        r#"{"columns": ["v"]}"#,
        "22023",
        "key column \"id\"",
    ),
    (
        "t",
        "dst",
        r#"{"exclude": ["id"]}"#,
        "22023",
        "key column \"id\"",
    ),
    (
        "t",
        "dst",
        r#"{"columns": ["id", "nope"]}"#,
        "42703",
        "column \"nope\"",
    ),
    (
        "t",
        "dst",
        r#"{"rename": {"nope": "v"}}"#,
        "42703",
        "column \"nope\"",
    ),
    (
        "t",
        "dst",
        r#"{"key": ["nope"]}"#,
        "42703",
        "column \"nope\"",
    ),
    ("t", "dst", r#"{"rename": {"v": "w"}}"#, "22023", "\"w\""),
];

#[test]
fn attach_refuses_a_wrong_definition_and_makes_no_trigger() {
    let fixture = arrange("attach");
    let mut client = fixture.left.client();
    for (name, server, options, sqlstate, text) in WRONG {
        let sql = format!("select attach_sync('{name}', '{server}', 's.t', '{options}')");
        check(&sql, &fails(client.batch_execute(&sql)), sqlstate, text);
    }
    refused(
        &mut client,
        "select attach_sync('t', 'dst', 't', '{')",
        "22P02",
    );
    for sql in [
        "attach_sync(null, 'dst')",
        "attach_sync('t', null)",
        "detach_sync('t', null)",
    ] {
        refused(&mut client, &format!("select {sql}"), "22023");
    }
    let error = fails(client.batch_execute("select attach_sync('t', 'dst', 'a.b.c')"));
    check("target", &error, "22023", "a.b.c");
    check(
        "view",
        &fails(client.batch_execute("select attach_sync('v', 'dst')")),
        "0A000",
        "\"v\"",
    );
    refused(&mut client, "select detach_sync('t', 'dst')", "42704");
    assert_eq!(
        rows(
            &fixture.left,
            "select tgname from pg_trigger where tgfoid = 'sync_dml'::regproc"
        ),
        [""; 0]
    );
}

/// Makes a trigger in the hand-written way, and drops it again.
fn with_trigger(client: &mut Client, head: &str, arguments: &str, work: impl FnOnce(&mut Client)) {
    run(
        client,
        &format!("create trigger bad {head} execute function sync_dml({arguments})"),
    );
    work(client);
    let relation = head
        .split(" on ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    run(
        client,
        &format!("drop trigger bad on {}", relation.expect("a relation")),
    );
}

#[test]
fn the_first_fire_of_a_wrong_definition_fails_the_statement() {
    let fixture = arrange("fire");
    let mut client = fixture.left.client();
    let malformed = [
        ("t", "dst", r#"{"mode": "sync""#, "22023", "EOF"),
        ("t", "dst", "", "22023", ""),
    ];
    for (name, server, options, sqlstate, text) in WRONG.into_iter().chain(malformed) {
        let head = format!("after insert on {name} for each row");
        let arguments = format!("'{server}', 's', 't', '{options}'");
        with_trigger(&mut client, &head, &arguments, |client| {
            let sql = format!("insert into {name} values (1, 'a')");
            check(
                &arguments,
                &fails(client.batch_execute(&sql)),
                sqlstate,
                text,
            );
        });
        assert_eq!(table(&fixture.left, name), [""; 0]);
    }
    assert_eq!(records(&fixture), [""; 0]);
}

#[test]
fn a_wrong_number_of_arguments_is_refused() {
    let fixture = arrange("arguments");
    let mut client = fixture.left.client();
    for (arguments, text) in [
        ("", "3 or 4 arguments, not 0"),
        ("'dst'", "3 or 4 arguments, not 1"),
        ("'dst', 's'", "3 or 4 arguments, not 2"),
        ("'dst', 's', 't', '{}', 'more'", "3 or 4 arguments, not 5"),
        ("'dst', '', 't'", "must not be empty"),
    ] {
        with_trigger(
            &mut client,
            "after insert on t for each row",
            arguments,
            |client| {
                let error = fails(client.batch_execute("insert into t values (1)"));
                check(arguments, &error, "22023", text);
            },
        );
    }
    assert_eq!(table(&fixture.left, "t"), [""; 0]);
}

#[test]
fn a_trigger_of_the_wrong_kind_is_refused() {
    let fixture = arrange("kind");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1)");
    for (head, sql, text) in [
        (
            "before insert on t for each row",
            "insert into t values (2)",
            "BEFORE",
        ),
        (
            "before truncate on t for each statement",
            "truncate t",
            "BEFORE",
        ),
        (
            "instead of insert on v for each row",
            "insert into v values (2)",
            "INSTEAD OF",
        ),
        (
            "after insert on t for each statement",
            "insert into t values (2)",
            "STATEMENT",
        ),
        (
            "after update on t for each statement",
            "update t set v = 'x'",
            "STATEMENT",
        ),
        (
            "after delete on t for each statement",
            "delete from t",
            "STATEMENT",
        ),
    ] {
        with_trigger(&mut client, head, "'dst', 's', 't'", |client| {
            check(head, &fails(client.batch_execute(sql)), "39P01", text);
        });
    }
    assert_eq!(table(&fixture.left, "t"), ["1|~|~"]);
}

#[test]
fn a_call_outside_of_a_trigger_is_refused() {
    let fixture = linked("call");
    refused(&mut fixture.left.client(), "select sync_dml()", "39P01");
}

#[test]
fn an_empty_statement_does_not_hide_a_wrong_kind() {
    let fixture = arrange("nothing");
    let mut client = fixture.left.client();
    let head = "after delete on t for each statement";
    with_trigger(&mut client, head, "'dst', 's', 't'", |client| {
        check(
            head,
            &fails(client.batch_execute("delete from t")),
            "39P01",
            "STATEMENT",
        );
    });
}

/// A target that cannot take the change: what is wrong on the right, SQLSTATE, text.
const BAD_TARGETS: [(&str, &str, &str); 3] = [
    ("drop table t", "42P01", "does not exist"),
    ("alter table t drop column w", "42703", "\"w\""),
    (
        "alter table t drop constraint t_pkey",
        "42P10",
        "ON CONFLICT",
    ),
];

#[test]
fn async_keeps_changes_for_an_unfit_target_with_the_reason() {
    for (damage, sqlstate, text) in BAD_TARGETS {
        let fixture = arrange("unfit");
        attach(&fixture, "t", "{}");
        fixture.right.exec(damage);
        fixture
            .left
            .exec("insert into t values (1, 'a', 1), (2, 'b', 2)");
        assert_eq!(table(&fixture.left, "t"), ["1|a|1", "2|b|2"]);
        let kept = rows(&fixture.left, "select sqlstate, message from sync_err_rec");
        assert_eq!(kept.len(), 2, "{damage}");
        assert!(
            kept[0].starts_with(sqlstate) && kept[0].contains(text),
            "{damage}: {kept:?}"
        );
    }
}

#[test]
fn sync_fails_for_an_unfit_target() {
    for (damage, sqlstate, text) in BAD_TARGETS {
        let fixture = arrange("unfits");
        attach(&fixture, "t", r#"{"mode": "sync"}"#);
        fixture.right.exec(damage);
        let error = refused(
            &mut fixture.left.client(),
            "insert into t values (1, 'a', 1)",
            sqlstate,
        );
        assert!(error.message().contains(text), "{damage}: {error:?}");
        assert_eq!(table(&fixture.left, "t"), [""; 0]);
        assert_eq!(records(&fixture), [""; 0]);
    }
}

#[test]
fn a_definition_that_goes_wrong_later_loses_no_committed_change() {
    let fixture = arrange("later");
    attach(&fixture, "t", "{}");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'sent', 1)");
    run(&mut client, "drop user mapping for current_user server dst");
    check(
        "mapping",
        &fails(client.batch_execute("insert into t values (2)")),
        "42704",
        "mapping",
    );
    // Triggers depend on no server, so nothing keeps it from being dropped.
    run(&mut client, "drop server dst");
    check(
        "server",
        &fails(client.batch_execute("delete from t")),
        "42704",
        "\"dst\"",
    );
    assert_eq!(table(&fixture.left, "t"), ["1|sent|1"]);
    assert_eq!(table(&fixture.right, "t"), ["1|sent|1"]);
}

#[test]
fn null_in_a_key_column_is_refused() {
    let fixture = arrange("nullkey");
    attach(&fixture, "keyless", r#"{"key": ["id"]}"#);
    let mut client = fixture.left.client();
    let error = fails(client.batch_execute("insert into keyless values (null, 'a')"));
    check("null key", &error, "23502", "key column \"id\"");
    assert_eq!(table(&fixture.left, "keyless"), [""; 0]);
}

#[test]
fn a_limit_that_is_no_positive_number_is_refused() {
    let fixture = linked("limit");
    let mut client = fixture.left.superuser();
    for limit in ["null", "0", "-1"] {
        let sql = format!("select deal_sync_err_rec({limit})");
        check(
            &sql,
            &fails(client.batch_execute(&sql)),
            "22023",
            "positive",
        );
    }
}
