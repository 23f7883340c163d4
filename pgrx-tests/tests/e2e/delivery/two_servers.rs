//! One of two servers is down: the other one is served as if nothing were the matter. Measured, with
//! bounds that leave room for a busy machine, and the figures printed.

use std::time::{Duration, Instant};

use postgres::Client;
use rowsync_harness::{Fixture, Proxy, await_until};

use crate::support::common::{deal, linked, mirror, query, queued, rows, run, same, table};
use crate::support::failed::ever_queued;
use crate::support::preloaded::{EAGER, WORKING, preloaded};

const COLUMNS: &str = "id int primary key, v text";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    Refusing,
    Silent,
}

/// A table `t` that goes to `t` over `dst`, and through a proxy to `copy` over `other`. Without
/// triggers on it yet.
fn arrange(fixture: &Fixture, mode: &str) -> Proxy {
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "other", &[]);
    fixture
        .right
        .exec(&format!("create table copy ({COLUMNS})"));
    let options = format!(r#"{{"mode": "{mode}"}}"#);
    mirror(fixture, "t", COLUMNS, &options);
    let schema = &fixture.right.user;
    fixture.left.exec(&format!(
        "select attach_sync('t', 'other', '{schema}.copy', '{options}')"
    ));
    proxy
}

fn enter(proxy: &Proxy, state: State) {
    match state {
        State::Up => {}
        State::Refusing => {
            proxy.refuse();
            proxy.cut();
        }
        State::Silent => proxy.freeze(),
    }
}

fn leave(proxy: &Proxy, state: State) {
    match state {
        State::Up => {}
        State::Refusing => proxy.accept().expect("listening again"),
        State::Silent => {
            proxy.cut();
            proxy.thaw();
        }
    }
}

/// Median and longest of some durations.
fn summary(mut taken: Vec<Duration>) -> (Duration, Duration) {
    taken.sort();
    (taken[taken.len() / 2], taken[taken.len() - 1])
}

/// One more row; how long the commit took.
fn commit(client: &mut Client, id: i32) -> Duration {
    let start = Instant::now();
    run(client, &format!("insert into t values ({id}, 'v')"));
    start.elapsed()
}

/// Both copies are as the source.
fn complete(fixture: &Fixture) {
    let rows = same(fixture, "t");
    assert_eq!(table(&fixture.right, "copy"), rows);
}

#[test]
fn commits_go_to_the_server_that_is_up_at_their_usual_pace() {
    let mut medians = Vec::new();
    for state in [State::Up, State::Refusing, State::Silent] {
        let fixture = linked("pace");
        let proxy = arrange(&fixture, "async");
        let mut client = fixture.left.client();
        run(&mut client, "set pg_rowsync.connect_timeout = '1s'");
        run(&mut client, "set pg_rowsync.delivery_timeout = '1s'");
        for id in 1..=20 {
            commit(&mut client, id);
        }
        enter(&proxy, state);
        // The one commit that finds out may be slow.
        commit(&mut client, 21);
        let (median, longest) = summary((100..300).map(|id| commit(&mut client, id)).collect());
        println!("commits, the other server {state:?}: median {median:?}, longest {longest:?}");
        assert_eq!(same(&fixture, "t").len(), 221, "all directly, {state:?}");
        assert_eq!(queued(&fixture) > 0, state != State::Up);
        medians.push(median);
        assert!(
            longest < Duration::from_millis(900),
            "{state:?}: {longest:?}"
        );
        leave(&proxy, state);
        await_until(WORKING, "the drain to succeed", || deal(&fixture, "10000"));
        complete(&fixture);
    }
    let bound = medians[0] * 3 + Duration::from_millis(5);
    assert!(medians.iter().all(|median| *median < bound), "{medians:?}");
}

/// Time for a drain of 5,000 changes for each server, and of 5,000 for `dst` alone.
fn drains(state: State) -> (Duration, Duration) {
    let fixture = linked("drains");
    let proxy = arrange(&fixture, "queue");
    let mut admin = fixture.left.superuser();
    run(&mut admin, "set pg_rowsync.connect_timeout = '2s'");
    run(&mut admin, "set pg_rowsync.delivery_timeout = '2s'");
    let mut batch = |args: &str, first: i32, well: bool| {
        let values = format!("select i, 'v' from generate_series({first}, {first} + 4999) i");
        fixture.left.exec(&format!("insert into t {values}"));
        let start = Instant::now();
        let done = query(&mut admin, &format!("select deal_sync_err_rec({args})"));
        let elapsed = start.elapsed();
        let status = rows(
            &fixture.left,
            "select server, last_sqlstate, last_error from sync_status",
        );
        assert_eq!(
            done,
            [if well { "t" } else { "f" }],
            "{state:?}: {status:?}"
        );
        same(&fixture, "t");
        elapsed
    };
    batch("100000", 1, true);
    enter(&proxy, state);
    let all = batch("100000", 10_000, state == State::Up);
    let one = batch("100000, 'dst'", 20_000, true);
    println!(
        "5,000 changes, the other server {state:?}: all {all:?}, only the one that is up {one:?}"
    );
    leave(&proxy, state);
    await_until(WORKING, "the drain to succeed", || deal(&fixture, "100000"));
    complete(&fixture);
    (all, one)
}

#[test]
fn a_drain_serves_the_server_that_is_up_without_delay() {
    let (all, one) = drains(State::Up);
    let slack = Duration::from_millis(500);
    let (refused, one_refused) = drains(State::Refusing);
    assert!(
        refused < all * 2 + slack,
        "{refused:?}, {all:?} when all is well"
    );
    assert!(
        one_refused < one * 2 + slack,
        "{one_refused:?}, {one:?} when all is well"
    );
    // The call as a whole waits for the silent one as long as its timeouts allow, no longer.
    let (silent, one_silent) = drains(State::Silent);
    assert!(
        silent < all * 2 + Duration::from_secs(2) + slack,
        "{silent:?}, {all:?} when all is well"
    );
    assert!(
        one_silent < one * 2 + slack,
        "{one_silent:?}, {one:?} when all is well"
    );
}

#[test]
fn the_worker_serves_the_server_that_is_up_at_its_usual_pace() {
    let settings = [EAGER, &[("pg_rowsync.connect_timeout", "3s")]].concat();
    let fixture = preloaded("workpace", &settings);
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    let proxy = arrange(&fixture, "queue");
    let mut client = fixture.left.client();
    let mut there = fixture.right.client();
    // From the commit here to the row there.
    let mut arrival = |id: i32| {
        let start = Instant::now();
        commit(&mut client, id);
        let sql = format!("select count(*) from t where id = {id}");
        await_until(WORKING, "the row to arrive", || {
            query(&mut there, &sql) == ["1"]
        });
        start.elapsed()
    };
    for id in 1..=10 {
        arrival(id);
    }
    let mut medians = Vec::new();
    for (state, first) in [
        (State::Up, 100),
        (State::Refusing, 200),
        (State::Silent, 300),
    ] {
        enter(&proxy, state);
        let (median, longest) = summary((first..first + 40).map(&mut arrival).collect());
        println!("worker, the other server {state:?}: median {median:?}, longest {longest:?}");
        medians.push(median);
        assert!(
            longest < Duration::from_millis(2_500),
            "{state:?}: waited for the other one"
        );
        leave(&proxy, state);
        await_until(WORKING, "the other one to catch up", || {
            queued(&fixture) == 0
        });
    }
    assert!(ever_queued(&fixture) >= 2 * 130, "not through the queue");
    let bound = medians[0] * 3 + Duration::from_millis(100);
    assert!(medians.iter().all(|median| *median < bound), "{medians:?}");
    complete(&fixture);
}
