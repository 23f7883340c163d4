//! A change that can never be applied: what depends on it waits behind it, everything else flows,
//! and an operator has two ways out.

use std::time::Instant;

use postgres::Client;
use rowsync_harness::Fixture;

use crate::support::common::{
    attach, deal, mirror, one_way, outage, queued, records, recover, rows, run, same, table,
};
use crate::support::failed::{
    counts, discard, failed, goes_directly, ids, retry, standing, the_failed, waits_behind,
};
use crate::support::reject_values;

const COLUMNS: &str = "id int primary key, v text";
const QUEUE: &str = r#"{"mode": "queue"}"#;

/// A gated table `t` with rows 1 to 9 on both sides, whose changes are delivered at commit.
fn gated(label: &str) -> (Fixture, Client) {
    let fixture = one_way(label, COLUMNS, "{}");
    reject_values::build(&fixture);
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t select i, 'old' from generate_series(1, 9) i",
    );
    reject_values::passed(&fixture);
    (fixture, client)
}

/// Refuses a value there, writes it here, and marks the change failed.
fn failing(fixture: &Fixture, client: &mut Client, value: &str, sql: &str) -> i64 {
    reject_values::close(fixture, value, "23514", Some("is_sound"));
    let before = failed(fixture);
    run(client, sql);
    assert!(!deal(fixture, "1000"));
    let new: Vec<_> = failed(fixture)
        .into_iter()
        .filter(|id| !before.contains(id))
        .collect();
    assert_eq!(new.len(), 1, "{:?}", standing(fixture));
    new[0]
}

#[test]
fn one_change_among_ten_thousand_keeps_only_its_own_row_waiting() {
    let fixture = one_way("failing", COLUMNS, "{}");
    fixture
        .right
        .exec("alter table t add constraint is_sound check (v <> 'bad')");
    let mut client = fixture.left.client();
    outage(&fixture.right);
    run(
        &mut client,
        "insert into t select i, case i when 5000 then 'bad' else 'v' || i end
           from generate_series(1, 10000) i",
    );
    recover(&fixture.right);
    let start = Instant::now();
    assert!(!deal(&fixture, "20000"));
    println!(
        "10,000 records with one failing record: {:?}",
        start.elapsed()
    );
    assert_eq!(
        fixture
            .right
            .query_one::<i64>(&format!("select count(*) from {}.t", fixture.right.user)),
        9_999
    );
    let failing = the_failed(&fixture);
    let why = rows(
        &fixture.left,
        "select op, status, sqlstate, constraint_name, waits_for, dst_query like '%bad%', message
           from sync_err_rec",
    );
    assert_eq!(why.len(), 1, "{why:?}");
    assert!(
        why[0].starts_with("INSERT|failed|23514|is_sound|~|t|"),
        "{why:?}"
    );
    assert!(
        why[0].contains("violates check constraint \"is_sound\""),
        "{why:?}"
    );

    // What touches the row, under whatever key it goes by, waits; also in transactions of others.
    waits_behind(
        &fixture,
        &mut client,
        "update t set v = 'good' where id = 5000",
        failing,
    );
    waits_behind(
        &fixture,
        &mut client,
        "update t set id = 20001 where id = 5000",
        failing,
    );
    let mut other = fixture.left.client();
    waits_behind(
        &fixture,
        &mut other,
        "update t set v = 'moved' where id = 20001",
        failing,
    );
    waits_behind(
        &fixture,
        &mut other,
        "insert into t values (5000, 'again')",
        failing,
    );
    waits_behind(
        &fixture,
        &mut client,
        "delete from t where id = 5000",
        failing,
    );
    waits_behind(
        &fixture,
        &mut client,
        "update t set id = 20002 where id = 20001",
        failing,
    );
    waits_behind(
        &fixture,
        &mut client,
        "insert into t values (20001, 'new')",
        failing,
    );
    assert_eq!(counts(&fixture), (0, 1, 7));
    // All the rest goes straight through.
    for sql in [
        "update t set v = 'direct' where id between 4990 and 4999",
        "delete from t where id = 5001",
        "insert into t values (30000, 'direct')",
        "update t set id = 5001 where id = 30000",
    ] {
        goes_directly(&fixture, &mut client, sql);
    }
    let differ = |side| {
        rows(
            side,
            "select id, v from t where id > 20000 or id = 5000 order by id",
        )
    };
    assert_eq!(
        differ(&fixture.right),
        [""; 0],
        "something passed the failing record"
    );
    assert_eq!(differ(&fixture.left), ["20001|new", "20002|moved"]);
    let others = "select md5(string_agg(t::text, ',' order by id)) from t
                   where id <= 20000 and id <> 5000";
    assert_eq!(rows(&fixture.left, others), rows(&fixture.right, others));

    fixture.right.exec("alter table t drop constraint is_sound");
    assert!(retry(&fixture, failing));
    assert_eq!(queued(&fixture), 0);
    same(&fixture, "t");
    goes_directly(
        &fixture,
        &mut client,
        "update t set v = 'direct' where id = 20001",
    );
    same(&fixture, "t");
}

#[test]
fn what_waited_arrives_in_its_order() {
    let (fixture, mut client) = gated("inorder");
    let failing = failing(
        &fixture,
        &mut client,
        "bad",
        "update t set v = 'bad' where id = 5",
    );
    for sql in [
        "update t set v = 'second' where id = 5",
        "delete from t where id = 5",
        "insert into t values (5, 'third')",
        "update t set id = 50, v = 'fourth' where id = 5",
        "update t set v = 'fifth' where id = 50",
    ] {
        waits_behind(&fixture, &mut client, sql, failing);
    }
    goes_directly(
        &fixture,
        &mut client,
        "update t set v = 'direct' where id = 6",
    );
    assert_eq!(reject_values::passed(&fixture), ["6:direct"]);
    reject_values::open(&fixture, "bad");
    assert!(retry(&fixture, failing));
    let expected = [
        "5:bad",
        "5:second",
        "-5",
        "5:third",
        "50:fourth",
        "50:fifth",
    ];
    assert_eq!(reject_values::passed(&fixture), expected);
    same(&fixture, "t");
}

#[test]
fn a_retry_that_fails_again_lets_nothing_pass() {
    let (fixture, mut client) = gated("again");
    let failing = failing(
        &fixture,
        &mut client,
        "bad",
        "update t set v = 'bad' where id = 5",
    );
    waits_behind(
        &fixture,
        &mut client,
        "update t set v = 'next' where id = 5",
        failing,
    );
    let attempts = || {
        rows(
            &fixture.left,
            "select attempts, status from sync_err_rec order by id",
        )
    };
    let before: i32 = attempts()[0]
        .split('|')
        .next()
        .expect("a number")
        .parse()
        .expect("a number");
    for n in 1..=2 {
        assert!(!retry(&fixture, failing));
        assert_eq!(
            attempts(),
            [format!("{}|failed", before + n), "0|waiting".to_owned()]
        );
    }
    // A drain that has nothing else to do tries it as well.
    assert!(!deal(&fixture, "100"));
    assert_eq!(
        attempts(),
        [format!("{}|failed", before + 3), "0|waiting".to_owned()]
    );
    assert_eq!(reject_values::passed(&fixture), [""; 0]);
    reject_values::open(&fixture, "bad");
    assert!(deal(&fixture, "100"));
    assert_eq!(reject_values::passed(&fixture), ["5:bad", "5:next"]);
    same(&fixture, "t");
}

#[test]
fn a_discarded_change_releases_what_waits_behind_it() {
    let (fixture, mut client) = gated("released");
    let failing = failing(
        &fixture,
        &mut client,
        "bad",
        "update t set v = 'bad' where id = 5",
    );
    waits_behind(
        &fixture,
        &mut client,
        "update t set v = 'next' where id = 5",
        failing,
    );
    waits_behind(
        &fixture,
        &mut client,
        "update t set id = 50 where id = 5",
        failing,
    );
    discard(&fixture, failing);
    // Not delivered yet, so what is newer still must not pass it.
    run(&mut client, "update t set v = 'last' where id = 50");
    assert_eq!(reject_values::passed(&fixture), [""; 0]);
    assert_eq!(queued(&fixture), 3);
    assert!(deal(&fixture, "100"), "{:?}", standing(&fixture));
    assert_eq!(
        reject_values::passed(&fixture),
        ["5:next", "50:next", "50:last"]
    );
    same(&fixture, "t");
    assert_eq!(queued(&fixture), 0);
    goes_directly(
        &fixture,
        &mut client,
        "update t set v = 'direct' where id = 50",
    );
    same(&fixture, "t");
}

#[test]
fn discarding_one_that_waits_leaves_the_others_waiting() {
    let (fixture, mut client) = gated("middle");
    let failing = failing(
        &fixture,
        &mut client,
        "bad",
        "update t set v = 'bad' where id = 5",
    );
    waits_behind(
        &fixture,
        &mut client,
        "update t set v = 'next' where id = 5",
        failing,
    );
    waits_behind(
        &fixture,
        &mut client,
        "update t set id = 50 where id = 5",
        failing,
    );
    discard(&fixture, ids(&fixture, "status = 'waiting'")[0]);
    waits_behind(
        &fixture,
        &mut client,
        "update t set v = 'last' where id = 50",
        failing,
    );
    assert!(!deal(&fixture, "100"));
    assert_eq!(reject_values::passed(&fixture), [""; 0]);
    reject_values::open(&fixture, "bad");
    assert!(retry(&fixture, failing));
    same(&fixture, "t");
}

#[test]
fn what_waits_behind_two_waits_for_both() {
    for discards in [false, true] {
        let (fixture, mut client) = gated("both");
        let a = failing(
            &fixture,
            &mut client,
            "bad a",
            "update t set v = 'bad a' where id = 1",
        );
        let b = failing(
            &fixture,
            &mut client,
            "bad b",
            "update t set v = 'bad b' where id = 2",
        );
        waits_behind(
            &fixture,
            &mut client,
            "update t set v = 'a2' where id = 1",
            a,
        );
        waits_behind(&fixture, &mut client, "delete from t where id = 2", b);
        // Of both: it leaves the one key and takes the other.
        let before = crate::support::failed::ever_queued(&fixture);
        run(&mut client, "update t set id = 2 where id = 1");
        run(&mut client, "update t set v = 'a3' where id = 2");
        run(&mut client, "insert into t values (1, 'new')");
        assert_eq!(
            ids(&fixture, &format!("id > {before} and status = 'waiting'")).len(),
            3
        );
        if discards {
            discard(&fixture, a);
            assert!(!deal(&fixture, "100"));
        } else {
            reject_values::open(&fixture, "bad a");
            retry(&fixture, a);
        }
        let first: &[&str] = if discards {
            &["1:a2"]
        } else {
            &["1:bad a", "1:a2"]
        };
        assert_eq!(
            reject_values::passed(&fixture),
            first,
            "{:?}",
            standing(&fixture)
        );
        assert_eq!(the_failed(&fixture), b);
        let behind = |op: &str| format!("{op}|waiting|{b}");
        let expected = [
            "UPDATE|failed|~".to_owned(),
            behind("DELETE"),
            behind("UPDATE"),
            behind("UPDATE"),
            behind("INSERT"),
        ];
        assert_eq!(standing(&fixture), expected);
        reject_values::open(&fixture, "bad b");
        assert!(retry(&fixture, b));
        same(&fixture, "t");
        assert_eq!(queued(&fixture), 0);
    }
}

#[test]
fn a_second_failing_on_the_same_row_is_met_when_its_turn_comes() {
    let (fixture, mut client) = gated("second");
    let a = failing(
        &fixture,
        &mut client,
        "bad a",
        "update t set v = 'bad a' where id = 1",
    );
    reject_values::close(&fixture, "bad b", "22001", None);
    waits_behind(
        &fixture,
        &mut client,
        "update t set v = 'bad b' where id = 1",
        a,
    );
    waits_behind(
        &fixture,
        &mut client,
        "update t set v = 'last' where id = 1",
        a,
    );
    reject_values::open(&fixture, "bad a");
    assert!(!retry(&fixture, a), "the second one fails");
    assert_eq!(reject_values::passed(&fixture), ["1:bad a"]);
    let b = the_failed(&fixture);
    assert_eq!(records(&fixture)[0], "UPDATE|22001|1|failed");
    assert_eq!(
        standing(&fixture),
        ["UPDATE|failed|~".to_owned(), format!("UPDATE|waiting|{b}")]
    );
    waits_behind(&fixture, &mut client, "delete from t where id = 1", b);
    reject_values::open(&fixture, "bad b");
    assert!(retry(&fixture, b));
    assert_eq!(reject_values::passed(&fixture), ["1:bad b", "1:last", "-1"]);
    same(&fixture, "t");
}

#[test]
fn a_transaction_that_waits_in_part_overtakes_nothing() {
    let (fixture, mut client) = gated("part");
    let failing = failing(
        &fixture,
        &mut client,
        "bad",
        "update t set v = 'bad' where id = 5",
    );
    run(
        &mut client,
        "begin; update t set v = 'first' where id = 4; update t set v = 'next' where id = 5;
         insert into t values (10, 'first'); commit",
    );
    // Whether or not the other rows' changes had to be queued, nothing of the row may be there.
    run(&mut client, "update t set v = 'second' where id in (4, 10)");
    deal(&fixture, "100");
    let first: Vec<_> = reject_values::passed(&fixture)
        .into_iter()
        .filter(|change| !change.starts_with("5:"))
        .collect();
    assert_eq!(first, ["4:first", "10:first", "4:second", "10:second"]);
    assert_eq!(
        standing(&fixture),
        [
            "UPDATE|failed|~".to_owned(),
            format!("UPDATE|waiting|{failing}")
        ]
    );
    reject_values::open(&fixture, "bad");
    assert!(retry(&fixture, failing));
    same(&fixture, "t");
}

#[test]
fn sync_fails_for_a_row_that_waits_and_for_no_other() {
    let fixture = one_way("syncwait", COLUMNS, QUEUE);
    reject_values::build(&fixture);
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a'), (2, 'b')");
    assert!(deal(&fixture, "100"));
    let failing = failing(
        &fixture,
        &mut client,
        "bad",
        "update t set v = 'bad' where id = 1",
    );
    fixture.left.exec("select detach_sync('t', 'dst')");
    attach(&fixture, "t", r#"{"mode": "sync"}"#);
    for sql in [
        "update t set v = 'x' where id = 1",
        "delete from t where id = 1",
        "update t set id = 7 where id = 1",
        "update t set v = 'x'",
        "truncate t",
        "begin; insert into t values (8, 'h'); delete from t where id = 1; commit",
    ] {
        let before = table(&fixture.left, "t");
        crate::support::common::refused(&mut client, sql, "55000");
        let _ = client.batch_execute("rollback");
        assert_eq!(table(&fixture.left, "t"), before, "{sql}");
    }
    goes_directly(
        &fixture,
        &mut client,
        "update t set v = 'sync' where id = 2",
    );
    goes_directly(&fixture, &mut client, "insert into t values (3, 'sync')");
    assert_eq!(table(&fixture.right, "t"), ["1|a", "2|sync", "3|sync"]);
    assert_eq!(standing(&fixture), ["UPDATE|failed|~"]);
    reject_values::open(&fixture, "bad");
    assert!(retry(&fixture, failing));
    same(&fixture, "t");
    goes_directly(
        &fixture,
        &mut client,
        "update t set v = 'sync' where id = 1",
    );
    same(&fixture, "t");
}

#[test]
fn a_prepared_transaction_waits_like_any_other() {
    let (fixture, mut client) = gated("prepared");
    let failing = failing(
        &fixture,
        &mut client,
        "bad",
        "update t set v = 'bad' where id = 5",
    );
    let gid = fixture.left.db.clone();
    run(
        &mut client,
        &format!(
            "begin; update t set v = 'prepared' where id = 5; update t set v = 'prepared' where id = 6;
             prepare transaction '{gid}'"
        ),
    );
    run(&mut client, &format!("commit prepared '{gid}'"));
    run(&mut client, "update t set v = 'last' where id in (5, 6)");
    deal(&fixture, "100");
    assert_eq!(reject_values::passed(&fixture), ["6:prepared", "6:last"]);
    let waiting = format!("UPDATE|waiting|{failing}");
    assert_eq!(standing(&fixture), ["UPDATE|failed|~", &waiting, &waiting]);
    reject_values::open(&fixture, "bad");
    assert!(retry(&fixture, failing));
    assert_eq!(
        reject_values::passed(&fixture),
        ["5:bad", "5:prepared", "5:last"]
    );
    same(&fixture, "t");
}

#[test]
fn three_hundred_failures_among_a_thousand_keep_no_other_waiting() {
    let fixture = one_way("many", COLUMNS, QUEUE);
    fixture
        .right
        .exec("alter table t add constraint is_sound check (v <> 'bad')");
    fixture.left.exec(
        "insert into t select i, case when i % 10 < 3 then 'bad' else 'v' end
           from generate_series(1, 1000) i",
    );
    let start = Instant::now();
    let mut calls = 0;
    while counts(&fixture).0 > 0 {
        assert!(!deal(&fixture, "1000"));
        calls += 1;
        assert!(calls <= 20, "{:?} after {calls} calls", counts(&fixture));
    }
    let elapsed = start.elapsed();
    println!("300 failing records among 1,000 records: {calls} calls, {elapsed:?}");
    assert!(elapsed.as_secs() < 60, "{elapsed:?}");
    assert_eq!(counts(&fixture), (0, 300, 0));
    assert_eq!(table(&fixture.right, "t").len(), 700);
    fixture.right.exec("alter table t drop constraint is_sound");
    while queued(&fixture) > 0 {
        assert!(deal(&fixture, "1000"), "{:?}", standing(&fixture));
        calls += 1;
        assert!(calls <= 40, "{:?} after {calls} calls", counts(&fixture));
    }
    same(&fixture, "t");
}

#[test]
fn another_table_of_the_same_server_is_not_concerned() {
    let (fixture, mut client) = gated("another");
    mirror(&fixture, "u", COLUMNS, "{}");
    let failing = failing(
        &fixture,
        &mut client,
        "bad",
        "update t set v = 'bad' where id = 5",
    );
    // The same key, but of another table.
    goes_directly(&fixture, &mut client, "insert into u values (5, 'a')");
    goes_directly(
        &fixture,
        &mut client,
        "update u set v = 'b'; truncate u; insert into u values (5, 'c')",
    );
    assert_eq!(same(&fixture, "u"), ["5|c"]);
    discard(&fixture, failing);
    assert_eq!(queued(&fixture), 0);
}
