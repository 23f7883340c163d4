//! What deletions and rows count as under `newest`, where the version column does not show it: kept by
//! key, on every node.

use rowsync_harness::fixture::{clusters, fails};
use rowsync_harness::{Fixture, Side};

use crate::support::common::{both_have, rows, run, table};

const COLUMNS: &str = "id int primary key, v text, ver int";
const KEPT: &str = "select version, rank, deleted from sync_row_version order by 1, 2, 3";

/// Sends `t` of one side to the same table of another, by the queue.
fn send_to(from: &Side, to: &Side, server: &str) {
    from.link(to, to.cluster.port(), server, &[])
        .expect("a server");
    from.exec(&format!(
        r#"select attach_sync('t', '{server}', '{}.t',
             '{{"mode": "queue", "on_conflict": "newest", "version_column": "ver"}}')"#,
        to.user
    ));
}

fn masters(label: &str, left: &str, right: &str) -> Fixture {
    let fixture = Fixture::new(label);
    fixture.left.exec(left);
    fixture.right.exec(right);
    send_to(&fixture.left, &fixture.right, "dst");
    send_to(&fixture.right, &fixture.left, "dst");
    fixture
}

fn plain(label: &str) -> Fixture {
    let sql = format!("create table t ({COLUMNS})");
    masters(label, &sql, &sql)
}

fn drain(side: &Side, server: &str) {
    assert!(side.query_one::<bool>(&format!("select deal_sync_err_rec(1000, '{server}')")));
}

#[test]
fn a_deletion_is_known_where_the_row_never_was() {
    let [a, b, c] = [("mesh_a", 0), ("mesh_b", 1), ("mesh_c", 0)].map(|(name, at)| {
        let (one, two) = clusters();
        let side = Side::create(if at == 0 { one } else { two }, name).expect("a database");
        side.exec(&format!("create table t ({COLUMNS})"));
        side
    });
    for (from, to, server) in [
        (&a, &b, "b"),
        (&a, &c, "c"),
        (&b, &a, "a"),
        (&b, &c, "c"),
        (&c, &a, "a"),
        (&c, &b, "b"),
    ] {
        send_to(from, to, server);
    }
    c.exec("insert into t values (1, 'c', 5)");
    drain(&c, "a");
    assert_eq!(table(&a, "t"), ["1|c|5"]);
    a.exec("delete from t");
    drain(&a, "b");
    drain(&a, "c");
    // The row comes to B after its deletion.
    drain(&c, "b");
    for side in [&a, &b, &c] {
        assert_eq!(table(side, "t"), [""; 0], "{}", side.db);
        assert_eq!(rows(side, KEPT), ["5|1|t"], "{}", side.db);
    }
}

#[test]
fn a_partition_keeps_under_the_name_of_its_table() {
    let partitioned = format!(
        "create table t ({COLUMNS}) partition by range (id);
         create table t1 partition of t for values from (0) to (100);
         create table t2 partition of t for values from (100) to (200)"
    );
    let plain = format!("create table t ({COLUMNS})");
    for (label, left, right) in [
        ("parta", &partitioned, &plain),
        ("partb", &plain, &partitioned),
    ] {
        let fixture = masters(label, left, right);
        fixture
            .left
            .exec("insert into t values (1, 'a', 5), (150, 'a', 5)");
        drain(&fixture.left, "dst");
        // Older than the deletion, and not known to it.
        fixture.right.exec("update t set v = 'r', ver = 6");
        fixture.left.exec("update t set ver = 7; delete from t");
        drain(&fixture.right, "dst");
        drain(&fixture.left, "dst");
        both_have(&fixture, "t", &[]);
        for side in [&fixture.left, &fixture.right] {
            assert_eq!(rows(side, KEPT), ["7|1|t", "7|1|t"]);
            let relation = "select distinct relation::regclass from sync_row_version";
            assert_eq!(rows(side, relation), ["t"]);
        }
    }
}

#[test]
fn what_was_rolled_back_is_not_kept() {
    let fixture = plain("rolledback");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a', 5)");
    run(
        &mut client,
        "begin; savepoint s; delete from t; rollback to s; update t set ver = 6; commit",
    );
    assert_eq!(rows(&fixture.left, KEPT), [""; 0]);
    run(
        &mut client,
        "begin; update t set v = 'b'; savepoint s; update t set v = 'c'",
    );
    run(&mut client, "rollback to s; commit");
    assert_eq!(rows(&fixture.left, KEPT), ["6|1|f"]);
    drain(&fixture.left, "dst");
    both_have(&fixture, "t", &["1|b|6"]);
    assert_eq!(rows(&fixture.right, KEPT), ["6|1|f"]);
    // A version that grows needs no help any more.
    run(&mut client, "update t set ver = 7");
    drain(&fixture.left, "dst");
    both_have(&fixture, "t", &["1|b|7"]);
    for side in [&fixture.left, &fixture.right] {
        assert_eq!(rows(side, KEPT), [""; 0]);
    }
}

#[test]
fn keys_that_are_equal_and_written_differently_are_one() {
    let sql = "create table t (id numeric primary key, v text, ver int)";
    let fixture = masters("numerickeys", sql, sql);
    fixture.left.exec("insert into t values (1.0, 'a', 5)");
    drain(&fixture.left, "dst");
    fixture.left.exec("update t set id = 1.00, v = 'b'");
    assert_eq!(rows(&fixture.left, KEPT), ["5|1|f"]);
    drain(&fixture.left, "dst");
    assert_eq!(
        rows(&fixture.right, "select id = 1, v, ver from t"),
        ["t|b|5"]
    );
    assert_eq!(rows(&fixture.right, KEPT), ["5|1|f"]);
    fixture.right.exec("delete from t");
    drain(&fixture.right, "dst");
    both_have(&fixture, "t", &[]);
    assert_eq!(rows(&fixture.left, KEPT), ["5|2|t"]);
}

#[test]
fn the_functions_are_for_those_who_may_write_the_table() {
    let fixture = plain("strangers");
    let left = &fixture.left.user;
    let right = &fixture.right.user;
    fixture.left.exec_superuser(&format!(
        "create role stranger_{left} login password 'x';
         grant usage on schema \"{left}\" to stranger_{left}; grant select on {left}.t to stranger_{left}"
    ));
    let mut stranger = fixture
        .left
        .cluster
        .connect_as(&fixture.left.db, &format!("stranger_{left}"), "x", "psql")
        .expect("a session");
    let args = format!("'{left}.t', 1, 'int', '5', 0");
    for call in [
        format!("sync_compare_versions({args}, '4')"),
        format!("sync_deleted_later({args})"),
        format!("sync_keep_version('{left}.t', row(1), 'int', '5', 0, true, true, null)"),
        format!("sync_row_has_come('{left}.t', row(1))"),
    ] {
        let error = fails(stranger.batch_execute(&format!("select {call}")));
        assert_eq!(error.code().code(), "42501", "{call}");
    }
    let error = fails(stranger.batch_execute("select * from sync_row_version"));
    assert_eq!(error.code().code(), "42501");
    assert_eq!(rows(&fixture.left, KEPT), [""; 0]);
    // Nothing is kept for a table that sends nothing.
    fixture.right.exec(&format!(
        "create table own ({COLUMNS}); 
         select sync_keep_version('{right}.own', row(1), 'int', '5', 1, true, true, null)"
    ));
    assert_eq!(rows(&fixture.right, KEPT), [""; 0]);
    drop(stranger);
    fixture.left.exec_superuser(&format!(
        "drop owned by stranger_{left}; drop role stranger_{left}"
    ));
}

#[test]
fn types_without_order_or_hash_are_refused() {
    let fixture = Fixture::new("untyped");
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    for (columns, what) in [
        (
            "id bit(3) primary key, ver int",
            "type bit has no hash function",
        ),
        ("id int primary key, ver json", "type json has no order"),
    ] {
        fixture.left.exec(&format!("create table t ({columns})"));
        let attach = r#"select attach_sync('t', 'dst', 't',
                          '{"on_conflict": "newest", "version_column": "ver"}')"#;
        let error = fails(fixture.left.client().batch_execute(attach));
        assert_eq!((error.code().code(), error.message()), ("42883", what));
        assert!(error.hint().is_some());
        fixture.left.exec("drop table t");
    }
}
