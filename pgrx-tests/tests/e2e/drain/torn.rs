//! Statements that are true as a whole only, and meet something that may pass: whoever looks for the record
//! that meets it tries parts of them, which are refused since they are parts.

use rowsync_harness::{Fixture, await_until};

use crate::support::common::{deal, mirror, one_way, records, rows, run, same, table};
use crate::support::preloaded::WORKING;

/// A table whose rows refer to each other, on both sides.
fn trees(label: &str) -> Fixture {
    one_way(
        label,
        "id int primary key, up int references t",
        r#"{"mode": "queue"}"#,
    )
}

/// What is marked failed over something else than this state.
fn blamed_for_others(fixture: &Fixture, state: &str) -> Vec<String> {
    rows(
        &fixture.left,
        &format!(
            "select id, sqlstate, message from sync_err_rec
              where status = 'failed' and sqlstate <> '{state}' order by id limit 3"
        ),
    )
}

fn arrives(fixture: &Fixture) {
    await_until(WORKING, "all to arrive", || {
        deal(fixture, "100") && records(fixture).is_empty()
    });
    same(fixture, "t");
}

/// As when it takes longer than a delivery may, on a busy server.
#[test]
fn a_statement_that_is_refused_for_its_size_is_not_blamed_for_its_parts() {
    let fixture = trees("tornsize");
    fixture.right.exec(
        "create function large() returns trigger language plpgsql as $$
         begin
           if (select count(*) from new_rows) > 100 then
             raise exception using errcode = 'query_canceled', message = 'it takes too long';
           end if;
           return null;
         end $$;
         create trigger large after insert on t referencing new table as new_rows
           for each statement execute function large()",
    );
    fixture.left.exec(
        "insert into t select i, case when i < 300 then i + 1 end from generate_series(1, 300) i",
    );
    for _ in 0..8 {
        assert!(!deal(&fixture, "7"));
        assert_eq!(blamed_for_others(&fixture, "57014"), [""; 0]);
    }
    fixture.right.exec("drop trigger large on t");
    arrives(&fixture);
}

#[test]
fn a_tree_one_of_whose_rows_is_locked_waits_as_a_whole() {
    for limit in ["1", "100"] {
        let fixture = trees("tornlock");
        mirror(&fixture, "u", "id int primary key", r#"{"mode": "queue"}"#);
        fixture
            .left
            .exec("insert into t values (1, null), (2, 1), (3, 1), (4, 3)");
        assert!(deal(&fixture, "100"));
        let mut holder = fixture.right.client();
        run(&mut holder, "begin; select from t where id = 4 for update");
        fixture.left.exec("delete from t; insert into u values (1)");
        let drain = |side: &Fixture| {
            let mut session = side.left.superuser();
            run(&mut session, "set pg_rowsync.lock_timeout = '100ms'");
            let sql = format!("select deal_sync_err_rec({limit})");
            session
                .query_one(&sql, &[])
                .expect("a drain")
                .get::<_, bool>(0)
        };
        for _ in 0..8 {
            assert!(!drain(&fixture), "limit {limit}");
            let blamed = blamed_for_others(&fixture, "55P03");
            assert_eq!(blamed, [""; 0], "limit {limit}");
        }
        // What has nothing to do with it flows.
        assert_eq!(table(&fixture.right, "u"), ["1"], "limit {limit}");
        run(&mut holder, "commit");
        arrives(&fixture);
    }
}
