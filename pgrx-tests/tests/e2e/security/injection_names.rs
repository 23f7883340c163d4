//! Names that carry SQL stay names: of servers, schemas, tables, columns, enum types and labels, roles and
//! sessions, whatever either side makes of backslashes in strings.

use postgres::Client;
use rowsync_harness::Fixture;

use crate::support::common::{deal, linked, query, queued, refused, rows, run};

/// What would do harm if one of the usual mistakes were made with it.
const NAMES: [&str; 12] = [
    r#"x"; drop table public.victim; --"#,
    r#"x'; drop table public.victim; --"#,
    r#"x\'; drop table public.victim; --"#,
    r#"x\"; drop table public.victim; --"#,
    r#"'); drop table public.victim; select ('"#,
    "ends with a backslash\\",
    "$$; drop table public.victim; $$ $q$",
    "%s %I %L {} {0} $1 ${x} %n :v :'v'",
    "*/ drop table public.victim /* -- \n;",
    "\t\n\r\u{1}\u{7f}'\"\\ ",
    r#"U&"\0022; drop" E'\''"#,
    "ééééééééééééééééééééééééééééééé\"",
];

const POLICIES: [&str; 4] = ["overwrite", "error", "skip", "newest"];

fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// A table on either side that the names are after, and backslashes that mean something in the strings of
/// the remote's sessions.
fn with_victims(fixture: &Fixture) {
    for side in [&fixture.left, &fixture.right] {
        side.exec_superuser(&format!(
            "create table public.victim (v text); insert into public.victim values ('alive');
             alter table public.victim owner to {0}; alter role {0} set backslash_quote = on",
            side.user
        ));
    }
    fixture.right.exec_superuser(&format!(
        "alter role {} set standard_conforming_strings = off",
        fixture.right.user
    ));
}

#[track_caller]
fn victims_live(fixture: &Fixture) {
    for side in [&fixture.left, &fixture.right] {
        assert_eq!(rows(side, "select * from public.victim"), ["alive"]);
    }
}

fn strings(client: &mut Client, standard: bool) {
    run(
        client,
        &format!("set standard_conforming_strings = {standard}"),
    );
}

/// Server, both schemas, tables, types and labels, the local key and the remote payload have this name.
fn create(fixture: &Fixture, name: &str) {
    let n = ident(name);
    let label = literal(name);
    fixture.link(&fixture.left, &fixture.right, &n, &[]);
    for (side, table, kind, [key, value]) in [
        (
            &fixture.left,
            n.clone(),
            format!("{n}.{n}"),
            [n.as_str(), "v"],
        ),
        (
            &fixture.right,
            format!("{n}.{n}"),
            n.clone(),
            ["k", n.as_str()],
        ),
    ] {
        side.exec_superuser(&format!("create schema {n} authorization {}", side.user));
        // A table brings a type of its name: the enum is in the other schema.
        side.exec(&format!(
            "create type {kind} as enum ({label}, 'b');
             create table {table} ({key} text, e {kind}, {value} text, n int, primary key ({key}, e))"
        ));
    }
}

fn attach(client: &mut Client, name: &str, mode: &str, policy: &str) {
    let target = format!("{0}.{0}", ident(name));
    client
        .execute(
            "select attach_sync($1::text::regclass, $2, $3, jsonb_build_object('mode', $4::text,
                'on_conflict', $5::text, 'rename', jsonb_build_object($2::text, 'k', 'v', $2::text),
                'key', jsonb_build_array($2::text, 'e'), 'columns', jsonb_build_array('n', 'v', $2::text, 'e'))
                || case $5::text when 'newest' then '{\"version_column\": \"n\"}' else '{}' end::jsonb)",
            &[&ident(name), &name, &target, &mode, &policy],
        )
        .unwrap_or_else(|error| panic!("{name}: {error:?}"));
}

/// Statements of every form, with the name as value too.
fn write(client: &mut Client, name: &str, policy: &str) {
    let t = ident(name);
    let l = literal(name);
    run(
        client,
        &format!(
            "truncate {t}; insert into {t} values ({l}, {l}, {l}, 1), ('b', 'b', 'x', 1);
             insert into {t} values ('c', {l}, {l}, 1)"
        ),
    );
    run(
        client,
        &format!("update {t} set v = {l} || v, n = 2 where {t}.{t} = {l} and e = {l}"),
    );
    run(
        client,
        &format!("update {t} set {t} = 'd' || {l}, n = 3 where {t}.{t} = 'b'"),
    );
    run(
        client,
        &format!("update {t} set v = v || {l}, n = 4; delete from {t} where {t}.{t} = 'c'"),
    );
    if policy == "overwrite" || policy == "newest" {
        run(
            client,
            &format!("insert into {t} values ('z', 'b', {l}, 5), ('y', 'b', {l}, 5)"),
        );
    }
}

#[test]
fn names_that_carry_sql_stay_names() {
    let fixture = Fixture::new("injnames");
    with_victims(&fixture);
    let mut client = fixture.left.client();
    for (at, name) in NAMES.iter().enumerate() {
        create(&fixture, name);
        let t = ident(name);
        let target = format!("{0}.{0}", ident(name));
        let all = |table: &str| format!("select t::text from {table} t order by 1");
        // Over all names, each mode meets each policy.
        for (turn, mode) in ["async", "sync", "queue"].into_iter().enumerate() {
            let policy = POLICIES[(at + turn) % POLICIES.len()];
            {
                strings(&mut client, (at / POLICIES.len() + turn).is_multiple_of(2));
                attach(&mut client, name, mode, policy);
                // A row that is met: conflicts are told by the names as well.
                fixture.right.exec(&format!(
                    "truncate {target};
                     insert into {target} values ('z', 'b', 'met', 0), ('y', 'b', 'met', 0)"
                ));
                run(&mut client, &format!("truncate {t}"));
                write(&mut client, name, policy);
                if mode == "queue" {
                    by_hand(&fixture, name);
                    assert!(deal(&fixture, "1000"), "{name} {policy}");
                }
                assert_eq!(queued(&fixture), 0, "{name} {policy} {mode}");
                let found = rows(&fixture.left, &all(&t));
                assert_eq!(
                    found,
                    rows(&fixture.right, &all(&target)),
                    "{name} {policy} {mode}"
                );
                assert!(found.len() >= 2);
                let known = query(
                    &mut fixture.left.superuser(),
                    &format!(
                        "select count(*) from sync_status where server = {}",
                        literal(name)
                    ),
                );
                assert_eq!(known, ["1"], "{name}");
                let detach = "select detach_sync($1::text::regclass, $2)";
                client
                    .execute(detach, &[&t, name])
                    .unwrap_or_else(|error| panic!("{name}: {error:?}"));
            }
        }
        victims_live(&fixture);
    }
}

/// What waits is run by hand, by clients of either kind, and arrives as it is here.
fn by_hand(fixture: &Fixture, name: &str) {
    let t = ident(name);
    let target = format!("{0}.{0}", ident(name));
    let all = |table: &str| format!("select t::text from {table} t order by 1");
    let mut reader = fixture.left.superuser();
    let mut hand = fixture.right.client();
    for standard in [true, false] {
        strings(&mut reader, standard);
        strings(&mut hand, standard);
        for sql in query(
            &mut reader,
            "select dst_query from sync_err_rec order by id",
        ) {
            run(&mut hand, &sql);
        }
        assert_eq!(
            rows(&fixture.left, &all(&t)),
            rows(&fixture.right, &all(&target)),
            "{name}"
        );
    }
    victims_live(fixture);
}

#[test]
fn names_of_guards_and_roles_that_carry_sql_stay_names() {
    let fixture = linked("injguard");
    with_victims(&fixture);
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table t (id int primary key, v text); create table seen (name text)");
    }
    // The target's own trigger sees what the remote transaction is called.
    let remote = &fixture.right.user;
    fixture.right.exec(&format!(
        "create function note() returns trigger language plpgsql as $f$ begin
           insert into {remote}.seen values (current_setting('application_name')); return null; end $f$;
         create trigger note after insert on t for each row execute function note()"
    ));
    let mut client = fixture.left.client();
    for (at, name) in NAMES.iter().enumerate() {
        let role = format!("{at}{}", name.chars().take(30).collect::<String>());
        fixture
            .left
            .exec_superuser(&format!("create role {}", ident(&role)));
        strings(&mut client, at.is_multiple_of(2));
        let attach = "select attach_sync('t', 'dst', $1, jsonb_build_object('mode', 'sync',
            'application_name', $2::text, 'guard_role', $3::text))";
        let done = client.execute(attach, &[&format!("{remote}.t"), name, &role]);
        assert_eq!(done.is_ok(), is_printable(name), "{name:?}: {done:?}");
        if is_printable(name) {
            run(
                &mut client,
                &format!("insert into t values ({at}, {})", literal(name)),
            );
            run(&mut client, "select detach_sync('t', 'dst')");
        }
        fixture
            .left
            .exec_superuser(&format!("drop role {}", ident(&role)));
    }
    let mut names: Vec<&str> = NAMES
        .into_iter()
        .filter(|name| is_printable(name))
        .collect();
    names.sort();
    assert_eq!(
        rows(
            &fixture.right,
            "select name from seen order by name collate \"C\""
        ),
        names
    );
    victims_live(&fixture);
}

fn is_printable(name: &str) -> bool {
    name.bytes().all(|b| (b' '..=b'~').contains(&b))
}

#[test]
fn a_target_that_is_more_than_a_name_is_refused() {
    let fixture = linked("injtarget");
    with_victims(&fixture);
    fixture.left.exec("create table t (id int primary key)");
    let mut client = fixture.left.client();
    for standard in [true, false] {
        strings(&mut client, standard);
        for target in [
            "t; drop table public.victim",
            "t -- x",
            r#""t"; drop table public.victim; --""#,
            r#""t""#,
            "a.b.c.d",
            "t)",
            "",
            r"t\",
            "t'x",
        ] {
            let sql = format!("select attach_sync('t', 'dst', {})", literal(target));
            if target == r#""t""# {
                // A name in quotes is a name.
                run(
                    &mut client,
                    &format!("{sql}; select detach_sync('t', 'dst')"),
                );
            } else {
                refused(&mut client, &sql, "22023");
            }
        }
        for server in NAMES {
            let server = literal(server);
            refused(
                &mut client,
                &format!("select attach_sync('t', {server})"),
                "42704",
            );
            refused(
                &mut client,
                &format!("select detach_sync('t', {server})"),
                "42704",
            );
            refused(
                &mut client,
                &format!("select sync_disconnect({server})"),
                "42704",
            );
            let deal = format!("select deal_sync_err_rec(1, {server})");
            refused(&mut fixture.left.superuser(), &deal, "42704");
        }
    }
    victims_live(&fixture);
}
