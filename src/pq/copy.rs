//! COPY ... FROM STDIN over a connection that is otherwise pipelined: libpq allows no COPY in a pipeline, so
//! it is left for as long as the COPY takes. Nothing here waits.

use super::connection::Connection;
use super::reply::Reply;
use pq_sys::{PQenterPipelineMode, PQexitPipelineMode, PQputCopyData, PQputCopyEnd, PQsendQuery};
use std::ffi::CString;

impl Connection {
    /// Leaves the pipeline, in which nothing is under way, and sends a COPY.
    ///
    /// # Errors
    /// libpq's message.
    pub fn begin_copy(&mut self, sql: &str) -> Result<(), String> {
        let sql = CString::new(sql).map_err(|error| error.to_string())?;
        // SAFETY: a live connection at rest; a C string that is copied.
        let sent = unsafe {
            PQexitPipelineMode(self.raw()) == 1 && PQsendQuery(self.raw(), sql.as_ptr()) == 1
        };
        if sent { Ok(()) } else { Err(self.message()) }
    }

    /// Hands data to libpq, which copies them.
    ///
    /// # Errors
    /// libpq's message.
    pub fn put_copy(&mut self, data: &[u8]) -> Result<(), String> {
        // SAFETY: a live connection in the middle of a COPY; so many bytes.
        let put = unsafe { PQputCopyData(self.raw(), data.as_ptr().cast(), data.len() as i32) };
        // Only what finds no room to be buffered is not taken.
        if put == 1 {
            Ok(())
        } else {
            Err(self.message())
        }
    }

    /// Ends the data.
    ///
    /// # Errors
    /// libpq's message.
    pub fn end_copy(&mut self) -> Result<(), String> {
        // SAFETY: a live connection in the middle of a COPY.
        let put = unsafe { PQputCopyEnd(self.raw(), std::ptr::null()) };
        if put == 1 {
            Ok(())
        } else {
            Err(self.message())
        }
    }

    /// The next reply to the COPY, as [`Connection::reply`].
    pub fn copy_reply(&mut self) -> Option<Reply> {
        self.reply()
    }

    /// Back into the pipeline. False when libpq refuses.
    pub fn resume_pipeline(&mut self) -> bool {
        // SAFETY: a live connection with nothing in progress.
        unsafe { PQenterPipelineMode(self.raw()) == 1 }
    }
}
