//! Random tables, rows and statements under random settings: what is delivered, what is drained and what
//! `dst_query` does by hand are the same rows to the byte.
//!
//! The seeds are fixed; `ROWSYNC_SEEDS=100 cargo test-all fuzz_sql` tries as many others, and
//! `ROWSYNC_SEED=5` one again. A failure names its seed and the last transaction's statements.

use std::io::Read;
use std::time::{SystemTime, UNIX_EPOCH};

use postgres::Client;
use rowsync_harness::side::describe;
use rowsync_harness::{Fixture, Side};

use crate::random::fuzz_values::{KINDS, Kind, TYPES};
use crate::support::common::{query, rows, run};
use rowsync_harness::rng::Rng;

const TRANSACTIONS: usize = 14;
const POLICIES: [&str; 4] = ["overwrite", "error", "skip", "newest"];
/// Servers and the tables that they lead to: at commit, through the queue, and by whoever runs `dst_query`.
const WAYS: [(&str, &str); 3] = [("now", "sync"), ("later", "queue"), ("hand", "queue")];

/// Whatever a session may have set.
const SETTINGS: [&[&str]; 12] = [
    &[
        "datestyle = 'ISO, YMD'",
        "datestyle = 'German'",
        "datestyle = 'SQL, DMY'",
        "datestyle = 'Postgres'",
    ],
    &[
        "intervalstyle = 'postgres_verbose'",
        "intervalstyle = 'sql_standard'",
        "intervalstyle = 'iso_8601'",
    ],
    &[
        "timezone = 'Asia/Kolkata'",
        "timezone = 'America/New_York'",
        "timezone = '-13:45'",
    ],
    &[
        "extra_float_digits = -15",
        "extra_float_digits = 0",
        "extra_float_digits = 3",
    ],
    &["bytea_output = 'escape'", "bytea_output = 'hex'"],
    &[
        "standard_conforming_strings = off",
        "standard_conforming_strings = on",
    ],
    // Those that only matter to who writes: a literal that is read is read under the reader's.
    &["client_encoding = 'LATIN1'", "client_encoding = 'UTF8'"],
    &["array_nulls = off", "array_nulls = on"],
    &["xmloption = 'document'", "xmloption = 'content'"],
    &["lc_monetary = 'C.UTF-8'", "lc_monetary = 'C'"],
    &[
        "xmlbinary = 'hex'",
        "quote_all_identifiers = on",
        "transform_null_equals = on",
    ],
    &[
        "backslash_quote = off",
        "enable_seqscan = off",
        "row_security = off",
    ],
];

/// Some of the settings.
fn settings(rng: &mut Rng, of: &[&[&str]]) -> String {
    let mut chosen = vec!["escape_string_warning = off"];
    for values in of {
        if rng.roll(2) == 0 {
            chosen.push(rng.of(values));
        }
    }
    chosen
        .iter()
        .map(|setting| format!("set {setting}; "))
        .collect()
}

/// A table's columns beside `n`, which numbers its rows, and `ver`, which grows with every statement.
struct Columns {
    columns: Vec<(String, &'static Kind)>,
    /// How many of them, from the first, are the key.
    key: usize,
}

/// Behind each column's number.
const ENDINGS: [&str; 9] = [
    "", "'", "\"\"", "\\", "; --", " $1", "{\"\"}", "\n", " E'\\'",
];

impl Columns {
    fn random(rng: &mut Rng) -> Columns {
        let keys: Vec<&Kind> = KINDS.iter().filter(|kind| kind.is_key).collect();
        let all: Vec<&Kind> = KINDS.iter().collect();
        let key = 1 + rng.roll(3) as usize;
        let columns = (0..key + 12)
            .map(|at| {
                let kind = rng.of(if at < key { &keys } else { &all });
                (format!("\"c{at}{}\"", rng.of(&ENDINGS)), kind)
            })
            .collect();
        Columns { columns, key }
    }

    fn definition(&self) -> String {
        let columns = self
            .columns
            .iter()
            .map(|(name, kind)| format!("{name} {}", kind.name));
        let key = self
            .columns
            .iter()
            .take(self.key)
            .map(|(name, _)| name.as_str());
        format!(
            "n int not null, ver int8 not null, {}, primary key ({})",
            columns.collect::<Vec<_>>().join(", "),
            key.collect::<Vec<_>>().join(", ")
        )
    }

    fn row(&self, rng: &mut Rng, number: u64) -> String {
        let value = |(at, (_, kind)): (usize, &(String, &Kind))| {
            if at < self.key {
                kind.key(rng)
            } else {
                kind.value(rng)
            }
        };
        let values: Vec<String> = self.columns.iter().enumerate().map(value).collect();
        format!("({number}, {number}, {})", values.join(", "))
    }

    /// New values of some columns.
    fn assignments(&self, rng: &mut Rng, of_key: bool) -> String {
        let (first, last) = if of_key {
            (0, self.key)
        } else {
            (self.key, self.columns.len())
        };
        let mut set = Vec::new();
        for (at, (name, kind)) in self.columns.iter().enumerate().take(last).skip(first) {
            if of_key && (set.is_empty() || rng.roll(2) == 0) || rng.roll(4) == 0 {
                let large = kind.name == "text" && at >= self.key && rng.roll(4) == 0;
                let value = if large {
                    format!("repeat({} || md5('{at}'), 200)", kind.key(rng))
                } else if at < self.key {
                    kind.key(rng)
                } else {
                    kind.value(rng)
                };
                set.push(format!(", {name} = {value}"));
            }
        }
        set.concat()
    }

    /// All of it, to the byte, for a table of that name.
    fn image(&self, table: &str) -> String {
        let column = |(name, kind): &(String, &Kind)| {
            let text = if kind.is_local { "::text" } else { "" };
            format!("{name}{text}")
        };
        let columns: Vec<String> = self.columns.iter().map(column).collect();
        format!(
            "select n, ver, {} from {table} order by n",
            columns.join(", ")
        )
    }
}

/// A random statement; many fail for a duplicate key.
fn statement(rng: &mut Rng, table: &str, columns: &Columns, number: &mut u64) -> String {
    *number += 10;
    let at = *number;
    let some = match rng.roll(3) {
        0 => format!(
            "n = (select n from {table} offset {} limit 1)",
            rng.roll(12)
        ),
        _ => format!("n % 4 = {}", rng.roll(4)),
    };
    match rng.roll(14) {
        0..=4 => {
            let rows: Vec<String> = (0..1 + rng.roll(4))
                .map(|i| columns.row(rng, at + i))
                .collect();
            format!("insert into {table} values {}", rows.join(", "))
        }
        5..=7 => {
            format!(
                "update {table} set ver = {at}{} where {some}",
                columns.assignments(rng, false)
            )
        }
        8 => {
            let key = columns.assignments(rng, true);
            let rest = columns.assignments(rng, false);
            format!(
                "update {table} set ver = {at}{key}{rest}
                   where n = (select n from {table} offset {} limit 1)",
                rng.roll(12)
            )
        }
        9 => {
            format!(
                "update {table} set ver = {at}{} where {some}",
                columns.assignments(rng, true)
            )
        }
        10 => format!("delete from {table} where {some}"),
        11 => format!("insert into kept select * from {table} where {some}"),
        12 => format!(
            "update kept set n = n + {at}, ver = {at}; insert into {table} select * from kept"
        ),
        _ if rng.roll(3) == 0 => format!("truncate {table}"),
        _ => format!("delete from {table} where n % 7 = {}", rng.roll(7)),
    }
}

/// One random transaction; the statements as they were run.
fn transaction(
    client: &mut Client,
    rng: &mut Rng,
    table: &str,
    columns: &Columns,
    number: &mut u64,
) -> Vec<String> {
    let mut done = vec![format!(
        "begin; {}",
        settings(rng, &SETTINGS).replace("set ", "set local ")
    )];
    run(client, &done[0]);
    for _ in 0..1 + rng.roll(6) {
        let sql = statement(rng, table, columns, number);
        run(client, "savepoint try");
        let code = client
            .batch_execute(&sql)
            .err()
            .map(|error| describe(&error));
        let end = if code.is_some() {
            "rollback to try"
        } else {
            "release try"
        };
        let code = code.unwrap_or_default();
        done.push(format!("{sql}; -- {code}"));
        assert!(code.is_empty() || code.starts_with("23505"), "{done:#?}");
        run(client, end);
    }
    run(client, "commit");
    done
}

/// All rows of a table in PostgreSQL's binary form, or as text to tell what differs.
fn image(side: &Side, columns: &Columns, table: &str) -> Vec<u8> {
    let mut client = side.superuser();
    run(
        &mut client,
        &format!("set search_path = {}, public", side.user),
    );
    let sql = format!("copy ({}) to stdout (format binary)", columns.image(table));
    let mut image = Vec::new();
    let mut reader = client
        .copy_out(&sql)
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    reader.read_to_end(&mut image).expect("all rows");
    image
}

/// Runs what the view shows for the server `hand`, under settings of the one who does, and discards it.
fn by_hand(fixture: &Fixture, rng: &mut Rng) {
    let mut client = fixture.right.client();
    run(&mut client, &settings(rng, &SETTINGS[..6]));
    let queries = "select dst_query from sync_err_rec where dst_server = 'hand' order by id";
    for sql in rows(&fixture.left, queries) {
        run(&mut client, &sql);
    }
    fixture
        .left
        .exec_superuser("delete from sync_err_rec where dst_server = 'hand'");
}

/// A table on the left, and one on the right for each of the ways to it.
fn tables(fixture: &Fixture, columns: &Columns, policy: &str) -> String {
    for side in [&fixture.left, &fixture.right] {
        side.exec_superuser(
            "create extension citext schema public; create extension hstore schema public",
        );
        side.exec(TYPES);
    }
    let mut client = fixture.left.client();
    let schema = &fixture.right.user;
    run(
        &mut client,
        &format!("create table t ({})", columns.definition()),
    );
    for (way, mode) in WAYS {
        fixture.link(&fixture.left, &fixture.right, way, &[]);
        fixture
            .right
            .exec(&format!("create table {way} ({})", columns.definition()));
        let options = |policy: &str| {
            let version = if policy == "newest" {
                r#", "version_column": "ver""#
            } else {
                ""
            };
            format!(
                r#"select attach_sync('t', '{way}', '{schema}.{way}',
                     '{{"mode": "{mode}", "on_conflict": "{policy}"{version}}}')"#
            )
        };
        // Not every key can be hashed, as its versions need.
        if let Err(error) = client.batch_execute(&options(policy)) {
            let why = describe(&error);
            assert!(policy == "newest" && why.starts_with("42883"), "{why}");
            run(&mut client, &options("skip"));
        }
    }
    format!("{}.t", fixture.left.user)
}

fn play(seed: u64) {
    let mut rng = Rng::of_seed(seed);
    let columns = Columns::random(&mut rng);
    let fixture = Fixture::new("fuzz");
    let table = tables(&fixture, &columns, POLICIES[(seed % 4) as usize]);
    let mut client = fixture.left.client();
    run(
        &mut client,
        &format!("create temp table kept as select * from {table}"),
    );
    let mut number = 0;
    let mut states = 0;
    let mut before = Vec::new();
    for _ in 0..TRANSACTIONS {
        run(&mut client, "truncate kept");
        let done = transaction(&mut client, &mut rng, &table, &columns, &mut number);
        let about = || format!("seed {seed}: {done:#?}");
        by_hand(&fixture, &mut rng);
        let deal = query(
            &mut fixture.left.superuser(),
            "select deal_sync_err_rec(100000)",
        );
        assert_eq!(
            deal,
            ["t"],
            "{:?} {}",
            rows(&fixture.left, "select message from sync_err_rec"),
            about()
        );
        let expected = image(&fixture.left, &columns, "t");
        for (way, _) in WAYS {
            if image(&fixture.right, &columns, way) != expected {
                let left = rows(&fixture.left, &columns.image("t"));
                let right = rows(&fixture.right, &columns.image(way));
                panic!("{left:#?} is {right:#?} in \"{way}\", {}", about());
            }
        }
        states += usize::from(expected != before);
        before = expected;
    }
    assert!(
        states > TRANSACTIONS / 3,
        "seed {seed}: only {states} states of tables"
    );
}

#[test]
fn random_rows_of_any_type_arrive_on_every_way() {
    (1..=4).for_each(play);
}

#[test]
fn more_random_rows_of_any_type_arrive_on_every_way() {
    (5..=8).for_each(play);
}

#[test]
fn random_rows_of_other_seeds_arrive_on_every_way() {
    let number = |name| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    number("ROWSYNC_SEED").into_iter().for_each(play);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock");
    (now.as_nanos() as u64..)
        .take(number("ROWSYNC_SEEDS").unwrap_or(0) as usize)
        .for_each(play);
}
