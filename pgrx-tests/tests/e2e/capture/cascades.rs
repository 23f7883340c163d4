//! Rows that go with those of another table, there and here.

use rowsync_harness::Fixture;

use crate::support::common::{attach, deal, linked, queued, refused, rows, run, same};

/// Parents, their children and grandchildren, whose foreign keys pass deletions and changes of keys on.
fn family(label: &str, options: &str) -> Fixture {
    let fixture = linked(label);
    for side in [&fixture.left, &fixture.right] {
        side.exec(
            "create table p (id int primary key, ver int default 1);
             create table c (pid int references p on delete cascade on update cascade, n int, ver int default 1,
               primary key (pid, n));
             create table g (pid int, n int, m int, ver int default 1, primary key (pid, n, m),
               foreign key (pid, n) references c on delete cascade on update cascade)",
        );
    }
    for table in ["p", "c", "g"] {
        attach(&fixture, table, options);
    }
    fixture.left.exec(
        "insert into p select generate_series(1, 50);
         insert into c select p, n from generate_series(1, 50) p, generate_series(1, 20) n;
         insert into g select pid, n, m from c, generate_series(1, 2) m where n < 4",
    );
    assert!(deal(&fixture, "100000"));
    fixture
}

const CONFLICTS: &str =
    "select type, decision, count(*) from sync_conflicts group by 1, 2 order by 1, 2";

#[test]
fn a_cascade_that_both_sides_have_is_no_conflict() {
    for (label, options) in [
        ("cascsync", r#"{"mode": "sync"}"#),
        ("cascqueue", r#"{"mode": "queue"}"#),
        ("cascskip", r#"{"mode": "sync", "on_conflict": "skip"}"#),
        (
            "cascnewest",
            r#"{"mode": "sync", "on_conflict": "newest", "version_column": "ver"}"#,
        ),
    ] {
        let fixture = family(label, options);
        let mut client = fixture.left.client();
        for statement in [
            "delete from p where id <= 25",
            "delete from p where id = 31",
            "update p set id = id + 1000, ver = 2 where id between 26 and 30",
            "update p set id = 2000, ver = 2 where id = 32",
            "delete from c where pid = 33 and n < 5",
        ] {
            run(&mut client, statement);
        }
        assert!(
            deal(&fixture, "100000"),
            "{:?}",
            rows(&fixture.left, "select message from sync_err_rec")
        );
        assert_eq!(queued(&fixture), 0);
        for table in ["p", "c", "g"] {
            same(&fixture, table);
        }
        assert_eq!(rows(&fixture.left, CONFLICTS), [""; 0], "{label}");
    }
}

#[test]
fn a_row_that_somebody_has_deleted_there_is_one_still() {
    let fixture = family("casctrue", r#"{"mode": "sync"}"#);
    fixture
        .right
        .exec("delete from c where pid in (1, 2) and n = 1");
    fixture.left.exec("delete from c where pid = 1 and n = 1");
    // Beside it rows of a parent that goes: the row was deleted before its parent was.
    fixture
        .left
        .exec("begin; delete from c where pid = 2 and n = 1; delete from p where id = 2; commit");
    let found = rows(
        &fixture.left,
        "select type, decision, key::text from sync_conflicts where table_name = 'c' order by id",
    );
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found
            .iter()
            .all(|conflict| conflict.starts_with("delete_missing|skipped")),
        "{found:?}"
    );
}

/// Drained one by one: what goes along is taken along, or it would be missed.
#[test]
fn a_limit_parts_no_row_from_those_that_go_with_it() {
    for policy in ["error", "skip", "overwrite"] {
        let options = format!(r#"{{"mode": "queue", "on_conflict": "{policy}"}}"#);
        let fixture = family(&format!("casclimit_{policy}"), &options);
        for side in [&fixture.left, &fixture.right] {
            side.exec(
                "create table tree (id int primary key, up int references tree on delete cascade)",
            );
        }
        attach(&fixture, "tree", &options);
        fixture
            .left
            .exec("insert into tree select i, nullif(i / 2, 0) from generate_series(1, 31) i");
        assert!(deal(&fixture, "100000"));
        let mut statements = vec!["delete from tree where id = 2"];
        // Under `error` children in tables of their own need a foreign key without the action.
        if policy != "error" {
            statements.push("delete from p where id = 3");
            statements.push("update p set id = 1000, ver = 2 where id = 4");
        }
        for statement in statements {
            fixture.left.exec(statement);
            assert!(
                deal(&fixture, "1"),
                "{policy}: {:?}",
                rows(&fixture.left, "select message from sync_err_rec")
            );
            assert_eq!(queued(&fixture), 0, "{policy} {statement}");
        }
        for table in ["p", "c", "g", "tree"] {
            same(&fixture, table);
        }
        assert_eq!(rows(&fixture.left, CONFLICTS), [""; 0], "{policy}");
    }
}

/// More rows than a statement carries, which the first of them take along there.
#[test]
fn under_error_rows_that_a_cascade_has_deleted_are_not_missed() {
    for mode in ["sync", "queue"] {
        let options = format!(r#"{{"mode": "{mode}", "on_conflict": "error"}}"#);
        let fixture = family(&format!("cascerror_{mode}"), &options);
        for side in [&fixture.left, &fixture.right] {
            side.exec(
                "create table ring (id int primary key, up int references ring on delete cascade);
                 create index on ring (up)",
            );
        }
        attach(&fixture, "ring", &options);
        fixture
            .left
            .exec("insert into ring select i, 1 + i % 12000 from generate_series(1, 12000) i");
        assert!(deal(&fixture, "100000"));
        for statement in [
            "delete from ring",
            "delete from p where id between 3 and 10",
        ] {
            fixture.left.exec(statement);
            assert!(deal(&fixture, "10"), "{mode} {statement}");
            assert!(deal(&fixture, "100000"), "{mode} {statement}");
            assert_eq!(queued(&fixture), 0, "{mode} {statement}");
        }
        for table in ["p", "c", "g", "ring"] {
            same(&fixture, table);
        }
        // A row that somebody else has deleted is missed.
        fixture.right.exec("delete from p where id = 11");
        let mut client = fixture.left.client();
        if mode == "sync" {
            refused(&mut client, "delete from p where id = 11", "P0002");
        } else {
            run(&mut client, "delete from p where id = 11");
            assert!(!deal(&fixture, "100000"));
        }
    }
}

/// A chain of rows of which each goes with the next one, deleted by one statement while the server refuses
/// to let one of them go.
fn refused_chain(label: &str, length: i32, held: i32) -> Fixture {
    let fixture = linked(label);
    let options = r#"{"mode": "queue", "on_conflict": "error"}"#;
    for side in [&fixture.left, &fixture.right] {
        side.exec(
            "create table t (id int primary key, next int references t on delete cascade);
             create index on t (next)",
        );
    }
    attach(&fixture, "t", options);
    fixture.left.exec(&format!(
        "insert into t select i, case when i < {length} then i + 1 end from generate_series(1, {length}) i"
    ));
    assert!(deal(&fixture, "100000"));
    fixture.right.exec(&format!(
        "create function hold() returns trigger language plpgsql as
           'begin if old.id = {held} then raise check_violation using message = ''held''; end if;
            return old; end';
         create trigger hold before delete on t for each row execute function hold()"
    ));
    fixture.left.exec("delete from t");
    assert!(!deal(&fixture, "100000"));
    fixture
}

/// What was refused is tried again after others of its statement have been applied, which take its row along.
#[test]
fn a_refused_row_that_a_cascade_takes_later_is_not_missed() {
    let fixture = refused_chain("chain_one", 6, 3);
    assert_eq!(
        rows(
            &fixture.left,
            "select sqlstate, status from sync_err_rec order by id"
        ),
        ["23514|failed"; 4]
    );
    fixture.right.exec("drop trigger hold on t");
    // The last one takes the others along.
    let last = rows(&fixture.left, "select max(id) from sync_err_rec").remove(0);
    assert!(
        fixture
            .left
            .query_one::<bool>(&format!("select retry_sync_err_rec({last})"))
    );
    assert!(same(&fixture, "t").is_empty());
    let standing = "select sqlstate, status, message from sync_err_rec order by id";
    assert!(
        deal(&fixture, "100000"),
        "{:?}",
        rows(&fixture.left, standing)
    );
    assert_eq!(queued(&fixture), 0);
    // What somebody has deleted there is missed when it is tried again, too.
    fixture.left.exec("insert into t values (1, 2), (2, null)");
    assert!(deal(&fixture, "100000"));
    fixture.right.exec("delete from t where id = 1");
    fixture.left.exec("delete from t where id = 1");
    for _ in 0..2 {
        assert!(!deal(&fixture, "100000"));
        assert_eq!(
            rows(&fixture.left, "select sqlstate, status from sync_err_rec"),
            ["P0002|failed"]
        );
    }
}

/// More rows are refused than one drain marks failed: those left over are applied first.
#[test]
fn rows_refused_in_several_drains_are_not_missed_once_a_cascade_has_taken_them() {
    let fixture = refused_chain("chain_many", 600, 20);
    fixture.right.exec("drop trigger hold on t");
    let standing = "select sqlstate, status, count(*) from sync_err_rec group by 1, 2";
    assert!(
        deal(&fixture, "100000"),
        "{:?}",
        rows(&fixture.left, standing)
    );
    assert_eq!(queued(&fixture), 0);
    assert!(same(&fixture, "t").is_empty());
}
