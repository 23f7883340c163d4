//! What [Altering tables](../../../../doc/operations.md#altering-tables) says: the order in which nothing is
//! marked failed, and the way out where it was another one.

use postgres::Client;
use rowsync_harness::{Fixture, Side};

use crate::support::common::{
    attach, both_have, deal, linked, mirror, one_way, records, refused, rows, run, same, table,
};
use crate::support::failed::{counts, discard, retry, retry_all, the_failed};

const COLUMNS: &str = "id int primary key, v text";

/// Two masters of a table `t`.
fn masters(label: &str, options: &str) -> Fixture {
    let fixture = linked(label);
    fixture.link(&fixture.right, &fixture.left, "dst", &[]);
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table t ({COLUMNS})"));
    }
    for (side, other) in [
        (&fixture.left, &fixture.right),
        (&fixture.right, &fixture.left),
    ] {
        side.exec(&format!(
            "select attach_sync('t', 'dst', '{}.t', '{options}')",
            other.user
        ));
    }
    fixture
}

fn drain(side: &Side) {
    side.query_one::<bool>("select deal_sync_err_rec(1000)");
}

fn records_of(side: &Side) -> Vec<String> {
    rows(
        side,
        "select op, sqlstate, status from sync_err_rec order by id",
    )
}

const MODES: [&str; 2] = ["async", "queue"];

/// Here, the trigger goes with the table, and so does what waits in the queue.
#[test]
fn a_table_that_is_renamed_or_moved_here_goes_on() {
    for mode in ["async", "sync", "queue"] {
        let options = format!(r#"{{"mode": "{mode}"}}"#);
        let fixture = one_way(&format!("opshere{mode}"), COLUMNS, &options);
        let mut client = fixture.left.client();
        run(&mut client, "insert into t values (1, 'a')");
        run(
            &mut client,
            "begin; insert into t values (2, 'b'); alter table t rename to u;
             update u set v = 'c' where id = 1; commit",
        );
        let schema = format!("{}_moved", fixture.left.user);
        fixture.left.exec_superuser(&format!(
            "create schema {schema} authorization {}",
            fixture.left.user
        ));
        run(
            &mut client,
            &format!(
                "begin; insert into u values (3, 'd'); alter table u set schema {schema}; commit"
            ),
        );
        run(
            &mut client,
            &format!("update {schema}.u set v = 'e' where id = 2"),
        );
        deal(&fixture, "100");
        assert_eq!(table(&fixture.right, "t"), ["1|c", "2|e", "3|d"], "{mode}");
        assert_eq!(records(&fixture), [""; 0], "{mode}");
        assert_eq!(
            rows(&fixture.left, "select relation from sync_tables"),
            [format!("{schema}.u")],
            "{mode}"
        );
        // Another table takes the old name and place.
        run(
            &mut client,
            &format!("create table t ({COLUMNS}); insert into t values (1, 'other')"),
        );
        run(
            &mut client,
            &format!("select detach_sync('{schema}.u', 'dst')"),
        );
        assert_eq!(table(&fixture.right, "t"), ["1|c", "2|e", "3|d"], "{mode}");
    }
}

/// There, with the queue empty and writes held back, it is attached again to where it is.
#[test]
fn a_target_that_is_renamed_or_moved_is_attached_again() {
    for mode in MODES {
        let options = format!(r#"{{"mode": "{mode}"}}"#);
        let fixture = one_way(&format!("opsthere{mode}"), COLUMNS, &options);
        let schema = format!("{}_moved", fixture.right.user);
        fixture.right.exec_superuser(&format!(
            "create schema {schema} authorization {}",
            fixture.right.user
        ));
        let mut writer = fixture.left.client();
        run(&mut writer, "insert into t values (1, 'a')");
        deal(&fixture, "100");
        let mut client = fixture.left.client();
        run(&mut client, "begin; lock table t in share mode");
        fixture.right.exec(&format!(
            "alter table t rename to u; alter table u set schema {schema}"
        ));
        run(
            &mut client,
            &format!("select attach_sync('t', 'dst', '{schema}.u', '{options}'); commit"),
        );
        run(
            &mut writer,
            "update t set v = 'b'; insert into t values (2, 'c')",
        );
        deal(&fixture, "100");
        assert_eq!(records(&fixture), [""; 0], "{mode}");
        assert_eq!(
            rows(
                &fixture.right,
                &format!("select * from {schema}.u order by 1")
            ),
            ["1|b", "2|c"],
            "{mode}"
        );
    }
}

/// In another order records name a table that is not there: a view of its old name takes them.
#[test]
fn records_for_a_target_that_was_renamed_arrive_through_a_view() {
    for mode in MODES {
        let options = format!(r#"{{"mode": "{mode}"}}"#);
        let fixture = one_way(&format!("opsview{mode}"), COLUMNS, &options);
        let mut client = fixture.left.client();
        run(&mut client, "insert into t values (1, 'a'), (2, 'a')");
        deal(&fixture, "100");
        fixture.right.exec("alter table t rename to u");
        run(
            &mut client,
            "update t set v = 'b' where id = 1; delete from t where id = 2",
        );
        deal(&fixture, "100");
        let failed = the_failed(&fixture);
        let said = rows(
            &fixture.left,
            "select sqlstate from sync_err_rec where status = 'failed'",
        );
        assert_eq!(said, ["42P01"], "{mode}");
        run(
            &mut client,
            &format!(
                "select attach_sync('t', 'dst', '{}.u', '{options}')",
                fixture.right.user
            ),
        );
        fixture.right.exec("create view t as select * from u");
        assert!(retry(&fixture, failed), "{mode}: {:?}", records(&fixture));
        deal(&fixture, "100");
        assert_eq!(records(&fixture), [""; 0], "{mode}");
        fixture.right.exec("drop view t");
        run(&mut client, "insert into t values (3, 'c')");
        deal(&fixture, "100");
        assert_eq!(records(&fixture), [""; 0], "{mode}");
        assert_eq!(table(&fixture.right, "u"), ["1|b", "3|c"], "{mode}");
    }
}

/// With the queue empty and writes held back here.
#[test]
fn another_key_is_made_on_both_sides() {
    for mode in ["async", "sync", "queue"] {
        for policy in ["overwrite", "error", "skip"] {
            let options = format!(r#"{{"mode": "{mode}", "on_conflict": "{policy}"}}"#);
            let fixture = one_way(
                "opskey",
                "id int primary key, k int not null, v text",
                &options,
            );
            let mut writer = fixture.left.client();
            run(
                &mut writer,
                "insert into t values (1, 11, 'a'), (2, 12, 'a')",
            );
            deal(&fixture, "100");
            let alter = "alter table t drop constraint t_pkey; alter table t add primary key (k)";
            let mut client = fixture.left.client();
            run(&mut client, "begin; lock table t in share mode");
            fixture.right.exec(alter);
            run(&mut client, &format!("{alter}; commit"));
            run(
                &mut writer,
                "update t set v = 'b' where id = 1; update t set k = 13, id = 3 where id = 2;
                 insert into t values (1, 14, 'c')",
            );
            deal(&fixture, "100");
            assert_eq!(records(&fixture), [""; 0], "{mode} {policy}");
            both_have(&fixture, "t", &["1|11|b", "1|14|c", "3|13|a"]);
        }
    }
}

/// What a failed record was captured under is not what rows are told by any more. What is written afterwards
/// arrives, and the record does not set it back.
#[test]
fn a_record_that_had_failed_under_another_key_sets_no_row_back() {
    for mode in MODES {
        for policy in ["overwrite", "error", "skip"] {
            for keeps_index in [true, false] {
                let options = format!(r#"{{"mode": "{mode}", "on_conflict": "{policy}"}}"#);
                let columns = "id int primary key, k int not null, v text";
                let fixture = one_way("opsfailed", columns, &options);
                let mut client = fixture.left.client();
                run(
                    &mut client,
                    "insert into t values (1, 11, 'a'), (2, 12, 'a')",
                );
                deal(&fixture, "100");
                fixture
                    .right
                    .exec("alter table t add constraint fits check (v <> 'refused')");
                run(&mut client, "update t set v = 'refused' where id = 1");
                deal(&fixture, "100");
                let failed = the_failed(&fixture);
                run(&mut client, "update t set v = 'waits' where id = 1");
                assert_eq!(counts(&fixture), (0, 1, 1));
                let alter =
                    "alter table t drop constraint t_pkey; alter table t add primary key (k)";
                fixture.right.exec(alter);
                if keeps_index {
                    fixture.right.exec("create unique index on t (id)");
                }
                run(&mut client, &format!("begin; {alter}; commit"));
                run(
                    &mut client,
                    "update t set v = 'new' where k = 11; update t set v = 'new' where k = 12",
                );
                deal(&fixture, "100");
                fixture.right.exec("alter table t drop constraint fits");
                retry(&fixture, failed);
                deal(&fixture, "100");
                let what = format!("{mode} {policy} {keeps_index}");
                let there = table(&fixture.right, "t");
                assert!(
                    !there
                        .iter()
                        .any(|row| row.contains("refused") || row.contains("waits")),
                    "{what}: {there:?}, {:?}",
                    records(&fixture)
                );
                // The way out: what is there under the old key is discarded, and what has waited goes on.
                for _ in 0..4 {
                    let all = rows(
                        &fixture.left,
                        "select id, message from sync_err_rec where status = 'failed'",
                    );
                    for record in all {
                        let (id, message) = record.split_once('|').expect("a message");
                        assert!(message.contains("key"), "{what}: {message}");
                        discard(&fixture, id.parse().expect("a number"));
                    }
                    deal(&fixture, "100");
                }
                run(&mut client, "update t set v = v where k = 11");
                deal(&fixture, "100");
                assert_eq!(records(&fixture), [""; 0], "{what}");
                both_have(&fixture, "t", &["1|11|new", "2|12|new"]);
            }
        }
    }
}

/// What is pending keeps its place before all that is written later, whatever either names its row by.
#[test]
fn records_that_wait_for_their_turn_arrive_under_the_key_that_they_were_captured_under() {
    for policy in ["overwrite", "error", "skip"] {
        let options = format!(r#"{{"mode": "queue", "on_conflict": "{policy}"}}"#);
        let columns = "id int primary key, k int not null unique, v text";
        let fixture = one_way("opsturn", columns, &options);
        let mut client = fixture.left.client();
        run(
            &mut client,
            "insert into t values (1, 11, 'a'), (2, 12, 'a'), (3, 13, 'a')",
        );
        run(
            &mut client,
            "update t set v = 'b' where id = 1; delete from t where id = 2",
        );
        let by_k = options.replacen('{', r#"{"key": ["k"], "#, 1);
        attach(&fixture, "t", &by_k);
        run(
            &mut client,
            "update t set v = 'c' where id = 1; update t set v = 'c', id = 30 where id = 3;
             insert into t values (2, 12, 'again')",
        );
        deal(&fixture, "100");
        assert_eq!(records(&fixture), [""; 0], "{policy}");
        both_have(&fixture, "t", &["1|11|c", "2|12|again", "30|13|c"]);
    }
}

/// On the target first: nothing is marked failed. Here first: what is written meanwhile waits until the target
/// has it, too.
#[test]
fn a_column_is_added_in_either_order() {
    let add = "alter table t add n int default 7";
    for mode in ["async", "sync", "queue"] {
        let options = format!(r#"{{"mode": "{mode}"}}"#);
        for target_first in [true, false] {
            let fixture = one_way("opsadd", COLUMNS, &options);
            let mut client = fixture.left.client();
            run(&mut client, "insert into t values (1, 'a'), (2, 'a')");
            deal(&fixture, "100");
            let (first, second) = if target_first {
                (&fixture.right, &fixture.left)
            } else {
                (&fixture.left, &fixture.right)
            };
            first.exec(add);
            let between = "update t set v = 'b' where id = 1";
            if mode == "sync" && !target_first {
                let error = refused(&mut client, between, "42703");
                assert!(error.message().contains("\"n\""), "{error:?}");
            } else {
                run(&mut client, between);
            }
            run_if(
                &mut client,
                target_first || mode != "sync",
                "delete from t where id = 2",
            );
            deal(&fixture, "100");
            if target_first {
                assert_eq!(records(&fixture), [""; 0], "{mode}");
            }
            second.exec(add);
            run_if(&mut client, target_first || mode == "sync", between);
            run_if(
                &mut client,
                !target_first && mode == "sync",
                "delete from t where id = 2",
            );
            run(&mut client, "insert into t values (3, 'c')");
            retry_all(&fixture);
            run(&mut client, "update t set n = 8 where id = 3");
            deal(&fixture, "100");
            assert_eq!(records(&fixture), [""; 0], "{mode}");
            both_have(&fixture, "t", &["1|b|7", "3|c|8"]);
        }
    }
}

fn run_if(client: &mut Client, condition: bool, sql: &str) {
    if condition {
        run(client, sql);
    }
}

/// With writes held back on both: the side that has the column sends it.
#[test]
fn a_column_is_added_on_two_masters() {
    let add = "alter table t add n int default 7";
    for mode in MODES {
        let fixture = masters(
            &format!("opstwo{mode}"),
            &format!(r#"{{"mode": "{mode}"}}"#),
        );
        fixture.left.exec("insert into t values (1, 'a'), (2, 'a')");
        drain(&fixture.left);
        let (mut left, mut right) = (fixture.left.client(), fixture.right.client());
        for client in [&mut left, &mut right] {
            run(client, "begin; lock table t in share mode");
        }
        for client in [&mut left, &mut right] {
            run(client, add);
        }
        for client in [&mut left, &mut right] {
            run(client, "commit");
        }
        run(&mut left, "update t set n = 8 where id = 1");
        run(&mut right, "update t set n = 9 where id = 2");
        for side in [&fixture.left, &fixture.right] {
            drain(side);
            assert_eq!(records_of(side), [""; 0], "{mode}");
        }
        both_have(&fixture, "t", &["1|a|8", "2|a|9"]);
    }
}

/// One after the other, while both write: what the one sends waits there, what the other sends arrives.
#[test]
fn a_column_that_one_of_two_masters_lacks_for_a_while_is_made_up_for() {
    let add = "alter table t add n int default 7";
    for mode in MODES {
        for left_first in [true, false] {
            let fixture = masters(
                &format!("opslack{mode}"),
                &format!(r#"{{"mode": "{mode}"}}"#),
            );
            fixture
                .left
                .exec("insert into t values (1, 'a'), (2, 'a'), (3, 'a')");
            drain(&fixture.left);
            let (first, second) = if left_first {
                (&fixture.left, &fixture.right)
            } else {
                (&fixture.right, &fixture.left)
            };
            first.exec(add);
            first.exec("update t set v = 'first', n = 8 where id = 1");
            second.exec("update t set v = 'second' where id = 2");
            first.exec("insert into t values (4, 'first', 9)");
            second.exec("insert into t values (5, 'second'); delete from t where id = 3");
            for side in [first, second] {
                drain(side);
            }
            assert_eq!(records_of(second), [""; 0], "{mode}");
            let left = records_of(first);
            assert_eq!(
                left.first().map(String::as_str),
                Some("UPDATE|42703|failed"),
                "{left:?}"
            );
            second.exec(add);
            let failed: i64 =
                first.query_one("select id from sync_err_rec where status = 'failed'");
            assert!(first.query_one::<bool>(&format!("select retry_sync_err_rec({failed})")));
            drain(first);
            first.exec("update t set n = 1 where id = 2");
            second.exec("update t set n = 2 where id = 5");
            for side in [first, second] {
                drain(side);
                assert_eq!(records_of(side), [""; 0], "{mode}");
            }
            both_have(
                &fixture,
                "t",
                &["1|first|8", "2|second|1", "4|first|9", "5|second|2"],
            );
        }
    }
}

/// Of an attached table that becomes a partition of an attached one. Its records in the queue arrive as well.
#[test]
fn an_attached_table_becomes_a_partition_with_records_in_the_queue() {
    for mode in ["async", "sync", "queue"] {
        let fixture = linked(&format!("opspart{mode}"));
        let options = format!(r#"{{"mode": "{mode}"}}"#);
        fixture
            .left
            .exec("create table whole (id int primary key, v text) partition by range (id)");
        fixture
            .right
            .exec("create table whole (id int primary key, v text)");
        attach(&fixture, "whole", &options);
        mirror(&fixture, "t", COLUMNS, &options);
        let mut client = fixture.left.client();
        run(&mut client, "insert into t values (1, 'a'), (2, 'a')");
        let attach_partition = "alter table whole attach partition t for values from (0) to (100)";
        let error = refused(&mut client, attach_partition, "42710");
        assert!(error.message().contains("00_pg_rowsync_dst"), "{error:?}");
        // The rows have their table there from now on: it is copied over in the same order.
        deal(&fixture, "100");
        fixture
            .right
            .exec("begin; insert into whole select * from t; drop table t; commit");
        run(
            &mut client,
            &format!("begin; select detach_sync('t', 'dst'); {attach_partition}; commit"),
        );
        run(
            &mut client,
            "update whole set v = 'b' where id = 1; delete from t where id = 2; insert into t values (3, 'c')",
        );
        deal(&fixture, "100");
        assert_eq!(records(&fixture), [""; 0], "{mode}");
        assert_eq!(same(&fixture, "whole"), ["1|b", "3|c"], "{mode}");
    }
}
