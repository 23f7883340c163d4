//! Many sessions on few rows, some of whose changes the remote refuses for good and some for the
//! moment, while someone drains, retries and discards: per row, no older change ever lands on a newer
//! one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rowsync_harness::{Testbed, await_until};

use crate::common::{deal, one_way, query, queued, rows, run, same};
use crate::dice::Dice;
use crate::preloaded::{EAGER, WORKING, preloaded_one_way};
use crate::set_aside::{discard, failed, retry, retry_once};

const COLUMNS: &str = "id int primary key, n int not null, bad boolean not null";
const ROWS: u64 = 6;
const LOAD: Duration = Duration::from_secs(6);

/// Before the remote table: a constraint, a trigger that refuses everything for as long as `moment`
/// has a row, and a list of what was written.
fn arrange(bed: &Testbed) {
    let schema = &bed.right.user;
    bed.right.exec(&format!(
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
    bed.left.exec(&format!("insert into t select i, 0, false from generate_series(1, {ROWS}) i"));
}

/// Rows on which a write came later than one with a higher number.
const PASSED: &str = "select id, n, before from
    (select id, n, at, max(n) over (partition by id order by at) as before from written) w
    where before > n order by at limit 5";

/// Sessions that count rows up, one change in thirty bad; an operator who does what operators do.
fn play(bed: &Testbed, drains: bool) {
    let done = AtomicBool::new(false);
    let updates: u32 = thread::scope(|scope| {
        let clients: Vec<_> = (1..=4)
            .map(|who| {
                scope.spawn(move || {
                    let (mut client, mut dice) = (bed.left.client(), Dice::new(who));
                    let (end, mut times) = (Instant::now() + LOAD, 0);
                    while Instant::now() < end {
                        let (id, bad) = (1 + dice.roll(ROWS), dice.roll(30) == 0);
                        let sql = format!("update t set n = n + 1, bad = {bad} where id = {id}");
                        run(&mut client, &sql);
                        times += 1;
                    }
                    times
                })
            })
            .collect();
        scope.spawn(|| {
            let mut dice = Dice::new(77);
            while !done.load(Ordering::Relaxed) {
                match dice.roll(13) {
                    0 => bed.right.exec("insert into moment values (true)"),
                    1..=3 => bed.right.exec("truncate moment"),
                    4..=8 if drains => {
                        deal(bed, &(1 + dice.roll(3_000)).to_string());
                    }
                    4..=8 => thread::sleep(Duration::from_millis(20)),
                    9 => repair(bed),
                    10 => failed(bed).iter().take(1).for_each(|id| discard(bed, *id)),
                    _ => {
                        let failed = failed(bed);
                        if !failed.is_empty() {
                            retry(bed, dice.of(&failed));
                        }
                    }
                }
            }
        });
        let results: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        done.store(true, Ordering::Relaxed);
        results.into_iter().map(|times| times.expect("a client saw an error")).sum()
    });
    let written: i64 =
        bed.right.query_one(&format!("select count(*) from {}.written", bed.right.user));
    println!("{updates} updates, {written} writes on the other side");
    assert!(written > 100, "hardly anything arrived");
    assert_eq!(query(&mut bed.right.client(), PASSED), [""; 0], "row, written, written before");
}

/// For a moment nothing is refused for good, and what was set aside is tried again.
fn repair(bed: &Testbed) {
    bed.right.exec("alter table t drop constraint is_sound");
    for id in failed(bed) {
        retry(bed, id);
    }
    bed.right.exec("alter table t add constraint is_sound check (not bad) not valid");
}

/// Nothing is refused any more; what was discarded is made up for by the next change.
fn settle(bed: &Testbed) {
    bed.right.exec("truncate moment; alter table t drop constraint is_sound");
    await_until(WORKING, "what was set aside to be delivered", || {
        retry_once(bed);
        queued(bed) == 0
    });
    bed.left.exec("update t set n = n + 1");
    assert_eq!(queued(bed), 0, "direct delivery has not resumed");
    assert_eq!(rows(&bed.right, PASSED), [""; 0]);
    assert_eq!(same(bed, "t").len(), ROWS as usize);
}

#[test]
fn sessions_drains_retries_and_discards_let_nothing_pass() {
    let bed = one_way("sessions", COLUMNS, "{}");
    arrange(&bed);
    play(&bed, true);
    settle(&bed);
}

#[test]
fn sessions_the_worker_and_an_operator_let_nothing_pass() {
    let bed = preloaded_one_way("worksessions", EAGER, COLUMNS, "{}");
    arrange(&bed);
    play(&bed, false);
    // The worker does the rest, but for what is set aside.
    bed.right.exec("truncate moment");
    settle(&bed);
}
