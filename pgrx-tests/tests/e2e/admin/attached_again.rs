//! `attach_sync` on a table that is attached: target and options change in one step, between two transactions
//! of its writers.

use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use postgres::Client;
use rowsync_harness::Fixture;
use rowsync_harness::flag::Flag;

use crate::support::common::{
    attach_sql, deal, linked, query, queued, refused, rows, run, superuser_with_notices, table,
    warnings,
};

const COLUMNS: &str = "id int primary key, v text";
const QUEUE: &str = r#"{"mode": "queue"}"#;

/// A table `t` on the left, and `t` and `u` on the right.
fn two_targets(label: &str) -> Fixture {
    let fixture = linked(label);
    fixture.left.exec(&format!("create table t ({COLUMNS})"));
    fixture.right.exec(&format!(
        "create table t ({COLUMNS}); create table u ({COLUMNS})"
    ));
    fixture
}

fn to(fixture: &Fixture, target: &str, options: &str) -> String {
    format!(
        "select attach_sync('t', 'dst', '{}.{target}', '{options}')",
        fixture.right.user
    )
}

/// Name, target table and options of the triggers of `t`.
fn triggers(client: &mut Client) -> Vec<String> {
    query(
        client,
        "select tgname, target, mode, policy from pg_trigger, sync_tables
          where tgrelid = 't'::regclass and relation = tgrelid order by 1",
    )
}

#[test]
fn target_and_options_change_and_the_triggers_stay_two() {
    let fixture = two_targets("again");
    let mut client = fixture.left.client();
    let schema = &fixture.right.user;
    run(&mut client, &to(&fixture, "t", "{}"));
    run(&mut client, "insert into t values (1, 'a')");
    let oids = "select oid from pg_trigger where tgrelid = 't'::regclass order by tgname";
    let before = query(&mut client, oids);
    run(
        &mut client,
        &to(&fixture, "u", r#"{"mode": "sync", "exclude": ["v"]}"#),
    );
    assert_eq!(query(&mut client, oids), before);
    let now = |name: &str| format!("00_pg_rowsync_dst_{name}|{schema}.u|sync|overwrite");
    assert_eq!(triggers(&mut client), [now("dml"), now("truncate")]);
    run(&mut client, "insert into t values (2, 'b')");
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    assert_eq!(table(&fixture.right, "u"), ["2|~"]);
    // A session that has written before knows it as well, for TRUNCATE too.
    run(&mut fixture.left.client(), &to(&fixture, "t", "{}"));
    run(
        &mut client,
        "insert into t values (3, 'c'); truncate t; insert into t values (4, 'd')",
    );
    assert_eq!(table(&fixture.right, "t"), ["4|d"]);
    assert_eq!(table(&fixture.right, "u"), ["2|~"]);
    // Columns that the options do not mention any more can be dropped.
    run(
        &mut client,
        "alter table t add w int; alter table t drop column v",
    );
    run(&mut client, "select detach_sync('t', 'dst')");
    assert_eq!(query(&mut client, oids), [""; 0]);
}

#[test]
fn writers_lose_nothing_and_send_nothing_twice() {
    for mode in ["async", "queue"] {
        let fixture = two_targets(&format!("gap_{mode}"));
        let options = format!(r#"{{"mode": "{mode}"}}"#);
        run(&mut fixture.left.client(), &to(&fixture, "t", &options));
        let over = Flag::default();
        let next = AtomicI32::new(0);
        thread::scope(|scope| {
            let _end = over.set_at_end();
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut client = fixture.left.client();
                    while !over.is_set() {
                        let id = next.fetch_add(1, Ordering::Relaxed);
                        run(&mut client, &format!("insert into t values ({id}, 'x')"));
                    }
                });
            }
            let mut admin = fixture.left.client();
            for round in 0..40 {
                let target = if round % 2 == 0 { "u" } else { "t" };
                run(&mut admin, &to(&fixture, target, &options));
            }
            over.set();
        });
        while queued(&fixture) > 0 {
            assert!(deal(&fixture, "100000"));
        }
        let count: i64 = next.load(Ordering::Relaxed).into();
        let both = "select count(*), count(distinct id), count(*) filter (where f = 't') > 0,
                           count(*) filter (where f = 'u') > 0
                      from (select id, 't' as f from t union all select id, 'u' from u) s";
        assert_eq!(
            rows(&fixture.right, both),
            [format!("{count}|{count}|t|t")],
            "{mode}"
        );
        assert_eq!(table(&fixture.left, "t").len() as i64, count);
    }
}

#[test]
fn what_is_queued_goes_where_it_was_captured_for() {
    let fixture = two_targets("oldqueue");
    let mut client = fixture.left.client();
    run(&mut client, &to(&fixture, "t", QUEUE));
    run(&mut client, "insert into t values (1, 'a')");
    run(&mut client, &to(&fixture, "u", "{}"));
    // Behind the other, though this could be sent at once.
    run(&mut client, "insert into t values (2, 'b')");
    assert_eq!(queued(&fixture), 2);
    run(&mut client, &to(&fixture, "u", r#"{"mode": "sync"}"#));
    refused(&mut client, "insert into t values (3, 'c')", "55000");
    assert!(deal(&fixture, "10"));
    run(&mut client, "insert into t values (3, 'c')");
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    assert_eq!(table(&fixture.right, "u"), ["2|b", "3|c"]);
}

#[test]
fn in_a_transaction_that_writes_the_change_has_its_place() {
    let fixture = two_targets("inone");
    let mut client = fixture.left.client();
    run(&mut client, &to(&fixture, "t", "{}"));
    let again = to(&fixture, "u", "{}");
    run(
        &mut client,
        &format!(
            "begin; insert into t values (1, 'a'); {again}; insert into t values (2, 'b'); commit"
        ),
    );
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    assert_eq!(table(&fixture.right, "u"), ["2|b"]);
    let back = to(&fixture, "t", "{}");
    run(
        &mut client,
        &format!(
            "begin; savepoint s; {back}; insert into t values (3, 'c'); rollback to s;
             insert into t values (4, 'd'); commit; begin; {back}; rollback; insert into t values (5, 'e')"
        ),
    );
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    assert_eq!(table(&fixture.right, "u"), ["2|b", "4|d", "5|e"]);
}

#[test]
fn partitions_follow_their_table() {
    let fixture = linked("againpart");
    fixture.left.exec(&format!(
        "create table t ({COLUMNS}) partition by range (id);
         create table t1 partition of t for values from (0) to (10);
         create table t2 partition of t for values from (10) to (20)"
    ));
    fixture.right.exec(&format!(
        "create table t ({COLUMNS}); create table u ({COLUMNS})"
    ));
    let mut client = fixture.left.client();
    run(&mut client, &to(&fixture, "t", "{}"));
    run(&mut client, "insert into t values (1, 'a'), (11, 'b')");
    run(&mut client, &to(&fixture, "u", "{}"));
    run(
        &mut client,
        "insert into t values (2, 'c'); insert into t2 values (12, 'd')",
    );
    assert_eq!(table(&fixture.right, "t"), ["1|a", "11|b"]);
    assert_eq!(table(&fixture.right, "u"), ["12|d", "2|c"]);
    // A partition's triggers are those of its table.
    let schema = &fixture.right.user;
    let own = format!("select attach_sync('t1', 'dst', '{schema}.t')");
    refused(&mut client, &own, "42710");
    run(&mut client, "insert into t values (3, 'e')");
    assert_eq!(table(&fixture.right, "u"), ["12|d", "2|c", "3|e"]);
}

#[test]
fn a_trigger_fires_in_the_sessions_in_which_it_did() {
    let fixture = two_targets("fires");
    let mut client = fixture.left.client();
    run(&mut client, &to(&fixture, "t", "{}"));
    let states = "select string_agg(tgenabled::text, '' order by tgname) from pg_trigger
                   where tgrelid = 't'::regclass";
    for (state, clause) in [
        ("A", "enable always"),
        ("R", "enable replica"),
        ("D", "disable"),
    ] {
        run(
            &mut client,
            &format!("alter table t {clause} trigger \"00_pg_rowsync_dst_dml\""),
        );
        run(&mut client, &to(&fixture, "u", "{}"));
        assert_eq!(query(&mut client, states), [format!("{state}O")]);
    }
}

#[test]
fn what_cannot_be_leaves_all_as_it_was() {
    let fixture = two_targets("asitwas");
    let mut client = fixture.left.client();
    run(&mut client, &to(&fixture, "t", "{}"));
    let before = triggers(&mut client);
    refused(
        &mut client,
        &to(&fixture, "u", r#"{"moed": "sync"}"#),
        "22023",
    );
    refused(
        &mut client,
        &to(&fixture, "u", r#"{"exclude": ["w"]}"#),
        "42703",
    );
    assert_eq!(triggers(&mut client), before);
    // Others' triggers of such a name are not touched.
    run(
        &mut client,
        "select detach_sync('t', 'dst');
         create function other() returns trigger language plpgsql as 'begin return null; end';
         create trigger \"00_pg_rowsync_dst_truncate\" after truncate on t execute function other()",
    );
    refused(&mut client, &to(&fixture, "t", "{}"), "42710");
    let left = "select tgname, tgfoid::regproc from pg_trigger where tgrelid = 't'::regclass";
    assert_eq!(
        query(&mut client, left),
        ["00_pg_rowsync_dst_truncate|other"]
    );
    run(
        &mut client,
        "drop trigger \"00_pg_rowsync_dst_truncate\" on t",
    );
    // Nor are those that were made by hand, which is told.
    run(
        &mut client,
        &format!(
            "create trigger mine after insert on t for each row
               execute function sync_dml('dst', '{}', 't')",
            fixture.right.user
        ),
    );
    let (mut admin, notices) = superuser_with_notices(&fixture.left);
    run(
        &mut admin,
        &format!("set search_path = {}, public", fixture.left.user),
    );
    for _ in 0..2 {
        run(&mut admin, &attach_sql(&fixture, "t", "{}"));
        let reported = warnings(&notices);
        assert!(
            reported
                .iter()
                .any(|reported| reported.message().contains("\"mine\"")),
            "{reported:?}"
        );
    }
}
