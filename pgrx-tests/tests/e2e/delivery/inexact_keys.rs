//! Keys that are equal though their texts are not: what moves from one to the other arrives as it
//! does where the text tells.

use crate::support::common::{attach, deal, linked, one_way, queued, records, rows, run, same};

#[test]
fn rows_move_to_keys_that_others_have_left_under_another_spelling() {
    for mode in ["sync", "queue"] {
        for key in ["primary key", "primary key deferrable"] {
            let options = format!(r#"{{"mode": "{mode}"}}"#);
            let fixture = one_way("loose", &format!("id numeric {key}, v text"), &options);
            let mut client = fixture.left.client();
            run(
                &mut client,
                "insert into t values (9, 'a'), (10, 'b'), (11.0, 'c')",
            );
            assert!(deal(&fixture, "100"));
            for sql in [
                // Each takes the place of the one before: what becomes 10.0 that of 10.
                "update t set id = id - 1",
                "update t set id = id - 1, v = v || '!'",
                "begin; update t set id = 20.0 where id = 9; update t set id = 9.000 where id = 8; commit",
                "update t set id = 9.00 where id = 9",
                "begin; update t set id = 9.0, v = 'd' where id = 9; update t set v = 'e' where id = 9; commit",
                "begin; delete from t where id = 9; insert into t values (9, 'f'); commit",
            ] {
                run(&mut client, sql);
                assert!(deal(&fixture, "100"));
                assert_eq!(same(&fixture, "t").len(), 3, "{mode}, {key}: {sql}");
            }
        }
    }
}

/// The key here is checked at the end, that there with each row.
#[test]
fn positions_shift_where_the_key_there_is_checked_with_each_row() {
    for (label, here, there) in [
        ("plain", "numeric", "numeric"),
        ("scaled", "numeric(10,0)", "numeric(10,0)"),
        ("wider", "numeric(10,0)", "numeric"),
    ] {
        for (mode, policy) in [
            ("sync", "overwrite"),
            ("queue", "overwrite"),
            ("sync", "error"),
            ("queue", "error"),
            ("sync", "skip"),
            ("queue", "skip"),
        ] {
            let what = format!("{label} {mode} {policy}");
            let fixture = linked(&format!("nshift_{label}_{mode}_{policy}"));
            for (side, key) in [
                (&fixture.left, format!("{here} primary key deferrable")),
                (&fixture.right, format!("{there} primary key")),
            ] {
                side.exec(&format!(
                    "create table t (k {key}, item int not null unique)"
                ));
            }
            let options = format!(r#"{{"mode": "{mode}", "on_conflict": "{policy}"}}"#);
            attach(&fixture, "t", &options);
            let mut client = fixture.left.client();
            for sql in [
                "insert into t select i, -i from generate_series(1, 6000) i",
                "update t set k = k + 1",
                "update t set k = k + 1.0",
                "update t set k = k - 1",
            ] {
                run(&mut client, sql);
                deal(&fixture, "100000");
                assert_eq!(records(&fixture).len(), 0, "{what}: {sql}");
                assert_eq!(queued(&fixture), 0, "{what}: {sql}");
                assert_eq!(same(&fixture, "t").len(), 6000, "{what}: {sql}");
            }
            // Where the text tells the key, two rows get each other's values instead.
            let swap = match label {
                "plain" => "update t set k = 6003 - k where k in (2, 6001)",
                _ => "select",
            };
            for sql in [
                swap,
                "begin; delete from t where k = 2; update t set k = k - 1; commit",
            ] {
                let result = client.batch_execute(sql);
                result.unwrap_or_else(|error| panic!("{what}: {sql}: {error:?}"));
            }
            deal(&fixture, "100000");
            assert_eq!(queued(&fixture), 0, "{what}: {:?}", records(&fixture));
            same(&fixture, "t");
            assert_eq!(
                rows(
                    &fixture.right,
                    "select count(*), min(k)::int, max(k)::int from t"
                ),
                ["5999|2|6000"],
                "{what}"
            );
        }
    }
}
