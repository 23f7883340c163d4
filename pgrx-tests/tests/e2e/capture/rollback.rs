//! What the local side rolls back never reaches the remote, nor the queue.

use crate::support::common::{both_have, one_way, query, queued, refused, run, same};

const COLUMNS: &str = "id int primary key, v text";

#[test]
fn a_rolled_back_transaction_leaves_nothing() {
    for mode in ["sync", "async", "queue"] {
        let fixture = one_way("rollback", COLUMNS, &format!(r#"{{"mode": "{mode}"}}"#));
        let mut client = fixture.left.client();
        run(
            &mut client,
            "begin; insert into t select i, 'x' from generate_series(1, 500) i",
        );
        run(
            &mut client,
            "update t set v = 'y'; delete from t where id > 250; truncate t",
        );
        run(&mut client, "insert into t values (1, 'z'); rollback");
        both_have(&fixture, "t", &[]);
        assert_eq!(queued(&fixture), 0);
        // Nothing of it is left for the next transaction either.
        run(&mut client, "insert into t values (2, 'next')");
        assert_eq!(queued(&fixture), i64::from(mode == "queue"));
    }
}

#[test]
fn a_rolled_back_savepoint_leaves_nothing_of_its_own() {
    let fixture = one_way("savepoint", COLUMNS, "{}");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "begin;
         insert into t values (1, 'kept');
         savepoint a;
           insert into t values (2, 'a');
           savepoint b;
             insert into t values (3, 'b');
             update t set v = 'lost' where id = 1;
           release b;
           savepoint c;
             delete from t;
           rollback to c;
           insert into t values (4, 'c');
         rollback to a;
         insert into t values (2, 'retried');
         savepoint d;
           savepoint e;
             insert into t values (5, 'e');
           release e;
         release d;
         savepoint f;
           truncate t;
           insert into t values (6, 'f');
         rollback to f;
         release f;
         commit",
    );
    both_have(&fixture, "t", &["1|kept", "2|retried", "5|e"]);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn a_savepoint_with_all_changes_leaves_nothing_when_rolled_back() {
    let fixture = one_way("empty", COLUMNS, r#"{"mode": "sync"}"#);
    let mut client = fixture.left.client();
    run(
        &mut client,
        "begin; savepoint a; savepoint b; insert into t values (1, 'a')",
    );
    run(
        &mut client,
        "release b; insert into t values (2, 'b'); rollback to a; commit",
    );
    both_have(&fixture, "t", &[]);
    assert_eq!(
        query(&mut client, "select * from sync_connections()"),
        [""; 0]
    );
}

#[test]
fn the_mode_of_rolled_back_changes_does_not_count() {
    let fixture = one_way("modeback", COLUMNS, r#"{"mode": "queue"}"#);
    crate::support::common::mirror(&fixture, "s", COLUMNS, r#"{"mode": "sync"}"#);
    let mut client = fixture.left.client();
    run(
        &mut client,
        "begin; insert into t values (1, 'a'); savepoint a",
    );
    run(
        &mut client,
        "insert into s values (1, 'a'); rollback to a; commit",
    );
    assert_eq!(queued(&fixture), 1);
    both_have(&fixture, "s", &[]);
}

#[test]
fn an_exception_block_in_a_loop_keeps_only_what_it_did_not_undo() {
    let fixture = one_way("block", COLUMNS, "{}");
    fixture.left.exec(
        "do $$
         begin
           for i in 1..200 loop
             begin
               insert into t values (i, 'outer');
               begin
                 update t set v = 'inner' where id = i;
                 if i % 2 = 0 then raise exception 'undo the update'; end if;
               exception when raise_exception then null;
               end;
               if i % 5 = 0 then raise exception 'undo the insert'; end if;
             exception when raise_exception then null;
             end;
           end loop;
         end $$",
    );
    let rows = same(&fixture, "t");
    assert_eq!(rows.len(), 160);
    assert_eq!(
        rows.iter().filter(|row| row.ends_with("|inner")).count(),
        80
    );
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn a_statement_that_fails_sends_nothing_of_its_rows() {
    let fixture = one_way("statement", COLUMNS, "{}");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (100, 'there')");
    refused(
        &mut client,
        "insert into t select i, 'x' from generate_series(1, 100) i",
        "23505",
    );
    both_have(&fixture, "t", &["100|there"]);
    // Within a transaction, and by a constraint that is checked as late as the commit.
    run(&mut client, "begin; insert into t values (1, 'a')");
    refused(&mut client, "insert into t values (1, 'b')", "23505");
    run(
        &mut client,
        "rollback; alter table t add constraint late unique (v) deferrable",
    );
    let late = "begin; set constraints late deferred; insert into t values (1, 'there'); commit";
    let error = refused(&mut client, late, "23505");
    assert_eq!(error.constraint(), Some("late"));
    run(&mut client, "rollback");
    both_have(&fixture, "t", &["100|there"]);
    assert_eq!(queued(&fixture), 0);
}
