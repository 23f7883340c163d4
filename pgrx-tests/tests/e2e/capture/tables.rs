//! What becomes of rows: keys, children, order within a transaction, TRUNCATE, partitions.

use crate::support::common::{
    attach, both_have, deal, linked, mirror, one_way, queued, rows, run, same, table,
};

const COLUMNS: &str = "id int primary key, v text";

#[test]
fn an_update_keeps_the_child_rows_of_the_remote() {
    let fixture = one_way("children", COLUMNS, "{}");
    fixture.left.exec("insert into t values (1, 'a'), (2, 'b')");
    fixture.right.exec(
        "create table child (id int primary key, parent int references t on delete cascade
                             on update cascade);
         insert into child values (10, 1), (20, 2)",
    );
    fixture.left.exec("update t set v = 'changed' where id = 1");
    assert_eq!(table(&fixture.right, "child"), ["10|1", "20|2"]);
    // A key change is the same row under another key, so children follow it.
    fixture.left.exec("update t set id = 3 where id = 1");
    both_have(&fixture, "t", &["2|b", "3|changed"]);
    assert_eq!(table(&fixture.right, "child"), ["10|3", "20|2"]);
    fixture.left.exec("delete from t where id = 2");
    assert_eq!(table(&fixture.right, "child"), ["10|3"]);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn a_key_change_moves_the_row_with_what_only_the_remote_knows() {
    let fixture = linked("move");
    fixture.left.exec(&format!("create table t ({COLUMNS})"));
    fixture.right.exec(&format!(
        "create table t ({COLUMNS}, note text default 'remote')"
    ));
    attach(&fixture, "t", "{}");
    fixture.left.exec("insert into t values (1, 'a'), (2, 'b')");
    fixture
        .right
        .exec("update t set note = 'kept' where id = 1");
    fixture.left.exec("update t set id = id + 10");
    assert_eq!(table(&fixture.right, "t"), ["11|a|kept", "12|b|remote"]);
}

#[test]
fn keys_that_shift_all_at_once_arrive_though_each_is_taken() {
    let fixture = linked("shift");
    let late = "id int primary key deferrable initially deferred, v text";
    fixture.left.exec(&format!("create table t ({late})"));
    fixture.right.exec(&format!("create table t ({COLUMNS})"));
    attach(&fixture, "t", r#"{"mode": "sync"}"#);
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t select i, 'v' || i from generate_series(1, 12000) i",
    );
    run(&mut client, "update t set id = id + 1");
    assert_eq!(same(&fixture, "t").len(), 12_000);
    run(&mut client, "update t set id = id - 1");
    run(&mut client, "delete from t where id > 6");
    // One command that swaps, a ring of three, and a chain that ends at a free key.
    run(
        &mut client,
        "update t set id = case id when 1 then 2 else 1 end where id in (1, 2)",
    );
    both_have(
        &fixture,
        "t",
        &["1|v2", "2|v1", "3|v3", "4|v4", "5|v5", "6|v6"],
    );
    run(
        &mut client,
        "update t set id = case id when 1 then 2 when 2 then 3 when 3 then 1 \
                      when 4 then 5 when 5 then 6 else 7 end",
    );
    both_have(
        &fixture,
        "t",
        &["1|v3", "2|v2", "3|v1", "5|v4", "6|v5", "7|v6"],
    );
    // Two commands that swap over a free key.
    run(
        &mut client,
        "begin; update t set id = 0 where id = 1; update t set id = 1 where id = 2",
    );
    run(&mut client, "update t set id = 2 where id = 0; commit");
    both_have(
        &fixture,
        "t",
        &["1|v2", "2|v3", "3|v1", "5|v4", "6|v5", "7|v6"],
    );
}

#[test]
fn two_commands_swap_keys_that_both_hold_in_between() {
    let fixture = linked("between");
    let late = "id int primary key deferrable initially deferred, v text";
    fixture.left.exec(&format!("create table t ({late})"));
    fixture.right.exec(&format!("create table t ({COLUMNS})"));
    attach(&fixture, "t", r#"{"mode": "sync"}"#);
    fixture.left.exec("insert into t values (1, 'a'), (2, 'b')");
    fixture.left.exec(
        "begin; update t set id = 2 where v = 'a'; update t set id = 1 where v = 'b'; commit",
    );
    both_have(&fixture, "t", &["1|b", "2|a"]);
}

#[test]
fn changes_of_one_row_in_one_transaction_end_as_they_did_here() {
    for mode in ["sync", "queue"] {
        let fixture = one_way("row", COLUMNS, &format!(r#"{{"mode": "{mode}"}}"#));
        let mut client = fixture.left.client();
        run(&mut client, "begin; insert into t values (1, 'a')");
        for i in 0..50 {
            run(
                &mut client,
                &format!("update t set v = 'v{i}' where id = 1"),
            );
        }
        run(
            &mut client,
            "insert into t values (2, 'gone'); update t set v = 'soon'; delete from t where id = 2;
             insert into t values (3, 'x'); delete from t where id = 3; insert into t values (3, 'y');
             insert into t values (4, 'x'); update t set id = 5 where id = 4;
             insert into t values (4, 'new'); update t set v = v || '!';
             commit",
        );
        assert!(deal(&fixture, "1000"));
        both_have(&fixture, "t", &["1|soon!", "3|y!", "4|new!", "5|x!"]);
        run(
            &mut client,
            "delete from t where id = 3; insert into t values (3, 'z')",
        );
        assert!(deal(&fixture, "1000"));
        assert_eq!(same(&fixture, "t").len(), 4);
    }
}

#[test]
fn truncate_takes_tables_with_a_foreign_key_between_them() {
    let fixture = linked("truncate");
    mirror(&fixture, "parent", COLUMNS, r#"{"mode": "sync"}"#);
    let child = "id int primary key, p int references parent";
    mirror(&fixture, "child", child, r#"{"mode": "sync"}"#);
    let mut client = fixture.left.client();
    let fill = "insert into parent values (1, 'a'), (2, 'b'); insert into child values (1, 1)";
    run(&mut client, fill);
    same(&fixture, "child");
    run(
        &mut client,
        "begin; insert into parent values (3, 'c'); truncate child, parent",
    );
    run(
        &mut client,
        "insert into parent values (4, 'd'); insert into child values (2, 4); commit",
    );
    both_have(&fixture, "parent", &["4|d"]);
    both_have(&fixture, "child", &["2|4"]);
    run(&mut client, "truncate parent cascade");
    both_have(&fixture, "parent", &[]);
    both_have(&fixture, "child", &[]);
}

#[test]
fn several_tables_change_in_the_order_of_the_transaction() {
    let fixture = linked("several");
    mirror(&fixture, "parent", COLUMNS, r#"{"mode": "sync"}"#);
    mirror(
        &fixture,
        "child",
        "id int primary key, p int references parent",
        r#"{"mode": "sync"}"#,
    );
    fixture.left.exec(
        "begin;
         insert into parent values (1, 'a'); insert into child values (1, 1);
         insert into parent values (2, 'b'); insert into child values (2, 2);
         delete from child where id = 1; delete from parent where id = 1;
         insert into parent values (1, 'again'); update child set p = 1;
         commit",
    );
    both_have(&fixture, "parent", &["1|again", "2|b"]);
    both_have(&fixture, "child", &["2|1"]);
}

#[test]
fn a_partitioned_table_is_followed_by_a_trigger_on_the_parent() {
    let fixture = linked("partition");
    for (side, parts) in [
        (&fixture.left, ["1", "100", "200"]),
        (&fixture.right, ["1", "50", "200"]),
    ] {
        let [a, b, c] = parts;
        side.exec(&format!(
            "create table t (id int primary key, v text) partition by range (id);
             create table t_a partition of t for values from ({a}) to ({b});
             create table t_b partition of t for values from ({b}) to ({c})"
        ));
    }
    attach(&fixture, "t", r#"{"mode": "sync"}"#);
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t select i, 'v' || i from generate_series(1, 199) i",
    );
    assert_eq!(same(&fixture, "t").len(), 199);
    run(
        &mut client,
        "update t set v = 'x' where id between 45 and 150",
    );
    run(
        &mut client,
        "delete from t where id = 60; update t set id = 60 where id = 160",
    );
    assert_eq!(same(&fixture, "t").len(), 198);
    // A new partition, whose rows come in through the parent and by its own name.
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table t_c partition of t for values from (200) to (300)");
    }
    run(
        &mut client,
        "insert into t values (201, 'parent'); insert into t_c values (202, 'own')",
    );
    run(
        &mut client,
        "begin; insert into t values (203, 'x'); update t set id = 61 where id = 61",
    );
    run(&mut client, "update t set id = 204 where id = 5; commit");
    assert_eq!(same(&fixture, "t").len(), 201);
    run(&mut client, "truncate t");
    both_have(&fixture, "t", &[]);
}

/// Rows of a statement go to partitions in turn, and travel together all the same; by the queue as well.
#[test]
fn rows_of_several_partitions_travel_in_one_statement() {
    const PARTITIONS: usize = 16;
    for (mode, policy) in [
        ("sync", "overwrite"),
        ("queue", "overwrite"),
        ("sync", "newest"),
        ("sync", "skip"),
    ] {
        let fixture = linked(&format!("spread_{mode}_{policy}"));
        let columns = "id int primary key, v text, at timestamptz default clock_timestamp()";
        fixture.left.exec(&format!(
            "create table t ({columns}) partition by hash (id)"
        ));
        for at in 0..PARTITIONS {
            fixture.left.exec(&format!(
                "create table t{at} partition of t for values with (modulus {PARTITIONS}, remainder {at})"
            ));
        }
        fixture.right.exec(&format!(
            "create table t ({columns}); create table statements (kind text);
             create function counted() returns trigger language plpgsql as
               $$ begin insert into {0}.statements values (tg_op); return null; end $$;
             create trigger count after insert or update or delete on t
               for each statement execute function counted();
             grant insert on statements to public",
            fixture.right.user
        ));
        let version = if policy == "newest" {
            r#", "version_column": "at""#
        } else {
            ""
        };
        let options = format!(r#"{{"mode": "{mode}", "on_conflict": "{policy}"{version}}}"#);
        attach(&fixture, "t", &options);
        let counted = format!("select count(*) from {}.statements", fixture.right.user);
        let mut client = fixture.left.client();
        let mut statements = |sql: &str| {
            fixture.right.exec("truncate statements");
            run(&mut client, sql);
            if mode == "queue" {
                assert!(deal(&fixture, "10000"));
            }
            same(&fixture, "t");
            fixture.right.query_one::<i64>(&counted)
        };
        statements("insert into t values (0, 'warm')");
        for sql in [
            "insert into t select g, 'x' from generate_series(1, 400) g",
            "update t set v = 'y', at = clock_timestamp()",
            "delete from t where id > 200",
        ] {
            let count = statements(sql);
            assert!(count <= 6, "{mode}, {policy}: {sql}: {count} statements");
        }
    }
}

/// What was written in a partition counts as the attached table's, under whatever name it was written.
#[test]
fn changes_of_partitions_are_the_attached_tables() {
    let fixture = linked("captured_as");
    fixture.left.exec(
        "create table t (id int primary key, v text) partition by range (id);
         create table t_a partition of t for values from (0) to (100) partition by range (id);
         create table t_b partition of t_a for values from (0) to (50);
         create table alone (id int primary key, v text) partition by range (id);
         create table alone_a partition of alone for values from (0) to (100)",
    );
    fixture.right.exec("create table t (id int primary key, v text); create table alone_a (id int primary key, v text)");
    attach(&fixture, "t", r#"{"mode": "queue"}"#);
    attach(&fixture, "alone_a", r#"{"mode": "queue"}"#);
    fixture
        .left
        .exec("insert into t values (1, 'a'); insert into t_b values (2, 'b'); insert into alone values (3, 'c')");
    let names = "select table_name from sync_err_rec order by id";
    assert_eq!(rows(&fixture.left, names), ["t", "t", "alone_a"]);
    let pending = "select relation::text || ' ' || pending from sync_tables order by 1";
    assert_eq!(rows(&fixture.left, pending), ["alone_a 1", "t 2"]);
    fixture
        .left
        .exec("alter table t rename to u; insert into u values (4, 'd')");
    assert_eq!(rows(&fixture.left, names), ["t", "t", "alone_a", "u"]);
    assert!(deal(&fixture, "10"));
    assert_eq!(rows(&fixture.right, "select count(*) from t"), ["3"]);
}

#[test]
fn options_choose_rename_and_identify_columns() {
    let fixture = linked("options");
    let left = "id int primary key, code text not null, v text, secret text";
    for name in ["fewer", "without", "renamed", "keyed"] {
        fixture.left.exec(&format!("create table {name} ({left})"));
    }
    fixture.right.exec(
        "create table fewer (id int primary key, v text);
         create table without (id int primary key, code text, v text, secret text default 'none');
         create table renamed (nr int primary key, code text, value text, secret text);
         create table keyed (id int, code text unique, v text, secret text)",
    );
    attach(&fixture, "fewer", r#"{"columns": ["v", "id"]}"#);
    attach(&fixture, "without", r#"{"exclude": ["secret"]}"#);
    attach(
        &fixture,
        "renamed",
        r#"{"rename": {"id": "nr", "v": "value"}}"#,
    );
    attach(&fixture, "keyed", r#"{"key": ["code"]}"#);
    for name in ["fewer", "without", "renamed", "keyed"] {
        fixture.left.exec(&format!(
            "insert into {name} values (1, 'a', 'x', 's'), (2, 'b', 'y', 's'), (3, 'c', 'z', 's');
             update {name} set v = 'w', secret = 't' where id = 1;
             update {name} set id = 20, code = 'bb' where id = 2;
             delete from {name} where id = 3"
        ));
    }
    assert_eq!(
        rows(&fixture.right, "select id, v from fewer order by id"),
        ["1|w", "20|y"]
    );
    assert_eq!(
        table(&fixture.right, "without"),
        ["1|a|w|none", "20|bb|y|none"]
    );
    assert_eq!(table(&fixture.right, "renamed"), ["1|a|w|t", "20|bb|y|s"]);
    assert_eq!(table(&fixture.right, "keyed"), ["1|a|w|t", "20|bb|y|s"]);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn a_replica_identity_index_serves_for_a_key() {
    let fixture = linked("identity");
    for side in [&fixture.left, &fixture.right] {
        side.exec(
            "create table t (a int not null, b text not null, v text);
             create unique index t_key on t (b, a);
             alter table t replica identity using index t_key",
        );
    }
    attach(&fixture, "t", "{}");
    fixture
        .left
        .exec("insert into t values (1, 'x', 'v'), (1, 'y', 'v'), (2, 'x', 'v')");
    fixture
        .left
        .exec("update t set v = 'w' where a = 1; update t set b = 'z' where a = 2");
    fixture.left.exec("delete from t where b = 'y'");
    both_have(&fixture, "t", &["1|x|w", "2|z|v"]);
}

#[test]
fn generated_columns_are_computed_on_either_side() {
    let columns = "id int primary key, a int, b int generated always as (a * 2) stored,
                   c text default 'here'";
    let fixture = one_way("generated", columns, r#"{"mode": "sync"}"#);
    fixture
        .left
        .exec("insert into t (id, a) values (1, 1), (2, 2), (3, 3)");
    fixture
        .left
        .exec("update t set a = 10 where id = 2; update t set id = 4 where id = 1");
    fixture.left.exec("delete from t where id = 3");
    both_have(&fixture, "t", &["2|10|20|here", "4|1|2|here"]);
}

#[test]
fn identity_columns_arrive_with_the_value_they_have_here() {
    for identity in ["by default", "always"] {
        let columns = format!("id int generated {identity} as identity primary key, v text");
        let fixture = one_way("identkey", &columns, r#"{"mode": "sync"}"#);
        fixture.left.exec(
            "insert into t (v) values ('a'), ('b'), ('c'); update t set v = 'd' where id = 2",
        );
        fixture.left.exec("delete from t where id = 3");
        both_have(&fixture, "t", &["1|a", "2|d"]);
    }
}

#[test]
fn an_identity_column_as_key_may_change() {
    let columns = "id int generated always as identity primary key, v text";
    let fixture = one_way("identmove", columns, r#"{"mode": "sync"}"#);
    fixture
        .left
        .exec("insert into t (v) values ('a'), ('b'); update t set id = default where id = 1");
    both_have(&fixture, "t", &["2|b", "3|a"]);
}

#[test]
fn an_identity_column_beside_the_key_is_no_obstacle() {
    let columns = "code text primary key, nr int generated always as identity, v text";
    let fixture = one_way("identcol", columns, r#"{"mode": "sync"}"#);
    fixture
        .left
        .exec("insert into t (code, v) values ('a', 'x'), ('b', 'y')");
    fixture.left.exec("update t set v = 'z' where code = 'a'");
    both_have(&fixture, "t", &["a|1|z", "b|2|y"]);
}

#[test]
fn a_table_altered_between_two_statements_is_read_anew() {
    let fixture = one_way(
        "alter",
        "id int primary key, v text, w int",
        r#"{"mode": "sync"}"#,
    );
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a', 1)");
    for alter in [
        "alter table t add column x text default 'new'",
        "alter table t drop column v",
        "alter table t alter column w type text using w || '!'",
        "alter table t rename column w to renamed",
        "alter table t drop constraint t_pkey, add primary key (renamed)",
    ] {
        fixture.right.exec(alter);
        run(&mut client, alter);
        run(
            &mut client,
            "delete from t; insert into t values (1, '10', '11'), (2, '20', '21')",
        );
        assert_eq!(same(&fixture, "t").len(), 2, "{alter}");
    }
    // And with the change in the middle of a transaction.
    for side in [&fixture.right, &fixture.left] {
        side.exec("drop table t");
        side.exec("create table t (id int primary key, v text)");
    }
    attach(&fixture, "t", r#"{"mode": "sync"}"#);
    fixture.right.exec("alter table t add column x int");
    run(&mut client, "begin; insert into t values (1, 'before')");
    run(
        &mut client,
        "alter table t add column x int; insert into t values (2, 'after', 2)",
    );
    run(&mut client, "update t set x = 1 where id = 1; commit");
    both_have(&fixture, "t", &["1|before|1", "2|after|2"]);
}

#[test]
fn a_second_unique_column_may_shift_over_many_rows() {
    let columns = "id int primary key, rank int unique deferrable, v text";
    let fixture = one_way("rank", columns, r#"{"mode": "sync"}"#);
    fixture
        .left
        .exec("insert into t select i, i, 'v' from generate_series(1, 12000) i");
    fixture.left.exec("update t set rank = rank + 1");
    assert_eq!(same(&fixture, "t").len(), 12_000);
}

#[test]
fn a_table_with_a_deferrable_key_on_both_sides_is_synchronised() {
    let fixture = one_way(
        "lateboth",
        "id int primary key deferrable, v text",
        r#"{"mode": "sync"}"#,
    );
    fixture
        .left
        .exec("insert into t values (1, 'a'), (2, 'b'); update t set id = 3 - id");
    fixture
        .left
        .exec("update t set v = v || '!'; delete from t where id = 1");
    both_have(&fixture, "t", &["2|a!"]);
}
