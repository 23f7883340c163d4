//! What a run has come to: its answers, its first error, and what it relied on in vain. It grows while
//! the run goes on, and is the link's once that is over.

use crate::connect::session::Session;
use crate::connect::shared::is_missing;
use crate::delivery::answers::Answers;
use crate::error::{Error, RemoteError, SqlState};
use crate::sql::marks::SESSION_MARK;

/// An assumption of a failed run that did not hold. The session knows better now: the same run may succeed the
/// next time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unmet {
    /// None of the following.
    #[default]
    Nothing,
    /// The server's clock: by the one that was assumed, the transaction would have begun too late.
    Clock,
    /// A transaction begins with its first statement. This server needs a transaction block.
    ImplicitBegin,
    /// A statement that the process serving the run was to execute by name, and did not have.
    SharedStatement,
    /// Statements that were prepared earlier. They may be out of date.
    PreparedStatements,
}

#[derive(Default)]
pub struct RunOutcome {
    pub answers: Answers,
    /// The first error.
    pub failure: Option<Error>,
    pub unmet: Unmet,
    /// The end of a pipeline that commits was handed to libpq.
    pub commit_sent: bool,
}

impl RunOutcome {
    /// Notes what a statement was refused with, unless another was before.
    pub fn note_refusal(&mut self, error: RemoteError, session: &mut Session) {
        if self.failure.is_some() {
            return;
        }
        let server = || session.endpoint.account.server_name.clone();
        self.failure = Some(match refusal(&error) {
            Some(Refusal::Late { clock }) => {
                self.unmet = Unmet::Clock;
                let server = server();
                session.peer.set_clock(clock);
                Error::Timeout {
                    server,
                    what: "beginning a transaction there",
                    millis: 0,
                }
            }
            Some(Refusal::Unlike) => {
                self.unmet = Unmet::ImplicitBegin;
                session.must_begin = true;
                Error::Remote(Box::new(error))
            }
            Some(Refusal::Connection { sqlstate, reason }) => Error::Connect {
                server: server(),
                sqlstate,
                reason,
            },
            None => Error::Remote(Box::new(error)),
        });
    }

    /// The run is over, all answers have come: the session learns from how it ended. Gives the session
    /// back unless the server refuses it.
    pub fn settle(&mut self, mut session: Session) -> Option<Session> {
        let failure = self.failure.as_ref();
        if failure.is_some_and(|error| error.sqlstate() == SqlState::UNDEFINED_FUNCTION) {
            // Its extension may be another by now.
            session.forget_remote_schema();
        }
        let named = session.prepared.settle(failure.is_none());
        let shared = session.shared.settle(failure);
        session.settle_types(failure.is_none());
        if failure.is_some() && self.unmet == Unmet::Nothing {
            if shared && failure.is_some_and(is_missing) {
                self.unmet = Unmet::SharedStatement;
            } else if named || shared {
                self.unmet = Unmet::PreparedStatements;
            }
        }
        let is_refused = matches!(failure, Some(Error::Connect { .. }));
        (!is_refused).then_some(session)
    }

    /// Whether the failure may come of what was prepared being out of date.
    pub fn is_outdated(&self) -> bool {
        let named = matches!(
            self.unmet,
            Unmet::SharedStatement | Unmet::PreparedStatements
        );
        named
            && matches!(&self.failure, Some(Error::Remote(error)) if error.sqlstate.may_be_outdated())
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
