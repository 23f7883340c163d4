//! Behind a pooler single rows travel in statements that all its sessions share. That must not be seen in
//! anything but the time it takes, whatever else the pool is used for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use postgres::{Client, NoTls};
use rowsync_harness::fixture::{self, Fixture, await_until};
use rowsync_harness::{Cluster, IGNORE_OPTIONS, PoolMode, Pooler, Side};

use crate::support::common::{
    deal, link_with, mirror, query, queued, rows, run, same, table, warnings,
};
use crate::support::one_way::SOON;

const MODES: [PoolMode; 2] = [PoolMode::Transaction, PoolMode::Session];

/// A server `dst` on the left that leads to the right over a pool of so many processes; a table `t`.
fn pooled(
    label: &str,
    mode: PoolMode,
    processes: &str,
    settings: &[(&str, &str)],
) -> (Fixture, Pooler) {
    over(Fixture::new(label), mode, processes, settings)
}

/// As `pooled`, of databases that are there.
fn over(
    fixture: Fixture,
    mode: PoolMode,
    processes: &str,
    settings: &[(&str, &str)],
) -> (Fixture, Pooler) {
    let own = [
        IGNORE_OPTIONS,
        ("default_pool_size", processes),
        ("query_wait_timeout", "30"),
    ];
    let pooler =
        Pooler::start(&[&fixture.right], mode, &[&own, settings].concat()).expect("a pooler");
    link_with(&fixture, "dst", pooler.port(), &fixture.right.password);
    mirror(&fixture, "t", "id int primary key, v text", "{}");
    (fixture, pooler)
}

/// Another client of the pool, with the same role.
fn other(fixture: &Fixture, pooler: &Pooler) -> Client {
    let mut config = postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(pooler.port())
        .dbname(&fixture.right.db);
    config
        .user(&fixture.right.user)
        .password(&fixture.right.password);
    config.connect(NoTls).expect("a session of the pool")
}

/// From now on the right side writes down, with each row, how often the process that writes it has executed
/// what is prepared there, and how much that is.
fn watch(fixture: &Fixture) {
    let user = &fixture.right.user;
    fixture.right.exec(&format!(
        "create table seen (at serial, pid int, statements bigint, executions bigint);
         create function look() returns trigger language plpgsql as $$ begin
           insert into seen (pid, statements, executions)
             select pg_backend_pid(), count(*), coalesce(sum(generic_plans + custom_plans), 0)
             from pg_prepared_statements;
           return null; end $$;
         create trigger look after insert or update or delete on t for each row
           execute function look();
         alter function look() set search_path = {user}, pg_catalog"
    ));
}

/// Rows that are written, changed and in part deleted; what is there in the end.
fn write(client: &mut Client, ids: impl Iterator<Item = u32>) {
    for id in ids {
        run(client, &format!("insert into t values ({id}, 'new')"));
        run(
            client,
            &format!("update t set v = 'changed {id}' where id = {id}"),
        );
        run(
            client,
            &format!("delete from t where id = {id} and id % 2 = 0"),
        );
    }
}

/// A statement that relies on the primary key is given up where the key is another one; the row is written by
/// name all the same.
#[test]
fn rows_are_updated_by_name_by_whatever_key() {
    for (label, change) in [
        ("primary", ""),
        (
            "unique",
            "alter table t drop constraint t_pkey, add unique (id)",
        ),
    ] {
        let (fixture, _pooler) = pooled(label, PoolMode::Transaction, "1", &[]);
        fixture.right.exec(&format!("select 1; {change}"));
        fixture.left.exec("insert into t values (1, 'a')");
        watch(&fixture);
        let mut client = fixture.left.client();
        for n in 0..20 {
            run(
                &mut client,
                &format!("update t set v = 'a{n}' where id = 1"),
            );
        }
        same(&fixture, "t");
        assert_eq!(queued(&fixture), 0, "{label}");
        let executed = "select executions - lag(executions) over (order by at) from seen order by at desc limit 3";
        let executed = rows(
            &fixture.right,
            &executed.replace("seen", &format!("{}.seen", fixture.right.user)),
        );
        // The introduction and the row.
        assert_eq!(executed, ["2", "2", "2"], "{label}");
        // One that is not there is written, too.
        fixture.right.exec("delete from t");
        run(&mut client, "update t set v = 'back' where id = 1");
        same(&fixture, "t");
    }
}

#[test]
fn what_one_session_has_prepared_all_sessions_of_the_pool_execute() {
    for mode in MODES {
        let (fixture, _pooler) = pooled("poolshared", mode, "1", &[]);
        watch(&fixture);
        for session in 0..3 {
            let (mut client, notices) = fixture.left.client_with_notices();
            write(&mut client, session * 20..session * 20 + 20);
            assert!(warnings(&notices).is_empty(), "{mode:?}");
            // In session mode the next one gets the process as a new one.
            drop(client);
        }
        let seen = rows(
            &fixture.right,
            "select count(distinct pid), max(statements), max(executions) from seen",
        );
        let seen: Vec<u32> = seen[0]
            .split('|')
            .map(|n| n.parse().expect("a number"))
            .collect();
        // Three kinds of rows, and the statement that introduces a transaction.
        assert_eq!(seen[1], 4, "{mode:?}: {seen:?}");
        assert!(
            mode == PoolMode::Session || seen[0] == 1,
            "{mode:?}: {seen:?}"
        );
        assert!(seen[2] > 60, "{mode:?}: {seen:?}");
        assert_eq!((same(&fixture, "t").len(), queued(&fixture)), (30, 0));
    }
}

#[test]
fn what_others_discard_and_prepare_in_the_pool_is_never_noticed() {
    for mode in MODES {
        let (fixture, pooler) = pooled("poolothers", mode, "3", &[]);
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let meddler = scope.spawn(|| {
                let mut client = other(&fixture, &pooler);
                let mut rounds = 0;
                while !is_over.load(Ordering::Relaxed) {
                    for sql in ["discard all", "deallocate all", "select pg_sleep(0.02)"] {
                        run(&mut client, sql);
                    }
                    // Whatever it is called there.
                    let names = "select name from pg_prepared_statements where name ~ 'rowsync'";
                    run(&mut client, "begin");
                    for name in query(&mut client, names) {
                        run(&mut client, &format!("deallocate \"{name}\""));
                    }
                    run(
                        &mut client,
                        "commit; deallocate all; prepare own as select 1",
                    );
                    run(
                        &mut client,
                        "set timezone = 'Asia/Tokyo'; set search_path = public",
                    );
                    rounds += 1;
                }
                rounds
            });
            let sessions = if mode == PoolMode::Session { 2 } else { 8 };
            let writers: Vec<_> = (0..sessions)
                .map(|number| {
                    let (mut client, notices) = fixture.left.client_with_notices();
                    scope.spawn(move || {
                        write(&mut client, number * 100..number * 100 + 40);
                        warnings(&notices)
                    })
                })
                .collect();
            for writer in writers {
                let said = writer.join().expect("a writer");
                assert!(said.is_empty(), "{mode:?}: {said:?}");
            }
            is_over.store(true, Ordering::Relaxed);
            assert!(meddler.join().expect("a meddler") > 0);
        });
        assert_eq!(queued(&fixture), 0);
        assert!(!same(&fixture, "t").is_empty());
    }
}

#[test]
fn a_pool_that_discards_after_each_transaction_costs_some_failures_and_no_more() {
    // A cluster whose log is about nothing else.
    let cluster = Arc::new(Cluster::start("pooldiscards").expect("a cluster"));
    let create = |cluster, name| Side::create(cluster, name).expect("a database");
    let fixture = Fixture {
        left: create(fixture::clusters().0, "local_pooldiscards"),
        right: create(&cluster, "remote_pooldiscards"),
    };
    let discards = [("server_reset_query_always", "1")];
    let (fixture, _pooler) = over(fixture, PoolMode::Transaction, "1", &discards);
    watch(&fixture);
    let (mut client, notices) = fixture.left.client_with_notices();
    write(&mut client, 0..100);
    assert!(warnings(&notices).is_empty());
    assert_eq!((same(&fixture, "t").len(), queued(&fixture)), (50, 0));
    let log = fixture.right.cluster.log();
    let missing = log
        .lines()
        .filter(|line| line.contains("prepared statement \"pg_rowsync_"));
    let missing = missing
        .filter(|line| line.contains("does not exist"))
        .count();
    assert!((1..=12).contains(&missing), "{missing}");
    // At the end nothing is prepared any more.
    let last = "select statements from seen order by at desc limit 20";
    assert!(
        rows(&fixture.right, last)
            .iter()
            .all(|statements| statements == "0")
    );
}

#[test]
fn a_name_under_which_somebody_has_prepared_something_else_is_not_used() {
    let (fixture, pooler) = pooled("poolwrong", PoolMode::Transaction, "1", &[]);
    write(&mut fixture.left.client(), 0..10);
    let mut other = other(&fixture, &pooler);
    let names = "select name from pg_prepared_statements where name ~ '^pg_rowsync_'";
    let names = query(&mut other, names);
    assert_eq!(names.len(), 4, "{names:?}");
    fixture
        .right
        .exec("create table elsewhere (id int primary key, v text)");
    let user = &fixture.right.user;
    for name in &names {
        run(
            &mut other,
            &format!(
                "deallocate \"{name}\";
                 prepare \"{name}\" (int, text) as insert into {user}.elsewhere values ($1, $2)"
            ),
        );
    }
    let (mut client, notices) = fixture.left.client_with_notices();
    write(&mut client, 20..40);
    assert!(warnings(&notices).is_empty());
    assert_eq!((same(&fixture, "t").len(), queued(&fixture)), (15, 0));
    assert_eq!(rows(&fixture.right, "select * from elsewhere"), [""; 0]);
}

#[test]
fn columns_that_become_texts_get_the_texts_behind_a_pooler() {
    let fixture = Fixture::new("pooltypes");
    let settings = [IGNORE_OPTIONS, ("default_pool_size", "1")];
    let pooler =
        Pooler::start(&[&fixture.right], PoolMode::Transaction, &settings).expect("a pooler");
    link_with(&fixture, "dst", pooler.port(), &fixture.right.password);
    mirror(&fixture, "t", "id text primary key, v text", "{}");
    fixture
        .right
        .exec("alter table t alter v type int using v::int");
    let mut client = fixture.left.client();
    for n in 1..=9 {
        run(&mut client, &format!("insert into t values ('{n}', '{n}')"));
        run(
            &mut client,
            &format!("update t set v = '{n}1' where id = '{n}'"),
        );
    }
    assert_eq!(table(&fixture.right, "t").len(), 9);
    let prepared = "select count(*) from pg_prepared_statements where name ~ '^pg_rowsync_'";
    assert_eq!(query(&mut other(&fixture, &pooler), prepared), ["3"]);
    let user = &fixture.right.user;
    fixture.right.exec(&format!(
        "alter table t alter v type text;
         create table settings (path text, timeout text);
         create function look() returns trigger language plpgsql as $$ begin
           insert into {user}.settings
             values (current_setting('search_path'), current_setting('statement_timeout'));
           return null; end $$;
         create trigger look after insert or update on t for each row execute function look()"
    ));
    // Known to this session and to a new one, prepared for integers.
    for (number, mut client) in [client, fixture.left.client()].into_iter().enumerate() {
        for n in 0..6 {
            run(
                &mut client,
                &format!("insert into t values ('0{number}{n}', '00{n}')"),
            );
            run(
                &mut client,
                &format!("update t set v = '0{n}0' where id = '0{number}{n}'"),
            );
        }
    }
    let there = same(&fixture, "t");
    assert!(there.contains(&"014|040".to_owned()), "{there:?}");
    assert_eq!((there.len(), queued(&fixture)), (21, 0));
    // What was sent again has set what it needs as well.
    let settings = "select distinct path, timeout from settings";
    assert_eq!(rows(&fixture.right, settings), ["pg_catalog|10s"]);
    // They are executed by name again, by other names: of each statement, and maybe of one that was sent with
    // it.
    let names = query(&mut other(&fixture, &pooler), prepared);
    assert!(["5", "6"].contains(&names[0].as_str()), "{names:?}");
}

#[test]
fn a_table_that_is_altered_dropped_or_replaced_is_no_concern_of_the_client_behind_a_pooler() {
    let (fixture, _pooler) = pooled("poolaltered", PoolMode::Transaction, "2", &[]);
    let (mut client, notices) = fixture.left.client_with_notices();
    let mut next = 1;
    for change in [
        "alter table t alter v type varchar(40)",
        "alter table t alter id type bigint",
        "alter table t add extra int default 5",
        "alter table t alter v type text",
        "alter table t drop extra",
        "create domain word as text; alter table t alter v type word",
        "create domain number as bigint; alter table t alter id type number",
        "alter table t rename to was; create table t (like was including all); \
         insert into t select * from was",
        "alter table t add e int; alter table t drop e; analyze t",
    ] {
        for _ in 0..4 {
            run(
                &mut client,
                &format!("insert into t values ({next}, 'new')"),
            );
            run(
                &mut client,
                &format!("update t set v = 'changed' where id = {next}"),
            );
            run(&mut client, &format!("delete from t where id = {next} - 2"));
            next += 1;
        }
        fixture.right.exec(change);
    }
    same(&fixture, "t");
    assert_eq!(queued(&fixture), 0);
    assert!(warnings(&notices).is_empty());
}

/// The pool's processes have other settings with each transaction, and another role's search_path.
#[test]
fn statements_mean_the_same_whatever_settings_their_process_has() {
    let (fixture, pooler) = pooled("poolpaths", PoolMode::Transaction, "2", &[]);
    let user = &fixture.right.user;
    fixture
        .right
        .exec_superuser(&format!("create schema planted authorization {user}"));
    // What would be found by a search_path that is not ours.
    fixture.right.exec(&format!(
        "create table planted.t (id int primary key, v text);
         create function planted.set_config(text, text, boolean) returns text language sql
           as $$ select 'planted' $$;
         create function planted.equal(int, int) returns boolean language sql
           as $$ select true $$;
         create operator planted.= (leftarg = int, rightarg = int, function = planted.equal);
         alter role {user} set search_path = planted, {user}, pg_catalog"
    ));
    let mut other = other(&fixture, &pooler);
    let (mut client, notices) = fixture.left.client_with_notices();
    let mut next = 0;
    for _ in 0..8 {
        for sql in [
            "set search_path = planted, pg_catalog",
            "set standard_conforming_strings = off; set row_security = on",
            "set default_transaction_isolation = 'serializable'",
            "set default_transaction_read_only = on",
            "set transform_null_equals = on; set datestyle = 'German'",
            "reset all",
        ] {
            run(&mut other, sql);
            write(&mut client, next..next + 2);
            next += 2;
        }
    }
    assert!(warnings(&notices).is_empty());
    assert_eq!((same(&fixture, "t").len(), queued(&fixture)), (8 * 6, 0));
    assert_eq!(rows(&fixture.right, "select * from planted.t"), [""; 0]);
}

#[test]
fn a_backlog_and_several_servers_go_through_a_pool_whose_statements_are_lost_meanwhile() {
    let (fixture, pooler) = pooled("poolmore", PoolMode::Transaction, "2", &[]);
    mirror(
        &fixture,
        "u",
        "id int primary key, v text",
        r#"{"mode": "queue"}"#,
    );
    mirror(
        &fixture,
        "s",
        "id int primary key, v text",
        r#"{"mode": "sync"}"#,
    );
    let mut client = fixture.left.client();
    let mut other = other(&fixture, &pooler);
    for id in 0..20 {
        run(&mut client, &format!("insert into t values ({id}, 'x')"));
        run(&mut client, &format!("insert into s values ({id}, 'x')"));
        run(
            &mut client,
            &format!("begin; insert into s values (100 + {id}, 'y'); update s set v = 'z'; commit"),
        );
        run(&mut client, &format!("insert into u values ({id}, 'x')"));
        if id % 3 == 0 {
            run(&mut other, "discard all");
        }
        await_until(SOON, "the queue to drain", || {
            deal(&fixture, "10") || queued(&fixture) == 0
        });
    }
    await_until(SOON, "the queue to drain", || {
        deal(&fixture, "10") || queued(&fixture) == 0
    });
    assert_eq!(
        (
            same(&fixture, "t").len(),
            same(&fixture, "u").len(),
            same(&fixture, "s").len()
        ),
        (20, 20, 40)
    );
}
