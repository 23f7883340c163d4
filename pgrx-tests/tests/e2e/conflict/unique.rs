//! Conflicts with another unique constraint than the key's: no policy decides over the row that is in
//! the way, so the change is marked failed, by the constraint's name, and everything else flows.

use rowsync_harness::Fixture;

use crate::conflict::view::{counted, fixture, logged, total};
use crate::support::common::{attach, rows, run, same};
use crate::support::failed::{failed, retry};
use crate::support::preloaded::await_drained;

const POLICIES: [&str; 4] = [
    r#""on_conflict": "overwrite""#,
    r#""on_conflict": "skip""#,
    r#""on_conflict": "newest", "version_column": "ver""#,
    r#""on_conflict": "error""#,
];

const COLUMNS: &str = "id int primary key, v text, ver int, code text";

/// Tables of which the remote one has the further constraint; `there` are rows only it has.
fn tables(fixture: &Fixture, name: &str, options: &str, there: &str) {
    fixture
        .left
        .exec(&format!("create table {name} ({COLUMNS})"));
    fixture.right.exec(&format!(
        "create table {name} ({COLUMNS}, constraint {name}_code_once unique (code));
         insert into {name} values {there}"
    ));
    attach(fixture, name, options);
}

/// `sqlstate|constraint_name` of all records; they must be marked failed.
fn failed_constraints(fixture: &Fixture) -> Vec<String> {
    let sql = "select sqlstate, constraint_name, nullif(status, 'failed') as wrong
                 from sync_err_rec order by id";
    let records = rows(&fixture.left, sql);
    records
        .iter()
        .map(|record| record.trim_end_matches("|~").to_owned())
        .collect()
}

/// Runs under each policy and mode: tables, the change, what is logged of it; then mends the remote
/// table, retries and compares.
fn each(
    policies: &[&str],
    there: &str,
    base: &str,
    here: &str,
    kind: &str,
    keys: &[&str],
    mend: &str,
) {
    let fixture = fixture();
    for (at, policy) in policies.iter().enumerate() {
        for mode in ["async", "queue"] {
            let name = format!("{mode}_{at}");
            tables(
                &fixture,
                &name,
                &format!(r#"{{"mode": "{mode}", {policy}}}"#),
                there,
            );
            let fill = |sql: &str| sql.replace("{t}", &name);
            run(&mut fixture.left.client_named("pg_rowsync"), &fill(base));
            fixture.right.exec(&fill(base));
            let before = total(&fixture);
            fixture.left.exec(&fill(here));
            await_drained(&fixture);
            let count = keys.len();
            assert_eq!(
                failed_constraints(&fixture),
                vec![format!("23505|{name}_code_once"); count]
            );
            let others = format!(
                "select * from {name} where id <= 1000 and id not in ({}) order by id",
                keys.join(", ")
            );
            let arrived = rows(&fixture.right, &others);
            assert_eq!(arrived.len(), 1000 - count, "{policy}, {mode}");
            assert_eq!(arrived, rows(&fixture.left, &others), "{policy}, {mode}");
            let version = if policy.contains("newest") { "6" } else { "~" };
            let log: Vec<String> = keys
                .iter()
                .map(|id| format!("{kind}|failed|{id}|~|{version}|~|{name}_code_once"))
                .collect();
            assert_eq!(logged(&fixture, &name), log, "{policy}, {mode}");
            assert_eq!(counted(&fixture, &name), [format!("{kind}|{count}")]);
            assert_eq!(total(&fixture) - before, count as i64);
            // A retry that fails again is no further conflict.
            for id in failed(&fixture) {
                assert!(!retry(&fixture, id));
            }
            assert_eq!(total(&fixture) - before, count as i64);
            assert_eq!(logged(&fixture, &name), log, "{policy}, {mode}");
            fixture.right.exec(&fill(mend));
            for id in failed(&fixture) {
                assert!(retry(&fixture, id), "{policy}, {mode}");
            }
            assert_eq!(failed_constraints(&fixture), [""; 0]);
            same(&fixture, &name);
        }
    }
}

const INSERT: &str =
    "insert into {t} select id, 'n', 6, 'c' || id from generate_series(1, 1000) id";

#[test]
fn an_insert_that_meets_another_unique_constraint_is_failed() {
    each(
        &POLICIES,
        "(5007, 'r', 9, 'c7'), (5500, 'r', 9, 'c500')",
        "",
        INSERT,
        "insert_exists",
        &["7", "500"],
        "delete from {t} where id > 5000",
    );
}

#[test]
fn an_update_that_meets_another_unique_constraint_is_failed() {
    each(
        &POLICIES,
        "(5007, 'r', 9, 'n7'), (5500, 'r', 9, 'n500')",
        "insert into {t} select id, 'l', 5, 'c' || id from generate_series(1, 1000) id",
        "update {t} set v = 'n', ver = 6, code = 'n' || id",
        "update_exists",
        &["7", "500"],
        "delete from {t} where id > 5000",
    );
}

#[test]
fn a_key_and_another_constraint_violated_at_once_are_told_so() {
    each(
        &[POLICIES[0], POLICIES[2]],
        "(7, 'r', 1, 'x'), (5007, 'r', 1, 'c7')",
        "",
        INSERT,
        "multiple_unique_conflicts",
        &["7"],
        "delete from {t} where id > 5000",
    );
}
