//! Triggers that do not see every change of a row: what an UPDATE leaves alone need not be what the target has.

use rowsync_harness::Fixture;

use crate::support::common::{linked, rows, run};

/// Large enough to be stored out of line, not compressed.
const BIG: &str = "s int, big text";

/// A table on both sides, and triggers on the left: what they fire for.
fn watched(label: &str, triggers: &[&str]) -> Fixture {
    let fixture = linked(label);
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!(
            "create table t (id int primary key, region text, {BIG});
             alter table t alter big set storage external"
        ));
    }
    for (at, fires) in triggers.iter().enumerate() {
        let (kind, when) = fires
            .split_once(" when ")
            .map_or((*fires, ""), |(kind, when)| (kind, when));
        let when = if when.is_empty() {
            String::new()
        } else {
            format!("when ({when})")
        };
        fixture.left.exec(&format!(
            "create trigger s{at} after {kind} on t for each row {when}
               execute function sync_dml('dst', '{}', 't', '{{\"mode\": \"sync\"}}')",
            fixture.right.user
        ));
    }
    fixture
}

fn state(side: &rowsync_harness::Side) -> Vec<String> {
    rows(
        side,
        "select id, region, s, left(big, 1), length(big) from t order by id",
    )
}

#[track_caller]
fn same_after(fixture: &Fixture, statements: &[&str]) {
    let mut client = fixture.left.client();
    statements.iter().for_each(|sql| run(&mut client, sql));
    assert_eq!(state(&fixture.left), state(&fixture.right));
}

const FILL: &str = "insert into t values (1, 'eu', 0, repeat('a', 10000))";

#[test]
fn a_row_that_comes_back_into_a_filter_comes_whole() {
    let fixture = watched(
        "back",
        &[
            "insert when new.region = 'eu'",
            "update when new.region = 'eu'",
        ],
    );
    same_after(
        &fixture,
        &[
            FILL,
            "update t set region = 'us'",
            "update t set big = repeat('B', 10000), s = 5",
            "update t set region = 'eu'",
        ],
    );
}

#[test]
fn what_a_list_of_columns_hides_is_sent_with_the_next_change() {
    let fixture = watched("columns", &["insert or delete or update of s"]);
    same_after(
        &fixture,
        &[
            FILL,
            "update t set big = repeat('B', 10000)",
            "update t set s = 2",
        ],
    );
}

#[test]
fn rows_whose_insertion_is_not_seen_are_sent_whole() {
    let fixture = watched("updates", &["update"]);
    same_after(
        &fixture,
        &[
            FILL,
            "update t set s = 1",
            "delete from t",
            "insert into t values (1, 'us', 2, repeat('B', 10000))",
            "update t set s = 3",
        ],
    );
}

#[test]
fn what_every_change_of_is_seen_is_still_not_sent_again() {
    for (label, triggers) in [
        ("one", ["insert or update or delete"].as_slice()),
        ("several", &["insert", "update", "delete"]),
    ] {
        let fixture = watched(label, triggers);
        fixture.left.exec(FILL);
        // Shows that it was not sent.
        fixture.right.exec("update t set big = repeat('x', 10000)");
        fixture.left.exec("update t set s = 1");
        assert_eq!(state(&fixture.right), ["1|eu|1|x|10000"], "{label}");
    }
}
