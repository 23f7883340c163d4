//! What rows contain is told to their writer and kept in the queue, and is in no log and no list of sessions.

use std::thread;

use postgres::Client;
use rowsync_harness::cluster::TEST_SETTINGS;
use rowsync_harness::side::Notices;
use rowsync_harness::{Cluster, Fixture, Side, await_until, fails};

use crate::support::common::{
    Role, linked, mirror, query, queued, records, refused, rows, run, superuser_with_notices,
    warnings,
};
use crate::support::preloaded::{EAGER, WORKING, await_drained, preloaded, worker};

/// In keys, in other values, and in the rows that the other side has already.
const SECRET: &str = "4711471147114711";
const COLUMNS: &str = "id text primary key, v text";

/// All that is logged without the debug levels, except statements: what is in those is the clients' own.
const TALKATIVE: &[(&str, &str)] = &[
    ("log_min_messages", "info"),
    ("log_error_verbosity", "verbose"),
    ("log_min_error_statement", "panic"),
    ("log_statement", "none"),
];

/// A way for the other side to quote what it is sent: its SQLSTATE, and what is done to the table `t` there.
const QUOTING: &[(&str, &str)] = &[
    ("22P02", "alter table t alter v type uuid using null"),
    // Not at the conversion of a parameter, which has a context.
    ("22P02", "alter table t add check (v::uuid is not null)"),
    ("22003", "alter table t alter v type int using null"),
    ("22008", "alter table t alter v type date using null"),
    ("22001", "alter table t alter v type varchar(3)"),
    ("23502", "alter table t add w int not null"),
    ("23514", "alter table t add check (v <> '4711471147114711')"),
    (
        "23P01",
        "alter table t add exclude (v with =); insert into t values ('a', '4711471147114711')",
    ),
    (
        "23505",
        "alter table t add unique (v); insert into t values ('a', '4711471147114711')",
    ),
    (
        "23505",
        "alter table t add unique (v) deferrable initially deferred;
         insert into t values ('a', '4711471147114711')",
    ),
    (
        "23503",
        "create table p (v text primary key); alter table t add foreign key (v) references p",
    ),
    ("P0001", "select raising('P0001')"),
    ("42P01", "select raising('42P01')"),
    ("40001", "select raising('40001')"),
    ("XX000", "select raising('XX000')"),
    ("57014", "select raising('57014')"),
    (
        "22000",
        "create function f(text) returns int immutable language plpgsql as
           $$ begin raise using errcode = '22000', message = $1; end $$; create index on t (f(v))",
    ),
];

/// Makes `t` there raise an error of this state about the row, with all fields that one may have.
const RAISING: &str = "create function raising(state text) returns void language plpgsql as $f$
    begin
        execute format($$
            create function no() returns trigger language plpgsql as $g$
            begin
                raise 'not this: %%', new using errcode = %L, detail = new.v, hint = new.id,
                    table = 't', constraint = 'c';
            end $g$ $$, state);
        create trigger no before insert or update on t for each row execute function no();
    end $f$";

fn attach_as(fixture: &Fixture, options: &str) -> String {
    format!(
        "select detach_sync('t', 'dst'); select attach_sync('t', 'dst', '{}.t', '{options}')",
        fixture.right.user
    )
}

/// What a client was told since the last look.
fn reported(notices: &Notices) -> String {
    format!(
        "{:?}",
        std::mem::take(&mut *notices.lock().expect("notices"))
    )
}

/// Writes that fail there, by every way on which changes get there.
fn quote(fixture: &Fixture, state: &str, damage: &str, client: &mut Client, notices: &Notices) {
    fixture.left.exec(&format!("create table t ({COLUMNS})"));
    fixture
        .right
        .exec(&format!("create table t ({COLUMNS}); {RAISING}"));
    fixture.right.exec(damage);
    run(
        client,
        &format!(
            "select attach_sync('t', 'dst', '{}.t', '{{}}')",
            fixture.right.user
        ),
    );
    for policy in ["overwrite", "error"] {
        run(
            client,
            &attach_as(
                fixture,
                &format!(r#"{{"mode": "sync", "on_conflict": "{policy}"}}"#),
            ),
        );
        let insert = format!("insert into t values ('{SECRET}', '{SECRET}')");
        reported(notices);
        let error = refused(client, &insert, state);
        assert!(
            !format!("{error:?}").contains(SECRET),
            "{damage}: {error:?}"
        );
        // The writer is told all the same, by a message of its own.
        let said = reported(notices);
        assert!(
            said.contains(SECRET) || state == "22001",
            "{damage}: {said}"
        );
        // Several rows travel in another way.
        refused(
            client,
            &format!("begin; {insert}, ('b{SECRET}', '{SECRET}'); commit"),
            state,
        );
        run(client, "rollback");
        run(
            client,
            &attach_as(fixture, &format!(r#"{{"on_conflict": "{policy}"}}"#)),
        );
        reported(notices);
        run(client, &insert);
        assert_eq!(warnings(notices).len(), 1, "{damage}");
        assert!(records(fixture)[0].contains(state), "{damage}");
        // By a call, then by the worker.
        run(
            client,
            "select deal_sync_err_rec(10); select deal_sync_err_rec(10)",
        );
        run(client, "update t set v = v || '0'");
        run(
            client,
            "select retry_sync_err_rec(id) from sync_err_rec limit 1",
        );
        run(
            client,
            "update sync_queue set status = 'pending', waits_for = null, blocks = null",
        );
        run(client, "select start_sync_worker()");
        worker(fixture);
        match state {
            // These say something about the moment: the worker tries again and again.
            "40001" | "57014" => {
                let logged = || fixture.left.cluster.log().contains("next attempt in");
                await_until(WORKING, "the worker's complaint", logged);
            }
            _ => await_drained(fixture),
        }
        let shown = "select query, application_name from pg_stat_activity";
        for side in [&fixture.left, &fixture.right] {
            assert!(!rows(side, shown).concat().contains(SECRET), "{damage}");
        }
        run(client, "select stop_sync_worker()");
        run(
            client,
            "set application_name = 'pg_rowsync'; delete from t; reset application_name",
        );
        run(client, "delete from sync_err_rec");
        // What was refused may have come in the end, together with the update.
        fixture.right.exec_superuser(&format!(
            "set session_replication_role = replica; delete from \"{}\".t where t::text like '%{SECRET}%'
               and t::text not like '%(a,%'",
            fixture.right.user
        ));
    }
    run(client, "drop table t");
    fixture.right.exec(&format!(
        "drop schema {0} cascade; create schema {0}",
        fixture.right.user
    ));
}

#[test]
fn what_another_server_quotes_is_not_logged() {
    let fixture = preloaded("quoted", &[TALKATIVE, EAGER].concat());
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    let (mut client, notices) = superuser_with_notices(&fixture.left);
    let user = &fixture.left.user;
    run(
        &mut client,
        &format!("set search_path = {user}, public; select stop_sync_worker()"),
    );
    let mapping = format!(
        "create user mapping for postgres server dst options (user '{}', password '{}')",
        fixture.right.user, fixture.right.password
    );
    run(&mut client, &mapping);
    fixture.right.exec_superuser(&format!(
        "grant create on database {0} to {0}",
        fixture.right.user
    ));
    for (state, damage) in QUOTING {
        quote(&fixture, state, damage, &mut client, &notices);
    }
    let log = fixture.left.cluster.log();
    for line in log.lines() {
        assert!(
            !line.contains(SECRET) && !line.contains(&fixture.right.password),
            "{line}"
        );
    }
    for part in [
        "(SQLSTATE 22P02)",
        "was marked failed",
        "next attempt in",
        "were queued",
    ] {
        assert!(log.contains(part), "{part} was not logged");
    }
}

#[test]
fn a_queue_that_cannot_be_read_is_not_quoted() {
    let fixture = preloaded("unreadable", &[TALKATIVE, EAGER].concat());
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, r#"{"mode": "queue"}"#);
    let mut client = fixture.left.superuser();
    run(&mut client, "select stop_sync_worker()");
    fixture.left.exec("insert into t values ('1', 'a')");
    for damaged in [
        format!(r#""{SECRET}""#),
        format!(r#"{{"{SECRET}": 1}}"#),
        format!(r#"{{"Insert": "{SECRET}"}}"#),
        SECRET.to_owned(),
    ] {
        run(
            &mut client,
            &format!("update sync_queue set change = '{damaged}'"),
        );
        let error = fails(client.batch_execute("select dst_query from sync_err_rec"));
        assert!(!format!("{error:?}").contains(SECRET), "{error:?}");
        run(&mut client, "select start_sync_worker()");
        await_until(WORKING, "an attempt", || {
            let attempts = "select coalesce(max(failures), 0) from sync_server_state";
            fixture.left.query_one::<i32>(attempts) > 0
        });
        run(
            &mut client,
            "select stop_sync_worker(); delete from sync_server_state",
        );
    }
    let log = fixture.left.cluster.log();
    assert!(log.contains("could not read a queued change") && !log.contains(SECRET));
}

/// Values are parameters there: a statement that fails is logged without them.
#[test]
fn statements_that_fail_there_are_logged_there_without_values() {
    let settings = [
        ("log_error_verbosity", "verbose"),
        ("log_min_error_statement", "error"),
    ];
    let cluster = Cluster::start_with("logging", &[TEST_SETTINGS, &settings].concat());
    let there = std::sync::Arc::new(cluster.expect("a cluster"));
    let fixture = Fixture {
        left: Side::create(rowsync_harness::fixture::clusters().0, "local_logging")
            .expect("a side"),
        right: Side::create(&there, "remote_logging").expect("a side"),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", &format!("{COLUMNS}, n timestamptz"), "{}");
    let shown = |which: &str| {
        let sessions = "select query from pg_stat_activity where application_name = 'pg_rowsync'";
        rows(&fixture.right, &format!("{sessions} {which}")).concat()
    };
    for policy in ["overwrite", "error", "skip", "newest"] {
        let version = if policy == "newest" {
            r#", "version_column": "n""#
        } else {
            ""
        };
        fixture.left.exec(&attach_as(
            &fixture,
            &format!(r#"{{"on_conflict": "{policy}"{version}}}"#),
        ));
        for rows in [
            format!("('{SECRET}', 'x')"),
            format!("('a', '{SECRET}'), ('b', '{SECRET}')"),
        ] {
            // A statement is shown while it runs.
            let mut holder = fixture.right.client();
            let mut writer = fixture.left.client();
            run(&mut holder, "begin; lock t in exclusive mode");
            let insert = format!("insert into t (id, v) values {rows}");
            let writing = thread::spawn(move || run(&mut writer, &insert));
            let waiting = || shown("and wait_event_type = 'Lock'");
            await_until(WORKING, "the statement", || !waiting().is_empty());
            assert!(!waiting().contains(SECRET), "{policy}");
            run(&mut holder, "commit");
            writing.join().expect("a commit");
        }
        fixture.left.exec("delete from t");
        let options = format!(r#"{{"mode": "queue", "on_conflict": "{policy}"{version}}}"#);
        fixture.left.exec(&attach_as(&fixture, &options));
        fixture.left.exec(&format!(
            "insert into t values ('{SECRET}', 'x', now());
             begin; insert into t select '{SECRET}' || i, '{SECRET}', now() from generate_series(1, 3) i;
             update t set v = '{SECRET}'; update t set id = id || 'k'; delete from t; commit"
        ));
        fixture.right.exec("alter table t rename to elsewhere");
        let mut client = fixture.left.superuser();
        for _ in 0..3 {
            run(&mut client, "select deal_sync_err_rec(100)");
            assert!(!shown("").contains(SECRET));
        }
        assert!(queued(&fixture) > 0);
        fixture.right.exec("alter table elsewhere rename to t");
        run(&mut client, "delete from sync_err_rec");
    }
    let log = there.log();
    assert!(log.contains("STATEMENT:") && log.contains("42P01"), "{log}");
    assert!(!log.contains(SECRET), "{log}");
}

/// The queue's rows are for those who were granted them; a message in it quotes values as they do.
#[test]
fn only_who_may_read_the_queue_reads_what_it_holds() {
    let fixture = linked("readers");
    mirror(&fixture, "t", COLUMNS, "{}");
    fixture
        .right
        .exec("alter table t alter v type uuid using null");
    let reader = Role::create(&fixture.left, "reader", "");
    let watcher = Role::create(&fixture.left, "watcher", "");
    fixture.left.exec_superuser(&format!(
        "grant select on sync_err_rec to {}; grant select on sync_status to {}",
        reader.name, watcher.name
    ));
    fixture
        .left
        .exec(&format!("insert into t values ('1', '{SECRET}')"));
    assert!(!crate::support::common::deal(&fixture, "10"));
    let looked = query(
        &mut reader.client(),
        "select dst_query, message from sync_err_rec",
    );
    assert_eq!(looked.concat().matches(SECRET).count(), 2, "{looked:?}");
    for mut client in [watcher.client(), fixture.left.client()] {
        for sql in [
            "select dst_query from sync_err_rec",
            "select change from sync_queue",
        ] {
            refused(&mut client, sql, "42501");
        }
    }
}

/// A server that logs all it can shows values, unless its superuser does as the documentation says.
#[test]
fn the_other_servers_log_can_be_kept_free_of_values() {
    let all = [
        ("log_statement", "all"),
        ("log_min_duration_statement", "0"),
        ("log_parameter_max_length_on_error", "-1"),
    ];
    let cluster = Cluster::start_with("logs_all", &[TEST_SETTINGS, &all].concat());
    let there = std::sync::Arc::new(cluster.expect("a cluster"));
    let fixture = Fixture {
        left: Side::create(rowsync_harness::fixture::clusters().0, "local_logs_all")
            .expect("a side"),
        right: Side::create(&there, "remote_logs_all").expect("a side"),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, "{}");
    fixture.right.exec("alter table t add check (v::int > 0)");
    let writes = |value: &str| {
        fixture.left.exec(&format!(
            "insert into t values ('ok{value}', '1'); begin; insert into t values ('{value}', '{value}');
             insert into t values ('more{value}', '{value}'); commit"
        ));
        assert_eq!(queued(&fixture), 3);
        assert!(!crate::support::common::deal(&fixture, "10"));
        fixture.left.exec_superuser("delete from sync_err_rec");
    };
    writes("shown47114711");
    assert!(there.log().matches("shown47114711").count() > 3);
    let chapter = include_str!("../../../../doc/security.md");
    let lines = chapter
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("ALTER ROLE sync_in"));
    let settings: Vec<String> = lines
        .map(|line| line.replace("sync_in", &fixture.right.user))
        .collect();
    assert_eq!(settings.len(), 1);
    fixture.right.exec_superuser(&settings.concat());
    writes(SECRET);
    assert!(!there.log().contains(SECRET), "{}", there.log());
}
