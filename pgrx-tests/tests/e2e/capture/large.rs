//! Change sets larger than `pg_rowsync.buffer_size`: memory stays bounded, nothing else changes.

use postgres::Client;
use rowsync_harness::cluster::TEST_SETTINGS;
use rowsync_harness::fixture::{await_until, clusters};
use rowsync_harness::{Cluster, Fixture, Side};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, thread};

use crate::support::common::{
    both_have, deal, mirror, one_way, outage, query, queued, records, recover, refused, rows, run,
    same,
};

const COLUMNS: &str = "id int primary key, v text";
const BUFFER_KB: u64 = 16 * 1024;
const MAX_WAIT: Duration = Duration::from_secs(30);

fn sums(side: &Side) -> Vec<String> {
    rows(side, "select count(*), sum(id), sum(hashtext(v)) from t")
}

fn equal(fixture: &Fixture, count: &str) {
    let left = sums(&fixture.left);
    assert_eq!(left, sums(&fixture.right));
    assert_eq!(left[0].split('|').next(), Some(count));
}

/// The server leaves this in its log when a commit finds a file that nobody closed.
fn no_leak(side: &Side) {
    let log = side.cluster.log();
    let leaks = log
        .lines()
        .filter(|line| line.contains("temporary file leak"));
    let own: Vec<_> = leaks.filter(|line| line.contains(&side.db)).collect();
    assert!(own.is_empty(), "{own:?}");
}

/// A figure in kB of the session's process; `None` where processes of others cannot be read.
fn memory(client: &mut Client, figure: &str) -> Option<u64> {
    let pid = query(client, "select pg_backend_pid()").remove(0);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(figure))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn a_million_rows_in_one_transaction_take_no_more_memory_than_the_buffer() {
    let fixture = one_way("million", COLUMNS, "{}");
    let mut client = fixture.left.client();
    run(
        &mut client,
        &format!("set pg_rowsync.buffer_size = '{BUFFER_KB}kB'"),
    );
    // What a session holds anyhow: the library, the connection, its share of the shared buffers.
    run(
        &mut client,
        "insert into t values (0, 'first'); create table other (id int, v text)",
    );
    run(
        &mut client,
        "insert into other select i, repeat('x', 300) from generate_series(1, 120000) i",
    );
    let before = memory(&mut client, "VmHWM");
    run(
        &mut client,
        "begin;
         insert into t select i, 'v' || i from generate_series(1, 450000) i;
         savepoint a;
           insert into t select i, 'lost' || i from generate_series(450001, 650000) i;
           update t set v = 'lost' where id % 10 = 0;
         rollback to a;
         insert into t select i, 'kept' || i from generate_series(450001, 900000) i;
         savepoint b;
           update t set v = v || '!' where id <= 90000;
         release b;
         delete from t where id between 500001 and 510000;
         commit",
    );
    equal(&fixture, "890001");
    assert_eq!(queued(&fixture), 0);
    no_leak(&fixture.left);
    if let (Some(before), Some(after)) = (before, memory(&mut client, "VmHWM")) {
        let grown = after - before;
        let limit = BUFFER_KB + 64 * 1024;
        assert!(
            grown <= limit,
            "memory grew by {grown} kB, from {before} kB; allowed: {limit}"
        );
    }
}

#[test]
fn a_spilled_change_set_is_queued_and_drained() {
    let fixture = one_way("spillqueue", COLUMNS, "{}");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "set pg_rowsync.buffer_size = '64kB'; insert into t values (0, 'first')",
    );
    outage(&fixture.right);
    run(
        &mut client,
        "begin;
         insert into t select i, 'v' || i from generate_series(1, 150000) i;
         savepoint a;
           insert into t select i, 'lost' || i from generate_series(150001, 160000) i;
         rollback to a;
         insert into t select i, 'kept' || i from generate_series(150001, 180000) i;
         update t set v = v || '!' where id <= 20000;
         commit",
    );
    assert_eq!(queued(&fixture), 200_001);
    no_leak(&fixture.left);
    recover(&fixture.right);
    assert!(deal(&fixture, "1000000"));
    assert_eq!(queued(&fixture), 0);
    equal(&fixture, "180001");
}

#[test]
fn temp_file_limit_is_respected() {
    for mode in ["sync", "async", "queue"] {
        let fixture = one_way("templimit", COLUMNS, &format!(r#"{{"mode": "{mode}"}}"#));
        let user = &fixture.left.user;
        fixture
            .left
            .exec_superuser(&format!("alter role {user} set temp_file_limit = '1MB'"));
        let mut client = fixture.left.client();
        run(&mut client, "set pg_rowsync.buffer_size = '64kB'");
        let many = "insert into t select i, repeat('x', 100) from generate_series(10, 50000) i";
        refused(&mut client, many, "53400");
        both_have(&fixture, "t", &[]);
        assert_eq!(queued(&fixture), 0);
        // In a savepoint the transaction survives it, and what fits is sent.
        run(
            &mut client,
            "begin; insert into t values (1, 'before'); savepoint a",
        );
        refused(&mut client, many, "53400");
        run(
            &mut client,
            "rollback to a; insert into t values (2, 'after'); commit",
        );
        assert!(deal(&fixture, "10"));
        both_have(&fixture, "t", &["1|before", "2|after"]);
        assert_eq!(records(&fixture), [""; 0]);
        no_leak(&fixture.left);
    }
}

/// The buffer of the file that could not be written must not be tried again at commit.
#[test]
fn a_savepoint_that_met_temp_file_limit_leaves_no_error_for_the_commit() {
    for mode in ["sync", "async", "queue"] {
        let fixture = one_way("tempcommit", COLUMNS, &format!(r#"{{"mode": "{mode}"}}"#));
        let user = &fixture.left.user;
        fixture
            .left
            .exec_superuser(&format!("alter role {user} set temp_file_limit = '1MB'"));
        let mut client = fixture.left.client();
        run(
            &mut client,
            "set pg_rowsync.buffer_size = '64kB'; begin; savepoint a",
        );
        let many = "insert into t select i, repeat('x', 100) from generate_series(10, 50000) i";
        refused(&mut client, many, "53400");
        let end = client.batch_execute("rollback to a; insert into t values (2, 'after'); commit");
        assert!(deal(&fixture, "10"));
        let left = same(&fixture, "t");
        assert!(end.is_ok(), "{mode}: {end:?}");
        assert_eq!(left, ["2|after"]);
    }
}

#[test]
fn a_spilled_change_set_that_is_rolled_back_leaves_no_file() {
    let fixture = one_way("spillback", COLUMNS, r#"{"mode": "sync"}"#);
    fixture
        .right
        .exec("alter table t add constraint few check (id < 30000)");
    let mut client = fixture.left.client();
    run(&mut client, "set pg_rowsync.buffer_size = '64kB'");
    let many = "insert into t select i, 'x' from generate_series(1, 30000) i";
    run(&mut client, &format!("begin; {many}; rollback"));
    refused(&mut client, many, "23514");
    run(
        &mut client,
        &format!("begin; savepoint a; {many}; rollback to a; commit"),
    );
    both_have(&fixture, "t", &[]);
    fixture.right.exec("alter table t drop constraint few");
    // Prepared transactions take their changes from the file into the queue.
    let queue = r#"select detach_sync('t', 'dst');"#;
    run(&mut client, queue);
    crate::support::common::attach(&fixture, "t", "{}");
    run(
        &mut client,
        &format!("begin; {many}; prepare transaction '{}'", fixture.left.db),
    );
    run(
        &mut client,
        &format!("commit prepared '{}'", fixture.left.db),
    );
    assert_eq!(queued(&fixture), 30_000);
    assert!(deal(&fixture, "30000"));
    equal(&fixture, "30000");
    let pid = query(&mut client, "select pg_backend_pid()").remove(0);
    let files = format!("select name from pg_ls_tmpdir() where name like 'pgsql\\_tmp{pid}.%'");
    assert_eq!(rows(&fixture.left, &files), [""; 0]);
    no_leak(&fixture.left);
}

/// Remote and local row are equal; the value has at least this many bytes.
fn value_crosses(fixture: &Fixture, bytes: u64) {
    let sum = format!("select id, octet_length(v) >= {bytes}, md5(v) from t");
    let left = rows(&fixture.left, &sum);
    assert_eq!(left, rows(&fixture.right, &sum));
    assert!(left[0].contains("|t|"), "{left:?}");
    assert_eq!(queued(fixture), 0);
}

#[test]
fn a_value_of_100_megabytes_crosses() {
    let fixture = one_way("huge", COLUMNS, r#"{"mode": "sync"}"#);
    fixture
        .left
        .exec(r#"insert into t select 1, repeat(E'0123456789 a"\\{,}é\n$q$', 4400000)"#);
    value_crosses(&fixture, 100_000_000);
}

#[test]
fn a_value_of_20_megabytes_crosses_through_the_queue() {
    let fixture = one_way("hugequeue", COLUMNS, r#"{"mode": "queue"}"#);
    fixture
        .left
        .exec(r#"insert into t select 1, repeat(E'0123456789 a"\\{,}é\n$q$', 880000)"#);
    fixture
        .left
        .exec("update t set id = 2; update t set v = v || '!'");
    assert!(
        deal(&fixture, "10"),
        "{:?}",
        rows(&fixture.left, "select message from sync_err_rec")
    );
    value_crosses(&fixture, 20_000_000);
}

#[test]
fn what_is_logged_is_flushed_while_the_server_works_if_the_commit_is_to_wait_for_it() {
    // Nobody else flushes.
    let settings = [
        ("wal_writer_delay", "10s"),
        ("bgwriter_lru_maxpages", "0"),
        ("autovacuum", "off"),
        ("checkpoint_timeout", "1h"),
    ];
    let cluster = Cluster::start_with("wal", &[TEST_SETTINGS, &settings].concat());
    let cluster = Arc::new(cluster.expect("a cluster"));
    let create = |cluster, name: &str| Side::create(cluster, name).expect("a database");
    for setting in ["on", "off"] {
        let fixture = Fixture {
            left: create(&cluster, &format!("local_{setting}")),
            right: create(clusters().1, &format!("remote_wal_{setting}")),
        };
        fixture.link(&fixture.left, &fixture.right, "dst", &[]);
        mirror(
            &fixture,
            "t",
            "id int primary key, pad text",
            r#"{"exclude": ["pad"]}"#,
        );
        let mut writer = fixture.left.client_named("writer");
        run(
            &mut writer,
            &format!(
                "set pg_rowsync.lock_timeout = '1min'; set pg_rowsync.delivery_timeout = '1min';
                 set synchronous_commit = {setting}; insert into t values (0, 'first')"
            ),
        );
        let mut blocker = fixture.right.client();
        run(&mut blocker, "begin; lock table t in share mode");
        let write = "insert into t select i, repeat('x', 500) from generate_series(1, 3000) i";
        let behind = thread::scope(|scope| {
            let writing = scope.spawn(|| run(&mut writer, write));
            let waiting = "select count(*) from pg_stat_activity
                 where application_name = 'writer' and wait_event_type = 'Extension'";
            await_until(MAX_WAIT, "the writer waits", || {
                rows(&fixture.left, waiting) == ["1"]
            });
            let behind = rows(
                &fixture.left,
                "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn())",
            );
            run(&mut blocker, "rollback");
            writing.join().expect("a commit");
            behind[0].parse::<u64>().expect("a number")
        });
        assert_eq!(
            behind < 100_000,
            setting == "on",
            "{setting}: {behind} bytes"
        );
        assert!(
            behind > 1_000_000 || setting == "on",
            "{setting}: {behind} bytes"
        );
        assert_eq!(rows(&fixture.right, "select count(*) from t"), ["3001"]);
    }
}
