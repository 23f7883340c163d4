//! The background worker: who starts and ends it, what it delivers, whom it must not hinder.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rowsync_harness::cluster::{Cluster, TEST_SETTINGS};
use rowsync_harness::fixture::{Fixture, await_until, clusters, fails};
use rowsync_harness::proxy::Proxy;
use rowsync_harness::side::Side;

use crate::support::one_way::{SOON, assert_equal, queued, spawn, value};

const QUEUE: &str = r#"{"mode": "queue"}"#;

const PRELOADED: &[(&str, &str)] = &[
    ("shared_preload_libraries", "pg_rowsync"),
    ("max_worker_processes", "40"),
    ("pg_rowsync.retry_interval", "100ms"),
    ("pg_rowsync.max_retry_interval", "1s"),
];

fn cluster(name: &str, settings: &[(&str, &str)]) -> Arc<Cluster> {
    let settings = [TEST_SETTINGS, settings].concat();
    Arc::new(Cluster::start_with(name, &settings).unwrap_or_else(|e| panic!("no cluster: {e:#}")))
}

/// A cluster with the library preloaded, for tests that do not disturb each other.
fn preloaded() -> &'static Arc<Cluster> {
    static CLUSTER: OnceLock<Arc<Cluster>> = OnceLock::new();
    CLUSTER.get_or_init(|| cluster("preloaded", PRELOADED))
}

/// Databases on this cluster and on the shared right one.
fn sides(cluster: &Arc<Cluster>, label: &str) -> Fixture {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let create = |cluster, prefix| {
        Side::create(cluster, &format!("{prefix}_{label}_w{number}"))
            .unwrap_or_else(|error| panic!("no database for \"{label}\": {error:#}"))
    };
    Fixture {
        left: create(cluster, "local"),
        right: create(clusters().1, "remote"),
    }
}

/// Table `t` on both sides; the left one goes to server `dst` in mode `queue`.
fn queue_fixture(cluster: &Arc<Cluster>, label: &str, port: u16) -> Fixture {
    let fixture = sides(cluster, label);
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table t (id int primary key, v text)");
    }
    fixture
        .left
        .link(&fixture.right, port, "dst", &[])
        .expect("a server");
    attach(&fixture);
    fixture
}

fn attach(fixture: &Fixture) {
    let target = format!("{}.t", fixture.right.user);
    fixture.left.exec(&format!(
        "select attach_sync('t', 'dst', '{target}', '{QUEUE}')"
    ));
}

fn right_port() -> u16 {
    clusters().1.port()
}

fn await_delivered(fixture: &Fixture) {
    await_until(SOON, "the worker to deliver", || queued(fixture) == 0);
    assert_equal(fixture);
}

/// The process that is the worker of a side's database.
fn worker(side: &Side) -> Option<i32> {
    let sql = "select pid from pg_stat_activity where datname = $1 \
               and backend_type = 'pg_rowsync worker'";
    // Seen from elsewhere, so that looking holds no session in the database.
    let mut observer = side.cluster.superuser("postgres").expect("an observer");
    observer
        .query_opt(sql, &[&side.db])
        .expect("activity")
        .map(|row| row.get(0))
}

fn await_worker(side: &Side) -> i32 {
    let mut found = None;
    await_until(SOON, "a worker", || {
        found = worker(side);
        found.is_some()
    });
    found.expect("a worker")
}

fn await_no_worker(side: &Side) {
    await_until(SOON, "the worker to go", || worker(side).is_none());
}

/// What `pg_stat_activity` says of the worker: state, query, whether it holds back the horizon.
fn activity(side: &Side) -> Option<(String, String, bool)> {
    let sql = "select state, query, backend_xmin is not null or backend_xid is not null \
               from pg_stat_activity where datname = $1 and backend_type = 'pg_rowsync worker'";
    let mut observer = side.cluster.superuser("postgres").expect("an observer");
    let row = observer.query_opt(sql, &[&side.db]).expect("activity")?;
    Some((row.get::<_, Option<String>>(0)?, row.get(1), row.get(2)))
}

fn await_query(side: &Side, text: &str) {
    let mut last = None;
    let end = Instant::now() + SOON;
    while !last
        .as_ref()
        .is_some_and(|(_, query, _): &(_, String, _)| query.contains(text))
    {
        assert!(
            Instant::now() < end,
            "the worker does not show \"{text}\" but {last:?}"
        );
        std::thread::sleep(Duration::from_millis(10));
        last = activity(side);
    }
}

#[test]
fn preloaded_it_delivers_what_queue_mode_queues_without_being_called() {
    let fixture = queue_fixture(preloaded(), "alone", right_port());
    fixture
        .left
        .exec("insert into t select n, 'new' from generate_series(1, 100) n");
    await_delivered(&fixture);
    // Woken by the commit, not by its timer: a hundred times, a second each would show.
    let start = Instant::now();
    for n in 0..20 {
        fixture
            .left
            .exec(&format!("update t set v = 'v{n}' where id = 1"));
        let wanted = format!("v{n}");
        await_until(SOON, "the update", || {
            value(&fixture.right, 1).as_deref() == Some(&wanted)
        });
    }
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn it_shows_itself_and_holds_nothing_while_it_waits() {
    let fixture = queue_fixture(preloaded(), "shows", right_port());
    fixture.left.exec("insert into t values (1, 'a')");
    await_delivered(&fixture);
    await_query(&fixture.left, "waiting for changes");
    // It looks once more by its timer, so that one moment may be in such a look.
    await_until(SOON, "the worker to hold nothing", || {
        let (state, _, holds) = activity(&fixture.left).expect("a worker");
        (state.as_str(), holds) == ("idle", false)
    });
    let launcher =
        "select count(*) from pg_stat_activity where backend_type = 'pg_rowsync launcher'";
    assert_eq!(fixture.left.query_one::<i64>(launcher), 1);
    let seen = "select coalesce(sum(n_tup_del), 0)::bigint from pg_stat_all_tables \
                where relname = 'sync_queue'";
    await_until(SOON, "its statistics", || {
        fixture.left.query_one::<i64>(seen) == 1
    });
}

#[test]
fn every_database_of_the_cluster_has_its_own() {
    let fixtures: Vec<Fixture> = (0..3)
        .map(|n| queue_fixture(preloaded(), &format!("several{n}"), right_port()))
        .collect();
    for fixture in &fixtures {
        fixture.left.exec("insert into t values (1, 'a'), (2, 'b')");
    }
    fixtures.iter().for_each(await_delivered);
    let mut pids: Vec<i32> = fixtures
        .iter()
        .map(|fixture| await_worker(&fixture.left))
        .collect();
    pids.dedup();
    assert_eq!(pids.len(), 3);
}

#[test]
fn it_is_there_after_a_restart_of_the_server_before_anything_is_queued() {
    let own = cluster("restarted", PRELOADED);
    let fixture = queue_fixture(&own, "restarted", right_port());
    fixture.left.exec("insert into t values (1, 'a')");
    await_delivered(&fixture);
    own.restart().expect("a restart");
    await_worker(&fixture.left);
    // Databases without the extension have none.
    let others = "select count(*) from pg_stat_activity where backend_type = 'pg_rowsync worker'";
    assert_eq!(fixture.left.query_one::<i64>(others), 1);
}

#[test]
fn without_preload_it_is_started_and_stopped_by_hand() {
    let fixture = queue_fixture(&clusters().0.clone(), "by_hand", right_port());
    fixture.left.exec("insert into t values (1, 'a')");
    assert!(worker(&fixture.left).is_none());
    assert!(fixture.left.query_one::<bool>("select start_sync_worker()"));
    assert!(!fixture.left.query_one::<bool>("select start_sync_worker()"));
    await_delivered(&fixture);
    fixture.left.exec("insert into t values (2, 'b')");
    await_until(
        Duration::from_secs(5),
        "a delivery sooner than the timer's",
        || value(&fixture.right, 2).is_some(),
    );
    assert!(fixture.left.query_one::<bool>("select stop_sync_worker()"));
    assert!(worker(&fixture.left).is_none());
    assert!(!fixture.left.query_one::<bool>("select stop_sync_worker()"));
    fixture.left.exec("insert into t values (3, 'c')");
    assert_eq!(queued(&fixture), 1);
    assert!(fixture.left.query_one::<bool>("select start_sync_worker()"));
    await_delivered(&fixture);
}

#[test]
fn two_that_start_it_at_once_start_one() {
    let fixture = queue_fixture(&clusters().0.clone(), "at_once", right_port());
    let starts: Vec<_> = (0..4)
        .map(|_| {
            let mut client = fixture.left.superuser();
            std::thread::spawn(move || {
                client
                    .query_one("select start_sync_worker()", &[])
                    .expect("a start")
                    .get::<_, bool>(0)
            })
        })
        .collect();
    let started = starts.into_iter().map(|t| t.join().expect("a thread"));
    assert_eq!(started.filter(|one| *one).count(), 1);
    await_worker(&fixture.left);
}

#[test]
fn stopped_it_stays_stopped_though_the_library_is_preloaded() {
    let fixture = queue_fixture(preloaded(), "paused", right_port());
    fixture.left.exec("insert into t values (1, 'a')");
    await_delivered(&fixture);
    assert!(fixture.left.query_one::<bool>("select stop_sync_worker()"));
    fixture.left.exec("insert into t values (2, 'b')");
    // The launcher would start one that has ended after five seconds, one that is asked for at once.
    std::thread::sleep(Duration::from_secs(7));
    assert!(worker(&fixture.left).is_none());
    assert_eq!(queued(&fixture), 1);
    assert!(fixture.left.query_one::<bool>("select start_sync_worker()"));
    await_delivered(&fixture);
}

#[test]
fn the_launcher_comes_back_too() {
    let own = cluster("launcher", PRELOADED);
    let launcher = "select coalesce(min(pid), 0) from pg_stat_activity \
                    where backend_type = 'pg_rowsync launcher'";
    let fixture = queue_fixture(&own, "launcher", right_port());
    let before: i32 = fixture.left.query_one(launcher);
    fixture
        .left
        .exec_superuser(&format!("select pg_terminate_backend({before}, 5000)"));
    await_until(SOON, "another launcher", || {
        ![0, before].contains(&fixture.left.query_one(launcher))
    });
    fixture.left.exec("insert into t values (1, 'a')");
    await_delivered(&fixture);
}

#[test]
fn terminated_by_anyone_else_it_comes_back() {
    let fixture = queue_fixture(preloaded(), "back", right_port());
    fixture.left.exec("insert into t values (1, 'a')");
    await_delivered(&fixture);
    let before = await_worker(&fixture.left);
    fixture
        .left
        .exec_superuser(&format!("select pg_terminate_backend({before}, 5000)"));
    await_until(SOON, "another one", || {
        worker(&fixture.left).is_some_and(|pid| pid != before)
    });
}

#[test]
fn only_those_who_were_granted_it_may_start_and_stop_it() {
    let fixture = sides(preloaded(), "rights");
    for function in ["start_sync_worker", "stop_sync_worker"] {
        let error = fails(
            fixture
                .left
                .client()
                .batch_execute(&format!("select {function}()")),
        );
        assert_eq!(error.code().code(), "42501");
    }
    fixture.left.exec_superuser(&format!(
        "grant execute on function stop_sync_worker() to {}",
        fixture.left.user
    ));
    fixture.left.exec("select stop_sync_worker()");
}

#[test]
fn an_unreachable_server_keeps_no_other_waiting() {
    let frozen = Proxy::start(right_port()).expect("a proxy");
    let fixture = queue_fixture(preloaded(), "other", right_port());
    fixture
        .left
        .exec("create table u (id int primary key, v text)");
    fixture
        .right
        .exec("create table u (id int primary key, v text)");
    fixture
        .left
        .link(&fixture.right, frozen.port(), "away", &[])
        .expect("a server");
    let schema = fixture.right.user.clone();
    fixture.left.exec(&format!(
        "select attach_sync('u', 'away', '{schema}.u', '{QUEUE}')"
    ));
    // Once with a cached connection that then falls silent, and then with attempts to connect.
    fixture.left.exec("insert into u values (1, 'a')");
    await_delivered(&fixture);
    frozen.freeze();
    std::thread::sleep(Duration::from_millis(1100));
    fixture.left.exec("insert into u values (2, 'b')");
    await_query(&fixture.left, "server \"away\"");
    let mut slowest = Duration::ZERO;
    for n in 1..=30 {
        let start = Instant::now();
        fixture
            .left
            .exec(&format!("insert into t values ({n}, 'x')"));
        await_until(SOON, "the other server's change", || {
            value(&fixture.right, n).is_some()
        });
        slowest = slowest.max(start.elapsed());
    }
    // The silent one takes its ten seconds meanwhile.
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert_eq!(queued(&fixture), 1);
    frozen.cut();
    frozen.thaw();
    await_delivered(&fixture);
    assert_eq!(
        fixture.checksum(&fixture.left, "u"),
        fixture.checksum(&fixture.right, "u")
    );
}

#[test]
fn a_server_that_refuses_is_tried_ever_more_rarely() {
    let proxy = Proxy::start(right_port()).expect("a proxy");
    proxy.refuse();
    let own = cluster(
        "rarely",
        &[
            ("shared_preload_libraries", "pg_rowsync"),
            ("pg_rowsync.retry_interval", "200ms"),
            ("pg_rowsync.max_retry_interval", "1h"),
        ],
    );
    let fixture = queue_fixture(&own, "rarely", proxy.port());
    fixture.left.exec("insert into t values (1, 'a')");
    // 0.2 + 0.4 + 0.8 + 1.6 s: by now it waits at least 1.28 s more.
    await_query(&fixture.left, "next attempt in 2 s");
    await_query(&fixture.left, "next attempt in 4 s");
    assert_eq!(
        fixture
            .left
            .cluster
            .log()
            .matches("server \"dst\" failed")
            .count(),
        1
    );
    proxy.accept().expect("the proxy's port");
    // The reload ends the long wait.
    fixture
        .left
        .exec_superuser("alter system set pg_rowsync.retry_interval = '10ms'");
    fixture
        .left
        .exec_superuser("alter system set pg_rowsync.max_retry_interval = '10ms'");
    fixture.left.exec_superuser("select pg_reload_conf()");
    await_until(Duration::from_secs(2), "the next attempt", || {
        queued(&fixture) == 0
    });
    assert_equal(&fixture);
    await_until(SOON, "a line in the log", || {
        fixture
            .left
            .cluster
            .log()
            .contains("server \"dst\" is reached again")
    });
}

#[test]
fn it_ends_at_once_while_it_waits_for_the_network() {
    let proxy = Proxy::start(right_port()).expect("a proxy");
    proxy.freeze();
    let fixture = queue_fixture(preloaded(), "sigterm", proxy.port());
    fixture.left.exec("insert into t values (1, 'a')");
    await_query(&fixture.left, "connecting");
    let start = Instant::now();
    assert!(fixture.left.query_one::<bool>("select stop_sync_worker()"));
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    // In the middle of a drain: its batch waits for a lock on the right, for a minute if nobody ends
    // it. That also shows that settings of the database count.
    proxy.thaw();
    let db = &fixture.left.db;
    fixture.left.exec_superuser(&format!(
        "alter database {db} set pg_rowsync.lock_timeout = '60s'; \
         alter database {db} set pg_rowsync.delivery_timeout = '60s'; \
         alter database {db} set default_transaction_read_only = on"
    ));
    fixture.right.exec("insert into t values (1, 'theirs')");
    let mut locker = fixture.right.client();
    locker
        .batch_execute("begin; update t set v = 'locked' where id = 1")
        .expect("a row lock");
    assert!(fixture.left.query_one::<bool>("select start_sync_worker()"));
    await_query(&fixture.left, "draining");
    let blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' \
                   and datname = current_database()";
    await_until(SOON, "the batch to wait", || {
        fixture.right.query_one::<i64>(blocked) == 1
    });
    std::thread::sleep(Duration::from_millis(1500));
    let start = Instant::now();
    assert!(fixture.left.query_one::<bool>("select stop_sync_worker()"));
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    drop(locker);
    assert!(fixture.left.query_one::<bool>("select start_sync_worker()"));
    await_delivered(&fixture);
}

#[test]
fn it_ends_at_once_while_it_waits_for_a_local_lock() {
    let fixture = queue_fixture(&clusters().0.clone(), "local_lock", right_port());
    fixture.left.exec("insert into t values (1, 'a')");
    let mut locker = fixture.left.superuser();
    locker
        .batch_execute("begin; lock table sync_queue")
        .expect("a lock");
    let client = fixture.left.superuser();
    let starter = spawn(client, "select start_sync_worker()");
    starter.join().expect("a thread").1.expect("a start");
    let pid = await_worker(&fixture.left);
    let waits = format!("select wait_event_type = 'Lock' from pg_stat_activity where pid = {pid}");
    await_until(SOON, "the worker to wait", || {
        fixture.left.query_one::<bool>(&waits)
    });
    let start = Instant::now();
    assert!(fixture.left.query_one::<bool>("select stop_sync_worker()"));
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
}

/// DROP DATABASE without FORCE, which waits five seconds at most for others to leave.
fn drop_database(side: &Side) {
    let mut admin = side.cluster.superuser("postgres").expect("a session");
    let start = Instant::now();
    admin
        .batch_execute(&format!("drop database {}", side.db))
        .expect("the worker has left");
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn it_leaves_a_database_that_is_to_be_dropped() {
    let own = cluster("dropped", PRELOADED);
    let idle = queue_fixture(&own, "idle", right_port());
    idle.left.exec("insert into t values (1, 'a')");
    await_delivered(&idle);
    await_worker(&idle.left);
    drop_database(&idle.left);

    let proxy = Proxy::start(right_port()).expect("a proxy");
    proxy.freeze();
    let stuck = queue_fixture(&own, "stuck", proxy.port());
    stuck.left.exec("insert into t values (1, 'a')");
    await_query(&stuck.left, "connecting");
    drop_database(&stuck.left);
    // The launcher forgets them without a word.
    std::thread::sleep(Duration::from_secs(7));
    let log = own.log();
    assert!(!log.contains("does not exist"), "{log}");
}

#[test]
fn it_leaves_a_database_in_the_middle_of_a_drain() {
    let fixture = queue_fixture(preloaded(), "middle", right_port());
    fixture.right.exec("insert into t values (1, 'theirs')");
    let mut locker = fixture.right.client();
    locker
        .batch_execute("begin; update t set v = 'locked' where id = 1")
        .expect("a row lock");
    fixture.left.exec_superuser(&format!(
        "alter database {} set pg_rowsync.lock_timeout = '60s'; \
         alter database {} set pg_rowsync.delivery_timeout = '60s'",
        fixture.left.db, fixture.left.db
    ));
    fixture.left.exec("insert into t values (1, 'a')");
    let blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' \
                   and datname = current_database()";
    await_until(SOON, "the batch to wait", || {
        fixture.right.query_one::<i64>(blocked) == 1
    });
    drop_database(&fixture.left);
}

#[test]
fn it_comes_back_to_a_database_that_was_only_renamed() {
    for cluster in [preloaded(), clusters().0] {
        let fixture = queue_fixture(cluster, "renamed", right_port());
        if !fixture
            .left
            .query_one::<bool>("select current_setting('shared_preload_libraries') = 'pg_rowsync'")
        {
            fixture.left.query_one::<bool>("select start_sync_worker()");
        }
        fixture.left.exec("insert into t values (1, 'a')");
        await_delivered(&fixture);
        let mut admin = cluster.superuser("postgres").expect("a session");
        let new = format!("{}_new", fixture.left.db);
        admin
            .batch_execute(&format!(
                "alter database {} rename to {new}",
                fixture.left.db
            ))
            .expect("the worker has left");
        let mut renamed = fixture.left.clone();
        renamed.db = new.clone();
        await_worker(&renamed);
        renamed.exec("insert into t values (2, 'b')");
        await_until(SOON, "the delivery", || value(&fixture.right, 2).is_some());
        admin
            .batch_execute(&format!("drop database {new}"))
            .expect("the worker has left again");
    }
}

#[test]
fn started_by_hand_it_does_not_haunt_a_dropped_database() {
    let own = cluster("haunted", &[]);
    let fixture = queue_fixture(&own, "haunted", right_port());
    assert!(fixture.left.query_one::<bool>("select start_sync_worker()"));
    drop_database(&fixture.left);
    // The postmaster starts it again once, five seconds later.
    std::thread::sleep(Duration::from_secs(12));
    let log = own.log();
    assert!(log.matches("does not exist").count() <= 1, "{log}");
    assert_eq!(log.matches("exited with exit code").count(), 1, "{log}");
}

#[test]
fn it_ends_with_the_extension_and_begins_with_the_next() {
    let fixture = queue_fixture(preloaded(), "extension", right_port());
    fixture.left.exec("insert into t values (1, 'a')");
    await_delivered(&fixture);
    let first = await_worker(&fixture.left);
    let start = Instant::now();
    fixture
        .left
        .exec_superuser("drop extension pg_rowsync cascade");
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    await_no_worker(&fixture.left);
    fixture.left.exec_superuser(&format!(
        "create extension pg_rowsync schema public; \
         grant usage on foreign data wrapper pg_rowsync to {}",
        fixture.left.user
    ));
    fixture
        .left
        .link(&fixture.right, right_port(), "dst", &[])
        .expect("a server");
    attach(&fixture);
    fixture.left.exec("insert into t values (2, 'b')");
    await_delivered(&fixture);
    assert_ne!(await_worker(&fixture.left), first);
}

#[test]
fn it_survives_its_own_crash_and_the_queue_drains() {
    for settings in [PRELOADED, &[]] {
        let own = cluster("crashed", settings);
        let proxy = Proxy::start(right_port()).expect("a proxy");
        proxy.refuse();
        let fixture = queue_fixture(&own, "crashed", proxy.port());
        fixture.left.exec("insert into t values (1, 'a')");
        if settings.is_empty() {
            assert!(fixture.left.query_one::<bool>("select start_sync_worker()"));
        }
        let pid = await_worker(&fixture.left);
        own.crash_backend(pid).expect("a crash and recovery");
        proxy.accept().expect("the proxy's port");
        await_delivered(&fixture);
        assert_ne!(await_worker(&fixture.left), pid);
    }
}

#[test]
fn on_a_standby_it_starts_with_the_promotion() {
    let own = cluster("standby", PRELOADED);
    let fixture = queue_fixture(&own, "standby", right_port());
    fixture.left.exec("select 1");
    fixture.left.query_one::<bool>("select stop_sync_worker()");
    fixture.left.exec("insert into t values (1, 'a')");
    own.stop(rowsync_harness::cluster::Shutdown::Fast)
        .expect("a stop");
    std::fs::write(own.dir().join("data").join("standby.signal"), "").expect("a file");
    own.start_again().expect("a standby");
    assert!(fixture.left.query_one::<bool>("select pg_is_in_recovery()"));
    let ours = "select count(*) from pg_stat_activity where backend_type like 'pg_rowsync%'";
    assert_eq!(fixture.left.query_one::<i64>(ours), 0);
    let error = fails(
        fixture
            .left
            .superuser()
            .batch_execute("select start_sync_worker()"),
    );
    assert_eq!(error.code().code(), "55000");
    assert_eq!(
        error.message(),
        "cannot start a worker: recovery is in progress"
    );
    fixture.left.exec_superuser("select pg_promote()");
    await_delivered(&fixture);
}

#[test]
fn without_a_free_slot_start_says_so_and_the_launcher_tries_again_quietly() {
    let own = cluster("slots", &[("max_worker_processes", "1")]);
    let fixture = queue_fixture(&own, "slots", right_port());
    // The logical replication launcher has the only one.
    let error = fails(
        fixture
            .left
            .superuser()
            .batch_execute("select start_sync_worker()"),
    );
    assert_eq!(error.code().code(), "53400");
    assert_eq!(
        error.hint(),
        Some("You might need to increase max_worker_processes.")
    );
    own.stop(rowsync_harness::cluster::Shutdown::Fast)
        .expect("a stop");
    let conf = own.dir().join("data").join("postgresql.auto.conf");
    let text = "max_worker_processes = 2\nshared_preload_libraries = 'pg_rowsync'\n";
    std::fs::write(conf, text).expect("settings");
    own.start_again().expect("a start");
    fixture.left.exec("insert into t values (1, 'a')");
    await_until(SOON, "a word of it", || {
        own.log().contains("max_worker_processes is too low")
    });
    for n in 2..20 {
        fixture
            .left
            .exec(&format!("insert into t values ({n}, 'a')"));
    }
    assert_eq!(
        own.log().matches("max_worker_processes is too low").count(),
        1
    );
}

#[test]
fn an_unusable_mapping_is_a_failure_and_not_an_end() {
    let fixture = queue_fixture(preloaded(), "mapping", right_port());
    fixture.left.exec("insert into t values (1, 'a')");
    await_delivered(&fixture);
    let pid = await_worker(&fixture.left);
    fixture
        .left
        .exec("drop user mapping for current_user server dst");
    let user = fixture.right.user.clone();
    let password = fixture.right.password.clone();
    fixture.left.exec(&format!(
        "create user mapping for current_user server dst options (user '{user}', password 'wrong')"
    ));
    fixture.left.exec("insert into t values (2, 'b')");
    await_query(&fixture.left, "refuses the login");
    fixture.left.exec(&format!(
        "alter user mapping for current_user server dst options (set password '{password}')"
    ));
    await_delivered(&fixture);
    assert_eq!(worker(&fixture.left), Some(pid));
}

#[test]
fn a_server_on_which_a_row_is_locked_is_not_shown_as_unreachable() {
    let fixture = queue_fixture(preloaded(), "lockedthere", right_port());
    fixture.left.exec("insert into t values (1, 'a')");
    await_delivered(&fixture);
    let mut locker = fixture.right.client();
    locker
        .batch_execute("begin; update t set v = 'held' where id = 1")
        .expect("a lock");
    fixture.left.exec("update t set v = 'b' where id = 1");
    await_query(&fixture.left, "busy");
    let (_, query, _) = activity(&fixture.left).expect("a worker");
    assert!(!query.contains("not reachable"), "{query}");
    let error: String = fixture
        .left
        .query_one("select last_sqlstate from sync_status");
    assert_eq!(error, "55P03");
    locker.batch_execute("rollback").expect("a rollback");
    await_delivered(&fixture);
}
