//! The answers to the statements of one run. The server may be anyone's: what it sends is held against
//! what was asked, its volume is bounded, and nothing of it is kept beyond a measure.

use crate::conflict::Tally;
use crate::error::{RemoteError, SqlState};
use crate::pq::{Connection, ReplyStatus};
use crate::sql::Conflicts;
use crate::sql::marks::{
    COARSER_MARK, EXISTS_MARK, MISSING_MARK, RACE_MARK, TWICE_MARK, TYPES_MARK,
};
use std::collections::VecDeque;

/// What a server may send without completing an answer. The longest honest ones tell of 5,000 conflicts,
/// with their keys.
const LONGEST_ANSWER: u64 = 8 * 1024 * 1024;
/// Rows, and bytes of rows, that are kept of answers that are not about conflicts.
const MOST_ROWS: usize = 1_000;
const MOST_BYTES: usize = 256 * 1024;
/// Bytes of a row that is kept all the same if it is the last.
const SHORT: usize = 256;

pub const BROKE_PROTOCOL: &str = "The server broke the protocol.";
pub const SENDS_TOO_MUCH: &str = "The server sends more than it was asked for.";

/// What an answer is about.
enum Expected {
    /// How it tells conflicts.
    Conflicts(Conflicts),
    /// A transaction that may write begins.
    Begin,
    Introduction,
}

/// The answers to the statements of one run: what is still expected, and what has come.
#[derive(Default)]
pub struct Answers {
    /// How many are still to come: one a statement, one for the end of the pipeline.
    outstanding: usize,
    /// The last of them is the one for the end.
    end_expected: bool,
    /// The end was answered with an error: a commit that failed.
    end_failed: bool,
    /// What the answers still to come are about, oldest first.
    expected: VecDeque<Expected>,
    /// What the server said when it was introduced.
    introduction: Option<String>,
    /// A statement was refused while the one that commits was still to be answered: nothing is committed.
    refused: bool,
    /// The session was ended before the statement that commits was answered, since it was idle.
    ended_idle: bool,
    conflicts: Tally,
    /// The answer being read has begun: a null result ends it.
    begun: bool,
    /// The last of `kept` is of the answer being read.
    keeping: bool,
    kept: Vec<Vec<Option<String>>>,
    kept_rows: usize,
    kept_bytes: usize,
    /// The last row that was not kept, where it is short: what is asked last is known however much came before.
    beyond: Option<String>,
    /// Bytes of rows that are kept, where that is not [`MOST_BYTES`].
    room: Option<usize>,
    failure: Option<RemoteError>,
    /// What the connection had heard at the last look after which an answer was complete and others were not,
    /// or at the first look; none before.
    heard: Option<u64>,
    /// Statements were sent or answers taken since [`Connection::watch`] was called, for which this process
    /// may have grown.
    has_grown: bool,
}

impl Answers {
    /// Empty ones of which so many bytes of rows are kept.
    pub fn with_room(room: Option<usize>) -> Self {
        Self {
            room,
            ..Self::default()
        }
    }

    /// A statement was sent, whose answer tells conflicts in this way.
    pub fn push_expected(&mut self, conflicts: Conflicts) {
        self.push(Expected::Conflicts(conflicts));
    }

    /// A statement was sent that begins a transaction.
    pub fn push_begin(&mut self) {
        self.push(Expected::Begin);
    }

    /// The statement was sent that introduces the transaction.
    pub fn push_introduction(&mut self) {
        self.push(Expected::Introduction);
    }

    fn push(&mut self, expected: Expected) {
        self.expected.push_back(expected);
        self.outstanding += 1;
        self.has_grown = true;
    }

    /// Takes out what the server said when it was introduced.
    pub fn take_introduction(&mut self) -> Option<String> {
        self.introduction.take()
    }

    /// Whether the server has refused a statement before the one that commits was answered, so that nothing
    /// can have been committed.
    pub fn are_refusal(&self) -> bool {
        self.refused
    }

    /// Whether the session was ended before any of this came to it, so that nothing can have been committed.
    pub fn are_of_ended_session(&self) -> bool {
        self.ended_idle
    }

    /// The end of the pipeline was sent.
    pub fn expect_end(&mut self) {
        self.end_expected = true;
        self.outstanding += 1;
    }

    /// Whether nothing was sent that is not answered.
    pub fn are_complete(&self) -> bool {
        self.outstanding == 0
    }

    /// Takes out the first error that the server reported.
    pub fn take_failure(&mut self) -> Option<RemoteError> {
        self.failure.take()
    }

    /// Takes out the conflicts reported so far.
    pub fn take_conflicts(&mut self) -> Tally {
        std::mem::take(&mut self.conflicts)
    }

    /// The first column of each answer that had rows and was not about conflicts; of a longer one, the
    /// first rows.
    pub fn rows(&self) -> &[Vec<Option<String>>] {
        &self.kept
    }

    /// The first column of the last row that was not about conflicts.
    pub fn last_value(&self) -> Option<&str> {
        let kept = || self.kept.last().and_then(|rows| rows.last());
        self.beyond.as_deref().or_else(|| kept()?.as_deref())
    }

    /// Reads what has arrived; says whether an answer was completed.
    ///
    /// # Errors
    /// Why the connection is of no use any more.
    pub fn read(&mut self, connection: &mut Connection, server: &str) -> Result<bool, String> {
        if self.are_complete() {
            return Ok(false);
        }
        let before = self.outstanding;
        if std::mem::take(&mut self.has_grown) {
            connection.watch();
        }
        // Most often the first look comes before the answer.
        let is_quiet = connection.is_quiet();
        let arrived = connection.consume();
        while self.outstanding > 0 && !connection.is_busy() {
            if !self.take(connection, server)? || !connection.is_up() {
                break;
            }
        }
        connection.forget_notifications();
        let progressed = self.outstanding < before;
        if !arrived || !connection.is_up() {
            return Err(connection.message());
        }
        if self.outstanding > 0 && !is_quiet {
            let heard = connection.heard();
            let before = self.heard.filter(|_| !progressed);
            let unanswered = heard.saturating_sub(*self.heard.insert(before.unwrap_or(heard)));
            if unanswered > LONGEST_ANSWER || connection.is_swollen() {
                return Err(SENDS_TOO_MUCH.to_owned());
            }
        }
        Ok(progressed)
    }

    /// Takes what is next; false if there is nothing to take.
    fn take(&mut self, connection: &mut Connection, server: &str) -> Result<bool, String> {
        let at_end = self.end_expected && self.outstanding == 1;
        let Some(reply) = connection.reply() else {
            match (self.begun, at_end) {
                // The commit failed; the end of the pipeline is still to come.
                (true, true) => self.end_failed = true,
                (true, false) => self.complete(),
                // Not with every libpq: some take the error for the end.
                (false, _) if self.end_failed => self.complete(),
                (false, _) => return Ok(false),
            }
            self.begun = false;
            return Ok(true);
        };
        self.begun = true;
        self.has_grown = true;
        match reply.status() {
            ReplyStatus::Row if !at_end => self.take_row(reply.first_column()),
            ReplyStatus::Done if !at_end => match self.expected.front() {
                Some(Expected::Conflicts(Conflicts::NoneFound)) if reply.affected() == 0 => {
                    let state = SqlState::NO_DATA_FOUND;
                    let message = not_found(server);
                    self.failure
                        .get_or_insert_with(|| RemoteError::of_answer(server, state, message));
                }
                Some(Expected::Conflicts(telling)) => {
                    telling.take_tag(reply.affected(), &mut self.conflicts);
                }
                _ => {}
            },
            ReplyStatus::Skipped => {}
            // The server may have said that it has committed.
            ReplyStatus::Failed if reply.is_made_up() && connection.is_up() => {
                return Err(reply.error(server).message);
            }
            ReplyStatus::Failed => {
                self.refused |= self.outstanding > 1 && reply.is_refusal();
                self.ended_idle |= self.outstanding > 1 && reply.ends_idle_session();
                let mut error = explained(reply.error(server));
                // A standby refuses to begin before it could refuse to write.
                if matches!(self.expected.front(), Some(Expected::Begin))
                    && error.sqlstate == SqlState::FEATURE_NOT_SUPPORTED
                {
                    error.sqlstate = SqlState::READ_ONLY;
                }
                self.failure.get_or_insert(error);
            }
            ReplyStatus::Synced if at_end => {
                self.complete();
                self.begun = false;
            }
            // The answer to something else, or one that our statements cannot have.
            ReplyStatus::Row
            | ReplyStatus::Done
            | ReplyStatus::Synced
            | ReplyStatus::CopyIn
            | ReplyStatus::Unexpected => {
                return Err(BROKE_PROTOCOL.to_owned());
            }
        }
        Ok(true)
    }

    fn complete(&mut self) {
        self.outstanding -= 1;
        self.expected.pop_front();
        self.keeping = false;
    }

    fn take_row(&mut self, row: Option<String>) {
        match self.expected.front() {
            Some(Expected::Introduction) => {
                self.introduction = row;
                return;
            }
            Some(Expected::Conflicts(telling))
                if telling.take_row(row.as_deref(), &mut self.conflicts) =>
            {
                return;
            }
            _ => {}
        }
        self.kept_rows += 1;
        self.kept_bytes += row.as_ref().map_or(0, String::len);
        if self.kept_rows > MOST_ROWS || self.kept_bytes > self.room.unwrap_or(MOST_BYTES) {
            self.beyond = row.filter(|row| row.len() <= SHORT);
            return;
        }
        match self.kept.last_mut().filter(|_| self.keeping) {
            Some(rows) => rows.push(row),
            None => self.kept.push(vec![row]),
        }
        self.keeping = true;
    }
}

fn not_found(server: &str) -> String {
    format!("row to update or delete was not found on server \"{server}\"")
}

/// The error that a statement of ours provoked, in words of its own.
fn explained(mut error: RemoteError) -> RemoteError {
    if error.sqlstate == SqlState::INVALID_TEXT && error.message.contains(RACE_MARK) {
        error.sqlstate = SqlState::SERIALIZATION_FAILURE;
        error.message = format!("row is being changed on server \"{}\"", error.server);
        error.context = None;
    }
    if error.sqlstate == SqlState::INVALID_TEXT && error.message.contains(TWICE_MARK) {
        error.sqlstate = SqlState::CARDINALITY_VIOLATION;
        error.message = format!(
            "keys that differ here are equal on server \"{}\"",
            error.server
        );
        error.context = None;
    }
    if error.sqlstate == SqlState::INVALID_TEXT && error.message.contains(TYPES_MARK) {
        error.sqlstate = SqlState::DATATYPE_MISMATCH;
        error.message = format!("column types have changed on server \"{}\"", error.server);
        error.context = None;
    }
    if error.sqlstate == SqlState::INVALID_TEXT
        && let Some((_, columns)) = error.message.split_once(COARSER_MARK)
    {
        let columns = columns.strip_suffix('"').unwrap_or(columns);
        error.message = format!(
            "key or version of the target is coarser than here on server \"{}\": {columns}",
            error.server
        );
        error.sqlstate = SqlState::DATATYPE_MISMATCH;
        error.context = None;
    }
    if error.sqlstate == SqlState::INVALID_TEXT && error.message.contains(EXISTS_MARK) {
        error.sqlstate = SqlState::UNIQUE_VIOLATION;
        error.message = format!(
            "row to insert is there already on server \"{}\"",
            error.server
        );
        error.context = None;
    }
    if error.sqlstate == SqlState::INVALID_TEXT && error.message.contains(MISSING_MARK) {
        error.sqlstate = SqlState::NO_DATA_FOUND;
        error.message = not_found(&error.server);
        error.context = None;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_rows_not_about_conflicts_the_first_are_kept() {
        let mut answers = Answers::default();
        for number in 0..3 {
            answers.push_expected(Conflicts::Never);
            for _ in 0..number * 900 {
                answers.take_row(Some("x".to_owned()));
            }
            answers.complete();
        }
        let lengths: Vec<usize> = answers.rows().iter().map(Vec::len).collect();
        assert_eq!(lengths, [900, MOST_ROWS - 900]);
        let mut answers = Answers::default();
        answers.push_expected(Conflicts::Never);
        for _ in 0..3 {
            answers.take_row(Some("x".repeat(MOST_BYTES / 2)));
        }
        assert_eq!(answers.rows()[0].len(), 2);
        answers.take_row(Some("last".to_owned()));
        assert_eq!(answers.last_value(), Some("last"));
    }
}
