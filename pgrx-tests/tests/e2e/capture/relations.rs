//! Kinds of tables on this side, and what constraints, triggers and policies on the other side do.

use rowsync_harness::Fixture;

use crate::support::common::{
    attach, attach_sql, both_have, deal, linked, mirror, one_way, queued, records, refused, rows,
    run, same, table,
};

const COLUMNS: &str = "id int primary key, v text";
const SYNC: &str = r#"{"mode": "sync"}"#;

#[test]
fn null_in_a_named_key_column_is_refused_at_capture() {
    for mode in ["sync", "async", "queue"] {
        let fixture = linked("nullkey");
        for side in [&fixture.left, &fixture.right] {
            side.exec("create table t (a int, b text, v text, unique (a, b))");
        }
        attach(
            &fixture,
            "t",
            &format!(r#"{{"mode": "{mode}", "key": ["a", "b"]}}"#),
        );
        let mut client = fixture.left.client();
        run(&mut client, "insert into t values (1, 'a', 'x')");
        let error = refused(&mut client, "insert into t values (2, null, 'x')", "23502");
        assert!(error.message().contains("\"b\""), "{error:?}");
        refused(&mut client, "update t set a = null", "23502");
        // A row from before the trigger that has no key cannot be changed or deleted either.
        run(
            &mut client,
            "alter table t disable trigger user; insert into t values (null, 'n', 'x')",
        );
        run(&mut client, "alter table t enable trigger user");
        refused(&mut client, "update t set a = 3 where b = 'n'", "23502");
        refused(&mut client, "delete from t where b = 'n'", "23502");
        run(&mut client, "update t set v = 'y' where a = 1");
        assert!(deal(&fixture, "10"));
        assert_eq!(table(&fixture.right, "t"), ["1|a|y"]);
    }
}

/// A row that enters a WHEN filter is written whole. One that leaves a filter on the new row stays
/// on the remote as it was; the trigger must look at the old row as well to see it go.
#[test]
fn rows_enter_and_leave_a_filter() {
    for mode in ["sync", "queue"] {
        let fixture = linked("whenrow");
        for side in [&fixture.left, &fixture.right] {
            side.exec(&format!("create table t ({COLUMNS})"));
        }
        let call = format!(
            r#"execute function sync_dml('dst', '{}', 't', '{{"mode": "{mode}"}}')"#,
            fixture.right.user
        );
        fixture.left.exec(&format!(
            "create trigger i after insert on t for each row when (new.v like 'p%') {call};
             create trigger u after update on t for each row when (new.v like 'p%') {call};
             create trigger d after delete on t for each row when (old.v like 'p%') {call}"
        ));
        let mut client = fixture.left.client();
        let step = |client: &mut postgres::Client, sql: &str, expected: &[&str]| {
            run(client, sql);
            assert!(deal(&fixture, "10"));
            assert_eq!(table(&fixture.right, "t"), expected, "{sql}");
        };
        step(
            &mut client,
            "insert into t values (1, 'p1'), (2, 'x2'), (3, 'p3')",
            &["1|p1", "3|p3"],
        );
        step(
            &mut client,
            "update t set v = 'p2' where id = 2",
            &["1|p1", "2|p2", "3|p3"],
        );
        step(
            &mut client,
            "update t set v = 'x1' where id = 1",
            &["1|p1", "2|p2", "3|p3"],
        );
        step(
            &mut client,
            "delete from t where id in (1, 3)",
            &["1|p1", "2|p2"],
        );
        // With a filter on either version the last state outside of it arrives.
        run(&mut client, "drop trigger u on t");
        run(
            &mut client,
            &format!(
                "create trigger u after update on t for each row
                   when (new.v like 'p%' or old.v like 'p%') {call}"
            ),
        );
        step(&mut client, "update t set v = 'x2'", &["1|p1", "2|x2"]);
        // One that changes its key as it enters is written under the new one.
        step(
            &mut client,
            "update t set v = 'p', id = 7",
            &["1|p1", "7|p"],
        );
    }
}

#[test]
fn unlogged_tables_are_synchronised() {
    let fixture = linked("unlogged");
    fixture
        .left
        .exec(&format!("create unlogged table t ({COLUMNS})"));
    fixture
        .right
        .exec(&format!("create unlogged table t ({COLUMNS})"));
    attach(&fixture, "t", SYNC);
    fixture
        .left
        .exec("insert into t values (1, 'a'), (2, 'b'); update t set v = 'c' where id = 1");
    fixture.left.exec("delete from t where id = 2");
    both_have(&fixture, "t", &["1|c"]);
}

#[test]
fn temporary_tables_are_synchronised_while_they_last() {
    let fixture = linked("temp");
    fixture.right.exec(&format!("create table t ({COLUMNS})"));
    let mut client = fixture.left.client();
    run(
        &mut client,
        &format!("create temp table t ({COLUMNS}) on commit drop"),
    );
    run(&mut client, &format!("create temp table t ({COLUMNS})"));
    run(&mut client, &attach_sql(&fixture, "t", "{}"));
    run(&mut client, "insert into t values (1, 'a')");
    if queued(&fixture) == 0 {
        assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    }
}

#[test]
fn foreign_tables_views_and_materialized_views_are_refused() {
    let fixture = linked("kindsno");
    let db = &fixture.left.db;
    let user = &fixture.left.user;
    fixture.left.exec_superuser(&format!(
        "create extension postgres_fdw;
         create server here foreign data wrapper postgres_fdw options (dbname '{db}');
         grant usage on foreign server here to {user}"
    ));
    fixture.left.exec(
        &format!(
            "create table t ({COLUMNS});
         create foreign table f ({COLUMNS}) server here options (table_name 't');
         create view w as select * from t; create materialized view m as select * from t"
        )
        .replace("f (id int primary key", "f (id int"),
    );
    let mut client = fixture.left.client();
    for kind in ["f", "w", "m"] {
        refused(&mut client, &attach_sql(&fixture, kind, "{}"), "0A000");
    }
    // By hand PostgreSQL takes the trigger; the first row is refused.
    run(
        &mut client,
        &format!(
            "create trigger s after insert on f for each row
               execute function sync_dml('dst', '{}', 't')",
            fixture.right.user
        ),
    );
    let sql =
        format!("create user mapping for {user} server here options (password_required 'false')");
    fixture.left.exec_superuser(&sql);
    refused(
        &mut client,
        "create trigger s instead of insert on w for each row
        execute function sync_dml('dst', 'x', 't'); insert into w values (1)",
        "39P01",
    );
}

#[test]
fn partitions_come_and_go_and_rows_move_between_them() {
    for mode in ["sync", "queue"] {
        let fixture = linked("parts");
        for (side, columns) in [
            (&fixture.left, "v text, id int, r text"),
            (&fixture.right, "id int, r text, v text"),
        ] {
            side.exec(&format!(
                "create table t ({columns}, primary key (r, id)) partition by list (r);
                 create table t_a partition of t for values in ('a') partition by range (id);
                 create table t_a1 partition of t_a for values from (0) to (10);
                 create table junk (x int, r text not null, y int, id int not null, v text);
                 alter table junk drop x, drop y; alter table junk rename to t_a2;
                 alter table t_a attach partition t_a2 for values from (10) to (100);
                 create table t_b partition of t for values in ('b')"
            ));
        }
        attach(&fixture, "t", &format!(r#"{{"mode": "{mode}"}}"#));
        let step = |sql: &str| {
            fixture.left.exec(sql);
            assert!(
                deal(&fixture, "1000"),
                "{:?}",
                rows(&fixture.left, "select message from sync_err_rec")
            );
            let all = "select id, r, v from t order by 1, 2";
            let left = rows(&fixture.left, all);
            assert_eq!(left, rows(&fixture.right, all), "{sql}");
            left.len()
        };
        step(
            "insert into t (v, id, r) select 'v' || i, i, chr(97 + i % 2) from generate_series(0, 19) i",
        );
        step("update t set v = v || '!' where id % 3 = 0");
        // Between partitions, sub-partitions, and both at once with the key.
        step("update t set id = id + 20 where r = 'a' and id < 10");
        step("update t set r = 'b', id = id + 100 where id between 4 and 12");
        step("begin; update t set r = 'a', id = 50 where id = 104; update t set v = 'x' where id = 50;
              update t set r = 'b' where id = 50; delete from t where id = 1; commit");
        // Through the partition's own name; detached it is on its own, attached it is back.
        step("insert into t_b (v, id, r) values ('own', 60, 'b'); update t_a2 set v = 'own'");
        fixture.left.exec("alter table t detach partition t_b");
        fixture.right.exec("alter table t detach partition t_b");
        step("insert into t_b (v, id, r) values ('not sent', 61, 'b')");
        assert!(!rows(&fixture.right, "select id from t_b").contains(&"61".to_owned()));
        fixture.left.exec("delete from t_b where id = 61");
        for side in [&fixture.left, &fixture.right] {
            side.exec("alter table t attach partition t_b for values in ('b')");
        }
        assert!(
            step("insert into t (v, id, r) values ('back', 62, 'b'); delete from t where id = 60")
                > 10
        );
        assert_eq!(step("truncate t_a1; truncate t"), 0);
        assert_eq!(queued(&fixture), 0);
    }
}

#[test]
fn a_partition_may_be_sent_on_its_own() {
    let fixture = linked("onepart");
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!(
            "create table t ({COLUMNS}) partition by range (id);
             create table t_a partition of t for values from (0) to (10);
             create table t_b partition of t for values from (10) to (20)"
        ));
    }
    attach(&fixture, "t_a", SYNC);
    fixture
        .left
        .exec("insert into t values (1, 'a'), (2, 'b'), (11, 'not sent')");
    fixture
        .left
        .exec("update t set id = 12 where id = 2; update t set v = 'c' where id = 1");
    fixture.left.exec("update t set id = 3 where id = 11");
    assert_eq!(table(&fixture.right, "t"), ["1|c", "3|not sent"]);
    fixture.left.exec("truncate t_a");
    both_have(&fixture, "t_a", &[]);
}

/// What a policy hides would look missing, so a role that policies apply to is refused altogether.
#[test]
fn row_security_of_the_remote_is_never_silent() {
    let fixture = linked("rls");
    for policy in ["overwrite", "skip", "error"] {
        let options = format!(r#"{{"on_conflict": "{policy}"}}"#);
        let name = format!("t_{policy}");
        mirror(&fixture, &name, COLUMNS, &options);
        fixture.left.exec(&format!(
            "insert into {name} values (1, 'a'), (2, 'b'), (3, 'c')"
        ));
        fixture.right.exec(&format!(
            "alter table {name} enable row level security, force row level security;
             create policy few on {name} using (id < 3) with check (id < 3)"
        ));
        let before = fixture.checksum(&fixture.right, &name);
        for sql in [
            "update TABLE set v = 'x' where id = 1",
            "insert into TABLE values (10, 'y')",
            "update TABLE set id = 11 where id = 2",
            "update TABLE set v = 'z' where id = 3",
            "delete from TABLE where id = 3",
        ] {
            fixture.left.exec(&sql.replace("TABLE", &name));
            let kept = rows(
                &fixture.left,
                "select distinct sqlstate from sync_err_rec where attempts > 0",
            );
            assert_eq!(kept, ["42501"], "{policy}: {sql}");
            assert_eq!(
                fixture.checksum(&fixture.right, &name),
                before,
                "{policy}: {sql}"
            );
        }
        // A role that policies do not apply to gets everything.
        let role = fixture.right.user.clone();
        fixture
            .right
            .exec_superuser(&format!("alter role {role} bypassrls"));
        assert!(
            fixture
                .left
                .query_one::<bool>("select deal_sync_err_rec(100)"),
            "{policy}"
        );
        same(&fixture, &name);
        fixture
            .right
            .exec_superuser(&format!("alter role {role} nobypassrls"));
    }
}

fn family(fixture: &Fixture, left: &str, right: &str) {
    for (side, reference) in [(&fixture.left, left), (&fixture.right, right)] {
        side.exec(&format!(
            "create table p ({COLUMNS});
             create table c (id int primary key, p int references p {reference}, v text)"
        ));
    }
    attach(fixture, "p", SYNC);
    attach(fixture, "c", SYNC);
    fixture
        .left
        .exec("insert into p values (1, 'a'), (2, 'b'); insert into c values (10, 1), (20, 2)");
}

#[test]
fn cascades_on_both_sides_do_not_disturb_each_other() {
    for action in [
        "on delete cascade on update cascade",
        "on delete set null on update cascade",
    ] {
        for late in ["", "deferrable initially deferred"] {
            let fixture = linked("cascades");
            family(
                &fixture,
                &format!("{action} {late}"),
                &format!("{action} {late}"),
            );
            let mut client = fixture.left.client();
            run(
                &mut client,
                "update p set id = id + 2; update p set v = 'x' where id = 3",
            );
            run(
                &mut client,
                "begin; delete from p where id = 3; insert into p values (1, 'new')",
            );
            run(
                &mut client,
                "insert into c values (30, 1); update p set id = 9 where id = 4; commit",
            );
            same(&fixture, "c");
            both_have(&fixture, "p", &["1|new", "9|b"]);
            run(&mut client, "delete from p");
            both_have(&fixture, "p", &[]);
            same(&fixture, "c");
            assert_eq!(queued(&fixture), 0);
        }
    }
}

#[test]
fn a_remote_foreign_key_that_is_missing_its_parent_says_so() {
    for late in ["", "deferrable initially deferred"] {
        let fixture = linked("orphan");
        fixture
            .left
            .exec("create table c (id int primary key, p int)");
        fixture.right.exec(&format!(
            "create table p (id int primary key);
             create table c (id int primary key, p int references p {late})"
        ));
        fixture.left.exec(&attach_sql(&fixture, "c", SYNC));
        let mut client = fixture.left.client();
        let error = refused(&mut client, "insert into c values (1, 1)", "23503");
        assert_eq!(error.constraint(), Some("c_p_fkey"));
        run(&mut client, "select detach_sync('c', 'dst')");
        run(&mut client, &attach_sql(&fixture, "c", "{}"));
        run(&mut client, "insert into c values (1, 1)");
        assert_eq!(records(&fixture), ["INSERT|23503|1|pending"]);
        fixture.right.exec("insert into p values (1)");
        assert!(deal(&fixture, "10"));
        both_have(&fixture, "c", &["1|1"]);
    }
}

#[test]
fn children_before_parents_need_a_deferred_key_on_both_sides() {
    let fixture = linked("childfirst");
    let late = "deferrable initially deferred";
    family(&fixture, late, late);
    fixture
        .left
        .exec("begin; insert into c values (30, 3); insert into p values (3, 'late'); commit");
    fixture
        .left
        .exec("begin; delete from p where id = 1; update c set p = 2 where p = 1; commit");
    both_have(&fixture, "p", &["2|b", "3|late"]);
    both_have(&fixture, "c", &["10|2|~", "20|2|~", "30|3|~"]);
}

#[test]
fn triggers_that_fire_on_cascades_are_followed() {
    let fixture = linked("cascadetrigger");
    family(&fixture, "on delete cascade", "on delete cascade");
    fixture.left.exec(
        "create function note() returns trigger language plpgsql as $$
         begin
           insert into p values (old.id + 100, 'gone: ' || old.id);
           return null;
         end $$;
         create trigger n after delete on c for each row execute function note();
         create function keep() returns trigger language plpgsql as $$
         begin
           update p set v = v || '+' where id <> old.p;
           return old;
         end $$;
         create trigger k before delete on c for each row execute function keep()",
    );
    fixture.left.exec("delete from p where id = 1");
    both_have(&fixture, "p", &["110|gone: 10", "2|b+"]);
    both_have(&fixture, "c", &["20|2|~"]);
}

#[test]
fn remote_triggers_run_and_their_errors_come_back() {
    let fixture = one_way("rtrigger", COLUMNS, SYNC);
    fixture.right.exec(
        "create function b() returns trigger language plpgsql as $$
         begin
           if new.v = 'no' then raise exception 'refused' using errcode = 'P0077'; end if;
           if new.v = 'drop' then return null; end if;
           new.v := upper(new.v);
           return new;
         end $$;
         create trigger b before insert or update on t for each row execute function b()",
    );
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t values (1, 'a'); update t set v = 'b'",
    );
    assert_eq!(table(&fixture.right, "t"), ["1|B"]);
    refused(&mut client, "update t set v = 'no'", "P0077");
    assert_eq!(table(&fixture.left, "t"), ["1|b"]);
}
