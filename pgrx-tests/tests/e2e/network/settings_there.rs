//! Settings that the server's role or database has for its sessions: what a delivery needs is as it must be, in
//! each transaction, over a direct connection and behind a pooler that hands out transactions.

use std::thread::sleep;
use std::time::{Duration, Instant};

use rowsync_harness::fixture::{Fixture, await_until};
use rowsync_harness::proxy::Proxy;
use rowsync_harness::{IGNORE_OPTIONS, PoolMode, Pooler};

use crate::support::common::{
    Role, deal, link_with, mirror, query, queued, rows, run, same, table,
};
use crate::support::one_way::SOON;

const COLUMNS: &str = "id int primary key, v text";

/// Who has the setting.
#[derive(Clone, Copy, Debug)]
enum Holder {
    Role,
    Database,
}

/// A server `dst` on the left that leads to the right, with or without a pooler in between, and a table `t` in
/// mode sync, whose target keeps what a transaction finds of a setting that is named in `asked`.
fn watched(label: &str, is_pooled: bool) -> (Fixture, Option<Pooler>) {
    let fixture = Fixture::new(label);
    let pooler = is_pooled.then(|| {
        let sides = [&fixture.right];
        Pooler::start(&sides, PoolMode::Transaction, &[IGNORE_OPTIONS]).expect("a pooler")
    });
    let own = fixture.right.cluster.port();
    let port = pooler.as_ref().map_or(own, Pooler::port);
    link_with(&fixture, "dst", port, &fixture.right.password);
    mirror(&fixture, "t", COLUMNS, r#"{"mode": "sync"}"#);
    let schema = &fixture.right.user;
    fixture.right.exec(&format!(
        "create table asked (name text); create table seen (setting text);
         create function see() returns trigger language plpgsql as $$ begin
           insert into {schema}.seen select current_setting(name) from {schema}.asked;
           return new; end $$;
         create trigger see before insert or update on t for each row execute function see();
         alter table t enable always trigger see"
    ));
    (fixture, pooler)
}

/// The role or the database has this setting, for sessions that begin from now on.
fn set(fixture: &Fixture, holder: Holder, setting: &str) {
    let db = &fixture.right.db;
    let user = &fixture.right.user;
    let whose = match holder {
        Holder::Role => format!("role {user}"),
        Holder::Database => format!("database {db}"),
    };
    let mut admin = fixture.right.superuser();
    run(&mut admin, "set default_transaction_read_only = off");
    // What has begun goes on without it.
    run(
        &mut admin,
        &format!(
            "alter {whose} {setting};
             select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = '{user}'"
        ),
    );
}

/// Each setting that a delivery pins, another value of it, what it is called within a transaction, and what a
/// transaction must find.
const PINNED: [(&str, &str, &str, &str); 21] = [
    ("search_path", "public", "search_path", "pg_catalog"),
    ("timezone", "Asia/Tokyo", "timezone", "UTC"),
    ("datestyle", "German", "datestyle", "ISO, MDY"),
    ("intervalstyle", "iso_8601", "intervalstyle", "postgres"),
    ("bytea_output", "escape", "bytea_output", "hex"),
    ("extra_float_digits", "-15", "extra_float_digits", "3"),
    ("array_nulls", "off", "array_nulls", "on"),
    ("xmlbinary", "hex", "xmlbinary", "base64"),
    ("xmloption", "document", "xmloption", "content"),
    (
        "quote_all_identifiers",
        "on",
        "quote_all_identifiers",
        "off",
    ),
    (
        "standard_conforming_strings",
        "off",
        "standard_conforming_strings",
        "on",
    ),
    (
        "transform_null_equals",
        "on",
        "transform_null_equals",
        "off",
    ),
    ("lc_monetary", "POSIX", "lc_monetary", "C"),
    ("synchronous_commit", "off", "synchronous_commit", "on"),
    ("statement_timeout", "150ms", "statement_timeout", "10s"),
    ("lock_timeout", "150ms", "lock_timeout", "1s"),
    (
        "idle_in_transaction_session_timeout",
        "150ms",
        "idle_in_transaction_session_timeout",
        "1min",
    ),
    (
        "default_transaction_read_only",
        "on",
        "transaction_read_only",
        "off",
    ),
    (
        "default_transaction_isolation",
        "serializable",
        "transaction_isolation",
        "read committed",
    ),
    ("jit", "on", "jit", "off"),
    (
        "application_name",
        "theirs",
        "application_name",
        "pg_rowsync",
    ),
];

/// One after the other, so that what is found is this one's doing.
fn each_is_as_it_must_be(label: &str, holder: Holder, is_pooled: bool) {
    let (fixture, _pooler) = watched(label, is_pooled);
    for (at, (name, value, asked, expected)) in PINNED.into_iter().enumerate() {
        // The rows tell who is asked: the harness's own sessions have the setting, too.
        fixture.right.exec(&format!(
            "truncate asked; truncate seen; insert into asked values ('{asked}')"
        ));
        set(&fixture, holder, &format!("set {name} = '{value}'"));
        // One that begins with the connection, and one of those that follow.
        let mut client = fixture.left.client();
        run(
            &mut client,
            &format!("insert into t values ({at}, '{name}')"),
        );
        run(
            &mut client,
            &format!("update t set v = v || '!' where id = {at}"),
        );
        set(&fixture, holder, &format!("reset {name}"));
        assert_eq!(
            rows(&fixture.right, "select setting from seen"),
            [expected, expected],
            "{holder:?} {name}"
        );
    }
    assert_eq!(same(&fixture, "t").len(), PINNED.len());
}

#[test]
fn what_the_role_has_is_not_what_a_direct_delivery_finds() {
    each_is_as_it_must_be("roledirect", Holder::Role, false);
}

#[test]
fn what_the_database_has_is_not_what_a_direct_delivery_finds() {
    each_is_as_it_must_be("dbdirect", Holder::Database, false);
}

#[test]
fn what_the_role_has_is_not_what_a_delivery_behind_a_pooler_finds() {
    each_is_as_it_must_be("rolepooled", Holder::Role, true);
}

#[test]
fn what_the_database_has_is_not_what_a_delivery_behind_a_pooler_finds() {
    each_is_as_it_must_be("dbpooled", Holder::Database, true);
}

/// Limits of the role's are shorter than what the delivery does takes.
#[test]
fn limits_of_the_role_end_nothing_that_takes_longer() {
    for is_pooled in [false, true] {
        let (fixture, _pooler) = watched("limits", is_pooled);
        for limit in [
            "statement_timeout",
            "lock_timeout",
            "idle_in_transaction_session_timeout",
        ] {
            set(&fixture, Holder::Role, &format!("set {limit} = '150ms'"));
        }
        fixture.right.exec(
            "create function slow() returns trigger language plpgsql as $$ begin
               if new.v = 'slow' then perform pg_sleep(0.4); end if; return new; end $$;
             create trigger slow before insert or update on t for each row execute function slow()",
        );
        let mut client = fixture.left.client();
        run(&mut client, "insert into t values (1, 'slow')");
        // A row that is locked there for a while.
        let mut locker = fixture.right.superuser();
        let lock = format!(
            "begin; select from {}.t where id = 1 for update",
            fixture.right.user
        );
        run(&mut locker, &lock);
        let holds = std::thread::spawn(move || {
            sleep(Duration::from_millis(400));
            run(&mut locker, "commit");
        });
        run(&mut client, "update t set v = 'waited' where id = 1");
        holds.join().expect("the lock's holder");
        // A drain whose transaction stays open.
        fixture.left.exec("select detach_sync('t', 'dst')");
        crate::support::common::attach(&fixture, "t", r#"{"mode": "queue"}"#);
        run(&mut client, "insert into t values (2, 'drained')");
        let mut admin = fixture.left.superuser();
        run(
            &mut admin,
            "begin; select deal_sync_err_rec(10); select pg_sleep(0.4); commit",
        );
        assert_eq!(queued(&fixture), 0, "pooled: {is_pooled}");
        assert_eq!(same(&fixture, "t"), ["1|waited", "2|drained"]);
    }
}

/// A role that acts as another one does so in deliveries; one under which triggers do not fire as usual is told.
#[test]
fn a_role_and_a_replication_role_of_the_role_count_and_are_told() {
    for is_pooled in [false, true] {
        let (fixture, _pooler) = watched("acting", is_pooled);
        let user = &fixture.right.user;
        let schema = &fixture.right.user;
        let other = Role::create(&fixture.right, "acted", "");
        fixture.right.exec_superuser(&format!(
            "grant {other} to {user}; grant all on all tables in schema {schema} to {other};
             alter table {schema}.t add column who text;
             create function {schema}.who() returns trigger language plpgsql as
               $$ begin new.who := current_user; return new; end $$;
             create trigger who before insert on {schema}.t for each row execute function {schema}.who()",
            other = other.name
        ));
        set(
            &fixture,
            Holder::Role,
            &format!("set role = '{}'", other.name),
        );
        let mut client = fixture.left.client();
        run(&mut client, "insert into t values (1, 'x')");
        run(&mut client, "insert into t values (2, 'x')");
        let who = rows(&fixture.right, "select distinct who from t");
        assert_eq!(
            who,
            std::slice::from_ref(&other.name),
            "pooled: {is_pooled}"
        );
        let reported = query(
            &mut client,
            "select severity from check_sync() where problem like '%acts as role%'",
        );
        assert_eq!(reported, ["notice"], "pooled: {is_pooled}");
        set(&fixture, Holder::Role, "reset role");
        // Only triggers that are to fire always do.
        set(
            &fixture,
            Holder::Role,
            "set session_replication_role = 'replica'",
        );
        let mut client = fixture.left.client();
        run(&mut client, "insert into t values (3, 'x')");
        assert_eq!(
            rows(&fixture.right, "select id, who is null from t where id = 3"),
            ["3|t"]
        );
        let reported = query(
            &mut client,
            "select severity from check_sync() where problem like 'session_replication_role is%'",
        );
        assert_eq!(reported, ["warning"], "pooled: {is_pooled}");
        set(&fixture, Holder::Role, "reset session_replication_role");
        assert_eq!(queued(&fixture), 0);
    }
}

/// Between server and pooler, or source.
const WAY: Duration = Duration::from_millis(60);
const IDLE: Duration = Duration::from_millis(200);

/// What PgBouncer says where it has sent something on to a server that had closed the connection, before it read
/// what that had said: then nobody knows what became of it.
const UNREAD: &str = "server conn crashed?";

/// Commits come when the server has just ended the session, and its last word is still on the way.
fn an_ended_session_is_no_unknown_outcome(label: &str, mode: Option<PoolMode>, delivery: &str) {
    let fixture = Fixture::new(label);
    let user = &fixture.right.user;
    fixture.right.exec_superuser(&format!(
        "alter role {user} set idle_session_timeout = '{}ms'",
        IDLE.as_millis()
    ));
    let sides = [&fixture.right];
    let pooler = mode.map(|mode| Pooler::start(&sides, mode, &[IGNORE_OPTIONS]).expect("a pooler"));
    let port = pooler
        .as_ref()
        .map_or(fixture.right.cluster.port(), Pooler::port);
    let proxy = Proxy::start(port).expect("a proxy");
    link_with(&fixture, "dst", proxy.port(), &fixture.right.password);
    mirror(
        &fixture,
        "t",
        COLUMNS,
        &format!(r#"{{"mode": "{delivery}"}}"#),
    );
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (0, 'x')");
    proxy.set_delay(WAY);
    let mut met = Instant::now();
    let mut unread = 0;
    for id in 1..=12 {
        // The last answer came half a way after the server had sent it.
        let since = IDLE + Duration::from_millis(15);
        sleep(since.saturating_sub(met.elapsed() + WAY));
        let insert = format!("insert into t values ({id}, 'x')");
        let written = client.batch_execute(&insert);
        met = Instant::now();
        let left = rows(&fixture.left, "select sqlstate, message from sync_err_rec");
        let what = format!("{mode:?} {delivery}, row {id}: {written:?}, {left:?}");
        if mode.is_some() && what.contains(UNREAD) {
            unread += 1;
            assert!(unread <= 3, "{what}");
            await_until(SOON, "the row to arrive", || {
                if delivery == "sync" {
                    client.batch_execute(&insert).is_ok()
                } else {
                    deal(&fixture, "10") && queued(&fixture) == 0
                }
            });
            continue;
        }
        assert!(written.is_ok() && left.is_empty(), "{what}");
    }
    proxy.set_delay(Duration::ZERO);
    assert_eq!(
        rows(&fixture.left, "select count(*) from sync_lost_session"),
        ["0"]
    );
    assert_eq!(same(&fixture, "t").len(), 13);
}

#[test]
fn a_session_that_the_server_ended_for_being_idle_is_no_unknown_outcome() {
    for delivery in ["async", "sync"] {
        an_ended_session_is_no_unknown_outcome("idledirect", None, delivery);
    }
}

#[test]
fn a_session_behind_a_pooler_that_was_ended_for_being_idle_is_no_unknown_outcome() {
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        for delivery in ["async", "sync"] {
            an_ended_session_is_no_unknown_outcome("idlepooled", Some(mode), delivery);
        }
    }
}

/// What drains loses its connection while it is idle as any other session does.
#[test]
fn a_drain_over_a_session_that_was_ended_for_being_idle_takes_another() {
    for mode in [None, Some(PoolMode::Session), Some(PoolMode::Transaction)] {
        let fixture = Fixture::new("idledrain");
        let user = &fixture.right.user;
        fixture.right.exec_superuser(&format!(
            "alter role {user} set idle_session_timeout = '100ms'"
        ));
        let sides = [&fixture.right];
        let pooler =
            mode.map(|mode| Pooler::start(&sides, mode, &[IGNORE_OPTIONS]).expect("a pooler"));
        let own = fixture.right.cluster.port();
        let port = pooler.as_ref().map_or(own, Pooler::port);
        link_with(&fixture, "dst", port, &fixture.right.password);
        mirror(&fixture, "t", COLUMNS, r#"{"mode": "queue"}"#);
        let mut admin = fixture.left.superuser();
        for id in 1..=5 {
            fixture
                .left
                .exec(&format!("insert into t values ({id}, 'x')"));
            // Whoever finds the session ended notes it and connects anew.
            await_until(SOON, "the drain", || {
                query(&mut admin, "select deal_sync_err_rec(10)") == ["t"] && queued(&fixture) == 0
            });
            sleep(Duration::from_millis(150));
        }
        assert_eq!(table(&fixture.right, "t").len(), 5, "{mode:?}");
        assert!(deal(&fixture, "10"));
    }
}
