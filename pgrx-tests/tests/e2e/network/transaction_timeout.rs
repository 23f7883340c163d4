//! `transaction_timeout`, which PostgreSQL 17 added, ends the session with a FATAL error: while it waits for
//! the remote, and at the moments in which the two sides could part over that.

use std::time::Duration;

use postgres::Client;
use rowsync_harness::Fixture;
use rowsync_harness::fixture::{await_until, clusters};
use rowsync_harness::proxy::Proxy;

use crate::support::common::tell_what_is_missing;
use crate::support::one_way::{
    SOON, assert_equal, await_no_delivery, drain, lock_row, one_way, patient_client, pid, queued,
    spawn, value,
};

/// The SQLSTATE of a session's end by this timeout.
const TRANSACTION_TIMEOUT: &str = "25P04";

/// Of this setting, in what follows; answers are underway for longer.
const TIMEOUT: &str = "set transaction_timeout = '300ms'";

const DELAY: Duration = Duration::from_millis(900);

fn is_there(fixture: &Fixture) -> bool {
    let found: bool = fixture
        .left
        .query_one("select exists (select from pg_settings where name = 'transaction_timeout')");
    if !found {
        tell_what_is_missing("transaction_timeout");
    }
    found
}

fn set(client: &mut Client, sql: &str) {
    client.batch_execute(sql).expect("a setting");
}

/// The session was ended by the timeout. The server's last word may be lost with its socket.
fn assert_ran_out(result: Result<(), postgres::Error>) {
    let error = result.expect_err("a session that ran out of time");
    let code = error.code().map(|code| code.code());
    assert!(
        error.is_closed() || code == Some(TRANSACTION_TIMEOUT),
        "{error:?}"
    );
}

/// Waits until a session has come to its end.
fn await_end(fixture: &Fixture, pid: i32) {
    let there = format!("select count(*) from pg_stat_activity where pid = {pid}");
    await_until(SOON, "the session to end", || {
        fixture.left.query_one::<i64>(&there) == 0
    });
}

#[test]
fn a_commit_that_the_server_has_made_is_made_here_too() {
    for mode in ["async", "sync", "atomic"] {
        let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
        let options = format!(r#"{{"mode": "{mode}"}}"#);
        let fixture = one_way("overdue", Some(&proxy), &options);
        if !is_there(&fixture) {
            return;
        }
        let mut client = fixture.left.client();
        set(&mut client, "update t set v = 'warm' where id = 2");
        set(&mut client, TIMEOUT);
        proxy.set_delay(DELAY);
        let (mut client, result) = spawn(client, "update t set v = 'new' where id = 1")
            .join()
            .expect("the session");
        proxy.set_delay(Duration::ZERO);
        if mode == "atomic" {
            // What is only prepared there can still be rolled back, and is.
            assert_ran_out(result);
            assert_eq!(value(&fixture.left, 1).as_deref(), Some("old"));
            let prepared = "select count(*) from pg_prepared_xacts where gid like 'pg_rowsync:%' \
                            and database = current_database()";
            await_until(SOON, "the prepared transaction to be rolled back", || {
                fixture
                    .left
                    .exec_superuser("select resolve_sync_prepared()");
                fixture.right.query_one::<i64>(prepared) == 0
            });
            assert_equal(&fixture);
            continue;
        }
        result.unwrap_or_else(|error| panic!("{mode}: {error:?}"));
        assert_eq!(value(&fixture.left, 1).as_deref(), Some("new"), "{mode}");
        assert_equal(&fixture);
        assert_eq!(queued(&fixture), 0, "{mode}");
        // The time that ran out was that transaction's: the next one has its own.
        client
            .batch_execute("select pg_sleep(0.01); update t set v = 'after' where id = 1")
            .unwrap_or_else(|error| panic!("{mode}: {error:?}"));
        assert_equal(&fixture);
    }
}

#[test]
fn a_wait_that_nothing_came_of_yet_ends_with_the_session_and_leaves_nothing() {
    for mode in ["async", "sync", "atomic"] {
        let fixture = one_way("locked", None, &format!(r#"{{"mode": "{mode}"}}"#));
        if !is_there(&fixture) {
            return;
        }
        let locker = lock_row(&fixture);
        let mut client = patient_client(&fixture);
        set(&mut client, TIMEOUT);
        let local = pid(&mut client);
        let (_, result) = spawn(client, "update t set v = 'new' where id = 1")
            .join()
            .expect("the session");
        assert_ran_out(result);
        await_end(&fixture, local);
        drop(locker);
        assert_eq!(value(&fixture.left, 1).as_deref(), Some("old"), "{mode}");
        await_no_delivery(&fixture.right);
        assert_equal(&fixture);
        assert_eq!(queued(&fixture), 0, "{mode}");
    }
}

#[test]
fn an_outcome_that_nobody_tells_leaves_the_change_in_the_queue() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = one_way("untold", Some(&proxy), "{}");
    if !is_there(&fixture) {
        return;
    }
    let mut client = patient_client(&fixture);
    set(&mut client, "set pg_rowsync.cancel_timeout = '500ms'");
    set(&mut client, "update t set v = 'warm' where id = 2");
    set(&mut client, TIMEOUT);
    proxy.freeze();
    let (mut client, result) = spawn(client, "update t set v = 'new' where id = 1")
        .join()
        .expect("the session");
    result.expect("the local commit stands, its outcome on the server being unknown");
    assert_eq!(value(&fixture.left, 1).as_deref(), Some("new"));
    assert_eq!(queued(&fixture), 1);
    proxy.cut();
    proxy.thaw();
    set(&mut client, "set transaction_timeout = 0");
    assert!(drain(&fixture));
    assert_equal(&fixture);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn a_drain_that_runs_out_of_time_takes_nothing_from_the_queue_that_is_not_there() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = one_way("drain_overdue", Some(&proxy), r#"{"mode": "queue"}"#);
    if !is_there(&fixture) {
        return;
    }
    fixture
        .left
        .exec("update t set v = 'new'; insert into t values (4, 'new')");
    assert_eq!(queued(&fixture), 4);
    let mut client = fixture.left.superuser();
    set(&mut client, TIMEOUT);
    let local = pid(&mut client);
    proxy.set_delay(DELAY);
    let (client, result) = spawn(client, "select deal_sync_err_rec(100)")
        .join()
        .expect("the session");
    proxy.set_delay(Duration::ZERO);
    match result {
        Ok(()) => drop(client),
        Err(_) => await_end(&fixture, local),
    }
    // Whatever of it was committed there is not taken for a new change.
    assert!(drain(&fixture));
    assert_equal(&fixture);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn a_savepoint_and_a_procedure_change_nothing_about_it() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = one_way("procedure", Some(&proxy), "{}");
    if !is_there(&fixture) {
        return;
    }
    fixture.left.exec(
        "create procedure p() language plpgsql as $$ begin
           begin update t set v = 'first' where id = 1; exception when others then raise; end;
           commit;
           update t set v = 'second' where id = 2; perform pg_sleep(60); end $$",
    );
    let mut client = fixture.left.client();
    set(&mut client, "update t set v = 'warm' where id = 3");
    set(&mut client, TIMEOUT);
    proxy.set_delay(DELAY);
    let (_, result) = spawn(client, "call p()").join().expect("the session");
    proxy.set_delay(Duration::ZERO);
    assert_ran_out(result);
    assert_eq!(value(&fixture.left, 1).as_deref(), Some("first"));
    assert_eq!(value(&fixture.left, 2).as_deref(), Some("old"));
    assert_equal(&fixture);
    assert_eq!(queued(&fixture), 0);
}
