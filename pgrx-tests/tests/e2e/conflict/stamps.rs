//! Stamps under `newest`: who may write them, for which row they count, and what writing them locks.

use postgres::Client;
use rowsync_harness::Fixture;

use crate::conflict::newest_masters::{agreed, masters, masters_of};
use crate::support::common::{Role, both_have, refused, rows, run, same};

const KEPT: &str = "select version, rank, deleted, shown from sync_row_version order by 1, 2, 3";

fn send(fixture: &Fixture) {
    assert!(
        fixture
            .left
            .query_one::<bool>("select deal_sync_err_rec(10000)")
    );
    assert_eq!(fixture.left.queued().expect("a queue"), 0);
}

/// A call that keeps a stamp for a key.
fn keep(id: &str, version: &str, deleted: bool, shown: &str) -> String {
    format!("select sync_keep_version('t', row({id}), {version}, 5, {deleted}, false, {shown})")
}

#[test]
fn only_who_has_written_a_row_writes_its_stamp() {
    let fixture = masters("stampsrights");
    fixture
        .left
        .exec("insert into t values (1, 'owner', 1), (2, 'owner', 1)");
    send(&fixture);
    let role = Role::create(&fixture.left, "inserter", "");
    fixture
        .left
        .exec(&format!("grant insert on t to {}", role.name));
    let mut client = role.client_named("psql");
    let largest = "'int', '2147483647'";
    // Rows of others, keys of nobody, deletions.
    for (id, deleted) in [("1", false), ("1", true), ("8", false), ("8", true)] {
        refused(&mut client, &keep(id, largest, deleted, "null"), "42501");
    }
    // A row of its own, with more than a key, or no version of the table's.
    run(
        &mut client,
        "begin; insert into t values (3, 'own', 1); savepoint s",
    );
    for (call, sqlstate) in [
        (keep("3, 2", largest, false, "'1'"), "22023"),
        (keep("3", "'text', 'garbage'", false, "'1'"), "22P02"),
    ] {
        refused(&mut client, &call, sqlstate);
        run(&mut client, "rollback to s");
    }
    run(&mut client, "rollback");
    assert_eq!(rows(&fixture.left, KEPT), [""; 0]);
    // Nobody is in the way of the owner and of the other master.
    fixture
        .right
        .exec("update t set v = 'right', ver = 2 where id = 2");
    assert!(
        fixture
            .right
            .query_one::<bool>("select deal_sync_err_rec(10000)")
    );
    fixture
        .left
        .exec("update t set v = 'left', ver = 3 where id = 1; insert into t values (8, 'o', 1)");
    send(&fixture);
    both_have(&fixture, "t", &["1|left|3", "2|right|2", "8|o|1"]);
}

/// Tables `t` whose keys have this type, a row of the owner's, and a session of a role that may insert, in a
/// transaction with a row of its own.
fn inserter(label: &str, key: &str, owned: &str, own: &str) -> (Fixture, Role, Client) {
    let columns = format!("id {key} primary key, v text, ver int");
    let fixture = masters_of(label, &columns, &columns);
    fixture
        .left
        .exec(&format!("insert into t values ({owned}, 'owner', 1)"));
    send(&fixture);
    let role = Role::create(&fixture.left, "inserter", "");
    fixture
        .left
        .exec(&format!("grant insert on t to {}", role.name));
    let mut client = role.client_named("psql");
    run(
        &mut client,
        &format!("begin; insert into t values ({own}, 'own', 1)"),
    );
    (fixture, role, client)
}

/// A row of its own would name another row's stamp, where the key's type gives it the other's hash.
#[test]
fn a_key_of_another_type_is_no_way_to_the_stamp_of_another_row() {
    let keys = [
        ("text", "'ada'", "'ada '", "'ada '::bpchar"),
        ("varchar(8)", "'ada'", "'ada '", "'ada '::bpchar"),
        (
            "text[]",
            "'{ada}'",
            r#"'{"ada "}'"#,
            r#"'{"ada "}'::bpchar[]"#,
        ),
    ];
    for (at, (key, owned, own, disguised)) in keys.into_iter().enumerate() {
        let (fixture, _role, mut client) = inserter(&format!("stampstypes{at}"), key, owned, own);
        let stamp = "'int', '2147483647'";
        refused(&mut client, &keep(disguised, stamp, false, "'1'"), "22023");
        run(&mut client, "rollback");
        assert_eq!(rows(&fixture.left, KEPT), [""; 0], "{key}");
    }
    // An enum's label hashes as its OID: the owner's row has that for its key.
    let (fixture, _role, mut client) = inserter("stampsenum", "int", "1", "0");
    fixture.left.exec("create type labels as enum ('0')");
    fixture.left.exec(
        "insert into t select e.oid::bigint::int, 'owner', 1 from pg_enum e
         where e.enumtypid = 'labels'::regtype",
    );
    let schema = &fixture.left.user;
    let label = format!("'0'::{schema}.labels");
    refused(
        &mut client,
        &keep(&label, "'int', '2147483647'", false, "'1'"),
        "22023",
    );
}

/// Types that hash alike and convert into each other are one key.
#[test]
fn a_key_of_a_type_that_hashes_alike_is_the_rows_own() {
    let (fixture, _role, mut client) = inserter("stampsalike", "varchar(8)", "'ada'", "'bob'");
    let own = keep("'bob'::text", "'int', '7'", false, "'1'");
    run(&mut client, &format!("{own}; commit"));
    assert_eq!(rows(&fixture.left, KEPT), ["7|5|f|1"]);
}

#[test]
fn stamps_of_deletions_are_for_who_may_delete_and_of_the_columns_type() {
    let fixture = masters("stampsdelete");
    fixture.left.exec("insert into t values (1, 'owner', 1)");
    send(&fixture);
    let [deleter, updater] =
        ["deleter", "updater"].map(|name| Role::create(&fixture.left, name, ""));
    fixture
        .left
        .exec(&format!("grant select, delete on t to {}", deleter.name));
    fixture
        .left
        .exec(&format!("grant select, update on t to {}", updater.name));
    let mut client = deleter.client_named("pg_rowsync");
    refused(
        &mut client,
        &keep("7", "'text', 'garbage'", true, "null"),
        "22P02",
    );
    run(&mut client, &keep("7", "'int', '4'", true, "null"));
    assert_eq!(rows(&fixture.left, KEPT), ["4|5|t|~"]);
    // Who may only update may keep what an old key counts as once the row has moved from it.
    let mut client = updater.client_named("pg_rowsync");
    refused(&mut client, &keep("1", "'int', '4'", true, "null"), "42501");
    let moved = keep("1", "'int', '3'", true, "null");
    run(
        &mut client,
        &format!("begin; update t set id = 2; {moved}; commit"),
    );
    assert_eq!(rows(&fixture.left, KEPT), ["3|5|t|~", "4|5|t|~"]);
}

/// A row whose stamp is kept on both sides, rank 1.
fn stamped(label: &str) -> Fixture {
    let fixture = masters(label);
    agreed(&fixture);
    fixture.left.exec("update t set v = 'stamped'");
    send(&fixture);
    for side in [&fixture.left, &fixture.right] {
        assert_eq!(rows(side, KEPT), ["5|1|f|5"]);
    }
    fixture
}

#[test]
fn a_row_that_was_rewritten_without_capture_counts_as_its_larger_version() {
    let rewrites: [(&str, &str); 3] = [
        (
            "under the guard's name",
            "set application_name = 'pg_rowsync'; {}",
        ),
        (
            "by another kind of session",
            "set session_replication_role = replica; {}",
        ),
        (
            "with the triggers disabled",
            "alter table t disable trigger user; {}; alter table t enable trigger user",
        ),
    ];
    for (at, (how, sql)) in rewrites.into_iter().enumerate() {
        let fixture = stamped(&format!("rewritten{at}"));
        fixture.left.exec("update t set v = 'older', ver = 7");
        for side in [&fixture.left, &fixture.right] {
            let write = "update t set v = 'mended', ver = 9";
            side.exec_superuser(&format!(
                "set search_path = {}, public; {}",
                side.user,
                sql.replace("{}", write)
            ));
        }
        send(&fixture);
        assert_eq!(same(&fixture, "t"), ["1|mended|9"], "{how}");
        // What is written with knowledge of it wins.
        fixture.right.exec("update t set v = 'a'");
        assert!(
            fixture
                .right
                .query_one::<bool>("select deal_sync_err_rec(10000)")
        );
        assert_eq!(same(&fixture, "t"), ["1|a|9"], "{how}");
        assert_eq!(rows(&fixture.left, KEPT), ["9|1|f|9"], "{how}");
    }
}

#[test]
fn a_row_that_was_rewritten_with_a_smaller_version_counts_as_before() {
    let fixture = stamped("rewrittenless");
    run(
        &mut fixture.right.client_named("pg_rowsync"),
        "update t set v = 'less', ver = 2",
    );
    fixture.left.exec("update t set v = 'newer', ver = 6");
    fixture.right.exec("update t set v = 'again', ver = 3");
    // It was written with knowledge of the kept stamp.
    assert_eq!(rows(&fixture.right, KEPT), ["5|2|f|3"]);
    send(&fixture);
    assert!(
        fixture
            .right
            .query_one::<bool>("select deal_sync_err_rec(10000)")
    );
    both_have(&fixture, "t", &["1|newer|6"]);
}

#[test]
fn many_inserts_take_no_lock_for_each_row() {
    let fixture = masters("stampslocks");
    fixture.left.exec("create table u (like t including all)");
    fixture.left.exec(
        r#"select attach_sync('u', 'dst', options => '{"mode": "queue", "on_conflict": "newest",
                      "version_column": "ver", "key": ["id"]}')"#,
    );
    let mut client = fixture.left.client();
    run(&mut client, "begin");
    for table in ["t", "u"] {
        let insert =
            format!("insert into {table} select g, 'x', 1 from generate_series(1, 3000) g");
        run(&mut client, &insert);
    }
    let locks = "select count(*) from pg_locks where pid = pg_backend_pid()
        and locktype not in ('relation', 'virtualxid', 'transactionid')";
    assert_eq!(crate::support::common::query(&mut client, locks), ["0"]);
    run(&mut client, "rollback");
}

/// Nor do updates, deletions and moves, in savepoints and of rows that are written twice.
#[test]
fn no_statement_takes_a_lock_for_each_row() {
    let fixture = masters("stampsmorelocks");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t select g, 'x', 1 from generate_series(1, 3000) g",
    );
    let locks = "select count(*) from pg_locks where pid = pg_backend_pid()
        and locktype not in ('relation', 'virtualxid', 'transactionid')";
    for statement in [
        "update t set ver = 2",
        "update t set id = id + 10000",
        "delete from t",
        "insert into t select g, 'y', 3 from generate_series(1, 3000) g on conflict do nothing",
        "savepoint s; delete from t; rollback to s; delete from t",
        "truncate t",
    ] {
        run(&mut client, &format!("begin; {statement}"));
        let taken: i64 = crate::support::common::query(&mut client, locks)[0]
            .parse()
            .expect("a number");
        assert!(taken <= 16, "{statement}: {taken} locks");
        run(&mut client, "rollback");
    }
}

/// A deletion arrives for a row that is not there, while others insert rows of other keys.
fn deletion_beside_a_load(label: &str, columns: &str) {
    let fixture = masters(label);
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!(
            "drop table t cascade; {columns}; create table other (id int primary key)"
        ));
    }
    for (side, other) in [
        (&fixture.left, &fixture.right),
        (&fixture.right, &fixture.left),
    ] {
        side.exec(&format!(
            r#"select attach_sync('t', 'dst', '{0}.t',
                 '{{"mode": "queue", "on_conflict": "newest", "version_column": "ver"}}');
               select attach_sync('other', 'dst', '{0}.other', '{{"mode": "queue"}}')"#,
            other.user
        ));
    }
    fixture
        .left
        .exec("insert into t values (1, 'a', 1), (2, 'a', 1)");
    send(&fixture);
    run(
        &mut fixture.right.client_named("pg_rowsync"),
        "delete from t where id = 1",
    );
    let mut load = fixture.right.client();
    run(
        &mut load,
        "begin; insert into t select g, 'load', 1 from generate_series(10000, 13000) g",
    );
    fixture
        .left
        .exec("delete from t; insert into other values (1)");
    send(&fixture);
    assert_eq!(rows(&fixture.right, "select id from other"), ["1"]);
    assert_eq!(rows(&fixture.right, "select count(*) from t"), ["0"]);
    run(&mut load, "commit");
    assert_eq!(
        rows(
            &fixture.right,
            "select count(*) from sync_row_version where deleted"
        ),
        ["2"]
    );
    assert!(
        fixture
            .right
            .query_one::<bool>("select deal_sync_err_rec(100000)")
    );
    assert_eq!(same(&fixture, "t").len(), 3_001);
}

#[test]
fn a_deletion_of_a_missing_row_does_not_wait_for_inserts_of_others() {
    deletion_beside_a_load(
        "loadplain",
        "create table t (id int primary key, v text, ver int)",
    );
}

#[test]
fn nor_does_it_where_the_table_is_partitioned() {
    deletion_beside_a_load(
        "loadparts",
        "create table t (id int primary key, v text, ver int) partition by hash (id);
         create table t0 partition of t for values with (modulus 2, remainder 0);
         create table t1 partition of t for values with (modulus 2, remainder 1)",
    );
}
