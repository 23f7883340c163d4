//! What `on_conflict` makes of a remote row that is not what the change expects.

use rowsync_harness::Fixture;

use crate::support::common::{deal, one_way, queued, records, refused, run, table};

const COLUMNS: &str = "id int primary key, v text, ver int";

/// Row 1 on both sides, 2 and 4 only on the left, 3 only on the right, under different values.
fn diverged(label: &str, options: &str) -> Fixture {
    let fixture = one_way(label, COLUMNS, options);
    let mut guarded = fixture.left.client_named("pg_rowsync");
    run(
        &mut guarded,
        "insert into t values (1, 'left', 5), (2, 'left', 5), (4, 'left', 5)",
    );
    fixture
        .right
        .exec("insert into t values (1, 'right', 7), (3, 'right', 7)");
    fixture
}

#[test]
fn overwrite_makes_the_remote_row_the_local_one() {
    for mode in ["sync", "queue"] {
        let fixture = diverged("overwrite", &format!(r#"{{"mode": "{mode}"}}"#));
        fixture
            .left
            .exec("insert into t values (3, 'new', 1); update t set v = 'up' where id < 3");
        fixture
            .left
            .exec("delete from t where id = 4; update t set id = 5 where id = 2");
        assert!(deal(&fixture, "100"));
        assert_eq!(table(&fixture.right, "t"), ["1|up|5", "3|new|1", "5|up|5"]);
        assert_eq!(queued(&fixture), 0);
    }
}

#[test]
fn skip_leaves_the_remote_row_alone() {
    let fixture = diverged("skip", r#"{"mode": "sync", "on_conflict": "skip"}"#);
    fixture
        .left
        .exec("insert into t values (3, 'new', 1), (6, 'new', 1); update t set v = 'up'");
    assert_eq!(table(&fixture.right, "t"), ["1|up|5", "3|up|1", "6|up|1"]);
    fixture.left.exec("delete from t where id in (1, 4)");
    assert_eq!(table(&fixture.right, "t"), ["3|up|1", "6|up|1"]);
}

#[test]
fn error_fails_the_change_set() {
    let fixture = diverged("error", r#"{"mode": "sync", "on_conflict": "error"}"#);
    let mut client = fixture.left.client();
    for (sql, sqlstate) in [
        ("insert into t values (3, 'new', 1)", "23505"),
        ("update t set v = 'up' where id = 2", "P0002"),
        ("update t set id = 9 where id = 2", "P0002"),
        ("delete from t where id in (1, 2)", "P0002"),
    ] {
        refused(&mut client, sql, sqlstate);
        assert_eq!(
            table(&fixture.right, "t"),
            ["1|right|7", "3|right|7"],
            "{sql}"
        );
        assert_eq!(
            table(&fixture.left, "t"),
            ["1|left|5", "2|left|5", "4|left|5"],
            "{sql}"
        );
    }
    run(
        &mut client,
        "update t set v = 'up' where id = 1; insert into t values (6, 'new', 1)",
    );
    assert_eq!(
        table(&fixture.right, "t"),
        ["1|up|5", "3|right|7", "6|new|1"]
    );
}

#[test]
fn error_in_async_queues_the_change_with_the_reason() {
    let fixture = diverged("later", r#"{"on_conflict": "error"}"#);
    fixture.left.exec("update t set v = 'up' where id = 2");
    assert_eq!(records(&fixture), ["UPDATE|P0002|1|pending"]);
    assert!(!deal(&fixture, "10"));
    assert_eq!(records(&fixture), ["UPDATE|P0002|2|failed"]);
    fixture.right.exec("insert into t values (2, 'there', 1)");
    assert!(deal(&fixture, "10"));
    assert_eq!(
        table(&fixture.right, "t"),
        ["1|right|7", "2|up|5", "3|right|7"]
    );
}

#[test]
fn newest_lets_the_larger_version_win() {
    for mode in ["sync", "queue"] {
        let options =
            format!(r#"{{"mode": "{mode}", "on_conflict": "newest", "version_column": "ver"}}"#);
        let fixture = diverged("newest", &options);
        let mut client = fixture.left.client();
        run(
            &mut client,
            "update t set v = 'older', ver = 6 where id = 1",
        );
        run(
            &mut client,
            "insert into t values (3, 'older', 6); update t set v = 'new' where id = 2",
        );
        assert!(deal(&fixture, "100"));
        assert_eq!(
            table(&fixture.right, "t"),
            ["1|right|7", "2|new|5", "3|right|7"]
        );
        run(&mut client, "delete from t where id = 1");
        run(
            &mut client,
            "update t set v = 'newer', ver = 8 where id = 3",
        );
        assert!(deal(&fixture, "100"));
        assert_eq!(
            table(&fixture.right, "t"),
            ["1|right|7", "2|new|5", "3|newer|8"]
        );
        run(&mut client, "delete from t where id = 3");
        assert!(deal(&fixture, "100"));
        assert_eq!(table(&fixture.right, "t"), ["1|right|7", "2|new|5"]);
    }
}

#[test]
fn a_row_that_has_moved_before_is_written_where_it_is() {
    for key in ["primary key", "primary key deferrable"] {
        let fixture = one_way("moved", &format!("id int {key}, v text"), "{}");
        fixture.left.exec("insert into t values (1, 'a'), (2, 'b')");
        fixture.right.exec("update t set id = id + 10");
        fixture.left.exec("update t set id = id + 10, v = 'moved'");
        assert_eq!(queued(&fixture), 0, "{key}");
        assert_eq!(
            table(&fixture.right, "t"),
            ["11|moved", "12|moved"],
            "{key}"
        );
    }
}
