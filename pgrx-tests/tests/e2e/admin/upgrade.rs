//! From one version of the extension to the next: `ALTER EXTENSION UPDATE`, and a library that is
//! replaced while sessions and a worker run.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use rowsync_harness::cluster::{Cluster, TEST_SETTINGS};
use rowsync_harness::fixture::clusters;
use rowsync_harness::setup::{self, Postgres};
use rowsync_harness::{Fixture, Side, reaper};

use crate::admin::lived_in::LivedIn;
use crate::support::common::{mirror, query, rows, run, same};
use crate::support::preloaded::{EAGER, await_drained, worker};

/// Everything that belongs to the extension, as far as two installations of it are the same: what it
/// is, what may be done with it, what is said of it. The schema is `public` in both.
const OBJECTS: &str = r#"
with member as (
    select classid, objid from pg_depend
     where refclassid = 'pg_extension'::regclass and deptype = 'e'
       and refobjid = (select oid from pg_extension where extname = 'pg_rowsync')),
relation as (
    select c.* from pg_class c where exists (select from member where objid = c.oid
       and classid = 'pg_class'::regclass)
    union
    select i.* from pg_class i join pg_index x on x.indexrelid = i.oid
      join member on member.objid = x.indrelid and classid = 'pg_class'::regclass),
said as (
    select classoid, objoid, objsubid, description from pg_description)
select 'member ' || pg_describe_object(classid, objid, 0) from member
union all
select 'function ' || p.oid::regprocedure || ' ' || pg_get_functiondef(p.oid) || ' '
       || coalesce(p.proacl::text, '') || ' ' || p.proowner::regrole
  from member join pg_proc p on p.oid = objid where classid = 'pg_proc'::regclass
union all
select format('relation %s kind %s options %s acl %s owner %s persistence %s replica %s', c.oid::regclass,
       c.relkind, c.reloptions, c.relacl, c.relowner::regrole, c.relpersistence, c.relreplident)
  from relation c
union all
select format('column %s.%s place %s type %s not null %s default %s identity %s collation %s storage %s acl %s options %s',
       c.oid::regclass, a.attname, row_number() over (partition by c.oid order by a.attnum),
       format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attidentity,
       a.attcollation::regcollation, a.attstorage, a.attacl,
       -- Some minor versions keep something of their own there.
       (select array_agg(o order by o) from unnest(a.attoptions) o where o not like 'pg\_attver=%'))
  from relation c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
union all
select format('constraint %s %s %s', o.conrelid::regclass, o.conname, pg_get_constraintdef(o.oid))
  from relation c join pg_constraint o on o.conrelid = c.oid
union all
select 'index ' || pg_get_indexdef(c.oid) from relation c where c.relkind = 'i'
union all
select format('trigger %s %s', pg_get_triggerdef(t.oid), t.tgenabled)
  from relation c join pg_trigger t on t.tgrelid = c.oid
union all
select format('view %s %s', c.oid::regclass, pg_get_viewdef(c.oid)) from relation c where c.relkind = 'v'
union all
select format('sequence %s %s', s.seqrelid::regclass, row(seqtypid::regtype, seqstart, seqincrement, seqmax,
       seqmin, seqcache, seqcycle)) from relation c join pg_sequence s on s.seqrelid = c.oid
union all
select format('wrapper %s %s %s %s %s', fdwname, fdwhandler::regproc, fdwvalidator::regproc, fdwacl, fdwoptions)
  from member join pg_foreign_data_wrapper w on w.oid = objid
 where classid = 'pg_foreign_data_wrapper'::regclass
union all
select format('event trigger %s %s %s %s', evtname, evtevent, evtfoid::regproc, evtenabled)
  from member join pg_event_trigger e on e.oid = objid where classid = 'pg_event_trigger'::regclass
union all
select format('comment on %s: %s', pg_describe_object(classoid, objoid, objsubid), description)
  from said where (classoid, objoid) in (select classid, objid from member)
     or classoid = 'pg_trigger'::regclass and objoid in (select t.oid from pg_trigger t join relation c on c.oid = t.tgrelid)
union all
select format('initial privileges of %s: %s', pg_describe_object(i.classoid, i.objoid, i.objsubid), i.initprivs)
  from pg_init_privs i where (i.classoid, i.objoid) in (select classid, objid from member)
union all
select format('dumped: %s %s', c::regclass, condition)
  from pg_extension, unnest(extconfig, extcondition) as dumped (c, condition) where extname = 'pg_rowsync'
union all
select format('extension %s %s %s', extversion, extrelocatable, extnamespace::regnamespace)
  from pg_extension where extname = 'pg_rowsync'
order by 1"#;

/// The objects of a database's extension; its owner has the same name in each.
fn objects(side: &Side) -> Vec<String> {
    let owned = |object: String| object.replace(&side.user, "owner");
    query(&mut side.superuser(), OBJECTS)
        .into_iter()
        .map(owned)
        .collect()
}

/// An installation like the one that is tested, which nothing else uses.
fn own_installation(label: &str) -> Postgres {
    let folder = reaper::base().expect("a folder").join(label);
    Postgres::find()
        .and_then(|tested| tested.copy_to(&folder))
        .expect("a copy")
}

#[test]
fn every_released_version_is_updated_to_what_a_fresh_one_is() {
    let versions = setup::released_versions().expect("the released scripts");
    let own = own_installation("released");
    for version in &versions {
        let name = setup::full_script(version);
        let script = |folder: PathBuf| fs::read(folder.join(&name)).expect("a script");
        assert!(
            script(own.extensions().expect("a folder")) == script(setup::released_scripts()),
            "{name} is not installed as it was released"
        );
    }
    let cluster = Cluster::start_of(&own, "updated", TEST_SETTINGS).expect("a cluster");
    let cluster = Arc::new(cluster);
    let fresh = Side::create(&cluster, "fresh").expect("a database");
    let expected = objects(&fresh);
    assert!(expected.len() > 300, "{}", expected.len());
    let current = env!("CARGO_PKG_VERSION");
    for version in versions {
        let label = version.replace('.', "_");
        let left = Side::create_without_extension(&cluster, &format!("here_{label}"));
        let left = left.expect("a database");
        left.exec_superuser(&format!(
            "create extension pg_rowsync schema public version '{version}';
             grant usage on foreign data wrapper pg_rowsync to {}",
            left.user
        ));
        let right = Side::create(&cluster, &format!("there_{label}")).expect("a database");
        let mut lived_in = LivedIn::new(left.clone(), right).with_a_second_phase_to_come();
        // Sessions that know the objects as they were.
        let mut before = left.client();
        run(&mut before, "update direct set v = 'known' where id = 5");
        let mut open = left.client();
        run(
            &mut open,
            "begin; update direct set v = 'open' where id = 6",
        );
        lived_in.remember();
        left.exec_superuser("alter extension pg_rowsync update");
        assert_eq!(
            query(
                &mut left.superuser(),
                "select extversion from pg_extension where extname = 'pg_rowsync'"
            ),
            [current]
        );
        let updated = objects(&left);
        let missing: Vec<_> = expected
            .iter()
            .filter(|object| !updated.contains(object))
            .collect();
        let extra: Vec<_> = updated
            .iter()
            .filter(|object| !expected.contains(object))
            .collect();
        assert!(
            missing.is_empty() && extra.is_empty(),
            "updated from {version}, missing: {missing:#?}, there instead: {extra:#?}"
        );
        lived_in.is_kept();
        run(
            &mut before,
            "update direct set v = 'after' where id = 5; update later set v = 'after' where id = 5",
        );
        run(
            &mut open,
            "update later set v = 'open' where id = 6; commit",
        );
        lived_in.goes_on(false);
        let seen = rows(
            &lived_in.fixture.right,
            "select d.v, l.v from direct d join later l using (id) where id in (5, 6) order by id",
        );
        assert_eq!(seen, ["after|after", "open|open"]);
    }
}

/// What a package manager does: the new file takes the old one's name, and whoever runs the old one
/// keeps it.
fn replace_library(postgres: &Postgres) {
    let library = postgres
        .libraries()
        .expect("a folder")
        .join("pg_rowsync.so");
    let mut bytes = fs::read(&library).expect("the library");
    // Another file than before, which does the same: what follows the sections is not read.
    bytes.extend(b"another build");
    let new = library.with_extension("new");
    fs::write(&new, bytes).expect("a file");
    fs::rename(&new, &library).expect("another library");
}

#[test]
fn a_library_replaced_under_sessions_and_a_worker_harms_none() {
    let own = own_installation("replaced");
    for preload in ["", "pg_rowsync"] {
        let settings = [
            TEST_SETTINGS,
            &[("shared_preload_libraries", preload)],
            EAGER,
        ]
        .concat();
        let label = format!("replaced{preload}");
        let cluster = Arc::new(Cluster::start_of(&own, &label, &settings).expect("a cluster"));
        let fixture = Fixture {
            left: Side::create(&cluster, "here").expect("a database"),
            right: Side::create(clusters().1, &format!("there_{label}")).expect("a database"),
        };
        fixture.link(&fixture.left, &fixture.right, "dst", &[]);
        mirror(&fixture, "t", "id int primary key, v text", "{}");
        mirror(
            &fixture,
            "q",
            "id int primary key, v text",
            r#"{"mode": "queue"}"#,
        );
        if preload.is_empty() {
            fixture.left.exec_superuser("select start_sync_worker()");
        }
        let mut old = fixture.left.client();
        let mut open = fixture.left.client();
        run(&mut old, "insert into t values (1, 'old')");
        run(&mut old, "insert into q values (1, 'old')");
        let old_worker = worker(&fixture);
        run(
            &mut open,
            "begin; insert into t values (2, 'open'); insert into q values (2, 'open')",
        );
        let started: String = fixture
            .left
            .query_one("select pg_postmaster_start_time()::text");
        replace_library(&own);
        let mut new = fixture.left.client();
        for (client, id) in [(&mut old, 3), (&mut new, 4), (&mut open, 5)] {
            run(
                client,
                &format!("insert into t values ({id}, 'x'); update t set v = 'y'"),
            );
            run(client, &format!("insert into q values ({id}, 'x')"));
            if id == 5 {
                run(client, "commit");
            }
        }
        await_drained(&fixture);
        assert_eq!(
            (same(&fixture, "t").len(), same(&fixture, "q").len()),
            (5, 5)
        );
        assert_eq!(worker(&fixture), old_worker);
        // The worker of the new library takes over.
        fixture.left.exec_superuser("select stop_sync_worker()");
        run(&mut old, "insert into q values (6, 'x')");
        fixture.left.exec_superuser("select start_sync_worker()");
        run(&mut old, "insert into q values (7, 'x')");
        await_drained(&fixture);
        assert_eq!(same(&fixture, "q").len(), 7);
        let restarted: String = fixture
            .left
            .query_one("select pg_postmaster_start_time()::text");
        assert_eq!(started, restarted);
        assert!(
            !cluster.log().contains("terminated by signal"),
            "{}",
            cluster.log()
        );
        run(&mut old, "insert into t values (8, 'x')");
        cluster.restart().expect("a restart");
        run(&mut fixture.left.client(), "insert into t values (9, 'x')");
        run(&mut fixture.left.client(), "insert into q values (9, 'x')");
        if preload.is_empty() {
            fixture.left.exec_superuser("select start_sync_worker()");
        }
        await_drained(&fixture);
        assert_eq!(
            (same(&fixture, "t").len(), same(&fixture, "q").len()),
            (7, 8)
        );
    }
}
