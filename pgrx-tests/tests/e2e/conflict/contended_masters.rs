//! Two masters whose clients update the same rows at the same time: the remote lock timeout breaks
//! every deadlock between the servers, no client sees an error or hangs, and under `newest` both
//! sides end equal.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rowsync_harness::cluster::{Cluster, TEST_SETTINGS};
use rowsync_harness::flag::Flag;
use rowsync_harness::{Fixture, Side, await_until};

use crate::support::common::{rows, run, same};
use crate::support::preloaded::{EAGER, WORKING};
use rowsync_harness::rng::Rng;

const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// What would end a deadlock that the lock timeout does not break.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);
const CLIENTS: u64 = 4;
const ROWS: u64 = 5;
const LOAD: Duration = Duration::from_secs(6);

/// A table `t` that either side sends to the other; the row with the latest time wins.
fn masters(fixture: &Fixture) {
    let columns = "id int primary key, v text, version timestamptz not null";
    for (side, other) in [
        (&fixture.left, &fixture.right),
        (&fixture.right, &fixture.left),
    ] {
        fixture.link(side, other, "dst", &[]);
        side.exec(&format!(
            "create table t ({columns});
             create function stamp() returns trigger language plpgsql as $$
             begin
               new.version := clock_timestamp();
               return new;
             end $$;
             create trigger stamp before insert or update on t for each row
               when (current_setting('application_name') <> 'pg_rowsync') execute function stamp()"
        ));
        let db = &side.db;
        let target = &other.user;
        side.exec(&format!(
            r#"select attach_sync('t', 'dst', '{target}.t',
                 '{{"on_conflict": "newest", "version_column": "version"}}')"#
        ));
        side.exec_superuser(&format!(
            "alter database {db} set pg_rowsync.lock_timeout = '{}ms';
             alter database {db} set pg_rowsync.delivery_timeout = '{}s'",
            LOCK_TIMEOUT.as_millis(),
            DELIVERY_TIMEOUT.as_secs()
        ));
    }
    fixture.left.exec(&format!(
        "insert into t select i, 'first', now() from generate_series(1, {ROWS}) i"
    ));
    assert_eq!(same(fixture, "t").len(), ROWS as usize);
}

/// Updates random rows for a while; how often, and the longest time one took.
fn update(side: &Side, who: u64) -> (u32, Duration) {
    let mut client = side.client();
    let mut rng = Rng::of_seed(who);
    let end = Instant::now() + LOAD;
    let mut times = 0;
    let mut longest = Duration::ZERO;
    while Instant::now() < end {
        let id = 1 + rng.roll(ROWS);
        let start = Instant::now();
        run(
            &mut client,
            &format!("update t set v = '{who}: {times}' where id = {id}"),
        );
        longest = longest.max(start.elapsed());
        times += 1;
    }
    (times, longest)
}

/// Loads both sides; `drain` goes on meanwhile.
fn contend(fixture: &Fixture, drain: impl Fn(&Side) + Sync) {
    let done = Flag::default();
    let results: Vec<_> = thread::scope(|scope| {
        let _end = done.set_at_end();
        let clients: Vec<_> = (0..2 * CLIENTS)
            .map(|who| {
                let side = if who % 2 == 0 {
                    &fixture.left
                } else {
                    &fixture.right
                };
                scope.spawn(move || update(side, who + 1))
            })
            .collect();
        for side in [&fixture.left, &fixture.right] {
            let done = &done;
            let drain = &drain;
            scope.spawn(move || {
                while !done.is_set() {
                    drain(side);
                    thread::sleep(Duration::from_millis(100));
                }
            });
        }
        let results = clients.into_iter().map(|client| client.join()).collect();
        done.set();
        results
    });
    let results: Vec<_> = results
        .into_iter()
        .map(|result| result.expect("a client saw an error"))
        .collect();
    let updates: u32 = results.iter().map(|(times, _)| times).sum();
    let longest = results
        .iter()
        .map(|(_, longest)| *longest)
        .max()
        .unwrap_or_default();
    println!(
        "{updates} updates by {} clients, the longest took {longest:?}",
        results.len()
    );
    assert!(updates > 100, "{results:?}");
    // A client waits for its own delivery, the clients of its side that hold the row before it, and
    // the other side's drain: several lock timeouts in a row, and a slow machine, but no deadlock.
    assert!(longest < DELIVERY_TIMEOUT / 2, "{longest:?}: {results:?}");
}

fn settle(fixture: &Fixture) {
    for side in [&fixture.left, &fixture.right] {
        assert_eq!(
            rows(side, "select * from sync_err_rec where status <> 'pending'"),
            [""; 0]
        );
    }
    assert_eq!(same(fixture, "t").len(), ROWS as usize);
}

fn both_empty(fixture: &Fixture) -> bool {
    [&fixture.left, &fixture.right]
        .iter()
        .all(|side| side.queued().expect("a queue") == 0)
}

#[test]
fn eight_clients_on_five_rows_of_two_masters_end_with_equal_tables() {
    let fixture = Fixture::new("contend");
    masters(&fixture);
    contend(&fixture, |side| {
        side.query_one::<bool>("select deal_sync_err_rec(1000)");
    });
    await_until(WORKING, "both queues to drain", || {
        for side in [&fixture.left, &fixture.right] {
            side.query_one::<bool>("select deal_sync_err_rec(100000)");
        }
        both_empty(&fixture)
    });
    settle(&fixture);
}

#[test]
fn the_workers_of_two_contended_masters_end_with_equal_tables() {
    let settings = [
        TEST_SETTINGS,
        EAGER,
        &[("shared_preload_libraries", "pg_rowsync")],
    ]
    .concat();
    let start = |name: &str| {
        let own = Arc::new(Cluster::start_with(name, &settings).expect("a cluster"));
        Side::create(&own, name).expect("a database")
    };
    let fixture = Fixture {
        left: start("contend_one"),
        right: start("contend_two"),
    };
    masters(&fixture);
    contend(&fixture, |_| {});
    await_until(WORKING, "both queues to drain", || both_empty(&fixture));
    settle(&fixture);
}
