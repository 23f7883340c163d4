//! Tables that are altered: by the transaction that has written them, between the writes of a session, and
//! where options mention the columns in question.

use rowsync_harness::Fixture;

use crate::support::common::{
    attach_sql, both_have, deal, linked, mirror, one_way, records, refused, run, table,
};

/// Runs the statements in one transaction on the right, then on the left.
fn migrate(fixture: &Fixture, sql: &str) {
    for side in [&fixture.right, &fixture.left] {
        run(&mut side.client(), &format!("begin; {sql}; commit"));
    }
}

/// A table on both sides whose left one is attached in this mode, and a migration of both.
fn migrated(label: &str, mode: &str, migration: &str) -> Fixture {
    let fixture = one_way(
        label,
        "id int primary key, bar int",
        &format!(r#"{{"mode": "{mode}"}}"#),
    );
    run(
        &mut fixture.left.client(),
        "insert into t values (1, 42), (2, 43)",
    );
    deal(&fixture, "10");
    migrate(&fixture, migration);
    run(&mut fixture.left.client(), "insert into t (id) values (3)");
    deal(&fixture, "10");
    assert_eq!(
        records(&fixture),
        Vec::<String>::new(),
        "{mode}: {migration}"
    );
    fixture
}

#[test]
fn a_column_that_is_gone_at_commit_is_not_sent() {
    for mode in ["async", "sync", "queue"] {
        let fixture = migrated(
            &format!("gone_{mode}"),
            mode,
            "alter table t add baz int; update t set baz = bar; alter table t drop bar",
        );
        both_have(&fixture, "t", &["1|42", "2|43", "3|~"]);
    }
}

#[test]
fn a_column_is_sent_under_the_name_that_it_has_at_commit() {
    for mode in ["async", "sync", "queue"] {
        let fixture = migrated(
            &format!("renamed_{mode}"),
            mode,
            "update t set bar = bar + 1; alter table t rename bar to baz; update t set baz = baz + 1 where id = 1",
        );
        both_have(&fixture, "t", &["1|44", "2|44", "3|~"]);
    }
}

#[test]
fn a_column_of_the_same_name_is_another_one() {
    let fixture = migrated(
        "another",
        "async",
        "update t set bar = 7; alter table t drop bar; alter table t add bar int default 9;
         update t set bar = 8 where id = 1",
    );
    both_have(&fixture, "t", &["1|8", "2|9", "3|9"]);
}

#[test]
fn what_was_written_to_a_table_that_is_gone_at_commit_is_not_sent() {
    let fixture = linked("dropped");
    mirror(&fixture, "t", "id int primary key", "{}");
    mirror(&fixture, "u", "id int primary key", "{}");
    migrate(
        &fixture,
        "insert into t values (1); insert into u values (1); drop table t",
    );
    both_have(&fixture, "u", &["1"]);
    assert_eq!(records(&fixture), Vec::<String>::new());
}

#[test]
fn a_column_that_is_gone_takes_its_large_value_along() {
    let fixture = one_way("large", "id int primary key, a text, b text, n int", "{}");
    fixture
        .left
        .exec("alter table t alter a set storage external, alter b set storage external");
    run(
        &mut fixture.left.client(),
        "insert into t values (1, repeat('a', 100000), repeat('b', 100000), 0)",
    );
    migrate(&fixture, "update t set n = 1; alter table t drop a");
    let found = table(&fixture.right, "t");
    assert_eq!(found, [format!("1|{}|1", "b".repeat(100_000))]);
    assert_eq!(records(&fixture), Vec::<String>::new());
}

#[test]
fn rolled_back_savepoints_count_for_nothing_where_a_column_goes() {
    let fixture = one_way("savepoints", "id int primary key, a int, b int", "{}");
    run(
        &mut fixture.left.client(),
        "insert into t values (1, 1, 1), (2, 2, 2)",
    );
    fixture.right.exec("alter table t drop a");
    run(
        &mut fixture.left.client(),
        "begin; update t set b = 10 where id = 1; savepoint s; update t set b = 20; rollback to s;
         savepoint s; delete from t where id = 2; release s; alter table t drop a; commit",
    );
    both_have(&fixture, "t", &["1|10"]);
}

/// What a transaction makes of a key that it has written rows under, options, and what is said.
const REKEYED: &[(&str, &str, &str)] = &[
    (
        "alter table t drop id; alter table t add primary key (k)",
        "{}",
        "key column \"id\" of table \"t\" was dropped",
    ),
    (
        "alter table t drop constraint t_pkey; alter table t add primary key (k)",
        "{}",
        "the key of table \"t\" was changed",
    ),
    (
        "alter table t drop constraint t_pkey; alter table t add primary key (id, k)",
        "{}",
        "the key of table \"t\" was changed",
    ),
    (
        "alter table t drop constraint t_pkey",
        r#"{"on_conflict": "skip"}"#,
        "the key of table \"t\" was changed",
    ),
    (
        "alter table t alter id type text using 'x' || id",
        "{}",
        "the type of key column \"id\" of table \"t\" was changed",
    ),
    (
        "alter table t alter id type numeric(5,1)",
        r#"{"on_conflict": "error"}"#,
        "the type of key column \"id\" of table \"t\" was changed",
    ),
    // Which the trigger depends on, so it goes first.
    (
        "select detach_sync('t', 'dst'); alter table t alter ver type date",
        r#"{"on_conflict": "newest", "version_column": "ver"}"#,
        "the type of version column \"ver\" of table \"t\" was changed",
    ),
];

const KEYED: &str = "id int primary key, k int not null unique, v text, ver timestamptz";

/// Whichever key the server has, and whatever is changed in which order, no row is taken for another: the
/// transaction is refused as a whole, and goes through in two parts.
#[test]
fn a_transaction_that_makes_another_key_of_what_it_has_written_is_refused() {
    for mode in ["async", "sync", "queue"] {
        for (sql, options, said) in REKEYED {
            let options = options.replacen('{', &format!(r#"{{"mode": "{mode}", "#), 1);
            let options = options.replace(", }", "}");
            let fixture = one_way("rekeyed", KEYED, &options);
            let mut client = fixture.left.client();
            run(
                &mut client,
                "insert into t values (1, 11, 'a', '2024-01-01'), (2, 12, 'a', '2024-01-01')",
            );
            deal(&fixture, "10");
            let before = table(&fixture.right, "t");
            for first in [
                "update t set v = 'b', ver = '2024-01-02' where id = 1",
                "delete from t where id = 2",
                "insert into t values (3, 13, 'c', '2024-01-01')",
            ] {
                run(&mut client, &format!("begin; {first}; {sql}"));
                let error = refused(&mut client, "commit", "55000");
                assert!(error.message().contains(said), "{sql}: {error:?}");
                assert!(
                    error
                        .hint()
                        .is_some_and(|hint| hint.contains("transaction of its own")),
                    "{error:?}"
                );
                assert_eq!(table(&fixture.right, "t"), before, "{mode} {sql}");
                assert_eq!(records(&fixture), Vec::<String>::new(), "{mode} {sql}");
            }
            // What was rolled back, and a TRUNCATE, are of no key.
            run(
                &mut client,
                &format!(
                    "begin; savepoint s; update t set v = 'no'; rollback to s; truncate t; {sql}; commit"
                ),
            );
            deal(&fixture, "10");
            assert_eq!(
                table(&fixture.right, "t"),
                Vec::<String>::new(),
                "{mode} {sql}"
            );
            assert_eq!(records(&fixture), Vec::<String>::new(), "{mode} {sql}");
        }
    }
}

/// The same keys all the same: what was written before and after is the same row there.
#[test]
fn a_key_that_reads_alike_under_another_type_is_followed() {
    for (label, alter) in [
        ("alikebig", "alter table t alter id type bigint"),
        ("alikesmall", "alter table t alter id type smallint"),
        (
            "alikeagain",
            "alter table t drop constraint t_pkey; alter table t add primary key (id)",
        ),
        (
            "alikename",
            "alter table t rename id to ident; alter table t rename ident to id",
        ),
        (
            "alikedomain",
            "create domain d as int; alter table t alter id type d",
        ),
    ] {
        for mode in ["async", "sync", "queue"] {
            let options = format!(r#"{{"mode": "{mode}"}}"#);
            let fixture = one_way(&format!("{label}{mode}"), KEYED, &options);
            run(
                &mut fixture.left.client(),
                "insert into t values (1, 11, 'a', null), (2, 12, 'a', null)",
            );
            deal(&fixture, "10");
            migrate(
                &fixture,
                &format!(
                    "update t set v = 'b'; {alter}; update t set v = v || 'c' where id = 1;
                     delete from t where id = 2"
                ),
            );
            deal(&fixture, "10");
            both_have(&fixture, "t", &["1|11|bc|~"]);
            assert_eq!(records(&fixture), Vec::<String>::new(), "{mode}: {alter}");
        }
    }
}

#[test]
fn the_extension_is_not_dropped_where_it_has_to_deliver() {
    let fixture = one_way("extension", "id int primary key", "{}");
    let mut client = fixture.left.superuser();
    run(
        &mut client,
        &format!("set search_path = \"{}\", public", fixture.left.user),
    );
    run(
        &mut client,
        "begin; insert into t values (1); drop extension pg_rowsync cascade",
    );
    let error = refused(&mut client, "commit", "55000");
    assert!(
        error
            .message()
            .contains("\"pg_rowsync\" was dropped by a transaction"),
        "{error:?}"
    );
    both_have(&fixture, "t", &[]);
    run(
        &mut client,
        "drop extension pg_rowsync cascade; insert into t values (1)",
    );
    assert_eq!(table(&fixture.right, "t"), Vec::<String>::new());
}

#[test]
fn the_extensions_own_tables_are_not_attached() {
    let fixture = linked("own");
    let mut client = fixture.left.superuser();
    for own in ["sync_queue", "sync_conflict_log", "sync_row_version"] {
        let sql = format!("select attach_sync('{own}', 'dst')");
        let error = refused(&mut client, &sql, "0A000");
        assert!(
            error.message().contains("belongs to the extension"),
            "{error:?}"
        );
    }
}

/// Single rows, the first of which a session prepares on the server, then a migration, then more of them.
fn types_gone(label: &str, mode: &str, before: &str, after: &str) {
    let fixture = linked(label);
    for side in [&fixture.left, &fixture.right] {
        side.exec(before);
    }
    let options = format!(r#"{{"mode": "{mode}"}}"#);
    fixture.left.exec(&attach_sql(&fixture, "t", &options));
    let mut client = fixture.left.client();
    for id in 1..4 {
        run(&mut client, &format!("insert into t values ({id}, '1')"));
    }
    migrate(&fixture, after);
    for id in 4..8 {
        run(&mut client, &format!("insert into t values ({id}, '1')"));
        run(
            &mut client,
            &format!("update t set c = '2' where id = {id}"),
        );
    }
    assert_eq!(records(&fixture), Vec::<String>::new(), "{mode}");
    let expected: Vec<String> = (1..8)
        .map(|id| format!("{id}|{}", 1 + i32::from(id > 3)))
        .collect();
    both_have(
        &fixture,
        "t",
        &expected.iter().map(String::as_str).collect::<Vec<_>>(),
    );
}

#[test]
fn what_was_prepared_under_an_enum_that_is_gone_is_forgotten() {
    for mode in ["sync", "async"] {
        types_gone(
            &format!("enum_{mode}"),
            mode,
            "create type e as enum ('1', '2'); create table t (id int primary key, c e)",
            "alter type e rename to old; create type e as enum ('1', '2', '3');
             alter table t alter c type e using c::text::e; drop type old",
        );
    }
}

#[test]
fn what_was_prepared_under_a_domain_that_is_gone_is_forgotten() {
    for mode in ["sync", "async"] {
        types_gone(
            &format!("domain_{mode}"),
            mode,
            "create domain d as int; create table t (id int primary key, c d)",
            "create domain e as bigint; alter table t alter c type e; drop domain d",
        );
    }
}

#[test]
fn what_was_prepared_under_a_key_type_that_is_gone_is_forgotten() {
    types_gone(
        "key",
        "sync",
        "create domain k as int; create table t (id k primary key, c int)",
        "alter table t alter id type bigint; drop domain k",
    );
}

/// The left table, of which the right one lacks a column.
fn excluding(label: &str) -> Fixture {
    let fixture = linked(label);
    fixture
        .left
        .exec("create table t (id int primary key, v text, secret text, other text)");
    fixture
        .right
        .exec("create table t (id int primary key, v text)");
    fixture.left.exec(&attach_sql(
        &fixture,
        "t",
        r#"{"exclude": ["secret", "other"]}"#,
    ));
    fixture
}

#[test]
fn a_column_that_options_mention_is_not_dropped_by_itself() {
    let fixture = excluding("mentioned");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a', 'b', 'c')");
    let error = refused(&mut client, "alter table t drop column secret", "2BP01");
    assert!(
        error
            .detail()
            .is_some_and(|d| d.contains("trigger 00_pg_rowsync_dst_dml")),
        "{error:?}"
    );
    // The way out, in which no write is missed.
    run(
        &mut client,
        &format!(
            "begin; select detach_sync('t', 'dst'); alter table t drop column secret; {}; commit",
            attach_sql(&fixture, "t", r#"{"exclude": ["other"]}"#)
        ),
    );
    run(&mut client, "insert into t values (2, 'x', 'y')");
    assert_eq!(table(&fixture.right, "t"), ["1|a", "2|x"]);
}

#[test]
fn a_column_that_options_mention_may_be_renamed() {
    let fixture = excluding("rename");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "alter table t rename secret to hush; alter table t rename other to another",
    );
    run(&mut client, "insert into t values (1, 'a', 'b', 'c')");
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    let fixture = linked("rename_to");
    fixture
        .left
        .exec("create table t (id int primary key, v text)");
    fixture
        .right
        .exec("create table t (id int primary key, w text)");
    fixture
        .left
        .exec(&attach_sql(&fixture, "t", r#"{"rename": {"v": "w"}}"#));
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t values (1, 'a'); alter table t rename v to u",
    );
    run(&mut client, "insert into t values (2, 'b')");
    assert_eq!(table(&fixture.right, "t"), ["1|a", "2|b"]);
}

#[test]
fn partitions_follow_the_columns_that_their_tables_options_mention() {
    let fixture = linked("partition");
    fixture.left.exec(
        "create table t (id int primary key, gap int, v text, secret text) partition by range (id);
         create table p (secret text, id int not null, v text, gap int);
         alter table t attach partition p for values from (0) to (100)",
    );
    fixture
        .right
        .exec("create table t (id int primary key, v text)");
    fixture.left.exec(&attach_sql(
        &fixture,
        "t",
        r#"{"exclude": ["secret", "gap"]}"#,
    ));
    let mut client = fixture.left.client();
    run(&mut client, "alter table t rename secret to hush");
    run(&mut client, "insert into t values (1, 2, 'a', 'b')");
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
}

#[test]
fn a_column_that_a_trigger_made_by_hand_mentions_is_named_when_it_is_gone() {
    let fixture = linked("hand");
    fixture.left.exec(&format!(
        r#"create table t (id int primary key, v text);
           create trigger s after insert on t for each row
             execute function sync_dml('dst', '{}', 't', '{{"exclude": ["v"]}}')"#,
        fixture.right.user
    ));
    fixture.left.exec("alter table t drop column v");
    let error = refused(
        &mut fixture.left.client(),
        "insert into t values (1)",
        "42703",
    );
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("attach the table again")),
        "{error:?}"
    );
}

#[test]
fn an_attached_table_becomes_a_partition_of_one_once_it_is_detached() {
    let fixture = linked("attach_partition");
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table t (id int primary key, v text)");
    }
    fixture
        .left
        .exec("create table whole (id int primary key, v text) partition by range (id)");
    let target = attach_sql(&fixture, "t", "{}");
    run(
        &mut fixture.left.client(),
        &format!("{target}; {}", target.replacen("'t'", "'whole'", 1)),
    );
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    let attach = "alter table whole attach partition t for values from (0) to (100)";
    refused(&mut client, attach, "42710");
    run(
        &mut client,
        &format!("begin; select detach_sync('t', 'dst'); {attach}; commit"),
    );
    run(
        &mut client,
        "insert into whole values (2, 'b'); update t set v = 'c' where id = 1",
    );
    both_have(&fixture, "t", &["1|c", "2|b"]);
}
