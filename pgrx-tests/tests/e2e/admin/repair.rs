//! `repair_sync`: both sides are equal afterwards, and no row that was written meanwhile is set back.

use postgres::Client;
use rowsync_harness::fixture::{Fixture, await_until};
use rowsync_harness::flag::Flag;

use crate::support::common::{
    Role, both_have, linked, mirror, one_way, query, queued, refused, run, table,
};
use crate::support::one_way::SOON;
use rowsync_harness::rng::Rng;

/// `difference|key|action` of a repair.
fn repaired(client: &mut Client, table: &str, options: &str) -> Vec<String> {
    query(
        client,
        &format!(
            "select difference, key, action from repair_sync('{table}', 'dst', '{options}')
              order by difference, key"
        ),
    )
}

/// Three rows on both sides, then one that is missing there, one that is extra, one that differs.
fn apart(fixture: &Fixture) {
    fixture
        .left
        .exec("insert into t values (1, 'a'), (2, 'b'), (3, 'c')");
    both_have(fixture, "t", &["1|a", "2|b", "3|c"]);
    fixture.right.exec(
        "set application_name = 'pg_rowsync';
         delete from t where id = 1; update t set v = 'B' where id = 2; insert into t values (9, 'z')",
    );
}

#[test]
fn this_side_is_right_unless_told_otherwise_in_every_mode_and_policy() {
    for mode in ["async", "sync", "queue"] {
        for policy in ["overwrite", "skip", "error"] {
            let options = format!(r#"{{"mode": "{mode}", "on_conflict": "{policy}"}}"#);
            let fixture = one_way("repair", "id int primary key, v text", &options);
            let mut client = fixture.left.client();
            fixture
                .left
                .exec("insert into t values (1, 'a'), (2, 'b'), (3, 'c')");
            let _: bool = fixture.left.query_one("select deal_sync_err_rec(100)");
            apart_again(&fixture);
            let expected = [
                r#"differs|{"id": 2}|write there"#,
                r#"extra|{"id": 9}|delete there"#,
                r#"missing|{"id": 1}|write there"#,
            ];
            assert_eq!(repaired(&mut client, "t", r#"{"dry_run": true}"#), expected);
            assert_eq!(
                table(&fixture.right, "t"),
                ["2|B", "3|c", "9|z"],
                "only said"
            );
            assert_eq!(repaired(&mut client, "t", "{}"), expected, "{options}");
            let _: bool = fixture.left.query_one("select deal_sync_err_rec(100)");
            both_have(&fixture, "t", &["1|a", "2|b", "3|c"]);
            assert_eq!(repaired(&mut client, "t", "{}"), [""; 0]);
        }
    }
}

fn apart_again(fixture: &Fixture) {
    fixture.right.exec(
        "delete from t where id = 1; update t set v = 'B' where id = 2; insert into t values (9, 'z')",
    );
}

#[test]
fn rows_that_only_one_side_has_may_stay() {
    let fixture = one_way("stay", "id int primary key, v text", "{}");
    apart(&fixture);
    let mut client = fixture.left.client();
    let seen = repaired(&mut client, "t", r#"{"delete_extra": false}"#);
    assert_eq!(seen[1], r#"extra|{"id": 9}|left"#);
    assert_eq!(table(&fixture.right, "t"), ["1|a", "2|b", "3|c", "9|z"]);
}

#[test]
fn the_other_side_may_be_right_and_nothing_goes_back() {
    let fixture = one_way("from", "id int primary key, v text", "{}");
    apart(&fixture);
    let mut client = fixture.left.client();
    let seen = repaired(&mut client, "t", r#"{"direction": "from_server"}"#);
    assert_eq!(
        seen,
        [
            r#"differs|{"id": 2}|write here"#,
            r#"extra|{"id": 9}|write here"#,
            r#"missing|{"id": 1}|delete here"#
        ]
    );
    both_have(&fixture, "t", &["2|B", "3|c", "9|z"]);
    let connections = "select count(*) from sync_err_rec";
    let waiting: i64 = fixture.left.query_one(connections);
    assert_eq!(waiting, 0);
    run(&mut client, "insert into t values (10, 'on')");
    both_have(&fixture, "t", &["10|on", "2|B", "3|c", "9|z"]);
}

#[test]
fn a_dry_run_writes_on_neither_side_in_any_direction() {
    let newest = r#"{"on_conflict": "newest", "version_column": "ver"}"#;
    for (options, direction, actions) in [
        (
            "{}",
            "to_server",
            ["write there", "delete there", "write there"],
        ),
        (
            "{}",
            "from_server",
            ["write here", "write here", "delete here"],
        ),
        (
            newest,
            "newest",
            ["write here", "write here", "write there"],
        ),
    ] {
        let fixture = one_way("dry", "id int primary key, v text, ver int", options);
        fixture
            .left
            .exec("insert into t values (1, 'a', 1), (2, 'b', 1), (3, 'c', 1)");
        fixture.right.exec(
            "set application_name = 'pg_rowsync'; delete from t where id = 1;
             update t set v = 'B', ver = 2 where id = 2; insert into t values (9, 'z', 1)",
        );
        let before = (table(&fixture.left, "t"), table(&fixture.right, "t"));
        let mut client = fixture.left.client();
        let option = format!(r#"{{"direction": "{direction}", "dry_run": true}}"#);
        let seen = repaired(&mut client, "t", &option);
        let expected: Vec<String> = [
            "differs|{\"id\": 2}",
            "extra|{\"id\": 9}",
            "missing|{\"id\": 1}",
        ]
        .iter()
        .zip(actions)
        .map(|(row, action)| format!("{row}|{action}"))
        .collect();
        assert_eq!(seen, expected, "{direction}");
        let after = (table(&fixture.left, "t"), table(&fixture.right, "t"));
        assert_eq!(after, before, "{direction}");
        assert_eq!(queued(&fixture), 0);
        let done = repaired(&mut client, "t", &option.replace("true", "false"));
        assert_eq!(done, expected, "{direction}");
        assert_eq!(table(&fixture.left, "t"), table(&fixture.right, "t"));
    }
}

#[test]
fn a_repair_that_is_cancelled_has_done_nothing_and_the_session_goes_on() {
    for direction in ["to_server", "from_server"] {
        let fixture = one_way("cancelled", "id int primary key, v text", "{}");
        apart(&fixture);
        let before = (table(&fixture.left, "t"), table(&fixture.right, "t"));
        // What is repaired last waits for this row's lock.
        let mut holder = fixture.left.client();
        run(&mut holder, "begin; select from t where id = 2 for update");
        let sql = format!(r#"select repair_sync('t', 'dst', '{{"direction": "{direction}"}}')"#);
        let mut client = fixture.left.client();
        let canceler = client.cancel_token();
        let call = std::thread::spawn(move || {
            let result = client.batch_execute(&sql);
            (client, result)
        });
        let waits = "select count(*) from pg_stat_activity
                      where wait_event_type = 'Lock' and query like 'pg_rowsync: repair (repairing)%'
                        and datname = current_database()";
        await_until(SOON, "the repair waits", || {
            query(&mut fixture.left.superuser(), waits) == ["1"]
        });
        canceler.cancel_query(postgres::NoTls).expect("a cancel");
        let (mut client, result) = call.join().expect("a call");
        let state = result.expect_err("a cancelled call").code().cloned();
        assert_eq!(state, Some(postgres::error::SqlState::QUERY_CANCELED));
        run(&mut holder, "rollback");
        let after = (table(&fixture.left, "t"), table(&fixture.right, "t"));
        assert_eq!(after, before, "{direction}");
        let option = format!(r#"{{"direction": "{direction}"}}"#);
        assert_eq!(repaired(&mut client, "t", &option).len(), 3);
        assert_eq!(table(&fixture.left, "t"), table(&fixture.right, "t"));
    }
}

/// A request to cancel may come at any moment of either command.
#[test]
fn a_cancel_at_any_moment_leaves_nothing_behind() {
    let fixture = one_way(
        "anymoment",
        "id int primary key, v text",
        r#"{"mode": "sync"}"#,
    );
    let fill = "set application_name = 'pg_rowsync';
                insert into t select n, md5(n::text) from generate_series(1, 30000) n";
    fixture.left.exec(fill);
    fixture.right.exec(fill);
    let mut client = fixture.left.client();
    let mut canceled = 0;
    for round in 0..60 {
        let here = table(&fixture.left, "t").len();
        fixture.right.exec(
            "update t set v = 'x' where id % 100 = 7; delete from t where id % 100 = 8;
             insert into t select 100000 + n, 'extra' from generate_series(1, 50) n on conflict do nothing",
        );
        let call = match round % 3 {
            0 => "select verify_sync('t', 'dst')",
            1 => "select repair_sync('t', 'dst')",
            _ => {
                r#"select repair_sync('t', 'dst', '{"direction": "from_server", "where": "id > 1000"}')"#
            }
        };
        run(
            &mut client,
            &format!("set statement_timeout = {}", 1 + round * 9),
        );
        let result = client.batch_execute(call);
        run(&mut client, "set statement_timeout = 0");
        match result {
            Ok(()) => {}
            Err(error) => {
                let state = error.code().map(|state| state.code().to_owned());
                assert_eq!(state.as_deref(), Some("57014"), "{call}: {error}");
                canceled += 1;
                assert_eq!(table(&fixture.left, "t").len(), here, "{call}");
            }
        }
        run(&mut client, "select repair_sync('t', 'dst')");
        assert_eq!(
            query(&mut client, "select verify_sync('t', 'dst')"),
            [""; 0],
            "{call}"
        );
    }
    println!("{canceled} were cancelled");
    assert!(canceled > 10, "{canceled} were cancelled");
    assert_eq!(queued(&fixture), 0);
    let busy = format!(
        "select count(*) from pg_stat_activity where usename = '{}' and state <> 'idle'",
        fixture.right.user
    );
    await_until(SOON, "the server's sessions to be idle", || {
        query(&mut fixture.right.superuser(), &busy) == ["0"]
    });
}

/// No change names one of several rows of one key there.
#[test]
fn several_rows_of_one_key_there_are_left() {
    let fixture = linked("severalrows");
    fixture
        .left
        .exec("create table t (id int primary key, v text)");
    fixture.right.exec("create table t (id int, v text)");
    crate::support::common::attach(&fixture, "t", r#"{"on_conflict": "error"}"#);
    fixture.left.exec("insert into t values (1, 'a'), (3, 'c')");
    fixture
        .right
        .exec("insert into t values (3, 'c'), (3, 'd'), (50, 'x'), (50, 'y')");
    let mut client = fixture.left.client();
    let extra = |id: i32| format!(r#"extra|{{"id": {id}}}|left"#);
    let there = table(&fixture.right, "t");
    for direction in ["to_server", "from_server"] {
        let options = format!(r#"{{"direction": "{direction}"}}"#);
        let mut expected = vec![extra(3), extra(3), extra(50), extra(50)];
        // What differs has the same key as what is extra.
        fixture
            .left
            .exec("set application_name = 'pg_rowsync'; update t set v = 'other' where id = 1");
        fixture.right.exec("insert into t values (1, 'z')");
        expected.insert(0, r#"differs|{"id": 1}|left"#.to_owned());
        expected.insert(1, extra(1));
        assert_eq!(
            repaired(&mut client, "t", &options),
            expected,
            "{direction}"
        );
        fixture.right.exec("delete from t where v = 'z'");
        assert_eq!(table(&fixture.right, "t"), there, "{direction}");
        assert_eq!(table(&fixture.left, "t"), ["1|other", "3|c"], "{direction}");
        assert_eq!(queued(&fixture), 0, "{direction}");
    }
    // One of a key is named by it.
    fixture.right.exec("delete from t where v in ('d', 'y')");
    assert_eq!(
        repaired(&mut client, "t", "{}"),
        [
            r#"differs|{"id": 1}|write there"#,
            r#"extra|{"id": 3}|left"#,
            r#"extra|{"id": 50}|delete there"#
        ]
    );
    assert_eq!(queued(&fixture), 0);
    assert_eq!(table(&fixture.right, "t"), ["1|other", "3|c", "3|c"]);
}

#[test]
fn many_rows_are_repaired_in_portions_each_of_which_is_committed() {
    let fixture = one_way("portions", "id int primary key, v text", "{}");
    fixture
        .left
        .exec("insert into t select n, 'v' from generate_series(1, 2500) n");
    // By whom each row there was written last.
    fixture.right.exec(
        "delete from t where id % 5 = 0;
         create table seen (id int, xid xid8);
         create function f() returns trigger language plpgsql set search_path from current as $$ begin
           insert into seen values (new.id, pg_current_xact_id()); return null; end $$;
         create trigger s after insert on t for each row execute function f()",
    );
    let book = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../doc/verify.md"))
        .expect("the chapter");
    let (_, block) = book.split_once("DO $$").expect("its loop");
    let (block, _) = block.split_once("$$;").expect("its end");
    let call = format!("do $${block}$$")
        .replace("orders", "t")
        .replace("'report'", "'dst'")
        .replace("10000", "100");
    run(&mut fixture.left.client(), &call);
    assert!(table(&fixture.left, "t") == table(&fixture.right, "t"));
    let portions = "select count(*), count(distinct xid::text), max(n)
                      from (select *, count(*) over (partition by xid::text) as n from seen) s";
    assert_eq!(query(&mut fixture.right.client(), portions), ["500|5|100"]);
}

#[test]
fn a_repair_that_is_rolled_back_has_done_nothing() {
    let fixture = one_way("undone", "id int primary key, v text", "{}");
    apart(&fixture);
    let mut client = fixture.left.client();
    run(
        &mut client,
        "begin; select repair_sync('t', 'dst'); rollback",
    );
    assert_eq!(table(&fixture.right, "t"), ["2|B", "3|c", "9|z"]);
    run(
        &mut client,
        "begin; savepoint s; select repair_sync('t', 'dst'); rollback to s; commit",
    );
    assert_eq!(table(&fixture.right, "t"), ["2|B", "3|c", "9|z"]);
}

#[test]
fn under_newest_the_row_with_the_larger_version_stays_on_both_sides() {
    let fixture = linked("newest");
    mirror(
        &fixture,
        "t",
        "id int primary key, v text, ver int",
        r#"{"on_conflict": "newest", "version_column": "ver"}"#,
    );
    fixture
        .left
        .exec("insert into t values (1, 'a', 1), (2, 'b', 1), (3, 'c', 1), (4, 'd', 5)");
    fixture.right.exec(
        "update t set v = 'B', ver = 2 where id = 2; update t set v = 'C', ver = 0 where id = 3;
         delete from t where id = 1; insert into t values (9, 'z', 1)",
    );
    // It is remembered here that this one was deleted later.
    fixture.left.exec("delete from t where id = 4");
    fixture.right.exec("insert into t values (4, 'd', 5)");
    let mut client = fixture.left.client();
    let seen = repaired(&mut client, "t", "{}");
    assert_eq!(
        seen,
        [
            r#"differs|{"id": 2}|write here"#,
            r#"differs|{"id": 3}|write there"#,
            r#"extra|{"id": 4}|delete there"#,
            r#"extra|{"id": 9}|write here"#,
            r#"missing|{"id": 1}|write there"#,
        ]
    );
    both_have(&fixture, "t", &["1|a|1", "2|B|2", "3|c|1", "9|z|1"]);
    refused(
        &mut client,
        r#"select repair_sync('t', 'dst', '{"direction": "up"}')"#,
        "22023",
    );
}

#[test]
fn identity_columns_renamed_columns_and_deferrable_keys_are_repaired() {
    let fixture = linked("shapes");
    fixture.left.exec(
        "create table t (id int generated always as identity primary key deferrable, v text,
           n int generated always as (id * 2) stored)",
    );
    fixture
        .right
        .exec("create table u (id int primary key deferrable, w text)");
    let schema = &fixture.right.user;
    fixture.left.exec(&format!(
        r#"select attach_sync('t', 'dst', '{schema}.u', '{{"rename": {{"v": "w"}}}}')"#
    ));
    fixture
        .left
        .exec("insert into t (v) select 'v' || n from generate_series(1, 300) n");
    let spoil = "delete from u where id % 7 = 0; update u set w = 'x' where id % 5 = 0;
                 insert into u select n, 'extra' from generate_series(301, 320) n";
    fixture.right.exec(spoil);
    let mut client = fixture.left.client();
    assert_eq!(repaired(&mut client, "t", "{}").len(), 42 + 52 + 20);
    let look = "select md5(string_agg(id || ' ' || w, ',' order by id)), count(*) from u";
    let there = crate::support::common::rows(&fixture.right, look);
    assert_eq!(
        there,
        crate::support::common::rows(&fixture.left, &look.replace('w', "v").replace(" u", " t"))
    );
    fixture.right.exec(spoil);
    assert_eq!(
        repaired(&mut client, "t", r#"{"direction": "from_server"}"#).len(),
        42 + 52 + 20
    );
    assert_eq!(
        query(&mut client, "select verify_sync('t', 'dst')"),
        [""; 0]
    );
    assert_eq!(query(&mut client, "select count(*) from t"), ["278"]);
}

#[test]
fn parents_come_first_and_children_go_first() {
    let fixture = linked("families");
    mirror(
        &fixture,
        "p",
        "id int primary key, up int references p",
        "{}",
    );
    mirror(
        &fixture,
        "c",
        "id int primary key, p int not null references p",
        "{}",
    );
    fixture
        .left
        .exec("insert into p values (1, 1), (3, 2), (2, 1); insert into c values (1, 1), (2, 3)");
    fixture.right.exec(
        "truncate p cascade; insert into p values (8, 8), (9, 8); insert into c values (7, 9)",
    );
    let mut client = fixture.left.client();
    for call in [
        r#"select repair_sync('p', 'dst', '{"delete_extra": false}')"#,
        r#"select repair_sync('c', 'dst', '{"delete_extra": false}')"#,
        "select repair_sync('c', 'dst')",
        "select repair_sync('p', 'dst')",
    ] {
        run(&mut client, call);
    }
    assert_eq!(queued(&fixture), 0);
    both_have(&fixture, "p", &["1|1", "2|1", "3|2"]);
    both_have(&fixture, "c", &["1|1", "2|3"]);
    // The same where the server is right. What refers to rows of its own table is not put in order.
    fixture.left.exec("update p set up = id");
    both_have(&fixture, "p", &["1|1", "2|2", "3|3"]);
    fixture.right.exec(
        "truncate p cascade; insert into p values (8, 8), (9, 8); insert into c values (7, 9)",
    );
    for call in [
        r#"select repair_sync('p', 'dst', '{"direction": "from_server", "delete_extra": false}')"#,
        r#"select repair_sync('c', 'dst', '{"direction": "from_server", "delete_extra": false}')"#,
        r#"select repair_sync('c', 'dst', '{"direction": "from_server"}')"#,
        r#"select repair_sync('p', 'dst', '{"direction": "from_server"}')"#,
    ] {
        run(&mut client, call);
    }
    assert_eq!(queued(&fixture), 0);
    both_have(&fixture, "p", &["8|8", "9|8"]);
    both_have(&fixture, "c", &["7|9"]);
}

#[test]
fn who_may_not_write_the_table_may_not_repair_it() {
    let fixture = one_way("denied", "id int primary key, v text", "{}");
    apart(&fixture);
    let role = Role::create(&fixture.left, "reader", "");
    fixture.left.exec(&format!(
        "grant select, insert, update on t to {}",
        role.name
    ));
    let mut client = role.client();
    refused(&mut client, "select repair_sync('t', 'dst')", "42501");
    fixture
        .left
        .exec(&format!("grant delete on t to {}", role.name));
    run(&mut client, "select repair_sync('t', 'dst')");
    both_have(&fixture, "t", &["1|a", "2|b", "3|c"]);
}

#[test]
fn rows_that_are_written_meanwhile_are_never_set_back() {
    let fixture = one_way("meanwhile", "id int primary key, v int", "{}");
    fixture
        .left
        .exec("insert into t select n, 0 from generate_series(1, 400) n");
    let stop = Flag::default();
    std::thread::scope(|scope| {
        let _end = stop.set_at_end();
        for who in 0..4 {
            let fixture = &fixture;
            let stop = &stop;
            scope.spawn(move || {
                let mut client = fixture.left.client();
                let mut rng = Rng::of_seed(who);
                while !stop.is_set() {
                    let id = 1 + rng.roll(400);
                    let sql = match rng.roll(4) {
                        0 => format!("delete from t where id = {id}"),
                        1 => format!("insert into t values ({id}, 1) on conflict (id) do nothing"),
                        _ => format!("update t set v = v + 1 where id = {id}"),
                    };
                    run(&mut client, &sql);
                }
            });
        }
        let mut client = fixture.left.client();
        for round in 0..4 {
            // Someone spoils the target, and the repair runs beside the writers.
            fixture.right.exec(&format!(
                "delete from t where id % 40 = {round};
                 insert into t select n, -1 from generate_series(1000, 1005) n on conflict do nothing"
            ));
            // Two that lock each other's rows, one here and one there, are told so; it is tried again.
            while let Err(error) = client.simple_query("select repair_sync('t', 'dst')") {
                let state = error.code().map(|state| state.code().to_owned());
                assert_eq!(state.as_deref(), Some("40P01"), "{error}");
            }
        }
        stop.set();
    });
    await_until(SOON, "the queue", || {
        let _: bool = fixture.left.query_one("select deal_sync_err_rec(1000)");
        queued(&fixture) == 0
    });
    let mut client = fixture.left.client();
    run(&mut client, "select repair_sync('t', 'dst')");
    assert_eq!(table(&fixture.left, "t"), table(&fixture.right, "t"));
    assert_eq!(
        query(&mut client, "select verify_sync('t', 'dst')"),
        [""; 0]
    );
}

/// A row there whose values the types here cannot read is dealt with for itself.
#[test]
fn rows_there_that_cannot_be_read_here_are_no_failure_of_all_others() {
    // Columns here and there, rows of both, and what only the server has: the key that cannot be read here, a
    // value that cannot, and one that is only missing.
    for (here, there, both, strange) in [
        (
            "k int primary key, v int",
            "k text primary key, v text",
            "(1, 1), (2, 2), (3, 3)",
            "('abc', 7), ('8', 'x'), ('9', 9)",
        ),
        (
            "k smallint primary key, v varchar(3)",
            "k int primary key, v text",
            "(1, 'a'), (2, 'b'), (3, 'c')",
            "(70000, 'a'), (8, 'abcd'), (9, 'z')",
        ),
        (
            "k int, l uuid, v date, primary key (k, l)",
            "k int, l text, v text, primary key (k, l)",
            "(1, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '2024-01-01'),
             (2, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '2024-01-01')",
            "(1, 'none', '2024-01-01'), (8, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '31.31.31'),
             (9, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '2024-01-02')",
        ),
    ] {
        let fixture = linked("unread");
        fixture.left.exec(&format!("create table t ({here})"));
        fixture.right.exec(&format!("create table t ({there})"));
        crate::support::common::attach(&fixture, "t", "{}");
        fixture.left.exec(&format!("insert into t values {both}"));
        let known = table(&fixture.right, "t");
        let apart = format!(
            "insert into t values {strange}; update t set v = case when k::text = '2' then null else v end"
        );
        fixture.right.exec(&apart);
        let mut client = fixture.left.client();
        for dry in [", \"dry_run\": true", ""] {
            let options = format!(r#"{{"direction": "from_server"{dry}}}"#);
            let done = repaired(&mut client, "t", &options);
            let left = done.iter().filter(|row| row.ends_with("|left")).count();
            let written = done.iter().filter(|row| row.ends_with("|write here"));
            assert_eq!((done.len(), left, written.count()), (4, 2, 2), "{done:?}");
        }
        let changed = rows_of(
            &fixture,
            "select k, coalesce(v::text, '~') from t where k in (2, 9)",
        );
        assert_eq!(changed.len(), 2, "{changed:?}");
        assert!(changed[0] == "2|~", "{changed:?}");
        // What cannot be read here is not here.
        let again = repaired(&mut client, "t", "{}");
        assert_eq!(again.len(), 2, "{again:?}");
        assert!(
            again.iter().all(|row| row.ends_with("|delete there")),
            "{again:?}"
        );
        assert_eq!(queued(&fixture), 0);
        assert_eq!(table(&fixture.right, "t").len(), known.len() + 1);
        assert_eq!(
            query(&mut client, "select verify_sync('t', 'dst')"),
            [""; 0]
        );
    }
}

fn rows_of(fixture: &Fixture, sql: &str) -> Vec<String> {
    query(&mut fixture.left.client(), &format!("{sql} order by 1"))
}

/// Under `newest` versions and keys of the server are read here to be compared.
#[test]
fn versions_there_that_cannot_be_read_here_are_left() {
    let fixture = linked("unreadnew");
    fixture
        .left
        .exec("create table t (k int primary key, v text, ver int)");
    fixture
        .right
        .exec("create table t (k bigint primary key, v text, ver bigint)");
    crate::support::common::attach(
        &fixture,
        "t",
        r#"{"on_conflict": "newest", "version_column": "ver"}"#,
    );
    fixture
        .left
        .exec("insert into t values (1, 'a', 1), (2, 'b', 1), (3, 'c', 1)");
    fixture.right.exec(
        "update t set ver = 5000000000 where k = 1; update t set v = 'B', ver = 2 where k = 2;
         insert into t values (5000000000, 'x', 1), (8, 'y', 5000000000), (9, 'z', 1)",
    );
    let done = repaired(&mut fixture.left.client(), "t", "{}");
    assert_eq!(
        done,
        [
            r#"differs|{"k": 1}|left"#,
            r#"differs|{"k": 2}|write here"#,
            r#"extra|{"k": 8}|left"#,
            r#"extra|{"k": 9}|write here"#,
            r#"extra|{"k": 5000000000}|left"#,
        ]
    );
    assert_eq!(
        rows_of(&fixture, "select * from t"),
        ["1|a|1", "2|B|2", "3|c|1", "9|z|1"]
    );
}

#[test]
fn random_differences_are_found_exactly_and_none_is_left_by_a_repair() {
    // Columns, key, and the key of row `n`; the last ones have no order that can be relied on.
    let kinds = [
        ("k int", "k", "n"),
        ("k int, l text collate \"C\"", "k, l", "n % 10, 'l' || n"),
        ("k text", "k", "'k ' || n"),
        ("k jsonb", "k", "jsonb_build_array(n)"),
    ];
    for seed in 0..4u64 {
        let mut rng = Rng::of_seed(100 + seed);
        let (columns, key, value) = kinds[seed as usize % kinds.len()];
        let fixture = linked("random");
        mirror(
            &fixture,
            "t",
            &format!("{columns}, n int, v text, primary key ({key})"),
            "{}",
        );
        let rows = rng.roll(12_000);
        let fill = format!(
            "insert into t select {value}, n, nullif(repeat('v', n % 50), '') from generate_series(1, {rows}) n"
        );
        fixture
            .left
            .exec(&format!("set application_name = 'pg_rowsync'; {fill}"));
        fixture.right.exec(&fill);
        // Each row once at the most.
        let every = 2 + rng.roll(200);
        let mut expected = Vec::new();
        let mut there = String::new();
        let mut here = String::new();
        for n in (1..=rows).filter(|n| n % every == 0) {
            match rng.roll(4) {
                0 => {
                    there.push_str(&format!("delete from t where n = {n};"));
                    expected.push(format!("missing|{n}"));
                }
                1 => {
                    here.push_str(&format!("delete from t where n = {n};"));
                    expected.push(format!("extra|{n}"));
                }
                2 => {
                    there.push_str(&format!("update t set v = v || ' ' where n = {n};"));
                    // NULL stays NULL.
                    if n % 50 != 0 {
                        expected.push(format!("differs|{n}"));
                    }
                }
                _ => {
                    here.push_str(&format!("update t set v = 'x' where n = {n};"));
                    expected.push(format!("differs|{n}"));
                }
            }
        }
        let index = "create index on t (n)";
        fixture.left.exec(&format!(
            "{index}; set application_name = 'pg_rowsync'; {here}"
        ));
        fixture.right.exec(&format!("{index}; {there}"));
        let mut client = fixture.left.client();
        let verify = r#"select difference || '|' || (coalesce(local_row, remote_row) ->> 'n')
                          from verify_sync('t', 'dst', '{"max_differences": 100000}')"#;
        let mut seen = query(&mut client, verify);
        seen.sort();
        expected.sort();
        assert_eq!(seen, expected, "seed {seed}, {columns}, {rows} rows");
        let direction = rng.of(&["to_server", "from_server"]);
        run(
            &mut client,
            &format!(r#"select repair_sync('t', 'dst', '{{"direction": "{direction}"}}')"#),
        );
        assert_eq!(queued(&fixture), 0);
        assert_eq!(
            query(&mut client, verify),
            [""; 0],
            "seed {seed}, {direction}"
        );
        assert_eq!(table(&fixture.left, "t"), table(&fixture.right, "t"));
    }
}
