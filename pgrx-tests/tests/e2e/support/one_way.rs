//! The smallest synchronised table: `t` on the left follows into `t` on the right through server
//! `dst`. For tests about connections, not about tables.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use postgres::Client;
use rowsync_harness::fixture::{Fixture, await_until};
use rowsync_harness::proxy::Proxy;
use rowsync_harness::side::Side;

/// How long a condition may take to come true.
pub const SOON: Duration = Duration::from_secs(20);

/// Tables with rows 1 to 3 on both sides and a trigger with these options on the left.
pub fn one_way(label: &str, proxy: Option<&Proxy>, options: &str) -> Fixture {
    let fixture = Fixture::new(label);
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table t (id int primary key, v text)");
    }
    match proxy {
        Some(proxy) => fixture.link_via(proxy, &fixture.left, &fixture.right, "dst", &[]),
        None => fixture.link(&fixture.left, &fixture.right, "dst", &[]),
    }
    let target = format!("{}.t", fixture.right.user);
    fixture.left.exec(&format!(
        "select attach_sync('t', 'dst', '{target}', '{options}')"
    ));
    fixture
        .left
        .exec("insert into t values (1, 'old'), (2, 'old'), (3, 'old')");
    assert!(drain(&fixture), "what mode queue has not sent by itself");
    assert_equal(&fixture);
    fixture
}

/// The value of a row, as the side's own superuser sees it.
pub fn value(side: &Side, id: i32) -> Option<String> {
    let sql = format!("select v from {}.t where id = {id}", side.user);
    side.superuser()
        .query_opt(&sql, &[])
        .expect("a value")
        .map(|row| row.get(0))
}

/// Both tables hold the same.
pub fn assert_equal(fixture: &Fixture) {
    assert_eq!(
        fixture.checksum(&fixture.left, "t"),
        fixture.checksum(&fixture.right, "t")
    );
}

/// Changes waiting on the left.
pub fn queued(fixture: &Fixture) -> i64 {
    fixture.left.queued().expect("the queue")
}

/// Replays everything; what `deal_sync_err_rec` said.
pub fn drain(fixture: &Fixture) -> bool {
    fixture.left.query_one("select deal_sync_err_rec(100000)")
}

/// The process ID behind a client.
pub fn pid(client: &mut Client) -> i32 {
    client
        .query_one("select pg_backend_pid()", &[])
        .expect("a process ID")
        .get(0)
}

/// Runs a statement in a thread of its own and hands the client back with what came of it.
pub fn spawn(
    mut client: Client,
    sql: &'static str,
) -> JoinHandle<(Client, Result<(), postgres::Error>)> {
    thread::spawn(move || {
        let result = client.batch_execute(sql);
        (client, result)
    })
}

/// Waits until a session of this role on the side waits for a lock, and says which one.
pub fn await_blocked(side: &Side) -> i32 {
    let sql = "select coalesce(min(pid), 0) from pg_stat_activity where usename = $1 \
               and wait_event_type = 'Lock' and application_name = 'pg_rowsync'";
    let mut observer = side.superuser();
    let mut blocked = 0;
    await_until(SOON, "a delivery to wait for a lock", || {
        blocked = observer
            .query_one(sql, &[&side.user])
            .expect("activity")
            .get(0);
        blocked != 0
    });
    blocked
}

/// Waits until no session delivers to the side any more.
pub fn await_no_delivery(side: &Side) {
    let sql = "select count(*) from pg_stat_activity where usename = $1 \
               and application_name = 'pg_rowsync'";
    await_until(SOON, "the remote session to go", || {
        let row = side.superuser().query_one(sql, &[&side.user]);
        row.expect("activity").get::<_, i64>(0) == 0
    });
}

/// Locks row 1 of the right side until the client is dropped or rolls back.
pub fn lock_row(fixture: &Fixture) -> Client {
    let mut locker = fixture.right.client();
    locker
        .batch_execute("begin; update t set v = 'locked' where id = 1")
        .expect("a row lock");
    locker
}

/// A client on the left that waits long for locks on the right.
pub fn patient_client(fixture: &Fixture) -> Client {
    let mut client = fixture.left.client();
    client
        .batch_execute(
            "set pg_rowsync.lock_timeout = '60s'; set pg_rowsync.delivery_timeout = '60s'",
        )
        .expect("settings");
    client
}
