//! Statements that store a table's rows anew in the middle of a transaction: rows whose key is deferrable are
//! told apart by where they are stored, and places mean nothing across such a statement.

use rowsync_harness::Fixture;

use crate::support::common::{attach, both_have, deal, one_way, queued, run, table};

const DEFERRABLE: &str = "id int primary key deferrable initially deferred, v text";
const QUEUE: &str = r#"{"mode": "queue"}"#;
const SYNC: &str = r#"{"mode": "sync"}"#;
const MODES: [(&str, &str); 2] = [("queue", QUEUE), ("sync", SYNC)];

/// A table of three rows, that have arrived.
fn three(label: &str, options: &str) -> Fixture {
    let fixture = one_way(label, DEFERRABLE, options);
    fixture
        .left
        .exec("insert into t values (1, 'one'), (2, 'two'), (3, 'three')");
    drain(&fixture);
    fixture
}

#[track_caller]
fn drain(fixture: &Fixture) {
    deal(fixture, "10000");
    assert_eq!(
        queued(fixture),
        0,
        "{:?}",
        crate::support::common::records(fixture)
    );
}

#[test]
fn a_row_stored_where_another_was_before_a_rewrite_is_not_taken_for_it() {
    let rewrites = [
        ("cluster", "cluster t using t_pkey"),
        (
            "type",
            "alter table t alter v type varchar(100) using v || ''",
        ),
        ("volatile", "alter table t add extra float default random()"),
        ("unlogged", "alter table t set unlogged"),
    ];
    for (mode, options) in MODES {
        for (label, rewrite) in rewrites {
            let fixture = three(&format!("{label}_{mode}"), options);
            if label == "volatile" {
                fixture.right.exec("alter table t add extra float");
            }
            let mut client = fixture.left.client();
            // The first row, stored fourth, is stored first by CLUSTER; the others would still find their
            // places if the deleted one did not go.
            run(&mut client, "delete from t where id = 1");
            drain(&fixture);
            run(
                &mut client,
                &format!(
                    "begin; insert into t values (0, 'zero'), (7, 'seven'); {rewrite};
                     update t set v = 'THREE' where id = 3; update t set v = 'ZERO' where id = 0;
                     update t set v = 'SEVEN' where id = 7; commit"
                ),
            );
            drain(&fixture);
            let rows =
                crate::support::common::rows(&fixture.right, "select id, v from t order by id");
            assert_eq!(
                rows,
                ["0|ZERO", "2|two", "3|THREE", "7|SEVEN"],
                "{label} {mode}"
            );
        }
    }
}

#[test]
fn a_rewrite_that_is_rolled_back_leaves_rows_what_they_were() {
    for (mode, options) in MODES {
        let fixture = three(&format!("undone_{mode}"), options);
        let mut client = fixture.left.client();
        run(
            &mut client,
            "begin; update t set id = 9 where id = 1;
             savepoint s; cluster t using t_pkey; update t set v = 'lost' where id = 2; rollback to s;
             update t set v = 'nine' where id = 9; insert into t values (1, 'new'); commit",
        );
        drain(&fixture);
        both_have(&fixture, "t", &["1|new", "2|two", "3|three", "9|nine"]);
    }
}

#[test]
fn rows_of_a_table_made_anew_are_not_those_of_the_one_it_replaces() {
    for (mode, options) in MODES {
        let fixture = three(&format!("anew_{mode}"), options);
        let mut client = fixture.left.client();
        run(
            &mut client,
            &format!(
                "begin; insert into t values (4, 'four'); drop table t; create table t ({DEFERRABLE})"
            ),
        );
        run(
            &mut client,
            &crate::support::common::attach_sql(&fixture, "t", options),
        );
        run(
            &mut client,
            "insert into t values (11, 'a'), (12, 'b'), (13, 'c'), (14, 'd');
             update t set v = 'D' where id = 14; commit",
        );
        drain(&fixture);
        // What was written to the table that is gone is not sent.
        let expected = ["1|one", "11|a", "12|b", "13|c", "14|D", "2|two", "3|three"];
        assert_eq!(table(&fixture.right, "t"), expected, "{mode}");
    }
}

#[test]
fn rows_that_swap_keys_around_a_change_of_the_catalogs_are_told_apart() {
    for (mode, options) in MODES {
        let fixture = three(&format!("grant_{mode}"), options);
        run(
            &mut fixture.left.client(),
            "begin; update t set id = 2 where v = 'one'; grant select on t to public; analyze t;
             update t set id = 1 where v = 'two'; commit",
        );
        drain(&fixture);
        both_have(&fixture, "t", &["1|two", "2|one", "3|three"]);
    }
}

#[test]
fn a_partition_put_in_anothers_place_has_rows_of_its_own() {
    let fixture = crate::support::common::linked("exchanged");
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!(
            "create table t ({DEFERRABLE}) partition by range (id)"
        ));
        side.exec("create table p partition of t for values from (0) to (100)");
    }
    attach(&fixture, "t", QUEUE);
    fixture
        .left
        .exec("insert into t values (1, 'one'), (2, 'two')");
    drain(&fixture);
    // Rows that the other side is to get only when they change.
    run(
        &mut fixture.left.client(),
        "begin; insert into t values (3, 'three'); alter table t detach partition p;
         alter table p rename to old; create table p (like old including all);
         insert into p values (11, 'a'), (12, 'b'), (13, 'c');
         alter table t attach partition p for values from (0) to (100);
         update t set v = 'C' where id = 13; commit",
    );
    drain(&fixture);
    assert_eq!(
        table(&fixture.right, "t"),
        ["1|one", "13|C", "2|two", "3|three"]
    );
}
