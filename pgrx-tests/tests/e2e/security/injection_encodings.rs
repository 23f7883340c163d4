//! Bytes that are no characters, or characters whose bytes look like quotes and backslashes: nothing is cut,
//! nothing breaks out of a string, what cannot be converted is refused, and the session goes on.

use std::io::Write;
use std::process::{Command, Stdio};

use rowsync_harness::setup::Postgres;
use rowsync_harness::{Fixture, Side};

use crate::support::common::{linked, mirror, query, records, refused, rows, run, same, table};

/// In hexadecimal: lead bytes before a quote or a backslash in UTF-8, GBK, SJIS and BIG5, overlong forms,
/// surrogates, beginnings and ends of characters, bytes that are never any.
const NO_TEXT: [&str; 18] = [
    "bf27",
    "bf5c27",
    "e55c",
    "c027",
    "c0a7",
    "c1a7",
    "e080a7",
    "e08027",
    "eda080",
    "f0",
    "f4908080",
    "f8a7a7a7a7",
    "835c27",
    "a15c27",
    "815c27",
    "61c2",
    "27bf3b2d2d",
    "ff",
];

const COLUMNS: &str = "k text primary key, v text, a text[], b bytea";

/// A further database of a side, in another encoding, with a schema and the extension.
struct Encoded(Side);

impl Encoded {
    fn new(side: &Side, encoding: &str) -> Encoded {
        let db = format!("{}_{}", side.db, encoding.to_lowercase());
        let user = &side.user;
        let of = Side {
            db: db.clone(),
            ..side.clone()
        };
        side.exec_superuser(&format!(
            "create database {db} template template0 encoding '{encoding}' owner {user}"
        ));
        of.exec_superuser(&format!(
            "create schema authorization {user}; create extension pg_rowsync schema public;
             grant usage on foreign data wrapper pg_rowsync to {user};
             grant create on database {db} to {user}"
        ));
        Encoded(of)
    }
}

impl Drop for Encoded {
    fn drop(&mut self) {
        if let Ok(mut client) = self.0.cluster.superuser("postgres") {
            let _ = client.batch_execute(&format!(
                "drop database if exists {} with (force)",
                self.0.db
            ));
        }
    }
}

fn attach(right: &Side, mode: &str) -> String {
    let options = format!(r#"{{"mode": "{mode}"}}"#);
    format!(
        "select attach_sync('t', 'dst', '{}.t', '{options}')",
        right.user
    )
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let fixture = Fixture::new("injbytes");
    let ascii = Encoded::new(&fixture.left, "SQL_ASCII");
    let there = Encoded::new(&fixture.right, "SQL_ASCII");
    let left = &ascii.0;
    left.exec(&format!("create table t ({COLUMNS})"));
    let mut client = left.client();
    let backend = query(&mut client, "select pg_backend_pid()");
    for right in [&fixture.right, &there.0] {
        right.exec(&format!("create table t ({COLUMNS})"));
        fixture.link(left, right, "dst", &[]);
        for mode in ["async", "sync", "queue"] {
            run(&mut client, &attach(right, mode));
            run(
                &mut client,
                "truncate t; insert into t values ('there', 'é', '{ü}', '\\xbf27')",
            );
            for bytes in NO_TEXT {
                let text = format!("convert_from('\\x{bytes}', 'SQL_ASCII')");
                for sql in [
                    format!("insert into t values ({text})"),
                    format!("insert into t values ('k', {text})"),
                    format!("insert into t values ('k', 'v', array['a', {text}])"),
                    format!("update t set v = 'x' || {text}"),
                    format!("update t set k = {text} || 'x'"),
                    format!("insert into t values ('1'), ('2'), ({text})"),
                ] {
                    refused(&mut client, &sql, "22021");
                }
            }
            run(
                &mut client,
                "insert into t values ('after', '''ソ\u{ff07}')",
            );
            if mode == "queue" {
                assert!(left.query_one::<bool>("select deal_sync_err_rec(1000)"));
            }
            let found = table(left, "t");
            assert_eq!(found, table(right, "t"), "{mode}");
            assert_eq!(found.len(), 2);
            run(&mut client, "select detach_sync('t', 'dst')");
        }
        run(&mut client, "drop server dst cascade");
        assert_eq!(
            query(&mut left.superuser(), "select * from sync_err_rec"),
            [""; 0]
        );
    }
    assert_eq!(query(&mut client, "select pg_backend_pid()"), backend);
}

#[test]
fn names_that_are_no_text_are_refused() {
    let fixture = Fixture::new("injnotext");
    let ascii = Encoded::new(&fixture.left, "SQL_ASCII");
    let left = &ascii.0;
    fixture.link(left, &fixture.right, "dst", &[]);
    let mut client = left.client();
    for bytes in NO_TEXT {
        let name = format!("convert_from('\\x{bytes}', 'SQL_ASCII')");
        run(
            &mut client,
            &format!(
                "do $$ begin execute format('create table %I (id int primary key)', {name});
                   execute format('create table col (id int primary key, %I int)', {name});
                   execute format('create table good (id int primary key)'); end $$"
            ),
        );
        let attach = "select attach_sync(c.oid, 'dst', 'x') from pg_class c where relkind = 'r'
                        and relnamespace = current_user::regnamespace and relname";
        refused(&mut client, &format!("{attach} = {name}"), "22021");
        refused(&mut client, &format!("{attach} = 'col'"), "22021");
        refused(
            &mut client,
            &format!("select attach_sync('good', {name})"),
            "22021",
        );
        refused(
            &mut client,
            &format!("select attach_sync('good', 'dst', {name})"),
            "22021",
        );
        refused(
            &mut client,
            &format!("select detach_sync('good', {name})"),
            "22021",
        );
        refused(
            &mut client,
            &format!("select sync_change_sql({name}, '{{}}')"),
            "22021",
        );
        // Written by hand, its arguments are read when it fires.
        run(
            &mut client,
            &format!(
                "do $$ begin execute format('create trigger s after insert on good for each row
                   execute function sync_dml(''dst'', %L, ''t'')', {name}); end $$"
            ),
        );
        refused(&mut client, "insert into good values (1)", "22021");
        run(
            &mut client,
            &format!("do $$ begin execute format('drop table %I, col, good', {name}); end $$"),
        );
    }
    assert_eq!(
        query(&mut left.superuser(), "select * from sync_err_rec"),
        [""; 0]
    );
}

#[test]
fn characters_that_the_other_side_lacks_are_not_replaced() {
    let fixture = linked("injlacks");
    let values = [
        "ソ'表\\能",
        "\u{ff07}; --",
        "Ё'\\",
        "é'\\",
        "中'\\",
        "ʼ'",
        "\u{1f600}'",
    ];
    for encoding in [
        "EUC_JP",
        "EUC_CN",
        "EUC_KR",
        "LATIN1",
        "WIN1252",
        "KOI8R",
        "SQL_ASCII",
    ] {
        let there = Encoded::new(&fixture.right, encoding);
        there
            .0
            .exec(&format!("create table t ({COLUMNS}, ascii text)"));
        fixture
            .left
            .exec("drop server dst cascade; drop table if exists t");
        fixture.link(&fixture.left, &there.0, "dst", &[]);
        fixture
            .left
            .exec(&format!("create table t ({COLUMNS}, ascii text)"));
        fixture.left.exec(&attach(&there.0, "sync"));
        let mut client = fixture.left.client();
        let mut arrived = 0;
        for value in values {
            let value = value.replace('\'', "''");
            let sql =
                format!("insert into t values ('{value}', '{value}', array['{value}'], '\\x27')");
            match client.batch_execute(&sql) {
                Ok(()) => arrived += 1,
                Err(error) => assert_eq!(error.code().map(|c| c.code()), Some("22P05"), "{value}"),
            }
        }
        // Each database has an order of its own.
        let [found, there] = [&fixture.left, &there.0].map(|side| {
            let mut found = table(side, "t");
            found.sort();
            found
        });
        assert_eq!(found, there, "{encoding}");
        assert_eq!(found.len(), arrived, "{encoding}");
        assert!(
            arrived > 0 && (arrived < values.len() || encoding == "SQL_ASCII"),
            "{encoding}"
        );
    }
}

/// psql with these bytes as its script, in a client encoding; what it prints.
fn psql(side: &Side, encoding: &str, script: &[u8]) -> Vec<u8> {
    let program = Postgres::find().expect("PostgreSQL").program("psql");
    let mut child = Command::new(program)
        .args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-h",
            "127.0.0.1",
            "-d",
            &side.db,
            "-U",
            "postgres",
        ])
        .args(["-p", &side.cluster.port().to_string()])
        .env("PGPASSWORD", side.cluster.superuser_password())
        .env("PGCLIENTENCODING", encoding)
        .env("PGOPTIONS", format!("-c search_path={},public", side.user))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql");
    child
        .stdin
        .take()
        .expect("its input")
        .write_all(script)
        .expect("a script");
    child.wait_with_output().expect("its output").stdout
}

/// Characters whose second byte is a backslash, and the lead bytes that would swallow a quote.
const CLIENTS: [(&str, &[u8], &[u8]); 6] = [
    ("SJIS", b"\x83\x5c\x95\x5c", b"\x83"),
    ("SHIFT_JIS_2004", b"\x83\x5c\x95\x5c", b"\x95"),
    ("BIG5", b"\xa5\x5c\xb3\x5c", b"\xa5"),
    ("GBK", b"\x81\x5c\xbf\x5c", b"\xbf"),
    ("GB18030", b"\x81\x5c\xbf\x5c", b"\x81"),
    ("UHC", b"\xb0\xa1\x81\x41", b"\xbf"),
];

#[test]
fn characters_that_end_in_a_backslash_break_out_of_nothing() {
    let fixture = linked("injclient");
    mirror(
        &fixture,
        "t",
        "k text primary key, v text",
        r#"{"mode": "queue"}"#,
    );
    for side in [&fixture.left, &fixture.right] {
        side.exec_superuser(
            "create table public.victim (v text); insert into public.victim values ('alive')",
        );
    }
    for (encoding, characters, lead) in CLIENTS {
        for strings in ["on", "off"] {
            let mut script = format!("set standard_conforming_strings = {strings};\n").into_bytes();
            let mut statement = |parts: &[&[u8]]| {
                script.extend(b"insert into t values (E'".iter());
                parts.iter().for_each(|part| script.extend(part.iter()));
                script.extend(b"');\n".iter());
            };
            statement(&[b"a', E'", characters, b"''; drop table public.victim; --"]);
            statement(&[characters, b"', E'\\\\", characters]);
            // Not a character: refused before anything is read from it.
            statement(&[b"bad", lead, b"', '; drop table public.victim; --"]);
            psql(&fixture.left, encoding, &script);
            assert_eq!(table(&fixture.left, "t").len(), 2, "{encoding} {strings}");
            // Read and run by hand in that encoding.
            let shown = psql(
                &fixture.left,
                encoding,
                b"select dst_query || ';' from sync_err_rec order by id",
            );
            let mut hand = format!("set standard_conforming_strings = {strings};\n").into_bytes();
            hand.extend(&shown);
            psql(&fixture.right, encoding, &hand);
            same(&fixture, "t");
            fixture.right.exec("truncate t");
            assert!(
                crate::support::common::deal(&fixture, "100"),
                "{encoding}: {:?}",
                records(&fixture)
            );
            same(&fixture, "t");
            fixture.left.exec("truncate t");
            assert!(crate::support::common::deal(&fixture, "100"));
            for side in [&fixture.left, &fixture.right] {
                assert_eq!(
                    rows(side, "select * from public.victim"),
                    ["alive"],
                    "{encoding}"
                );
            }
        }
    }
}

#[test]
fn a_target_that_turns_its_session_to_another_encoding_spoils_no_later_change() {
    let fixture = linked("injturned");
    for table in ["t", "other"] {
        mirror(&fixture, table, "k text primary key, v text", "{}");
    }
    let user = &fixture.right.user;
    fixture.right.exec(&format!(
        "create function turn() returns trigger language plpgsql as $f$ begin
           perform set_config('client_encoding', 'LATIN1', false); return new; end $f$;
         create trigger turn before insert on t for each row execute function {user}.turn()"
    ));
    let mut client = fixture.left.client();
    run(&mut client, "insert into other values ('ä', 'é')");
    run(&mut client, "insert into t values ('a', 'b')");
    run(
        &mut client,
        "insert into other values ('ö', 'ü'); update t set v = 'Größe'",
    );
    run(&mut client, "delete from other where k = 'ä'");
    assert_eq!(records(&fixture), [""; 0]);
    assert_eq!(same(&fixture, "t"), ["a|Größe"]);
    assert_eq!(same(&fixture, "other"), ["ö|ü"]);
}
