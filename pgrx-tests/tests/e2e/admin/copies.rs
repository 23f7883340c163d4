//! A copy of a database is not the database: it captures and delivers nothing before `adopt_sync()`.

use std::sync::Arc;
use std::time::Duration;

use rowsync_harness::cluster::{Cluster, Shutdown};
use rowsync_harness::{Fixture, Side, await_until};

use crate::support::common::{
    deal, fails_with, one_way, outage, query, queued, recover, refused, rows, run,
    superuser_with_notices, table, warnings,
};
use crate::support::preloaded::{EAGER, await_drained, preloaded_one_way, worker};

const COLUMNS: &str = "id int primary key, v text";
const CAPTURED: &str = "changes of this database are neither captured nor sent";

/// Another database on the left cluster, dropped at the end.
struct Copy(Side);

impl Copy {
    /// Empty.
    fn database(of: &Side) -> Self {
        let copy = Side {
            db: format!("{}_copy", of.db),
            ..of.clone()
        };
        let mut client = of.cluster.superuser("postgres").expect("a session");
        run(&mut client, &format!("create database {}", copy.db));
        Self(copy)
    }

    /// `pg_dump` with these arguments, restored.
    fn restored(of: &Side, arguments: &[&str]) -> Self {
        let copy = Self::database(of);
        let dump = of
            .cluster
            .client_program("pg_dump", &of.db, arguments, "")
            .expect("a dump");
        let psql = ["-X", "-q", "-v", "ON_ERROR_STOP=1"];
        of.cluster
            .client_program("psql", &copy.0.db, &psql, &dump)
            .expect("a restore");
        copy
    }

    /// CREATE DATABASE ... TEMPLATE.
    fn template(of: &Side) -> Self {
        let copy = Side {
            db: format!("{}_copy", of.db),
            ..of.clone()
        };
        let mut client = of.cluster.superuser("postgres").expect("a session");
        let ends = format!(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = '{}'",
            of.db
        );
        run(&mut client, &ends);
        run(
            &mut client,
            &format!("create database {} template {}", copy.db, of.db),
        );
        Self(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Ok(mut client) = self.0.cluster.superuser("postgres") {
            let drop = format!("drop database if exists {} with (force)", self.0.db);
            let _ = client.batch_execute(&drop);
        }
    }
}

/// A copy with nothing of its own to deliver: it says once a session that it captures nothing, and nothing
/// arrives on the right until it is adopted.
fn keeps_to_itself(fixture: &Fixture, copy: &Side) {
    let before = table(&fixture.right, "t");
    let (mut client, notices) = superuser_with_notices(copy);
    run(
        &mut client,
        &format!("set search_path = {}, public", copy.user),
    );
    run(
        &mut client,
        "insert into t values (10, 'x'); update t set v = 'staging'; truncate t",
    );
    run(&mut client, "insert into t values (11, 'x')");
    let reported = warnings(&notices);
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert_eq!(
        (reported[0].code().code(), reported[0].message()),
        ("55000", CAPTURED)
    );
    assert!(
        reported[0].detail().is_some_and(|d| d.contains("copy")),
        "{reported:?}"
    );
    assert!(
        reported[0]
            .hint()
            .is_some_and(|hint| hint.contains("adopt_sync()")),
        "{reported:?}"
    );
    assert_eq!(table(&fixture.right, "t"), before);
    assert_eq!(rows(copy, "select count(*) from sync_err_rec"), ["0"]);
    for call in ["deal_sync_err_rec(10)", "retry_sync_err_rec(1)"] {
        let error = refused(&mut client, &format!("select {call}"), "55000");
        assert!(error.message().contains("is a copy"), "{error:?}");
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains("adopt_sync()")),
            "{error:?}"
        );
    }
    assert_eq!(rows(copy, "select home from sync_status"), ["copy"]);
    assert_eq!(rows(copy, "select sync_is_copy()"), ["t"]);
    // Adopted, it is a database of its own, in sessions that are there as well; and once only.
    run(&mut client, "begin");
    assert_eq!(query(&mut client, "select adopt_sync()"), ["t"]);
    run(&mut client, "rollback; update t set v = 'still not'");
    assert_eq!(table(&fixture.right, "t"), before);
    assert_eq!(rows(copy, "select adopt_sync(), sync_is_copy()"), ["t|f"]);
    assert_eq!(rows(copy, "select adopt_sync(), sync_is_copy()"), ["f|f"]);
    run(&mut client, "insert into t values (12, 'adopted')");
    assert!(table(&fixture.right, "t").contains(&"12|adopted".to_owned()));
    assert_eq!(
        rows(copy, "select home from sync_status"),
        ["this database"]
    );
    assert_eq!(query(&mut client, "select deal_sync_err_rec(10)"), ["t"]);
}

/// What the original writes still arrives.
fn still_sends(fixture: &Fixture) {
    assert_eq!(
        rows(&fixture.left, "select sync_is_copy(), adopt_sync()"),
        ["f|f"]
    );
    fixture.left.exec("insert into t values (99, 'original')");
    assert!(table(&fixture.right, "t").contains(&"99|original".to_owned()));
}

#[test]
fn a_restored_dump_sends_nothing_before_it_is_adopted() {
    let fixture = one_way("restored", COLUMNS, "{}");
    fixture.left.exec("insert into t values (1, 'production')");
    let copy = Copy::restored(&fixture.left, &[]);
    keeps_to_itself(&fixture, &copy.0);
    still_sends(&fixture);
}

#[test]
fn nor_does_one_whose_dump_had_no_rows() {
    for mode in ["sync", "queue"] {
        let fixture = one_way("schemaonly", COLUMNS, &format!(r#"{{"mode": "{mode}"}}"#));
        let copy = Copy::restored(&fixture.left, &["-s"]);
        let (mut client, notices) = superuser_with_notices(&copy.0);
        run(
            &mut client,
            &format!("insert into {}.t values (1, 'x')", copy.0.user),
        );
        assert_eq!(warnings(&notices).len(), 1, "{mode}");
        assert_eq!(rows(&copy.0, "select count(*) from sync_err_rec"), ["0"]);
        assert_eq!(table(&fixture.right, "t"), [""; 0]);
    }
}

#[test]
fn nor_does_a_database_made_from_it_as_a_template() {
    let fixture = one_way("template", COLUMNS, "{}");
    fixture.left.exec("insert into t values (1, 'production')");
    let copy = Copy::template(&fixture.left);
    keeps_to_itself(&fixture, &copy.0);
    still_sends(&fixture);
}

#[test]
fn a_copy_of_a_copy_is_one() {
    let fixture = one_way("twice", COLUMNS, "{}");
    let copy = Copy::restored(&fixture.left, &["-s"]);
    let again = Copy::restored(&copy.0, &[]);
    assert_eq!(rows(&again.0, "select sync_is_copy()"), ["t"]);
    drop(again);
    // And of one that was adopted.
    assert_eq!(rows(&copy.0, "select adopt_sync()"), ["t"]);
    let again = Copy::template(&copy.0);
    keeps_to_itself(&fixture, &again.0);
}

#[test]
fn its_queue_waits_for_the_adoption_and_may_be_emptied() {
    let fixture = preloaded_one_way("copyqueue", EAGER, COLUMNS, "{}");
    outage(&fixture.right);
    fixture.left.exec("insert into t values (1, 'a')");
    let copies = [Copy::restored(&fixture.left, &[])];
    let [Copy(copy)] = &copies;
    recover(&fixture.right);
    await_drained(&fixture);
    fixture.right.exec("update t set v = 'newer'");
    assert!(copy.query_one::<bool>("select start_sync_worker()"));
    // The copy's worker has looked at the queue, and says why it leaves it.
    await_until(Duration::from_secs(60), "a word of the worker", || {
        fixture
            .left
            .cluster
            .log()
            .contains("the database is a copy")
    });
    assert_eq!(rows(copy, "select count(*) from sync_err_rec"), ["1"]);
    assert_eq!(table(&fixture.right, "t"), ["1|newer"]);
    let mut client = copy.superuser();
    let records = query(&mut client, "select status from sync_err_rec");
    assert_eq!(records, ["pending"]);
    run(&mut client, "begin; delete from sync_err_rec; rollback");
    run(&mut client, "select adopt_sync()");
    await_until(Duration::from_secs(60), "the copy's record", || {
        table(&fixture.right, "t") == ["1|a"]
    });
    worker(&fixture);
}

#[test]
fn a_clone_with_a_system_identifier_of_its_own_is_a_copy_and_an_upgraded_database_is_not() {
    let fixture = one_way("clone", COLUMNS, "{}");
    let other = "update sync_home set system_identifier = system_identifier + 1";
    fixture.left.exec_superuser(other);
    assert_eq!(rows(&fixture.left, "select sync_is_copy()"), ["t"]);
    fixture.left.exec("insert into t values (1, 'x')");
    assert_eq!(table(&fixture.right, "t"), [""; 0]);
    // As pg_upgrade leaves it.
    fixture
        .left
        .exec_superuser("update sync_home set server_major = server_major - 1");
    assert_eq!(rows(&fixture.left, "select sync_is_copy()"), ["f"]);
    fixture.left.exec("insert into t values (2, 'x')");
    assert_eq!(table(&fixture.right, "t"), ["2|x"]);
    assert!(deal(&fixture, "10"));
    let renewed = "select h.server_major = current_setting('server_version_num')::int / 10000
                      and h.system_identifier = c.system_identifier
                     from sync_home h, pg_control_system() c";
    assert_eq!(rows(&fixture.left, renewed), ["t"]);
    // From now on, another system identifier is a clone's again.
    fixture.left.exec_superuser(other);
    assert_eq!(rows(&fixture.left, "select sync_is_copy()"), ["t"]);
}

#[test]
fn a_promoted_standby_is_the_database() {
    let own = Arc::new(Cluster::start("promoted").expect("a cluster"));
    let create = |cluster, name: &str| Side::create(cluster, name).expect("a database");
    let fixture = Fixture {
        left: create(&own, "local_promoted"),
        right: create(rowsync_harness::fixture::clusters().1, "remote_promoted"),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    crate::support::common::mirror(&fixture, "t", COLUMNS, r#"{"mode": "queue"}"#);
    fixture.left.exec("insert into t values (1, 'before')");
    own.stop(Shutdown::Fast).expect("a stop");
    std::fs::write(own.dir().join("data").join("standby.signal"), "").expect("a file");
    own.start_again().expect("a standby");
    assert_eq!(rows(&fixture.left, "select sync_is_copy()"), ["f"]);
    fixture.left.exec_superuser("select pg_promote()");
    let (mut client, notices) = fixture.left.client_with_notices();
    run(&mut client, "insert into t values (2, 'after')");
    assert!(warnings(&notices).is_empty());
    assert_eq!(queued(&fixture), 2);
    assert!(deal(&fixture, "10"));
    assert_eq!(table(&fixture.right, "t"), ["1|before", "2|after"]);
}

#[test]
fn who_may_adopt() {
    let fixture = one_way("mayadopt", COLUMNS, "{}");
    let mut client = fixture.left.client();
    refused(&mut client, "select adopt_sync()", "42501");
    for table in ["sync_home", "sync_node"] {
        refused(&mut client, &format!("select * from {table}"), "42501");
        refused(&mut client, &format!("delete from {table}"), "42501");
    }
    assert_eq!(query(&mut client, "select sync_is_copy()"), ["f"]);
    fixture.left.exec_superuser(&format!(
        "grant execute on function adopt_sync() to {}; insert into sync_node values (gen_random_uuid())",
        fixture.left.user
    ));
    assert_eq!(
        query(&mut client, "select sync_is_copy(), adopt_sync()"),
        ["t|t"]
    );
    assert_eq!(
        query(&mut client, "select sync_is_copy(), adopt_sync()"),
        ["f|f"]
    );
}

#[test]
fn made_anew_in_the_same_database_the_extension_is_at_home() {
    let fixture = one_way("anew", COLUMNS, "{}");
    let node = "select node from sync_home";
    let before = rows(&fixture.left, node);
    fixture.left.exec_superuser(
        "drop extension pg_rowsync cascade; create extension pg_rowsync schema public",
    );
    assert_ne!(rows(&fixture.left, node), before);
    assert_eq!(rows(&fixture.left, "select sync_is_copy()"), ["f"]);
    fails_with(&fixture.left, "select sync_not_replicated()", "39P01");
}
