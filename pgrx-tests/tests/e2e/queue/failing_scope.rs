//! How far a failed record reaches beyond rows of its own key: TRUNCATE, rows that move
//! together, foreign keys, a table that is not as it should be, and keys of types whose text does
//! not tell whether two of them are equal.

use std::io::Write;

use postgres::Client;
use rowsync_harness::Fixture;

use crate::support::common::{
    attach, deal, linked, mirror, one_way, query, queued, rows, run, same, table,
};
use crate::support::failed::{
    counts, discard, failed, goes_directly, retry, retry_all, standing, the_failed, waits_behind,
};
use crate::support::reject_values;

const COLUMNS: &str = "id int primary key, v text";
const QUEUE: &str = r#"{"mode": "queue"}"#;

#[test]
fn truncate_behind_a_failing_waits_and_so_does_the_whole_table_behind_it() {
    for discards in [false, true] {
        let fixture = one_way("trunc", COLUMNS, "{}");
        mirror(&fixture, "u", COLUMNS, "{}");
        reject_values::build(&fixture);
        let mut client = fixture.left.client();
        run(&mut client, "insert into t values (1, 'a'), (2, 'b')");
        reject_values::passed(&fixture);
        reject_values::close(&fixture, "bad", "23514", None);
        run(&mut client, "update t set v = 'bad' where id = 1");
        assert!(!deal(&fixture, "100"));
        let failing = the_failed(&fixture);
        goes_directly(
            &fixture,
            &mut client,
            "update t set v = 'direct' where id = 2",
        );
        waits_behind(&fixture, &mut client, "truncate t", failing);
        waits_behind(
            &fixture,
            &mut client,
            "insert into t values (7, 'new')",
            failing,
        );
        waits_behind(
            &fixture,
            &mut client,
            "insert into t values (8, 'new')",
            failing,
        );
        waits_behind(
            &fixture,
            &mut client,
            "update t set v = 'newer' where id = 7",
            failing,
        );
        goes_directly(&fixture, &mut client, "insert into u values (7, 'u')");
        same(&fixture, "u");
        assert!(!deal(&fixture, "100"));
        assert_eq!(reject_values::passed(&fixture), ["2:direct"]);
        assert_eq!(table(&fixture.right, "t"), ["1|a", "2|direct"]);
        if discards {
            discard(&fixture, failing);
            assert!(deal(&fixture, "100"), "{:?}", standing(&fixture));
        } else {
            reject_values::open(&fixture, "bad");
            assert!(retry(&fixture, failing));
        }
        let passed = reject_values::passed(&fixture);
        let passed: Vec<_> = passed.iter().filter(|change| *change != "1:bad").collect();
        assert_eq!(passed, ["-*", "7:new", "8:new", "7:newer"]);
        assert_eq!(same(&fixture, "t").len(), 2);
        assert_eq!(queued(&fixture), 0);
    }
}

#[test]
fn a_truncate_that_fails_keeps_its_table_waiting() {
    let fixture = one_way("nottrunc", COLUMNS, "{}");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    // A foreign key that only the remote has: TRUNCATE there is refused with 0A000.
    fixture
        .right
        .exec("create table child (id int references t); insert into child values (1)");
    run(
        &mut client,
        "truncate t; insert into t values (1, 'b'), (2, 'b')",
    );
    assert!(!deal(&fixture, "100"));
    let failing = the_failed(&fixture);
    assert_eq!(
        rows(&fixture.left, "select op, sqlstate from sync_err_rec")[0],
        "TRUNCATE|0A000"
    );
    waits_behind(
        &fixture,
        &mut client,
        "insert into t values (3, 'c')",
        failing,
    );
    assert_eq!(counts(&fixture), (0, 1, 3));
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    fixture.right.exec("drop table child");
    assert!(retry(&fixture, failing));
    assert_eq!(same(&fixture, "t"), ["1|b", "2|b", "3|c"]);
}

#[test]
fn rows_that_one_command_moves_are_failed_as_one() {
    for key in ["primary key", "primary key deferrable initially deferred"] {
        let fixture = one_way("moved", &format!("id int {key}, v text"), QUEUE);
        reject_values::build(&fixture);
        let mut client = fixture.left.client();
        run(
            &mut client,
            "insert into t values (3, 'c'), (2, 'b'), (1, 'a'), (9, 'i')",
        );
        assert!(deal(&fixture, "100"));
        reject_values::close(&fixture, "b", "23514", None);
        run(&mut client, "update t set id = id + 1 where id < 9");
        run(&mut client, "update t set v = 'z' where id = 9");
        run(&mut client, "update t set v = 'later' where id = 3");
        run(&mut client, "insert into t values (1, 'later')");
        deal(&fixture, "100");
        deal(&fixture, "100");
        // All or nothing of what moved, and nothing behind it.
        assert_eq!(
            table(&fixture.right, "t"),
            ["1|a", "2|b", "3|c", "9|z"],
            "{:?}",
            standing(&fixture)
        );
        reject_values::open(&fixture, "b");
        retry_all(&fixture);
        assert_eq!(
            same(&fixture, "t"),
            ["1|later", "2|a", "3|later", "4|c", "9|z"]
        );
    }
}

#[test]
fn children_of_a_failing_follow_when_it_does() {
    for mode in ["queue", "async"] {
        let fixture = linked("family");
        let options = format!(r#"{{"mode": "{mode}"}}"#);
        mirror(&fixture, "t", COLUMNS, &options);
        mirror(
            &fixture,
            "c",
            "id int primary key, t_id int not null references t",
            &options,
        );
        reject_values::build(&fixture);
        reject_values::close(&fixture, "bad", "23514", None);
        let mut client = fixture.left.client();
        run(
            &mut client,
            "insert into t values (1, 'good'), (2, 'bad'), (3, 'good')",
        );
        run(
            &mut client,
            "insert into c values (10, 1), (20, 2), (21, 2), (30, 3)",
        );
        assert!(!deal(&fixture, "100"));
        assert_eq!(table(&fixture.right, "t"), ["1|good", "3|good"]);
        assert_eq!(table(&fixture.right, "c"), ["10|1", "30|3"], "{mode}");
        let states = "select table_name, sqlstate, status from sync_err_rec order by id";
        assert_eq!(
            rows(&fixture.left, states),
            ["t|23514|failed", "c|23503|failed", "c|23503|failed"],
            "{mode}"
        );
        run(
            &mut client,
            "update c set t_id = 1 where id = 21; insert into c values (22, 2)",
        );
        run(&mut client, "update c set t_id = 3 where id = 10");
        deal(&fixture, "100");
        // 21 is there with what followed: by itself it would still lack its parent.
        assert_eq!(
            table(&fixture.right, "c"),
            ["10|3", "21|1", "30|3"],
            "{mode}: {:?}",
            standing(&fixture)
        );
        reject_values::open(&fixture, "bad");
        for id in failed(&fixture) {
            retry(&fixture, id);
        }
        same(&fixture, "t");
        same(&fixture, "c");
        assert_eq!(queued(&fixture), 0, "{mode}: {:?}", standing(&fixture));
    }
}

/// A way in which the whole remote table is unfit, how it is repaired, and the SQLSTATE.
const UNFIT: [(&str, &str, &str); 4] = [
    (
        "alter table t rename to hidden",
        "alter table hidden rename to t",
        "42P01",
    ),
    (
        "alter table t drop column v",
        "alter table t add column v text",
        "42703",
    ),
    (
        "revoke insert, update, delete on t from current_user",
        "grant insert, update, delete on t to current_user",
        "42501",
    ),
    (
        "alter table t rename id to other",
        "alter table t rename other to id",
        "42703",
    ),
];

#[test]
fn an_unfit_table_fails_one_record_and_keeps_no_other_table_waiting() {
    for (damage, repair, state) in UNFIT {
        let fixture = one_way("unfit", COLUMNS, "{}");
        mirror(&fixture, "u", COLUMNS, "{}");
        let mut client = fixture.left.client();
        run(
            &mut client,
            "insert into t values (1, 'a'); insert into u values (1, 'a')",
        );
        fixture.right.exec(damage);
        run(&mut client, "insert into t values (2, 'b'), (3, 'c')");
        for n in 2..50 {
            run(
                &mut client,
                &format!("update t set v = 'v{n}'; insert into u values ({n}, 'u')"),
            );
        }
        assert!(!deal(&fixture, "1000"), "{state}");
        let failing = the_failed(&fixture);
        let why = "select op, sqlstate, status from sync_err_rec order by id limit 1";
        assert_eq!(rows(&fixture.left, why), [format!("INSERT|{state}|failed")]);
        let (pending, failed, waiting) = counts(&fixture);
        assert_eq!((pending, failed, waiting), (0, 1, 1 + 48 * 3), "{state}");
        assert_eq!(
            same(&fixture, "u").len(),
            49,
            "{state}: the other table flows"
        );
        // Keys that no record names wait as well; the other table does not.
        waits_behind(
            &fixture,
            &mut client,
            "insert into t values (1000, 'new')",
            failing,
        );
        goes_directly(
            &fixture,
            &mut client,
            "update u set v = 'direct' where id < 10",
        );
        same(&fixture, "u");
        // Another attempt blames no other record.
        assert!(!deal(&fixture, "1000"), "{state}");
        assert_eq!(the_failed(&fixture), failing, "{state}");
        fixture.right.exec(repair);
        assert!(
            retry(&fixture, failing),
            "{state}: {:?}",
            standing(&fixture)
        );
        assert_eq!(queued(&fixture), 0, "{state}");
        if damage.contains("drop column") {
            run(&mut client, "update t set v = v");
        }
        assert_eq!(same(&fixture, "t").len(), 4, "{state}");
        goes_directly(&fixture, &mut client, "update t set v = 'direct'");
        same(&fixture, "t");
    }
}

/// A key type with three ways to write the same key; before the third, the session's time zone is
/// set to another. The first statement prepares either database.
struct Twofold {
    what: &'static str,
    prepare: &'static str,
    key: &'static str,
    spellings: [&'static str; 3],
}

const TWOFOLD: [Twofold; 9] = [
    Twofold {
        what: "numeric",
        prepare: "",
        key: "numeric",
        spellings: ["1.0", "1.00", "1"],
    },
    Twofold {
        what: "float",
        prepare: "",
        key: "float8",
        spellings: ["0", "-0", "0.0"],
    },
    Twofold {
        what: "interval",
        prepare: "",
        key: "interval",
        spellings: ["1 day", "24 hours", "1440 minutes"],
    },
    Twofold {
        what: "jsonb",
        prepare: "",
        key: "jsonb",
        spellings: [r#"{"a": 1.0}"#, r#"{"a": 1.00}"#, r#"{"a": 1}"#],
    },
    Twofold {
        what: "timestamptz",
        prepare: "",
        key: "timestamptz",
        spellings: [
            "2020-01-01 12:00:00+00",
            "2020-01-01 14:00:00+02",
            "2020-01-01 12:00Z",
        ],
    },
    Twofold {
        what: "timetz",
        prepare: "",
        key: "timetz",
        spellings: ["12:00+00", "12:00Z", "12:00:00+00"],
    },
    Twofold {
        what: "array",
        prepare: "",
        key: "numeric[]",
        spellings: ["{1.0}", "{1.00}", "{1}"],
    },
    Twofold {
        what: "citext",
        prepare: "create extension citext",
        key: "citext",
        spellings: ["Key", "KEY", "key"],
    },
    Twofold {
        what: "collation",
        prepare: "create collation folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        key: "text collate folded",
        spellings: ["Key", "KEY", "key"],
    },
];

/// Whether both databases can have the type; citext and ICU are options of an installation.
fn prepare(fixture: &Fixture, twofold: &Twofold) -> bool {
    for side in [&fixture.left, &fixture.right] {
        let sql = format!(
            "set search_path = \"{}\", public; {}",
            side.user, twofold.prepare
        );
        if let Err(error) = side.superuser().batch_execute(&sql) {
            let why = format!("no test with a key of {}: {error}", twofold.what);
            let _ = writeln!(std::io::stderr(), "{why}");
            return false;
        }
    }
    true
}

fn write(client: &mut Client, twofold: &Twofold, spelling: usize, v: &str, old: Option<usize>) {
    let literal = |at: usize| format!("'{}'", twofold.spellings[at]);
    let new = literal(spelling);
    run(
        client,
        &match old {
            None => format!("insert into t values ({new}, '{v}')"),
            Some(old) => format!(
                "update t set id = {new}, v = '{v}' where id = {}",
                literal(old)
            ),
        },
    );
}

#[test]
fn a_key_written_in_another_way_is_the_same_key() {
    for twofold in &TWOFOLD {
        let what = twofold.what;
        let fixture = linked(what);
        if !prepare(&fixture, twofold) {
            continue;
        }
        mirror(
            &fixture,
            "t",
            &format!("id {} primary key, v text", twofold.key),
            "{}",
        );
        reject_values::build(&fixture);
        reject_values::close(&fixture, "bad", "23514", None);
        let mut client = fixture.left.client();
        write(&mut client, twofold, 0, "bad", None);
        assert!(!deal(&fixture, "100"), "{what}");
        let failing = the_failed(&fixture);
        run(&mut client, "set timezone = 'Asia/Tokyo'");
        write(&mut client, twofold, 1, "second", Some(0));
        write(&mut client, twofold, 2, "third", Some(1));
        run(&mut client, "update t set v = 'fourth'; delete from t");
        run(&mut client, "set timezone = 'America/New_York'");
        write(&mut client, twofold, 1, "fifth", None);
        for _ in 0..2 {
            assert!(!deal(&fixture, "100"), "{what}");
            assert_eq!(
                table(&fixture.right, "t"),
                [""; 0],
                "{what}: passed the failing record"
            );
            assert_eq!(
                counts(&fixture),
                (0, 1, 5),
                "{what}: {:?}",
                standing(&fixture)
            );
        }
        reject_values::open(&fixture, "bad");
        assert!(retry(&fixture, failing), "{what}: {:?}", standing(&fixture));
        let changes = reject_values::passed(&fixture);
        let values: Vec<_> = changes.iter().map(|one| one.rsplit(':').next()).collect();
        assert_eq!(
            values[..4],
            [Some("bad"), Some("second"), Some("third"), Some("fourth")],
            "{what}"
        );
        assert_eq!(same(&fixture, "t").len(), 1, "{what}");
        assert_eq!(queued(&fixture), 0, "{what}");
    }
}

#[test]
fn a_key_of_several_columns_is_told_apart_by_all_of_them() {
    let fixture = linked("compound");
    mirror(
        &fixture,
        "t",
        "a int, id text, v text, primary key (a, id)",
        "{}",
    );
    reject_values::build(&fixture);
    reject_values::close(&fixture, "bad", "23514", None);
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'x', 'bad')");
    assert!(!deal(&fixture, "100"));
    let failing = the_failed(&fixture);
    // Pasted together, some of these would look the same.
    goes_directly(
        &fixture,
        &mut client,
        "insert into t values (1, 'y', 'v'), (2, 'x', 'v'), (11, '', 'v')",
    );
    goes_directly(
        &fixture,
        &mut client,
        "insert into t values (1, '1x', 'v'), (1, ' x', 'v'), (1, 'X', 'v')",
    );
    waits_behind(
        &fixture,
        &mut client,
        "update t set a = 3 where a = 1 and id = 'x'",
        failing,
    );
    waits_behind(
        &fixture,
        &mut client,
        "update t set v = 'w' where a = 3",
        failing,
    );
    reject_values::open(&fixture, "bad");
    assert!(retry(&fixture, failing));
    same(&fixture, "t");
}

#[test]
fn two_tables_that_send_to_one_target_share_its_rows() {
    let fixture = one_way("share", COLUMNS, "{}");
    reject_values::build(&fixture);
    let schema = fixture.right.user.clone();
    fixture
        .left
        .exec(&format!("create table other ({COLUMNS})"));
    fixture
        .left
        .exec(&format!("select attach_sync('other', 'dst', '{schema}.t')"));
    reject_values::close(&fixture, "bad", "23514", None);
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'bad')");
    assert!(!deal(&fixture, "100"));
    let failing = the_failed(&fixture);
    waits_behind(
        &fixture,
        &mut client,
        "insert into other values (1, 'later')",
        failing,
    );
    goes_directly(
        &fixture,
        &mut client,
        "insert into other values (2, 'direct')",
    );
    reject_values::open(&fixture, "bad");
    assert!(retry(&fixture, failing));
    assert_eq!(
        reject_values::passed(&fixture),
        ["2:direct", "1:bad", "1:later"]
    );
}

#[test]
fn a_change_of_options_does_not_let_anything_pass() {
    let fixture = one_way("options", COLUMNS, "{}");
    reject_values::build(&fixture);
    reject_values::close(&fixture, "bad", "23514", None);
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'bad')");
    assert!(!deal(&fixture, "100"));
    let failing = the_failed(&fixture);
    // Other columns, another order of them, another policy: other routes to the same row.
    fixture
        .left
        .exec("alter table t add w int; alter table t drop column v; alter table t add v text");
    fixture.right.exec("alter table t add w int");
    fixture.left.exec("select detach_sync('t', 'dst')");
    attach(&fixture, "t", r#"{"on_conflict": "skip"}"#);
    waits_behind(
        &fixture,
        &mut client,
        "update t set v = 'later', w = 1",
        failing,
    );
    goes_directly(
        &fixture,
        &mut client,
        "insert into t (id, v) values (2, 'direct')",
    );
    reject_values::open(&fixture, "bad");
    assert!(retry(&fixture, failing));
    assert_eq!(
        reject_values::passed(&fixture),
        ["2:direct", "1:bad", "1:later"]
    );
    let all = "select id, v, w from t order by id";
    assert_eq!(
        rows(&fixture.left, all),
        query(&mut fixture.right.client(), all)
    );
}
