//! Asks both sides at once: the server is sent its question, the local one is answered meanwhile, then the
//! server's answer is read. Each question is a transaction of its own that changes nothing.

use super::progress::Progress;
use crate::connect::endpoint::Endpoint;
use crate::delivery::feed::Fixed;
use crate::delivery::link::{Ending, Link};
use crate::delivery::{event_loop, remote_transaction};
use crate::error::{Error, Result};
use crate::pg::spi::Row;
use crate::pg::subtransaction::attempt_interruptibly;
use crate::pg::{Oid, interrupt, query};
use serde_json::Value;
use std::rc::Rc;
use std::time::Duration;

/// How long the server may work on one question: on all rows of a table, where it cannot be cut.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// Bytes of an answer that are kept. A connection is closed over an answer that is longer by a third.
const MAX_ANSWER_BYTES: usize = 6 * 1024 * 1024;
/// Bytes that a side lists rows in, in its own encoding, of which UTF-8 may need twice as many.
pub const MAX_LIST_BYTES: usize = MAX_ANSWER_BYTES / 2;
/// How often it is looked for requests to cancel at the least.
const LOOK_EVERY: Duration = Duration::from_secs(1);

const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY";
/// A scan may take longer than a delivery. One row for both, which is passed over.
const LIMITS: &str = "SELECT pg_catalog.set_config('statement_timeout', '0', true), \
     pg_catalog.set_config('row_security', 'off', true)";

/// One side of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Here,
    There,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Here, Self::There];
}

/// Both sides of a comparison: the local one, and the server over one link.
pub struct Sides {
    owner: Oid,
    endpoint: Rc<Endpoint>,
    /// At rest between questions; none before the first, and while one is asked.
    link: Option<Link<'static>>,
    pub progress: Progress,
}

impl Sides {
    /// The local side as the table's owner, and the server over the owner's mapping.
    pub fn new(owner: Oid, endpoint: Rc<Endpoint>, progress: Progress) -> Self {
        Self {
            owner,
            endpoint,
            link: None,
            progress,
        }
    }

    /// Asks both; each question has one row with one JSON value.
    ///
    /// # Errors
    /// What either side reports; a request to cancel is raised.
    pub fn ask(&mut self, here: &str, there: &str) -> Result<[Value; 2]> {
        let [here, there] = self.ask_for_text(here, there)?;
        Ok([value(here.as_deref())?, value(there.as_deref())?])
    }

    /// Asks both, as [`Sides::ask`] does; the text of their answers.
    ///
    /// # Errors
    /// As for [`Sides::ask`].
    pub fn ask_for_text(&mut self, here: &str, there: &str) -> Result<[Option<String>; 2]> {
        let link = self.begin(there)?;
        let local = self.ask_here(here)?;
        Ok([local, self.finish(link, there)?])
    }

    /// Asks one.
    ///
    /// # Errors
    /// As for [`Sides::ask`].
    pub fn ask_one(&mut self, side: Side, sql: &str) -> Result<Value> {
        match side {
            Side::Here => value(self.ask_here(sql)?.as_deref()),
            Side::There => {
                let link = self.begin(sql)?;
                value(self.finish(link, sql)?.as_deref())
            }
        }
    }

    fn ask_here(&self, sql: &str) -> Result<Option<String>> {
        // What it fails over may be a value that can be gone around.
        let rows: Vec<Row> = attempt_interruptibly(|| query::read_as(self.owner, sql))?;
        Ok(rows
            .into_iter()
            .next()
            .and_then(|mut row| row.pop())
            .flatten())
    }

    /// Sends a question, as far as that goes.
    fn begin(&mut self, sql: &str) -> Result<Link<'static>> {
        let link = match self.link.take() {
            Some(link) => link,
            None => Link::open(&self.endpoint)?,
        };
        Self::begin_over(link, sql)
    }

    fn begin_over(mut link: Link<'static>, sql: &str) -> Result<Link<'static>> {
        link.expect_much(PATIENCE, MAX_ANSWER_BYTES);
        link.run(
            Fixed::new([BEGIN, LIMITS, sql, remote_transaction::COMMIT]),
            Ending::Open,
        );
        if event_loop::send(std::slice::from_mut(&mut link)) == event_loop::LoopEnd::Interrupted {
            return Err(canceled(link));
        }
        Ok(link)
    }

    fn finish(&mut self, mut link: Link<'static>, sql: &str) -> Result<Option<String>> {
        link = await_end(link)?;
        if link.was_stale() {
            link = await_end(Self::begin_over(Link::connect(&self.endpoint)?, sql)?)?;
        }
        link.result()?;
        // The first is that of LIMITS.
        let [_, answer] = link.answers() else {
            let server = &link.endpoint().account.server_name;
            return Err(Error::internal(format!(
                "unexpected answer of server \"{server}\""
            )));
        };
        let text = answer.first().cloned().flatten();
        let bytes = sql.len() + text.as_ref().map_or(0, String::len);
        self.link = Some(link);
        self.progress.exchanged(bytes);
        Ok(text)
    }

    /// Keeps the connection for what the session delivers next.
    pub fn close(self) -> Progress {
        self.link.into_iter().for_each(remote_transaction::release);
        self.progress
    }
}

fn await_end(mut link: Link<'static>) -> Result<Link<'static>> {
    while !link.is_done() {
        if interrupt::pending() {
            return Err(canceled(link));
        }
        event_loop::run_for(std::slice::from_mut(&mut link), LOOK_EVERY);
    }
    Ok(link)
}

/// Closes the connection, which ends what the server does within a second, and raises the request.
fn canceled(link: Link<'static>) -> Error {
    drop(link);
    interrupt::check();
    Error::Canceled
}

fn value(text: Option<&str>) -> Result<Value> {
    let Some(text) = text else {
        return Ok(Value::Null);
    };
    serde_json::from_str(text).map_err(|_| Error::internal("malformed answer to a comparison"))
}
