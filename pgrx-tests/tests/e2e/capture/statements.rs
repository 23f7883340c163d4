//! Every way in which SQL changes rows: cascades, deferred triggers, COPY, MERGE and their like.

use std::io::Write;

use crate::support::common::{
    attach, both_have, fails_with, linked, mirror, one_way, queued, rows, run, same, table,
};

const COLUMNS: &str = "id int primary key, v text";
const SYNC: &str = r#"{"mode": "sync"}"#;

#[test]
fn copy_merge_upserts_and_writable_ctes_are_captured() {
    let fixture = one_way("kinds", COLUMNS, SYNC);
    let mut client = fixture.left.client();
    let mut copy = client.copy_in("copy t from stdin").expect("a COPY");
    copy.write_all(b"1\ta\n2\t\\N\n3\tc\\\\d\\te\n")
        .expect("rows");
    assert_eq!(copy.finish().expect("the end of COPY"), 3);
    assert_eq!(same(&fixture, "t").len(), 3);
    run(
        &mut client,
        "insert into t values (1, 'x'), (4, 'd') on conflict (id) do update set v = excluded.v;
         insert into t values (1, 'nothing') on conflict do nothing;
         merge into t using (values (2, 'm'), (3, 'm'), (5, 'm')) s(id, v) on t.id = s.id
           when matched and s.id = 3 then delete
           when matched then update set v = s.v
           when not matched then insert values (s.id, s.v);
         with gone as (delete from t where id = 4 returning *)
           insert into t select id + 10, v from gone;
         update t set v = s.v from (values (5, 'from')) s(id, v) where s.id = t.id;
         create function f() returns void language sql as 'insert into t values (20, ''f'')';
         select f()",
    );
    both_have(&fixture, "t", &["1|x", "14|d", "2|m", "20|f", "5|from"]);
}

/// Parent and child, either sent on its own; the child's key follows the parent's in this way.
fn family(label: &str, action: &str) -> rowsync_harness::Fixture {
    let fixture = linked(label);
    mirror(&fixture, "parent", COLUMNS, SYNC);
    mirror(
        &fixture,
        "child",
        &format!("id int primary key, p int references parent {action}"),
        SYNC,
    );
    fixture
        .left
        .exec("insert into parent values (1, 'a'), (2, 'b'); insert into child values (10, 1)");
    fixture
}

#[test]
fn a_delete_that_cascades_arrives() {
    for (action, left) in [
        ("on delete cascade", [].as_slice()),
        ("on delete set null", &["10|~"]),
    ] {
        let fixture = family("cascade", action);
        fixture.left.exec("delete from parent where id = 1");
        both_have(&fixture, "parent", &["2|b"]);
        both_have(&fixture, "child", left);
    }
}

#[test]
fn a_key_change_that_cascades_arrives() {
    let fixture = family("follow", "on update cascade");
    fixture.left.exec("update parent set id = 3 where id = 1");
    both_have(&fixture, "parent", &["2|b", "3|a"]);
    both_have(&fixture, "child", &["10|3"]);
}

#[test]
fn what_deferred_triggers_do_at_commit_is_delivered() {
    let fixture = one_way("deferred", COLUMNS, SYNC);
    fixture.left.exec(
        "create function late() returns trigger language plpgsql as $$
         begin
           update t set v = v || ' late' where id = new.id;
           return null;
         end $$;
         create constraint trigger late after insert on t deferrable initially deferred
           for each row execute function late()",
    );
    fixture
        .left
        .exec("begin; insert into t values (1, 'a'); insert into t values (2, 'b'); commit");
    both_have(&fixture, "t", &["1|a late", "2|b late"]);
}

#[test]
fn a_sync_trigger_that_can_be_deferred_is_refused() {
    let fixture = linked("latesync");
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table t ({COLUMNS})"));
    }
    let make = |timing: &str| {
        fixture.left.exec(&format!(
            "drop trigger if exists s on t;
             create constraint trigger s after insert or update or delete on t {timing} for each row
               execute function sync_dml('dst', '{}', 't', '{SYNC}')",
            fixture.right.user
        ));
    };
    for timing in ["deferrable initially deferred", "deferrable"] {
        make(timing);
        let error = fails_with(&fixture.left, &insert_into(&fixture, "(1, 'a')"), "39P01");
        assert!(
            error
                .message()
                .ends_with("as a deferrable constraint trigger"),
            "{error:?}"
        );
    }
    make("not deferrable");
    fixture.left.exec(&insert_into(&fixture, "(1, 'a')"));
    both_have(&fixture, "t", &["1|a"]);
}

fn insert_into(fixture: &rowsync_harness::Fixture, values: &str) -> String {
    format!("insert into {}.t values {values}", fixture.left.user)
}

#[test]
fn rows_that_the_triggers_condition_excludes_stay_here() {
    let fixture = linked("filter");
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table t ({COLUMNS})"));
    }
    fixture.left.exec(&format!(
        "create trigger s after insert on t for each row when (new.v like 'public%')
           execute function sync_dml('dst', '{}', 't')",
        fixture.right.user
    ));
    fixture
        .left
        .exec("insert into t values (1, 'public a'), (2, 'private'), (3, 'public b')");
    assert_eq!(table(&fixture.right, "t"), ["1|public a", "3|public b"]);
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn triggers_that_change_or_drop_the_row_count() {
    let fixture = one_way("before", COLUMNS, SYNC);
    fixture.left.exec(
        "create function b() returns trigger language plpgsql as $$
         begin
           if new.v = 'drop' then return null; end if;
           new.v := upper(new.v);
           return new;
         end $$;
         create trigger b before insert or update on t for each row execute function b()",
    );
    fixture.left.exec("insert into t values (1, 'a'), (2, 'drop'), (3, 'b'); update t set v = 'drop' where id = 1");
    both_have(&fixture, "t", &["1|A", "3|B"]);
}

#[test]
fn a_table_that_is_all_key_is_synchronised() {
    let fixture = one_way("allkey", "a int, b text, primary key (b, a)", SYNC);
    fixture
        .left
        .exec("insert into t values (1, 'x'), (2, 'y'), (3, 'z'); update t set a = a");
    fixture
        .left
        .exec("update t set a = 5 where b = 'x'; delete from t where b = 'y'");
    both_have(&fixture, "t", &["3|z", "5|x"]);
}

#[test]
fn wide_and_large_rows_arrive() {
    let columns: Vec<String> = (0..400).map(|i| format!("c{i} int default {i}")).collect();
    let fixture = one_way(
        "large",
        &format!("id int primary key, big text, {}", columns.join(", ")),
        SYNC,
    );
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t (id, big) select 1, string_agg(md5(i::text), '\"') from generate_series(1, 400000) i",
    );
    run(
        &mut client,
        "insert into t (id, big) select i, repeat('x', 20000) from generate_series(2, 300) i",
    );
    run(
        &mut client,
        "update t set c7 = -1, big = big || '\\' where id < 50",
    );
    let sum = "select count(*), sum(hashtext(t::text)), max(length(big)) from t";
    let left = rows(&fixture.left, sum);
    assert_eq!(left, rows(&fixture.right, sum));
    assert!(left[0].starts_with("300|"), "{left:?}");
}

#[test]
fn a_view_and_inheritance_write_through_to_their_tables() {
    let fixture = one_way("view", COLUMNS, SYNC);
    fixture
        .left
        .exec("create view w as select * from t where id < 100");
    fixture
        .left
        .exec("insert into w values (1, 'a'), (2, 'b'); update w set v = 'c' where id = 1");
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table kid (id int primary key, extra int) inherits (t)");
    }
    // Rows of a child table are not the parent's: it needs triggers of its own.
    attach(&fixture, "kid", SYNC);
    fixture
        .left
        .exec("insert into kid values (50, 'k', 1); update t set v = v || '!'");
    both_have(&fixture, "t", &["1|c!", "2|b!", "50|k!"]);
    both_have(&fixture, "kid", &["50|k!|1"]);
    // TRUNCATE of the parent here takes the child's rows too, each by its own trigger.
    fixture.left.exec("truncate only t");
    both_have(&fixture, "t", &["50|k!"]);
    fixture.left.exec("truncate t");
    both_have(&fixture, "t", &[]);
}
