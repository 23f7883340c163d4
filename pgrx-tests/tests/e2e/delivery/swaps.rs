//! Rows that swap what is unique where the newest wins: their keys, or another unique value.

use rowsync_harness::Fixture;

use crate::support::common::{deal, linked, query, queued, rows, run, same};

fn options(mode: &str) -> String {
    format!(r#"{{"mode": "{mode}", "on_conflict": "newest", "version_column": "ver"}}"#)
}

/// Two masters of one table, of which one has a column of its own.
fn masters(label: &str, mode: &str, columns: [&str; 2]) -> Fixture {
    let fixture = linked(label);
    fixture.link(&fixture.right, &fixture.left, "dst", &[]);
    for (side, columns) in [&fixture.left, &fixture.right].into_iter().zip(columns) {
        side.exec(&format!("create table t ({columns})"));
    }
    for (side, other) in [
        (&fixture.left, &fixture.right),
        (&fixture.right, &fixture.left),
    ] {
        side.exec(&format!(
            "select attach_sync('t', 'dst', '{}.t', '{}')",
            other.user,
            options(mode)
        ));
    }
    fixture
}

fn standing(fixture: &Fixture) -> Vec<String> {
    rows(
        &fixture.left,
        "select op, status, sqlstate, message from sync_err_rec order by id",
    )
}

/// Both sides have the same rows, and these; nothing has failed on either.
#[track_caller]
fn arrived(fixture: &Fixture, what: &str, expected: &[&str]) {
    deal(fixture, "100000");
    assert_eq!(standing(fixture), Vec::<String>::new(), "{what}");
    assert_eq!(queued(fixture), 0, "{what}");
    let back = query(
        &mut fixture.right.superuser(),
        "select count(*) from sync_err_rec",
    );
    assert_eq!(back, ["0"], "{what}");
    assert_eq!(same(fixture, "t"), expected, "{what}");
}

#[test]
fn keys_are_swapped_beside_a_second_unique_column() {
    for mode in ["sync", "async", "queue"] {
        for (label, key) in [("exact", "int"), ("inexact", "numeric")] {
            let columns =
                format!("pos {key} primary key deferrable, item int not null unique, ver int");
            let fixture = masters(&format!("nk_{mode}_{label}"), mode, [&columns, &columns]);
            let mut client = fixture.left.client();
            let what = format!("{mode} {label}");
            run(
                &mut client,
                "insert into t values (1, 100, 1), (2, 200, 1), (3, 300, 1), (4, 400, 1)",
            );
            arrived(
                &fixture,
                &what,
                &["1|100|1", "2|200|1", "3|300|1", "4|400|1"],
            );
            run(
                &mut client,
                "update t set pos = 3 - pos, ver = 2 where pos < 3",
            );
            arrived(
                &fixture,
                &what,
                &["1|200|2", "2|100|2", "3|300|1", "4|400|1"],
            );
            // A ring, with a row that goes and a new one.
            run(
                &mut client,
                "begin; update t set pos = case pos when 4 then 1 else pos + 1 end, ver = 3;
                 delete from t where item = 300; insert into t values (4, 500, 4); commit",
            );
            arrived(
                &fixture,
                &what,
                &["1|400|3", "2|200|3", "3|100|3", "4|500|4"],
            );
            // And back from the other side, where nobody looks at the version.
            fixture.right.exec("update t set pos = 5 - pos, ver = 5");
            run(
                &mut fixture.right.superuser(),
                "select deal_sync_err_rec(1000)",
            );
            arrived(
                &fixture,
                &what,
                &["1|500|5", "2|100|5", "3|200|5", "4|400|5"],
            );
        }
    }
}

#[test]
fn a_second_unique_value_is_swapped() {
    for mode in ["sync", "async", "queue"] {
        let columns =
            "id int primary key, email text unique deferrable, nick text not null unique, ver int";
        let fixture = masters(&format!("nu_{mode}"), mode, [columns, columns]);
        let mut client = fixture.left.client();
        run(
            &mut client,
            "insert into t values (1, 'a', 'x', 1), (2, 'b', 'y', 1), (3, 'c', 'z', 1)",
        );
        arrived(&fixture, mode, &["1|a|x|1", "2|b|y|1", "3|c|z|1"]);
        run(
            &mut client,
            "update t set email = case id when 1 then 'b' else 'a' end, ver = 2 where id < 3",
        );
        arrived(&fixture, mode, &["1|b|x|2", "2|a|y|2", "3|c|z|1"]);
        // A value that goes round, in several statements, the second unique one of them too.
        run(
            &mut client,
            "begin; update t set nick = 'tmp', ver = 3 where id = 1;
             update t set nick = 'x', ver = 3 where id = 2;
             update t set nick = 'y', ver = 4 where id = 1; commit",
        );
        arrived(&fixture, mode, &["1|b|y|4", "2|a|x|3", "3|c|z|1"]);
    }
}

/// What only the other side has of a row goes with it, unless one of them is newer there and stays.
#[test]
fn rows_that_swap_keys_take_along_what_only_the_target_has() {
    for mode in ["sync", "queue"] {
        let columns = "pos int primary key deferrable, item int, ver int";
        let fixture = masters(&format!("no_{mode}"), mode, [columns, columns]);
        let mut client = fixture.left.client();
        run(
            &mut client,
            "insert into t values (1, 100, 1), (2, 200, 1), (3, 300, 1), (4, 400, 1), (5, 500, 1)",
        );
        deal(&fixture, "1000");
        fixture
            .right
            .exec("alter table t add own text; set application_name = 'pg_rowsync'; update t set own = item");
        let there = "select pos, item, ver, own from t order by pos";
        run(
            &mut client,
            "update t set ver = 2, pos = case pos when 1 then 2 when 2 then 1 when 3 then 4 when 4 then 5 else 3 end",
        );
        deal(&fixture, "1000");
        let moved = [
            "1|200|2|200",
            "2|100|2|100",
            "3|500|2|500",
            "4|300|2|300",
            "5|400|2|400",
        ];
        assert_eq!(rows(&fixture.right, there), moved, "{mode}");
        fixture.right.exec(
            "set application_name = 'pg_rowsync'; update t set item = 7, ver = 9 where pos = 1",
        );
        run(
            &mut client,
            "update t set ver = 3, pos = 3 - pos where pos < 3",
        );
        deal(&fixture, "1000");
        assert_eq!(standing(&fixture), Vec::<String>::new(), "{mode}");
        assert_eq!(
            rows(&fixture.right, there)[..2],
            ["1|7|9|200", "2|200|3|100"],
            "{mode}"
        );
    }
}

/// A key that is checked with each row there cannot be swapped: the rows get each other's values.
#[test]
fn where_the_key_is_checked_with_each_row_there_values_are_swapped() {
    for mode in ["sync", "queue"] {
        let fixture = masters(
            &format!("ni_{mode}"),
            mode,
            [
                "pos int primary key deferrable, item int, ver int",
                "pos int primary key, item int, ver int",
            ],
        );
        let mut client = fixture.left.client();
        run(&mut client, "insert into t values (1, 100, 1), (2, 200, 1)");
        for ver in [2, 3] {
            let sql = format!("update t set pos = 3 - pos, ver = {ver}");
            run(&mut client, &sql);
            let expected = match ver {
                2 => ["1|200|2", "2|100|2"],
                _ => ["1|100|3", "2|200|3"],
            };
            arrived(&fixture, mode, &expected);
        }
    }
}
