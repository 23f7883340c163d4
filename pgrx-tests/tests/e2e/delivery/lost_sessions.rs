//! Connections that break or fall silent while a delivery is on its way.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rowsync_harness::fixture::{Fixture, await_until, clusters, fails};
use rowsync_harness::proxy::{Direction, Proxy};

use crate::support::one_way::{
    SOON, assert_equal, await_blocked, drain, lock_row, one_way, patient_client, queued, spawn,
    value,
};

/// Backends that may still act, as the left side remembers them.
fn lost(fixture: &Fixture) -> i64 {
    fixture
        .left
        .query_one("select count(*) from sync_lost_session")
}

#[test]
fn a_commit_whose_answer_is_lost_is_queued_and_replayed_without_harm() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = one_way("doubt", Some(&proxy), "{}");
    let mut client = fixture.left.client();
    client
        .batch_execute("update t set v = 'warm' where id = 2")
        .expect("an update");
    proxy.cut_after(0, Direction::ToClient);
    client
        .batch_execute(
            "begin; delete from t where id = 3; update t set id = 10 where id = 2; \
             insert into t values (2, 'again'), (4, 'new'); commit",
        )
        .expect("the local commit");
    assert_eq!(queued(&fixture), 4);
    assert_eq!(lost(&fixture), 1);
    let state: String = fixture
        .left
        .query_one("select distinct sqlstate from sync_err_rec");
    assert_eq!(state, "08007");
    assert!(drain(&fixture));
    assert_equal(&fixture);
    assert_eq!((queued(&fixture), lost(&fixture)), (0, 0));
}

#[test]
fn in_mode_sync_an_unknown_outcome_is_said_to_be_unknown() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = one_way("sync_doubt", Some(&proxy), r#"{"mode": "sync"}"#);
    let mut client = fixture.left.client();
    client
        .batch_execute("update t set v = 'warm' where id = 2")
        .expect("an update");
    proxy.cut_after(0, Direction::ToClient);
    let error = fails(client.batch_execute("update t set v = 'new' where id = 1"));
    assert_eq!(error.code().code(), "08007");
    assert_eq!(value(&fixture.left, 1).as_deref(), Some("old"));
    // The same session makes sure that the lost backend is gone before it sends anything newer.
    client
        .batch_execute("update t set v = 'newer' where id = 1")
        .expect("an update");
    assert_equal(&fixture);
}

#[test]
fn in_mode_sync_a_backend_lost_in_doubt_is_ended_at_once() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = one_way("sync_ended", Some(&proxy), r#"{"mode": "sync"}"#);
    let locker = lock_row(&fixture);
    let waiting = spawn(
        patient_client(&fixture),
        "update t set v = 'new' where id = 1",
    );
    let remote = await_blocked(&fixture.right);
    proxy.cut();
    let (client, result) = waiting.join().expect("the waiting session");
    assert_eq!(fails(result).code().code(), "08007");
    // It still waited for the row, with the commit behind it.
    let there = format!("select count(*) from pg_stat_activity where pid = {remote}");
    assert_eq!(fixture.right.query_one::<i64>(&there), 0);
    drop((locker, client));
    assert_equal(&fixture);
}

#[test]
fn a_remote_backend_killed_while_it_applies_leaves_the_changes_queued() {
    // A killed backend takes its server down for a moment, so it must not be a shared one.
    let own =
        std::sync::Arc::new(rowsync_harness::cluster::Cluster::start("killed").expect("a cluster"));
    let shared = Fixture::new("killed");
    let remote = rowsync_harness::side::Side::create(&own, "remote_killed").expect("a database");
    let fixture = Fixture {
        left: shared.left.clone(),
        right: remote,
    };
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table t (id int primary key, v text)");
    }
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    fixture
        .left
        .exec("select attach_sync('t', 'dst', 'remote_killed.t')");
    fixture.left.exec("insert into t values (1, 'old')");
    let locker = lock_row(&fixture);
    let waiting = spawn(
        patient_client(&fixture),
        "update t set v = 'new' where id = 1",
    );
    let remote = await_blocked(&fixture.right);
    own.crash_backend(remote).expect("a crash and recovery");
    let (_, result) = waiting.join().expect("the waiting session");
    result.expect("the local commit");
    drop(locker);
    assert_eq!(queued(&fixture), 1);
    await_until(SOON, "the drain to succeed", || drain(&fixture));
    assert_equal(&fixture);
    assert_eq!((queued(&fixture), lost(&fixture)), (0, 0));
}

#[test]
fn a_backend_frozen_with_the_commit_in_its_socket_never_commits_it_later() {
    let fixture = one_way("zombie", None, "{}");
    let mut client = fixture.left.client();
    client
        .batch_execute(
            "set pg_rowsync.delivery_timeout = '3s'; update t set v = 'warm' where id = 2",
        )
        .expect("an update");
    let remote: i32 = client
        .query_one("select backend_pid from sync_connections()", &[])
        .expect("a connection")
        .get(0);
    fixture
        .right
        .cluster
        .signal_backend(remote, Signal::SIGSTOP)
        .expect("a signal");
    let start = Instant::now();
    client
        .batch_execute("update t set v = 'first' where id = 1")
        .expect("the local commit");
    assert!(
        start.elapsed() < Duration::from_secs(6),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(lost(&fixture), 1);
    // The next ones queue at once: nothing may pass the first.
    let start = Instant::now();
    client
        .batch_execute("update t set v = 'second' where id = 1")
        .expect("the local commit");
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(queued(&fixture), 2);
    // Frozen, the backend cannot be ended: the drain gives up and says so.
    assert!(!drain(&fixture));
    assert_eq!(value(&fixture.right, 1).as_deref(), Some("old"));
    fixture
        .right
        .cluster
        .signal_backend(remote, Signal::SIGCONT)
        .expect("a signal");
    await_until(SOON, "the drain to succeed", || drain(&fixture));
    assert_equal(&fixture);
    assert_eq!(value(&fixture.right, 1).as_deref(), Some("second"));
    assert_eq!((queued(&fixture), lost(&fixture)), (0, 0));
    // Had the frozen backend lived on, its older value would come now.
    let gone = format!("select count(*) from pg_stat_activity where pid = {remote}");
    assert_eq!(fixture.right.query_one::<i64>(&gone), 0);
}

#[test]
fn a_network_that_swallows_everything_slows_one_commit_and_no_other() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = one_way("blackhole", Some(&proxy), "{}");
    let mut client = fixture.left.client();
    client
        .batch_execute(
            "set pg_rowsync.connect_timeout = '1s'; set pg_rowsync.delivery_timeout = '1s'; \
             update t set v = 'warm' where id = 2",
        )
        .expect("an update");
    proxy.freeze();
    client
        .batch_execute("update t set v = 'a' where id = 1")
        .expect("a slow commit");
    let start = Instant::now();
    for n in 0..20 {
        let sql = format!("update t set v = 'b{n}' where id = 1");
        client.batch_execute(&sql).expect("a fast commit");
    }
    // Each would take a second if it tried the network.
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(queued(&fixture), 21);
    proxy.cut();
    proxy.thaw();
    assert!(drain(&fixture));
    assert_equal(&fixture);
}

#[test]
fn deadlocks_between_masters_are_broken_by_the_lock_timeout() {
    let fixture = one_way("deadlock", None, "{}");
    fixture.link(&fixture.right, &fixture.left, "dst", &[]);
    let target = format!("{}.t", fixture.left.user);
    fixture
        .right
        .exec(&format!("select attach_sync('t', 'dst', '{target}')"));
    let update = |side: &rowsync_harness::side::Side, sql| {
        let mut client = side.client();
        client
            .batch_execute("begin; update t set v = v || '.' where id = 1")
            .expect("an update");
        spawn(client, sql)
    };
    // Each holds its own row lock and waits for the other's at commit.
    let left = update(&fixture.left, "commit");
    let right = update(&fixture.right, "commit");
    for waiting in [left, right] {
        waiting
            .join()
            .expect("a session")
            .1
            .expect("no client sees an error");
    }
    let waiting: i64 =
        fixture.left.queued().expect("a queue") + fixture.right.queued().expect("a queue");
    assert!(waiting <= 2);
    await_until(SOON, "both drains to succeed", || {
        drain(&fixture)
            && fixture
                .right
                .query_one::<bool>("select deal_sync_err_rec(100)")
    });
    assert_eq!(
        fixture.left.queued().expect("a queue") + fixture.right.queued().expect("a queue"),
        0
    );
}

#[test]
fn a_second_drain_that_finds_nothing_keeps_what_the_first_applied() {
    let fixture = one_way("nothing_left", None, r#"{"mode": "queue"}"#);
    fixture.left.exec("update t set v = 'new' where id = 1");
    let mut admin = fixture.left.superuser();
    // A lost session makes the second call look at the server though no record is left.
    admin
        .batch_execute(
            "begin; select deal_sync_err_rec(100);
             insert into sync_lost_session (dst_server, owner, backend_pid)
               select 'dst', relowner, 1 from pg_class where relname = 't';
             select deal_sync_err_rec(100); commit",
        )
        .expect("two drains");
    assert_equal(&fixture);
    assert!(drain(&fixture));
    assert_eq!(
        fixture
            .left
            .query_one::<i64>("select count(*) from sync_lost_session"),
        0
    );
}

/// Freezes the right process of a client's connection, and loses an update over it.
fn lose(fixture: &Fixture, client: &mut postgres::Client) -> i32 {
    client
        .batch_execute(
            "set pg_rowsync.delivery_timeout = '1s'; update t set v = 'warm' where id = 2",
        )
        .expect("an update");
    let remote: i32 = client
        .query_one("select backend_pid from sync_connections()", &[])
        .expect("a connection")
        .get(0);
    fixture
        .right
        .cluster
        .signal_backend(remote, Signal::SIGSTOP)
        .expect("a signal");
    client
        .batch_execute("update t set v = 'first' where id = 1")
        .expect("the local commit");
    assert_eq!(lost(fixture), 1);
    client
        .batch_execute("update t set v = 'second' where id = 1")
        .expect("the local commit");
    remote
}

/// Lets the frozen process go on: whatever it does, the newer value stays.
fn newest_stays(fixture: &Fixture, remote: i32) {
    assert_eq!((queued(fixture), lost(fixture)), (2, 1));
    fixture
        .right
        .cluster
        .signal_backend(remote, Signal::SIGCONT)
        .expect("a signal");
    await_until(SOON, "the drain to succeed", || {
        drain(fixture) && queued(fixture) == 0
    });
    let there = format!("select count(*) from pg_stat_activity where pid = {remote}");
    await_until(SOON, "the process to end", || {
        fixture.right.query_one::<i64>(&there) == 0
    });
    assert_equal(fixture);
    assert_eq!(value(&fixture.right, 1).as_deref(), Some("second"));
    assert_eq!(lost(fixture), 0);
}

#[test]
fn a_lost_session_is_found_under_whatever_role_it_runs() {
    let fixture = one_way("lost_role", None, "{}");
    let user = &fixture.right.user;
    let password = &fixture.right.password;
    fixture.right.exec_superuser(&format!(
        "create role {user}_in login password '{password}' in role {user};
         alter role {user}_in set role = '{user}'"
    ));
    fixture.left.exec(&format!(
        "alter user mapping for current_user server dst options (set user '{user}_in')"
    ));
    let mut client = fixture.left.client();
    let remote = lose(&fixture, &mut client);
    assert!(!drain(&fixture));
    newest_stays(&fixture, remote);
    drop(client);
    fixture.right.exec_superuser(&format!(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = '{user}_in';
         drop role {user}_in"
    ));
}

#[test]
fn a_lost_session_of_another_role_is_waited_for_and_named() {
    let fixture = one_way("lost_other", None, "{}");
    let user = &fixture.right.user;
    let password = &fixture.right.password;
    fixture.right.exec_superuser(&format!(
        "create role {user}_new login password '{password}';
         grant usage on schema {user} to {user}_new;
         grant all on {user}.t to {user}_new"
    ));
    let mut client = fixture.left.client();
    let remote = lose(&fixture, &mut client);
    fixture.left.exec(&format!(
        "alter user mapping for current_user server dst options (set user '{user}_new')"
    ));
    assert!(!drain(&fixture));
    let reported: String = fixture
        .left
        .query_one("select last_sqlstate || ' ' || last_error from sync_status");
    assert!(
        reported.starts_with("55006") && reported.contains(user.as_str()),
        "{reported}"
    );
    newest_stays(&fixture, remote);
    drop(client);
    fixture.right.exec_superuser(&format!(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = '{user}_new';
         drop owned by {user}_new; drop role {user}_new"
    ));
}

#[test]
fn a_process_that_has_the_number_of_a_lost_one_and_started_later_is_left_alone() {
    let fixture = one_way("lost_recycled", None, r#"{"mode": "queue"}"#);
    fixture.left.exec("update t set v = 'new' where id = 1");
    let mut innocent = fixture.right.client();
    let pid: i32 = innocent
        .query_one("select pg_backend_pid()", &[])
        .expect("a number")
        .get(0);
    fixture.left.exec_superuser(&format!(
        "insert into sync_lost_session (dst_server, owner, backend_pid, backend_start)
           select 'dst', relowner, {pid}, now() - interval '1 day' from pg_class where relname = 't'"
    ));
    assert!(drain(&fixture));
    assert_eq!(lost(&fixture), 0);
    innocent
        .batch_execute("select 1")
        .expect("a session that lives");
    assert_equal(&fixture);
}

#[test]
fn nothing_is_sent_over_a_connection_before_it_is_known_who_serves_it() {
    let fixture = one_way("lost_first", None, "{}");
    let own = rowsync_harness::Pooler::start(
        &[&fixture.right],
        rowsync_harness::PoolMode::Transaction,
        &[rowsync_harness::IGNORE_OPTIONS],
    );
    let pooler = own.expect("a pooler");
    let port = pooler.port();
    fixture
        .left
        .exec(&format!("alter server dst options (set port '{port}')"));
    let mut warm = fixture.left.client();
    warm.batch_execute("update t set v = 'warm' where id = 3")
        .expect("an update");
    let remote: i32 = fixture.right.query_one(&format!(
        "select pid from pg_stat_activity where usename = '{}' order by state_change desc limit 1",
        fixture.right.user
    ));
    fixture
        .right
        .cluster
        .signal_backend(remote, Signal::SIGSTOP)
        .expect("a signal");
    let mut client = fixture.left.client();
    client
        .batch_execute(
            "set pg_rowsync.delivery_timeout = '1s'; update t set v = 'first' where id = 1",
        )
        .expect("the local commit");
    // The process that froze has not introduced itself, so it has nothing to commit.
    assert_eq!((queued(&fixture), lost(&fixture)), (1, 0));
    client
        .batch_execute("update t set v = 'second' where id = 1")
        .expect("the local commit");
    fixture
        .right
        .cluster
        .signal_backend(remote, Signal::SIGCONT)
        .expect("a signal");
    await_until(SOON, "the drain to succeed", || {
        drain(&fixture) && queued(&fixture) == 0
    });
    assert_equal(&fixture);
    assert_eq!(
        (value(&fixture.right, 1).as_deref(), lost(&fixture)),
        (Some("second"), 0)
    );
}

/// Whoever publishes all tables publishes those of the extension, whose rows must be deleted for the queue to
/// drain.
#[test]
fn a_lost_session_is_settled_beside_a_publication_for_all_tables() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = one_way("published", Some(&proxy), "{}");
    fixture
        .left
        .exec_superuser("create publication everything for all tables");
    let mut client = fixture.left.client();
    client
        .batch_execute("update t set v = 'warm' where id = 2")
        .expect("an update");
    for value in ["new", "newer"] {
        proxy.cut_after(0, Direction::ToClient);
        client
            .batch_execute(&format!("update t set v = '{value}' where id = 1"))
            .expect("the local commit");
        assert_eq!((queued(&fixture), lost(&fixture)), (1, 1));
        await_until(SOON, "the queue to drain", || drain(&fixture));
        assert_equal(&fixture);
        assert_eq!((queued(&fixture), lost(&fixture)), (0, 0));
        client
            .batch_execute("update t set v = 'direct' where id = 2")
            .expect("an update");
    }
    assert_equal(&fixture);
}
