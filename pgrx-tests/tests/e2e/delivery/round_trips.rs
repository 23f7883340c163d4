//! A transaction costs one round trip on a warm connection, whatever its rows and tables.

use std::ops::Range;
use std::time::{Duration, Instant};

use postgres::Client;
use rowsync_harness::fixture::{Fixture, clusters};
use rowsync_harness::proxy::Proxy;

use crate::support::common::mirror;

const DELAY: Duration = Duration::from_millis(50);

/// The shortest of a few runs: the machine's other work only ever adds.
fn shortest(client: &mut Client, sql: &str) -> Duration {
    (0..5)
        .map(|_| {
            let start = Instant::now();
            client
                .batch_execute(sql)
                .unwrap_or_else(|e| panic!("{e}: {sql}"));
            start.elapsed()
        })
        .min()
        .expect("runs")
}

/// Round trips of a statement: how much longer it takes over a longer way. Measured a few times where it is not
/// what was expected: what else the machine does comes between.
fn trips(proxy: &Proxy, client: &mut Client, sql: &str, expected: Range<f64>) -> f64 {
    let mut trips = f64::NAN;
    for _ in 0..4 {
        proxy.set_delay(Duration::ZERO);
        let near = shortest(client, sql);
        proxy.set_delay(DELAY);
        let far = shortest(client, sql);
        trips = far.saturating_sub(near).as_secs_f64() / (2 * DELAY).as_secs_f64();
        if expected.contains(&trips) {
            break;
        }
    }
    proxy.set_delay(Duration::ZERO);
    trips
}

/// One to prepare what was applied, one to commit it.
#[test]
fn a_transaction_of_mode_atomic_takes_two() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = Fixture::new("trips_atomic");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    mirror(
        &fixture,
        "t",
        "id int primary key, v text",
        r#"{"mode": "atomic"}"#,
    );
    let mut client = fixture.left.client();
    let insert = "insert into t select g, 'x' from generate_series(1, 2000) g";
    client.batch_execute(insert).expect("rows");
    for sql in [
        "update t set v = v || 'y' where id = 1",
        "update t set v = v || 'y'",
    ] {
        let trips = trips(&proxy, &mut client, sql, 1.7..2.7);
        assert!((1.7..2.7).contains(&trips), "{sql}: {trips}");
    }
    assert_eq!(
        fixture.checksum(&fixture.left, "t"),
        fixture.checksum(&fixture.right, "t")
    );
}

#[test]
fn one_row_many_rows_and_many_tables_take_one_round_trip() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = Fixture::new("trips");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    for n in 1..=5 {
        let table = format!("create table t{n} (id int primary key, v text)");
        fixture.right.exec(&table);
        let target = fixture.right.user.clone();
        fixture.left.exec(&format!(
            "{table}; select attach_sync('t{n}', 'dst', '{target}.t{n}')"
        ));
    }
    fixture
        .left
        .exec("insert into t1 select g, 'x' from generate_series(1, 10000) g");
    let mut client = fixture.left.client();
    let touch_five: String = (1..=5)
        .map(|n| format!("insert into t{n} values (-1, '') ;"))
        .collect();
    let clear: String = (1..=5)
        .map(|n| format!("delete from t{n} where id = -1;"))
        .collect();
    for (what, sql) in [
        (
            "one row",
            "update t1 set v = v || 'y' where id = 1".to_owned(),
        ),
        ("10,000 rows", "update t1 set v = v || 'y'".to_owned()),
        ("five tables", format!("begin; {touch_five} {clear} commit")),
    ] {
        let trips = trips(&proxy, &mut client, &sql, 0.7..1.7);
        assert!((0.7..1.7).contains(&trips), "{what}: {trips}");
    }
    for n in 1..=5 {
        let table = format!("t{n}");
        assert_eq!(
            fixture.checksum(&fixture.left, &table),
            fixture.checksum(&fixture.right, &table),
            "{table}"
        );
    }
    assert_eq!(fixture.left.queued().expect("the queue"), 0);
}
