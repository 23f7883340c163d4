//! One server in one exchange: connects if need be, feeds statements into a pipeline while reading
//! its answers, and says in the end what took effect. A state machine that never waits; `event_loop`
//! waits for several of them.

mod connecting;
mod exchange;
mod outcome;

pub use exchange::Ending;
pub use outcome::Unmet;

use super::feed::Feed;
use crate::conflict::Tally;
use crate::connect::endpoint::Endpoint;
use crate::connect::lost_session::LostSession;
use crate::connect::session::{self, Session};
use crate::error::{Error, Result};
use crate::guc;
use crate::pg::wait::{self, Interest};
use connecting::{ConnectOutcome, Connecting};
use exchange::{Exchange, ExchangeFailure, Run};
use outcome::RunOutcome;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long after its deadline a link goes on if its server is sending.
const LATE_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// A link to one server. Each state is named by what it waits for, and holds what it needs for that:
///
/// ```text
///   connect()                                      open(), over() a session
///       |                                                    |
///       v                                                    v
///  +-----------------------+  accepted, no run yet  +-------------------+
///  | Connecting            |----------------------->| Resting           |
///  | the server's greeting |                        | a run             |<---+
///  +-----------------------+                        +-------------------+    |
///       | |  accepted                                        | run()         |
///       | +--------------------+  +--------------------------+               |
///       |                      |  |                                          |
///       |    Running           v  v                                          |
///       |   +-------------------------------------------------------+        |
///       |   | Answers -------------> Room -------------> End        |--------+
///       |   | to what must be known  to send the next    of the     |  all answers
///       |   | before the run         statements          pipeline   |  have come
///       |   +-------------------------------------------------------+
///       | refused, late             | broken, late, refused,     | broken, late, where
///       |                           | our own error: lost        | the run commits: in doubt
///       v                           v                            v
///  +---------------------------------------------------------------------+
///  | Closed: nothing, for good                                           |
///  +---------------------------------------------------------------------+
/// ```
///
/// A run skips `Answers` where all is known already. For what is lost and what in doubt see
/// [`Exchange::commit_sent`]. A run that is given to a link that is not at rest fails.
pub struct Link<'f> {
    endpoint: Rc<Endpoint>,
    state: State<'f>,
    limits: AnswerLimits,
    /// What the last run has come to, once it is over.
    outcome: RunOutcome,
    /// The session was there before the link.
    was_idle: bool,
}

#[expect(
    clippy::large_enum_variant,
    reason = "a box would be an allocation for each run"
)]
enum State<'f> {
    /// Until the server has accepted the connection; then the run begins, if there is one.
    Connecting(Connecting, Option<Run<'f>>),
    /// Until there is a run. Nothing is in flight.
    Resting(Session),
    /// Until its answers have come.
    Running(Exchange<'f>),
    /// For nothing: there is no connection any more. How the transaction can be known that was under way.
    Closed(LostSession),
}

/// What a server may take, where that is not what the settings say.
#[derive(Clone, Copy, Default)]
struct AnswerLimits {
    /// How long, for an answer.
    answer_time: Option<Duration>,
    /// See [`Answers::with_room`](super::answers::Answers::with_room).
    answer_bytes: Option<usize>,
}

impl AnswerLimits {
    fn answer_time(self) -> Duration {
        self.answer_time.unwrap_or_else(guc::delivery_timeout)
    }
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
        let connecting = Connecting::begin(endpoint)?;
        Ok(Self::with(
            endpoint.clone(),
            State::Connecting(connecting, None),
        ))
    }

    /// A link over a session that is at rest.
    pub fn over(session: Session) -> Self {
        Self::with(session.endpoint.clone(), State::Resting(session))
    }

    fn with(endpoint: Rc<Endpoint>, state: State<'f>) -> Self {
        Self {
            endpoint,
            state,
            limits: AnswerLimits::default(),
            outcome: RunOutcome::default(),
            was_idle: false,
        }
    }

    /// Gives the server this long for each answer, and keeps so many bytes of rows.
    pub fn expect_much(&mut self, answer_time: Duration, answer_bytes: usize) {
        self.limits = AnswerLimits {
            answer_time: Some(answer_time),
            answer_bytes: Some(answer_bytes),
        };
    }

    /// Gives the link statements to run, now or as soon as it is connected.
    pub fn run(&mut self, feed: impl Feed + 'f, ending: Ending) {
        let feed = Box::new(feed);
        let run = Run { feed, ending };
        match std::mem::replace(&mut self.state, State::Closed(LostSession::default())) {
            State::Resting(session) => self.begin(session, run),
            State::Connecting(connecting, None) => {
                self.state = State::Connecting(connecting, Some(run));
            }
            illegal => {
                self.state = illegal;
                let failure = self.outcome.failure.take();
                self.close(failure.unwrap_or(Error::internal("run over a link not at rest")));
            }
        }
    }

    fn begin(&mut self, session: Session, run: Run<'f>) {
        self.outcome = RunOutcome::default();
        let mut exchange = Exchange::new(session, run, self.limits.answer_bytes);
        let begun = exchange.begin();
        self.state = State::Running(exchange);
        if let Err(stop) = begun {
            self.stop(stop);
        }
    }

    /// Does what can be done without waiting.
    pub fn step(&mut self) {
        if let State::Connecting(..) = self.state {
            self.step_connecting();
        }
        if let State::Running(exchange) = &mut self.state {
            match exchange.step() {
                Ok(false) => {}
                Ok(true) => self.rest(),
                Err(stop) => self.stop(stop),
            }
        }
    }

    fn step_connecting(&mut self) {
        let closed = State::Closed(LostSession::default());
        match std::mem::replace(&mut self.state, closed) {
            State::Connecting(connecting, run) => match (connecting.step(&self.endpoint), run) {
                (ConnectOutcome::Waiting(connecting), run) => {
                    self.state = State::Connecting(connecting, run);
                }
                (ConnectOutcome::Connected(session), Some(run)) => self.begin(session, run),
                (ConnectOutcome::Connected(session), None) => self.state = State::Resting(session),
                (ConnectOutcome::Failed(error), _) => self.close(error),
            },
            other => self.state = other,
        }
    }

    /// All answers have come.
    fn rest(&mut self) {
        let closed = State::Closed(LostSession::default());
        match std::mem::replace(&mut self.state, closed) {
            State::Running(exchange) => {
                let (session, mut outcome) = exchange.into_parts();
                if let Some(session) = outcome.settle(session) {
                    self.state = State::Resting(session);
                }
                self.outcome = outcome;
            }
            other => self.state = other,
        }
    }

    fn stop(&mut self, stop: ExchangeFailure) {
        let error = match (stop, &self.state) {
            (ExchangeFailure::Own(error), _) => error,
            (ExchangeFailure::Broken(reason), State::Running(exchange)) => exchange.broken(reason),
            (ExchangeFailure::Broken(reason), _) => Error::internal(reason),
        };
        self.close(error);
    }

    fn close(&mut self, error: Error) {
        let closed = State::Closed(LostSession::default());
        match std::mem::replace(&mut self.state, closed) {
            State::Running(exchange) => {
                let (session, outcome) = exchange.into_parts();
                self.state = State::Closed(session.transaction().clone());
                self.outcome = outcome;
            }
            State::Closed(lost) => self.state = State::Closed(lost),
            State::Connecting(..) | State::Resting(_) => {}
        }
        self.outcome.failure = Some(error);
    }

    /// When the link must have got further; `None` if it waits for nothing.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Connecting(connecting, _) => Some(connecting.deadline()),
            State::Running(exchange) => Some(exchange.progress() + self.limits.answer_time()),
            State::Resting(_) | State::Closed(_) => None,
        }
    }

    /// Whether the link may go on after its deadline, with a server that is sending: the caller may have
    /// done other things while the answer came. Not for long, since the server may send for ever.
    pub fn may_be_late(&mut self, now: Instant) -> bool {
        let late = match &mut self.state {
            State::Connecting(connecting, _) => &mut connecting.late,
            State::Running(exchange) => &mut exchange.late,
            State::Resting(_) | State::Closed(_) => return false,
        };
        *late.get_or_insert(now) + LATE_ANSWER_TIMEOUT > now
    }

    /// The deadline has passed.
    pub fn expire(&mut self) {
        let timeout = |server: String, what, limit: Duration| Error::Timeout {
            server,
            what,
            millis: limit.as_millis() as i64,
        };
        let error = match &self.state {
            State::Connecting(..) => {
                let server = self.endpoint.account.server_name.clone();
                timeout(server, "connecting", guc::connect_timeout())
            }
            State::Running(exchange) => {
                let limit = self.limits.answer_time();
                let reason = format!("No answer for {} ms", limit.as_millis());
                exchange.in_doubt_or(reason, |server, _| {
                    timeout(server, "waiting for the server", limit)
                })
            }
            State::Resting(_) | State::Closed(_) => return,
        };
        self.close(error);
    }

    /// Gives up on learning the outcome.
    pub fn in_doubt(&mut self, reason: &str) {
        let server = self.endpoint.account.server_name.clone();
        let reason = reason.to_owned();
        self.close(Error::InDoubt { server, reason });
    }

    /// What to wait for.
    pub fn interest(&self) -> Option<Interest> {
        match &self.state {
            State::Connecting(connecting, _) => Some(connecting.interest()),
            State::Running(exchange) => Some(exchange.interest()),
            State::Resting(_) | State::Closed(_) => None,
        }
    }

    /// Waits for that, for the process latch, or for a time.
    pub fn wait(&mut self, time: Duration) {
        if let State::Running(exchange) = &mut self.state {
            return exchange.wait(time);
        }
        wait::wait(self.interest().as_slice(), time);
    }

    /// The endpoint the link leads to.
    pub fn endpoint(&self) -> &Rc<Endpoint> {
        &self.endpoint
    }

    /// Whether nothing more happens until the next [`Link::run`].
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Resting(_) | State::Closed(_))
    }

    /// Whether it has a connection to run something over.
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Resting(_))
    }

    /// Whether nothing is left to be sent before answers have come.
    pub fn has_sent(&self) -> bool {
        match &self.state {
            State::Connecting(..) => false,
            State::Running(exchange) => exchange.has_sent(),
            State::Resting(_) | State::Closed(_) => true,
        }
    }

    /// Whether what it runs, or ran last, may have been committed.
    pub fn commit_sent(&self) -> bool {
        match &self.state {
            State::Running(exchange) => exchange.commit_sent(),
            State::Connecting(..) | State::Resting(_) | State::Closed(_) => {
                self.outcome.commit_sent
            }
        }
    }

    /// How the transaction under way can be known.
    pub fn transaction(&self) -> Option<&LostSession> {
        match &self.state {
            State::Running(exchange) => Some(exchange.session().transaction()),
            State::Resting(session) => Some(session.transaction()),
            State::Connecting(..) | State::Closed(_) => None,
        }
    }

    /// The session that may still commit what was run. Means something only if the outcome is unknown.
    pub fn lost_session(&self) -> LostSession {
        match &self.state {
            State::Closed(lost) => lost.clone(),
            _ => LostSession::default(),
        }
    }

    /// Whether the run was lost over a session that was there before the link: the server may have ended
    /// it, and a new one is as good.
    pub fn was_stale(&self) -> bool {
        self.was_idle && matches!(self.outcome.failure, Some(Error::Lost { .. }))
    }

    /// What became of the run.
    ///
    /// # Errors
    /// The first error, see [`Error`] for what each says about the server's state. A run that is not over
    /// counts as canceled.
    pub fn result(&self) -> Result<()> {
        match &self.state {
            State::Running(_) => Err(Error::Canceled),
            State::Connecting(..) | State::Resting(_) | State::Closed(_) => {
                self.outcome.failure.clone().map_or(Ok(()), Err)
            }
        }
    }

    /// What a run that failed relied on and was not so.
    pub fn unmet(&self) -> Unmet {
        self.outcome.unmet
    }

    /// Whether the run failed over something that may come of what was prepared being out of date. If so
    /// it is forgotten.
    pub fn was_outdated(&mut self) -> bool {
        let outdated = self.outcome.is_outdated();
        if let (true, State::Resting(session)) = (outdated, &mut self.state) {
            session.prepared.forget();
            session.shared.suspect();
        }
        outdated
    }

    /// Takes out the conflicts of the run that its policies let pass. Means something only where the run
    /// had no failure.
    pub fn take_conflicts(&mut self) -> Tally {
        self.outcome.answers.take_conflicts()
    }

    /// See [`Answers::rows`](super::answers::Answers::rows).
    pub fn answers(&self) -> &[Vec<Option<String>>] {
        self.outcome.answers.rows()
    }

    /// See [`Answers::last_value`](super::answers::Answers::last_value).
    pub fn last_value(&self) -> Option<&str> {
        self.outcome.answers.last_value()
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
}
