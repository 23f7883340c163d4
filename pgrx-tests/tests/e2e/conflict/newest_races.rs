//! Changes that arrive under `newest` while another session is at the same row: whoever comes first, both
//! masters end equal.

use rowsync_harness::{Fixture, Side, await_until};

use crate::conflict::newest_masters::{agreed, masters};
use crate::support::common::{both_have, mirror, rows, run, same, table};
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

/// A row that another master moves to a key while the deletion of that key is arriving from a third: the
/// deletion counts for more, and finds no row yet.
#[test]
fn a_row_is_moved_to_a_key_whose_deletion_is_arriving() {
    moved_beside_a_deletion("raced", &[], &[]);
}

/// The same key, of which an older deletion is kept already.
#[test]
fn a_row_is_moved_to_a_key_that_is_deleted_once_more() {
    moved_beside_a_deletion(
        "racee",
        &["update t set v = 'again'", "update t set v = 'once more'"],
        &[
            "insert into t values (2, 'gone', 5)",
            "delete from t where id = 2",
        ],
    );
}

/// The left side deletes row 2, after what it does `before`, while a third master moves row 1 to that key,
/// after what it does before; neither knows of the other.
fn moved_beside_a_deletion(label: &str, left_before: &[&str], third_before: &[&str]) {
    let fixture = masters(label);
    let left = &fixture.left;
    let right = &fixture.right;
    // What keeps the deletion waiting once it has been applied.
    mirror(
        &fixture,
        "z",
        "id int primary key, v text",
        r#"{"mode": "queue"}"#,
    );
    left.exec("insert into z values (1, 'z')");
    left.query_one::<bool>("select deal_sync_err_rec(10000)");
    let third = Side::create(&left.cluster, &format!("third_{}", left.db)).expect("a database");
    third.exec("create table t (id int primary key, v text, ver int)");
    third
        .link(right, right.cluster.port(), "dst", &[])
        .expect("a server");
    third.exec(&format!(
        r#"select attach_sync('t', 'dst', '{}.t',
             '{{"mode": "queue", "on_conflict": "newest", "version_column": "ver"}}')"#,
        right.user
    ));
    let unseen = |side: &Side, sql: &str| run(&mut side.client_named("pg_rowsync"), sql);
    unseen(left, "insert into t values (2, 'left', 5)");
    for side in [right, &third] {
        unseen(side, "insert into t values (1, 'third', 5)");
    }
    let drain = |side: &Side| side.query_one::<bool>("select deal_sync_err_rec(10000)");
    left_before.iter().for_each(|sql| left.exec(sql));
    third_before.iter().for_each(|sql| third.exec(sql));
    // What the right side knows of row 2 by then is gone again.
    assert!(drain(&third));
    left.exec("delete from t; update z set v = 'held'");
    third.exec("update t set id = 2 where id = 1");
    let mut client = right.client();
    run(&mut client, "begin; select from z for update");
    let waiting = || rows(right, WAITING);
    std::thread::scope(|scope| {
        scope.spawn(|| drain(left));
        await_until(WORKING, "the deletion to wait", || waiting() == ["1"]);
        let moved = scope.spawn(|| drain(&third));
        await_until(WORKING, "the row to arrive or wait", || {
            moved.is_finished() || waiting() == ["2"]
        });
        run(&mut client, "commit");
    });
    await_until(WORKING, "all queues to drain", || {
        [left, &third].iter().all(|side| {
            drain(side);
            side.queued().expect("a queue") == 0
        })
    });
    assert_eq!(table(right, "t"), [""; 0]);
    third.drop().expect("no third database");
}
