//! What a session knows of the process that serves it. Pure.
//!
//! The first exchange over a connection asks for the process ID and for the settings that are in force,
//! before anything else is sent. Where the answer is what libpq was told and what was asked for at start-up,
//! the connection leads to that one process and is *direct*. Otherwise an intermediary hands each
//! transaction to a process of its choice and may have dropped the start-up parameters: it is *pooled*.

use serde::Deserialize;
use std::time::Instant;

/// A server from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerRun {
    /// Its system identifier.
    pub system: u64,
    /// When it was started: day and time in digits.
    pub started: u64,
}

/// The longest answer that is read: an honest one has some hundred bytes.
const MAX_ANSWER_BYTES: usize = 16 * 1024;

/// What the server said of itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Introduction {
    /// Process ID of the backend.
    pub pid: i32,
    /// When the backend started, in microseconds since 1970; `None` where the role may not see it.
    #[serde(default)]
    pub started: Option<i64>,
    /// The server's clock, in microseconds since 1970.
    pub clock: i64,
    /// Names of settings that are other than asked for.
    #[serde(default)]
    pub unset: Option<Vec<String>>,
}

impl Introduction {
    /// Reads the answer; `None` for one that is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() <= MAX_ANSWER_BYTES)
            .then(|| serde_json::from_str(text).ok())
            .flatten()
    }
}

/// How a connection leads to its server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PeerKind {
    /// Not known before the first answer.
    #[default]
    Unknown,
    /// To one process, which has the settings.
    Direct,
    /// To one process, without the settings: something there undoes them.
    Unset,
    /// Through a pooler.
    Pooled,
}

/// What is known of the process at the other end of a connection.
#[derive(Debug, Default)]
pub struct Peer {
    kind: PeerKind,
    /// The process that introduced itself last.
    pid: Option<i32>,
    started: Option<i64>,
    /// The server's clock, and when that was received.
    clock: Option<(i64, Instant)>,
}

impl Peer {
    /// Takes in what the server said. `reported`: the process ID that libpq was told; `pooled`: the user says
    /// that there is a pooler.
    pub fn introduce(&mut self, said: Introduction, reported: i32, pooled: bool) {
        self.clock = Some((said.clock, Instant::now()));
        self.pid = Some(said.pid);
        self.started = said.started.or(self.started);
        // Once pooled, always: a later transaction may meet the one process by chance.
        let is_pooled = pooled || said.pid != reported || self.kind == PeerKind::Pooled;
        let is_unset = said.unset.is_some_and(|unset| !unset.is_empty());
        self.kind = match (is_pooled, is_unset || self.kind == PeerKind::Unset) {
            (true, _) => PeerKind::Pooled,
            (false, true) => PeerKind::Unset,
            (false, false) => PeerKind::Direct,
        };
    }

    /// How the connection leads to the server.
    pub fn kind(&self) -> PeerKind {
        self.kind
    }

    /// Whether each transaction must ask and set.
    pub fn must_introduce(&self) -> bool {
        self.kind != PeerKind::Direct
    }

    /// Whether it is still to be asked which settings are in force.
    pub fn asks_settings(&self) -> bool {
        self.kind == PeerKind::Unknown
    }

    /// Whether what one transaction leaves in its session, the next one finds there.
    pub fn keeps_session(&self) -> bool {
        matches!(self.kind, PeerKind::Direct | PeerKind::Unset)
    }

    /// The process that introduced itself last.
    pub fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// The process of a connection that leads to one process only, and when it started.
    pub fn process(&self) -> Option<(i32, Option<i64>)> {
        self.pid
            .filter(|_| self.keeps_session())
            .map(|pid| (pid, self.started))
    }

    /// What the server's clock shows now, in microseconds since 1970, as far as is known.
    pub fn clock(&self) -> Option<i64> {
        let (clock, reported) = self.clock?;
        Some(clock.saturating_add(reported.elapsed().as_micros() as i64))
    }

    /// The server's clock is known.
    pub fn set_clock(&mut self, clock: i64) {
        self.clock = Some((clock, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(pid: i32, unset: &[&str]) -> Introduction {
        let unset = Some(unset.iter().map(|name| (*name).to_owned()).collect());
        Introduction {
            pid,
            started: Some(7),
            clock: 1_000,
            unset,
        }
    }

    #[test]
    fn a_process_that_is_not_the_one_told_is_behind_a_pooler() {
        let mut peer = Peer::default();
        assert!(peer.must_introduce() && !peer.keeps_session() && peer.process().is_none());
        peer.introduce(said(12, &[]), 99, false);
        assert_eq!((peer.kind(), peer.pid()), (PeerKind::Pooled, Some(12)));
        // And stays so, whoever answers later.
        peer.introduce(said(99, &[]), 99, false);
        assert!(peer.must_introduce() && peer.process().is_none());
    }

    #[test]
    fn a_direct_connection_is_asked_once() {
        let mut peer = Peer::default();
        peer.introduce(said(12, &[]), 12, false);
        assert_eq!(peer.kind(), PeerKind::Direct);
        assert!(!peer.must_introduce() && peer.process() == Some((12, Some(7))));
        assert!(peer.clock().is_some_and(|clock| clock >= 1_000));
    }

    #[test]
    fn settings_that_are_undone_are_set_by_each_transaction() {
        let mut peer = Peer::default();
        peer.introduce(said(12, &["timezone"]), 12, false);
        assert_eq!(peer.kind(), PeerKind::Unset);
        assert!(peer.must_introduce() && peer.keeps_session());
        let mut peer = Peer::default();
        peer.introduce(said(12, &[]), 12, true);
        assert_eq!(peer.kind(), PeerKind::Pooled);
    }

    #[test]
    fn an_answer_is_read_or_left() {
        let text = r#"{"pid": 5, "started": null, "clock": 3, "unset": null}"#;
        let expected = Introduction {
            pid: 5,
            started: None,
            clock: 3,
            unset: None,
        };
        assert_eq!(Introduction::parse(text), Some(expected));
        for text in [
            "",
            "5",
            r#"{"pid": "x"}"#,
            &format!("{text}{}", " ".repeat(20_000)),
        ] {
            assert_eq!(Introduction::parse(text), None);
        }
    }
}
