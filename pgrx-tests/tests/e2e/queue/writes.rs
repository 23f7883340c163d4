//! How records come into the queue: as by any INSERT, whatever the session has seen before.

use rowsync_harness::fixture::Fixture;

use crate::support::common::{
    attach, deal, linked, mirror, one_way, outage, queued, recover, rows, run, same,
};

#[test]
fn triggers_that_somebody_has_put_on_the_queue_fire() {
    let fixture = one_way("alerts", "id int primary key, v text", "{}");
    fixture.left.exec_superuser(
        "create table public.alert (what text);
         create function public.alert() returns trigger language plpgsql as $$ begin
           insert into public.alert values (concat_ws(' ', tg_when, tg_level, new.table_name));
           if tg_when = 'BEFORE' and tg_level = 'ROW' then new.message := 'seen'; end if;
           return new; end $$;
         create trigger one before insert on sync_queue for each statement
           execute function public.alert();
         create trigger two before insert on sync_queue for each row
           execute function public.alert();
         create trigger three after insert on sync_queue for each row
           execute function public.alert();
         create trigger four after insert on sync_queue for each statement
           execute function public.alert()",
    );
    outage(&fixture.right);
    fixture.left.exec("insert into t values (1, 'x'), (2, 'y')");
    let alerts = "select string_agg(what, ', ') from public.alert";
    assert_eq!(
        rows(&fixture.left, alerts),
        ["BEFORE STATEMENT, BEFORE ROW t, BEFORE ROW t, AFTER ROW t, AFTER ROW t, AFTER STATEMENT"]
    );
    assert_eq!(
        rows(&fixture.left, "select distinct message from sync_queue"),
        ["seen"]
    );
    recover(&fixture.right);
    assert!(deal(&fixture, "100"));
    same(&fixture, "t");
}

#[test]
fn a_trigger_that_refuses_records_fails_the_transaction() {
    let fixture = one_way("refusing", "id int primary key, v text", "{}");
    fixture.left.exec_superuser(
        "create function public.refuse() returns trigger language plpgsql as $$ begin
           raise 'no more records' using errcode = 'P0001'; end $$;
         create trigger refuse before insert on sync_queue for each row
           execute function public.refuse()",
    );
    outage(&fixture.right);
    let mut client = fixture.left.client();
    crate::support::common::refused(&mut client, "insert into t values (1, 'x')", "P0001");
    assert_eq!(
        (
            rows(&fixture.left, "select count(*) from t"),
            queued(&fixture)
        ),
        (vec!["0".into()], 0)
    );
}

/// A session knows the ids of its routes from before.
#[test]
fn routes_that_are_gone_are_written_again() {
    let fixture = one_way("gone", "id int primary key, v text", r#"{"mode": "queue"}"#);
    let mut client = fixture.left.client();
    for n in 1..=3 {
        run(&mut client, &format!("insert into t values ({n}, 'new')"));
        assert!(deal(&fixture, "100"));
        fixture.left.exec_superuser("delete from sync_route");
    }
    same(&fixture, "t");
}

#[test]
fn another_extension_has_other_routes() {
    let fixture = one_way(
        "again",
        "id int primary key, v text",
        r#"{"mode": "queue"}"#,
    );
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'new')");
    assert!(deal(&fixture, "100"));
    make_again(&fixture);
    // Its first route takes the number that the first one of the other had.
    mirror(
        &fixture,
        "u",
        "id int primary key, v text",
        r#"{"mode": "queue"}"#,
    );
    fixture.left.exec("insert into u values (1, 'of u')");
    attach(&fixture, "t", r#"{"mode": "queue"}"#);
    run(&mut client, "insert into t values (2, 'new')");
    assert!(deal(&fixture, "100"));
    same(&fixture, "t");
    same(&fixture, "u");
}

/// The extension of the left side, with everything that hangs on it, goes and comes again.
fn make_again(fixture: &Fixture) {
    let user = &fixture.left.user;
    fixture.left.exec_superuser(&format!(
        "drop extension pg_rowsync cascade; create extension pg_rowsync;
         grant usage on foreign data wrapper pg_rowsync to {user};
         grant execute on function deal_sync_err_rec(integer, text) to {user}"
    ));
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
}

/// Many rows, and values that are large.
#[test]
fn large_records_arrive() {
    let fixture = linked("large_records");
    mirror(
        &fixture,
        "t",
        "id int primary key, v text",
        r#"{"mode": "queue"}"#,
    );
    fixture.left.exec(
        "insert into t select g, repeat(md5(g::text), 1 + g % 2000) from generate_series(1, 3000) g",
    );
    assert_eq!(queued(&fixture), 3000);
    assert!(deal(&fixture, "10000"));
    same(&fixture, "t");
}
