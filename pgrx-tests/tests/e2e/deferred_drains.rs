//! What constraints that are checked at the end of a transaction make of a drain, and rows that change
//! places under a key that is: all of what belongs together goes, waits, or is set aside.

use rowsync_harness::{Proxy, Testbed};

use crate::common::{both_have, deal, linked, mirror, one_way, queued, rows, run, same, table};
use crate::gate;
use crate::set_aside::{counts, failed, retry, standing, the_failed, waits_behind};

const TREE: &str =
    "id int primary key, parent int references t deferrable initially deferred, v text";
const DEFERRABLE: &str = "id int primary key deferrable initially deferred, v text";
const QUEUE: &str = r#"{"mode": "queue"}"#;

/// A queued table of rows that name their parents. Row 0 is on the left only.
fn tree(label: &str) -> (Testbed, Proxy) {
    let bed = Testbed::new(label);
    let proxy = Proxy::start(bed.right.cluster.port()).expect("a proxy");
    bed.link_via(&proxy, &bed.left, &bed.right, "dst", &[]);
    for side in [&bed.left, &bed.right] {
        side.exec(&format!("create table t ({TREE})"));
    }
    bed.left.exec("insert into t values (0)");
    crate::common::attach(&bed, "t", QUEUE);
    (bed, proxy)
}

/// One transaction that inserts rows from..=to, every one before its parent, which is the next.
fn children_first(from: i32, to: i32) -> String {
    format!("insert into t select i, nullif(i + 1, {to} + 1) from generate_series({from}, {to}) i")
}

/// Only the rows that the left alone may have are missing on the right.
#[track_caller]
fn all_but(bed: &Testbed, missing: &str) {
    let left = rows(&bed.left, &format!("select * from t where id not in ({missing}) order by id"));
    let right = rows(&bed.right, "select * from t order by id");
    assert!(left == right, "{} rows of {}: {:?}", right.len(), left.len(), counts(bed));
}

#[test]
fn children_sent_before_their_parents_cost_a_few_exchanges() {
    for (label, limit) in [("whole", "100000"), ("limited", "100")] {
        let (bed, proxy) = tree(label);
        bed.left.exec(&children_first(1, 12_000));
        let before = proxy.exchanges();
        assert!(deal(&bed, limit), "{label}");
        let exchanges = proxy.exchanges() - before;
        all_but(&bed, "0");
        assert_eq!(queued(&bed), 0, "{label}");
        assert!(exchanges < 300, "{label}: {exchanges} exchanges");
    }
}

#[test]
fn a_record_that_breaks_a_constraint_in_the_end_is_the_only_one_set_aside() {
    for (label, limit) in [("whole", "100000"), ("limited", "100")] {
        let (bed, _proxy) = tree(label);
        bed.left.exec(&children_first(1, 2_000));
        bed.left.exec("insert into t values (9999, 0)");
        bed.left.exec(&children_first(10_001, 11_000));
        for _ in 0..50 {
            deal(&bed, limit);
            if counts(&bed) == (0, 1, 0) {
                break;
            }
        }
        assert_eq!(counts(&bed), (0, 1, 0), "{label}");
        let about = "select sqlstate, dst_query ~ '9999' from sync_err_rec";
        assert_eq!(rows(&bed.left, about), ["23503|t"], "{label}");
        all_but(&bed, "0, 9999");
        bed.right.exec("insert into t values (0)");
        assert!(retry(&bed, the_failed(&bed)), "{label}");
        assert_eq!(same(&bed, "t").len(), 3_002, "{label}");
    }
}

#[test]
fn of_a_transaction_the_one_row_to_blame_is_set_aside() {
    let (bed, _proxy) = tree("one");
    let mut client = bed.left.client();
    run(&mut client, "insert into t values (1, 2), (2, null)");
    run(&mut client, "begin; insert into t values (10, null), (11, 10), (50, 0), (12, 10)");
    run(&mut client, "insert into t values (13, 14), (14, 13); commit");
    run(&mut client, "insert into t values (100, null)");
    assert!(!deal(&bed, "1000"));
    assert_eq!(counts(&bed), (0, 1, 0), "{:?}", standing(&bed));
    all_but(&bed, "0, 50");
    bed.right.exec("insert into t values (0)");
    assert!(retry(&bed, the_failed(&bed)));
    same(&bed, "t");
}

#[test]
fn a_row_to_blame_among_many_that_need_each_other_holds_its_transaction_and_no_other() {
    let (bed, _proxy) = tree("chain");
    let mut client = bed.left.client();
    run(&mut client, &children_first(101, 130));
    run(&mut client, &format!("begin; {}; insert into t values (50, 0)", children_first(1, 40)));
    run(&mut client, &format!("{}; commit", children_first(60, 90)));
    run(&mut client, &children_first(131, 160));
    assert!(!deal(&bed, "1000"));
    let arrived = "select count(*), min(id), max(id) from t";
    assert_eq!(rows(&bed.right, arrived), ["60|101|160"], "{:?}", standing(&bed));
    bed.right.exec("insert into t values (0)");
    assert!(retry(&bed, the_failed(&bed)));
    assert_eq!(queued(&bed), 0);
    same(&bed, "t");
}

#[test]
fn a_transaction_with_many_rows_to_blame_is_set_aside_whole_and_arrives_whole() {
    let (bed, _proxy) = tree("many");
    let mut client = bed.left.client();
    run(&mut client, "insert into t values (1, null)");
    run(&mut client, "begin; insert into t select i, 0 from generate_series(10, 30) i");
    run(&mut client, "insert into t values (31, null), (32, 31); commit");
    run(&mut client, "insert into t values (50, 51), (51, null)");
    run(&mut client, "update t set v = 'later' where id = 32");
    assert!(!deal(&bed, "1000"));
    let arrived = "select string_agg(id::text, ' ' order by id) from t";
    assert_eq!(rows(&bed.right, arrived), ["1 50 51"], "{:?}", standing(&bed));
    let poison = the_failed(&bed);
    assert_eq!(counts(&bed), (0, 1, 23));
    for limit in ["1000", "1"] {
        assert!(!deal(&bed, limit));
        assert_eq!(counts(&bed), (0, 1, 23), "{limit}");
    }
    bed.right.exec("insert into t values (0)");
    assert!(retry(&bed, poison), "{:?}", standing(&bed));
    assert_eq!(queued(&bed), 0);
    same(&bed, "t");
}

#[test]
fn moves_of_two_commands_stay_two_when_a_limit_parts_them() {
    for limit in ["1", "2", "3", "4", "100"] {
        let (bed, _proxy) = tree("moves");
        mirror(&bed, "m", "id int primary key, v text", QUEUE);
        bed.left.exec("insert into m values (1, 'one')");
        assert!(deal(&bed, "100"));
        let mut client = bed.left.client();
        run(&mut client, "begin; update m set id = 2 where id = 1; insert into t values (1, 2)");
        run(&mut client, "update m set id = 3 where id = 2; insert into t values (2, null)");
        run(&mut client, "update m set id = 4 where id = 3; commit");
        while queued(&bed) > 0 {
            assert!(deal(&bed, limit), "{limit}");
        }
        both_have(&bed, "m", &["4|one"]);
        all_but(&bed, "0");
    }
}

/// Rows 1 to 4 on both sides under a key that is checked at the end, and a gate before the right one.
fn places(label: &str) -> Testbed {
    let bed = one_way(label, DEFERRABLE, "{}");
    bed.left.exec("insert into t values (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd')");
    gate::build(&bed);
    bed
}

#[test]
fn rows_that_change_places_with_one_that_waits_all_wait() {
    let bed = places("rotate");
    gate::close(&bed, "bad", "23514", None);
    let mut client = bed.left.client();
    run(&mut client, "update t set v = 'bad' where id = 3");
    assert!(!deal(&bed, "100"));
    let poison = the_failed(&bed);
    waits_behind(&bed, &mut client, "update t set id = id % 3 + 1 where id < 4", poison);
    assert!(!deal(&bed, "100"));
    assert_eq!(counts(&bed), (0, 1, 3));
    assert_eq!(table(&bed.right, "t"), ["1|a", "2|b", "3|c", "4|d"]);
    gate::open(&bed, "bad");
    assert!(retry(&bed, poison));
    both_have(&bed, "t", &["1|bad", "2|a", "3|b", "4|d"]);
    assert_eq!(queued(&bed), 0);
}

#[test]
fn rows_that_change_places_wait_for_all_that_one_of_them_waits_for() {
    let bed = places("roots");
    let mut client = bed.left.client();
    for (id, value) in [(1, "bad"), (3, "worse")] {
        gate::close(&bed, value, "23514", None);
        run(&mut client, &format!("update t set v = '{value}' where id = {id}"));
    }
    assert!(!deal(&bed, "100"));
    let poisons = failed(&bed);
    assert_eq!(poisons.len(), 2);
    waits_behind(&bed, &mut client, "update t set id = 5 - id", poisons[0]);
    gate::open(&bed, "bad");
    assert!(retry(&bed, poisons[0]), "{:?}", standing(&bed));
    deal(&bed, "100");
    assert_eq!(table(&bed.right, "t"), ["1|bad", "2|b", "3|c", "4|d"], "{:?}", standing(&bed));
    assert_eq!(counts(&bed), (0, 1, 4));
    gate::open(&bed, "worse");
    assert!(retry(&bed, poisons[1]), "{:?}", standing(&bed));
    both_have(&bed, "t", &["1|d", "2|worse", "3|b", "4|bad"]);
}

#[test]
fn tables_truncated_together_wait_together() {
    let bed = linked("truncated");
    mirror(&bed, "p", "id int primary key", "{}");
    mirror(&bed, "t", "id int primary key references p, v text", "{}");
    mirror(&bed, "free", "id int primary key", "{}");
    gate::build(&bed);
    let mut client = bed.left.client();
    run(&mut client, "insert into p values (1), (2); insert into free values (1)");
    run(&mut client, "insert into t values (1, 'a')");
    gate::close(&bed, "bad", "23514", None);
    run(&mut client, "update t set v = 'bad'");
    assert!(!deal(&bed, "100"));
    let poison = the_failed(&bed);
    waits_behind(&bed, &mut client, "truncate p, free, t", poison);
    run(&mut client, "insert into p values (7)");
    assert!(!deal(&bed, "100"));
    assert_eq!(table(&bed.right, "p"), ["1", "2"], "{:?}", standing(&bed));
    assert_eq!(table(&bed.right, "t"), ["1|a"]);
    assert_eq!(counts(&bed), (0, 1, 4), "{:?}", standing(&bed));
    gate::open(&bed, "bad");
    assert!(retry(&bed, poison), "{:?}", standing(&bed));
    both_have(&bed, "p", &["7"]);
    both_have(&bed, "t", &[]);
    both_have(&bed, "free", &[]);
    assert_eq!(queued(&bed), 0);
}
