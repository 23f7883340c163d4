//! Large values that an UPDATE leaves alone stay at home, and are there when they are needed.

use rowsync_harness::{Direction, Fixture, Proxy};

use crate::support::common::{
    attach_sql, deal, outage, queued, records, recover, refused, rows, run,
};

/// Hard to compress, stored out of line.
const BIG: &str = "(select string_agg(md5(i::text || 'n'), '') from generate_series(1, 3200) i)";

/// A table on both sides, the left one sent through a proxy.
fn through_proxy(label: &str, options: &str) -> (Fixture, Proxy) {
    let fixture = Fixture::new(label);
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table t (id int primary key, v text, big text, more text)");
    }
    fixture.left.exec(&attach_sql(&fixture, "t", options));
    (fixture, proxy)
}

#[track_caller]
fn equal(fixture: &Fixture) -> Vec<String> {
    let sums = "select id, v, length(big), md5(big), length(more), md5(more) from t order by id";
    let left = rows(&fixture.left, sums);
    assert_eq!(left, rows(&fixture.right, sums));
    left
}

#[test]
fn an_untouched_large_value_is_not_sent() {
    for mode in ["sync", "async"] {
        let (fixture, proxy) = through_proxy("toast", &format!(r#"{{"mode": "{mode}"}}"#));
        let mut client = fixture.left.client();
        run(
            &mut client,
            &format!("insert into t select i, 'a', {BIG} from generate_series(1, 3) i"),
        );
        let sent = proxy.bytes(Direction::ToServer);
        assert!(sent > 300_000, "{sent}");
        run(&mut client, "update t set v = 'b' where id = 1");
        run(&mut client, "update t set v = 'c', more = 'x'");
        let sent = proxy.bytes(Direction::ToServer) - sent;
        assert!(sent < 10_000, "{sent}");
        // Nor when the row is written again in the same transaction.
        let before = proxy.bytes(Direction::ToServer);
        run(
            &mut client,
            "begin; update t set v = 'd'; update t set v = v || id; commit",
        );
        let sent = proxy.bytes(Direction::ToServer) - before;
        assert!(sent < 10_000, "{sent}");
        assert_eq!(equal(&fixture).len(), 3);
        assert_eq!(queued(&fixture), 0);
    }
}

#[test]
fn a_missing_remote_row_is_written_with_the_untouched_value() {
    for mode in ["sync", "async", "queue"] {
        let (fixture, _proxy) = through_proxy("toastgone", &format!(r#"{{"mode": "{mode}"}}"#));
        let mut client = fixture.left.client();
        run(
            &mut client,
            &format!("insert into t select i, 'a', {BIG} from generate_series(1, 4) i"),
        );
        assert!(deal(&fixture, "10"));
        fixture.right.exec("delete from t where id in (1, 3)");
        run(
            &mut client,
            "begin; update t set v = 'b' where id < 4; insert into t values (5)",
        );
        run(&mut client, "update t set v = 'c' where id = 1; commit");
        assert!(deal(&fixture, "10"));
        assert_eq!(equal(&fixture).len(), 5);
        assert_eq!(queued(&fixture), 0);
    }
}

#[test]
fn a_record_in_the_queue_holds_the_untouched_value() {
    let (fixture, _proxy) = through_proxy("toastrec", "{}");
    fixture
        .left
        .exec(&format!("insert into t values (1, 'a', {BIG})"));
    outage(&fixture.right);
    fixture.left.exec("update t set v = 'b'");
    recover(&fixture.right);
    // Neither by hand nor by the drain does it depend on what the server has.
    fixture.right.exec("truncate t");
    let queries = rows(&fixture.left, "select dst_query from sync_err_rec");
    fixture.right.exec(&queries[0]);
    assert_eq!(equal(&fixture)[0].split('|').nth(2), Some("102400"));
    fixture.right.exec("truncate t");
    assert!(deal(&fixture, "10"));
    assert_eq!(equal(&fixture)[0].split('|').nth(2), Some("102400"));
}

#[test]
fn rows_with_and_without_the_value_touched_share_a_statement() {
    for mode in ["sync", "queue"] {
        let (fixture, _proxy) = through_proxy("toastmix", &format!(r#"{{"mode": "{mode}"}}"#));
        let mut client = fixture.left.client();
        let big = format!("{BIG} || i");
        run(
            &mut client,
            &format!("insert into t select i, 'a', {big}, {big} from generate_series(1, 20) i"),
        );
        assert!(deal(&fixture, "1000"));
        fixture.right.exec("delete from t where id = 7");
        run(
            &mut client,
            "begin;
             update t set v = 'b', big = case when id % 2 = 0 then big || 'new' else big end,
               more = case when id % 3 = 0 then null when id % 5 = 0 then 'short' else more end;
             update t set v = v || id; update t set big = null where id = 4;
             update t set v = 'again' where id = 4; update t set big = 'short' where id = 1;
             update t set v = 'once more' where id < 6;
             commit",
        );
        assert!(deal(&fixture, "1000"));
        assert_eq!(equal(&fixture).len(), 20);
    }
}

#[test]
fn a_key_change_takes_the_untouched_value_along() {
    for mode in ["sync", "queue"] {
        let (fixture, _proxy) = through_proxy("toastkey", &format!(r#"{{"mode": "{mode}"}}"#));
        let mut client = fixture.left.client();
        run(
            &mut client,
            &format!("insert into t select i, 'a', {BIG} from generate_series(1, 4) i"),
        );
        assert!(deal(&fixture, "10"));
        fixture.right.exec("delete from t where id = 2");
        run(&mut client, "update t set id = id + 10");
        run(
            &mut client,
            "begin; update t set v = 'b'; update t set id = id + 10; commit",
        );
        run(
            &mut client,
            "begin; update t set id = id - 10; update t set v = v || 'c'; commit",
        );
        assert!(deal(&fixture, "100"));
        assert_eq!(equal(&fixture).len(), 4);
    }
}

#[test]
fn a_value_from_before_a_change_of_storage_or_type_arrives() {
    let (fixture, _proxy) = through_proxy("toasttype", r#"{"mode": "sync"}"#);
    let mut client = fixture.left.client();
    run(
        &mut client,
        &format!("insert into t values (1, 'a', {BIG}, {BIG})"),
    );
    run(
        &mut client,
        "alter table t alter big set storage external; update t set v = 'b'",
    );
    for side in [&fixture.right, &fixture.left] {
        side.exec("alter table t alter more type bytea using more::bytea");
    }
    run(
        &mut client,
        "update t set v = 'c'; update t set big = left(big, 50000)",
    );
    run(
        &mut client,
        "update t set more = more || '\\x00'; update t set v = 'd'",
    );
    equal(&fixture);
}

#[test]
fn policy_error_misses_the_row_and_policy_skip_leaves_it_missing() {
    let (fixture, _proxy) =
        through_proxy("toasterror", r#"{"mode": "sync", "on_conflict": "error"}"#);
    let mut client = fixture.left.client();
    run(
        &mut client,
        &format!("insert into t select i, 'a', {BIG} from generate_series(1, 2) i"),
    );
    run(&mut client, "update t set v = 'b'");
    assert_eq!(equal(&fixture).len(), 2);
    fixture.right.exec("delete from t where id = 1");
    refused(&mut client, "update t set v = 'c'", "P0002");
    assert_eq!(rows(&fixture.left, "select distinct v from t"), ["b"]);
    run(&mut client, "select detach_sync('t', 'dst')");
    run(
        &mut client,
        &attach_sql(&fixture, "t", r#"{"on_conflict": "error"}"#),
    );
    run(&mut client, "update t set v = 'd'");
    assert_eq!(
        records(&fixture),
        ["UPDATE|P0002|1|pending", "UPDATE|P0002|1|pending"]
    );
    fixture.left.exec_superuser("delete from sync_err_rec");
    run(&mut client, "select detach_sync('t', 'dst')");
    run(
        &mut client,
        &attach_sql(&fixture, "t", r#"{"on_conflict": "skip"}"#),
    );
    run(&mut client, "update t set v = 'e'");
    assert_eq!(
        rows(&fixture.right, "select id, v, length(big) from t"),
        ["2|e|102400"]
    );
    assert_eq!(queued(&fixture), 0);
}
