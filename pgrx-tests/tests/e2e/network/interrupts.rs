//! Cancel and termination of a session that waits for the remote.

use std::time::{Duration, Instant};

use postgres::Client;
use postgres::error::SqlState;
use rowsync_harness::cluster::TEST_SETTINGS;
use rowsync_harness::fixture::{Fixture, await_until, clusters, fails};
use rowsync_harness::proxy::Proxy;
use rowsync_harness::{Cluster, Side};

use crate::support::one_way::{
    SOON, assert_equal, await_blocked, await_no_delivery, drain, lock_row, one_way, patient_client,
    pid, queued, spawn, value,
};

#[test]
fn a_cancel_that_the_server_hears_in_time_rolls_back_both_sides() {
    for mode in ["async", "sync"] {
        let fixture = one_way("cancel", None, &format!(r#"{{"mode": "{mode}"}}"#));
        let locker = lock_row(&fixture);
        let mut client = patient_client(&fixture);
        let local = pid(&mut client);
        let waiting = spawn(client, "update t set v = 'new' where id = 1");
        await_blocked(&fixture.right);
        fixture
            .left
            .exec_superuser(&format!("select pg_cancel_backend({local})"));
        let (mut client, result) = waiting.join().expect("the waiting session");
        assert_eq!(fails(result).code().code(), "57014", "{mode}");
        drop(locker);
        assert_eq!(value(&fixture.left, 1).as_deref(), Some("old"), "{mode}");
        await_until(SOON, "the remote lock to go", || {
            value(&fixture.right, 1).as_deref() == Some("old")
        });
        assert_eq!(queued(&fixture), 0, "{mode}");
        // The session is of use again, and so is its next connection.
        client
            .batch_execute("update t set v = 'after' where id = 1")
            .expect("an update");
        assert_eq!(value(&fixture.right, 1).as_deref(), Some("after"), "{mode}");
        assert_eq!(queued(&fixture), 0, "{mode}");
    }
}

#[test]
fn termination_while_waiting_ends_the_session_promptly_and_applies_nothing() {
    let fixture = one_way("terminate", None, "{}");
    let locker = lock_row(&fixture);
    let mut client = patient_client(&fixture);
    let local = pid(&mut client);
    let waiting = spawn(client, "update t set v = 'new' where id = 1");
    await_blocked(&fixture.right);
    let start = Instant::now();
    fixture
        .left
        .exec_superuser(&format!("select pg_terminate_backend({local})"));
    let (_, result) = waiting.join().expect("the waiting session");
    let error = result.expect_err("the session's end");
    // The server's last word may be lost with its socket.
    assert!(
        error.is_closed() || error.code() == Some(&SqlState::ADMIN_SHUTDOWN),
        "{error:?}"
    );
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    drop(locker);
    assert_eq!(value(&fixture.left, 1).as_deref(), Some("old"));
    await_no_delivery(&fixture.right);
    assert_eq!(value(&fixture.right, 1).as_deref(), Some("old"));
    assert_eq!(queued(&fixture), 0);
}

/// Sends a request to a session whose delivery has been committed on the right, before it can know:
/// the answer is on its way for most of a second. Gives what came of the session.
fn late_request(
    label: &str,
    function: &str,
) -> (Fixture, Proxy, Client, Result<(), postgres::Error>) {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = one_way(label, Some(&proxy), "{}");
    let mut client = fixture.left.client();
    client
        .batch_execute("update t set v = 'warm' where id = 2")
        .expect("an update");
    let local = pid(&mut client);
    proxy.set_delay(Duration::from_millis(700));
    let waiting = spawn(client, "update t set v = 'new' where id = 1");
    await_until(SOON, "the remote commit", || {
        value(&fixture.right, 1).as_deref() == Some("new")
    });
    fixture
        .left
        .exec_superuser(&format!("select {function}({local})"));
    let (client, result) = waiting.join().expect("the waiting session");
    proxy.set_delay(Duration::ZERO);
    (fixture, proxy, client, result)
}

#[test]
fn a_cancel_that_comes_after_the_remote_commit_is_dropped() {
    let (fixture, _proxy, mut client, result) = late_request("late_cancel", "pg_cancel_backend");
    result.expect("a commit that the cancel came too late for");
    assert_equal(&fixture);
    client
        .batch_execute("update t set v = 'after' where id = 1")
        .expect("an update");
    assert_equal(&fixture);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn termination_after_the_remote_commit_lets_the_local_commit_finish() {
    let (fixture, _proxy, _, result) = late_request("late_term", "pg_terminate_backend");
    // The client may or may not hear of the commit before the end of its session.
    if let Err(error) = result {
        assert_eq!(error.code().map(|c| c.code()), Some("57P01"));
    }
    assert_eq!(value(&fixture.left, 1).as_deref(), Some("new"));
    assert_equal(&fixture);
}

#[test]
fn a_cancel_that_nobody_answers_leaves_async_changes_in_the_queue() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = one_way("deaf", Some(&proxy), "{}");
    let mut client = patient_client(&fixture);
    client
        .batch_execute("set pg_rowsync.cancel_timeout = '500ms'; update t set v = 'warm'")
        .expect("an update");
    let local = pid(&mut client);
    proxy.freeze();
    let waiting = spawn(client, "update t set v = 'new' where id = 1");
    let wait = "select count(*) from pg_stat_activity where pid = $1 and wait_event = 'Extension'";
    await_until(SOON, "the session to wait", || {
        let row = fixture
            .left
            .superuser()
            .query_one(wait, &[&local])
            .expect("activity");
        row.get::<_, i64>(0) == 1
    });
    let start = Instant::now();
    fixture
        .left
        .exec_superuser(&format!("select pg_cancel_backend({local})"));
    let (_, result) = waiting.join().expect("the waiting session");
    result.expect("the local commit stands, its outcome on the server being unknown");
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(value(&fixture.left, 1).as_deref(), Some("new"));
    assert_eq!(queued(&fixture), 1);
    proxy.cut();
    proxy.thaw();
    assert!(drain(&fixture));
    assert_equal(&fixture);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn a_cancel_after_one_of_two_servers_has_committed_keeps_all_sides_together() {
    let fixture = one_way("two_commits", None, "{}");
    let schema = fixture.right.user.clone();
    fixture.link(&fixture.left, &fixture.right, "slow", &[]);
    // The second server's COMMIT waits for a lock that the test holds.
    fixture.right.exec(
        "create table slow (id int primary key, v text); \
         create function wait() returns trigger language plpgsql as \
           $$begin perform pg_catalog.pg_advisory_xact_lock(4711); return null; end$$; \
         create constraint trigger wait after insert or update on slow \
           deferrable initially deferred for each row execute function wait()",
    );
    fixture
        .left
        .exec(&format!("select attach_sync('t', 'slow', '{schema}.slow')"));
    let mut holder = fixture.right.client();
    holder
        .batch_execute("select pg_advisory_lock(4711)")
        .expect("a lock");
    let mut client = patient_client(&fixture);
    let local = pid(&mut client);
    let waiting = spawn(client, "update t set v = 'new' where id = 1");
    await_blocked(&fixture.right);
    await_until(SOON, "the first server's commit", || {
        value(&fixture.right, 1).as_deref() == Some("new")
    });
    fixture
        .left
        .exec_superuser(&format!("select pg_cancel_backend({local})"));
    let (_, result) = waiting.join().expect("the waiting session");
    result.expect("a commit that the cancel came too late for");
    drop(holder);
    assert_eq!(value(&fixture.left, 1).as_deref(), Some("new"));
    assert_eq!(value(&fixture.right, 1).as_deref(), Some("new"));
    assert_eq!(
        queued(&fixture),
        1,
        "what the second server had not committed"
    );
    assert!(drain(&fixture));
    let slow = format!("select v from {schema}.slow where id = 1");
    assert_eq!(fixture.right.query_one::<String>(&slow), "new");
}

/// A session on the left through a proxy.
fn client_via(front: &Proxy, fixture: &Fixture) -> Client {
    let Side {
        db, user, password, ..
    } = &fixture.left;
    let mut config = postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(front.port())
        .dbname(db)
        .user(user)
        .password(password);
    config.connect(postgres::NoTls).expect("a session")
}

/// [`late_request`], but what comes is the end of the client: its connection is reset.
fn late_loss_of_client(label: &str, options: &str) -> Fixture {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let front = Proxy::start(clusters().0.port()).expect("a proxy");
    let fixture = one_way(label, Some(&proxy), options);
    let mut client = client_via(&front, &fixture);
    client
        .batch_execute(
            "set client_connection_check_interval = '20ms'; update t set v = 'warm' where id = 2",
        )
        .expect("an update");
    let local = pid(&mut client);
    proxy.set_delay(Duration::from_millis(700));
    let waiting = spawn(client, "update t set v = 'new' where id = 1");
    await_until(SOON, "the remote commit", || {
        value(&fixture.right, 1).as_deref() == Some("new")
    });
    front.cut();
    drop(waiting.join().expect("the waiting session"));
    let there = format!("select count(*) from pg_stat_activity where pid = {local}");
    await_until(SOON, "the session to end", || {
        fixture.left.query_one::<i64>(&there) == 0
    });
    fixture
}

#[test]
fn a_client_that_dies_after_the_remote_commit_takes_no_commit_with_it() {
    for options in ["{}", r#"{"mode": "sync"}"#] {
        let fixture = late_loss_of_client("late_loss", options);
        assert_eq!(value(&fixture.left, 1).as_deref(), Some("new"), "{options}");
        assert_equal(&fixture);
        assert_eq!(queued(&fixture), 0);
    }
}

#[test]
fn a_client_that_dies_before_anything_is_sent_leaves_nothing() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let front = Proxy::start(clusters().0.port()).expect("a proxy");
    let fixture = one_way("early_loss", Some(&proxy), "{}");
    let mut client = client_via(&front, &fixture);
    client
        .batch_execute(
            "set client_connection_check_interval = '20ms'; set pg_rowsync.connect_timeout = '60s'",
        )
        .expect("settings");
    let local = pid(&mut client);
    // Nobody answers the new connection.
    proxy.freeze();
    let waiting = spawn(client, "update t set v = 'new' where id = 1");
    let wait = "select count(*) from pg_stat_activity where pid = $1 and wait_event = 'Extension'";
    await_until(SOON, "the session to wait", || {
        let row = fixture
            .left
            .superuser()
            .query_one(wait, &[&local])
            .expect("activity");
        row.get::<_, i64>(0) == 1
    });
    let start = Instant::now();
    front.cut();
    let there = format!("select count(*) from pg_stat_activity where pid = {local}");
    await_until(SOON, "the session to end", || {
        fixture.left.query_one::<i64>(&there) == 0
    });
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    drop(waiting.join().expect("the waiting session"));
    proxy.thaw();
    assert_eq!(value(&fixture.left, 1).as_deref(), Some("old"));
    assert_eq!(value(&fixture.right, 1).as_deref(), Some("old"));
    assert_eq!(queued(&fixture), 0);
}

/// A session that runs a statement, as [`spawn`] gives it.
type Waiting = std::thread::JoinHandle<(Client, Result<(), postgres::Error>)>;

/// What another session's NOTIFY holds while it waits for a standby that is not there, and what waits for
/// that after the remote commit: the process ID of the waiting session, and what ends the wait.
fn notify_behind_another(fixture: &Fixture, settings: &str) -> (i32, Waiting) {
    let mut client = fixture.left.client();
    client.batch_execute(settings).expect("settings");
    client
        .batch_execute("update t set v = 'warm' where id = 2")
        .expect("an update");
    let local = pid(&mut client);
    let waiting = spawn(
        client,
        "begin; notify hello; update t set v = 'new' where id = 1; commit",
    );
    await_until(SOON, "the remote commit", || {
        value(&fixture.right, 1).as_deref() == Some("new")
    });
    let wait = "select count(*) from pg_locks where pid = $1 and not granted";
    await_until(SOON, "the session to wait for the lock of NOTIFY", || {
        let row = fixture
            .left
            .superuser()
            .query_one(wait, &[&local])
            .expect("locks");
        row.get::<_, i64>(0) == 1
    });
    (local, waiting)
}

/// Commits wait for a standby that never comes, where a session does not say otherwise for itself, as all do by
/// the second setting.
const NO_STANDBY: [(&str, &str); 2] = [
    ("synchronous_standby_names", "nobody"),
    ("synchronous_commit", "local"),
];

/// In a cluster with [`NO_STANDBY`], a session that waits so and holds the lock of NOTIFY.
fn stalled(fixture: &Fixture) -> (i32, Waiting) {
    // Sessions wait once the checkpointer says so, which it does before anything else.
    fixture.left.exec_superuser("checkpoint");
    let mut holder = fixture.left.client();
    let pid = pid(&mut holder);
    for sql in ["create table other ()", "set synchronous_commit = 'on'"] {
        holder.batch_execute(sql).expect("a statement");
    }
    let holding = spawn(holder, "begin; notify x; create table more (); commit");
    let wait = format!(
        "select count(*) from pg_stat_activity where pid = {pid} and wait_event = 'SyncRep'"
    );
    await_until(SOON, "the holder to wait for a standby", || {
        fixture.left.query_one::<i64>(&wait) == 1
    });
    (pid, holding)
}

#[test]
fn nothing_undoes_here_what_the_server_has_committed() {
    // A cluster of its own, since its setting concerns all sessions.
    for (settings, request) in [
        ("", "pg_cancel_backend"),
        ("", "pg_terminate_backend"),
        ("set lock_timeout = '200ms'", ""),
    ] {
        let settings_of_cluster = [TEST_SETTINGS, &NO_STANDBY].concat();
        let left = Cluster::start_with("stalled", &settings_of_cluster).expect("a cluster");
        let left = std::sync::Arc::new(left);
        let create = |cluster, name| Side::create(cluster, name).expect("a side");
        let fixture = Fixture {
            left: create(&left, "stalled_left"),
            right: create(clusters().1, "stalled_right"),
        };
        fixture.link(&fixture.left, &fixture.right, "dst", &[]);
        for side in [&fixture.left, &fixture.right] {
            side.exec("create table t (id int primary key, v text)");
        }
        fixture.left.exec(&format!(
            "select attach_sync('t', 'dst', '{}.t')",
            fixture.right.user
        ));
        fixture
            .left
            .exec("insert into t values (1, 'old'), (2, 'old')");
        let (holder, holding) = stalled(&fixture);
        let (local, waiting) = notify_behind_another(&fixture, settings);
        if request.is_empty() {
            std::thread::sleep(Duration::from_millis(400));
        } else {
            fixture
                .left
                .exec_superuser(&format!("select {request}({local})"));
        }
        assert!(
            !waiting.is_finished(),
            "the commit waits until it can be made: {request}"
        );
        fixture
            .left
            .exec_superuser(&format!("select pg_cancel_backend({holder})"));
        let (client, result) = waiting.join().expect("the waiting session");
        drop(holding.join().expect("the holder"));
        if request == "pg_terminate_backend" {
            drop(client);
        } else {
            result.unwrap_or_else(|error| panic!("{request}: {error}"));
            let mut client = client;
            client
                .batch_execute("select pg_sleep(0.01)")
                .expect("a session that goes on");
        }
        assert_eq!(value(&fixture.left, 1).as_deref(), Some("new"), "{request}");
        assert_equal(&fixture);
        assert_eq!(queued(&fixture), 0);
    }
}

#[test]
fn what_temporary_tables_raise_at_commit_is_raised_before_anything_is_sent() {
    let fixture = one_way("temporary", None, "{}");
    let mut client = fixture.left.client();
    let sql = "begin; create temporary table parent (id int primary key) on commit delete rows;
        create temporary table child (id int references parent);
        update t set v = 'new' where id = 1; commit";
    let error = fails(client.batch_execute(sql));
    assert_eq!(error.code().code(), "0A000", "{error:?}");
    assert_eq!(value(&fixture.left, 1).as_deref(), Some("old"));
    assert_equal(&fixture);
    // And what they do otherwise they still do, once.
    client
        .batch_execute(
            "begin; create temporary table gone (id int) on commit drop;
             create temporary table parent (id int primary key) on commit delete rows;
             insert into parent values (2); update t set v = 'new' where id = 1; commit",
        )
        .expect("a commit");
    let left = client
        .query_one("select count(*) from parent", &[])
        .expect("a count");
    assert_eq!(left.get::<_, i64>(0), 0);
    assert!(client.batch_execute("select from gone").is_err());
    assert_eq!(value(&fixture.right, 1).as_deref(), Some("new"));
    assert_equal(&fixture);
}

#[test]
fn a_large_value_of_a_temporary_table_that_is_emptied_at_commit_arrives() {
    let fixture = one_way("temporary_large", None, "{}");
    let mut client = fixture.left.client();
    let target = format!("{}.t", fixture.right.user);
    let made = client.batch_execute(&format!(
        "create temporary table x (id int primary key, v text) on commit delete rows;
         select attach_sync('x', 'dst', '{target}');
         insert into x select 77, string_agg(md5(i::text), '') from generate_series(1, 3000) i"
    ));
    made.expect("a temporary table");
    assert_eq!(value(&fixture.right, 77).map(|v| v.len()), Some(96_000));
}

#[test]
fn a_statement_that_ran_out_of_time_while_its_procedure_committed_is_ended_after_that() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = one_way("procedure", Some(&proxy), "{}");
    fixture.left.exec(
        "create procedure p() language plpgsql as $$ begin
           update t set v = 'new' where id = 1; commit; perform pg_sleep(60); end $$",
    );
    let mut client = fixture.left.client();
    client
        .batch_execute("update t set v = 'warm' where id = 2")
        .expect("an update");
    proxy.set_delay(Duration::from_millis(700));
    let start = Instant::now();
    let waiting = spawn(client, "set statement_timeout = '400ms'");
    let (client, result) = waiting.join().expect("a session");
    result.expect("a setting");
    let waiting = spawn(client, "call p()");
    let (mut client, result) = waiting.join().expect("the waiting session");
    assert_eq!(fails(result).code().code(), "57014");
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
    proxy.set_delay(Duration::ZERO);
    client
        .batch_execute("select 1")
        .expect("a session that goes on");
    await_until(SOON, "both sides to agree", || {
        fixture.checksum(&fixture.left, "t") == fixture.checksum(&fixture.right, "t")
            || queued(&fixture) > 0
    });
    assert!(drain(&fixture));
    assert_equal(&fixture);
}
