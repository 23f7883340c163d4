//! Copies: the rows that are there when a table is attached, brought over while it is written.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use postgres::Notification;
use postgres::fallible_iterator::FallibleIterator;
use rowsync_harness::cluster::{Cluster, Shutdown, TEST_SETTINGS};
use rowsync_harness::fixture::{Fixture, await_until, clusters};
use rowsync_harness::flag::Flag;
use rowsync_harness::proxy::Proxy;
use rowsync_harness::side::Side;

use crate::support::common::{query, queued, refused, rows, run, same, table};
use rowsync_harness::rng::Rng;

const LONG: Duration = Duration::from_secs(150);
const PRELOADED: &[(&str, &str)] = &[
    ("shared_preload_libraries", "pg_rowsync"),
    ("max_worker_processes", "40"),
    ("pg_rowsync.retry_interval", "100ms"),
    ("pg_rowsync.max_retry_interval", "1s"),
];

fn preloaded(name: &str) -> Arc<Cluster> {
    let settings = [TEST_SETTINGS, PRELOADED].concat();
    Arc::new(Cluster::start_with(name, &settings).expect("a cluster"))
}

/// A cluster for tests that leave it alone.
fn shared() -> &'static Arc<Cluster> {
    static CLUSTER: OnceLock<Arc<Cluster>> = OnceLock::new();
    CLUSTER.get_or_init(|| preloaded("copying"))
}

/// Databases on these clusters, the left one with a server `dst` that leads to the right one's port.
fn fixture_on(left: &Arc<Cluster>, right: &Arc<Cluster>, label: &str, port: u16) -> Fixture {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let create = |cluster, prefix| {
        Side::create(cluster, &format!("{prefix}_{label}_c{number}")).expect("a database")
    };
    let fixture = Fixture {
        left: create(left, "local"),
        right: create(right, "remote"),
    };
    fixture
        .left
        .link(&fixture.right, port, "dst", &[])
        .expect("a server");
    fixture
}

fn fixture(label: &str) -> Fixture {
    fixture_on(shared(), clusters().1, label, clusters().1.port())
}

/// A table on both sides.
fn create(fixture: &Fixture, name: &str, columns: &str) {
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table {name} ({columns})"));
    }
}

fn attach_sql(fixture: &Fixture, name: &str, options: &str, copy: bool) -> String {
    let schema = &fixture.right.user;
    format!(
        "select attach_sync('{name}', 'dst', '{schema}.{name}', '{options}', copy_data => {copy})"
    )
}

/// What became of the latest copy.
fn state(fixture: &Fixture) -> String {
    let sql = "select state, sqlstate, message from sync_progress order by id desc limit 1";
    rows(&fixture.left, sql).pop().unwrap_or_default()
}

#[track_caller]
fn await_done(fixture: &Fixture) {
    let sql = "select count(*) from sync_progress where state <> 'done'";
    let end = std::time::Instant::now() + LONG;
    while rows(&fixture.left, sql) != ["0"] {
        assert!(
            std::time::Instant::now() < end,
            "not done: {}",
            state(fixture)
        );
        assert!(!state(fixture).starts_with("failed"), "{}", state(fixture));
        thread::sleep(Duration::from_millis(20));
    }
    await_until(LONG, "the queue to be empty", || queued(fixture) == 0);
}

fn await_failed(fixture: &Fixture) -> String {
    await_until(LONG, "the copy to fail", || {
        state(fixture).starts_with("failed")
    });
    state(fixture)
}

#[test]
fn rows_that_are_there_are_brought_when_a_table_is_attached() {
    let fixture = fixture("there");
    create(
        &fixture,
        "t",
        "a int, b text, c numeric(9,2), d timestamptz, e text[], primary key (b, a)",
    );
    fixture.left.exec(
        "insert into t select i, 'k' || i % 7, i / 3.0, '2026-01-01'::timestamptz + i * interval '1 s',
             array[i::text, E'tab\\t\\\\ \\n', null] from generate_series(1, 5000) i",
    );
    fixture.left.exec(&attach_sql(&fixture, "t", "{}", true));
    fixture
        .left
        .exec("update t set c = -1 where a % 10 = 0; delete from t where a % 10 = 1");
    await_done(&fixture);
    assert_eq!(same(&fixture, "t").len(), 4500);
    let reported =
        "select command, relation::text ~ 't$', server, state, rows_done >= 4500, bytes_done > 0,
                    ended_at is not null, workers from sync_progress";
    assert_eq!(rows(&fixture.left, reported), ["copy|t|dst|done|t|t|t|0"]);
    // From then on it is sent as always.
    fixture
        .left
        .exec("insert into t values (0, 'new', 1, now(), null)");
    assert_eq!(same(&fixture, "t").len(), 4501);
}

#[test]
fn the_tables_of_a_schema_are_copied_as_they_are_attached() {
    let fixture = fixture("schema");
    create(&fixture, "p", "id int primary key, v text");
    create(&fixture, "c", "id int primary key, p int references p");
    create(&fixture, "nokey", "v text");
    fixture
        .left
        .exec("insert into p select i, 'p' from generate_series(1, 200) i");
    fixture
        .left
        .exec("insert into c select i, 1 + i % 200 from generate_series(1, 500) i");
    let attach = format!(
        "select rel::text, attached from attach_sync_schema('{}', 'dst', '{}', copy_data => true)",
        fixture.left.user, fixture.right.user
    );
    assert_eq!(
        query(&mut fixture.left.client(), &attach),
        ["c|t", "nokey|f", "p|t"]
    );
    let arrived = "select wait_sync('dst', timeout => '2 min')";
    assert_eq!(query(&mut fixture.left.client(), arrived), ["t"]);
    assert_eq!(
        (same(&fixture, "p").len(), same(&fixture, "c").len()),
        (200, 500)
    );
}

#[test]
fn what_becomes_of_rows_that_the_target_has_is_said() {
    let fixture = fixture("existing");
    create(&fixture, "t", "id int primary key, v text");
    fixture
        .left
        .exec("insert into t select i, 'left' from generate_series(1, 100) i");
    fixture
        .right
        .exec("insert into t values (1, 'right'), (1000, 'right')");
    let mut client = fixture.left.client();
    refused(&mut client, "select copy_sync('t', 'dst')", "42704");
    run(&mut client, &attach_sql(&fixture, "t", "{}", false));
    refused(&mut client, "select copy_sync('t', 'dst', 'all')", "22023");
    run(&mut client, "select copy_sync('t', 'dst')");
    assert!(
        await_failed(&fixture)
            .starts_with("failed|55000|table \"t\" of server \"dst\" is not empty")
    );
    let arrived = "select wait_sync(timeout => '300 ms')";
    assert_eq!(
        query(&mut fixture.left.client(), arrived),
        ["f"],
        "a copy that has failed"
    );
    // What is written goes on waiting behind it.
    run(&mut client, "insert into t values (200, 'later')");
    assert_eq!(queued(&fixture), 1);
    run(
        &mut client,
        "select copy_sync('t', 'dst', existing => 'merge')",
    );
    await_done(&fixture);
    assert_eq!(table(&fixture.right, "t").len(), 102);
    assert_eq!(
        rows(
            &fixture.right,
            "select v from t where id in (1, 1000) order by id"
        ),
        ["left", "right"]
    );
    run(
        &mut client,
        "select copy_sync('t', 'dst', existing => 'truncate')",
    );
    await_done(&fixture);
    assert_eq!(same(&fixture, "t").len(), 101);
}

#[test]
fn merging_leaves_what_the_policy_leaves() {
    let fixture = fixture("policies");
    for policy in ["skip", "newest"] {
        create(&fixture, policy, "id int primary key, v text, n int");
        fixture.left.exec(&format!(
            "insert into {policy} values (1, 'left', 1), (2, 'left', 5), (3, 'left', 1)"
        ));
        fixture.right.exec(&format!(
            "insert into {policy} values (1, 'right', 2), (2, 'right', 2)"
        ));
        let version = if policy == "newest" {
            r#", "version_column": "n""#
        } else {
            ""
        };
        let options = format!(r#"{{"on_conflict": "{policy}"{version}}}"#);
        let mut client = fixture.left.client();
        run(&mut client, &attach_sql(&fixture, policy, &options, false));
        run(
            &mut client,
            &format!("select copy_sync('{policy}', 'dst', 'merge')"),
        );
        await_done(&fixture);
    }
    assert_eq!(
        table(&fixture.right, "skip"),
        ["1|right|2", "2|right|2", "3|left|1"]
    );
    assert_eq!(
        table(&fixture.right, "newest"),
        ["1|right|2", "2|left|5", "3|left|1"]
    );
}

/// Eight clients that insert, update, delete, move keys, pass a unique value on, write parents with their
/// children, and now and then roll back or empty the table, until they are told to stop.
fn write(
    side: &Side,
    stop: &Arc<Flag>,
    truncates: bool,
    seed: u64,
) -> Vec<thread::JoinHandle<u64>> {
    (0..8u64)
        .map(|number| {
            let side = side.clone();
            let stop = stop.clone();
            thread::spawn(move || {
                let mut rng = Rng::of_seed(seed * 100 + number);
                let mut client = side.client();
                let mut done = 0;
                while !stop.is_set() {
                    // They are to meet the copy, not to keep the machine busy.
                    thread::sleep(Duration::from_millis(3));
                    let mut one = || rng.roll(3000) as i64 + 1;
                    let a = one();
                    let b = one();
                    let c = one();
                    let sql = match a % 12 {
                        0 | 1 => format!("insert into t values ({}, 'n', null) on conflict do nothing", 3000 + a),
                        2..=4 => format!("update t set v = v || 'u' where id in ({a}, {b})"),
                        5 => format!("delete from t where id = {a}"),
                        6 => format!("update t set id = id + 3000 where id = {a} and not exists (select from t x where x.id = {a} + 3000)"),
                        // A value passed on from a row to one far away.
                        7 | 8 => format!(
                            "do $$ declare w int; begin
                               select u into w from t where id = {a} and u is not null for update;
                               if w is not null then
                                 update t set u = null where id = {a};
                                 update t set u = w where id = {b} and u is null;
                               end if; end $$"
                        ),
                        9 => format!(
                            "begin; insert into child select {a}, id, 'c' from t where id = {b} for key share on conflict do nothing;
                             savepoint s; delete from t where id > {c} and id < {c} + 5; rollback to s; commit"
                        ),
                        10 => format!("delete from child where id = {a}"),
                        _ if truncates && a % 100 == 11 => "truncate t, child".to_owned(),
                        _ => format!("begin; update t set v = 'gone' where id < {a}; rollback"),
                    };
                    match client.batch_execute(&sql) {
                        Ok(()) => done += 1,
                        // Deadlocks and conflicts between the clients, and the ends of sessions.
                        Err(_) if client.is_closed() => {
                            thread::sleep(Duration::from_millis(50));
                            if let Ok(new) = side.connect() {
                                client = new;
                            }
                        }
                        Err(_) => drop(client.batch_execute("rollback")),
                    }
                }
                done
            })
        })
        .collect()
}

const PARENT: &str = "id int primary key, v text, u int unique";
const CHILD: &str =
    "id int primary key, parent int not null references t on delete cascade, v text";

/// Parents with a second unique constraint, and children; rows that take several ranges to copy.
fn family(fixture: &Fixture, rows: u32) {
    create(fixture, "t", PARENT);
    create(fixture, "child", CHILD);
    fixture.left.exec(&format!(
        "insert into t select i, repeat('x', 300), case when i % 3 = 0 then i end from generate_series(1, {rows}) i;
         insert into child select i, i, 'c' from generate_series(1, {rows}, 5) i; analyze"
    ));
}

/// Both tables are copied while they are written; `trouble` happens meanwhile.
fn copied_while_written(
    fixture: &Fixture,
    options: &str,
    truncates: bool,
    seed: u64,
    trouble: impl FnOnce(),
) {
    let stop = Arc::new(Flag::default());
    let _end = stop.set_at_end();
    let mut client = fixture.left.client();
    let t = attach_sql(fixture, "t", options, true);
    let child = attach_sql(fixture, "child", options, true);
    let writers = write(&fixture.left, &stop, truncates, seed);
    thread::sleep(Duration::from_millis(200));
    // They wait for the writers under way, who may be waiting for each other.
    while client
        .batch_execute(&format!("begin; {child}; {t}; commit"))
        .is_err()
    {
        let _ = client.batch_execute("rollback");
    }
    trouble();
    let sql = "select count(*) from sync_progress where state <> 'done'";
    let end = std::time::Instant::now() + LONG;
    while rows(&fixture.left, sql) != ["0"] && std::time::Instant::now() < end {
        thread::sleep(Duration::from_millis(50));
    }
    let reported = state(fixture);
    thread::sleep(Duration::from_millis(300));
    stop.set();
    let done: u64 = writers
        .into_iter()
        .map(|one| one.join().expect("a writer"))
        .sum();
    assert!(reported.starts_with("done"), "seed {seed}: {reported}");
    assert!(done > 50, "{done}");
    await_until(LONG, "the queue to be empty", || queued(fixture) == 0);
    same(fixture, "t");
    same(fixture, "child");
}

#[test]
fn a_table_that_eight_clients_write_is_equal_in_the_end_in_every_mode() {
    for (seed, mode) in ["async", "sync", "queue"].into_iter().enumerate() {
        let fixture = fixture(&format!("written_{mode}"));
        family(&fixture, 30_000);
        copied_while_written(
            &fixture,
            &format!(r#"{{"mode": "{mode}"}}"#),
            false,
            seed as u64,
            || (),
        );
        assert_eq!(
            rows(&fixture.left, "select count(*) from sync_err_rec"),
            ["0"]
        );
    }
}

#[test]
fn a_table_that_is_emptied_during_its_copy_is_equal_in_the_end() {
    let fixture = fixture("emptied");
    family(&fixture, 30_000);
    copied_while_written(&fixture, "{}", true, 7, || ());
}

#[test]
fn connections_that_are_cut_lead_to_no_wrong_end() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = fixture_on(shared(), clusters().1, "cut", proxy.port());
    family(&fixture, 30_000);
    copied_while_written(&fixture, "{}", false, 11, || {
        for wait in [100, 150, 250, 400, 90] {
            thread::sleep(Duration::from_millis(wait));
            proxy.cut();
        }
    });
}

#[test]
fn copiers_that_are_ended_and_a_target_that_crashes_lead_to_no_wrong_end() {
    let left = preloaded("source");
    let right = Arc::new(Cluster::start("target").expect("a cluster"));
    let fixture = fixture_on(&left, &right, "crash", right.port());
    family(&fixture, 30_000);
    copied_while_written(&fixture, "{}", false, 13, || {
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                    where backend_type = 'pg_rowsync copier'";
        for _ in 0..4 {
            thread::sleep(Duration::from_millis(150));
            rows(&fixture.left, end);
        }
        right.stop(Shutdown::Immediate).expect("a crash");
        right.start_again().expect("a start");
    });
}

/// In modes `async` and `sync` a crash after the copy may leave the target ahead: these have that window.
#[test]
fn a_source_that_crashes_goes_on_with_its_copies() {
    for mode in ["queue", "atomic"] {
        let left = preloaded(&format!("crashing_{mode}"));
        let fixture = fixture_on(&left, clusters().1, mode, clusters().1.port());
        family(&fixture, 60_000);
        // A copy of many steps.
        fixture.right.exec(
            "create function pause() returns trigger language plpgsql as
               $$ begin perform pg_sleep(0.05); return new; end $$;
             create trigger pause before insert on t for each row when (new.id % 1000 = 0)
               execute function pause()",
        );
        let options = format!(r#"{{"mode": "{mode}"}}"#);
        let at_work =
            "select count(*) from sync_progress where state = 'copying' and rows_done > 0";
        copied_while_written(&fixture, &options, false, 17, || {
            for _ in 0..3 {
                await_until(LONG, "the copy to get on", || {
                    rows(&fixture.left, at_work) != ["0"]
                });
                left.stop(Shutdown::Immediate).expect("a crash");
                left.start_again().expect("a start");
            }
        });
    }
}

/// The queue cannot bring the parent while somebody holds the target's table.
#[test]
fn children_are_tried_until_the_queue_has_brought_their_parents() {
    let fixture = fixture("parents");
    create(&fixture, "t", PARENT);
    create(&fixture, "child", CHILD);
    let mut client = fixture.left.client();
    run(
        &mut client,
        &attach_sql(&fixture, "t", r#"{"mode": "queue"}"#, true),
    );
    await_done(&fixture);
    let mut holder = fixture.right.client();
    run(&mut holder, "begin; lock table t in share mode");
    run(
        &mut client,
        "insert into t values (1, 'p', null); insert into child values (1, 1, 'c')",
    );
    run(&mut client, &attach_sql(&fixture, "child", "{}", true));
    let tried = "select attempts > 7 from sync_copy where sqlstate = '23503'";
    await_until(LONG, "the copy to be tried", || {
        let mut superuser = fixture.left.superuser();
        query(&mut superuser, tried) == ["t"]
    });
    run(&mut holder, "commit");
    await_done(&fixture);
    assert_eq!(same(&fixture, "child"), ["1|1|c"]);
}

#[test]
fn other_tables_of_the_server_flow_on_and_the_copied_one_is_queued() {
    let fixture = fixture("others");
    create(&fixture, "t", "id int primary key, v text");
    create(&fixture, "other", "id int primary key, v text");
    fixture
        .left
        .exec("insert into t select i, 'a' from generate_series(1, 1000) i");
    fixture
        .left
        .exec(&attach_sql(&fixture, "other", r#"{"mode": "sync"}"#, false));
    fixture
        .left
        .exec(&attach_sql(&fixture, "t", r#"{"mode": "sync"}"#, false));
    // A transaction that has written the table keeps the copy from beginning.
    let mut holder = fixture.left.client();
    run(&mut holder, "begin; update t set v = 'held' where id = 1");
    let mut client = fixture.left.client();
    run(&mut client, "select copy_sync('t', 'dst', 'truncate')");
    await_until(LONG, "the copy to wait", || {
        state(&fixture).starts_with("starting")
    });
    let states = "select relation, state from sync_tables order by relation::text";
    assert_eq!(rows(&fixture.left, states), ["other|live", "t|copying"]);
    run(&mut client, "insert into other values (1, 'now')");
    run(&mut client, "update t set v = 'b' where id = 2");
    assert_eq!(table(&fixture.right, "other"), ["1|now"]);
    assert_eq!(query(&mut client, "select count(*) from other"), ["1"]);
    assert_eq!(
        rows(
            &fixture.left,
            "select status, waits_for < 0 from sync_err_rec"
        ),
        ["waiting|t"]
    );
    run(&mut holder, "commit");
    await_done(&fixture);
    assert_eq!(rows(&fixture.left, states), ["other|live", "t|live"]);
    assert_eq!(same(&fixture, "t").len(), 1000);
}

/// Of a table of which not all rows are sent, those that are.
#[test]
fn rows_that_the_condition_of_the_triggers_lets_pass_are_copied() {
    let fixture = fixture("condition");
    create(&fixture, "t", "id int primary key, region text, v text");
    fixture.left.exec(&format!(
        "insert into t select i, case when i % 2 = 0 then 'eu' else 'us' end, repeat('x', 300)
           from generate_series(1, 20000) i;
         create function is_ours(region text) returns boolean language plpgsql as
           $$ begin
                if (select rolsuper from pg_roles where rolname = current_user) then
                  raise 'called with more rights than the owner has';
                end if;
                return region = 'eu';
              end $$;
         create trigger \"00_sent\" after insert or update on t for each row
           when (is_ours(new.region)) execute function sync_dml('dst', '{0}', 't');
         create trigger \"00_gone\" after delete on t for each row
           execute function sync_dml('dst', '{0}', 't')",
        fixture.right.user
    ));
    let mut client = fixture.left.client();
    // A transaction that has written the table keeps the copy from beginning.
    let mut holder = fixture.left.client();
    run(&mut holder, "begin; update t set v = 'held' where id = 2");
    run(&mut client, "select copy_sync('t', 'dst')");
    await_until(LONG, "the copy to wait", || {
        state(&fixture).starts_with("starting")
    });
    run(
        &mut client,
        "update t set region = 'us', v = 'left' where id between 100 and 200",
    );
    run(
        &mut client,
        "update t set v = 'sent' where id between 150 and 160",
    );
    run(&mut holder, "commit");
    for from in [300, 5_000, 19_000] {
        run(
            &mut client,
            &format!(
                "update t set v = 'new' where id between {from} and {from} + 20;
                 update t set region = 'eu' where id between {from} + 30 and {from} + 40;
                 delete from t where id between {from} + 70 and {from} + 80"
            ),
        );
    }
    await_done(&fixture);
    let ours = "select * from t where region = 'eu' order by id";
    assert_eq!(rows(&fixture.right, ours), rows(&fixture.left, ours));
    let theirs = "select count(*) from t where region <> 'eu'";
    assert_eq!(rows(&fixture.right, theirs), ["0"]);
}

/// Values that go round among rows that others refer to, whose rows would be lost with them.
#[test]
fn unique_values_that_change_places_take_no_rows_of_others_with_them() {
    let fixture = fixture("circle");
    create(&fixture, "t", "id int primary key, v text, u int unique");
    create(
        &fixture,
        "child",
        "id int primary key, parent int references t on delete cascade",
    );
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t select i, 'a', i from generate_series(1, 100) i",
    );
    run(&mut client, &attach_sql(&fixture, "t", "{}", true));
    await_done(&fixture);
    fixture
        .right
        .exec("insert into child values (1, 1), (2, 2), (3, 3)");
    fixture
        .right
        .exec("alter table t add own text default 'own'");
    // Another copy, which finds the rows there and their values in another order.
    let mut holder = fixture.left.client();
    run(&mut holder, "begin; update t set v = 'held' where id = 50");
    run(&mut client, "select copy_sync('t', 'dst', 'merge')");
    await_until(LONG, "the copy to wait", || {
        state(&fixture).starts_with("starting")
    });
    run(
        &mut client,
        "begin; update t set u = null where id = 1; update t set u = 1 where id = 3;
         update t set u = 3 where id = 2; update t set u = 2 where id = 1; commit",
    );
    run(&mut holder, "commit");
    await_done(&fixture);
    let u = "select id, v, u from t order by id";
    assert_eq!(rows(&fixture.right, u), rows(&fixture.left, u));
    assert_eq!(rows(&fixture.right, "select count(*) from child"), ["3"]);
    assert_eq!(
        rows(&fixture.right, "select count(*) from t where own is null"),
        ["0"]
    );
}

/// A child that is registered before its parents waits for them, however long they take.
#[test]
fn rows_whose_parents_come_with_a_later_copy_are_tried_until_they_are_there() {
    let fixture = fixture("later");
    create(&fixture, "p", "id int primary key");
    create(&fixture, "c", "id int primary key, p int references p");
    fixture
        .left
        .exec("insert into p values (1); insert into c values (1, 1)");
    let mut client = fixture.left.client();
    run(&mut client, &attach_sql(&fixture, "p", "{}", false));
    let mut holder = fixture.left.client();
    run(&mut holder, "begin; insert into p values (2)");
    run(&mut client, "select copy_sync('p', 'dst')");
    run(&mut client, &attach_sql(&fixture, "c", "{}", true));
    await_until(LONG, "many tries", || {
        rows(
            &fixture.left,
            "select attempts >= 8 from sync_copy order by id desc limit 1",
        ) == ["t"]
    });
    assert!(
        state(&fixture).starts_with("waiting|23503"),
        "{}",
        state(&fixture)
    );
    run(&mut holder, "commit");
    await_done(&fixture);
    same(&fixture, "c");
}

/// Rows that are written while their parents are still to come are not brought before these.
#[test]
fn children_that_are_written_before_a_merge_come_after_their_parents() {
    for options in [
        "{}",
        r#"{"on_conflict": "newest", "version_column": "ver"}"#,
    ] {
        let fixture = fixture("before");
        create(&fixture, "p", "id int primary key, ver int");
        create(
            &fixture,
            "c",
            "id int primary key, p int references p, ver int",
        );
        fixture
            .left
            .exec("insert into p select i, 1 from generate_series(1, 100) i");
        let mut client = fixture.left.client();
        run(&mut client, &attach_sql(&fixture, "p", options, false));
        run(&mut client, &attach_sql(&fixture, "c", options, false));
        let mut holder = fixture.left.client();
        run(&mut holder, "begin; update p set ver = 2 where id = 1");
        run(
            &mut client,
            "begin; select copy_sync('p', 'dst', 'merge'); select copy_sync('c', 'dst', 'merge'); commit",
        );
        await_until(LONG, "the copy to wait", || {
            state(&fixture).starts_with("starting")
        });
        run(&mut client, "insert into c values (1, 50, 1), (2, 60, 1)");
        run(&mut holder, "commit");
        await_done(&fixture);
        assert_eq!(same(&fixture, "c").len(), 2);
        assert_eq!(same(&fixture, "p").len(), 100);
    }
}

#[test]
fn who_listens_is_told_when_a_copy_ends_or_fails() {
    let fixture = fixture("told");
    create(&fixture, "t", "id int primary key, v text");
    fixture.left.exec("insert into t values (1, 'a')");
    fixture.right.exec("insert into t values (2, 'b')");
    let mut listener = fixture.left.client();
    run(&mut listener, "listen pg_rowsync");
    let mut next = |what: &str| {
        let mut reported = String::new();
        await_until(LONG, "a notification", || {
            run(&mut listener, "select 1");
            let arrived: Vec<_> = listener
                .notifications()
                .iter()
                .collect()
                .expect("notifications");
            let of_copies = |one: &&Notification| one.payload().contains("\"copy\"");
            if let Some(one) = arrived.iter().rfind(of_copies) {
                reported = one.payload().to_owned();
            }
            !reported.is_empty()
        });
        assert!(reported.contains(what), "{reported}");
    };
    fixture.left.exec(&attach_sql(&fixture, "t", "{}", true));
    next("\"state\" : \"failed\", \"sqlstate\" : \"55000\"");
    fixture
        .left
        .exec("select copy_sync('t', 'dst', 'truncate')");
    next("\"state\" : \"done\"");
}

#[test]
fn detaching_a_table_and_dropping_it_end_its_copy() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = fixture_on(shared(), clusters().1, "ended", proxy.port());
    proxy.refuse();
    for name in ["t", "u"] {
        create(&fixture, name, "id int primary key, v text");
        fixture.left.exec(&format!(
            "insert into {name} select i, 'a' from generate_series(1, 1000) i"
        ));
        fixture.left.exec(&attach_sql(&fixture, name, "{}", true));
        await_until(LONG, "the copy to be tried", || {
            state(&fixture).starts_with("waiting|08")
        });
        let mut client = fixture.left.client();
        refused(
            &mut client,
            &format!("select copy_sync('{name}', 'dst')"),
            "55006",
        );
    }
    fixture.left.exec("update t set v = 'b' where id = 1");
    fixture
        .left
        .exec("select detach_sync('t', 'dst'); drop table u");
    await_until(LONG, "the copies to end", || {
        rows(
            &fixture.left,
            "select state, sqlstate from sync_progress order by id",
        ) == ["cancelled|~", "failed|42P01"]
    });
    // What was captured before goes its way.
    proxy.accept().expect("the port");
    await_until(LONG, "the queue to be empty", || queued(&fixture) == 0);
    assert_eq!(table(&fixture.right, "t"), ["1|b"]);
}

#[test]
fn only_the_owner_copies_and_only_what_is_attached() {
    let fixture = fixture("owner");
    create(&fixture, "t", "id int primary key, v text");
    let mut client = fixture.left.client();
    run(&mut client, &attach_sql(&fixture, "t", "{}", false));
    fixture.left.exec_superuser(&format!(
        "create role {0}_x login; grant all on schema {0} to {0}_x; grant all on {0}.t to {0}_x",
        fixture.left.user
    ));
    let mut admin = fixture.left.superuser();
    run(&mut admin, &format!("set role {}_x", fixture.left.user));
    refused(
        &mut admin,
        &format!("select public.copy_sync('{}.t', 'dst')", fixture.left.user),
        "42501",
    );
    run(&mut admin, "reset role");
    run(
        &mut admin,
        &format!("drop owned by {0}_x; drop role {0}_x", fixture.left.user),
    );
}
