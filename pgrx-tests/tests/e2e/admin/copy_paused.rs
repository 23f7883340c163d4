//! Copies to a server that is paused: they wait, say so, and go on when it is resumed.

use std::thread;
use std::time::Duration;

use rowsync_harness::fixture::{await_until, clusters};

use crate::support::common::{query, queued, rows, same};
use crate::support::preloaded::{EAGER, preloaded};

const LONG: Duration = Duration::from_secs(100);

#[test]
fn a_copy_waits_while_its_server_is_paused() {
    let fixture = preloaded("copy_paused", EAGER);
    fixture
        .left
        .link(&fixture.right, clusters().1.port(), "dst", &[])
        .expect("a server");
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table t (id int primary key, v text)");
    }
    fixture
        .left
        .exec("insert into t select i, repeat('x', 500) from generate_series(1, 60000) i");
    // A copy of many steps.
    fixture.right.exec(
        "create function pause() returns trigger language plpgsql as
           $$ begin perform pg_sleep(0.05); return new; end $$;
         create trigger pause before insert on t for each row when (new.id % 500 = 0)
           execute function pause()",
    );
    let state = || rows(&fixture.left, "select state from sync_progress");
    let count = || rows(&fixture.right, "select count(*) from t");
    let copiers = "select count(*) from pg_stat_activity where backend_type = 'pg_rowsync copier'";

    // Before it begins.
    let mut client = fixture.left.client();
    query(&mut client, "select pause_sync('dst')");
    fixture.left.exec(&format!(
        "select attach_sync('t', 'dst', '{}.t', copy_data => true)",
        fixture.right.user
    ));
    fixture.left.exec("update t set v = 'b' where id = 1");
    assert_eq!(state(), ["paused"]);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(
        (state(), count()),
        (vec!["paused".to_owned()], vec!["0".to_owned()])
    );
    assert_eq!(
        query(&mut client, "select wait_sync('dst', '300 ms')"),
        ["f"]
    );

    // While it is under way.
    query(&mut client, "select resume_sync('dst')");
    await_until(LONG, "the copy to get on", || count() != ["0"]);
    query(&mut client, "select pause_sync('dst')");
    assert_eq!(state(), ["paused"]);
    await_until(LONG, "the step under way to end", || {
        rows(&fixture.left, copiers) == ["0"]
    });
    let brought = count();
    fixture.left.exec("update t set v = 'c' where id = 2");
    thread::sleep(Duration::from_secs(1));
    assert_eq!(count(), brought);
    assert_ne!(brought, ["60000"]);
    assert_eq!(state(), ["paused"]);

    query(&mut client, "select resume_sync('dst')");
    await_until(LONG, "the copy to end", || state() == ["done"]);
    await_until(LONG, "the queue to be empty", || queued(&fixture) == 0);
    assert_eq!(same(&fixture, "t").len(), 60_000);
}
