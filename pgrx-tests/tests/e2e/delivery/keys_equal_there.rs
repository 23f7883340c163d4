//! Keys that differ here and are equal there, so that two changes of one statement are of one row.

use rowsync_harness::Fixture;

use crate::support::common::{attach, deal, linked, queued, rows, run};

/// A key type here, one there whose equality is looser, and two keys that only the former tells apart. None
/// that a session refuses.
const PAIRS: [(&str, &str, &str, &str); 3] = [
    ("text", "text collate loose", "'a'", "'A'"),
    ("varchar(5)", "varchar(9) collate loose", "'Maß'", "'maß'"),
    ("text", "varchar collate loose", "'X'", "'x'"),
];

const LOOSE: &str =
    "create collation loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";

/// Two rows here that are one there; `policy` is that of the trigger.
fn coarser(label: &str, pair: (&str, &str, &str, &str), options: &str) -> Fixture {
    let (here, there, one, other) = pair;
    let fixture = linked(label);
    fixture.left.exec(&format!(
        "create table t (k {here} primary key, v int, ver int)"
    ));
    // Before the target is there: some of them would be refused.
    attach(&fixture, "t", options);
    fixture.right.exec(&format!(
        "{LOOSE}; create table t (k {there} primary key, v int, ver int)"
    ));
    fixture.left.exec(&format!(
        "insert into t values ({one}, 0, 0), ({other}, 0, 0)"
    ));
    fixture
}

/// What one statement does to both rows: the later one in the order of the statement is the last.
const BOTH: &str =
    "update t set v = s.v, ver = s.v from (select k, 10 * row_number() over (order by k desc) v
    from t) s where s.k = t.k";

#[test]
fn no_change_is_lost_where_two_rows_of_a_statement_are_one_there() {
    for (number, pair) in PAIRS.into_iter().enumerate() {
        for policy in ["skip", "overwrite"] {
            for mode in ["sync", "queue"] {
                let options = format!(r#"{{"mode": "{mode}", "on_conflict": "{policy}"}}"#);
                let fixture = coarser(&format!("coarse{number}{policy}{mode}"), pair, &options);
                let mut client = fixture.left.client();
                let one_by_one = [
                    format!("update t set v = 1 where k = {}", pair.2),
                    format!("update t set v = 2 where k = {}", pair.3),
                ];
                run(&mut client, &one_by_one.join(";"));
                assert!(deal(&fixture, "100"));
                assert_eq!(
                    rows(&fixture.right, "select v from t"),
                    ["2"],
                    "{pair:?} {policy} {mode}"
                );
                // In whatever order one statement takes them, what comes last stays.
                run(&mut client, BOTH);
                assert!(deal(&fixture, "100"));
                let last = rows(&fixture.left, "select max(v) from t");
                let there = rows(&fixture.right, "select v from t");
                assert_eq!(
                    there,
                    rows(&fixture.left, "select v from t order by ctid desc limit 1")
                );
                assert_eq!(there.len() + last.len(), 2, "{pair:?} {policy} {mode}");
                assert_eq!(queued(&fixture), 0);
            }
        }
    }
}

#[test]
fn the_newest_of_two_rows_that_are_one_there_wins_and_the_server_goes_on() {
    for (number, pair) in PAIRS.into_iter().enumerate() {
        let options = r#"{"mode": "queue", "on_conflict": "newest", "version_column": "ver"}"#;
        let fixture = coarser(&format!("coarsenewest{number}"), pair, options);
        fixture.left.exec("create table other (id int primary key)");
        fixture
            .right
            .exec("create table other (id int primary key)");
        attach(&fixture, "other", r#"{"mode": "queue"}"#);
        assert!(deal(&fixture, "100"));
        fixture.left.exec(BOTH);
        fixture.left.exec("insert into other values (1)");
        assert!(
            deal(&fixture, "100"),
            "{:?}",
            rows(&fixture.left, "select message from sync_err_rec")
        );
        assert_eq!(rows(&fixture.right, "select v from t"), ["20"], "{pair:?}");
        assert_eq!(
            rows(&fixture.right, "select id from other"),
            ["1"],
            "{pair:?}"
        );
    }
}

/// One row under two texts of its key, which it had when they were written under the writers' settings.
#[test]
fn one_row_has_one_text_of_its_key_whoever_writes() {
    for (label, kind, value) in [
        ("twotz", "timestamptz", "'2024-07-01 10:00+00'"),
        ("twobytes", "bytea", r"'\x00ff'"),
        ("tworange", "tstzrange", "'[\"2024-07-01 10:00+00\",)'"),
    ] {
        let fixture = crate::support::common::one_way(
            label,
            &format!("k {kind} primary key, v int"),
            r#"{"mode": "queue", "on_conflict": "skip"}"#,
        );
        fixture
            .left
            .exec(&format!("insert into t values ({value}, 0)"));
        assert!(deal(&fixture, "100"));
        let mut client = fixture.left.client();
        run(
            &mut client,
            "begin; set local timezone = 'Asia/Tokyo'; set local bytea_output = 'escape'; update t set v = 1;
             set local timezone = 'UTC'; set local bytea_output = 'hex'; update t set v = 2; commit",
        );
        assert!(deal(&fixture, "100"));
        assert_eq!(rows(&fixture.right, "select v from t"), ["2"], "{kind}");
        assert_eq!(
            rows(&fixture.left, "select type from sync_conflicts"),
            [""; 0],
            "{kind}"
        );
    }
}
