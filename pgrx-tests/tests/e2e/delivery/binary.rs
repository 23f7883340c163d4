//! Many rows travel in binary form where a type allows it. What arrives must be what the text says.

use postgres::Client;
use rowsync_harness::fixture::Fixture;

use crate::support::common::{linked, one_way, queued, rows, run, same};

const COLUMNS: &str =
    "id int primary key, small smallint, big bigint, at timestamp, atz timestamptz, v text";

/// As many rows as are sent so, with every value at the edge of what its type can say, and NULLs.
const ROWS: &str = "insert into t select g,
      (array[-32768, 32767, 0, null, g])[1 + g % 5],
      (array[-9223372036854775808, 9223372036854775807, 0, null, g])[1 + g % 5],
      (array['-infinity', 'infinity', '4713-11-24 00:00:00 BC', '0044-03-15 12:00:00 BC',
             '294276-12-31 23:59:59.999999'])[1 + g % 5]::timestamp,
      (array['-infinity', 'infinity', '4713-11-24 00:00:00+00 BC', null,
             '294276-12-31 23:59:59.999999+00'])[1 + g % 5]::timestamptz,
      'odd'
    from generate_series(1, 1000) g;
  insert into t select g, g % 100, g * 1000000007::bigint,
      timestamp '0001-01-01' + g * interval '3 days 04:05:06.789012',
      timestamptz '1850-01-01 00:00:00+00' + g * interval '61 hours 1.5 seconds', 'plain'
    from generate_series(1001, 3000) g;
  insert into t select g, null, null, null, null, null from generate_series(3001, 3700) g";

/// A client whose next deliveries trust the remote.
fn trusting(fixture: &Fixture) -> Client {
    let mut client = fixture.left.client();
    run(&mut client, "insert into t (id) values (-1)");
    client
}

#[test]
fn every_value_arrives_whatever_the_time_zone() {
    let fixture = one_way("binary", COLUMNS, "{}");
    let mut client = trusting(&fixture);
    // Offsets of hours, of half an hour, and before 1935 of seconds.
    for zone in [
        "UTC",
        "America/St_Johns",
        "Asia/Kathmandu",
        "Pacific/Kiritimati",
    ] {
        run(
            &mut client,
            &format!("set timezone = '{zone}'; delete from t where id > 0; {ROWS}"),
        );
        assert_eq!(same(&fixture, "t").len(), 3701, "{zone}");
        run(
            &mut client,
            "update t set small = -small - 1, at = at + interval '1 us' where id > 1000",
        );
        run(
            &mut client,
            "update t set atz = atz + interval '1 month', v = 'new' where id > 1000",
        );
        run(
            &mut client,
            "update t set id = id + 10000 where id between 1 and 900",
        );
        run(&mut client, "delete from t where id between 1500 and 2700");
        same(&fixture, "t");
    }
    assert_eq!(queued(&fixture), 0);
}

#[test]
fn settings_of_the_writer_make_no_difference() {
    let fixture = one_way("settings", COLUMNS, "{}");
    let mut client = trusting(&fixture);
    run(
        &mut client,
        "set datestyle = 'German, DMY'; set intervalstyle = 'iso_8601'",
    );
    run(&mut client, ROWS);
    same(&fixture, "t");
    assert_eq!(queued(&fixture), 0);
}

/// Tables `t` and `first`, changed in this way on the right side.
fn twice(fixture: &Fixture, columns: &str, change: &str) {
    for table in ["t", "first"] {
        fixture
            .left
            .exec(&format!("create table {table} ({columns})"));
        // Before its target is there: some of these keys are coarser, and refused.
        crate::support::common::attach(fixture, table, "{}");
        fixture.right.exec(&format!(
            "create table {table} ({columns}); alter table {table} {change}"
        ));
    }
}

/// What has come to `t` is what has come to `first`, and nothing is missing.
#[track_caller]
fn assert_like_first(fixture: &Fixture, change: &str) {
    assert_eq!(queued(fixture), 0, "{change}");
    let differ = "select count(*) from ((select t::text from t except select f::text from first f)
          union all (select f::text from first f except select t::text from t)) d";
    assert_eq!(rows(&fixture.right, differ), ["0"], "{change}");
    let count = "select count(*), count(v) from t";
    assert_eq!(
        rows(&fixture.right, count),
        rows(&fixture.left, count),
        "{change}"
    );
}

/// Where the remote's columns are of other types, it is as if texts had been sent: the same rows by a
/// client that is not trusting yet.
#[test]
fn other_types_get_what_the_text_says() {
    for (number, change) in [
        "alter id type bigint, alter small type int, alter big type numeric",
        "alter at type timestamptz, alter atz type timestamp",
        "alter at type text, alter atz type text, alter small type text, alter big type text",
        "alter at type date, alter atz type date",
        "alter small type float4, alter big type float8",
        "alter id type text, alter v type varchar(10)",
    ]
    .into_iter()
    .enumerate()
    {
        let fixture = linked(&format!("other_{number}"));
        twice(&fixture, COLUMNS, change);
        // What no type but the column's own can say is left out.
        let usual = ROWS.split(';').nth(1).expect("the second statement");
        let mut client = trusting(&fixture);
        run(&mut client, usual);
        run(
            &mut client,
            "update t set v = 'new', at = at + interval '1 day', small = 7",
        );
        run(&mut client, "delete from t where id % 7 = 0");
        // One transaction by a session that has proven nothing: the text.
        let usual = usual.replace("into t ", "into first ");
        fixture.left.exec(&format!(
            "begin; insert into first (id) values (-1); {usual};
             update first set v = 'new', at = at + interval '1 day', small = 7;
             delete from first where id % 7 = 0; commit"
        ));
        assert_like_first(&fixture, change);
    }
}

/// Texts that mean something to arrays, to other types, or to comparisons, in keys and beside them.
const TEXTS: &str =
    "insert into t select (array['', ' ', 'NULL', '{}', '\"', '\\', 'ä€🦀', e'a\nb'])[1 + g % 8]
      || g || (array['', ' ', '  '])[1 + g % 3],
      (array[null, '', '{\"a\", NULL}', '\\x41', 'false', repeat('é', 300)])[1 + g % 6],
      (array['x', 'y  ', null])[1 + g % 3]
    from generate_series(1, 900) g";

#[test]
fn texts_are_what_they_would_be_as_text() {
    for (number, change) in [
        "alter v type varchar(400), alter w type text",
        "alter k type varchar(40) collate \"C\"",
        "alter v type char(400), alter w type char(9)",
        "alter k type name",
        "alter w type \"char\"",
        "alter k type label, alter v type label",
    ]
    .into_iter()
    .enumerate()
    {
        let fixture = linked(&format!("texts_{number}"));
        let columns = "k varchar(15) primary key, v text, w varchar(8)";
        fixture
            .right
            .exec("create domain label as text check (value <> 'none')");
        twice(&fixture, columns, change);
        let mut client = fixture.left.client();
        run(&mut client, "insert into t (k) values ('warm')");
        let changes = [
            TEXTS,
            "update t set v = v || '\"', w = 'new' where k <> 'warm'",
            "update t set k = k || '+' where k like '%1%'",
            "delete from t where k like '%2%'",
        ];
        changes.iter().for_each(|change| run(&mut client, change));
        // One transaction by a session that has proven nothing: the text.
        let as_text = changes
            .map(|change| change.replacen(" t ", " first ", 1))
            .join(";");
        fixture.left.exec(&format!(
            "begin; insert into first (k) values ('warm'); {as_text}; commit"
        ));
        assert_like_first(&fixture, change);
    }
}

/// Few rows that are large travel so as well.
#[test]
fn large_texts_arrive_where_types_are_the_same_and_where_not() {
    for change in ["alter v type text", "alter v type json using v::json"] {
        let fixture = one_way("large_texts", "id int primary key, v text", "{}");
        fixture.right.exec(&format!("alter table t {change}"));
        let mut client = fixture.left.client();
        run(&mut client, "insert into t values (-1, '1')");
        let large = "select g, to_json(repeat(md5(g::text), 3000))::text from generate_series";
        run(&mut client, &format!("insert into t {large}(1, 40) g"));
        run(
            &mut client,
            "update t set v = v where id > 20; update t set v = '2' where id = 1",
        );
        same(&fixture, "t");
        assert_eq!(queued(&fixture), 0, "{change}");
    }
}

/// A type of the remote's own would read the bytes in its own way.
#[test]
fn domains_and_own_types_are_never_sent_bytes_of_another() {
    let fixture = one_way(
        "domains",
        "id int primary key, big bigint, at timestamp",
        "{}",
    );
    fixture.right.exec(
        "create domain number as float8;
         create domain moment as timestamp; create domain key as int;
         alter table t alter big type number, alter at type moment, alter id type key",
    );
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (-1, 1, now())");
    for first in [1, 2001, 4001] {
        run(
            &mut client,
            &format!(
                "insert into t select g, g, timestamp '2024-01-01' + g * interval '1 s'
                   from generate_series({first}, {first} + 1999) g"
            ),
        );
        run(&mut client, "update t set big = big + 1");
    }
    same(&fixture, "t");
    assert_eq!(queued(&fixture), 0);
}
