//! Changes that arrive under `newest` while another session is at the same row: whoever comes first, both
//! masters end equal.

use rowsync_harness::{Fixture, await_until};

use crate::conflict::newest_masters::{agreed, masters};
use crate::support::common::{both_have, rows, run, same};
use crate::support::preloaded::WORKING;

const WAITING: &str = "select count(*) from pg_stat_activity
     where wait_event_type = 'Lock' and datname = current_database()";

fn settle(fixture: &Fixture) {
    await_until(WORKING, "both queues to drain", || {
        for side in [&fixture.left, &fixture.right] {
            side.query_one::<bool>("select deal_sync_err_rec(10000)");
        }
        [&fixture.left, &fixture.right]
            .iter()
            .all(|side| side.queued().expect("a queue") == 0)
    });
}

/// A row that another session deletes and inserts again in one transaction while a newer change
/// waits for it: the change must not be skipped.
#[test]
fn a_newer_change_meets_a_row_that_is_replaced_meanwhile() {
    let fixture = masters("racea");
    agreed(&fixture);
    let mut client = fixture.right.client();
    run(
        &mut client,
        "begin; delete from t; insert into t values (1, 'again', 5)",
    );
    fixture.left.exec("update t set v = 'newest', ver = 100");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            fixture
                .left
                .query_one::<bool>("select deal_sync_err_rec(10000)")
        });
        await_until(WORKING, "the change to wait", || {
            rows(&fixture.right, WAITING) == ["1"]
        });
        run(&mut client, "commit");
    });
    settle(&fixture);
    both_have(&fixture, "t", &["1|newest|100"]);
}

/// A deletion that arrives for a key of which there is no row yet, while another session inserts it.
#[test]
fn a_deletion_arrives_while_its_key_is_inserted() {
    let fixture = masters("raceb");
    agreed(&fixture);
    // The row is not there, and nobody remembers why.
    run(
        &mut fixture.right.client_named("pg_rowsync"),
        "delete from t",
    );
    fixture.left.exec("delete from t");
    let mut client = fixture.right.client();
    run(&mut client, "begin; insert into t values (1, 'r', 3)");
    // Does not wait; or should it, the other session ends meanwhile.
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| {
            fixture
                .left
                .query_one::<bool>("select deal_sync_err_rec(10000)")
        });
        await_until(WORKING, "the deletion to arrive or wait", || {
            sent.is_finished() || rows(&fixture.right, WAITING) == ["1"]
        });
        run(&mut client, "commit");
    });
    settle(&fixture);
    same(&fixture, "t");
}

/// A deletion that arrives and finds no row, while another session inserts the row again: what that
/// keeps must not be overwritten.
#[test]
fn a_deletion_arrives_while_the_row_is_inserted_again() {
    let fixture = masters("racec");
    agreed(&fixture);
    fixture.right.exec("delete from t");
    let mut client = fixture.right.client();
    run(&mut client, "begin; insert into t values (1, 'r', 5)");
    fixture.left.exec("delete from t");
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| {
            fixture
                .left
                .query_one::<bool>("select deal_sync_err_rec(10000)")
        });
        await_until(WORKING, "the deletion to arrive or wait", || {
            sent.is_finished() || rows(&fixture.right, WAITING) == ["1"]
        });
        run(&mut client, "commit");
    });
    // The left side knows of its own deletion only.
    fixture.left.exec("insert into t values (1, 'l', 5)");
    settle(&fixture);
    same(&fixture, "t");
}
