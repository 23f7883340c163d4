//! One server in one exchange: connects if need be, feeds statements into a pipeline while reading
//! its answers, and says in the end what took effect. A state machine that never waits; `event_loop`
//! waits for several of them.
//!
//! What decides between "lost" and "in doubt" is whether the end of a pipeline that commits had
//! been handed to libpq: from then on its bytes may be anywhere.

use super::answers::{Answers, BROKE_PROTOCOL, SENDS_TOO_MUCH};
use super::feed::Feed;
use crate::conflict::Tally;
use crate::connect::endpoint::Endpoint;
use crate::connect::lost_session::LostSession;
use crate::connect::peer::PeerKind;
use crate::connect::session::{self, Session};
use crate::connect::shared::is_missing;
use crate::error::{Error, RemoteError, Result, SqlState};
use crate::fault::fault_point;
use crate::guc;
use crate::pg::fd::ExternalFd;
use crate::pg::wait::{self, Interest};
use crate::pq::{Connection, Polling};
use crate::sql::marks::SESSION_MARK;
use crate::sql::{NODE, REMOTE_SCHEMA, Statement, Verb};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Bytes of statements that are handed to libpq before it is asked to send them.
const PARCEL: usize = 16 * 1024;

/// What a server may send before it is connected. An honest one sends a few kB.
const LONGEST_GREETING: u64 = 128 * 1024;
/// Steps of connecting at once. An honest server needs fewer altogether.
const MOST_POLLS: usize = 16;
/// How poolers refuse a start-up parameter that they do not know, `options` for one.
const REFUSED_PARAMETER: &str = "unsupported startup parameter";
/// How long after its deadline a link goes on if its server is sending.
const LATE: Duration = Duration::from_secs(1);

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

/// What a server is asked in an exchange of its own before the run. A new connection is introduced in it, so
/// that nothing is sent to whoever should not get it, and who runs a transaction is known before it can be
/// lost.
struct Questions {
    /// The schema of its extension.
    extension: bool,
    /// Its name in the paths of changes.
    node: bool,
    sent: bool,
}

impl Questions {
    /// The statements, once.
    fn take_statements(&mut self) -> Option<Vec<Statement>> {
        let asked = [(self.extension, REMOTE_SCHEMA), (self.node, NODE)]
            .into_iter()
            .filter(|(asks, _)| *asks);
        let statements = asked.map(|(_, text)| Statement::plain(text)).collect();
        (!std::mem::replace(&mut self.sent, true)).then_some(statements)
    }
}

enum State {
    Connecting {
        connection: Connection,
        fd: ExternalFd,
        polling: Polling,
        since: Instant,
    },
    /// Connected, with nothing in flight.
    Resting(Session),
    Running(Session),
    /// Without a connection, for good.
    Closed,
}

/// See the module's head.
pub struct Link<'f> {
    endpoint: Rc<Endpoint>,
    state: State,
    feed: Option<Box<dyn Feed + 'f>>,
    /// Statements fetched but not sent yet: the end must be known when the last ones are.
    ahead: Option<Vec<Statement>>,
    ending: Ending,
    answers: Answers,
    /// See [`Answers::with_room`].
    room: Option<usize>,
    /// How long a server may take for an answer, where that is not `pg_rowsync.delivery_timeout`.
    patience: Option<Duration>,
    /// What the server is being asked, before the run.
    questions: Option<Questions>,
    /// The end of the pipeline was handed to libpq.
    ended: bool,
    commit_sent: bool,
    /// When the last answer came or the last statements had left. Bytes that complete no answer are no
    /// progress: a server could send them for ever.
    progress: Instant,
    /// When the link was first found to be late.
    late: Option<Instant>,
    /// When statements were last handed to libpq.
    fed_at: Instant,
    /// The kernel did not take everything: wait for writing too.
    write_blocked: bool,
    /// A transaction begins with the next statement.
    begins: bool,
    /// How the transaction can be known whose outcome is.
    lost: LostSession,
    /// The session was there before the link.
    was_idle: bool,
    /// The server's clock was so far ahead that it refused to begin.
    was_late: bool,
    /// What was run had been prepared, if only in part.
    was_prepared: bool,
    /// The process that served the run did not have what it was to execute by name.
    was_missing: bool,
    /// The server refused to begin otherwise than in a block.
    was_unlike: bool,
    failure: Option<Error>,
}

impl<'f> Link<'f> {
    /// A link over the endpoint's idle session, or else one that begins to connect.
    ///
    /// # Errors
    /// 2F003 for a missing password, 53000 when the backend has no descriptor to spare.
    pub fn open(endpoint: &Rc<Endpoint>) -> Result<Self> {
        match session::take(endpoint) {
            Some(session) => Ok(Self {
                was_idle: true,
                ..Self::over(session)
            }),
            None => Self::connect(endpoint),
        }
    }

    /// A link that connects anew.
    ///
    /// # Errors
    /// As for [`Link::open`].
    pub fn connect(endpoint: &Rc<Endpoint>) -> Result<Self> {
        endpoint.check_before()?;
        Ok(Self::with(
            endpoint.clone(),
            Self::begin_to_connect(endpoint)?,
        ))
    }

    fn begin_to_connect(endpoint: &Endpoint) -> Result<State> {
        fault_point!(Connect);
        let refused = |reason: &str| Error::Connect {
            server: endpoint.account.server_name.clone(),
            sqlstate: SqlState::new("53000"),
            reason: reason.to_owned(),
        };
        let fd = ExternalFd::acquire()
            .ok_or_else(|| refused("There are too many open files on the local server."))?;
        let connection =
            Connection::start(endpoint.params()).ok_or_else(|| refused("Out of memory."))?;
        // libpq's protocol: after the start wait for writing, then poll; unless it has failed already,
        // over a name that does not resolve or a socket that is not there.
        let polling = if connection.has_failed() {
            Polling::Failed
        } else {
            Polling::Write
        };
        Ok(State::Connecting {
            connection,
            fd,
            polling,
            since: Instant::now(),
        })
    }

    /// A link over a session that is at rest.
    pub fn over(session: Session) -> Self {
        Self::with(session.endpoint.clone(), State::Resting(session))
    }

    fn with(endpoint: Rc<Endpoint>, state: State) -> Self {
        Self {
            endpoint,
            state,
            feed: None,
            ahead: None,
            ending: Ending::Open,
            answers: Answers::default(),
            room: None,
            patience: None,
            questions: None,
            ended: false,
            commit_sent: false,
            progress: Instant::now(),
            late: None,
            fed_at: Instant::now(),
            write_blocked: false,
            begins: false,
            lost: LostSession::default(),
            was_idle: false,
            was_late: false,
            was_prepared: false,
            was_missing: false,
            was_unlike: false,
            failure: None,
        }
    }

    /// Gives the link statements to run, now or as soon as it is connected.
    pub fn run(&mut self, feed: impl Feed + 'f, ending: Ending) {
        self.feed = Some(Box::new(feed));
        self.ending = ending;
        self.failure = None;
        self.was_late = false;
        self.was_missing = false;
        self.was_unlike = false;
        self.rewind();
        self.start();
    }

    /// Back to where nothing was sent.
    fn rewind(&mut self) {
        self.ahead = None;
        self.begins = false;
        self.answers = Answers::with_room(self.room);
        self.ended = false;
        self.commit_sent = false;
        self.write_blocked = false;
        self.went_on();
        self.fed_at = self.progress;
    }

    fn went_on(&mut self) {
        self.progress = Instant::now();
        self.late = None;
    }

    fn start(&mut self) {
        let (Some(feed), State::Resting(session)) = (&self.feed, &self.state) else {
            return;
        };
        let questions = Questions {
            extension: feed.needs_remote_schema() && !session.knows_remote_schema(),
            node: feed.needs_node() && session.node().is_none(),
            sent: false,
        };
        let is_new = session.peer.kind() == PeerKind::Unknown;
        self.questions = (is_new || questions.extension || questions.node).then_some(questions);
        if let State::Resting(session) = std::mem::replace(&mut self.state, State::Closed) {
            // Within a transaction, the server knows what it needs.
            self.begins = session.connection.is_idle();
            self.answers = Answers::with_room(self.room);
            self.went_on();
            self.state = State::Running(session);
        }
    }

    fn server(&self) -> &str {
        &self.endpoint.account.server_name
    }

    /// The endpoint the link leads to.
    pub fn endpoint(&self) -> &Rc<Endpoint> {
        &self.endpoint
    }

    /// Whether nothing more happens until the next [`Link::run`].
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Resting(_) | State::Closed)
    }

    /// Whether it has a connection to run something over.
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Resting(_))
    }

    /// Whether nothing is left to be sent.
    pub fn has_sent(&self) -> bool {
        self.is_done() || (self.ended && !self.write_blocked)
    }

    /// Whether what it runs may have been committed.
    pub fn commit_sent(&self) -> bool {
        self.commit_sent
    }

    /// How the transaction under way can be known.
    pub fn transaction(&self) -> Option<&LostSession> {
        match &self.state {
            State::Running(session) | State::Resting(session) => Some(session.transaction()),
            State::Connecting { .. } | State::Closed => None,
        }
    }

    /// The session that may still commit what was run. Means something only if the outcome is unknown.
    pub fn lost_session(&self) -> &LostSession {
        &self.lost
    }

    /// Whether the session was there before the link.
    pub fn was_idle(&self) -> bool {
        self.was_idle
    }

    /// Whether the server refused to begin since its clock was not known well enough. It is now.
    pub fn was_late(&self) -> bool {
        self.was_late
    }

    /// Whether the process that served the run did not have what it was to execute by name.
    pub fn was_missing(&self) -> bool {
        self.was_missing
    }

    /// Whether the server refused to begin otherwise than in a block. The next run has one.
    pub fn was_unlike(&self) -> bool {
        self.was_unlike
    }

    /// What became of the run.
    ///
    /// # Errors
    /// The first error, see [`Error`] for what each says about the server's state.
    pub fn result(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    /// Whether the run failed over something that may come of what was prepared being out of date. If so
    /// it is forgotten.
    pub fn was_outdated(&mut self) -> bool {
        let outdated = self.was_prepared
            && matches!(&self.failure, Some(Error::Remote(error)) if error.sqlstate.may_be_outdated());
        if let (true, State::Resting(session)) = (outdated, &mut self.state) {
            session.prepared.forget();
            session.shared.suspect();
        }
        outdated
    }

    /// Takes out the conflicts of the run that its policies let pass. Means something only where the run
    /// had no failure.
    pub fn take_conflicts(&mut self) -> Tally {
        self.answers.take_conflicts()
    }

    /// See [`Answers::rows`].
    pub fn answers(&self) -> &[Vec<Option<String>>] {
        self.answers.rows()
    }

    /// Takes out how many changes of what was run were not sent because they have been there.
    pub fn take_held_back(&mut self) -> u64 {
        self.session()
            .map_or(0, |session| std::mem::take(&mut session.held_back))
    }

    /// Whether the server has rolled back by itself, or there is nothing to roll back.
    pub fn is_idle(&self) -> bool {
        matches!(&self.state, State::Resting(session) if session.connection.is_idle())
    }

    /// Whether the server has not refused values in binary form.
    pub fn takes_binary(&self) -> bool {
        matches!(&self.state, State::Resting(session) if !session.only_text)
    }

    /// The session, while it is at rest.
    pub fn session(&mut self) -> Option<&mut Session> {
        match &mut self.state {
            State::Resting(session) => Some(session),
            _ => None,
        }
    }

    /// The session, if the link ended with one at rest.
    pub fn into_session(self) -> Option<Session> {
        match self.state {
            State::Resting(session) => Some(session),
            _ => None,
        }
    }

    /// What to wait for.
    pub fn interest(&self) -> Option<Interest> {
        match &self.state {
            State::Connecting {
                connection,
                polling,
                ..
            } => Some(connecting_interest(connection, *polling)),
            State::Running(session) => {
                // Writing is waited for only when flush left something.
                Some(session.interest(self.write_blocked))
            }
            State::Resting(_) | State::Closed => None,
        }
    }

    /// Waits for that, for the process latch, or for a time.
    pub fn wait(&mut self, time: Duration) {
        let interest = self.interest();
        match &mut self.state {
            State::Running(session) => session.wait(self.write_blocked, time),
            _ => wait::wait(interest.as_slice(), time),
        }
    }

    /// When the link must have got further.
    pub fn deadline(&self) -> Instant {
        match &self.state {
            State::Connecting { since, .. } => *since + guc::connect_timeout(),
            _ => self.progress + self.patience.unwrap_or_else(guc::delivery_timeout),
        }
    }

    /// Gives the server this long for each answer, and keeps so many bytes of rows.
    pub fn expect_much(&mut self, patience: Duration, room: usize) {
        self.patience = Some(patience);
        self.room = Some(room);
    }

    /// Whether the link may go on after its deadline, with a server that is sending: the caller may have
    /// done other things while the answer came. Not for long, since the server may send for ever.
    pub fn may_be_late(&mut self, now: Instant) -> bool {
        *self.late.get_or_insert(now) + LATE > now
    }

    /// The deadline has passed.
    pub fn expire(&mut self) {
        let server = self.server().to_owned();
        let (what, limit): (_, Duration) = match &self.state {
            State::Connecting { .. } => ("connecting", guc::connect_timeout()),
            _ => {
                let limit = self.patience.unwrap_or_else(guc::delivery_timeout);
                ("waiting for the server", limit)
            }
        };
        let millis = limit.as_millis() as i64;
        if self.commit_sent {
            self.in_doubt(&format!("No answer for {millis} ms"));
        } else {
            self.close(Error::Timeout {
                server,
                what,
                millis,
            });
        }
    }

    /// Gives up on learning the outcome.
    pub fn in_doubt(&mut self, reason: &str) {
        let (server, reason) = (self.server().to_owned(), reason.to_owned());
        self.close(Error::InDoubt { server, reason });
    }

    fn close(&mut self, error: Error) {
        if let State::Running(session) = std::mem::replace(&mut self.state, State::Closed) {
            self.lost = session.transaction().clone();
        }
        self.feed = None;
        self.failure = Some(error);
    }

    /// Does what can be done without waiting.
    pub fn step(&mut self) {
        if let State::Connecting { .. } = self.state {
            self.step_connecting();
        }
        if let State::Running(_) = self.state
            && let Err(reason) = self.step_running()
        {
            self.broken(&reason);
        }
    }

    fn step_connecting(&mut self) {
        let deadline = self.deadline();
        let State::Connecting {
            connection,
            polling,
            ..
        } = &mut self.state
        else {
            return;
        };
        // PQconnectPoll must not be called before the socket is ready.
        let mut polls = 0;
        while matches!(polling, Polling::Read | Polling::Write) {
            let ready = wait::is_ready(&connecting_interest(connection, *polling));
            // How long a poll takes is up to the server, which may have much to say.
            let is_late = polls > 0 && Instant::now() >= deadline;
            if !ready || is_late || polls == MOST_POLLS {
                return;
            }
            *polling = connection.poll();
            polls += 1;
            connection.forget_notifications();
            if connection.heard() > LONGEST_GREETING || connection.is_swollen() {
                let (server, reason) = (self.server().to_owned(), SENDS_TOO_MUCH.to_owned());
                let sqlstate = SqlState::CANNOT_CONNECT;
                return self.close(Error::Connect {
                    server,
                    sqlstate,
                    reason,
                });
            }
        }
        let State::Connecting {
            mut connection,
            fd,
            polling,
            since,
        } = std::mem::replace(&mut self.state, State::Closed)
        else {
            return;
        };
        if polling == Polling::Failed || !connection.pipelined() {
            let (sqlstate, reason) = connection.connect_error();
            if !self.endpoint.is_bare() && reason.contains(REFUSED_PARAMETER) {
                self.endpoint.leave_out_options();
                drop((connection, fd));
                return self.connect_again(since);
            }
            let server = self.server().to_owned();
            return self.close(Error::Connect {
                server,
                sqlstate,
                reason,
            });
        }
        if let Err(error) = self.endpoint.check_after(connection.used_password()) {
            return self.close(error);
        }
        self.state = State::Resting(Session::new(connection, self.endpoint.clone(), fd));
        self.start();
    }

    /// Begins anew within the time that began then.
    fn connect_again(&mut self, since: Instant) {
        match Self::begin_to_connect(&self.endpoint) {
            Ok(State::Connecting {
                connection,
                fd,
                polling,
                ..
            }) => {
                self.state = State::Connecting {
                    connection,
                    fd,
                    polling,
                    since,
                };
            }
            Ok(_) => {}
            Err(error) => self.close(error),
        }
    }

    /// Reads, feeds, flushes until it would block or is done. An error is that of a broken
    /// connection.
    fn step_running(&mut self) -> std::result::Result<(), String> {
        loop {
            self.read_answers()?;
            if self.ended && self.answers.are_complete() {
                self.rest();
                if matches!(self.state, State::Running(_)) {
                    continue;
                }
                return Ok(());
            }
            self.flush()?;
            if self.write_blocked || self.ended {
                return Ok(());
            }
            self.feed_next()?;
            if self.ended {
                // Whatever comes now comes after a wait.
                return self.flush();
            }
        }
    }

    fn flush(&mut self) -> std::result::Result<(), String> {
        let State::Running(session) = &mut self.state else {
            return Ok(());
        };
        self.write_blocked = !session.connection.flush()?;
        if !self.write_blocked {
            self.progress = self.progress.max(self.fed_at);
        }
        Ok(())
    }

    fn rest(&mut self) {
        let State::Running(mut session) = std::mem::replace(&mut self.state, State::Closed) else {
            return;
        };
        // In the middle of a transaction, nothing has been committed whatever the answers were.
        let ends_block = self.ending != Ending::Open && self.questions.is_none();
        if (self.commit_sent || ends_block)
            && self.failure.is_none()
            && !session.connection.is_idle()
        {
            self.state = State::Running(session);
            return self.broken(BROKE_PROTOCOL);
        }
        if let Some(questions) = self.questions.take()
            && self.failure.is_none()
        {
            if session.peer.kind() == PeerKind::Unknown {
                self.state = State::Running(session);
                return self.broken(BROKE_PROTOCOL);
            }
            let mut answers = self
                .answers
                .rows()
                .iter()
                .map(|rows| rows.first().cloned().flatten());
            if questions.extension {
                session.set_remote_schema(answers.next().flatten());
            }
            if questions.node {
                session.set_node(answers.next().flatten());
            }
            self.state = State::Resting(session);
            self.rewind();
            return self.start();
        }
        if self
            .failure
            .as_ref()
            .is_some_and(|e| e.sqlstate() == SqlState::UNDEFINED_FUNCTION)
        {
            // Its extension may be another by now.
            session.forget_remote_schema();
        }
        let failure = self.failure.as_ref();
        let (named, shared) = (
            session.prepared.settle(failure.is_none()),
            session.shared.settle(failure),
        );
        self.was_prepared = named || shared;
        self.was_missing = shared && failure.is_some_and(is_missing);
        session.settle_types(failure.is_none());
        if matches!(self.failure, Some(Error::Connect { .. })) {
            // The session was refused, and is of no use.
            return;
        }
        self.state = State::Resting(session);
    }

    /// Hands the next statements to libpq, and with the last ones the end of the pipeline.
    fn feed_next(&mut self) -> std::result::Result<(), String> {
        // After a failure the server skips everything up to the end of the pipeline.
        if self.failure.is_some() {
            self.ahead = None;
            self.feed = None;
        }
        // Sent before the next ones are fetched, so that the server works while we encode; small ones
        // a parcel at a time.
        let mut parcel = 0;
        while parcel < PARCEL {
            let current = self
                .ahead
                .take()
                .map_or_else(|| self.fetch(), |s| Ok(Some(s)));
            let sent = match current {
                Ok(statements) => self.send(&statements.unwrap_or_default())?,
                Err(error) => Err(error),
            };
            self.ahead = match sent.and_then(|bytes| {
                parcel += bytes;
                self.fetch()
            }) {
                Ok(ahead) => ahead,
                Err(error) => {
                    // Our own fault: nothing may be committed, so the pipeline must not be ended.
                    self.close(error);
                    return Ok(());
                }
            };
            if self.ahead.is_none() {
                break;
            }
        }
        let State::Running(session) = &mut self.state else {
            return Ok(());
        };
        if self.ahead.is_some() {
            // Answers along the way show progress and fill no buffer on the server.
            session.connection.request_flush()?;
        } else {
            self.ended = true;
            self.commit_sent = self.ending == Ending::Commits
                && self.failure.is_none()
                && self.questions.is_none();
            session.connection.sync()?;
            self.answers.expect_end();
        }
        self.fed_at = Instant::now();
        Ok(())
    }

    /// Hands statements to libpq; says how many bytes they have. The inner error is our own fault.
    fn send(&mut self, statements: &[Statement]) -> std::result::Result<Result<usize>, String> {
        let mut bytes = 0;
        // A connection that is new is introduced even if nothing else is asked.
        if self.begins
            && self.questions.is_some()
            && let Err(error) = self.introduce(false)?
        {
            return Ok(Err(error));
        }
        let mut in_block = false;
        for statement in statements {
            let begins_block = statement.begins_block();
            // Its settings are to be those of the transaction.
            if self.begins
                && !begins_block
                && self.ending != Ending::Resolves
                && let Err(error) = self.introduce(in_block)?
            {
                return Ok(Err(error));
            }
            let State::Running(session) = &mut self.state else {
                return Ok(Ok(bytes));
            };
            session.connection.send(statement)?;
            if begins_block {
                self.answers.push_begin();
            } else {
                self.answers.push_expected(statement.conflicts.clone());
            }
            bytes += statement.size();
            self.begins |= begins_block || statement.rolls_back();
            in_block |= begins_block;
        }
        Ok(Ok(bytes))
    }

    /// A transaction begins: sends the statement that introduces it, where that is needed, and asks for its
    /// answer to be sent at once: should all others be lost, it tells who ran them. One that is executed by
    /// name begins a short transaction, of which its lock tells as much: an answer of its own would cost all
    /// who pass it on as much as the transaction's.
    fn introduce(&mut self, in_block: bool) -> std::result::Result<Result<()>, String> {
        self.begins = false;
        let State::Running(session) = &mut self.state else {
            return Ok(Ok(()));
        };
        let commits = matches!(self.ending, Ending::Commits | Ending::Prepares);
        match session.begin(commits && self.questions.is_none(), in_block) {
            Ok(Some(statement)) => {
                let is_named = matches!(statement.verb, Verb::Execute(_));
                session.connection.send(&statement)?;
                self.answers.push_introduction();
                if !is_named {
                    session.connection.request_flush()?;
                }
            }
            Ok(None) => {}
            Err(error) => return Ok(Err(error)),
        }
        Ok(Ok(()))
    }

    fn fetch(&mut self) -> Result<Option<Vec<Statement>>> {
        let State::Running(session) = &mut self.state else {
            return Ok(None);
        };
        if let Some(questions) = &mut self.questions {
            return Ok(questions.take_statements());
        }
        self.feed
            .as_mut()
            .map_or(Ok(None), |feed| feed.next(session))
    }

    fn read_answers(&mut self) -> std::result::Result<(), String> {
        let State::Running(session) = &mut self.state else {
            return Ok(());
        };
        let server = &self.endpoint.account.server_name;
        let read = self.answers.read(&mut session.connection, server);
        if let Some(answer) = self.answers.take_introduction() {
            session.introduce(&answer);
        }
        if let Some(error) = self.answers.take_failure()
            && self.failure.is_none()
        {
            self.failure = Some(match refusal(&error) {
                Some(Refusal::Late { clock }) => {
                    session.peer.set_clock(clock);
                    self.was_late = true;
                    let (server, millis) = (server.clone(), 0);
                    Error::Timeout {
                        server,
                        what: "beginning a transaction there",
                        millis,
                    }
                }
                Some(Refusal::Unlike) => {
                    session.must_begin = true;
                    self.was_unlike = true;
                    Error::Remote(Box::new(error))
                }
                Some(Refusal::Connection { sqlstate, reason }) => Error::Connect {
                    server: server.clone(),
                    sqlstate,
                    reason,
                },
                None => Error::Remote(Box::new(error)),
            });
        }
        if read? {
            self.went_on();
        }
        Ok(())
    }

    fn broken(&mut self, reason: &str) {
        let server = self.server().to_owned();
        // What the server said before it hung up tells more than libpq's own words.
        let reason = match &self.failure {
            Some(error @ Error::Remote(_)) => error.to_string(),
            _ => reason.to_owned(),
        };
        // What others than the server's process say of it need not be so.
        let is_direct =
            matches!(&self.state, State::Running(session) if session.peer.keeps_session());
        let is_refused = self.answers.are_refusal() && is_direct;
        self.close(if self.commit_sent && !is_refused {
            Error::InDoubt { server, reason }
        } else {
            Error::Lost { server, reason }
        });
    }
}

/// Why a session refused to go on when it was introduced.
enum Refusal {
    /// By the server's clock it is too late.
    Late {
        clock: i64,
    },
    /// Transactions begin otherwise than ours do.
    Unlike,
    Connection {
        sqlstate: SqlState,
        reason: String,
    },
}

fn refusal(error: &RemoteError) -> Option<Refusal> {
    if error.sqlstate != SqlState::INVALID_TEXT {
        return None;
    }
    let (_, message) = error.message.split_once(SESSION_MARK)?;
    let message = message.trim_end_matches(['"', '\u{bb}', '\u{201d}', '\u{201c}', '\'']);
    let (why, number) = message.split_once(' ').unwrap_or((message, ""));
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    Some(match why {
        "late" => Refusal::Late {
            clock: digits.parse().ok()?,
        },
        "unlike" => Refusal::Unlike,
        "itself" => Refusal::Connection {
            sqlstate: SqlState::REJECTED_CONNECTION,
            reason: "The server leads back to this database itself.".to_owned(),
        },
        "pooled" => Refusal::Connection {
            sqlstate: SqlState::PROTOCOL_VIOLATION,
            reason: format!(
                "The connection leads through a pooler: it is served by process {digits} and was told of \
                 another one. The server's option \"pooled\" is off."
            ),
        },
        _ => return None,
    })
}

fn connecting_interest(connection: &Connection, polling: Polling) -> Interest {
    let read = polling == Polling::Read;
    Interest {
        socket: connection.socket(),
        read,
        write: !read,
    }
}
