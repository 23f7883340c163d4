//! Copies of tables whose rows refer to one another, in whatever order they have been written.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rowsync_harness::fixture::{Fixture, await_until};
use rowsync_harness::flag::Flag;

use crate::support::common::{attach_sql, mirror, queued, rows, run, same};
use crate::support::preloaded::{EAGER, preloaded};
use rowsync_harness::rng::Rng;

const LONG: Duration = Duration::from_secs(120);
const NEWEST: &str = r#"{"on_conflict": "newest", "version_column": "ver"}"#;

/// A tree on both sides, attached, of whose rows some refer to rows with greater keys; several ranges to copy.
fn arrange(label: &str, options: &str) -> Fixture {
    let fixture = preloaded(label, EAGER);
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    for side in [&fixture.left, &fixture.right] {
        side.exec(
            "create table t (id int primary key, parent int references t, v text, ver int default 1);
             create index on t (parent)",
        );
    }
    fixture.left.exec(
        "insert into t select i, case when i % 500 = 1 then 20001 - i end, repeat('x', 300)
           from generate_series(1, 20000) i",
    );
    fixture.left.exec(&attach_sql(&fixture, "t", options));
    // A copy of many steps.
    fixture.right.exec(
        "create function pause() returns trigger language plpgsql as
           $$ begin perform pg_sleep(0.05); return new; end $$;
         create trigger pause before insert on t for each row when (new.id % 500 = 0)
           execute function pause()",
    );
    fixture
}

/// Copied while four clients insert, hang up and remove rows.
fn copied(fixture: &Fixture, existing: &str) {
    let stop = Arc::new(Flag::default());
    let _end = stop.set_at_end();
    let writer = |number: u64| {
        let side = fixture.left.clone();
        let stop = stop.clone();
        thread::spawn(move || {
            let mut rng = Rng::of_seed(number);
            let mut client = side.client();
            while !stop.is_set() {
                // They are to meet the copy, not to keep the machine busy.
                thread::sleep(Duration::from_millis(20));
                let a = rng.roll(20_000) + 1;
                let b = rng.roll(20_000) + 1;
                let sql = match a % 4 {
                    0 => format!("delete from t where id = {a}"),
                    1 => format!("insert into t values (20000 + {a}, {b}, 'n')"),
                    _ => format!("update t set parent = {b}, ver = ver + 1 where id = {a}"),
                };
                // Rows that others refer to stay, and keys that are taken are.
                let _ = client.batch_execute(&sql);
            }
        })
    };
    let writers: Vec<_> = (1..5).map(writer).collect();
    let mut client = fixture.left.client();
    run(
        &mut client,
        &format!("select copy_sync('t', 'dst', '{existing}')"),
    );
    let state = "select state, sqlstate, message from sync_progress order by id desc limit 1";
    let mut reported = String::new();
    let end = std::time::Instant::now() + LONG;
    while !reported.starts_with("done") && !reported.starts_with("failed") {
        thread::sleep(Duration::from_millis(50));
        reported = rows(&fixture.left, state).remove(0);
        if std::time::Instant::now() > end {
            break;
        }
    }
    stop.set();
    writers
        .into_iter()
        .for_each(|one| one.join().expect("a writer"));
    assert!(reported.starts_with("done"), "{existing}: {reported}");
    await_until(LONG, "the queue to be empty", || queued(fixture) == 0);
    same(fixture, "t");
}

#[test]
fn a_tree_is_copied_though_rows_refer_to_later_ones() {
    copied(&arrange("tree", "{}"), "truncate");
}

#[test]
fn a_tree_is_merged_though_rows_refer_to_later_ones() {
    copied(&arrange("tree_merged", "{}"), "merge");
}

/// A row that goes, while rows that have referred to it stay and refer to another one.
#[test]
fn rows_go_whose_children_have_moved_to_other_parents() {
    for (label, options) in [("moved", "{}"), ("moved_newest", NEWEST)] {
        let fixture = preloaded(label, EAGER);
        fixture.link(&fixture.left, &fixture.right, "dst", &[]);
        mirror(
            &fixture,
            "p",
            "id int primary key, ver int default 1",
            options,
        );
        let columns = "id int primary key, p int references p, ver int default 1";
        mirror(&fixture, "c", columns, options);
        fixture
            .left
            .exec("insert into p values (1), (2); insert into c values (1, 1), (2, 1), (3, 2)");
        await_until(LONG, "the rows", || {
            rows(&fixture.right, "select count(*) from c") == ["3"]
        });
        // A transaction that has written a table keeps the copies from beginning.
        let mut client = fixture.left.client();
        let mut holder = fixture.left.client();
        run(&mut holder, "begin; update p set ver = 2 where id = 2");
        run(
            &mut client,
            "begin; select copy_sync('p', 'dst', 'merge'); select copy_sync('c', 'dst', 'merge'); commit",
        );
        run(
            &mut client,
            "update c set p = 2, ver = 2 where p = 1; delete from p where id = 1",
        );
        run(&mut holder, "commit");
        let state = "select distinct state from sync_progress";
        await_until(LONG, "the copies to end", || {
            rows(&fixture.left, state) == ["done"]
        });
        await_until(LONG, "the queue to be empty", || queued(&fixture) == 0);
        assert_eq!(same(&fixture, "p").len(), 1);
        assert_eq!(same(&fixture, "c").len(), 3);
    }
}
