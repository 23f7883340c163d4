//! TRUNCATE among other changes, and of targets that are not stored as the table here is.

use rowsync_harness::Fixture;

use crate::support::common::{
    attach, both_have, deal, linked, mirror, one_way, queued, records, rows, run, same, table,
};

const SYNC: &str = r#"{"mode": "sync"}"#;
const QUEUE: &str = r#"{"mode": "queue"}"#;

/// Parent and child under a foreign key that can wait, both sent. One parent has arrived.
fn family(label: &str, options: &str) -> Fixture {
    let fixture = linked(label);
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table p (id int primary key)");
        side.exec(
            "create table c (id int primary key, p int references p deferrable, \
             up int references c deferrable)",
        );
    }
    attach(&fixture, "p", options);
    attach(&fixture, "c", options);
    fixture.left.exec("insert into p values (1)");
    drain(&fixture);
    fixture
}

#[track_caller]
fn drain(fixture: &Fixture) {
    deal(fixture, "10000");
    assert_eq!(queued(fixture), 0, "{:?}", records(fixture));
}

#[test]
fn a_table_is_emptied_whatever_is_still_to_be_checked_of_it() {
    for (mode, options) in [("sync", SYNC), ("queue", QUEUE)] {
        let fixture = family(&format!("pending_{mode}"), options);
        let mut client = fixture.left.client();
        run(
            &mut client,
            "begin; insert into c values (1, 1), (2, 1); truncate c; insert into c values (3, 1); commit",
        );
        drain(&fixture);
        both_have(&fixture, "c", &["3|1|~"]);
        run(
            &mut client,
            "begin; insert into p values (2); insert into c values (4, 2, 3);
             update c set up = null; delete from c where id = 3;
             update p set id = 5 where id = 1; truncate p, c; insert into p values (7);
             insert into c values (8, 7, 8); commit",
        );
        drain(&fixture);
        both_have(&fixture, "p", &["7"]);
        both_have(&fixture, "c", &["8|7|8"]);
        run(
            &mut client,
            "begin; delete from c; delete from p; truncate c; insert into p values (9); commit",
        );
        drain(&fixture);
        both_have(&fixture, "p", &["9"]);
        both_have(&fixture, "c", &[]);
    }
}

/// Deletions under `newest` leave something behind, so they are sent, and the TRUNCATE stays behind them.
#[test]
fn a_table_is_emptied_after_deletions_that_are_sent() {
    for mode in ["sync", "async", "queue"] {
        let options =
            format!(r#"{{"mode": "{mode}", "on_conflict": "newest", "version_column": "id"}}"#);
        let fixture = family(&format!("newestpending_{mode}"), &options);
        fixture.left.exec(
            "begin; insert into c values (1, 1), (2, 1); delete from c where id = 1; truncate c;
             insert into c values (3, 1); commit",
        );
        drain(&fixture);
        both_have(&fixture, "c", &["3|1|~"]);
        fixture.left.exec(
            "begin; update c set up = 3; insert into c values (4, 1, 3); delete from c where id = 4;
             truncate c; insert into c values (5, 1), (6, 1); delete from c where id = 5; truncate c;
             insert into p values (8); insert into c values (7, 8, 7); commit",
        );
        drain(&fixture);
        both_have(&fixture, "c", &["7|8|7"]);
    }
}

#[test]
fn transactions_that_meet_in_a_drain_do_not_hold_a_truncate_up() {
    let fixture = family("meet", QUEUE);
    fixture.left.exec("insert into c values (1, 1), (2, 1)");
    fixture.left.exec("truncate c");
    fixture.left.exec("insert into c values (3, 1)");
    drain(&fixture);
    both_have(&fixture, "c", &["3|1|~"]);
    // Nor when somebody else's failure has the batch applied in parts.
    mirror(&fixture, "other", "id int primary key, v int", QUEUE);
    fixture.right.exec("alter table other add check (v > 0)");
    fixture.left.exec("insert into other values (1, 1)");
    fixture.left.exec("insert into c values (4, 1), (5, 1)");
    fixture.left.exec("insert into other values (2, 0)");
    fixture.left.exec("truncate c");
    fixture.left.exec("insert into c values (6, 1)");
    deal(&fixture, "10000");
    both_have(&fixture, "c", &["6|1|~"]);
    assert_eq!(records(&fixture), ["INSERT|23514|1|failed"]);
}

#[test]
fn a_table_where_the_newest_wins_is_emptied_after_deletions() {
    let options = r#"{"mode": "sync", "on_conflict": "newest", "version_column": "ver"}"#;
    let fixture = one_way("newest", "id int primary key, ver int", options);
    run(
        &mut fixture.left.client(),
        "begin; insert into t values (1, 1), (2, 1); delete from t where id = 1; truncate t;
         insert into t values (3, 1); commit",
    );
    both_have(&fixture, "t", &["3|1"]);
}

#[test]
fn a_partitioned_target_is_emptied() {
    for (mode, options) in [("sync", SYNC), ("async", "{}"), ("queue", QUEUE)] {
        let fixture = linked(&format!("parted_{mode}"));
        let columns = "id int primary key, v text";
        fixture.left.exec(&format!("create table t ({columns})"));
        fixture.right.exec(&format!(
            "create table t ({columns}) partition by hash (id);
             create table t0 partition of t for values with (modulus 2, remainder 0);
             create table t1 partition of t for values with (modulus 2, remainder 1)"
        ));
        attach(&fixture, "t", options);
        // Another table's rows are not to go with it.
        mirror(&fixture, "base", columns, options);
        fixture
            .right
            .exec("create table child () inherits (base); insert into child values (1, 'stays')");
        fixture
            .left
            .exec("insert into t select i, 'x' from generate_series(1, 100) i");
        fixture.left.exec("insert into base values (2, 'goes')");
        fixture.left.exec("truncate t, base");
        fixture.left.exec("insert into t values (1, 'after')");
        drain(&fixture);
        both_have(&fixture, "t", &["1|after"]);
        assert_eq!(table(&fixture.right, "base"), ["1|stays"], "{mode}");
        // The same session, another time, and beside a record that fails.
        fixture.right.exec("alter table base add check (id > 0)");
        fixture.left.exec("insert into base values (3, 'goes')");
        if mode == "queue" {
            fixture.left.exec("insert into base values (0, 'fails')");
        }
        fixture.left.exec("truncate t");
        deal(&fixture, "10000");
        both_have(&fixture, "t", &[]);
    }
}

/// Partitions of partitions, a target that is partitioned only later, and a plain table in one TRUNCATE with it.
#[test]
fn a_target_is_emptied_that_is_partitioned_twice_or_later() {
    for (mode, options) in [("sync", SYNC), ("async", "{}"), ("queue", QUEUE)] {
        let fixture = linked(&format!("twice_{mode}"));
        let columns = "id int primary key, v text";
        for table in ["t", "plain"] {
            mirror(&fixture, table, columns, options);
        }
        let mut client = fixture.left.client();
        let fill = "insert into t select i, 'x' from generate_series(1, 100) i;
                    insert into plain values (1, 'x')";
        run(&mut client, fill);
        drain(&fixture);
        run(&mut client, "truncate t, plain");
        drain(&fixture);
        both_have(&fixture, "t", &[]);
        for _ in 0..2 {
            // The session goes on.
            fixture.right.exec(&format!(
                "drop table t; create table t ({columns}) partition by range (id);
                 create table a partition of t for values from (minvalue) to (50) partition by hash (id);
                 create table a0 partition of a for values with (modulus 1, remainder 0);
                 create table b partition of t default"
            ));
            run(&mut client, fill);
            drain(&fixture);
            assert_eq!(same(&fixture, "t").len(), 100, "{mode}");
            run(
                &mut client,
                "begin; insert into t values (200, 'gone'); truncate plain, t;
                 insert into t values (1, 'after'); commit",
            );
            drain(&fixture);
            both_have(&fixture, "t", &["1|after"]);
            both_have(&fixture, "plain", &[]);
            run(&mut client, "truncate t");
            drain(&fixture);
        }
    }
}

/// A user says when constraints are checked here; there it is said anew.
#[test]
fn set_constraints_of_the_user_hinders_no_truncate_and_no_write() {
    for key in ["deferrable", "deferrable initially deferred"] {
        for (mode, policy) in [
            ("sync", "overwrite"),
            ("sync", "error"),
            ("sync", "newest\", \"version_column\": \"id"),
            ("async", "skip"),
            ("queue", "overwrite"),
            ("queue", "error"),
            ("queue", "newest\", \"version_column\": \"id"),
        ] {
            let options = format!(r#"{{"mode": "{mode}", "on_conflict": "{policy}"}}"#);
            let fixture = linked("set_constraints");
            mirror(&fixture, "p", "id int primary key", &options);
            let child = format!("id int primary key, p int references p {key}");
            mirror(&fixture, "c", &child, &options);
            let mut client = fixture.left.client();
            for sql in [
                "insert into p select generate_series(1, 6)",
                "insert into c values (1, 1), (2, 2)",
                "begin; set constraints all immediate; insert into c values (3, 3); delete from c where id = 1;
                 delete from p where id = 4; truncate c; commit",
                "begin; set constraints all deferred; insert into c values (4, 9); insert into p values (9);
                 set constraints all immediate; truncate c; insert into c values (5, 9); commit",
                "begin; set constraints all deferred; insert into c values (7, 30); insert into p values (30); commit",
                "begin; set constraints all deferred; delete from p where id = 30; delete from c where p = 30; commit",
                "begin; set constraints all immediate; update p set id = 20 where id = 5; delete from p where id = 6;
                 truncate p, c; insert into p values (1); insert into c values (1, 1); commit",
                "begin; set constraints all immediate; insert into c values (2, 1); set constraints all deferred;
                 insert into c values (3, 2); insert into p values (2); commit",
            ] {
                run(&mut client, sql);
                let what = format!("{key} {mode} {policy}: {sql}");
                let standing = "select table_name, op, status, sqlstate from sync_err_rec order by id";
                assert!(deal(&fixture, "1000"), "{what}: {:?}", rows(&fixture.left, standing));
                assert_eq!(queued(&fixture), 0, "{what}: {:?}", rows(&fixture.left, standing));
                same(&fixture, "p");
                same(&fixture, "c");
            }
            assert_eq!(same(&fixture, "c"), ["1|1", "2|1", "3|2"]);
        }
    }
}
