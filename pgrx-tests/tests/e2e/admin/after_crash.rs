//! What is told after a crash of the local server, whose targets may be ahead by what it took, and how they become
//! equal again.

use std::sync::Arc;

use rowsync_harness::cluster::{Cluster, Shutdown};
use rowsync_harness::fixture::clusters;
use rowsync_harness::{Fixture, Side};

use crate::support::common::{deal, mirror, query, rows, run, same};

/// Tables `s` (mode `sync`), `t` (`async`) and `q` (`queue`); the left side is in a cluster of its own.
fn with_own_left(label: &str) -> Fixture {
    let own = Arc::new(Cluster::start(label).expect("a cluster"));
    let create = |cluster, name: String| Side::create(cluster, &name).expect("a database");
    let fixture = Fixture {
        left: create(&own, format!("local_{label}")),
        right: create(clusters().1, format!("remote_{label}")),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    for (table, mode) in [("s", "sync"), ("t", "async"), ("q", "queue")] {
        let options = format!(r#"{{"mode": "{mode}"}}"#);
        mirror(&fixture, table, "id int primary key, v text", &options);
    }
    fixture
}

fn restart(fixture: &Fixture, how: Shutdown) {
    let own = &fixture.left.cluster;
    own.stop(how).expect("a stop");
    own.start_again().expect("a start");
}

const TABLES: &str =
    "select relation, may_be_ahead_since is not null from sync_tables order by relation::text";
const SERVER: &str = "select may_be_ahead_since is not null from sync_status";
/// As the documentation has it.
const REPAIR: &str =
    "select t.relation, r.* from sync_tables t, lateral repair_sync(t.relation, t.server) r
      where t.may_be_ahead_since is not null";

#[test]
fn a_crash_is_told_until_the_tables_are_equal() {
    let fixture = with_own_left("crashtold");
    fixture
        .left
        .exec("insert into s values (1, 'a'); insert into t values (1, 'a'), (2, 'b')");
    restart(&fixture, Shutdown::Fast);
    assert_eq!(rows(&fixture.left, TABLES), ["q|f", "s|f", "t|f"]);
    assert_eq!(rows(&fixture.left, SERVER), ["f"]);
    restart(&fixture, Shutdown::Immediate);
    // What a crash may have taken here.
    fixture
        .right
        .exec("insert into t values (3, 'c'); update t set v = 'B' where id = 2");
    let reported = || (rows(&fixture.left, TABLES), rows(&fixture.left, SERVER));
    let all = (
        ["q|f", "s|t", "t|t"].map(str::to_owned).to_vec(),
        vec!["t".to_owned()],
    );
    assert_eq!(reported(), all, "before anybody has noted it");
    // What is rolled back was not noted.
    let mut drain = fixture.left.superuser();
    run(&mut drain, "begin; select deal_sync_err_rec(10); rollback");
    assert_eq!(rows(&fixture.left, "select sync_has_crashed()"), ["t"]);
    run(&mut drain, "select deal_sync_err_rec(10)");
    assert_eq!(rows(&fixture.left, "select sync_has_crashed()"), ["f"]);
    assert_eq!(reported(), all);
    let since = "select max(may_be_ahead_since) from sync_status";
    let noted = rows(&fixture.left, since);
    restart(&fixture, Shutdown::Immediate);
    assert!(deal(&fixture, "10"));
    assert_eq!(rows(&fixture.left, since), noted, "since the first");
    let mut client = fixture.left.client();
    let partly = r#"select * from verify_sync('s', 'dst', '{"where": "id > 0"}')"#;
    assert_eq!(query(&mut client, partly), [""; 0]);
    assert_eq!(reported(), all);
    let mut reader = fixture.left.client();
    run(&mut reader, "set default_transaction_read_only = on");
    assert_eq!(
        query(&mut reader, "select * from verify_sync('s', 'dst')"),
        [""; 0]
    );
    assert_eq!(reported(), all);
    let found = query(&mut client, "select * from verify_sync('t', 'dst')");
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(reported(), all);
    assert_eq!(query(&mut client, REPAIR).len(), 2);
    same(&fixture, "t");
    assert_eq!(rows(&fixture.left, TABLES), ["q|f", "s|f", "t|f"]);
    assert_eq!(rows(&fixture.left, SERVER), ["f"]);
}

#[test]
fn a_table_that_is_not_sent_any_more_is_not_told_of() {
    let fixture = with_own_left("crashdetached");
    restart(&fixture, Shutdown::Immediate);
    assert!(deal(&fixture, "10"));
    fixture
        .left
        .exec("select detach_sync('s', 'dst'); drop table t");
    assert_eq!(rows(&fixture.left, TABLES), ["q|f"]);
    assert_eq!(rows(&fixture.left, SERVER), ["f"]);
}
