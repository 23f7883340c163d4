//! SERIALIZABLE transactions of applications: what the extension reads and writes of its own tables on their
//! behalf takes no part in the conflicts by which PostgreSQL finds anomalies.

use postgres::Client;

use rowsync_harness::Fixture;

use crate::support::common::{
    attach_sql, closed_port, deal, link_with, one_way, query, queued, refused, rows, run, same,
    table,
};
use crate::support::failed::{counts, retry_all, standing};

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

/// Transactions at once, each of a row of its own; all commit, the last one first: by then each has read what a
/// later one has written, if they read each other's at all.
fn overlap(clients: &mut [Client], write: impl Fn(usize) -> String) {
    clients
        .iter_mut()
        .for_each(|client| run(client, &format!("{BEGIN}; select 1")));
    for (at, client) in clients.iter_mut().enumerate() {
        run(client, &write(at));
    }
    let last_first = clients.iter_mut().rev();
    last_first.for_each(|client| run(client, "commit"));
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
    let mut one = fixture.left.client();
    let mut two = fixture.left.client();
    for client in [&mut one, &mut two] {
        run(
            client,
            &format!("{BEGIN}; select sum(ver) from t where id in (1, 2)"),
        );
    }
    run(&mut one, "update t set ver = 2 where id = 1");
    run(&mut two, "update t set ver = 2 where id = 2");
    run(&mut one, "commit");
    refused(&mut two, "commit", "40001");
    reach(&fixture);
    assert_eq!(
        rows(&fixture.right, "select id from t where ver = 2"),
        ["1"]
    );
}

const NEWEST: &str = r#""on_conflict": "newest", "version_column": "ver""#;

/// The left table `t`, of whose rows one has failed there: by itself, or with the whole table.
fn failing(label: &str, options: &str, whole_table: bool) -> Fixture {
    let fixture = one_way(label, COLUMNS, options);
    fixture
        .left
        .exec("insert into t select g, 'v', 1 from generate_series(1, 20) g");
    assert!(deal(&fixture, "1000"));
    fixture.right.exec(if whole_table {
        "alter table t rename v to w"
    } else {
        "alter table t add constraint small check (ver < 100)"
    });
    fixture
        .left
        .exec("update t set ver = 100, v = 'failed' where id = 20");
    assert!(!deal(&fixture, "1000"));
    assert_eq!(counts(&fixture), (0, 1, 0));
    fixture
}

/// Every one of them reads what the failed record blocks, and those that wait write there.
#[test]
fn writers_of_different_rows_do_not_conflict_while_records_are_failed() {
    for (number, options) in [
        r#"{"mode": "async"}"#.to_owned(),
        r#"{"mode": "queue"}"#.to_owned(),
        format!(r#"{{"mode": "async", {NEWEST}}}"#),
    ]
    .into_iter()
    .enumerate()
    {
        for whole_table in [true, false] {
            let label = format!("ssifailed{number}{}", i32::from(whole_table));
            let fixture = failing(&label, &options, whole_table);
            let mut clients = clients(&fixture);
            // A session's first look at its route is its own.
            for (at, client) in clients.iter_mut().enumerate() {
                run(
                    client,
                    &format!("update t set v = v || '!' where id = {}", at + 11),
                );
            }
            // One that stays open, so that what others have locked is still there to be looked at.
            let mut open = fixture.left.client();
            run(
                &mut open,
                &format!("{BEGIN}; select count(*) from pg_class"),
            );
            for round in 0..3 {
                overlap(&mut clients, |at| {
                    let id = at + 1;
                    match round {
                        0 => format!("update t set v = v || '0', ver = 2 where id = {id}"),
                        1 => format!("update t set v = v || '1' where id = {id}"),
                        _ => format!("insert into t values ({id} + 100, 'new', 1)"),
                    }
                });
            }
            let locked = query(&mut fixture.left.superuser(), LOCKED);
            assert_eq!(locked, [""; 0], "{options} {whole_table}");
            run(&mut open, "commit");
            let waiting = counts(&fixture).2;
            assert_eq!(waiting, if whole_table { 16 } else { 0 }, "{options}");
            // What waits for a failed record waits here, too.
            let mut client = fixture.left.client();
            run(
                &mut client,
                &format!("{BEGIN}; update t set v = 'later' where id = 20; commit"),
            );
            // Behind others that are pending, the drain finds that.
            assert!(!deal(&fixture, "1000"));
            let last = standing(&fixture).pop();
            assert!(
                last.is_some_and(|last| last.starts_with("UPDATE|waiting|")),
                "{options} {whole_table}: {:?}",
                standing(&fixture)
            );
            fixture.right.exec(if whole_table {
                "alter table t rename w to v"
            } else {
                "alter table t drop constraint small"
            });
            retry_all(&fixture);
            same(&fixture, "t");
            assert_eq!(
                rows(
                    &fixture.right,
                    "select v from t where id in (1, 20, 101) order by id"
                ),
                ["v01", "later", "new"],
                "{options} {whole_table}"
            );
        }
    }
}

/// Predicate locks on kept versions that are not of a single one.
fn kept_pages(fixture: &Fixture) -> Vec<String> {
    rows(
        &fixture.left,
        "select count(*) from pg_locks l join pg_class c on c.oid = l.relation
           where l.mode = 'SIReadLock' and l.database = (select oid from pg_database where datname = current_database())
             and c.relname like 'sync_row_version%' and l.locktype <> 'tuple'",
    )
}

/// What is kept of rows whose version stands still, or has been deleted: each has its own, on one page.
#[test]
fn writers_of_different_rows_do_not_conflict_over_kept_versions() {
    let fixture = one_way(
        "ssikept",
        COLUMNS,
        &format!(r#"{{"mode": "queue", {NEWEST}}}"#),
    );
    fixture
        .left
        .exec("insert into t select g, 'v', 1 from generate_series(1, 20) g");
    let mut open = fixture.left.client();
    run(
        &mut open,
        &format!("{BEGIN}; select count(*) from pg_class"),
    );
    let mut clients = clients(&fixture);
    type Write = fn(usize) -> String;
    let rounds: [Write; 6] = [
        |id| format!("update t set v = 'a' where id = {id}"),
        |id| format!("update t set v = 'b' where id = {id}"),
        |id| format!("delete from t where id = {id}"),
        |id| format!("insert into t values ({id}, 'c', 1)"),
        |id| format!("update t set v = 'd' where id = {id}"),
        |id| format!("update t set v = 'e', ver = 3 where id = {id}"),
    ];
    for write in rounds {
        overlap(&mut clients, |at| write(at + 1));
    }
    assert_eq!(kept_pages(&fixture), ["0"]);
    run(&mut open, "commit");
    let written = table(&fixture.left, "t");
    assert_eq!(
        written.iter().filter(|row| row.ends_with("|e|3")).count(),
        4
    );
    assert!(deal(&fixture, "1000"));
    same(&fixture, "t");
    // Two sessions that write one row meet as they would without the trigger.
    let (mut one, mut two) = (fixture.left.client(), fixture.left.client());
    for client in [&mut one, &mut two] {
        run(client, &format!("{BEGIN}; select 1 from t where id = 9"));
    }
    run(&mut one, "update t set v = 'one' where id = 9; commit");
    refused(&mut two, "update t set v = 'two' where id = 9", "40001");
}

/// Changes arrive under `newest` in sessions whose default is SERIALIZABLE, too.
#[test]
fn changes_of_different_rows_that_arrive_do_not_conflict() {
    let fixture = one_way(
        "ssiarrive",
        COLUMNS,
        &format!(r#"{{"mode": "sync", {NEWEST}}}"#),
    );
    fixture.right.exec_superuser(&format!(
        "alter role {} set default_transaction_isolation = serializable",
        fixture.right.user
    ));
    fixture.link(&fixture.right, &fixture.left, "back", &[]);
    fixture.right.exec(&format!(
        r#"select attach_sync('t', 'back', '{}.t', '{{"mode": "queue", {NEWEST}}}')"#,
        fixture.left.user
    ));
    fixture
        .left
        .exec("insert into t select g, 'v', 1 from generate_series(1, 20) g");
    let mut clients = clients(&fixture);
    for round in 0..4 {
        overlap(&mut clients, |at| {
            format!("update t set v = v || '{round}' where id = {}", at + 1)
        });
    }
    same(&fixture, "t");
    assert_eq!(
        rows(&fixture.right, "select v from t where id <= 4"),
        ["v0123"; 4]
    );
}
