//! Two masters under `newest`: what they have written without knowing of each other ends equal on both,
//! whoever hears of it first.

use rowsync_harness::{Fixture, Side, await_until};

use crate::conflict::view::{counting, fixture_on};
use crate::support::common::{attach, both_have, has_icu, linked, mirror, rows, run, same};
use crate::support::preloaded::{EAGER, WORKING};

const COLUMNS: &str = "id int primary key, v text, ver int";

/// A table `t` on both sides that either queues for the other, of the given columns.
pub fn masters_of(label: &str, left: &str, right: &str) -> Fixture {
    let fixture = Fixture::new(label);
    link(&fixture.left, &fixture.right, left, right);
    fixture
}

fn link(left: &Side, right: &Side, left_columns: &str, right_columns: &str) {
    for (side, other, columns) in [(left, right, left_columns), (right, left, right_columns)] {
        side.link(other, other.cluster.port(), "dst", &[])
            .expect("a server");
        side.exec(&format!("create table t ({columns})"));
    }
    for (side, other) in [(left, right), (right, left)] {
        side.exec(&format!(
            r#"select attach_sync('t', 'dst', '{}.t',
                 '{{"mode": "queue", "on_conflict": "newest", "version_column": "ver"}}')"#,
            other.user
        ));
    }
}

pub fn masters(label: &str) -> Fixture {
    masters_of(label, COLUMNS, COLUMNS)
}

/// Sends what a side has queued.
fn send(side: &Side) {
    assert!(side.query_one::<bool>("select deal_sync_err_rec(10000)"));
    assert_eq!(side.queued().expect("a queue"), 0);
}

/// Row 1 on both sides, each of which knows that the other has it.
pub fn agreed(fixture: &Fixture) {
    fixture.left.exec("insert into t values (1, 'a', 5)");
    send(&fixture.left);
    assert_eq!(same(fixture, "t"), ["1|a|5"]);
}

/// Runs what either side writes without knowing of the other, lets either send first, and compares.
fn meet(label: &str, begin: fn(&Fixture), left: &str, right: &str, expected: &[&str]) {
    for left_first in [true, false] {
        let fixture = masters(label);
        begin(&fixture);
        fixture.left.exec(left);
        fixture.right.exec(right);
        let (first, second) = if left_first {
            (&fixture.left, &fixture.right)
        } else {
            (&fixture.right, &fixture.left)
        };
        send(first);
        send(second);
        both_have(&fixture, "t", expected);
        // What has arrived is not sent on.
        assert_eq!(
            fixture.left.queued().expect("a queue") + fixture.right.queued().expect("a queue"),
            0
        );
    }
}

fn nothing(_: &Fixture) {}

#[test]
fn of_two_inserts_the_larger_version_stays() {
    meet(
        "inserts",
        nothing,
        "insert into t values (1, 'l', 2)",
        "insert into t values (1, 'r', 1)",
        &["1|l|2"],
    );
}

#[test]
fn of_two_updates_the_larger_version_stays() {
    meet(
        "updates",
        agreed,
        "update t set v = 'l', ver = 8",
        "update t set v = 'r', ver = 7",
        &["1|l|8"],
    );
}

#[test]
fn a_delete_that_saw_an_older_version_loses() {
    meet(
        "oldseen",
        agreed,
        "delete from t",
        "update t set v = 'r', ver = 7",
        &["1|r|7"],
    );
}

#[test]
fn a_delete_that_saw_the_newer_version_stays() {
    let left = "update t set ver = 8; delete from t";
    meet(
        "newseen",
        agreed,
        left,
        "update t set v = 'r', ver = 7",
        &[],
    );
}

#[test]
fn a_row_beats_a_deletion_of_the_same_stamp() {
    // Neither the update nor the deletion changes the version.
    meet(
        "samestamp",
        agreed,
        "delete from t",
        "update t set v = 'r'",
        &["1|r|5"],
    );
}

#[test]
fn a_row_that_is_inserted_again_outlives_its_deletion() {
    let left = "delete from t; insert into t values (1, 'again', 5)";
    meet("again", agreed, left, "", &["1|again|5"]);
    meet(
        "againolder",
        agreed,
        "delete from t; insert into t values (1, 'again', 1)",
        "",
        &["1|again|1"],
    );
}

#[test]
fn null_loses_to_every_version() {
    meet(
        "nulls",
        nothing,
        "insert into t values (1, 'l', null)",
        "insert into t values (1, 'r', -5)",
        &["1|r|-5"],
    );
}

#[test]
fn equal_versions_are_decided_by_the_bytes_of_the_rows() {
    for version in ["5", "null"] {
        for (left, right, winner) in [
            ("a", "B", "a"),
            ("Z", "a", "a"),
            ("z", "é", "é"),
            ("", "a", "a"),
            ("ab", "a", "ab"),
        ] {
            let row = |v: &str| format!("insert into t values (1, '{v}', {version})");
            let kept = format!("1|{winner}|{}", version.replace("null", "~"));
            meet("ties", nothing, &row(left), &row(right), &[&kept]);
        }
    }
}

#[test]
fn a_version_that_stands_still_decides_by_who_knew_whom() {
    // The left side writes twice, so its row is the later one although its text is the smaller.
    meet(
        "frozen",
        agreed,
        "update t set v = 'z'; update t set v = 'b'",
        "update t set v = 'c'",
        &["1|b|5"],
    );
}

#[test]
fn who_has_seen_the_other_row_wins_with_a_smaller_version() {
    let fixture = masters("lagging");
    agreed(&fixture);
    fixture.right.exec("update t set v = 'r', ver = 100");
    send(&fixture.right);
    fixture.left.exec("update t set v = 'later', ver = 6");
    send(&fixture.left);
    both_have(&fixture, "t", &["1|later|6"]);
    fixture.right.exec("update t set v = 'latest', ver = null");
    send(&fixture.right);
    both_have(&fixture, "t", &["1|latest|~"]);
    fixture.left.exec("delete from t");
    send(&fixture.left);
    both_have(&fixture, "t", &[]);
}

#[test]
fn ties_are_decided_alike_between_databases_of_different_collation() {
    let fixture = Fixture::new("collations");
    let own = |side: &Side, name: &str, locale: &str| {
        let other = Side {
            db: format!("{}_{name}", side.db),
            ..side.clone()
        };
        side.exec_superuser(&format!(
            "create database {} template template0 owner {} {locale}",
            other.db, other.user
        ));
        other.exec_superuser(&format!(
            "create schema authorization {0}; create extension pg_rowsync schema public;
             grant usage on foreign data wrapper pg_rowsync to {0}",
            other.user
        ));
        other
    };
    let left = own(&fixture.left, "c", "lc_collate 'C' lc_ctype 'C'");
    // A server built without ICU cannot tell more than one without it.
    let icu = has_icu(&fixture.right);
    let locale = if icu {
        "locale_provider icu icu_locale 'en-US'"
    } else {
        "lc_ctype 'C'"
    };
    let right = own(&fixture.right, "icu", locale);
    link(&left, &right, COLUMNS, COLUMNS);
    let pairs = [
        ("a", "B"),
        ("B", "a"),
        ("z", "é"),
        ("ä", "Z"),
        ("a-b", "ab"),
        ("co-op", "coop"),
    ];
    for (id, (one, other)) in pairs.iter().enumerate() {
        left.exec(&format!("insert into t values ({id}, '{one}', 5)"));
        right.exec(&format!("insert into t values ({id}, '{other}', 5)"));
    }
    send(&left);
    send(&right);
    let expected: Vec<String> = (pairs.iter().enumerate())
        .map(|(id, (one, other))| format!("{id}|{}|5", one.max(other)))
        .collect();
    for side in [&left, &right] {
        assert_eq!(rows(side, "select * from t order by id"), expected);
    }
    // A version that is text is compared alike too.
    for side in [&left, &right] {
        side.exec("create table w (id int primary key, v text, ver text)");
    }
    for (side, other) in [(&left, &right), (&right, &left)] {
        side.exec(&format!(
            r#"select attach_sync('w', 'dst', '{}.w',
                 '{{"mode": "queue", "on_conflict": "newest", "version_column": "ver"}}')"#,
            other.user
        ));
    }
    for (id, (one, other)) in pairs.iter().enumerate() {
        left.exec(&format!("insert into w values ({id}, 'l', '{one}')"));
        right.exec(&format!("insert into w values ({id}, 'r', '{other}')"));
    }
    send(&left);
    send(&right);
    let all = "select * from w order by id";
    assert_eq!(rows(&left, all), rows(&right, all));
    for side in [left, right] {
        let mut client = side.cluster.superuser("postgres").expect("a session");
        client
            .batch_execute(&format!("drop database {} with (force)", side.db))
            .expect("gone");
    }
}

#[test]
fn ties_are_decided_alike_whatever_the_order_of_the_columns() {
    let fixture = masters_of(
        "colorder",
        "id int primary key, ver int, a text, b text",
        "b text, a text, gone int, id int primary key, ver int",
    );
    fixture.right.exec("alter table t drop column gone");
    fixture
        .left
        .exec("insert into t (id, ver, a, b) values (1, 5, 'x', 'y'), (2, 5, 'y', 'x')");
    fixture
        .right
        .exec("insert into t (id, ver, a, b) values (1, 5, 'y', 'x'), (2, 5, 'x', 'y')");
    send(&fixture.left);
    send(&fixture.right);
    let all = "select id, ver, a, b from t order by id";
    let left = rows(&fixture.left, all);
    assert_eq!(left, rows(&fixture.right, all));
    // One of the rows that were written, whole.
    for row in left {
        assert!(row.ends_with("|x|y") || row.ends_with("|y|x"), "{row}");
    }
}

#[test]
fn versions_are_compared_by_their_type() {
    for (kind, older, newer) in [
        (
            "timestamptz",
            "2024-01-01 12:30:00+02",
            "2024-01-01 12:00:00+00",
        ),
        (
            "timestamptz",
            "2024-01-01 12:00:00.000001+00",
            "2024-01-01 12:00:00.00001+00",
        ),
        ("bigint", "9", "10"),
        ("bigint", "-10", "-9"),
        ("numeric", "9.99", "10.0"),
        ("numeric", "1e5", "1e6"),
        ("text", "10", "9"),
        ("text", "a", "b"),
    ] {
        let columns = format!("id int primary key, v text, ver {kind}");
        let fixture = masters_of("vertypes", &columns, &columns);
        fixture.left.exec(&format!(
            "insert into t values (1, 'older', '{older}'), (2, 'newer', '{newer}'), (3, 'newer', '{newer}')"
        ));
        fixture.right.exec(&format!(
            "insert into t values (1, 'newer', '{newer}'), (2, 'older', '{older}'), (3, 'null', null)"
        ));
        send(&fixture.left);
        send(&fixture.right);
        same(&fixture, "t");
        let kept = rows(&fixture.left, "select v from t order by id");
        assert_eq!(kept, ["newer"; 3], "{kind}: {older} and {newer}");
        // And when the newer one has been seen, by a write with the older.
        fixture
            .left
            .exec(&format!("update t set v = 'last', ver = '{older}'"));
        send(&fixture.left);
        same(&fixture, "t");
        assert_eq!(
            rows(&fixture.right, "select distinct v from t"),
            ["last"],
            "{kind}"
        );
    }
}

#[test]
fn equal_versions_of_different_scale_are_a_tie() {
    let columns = "id int primary key, v text, ver numeric";
    for (left, right) in [("1.0", "1.00"), ("1.00", "1.0")] {
        let fixture = masters_of("scale", columns, columns);
        fixture
            .left
            .exec(&format!("insert into t values (1, 'l', {left})"));
        fixture
            .right
            .exec(&format!("insert into t values (1, 'r', {right})"));
        send(&fixture.left);
        send(&fixture.right);
        let kept = same(&fixture, "t");
        assert!(kept[0].starts_with("1|"), "{kept:?}");
    }
}

#[test]
fn deletions_are_forgotten_after_the_retention() {
    let cluster = counting(&[&[("pg_rowsync.tombstone_retention", "2s")], EAGER].concat());
    let fixture = fixture_on(&cluster);
    mirror(
        &fixture,
        "t",
        COLUMNS,
        r#"{"on_conflict": "newest", "version_column": "ver"}"#,
    );
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t select i, 'a', 5 from generate_series(1, 20) i; delete from t",
    );
    let deleted = "select count(*) from sync_row_version where deleted";
    assert_eq!(fixture.left.query_one::<i64>(deleted), 20);
    assert!(fixture.left.query_one::<bool>("select start_sync_worker()"));
    await_until(WORKING, "the deletions to be forgotten", || {
        fixture.left.query_one::<i64>(deleted) == 0
    });
}

/// Gives either side a second server, whose trigger fires after that of `dst`.
fn with_another_server(fixture: &Fixture) {
    for side in [&fixture.left, &fixture.right] {
        side.link(side, 1, "later", &[]).expect("a server");
        side.exec(
            r#"select attach_sync('t', 'later', 'x.t',
                 '{"mode": "queue", "on_conflict": "newest", "version_column": "ver"}')"#,
        );
    }
}

/// Sends what a side has queued for the other one.
fn send_to_dst(side: &Side) {
    assert!(side.query_one::<bool>("select deal_sync_err_rec(10000, 'dst')"));
}

#[test]
fn a_change_for_several_servers_counts_the_same_everywhere() {
    for (left, right, expected) in [
        (
            "update t set v = 'z'",
            "update t set v = 'c'",
            vec!["1|z|5"],
        ),
        ("delete from t", "update t set v = 'r'", vec!["1|r|5"]),
        (
            "delete from t; insert into t values (1, 'b', 5)",
            "update t set v = 'r'",
            vec!["1|b|5"],
        ),
    ] {
        let fixture = masters("several");
        agreed(&fixture);
        with_another_server(&fixture);
        fixture.left.exec(left);
        fixture.right.exec(right);
        send_to_dst(&fixture.left);
        send_to_dst(&fixture.right);
        both_have(&fixture, "t", &expected);
    }
}

#[test]
fn deletions_are_found_by_keys_listed_in_another_order() {
    for (left, right) in [("a, b", "b, a"), ("b, a", "a, b")] {
        let table = |key: &str| format!("a int, b int, v text, ver int, primary key ({key})");
        let fixture = masters_of("keyorder", &table(left), &table(right));
        fixture.left.exec("insert into t values (1, 2, 'a', 5)");
        send(&fixture.left);
        assert_eq!(same(&fixture, "t"), ["1|2|a|5"]);
        fixture.left.exec("update t set ver = 7");
        fixture.right.exec("update t set ver = 8; delete from t");
        // The older update meets the deletion.
        send(&fixture.left);
        send(&fixture.right);
        both_have(&fixture, "t", &[]);
    }
}

#[test]
fn a_server_without_the_extension_compares_text_alike() {
    let fixture = linked("plaincollate");
    let icu = has_icu(&fixture.right);
    let collate = if icu { r#" collate "en-US-x-icu""# } else { "" };
    fixture
        .right
        .exec_superuser("drop extension pg_rowsync cascade");
    fixture
        .left
        .exec("create table t (id int primary key, v text, ver text)");
    fixture.right.exec(&format!(
        "create table t (id int primary key, v text, ver text{collate});
         insert into t values (1, 'r', 'B'), (2, 'r', 'a')"
    ));
    attach(
        &fixture,
        "t",
        r#"{"mode": "queue", "on_conflict": "newest", "version_column": "ver"}"#,
    );
    fixture
        .left
        .exec("insert into t values (1, 'l', 'a'), (2, 'l', 'B')");
    send(&fixture.left);
    let kept = rows(&fixture.right, "select v from t order by id");
    assert_eq!(kept, ["l", "r"]);
}

#[test]
fn a_row_inserted_after_a_deletion_that_arrived_outlives_it() {
    for version in ["5", "1", "null"] {
        let fixture = masters("arrived");
        agreed(&fixture);
        fixture.left.exec("delete from t");
        send(&fixture.left);
        both_have(&fixture, "t", &[]);
        fixture
            .right
            .exec(&format!("insert into t values (1, 'back', {version})"));
        send(&fixture.right);
        both_have(
            &fixture,
            "t",
            &[&format!("1|back|{}", version.replace("null", "~"))],
        );
    }
}
