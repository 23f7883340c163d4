//! Steps and looks that several tests share. Failures are panics.

use std::io::Write;

use rowsync_harness::side::{Notices, describe};
use rowsync_harness::{Cluster, Fixture, Side, fails};

use postgres::error::DbError;
use postgres::{Client, SimpleQueryMessage};

/// Whether the servers were built with ICU. A test that is about it says that they were not, where it
/// is seen, and ends.
pub fn has_icu(side: &Side) -> bool {
    let found: bool =
        side.query_one("select exists (select from pg_collation where collname = 'en-US-x-icu')");
    if !found {
        tell_what_is_missing("ICU");
    }
    found
}

/// Says, where those who run the tests see it, that the current one cannot show all that it is about.
pub fn tell_what_is_missing(what: &str) {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    // Not by a macro, whose output is kept from those who run the tests.
    let _ = writeln!(
        std::io::stderr(),
        "{test}: not all of it, the servers lack {what}"
    );
}

/// A port on which nothing listens: its socket is closed again before it is used.
pub fn closed_port() -> u16 {
    let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    socket.local_addr().expect("its address").port()
}

/// A fixture whose left side has a server `dst` that leads to the right one.
pub fn linked(label: &str) -> Fixture {
    let fixture = Fixture::new(label);
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    fixture
}

/// As [`linked`], with a table `t` on both sides and changes of the left one sent.
pub fn one_way(label: &str, columns: &str, options: &str) -> Fixture {
    let fixture = linked(label);
    mirror(&fixture, "t", columns, options);
    fixture
}

/// Gives the left side's server a host of its own. Who is refused a connection, and a drain that runs out of time,
/// ask all sessions of the cluster to close theirs to the same host and port; other tests share both clusters.
pub fn set_host_apart(fixture: &Fixture) {
    fixture.left.exec(&format!(
        "alter server dst options (set host '{}.test', add hostaddr '127.0.0.1')",
        fixture.right.db
    ));
}

/// A table on both sides; changes of the left one go to `dst`.
pub fn mirror(fixture: &Fixture, table: &str, columns: &str, options: &str) {
    fixture
        .left
        .exec(&format!("create table {table} ({columns})"));
    fixture
        .right
        .exec(&format!("create table {table} ({columns})"));
    attach(fixture, table, options);
}

/// Sends the left table to the right one of the same name.
pub fn attach(fixture: &Fixture, table: &str, options: &str) {
    fixture.left.exec(&attach_sql(fixture, table, options));
}

/// Two databases, of which the right one lets its role in as told by [`Cluster::set_authentication`]; the
/// left one has a server `dst` of its role's that leads there with a mapping for PUBLIC, without a password.
pub fn passwordless(label: &str, method: &str) -> Fixture {
    let right = std::sync::Arc::new(Cluster::start(label).expect("a cluster"));
    right.set_authentication(method).expect("a rule");
    let create = |cluster, name: String| Side::create(cluster, &name).expect("a database");
    let fixture = Fixture {
        left: create(
            rowsync_harness::fixture::clusters().0,
            format!("local_{label}"),
        ),
        right: create(&right, format!("remote_{label}")),
    };
    let (Side { db, user, .. }, port) = (&fixture.right, right.port());
    fixture.left.exec(&format!(
        "create server dst foreign data wrapper pg_rowsync
           options (host '127.0.0.1', port '{port}', dbname '{db}');
         create user mapping for public server dst options (user '{user}')"
    ));
    fixture
}

/// The server `dst` becomes a superuser's, whose tables may then use it without a password.
pub fn hand_to_superuser(fixture: &Fixture) {
    fixture.left.exec_superuser(&format!(
        "alter server dst owner to postgres; grant usage on foreign server dst to {}",
        fixture.left.user
    ));
}

/// The call that [`attach`] makes.
pub fn attach_sql(fixture: &Fixture, table: &str, options: &str) -> String {
    let schema = &fixture.right.user;
    format!("select attach_sync('{table}', 'dst', '{schema}.{table}', '{options}')")
}

/// A server on the left that leads to the right under other options: `port`, `password`.
pub fn link_with(fixture: &Fixture, server: &str, port: u16, password: &str) {
    let Side { db, user, .. } = &fixture.right;
    fixture.left.exec(&format!(
        "create server {server} foreign data wrapper pg_rowsync
           options (host '127.0.0.1', port '{port}', dbname '{db}');
         create user mapping for current_user server {server}
           options (user '{user}', password '{password}')"
    ));
}

/// Rows as text, columns parted by `|`, NULL as `~`. In a superuser's session that finds the
/// owner's tables, so that it works while the owner may not log in.
pub fn rows(side: &Side, sql: &str) -> Vec<String> {
    let mut client = side.superuser();
    run(
        &mut client,
        &format!("set search_path = \"{}\", public", side.user),
    );
    query(&mut client, sql)
}

/// Rows of a query over the client, in the form of [`rows`].
pub fn query(client: &mut Client, sql: &str) -> Vec<String> {
    let messages = client.simple_query(sql);
    let messages = messages.unwrap_or_else(|error| panic!("{}: {sql}", describe(&error)));
    let mut found = Vec::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            let values = (0..row.len()).map(|at| row.get(at).unwrap_or("~"));
            found.push(values.collect::<Vec<_>>().join("|"));
        }
    }
    found
}

/// Runs statements that must succeed.
pub fn run(client: &mut Client, sql: &str) {
    client
        .batch_execute(sql)
        .unwrap_or_else(|error| panic!("{}: {sql}", describe(&error)));
}

/// Runs statements that must fail with this SQLSTATE.
pub fn refused(client: &mut Client, sql: &str, sqlstate: &str) -> DbError {
    let error = fails(client.batch_execute(sql));
    assert_eq!(error.code().code(), sqlstate, "{sql}: {error:?}");
    error
}

/// All rows of a table of the owner.
pub fn table(side: &Side, name: &str) -> Vec<String> {
    rows(
        side,
        &format!("select * from {name} t order by t::text collate \"C\""),
    )
}

/// The rows of a table, after checking that they are the same on both sides.
#[track_caller]
pub fn same(fixture: &Fixture, name: &str) -> Vec<String> {
    let left = table(&fixture.left, name);
    assert_eq!(
        left,
        table(&fixture.right, name),
        "\"{name}\" differs, right is the remote"
    );
    left
}

/// [`same`], and what the rows must be.
#[track_caller]
pub fn both_have(fixture: &Fixture, name: &str, expected: &[&str]) {
    assert_eq!(same(fixture, name), expected);
}

/// `op|sqlstate|attempts|status` of the records on the left, oldest first.
pub fn records(fixture: &Fixture) -> Vec<String> {
    rows(
        &fixture.left,
        "select op, sqlstate, attempts, status from sync_err_rec order by id",
    )
}

/// How many changes wait on the left.
pub fn queued(fixture: &Fixture) -> i64 {
    fixture
        .left
        .queued()
        .unwrap_or_else(|error| panic!("no queue: {}", describe(&error)))
}

/// `deal_sync_err_rec` on the left, as the superuser.
pub fn deal(fixture: &Fixture, args: &str) -> bool {
    fixture
        .left
        .query_one(&format!("select deal_sync_err_rec({args})"))
}

/// A further login role on a side, which may use the side's schema. Dropped, it takes with it what it
/// owns there.
pub struct Role {
    side: Side,
    pub name: String,
}

impl Role {
    /// The name is the side's own with this ending; `attributes` are those of CREATE ROLE.
    pub fn create(side: &Side, ending: &str, attributes: &str) -> Role {
        let schema = &side.user;
        let name = format!("{}_{ending}", side.user);
        side.exec_superuser(&format!(
            "create role {name} login password '{name}' {attributes};
             grant usage, create on schema {schema} to {name}"
        ));
        Role {
            side: side.clone(),
            name,
        }
    }

    /// A session of the role that finds the tables of the side's schema.
    pub fn client(&self) -> Client {
        self.client_named("")
    }

    /// As `client`, under an `application_name`.
    pub fn client_named(&self, application_name: &str) -> Client {
        let Side {
            db, user, cluster, ..
        } = &self.side;
        let client = cluster.connect_as(db, &self.name, &self.name, application_name);
        let mut client = client.unwrap_or_else(|error| panic!("no session: {}", describe(&error)));
        run(&mut client, &format!("set search_path = {user}, public"));
        client
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let name = &self.name;
        if let Ok(mut client) = self.side.connect_superuser() {
            let _ =
                client.batch_execute(&format!("drop owned by {name} cascade; drop role {name}"));
        }
    }
}

/// Takes out what was said at level WARNING.
pub fn warnings(notices: &Notices) -> Vec<DbError> {
    let said = std::mem::take(&mut *notices.lock().expect("notices"));
    said.into_iter()
        .filter(|notice| notice.severity() == "WARNING")
        .collect()
}

/// A superuser's session on the left whose notices are kept.
pub fn superuser_with_notices(side: &Side) -> (Client, Notices) {
    let notices = Notices::default();
    let kept = notices.clone();
    let client = side
        .cluster
        .config(&side.db, "postgres", side.cluster.superuser_password())
        .notice_callback(move |notice| kept.lock().expect("notices").push(notice))
        .connect(postgres::NoTls)
        .unwrap_or_else(|error| panic!("no session: {}", describe(&error)));
    (client, notices)
}

/// The side's role may not log in any more, and its sessions end.
pub fn outage(side: &Side) {
    let user = &side.user;
    side.exec_superuser(&format!(
        "alter role {user} nologin;
         select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = '{user}'"
    ));
}

/// Undoes [`outage`].
pub fn recover(side: &Side) {
    side.exec_superuser(&format!("alter role {} login", side.user));
}

/// Runs statements as the superuser that must fail with this SQLSTATE.
pub fn fails_with(side: &Side, sql: &str, sqlstate: &str) -> DbError {
    refused(&mut side.superuser(), sql, sqlstate)
}
