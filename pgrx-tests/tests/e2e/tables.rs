//! What becomes of rows: keys, children, order within a transaction, TRUNCATE, partitions.

use crate::common::{
    attach, both_have, deal, linked, mirror, one_way, queued, rows, run, same, table,
};

const COLUMNS: &str = "id int primary key, v text";

#[test]
fn an_update_keeps_the_child_rows_of_the_remote() {
    let bed = one_way("children", COLUMNS, "{}");
    bed.left.exec("insert into t values (1, 'a'), (2, 'b')");
    bed.right.exec(
        "create table child (id int primary key, parent int references t on delete cascade
                             on update cascade);
         insert into child values (10, 1), (20, 2)",
    );
    bed.left.exec("update t set v = 'changed' where id = 1");
    assert_eq!(table(&bed.right, "child"), ["10|1", "20|2"]);
    // A key change is the same row under another key, so children follow it.
    bed.left.exec("update t set id = 3 where id = 1");
    both_have(&bed, "t", &["2|b", "3|changed"]);
    assert_eq!(table(&bed.right, "child"), ["10|3", "20|2"]);
    bed.left.exec("delete from t where id = 2");
    assert_eq!(table(&bed.right, "child"), ["10|3"]);
    assert_eq!(queued(&bed), 0);
}

#[test]
fn a_key_change_moves_the_row_with_what_only_the_remote_knows() {
    let bed = linked("move");
    bed.left.exec(&format!("create table t ({COLUMNS})"));
    bed.right.exec(&format!("create table t ({COLUMNS}, note text default 'remote')"));
    attach(&bed, "t", "{}");
    bed.left.exec("insert into t values (1, 'a'), (2, 'b')");
    bed.right.exec("update t set note = 'kept' where id = 1");
    bed.left.exec("update t set id = id + 10");
    assert_eq!(table(&bed.right, "t"), ["11|a|kept", "12|b|remote"]);
}

#[test]
fn keys_that_shift_all_at_once_arrive_though_each_is_taken() {
    let bed = linked("shift");
    let late = "id int primary key deferrable initially deferred, v text";
    bed.left.exec(&format!("create table t ({late})"));
    bed.right.exec(&format!("create table t ({COLUMNS})"));
    attach(&bed, "t", r#"{"mode": "sync"}"#);
    let mut client = bed.left.client();
    run(&mut client, "insert into t select i, 'v' || i from generate_series(1, 12000) i");
    run(&mut client, "update t set id = id + 1");
    assert_eq!(same(&bed, "t").len(), 12_000);
    run(&mut client, "update t set id = id - 1");
    run(&mut client, "delete from t where id > 6");
    // One command that swaps, a ring of three, and a chain that ends at a free key.
    run(&mut client, "update t set id = case id when 1 then 2 else 1 end where id in (1, 2)");
    both_have(&bed, "t", &["1|v2", "2|v1", "3|v3", "4|v4", "5|v5", "6|v6"]);
    run(
        &mut client,
        "update t set id = case id when 1 then 2 when 2 then 3 when 3 then 1 \
                      when 4 then 5 when 5 then 6 else 7 end",
    );
    both_have(&bed, "t", &["1|v3", "2|v2", "3|v1", "5|v4", "6|v5", "7|v6"]);
    // Two commands that swap over a free key.
    run(&mut client, "begin; update t set id = 0 where id = 1; update t set id = 1 where id = 2");
    run(&mut client, "update t set id = 2 where id = 0; commit");
    both_have(&bed, "t", &["1|v2", "2|v3", "3|v1", "5|v4", "6|v5", "7|v6"]);
}

#[test]
fn two_commands_swap_keys_that_both_hold_in_between() {
    let bed = linked("between");
    let late = "id int primary key deferrable initially deferred, v text";
    bed.left.exec(&format!("create table t ({late})"));
    bed.right.exec(&format!("create table t ({COLUMNS})"));
    attach(&bed, "t", r#"{"mode": "sync"}"#);
    bed.left.exec("insert into t values (1, 'a'), (2, 'b')");
    bed.left.exec(
        "begin; update t set id = 2 where v = 'a'; update t set id = 1 where v = 'b'; commit",
    );
    both_have(&bed, "t", &["1|b", "2|a"]);
}

#[test]
fn changes_of_one_row_in_one_transaction_end_as_they_did_here() {
    for mode in ["sync", "queue"] {
        let bed = one_way("row", COLUMNS, &format!(r#"{{"mode": "{mode}"}}"#));
        let mut client = bed.left.client();
        run(&mut client, "begin; insert into t values (1, 'a')");
        for i in 0..50 {
            run(&mut client, &format!("update t set v = 'v{i}' where id = 1"));
        }
        run(
            &mut client,
            "insert into t values (2, 'gone'); update t set v = 'soon'; delete from t where id = 2;
             insert into t values (3, 'x'); delete from t where id = 3; insert into t values (3, 'y');
             insert into t values (4, 'x'); update t set id = 5 where id = 4;
             insert into t values (4, 'new'); update t set v = v || '!';
             commit",
        );
        assert!(deal(&bed, "1000"));
        both_have(&bed, "t", &["1|soon!", "3|y!", "4|new!", "5|x!"]);
        run(&mut client, "delete from t where id = 3; insert into t values (3, 'z')");
        assert!(deal(&bed, "1000"));
        assert_eq!(same(&bed, "t").len(), 4);
    }
}

#[test]
fn truncate_takes_tables_with_a_foreign_key_between_them() {
    let bed = linked("truncate");
    mirror(&bed, "parent", COLUMNS, r#"{"mode": "sync"}"#);
    let child = "id int primary key, p int references parent";
    mirror(&bed, "child", child, r#"{"mode": "sync"}"#);
    let mut client = bed.left.client();
    let fill = "insert into parent values (1, 'a'), (2, 'b'); insert into child values (1, 1)";
    run(&mut client, fill);
    same(&bed, "child");
    run(&mut client, "begin; insert into parent values (3, 'c'); truncate child, parent");
    run(&mut client, "insert into parent values (4, 'd'); insert into child values (2, 4); commit");
    both_have(&bed, "parent", &["4|d"]);
    both_have(&bed, "child", &["2|4"]);
    run(&mut client, "truncate parent cascade");
    both_have(&bed, "parent", &[]);
    both_have(&bed, "child", &[]);
}

#[test]
fn several_tables_change_in_the_order_of_the_transaction() {
    let bed = linked("several");
    mirror(&bed, "parent", COLUMNS, r#"{"mode": "sync"}"#);
    mirror(&bed, "child", "id int primary key, p int references parent", r#"{"mode": "sync"}"#);
    bed.left.exec(
        "begin;
         insert into parent values (1, 'a'); insert into child values (1, 1);
         insert into parent values (2, 'b'); insert into child values (2, 2);
         delete from child where id = 1; delete from parent where id = 1;
         insert into parent values (1, 'again'); update child set p = 1;
         commit",
    );
    both_have(&bed, "parent", &["1|again", "2|b"]);
    both_have(&bed, "child", &["2|1"]);
}

#[test]
fn a_partitioned_table_is_followed_by_a_trigger_on_the_parent() {
    let bed = linked("partition");
    for (side, parts) in [(&bed.left, ["1", "100", "200"]), (&bed.right, ["1", "50", "200"])] {
        let [a, b, c] = parts;
        side.exec(&format!(
            "create table t (id int primary key, v text) partition by range (id);
             create table t_a partition of t for values from ({a}) to ({b});
             create table t_b partition of t for values from ({b}) to ({c})"
        ));
    }
    attach(&bed, "t", r#"{"mode": "sync"}"#);
    let mut client = bed.left.client();
    run(&mut client, "insert into t select i, 'v' || i from generate_series(1, 199) i");
    assert_eq!(same(&bed, "t").len(), 199);
    run(&mut client, "update t set v = 'x' where id between 45 and 150");
    run(&mut client, "delete from t where id = 60; update t set id = 60 where id = 160");
    assert_eq!(same(&bed, "t").len(), 198);
    // A new partition, whose rows come in through the parent and by its own name.
    for side in [&bed.left, &bed.right] {
        side.exec("create table t_c partition of t for values from (200) to (300)");
    }
    run(&mut client, "insert into t values (201, 'parent'); insert into t_c values (202, 'own')");
    run(&mut client, "begin; insert into t values (203, 'x'); update t set id = 61 where id = 61");
    run(&mut client, "update t set id = 204 where id = 5; commit");
    assert_eq!(same(&bed, "t").len(), 201);
    run(&mut client, "truncate t");
    both_have(&bed, "t", &[]);
}

#[test]
fn options_choose_rename_and_identify_columns() {
    let bed = linked("options");
    let left = "id int primary key, code text not null, v text, secret text";
    for name in ["fewer", "without", "renamed", "keyed"] {
        bed.left.exec(&format!("create table {name} ({left})"));
    }
    bed.right.exec(
        "create table fewer (id int primary key, v text);
         create table without (id int primary key, code text, v text, secret text default 'none');
         create table renamed (nr int primary key, code text, value text, secret text);
         create table keyed (id int, code text unique, v text, secret text)",
    );
    attach(&bed, "fewer", r#"{"columns": ["v", "id"]}"#);
    attach(&bed, "without", r#"{"exclude": ["secret"]}"#);
    attach(&bed, "renamed", r#"{"rename": {"id": "nr", "v": "value"}}"#);
    attach(&bed, "keyed", r#"{"key": ["code"]}"#);
    for name in ["fewer", "without", "renamed", "keyed"] {
        bed.left.exec(&format!(
            "insert into {name} values (1, 'a', 'x', 's'), (2, 'b', 'y', 's'), (3, 'c', 'z', 's');
             update {name} set v = 'w', secret = 't' where id = 1;
             update {name} set id = 20, code = 'bb' where id = 2;
             delete from {name} where id = 3"
        ));
    }
    assert_eq!(rows(&bed.right, "select id, v from fewer order by id"), ["1|w", "20|y"]);
    assert_eq!(table(&bed.right, "without"), ["1|a|w|none", "20|bb|y|none"]);
    assert_eq!(table(&bed.right, "renamed"), ["1|a|w|t", "20|bb|y|s"]);
    assert_eq!(table(&bed.right, "keyed"), ["1|a|w|t", "20|bb|y|s"]);
    assert_eq!(queued(&bed), 0);
}

#[test]
fn a_replica_identity_index_serves_for_a_key() {
    let bed = linked("identity");
    for side in [&bed.left, &bed.right] {
        side.exec(
            "create table t (a int not null, b text not null, v text);
             create unique index t_key on t (b, a);
             alter table t replica identity using index t_key",
        );
    }
    attach(&bed, "t", "{}");
    bed.left.exec("insert into t values (1, 'x', 'v'), (1, 'y', 'v'), (2, 'x', 'v')");
    bed.left.exec("update t set v = 'w' where a = 1; update t set b = 'z' where a = 2");
    bed.left.exec("delete from t where b = 'y'");
    both_have(&bed, "t", &["1|x|w", "2|z|v"]);
}

#[test]
fn generated_columns_are_computed_on_either_side() {
    let columns = "id int primary key, a int, b int generated always as (a * 2) stored,
                   c text default 'here'";
    let bed = one_way("generated", columns, r#"{"mode": "sync"}"#);
    bed.left.exec("insert into t (id, a) values (1, 1), (2, 2), (3, 3)");
    bed.left.exec("update t set a = 10 where id = 2; update t set id = 4 where id = 1");
    bed.left.exec("delete from t where id = 3");
    both_have(&bed, "t", &["2|10|20|here", "4|1|2|here"]);
}

#[test]
fn identity_columns_arrive_with_the_value_they_have_here() {
    for identity in ["by default", "always"] {
        let columns = format!("id int generated {identity} as identity primary key, v text");
        let bed = one_way("identkey", &columns, r#"{"mode": "sync"}"#);
        bed.left.exec(
            "insert into t (v) values ('a'), ('b'), ('c'); update t set v = 'd' where id = 2",
        );
        bed.left.exec("delete from t where id = 3");
        both_have(&bed, "t", &["1|a", "2|d"]);
    }
}

#[test]
fn an_identity_column_as_key_may_change() {
    let columns = "id int generated always as identity primary key, v text";
    let bed = one_way("identmove", columns, r#"{"mode": "sync"}"#);
    bed.left.exec("insert into t (v) values ('a'), ('b'); update t set id = default where id = 1");
    both_have(&bed, "t", &["2|b", "3|a"]);
}

#[test]
fn an_identity_column_beside_the_key_is_no_obstacle() {
    let columns = "code text primary key, nr int generated always as identity, v text";
    let bed = one_way("identcol", columns, r#"{"mode": "sync"}"#);
    bed.left.exec("insert into t (code, v) values ('a', 'x'), ('b', 'y')");
    bed.left.exec("update t set v = 'z' where code = 'a'");
    both_have(&bed, "t", &["a|1|z", "b|2|y"]);
}

#[test]
fn a_table_altered_between_two_statements_is_read_anew() {
    let bed = one_way("alter", "id int primary key, v text, w int", r#"{"mode": "sync"}"#);
    let mut client = bed.left.client();
    run(&mut client, "insert into t values (1, 'a', 1)");
    for alter in [
        "alter table t add column x text default 'new'",
        "alter table t drop column v",
        "alter table t alter column w type text using w || '!'",
        "alter table t rename column w to renamed",
        "alter table t drop constraint t_pkey, add primary key (renamed)",
    ] {
        bed.right.exec(alter);
        run(&mut client, alter);
        run(&mut client, "delete from t; insert into t values (1, '10', '11'), (2, '20', '21')");
        assert_eq!(same(&bed, "t").len(), 2, "{alter}");
    }
    // And with the change in the middle of a transaction.
    for side in [&bed.right, &bed.left] {
        side.exec("drop table t");
        side.exec("create table t (id int primary key, v text)");
    }
    attach(&bed, "t", r#"{"mode": "sync"}"#);
    bed.right.exec("alter table t add column x int");
    run(&mut client, "begin; insert into t values (1, 'before')");
    run(&mut client, "alter table t add column x int; insert into t values (2, 'after', 2)");
    run(&mut client, "update t set x = 1 where id = 1; commit");
    both_have(&bed, "t", &["1|before|1", "2|after|2"]);
}

#[test]
fn a_second_unique_column_may_shift_over_many_rows() {
    let columns = "id int primary key, rank int unique deferrable, v text";
    let bed = one_way("rank", columns, r#"{"mode": "sync"}"#);
    bed.left.exec("insert into t select i, i, 'v' from generate_series(1, 12000) i");
    bed.left.exec("update t set rank = rank + 1");
    assert_eq!(same(&bed, "t").len(), 12_000);
}

#[test]
fn a_table_with_a_deferrable_key_on_both_sides_is_synchronised() {
    let bed = one_way("lateboth", "id int primary key deferrable, v text", r#"{"mode": "sync"}"#);
    bed.left.exec("insert into t values (1, 'a'), (2, 'b'); update t set id = 3 - id");
    bed.left.exec("update t set v = v || '!'; delete from t where id = 1");
    both_have(&bed, "t", &["2|a!"]);
}
