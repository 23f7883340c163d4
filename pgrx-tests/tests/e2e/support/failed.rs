//! Steps and looks of tests about failed records.

use postgres::Client;
use rowsync_harness::Fixture;

use crate::support::common::{deal, query, queued, rows, run};

/// `op|status|waits_for` of the records on the left, oldest first.
pub fn standing(fixture: &Fixture) -> Vec<String> {
    rows(
        &fixture.left,
        "select op, status, waits_for from sync_err_rec order by id",
    )
}

/// The failed records, oldest first.
pub fn failed(fixture: &Fixture) -> Vec<i64> {
    ids(fixture, "status = 'failed'")
}

/// The one failed record.
#[track_caller]
pub fn the_failed(fixture: &Fixture) -> i64 {
    let failed = failed(fixture);
    assert_eq!(failed.len(), 1, "{:?}", standing(fixture));
    failed[0]
}

/// Records that fulfil a condition.
pub fn ids(fixture: &Fixture, condition: &str) -> Vec<i64> {
    let found = rows(
        &fixture.left,
        &format!("select id from sync_err_rec where {condition} order by id"),
    );
    found
        .iter()
        .map(|id| id.parse().expect("a number"))
        .collect()
}

/// How many records there are of each status: pending, failed, waiting.
pub fn counts(fixture: &Fixture) -> (i64, i64, i64) {
    let row = fixture.left.superuser().query_one(
        "select count(*) filter (where status = 'pending'),
                count(*) filter (where status = 'failed'),
                count(*) filter (where status = 'waiting') from sync_err_rec",
        &[],
    );
    let row = row.expect("counts");
    (row.get(0), row.get(1), row.get(2))
}

/// `retry_sync_err_rec` on the left, as the superuser.
pub fn retry(fixture: &Fixture, id: i64) -> bool {
    fixture
        .left
        .query_one(&format!("select retry_sync_err_rec({id})"))
}

/// Discards a change.
pub fn discard(fixture: &Fixture, id: i64) {
    fixture
        .left
        .exec_superuser(&format!("delete from sync_err_rec where id = {id}"));
}

/// How many records have ever been queued on the left; a rolled-back one may count too.
pub fn ever_queued(fixture: &Fixture) -> i64 {
    fixture
        .left
        .query_one("select case when is_called then last_value else 0 end from sync_queue_id_seq")
}

/// Runs statements whose changes must not touch the queue.
#[track_caller]
pub fn goes_directly(fixture: &Fixture, client: &mut Client, sql: &str) {
    let before = ever_queued(fixture);
    run(client, sql);
    assert_eq!(
        ever_queued(fixture),
        before,
        "queued: {sql}: {:?}",
        standing(fixture)
    );
}

/// Runs statements whose changes must all wait, and only there, behind this record.
#[track_caller]
pub fn waits_behind(fixture: &Fixture, client: &mut Client, sql: &str, failing: i64) {
    let before = ever_queued(fixture);
    run(client, sql);
    let new = format!("select distinct status, waits_for from sync_err_rec where id > {before}");
    assert_eq!(
        rows(&fixture.left, &new),
        [format!("waiting|{failing}")],
        "{sql}"
    );
}

/// Retries what is marked failed, oldest first, and drains; nothing where a worker is at it.
pub fn retry_once(fixture: &Fixture) {
    failed(fixture).into_iter().for_each(|id| {
        retry(fixture, id);
    });
    deal(fixture, "1000000");
}

/// Retries what is marked failed until nothing is left. For when every cause is gone, and without a worker.
#[track_caller]
pub fn retry_all(fixture: &Fixture) {
    for _ in 0..10 {
        retry_once(fixture);
        if queued(fixture) == 0 {
            return;
        }
    }
    let why = "select id, op, status, waits_for, sqlstate, message, dst_query from sync_err_rec order by id";
    panic!(
        "still there after ten rounds: {:#?}",
        query(&mut fixture.left.superuser(), why)
    );
}
