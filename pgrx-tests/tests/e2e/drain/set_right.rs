//! Failed records that the server cannot take any more by themselves, since what went past them has made that
//! impossible, but takes together with what waits behind them.

use rowsync_harness::Fixture;

use crate::support::common::{Role, both_have, deal, linked, mirror, queued, records, rows, same};

const QUEUE: &str = r#"{"mode": "queue"}"#;
const STRICT: &str = r#"{"mode": "queue", "on_conflict": "error"}"#;

fn gated(label: &str, tables: &[(&str, &str)]) -> Fixture {
    gated_under(label, tables, QUEUE)
}

/// A linked pair of databases, of which the right one refuses rows of these tables while `gate` has their id.
fn gated_under(label: &str, tables: &[(&str, &str)], options: &str) -> Fixture {
    let fixture = linked(label);
    for (table, columns) in tables {
        mirror(&fixture, table, columns, options);
    }
    fixture.right.exec(&format!(
        "create table gate (id int); create function guard() returns trigger language plpgsql as $$
         begin
           if exists (select from {}.gate g where g.id = coalesce(new.id, old.id)) then
             raise check_violation using message = 'the gate is closed';
           end if;
           return coalesce(new, old);
         end $$",
        fixture.right.user
    ));
    for (table, _) in tables {
        fixture.right.exec(&format!(
            "create trigger guard before insert or update or delete on {table}
               for each row execute function guard()"
        ));
    }
    fixture
}

fn close_gate(fixture: &Fixture, id: i32) {
    fixture
        .right
        .exec(&format!("insert into gate values ({id})"));
}

fn open_gate(fixture: &Fixture) {
    fixture.right.exec("delete from gate");
}

fn drained(fixture: &Fixture, table: &str) -> Vec<String> {
    assert!(deal(fixture, "1000"), "{:?}", records(fixture));
    assert_eq!(queued(fixture), 0, "{:?}", records(fixture));
    same(fixture, table)
}

#[test]
fn a_unique_value_that_another_row_has_by_now() {
    for columns in [
        "id int primary key, u int unique",
        "id int primary key, u int unique deferrable initially deferred",
        "id int primary key, u int, exclude using gist (int4range(u, u, '[]') with &&)",
    ] {
        let fixture = gated("setunique", &[("t", columns)]);
        close_gate(&fixture, 1);
        fixture.left.exec("insert into t values (1, 5)");
        assert!(!deal(&fixture, "1000"));
        fixture.left.exec("update t set u = 6 where id = 1");
        fixture.left.exec("insert into t values (2, 5)");
        assert!(!deal(&fixture, "1000"));
        assert_eq!(rows(&fixture.right, "table t"), ["2|5"]);
        open_gate(&fixture);
        assert_eq!(drained(&fixture, "t"), ["1|6", "2|5"], "{columns}");
    }
}

#[test]
fn a_parent_that_is_gone_by_now() {
    let fixture = gated(
        "setparent",
        &[
            ("p", "id int primary key"),
            (
                "c",
                "id int primary key, r int references p on delete cascade",
            ),
        ],
    );
    fixture.left.exec("insert into p values (1)");
    assert!(deal(&fixture, "1000"));
    close_gate(&fixture, 7);
    fixture
        .left
        .exec("insert into c values (6, 1), (7, 1), (8, 1)");
    assert!(!deal(&fixture, "1000"));
    fixture.left.exec("delete from p where id = 1");
    assert!(!deal(&fixture, "1000"));
    open_gate(&fixture);
    assert_eq!(drained(&fixture, "c"), Vec::<String>::new());
    same(&fixture, "p");
}

/// What waits for two failed records goes with neither while the other is refused.
#[test]
fn what_waits_for_another_failed_record_too_is_not_taken_along() {
    let fixture = gated("settwo", &[("t", "id int primary key, u int unique")]);
    fixture.left.exec("insert into t values (1, 1), (2, 2)");
    assert!(deal(&fixture, "1000"));
    close_gate(&fixture, 1);
    close_gate(&fixture, 2);
    fixture.left.exec("update t set u = 5 where id = 1");
    fixture.left.exec("update t set u = 6 where id = 2");
    assert!(!deal(&fixture, "1000"));
    assert_eq!(
        records(&fixture),
        ["UPDATE|23514|1|failed", "UPDATE|23514|1|failed"]
    );
    // Needs both: it moves a value from one to the other.
    fixture
        .left
        .exec("begin; update t set u = -1 where id = 1; update t set u = 5 where id = 2; commit");
    fixture.left.exec("insert into t values (3, 6)");
    assert!(!deal(&fixture, "1000"));
    both_have_right(&fixture, &["1|1", "2|2", "3|6"]);
    fixture.right.exec("delete from gate where id = 1");
    deal(&fixture, "1000");
    let there = rows(&fixture.right, "select u from t where id = 2");
    assert_eq!(there, ["2"], "its older change is refused still");
    open_gate(&fixture);
    assert_eq!(drained(&fixture, "t"), ["1|-1", "2|5", "3|6"]);
}

fn both_have_right(fixture: &Fixture, expected: &[&str]) {
    assert_eq!(rows(&fixture.right, "select * from t order by 1"), expected);
}

/// A person's own call for one record does the same.
#[test]
fn a_retry_of_one_record_takes_along_what_waits_for_it() {
    let fixture = gated("setretry", &[("t", "id int primary key, u int unique")]);
    close_gate(&fixture, 1);
    fixture.left.exec("insert into t values (1, 5)");
    assert!(!deal(&fixture, "1000"));
    fixture
        .left
        .exec("update t set u = 6 where id = 1; insert into t values (2, 5)");
    assert!(!deal(&fixture, "1000"));
    open_gate(&fixture);
    let id = rows(
        &fixture.left,
        "select id from sync_err_rec where status = 'failed'",
    )
    .remove(0);
    let retried: bool = fixture
        .left
        .query_one(&format!("select retry_sync_err_rec({id})"));
    assert!(retried);
    both_have(&fixture, "t", &["1|6", "2|5"]);
    assert_eq!(queued(&fixture), 0);
}

/// What is refused for itself stays so, with what waits for it.
#[test]
fn what_is_refused_together_as_well_stays_as_it_is() {
    let fixture = gated("setstays", &[("t", "id int primary key, u int unique")]);
    fixture.right.exec("insert into t values (9, 5)");
    fixture.left.exec(
        "insert into t values (1, 5); update t set u = 5 where id = 1; insert into t values (2, 2)",
    );
    for attempts in 1..=2 {
        assert!(!deal(&fixture, "1000"));
        let failed = format!("INSERT|23505|{attempts}|failed");
        assert_eq!(records(&fixture)[0], failed);
        assert_eq!(queued(&fixture), 2);
        assert_eq!(
            rows(&fixture.right, "select * from t order by 1"),
            ["2|2", "9|5"]
        );
    }
}

const TREE: &str = "id int primary key, up int references t on delete cascade";

/// Records of a transaction are told apart over one that is refused: what a cascade of an earlier part has taken
/// along is not missed by a later one.
#[test]
fn a_cascade_is_one_though_its_transaction_is_sent_in_parts() {
    let fixture = gated_under("setcascade", &[("t", TREE)], STRICT);
    fixture
        .left
        .exec("insert into t values (3, null), (2, 3), (1, 2)");
    assert!(deal(&fixture, "1000"));
    close_gate(&fixture, 9);
    fixture.left.exec(
        "begin; insert into t values (9, null); insert into t values (8, null);
         delete from t where id = 3; insert into t values (7, 8); commit",
    );
    assert!(!deal(&fixture, "1000"));
    assert_eq!(records(&fixture), ["INSERT|23514|1|failed"]);
    open_gate(&fixture);
    assert_eq!(drained(&fixture, "t"), ["7|8", "8|~", "9|~"]);
}

/// Rows of parent and child, where the child's deletions come of another table's.
#[test]
fn a_cascade_between_tables_is_one_too() {
    let tables = [
        ("p", "id int primary key"),
        (
            "c",
            "id int primary key, r int references p on delete cascade",
        ),
    ];
    let fixture = gated_under("setcascades", &tables, STRICT);
    fixture
        .left
        .exec("insert into p values (1), (2); insert into c values (1, 1), (2, 1), (3, 2)");
    assert!(deal(&fixture, "1000"));
    close_gate(&fixture, 9);
    fixture.left.exec(
        "begin; insert into c values (9, 2); delete from p where id = 1;
         insert into c values (4, 2); commit",
    );
    assert!(!deal(&fixture, "1000"));
    assert_eq!(records(&fixture), ["INSERT|23514|1|failed"]);
    open_gate(&fixture);
    assert_eq!(drained(&fixture, "c"), ["3|2", "4|2", "9|2"]);
}

/// Where two owners take turns, a turn may end in the middle of a statement and nothing be left in it to read
/// ahead.
#[test]
fn a_statement_that_a_turn_ends_in_is_completed() {
    // Whoever is served first.
    for others in ["o", "t"] {
        let fixture = linked("setturn");
        mirror(
            &fixture,
            "t",
            "id int primary key, up int references t",
            QUEUE,
        );
        mirror(&fixture, "o", "id int primary key", QUEUE);
        let role = Role::create(&fixture.left, "other", "");
        let own = &fixture.left.user;
        let right = &fixture.right;
        fixture.left.exec_superuser(&format!(
            "alter table {own}.{others} owner to {role}; grant all on {own}.{others} to {own};
             grant usage on foreign server dst to {role};
             create user mapping for {role} server dst options (user '{}', password '{}')",
            right.user,
            right.password,
            role = role.name,
        ));
        // The first record is of the table whose statement is cut, so that its owner is served first.
        fixture.left.exec("insert into t values (0, null)");
        fixture
            .left
            .exec("insert into o select i from generate_series(1, 5) i");
        fixture.left.exec(
            "insert into t select i, case when i < 40 then i + 1 end from generate_series(1, 40) i",
        );
        for _ in 0..2 {
            assert!(deal(&fixture, "10"), "{:?}", records(&fixture));
        }
        assert_eq!(queued(&fixture), 0, "the statement is not torn");
        same(&fixture, "t");
    }
}

/// Refuses what is written to a table itself, and lets cascades through.
fn refuse_only_directly(fixture: &Fixture, table: &str) {
    fixture.right.exec(&format!(
        "drop trigger guard on {table};
         create trigger guard before insert or update or delete on {table}
           for each row when (pg_trigger_depth() = 0) execute function guard()"
    ));
}

/// What a cascade there did meanwhile is what records that were overtaken are to do.
#[test]
fn rows_that_cascades_of_later_changes_have_deleted() {
    let tables = [
        ("p", "id int primary key"),
        (
            "c",
            "id int primary key, v int, r int references p on delete cascade",
        ),
    ];
    for statement in [
        "update c set v = 1 where id = 7",
        "delete from c where id = 7",
    ] {
        let fixture = gated_under("setcascade", &tables, STRICT);
        refuse_only_directly(&fixture, "c");
        fixture.left.exec("insert into p values (1), (2)");
        fixture
            .left
            .exec("insert into c values (6, 0, 1), (7, 0, 1), (8, 0, 2)");
        assert!(deal(&fixture, "1000"));
        close_gate(&fixture, 7);
        fixture.left.exec(statement);
        assert!(!deal(&fixture, "1000"));
        fixture.left.exec("delete from p where id = 1");
        deal(&fixture, "1000");
        assert_eq!(rows(&fixture.right, "select id from c"), ["8"]);
        open_gate(&fixture);
        assert_eq!(drained(&fixture, "c"), ["8|0|2"], "{statement}");
        same(&fixture, "p");
    }
}

#[test]
fn rows_that_a_cascade_of_the_same_statement_has_deleted() {
    for rows in [12, 300] {
        let columns = "id int primary key, up int references t on delete cascade";
        let fixture = gated_under("settree", &[("t", columns)], STRICT);
        fixture.left.exec(&format!(
            "insert into t select i, nullif(i + 1, {rows} + 1)
               from generate_series(1, {rows}) i"
        ));
        assert!(deal(&fixture, "1000"), "{:?}", records(&fixture));
        close_gate(&fixture, 7);
        fixture.left.exec("delete from t");
        assert!(!deal(&fixture, "1000"));
        open_gate(&fixture);
        // Goes on with what is pending, and comes to the failed ones last.
        deal(&fixture, "7");
        assert_eq!(drained(&fixture, "t"), Vec::<String>::new(), "{rows} rows");
    }
}

/// However often it is tried.
#[test]
fn a_row_that_is_missing_without_a_cascade_is_still_told() {
    let tables = [
        ("p", "id int primary key"),
        (
            "c",
            "id int primary key, v int, r int references p on delete cascade",
        ),
    ];
    let fixture = gated_under("setmissing", &tables, STRICT);
    fixture.left.exec("insert into p values (1)");
    fixture
        .left
        .exec("insert into c values (6, 0, 1), (7, 0, 1)");
    assert!(deal(&fixture, "1000"));
    fixture.right.exec("delete from c where id = 6");
    fixture.left.exec("delete from c where id = 6");
    for attempts in 1..4 {
        assert!(!deal(&fixture, "1000"));
        assert_eq!(
            records(&fixture),
            [format!("DELETE|P0002|{attempts}|failed")]
        );
    }
}

/// Rows of one statement are refused each for itself over one of them, and then that one's value is given to another.
#[test]
fn a_ring_one_of_whose_values_another_row_has_by_now() {
    for (columns, given) in [
        (
            "id int primary key, u int unique, up int references t deferrable initially deferred",
            "update t set u = -7 where id = 7; insert into t values (100, 7)",
        ),
        (
            "id int primary key, u int, up int references t deferrable initially deferred,
             exclude using gist (int4range(u, u, '[]') with &&)",
            "update t set u = -7 where id = 7; insert into t values (100, 7)",
        ),
        (
            "id int primary key, u int unique, up int references t",
            "update t set u = -7 where id = 7; update t set u = 7 where id = 200",
        ),
    ] {
        let fixture = gated("setring", &[("t", columns)]);
        fixture.left.exec("insert into t values (200, 200)");
        assert!(deal(&fixture, "1000"));
        close_gate(&fixture, 7);
        fixture
            .left
            .exec("insert into t select i, i, 1 + i % 12 from generate_series(1, 12) i");
        assert!(!deal(&fixture, "1000"));
        fixture.left.exec(given);
        assert!(!deal(&fixture, "1000"));
        open_gate(&fixture);
        drained(&fixture, "t");
    }
}

/// Two records of a statement that is true only as a whole have failed, and one of them fits in only with what
/// waits behind it: all of that is tried together.
#[test]
fn what_failed_of_a_statement_fits_in_with_what_puts_a_part_of_it_right() {
    for (label, constraint, first, later, other) in [
        (
            "exclusion",
            "during int4range, exclude using gist (during with &&)",
            "int4range(i * 10, i * 10 + 5)",
            "'[1000,1005)'",
            "'[20,25)'",
        ),
        ("unique", "during text unique", "'v' || i", "'gone'", "'v2'"),
    ] {
        for policy in ["overwrite", "error", "skip"] {
            let options = format!(r#"{{"mode": "queue", "on_conflict": "{policy}"}}"#);
            let columns = format!(
                "id int primary key, next int references t deferrable initially deferred, {constraint}"
            );
            let label = format!("ring_{label}_{policy}");
            let fixture = gated_under(&label, &[("t", &columns)], &options);
            close_gate(&fixture, 2);
            fixture.left.exec(&format!(
                "insert into t select i, i % 3 + 1, {first} from generate_series(1, 3) i"
            ));
            assert!(!deal(&fixture, "1000"));
            // The value that the row gives up is another one's there before.
            fixture
                .left
                .exec(&format!("update t set during = {later} where id = 2"));
            fixture
                .left
                .exec(&format!("insert into t values (9, null, {other})"));
            assert!(!deal(&fixture, "1000"));
            assert_eq!(rows(&fixture.right, "select id from t"), ["9"], "{label}");
            open_gate(&fixture);
            assert_eq!(drained(&fixture, "t").len(), 4, "{label}");
        }
    }
}
