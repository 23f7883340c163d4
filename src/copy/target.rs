//! The server's side of a copy: one connection, over which transactions are begun, fed by changes and by
//! COPY, and committed.

use crate::change::{Change, Route, Source};
use crate::connect::endpoint::Endpoint;
use crate::connect::session::Session;
use crate::delivery::feed::Changes;
use crate::delivery::link::{Ending, Link};
use crate::delivery::remote_transaction::{self, RunEnd, Savepoint};
use crate::error::{Error, Result};
use crate::guc;
use crate::pg::interrupt;
use crate::pg::stream::StreamedRow;
use crate::pq::{Reply, ReplyStatus};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Rows that are sent as one batch of changes.
pub const ROWS_PER_BATCH: usize = 2_000;

/// Bytes that are handed to libpq at once.
const PARCEL: usize = 64 * 1024;

/// The first column of each answer that had rows.
pub type FirstColumns = Vec<Vec<Option<String>>>;

/// The server's side of a copy, with its transaction.
pub struct CopyTarget {
    link: Link<'static>,
}

impl CopyTarget {
    /// Over the idle session of the endpoint, or one that is made; its first statements begin a transaction.
    ///
    /// # Errors
    /// What the link reports.
    pub fn begin(endpoint: &Rc<Endpoint>, statements: &[&str]) -> Result<(Self, FirstColumns)> {
        let mut target = Self {
            link: Link::open(endpoint)?,
        };
        match target.run(statements) {
            Err(_) if target.link.was_stale() => {
                let mut target = Self {
                    link: Link::connect(endpoint)?,
                };
                let answers = target.run(statements)?;
                Ok((target, answers))
            }
            result => result.map(|answers| (target, answers)),
        }
    }

    /// Runs plain statements that commit nothing.
    ///
    /// # Errors
    /// What the link reports.
    pub fn run(&mut self, statements: &[&str]) -> Result<FirstColumns> {
        remote_transaction::execute(&mut self.link, statements.iter().copied())?;
        Ok(self.link.answers().to_vec())
    }

    /// Applies changes. After an error of the changes' own the transaction stands where it stood before.
    ///
    /// # Errors
    /// What the link reports.
    pub fn apply(&mut self, changes: Vec<(Rc<Route>, Change<String>)>) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let name = self.link.endpoint().application_name.clone();
        let newest = changes.iter().any(|(route, _)| route.version().is_some());
        let forwarded = changes.iter().any(|(route, _)| !route.path.is_empty());
        let feed = Changes::new(Owned(changes.into_iter()), &name)
            .newest(newest)
            .forwarded(forwarded)
            .between(&[Savepoint::COPY.set], &[Savepoint::COPY.release]);
        self.link.run(feed, Ending::Open);
        match remote_transaction::run(&mut self.link) {
            Err(error @ Error::Remote(_)) => {
                self.run(&[Savepoint::COPY.roll_back, Savepoint::COPY.release])?;
                Err(error)
            }
            result => result,
        }
    }

    /// Begins a COPY ... FROM STDIN.
    ///
    /// # Errors
    /// What the server reports, and the connection.
    pub fn copy(self, sql: &str) -> Result<CopyIn> {
        let server = self.link.endpoint().account.server_name.clone();
        let session = self.link.into_session();
        let session = session.ok_or(Error::internal("copy goes on without a connection"))?;
        let mut copy = CopyIn {
            session,
            server,
            buffer: Vec::with_capacity(2 * PARCEL),
            bytes: 0,
        };
        copy.session
            .connection
            .begin_copy(sql)
            .map_err(|reason| copy.lost(reason))?;
        let reply = copy.answer()?;
        match reply.as_ref().map(Reply::status) {
            Some(ReplyStatus::CopyIn) => Ok(copy),
            Some(ReplyStatus::Failed) => Err(copy.refused(reply)),
            _ => Err(copy.lost("The server broke the protocol.".to_owned())),
        }
    }

    /// Commits, and keeps the connection for the next transaction.
    ///
    /// # Errors
    /// What the link reports; where the outcome is not known, 08007.
    pub fn commit(mut self) -> Result<()> {
        remote_transaction::commit(&mut self.link);
        let end = remote_transaction::follow(std::slice::from_mut(&mut self.link));
        if end == RunEnd::Abandoned {
            return Err(Error::Canceled);
        }
        self.link.result()?;
        if end == RunEnd::Answered {
            remote_transaction::release(self.link);
        }
        Ok(())
    }

    /// Rolls back, and keeps the connection.
    ///
    /// # Errors
    /// What the link reports.
    pub fn roll_back(mut self) -> Result<()> {
        self.run(&[remote_transaction::ROLLBACK])?;
        remote_transaction::release(self.link);
        Ok(())
    }
}

/// Changes as a source.
struct Owned(std::vec::IntoIter<(Rc<Route>, Change<String>)>);

impl Source for Owned {
    fn next(&mut self, take: &mut dyn FnMut(&Rc<Route>, &Change<&str>)) -> Result<bool> {
        let Some((route, change)) = self.0.next() else {
            return Ok(false);
        };
        take(&route, &change.borrowed());
        Ok(true)
    }
}

/// A COPY that takes data. Dropped before its end, it takes the connection with it.
pub struct CopyIn {
    session: Session,
    server: String,
    buffer: Vec<u8>,
    /// Bytes that were sent.
    bytes: u64,
}

impl CopyIn {
    /// Begins the binary form.
    pub fn begin_binary(&mut self) {
        self.buffer.extend(b"PGCOPY\n\xff\r\n\0");
        self.buffer.extend([0; 8]);
    }

    /// Adds the first columns of a row.
    ///
    /// # Errors
    /// What reading the row reports, and the connection.
    pub fn put(&mut self, row: &mut StreamedRow<'_>, columns: usize, binary: bool) -> Result<()> {
        if binary {
            row.put_binary(columns, &mut self.buffer)?
        } else {
            row.put_text(columns, &mut self.buffer)?
        }
        if self.buffer.len() >= PARCEL {
            self.send()
        } else {
            Ok(())
        }
    }

    /// Adds a row in text form.
    ///
    /// # Errors
    /// What the connection reports.
    pub fn put_texts(&mut self, row: &[Option<String>]) -> Result<()> {
        for (at, value) in row.iter().enumerate() {
            if at > 0 {
                self.buffer.push(b'\t');
            }
            let Some(value) = value else {
                self.buffer.extend(b"\\N");
                continue;
            };
            for byte in value.bytes() {
                match byte {
                    b'\\' => self.buffer.extend(b"\\\\"),
                    b'\t' => self.buffer.extend(b"\\t"),
                    b'\n' => self.buffer.extend(b"\\n"),
                    b'\r' => self.buffer.extend(b"\\r"),
                    _ => self.buffer.push(byte),
                }
            }
        }
        self.buffer.push(b'\n');
        if self.buffer.len() >= PARCEL {
            self.send()
        } else {
            Ok(())
        }
    }

    /// Ends the COPY; how many bytes it had.
    ///
    /// # Errors
    /// What the server reports, and the connection. After the server's own the connection is gone too.
    pub fn finish(mut self, binary: bool) -> Result<(CopyTarget, u64)> {
        if binary {
            self.buffer.extend((-1i16).to_be_bytes());
        }
        self.send()?;
        self.session
            .connection
            .end_copy()
            .map_err(|reason| self.lost(reason))?;
        self.flush()?;
        let reply = self.answer()?;
        match reply.as_ref().map(Reply::status) {
            Some(ReplyStatus::Done) => {}
            Some(ReplyStatus::Failed) => return Err(self.refused(reply)),
            _ => return Err(self.lost("The server broke the protocol.".to_owned())),
        }
        if self.answer()?.is_some() || !self.session.connection.resume_pipeline() {
            return Err(self.lost("The server broke the protocol.".to_owned()));
        }
        let bytes = self.bytes;
        Ok((
            CopyTarget {
                link: Link::over(self.session),
            },
            bytes,
        ))
    }

    fn send(&mut self) -> Result<()> {
        self.bytes += self.buffer.len() as u64;
        let put = self.session.connection.put_copy(&self.buffer);
        put.map_err(|reason| self.lost(reason))?;
        self.buffer.clear();
        self.flush()
    }

    /// Until all that libpq has was sent.
    fn flush(&mut self) -> Result<()> {
        let deadline = Instant::now() + guc::delivery_timeout();
        while !self
            .session
            .connection
            .flush()
            .map_err(|reason| self.lost(reason))?
        {
            self.wait(true, deadline)?;
            // What the server says meanwhile must not keep it from reading.
            if !self.session.connection.consume() {
                return Err(self.lost(self.session.connection.message()));
            }
        }
        Ok(())
    }

    /// The next reply.
    fn answer(&mut self) -> Result<Option<Reply>> {
        let deadline = Instant::now() + guc::delivery_timeout();
        self.flush()?;
        while self.session.connection.is_busy() {
            self.wait(false, deadline)?;
            if !self.session.connection.consume() {
                return Err(self.lost(self.session.connection.message()));
            }
        }
        Ok(self.session.connection.copy_reply())
    }

    fn wait(&mut self, write: bool, deadline: Instant) -> Result<()> {
        if interrupt::pending() {
            interrupt::check();
            return Err(Error::Canceled);
        }
        let now = Instant::now();
        if now >= deadline {
            let server = self.server.clone();
            let millis = guc::delivery_timeout().as_millis() as i64;
            return Err(Error::Timeout {
                server,
                what: "copying",
                millis,
            });
        }
        self.session
            .wait(write, (deadline - now).min(Duration::from_secs(1)));
        Ok(())
    }

    fn lost(&self, reason: String) -> Error {
        Error::Lost {
            server: self.server.clone(),
            reason,
        }
    }

    fn refused(&self, reply: Option<Reply>) -> Error {
        match reply {
            Some(reply) => Error::Remote(Box::new(reply.error(&self.server))),
            None => self.lost("The server broke the protocol.".to_owned()),
        }
    }
}
