//! The worker and records that can never be applied: it delivers around them, leaves them alone and
//! goes on when someone has found a way out.

use rowsync_harness::await_until;

use crate::support::common::{attach, queued, rows, run, same, table};
use crate::support::failed::{
    counts, discard, goes_directly, retry, standing, the_failed, waits_behind,
};
use crate::support::preloaded::{EAGER, WORKING, await_drained, preloaded_one_way};
use crate::support::reject_values;

const COLUMNS: &str = "id int primary key, v text";
const QUEUE: &str = r#"{"mode": "queue"}"#;

#[test]
fn the_worker_delivers_around_a_failing_among_ten_thousand() {
    let fixture = preloaded_one_way("workpoison", EAGER, COLUMNS, QUEUE);
    fixture
        .right
        .exec("alter table t add constraint is_sound check (v <> 'bad')");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t select i, case i when 5000 then 'bad' else 'v' || i end
           from generate_series(1, 10000) i",
    );
    await_until(WORKING, "the failing record to be marked failed", || {
        counts(&fixture) == (0, 1, 0)
    });
    assert_eq!(table(&fixture.right, "t").len(), 9_999);
    let failing = the_failed(&fixture);
    let why = "select status, sqlstate, constraint_name from sync_err_rec";
    assert_eq!(rows(&fixture.left, why), ["failed|23514|is_sound"]);

    // Through the queue: the row waits, others arrive.
    run(
        &mut client,
        "update t set v = 'good' where id = 5000; update t set v = 'w' where id = 1",
    );
    await_until(WORKING, "the other row to arrive", || {
        counts(&fixture) == (0, 1, 1)
    });
    assert_eq!(rows(&fixture.right, "select v from t where id = 1"), ["w"]);
    // And directly.
    fixture.left.exec("select detach_sync('t', 'dst')");
    attach(&fixture, "t", "{}");
    waits_behind(
        &fixture,
        &mut client,
        "update t set id = 20000 where id = 5000",
        failing,
    );
    goes_directly(
        &fixture,
        &mut client,
        "update t set v = 'direct' where id < 10",
    );
    let direct = rows(&fixture.right, "select count(*) from t where v = 'direct'");
    assert_eq!(direct, ["9"], "delivered when the commit returned");

    fixture.right.exec("alter table t drop constraint is_sound");
    assert!(retry(&fixture, failing));
    await_until(WORKING, "all to arrive", || queued(&fixture) == 0);
    same(&fixture, "t");
}

#[test]
fn the_worker_does_not_try_what_is_failed() {
    let fixture = preloaded_one_way("workalone", EAGER, COLUMNS, QUEUE);
    reject_values::build(&fixture);
    reject_values::close(&fixture, "bad", "23514", None);
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'bad')");
    await_until(WORKING, "the failing record to be marked failed", || {
        counts(&fixture) == (0, 1, 0)
    });
    // Rounds of the worker, each of which delivers something else.
    for n in 2..12 {
        run(&mut client, &format!("insert into t values ({n}, 'good')"));
        await_drained(&fixture);
    }
    assert_eq!(
        rows(&fixture.left, "select attempts, status from sync_err_rec"),
        ["1|failed"]
    );
    let status = "select pending, failed, waiting, consecutive_failures from sync_status";
    assert_eq!(
        rows(&fixture.left, status),
        ["0|1|0|0"],
        "the server is well"
    );
    assert_eq!(reject_values::passed(&fixture).len(), 10);
}

#[test]
fn a_discarded_failing_needs_no_further_push() {
    let fixture = preloaded_one_way("workdiscard", EAGER, COLUMNS, "{}");
    reject_values::build(&fixture);
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a'), (2, 'b')");
    reject_values::passed(&fixture);
    reject_values::close(&fixture, "bad", "23514", None);
    run(&mut client, "update t set v = 'bad' where id = 1");
    await_until(WORKING, "the failing record to be marked failed", || {
        counts(&fixture) == (0, 1, 0)
    });
    let failing = the_failed(&fixture);
    waits_behind(
        &fixture,
        &mut client,
        "update t set v = 'next' where id = 1",
        failing,
    );
    waits_behind(
        &fixture,
        &mut client,
        "update t set id = 3 where id = 1",
        failing,
    );
    discard(&fixture, failing);
    await_until(WORKING, "what waited to arrive", || queued(&fixture) == 0);
    assert_eq!(reject_values::passed(&fixture), ["1:next", "3:next"]);
    same(&fixture, "t");
    goes_directly(
        &fixture,
        &mut client,
        "update t set v = 'direct' where id = 3",
    );
    same(&fixture, "t");
}

#[test]
fn the_worker_goes_on_behind_a_retry_made_in_a_transaction_of_its_own() {
    let fixture = preloaded_one_way("workretry", EAGER, COLUMNS, QUEUE);
    reject_values::build(&fixture);
    reject_values::close(&fixture, "bad", "23514", None);
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t values (1, 'bad'), (2, 'bad'); update t set v = 'good'",
    );
    await_until(WORKING, "two to be marked failed", || {
        counts(&fixture) == (0, 2, 2)
    });
    reject_values::open(&fixture, "bad");
    for id in crate::support::failed::failed(&fixture) {
        retry(&fixture, id);
    }
    await_until(WORKING, "all to arrive", || queued(&fixture) == 0);
    let mut passed = reject_values::passed(&fixture);
    passed.sort();
    assert_eq!(
        passed,
        ["1:bad", "1:good", "2:bad", "2:good"],
        "{:?}",
        standing(&fixture)
    );
    same(&fixture, "t");
}
