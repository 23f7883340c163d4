//! Unusual statements, long transactions: very many subtransactions, cursors, isolation levels, two phases.

use crate::support::common::{
    attach, both_have, deal, linked, mirror, one_way, query, queued, refused, run, same,
};

const COLUMNS: &str = "id int primary key, v text";

#[test]
fn ten_thousand_subtransactions_keep_what_did_not_fail() {
    let fixture = one_way("subxacts", COLUMNS, r#"{"mode": "sync"}"#);
    let mut client = fixture.left.client();
    // The buffer is small, so that rollbacks cross what went to the file.
    run(&mut client, "set pg_rowsync.buffer_size = '64kB'");
    run(
        &mut client,
        "do $$
             begin
               for i in 1..10000 loop
                 begin
                   insert into t values (i, 'a');
                   update t set v = 'b' where id = i - 2;
                   if i % 2 = 0 then perform 1 / 0; end if;
                 exception when division_by_zero then null;
                 end;
               end loop;
             end $$",
    );
    let found = same(&fixture, "t");
    assert_eq!(found.len(), 5000);
    assert_eq!(found.iter().filter(|row| row.ends_with("|b")).count(), 4999);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn savepoints_two_hundred_deep_are_released_and_rolled_back() {
    let fixture = one_way("nested", COLUMNS, r#"{"mode": "sync"}"#);
    let mut client = fixture.left.client();
    run(&mut client, "set pg_rowsync.buffer_size = '64kB'");
    let nest = |low: u32, high: u32| -> String {
        (low..high)
            .map(|i| {
                format!(
                    "savepoint s{i}; insert into t select {i}000 + n, repeat('x', 100)
                       from generate_series(1, 10) n; update t set v = v || 's' where id = {low}001;"
                )
            })
            .collect()
    };
    run(
        &mut client,
        &format!(
            "begin; {} rollback to s150; {}",
            nest(0, 200),
            nest(200, 220)
        ),
    );
    // Retried at the same depth, then a release in the middle and a rollback beyond it.
    run(
        &mut client,
        "release s120; insert into t values (-1, 'one'); savepoint x; delete from t",
    );
    run(
        &mut client,
        "rollback to x; rollback to x; insert into t values (-2, 'two'); rollback to s100",
    );
    run(
        &mut client,
        &format!("{} release s50; commit", nest(300, 310)),
    );
    let found = same(&fixture, "t");
    assert_eq!(found.len(), 100 * 10 + 10 * 10);
    // And all of it undone, or all but the innermost.
    run(
        &mut client,
        &format!("begin; {} rollback to s400; commit", nest(400, 600)),
    );
    assert_eq!(same(&fixture, "t"), found);
    run(
        &mut client,
        &format!("begin; {} release s400; rollback", nest(400, 600)),
    );
    assert_eq!(same(&fixture, "t"), found);
}

#[test]
fn cursors_read_while_their_rows_change() {
    for mode in ["sync", "queue"] {
        let fixture = one_way("cursor", COLUMNS, &format!(r#"{{"mode": "{mode}"}}"#));
        let mut client = fixture.left.client();
        run(
            &mut client,
            "insert into t select i, 'a' from generate_series(1, 6) i",
        );
        run(
            &mut client,
            "begin; declare c cursor with hold for select id from t order by id",
        );
        run(
            &mut client,
            "declare d cursor for select id from t where id > 2 order by id for update",
        );
        run(
            &mut client,
            "fetch 2 from d; update t set v = 'current' where current of d",
        );
        run(
            &mut client,
            "savepoint a; fetch 1 from d; delete from t where current of d",
        );
        run(
            &mut client,
            "rollback to a; insert into t values (7, 'new'); commit",
        );
        // The held one outlives the commit, and another transaction that fails.
        assert_eq!(query(&mut client, "fetch 3 from c"), ["1", "2", "3"]);
        run(&mut client, "update t set v = 'held' where id = 1");
        refused(
            &mut client,
            "insert into t values (8, 'x'), (1, 'x')",
            "23505",
        );
        assert_eq!(query(&mut client, "fetch all from c"), ["4", "5", "6"]);
        run(&mut client, "close c");
        assert!(deal(&fixture, "100"));
        both_have(
            &fixture,
            "t",
            &["1|held", "2|a", "3|a", "4|current", "5|a", "6|a", "7|new"],
        );
        // A cursor whose query writes only when it is materialised at commit.
        run(
            &mut client,
            "create function w(i int) returns int language sql as
               'insert into t values (i, ''held'') returning id';
             begin; declare h cursor with hold for select w(i) from generate_series(10, 12) i; commit;
             close h",
        );
        assert!(deal(&fixture, "100"));
        assert_eq!(same(&fixture, "t").len(), 10);
    }
}

#[test]
fn a_serialization_failure_before_delivery_leaves_nothing() {
    for mode in ["sync", "async", "queue"] {
        let fixture = one_way("serial", COLUMNS, &format!(r#"{{"mode": "{mode}"}}"#));
        let mut one = fixture.left.client();
        let mut two = fixture.left.client();
        run(&mut one, "insert into t values (1, 'a'), (2, 'b')");
        assert!(deal(&fixture, "10"));
        // Write skew: each reads what the other writes. Found by a statement.
        let level = "begin isolation level serializable; select sum(length(v)) from t";
        run(&mut one, level);
        run(&mut two, level);
        run(&mut two, "insert into t values (9, 'lost')");
        run(&mut one, "update t set v = 'one' where id = 1; commit");
        refused(&mut two, "update t set v = 'two' where id = 2", "40001");
        run(&mut two, "rollback");
        assert!(deal(&fixture, "10"));
        both_have(&fixture, "t", &["1|one", "2|b"]);
        assert_eq!(queued(&fixture), 0);
        // A concurrent update under REPEATABLE READ fails the statement.
        run(
            &mut two,
            "begin isolation level repeatable read; insert into t values (3, 'c')",
        );
        run(&mut one, "update t set v = 'x' where id = 1");
        refused(&mut two, "update t set v = 'y' where id = 1", "40001");
        run(&mut two, "rollback");
        run(
            &mut two,
            "begin isolation level serializable; insert into t values (4, 'd'); commit",
        );
        assert!(deal(&fixture, "10"));
        both_have(&fixture, "t", &["1|x", "2|b", "4|d"]);
    }
}

#[test]
fn a_serialization_failure_at_commit_leaves_nothing() {
    for mode in ["sync", "async", "queue"] {
        let fixture = one_way("serialcommit", COLUMNS, &format!(r#"{{"mode": "{mode}"}}"#));
        let mut one = fixture.left.client();
        let mut two = fixture.left.client();
        run(&mut one, "insert into t values (1, 'a'), (2, 'b')");
        assert!(deal(&fixture, "10"));
        for client in [&mut one, &mut two] {
            run(
                client,
                "begin isolation level serializable; select sum(length(v)) from t",
            );
        }
        run(&mut one, "update t set v = 'one' where id = 1");
        run(&mut two, "update t set v = 'two' where id = 2");
        run(&mut one, "commit");
        refused(&mut two, "commit", "40001");
        assert!(deal(&fixture, "10"));
        both_have(&fixture, "t", &["1|one", "2|b"]);
    }
}

#[test]
fn an_error_in_a_deferred_trigger_leaves_nothing() {
    let fixture = one_way("lateerror", COLUMNS, r#"{"mode": "sync"}"#);
    fixture.left.exec(
        "create function late() returns trigger language plpgsql as $$
         begin
           insert into t values (new.id + 100, 'late') on conflict do nothing;
           if new.v = 'bad' then raise exception 'no' using errcode = 'P0099'; end if;
           return null;
         end $$;
         create constraint trigger late after insert on t deferrable initially deferred
           for each row when (new.id < 100) execute function late()",
    );
    let mut client = fixture.left.client();
    refused(
        &mut client,
        "begin; insert into t values (1, 'a'), (2, 'bad'); commit",
        "P0099",
    );
    both_have(&fixture, "t", &[]);
    run(
        &mut client,
        "begin; insert into t values (1, 'a'); set constraints all immediate",
    );
    run(&mut client, "savepoint s");
    refused(&mut client, "insert into t values (2, 'bad')", "P0099");
    run(&mut client, "rollback to s; commit");
    both_have(&fixture, "t", &["1|a", "101|late"]);
}

#[test]
fn a_prepared_transaction_queues_what_its_savepoints_left() {
    let fixture = linked("prepsave");
    mirror(&fixture, "t", COLUMNS, r#"{"mode": "async"}"#);
    let mut client = fixture.left.client();
    let name = &fixture.left.db;
    run(
        &mut client,
        &format!(
            "begin; insert into t values (1, 'a'); savepoint a; insert into t values (2, 'lost');
             update t set v = 'lost'; rollback to a; insert into t values (2, 'b'); savepoint b;
             update t set v = v || '!'; release b; savepoint c; truncate t; rollback to c;
             prepare transaction '{name}'"
        ),
    );
    assert_eq!(queued(&fixture), 0);
    run(&mut client, &format!("commit prepared '{name}'"));
    assert_eq!(queued(&fixture), 4);
    assert!(deal(&fixture, "10"));
    both_have(&fixture, "t", &["1|a!", "2|b!"]);
    // What was prepared and rolled back leaves nothing, nor does the next transaction see it.
    run(
        &mut client,
        &format!("begin; delete from t; prepare transaction '{name}'"),
    );
    run(&mut client, &format!("rollback prepared '{name}'"));
    run(&mut client, "insert into t values (3, 'c')");
    assert_eq!(queued(&fixture), 0);
    both_have(&fixture, "t", &["1|a!", "2|b!", "3|c"]);
    // A savepoint with all changes undone: nothing to prepare, not even in mode sync.
    run(&mut client, "select detach_sync('t', 'dst')");
    attach(&fixture, "t", r#"{"mode": "sync"}"#);
    run(
        &mut client,
        "begin; savepoint a; insert into t values (4, 'd'); rollback to a",
    );
    run(&mut client, &format!("prepare transaction '{name}'"));
    run(&mut client, &format!("commit prepared '{name}'"));
    both_have(&fixture, "t", &["1|a!", "2|b!", "3|c"]);
}

#[test]
fn delete_using_rules_and_functions_that_write_are_captured() {
    let fixture = one_way("ways", COLUMNS, r#"{"mode": "sync"}"#);
    mirror(
        &fixture,
        "log",
        "id int primary key, v text",
        r#"{"mode": "sync"}"#,
    );
    fixture.left.exec(
        "insert into t select i, 'v' || i from generate_series(1, 8) i;
         delete from t using (values (1), (2)) s(id) where t.id = s.id;
         create rule r as on update to t where new.v = 'log' do also
           insert into log values (old.id, old.v);
         update t set v = 'log' where id = 3;
         create rule n as on delete to t do instead update t set v = 'deleted' where id = old.id;
         delete from t where id = 4;
         create view w as select * from t;
         create rule w as on insert to w do instead insert into t values (new.id, upper(new.v));
         insert into w values (20, 'through a rule')",
    );
    both_have(&fixture, "log", &["3|v3"]);
    let t = same(&fixture, "t");
    assert!(t.contains(&"4|deleted".to_owned()) && t.contains(&"20|THROUGH A RULE".to_owned()));
    assert_eq!(t.len(), 7);
}

#[test]
fn a_swap_under_a_second_unique_constraint_arrives_or_says_why_not() {
    for (unique, carried) in [("unique deferrable", true), ("unique", false)] {
        let fixture = linked("swapunique");
        fixture
            .left
            .exec("create table t (id int primary key, rank int unique deferrable)");
        fixture.right.exec(&format!(
            "create table t (id int primary key, rank int {unique})"
        ));
        attach(&fixture, "t", "{}");
        fixture
            .left
            .exec("insert into t values (1, 1), (2, 2), (3, 3)");
        fixture
            .left
            .exec("update t set rank = 3 - rank where id in (1, 2)");
        if carried {
            both_have(&fixture, "t", &["1|2", "2|1", "3|3"]);
            assert_eq!(queued(&fixture), 0);
            // By two statements of one transaction.
            fixture.left.exec(
                "begin; set constraints all deferred; update t set rank = 3 where id = 1;
                 update t set rank = 2 where id = 3; commit",
            );
        }
        if queued(&fixture) > 0 {
            let reasons = "select distinct sqlstate from sync_err_rec";
            assert_eq!(
                crate::support::common::rows(&fixture.left, reasons),
                ["23505"]
            );
        } else {
            assert_eq!(same(&fixture, "t").len(), 3);
        }
    }
}
