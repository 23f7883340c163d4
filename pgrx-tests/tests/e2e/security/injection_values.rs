//! Values that carry SQL stay values: as keys and payload of every carrier, in every mode and policy, on the
//! way through the queue, marked failed, retried and by hand.

use postgres::Client;
use rowsync_harness::Fixture;

use crate::support::common::{
    attach, both_have, deal, linked, query, queued, records, rows, run, same,
};

const VALUES: [&str; 16] = [
    "'; drop table public.victim; --",
    "\\'; drop table public.victim; --",
    "\\\\'; drop table public.victim; --",
    "\"; drop table public.victim; --",
    "'); drop table public.victim; select ('",
    "\\",
    "'",
    "''\\''\\\\",
    "$$; drop table public.victim; $$ $q$ $1 ${1}",
    "/* -- */ ; \n -- \r\n\t",
    "E'\\047' U&'\\0027' x'27' \\047 \\x27 \\u0027 \\U00000027",
    "{\",NULL,\\\"}(,\"\"\\)[1:2]={,;",
    "%s %n %1$s {} {{0}} :v :'v' \\; \\! \\gexec",
    "\u{1}\u{8}\u{c}\u{7f}\u{85}\u{a0}\u{200b}\u{2028}\u{feff}\u{fffd}\u{ff07}",
    "ʼ＇′ｓ\u{5c}ソ表能ー\u{10fffd}",
    "NULL",
];

const POLICIES: [&str; 4] = ["overwrite", "error", "skip", "newest"];

fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// Tables whose keys and payload are of every carrier, and one that the values are after.
fn arrange(label: &str) -> Fixture {
    let fixture = linked(label);
    let labels: Vec<String> = VALUES.iter().map(|value| literal(value)).collect();
    for side in [&fixture.left, &fixture.right] {
        side.exec_superuser(&format!(
            "create table public.victim (v text); insert into public.victim values ('alive');
             alter table public.victim owner to {}",
            side.user
        ));
        side.exec(&format!(
            "create type word as enum ({}); create type pair as (a text, b text[]);
             create domain phrase as text;
             create table t (k text, b bytea, e word, a text[], n int default 0, v text, j jsonb,
               p pair, d phrase, vb bytea, ve word, va text[], vj json, x word[], y pair[],
               primary key (k, b, e, a));
             create table u (like t, primary key (k, e)); alter table u alter n set default 0",
            labels.join(", ")
        ));
    }
    fixture
}

/// The value in every column; the columns of the key may be told apart by `key`.
fn row(value: &str, key: &str) -> String {
    let v = literal(value);
    format!(
        "({v} || '{key}', convert_to({v}, 'UTF8'), {v}, array[{v}, null, {v}], 0, {v},
          jsonb_build_object({v}, {v}), row({v}, array[{v}])::pair, {v}, convert_to({v}, 'UTF8'), {v},
          array[[{v}], [{v}]], json_build_array({v}), array[{v}, null]::word[],
          array[row({v}, array[{v}])]::pair[])"
    )
}

/// Every form of statement, a row at a time and many at once.
fn write(client: &mut Client) {
    for value in VALUES {
        let v = literal(value);
        run(client, &format!("insert into t values {}", row(value, "")));
        run(
            client,
            &format!("update t set v = v || {v}, n = 1 where k = {v}"),
        );
        run(
            client,
            &format!("update t set k = k || 'moved', n = 2 where k = {v} and e = {v}"),
        );
    }
    let many: Vec<String> = VALUES.iter().map(|value| row(value, "many")).collect();
    run(client, &format!("insert into t values {}", many.join(", ")));
    run(
        client,
        "update t set d = d || v, a = a || v, n = 3 where k like '%many'",
    );
    run(
        client,
        "delete from t where k like '%moved' and n = 2 and length(k) % 2 = 0",
    );
    run(client, "update t set va = a, n = 4");
}

#[track_caller]
fn unharmed(fixture: &Fixture) {
    for side in [&fixture.left, &fixture.right] {
        assert_eq!(rows(side, "select * from public.victim"), ["alive"]);
    }
}

fn remote_strings(fixture: &Fixture, standard: &str) {
    fixture.right.exec_superuser(&format!(
        "alter role {0} set standard_conforming_strings = {standard};
         alter database {0} set backslash_quote = {standard}",
        fixture.right.user
    ));
}

fn options(mode: &str, policy: &str) -> String {
    let version = if policy == "newest" {
        r#", "version_column": "n""#
    } else {
        ""
    };
    format!(r#"{{"mode": "{mode}", "on_conflict": "{policy}"{version}}}"#)
}

#[test]
fn values_that_carry_sql_arrive_as_they_are() {
    let fixture = arrange("injvalues");
    for (step, policy) in POLICIES.iter().enumerate() {
        for (turn, mode) in ["async", "sync", "queue"].iter().enumerate() {
            remote_strings(&fixture, ["on", "off"][(step + turn) % 2]);
            let mut client = fixture.left.client();
            run(
                &mut client,
                &format!(
                    "set standard_conforming_strings = {}",
                    ["off", "on"][turn % 2]
                ),
            );
            attach(&fixture, "t", &options(mode, policy));
            run(&mut client, "truncate t");
            write(&mut client);
            if *mode == "queue" {
                assert!(deal(&fixture, "10000"));
            }
            assert_eq!(records(&fixture), [""; 0], "{mode} {policy}");
            let found = same(&fixture, "t");
            assert!(
                found.len() > VALUES.len(),
                "{mode} {policy}: {}",
                found.len()
            );
            // Met by what is there already, and missed.
            if *policy != "error" {
                fixture
                    .right
                    .exec("update t set n = -1, v = 'met'; delete from t where e::text < 'A'");
                let mut writer = fixture.left.client();
                run(
                    &mut writer,
                    "update t set v = k, n = 6; delete from t where k like '%many'",
                );
            }
            fixture.left.exec_superuser("delete from sync_err_rec");
            unharmed(&fixture);
            fixture
                .left
                .exec("select detach_sync('t', 'dst'); truncate t");
            fixture.right.exec("truncate t");
        }
    }
    let kinds = "select count(distinct type) > 1 from sync_conflicts where key is not null";
    assert_eq!(rows(&fixture.left, kinds), ["t"]);
}

#[test]
fn dst_query_of_values_that_carry_sql_is_run_by_hand() {
    let fixture = arrange("injhand");
    for policy in POLICIES {
        attach(&fixture, "t", &options("queue", policy));
        write(&mut fixture.left.client());
        let mut reader = fixture.left.superuser();
        let mut hand = fixture.right.client();
        for [shown, standard, encoding] in [
            ["on", "on", "UTF8"],
            ["off", "off", "UTF8"],
            ["on", "off", "UTF8"],
        ] {
            run(
                &mut reader,
                &format!("set standard_conforming_strings = {shown}"),
            );
            run(
                &mut hand,
                &format!(
                    "set standard_conforming_strings = {standard}; set backslash_quote = {standard};
                     set client_encoding = '{encoding}'; truncate t"
                ),
            );
            for sql in query(
                &mut reader,
                "select dst_query from sync_err_rec order by id",
            ) {
                run(&mut hand, &sql);
            }
            same(&fixture, "t");
        }
        run(&mut hand, "truncate t");
        assert!(deal(&fixture, "10000"));
        same(&fixture, "t");
        unharmed(&fixture);
        fixture
            .left
            .exec("select detach_sync('t', 'dst'); truncate t");
        fixture.right.exec("truncate t");
    }
}

#[test]
fn values_that_carry_sql_are_failed_and_retried() {
    let fixture = arrange("injfailed");
    remote_strings(&fixture, "off");
    attach(&fixture, "u", &options("async", "overwrite"));
    let constraint = r#""no'\; drop table public.victim; --""#;
    fixture.right.exec(&format!(
        "alter table u add constraint {constraint} check (n <> 3)"
    ));
    let mut client = fixture.left.client();
    let many: Vec<String> = VALUES.iter().map(|value| row(value, "many")).collect();
    run(
        &mut client,
        &format!("insert into u values {}", many.join(", ")),
    );
    run(&mut client, "update u set n = 3, v = v || k");
    assert_eq!(queued(&fixture), VALUES.len() as i64);
    assert!(!deal(&fixture, "1000"));
    // These wait behind what is marked failed.
    run(&mut client, "update u set d = v || d");
    let failed_records =
        "select distinct constraint_name, status from sync_err_rec where status = 'failed'";
    assert_eq!(
        rows(&fixture.left, failed_records),
        [r"no'\; drop table public.victim; --|failed"]
    );
    let ids = "select id from sync_err_rec where status = 'failed' order by id";
    let ids = query(&mut fixture.left.superuser(), ids);
    assert_eq!(ids.len(), VALUES.len());
    fixture
        .right
        .exec(&format!("alter table u drop constraint {constraint}"));
    for id in ids {
        let mut session = fixture.left.superuser();
        run(&mut session, "set standard_conforming_strings = off");
        run(&mut session, &format!("select retry_sync_err_rec({id})"));
    }
    assert!(deal(&fixture, "1000"));
    assert_eq!(records(&fixture), [""; 0]);
    assert_eq!(same(&fixture, "u").len(), VALUES.len());
    run(&mut client, "truncate u");
    both_have(&fixture, "u", &[]);
    unharmed(&fixture);
}
