//! What `overwrite`, `skip` and `error` do with each kind of conflict.

use crate::conflict::cells::{
    CHANGED, Cell, DELETE, GONE_AHEAD, INSERT, MISSING, MOVE, MOVE_EACH, MOVED, NEW, NEW_MOVED,
    NONE, PLAIN, PRESENT, Row, Seen, Shape, TAKEN, UPDATE, run_batches, run_cells,
};
use crate::conflict::view::{counted, fixture, logged, total};
use crate::support::common::{mirror, refused, table};

const THEIRS: &[Row] = &[(0, "r", 1)];
const THEIRS_AHEAD: &[Row] = &[(MOVED, "r", 1)];
const BOTH: &[Row] = &[(0, "l", 5), (MOVED, "r", 1)];

/// What was decided over the row under the change's own key, or one that is so far away.
const fn over(seen: Option<Seen>, above: i64) -> Option<Seen> {
    match seen {
        Some(seen) => Some(Seen {
            server_key: Some(above),
            ..seen
        }),
        None => None,
    }
}

const OVERWRITE: &[Cell] = &[
    Cell {
        there: PRESENT,
        here: INSERT,
        good: NEW,
        bad: NEW,
        seen: over(Seen::applied("insert_exists"), 0),
    },
    Cell {
        there: MISSING,
        here: UPDATE,
        good: NEW,
        bad: NEW,
        seen: Seen::applied("update_missing"),
    },
    Cell {
        there: MISSING,
        here: MOVE,
        good: NEW_MOVED,
        bad: NEW_MOVED,
        seen: Seen::applied("update_missing"),
    },
    Cell {
        there: GONE_AHEAD,
        here: MOVE,
        good: NEW_MOVED,
        bad: NEW_MOVED,
        seen: over(Seen::applied("update_missing"), MOVED),
    },
    Cell {
        there: TAKEN,
        here: MOVE,
        good: NEW_MOVED,
        bad: NEW_MOVED,
        seen: over(Seen::applied("update_exists"), MOVED),
    },
    Cell {
        there: TAKEN,
        here: MOVE_EACH,
        good: NEW_MOVED,
        bad: NEW_MOVED,
        seen: over(Seen::applied("update_exists"), MOVED),
    },
    Cell {
        there: MISSING,
        here: DELETE,
        good: NONE,
        bad: NONE,
        seen: Seen::skipped("delete_missing"),
    },
    // A row that has changed there is not told from one that has not.
    Cell {
        there: CHANGED,
        here: UPDATE,
        good: NEW,
        bad: NEW,
        seen: None,
    },
    Cell {
        there: CHANGED,
        here: MOVE,
        good: NEW_MOVED,
        bad: NEW_MOVED,
        seen: None,
    },
    Cell {
        there: CHANGED,
        here: DELETE,
        good: NONE,
        bad: NONE,
        seen: None,
    },
];

const SKIP: &[Cell] = &[
    Cell {
        there: PRESENT,
        here: INSERT,
        good: NEW,
        bad: THEIRS,
        seen: over(Seen::skipped("insert_exists"), 0),
    },
    Cell {
        there: MISSING,
        here: UPDATE,
        good: NEW,
        bad: NONE,
        seen: Seen::skipped("update_missing"),
    },
    Cell {
        there: MISSING,
        here: MOVE,
        good: NEW_MOVED,
        bad: NONE,
        seen: Seen::skipped("update_missing"),
    },
    Cell {
        there: GONE_AHEAD,
        here: MOVE,
        good: NEW_MOVED,
        bad: THEIRS_AHEAD,
        seen: over(Seen::skipped("update_missing"), MOVED),
    },
    Cell {
        there: TAKEN,
        here: MOVE,
        good: NEW_MOVED,
        bad: BOTH,
        seen: over(Seen::skipped("update_exists"), MOVED),
    },
    Cell {
        there: TAKEN,
        here: MOVE_EACH,
        good: NEW_MOVED,
        bad: BOTH,
        seen: over(Seen::skipped("update_exists"), MOVED),
    },
    Cell {
        there: MISSING,
        here: DELETE,
        good: NONE,
        bad: NONE,
        seen: Seen::skipped("delete_missing"),
    },
    Cell {
        there: CHANGED,
        here: UPDATE,
        good: NEW,
        bad: NEW,
        seen: None,
    },
    Cell {
        there: CHANGED,
        here: MOVE,
        good: NEW_MOVED,
        bad: NEW_MOVED,
        seen: None,
    },
    Cell {
        there: CHANGED,
        here: DELETE,
        good: NONE,
        bad: NONE,
        seen: None,
    },
];

const ERROR: &[Cell] = &[
    Cell {
        there: PRESENT,
        here: INSERT,
        good: NEW,
        bad: THEIRS,
        seen: Seen::failed("insert_exists", "23505"),
    },
    Cell {
        there: MISSING,
        here: UPDATE,
        good: NEW,
        bad: NONE,
        seen: Seen::failed("update_missing", "P0002"),
    },
    Cell {
        there: MISSING,
        here: MOVE_EACH,
        good: NEW_MOVED,
        bad: NONE,
        seen: Seen::failed("update_missing", "P0002"),
    },
    Cell {
        there: GONE_AHEAD,
        here: MOVE_EACH,
        good: NEW_MOVED,
        bad: THEIRS_AHEAD,
        seen: Seen::failed("update_missing", "P0002"),
    },
    Cell {
        there: TAKEN,
        here: MOVE_EACH,
        good: NEW_MOVED,
        bad: BOTH,
        seen: Seen::failed("update_exists", "23505"),
    },
    Cell {
        there: MISSING,
        here: DELETE,
        good: NONE,
        bad: NONE,
        seen: Seen::failed("delete_missing", "P0002"),
    },
    Cell {
        there: CHANGED,
        here: UPDATE,
        good: NEW,
        bad: NEW,
        seen: None,
    },
    Cell {
        there: CHANGED,
        here: DELETE,
        good: NONE,
        bad: NONE,
        seen: None,
    },
];

#[test]
fn overwrite_applies_and_logs_what_it_meets() {
    run_cells(r#""on_conflict": "overwrite""#, OVERWRITE);
}

#[test]
fn skip_leaves_and_logs_what_it_meets() {
    run_cells(r#""on_conflict": "skip""#, SKIP);
}

#[test]
fn error_fails_what_it_meets_and_nothing_else() {
    run_cells(r#""on_conflict": "error""#, ERROR);
}

#[test]
fn skip_works_where_the_key_is_deferrable() {
    let deferrable = "create table {t} (id int primary key deferrable, v text, ver int)";
    let shape = Shape {
        here: deferrable,
        there: deferrable,
    };
    run_batches(r#""on_conflict": "skip""#, shape, SKIP);
}

pub const VIEW: Shape = Shape {
    there: "create table {t}_base (id int primary key, v text, ver int);
            create view {t} as select * from {t}_base",
    here: PLAIN,
};
pub const PARTITIONED: Shape = Shape {
    there: "create table {t} (id int primary key, v text, ver int) partition by range (id);
            create table {t}_low partition of {t} for values from (0) to (700);
            create table {t}_high partition of {t} default",
    here: PLAIN,
};

#[test]
fn overwrite_and_skip_work_where_the_target_is_a_view() {
    run_batches(r#""on_conflict": "overwrite""#, VIEW, OVERWRITE);
    run_batches(r#""on_conflict": "skip""#, VIEW, SKIP);
}

#[test]
fn overwrite_and_skip_work_where_the_target_is_partitioned() {
    run_batches(r#""on_conflict": "overwrite""#, PARTITIONED, OVERWRITE);
    run_batches(r#""on_conflict": "skip""#, PARTITIONED, SKIP);
}

#[test]
fn a_conflict_that_fails_the_local_transaction_is_not_counted() {
    let fixture = fixture();
    let columns = "id int primary key, v text, ver int";
    mirror(
        &fixture,
        "t",
        columns,
        r#"{"mode": "sync", "on_conflict": "error"}"#,
    );
    fixture.right.exec("insert into t values (1, 'r', 1)");
    let mut client = fixture.left.client();
    refused(
        &mut client,
        "insert into t values (1, 'l', 5), (2, 'l', 5)",
        "23505",
    );
    assert_eq!(table(&fixture.left, "t"), [""; 0]);
    assert_eq!(table(&fixture.right, "t"), ["1|r|1"]);
    assert_eq!(total(&fixture), 0);
    assert_eq!(counted(&fixture, "t"), [""; 0]);
    assert_eq!(logged(&fixture, "t"), [""; 0]);
}
