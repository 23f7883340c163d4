//! The counters of `sync_status`, on clusters of their own: they need shared_preload_libraries.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rowsync_harness::{Cluster, Fixture, Side, await_until};

use crate::support::common::{
    attach, closed_port, link_with, linked, mirror, query, refused, rows, run, table,
};

const COLUMNS: &str = "id int primary key, v text, ver int";
const PRELOADED: (&str, &str) = ("shared_preload_libraries", "pg_rowsync");

fn preloaded(more: &[(&str, &str)]) -> Arc<Cluster> {
    let settings = [&[PRELOADED, ("fsync", "off")], more].concat();
    Arc::new(Cluster::start_with("counters", &settings).expect("a cluster"))
}

/// Two databases of one preloaded cluster; the left one has a server `dst` that leads to the right.
fn fixture_on(cluster: &Arc<Cluster>) -> Fixture {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let create = |prefix| Side::create(cluster, &format!("{prefix}_{number}")).expect("a database");
    let fixture = Fixture {
        left: create("local"),
        right: create("remote"),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    fixture
}

/// As `fixture_on`, on a cluster that the tests of this file share.
fn fixture() -> Fixture {
    static SHARED: OnceLock<Arc<Cluster>> = OnceLock::new();
    fixture_on(SHARED.get_or_init(|| preloaded(&[])))
}

/// `delivered_transactions|delivered_changes|queued|conflicts|guarded` of a server on the left.
fn counters(fixture: &Fixture, server: &str) -> String {
    let sql = format!(
        "select delivered_transactions, delivered_changes, queued, conflicts, guarded
           from sync_status where server = '{server}'"
    );
    rows(&fixture.left, &sql).remove(0)
}

fn conflicts(fixture: &Fixture, server: &str) -> i64 {
    fixture.left.query_one(&format!(
        "select conflicts from sync_status where server = '{server}'"
    ))
}

/// What is done on either side, and how many of the changes are conflicts under `overwrite`, `skip`
/// and `newest`. Rows 1 to 20 are on the left only, all in version 5.
const STEPS: [(&str, &str, [i64; 3]); 13] = [
    ("", "insert into t values (100, 'l', 5)", [0, 0, 0]),
    ("insert into t values (101, 'r', 1)", "insert into t values (101, 'l', 5), (102, 'l', 5)", [
        1, 1, 1,
    ]),
    ("insert into t values (103, 'r', 9)", "insert into t values (103, 'l', 5)", [1, 1, 1]),
    ("insert into t values (2, 'r', 1)", "update t set v = 'u', ver = 6 where id in (1, 2)", [
        1, 1, 1,
    ]),
    ("insert into t values (3, 'r', 9)", "update t set v = 'u' where id = 3", [0, 0, 1]),
    ("insert into t values (5, 'r', 5)", "delete from t where id in (4, 5)", [1, 1, 1]),
    ("insert into t values (6, 'r', 9)", "delete from t where id = 6", [0, 0, 1]),
    ("insert into t values (7, 'r', 1)", "update t set id = 207 where id = 7", [0, 0, 0]),
    ("", "update t set id = 208 where id = 8", [1, 1, 1]),
    (
        "insert into t values (9, 'r', 1), (209, 'r', 1)",
        "update t set id = 209 where id = 9",
        [1, 1, 1],
    ),
    ("insert into t values (210, 'r', 1)", "update t set id = 210 where id = 10", [1, 1, 1]),
    // In one transaction, so that the batches of several kinds are told apart.
    (
        "insert into t values (12, 'r', 1), (301, 'r', 1)",
        "begin; insert into t values (301, 'l', 5), (302, 'l', 5);
         update t set v = 'u', ver = 6 where id in (11, 12);
         insert into t values (303, 'l', 5), (304, 'l', 5); delete from t where id in (12, 13); commit",
        [3, 3, 3],
    ),
    ("", "truncate t", [0, 0, 0]),
];

/// Runs the steps over one session, which comes to trust the server, or each over a new one.
fn count_steps(at: usize, options: &str, columns: &str, trusting: bool) {
    let fixture = fixture();
    mirror(&fixture, "t", columns, options);
    let mut guarded = fixture.left.client_named("pg_rowsync");
    run(
        &mut guarded,
        "insert into t select i, 'l', 5 from generate_series(1, 20) i",
    );
    let mut client = fixture.left.client();
    for (there, here, expected) in STEPS {
        fixture.right.exec(there);
        let before = conflicts(&fixture, "dst");
        if !trusting {
            client = fixture.left.client();
        }
        run(&mut client, here);
        let found = conflicts(&fixture, "dst") - before;
        assert_eq!(
            found, expected[at],
            "{options} {columns}, {trusting}: {here}"
        );
    }
    assert_eq!(
        rows(&fixture.left, "select queued, guarded from sync_status"),
        ["0|20"]
    );
}

#[test]
fn what_a_policy_lets_pass_is_counted() {
    for (at, policy) in [
        r#""overwrite""#,
        r#""skip""#,
        r#""newest", "version_column": "ver""#,
    ]
    .iter()
    .enumerate()
    {
        let options = format!(r#"{{"mode": "sync", "on_conflict": {policy}}}"#);
        for trusting in [true, false] {
            count_steps(at, &options, COLUMNS, trusting);
        }
        let deferrable = "id int primary key deferrable, v text, ver int";
        count_steps(at, &options, deferrable, false);
    }
}

#[test]
fn conflicts_are_counted_where_the_target_is_a_view_or_partitioned() {
    let fixture = fixture();
    for (name, target) in [
        (
            "v",
            "create table v_base (id int primary key, v text); create view v as table v_base",
        ),
        (
            "p",
            "create table p (id int primary key, v text) partition by range (id);
             create table p_low partition of p for values from (0) to (100);
             create table p_high partition of p default",
        ),
    ] {
        fixture
            .left
            .exec(&format!("create table {name} (id int primary key, v text)"));
        fixture.right.exec(target);
        attach(&fixture, name, r#"{"mode": "sync"}"#);
        fixture
            .right
            .exec(&format!("insert into {name} values (1, 'r'), (101, 'r')"));
        let before = conflicts(&fixture, "dst");
        fixture.left.exec(&format!(
            "insert into {name} values (1, 'l'), (2, 'l'), (101, 'l')"
        ));
        assert_eq!(table(&fixture.right, name), ["1|l", "101|l", "2|l"]);
        assert_eq!(conflicts(&fixture, "dst") - before, 2, "{name}");
    }
}

#[test]
fn a_transaction_to_two_servers_counts_for_each() {
    let fixture = fixture();
    fixture.link(&fixture.left, &fixture.right, "other", &[]);
    mirror(&fixture, "t", COLUMNS, r#"{"mode": "sync"}"#);
    let schema = &fixture.right.user;
    fixture.right.exec(&format!(
        "create table u ({COLUMNS}); insert into u values (1, 'r', 1)"
    ));
    fixture.left.exec(&format!("create table u ({COLUMNS})"));
    fixture
        .left
        .exec(&format!("select attach_sync('u', 'other', '{schema}.u')"));
    fixture
        .right
        .exec("insert into t values (1, 'r', 1), (2, 'r', 1)");
    fixture.left.exec(
        "begin; insert into t values (1, 'l', 1), (2, 'l', 1), (3, 'l', 1);
         insert into u values (1, 'l', 1); commit",
    );
    assert_eq!(counters(&fixture, "dst"), "1|3|0|2|0");
    assert_eq!(counters(&fixture, "other"), "1|1|0|1|0");
}

#[test]
fn deliveries_are_counted_once_the_server_has_committed() {
    let fixture = fixture();
    mirror(
        &fixture,
        "t",
        COLUMNS,
        r#"{"mode": "sync", "on_conflict": "error"}"#,
    );
    assert_eq!(counters(&fixture, "dst"), "0|0|0|0|0");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t select i, 'l', 1 from generate_series(1, 3) i",
    );
    run(&mut client, "update t set v = 'u' where id = 1");
    assert_eq!(counters(&fixture, "dst"), "2|4|0|0|0");
    run(&mut client, "begin; update t set v = 'w'; rollback");
    run(
        &mut client,
        "begin; savepoint a; update t set v = 'w'; rollback to a; commit",
    );
    fixture.right.exec("delete from t where id = 3");
    refused(&mut client, "update t set v = 'x'", "P0002");
    assert_eq!(counters(&fixture, "dst"), "2|4|0|0|0");
    let recent = "select bool_and(now() - last_success between '-1 min' and '1 min')
                    from sync_counters() where server is not null";
    assert!(fixture.left.query_one::<bool>(recent));
}

#[test]
fn what_is_queued_is_counted_when_the_transaction_commits() {
    let fixture = fixture();
    fixture.left.exec(&format!("create table t ({COLUMNS})"));
    link_with(&fixture, "away", closed_port(), &fixture.right.password);
    fixture.left.exec("select attach_sync('t', 'away')");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t select i, 'l', 1 from generate_series(1, 3) i",
    );
    assert_eq!(counters(&fixture, "away"), "0|0|3|0|0");
    run(&mut client, "begin; update t set v = 'u'; rollback");
    run(
        &mut client,
        "begin; update t set v = 'u' where id < 3; commit",
    );
    assert_eq!(counters(&fixture, "away"), "0|0|5|0|0");
    // Another server's refusal, met after the queue was written, takes the records back.
    mirror(
        &fixture,
        "u",
        COLUMNS,
        r#"{"mode": "sync", "on_conflict": "error"}"#,
    );
    fixture.right.exec("insert into u values (1, 'r', 1)");
    let both = "begin; update t set v = 'w'; insert into u values (1, 'l', 1); commit";
    refused(&mut client, both, "23505");
    assert_eq!(counters(&fixture, "away"), "0|0|5|0|0");
}

#[test]
fn what_is_drained_is_counted() {
    let fixture = fixture();
    mirror(&fixture, "t", COLUMNS, r#"{"mode": "queue"}"#);
    fixture.right.exec("insert into t values (1, 'r', 1)");
    fixture
        .left
        .exec("insert into t select i, 'l', 1 from generate_series(1, 3) i");
    // The worker may be first; nothing is counted twice.
    fixture.left.exec_superuser("select deal_sync_err_rec(100)");
    let sql = "select delivered_changes, queued, conflicts from sync_status";
    await_until(Duration::from_secs(30), "the drain", || {
        rows(&fixture.left, sql) == ["3|3|1"]
    });
    assert_eq!(table(&fixture.right, "t"), ["1|l|1", "2|l|1", "3|l|1"]);
}

#[test]
fn changes_under_the_guards_name_are_counted() {
    let fixture = fixture();
    mirror(&fixture, "t", COLUMNS, r#"{"application_name": "mine"}"#);
    let mut guarded = fixture.left.client_named("mine");
    run(
        &mut guarded,
        "insert into t select i, 'l', 1 from generate_series(1, 3) i",
    );
    run(&mut guarded, "begin; delete from t; rollback");
    assert_eq!(counters(&fixture, "dst"), "0|0|0|0|6");
    let mut other = fixture.left.client_named("pg_rowsync");
    run(&mut other, "update t set v = 'u' where id = 1");
    assert_eq!(counters(&fixture, "dst"), "1|1|0|1|6");
}

#[test]
fn databases_are_kept_apart() {
    // A copy of a database has the same server under the same number.
    let fixture = fixture();
    mirror(&fixture, "t", COLUMNS, r#"{"mode": "sync"}"#);
    let copy = format!("{}_copy", fixture.left.db);
    let mut client = fixture
        .left
        .cluster
        .superuser("postgres")
        .expect("a session");
    run(
        &mut client,
        &format!("create database {copy} template {}", fixture.left.db),
    );
    fixture.left.exec("insert into t values (1, 'l', 1)");
    assert_eq!(counters(&fixture, "dst"), "1|1|0|0|0");
    let mut copied = fixture.left.cluster.superuser(&copy).expect("a session");
    let sql = "select srvname, delivered_changes
                 from sync_status join pg_foreign_server on srvname = server";
    assert_eq!(query(&mut copied, sql), ["dst|0"]);
    drop(copied);
    run(&mut client, &format!("drop database {copy} with (force)"));
}

#[test]
fn more_servers_than_slots_go_uncounted_and_unharmed() {
    let cluster = preloaded(&[("pg_rowsync.max_servers", "2")]);
    let fixture = fixture_on(&cluster);
    let schema = &fixture.right.user;
    for name in ["a", "b", "c"] {
        fixture.link(&fixture.left, &fixture.right, name, &[]);
        for side in [&fixture.left, &fixture.right] {
            side.exec(&format!("create table {name} ({COLUMNS})"));
        }
        fixture.left.exec(&format!(
            "select attach_sync('{name}', '{name}', '{schema}.{name}')"
        ));
    }
    let mut client = fixture.left.client();
    for name in ["a", "b", "c", "c", "a"] {
        run(
            &mut client,
            &format!("insert into {name} select coalesce(max(id), 0) + 1, 'l', 1 from {name}"),
        );
    }
    assert_eq!(table(&fixture.right, "c"), ["1|l|1", "2|l|1"]);
    let sql = "select server, delivered_transactions from sync_status order by server";
    assert_eq!(rows(&fixture.left, sql), ["a|2", "b|1", "c|~"]);
}

#[test]
fn a_crash_of_the_cluster_sets_the_counters_to_zero() {
    let cluster = preloaded(&[]);
    let fixture = fixture_on(&cluster);
    mirror(&fixture, "t", COLUMNS, "{}");
    fixture.left.exec("insert into t values (1, 'l', 1)");
    assert_eq!(counters(&fixture, "dst"), "1|1|0|0|0");
    let mut victim = fixture.left.client();
    let pid: i32 = victim
        .query_one("select pg_backend_pid()", &[])
        .expect("a pid")
        .get(0);
    cluster.crash_backend(pid).expect("a crash and recovery");
    assert_eq!(counters(&fixture, "dst"), "0|0|0|0|0");
    fixture.left.exec("insert into t values (2, 'l', 1)");
    assert_eq!(counters(&fixture, "dst"), "1|1|0|0|0");
}

#[test]
fn whoever_may_read_the_view_sees_the_counters() {
    let fixture = fixture();
    mirror(&fixture, "t", COLUMNS, "{}");
    fixture.left.exec("insert into t values (1, 'l', 1)");
    fixture.left.exec_superuser(&format!(
        "grant select on sync_status to {}",
        fixture.left.user
    ));
    let seen = query(
        &mut fixture.left.client(),
        "select server, delivered_changes from sync_status",
    );
    assert_eq!(seen, ["dst|1"]);
}

#[test]
fn without_preload_counters_are_null() {
    let fixture = linked("uncounted");
    mirror(&fixture, "t", COLUMNS, "{}");
    fixture.left.exec("insert into t values (1, 'l', 1)");
    assert_eq!(counters(&fixture, "dst"), "~|~|~|~|~");
    assert_eq!(
        rows(&fixture.left, "select * from sync_counters()"),
        [""; 0]
    );
    // A configuration may hold the setting all the same.
    assert_eq!(
        rows(
            &fixture.left,
            "load 'pg_rowsync'; show pg_rowsync.max_servers"
        ),
        ["128"]
    );
}
