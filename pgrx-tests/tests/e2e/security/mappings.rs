//! USAGE, user mappings and their options: who may set them, and from when on a change of them counts.

use rowsync_harness::{Fixture, Side};

use crate::support::common::{
    Role, attach, attach_sql, both_have, hand_to_superuser, linked, one_way, passwordless, query,
    records, refused, rows, run, table,
};

const COLUMNS: &str = "id int primary key, v text";
const SYNC: &str = r#"{"mode": "sync"}"#;

#[test]
fn usage_taken_away_ends_with_the_transaction() {
    let fixture = linked("usage");
    let user = fixture.left.user.clone();
    let owner = Role::create(&fixture.left, "owner", "");
    let group = Role::create(&fixture.left, "group", "");
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table t ({COLUMNS})"));
    }
    let Side {
        user: right,
        password,
        ..
    } = &fixture.right;
    fixture.left.exec_superuser(&format!(
        "grant usage on foreign server dst to {}; alter table {user}.t owner to {0};
         create user mapping for {0} server dst options (user '{right}', password '{password}')",
        owner.name
    ));
    let mut client = owner.client();
    run(&mut client, &attach_sql(&fixture, "t", SYNC));
    run(&mut client, "insert into t values (1, 'a')");
    let refuse = |client: &mut _, id: i32| {
        let error = refused(
            client,
            &format!("insert into t values ({id}, 'a')"),
            "42501",
        );
        assert_eq!(error.message(), "permission denied for foreign server dst");
        assert!(
            error.hint().is_some_and(|hint| hint.contains(&owner.name)),
            "{error:?}"
        );
    };
    fixture.left.exec_superuser(&format!(
        "revoke usage on foreign server dst from {}",
        owner.name
    ));
    refuse(&mut client, 2);
    // By way of a role, in a session that has looked it up before.
    let grant = |sql: &str| fixture.left.exec_superuser(sql);
    grant(&format!(
        "grant usage on foreign server dst to {}",
        group.name
    ));
    grant(&format!("grant {} to {}", group.name, owner.name));
    run(&mut client, "insert into t values (2, 'a')");
    grant(&format!("revoke {} from {}", group.name, owner.name));
    refuse(&mut client, 3);
    // Without it nobody attaches either, be it the server's owner who asks.
    let error = refused(&mut client, "select attach_sync('t', 'dst', 'x')", "42501");
    assert!(error.message().contains("foreign server dst"), "{error:?}");
    // A record waits until its owner may use the server again.
    grant(&format!(
        "grant usage on foreign server dst to {}",
        owner.name
    ));
    run(&mut client, "select detach_sync('t', 'dst')");
    run(
        &mut client,
        &attach_sql(&fixture, "t", r#"{"mode": "queue"}"#),
    );
    run(&mut client, "insert into t values (3, 'a')");
    grant(&format!(
        "revoke usage on foreign server dst from {}",
        owner.name
    ));
    assert!(!crate::support::common::deal(&fixture, "10"));
    assert_eq!(
        rows(&fixture.left, "select last_sqlstate from sync_status"),
        ["42501"]
    );
    grant(&format!(
        "grant usage on foreign server dst to {}",
        owner.name
    ));
    assert!(crate::support::common::deal(&fixture, "10"));
    both_have(&fixture, "t", &["1|a", "2|a", "3|a"]);
}

#[test]
fn a_mapping_that_is_dropped_ends_with_the_transaction() {
    let fixture = one_way("unmapped", COLUMNS, SYNC);
    let user = fixture.left.user.clone();
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    fixture
        .left
        .exec("drop user mapping for current_user server dst");
    let error = refused(&mut client, "insert into t values (2, 'a')", "42704");
    let said = format!("user mapping not found for user \"{user}\", server \"dst\"");
    assert_eq!(error.message(), said);
    assert_eq!(
        query(&mut client, "select * from sync_connections()"),
        [""; 0]
    );
}

/// libpq would take the operating system's user in place of the mapping's, and a superuser needs no
/// password.
#[test]
fn a_mapping_dropped_before_the_commit_is_missed() {
    let fixture = passwordless("dropping_mapping", "trust");
    hand_to_superuser(&fixture);
    fixture.right.exec(&format!("create table t ({COLUMNS})"));
    let left = &fixture.left.user;
    let right = &fixture.right.user;
    fixture.left.exec_superuser(&format!(
        "create table {left}.t ({COLUMNS}); select attach_sync('{left}.t', 'dst', '{right}.t', '{SYNC}')"
    ));
    let mut client = fixture.left.superuser();
    run(
        &mut client,
        &format!("set search_path = {left}, public; insert into t values (1, 'a')"),
    );
    let drop_it = "drop user mapping for public server dst";
    run(
        &mut client,
        &format!("begin; insert into t values (2, 'a'); {drop_it}"),
    );
    assert_eq!(
        query(
            &mut client,
            "select server_name, valid from sync_connections()"
        ),
        ["dst|f"]
    );
    let error = refused(&mut client, "commit", "42704");
    assert_eq!(
        error.message(),
        "user mapping for server \"dst\" was dropped"
    );
    run(
        &mut client,
        "begin; insert into t values (2, 'a'); drop server dst cascade",
    );
    refused(&mut client, "commit", "42704");
    both_have(&fixture, "t", &["1|a"]);
    run(&mut client, "select detach_sync('t', 'dst')");
    run(&mut client, &attach_sql(&fixture, "t", "{}"));
    run(
        &mut client,
        &format!("begin; insert into t values (2, 'a'); {drop_it}; commit"),
    );
    assert_eq!(records(&fixture), ["INSERT|42704|1|pending"]);
}

#[test]
fn a_table_goes_over_to_its_new_owners_mapping() {
    let fixture = one_way("handed_over", COLUMNS, SYNC);
    let other = Role::create(&fixture.left, "other", "");
    let left = &fixture.left.user;
    let mut client = fixture.left.superuser();
    run(&mut client, &format!("set search_path = {left}, public"));
    run(&mut client, "insert into t values (1, 'a')");
    fixture
        .left
        .exec_superuser(&format!("alter table {left}.t owner to {}", other.name));
    refused(&mut client, "insert into t values (2, 'a')", "42501");
    fixture.left.exec_superuser(&format!(
        "grant usage on foreign server dst to {}",
        other.name
    ));
    refused(&mut client, "insert into t values (2, 'a')", "42704");
    fixture.left.exec(&format!(
        "create user mapping for {} server dst options (user '{}', password 'wrong')",
        other.name, fixture.right.user
    ));
    refused(&mut client, "insert into t values (2, 'a')", "28P01");
    fixture
        .left
        .exec_superuser(&format!("alter table {left}.t owner to {left}"));
    run(&mut client, "insert into t values (2, 'a')");
    both_have(&fixture, "t", &["1|a", "2|a"]);
}

#[test]
fn what_a_superuser_waived_in_a_mapping_counts_for_its_owner_who_cannot_change_it() {
    let fixture = passwordless("waived", "trust");
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table t ({COLUMNS})"));
    }
    attach(&fixture, "t", SYNC);
    let mut client = fixture.left.client();
    refused(&mut client, "insert into t values (1, 'a')", "2F003");
    let mapping = "user mapping for public server dst";
    fixture.left.exec_superuser(&format!(
        "alter {mapping} options (add password_required 'false')"
    ));
    run(&mut client, "insert into t values (1, 'a')");
    for options in [
        "set user 'postgres'",
        "add password 'x'",
        "set password_required 'false'",
    ] {
        refused(
            &mut client,
            &format!("alter {mapping} options ({options})"),
            "42501",
        );
    }
    // What is given back may be: then a password is required again, in this session too.
    run(
        &mut client,
        &format!("alter {mapping} options (set password_required 'true')"),
    );
    refused(&mut client, "insert into t values (2, 'a')", "2F003");
    both_have(&fixture, "t", &["1|a"]);
}

/// A wrapper without a validator takes any option from anybody.
fn unvalidated(label: &str, method: &str, server: &str, mapping: &str) -> Fixture {
    let fixture = passwordless(label, method);
    let (left, Side { db, user, .. }) = (&fixture.left.user, &fixture.right);
    fixture.left.exec_superuser(&format!(
        "create foreign data wrapper anything; grant usage on foreign data wrapper anything to {left}"
    ));
    fixture.left.exec(&format!(
        "drop server dst cascade;
         create server dst foreign data wrapper anything
           options (host '127.0.0.1', port '{}', dbname '{db}'{server});
         create user mapping for current_user server dst options (user '{user}'{mapping});
         create table t ({COLUMNS})",
        fixture.right.cluster.port()
    ));
    fixture.right.exec(&format!("create table t ({COLUMNS})"));
    attach(&fixture, "t", SYNC);
    fixture
}

#[test]
fn nobody_waives_the_password_where_no_validator_watches() {
    for waiver in ["false", "off", "0"] {
        let mapping = format!(", password 'x', password_required '{waiver}'");
        let fixture = unvalidated("unwatched", "trust", "", &mapping);
        refused(
            &mut fixture.left.client(),
            "insert into t values (1, 'a')",
            "2F003",
        );
        assert_eq!(table(&fixture.right, "t"), [""; 0]);
    }
}

#[test]
fn a_password_in_the_servers_options_is_nobodys() {
    let fixture = unvalidated("servers_own", "scram-sha-256", "", "");
    let password = &fixture.right.password;
    fixture.left.exec(&format!(
        "alter server dst options (add password '{password}')"
    ));
    let mut client = fixture.left.client();
    refused(&mut client, "insert into t values (1, 'a')", "2F003");
    fixture.left.exec(&format!(
        "alter user mapping for current_user server dst options (add password '{password}')"
    ));
    run(&mut client, "insert into t values (1, 'a')");
    both_have(&fixture, "t", &["1|a"]);
}

#[test]
fn a_waiver_under_postgres_fdw_counts() {
    let fixture = passwordless("waived_fdw", "trust");
    let (left, Side { db, user, .. }) = (&fixture.left.user, &fixture.right);
    fixture.left.exec_superuser(&format!(
        "create extension postgres_fdw schema public;
         grant usage on foreign data wrapper postgres_fdw to {left}"
    ));
    fixture.left.exec(&format!(
        "drop server dst cascade;
         create server dst foreign data wrapper postgres_fdw
           options (host '127.0.0.1', port '{}', dbname '{db}');
         create user mapping for current_user server dst options (user '{user}');
         create table t ({COLUMNS})",
        fixture.right.cluster.port()
    ));
    fixture.right.exec(&format!("create table t ({COLUMNS})"));
    attach(&fixture, "t", SYNC);
    let mut client = fixture.left.client();
    refused(&mut client, "insert into t values (1, 'a')", "2F003");
    let waive =
        format!("alter user mapping for {left} server dst options (add password_required 'false')");
    refused(&mut client, &waive, "42501");
    fixture.left.exec_superuser(&waive);
    run(&mut client, "insert into t values (1, 'a')");
    both_have(&fixture, "t", &["1|a"]);
}

#[test]
fn a_database_name_is_never_a_connection_string() {
    let fixture = one_way("conninfo", COLUMNS, SYNC);
    let Side {
        db, user, password, ..
    } = &fixture.right;
    let mut client = fixture.left.client();
    for name in [
        format!("dbname={db} port=1"),
        "host=127.0.0.1 port=1".to_owned(),
        format!("postgresql://{user}:{password}@127.0.0.1:1/{db}"),
    ] {
        run(
            &mut client,
            &format!("alter server dst options (set dbname '{name}')"),
        );
        let error = refused(&mut client, "insert into t values (1, 'a')", "3D000");
        let said = error.detail().unwrap_or_default();
        assert!(
            said.contains(&format!("database \"{}", &name[..20])),
            "{error:?}"
        );
    }
    both_have(&fixture, "t", &[]);
}
