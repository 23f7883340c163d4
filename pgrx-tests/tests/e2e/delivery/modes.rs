//! `sync`, `async` and `queue`, and what each makes of a delivery that fails.

use postgres::error::DbError;
use rowsync_harness::{Fixture, Proxy};

use crate::support::common::{
    both_have, closed_port, deal, link_with, linked, mirror, one_way, outage, queued, records,
    recover, refused, rows, run, same, table, warnings,
};

const COLUMNS: &str = "id int primary key, v text";

/// A failure of delivery: how it comes about, its SQLSTATE and a part of its message.
struct Failure {
    name: &'static str,
    server: &'static str,
    prepare: fn(&Fixture),
    sqlstate: &'static str,
    message: &'static str,
    constraint: Option<&'static str>,
}

const NOTHING: fn(&Fixture) = |_| ();

const FAILURES: [Failure; 5] = [
    Failure {
        name: "unique",
        server: "dst",
        prepare: |fixture| {
            fixture
                .right
                .exec("alter table t add constraint v_once unique (v)")
        },
        sqlstate: "23505",
        message: "duplicate key value violates unique constraint \"v_once\"",
        constraint: Some("v_once"),
    },
    Failure {
        name: "check",
        server: "dst",
        prepare: |fixture| {
            fixture
                .right
                .exec("alter table t add constraint v_short check (v <> 'same')")
        },
        sqlstate: "23514",
        message: "violates check constraint \"v_short\"",
        constraint: Some("v_short"),
    },
    Failure {
        name: "missing",
        server: "dst",
        prepare: |fixture| fixture.right.exec("drop table t"),
        sqlstate: "42P01",
        message: "does not exist",
        constraint: None,
    },
    Failure {
        name: "closed",
        server: "closed",
        prepare: NOTHING,
        sqlstate: "08",
        message: "could not connect to server \"closed\"",
        constraint: None,
    },
    Failure {
        name: "password",
        server: "wrong",
        prepare: NOTHING,
        sqlstate: "28P01",
        message: "could not connect to server \"wrong\"",
        constraint: None,
    },
];

impl Failure {
    /// A table `t` that fails in this way in this mode, and one that does not, `good`.
    fn arrange(&self, mode: &str) -> Fixture {
        let fixture = linked(&format!("{}_{mode}", self.name));
        link_with(&fixture, "closed", closed_port(), &fixture.right.password);
        link_with(
            &fixture,
            "wrong",
            fixture.right.cluster.port(),
            "not the password",
        );
        fixture.left.exec(&format!("create table t ({COLUMNS})"));
        fixture.right.exec(&format!("create table t ({COLUMNS})"));
        (self.prepare)(&fixture);
        let schema = &fixture.right.user;
        let server = self.server;
        fixture.left.exec(&format!(
            r#"select attach_sync('t', '{server}', '{schema}.t', '{{"mode": "{mode}"}}')"#
        ));
        mirror(&fixture, "good", COLUMNS, r#"{"mode": "sync"}"#);
        fixture
    }

    fn check(&self, error: &DbError) {
        let text = format!("{} {}", error.message(), error.detail().unwrap_or_default());
        assert!(
            error.code().code().starts_with(self.sqlstate),
            "{}: {error:?}",
            self.name
        );
        assert!(text.contains(self.message), "{}: {error:?}", self.name);
    }

    /// What the remote must hold: nothing, or no such table at all.
    fn remote_is_empty(&self, fixture: &Fixture) {
        if self.name != "missing" {
            assert_eq!(table(&fixture.right, "t"), [""; 0], "{}", self.name);
        }
    }
}

const TWO_ROWS: &str = "insert into t values (1, 'same'), (2, 'same')";

#[test]
fn sync_fails_the_commit_with_the_error_of_the_remote() {
    for failure in &FAILURES {
        let fixture = failure.arrange("sync");
        let mut client = fixture.left.client();
        run(&mut client, &format!("begin; {TWO_ROWS}"));
        let error = rowsync_harness::fails(client.batch_execute("commit"));
        failure.check(&error);
        assert_eq!(
            error.constraint(),
            failure.constraint,
            "{}: {error:?}",
            failure.name
        );
        assert_eq!(table(&fixture.left, "t"), [""; 0], "{}", failure.name);
        failure.remote_is_empty(&fixture);
        assert_eq!(queued(&fixture), 0, "{}", failure.name);
        // Without a block too, and the session goes on.
        failure.check(&rowsync_harness::fails(client.batch_execute(TWO_ROWS)));
        run(&mut client, "insert into good values (1, 'works')");
        both_have(&fixture, "good", &["1|works"]);
    }
}

#[test]
fn async_commits_and_queues_with_the_error_of_the_remote() {
    for failure in &FAILURES {
        let fixture = failure.arrange("async");
        let (mut client, notices) = fixture.left.client_with_notices();
        run(&mut client, TWO_ROWS);
        let said = warnings(&notices);
        assert_eq!(said.len(), 1, "{}: {said:?}", failure.name);
        failure.check(&said[0]);
        assert!(
            said[0].message().starts_with("2 changes for server"),
            "{said:?}"
        );
        assert!(
            said[0]
                .hint()
                .is_some_and(|hint| hint.contains("deal_sync_err_rec")),
            "{said:?}"
        );
        assert_eq!(table(&fixture.left, "t"), ["1|same", "2|same"]);
        failure.remote_is_empty(&fixture);
        let kept = rows(
            &fixture.left,
            "select op, dst_server, sqlstate, attempts, message from sync_err_rec order by id",
        );
        assert_eq!(kept.len(), 2, "{}", failure.name);
        let expected = format!("INSERT|{}|{}|1|", failure.server, said[0].code().code());
        for record in kept {
            assert!(record.starts_with(&expected), "{record}");
            assert!(record.contains(failure.message), "{record}");
        }
    }
}

#[test]
fn ten_thousand_failures_are_as_many_records_and_one_warning() {
    let fixture = one_way("many", COLUMNS, "{}");
    outage(&fixture.right);
    let (mut client, notices) = fixture.left.client_with_notices();
    run(
        &mut client,
        "insert into t select i, 'v' || i from generate_series(1, 10000) i",
    );
    let said = warnings(&notices);
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(
        said[0].message(),
        "10000 changes for server \"dst\" were queued"
    );
    assert_eq!(said[0].code().code(), "28000", "{said:?}");
    let kept = "select count(*), count(distinct id), count(message), min(sqlstate), max(sqlstate)
                from sync_err_rec";
    assert_eq!(rows(&fixture.left, kept), ["10000|10000|10000|28000|28000"]);
    // With records pending nothing is tried, so there is nothing to warn of.
    run(&mut client, "update t set v = 'w' where id <= 5");
    assert_eq!(warnings(&notices), []);
    assert_eq!(queued(&fixture), 10_005);
    recover(&fixture.right);
    assert!(deal(&fixture, "20000"));
    assert_eq!(same(&fixture, "t").len(), 10_000);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn queue_makes_no_connection_and_a_drain_delivers() {
    let fixture = Fixture::new("queue");
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, r#"{"mode": "queue"}"#);
    // That of attach_sync.
    assert_eq!(proxy.connections_total(), 1);
    let (mut client, notices) = fixture.left.client_with_notices();
    run(
        &mut client,
        "insert into t values (1, 'a'), (2, 'b'); update t set v = 'c' where id = 1",
    );
    run(&mut client, "delete from t where id = 2");
    assert_eq!(proxy.connections_total(), 1);
    assert_eq!(warnings(&notices), []);
    assert_eq!(table(&fixture.right, "t"), [""; 0]);
    let expected = [
        "INSERT|~|0|pending",
        "INSERT|~|0|pending",
        "UPDATE|~|0|pending",
    ];
    assert_eq!(records(&fixture)[..3], expected);
    assert!(deal(&fixture, "100"));
    both_have(&fixture, "t", &["1|c"]);
    assert_eq!(queued(&fixture), 0);
    assert_eq!(proxy.connections_total(), 2);
}

#[test]
fn the_strictest_mode_of_a_transaction_wins() {
    let fixture = linked("strict");
    for mode in ["queue", "async", "sync"] {
        mirror(&fixture, mode, COLUMNS, &format!(r#"{{"mode": "{mode}"}}"#));
    }
    let mut client = fixture.left.client();
    run(
        &mut client,
        "begin; insert into queue values (1, 'a'); insert into async values (1, 'a')",
    );
    run(&mut client, "commit");
    both_have(&fixture, "queue", &["1|a"]);
    outage(&fixture.right);
    run(
        &mut client,
        "begin; insert into sync values (1, 'a'); insert into queue values (2, 'b')",
    );
    refused(&mut client, "commit", "28000");
    recover(&fixture.right);
    both_have(&fixture, "queue", &["1|a"]);
    both_have(&fixture, "sync", &[]);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn sync_with_records_pending_is_refused_until_they_are_drained() {
    let fixture = one_way("pending", COLUMNS, r#"{"mode": "sync"}"#);
    mirror(&fixture, "q", COLUMNS, r#"{"mode": "queue"}"#);
    let mut client = fixture.left.client();
    run(&mut client, "insert into q values (1, 'a')");
    let error = refused(&mut client, "insert into t values (1, 'a')", "55000");
    assert_eq!(error.message(), "server \"dst\" has pending changes");
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("deal_sync_err_rec()")),
        "{error:?}"
    );
    both_have(&fixture, "t", &[]);
    assert_eq!(queued(&fixture), 1);
    assert!(deal(&fixture, "10"));
    run(&mut client, "insert into t values (1, 'a')");
    both_have(&fixture, "t", &["1|a"]);
    both_have(&fixture, "q", &["1|a"]);
}

#[test]
fn a_constraint_that_the_remote_checks_at_its_commit_counts_as_well() {
    for (mode, waiting) in [("sync", 0), ("async", 2)] {
        let fixture = one_way("late", COLUMNS, &format!(r#"{{"mode": "{mode}"}}"#));
        fixture.right.exec(
            "create table allowed (id int primary key); insert into allowed values (1);
             alter table t add constraint is_allowed foreign key (id) references allowed
               deferrable initially deferred",
        );
        let mut client = fixture.left.client();
        run(&mut client, "insert into t values (1, 'a')");
        let sql = "insert into t values (2, 'b'), (3, 'c')";
        if mode == "sync" {
            let error = refused(&mut client, sql, "23503");
            assert_eq!(error.constraint(), Some("is_allowed"), "{error:?}");
        } else {
            run(&mut client, sql);
        }
        assert_eq!(table(&fixture.right, "t"), ["1|a"]);
        assert_eq!(queued(&fixture), waiting);
        // The connection is as good as before.
        run(
            &mut client,
            "delete from t where id = 2; update t set v = 'd' where id = 1",
        );
        fixture.right.exec("insert into allowed values (2), (3)");
        assert!(deal(&fixture, "100"));
        same(&fixture, "t");
    }
}
