//! Which failures are of the moment and which of the change: the first stop the server and blame no
//! record, the second mark one record failed.

use std::time::Duration;

use rowsync_harness::{Fixture, await_until};

use crate::support::common::{deal, one_way, query, queued, records, rows, run, same};
use crate::support::failed::{retry, standing, the_failed};
use crate::support::one_way::{SOON, await_blocked, lock_row, spawn};
use crate::support::reject_values::{self, ANY};

const COLUMNS: &str = "id int primary key, v text";
const QUEUE: &str = r#"{"mode": "queue"}"#;

/// A table `t` in this mode, with a gate before its target.
fn gated(label: &str, options: &str) -> Fixture {
    let fixture = one_way(label, COLUMNS, options);
    reject_values::build(&fixture);
    fixture
}

const STATUS: &str = "select last_sqlstate, last_error is not null, consecutive_failures,
                        pending, failed, waiting from sync_status";

/// While the gate says this state, nothing moves and no record is blamed; then all arrives in order.
fn waits_for_the_moment(fixture: &Fixture, base: i32, state: &str) {
    reject_values::close(fixture, ANY, state, None);
    let [one, two, three] = [base + 1, base + 2, base + 3];
    fixture.left.exec(&format!(
        "insert into t values ({one}, 'a'), ({two}, 'b'), ({three}, 'c');
         update t set v = 'd' where id = {one}; delete from t where id = {two};
         insert into t values ({two}, 'e')"
    ));
    for failures in 1..=2 {
        assert!(
            !deal(fixture, "100"),
            "{state}: nothing can have been delivered"
        );
        let untouched: Vec<_> = ["INSERT", "INSERT", "INSERT", "UPDATE", "DELETE", "INSERT"]
            .map(|op| format!("{op}|~|0|pending"))
            .into();
        assert_eq!(records(fixture), untouched, "{state}: a record was blamed");
        assert_eq!(
            rows(&fixture.left, STATUS),
            [format!("{state}|t|{failures}|6|0|0")],
            "{state}"
        );
    }
    assert_eq!(reject_values::passed(fixture), [""; 0], "{state}");
    reject_values::open(fixture, ANY);
    assert!(deal(fixture, "100"), "{state}: {:?}", standing(fixture));
    let expected = [
        format!("{one}:a"),
        format!("{two}:b"),
        format!("{three}:c"),
        format!("{one}:d"),
        format!("-{two}"),
        format!("{two}:e"),
    ];
    assert_eq!(
        reject_values::passed(fixture),
        expected,
        "{state}: not in order"
    );
    same(fixture, "t");
    assert_eq!(queued(fixture), 0, "{state}");
    let well = "select consecutive_failures, pending, last_success_at is not null from sync_status";
    assert_eq!(rows(&fixture.left, well), ["0|0|t"], "{state}");
}

fn all_wait_for_the_moment(label: &str, states: &[&str]) {
    let fixture = gated(label, QUEUE);
    for (base, state) in (0..).step_by(10).zip(states) {
        waits_for_the_moment(&fixture, base, state);
    }
}

#[test]
fn failures_of_connections_are_of_the_moment() {
    // 08P01 is missing: a message the other side does not understand, it never will.
    let states = ["08000", "08001", "08003", "08004", "08006", "08007"];
    all_wait_for_the_moment("class08", &states);
}

#[test]
fn a_lack_of_resources_is_of_the_moment() {
    all_wait_for_the_moment("class53", &["53000", "53100", "53200", "53300", "53400"]);
}

#[test]
fn meeting_others_is_of_the_moment() {
    all_wait_for_the_moment("meeting", &["40001", "40P01", "55P03"]);
}

#[test]
fn an_administrators_intervention_is_of_the_moment() {
    all_wait_for_the_moment("class57", &["57P01", "57P02", "57P03", "57014"]);
}

#[test]
fn what_precedes_a_failure_of_the_moment_may_arrive_and_nothing_behind_it() {
    let fixture = gated("prefix", QUEUE);
    reject_values::close(&fixture, "c", "40001", None);
    fixture
        .left
        .exec("insert into t values (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd'), (5, 'e')");
    assert!(!deal(&fixture, "100"));
    let passed = reject_values::passed(&fixture);
    let prefix: &[&str] = &["1:a", "2:b"][..passed.len().min(2)];
    assert_eq!(passed, prefix);
    assert_eq!(
        records(&fixture),
        vec!["INSERT|~|0|pending"; 5 - passed.len()]
    );
    reject_values::open(&fixture, "c");
    assert!(deal(&fixture, "100"));
    same(&fixture, "t");
}

#[test]
fn a_failure_of_the_moment_at_commit_queues_for_a_drain_to_try() {
    for state in ["40001", "53300", "55P03", "08006"] {
        let fixture = gated("atcommit", "{}");
        reject_values::close(&fixture, ANY, state, None);
        let mut client = fixture.left.client();
        run(&mut client, "insert into t values (1, 'a')");
        assert_eq!(records(&fixture), [format!("INSERT|{state}|1|pending")]);
        run(&mut client, "update t set v = 'b' where id = 1");
        // What was noted at commit stays; the drain adds nothing to it.
        assert!(!deal(&fixture, "100"), "{state}");
        let kept = [
            format!("INSERT|{state}|1|pending"),
            "UPDATE|~|0|pending".to_owned(),
        ];
        assert_eq!(records(&fixture), kept, "{state}");
        reject_values::open(&fixture, ANY);
        assert!(deal(&fixture, "100"), "{state}");
        assert_eq!(reject_values::passed(&fixture), ["1:a", "1:b"], "{state}");
        same(&fixture, "t");
        run(&mut client, "update t set v = 'c' where id = 1");
        assert_eq!(
            queued(&fixture),
            0,
            "{state}: direct delivery has not resumed"
        );
    }
}

/// States that no waiting cures, with the constraint that the error names.
const PERMANENT: [(&str, Option<&str>); 10] = [
    ("08P01", None),
    ("22001", None),
    ("23502", None),
    ("23503", Some("is_known")),
    ("23505", Some("is_once")),
    ("23514", Some("is_sound")),
    ("23P01", Some("is_apart")),
    ("40002", Some("is_late")),
    ("P0001", None),
    ("XX000", None),
];

#[test]
fn a_failure_of_the_change_fails_its_record() {
    let fixture = gated("permanent", QUEUE);
    for (base, (state, constraint)) in (0..).step_by(10).zip(PERMANENT) {
        reject_values::close(&fixture, "failing", state, constraint);
        let ids: Vec<_> = (1..=5).map(|n| base + n).collect();
        for id in &ids {
            let v = if *id == base + 3 { "failing" } else { "fine" };
            fixture
                .left
                .exec(&format!("insert into t values ({id}, '{v}')"));
        }
        assert!(!deal(&fixture, "100"), "{state}: a failure must show");
        let why = "select op, status, sqlstate, message, constraint_name, attempts,
                     last_attempt_at >= create_time, waits_for from sync_err_rec";
        let constraint = constraint.unwrap_or("~");
        let expected = format!("INSERT|failed|{state}|the gate is closed|{constraint}|1|t|~");
        assert_eq!(rows(&fixture.left, why), [expected], "{state}");
        let others: Vec<_> = [1, 2, 4, 5]
            .map(|n| format!("{}:fine", base + n))
            .into_iter()
            .collect();
        assert_eq!(
            reject_values::passed(&fixture),
            others,
            "{state}: the others flow"
        );
        let status = "select pending, failed, waiting from sync_status";
        assert_eq!(rows(&fixture.left, status), ["0|1|0"], "{state}");
        // Still closed: it fails once more, and says so.
        let failing = the_failed(&fixture);
        assert!(!retry(&fixture, failing), "{state}");
        assert_eq!(records(&fixture), [format!("INSERT|{state}|2|failed")]);
        reject_values::open(&fixture, "failing");
        assert!(retry(&fixture, failing), "{state}");
        same(&fixture, "t");
        assert_eq!(queued(&fixture), 0, "{state}");
        reject_values::passed(&fixture);
    }
}

#[test]
fn a_missing_right_fails_one_record_and_the_table_waits() {
    let fixture = gated("rights42", QUEUE);
    reject_values::close(&fixture, "failing", "42501", None);
    fixture
        .left
        .exec("insert into t values (1, 'a'), (2, 'b'), (3, 'failing'), (4, 'd'), (5, 'e')");
    assert!(!deal(&fixture, "100"));
    let failing = the_failed(&fixture);
    assert_eq!(reject_values::passed(&fixture), ["1:a", "2:b"]);
    let waiting = format!("INSERT|waiting|{failing}");
    assert_eq!(standing(&fixture), ["INSERT|failed|~", &waiting, &waiting]);
    reject_values::open(&fixture, "failing");
    assert!(retry(&fixture, failing));
    assert_eq!(reject_values::passed(&fixture), ["3:failing", "4:d", "5:e"]);
    same(&fixture, "t");
}

/// Rows 1 to 3 on both sides, and changes of 1 and 2 that wait.
fn two_updates_waiting(label: &str) -> Fixture {
    let fixture = one_way(label, COLUMNS, QUEUE);
    fixture
        .left
        .exec("insert into t values (1, 'old'), (2, 'old'), (3, 'old')");
    assert!(deal(&fixture, "100"));
    fixture
        .left
        .exec("update t set v = 'new' where id = 1; update t set v = 'new' where id = 2");
    fixture
}

/// Nobody was blamed, and when whoever was in the way has gone, the changes arrive.
fn blames_nobody(fixture: &Fixture, states: &[&str]) {
    assert_eq!(
        records(fixture),
        ["UPDATE|~|0|pending", "UPDATE|~|0|pending"]
    );
    let status = rows(&fixture.left, "select last_sqlstate from sync_status");
    assert!(states.contains(&status[0].as_str()), "{status:?}");
    await_until(SOON, "the drain to succeed", || deal(fixture, "100"));
    assert_eq!(same(fixture, "t"), ["1|new", "2|new", "3|old"]);
}

#[test]
fn a_lock_that_someone_holds_there_is_waited_out() {
    let fixture = two_updates_waiting("locked");
    let locker = lock_row(&fixture);
    assert!(!deal(&fixture, "100"));
    drop(locker);
    blames_nobody(&fixture, &["55P03"]);
}

#[test]
fn a_deadlock_there_is_tried_again() {
    let fixture = two_updates_waiting("dead");
    // The other one looks for deadlocks later than the drain, so the drain is the one to go.
    let mut other = fixture.right.superuser();
    let schema = &fixture.right.user;
    run(&mut other, "set deadlock_timeout = '20s'; begin");
    run(
        &mut other,
        &format!("update {schema}.t set v = 'other' where id = 2"),
    );
    std::thread::scope(|scope| {
        let drain = scope.spawn(|| {
            let mut admin = fixture.left.superuser();
            run(&mut admin, "set pg_rowsync.lock_timeout = '15s'");
            run(&mut admin, "set pg_rowsync.delivery_timeout = '30s'");
            query(&mut admin, "select deal_sync_err_rec(100)")
        });
        await_blocked(&fixture.right);
        run(
            &mut other,
            &format!("update {schema}.t set v = 'other' where id = 1"),
        );
        assert_eq!(drain.join().expect("a drain"), ["f"]);
    });
    run(&mut other, "commit");
    blames_nobody(&fixture, &["40P01"]);
}

#[test]
fn a_backend_cancelled_or_ended_there_is_tried_again() {
    for (label, function, states) in [
        ("cancelled", "pg_cancel_backend", ["57014", "57014"]),
        ("ended", "pg_terminate_backend", ["57P01", "08006"]),
    ] {
        let fixture = two_updates_waiting(label);
        let locker = lock_row(&fixture);
        let mut admin = fixture.left.superuser();
        run(&mut admin, "set pg_rowsync.lock_timeout = '30s'");
        run(&mut admin, "set pg_rowsync.delivery_timeout = '40s'");
        let drain = spawn(
            admin,
            "do $$ begin assert not deal_sync_err_rec(100), 'nothing can have arrived'; end $$",
        );
        // What was cancelled is tried again in smaller parts, so it may take several requests.
        let user = &fixture.right.user;
        let end = format!(
            "select count({function}(pid)) from pg_stat_activity where usename = '{user}'
               and wait_event_type = 'Lock' and application_name = 'pg_rowsync'"
        );
        let mut ended: i64 = 0;
        await_until(SOON, "the drain to give up", || {
            ended += fixture.right.query_one::<i64>(&end);
            drain.is_finished()
        });
        assert!(ended > 0, "nothing to end");
        drain
            .join()
            .expect("a thread")
            .1
            .expect("a drain that fails politely");
        drop(locker);
        blames_nobody(&fixture, &states);
    }
}

#[test]
fn a_statement_that_takes_too_long_there_is_tried_again() {
    let fixture = two_updates_waiting("slow");
    let schema = &fixture.right.user;
    fixture.right.exec(&format!(
        "create table slow (yes boolean); insert into slow values (true);
         create function slow() returns trigger language plpgsql as $$
         begin
           if (select yes from {schema}.slow) then perform pg_sleep(30); end if;
           return new;
         end $$;
         create trigger slow before update on t for each row execute function slow()"
    ));
    let mut admin = fixture.left.superuser();
    run(&mut admin, "set pg_rowsync.delivery_timeout = '1s'");
    let start = std::time::Instant::now();
    assert_eq!(query(&mut admin, "select deal_sync_err_rec(100)"), ["f"]);
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "{:?}",
        start.elapsed()
    );
    fixture.right.exec("update slow set yes = false");
    // Whichever deadline is first: the server's own or ours.
    blames_nobody(&fixture, &["57014", "08006"]);
}
