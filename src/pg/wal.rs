//! The write-ahead log: flushed ahead of the commit that would wait for it, and where it is.

use super::{context, shmem};
use crate::error::{Error, Result, SqlState};
use pgrx::pg_sys;
use std::sync::atomic::Ordering::Relaxed;

/// Bytes for which it is worth another flush.
const MUCH: u64 = 512 * 1024;

/// Flushes what the transaction has logged so far, if that is much and its commit is going to wait for it
/// anyway: called while other servers work, it leaves little to be flushed then.
pub fn flush_ahead() {
    // SAFETY: plain reads of variables of this backend, and what a commit does a moment later.
    unsafe {
        let end = pg_sys::XactLastRecEnd;
        let waits =
            pg_sys::synchronous_commit > pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32;
        if waits && end.saturating_sub(pg_sys::GetFlushRecPtr(std::ptr::null_mut())) > MUCH {
            pg_sys::XLogFlush(end);
        }
    }
}

/// Whether this is a standby, or is becoming a primary.
pub fn is_in_recovery() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// Timeline, and a position up to which it is on disk: no crash takes the server back to before that.
///
/// # Errors
/// As for [`end`].
pub fn place() -> Result<(u32, u64)> {
    let (timeline, end) = end()?;
    let page = u64::from(pg_sys::XLOG_BLCKSZ);
    // Whole pages are flushed in the background, in the middle of a record too, of which recovery makes nothing.
    let is_page = end.is_multiple_of(page);
    Ok((timeline, if is_page { end - page } else { end }))
}

/// Timeline, and the position up to which it has been written to disk.
///
/// # Errors
/// 25006 while recovery goes on: a standby has neither.
fn end() -> Result<(u32, u64)> {
    // SAFETY: reads shared memory; recovery is over.
    unsafe {
        if pg_sys::RecoveryInProgress() {
            let message = "recovery is in progress";
            return Err(Error::local(SqlState::new("25006"), message));
        }
        Ok((
            pg_sys::GetWALInsertionTimeLine(),
            pg_sys::GetFlushRecPtr(std::ptr::null_mut()),
        ))
    }
}

/// Where the log ended when this server was started: at what the first checkpoint began with that was there then.
/// Whoever asks first finds it out, which is the launcher where the library is preloaded; without it, a checkpoint
/// that has come since makes it a later place.
pub fn started_at() -> u64 {
    let known = shmem::started_at();
    if let Some(place) = known.map(|known| known.load(Relaxed)).filter(|at| *at != 0) {
        return place;
    }
    // SAFETY: reads shared memory.
    let place = unsafe { pg_sys::GetRedoRecPtr() };
    let first = known.and_then(|known| known.compare_exchange(0, place, Relaxed, Relaxed).err());
    first.unwrap_or(place)
}

/// Whether a place is in the past of this server: it was at that position of that timeline, in the run that had
/// `started` then. Of a server that has gone on from a backup, or from a standby that was behind, it may not be.
/// One whose files were replaced by an older copy goes on under the same timeline and comes to that position
/// once more: so the place of another run must be before the current one began.
///
/// # Errors
/// As for [`place`].
pub fn is_in_history((timeline, position): (u32, u64), started: i64) -> Result<bool> {
    let (current, end) = end()?;
    if timeline == current {
        let is_of_this_run = started == context::cluster_start();
        return Ok(position <= end && (is_of_this_run || position <= started_at()));
    }
    // The working directory of every server process is the data directory.
    let file = format!("pg_wal/{current:08X}.history");
    let history = std::fs::read_to_string(file).unwrap_or_default();
    let left = switch_points(&history).find(|(parent, _)| *parent == timeline);
    Ok(left.is_some_and(|(_, end)| position <= end))
}

/// The timelines of a history file, each with the position at which it was left.
fn switch_points(history: &str) -> impl Iterator<Item = (u32, u64)> + '_ {
    history.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let timeline = words.next()?.parse().ok()?;
        let (high, low) = words.next()?.split_once('/')?;
        let high = u64::from(u32::from_str_radix(high, 16).ok()?);
        Some((
            timeline,
            high << 32 | u64::from(u32::from_str_radix(low, 16).ok()?),
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::switch_points;

    #[test]
    fn the_places_where_timelines_were_left_are_read() {
        let file = "# a comment\n1\t0/3000148\tno recovery target specified\n\n2\t1/A0\tx\n";
        let expected = [(1, 0x0300_0148), (2, 0x1_0000_00A0)];
        assert_eq!(switch_points(file).collect::<Vec<_>>(), expected);
    }
}
