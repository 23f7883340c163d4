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

/// Timeline, and a position up to which it is on disk: no crash takes the server back to before that. It is behind
/// where this run of the server began, so that [`past`] can tell it from those of runs before.
///
/// # Errors
/// As for [`end`].
pub fn place() -> Result<(u32, u64)> {
    let (timeline, end) = end()?;
    let page = u64::from(pg_sys::XLOG_BLCKSZ);
    // Whole pages are flushed in the background, in the middle of a record too, of which recovery makes nothing.
    if !end.is_multiple_of(page) {
        return Ok((timeline, end));
    }
    // Nor to before the last checkpoint, with which a run begins, if no other comes. Of one that is under way that
    // is not so: should a crash take the server back so far, a person decides.
    // SAFETY: reads shared memory.
    let checkpoint = unsafe { pg_sys::GetRedoRecPtr() };
    Ok((timeline, (end - page).max((checkpoint + 1).min(end))))
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

/// Where the log ended when this server was started: of what was written before that, the server knows. The
/// postmaster finds out where an orderly stop has ended it, if the library is preloaded. The server itself
/// remembers where it has recovered from, after a crash or from a backup.
pub fn started_at() -> Option<u64> {
    let known = shmem::started_at().map(|known| known.load(Relaxed));
    if let Some(place) = known.filter(|at| *at != 0) {
        return Some(place);
    }
    let mut timeline = 0;
    // SAFETY: reads shared memory.
    let recovered = unsafe { pg_sys::GetXLogReplayRecPtr(&mut timeline) };
    (recovered != 0).then_some(recovered)
}

/// Remembers where the log ended that the server has recovered from, for the time after another recovery: that
/// which follows the crash of a session.
pub fn remember_start() {
    if let (Some(known), Some(place)) = (shmem::started_at(), started_at()) {
        let _ = known.compare_exchange(0, place, Relaxed, Relaxed);
    }
}

/// Whether a place is in the past of this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// It is.
    Known,
    /// It is not: the server has gone on from a backup, or from a standby that was behind.
    Another,
    /// It was before this run of the server, and where that began is not known.
    Unknown,
}

/// Whether the server was at that position of that timeline, in the run that had `started` then. One whose files
/// were replaced by an older copy goes on under the same timeline and comes to that position once more: so the
/// place of another run must be before the current one began. `stopped_at`: where the log ended at an orderly
/// stop, if that is what this run began with and nobody else knows.
///
/// # Errors
/// As for [`place`], and what `stopped_at` reports.
pub fn past(
    (timeline, position): (u32, u64),
    started: i64,
    stopped_at: impl FnOnce() -> Result<Option<u64>>,
) -> Result<Past> {
    let (current, end) = end()?;
    let is = |known: bool| if known { Past::Known } else { Past::Another };
    if timeline == current {
        if started == context::cluster_start() || position > end {
            return Ok(is(position <= end));
        }
        let began = match started_at() {
            None => stopped_at()?,
            known => known,
        };
        return Ok(began.map_or(Past::Unknown, |began| is(position <= began)));
    }
    // The working directory of every server process is the data directory.
    let file = format!("pg_wal/{current:08X}.history");
    let history = std::fs::read_to_string(file).unwrap_or_default();
    let left = switch_points(&history).find(|(parent, _)| *parent == timeline);
    Ok(is(left.is_some_and(|(_, end)| position <= end)))
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
