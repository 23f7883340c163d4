//! Steps and looks of tests about records that are set aside.

use postgres::Client;
use rowsync_harness::Testbed;

use crate::common::{deal, query, queued, rows, run};

/// `op|status|waits_for` of the records on the left, oldest first.
pub fn standing(bed: &Testbed) -> Vec<String> {
    rows(&bed.left, "select op, status, waits_for from sync_err_rec order by id")
}

/// The records set aside, oldest first.
pub fn failed(bed: &Testbed) -> Vec<i64> {
    ids(bed, "status = 'failed'")
}

/// The one record that is set aside.
#[track_caller]
pub fn the_failed(bed: &Testbed) -> i64 {
    let failed = failed(bed);
    assert_eq!(failed.len(), 1, "{:?}", standing(bed));
    failed[0]
}

/// Records that fulfil a condition.
pub fn ids(bed: &Testbed, condition: &str) -> Vec<i64> {
    let found =
        rows(&bed.left, &format!("select id from sync_err_rec where {condition} order by id"));
    found.iter().map(|id| id.parse().expect("a number")).collect()
}

/// How many records there are of each status: pending, failed, waiting.
pub fn counts(bed: &Testbed) -> (i64, i64, i64) {
    let row = bed.left.superuser().query_one(
        "select count(*) filter (where status = 'pending'),
                count(*) filter (where status = 'failed'),
                count(*) filter (where status = 'waiting') from sync_err_rec",
        &[],
    );
    let row = row.expect("counts");
    (row.get(0), row.get(1), row.get(2))
}

/// `retry_sync_err_rec` on the left, as the superuser.
pub fn retry(bed: &Testbed, id: i64) -> bool {
    bed.left.query_one(&format!("select retry_sync_err_rec({id})"))
}

/// Discards a change.
pub fn discard(bed: &Testbed, id: i64) {
    bed.left.exec_superuser(&format!("delete from sync_err_rec where id = {id}"));
}

/// How many records have ever been queued on the left; a rolled-back one may count too.
pub fn ever_queued(bed: &Testbed) -> i64 {
    bed.left
        .query_one("select case when is_called then last_value else 0 end from sync_queue_id_seq")
}

/// Runs statements whose changes must not touch the queue.
#[track_caller]
pub fn goes_directly(bed: &Testbed, client: &mut Client, sql: &str) {
    let before = ever_queued(bed);
    run(client, sql);
    assert_eq!(ever_queued(bed), before, "queued: {sql}: {:?}", standing(bed));
}

/// Runs statements whose changes must all wait, and only there, behind this record.
#[track_caller]
pub fn waits_behind(bed: &Testbed, client: &mut Client, sql: &str, poison: i64) {
    let before = ever_queued(bed);
    run(client, sql);
    let new = format!("select distinct status, waits_for from sync_err_rec where id > {before}");
    assert_eq!(rows(&bed.left, &new), [format!("waiting|{poison}")], "{sql}");
}

/// Retries what is set aside, oldest first, and drains; nothing where a worker is at it.
pub fn retry_once(bed: &Testbed) {
    failed(bed).into_iter().for_each(|id| {
        retry(bed, id);
    });
    deal(bed, "1000000");
}

/// Retries what is set aside until nothing is left. For when every cause is gone, and without a worker.
#[track_caller]
pub fn retry_all(bed: &Testbed) {
    for _ in 0..10 {
        retry_once(bed);
        if queued(bed) == 0 {
            return;
        }
    }
    let why = "select id, op, status, waits_for, sqlstate, message, dst_query from sync_err_rec order by id";
    panic!("still there after ten rounds: {:#?}", query(&mut bed.left.superuser(), why));
}
