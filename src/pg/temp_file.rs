//! A temporary file of the server's own kind: in `temp_tablespaces`, counted by `temp_file_limit`,
//! gone with the transaction whatever its end.

use crate::error::{Error, Result};
use pgrx::pg_sys;

/// See the module's head. Belongs to the top transaction, so it outlasts a subtransaction's abort.
/// Dropping it does nothing: an abort closes the file by itself, and writing out its buffer then
/// could fail where nothing may; whoever commits must call [`TempFile::close`].
pub struct TempFile(*mut pg_sys::BufFile);

impl TempFile {
    /// An empty file. PostgreSQL raises what goes wrong.
    pub fn create() -> Self {
        // SAFETY: inside a transaction; owner and memory context are put back, and an ERROR in
        // between resets both.
        unsafe {
            pg_sys::PrepareTempTablespaces();
            let owner = pg_sys::CurrentResourceOwner;
            let context = pg_sys::CurrentMemoryContext;
            pg_sys::CurrentResourceOwner = pg_sys::TopTransactionResourceOwner;
            pg_sys::CurrentMemoryContext = pg_sys::TopTransactionContext;
            let file = pg_sys::BufFileCreateTemp(false);
            pg_sys::CurrentMemoryContext = context;
            pg_sys::CurrentResourceOwner = owner;
            Self(file)
        }
    }

    /// Writes at a position not beyond the end. PostgreSQL raises what goes wrong, 53400 for
    /// `temp_file_limit`.
    ///
    /// # Errors
    /// When the position cannot be reached.
    pub fn write_at(&self, position: u64, bytes: &[u8]) -> Result<()> {
        self.seek(position)?;
        // SAFETY: an open file; the bytes are only read.
        unsafe { pg_sys::BufFileWrite(self.0, bytes.as_ptr().cast_mut().cast(), bytes.len()) }
        Ok(())
    }

    /// Makes [`TempFile::read`] go on from here.
    ///
    /// # Errors
    /// When the position is beyond the end.
    pub fn seek(&self, position: u64) -> Result<()> {
        const FROM_START: i32 = 0;
        let position = i64::try_from(position).map_err(|_| Error::internal("file too large"))?;
        // SAFETY: an open file.
        match unsafe { pg_sys::BufFileSeek(self.0, 0, position, FROM_START) } {
            0 => Ok(()),
            _ => Err(Error::internal("could not seek in a temporary file")),
        }
    }

    /// Fills the buffer.
    ///
    /// # Errors
    /// When the file ends before.
    pub fn read(&self, buffer: &mut [u8]) -> Result<()> {
        // SAFETY: an open file; at most the buffer's length is written to it.
        let read = unsafe { pg_sys::BufFileRead(self.0, buffer.as_mut_ptr().cast(), buffer.len()) };
        if read == buffer.len() {
            return Ok(());
        }
        Err(Error::internal("unexpected end of a temporary file"))
    }

    /// Closes and removes the file. PostgreSQL raises what goes wrong.
    pub fn close(self) {
        // SAFETY: open, and not used any more.
        unsafe { pg_sys::BufFileClose(self.0) }
    }
}
