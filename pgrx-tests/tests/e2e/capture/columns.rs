//! Shapes of tables: very many columns, one, keys in any order, and remote tables of another shape.

use rowsync_harness::Fixture;

use crate::support::common::{
    attach, attach_sql, both_have, deal, has_icu, linked, mirror, one_way, queued, records,
    refused, rows, run, same, table,
};

const SYNC: &str = r#"{"mode": "sync"}"#;
const ALL_POLICIES: [&str; 3] = ["overwrite", "error", "skip"];

fn under(mode: &str, policy: &str) -> String {
    format!(r#"{{"mode": "{mode}", "on_conflict": "{policy}"}}"#)
}

#[test]
fn a_table_of_1600_columns_is_synchronised() {
    let columns: Vec<String> = (1..1600).map(|i| format!("c{i} int")).collect();
    let columns = format!("id int primary key, {}", columns.join(", "));
    let fixture = linked("wide");
    for (mode, policy) in [
        ("sync", "overwrite"),
        ("sync", "error"),
        ("queue", "overwrite"),
    ] {
        let name = format!("{mode}_{policy}");
        mirror(&fixture, &name, &columns, &under(mode, policy));
        fixture.left.exec(&format!(
            "insert into {name} (id, c1, c800, c1599) select i, i, -i, 7 from generate_series(1, 4) i;
             update {name} set c2 = c1, c1599 = null where id < 3;
             update {name} set id = id + 10; delete from {name} where id = 11"
        ));
        assert!(
            deal(&fixture, "100"),
            "{:?}",
            rows(&fixture.left, "select message from sync_err_rec")
        );
        assert_eq!(queued(&fixture), 0);
        assert_eq!(same(&fixture, &name).len(), 3);
    }
}

#[test]
fn a_wide_table_with_a_key_of_32_columns_is_synchronised() {
    let keys: Vec<String> = (0..32).map(|i| format!("k{i}")).collect();
    let others: Vec<String> = (32..1600).map(|i| format!("c{i} bool")).collect();
    let columns = format!(
        "{} smallint, {}, primary key ({})",
        keys.join(" smallint, "),
        others.join(", "),
        keys.join(", ")
    );
    let fixture = one_way("widekey", &columns, SYNC);
    let ones = vec!["i"; 32].join(", ");
    fixture.left.exec(&format!(
        "insert into t ({}) select {ones} from generate_series(1, 3) i;
         update t set c1599 = true; update t set k31 = -k31; delete from t where k0 = 2",
        keys.join(", ")
    ));
    assert_eq!(same(&fixture, "t").len(), 2);
}

#[test]
fn a_table_of_one_column_is_synchronised() {
    for policy in ALL_POLICIES {
        let fixture = linked("one");
        for mode in ["sync", "queue"] {
            mirror(&fixture, mode, "id int primary key", &under(mode, policy));
            fixture.left.exec(&format!(
                "insert into {mode} select generate_series(1, 5); update {mode} set id = id;
                 update {mode} set id = id + 10 where id < 3; delete from {mode} where id = 3"
            ));
            assert!(
                deal(&fixture, "100"),
                "{:?}",
                rows(&fixture.left, "table sync_err_rec")
            );
            both_have(&fixture, mode, &["11", "12", "4", "5"]);
        }
    }
}

#[test]
fn a_table_that_is_all_key_is_synchronised_under_every_policy() {
    for policy in ALL_POLICIES {
        let fixture = linked("allkeys");
        for mode in ["sync", "queue"] {
            mirror(
                &fixture,
                mode,
                "a int, b text, c date, primary key (c, a, b)",
                &under(mode, policy),
            );
            fixture.left.exec(&format!(
                "insert into {mode} select i, 'b' || i, '2024-01-01' from generate_series(1, 4) i;
                 update {mode} set b = b where a = 1; update {mode} set b = 'x', c = c + 1 where a < 3;
                 delete from {mode} where a = 4; insert into {mode} values (4, 'again', 'infinity')"
            ));
            assert!(
                deal(&fixture, "100"),
                "{:?}",
                rows(&fixture.left, "table sync_err_rec")
            );
            assert_eq!(same(&fixture, mode).len(), 4);
        }
    }
}

#[test]
fn dropped_columns_and_key_orders_do_not_confuse() {
    let fixture = linked("dropped");
    for side in [&fixture.left, &fixture.right] {
        side.exec(
            "create table t (x1 int, x2 text, v text, x3 int, b text, x4 date, a int, x5 int);
             alter table t drop x1, drop x2, drop x3, drop x4;
             alter table t add primary key (a, b); alter table t drop x5, add w int default 5",
        );
    }
    fixture
        .left
        .exec("alter table t add x6 int; alter table t drop x6, add y int default 7");
    fixture.right.exec("alter table t add y int");
    attach(&fixture, "t", SYNC);
    fixture.left.exec(
        "insert into t values ('v1', 'b', 1), ('v2', 'c', 1), ('v3', 'b', 2);
         update t set v = 'new' where (a, b) = (1, 'b'); update t set b = 'd' where a = 2;
         update t set a = 9, b = 'e', w = null where v = 'v2'",
    );
    both_have(&fixture, "t", &["new|b|1|5|7", "v2|e|9|~|7", "v3|d|2|5|7"]);
    fixture.left.exec("delete from t where b = 'd'; truncate t");
    both_have(&fixture, "t", &[]);
}

#[test]
fn a_nondeterministic_collation_finds_its_rows() {
    let fixture = linked("nondet");
    if !has_icu(&fixture.left) {
        return;
    }
    for side in [&fixture.left, &fixture.right] {
        side.exec(
            "create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        );
    }
    for (policy, mode) in [("overwrite", "sync"), ("error", "queue"), ("skip", "sync")] {
        mirror(
            &fixture,
            policy,
            "k text collate ci primary key, v int",
            &under(mode, policy),
        );
        fixture.left.exec(&format!(
            "insert into {policy} values ('Abc', 1), ('def', 2);
             update {policy} set v = 3 where k = 'ABC'; update {policy} set k = 'aBC' where k = 'abc';
             delete from {policy} where k = 'DEF'; insert into {policy} values ('DEF', 4)"
        ));
        assert!(deal(&fixture, "100"));
        both_have(&fixture, policy, &["DEF|4", "aBC|3"]);
    }
}

/// Equal to the old key for the table, though not as text: the row moves onto itself.
#[test]
fn a_key_may_change_to_one_that_is_equal_to_it() {
    let fixture = linked("equalkey");
    let mut wrong = Vec::new();
    for (at, (kind, from, to)) in [
        ("numeric", "1.0", "1.00"),
        ("float8", "0", "-0"),
        ("interval", "1 day", "24:00"),
        ("char(5)", "a", "a"),
    ]
    .into_iter()
    .enumerate()
    {
        for policy in [
            "overwrite",
            "error",
            "skip",
            r#"newest", "version_column": "v"#,
        ] {
            let name = format!("t{at}_{}", &policy[..4]);
            mirror(
                &fixture,
                &name,
                &format!("k {kind} primary key, v int"),
                &under("sync", policy),
            );
            fixture.left.exec(&format!(
                "insert into {name} values ('{from}', 1); update {name} set k = '{to}', v = 2"
            ));
            let left = table(&fixture.left, &name);
            let right = table(&fixture.right, &name);
            if left != right {
                wrong.push(format!("{kind} {policy}: {left:?} became {right:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What only the remote has must not be lost while keys that differ in case make room.
#[test]
fn a_chain_of_keys_of_other_spelling_moves_its_rows() {
    let fixture = linked("chain");
    if !has_icu(&fixture.left) {
        return;
    }
    let ci =
        "create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
    fixture.left.exec(ci);
    fixture.right.exec(ci);
    fixture
        .left
        .exec("create table t (k text collate ci primary key, v int)");
    fixture
        .right
        .exec("create table t (k text collate ci primary key, v int, note text)");
    attach(&fixture, "t", SYNC);
    fixture.left.exec("insert into t values ('b', 2), ('a', 1)");
    fixture.right.exec("update t set note = 'note ' || v");
    fixture
        .left
        .exec("update t set k = case k when 'b' then 'C' else 'B' end");
    assert_eq!(table(&fixture.right, "t"), ["B|1|note 1", "C|2|note 2"]);
}

#[test]
fn names_of_63_bytes_are_carried_whole() {
    let fixture = linked("names63");
    let name = |c: &str| c.repeat(63 / c.len());
    let t = name("t");
    let k = name("ü");
    let v = name("v");
    mirror(
        &fixture,
        &t,
        &format!("{k} int primary key, {v} text"),
        SYNC,
    );
    fixture.left.exec(&format!(
        "insert into {t} values (1, 'a'), (2, 'b'); update {t} set {v} = 'c'"
    ));
    fixture.left.exec(&format!(
        "update {t} set {k} = 3 where {k} = 1; delete from {t} where {k} = 2"
    ));
    both_have(&fixture, &t, &["3|c"]);
}

#[test]
fn a_remote_table_may_have_more_columns_in_another_order() {
    let fixture = linked("order");
    fixture
        .left
        .exec("create table t (id int primary key, v text, n int)");
    fixture.right.exec(
        "create table t (extra text not null default 'here', n int, at timestamp default 'epoch',
           double int generated always as (n * 2) stored, v text, serial int generated always as identity,
           id int primary key)",
    );
    attach(&fixture, "t", SYNC);
    fixture
        .left
        .exec("insert into t values (1, 'a', 10), (2, 'b', 20), (3, 'c', 30)");
    fixture
        .right
        .exec("update t set extra = 'changed' where id = 1");
    fixture
        .left
        .exec("update t set v = 'x', n = 11 where id = 1; update t set id = 4 where id = 2");
    fixture.left.exec("delete from t where id = 3");
    let found = rows(
        &fixture.right,
        "select id, v, n, double, extra, at, serial from t order by id",
    );
    let epoch = "1970-01-01 00:00:00";
    let expected = [
        format!("1|x|11|22|changed|{epoch}|1"),
        format!("4|b|20|40|here|{epoch}|2"),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_remote_column_may_have_a_wider_type() {
    let fixture = linked("wider");
    fixture.left.exec(
        "create table t (id int primary key, a smallint, b int, c varchar(5), d char(4), e timestamp,
           f date, g float4, h numeric(8, 2), i int[], j varchar(9)[], k json, l bool)",
    );
    fixture.right.exec(
        "create table t (id bigint primary key, a numeric, b bigint, c text, d varchar(10),
           e timestamp(6), f timestamp, g float8, h numeric, i bigint[], j text[], k jsonb, l text)",
    );
    attach(&fixture, "t", r#"{"mode": "sync", "on_conflict": "error"}"#);
    fixture.left.exec(
        "insert into t values (1, -32768, 2147483647, 'ab', 'x', '2024-02-03 04:05:06.7', '2024-02-03',
            0.5, 1.50, '{1,null}', '{a,\"b,c\"}', '{\"a\":  1}', true);
         insert into t (id) values (2);
         update t set b = -1, j = '{}', l = false where id = 1; update t set id = 3 where id = 2;
         insert into t (id) values (5); delete from t where id = 5",
    );
    assert_eq!(
        table(&fixture.right, "t"),
        [
            r#"1|-32768|-1|ab|x   |2024-02-03 04:05:06.7|2024-02-03 00:00:00|0.5|1.50|{1,NULL}|{}|{"a": 1}|f"#,
            "3|~|~|~|~|~|~|~|~|~|~|~|~"
        ]
    );
}

#[test]
fn a_remote_column_that_cannot_hold_the_value_is_an_error() {
    for (left, right, value, sqlstate) in [
        ("bigint", "int", "3000000000", "22003"),
        ("text", "varchar(3)", "'abcd'", "22001"),
        ("text", "int", "'x'", "22P02"),
        ("timestamptz", "timestamptz[]", "now()", "22P02"),
        ("int[]", "int", "'{1}'", "42804"),
    ] {
        let fixture = linked("narrow");
        fixture
            .left
            .exec(&format!("create table t (id int primary key, v {left})"));
        fixture
            .right
            .exec(&format!("create table t (id int primary key, v {right})"));
        let mut client = fixture.left.client();
        run(&mut client, &attach_sql(&fixture, "t", SYNC));
        refused(
            &mut client,
            &format!("insert into t values (1, {value})"),
            sqlstate,
        );
        run(&mut client, "select detach_sync('t', 'dst')");
        run(&mut client, &attach_sql(&fixture, "t", "{}"));
        run(&mut client, &format!("insert into t values (1, {value})"));
        assert_eq!(records(&fixture), [format!("INSERT|{sqlstate}|1|pending")]);
        assert_eq!(table(&fixture.right, "t"), [""; 0]);
    }
}

/// What came of an insert, an update, a key change and a delete: all of it on the remote, or else a
/// record with a reason for the first that did not get through.
fn carried_or_queued(fixture: &Fixture, policy: &str) -> Vec<String> {
    fixture
        .left
        .exec("create table if not exists t (id int primary key, v text)");
    run(
        &mut fixture.left.client(),
        &attach_sql(fixture, "t", &under("async", policy)),
    );
    fixture
        .left
        .exec("insert into t values (1, 'a'), (2, 'b'), (3, 'c')");
    fixture.left.exec("update t set v = 'd' where id = 1");
    fixture.left.exec("update t set id = 4 where id = 2");
    fixture.left.exec("delete from t where id = 3");
    let kept = rows(
        &fixture.left,
        "select sqlstate from sync_err_rec where sqlstate is not null",
    );
    if kept.is_empty() {
        assert_eq!(queued(fixture), 0);
        let base = "select id, v from base order by id";
        assert_eq!(
            rows(&fixture.right, base),
            table(&fixture.left, "t"),
            "silently lost: {policy}"
        );
    }
    fixture.left.exec_superuser("delete from sync_err_rec");
    fixture
        .left
        .exec("select detach_sync('t', 'dst'); truncate t");
    fixture.right.exec("truncate base");
    kept
}

#[test]
fn a_plain_view_as_target_works_like_its_table() {
    let fixture = linked("autoview");
    fixture.right.exec(
        "create table base (id int primary key, v text); create view t as select * from base",
    );
    for policy in ALL_POLICIES {
        assert_eq!(carried_or_queued(&fixture, policy), [""; 0], "{policy}");
    }
}

#[test]
fn a_view_with_instead_of_triggers_takes_changes_or_says_why_not() {
    let fixture = linked("insteadof");
    let schema = &fixture.right.user;
    fixture.right.exec(&format!(
        "create table base (id int primary key, v text);
         create view t as select id, v, 1 as one from base;
         create function t_write() returns trigger language plpgsql set search_path = {schema} as $$
         begin
           if tg_op = 'INSERT' then insert into base values (new.id, new.v); return new;
           elsif tg_op = 'UPDATE' then
             update base set id = new.id, v = new.v where id = old.id; return new;
           else delete from base where id = old.id; return old;
           end if;
         end $$;
         create trigger w instead of insert or update or delete on t
           for each row execute function t_write()"
    ));
    assert_eq!(carried_or_queued(&fixture, "error"), [""; 0]);
    for policy in ["overwrite", "skip"] {
        let reason = carried_or_queued(&fixture, policy);
        assert!(reason.iter().all(|r| r == "42P10"), "{policy}: {reason:?}");
    }
}

#[test]
fn a_target_with_rules_takes_changes_or_says_why_not() {
    let fixture = linked("rules");
    fixture.right.exec(
        "create table base (id int primary key, v text);
         create view t as select id, v, 1 as one from base;
         create rule i as on insert to t do instead insert into base values (new.id, new.v);
         create rule u as on update to t do instead
           update base set id = new.id, v = new.v where id = old.id;
         create rule d as on delete to t do instead delete from base where id = old.id",
    );
    for policy in ALL_POLICIES {
        let reason = carried_or_queued(&fixture, policy);
        assert!(reason.iter().all(|r| r == "0A000"), "{policy}: {reason:?}");
    }
}
