//! `verify_sync`: what differs between a table and its target is found, exactly, and nothing else.

use postgres::Client;
use rowsync_harness::fixture::Fixture;
use rowsync_harness::flag::Flag;
use rowsync_harness::proxy::{Proxy, Strike};
use rowsync_harness::{IGNORE_OPTIONS, PoolMode, Pooler, Side, await_until};

use crate::support::common::{
    Role, attach, has_icu, link_with, linked, mirror, one_way, query, refused, run, warnings,
};
use crate::support::preloaded::{EAGER, WORKING, preloaded};

/// `difference|key|columns` of what a client of the left is told.
fn reported(client: &mut Client, table: &str, options: &str) -> Vec<String> {
    query(
        client,
        &format!(
            "select difference, key, columns from verify_sync('{table}', 'dst', '{options}')
              order by difference, key"
        ),
    )
}

/// As `reported`, with the default options, for the owner.
fn found(fixture: &Fixture, table: &str) -> Vec<String> {
    reported(&mut fixture.left.client(), table, "{}")
}

/// Every type with two values that are nearly the same.
const SUBTLE: [(&str, &str, &str); 22] = [
    ("text", "'a'", "'a '"),
    ("text", "''", "null"),
    ("varchar(5)", "'a'", "'A'"),
    ("char(3)", "'a'", "'b'"),
    ("numeric", "1.0", "1.00"),
    ("numeric(20,10)", "0.0000000001", "0"),
    ("float8", "0", "'-0'"),
    ("float8", "'nan'", "'inf'"),
    ("float8", "0.1", "0.10000000000000002"),
    ("float4", "1", "1.0000001"),
    ("json", r#"'{"a":1,"b":2}'"#, r#"'{"b":2,"a":1}'"#),
    ("jsonb", r#"'{"a":1}'"#, r#"'{"a":1.0}'"#),
    (
        "timestamptz",
        "'2024-01-01 00:00:00.000001+00'",
        "'2024-01-01 00:00:00+00'",
    ),
    ("timestamp", "'infinity'", "'-infinity'"),
    ("interval", "'1 month'", "'30 days'"),
    ("int[]", "'{1,2}'", "'[0:1]={1,2}'"),
    ("text[]", "'{NULL}'", r#"'{"NULL"}'"#),
    ("bytea", r"'\x00'", r"'\x0000'"),
    ("bit(3)", "'101'", "'100'"),
    ("inet", "'10.0.0.1'", "'10.0.0.1/24'"),
    ("int4range", "'[1,3)'", "'[1,4)'"),
    ("bool", "true", "null"),
];

#[test]
fn the_slightest_difference_of_every_type_is_found_and_named_by_its_column() {
    let fixture = linked("subtle");
    let columns: Vec<String> = SUBTLE
        .iter()
        .enumerate()
        .map(|(at, (kind, _, _))| format!("c{at} {kind}"))
        .collect();
    mirror(
        &fixture,
        "t",
        &format!("id int primary key, {}", columns.join(", ")),
        "{}",
    );
    let values: Vec<&str> = SUBTLE.iter().map(|(_, one, _)| *one).collect();
    fixture.left.exec(&format!(
        "insert into t select n, {} from generate_series(0, 25) n",
        values.join(", ")
    ));
    assert_eq!(found(&fixture, "t"), [""; 0]);
    for (at, (_, _, other)) in SUBTLE.iter().enumerate() {
        fixture
            .right
            .exec(&format!("update t set c{at} = {other} where id = {at}"));
    }
    let mut client = fixture.left.client();
    // A session's own settings change nothing of it.
    run(
        &mut client,
        "set datestyle = 'german'; set timezone = 'Asia/Tokyo'; set extra_float_digits = -3;
         set bytea_output = 'escape'; set intervalstyle = 'sql_standard'",
    );
    let mut expected: Vec<String> = (0..SUBTLE.len())
        .map(|at| format!("differs|{{\"id\": {at}}}|{{c{at}}}"))
        .collect();
    let mut seen = reported(&mut client, "t", "{}");
    expected.sort();
    seen.sort();
    assert_eq!(seen, expected);
}

#[test]
fn missing_and_extra_rows_are_told_with_their_values() {
    let fixture = one_way("values", "id int primary key, v text, n numeric", "{}");
    fixture
        .left
        .exec("insert into t values (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)");
    fixture
        .right
        .exec("delete from t where id = 1; insert into t values (9, 'z', 9.50)");
    fixture
        .right
        .exec("update t set v = 'B', n = 2.0 where id = 2");
    let rows = query(
        &mut fixture.left.client(),
        "select * from verify_sync('t', 'dst') order by difference",
    );
    assert_eq!(
        rows,
        [
            r#"differs|{"id": 2}|{v,n}|{"n": 2, "v": "b", "id": 2}|{"n": 2.0, "v": "B", "id": 2}"#,
            r#"extra|{"id": 9}|{}|~|{"n": 9.50, "v": "z", "id": 9}"#,
            r#"missing|{"id": 1}|{}|{"n": 1, "v": "a", "id": 1}|~"#,
        ]
    );
    let rows = query(
        &mut fixture.left.client(),
        r#"select difference, local_row, remote_row from verify_sync('t', 'dst', '{"values": false}')"#,
    );
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row.ends_with("|~|~")), "{rows:?}");
}

#[test]
fn what_many_differences_cost_is_bounded_by_their_rows() {
    let fixture = linked("bounded");
    let columns = "k int, l text collate \"C\", v text, primary key (k, l)";
    mirror(&fixture, "t", columns, "{}");
    let fill = "insert into t select n, 'l', md5(n::text) from generate_series(1, 40000) n";
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("set application_name = 'pg_rowsync'; {fill}"));
        side.exec_superuser(&format!("analyze {}.t", side.user));
    }
    // At the beginning one row in a range, then every tenth, in the end nearly all.
    fixture.right.exec(
        "update t set v = v || '!' where k = 100 or k between 10001 and 30000 and k % 10 = 0;
         delete from t where k > 38000; insert into t select 50000 + n, 'x', '' from generate_series(1, 500) n",
    );
    let mut client = fixture.left.client();
    let count = r#"select difference, count(*), min((key ->> 'k')::int), max((key ->> 'k')::int)
                     from verify_sync('t', 'dst', '{"max_differences": 1000000}')
                    group by difference order by difference"#;
    assert_eq!(
        query(&mut client, count),
        [
            "differs|2001|100|30000",
            "extra|500|50001|50500",
            "missing|2000|38001|40000"
        ]
    );
    let exchanged = "select bytes_done / 4501 from sync_progress where command = 'verify'";
    let exchanged = query(&mut fixture.left.superuser(), exchanged);
    let bytes: u64 = exchanged[0].parse().expect("a number");
    assert!(bytes < 600, "{bytes} bytes for each");
}

/// Keys of every kind: their columns, and the key of row `n`.
const KEYS: [(&str, &str, &str); 12] = [
    ("k int", "k", "n"),
    ("k bigint, l smallint", "k, l", "n / 7, n % 7"),
    ("k text collate \"C\"", "k", "'k' || n"),
    (
        "k text collate \"C\", l int",
        "k, l",
        "'k ''\\' || n % 3, n",
    ),
    ("k varchar(20)", "k", "'k' || n"),
    ("k uuid", "k", "md5(n::text)::uuid"),
    ("k numeric", "k", "n / 10.0"),
    (
        "k timestamptz",
        "k",
        "timestamptz '2024-01-01' + n * interval '1 s'",
    ),
    ("k bytea", "k", "int4send(n)"),
    ("k char(12)", "k", "'k' || n"),
    ("k jsonb", "k", "jsonb_build_object('k', n)"),
    ("k int[]", "k", "array[n % 10, n]"),
];

#[test]
fn rows_are_found_by_keys_of_every_kind() {
    let fixture = linked("kinds");
    for (at, (columns, key, value)) in KEYS.iter().enumerate() {
        let table = format!("t{at}");
        mirror(
            &fixture,
            &table,
            &format!("{columns}, v int, primary key ({key})"),
            "{}",
        );
        let fill = format!("insert into {table} select {value}, n from generate_series(1, 6000) n");
        for side in [&fixture.left, &fixture.right] {
            side.exec(&format!("set application_name = 'pg_rowsync'; {fill}"));
        }
        assert_eq!(found(&fixture, &table), [""; 0], "{columns}");
        fixture.right.exec(&format!(
            "delete from {table} where v in (1, 3000);
             update {table} set v = -v where v in (2, 4096, 6000)"
        ));
        fixture.left.exec(&format!(
            "set application_name = 'pg_rowsync'; delete from {table} where v in (17, 5000)"
        ));
        let seen = query(
            &mut fixture.left.client(),
            &format!(
                "select difference, coalesce(local_row, remote_row) ->> 'v'
                   from verify_sync('{table}', 'dst') order by 1, 2"
            ),
        );
        let expected = [
            "differs|2",
            "differs|4096",
            "differs|6000",
            "extra|17",
            "extra|5000",
            "missing|1",
            "missing|3000",
        ];
        assert_eq!(seen, expected, "{columns}");
    }
}

/// Rows are listed, summed up and looked up in answers whose bytes are bounded, however long keys are.
#[test]
fn keys_may_be_long() {
    let fixture = linked("longkeys");
    for (table, key, value) in [
        // Parts are buckets.
        (
            "b",
            "jsonb",
            "to_jsonb(array[n::text, (select string_agg(md5(n::text || m), '') from generate_series(1, 25) m)])",
        ),
        // Parts are ranges.
        (
            "r",
            "text collate \"C\"",
            "n || (select string_agg(md5(n::text || m), '') from generate_series(1, 70) m)",
        ),
    ] {
        mirror(
            &fixture,
            table,
            &format!("k {key} primary key, n int, v text"),
            "{}",
        );
        let fill =
            format!("insert into {table} select {value}, n, 'v' from generate_series(1, 12000) n");
        for side in [&fixture.left, &fixture.right] {
            side.exec(&format!("set application_name = 'pg_rowsync'; {fill}"));
        }
        fixture
            .right
            .exec(&format!("update {table} set v = 'w' where n % 40 = 0"));
        let options = r#"{"values": false}"#;
        let count = format!(
            "select difference, columns, count(*) from verify_sync('{table}', 'dst', '{options}') group by 1, 2"
        );
        assert_eq!(
            query(&mut fixture.left.client(), &count),
            ["differs|{v}|300"]
        );
        let repair =
            format!("select action, count(*) from repair_sync('{table}', 'dst') group by 1");
        assert_eq!(
            query(&mut fixture.left.client(), &repair),
            ["write there|300"]
        );
        assert_eq!(found(&fixture, table), [""; 0]);
    }
}

/// One row may have more than an answer, once it is written as JSON.
#[test]
fn rows_that_are_too_long_for_an_answer_are_told_without_their_values() {
    let fixture = one_way("longrows", "k text collate \"C\" primary key, v text", "{}");
    // Keys that compress well.
    let fill = "insert into t select repeat('k', 150000) || n, 'v' from generate_series(1, 200) n";
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("set application_name = 'pg_rowsync'; {fill}"));
    }
    fixture.left.exec(
        "insert into t select 'long' || n, repeat(E'\\x01\"', 600000) from generate_series(1, 3) n",
    );
    fixture.right.exec(
        "update t set v = 'w' where k like '%5' or k = 'long1'; delete from t where k = 'long2'",
    );
    let mut client = fixture.left.client();
    let reported = "select difference, length(key ->> 'k') > 150000, local_row is null, count(*)
                  from verify_sync('t', 'dst') group by 1, 2, 3 order by 1, 2, 3";
    assert_eq!(
        query(&mut client, reported),
        ["differs|f|t|1", "differs|t|f|20", "missing|f|t|1"]
    );
    let repair = "select action, count(*) from repair_sync('t', 'dst') group by 1";
    assert_eq!(query(&mut client, repair), ["write there|22"]);
    assert_eq!(found(&fixture, "t"), [""; 0]);
}

/// A target without a unique key may have several rows of one key: each is told once, however many there are.
#[test]
fn several_rows_of_one_key_are_told_each_once() {
    let fixture = linked("several");
    fixture
        .left
        .exec("create table t (id int primary key, v text)");
    fixture
        .right
        .exec("create table t (id int, v text); create index on t (id)");
    attach(&fixture, "t", r#"{"on_conflict": "error"}"#);
    fixture
        .left
        .exec("insert into t select n, 'v' from generate_series(1, 500) n");
    fixture.right.exec(
        "insert into t select n, 'x' || m from generate_series(1, 500) n, generate_series(1, 5) m
          where n % 2 = 0",
    );
    let reported = r#"select difference, count(*), count(distinct remote_row)
                    from verify_sync('t', 'dst', '{"max_differences": 100000}') group by 1"#;
    assert_eq!(
        query(&mut fixture.left.client(), reported),
        ["extra|1250|1250"]
    );
}

/// With `"values": false` nothing of a row but its key is asked for, told, logged or shown.
#[test]
fn without_values_nothing_of_a_row_but_its_key_is_seen() {
    let fixture = linked("keysonly");
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.left.exec(&format!(
        "alter server dst options (set port '{}')",
        proxy.port()
    ));
    mirror(&fixture, "t", "id int primary key, v text", "{}");
    fixture
        .left
        .exec("insert into t select n, repeat('secret', 2000) || n from generate_series(1, 60) n");
    fixture.right.exec(
        "update t set v = repeat('hidden', 2000) || id where id <= 20; delete from t where id = 30;
         update t set id = 90 where id = 40",
    );
    let (mut client, notices) = fixture.left.client_with_notices();
    run(&mut client, "set client_min_messages = debug1");
    let before = proxy.bytes(rowsync_harness::proxy::Direction::ToClient);
    let rows = query(
        &mut client,
        r#"select d::text from verify_sync('t', 'dst', '{"values": false}') d"#,
    );
    let bytes = proxy.bytes(rowsync_harness::proxy::Direction::ToClient) - before;
    assert_eq!(rows.len(), 23, "{rows:?}");
    // One row has 12 kB.
    assert!(bytes < 12_000, "{bytes} bytes");
    let progress = query(
        &mut fixture.left.superuser(),
        "select p::text from sync_progress p where command = 'verify'",
    );
    let said: Vec<String> = (notices.lock().expect("notices").iter())
        .map(|one| format!("{one:?}"))
        .collect();
    for text in rows.iter().chain(&progress).chain(&said) {
        assert!(
            !text.contains("secret") && !text.contains("hidden"),
            "{text}"
        );
    }
}

/// Where the target has a unique index of columns that may be NULL, rows there may have no key.
#[test]
fn rows_without_a_key_there_are_extra() {
    let fixture = linked("ghosts");
    for (name, key, there) in [
        ("one", "(id)", "(null, 5, 'ghost')"),
        ("two", "(id, b)", "(7, null, 'ghost')"),
    ] {
        fixture.left.exec(&format!(
            "create table {name} (id int, b int, v text, primary key {key});
             insert into {name} select g, g, 'x' from generate_series(1, 20000) g"
        ));
        fixture.right.exec(&format!(
            "create table {name} (id int, b int, v text, unique {key});
             insert into {name} select g, g, 'x' from generate_series(1, 20000) g"
        ));
        attach(&fixture, name, "{}");
        assert_eq!(found(&fixture, name), [""; 0]);
        fixture
            .right
            .exec(&format!("insert into {name} values {there}"));
    }
    assert_eq!(found(&fixture, "one"), [r#"extra|{"id": null}|{}"#]);
    assert_eq!(found(&fixture, "two"), [r#"extra|{"b": null, "id": 7}|{}"#]);
    // The text of a key that is empty is another one.
    for (side, key) in [(&fixture.left, "primary key"), (&fixture.right, "unique")] {
        side.exec(&format!(
            "create table named (id text {key}, v text); insert into named values ('', 'x')"
        ));
    }
    attach(&fixture, "named", "{}");
    assert_eq!(found(&fixture, "named"), [""; 0]);
    fixture
        .right
        .exec("update named set id = null, v = 'ghost'");
    assert_eq!(
        found(&fixture, "named"),
        [r#"extra|{"id": null}|{}"#, r#"missing|{"id": ""}|{}"#]
    );
    // No change can name them.
    for direction in ["to_server", "from_server"] {
        for name in ["one", "two"] {
            let repair = format!(
                r#"select difference, action from repair_sync('{name}', 'dst',
                     '{{"direction": "{direction}"}}')"#
            );
            let done = query(&mut fixture.left.client(), &repair);
            assert_eq!(done, ["extra|left"], "{name}, {direction}");
        }
    }
}

#[test]
fn what_a_delivery_would_write_there_is_what_is_compared() {
    let fixture = linked("written");
    fixture.left.exec(
        "create type mood as enum ('good', 'bad');
         create table t (id int primary key, a int, b numeric, c timestamptz, d text, e mood,
           secret text, g int generated always as (id * 2) stored)",
    );
    fixture.right.exec(
        "create table u (id bigint primary key, x numeric(10,2), b numeric(10,1), c timestamp,
           d varchar(4), e text, own text default 'own', g int)",
    );
    let schema = &fixture.right.user;
    fixture.left.exec(&format!(
        r#"select attach_sync('t', 'dst', '{schema}.u',
             '{{"exclude": ["secret"], "rename": {{"a": "x"}}}}')"#
    ));
    fixture.left.exec(
        "insert into t values (1, 5, 1.25, '2024-01-01 12:00+02', 'ab', 'good', 's'),
                              (2, null, null, null, null, null, null),
                              (3, 7, 1, 'infinity', 'ab    ', 'bad', 's')",
    );
    fixture
        .right
        .exec("update u set own = 'other', g = 4 where id = 1");
    assert_eq!(found(&fixture, "t"), [""; 0]);
    fixture
        .right
        .exec("update u set x = 5.01 where id = 1; update u set c = 'epoch' where id = 2");
    assert_eq!(
        found(&fixture, "t"),
        [r#"differs|{"id": 1}|{a}"#, r#"differs|{"id": 2}|{c}"#]
    );
}

#[test]
fn partitions_and_tables_without_a_unique_key_there_are_compared() {
    let fixture = linked("parts");
    fixture.left.exec(
        "create table t (id int primary key, v text) partition by range (id);
         create table t1 partition of t for values from (0) to (10);
         create table t2 partition of t default",
    );
    fixture.right.exec("create table t (id int, v text)");
    attach(&fixture, "t", r#"{"on_conflict": "error"}"#);
    fixture
        .left
        .exec("insert into t select n, 'v' from generate_series(1, 20) n");
    assert_eq!(found(&fixture, "t"), [""; 0]);
    fixture.right.exec(
        "insert into t values (3, 'v'), (3, 'v'); update t set v = 'w' where id = 12;
         delete from t where id = 5",
    );
    assert_eq!(
        found(&fixture, "t"),
        [
            r#"differs|{"id": 12}|{v}"#,
            r#"extra|{"id": 3}|{}"#,
            r#"extra|{"id": 3}|{}"#,
            r#"missing|{"id": 5}|{}"#
        ]
    );
}

#[test]
fn rows_that_a_filter_leaves_out_do_not_count_on_either_side() {
    let fixture = linked("filter");
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table t (id int primary key, region text, v int)");
    }
    let schema = &fixture.right.user;
    for (event, row) in [("insert", "new"), ("update", "new"), ("delete", "old")] {
        fixture.left.exec(&format!(
            "create trigger s_{event} after {event} on t for each row
               when ({row}.region = 'eu' and {row}.v > 0)
               execute function sync_dml('dst', '{schema}', 't')"
        ));
    }
    fixture
        .left
        .exec("insert into t values (1, 'eu', 1), (2, 'us', 1), (3, 'eu', -1), (4, 'eu', 4)");
    fixture.right.exec("insert into t values (10, 'us', 1)");
    assert_eq!(found(&fixture, "t"), [""; 0]);
    fixture
        .right
        .exec("insert into t values (11, 'eu', 1); update t set v = 5 where id = 4");
    let expected = [r#"differs|{"id": 4}|{v}"#, r#"extra|{"id": 11}|{}"#];
    assert_eq!(found(&fixture, "t"), expected);
    // A condition of the caller's own takes the place of the trigger's.
    let mut client = fixture.left.client();
    let told_where = reported(&mut client, "t", r#"{"where": "v = 4 or v = 5"}"#);
    assert_eq!(told_where, [r#"differs|{"id": 4}|{v}"#]);
    refused(
        &mut client,
        r#"select verify_sync('t', 'dst', '{"where": "v ="}')"#,
        "42601",
    );
}

#[test]
fn who_may_read_the_table_may_compare_it_and_conditions_are_its_owners() {
    let fixture = one_way("rights", "id int primary key, v text", "{}");
    fixture.left.exec("insert into t values (1, 'a')");
    fixture.right.exec("update t set v = 'b'");
    let role = Role::create(&fixture.left, "reader", "");
    let mut client = role.client();
    let plain = "select verify_sync('t', 'dst')";
    refused(&mut client, plain, "42501");
    fixture
        .left
        .exec(&format!("grant select (id) on t to {}", role.name));
    refused(&mut client, plain, "42501");
    fixture
        .left
        .exec(&format!("grant select on t to {}", role.name));
    assert_eq!(
        reported(&mut client, "t", "{}"),
        [r#"differs|{"id": 1}|{v}"#]
    );
    refused(
        &mut client,
        r#"select verify_sync('t', 'dst', '{"where": "true"}')"#,
        "42501",
    );
    fixture
        .left
        .exec("alter table t enable row level security; create policy p on t using (true)");
    refused(&mut client, plain, "42501");
    assert_eq!(found(&fixture, "t"), [r#"differs|{"id": 1}|{v}"#]);
    // It needs no more there than to read.
    let there = &fixture.right.user;
    fixture.right.exec(&format!(
        "revoke all on t from {there}; grant select on t to {there}"
    ));
    assert_eq!(found(&fixture, "t"), [r#"differs|{"id": 1}|{v}"#]);
    fixture.right.exec(&format!("revoke all on t from {there}"));
    refused(&mut fixture.left.client(), plain, "42501");
}

#[test]
fn what_cannot_be_compared_is_refused_with_its_reason() {
    let fixture = one_way("reasons", "id int primary key, v text", "{}");
    let mut client = fixture.left.client();
    run(&mut client, "create table u (id int primary key)");
    refused(&mut client, "select verify_sync('u', 'dst')", "42704");
    refused(&mut client, "select verify_sync('t', 'nowhere')", "42704");
    refused(
        &mut client,
        r#"select verify_sync('t', 'dst', '{"wher": 1}')"#,
        "22023",
    );
    refused(
        &mut client,
        r#"select verify_sync('t', 'dst', '{"max_differences": 0}')"#,
        "22023",
    );
    fixture.right.exec("alter table t drop column v");
    refused(&mut client, "select verify_sync('t', 'dst')", "42703");
    fixture.right.exec("drop table t");
    refused(&mut client, "select verify_sync('t', 'dst')", "42P01");
}

#[test]
fn a_comparison_ends_with_as_many_differences_as_were_asked_for() {
    let fixture = one_way("limit", "id int primary key, v int", "{}");
    fixture
        .left
        .exec("insert into t select n, n from generate_series(1, 3000) n");
    fixture.right.exec("delete from t where id % 2 = 0");
    let (mut client, notices) = fixture.left.client_with_notices();
    let some = reported(&mut client, "t", r#"{"max_differences": 10}"#);
    assert_eq!(some.len(), 10);
    let said: Vec<String> = notices
        .lock()
        .expect("notices")
        .drain(..)
        .map(|one| one.message().to_owned())
        .collect();
    assert_eq!(said, ["comparison stopped at 10 differences"]);
    let all = reported(&mut client, "t", r#"{"max_differences": 100000}"#);
    assert_eq!(all.len(), 1500);
    assert!(notices.lock().expect("notices").is_empty());
}

#[test]
fn what_waits_in_the_queue_is_no_difference_and_what_was_failed_is_one() {
    let fixture = one_way(
        "waiting",
        "id int primary key, v int",
        r#"{"mode": "queue"}"#,
    );
    fixture
        .right
        .exec("alter table t add check (v < 100); insert into t values (7, 7)");
    fixture.left.exec("insert into t values (1, 1), (2, 200)");
    let (mut client, notices) = fixture.left.client_with_notices();
    assert_eq!(reported(&mut client, "t", "{}"), [r#"extra|{"id": 7}|{}"#]);
    let said: Vec<String> = notices
        .lock()
        .expect("notices")
        .drain(..)
        .map(|one| one.message().to_owned())
        .collect();
    assert_eq!(said, ["2 rows are left out: changes of them are under way"]);
    let _: bool = fixture.left.query_one("select deal_sync_err_rec(10)");
    let expected = [r#"extra|{"id": 7}|{}"#, r#"missing|{"id": 2}|{}"#];
    assert_eq!(reported(&mut client, "t", "{}"), expected);
    assert_eq!(warnings(&notices).len(), 0);
}

#[test]
fn eight_writers_make_no_false_report_and_hide_no_difference() {
    for mode in ["async", "queue", "sync", "atomic"] {
        let options = format!(r#"{{"mode": "{mode}"}}"#);
        let fixture = one_way("writers", "id int primary key, v int, w text", &options);
        if mode == "queue" {
            let _: bool = fixture.left.query_one("select start_sync_worker()");
        }
        fixture
            .left
            .exec("insert into t select n, 0, 'w' from generate_series(1, 2000) n");
        let drained = || crate::support::common::queued(&fixture) == 0;
        rowsync_harness::fixture::await_until(crate::support::one_way::SOON, "the queue", drained);
        fixture
            .right
            .exec("update t set w = 'x' where id = 2000; delete from t where id = 1999");
        let stop = Flag::default();
        std::thread::scope(|scope| {
            let _end = stop.set_at_end();
            for who in 0..8 {
                let fixture = &fixture;
                let stop = &stop;
                scope.spawn(move || {
                    let mut client = fixture.left.client();
                    let mut rng = rowsync_harness::rng::Rng::of_seed(who);
                    while !stop.is_set() {
                        let id = 1 + rng.roll(1900);
                        let sql = match rng.roll(4) {
                            0 => format!("delete from t where id = {id}"),
                            1 => format!(
                                "insert into t values ({id}, 1, 'n') on conflict (id) do nothing"
                            ),
                            _ => format!("update t set v = v + 1 where id = {id}"),
                        };
                        run(&mut client, &sql);
                        // Room for the worker on a small machine.
                        std::thread::sleep(std::time::Duration::from_millis(20));
                    }
                });
            }
            let mut client = fixture.left.client();
            let expected = [r#"differs|{"id": 2000}|{w}"#, r#"missing|{"id": 1999}|{}"#];
            let seen: Vec<Vec<String>> = (0..2).map(|_| reported(&mut client, "t", "{}")).collect();
            stop.set();
            for one in seen {
                assert_eq!(one, expected, "{mode}");
            }
        });
        if mode == "queue" {
            let _: bool = fixture.left.query_one("select stop_sync_worker()");
        }
    }
}

#[test]
fn a_comparison_goes_through_a_pooler() {
    for mode in [PoolMode::Transaction, PoolMode::Session] {
        let fixture = Fixture::new("verifypool");
        let pooler = Pooler::start(&[&fixture.right], mode, &[IGNORE_OPTIONS]).expect("a pooler");
        link_with(&fixture, "dst", pooler.port(), &fixture.right.password);
        mirror(&fixture, "t", "id int primary key, c timestamptz", "{}");
        fixture.right.exec_superuser(&format!(
            "alter role {} set timezone = 'Asia/Tokyo'; alter role {0} set statement_timeout = 1",
            fixture.right.user
        ));
        fixture
            .left
            .exec("insert into t select n, now() from generate_series(1, 3000) n");
        assert_eq!(found(&fixture, "t"), [""; 0]);
        fixture
            .left
            .exec("set application_name = 'pg_rowsync'; delete from t where id = 5");
        assert_eq!(found(&fixture, "t"), [r#"extra|{"id": 5}|{}"#]);
    }
}

#[test]
fn databases_of_other_encodings_and_collations_are_compared() {
    let fixture = linked("encoded");
    let left = Side {
        db: format!("{}_e", fixture.left.db),
        ..fixture.left.clone()
    };
    let db = &left.db;
    let user = &left.user;
    fixture.left.exec_superuser(&format!(
        "create database {db} template template0 encoding 'LATIN1' locale 'C' owner {user}"
    ));
    left.exec_superuser(&format!(
        "create schema authorization {user}; create extension pg_rowsync schema public;
         grant usage on foreign data wrapper pg_rowsync to {user}"
    ));
    fixture.link(&left, &fixture.right, "dst", &[]);
    for side in [&left, &fixture.right] {
        side.exec("create table t (k text primary key, v text)");
    }
    left.exec(&format!(
        "select attach_sync('t', 'dst', '{}.t')",
        fixture.right.user
    ));
    left.exec("insert into t select 'ö' || n || 'é', 'ÿ' from generate_series(1, 2000) n");
    let mut client = left.client();
    assert_eq!(reported(&mut client, "t", "{}"), [""; 0]);
    fixture
        .right
        .exec("update t set v = 'y' where k = 'ö7é'; insert into t values ('€', 'a')");
    // What this encoding lacks is told as it can be, and is no failure of all others.
    fixture
        .right
        .exec("update t set v = 'cost: €' where k = 'ö8é'");
    let rows = query(
        &mut client,
        "select difference, key, columns, remote_row ->> 'v' from verify_sync('t', 'dst') order by 1, 2",
    );
    let expected = [
        r#"differs|{"k": "ö7é"}|{v}|y"#,
        r#"differs|{"k": "ö8é"}|{v}|cost: ?"#,
        r#"extra|{"k": "?"}|{}|a"#,
    ];
    assert_eq!(rows, expected);
    let repair = |client: &mut Client, direction: &str| {
        let options = format!(r#"{{"direction": "{direction}"}}"#);
        let call = format!(
            "select difference, key, action from repair_sync('t', 'dst', '{options}') order by 1, 2"
        );
        query(client, &call)
    };
    assert_eq!(
        repair(&mut client, "from_server"),
        [
            r#"differs|{"k": "ö7é"}|write here"#,
            r#"differs|{"k": "ö8é"}|left"#,
            r#"extra|{"k": "?"}|left"#
        ]
    );
    assert_eq!(
        repair(&mut client, "to_server"),
        [
            r#"differs|{"k": "ö8é"}|write there"#,
            r#"extra|{"k": "?"}|left"#
        ]
    );
    assert_eq!(reported(&mut client, "t", "{}"), [r#"extra|{"k": "?"}|{}"#]);
    drop(client);
    fixture
        .left
        .exec_superuser(&format!("drop database {db} with (force)"));
}

/// Both sides are asked how they hash before that is relied on.
#[test]
fn sides_that_hash_otherwise_are_compared_by_md5() {
    let fixture = linked("hashes");
    // For this database, another function of its name.
    fixture.right.exec_superuser(
        "set allow_system_table_mods = on;
         alter function pg_catalog.hashtextextended(text, bigint) rename to own_hash;
         create function pg_catalog.hashtextextended(text, bigint) returns bigint language sql immutable
           as $$ select pg_catalog.own_hash($1, $2 + 1) $$;
         grant execute on function pg_catalog.hashtextextended(text, bigint) to public",
    );
    for (table, key) in [("r", "int"), ("b", "jsonb")] {
        mirror(
            &fixture,
            table,
            &format!("id {key} primary key, v text"),
            "{}",
        );
        fixture.left.exec(&format!(
            "insert into {table} select n::text::{key}, 'v' || n from generate_series(1, 3000) n"
        ));
        assert_eq!(found(&fixture, table), [""; 0]);
        fixture
            .right
            .exec(&format!("update {table} set v = 'x' where id = '77'"));
        assert_eq!(found(&fixture, table), [r#"differs|{"id": 77}|{v}"#]);
    }
}

/// Parts are ranges only where both sides sort alike.
#[test]
fn keys_that_sort_otherwise_there_are_compared() {
    let fixture = linked("sorted");
    if !has_icu(&fixture.left) {
        return;
    }
    let collations = ["\"C\"", "\"de-x-icu\"", "upper"];
    for side in [&fixture.left, &fixture.right] {
        side.exec("create collation upper (provider = icu, locale = 'und-u-kf-upper')");
    }
    for (at, here) in collations.iter().enumerate() {
        for there in collations.iter().filter(|there| *there != here) {
            let table = format!("t{at}{}", there.len());
            let columns = |collation: &str| {
                format!("create table {table} (k text collate {collation} primary key, n int)")
            };
            fixture.left.exec(&columns(here));
            fixture.right.exec(&columns(there));
            attach(&fixture, &table, "{}");
            fixture.left.exec(&format!(
                "insert into {table}
                   select (array['a', 'A', 'ä', 'Z', '-', 'ß', '_'])[1 + n % 7] || n, n from generate_series(1, 3000) n"
            ));
            assert_eq!(found(&fixture, &table), [""; 0], "{here} {there}");
            fixture.right.exec(&format!(
                "delete from {table} where n = 700; update {table} set n = -1 where n = 2999;
                 insert into {table} values ('Ä', 0)"
            ));
            let seen = query(
                &mut fixture.left.client(),
                &format!(
                    "select difference, coalesce(local_row, remote_row) ->> 'n'
                       from verify_sync('{table}', 'dst') order by 1"
                ),
            );
            let expected = ["differs|2999", "extra|0", "missing|700"];
            assert_eq!(seen, expected, "{here} {there}");
        }
    }
}

/// Committed here and prepared there: no difference, and the rest is compared.
#[test]
fn what_is_only_prepared_there_is_no_difference() {
    let fixture = linked("verify_prepared");
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "via", &[]);
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table t (id int primary key, v text)");
    }
    let atomic = format!(
        r#"select attach_sync('t', 'via', '{}.t', '{{"mode": "atomic"}}')"#,
        fixture.right.user
    );
    fixture.left.exec(&atomic);
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t values (1, 'a'), (2, 'a'), (3, 'a')",
    );
    let leave_prepared = |client: &mut Client, sql: &str| {
        proxy.strike("COMMIT PREPARED 'pg_rowsync:", Strike::LoseRequest);
        run(client, &format!("begin; {sql}; commit"));
        assert!(proxy.has_struck());
    };
    leave_prepared(
        &mut client,
        "update t set v = 'b' where id = 1; insert into t values (4, 'a')",
    );
    fixture.right.exec("update t set v = 'x' where id = 3");
    let compared = "select difference, key, columns from verify_sync('t', 'via')";
    assert_eq!(query(&mut client, compared), [r#"differs|{"id": 3}|{v}"#]);
    // Of what cannot be finished now, its own rows are left out.
    leave_prepared(
        &mut client,
        "delete from t where id = 2; update t set v = 'c' where id = 1",
    );
    drop(client);
    let other = Role::create(&fixture.right, "other", "");
    fixture
        .right
        .exec(&format!("grant select on t to {}", other.name));
    fixture.left.exec(&format!(
        "alter user mapping for current_user server via
           options (set user '{0}', set password '{0}')",
        other.name
    ));
    let (mut client, notices) = fixture.left.client_with_notices();
    assert_eq!(query(&mut client, compared), [r#"differs|{"id": 3}|{v}"#]);
    let said: Vec<String> = notices
        .lock()
        .expect("notices")
        .drain(..)
        .map(|one| one.message().to_owned())
        .collect();
    assert_eq!(said, ["2 rows are left out: changes of them are under way"]);
}

/// Rows that a copy has not brought yet are no difference, what it will not bring about is one.
#[test]
fn what_a_running_copy_brings_is_no_difference() {
    let fixture = preloaded("verifycopy", EAGER);
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", "id int primary key, v text", "{}");
    fixture.right.exec("insert into t values (0, 'extra')");
    fixture.left.exec(
        "set application_name = 'pg_rowsync'; insert into t select n, 'v' from generate_series(1, 50) n",
    );
    // Nothing can be written there.
    let mut holder = fixture.right.client();
    run(&mut holder, "begin; lock table t in exclusive mode");
    let copy = |fixture: &Fixture| {
        fixture
            .left
            .exec("select copy_sync('t', 'dst', existing => 'merge')");
    };
    copy(&fixture);
    let (mut client, notices) = fixture.left.client_with_notices();
    let pid: i32 = client
        .query_one("select pg_backend_pid()", &[])
        .expect("a pid")
        .get(0);
    std::thread::scope(|scope| {
        let comparing = scope.spawn(|| reported(&mut client, "t", "{}"));
        let rechecks = format!(
            "select count(*) from sync_progress where pid = {pid} and state = 'rechecking'"
        );
        await_until(WORKING, "the second look", || {
            comparing.is_finished() || fixture.left.query_one::<i64>(&rechecks) == 1
        });
        run(&mut holder, "commit");
        assert_eq!(
            comparing.join().expect("an answer"),
            [r#"extra|{"id": 0}|{}"#]
        );
    });
    assert!(notices.lock().expect("notices").is_empty());
    // One that goes no further is not waited for: what it is to bring is left out, and the rest is told.
    fixture.right.exec("delete from t where id > 40");
    run(&mut holder, "begin; lock table t in exclusive mode");
    copy(&fixture);
    assert_eq!(reported(&mut client, "t", "{}"), [r#"extra|{"id": 0}|{}"#]);
    let said: Vec<String> = notices
        .lock()
        .expect("notices")
        .drain(..)
        .map(|one| one.message().to_owned())
        .collect();
    assert_eq!(
        said,
        ["10 rows are left out: changes of them are under way"]
    );
}

/// A value that the target's type cannot hold is a difference of its row and no failure of all.
#[test]
fn rows_that_the_target_cannot_hold_are_told_and_the_rest_is_compared() {
    let fixture = linked("unheld");
    fixture.left.exec(
        "create table t (id int primary key, a int, b varchar(10), c numeric, d text, e date,
                         f char(6), g bigint);
         insert into t select n, n, 'b', 1.25, '7', '2024-01-01', 'f', n from generate_series(1, 2000) n;
         update t set a = 70000 where id = 2; update t set b = 'abcdef' where id = 3;
         update t set c = 123456 where id = 4; update t set d = 'x' where id = 5;
         update t set e = '500000-01-01' where id = 6; update t set f = 'abcdef' where id = 7;
         update t set g = 5000000000 where id = 8;
         insert into t values (70000, 1, 'b', 1.25, '7', '2024-01-01', 'f', 1)",
    );
    fixture.right.exec(
        "create table t (id smallint primary key, a smallint, b varchar(3), c numeric(4,1), d int, e timestamp,
                         f char(3), g int);
         insert into t select n, n, 'b', 1.3, 7, '2024-01-01', 'f', n from generate_series(1, 2000) n;
         update t set f = null where id = 7; update t set c = 9 where id = 10;
         insert into t values (3000)",
    );
    attach(&fixture, "t", "{}");
    let mut client = fixture.left.client();
    let expected = [
        r#"differs|{"id": 10}|{c}"#,
        r#"differs|{"id": 2}|{a}"#,
        r#"differs|{"id": 3}|{b}"#,
        r#"differs|{"id": 4}|{c}"#,
        r#"differs|{"id": 5}|{d}"#,
        r#"differs|{"id": 6}|{e}"#,
        r#"differs|{"id": 7}|{f}"#,
        r#"differs|{"id": 8}|{g}"#,
        r#"extra|{"id": 3000}|{}"#,
        r#"missing|{"id": 70000}|{}"#,
    ];
    let sorted = |mut rows: Vec<String>| {
        rows.sort();
        rows
    };
    assert_eq!(sorted(reported(&mut client, "t", "{}")), expected);
    // What cannot be written there is left, and the rest is repaired.
    let repaired = query(
        &mut client,
        "select key, action from repair_sync('t', 'dst')",
    );
    let left: Vec<String> = sorted(
        repaired
            .iter()
            .filter(|row| row.ends_with("|left"))
            .cloned()
            .collect(),
    );
    let unheld = [2, 3, 4, 5, 6, 70000, 7, 8].map(|id| format!(r#"{{"id": {id}}}|left"#));
    assert_eq!(left, unheld);
    assert_eq!(repaired.len(), expected.len());
    let queued = "select op, sqlstate, message from sync_err_rec";
    assert_eq!(crate::support::common::rows(&fixture.left, queued), [""; 0]);
    let still = sorted(reported(&mut client, "t", "{}"));
    assert_eq!(still.len(), unheld.len(), "{still:?}");
}
