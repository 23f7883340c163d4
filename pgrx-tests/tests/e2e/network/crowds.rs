//! More sessions than the other side grants connections, who all stay and write. `cargo faults crowd` measures
//! larger crowds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::Client;
use rowsync_harness::Fixture;
use rowsync_harness::fixture::await_until;

use super::idle_connections::limit;
use crate::support::common::{attach, linked, query, queued, rows, run, set_host_apart};
use crate::support::one_way::{SOON, assert_equal};
use crate::support::preloaded::WORKER;

/// Between two transactions of a session.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest time that a commit waits for an empty queue, see `doc/commit.md`.
const QUEUE_OPENING_TIMEOUT: Duration = Duration::from_millis(100);

/// A table `t` for which the right side notes which of its processes has written which row, and a worker that has
/// a connection. Two more are granted.
fn crowded(label: &str) -> Fixture {
    let fixture = linked(label);
    set_host_apart(&fixture);
    fixture
        .left
        .exec("create table t (id bigint primary key, v int)");
    fixture.right.exec(&format!(
        "create table t (id bigint primary key, v int);
         create table written (id bigint, v int, process int, at bigserial);
         create function note() returns trigger language plpgsql as $$ begin
             insert into {}.written values (new.id, new.v, pg_backend_pid());
             return null;
         end $$;
         create trigger note after insert or update on t for each row execute function note()",
        fixture.right.user
    ));
    attach(&fixture, "t", "{}");
    fixture.left.exec_superuser("select start_sync_worker()");
    // Who is refused one asks for others': so the worker has one first.
    limit(&fixture, 0);
    fixture.left.exec("insert into t values (0, 0)");
    limit(&fixture, 3);
    await_until(SOON, "the queue to be empty", || queued(&fixture) == 0);
    fixture
}

/// Process there of the session's connection.
fn process_there(client: &mut Client) -> Option<String> {
    query(client, "select backend_pid from sync_connections()").pop()
}

/// Sessions that go on writing until told to end.
struct Crowd {
    ends: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Duration>>,
}

impl Crowd {
    /// Each writes rows of its own; gives the longest time that one of its commits took.
    fn start(fixture: &Fixture, number: i64) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let writers = (1..=number).map(|who| {
            let left = fixture.left.clone();
            let ends = ends.clone();
            thread::spawn(move || {
                let mut client = left.client();
                let mut longest = Duration::ZERO;
                let mut id = who * 1_000_000;
                while !ends.load(Ordering::Relaxed) {
                    id += 1;
                    let start = Instant::now();
                    run(&mut client, &format!("insert into t values ({id}, 0)"));
                    longest = longest.max(start.elapsed());
                    sleep(PAUSE);
                }
                longest
            })
        });
        Self {
            writers: writers.collect(),
            ends,
        }
    }

    fn end(self) -> Duration {
        self.ends.store(true, Ordering::Relaxed);
        let longest = self
            .writers
            .into_iter()
            .map(|one| one.join().expect("a writer"));
        longest.max().unwrap_or_default()
    }
}

/// Writes so many rows of its own; how many of them its own connection has brought.
fn direct(fixture: &Fixture, client: &mut Client, first: i64, number: i64) -> usize {
    let process = process_there(client).expect("a connection");
    for id in first..first + number {
        run(client, &format!("insert into t values ({id}, 0)"));
        sleep(PAUSE);
    }
    await_until(SOON, "the rows to arrive", || {
        let there = format!(
            "select count(*) from t where id >= {first} and id < {}",
            first + number
        );
        rows(&fixture.right, &there) == [number.to_string()]
    });
    let own = format!(
        "select from written where process = {process} and id >= {first} and id < {}",
        first + number
    );
    rows(&fixture.right, &own).len()
}

#[test]
fn who_has_a_connection_delivers_directly_beside_those_who_have_none() {
    let fixture = crowded("crowd");
    let mut holders = [fixture.left.client(), fixture.left.client()];
    for (at, client) in holders.iter_mut().enumerate() {
        run(client, &format!("insert into t values ({}, 0)", at + 1));
    }
    let crowd = Crowd::start(&fixture, 12);
    await_until(SOON, "the others to queue", || {
        rows(&fixture.right, "select from t where id > 1000000").len() > 100
    });
    let delivered = direct(&fixture, &mut holders[0], 1_000, 100);
    let longest = crowd.end();
    await_until(SOON, "the queue to be empty", || queued(&fixture) == 0);
    assert_equal(&fixture);
    assert!(delivered > 35, "{delivered} of 100");
    assert!(longest < SOON, "{longest:?}");
    fixture.left.exec_superuser("select stop_sync_worker()");
}

/// Sessions with and without a connection write the same rows at the same time.
#[test]
fn order_is_kept_between_those_who_have_a_connection_and_those_who_queue() {
    let fixture = crowded("crowd_order");
    let mut holder = fixture.left.client();
    run(
        &mut holder,
        "insert into t select id, 0 from generate_series(1, 4) id",
    );
    let process = process_there(&mut holder).expect("a connection");
    let crowd = Crowd::start(&fixture, 8);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let left = fixture.left.clone();
            thread::spawn(move || update(&mut left.client()))
        })
        .collect();
    update(&mut holder);
    for thread in threads {
        thread.join().expect("a writer");
    }
    crowd.end();
    await_until(SOON, "the queue to be empty", || queued(&fixture) == 0);
    assert_equal(&fixture);
    let same = rows(
        &fixture.right,
        "select distinct v from t where id between 1 and 4",
    );
    assert_eq!(same, [(5 * UPDATES).to_string()]);
    let passed = "select count(*) from (
                      select v - lag(v) over (partition by id order by at) as step
                      from written where id between 1 and 4) steps
                  where step <= 0";
    assert_eq!(rows(&fixture.right, passed), ["0"]);
    let own = format!("select count(*) > 1 from written where process = {process} and v > 0");
    assert_eq!(rows(&fixture.right, &own), ["t"], "nothing went directly");
    fixture.left.exec_superuser("select stop_sync_worker()");
}

/// Of each of rows 1 to 4.
const UPDATES: usize = 100;

fn update(client: &mut Client) {
    for _ in 0..UPDATES {
        for id in 1..=4 {
            run(client, &format!("update t set v = v + 1 where id = {id}"));
        }
    }
}

/// Whether anybody on the left side holds the lock of a server that has that number, and excludes others by it.
fn is_held(fixture: &Fixture, number: i32) -> bool {
    fixture.left.query_one(&format!(
        "select exists (
             select from pg_locks join pg_database on database = pg_database.oid
             where datname = current_database() and locktype = 'object' and granted
               and classid = 'pg_foreign_server'::regclass and objsubid = {number}
               and mode = 'ExclusiveLock')"
    ))
}

/// Number of the lock that keeps others out of the queue.
const CLOSED: i32 = 1;
/// Number of the lock that says that what is queued is drained at once.
const PROMISED: i32 = 3;

#[test]
fn nobody_waits_for_a_worker_that_does_not_come() {
    let fixture = crowded("crowd_stopped");
    let mut holders = [fixture.left.client(), fixture.left.client()];
    for (at, client) in holders.iter_mut().enumerate() {
        run(client, &format!("insert into t values ({}, 0)", at + 1));
    }
    let worker = worker(&fixture);
    let crowd = Crowd::start(&fixture, 8);
    // Stopped between two visits, the worker can neither come nor take its word back.
    stop(worker, || {
        is_held(&fixture, PROMISED) && !is_held(&fixture, CLOSED)
    });
    await_until(SOON, "others to queue", || queued(&fixture) > 0);
    let took = insert(&mut holders[0], 1_000);
    assert!(is_held(&fixture, PROMISED));
    kill(worker, Signal::SIGCONT).expect("a worker");
    assert!(took < COMMITS * QUEUE_OPENING_TIMEOUT / 2, "{took:?}");

    await_until(SOON, "the worker to go on", || {
        queued(&fixture) == 0 && is_held(&fixture, PROMISED)
    });
    fixture.left.exec_superuser("select stop_sync_worker()");
    let took = insert(&mut holders[1], 2_000);
    assert!(!is_held(&fixture, PROMISED));
    crowd.end();
    assert!(took < COMMITS * QUEUE_OPENING_TIMEOUT / 2, "{took:?}");
    assert!(queued(&fixture) > 0);
    fixture.left.exec_superuser("select start_sync_worker()");
    await_until(SOON, "the queue to be empty", || queued(&fixture) == 0);
    assert_equal(&fixture);
    fixture.left.exec_superuser("select stop_sync_worker()");
}

/// The worker of the left side.
fn worker(fixture: &Fixture) -> Pid {
    Pid::from_raw(fixture.left.query_one(WORKER))
}

/// Stops a process at a moment at which something holds. Only while it waits for events: it might have a lock
/// inside the server which others wait for, and could not be asked about.
fn stop(process: Pid, holds: impl Fn() -> bool) {
    let waits_for_events = || {
        let call = std::fs::read_to_string(format!("/proc/{process}/syscall")).expect("a process");
        let number = call.split_whitespace().next();
        number.is_some_and(|number| EVENT_WAITS.contains(&number))
    };
    let is_stopped = || {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("a process");
        status.contains("State:\tT")
    };
    await_until(SOON, "the process to be stopped", || {
        kill(process, Signal::SIGSTOP).expect("a process");
        await_until(SOON, "the process to stop", is_stopped);
        let is_right = waits_for_events() && holds();
        if !is_right {
            kill(process, Signal::SIGCONT).expect("a process");
        }
        is_right
    });
}

/// Numbers of epoll_wait and epoll_pwait.
const EVENT_WAITS: [&str; 2] = if cfg!(target_arch = "x86_64") {
    ["232", "281"]
} else {
    ["22", "441"]
};

/// The shortest of a few commits that find the queue closed, while sessions of these names wait in a line for the
/// row.
fn commit_before(fixture: &Fixture, waiting: &[&str]) -> Duration {
    let mut client = fixture.left.client();
    let tries = (0..5).map(|_| {
        run(&mut client, "begin; update t set v = v + 1 where id = 1");
        let others: Vec<_> = (waiting.iter())
            .map(|name| {
                let mut other = fixture.left.client();
                run(&mut other, &format!("set application_name = '{name}'"));
                let process = query(&mut other, "select pg_backend_pid()").remove(0);
                let other = thread::spawn(move || {
                    run(&mut other, "update t set v = v + 1 where id = 1");
                });
                await_until(SOON, "another to wait for the row", || {
                    fixture.left.query_one(&format!(
                        "select wait_event_type is not distinct from 'Lock' from pg_stat_activity
                         where pid = {process}"
                    ))
                });
                other
            })
            .collect();
        let start = Instant::now();
        run(&mut client, "commit");
        let took = start.elapsed();
        others
            .into_iter()
            .for_each(|other| other.join().expect("another"));
        took
    });
    tries.min().expect("tries")
}

/// Among masters the other side's worker may wait for a row here while it keeps commits there out of its queue.
#[test]
fn who_holds_up_a_delivery_from_elsewhere_does_not_wait_for_a_closed_queue() {
    let fixture = crowded("crowd_masters");
    fixture.left.exec("insert into t values (1, 0)");
    let crowd = Crowd::start(&fixture, 8);
    let worker = worker(&fixture);
    stop(worker, || is_held(&fixture, CLOSED));
    crowd.end();
    for (waiting, waits) in [
        (&["pg_rowsync"][..], false),
        // Behind another one that waits.
        (&["writer", "pg_rowsync"], false),
        (&["writer"], true),
        (&[], true),
    ] {
        let took = commit_before(&fixture, waiting);
        assert_eq!(
            took >= QUEUE_OPENING_TIMEOUT,
            waits,
            "{waiting:?}: {took:?}"
        );
    }
    kill(worker, Signal::SIGCONT).expect("a worker");
    await_until(SOON, "the queue to be empty", || queued(&fixture) == 0);
    fixture.left.exec_superuser("select stop_sync_worker()");
}

const COMMITS: u32 = 20;

/// How long so many commits of one row take.
fn insert(client: &mut Client, first: i64) -> Duration {
    let start = Instant::now();
    for id in first..first + i64::from(COMMITS) {
        run(client, &format!("insert into t values ({id}, 0)"));
    }
    start.elapsed()
}
