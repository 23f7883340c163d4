//! What administrators do to the extension's own tables while changes are queued: no error, no change that
//! overtakes another, no rule of theirs passed over.

use std::thread;

use rowsync_harness::fails;
use rowsync_harness::flag::Flag;

use crate::support::common::{
    deal, mirror, one_way, outage, query, queued, recover, refused, rows, run, same,
    tell_what_is_missing, warnings,
};

const COLUMNS: &str = "id int primary key, v text";

#[test]
fn an_index_that_was_rebuilt_is_found_by_sessions_that_knew_the_old_one() {
    let fixture = one_way("reindex", COLUMNS, "{}");
    let mut client = fixture.left.client();
    // The session remembers what it finds; its transaction is open when the index goes away.
    run(
        &mut client,
        "insert into t values (1, 'a'); begin; insert into t values (2, 'b')",
    );
    for table in [
        "sync_queue",
        "sync_route",
        "sync_lost_session",
        "sync_row_version",
    ] {
        run(
            &mut fixture.left.superuser(),
            &format!("reindex table concurrently {table}"),
        );
    }
    run(&mut client, "commit");
    outage(&fixture.right);
    run(
        &mut client,
        "update t set v = 'c' where id = 1; update t set v = 'c2' where id = 1",
    );
    recover(&fixture.right);
    // Records are pending, so what comes now waits too.
    for value in ["d1", "d2", "d"] {
        run(
            &mut client,
            &format!("begin; update t set v = '{value}' where id = 1"),
        );
        run(
            &mut fixture.left.superuser(),
            "reindex table concurrently sync_queue",
        );
        run(&mut client, "commit");
    }
    assert_eq!(queued(&fixture), 5);
    assert!(deal(&fixture, "100"));
    assert_eq!(same(&fixture, "t"), ["1|d", "2|b"]);
}

#[test]
fn an_index_is_known_by_what_it_has_and_not_by_its_name() {
    let fixture = one_way("swapped", COLUMNS, "{}");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    // The names say the opposite of what the indexes have.
    fixture.left.exec_superuser(
        "alter index sync_queue_pending rename to sync_queue_x;
         alter index sync_queue_failed rename to sync_queue_pending;
         alter index sync_queue_x rename to sync_queue_failed",
    );
    outage(&fixture.right);
    run(&mut client, "update t set v = 'b' where id = 1");
    recover(&fixture.right);
    // Would overtake the one before, were that not found.
    run(&mut client, "update t set v = 'c' where id = 1");
    assert_eq!(queued(&fixture), 2);
    assert_eq!(
        rows(
            &fixture.left,
            "set enable_seqscan = off; select count(*) from sync_queue where status = 'pending'"
        ),
        ["2"]
    );
    assert!(deal(&fixture, "100"));
    assert_eq!(same(&fixture, "t"), ["1|c"]);
}

#[test]
fn without_the_indexes_nothing_overtakes_either() {
    let fixture = one_way("bare", COLUMNS, "{}");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    fixture.left.exec_superuser(
        "drop index sync_queue_pending, sync_queue_failed, sync_lost_session_server",
    );
    outage(&fixture.right);
    run(&mut client, "update t set v = 'b' where id = 1");
    recover(&fixture.right);
    run(&mut client, "update t set v = 'c' where id = 1");
    assert_eq!(queued(&fixture), 2);
    // One that the look-ups can use, and others that they must not.
    fixture.left.exec_superuser(
        "create index on sync_queue (dst_server text_pattern_ops) where status = 'pending';
         create index on sync_queue (dst_server collate \"POSIX\");
         create index on sync_queue using hash (dst_server);
         create index on sync_queue (dst_server) where status = 'pending' and attempts > 100;
         create index on sync_queue (dst_server, status)",
    );
    run(&mut client, "update t set v = 'd' where id = 1");
    assert_eq!(queued(&fixture), 3);
    assert!(deal(&fixture, "100"));
    run(&mut client, "update t set v = 'e' where id = 1");
    assert_eq!(queued(&fixture), 0);
    assert_eq!(same(&fixture, "t"), ["1|e"]);
}

#[test]
fn tables_are_rewritten_and_rebuilt_under_load() {
    let fixture = one_way("rewrite", COLUMNS, r#"{"mode": "queue"}"#);
    let over = Flag::default();
    thread::scope(|scope| {
        let _end = over.set_at_end();
        let writers = [0, 1].map(|writer| {
            let fixture = &fixture;
            let over = &over;
            scope.spawn(move || {
                let mut client = fixture.left.client();
                run(
                    &mut client,
                    &format!("insert into t values ({writer}, '0')"),
                );
                let mut count = 0;
                while !over.is_set() {
                    count += 1;
                    run(
                        &mut client,
                        &format!("update t set v = '{count}' where id = {writer}"),
                    );
                }
                count
            })
        });
        let mut admin = fixture.left.superuser();
        for round in 0..3 {
            for statement in [
                "vacuum full sync_queue",
                "cluster sync_queue using sync_queue_pkey",
                "reindex table concurrently sync_queue",
                "create index again on sync_queue (dst_server, id) where status = 'pending'",
                "drop index sync_queue_pending",
                "alter index again rename to sync_queue_pending",
                "reindex table sync_route",
                "vacuum sync_queue",
            ] {
                run(&mut admin, statement);
            }
            run(
                &mut admin,
                &format!("alter table sync_queue add column note{round} text default 'n'"),
            );
            assert!(deal(&fixture, "100000"));
        }
        over.set();
        for writer in writers {
            assert!(writer.join().expect("a writer") > 0);
        }
    });
    assert!(deal(&fixture, "100000"));
    assert_eq!(queued(&fixture), 0);
    same(&fixture, "t");
}

#[test]
fn pg_repack_rewrites_tables_under_load() {
    let fixture = one_way("repack", COLUMNS, r#"{"mode": "queue"}"#);
    let newest = r#"{"on_conflict": "newest", "version_column": "ver"}"#;
    mirror(&fixture, "n", "id int primary key, ver int", newest);
    let cluster = &fixture.left.cluster;
    let is_there = fixture.left.query_one::<bool>(
        "select exists (select from pg_available_extensions where name = 'pg_repack')",
    );
    if !is_there {
        tell_what_is_missing("pg_repack");
        return;
    }
    fixture
        .left
        .exec_superuser("create extension pg_repack schema public");
    let over = Flag::default();
    thread::scope(|scope| {
        let _end = over.set_at_end();
        let changes = [
            "insert into t values (1, '0') on conflict (id) do update set v = t.v::int + 1",
            "insert into n values (1, extract(epoch from clock_timestamp())::int)
               on conflict (id) do update set ver = n.ver + 1; delete from n where id = 1",
        ];
        let writers = changes.map(|change| {
            let fixture = &fixture;
            let over = &over;
            scope.spawn(move || {
                let mut client = fixture.left.client();
                let mut count = 0;
                while !over.is_set() {
                    count += 1;
                    run(&mut client, change);
                }
                count
            })
        });
        let drains = scope.spawn(|| {
            while !over.is_set() {
                assert!(deal(&fixture, "1000"));
            }
        });
        let tables = ["sync_queue", "sync_route", "sync_row_version", "t", "n"];
        for table in tables.into_iter().chain(tables) {
            let schema = match table.len() {
                1 => fixture.left.user.as_str(),
                _ => "public",
            };
            let name = format!("{schema}.{table}");
            let file = format!("select pg_relation_filenode('{name}')::text");
            let before: String = fixture.left.query_one(&file);
            let arguments = [
                "--no-superuser-check",
                "--wait-timeout=60",
                "--table",
                &name,
            ];
            cluster
                .client_program("pg_repack", &fixture.left.db, &arguments, "")
                .unwrap_or_else(|error| panic!("{table}: {error:#}"));
            assert_ne!(fixture.left.query_one::<String>(&file), before, "{table}");
        }
        over.set();
        drains.join().expect("the drains");
        for writer in writers {
            assert!(writer.join().expect("a writer") > 0);
        }
    });
    assert!(deal(&fixture, "100000"));
    assert_eq!(queued(&fixture), 0);
    same(&fixture, "t");
    same(&fixture, "n");
}

#[test]
fn constraints_and_defaults_that_were_added_hold() {
    let fixture = one_way("rules", COLUMNS, r#"{"mode": "queue"}"#);
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    fixture.left.exec_superuser(
        "create domain public.label text default 'plain';
         alter table sync_queue add column host text not null default 'here',
           add column kind public.label, add column size int generated always as (length(op)) stored,
           add constraint small check (length(change::text) < 1000)",
    );
    run(&mut client, "insert into t values (2, 'b')");
    assert_eq!(
        rows(
            &fixture.left,
            "select host, kind, size from sync_queue order by id desc limit 1"
        ),
        ["here|plain|6"]
    );
    let error = refused(
        &mut client,
        "insert into t values (3, repeat('x', 2000))",
        "23514",
    );
    assert!(error.message().contains("small"), "{error:?}");
    fixture
        .left
        .exec_superuser("alter table sync_queue alter column host drop default");
    refused(&mut client, "insert into t values (4, 'd')", "23502");
    assert_eq!(
        rows(&fixture.left, "select id from t order by id"),
        ["1", "2"]
    );
    fixture
        .left
        .exec_superuser("alter table sync_queue drop column host");
    run(&mut client, "insert into t values (5, 'e')");
    assert!(deal(&fixture, "100"));
    assert_eq!(same(&fixture, "t").len(), 3);
}

#[test]
fn a_trigger_on_the_queue_leaves_nothing_behind() {
    let fixture = one_way("leak", COLUMNS, r#"{"mode": "queue"}"#);
    fixture.left.exec_superuser(
        "create table public.seen (id bigint);
         create function public.seen() returns trigger language plpgsql as $$ begin
           insert into public.seen values (new.id); return null; end $$;
         create trigger seen after insert on sync_queue for each row execute function public.seen()",
    );
    let (mut client, notices) = fixture.left.client_with_notices();
    run(&mut client, "insert into t values (1, 'a'), (2, 'b')");
    assert!(warnings(&notices).is_empty());
    assert_eq!(
        rows(&fixture.left, "select count(*) from public.seen"),
        ["2"]
    );
}

#[test]
fn a_queued_insert_leaves_the_sessions_sequences_alone() {
    let fixture = one_way(
        "lastval",
        "id serial primary key, v text",
        r#"{"mode": "queue"}"#,
    );
    let mut client = fixture.left.client();
    let error = fails(client.simple_query("insert into t values (100, 'x'); select lastval()"));
    assert_eq!(error.code().code(), "55000", "{error:?}");
    run(&mut client, "insert into t (v) values ('a')");
    assert_eq!(
        query(&mut client, "select lastval(), currval('t_id_seq')"),
        ["1|1"]
    );
    run(
        &mut client,
        "begin; insert into t (v) values ('b'), ('c'); commit",
    );
    assert_eq!(query(&mut client, "select lastval()"), ["3"]);
    let ids = rows(&fixture.left, "select id from sync_queue order by id");
    assert_eq!(ids, ["1", "2", "3"]);
    assert!(deal(&fixture, "100"));
    same(&fixture, "t");
}

#[test]
fn logging_a_conflict_leaves_the_sessions_sequences_alone() {
    let fixture = one_way(
        "lastconf",
        "id serial primary key, v text",
        r#"{"on_conflict": "skip"}"#,
    );
    fixture.right.exec("insert into t values (1, 'theirs')");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t (v) values ('ours')");
    assert_eq!(query(&mut client, "select lastval()"), ["1"]);
    assert_eq!(
        rows(&fixture.left, "select id, type from sync_conflicts"),
        ["1|insert_exists"]
    );
    run(
        &mut client,
        "create sequence s start 50; select nextval('s'); update t set v = 'new'",
    );
    assert_eq!(query(&mut client, "select lastval()"), ["50"]);
}

#[test]
fn ids_follow_each_other_whoever_queues_and_after_a_restore() {
    let fixture = one_way("ids", COLUMNS, r#"{"mode": "queue"}"#);
    // As pg_dump leaves it: the last number, or one that was not used yet.
    run(
        &mut fixture.left.superuser(),
        "select setval('sync_queue_id_seq', 500, false)",
    );
    fixture.left.exec("insert into t values (1, 'a')");
    run(
        &mut fixture.left.superuser(),
        "select setval('sync_queue_id_seq', 600)",
    );
    fixture.left.exec("insert into t values (2, 'b')");
    assert_eq!(
        rows(&fixture.left, "select id from sync_queue order by id"),
        ["500", "601"]
    );
    thread::scope(|scope| {
        for writer in 0..4 {
            let fixture = &fixture;
            scope.spawn(move || {
                let mut client = fixture.left.client();
                for at in 0..25 {
                    let id = 100 * (writer + 1) + at;
                    run(
                        &mut client,
                        &format!("insert into t values ({id}, 'x'), ({id} + 50, 'y')"),
                    );
                }
            });
        }
    });
    let sql = "select count(*), max(id) - 601 from sync_queue where id > 601";
    assert_eq!(rows(&fixture.left, sql), ["200|200"]);
    assert!(deal(&fixture, "100000"));
    same(&fixture, "t");
}
