//! `sync_err_rec` and `deal_sync_err_rec`: what they show, and what stands or falls with what.

use rowsync_harness::Fixture;

use crate::support::common::{
    both_have, closed_port, deal, link_with, linked, mirror, one_way, queued, records, refused,
    rows, run, same, superuser_with_notices, table, warnings,
};

const COLUMNS: &str = "id int primary key, v text";
const QUEUE: &str = r#"{"mode": "queue"}"#;

/// A queued table `t` with rows 1 to 5 that wait.
fn five_waiting(label: &str) -> Fixture {
    let fixture = one_way(label, COLUMNS, QUEUE);
    fixture
        .left
        .exec("insert into t select i, 'v' || i from generate_series(1, 5) i");
    fixture
}

/// The ids on the right.
fn arrived(fixture: &Fixture) -> Vec<String> {
    rows(&fixture.right, "select id from t order by id")
}

#[test]
fn the_view_has_the_columns_of_the_contract() {
    let fixture = linked("columns");
    let columns = rows(
        &fixture.left,
        "select attname || ' ' || format_type(atttypid, atttypmod) from pg_attribute
          where attrelid = 'sync_err_rec'::regclass and attnum > 0 order by attnum",
    );
    let expected = [
        "id bigint",
        "nsp_name name",
        "table_name name",
        "dst_server text",
        "dst_query text",
        "create_time timestamp with time zone",
        "op text",
        "sqlstate text",
        "message text",
        "attempts integer",
        "last_attempt_at timestamp with time zone",
        "status text",
        "constraint_name text",
        "waits_for bigint",
        "next_attempt_at timestamp with time zone",
    ];
    assert_eq!(columns, expected);
}

#[test]
fn a_record_says_what_it_is_about() {
    let fixture = five_waiting("about");
    let schema = &fixture.left.user;
    let sql = "select nsp_name, table_name, dst_server, op, create_time <= clock_timestamp(),
                 last_attempt_at, attempts, status from sync_err_rec order by id limit 1";
    assert_eq!(
        rows(&fixture.left, sql),
        [format!("{schema}|t|dst|INSERT|t|~|0|pending")]
    );
}

/// Changes that need quoting, one per kind.
const AWKWARD: [&str; 7] = [
    r"insert into t values (1, 'it''s \ a $q$ b', E'line\nline\ttab', null)",
    r#"insert into t values (2, '"; drop table t; --', '\', '{"a": "\\ ''x''"}'), (3, '', null, 'null')"#,
    r"update t set a = a || ' ''$q$'' \\', j = '[1]' where id = 1",
    "update t set id = 20, a = null where id = 2",
    "update t set id = 2, b = 'back' where id = 20",
    "delete from t where id = 3",
    "insert into t values (3, 'again', '', '{}')",
];

/// Two beds' worth of the same: what runs by hand from `dst_query` and what delivery does.
#[test]
fn dst_query_run_by_hand_does_what_delivery_does() {
    for truncated in [false, true] {
        let fixture = one_way("hand", "id int primary key, a text, b text, j jsonb", QUEUE);
        let mut client = fixture.left.client();
        AWKWARD.iter().for_each(|sql| run(&mut client, sql));
        if truncated {
            run(
                &mut client,
                "truncate t; insert into t values (9, 'after', null, null)",
            );
        }
        let ops = if truncated { 10 } else { 8 };
        let queries = rows(
            &fixture.left,
            "select dst_query from sync_err_rec order by id",
        );
        assert_eq!(queries.len(), ops);
        let mut by_hand = fixture.right.client();
        for standard in ["on", "off"] {
            run(
                &mut by_hand,
                &format!("set standard_conforming_strings = {standard}; truncate t"),
            );
            run(&mut by_hand, "set search_path = pg_catalog");
            for query in &queries {
                run(&mut by_hand, query);
            }
            same(&fixture, "t");
            run(&mut by_hand, "reset search_path");
        }
        run(&mut by_hand, "truncate t");
        assert!(deal(&fixture, "100"));
        same(&fixture, "t");
    }
}

#[test]
fn deleting_a_record_discards_that_change() {
    let fixture = five_waiting("discard");
    fixture
        .left
        .exec_superuser("delete from sync_err_rec where dst_query like '%v3%'");
    assert_eq!(queued(&fixture), 4);
    assert!(deal(&fixture, "100"));
    assert_eq!(arrived(&fixture), ["1", "2", "4", "5"]);
}

#[test]
fn a_call_applies_the_oldest_records_up_to_its_limit() {
    let fixture = five_waiting("limit");
    assert!(deal(&fixture, "2"));
    assert_eq!(arrived(&fixture), ["1", "2"]);
    assert_eq!(queued(&fixture), 3);
    assert!(deal(&fixture, "3"));
    assert_eq!(queued(&fixture), 0);
    assert!(deal(&fixture, "3"), "an empty queue is nothing failed");
    assert_eq!(same(&fixture, "t").len(), 5);
}

/// The fixture of [`five_waiting`] with a constraint that row 3 breaks.
fn third_fails(label: &str) -> Fixture {
    let fixture = five_waiting(label);
    fixture
        .right
        .exec("alter table t add constraint not_three check (id <> 3)");
    fixture
}

#[test]
fn a_record_that_fails_is_failed_and_the_rest_arrives() {
    let fixture = third_fails("marked");
    let (mut client, notices) = superuser_with_notices(&fixture.left);
    for attempt in 1..=2 {
        let done: bool = client
            .query_one("select deal_sync_err_rec(100)", &[])
            .expect("done")
            .get(0);
        assert!(!done);
        let said = warnings(&notices);
        assert_eq!(said.len(), 1, "{said:?}");
        assert_eq!(said[0].code().code(), "23514");
        assert!(said[0].message().contains("server \"dst\""), "{said:?}");
        assert!(
            said[0]
                .detail()
                .is_some_and(|detail| detail.contains("not_three")),
            "{said:?}"
        );
        assert_eq!(arrived(&fixture), ["1", "2", "4", "5"]);
        assert_eq!(
            records(&fixture),
            [format!("INSERT|23514|{attempt}|failed")]
        );
    }
    let why = "select message, last_attempt_at > create_time from sync_err_rec order by id limit 1";
    let why = rows(&fixture.left, why);
    assert!(
        why[0].contains("\"not_three\"") && why[0].ends_with("|t"),
        "{why:?}"
    );
    fixture
        .right
        .exec("alter table t drop constraint not_three");
    assert!(deal(&fixture, "100"));
    assert_eq!(same(&fixture, "t").len(), 5);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn discarding_the_failed_record_leaves_nothing_to_do() {
    let fixture = third_fails("repair");
    assert!(!deal(&fixture, "100"));
    fixture
        .left
        .exec_superuser("delete from sync_err_rec where status = 'failed'");
    assert!(deal(&fixture, "100"));
    assert_eq!(arrived(&fixture), ["1", "2", "4", "5"]);
}

#[test]
fn the_remote_commits_with_the_caller() {
    let fixture = five_waiting("caller");
    let mut client = fixture.left.superuser();
    run(&mut client, "begin; select deal_sync_err_rec(3)");
    assert_eq!(arrived(&fixture), [""; 0]);
    assert_eq!(
        queued(&fixture),
        5,
        "records stay visible to others until the commit"
    );
    run(&mut client, "rollback");
    assert_eq!(arrived(&fixture), [""; 0]);
    assert_eq!(queued(&fixture), 5);
    run(
        &mut client,
        "begin; select deal_sync_err_rec(2); select deal_sync_err_rec(2); commit",
    );
    assert_eq!(arrived(&fixture), ["1", "2", "3", "4"]);
    assert_eq!(queued(&fixture), 1);
}

#[test]
fn a_drain_in_a_rolled_back_savepoint_leaves_both_sides_as_they_were() {
    let fixture = five_waiting("savepoint");
    let mut client = fixture.left.superuser();
    run(
        &mut client,
        "begin; savepoint a; select deal_sync_err_rec(3); rollback to a; commit",
    );
    assert_eq!(arrived(&fixture), [""; 0]);
    assert_eq!(queued(&fixture), 5);
    run(
        &mut client,
        "begin; savepoint a; select deal_sync_err_rec(1); rollback to a",
    );
    run(
        &mut client,
        "savepoint b; select deal_sync_err_rec(2); release b; commit",
    );
    assert_eq!(arrived(&fixture), ["1", "2"]);
    assert_eq!(queued(&fixture), 3);
}

#[test]
fn a_drain_that_is_partly_rolled_back_never_loses_or_half_applies() {
    let fixture = five_waiting("partly");
    let mut client = fixture.left.superuser();
    run(
        &mut client,
        "begin; select deal_sync_err_rec(2); savepoint a",
    );
    run(&mut client, "select deal_sync_err_rec(2); rollback to a");
    refused(&mut client, "commit", "40000");
    assert_eq!(arrived(&fixture), [""; 0]);
    assert_eq!(queued(&fixture), 5);
    assert!(deal(&fixture, "100"));
    same(&fixture, "t");
}

#[test]
fn a_failing_record_leaves_what_an_earlier_call_of_the_transaction_applied() {
    let fixture = third_fails("earlier");
    let mut client = fixture.left.superuser();
    run(
        &mut client,
        "begin; select deal_sync_err_rec(1); select deal_sync_err_rec(4); commit",
    );
    assert_eq!(arrived(&fixture), ["1", "2", "4", "5"]);
    assert_eq!(records(&fixture), ["INSERT|23514|1|failed"]);
}

#[test]
fn a_second_drainer_returns_at_once() {
    let fixture = five_waiting("second");
    let mut first = fixture.left.superuser();
    run(&mut first, "begin; select deal_sync_err_rec(2)");
    let mut second = fixture.left.superuser();
    run(&mut second, "set statement_timeout = '5s'");
    let done: bool = second
        .query_one("select deal_sync_err_rec(5)", &[])
        .expect("done")
        .get(0);
    assert!(done, "nothing was tried, so nothing failed");
    run(&mut first, "commit");
    assert_eq!(arrived(&fixture), ["1", "2"]);
    run(&mut second, "select deal_sync_err_rec(5)");
    assert_eq!(same(&fixture, "t").len(), 5);
}

#[test]
fn changes_wait_while_a_drain_is_open() {
    let fixture = five_waiting("open");
    mirror(&fixture, "other", COLUMNS, "{}");
    let mut drainer = fixture.left.superuser();
    run(&mut drainer, "begin; select deal_sync_err_rec(100)");
    fixture
        .left
        .exec("insert into other values (1, 'a'); update t set v = 'new' where id = 1");
    assert_eq!(queued(&fixture), 7);
    run(&mut drainer, "commit");
    assert_eq!(queued(&fixture), 2);
    assert!(deal(&fixture, "100"));
    same(&fixture, "t");
    both_have(&fixture, "other", &["1|a"]);
}

/// Tables `t` and `u` that send to `dst` and to `other`, three changes waiting for each.
fn two_servers(label: &str, port: Option<u16>) -> Fixture {
    let fixture = one_way(label, COLUMNS, QUEUE);
    let port = port.unwrap_or(fixture.right.cluster.port());
    link_with(&fixture, "aaa_other", port, &fixture.right.password);
    fixture.left.exec(&format!("create table u ({COLUMNS})"));
    fixture.right.exec(&format!("create table u ({COLUMNS})"));
    let schema = &fixture.right.user;
    fixture.left.exec(&format!(
        "select attach_sync('u', 'aaa_other', '{schema}.u', '{QUEUE}')"
    ));
    fixture
        .left
        .exec("insert into u values (1, 'a'), (2, 'b'), (3, 'c')");
    fixture
        .left
        .exec("insert into t values (1, 'a'), (2, 'b'), (3, 'c')");
    fixture
}

#[test]
fn the_limit_is_for_each_server_and_the_argument_names_one() {
    let fixture = two_servers("server", None);
    assert!(deal(&fixture, "2, 'dst'"));
    assert_eq!(table(&fixture.right, "t"), ["1|a", "2|b"]);
    assert_eq!(table(&fixture.right, "u"), [""; 0]);
    assert!(deal(&fixture, "1"));
    assert_eq!(table(&fixture.right, "u"), ["1|a"]);
    assert_eq!(queued(&fixture), 2);
    assert!(deal(&fixture, "10, i_server => 'aaa_other'"));
    same(&fixture, "u");
    same(&fixture, "t");
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn a_server_that_cannot_be_reached_keeps_no_other_waiting() {
    let fixture = two_servers("unreachable", Some(closed_port()));
    let (mut client, notices) = superuser_with_notices(&fixture.left);
    let done: bool = client
        .query_one("select deal_sync_err_rec(10)", &[])
        .expect("done")
        .get(0);
    assert!(!done);
    same(&fixture, "t");
    let said = warnings(&notices);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].message().contains("\"aaa_other\""), "{said:?}");
    assert_eq!(said[0].code().code(), "08001");
    // The server's failure and not the record's.
    assert_eq!(records(&fixture)[0], "INSERT|~|0|pending");
    let status =
        "select last_sqlstate, consecutive_failures from sync_status where server = 'aaa_other'";
    assert_eq!(rows(&fixture.left, status), ["08001|1"]);
    assert_eq!(queued(&fixture), 3);
}

#[test]
fn only_the_privileged_read_and_drain() {
    let fixture = five_waiting("rights");
    let mut client = fixture.left.client();
    for sql in [
        "select deal_sync_err_rec(1)",
        "select * from sync_err_rec",
        "delete from sync_err_rec",
        "select * from sync_status",
        "select * from sync_queue",
        "select * from sync_route",
    ] {
        refused(&mut client, sql, "42501");
    }
    // What was revoked can be granted: draining then needs no right on the tables.
    let user = &fixture.left.user;
    fixture.left.exec_superuser(&format!(
        "grant execute on function deal_sync_err_rec to {user}; grant select on sync_err_rec to {user}"
    ));
    run(
        &mut client,
        "select dst_query from sync_err_rec; select deal_sync_err_rec(10)",
    );
    same(&fixture, "t");
}

#[test]
fn records_of_two_owners_are_delivered_each_under_its_own_mapping() {
    let fixture = five_waiting("owners");
    let schema = &fixture.left.user;
    let second = format!("{}_two", fixture.left.user);
    let user = &fixture.right.user;
    let password = &fixture.right.password;
    fixture.left.exec_superuser(&format!(
        "create role {second} login password 'x'; grant usage, create on schema {schema} to {second};
         grant usage on foreign server dst to {second};
         create user mapping for {second} server dst options (user '{user}', password '{password}')"
    ));
    fixture.right.exec(&format!("create table u ({COLUMNS})"));
    let mut other = fixture
        .left
        .cluster
        .connect(&fixture.left.db, &second, "x")
        .expect("a session");
    run(
        &mut other,
        &format!("set search_path = {schema}, public; create table u ({COLUMNS})"),
    );
    run(
        &mut other,
        &format!("select attach_sync('u', 'dst', '{user}.u', '{QUEUE}')"),
    );
    for id in 1..=3 {
        run(&mut other, &format!("insert into u values ({id}, 'two')"));
        fixture
            .left
            .exec(&format!("update t set v = 'round {id}' where id = {id}"));
    }
    drop(other);
    let mut calls = 0;
    while queued(&fixture) > 0 {
        assert!(deal(&fixture, "100"));
        calls += 1;
        assert!(calls <= 11, "each call must deliver something");
    }
    same(&fixture, "t");
    assert_eq!(table(&fixture.right, "u").len(), 3);
    fixture.left.exec_superuser(&format!(
        "drop owned by {second} cascade; drop role {second}"
    ));
}

#[test]
fn a_record_that_breaks_a_deferred_constraint_is_failed_like_any_other() {
    let fixture = five_waiting("deferred");
    fixture.right.exec(
        "create table allowed (id int primary key);
         insert into allowed values (1), (2), (4), (5);
         alter table t add constraint is_allowed foreign key (id) references allowed
           deferrable initially deferred",
    );
    assert!(!deal(&fixture, "100"));
    assert_eq!(arrived(&fixture), ["1", "2", "4", "5"]);
    assert_eq!(records(&fixture), ["INSERT|23503|1|failed"]);
    fixture.right.exec("insert into allowed values (3)");
    assert!(deal(&fixture, "100"));
    same(&fixture, "t");
}
