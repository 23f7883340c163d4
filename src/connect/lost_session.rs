//! Which remote session may still commit a delivery whose outcome is unknown. Pure.

/// A session of a server, as far as it could be known when its connection was lost.
///
/// Over a direct connection it is one process: its ID, and when it started, since IDs are used again.
/// Otherwise it is the transaction that has, or will have, the advisory lock `token`: it takes the lock
/// first, then looks at the server's clock, and goes no further after `not_after`. So once that moment has
/// passed without the lock being held, it cannot happen any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LostSession {
    pub backend_pid: Option<i32>,
    /// In microseconds since 1970, by the server's clock.
    pub backend_start: Option<i64>,
    pub token: Option<i64>,
    /// In microseconds since 1970, by the server's clock. `None` once the transaction is known to have
    /// begun.
    pub not_after: Option<i64>,
    /// The transaction's full id there, where that was asked for before it was committed.
    pub xact: Option<i64>,
}

/// What became of a lost session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LostState {
    /// It can commit nothing any more.
    Gone,
    /// It was asked to end and has not yet.
    Ending,
    /// This role's, which may not be ended by ours.
    OfOther(String),
    /// Its transaction may still begin.
    MayBegin,
}

impl LostState {
    /// Reads the answer to [`crate::sql::end_session`]. What is not understood is not taken for gone.
    pub fn parse(answer: &str) -> Self {
        match answer.split_once(' ') {
            _ if answer == "gone" => Self::Gone,
            _ if answer == "early" => Self::MayBegin,
            Some(("other", role)) => Self::OfOther(role.to_owned()),
            _ => Self::Ending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_to_be_gone_is_gone() {
        assert_eq!(LostState::parse("gone"), LostState::Gone);
        assert_eq!(LostState::parse("early"), LostState::MayBegin);
        assert_eq!(
            LostState::parse("other a b"),
            LostState::OfOther("a b".into())
        );
        for text in ["", "ending", "gone ", "f"] {
            assert_eq!(LostState::parse(text), LostState::Ending, "{text:?}");
        }
    }
}
