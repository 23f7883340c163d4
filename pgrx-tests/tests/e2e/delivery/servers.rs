//! Several servers and several tables in one transaction, and two-phase commit on the local side.

use rowsync_harness::{Fixture, Side};

use crate::support::common::{
    both_have, closed_port, deal, link_with, linked, mirror, one_way, queued, refused, rows, run,
    table,
};

const COLUMNS: &str = "id int primary key, v text";

/// A table `t` on the left that goes to `t` and to `copy` on the right, over two servers.
fn two_targets(label: &str, second_port: Option<u16>, mode: &str) -> Fixture {
    let fixture = linked(label);
    let options = format!(r#"{{"mode": "{mode}"}}"#);
    fixture
        .right
        .exec(&format!("create table copy ({COLUMNS})"));
    mirror(&fixture, "t", COLUMNS, &options);
    link_with(
        &fixture,
        "second",
        second_port.unwrap_or(fixture.right.cluster.port()),
        &fixture.right.password,
    );
    let schema = &fixture.right.user;
    fixture.left.exec(&format!(
        "select attach_sync('t', 'second', '{schema}.copy', '{options}')"
    ));
    fixture
}

const CHANGES: &str = "begin; insert into t values (1, 'a'), (2, 'b'), (3, 'c');
                       update t set v = 'x' where id = 1; delete from t where id = 3; commit";

#[test]
fn one_table_goes_to_two_servers() {
    for mode in ["sync", "async"] {
        let fixture = two_targets("both", None, mode);
        let mut client = fixture.left.client();
        run(&mut client, CHANGES);
        both_have(&fixture, "t", &["1|x", "2|b"]);
        assert_eq!(table(&fixture.right, "copy"), ["1|x", "2|b"]);
        run(&mut client, "truncate t");
        both_have(&fixture, "t", &[]);
        assert_eq!(table(&fixture.right, "copy"), [""; 0]);
        assert_eq!(queued(&fixture), 0);
        assert_eq!(
            crate::support::common::query(&mut client, "select * from sync_connections()").len(),
            2
        );
    }
}

#[test]
fn async_queues_for_the_server_that_is_down_only() {
    let fixture = two_targets("down", Some(closed_port()), "async");
    fixture.left.exec(CHANGES);
    both_have(&fixture, "t", &["1|x", "2|b"]);
    assert_eq!(table(&fixture.right, "copy"), [""; 0]);
    let kept = "select dst_server, sqlstate, count(*) from sync_err_rec group by 1, 2";
    assert_eq!(rows(&fixture.left, kept), ["second|08001|5"]);
    // The other one goes on being served directly.
    fixture.left.exec("update t set v = 'y' where id = 2");
    both_have(&fixture, "t", &["1|x", "2|y"]);
    let port = fixture.right.cluster.port();
    fixture
        .left
        .exec(&format!("alter server second options (set port '{port}')"));
    assert!(deal(&fixture, "100"));
    assert_eq!(table(&fixture.right, "copy"), ["1|x", "2|y"]);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn sync_to_a_server_that_is_down_leaves_nothing_anywhere() {
    let fixture = two_targets("nothing", Some(closed_port()), "sync");
    refused(&mut fixture.left.client(), CHANGES, "08001");
    both_have(&fixture, "t", &[]);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn sync_that_one_server_refuses_is_rolled_back_on_the_other() {
    let fixture = two_targets("refuses", None, "sync");
    fixture
        .right
        .exec("alter table copy add constraint no_two check (id <> 2)");
    let error = refused(&mut fixture.left.client(), CHANGES, "23514");
    assert!(error.message().contains("no_two"), "{error:?}");
    both_have(&fixture, "t", &[]);
    assert_eq!(table(&fixture.right, "copy"), [""; 0]);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn sync_on_one_server_and_async_on_another_that_is_down() {
    let fixture = linked("mixed");
    mirror(&fixture, "t", COLUMNS, r#"{"mode": "sync"}"#);
    link_with(&fixture, "second", closed_port(), &fixture.right.password);
    fixture
        .left
        .exec("select attach_sync('t', 'second', 'nowhere.t')");
    fixture.left.exec("insert into t values (1, 'a')");
    both_have(&fixture, "t", &["1|a"]);
    assert_eq!(queued(&fixture), 1);
    // And the sync one failing: then nothing is queued for the other.
    fixture
        .right
        .exec("alter table t add constraint no_two check (id <> 2)");
    refused(
        &mut fixture.left.client(),
        "insert into t values (2, 'b')",
        "23514",
    );
    assert_eq!(queued(&fixture), 1);
    both_have(&fixture, "t", &["1|a"]);
}

#[test]
fn two_tables_go_to_one_server_as_one_transaction() {
    let fixture = one_way("tables", COLUMNS, "{}");
    mirror(&fixture, "u", COLUMNS, "{}");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "begin; insert into t values (1, 'a'); insert into u values (1, 'b'); commit",
    );
    both_have(&fixture, "t", &["1|a"]);
    both_have(&fixture, "u", &["1|b"]);
    let writer = |name: &str| rows(&fixture.right, &format!("select xmin from {name}"));
    assert_eq!(writer("t"), writer("u"));
    assert_eq!(
        crate::support::common::query(&mut client, "select * from sync_connections()").len(),
        1
    );
    // All or none.
    fixture
        .right
        .exec("alter table u add constraint no_two check (id <> 2)");
    run(
        &mut client,
        "begin; insert into t values (2, 'a'); insert into u values (2, 'b'); commit",
    );
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    assert_eq!(queued(&fixture), 2);
}

fn prepared(side: &Side) -> Vec<String> {
    rows(
        side,
        "select gid from pg_prepared_xacts where database = current_database()",
    )
}

#[test]
fn a_prepared_transaction_queues_what_it_changed() {
    for mode in ["async", "queue"] {
        let fixture = one_way("prepare", COLUMNS, &format!(r#"{{"mode": "{mode}"}}"#));
        let gid = &fixture.left.db;
        let mut client = fixture.left.client();
        let prepare = format!("prepare transaction '{gid}'");
        run(
            &mut client,
            "begin; insert into t values (1, 'a'); savepoint s",
        );
        run(&mut client, "insert into t values (2, 'b'); rollback to s");
        run(&mut client, &prepare);
        assert_eq!(queued(&fixture), 0, "visible before COMMIT PREPARED");
        run(&mut client, &format!("commit prepared '{gid}'"));
        assert_eq!(table(&fixture.right, "t"), [""; 0]);
        assert_eq!(queued(&fixture), 1);
        assert!(deal(&fixture, "10"));
        both_have(&fixture, "t", &["1|a"]);
        // Nothing of it is left in the session.
        run(&mut client, &format!("begin; delete from t; {prepare}"));
        run(&mut client, &format!("rollback prepared '{gid}'"));
        run(&mut client, "insert into t values (3, 'c')");
        assert!(deal(&fixture, "10"));
        both_have(&fixture, "t", &["1|a", "3|c"]);
        assert_eq!(queued(&fixture), 0);
    }
}

#[test]
fn sync_changes_cannot_be_prepared() {
    let fixture = one_way("presync", COLUMNS, r#"{"mode": "sync"}"#);
    let mut client = fixture.left.client();
    let prepare = format!("prepare transaction '{}'", fixture.left.db);
    let error = refused(
        &mut client,
        &format!("begin; insert into t values (1); {prepare}"),
        "0A000",
    );
    assert!(error.message().contains("\"sync\""), "{error:?}");
    run(&mut client, "rollback");
    assert_eq!(prepared(&fixture.left), [""; 0]);
    // Without a change there is nothing to refuse.
    run(&mut client, &format!("begin; select * from t; {prepare}"));
    run(
        &mut client,
        &format!("rollback prepared '{}'", fixture.left.db),
    );
    run(&mut client, "insert into t values (2, 'b')");
    both_have(&fixture, "t", &["2|b"]);
}

#[test]
fn a_drain_cannot_be_prepared() {
    let fixture = one_way("predrain", COLUMNS, r#"{"mode": "queue"}"#);
    fixture.left.exec("insert into t values (1, 'a')");
    let mut admin = fixture.left.superuser();
    let prepare = format!("prepare transaction '{}'", fixture.left.db);
    refused(
        &mut admin,
        &format!("begin; select deal_sync_err_rec(1); {prepare}"),
        "0A000",
    );
    run(&mut admin, "rollback");
    assert_eq!(queued(&fixture), 1);
    assert_eq!(table(&fixture.right, "t"), [""; 0]);
}
