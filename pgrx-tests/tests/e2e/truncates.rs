//! TRUNCATE among other changes, and of targets that are not stored as the table here is.

use rowsync_harness::Testbed;

use crate::common::{
    attach, both_have, deal, linked, mirror, one_way, queued, records, run, table,
};

const SYNC: &str = r#"{"mode": "sync"}"#;
const QUEUE: &str = r#"{"mode": "queue"}"#;

/// Parent and child under a foreign key that can wait, both sent. One parent has arrived.
fn family(label: &str, options: &str) -> Testbed {
    let bed = linked(label);
    for side in [&bed.left, &bed.right] {
        side.exec("create table p (id int primary key)");
        side.exec(
            "create table c (id int primary key, p int references p deferrable, \
             up int references c deferrable)",
        );
    }
    attach(&bed, "p", options);
    attach(&bed, "c", options);
    bed.left.exec("insert into p values (1)");
    drain(&bed);
    bed
}

#[track_caller]
fn drain(bed: &Testbed) {
    deal(bed, "10000");
    assert_eq!(queued(bed), 0, "{:?}", records(bed));
}

#[test]
fn a_table_is_emptied_whatever_is_still_to_be_checked_of_it() {
    for (mode, options) in [("sync", SYNC), ("queue", QUEUE)] {
        let bed = family(&format!("pending_{mode}"), options);
        let mut client = bed.left.client();
        run(
            &mut client,
            "begin; insert into c values (1, 1), (2, 1); truncate c; insert into c values (3, 1); commit",
        );
        drain(&bed);
        both_have(&bed, "c", &["3|1|~"]);
        run(
            &mut client,
            "begin; insert into p values (2); insert into c values (4, 2, 3);
             update c set up = null; delete from c where id = 3;
             update p set id = 5 where id = 1; truncate p, c; insert into p values (7);
             insert into c values (8, 7, 8); commit",
        );
        drain(&bed);
        both_have(&bed, "p", &["7"]);
        both_have(&bed, "c", &["8|7|8"]);
        run(
            &mut client,
            "begin; delete from c; delete from p; truncate c; insert into p values (9); commit",
        );
        drain(&bed);
        both_have(&bed, "p", &["9"]);
        both_have(&bed, "c", &[]);
    }
}

#[test]
fn transactions_that_meet_in_a_drain_do_not_hold_a_truncate_up() {
    let bed = family("meet", QUEUE);
    bed.left.exec("insert into c values (1, 1), (2, 1)");
    bed.left.exec("truncate c");
    bed.left.exec("insert into c values (3, 1)");
    drain(&bed);
    both_have(&bed, "c", &["3|1|~"]);
    // Nor when somebody else's failure has the batch applied in parts.
    mirror(&bed, "other", "id int primary key, v int", QUEUE);
    bed.right.exec("alter table other add check (v > 0)");
    bed.left.exec("insert into other values (1, 1)");
    bed.left.exec("insert into c values (4, 1), (5, 1)");
    bed.left.exec("insert into other values (2, 0)");
    bed.left.exec("truncate c");
    bed.left.exec("insert into c values (6, 1)");
    deal(&bed, "10000");
    both_have(&bed, "c", &["6|1|~"]);
    assert_eq!(records(&bed), ["INSERT|23514|1|failed"]);
}

#[test]
fn a_table_where_the_newest_wins_is_emptied_after_deletions() {
    let options = r#"{"mode": "sync", "on_conflict": "newest", "version_column": "ver"}"#;
    let bed = one_way("newest", "id int primary key, ver int", options);
    run(
        &mut bed.left.client(),
        "begin; insert into t values (1, 1), (2, 1); delete from t where id = 1; truncate t;
         insert into t values (3, 1); commit",
    );
    both_have(&bed, "t", &["3|1"]);
}

#[test]
fn a_partitioned_target_is_emptied() {
    for (mode, options) in [("sync", SYNC), ("async", "{}"), ("queue", QUEUE)] {
        let bed = linked(&format!("parted_{mode}"));
        let columns = "id int primary key, v text";
        bed.left.exec(&format!("create table t ({columns})"));
        bed.right.exec(&format!(
            "create table t ({columns}) partition by hash (id);
             create table t0 partition of t for values with (modulus 2, remainder 0);
             create table t1 partition of t for values with (modulus 2, remainder 1)"
        ));
        attach(&bed, "t", options);
        // Another table's rows are not to go with it.
        mirror(&bed, "base", columns, options);
        bed.right
            .exec("create table child () inherits (base); insert into child values (1, 'stays')");
        bed.left.exec("insert into t select i, 'x' from generate_series(1, 100) i");
        bed.left.exec("insert into base values (2, 'goes')");
        bed.left.exec("truncate t, base");
        bed.left.exec("insert into t values (1, 'after')");
        drain(&bed);
        both_have(&bed, "t", &["1|after"]);
        assert_eq!(table(&bed.right, "base"), ["1|stays"], "{mode}");
        // The same session, another time, and beside a record that fails.
        bed.right.exec("alter table base add check (id > 0)");
        bed.left.exec("insert into base values (3, 'goes')");
        if mode == "queue" {
            bed.left.exec("insert into base values (0, 'fails')");
        }
        bed.left.exec("truncate t");
        deal(&bed, "10000");
        both_have(&bed, "t", &[]);
    }
}
