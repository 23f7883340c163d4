//! What others have planted is never called by the extension's SQL: not in the sessions of writers and
//! administrators, not in the worker, not on the other side, and not by who runs `dst_query` there.

use std::time::Duration;

use rowsync_harness::{Fixture, await_until};

use crate::security::trojan_objects::{PATH, TrojanObjects, disguise};
use crate::support::common::{attach, deal, linked, records, run, same};

const COLUMNS: &str =
    "k varchar(9), m mood, d phrase, v text, n int, ver varchar(9), primary key (k, m, d)";

const POLICIES: [&str; 4] = ["overwrite", "error", "skip", "newest"];

/// Tables whose keys are of the types that comparisons are planted for, and of types that the planter owns.
fn arrange(label: &str) -> (Fixture, [TrojanObjects; 2]) {
    let fixture = linked(label);
    let trojans = [&fixture.left, &fixture.right].map(|side| {
        let trojans = TrojanObjects::new(side);
        run(
            &mut trojans.planter(),
            "create type public.mood as enum ('a', 'b', 'c'); create domain public.phrase as varchar(9);
             do $do$ declare t text; begin
               foreach t in array array['text', 'varchar', 'json', 'jsonb', 'name'] loop
                 execute format('create function planted.cast_%s(public.mood) returns %s language plpgsql
                   as %L', t, t, format('begin perform planted.spy(%L); return null; end', 'cast ' || t));
                 execute format('create function planted.back_%s(%s) returns public.mood language plpgsql
                   as %L', t, t, format('begin perform planted.spy(%L); return null; end', 'back ' || t));
                 execute format('create cast (public.mood as %s) with function planted.cast_%s(public.mood)
                   as assignment', t, t);
                 execute format('create cast (%s as public.mood) with function planted.back_%s(%s)
                   as assignment', t, t, t);
               end loop; end $do$;
             create function planted.eq(public.mood, public.mood) returns boolean language plpgsql
               as 'begin perform planted.spy(''mood''); return null; end';
             create operator planted.= (function = planted.eq, leftarg = public.mood, rightarg = public.mood);
             create operator public.= (function = planted.eq, leftarg = public.mood, rightarg = public.mood);
             create function planted.less(varchar, varchar) returns boolean language plpgsql
               as 'begin perform planted.spy(''varchar''); return null; end';
             create operator public.= (function = planted.less, leftarg = varchar, rightarg = varchar);
             create operator public.> (function = planted.less, leftarg = varchar, rightarg = varchar);",
        );
        side.exec(&format!("create table t ({COLUMNS})"));
        trojans
    });
    (fixture, trojans)
}

fn options(mode: &str, policy: &str) -> String {
    let version = if policy == "newest" {
        r#", "version_column": "ver""#
    } else {
        ""
    };
    format!(r#"{{"mode": "{mode}", "on_conflict": "{policy}"{version}}}"#)
}

/// Every form of statement, some of which meet rows and miss others.
fn write(table: &str) -> [String; 8] {
    [
        format!(
            "insert into {table} values ('a', 'a', 'a', 'x', 1, '1'), ('b', 'b', 'b', 'x', 1, '1')"
        ),
        format!("insert into {table} values ('c', 'c', 'c', 'x', 1, '1')"),
        format!("update {table} set v = 'y', ver = '2'"),
        format!("update {table} set k = k operator(pg_catalog.||) '1', ver = '3'"),
        format!(
            "update {table} set m = 'a', n = 2 where n operator(pg_catalog.=) 1 and k operator(pg_catalog.~) 'c'"
        ),
        format!(
            "insert into {table} values ('d', 'c', 'c', 'x', 2, '1'), ('e', 'c', 'c', 'x', 2, '1')"
        ),
        format!("delete from {table} where k operator(pg_catalog.~) 'e'"),
        format!("delete from {table} where k operator(pg_catalog.~) 'd|c'"),
    ]
}

#[test]
fn what_is_planted_is_called_by_nobody() {
    let (fixture, [here, there]) = arrange("planted");
    let user = &fixture.left.user;
    let schema = &fixture.right.user;
    fixture
        .left
        .exec(&format!("grant all on {user}.t to {}", here.role));
    fixture.right.exec_superuser(&format!(
        "alter role {schema} set search_path = pg_temp, planted, public, pg_catalog;
         alter database {schema} set search_path = planted, public, pg_catalog"
    ));
    let mut writer = here.planter();
    let mut admin = fixture.left.superuser();
    for client in [&mut writer, &mut admin] {
        disguise(client);
        here.expose(client, PATH);
    }
    for policy in POLICIES {
        for mode in ["async", "sync", "queue"] {
            let attached = format!(
                "select public.attach_sync('{user}.t', 'dst', '{schema}.t', '{}')",
                options(mode, policy)
            );
            run(&mut admin, &attached);
            run(&mut writer, "begin");
            write(&format!("{user}.t"))
                .iter()
                .for_each(|sql| run(&mut writer, sql));
            run(&mut writer, "commit");
            if mode == "queue" {
                run(&mut admin, "select * from public.sync_err_rec");
                run(&mut admin, "select public.deal_sync_err_rec(100, null)");
            }
            assert_eq!(records(&fixture), [""; 0], "{policy} {mode}");
            assert_eq!(same(&fixture, "t").len(), 2, "{policy} {mode}");
            if policy != "error" {
                // Rows that are met, and rows that are missed, by single rows and by many.
                fixture.right.exec_superuser(&format!(
                    "set search_path = pg_catalog; delete from {schema}.t;
                     insert into {schema}.t select 'm' || i, 'a', 'm', 'met', 0, '0' from generate_series(1, 4) i"
                ));
                for sql in [
                    format!("update {user}.t set v = 'z', ver = '5'"),
                    format!(
                        "insert into {user}.t select 'm' || i, 'a', 'm', 'new', 0, '5' from generate_series(1, 3) i"
                    ),
                    format!("insert into {user}.t values ('m4', 'a', 'm', 'new', 0, '5')"),
                    format!("update {user}.t set d = 'moved', ver = '6'"),
                    format!("delete from {user}.t"),
                ] {
                    run(&mut admin, &format!("set search_path = pg_catalog; {sql}"));
                }
                run(&mut admin, &format!("set search_path = {PATH}"));
                run(&mut admin, "select public.deal_sync_err_rec(100, null)");
            }
            assert_eq!(records(&fixture), [""; 0], "{policy} {mode}");
            run(
                &mut admin,
                &format!("select public.verify_sync('{user}.t', 'dst')"),
            );
            run(&mut admin, "select * from public.sync_status");
            run(&mut admin, "select * from public.sync_conflicts");
            run(&mut admin, "select * from public.sync_conflict_counts");
            run(
                &mut admin,
                "select public.sync_connections(), public.sync_counters()",
            );
            run(&mut writer, "select public.check_sync()");
            run(&mut admin, "select public.sync_disconnect(null)");
            run(&mut writer, "select public.sync_disconnect(null)");
            run(&mut admin, &format!("truncate {user}.t"));
            run(&mut admin, "select public.deal_sync_err_rec(100, null)");
            run(
                &mut admin,
                &format!("select public.detach_sync('{user}.t', 'dst')"),
            );
            fixture
                .right
                .exec_superuser(&format!("truncate {schema}.t"));
            // What the tests themselves compare by name is not counted: it is qualified.
            assert_eq!(here.calls(), [""; 0], "{policy} {mode}");
            assert_eq!(there.calls(), [""; 0], "{policy} {mode}");
        }
    }
}

#[test]
fn what_is_planted_is_not_called_by_retries_and_the_worker() {
    let (fixture, [here, there]) = arrange("plantedworker");
    let user = &fixture.left.user;
    let schema = &fixture.right.user;
    attach(&fixture, "t", &options("queue", "overwrite"));
    fixture.right.exec_superuser(&format!(
        "alter table {schema}.t add constraint c check (n is distinct from 13)"
    ));
    fixture.left.exec_superuser(&format!(
        "alter database {user} set search_path = planted, public, pg_catalog;
         alter role {user} set search_path = planted, public, pg_catalog"
    ));
    let mut admin = fixture.left.superuser();
    disguise(&mut admin);
    here.expose(&mut admin, PATH);
    let insert = format!("insert into {user}.t values");
    run(
        &mut admin,
        &format!("{insert} ('a', 'a', 'a', 'x', 13, '1'), ('b', 'b', 'b', 'x', 1, '1')"),
    );
    run(&mut admin, "select public.start_sync_worker()");
    await_until(Duration::from_secs(30), "the worker", || {
        records(&fixture)[0] == "INSERT|23514|1|failed"
    });
    run(&mut admin, &format!("update {user}.t set v = 'y'"));
    fixture
        .right
        .exec_superuser(&format!("alter table {schema}.t drop constraint c"));
    let retry = "select public.retry_sync_err_rec(id) from public.sync_err_rec
                  where status operator(pg_catalog.=) 'failed'";
    await_until(Duration::from_secs(30), "the rest", || {
        run(&mut admin, retry);
        records(&fixture).is_empty()
    });
    run(&mut admin, "select public.stop_sync_worker()");
    assert_eq!(same(&fixture, "t").len(), 2);
    assert_eq!(here.calls(), [""; 0]);
    assert_eq!(there.calls(), [""; 0]);
}

#[test]
fn dst_query_finds_nothing_that_was_planted() {
    let (fixture, [_here, there]) = arrange("plantedhand");
    let mut admin = fixture.right.superuser();
    for policy in POLICIES {
        attach(&fixture, "t", &options("queue", policy));
        let mut owner = fixture.left.client();
        run(
            &mut owner,
            &format!("set search_path = pg_catalog, {}", fixture.left.user),
        );
        write("t").iter().for_each(|sql| run(&mut owner, sql));
        let queries = crate::support::common::rows(
            &fixture.left,
            "select dst_query from sync_err_rec order by id",
        );
        assert!(queries.len() > 10);
        for path in [
            "public",
            "planted, public",
            "pg_temp, planted, public, pg_catalog",
        ] {
            run(&mut admin, "reset search_path");
            there.expose(&mut admin, path);
            for sql in &queries {
                run(&mut admin, sql);
            }
            assert_eq!(there.calls(), [""; 0], "{policy} {path}");
            same(&fixture, "t");
            run(&mut admin, &format!("truncate {}.t", fixture.right.user));
        }
        assert!(deal(&fixture, "100"));
        same(&fixture, "t");
        fixture.left.exec_superuser(&format!(
            "select detach_sync('{0}.t', 'dst'); truncate {0}.t",
            fixture.left.user
        ));
        fixture
            .right
            .exec_superuser(&format!("truncate {}.t", fixture.right.user));
    }
}
