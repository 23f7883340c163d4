//! Rows that take each other's keys in one statement: they move, with all they have, and do not change their
//! values for each other's.

use rowsync_harness::Fixture;

use crate::support::common::{attach, deal, linked, queued, records, rows, run, same};

const SYNC: &str = r#"{"mode": "sync"}"#;
const MODES: [(&str, &str); 2] = [("sync", SYNC), ("queue", r#"{"mode": "queue"}"#)];

/// A list here, and there with a column of its own.
fn list(label: &str, columns: &str, options: &str) -> Fixture {
    let fixture = linked(label);
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table t ({columns})"));
    }
    attach(&fixture, "t", options);
    fixture.right.exec("alter table t add own text");
    fixture
}

#[track_caller]
fn drain(fixture: &Fixture) {
    deal(fixture, "100000");
    assert_eq!(queued(fixture), 0, "{:?}", records(fixture));
}

/// The rows that both sides have, and the column of the right's own.
#[track_caller]
fn arrived(fixture: &Fixture, expected: &[&str]) {
    let left = rows(&fixture.left, "select pos, item from t order by pos");
    assert_eq!(
        left,
        rows(&fixture.right, "select pos, item from t order by pos")
    );
    assert_eq!(
        rows(&fixture.right, "select pos, item, own from t order by pos"),
        expected
    );
}

#[test]
fn rows_that_swap_keys_beside_a_second_unique_column_move_whole() {
    for (mode, options) in MODES {
        for (label, columns) in [
            (
                "exact",
                "pos int primary key deferrable, item int not null unique",
            ),
            (
                "inexact",
                "pos numeric primary key deferrable, item int not null unique",
            ),
        ] {
            let fixture = list(&format!("swap_{label}_{mode}"), columns, options);
            fixture
                .left
                .exec("insert into t values (1, 100), (2, 200), (3, 300), (4, 400)");
            drain(&fixture);
            fixture.right.exec("update t set own = 'own ' || item");
            fixture
                .left
                .exec("update t set pos = 3 - pos where pos < 3");
            drain(&fixture);
            arrived(
                &fixture,
                &[
                    "1|200|own 200",
                    "2|100|own 100",
                    "3|300|own 300",
                    "4|400|own 400",
                ],
            );
            run(
                &mut fixture.left.client(),
                "begin; update t set pos = case pos when 4 then 1 else pos + 1 end;
                 delete from t where item = 300; insert into t values (4, 500); commit",
            );
            drain(&fixture);
            arrived(
                &fixture,
                &["1|400|own 400", "2|200|own 200", "3|100|own 100", "4|500|~"],
            );
        }
    }
}

#[test]
fn positions_that_shift_by_one_take_a_few_statements() {
    let skip =
        MODES.map(|(mode, options)| (mode, options.replace('}', r#", "on_conflict": "skip"}"#)));
    let all = MODES
        .map(|(mode, options)| (mode, options.to_owned()))
        .into_iter()
        .chain(skip);
    for (at, (mode, options)) in all.enumerate() {
        let columns = "pos int primary key deferrable, item int not null unique";
        let fixture = list(&format!("shift_{mode}{at}"), columns, &options);
        fixture
            .left
            .exec("insert into t select i, -i from generate_series(1, 12000) i");
        drain(&fixture);
        fixture.right.exec(&format!(
            "update t set own = item::text;
             create table seen (n int generated always as identity primary key);
             create function note() returns trigger language plpgsql as
               $$ begin insert into {}.seen default values; return null; end $$;
             create trigger note after update on t for each statement execute function note()",
            fixture.right.user
        ));
        fixture.left.exec("update t set pos = pos + 1");
        drain(&fixture);
        let moved = "select count(*), min(pos), max(pos), bool_and(own = item::text and pos = 1 - item) from t";
        assert_eq!(rows(&fixture.right, moved), ["12000|2|12001|t"], "{mode}");
        let statements: i64 = rows(&fixture.right, "select count(*) from seen")[0]
            .parse()
            .expect("a number");
        assert!(statements <= 12, "{mode}: {statements} statements");
    }
}

/// Where the other side's rows win: a row that is in the way stays, and so do those that would have followed.
#[test]
fn rows_of_a_list_stay_where_one_is_in_their_way() {
    for (mode, options) in MODES {
        let options = options.replace('}', r#", "on_conflict": "skip"}"#);
        let fixture = list(
            &format!("stays_{mode}"),
            "pos int primary key deferrable, item int",
            &options,
        );
        fixture
            .left
            .exec("insert into t select i, i from generate_series(1, 5) i");
        drain(&fixture);
        fixture.right.exec("insert into t values (6, 600)");
        fixture.left.exec("update t set pos = pos + 1");
        drain(&fixture);
        let there = ["1|1", "2|2", "3|3", "4|4", "5|5", "6|600"];
        assert_eq!(
            rows(&fixture.right, "select pos, item from t order by pos"),
            there,
            "{mode}"
        );
        // Those whose new keys are free move, and are what they are here.
        fixture.right.exec("delete from t where pos in (3, 6)");
        fixture.left.exec("update t set pos = pos + 1");
        drain(&fixture);
        assert_eq!(
            rows(&fixture.right, "select pos, item from t order by pos"),
            ["1|1", "3|1", "5|3", "6|4"],
            "{mode}"
        );
    }
}

#[test]
fn a_target_that_checks_each_row_gets_the_values_instead() {
    let skip =
        MODES.map(|(mode, options)| (mode, options.replace('}', r#", "on_conflict": "skip"}"#)));
    let all = MODES
        .map(|(mode, options)| (mode, options.to_owned()))
        .into_iter()
        .chain(skip);
    for (at, (mode, options)) in all.enumerate() {
        let fixture = linked(&format!("strict_{mode}{at}"));
        fixture
            .left
            .exec("create table t (pos int primary key deferrable, item int)");
        fixture
            .right
            .exec("create table t (pos int primary key, item int)");
        attach(&fixture, "t", &options);
        let mut client = fixture.left.client();
        run(
            &mut client,
            "insert into t values (1, 100), (2, 200), (3, 300)",
        );
        drain(&fixture);
        // Once the session knows, too.
        for _ in 0..3 {
            run(
                &mut client,
                "update t set pos = case pos when 3 then 1 else pos + 1 end",
            );
            drain(&fixture);
            same(&fixture, "t");
            run(&mut client, "update t set pos = pos + 1");
            run(&mut client, "update t set pos = pos - 1");
            drain(&fixture);
            same(&fixture, "t");
        }
        assert_eq!(same(&fixture, "t").len(), 3);
    }
}

#[test]
fn moves_that_have_been_made_there_before_lead_to_the_same_rows() {
    for (label, change) in [
        ("shift", "update t set pos = pos + 1"),
        ("swap", "update t set pos = 4 - pos"),
        (
            "ring",
            "update t set pos = case pos when 3 then 1 else pos + 1 end",
        ),
        (
            "part",
            "update t set pos = pos + 1 where pos > 1; insert into t values (2, 200)",
        ),
    ] {
        let fixture = linked(&format!("again_{label}"));
        let columns = "pos int primary key deferrable, item int";
        for side in [&fixture.left, &fixture.right] {
            side.exec(&format!("create table t ({columns})"));
        }
        attach(&fixture, "t", SYNC);
        fixture
            .left
            .exec("insert into t values (1, 10), (2, 20), (3, 30)");
        fixture.right.exec(&format!("begin; {change}; commit"));
        fixture.left.exec(&format!("begin; {change}; commit"));
        same(&fixture, "t");
    }
}

#[test]
fn a_violation_that_is_one_is_not_taken_for_a_key_that_is_in_the_way() {
    let columns = "pos int primary key deferrable, item int not null unique";
    let fixture = list("genuine", columns, r#"{"mode": "queue"}"#);
    fixture.left.exec("insert into t values (1, 100), (2, 200)");
    drain(&fixture);
    fixture.right.exec("insert into t values (9, 900)");
    fixture.left.exec("insert into t values (5, 900)");
    fixture
        .left
        .exec("update t set pos = 3 - pos where pos < 3");
    deal(&fixture, "1000");
    assert_eq!(records(&fixture), ["INSERT|23505|1|failed"]);
    assert_eq!(
        rows(&fixture.right, "select pos, item from t order by pos"),
        ["1|200", "2|100", "9|900"]
    );
}
