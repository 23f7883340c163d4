//! A temporary file of the server's own kind: in `temp_tablespaces`, counted by `temp_file_limit`,
//! gone with the transaction whatever its end.
//!
//! Unbuffered, and not the server's BufFile: that keeps what it could not write, and after a write
//! that met `temp_file_limit`, in a savepoint that was then rolled back, every later use would fail
//! over it again.

use super::compat;
use super::xact::{self, Transaction};
use crate::error::{Error, Result};
use pgrx::pg_sys;

/// Bytes handed to the server in one call.
const CHUNK: usize = 1 << 20;

/// A temporary file that belongs to the top transaction, so it outlasts a subtransaction's abort.
/// Dropping it does nothing: an abort closes the file by itself; whoever commits must call
/// [`TempFile::close`].
pub struct TempFile {
    file: pg_sys::File,
    /// With its end the file is closed, and its number may be that of another.
    of: Transaction,
}

impl TempFile {
    /// An empty file. PostgreSQL raises what goes wrong; 25P01 outside of a transaction.
    pub fn create() -> Self {
        xact::demand();
        // SAFETY: inside a transaction; the owner is put back, and an ERROR in between resets it.
        unsafe {
            pg_sys::PrepareTempTablespaces();
            let owner = pg_sys::CurrentResourceOwner;
            pg_sys::CurrentResourceOwner = pg_sys::TopTransactionResourceOwner;
            let file = pg_sys::OpenTemporaryFile(false);
            pg_sys::CurrentResourceOwner = owner;
            Self {
                file,
                of: Transaction::current(),
            }
        }
    }

    /// Writes at a position. PostgreSQL raises 53400 for `temp_file_limit`.
    ///
    /// # Errors
    /// 53100 when the disk is full, or what else the system says.
    pub fn write_at(&self, mut position: u64, bytes: &[u8]) -> Result<()> {
        self.check()?;
        for chunk in bytes.chunks(CHUNK) {
            // SAFETY: an open file; a chunk's length fits an int.
            let written = unsafe { compat::file_write(self.file, chunk, position as i64) };
            if written != chunk.len() as i64 {
                return Err(failed("write to", written));
            }
            position += written as u64;
        }
        Ok(())
    }

    /// Fills the buffer from a position.
    ///
    /// # Errors
    /// When the file ends before, or what the system says.
    pub fn read_at(&self, mut position: u64, buffer: &mut [u8]) -> Result<()> {
        self.check()?;
        for chunk in buffer.chunks_mut(CHUNK) {
            let wanted = chunk.len() as i64;
            // SAFETY: an open file; a chunk's length fits an int.
            let read = unsafe { compat::file_read(self.file, chunk, position as i64) };
            if read != wanted {
                return Err(failed("read from", read));
            }
            position += read as u64;
        }
        Ok(())
    }

    /// Closes and removes the file.
    pub fn close(self) {
        if self.check().is_ok() {
            // SAFETY: open, and not used any more.
            unsafe { pg_sys::FileClose(self.file) }
        }
    }

    fn check(&self) -> Result<()> {
        if self.of.is_over() {
            Err(Error::internal(
                "temporary file of a transaction that is over",
            ))
        } else {
            Ok(())
        }
    }
}

/// A short count without an error is what a full disk gives.
fn failed(what: &str, count: i64) -> Error {
    let reason = match count {
        ..0 => std::io::Error::last_os_error().to_string(),
        _ => "no space left on device, or the file ends too early".to_owned(),
    };
    Error::local(
        crate::error::SqlState::new("53100"),
        format!("could not {what} a temporary file of pg_rowsync: {reason}"),
    )
}
