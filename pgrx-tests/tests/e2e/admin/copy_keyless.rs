//! Copies of tables without a key, to which rows are only added: each row arrives once, whatever is written or
//! fails meanwhile.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rowsync_harness::fixture::{Fixture, await_until, clusters};
use rowsync_harness::flag::Flag;
use rowsync_harness::proxy::Proxy;
use rowsync_harness::side::Side;

use crate::support::common::{queued, rows};
use crate::support::preloaded::{EAGER, preloaded};

const LONG: Duration = Duration::from_secs(150);
const COLUMNS: &str = "writer int, n bigint, v text";

/// A table with rows on the left, whose target takes its time with each thousandth.
fn arrange(label: &str, port: u16) -> Fixture {
    let fixture = preloaded(label, EAGER);
    fixture
        .left
        .link(&fixture.right, port, "dst", &[])
        .expect("a server");
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table t ({COLUMNS})"));
    }
    fixture
        .left
        .exec("insert into t select 0, i, 'there' from generate_series(1, 20000) i");
    fixture.right.exec(
        "create function pause() returns trigger language plpgsql as
           $$ begin perform pg_sleep(0.05); return new; end $$;
         create trigger pause before insert on t for each row
           when (new.writer = 0 and new.n % 1000 = 0) execute function pause()",
    );
    fixture
}

/// Four clients that add rows, the same one twice at times, until they are told to stop.
fn write(side: &Side, stop: &Arc<Flag>) -> Vec<thread::JoinHandle<u64>> {
    let writer = |number: u64| {
        let side = side.clone();
        let stop = stop.clone();
        thread::spawn(move || {
            let mut client = side.client();
            let mut done = 0;
            while !stop.is_set() {
                thread::sleep(Duration::from_millis(5));
                let twice = if done % 7 == 0 { 2 } else { 1 };
                let sql = format!(
                    "begin; insert into t select {number}, {done}, 'w' from generate_series(1, {twice});
                     savepoint s; insert into t values ({number}, -1, 'never'); rollback to s; commit"
                );
                client.batch_execute(&sql).expect("a row");
                done += 1;
            }
            done
        })
    };
    (1..5).map(writer).collect()
}

/// The table is copied while it is written; `trouble` happens meanwhile.
fn copied_while_written(fixture: &Fixture, mode: &str, trouble: impl FnOnce()) {
    let stop = Arc::new(Flag::default());
    let _end = stop.set_at_end();
    let writers = write(&fixture.left, &stop);
    fixture.left.exec(&format!(
        r#"select attach_sync('t', 'dst', '{}.t', '{{"insert_only": true, "mode": "{mode}"}}', copy_data => true)"#,
        fixture.right.user
    ));
    trouble();
    let state = "select state, sqlstate, message from sync_progress";
    await_until(LONG, "the copy to end", || {
        let state = rows(&fixture.left, state);
        assert!(!state[0].starts_with("failed"), "{mode}: {state:?}");
        state[0].starts_with("done")
    });
    thread::sleep(Duration::from_millis(300));
    stop.set();
    let done: u64 = writers
        .into_iter()
        .map(|one| one.join().expect("a writer"))
        .sum();
    assert!(done > 50, "{done}");
    await_until(LONG, "the queue to be empty", || queued(fixture) == 0);
    let all = "select writer, n, v, count(*) from t group by 1, 2, 3 order by 1, 2, 3";
    let left = rows(&fixture.left, all);
    let right = rows(&fixture.right, all);
    let missing = left.iter().filter(|row| !right.contains(row)).count();
    assert!(
        left == right,
        "{mode}: {} rows here, {} there, {missing} missing or of another number",
        left.len(),
        right.len()
    );
}

#[test]
fn rows_without_a_key_that_are_added_meanwhile_arrive_once_in_every_mode() {
    for mode in ["async", "sync", "queue"] {
        let fixture = arrange(&format!("keyless_{mode}"), clusters().1.port());
        copied_while_written(&fixture, mode, || ());
    }
}

#[test]
fn rows_without_a_key_arrive_once_though_copiers_end_and_connections_are_cut() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = arrange("keyless_trouble", proxy.port());
    copied_while_written(&fixture, "async", || {
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                    where backend_type = 'pg_rowsync copier'";
        for wait in [100, 300, 700, 150, 900] {
            thread::sleep(Duration::from_millis(wait));
            rows(&fixture.left, end);
            thread::sleep(Duration::from_millis(wait));
            proxy.cut();
        }
    });
}

#[test]
fn a_table_without_a_key_that_is_emptied_during_its_copy_is_equal_in_the_end() {
    let fixture = arrange("keyless_emptied", clusters().1.port());
    // An index, though no key is read in its order.
    fixture.left.exec("create index on t (n)");
    copied_while_written(&fixture, "async", || {
        let at_work = "select count(*) from pg_stat_activity
                        where backend_type = 'pg_rowsync copier'";
        await_until(LONG, "the copy to begin", || {
            rows(&fixture.left, at_work) != ["0"]
        });
        fixture.left.exec("truncate t");
    });
}
