//! Large values that an UPDATE leaves alone are read only when they are needed, and by then the
//! transaction may have done anything to the table.

use postgres::Client;
use rowsync_harness::Fixture;
use rowsync_harness::side::Side;

use crate::support::common::{deal, one_way, outage, queued, recover, rows, run};

const QUEUE: &str = r#"{"mode": "queue"}"#;
/// Characters of [`fill`]'s values.
const LENGTH: usize = 102_400;

/// Hard to compress, stored out of line.
fn fill(client: &mut Client, rows: u32) {
    run(
        client,
        &format!(
            "insert into t select i, 'a', (select string_agg(md5(n::text || i), '')
               from generate_series(1, 3200) n) from generate_series(1, {rows}) i"
        ),
    );
}

/// A table whose rows the other side does not have any more, so that what arrives is whole.
fn stripped(label: &str, count: u32, options: &str) -> (Fixture, Client) {
    let fixture = one_way(label, "id int primary key, v text, big text", options);
    let mut client = fixture.left.client();
    fill(&mut client, count);
    assert!(deal(&fixture, "1000"));
    fixture.right.exec("truncate t");
    (fixture, client)
}

fn sums(side: &Side) -> Vec<String> {
    rows(
        side,
        "select id, v, length(big), md5(big) from t order by id",
    )
}

#[test]
fn what_the_transaction_does_to_the_table_takes_no_value_away() {
    for what in [
        "truncate t",
        "alter table t alter id type bigint",
        "alter table t alter big type bytea using 'gone'::bytea",
        "alter table t set unlogged",
        "cluster t using t_pkey",
        "do 'begin execute ''truncate t''; end'",
        "update t set v = 'x', big = 'short'; delete from t",
        "savepoint a; truncate t; release a",
        "savepoint a; update t set v = 'c'; truncate t; rollback to a",
    ] {
        let (fixture, mut client) = stripped("toastdone", 2, QUEUE);
        run(
            &mut client,
            &format!("begin; update t set v = 'b'; {what}; commit"),
        );
        let found = "select row from sync_queue, json_to_record(change) as c(row json) \
             where op = 'UPDATE' and row->>1 = 'b'";
        let values = rows(
            &fixture.left,
            &format!("select length(row->>2) from ({found}) f"),
        );
        assert_eq!(values, [LENGTH.to_string(), LENGTH.to_string()], "{what}");
    }
}

#[test]
fn a_savepoint_cuts_back_changes_whose_values_were_read_in_it() {
    for buffer in ["64kB", "16MB"] {
        let (fixture, mut client) = stripped("toastcut", 6, QUEUE);
        run(
            &mut client,
            &format!("set pg_rowsync.buffer_size = '{buffer}'"),
        );
        run(
            &mut client,
            "begin; update t set v = 'b' where id = 1;
             savepoint a; update t set v = 'c' where id = 2;
             savepoint b; update t set v = 'd' where id = 3; alter table t add w int;
             update t set v = 'e' where id = 4; rollback to b;
             update t set v = 'f' where id = 5; release a;
             savepoint c; cluster t using t_pkey; update t set v = 'g' where id = 6; rollback to c;
             commit",
        );
        assert!(deal(&fixture, "100"));
        let sent = ["1", "2", "5"];
        let left: Vec<_> = sums(&fixture.left)
            .into_iter()
            .filter(|r| sent.contains(&&r[..1]))
            .collect();
        assert_eq!(left, sums(&fixture.right), "{buffer}");
        assert!(left[2].starts_with(&format!("5|f|{LENGTH}")), "{}", left[2]);
    }
}

#[test]
fn a_prepared_transaction_keeps_the_values() {
    let (fixture, mut client) = stripped("toastprep", 2, "{}");
    run(
        &mut client,
        "begin; update t set v = 'b'; prepare transaction 'p'",
    );
    run(&mut client, "commit prepared 'p'");
    run(&mut client, "alter table t alter id type bigint");
    assert!(deal(&fixture, "100"));
    assert_eq!(sums(&fixture.left), sums(&fixture.right));
}

#[test]
fn values_that_could_not_be_delivered_are_kept() {
    let (fixture, mut client) = stripped("toastdown", 3, "{}");
    outage(&fixture.right);
    run(
        &mut client,
        "begin; update t set v = 'b'; update t set v = 'c' where id = 2; commit",
    );
    assert_eq!(queued(&fixture), 4);
    run(&mut client, "update t set big = 'short' where id = 3");
    recover(&fixture.right);
    assert!(deal(&fixture, "100"));
    assert_eq!(sums(&fixture.left), sums(&fixture.right));
}

#[test]
fn large_values_of_all_types_are_read_late() {
    let columns = "id int primary key, v text, a text, b varchar(70000), c char(70000), d bytea, \
         e json, f jsonb, g xml, h name_of_it, i text[], j int[]";
    let fixture = crate::support::common::linked("toasttypes");
    for side in [&fixture.left, &fixture.right] {
        side.exec("create domain name_of_it as text check (length(value) > 5)");
    }
    crate::support::common::mirror(&fixture, "t", columns, QUEUE);
    let mut client = fixture.left.client();
    let hash = "select string_agg(md5(n::text), '') h from generate_series(1, 2000) n";
    run(
        &mut client,
        &format!(
            "insert into t select 1, 'a', h, h, h, decode(h, 'hex'), to_json(h), to_jsonb(h),
               ('<x>' || h || '</x>')::xml, h, array[h, null, h],
               (select array_agg(hashint4(n)) from generate_series(1, 20000) n) from ({hash}) x"
        ),
    );
    assert!(deal(&fixture, "10"));
    fixture.right.exec("truncate t");
    run(
        &mut client,
        "begin; set bytea_output = 'escape'; set xmloption = document; update t set v = 'b'; commit",
    );
    // Nor does it matter what the session's settings are when the values are read.
    run(
        &mut client,
        "begin; update t set v = 'c'; set local bytea_output = 'escape';
         truncate t; set local search_path = pg_catalog; commit",
    );
    let wide =
        "select count(*) from sync_queue where op = 'UPDATE' and length(change::text) > 800000";
    assert_eq!(rows(&fixture.left, wide), ["2"]);
    let before = rows(
        &fixture.left,
        "select id from sync_queue where op = 'TRUNCATE'",
    );
    fixture
        .left
        .exec_superuser(&format!("delete from sync_queue where id = {}", before[0]));
    assert!(deal(&fixture, "10"));
    let found = "select v, md5(a), md5(b), md5(c), md5(d), md5(e::text), md5(f::text), md5(g::text), \
         md5(h), md5(i::text), md5(j::text) from t";
    let expected = format!(
        "select 'c', md5(h), md5(h), md5(h::char(70000)), md5(decode(h, 'hex')),
           md5(to_json(h)::text), md5(to_jsonb(h)::text), md5('<x>' || h || '</x>'), md5(h),
           md5(array[h, null, h]::text),
           md5((select array_agg(hashint4(n)) from generate_series(1, 20000) n)::text)
         from ({hash}) x"
    );
    assert_eq!(rows(&fixture.right, found), rows(&fixture.left, &expected));
}

/// A large value that is another one for every row.
const BIG: &str = "(select string_agg(md5(n::text || 'new'), '') from generate_series(1, 3200) n)";

#[test]
fn what_the_transaction_does_takes_no_new_value_away() {
    for what in [
        "truncate t",
        "alter table t alter id type bigint",
        "cluster t using t_pkey",
        "update t set big = 'short'; delete from t",
        "savepoint a; delete from t; rollback to a",
        "savepoint a; truncate t; release a",
        "savepoint a; truncate t; rollback to a",
    ] {
        let fixture = one_way("toastnew", "id int primary key, v text, big text", QUEUE);
        let mut client = fixture.left.client();
        run(
            &mut client,
            &format!(
                "begin; insert into t values (1, 'b', {BIG}), (2, 'a', 'short');
                 update t set v = 'b', big = {BIG} where id = 2; {what}; commit"
            ),
        );
        let found = "select op, md5(row->>2) from sync_queue, json_to_record(change) as c(row json) \
             where row->>1 = 'b' and row->>2 <> 'short' order by id";
        let expected = rows(&fixture.left, &format!("select md5({BIG})"))[0].clone();
        let values = rows(&fixture.left, found);
        assert_eq!(
            values,
            ["INSERT", "UPDATE"].map(|op| format!("{op}|{expected}")),
            "{what}"
        );
    }
}

#[test]
fn new_values_of_a_savepoint_go_with_it() {
    for mode in ["sync", "queue"] {
        let options = format!(r#"{{"mode": "{mode}"}}"#);
        let fixture = one_way(
            "toastback",
            "id int primary key, v text, big text",
            &options,
        );
        let mut client = fixture.left.client();
        run(
            &mut client,
            &format!(
                "begin; insert into t values (1, 'a', {BIG});
                 savepoint a; insert into t values (2, 'b', {BIG}); update t set big = big || 'x';
                 rollback to a; insert into t values (2, 'c', {BIG} || 'y');
                 savepoint b; update t set big = big || id; alter table t set (fillfactor = 90); release b;
                 insert into t values (3, 'd', {BIG}); commit"
            ),
        );
        assert!(deal(&fixture, "100"));
        assert_eq!(sums(&fixture.left).len(), 3);
        assert_eq!(sums(&fixture.left), sums(&fixture.right), "{mode}");
    }
}

#[test]
fn new_values_are_not_kept_twice() {
    let fixture = one_way(
        "toastonce",
        "id int primary key, v text, big text",
        r#"{"mode": "sync"}"#,
    );
    let mut client = fixture.left.client();
    let spilled = |client: &mut Client| -> i64 {
        let flushed = "select pg_stat_force_next_flush()";
        client.batch_execute(flushed).expect("statistics");
        let sql = "select temp_bytes from pg_stat_database where datname = current_database()";
        client.query_one(sql, &[]).expect("a row").get(0)
    };
    run(&mut client, "set pg_rowsync.buffer_size = '64kB'");
    let before = spilled(&mut client);
    fill(&mut client, 10);
    run(
        &mut client,
        &format!("update t set big = {BIG} || id where id < 5"),
    );
    assert_eq!(spilled(&mut client), before);
    assert_eq!(sums(&fixture.left), sums(&fixture.right));
    // Values of the row itself are, and that shows.
    run(
        &mut client,
        "insert into t select i, repeat(md5(i::text), 20), '' from generate_series(11, 500) i",
    );
    assert!(spilled(&mut client) > before);
}
