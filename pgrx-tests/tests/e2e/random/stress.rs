//! Many sessions, rollbacks and outages at random: in the end both sides are equal.

use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use rowsync_harness::flag::Flag;
use rowsync_harness::{Fixture, Side, await_until};

use crate::support::common::{linked, mirror, one_way, outage, recover, run, same};
use rowsync_harness::rng::Rng;

/// Makes a random statement for the session of this number.
type Statements = fn(&mut Rng, u64) -> String;

/// Over few keys, so that sessions meet; only keys of this remainder modulo 2, or all.
fn rows_of(rng: &mut Rng, who: u64, parity: Option<u64>) -> String {
    let mut key = || match parity {
        Some(parity) => rng.roll(12) * 2 + parity,
        None => rng.roll(25),
    };
    let id = key();
    let other = key();
    let value = rng.roll(1_000_000);
    match rng.roll(6) {
        0 | 1 => {
            format!("insert into t values ({id}, '{who}:{value}') on conflict (id) do nothing")
        }
        2 => format!("update t set v = '{who}:{value}' where id = {id}"),
        3 => format!("update t set v = '{who}:{value}' where id in ({id}, {other})"),
        4 => format!(
            "update t set id = {other} where id = {id}
               and not exists (select from t where id = {other})"
        ),
        _ => format!("delete from t where id = {id}"),
    }
}

/// Parents and children that refer to them, on both sides.
fn family(rng: &mut Rng, who: u64) -> String {
    let id = rng.roll(20);
    let p = rng.roll(6);
    let value = rng.roll(1_000_000);
    match rng.roll(7) {
        0 => format!("insert into t values ({p}, '{who}:{value}') on conflict (id) do nothing"),
        1 => format!("update t set v = '{who}:{value}' where id = {p}"),
        2 => format!("delete from t where id = {p} and not exists (select from c where p = {p})"),
        3 | 4 => {
            format!("insert into c select {id}, id from t where id = {p} on conflict do nothing")
        }
        5 => format!("update c set p = t.id from t where t.id = {p} and c.id = {id}"),
        _ => format!("delete from c where p = {p}"),
    }
}

/// A transaction; conflicts between sessions and their deadlocks roll it back.
fn transaction(client: &mut Client, rng: &mut Rng, who: u64, statements: Statements) {
    let level = ["read committed", "repeatable read"][rng.roll(2) as usize];
    run(client, &format!("begin isolation level {level}"));
    for _ in 0..=rng.roll(4) {
        let nested = rng.roll(3) == 0;
        let sql = statements(rng, who);
        let sql = match (nested, rng.roll(2)) {
            (true, 0) => format!("savepoint s; {sql}; rollback to s"),
            (true, _) => format!("savepoint s; {sql}; release s"),
            _ => sql,
        };
        if let Err(error) = client.batch_execute(&sql) {
            let code = error
                .code()
                .map(|code| code.code().to_owned())
                .unwrap_or_default();
            assert!(
                ["40001", "40P01", "23505", "23503"].contains(&code.as_str()),
                "{error:?}"
            );
            return run(client, "rollback");
        }
    }
    let end = if rng.roll(5) == 0 {
        "rollback"
    } else {
        "commit"
    };
    run(client, end);
}

fn deal(side: &Side, limit: u64) -> bool {
    side.query_one(&format!("select deal_sync_err_rec({limit})"))
}

/// Changes without which the outages of a stressed side would have come to nothing.
const ENOUGH: i64 = 100;

/// Two sessions for each list of statements on its side, and drains of it; the right side goes down
/// and comes back. For some seconds, and until enough changes were queued.
fn play(fixture: &Fixture, sides: &[(&Side, Statements)]) {
    let written = Flag::default();
    let done = Flag::default();
    let end = Instant::now() + Duration::from_secs(6);
    let queued = "select last_value from sync_queue_id_seq";
    thread::scope(|scope| {
        let _ends = [written.set_at_end(), done.set_at_end()];
        let writers: Vec<_> = (1..=4)
            .map(|who: u64| {
                let ((side, statements), written) = (sides[who as usize % sides.len()], &written);
                scope.spawn(move || {
                    let mut client = side.client();
                    let mut rng = Rng::of_seed(who);
                    while !written.is_set() {
                        transaction(&mut client, &mut rng, who, statements);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut rng = Rng::of_seed(77);
            while !done.is_set() {
                // Writers of the right side would be thrown out by its outages.
                if sides.len() == 1 && rng.roll(3) == 0 {
                    outage(&fixture.right);
                    thread::sleep(Duration::from_millis(rng.roll(150)));
                    recover(&fixture.right);
                }
                for (side, _) in sides {
                    deal(side, 1 + rng.roll(200));
                }
            }
        });
        await_until(
            Duration::from_secs(120),
            "the outages to queue enough",
            || {
                let is_enough = || fixture.left.query_one::<i64>(queued) > ENOUGH;
                Instant::now() > end && (sides.len() > 1 || is_enough())
            },
        );
        written.set();
        let results: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.set();
        assert!(results.iter().all(Result::is_ok), "a writer failed");
    });
    recover(&fixture.right);
    for (side, _) in sides {
        while side.queued().expect("a queue") > 0 {
            assert!(deal(side, 1000));
        }
    }
}

const COLUMNS: &str = "id int primary key, v text";

#[test]
fn random_transactions_and_outages_end_with_equal_sides() {
    let fixture = one_way("stress", COLUMNS, "{}");
    play(
        &fixture,
        &[(&fixture.left, |rng, who| rows_of(rng, who, None))],
    );
    assert!(!same(&fixture, "t").is_empty());
}

#[test]
fn foreign_keys_on_both_sides_hold_through_outages() {
    let fixture = linked("stressfk");
    mirror(&fixture, "t", COLUMNS, "{}");
    mirror(
        &fixture,
        "c",
        "id int primary key, p int not null references t",
        "{}",
    );
    play(&fixture, &[(&fixture.left, family)]);
    assert!(!same(&fixture, "t").is_empty());
    same(&fixture, "c");
}

#[test]
fn two_masters_that_write_rows_of_their_own_stay_equal() {
    let fixture = one_way("stressmm", COLUMNS, "{}");
    fixture.link(&fixture.right, &fixture.left, "dst", &[]);
    let target = &fixture.left.user;
    fixture
        .right
        .exec(&format!("select attach_sync('t', 'dst', '{target}.t')"));
    let even: Statements = |rng, who| rows_of(rng, who, Some(0));
    let odd: Statements = |rng, who| rows_of(rng, who, Some(1));
    play(&fixture, &[(&fixture.left, even), (&fixture.right, odd)]);
    assert!(!same(&fixture, "t").is_empty());
}
