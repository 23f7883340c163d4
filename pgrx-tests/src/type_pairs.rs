//! Every pair of types between which PostgreSQL converts by itself, and more: what the extension says of it,
//! and what becomes of values that are delivered. Written into `doc/types.md`.

use std::collections::HashMap;
use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use postgres::{Client, SimpleQueryMessage};

use crate::fixture::Fixture;

/// The document, from the repository's root.
pub const DOCUMENT: &str = "doc/types.md";

/// Between these lines of the document.
const BEGIN: &str = "<!-- seen by `cargo faults types`: -->";
const END: &str = "<!-- end -->";

/// Types that no value of can be made, and those that only the server writes.
const WITHOUT_VALUES: [&str; 4] = [
    "pg_node_tree",
    "pg_ndistinct",
    "pg_dependencies",
    "pg_mcv_list",
];

/// Types made for the pairs below, on both sides; `{0}` is different there.
const OWN_TYPES: [(&str, &str); 4] = [
    (
        "create type mood as enum ('sad', 'ok')",
        "create type mood as enum ('ok', 'sad', 'new')",
    ),
    (
        "create type weather as enum ('rain', 'sun')",
        "create type weather as enum ('sun')",
    ),
    (
        "create domain price as numeric(6,2)",
        "create domain price as numeric(6,1)",
    ),
    (
        "create type pair as (x int, y text)",
        "create type pair as (x smallint, y text)",
    ),
];

/// Pairs that are in no catalog: lengths and precisions, arrays, ranges, types of one's own, spellings.
const MORE: &[(&str, &str)] = &[
    ("numeric", "numeric(10,2)"),
    ("numeric(10,2)", "numeric"),
    ("numeric(10,2)", "numeric(12,4)"),
    ("numeric(10,2)", "numeric(10,4)"),
    ("numeric(6,2)", "numeric(6,-1)"),
    ("numeric(10,2)", "double precision"),
    ("numeric(6,2)", "real"),
    ("numeric(10,2)", "real"),
    ("numeric(8,0)", "integer"),
    ("smallint", "numeric(5,0)"),
    ("integer", "numeric(10,2)"),
    ("bigint", "numeric(19,0)"),
    ("double precision", "numeric(10,2)"),
    ("varchar(5)", "varchar(10)"),
    ("varchar(10)", "varchar(5)"),
    ("text", "varchar(5)"),
    ("varchar(5)", "text"),
    ("char(5)", "char(10)"),
    ("char(10)", "char(5)"),
    ("text", "char(5)"),
    ("varchar(5)", "char(5)"),
    ("char(5)", "text"),
    ("char(5)", "varchar(5)"),
    ("char(10)", "varchar(5)"),
    ("varchar(15)", "name"),
    ("bit(3)", "bit(4)"),
    ("bit(3)", "bit varying(5)"),
    ("bit varying(5)", "bit varying(2)"),
    ("bit varying(5)", "bit(3)"),
    ("timestamp", "timestamp(3)"),
    ("timestamp(3)", "timestamp"),
    ("timestamptz", "timestamptz(0)"),
    ("timestamptz(3)", "timestamptz(6)"),
    ("timestamptz", "timestamp(0)"),
    ("timestamp(0)", "timestamptz"),
    ("time", "time(0)"),
    ("time(0)", "time"),
    ("timetz", "timetz(2)"),
    ("interval", "interval(0)"),
    ("interval(0)", "interval"),
    ("interval", "interval day to hour"),
    ("integer[]", "bigint[]"),
    ("bigint[]", "integer[]"),
    ("numeric[]", "numeric(6,1)[]"),
    ("text[]", "varchar(3)[]"),
    ("timestamptz[]", "text"),
    ("integer[]", "text"),
    ("int4range", "int8range"),
    ("int8range", "int4range"),
    ("int4multirange", "int8multirange"),
    ("tstzrange", "text"),
    ("mood", "mood"),
    ("weather", "weather"),
    ("mood", "text"),
    ("text", "mood"),
    ("mood[]", "mood[]"),
    ("price", "price"),
    ("price", "numeric"),
    ("pair", "pair"),
    ("numeric", "name"),
    ("integer", "name"),
    ("uuid", "name"),
    ("text", "integer"),
    ("text", "uuid"),
    ("text", "jsonb"),
];

/// Values at the edges of a type, as SQL reads them.
fn values(of: &str) -> Vec<String> {
    let base = of.split('(').next().unwrap_or(of);
    let list: &[&str] = match base {
        "smallint" => &["0", "1259", "-1", "32767", "-32768"],
        "integer" => &["0", "1259", "-1", "16777217", "2147483647", "-2147483648"],
        "bigint" => &[
            "0",
            "1259",
            "-1",
            "4294967295",
            "9007199254740993",
            "9223372036854775807",
            "-9223372036854775808",
        ],
        "real" => &[
            "0",
            "-0",
            "0.1",
            "1.5",
            "0.33333334",
            "1e10",
            "1.2345679e10",
            "3.4028235e38",
            "1e-45",
            "NaN",
            "Infinity",
            "-Infinity",
        ],
        "double precision" => &[
            "0",
            "-0",
            "0.1",
            "1.5",
            "0.3333333333333333",
            "1e10",
            "1.7976931348623157e308",
            "5e-324",
            "NaN",
            "Infinity",
        ],
        "numeric" if of == "numeric" => &[
            "0",
            "1.5",
            "-1.25",
            "1.10",
            "0.12345678901234567890123",
            "99999",
            "1e131071",
            "NaN",
            "Infinity",
        ],
        "numeric" if of == "numeric(8,0)" => &["0", "-1", "99999999", "NaN"],
        "numeric" => &[
            "0",
            "1.5",
            "-1.25",
            "9999.99",
            "1234567.89",
            "0.01",
            "99999999.99",
            "NaN",
        ],
        "price" => &["0", "1.25", "9999.99"],
        "money" => &["0", "1.25", "-100", "92233720368547758.07"],
        "text" | "varchar" | "character varying" => &[
            "",
            "a",
            "a ",
            "A",
            "abcde",
            "abcde  ",
            "abcdefghijklmnop",
            "1",
            "01",
            "1259",
            "pg_class",
            "PG_CLASS",
            "{\"a\": 1}",
            "{\"a\":1}",
            "ok",
            "OK",
            "00000000-0000-0000-0000-00000000000a",
            "00000000-0000-0000-0000-00000000000A",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa2",
        ],
        "bpchar" | "char" | "character" => &[
            "",
            "a",
            "ab",
            "abcde",
            "abcdefghij",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1",
        ],
        "name" => &[
            "",
            "a",
            "a ",
            "abcdef",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ],
        "\"char\"" => &["", "a", "b", " "],
        "boolean" => &["t", "f"],
        "oid" => &["0", "1259", "4294967295"],
        "regclass" => &["-", "pg_class", "4000000000"],
        "regproc" => &["-", "pg_catalog.age_none", "4000000000", "pg_backend_pid"],
        "regprocedure" => &["-", "pg_backend_pid()", "4000000000"],
        "regoper" => &["0", "||/", "4000000000"],
        "regoperator" => &["0", "||/(NONE,double precision)", "4000000000"],
        "regtype" => &["-", "integer", "4000000000"],
        "regrole" => &["-", "postgres", "4000000000"],
        "regnamespace" => &["-", "pg_catalog", "4000000000"],
        "regcollation" => &["-", "\"C\"", "4000000000"],
        "regconfig" => &["simple", "4000000000"],
        "regdictionary" => &["simple", "4000000000"],
        "date" => &["2024-07-01", "0044-03-15 BC", "infinity", "5874897-12-31"],
        "time without time zone" | "time" => &["00:00:00", "23:30:00.123456", "24:00:00"],
        "time with time zone" | "timetz" => {
            &["23:30:00.123456+00", "12:00:00-08", "12:00:00+05:30"]
        }
        "timestamp without time zone" | "timestamp" => &[
            "2024-07-01 23:30:00",
            "2024-07-01 12:00:00.123456",
            "1999-12-31 23:59:59.999999",
            "infinity",
        ],
        "timestamp with time zone" | "timestamptz" => &[
            "2024-07-01 23:30:00+00",
            "2024-07-01 12:00:00.123456+00",
            "1999-12-31 23:59:59.999999+00",
            "infinity",
        ],
        "interval" => &[
            "0",
            "02:00:00",
            "1 day 02:00:00.5",
            "-02:00:00",
            "1 year 2 mons",
        ],
        "bit" | "\"bit\"" => &["1", "101", "101010"],
        "bit varying" => &["", "1", "101", "10101", "1010101"],
        "bytea" => &["", "\\x00ff"],
        "uuid" => &["00000000-0000-0000-0000-00000000000a"],
        "xml" => &["<a/>", "text", "<abc/>"],
        "json" => &["{\"b\": 1,  \"a\": 2, \"a\": 3}", "1", "[1, 2]"],
        "jsonb" => &["{\"b\": 1, \"a\": 2}", "1", "[1, 2]"],
        "inet" => &["10.0.0.1", "10.0.0.1/8", "10.0.0.0/8", "::1"],
        "cidr" => &["10.0.0.0/8", "10.0.0.1/32", "::/0"],
        "macaddr" => &["08:00:2b:01:02:03"],
        "macaddr8" => &["08:00:2b:ff:fe:01:02:03", "08:00:2b:01:02:03:04:05"],
        "point" => &["(1,2)", "(10,20)"],
        "line" => &["{1,2,3}"],
        "lseg" => &["[(1,2),(3,4)]"],
        "box" => &["(3,4),(1,2)"],
        "path" => &["((1,2),(3,4))", "[(1,2),(3,4)]"],
        "polygon" => &["((1,2),(3,4),(5,0))"],
        "circle" => &["<(1,2),3>"],
        "pg_lsn" => &["0/0", "FFFFFFFF/FFFFFFFF"],
        "tsvector" => &["'a':1 'b'"],
        "tsquery" => &["'a' & 'b'"],
        "xid" => &["0", "4294967295"],
        "xid8" => &["0", "18446744073709551615"],
        "cid" => &["0", "4294967295"],
        "tid" => &["(0,1)", "(10,20)"],
        "int2vector" => &["1 2", "1 2 3 4"],
        "oidvector" => &["1 2", "1 2 3 4"],
        "pg_snapshot" | "txid_snapshot" => &["10:20:10,14"],
        "jsonpath" => &["$.\"a\"", "$.\"abc\""],
        "mood" => &["sad", "ok"],
        "weather" => &["rain", "sun"],
        "mood[]" => &["{sad,ok}"],
        "pair" => &["(1,x)", "(40000,y)"],
        "integer[]" => &["{1,2}", "{}", "[0:1]={1,NULL}"],
        "bigint[]" => &["{1,4294967295}", "{1}"],
        "numeric[]" => &["{1.25,1}", "{2}"],
        "text[]" => &["{a,b}", "{abcd}", "{\"abc  \"}"],
        "timestamptz[]" => &["{2024-07-01 23:30:00+00}"],
        "int4range" => &["[1,5)", "empty", "[1,)"],
        "int8range" => &["[1,5)", "[1,4294967295)"],
        "int4multirange" => &["{[1,5),[7,9)}"],
        "tstzrange" => &["[2024-07-01 23:30:00+00,)"],
        _ => &[],
    };
    list.iter().map(|value| (*value).to_owned()).collect()
}

/// What is said and seen of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub from: String,
    pub to: String,
    /// As the extension says it: `equal`, or severity and reason.
    pub verdict: String,
    /// Whether it takes such a key: `equal`, `refused`, or `-` where the type cannot be one.
    pub as_key: String,
}

/// What became of the values of a pair.
#[derive(Debug, Default)]
struct Seen {
    delivered: usize,
    refused: Vec<String>,
    changed: Vec<String>,
    merged: bool,
}

/// Delivers the values of every pair from left to right; says what was said, or what of it is not true.
///
/// # Errors
/// The pairs of which something untrue was said.
pub fn observe(fixture: &Fixture) -> Result<Vec<Row>> {
    let mut left = fixture.left.connect()?;
    let mut right = fixture.right.connect()?;
    for (here, there) in OWN_TYPES {
        left.batch_execute(here)?;
        right.batch_execute(there)?;
    }
    right.batch_execute(
        "create function try(call text) returns text language plpgsql as
           $$ declare found text; begin execute call into found; return found; exception when others then return null; end $$",
    )?;
    let pairs = pairs(&mut left)?;
    prepare(fixture, &mut left, &mut right, &pairs)?;
    let said = said(&mut left)?;
    let mut rows = Vec::new();
    let mut untrue = Vec::new();
    for (number, (from, to)) in pairs.iter().enumerate() {
        let seen = deliver(&mut left, &mut right, number, from, to)?;
        let verdict = said
            .get(&format!("p{number}"))
            .cloned()
            .unwrap_or_else(|| "equal".to_owned());
        let as_key = as_key(fixture, &mut left, &mut right, number, from, to)?;
        let row = Row {
            from: from.clone(),
            to: to.clone(),
            verdict,
            as_key,
        };
        if let Some(why) = contradiction(&row, &seen) {
            untrue.push(format!(
                "{from} into {to}: said {:?} and {:?}, {why}: {seen:?}",
                row.verdict, row.as_key
            ));
        }
        rows.push(row);
    }
    ensure!(untrue.is_empty(), "not as said:\n{}", untrue.join("\n"));
    Ok(rows)
}

/// What is seen that was not said, or said and not seen.
fn contradiction(row: &Row, seen: &Seen) -> Option<&'static str> {
    let is_equal = seen.refused.is_empty() && seen.changed.is_empty();
    if seen.delivered + seen.refused.len() == 0 {
        return Some("no value was tried");
    }
    match row.verdict.split(':').next().unwrap_or_default() {
        "equal" if !is_equal => return Some("but values did not arrive as they are"),
        "warning" if is_equal => return Some("but all values arrived as they are"),
        "error" if seen.delivered > 0 => return Some("but values arrived"),
        _ => {}
    }
    match row.as_key.as_str() {
        "refused" if !seen.merged && seen.changed.is_empty() && seen.delivered > 0 => {
            Some("but keys stay apart")
        }
        "equal" if seen.merged => Some("but keys that differ here are equal there"),
        _ => None,
    }
}

/// The pairs, as people write the types: what is cast by itself, into every type of text, and [`MORE`].
fn pairs(client: &mut Client) -> Result<Vec<(String, String)>> {
    let casts = "select format_type(castsource, -1), format_type(casttarget, -1) from pg_cast
          join pg_type s on s.oid = castsource join pg_type t on t.oid = casttarget
         where castcontext in ('i', 'a') and castsource <> casttarget and s.typtype = 'b' and t.typtype = 'b'
           and s.oid < 16384 and t.oid < 16384 order by 1, 2";
    let texts = "select format_type(s.oid, -1), t.name
          from pg_type s, unnest(array['text', 'character varying', 'varchar(5)', 'char(3)']) t(name)
         where s.typtype = 'b' and s.oid < 16384 and s.typcategory <> 'A' and s.typname !~ '^(_|pg_brin)'
           and s.typcategory <> 'S' and s.oid <> 18 and s.typname not in ('refcursor', 'aclitem', 'gtsvector')
         order by 1, 2";
    let mut found: Vec<(String, String)> = Vec::new();
    for sql in [casts, texts] {
        for row in client.query(sql, &[])? {
            found.push((row.get(0), row.get(1)));
        }
    }
    found.extend(
        MORE.iter()
            .map(|(from, to)| ((*from).to_owned(), (*to).to_owned())),
    );
    found.retain(|(from, to)| {
        ![from, to]
            .iter()
            .any(|name| WITHOUT_VALUES.contains(&name.as_str()))
    });
    found.retain(|(from, _)| !values(from).is_empty());
    found.sort();
    found.dedup();
    Ok(found)
}

/// A table of each pair on both sides, the left one sent by a trigger of its own making, which refuses nothing.
fn prepare(
    fixture: &Fixture,
    left: &mut Client,
    right: &mut Client,
    pairs: &[(String, String)],
) -> Result<()> {
    let mut here = String::new();
    let mut there = String::new();
    for (number, (from, to)) in pairs.iter().enumerate() {
        write!(
            here,
            "create table p{number} (id int primary key, v {from});
             create trigger sync after insert or update or delete on p{number} for each row
               execute function sync_dml('dst', '{0}', 'p{number}', '{{\"mode\": \"sync\"}}');
             create trigger empty after truncate on p{number}
               execute function sync_dml('dst', '{0}', 'p{number}', '{{\"mode\": \"sync\"}}');",
            fixture.right.user
        )?;
        write!(
            there,
            "create table p{number} (id int primary key, v {to});"
        )?;
    }
    left.batch_execute(&here)?;
    right.batch_execute(&there)?;
    Ok(())
}

/// What is said of each table.
fn said(left: &mut Client) -> Result<HashMap<String, String>> {
    let sql = "select rel::text, severity, problem from check_sync() where rel is not null";
    let mut found = HashMap::new();
    for row in left.query(sql, &[])? {
        let (table, severity, problem): (String, String, String) =
            (row.get(0), row.get(1), row.get(2));
        let (_, why) = problem
            .split_once("on server \"dst\": ")
            .with_context(|| problem.clone())?;
        found.insert(table, format!("{severity}: {why}"));
    }
    Ok(found)
}

/// Text of the rows, by their first column. The reader is in another time zone than UTC.
fn texts(client: &mut Client, sql: &str) -> Result<HashMap<String, Option<String>>> {
    let mut found = HashMap::new();
    for message in client.simple_query(&format!("set timezone = 'Asia/Kolkata'; {sql}"))? {
        if let SimpleQueryMessage::Row(row) = message {
            let id = row.get(0).unwrap_or_default().to_owned();
            found.insert(id, row.get(1).map(str::to_owned));
        }
    }
    Ok(found)
}

fn quoted(text: &str) -> String {
    format!("e'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

fn deliver(
    left: &mut Client,
    right: &mut Client,
    number: usize,
    from: &str,
    to: &str,
) -> Result<Seen> {
    let mut seen = Seen::default();
    for (id, value) in values(from).iter().enumerate() {
        let literal = quoted(value);
        // What the type does not hold at all is no value of it.
        if left
            .simple_query(&format!("select {literal}::{from}"))
            .is_err()
        {
            continue;
        }
        match left.batch_execute(&format!(
            "insert into p{number} values ({id}, {literal}::{from})"
        )) {
            Ok(()) => seen.delivered += 1,
            Err(_) => seen.refused.push(value.clone()),
        }
    }
    let look = format!("select id, v from p{number}");
    let sources = texts(left, &look)?;
    let arrived = texts(right, &look)?;
    ensure!(
        sources.len() == arrived.len(),
        "{from} into {to}: rows are missing"
    );
    for (id, source) in &sources {
        let (Some(source), Some(Some(there))) = (source, arrived.get(id)) else {
            continue;
        };
        if source == there {
            continue;
        }
        // Written otherwise, but the same if it comes back by a cast, and is what SQL makes of it.
        let call = |value: &str, by: &str, cast: &str| {
            quoted(&format!(
                "select format('%s', ({}::{by})::{cast})",
                quoted(value)
            ))
        };
        let back = call(there, to, from);
        let forth = call(source, from, to);
        // The left side's types count for what the value is; those that are another there have the same name.
        let back = texts(right, &format!("select 1, try({back})"))?
            .remove("1")
            .flatten();
        let forth = texts(right, &format!("select 1, try({forth})"))?
            .remove("1")
            .flatten();
        if back.as_ref() != Some(source) || forth.as_ref() != Some(there) {
            seen.changed.push(format!("{source} arrived as {there}"));
        }
    }
    let distinct = format!("select count(distinct v) from p{number}");
    if let (Ok(one), Ok(other)) = (
        left.query_one(&distinct, &[]),
        right.query_one(&distinct, &[]),
    ) {
        seen.merged = other.get::<_, i64>(0) < one.get::<_, i64>(0);
    }
    Ok(seen)
}

/// Whether a key of these types is taken.
fn as_key(
    fixture: &Fixture,
    left: &mut Client,
    right: &mut Client,
    number: usize,
    from: &str,
    to: &str,
) -> Result<String> {
    for (client, kind) in [(&mut *left, from), (&mut *right, to)] {
        if client
            .batch_execute(&format!("create table k{number} (v {kind} primary key)"))
            .is_err()
        {
            return Ok("-".to_owned());
        }
    }
    let attach = format!(
        "select attach_sync('k{number}', 'dst', '{}.k{number}')",
        fixture.right.user
    );
    match left.batch_execute(&attach) {
        Ok(()) => Ok("equal".to_owned()),
        Err(error) if error.code().is_some_and(|code| code.code() == "42804") => {
            Ok("refused".to_owned())
        }
        Err(error) => Err(error.into()),
    }
}

/// The part of a document that tells of all.
pub fn render(rows: &[Row]) -> String {
    let mut text =
        String::from("| here | there | values | as key or version |\n|---|---|---|---|\n");
    for Row {
        from,
        to,
        verdict,
        as_key,
    } in rows
    {
        let as_key = if as_key == "equal" { "taken" } else { as_key };
        let verdict = verdict.replace('|', "\\|");
        let _ = writeln!(text, "| {from} | {to} | {verdict} | {as_key} |");
    }
    text
}

/// Puts the table into a document.
///
/// # Errors
/// When it has no place for it.
pub fn put_into(document: &str, rows: &[Row]) -> Result<String> {
    let (before, rest) = document
        .split_once(BEGIN)
        .context("no place for the table")?;
    let (_, after) = rest.split_once(END).context("no end of the table")?;
    Ok(format!("{before}{BEGIN}\n\n{}\n{END}{after}", render(rows)))
}
