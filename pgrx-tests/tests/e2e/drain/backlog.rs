//! A long backlog: drained in bounded memory, and resumed where it was after whoever drained it has
//! been killed.
//!
//! 100,000 records; `ROWSYNC_BACKLOG=1000000 cargo test-all backlog` takes as many others.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rowsync_harness::{Fixture, await_until};

use crate::support::common::{deal, one_way, query, queued, rows, run};
use crate::support::preloaded::{EAGER, preloaded_one_way, worker};

const QUEUE: &str = r#"{"mode": "queue"}"#;
const COLUMNS: &str = "id int primary key, v int";
/// What a drain may need beyond what its process had before, in kB. A million records as text would
/// be several times as much.
const GROWTH: u64 = 150_000;

fn size() -> i64 {
    std::env::var("ROWSYNC_BACKLOG")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(100_000)
}

/// However long it is, at 500 records a second.
fn patience() -> Duration {
    Duration::from_secs(60 + size() as u64 / 500)
}

/// Queues the backlog: nine tenths new rows, one tenth changes of these, so that order matters.
fn queue_up(fixture: &Fixture) {
    let size = size();
    let start = Instant::now();
    let rows = size - size / 10;
    let mut client = fixture.left.client();
    run(
        &mut client,
        &format!("insert into t select i, 0 from generate_series(1, {rows}) i"),
    );
    run(
        &mut client,
        &format!("update t set v = id where id > {rows} - {size} / 10"),
    );
    println!("queued {size} records in {:?}", start.elapsed());
}

/// A figure of `/proc/PID/status` in kB; 0 once the process has gone.
fn memory(pid: i32, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find(|line| line.starts_with(what))
        .unwrap_or_default();
    line.split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

/// Rows on the right; what has been delivered is the oldest part of what was queued.
fn delivered(fixture: &Fixture) -> i64 {
    let schema = &fixture.right.user;
    fixture
        .right
        .query_one(&format!("select count(*) from {schema}.t"))
}

/// Nothing lost, nothing twice, nothing out of order, at a moment when nobody drains: what is on the
/// right is exactly what is not in the queue any more.
fn is_consistent(fixture: &Fixture) {
    let schema = &fixture.right.user;
    let queued = queued(fixture);
    let size = size();
    let sum = format!(
        "select count(*), coalesce(max(id), 0)::bigint, count(*) filter (where v <> 0) from {schema}.t"
    );
    let row = fixture
        .right
        .superuser()
        .query_one(&sum, &[])
        .expect("the rows");
    let (rows, last, changed): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!(rows, last, "a later row came before an earlier one");
    assert!(
        changed == 0 || rows == size - size / 10,
        "a change came before the row"
    );
    assert_eq!(
        rows + changed + queued,
        size,
        "{rows} rows, {changed} changed, {queued} queued"
    );
}

fn is_complete(fixture: &Fixture) {
    let sum = "select count(*), sum(id::bigint), sum(v::bigint) from t";
    assert_eq!(rows(&fixture.left, sum), rows(&fixture.right, sum));
    assert_eq!(queued(fixture), 0);
}

#[test]
fn a_long_backlog_is_drained_in_bounded_memory() {
    let fixture = one_way("backlog", COLUMNS, QUEUE);
    queue_up(&fixture);
    assert_eq!(queued(&fixture), size());
    let mut admin = fixture.left.superuser();
    let pid = crate::support::one_way::pid(&mut admin);
    run(&mut admin, "select * from sync_status");
    let before = (
        memory(pid, "VmRSS"),
        memory(pid, "RssAnon"),
        memory(pid, "VmHWM"),
    );
    let start = Instant::now();
    let mut calls = 0;
    let mut anon = 0;
    while query(&mut admin, "select exists (select from sync_err_rec)") == ["t"] {
        assert_eq!(query(&mut admin, "select deal_sync_err_rec(100000)"), ["t"]);
        calls += 1;
        anon = anon.max(memory(pid, "RssAnon"));
        assert!(
            calls <= 2 + size() / 50_000,
            "{} records left",
            queued(&fixture)
        );
    }
    let elapsed = start.elapsed();
    let peak = memory(pid, "VmHWM");
    println!(
        "{} records in {calls} calls and {elapsed:?}, {:.0} a second; before: resident {} kB, \
         anonymous {} kB; peak {peak} kB, anonymous after a call {anon} kB",
        size(),
        size() as f64 / elapsed.as_secs_f64(),
        before.0,
        before.1,
    );
    is_complete(&fixture);
    assert!(
        peak - before.2 < GROWTH,
        "{peak} kB at most, {} kB before",
        before.2
    );
}

#[test]
fn a_drain_that_is_ended_leaves_off_between_two_calls() {
    let fixture = one_way("ended", COLUMNS, QUEUE);
    queue_up(&fixture);
    let mut last = queued(&fixture);
    let step = size() / 10;
    for round in 1..=5 {
        let mut admin = fixture.left.superuser();
        let pid = crate::support::one_way::pid(&mut admin);
        let limit = step / 2;
        let drain = thread::spawn(move || {
            let sql = format!("select deal_sync_err_rec({limit})");
            // Until someone ends it.
            while let Ok(done) = admin.query_one(&sql, &[]) {
                assert!(done.get::<_, bool>(0), "a drain failed");
            }
        });
        let target = round * step;
        await_until(patience(), "a part to be drained", || {
            delivered(&fixture) >= target
        });
        // Wherever that hits it: reading, sending, waiting, committing.
        let sql = format!("select pg_terminate_backend({pid}, 30000)");
        assert!(fixture.left.query_one::<bool>(&sql));
        drain.join().expect("a drain that was ended");
        let gone = "select count(*) from pg_stat_activity where application_name = 'pg_rowsync'
                      and datname = current_database()";
        await_until(Duration::from_secs(20), "the remote side to notice", || {
            fixture.right.query_one::<i64>(gone) == 0
        });
        is_consistent(&fixture);
        let left = queued(&fixture);
        assert!(
            left < last,
            "round {round}: {last} records before, {left} now"
        );
        last = left;
    }
    while queued(&fixture) > 0 {
        assert!(deal(&fixture, "100000"));
    }
    is_complete(&fixture);
}

#[test]
fn the_worker_drains_a_long_backlog_in_bounded_memory() {
    let fixture = preloaded_one_way("workbacklog", EAGER, COLUMNS, QUEUE);
    assert!(fixture.left.query_one::<bool>("select start_sync_worker()"));
    let pid = worker(&fixture);
    let before = memory(pid, "VmHWM");
    let start = Instant::now();
    queue_up(&fixture);
    let mut last = i64::MAX;
    let mut anon = 0;
    let mut counted = Instant::now();
    let mut admin = fixture.left.superuser();
    await_until(patience(), "the worker to drain the backlog", || {
        anon = anon.max(memory(pid, "RssAnon"));
        // Counting a long queue holds back vacuum and takes a processor.
        if counted.elapsed() > Duration::from_secs(2) {
            counted = Instant::now();
            let left = queued(&fixture);
            assert!(left <= last, "{last} records before, {left} now");
            last = left;
        }
        query(&mut admin, "select exists (select from sync_queue)") == ["f"]
    });
    let elapsed = start.elapsed();
    let peak = memory(pid, "VmHWM");
    println!(
        "worker: {} records queued and delivered in {elapsed:?}, {:.0} a second; before: {before} kB, \
         peak {peak} kB, anonymous {anon} kB at most",
        size(),
        size() as f64 / elapsed.as_secs_f64(),
    );
    assert_eq!(worker(&fixture), pid, "it is still the same process");
    is_complete(&fixture);
    assert!(
        peak - before < GROWTH,
        "{peak} kB at most, {before} kB before"
    );
}

#[test]
fn a_worker_that_is_killed_or_ended_goes_on_where_it_was() {
    let fixture = preloaded_one_way("workkill", EAGER, COLUMNS, QUEUE);
    // Slows the worker down so that it is hit in the midst.
    fixture.right.exec(
        "create function slow() returns trigger language plpgsql as $$
         begin
           perform pg_sleep(0.0002);
           return new;
         end $$;
         create trigger slow before insert on t for each row execute function slow()",
    );
    queue_up(&fixture);
    let cluster = fixture.left.cluster.clone();
    let mut last = size();
    for (round, signal) in (1..).zip([
        Signal::SIGTERM,
        Signal::SIGKILL,
        Signal::SIGTERM,
        Signal::SIGKILL,
    ]) {
        let target = round * size() / 6;
        await_until(patience(), "a part to be delivered", || {
            delivered(&fixture) >= target
        });
        let pid = worker(&fixture);
        cluster.signal_backend(pid, signal).expect("a signal");
        await_until(Duration::from_secs(60), "another worker", || {
            // A killed process takes the cluster through recovery.
            let Ok(mut admin) = fixture.left.connect_superuser() else {
                return false;
            };
            let sql = "select pid from pg_stat_activity where backend_type = 'pg_rowsync worker'
                        and datname = current_database()";
            admin
                .query_opt(sql, &[])
                .is_ok_and(|row| row.is_some_and(|row| row.get::<_, i32>(0) != pid))
        });
        let left = queued(&fixture);
        assert!(
            left <= last,
            "round {round}: {last} records before, {left} now"
        );
        last = left;
    }
    fixture.right.exec("drop trigger slow on t");
    await_until(patience(), "the worker to drain the backlog", || {
        let left = queued(&fixture);
        assert!(left <= last, "{last} records before, {left} now");
        last = left;
        left == 0
    });
    is_complete(&fixture);
}
