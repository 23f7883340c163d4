//! The edges of every built-in type, alone and in arrays, under settings that would change them.

use rowsync_harness::Fixture;

use crate::support::common::{
    attach_sql, deal, linked, mirror, queued, records, refused, rows, run, same, table,
    tell_what_is_missing, warnings,
};

/// A type and literals of it.
const EDGES: &[(&str, &[&str])] = &[
    (
        "float4",
        &[
            "-0",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e-45",
            "3.4028235e38",
            "0.1",
        ],
    ),
    (
        "float8",
        &[
            "-0",
            "NaN",
            "Infinity",
            "-Infinity",
            "5e-324",
            "1.7976931348623157e308",
            "0.1",
        ],
    ),
    (
        "numeric",
        &[
            "NaN",
            "Infinity",
            "-Infinity",
            "1.10",
            "-0.000",
            "1e-16383",
            "1e131071",
        ],
    ),
    ("numeric(1000, 500)", &["1", "-0.1", "NaN"]),
    (
        "money",
        &[
            "-92233720368547758.08",
            "92233720368547758.07",
            "0",
            "-0.01",
        ],
    ),
    ("int8", &["-9223372036854775808", "9223372036854775807"]),
    (
        "date",
        &[
            "4713-01-01 BC",
            "5874897-12-31",
            "infinity",
            "-infinity",
            "0001-12-31 BC",
        ],
    ),
    (
        "timestamp",
        &[
            "4713-01-01 00:00:00 BC",
            "294276-12-31 23:59:59.999999",
            "infinity",
            "-infinity",
        ],
    ),
    (
        "timestamptz",
        &[
            "4713-01-01 00:00:00+00 BC",
            "294276-12-31 23:59:59.999999+00",
            "infinity",
            "-infinity",
            "2024-03-31 00:59:59.999999+00",
            "2024-03-31 01:00+00",
            "2024-10-27 00:30+00",
            "2024-10-27 01:30+00",
            "1883-11-18 16:58+00",
            "1800-01-01 00:00:00+00",
        ],
    ),
    ("time", &["00:00", "24:00:00", "23:59:59.999999"]),
    (
        "timetz",
        &["00:00+15:59:59", "24:00:00-15:59", "12:00:00.000001+05:30"],
    ),
    (
        "interval",
        &[
            "-178000000 years",
            "178000000 years",
            "1 mon -1 day 00:00:00.000001",
            "-00:00:01",
            "1 year -2 mons 3 days -04:05:06.7",
            "@ 1 year ago",
            "0",
        ],
    ),
    ("interval day to second(2)", &["1 day 02:03:04.56"]),
    (
        "text",
        &[
            "",
            "NULL",
            "null",
            " lead and trail ",
            "\\",
            "\\\\N",
            "{}",
            "{\"a\"}",
            "a,b",
            "$Q$ '' \"",
            "tab\tnl\nret\r",
            "\u{1F600} \u{10FFFF} \u{1}",
            "é e\u{301}",
        ],
    ),
    ("char(5)", &["", "a ", "abcde", " a", "é"]),
    ("varchar(3)", &["", "a  ", "'", "\\"]),
    ("name", &["", "a b", "\"", "x\\y"]),
    ("\"char\"", &["", "a", " ", "\\", "\\377", "\\200", "'"]),
    ("bytea", &["", "\\x00ff5c27220a", "\\x5c78"]),
    ("bool", &["t", "f"]),
    ("bit(8)", &["00000000", "10101010"]),
    (
        "bit varying",
        &[
            "",
            "1",
            "0000000000000000000000000000000000000000000000000000000000000000001",
        ],
    ),
    (
        "uuid",
        &[
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ],
    ),
    (
        "json",
        &[
            "null",
            "\"\"",
            " { \"b\":1, \"a\" : [ ],\"b\":2}",
            "1e1000",
            "\"\\u0000 \\ud83d\\ude00\\n\"",
            "{\"\": {}}",
        ],
    ),
    (
        "jsonb",
        &[
            "null",
            "\"\"",
            "{\"b\": 1.10, \"a\": []}",
            "1e100",
            "\"\\ud83d\\ude00\\n\\\\\"",
            "[null, \"null\"]",
        ],
    ),
    ("jsonpath", &["$.a[*] ? (@.b > \"x\")", "strict $"]),
    (
        "xml",
        &[
            "",
            "<a b=\"'\">x &amp; &lt;</a>",
            "text only",
            "<?xml version=\"1.0\"?><a/>",
            "<a/><b/>",
        ],
    ),
    (
        "inet",
        &["0.0.0.0/0", "::ffff:1.2.3.4", "2001:db8::1/64", "10.1.2.3"],
    ),
    ("cidr", &["0.0.0.0/0", "2001:db8::/32"]),
    ("macaddr", &["00:00:00:00:00:00"]),
    ("macaddr8", &["08:00:2b:01:02:03:04:05"]),
    ("point", &["(-0,NaN)", "(Infinity,1e-300)"]),
    ("line", &["{1,-1,0}", "{0,1,0.1}"]),
    ("lseg", &["[(0,0),(1,1)]"]),
    ("box", &["(1,1),(0,0)", "(0.1,0.2),(-0.3,-0)"]),
    ("path", &["[(0,0),(1,1)]", "((0,0),(1,1),(2,0))"]),
    ("polygon", &["((0,0),(1,1),(2,0))"]),
    ("circle", &["<(0.1,0),1e-7>"]),
    ("int4range", &["empty", "(,)", "[1,)", "(,5)"]),
    ("int8range", &["[1,9223372036854775807)"]),
    ("numrange", &["(1.10,NaN]", "[-Infinity,Infinity]"]),
    ("daterange", &["[-infinity,infinity]", "[0044-03-15 BC,)"]),
    ("tsrange", &["(2024-01-01 00:00:00.000001,infinity)"]),
    (
        "tstzrange",
        &["[2024-03-31 00:30+00,2024-03-31 01:30+00)", "empty"],
    ),
    ("int4multirange", &["{}", "{[1,3),[5,)}"]),
    ("nummultirange", &["{(,1.5],[2.50,3)}"]),
    (
        "tstzmultirange",
        &["{[2024-03-31 00:30+00,2024-03-31 01:30+00),[2024-10-27 00:30+00,)}"],
    ),
    ("datemultirange", &["{[2024-01-01,2024-02-01)}"]),
    ("tsvector", &["", "'a b':1A,2 'it''s':3 '\\\\':4 word"]),
    ("tsquery", &["", "'a b' <2> c:*AB & !'it''s'"]),
    ("pg_lsn", &["0/0", "FFFFFFFF/FFFFFFFF"]),
    ("pg_snapshot", &["10:20:10,14,15"]),
    ("txid_snapshot", &["10:20:10,14,15"]),
    ("xid", &["0", "4294967295"]),
    ("xid8", &["0", "18446744073709551615"]),
    ("cid", &["0", "4294967295"]),
    ("tid", &["(0,0)", "(4294967295,65535)"]),
    ("oid", &["0", "4294967295"]),
    ("oidvector", &["", "1 2 3"]),
    ("int2vector", &["", "1 2"]),
    (
        "regclass",
        &[
            "-",
            "pg_catalog.pg_class",
            "4294967295",
            "information_schema.tables",
        ],
    ),
    (
        "regtype",
        &[
            "-",
            "timestamp with time zone",
            "pg_catalog.\"char\"",
            "integer[]",
        ],
    ),
    ("regproc", &["-", "pg_catalog.now", "4294967295"]),
    ("regprocedure", &["-", "pg_catalog.lower(text)"]),
    ("regoper", &["0", "pg_catalog.||/"]),
    (
        "regoperator",
        &["0", "pg_catalog.+(integer,integer)", "!!(NONE,tsquery)"],
    ),
    ("regrole", &["-", "postgres", "pg_monitor"]),
    ("regnamespace", &["-", "pg_catalog"]),
    ("regcollation", &["-", "pg_catalog.\"C\""]),
    ("regconfig", &["pg_catalog.english", "-"]),
    ("regdictionary", &["pg_catalog.english_stem", "-"]),
    ("refcursor", &["", "a \"cursor\""]),
];

/// Whatever a session may have set.
const SETTINGS: [&str; 4] = [
    "",
    "set datestyle = 'German'; set timezone = 'Europe/Berlin'; set intervalstyle = 'iso_8601';
     set extra_float_digits = -15; set bytea_output = 'escape'; set search_path = information_schema",
    "set datestyle = 'Postgres, MDY'; set timezone = 'America/New_York'; set intervalstyle = 'postgres_verbose';
     set standard_conforming_strings = off; set backslash_quote = off; set escape_string_warning = off;
     set extra_float_digits = 0; set search_path = ''",
    "set datestyle = 'SQL, DMY'; set timezone = '+13:45'; set intervalstyle = 'sql_standard';
     set client_encoding = 'LATIN1'; set array_nulls = off; set xmloption = document;
     set transform_null_equals = on; set quote_all_identifiers = on; set xmlbinary = 'hex'",
];

/// What is not equal, or was not carried.
fn differences(fixture: &Fixture, name: &str, what: &str) -> Vec<String> {
    let reasons = rows(
        &fixture.left,
        "select op, sqlstate, message from sync_err_rec",
    );
    let left = table(&fixture.left, name);
    let right = table(&fixture.right, name);
    fixture.left.exec_superuser("delete from sync_err_rec");
    if reasons.is_empty() && left == right {
        return Vec::new();
    }
    let cut = |found: String| found.chars().take(900).collect::<String>();
    vec![cut(format!(
        "{what}: {reasons:?} {left:?} became {right:?}"
    ))]
}

fn every_edge(label: &str, mode: &str) {
    let fixture = linked(label);
    let mut wrong = Vec::new();
    let mut client = fixture.left.client();
    for (at, (kind, values)) in EDGES.iter().enumerate() {
        let name = format!("t{at}");
        // PostgreSQL makes no arrays of these in expressions.
        let element = if ["oidvector", "int2vector"].contains(kind) {
            "text"
        } else {
            kind
        };
        mirror(
            &fixture,
            &name,
            &format!("id int primary key, v {kind}, a {element}[]"),
            &mode_of(mode),
        );
        // Values are made under plain settings and captured under others.
        let quoted: Vec<String> = values
            .iter()
            .map(|v| format!("'{}'::{kind}", v.replace('\'', "''")))
            .collect();
        run(&mut client, "reset all");
        run(
            &mut client,
            &format!("create temp table v (id serial, v {kind})"),
        );
        for value in &quoted {
            run(&mut client, &format!("insert into v (v) values ({value})"));
        }
        let user = &fixture.left.user;
        for (setting, sql) in SETTINGS.iter().enumerate() {
            run(&mut client, sql);
            let base = setting * 100;
            run(
                &mut client,
                &format!(
                    "insert into {user}.{name} select {base} + id, v, null from pg_temp.v;
                     insert into {user}.{name} select {base}, null, array_agg(v::{element}) || null::{element} from pg_temp.v;
                     update {user}.{name} set a = array[v::{element}, null, v::{element}] where id > {base};
                     update {user}.{name} set a = array[a, a] where id > {base} + 1"
                ),
            );
            run(&mut client, "reset all");
        }
        run(&mut client, "drop table v");
        if mode == "queue" {
            deal(&fixture, "10000");
        }
        wrong.extend(differences(&fixture, &name, kind));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(queued(&fixture), 0);
}

fn mode_of(mode: &str) -> String {
    format!(r#"{{"mode": "{mode}"}}"#)
}

#[test]
fn the_edges_of_every_type_arrive_directly() {
    every_edge("edges", "async");
}

#[test]
fn the_edges_of_every_type_arrive_through_the_queue() {
    every_edge("edgesq", "queue");
}

/// Made by initdb, as PostgreSQL's own types are, but in another schema.
#[test]
fn types_of_the_information_schema_arrive() {
    let fixture = linked("infoschema");
    let number = "information_schema.cardinal_number";
    let word = "information_schema.yes_or_no";
    let columns = format!("id int primary key, n {number}, w {word}, ns {number}[], ws {word}[]");
    mirror(&fixture, "t", &columns, "{}");
    fixture
        .left
        .exec("insert into t values (1, 0, 'YES', '{1,NULL}', '{NO}'); insert into t values (2)");
    assert_eq!(
        rows(&fixture.left, "select sqlstate, message from sync_err_rec"),
        [""; 0]
    );
    assert_eq!(crate::support::common::same(&fixture, "t").len(), 2);
}

#[test]
fn numbers_of_full_precision_arrive() {
    let fixture = linked("precision");
    mirror(
        &fixture,
        "t",
        "id int primary key, n numeric, f float8, r float4",
        r#"{"mode": "sync"}"#,
    );
    fixture.left.exec(
        "insert into t values
           (1, (repeat('9', 131072) || '.' || repeat('7', 16383))::numeric, 1/3::float8, 1/3::float4),
           (2, ('0.' || repeat('0', 16382) || '1')::numeric, 2 ^ 0.5, 1e-40);
         insert into t select i, (random() * 1e9)::numeric ^ 5, random() * 10 ^ (i % 300), random()
           from generate_series(3, 500) i",
    );
    let exact = "select id, md5(n::text), scale(n), encode(float8send(f), 'hex'),
                   encode(float4send(r), 'hex') from t order by id";
    assert_eq!(rows(&fixture.left, exact), rows(&fixture.right, exact));
}

#[test]
fn arrays_keep_their_bounds_and_dimensions() {
    for mode in ["sync", "queue"] {
        let fixture = linked("bounds");
        for side in [&fixture.left, &fixture.right] {
            side.exec(
                "create domain grid as int[] check (array_ndims(value) <= 2);
                 create domain word as varchar(9);
                 create type pair as (a int[], b text);
                 create domain spots as pair[]",
            );
        }
        let columns =
            "id int primary key, i int[], t text[], g grid, gs grid[], ws word[], ps pair[],
                       sp spots, bx box[], j jsonb[]";
        mirror(&fixture, "t", columns, &mode_of(mode));
        fixture.left.exec(
            r#"insert into t values
                 (1, '[0:2]={1,NULL,3}', '[-1:0]={"NULL",null}', '[2:3][5:6]={{1,2},{3,4}}',
                  '{"{1,2}",NULL,"{}"}', '[3:4]={a,"b c"}',
                  array[row('[0:0]={5}', 'x,"y"')::pair, null], array[row('{}', '')::pair],
                  '[0:0]={(1,1),(0,0)}', array['{"a": ["x\\y"]}'::jsonb, null, 'null']),
                 (2, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'),
                 (3, '{{{1},{2}},{{3},{NULL}}}', '{{"",NULL},{"{}","\\\""}}', null, null, '{NULL}', null,
                  null, '{(1,1),(0,0);(2,2),(1,1)}', '{NULL}');
               update t set i = '[7:7]={1}' where id = 2; update t set id = id + 10"#,
        );
        assert!(
            deal(&fixture, "100"),
            "{:?}",
            rows(&fixture.left, "select message from sync_err_rec")
        );
        assert_eq!(crate::support::common::same(&fixture, "t").len(), 3);
        assert_eq!(queued(&fixture), 0);
    }
}

#[test]
fn what_the_remote_encoding_lacks_is_an_error() {
    let fixture = Fixture::new("lacks");
    let latin = rowsync_harness::Side {
        db: format!("{}_l", fixture.right.db),
        ..fixture.right.clone()
    };
    let db = &latin.db;
    let user = &latin.user;
    fixture.right.exec_superuser(&format!(
        "create database {db} template template0 encoding 'LATIN1' owner {user}"
    ));
    latin.exec_superuser(&format!("create schema authorization {user}"));
    fixture.link(&fixture.left, &latin, "dst", &[]);
    fixture
        .left
        .exec("create table t (id int primary key, v text); create table s (like t including all)");
    latin
        .exec("create table t (id int primary key, v text); create table s (like t including all)");
    fixture.left.exec(&format!(
        r#"select attach_sync('t', 'dst', '{user}.t', '{{"mode": "sync"}}');
           select attach_sync('s', 'dst', '{user}.s')"#
    ));
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t values (1, 'Größe ÿ'); insert into s values (1, 'é')",
    );
    refused(&mut client, "insert into t values (2, '✓')", "22P05");
    run(&mut client, "insert into s values (2, '✓'), (3, 'plain')");
    assert_eq!(
        records(&fixture),
        ["INSERT|22P05|1|pending", "INSERT|22P05|1|pending"]
    );
    assert_eq!(table(&latin, "t"), ["1|Größe ÿ"]);
    assert_eq!(table(&latin, "s"), ["1|é"]);
    assert_eq!(table(&fixture.left, "s").len(), 3);
    drop(client);
    fixture
        .right
        .exec_superuser(&format!("drop database {db} with (force)"));
}

#[test]
fn a_domain_that_refuses_null_goes_beside_a_composite() {
    let fixture = linked("beside");
    for side in [&fixture.left, &fixture.right] {
        side.exec(
            "create type pair as (a int, b text);
             create domain given as int check (value is not null);
             create domain word as text not null",
        );
    }
    for mode in ["async", "queue"] {
        let name = format!("t_{mode}");
        let options = format!(r#"{{"mode": "{mode}"}}"#);
        mirror(
            &fixture,
            &name,
            "id int primary key, g given, w word, p pair, ps pair[]",
            &options,
        );
        run(
            &mut fixture.left.client(),
            &format!(
                "insert into {name} values (1, 5, 'x', '(1,x)', '{{\"(2,y)\"}}');
                 insert into {name} select n, n, 'y', '(3,z)', null from generate_series(2, 4) n;
                 update {name} set p = '(4,)' where id > 2"
            ),
        );
        deal(&fixture, "100");
        assert_eq!(records(&fixture), [""; 0], "{mode}");
        let found = rows(&fixture.right, &format!("select * from {name} order by id"));
        let expected = [
            "1|5|x|(1,x)|{\"(2,y)\"}",
            "2|2|y|(3,z)|~",
            "3|3|y|(4,)|~",
            "4|4|y|(4,)|~",
        ];
        assert_eq!(found, expected, "{mode}");
    }
}

/// A key that PostgreSQL 18 has: no ON CONFLICT can rely on it.
#[test]
fn a_key_without_overlaps_is_refused_by_name() {
    let fixture = linked("overlaps");
    if fixture
        .left
        .query_one::<i32>("select current_setting('server_version_num')::int")
        < 180_000
    {
        return tell_what_is_missing("keys WITHOUT OVERLAPS");
    }
    let columns = "room int4range, during tstzrange, id int not null unique, v text,
        primary key (room, during without overlaps)";
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table t ({columns})"));
    }
    let mut client = fixture.left.client();
    for policy in ["overwrite", "error", "skip"] {
        let options = format!(r#"{{"on_conflict": "{policy}"}}"#);
        let error = refused(&mut client, &attach_sql(&fixture, "t", &options), "55000");
        assert_eq!(
            error.message(),
            "the key of table \"t\" is one WITHOUT OVERLAPS"
        );
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains("option \"key\"")),
            "{error:?}"
        );
    }
    // Made by hand it is refused at the first row.
    run(
        &mut client,
        &format!(
            "create trigger mine after insert on t for each row execute function sync_dml('dst', '{}', 't')",
            fixture.right.user
        ),
    );
    let insert = "insert into t values ('[1,2)', '[2024-01-01,2024-02-01)', 1, 'a')";
    let error = refused(&mut client, insert, "55000");
    assert!(error.message().contains("WITHOUT OVERLAPS"), "{error:?}");
    run(&mut client, "drop trigger mine on t");
    // The way out.
    let by_id = attach_sql(&fixture, "t", r#"{"key": ["id"], "mode": "sync"}"#);
    run(&mut client, &by_id);
    run(
        &mut client,
        &format!("{insert}; update t set v = 'b', during = '[2024-01-01,2024-03-01)'; select 1"),
    );
    assert_eq!(same(&fixture, "t").len(), 1);
    assert_eq!(rows(&fixture.right, "select id, v from t"), ["1|b"]);
    // A key of the target's alone is one of the kind: told, too.
    fixture
        .left
        .exec("create table u (room int4range, during tstzrange, primary key (room, during))");
    fixture.right.exec(
        "create table u (room int4range, during tstzrange, primary key (room, during without overlaps))",
    );
    let (mut client, notices) = fixture.left.client_with_notices();
    run(&mut client, &attach_sql(&fixture, "u", "{}"));
    let told = warnings(&notices);
    assert!(
        told.iter().any(|one| one.code().code() == "42P10"),
        "{told:?}"
    );
}
