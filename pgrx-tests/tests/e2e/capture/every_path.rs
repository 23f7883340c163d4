//! Every way that a change can take, in one database: types, large values, key changes, statements of many rows,
//! savepoints, each mode, the queue, drains, failed records. A test like any other, and what to run where every
//! database is dear: under valgrind, `cargo test-all --assertions --valgrind every_path`.

use postgres::Client;
use rowsync_harness::fixture::{Fixture, clusters, fails};
use rowsync_harness::side::{Side, describe};

const COLUMNS: &str = "id int primary key, n numeric, f float8, b bytea, j jsonb, x text, a int[],
    at timestamptz, u uuid, yes boolean, c char(5), i interval, r int4range, g text default 'g'";

/// Rows of every kind, with numbers from one on.
fn some_rows(table: &str, first: i32, count: i32) -> String {
    format!(
        "insert into {table} select g, g / 7.0, sqrt(g), decode(md5(g::text), 'hex'),
           jsonb_build_object('k', g), repeat(chr(97 + g % 26), g % 50), array[g, null, -g],
           timestamptz '2024-02-29 12:00+00' + g * interval '1 hour', md5(g::text)::uuid, g % 2 = 0,
           'c', make_interval(secs => g), int4range(g, g + 5)
         from generate_series({first}, {}) g",
        first + count - 1
    )
}

fn run(client: &mut Client, sql: &str) {
    let done = client.batch_execute(sql);
    done.unwrap_or_else(|error| panic!("{}: {sql}", describe(&error)));
}

/// Sides of which only the left one has the extension.
fn sides() -> Fixture {
    let (left, right) = clusters();
    let left = Side::create(left, "every_path").expect("a database");
    let right = Side::create_without_extension(right, "every_path").expect("a database");
    Fixture { left, right }
}

#[test]
fn a_change_arrives_on_every_path() {
    let fixture = sides();
    let left = &fixture.left;
    let right = &fixture.right;
    fixture.link(left, right, "dst", &[]);
    let tables = [
        ("s", r#"{"mode": "sync"}"#),
        ("d", r#"{"mode": "async"}"#),
        ("q", r#"{"mode": "queue"}"#),
        ("p", r#"{"mode": "atomic"}"#),
        (
            "o",
            r#"{"mode": "async", "on_conflict": "newest", "version_column": "at"}"#,
        ),
    ];
    let mut client = left.client();
    let mut there = right.client();
    // Who may see the queue.
    let mut admin = left.superuser();
    for (table, options) in tables {
        for side in [&mut client, &mut there] {
            run(side, &format!("create table {table} ({COLUMNS})"));
        }
        let target = format!("{}.{table}", right.user);
        let attach = format!("select attach_sync('{table}', 'dst', '{target}', '{options}')");
        run(&mut client, &attach);
    }
    for (table, _) in tables {
        writes(&mut client, table);
        drain(&mut admin);
    }
    equal(&fixture, &tables.map(|(table, _)| table));

    // To nobody: into the queue, and out of it.
    run(&mut client, "alter server dst options (set port '1')");
    writes(&mut client, "d");
    run(&mut client, &some_rows("o", 5000, 50));
    fails(client.batch_execute(&some_rows("s", 5000, 1)));
    run(
        &mut admin,
        "table sync_queue; table sync_status; table sync_tables",
    );
    let port = right.cluster.port();
    run(
        &mut client,
        &format!("alter server dst options (set port '{port}')"),
    );
    drain(&mut admin);
    equal(&fixture, &["s", "d", "o"]);

    // A record that is refused there, and what waits for it.
    run(&mut there, "alter table q add check (n < 100000)");
    run(
        &mut client,
        "insert into q (id, n) values (7001, 1), (7002, 200000), (7003, 3);
         update q set n = 5 where id = 7001; update q set n = 6 where id = 7002",
    );
    deal(&mut admin);
    run(&mut admin, "table sync_err_rec; table sync_status");
    run(&mut there, "alter table q drop constraint q_n_check");
    run(
        &mut admin,
        "select retry_sync_err_rec(id) from sync_err_rec",
    );
    drain(&mut admin);
    equal(&fixture, &["q"]);

    // A change that meets what it does not expect.
    run(
        &mut there,
        "delete from d where id = 20; insert into d (id) values (7004)",
    );
    run(
        &mut client,
        "update d set n = 1 where id = 20; insert into d (id, n) values (7004, 4)",
    );
    drain(&mut admin);
    equal(&fixture, &["d"]);
    run(&mut client, "select * from check_sync('d')");
    run(&mut client, "truncate s, d, q, o");
    drain(&mut admin);
    equal(&fixture, &["s", "d", "q", "o"]);
    run(&mut client, "select detach_sync('d', 'dst')");
}

/// What sessions do to a table.
fn writes(client: &mut Client, table: &str) {
    let many = some_rows(table, 1, 1000);
    let all = [
        format!("truncate {table}"),
        many,
        format!("update {table} set n = n + 1, g = null where id % 3 = 0"),
        format!("update {table} set id = id + 10000 where id <= 50"),
        format!(
            "update {table} set x = (select string_agg(md5(g::text || id), '')
               from generate_series(1, 400) g), b = decode(repeat('00', 20000), 'hex')
             where id between 60 and 70"
        ),
        // The large values stay where they are; then their rows get other keys.
        format!("update {table} set n = 0 where id between 60 and 66"),
        format!("update {table} set id = id + 20000 where id between 64 and 68"),
        format!(
            "begin; delete from {table} where id between 70 and 80; savepoint a;
             update {table} set n = -1; rollback to a; savepoint b;
             delete from {table} where id between 81 and 90; release b;
             insert into {table} (id, x) values (6000, 'e''\\\"') on conflict do nothing; commit"
        ),
        format!("begin; delete from {table}; rollback"),
        format!("delete from {table} where id between 900 and 950"),
        format!("update {table} set yes = not yes where id between 100 and 120"),
    ];
    for sql in all {
        run(client, &sql);
    }
}

fn deal(client: &mut Client) -> bool {
    let done = client.query_one("select deal_sync_err_rec(300)", &[]);
    done.expect("a drain").get(0)
}

fn drain(client: &mut Client) {
    let left = "select count(*) from sync_err_rec";
    for _ in 0..100 {
        if client
            .query_one(left, &[])
            .expect("a count")
            .get::<_, i64>(0)
            == 0
        {
            return;
        }
        deal(client);
    }
    panic!("the queue does not end");
}

/// By the columns that both sides have.
fn equal(fixture: &Fixture, tables: &[&str]) {
    for table in tables {
        let sql = format!(
            "select md5(string_agg((id, n, f, b, j, x, a, at at time zone 'UTC', u, yes, c, i, r)::text,
               ',' order by id)), count(*) from {0}.{table}",
            fixture.left.user
        );
        let look = |side: &Side| -> (Option<String>, i64) {
            let row = side.superuser().query_one(&sql, &[]).expect("rows");
            (row.get(0), row.get(1))
        };
        assert_eq!(look(&fixture.left), look(&fixture.right), "{table}");
    }
}
