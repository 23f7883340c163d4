//! Two masters: a change crosses once, and the loop guard by whatever name.

use rowsync_harness::Fixture;

use crate::support::common::{both_have, queued, rows, run, same, table};

const COLUMNS: &str = "id int primary key, v text, touched int not null default 0";

/// Servers of the given names and options on both sides, and a table `t` that either sends.
fn masters(label: &str, server: &[(&str, &str)], trigger: &str) -> Fixture {
    let fixture = Fixture::new(label);
    for (side, other) in [
        (&fixture.left, &fixture.right),
        (&fixture.right, &fixture.left),
    ] {
        fixture.link(side, other, "dst", server);
        side.exec(&format!("create table t ({COLUMNS})"));
        let target = &other.user;
        side.exec(&format!(
            "select attach_sync('t', 'dst', '{target}.t', '{trigger}')"
        ));
    }
    fixture
}

/// What a row version is known by: an echo would write a new one.
const VERSIONS: &str = "select id, ctid, xmin from t order by id";

/// Changes on either side cross, and each is applied once.
fn crosses_once(fixture: &Fixture) {
    for (here, there) in [
        (&fixture.left, &fixture.right),
        (&fixture.right, &fixture.left),
    ] {
        // Counts every write of a row on the side that receives, and logs it.
        for side in [here, there] {
            side.exec(&format!(
                "create table log (op text, id int);
                 create function note() returns trigger language plpgsql as $$
                 begin
                   insert into {}.log values (tg_op, coalesce(new.id, old.id));
                   return null;
                 end $$;
                 create trigger a_note after insert or update or delete on t
                   for each row execute function note()",
                side.user
            ));
        }
        let mut client = here.client();
        let mut crossed = |sql: &str, log: &[&str]| {
            for side in [here, there] {
                side.exec("truncate log");
            }
            run(&mut client, sql);
            let before = rows(here, VERSIONS);
            assert_eq!(
                rows(here, "select op, id from log"),
                log,
                "{sql} on the writing side"
            );
            assert_eq!(
                rows(there, "select op, id from log"),
                log,
                "{sql} on the other side"
            );
            // What comes after must find the rows as the first commit left them.
            assert_eq!(rows(here, VERSIONS), before);
            same(fixture, "t");
        };
        crossed(
            "insert into t values (1, 'a'), (2, 'b')",
            &["INSERT|1", "INSERT|2"],
        );
        crossed(
            "update t set v = 'c', touched = touched + 1 where id = 1",
            &["UPDATE|1"],
        );
        crossed("update t set id = 3 where id = 2", &["UPDATE|3"]);
        crossed("delete from t where id = 1", &["DELETE|1"]);
        crossed("truncate t", &[]);
        assert_eq!(table(there, "t"), [""; 0]);
        for side in [here, there] {
            side.exec("drop trigger a_note on t; drop function note; drop table log");
            assert_eq!(side.queued().expect("a queue"), 0);
        }
    }
}

#[test]
fn no_echo_under_the_name_of_the_setting() {
    crosses_once(&masters("setting", &[], "{}"));
}

#[test]
fn no_echo_under_a_name_in_the_servers_options() {
    crosses_once(&masters(
        "name",
        &[("application_name", "loop guard")],
        "{}",
    ));
}

#[test]
fn no_echo_under_a_name_inside_the_option_options() {
    let options = [("options", "-c geqo=off -c application_name=aaabbbccc")];
    crosses_once(&masters("options", &options, "{}"));
}

#[test]
fn no_echo_under_a_name_in_the_triggers_options() {
    crosses_once(&masters(
        "trigger",
        &[],
        r#"{"application_name": "of the trigger"}"#,
    ));
}

#[test]
fn each_row_version_is_written_once() {
    let fixture = masters("version", &[], "{}");
    fixture
        .left
        .exec("insert into t select i, 'x' from generate_series(1, 100) i");
    let left = rows(&fixture.left, VERSIONS);
    let right = rows(&fixture.right, VERSIONS);
    fixture
        .right
        .exec("update t set touched = touched + 1 where id > 50");
    assert_eq!(rows(&fixture.left, VERSIONS)[..50], left[..50]);
    assert_eq!(rows(&fixture.right, VERSIONS)[..50], right[..50]);
    let writers = "select count(distinct xmin::text), max(touched) from t where id > 50";
    assert_eq!(rows(&fixture.left, writers), ["1|1"]);
    assert_eq!(rows(&fixture.right, writers), ["1|1"]);
    same(&fixture, "t");
}

/// A session under the guard's name changes its own side only; under another name, both.
fn only_this_name_guards(fixture: &Fixture, name: &str, others: &[&str]) {
    let mut guarded = fixture.left.client_named(name);
    run(
        &mut guarded,
        "insert into t values (1, 'guarded'); truncate t",
    );
    run(
        &mut guarded,
        "insert into t values (1, 'guarded'); update t set v = 'still'",
    );
    assert_eq!(table(&fixture.right, "t"), [""; 0]);
    assert_eq!(queued(fixture), 0);
    run(&mut guarded, "delete from t");
    for (at, other) in others.iter().enumerate() {
        let mut client = fixture.left.client_named(other);
        run(&mut client, &format!("insert into t values ({at}, 'sent')"));
        assert_eq!(
            same(fixture, "t").len(),
            at + 1,
            "under the name \"{other}\""
        );
    }
    // The name of the moment counts.
    run(
        &mut guarded,
        "set application_name = 'anyone'; delete from t",
    );
    both_have(fixture, "t", &[]);
    run(
        &mut guarded,
        &format!("set application_name = '{name}'; insert into t values (1, 'x')"),
    );
    assert_eq!(table(&fixture.right, "t"), [""; 0]);
}

#[test]
fn the_setting_names_the_guard() {
    let fixture = masters("guard", &[], "{}");
    only_this_name_guards(&fixture, "pg_rowsync", &["", "psql", "pg_rowsync2"]);
    fixture.left.exec("delete from t where false");
    let db = &fixture.left.db;
    fixture.left.exec_superuser(&format!(
        "alter database {db} set pg_rowsync.application_name = 'g'"
    ));
    fixture.left.exec("truncate t");
    only_this_name_guards(&fixture, "g", &["pg_rowsync2", "G"]);
}

#[test]
fn the_servers_options_name_the_guard() {
    let fixture = masters("server", &[("application_name", "direct")], "{}");
    only_this_name_guards(&fixture, "direct", &["pg_rowsync", "psql"]);
    let fixture = masters("inside", &[("options", "-c application_name=inside")], "{}");
    only_this_name_guards(&fixture, "inside", &["pg_rowsync", "psql"]);
}

#[test]
fn the_triggers_options_name_the_guard_before_all_others() {
    let option = r#"{"application_name": "of trigger"}"#;
    let fixture = masters("first", &[("application_name", "of server")], option);
    only_this_name_guards(&fixture, "of trigger", &["of server", "pg_rowsync"]);
}
