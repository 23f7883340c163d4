//! Functions of the target that find others by the search path only.

use rowsync_harness::{Fixture, fails};

use crate::support::common::{attach, both_have, deal, linked, queued, refused, rows, run};

/// An expression index whose function calls another one without its schema.
fn slugs(label: &str, mode: &str) -> Fixture {
    let fixture = linked(label);
    for side in [&fixture.left, &fixture.right] {
        let schema = &side.user;
        side.exec(&format!(
            "create function norm(t text) returns text immutable language sql as $$ select lower(t) $$;
             create function slug(t text) returns text immutable language sql
               as $$ select norm(replace(t, ' ', '-')) $$;
             create table t (id int primary key, title text); create index on t ({schema}.slug(title))"
        ));
    }
    attach(&fixture, "t", &format!(r#"{{"mode": "{mode}"}}"#));
    fixture
}

#[test]
fn what_is_not_found_by_its_bare_name_is_told_with_the_way_out() {
    let fixture = slugs("barename", "sync");
    let mut client = fixture.left.client();
    let error = fails(client.batch_execute("insert into t values (1, 'Hello World')"));
    assert_eq!(error.code().code(), "42883", "{error:?}");
    let hint = error.hint().unwrap_or_default();
    assert!(
        hint.contains("search_path=pg_catalog") && hint.contains("search_path_append"),
        "{hint}"
    );
    let schema = &fixture.right.user;
    run(
        &mut client,
        &format!("alter server dst options (add search_path_append '{schema}')"),
    );
    run(
        &mut client,
        "insert into t values (1, 'Hello World'); update t set title = 'x' where id = 1",
    );
    both_have(&fixture, "t", &["1|x"]);
}

#[test]
fn a_trigger_there_finds_tables_and_types_of_the_schemas_named() {
    let fixture = linked("barenames");
    let schema = &fixture.right.user;
    fixture
        .left
        .exec("create table t (id int primary key, v text)");
    fixture.right.exec_superuser(&format!(
        r#"create schema "My ""own"", s\" authorization {schema};
           create table "My ""own"", s\".log (id int); alter table "My ""own"", s\".log owner to {schema}"#
    ));
    fixture.right.exec(
        "create table t (id int primary key, v text); create domain short as text check (length(value) < 9);
         create function note() returns trigger language plpgsql as $$ declare s short := new.v; begin
           insert into log values (new.id); return new; end $$;
         create trigger note after insert or update on t for each row execute function note()",
    );
    attach(&fixture, "t", r#"{"mode": "queue"}"#);
    fixture.left.exec("insert into t values (1, 'a')");
    assert!(!deal(&fixture, "100"));
    let reported = "select sqlstate, message like '%search_path_append%' from sync_err_rec";
    assert_eq!(rows(&fixture.left, reported), ["42704|t"]);
    fixture.left.exec(&format!(
        r#"alter server dst options (add search_path_append '{schema}, "My ""own"", s\"')"#
    ));
    fixture
        .left
        .exec_superuser("select retry_sync_err_rec(id) from sync_err_rec");
    assert!(
        deal(&fixture, "100"),
        "{:?}",
        rows(&fixture.left, "select message from sync_err_rec")
    );
    // Also where another path is needed meanwhile, and through what drops start-up parameters.
    fixture
        .left
        .exec("alter server dst options (add pooled 'on')");
    fixture.left.exec("insert into t values (2, 'b')");
    assert!(
        deal(&fixture, "100"),
        "{:?}",
        rows(&fixture.left, "select message from sync_err_rec")
    );
    assert_eq!(queued(&fixture), 0);
    assert_eq!(
        rows(
            &fixture.right,
            r#"select id from "My ""own"", s\".log order by 1"#
        ),
        ["1", "2"]
    );
}

#[test]
fn a_list_of_schemas_is_checked_when_it_is_set() {
    let fixture = linked("badpath");
    let mut client = fixture.left.client();
    for value in ["\"$user\"", "pg_temp", "a b", "a,,b", "\"a"] {
        let sql = format!("alter server dst options (add search_path_append '{value}')");
        let error = refused(&mut client, &sql, "22023");
        assert!(error.hint().is_some(), "{value}");
    }
}
