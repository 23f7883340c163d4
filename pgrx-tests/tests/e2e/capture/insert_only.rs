//! Tables without a key that are only appended to: their rows arrive once, whatever happens to a delivery whose
//! outcome can be known, and what cannot be told is left to a person.

use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use rowsync_harness::fixture::{await_until, clusters};
use rowsync_harness::proxy::{Direction, Proxy};
use rowsync_harness::{Fixture, fails};

use crate::support::common::{
    attach, attach_sql, deal, fails_with, linked, outage, queued, records, recover, refused, rows,
    run, same, table,
};
use crate::support::one_way::SOON;

const COLUMNS: &str = "at int, v text";
const ONLY: &str = r#"{"insert_only": true}"#;
const QUEUED: &str = r#"{"insert_only": true, "mode": "queue"}"#;

fn log_table(fixture: &Fixture, name: &str, options: &str) {
    fixture
        .left
        .exec(&format!("create table {name} ({COLUMNS})"));
    fixture
        .right
        .exec(&format!("create table {name} ({COLUMNS})"));
    attach(fixture, name, options);
}

/// Table `l`, sent over a proxy.
fn proxied(label: &str, options: &str) -> (Fixture, Proxy, Client) {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = Fixture::new(label);
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    log_table(&fixture, "l", options);
    let mut client = fixture.left.client();
    run(&mut client, "insert into l values (0, 'warm')");
    deal(&fixture, "10");
    assert_eq!(table(&fixture.right, "l"), ["0|warm"]);
    (fixture, proxy, client)
}

#[test]
fn rows_that_look_alike_arrive_as_often_as_they_were_written() {
    for options in [ONLY, QUEUED, r#"{"insert_only": true, "mode": "sync"}"#] {
        let fixture = linked("onlyalike");
        log_table(&fixture, "l", options);
        fixture
            .left
            .exec("insert into l values (1, 'a'), (1, 'a'), (null, null)");
        fixture.left.exec(
            "begin; insert into l values (1, 'a'); savepoint s; insert into l values (2, 'b');
                       rollback to s; insert into l values (1, 'a'); commit",
        );
        fixture
            .left
            .exec("insert into l select 3, 'many' from generate_series(1, 3000)");
        while queued(&fixture) > 0 {
            assert!(deal(&fixture, "100000"));
        }
        assert_eq!(same(&fixture, "l").len(), 3 + 2 + 3000, "{options}");
        fixture
            .left
            .exec("begin; truncate l; insert into l values (4, 'new'); commit");
        while queued(&fixture) > 0 {
            assert!(deal(&fixture, "100000"));
        }
        assert_eq!(same(&fixture, "l"), ["4|new"], "{options}");
    }
}

#[test]
fn update_and_delete_are_refused_at_the_statement() {
    let fixture = linked("onlyrefused");
    log_table(&fixture, "l", ONLY);
    fixture.left.exec("insert into l values (1, 'a')");
    let mut client = fixture.left.client();
    let error = refused(&mut client, "update l set v = 'b'", "55000");
    assert_eq!(
        error.message(),
        "cannot update table \"l\", which is sent to server \"dst\" with option \"insert_only\""
    );
    assert!(
        error.hint().is_some_and(|hint| hint.contains("TRUNCATE")),
        "{error:?}"
    );
    let error = refused(&mut client, "delete from l", "55000");
    assert!(
        error
            .message()
            .starts_with("cannot delete from table \"l\","),
        "{error:?}"
    );
    // What changes no row is no event.
    run(&mut client, "delete from l where at = 9");
    assert_eq!(same(&fixture, "l"), ["1|a"]);
}

#[test]
fn a_table_without_a_key_is_refused_without_the_option_and_told_of_it() {
    let fixture = linked("onlytold");
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table l ({COLUMNS})"));
    }
    let mut client = fixture.left.client();
    let error = refused(&mut client, &attach_sql(&fixture, "l", "{}"), "55000");
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("insert_only")),
        "{error:?}"
    );
    for policy in ["skip", "newest"] {
        let version = if policy == "newest" {
            r#", "version_column": "at""#
        } else {
            ""
        };
        let options = format!(r#"{{"insert_only": true, "on_conflict": "{policy}"{version}}}"#);
        refused(&mut client, &attach_sql(&fixture, "l", &options), "22023");
    }
    run(&mut client, &attach_sql(&fixture, "l", ONLY));
}

#[test]
fn a_table_with_a_key_keeps_its_policy_and_refuses_changes() {
    let fixture = linked("onlykey");
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table k (id int primary key, v text)");
    }
    attach(&fixture, "k", ONLY);
    fixture.right.exec("insert into k values (1, 'theirs')");
    fixture.left.exec("insert into k values (1, 'ours')");
    assert_eq!(same(&fixture, "k"), ["1|ours"]);
    fails_with(
        &fixture.left,
        &format!("update {}.k set v = 'x'", fixture.left.user),
        "55000",
    );
}

/// Whether both sides have the same rows within a moment.
fn soon_equal(fixture: &Fixture) -> bool {
    let end = Instant::now() + Duration::from_millis(500);
    loop {
        let is_equal = table(&fixture.right, "l") == table(&fixture.left, "l");
        if is_equal || Instant::now() > end {
            return is_equal;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_commit_whose_answer_is_lost_puts_no_row_there_twice() {
    let (fixture, proxy, mut client) = proxied("onlylost", ONLY);
    // The exchanges before the COMMIT are answered; its answer is not.
    let before = proxy.bytes(Direction::ToClient);
    run(&mut client, "insert into l values (1, 'a')");
    let one = proxy.bytes(Direction::ToClient) - before;
    let mut seen_committed = false;
    // Later exchanges may be some bytes shorter than the first.
    let last = one - 40;
    for left in (0..last).step_by(7).chain(last..one) {
        proxy.cut_after(left, Direction::ToClient);
        run(&mut client, "insert into l values (1, 'a')");
        // The server may commit a moment after its answer was cut off.
        let is_answer = left >= last && queued(&fixture) == 1;
        seen_committed |= is_answer && soon_equal(&fixture);
        // The session that was lost may still be there for a while.
        await_until(SOON, "the queue to drain", || deal(&fixture, "10"));
        assert_eq!(queued(&fixture), 0, "{:?}", records(&fixture));
        same(&fixture, "l");
        run(&mut client, "insert into l values (2, 'warm')");
        same(&fixture, "l");
    }
    assert!(seen_committed, "no cut has hit the answer to a COMMIT");
}

#[test]
fn a_drain_whose_commit_is_not_answered_is_settled_by_the_next() {
    let (fixture, proxy, mut client) = proxied("onlydrain", QUEUED);
    for committed in [true, false] {
        run(&mut client, "insert into l values (1, 'a'), (1, 'a')");
        let mut drain = fixture.left.superuser();
        run(&mut drain, "begin; select deal_sync_err_rec(1000)");
        let direction = if committed {
            Direction::ToClient
        } else {
            Direction::ToServer
        };
        proxy.cut_after(0, direction);
        let error = fails(drain.batch_execute("commit"));
        assert_eq!(error.code().code(), "08007");
        assert_eq!(queued(&fixture), 2);
        run(&mut client, "insert into l values (2, 'later')");
        run(&mut drain, "select deal_sync_err_rec(1000)");
        assert_eq!(queued(&fixture), 0, "{:?}", records(&fixture));
        same(&fixture, "l");
    }
}

#[test]
fn what_nobody_can_tell_is_left_to_a_person() {
    let (fixture, proxy, mut client) = proxied("onlyperson", QUEUED);
    run(&mut client, "insert into l values (1, 'a')");
    let mut drain = fixture.left.superuser();
    run(&mut drain, "begin; select deal_sync_err_rec(1000)");
    proxy.cut_after(0, Direction::ToClient);
    fails(drain.batch_execute("commit"));
    drop(drain);
    // What was noted of it is gone.
    fixture.left.exec_superuser("delete from sync_drain");
    run(&mut client, "insert into l values (2, 'later')");
    assert!(!deal(&fixture, "1000"));
    assert_eq!(records(&fixture), ["INSERT|40003|1|failed"]);
    assert_eq!(table(&fixture.right, "l"), ["0|warm", "1|a", "2|later"]);
    let hint = "select message from sync_err_rec";
    assert!(rows(&fixture.left, hint)[0].contains("may have been delivered before"));
    // It is not tried again by itself, and what is discarded is gone.
    deal(&fixture, "1000");
    assert_eq!(records(&fixture), ["INSERT|40003|1|failed"]);
    assert_eq!(table(&fixture.right, "l"), ["0|warm", "1|a", "2|later"]);
    fixture.left.exec_superuser("delete from sync_err_rec");
    assert!(deal(&fixture, "1000"));
    same(&fixture, "l");
    // And what is retried is delivered.
    run(&mut client, "insert into l values (3, 'b')");
    let mut drain = fixture.left.superuser();
    run(&mut drain, "begin; select deal_sync_err_rec(1000)");
    proxy.cut_after(0, Direction::ToServer);
    fails(drain.batch_execute("commit"));
    drop(drain);
    fixture.left.exec_superuser("delete from sync_drain");
    assert!(!deal(&fixture, "1000"));
    let id = rows(&fixture.left, "select id from sync_err_rec").remove(0);
    assert!(
        fixture
            .left
            .query_one::<bool>(&format!("select retry_sync_err_rec({id})"))
    );
    assert_eq!(queued(&fixture), 0);
    same(&fixture, "l");
}

#[test]
fn a_row_that_is_refused_there_keeps_no_other_waiting() {
    let fixture = linked("onlyapart");
    log_table(&fixture, "l", ONLY);
    fixture
        .right
        .exec("alter table l add constraint small check (at < 5)");
    outage(&fixture.right);
    fixture.left.exec("insert into l values (9, 'bad')");
    fixture.left.exec("insert into l values (1, 'a')");
    recover(&fixture.right);
    assert!(!deal(&fixture, "1000"));
    fixture.left.exec("insert into l values (2, 'b')");
    assert_eq!(table(&fixture.right, "l"), ["1|a", "2|b"]);
    assert_eq!(records(&fixture).len(), 1);
    // TRUNCATE concerns it.
    fixture.left.exec("truncate l");
    assert_eq!(table(&fixture.right, "l"), ["1|a", "2|b"]);
    fixture.right.exec("alter table l drop constraint small");
    let id = rows(
        &fixture.left,
        "select id from sync_err_rec where status = 'failed'",
    )
    .remove(0);
    assert!(
        fixture
            .left
            .query_one::<bool>(&format!("select retry_sync_err_rec({id})"))
    );
    assert_eq!(queued(&fixture), 0);
    same(&fixture, "l");
}
