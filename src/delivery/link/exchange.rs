//! A run over a session: statements are handed to libpq, answers are read, all without waiting.

use super::outcome::RunOutcome;
use crate::connect::peer::PeerKind;
use crate::connect::session::Session;
use crate::delivery::answers::{Answers, BROKE_PROTOCOL};
use crate::delivery::feed::Feed;
use crate::error::Error;
use crate::pg::wait::Interest;
use crate::sql::{NODE, REMOTE_SCHEMA, Statement, Verb};
use std::time::{Duration, Instant};

/// Bytes of statements that are handed to libpq before it is asked to send them.
const PARCEL: usize = 16 * 1024;

/// What the end of a run means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The server commits: the statements are an implicit transaction, or end with COMMIT.
    Commits,
    /// Nothing is committed by it.
    Open,
    /// The statements end with PREPARE TRANSACTION. What became of it need not be known: it is rolled back
    /// unless the local transaction decides otherwise.
    Prepares,
    /// A single statement that no transaction can contain: the end of a prepared one.
    Resolves,
}

/// What is to be run.
pub struct Run<'f> {
    pub feed: Box<dyn Feed + 'f>,
    pub ending: Ending,
}

/// What a server is asked in an exchange of its own before the run. A new connection is introduced in it, so
/// that nothing is sent to a server that should not get it, and the process that runs a transaction is known
/// before the transaction can be lost.
struct Questions {
    /// The schema of its extension.
    extension: bool,
    /// Its name in the paths of changes.
    node: bool,
}

impl Questions {
    /// What must be asked before a run; none if all is known.
    fn before(feed: &dyn Feed, session: &Session) -> Option<Self> {
        let questions = Self {
            extension: feed.needs_remote_schema() && !session.knows_remote_schema(),
            node: feed.needs_node() && session.node().is_none(),
        };
        let is_new = session.peer.kind() == PeerKind::Unknown;
        (is_new || questions.extension || questions.node).then_some(questions)
    }

    fn statements(&self) -> impl Iterator<Item = Statement> {
        [(self.extension, REMOTE_SCHEMA), (self.node, NODE)]
            .into_iter()
            .filter(|(asks, _)| *asks)
            .map(|(_, text)| Statement::plain(text))
    }

    /// Gives the session what was answered.
    fn learn(&self, answers: &Answers, session: &mut Session) {
        let mut answers = answers
            .rows()
            .iter()
            .map(|rows| rows.first().cloned().flatten());
        if self.extension {
            session.set_remote_schema(answers.next().flatten());
        }
        if self.node {
            session.set_node(answers.next().flatten());
        }
    }
}

/// What an exchange waits for.
enum Awaits {
    /// The answers to questions; all of these were handed to libpq.
    Answers(Questions),
    /// Room in the connection, to hand it the next statements.
    Room {
        /// Statements that were fetched and not handed over: with the last ones goes the end of the
        /// pipeline.
        ahead: Option<Vec<Statement>>,
        /// A transaction begins with the next statement.
        begins: bool,
    },
    /// The answers up to the end of the pipeline, which was handed to libpq.
    End {
        /// The server commits what was run, if it gets all of it: nothing had failed before.
        commits: bool,
    },
}

/// Why an exchange cannot go on.
pub enum ExchangeFailure {
    /// The connection is of no use any more.
    Broken(String),
    /// An error of our own. The end of the pipeline was not handed to libpq and must not be: the server
    /// would commit a part.
    Own(Error),
}

impl From<String> for ExchangeFailure {
    fn from(reason: String) -> Self {
        Self::Broken(reason)
    }
}

impl From<Error> for ExchangeFailure {
    fn from(error: Error) -> Self {
        Self::Own(error)
    }
}

/// A run under way.
pub struct Exchange<'f> {
    session: Session,
    run: Run<'f>,
    awaits: Awaits,
    outcome: RunOutcome,
    /// See [`Answers::with_room`].
    max_answer_bytes: Option<usize>,
    /// When the last answer came or the last statements had left. Bytes that complete no answer are no
    /// progress: a server could send them for ever.
    progress: Instant,
    /// When statements were last handed to libpq.
    fed_at: Instant,
    /// The kernel did not take everything: wait for writing too.
    write_blocked: bool,
    /// When the exchange was first found to be late.
    pub late: Option<Instant>,
}

impl<'f> Exchange<'f> {
    /// A run over a session at rest. The next call is [`Exchange::begin`].
    pub fn new(session: Session, run: Run<'f>, max_answer_bytes: Option<usize>) -> Self {
        let now = Instant::now();
        Self {
            outcome: RunOutcome {
                answers: Answers::with_room(max_answer_bytes),
                ..RunOutcome::default()
            },
            awaits: feeding(&session),
            session,
            run,
            max_answer_bytes,
            progress: now,
            fed_at: now,
            write_blocked: false,
            late: None,
        }
    }

    /// Asks what must be known before the run. The answers are awaited before anything of it is sent.
    ///
    /// # Errors
    /// Why the exchange cannot go on.
    pub fn begin(&mut self) -> Result<(), ExchangeFailure> {
        let Some(questions) = Questions::before(&*self.run.feed, &self.session) else {
            return Ok(());
        };
        let session = &mut self.session;
        let answers = &mut self.outcome.answers;
        if session.connection.is_idle() {
            // A new connection is introduced even if nothing else is asked.
            introduce(session, answers, false, false)?;
        }
        for statement in questions.statements() {
            session.connection.send(&statement)?;
            answers.push_expected(statement.conflicts);
        }
        session.connection.sync()?;
        answers.expect_end();
        self.fed_at = Instant::now();
        self.awaits = Awaits::Answers(questions);
        Ok(())
    }

    /// Reads, feeds, flushes until it would block; says whether the run is over.
    ///
    /// # Errors
    /// Why the exchange cannot go on.
    pub fn step(&mut self) -> Result<bool, ExchangeFailure> {
        loop {
            self.read_answers()?;
            let are_complete = self.outcome.answers.are_complete();
            let has_failed = self.outcome.failure.is_some();
            match &self.awaits {
                Awaits::Answers(questions) if are_complete && !has_failed => {
                    if self.session.peer.kind() == PeerKind::Unknown {
                        return Err(ExchangeFailure::Broken(BROKE_PROTOCOL.to_owned()));
                    }
                    questions.learn(&self.outcome.answers, &mut self.session);
                    self.start_feeding();
                }
                Awaits::Answers(_) if are_complete => return Ok(true),
                Awaits::End { .. } if are_complete => {
                    // In the middle of a transaction nothing has been committed, whatever the answers were.
                    let ends_block = self.run.ending != Ending::Open;
                    if ends_block && !has_failed && !self.session.connection.is_idle() {
                        return Err(ExchangeFailure::Broken(BROKE_PROTOCOL.to_owned()));
                    }
                    return Ok(true);
                }
                Awaits::Answers(_) | Awaits::End { .. } => {
                    self.flush()?;
                    return Ok(false);
                }
                Awaits::Room { .. } => {
                    self.flush()?;
                    if self.write_blocked {
                        return Ok(false);
                    }
                    self.feed()?;
                    if let Awaits::End { .. } = self.awaits {
                        // What is still to come comes after a wait.
                        self.flush()?;
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// All questions are answered: the run itself begins.
    fn start_feeding(&mut self) {
        self.outcome.answers = Answers::with_room(self.max_answer_bytes);
        self.awaits = feeding(&self.session);
        self.note_progress();
        self.fed_at = self.progress;
    }

    fn note_progress(&mut self) {
        self.progress = Instant::now();
        self.late = None;
    }

    fn read_answers(&mut self) -> Result<(), ExchangeFailure> {
        let Self {
            session, outcome, ..
        } = self;
        let server = &session.endpoint.account.server_name;
        let read = outcome.answers.read(&mut session.connection, server);
        if let Some(answer) = outcome.answers.take_introduction() {
            session.introduce(&answer);
        }
        if let Some(error) = outcome.answers.take_failure() {
            outcome.note_refusal(error, session);
        }
        if read? {
            self.note_progress();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ExchangeFailure> {
        self.write_blocked = !self.session.connection.flush()?;
        if !self.write_blocked {
            self.progress = self.progress.max(self.fed_at);
        }
        Ok(())
    }

    /// Hands the next statements to libpq, and with the last ones the end of the pipeline.
    fn feed(&mut self) -> Result<(), ExchangeFailure> {
        let Self {
            session,
            run,
            outcome,
            awaits,
            ..
        } = self;
        let Awaits::Room { ahead, begins } = awaits else {
            return Ok(());
        };
        let mut has_more = false;
        // After a failure the server skips everything up to the end of the pipeline.
        if outcome.failure.is_none() {
            let mut statements = match ahead.take() {
                None => run.feed.next(session)?,
                fetched => fetched,
            };
            // Sent before the next ones are fetched, so that the server works while we encode; small ones
            // a parcel at a time.
            let mut parcel = 0;
            while let Some(next) = statements.take() {
                if parcel >= PARCEL {
                    *ahead = Some(next);
                    has_more = true;
                    break;
                }
                parcel += send(session, &mut outcome.answers, begins, run.ending, &next)?;
                statements = run.feed.next(session)?;
            }
        }
        if has_more {
            // Answers along the way show progress and fill no buffer on the server.
            session.connection.request_flush()?;
        } else {
            let commits = run.ending == Ending::Commits && outcome.failure.is_none();
            // Before the call: some of it may have left when it fails.
            *awaits = Awaits::End { commits };
            session.connection.sync()?;
            outcome.answers.expect_end();
        }
        self.fed_at = Instant::now();
        Ok(())
    }

    /// **The in-doubt rule.** The server may have committed once the end of a pipeline that commits was
    /// handed to libpq: from then on its bytes may be anywhere. A connection that breaks earlier is only
    /// lost, and the server rolls back.
    pub fn commit_sent(&self) -> bool {
        matches!(self.awaits, Awaits::End { commits: true })
    }

    /// The error of a run whose answers do not come, for this reason: `lost` where nothing can have been
    /// committed.
    pub fn in_doubt_or(&self, reason: String, lost: impl FnOnce(String, String) -> Error) -> Error {
        let server = self.session.endpoint.account.server_name.clone();
        if self.commit_sent() {
            Error::InDoubt { server, reason }
        } else {
            lost(server, reason)
        }
    }

    /// The error of a run whose connection broke.
    pub fn broken(&self, reason: String) -> Error {
        // What the server said before it hung up says more than libpq's own words.
        let reason = match &self.outcome.failure {
            Some(error @ Error::Remote(_)) => error.to_string(),
            _ => reason,
        };
        let lost = |server, reason| Error::Lost { server, reason };
        // What others than the server's process say of it need not be so, unless it was not at work.
        let answers = &self.outcome.answers;
        if answers.are_of_ended_session()
            || (answers.are_refusal() && self.session.peer.keeps_session())
        {
            return lost(self.session.endpoint.account.server_name.clone(), reason);
        }
        self.in_doubt_or(reason, lost)
    }

    /// The session, and what the run has come to so far.
    pub fn into_parts(self) -> (Session, RunOutcome) {
        let commit_sent = self.commit_sent();
        let outcome = RunOutcome {
            commit_sent,
            ..self.outcome
        };
        (self.session, outcome)
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    /// When there was progress last.
    pub fn progress(&self) -> Instant {
        self.progress
    }

    /// What to wait for. For writing only if flushing left something.
    pub fn interest(&self) -> Interest {
        self.session.interest(self.write_blocked)
    }

    /// Waits for that, for the process latch, or for a time.
    pub fn wait(&mut self, time: Duration) {
        self.session.wait(self.write_blocked, time);
    }

    /// Whether nothing is left to be sent before answers have come.
    pub fn has_sent(&self) -> bool {
        !matches!(self.awaits, Awaits::Room { .. }) && !self.write_blocked
    }
}

/// Where nothing of a run was sent yet.
fn feeding(session: &Session) -> Awaits {
    Awaits::Room {
        ahead: None,
        // Within a transaction, the server knows what it needs.
        begins: session.connection.is_idle(),
    }
}

/// Hands statements to libpq; says how many bytes they have.
fn send(
    session: &mut Session,
    answers: &mut Answers,
    begins: &mut bool,
    ending: Ending,
    statements: &[Statement],
) -> Result<usize, ExchangeFailure> {
    let commits = matches!(ending, Ending::Commits | Ending::Prepares);
    let mut bytes = 0;
    let mut in_block = false;
    for statement in statements {
        let begins_block = statement.begins_block();
        // Its settings are to be those of the transaction.
        if *begins && !begins_block && ending != Ending::Resolves {
            *begins = false;
            introduce(session, answers, commits, in_block)?;
        }
        session.connection.send(statement)?;
        if begins_block {
            answers.push_begin();
        } else {
            answers.push_expected(statement.conflicts.clone());
        }
        if statement.is_urgent {
            session.connection.request_flush()?;
        }
        bytes += statement.size();
        *begins |= begins_block || statement.rolls_back();
        in_block |= begins_block;
    }
    Ok(bytes)
}

/// A transaction begins: sends the statement that introduces it, where that is needed, and asks for its
/// answer to be sent at once: should all others be lost, it says which process ran them. One that is
/// executed by name begins a short transaction, which its lock identifies as well: an answer of its own
/// would cost everything in between as much as the transaction's.
fn introduce(
    session: &mut Session,
    answers: &mut Answers,
    commits: bool,
    in_block: bool,
) -> Result<(), ExchangeFailure> {
    let Some(statement) = session.begin(commits, in_block)? else {
        return Ok(());
    };
    let is_named = matches!(statement.verb, Verb::Execute(_));
    session.connection.send(&statement)?;
    answers.push_introduction();
    if !is_named {
        session.connection.request_flush()?;
    }
    Ok(())
}
