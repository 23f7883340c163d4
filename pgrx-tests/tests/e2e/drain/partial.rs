//! Drains that stop in the middle of what a transaction did.

use crate::support::common::{deal, one_way, queued, same};

/// One record at a time.
fn drain_one_by_one(fixture: &rowsync_harness::Fixture) {
    while queued(fixture) > 0 {
        assert!(deal(fixture, "1"));
    }
}

#[test]
fn records_drained_one_by_one_end_as_all_at_once() {
    let columns = "id int primary key, v text";
    let fixture = one_way("onebyone", columns, r#"{"mode": "queue"}"#);
    fixture.left.exec(
        "insert into t select i, 'v' || i from generate_series(5, 1, -1) i;
         begin; update t set id = id + 1; update t set v = v || id; delete from t where id = 3;
         insert into t values (3, 'again'); update t set id = 9 where id = 4; commit",
    );
    drain_one_by_one(&fixture);
    assert_eq!(same(&fixture, "t").len(), 5);
}

#[test]
fn keys_that_shift_by_one_command_arrive_though_drained_one_by_one() {
    let columns = "id int primary key deferrable, v text";
    let fixture = one_way("shiftone", columns, r#"{"mode": "queue"}"#);
    fixture
        .left
        .exec("insert into t select i, 'v' || i from generate_series(1, 5) i");
    fixture.left.exec("update t set id = id + 1");
    drain_one_by_one(&fixture);
    assert_eq!(same(&fixture, "t").len(), 5);
}

#[test]
fn keys_that_swap_by_one_command_arrive_though_drained_one_by_one() {
    let columns = "id int primary key deferrable, v text";
    let fixture = one_way("swapone", columns, r#"{"mode": "queue"}"#);
    fixture
        .left
        .exec("insert into t select i, 'v' || i from generate_series(1, 4) i");
    fixture
        .left
        .exec("update t set id = case id when 1 then 2 when 2 then 1 else id end");
    drain_one_by_one(&fixture);
    assert_eq!(same(&fixture, "t").len(), 4);
}
