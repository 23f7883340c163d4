//! Over a connection that has proven the table's unique index, rows are first sent as if the remote
//! were as expected; what it turns out to be instead must make no difference.

use postgres::Client;
use rowsync_harness::fixture::{Fixture, fails};

use crate::support::common::rows;
use crate::support::one_way::{assert_equal, one_way, queued};

/// A client whose next delivery trusts the remote.
fn trusting(fixture: &Fixture) -> Client {
    let mut client = fixture.left.client();
    for n in 0..2 {
        client
            .batch_execute(&format!("update t set v = 'warm {n}'"))
            .expect("an update");
    }
    client
}

#[test]
fn conflicts_are_overwritten_whatever_was_expected() {
    for (label, begin, end) in [("alone", "", ""), ("block", "begin;", "commit;")] {
        let fixture = one_way(label, None, "{}");
        let mut client = trusting(&fixture);
        // Another row under the key, no row to update, another row where one moves, none to delete.
        for (there, here) in [
            (
                "insert into t values (5, 'theirs')",
                "insert into t values (5, 'ours'), (6, 'ours')",
            ),
            (
                "delete from t where id = 1",
                "update t set v = 'back' where id <= 2",
            ),
            (
                "insert into t values (9, 'theirs')",
                "update t set id = id + 4 where id = 5",
            ),
            ("delete from t where id = 3", "delete from t where id = 3"),
        ] {
            fixture.right.exec(there);
            client
                .batch_execute(&format!("{begin} {here}; {end}"))
                .expect("a commit");
            assert_equal(&fixture);
            assert_eq!(queued(&fixture), 0, "{here}");
        }
    }
}

#[test]
fn a_remote_without_the_unique_index_is_never_trusted() {
    let fixture = one_way("no_index", None, r#"{"mode": "sync"}"#);
    fixture.right.exec("alter table t drop constraint t_pkey");
    let mut client = fixture.left.client();
    // A DELETE needs no index and proves none.
    client
        .batch_execute("delete from t where id = 3")
        .expect("a delete");
    for _ in 0..2 {
        let error = fails(client.batch_execute("insert into t values (4, 'x')"));
        assert_eq!(error.code().code(), "42P10");
    }
    assert_equal(&fixture);
}

/// What takes the key's index away while a session goes on that has seen it.
const LOSSES: [(&str, &str); 3] = [
    ("dropped", "alter table t drop constraint t_pkey"),
    (
        "partial",
        "alter table t drop constraint t_pkey; create unique index t_pkey on t (id) where id > 0",
    ),
    (
        "plain",
        "alter table t drop constraint t_pkey; create index t_pkey on t (id)",
    ),
];

#[test]
fn an_index_that_is_gone_is_missed_by_the_next_insert() {
    for (label, loss) in LOSSES {
        for count in [1, 2, 100, 1_000] {
            let fixture = one_way(
                &format!("lost_{label}_{count}"),
                None,
                r#"{"mode": "sync"}"#,
            );
            let mut client = trusting(&fixture);
            client
                .batch_execute("insert into t values (-1, 'once')")
                .expect("an insert");
            fixture
                .right
                .exec("insert into t select g, 'theirs' from generate_series(-2000, -2) g");
            fixture.right.exec(loss);
            let insert =
                format!("insert into t select -1 - g, 'ours' from generate_series(1, {count}) g");
            for _ in 0..2 {
                let error = fails(client.batch_execute(&insert));
                assert_eq!(error.code().code(), "42P10", "{label} {count}: {error:?}");
            }
            let twice = "select count(*) - count(distinct id) from t";
            assert_eq!(rows(&fixture.right, twice), ["0"], "{label} {count}");
            fixture
                .right
                .exec("drop index if exists t_pkey; alter table t add primary key (id)");
            client.batch_execute(&insert).expect("an insert");
            let ours = "select count(*) from t where v = 'ours'";
            assert_eq!(
                rows(&fixture.right, ours),
                [count.to_string()],
                "{label} {count}"
            );
        }
    }
}

/// A row that is written alone is looked for by its key only: two that are there must not both be written.
#[test]
fn an_index_that_is_gone_is_missed_by_the_next_update() {
    for (label, loss) in LOSSES {
        let fixture = one_way(&format!("twice_{label}"), None, r#"{"mode": "sync"}"#);
        let mut client = trusting(&fixture);
        let update = "update t set v = 'ours' where id = 1";
        client.batch_execute(update).expect("an update");
        fixture.right.exec(loss);
        fixture.right.exec(
            "drop index if exists t_pkey; update t set v = 'theirs'; insert into t select * from t where id = 1",
        );
        for _ in 0..4 {
            let error = fails(client.batch_execute("update t set v = 'more' where id = 1"));
            assert_eq!(error.code().code(), "42P10", "{label}: {error:?}");
        }
        assert_eq!(
            rows(&fixture.right, "select v from t where id = 1"),
            ["theirs", "theirs"],
            "{label}"
        );
    }
}

/// Rows of a table whose key is not its primary one, or of a type whose base counts, are written as any.
#[test]
fn rows_are_written_alone_by_whatever_key() {
    let shapes = [
        ("plain", "id int primary key, v text"),
        (
            "unique",
            "id int not null unique, v text, other serial primary key",
        ),
        ("domain", "id int primary key, v title"),
        ("domains", "id number primary key, v text"),
        ("late", "id int primary key deferrable, v text"),
        ("all_key", "id int, v text, primary key (id, v)"),
        ("arrays", "id int[] primary key, v text[]"),
    ];
    for (label, columns) in shapes {
        let fixture = Fixture::new(&format!("alone_{label}"));
        fixture.link(&fixture.left, &fixture.right, "dst", &[]);
        for side in [&fixture.left, &fixture.right] {
            side.exec(&format!(
                "create domain title as text; create domain number as int; create table t ({columns})"
            ));
        }
        fixture.left.exec(&format!(
            "select attach_sync('t', 'dst', '{}.t', '{{\"mode\": \"sync\"}}')",
            fixture.right.user
        ));
        let [key, value] = match label {
            "arrays" => ["'{1}'", "'{a}'"],
            _ => ["1", "'a'"],
        };
        let mut client = fixture.left.client();
        client
            .batch_execute(&format!("insert into t (id, v) values ({key}, {value})"))
            .expect("an insert");
        for n in 0..6 {
            let value = value.replace('a', &format!("a{n}"));
            client
                .batch_execute(&format!("update t set v = {value}"))
                .unwrap_or_else(|error| panic!("{label} {n}: {error}"));
            let select = "select id, v from t";
            let text = format!("select t::text from ({select}) t");
            assert_eq!(
                rows(&fixture.right, &text),
                rows(&fixture.left, &text),
                "{label} {n}"
            );
            // One that is not there is written, too.
            fixture.right.exec("delete from t");
        }
    }
}

#[test]
fn a_replay_does_not_double_rows_of_a_table_that_has_lost_its_index() {
    for count in [1, 100] {
        let fixture = one_way(
            &format!("lost_replay_{count}"),
            None,
            r#"{"mode": "queue"}"#,
        );
        let mut admin = fixture.left.superuser();
        let deal = |admin: &mut Client| {
            let row = admin
                .query_one("select deal_sync_err_rec(10000)", &[])
                .expect("a drain");
            row.get::<_, bool>(0)
        };
        fixture.left.exec("insert into t values (-1, 'once')");
        assert!(deal(&mut admin));
        fixture
            .right
            .exec("insert into t select g, 'theirs' from generate_series(-2000, -2) g");
        fixture.right.exec(LOSSES[0].1);
        fixture.left.exec(&format!(
            "insert into t select -1 - g, 'ours' from generate_series(1, {count}) g"
        ));
        deal(&mut admin);
        let twice = "select count(*) - count(distinct id) from t";
        assert_eq!(rows(&fixture.right, twice), ["0"], "{count}");
        let failed: String = fixture
            .left
            .query_one("select sqlstate from sync_err_rec where status = 'failed'");
        assert_eq!(failed, "42P10", "{count}");
    }
}

#[test]
fn rows_under_a_deferrable_key_are_not_doubled_without_an_index() {
    let fixture =
        crate::support::common::one_way("lost_late", "id int primary key deferrable, v text", "{}");
    let mut client = fixture.left.client();
    for n in 0..3 {
        client
            .batch_execute(&format!("insert into t values ({n}, 'warm')"))
            .expect("an insert");
    }
    fixture
        .right
        .exec("insert into t select g, 'theirs' from generate_series(10, 20) g");
    fixture.right.exec("alter table t drop constraint t_pkey");
    client
        .batch_execute("insert into t values (10, 'ours')")
        .expect("an insert");
    client
        .batch_execute("insert into t values (11, 'ours'), (12, 'ours')")
        .expect("an insert");
    let found = "select count(*) || ' ' || count(distinct id) from t where id between 10 and 12";
    assert_eq!(rows(&fixture.right, found), ["3 3"]);
}

#[test]
fn another_unique_constraint_stays_an_error() {
    let fixture = one_way("second", None, r#"{"mode": "sync"}"#);
    let mut client = trusting(&fixture);
    fixture
        .right
        .exec("create unique index once on t (v) where v = 'same'");
    client
        .batch_execute("update t set v = 'same' where id = 1")
        .expect("an update");
    let error = fails(client.batch_execute("update t set v = 'same' where id = 2"));
    assert_eq!(
        (error.code().code(), error.constraint()),
        ("23505", Some("once"))
    );
    client
        .batch_execute("update t set v = 'other' where id = 2")
        .expect("an update");
    assert_equal(&fixture);
}

/// The first batches are small, and what refers to rows of a later one is refused at the end of a statement.
#[test]
fn rows_of_one_command_may_refer_to_each_other() {
    let fixture = one_way("referring", None, "{}");
    for side in [&fixture.left, &fixture.right] {
        side.exec("alter table t add parent int references t");
    }
    let mut client = trusting(&fixture);
    client
        .batch_execute(
            "insert into t select g, 'row', case when g < 2000 then g + 3000 end
               from generate_series(10, 5000) g",
        )
        .expect("an insert");
    let failure: Option<String> = fixture
        .left
        .query_one("select max(message) from sync_err_rec");
    assert_eq!((failure, queued(&fixture)), (None, 0));
    assert_equal(&fixture);
}

/// What is known of the table may be worked out anew in the middle of a statement, by whatever concerns its
/// catalog entry. That makes no other batch.
#[test]
fn rows_stay_together_while_the_table_is_looked_at_again() {
    let fixture = one_way("together", None, "{}");
    fixture.left.exec(
        "create function grants() returns trigger language plpgsql as $$ begin
           if new.id = 12 then execute 'grant select on t to public'; end if; return null; end $$;
         create trigger zz_grants after insert on t for each row execute function grants()",
    );
    for side in [&fixture.left, &fixture.right] {
        side.exec("alter table t add parent int references t");
    }
    let mut client = trusting(&fixture);
    client
        .batch_execute(
            "insert into t values (10, 'a', 19), (11, 'b', null), (12, 'c', 19), (19, 'd', 10)",
        )
        .expect("an insert");
    assert_equal(&fixture);
    assert_eq!(queued(&fixture), 0);
}
