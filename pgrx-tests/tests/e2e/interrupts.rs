//! Cancel and termination of a session that waits for the remote.

use std::time::{Duration, Instant};

use postgres::Client;
use postgres::error::SqlState;
use rowsync_harness::proxy::Proxy;
use rowsync_harness::testbed::{Testbed, await_until, clusters, fails};

use crate::one_way::{
    SOON, assert_equal, await_blocked, drain, lock_row, one_way, patient_client, pid, queued,
    spawn, value,
};

#[test]
fn a_cancel_that_the_server_hears_in_time_rolls_back_both_sides() {
    for mode in ["async", "sync"] {
        let bed = one_way("cancel", None, &format!(r#"{{"mode": "{mode}"}}"#));
        let locker = lock_row(&bed);
        let mut client = patient_client(&bed);
        let local = pid(&mut client);
        let waiting = spawn(client, "update t set v = 'new' where id = 1");
        await_blocked(&bed.right);
        bed.left.exec_superuser(&format!("select pg_cancel_backend({local})"));
        let (mut client, result) = waiting.join().expect("the waiting session");
        assert_eq!(fails(result).code().code(), "57014", "{mode}");
        drop(locker);
        assert_eq!(value(&bed.left, 1).as_deref(), Some("old"), "{mode}");
        await_until(SOON, "the remote lock to go", || {
            value(&bed.right, 1).as_deref() == Some("old")
        });
        assert_eq!(queued(&bed), 0, "{mode}");
        // The session is of use again, and so is its next connection.
        client.batch_execute("update t set v = 'after' where id = 1").expect("an update");
        assert_eq!(value(&bed.right, 1).as_deref(), Some("after"), "{mode}");
        assert_eq!(queued(&bed), 0, "{mode}");
    }
}

#[test]
fn termination_while_waiting_ends_the_session_promptly_and_applies_nothing() {
    let bed = one_way("terminate", None, "{}");
    let locker = lock_row(&bed);
    let mut client = patient_client(&bed);
    let local = pid(&mut client);
    let waiting = spawn(client, "update t set v = 'new' where id = 1");
    await_blocked(&bed.right);
    let start = Instant::now();
    bed.left.exec_superuser(&format!("select pg_terminate_backend({local})"));
    let (_, result) = waiting.join().expect("the waiting session");
    let error = result.expect_err("the session's end");
    // The server's last word may be lost with its socket.
    assert!(error.is_closed() || error.code() == Some(&SqlState::ADMIN_SHUTDOWN), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    drop(locker);
    assert_eq!(value(&bed.left, 1).as_deref(), Some("old"));
    let sessions = "select count(*) from pg_stat_activity where usename = $1 \
                    and application_name = 'pg_rowsync'";
    await_until(SOON, "the remote session to go", || {
        let row = bed.right.superuser().query_one(sessions, &[&bed.right.user]);
        row.expect("activity").get::<_, i64>(0) == 0
    });
    assert_eq!(value(&bed.right, 1).as_deref(), Some("old"));
    assert_eq!(queued(&bed), 0);
}

/// Sends a request to a session whose delivery has been committed on the right, before it can know:
/// the answer is on its way for most of a second. Gives what came of the session.
fn late_request(
    label: &str,
    function: &str,
) -> (Testbed, Proxy, Client, Result<(), postgres::Error>) {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let bed = one_way(label, Some(&proxy), "{}");
    let mut client = bed.left.client();
    client.batch_execute("update t set v = 'warm' where id = 2").expect("an update");
    let local = pid(&mut client);
    proxy.set_delay(Duration::from_millis(700));
    let waiting = spawn(client, "update t set v = 'new' where id = 1");
    await_until(SOON, "the remote commit", || value(&bed.right, 1).as_deref() == Some("new"));
    bed.left.exec_superuser(&format!("select {function}({local})"));
    let (client, result) = waiting.join().expect("the waiting session");
    proxy.set_delay(Duration::ZERO);
    (bed, proxy, client, result)
}

#[test]
fn a_cancel_that_comes_after_the_remote_commit_is_dropped() {
    let (bed, _proxy, mut client, result) = late_request("late_cancel", "pg_cancel_backend");
    result.expect("a commit that the cancel came too late for");
    assert_equal(&bed);
    client.batch_execute("update t set v = 'after' where id = 1").expect("an update");
    assert_equal(&bed);
    assert_eq!(queued(&bed), 0);
}

#[test]
fn termination_after_the_remote_commit_lets_the_local_commit_finish() {
    let (bed, _proxy, _, result) = late_request("late_term", "pg_terminate_backend");
    // The client may or may not hear of the commit before the end of its session.
    if let Err(error) = result {
        assert_eq!(error.code().map(|c| c.code()), Some("57P01"));
    }
    assert_eq!(value(&bed.left, 1).as_deref(), Some("new"));
    assert_equal(&bed);
}

#[test]
fn a_cancel_that_nobody_answers_leaves_async_changes_in_the_queue() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let bed = one_way("deaf", Some(&proxy), "{}");
    let mut client = patient_client(&bed);
    client
        .batch_execute("set pg_rowsync.cancel_timeout = '500ms'; update t set v = 'warm'")
        .expect("an update");
    let local = pid(&mut client);
    proxy.freeze();
    let waiting = spawn(client, "update t set v = 'new' where id = 1");
    let wait = "select count(*) from pg_stat_activity where pid = $1 and wait_event = 'Extension'";
    await_until(SOON, "the session to wait", || {
        let row = bed.left.superuser().query_one(wait, &[&local]).expect("activity");
        row.get::<_, i64>(0) == 1
    });
    let start = Instant::now();
    bed.left.exec_superuser(&format!("select pg_cancel_backend({local})"));
    let (_, result) = waiting.join().expect("the waiting session");
    result.expect("the local commit stands, its outcome on the server being unknown");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(value(&bed.left, 1).as_deref(), Some("new"));
    assert_eq!(queued(&bed), 1);
    proxy.cut();
    proxy.thaw();
    assert!(drain(&bed));
    assert_equal(&bed);
    assert_eq!(queued(&bed), 0);
}

#[test]
fn a_cancel_after_one_of_two_servers_has_committed_keeps_all_sides_together() {
    let bed = one_way("two_commits", None, "{}");
    let schema = bed.right.user.clone();
    bed.link(&bed.left, &bed.right, "slow", &[]);
    // The second server's COMMIT waits for a lock that the test holds.
    bed.right.exec(
        "create table slow (id int primary key, v text); \
         create function wait() returns trigger language plpgsql as \
           $$begin perform pg_catalog.pg_advisory_xact_lock(4711); return null; end$$; \
         create constraint trigger wait after insert or update on slow \
           deferrable initially deferred for each row execute function wait()",
    );
    bed.left.exec(&format!("select attach_sync('t', 'slow', '{schema}.slow')"));
    let mut holder = bed.right.client();
    holder.batch_execute("select pg_advisory_lock(4711)").expect("a lock");
    let mut client = patient_client(&bed);
    let local = pid(&mut client);
    let waiting = spawn(client, "update t set v = 'new' where id = 1");
    await_blocked(&bed.right);
    await_until(SOON, "the first server's commit", || {
        value(&bed.right, 1).as_deref() == Some("new")
    });
    bed.left.exec_superuser(&format!("select pg_cancel_backend({local})"));
    let (_, result) = waiting.join().expect("the waiting session");
    result.expect("a commit that the cancel came too late for");
    drop(holder);
    assert_eq!(value(&bed.left, 1).as_deref(), Some("new"));
    assert_eq!(value(&bed.right, 1).as_deref(), Some("new"));
    assert_eq!(queued(&bed), 1, "what the second server had not committed");
    assert!(drain(&bed));
    let slow = format!("select v from {schema}.slow where id = 1");
    assert_eq!(bed.right.query_one::<String>(&slow), "new");
}
