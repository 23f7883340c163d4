//! What `check_sync` finds. The problems that `attach_sync` tells as well are in [`crate::admin::attach_tells`].

use std::time::{Duration, Instant};

use postgres::Client;
use rowsync_harness::hostile::{Hostile, columns, message, report, row};
use rowsync_harness::{Fixture, IGNORE_OPTIONS, PoolMode, Pooler, Proxy, Side};

use crate::support::common::{
    Role, attach, attach_sql, closed_port, link_with, linked, query, refused, rows, run,
};

const COLUMNS: &str = "id int primary key, v text, n int";
const NEWEST: &str = r#"{"on_conflict": "newest", "version_column": "n"}"#;

/// `rel|server|severity|problem|hint`, without what is said of the worker, which test clusters have not.
fn checked_by(client: &mut Client, args: &str) -> Vec<String> {
    let sql = format!("select rel, server, severity, problem, hint from check_sync({args})");
    let mut found = query(client, &sql);
    found.retain(|row| !row.contains("no worker replays"));
    found
}

fn checked(side: &Side, args: &str) -> Vec<String> {
    checked_by(&mut side.client(), args)
}

/// Exactly these, by the beginning `rel|server|severity|` and a part of the problem.
#[track_caller]
fn assert_found(found: &[String], expected: &[(&str, &str)]) {
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (begin, part) in expected {
        let fits = |row: &&String| row.starts_with(begin) && row.contains(part);
        assert!(
            found.iter().any(|row| fits(&row)),
            "{begin} {part}: {found:#?}"
        );
    }
    // A hint with each.
    assert!(found.iter().all(|row| !row.ends_with('|')), "{found:#?}");
}

#[test]
fn no_row_means_that_all_is_well() {
    let fixture = linked("checkwell");
    for (table, options) in [("a", "{}"), ("b", r#"{"mode": "sync"}"#), ("c", NEWEST)] {
        crate::support::common::mirror(&fixture, table, COLUMNS, options);
    }
    assert_found(&checked(&fixture.left, ""), &[]);
    assert_found(&checked(&fixture.left, "'a'"), &[]);
    assert_found(&checked(&fixture.left, "server => 'dst'"), &[]);
    // But for the worker, and who is to be told of what is not attached.
    let all = query(&mut fixture.left.client(), "select * from check_sync()");
    assert!(
        all.len() == 1 && all[0].starts_with("~|~|warning|no worker replays"),
        "{all:?}"
    );
    fixture.left.exec("create table d (id int primary key)");
    assert_found(
        &checked(&fixture.left, "'d'"),
        &[("d|~|notice|", "is not attached")],
    );
    fixture
        .left
        .exec("create server other foreign data wrapper pg_rowsync");
    let nothing = checked(&fixture.left, "server => 'other'");
    assert_found(
        &nothing,
        &[("~|other|notice|", "no table of yours is sent to server")],
    );
    refused(
        &mut fixture.left.client(),
        "select check_sync(server => 'none')",
        "42704",
    );
}

/// What is on either side besides the columns, and what is found.
const TARGETS: &[(&str, &str, &str, &str, &str)] = &[
    (
        "gone",
        "",
        "drop table gone",
        "error",
        "does not exist on server",
    ),
    (
        "less",
        "",
        "alter table less drop n",
        "error",
        "has no column \"n\"",
    ),
    (
        "filled",
        "",
        "alter table filled add f int not null",
        "error",
        "needs a value for column \"f\"",
    ),
    (
        "keyless",
        "",
        "alter table keyless drop constraint keyless_pkey",
        "error",
        "no unique index",
    ),
    (
        "late",
        "",
        "alter table late drop constraint late_pkey, add primary key (id) deferrable",
        "error",
        "is deferrable",
    ),
    (
        "rls",
        "",
        "alter table rls enable row level security, force row level security; create policy p on rls using (n > 0)",
        "error",
        "row security",
    ),
    (
        "made",
        "",
        "alter table made drop n, add n int generated always as (id) stored",
        "error",
        "generates column \"n\" itself",
    ),
    (
        "always",
        "alter table always alter n set not null",
        "alter table always drop n, add n int generated always as identity",
        "error",
        "GENERATED ALWAYS there: updates fail",
    ),
    (
        "crash",
        "",
        "alter table crash set unlogged",
        "warning",
        "is unlogged: a crash there",
    ),
    (
        "ruled",
        "",
        "create rule r as on delete to ruled do also notify x",
        "warning",
        "has rules",
    ),
    (
        "strict",
        "",
        "alter table strict alter v set not null",
        "warning",
        "refuses NULL in column \"v\"",
    ),
    (
        "twice",
        "",
        "create unique index on twice (n)",
        "warning",
        "unique index on (n)",
    ),
    (
        "shut",
        "",
        "alter table shut add exclude using btree (n with =)",
        "warning",
        "exclusion constraint",
    ),
    (
        "child",
        "",
        "create table parent (id int primary key); alter table child add foreign key (n) references parent",
        "warning",
        "which is not sent there",
    ),
    (
        "lax",
        "",
        "create table lax_parent (id int primary key); alter table lax add foreign key (n) references lax_parent",
        "warning",
        "which is not sent there",
    ),
    (
        "as_text",
        "",
        "alter table as_text alter n type text",
        "",
        "",
    ),
    (
        "small",
        "",
        "alter table small alter n type smallint",
        "warning",
        "is of type integer here and of type smallint",
    ),
    (
        "heir",
        "create table heirs () inherits (heir)",
        "",
        "notice",
        "tables inherit from \"heir\"",
    ),
    (
        "opaque",
        "",
        "create type pt as (x int); alter table opaque drop n, add n pt",
        "notice",
        "is not known here",
    ),
];

#[test]
fn every_trouble_of_a_target_is_found() {
    let fixture = linked("checktargets");
    for (table, here, there, _, _) in TARGETS.iter().copied() {
        crate::support::common::mirror(&fixture, table, COLUMNS, "{}");
        fixture.left.exec(here);
        fixture.right.exec(there);
    }
    for (table, _, _, severity, part) in TARGETS.iter().copied() {
        let found = checked(&fixture.left, &format!("'{table}'"));
        let begin = format!("{table}|dst|{severity}|");
        let expected = [(begin.as_str(), part)];
        assert_found(&found, if part.is_empty() { &[] } else { &expected });
    }
    // All of it together, the gravest first.
    let all = checked(&fixture.left, "");
    assert_eq!(
        all.len(),
        TARGETS.iter().filter(|one| !one.4.is_empty()).count(),
        "{all:#?}"
    );
    let severity = |row: &String| row.split('|').nth(2).map(str::to_owned);
    let severities: Vec<_> = all.iter().filter_map(severity).collect();
    let mut sorted = severities.clone();
    sorted.sort_by_key(|one| {
        ["error", "warning", "notice"]
            .iter()
            .position(|name| name == one)
    });
    assert_eq!(severities, sorted);
    // A parent that is sent is no trouble, whoever attached it.
    fixture
        .left
        .exec("create table parent (id int primary key)");
    attach(&fixture, "parent", "{}");
    assert_found(&checked(&fixture.left, "'child'"), &[]);
}

#[test]
fn kinds_of_targets_and_their_triggers_are_looked_at() {
    let fixture = linked("checkkinds");
    fixture.left.exec(&format!(
        "create table part ({COLUMNS}); create table fires ({COLUMNS})"
    ));
    fixture.right.exec(&format!(
        "create table part ({COLUMNS}) partition by range (id);
         create table part_1 partition of part for values from (0) to (10);
         create table fires ({COLUMNS})"
    ));
    for side in [&fixture.left, &fixture.right] {
        side.exec(
            "create function f() returns trigger language plpgsql as 'begin return new; end';
             create trigger audit after insert on fires for each row execute function f()",
        );
    }
    attach(&fixture, "part", "{}");
    attach(&fixture, "fires", "{}");
    assert_found(
        &checked(&fixture.left, "'part'"),
        &[("part|dst|warning|", "no DEFAULT partition")],
    );
    fixture
        .right
        .exec("create table part_d partition of part default");
    assert_found(&checked(&fixture.left, "'part'"), &[]);
    let twice = (
        "fires|dst|notice|",
        "trigger \"audit\" fires here and again",
    );
    assert_found(&checked(&fixture.left, "'fires'"), &[twice]);
    fixture
        .right
        .exec("alter table fires enable replica trigger audit");
    let replica = (
        "fires|dst|notice|",
        "fires only for what replication applies",
    );
    assert_found(&checked(&fixture.left, "'fires'"), &[replica]);
    fixture.right.exec(
        "alter table fires disable trigger audit; create table p (id int primary key);
         alter table fires add foreign key (n) references p",
    );
    fixture.right.exec_superuser(&format!(
        "alter table {}.fires disable trigger all",
        fixture.right.user
    ));
    let found = checked(&fixture.left, "'fires'");
    let unchecked = ("fires|dst|warning|", "triggers of foreign keys");
    assert_found(
        &found,
        &[unchecked, ("fires|dst|warning|", "which is not sent there")],
    );
}

#[test]
fn triggers_here_that_do_not_fire_as_they_should_are_found() {
    let fixture = linked("checkhere");
    let dml = "\"00_pg_rowsync_dst_dml\"";
    let truncate = "\"00_pg_rowsync_dst_truncate\"";
    let sync_dml = format!(
        "execute function sync_dml('dst', '{}', 't')",
        fixture.right.user
    );
    crate::support::common::mirror(&fixture, "t", COLUMNS, "{}");
    for (change, begin, part, undo) in [
        (
            format!("alter table t disable trigger {dml}"),
            "error",
            "is disabled",
            format!("alter table t enable trigger {dml}"),
        ),
        (
            format!("alter table t enable replica trigger {truncate}"),
            "error",
            "only for what replication",
            format!("alter table t enable trigger {truncate}"),
        ),
        (
            format!("alter table t enable always trigger {dml}"),
            "notice",
            "also fires for what replication",
            format!("alter table t enable trigger {dml}"),
        ),
        (
            format!("drop trigger {truncate} on t"),
            "warning",
            "no trigger sends TRUNCATE",
            format!("create trigger {truncate} after truncate on t for each statement {sync_dml}"),
        ),
        (
            format!(
                "drop trigger {dml} on t; create trigger {dml} after insert or delete on t for each row {sync_dml}"
            ),
            "warning",
            "no trigger sends UPDATE of",
            String::new(),
        ),
        (
            format!(
                "drop trigger {dml} on t; create trigger {dml} after insert or delete or update of v on t for each row {sync_dml}"
            ),
            "warning",
            "only for updates that name column \"v\"",
            String::new(),
        ),
        (
            format!(
                "drop trigger {dml} on t; create trigger {dml} before insert or delete or update on t for each row {sync_dml}"
            ),
            "error",
            "timing or level",
            format!(
                "drop trigger {dml} on t; create trigger {dml} after insert or delete or update on t for each row {sync_dml}"
            ),
        ),
        (
            "alter table t set unlogged".into(),
            "warning",
            "is unlogged: a crash empties it here",
            "alter table t set logged".into(),
        ),
    ] {
        fixture.left.exec(&change);
        let found = checked(&fixture.left, "");
        assert!(
            found[0].starts_with(&format!("t|dst|{begin}|")),
            "{change}: {found:#?}"
        );
        assert!(found[0].contains(part), "{change}: {found:#?}");
        assert!(
            found.len() == 1 || part == "timing or level",
            "{change}: {found:#?}"
        );
        fixture.left.exec(&undo);
    }
    assert_found(&checked(&fixture.left, ""), &[]);
    // What a trigger's first fire would say.
    fixture
        .left
        .exec_superuser("alter server dst owner to postgres");
    assert_found(
        &checked(&fixture.left, ""),
        &[("t|dst|error|", "permission denied for foreign server dst")],
    );
    fixture
        .left
        .exec_superuser(&format!("alter server dst owner to {}", fixture.left.user));
    fixture
        .left
        .exec("drop user mapping for current_user server dst");
    assert_found(
        &checked(&fixture.left, ""),
        &[("t|dst|error|", "user mapping not found")],
    );
    fixture.left.exec("alter table t drop constraint t_pkey");
    assert_found(
        &checked(&fixture.left, ""),
        &[("t|dst|error|", "neither a primary key")],
    );
}

#[test]
fn settings_of_the_server_and_the_role_there_are_found() {
    let fixture = linked("checkrole");
    crate::support::common::mirror(&fixture, "t", COLUMNS, "{}");
    let user = &fixture.right.user;
    let db = &fixture.right.db;
    let other = Role::create(&fixture.right, "other", "");
    fixture
        .right
        .exec_superuser(&format!("grant {} to {user}", other.name));
    for (change, severity, part, undo) in [
        (
            format!("alter role {user} set session_replication_role = replica"),
            "warning",
            "session_replication_role is \"replica\"",
            format!("alter role {user} reset session_replication_role"),
        ),
        (
            format!("alter role {user} set log_statement = 'mod'"),
            "notice",
            "log_statement is \"mod\"",
            format!("alter role {user} reset log_statement"),
        ),
        (
            format!("alter role {user} connection limit 3"),
            "warning",
            "3 connections only",
            format!("alter role {user} connection limit -1"),
        ),
        (
            format!("alter database {db} connection limit 7"),
            "warning",
            "7 connections only",
            format!("alter database {db} connection limit -1"),
        ),
        (
            format!("alter role {user} valid until '{}'", "2999-01-01"),
            "",
            "",
            String::new(),
        ),
    ] {
        fixture.right.exec_superuser(&change);
        let found = checked(&fixture.left, "");
        let begin = format!("~|dst|{severity}|");
        let expected = [(begin.as_str(), part)];
        assert_found(&found, if part.is_empty() { &[] } else { &expected });
        fixture.right.exec_superuser(&undo);
    }
    let soon: String = fixture
        .right
        .query_one("select (now() + interval '3 days 1 hour')::text");
    fixture
        .right
        .exec_superuser(&format!("alter role {user} valid until '{soon}'"));
    assert_found(
        &checked(&fixture.left, ""),
        &[("~|dst|warning|", "is good for 3 days more")],
    );
    fixture
        .right
        .exec_superuser(&format!("alter role {user} valid until 'infinity'"));
    // Another role by a setting: its privileges count.
    fixture
        .right
        .exec_superuser(&format!("alter role {user} set role = {}", other.name));
    let found = checked(&fixture.left, "");
    let acts = ("~|dst|notice|", "acts as role");
    assert_found(
        &found,
        &[
            acts,
            (
                "t|dst|error|",
                "lacks SELECT, INSERT, UPDATE, DELETE, TRUNCATE",
            ),
        ],
    );
    fixture
        .right
        .exec_superuser(&format!("alter role {user} reset role"));
    // Deletions under "newest" want the extension there.
    fixture.left.exec("select detach_sync('t', 'dst')");
    attach(&fixture, "t", NEWEST);
    fixture
        .right
        .exec_superuser("drop extension pg_rowsync cascade");
    assert_found(
        &checked(&fixture.left, ""),
        &[("~|dst|notice|", "has no extension pg_rowsync")],
    );
}

/// The clock there: for this test's database, another function of its name.
fn set_clock_there(fixture: &Fixture, ahead: &str) {
    fixture.right.exec_superuser(&format!(
        "set allow_system_table_mods = on;
         do $$ begin
           if to_regproc('pg_catalog.own_clock') is null then
             alter function pg_catalog.clock_timestamp() rename to own_clock;
           end if;
         end $$;
         create or replace function pg_catalog.clock_timestamp() returns timestamptz language sql
           as $$ select pg_catalog.own_clock() + interval '{ahead}' $$;
         grant execute on function pg_catalog.clock_timestamp() to public"
    ));
}

#[test]
fn clocks_and_extensions_that_differ_are_found_where_the_newest_decides() {
    let fixture = linked("checkclock");
    crate::support::common::mirror(&fixture, "t", COLUMNS, NEWEST);
    for (ahead, part) in [
        (
            "3600500 ms",
            "is 3600 s ahead: where versions are times, its rows count as that much newer",
        ),
        (
            "-90500 ms",
            "is 90 s behind: where versions are times, its rows count as that much older",
        ),
        ("2500 ms", "is 2 s ahead"),
        ("0", ""),
        ("700 ms", ""),
    ] {
        set_clock_there(&fixture, ahead);
        let found = checked(&fixture.left, "");
        let expected = [("~|dst|warning|", part)];
        assert_found(&found, if part.is_empty() { &[] } else { &expected });
    }
    // A slow way there is no clock that differs.
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    proxy.set_delay(Duration::from_millis(300));
    fixture.left.exec(&format!(
        "alter server dst options (set port '{}')",
        proxy.port()
    ));
    assert_found(&checked(&fixture.left, ""), &[]);
    proxy.set_delay(Duration::ZERO);
    let here: String = (fixture.left)
        .query_one("select extversion from pg_extension where extname = 'pg_rowsync'");
    fixture.right.exec_superuser(
        "update pg_extension set extversion = '0.1.0' where extname = 'pg_rowsync'",
    );
    let versions = format!("the extension is version {here} here and 0.1.0 on server \"dst\"");
    assert_found(&checked(&fixture.left, ""), &[("~|dst|notice|", &versions)]);
    // Neither matters where nothing is decided by the newest.
    set_clock_there(&fixture, "1 hour");
    fixture.left.exec("select detach_sync('t', 'dst')");
    attach(&fixture, "t", "{}");
    assert_found(&checked(&fixture.left, ""), &[]);
}

/// What a server of PostgreSQL 13 does: it has not got the functions that it is asked by.
fn older_server() -> Hostile {
    Hostile::start(|wire| {
        wire.log_in()?;
        wire.welcome("13.22")?;
        loop {
            wire.asked()?;
            wire.send(
                b'E',
                &report(&[
                    (b'S', b"ERROR"),
                    (b'V', b"ERROR"),
                    (b'C', b"42883"),
                    (b'M', b"function pg_catalog.extract(unknown, timestamp with time zone) does not exist"),
                ]),
            )?;
            wire.ready(b'I')?;
        }
    })
    .expect("a server")
}

#[test]
fn a_server_that_is_too_old_is_found_by_its_version() {
    let fixture = linked("checkold");
    crate::support::common::mirror(&fixture, "t", COLUMNS, "{}");
    let server = older_server();
    fixture.left.exec(&format!(
        "alter server dst options (set port '{}')",
        server.port()
    ));
    let found = checked(&fixture.left, "");
    let old = "PostgreSQL 13.22";
    assert_found(&found, &[("~|dst|error|", old)]);
    assert!(found[0].contains("14 or later"), "{found:?}");
    // So it is to who attaches, and to who writes.
    let (mut client, notices) = fixture.left.client_with_notices();
    run(&mut client, &attach_sql(&fixture, "t", "{}"));
    run(&mut client, "insert into t values (1, 'a', 1)");
    let said = crate::support::common::warnings(&notices);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said.iter()
            .all(|one| one.code().code() == "08001" && format!("{one:?}").contains(old)),
        "{said:?}"
    );
    // What was written waits for a server that is not.
    assert_eq!(
        rows(&fixture.left, "select sqlstate, status from sync_err_rec"),
        ["08001|pending"]
    );
    fixture.left.exec(&format!(
        "alter server dst options (set port '{}')",
        fixture.right.cluster.port()
    ));
    crate::support::common::deal(&fixture, "10");
    crate::support::common::both_have(&fixture, "t", &["1|a|1"]);
}

#[test]
fn a_pooler_in_between_is_found_unless_the_server_says_so() {
    for mode in [PoolMode::Transaction, PoolMode::Session] {
        let fixture = Fixture::new("checkpool");
        let pooler = Pooler::start(&[&fixture.right], mode, &[IGNORE_OPTIONS]).expect("a pooler");
        link_with(&fixture, "dst", pooler.port(), &fixture.right.password);
        crate::support::common::mirror(&fixture, "t", COLUMNS, "{}");
        let pooled = ("~|dst|notice|", "is reached through a pooler");
        assert_found(&checked(&fixture.left, ""), &[pooled]);
        fixture
            .left
            .exec("alter server dst options (add pooled 'on')");
        assert_found(&checked(&fixture.left, ""), &[]);
    }
}

#[test]
fn encodings_that_lack_characters_are_found() {
    let fixture = Fixture::new("checkenc");
    for (encoding, severity, part) in [
        ("LATIN1", "warning", "characters that it lacks"),
        ("SQL_ASCII", "notice", "not looked at"),
    ] {
        let there = Side {
            db: format!("{}_{encoding}", fixture.right.db).to_lowercase(),
            ..fixture.right.clone()
        };
        let Side { db, user, .. } = &there;
        fixture.right.exec_superuser(&format!(
            "create database {db} template template0 encoding '{encoding}' lc_collate 'C' lc_ctype 'C' owner {user}"
        ));
        there.exec(&format!(
            "create schema authorization {user}; create table t ({COLUMNS})"
        ));
        fixture
            .left
            .exec(&format!("create table if not exists t ({COLUMNS})"));
        let server = encoding.to_lowercase();
        fixture.link(&fixture.left, &there, &server, &[]);
        fixture
            .left
            .exec(&format!("select attach_sync('t', '{server}', '{user}.t')"));
        let begin = format!("~|{server}|{severity}|");
        let found = checked(&fixture.left, &format!("server => '{server}'"));
        assert_found(&found, &[(&begin, part)]);
        run(
            &mut fixture.right.superuser(),
            &format!("drop database {db} with (force)"),
        );
        fixture
            .left
            .exec(&format!("select detach_sync('t', '{server}')"));
    }
}

#[test]
fn masters_that_do_not_reach_all_others_are_found() {
    let fixture = linked("checkmesh");
    let left = &fixture.left.user;
    let right = &fixture.right.user;
    fixture.link(&fixture.left, &fixture.right, "third", &[]);
    fixture.link(&fixture.right, &fixture.left, "back", &[]);
    fixture.link(&fixture.right, &fixture.left, "onward", &[]);
    fixture.left.exec(&format!("create table t ({COLUMNS})"));
    fixture.right.exec(&format!(
        "create table t ({COLUMNS}); create table t3 ({COLUMNS})"
    ));
    fixture.left.exec(&format!(
        "select attach_sync('t', 'dst', '{right}.t', '{NEWEST}');
         select attach_sync('t', 'third', '{right}.t3', '{NEWEST}')"
    ));
    assert_found(&checked(&fixture.left, ""), &[]);
    fixture.right.exec(&format!(
        "select attach_sync('t', 'back', '{left}.t', '{NEWEST}')"
    ));
    let gap = (
        "t|dst|warning|",
        "sends it to 0 other servers, while it is sent to 1 others",
    );
    assert_found(&checked(&fixture.left, ""), &[gap]);
    fixture.right.exec(&format!(
        "select attach_sync('t', 'onward', '{left}.other', '{NEWEST}')"
    ));
    assert_found(&checked(&fixture.left, ""), &[]);
    // Both decide by the newest, but by different columns.
    fixture.right.exec("select detach_sync('t', 'back')");
    fixture.right.exec(&format!(
        r#"select attach_sync('t', 'back', '{left}.t', '{{"on_conflict": "newest", "version_column": "id"}}')"#
    ));
    let diverges = ("t|dst|notice|", "concurrent changes may not converge");
    assert_found(&checked(&fixture.left, "'t', 'dst'"), &[diverges]);
    fixture
        .right
        .exec("alter table t disable trigger \"00_pg_rowsync_back_dml\"");
    let idle = (
        "t|dst|warning|",
        "is disabled, or fires only for what replication applies",
    );
    assert_found(&checked(&fixture.left, "'t', 'dst'"), &[idle]);
}

#[test]
fn what_waits_or_has_failed_is_found_without_its_values() {
    let fixture = linked("checkqueue");
    crate::support::common::mirror(&fixture, "t", COLUMNS, "{}");
    fixture
        .right
        .exec("alter table t add constraint no check (v <> 'secret')");
    fixture.left.exec("insert into t values (1, 'secret', 1)");
    crate::support::common::deal(&fixture, "10");
    let found = checked(&fixture.left, "");
    assert_found(
        &found,
        &[("t|dst|error|", "1 records for server \"dst\" have failed")],
    );
    assert!(
        found[0].contains("23514") && !found[0].contains("secret"),
        "{found:?}"
    );
    fixture.left.exec_superuser("delete from sync_err_rec");
    crate::support::common::outage(&fixture.right);
    fixture.left.exec("insert into t values (2, 'x', 1)");
    fixture.left.exec_superuser(
        "update sync_queue set create_time = now() - interval '2 minutes';
         insert into sync_lost_session (dst_server, owner, backend_pid)
           select dst_server, owner, 1 from sync_queue limit 1",
    );
    let found = checked(&fixture.left, "");
    assert_found(
        &found,
        &[
            ("~|dst|error|", "server \"dst\" could not be asked"),
            ("~|dst|error|", "does not take the changes of owner"),
            ("~|dst|warning|", "have been pending for more than a minute"),
            (
                "~|dst|warning|",
                "whose connections were lost may still commit",
            ),
        ],
    );
    fixture
        .left
        .exec_superuser("delete from sync_lost_session; delete from sync_err_rec");
    crate::support::common::recover(&fixture.right);
    fixture
        .left
        .exec_superuser("insert into sync_node values (gen_random_uuid())");
    assert_found(&checked(&fixture.left, ""), &[("~|~|error|", "is a copy")]);
}

#[test]
fn owners_check_their_own_tables_and_monitors_all() {
    let fixture = linked("checkrights");
    crate::support::common::mirror(&fixture, "t", COLUMNS, "{}");
    fixture.right.exec("drop table t");
    let outsider = Role::create(&fixture.left, "outsider", "");
    let monitor = Role::create(&fixture.left, "monitor", "");
    let member = Role::create(&fixture.left, "member", "");
    fixture.left.exec_superuser(&format!(
        "grant pg_monitor to {}; grant {} to {}",
        monitor.name, fixture.left.user, member.name
    ));
    let gone = [("t|dst|error|", "does not exist on server")];
    assert_found(&checked_by(&mut outsider.client(), ""), &[]);
    let denied = refused(&mut outsider.client(), "select check_sync('t')", "42501");
    assert!(
        denied.message().contains("must be owner of table t"),
        "{denied:?}"
    );
    for role in [&monitor, &member] {
        assert_found(&checked_by(&mut role.client(), ""), &gone);
        assert_found(&checked_by(&mut role.client(), "'t'"), &gone);
    }
    let mut superuser = fixture.left.superuser();
    run(
        &mut superuser,
        &format!("set search_path = {}, public", fixture.left.user),
    );
    assert_found(&checked_by(&mut superuser, ""), &gone);
    // Rows of the queue that are another owner's are not told either.
    fixture.left.exec("insert into t values (1, 'x', 1)");
    assert_found(&checked_by(&mut outsider.client(), ""), &[]);
}

#[test]
fn servers_that_do_not_answer_cost_their_time_once_and_a_cancel_works() {
    let fixture = linked("checktime");
    let proxies: Vec<Proxy> = (0..4)
        .map(|_| Proxy::start(fixture.right.cluster.port()).expect("a proxy"))
        .collect();
    crate::support::common::mirror(&fixture, "t", COLUMNS, "{}");
    for (number, proxy) in proxies.iter().enumerate() {
        fixture.link_via(
            proxy,
            &fixture.left,
            &fixture.right,
            &format!("slow{number}"),
            &[],
        );
        fixture
            .left
            .exec(&attach_sql(&fixture, "t", "{}").replace("'dst'", &format!("'slow{number}'")));
        proxy.freeze();
    }
    link_with(&fixture, "closed", closed_port(), &fixture.right.password);
    fixture
        .left
        .exec(&attach_sql(&fixture, "t", "{}").replace("'dst'", "'closed'"));
    let mut client = fixture.left.client();
    run(&mut client, "set pg_rowsync.connect_timeout = 1500");
    let since = Instant::now();
    let found = checked_by(&mut client, "");
    let took = since.elapsed();
    assert!((1_500..5_000).contains(&took.as_millis()), "{took:?}");
    let asked = found
        .iter()
        .filter(|row| row.contains("could not be asked"))
        .count();
    assert_eq!(asked, 5, "{found:#?}");
    run(
        &mut client,
        "set pg_rowsync.connect_timeout = 60000; set statement_timeout = 300",
    );
    let since = Instant::now();
    refused(&mut client, "select * from check_sync()", "57014");
    assert!(
        since.elapsed() < Duration::from_secs(10),
        "{:?}",
        since.elapsed()
    );
    proxies.iter().for_each(Proxy::thaw);
    // And the session goes on.
    run(&mut client, "set statement_timeout = 0");
    let found = checked_by(&mut client, "server => 'dst'");
    assert!(
        found.iter().all(|row| !row.contains("could not be asked")),
        "{found:?}"
    );
}

/// Whatever a server does instead of answering: all are asked at once, and each has its time.
#[test]
fn servers_that_keep_one_waiting_cost_no_more_than_their_time() {
    let fixture = linked("checkdrip");
    crate::support::common::mirror(&fixture, "t", COLUMNS, "{}");
    let pause = Duration::from_millis(100);
    let servers = [
        Hostile::start(|wire| wire.silence()),
        Hostile::start(move |wire| {
            wire.startup()?;
            wire.drip(&message(b'R', &[0; 1000]), pause)
        }),
        Hostile::start(move |wire| {
            wire.greet()?;
            wire.asked()?;
            wire.begun()?;
            let notice = message(b'N', &report(&[(b'S', b"NOTICE"), (b'M', b"wait")]));
            wire.drip(&notice.repeat(1000), pause)
        }),
        Hostile::start(|wire| {
            wire.greet()?;
            wire.asked()?;
            wire.begun()?;
            wire.send(b'T', &columns(1))?;
            wire.flood(&message(b'D', &row(&[b"x"])))
        }),
    ]
    .map(|server| server.expect("a server"));
    let mut client = fixture.left.client();
    run(
        &mut client,
        "set pg_rowsync.connect_timeout = 300; set pg_rowsync.delivery_timeout = 2000",
    );
    for (number, server) in servers.iter().enumerate() {
        let name = format!("odd{number}");
        link_with(&fixture, &name, server.port(), &fixture.right.password);
        let attach = attach_sql(&fixture, "t", "{}").replace("'dst'", &format!("'{name}'"));
        run(&mut client, &attach);
    }
    run(&mut client, "set pg_rowsync.connect_timeout = 1500");
    let since = Instant::now();
    let found = checked_by(&mut client, "");
    let took = since.elapsed();
    // The two times, and the machine's own slowness.
    assert!((1_400..6_000).contains(&took.as_millis()), "{took:?}");
    let odd = |row: &&String| row.starts_with("~|odd") && row.contains("could not be asked");
    assert_eq!(found.iter().filter(odd).count(), 4, "{found:#?}");
    assert_eq!(found.len(), 4, "{found:#?}");
}

#[test]
fn many_tables_are_asked_about_in_parts_and_wide_ones_alone() {
    let fixture = linked("checkmany");
    let wide: Vec<String> = (0..500)
        .map(|number| format!("a_rather_long_column_name_{number} int"))
        .collect();
    let wide = wide.join(", ");
    let mut all = String::new();
    for number in 0..20 {
        let more = if number < 6 {
            format!(", {wide}")
        } else {
            String::new()
        };
        all.push_str(&format!("create table m{number} ({COLUMNS}{more});"));
    }
    for side in [&fixture.left, &fixture.right] {
        side.exec(&all);
    }
    for number in 0..20 {
        attach(&fixture, &format!("m{number}"), "{}");
    }
    assert_found(&checked(&fixture.left, ""), &[]);
    fixture
        .right
        .exec("drop table m3; drop table m7; drop table m19");
    let found = checked(&fixture.left, "");
    let gone = "does not exist on server";
    assert_found(&found, &[("m3|", gone), ("m7|", gone), ("m19|", gone)]);
}

#[test]
fn a_check_changes_nothing_and_leaves_nothing_open() {
    let fixture = linked("checkidle");
    crate::support::common::mirror(&fixture, "t", COLUMNS, "{}");
    let mut client = fixture.left.client();
    run(&mut client, "begin read only; select * from check_sync()");
    let open = format!(
        "select count(*) from pg_stat_activity where usename = '{}' and (state <> 'idle' or backend_xmin is not null)",
        fixture.right.user
    );
    assert_eq!(rows(&fixture.right, &open), ["0"]);
    run(&mut client, "rollback");
}

/// A key or version column here, one there that is coarser, and options.
const COARSER: &[(&str, &str, &str, &str)] = &[
    (
        "k timestamptz primary key, v int",
        "k timestamptz(0) primary key, v int",
        "{}",
        "key column \"k\"",
    ),
    (
        "k numeric primary key, v int",
        "k numeric(10,0) primary key, v int",
        "{}",
        "key column \"k\"",
    ),
    (
        "k text primary key, v int",
        "k char(5) primary key, v int",
        "{}",
        "key column \"k\"",
    ),
    (
        "k int primary key, v timestamp",
        "k int primary key, v date",
        r#"{"on_conflict": "newest", "version_column": "v"}"#,
        "version column \"v\"",
    ),
    (
        "k int, v float8, primary key (k, v)",
        "k int, v float4, primary key (k, v)",
        "{}",
        "key column \"v\"",
    ),
];

#[test]
fn a_key_or_version_that_is_coarser_there_is_refused_at_attach() {
    let fixture = linked("checkcoarser");
    for (here, there, options, part) in COARSER.iter().copied() {
        fixture.left.exec(&format!("create table t ({here})"));
        fixture.right.exec(&format!("create table t ({there})"));
        let mut client = fixture.left.client();
        let error = refused(&mut client, &attach_sql(&fixture, "t", options), "42804");
        assert!(error.message().contains(part), "{error:?}");
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains("Give it the type")),
            "{error:?}"
        );
        let triggers = "select count(*) from pg_trigger where tgrelid = 't'::regclass";
        assert_eq!(rows(&fixture.left, triggers), ["0"], "{here}");
        // The other way round all is well, but for what is too long.
        for (side, columns) in [(&fixture.left, there), (&fixture.right, here)] {
            side.exec(&format!("drop table t; create table t ({columns})"));
        }
        attach(&fixture, "t", options);
        fixture.left.exec("drop table t");
        fixture.right.exec("drop table t");
    }
}

#[test]
fn a_key_whose_equality_is_looser_there_is_told_at_attach() {
    let fixture = linked("checkloose");
    fixture.left.exec("create table t (k text primary key)");
    fixture.right.exec(
        "create collation loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         create table t (k text collate loose primary key)",
    );
    let (mut client, notices) = fixture.left.client_with_notices();
    run(&mut client, &attach_sql(&fixture, "t", "{}"));
    let said = notices.lock().unwrap();
    let is_told = |one: &postgres::error::DbError| {
        one.code().code() == "42804" && one.message().contains("by the column's collation")
    };
    assert!(said.iter().any(is_told), "{said:?}");
}

#[test]
fn types_under_which_values_change_are_told_at_attach() {
    let fixture = linked("checktold");
    fixture
        .left
        .exec("create table t (id int primary key, at timestamptz, n numeric, ok int)");
    fixture
        .right
        .exec("create table t (id bigint primary key, at date, n int, ok text)");
    let (mut client, notices) = fixture.left.client_with_notices();
    run(&mut client, &attach_sql(&fixture, "t", "{}"));
    let said = crate::support::common::warnings(&notices);
    let messages: Vec<&str> = said.iter().map(|one| one.message()).collect();
    assert_eq!(messages.len(), 2, "{messages:?}");
    assert!(
        said.iter()
            .all(|one| one.code().code() == "42804" && one.hint().is_some()),
        "{said:?}"
    );
    let at = "column \"at\" is of type timestamp with time zone here and of type date in";
    assert!(
        messages[0].contains(at) && messages[0].contains("without the time of day"),
        "{messages:?}"
    );
    assert!(
        messages[1].contains("column \"n\"") && messages[1].contains("refused there"),
        "{messages:?}"
    );
    let found = checked(&fixture.left, "'t'");
    assert_found(
        &found,
        &[
            ("t|dst|warning|", "column \"at\""),
            ("t|dst|warning|", "column \"n\""),
        ],
    );
}
