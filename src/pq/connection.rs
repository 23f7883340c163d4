//! A non-blocking connection. Closed on drop, which never raises.
//!
//! Callers wait on [`Connection::socket`], read afresh before every wait: libpq may open another
//! socket while it goes through the hosts of a connection string.

use super::environment::without_options;
use super::reply::Reply;
use super::{memory, socket, text};
use crate::error::SqlState;
use crate::sql::{Param, Statement, Verb};
use pq_sys::{
    ConnStatusType, PGTransactionStatusType, PGVerbosity, PGconn, PGresult, PQbackendPID,
    PQconnectPoll, PQconnectStartParams, PQconnectionUsedPassword, PQconsumeInput,
    PQenterPipelineMode, PQerrorMessage, PQfinish, PQflush, PQfreemem, PQgetResult, PQisBusy,
    PQnotifies, PQparameterStatus, PQpipelineSync, PQsendFlushRequest, PQsendPrepare,
    PQsendQueryParams, PQsendQueryPrepared, PQserverVersion, PQsetErrorVerbosity,
    PQsetNoticeReceiver, PQsetSingleRowMode, PQsetnonblocking, PQsocket, PQstatus,
    PQtransactionStatus, PostgresPollingStatusType,
};
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::NonNull;

/// Progress of connecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polling {
    /// Wait until the socket can be read, then poll again.
    Read,
    /// Wait until the socket can be written, then poll again.
    Write,
    Connected,
    Failed,
}

/// A libpq connection.
pub struct Connection {
    conn: NonNull<PGconn>,
    /// Size of the process when libpq was last made to read.
    size: Option<u64>,
    /// See [`Connection::had_heard`].
    heard: u64,
}

/// By how much the process may grow while libpq reads. It makes room for a message as soon as its length
/// is known, rounded up to a power of two, and then takes in what comes, in one go if it comes fast
/// enough: so this is a message of more than 8 MB.
const SWOLLEN: u64 = 12 * 1024 * 1024;

/// What libpq or the server says outside of results goes nowhere: a NOTICE of a remote trigger is
/// none of the local client's business, and stderr is the server's log.
unsafe extern "C" fn ignore_notice(_arg: *mut c_void, _result: *const PGresult) {}

impl Connection {
    /// Begins to connect, with a keyword and value each. The database name is taken as it is, never
    /// as a connection string, and nothing from the environment. Name resolution may block; everything after
    /// it does not. `None` when memory is out.
    pub fn start<'p>(params: impl Iterator<Item = &'p (CString, CString)>) -> Option<Self> {
        let end = std::ptr::null::<c_char>();
        let (mut keywords, mut values): (Vec<*const c_char>, Vec<*const c_char>) = params
            .map(|(keyword, value)| (keyword.as_ptr(), value.as_ptr()))
            .unzip();
        keywords.push(end);
        values.push(end);
        // SAFETY: two null-terminated arrays of C strings, which outlive the call that copies them.
        unsafe {
            let conn =
                without_options(|| PQconnectStartParams(keywords.as_ptr(), values.as_ptr(), 0));
            let conn = Self {
                conn: NonNull::new(conn)?,
                size: None,
                heard: 0,
            };
            PQsetNoticeReceiver(conn.raw(), Some(ignore_notice), std::ptr::null_mut());
            // Makes libpq write the SQLSTATE into the message of a refused connection, the only
            // way to learn it; see connect_error().
            PQsetErrorVerbosity(conn.raw(), PGVerbosity::PQERRORS_VERBOSE);
            // While connecting, too: else libpq waits, without bound, for a server that asks for
            // passwords without reading any.
            PQsetnonblocking(conn.raw(), 1);
            Some(conn)
        }
    }

    pub(super) fn raw(&self) -> *mut PGconn {
        self.conn.as_ptr()
    }

    /// One step of connecting.
    pub fn poll(&mut self) -> Polling {
        self.watch();
        // SAFETY: a live connection that is being established.
        match without_options(|| unsafe { PQconnectPoll(self.raw()) }) {
            PostgresPollingStatusType::PGRES_POLLING_OK => Polling::Connected,
            PostgresPollingStatusType::PGRES_POLLING_READING => Polling::Read,
            PostgresPollingStatusType::PGRES_POLLING_WRITING => Polling::Write,
            _ => Polling::Failed,
        }
    }

    /// After connecting: pipelined. False when libpq refuses.
    pub fn pipelined(&mut self) -> bool {
        // SAFETY: a live connection with nothing in progress.
        unsafe { PQsetnonblocking(self.raw(), 1) == 0 && PQenterPipelineMode(self.raw()) == 1 }
    }

    /// Bytes that libpq has read from its present socket, whatever they were; 0 where the kernel does
    /// not tell, as for a local socket.
    pub fn heard(&mut self) -> u64 {
        self.heard = socket::taken(self.socket()).unwrap_or(0);
        self.heard
    }

    /// What [`Connection::heard`] said last.
    pub fn had_heard(&self) -> u64 {
        self.heard
    }

    /// Whether what was read since [`Connection::watch`] begins a message that is too long to be read.
    pub fn is_swollen(&self) -> bool {
        let grown = |(before, now): (u64, u64)| now.saturating_sub(before);
        self.size
            .zip(memory::size())
            .map(grown)
            .is_some_and(|grown| grown > SWOLLEN)
    }

    /// The socket to wait for, -1 if there is none.
    pub fn socket(&self) -> i32 {
        // SAFETY: a live connection.
        unsafe { PQsocket(self.raw()) }
    }

    /// Whether it is up and nothing has come, not even its end.
    pub fn is_quiet(&self) -> bool {
        self.is_up() && socket::is_quiet(self.socket())
    }

    /// Whether libpq thinks it is connected.
    pub fn is_up(&self) -> bool {
        // SAFETY: a live connection.
        unsafe { PQstatus(self.raw()) == ConnStatusType::CONNECTION_OK }
    }

    /// Whether connecting has failed, or the connection has.
    pub fn has_failed(&self) -> bool {
        // SAFETY: a live connection.
        unsafe { PQstatus(self.raw()) == ConnStatusType::CONNECTION_BAD }
    }

    /// Whether the open transaction has failed: all that a COMMIT would do is roll it back.
    pub fn is_aborted(&self) -> bool {
        // SAFETY: a live connection.
        unsafe { PQtransactionStatus(self.raw()) == PGTransactionStatusType::PQTRANS_INERROR }
    }

    /// Whether no transaction is open on the server.
    pub fn is_idle(&self) -> bool {
        // SAFETY: a live connection.
        unsafe { PQtransactionStatus(self.raw()) == PGTransactionStatusType::PQTRANS_IDLE }
    }

    /// Whether the server still takes what it is sent for UTF-8: a trigger may have told its session otherwise.
    pub fn speaks_utf8(&self) -> bool {
        // SAFETY: a live connection; the value is null or a C string that lives until the server sends another.
        unsafe {
            let value = PQparameterStatus(self.raw(), c"client_encoding".as_ptr());
            !value.is_null() && CStr::from_ptr(value) == c"UTF8"
        }
    }

    /// The server's version as a number, 150004 for 15.4; 0 if it has told none.
    pub fn server_version(&self) -> u32 {
        // SAFETY: a live connection.
        let version = unsafe { PQserverVersion(self.raw()) };
        u32::try_from(version).unwrap_or(0)
    }

    /// Process ID of the server's backend.
    pub fn backend_pid(&self) -> i32 {
        // SAFETY: a live connection.
        unsafe { PQbackendPID(self.raw()) }
    }

    /// Whether the server asked for a password and got one.
    pub fn used_password(&self) -> bool {
        // SAFETY: a live connection.
        unsafe { PQconnectionUsedPassword(self.raw()) == 1 }
    }

    /// libpq's last message, without its trailing newline, cut to a length fit for a log.
    pub fn message(&self) -> String {
        // SAFETY: a live connection; the message is a C string, copied at once.
        let message = unsafe { CStr::from_ptr(PQerrorMessage(self.raw())) };
        text::sanitize(message)
    }

    /// Why connecting failed: the server's SQLSTATE if it gave one, and the message.
    pub fn connect_error(&self) -> (SqlState, String) {
        split_verbose(&self.message())
    }

    /// Hands a statement to libpq, which copies it.
    ///
    /// # Errors
    /// libpq's message.
    pub fn send(&mut self, statement: &Statement) -> Result<(), String> {
        let c = |text: &str| CString::new(text).map_err(|e| e.to_string());
        let text = c(&statement.text)?;
        let params = (statement.params.iter())
            .map(|param| match param {
                Param::Text(text) => c(text).map(Some),
                Param::Null | Param::Binary { .. } => Ok(None),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let values: Vec<*const c_char> = (statement.params.iter().zip(&params))
            .map(|(param, text)| match (param, text) {
                (Param::Binary { bytes, .. }, _) => bytes.as_ptr().cast(),
                (_, Some(text)) => text.as_ptr(),
                (_, None) => std::ptr::null(),
            })
            .collect();
        // The type, the length and whether it is in binary form; all 0 for text.
        let binary = statement.params.iter().map(|param| match param {
            Param::Binary { array, bytes } => (*array, bytes.len() as i32, 1),
            Param::Null | Param::Text(_) => (0, 0, 0),
        });
        let (types, (lengths, formats)): (Vec<u32>, (Vec<i32>, Vec<i32>)) = binary
            .map(|(array, length, format)| (array, (length, format)))
            .unzip();
        let number = values.len() as i32;
        let values = values.as_ptr();
        let raw = self.raw();
        let none = std::ptr::null();
        // SAFETY: C strings, and bytes of the lengths said, that live through the call.
        let sent = unsafe {
            match &statement.verb {
                Verb::Query => PQsendQueryParams(
                    raw,
                    text.as_ptr(),
                    number,
                    types.as_ptr(),
                    values,
                    lengths.as_ptr(),
                    formats.as_ptr(),
                    0,
                ),
                Verb::Prepare(name) => {
                    PQsendPrepare(raw, c(name)?.as_ptr(), text.as_ptr(), 0, none)
                }
                Verb::Execute(name) => PQsendQueryPrepared(
                    raw,
                    c(name)?.as_ptr(),
                    number,
                    values,
                    lengths.as_ptr(),
                    formats.as_ptr(),
                    0,
                ),
            }
        };
        self.ok(sent)
    }

    /// Ends the pipeline: the server answers, and commits an implicit transaction.
    ///
    /// # Errors
    /// libpq's message.
    pub fn sync(&mut self) -> Result<(), String> {
        // SAFETY: a live connection in pipeline mode.
        let sent = unsafe { PQpipelineSync(self.raw()) };
        self.ok(sent)
    }

    /// Asks the server to send the answers it has, without ending the pipeline.
    ///
    /// # Errors
    /// libpq's message.
    pub fn request_flush(&mut self) -> Result<(), String> {
        // SAFETY: a live connection in pipeline mode.
        let sent = unsafe { PQsendFlushRequest(self.raw()) };
        self.ok(sent)
    }

    fn ok(&self, code: i32) -> Result<(), String> {
        if code == 1 {
            Ok(())
        } else {
            Err(self.message())
        }
    }

    /// Sends what it can without waiting; true when nothing is left.
    ///
    /// # Errors
    /// libpq's message, when the connection broke.
    pub fn flush(&mut self) -> Result<bool, String> {
        // SAFETY: a live connection.
        match unsafe { PQflush(self.raw()) } {
            0 => Ok(true),
            1 => Ok(false),
            _ => Err(self.message()),
        }
    }

    /// From now on [`Connection::is_swollen`] looks at what is read.
    pub fn watch(&mut self) {
        self.size = memory::size();
    }

    /// Reads what has arrived. False when the connection broke.
    pub fn consume(&mut self) -> bool {
        // SAFETY: a live connection.
        unsafe { PQconsumeInput(self.raw()) == 1 }
    }

    /// Whether taking the next reply would block.
    pub fn is_busy(&mut self) -> bool {
        // SAFETY: a live connection.
        unsafe {
            // libpq would collect all rows of an answer, however many the server makes up. Must be said
            // for each statement before its first row is read; elsewhere it is refused.
            PQsetSingleRowMode(self.raw());
            PQisBusy(self.raw()) == 1
        }
    }

    /// Frees the notifications that have come unasked for.
    pub fn forget_notifications(&mut self) {
        // SAFETY: a live connection; each notification is ours, freed once.
        unsafe {
            loop {
                let one = PQnotifies(self.raw());
                if one.is_null() {
                    return;
                }
                PQfreemem(one.cast());
            }
        }
    }

    /// The next reply; `None` after the last one of each statement. Only when not busy.
    pub fn reply(&mut self) -> Option<Reply> {
        // SAFETY: a live connection; the reply is ours.
        unsafe { Reply::from_raw(PQgetResult(self.raw())) }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: ours, closed once.
        unsafe { PQfinish(self.raw()) }
    }
}

/// Takes `28P01` out of `... FATAL:  28P01: password authentication failed\nLOCATION:  ...`, which
/// is how libpq writes a server's error in verbose form. Without one the failure is libpq's own:
/// 08001.
fn split_verbose(message: &str) -> (SqlState, String) {
    let lines: Vec<&str> = message
        .lines()
        .filter(|l| !l.starts_with("LOCATION:"))
        .collect();
    let text = lines.join("\n");
    let found = text.match_indices(":  ").find_map(|(at, separator)| {
        let code = text.get(at + separator.len()..at + separator.len() + 5)?;
        let ends = text.get(at + separator.len() + 5..)?.starts_with(": ");
        let is_code = code
            .bytes()
            .all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
        (ends && is_code).then(|| (at + separator.len(), SqlState::of_failure(code)))
    });
    match found {
        Some((at, state)) => (state, format!("{}{}", &text[..at], &text[at + 7..])),
        None => (SqlState::CANNOT_CONNECT, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz;
    use proptest::prelude::*;

    #[test]
    fn the_sqlstate_of_a_refused_connection_is_found_in_the_verbose_message() {
        let (state, text) = split_verbose(
            "connection to server at \"127.0.0.1\", port 5432 failed: FATAL:  28P01: password \
             authentication failed for user \"u\"\nLOCATION:  auth_failed, auth.c:330",
        );
        assert_eq!(state.as_str(), "28P01");
        assert!(text.ends_with("FATAL:  password authentication failed for user \"u\""));
    }

    #[test]
    fn a_failure_of_libpq_itself_is_08001() {
        let (state, text) = split_verbose("connection to server failed: Connection refused");
        assert_eq!(state, SqlState::CANNOT_CONNECT);
        assert_eq!(text, "connection to server failed: Connection refused");
    }

    #[test]
    fn whatever_a_refusal_says_its_sqlstate_is_one_of_a_failure() {
        let code = prop_oneof!["[0-9A-Z]{5}", "00[0-9]{3}", "[ -~]{5}", fuzz::text()];
        let message = (fuzz::text(), code, fuzz::text());
        fuzz::check(2_000, &message, |(before, code, after)| {
            let sanitize = format!("{before}FATAL:  {code}: {after}\nLOCATION:  auth.c");
            let (state, text) = split_verbose(&sanitize);
            prop_assert_eq!(SqlState::of_failure(state.as_str()), state, "{}", sanitize);
            prop_assert!(text.len() <= sanitize.len());
            Ok(())
        });
    }
}
