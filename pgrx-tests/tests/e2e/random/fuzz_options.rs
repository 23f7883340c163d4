//! Random options, of triggers, servers and mappings, and random text where JSON of ours is expected: an
//! error of a documented kind, and the session goes on.
//!
//! The seed is fixed; `ROWSYNC_SEED=5 cargo test-all fuzz_options` takes another.

use std::time::{Duration, Instant};

use postgres::Client;

use crate::support::common::{linked, query, run, table};
use rowsync_harness::rng::Rng;

const CASES: usize = 150;

fn rng() -> (u64, Rng) {
    let seed = std::env::var("ROWSYNC_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(1);
    (seed, Rng::of_seed(seed))
}

const PIECES: [&str; 27] = [
    "{",
    "7",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "null",
    "-1",
    "1e999",
    "true",
    "'",
    "$1",
    "\"mode\": \"sync\"",
    "\"key\": [\"id\"]",
    "\"columns\": [\"id\"]",
    "\"rename\": {\"v\": \"w\"}",
    "\"guard_role\": \"a\\u0000b\"",
    "\"application_name\": \"\u{e9}\"",
    "\"version_column\": \"v\"",
    "\"on_conflict\": \"newest\"",
    "\"exclude\": []",
    "\u{10ffff}",
];

/// A text that begins as JSON of ours, with some of it replaced.
fn damaged(rng: &mut Rng, text: &str) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for _ in 0..rng.roll(3) {
        let at = rng.roll(chars.len() as u64 + 1) as usize;
        let end = (at + rng.roll(4) as usize).min(chars.len());
        let piece = rng
            .of(&PIECES)
            .repeat(1 + rng.roll(8).saturating_sub(6) as usize * 400);
        chars.splice(at..end, piece.chars());
    }
    chars.into_iter().collect()
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Runs a statement that may fail with one of these SQLSTATEs; says whether it did not.
fn may_fail(client: &mut Client, sql: &str, with: &[&str], about: u64) -> bool {
    let Err(error) = client.batch_execute(sql) else {
        return true;
    };
    let Some(said) = error.as_db_error() else {
        panic!("seed {about}: {error}: {sql}")
    };
    assert!(
        with.contains(&said.code().code()),
        "seed {about}: {said:?}: {sql}"
    );
    // A panic has this state, too.
    let is_told = said.code().code() != "XX000" || said.message().starts_with("could not read");
    assert!(is_told, "seed {about}: {said:?}: {sql}");
    false
}

#[test]
fn triggers_with_random_options_work_or_fail_with_a_documented_state() {
    let (seed, mut rng) = rng();
    let fixture = linked("fuzzoptions");
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table t (id int primary key, v text, w text)");
    }
    let mut client = fixture.left.client();
    let schema = &fixture.right.user;
    let mut admin = fixture.left.superuser();
    run(&mut client, "set escape_string_warning = off");
    let valid = r#"{"mode": "queue", "on_conflict": "skip", "columns": ["id", "v"],
        "rename": {"v": "w"}, "key": ["id"], "application_name": "g", "guard_role": "pg_monitor"}"#;
    let plain = "{\"mode\": \"sync\"}";
    let mut worked = 0;
    for number in 0..CASES {
        let base = rng.of(&[valid, plain, "{}"]);
        let options = damaged(&mut rng, base);
        let create = format!(
            "create trigger fuzz after insert on t for each row
               execute function sync_dml('dst', '{schema}', 't', {})",
            literal(&options)
        );
        run(&mut client, &create);
        // What is wrong with an option, with a name in it, or with what it asks of the table.
        let states = ["22023", "42703", "42704", "42883", "22021"];
        let insert = format!("insert into t values ({number}, 'v')");
        let done = may_fail(&mut client, &insert, &states, seed);
        worked += usize::from(done);
        run(&mut client, "drop trigger fuzz on t");
        // The next may be of mode sync, which nothing may precede.
        run(&mut admin, "delete from sync_err_rec");
        let attach = format!(
            "select attach_sync('t', 'dst', '{schema}.t', {})",
            literal(&options)
        );
        let states = [&states[..], &["22P02", "22P05", "54001"]].concat();
        if may_fail(&mut client, &attach, &states, seed) {
            run(&mut client, "select detach_sync('t', 'dst')");
        }
    }
    assert_eq!(table(&fixture.left, "t").len(), worked);
    assert!(worked > 5, "seed {seed}: only {worked} were valid");
}

#[test]
fn servers_and_mappings_with_random_options_are_made_or_refused() {
    let (seed, mut rng) = rng();
    let fixture = linked("fuzzservers");
    let mut client = fixture.left.client();
    for _ in 0..CASES {
        let name = rng.of(&[
            "host",
            "port",
            "dbname",
            "user",
            "password",
            "password_required",
            "sslcert",
            "options",
            "client_encoding",
            "application_name",
            "tcp_user_timeout",
            "nonsense",
            "hots",
        ]);
        let name = if rng.roll(3) == 0 {
            damaged(&mut rng, name)
        } else {
            name.to_owned()
        };
        let name = format!("\"{}\"", name.replace('"', "\"\""));
        let value = literal(&damaged(&mut rng, "on"));
        // An option that is unknown or misplaced, without a name, a boolean that is none, one for superusers.
        let states = ["HV00D", "42601", "22023", "42501"];
        let of_server =
            format!("create server fuzz foreign data wrapper pg_rowsync options ({name} {value})");
        let of_mapping =
            format!("create user mapping for public server dst options ({name} {value})");
        if may_fail(&mut client, &of_server, &states, seed) {
            run(&mut client, "drop server fuzz");
        }
        if may_fail(&mut client, &of_mapping, &states, seed) {
            run(&mut client, "drop user mapping for public server dst");
        }
    }
    // The validator is a function like others: no name is too long for it.
    let long = "select pg_rowsync_fdw_validator(array[repeat('h', 20000000) || '=x'], 1417)";
    let begun = Instant::now();
    assert!(!may_fail(&mut client, long, &["HV00D"], seed));
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
}

fn shown_as(record: &[String; 2]) -> String {
    let [route, change] = record.each_ref().map(|text| literal(text));
    format!("select sync_change_sql({route}, {change})")
}

#[test]
fn what_is_no_record_is_refused_by_the_function_that_shows_it() {
    let (seed, mut rng) = rng();
    let fixture = linked("fuzzrecords");
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table t (id int primary key, v text)");
    }
    crate::support::common::attach(&fixture, "t", r#"{"mode": "queue"}"#);
    fixture
        .left
        .exec("insert into t values (1, 'v'); update t set id = 2; delete from t; truncate t");
    let select =
        "select body, change from sync_queue q join sync_route r on r.id = route_id order by q.id";
    let records = fixture
        .left
        .superuser()
        .simple_query(select)
        .expect("records");
    let records: Vec<[String; 2]> = records
        .iter()
        .filter_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => {
                Some([0, 1].map(|at| row.get(at).unwrap_or_default().to_owned()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(records.len(), 4);
    // Anyone may call it.
    let mut client = fixture.left.client();
    let mut shown = 0;
    for _ in 0..CASES {
        let mut record = records[rng.roll(4) as usize].clone();
        let which = rng.roll(2) as usize;
        record[which] = damaged(&mut rng, &record[which]);
        let sql = shown_as(&record);
        shown += usize::from(may_fail(&mut client, &sql, &["XX000", "22021"], seed));
    }
    // What no random case may have: positions of columns that there are not, and rows without columns.
    for (from, to) in [
        ("\"key\":[0]", "\"key\":[7]"),
        ("\"key\":[0]", "\"key\":[]"),
        ("\"1\",", ""),
    ] {
        let record = records[0].each_ref().map(|text| text.replace(from, to));
        assert_ne!(record, records[0], "{from}");
        assert!(
            !may_fail(&mut client, &shown_as(&record), &["XX000"], seed),
            "{record:?}"
        );
    }
    assert!(
        shown > 5 && shown < CASES,
        "seed {seed}: {shown} were shown"
    );
    assert_eq!(query(&mut client, "select 1"), ["1"]);
}
