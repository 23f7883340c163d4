//! What the chapter on attaching says of a master that joins, and of a target that is restored, while the
//! others write.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use postgres::Client;
use rowsync_harness::cluster::{Cluster, TEST_SETTINGS};
use rowsync_harness::flag::Flag;
use rowsync_harness::{Side, await_until};

use crate::support::common::{query, rows, run, table};
use crate::support::preloaded::EAGER;

/// What a writer does, on one of a few rows.
const WRITE: &str = "
    do $$ declare k int := 1 + random() * 60; begin
      if random() < 0.3 then delete from t where id = k;
      elsif random() < 0.5 then update t set v = v + 1 where id = k;
      else insert into t (id, v) values (k, 0) on conflict (id) do update set v = t.v + 1;
      end if;
    end $$";

/// Sessions of one cluster that write the same rows may meet each other, as those that deliver do.
fn write(client: &mut Client) {
    if let Err(error) = client.batch_execute(WRITE) {
        assert_eq!(
            error.code().map(|code| code.code()),
            Some("40P01"),
            "{error}"
        );
    }
}

const SOON: Duration = Duration::from_secs(120);

/// Databases of one preloaded cluster, each with a table `t`.
fn sides<const N: usize>(label: &str, columns: &str) -> (Arc<Cluster>, [Side; N]) {
    let preload = [
        ("shared_preload_libraries", "pg_rowsync"),
        ("max_worker_processes", "16"),
    ];
    let settings = [TEST_SETTINGS, &preload, EAGER].concat();
    let cluster = Arc::new(Cluster::start_with(label, &settings).expect("a cluster"));
    let sides = std::array::from_fn(|at| {
        let side = Side::create(&cluster, &format!("{label}_{at}")).expect("a database");
        side.exec(&format!("create table t ({columns})"));
        side
    });
    (cluster, sides)
}

fn link(from: &Side, to: &Side, server: &str) {
    from.link(to, to.cluster.port(), server, &[])
        .expect("a server");
}

fn attach_all(from: &Side, to: &Side, server: &str, options: &str) {
    let schema = &from.user;
    let target = &to.user;
    let said = query(
        &mut from.client(),
        &format!(
            "select attached, reason from attach_sync_schema('{schema}', '{server}', '{target}', '{options}')"
        ),
    );
    assert_eq!(said, ["t|~"]);
}

/// The rows of `t`, in the other's schema, as its sessions under the guard's name.
fn copy(from: &Side, to: &Side) {
    let dump = ["--data-only", "--table", &format!("{}.t", from.user)];
    let dump = from
        .cluster
        .client_program("pg_dump", &from.db, &dump, "")
        .expect("a dump");
    let dump = dump.replace(
        &format!("COPY {}.t", from.user),
        &format!("COPY {}.t", to.user),
    );
    let script = format!("set application_name = 'pg_rowsync';\n{dump}");
    let psql = ["-X", "-q", "-v", "ON_ERROR_STOP=1"];
    to.cluster
        .client_program("psql", &to.db, &psql, &script)
        .expect("a restore");
}

fn arrived(side: &Side, server: &str) {
    let sql = format!("select wait_sync('{server}', '2 min')");
    assert!(side.query_one::<bool>(&sql), "{} to {server}", side.db);
}

const NEWEST: &str = r#"{"on_conflict": "newest", "version_column": "version"}"#;

/// Three databases, each with a server for each other, of which the first two are masters for each other.
fn masters(label: &str) -> (Arc<Cluster>, [Side; 3]) {
    let columns = "id int primary key, v int not null, version timestamptz not null";
    let (cluster, [a, b, c]) = sides(label, columns);
    for side in [&a, &b, &c] {
        side.exec(
            "create function t_version() returns trigger language plpgsql as $$
             begin new.version := pg_catalog.clock_timestamp(); return new; end $$;
             create trigger t_version before insert or update on t for each row
               when (current_setting('application_name') <> 'pg_rowsync') execute function t_version()",
        );
    }
    for (from, to, server) in [
        (&a, &b, "b"),
        (&b, &a, "a"),
        (&a, &c, "c"),
        (&b, &c, "c"),
        (&c, &a, "a"),
        (&c, &b, "b"),
    ] {
        link(from, to, server);
    }
    attach_all(&a, &b, "b", NEWEST);
    attach_all(&b, &a, "a", NEWEST);
    (cluster, [a, b, c])
}

#[test]
fn a_master_joins_while_the_others_write() {
    let (_cluster, [a, b, c]) = masters("joining");
    let over = Flag::default();
    thread::scope(|scope| {
        let _end = over.set_at_end();
        for side in [&a, &b, &a, &b] {
            let over = &over;
            scope.spawn(move || {
                let mut client = side.client();
                while !over.is_set() {
                    write(&mut client);
                }
            });
        }
        await_until(SOON, "some rows", || table(&b, "t").len() > 10);
        for (from, server) in [(&a, "c"), (&b, "c")] {
            assert!(from.query_one::<bool>(&format!("select pause_sync('{server}')")));
            attach_all(from, &c, server, NEWEST);
        }
        arrived(&b, "a");
        copy(&a, &c);
        attach_all(&c, &a, "a", NEWEST);
        attach_all(&c, &b, "b", NEWEST);
        for from in [&a, &b] {
            assert!(from.query_one::<bool>("select resume_sync('c')"));
        }
        write(&mut c.client());
        thread::sleep(Duration::from_secs(1));
        over.set();
    });
    for side in [&a, &b, &c] {
        assert!(
            side.query_one::<bool>("select wait_sync(timeout => '2 min')"),
            "{}",
            side.db
        );
        assert_eq!(side.queued().expect("a queue"), 0);
    }
    assert_eq!(table(&a, "t"), table(&b, "t"));
    assert_eq!(table(&a, "t"), table(&c, "t"));
    assert!(!table(&a, "t").is_empty());
}

/// As the chapter on copies says; one master has something then that the one that copies is still to get.
#[test]
fn a_master_joins_by_a_copy_while_the_others_write() {
    let (_cluster, [a, b, c]) = masters("joining_copy");
    let over = Flag::default();
    thread::scope(|scope| {
        let _end = over.set_at_end();
        for side in [&a, &b, &a, &b] {
            let over = &over;
            scope.spawn(move || {
                let mut client = side.client();
                while !over.is_set() {
                    write(&mut client);
                    // More than that a slow machine may not drain at all, and the copy waits for it.
                    thread::sleep(Duration::from_millis(50));
                }
            });
        }
        await_until(SOON, "some rows", || table(&b, "t").len() > 10);
        b.query_one::<bool>("select pause_sync('a')");
        b.exec("insert into t (id, v) values (1000, 0)");
        attach_all(&c, &a, "a", NEWEST);
        attach_all(&c, &b, "b", NEWEST);
        attach_all(&a, &c, "c", NEWEST);
        attach_all(&b, &c, "c", NEWEST);
        b.query_one::<bool>("select resume_sync('a')");
        arrived(&b, "a");
        a.exec("select copy_sync('t', 'c', existing => 'merge')");
        write(&mut c.client());
        await_until(SOON, "the copy to end", || {
            rows(&a, "select state from sync_progress") == ["done"]
        });
        over.set();
    });
    for side in [&a, &b, &c, &a, &b] {
        arrived_everywhere(side);
    }
    assert_eq!(table(&a, "t"), table(&b, "t"));
    assert_eq!(table(&a, "t"), table(&c, "t"));
    assert_eq!(rows(&c, "select v from t where id = 1000"), ["0"]);
}

fn arrived_everywhere(side: &Side) {
    assert!(
        side.query_one::<bool>("select wait_sync(timeout => '2 min')"),
        "{}",
        side.db
    );
}

#[test]
fn a_target_is_restored_while_the_source_writes() {
    let (_cluster, [source, target]) = sides("restoring", "id int primary key, v int not null");
    link(&source, &target, "report");
    attach_all(&source, &target, "report", "{}");
    let over = Flag::default();
    thread::scope(|scope| {
        let _end = over.set_at_end();
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = source.client();
                while !over.is_set() {
                    run(&mut client, WRITE);
                }
            });
        }
        await_until(SOON, "some rows", || table(&target, "t").len() > 10);
        assert!(source.query_one::<bool>("select pause_sync('report')"));
        // What was on its way arrives, and then nothing.
        thread::sleep(Duration::from_millis(300));
        // The backup is old.
        target.exec("delete from t where id % 2 = 0; update t set v = -1; truncate t");
        copy(&source, &target);
        assert!(source.query_one::<bool>("select resume_sync('report')"));
        thread::sleep(Duration::from_secs(1));
        over.set();
    });
    arrived(&source, "report");
    assert_eq!(rows(&source, "select status from sync_err_rec"), [""; 0]);
    assert_eq!(table(&source, "t"), table(&target, "t"));
    assert!(!table(&source, "t").is_empty());
}
