//! What each role may do with each object of the extension, and that nobody lends his rights to another.

use postgres::Client;
use rowsync_harness::{Fixture, Side};

use crate::support::common::{
    Role, attach_sql, both_have, deal, linked, mirror, one_way, outage, query, queued, records,
    recover, refused, rows, run, table,
};

const COLUMNS: &str = "id int primary key, v text";
const SYNC: &str = r#"{"mode": "sync"}"#;

/// Every object that can be used: what everybody may do with it, and what who looks after the queue may do.
/// An object that is new is to be decided upon here.
const MATRIX: &[(&str, &str, &str)] = &[
    ("adopt_sync()", "", ""),
    (
        "attach_sync(regclass,text,text,jsonb,boolean)",
        "execute",
        "execute",
    ),
    (
        "attach_sync_schema(text,text,text,jsonb,boolean)",
        "execute",
        "execute",
    ),
    ("check_sync(regclass,text)", "execute", "execute"),
    ("copy_sync(regclass,text,text)", "execute", "execute"),
    ("deal_sync_err_rec(integer,text)", "", "execute"),
    ("detach_sync(regclass,text)", "execute", "execute"),
    ("pause_sync(text)", "execute", "execute"),
    ("pg_rowsync", "", ""),
    ("pg_rowsync_fdw_validator(text[],oid)", "execute", "execute"),
    ("repair_sync(regclass,text,jsonb)", "execute", "execute"),
    ("resolve_sync_prepared(text)", "", ""),
    ("resume_sync(text)", "execute", "execute"),
    ("retry_sync_err_rec(bigint)", "", "execute"),
    ("start_sync_worker()", "", "execute"),
    ("stop_sync_worker()", "", "execute"),
    ("sync_alive", "", ""),
    ("sync_attachments()", "execute", "execute"),
    ("sync_change_sql(text,text)", "execute", "execute"),
    (
        "sync_compare_versions(regclass,bigint,regtype,text,bigint,text)",
        "execute",
        "execute",
    ),
    ("sync_comparisons()", "execute", "execute"),
    ("sync_conflict_counters()", "execute", "execute"),
    ("sync_conflict_counts", "", "select"),
    ("sync_conflict_log", "", ""),
    ("sync_conflict_log_id_seq", "", ""),
    ("sync_conflicts", "", "select"),
    ("sync_connections()", "execute", "execute"),
    ("sync_copy", "", ""),
    ("sync_copy_id_seq", "", ""),
    ("sync_counters()", "execute", "execute"),
    ("sync_crash", "", ""),
    (
        "sync_deleted_later(regclass,bigint,regtype,text,bigint)",
        "execute",
        "execute",
    ),
    ("sync_disconnect(text)", "execute", "execute"),
    ("sync_dml()", "execute", "execute"),
    ("sync_drain", "", ""),
    ("sync_drain_id_seq", "", ""),
    ("sync_err_rec", "", "delete select"),
    ("sync_has_crashed()", "execute", "execute"),
    ("sync_holds(text,regtype,integer)", "execute", "execute"),
    ("sync_home", "", ""),
    ("sync_identity_changed()", "", ""),
    ("sync_is_copy()", "execute", "execute"),
    (
        "sync_keep_version(regclass,record,regtype,text,bigint,boolean,boolean,text)",
        "execute",
        "execute",
    ),
    ("sync_lost_session", "", ""),
    ("sync_lost_session_id_seq", "", ""),
    ("sync_node", "", ""),
    ("sync_not_replicated()", "", ""),
    ("sync_owner_state", "", ""),
    ("sync_pause", "", ""),
    ("sync_prepared", "", ""),
    ("sync_prepared_transaction", "", ""),
    ("sync_progress", "", "select"),
    ("sync_progress_log", "", ""),
    ("sync_queue", "", ""),
    ("sync_queue_discarded()", "", ""),
    ("sync_queue_floor", "", ""),
    ("sync_queue_id_seq", "", ""),
    ("sync_replay_seq", "", ""),
    ("sync_route", "", ""),
    ("sync_route_id_seq", "", ""),
    ("sync_row_has_come(regclass,record)", "execute", "execute"),
    ("sync_row_version", "", ""),
    ("sync_server_state", "", ""),
    ("sync_status", "", "select"),
    ("sync_tables", "select", "select"),
    ("sync_worker_state()", "execute", "execute"),
    ("verify_sync(regclass,text,jsonb)", "execute", "execute"),
    ("wait_sync(text,interval)", "execute", "execute"),
];

/// What a role may do with the objects of the extension.
fn rights(side: &Side, role: &str) -> Vec<String> {
    let sql = format!(
        "with own as (
           select d.classid, d.objid from pg_depend d where d.deptype = 'e'
              and d.refobjid = (select oid from pg_extension where extname = 'pg_rowsync')),
         part as (
           select classid, objid from own
           union select d.classid, d.objid from pg_depend d join own on d.refobjid = own.objid
              and d.refclassid = own.classid and own.classid = 'pg_class'::regclass
            where d.classid = 'pg_class'::regclass and d.deptype in ('a', 'i')),
         found as (
           select p.oid::regprocedure::text as name, 'execute' as may
             from part join pg_proc p on p.oid = objid and classid = 'pg_proc'::regclass
           union all
           select c.relname, may from part join pg_class c on c.oid = objid
              and classid = 'pg_class'::regclass and c.relkind not in ('i', 't'),
              unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references',
                           'trigger', 'usage']) may
           union all
           select w.fdwname, 'usage' from part join pg_foreign_data_wrapper w on w.oid = objid
              and classid = 'pg_foreign_data_wrapper'::regclass)
         select name, coalesce(string_agg(may, ' ' order by may) filter (where case
             when name ~ '[)]$' then has_function_privilege('{role}', name, may)
             when name = 'pg_rowsync' then has_foreign_data_wrapper_privilege('{role}', name, may)
             when name ~ '_seq$' then may in ('select', 'update', 'usage')
               and has_sequence_privilege('{role}', name, may)
             when may in ('select', 'insert', 'update', 'references')
               then has_any_column_privilege('{role}', name, may)
             else may <> 'usage' and has_table_privilege('{role}', name, may) end), '')
           from found group by name order by name collate \"C\""
    );
    rows(side, &sql)
}

/// The statements that the documentation gives for a role that looks after the queue.
fn operator(fixture: &Fixture) -> Role {
    let chapter = include_str!("../../../../doc/security.md");
    let (_, grants) = chapter
        .split_once("CREATE ROLE sync_operator LOGIN;")
        .expect("the role");
    let (grants, _) = grants.split_once("```").expect("the end of its grants");
    let role = Role::create(&fixture.left, "operator", "");
    fixture
        .left
        .exec_superuser(&grants.replace("sync_operator", &role.name));
    role
}

#[test]
fn what_a_role_may_do_has_been_decided_for_every_object() {
    let fixture = linked("matrix");
    let operator = operator(&fixture);
    let outsider = Role::create(&fixture.left, "outsider", "");
    let expected = |what: fn(&(&'static str, &'static str, &'static str)) -> &'static str| {
        MATRIX
            .iter()
            .map(|row| format!("{}|{}", row.0, what(row)))
            .collect::<Vec<_>>()
    };
    assert_eq!(rights(&fixture.left, "public"), expected(|row| row.1));
    assert_eq!(rights(&fixture.left, &outsider.name), expected(|row| row.1));
    assert_eq!(rights(&fixture.left, &operator.name), expected(|row| row.2));
    // Who owns tables that are sent may, beyond that, make servers, if that was granted.
    let mut owners = expected(|row| row.1);
    owners
        .iter_mut()
        .filter(|row| *row == "pg_rowsync|")
        .for_each(|row| row.push_str("usage"));
    assert_eq!(rights(&fixture.left, &fixture.left.user), owners);
    assert!(
        rights(&fixture.left, "postgres")
            .iter()
            .all(|row| !row.ends_with('|'))
    );
    let definers = "select p.oid::regprocedure from pg_depend d join pg_proc p on p.oid = d.objid
                     where d.classid = 'pg_proc'::regclass and d.deptype = 'e' and p.prosecdef";
    assert_eq!(rows(&fixture.left, definers), [""; 0]);
}

#[test]
fn an_operator_does_what_the_documentation_says_and_nothing_else() {
    let fixture = one_way("operator", COLUMNS, "{}");
    let operator = operator(&fixture);
    let mut client = operator.client();
    fixture
        .right
        .exec("alter table t add constraint small check (id < 10)");
    fixture
        .left
        .exec("insert into t values (1, 'a'), (11, 'b'), (12, 'c')");
    // It finds its way with no help of the search path, under any role it may set.
    run(&mut client, "set search_path = public");
    assert_eq!(query(&mut client, "select deal_sync_err_rec(10)"), ["f"]);
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    let look = "select status, dst_query like '%INSERT%' from sync_err_rec order by id";
    assert_eq!(query(&mut client, look), ["failed|t", "failed|t"]);
    assert_eq!(query(&mut client, "select failed from sync_status"), ["2"]);
    for view in ["sync_conflicts", "sync_conflict_counts"] {
        query(&mut client, &format!("select * from {view}"));
    }
    fixture.right.exec("alter table t drop constraint small");
    let retry = "select retry_sync_err_rec(max(id)) from sync_err_rec";
    assert_eq!(query(&mut client, retry), ["t"]);
    run(&mut client, "delete from sync_err_rec");
    assert_eq!(
        (table(&fixture.right, "t"), queued(&fixture)),
        (vec!["1|a".into(), "12|c".into()], 0)
    );
    assert_eq!(query(&mut client, "select start_sync_worker()"), ["t"]);
    assert_eq!(query(&mut client, "select stop_sync_worker()"), ["t"]);
    fixture
        .left
        .exec_superuser("alter table sync_queue disable trigger user");
    outage(&fixture.right);
    fixture.left.exec("insert into t values (2, 'b')");
    recover(&fixture.right);
    for sql in [
        "select change from sync_queue",
        "select owner from sync_queue",
        "select body from sync_route",
        "table sync_lost_session",
        "table sync_owner_state",
        "table sync_drain",
        "table sync_pause",
        "table sync_crash",
        "table sync_server_state",
        "table sync_conflict_log",
        "table sync_row_version",
        "update sync_err_rec set status = 'pending'",
        "update sync_err_rec set message = ''",
        "insert into sync_err_rec (dst_server) values ('dst')",
        "insert into sync_queue (dst_server) values ('dst')",
        "delete from sync_queue",
        "delete from sync_conflicts",
        "truncate sync_queue",
        "select usename, umoptions from pg_user_mapping, pg_user",
        "alter server dst options (set port '1')",
        "create server other foreign data wrapper pg_rowsync",
        "select attach_sync('t', 'dst')",
        "select detach_sync('t', 'dst')",
        "set pg_rowsync.application_name = 'x'",
        "table t",
        "create trigger sync_queue after insert on sync_queue for each row execute function sync_dml()",
    ] {
        run(
            &mut client,
            &format!("set search_path = public, {}", fixture.left.user),
        );
        refused(&mut client, sql, "42501");
    }
    let mapping = format!("user mapping for {} server dst", fixture.left.user);
    refused(&mut client, &format!("drop {mapping}"), "42501");
    refused(
        &mut client,
        &format!("alter {mapping} options (set password 'x')"),
        "42501",
    );
    let options = "select umoptions from pg_user_mappings where srvname = 'dst'";
    assert_eq!(query(&mut client, options), ["~"]);
    assert_eq!(records(&fixture), ["INSERT|28000|1|pending"]);
}

/// What a session finds first: things of its own under the names of ours and of the server's.
fn lure(client: &mut Client, name: &str, user: &str) {
    run(
        client,
        &format!(
            "create schema {name}_lure; set search_path = {name}_lure, public, {user}, pg_catalog;
             create function lured() returns boolean language plpgsql as
               $$ begin raise 'lured by %', current_user; end $$;
             create function no(text, text) returns boolean language sql as 'select lured()';
             create function no(bigint, bigint) returns boolean language sql as 'select lured()';
             create operator = (function = no, leftarg = text, rightarg = text);
             create operator = (function = no, leftarg = bigint, rightarg = bigint);
             create function clock_timestamp() returns timestamptz language sql as 'select lured()::text::timestamptz';
             create function unnest(text[]) returns setof text language sql as 'select lured()::text';
             create temp table sync_queue (id bigint, dst_server text);
             create temp table sync_route (id bigint);
             create temp table pg_foreign_server (oid oid)"
        ),
    );
}

#[test]
fn nothing_in_a_callers_search_path_is_called() {
    let fixture = one_way("lured", COLUMNS, "{}");
    let operator = operator(&fixture);
    fixture.left.exec_superuser(&format!(
        "grant create on database {} to {}; grant {2} to {1}",
        fixture.left.db, operator.name, fixture.left.user
    ));
    outage(&fixture.right);
    fixture.left.exec("insert into t values (1, 'a')");
    recover(&fixture.right);
    fixture
        .right
        .exec("alter table t add constraint small check (id < 10)");
    let mut client = operator.client();
    lure(&mut client, &operator.name, &fixture.left.user);
    assert_eq!(
        query(&mut client, "select public.deal_sync_err_rec(10)"),
        ["t"]
    );
    run(&mut client, "insert into t values (2, 'a'), (11, 'a')");
    assert_eq!(
        query(&mut client, "select public.deal_sync_err_rec(10)"),
        ["f"]
    );
    let id = rows(&fixture.left, "select id from public.sync_err_rec").remove(0);
    assert_eq!(
        query(
            &mut client,
            &format!("select public.retry_sync_err_rec({id})")
        ),
        ["f"]
    );
    assert_eq!(
        query(&mut client, "select count(*) from public.sync_status"),
        ["1"]
    );
    run(
        &mut client,
        "select public.sync_connections(); select public.sync_disconnect('dst')",
    );
    run(
        &mut client,
        "select public.start_sync_worker(); select public.stop_sync_worker()",
    );
    run(&mut client, "select public.detach_sync('t', 'dst')");
    run(&mut client, &attach_sql(&fixture, "t", SYNC));
    run(&mut client, "delete from t where id = 2");
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
    run(
        &mut client,
        &format!("delete from public.sync_err_rec where id operator(pg_catalog.=) {id}"),
    );
    // What it owns goes with it: not the schema of the one that it has become a member of.
    run(
        &mut client,
        &format!("drop schema {}_lure cascade", operator.name),
    );
}

/// A superuser's maintenance runs functions that others wrote: as those, and with nothing of the superuser's.
#[test]
fn maintenance_of_anothers_table_delivers_nothing_of_the_superusers() {
    let fixture = linked("maintained");
    let user = fixture.left.user.clone();
    let Side {
        user: there,
        password,
        ..
    } = &fixture.right;
    let attacker = Role::create(&fixture.left, "attacker", "");
    mirror(&fixture, "t", COLUMNS, "{}");
    fixture.right.exec(&format!(
        "create table s ({COLUMNS}); create table o ({COLUMNS})"
    ));
    fixture.left.exec_superuser(&format!(
        "create user mapping for postgres server dst options (user '{there}', password '{password}');
         grant usage on foreign server dst to {};
         create table {user}.s ({COLUMNS});
         select attach_sync('{user}.s', 'dst', '{there}.s', '{SYNC}')",
        attacker.name
    ));
    outage(&fixture.right);
    fixture.left.exec("insert into t values (1, 'queued')");
    recover(&fixture.right);
    let id = rows(&fixture.left, "select id from sync_err_rec").remove(0);
    let mut theirs = attacker.client();
    run(
        &mut theirs,
        &format!(
            "create table o ({COLUMNS}); create table bait (call text);
             create function called(call text) returns int language plpgsql
               set search_path = {user}, public as $$
             begin
                 if session_user = 'postgres' then execute call; end if;
                 return 1;
             end $$;
             create function baited(call text) returns int immutable language plpgsql as
               $$ begin return {user}.called(call); end $$;
             create index on bait (baited(call));
             create materialized view view as select 1 as one where false"
        ),
    );
    let calls = [
        ("select deal_sync_err_rec(10)".to_owned(), "42501"),
        (format!("select retry_sync_err_rec({id})"), "42501"),
        ("select start_sync_worker()".to_owned(), "42501"),
        ("select stop_sync_worker()".to_owned(), "42501"),
        ("delete from sync_err_rec".to_owned(), "42501"),
        ("insert into s values (1, 'x')".to_owned(), "42501"),
        ("select attach_sync('s', 'dst')".to_owned(), "42501"),
        ("select detach_sync('s', 'dst')".to_owned(), "42501"),
        (
            "select sync_keep_version('s', row(1), 'int', '1', 1, false, false, '1')".to_owned(),
            "42501",
        ),
        ("select sync_row_has_come('s', row(1))".to_owned(), "42501"),
        ("set role postgres".to_owned(), "42501"),
        // His own table goes over his own mapping, which he has not.
        (
            format!("select attach_sync('o', 'dst', '{there}.o'); insert into o values (1, 'x')"),
            "42704",
        ),
    ];
    let mut superuser = fixture.left.superuser();
    for (call, sqlstate) in &calls {
        run(
            &mut theirs,
            &format!("truncate bait; insert into bait values ($${call}$$)"),
        );
        for sql in [
            "reindex table {}.bait",
            "vacuum full {}.bait",
            "analyze {}.bait",
        ] {
            refused(&mut superuser, &sql.replace("{}", &user), sqlstate);
        }
        run(&mut theirs, "drop materialized view view");
        run(
            &mut theirs,
            &format!("create materialized view view as select baited($${call}$$)"),
        );
        refused(
            &mut superuser,
            &format!("refresh materialized view {user}.view"),
            sqlstate,
        );
    }
    assert_eq!(table(&fixture.right, "s"), [""; 0]);
    assert_eq!(table(&fixture.right, "o"), [""; 0]);
    assert_eq!(records(&fixture).len(), 1);
    assert!(deal(&fixture, "10"));
    // Nor is the superuser's session, once it goes on, one that is not captured.
    let taken = "select set_config('application_name', 'pg_rowsync', false)";
    run(
        &mut theirs,
        &format!("truncate bait; insert into bait values ($${taken}$$)"),
    );
    run(
        &mut superuser,
        &format!("reindex table {user}.bait; insert into {user}.s values (1, 'a')"),
    );
    both_have(&fixture, "s", &["1|a"]);
}
