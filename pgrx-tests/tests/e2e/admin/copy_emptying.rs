//! A target that is emptied for a copy, and tables there that refer to it: their rows are not the copy's.

use std::time::Duration;

use rowsync_harness::fixture::{Fixture, await_until};

use crate::support::common::{mirror, queued, rows, same};
use crate::support::preloaded::{EAGER, preloaded};

const LONG: Duration = Duration::from_secs(100);

/// A table `t` that is sent and has a row there that it has not here; and there a table `own` of the target's.
fn arrange(label: &str, own: &str) -> Fixture {
    let fixture = preloaded(label, EAGER);
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", "id int primary key, v text", "{}");
    fixture.left.exec(
        "alter table t disable trigger user;
         insert into t values (1, 'a'), (2, 'b'); alter table t enable trigger user",
    );
    fixture
        .right
        .exec("insert into t values (1, 'old'), (3, 'extra')");
    fixture.right.exec(own);
    fixture
}

fn copied(fixture: &Fixture, existing: &str) -> String {
    fixture
        .left
        .exec(&format!("select copy_sync('t', 'dst', '{existing}')"));
    let mut reported = String::new();
    await_until(LONG, "the copy to end", || {
        let sql = "select state, sqlstate, message from sync_progress order by id desc limit 1";
        reported = rows(&fixture.left, sql).remove(0);
        reported.starts_with("done") || reported.starts_with("failed")
    });
    reported
}

#[test]
fn emptying_a_target_takes_no_rows_of_tables_that_refer_to_it() {
    for (number, action) in ["cascade", "set null", "set default"].iter().enumerate() {
        let fixture = arrange(
            &format!("emptying_{number}"),
            &format!(
                "create table own (id int primary key, t int default 2 references t on delete {action});
                 insert into own values (1, 1)"
            ),
        );
        let reported = copied(&fixture, "truncate");
        assert_eq!(
            rows(&fixture.right, "select id, t from own"),
            ["1|1"],
            "{action}"
        );
        assert!(
            reported.starts_with("failed|55000|"),
            "{action}: {reported}"
        );
        assert!(reported.contains("\"own\""), "{action}: {reported}");
        assert_eq!(
            rows(&fixture.right, "select * from t order by id"),
            ["1|old", "3|extra"]
        );
        // As the hint says.
        let reported = copied(&fixture, "merge");
        assert!(reported.starts_with("done"), "{reported}");
        fixture.left.exec("select * from repair_sync('t', 'dst')");
        await_until(LONG, "the queue to be empty", || queued(&fixture) == 0);
        assert_eq!(same(&fixture, "t").len(), 2);
        assert_eq!(rows(&fixture.right, "select id, t from own"), ["1|1"]);
    }
}

#[test]
fn a_target_is_emptied_where_no_row_refers_to_it() {
    let fixture = arrange(
        "emptying_free",
        "create table own (id int primary key, t int references t on delete cascade);
         insert into own values (1, null);
         create table strict (id int primary key, t int references t)",
    );
    let reported = copied(&fixture, "truncate");
    assert!(reported.starts_with("done"), "{reported}");
    assert_eq!(same(&fixture, "t").len(), 2);
    assert_eq!(rows(&fixture.right, "select id, t from own"), ["1|~"]);
}
