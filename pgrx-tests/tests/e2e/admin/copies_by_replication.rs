//! Logical replication of a database FOR ALL TABLES: the extension's own tables are published as well, and what
//! arrives of them on the subscriber is another database's.

use std::sync::Arc;
use std::time::Duration;

use rowsync_harness::cluster::{Cluster, TEST_SETTINGS};
use rowsync_harness::fixture::clusters;
use rowsync_harness::{Fixture, Side, await_until};

use crate::support::common::{attach, deal, outage, queued, recover, rows, table};

const COLUMNS: &str = "id int primary key, v text";
const SOON: Duration = Duration::from_secs(60);

/// A publisher, which sends `t` to a target, and its subscriber, which has the same table, server and
/// triggers.
struct Replicated {
    fixture: Fixture,
    replica: Side,
}

fn cluster(name: &str) -> Arc<Cluster> {
    let settings = [TEST_SETTINGS, &[("wal_level", "logical")]].concat();
    Arc::new(Cluster::start_with(name, &settings).expect("a cluster"))
}

fn replicated(label: &str) -> Replicated {
    let create =
        |cluster: &Arc<Cluster>, name: &str| Side::create(cluster, name).expect("a database");
    let publisher = cluster(&format!("pub{label}"));
    let fixture = Fixture {
        left: create(&publisher, &format!("local_{label}")),
        right: create(clusters().1, &format!("remote_{label}")),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    fixture.left.exec(&format!("create table t ({COLUMNS})"));
    fixture.right.exec(&format!("create table t ({COLUMNS})"));
    attach(&fixture, "t", "{}");
    fixture
        .left
        .exec_superuser("create publication everything for all tables");
    // Of the same names, in a cluster of its own.
    let replica = create(&cluster(&format!("sub{label}")), &fixture.left.user);
    fixture.link(&replica, &fixture.right, "dst", &[]);
    replica.exec(&format!(
        "create table t ({COLUMNS}); select attach_sync('t', 'dst', '{}.t')",
        fixture.right.user
    ));
    Replicated { fixture, replica }
}

impl Replicated {
    fn subscribe(&self) {
        let Side { cluster, db, .. } = &self.fixture.left;
        self.replica.exec_superuser(&format!(
            "create subscription everything connection 'host=127.0.0.1 port={} dbname={db} user=postgres \
             password={}' publication everything",
            cluster.port(),
            cluster.superuser_password()
        ));
    }

    /// Waits until what the publisher has written is on the subscriber, and all its tables are in step.
    fn await_caught_up(&self) {
        let lsn: String = self
            .fixture
            .left
            .query_one("select pg_current_wal_insert_lsn()::text");
        await_until(SOON, "the subscription to catch up", || {
            let left = "select count(*) from pg_subscription_rel where srsubstate <> 'r'";
            self.replica.query_one::<i64>(left) == 0
                && rows(
                    &self.fixture.left,
                    &format!(
                        "select count(*) from pg_stat_replication
                          where application_name = 'everything' and replay_lsn >= '{lsn}'"
                    ),
                ) == ["1"]
        });
    }
}

/// Tables of the extension, of which an origin's rows may not be on the subscriber.
const OWN: &str = "select (select count(*) from sync_queue) + (select count(*) from sync_route)
    + (select count(*) from sync_lost_session) + (select count(*) from sync_server_state)";

#[test]
fn the_queue_is_not_the_subscribers() {
    let all = replicated("carried");
    let fixture = &all.fixture;
    let replica = &all.replica;
    // Some of it before the subscription begins, which is copied; some later, which is applied.
    outage(&fixture.right);
    fixture.left.exec("insert into t values (1, 'old')");
    assert_eq!(queued(fixture), 1);
    all.subscribe();
    all.await_caught_up();
    fixture.left.exec("insert into t values (2, 'old')");
    assert!(!deal(fixture, "10"));
    all.await_caught_up();
    assert_eq!(table(replica, "t"), ["1|old", "2|old"]);
    assert_eq!(rows(replica, OWN), ["0"]);
    assert_eq!(rows(replica, "select sync_is_copy()"), ["f"]);
    assert_eq!(rows(replica, "select count(*) from sync_home"), ["1"]);
    recover(&fixture.right);
    assert!(deal(fixture, "10"));
    fixture.left.exec("update t set v = 'new'");
    assert_eq!(rows(replica, "select deal_sync_err_rec(10)"), ["t"]);
    assert_eq!(table(&fixture.right, "t"), ["1|new", "2|new"]);
    all.await_caught_up();
    assert_eq!(table(replica, "t"), ["1|new", "2|new"]);
}

#[test]
fn records_of_the_subscribers_own_stay_as_they_are() {
    let all = replicated("owned");
    let fixture = &all.fixture;
    let replica = &all.replica;
    all.subscribe();
    all.await_caught_up();
    outage(&fixture.right);
    // The same ids on both sides.
    replica.exec("insert into t values (100, 'replica')");
    fixture.left.exec("insert into t values (1, 'origin')");
    let own = "select id, change, attempts from sync_queue";
    let before = rows(replica, own);
    assert_eq!(rows(&fixture.left, "select id from sync_queue"), ["1"]);
    assert_eq!(rows(replica, "select id from sync_queue"), ["1"]);
    recover(&fixture.right);
    // Updated, and deleted.
    fixture
        .left
        .exec_superuser("update sync_queue set attempts = 7");
    assert!(deal(fixture, "10"));
    all.await_caught_up();
    assert_eq!(rows(replica, own), before);
    assert_eq!(rows(replica, "select deal_sync_err_rec(10)"), ["t"]);
    assert_eq!(table(&fixture.right, "t"), ["1|origin", "100|replica"]);
}

#[test]
fn versions_and_tombstones_are_the_subscribers_own() {
    let all = replicated("versions");
    let fixture = &all.fixture;
    let replica = &all.replica;
    let columns = "id int primary key, v text, ver int";
    for side in [&fixture.left, &fixture.right, replica] {
        side.exec(&format!("create table n ({columns})"));
    }
    attach(
        fixture,
        "n",
        r#"{"on_conflict": "newest", "version_column": "ver"}"#,
    );
    all.subscribe();
    fixture.left.exec("insert into n values (1, 'a', 1), (2, 'a', 1); update n set v = 'b'; delete from n where id = 2");
    fixture
        .right
        .exec("delete from n; insert into n values (1, 'newer', 9)");
    fixture.left.exec("update n set v = 'c', ver = 2");
    assert_ne!(
        rows(&fixture.left, "select count(*) from sync_row_version"),
        ["0"]
    );
    assert_ne!(
        rows(&fixture.left, "select count(*) from sync_conflict_log"),
        ["0"]
    );
    all.await_caught_up();
    assert_eq!(table(replica, "n"), table(&fixture.left, "n"));
    for own in ["sync_row_version", "sync_conflict_log"] {
        assert_eq!(
            rows(replica, &format!("select count(*) from {own}")),
            ["0"],
            "{own}"
        );
    }
}

#[test]
fn what_the_applied_rows_make_a_trigger_queue_is_kept() {
    let all = replicated("always");
    let fixture = &all.fixture;
    let replica = &all.replica;
    replica.exec("alter table t enable always trigger \"00_pg_rowsync_dst_dml\"");
    all.subscribe();
    all.await_caught_up();
    outage(&fixture.right);
    fixture.left.exec("insert into t values (1, 'a')");
    all.await_caught_up();
    assert_eq!(rows(replica, "select op from sync_err_rec"), ["INSERT"]);
    recover(&fixture.right);
    assert_eq!(rows(replica, "select deal_sync_err_rec(10)"), ["t"]);
    assert_eq!(table(&fixture.right, "t"), ["1|a"]);
}

#[test]
fn a_session_that_only_plays_a_replica_queues() {
    let fixture = crate::support::common::one_way("plays", COLUMNS, r#"{"mode": "queue"}"#);
    let mut client = fixture.left.superuser();
    crate::support::common::run(
        &mut client,
        &format!(
            "set search_path = {}, public;
             alter table t enable always trigger \"00_pg_rowsync_dst_dml\";
             set session_replication_role = replica; insert into t values (1, 'a'), (2, 'b');
             update t set v = 'c' where id = 2",
            fixture.left.user
        ),
    );
    assert_eq!(queued(&fixture), 3);
    assert_eq!(
        crate::support::common::query(&mut client, "select deal_sync_err_rec(10)"),
        ["t"]
    );
    assert_eq!(table(&fixture.right, "t"), ["1|a", "2|c"]);
}

#[test]
fn every_table_of_the_extension_has_a_key_and_keeps_replicated_rows_out() {
    let fixture = Fixture::new("keys");
    let without = "select c.relname from pg_depend d join pg_class c on c.oid = d.objid
        where d.classid = 'pg_class'::regclass and d.deptype = 'e' and c.relkind = 'r'
          and d.refclassid = 'pg_extension'::regclass
          and d.refobjid = (select oid from pg_extension where extname = 'pg_rowsync')
          and (not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)
            or not exists (select from pg_trigger t where t.tgrelid = c.oid and t.tgenabled = 'R'
                              and t.tgname = 'sync_not_replicated'))";
    assert_eq!(rows(&fixture.left, without), [""; 0]);
}
