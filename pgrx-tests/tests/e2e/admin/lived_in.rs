//! A left database that has a past: rows of every table of the extension, which an upgrade must keep.

use rowsync_harness::proxy::{Direction, Proxy, Strike};
use rowsync_harness::{Fixture, Side, await_until};

use crate::support::common::{attach, deal, queued, rows, run, same};
use crate::support::one_way::SOON;

/// Name and options of each table; all have the same columns.
const TABLES: [(&str, &str); 5] = [
    ("direct", "{}"),
    ("must", r#"{"mode": "sync"}"#),
    ("later", r#"{"mode": "queue"}"#),
    (
        "newer",
        r#"{"on_conflict": "newest", "version_column": "ver"}"#,
    ),
    ("tolerant", r#"{"on_conflict": "skip"}"#),
];

/// What is left of the past, besides the queue.
const PAST: [&str; 6] = [
    "select relation::regclass, key_hash, version, rank, deleted, written_by, changed_at
       from sync_row_version order by 1, 2",
    "select id, type, decision, key from sync_conflicts order by id",
    "select relation, server, target, mode from sync_tables order by relation::text",
    "select dst_server, lost_at, remote_xact, token from sync_lost_session",
    "select dst_server, paused_at from sync_pause",
    PREPARED,
];

/// What waits for its second phase; only some have any.
const PREPARED: &str = "select gid, server, decision, place from sync_prepared";

/// Both databases, with a proxy between them over which the left one's server `dst` leads.
pub struct LivedIn {
    pub fixture: Fixture,
    /// The ways of the servers; they must stay open.
    proxies: Vec<Proxy>,
    queue: Vec<String>,
    past: Vec<Vec<String>>,
}

impl LivedIn {
    /// Gives a database a past: records that are pending, failed and waiting, row versions,
    /// conflicts, a session lost in doubt, a server that is paused.
    pub fn new(left: Side, right: Side) -> LivedIn {
        let fixture = Fixture { left, right };
        let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
        fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
        for (table, options) in TABLES {
            for side in [&fixture.left, &fixture.right] {
                side.exec(&format!(
                    "create table {table} (id int primary key, v text, ver int)"
                ));
            }
            attach(&fixture, table, options);
        }
        fixture
            .right
            .exec("alter table later add constraint good check (v <> 'bad')");
        let mut client = fixture.left.client();
        for (table, _) in TABLES {
            run(
                &mut client,
                &format!("insert into {table} select n, 'v' || n, 1 from generate_series(1, 9) n"),
            );
        }
        assert!(deal(&fixture, "1000"));
        // Row versions: a tombstone, and a row written over without a larger version.
        run(
            &mut client,
            "delete from newer where id = 1; update newer set v = 'x' where id = 2",
        );
        // Conflicts.
        fixture.right.exec("delete from tolerant where id < 3");
        run(&mut client, "update tolerant set v = 'gone' where id < 3");
        // Failed, waiting behind it, pending.
        run(&mut client, "update later set v = 'bad' where id = 1");
        run(&mut client, "update later set v = 'behind' where id = 1");
        assert!(!deal(&fixture, "1000"));
        // A commit whose answer is lost.
        run(&mut client, "update direct set v = 'warm' where id = 1");
        proxy.cut_after(0, Direction::ToClient);
        run(
            &mut client,
            "update direct set v = 'doubt' where id = 2; delete from direct where id = 3",
        );
        run(
            &mut client,
            "update later set v = 'p', ver = 2 where id > 4; delete from later where id = 9",
        );
        run(
            &mut client,
            "update later set id = 20 where id = 8; insert into later values (8, 'n', 1)",
        );
        drop(client);
        fixture.link(&fixture.left, &fixture.right, "held", &[]);
        fixture.left.exec("select pause_sync('held')");
        let mut lived_in = LivedIn {
            fixture,
            proxies: vec![proxy],
            queue: Vec::new(),
            past: Vec::new(),
        };
        lived_in.remember();
        assert_eq!(
            rows(
                &lived_in.fixture.left,
                "select distinct status from sync_err_rec order by 1"
            ),
            ["failed", "pending", "waiting"]
        );
        let empty: Vec<_> = PAST
            .iter()
            .zip(&lived_in.past)
            .filter(|(sql, past)| **sql != PREPARED && past.is_empty())
            .collect();
        assert!(empty.is_empty(), "{:?}", lived_in.past);
        lived_in
    }

    /// Besides, a transaction that is prepared on a server of its own and decided, whose second phase
    /// has not been heard of.
    pub fn with_a_second_phase_to_come(mut self) -> LivedIn {
        let fixture = &self.fixture;
        let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
        fixture.link_via(&proxy, &fixture.left, &fixture.right, "twin", &[]);
        for side in [&fixture.left, &fixture.right] {
            side.exec("create table twofold (id int primary key, v text)");
        }
        fixture.left.exec(&format!(
            r#"select attach_sync('twofold', 'twin', '{}.twofold', '{{"mode": "atomic"}}')"#,
            fixture.right.user
        ));
        proxy.strike("COMMIT PREPARED 'pg_rowsync:", Strike::LoseRequest);
        run(
            &mut fixture.left.client(),
            "insert into twofold values (1, 'decided')",
        );
        assert!(proxy.has_struck());
        self.proxies.push(proxy);
        self.remember();
        assert_eq!(rows(&self.fixture.left, PREPARED).len(), 1);
        assert_eq!(rows(&self.fixture.right, "select * from twofold"), [""; 0]);
        self
    }

    fn records(&self) -> Vec<String> {
        let columns = "id, dst_server, owner, route_id, table_name, op, change, xact, create_time, \
                       sqlstate, status, waits_for, blocks";
        rows(
            &self.fixture.left,
            &format!("select {columns} from sync_queue order by id"),
        )
    }

    fn past(&self) -> Vec<Vec<String>> {
        PAST.iter()
            .map(|sql| rows(&self.fixture.left, sql))
            .collect()
    }

    /// What there is now must be kept.
    pub fn remember(&mut self) {
        self.queue = self.records();
        self.past = self.past();
    }

    /// Everything is as it was.
    pub fn is_kept(&self) {
        assert_eq!(self.records(), self.queue);
        assert_eq!(self.past(), self.past);
    }

    /// Once the target takes what it refused, all arrives, and what is written from now on goes
    /// directly. By the worker, where there is one.
    pub fn goes_on(&self, has_worker: bool) {
        let fixture = &self.fixture;
        let mut client = fixture.left.client();
        if self.proxies.len() > 1 {
            fixture
                .left
                .exec_superuser("select resolve_sync_prepared()");
            assert_eq!(rows(&fixture.left, PREPARED), [""; 0]);
            assert_eq!(same(fixture, "twofold"), ["1|decided"]);
        }
        assert!(fixture.left.query_one::<bool>("select resume_sync('held')"));
        fixture.right.exec("alter table later drop constraint good");
        let failed = rows(
            &fixture.left,
            "select id from sync_err_rec where status = 'failed'",
        );
        for id in failed {
            fixture
                .left
                .exec_superuser(&format!("select retry_sync_err_rec({id})"));
        }
        if has_worker {
            await_until(SOON * 6, "the worker to deliver", || queued(fixture) == 0);
        } else {
            assert!(
                deal(fixture, "1000"),
                "{:?}",
                rows(&fixture.left, "select * from sync_err_rec")
            );
        }
        assert_eq!(queued(fixture), 0);
        assert_eq!(
            rows(&fixture.left, "select * from sync_lost_session"),
            [""; 0]
        );
        for (table, _) in TABLES {
            run(
                &mut client,
                &format!("update {table} set v = 'new', ver = 9 where id = 4"),
            );
            run(
                &mut client,
                &format!("insert into {table} values (100, 'new', 9)"),
            );
        }
        if has_worker {
            await_until(SOON * 6, "the worker to deliver", || queued(fixture) == 0);
        } else {
            assert!(deal(fixture, "1000"));
        }
        fixture
            .right
            .exec("insert into tolerant values (1, 'gone', 1), (2, 'gone', 1)");
        for (table, _) in TABLES {
            assert!(same(fixture, table).len() > 7);
        }
        let unequal = "select * from verify_sync('direct', 'dst')";
        assert_eq!(crate::support::common::query(&mut client, unequal), [""; 0]);
    }
}
