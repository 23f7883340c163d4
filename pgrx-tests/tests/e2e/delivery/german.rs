//! Errors in another language and encoding than English and UTF-8, where nothing may be looked up to convert
//! them.

use std::process::Command;
use std::sync::Arc;

use rowsync_harness::cluster::{Shutdown, TEST_SETTINGS};
use rowsync_harness::{Cluster, fails};

use crate::support::common::{refused, run};

/// A cluster whose messages are in German, in Latin 1; `None` where the machine has no German for PostgreSQL.
fn german(encoding: &str) -> Option<(Arc<Cluster>, String)> {
    let cluster = Arc::new(Cluster::start_with("german", TEST_SETTINGS).expect("a cluster"));
    let locales = cluster.dir().join("locales");
    std::fs::create_dir(&locales).expect("a directory");
    // It warns, and ends with 1 for that.
    let _ = Command::new("localedef")
        .args(["--no-archive", "--inputfile=de_DE", "--charmap=ISO-8859-1"])
        .arg(locales.join("de_DE"))
        .output()
        .ok()?;
    cluster.stop(Shutdown::Fast).expect("a stop");
    cluster.set_environment(&[("LOCPATH", &locales.to_string_lossy())]);
    cluster.start_again().expect("a start");
    let mut client = cluster.superuser("postgres").expect("a session");
    let db = "umlauts".to_owned();
    run(
        &mut client,
        &format!("create database {db} template template0 encoding '{encoding}'"),
    );
    if client
        .batch_execute("alter system set lc_messages = 'de_DE'")
        .is_err()
    {
        eprintln!("no locale de_DE: nothing to test");
        return None;
    }
    run(&mut client, "select pg_reload_conf()");
    let mut client = cluster.superuser(&db).expect("a session");
    let error = fails(client.batch_execute("select 1/0"));
    if error.message().starts_with("division by zero") {
        eprintln!("PostgreSQL has no German messages: nothing to test");
        return None;
    }
    Some((cluster, db))
}

#[test]
fn a_worker_that_cannot_start_ends_alone() {
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let Some((cluster, db)) = german(encoding) else {
            return;
        };
        let mut client = cluster.superuser(&db).expect("a session");
        run(&mut client, "create extension pg_rowsync");
        run(
            &mut client,
            "begin; lock table pg_extension in access exclusive mode",
        );
        // The worker waits for the lock until its time limit, and has no transaction any more when it says so.
        refused(&mut client, "select start_sync_worker()", "55000");
        run(&mut client, "rollback");
        run(&mut client, "select start_sync_worker()");
        assert!(cluster.log().contains("Sperre"), "{}", cluster.log());
        assert!(!cluster.log().contains("Signal 11"), "{}", cluster.log());
    }
}
