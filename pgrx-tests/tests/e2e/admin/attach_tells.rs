//! What `attach_sync` says of a target that cannot work, as WARNINGs, and that it attaches all the same.

use std::sync::Arc;

use postgres::error::DbError;
use rowsync_harness::cluster::{Cluster, TEST_SETTINGS};
use rowsync_harness::fixture::clusters;
use rowsync_harness::{Fixture, Side};

use crate::support::common::{
    Role, attach_sql, closed_port, link_with, linked, rows, run, superuser_with_notices, warnings,
};

/// SQLSTATE, a part of the message, a part of the hint.
type Reported = (&'static str, &'static str, &'static str);

/// What is said when `t` is attached to the right side's table of that name, under these options.
fn reported(fixture: &Fixture, table: &str, options: &str) -> Vec<DbError> {
    told_by(&fixture.left, &attach_sql(fixture, table, options))
}

fn told_by(side: &Side, sql: &str) -> Vec<DbError> {
    let (mut client, notices) = side.client_with_notices();
    run(&mut client, sql);
    warnings(&notices)
}

#[track_caller]
fn assert_told(said: &[DbError], expected: &[Reported]) {
    let states: Vec<&str> = said.iter().map(|one| one.code().code()).collect();
    assert_eq!(
        states,
        expected.iter().map(|one| one.0).collect::<Vec<_>>(),
        "{said:#?}"
    );
    for (said, (_, message, hint)) in said.iter().zip(expected) {
        assert!(said.message().contains(message), "{said:?}: {message}");
        assert!(
            said.hint().is_some_and(|said| said.contains(hint)),
            "{said:?}: {hint}"
        );
    }
}

/// A fixture whose left table `t` is this; nothing is on the right.
fn local(label: &str, columns: &str) -> Fixture {
    let fixture = linked(label);
    fixture.left.exec(&format!("create table t ({columns})"));
    fixture
}

const COLUMNS: &str = "id int primary key, v text, n int";

#[test]
fn nothing_is_said_where_all_is_well() {
    let fixture = local("well", COLUMNS);
    fixture.right.exec(&format!(
        "create table t ({COLUMNS}, more text not null default 'x', free int)"
    ));
    for options in [
        "{}",
        r#"{"on_conflict": "error"}"#,
        r#"{"on_conflict": "skip", "exclude": ["n"]}"#,
        r#"{"on_conflict": "newest", "version_column": "n"}"#,
    ] {
        assert_told(&reported(&fixture, "t", options), &[]);
        fixture.left.exec("select detach_sync('t', 'dst')");
    }
}

#[test]
fn a_target_that_is_not_there_is_told() {
    let fixture = local("nottable", COLUMNS);
    let said = reported(&fixture, "t", "{}");
    assert_told(
        &said,
        &[(
            "42P01",
            "does not exist on server \"dst\"",
            "Create it there",
        )],
    );
    assert!(
        said[0]
            .message()
            .contains(&format!("\"{}.t\"", fixture.right.user)),
        "{said:?}"
    );
    fixture.left.exec("select detach_sync('t', 'dst')");
    let said = told_by(&fixture.left, "select attach_sync('t', 'dst', 'nowhere.t')");
    assert_told(
        &said,
        &[(
            "3F000",
            "schema \"nowhere\" does not exist",
            "same schema and name",
        )],
    );
    // It is attached, and works once the table is there.
    fixture.left.exec("select detach_sync('t', 'dst')");
    reported(&fixture, "t", "{}");
    fixture.right.exec(&format!("create table t ({COLUMNS})"));
    fixture.left.exec("insert into t values (1, 'x', 1)");
    assert_eq!(
        crate::support::common::table(&fixture.right, "t"),
        ["1|x|1"]
    );
}

#[test]
fn what_is_no_table_is_told() {
    let fixture = local("kinds", COLUMNS);
    fixture.right.exec(&format!(
        "create table base ({COLUMNS}); create sequence s; create materialized view m as select * from base;
         create view plain as select * from base;
         create view instead as select * from base;
         create function nothing() returns trigger language plpgsql as 'begin return new; end';
         create trigger i instead of insert on instead for each row execute function nothing()"
    ));
    let kinds: [(&str, Option<Reported>); 4] = [
        ("s", Some(("42809", "is not a table", "Send to a table"))),
        ("m", Some(("42809", "is not a table", "Send to a table"))),
        ("plain", None),
        ("instead", Some(("42P10", "INSTEAD OF", "\"error\""))),
    ];
    for (target, expected) in kinds {
        let sql = format!(
            "select attach_sync('t', 'dst', '{}.{target}')",
            fixture.right.user
        );
        assert_told(&told_by(&fixture.left, &sql), expected.as_slice());
        fixture.left.exec("select detach_sync('t', 'dst')");
    }
    let sql = format!(
        r#"select attach_sync('t', 'dst', '{}.instead', '{{"on_conflict": "error"}}')"#,
        fixture.right.user
    );
    assert_told(&told_by(&fixture.left, &sql), &[]);
}

#[test]
fn columns_that_do_not_fit_are_told() {
    let fixture = local("fit", COLUMNS);
    fixture.right.exec(
        "create table t (id int primary key, v text, extra int not null, here int not null default 1,
           domained text, g int generated always as (id) stored)",
    );
    assert_told(
        &reported(&fixture, "t", "{}"),
        &[
            ("42703", "has no column \"n\"", "\"exclude\""),
            ("23502", "needs a value for column \"extra\"", "default"),
        ],
    );
    fixture.left.exec("select detach_sync('t', 'dst')");
    let renamed = r#"{"rename": {"n": "g", "v": "extra"}}"#;
    assert_told(
        &reported(&fixture, "t", renamed),
        &[
            ("428C9", "generates column \"g\"", "\"exclude\""),
            (
                "42804",
                "column \"v\" is of type text here and of type integer",
                "Give it the type",
            ),
        ],
    );
    fixture.left.exec("select detach_sync('t', 'dst')");
    // A domain may forbid NULL, and a trigger may fill it in.
    fixture.right.exec(
        "create domain filled as text not null; drop table t;
         create table t (id int primary key, v text, n int, d filled)",
    );
    assert_told(
        &reported(&fixture, "t", "{}"),
        &[("23502", "column \"d\"", "")],
    );
    fixture.left.exec("select detach_sync('t', 'dst')");
    fixture.right.exec(
        "create function fill() returns trigger language plpgsql as $$ begin new.d = 'x'; return new; end $$;
         create trigger fill before insert on t for each row execute function fill()",
    );
    assert_told(&reported(&fixture, "t", "{}"), &[]);
}

#[test]
fn a_key_that_on_conflict_cannot_use_is_told() {
    let fixture = local("arbiter", COLUMNS);
    for (table, expected) in [
        (
            "id int, v text, n int",
            Some((
                "42P10",
                "no unique index on exactly the key columns (id)",
                "unique index",
            )),
        ),
        (
            "id int, v text, n int, unique (id, n)",
            Some(("42P10", "(id)", "unique index")),
        ),
        (
            "id int primary key deferrable, v text, n int",
            Some(("55000", "is deferrable", "NOT DEFERRABLE")),
        ),
        ("id int, v text, n int, unique (id)", None),
    ] {
        fixture
            .right
            .exec(&format!("drop table if exists t; create table t ({table})"));
        assert_told(&reported(&fixture, "t", "{}"), expected.as_slice());
        fixture.left.exec("select detach_sync('t', 'dst')");
        assert_told(&reported(&fixture, "t", r#"{"on_conflict": "error"}"#), &[]);
        fixture.left.exec("select detach_sync('t', 'dst')");
    }
    fixture.right.exec("drop table t; create table t (id int, v text, n int); create unique index on t (id) where n > 0");
    assert_told(
        &reported(&fixture, "t", "{}"),
        &[("42P10", "no unique index", "")],
    );
    // The order of the columns does not matter, nor that it is partitioned.
    fixture
        .left
        .exec("create table p (a int, b int, primary key (a, b))");
    fixture
        .right
        .exec("create table p (a int, b int, primary key (b, a)) partition by list (a)");
    assert_told(&reported(&fixture, "p", "{}"), &[]);
}

/// A server `few` on the left, whose mapping is a role of the right side's that has no privileges yet.
fn with_few_rights(fixture: &Fixture) -> Role {
    let role = Role::create(&fixture.right, "few", "");
    let Side {
        db, cluster, user, ..
    } = &fixture.right;
    fixture
        .right
        .exec_superuser(&format!("revoke all on schema {user} from {}", role.name));
    fixture.left.exec(&format!(
        "create server few foreign data wrapper pg_rowsync
           options (host '127.0.0.1', port '{}', dbname '{db}');
         create user mapping for current_user server few options (user '{n}', password '{n}')",
        cluster.port(),
        n = role.name
    ));
    role
}

#[test]
fn privileges_that_are_missing_are_told() {
    let fixture = local("rights", COLUMNS);
    fixture.right.exec(&format!("create table t ({COLUMNS})"));
    let role = with_few_rights(&fixture);
    let schema = &fixture.right.user;
    let name = &role.name;
    let attach = |options: &str| {
        let sql = format!(
            "select attach_sync('t', 'few', '{schema}.t', '{options}'); select detach_sync('t', 'few')"
        );
        told_by(&fixture.left, &sql)
    };
    let said = attach("{}");
    assert_told(
        &said,
        &[
            ("42501", "may not use schema", "GRANT USAGE ON SCHEMA"),
            (
                "42501",
                "lacks SELECT, INSERT, UPDATE, DELETE, TRUNCATE",
                "GRANT SELECT, INSERT",
            ),
        ],
    );
    assert!(
        said[0].message().contains(name) && said[0].message().contains("\"few\""),
        "{said:?}"
    );
    fixture.right.exec(&format!(
        "grant usage on schema {schema} to {name}; grant select, insert, delete on t to {name}"
    ));
    assert_told(
        &attach("{}"),
        &[(
            "42501",
            "lacks UPDATE, TRUNCATE on",
            "GRANT UPDATE, TRUNCATE",
        )],
    );
    // Of single columns, those that are used.
    fixture.right.exec(&format!(
        "grant truncate on t to {name}; revoke select on t from {name};
         grant select (id), update (v, n) on t to {name}"
    ));
    assert_told(&attach("{}"), &[("42501", "lacks SELECT on", "")]);
    assert_told(&attach(r#"{"on_conflict": "skip"}"#), &[]);
    fixture.right.exec(&format!(
        "grant select on t to {name}; alter table t enable row level security;
         create policy none on t using (false)"
    ));
    assert_told(&attach("{}"), &[("42501", "row security", "BYPASSRLS")]);
}

#[test]
fn a_server_that_cannot_be_asked_is_told() {
    let fixture = local("unasked", COLUMNS);
    link_with(&fixture, "closed", closed_port(), &fixture.right.password);
    link_with(
        &fixture,
        "wrong",
        fixture.right.cluster.port(),
        "not the password",
    );
    let attach = |server: &str| {
        told_by(
            &fixture.left,
            &format!("select attach_sync('t', '{server}')"),
        )
    };
    assert_told(
        &attach("closed"),
        &[("08001", "server \"closed\" could not be asked", "queued")],
    );
    assert_told(
        &attach("wrong"),
        &[("28P01", "server \"wrong\" could not be asked", "queued")],
    );
    fixture.left.exec(&format!(
        "create server nodb foreign data wrapper pg_rowsync
           options (host '127.0.0.1', port '{}', dbname 'none such');
         create user mapping for current_user server nodb options (user '{}', password '{}')",
        fixture.right.cluster.port(),
        fixture.right.user,
        fixture.right.password
    ));
    assert_told(
        &attach("nodb"),
        &[("3D000", "\"none such\" does not exist", "")],
    );
    let triggers = "select count(*) from pg_trigger where tgrelid = 't'::regclass";
    assert_eq!(rows(&fixture.left, triggers), ["6"]);
}

/// Each side's server leads to the other; `t` is on both.
fn opposed(label: &str, left: &[(&str, &str)], right: &[(&str, &str)]) -> Fixture {
    let fixture = Fixture::new(label);
    fixture.link(&fixture.left, &fixture.right, "dst", left);
    fixture.link(&fixture.right, &fixture.left, "dst", right);
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table t ({COLUMNS})"));
    }
    fixture
}

fn attach_one(side: &Side, other: &Side, options: &str) -> Vec<DbError> {
    told_by(
        side,
        &format!(
            "select attach_sync('t', 'dst', '{}.t', '{options}')",
            other.user
        ),
    )
}

#[test]
fn guard_names_that_differ_are_told_by_both_names() {
    const NAMED: &[(&str, &str)] = &[("application_name", "site_a")];
    const IN_OPTIONS: &[(&str, &str)] = &[("options", "-c application_name=site_b")];
    let trigger = r#"{"application_name": "site_c"}"#;
    let cases: [(_, _, &str, &str, &str, &str); 4] = [
        (NAMED, &[] as &[_], "{}", "{}", "site_a", "pg_rowsync"),
        (&[], NAMED, "{}", "{}", "pg_rowsync", "site_a"),
        (NAMED, IN_OPTIONS, "{}", "{}", "site_a", "site_b"),
        (NAMED, NAMED, "{}", trigger, "site_a", "site_c"),
    ];
    for (left, right, of_left, of_right, ours, theirs) in cases {
        let fixture = opposed("guards", left, right);
        assert_told(&attach_one(&fixture.right, &fixture.left, of_right), &[]);
        let said = attach_one(&fixture.left, &fixture.right, of_left);
        assert_told(
            &said,
            &[("55000", "would come back", "same application_name")],
        );
        for name in [ours, theirs] {
            assert!(
                said[0].message().contains(&format!("\"{name}\"")),
                "{said:?}"
            );
        }
    }
    for (options, trigger) in [(NAMED, "{}"), (IN_OPTIONS, "{}"), (&[] as &[_], trigger)] {
        let fixture = opposed("sameguards", options, options);
        assert_told(&attach_one(&fixture.right, &fixture.left, trigger), &[]);
        assert_told(&attach_one(&fixture.left, &fixture.right, trigger), &[]);
    }
}

#[test]
fn a_guard_role_that_does_not_know_us_is_told() {
    let fixture = opposed("guardrole", &[], &[]);
    let peers = Role::create(&fixture.right, "peers", "");
    let options = format!(r#"{{"guard_role": "{}"}}"#, peers.name);
    assert_told(&attach_one(&fixture.right, &fixture.left, &options), &[]);
    let said = attach_one(&fixture.left, &fixture.right, "{}");
    assert_told(&said, &[("55000", "believes members of role", "GRANT")]);
    fixture.left.exec("select detach_sync('t', 'dst')");
    fixture
        .right
        .exec_superuser(&format!("grant {} to {}", peers.name, fixture.right.user));
    assert_told(&attach_one(&fixture.left, &fixture.right, "{}"), &[]);
}

#[test]
fn a_trigger_that_sends_on_under_another_guard_is_noted() {
    let fixture = opposed("chain", &[("application_name", "hop")], &[]);
    let Side { user, db, .. } = &fixture.right;
    fixture.right.exec(&format!(
        "create server third foreign data wrapper pg_rowsync options (dbname 'third');
         create user mapping for current_user server third options (user '{user}', password 'x');
         select attach_sync('t', 'third')"
    ));
    let (mut client, notices) = superuser_with_notices(&fixture.left);
    run(
        &mut client,
        &format!(
            "set search_path = {}, public; select attach_sync('t', 'dst', '{user}.t')",
            fixture.left.user
        ),
    );
    let said = notices.lock().expect("notices").clone();
    assert_eq!(said.len(), 1, "{db}: {said:?}");
    assert_eq!(
        (said[0].severity(), said[0].code().code()),
        ("NOTICE", "00000")
    );
    assert!(
        said[0].message().contains("are sent on from there"),
        "{said:?}"
    );
    assert!(said[0].message().contains("\"third\""), "{said:?}");
}

#[test]
fn a_copy_is_told() {
    let fixture = local("copytold", COLUMNS);
    fixture.right.exec(&format!("create table t ({COLUMNS})"));
    fixture
        .left
        .exec_superuser("insert into sync_node values (gen_random_uuid())");
    let said = reported(&fixture, "t", "{}");
    assert_told(
        &said,
        &[("55000", "neither captured nor sent", "adopt_sync()")],
    );
}

#[test]
fn a_target_in_recovery_is_told() {
    let own =
        std::sync::Arc::new(rowsync_harness::Cluster::start("attachstandby").expect("a cluster"));
    let right = Side::create(&own, "remote_standby").expect("a database");
    let left =
        Side::create(rowsync_harness::fixture::clusters().0, "local_standby").expect("a database");
    let fixture = Fixture { left, right };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table t ({COLUMNS})"));
    }
    own.stop(rowsync_harness::cluster::Shutdown::Fast)
        .expect("a stop");
    std::fs::write(own.dir().join("data").join("standby.signal"), "").expect("a file");
    own.start_again().expect("a standby");
    let said = reported(&fixture, "t", "{}");
    assert_told(&said, &[("25006", "is in recovery", "promoted")]);
}

/// Whatever `check_sync` calls an error is told, also what is the server's and not the target's.
#[test]
fn every_error_that_a_check_finds_is_told() {
    let fixture = local("allerrors", COLUMNS);
    fixture
        .right
        .exec("create table t (id int primary key, v text, n int generated always as identity)");
    let said = reported(&fixture, "t", "{}");
    let always = ("428C9", "column \"n\" of", "SET GENERATED BY DEFAULT there");
    assert_told(&said, &[always]);
    let settings = [TEST_SETTINGS, &[("max_prepared_transactions", "0")]].concat();
    let right = Arc::new(Cluster::start_with("noprepare", &settings).expect("a cluster"));
    let create = |cluster, name: &str| Side::create(cluster, name).expect("a database");
    let fixture = Fixture {
        left: create(clusters().0, "local_noprepare"),
        right: create(&right, "remote_noprepare"),
    };
    fixture.left.exec(&format!("create table t ({COLUMNS})"));
    fixture.link(&fixture.left, &fixture.right, "bare", &[]);
    fixture.right.exec(&format!("create table t ({COLUMNS})"));
    for (mode, expected) in [
        ("sync", &[][..]),
        (
            "atomic",
            &[(
                "55000",
                "has max_prepared_transactions = 0",
                "Set max_prepared_transactions there",
            )],
        ),
    ] {
        let attach = format!(
            r#"select attach_sync('t', 'bare', '{}.t', '{{"mode": "{mode}"}}')"#,
            fixture.right.user
        );
        assert_told(&told_by(&fixture.left, &attach), expected);
    }
    // So it is where a whole schema is attached.
    let user = &fixture.left.user;
    let attach = format!(
        r#"select reason from attach_sync_schema('{user}', 'bare', '{}', '{{"mode": "atomic"}}')"#,
        fixture.right.user
    );
    let reasons = rows(&fixture.left, &attach);
    assert!(
        reasons.len() == 1 && reasons[0].contains("has max_prepared_transactions = 0"),
        "{reasons:?}"
    );
    // No error is found that was not told.
    let errors =
        "select distinct problem from check_sync() where severity = 'error' and server = 'bare'";
    let found = rows(&fixture.left, errors);
    assert_eq!(found.len(), 1, "{found:?}");
}
