//! Changes in order, encoded: in memory up to `pg_rowsync.buffer_size`, beyond that in a temporary
//! file.
//!
//! An entry is its length (four bytes, little-endian), then the number of its route and the change
//! in postcard's encoding. Cutting the log back after a rolled-back subtransaction touches no file:
//! what lies behind the new end is overwritten by the next write.

use crate::change::{Change, Route};
use crate::delivery::feed::Source;
use crate::error::{Error, Result, SqlState};
use crate::guc;
use crate::pg::temp_file::TempFile;
use std::rc::Rc;

/// Bytes of the length that begins an entry.
const HEADER: usize = 4;
/// Bytes read from the file at once.
const READ_AHEAD: usize = 256 * 1024;

/// See the module's head.
#[derive(Default)]
pub struct ChangeLog {
    file: Option<TempFile>,
    /// Bytes of the log that are in the file.
    spilled: u64,
    /// What comes after them.
    tail: Vec<u8>,
}

impl ChangeLog {
    /// Appends a change.
    ///
    /// # Errors
    /// 53200 when memory is out. PostgreSQL raises what writing the file does.
    pub fn append(&mut self, route: u32, change: &Change<&str>) -> Result<()> {
        // An allocation that fails inside Rust would take the whole server down.
        self.tail.try_reserve(HEADER + change.encoded_size()).map_err(|_| {
            Error::local(SqlState::new("53200"), "out of memory")
                .with_detail("The transaction's changes could not be kept.")
                .with_hint("Lower pg_rowsync.buffer_size.")
        })?;
        let start = self.tail.len();
        let mut tail = std::mem::take(&mut self.tail);
        tail.extend_from_slice(&[0; HEADER]);
        self.tail = postcard::to_extend(&(route, change), tail)
            .map_err(|e| Error::internal(format!("could not encode a change: {e}")))?;
        let length = u32::try_from(self.tail.len() - start - HEADER)
            .map_err(|_| Error::local(SqlState::new("54000"), "row is too large"))?;
        self.tail[start..start + HEADER].copy_from_slice(&length.to_le_bytes());
        if self.tail.len() > guc::buffer_size() {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        let file = self.file.get_or_insert_with(TempFile::create);
        file.write_at(self.spilled, &self.tail)?;
        self.spilled += self.tail.len() as u64;
        // A single large row must not keep its memory for the rest of the transaction.
        self.tail.clear();
        self.tail.shrink_to(guc::buffer_size());
        Ok(())
    }

    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.spilled + self.tail.len() as u64
    }

    /// Cuts the log back to an earlier [`ChangeLog::len`]. Never fails.
    pub fn truncate(&mut self, len: u64) {
        if len >= self.spilled {
            self.tail.truncate((len - self.spilled) as usize);
        } else {
            self.spilled = len;
            self.tail.clear();
        }
    }

    /// Reads from the start.
    pub fn read<'l>(&'l self, routes: &'l [Rc<Route>]) -> Reader<'l> {
        Reader { log: self, routes, position: 0, chunk: Vec::new(), chunk_start: 0 }
    }

    /// Gives the file back, at the end of a transaction that commits.
    pub fn close(self) {
        self.file.into_iter().for_each(TempFile::close);
    }
}

/// Reads a log in order.
pub struct Reader<'l> {
    log: &'l ChangeLog,
    routes: &'l [Rc<Route>],
    position: u64,
    /// A part of the file, and where in the log it begins.
    chunk: Vec<u8>,
    chunk_start: u64,
}

impl Reader<'_> {
    /// The next bytes of the log, from the file or straight from memory.
    fn bytes(&mut self, position: u64, length: usize) -> Result<&[u8]> {
        let log = self.log;
        if position >= log.spilled {
            let at = (position - log.spilled) as usize;
            return log.tail.get(at..at + length).ok_or_else(damaged);
        }
        let end = position + length as u64;
        let known = self.chunk_start..self.chunk_start + self.chunk.len() as u64;
        if !(known.contains(&position) && end <= known.end) {
            let rest = (log.spilled - position) as usize;
            self.chunk.clear();
            self.chunk.resize(length.max(READ_AHEAD).min(rest), 0);
            self.chunk_start = position;
            log.file.as_ref().ok_or_else(damaged)?.read_at(position, &mut self.chunk)?;
        }
        let at = (position - self.chunk_start) as usize;
        self.chunk.get(at..at + length).ok_or_else(damaged)
    }

    /// The next entry.
    fn entry(&mut self) -> Result<&[u8]> {
        let start = self.position;
        let header: [u8; HEADER] = self.bytes(start, HEADER)?.try_into().map_err(|_| damaged())?;
        let length = u32::from_le_bytes(header) as usize;
        self.position = start + (HEADER + length) as u64;
        self.bytes(start + HEADER as u64, length)
    }
}

impl Source for Reader<'_> {
    fn next(&mut self, take: &mut dyn FnMut(&Rc<Route>, &Change<&str>)) -> Result<bool> {
        if self.position >= self.log.len() {
            return Ok(false);
        }
        let routes = self.routes;
        let (route, change) = postcard::from_bytes::<(u32, Change<&str>)>(self.entry()?)
            .map_err(|e| Error::internal(format!("could not decode a change: {e}")))?;
        take(routes.get(route as usize).ok_or_else(damaged)?, &change);
        Ok(true)
    }
}

fn damaged() -> Error {
    Error::internal("change log is damaged")
}
