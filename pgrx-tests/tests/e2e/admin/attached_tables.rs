//! `sync_tables`: what is attached, and in which state.

use crate::support::common::{Role, attach, deal, linked, mirror, one_way, query, rows, run};
use crate::support::reject_values;

const COLUMNS: &str = "id int primary key, v text";
const QUEUE: &str = r#"{"mode": "queue"}"#;

#[test]
fn it_has_the_columns_of_the_contract() {
    let fixture = linked("tablescols");
    let columns = "select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attnum)
                     from pg_attribute where attrelid = 'sync_tables'::regclass and attnum > 0";
    let expected = "relation regclass, server name, target text, mode text, policy text, state text, \
         pending bigint, failed bigint, waiting bigint, options jsonb, problem text, \
         may_be_ahead_since timestamp with time zone";
    assert_eq!(rows(&fixture.left, columns), [expected]);
}

#[test]
fn each_table_has_a_row_for_each_target() {
    let fixture = linked("tablesrows");
    fixture.link(&fixture.left, &fixture.right, "also", &[]);
    let schema = &fixture.right.user;
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!(
            "create table t ({COLUMNS}); create table \"T.2\" (id int primary key, version int);
             create table parts ({COLUMNS}) partition by range (id);
             create table parts1 partition of parts for values from (0) to (10)"
        ));
    }
    fixture.left.exec(&format!(
        r#"select attach_sync('t', 'dst', '{schema}.t');
           select attach_sync('t', 'also', '{schema}."T.2"', '{{"mode": "sync", "on_conflict": "skip"}}');
           select attach_sync('"T.2"', 'dst', '{schema}."T.2"',
             '{{"on_conflict": "newest", "version_column": "version", "mode": "queue"}}');
           select attach_sync('parts', 'dst', '{schema}.parts');
           create trigger ins after insert on t for each row
             execute function sync_dml('dst', '{schema}', 'other', '{{"on_conflict": "error"}}');
           create trigger upd after update on t for each row when (new.v <> '')
             execute function sync_dml('dst', '{schema}', 'other', '{{"mode": "sync", "on_conflict": "error"}}')"#
    ));
    let found = rows(
        &fixture.left,
        "select relation, server, target, mode, policy, state, options->>'on_conflict' from sync_tables
          order by relation::text collate \"C\", server, target",
    );
    let expected = [
        format!("\"T.2\"|dst|{schema}.\"T.2\"|queue|newest|live|newest"),
        format!("parts|dst|{schema}.parts|async|overwrite|live|~"),
        format!("t|also|{schema}.\"T.2\"|sync|skip|live|skip"),
        format!("t|dst|{schema}.other|sync|error|live|error"),
        format!("t|dst|{schema}.t|async|overwrite|live|~"),
    ];
    assert_eq!(found, expected);
}

#[test]
fn the_state_is_what_a_commit_would_find() {
    let fixture = one_way("tablesstate", COLUMNS, "{}");
    mirror(&fixture, "other", COLUMNS, QUEUE);
    reject_values::build(&fixture);
    let state =
        "select relation, state, pending, failed, waiting from sync_tables order by relation::text";
    assert_eq!(
        rows(&fixture.left, state),
        ["other|live|0|0|0", "t|live|0|0|0"]
    );
    fixture.left.exec("insert into other values (1, 'a')");
    assert_eq!(
        rows(&fixture.left, state),
        ["other|queueing|1|0|0", "t|queueing|0|0|0"]
    );
    assert!(deal(&fixture, "10"));
    reject_values::close(&fixture, "bad", "23514", None);
    fixture.left.exec("insert into t values (1, 'bad')");
    assert!(!deal(&fixture, "10"));
    fixture.left.exec("update t set v = 'good'");
    assert_eq!(
        rows(&fixture.left, state),
        ["other|live|0|0|0", "t|failed|0|1|1"]
    );
    fixture
        .left
        .exec("alter table other disable trigger \"00_pg_rowsync_dst_dml\"");
    assert_eq!(
        rows(&fixture.left, state),
        ["other|disabled|0|0|0", "t|failed|0|1|1"]
    );
    fixture.left.exec("alter table other enable trigger all");
    fixture.left.exec("create trigger wrong after insert on other for each row execute function sync_dml('dst', 's')");
    let problem = "select state, mode, options, problem from sync_tables where state = 'invalid'";
    assert_eq!(
        rows(&fixture.left, problem),
        ["invalid|~|~|sync_dml takes 3 or 4 arguments, not 2"]
    );
    fixture.left.exec(
        "drop trigger wrong on other; create trigger wrong after insert on other for each row
         execute function sync_dml('dst', 's', 't', '{\"moed\": 1}')",
    );
    assert_eq!(
        rows(
            &fixture.left,
            "select count(*) from sync_tables where state = 'invalid'"
        ),
        ["1"]
    );
}

#[test]
fn partitions_records_are_their_tables() {
    let fixture = linked("tablesparts");
    fixture.left.exec(&format!(
        "create table t ({COLUMNS}) partition by range (id);
         create table t1 partition of t for values from (0) to (10);
         create table t2 partition of t for values from (10) to (20)"
    ));
    fixture.right.exec(&format!("create table t ({COLUMNS})"));
    attach(&fixture, "t", QUEUE);
    fixture
        .left
        .exec("insert into t values (1, 'a'), (11, 'b'), (12, 'c')");
    assert_eq!(
        rows(
            &fixture.left,
            "select relation, state, pending from sync_tables"
        ),
        ["t|queueing|3"]
    );
}

#[test]
fn who_owns_a_table_sees_it_and_who_watches_sees_all() {
    let fixture = one_way("tablesrights", COLUMNS, "{}");
    let outsider = Role::create(&fixture.left, "outsider", "");
    let watcher = Role::create(&fixture.left, "watcher", "");
    fixture
        .left
        .exec_superuser(&format!("grant select on sync_status to {}", watcher.name));
    let all = "select relation, state from sync_tables";
    assert_eq!(query(&mut fixture.left.client(), all), ["t|live"]);
    assert_eq!(query(&mut watcher.client(), all), ["t|live"]);
    assert_eq!(query(&mut outsider.client(), all), [""; 0]);
    run(&mut fixture.left.superuser(), "select * from sync_tables");
}
