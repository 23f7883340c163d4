//! Which of the server's own settings can alter what a value means on its way: each setting of the categories
//! that are about clients and compatibility is either pinned or named here with its reason.

use std::collections::BTreeMap;

use postgres::Client;
use rowsync_harness::Side;

use crate::support::common::{attach, deal, linked, query, rows, run};

const CATEGORIES: &str = "(category like 'Client Connection Defaults%'
    or category like 'Version and Platform Compatibility%')
    and context in ('user', 'superuser', 'backend', 'superuser-backend')";

/// Settings that a remote session has as the role, the database or the server says.
const NOT_PINNED_THERE: &[(&str, &str)] = &[
    (
        "backslash_quote",
        "about quotes in literals; no statement there has a literal with one in it",
    ),
    ("check_function_bodies", "about CREATE FUNCTION"),
    ("client_min_messages", "what is said goes nowhere"),
    ("createrole_self_grant", "about CREATE ROLE"),
    ("default_toast_compression", "how values are stored"),
    ("escape_string_warning", "a message"),
    ("event_triggers", "about DDL"),
    (
        "gin_fuzzy_search_limit",
        "rows are looked for by unique keys, whose indexes are no GIN",
    ),
    ("gin_pending_list_limit", "when an index is tidied"),
    ("icu_validation_level", "about CREATE COLLATION"),
    ("lc_messages", "SQLSTATEs are read, not messages"),
    (
        "lc_numeric",
        "to_char and its kin, in functions of the target's own",
    ),
    (
        "lc_time",
        "to_char and its kin, in functions of the target's own",
    ),
    ("lo_compat_privileges", "about large objects"),
    (
        "restrict_nonsystem_relation_kind",
        "what is forbidden there is forbidden",
    ),
    (
        "session_replication_role",
        "which triggers fire there is that server's choice",
    ),
    (
        "synchronize_seqscans",
        "the order of rows of a scan, on which nothing depends",
    ),
    ("timezone_abbreviations", "text of ours carries offsets"),
    ("vacuum_cost_delay", "about VACUUM"),
];

/// Beginnings of names of more of them.
const FAMILIES_NOT_PINNED: &[(&str, &str)] = &[
    ("vacuum_", "about VACUUM"),
    (
        "default_text_search_config",
        "which text search functions of the target's own use",
    ),
];

/// Settings that no test here alters.
const NOT_TRIED: &[&str] = &[
    "client_encoding",
    "create_role_self_grant",
    "createrole_self_grant",
    "default_table_access_method",
    "default_tablespace",
    "dynamic_library_path",
    "extension_control_path",
    "jit_provider",
    "local_preload_libraries",
    "restrict_nonsystem_relation_kind",
    // Pinned to the one value that it would be altered to.
    "row_security",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "transaction_deferrable",
    "transaction_isolation",
    "transaction_read_only",
];

/// Another value for each setting than it has.
fn others(client: &mut Client) -> BTreeMap<String, String> {
    let known = client
        .query(
            &format!(
                "select name, vartype, setting, coalesce(enumvals, '{{}}'), coalesce(min_val, ''),
                   coalesce(max_val, '') from pg_settings where {CATEGORIES} order by name"
            ),
            &[],
        )
        .expect("settings");
    let mut others = BTreeMap::new();
    for row in known {
        let (name, kind, value): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let (words, least, most): (Vec<String>, String, String) =
            (row.get(3), row.get(4), row.get(5));
        if NOT_TRIED.contains(&name.as_str()) {
            continue;
        }
        let other = match kind.as_str() {
            "bool" => if value == "on" { "off" } else { "on" }.to_owned(),
            "enum" => match words.into_iter().find(|word| *word != value) {
                Some(word) => word,
                None => continue,
            },
            "integer" | "real" => {
                if value == least {
                    most
                } else {
                    least
                }
            }
            _ => match name.as_str() {
                "search_path" => "public",
                "TimeZone" => "Asia/Tokyo",
                "DateStyle" => "German",
                "timezone_abbreviations" => "India",
                "default_text_search_config" => "pg_catalog.german",
                locale if locale.starts_with("lc_") => "POSIX",
                other => panic!("setting \"{other}\" is new: pin it, or say why not"),
            }
            .to_owned(),
        };
        others.insert(name, other);
    }
    assert!(others.len() > 30, "{others:?}");
    others
}

fn reason(name: &str) -> Option<&'static str> {
    let exact = NOT_PINNED_THERE.iter().find(|(own, _)| *own == name);
    let exact = exact.or_else(|| {
        FAMILIES_NOT_PINNED
            .iter()
            .find(|(own, _)| name.starts_with(own))
    });
    exact.map(|(_, reason)| *reason)
}

#[test]
fn what_can_alter_a_value_there_is_pinned_whatever_the_role_has() {
    let fixture = linked("pinnedthere");
    let Side { user, .. } = &fixture.right;
    fixture.left.exec("create table t (id int primary key)");
    fixture
        .right
        .exec("create table t (id int primary key); create table seen (name text, setting text)");
    attach(&fixture, "t", r#"{"mode": "sync"}"#);
    fixture.right.exec(&format!(
        "create function see() returns trigger language plpgsql as $$ begin
           insert into {user}.seen select name, setting from pg_catalog.pg_settings;
           return null; end $$;
         create trigger see after insert on t for each statement execute function see();
         alter table t enable always trigger see"
    ));
    let mut admin = fixture.right.superuser();
    run(&mut admin, &format!("grant pg_read_all_settings to {user}"));
    let others = others(&mut admin);
    for (name, other) in &others {
        run(
            &mut admin,
            &format!("alter role {user} set {name} = '{other}'"),
        );
    }
    fixture.left.exec("insert into t values (1)");
    // As the role has them, whatever they are shown as.
    let shown = rows(&fixture.right, "select name || '=' || setting from seen");
    let shown: BTreeMap<&str, &str> = shown
        .iter()
        .filter_map(|line| line.split_once('='))
        .collect();
    let mut role = fixture.right.client();
    for name in others.keys() {
        let own = query(
            &mut role,
            &format!("select setting from pg_settings where name = '{name}'"),
        );
        let is_pinned = shown[name.as_str()] != own[0];
        match reason(name) {
            Some(reason) => assert!(!is_pinned, "{name} is pinned, and not: {reason}"),
            None => assert!(
                is_pinned,
                "{name} is neither pinned there nor has it a reason"
            ),
        }
    }
}

const COLUMNS: &str = r#"id timestamptz primary key, b bool, i8 int8, f4 float4, f8 float8, n numeric, c char(5),
    nm name, t text, ba bytea, d date, tm time, tmz timetz, ts timestamp, tsz timestamptz, iv interval, u uuid,
    j json, jb jsonb, x xml, ip inet, bits varbit, p point, r int4range, rs tstzrange, mr tstzmultirange,
    m money, oi oid, reg regclass, ty regtype, tsza timestamptz[], bas bytea[], iva interval[], f8s float8[],
    pr pair, prs pair[], sp span, an text[]"#;

#[test]
fn what_is_captured_is_one_text_whatever_the_session_has() {
    let fixture = linked("pinnedhere");
    for side in [&fixture.left, &fixture.right] {
        side.exec("create type pair as (a timestamptz, b bytea, c interval); create domain span as tstzrange");
        side.exec(&format!("create table t ({COLUMNS})"));
        side.exec_superuser("create table public.\"Odd\" (id int)");
    }
    attach(&fixture, "t", r#"{"mode": "queue"}"#);
    fixture.left.exec(&format!(
        r#"create table v ({COLUMNS});
        insert into v values ('2024-02-03 04:05:06.789+00', true, 1, 0.1::float4 + 0.2::float4, 1/3::float8, 1.50, 'ab',
          'n', 'text', '\x00ff5c27', '2024-02-03', '01:02:03', '23:59:59.5+05:30', '2024-02-03 04:05:06.789',
          '2024-07-03 04:05:06.789+00', '-1 year 2 mons -3 days 04:05:06.7', '00000000-0000-0000-0000-00000000000a',
          '{{"a": 1}}', '{{"b": 1}}', '<a>x</a>', '10.0.0.1/8', B'10011', '(1.1,-2.2)', '[1,5)',
          '["2024-02-03 00:00+00","2024-03-04 00:00+00")', '{{["2024-02-03 00:00+00",)}}', 1234.56, 4294967295,
          'public."Odd"', 'timestamptz', array['2024-02-03 04:05:06+00'::timestamptz], array['\x00ff'::bytea],
          array['1 day 02:00'::interval], array[1/3::float8], row('2024-07-03 04:05:06.789+00', '\x01', '1 day'),
          array[row('2024-07-03 04:05:06.789+00', '\x01', '1 day')::pair],
          '["2024-02-03 00:00+00","2024-03-04 00:00+00")', array['NULL', null, 'a b']);
        insert into v (id, tsz) values ('infinity', '-infinity'), ('0044-03-15 12:00+00 BC', '12345-01-01 01:00+00'),
          ('0001-12-31 23:59:59.9+00', '9999-12-31 23:59:59+00')"#,
    ));
    let mut client = fixture.left.superuser();
    run(
        &mut client,
        &format!("set search_path = {}, public", fixture.left.user),
    );
    let others = others(&mut client);
    let mut capture = |setting: &str| {
        run(
            &mut client,
            &format!("begin; {setting}; insert into t select * from v; commit"),
        );
        let queued = rows(
            &fixture.left,
            "select dst_query from sync_err_rec order by id",
        );
        // Drained, they are the same rows there as here.
        fixture.left.exec_superuser(&format!(
            "delete from sync_err_rec; set session_replication_role = replica; delete from {}.t",
            fixture.left.user
        ));
        queued
    };
    let usual = capture("set local timezone = 'UTC'");
    assert_eq!(usual.len(), 4);
    for (name, other) in &others {
        // Under it no trigger fires; a path that leads elsewhere finds no table.
        if name == "session_replication_role" || name == "search_path" {
            continue;
        }
        assert_eq!(
            capture(&format!("set local {name} = '{other}'")),
            usual,
            "{name}"
        );
    }
    let everything: Vec<String> = others
        .iter()
        .filter(|(name, _)| *name != "session_replication_role" && *name != "search_path")
        .map(|(name, other)| format!("set local {name} = '{other}'"))
        .collect();
    assert_eq!(capture(&everything.join("; ")), usual);
    run(
        &mut client,
        "set timezone = 'America/New_York'; set bytea_output = 'escape'",
    );
    run(&mut client, "insert into t select * from v");
    assert!(
        deal(&fixture, "100"),
        "{:?}",
        rows(&fixture.left, "select message from sync_err_rec")
    );
    crate::support::common::same(&fixture, "t");
}

/// Pairs of types in which a point in time would take the writer's zone with it, as `to`, and as what it is.
#[test]
fn an_instant_arrives_as_one_value_whoever_writes_it_and_in_whatever_number() {
    for (label, to) in [
        ("instts", "timestamp"),
        ("instdate", "date"),
        ("insttime", "time"),
        ("insttext", "text"),
        ("instvc", "varchar(40)"),
        ("insttimetz", "timetz"),
    ] {
        let fixture = linked(label);
        fixture
            .left
            .exec("create table t (id int primary key, at timestamptz, v int)");
        fixture.right.exec(&format!(
            "create table t (id int primary key, at {to}, v int)"
        ));
        attach(&fixture, "t", "{}");
        let mut client = fixture.left.client();
        for (at, zone) in ["UTC", "Asia/Tokyo", "America/New_York"]
            .into_iter()
            .enumerate()
        {
            let from = at * 10_000;
            run(&mut client, &format!("set timezone = '{zone}'"));
            for statement in [
                format!("insert into t values ({from}, '2024-07-01 23:30:00+00')"),
                format!(
                    "insert into t select g, '2024-07-01 23:30:00+00'
                       from generate_series({from} + 1, {from} + 1000) g"
                ),
                format!("update t set v = 1 where id = {from}"),
                format!("update t set v = 2 where id between {from} + 500 and {from} + 1000"),
            ] {
                run(&mut client, &statement);
            }
        }
        assert_eq!(
            rows(&fixture.left, "select message from sync_err_rec"),
            [""; 0],
            "{to}"
        );
        assert_eq!(
            rows(&fixture.right, "select count(*), count(distinct at) from t"),
            ["3003|1"],
            "{to}"
        );
    }
}

#[test]
fn a_row_is_found_by_a_point_in_time_whoever_writes_it() {
    for (label, from, to) in [
        ("keyts", "timestamptz", "timestamp"),
        ("keytext", "timestamptz", "text"),
        ("keyrange", "tstzrange", "tsrange"),
        ("keybytes", "bytea", "text"),
    ] {
        let fixture = linked(label);
        fixture
            .left
            .exec(&format!("create table t (k {from} primary key, v int)"));
        fixture
            .right
            .exec(&format!("create table t (k {to} primary key, v int)"));
        attach(&fixture, "t", r#"{"mode": "queue"}"#);
        let value = |n: i32| match from {
            "bytea" => format!(r"'\x00ff0{n}'::bytea"),
            "tstzrange" => format!("tstzrange('2024-07-0{n} 23:30+00', '2024-08-01 00:00+00')"),
            _ => format!("'2024-07-0{n} 23:30+00'::timestamptz"),
        };
        let one = value(1);
        let two = value(2);
        let mut client = fixture.left.client();
        run(
            &mut client,
            &format!("set timezone = 'Asia/Tokyo'; insert into t values ({one}, 1), ({two}, 1)"),
        );
        run(
            &mut client,
            &format!(
                "set timezone = 'America/New_York'; set bytea_output = 'escape';
                 update t set v = 2 where k = {one}; delete from t where k = {two}"
            ),
        );
        assert!(
            deal(&fixture, "100"),
            "{from}: {:?}",
            rows(&fixture.left, "select message from sync_err_rec")
        );
        assert_eq!(
            rows(&fixture.right, "select v from t"),
            ["2"],
            "{from} into {to}"
        );
    }
}

/// The version as text: `2024-07-02 08:00+09` is larger than `2024-07-01 23:30+00`, and older.
#[test]
fn the_newest_is_the_newest_whatever_zone_its_writer_has() {
    let fixture = linked("newestzone");
    fixture
        .left
        .exec("create table t (id int primary key, v text, at timestamptz)");
    fixture
        .right
        .exec("create table t (id int primary key, v text, at timestamp)");
    attach(
        &fixture,
        "t",
        r#"{"mode": "sync", "on_conflict": "newest", "version_column": "at"}"#,
    );
    let mut client = fixture.left.client();
    run(
        &mut client,
        "set timezone = 'Asia/Tokyo'; insert into t values (1, 'older', '2024-07-01 23:00+00')",
    );
    run(
        &mut client,
        "set timezone = 'UTC'; update t set v = 'newer', at = '2024-07-01 23:30+00'",
    );
    assert_eq!(
        rows(&fixture.right, "select v, at from t"),
        ["newer|2024-07-01 23:30:00"]
    );
}

/// Of equal versions the larger row as text wins, which must be one text on both sides.
#[test]
fn two_rows_of_one_version_are_told_apart_alike_on_both_sides() {
    let fixture = linked("ties");
    fixture.link(&fixture.right, &fixture.left, "dst", &[]);
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table t (id int primary key, b bytea, at timestamptz, ver int)");
    }
    for (side, other) in [
        (&fixture.left, &fixture.right),
        (&fixture.right, &fixture.left),
    ] {
        side.exec(&format!(
            r#"select attach_sync('t', 'dst', '{}.t',
                 '{{"mode": "queue", "on_conflict": "newest", "version_column": "ver"}}')"#,
            other.user
        ));
    }
    let user = &fixture.right.user;
    let db = &fixture.right.db;
    fixture.right.exec_superuser(&format!(
        "alter role {user} set bytea_output = 'escape'; alter database {db} set timezone = 'Asia/Tokyo';
         alter role {user} set quote_all_identifiers = on"
    ));
    // As hexadecimal digits the first is smaller, as escapes the larger one.
    fixture
        .left
        .exec(r"insert into t values (1, '\x5a', '2024-07-01 00:00+00', 5)");
    fixture
        .right
        .exec(r"insert into t values (1, '\xff', '2024-07-01 00:00+00', 5)");
    fixture
        .left
        .exec(r"insert into t values (2, '\x61', '2024-07-01 20:00+00', 5)");
    fixture
        .right
        .exec(r"insert into t values (2, '\x61', '2024-07-02 01:00+00', 5)");
    assert!(deal(&fixture, "100"));
    assert!(
        fixture
            .right
            .query_one::<bool>("select deal_sync_err_rec(100)")
    );
    let all = "select id, encode(b, 'hex'), extract(epoch from at) from t order by 1";
    assert_eq!(rows(&fixture.left, all), rows(&fixture.right, all));
}
