//! Ways to end a transaction, and what a commit finds around it.

use crate::support::common::{
    both_have, deal, linked, mirror, one_way, outage, queued, records, recover, refused, rows, run,
    same, table,
};

const COLUMNS: &str = "id int primary key, v text";

#[test]
fn a_procedure_that_commits_delivers_every_part() {
    for mode in ["sync", "async", "queue"] {
        let fixture = one_way("procedure", COLUMNS, &format!(r#"{{"mode": "{mode}"}}"#));
        let mut client = fixture.left.client();
        run(
            &mut client,
            "create procedure p() language plpgsql as $$
             declare r record;
             begin
               for i in 1..10 loop
                 insert into t values (i, 'a');
                 if i % 3 = 0 then rollback; else commit; end if;
                 begin
                   update t set v = 'lost'; raise exception 'x';
                 exception when raise_exception then null;
                 end;
               end loop;
               for r in select id from t order by id loop
                 update t set v = 'b' where id = r.id;
                 commit;
               end loop;
             end $$;",
        );
        run(&mut client, "call p()");
        run(
            &mut client,
            "do $$ begin insert into t values (20, 'do'); commit; end $$",
        );
        assert!(deal(&fixture, "1000"));
        both_have(
            &fixture,
            "t",
            &["1|b", "10|b", "2|b", "20|do", "4|b", "5|b", "7|b", "8|b"],
        );
    }
}

#[test]
fn a_commit_in_a_procedure_that_sync_refuses_can_not_be_had() {
    let fixture = one_way("procsync", COLUMNS, r#"{"mode": "sync"}"#);
    fixture
        .right
        .exec("alter table t add constraint no_two check (id <> 2)");
    let mut client = fixture.left.client();
    let block = "do $$ begin
        insert into t values (1, 'a'); commit; insert into t values (2, 'b'); commit;
        insert into t values (3, 'c'); commit; end $$";
    refused(&mut client, block, "23514");
    both_have(&fixture, "t", &["1|a"]);
    run(&mut client, "insert into t values (4, 'd')");
    both_have(&fixture, "t", &["1|a", "4|d"]);
}

#[test]
fn chained_transactions_are_apart() {
    let fixture = one_way("chain", COLUMNS, "{}");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "begin isolation level repeatable read; insert into t values (1, 'a')",
    );
    run(&mut client, "commit and chain");
    both_have(&fixture, "t", &["1|a"]);
    run(
        &mut client,
        "insert into t values (2, 'b'); rollback and chain",
    );
    run(&mut client, "insert into t values (3, 'c'); commit");
    both_have(&fixture, "t", &["1|a", "3|c"]);
}

#[test]
fn a_transaction_made_read_only_after_its_changes_commits_them() {
    let fixture = one_way("readonly", COLUMNS, "{}");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "begin; insert into t values (1, 'a'); set transaction read only; commit",
    );
    both_have(&fixture, "t", &["1|a"]);
    outage(&fixture.right);
    run(
        &mut client,
        "begin; insert into t values (2, 'b'); set transaction read only; commit",
    );
    assert_eq!(records(&fixture), ["INSERT|28000|1|pending"]);
    assert_eq!(table(&fixture.left, "t"), ["1|a", "2|b"]);
}

#[test]
fn sessions_that_may_only_read_can_drain_nothing() {
    let fixture = one_way("drainro", COLUMNS, r#"{"mode": "queue"}"#);
    fixture.left.exec("insert into t values (1, 'a')");
    let mut admin = fixture.left.superuser();
    refused(
        &mut admin,
        "begin read only; select deal_sync_err_rec(1)",
        "25006",
    );
    run(&mut admin, "rollback; select deal_sync_err_rec(1)");
    both_have(&fixture, "t", &["1|a"]);
}

#[test]
fn each_change_carries_the_name_of_its_own_trigger() {
    let fixture = linked("carry");
    mirror(&fixture, "plain", COLUMNS, "{}");
    mirror(
        &fixture,
        "named",
        COLUMNS,
        r#"{"application_name": "it''s named"}"#,
    );
    let schema = &fixture.right.user;
    fixture.right.exec(&format!(
        "create table seen (n int generated always as identity, tab text, name text);
         create function note() returns trigger language plpgsql as $$
         begin
           insert into {schema}.seen (tab, name) values (tg_table_name, current_setting('application_name'));
           return null;
         end $$;
         create trigger n after insert on plain for each row execute function note();
         create trigger n after insert on named for each row execute function note()"
    ));
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into named values (1); insert into plain values (1)",
    );
    run(
        &mut client,
        "begin; insert into plain values (2); insert into named values (2)",
    );
    run(&mut client, "insert into plain values (3); commit");
    run(&mut client, "insert into named values (3)");
    run(&mut client, "insert into plain values (4)");
    outage(&fixture.right);
    run(
        &mut client,
        "insert into named values (5); insert into plain values (5)",
    );
    run(&mut client, "insert into named values (6)");
    recover(&fixture.right);
    assert!(deal(&fixture, "10"));
    same(&fixture, "plain");
    same(&fixture, "named");
    let seen = rows(
        &fixture.right,
        "select tab, name, count(*) from seen group by 1, 2 order by 1",
    );
    assert_eq!(seen, ["named|it's named|5", "plain|pg_rowsync|5"]);
}

#[test]
fn a_dropped_server_leaves_its_records_pending() {
    let fixture = one_way("dropserver", COLUMNS, r#"{"mode": "queue"}"#);
    fixture.left.exec("insert into t values (1, 'a')");
    fixture.left.exec("drop server dst cascade");
    assert!(!deal(&fixture, "10"));
    assert_eq!(records(&fixture), ["INSERT|~|0|pending"]);
    let why = "select last_sqlstate, last_error from sync_server_state where dst_server = 'dst'";
    assert_eq!(
        rows(&fixture.left, why),
        ["42704|server \"dst\" does not exist"]
    );
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    assert!(deal(&fixture, "10"));
    both_have(&fixture, "t", &["1|a"]);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn a_dropped_table_leaves_its_records_deliverable() {
    let fixture = one_way("droptable", COLUMNS, r#"{"mode": "queue"}"#);
    fixture
        .left
        .exec("insert into t values (1, 'a'); update t set v = 'b'");
    fixture.left.exec("drop table t");
    assert!(deal(&fixture, "10"));
    assert_eq!(table(&fixture.right, "t"), ["1|b"]);
}

#[test]
fn the_status_view_has_a_row_per_server() {
    let fixture = one_way("status", COLUMNS, "{}");
    let status = "select server, pending, failed, oldest is null, last_sqlstate from sync_status";
    assert_eq!(rows(&fixture.left, status), ["dst|0|0|t|~"]);
    fixture
        .right
        .exec("alter table t add constraint no_two check (id <> 2)");
    fixture
        .left
        .exec("insert into t values (1, 'a'), (2, 'b'), (3, 'c')");
    assert_eq!(rows(&fixture.left, status), ["dst|3|0|f|23514"]);
    assert!(!deal(&fixture, "10"));
    assert_eq!(rows(&fixture.left, status), ["dst|0|1|t|23514"]);
    fixture.right.exec("alter table t drop constraint no_two");
    assert!(deal(&fixture, "10"));
    fixture.left.exec("select detach_sync('t', 'dst')");
    assert_eq!(rows(&fixture.left, status), [""; 0]);
}
