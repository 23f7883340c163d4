//! A pooler between source and target: what a connection is, is found out and not believed.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use postgres::Client;
use rowsync_harness::fixture::{Fixture, await_until};
use rowsync_harness::proxy::Proxy;
use rowsync_harness::{IGNORE_OPTIONS, PoolMode, Pooler};

use crate::support::common::{
    both_have, deal, link_with, mirror, query, queued, rows, run, same, warnings,
};
use crate::support::one_way::SOON;
use crate::support::preloaded::{EAGER, WORKING, preloaded};

/// Both modes, with and without the line that makes PgBouncer bear `options`.
const WAYS: [(PoolMode, &[(&str, &str)]); 4] = [
    (PoolMode::Transaction, &[IGNORE_OPTIONS]),
    (PoolMode::Transaction, &[]),
    (PoolMode::Session, &[IGNORE_OPTIONS]),
    (PoolMode::Session, &[]),
];

/// A server `dst` on the left that leads through the pooler to the right.
fn pooled(label: &str, mode: PoolMode, settings: &[(&str, &str)]) -> (Fixture, Pooler) {
    let fixture = Fixture::new(label);
    let pooler = Pooler::start(&[&fixture.right], mode, settings).expect("a pooler");
    link_with(&fixture, "dst", pooler.port(), &fixture.right.password);
    (fixture, pooler)
}

/// Connections of the left session through its pooler: what it knows of them.
fn is_pooled(client: &mut Client) -> Vec<String> {
    query(client, "select pooled from sync_connections()")
}

#[test]
fn sixteen_sessions_over_a_pool_of_two_write_what_they_say_where_they_say() {
    for (mode, settings) in WAYS {
        let settings = [
            settings,
            &[("default_pool_size", "2"), ("query_wait_timeout", "30")],
        ]
        .concat();
        let sessions = if mode == PoolMode::Session { 2 } else { 16 };
        let (fixture, _pooler) = pooled("sixteen", mode, &settings);
        for table in ["x", "y"] {
            mirror(&fixture, table, "id int primary key, v text", "{}");
        }
        let writers: Vec<_> = (0..sessions)
            .map(|number| {
                let mut client = fixture.left.client();
                thread::spawn(move || {
                    let table = if number % 2 == 0 { "x" } else { "y" };
                    for row in 0..30 {
                        let id = number * 1_000 + row;
                        run(
                            &mut client,
                            &format!("insert into {table} values ({id}, '{table}')"),
                        );
                        run(
                            &mut client,
                            &format!("update {table} set v = '{table}!' where id = {id}"),
                        );
                    }
                    is_pooled(&mut client)
                })
            })
            .collect();
        for writer in writers {
            let known = writer.join().expect("a writer");
            assert!(
                known.iter().all(|pooled| pooled == "t"),
                "{mode:?}: {known:?}"
            );
        }
        await_until(SOON, "the queue to be empty", || {
            queued(&fixture) == 0 || deal(&fixture, "1000")
        });
        for table in ["x", "y"] {
            let there = same(&fixture, table);
            assert_eq!(there.len(), sessions * 15, "{mode:?}");
            assert!(
                there.iter().all(|row| row.ends_with(&format!("|{table}!"))),
                "{there:?}"
            );
        }
    }
}

/// In session mode a pool serves as many sessions as it has connections, for as long as they stay: the others
/// wait in its line, as nobody is refused.
#[test]
fn sixteen_sessions_over_a_session_pool_of_two_leave_the_worker_a_connection() {
    let fixture = preloaded(
        "sixteenstay",
        &[
            EAGER,
            &[
                ("pg_rowsync.connect_timeout", "1s"),
                ("pg_rowsync.delivery_timeout", "1s"),
            ],
        ]
        .concat(),
    );
    let settings = [
        IGNORE_OPTIONS,
        ("default_pool_size", "2"),
        ("query_wait_timeout", "5"),
    ];
    let pooler = Pooler::start(&[&fixture.right], PoolMode::Session, &settings);
    let pooler = pooler.expect("a pooler");
    link_with(&fixture, "dst", pooler.port(), &fixture.right.password);
    mirror(&fixture, "x", "id int primary key, v text", "{}");
    let writers: Vec<_> = (0..16)
        .map(|number| {
            let mut client = fixture.left.client();
            thread::spawn(move || {
                for row in 0..5 {
                    let id = number * 1_000 + row;
                    run(&mut client, &format!("insert into x values ({id}, 'x')"));
                }
                client
            })
        })
        .collect();
    let clients: Vec<Client> = writers
        .into_iter()
        .map(|writer| writer.join().expect("a writer"))
        .collect();
    await_until(WORKING, "the queue to be empty while all stay", || {
        queued(&fixture) == 0
    });
    assert_eq!(same(&fixture, "x").len(), 80);
    drop(clients);
}

#[test]
fn what_a_role_or_database_there_says_does_not_change_what_is_written() {
    for (mode, settings) in WAYS {
        let (fixture, _pooler) = pooled("settings", mode, settings);
        let db = &fixture.right.db;
        let user = &fixture.right.user;
        fixture.right.exec_superuser(&format!(
            "alter role {user} set timezone = 'Asia/Tokyo';
             alter role {user} set datestyle = 'German';
             alter role {user} set default_transaction_isolation = 'serializable';
             alter role {user} set synchronous_commit = off;
             alter database {db} set extra_float_digits = -15"
        ));
        let columns = "id timestamptz primary key, f float8, d date, seen text";
        mirror(&fixture, "t", columns, "{}");
        fixture.right.exec(
            "create function seen() returns trigger language plpgsql as $$ begin
               new.seen := concat_ws(',', current_setting('synchronous_commit'),
                 current_setting('transaction_isolation'), current_setting('search_path'),
                 current_setting('timezone'), current_setting('application_name'),
                 current_setting('statement_timeout'), current_setting('row_security'));
               return new; end $$;
             create trigger seen before insert on t for each row execute function seen()",
        );
        fixture.right.exec_superuser(&format!(
            "alter database {db} set default_transaction_read_only = on"
        ));
        let mut client = fixture.left.client();
        for day in 1..=3 {
            run(
                &mut client,
                &format!(
                    "insert into t values ('2024-02-0{day} 12:00+00', 0.1::float8 + 0.2::float8, '2024-03-0{day}')"
                ),
            );
        }
        assert_eq!(
            queued(&fixture),
            0,
            "{mode:?}: {:?}",
            rows(&fixture.left, "select * from sync_err_rec")
        );
        let there = rows(
            &fixture.right,
            "set timezone = 'UTC'; set extra_float_digits = 3; select * from t order by id",
        );
        assert_eq!(there.len(), 3);
        for (day, row) in there.iter().enumerate() {
            let day = day + 1;
            let expected = format!(
                "2024-02-0{day} 12:00:00+00|0.30000000000000004|2024-03-0{day}|on,read committed,pg_catalog,UTC,\
                 pg_rowsync,10s,off"
            );
            assert_eq!(*row, expected, "{mode:?}");
        }
    }
}

#[test]
fn where_a_pooler_is_not_wanted_it_is_refused_by_name() {
    let (fixture, _pooler) = pooled("refused", PoolMode::Transaction, &[IGNORE_OPTIONS]);
    mirror(&fixture, "t", "id int primary key", "{}");
    fixture
        .left
        .exec("alter server dst options (add pooled 'off')");
    let (mut client, notices) = fixture.left.client_with_notices();
    run(&mut client, "insert into t values (1)");
    let reported = warnings(&notices);
    assert_eq!(reported[0].code().code(), "08P01", "{reported:?}");
    assert!(
        reported[0]
            .detail()
            .is_some_and(|text| text.contains("pooler")),
        "{reported:?}"
    );
    assert_eq!(rows(&fixture.right, "select * from t"), [""; 0]);
    assert!(!deal(&fixture, "10"));
    assert_eq!(
        rows(&fixture.left, "select status from sync_err_rec"),
        ["pending"]
    );
    // In mode sync the statement fails with the same.
    fixture
        .left
        .exec("select detach_sync('t', 'dst'); alter table t rename to u");
    fixture.right.exec("alter table t rename to u");
    fixture.left.exec(&format!(
        "select attach_sync('u', 'dst', '{}.u', '{{\"mode\": \"sync\"}}')",
        fixture.right.user
    ));
    fixture.left.exec_superuser("delete from sync_err_rec");
    crate::support::common::refused(&mut client, "insert into u values (2)", "08P01");
    // A direct connection is not.
    let port = fixture.right.cluster.port();
    fixture
        .left
        .exec(&format!("alter server dst options (set port '{port}')"));
    run(&mut client, "insert into u values (3)");
    run(&mut client, "insert into u values (4)");
    assert_eq!(
        rows(&fixture.right, "select * from u order by 1"),
        ["3", "4"]
    );
    assert_eq!(is_pooled(&mut client), ["f"]);
}

#[test]
fn a_direct_connection_is_asked_once_and_then_sends_what_it_sent_before() {
    let fixture = crate::support::common::one_way("direct", "id int primary key, v text", "{}");
    let mut client = fixture.left.client();
    for id in 1..=3 {
        run(&mut client, &format!("insert into t values ({id}, 'x')"));
    }
    assert_eq!(is_pooled(&mut client), ["f"]);
    let last = query(&mut client, "select backend_pid from sync_connections()");
    let last: String = fixture.right.query_one(&format!(
        "select query from pg_stat_activity where pid = {}",
        last[0]
    ));
    assert!(last.starts_with("INSERT INTO"), "{last}");
    both_have(&fixture, "t", &["1|x", "2|x", "3|x"]);
}

#[test]
fn a_transaction_takes_as_many_round_trips_behind_a_pooler() {
    const DELAY: Duration = Duration::from_millis(50);
    let fixture = Fixture::new("pooltrips");
    let pooler = Pooler::start(&[&fixture.right], PoolMode::Transaction, &[IGNORE_OPTIONS])
        .expect("a pooler");
    let proxy = Proxy::start(pooler.port()).expect("a proxy");
    link_with(&fixture, "dst", proxy.port(), &fixture.right.password);
    mirror(&fixture, "t", "id int primary key, v text", "{}");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t select g, 'x' from generate_series(1, 3000) g",
    );
    for sql in [
        "update t set v = v || 'y' where id = 1",
        "update t set v = v || 'y'",
    ] {
        let shortest = |client: &mut Client| {
            let once = |client: &mut Client| {
                let start = Instant::now();
                run(client, sql);
                start.elapsed()
            };
            (0..5).map(|_| once(client)).min().expect("runs")
        };
        proxy.set_delay(Duration::ZERO);
        let near = shortest(&mut client);
        proxy.set_delay(DELAY);
        let far = shortest(&mut client);
        let cost = far.saturating_sub(near);
        assert!(
            far > 2 * DELAY && cost < 4 * DELAY - DELAY / 2,
            "{sql}: {near:?}, {far:?}"
        );
    }
    proxy.set_delay(Duration::ZERO);
    assert_eq!(is_pooled(&mut client), ["t"]);
    same(&fixture, "t");
}

/// The process of the right side that last wrote over the pooler, while it is idle.
fn serving(fixture: &Fixture) -> i32 {
    fixture.right.query_one(&format!(
        "select pid from pg_stat_activity where usename = '{}' order by state_change desc limit 1",
        fixture.right.user
    ))
}

#[test]
fn a_transaction_that_a_frozen_process_holds_never_commits_late() {
    for (mode, settings) in WAYS {
        let settings = [settings, &[("default_pool_size", "3")]].concat();
        let (fixture, _pooler) = pooled("latecommit", mode, &settings);
        mirror(&fixture, "t", "id int primary key, v text", "{}");
        let mut client = fixture.left.client();
        run(
            &mut client,
            "set pg_rowsync.delivery_timeout = '1s'; insert into t values (1, 'first')",
        );
        assert_eq!(queued(&fixture), 0);
        let pid = serving(&fixture);
        fixture
            .right
            .cluster
            .signal_backend(pid, Signal::SIGSTOP)
            .expect("a signal");
        run(&mut client, "update t set v = 'old' where id = 1");
        assert_eq!(
            rows(&fixture.left, "select count(*) from sync_lost_session"),
            ["1"],
            "{mode:?}"
        );
        run(&mut client, "update t set v = 'new' where id = 1");
        deal(&fixture, "10");
        fixture
            .right
            .cluster
            .signal_backend(pid, Signal::SIGCONT)
            .expect("a signal");
        await_until(SOON, "the queue to drain", || {
            deal(&fixture, "10") && queued(&fixture) == 0
        });
        both_have(&fixture, "t", &["1|new"]);
        assert_eq!(
            rows(&fixture.left, "select count(*) from sync_lost_session"),
            ["0"]
        );
        let serves =
            format!("select count(*) from pg_stat_activity where pid = {pid} and state <> 'idle'");
        await_until(SOON, "the frozen process to be done", || {
            fixture.right.query_one::<i64>(&serves) == 0
        });
        both_have(&fixture, "t", &["1|new"]);
    }
}

#[test]
fn masters_behind_poolers_know_each_others_changes() {
    for mode in [PoolMode::Transaction, PoolMode::Session] {
        let fixture = Fixture::new("poolmasters");
        let [to_left, to_right] = [&fixture.left, &fixture.right]
            .map(|side| Pooler::start(&[side], mode, &[IGNORE_OPTIONS]).expect("a pooler"));
        link_with(&fixture, "dst", to_right.port(), &fixture.right.password);
        let back = Fixture {
            left: fixture.right.clone(),
            right: fixture.left.clone(),
        };
        link_with(&back, "dst", to_left.port(), &fixture.left.password);
        for side in [&fixture.left, &fixture.right] {
            side.exec("create table t (id int primary key, v text)");
        }
        crate::support::common::attach(&fixture, "t", "{}");
        crate::support::common::attach(&back, "t", "{}");
        for side in [&fixture.left, &fixture.right] {
            let mut client = side.client();
            let base = if side.user == fixture.left.user {
                0
            } else {
                10
            };
            for id in 1..=3 {
                run(
                    &mut client,
                    &format!("insert into t values ({}, 'x')", base + id),
                );
            }
        }
        assert_eq!(
            fixture.left.queued().expect("a queue") + fixture.right.queued().expect("a queue"),
            0
        );
        both_have(
            &fixture,
            "t",
            &["1|x", "11|x", "12|x", "13|x", "2|x", "3|x"],
        );
        // Each row was written twice: where it comes from and at the other side, and no more.
        for side in [&fixture.left, &fixture.right] {
            let written = side.query_one::<i64>(
                "select n_tup_ins + n_tup_upd from pg_stat_all_tables where relname = 't'",
            );
            assert!(written <= 6, "{written} writes");
        }
        std::mem::forget(back);
    }
}

#[test]
fn a_large_drain_goes_through_a_pooler() {
    let (fixture, _pooler) = pooled("pooldrain", PoolMode::Transaction, &[]);
    mirror(
        &fixture,
        "t",
        "id int primary key, v text",
        r#"{"mode": "queue"}"#,
    );
    mirror(
        &fixture,
        "u",
        "id int primary key, v text",
        r#"{"mode": "queue"}"#,
    );
    fixture
        .left
        .exec("insert into t select g, 'x' from generate_series(1, 7000) g; update t set v = 'y'");
    fixture
        .left
        .exec("insert into u values (1, null); delete from t where id < 100");
    assert!(deal(&fixture, "100000"));
    assert_eq!(queued(&fixture), 0);
    assert_eq!(same(&fixture, "t").len(), 6_901);
    both_have(&fixture, "u", &["1|~"]);
}
