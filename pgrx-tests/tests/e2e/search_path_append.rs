//! Functions of the target that find others by the search path only.

use rowsync_harness::{Testbed, fails};

use crate::common::{attach, both_have, deal, linked, queued, refused, rows, run};

/// An expression index whose function calls another one without its schema.
fn slugs(label: &str, mode: &str) -> Testbed {
    let bed = linked(label);
    for side in [&bed.left, &bed.right] {
        let schema = &side.user;
        side.exec(&format!(
            "create function norm(t text) returns text immutable language sql as $$ select lower(t) $$;
             create function slug(t text) returns text immutable language sql
               as $$ select norm(replace(t, ' ', '-')) $$;
             create table t (id int primary key, title text); create index on t ({schema}.slug(title))"
        ));
    }
    attach(&bed, "t", &format!(r#"{{"mode": "{mode}"}}"#));
    bed
}

#[test]
fn what_is_not_found_by_its_bare_name_is_told_with_the_way_out() {
    let bed = slugs("barename", "sync");
    let mut client = bed.left.client();
    let error = fails(client.batch_execute("insert into t values (1, 'Hello World')"));
    assert_eq!(error.code().code(), "42883", "{error:?}");
    let hint = error.hint().unwrap_or_default();
    assert!(
        hint.contains("search_path=pg_catalog") && hint.contains("search_path_append"),
        "{hint}"
    );
    let schema = &bed.right.user;
    run(&mut client, &format!("alter server dst options (add search_path_append '{schema}')"));
    run(
        &mut client,
        "insert into t values (1, 'Hello World'); update t set title = 'x' where id = 1",
    );
    both_have(&bed, "t", &["1|x"]);
}

#[test]
fn a_trigger_there_finds_tables_and_types_of_the_schemas_named() {
    let bed = linked("barenames");
    let schema = &bed.right.user;
    bed.left.exec("create table t (id int primary key, v text)");
    bed.right.exec_superuser(&format!(
        r#"create schema "My ""own"", s\" authorization {schema};
           create table "My ""own"", s\".log (id int); alter table "My ""own"", s\".log owner to {schema}"#
    ));
    bed.right.exec(
        "create table t (id int primary key, v text); create domain short as text check (length(value) < 9);
         create function note() returns trigger language plpgsql as $$ declare s short := new.v; begin
           insert into log values (new.id); return new; end $$;
         create trigger note after insert or update on t for each row execute function note()",
    );
    attach(&bed, "t", r#"{"mode": "queue"}"#);
    bed.left.exec("insert into t values (1, 'a')");
    assert!(!deal(&bed, "100"));
    let told = "select sqlstate, message like '%search_path_append%' from sync_err_rec";
    assert_eq!(rows(&bed.left, told), ["42704|t"]);
    bed.left.exec(&format!(
        r#"alter server dst options (add search_path_append '{schema}, "My ""own"", s\"')"#
    ));
    bed.left.exec_superuser("select retry_sync_err_rec(id) from sync_err_rec");
    assert!(deal(&bed, "100"), "{:?}", rows(&bed.left, "select message from sync_err_rec"));
    // Also where another path is needed meanwhile, and through what drops start-up parameters.
    bed.left.exec("alter server dst options (add pooled 'on')");
    bed.left.exec("insert into t values (2, 'b')");
    assert!(deal(&bed, "100"), "{:?}", rows(&bed.left, "select message from sync_err_rec"));
    assert_eq!(queued(&bed), 0);
    assert_eq!(rows(&bed.right, r#"select id from "My ""own"", s\".log order by 1"#), ["1", "2"]);
}

#[test]
fn a_list_of_schemas_is_checked_when_it_is_set() {
    let bed = linked("badpath");
    let mut client = bed.left.client();
    for value in ["\"$user\"", "pg_temp", "a b", "a,,b", "\"a"] {
        let sql = format!("alter server dst options (add search_path_append '{value}')");
        let error = refused(&mut client, &sql, "22023");
        assert!(error.hint().is_some(), "{value}");
    }
}
