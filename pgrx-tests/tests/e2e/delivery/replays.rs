//! What the server has committed already is replayed without harm, whatever constraints it has: the
//! answer to a delivery was lost, or the local side ended between the two commits of a drain.

use std::time::Duration;

use postgres::Client;
use rowsync_harness::Fixture;
use rowsync_harness::fixture::{await_until, clusters, fails};
use rowsync_harness::proxy::{Direction, Proxy, Strike};

use crate::support::common::{deal, mirror, queued, records, rows, run, same, table};

const LONG: Duration = Duration::from_secs(60);

/// Tables with a constraint between rows, and a history after which an earlier state is refused.
struct Case {
    name: &'static str,
    tables: &'static [(&'static str, &'static str)],
    before: &'static str,
    steps: &'static [&'static str],
}

const CASES: [Case; 6] = [
    Case {
        name: "unique",
        tables: &[("usr", "id int primary key, email text not null unique")],
        before: "insert into usr values (100, 'first')",
        steps: &[
            "insert into usr values (1, 'ada@x')",
            "update usr set email = 'ada@y' where id = 1",
            "insert into usr values (2, 'ada@x')",
        ],
    },
    Case {
        name: "foreign",
        tables: &[
            ("p", "id int primary key"),
            ("c", "id int primary key, p int references p"),
        ],
        before: "insert into p values (1), (2)",
        steps: &[
            "insert into c values (5, 1)",
            "update c set p = 2 where id = 5",
            "delete from p where id = 1",
        ],
    },
    Case {
        name: "exclusion",
        tables: &[(
            "r",
            "id int primary key, during int4range not null, exclude using gist (during with &&)",
        )],
        before: "insert into r values (100, '[90,100)')",
        steps: &[
            "insert into r values (1, '[1,5)')",
            "update r set during = '[10,15)' where id = 1",
            "insert into r values (2, '[2,6)')",
        ],
    },
    Case {
        name: "moved",
        tables: &[("usr", "id int primary key, email text not null unique")],
        before: "insert into usr values (1, 'ada@x'), (2, 'bob@x')",
        steps: &[
            "update usr set email = 'tmp' where id = 1",
            "update usr set email = 'ada@x' where id = 2",
            "update usr set id = 3, email = 'bob@x' where id = 1",
            "delete from usr where id = 2",
        ],
    },
    Case {
        name: "deferrable",
        tables: &[("d", "id int primary key deferrable, v text")],
        before: "insert into d values (1, 'a'), (2, 'b')",
        steps: &[
            "insert into d values (3, 'c')",
            "update d set v = 'x' where id = 1",
            "delete from d where id = 2",
            "insert into d values (2, 'n')",
        ],
    },
    Case {
        name: "numeric",
        tables: &[("m", "id numeric primary key, v text")],
        before: "insert into m values (1.0, 'a'), (2.0, 'b')",
        steps: &[
            "insert into m values (3.0, 'c')",
            "update m set v = 'x' where id = 1",
            "delete from m where id = 2",
            "insert into m values (2.0, 'n')",
        ],
    },
];

const POLICIES: [&str; 3] = ["overwrite", "error", "skip"];

/// The case's tables on both sides, sent through a proxy.
fn begin(case: &Case, label: &str, mode: &str, policy: &str) -> (Fixture, Proxy, Client) {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = Fixture::new(&format!("replay_{}_{label}_{policy}", case.name));
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    let options = format!(r#"{{"mode": "{mode}", "on_conflict": "{policy}"}}"#);
    for (name, columns) in case.tables {
        mirror(&fixture, name, columns, &options);
    }
    let mut client = fixture.left.client();
    run(&mut client, case.before);
    deal(&fixture, "1000");
    equal(case, &fixture);
    (fixture, proxy, client)
}

/// COMMIT with the end of its text: without it the isolation level would be meant.
const COMMIT: &str = "COMMIT\0";

/// A table `o` that is sent to another server.
fn send_beside(fixture: &Fixture) {
    fixture.link(&fixture.left, &fixture.right, "other", &[]);
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table o (id int primary key)");
    }
    fixture.left.exec(&format!(
        "select attach_sync('o', 'other', '{}.o')",
        fixture.right.user
    ));
}

fn equal(case: &Case, fixture: &Fixture) {
    case.tables
        .iter()
        .for_each(|(name, _)| drop(same(fixture, name)));
}

fn needs_no_one(case: &Case, fixture: &Fixture) {
    assert!(deal(fixture, "1000"), "{:?}", standing(fixture));
    assert_eq!(records(fixture), Vec::<String>::new(), "{}", case.name);
    assert_eq!(queued(fixture), 0);
    equal(case, fixture);
}

fn standing(fixture: &Fixture) -> Vec<String> {
    rows(
        &fixture.left,
        "select op, status, sqlstate, message, dst_query from sync_err_rec order by id",
    )
}

#[test]
fn a_delivery_that_was_committed_in_doubt_is_replayed_without_harm() {
    for case in &CASES {
        for policy in POLICIES {
            let (fixture, proxy, mut client) = begin(case, "lost", "async", policy);
            proxy.cut_after(0, Direction::ToClient);
            run(
                &mut client,
                &format!("begin; {}; commit", case.steps.join("; ")),
            );
            assert_eq!(queued(&fixture), case.steps.len() as i64);
            // The first answer was lost, which may come before the server has committed.
            let arrived = |name| table(&fixture.left, name) == table(&fixture.right, name);
            await_until(LONG, "the server to commit", || {
                case.tables.iter().all(|(name, _)| arrived(name))
            });
            needs_no_one(case, &fixture);
        }
    }
}

/// As the test before, where another server has a part of the transaction.
#[test]
fn a_delivery_beside_another_server_is_replayed_without_harm() {
    for case in &CASES {
        for policy in POLICIES {
            let (fixture, proxy, mut client) = begin(case, "beside", "async", policy);
            send_beside(&fixture);
            proxy.strike(COMMIT, Strike::LoseAnswer);
            let steps = case.steps.join("; ");
            run(
                &mut client,
                &format!("begin; {steps}; insert into o values (1); commit"),
            );
            assert!(proxy.has_struck(), "{}", case.name);
            assert_eq!(queued(&fixture), case.steps.len() as i64);
            let arrived = |name| table(&fixture.left, name) == table(&fixture.right, name);
            await_until(LONG, "the server to commit", || {
                case.tables.iter().all(|(name, _)| arrived(name))
            });
            needs_no_one(case, &fixture);
        }
    }
}

#[test]
fn a_drain_whose_second_commit_fails_is_repeated_without_harm() {
    for case in &CASES {
        for policy in POLICIES {
            let (fixture, proxy, mut client) = begin(case, "drain", "queue", policy);
            case.steps.iter().for_each(|step| run(&mut client, step));
            let mut drain = fixture.left.superuser();
            run(&mut drain, "begin; select deal_sync_err_rec(1000)");
            proxy.cut_after(0, Direction::ToClient);
            let error = fails(drain.batch_execute("commit"));
            assert_eq!(error.code().code(), "08007");
            assert_eq!(queued(&fixture), case.steps.len() as i64);
            needs_no_one(case, &fixture);
        }
    }
}

/// What was not committed is delivered, with what was queued after it.
#[test]
fn a_delivery_that_was_not_committed_in_doubt_is_replayed() {
    for case in &CASES {
        for policy in POLICIES {
            let (fixture, _proxy, mut client) = begin(case, "none", "async", policy);
            // The transaction waits for the row lock, and is ended before it can commit.
            let table = case.tables[0].0;
            let mut locker = fixture.right.client();
            run(
                &mut locker,
                &format!("begin; lock table {table} in access exclusive mode"),
            );
            let steps = case.steps.join("; ");
            let sql = format!("set pg_rowsync.delivery_timeout = '1s'; begin; {steps}; commit");
            run(&mut client, &sql);
            run(&mut locker, "rollback");
            assert_eq!(queued(&fixture), case.steps.len() as i64);
            needs_no_one(case, &fixture);
        }
    }
}

/// A client of the server has written since: what it has added under the row stays.
#[test]
fn a_replay_takes_away_nothing_that_was_added_since() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = Fixture::new("replay_cascade");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "p", "id int primary key, v text", "{}");
    fixture
        .right
        .exec("create table child (p int references p on delete cascade)");
    let mut client = fixture.left.client();
    run(&mut client, "insert into p values (1, 'old')");
    proxy.cut_after(0, Direction::ToClient);
    run(
        &mut client,
        "begin; delete from p; insert into p values (1, 'new'); commit",
    );
    fixture.right.exec("insert into child values (1)");
    assert!(deal(&fixture, "1000"));
    assert_eq!(
        rows(
            &fixture.right,
            "select v, count(*) from p join child on p = id group by 1"
        ),
        ["new|1"]
    );
    assert_eq!(queued(&fixture), 0);
}

/// A call takes more than its limit to complete a statement, and then finds the queue empty.
#[test]
fn what_completes_a_statement_may_have_been_applied_too() {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = Fixture::new("replay_completed");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    let options = r#"{"mode": "queue", "on_conflict": "error"}"#;
    mirror(
        &fixture,
        "tree",
        "id int primary key, up int references tree",
        options,
    );
    fixture.left.exec(
        "insert into tree select i, case when i < 3000 then i + 1 end from generate_series(1, 3000) i;
         update tree set up = null where id = 7",
    );
    let mut drain = fixture.left.superuser();
    // A batch ends where half the buffer is full.
    run(
        &mut drain,
        "set pg_rowsync.buffer_size = '64kB'; begin; select deal_sync_err_rec(100000)",
    );
    proxy.cut_after(0, Direction::ToClient);
    assert_eq!(fails(drain.batch_execute("commit")).code().code(), "08007");
    assert!(deal(&fixture, "10"), "{:?}", standing(&fixture));
    assert!(deal(&fixture, "1000"), "{:?}", standing(&fixture));
    assert_eq!(queued(&fixture), 0);
    same(&fixture, "tree");
}

/// Beside what may be there, a record that the server refuses: the others are not applied once more.
#[test]
fn a_record_that_is_refused_brings_nothing_back_that_is_there_under_another_key() {
    for policy in POLICIES {
        let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
        let fixture = Fixture::new(&format!("replay_refused_{policy}"));
        fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
        let options = format!(r#"{{"mode": "queue", "on_conflict": "{policy}"}}"#);
        mirror(&fixture, "t", "id int primary key, v text", &options);
        fixture
            .right
            .exec("alter table t add check (v <> 'refused')");
        let mut client = fixture.left.client();
        run(
            &mut client,
            "insert into t values (1, 'a'), (2, 'b'), (3, 'refused'), (4, 'd');
             update t set id = id + 100 where id in (1, 2); delete from t where id = 4",
        );
        let mut drain = fixture.left.superuser();
        run(&mut drain, "begin; select deal_sync_err_rec(1000)");
        proxy.cut_after(0, Direction::ToClient);
        assert_eq!(fails(drain.batch_execute("commit")).code().code(), "08007");
        proxy.cut_after(u64::MAX, Direction::ToClient);
        await_until(LONG, "the server to commit", || {
            table(&fixture.right, "t") == ["101|a", "102|b"]
        });
        assert!(!deal(&fixture, "1000"));
        assert_eq!(table(&fixture.right, "t"), ["101|a", "102|b"], "{policy}");
        fixture
            .right
            .exec("alter table t drop constraint t_v_check");
        assert!(deal(&fixture, "1000"), "{policy}: {:?}", standing(&fixture));
        assert_eq!(queued(&fixture), 0);
        same(&fixture, "t");
        assert_eq!(
            rows(
                &fixture.left,
                "select type from sync_conflicts where decision <> 'failed'"
            ),
            [""; 0],
            "{policy}"
        );
    }
}

/// A transaction of which the server's rows do not tell whether it was applied, or that must not be applied twice.
struct Hidden {
    name: &'static str,
    policy: &'static str,
    tables: &'static [(&'static str, &'static str)],
    /// What is different on the server.
    there: &'static str,
    before: &'static str,
    transaction: &'static str,
    /// What the server commits before the replay.
    meanwhile: &'static str,
    /// A query for what the server has in the end, and what that is.
    found: (&'static str, &'static [&'static str]),
}

const TOUCHED: &str = "create function touch() returns trigger language plpgsql as
    'begin new.v = new.v || ''!''; return new; end';
    create trigger touch before insert or update on x for each row execute function touch();";

const CASCADING: &str = "create table child (x int references x on delete cascade);
    create function touch() returns trigger language plpgsql as
    'begin new.v = new.v || ''!''; return new; end';
    create trigger touch before insert or update on x for each row execute function touch();";

const HIDDEN: [Hidden; 8] = [
    Hidden {
        name: "truncate",
        policy: "error",
        tables: &[
            ("x", "id int primary key, v text"),
            ("c", "id int primary key"),
        ],
        there: "",
        before: "insert into c values (1), (2)",
        transaction: "insert into x values (1, 'a'); truncate c",
        meanwhile: "",
        found: ("select id || v from x", &["1a"]),
    },
    Hidden {
        name: "truncateskip",
        policy: "skip",
        tables: &[
            ("x", "id int primary key, v text"),
            ("c", "id int primary key"),
        ],
        there: "",
        before: "insert into c values (1), (2)",
        transaction: "truncate c; insert into x values (1, 'a')",
        meanwhile: "insert into c values (7)",
        found: (
            "select id || v || (select string_agg(c.id::text, ',') from c) from x",
            &["1a7"],
        ),
    },
    Hidden {
        name: "refilled",
        policy: "error",
        tables: &[("x", "id int primary key, v text")],
        there: "",
        before: "insert into x values (1, 'a')",
        transaction: "truncate x; insert into x values (1, 'b')",
        meanwhile: "update x set v = 'own'",
        found: ("select id || v from x", &["1own"]),
    },
    Hidden {
        name: "refilledskip",
        policy: "skip",
        tables: &[("x", "id int primary key, v text")],
        there: "",
        before: "insert into x values (1, 'a')",
        transaction: "truncate x; insert into x values (1, 'b')",
        meanwhile: "insert into x values (2, 'own')",
        found: ("select id || v from x order by 1", &["1b", "2own"]),
    },
    Hidden {
        name: "triggererror",
        policy: "error",
        tables: &[("x", "id int primary key, v text")],
        there: TOUCHED,
        before: "insert into x values (1, 'a')",
        transaction: "insert into x values (2, 'b'); update x set v = 'c' where id = 1",
        meanwhile: "",
        found: ("select id || v from x order by 1", &["1c!", "2b!"]),
    },
    Hidden {
        name: "triggerskip",
        policy: "skip",
        tables: &[("x", "id int primary key, v text")],
        there: TOUCHED,
        before: "insert into x values (1, 'a')",
        transaction: "update x set v = 'c' where id = 1; insert into x values (2, 'b')",
        meanwhile: "update x set v = 'own' where id = 1",
        found: ("select id || v from x order by 1", &["1own!", "2b!"]),
    },
    Hidden {
        name: "cascade",
        policy: "overwrite",
        tables: &[("x", "id int primary key, v text")],
        there: CASCADING,
        before: "insert into x values (1, 'a')",
        transaction: "delete from x where id = 1; insert into x values (1, 'b')",
        meanwhile: "insert into child values (1)",
        found: ("select x from child", &["1"]),
    },
    Hidden {
        name: "moved",
        policy: "overwrite",
        tables: &[("x", "id int primary key, v text")],
        there: CASCADING,
        before: "insert into x values (1, 'a')",
        transaction: "update x set id = 2 where id = 1; insert into x values (1, 'b')",
        meanwhile: "insert into child values (1), (2)",
        found: ("select x from child order by 1", &["1", "2"]),
    },
];

/// How the answer to the commit is lost.
#[derive(Clone, Copy, Debug)]
enum Beside {
    /// In the only exchange.
    Nothing,
    /// In the second one: there is another server.
    Server,
}

fn id_tells(hidden: &Hidden, beside: Beside) {
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    let fixture = Fixture::new(&format!("hidden_{}", hidden.name));
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    let options = format!(r#"{{"on_conflict": "{}"}}"#, hidden.policy);
    for (name, columns) in hidden.tables {
        mirror(&fixture, name, columns, &options);
    }
    if !hidden.there.is_empty() {
        fixture.right.exec(hidden.there);
    }
    let mut transaction = hidden.transaction.to_owned();
    if let Beside::Server = beside {
        send_beside(&fixture);
        transaction.push_str("; insert into o values (1)");
    }
    let what = format!("{} {beside:?}", hidden.name);
    let mut client = fixture.left.client();
    run(&mut client, hidden.before);
    deal(&fixture, "1000");
    let right = rows(&fixture.right, "select txid_current()").remove(0);
    match beside {
        // The answer to the first question passes, that to the commit does not.
        Beside::Nothing => proxy.cut_after(160, Direction::ToClient),
        Beside::Server => proxy.strike(COMMIT, Strike::LoseAnswer),
    }
    run(&mut client, &format!("begin; {transaction}; commit"));
    assert!(proxy.has_struck() || matches!(beside, Beside::Nothing));
    assert_eq!(queued(&fixture), 2, "{what}");
    await_until(LONG, "the server to commit", || {
        let sql = format!("select exists (select from x where xmin::text::bigint > {right})");
        rows(&fixture.right, &sql) == ["t"]
    });
    if !hidden.meanwhile.is_empty() {
        fixture.right.exec(hidden.meanwhile);
    }
    assert!(deal(&fixture, "1000"), "{what}: {:?}", standing(&fixture));
    assert_eq!(records(&fixture), Vec::<String>::new(), "{what}");
    let (query, expected) = hidden.found;
    assert_eq!(rows(&fixture.right, query), expected, "{what}");
}

#[test]
fn what_rows_do_not_tell_the_transactions_id_tells() {
    HIDDEN
        .iter()
        .for_each(|hidden| id_tells(hidden, Beside::Nothing));
}

#[test]
fn the_transactions_id_tells_it_beside_another_server_too() {
    HIDDEN
        .iter()
        .for_each(|hidden| id_tells(hidden, Beside::Server));
}
