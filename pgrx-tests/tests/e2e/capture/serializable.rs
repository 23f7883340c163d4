//! SERIALIZABLE transactions of applications: what the extension reads and writes of its own tables on their
//! behalf takes no part in the conflicts by which PostgreSQL finds anomalies.

use postgres::Client;

use rowsync_harness::Fixture;

use crate::support::common::{attach_sql, closed_port, link_with, query, queued, rows, run};

const BEGIN: &str = "begin isolation level serializable";
const COLUMNS: &str = "id int primary key, v text, ver int";

/// What predicate locks there are on tables and indexes of the extension's. But for those that say which
/// database it is: nobody writes them, and a session reads them again when what it has cached of the catalogs
/// is thrown away, which others' work may bring about at any time.
const LOCKED: &str = "select distinct l.relation::regclass from pg_locks l join pg_class c on c.oid = l.relation
    where l.mode = 'SIReadLock' and l.database = (select oid from pg_database where datname = current_database())
      and c.relname like 'sync!_%' escape '!'
      and c.relname !~ '^sync_(home|node)(_pkey)?$' order by 1";

/// The left table `t`, whose server is not there.
fn away(label: &str, options: &str) -> Fixture {
    let fixture = Fixture::new(label);
    link_with(&fixture, "dst", closed_port(), "");
    fixture.left.exec(&format!("create table t ({COLUMNS})"));
    fixture.right.exec(&format!("create table t ({COLUMNS})"));
    fixture.left.exec(&attach_sql(&fixture, "t", options));
    fixture
        .left
        .exec("insert into t select g, 'v', 1 from generate_series(1, 20) g");
    fixture
}

/// Transactions at once, each of a row of its own; all commit.
fn overlap(clients: &mut [Client], write: impl Fn(usize) -> String) {
    clients
        .iter_mut()
        .for_each(|client| run(client, &format!("{BEGIN}; select 1")));
    for (at, client) in clients.iter_mut().enumerate() {
        run(client, &write(at));
    }
    clients.iter_mut().for_each(|client| run(client, "commit"));
}

fn clients(fixture: &Fixture) -> Vec<Client> {
    (0..4).map(|_| fixture.left.client()).collect()
}

fn reach(fixture: &Fixture) {
    let port = fixture.right.cluster.port();
    fixture
        .left
        .exec(&format!("alter server dst options (set port '{port}')"));
    fixture.left.exec_superuser(&format!(
        "alter user mapping for {} server dst options (set password '{}')",
        fixture.left.user, fixture.right.password
    ));
    assert!(
        fixture
            .left
            .query_one::<bool>("select deal_sync_err_rec(1000)")
    );
}

#[test]
fn writers_of_different_rows_do_not_conflict_while_the_server_is_away() {
    for mode in ["async", "queue"] {
        let fixture = away("ssiaway", &format!(r#"{{"mode": "{mode}"}}"#));
        let mut clients = clients(&fixture);
        for round in 0..3 {
            overlap(&mut clients, |at| {
                format!("update t set v = v || '{round}' where id = {}", at + 1)
            });
        }
        assert_eq!(queued(&fixture), 20 + 12, "{mode}");
        reach(&fixture);
        let rest = (5..=20).map(|id| format!("{id}|v|1"));
        let expected: Vec<_> = (1..=4)
            .map(|id| format!("{id}|v012|1"))
            .chain(rest)
            .collect();
        for side in [&fixture.left, &fixture.right] {
            assert_eq!(
                rows(side, "select * from t order by id"),
                expected,
                "{mode}"
            );
        }
    }
}

#[test]
fn writers_of_different_rows_do_not_conflict_beside_another_owners_lane() {
    let fixture = away("ssilanes", "{}");
    // Another owner's records are pending too, of a lane that is apart.
    let schema =
        "(select extnamespace::regnamespace from pg_extension where extname = 'pg_rowsync')";
    assert_eq!(rows(&fixture.left, &format!("select {schema}")), ["public"]);
    fixture.left.exec_superuser(
        "insert into sync_queue (dst_server, owner, route_id, nsp_name, table_name, op, change)
           select dst_server, 'postgres'::regrole, route_id, nsp_name, 'other', op, change from sync_queue;
         insert into sync_owner_state (dst_server, owner, failures) values ('dst', 'postgres'::regrole, 1)",
    );
    let mut clients = clients(&fixture);
    for _ in 0..2 {
        overlap(&mut clients, |at| {
            format!("update t set ver = ver + 1 where id = {}", at + 1)
        });
    }
    assert_eq!(
        rows(
            &fixture.left,
            "select count(*) from sync_queue where op = 'UPDATE'"
        ),
        ["8"]
    );
}

#[test]
fn what_is_read_of_the_queue_and_of_kept_versions_is_not_locked() {
    let newest = r#"{"on_conflict": "newest", "version_column": "ver"}"#;
    for options in ["{}", r#"{"mode": "queue"}"#, newest] {
        let fixture = away("ssilocks", options);
        // Predicate locks of what has committed stay while this is under way.
        let mut open = fixture.left.client();
        run(
            &mut open,
            &format!("{BEGIN}; select count(*) from pg_class"),
        );
        let mut client = fixture.left.client();
        // What a session reads once, of tables that nobody writes.
        run(&mut client, "update t set v = 'w' where id = 20");
        for write in [
            "insert into t values (30, 'a', 1)",
            "update t set ver = 2 where id = 1",
            "delete from t where id = 2",
        ] {
            run(&mut client, &format!("{BEGIN}; {write}; commit"));
        }
        let mut superuser = fixture.left.superuser();
        assert_eq!(query(&mut superuser, LOCKED), [""; 0], "{options}");
        let own = "select count(*) > 0 from pg_locks l join pg_class c on c.oid = l.relation
                     where l.mode = 'SIReadLock' and c.relname in ('t', 't_pkey')";
        assert_eq!(
            query(&mut superuser, own),
            ["t"],
            "no predicate locks at all"
        );
    }
}

#[test]
fn anomalies_of_the_users_own_rows_are_still_found() {
    let fixture = away("ssiskew", "{}");
    let (mut one, mut two) = (fixture.left.client(), fixture.left.client());
    for client in [&mut one, &mut two] {
        run(
            client,
            &format!("{BEGIN}; select sum(ver) from t where id in (1, 2)"),
        );
    }
    run(&mut one, "update t set ver = 2 where id = 1");
    run(&mut two, "update t set ver = 2 where id = 2");
    run(&mut one, "commit");
    crate::support::common::refused(&mut two, "commit", "40001");
    reach(&fixture);
    assert_eq!(
        rows(&fixture.right, "select id from t where ver = 2"),
        ["1"]
    );
}
