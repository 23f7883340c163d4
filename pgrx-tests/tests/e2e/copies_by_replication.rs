//! Logical replication of a database FOR ALL TABLES: the extension's own tables are published as well, and what
//! arrives of them on the subscriber is another database's.

use std::sync::Arc;
use std::time::Duration;

use rowsync_harness::cluster::{Cluster, TEST_SETTINGS};
use rowsync_harness::testbed::clusters;
use rowsync_harness::{Side, Testbed, await_until};

use crate::common::{attach, deal, outage, queued, recover, rows, table};

const COLUMNS: &str = "id int primary key, v text";
const SOON: Duration = Duration::from_secs(60);

/// A publisher, which sends `t` to a target, and its subscriber, which has the same table, server and
/// triggers.
struct Replicated {
    bed: Testbed,
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
    let bed = Testbed {
        left: create(&publisher, &format!("local_{label}")),
        right: create(clusters().1, &format!("remote_{label}")),
    };
    bed.link(&bed.left, &bed.right, "dst", &[]);
    bed.left.exec(&format!("create table t ({COLUMNS})"));
    bed.right.exec(&format!("create table t ({COLUMNS})"));
    attach(&bed, "t", "{}");
    bed.left.exec_superuser("create publication everything for all tables");
    // Of the same names, in a cluster of its own.
    let replica = create(&cluster(&format!("sub{label}")), &bed.left.user);
    bed.link(&replica, &bed.right, "dst", &[]);
    replica.exec(&format!(
        "create table t ({COLUMNS}); select attach_sync('t', 'dst', '{}.t')",
        bed.right.user
    ));
    Replicated { bed, replica }
}

impl Replicated {
    fn subscribe(&self) {
        let Side { cluster, db, .. } = &self.bed.left;
        self.replica.exec_superuser(&format!(
            "create subscription everything connection 'host=127.0.0.1 port={} dbname={db} user=postgres \
             password={}' publication everything",
            cluster.port(),
            cluster.superuser_password()
        ));
    }

    /// Waits until what the publisher has written is on the subscriber, and all its tables are in step.
    fn await_caught_up(&self) {
        let lsn: String = self.bed.left.query_one("select pg_current_wal_insert_lsn()::text");
        await_until(SOON, "the subscription to catch up", || {
            let left = "select count(*) from pg_subscription_rel where srsubstate <> 'r'";
            self.replica.query_one::<i64>(left) == 0
                && rows(
                    &self.bed.left,
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
    let (bed, replica) = (&all.bed, &all.replica);
    // Some of it before the subscription begins, which is copied; some later, which is applied.
    outage(&bed.right);
    bed.left.exec("insert into t values (1, 'old')");
    assert_eq!(queued(bed), 1);
    all.subscribe();
    all.await_caught_up();
    bed.left.exec("insert into t values (2, 'old')");
    assert!(!deal(bed, "10"));
    all.await_caught_up();
    assert_eq!(table(replica, "t"), ["1|old", "2|old"]);
    assert_eq!(rows(replica, OWN), ["0"]);
    assert_eq!(rows(replica, "select sync_is_copy()"), ["f"]);
    assert_eq!(rows(replica, "select count(*) from sync_home"), ["1"]);
    recover(&bed.right);
    assert!(deal(bed, "10"));
    bed.left.exec("update t set v = 'new'");
    assert_eq!(rows(replica, "select deal_sync_err_rec(10)"), ["t"]);
    assert_eq!(table(&bed.right, "t"), ["1|new", "2|new"]);
    all.await_caught_up();
    assert_eq!(table(replica, "t"), ["1|new", "2|new"]);
}

#[test]
fn records_of_the_subscribers_own_stay_as_they_are() {
    let all = replicated("owned");
    let (bed, replica) = (&all.bed, &all.replica);
    all.subscribe();
    all.await_caught_up();
    outage(&bed.right);
    // The same ids on both sides.
    replica.exec("insert into t values (100, 'replica')");
    bed.left.exec("insert into t values (1, 'origin')");
    let own = "select id, change, attempts from sync_queue";
    let before = rows(replica, own);
    assert_eq!(rows(&bed.left, "select id from sync_queue"), ["1"]);
    assert_eq!(rows(replica, "select id from sync_queue"), ["1"]);
    recover(&bed.right);
    // Updated, and deleted.
    bed.left.exec_superuser("update sync_queue set attempts = 7");
    assert!(deal(bed, "10"));
    all.await_caught_up();
    assert_eq!(rows(replica, own), before);
    assert_eq!(rows(replica, "select deal_sync_err_rec(10)"), ["t"]);
    assert_eq!(table(&bed.right, "t"), ["1|origin", "100|replica"]);
}

#[test]
fn versions_and_tombstones_are_the_subscribers_own() {
    let all = replicated("versions");
    let (bed, replica) = (&all.bed, &all.replica);
    let columns = "id int primary key, v text, ver int";
    for side in [&bed.left, &bed.right, replica] {
        side.exec(&format!("create table n ({columns})"));
    }
    attach(bed, "n", r#"{"on_conflict": "newest", "version_column": "ver"}"#);
    all.subscribe();
    bed.left.exec("insert into n values (1, 'a', 1), (2, 'a', 1); update n set v = 'b'; delete from n where id = 2");
    bed.right.exec("delete from n; insert into n values (1, 'newer', 9)");
    bed.left.exec("update n set v = 'c', ver = 2");
    assert_ne!(rows(&bed.left, "select count(*) from sync_row_version"), ["0"]);
    assert_ne!(rows(&bed.left, "select count(*) from sync_conflict_log"), ["0"]);
    all.await_caught_up();
    assert_eq!(table(replica, "n"), table(&bed.left, "n"));
    for own in ["sync_row_version", "sync_conflict_log"] {
        assert_eq!(rows(replica, &format!("select count(*) from {own}")), ["0"], "{own}");
    }
}

#[test]
fn what_the_applied_rows_make_a_trigger_queue_is_kept() {
    let all = replicated("always");
    let (bed, replica) = (&all.bed, &all.replica);
    replica.exec("alter table t enable always trigger \"00_pg_rowsync_dst_dml\"");
    all.subscribe();
    all.await_caught_up();
    outage(&bed.right);
    bed.left.exec("insert into t values (1, 'a')");
    all.await_caught_up();
    assert_eq!(rows(replica, "select op from sync_err_rec"), ["INSERT"]);
    recover(&bed.right);
    assert_eq!(rows(replica, "select deal_sync_err_rec(10)"), ["t"]);
    assert_eq!(table(&bed.right, "t"), ["1|a"]);
}

#[test]
fn a_session_that_only_plays_a_replica_queues() {
    let bed = crate::common::one_way("plays", COLUMNS, r#"{"mode": "queue"}"#);
    let mut client = bed.left.superuser();
    crate::common::run(
        &mut client,
        &format!(
            "set search_path = {}, public;
             alter table t enable always trigger \"00_pg_rowsync_dst_dml\";
             set session_replication_role = replica; insert into t values (1, 'a'), (2, 'b');
             update t set v = 'c' where id = 2",
            bed.left.user
        ),
    );
    assert_eq!(queued(&bed), 3);
    assert_eq!(crate::common::query(&mut client, "select deal_sync_err_rec(10)"), ["t"]);
    assert_eq!(table(&bed.right, "t"), ["1|a", "2|c"]);
}

#[test]
fn every_table_of_the_extension_has_a_key_and_keeps_replicated_rows_out() {
    let bed = Testbed::new("keys");
    let without = "select c.relname from pg_depend d join pg_class c on c.oid = d.objid
        where d.classid = 'pg_class'::regclass and d.deptype = 'e' and c.relkind = 'r'
          and d.refclassid = 'pg_extension'::regclass
          and d.refobjid = (select oid from pg_extension where extname = 'pg_rowsync')
          and (not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)
            or not exists (select from pg_trigger t where t.tgrelid = c.oid and t.tgenabled = 'R'
                              and t.tgname = 'sync_not_replicated'))";
    assert_eq!(rows(&bed.left, without), [""; 0]);
}
