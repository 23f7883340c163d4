//! What one statement writes may be true only as a whole, and arrives as a whole.

use rowsync_harness::Testbed;

use crate::common::{deal, linked, mirror, one_way, queued, rows, run, same, table};

const TREE: &str = "id int primary key, next int references t";
const PARENT: &str = "id int primary key";
const CHILD: &str = "id int primary key, p int not null references p";

fn standing(bed: &Testbed) -> Vec<String> {
    rows(&bed.left, "select table_name, op, status, sqlstate from sync_err_rec order by id")
}

fn family(label: &str, options: &str) -> Testbed {
    let bed = linked(label);
    mirror(&bed, "p", PARENT, options);
    mirror(&bed, "c", CHILD, options);
    bed
}

#[test]
fn a_statement_that_writes_a_parent_and_its_child_arrives_in_every_mode() {
    for (mode, policy) in [
        ("sync", "overwrite"),
        ("sync", "error"),
        ("async", "overwrite"),
        ("async", "skip"),
        ("queue", "overwrite"),
        ("queue", "error"),
    ] {
        let options = format!(r#"{{"mode": "{mode}", "on_conflict": "{policy}"}}"#);
        let bed = family(&format!("family_{mode}_{policy}"), &options);
        let mut client = bed.left.client();
        run(&mut client, "with n as (insert into p values (10)) insert into c values (1, 10)");
        let direct = mode != "queue";
        assert_eq!(queued(&bed), if direct { 0 } else { 2 }, "{:?}", standing(&bed));
        assert!(deal(&bed, "1000"), "{:?}", standing(&bed));
        assert_eq!(same(&bed, "c"), ["1|10"]);
        same(&bed, "p");
        run(&mut client, "with d as (delete from c where p = 10) delete from p where id = 10");
        assert_eq!(queued(&bed), if direct { 0 } else { 2 }, "{:?}", standing(&bed));
        assert!(deal(&bed, "1000"), "{:?}", standing(&bed));
        assert!(same(&bed, "c").is_empty() && same(&bed, "p").is_empty());
    }
}

#[test]
fn a_statement_of_many_rows_and_tables_arrives_with_values_of_all_kinds() {
    let bed = linked("family_values");
    mirror(&bed, "p", "id int primary key, t text, a int[], j jsonb, n numeric", "{}");
    mirror(&bed, "c", "id int primary key, p int not null references p, b bytea", "{}");
    let mut client = bed.left.client();
    run(
        &mut client,
        "with n as (insert into p select i, 'x''\\' || i, array[i, null], '{\"a\": 1}', i / 3.0
           from generate_series(1, 6000) i)
         insert into c select i, i, decode('00ff', 'hex') from generate_series(1, 6000) i",
    );
    assert_eq!(queued(&bed), 0, "{:?}", standing(&bed));
    same(&bed, "p");
    same(&bed, "c");
    run(
        &mut client,
        "with u as (update p set id = id + 10000, t = null where id <= 10 returning id)
         update c set p = p + 10000 where p <= 10",
    );
    assert_eq!(queued(&bed), 0, "{:?}", standing(&bed));
    same(&bed, "p");
    same(&bed, "c");
}

#[test]
fn a_large_tree_is_deleted_by_one_statement() {
    for mode in ["sync", "async", "queue"] {
        let bed = one_way(&format!("tree_{mode}"), TREE, &format!(r#"{{"mode": "{mode}"}}"#));
        for side in [&bed.left, &bed.right] {
            side.exec("create index on t (next)");
        }
        let mut client = bed.left.client();
        run(
            &mut client,
            "insert into t select g, nullif(g / 2, 0) from generate_series(1, 6000) g",
        );
        deal(&bed, "100000");
        assert_eq!(same(&bed, "t").len(), 6000);
        run(&mut client, "delete from t");
        deal(&bed, "100000");
        assert_eq!(standing(&bed), Vec::<String>::new());
        assert!(same(&bed, "t").is_empty());
    }
}

#[test]
fn a_record_that_fails_tears_no_statement_of_others() {
    let bed = linked("innocent");
    let queue = r#"{"mode": "queue"}"#;
    mirror(&bed, "t", TREE, queue);
    mirror(&bed, "u", "id int primary key, v text", queue);
    bed.right.exec("alter table u add check (v <> 'bad')");
    let mut client = bed.left.client();
    run(&mut client, "insert into t values (1, 2), (2, null)");
    run(&mut client, "insert into u values (1, 'bad')");
    run(&mut client, "insert into t values (3, 4), (4, 5), (5, 3)");
    assert!(!deal(&bed, "1000"));
    assert_eq!(standing(&bed), ["u|INSERT|failed|23514"]);
    same(&bed, "t");
}

/// Of a statement of which a row is refused, what can be true without that row goes on.
#[test]
fn of_a_statement_with_a_refused_row_the_others_arrive() {
    let bed = one_way("refused_row", TREE, r#"{"mode": "queue"}"#);
    bed.right.exec("alter table t add check (id <> 7)");
    let mut client = bed.left.client();
    run(
        &mut client,
        "insert into t values (1, 2), (2, 3), (3, 1), (7, null), (8, 9), (9, null), (10, 7)",
    );
    assert!(!deal(&bed, "1000"));
    assert_eq!(standing(&bed), ["t|INSERT|failed|23514", "t|INSERT|failed|23503"]);
    assert_eq!(table(&bed.right, "t").len(), 5);
    bed.right.exec("alter table t drop constraint t_id_check");
    assert!(deal(&bed, "1000"), "{:?}", standing(&bed));
    same(&bed, "t");
}

/// A statement that the server does not take as a whole for now is whole when it is tried again.
#[test]
fn rows_that_refer_to_each_other_are_tried_again_together() {
    let bed = linked("circle");
    let queue = r#"{"mode": "queue"}"#;
    mirror(&bed, "p", PARENT, queue);
    mirror(&bed, "t", "id int primary key, next int references t, p int references p", queue);
    let mut client = bed.left.client();
    run(&mut client, "insert into p values (1)");
    deal(&bed, "1000");
    bed.right.exec("delete from p");
    run(&mut client, "insert into t values (1, 2, 1), (2, 1, null)");
    assert!(!deal(&bed, "1000"));
    assert!(table(&bed.right, "t").is_empty());
    bed.right.exec("insert into p values (1)");
    assert!(deal(&bed, "1000"), "{:?}", standing(&bed));
    same(&bed, "t");
}

#[test]
fn limits_and_small_buffers_tear_no_statement() {
    let bed = one_way("limits", TREE, r#"{"mode": "queue"}"#);
    let mut client = bed.left.client();
    let rows = |first: i32| {
        format!(
            "insert into t select {first} + i, {first} + (i + 1) % 300 from generate_series(0, 299) i"
        )
    };
    run(&mut client, &rows(0));
    run(&mut client, &rows(1000));
    let mut drain = bed.left.superuser();
    run(&mut drain, "set pg_rowsync.buffer_size = '64kB'; select deal_sync_err_rec(1)");
    assert_eq!(table(&bed.right, "t").len(), 300);
    assert_eq!(queued(&bed), 300);
    run(&mut drain, "select deal_sync_err_rec(299)");
    assert_eq!(standing(&bed), Vec::<String>::new());
    same(&bed, "t");
}

/// The source checks at the end of the transaction, the target at once.
#[test]
fn a_transaction_in_the_wrong_order_for_the_target_arrives_whole() {
    for mode in ["sync", "queue"] {
        let options = format!(r#"{{"mode": "{mode}"}}"#);
        let bed = family(&format!("order_{mode}"), &options);
        bed.left.exec("alter table c alter constraint c_p_fkey deferrable initially deferred");
        let mut client = bed.left.client();
        run(
            &mut client,
            "begin; insert into c values (1, 10), (2, 20); insert into p values (20);
             insert into p values (10); update c set id = 3 where id = 1; commit",
        );
        assert!(deal(&bed, "1000"), "{:?}", standing(&bed));
        assert_eq!(standing(&bed), Vec::<String>::new());
        same(&bed, "p");
        assert_eq!(same(&bed, "c"), ["2|20", "3|10"]);
    }
}
