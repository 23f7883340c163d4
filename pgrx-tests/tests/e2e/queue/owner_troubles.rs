//! Troubles that only one owner has with a server: the others' tables are none the worse for them, and nothing
//! of that owner's is overtaken.

use postgres::Client;
use rowsync_harness::{Fixture, Side, await_until};

use crate::support::common::{Role, linked, query, queued, refused, rows, run, table};
use crate::support::one_way::SOON;
use crate::support::preloaded::{EAGER, WORKING, preloaded};

/// Drains until another owner's trouble must have been noticed.
const NOTICED: usize = 6;

/// Tables of the left side's role, `t` and in mode `sync` `s`, beside a table `o` of another role's, which goes
/// over a login of its own on the right.
struct Owners {
    fixture: Fixture,
    local: Role,
    remote: Role,
}

impl Owners {
    fn new(label: &str) -> Self {
        Self::between(linked(label))
    }

    /// A worker drains.
    fn with_a_worker(label: &str) -> Self {
        let fixture = preloaded(label, EAGER);
        fixture.link(&fixture.left, &fixture.right, "dst", &[]);
        Self::between(fixture)
    }

    fn between(fixture: Fixture) -> Self {
        let local = Role::create(&fixture.left, "other", "");
        let remote = Role::create(&fixture.right, "other", "");
        let left = &fixture.left.user;
        let right = &fixture.right.user;
        fixture.left.exec_superuser(&format!(
            "grant usage on foreign server dst to {}",
            local.name
        ));
        for name in ["t", "s", "o"] {
            let create = format!("create table {name} (id int primary key, v text)");
            fixture
                .right
                .exec(&format!("{create}; grant all on {name} to {}", remote.name));
            if name == "o" {
                let mut owner = local.client();
                run(&mut owner, &format!("{create}; grant all on o to {left}"));
                run(
                    &mut owner,
                    &format!(
                        "create user mapping for current_user server dst
                           options (user '{0}', password '{0}');
                         select attach_sync('o', 'dst', '{right}.o')",
                        remote.name
                    ),
                );
            } else {
                let mode = if name == "s" { "sync" } else { "async" };
                fixture.left.exec(&format!(
                    r#"{create};
                       select attach_sync('{name}', 'dst', '{right}.{name}', '{{"mode": "{mode}"}}')"#
                ));
            }
        }
        let owners = Self {
            fixture,
            local,
            remote,
        };
        let mut client = owners.client();
        for name in ["o", "t", "s"] {
            run(
                &mut client,
                &format!("insert into {name} values (1, 'before')"),
            );
            assert_eq!(table(&owners.fixture.right, name), ["1|before"], "{name}");
        }
        owners
    }

    /// A superuser's session, which may write all tables.
    fn client(&self) -> Client {
        let mut client = self.fixture.left.superuser();
        run(
            &mut client,
            &format!("set search_path = {}, public", self.fixture.left.user),
        );
        client
    }

    /// The other owner's changes queue; the first owner's do not for long.
    #[track_caller]
    fn only_the_other_waits(&self) {
        let Side { user, .. } = &self.fixture.left;
        let mut client = self.client();
        run(&mut client, "insert into o values (2, 'queued')");
        run(&mut client, "insert into t values (2, 'behind')");
        for _ in 0..NOTICED {
            query(&mut client, "select deal_sync_err_rec(100)");
        }
        assert_eq!(
            table(&self.fixture.right, "t"),
            ["1|before", "2|behind"],
            "not drained"
        );
        run(&mut client, "insert into t values (3, 'direct')");
        run(&mut client, "insert into s values (3, 'strict')");
        run(&mut client, "insert into o values (3, 'queued')");
        run(&mut client, "insert into t values (4, 'direct')");
        run(&mut client, "insert into s values (4, 'strict')");
        let there = ["1|before", "2|behind", "3|direct", "4|direct"];
        assert_eq!(table(&self.fixture.right, "t"), there, "not direct");
        assert_eq!(
            table(&self.fixture.right, "s"),
            ["1|before", "3|strict", "4|strict"]
        );
        assert_eq!(table(&self.fixture.right, "o"), ["1|before"]);
        let waiting = "select distinct table_name from sync_err_rec";
        assert_eq!(
            rows(&self.fixture.left, waiting),
            ["o"],
            "of {user} nothing waits"
        );
    }

    /// As `only_the_other_waits`, while the worker drains, whose first record is the other owner's.
    #[track_caller]
    fn only_the_other_waits_for_the_worker(&self) {
        let mut client = self.client();
        run(&mut client, "select sync_disconnect()");
        run(&mut client, "insert into o values (2, 'queued')");
        run(&mut client, "insert into t values (2, 'behind')");
        await_until(WORKING, "the first owner's changes to arrive", || {
            table(&self.fixture.right, "t") == ["1|before", "2|behind"]
        });
        let apart = "select blocked is not null from sync_status";
        await_until(WORKING, "the other owner to be named", || {
            rows(&self.fixture.left, apart) == ["t"]
        });
        for id in 3..=40 {
            run(
                &mut client,
                &format!("insert into t values ({id}, 'direct')"),
            );
            assert_eq!(
                table(&self.fixture.right, "t").len(),
                id as usize,
                "not direct"
            );
            run(
                &mut client,
                &format!("insert into s values ({id}, 'strict')"),
            );
        }
        run(&mut client, "insert into o values (3, 'queued')");
        assert_eq!(table(&self.fixture.right, "s").len(), 39);
        assert_eq!(table(&self.fixture.right, "o"), ["1|before"]);
        let waiting = "select distinct table_name from sync_err_rec";
        assert_eq!(rows(&self.fixture.left, waiting), ["o"]);
    }

    /// With the cause gone, the worker delivers the other owner's changes too.
    #[track_caller]
    fn the_worker_delivers_all(&self) {
        await_until(WORKING, "the other owner's changes to arrive", || {
            queued(&self.fixture) == 0
        });
        assert_eq!(
            table(&self.fixture.right, "o"),
            ["1|before", "2|queued", "3|queued"]
        );
    }

    /// With the cause gone, the other owner's changes arrive too.
    #[track_caller]
    fn all_arrives(&self) {
        let mut client = self.client();
        await_until(SOON, "the other owner's changes to arrive", || {
            query(&mut client, "select deal_sync_err_rec(100)");
            queued(&self.fixture) == 0
        });
        assert_eq!(
            table(&self.fixture.right, "o"),
            ["1|before", "2|queued", "3|queued"]
        );
        run(&mut client, "insert into o values (4, 'direct')");
        assert_eq!(
            table(&self.fixture.right, "o").last().map(String::as_str),
            Some("4|direct")
        );
    }
}

#[test]
fn a_login_that_may_have_no_more_connections_stops_its_owner_only() {
    let owners = Owners::new("no_more");
    let name = &owners.remote.name;
    owners
        .fixture
        .right
        .exec_superuser(&format!("alter role {name} connection limit 0"));
    owners.only_the_other_waits();
    owners
        .fixture
        .right
        .exec_superuser(&format!("alter role {name} connection limit -1"));
    owners.all_arrives();
}

#[test]
fn a_login_that_may_have_no_more_connections_stops_its_owner_only_with_a_worker() {
    let owners = Owners::with_a_worker("no_more_worker");
    let name = &owners.remote.name;
    owners
        .fixture
        .right
        .exec_superuser(&format!("alter role {name} connection limit 0"));
    owners.only_the_other_waits_for_the_worker();
    owners
        .fixture
        .right
        .exec_superuser(&format!("alter role {name} connection limit -1"));
    owners.the_worker_delivers_all();
}

#[test]
fn a_login_whose_sessions_cannot_start_stops_its_owner_only_with_a_worker() {
    let owners = Owners::with_a_worker("no_library");
    let name = &owners.remote.name;
    let db = &owners.fixture.right.db;
    owners.fixture.right.exec_superuser(&format!(
        "alter role {name} in database {db} set session_preload_libraries = 'not_there'"
    ));
    owners.only_the_other_waits_for_the_worker();
    owners.fixture.right.exec_superuser(&format!(
        "alter role {name} in database {db} reset session_preload_libraries"
    ));
    owners.the_worker_delivers_all();
}

#[test]
fn a_login_without_the_right_to_connect_stops_its_owner_only() {
    let owners = Owners::new("no_connect");
    let name = &owners.remote.name;
    let db = &owners.fixture.right.db;
    let user = &owners.fixture.right.user;
    owners.fixture.right.exec_superuser(&format!(
        "revoke connect on database {db} from public; grant connect on database {db} to {user}"
    ));
    owners.only_the_other_waits();
    owners
        .fixture
        .right
        .exec_superuser(&format!("grant connect on database {db} to {name}"));
    owners.all_arrives();
}

#[test]
fn a_mapping_that_was_dropped_stops_its_owner_only() {
    let owners = Owners::new("no_mapping");
    let local = &owners.local.name;
    let remote = &owners.remote.name;
    let mut client = owners.client();
    // Queued while there was a mapping.
    owners
        .fixture
        .right
        .exec_superuser(&format!("alter role {remote} nologin"));
    run(&mut client, "select sync_disconnect()");
    run(
        &mut client,
        "insert into o values (2, 'queued'), (3, 'queued')",
    );
    run(
        &mut client,
        &format!("drop user mapping for {local} server dst"),
    );
    run(&mut client, "insert into t values (2, 'behind')");
    for _ in 0..NOTICED {
        query(&mut client, "select deal_sync_err_rec(100)");
    }
    run(&mut client, "insert into t values (3, 'direct')");
    run(&mut client, "insert into s values (3, 'strict')");
    assert_eq!(
        table(&owners.fixture.right, "t"),
        ["1|before", "2|behind", "3|direct"]
    );
    assert_eq!(table(&owners.fixture.right, "s"), ["1|before", "3|strict"]);
    owners
        .fixture
        .right
        .exec_superuser(&format!("alter role {remote} login"));
    run(
        &mut client,
        &format!(
            "create user mapping for {local} server dst options (user '{remote}', password '{remote}')"
        ),
    );
    owners.all_arrives();
}

#[test]
fn an_owner_who_was_dropped_stops_nobody_else() {
    let owners = Owners::new("no_owner");
    let local = &owners.local.name;
    let remote = &owners.remote.name;
    let left = &owners.fixture.left.user;
    let mut client = owners.client();
    owners
        .fixture
        .right
        .exec_superuser(&format!("alter role {remote} nologin"));
    run(&mut client, "select sync_disconnect()");
    run(&mut client, "insert into o values (2, 'queued')");
    run(
        &mut client,
        &format!("reassign owned by {local} to {left}; drop owned by {local}; drop role {local}"),
    );
    run(&mut client, "insert into t values (2, 'behind')");
    for _ in 0..NOTICED {
        query(&mut client, "select deal_sync_err_rec(100)");
    }
    run(&mut client, "insert into t values (3, 'direct')");
    run(&mut client, "insert into s values (3, 'strict')");
    assert_eq!(
        table(&owners.fixture.right, "t"),
        ["1|before", "2|behind", "3|direct"]
    );
    assert_eq!(table(&owners.fixture.right, "s"), ["1|before", "3|strict"]);
    // What nobody can send any more, a person discards.
    run(
        &mut client,
        "delete from sync_err_rec where table_name = 'o'",
    );
    assert_eq!(queued(&owners.fixture), 0);
}

#[test]
fn a_table_handed_to_an_owner_who_is_served_does_not_overtake_what_the_one_before_has_queued() {
    let owners = Owners::new("handed");
    let remote = &owners.remote.name;
    let left = &owners.fixture.left.user;
    let mut client = owners.client();
    owners
        .fixture
        .right
        .exec_superuser(&format!("alter role {remote} password 'another'"));
    run(&mut client, "select sync_disconnect()");
    run(
        &mut client,
        "update o set v = 'older' where id = 1; insert into o values (2, 'older')",
    );
    for _ in 0..NOTICED {
        query(&mut client, "select deal_sync_err_rec(100)");
    }
    run(&mut client, &format!("alter table o owner to {left}"));
    run(
        &mut client,
        "update o set v = 'newer'; insert into o values (3, 'newer')",
    );
    run(&mut client, "insert into t values (2, 'direct')");
    assert_eq!(table(&owners.fixture.right, "t"), ["1|before", "2|direct"]);
    owners
        .fixture
        .right
        .exec_superuser(&format!("alter role {remote} password '{remote}'"));
    await_until(SOON, "all changes to arrive", || {
        query(&mut client, "select deal_sync_err_rec(100)");
        queued(&owners.fixture) == 0
    });
    assert_eq!(
        table(&owners.fixture.left, "o"),
        ["1|newer", "2|newer", "3|newer"]
    );
    assert_eq!(
        table(&owners.fixture.right, "o"),
        ["1|newer", "2|newer", "3|newer"]
    );
}

#[test]
fn what_two_owners_write_in_one_transaction_stays_together_while_one_cannot_be_served() {
    let owners = Owners::new("both");
    let remote = &owners.remote.name;
    let mut client = owners.client();
    owners
        .fixture
        .right
        .exec_superuser(&format!("alter role {remote} password 'another'"));
    run(&mut client, "select sync_disconnect()");
    run(&mut client, "insert into o values (2, 'queued')");
    for _ in 0..NOTICED {
        query(&mut client, "select deal_sync_err_rec(100)");
    }
    run(
        &mut client,
        "begin; insert into t values (2, 'both'); insert into o values (3, 'queued')",
    );
    run(&mut client, "commit");
    assert_eq!(table(&owners.fixture.right, "o"), ["1|before"]);
    run(
        &mut client,
        "begin; insert into s values (2, 'both'); insert into o values (4, 'both')",
    );
    let error = refused(&mut client, "commit", "55000");
    assert!(error.message().contains("dst"), "{error:?}");
    assert_eq!(table(&owners.fixture.left, "s"), ["1|before"]);
    assert_eq!(table(&owners.fixture.right, "s"), ["1|before"]);
    owners
        .fixture
        .right
        .exec_superuser(&format!("alter role {remote} password '{remote}'"));
    owners.all_arrives();
    assert_eq!(table(&owners.fixture.right, "t"), ["1|before", "2|both"]);
}
