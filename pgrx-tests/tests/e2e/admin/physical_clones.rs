//! A physical backup that is started beside its original has the same system identifier and databases of the same
//! numbers: the two cannot be told apart, and what follows from that is told where it happens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rowsync_harness::cluster::{Cluster, TEST_SETTINGS};
use rowsync_harness::{Side, await_until};

use crate::support::common::{refused, rows, run, table, warnings};
use crate::support::preloaded::EAGER;

const COLUMNS: &str = "id int primary key, v text";
const SOON: Duration = Duration::from_secs(60);

/// A database of a preloaded cluster of its own. Clusters of these tests have one system identifier, whether they
/// are clones or not: those that are none have a number for their database that begins here.
fn alone(name: &str, first_oid: u32) -> Side {
    let preload = [("shared_preload_libraries", "pg_rowsync")];
    let settings = [TEST_SETTINGS, &preload, EAGER].concat();
    let own = Arc::new(Cluster::start_with(name, &settings).expect("a cluster"));
    let draw = format!("select lo_unlink(lo_create(0)) from generate_series(1, {first_oid})");
    run(&mut own.superuser("postgres").expect("a session"), &draw);
    Side::create(&own, name).expect("a database")
}

/// The same database in a physical clone of its cluster.
fn clone(side: &Side, name: &str) -> Side {
    let cluster = side.cluster.physical_clone(name, &[]).expect("a clone");
    Side {
        cluster: Arc::new(cluster),
        ..side.clone()
    }
}

/// Sends `t` of one side to that of another under a guard name of its own, so that what arrives is sent on.
fn send(from: &Side, to: &Side, server: &str) {
    let guard = format!("{}_{server}", from.db);
    from.link(
        to,
        to.cluster.port(),
        server,
        &[("application_name", &guard)],
    )
    .expect("a server");
    from.exec(&format!(
        "select attach_sync('t', '{server}', '{}.t')",
        to.user
    ));
}

fn looped(side: &Side, server: &str) -> i64 {
    side.query_one(&format!(
        "select looped from sync_status where server = '{server}'"
    ))
}

fn await_there(side: &Side, expected: &[&str]) {
    await_until(SOON, "the rows", || table(side, "t") == expected);
}

/// The usual beginning of a target: the source's own backup. Its server leads to itself then.
#[test]
fn a_clone_of_the_source_is_a_target_that_sends_nothing_to_itself() {
    let a = alone("clonedsource", 1);
    a.exec(&format!("create table t ({COLUMNS})"));
    let b = clone(&a, "clonedsource_too");
    send(&a, &b, "dst");
    // As if the clone had been made after that.
    send(&b, &b, "dst");
    a.exec("insert into t values (1, 'a')");
    await_there(&b, &["1|a"]);
    assert_eq!(a.queued().expect("a queue"), 0);
    let (mut client, notices) = b.client_with_notices();
    let start = Instant::now();
    run(&mut client, "insert into t values (2, 'b')");
    assert!(start.elapsed() < Duration::from_secs(5));
    let reported = warnings(&notices);
    let detail = reported.first().and_then(|reported| reported.detail());
    assert!(
        detail.is_some_and(|text| text.contains("leads back to this database itself")),
        "{reported:?}"
    );
    b.exec("select attach_sync('t', 'dst', options => '{\"mode\": \"sync\"}')");
    b.exec_superuser("delete from sync_err_rec");
    refused(&mut client, "insert into t values (3, 'b')", "08004");
    // What the source sends is none of its own, and goes on.
    a.exec("update t set v = 'newer'");
    await_there(&b, &["1|newer", "2|b"]);
}

/// What one has captured, the other takes for its own that has come back: it is counted and told, and after it was
/// made a database of another number and adopted, it is none any more.
#[test]
fn a_chain_over_a_clone_of_a_node_ends_there_and_says_so_until_it_is_made_another_database() {
    for is_first in [true, false] {
        let label = if is_first {
            "chainfirst"
        } else {
            "chainmiddle"
        };
        let a = alone(label, 1);
        let end = alone(&format!("{label}_end"), 2_000);
        for side in [&a, &end] {
            side.exec(&format!("create table t ({COLUMNS})"));
        }
        let middle = clone(&a, &format!("{label}_clone"));
        send(&a, &middle, "dst");
        // What is written first on the original, or on a node before it.
        let first = if is_first {
            a.clone()
        } else {
            let before = alone(&format!("{label}_before"), 4_000);
            before.exec(&format!("create table t ({COLUMNS})"));
            send(&before, &a, "dst");
            before
        };
        send(&middle, &end, "onward");
        // Its own changes go on.
        middle.exec("insert into t values (1, 'own')");
        await_there(&end, &["1|own"]);
        first.exec("insert into t values (2, 'lost')");
        await_there(&middle, &["1|own", "2|lost"]);
        await_until(SOON, "the count", || looped(&middle, "onward") == 1);
        assert!(
            middle.cluster.log().contains(
                "changes that come back to this database are not sent to server \"onward\""
            ),
            "not told"
        );
        assert_eq!(table(&end, "t"), ["1|own"]);
        // A database of another number is a copy, and adopted one of its own.
        let db = &middle.db;
        let mut admin = middle.cluster.superuser("postgres").expect("a session");
        await_until(SOON, "a moment without the worker", || {
            let ends = format!(
                "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = '{db}'"
            );
            admin.batch_execute(&ends).is_ok()
                && admin
                    .batch_execute(&format!("create database {db}_new template {db}"))
                    .is_ok()
        });
        run(&mut admin, &format!("drop database {db} with (force)"));
        run(
            &mut admin,
            &format!("alter database {db}_new rename to {db}"),
        );
        assert_eq!(rows(&middle, "select sync_is_copy()"), ["t"]);
        assert_eq!(rows(&middle, "select adopt_sync()"), ["t"]);
        first.exec("insert into t values (3, 'arrives')");
        await_there(&middle, &["1|own", "2|lost", "3|arrives"]);
        await_there(&end, &["1|own", "3|arrives"]);
        await_until(SOON, "the queues to empty", || {
            a.queued().expect("a queue") + middle.queued().expect("a queue") == 0
        });
    }
}
