//! How far this session is with a long call, where the server keeps that for VACUUM and its like: in the
//! session's entry of the status that all sessions show. So it needs no preload, and no way in which a call can
//! end leaves it behind: the server takes it away when a transaction or savepoint is rolled back and when the
//! session ends.
//!
//! A command of the server's own that runs meanwhile, in a function of the user's for one, takes the place; so does
//! a savepoint that is rolled back. The next [`Reported::set`] takes it again.

use super::{Oid, compat, database};
use pgrx::pg_sys;
use std::ffi::{CStr, CString};

/// Numbers that are kept of a call.
pub const NUMBERS: usize = 11;

/// What a call says of itself.
pub type Numbers = [i64; NUMBERS];

/// Tells these calls from the server's own commands, whose numbers are small: "rows".
const COMMAND: pg_sys::ProgressCommandType::Type = 0x726f_7773;

/// A call that is shown until this is dropped.
pub struct Reported {
    table: Oid,
    /// A command of the server's own that makes the call.
    before: Option<Entry>,
    /// What `pg_stat_activity` has shown as the session's query, once something else is shown.
    query: Option<CString>,
}

/// A call that is under way in some session of this database.
pub struct RunningCommand {
    pub pid: i32,
    pub table: Oid,
    pub numbers: Numbers,
}

/// What the server keeps of a command.
struct Entry {
    command: pg_sys::ProgressCommandType::Type,
    target: Oid,
    params: [i64; pg_sys::PGSTAT_NUM_PROGRESS_PARAM as usize],
}

impl Reported {
    /// A call about a table.
    pub fn begin(table: Oid) -> Self {
        let before = own()
            .filter(|own| own.command != pg_sys::ProgressCommandType::PROGRESS_COMMAND_INVALID);
        Self {
            table,
            before,
            query: None,
        }
    }

    /// Shows these numbers.
    pub fn set(&self, numbers: &Numbers) {
        show(COMMAND, self.table, numbers);
    }

    /// Shows in `pg_stat_activity` what the call does, before the query that has made it.
    pub fn set_phase(&mut self, phase: &str) {
        let Some(query) = self.query.take().or_else(own_query) else {
            return;
        };
        let text = [phase.as_bytes(), b": ", query.as_bytes()].concat();
        if let Ok(text) = CString::new(text) {
            show_query(&text);
        }
        self.query = Some(query);
    }
}

/// The query of this session as `pg_stat_activity` shows it; none where sessions do not show theirs.
fn own_query() -> Option<CString> {
    // SAFETY: null, or the session's entry in shared memory, whose text ends with zero and which this session alone
    // writes.
    let query = unsafe {
        let own = pg_sys::MyBEEntry.as_ref()?;
        if own.st_state != pg_sys::BackendState::STATE_RUNNING || own.st_activity_raw.is_null() {
            return None;
        }
        CStr::from_ptr(own.st_activity_raw)
    };
    Some(query.to_owned())
}

fn show_query(text: &CStr) {
    // SAFETY: writes the session's own entry, and raises nothing; the text is copied. A new text has no identifier: it
    // is still that of the query.
    unsafe {
        let identifier = pg_sys::pgstat_get_my_query_id();
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, text.as_ptr());
        pg_sys::pgstat_report_query_id(identifier, true);
    }
}

impl Drop for Reported {
    fn drop(&mut self) {
        if let Some(query) = &self.query {
            show_query(query);
        }
        match &self.before {
            Some(before) => show(before.command, before.target, &before.params),
            // SAFETY: writes the session's own entry, and raises nothing.
            None => unsafe { pg_sys::pgstat_progress_end_command() },
        }
    }
}

/// The entry of this session, of which it alone is the writer.
fn own() -> Option<Entry> {
    // SAFETY: null, or the session's entry in shared memory, which stays there while it lives.
    let own = unsafe { pg_sys::MyBEEntry.as_ref() }?;
    Some(Entry {
        command: own.st_progress_command,
        target: own.st_progress_command_target,
        params: own.st_progress_param,
    })
}

fn show(command: pg_sys::ProgressCommandType::Type, target: Oid, numbers: &[i64]) {
    let is_shown = own().is_some_and(|own| own.command == command && own.target == target);
    let mut places = [0; pg_sys::PGSTAT_NUM_PROGRESS_PARAM as usize];
    (0..).zip(&mut places).for_each(|(at, place)| *place = at);
    // SAFETY: writes the session's own entry, which has room for as many numbers as there are places, and raises
    // nothing.
    unsafe {
        if !is_shown {
            pg_sys::pgstat_progress_start_command(command, target);
        }
        pg_sys::pgstat_progress_update_multi_param(
            numbers.len().min(places.len()) as i32,
            places.as_ptr(),
            numbers.as_ptr(),
        );
    }
}

/// All calls that are under way in this database. As all views of sessions, what one transaction sees of it stays
/// the same.
pub fn running() -> Vec<RunningCommand> {
    let mut found = Vec::new();
    // SAFETY: the numbers are those of this session's copy of all entries, which lives until the transaction's end.
    let count = unsafe { pg_sys::pgstat_fetch_stat_numbackends() };
    for number in 1..=count {
        // SAFETY: as above.
        let Some(entry) = (unsafe { compat::session_status(number).as_ref() }) else {
            continue;
        };
        let status = &entry.backendStatus;
        if status.st_progress_command != COMMAND || status.st_databaseid != database::current() {
            continue;
        }
        let mut numbers = [0; NUMBERS];
        numbers.copy_from_slice(&status.st_progress_param[..NUMBERS]);
        found.push(RunningCommand {
            pid: status.st_procpid,
            table: status.st_progress_command_target,
            numbers,
        });
    }
    found
}
