//! Copies: the rows that are there when a table is attached, brought over while it is written.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use rowsync_harness::cluster::{Cluster, Shutdown, TEST_SETTINGS};
use rowsync_harness::proxy::Proxy;
use rowsync_harness::side::Side;
use rowsync_harness::testbed::{Testbed, await_until, clusters};

use crate::common::{query, queued, refused, rows, run, same, table};
use crate::dice::Dice;

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
fn bed_on(left: &Arc<Cluster>, right: &Arc<Cluster>, label: &str, port: u16) -> Testbed {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let create = |cluster, prefix| {
        Side::create(cluster, &format!("{prefix}_{label}_c{number}")).expect("a database")
    };
    let bed = Testbed { left: create(left, "local"), right: create(right, "remote") };
    bed.left.link(&bed.right, port, "dst", &[]).expect("a server");
    bed
}

fn bed(label: &str) -> Testbed {
    bed_on(shared(), clusters().1, label, clusters().1.port())
}

/// A table on both sides.
fn create(bed: &Testbed, name: &str, columns: &str) {
    for side in [&bed.left, &bed.right] {
        side.exec(&format!("create table {name} ({columns})"));
    }
}

fn attach_sql(bed: &Testbed, name: &str, options: &str, copy: bool) -> String {
    let schema = &bed.right.user;
    format!(
        "select attach_sync('{name}', 'dst', '{schema}.{name}', '{options}', copy_data => {copy})"
    )
}

/// What became of the latest copy.
fn state(bed: &Testbed) -> String {
    let sql = "select state, sqlstate, message from sync_progress order by id desc limit 1";
    rows(&bed.left, sql).pop().unwrap_or_default()
}

#[track_caller]
fn await_done(bed: &Testbed) {
    let sql = "select count(*) from sync_progress where state <> 'done'";
    let end = std::time::Instant::now() + LONG;
    while rows(&bed.left, sql) != ["0"] {
        assert!(std::time::Instant::now() < end, "not done: {}", state(bed));
        assert!(!state(bed).starts_with("failed"), "{}", state(bed));
        thread::sleep(Duration::from_millis(20));
    }
    await_until(LONG, "the queue to be empty", || queued(bed) == 0);
}

fn await_failed(bed: &Testbed) -> String {
    await_until(LONG, "the copy to fail", || state(bed).starts_with("failed"));
    state(bed)
}

#[test]
fn rows_that_are_there_are_brought_when_a_table_is_attached() {
    let bed = bed("there");
    create(&bed, "t", "a int, b text, c numeric(9,2), d timestamptz, e text[], primary key (b, a)");
    bed.left.exec(
        "insert into t select i, 'k' || i % 7, i / 3.0, '2026-01-01'::timestamptz + i * interval '1 s',
             array[i::text, E'tab\\t\\\\ \\n', null] from generate_series(1, 5000) i",
    );
    bed.left.exec(&attach_sql(&bed, "t", "{}", true));
    bed.left.exec("update t set c = -1 where a % 10 = 0; delete from t where a % 10 = 1");
    await_done(&bed);
    assert_eq!(same(&bed, "t").len(), 4500);
    let told =
        "select command, relation::text ~ 't$', server, state, rows_done >= 4500, bytes_done > 0,
                    ended_at is not null, workers from sync_progress";
    assert_eq!(rows(&bed.left, told), ["copy|t|dst|done|t|t|t|0"]);
    // From then on it is sent as always.
    bed.left.exec("insert into t values (0, 'new', 1, now(), null)");
    assert_eq!(same(&bed, "t").len(), 4501);
}

#[test]
fn the_tables_of_a_schema_are_copied_as_they_are_attached() {
    let bed = bed("schema");
    create(&bed, "p", "id int primary key, v text");
    create(&bed, "c", "id int primary key, p int references p");
    create(&bed, "nokey", "v text");
    bed.left.exec("insert into p select i, 'p' from generate_series(1, 200) i");
    bed.left.exec("insert into c select i, 1 + i % 200 from generate_series(1, 500) i");
    let attach = format!(
        "select rel::text, attached from attach_sync_schema('{}', 'dst', '{}', copy_data => true)",
        bed.left.user, bed.right.user
    );
    assert_eq!(query(&mut bed.left.client(), &attach), ["c|t", "nokey|f", "p|t"]);
    let arrived = "select wait_sync('dst', timeout => '2 min')";
    assert_eq!(query(&mut bed.left.client(), arrived), ["t"]);
    assert_eq!((same(&bed, "p").len(), same(&bed, "c").len()), (200, 500));
}

#[test]
fn what_becomes_of_rows_that_the_target_has_is_said() {
    let bed = bed("existing");
    create(&bed, "t", "id int primary key, v text");
    bed.left.exec("insert into t select i, 'left' from generate_series(1, 100) i");
    bed.right.exec("insert into t values (1, 'right'), (1000, 'right')");
    let mut client = bed.left.client();
    refused(&mut client, "select copy_sync('t', 'dst')", "42704");
    run(&mut client, &attach_sql(&bed, "t", "{}", false));
    refused(&mut client, "select copy_sync('t', 'dst', 'all')", "22023");
    run(&mut client, "select copy_sync('t', 'dst')");
    assert!(
        await_failed(&bed).starts_with("failed|55000|table \"t\" of server \"dst\" is not empty")
    );
    let arrived = "select wait_sync(timeout => '300 ms')";
    assert_eq!(query(&mut bed.left.client(), arrived), ["f"], "a copy that has failed");
    // What is written goes on waiting behind it.
    run(&mut client, "insert into t values (200, 'later')");
    assert_eq!(queued(&bed), 1);
    run(&mut client, "select copy_sync('t', 'dst', existing => 'merge')");
    await_done(&bed);
    assert_eq!(table(&bed.right, "t").len(), 102);
    assert_eq!(
        rows(&bed.right, "select v from t where id in (1, 1000) order by id"),
        ["left", "right"]
    );
    run(&mut client, "select copy_sync('t', 'dst', existing => 'truncate')");
    await_done(&bed);
    assert_eq!(same(&bed, "t").len(), 101);
}

#[test]
fn merging_leaves_what_the_policy_leaves() {
    let bed = bed("policies");
    for policy in ["skip", "newest"] {
        create(&bed, policy, "id int primary key, v text, n int");
        bed.left.exec(&format!(
            "insert into {policy} values (1, 'left', 1), (2, 'left', 5), (3, 'left', 1)"
        ));
        bed.right.exec(&format!("insert into {policy} values (1, 'right', 2), (2, 'right', 2)"));
        let version = if policy == "newest" { r#", "version_column": "n""# } else { "" };
        let options = format!(r#"{{"on_conflict": "{policy}"{version}}}"#);
        let mut client = bed.left.client();
        run(&mut client, &attach_sql(&bed, policy, &options, false));
        run(&mut client, &format!("select copy_sync('{policy}', 'dst', 'merge')"));
        await_done(&bed);
    }
    assert_eq!(table(&bed.right, "skip"), ["1|right|2", "2|right|2", "3|left|1"]);
    assert_eq!(table(&bed.right, "newest"), ["1|right|2", "2|left|5", "3|left|1"]);
}

/// Eight clients that insert, update, delete, move keys, pass a unique value on, write parents with their
/// children, and now and then roll back or empty the table, until they are told to stop.
fn write(
    side: &Side,
    stop: &Arc<AtomicBool>,
    truncates: bool,
    seed: u64,
) -> Vec<thread::JoinHandle<u64>> {
    (0..8u64)
        .map(|number| {
            let (side, stop) = (side.clone(), stop.clone());
            thread::spawn(move || {
                let mut dice = Dice::new(seed * 100 + number);
                let mut client = side.client();
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    // They are to meet the copy, not to keep the machine busy.
                    thread::sleep(Duration::from_millis(3));
                    let mut one = || dice.roll(3000) as i64 + 1;
                    let (a, b, c) = (one(), one(), one());
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
fn family(bed: &Testbed, rows: u32) {
    create(bed, "t", PARENT);
    create(bed, "child", CHILD);
    bed.left.exec(&format!(
        "insert into t select i, repeat('x', 300), case when i % 3 = 0 then i end from generate_series(1, {rows}) i;
         insert into child select i, i, 'c' from generate_series(1, {rows}, 5) i; analyze"
    ));
}

/// Both tables are copied while they are written; `trouble` happens meanwhile.
fn copied_while_written(
    bed: &Testbed,
    options: &str,
    truncates: bool,
    seed: u64,
    trouble: impl FnOnce(),
) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut client = bed.left.client();
    let (t, child) = (attach_sql(bed, "t", options, true), attach_sql(bed, "child", options, true));
    let writers = write(&bed.left, &stop, truncates, seed);
    thread::sleep(Duration::from_millis(200));
    // They wait for the writers under way, who may be waiting for each other.
    while client.batch_execute(&format!("begin; {child}; {t}; commit")).is_err() {
        let _ = client.batch_execute("rollback");
    }
    trouble();
    let sql = "select count(*) from sync_progress where state <> 'done'";
    let end = std::time::Instant::now() + LONG;
    while rows(&bed.left, sql) != ["0"] && std::time::Instant::now() < end {
        thread::sleep(Duration::from_millis(50));
    }
    let told = state(bed);
    thread::sleep(Duration::from_millis(300));
    stop.store(true, Ordering::Relaxed);
    let done: u64 = writers.into_iter().map(|one| one.join().expect("a writer")).sum();
    assert!(told.starts_with("done"), "seed {seed}: {told}");
    assert!(done > 50, "{done}");
    await_until(LONG, "the queue to be empty", || queued(bed) == 0);
    same(bed, "t");
    same(bed, "child");
}

#[test]
fn a_table_that_eight_clients_write_is_equal_in_the_end_in_every_mode() {
    for (seed, mode) in ["async", "sync", "queue"].into_iter().enumerate() {
        let bed = bed(&format!("written_{mode}"));
        family(&bed, 30_000);
        copied_while_written(&bed, &format!(r#"{{"mode": "{mode}"}}"#), false, seed as u64, || ());
        assert_eq!(rows(&bed.left, "select count(*) from sync_err_rec"), ["0"]);
    }
}

#[test]
fn a_table_that_is_emptied_during_its_copy_is_equal_in_the_end() {
    let bed = bed("emptied");
    family(&bed, 30_000);
    copied_while_written(&bed, "{}", true, 7, || ());
}

#[test]
fn connections_that_are_cut_lead_to_no_wrong_end() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let bed = bed_on(shared(), clusters().1, "cut", proxy.port());
    family(&bed, 30_000);
    copied_while_written(&bed, "{}", false, 11, || {
        for wait in [100, 150, 250, 400, 90] {
            thread::sleep(Duration::from_millis(wait));
            proxy.cut();
        }
    });
}

#[test]
fn copiers_that_are_ended_and_a_target_that_crashes_lead_to_no_wrong_end() {
    let (left, right) =
        (preloaded("source"), Arc::new(Cluster::start("target").expect("a cluster")));
    let bed = bed_on(&left, &right, "crash", right.port());
    family(&bed, 30_000);
    copied_while_written(&bed, "{}", false, 13, || {
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                    where backend_type = 'pg_rowsync copier'";
        for _ in 0..4 {
            thread::sleep(Duration::from_millis(150));
            rows(&bed.left, end);
        }
        right.stop(Shutdown::Immediate).expect("a crash");
        right.start_again().expect("a start");
    });
}

#[test]
fn a_source_that_crashes_goes_on_with_its_copies() {
    let left = preloaded("crashing");
    let bed = bed_on(&left, clusters().1, "source", clusters().1.port());
    family(&bed, 30_000);
    copied_while_written(&bed, "{}", false, 17, || {
        for _ in 0..2 {
            thread::sleep(Duration::from_millis(500));
            left.stop(Shutdown::Immediate).expect("a crash");
            left.start_again().expect("a start");
        }
    });
}

#[test]
fn other_tables_of_the_server_flow_on_and_the_copied_one_is_queued() {
    let bed = bed("others");
    create(&bed, "t", "id int primary key, v text");
    create(&bed, "other", "id int primary key, v text");
    bed.left.exec("insert into t select i, 'a' from generate_series(1, 1000) i");
    bed.left.exec(&attach_sql(&bed, "other", r#"{"mode": "sync"}"#, false));
    bed.left.exec(&attach_sql(&bed, "t", r#"{"mode": "sync"}"#, false));
    // A transaction that has written the table keeps the copy from beginning.
    let mut holder = bed.left.client();
    run(&mut holder, "begin; update t set v = 'held' where id = 1");
    let mut client = bed.left.client();
    run(&mut client, "select copy_sync('t', 'dst', 'truncate')");
    await_until(LONG, "the copy to wait", || state(&bed).starts_with("starting"));
    run(&mut client, "insert into other values (1, 'now')");
    run(&mut client, "update t set v = 'b' where id = 2");
    assert_eq!(table(&bed.right, "other"), ["1|now"]);
    assert_eq!(query(&mut client, "select count(*) from other"), ["1"]);
    assert_eq!(rows(&bed.left, "select status, waits_for < 0 from sync_err_rec"), ["waiting|t"]);
    run(&mut holder, "commit");
    await_done(&bed);
    assert_eq!(same(&bed, "t").len(), 1000);
}

#[test]
fn detaching_a_table_and_dropping_it_end_its_copy() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let bed = bed_on(shared(), clusters().1, "ended", proxy.port());
    proxy.refuse();
    for name in ["t", "u"] {
        create(&bed, name, "id int primary key, v text");
        bed.left.exec(&format!("insert into {name} select i, 'a' from generate_series(1, 1000) i"));
        bed.left.exec(&attach_sql(&bed, name, "{}", true));
        await_until(LONG, "the copy to be tried", || state(&bed).starts_with("waiting|08"));
        let mut client = bed.left.client();
        refused(&mut client, &format!("select copy_sync('{name}', 'dst')"), "55006");
    }
    bed.left.exec("update t set v = 'b' where id = 1");
    bed.left.exec("select detach_sync('t', 'dst'); drop table u");
    await_until(LONG, "the copies to end", || {
        rows(&bed.left, "select state, sqlstate from sync_progress order by id")
            == ["cancelled|~", "failed|42P01"]
    });
    // What was captured before goes its way.
    proxy.accept().expect("the port");
    await_until(LONG, "the queue to be empty", || queued(&bed) == 0);
    assert_eq!(table(&bed.right, "t"), ["1|b"]);
}

#[test]
fn only_the_owner_copies_and_only_what_is_attached() {
    let bed = bed("owner");
    create(&bed, "t", "id int primary key, v text");
    let mut client = bed.left.client();
    run(&mut client, &attach_sql(&bed, "t", "{}", false));
    bed.left.exec_superuser(&format!(
        "create role {0}_x login; grant all on schema {0} to {0}_x; grant all on {0}.t to {0}_x",
        bed.left.user
    ));
    let mut admin = bed.left.superuser();
    run(&mut admin, &format!("set role {}_x", bed.left.user));
    refused(&mut admin, &format!("select public.copy_sync('{}.t', 'dst')", bed.left.user), "42501");
    run(&mut admin, "reset role");
    run(&mut admin, &format!("drop owned by {0}_x; drop role {0}_x", bed.left.user));
}
