//! What `newest` does with each kind of conflict, decided by versions and by deletions.

use crate::conflict::cells::{
    CHANGED, Cell, DELETE, GONE_AHEAD, INSERT, MISSING, MOVE, MOVED, NEW, NEW_MOVED, NONE, PRESENT,
    Row, Seen, Shape, TAKEN, UPDATE, run_batches, run_cells,
};
use crate::conflict::policies::{PARTITIONED, VIEW};

const NEWEST: &str = r#""on_conflict": "newest", "version_column": "ver""#;

const PRESENT_NEWER: &str =
    "insert into {t} select id, 'r', 9 from generate_series(1, {n}) id where {bad}";
const TAKEN_NEWER: &str =
    "insert into {t} select id + 10000, 'r', 9 from generate_series(1, {n}) id where {bad}";
const GONE_AHEAD_NEWER: &str = "update {t} set id = id + 10000, v = 'r', ver = 9 where {bad}";
const CHANGED_OLDER: &str = "update {t} set v = 'r', ver = 4 where {bad}";

const NEWER: &[Row] = &[(0, "r", 9)];
const NEWER_AHEAD: &[Row] = &[(MOVED, "r", 9)];

/// With the change's version and, where a row was met, how far it is away and its version.
const fn at(
    seen: Option<Seen>,
    version: &'static str,
    met: Option<(i64, &'static str)>,
) -> Option<Seen> {
    let Some(seen) = seen else { return None };
    let (server_key, server_version) = match met {
        Some((above, version)) => (Some(above), Some(version)),
        None => (None, None),
    };
    Some(Seen {
        version: Some(version),
        server_key,
        server_version,
        ..seen
    })
}

const CELLS: &[Cell] = &[
    Cell {
        there: PRESENT,
        here: INSERT,
        good: NEW,
        bad: NEW,
        seen: at(Seen::applied("insert_exists"), "6", Some((0, "1"))),
    },
    Cell {
        there: PRESENT_NEWER,
        here: INSERT,
        good: NEW,
        bad: NEWER,
        seen: at(Seen::skipped("insert_exists"), "6", Some((0, "9"))),
    },
    Cell {
        there: MISSING,
        here: UPDATE,
        good: NEW,
        bad: NEW,
        seen: at(Seen::applied("update_missing"), "6", None),
    },
    Cell {
        there: CHANGED,
        here: UPDATE,
        good: NEW,
        bad: NEWER,
        seen: at(Seen::skipped("update_origin_differs"), "6", Some((0, "9"))),
    },
    // Another row than the one that was updated, but an older one.
    Cell {
        there: CHANGED_OLDER,
        here: UPDATE,
        good: NEW,
        bad: NEW,
        seen: None,
    },
    Cell {
        there: MISSING,
        here: MOVE,
        good: NEW_MOVED,
        bad: NEW_MOVED,
        seen: at(Seen::applied("update_missing"), "6", None),
    },
    Cell {
        there: GONE_AHEAD,
        here: MOVE,
        good: NEW_MOVED,
        bad: NEW_MOVED,
        seen: at(Seen::applied("update_missing"), "6", Some((MOVED, "1"))),
    },
    Cell {
        there: GONE_AHEAD_NEWER,
        here: MOVE,
        good: NEW_MOVED,
        bad: NEWER_AHEAD,
        seen: at(Seen::skipped("update_missing"), "6", Some((MOVED, "9"))),
    },
    Cell {
        there: TAKEN,
        here: MOVE,
        good: NEW_MOVED,
        bad: NEW_MOVED,
        seen: at(Seen::applied("update_exists"), "6", Some((MOVED, "1"))),
    },
    // The newer row stays, and the old key is vacated all the same.
    Cell {
        there: TAKEN_NEWER,
        here: MOVE,
        good: NEW_MOVED,
        bad: NEWER_AHEAD,
        seen: at(Seen::skipped("update_exists"), "6", Some((MOVED, "9"))),
    },
    Cell {
        there: MISSING,
        here: DELETE,
        good: NONE,
        bad: NONE,
        seen: at(Seen::skipped("delete_missing"), "5", None),
    },
    Cell {
        there: CHANGED,
        here: DELETE,
        good: NONE,
        bad: NEWER,
        seen: at(Seen::skipped("delete_origin_differs"), "5", Some((0, "9"))),
    },
    Cell {
        there: CHANGED_OLDER,
        here: DELETE,
        good: NONE,
        bad: NONE,
        seen: None,
    },
];

#[test]
fn newest_lets_the_newer_side_win_and_logs_it() {
    run_cells(NEWEST, CELLS);
}

#[test]
fn newest_works_where_the_key_is_deferrable() {
    let deferrable = "create table {t} (id int primary key deferrable, v text, ver int)";
    run_batches(
        NEWEST,
        Shape {
            here: deferrable,
            there: deferrable,
        },
        CELLS,
    );
}

#[test]
fn newest_works_where_the_target_is_a_view() {
    run_batches(NEWEST, VIEW, CELLS);
}

#[test]
fn newest_works_where_the_target_is_partitioned() {
    run_batches(NEWEST, PARTITIONED, CELLS);
}

/// What is deleted there is known there: the server has a trigger of its own, whose changes stay.
const DELETED_NEWER: &str = r#"
    select attach_sync('{t}', 'back', '{t}',
        '{"mode": "queue", "on_conflict": "newest", "version_column": "ver"}');
    update {t} set v = 'r', ver = 9 where {bad}; delete from {t} where {bad}"#;
const DELETED_OLDER: &str = r#"
    select attach_sync('{t}', 'back', '{t}',
        '{"mode": "queue", "on_conflict": "newest", "version_column": "ver"}');
    delete from {t} where {bad}"#;

/// No row was met; the log shows the change's version.
const fn deleted(seen: Option<Seen>, version: &'static str) -> Option<Seen> {
    let Some(seen) = seen else { return None };
    Some(Seen {
        version: Some(version),
        ..seen
    })
}

const DELETED: &[Cell] = &[
    Cell {
        there: DELETED_NEWER,
        here: UPDATE,
        good: NEW,
        bad: NONE,
        seen: deleted(Seen::skipped("update_missing"), "6"),
    },
    Cell {
        there: DELETED_OLDER,
        here: UPDATE,
        good: NEW,
        bad: NEW,
        seen: deleted(Seen::applied("update_missing"), "6"),
    },
    Cell {
        there: DELETED_NEWER,
        here: DELETE,
        good: NONE,
        bad: NONE,
        seen: deleted(Seen::skipped("delete_missing"), "5"),
    },
];

#[test]
fn an_update_older_than_a_deletion_there_is_skipped() {
    run_cells(NEWEST, DELETED);
}
