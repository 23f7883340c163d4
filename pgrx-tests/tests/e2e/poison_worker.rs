//! The worker and records that can never be applied: it delivers around them, leaves them alone and
//! goes on when someone has found a way out.

use rowsync_harness::await_until;

use crate::common::{attach, queued, rows, run, same, table};
use crate::gate;
use crate::preloaded::{EAGER, WORKING, await_drained, preloaded_one_way};
use crate::set_aside::{counts, discard, goes_directly, retry, standing, the_failed, waits_behind};

const COLUMNS: &str = "id int primary key, v text";
const QUEUE: &str = r#"{"mode": "queue"}"#;

#[test]
fn the_worker_delivers_around_a_poison_among_ten_thousand() {
    let bed = preloaded_one_way("workpoison", EAGER, COLUMNS, QUEUE);
    bed.right.exec("alter table t add constraint is_sound check (v <> 'bad')");
    let mut client = bed.left.client();
    run(
        &mut client,
        "insert into t select i, case i when 5000 then 'bad' else 'v' || i end
           from generate_series(1, 10000) i",
    );
    await_until(WORKING, "the poison to be set aside", || counts(&bed) == (0, 1, 0));
    assert_eq!(table(&bed.right, "t").len(), 9_999);
    let poison = the_failed(&bed);
    let why = "select status, sqlstate, constraint_name from sync_err_rec";
    assert_eq!(rows(&bed.left, why), ["failed|23514|is_sound"]);

    // Through the queue: the row waits, others arrive.
    run(&mut client, "update t set v = 'good' where id = 5000; update t set v = 'w' where id = 1");
    await_until(WORKING, "the other row to arrive", || counts(&bed) == (0, 1, 1));
    assert_eq!(rows(&bed.right, "select v from t where id = 1"), ["w"]);
    // And directly.
    bed.left.exec("select detach_sync('t', 'dst')");
    attach(&bed, "t", "{}");
    waits_behind(&bed, &mut client, "update t set id = 20000 where id = 5000", poison);
    goes_directly(&bed, &mut client, "update t set v = 'direct' where id < 10");
    let direct = rows(&bed.right, "select count(*) from t where v = 'direct'");
    assert_eq!(direct, ["9"], "delivered when the commit returned");

    bed.right.exec("alter table t drop constraint is_sound");
    assert!(retry(&bed, poison));
    await_until(WORKING, "all to arrive", || queued(&bed) == 0);
    same(&bed, "t");
}

#[test]
fn the_worker_does_not_try_what_is_set_aside() {
    let bed = preloaded_one_way("workalone", EAGER, COLUMNS, QUEUE);
    gate::build(&bed);
    gate::close(&bed, "bad", "23514", None);
    let mut client = bed.left.client();
    run(&mut client, "insert into t values (1, 'bad')");
    await_until(WORKING, "the poison to be set aside", || counts(&bed) == (0, 1, 0));
    // Rounds of the worker, each of which delivers something else.
    for n in 2..12 {
        run(&mut client, &format!("insert into t values ({n}, 'good')"));
        await_drained(&bed);
    }
    assert_eq!(rows(&bed.left, "select attempts, status from sync_err_rec"), ["1|failed"]);
    let status = "select pending, failed, waiting, consecutive_failures from sync_status";
    assert_eq!(rows(&bed.left, status), ["0|1|0|0"], "the server is well");
    assert_eq!(gate::passed(&bed).len(), 10);
}

#[test]
fn a_discarded_poison_needs_no_further_push() {
    let bed = preloaded_one_way("workdiscard", EAGER, COLUMNS, "{}");
    gate::build(&bed);
    let mut client = bed.left.client();
    run(&mut client, "insert into t values (1, 'a'), (2, 'b')");
    gate::passed(&bed);
    gate::close(&bed, "bad", "23514", None);
    run(&mut client, "update t set v = 'bad' where id = 1");
    await_until(WORKING, "the poison to be set aside", || counts(&bed) == (0, 1, 0));
    let poison = the_failed(&bed);
    waits_behind(&bed, &mut client, "update t set v = 'next' where id = 1", poison);
    waits_behind(&bed, &mut client, "update t set id = 3 where id = 1", poison);
    discard(&bed, poison);
    await_until(WORKING, "what waited to arrive", || queued(&bed) == 0);
    assert_eq!(gate::passed(&bed), ["1:next", "3:next"]);
    same(&bed, "t");
    goes_directly(&bed, &mut client, "update t set v = 'direct' where id = 3");
    same(&bed, "t");
}

#[test]
fn the_worker_goes_on_behind_a_retry_made_in_a_transaction_of_its_own() {
    let bed = preloaded_one_way("workretry", EAGER, COLUMNS, QUEUE);
    gate::build(&bed);
    gate::close(&bed, "bad", "23514", None);
    let mut client = bed.left.client();
    run(&mut client, "insert into t values (1, 'bad'), (2, 'bad'); update t set v = 'good'");
    await_until(WORKING, "two to be set aside", || counts(&bed) == (0, 2, 2));
    gate::open(&bed, "bad");
    for id in crate::set_aside::failed(&bed) {
        retry(&bed, id);
    }
    await_until(WORKING, "all to arrive", || queued(&bed) == 0);
    let mut passed = gate::passed(&bed);
    passed.sort();
    assert_eq!(passed, ["1:bad", "1:good", "2:bad", "2:good"], "{:?}", standing(&bed));
    same(&bed, "t");
}
