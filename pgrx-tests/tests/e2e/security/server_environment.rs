//! libpq inside the server finds variables of whoever started the postmaster.

use std::sync::Arc;

use rowsync_harness::fixture::clusters;
use rowsync_harness::{Cluster, Fixture, Side};

use crate::support::common::{attach, both_have, deal, link_with, queued, rows, run};

const SYNC: &str = r#"{"mode": "sync"}"#;

/// The left side is a cluster of its own, not yet started with any variables.
fn fixture(label: &str) -> Fixture {
    let left = Arc::new(Cluster::start(label).expect("a cluster"));
    let fixture = Fixture {
        left: Side::create(&left, &format!("local_{label}")).expect("a database"),
        right: Side::create(clusters().1, &format!("remote_{label}")).expect("a database"),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    fixture
}

fn restart_with(fixture: &Fixture, variables: &[(&str, &str)]) {
    fixture.left.cluster.set_environment(variables);
    fixture.left.cluster.restart().expect("a restart");
}

#[test]
fn what_a_container_sets_alters_no_value_and_no_session_of_the_target() {
    let fixture = fixture("container");
    fixture
        .left
        .exec("create table t (id int primary key, at timestamp, d date)");
    fixture.right.exec(
        "create table t (id int primary key, at timestamptz, d text);
         create table seen (settings text);
         create function see() returns trigger language plpgsql as $$ begin
           insert into seen select string_agg(name || '=' || setting, ' ' order by name)
             from pg_settings where name in ('TimeZone', 'DateStyle', 'geqo', 'enable_sort');
           return new; end $$;
         create trigger see before insert or update on t for each row execute function see()",
    );
    attach(&fixture, "t", SYNC);
    let schema = &fixture.right.user;
    fixture.right.exec_superuser(&format!(
        "alter function {schema}.see() set search_path = {schema}, pg_catalog"
    ));
    let insert = |id: i32| {
        fixture.left.exec(&format!(
            "insert into t values ({id}, '2024-07-01 12:00', '2024-07-20')"
        ))
    };
    insert(1);
    restart_with(
        &fixture,
        &[
            ("PGTZ", "Asia/Tokyo"),
            ("PGDATESTYLE", "German"),
            ("PGGEQO", "off"),
            ("PGOPTIONS", "-c enable_sort=off"),
        ],
    );
    insert(2);
    // Without the start-up parameter of ours nothing hides one of theirs.
    fixture
        .left
        .exec("alter server dst options (add pooled 'on')");
    insert(3);
    assert_eq!(
        rows(&fixture.right, "select count(distinct (at, d)) from t"),
        ["1"]
    );
    assert_eq!(
        rows(
            &fixture.right,
            "select count(*), count(distinct settings), max(settings) from seen"
        ),
        ["3|1|DateStyle=ISO, MDY TimeZone=UTC enable_sort=on geqo=on"]
    );
}

#[test]
fn no_connection_option_comes_from_a_variable() {
    let fixture = fixture("variables");
    crate::support::common::mirror(&fixture, "t", "id int primary key, v text", SYNC);
    // Each by itself fails a connection, or leads it elsewhere.
    for (id, variable) in [
        ("PGHOSTADDR", "192.0.2.1"),
        ("PGSSLMODE", "verify-full"),
        ("PGREQUIRESSL", "1"),
        ("PGSERVICE", "missing"),
        ("PGTARGETSESSIONATTRS", "standby"),
        ("PGCHANNELBINDING", "require"),
        ("PGPASSWORD", "wrong"),
        ("PGCLIENTENCODING", "LATIN1"),
    ]
    .into_iter()
    .enumerate()
    {
        restart_with(&fixture, &[variable]);
        fixture
            .left
            .exec(&format!("insert into t values ({id}, 'a')"));
        assert_eq!(
            rows(&fixture.right, "select max(id) from t"),
            [id.to_string()],
            "{}",
            variable.0
        );
    }
}

#[test]
fn a_drain_and_a_check_go_where_the_server_says_whatever_the_variables() {
    let fixture = fixture("drained");
    restart_with(
        &fixture,
        &[
            ("PGSERVICE", "missing"),
            ("PGHOSTADDR", "192.0.2.1"),
            ("PGPORT", "1"),
            ("PGTZ", "Asia/Tokyo"),
        ],
    );
    crate::support::common::mirror(
        &fixture,
        "t",
        "id int primary key, at timestamp",
        r#"{"mode": "queue"}"#,
    );
    fixture
        .left
        .exec("insert into t values (1, '2024-07-01 12:00')");
    assert!(deal(&fixture, "100"));
    assert_eq!(queued(&fixture), 0);
    both_have(&fixture, "t", &["1|2024-07-01 12:00:00"]);
    // Nor is an option valid only while no variable spoils the rest.
    link_with(&fixture, "other", fixture.right.cluster.port(), "x");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "alter server other options (add sslmode 'disable', add connect_timeout '3')",
    );
}
