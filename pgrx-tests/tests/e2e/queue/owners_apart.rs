//! What one owner's changes meet keeps no other owner's waiting.

use crate::support::common::{Role, deal, linked, mirror, queued, rows, run, same, table};
use postgres::Client;
use rowsync_harness::Fixture;
use rowsync_harness::fixture::{clusters, fails};
use rowsync_harness::proxy::{Direction, Proxy};

/// Tables `good` and `strict` (mode `sync`) of the side's role, and `mine` of another role's, whose mapping has
/// this password.
fn two_owners(label: &str, password: &str) -> (Fixture, Role) {
    let fixture = linked(label);
    let columns = "id int primary key, v text";
    mirror(&fixture, "good", columns, "{}");
    mirror(&fixture, "strict", columns, r#"{"mode": "sync"}"#);
    let other = Role::create(&fixture.left, "other", "");
    let left = &fixture.left.user;
    let right = &fixture.right;
    let name = &other.name;
    right.exec(&format!("create table mine ({columns})"));
    fixture.left.exec_superuser(&format!(
        "grant usage on foreign server dst to {name};
         create user mapping for {name} server dst
           options (user '{}', password '{password}');
         create table {left}.mine ({columns}); alter table {left}.mine owner to {name};
         select attach_sync('{left}.mine', 'dst', '{}.mine')",
        right.user, right.user
    ));
    (fixture, other)
}

fn writer(fixture: &Fixture) -> Client {
    let mut client = fixture.left.superuser();
    run(
        &mut client,
        &format!("set search_path = {}, public", fixture.left.user),
    );
    client
}

const STATUS: &str = "select pending, failed, consecutive_failures > 0, last_sqlstate, \
                      blocked like '%28P01%' from sync_status";

#[test]
fn one_owners_wrong_password_is_no_others() {
    let (fixture, other) = two_owners("wrong_password", "wrong");
    let mut client = writer(&fixture);
    run(&mut client, "insert into mine values (1, 'a')");
    // At once, before any drain has found out.
    run(
        &mut client,
        "insert into strict values (1, 'a'); insert into good values (1, 'a')",
    );
    assert_eq!(table(&fixture.right, "strict"), ["1|a"]);
    assert_eq!(table(&fixture.right, "good"), ["1|a"]);
    assert_eq!(rows(&fixture.left, STATUS), ["1|0|t|28P01|t"]);
    assert!(!deal(&fixture, "100"));
    run(&mut client, "insert into strict values (2, 'a')");
    let blocked = rows(&fixture.left, "select blocked from sync_status");
    assert!(blocked[0].contains(&other.name), "{blocked:?}");
    fixture.left.exec_superuser(&format!(
        "alter user mapping for {} server dst options (set password '{}')",
        other.name, fixture.right.password
    ));
    assert!(deal(&fixture, "100"));
    assert_eq!(table(&fixture.right, "mine"), ["1|a"]);
    assert_eq!(queued(&fixture), 0);
    assert_eq!(
        rows(&fixture.left, "select blocked is null from sync_status"),
        ["t"]
    );
    run(&mut client, "insert into mine values (2, 'a')");
    same(&fixture, "mine");
}

#[test]
fn one_owners_missing_usage_is_no_others() {
    let (fixture, other) = two_owners("missing_usage", "wrong");
    let mut client = writer(&fixture);
    run(&mut client, "insert into mine values (1, 'a')");
    fixture.left.exec_superuser(&format!(
        "revoke usage on foreign server dst from {}",
        other.name
    ));
    assert!(!deal(&fixture, "100"));
    run(
        &mut client,
        "insert into strict values (1, 'a'); insert into good values (1, 'a')",
    );
    assert_eq!(table(&fixture.right, "strict"), ["1|a"]);
    assert_eq!(table(&fixture.right, "good"), ["1|a"]);
    let blocked = rows(
        &fixture.left,
        "select last_sqlstate, blocked from sync_status",
    );
    assert!(blocked[0].starts_with("42501|"), "{blocked:?}");
    assert!(blocked[0].contains(&other.name), "{blocked:?}");
}

#[test]
fn owners_whose_commits_alternate_are_drained_together() {
    let (fixture, other) = two_owners("alternate", "x");
    let left = &fixture.left.user;
    let right = &fixture.right.user;
    let queue = r#"{"mode": "queue"}"#;
    fixture.left.exec_superuser(&format!(
        "alter user mapping for {} server dst options (set password '{}');
         select detach_sync('{left}.mine', 'dst'), detach_sync('{left}.good', 'dst');
         select attach_sync('{left}.mine', 'dst', '{right}.mine', '{queue}'),
                attach_sync('{left}.good', 'dst', '{right}.good', '{queue}')",
        other.name, fixture.right.password
    ));
    let mut client = writer(&fixture);
    run(
        &mut client,
        "do $$ begin for i in 1..50 loop
           insert into good values (i); commit; insert into mine values (i); commit;
         end loop; end $$",
    );
    assert!(deal(&fixture, "40"));
    assert_eq!(queued(&fixture), 60, "the oldest 40 of both");
    assert_eq!(
        (rows_of(&fixture, "good"), rows_of(&fixture, "mine")),
        (20, 20)
    );
    assert!(deal(&fixture, "1000"));
    assert_eq!(queued(&fixture), 0);
    same(&fixture, "good");
    same(&fixture, "mine");
}

fn rows_of(fixture: &Fixture, name: &str) -> usize {
    table(&fixture.right, name).len()
}

#[test]
fn what_refers_to_another_owners_rows_comes_after_them() {
    let (fixture, other) = two_owners("refers", "x");
    let left = &fixture.left.user;
    let right = &fixture.right.user;
    let queue = r#"{"mode": "queue"}"#;
    fixture
        .right
        .exec("alter table mine add foreign key (id) references good (id)");
    fixture.left.exec_superuser(&format!(
        "alter user mapping for {} server dst options (set password '{}');
         select detach_sync('{left}.mine', 'dst'), detach_sync('{left}.good', 'dst');
         select attach_sync('{left}.mine', 'dst', '{right}.mine', '{queue}'),
                attach_sync('{left}.good', 'dst', '{right}.good', '{queue}')",
        other.name, fixture.right.password
    ));
    let mut client = writer(&fixture);
    for id in 1..=3 {
        run(
            &mut client,
            &format!("insert into good values ({id}); insert into mine values ({id})"),
        );
    }
    // The second drain finds the first one's rows committed; nobody is to blame.
    for _ in 0..3 {
        assert!(deal(&fixture, "100"));
        let failed = "select count(*) from sync_err_rec where status <> 'pending'";
        assert_eq!(rows(&fixture.left, failed), ["0"]);
    }
    assert_eq!(queued(&fixture), 0);
    same(&fixture, "good");
    same(&fixture, "mine");
}

/// The first owner's statement begins within the limit of the call, and ends far behind it.
#[test]
fn a_limit_tears_no_statement_beside_another_owners_records() {
    let (fixture, _other, mut client) = statement_between_others("torn", "error");
    // Beside another owner's record nothing is blamed, but left for the next call.
    assert!(deal(&fixture, "3"));
    assert!(deal(&fixture, "3"));
    assert_eq!(rows_of(&fixture, "tree"), 20);
    run(&mut client, "delete from tree; insert into mine values (3)");
    assert!(deal(&fixture, "1"));
    assert!(deal(&fixture, "1000"));
    assert_eq!(queued(&fixture), 0);
    same(&fixture, "tree");
    same(&fixture, "mine");
}

/// What a drain may have applied is looked at as a whole, also by a call that is to apply less.
#[test]
fn a_limit_tears_nothing_that_may_be_there_beside_another_owners_records() {
    for policy in ["error", "skip", "overwrite"] {
        let (fixture, _other, mut client) =
            statement_between_others(&format!("doubt_{policy}"), policy);
        run(
            &mut client,
            "update tree set id = id + 100, up = null where id <= 2; insert into mine values (3)",
        );
        let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
        fixture.left.exec_superuser(&format!(
            "alter server dst options (set port '{}')",
            proxy.port()
        ));
        let mut drain = fixture.left.superuser();
        run(&mut drain, "begin; select deal_sync_err_rec(1000)");
        proxy.cut_after(0, Direction::ToClient);
        assert_eq!(fails(drain.batch_execute("commit")).code().code(), "08007");
        proxy.cut_after(u64::MAX, Direction::ToClient);
        let records = queued(&fixture);
        assert!(records > 20, "{records}");
        assert!(deal(&fixture, "1"), "{policy}: {:?}", failed(&fixture));
        assert!(deal(&fixture, "1000"), "{policy}: {:?}", failed(&fixture));
        assert_eq!(queued(&fixture), 0);
        same(&fixture, "tree");
        same(&fixture, "mine");
    }
}

fn failed(fixture: &Fixture) -> Vec<String> {
    rows(
        &fixture.left,
        "select id, table_name, op, status, sqlstate, message from sync_err_rec order by id",
    )
}

/// A queue that has a statement by which one owner writes twenty rows that refer to each other, between records
/// of another owner.
fn statement_between_others(label: &str, policy: &str) -> (Fixture, Role, Client) {
    let (fixture, other) = two_owners(label, "x");
    let left = &fixture.left.user;
    let right = &fixture.right.user;
    let options = format!(r#"{{"mode": "queue", "on_conflict": "{policy}"}}"#);
    mirror(
        &fixture,
        "tree",
        "id int primary key, up int references tree deferrable, u int unique",
        &options,
    );
    fixture.left.exec_superuser(&format!(
        "alter user mapping for {} server dst options (set password '{}');
         select detach_sync('{left}.mine', 'dst');
         select attach_sync('{left}.mine', 'dst', '{right}.mine', '{options}')",
        other.name, fixture.right.password
    ));
    let mut client = writer(&fixture);
    run(
        &mut client,
        "insert into mine values (1);
         insert into tree select i, case when i < 20 then i + 1 end, i from generate_series(1, 20) i;
         insert into mine values (2)",
    );
    (fixture, other, client)
}

/// One statement writes a parent of one owner and a child of another's: each goes over a connection of its own.
/// Whichever is tried first, both arrive; in mode `sync` the transaction fails, and says why.
#[test]
fn a_statement_of_two_owners_with_a_foreign_key_between_them_arrives() {
    for mode in ["async", "queue", "sync"] {
        for parent_is_others in [false, true] {
            let fixture = linked(&format!("two_owners_{mode}_{parent_is_others}"));
            let other = Role::create(&fixture.left, "other", "");
            let left = &fixture.left.user;
            let right = &fixture.right;
            let name = &other.name;
            let options = format!(r#"{{"mode": "{mode}"}}"#);
            for side in [&fixture.left, &fixture.right] {
                side.exec(
                    "create table p (id int primary key);
                     create table c (id int primary key, p int not null references p)",
                );
            }
            let others = if parent_is_others { "p" } else { "c" };
            fixture.left.exec_superuser(&format!(
                "grant usage on foreign server dst to {name};
                 grant create on schema {left} to {name};
                 create user mapping for {name} server dst options (user '{}', password '{}');
                 alter table {left}.{others} owner to {name};
                 grant all on {left}.p, {left}.c to {name}, {left};
                 select attach_sync('{left}.p', 'dst', '{}.p', '{options}');
                 select attach_sync('{left}.c', 'dst', '{}.c', '{options}')",
                right.user, right.password, right.user, right.user
            ));
            let mut client = writer(&fixture);
            for (sql, count) in [
                (
                    "with n as (insert into p values (1), (2)) insert into c values (1, 1), (2, 2), (3, 1)",
                    2,
                ),
                (
                    "with u as (update c set p = 2) delete from p where id = 1",
                    1,
                ),
                ("with d as (delete from c) delete from p", 0),
            ] {
                let what = format!("{mode} {parent_is_others}: {sql}");
                if mode == "sync" {
                    let error = fails(client.batch_execute(sql));
                    assert_eq!(error.code().code(), "23503", "{what}: {error:?}");
                    assert_eq!(
                        table(&fixture.right, "p"),
                        table(&fixture.left, "p"),
                        "{what}"
                    );
                    break;
                }
                run(&mut client, sql);
                let standing = "select table_name, op, status, sqlstate, message from sync_err_rec order by id";
                // What one owner's rows need of the other's is committed with the first call.
                for _ in 0..2 {
                    assert!(
                        deal(&fixture, "1000"),
                        "{what}: {:?}",
                        rows(&fixture.left, standing)
                    );
                }
                assert_eq!(
                    queued(&fixture),
                    0,
                    "{what}: {:?}",
                    rows(&fixture.left, standing)
                );
                assert_eq!(same(&fixture, "p").len(), count, "{what}");
                same(&fixture, "c");
            }
        }
    }
}
