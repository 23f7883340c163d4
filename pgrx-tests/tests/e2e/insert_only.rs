//! Tables without a key that are only appended to: their rows arrive once, whatever happens to a delivery whose
//! outcome can be known, and what cannot be told is left to a person.

use postgres::Client;
use rowsync_harness::proxy::{Direction, Proxy};
use rowsync_harness::testbed::clusters;
use rowsync_harness::{Testbed, fails};

use crate::common::{
    attach, attach_sql, deal, fails_with, linked, outage, queued, records, recover, refused, rows,
    run, same, table,
};

const COLUMNS: &str = "at int, v text";
const ONLY: &str = r#"{"insert_only": true}"#;
const QUEUED: &str = r#"{"insert_only": true, "mode": "queue"}"#;

fn log_table(bed: &Testbed, name: &str, options: &str) {
    bed.left.exec(&format!("create table {name} ({COLUMNS})"));
    bed.right.exec(&format!("create table {name} ({COLUMNS})"));
    attach(bed, name, options);
}

/// Table `l`, sent over a proxy.
fn proxied(label: &str, options: &str) -> (Testbed, Proxy, Client) {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let bed = Testbed::new(label);
    bed.link_via(&proxy, &bed.left, &bed.right, "dst", &[]);
    log_table(&bed, "l", options);
    let mut client = bed.left.client();
    run(&mut client, "insert into l values (0, 'warm')");
    deal(&bed, "10");
    assert_eq!(table(&bed.right, "l"), ["0|warm"]);
    (bed, proxy, client)
}

#[test]
fn rows_that_look_alike_arrive_as_often_as_they_were_written() {
    for options in [ONLY, QUEUED, r#"{"insert_only": true, "mode": "sync"}"#] {
        let bed = linked("onlyalike");
        log_table(&bed, "l", options);
        bed.left.exec("insert into l values (1, 'a'), (1, 'a'), (null, null)");
        bed.left.exec(
            "begin; insert into l values (1, 'a'); savepoint s; insert into l values (2, 'b');
                       rollback to s; insert into l values (1, 'a'); commit",
        );
        bed.left.exec("insert into l select 3, 'many' from generate_series(1, 3000)");
        while queued(&bed) > 0 {
            assert!(deal(&bed, "100000"));
        }
        assert_eq!(same(&bed, "l").len(), 3 + 2 + 3000, "{options}");
        bed.left.exec("begin; truncate l; insert into l values (4, 'new'); commit");
        while queued(&bed) > 0 {
            assert!(deal(&bed, "100000"));
        }
        assert_eq!(same(&bed, "l"), ["4|new"], "{options}");
    }
}

#[test]
fn update_and_delete_are_refused_at_the_statement() {
    let bed = linked("onlyrefused");
    log_table(&bed, "l", ONLY);
    bed.left.exec("insert into l values (1, 'a')");
    let mut client = bed.left.client();
    let error = refused(&mut client, "update l set v = 'b'", "55000");
    assert_eq!(
        error.message(),
        "cannot update table \"l\", which is sent to server \"dst\" with option \"insert_only\""
    );
    assert!(error.hint().is_some_and(|hint| hint.contains("TRUNCATE")), "{error:?}");
    let error = refused(&mut client, "delete from l", "55000");
    assert!(error.message().starts_with("cannot delete from table \"l\","), "{error:?}");
    // What changes no row is no event.
    run(&mut client, "delete from l where at = 9");
    assert_eq!(same(&bed, "l"), ["1|a"]);
}

#[test]
fn a_table_without_a_key_is_refused_without_the_option_and_told_of_it() {
    let bed = linked("onlytold");
    for side in [&bed.left, &bed.right] {
        side.exec(&format!("create table l ({COLUMNS})"));
    }
    let mut client = bed.left.client();
    let error = refused(&mut client, &attach_sql(&bed, "l", "{}"), "55000");
    assert!(error.hint().is_some_and(|hint| hint.contains("insert_only")), "{error:?}");
    for policy in ["skip", "newest"] {
        let version = if policy == "newest" { r#", "version_column": "at""# } else { "" };
        let options = format!(r#"{{"insert_only": true, "on_conflict": "{policy}"{version}}}"#);
        refused(&mut client, &attach_sql(&bed, "l", &options), "22023");
    }
    run(&mut client, &attach_sql(&bed, "l", ONLY));
}

#[test]
fn a_table_with_a_key_keeps_its_policy_and_refuses_changes() {
    let bed = linked("onlykey");
    for side in [&bed.left, &bed.right] {
        side.exec("create table k (id int primary key, v text)");
    }
    attach(&bed, "k", ONLY);
    bed.right.exec("insert into k values (1, 'theirs')");
    bed.left.exec("insert into k values (1, 'ours')");
    assert_eq!(same(&bed, "k"), ["1|ours"]);
    fails_with(&bed.left, &format!("update {}.k set v = 'x'", bed.left.user), "55000");
}

#[test]
fn a_commit_whose_answer_is_lost_puts_no_row_there_twice() {
    let (bed, proxy, mut client) = proxied("onlylost", ONLY);
    // The exchanges before the COMMIT are answered; its answer is not.
    let before = proxy.bytes(Direction::ToClient);
    run(&mut client, "insert into l values (1, 'a')");
    let one = proxy.bytes(Direction::ToClient) - before;
    let mut seen_committed = false;
    for left in (0..one).step_by(7).chain(one - 12..one) {
        proxy.cut_after(left, Direction::ToClient);
        run(&mut client, "insert into l values (1, 'a')");
        seen_committed |= queued(&bed) == 1 && table(&bed.right, "l") == table(&bed.left, "l");
        assert!(deal(&bed, "10"), "{:?}", records(&bed));
        assert_eq!(queued(&bed), 0);
        same(&bed, "l");
        run(&mut client, "insert into l values (2, 'warm')");
        same(&bed, "l");
    }
    assert!(seen_committed, "no cut has hit the answer to a COMMIT");
}

#[test]
fn a_drain_whose_commit_is_not_answered_is_settled_by_its_session() {
    let (bed, proxy, mut client) = proxied("onlydrain", QUEUED);
    for committed in [true, false] {
        run(&mut client, "insert into l values (1, 'a'), (1, 'a')");
        let mut drain = bed.left.superuser();
        run(&mut drain, "begin; select deal_sync_err_rec(1000)");
        let direction = if committed { Direction::ToClient } else { Direction::ToServer };
        proxy.cut_after(0, direction);
        let error = fails(drain.batch_execute("commit"));
        assert_eq!(error.code().code(), "08007");
        assert_eq!(queued(&bed), 2);
        run(&mut client, "insert into l values (2, 'later')");
        run(&mut drain, "select deal_sync_err_rec(1000)");
        assert_eq!(queued(&bed), 0, "{:?}", records(&bed));
        same(&bed, "l");
    }
}

#[test]
fn what_nobody_can_tell_is_left_to_a_person() {
    let (bed, proxy, mut client) = proxied("onlyperson", QUEUED);
    run(&mut client, "insert into l values (1, 'a')");
    let mut drain = bed.left.superuser();
    run(&mut drain, "begin; select deal_sync_err_rec(1000)");
    proxy.cut_after(0, Direction::ToClient);
    fails(drain.batch_execute("commit"));
    drop(drain);
    // Another session does not know what the first has asked.
    run(&mut client, "insert into l values (2, 'later')");
    assert!(!deal(&bed, "1000"));
    assert_eq!(records(&bed), ["INSERT|40003|1|failed"]);
    assert_eq!(table(&bed.right, "l"), ["0|warm", "1|a", "2|later"]);
    let hint = "select message from sync_err_rec";
    assert!(rows(&bed.left, hint)[0].contains("may have been delivered before"));
    // It is not tried again by itself, and what is discarded is gone.
    deal(&bed, "1000");
    assert_eq!(records(&bed), ["INSERT|40003|1|failed"]);
    assert_eq!(table(&bed.right, "l"), ["0|warm", "1|a", "2|later"]);
    bed.left.exec_superuser("delete from sync_err_rec");
    assert!(deal(&bed, "1000"));
    same(&bed, "l");
    // And what is retried is delivered.
    run(&mut client, "insert into l values (3, 'b')");
    let mut drain = bed.left.superuser();
    run(&mut drain, "begin; select deal_sync_err_rec(1000)");
    proxy.cut_after(0, Direction::ToServer);
    fails(drain.batch_execute("commit"));
    drop(drain);
    assert!(!deal(&bed, "1000"));
    let id = rows(&bed.left, "select id from sync_err_rec").remove(0);
    assert!(bed.left.query_one::<bool>(&format!("select retry_sync_err_rec({id})")));
    assert_eq!(queued(&bed), 0);
    same(&bed, "l");
}

#[test]
fn a_row_that_is_refused_there_keeps_no_other_waiting() {
    let bed = linked("onlyapart");
    log_table(&bed, "l", ONLY);
    bed.right.exec("alter table l add constraint small check (at < 5)");
    outage(&bed.right);
    bed.left.exec("insert into l values (9, 'bad')");
    bed.left.exec("insert into l values (1, 'a')");
    recover(&bed.right);
    assert!(!deal(&bed, "1000"));
    bed.left.exec("insert into l values (2, 'b')");
    assert_eq!(table(&bed.right, "l"), ["1|a", "2|b"]);
    assert_eq!(records(&bed).len(), 1);
    // TRUNCATE concerns it.
    bed.left.exec("truncate l");
    assert_eq!(table(&bed.right, "l"), ["1|a", "2|b"]);
    bed.right.exec("alter table l drop constraint small");
    let id = rows(&bed.left, "select id from sync_err_rec where status = 'failed'").remove(0);
    assert!(bed.left.query_one::<bool>(&format!("select retry_sync_err_rec({id})")));
    assert_eq!(queued(&bed), 0);
    same(&bed, "l");
}
