//! The stand-alone server, by which a cluster that does not start is mended: it has no postmaster, no worker
//! and one session. What is written there is synchronised as ever.

use std::sync::Arc;

use postgres::error::SqlState;
use rowsync_harness::cluster::Shutdown;
use rowsync_harness::fixture::{Fixture, clusters};
use rowsync_harness::{Cluster, Side};

use crate::support::common::rows;

#[test]
fn what_the_stand_alone_server_writes_is_sent_queued_and_drained() {
    let own = Arc::new(Cluster::start("alone").expect("a cluster"));
    let fixture = Fixture {
        left: Side::create(&own, "alone_left").expect("a side"),
        right: Side::create(clusters().1, "alone_right").expect("a side"),
    };
    let target = fixture.right.user.clone();
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table t (id int primary key, v text); create table q (id int primary key, v text)");
    }
    fixture.left.exec(&format!(
        "select attach_sync('t', 'dst', '{target}.t', '{{\"mode\": \"sync\"}}');
         select attach_sync('q', 'dst', '{target}.q', '{{\"mode\": \"queue\"}}')"
    ));
    let schema = fixture.left.user.clone();
    own.stop(Shutdown::Fast).expect("a stop");
    let alone = |lines: &str| own.run_alone(&fixture.left.db, lines).expect("statements");
    alone(&format!(
        "set search_path = {schema}, public\n\
         insert into t select g, 'sent' from generate_series(1, 3) g\n\
         update t set v = 'again' where id = 2\n\
         insert into q values (1, 'queued')\n"
    ));
    assert_eq!(
        rows(&fixture.right, "select v from t order by id"),
        ["sent", "again", "sent"]
    );
    assert_eq!(rows(&fixture.right, "select count(*) from q"), ["0"]);
    alone("select deal_sync_err_rec(10)\n");
    assert_eq!(rows(&fixture.right, "select v from q"), ["queued"]);
    own.start_again().expect("a start");
    let failed = fixture
        .left
        .client()
        .batch_execute("insert into t values (1, 'taken')");
    let error = failed.expect_err("a row that is there");
    assert_eq!(error.code(), Some(&SqlState::UNIQUE_VIOLATION));
}
