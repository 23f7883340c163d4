//! `sync_progress` of `verify_sync` and `repair_sync`: how far they are while they run, and what they came to.

use rowsync_harness::fixture::{Fixture, await_until};
use rowsync_harness::proxy::{Proxy, Strike};

use crate::support::common::{mirror, one_way, query, run};
use crate::support::one_way::SOON;

/// What another session sees of comparisons that are under way.
fn running(fixture: &Fixture, columns: &str) -> Vec<String> {
    let sql =
        format!("select {columns} from sync_progress where ended_at is null and command <> 'copy'");
    query(&mut fixture.left.superuser(), &sql)
}

/// What a session is said to do by those who look at all sessions, and whether its query is still known by its
/// identifier.
fn activity(fixture: &Fixture, pid: &str) -> Vec<String> {
    let sql = format!("select query, query_id is not null from pg_stat_activity where pid = {pid}");
    query(&mut fixture.left.superuser(), &sql)
}

#[test]
fn a_comparison_that_is_held_half_way_is_seen_and_gone_when_it_is_cancelled() {
    let fixture = Fixture::new("held");
    let proxy = Proxy::start(fixture.right.cluster.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", "id int primary key", "{}");
    let fill = "set application_name = 'pg_rowsync';
                insert into t select generate_series(1, 150000); analyze t";
    fixture.left.exec(fill);
    fixture.right.exec(fill);
    // The second question is about the rows behind the first 131,072.
    proxy.strike("'139264'", Strike::Silence);
    let mut client = fixture.left.superuser();
    run(
        &mut client,
        &format!(
            "set compute_query_id = on; set role {}; set search_path = {0}, public",
            fixture.left.user
        ),
    );
    let canceler = client.cancel_token();
    let call = std::thread::spawn(move || {
        let result = client.batch_execute("select verify_sync('t', 'dst')");
        (client, result)
    });
    await_until(SOON, "the comparison is held", || proxy.has_struck());
    let columns = "command, relation, server, state, rows_total, rows_done, bytes_done > 1000,
                   started_at < now(), eta > now(), workers, message, pid, id is not null";
    await_until(SOON, "its progress", || {
        running(&fixture, "rows_done") == ["131072"]
    });
    let seen = running(&fixture, columns);
    let pid = seen[0].split('|').nth(11).expect("a process").to_owned();
    let schema = &fixture.left.user;
    assert_eq!(
        seen,
        [format!(
            "verify|{schema}.t|dst|comparing|150000|131072|t|t|t|1|\
             16 ranges compared, 0 differences|{pid}|t"
        )]
    );
    assert_eq!(
        activity(&fixture, &pid),
        ["pg_rowsync: verify (comparing): select verify_sync('t', 'dst')|t"]
    );
    canceler.cancel_query(postgres::NoTls).expect("a cancel");
    let (mut client, result) = call.join().expect("a call");
    let state = result.expect_err("a cancelled call").code().cloned();
    assert_eq!(state, Some(postgres::error::SqlState::QUERY_CANCELED));
    assert_eq!(
        activity(&fixture, &pid),
        ["select verify_sync('t', 'dst')|t"]
    );
    assert_eq!(query(&mut client, "select pg_backend_pid()"), [pid]);
    assert_eq!(running(&fixture, columns), [""; 0]);
    let ended = "select count(*) from sync_progress where command = 'verify'";
    assert_eq!(query(&mut fixture.left.superuser(), ended), ["0"]);
    proxy.thaw();
    run(&mut client, "select verify_sync('t', 'dst')");
    assert_eq!(running(&fixture, columns), [""; 0]);
    let ended = "select command, relation, server, state, rows_total, rows_done, bytes_done > 0,
                        ended_at > started_at, eta, workers, sqlstate, message, pid from sync_progress";
    assert_eq!(
        query(&mut fixture.left.superuser(), ended),
        [format!(
            "verify|{schema}.t|dst|done|150000|150000|t|t|~|0|~|no difference|~"
        )]
    );
}

#[test]
fn a_repair_says_what_it_does_and_ends_with_its_session() {
    let fixture = one_way("repairing", "id int primary key, v text", "{}");
    fixture.left.exec("insert into t values (1, 'a'), (2, 'b')");
    fixture.right.exec("update t set v = 'x'");
    let mut holder = fixture.left.client();
    run(&mut holder, "begin; select from t where id = 1 for update");
    let mut client = fixture.left.client();
    let call = std::thread::spawn(move || {
        client
            .batch_execute("select repair_sync('t', 'dst')")
            .is_ok()
    });
    let columns = "command, state, rows_done, message, workers";
    let expected = ["repair|repairing|2|1 ranges compared, 2 differences, 0 dealt with|1"];
    await_until(SOON, "the repair", || {
        running(&fixture, columns) == expected
    });
    let pid = running(&fixture, "pid").remove(0);
    let expected = ["pg_rowsync: repair (repairing): select repair_sync('t', 'dst')|f"];
    assert_eq!(activity(&fixture, &pid), expected);
    let kill = "select pg_terminate_backend(pid) from sync_progress where command = 'repair'";
    run(&mut fixture.left.superuser(), kill);
    assert!(!call.join().expect("a call"), "the session was ended");
    await_until(SOON, "the end of its session", || {
        running(&fixture, columns).is_empty()
    });
    run(&mut holder, "rollback");
    // What is rolled back was not done, and says nothing.
    let log = "select command, state, rows_done, message from sync_progress order by id";
    run(
        &mut holder,
        "begin; select repair_sync('t', 'dst'); rollback",
    );
    assert_eq!(query(&mut fixture.left.superuser(), log), [""; 0]);
    for call in [
        r#"select repair_sync('t', 'dst', '{"dry_run": true}')"#,
        r#"select repair_sync('t', 'dst', '{"max_differences": 1}')"#,
        "select repair_sync('t', 'dst')",
        "select verify_sync('t', 'dst')",
        // This one cannot write down what it came to, and compares all the same.
        "begin read only; select verify_sync('t', 'dst'); commit",
    ] {
        run(&mut holder, call);
    }
    assert_eq!(
        query(&mut fixture.left.superuser(), log),
        [
            "repair|done|2|2 differences, dry run",
            "repair|done|2|1 difference, stopped there, 0 left",
            "repair|done|2|1 difference, 0 left",
            "verify|done|2|no difference",
        ]
    );
}

#[test]
fn a_command_of_the_servers_own_keeps_its_progress() {
    let fixture = one_way("inside", "id int primary key, v text", "{}");
    fixture.left.exec("insert into t values (1, 'a')");
    let mut client = fixture.left.client();
    // The rows of both come out of one COPY, which is seen again when the comparison is over.
    let seen = query(
        &mut client,
        "create function seen() returns bigint language sql as
           'select count(*) from pg_stat_progress_copy where pid = pg_backend_pid()';
         create table log (n bigint);
         create function compare() returns trigger language plpgsql as $$ begin
           perform verify_sync('t', 'dst'); insert into log select seen(); return new; end $$;
         create table u (id int);
         create trigger c before insert on u for each row execute function compare();
         select 1",
    );
    assert_eq!(seen, ["1"]);
    let mut copy = client.copy_in("copy u from stdin").expect("a copy");
    std::io::Write::write_all(&mut copy, b"1\n").expect("a row");
    copy.finish().expect("the end of the copy");
    assert_eq!(query(&mut client, "select n from log"), ["1"]);
}

/// Rows of commands that ended more than a day ago go with the next one, whatever its isolation level.
#[test]
fn what_ended_more_than_a_day_ago_goes_under_any_isolation_level() {
    let fixture = one_way("dayold", "id int primary key", "{}");
    for level in ["read committed", "repeatable read", "serializable"] {
        let mut client = fixture.left.client();
        run(&mut client, "select verify_sync('t', 'dst')");
        fixture.left.exec_superuser(
            "update sync_progress_log set ended_at = clock_timestamp() - interval '25 hours'",
        );
        run(
            &mut client,
            &format!("begin isolation level {level}; select verify_sync('t', 'dst'); commit"),
        );
        let kept = "select count(*) from sync_progress_log";
        assert_eq!(query(&mut fixture.left.superuser(), kept), ["1"], "{level}");
    }
}
