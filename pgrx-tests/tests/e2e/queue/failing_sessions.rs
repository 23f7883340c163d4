//! Many sessions on few rows, some of whose changes the remote refuses for good and some for the
//! moment, while someone drains, retries and discards: per row, no older change ever lands on a newer
//! one.

use std::thread;
use std::time::{Duration, Instant};

use rowsync_harness::flag::Flag;
use rowsync_harness::{Fixture, await_until};

use crate::support::common::{deal, one_way, query, queued, rows, run, same};
use crate::support::failed::{discard, failed, retry, retry_once};
use crate::support::preloaded::{EAGER, WORKING, preloaded_one_way};
use rowsync_harness::rng::Rng;

const COLUMNS: &str = "id int primary key, n int not null, bad boolean not null";
const ROWS: u64 = 6;
const LOAD: Duration = Duration::from_secs(6);

/// Before the remote table: a constraint, a trigger that refuses everything for as long as `moment`
/// has a row, and a list of what was written.
fn arrange(fixture: &Fixture) {
    let schema = &fixture.right.user;
    fixture.right.exec(&format!(
        "alter table t add constraint is_sound check (not bad);
         create table moment (yes boolean);
         create table written (at bigserial, id int, n int);
         create function note() returns trigger language plpgsql as $$
         begin
           if exists (select from {schema}.moment) then
             raise exception 'not now' using errcode = '40001';
           end if;
           insert into {schema}.written (id, n) values (new.id, new.n);
           return null;
         end $$;
         create trigger note after insert or update on t for each row execute function note()"
    ));
    fixture.left.exec(&format!(
        "insert into t select i, 0, false from generate_series(1, {ROWS}) i"
    ));
}

/// Rows on which a write came later than one with a higher number.
const PASSED: &str = "select id, n, before from
    (select id, n, at, max(n) over (partition by id order by at) as before from written) w
    where before > n order by at limit 5";

/// Sessions that count rows up, one change in thirty bad; an operator who does what operators do.
fn play(fixture: &Fixture, drains: bool) {
    let done = Flag::default();
    let updates: u32 = thread::scope(|scope| {
        let _end = done.set_at_end();
        let clients: Vec<_> = (1..=4)
            .map(|who| {
                scope.spawn(move || {
                    let mut client = fixture.left.client();
                    let mut rng = Rng::of_seed(who);
                    let end = Instant::now() + LOAD;
                    let mut times = 0;
                    while Instant::now() < end {
                        let id = 1 + rng.roll(ROWS);
                        let bad = rng.roll(30) == 0;
                        let sql = format!("update t set n = n + 1, bad = {bad} where id = {id}");
                        run(&mut client, &sql);
                        times += 1;
                    }
                    times
                })
            })
            .collect();
        scope.spawn(|| {
            let mut rng = Rng::of_seed(77);
            while !done.is_set() {
                match rng.roll(13) {
                    0 => fixture.right.exec("insert into moment values (true)"),
                    1..=3 => fixture.right.exec("truncate moment"),
                    4..=8 if drains => {
                        deal(fixture, &(1 + rng.roll(3_000)).to_string());
                    }
                    4..=8 => thread::sleep(Duration::from_millis(20)),
                    9 => repair(fixture),
                    10 => failed(fixture)
                        .iter()
                        .take(1)
                        .for_each(|id| discard(fixture, *id)),
                    _ => {
                        let failed = failed(fixture);
                        if !failed.is_empty() {
                            retry(fixture, rng.of(&failed));
                        }
                    }
                }
            }
        });
        let results: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        done.set();
        results
            .into_iter()
            .map(|times| times.expect("a client saw an error"))
            .sum()
    });
    let written: i64 = fixture.right.query_one(&format!(
        "select count(*) from {}.written",
        fixture.right.user
    ));
    println!("{updates} updates, {written} writes on the other side");
    assert!(written > 100, "hardly anything arrived");
    assert_eq!(
        query(&mut fixture.right.client(), PASSED),
        [""; 0],
        "row, written, written before"
    );
}

/// For a moment nothing is refused for good, and what was marked failed is tried again.
fn repair(fixture: &Fixture) {
    fixture.right.exec("alter table t drop constraint is_sound");
    for id in failed(fixture) {
        retry(fixture, id);
    }
    fixture
        .right
        .exec("alter table t add constraint is_sound check (not bad) not valid");
}

/// Nothing is refused any more; what was discarded is made up for by the next change.
fn settle(fixture: &Fixture) {
    fixture
        .right
        .exec("truncate moment; alter table t drop constraint is_sound");
    await_until(WORKING, "what was marked failed to be delivered", || {
        retry_once(fixture);
        queued(fixture) == 0
    });
    fixture.left.exec("update t set n = n + 1");
    assert_eq!(queued(fixture), 0, "direct delivery has not resumed");
    assert_eq!(rows(&fixture.right, PASSED), [""; 0]);
    assert_eq!(same(fixture, "t").len(), ROWS as usize);
}

#[test]
fn sessions_drains_retries_and_discards_let_nothing_pass() {
    let fixture = one_way("sessions", COLUMNS, "{}");
    arrange(&fixture);
    play(&fixture, true);
    settle(&fixture);
}

#[test]
fn sessions_the_worker_and_an_operator_let_nothing_pass() {
    let fixture = preloaded_one_way("worksessions", EAGER, COLUMNS, "{}");
    arrange(&fixture);
    play(&fixture, false);
    // The worker does the rest, but for what is marked failed.
    fixture.right.exec("truncate moment");
    settle(&fixture);
}
