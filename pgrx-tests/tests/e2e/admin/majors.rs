//! Source and target on different majors, and a database taken from one to the next.
//!
//! Targets of every major are there for any run. Sources are of the major that is tested, or, in a
//! run with several majors (`cargo test-all --pg all`), of each of them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rowsync_harness::cluster::{Cluster, Shutdown, TEST_SETTINGS};
use rowsync_harness::setup::{self, Postgres};
use rowsync_harness::{Fixture, Side};

use crate::admin::lived_in::LivedIn;
use crate::delivery::values;
use crate::support::common::{
    attach, both_have, deal, outage, query, queued, recover, rows, run, same,
};

/// Installations that carry the extension in this run, oldest first. One where the run is of one
/// major only.
fn sources() -> Vec<Postgres> {
    let named = std::env::var_os(setup::AMONG).unwrap_or_default();
    let paths = std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty());
    let mut found: Vec<_> = paths
        .map(|path| Postgres::at(Path::new(&path)).expect("an installation"))
        .collect();
    if found.is_empty() {
        found.push(Postgres::find().expect("an installation"));
    }
    found.sort_by_key(|postgres| postgres.major);
    found
}

/// A cluster of an installation, shared by all tests.
fn cluster(postgres: &Postgres) -> Arc<Cluster> {
    static SHARED: Mutex<Vec<(PathBuf, Arc<Cluster>)>> = Mutex::new(Vec::new());
    let mut shared = SHARED.lock().unwrap_or_else(|broken| broken.into_inner());
    if let Some((_, cluster)) = shared.iter().find(|(bindir, _)| *bindir == postgres.bindir) {
        return cluster.clone();
    }
    let name = format!("major-{}", postgres.major);
    let started = Cluster::start_of(postgres, &name, TEST_SETTINGS).expect("a cluster");
    let started = Arc::new(started);
    shared.push((postgres.bindir.clone(), started.clone()));
    started
}

fn fresh(name: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("{name}_{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

fn side(postgres: &Postgres, name: &str) -> Side {
    Side::create(&cluster(postgres), &fresh(name)).expect("a database")
}

/// What is written on the left is on the right: every type, mode and policy, after an outage as well.
fn everything_arrives(fixture: &Fixture) {
    for mode in ["sync", "queue"] {
        values::every_type_arrives(fixture, mode);
        fixture
            .left
            .exec("drop table t; drop domain spot, tags, positive; drop type mood, pair");
        fixture
            .right
            .exec("drop table t; drop domain spot, tags, positive; drop type mood, pair");
    }
    let policies = [
        r#""on_conflict": "overwrite""#,
        r#""on_conflict": "error""#,
        r#""on_conflict": "skip""#,
        r#""on_conflict": "newest", "version_column": "ver""#,
    ];
    for mode in ["async", "sync", "queue", "atomic"] {
        for (at, policy) in policies.iter().enumerate() {
            let table = format!("{mode}_{at}");
            for side in [&fixture.left, &fixture.right] {
                side.exec(&format!(
                    "create table {table} (id int primary key, v text, ver int)"
                ));
            }
            attach(
                fixture,
                &table,
                &format!(r#"{{"mode": "{mode}", {policy}}}"#),
            );
            let mut client = fixture.left.client();
            run(
                &mut client,
                &format!(
                    "insert into {table} select n, 'v' || n, n from generate_series(1, 60) n;
                     update {table} set v = 'new' where id < 40;
                     update {table} set v = 'single' where id = 1;
                     delete from {table} where id between 20 and 30;
                     begin; update {table} set id = 100, ver = ver + 1 where id = 5;
                     savepoint s; delete from {table}; rollback to s;
                     insert into {table} values (5, 'again', 5); commit"
                ),
            );
            if mode == "queue" {
                assert!(deal(fixture, "1000"));
            }
            assert_eq!(same(fixture, &table).len(), 50, "{table}");
            assert_eq!(
                rows(&fixture.left, "select message from sync_err_rec"),
                [""; 0]
            );
            if mode == "async" {
                outage(&fixture.right);
                run(
                    &mut client,
                    &format!(
                        "update {table} set v = 'away', ver = ver + 1; delete from {table} where id = 6;
                         insert into {table} values (6, 'back', 100)"
                    ),
                );
                assert!(queued(fixture) > 0);
                recover(&fixture.right);
                assert!(
                    deal(fixture, "1000"),
                    "{:?}",
                    rows(&fixture.left, "select * from sync_err_rec")
                );
                assert_eq!(same(fixture, &table).len(), 50, "{table}");
            }
            run(
                &mut client,
                &format!("truncate {table}; insert into {table} values (1, 'x', 1)"),
            );
            if mode == "queue" {
                assert!(deal(fixture, "1000"));
            }
            both_have(fixture, &table, &["1|x|1"]);
            fixture.right.exec(&format!("update {table} set v = 'y'"));
            let differs = format!("select difference, key from verify_sync('{table}', 'dst')");
            assert_eq!(query(&mut client, &differs), [r#"differs|{"id": 1}"#]);
            run(
                &mut client,
                &format!(
                    "select * from repair_sync('{table}', 'dst', '{{\"direction\": \"to_server\"}}')"
                ),
            );
            if mode == "queue" {
                assert!(deal(fixture, "1000"));
            }
            both_have(fixture, &table, &["1|x|1"]);
        }
    }
    // Nothing but what is said of test clusters, and of functions that `newest` finds there.
    let found = query(
        &mut fixture.left.client(),
        "select severity, rel, problem from check_sync() where severity = 'error'",
    );
    assert_eq!(found, [""; 0]);
}

/// A target of this major that has never heard of the extension.
fn as_target(major: u32) {
    let there = Postgres::release(major).expect("a release of PostgreSQL");
    for source in sources() {
        let name = fresh(&format!("to{major}"));
        let right = Side::create_without_extension(&cluster(&there), &name).expect("a database");
        let fixture = Fixture {
            left: side(&source, "from"),
            right,
        };
        fixture.link(&fixture.left, &fixture.right, "dst", &[]);
        println!("{} to {major}", source.major);
        everything_arrives(&fixture);
    }
}

#[test]
fn a_target_on_14() {
    as_target(14);
}

#[test]
fn a_target_on_15() {
    as_target(15);
}

#[test]
fn a_target_on_16() {
    as_target(16);
}

#[test]
fn a_target_on_17() {
    as_target(17);
}

#[test]
fn a_target_on_18() {
    as_target(18);
}

/// Pairs of the majors of this run, each once.
fn pairs() -> Vec<(Postgres, Postgres)> {
    let all = sources();
    let mut pairs = Vec::new();
    for (at, older) in all.iter().enumerate() {
        pairs.extend(
            all[at + 1..]
                .iter()
                .map(|newer| (older.clone(), newer.clone())),
        );
    }
    pairs
}

#[test]
fn two_masters_of_different_majors_end_equal() {
    for (older, newer) in pairs() {
        println!("{} and {}", older.major, newer.major);
        let fixture = Fixture {
            left: side(&older, "older"),
            right: side(&newer, "newer"),
        };
        for (here, there) in [
            (&fixture.left, &fixture.right),
            (&fixture.right, &fixture.left),
        ] {
            here.link(there, there.cluster.port(), "dst", &[])
                .expect("a server");
            here.exec("create table t (id int primary key, v text, ver int)");
        }
        for (here, there) in [
            (&fixture.left, &fixture.right),
            (&fixture.right, &fixture.left),
        ] {
            here.exec(&format!(
                r#"select attach_sync('t', 'dst', '{}.t',
                     '{{"on_conflict": "newest", "version_column": "ver"}}')"#,
                there.user
            ));
        }
        fixture
            .left
            .exec("insert into t select n, 'l' || n, 1 from generate_series(1, 50) n");
        fixture
            .right
            .exec("update t set v = 'r', ver = 2 where id < 20; delete from t where id = 30");
        assert_eq!(same(&fixture, "t").len(), 49);
        // Without knowing of each other.
        outage(&fixture.left);
        outage(&fixture.right);
        run(
            &mut owner(&fixture.left),
            "update t set v = 'left', ver = 5 where id between 10 and 40",
        );
        run(
            &mut owner(&fixture.left),
            "delete from t where id = 3; insert into t values (90, 'l', 1)",
        );
        run(
            &mut owner(&fixture.right),
            "update t set v = 'right', ver = 4 where id between 15 and 45",
        );
        run(
            &mut owner(&fixture.right),
            "update t set v = 'kept', ver = 7 where id = 3",
        );
        run(
            &mut owner(&fixture.right),
            "delete from t where id = 12; insert into t values (90, 'r', 2)",
        );
        recover(&fixture.left);
        recover(&fixture.right);
        for side in [&fixture.left, &fixture.right, &fixture.left] {
            assert!(side.query_one::<bool>("select deal_sync_err_rec(1000)"));
        }
        let rows = same(&fixture, "t");
        for row in ["90|r|2", "3|kept|7", "12|left|5", "40|left|5", "44|right|4"] {
            assert!(rows.contains(&row.to_owned()), "{row}: {rows:?}");
        }
        assert_eq!(
            fixture.left.queued().expect("a queue") + fixture.right.queued().expect("a queue"),
            0
        );
    }
}

/// A superuser's session that writes the tables of a side's owner, who may not log in.
fn owner(side: &Side) -> postgres::Client {
    let mut client = side.superuser();
    run(
        &mut client,
        &format!("set search_path = {}, public", side.user),
    );
    client
}

#[test]
fn pg_upgrade_keeps_what_waits_and_goes_on() {
    for (older, newer) in pairs() {
        println!("{} becomes {}", older.major, newer.major);
        let name = format!("upgraded-{}-{}", older.major, newer.major);
        let own = Arc::new(Cluster::start_of(&older, &name, TEST_SETTINGS).expect("a cluster"));
        let left = Side::create(&own, &fresh("up")).expect("a database");
        let mut lived_in = LivedIn::new(left.clone(), side(&older, "there"));
        own.stop(Shutdown::Fast).expect("a stop");
        let name = format!("{name}-now");
        let cluster = own
            .upgrade(&newer, &name, TEST_SETTINGS)
            .expect("an upgraded cluster");
        let cluster = Arc::new(cluster);
        lived_in.fixture.left.cluster = cluster.clone();
        assert_eq!(rows(&lived_in.fixture.left, "select sync_is_copy()"), ["f"]);
        lived_in.is_kept();
        let mut client = cluster.superuser("postgres").expect("a session");
        run(
            &mut client,
            "alter system set shared_preload_libraries = 'pg_rowsync'",
        );
        cluster.restart().expect("a restart");
        lived_in.goes_on(true);
        assert_eq!(
            rows(
                &lived_in.fixture.left,
                "select distinct home from sync_status"
            ),
            ["this database"]
        );
    }
}
