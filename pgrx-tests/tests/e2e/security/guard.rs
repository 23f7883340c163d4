//! `guard_role`: whose sessions are believed when they carry the loop guard's name.

use postgres::Client;
use rowsync_harness::{Fixture, Side};

use crate::support::common::{
    Role, attach, attach_sql, both_have, linked, mirror, query, queued, refused, run, table,
};
use crate::support::preloaded::preloaded;

const COLUMNS: &str = "id int primary key, v text";
const GUARD: &str = "pg_rowsync";

/// A table `t`, whose guard believes only members of the role that is returned.
fn guarded(label: &str) -> (Fixture, Role) {
    let fixture = linked(label);
    let peers = Role::create(&fixture.left, "peers", "");
    mirror(&fixture, "t", COLUMNS, &believing(&peers));
    fixture
        .left
        .exec(&format!("grant all on t to {}", peers.name));
    (fixture, peers)
}

fn believing(role: &Role) -> String {
    format!(r#"{{"mode": "sync", "guard_role": "{}"}}"#, role.name)
}

/// Whether a row that the session inserts into `t` is sent.
fn sends(fixture: &Fixture, client: &mut Client, id: u32) -> bool {
    run(client, &format!("insert into t values ({id}, 'x')"));
    assert_eq!(queued(fixture), 0);
    table(&fixture.right, "t").contains(&format!("{id}|x"))
}

#[test]
fn only_members_of_the_guard_role_are_believed() {
    let (fixture, peers) = guarded("members");
    let mut stranger = fixture.left.client_named(GUARD);
    assert!(sends(&fixture, &mut stranger, 1));
    // The role itself is believed under the guard's name, and only under it.
    assert!(!sends(&fixture, &mut peers.client_named(GUARD), 2));
    assert!(sends(&fixture, &mut peers.client_named("app"), 3));
    // Memberships count from the next statement on, by way of other roles and inherited or not.
    let between = Role::create(&fixture.left, "between", "noinherit");
    let user = &fixture.left.user;
    fixture
        .left
        .exec_superuser(&format!("grant {} to {}", peers.name, between.name));
    assert!(sends(&fixture, &mut stranger, 4));
    fixture
        .left
        .exec_superuser(&format!("grant {} to {user}", between.name));
    assert!(!sends(&fixture, &mut stranger, 5));
    fixture
        .left
        .exec_superuser(&format!("revoke {} from {}", peers.name, between.name));
    assert!(sends(&fixture, &mut stranger, 6));
    // TRUNCATE has a trigger of its own.
    run(&mut stranger, "truncate t");
    both_have(&fixture, "t", &[]);
}

#[test]
fn the_session_counts_and_not_the_role_it_has_set() {
    let (fixture, peers) = guarded("session");
    let stranger = Role::create(&fixture.left, "stranger", "");
    fixture
        .left
        .exec(&format!("grant all on t to {}", stranger.name));
    let schema = &fixture.left.user;
    let mut definer = peers.client();
    run(
        &mut definer,
        &format!(
            "create function put(id int) returns void language sql security definer
               set search_path = {schema} as $$ insert into t values (id, 'x') $$;
             grant execute on function put(int) to {}",
            stranger.name
        ),
    );
    drop(definer);
    // A function that belongs to the guard's role does not lend its name.
    let mut client = stranger.client_named(GUARD);
    run(&mut client, "select put(1)");
    assert_eq!(table(&fixture.right, "t"), ["1|x"]);
    // Nor does SET ROLE, be it a superuser's, who is no member of anything by itself.
    let mut superuser = fixture
        .left
        .cluster
        .connect_as(
            &fixture.left.db,
            "postgres",
            fixture.left.cluster.superuser_password(),
            GUARD,
        )
        .expect("a session");
    run(
        &mut superuser,
        &format!("set search_path = {schema}, public"),
    );
    assert!(sends(&fixture, &mut superuser, 2));
    run(&mut superuser, &format!("set role {}", peers.name));
    assert!(sends(&fixture, &mut superuser, 3));
    run(&mut superuser, "reset role");
    // Who is a superuser may become another, and then is.
    run(
        &mut superuser,
        &format!("set session authorization {}", peers.name),
    );
    assert!(!sends(&fixture, &mut superuser, 4));
    // A member is believed whatever role it sets.
    fixture
        .left
        .exec_superuser(&format!("grant {} to {}", stranger.name, peers.name));
    let mut member = peers.client_named(GUARD);
    run(&mut member, &format!("set role {}", stranger.name));
    assert!(!sends(&fixture, &mut member, 5));
}

#[test]
fn a_guard_role_that_is_not_there_stops_the_writers() {
    let fixture = linked("norole");
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table t ({COLUMNS})"));
    }
    let name = format!("{}_late", fixture.left.user);
    let options = format!(r#"{{"mode": "sync", "guard_role": "{name}"}}"#);
    let mut client = fixture.left.client();
    let error = refused(&mut client, &attach_sql(&fixture, "t", &options), "42704");
    assert!(error.message().contains(&name), "{error:?}");
    // CREATE TRIGGER does not look at arguments: the first write does, whatever the session's name.
    run(
        &mut client,
        &format!(
            "create trigger sync after insert or update or delete on t for each row
               execute function sync_dml('dst', '{}', 't', '{options}')",
            fixture.right.user
        ),
    );
    let mut named = fixture.left.client_named(GUARD);
    for client in [&mut client, &mut named] {
        refused(client, "insert into t values (1, 'x')", "42704");
    }
    let role = Role::create(&fixture.left, "late", "");
    for (client, id) in [(&mut client, 1), (&mut named, 2)] {
        assert!(sends(&fixture, client, id));
    }
    // Renamed or dropped later, it lets nobody through unseen.
    fixture
        .left
        .exec_superuser(&format!("alter role {name} rename to {name}r"));
    for client in [&mut client, &mut named] {
        refused(client, "insert into t values (3, 'x')", "42704");
    }
    fixture
        .left
        .exec_superuser(&format!("alter role {name}r rename to {name}"));
    assert!(sends(&fixture, &mut named, 3));
    drop(role);
    for client in [&mut client, &mut named] {
        refused(client, "insert into t values (4, 'x')", "42704");
    }
    refused(
        &mut client,
        &attach_sql(&fixture, "t", r#"{"guard_role": ""}"#),
        "22023",
    );
    both_have(&fixture, "t", &["1|x", "2|x", "3|x"]);
}

#[test]
fn masters_that_believe_only_each_other_do_not_echo() {
    let fixture = Fixture::new("believing");
    let other = |side: &Side| {
        if side.db == fixture.left.db {
            &fixture.right
        } else {
            &fixture.left
        }
        .clone()
    };
    for side in [&fixture.left, &fixture.right] {
        fixture.link(side, &other(side), "dst", &[]);
        side.exec("create table t (id int primary key, v text, writes int default 0)");
    }
    for side in [&fixture.left, &fixture.right] {
        // The other side's mapping leads to this side's own role.
        let options = format!(r#"{{"mode": "sync", "guard_role": "{}"}}"#, side.user);
        let target = other(side).user;
        side.exec(&format!(
            "select attach_sync('t', 'dst', '{target}.t', '{options}')"
        ));
    }
    let app = Role::create(&fixture.left, "app", "");
    fixture
        .left
        .exec(&format!("grant all on t to {}", app.name));
    // An application under the guard's name is sent, and comes back to nobody: an echo would meet the
    // row locked and fail.
    run(
        &mut app.client_named(GUARD),
        "insert into t values (1, 'x')",
    );
    fixture
        .right
        .exec("insert into t values (2, 'y'); update t set v = 'z' where id = 1");
    both_have(&fixture, "t", &["1|z|0", "2|y|0"]);
    assert_eq!(
        (queued(&fixture), fixture.right.queued().expect("a queue")),
        (0, 0)
    );
}

#[test]
fn who_is_not_believed_is_not_counted_as_guarded() {
    let fixture = preloaded("believed", &[]);
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    let peers = Role::create(&fixture.left, "peers", "");
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table t ({COLUMNS})"));
    }
    attach(&fixture, "t", &believing(&peers));
    fixture
        .left
        .exec(&format!("grant all on t to {}", peers.name));
    let counted = |client: &mut Client| {
        query(
            client,
            "select guarded, delivered_changes from sync_counters() where server is not null",
        )
    };
    let mut stranger = fixture.left.client_named(GUARD);
    assert!(sends(&fixture, &mut stranger, 1));
    assert_eq!(counted(&mut stranger), ["0|1"]);
    assert!(!sends(&fixture, &mut peers.client_named(GUARD), 2));
    assert_eq!(counted(&mut stranger), ["1|1"]);
}
