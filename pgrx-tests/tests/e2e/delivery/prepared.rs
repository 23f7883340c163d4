//! Single rows travel in statements that the session has prepared on the remote. That must not be
//! seen in anything but the time it takes.

use postgres::Client;
use rowsync_harness::fixture::Fixture;

use crate::support::common::{both_have, one_way, queued, run, same, table};

/// On the right: what the delivering session has prepared, and how often it was executed so, as of
/// each row written there.
fn watch(fixture: &Fixture) {
    fixture.right.exec(
        "create table seen (statements bigint, executions bigint);
         create function look() returns trigger language plpgsql as $$ begin
           insert into seen select count(*), coalesce(sum(generic_plans + custom_plans), 0)
             from pg_prepared_statements;
           return null; end $$;
         create trigger look after insert or update or delete on t for each row
           execute function look()",
    );
    // The functions of the remote's schema, and the view, under the search_path of deliveries.
    let user = &fixture.right.user;
    fixture.right.exec(&format!(
        "alter function look() set search_path = {user}, pg_catalog"
    ));
}

/// A client whose next deliveries trust the remote.
fn trusting(fixture: &Fixture) -> Client {
    let mut client = fixture.left.client();
    for n in 1..=2 {
        run(&mut client, &format!("insert into t values ({n}, '{n}')"));
    }
    client
}

#[test]
fn each_kind_of_row_is_prepared_once_and_executed_often() {
    let fixture = one_way("prepared", "id int primary key, v text", "{}");
    let mut client = trusting(&fixture);
    watch(&fixture);
    for n in 3..=12 {
        run(&mut client, &format!("insert into t values ({n}, 'new')"));
        run(
            &mut client,
            &format!("update t set v = 'changed' where id = {n}"),
        );
        run(
            &mut client,
            &format!("delete from t where id = {n} and id % 2 = 0"),
        );
    }
    let seen = "select max(statements), max(executions) >= 20 from seen";
    assert_eq!(crate::support::common::rows(&fixture.right, seen), ["3|t"]);
    same(&fixture, "t");
    assert_eq!(queued(&fixture), 0);
}

/// The left table's values are texts; the right one's were integers when the statements were
/// prepared. Sent as integers, the new ones would arrive without their zeros.
#[test]
fn columns_that_become_texts_get_the_texts() {
    let fixture = one_way("types", "id int primary key, v text", "{}");
    fixture
        .right
        .exec("alter table t alter v type int using v::int");
    let mut client = trusting(&fixture);
    for n in 3..=5 {
        run(&mut client, &format!("insert into t values ({n}, '{n}')"));
        run(
            &mut client,
            &format!("update t set v = '{n}1' where id = {n}"),
        );
    }
    run(&mut client, "delete from t where id = 3");
    assert_eq!(table(&fixture.right, "t"), ["1|1", "2|2", "4|41", "5|51"]);
    fixture
        .right
        .exec("alter table t alter id type text, alter v type text");
    run(&mut client, "insert into t values (6, '007')");
    run(&mut client, "update t set v = '008' where id = 5");
    // Whoever compares numbers finds the row.
    fixture
        .right
        .exec("insert into t values ('4', '41') on conflict do nothing");
    run(&mut client, "delete from t where id = 6");
    run(&mut client, "insert into t values (6, '0070')");
    both_have(&fixture, "t", &["1|1", "2|2", "4|41", "5|008", "6|0070"]);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn other_changes_of_the_remote_table_are_no_concern_of_the_client() {
    let fixture = one_way("altered", "id int primary key, v text", "{}");
    let mut client = trusting(&fixture);
    let mut next = 3;
    for change in [
        "alter table t alter v type varchar(40)",
        "alter table t alter id type bigint",
        "alter table t add extra int default 5",
        "alter table t alter v type text",
        "alter table t drop extra",
        "create domain word as text; alter table t alter v type word",
        "create domain number as bigint; alter table t alter id type number",
        "alter table t rename to was; create table t (like was including all); \
         insert into t select * from was",
        "alter table t add e int; alter table t drop e; analyze t",
    ] {
        for _ in 0..3 {
            run(
                &mut client,
                &format!("insert into t values ({next}, 'new')"),
            );
            run(
                &mut client,
                &format!("update t set v = 'changed' where id = {next}"),
            );
            run(&mut client, &format!("delete from t where id = {next} - 2"));
            next += 1;
        }
        fixture.right.exec(change);
    }
    same(&fixture, "t");
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn a_remote_that_deallocates_is_sent_the_statements_again() {
    let fixture = one_way("deallocated", "id int primary key, v text", "{}");
    fixture.right.exec(
        "create function forget() returns trigger language plpgsql as $$ begin
           execute 'deallocate all'; return null; end $$;
         create trigger forget after insert or update or delete on t for each row
           execute function forget()",
    );
    let mut client = trusting(&fixture);
    for n in 3..=30 {
        run(&mut client, &format!("insert into t values ({n}, 'new')"));
        run(
            &mut client,
            &format!("update t set v = 'changed' where id = {n}"),
        );
    }
    same(&fixture, "t");
    assert_eq!(queued(&fixture), 0);
}
