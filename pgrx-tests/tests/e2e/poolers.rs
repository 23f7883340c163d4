//! A pooler between source and target: what a connection is, is found out and not believed.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use postgres::Client;
use rowsync_harness::proxy::Proxy;
use rowsync_harness::testbed::{Testbed, await_until};
use rowsync_harness::{IGNORE_OPTIONS, PoolMode, Pooler};

use crate::common::{both_have, deal, link_with, mirror, query, queued, rows, run, same, warnings};
use crate::one_way::SOON;

/// Both modes, with and without the line that makes PgBouncer bear `options`.
const WAYS: [(PoolMode, &[(&str, &str)]); 4] = [
    (PoolMode::Transaction, &[IGNORE_OPTIONS]),
    (PoolMode::Transaction, &[]),
    (PoolMode::Session, &[IGNORE_OPTIONS]),
    (PoolMode::Session, &[]),
];

/// A server `dst` on the left that leads through the pooler to the right.
fn pooled(label: &str, mode: PoolMode, settings: &[(&str, &str)]) -> (Testbed, Pooler) {
    let bed = Testbed::new(label);
    let pooler = Pooler::start(&[&bed.right], mode, settings).expect("a pooler");
    link_with(&bed, "dst", pooler.port(), &bed.right.password);
    (bed, pooler)
}

/// Connections of the left session through its pooler: what it knows of them.
fn is_pooled(client: &mut Client) -> Vec<String> {
    query(client, "select pooled from sync_connections()")
}

#[test]
fn sixteen_sessions_over_a_pool_of_two_write_what_they_say_where_they_say() {
    for (mode, settings) in WAYS {
        let settings =
            [settings, &[("default_pool_size", "2"), ("query_wait_timeout", "30")]].concat();
        let sessions = if mode == PoolMode::Session { 2 } else { 16 };
        let (bed, _pooler) = pooled("sixteen", mode, &settings);
        for table in ["x", "y"] {
            mirror(&bed, table, "id int primary key, v text", "{}");
        }
        let writers: Vec<_> = (0..sessions)
            .map(|number| {
                let mut client = bed.left.client();
                thread::spawn(move || {
                    let table = if number % 2 == 0 { "x" } else { "y" };
                    for row in 0..30 {
                        let id = number * 1_000 + row;
                        run(&mut client, &format!("insert into {table} values ({id}, '{table}')"));
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
            assert!(known.iter().all(|pooled| pooled == "t"), "{mode:?}: {known:?}");
        }
        await_until(SOON, "the queue to be empty", || queued(&bed) == 0 || deal(&bed, "1000"));
        for table in ["x", "y"] {
            let there = same(&bed, table);
            assert_eq!(there.len(), sessions * 15, "{mode:?}");
            assert!(there.iter().all(|row| row.ends_with(&format!("|{table}!"))), "{there:?}");
        }
    }
}

#[test]
fn what_a_role_or_database_there_says_does_not_change_what_is_written() {
    for (mode, settings) in WAYS {
        let (bed, _pooler) = pooled("settings", mode, settings);
        let (db, user) = (&bed.right.db, &bed.right.user);
        bed.right.exec_superuser(&format!(
            "alter role {user} set timezone = 'Asia/Tokyo';
             alter role {user} set datestyle = 'German';
             alter role {user} set default_transaction_isolation = 'serializable';
             alter role {user} set synchronous_commit = off;
             alter database {db} set extra_float_digits = -15"
        ));
        let columns = "id timestamptz primary key, f float8, d date, seen text";
        mirror(&bed, "t", columns, "{}");
        bed.right.exec(
            "create function seen() returns trigger language plpgsql as $$ begin
               new.seen := concat_ws(',', current_setting('synchronous_commit'),
                 current_setting('transaction_isolation'), current_setting('search_path'),
                 current_setting('timezone'), current_setting('application_name'),
                 current_setting('statement_timeout'), current_setting('row_security'));
               return new; end $$;
             create trigger seen before insert on t for each row execute function seen()",
        );
        bed.right
            .exec_superuser(&format!("alter database {db} set default_transaction_read_only = on"));
        let mut client = bed.left.client();
        for day in 1..=3 {
            run(
                &mut client,
                &format!(
                    "insert into t values ('2024-02-0{day} 12:00+00', 0.1::float8 + 0.2::float8, '2024-03-0{day}')"
                ),
            );
        }
        assert_eq!(
            queued(&bed),
            0,
            "{mode:?}: {:?}",
            rows(&bed.left, "select * from sync_err_rec")
        );
        let there = rows(
            &bed.right,
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
    let (bed, _pooler) = pooled("refused", PoolMode::Transaction, &[IGNORE_OPTIONS]);
    mirror(&bed, "t", "id int primary key", "{}");
    bed.left.exec("alter server dst options (add pooled 'off')");
    let (mut client, notices) = bed.left.client_with_notices();
    run(&mut client, "insert into t values (1)");
    let told = warnings(&notices);
    assert_eq!(told[0].code().code(), "08P01", "{told:?}");
    assert!(told[0].detail().is_some_and(|text| text.contains("pooler")), "{told:?}");
    assert_eq!(rows(&bed.right, "select * from t"), [""; 0]);
    assert!(!deal(&bed, "10"));
    assert_eq!(rows(&bed.left, "select status from sync_err_rec"), ["pending"]);
    // In mode sync the statement fails with the same.
    bed.left.exec("select detach_sync('t', 'dst'); alter table t rename to u");
    bed.right.exec("alter table t rename to u");
    bed.left.exec(&format!(
        "select attach_sync('u', 'dst', '{}.u', '{{\"mode\": \"sync\"}}')",
        bed.right.user
    ));
    bed.left.exec_superuser("delete from sync_err_rec");
    crate::common::refused(&mut client, "insert into u values (2)", "08P01");
    // A direct connection is not.
    let port = bed.right.cluster.port();
    bed.left.exec(&format!("alter server dst options (set port '{port}')"));
    run(&mut client, "insert into u values (3)");
    run(&mut client, "insert into u values (4)");
    assert_eq!(rows(&bed.right, "select * from u order by 1"), ["3", "4"]);
    assert_eq!(is_pooled(&mut client), ["f"]);
}

#[test]
fn a_direct_connection_is_asked_once_and_then_sends_what_it_sent_before() {
    let bed = crate::common::one_way("direct", "id int primary key, v text", "{}");
    let mut client = bed.left.client();
    for id in 1..=3 {
        run(&mut client, &format!("insert into t values ({id}, 'x')"));
    }
    assert_eq!(is_pooled(&mut client), ["f"]);
    let last = query(&mut client, "select backend_pid from sync_connections()");
    let last: String =
        bed.right.query_one(&format!("select query from pg_stat_activity where pid = {}", last[0]));
    assert!(last.starts_with("INSERT INTO"), "{last}");
    both_have(&bed, "t", &["1|x", "2|x", "3|x"]);
}

#[test]
fn a_transaction_takes_as_many_round_trips_behind_a_pooler() {
    const DELAY: Duration = Duration::from_millis(50);
    let bed = Testbed::new("pooltrips");
    let pooler =
        Pooler::start(&[&bed.right], PoolMode::Transaction, &[IGNORE_OPTIONS]).expect("a pooler");
    let proxy = Proxy::start(pooler.port()).expect("a proxy");
    link_with(&bed, "dst", proxy.port(), &bed.right.password);
    mirror(&bed, "t", "id int primary key, v text", "{}");
    let mut client = bed.left.client();
    run(&mut client, "insert into t select g, 'x' from generate_series(1, 3000) g");
    for sql in ["update t set v = v || 'y' where id = 1", "update t set v = v || 'y'"] {
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
        assert!(far > 2 * DELAY && cost < 4 * DELAY - DELAY / 2, "{sql}: {near:?}, {far:?}");
    }
    proxy.set_delay(Duration::ZERO);
    assert_eq!(is_pooled(&mut client), ["t"]);
    same(&bed, "t");
}

/// The process of the right side that last wrote over the pooler, while it is idle.
fn serving(bed: &Testbed) -> i32 {
    bed.right.query_one(&format!(
        "select pid from pg_stat_activity where usename = '{}' order by state_change desc limit 1",
        bed.right.user
    ))
}

#[test]
fn a_transaction_that_a_frozen_process_holds_never_commits_late() {
    for (mode, settings) in WAYS {
        let settings = [settings, &[("default_pool_size", "3")]].concat();
        let (bed, _pooler) = pooled("latecommit", mode, &settings);
        mirror(&bed, "t", "id int primary key, v text", "{}");
        let mut client = bed.left.client();
        run(
            &mut client,
            "set pg_rowsync.delivery_timeout = '1s'; insert into t values (1, 'first')",
        );
        assert_eq!(queued(&bed), 0);
        let pid = serving(&bed);
        bed.right.cluster.signal_backend(pid, Signal::SIGSTOP).expect("a signal");
        run(&mut client, "update t set v = 'old' where id = 1");
        assert_eq!(rows(&bed.left, "select count(*) from sync_lost_session"), ["1"], "{mode:?}");
        run(&mut client, "update t set v = 'new' where id = 1");
        deal(&bed, "10");
        bed.right.cluster.signal_backend(pid, Signal::SIGCONT).expect("a signal");
        await_until(SOON, "the queue to drain", || deal(&bed, "10") && queued(&bed) == 0);
        both_have(&bed, "t", &["1|new"]);
        assert_eq!(rows(&bed.left, "select count(*) from sync_lost_session"), ["0"]);
        let serves =
            format!("select count(*) from pg_stat_activity where pid = {pid} and state <> 'idle'");
        await_until(SOON, "the frozen process to be done", || {
            bed.right.query_one::<i64>(&serves) == 0
        });
        both_have(&bed, "t", &["1|new"]);
    }
}

#[test]
fn masters_behind_poolers_know_each_others_changes() {
    for mode in [PoolMode::Transaction, PoolMode::Session] {
        let bed = Testbed::new("poolmasters");
        let [to_left, to_right] = [&bed.left, &bed.right]
            .map(|side| Pooler::start(&[side], mode, &[IGNORE_OPTIONS]).expect("a pooler"));
        link_with(&bed, "dst", to_right.port(), &bed.right.password);
        let back = Testbed { left: bed.right.clone(), right: bed.left.clone() };
        link_with(&back, "dst", to_left.port(), &bed.left.password);
        for side in [&bed.left, &bed.right] {
            side.exec("create table t (id int primary key, v text)");
        }
        crate::common::attach(&bed, "t", "{}");
        crate::common::attach(&back, "t", "{}");
        for side in [&bed.left, &bed.right] {
            let mut client = side.client();
            let base = if side.user == bed.left.user { 0 } else { 10 };
            for id in 1..=3 {
                run(&mut client, &format!("insert into t values ({}, 'x')", base + id));
            }
        }
        assert_eq!(bed.left.queued().expect("a queue") + bed.right.queued().expect("a queue"), 0);
        both_have(&bed, "t", &["1|x", "11|x", "12|x", "13|x", "2|x", "3|x"]);
        // Each row was written twice: where it comes from and at the other side, and no more.
        for side in [&bed.left, &bed.right] {
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
    let (bed, _pooler) = pooled("pooldrain", PoolMode::Transaction, &[]);
    mirror(&bed, "t", "id int primary key, v text", r#"{"mode": "queue"}"#);
    mirror(&bed, "u", "id int primary key, v text", r#"{"mode": "queue"}"#);
    bed.left
        .exec("insert into t select g, 'x' from generate_series(1, 7000) g; update t set v = 'y'");
    bed.left.exec("insert into u values (1, null); delete from t where id < 100");
    assert!(deal(&bed, "100000"));
    assert_eq!(queued(&bed), 0);
    assert_eq!(same(&bed, "t").len(), 6_901);
    both_have(&bed, "u", &["1|~"]);
}
