//! What one statement writes may be true only as a whole, and arrives as a whole.

use rowsync_harness::Fixture;

use crate::support::common::{
    attach, deal, linked, mirror, one_way, queued, rows, run, same, table,
};

const TREE: &str = "id int primary key, next int references t";
const PARENT: &str = "id int primary key";
const CHILD: &str = "id int primary key, p int not null references p";

fn standing(fixture: &Fixture) -> Vec<String> {
    rows(
        &fixture.left,
        "select table_name, op, status, sqlstate from sync_err_rec order by id",
    )
}

fn family(label: &str, options: &str) -> Fixture {
    let fixture = linked(label);
    mirror(&fixture, "p", PARENT, options);
    mirror(&fixture, "c", CHILD, options);
    fixture
}

#[test]
fn a_statement_that_writes_a_parent_and_its_child_arrives_in_every_mode() {
    for (mode, policy) in [
        ("sync", "overwrite"),
        ("sync", "error"),
        ("sync", "newest\", \"version_column\": \"id"),
        ("async", "overwrite"),
        ("async", "skip"),
        ("async", "newest\", \"version_column\": \"id"),
        ("queue", "overwrite"),
        ("queue", "error"),
        ("queue", "newest\", \"version_column\": \"id"),
    ] {
        let options = format!(r#"{{"mode": "{mode}", "on_conflict": "{policy}"}}"#);
        let policy = &policy[..4];
        let fixture = family(&format!("family_{mode}_{policy}"), &options);
        let mut client = fixture.left.client();
        run(
            &mut client,
            "with n as (insert into p values (10)) insert into c values (1, 10)",
        );
        let direct = mode != "queue";
        assert_eq!(
            queued(&fixture),
            if direct { 0 } else { 2 },
            "{:?}",
            standing(&fixture)
        );
        assert!(deal(&fixture, "1000"), "{:?}", standing(&fixture));
        assert_eq!(same(&fixture, "c"), ["1|10"]);
        same(&fixture, "p");
        run(
            &mut client,
            "with d as (delete from c where p = 10) delete from p where id = 10",
        );
        assert_eq!(
            queued(&fixture),
            if direct { 0 } else { 2 },
            "{:?}",
            standing(&fixture)
        );
        assert!(deal(&fixture, "1000"), "{:?}", standing(&fixture));
        assert!(same(&fixture, "c").is_empty() && same(&fixture, "p").is_empty());
    }
}

#[test]
fn a_statement_of_many_rows_and_tables_arrives_with_values_of_all_kinds() {
    let fixture = linked("family_values");
    mirror(
        &fixture,
        "p",
        "id int primary key, t text, a int[], j jsonb, n numeric",
        "{}",
    );
    mirror(
        &fixture,
        "c",
        "id int primary key, p int not null references p, b bytea",
        "{}",
    );
    let mut client = fixture.left.client();
    run(
        &mut client,
        "with n as (insert into p select i, 'x''\\' || i, array[i, null], '{\"a\": 1}', i / 3.0
           from generate_series(1, 6000) i)
         insert into c select i, i, decode('00ff', 'hex') from generate_series(1, 6000) i",
    );
    assert_eq!(queued(&fixture), 0, "{:?}", standing(&fixture));
    same(&fixture, "p");
    same(&fixture, "c");
    run(
        &mut client,
        "with u as (update p set id = id + 10000, t = null where id <= 10 returning id)
         update c set p = p + 10000 where p <= 10",
    );
    assert_eq!(queued(&fixture), 0, "{:?}", standing(&fixture));
    same(&fixture, "p");
    same(&fixture, "c");
}

#[test]
fn a_large_tree_is_deleted_by_one_statement() {
    let newest = r#", "on_conflict": "newest", "version_column": "id""#;
    for (at, (mode, more)) in [
        ("sync", ""),
        ("async", ""),
        ("queue", ""),
        ("sync", newest),
        ("queue", newest),
    ]
    .into_iter()
    .enumerate()
    {
        let options = format!(r#"{{"mode": "{mode}"{more}}}"#);
        let fixture = one_way(&format!("tree_{mode}{at}"), TREE, &options);
        for side in [&fixture.left, &fixture.right] {
            side.exec("create index on t (next)");
        }
        let mut client = fixture.left.client();
        run(
            &mut client,
            "insert into t select g, nullif(g / 2, 0) from generate_series(1, 6000) g",
        );
        deal(&fixture, "100000");
        assert_eq!(same(&fixture, "t").len(), 6000);
        run(&mut client, "delete from t");
        deal(&fixture, "100000");
        assert_eq!(standing(&fixture), Vec::<String>::new());
        assert!(same(&fixture, "t").is_empty());
    }
}

#[test]
fn a_record_that_fails_tears_no_statement_of_others() {
    let fixture = linked("innocent");
    let queue = r#"{"mode": "queue"}"#;
    mirror(&fixture, "t", TREE, queue);
    mirror(&fixture, "u", "id int primary key, v text", queue);
    fixture.right.exec("alter table u add check (v <> 'bad')");
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 2), (2, null)");
    run(&mut client, "insert into u values (1, 'bad')");
    run(&mut client, "insert into t values (3, 4), (4, 5), (5, 3)");
    assert!(!deal(&fixture, "1000"));
    assert_eq!(standing(&fixture), ["u|INSERT|failed|23514"]);
    same(&fixture, "t");
}

/// Who is sought for a constraint that is checked at the end is not found among what was true as a whole.
#[test]
fn a_deferred_constraint_that_breaks_blames_no_statement_that_is_true_as_a_whole() {
    let fixture = linked("deferredinnocent");
    let queue = r#"{"mode": "queue"}"#;
    mirror(&fixture, "p", "id int primary key", queue);
    mirror(
        &fixture,
        "c",
        "id int primary key, p int references p",
        queue,
    );
    mirror(&fixture, "v", "id int primary key, v text", queue);
    mirror(
        &fixture,
        "u",
        "id int primary key, v int references v deferrable initially deferred",
        queue,
    );
    fixture.right.exec("alter table v add check (v <> 'bad')");
    let mut client = fixture.left.client();
    // The children are captured before their parent.
    let both = "with p as (insert into p values (1)) insert into c values (1, 1), (2, 1)";
    run(&mut client, both);
    run(&mut client, "insert into v values (7, 'bad')");
    run(&mut client, "insert into u values (1, 7)");
    run(
        &mut client,
        "with p as (insert into p values (5)) insert into c values (5, 5), (6, 5)",
    );
    assert!(!deal(&fixture, "1000"));
    assert_eq!(
        standing(&fixture),
        ["v|INSERT|failed|23514", "u|INSERT|failed|23503"]
    );
    same(&fixture, "p");
    same(&fixture, "c");
}

/// Of a statement of which a row is refused, what can be true without that row goes on.
#[test]
fn of_a_statement_with_a_refused_row_the_others_arrive() {
    let fixture = one_way("refused_row", TREE, r#"{"mode": "queue"}"#);
    fixture.right.exec("alter table t add check (id <> 7)");
    let mut client = fixture.left.client();
    run(
        &mut client,
        "insert into t values (1, 2), (2, 3), (3, 1), (7, null), (8, 9), (9, null), (10, 7)",
    );
    assert!(!deal(&fixture, "1000"));
    assert_eq!(
        standing(&fixture),
        ["t|INSERT|failed|23514", "t|INSERT|failed|23503"]
    );
    assert_eq!(table(&fixture.right, "t").len(), 5);
    fixture
        .right
        .exec("alter table t drop constraint t_id_check");
    assert!(deal(&fixture, "1000"), "{:?}", standing(&fixture));
    same(&fixture, "t");
}

/// A statement that the server does not take as a whole for now is whole when it is tried again.
#[test]
fn rows_that_refer_to_each_other_are_tried_again_together() {
    let fixture = linked("circle");
    let queue = r#"{"mode": "queue"}"#;
    mirror(&fixture, "p", PARENT, queue);
    mirror(
        &fixture,
        "t",
        "id int primary key, next int references t, p int references p",
        queue,
    );
    let mut client = fixture.left.client();
    run(&mut client, "insert into p values (1)");
    deal(&fixture, "1000");
    fixture.right.exec("delete from p");
    run(&mut client, "insert into t values (1, 2, 1), (2, 1, null)");
    assert!(!deal(&fixture, "1000"));
    assert!(table(&fixture.right, "t").is_empty());
    fixture.right.exec("insert into p values (1)");
    assert!(deal(&fixture, "1000"), "{:?}", standing(&fixture));
    same(&fixture, "t");
}

#[test]
fn limits_and_small_buffers_tear_no_statement() {
    let fixture = one_way("limits", TREE, r#"{"mode": "queue"}"#);
    let mut client = fixture.left.client();
    let rows = |first: i32| {
        format!(
            "insert into t select {first} + i, {first} + (i + 1) % 300 from generate_series(0, 299) i"
        )
    };
    run(&mut client, &rows(0));
    run(&mut client, &rows(1000));
    let mut drain = fixture.left.superuser();
    run(
        &mut drain,
        "set pg_rowsync.buffer_size = '64kB'; select deal_sync_err_rec(1)",
    );
    assert_eq!(table(&fixture.right, "t").len(), 300);
    assert_eq!(queued(&fixture), 300);
    run(&mut drain, "select deal_sync_err_rec(299)");
    assert_eq!(standing(&fixture), Vec::<String>::new());
    same(&fixture, "t");
}

/// A TRUNCATE is no reason for the others to come one by one; nor is it that nothing is left in the end.
#[test]
fn a_transaction_in_the_wrong_order_arrives_whole_beside_a_truncate() {
    for mode in ["sync", "queue"] {
        for policy in ["overwrite", "error"] {
            let options = format!(r#"{{"mode": "{mode}", "on_conflict": "{policy}"}}"#);
            let fixture = family(&format!("emptied_{mode}_{policy}"), &options);
            mirror(&fixture, "log", "id int primary key", &options);
            fixture
                .left
                .exec("alter table c alter constraint c_p_fkey deferrable initially deferred");
            let mut client = fixture.left.client();
            run(&mut client, "insert into log values (1)");
            run(
                &mut client,
                "begin; insert into c values (1, 10); insert into log values (2); truncate log;
                 insert into log values (3); insert into p values (10); commit",
            );
            assert!(deal(&fixture, "1000"), "{:?}", standing(&fixture));
            assert_eq!(standing(&fixture), Vec::<String>::new());
            assert_eq!(same(&fixture, "c"), ["1|10"]);
            assert_eq!(same(&fixture, "log"), ["3"]);
            run(
                &mut client,
                "begin; insert into c values (2, 20); delete from c where id = 2; commit",
            );
            assert!(deal(&fixture, "1000"), "{:?}", standing(&fixture));
            assert_eq!(standing(&fixture), Vec::<String>::new());
            assert_eq!(same(&fixture, "c"), ["1|10"]);
        }
    }
}

/// Where the newest wins, what is true together comes together too, and stamps are kept of all of it.
#[test]
fn a_tree_arrives_whole_where_the_newest_wins() {
    for mode in ["sync", "queue"] {
        let options =
            format!(r#"{{"mode": "{mode}", "on_conflict": "newest", "version_column": "ver"}}"#);
        let columns = "id int primary key, next int references t, ver int";
        let fixture = linked(&format!("newest_{mode}"));
        fixture.link(&fixture.right, &fixture.left, "dst", &[]);
        for (side, other) in [
            (&fixture.left, &fixture.right),
            (&fixture.right, &fixture.left),
        ] {
            side.exec(&format!("create table t ({columns})"));
            side.exec(&format!(
                "select attach_sync('t', 'dst', '{}.t', '{options}')",
                other.user
            ));
        }
        let mut client = fixture.left.client();
        run(&mut client, "insert into t values (0, 0, 1)");
        run(
            &mut client,
            "insert into t select i, (i + 1) % 12000, 1 from generate_series(1, 11999) i",
        );
        assert!(deal(&fixture, "100000"), "{:?}", standing(&fixture));
        assert_eq!(standing(&fixture), Vec::<String>::new());
        assert_eq!(same(&fixture, "t").len(), 12_000);
        // What is written there with knowledge of it wins here.
        fixture
            .right
            .exec("update t set next = 5, ver = 0 where id = 7");
        run(
            &mut fixture.right.superuser(),
            "select deal_sync_err_rec(1000)",
        );
        assert_eq!(same(&fixture, "t").len(), 12_000);
        assert_eq!(
            rows(&fixture.left, "select next, ver from t where id = 7"),
            ["5|0"]
        );
    }
}

/// The source checks at the end of the transaction, the target at once.
#[test]
fn a_transaction_in_the_wrong_order_for_the_target_arrives_whole() {
    for mode in ["sync", "queue"] {
        let options = format!(r#"{{"mode": "{mode}"}}"#);
        let fixture = family(&format!("order_{mode}"), &options);
        fixture
            .left
            .exec("alter table c alter constraint c_p_fkey deferrable initially deferred");
        let mut client = fixture.left.client();
        run(
            &mut client,
            "begin; insert into c values (1, 10), (2, 20); insert into p values (20);
             insert into p values (10); update c set id = 3 where id = 1; commit",
        );
        assert!(deal(&fixture, "1000"), "{:?}", standing(&fixture));
        assert_eq!(standing(&fixture), Vec::<String>::new());
        same(&fixture, "p");
        assert_eq!(same(&fixture, "c"), ["2|20", "3|10"]);
    }
}

/// Types of keys here and there, whose values are words.
const KEYS: [(&str, &str, &str); 7] = [
    ("citext", "public.citext", "public.citext"),
    ("folded", "public.folded", "public.folded"),
    ("enum", "label", "label"),
    ("enumthere", "text", "label"),
    ("domain", "word", "word"),
    ("domainthere", "text", "word"),
    ("foldedhere", "public.folded", "public.citext"),
];

/// Keys of types whose equality is their own, or is another there.
#[test]
fn a_statement_arrives_whole_whatever_type_its_keys_have() {
    for (label, here, there) in KEYS {
        for (mode, policy) in [
            ("sync", "overwrite"),
            ("queue", "overwrite"),
            ("sync", "skip"),
            ("queue", "error"),
        ] {
            let fixture = linked(&format!("key_{label}_{mode}_{policy}"));
            for (side, key) in [(&fixture.left, here), (&fixture.right, there)] {
                side.exec_superuser(
                    "create extension citext schema public; create domain public.folded as public.citext",
                );
                side.exec(&format!(
                    "create type label as enum ('a', 'b', 'c', 'd'); create domain word as text;
                     create table p (id {key} primary key);
                     create table c (id {key} primary key, p {key} not null references p);
                     create table t (id {key} primary key, next {key} references t)"
                ));
            }
            for table in ["p", "c", "t"] {
                let options = format!(r#"{{"mode": "{mode}", "on_conflict": "{policy}"}}"#);
                attach(&fixture, table, &options);
            }
            let mut client = fixture.left.client();
            let what = format!("{label} {mode} {policy}");
            for (sql, rows) in [
                // The child is captured before its parent.
                (
                    "with n as (insert into p values ('a'), ('b')) insert into c values ('c', 'a'), ('d', 'b')",
                    [2, 2, 0],
                ),
                (
                    "insert into t values ('a', 'b'), ('b', 'c'), ('c', 'a'), ('d', 'd')",
                    [2, 2, 4],
                ),
                (
                    "with u as (update c set p = 'c'), n as (insert into p values ('c')) delete from p where id = 'a'",
                    [2, 2, 4],
                ),
                ("with d as (delete from c) delete from p", [0, 0, 4]),
                ("delete from t where id <> 'd'", [0, 0, 1]),
            ] {
                run(&mut client, sql);
                assert!(
                    deal(&fixture, "1000"),
                    "{what}: {sql}: {:?}",
                    standing(&fixture)
                );
                assert_eq!(
                    queued(&fixture),
                    0,
                    "{what}: {sql}: {:?}",
                    standing(&fixture)
                );
                let found = ["p", "c", "t"].map(|name| same(&fixture, name).len());
                assert_eq!(found, rows, "{what}: {sql}");
            }
        }
    }
}
