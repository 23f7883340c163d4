//! What constraints that are checked at the end of a transaction make of a drain, and rows that change
//! places under a key that is: all of what belongs together goes, waits, or is marked failed.

use rowsync_harness::{Fixture, Proxy};

use crate::support::common::{
    both_have, deal, linked, mirror, one_way, queued, rows, run, same, table,
};
use crate::support::failed::{counts, failed, retry, standing, the_failed, waits_behind};
use crate::support::reject_values;

const TREE: &str =
    "id int primary key, parent int references t deferrable initially deferred, v text";
const DEFERRABLE: &str = "id int primary key deferrable initially deferred, v text";
const QUEUE: &str = r#"{"mode": "queue"}"#;

/// A queued table of rows that name their parents. Row 0 is on the left only.
fn tree(label: &str) -> (Fixture, Proxy) {
    let fixture = Fixture::new(label);
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table t ({TREE})"));
    }
    fixture.left.exec("insert into t values (0)");
    crate::support::common::attach(&fixture, "t", QUEUE);
    (fixture, proxy)
}

/// One transaction that inserts rows from..=to, every one before its parent, which is the next.
fn children_first(from: i32, to: i32) -> String {
    format!("insert into t select i, nullif(i + 1, {to} + 1) from generate_series({from}, {to}) i")
}

/// Only the rows that the left alone may have are missing on the right.
#[track_caller]
fn all_but(fixture: &Fixture, missing: &str) {
    let left = rows(
        &fixture.left,
        &format!("select * from t where id not in ({missing}) order by id"),
    );
    let right = rows(&fixture.right, "select * from t order by id");
    assert!(
        left == right,
        "{} rows of {}: {:?}",
        right.len(),
        left.len(),
        counts(fixture)
    );
}

#[test]
fn children_sent_before_their_parents_cost_a_few_exchanges() {
    for (label, limit) in [("whole", "100000"), ("limited", "100")] {
        let (fixture, proxy) = tree(label);
        fixture.left.exec(&children_first(1, 12_000));
        let before = proxy.exchanges();
        assert!(deal(&fixture, limit), "{label}");
        let exchanges = proxy.exchanges() - before;
        all_but(&fixture, "0");
        assert_eq!(queued(&fixture), 0, "{label}");
        assert!(exchanges < 300, "{label}: {exchanges} exchanges");
    }
}

#[test]
fn a_record_that_breaks_a_constraint_in_the_end_is_the_only_one_failed() {
    for (label, limit) in [("whole", "100000"), ("limited", "100")] {
        let (fixture, _proxy) = tree(label);
        fixture.left.exec(&children_first(1, 2_000));
        fixture.left.exec("insert into t values (9999, 0)");
        fixture.left.exec(&children_first(10_001, 11_000));
        for _ in 0..50 {
            deal(&fixture, limit);
            if counts(&fixture) == (0, 1, 0) {
                break;
            }
        }
        assert_eq!(counts(&fixture), (0, 1, 0), "{label}");
        let about = "select sqlstate, dst_query ~ '9999' from sync_err_rec";
        assert_eq!(rows(&fixture.left, about), ["23503|t"], "{label}");
        all_but(&fixture, "0, 9999");
        fixture.right.exec("insert into t values (0)");
        assert!(retry(&fixture, the_failed(&fixture)), "{label}");
        assert_eq!(same(&fixture, "t").len(), 3_002, "{label}");
    }
}

#[test]
fn of_a_transaction_the_one_row_to_blame_is_failed() {
    let (fixture, _proxy) = tree("one");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 2), (2, null)");
    run(
        &mut client,
        "begin; insert into t values (10, null), (11, 10), (50, 0), (12, 10)",
    );
    run(
        &mut client,
        "insert into t values (13, 14), (14, 13); commit",
    );
    run(&mut client, "insert into t values (100, null)");
    assert!(!deal(&fixture, "1000"));
    assert_eq!(counts(&fixture), (0, 1, 0), "{:?}", standing(&fixture));
    all_but(&fixture, "0, 50");
    fixture.right.exec("insert into t values (0)");
    assert!(retry(&fixture, the_failed(&fixture)));
    same(&fixture, "t");
}

#[test]
fn a_row_to_blame_among_many_that_need_each_other_holds_its_transaction_and_no_other() {
    let (fixture, _proxy) = tree("chain");
    let mut client = fixture.left.client();
    run(&mut client, &children_first(101, 130));
    run(
        &mut client,
        &format!(
            "begin; {}; insert into t values (50, 0)",
            children_first(1, 40)
        ),
    );
    run(&mut client, &format!("{}; commit", children_first(60, 90)));
    run(&mut client, &children_first(131, 160));
    assert!(!deal(&fixture, "1000"));
    let arrived = "select count(*), min(id), max(id) from t";
    assert_eq!(
        rows(&fixture.right, arrived),
        ["60|101|160"],
        "{:?}",
        standing(&fixture)
    );
    fixture.right.exec("insert into t values (0)");
    assert!(retry(&fixture, the_failed(&fixture)));
    assert_eq!(queued(&fixture), 0);
    same(&fixture, "t");
}

#[test]
fn a_transaction_with_many_rows_to_blame_is_failed_whole_and_arrives_whole() {
    let (fixture, _proxy) = tree("many");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, null)");
    run(
        &mut client,
        "begin; insert into t select i, 0 from generate_series(10, 30) i",
    );
    run(
        &mut client,
        "insert into t values (31, null), (32, 31); commit",
    );
    run(&mut client, "insert into t values (50, 51), (51, null)");
    run(&mut client, "update t set v = 'later' where id = 32");
    assert!(!deal(&fixture, "1000"));
    let arrived = "select string_agg(id::text, ' ' order by id) from t";
    assert_eq!(
        rows(&fixture.right, arrived),
        ["1 50 51"],
        "{:?}",
        standing(&fixture)
    );
    let failing = the_failed(&fixture);
    assert_eq!(counts(&fixture), (0, 1, 23));
    for limit in ["1000", "1"] {
        assert!(!deal(&fixture, limit));
        assert_eq!(counts(&fixture), (0, 1, 23), "{limit}");
    }
    fixture.right.exec("insert into t values (0)");
    assert!(retry(&fixture, failing), "{:?}", standing(&fixture));
    assert_eq!(queued(&fixture), 0);
    same(&fixture, "t");
}

#[test]
fn moves_of_two_commands_stay_two_when_a_limit_parts_them() {
    for limit in ["1", "2", "3", "4", "100"] {
        let (fixture, _proxy) = tree("moves");
        mirror(&fixture, "m", "id int primary key, v text", QUEUE);
        fixture.left.exec("insert into m values (1, 'one')");
        assert!(deal(&fixture, "100"));
        let mut client = fixture.left.client();
        run(
            &mut client,
            "begin; update m set id = 2 where id = 1; insert into t values (1, 2)",
        );
        run(
            &mut client,
            "update m set id = 3 where id = 2; insert into t values (2, null)",
        );
        run(&mut client, "update m set id = 4 where id = 3; commit");
        while queued(&fixture) > 0 {
            assert!(deal(&fixture, limit), "{limit}");
        }
        both_have(&fixture, "m", &["4|one"]);
        all_but(&fixture, "0");
    }
}

/// Rows 1 to 4 on both sides under a key that is checked at the end, and a gate before the right one.
fn places(label: &str) -> Fixture {
    let fixture = one_way(label, DEFERRABLE, "{}");
    fixture
        .left
        .exec("insert into t values (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd')");
    reject_values::build(&fixture);
    fixture
}

#[test]
fn rows_that_change_places_with_one_that_waits_all_wait() {
    let fixture = places("rotate");
    reject_values::close(&fixture, "bad", "23514", None);
    let mut client = fixture.left.client();
    run(&mut client, "update t set v = 'bad' where id = 3");
    assert!(!deal(&fixture, "100"));
    let failing = the_failed(&fixture);
    waits_behind(
        &fixture,
        &mut client,
        "update t set id = id % 3 + 1 where id < 4",
        failing,
    );
    assert!(!deal(&fixture, "100"));
    assert_eq!(counts(&fixture), (0, 1, 3));
    assert_eq!(table(&fixture.right, "t"), ["1|a", "2|b", "3|c", "4|d"]);
    reject_values::open(&fixture, "bad");
    assert!(retry(&fixture, failing));
    both_have(&fixture, "t", &["1|bad", "2|a", "3|b", "4|d"]);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn rows_that_change_places_wait_for_all_that_one_of_them_waits_for() {
    let fixture = places("roots");
    let mut client = fixture.left.client();
    for (id, value) in [(1, "bad"), (3, "worse")] {
        reject_values::close(&fixture, value, "23514", None);
        run(
            &mut client,
            &format!("update t set v = '{value}' where id = {id}"),
        );
    }
    assert!(!deal(&fixture, "100"));
    let failures = failed(&fixture);
    assert_eq!(failures.len(), 2);
    waits_behind(
        &fixture,
        &mut client,
        "update t set id = 5 - id",
        failures[0],
    );
    reject_values::open(&fixture, "bad");
    assert!(retry(&fixture, failures[0]), "{:?}", standing(&fixture));
    deal(&fixture, "100");
    assert_eq!(
        table(&fixture.right, "t"),
        ["1|bad", "2|b", "3|c", "4|d"],
        "{:?}",
        standing(&fixture)
    );
    assert_eq!(counts(&fixture), (0, 1, 4));
    reject_values::open(&fixture, "worse");
    assert!(retry(&fixture, failures[1]), "{:?}", standing(&fixture));
    both_have(&fixture, "t", &["1|d", "2|worse", "3|b", "4|bad"]);
}

#[test]
fn tables_truncated_together_wait_together() {
    let fixture = linked("truncated");
    mirror(&fixture, "p", "id int primary key", "{}");
    mirror(
        &fixture,
        "t",
        "id int primary key references p, v text",
        "{}",
    );
    mirror(&fixture, "free", "id int primary key", "{}");
    reject_values::build(&fixture);
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into p values (1), (2); insert into free values (1)",
    );
    run(&mut client, "insert into t values (1, 'a')");
    reject_values::close(&fixture, "bad", "23514", None);
    run(&mut client, "update t set v = 'bad'");
    assert!(!deal(&fixture, "100"));
    let failing = the_failed(&fixture);
    waits_behind(&fixture, &mut client, "truncate p, free, t", failing);
    run(&mut client, "insert into p values (7)");
    assert!(!deal(&fixture, "100"));
    assert_eq!(
        table(&fixture.right, "p"),
        ["1", "2"],
        "{:?}",
        standing(&fixture)
    );
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    assert_eq!(counts(&fixture), (0, 1, 4), "{:?}", standing(&fixture));
    reject_values::open(&fixture, "bad");
    assert!(retry(&fixture, failing), "{:?}", standing(&fixture));
    both_have(&fixture, "p", &["7"]);
    both_have(&fixture, "t", &[]);
    both_have(&fixture, "free", &[]);
    assert_eq!(queued(&fixture), 0);
}
