//! CREATE EXTENSION into a schema in which somebody else was first: nothing that was there is taken for a part
//! of the extension, and nothing of it is called.

use postgres::Client;
use rowsync_harness::Fixture;
use rowsync_harness::side::describe;

use crate::security::trojan_objects::{PATH, TrojanObjects, disguise};
use crate::support::common::{attach_sql, query, rows, run, same};

/// What belongs to the extension, and whether it or a part of it is another's than the superuser's.
const MEMBERS: &str = "
    select pg_describe_object(d.classid, d.objid, 0), d.classid::regclass,
           coalesce(c.relkind::text, p.prokind::text, ''),
           coalesce(c.relname, p.proname, t.typname, ''), pg_get_function_identity_arguments(p.oid)
    from pg_depend d join pg_extension e on d.refobjid = e.oid and d.refclassid = 'pg_extension'::regclass
    left join pg_class c on d.classid = 'pg_class'::regclass and c.oid = d.objid
    left join pg_proc p on d.classid = 'pg_proc'::regclass and p.oid = d.objid
    left join pg_type t on d.classid = 'pg_type'::regclass and t.oid = d.objid
    where e.extname = 'pg_rowsync' and d.deptype = 'e'";

/// Indexes and sequences are no members: they belong to their tables.
const PARTS: &str = "
    select i.relname from pg_class i join pg_namespace n on n.oid = i.relnamespace
    where n.nspname = 'public' and i.relkind in ('i', 'S') and i.relname like 'sync\\_%'";

fn install(client: &mut Client, schema: &str) -> Result<(), postgres::Error> {
    client.batch_execute(&format!("create extension pg_rowsync schema {schema}"))
}

/// The extension works, under the policy that uses all of its tables.
#[track_caller]
fn works(fixture: &Fixture, schema: &str) {
    let user = &fixture.left.user;
    fixture.left.exec_superuser(&format!(
        "grant usage on foreign data wrapper pg_rowsync to {user};
         grant usage on schema {schema} to {user}"
    ));
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    let options = r#"{"on_conflict": "newest", "version_column": "n", "mode": "queue"}"#;
    fixture.left.exec(
        &attach_sql(fixture, "t", options).replace("attach_sync", &format!("{schema}.attach_sync")),
    );
    fixture.left.exec(
        "insert into t values (1, 1), (2, 1); update t set n = 1; delete from t where id = 1",
    );
    assert!(
        fixture
            .left
            .query_one::<bool>(&format!("select {schema}.deal_sync_err_rec(100)"))
    );
    assert_eq!(same(fixture, "t").len(), 1);
    rows(
        &fixture.left,
        &format!("select * from {schema}.sync_status, {schema}.sync_err_rec"),
    );
}

fn tables(fixture: &Fixture) {
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table t (id int primary key, n int)");
    }
}

#[test]
fn what_has_a_name_of_the_extensions_stops_its_creation() {
    let fixture = Fixture::new("trustclash");
    tables(&fixture);
    let trojans = TrojanObjects::new(&fixture.left);
    let members = rows(&fixture.left, MEMBERS);
    let mut parts = rows(&fixture.left, PARTS);
    fixture
        .left
        .exec_superuser("drop extension pg_rowsync cascade; drop schema planted cascade");
    let mut admin = fixture.left.superuser();
    let mut objects = Vec::new();
    for member in &members {
        let [_, class, _, name, arguments] = member
            .splitn(5, '|')
            .collect::<Vec<_>>()
            .try_into()
            .expect("five columns");
        match class {
            "pg_class" => parts.push(name.to_owned()),
            "pg_proc" => objects.push(format!(
                "create function s.{name}({}) returns int language plpgsql
                   as 'begin insert into seen.calls values (current_user, ''{name}''); return 1; end'",
                arguments.replace("TABLE", "")
            )),
            _ => {}
        }
    }
    assert!(
        objects.len() > 15 && parts.len() > 20,
        "{members:?} {parts:?}"
    );
    objects.extend(
        parts
            .iter()
            .map(|name| format!("create table s.{name} (id int)")),
    );
    objects.extend(parts.iter().map(|name| {
        format!("create table s.own (id int, o int); create index {name} on s.own (id, o)")
    }));
    objects.extend(
        parts
            .iter()
            .map(|name| format!("create type s.{name} as enum ()")),
    );
    for object in objects {
        run(
            &mut admin,
            &format!(
                "create schema s; grant usage, create on schema s to {}",
                trojans.role
            ),
        );
        run(&mut trojans.planter(), &object);
        let done = install(&mut admin, "s");
        // An index in the place of one of ours is as bad as a table.
        match done {
            Err(error) => {
                let code = error
                    .code()
                    .map(|code| code.code().to_owned())
                    .unwrap_or_default();
                // A sequence's name steps aside, and is then missed.
                let clashes = ["42P07", "42723", "42710", "42809", "55000"];
                assert!(clashes.contains(&code.as_str()), "{object}: {error:?}");
            }
            Ok(()) => {
                let taken = "select c.relname from pg_class c where c.relnamespace = 's'::regnamespace
                               and c.relowner <> 'postgres'::regrole and exists (select from pg_depend d
                                 where d.objid = c.oid and d.deptype in ('e', 'i')
                                   and d.refclassid = 'pg_extension'::regclass)";
                assert_eq!(query(&mut admin, taken), [""; 0], "{object}");
                works(&fixture, "s");
                fixture.right.exec("truncate t");
                run(&mut admin, "drop extension pg_rowsync cascade");
                fixture.left.exec("truncate t");
            }
        }
        assert_eq!(trojans.calls(), [""; 0], "{object}");
        run(&mut admin, "drop schema s cascade");
    }
}

#[test]
fn what_is_named_like_postgresqls_own_is_not_used_by_the_creation() {
    let fixture = Fixture::new("trustbuiltin");
    tables(&fixture);
    let trojans = TrojanObjects::new(&fixture.left);
    fixture
        .left
        .exec_superuser("drop extension pg_rowsync cascade");
    let mut planter = trojans.planter();
    // Those that have the names of the extension's would stop it.
    for kind in ["table", "function"] {
        let drop = format!(
            "do $$ declare o text; begin for o in select case '{kind}' when 'table' then c.oid::regclass::text
                 else '' end from pg_class c where relnamespace = 'planted'::regnamespace and relkind = 'r'
                 and relname like 'sync%' and '{kind}' = 'table'
               union all select p.oid::regprocedure::text from pg_proc p where '{kind}' = 'function'
                 and pronamespace = 'planted'::regnamespace and (proname like '%sync%')
             loop execute 'drop {kind} ' || o; end loop; end $$"
        );
        run(&mut planter, &drop);
    }
    // Overloads are none of ours.
    run(
        &mut planter,
        "create function planted.sync_change_sql(json, name) returns text language plpgsql
           as 'begin perform planted.spy(''overload''); return null; end';
         create function planted.pg_rowsync_fdw_validator(text[], oid, int default 0) returns void
           language plpgsql as 'begin perform planted.spy(''validator''); end'",
    );
    let mut admin = fixture.left.superuser();
    disguise(&mut admin);
    for settings in [
        "standard_conforming_strings = off",
        "check_function_bodies = off",
    ] {
        trojans.expose(&mut admin, PATH);
        run(&mut admin, &format!("set {settings}"));
        install(&mut admin, "planted").unwrap_or_else(|error| panic!("{error:?}"));
        run(&mut admin, "set search_path = pg_catalog, pg_temp");
        // Columns are of PostgreSQL's own types.
        let foreign = "select c.relname, a.attname, a.atttypid::regtype from pg_attribute a
             join pg_class c on c.oid = a.attrelid join pg_type t on t.oid = a.atttypid
             join pg_depend d on d.objid = c.oid and d.deptype = 'e'
             where a.attnum > 0 and t.typnamespace <> 'pg_catalog'::regnamespace";
        assert_eq!(query(&mut admin, foreign), [""; 0]);
        let wrong = "select p.oid::regprocedure from pg_proc p join pg_depend d on d.objid = p.oid
             and d.deptype = 'e' and d.refclassid = 'pg_extension'::regclass
             join pg_extension e on e.oid = d.refobjid and e.extname = 'pg_rowsync'
             left join lateral unnest(p.proargtypes) as a(type) on true
             left join pg_type t on t.oid = a.type or t.oid = p.prorettype
             where t.typnamespace <> 'pg_catalog'::regnamespace or p.prosecdef";
        assert_eq!(query(&mut admin, wrong), [""; 0]);
        works(&fixture, "planted");
        assert_eq!(trojans.calls(), [""; 0], "{settings}");
        run(&mut admin, "drop extension pg_rowsync cascade");
        fixture.left.exec("truncate t");
        fixture.right.exec("truncate t");
    }
}

#[test]
fn schemas_whose_names_carry_sql_are_refused_or_only_names() {
    let fixture = Fixture::new("trustschema");
    tables(&fixture);
    fixture
        .left
        .exec_superuser("drop extension pg_rowsync cascade; create table public.victim (v int)");
    let mut admin = fixture.left.superuser();
    let mut works_in = 0;
    for name in [
        "a; drop table public.victim; select (",
        "%s {} @extschema@ $1 E",
        "a; drop table public.victim; --",
        "/* */ ",
        "tab\t\nline",
        "a\"; drop table public.victim; --",
        "a'; drop table public.victim; --",
        "a\\'; drop table public.victim; --",
        "$$; drop table public.victim; $$",
        "$ext$",
    ] {
        let schema = format!("\"{}\"", name.replace('"', "\"\""));
        run(&mut admin, &format!("create schema {schema}"));
        match install(&mut admin, &schema) {
            // PostgreSQL lets no name with a quote, a dollar or a backslash into a script.
            Err(error) => {
                let said = describe(&error);
                assert!(said.contains("invalid"), "{name}: {said}");
            }
            Ok(()) => {
                works_in += 1;
                works(&fixture, &schema);
                run(&mut admin, "drop extension pg_rowsync cascade");
                fixture.left.exec("truncate t");
                fixture.right.exec("truncate t");
            }
        }
        assert_eq!(
            query(&mut admin, "select count(*) from public.victim"),
            ["0"],
            "{name}"
        );
        run(&mut admin, &format!("drop schema {schema} cascade"));
    }
    assert!(works_in > 0);
}
