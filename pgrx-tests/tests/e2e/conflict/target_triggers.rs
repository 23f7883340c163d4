//! Triggers of the target's own under `newest`: those that replace the version of a row that arrives, drop it
//! or give it another key. Masters end equal but for what the triggers change, and nothing stands still.

use rowsync_harness::{Fixture, Side};

use crate::support::common::{one_way, rows, run};

const NEWEST: &str = r#"{"on_conflict": "newest", "version_column": "ver"}"#;

/// What frameworks keep: the time of the last write, whoever writes.
const TOUCH: &str = "create function touch() returns trigger language plpgsql as $$
     begin new.ver := clock_timestamp(); return new; end $$;
     create trigger touch before insert or update on t for each row execute function touch()";

/// Two masters that queue, each with these triggers.
fn masters(label: &str, columns: &str, left: &str, right: &str) -> Fixture {
    let fixture = Fixture::new(label);
    for (side, other, sql) in [
        (&fixture.left, &fixture.right, left),
        (&fixture.right, &fixture.left, right),
    ] {
        side.link(other, other.cluster.port(), "dst", &[])
            .expect("a server");
        side.exec(&format!("create table t ({columns}); {sql}"));
    }
    for (side, other) in [
        (&fixture.left, &fixture.right),
        (&fixture.right, &fixture.left),
    ] {
        side.exec(&format!(
            r#"select attach_sync('t', 'dst', '{}.t',
                 '{{"mode": "queue", "on_conflict": "newest", "version_column": "ver"}}')"#,
            other.user
        ));
    }
    fixture
}

fn send(side: &Side) {
    assert!(side.query_one::<bool>("select deal_sync_err_rec(10000)"));
    assert_eq!(side.queued().expect("a queue"), 0);
}

fn equal(fixture: &Fixture, expected: &[&str]) {
    for side in [&fixture.left, &fixture.right] {
        assert_eq!(
            rows(side, "select id, v from t order by id"),
            expected,
            "{}",
            side.db
        );
    }
}

const TOUCHED: &str = "id int primary key, v text, ver timestamptz not null default now()";

#[test]
fn what_was_sent_counts_where_a_trigger_replaces_the_version() {
    let fixture = masters("touched", TOUCHED, TOUCH, TOUCH);
    fixture.left.exec("insert into t (id, v) values (1, 'v1')");
    send(&fixture.left);
    for sql in [
        "update t set v = 'v2' where id = 1",
        "insert into t (id, v) values (2, 'w1')",
        "update t set v = 'w2' where id = 2",
        "insert into t (id, v) values (3, 'x')",
        "update t set v = 'v3' where id = 1",
        "delete from t where id = 3",
        "insert into t (id, v) values (4, 'y')",
        "update t set id = 5 where id = 4",
    ] {
        fixture.left.exec(sql);
    }
    send(&fixture.left);
    equal(&fixture, &["1|v3", "2|w2", "5|y"]);
    // Once more as after an unknown outcome, and then what the other side writes over it.
    fixture
        .right
        .exec("update t set v = 'r' where id = 1; delete from t where id = 2");
    send(&fixture.right);
    equal(&fixture, &["1|r", "5|y"]);
    fixture
        .left
        .exec("insert into t (id, v) values (2, 'again'); delete from t where id = 5");
    send(&fixture.left);
    equal(&fixture, &["1|r", "2|again"]);
}

#[test]
fn who_wrote_last_wins_where_triggers_replace_versions() {
    for left_first in [true, false] {
        let fixture = masters("touchedboth", TOUCHED, TOUCH, TOUCH);
        fixture
            .left
            .exec("insert into t (id, v) values (1, 'a'), (2, 'a'), (3, 'a')");
        send(&fixture.left);
        fixture.left.exec("update t set v = 'left' where id = 1");
        fixture.right.exec("update t set v = 'right'");
        fixture.left.exec("update t set v = 'left' where id = 2");
        fixture.right.exec("delete from t where id = 3");
        let (first, second) = if left_first {
            (&fixture.left, &fixture.right)
        } else {
            (&fixture.right, &fixture.left)
        };
        send(first);
        send(second);
        equal(&fixture, &["1|right", "2|left"]);
    }
}

/// Actions of foreign keys on both sides, and the trigger that touches whatever is written, by them too.
fn families(label: &str, when: &str) -> Fixture {
    let fixture = Fixture::new(label);
    let touch = |table: &str| {
        format!(
            "create trigger touch before insert or update on {table} for each row {when}
               execute function touch();"
        )
    };
    for (side, other) in [
        (&fixture.left, &fixture.right),
        (&fixture.right, &fixture.left),
    ] {
        side.link(other, other.cluster.port(), "dst", &[])
            .expect("a server");
        side.exec(&format!(
            "create function touch() returns trigger language plpgsql as $$
               begin new.ver := clock_timestamp(); return new; end $$;
             create table p (id int primary key, v text, ver timestamptz default now());
             create table c (id int primary key, pid int references p on delete cascade on update cascade,
               v text, ver timestamptz default now());
             create table n (id int primary key, pid int references p on delete set null on update cascade,
               v text, ver timestamptz default now());
             {}{}{}",
            touch("p"),
            touch("c"),
            touch("n")
        ));
    }
    for (side, other) in [
        (&fixture.left, &fixture.right),
        (&fixture.right, &fixture.left),
    ] {
        for table in ["p", "c", "n"] {
            side.exec(&format!(
                r#"select attach_sync('{table}', 'dst', '{}.{table}',
                     '{{"mode": "queue", "on_conflict": "newest", "version_column": "ver"}}')"#,
                other.user
            ));
        }
    }
    fixture
}

/// The two sides hold the same but for the versions that triggers replace.
fn equal_families(fixture: &Fixture, expected: [&[&str]; 3]) {
    for side in [&fixture.left, &fixture.right] {
        let sql = [
            "select id, v from p",
            "select id, pid, v from c",
            "select id, pid, v from n",
        ];
        for (sql, expected) in sql.into_iter().zip(expected) {
            assert_eq!(
                rows(side, &format!("{sql} order by id")),
                expected,
                "{}",
                side.db
            );
        }
    }
}

/// With and without the guard that leaves arriving rows alone.
#[test]
fn rows_that_foreign_keys_change_on_both_sides_end_equal() {
    for (label, when) in [
        ("famtouch", ""),
        (
            "famguard",
            "when (current_setting('application_name') <> 'pg_rowsync')",
        ),
    ] {
        let fixture = families(label, when);
        fixture.left.exec(
            "insert into p (id, v) select g, 'p' from generate_series(1, 4) g;
             insert into c (id, pid, v) select g, g, 'c' from generate_series(1, 4) g;
             insert into n (id, pid, v) select g, g, 'n' from generate_series(1, 4) g",
        );
        send(&fixture.left);
        fixture
            .left
            .exec("delete from p where id = 1; update p set id = 20, v = 'moved' where id = 2");
        send(&fixture.left);
        // What the other side writes after it has received them.
        fixture.right.exec(
            "update c set v = 'right' where id = 2; update n set v = 'right' where id in (1, 2);
             update p set v = 'right' where id = 20",
        );
        send(&fixture.right);
        fixture.left.exec("delete from p where id = 20");
        send(&fixture.left);
        equal_families(
            &fixture,
            [
                &["3|p", "4|p"],
                &["3|3|c", "4|4|c"],
                &["1|~|right", "2|~|right", "3|3|n", "4|4|n"],
            ],
        );
        // Both at once, and either sends first.
        fixture
            .left
            .exec("update p set id = 30 where id = 3; update c set v = 'left' where id = 4");
        fixture
            .right
            .exec("update n set v = 'right' where id = 4; update c set v = 'later' where id = 4");
        send(&fixture.left);
        send(&fixture.right);
        equal_families(
            &fixture,
            [
                &["4|p", "30|p"],
                &["3|30|c", "4|4|later"],
                &["1|~|right", "2|~|right", "3|30|n", "4|4|right"],
            ],
        );
    }
}

#[test]
fn a_version_that_is_rounded_there_loses_no_changes() {
    let rounds = "create function rounds() returns trigger language plpgsql as $$
         begin new.ver := round(new.ver); return new; end $$;
         create trigger rounds before insert or update on t for each row execute function rounds()";
    let fixture = masters(
        "coarser",
        "id int primary key, v text, ver numeric",
        "select 1",
        rounds,
    );
    fixture
        .left
        .exec("insert into t values (1, 'a', 1.6), (2, 'a', 1.6)");
    send(&fixture.left);
    fixture
        .left
        .exec("update t set v = 'b', ver = 1.7; delete from t where id = 2");
    send(&fixture.left);
    equal(&fixture, &["1|b"]);
    fixture.right.exec("update t set v = 'c', ver = 3");
    send(&fixture.right);
    equal(&fixture, &["1|c"]);
}

/// A table `t` whose rows a trigger of the target keeps from being written as they come, and one beside it.
fn hindered(label: &str, mode: &str, trigger: &str) -> Fixture {
    let options =
        format!(r#"{{"on_conflict": "newest", "version_column": "ver", "mode": "{mode}"}}"#);
    let fixture = one_way(label, "id int primary key, v text, ver int", &options);
    fixture.right.exec(&format!(
        "create function hinder() returns trigger language plpgsql as $$ begin {trigger} end $$;
         create trigger hinder before insert or update on t for each row execute function hinder()"
    ));
    // Which sends, too: only then is the extension there asked.
    fixture.link(&fixture.right, &fixture.left, "back", &[]);
    fixture.right.exec(&format!(
        "select attach_sync('t', 'back', '{}.t', '{NEWEST}')",
        fixture.left.user
    ));
    crate::support::common::mirror(
        &fixture,
        "other",
        "id int primary key",
        r#"{"mode": "sync"}"#,
    );
    fixture
}

#[test]
fn a_trigger_that_drops_rows_stops_nothing() {
    let drops = "if new.id % 2 = 1 then return null; end if; return new;";
    for mode in ["sync", "async", "queue"] {
        let fixture = hindered("drops", mode, drops);
        fixture
            .left
            .exec("insert into t values (1, 'a', 1), (2, 'b', 1)");
        fixture.left.exec("update t set v = 'c', ver = 2");
        fixture.left.exec("update t set v = 'd'");
        fixture
            .left
            .exec("update t set id = 11 where id = 1; update t set id = 12 where id = 2");
        send(&fixture.left);
        fixture.left.exec("insert into other values (1)");
        assert_eq!(
            rows(&fixture.right, "select id, v from t"),
            ["12|d"],
            "{mode}"
        );
        fixture.left.exec("delete from t");
        send(&fixture.left);
        assert_eq!(rows(&fixture.right, "select id from t"), [""; 0], "{mode}");
    }
}

#[test]
fn a_trigger_that_drops_updates_or_gives_rows_another_key_stops_nothing() {
    for (label, trigger, expected) in [
        (
            "dropsupdates",
            "if tg_op = 'UPDATE' then return null; end if; return new;",
            "1|a",
        ),
        (
            "shifts",
            "if tg_op = 'INSERT' then new.id := new.id + 1000; end if; return new;",
            "1001|a",
        ),
    ] {
        for mode in ["sync", "async", "queue"] {
            let fixture = hindered(label, mode, trigger);
            fixture.left.exec("insert into t values (1, 'a', 1)");
            fixture.left.exec("update t set v = 'b', ver = 2");
            send(&fixture.left);
            fixture.left.exec("insert into other values (1)");
            assert_eq!(
                rows(&fixture.right, "select id, v from t"),
                [expected],
                "{label}, {mode}"
            );
        }
    }
}

/// Without the extension there nobody can tell that from a row that another session is at: tries are bounded.
#[test]
fn a_trigger_that_drops_rows_stops_nothing_where_the_extension_is_missing() {
    let drops = "if new.id % 2 = 1 then return null; end if; return new;";
    let fixture = hindered("dropsbare", "queue", drops);
    fixture
        .right
        .exec_superuser("drop extension pg_rowsync cascade");
    fixture
        .left
        .exec("insert into t values (1, 'a', 1), (2, 'b', 1)");
    crate::support::common::mirror(
        &fixture,
        "third",
        "id int primary key",
        r#"{"mode": "queue"}"#,
    );
    fixture.left.exec("insert into third values (1)");
    for _ in 0..6 {
        let _ = fixture
            .left
            .superuser()
            .batch_execute("select deal_sync_err_rec(1000)");
    }
    assert_eq!(rows(&fixture.right, "select id from third"), ["1"]);
    assert_eq!(rows(&fixture.right, "select id, v from t"), ["2|b"]);
    let records = "select table_name, status, sqlstate from sync_err_rec";
    assert_eq!(rows(&fixture.left, records), ["t|failed|40001"]);
}

/// A race is still one: the row has come while the statement waited.
#[test]
fn a_row_that_comes_meanwhile_is_compared_all_the_same() {
    let fixture = hindered("comes", "async", "return new;");
    let mut client = fixture.right.client();
    run(&mut client, "begin; insert into t values (1, 'older', 1)");
    std::thread::scope(|scope| {
        scope.spawn(|| fixture.left.exec("insert into t values (1, 'newer', 2)"));
        let waiting = "select count(*) from pg_stat_activity
             where wait_event_type = 'Lock' and datname = current_database()";
        rowsync_harness::await_until(
            crate::support::preloaded::WORKING,
            "the change to wait",
            || rows(&fixture.right, waiting) == ["1"],
        );
        run(&mut client, "commit");
    });
    rowsync_harness::await_until(
        crate::support::preloaded::WORKING,
        "both queues to drain",
        || {
            for side in [&fixture.left, &fixture.right] {
                side.query_one::<bool>("select deal_sync_err_rec(10000)");
            }
            [&fixture.left, &fixture.right]
                .iter()
                .all(|side| side.queued().expect("a queue") == 0)
        },
    );
    assert_eq!(rows(&fixture.right, "select id, v from t"), ["1|newer"]);
    assert_eq!(rows(&fixture.left, "select id, v from t"), ["1|newer"]);
}
