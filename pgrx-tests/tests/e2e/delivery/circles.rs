//! Masters whose loop guards go by different names: a change ends where it has been before.

use std::sync::Arc;
use std::time::Duration;

use rowsync_harness::cluster::{Cluster, TEST_SETTINGS};
use rowsync_harness::{Side, await_until};

use crate::support::common::{rows, run, superuser_with_notices, table, warnings};
use crate::support::preloaded::EAGER;

const COLUMNS: &str = "id int primary key, v text";
const SOON: Duration = Duration::from_secs(60);

/// Databases of one preloaded cluster, each with a server `next` to the one after it, in a ring, under a
/// guard name of its own, and a table `t` that it sends there.
fn ring(label: &str, nodes: usize, options: &str) -> Vec<Side> {
    let preload = [
        ("shared_preload_libraries", "pg_rowsync"),
        ("max_worker_processes", "16"),
    ];
    let settings = [TEST_SETTINGS, &preload, EAGER].concat();
    let own = Arc::new(Cluster::start_with(label, &settings).expect("a cluster"));
    let sides: Vec<Side> = (0..nodes)
        .map(|at| Side::create(&own, &format!("{label}_{at}")).expect("a database"))
        .collect();
    for at in 0..nodes {
        connect(
            &sides[at],
            &sides[(at + 1) % nodes],
            "next",
            &format!("site_{at}"),
            options,
        );
    }
    sides
}

fn connect(from: &Side, to: &Side, server: &str, guard: &str, options: &str) {
    from.link(
        to,
        to.cluster.port(),
        server,
        &[("application_name", guard)],
    )
    .expect("a server");
    from.exec(&format!(
        "create table if not exists t ({COLUMNS});
         create trigger {server}_dml after insert or update or delete on t for each row
           execute function sync_dml('{server}', '{}', 't', '{options}')",
        to.user
    ));
}

/// How often rows of `t` were written.
fn writes(side: &Side) -> i64 {
    side.query_one(
        "select n_tup_ins + n_tup_upd + n_tup_del from pg_stat_user_tables where relname = 't'",
    )
}

/// Waits until nothing is queued anywhere.
fn await_rest(sides: &[Side]) {
    await_until(SOON, "all queues to empty", || {
        sides
            .iter()
            .all(|side| side.queued().expect("a queue") == 0)
    });
}

fn looped(side: &Side) -> i64 {
    side.query_one("select looped from sync_status where server = 'next'")
}

#[test]
fn between_two_masters_a_change_ends_after_one_way() {
    for mode in ["async", "sync", "queue"] {
        let sides = ring(
            &format!("two{mode}"),
            2,
            &format!(r#"{{"mode": "{mode}"}}"#),
        );
        let [a, b] = sides.as_slice() else {
            unreachable!()
        };
        let mut client = a.client();
        run(&mut client, "insert into t values (1, 'x')");
        // Each update would be undone by the echo of the one before.
        for n in 0..20 {
            run(&mut client, &format!("update t set v = 'u{n}'"));
        }
        await_rest(&sides);
        await_until(SOON, "b to have it", || table(b, "t") == ["1|u19"]);
        assert_eq!(table(a, "t"), ["1|u19"], "{mode}");
        drop(client);
        await_until(SOON, "statistics", || writes(a) == 21 && writes(b) == 21);
        await_until(SOON, "the count", || looped(b) == 21);
        assert_eq!(looped(a), 0);
        // The other way round.
        b.exec("update t set v = 'back'");
        await_rest(&sides);
        await_until(SOON, "a to have it", || table(a, "t") == ["1|back"]);
        assert_eq!(looped(a), 1, "{mode}");
        let said = a.cluster.log();
        assert!(
            said.contains("changes that came from server \"next\" are not sent back"),
            "{said}"
        );
        assert!(said.contains("same application_name"), "{said}");
    }
}

#[test]
fn in_a_ring_of_three_a_change_visits_each_once() {
    let sides = ring("three", 3, "{}");
    sides[0].exec("insert into t values (1, 'x')");
    sides[1].exec("insert into t values (2, 'y')");
    sides[2].exec("insert into t values (3, 'z')");
    sides[0].exec("update t set v = 'w' where id = 1; delete from t where id = 9");
    await_rest(&sides);
    for side in &sides {
        await_until(SOON, "all rows", || {
            table(side, "t") == ["1|w", "2|y", "3|z"]
        });
        await_until(SOON, "statistics", || writes(side) == 4);
    }
    // Held back by the one before the origin.
    assert_eq!(sides.iter().map(looped).collect::<Vec<_>>(), [1, 1, 2]);
}

#[test]
fn what_is_queued_on_its_way_keeps_its_path() {
    let sides = ring("kept", 3, "{}");
    let [a, b, c] = sides.as_slice() else {
        unreachable!()
    };
    // c cannot be reached: what b has from a waits, and so does what b has of its own.
    crate::support::common::outage(c);
    a.exec("insert into t values (1, 'x')");
    b.exec("insert into t values (2, 'y')");
    assert_eq!(b.queued().expect("a queue"), 2);
    crate::support::common::recover(c);
    await_rest(&sides);
    for side in &sides {
        await_until(SOON, "all rows", || table(side, "t") == ["1|x", "2|y"]);
    }
    await_until(SOON, "statistics", || (writes(a), writes(c)) == (2, 2));
    assert_eq!(sides.iter().map(looped).collect::<Vec<_>>(), [1, 0, 1]);
}

#[test]
fn between_all_of_three_changes_end() {
    let sides = ring("mesh", 3, "{}");
    for at in 0..3 {
        connect(
            &sides[at],
            &sides[(at + 2) % 3],
            "prev",
            &format!("site_{at}"),
            "{}",
        );
    }
    for (at, side) in sides.iter().enumerate() {
        side.exec(&format!("insert into t values ({at}, 'x')"));
    }
    await_rest(&sides);
    for side in &sides {
        await_until(SOON, "all rows", || {
            table(side, "t") == ["0|x", "1|x", "2|x"]
        });
    }
    let before: Vec<i64> = sides.iter().map(writes).collect();
    await_rest(&sides);
    assert_eq!(sides.iter().map(writes).collect::<Vec<_>>(), before);
}

#[test]
fn one_transaction_may_hold_changes_of_several_paths() {
    let sides = ring("mixed", 3, "{}");
    let [a, _, c] = sides.as_slice() else {
        unreachable!()
    };
    let name = |side: &Side| -> String {
        side.query_one(
            "select system_identifier || '.' || (select oid from pg_database
               where datname = current_database()) from pg_control_system()",
        )
    };
    // What arrives on c has come by b, from a or not; what b's user writes on c has no path.
    let mut client = c.client();
    let a_name = name(a);
    let other = "123.45";
    run(
        &mut client,
        &format!(
            "begin; insert into t values (1, 'own');
             set local pg_rowsync.path = '{a_name},{other}'; insert into t values (2, 'from a');
             set local pg_rowsync.path = '{other}'; insert into t values (3, 'from elsewhere');
             set local pg_rowsync.path = 'nonsense'; insert into t values (4, 'own'); commit"
        ),
    );
    await_rest(&sides);
    assert_eq!(table(a, "t"), ["1|own", "3|from elsewhere", "4|own"]);
    assert_eq!(looped(c), 1);
}

#[test]
fn what_has_been_here_is_not_captured_and_that_is_told_once() {
    let sides = ring("here", 2, "{}");
    let [a, b] = sides.as_slice() else {
        unreachable!()
    };
    let (mut client, notices) = superuser_with_notices(a);
    run(
        &mut client,
        &format!(
            "set search_path = {}, public;
             select set_config('pg_rowsync.path', system_identifier || '.' || d.oid, false)
               from pg_control_system(), pg_database d where datname = current_database();
             insert into t values (1, 'x'); insert into t values (2, 'x'); update t set v = 'y'",
            a.user
        ),
    );
    let reported = warnings(&notices);
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert_eq!(reported[0].code().code(), "55000");
    assert_eq!(
        reported[0].message(),
        "changes that come back to this database are not sent to server \"next\""
    );
    assert_eq!(looped(a), 4);
    assert_eq!(rows(b, "select * from t"), [""; 0]);
    run(
        &mut client,
        "reset pg_rowsync.path; insert into t values (3, 'x')",
    );
    assert_eq!(table(b, "t"), ["3|x"]);
}

#[test]
fn a_path_is_believed_of_members_of_the_guard_role_only() {
    let sides = ring("doubted", 2, r#"{"guard_role": "postgres"}"#);
    let [a, b] = sides.as_slice() else {
        unreachable!()
    };
    let mut client = a.client();
    let name: String = a.query_one(
        "select system_identifier || '.' || d.oid from pg_control_system(), pg_database d
          where datname = current_database()",
    );
    run(
        &mut client,
        &format!("set pg_rowsync.path = '{name}'; insert into t values (1, 'x')"),
    );
    assert_eq!(table(b, "t"), ["1|x"]);
}
