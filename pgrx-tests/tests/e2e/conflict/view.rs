//! Beds and looks of tests about conflicts: the log, the counters by type.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use rowsync_harness::cluster::{Cluster, TEST_SETTINGS};
use rowsync_harness::fixture::clusters;
use rowsync_harness::{Fixture, Side};

use crate::support::common::rows;

/// A cluster that counts: it preloads the library, and has a worker for each of many databases.
pub fn counting(settings: &[(&str, &str)]) -> Arc<Cluster> {
    let preload = [
        ("shared_preload_libraries", "pg_rowsync"),
        ("max_worker_processes", "100"),
    ]
    .as_slice();
    let settings = [TEST_SETTINGS, preload, settings].concat();
    Arc::new(Cluster::start_with("conflicts", &settings).expect("a cluster that preloads"))
}

/// A left database on such a cluster with a server `dst` that leads to the right one, which has no
/// worker.
pub fn fixture_on(cluster: &Arc<Cluster>) -> Fixture {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let create = |cluster, side| {
        Side::create(cluster, &format!("{side}_conflicts_{number}")).expect("a database")
    };
    let fixture = Fixture {
        left: create(cluster, "local"),
        right: create(clusters().1, "remote"),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    fixture
}

/// As `fixture_on`, on a cluster that all tests share.
pub fn fixture() -> Fixture {
    static SHARED: OnceLock<Arc<Cluster>> = OnceLock::new();
    fixture_on(SHARED.get_or_init(|| counting(&[])))
}

/// `type|decision|key|server_key|version|server_version|constraint_name` of what is logged for a
/// table, by key: the value of the column `id` there. The row met is told where the change was decided
/// over it, and not where it was marked failed over what the server said.
pub fn logged(fixture: &Fixture, table: &str) -> Vec<String> {
    let sql = format!(
        "select type, decision, key->>'id', case when decision <> 'failed' then server_key->>'id' end,
                version, case when decision <> 'failed' then server_version end, constraint_name
           from sync_conflicts where server = 'dst' and table_name = '{table}'
            and nsp_name = '{}'
          order by (key->>'id')::int, sync_conflicts.id",
        fixture.left.user
    );
    rows(&fixture.left, &sql)
}

/// `type|conflicts` of a table.
pub fn counted(fixture: &Fixture, table: &str) -> Vec<String> {
    let sql = format!(
        "select type, conflicts from sync_conflict_counts
          where server = 'dst' and nsp_name = '{}' and table_name = '{table}' order by type",
        fixture.left.user
    );
    rows(&fixture.left, &sql)
}

/// The sum of all conflicts with the server.
pub fn total(fixture: &Fixture) -> i64 {
    fixture
        .left
        .query_one("select conflicts from sync_status where server = 'dst'")
}
