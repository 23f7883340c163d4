//! Asks servers, all at once: each over a connection of its own, under one deadline.

use super::facts::{ServerFacts, TargetFacts};
use super::question::{self, Asked, RELATIONS_AT_ONCE};
use crate::connect::endpoint::Endpoint;
use crate::connect::peer::PeerKind;
use crate::connect::session;
use crate::delivery::feed;
use crate::delivery::link::{Ending, Link};
use crate::error::{Error, Result};
use crate::guc;
use crate::pg::wait::{self, Interest};
use crate::pg::{context, interrupt};
use crate::sql::{Conflicts, Param, Statement};
use std::rc::Rc;
use std::time::Instant;

/// What a server has answered.
pub struct Answer {
    pub server: ServerFacts,
    /// In the order in which they were asked about; `None` for what no honest server says.
    pub targets: Vec<Option<TargetFacts>>,
    pub peer: PeerKind,
    /// Microseconds by which the clock there is ahead; the least that it can be.
    pub clock_ahead: i64,
}

/// A server and what it is asked about.
pub struct Question<'q> {
    pub endpoint: Rc<Endpoint>,
    pub relations: Vec<Asked<'q>>,
}

/// One of the servers.
struct Asking<'f, 'q> {
    /// Which question it is.
    at: usize,
    since: Instant,
    /// When it was asked, by the clock here.
    clock: i64,
    /// When the exchange under way must be over.
    deadline: Instant,
    link: Link<'f>,
    relations: &'q [Asked<'q>],
    /// How many are asked about in the exchange under way.
    at_once: usize,
    server: Option<ServerFacts>,
    /// Of those that it was asked about before.
    targets: Vec<Option<TargetFacts>>,
    clock_ahead: i64,
}

/// Asks all servers, each of which has `pg_rowsync.connect_timeout` to get from one answer to the next, and
/// as long again as a delivery may take for all of them. The answers are in the order of the questions.
///
/// # Errors
/// A request to cancel is raised. What goes wrong with a server is its answer.
pub fn ask(questions: &[Question<'_>]) -> Result<Vec<Result<Answer>>> {
    let mut answers: Vec<Option<Result<Answer>>> = questions.iter().map(|_| None).collect();
    let mut running: Vec<Asking<'_, '_>> = Vec::new();
    for (at, question) in questions.iter().enumerate() {
        match Link::open(&question.endpoint) {
            Ok(link) => running.push(Asking::new(at, link, &question.relations)),
            Err(error) => answers[at] = Some(Err(error)),
        }
    }
    while !running.is_empty() {
        if interrupt::pending() {
            // Closes the connections, before the request is raised.
            drop(running);
            interrupt::check();
            return Err(Error::Canceled);
        }
        running.iter_mut().for_each(|asking| asking.link.step());
        let now = Instant::now();
        for mut asking in std::mem::take(&mut running) {
            if asking.link.is_done() && asking.take_answers() {
                asking.ask_next();
                asking.link.step();
            }
            let at = asking.at;
            if asking.link.is_done() {
                answers[at] = Some(asking.finish());
            } else if asking.deadline <= now {
                answers[at] = Some(Err(asking.late()));
            } else {
                running.push(asking);
            }
        }
        if let Some(next) = running.iter().map(|asking| asking.deadline).min() {
            let interests: Vec<Interest> = running
                .iter()
                .filter_map(|asking| asking.link.interest())
                .collect();
            wait::wait(&interests, next.saturating_duration_since(Instant::now()));
        }
    }
    Ok(answers.into_iter().flatten().collect())
}

impl<'f, 'q> Asking<'f, 'q> {
    fn new(at: usize, link: Link<'f>, relations: &'q [Asked<'q>]) -> Self {
        let now = Instant::now();
        let mut asking = Self {
            at,
            since: now,
            clock: context::clock(),
            deadline: now,
            link,
            relations,
            at_once: RELATIONS_AT_ONCE,
            server: None,
            targets: Vec::new(),
            clock_ahead: 0,
        };
        asking.ask_next();
        asking
    }

    /// Those that the exchange under way asks about.
    fn current(&self) -> &'q [Asked<'q>] {
        let rest = self.relations.get(self.targets.len()..).unwrap_or_default();
        &rest[..rest.len().min(self.at_once)]
    }

    fn ask_next(&mut self) {
        let about = self.current();
        let mut statements = Vec::new();
        if self.server.is_none() {
            statements.push(Statement::plain(question::ABOUT_SERVER));
        }
        if !about.is_empty() {
            let params = vec![Param::Text(question::parameter(about))];
            let text = question::about_relations();
            statements.push(Statement::query(text, params, Conflicts::Never));
        }
        let latest = self.since + guc::connect_timeout() + guc::delivery_timeout();
        self.deadline = (Instant::now() + guc::connect_timeout()).min(latest);
        self.link
            .run(feed::Statements::new(statements), Ending::Open);
    }

    /// Takes in what has come; says whether there is more to be asked.
    fn take_answers(&mut self) -> bool {
        if self.link.result().is_err() {
            return false;
        }
        let mut texts = self
            .link
            .answers()
            .iter()
            .map(|rows| rows.first().and_then(Option::as_deref));
        if self.server.is_none() {
            let facts = texts
                .next()
                .flatten()
                .and_then(|text| serde_json::from_str(text).ok());
            let Some(facts) = facts.filter(ServerFacts::is_sound) else {
                return false;
            };
            let ahead = facts.clock - context::clock();
            let behind = self.clock - facts.clock;
            self.clock_ahead = if ahead > 0 { ahead } else { -behind.max(0) };
            self.server = Some(facts);
        }
        let expected = self.current().len();
        let targets: Option<Vec<TargetFacts>> = texts
            .next()
            .flatten()
            .and_then(|text| serde_json::from_str(text).ok());
        match targets.filter(|targets| targets.len() == expected) {
            Some(targets) => {
                let sound = |facts: TargetFacts| facts.is_sound().then_some(facts);
                self.targets.extend(targets.into_iter().map(sound));
            }
            // What was too much to be kept is asked for piece by piece.
            None if expected > 1 => self.at_once = 1,
            None => self.targets.extend((0..expected).map(|_| None)),
        }
        self.targets.len() < self.relations.len()
    }

    fn late(&self) -> Error {
        let server = self.link.endpoint().account.server_name.clone();
        let millis = guc::connect_timeout().as_millis() as i64;
        Error::Timeout {
            server,
            what: "asking the server",
            millis,
        }
    }

    /// The answer of a server that is not asked for more.
    fn finish(self) -> Result<Answer> {
        self.link.result()?;
        let server_name = self.link.endpoint().account.server_name.clone();
        let session = self.link.into_session();
        let peer = session
            .as_ref()
            .map_or(PeerKind::Unknown, |session| session.peer.kind());
        session.into_iter().for_each(session::put_back);
        let Some(server) = self.server else {
            // No answer that an honest server gives.
            let reason = "The server's answer makes no sense.".to_owned();
            return Err(Error::Lost {
                server: server_name,
                reason,
            });
        };
        Ok(Answer {
            server,
            targets: self.targets,
            peer,
            clock_ahead: self.clock_ahead,
        })
    }
}
