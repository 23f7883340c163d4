//! A backlog is queued and drained while an old snapshot is held, so that its dead index entries stay: commits and
//! drains do not read them, and nothing that is pending is overlooked for that.

use postgres::Client;
use rowsync_harness::{Side, Testbed};

use crate::common::{
    attach, both_have, deal, mirror, one_way, outage, query, queued, recover, run,
};

const QUEUE: &str = r#"{"mode": "queue"}"#;
const SIZE: i64 = 10_000;

/// Tables `t`, sent at commit, and `q`, queued.
fn two_tables(label: &str) -> Testbed {
    let bed = one_way(label, "id int primary key, v int", "{}");
    mirror(&bed, "q", "id int primary key, v int", QUEUE);
    bed.left.exec("insert into t values (1, 0)");
    bed
}

/// A session whose snapshot is held until it is dropped.
fn old_snapshot(side: &Side) -> Client {
    let mut client = side.superuser();
    run(&mut client, "begin isolation level repeatable read; select count(*) from pg_class");
    client
}

/// Queues rows and drains them.
fn backlog(bed: &Testbed, first: i64) {
    let last = first + SIZE - 1;
    bed.left.exec(&format!("insert into q select g, 0 from generate_series({first}, {last}) g"));
    let pending = "select exists (select from sync_queue where status = 'pending')";
    while bed.left.query_one::<bool>(pending) {
        deal(bed, "5000");
    }
}

/// Entries that scans of the queue's index of pending records have returned so far, in all sessions.
fn entries_read(bed: &Testbed) -> i64 {
    let mut client = bed.left.superuser();
    let sql =
        "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'sync_queue_pending'";
    query(&mut client, sql)[0].parse().expect("a number")
}

/// What the work of one session reads of the index.
fn read_by(bed: &Testbed, work: impl Fn(&mut Client)) -> i64 {
    let before = entries_read(bed);
    let mut client = bed.left.superuser();
    run(&mut client, &format!("set search_path = {}, public", bed.left.user));
    work(&mut client);
    run(&mut client, "select pg_stat_force_next_flush()");
    // Statistics are handed over between transactions.
    run(&mut client, "select 1");
    entries_read(bed) - before
}

#[test]
fn commits_and_drains_do_not_read_what_was_drained_under_an_old_snapshot() {
    let bed = two_tables("drainedold");
    let held = old_snapshot(&bed.left);
    for round in 0..2 {
        backlog(&bed, round * SIZE + 1);
        let commits = read_by(&bed, |client| {
            (0..20).for_each(|_| run(client, "update t set v = v + 1"));
        });
        // Without a floor it is 20 times the backlog; a floor may be a few records below what it could be.
        assert!(commits < 20 * 20, "20 commits have read {commits} entries");
        let drain = read_by(&bed, |client| {
            run(client, &format!("insert into q values ({}, 0)", 1_000_000 + round));
            run(client, "select deal_sync_err_rec(10)");
        });
        assert!(drain < 5_000, "a drain of one record has read {drain} entries");
    }
    drop(held);
    both_have(&bed, "t", &["1|40"]);
    assert_eq!(queued(&bed), 0);
}

#[test]
fn a_record_drawn_early_and_committed_late_is_not_overlooked() {
    let bed = two_tables("drainedlate");
    let _held = old_snapshot(&bed.left);
    let mut late = bed.left.client();
    // Prepared, it has drawn its id and keeps it.
    run(&mut late, "begin; insert into q values (-1, 0); prepare transaction 'late'");
    for round in 0..3 {
        backlog(&bed, round * SIZE + 1);
    }
    run(&mut late, "commit prepared 'late'");
    assert_eq!(queued(&bed), 1);
    // What depends on it does not pass it.
    attach_directly(&bed);
    bed.left.exec("update q set v = 7 where id = -1");
    assert_eq!(queued(&bed), 2);
    assert!(deal(&bed, "10"));
    assert_eq!(queued(&bed), 0);
    let found = "select v from q where id = -1";
    assert_eq!(crate::common::rows(&bed.right, found), ["7"]);
}

/// From now on, changes of `q` are sent at commit.
fn attach_directly(bed: &Testbed) {
    bed.left.exec("select detach_sync('q', 'dst')");
    attach(bed, "q", "{}");
}

#[test]
fn a_record_that_is_pending_again_under_its_old_id_is_not_passed() {
    let bed = two_tables("drainedagain");
    let _held = old_snapshot(&bed.left);
    // Set aside: the row's value is not allowed there.
    bed.right.exec("alter table q add constraint small check (v < 5)");
    bed.left.exec("insert into q values (-1, 9)");
    assert!(!deal(&bed, "10"));
    for round in 0..2 {
        backlog(&bed, round * SIZE + 1);
    }
    let aside = "select id from sync_err_rec where status = 'failed'";
    let id = crate::common::rows(&bed.left, aside).remove(0);
    bed.right.exec("alter table q drop constraint small");
    // Pending again, and not delivered: the server is away.
    outage(&bed.right);
    assert!(!bed.left.query_one::<bool>(&format!("select retry_sync_err_rec({id})")));
    let pending = format!("select status from sync_err_rec where id = {id}");
    assert_eq!(crate::common::rows(&bed.left, &pending), ["pending"]);
    recover(&bed.right);
    attach_directly(&bed);
    bed.left.exec("update q set v = 3 where id = -1");
    assert!(deal(&bed, "10000"));
    let found = "select v from q where id = -1";
    assert_eq!(crate::common::rows(&bed.right, found), ["3"]);
    assert_eq!(queued(&bed), 0);
}
