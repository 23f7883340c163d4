//! Changes in order, encoded: in memory up to `pg_rowsync.buffer_size`, beyond that in a temporary
//! file.
//!
//! An entry is its length (four bytes, little-endian), then the number of its route, the change and what
//! of it was left where it is stored, in postcard's encoding. Cutting the log back after a rolled-back
//! subtransaction touches no file: what lies behind the new end is overwritten by the next write.

use super::row::{Captured, Unread};
use crate::change::{Change, Route, Source};
use crate::error::{Error, Result, SqlState};
use crate::guc;
use crate::pg::large::LargeValues;
use crate::pg::memory;
use crate::pg::temp_file::TempFile;
use postcard::ser_flavors::Flavor;
use std::rc::Rc;

/// Bytes of the length that begins an entry.
const HEADER: usize = 4;
/// Bytes read from the file at once.
const READ_AHEAD: usize = 256 * 1024;

/// The changes of one change set, in memory up to a limit, then in a file.
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
    pub fn append(&mut self, route: u32, captured: &Captured<'_>) -> Result<()> {
        let Captured { change, unread } = captured;
        let size = HEADER + change.encoded_size() + unread.len() * size_of_val(&unread[..]);
        // Any other allocation that fails would end the session.
        if !memory::try_reserve(&mut self.tail, size) {
            return Err(Error::local(SqlState::OUT_OF_MEMORY, "out of memory")
                .with_detail("The transaction's changes could not be kept.")
                .with_hint("Lower pg_rowsync.buffer_size."));
        }
        let start = self.tail.len();
        self.tail.extend_from_slice(&[0; HEADER]);
        postcard::serialize_with_flavor(&(route, change, unread), Tail(&mut self.tail))
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
    pub fn read<'l>(&'l self, routes: &'l [Rc<Route>], rows: Rows) -> Reader<'l> {
        let position = 0;
        let chunk = Vec::new();
        let chunk_start = 0;
        Reader {
            log: self,
            routes,
            rows,
            position,
            chunk,
            chunk_start,
            values: LargeValues::default(),
        }
    }

    /// Gives the file back, at the end of a transaction that commits.
    pub fn close(self) {
        self.file.into_iter().for_each(TempFile::close);
    }
}

/// The end of a log, which an entry is appended to.
struct Tail<'l>(&'l mut Vec<u8>);

impl Flavor for Tail<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// What a reader makes of large values, which are not in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Reads none of them: rows are good for their keys only.
    Keys,
    /// Leaves those out that an UPDATE left alone: changes say which they are in [`Change::unchanged`], and
    /// not what they are.
    Lean,
    /// Hands all of them out like other values.
    Whole,
}

/// Reads a log in order.
pub struct Reader<'l> {
    log: &'l ChangeLog,
    routes: &'l [Rc<Route>],
    rows: Rows,
    values: LargeValues,
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
            log.file
                .as_ref()
                .ok_or_else(damaged)?
                .read_at(position, &mut self.chunk)?;
        }
        let at = (position - self.chunk_start) as usize;
        self.chunk.get(at..at + length).ok_or_else(damaged)
    }

    /// The next entry.
    fn entry(&mut self) -> Result<&[u8]> {
        let start = self.position;
        let header: [u8; HEADER] = self
            .bytes(start, HEADER)?
            .try_into()
            .map_err(|_| damaged())?;
        let length = u32::from_le_bytes(header) as usize;
        self.position = start + (HEADER + length) as u64;
        self.bytes(start + HEADER as u64, length)
    }

    /// Where in the log the next entry begins.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Appends the next change to another log, as it is handed out here; false at the end.
    ///
    /// # Errors
    /// As for [`ChangeLog::append`], and when the log cannot be read.
    pub fn copy_to(&mut self, log: &mut ChangeLog) -> Result<bool> {
        self.next_numbered(&mut |route, change| log.append(route, &change.clone().into()))
    }

    /// Hands the next change to `take`, with the number of its route; false at the end.
    ///
    /// # Errors
    /// When the log cannot be read, and what `take` reports.
    pub fn next_numbered(
        &mut self,
        take: &mut dyn FnMut(u32, &Change<&str>) -> Result<()>,
    ) -> Result<bool> {
        let mut taken = Ok(());
        let more = self.advance(|route, change| taken = take(route, &change))?;
        taken.map(|()| more)
    }

    /// Hands out the next change, with the number of its route; false at the end.
    fn advance(&mut self, take: impl FnOnce(u32, Change<&str>)) -> Result<bool> {
        if self.position >= self.log.len() {
            return Ok(false);
        }
        let rows = self.rows;
        let mut values = std::mem::take(&mut self.values);
        let (route, mut change, unread) =
            postcard::from_bytes::<(u32, Change<&str>, Unread)>(self.entry()?)
                .map_err(|e| Error::internal(format!("could not decode a change: {e}")))?;
        if rows == Rows::Whole {
            change.unchanged.clear();
        }
        let reads = rows != Rows::Keys;
        let needed = || {
            unread
                .iter()
                .filter(|(at, _)| reads && !change.unchanged.contains(at))
        };
        if needed().next().is_some() {
            let texts = values.read(needed().map(|(_, stored)| *stored))?;
            for (at, text) in needed().map(|(at, _)| *at).zip(texts) {
                *change.row.get_mut(at as usize).ok_or_else(damaged)? = Some(text);
            }
        }
        take(route, change);
        self.values = values;
        Ok(true)
    }
}

impl Source for Reader<'_> {
    fn next(&mut self, take: &mut dyn FnMut(&Rc<Route>, &Change<&str>)) -> Result<bool> {
        let routes = self.routes;
        let mut known = true;
        let more = self.advance(|route, change| match routes.get(route as usize) {
            Some(route) => take(route, &change),
            None => known = false,
        })?;
        if known { Ok(more) } else { Err(damaged()) }
    }
}

fn damaged() -> Error {
    Error::internal("change log is damaged")
}
