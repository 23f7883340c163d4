//! A result of one statement.

use super::text;
use crate::error::{RemoteError, SqlState};
use pq_sys::{
    ExecStatusType, PG_DIAG_COLUMN_NAME, PG_DIAG_CONSTRAINT_NAME, PG_DIAG_CONTEXT,
    PG_DIAG_MESSAGE_DETAIL, PG_DIAG_MESSAGE_HINT, PG_DIAG_MESSAGE_PRIMARY, PG_DIAG_SCHEMA_NAME,
    PG_DIAG_SEVERITY_NONLOCALIZED, PG_DIAG_SQLSTATE, PG_DIAG_TABLE_NAME, PGresult, PQclear,
    PQcmdTuples, PQgetisnull, PQgetvalue, PQnfields, PQntuples, PQresultErrorField,
    PQresultErrorMessage, PQresultStatus,
};
use std::ffi::CStr;
use std::ptr::NonNull;

/// What a result stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyStatus {
    /// A row of the statement's answer.
    Row,
    /// The statement was done.
    Done,
    /// The statement failed.
    Failed,
    /// Skipped because one before it failed.
    Skipped,
    /// The end of the pipeline was reached.
    Synced,
    /// A COPY takes data.
    CopyIn,
    /// Something that our statements cannot give.
    Unexpected,
}

/// A libpq result, cleared on drop.
pub struct Reply(NonNull<PGresult>);

impl Reply {
    /// Takes over a result; `None` for null.
    ///
    /// # Safety
    /// The result must come from libpq and be cleared by no one else.
    pub(super) unsafe fn from_raw(result: *mut PGresult) -> Option<Self> {
        NonNull::new(result).map(Self)
    }

    fn raw(&self) -> *mut PGresult {
        self.0.as_ptr()
    }

    /// What it stands for.
    pub fn status(&self) -> ReplyStatus {
        // SAFETY: a live result.
        match unsafe { PQresultStatus(self.raw()) } {
            ExecStatusType::PGRES_SINGLE_TUPLE => ReplyStatus::Row,
            ExecStatusType::PGRES_COMMAND_OK | ExecStatusType::PGRES_TUPLES_OK => ReplyStatus::Done,
            ExecStatusType::PGRES_FATAL_ERROR | ExecStatusType::PGRES_BAD_RESPONSE => {
                ReplyStatus::Failed
            }
            ExecStatusType::PGRES_PIPELINE_ABORTED => ReplyStatus::Skipped,
            ExecStatusType::PGRES_PIPELINE_SYNC => ReplyStatus::Synced,
            ExecStatusType::PGRES_COPY_IN => ReplyStatus::CopyIn,
            _ => ReplyStatus::Unexpected,
        }
    }

    /// The rows that the command tag counts; 0 for one without a count.
    pub fn affected(&self) -> u64 {
        // SAFETY: a live result; the count is a C string that lives with it, empty if there is none.
        let count = unsafe { CStr::from_ptr(PQcmdTuples(self.raw())) };
        count
            .to_str()
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(0)
    }

    /// The first column of the row; `None` for NULL, and where there is none.
    pub fn first_column(&self) -> Option<String> {
        // SAFETY: a live result; row and column numbers are within what it says it has.
        unsafe {
            let there = PQnfields(self.raw()) > 0 && PQntuples(self.raw()) > 0;
            (there && PQgetisnull(self.raw(), 0, 0) == 0).then(|| {
                let value = CStr::from_ptr(PQgetvalue(self.raw(), 0, 0));
                value.to_string_lossy().into_owned()
            })
        }
    }

    /// A field of an error, where it has one.
    fn field(&self, code: u8) -> Option<&CStr> {
        // SAFETY: a live result; the field is null or a C string that lives with it.
        unsafe {
            let value = PQresultErrorField(self.raw(), i32::from(code));
            (!value.is_null()).then(|| CStr::from_ptr(value))
        }
    }

    /// Whether it is an error that libpq has made up by itself: over a connection that broke, or where there was
    /// no memory for what the server has said, which then is not known.
    pub fn is_made_up(&self) -> bool {
        self.field(PG_DIAG_SQLSTATE).is_none()
    }

    /// Whether this is an error by which a backend tells that its transaction has failed: of a statement,
    /// or the end of its session between transactions or within one that it has not begun to commit. The
    /// end for other reasons may come at any moment, and from others than the backend.
    pub fn is_refusal(&self) -> bool {
        let idle = [c"57P05", c"25P03", c"25P04"];
        self.field(PG_DIAG_SQLSTATE).is_some_and(|state| {
            let severity = self.field(PG_DIAG_SEVERITY_NONLOCALIZED);
            severity == Some(c"ERROR") || (severity == Some(c"FATAL") && idle.contains(&state))
        })
    }

    /// Whether this tells that the session was ended for being idle, which is so between transactions only,
    /// whoever tells it.
    pub fn ends_idle_session(&self) -> bool {
        self.field(PG_DIAG_SEVERITY_NONLOCALIZED) == Some(c"FATAL")
            && self.field(PG_DIAG_SQLSTATE) == Some(c"57P05")
    }

    /// The error, field by field, each cut to a length fit for a log. A result without a SQLSTATE was made
    /// by libpq itself, over a connection that broke: 08006.
    pub fn error(&self, server: &str) -> RemoteError {
        let field = |code| self.field(code).map(text::sanitize);
        let name = |code| self.field(code).map(text::name);
        let message = field(PG_DIAG_MESSAGE_PRIMARY).unwrap_or_else(|| {
            // SAFETY: a live result; the message is a C string that lives with it.
            text::sanitize(unsafe { CStr::from_ptr(PQresultErrorMessage(self.raw())) })
        });
        RemoteError {
            server: server.to_owned(),
            sqlstate: field(PG_DIAG_SQLSTATE).map_or(SqlState::CONNECTION_FAILURE, |code| {
                SqlState::of_failure(&code)
            }),
            message,
            detail: field(PG_DIAG_MESSAGE_DETAIL),
            hint: field(PG_DIAG_MESSAGE_HINT),
            context: field(PG_DIAG_CONTEXT),
            schema: name(PG_DIAG_SCHEMA_NAME),
            table: name(PG_DIAG_TABLE_NAME),
            column: name(PG_DIAG_COLUMN_NAME),
            constraint: name(PG_DIAG_CONSTRAINT_NAME),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        // SAFETY: ours, cleared once.
        unsafe { PQclear(self.raw()) }
    }
}
