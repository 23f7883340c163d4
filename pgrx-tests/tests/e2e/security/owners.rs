//! Owners that share PUBLIC's mapping share nothing else: what one of them may do does not count for the
//! others' changes.

use postgres::Client;
use rowsync_harness::{Fixture, Side};

use crate::support::common::{
    Role, both_have, hand_to_superuser, linked, passwordless, query, queued, records, refused,
    rows, run, set_host_apart, table,
};

/// On the left a table `s` of the superuser and a table `t` of the side's role, which only a password
/// would let connect: over a mapping that has none, to a server that asks for none.
fn unequal(label: &str, mode: &str) -> Fixture {
    let fixture = passwordless(label, "trust");
    set_host_apart(&fixture);
    hand_to_superuser(&fixture);
    let left = &fixture.left.user;
    let right = &fixture.right.user;
    fixture
        .right
        .exec("create table s (id int primary key); create table t (id int primary key)");
    fixture.left.exec("create table t (id int primary key)");
    fixture.left.exec_superuser(&format!(
        r#"create table {left}.s (id int primary key);
           select attach_sync('{left}.s', 'dst', '{right}.s', '{{"mode": "{mode}"}}');
           select attach_sync('{left}.t', 'dst', '{right}.t', '{{"mode": "{mode}"}}')"#
    ));
    fixture
}

/// The superuser, who may write both tables: who writes makes no difference.
fn writer(fixture: &Fixture) -> Client {
    let mut client = fixture.left.superuser();
    run(
        &mut client,
        &format!("set search_path = {}, public", fixture.left.user),
    );
    client
}

#[test]
fn a_superusers_changes_do_not_carry_another_owners_along() {
    let fixture = unequal("unequal", "sync");
    let mut client = writer(&fixture);
    for sql in [
        "insert into s values (1); insert into t values (1)",
        "insert into t values (1); insert into s values (1)",
        "insert into s values (1); savepoint a; insert into t values (1); release a",
    ] {
        run(&mut client, &format!("begin; {sql}"));
        refused(&mut client, "commit", "2F003");
        assert_eq!(table(&fixture.right, "s"), [""; 0], "{sql}");
        assert_eq!(table(&fixture.right, "t"), [""; 0], "{sql}");
    }
    run(
        &mut client,
        "begin; insert into s values (1); savepoint a; insert into t values (1)",
    );
    run(&mut client, "rollback to a; commit");
    both_have(&fixture, "s", &["1"]);
    both_have(&fixture, "t", &[]);
}

#[test]
fn a_superusers_connection_does_not_serve_another_owner() {
    let fixture = unequal("unequal_kept", "sync");
    let mut client = writer(&fixture);
    let connections = "select user_name, valid, backend_pid from sync_connections()";
    run(&mut client, "insert into s values (1)");
    let kept = query(&mut client, connections);
    assert_eq!(kept.len(), 1);
    assert!(kept[0].starts_with("postgres|t|"), "{kept:?}");
    refused(&mut client, "insert into t values (1)", "2F003");
    // It is still there for its own.
    run(&mut client, "insert into s values (2)");
    assert_eq!(query(&mut client, connections), kept);
    refused(&mut client, "insert into t values (2)", "2F003");
    both_have(&fixture, "s", &["1", "2"]);
    assert_eq!(table(&fixture.right, "t"), [""; 0]);
    // The same session once more, when its owner is no superuser any longer.
    let left = &fixture.left.user;
    fixture
        .left
        .exec_superuser(&format!("alter table {left}.t owner to postgres"));
    run(&mut client, "insert into t values (3)");
    fixture
        .left
        .exec_superuser(&format!("alter table {left}.t owner to {left}"));
    refused(&mut client, "insert into t values (4)", "2F003");
    fixture
        .left
        .exec_superuser(&format!("alter role {left} superuser"));
    run(&mut client, "insert into t values (5)");
    fixture
        .left
        .exec_superuser(&format!("alter role {left} nosuperuser"));
    refused(&mut client, "insert into t values (6)", "2F003");
    assert_eq!(table(&fixture.right, "t"), ["3", "5"]);
}

#[test]
fn the_queue_keeps_owners_apart() {
    let fixture = unequal("unequal_queue", "async");
    let mut client = writer(&fixture);
    run(
        &mut client,
        "begin; insert into s values (1); insert into t values (1); commit",
    );
    assert_eq!(table(&fixture.right, "t"), [""; 0]);
    let owners = rows(
        &fixture.left,
        "select table_name, owner from sync_queue order by 1",
    );
    assert_eq!(
        owners,
        ["s|postgres".to_owned(), format!("t|{}", fixture.left.user)]
    );
    let reasons = rows(
        &fixture.left,
        "select sqlstate from sync_err_rec where table_name = 't'",
    );
    assert_eq!(reasons, ["2F003"]);
    // Nor does a drain send for the one what only the other may.
    for _ in 0..3 {
        run(&mut client, "select deal_sync_err_rec(100)");
    }
    assert_eq!(table(&fixture.right, "t"), [""; 0]);
    assert_eq!(
        records(&fixture).last().map(String::as_str),
        Some("INSERT|2F003|1|pending")
    );
    let dst = "alter user mapping for public server dst options (add password 'x')";
    run(&mut client, dst);
    refused(
        &mut client,
        "do $$ begin if not deal_sync_err_rec(100) then raise 'no' using errcode = '2F003'; end if; end $$",
        "2F003",
    );
    fixture
        .right
        .cluster
        .set_authentication("scram-sha-256")
        .expect("a rule");
    let set = format!(
        "alter user mapping for public server dst options (set password '{}')",
        fixture.right.password
    );
    run(&mut client, &set);
    while queued(&fixture) > 0 {
        assert_eq!(query(&mut client, "select deal_sync_err_rec(100)"), ["t"]);
    }
    both_have(&fixture, "s", &["1"]);
    both_have(&fixture, "t", &["1"]);
}

/// Tables `t` of the left side's role and `o` of another, both of whom have PUBLIC's mapping.
fn shared(label: &str, mode: &str) -> (Fixture, Role) {
    let fixture = linked(label);
    set_host_apart(&fixture);
    let Side {
        user: right,
        password,
        ..
    } = &fixture.right;
    let left = &fixture.left.user;
    fixture.left.exec(&format!(
        "drop user mapping for current_user server dst;
         create user mapping for public server dst options (user '{right}', password '{password}')"
    ));
    let other = Role::create(&fixture.left, "other", "");
    fixture.left.exec_superuser(&format!(
        "grant usage on foreign server dst to {}",
        other.name
    ));
    fixture
        .right
        .exec("create table t (id int primary key); create table o (id int primary key)");
    let attach = |name: &str| {
        format!(r#"select attach_sync('{name}', 'dst', '{right}.{name}', '{{"mode": "{mode}"}}')"#)
    };
    fixture.left.exec(&format!(
        "create table t (id int primary key); {}",
        attach("t")
    ));
    let mut owner = other.client();
    run(
        &mut owner,
        &format!(
            "create table o (id int primary key); {}; grant all on o to {left}",
            attach("o")
        ),
    );
    drop(owner);
    (fixture, other)
}

#[test]
fn owners_that_share_a_mapping_have_a_change_set_and_a_connection_each() {
    let (fixture, other) = shared("shared", "sync");
    let left = &fixture.left.user;
    let password = &fixture.right.password;
    let mut client = fixture.left.client();
    run(
        &mut client,
        "begin; insert into t values (1); insert into o values (1); commit",
    );
    for name in ["t", "o"] {
        both_have(&fixture, name, &["1"]);
    }
    let mut both = [left.clone(), other.name.clone()];
    both.sort();
    let connections =
        "select user_name from sync_connections() where valid order by user_name collate \"C\"";
    assert_eq!(query(&mut client, connections), both);
    // Both are closed when their mapping changes.
    run(
        &mut client,
        "alter user mapping for public server dst options (set password 'x')",
    );
    assert_eq!(query(&mut client, connections), [""; 0]);
    // USAGE is each owner's own, and taken away it ends with the transaction under way.
    run(
        &mut client,
        &format!("alter user mapping for public server dst options (set password '{password}')"),
    );
    fixture.left.exec_superuser(&format!(
        "revoke usage on foreign server dst from {}",
        other.name
    ));
    run(&mut client, "begin; insert into t values (2)");
    refused(&mut client, "insert into o values (2)", "42501");
    run(&mut client, "rollback; insert into t values (2)");
    both_have(&fixture, "t", &["1", "2"]);
    both_have(&fixture, "o", &["1"]);
}

#[test]
fn what_is_queued_for_one_owner_is_queued_for_the_others() {
    let (fixture, _other) = shared("together", "async");
    fixture
        .right
        .exec("alter table o add constraint small check (id < 5)");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "begin; insert into t values (1); insert into o values (9); commit",
    );
    let waiting = "select table_name, sqlstate from sync_err_rec order by id";
    assert_eq!(rows(&fixture.left, waiting), ["t|~", "o|23514"]);
    assert_eq!(table(&fixture.right, "t"), [""; 0]);
    fixture.right.exec("alter table o drop constraint small");
    while queued(&fixture) > 0 {
        assert_eq!(
            query(
                &mut fixture.left.superuser(),
                "select deal_sync_err_rec(10)"
            ),
            ["t"]
        );
    }
    both_have(&fixture, "t", &["1"]);
    both_have(&fixture, "o", &["9"]);
}
