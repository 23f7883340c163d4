//! A change over which the server ends the session that applies it, or itself, whenever it is tried: it is
//! found, told by its record, and the others do not wait for it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rowsync_harness::cluster::TEST_SETTINGS;
use rowsync_harness::fixture::clusters;
use rowsync_harness::{Cluster, Fixture, Side, await_until};

use crate::support::common::{deal, mirror, queued, rows, run, same, table};

/// The worker tries a few times before it takes the record for the one to blame.
const MAX_WAIT: Duration = Duration::from_secs(60);
const SETTINGS: &[(&str, &str)] = &[
    ("shared_preload_libraries", "pg_rowsync"),
    ("pg_rowsync.retry_interval", "100ms"),
    ("pg_rowsync.max_retry_interval", "1s"),
];
/// Calls after which a record must have been found: some take the oldest records together, some take fewer.
const CALLS: usize = 12;

/// How a server ends a session that applies a value which is not to be.
const END_OF_SESSION: &str =
    "perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(10);";
/// The whole server starts again: nobody hears a last word.
const CRASH: &str = "copy (select 1) to program 'kill -9 $PPID';";

/// The left cluster, on which a worker drains each database.
fn left() -> &'static Arc<Cluster> {
    static CLUSTER: OnceLock<Arc<Cluster>> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let settings = [TEST_SETTINGS, SETTINGS].concat();
        Arc::new(Cluster::start_with("ended", &settings).expect("a cluster"))
    })
}

/// Tables `t` and `u` on both sides. On the right, values of `t` that are in `enders`, or all of them where a
/// `*` is there, end the session so.
fn fixture(label: &str, left: &Arc<Cluster>, right: &Arc<Cluster>, how: &str) -> Fixture {
    let create = |cluster, prefix| {
        Side::create(cluster, &format!("{prefix}_{label}_ended")).expect("a database")
    };
    let fixture = Fixture {
        left: create(left, "local"),
        right: create(right, "remote"),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    for name in ["t", "u"] {
        mirror(&fixture, name, "id int primary key, v text", "{}");
    }
    let schema = &fixture.right.user;
    fixture
        .right
        .exec("create table enders (v text primary key)");
    fixture.right.exec_superuser(&format!(
        "create function {schema}.end_session() returns trigger language plpgsql security definer as $$
         begin
           if exists (select from {schema}.enders e where e.v in (new.v, '*')) then
             {how}
           end if;
           return new;
         end $$;
         create trigger ends before insert or update on {schema}.t
           for each row execute function {schema}.end_session()"
    ));
    fixture
}

fn bar(fixture: &Fixture, value: &str) {
    fixture
        .right
        .exec(&format!("insert into enders values ('{value}')"));
}

/// The rows of a right table; none while the server starts again.
fn there(fixture: &Fixture, name: &str) -> Vec<String> {
    let Side { user, .. } = &fixture.right;
    let sql = format!("select id || '|' || v from {user}.{name} order by id");
    let found = fixture
        .right
        .connect_superuser()
        .and_then(|mut client| client.query(&sql, &[]));
    let rows = found.unwrap_or_default();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Every value is taken from now on.
fn lift(fixture: &Fixture) {
    await_until(MAX_WAIT, "the bar to be lifted", || {
        let client = fixture.right.connect();
        client.is_ok_and(|mut client| client.batch_execute("delete from enders").is_ok())
    });
}

const STATUS: &str = "select failed, waiting, pending from sync_status";
const BLAMED: &str = "select table_name, sqlstate from sync_err_rec where status = 'failed'";

/// The worker drains around one row of `t`, which stays there until the bar is lifted.
fn the_worker_drains_around_it(fixture: &Fixture) {
    bar(fixture, "ends");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t values (1, 'a'), (2, 'ends'), (3, 'c')",
    );
    run(
        &mut client,
        "insert into u select n, 'x' from generate_series(1, 5) n",
    );
    run(&mut client, "update t set v = 'later' where id = 2");
    await_until(MAX_WAIT, "the other rows and tables", || {
        there(fixture, "u").len() == 5 && there(fixture, "t") == ["1|a", "3|c"]
    });
    await_until(
        MAX_WAIT,
        "the record to be blamed and what depends on it to wait",
        || rows(&fixture.left, STATUS) == ["1|1|0"],
    );
    assert_eq!(rows(&fixture.left, BLAMED), ["t|08006"]);
    let row = "select dst_query like '%''ends''%' from sync_err_rec where status = 'failed'";
    assert_eq!(rows(&fixture.left, row), ["t"]);
}

#[test]
fn a_record_over_which_sessions_end_stops_no_other() {
    let fixture = fixture("worker", left(), clusters().1, END_OF_SESSION);
    the_worker_drains_around_it(&fixture);
    // Directly, while it goes on being tried.
    let mut client = fixture.left.client();
    for id in 11..=30 {
        run(
            &mut client,
            &format!("insert into u values ({id}, 'direct')"),
        );
    }
    await_until(MAX_WAIT, "all of them", || {
        table(&fixture.right, "u").len() == 25
    });
    lift(&fixture);
    await_until(MAX_WAIT, "the record to arrive by itself", || {
        queued(&fixture) == 0
    });
    assert_eq!(same(&fixture, "t"), ["1|a", "2|later", "3|c"]);
}

/// Each call is made by a session of its own, which knows nothing of those before.
#[test]
fn calls_find_a_record_over_which_sessions_end() {
    let fixture = fixture("calls", clusters().0, clusters().1, END_OF_SESSION);
    bar(&fixture, "ends");
    fixture.left.exec(
        "insert into t select n, case n when 40 then 'ends' else 'x' end from generate_series(1, 100) n",
    );
    fixture.left.exec("insert into u values (1, 'x')");
    let mut calls = 0;
    while rows(&fixture.left, BLAMED).is_empty() {
        assert!(calls < CALLS, "{:?}", rows(&fixture.left, STATUS));
        assert!(!deal(&fixture, "1000"));
        calls += 1;
    }
    assert_eq!(rows(&fixture.left, BLAMED), ["t|08006"]);
    // The same call has gone on with the rest; and so do those that try it again.
    assert_eq!(rows(&fixture.left, STATUS), ["1|0|0"]);
    assert_eq!(table(&fixture.right, "t").len(), 99);
    let mut client = fixture.left.client();
    crate::support::common::attach(&fixture, "u", r#"{"mode": "queue"}"#);
    run(&mut client, "insert into u values (2, 'x')");
    assert!(!deal(&fixture, "1000"));
    assert_eq!(table(&fixture.right, "u").len(), 2);
    fixture.left.exec("delete from u where id = 2");
    assert!(!deal(&fixture, "1000"));
    assert_eq!(table(&fixture.right, "u").len(), 1);
    lift(&fixture);
    assert!(deal(&fixture, "1000"));
    assert_eq!(queued(&fixture), 0);
    assert_eq!(same(&fixture, "t").len(), 100);
}

/// The second record of a table tells that it is the table.
#[test]
fn a_table_over_whose_rows_sessions_end_stops_no_other() {
    let fixture = fixture("table", left(), clusters().1, END_OF_SESSION);
    bar(&fixture, "*");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t select n, 'x' from generate_series(1, 200) n; insert into u values (1, 'x')",
    );
    run(&mut client, "insert into u values (2, 'x')");
    await_until(MAX_WAIT, "the other table", || {
        table(&fixture.right, "u").len() == 2
    });
    let mut before = Vec::new();
    await_until(MAX_WAIT, "all others of the table to wait", || {
        let status = rows(&fixture.left, STATUS);
        if status != before {
            println!("failed, waiting, pending: {status:?}");
        }
        before = status;
        before == ["2|198|0"]
    });
    run(&mut client, "insert into u values (3, 'direct')");
    await_until(MAX_WAIT, "what is written later", || {
        table(&fixture.right, "u").len() == 3
    });
    lift(&fixture);
    await_until(MAX_WAIT, "all of them to arrive by themselves", || {
        queued(&fixture) == 0
    });
    assert_eq!(same(&fixture, "t").len(), 200);
}

/// What becomes of a commit over which the server crashes is not known either: it is in doubt when it is tried
/// again.
#[test]
fn a_record_over_which_the_server_crashes_stops_no_other() {
    let own = Arc::new(Cluster::start("crashing").expect("a cluster"));
    let fixture = fixture("crash", left(), &own, CRASH);
    the_worker_drains_around_it(&fixture);
    lift(&fixture);
    await_until(MAX_WAIT, "the record to arrive by itself", || {
        queued(&fixture) == 0
    });
    assert_eq!(same(&fixture, "t"), ["1|a", "2|later", "3|c"]);
    same(&fixture, "u");
}
