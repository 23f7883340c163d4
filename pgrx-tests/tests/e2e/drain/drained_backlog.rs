//! A backlog is queued and drained, and its dead index entries stay until VACUUM comes, which cannot remove them
//! while an old snapshot is held: commits and drains do not read them, and nothing that is pending is overlooked
//! for that.

use postgres::Client;
use rowsync_harness::{Fixture, Side};

use crate::support::common::{
    attach, both_have, deal, mirror, one_way, outage, query, queued, recover, run,
};

const QUEUE: &str = r#"{"mode": "queue"}"#;
const SIZE: i64 = 10_000;

/// Tables `t`, sent at commit, and `q`, queued.
fn two_tables(label: &str) -> Fixture {
    let fixture = one_way(label, "id int primary key, v int", "{}");
    mirror(&fixture, "q", "id int primary key, v int", QUEUE);
    fixture.left.exec("insert into t values (1, 0)");
    fixture
}

/// A session whose snapshot is held until it is dropped.
fn old_snapshot(side: &Side) -> Client {
    let mut client = side.superuser();
    run(
        &mut client,
        "begin isolation level repeatable read; select count(*) from pg_class",
    );
    client
}

/// Queues rows and drains them.
fn backlog(fixture: &Fixture, first: i64) {
    let last = first + SIZE - 1;
    fixture.left.exec(&format!(
        "insert into q select g, 0 from generate_series({first}, {last}) g"
    ));
    let pending = "select exists (select from sync_queue where status = 'pending')";
    while fixture.left.query_one::<bool>(pending) {
        deal(fixture, "5000");
    }
}

/// Entries that scans of the queue's index of pending records have returned so far, in all sessions.
fn entries_read(fixture: &Fixture) -> i64 {
    entries_read_of(fixture, "sync_queue_pending")
}

/// As [`entries_read`], of another index.
fn entries_read_of(fixture: &Fixture, index: &str) -> i64 {
    let mut client = fixture.left.superuser();
    let sql =
        format!("select idx_tup_read from pg_stat_user_indexes where indexrelname = '{index}'");
    query(&mut client, &sql)[0].parse().expect("a number")
}

/// Pages of that index that were looked at so far, in all sessions.
fn pages_read(fixture: &Fixture) -> i64 {
    let mut client = fixture.left.superuser();
    let sql = "select idx_blks_hit + idx_blks_read from pg_statio_user_indexes
                where indexrelname = 'sync_queue_pending'";
    query(&mut client, sql)[0].parse().expect("a number")
}

/// What the work of one session reads of the index, as counted by `counted`.
fn read_by(
    fixture: &Fixture,
    counted: impl Fn(&Fixture) -> i64,
    work: impl Fn(&mut Client),
) -> i64 {
    let before = counted(fixture);
    let mut client = fixture.left.superuser();
    run(
        &mut client,
        &format!("set search_path = {}, public", fixture.left.user),
    );
    work(&mut client);
    run(&mut client, "select pg_stat_force_next_flush()");
    // Statistics are handed over between transactions.
    run(&mut client, "select 1");
    counted(fixture) - before
}

#[test]
fn commits_and_drains_do_not_read_what_was_drained_under_an_old_snapshot() {
    let fixture = two_tables("drainedold");
    let held = old_snapshot(&fixture.left);
    for round in 0..2 {
        backlog(&fixture, round * SIZE + 1);
        let commits = read_by(&fixture, entries_read, |client| {
            (0..20).for_each(|_| run(client, "update t set v = v + 1"));
        });
        // Without a floor it is 20 times the backlog; a floor may be a few records below what it could be.
        assert!(commits < 20 * 20, "20 commits have read {commits} entries");
        let drain = read_by(&fixture, entries_read, |client| {
            run(
                client,
                &format!("insert into q values ({}, 0)", 1_000_000 + round),
            );
            run(client, "select deal_sync_err_rec(10)");
        });
        assert!(
            drain < 5_000,
            "a drain of one record has read {drain} entries"
        );
    }
    drop(held);
    both_have(&fixture, "t", &["1|40"]);
    assert_eq!(queued(&fixture), 0);
}

/// VACUUM holds its lock of the queue for as long as it takes, again and again while it cannot remove anything.
#[test]
fn who_maintains_the_queue_meanwhile_writes_none_of_it() {
    let fixture = two_tables("drainedvacuum");
    let held = old_snapshot(&fixture.left);
    let mut maintenance = fixture.left.superuser();
    run(
        &mut maintenance,
        "begin; lock table sync_queue in share update exclusive mode",
    );
    for first in [1, SIZE + 1] {
        failed_backlog(&fixture, first);
        for index in ["sync_queue_failed", "sync_queue_pending"] {
            let read = |fixture: &Fixture| entries_read_of(fixture, index);
            let commits = read_by(&fixture, read, |client| {
                (0..20).for_each(|_| run(client, "update t set v = v + 1"));
            });
            assert!(
                commits < 20 * 20,
                "20 commits have read {commits} entries of {index}"
            );
        }
    }
    run(&mut maintenance, "rollback");
    drop(held);
    both_have(&fixture, "t", &["1|80"]);
}

/// Nobody sees them any more, and scans pass over them; there are hundreds of pages of them all the same.
#[test]
fn commits_do_not_read_what_was_drained_before_vacuum_comes() {
    let fixture = two_tables("drainednew");
    fixture
        .left
        .exec_superuser("alter table sync_queue set (autovacuum_enabled = off)");
    for round in 0..3 {
        backlog(&fixture, round * SIZE + 1);
        let pages = read_by(&fixture, pages_read, |client| {
            (0..20).for_each(|_| run(client, "update t set v = v + 1"));
        });
        // From the root to a leaf, a few times a commit.
        assert!(pages < 20 * 15, "20 commits have read {pages} pages");
    }
    both_have(&fixture, "t", &["1|60"]);
    assert_eq!(queued(&fixture), 0);
}

/// Queues rows, of which the first is marked failed over a table that is not there and the others wait, and
/// drains them when the table is there again.
fn failed_backlog(fixture: &Fixture, first: i64) {
    fixture.right.exec("alter table q rename to elsewhere");
    fixture
        .left
        .exec(&format!("insert into q values ({first}, 0)"));
    assert!(!deal(fixture, "10"));
    let next = first + 1;
    let last = first + SIZE - 1;
    fixture.left.exec(&format!(
        "insert into q select g, 0 from generate_series({next}, {last}) g"
    ));
    let waiting = "select count(*) from sync_queue where status = 'waiting'";
    while fixture.left.query_one::<i64>(waiting) < SIZE - 1 {
        deal(fixture, "5000");
    }
    fixture.right.exec("alter table elsewhere rename to q");
    let id = fixture
        .left
        .query_one::<i64>("select id from sync_err_rec where status = 'failed'");
    fixture
        .left
        .exec_superuser(&format!("select retry_sync_err_rec({id})"));
    while queued(fixture) > 0 {
        deal(fixture, "5000");
    }
}

#[test]
fn commits_and_waits_do_not_read_what_had_failed_under_an_old_snapshot() {
    let fixture = two_tables("drainedfailed");
    let held = old_snapshot(&fixture.left);
    for round in 0..2 {
        failed_backlog(&fixture, round * SIZE + 1);
        let read = |fixture: &Fixture| entries_read_of(fixture, "sync_queue_failed");
        let commits = read_by(&fixture, read, |client| {
            (0..20).for_each(|_| run(client, "update t set v = v + 1"));
        });
        // Without a floor it is 20 times the backlog; a floor may be a few records below what it could be.
        assert!(commits < 20 * 20, "20 commits have read {commits} entries");
        let all = |fixture: &Fixture| read(fixture) + entries_read(fixture);
        let waits = read_by(&fixture, all, |client| {
            run(
                client,
                "insert into q values (-1, 0) on conflict do nothing",
            );
            run(client, "delete from q where id = -1");
            run(client, "select deal_sync_err_rec(10)");
            run(client, "select wait_sync('dst', '1 minute')");
        });
        assert!(waits < 5_000, "a wait has read {waits} entries");
    }
    drop(held);
    both_have(&fixture, "t", &["1|40"]);
}

#[test]
fn a_record_that_fails_below_what_was_clear_is_not_passed() {
    let fixture = two_tables("drainedclear");
    fixture
        .right
        .exec("alter table q add constraint small check (v < 5)");
    fixture.left.exec(&format!(
        "insert into q select g, 0 from generate_series(1, {SIZE}) g"
    ));
    fixture.left.exec("insert into q values (-1, 9)");
    // Nothing of what was drawn has failed yet.
    deal(&fixture, "5000");
    assert!(!deal(&fixture, "10000"));
    let failed = "select count(*) from sync_err_rec where status = 'failed'";
    assert_eq!(fixture.left.query_one::<i64>(failed), 1);
    attach_directly(&fixture);
    fixture.left.exec("update q set v = 3 where id = -1");
    let found = "select status from sync_err_rec order by id";
    assert_eq!(
        crate::support::common::rows(&fixture.left, found),
        ["failed", "waiting"]
    );
    fixture.right.exec("alter table q drop constraint small");
    fixture
        .left
        .exec_superuser("select retry_sync_err_rec(id) from sync_err_rec where status = 'failed'");
    deal(&fixture, "10");
    assert_eq!(queued(&fixture), 0);
    let found = "select v from q where id = -1";
    assert_eq!(crate::support::common::rows(&fixture.right, found), ["3"]);
}

#[test]
fn a_record_drawn_early_and_committed_late_is_not_overlooked() {
    let fixture = two_tables("drainedlate");
    let _held = old_snapshot(&fixture.left);
    let mut late = fixture.left.client();
    // Prepared, it has drawn its id and keeps it.
    run(
        &mut late,
        "begin; insert into q values (-1, 0); prepare transaction 'late'",
    );
    for round in 0..3 {
        backlog(&fixture, round * SIZE + 1);
    }
    run(&mut late, "commit prepared 'late'");
    assert_eq!(queued(&fixture), 1);
    // What depends on it does not pass it.
    attach_directly(&fixture);
    fixture.left.exec("update q set v = 7 where id = -1");
    assert_eq!(queued(&fixture), 2);
    assert!(deal(&fixture, "10"));
    assert_eq!(queued(&fixture), 0);
    let found = "select v from q where id = -1";
    assert_eq!(crate::support::common::rows(&fixture.right, found), ["7"]);
}

/// From now on, changes of `q` are sent at commit.
fn attach_directly(fixture: &Fixture) {
    fixture.left.exec("select detach_sync('q', 'dst')");
    attach(fixture, "q", "{}");
}

#[test]
fn a_record_that_is_pending_again_under_its_old_id_is_not_passed() {
    let fixture = two_tables("drainedagain");
    let _held = old_snapshot(&fixture.left);
    // Marked failed: the row's value is not allowed there.
    fixture
        .right
        .exec("alter table q add constraint small check (v < 5)");
    fixture.left.exec("insert into q values (-1, 9)");
    assert!(!deal(&fixture, "10"));
    for round in 0..2 {
        backlog(&fixture, round * SIZE + 1);
    }
    let failed_records = "select id from sync_err_rec where status = 'failed'";
    let id = crate::support::common::rows(&fixture.left, failed_records).remove(0);
    fixture.right.exec("alter table q drop constraint small");
    // Pending again, and not delivered: the server is away.
    outage(&fixture.right);
    assert!(
        !fixture
            .left
            .query_one::<bool>(&format!("select retry_sync_err_rec({id})"))
    );
    let pending = format!("select status from sync_err_rec where id = {id}");
    assert_eq!(
        crate::support::common::rows(&fixture.left, &pending),
        ["pending"]
    );
    recover(&fixture.right);
    attach_directly(&fixture);
    fixture.left.exec("update q set v = 3 where id = -1");
    assert!(deal(&fixture, "10000"));
    let found = "select v from q where id = -1";
    assert_eq!(crate::support::common::rows(&fixture.right, found), ["3"]);
    assert_eq!(queued(&fixture), 0);
}
