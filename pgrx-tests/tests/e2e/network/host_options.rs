//! What `host` and `dbname` may be.

use std::time::{Duration, Instant};

use rowsync_harness::{Fixture, Hostile, Side, fails};

use crate::support::common::{attach, both_have, closed_port, one_way, refused, rows, run};

const COLUMNS: &str = "id int primary key, v text";
const SYNC: &str = r#"{"mode": "sync"}"#;

fn set(fixture: &Fixture, options: &[(&str, &str)]) {
    for (name, value) in options {
        fixture
            .left
            .exec(&format!("alter server dst options (set {name} '{value}')"));
    }
}

/// A name that libpq would read as a connection string, to another place, if it were let.
#[test]
fn a_database_name_is_a_name_whatever_it_looks_like() {
    let fixture = one_way("dbname", COLUMNS, SYNC);
    let closed = closed_port();
    for name in [
        format!("host=127.0.0.1 port={closed} dbname=elsewhere"),
        format!("postgresql://127.0.0.1:{closed}/elsewhere"),
    ] {
        set(&fixture, &[("dbname", &name)]);
        let mut client = fixture.left.client();
        let error = refused(&mut client, "insert into t values (1, 'a')", "3D000");
        let expected = format!("database \"{name}\" does not exist");
        assert!(
            error.detail().is_some_and(|text| text.contains(&expected)),
            "{error:?}"
        );
        let Side { cluster, user, .. } = &fixture.right;
        let mut admin = cluster.superuser("postgres").expect("a session");
        run(
            &mut admin,
            &format!("create database \"{name}\" owner {user}"),
        );
        let there = Side {
            db: name.clone(),
            ..fixture.right.clone()
        };
        there.exec(&format!(
            "create schema {user}; create table {user}.t ({COLUMNS})"
        ));
        run(&mut client, "insert into t values (1, 'a')");
        assert_eq!(rows(&there, "select * from t"), ["1|a"]);
        run(&mut client, "delete from t");
        run(
            &mut admin,
            &format!("drop database \"{name}\" with (force)"),
        );
    }
}

#[test]
fn of_several_hosts_the_first_that_answers_is_used_within_one_deadline() {
    let fixture = one_way("hosts", COLUMNS, SYNC);
    let closed = closed_port();
    let open = fixture.right.cluster.port();
    set(
        &fixture,
        &[
            ("host", "127.0.0.1,127.0.0.1"),
            ("port", &format!("{closed},{open}")),
        ],
    );
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    both_have(&fixture, "t", &["1|a"]);
    let silent = Hostile::start(|wire| wire.silence()).expect("a silent server");
    let ports = [silent.port(); 3].map(|port| port.to_string()).join(",");
    set(
        &fixture,
        &[("host", "127.0.0.1,127.0.0.1,127.0.0.1"), ("port", &ports)],
    );
    run(&mut client, "set pg_rowsync.connect_timeout = 700");
    let start = Instant::now();
    let error = fails(client.batch_execute("insert into t values (2, 'b')"));
    assert_eq!(error.code().code(), "08006", "{error:?}");
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "took {:?}",
        start.elapsed()
    );
}

/// Whoever may create a server may name a local socket too: the password is what lets in, never the
/// system user that the local server runs as.
#[test]
fn a_local_socket_is_a_host_like_any_other() {
    let fixture = one_way("socket", COLUMNS, SYNC);
    let Side { cluster, user, .. } = &fixture.right;
    set(
        &fixture,
        &[("host", cluster.dir().to_str().expect("a path"))],
    );
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    both_have(&fixture, "t", &["1|a"]);
    // A server that lets the system user in, whatever password it has.
    let trusting = rowsync_harness::Cluster::start("trusting").expect("a cluster");
    let hba = trusting.dir().join("data/pg_hba.conf");
    let rules = std::fs::read_to_string(&hba).expect("the rules");
    std::fs::write(
        &hba,
        format!("local all {user} peer map=own\nlocal all {user} trust\n") + &rules,
    )
    .expect("new rules");
    std::fs::write(
        trusting.dir().join("data/pg_ident.conf"),
        format!("own postgres {user}\n"),
    )
    .expect("a map");
    let mut admin = trusting.superuser("postgres").expect("a session");
    run(
        &mut admin,
        &format!("create role {user} login superuser; select pg_reload_conf()"),
    );
    let dir = trusting.dir().to_str().expect("a path");
    let port = trusting.port().to_string();
    set(
        &fixture,
        &[("host", dir), ("port", &port), ("dbname", "postgres")],
    );
    refused(&mut client, "insert into t values (2, 'b')", "2F003");
    // And so for one who asks for async: nothing is sent.
    fixture.left.exec("select detach_sync('t', 'dst')");
    attach(&fixture, "t", "{}");
    run(&mut client, "insert into t values (2, 'b')");
    assert_eq!(
        crate::support::common::records(&fixture),
        ["INSERT|2F003|1|pending"]
    );
}
