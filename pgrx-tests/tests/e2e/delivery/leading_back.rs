//! A server that leads back to the very database whose changes it is to take: a target that was made from its
//! source, or an address that is another machine's by now.

use std::time::{Duration, Instant};

use rowsync_harness::fixture::Fixture;
use rowsync_harness::{IGNORE_OPTIONS, PoolMode, Pooler};

use crate::support::common::{link_with, queued, refused, rows, run, warnings};

/// Writes to a table whose server leads to itself over this port: each commit is soon over, says why, and the
/// change is kept.
fn is_refused(fixture: &Fixture, port: u16) {
    let back = Fixture {
        left: fixture.left.clone(),
        right: fixture.left.clone(),
    };
    link_with(&back, "dst", port, &fixture.left.password);
    fixture
        .left
        .exec("create table t (id int primary key, v text); insert into t values (1, 'old')");
    let (mut client, notices) = fixture.left.client_with_notices();
    let attach = |options| format!("select attach_sync('t', 'dst', options => '{options}')");
    run(&mut client, &attach("{}"));
    let reported = warnings(&notices);
    assert!(
        reported
            .iter()
            .any(|reported| reported.code().code() == "08004"),
        "{reported:?}"
    );
    for value in ["new", "newer"] {
        let start = Instant::now();
        run(&mut client, &format!("update t set v = '{value}'"));
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        let reported = warnings(&notices);
        let detail = reported
            .first()
            .and_then(|reported| reported.detail())
            .unwrap_or_default();
        let is_first = value == "new";
        assert!(
            !is_first || detail.contains("leads back to this database itself"),
            "{reported:?}"
        );
    }
    assert_eq!(rows(&fixture.left, "select * from t"), ["1|newer"]);
    assert_eq!(queued(fixture), 2);
    // The second was not tried: it is behind the first.
    assert_eq!(
        rows(
            &fixture.left,
            "select sqlstate from sync_err_rec order by id"
        ),
        ["08004", "~"]
    );
    fixture.left.exec_superuser("delete from sync_err_rec");
    run(&mut client, &attach(r#"{"mode": "sync"}"#));
    let error = refused(&mut client, "update t set v = 'newest'", "08004");
    let reported = format!("{} {:?}", error.message(), error.detail());
    assert!(
        reported.contains("leads back to this database itself"),
        "{reported}"
    );
    assert_eq!(rows(&fixture.left, "select * from t"), ["1|newer"]);
    std::mem::forget(back);
}

#[test]
fn a_server_that_leads_back_to_its_own_database_is_refused_by_name() {
    let fixture = Fixture::new("leadsback");
    is_refused(&fixture, fixture.left.cluster.port());
}

#[test]
fn a_pooler_that_leads_back_is_found_out_as_well() {
    let fixture = Fixture::new("poolsback");
    let pooler = Pooler::start(&[&fixture.left], PoolMode::Transaction, &[IGNORE_OPTIONS]);
    let pooler = pooler.expect("a pooler");
    is_refused(&fixture, pooler.port());
}

#[test]
fn another_database_of_the_same_cluster_is_none_of_it() {
    let fixture = Fixture::new("besides");
    let left = rowsync_harness::Side::create(&fixture.right.cluster, &fixture.left.user);
    let fixture = Fixture {
        left: left.expect("a database"),
        right: fixture.right.clone(),
    };
    link_with(
        &fixture,
        "dst",
        fixture.right.cluster.port(),
        &fixture.right.password,
    );
    crate::support::common::mirror(&fixture, "t", "id int primary key", "{}");
    run(&mut fixture.left.client(), "insert into t values (1)");
    crate::support::common::both_have(&fixture, "t", &["1"]);
}
