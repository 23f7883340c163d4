//! Servers, mappings and who may use them; the connections that a session keeps.

use postgres::Client;
use rowsync_harness::{Fixture, Side, fails};

use crate::support::common::{
    both_have, linked, one_way, query, queued, records, refused, rows, run, set_host_apart, table,
};

const COLUMNS: &str = "id int primary key, v text";

/// A table `t` on both sides, without a trigger.
fn unlinked(label: &str) -> Fixture {
    let fixture = Fixture::new(label);
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table t ({COLUMNS})"));
    }
    fixture
}

#[test]
fn servers_of_other_wrappers_work_unchanged() {
    for wrapper in ["dblink_fdw", "postgres_fdw", "bare"] {
        let fixture = unlinked("wrapper");
        fixture.left.exec_superuser(match wrapper {
            "dblink_fdw" => "create extension dblink schema public",
            "postgres_fdw" => "create extension postgres_fdw schema public",
            _ => "create foreign data wrapper bare validator postgresql_fdw_validator",
        });
        let user = &fixture.left.user;
        fixture.left.exec_superuser(&format!(
            "grant usage on foreign data wrapper {wrapper} to {user}"
        ));
        let Side {
            db, user, password, ..
        } = &fixture.right;
        let port = fixture.right.cluster.port();
        // postgres_fdw and dblink know options that are not libpq's, or are for others.
        let more = match wrapper {
            "postgres_fdw" => ", fetch_size '10', use_remote_estimate 'true'",
            _ => ", options '-c geqo=off'",
        };
        let address = match wrapper {
            "bare" => "hostaddr '127.0.0.1'",
            _ => "host '127.0.0.1'",
        };
        fixture.left.exec(&format!(
            "create server dst foreign data wrapper {wrapper}
               options ({address}, port '{port}', dbname '{db}'{more});
             create user mapping for current_user server dst
               options (user '{user}', password '{password}')"
        ));
        crate::support::common::attach(&fixture, "t", "{}");
        fixture.left.exec("insert into t values (1, 'a')");
        assert_eq!(records(&fixture), [""; 0], "{wrapper}");
        both_have(&fixture, "t", &["1|a"]);
    }
}

fn invalid(client: &mut Client, sql: &str, hint: &str) {
    let error = refused(client, sql, "HV00D");
    assert!(
        error.message().starts_with("invalid option \""),
        "{error:?}"
    );
    assert!(
        error.hint().is_some_and(|text| text.contains(hint)),
        "{sql}: {error:?}"
    );
}

#[test]
fn the_validator_puts_every_option_in_its_place() {
    let fixture = linked("validator");
    let mut client = fixture.left.client();
    let server = |options: &str| {
        format!("create server s foreign data wrapper pg_rowsync options ({options})")
    };
    invalid(&mut client, &server("hots 'x'"), "\"host\"");
    invalid(&mut client, &server("db_name 'x'"), "\"dbname\"");
    invalid(&mut client, &server("zzzzzzzzzzzz 'x'"), "host");
    for option in ["user", "password", "sslpassword", "password_required"] {
        invalid(
            &mut client,
            &server(&format!("{option} 'x'")),
            "user mapping",
        );
    }
    invalid(&mut client, &server("client_encoding 'x'"), "");
    invalid(&mut client, "alter server dst options (add usr 'x')", "");
    let mapping = "alter user mapping for current_user server dst options";
    invalid(
        &mut client,
        &format!("{mapping} (add pasword 'x')"),
        "\"password\"",
    );
    invalid(
        &mut client,
        &format!("{mapping} (add host 'x')"),
        "belongs in the server",
    );
    let mut admin = fixture.left.superuser();
    invalid(
        &mut admin,
        "alter foreign data wrapper pg_rowsync options (add host 'x')",
        "belongs in the server",
    );
    run(
        &mut client,
        &server(
            "host 'x', port '1', sslmode 'disable', options '-c geqo=off', application_name 'g'",
        ),
    );
    assert_eq!(
        rows(
            &fixture.left,
            "select srvname from pg_foreign_server order by 1"
        ),
        ["dst", "s"]
    );
}

#[test]
fn only_a_superuser_waives_the_password() {
    let fixture = linked("waive");
    let mut client = fixture.left.client();
    let user = &fixture.left.user;
    let mapping = format!("alter user mapping for {user} server dst options");
    let waive = format!("{mapping} (add password_required 'false')");
    let error = refused(&mut client, &waive, "42501");
    assert!(error.message().contains("password_required"), "{error:?}");
    run(
        &mut client,
        &format!("{mapping} (add password_required 'true')"),
    );
    let error = refused(
        &mut client,
        &format!("{mapping} (set password_required 'maybe')"),
        "22023",
    );
    assert!(error.message().contains("boolean"), "{error:?}");
    refused(
        &mut client,
        &format!("{mapping} (add sslkey '/x')"),
        "42501",
    );
    run(
        &mut fixture.left.superuser(),
        &format!("{mapping} (set password_required 'false')"),
    );
}

#[test]
fn an_owner_without_a_password_in_the_mapping_is_refused() {
    let fixture = one_way("nopassword", COLUMNS, r#"{"mode": "sync"}"#);
    let mut client = fixture.left.client();
    let mapping = "alter user mapping for current_user server dst options (drop password)";
    run(&mut client, mapping);
    let error = refused(&mut client, "insert into t values (1, 'a')", "2F003");
    assert!(
        error.message().contains("password is required"),
        "{error:?}"
    );
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("password_required=false")),
        "{error:?}"
    );
    both_have(&fixture, "t", &[]);
    // In async it is a reason like any other, and never a committed change lost.
    fixture.left.exec("select detach_sync('t', 'dst')");
    crate::support::common::attach(&fixture, "t", "{}");
    run(&mut client, "insert into t values (1, 'a')");
    assert_eq!(records(&fixture), ["INSERT|2F003|1|pending"]);
    assert_eq!(table(&fixture.right, "t"), [""; 0]);
}

const CONNECTIONS: &str = "select server_name, user_name, valid from sync_connections()";

#[test]
fn a_session_sees_and_closes_its_connections() {
    let fixture = one_way("cache", COLUMNS, r#"{"mode": "sync"}"#);
    set_host_apart(&fixture);
    let mut client = fixture.left.client();
    assert_eq!(query(&mut client, CONNECTIONS), [""; 0]);
    run(&mut client, "insert into t values (1, 'a')");
    let user = &fixture.left.user;
    assert_eq!(query(&mut client, CONNECTIONS), [format!("dst|{user}|t")]);
    let pid = query(&mut client, "select backend_pid from sync_connections()");
    // The same one serves the next transaction, and the server knows it under the guard's name.
    run(&mut client, "insert into t values (2, 'b')");
    assert_eq!(
        query(&mut client, "select backend_pid from sync_connections()"),
        pid
    );
    let name = format!(
        "select application_name from pg_stat_activity where pid = {}",
        pid[0]
    );
    assert_eq!(rows(&fixture.right, &name), ["pg_rowsync"]);
    // Others see none of it.
    assert_eq!(query(&mut fixture.left.client(), CONNECTIONS), [""; 0]);
    assert_eq!(query(&mut client, "select sync_disconnect('dst')"), ["t"]);
    assert_eq!(query(&mut client, CONNECTIONS), [""; 0]);
    assert_eq!(
        query(
            &mut client,
            "select sync_disconnect('dst'), sync_disconnect()"
        ),
        ["f|f"]
    );
    refused(&mut client, "select sync_disconnect('nowhere')", "42704");
    run(&mut client, "insert into t values (3, 'c')");
    assert_eq!(query(&mut client, "select sync_disconnect()"), ["t"]);
    both_have(&fixture, "t", &["1|a", "2|b", "3|c"]);
}

#[test]
fn an_altered_server_or_mapping_counts_from_the_next_transaction_on() {
    let fixture = one_way("altered", COLUMNS, r#"{"mode": "sync"}"#);
    let Side { db, password, .. } = &fixture.right;
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    let mapping = "alter user mapping for current_user server dst options";
    run(&mut client, &format!("{mapping} (set password 'wrong')"));
    refused(&mut client, "insert into t values (2, 'b')", "28P01");
    run(
        &mut client,
        &format!("{mapping} (set password '{password}')"),
    );
    run(&mut client, "insert into t values (2, 'b')");
    both_have(&fixture, "t", &["1|a", "2|b"]);
    run(
        &mut client,
        "alter server dst options (set dbname 'nowhere')",
    );
    let error = fails(client.batch_execute("insert into t values (3, 'c')"));
    assert_eq!(error.code().code(), "3D000", "{error:?}");
    // Altered in another session, and within the transaction that writes.
    fixture
        .left
        .exec(&format!("alter server dst options (set dbname '{db}')"));
    run(&mut client, "insert into t values (3, 'c')");
    run(&mut client, "begin; insert into t values (4, 'd')");
    run(&mut client, &format!("{mapping} (set password 'wrong')"));
    refused(&mut client, "commit", "28P01");
    run(&mut client, "insert into t values (4, 'd')");
    both_have(&fixture, "t", &["1|a", "2|b", "3|c", "4|d"]);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn a_connection_found_dead_is_made_anew_without_a_word() {
    let fixture = one_way("dead", COLUMNS, "{}");
    let (mut client, notices) = fixture.left.client_with_notices();
    for i in 1..=3 {
        run(&mut client, &format!("insert into t values ({i}, 'a')"));
        assert_eq!(table(&fixture.right, "t").len(), i);
        // Waits for the end of the process, so the connection is closed when it returns.
        let user = &fixture.right.user;
        fixture.right.exec_superuser(&format!(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = '{user}'"
        ));
    }
    assert_eq!(
        query(&mut client, "select valid from sync_connections()"),
        ["f"]
    );
    run(&mut client, "insert into t values (4, 'a')");
    both_have(&fixture, "t", &["1|a", "2|a", "3|a", "4|a"]);
    assert_eq!(queued(&fixture), 0);
    assert_eq!(crate::support::common::warnings(&notices), []);
}

#[test]
fn a_public_mapping_serves_owners_without_one_of_their_own() {
    let fixture = unlinked("public");
    let Side {
        db, user, password, ..
    } = &fixture.right;
    let port = fixture.right.cluster.port();
    fixture.left.exec(&format!(
        "create server dst foreign data wrapper pg_rowsync
           options (host '127.0.0.1', port '{port}', dbname '{db}');
         create user mapping for public server dst options (user '{user}', password '{password}')"
    ));
    crate::support::common::attach(&fixture, "t", r#"{"mode": "sync"}"#);
    fixture.left.exec("insert into t values (1, 'a')");
    both_have(&fixture, "t", &["1|a"]);
    fixture
        .left
        .exec("create user mapping for current_user server dst options (user 'x', password 'x')");
    refused(
        &mut fixture.left.client(),
        "insert into t values (2, 'b')",
        "28P01",
    );
}

#[test]
fn a_remote_session_is_bounded_however_it_loses_its_other_end() {
    let fixture = one_way("bounded", COLUMNS, "{}");
    fixture.right.exec(
        "create table seen (name text, setting text);
         create function look() returns trigger language plpgsql as $$
         begin
           insert into seen select s.name, s.setting from pg_catalog.pg_settings s where s.name in
             ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout',
              'client_connection_check_interval', 'tcp_keepalives_idle', 'tcp_keepalives_interval',
              'tcp_keepalives_count');
           return new;
         end $$;
         create trigger look before insert on t for each row execute function look()",
    );
    let schema = fixture.right.user.clone();
    fixture
        .right
        .exec(&format!("alter function look() set search_path = {schema}"));
    fixture.left.exec("insert into t values (1, 'a')");
    let expected = [
        "client_connection_check_interval|1000",
        "idle_in_transaction_session_timeout|60000",
        "lock_timeout|1000",
        "statement_timeout|10000",
        "tcp_keepalives_count|3",
        "tcp_keepalives_idle|30",
        "tcp_keepalives_interval|10",
    ];
    assert_eq!(
        rows(&fixture.right, "select * from seen order by 1"),
        expected
    );
    assert_eq!(queued(&fixture), 0);
}
