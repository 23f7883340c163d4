//! Two owners whose tables are written all the time, and a server that is away for a while: both catch up, and
//! both deliver directly again, though neither has stopped to write.

use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use postgres::Client;
use rowsync_harness::Fixture;
use rowsync_harness::fixture::{await_until, clusters};
use rowsync_harness::flag::Flag;
use rowsync_harness::proxy::Proxy;

use crate::support::common::{Role, mirror, run, same};
use crate::support::preloaded::{WORKING, preloaded};

/// Of each owner, a second.
const RATE: u64 = 150;
/// Sessions of each owner.
const SESSIONS: u64 = 3;
const AWAY: Duration = Duration::from_secs(5);
/// For which direct delivery is looked at afterwards.
const AFTER: Duration = Duration::from_secs(4);

/// Tables `mine` of the side's role and `theirs` of another one's, over one server.
fn two_owners() -> (Fixture, Proxy, Role) {
    let fixture = preloaded("catchup", &[]);
    let proxy = Proxy::start(clusters().1.port()).expect("a proxy");
    fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
    let columns = "id bigint primary key, v text";
    mirror(&fixture, "mine", columns, "{}");
    let other = Role::create(&fixture.left, "other", "");
    let left = &fixture.left.user;
    let right = &fixture.right;
    let name = &other.name;
    right.exec(&format!("create table theirs ({columns})"));
    fixture.left.exec_superuser(&format!(
        "grant usage on foreign server dst to {name};
         create user mapping for {name} server dst
           options (user '{user}', password '{password}');
         create table {left}.theirs ({columns}); alter table {left}.theirs owner to {name};
         select attach_sync('{left}.theirs', 'dst', '{user}.theirs')",
        user = right.user,
        password = right.password
    ));
    (fixture, proxy, other)
}

/// Writes at the owner's rate until told to stop; how many rows, of those how many after `back` was set.
fn write(mut client: Client, table: &str, who: u64, done: &Flag) -> u64 {
    let pause = Duration::from_micros(1_000_000 * SESSIONS / RATE);
    let start = Instant::now();
    let mut rows = 0;
    while !done.is_set() {
        let id = who * 1_000_000 + rows;
        run(
            &mut client,
            &format!("insert into {table} values ({id}, 'x')"),
        );
        rows += 1;
        sleep((pause * rows as u32).saturating_sub(start.elapsed()));
    }
    rows
}

/// Changes that were queued so far, and rows that the tables have on the left.
fn counted(fixture: &Fixture) -> (i64, i64) {
    let user = &fixture.left.user;
    let row = fixture
        .left
        .superuser()
        .query_one(
            &format!(
                "select s.queued::bigint, (select count(*) from {user}.mine) + (select count(*) from {user}.theirs)
                   from sync_status s"
            ),
            &[],
        )
        .expect("counters");
    (row.get(0), row.get(1))
}

#[test]
fn two_owners_who_go_on_writing_catch_up_after_an_outage_and_deliver_directly() {
    let (fixture, proxy, other) = two_owners();
    let done = Flag::default();
    thread::scope(|scope| {
        let _end = done.set_at_end();
        for who in 0..SESSIONS {
            let own = fixture.left.client();
            let theirs = other.client();
            let done = &done;
            scope.spawn(move || write(own, "mine", who, done));
            scope.spawn(move || write(theirs, "theirs", SESSIONS + who, done));
        }
        sleep(Duration::from_secs(2));
        proxy.refuse();
        proxy.cut();
        sleep(AWAY);
        assert!(counted(&fixture).0 > 500, "nothing was queued");
        proxy.accept().expect("a port");
        let back = Instant::now();
        await_until(WORKING, "the queue to be seen empty", || {
            fixture.left.queued().expect("a queue") == 0
        });
        println!("caught up after {:?}", back.elapsed());
        // From now on most is delivered directly.
        let before = counted(&fixture);
        sleep(AFTER);
        let after = counted(&fixture);
        let queued = after.0 - before.0;
        let written = after.1 - before.1;
        println!("{written} rows afterwards, of which {queued} were queued");
        let expected = AFTER.as_secs() as i64 * 2 * RATE as i64;
        assert!(
            written * 2 > expected,
            "commits became slow: {written} of {expected}"
        );
        assert!(
            queued * 4 < written,
            "direct delivery has not come back: {queued} of {written} were queued"
        );
        done.set();
    });
    await_until(WORKING, "the rest", || {
        fixture.left.queued().expect("a queue") == 0
    });
    same(&fixture, "mine");
    same(&fixture, "theirs");
}
