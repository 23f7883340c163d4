//! A model of the protocol, small enough that every order of its steps can be tried, with a crash, a lost
//! message or a lost session at any of them.
//!
//! The state holds what is durable (the local transaction's end, its decision, what each server has) and what
//! is not (how far the session is, what it knows, messages on their way, what a resolver has read). Every step
//! that the code makes, every message that arrives or does not, and every crash is a transition of its own;
//! the search visits every state that can be reached.

use std::collections::{BTreeSet, HashSet, VecDeque};

/// What a server has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
enum There {
    Nothing,
    Prepared,
    Committed,
    RolledBack,
}

/// The local transaction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
enum Here {
    Running,
    Committed,
    Aborted,
}

/// A message on its way to a server: it may arrive, also after its sender is gone, or never.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
enum Message {
    Prepare(usize),
    Commit(usize),
    Rollback(usize),
}

/// What a resolver has read of one server, in the order in which it reads.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
enum Reading {
    Idle,
    /// Whether there was a row before the server was asked.
    Rows {
        row: bool,
    },
    /// What the server had.
    Listed {
        row: bool,
        there: There,
    },
    /// What the server had, and whether the local transaction was over after that.
    Status {
        row: bool,
        there: There,
        over: bool,
    },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    here: Here,
    /// The decision of each server, as the table has it.
    row: Vec<bool>,
    there: Vec<There>,
    /// The session is alive.
    alive: bool,
    /// Servers that have told the session that they are prepared.
    answered: BTreeSet<usize>,
    sent: BTreeSet<usize>,
    /// Servers to which the second phase was sent.
    second: BTreeSet<usize>,
    messages: BTreeSet<Message>,
    resolver: Vec<Reading>,
}

/// Ways to get it wrong, which the search must find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Protocol {
    AsItIs,
    /// The second phase before the local commit, as mode `sync` commits.
    Early,
    /// The local commit before all servers have answered.
    Hasty,
    /// The resolver looks for the row first and asks whether the transaction is over afterwards.
    RowBeforeStatus,
    /// The resolver takes the lack of a row for an abort.
    NoStatus,
    /// The resolver removes the row of what it does not find, though it read the row after it had asked.
    RemovesUnseen,
}

impl State {
    fn new(servers: usize) -> Self {
        Self {
            here: Here::Running,
            row: vec![false; servers],
            there: vec![There::Nothing; servers],
            alive: true,
            answered: BTreeSet::new(),
            sent: BTreeSet::new(),
            second: BTreeSet::new(),
            messages: BTreeSet::new(),
            resolver: vec![Reading::Idle; servers],
        }
    }

    fn servers(&self) -> usize {
        self.there.len()
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut next = self.clone();
        change(&mut next);
        next
    }

    /// All states that one step leads to.
    fn next(&self, protocol: Protocol) -> Vec<Self> {
        let mut all = Vec::new();
        self.session(protocol, &mut all);
        self.network(&mut all);
        // One server at a time: what it reads of one says nothing of another.
        let busy = self
            .resolver
            .iter()
            .position(|reading| *reading != Reading::Idle);
        for server in 0..self.servers() {
            if busy.is_none_or(|busy| busy == server) {
                self.resolve(server, protocol, &mut all);
            }
        }
        all
    }

    fn session(&self, protocol: Protocol, all: &mut Vec<Self>) {
        if !self.alive {
            return;
        }
        // The process, the session or its server ends: what was under way is aborted.
        all.push(self.with(|s| {
            s.alive = false;
            if s.here == Here::Running {
                s.here = Here::Aborted;
            }
        }));
        let all_answered = self.answered.len() == self.servers();
        for server in 0..self.servers() {
            if self.here == Here::Running && !self.sent.contains(&server) {
                all.push(self.with(|s| {
                    s.sent.insert(server);
                    s.messages.insert(Message::Prepare(server));
                }));
            }
            let may_end = match protocol {
                Protocol::Early => all_answered,
                _ => self.here == Here::Committed,
            };
            if may_end && self.here != Here::Aborted && !self.second.contains(&server) {
                all.push(self.with(|s| {
                    s.second.insert(server);
                    s.messages.insert(Message::Commit(server));
                }));
            }
            if self.here == Here::Aborted
                && self.sent.contains(&server)
                && !self.second.contains(&server)
            {
                all.push(self.with(|s| {
                    s.second.insert(server);
                    s.messages.insert(Message::Rollback(server));
                }));
            }
        }
        if self.here == Here::Running {
            // A failure, a cancel, a server that cannot be reached.
            all.push(self.with(|s| s.here = Here::Aborted));
            let may_commit = match protocol {
                Protocol::Early => self.second.len() == self.servers(),
                Protocol::Hasty => self.sent.len() == self.servers(),
                _ => all_answered,
            };
            if may_commit {
                all.push(self.with(|s| {
                    s.here = Here::Committed;
                    s.row.fill(true);
                }));
            }
        }
    }

    fn network(&self, all: &mut Vec<Self>) {
        for message in &self.messages {
            // Lost.
            all.push(self.with(|s| {
                s.messages.remove(message);
            }));
            let arrived = self.with(|s| {
                s.messages.remove(message);
                let (server, to) = match *message {
                    Message::Prepare(server) => (server, There::Prepared),
                    Message::Commit(server) => (server, There::Committed),
                    Message::Rollback(server) => (server, There::RolledBack),
                };
                let from = match message {
                    Message::Prepare(_) => There::Nothing,
                    _ => There::Prepared,
                };
                if s.there[server] == from {
                    s.there[server] = to;
                }
            });
            if let Message::Prepare(server) = *message
                && arrived.there[server] == There::Prepared
                && arrived.alive
                && arrived.here == Here::Running
            {
                all.push(arrived.with(|s| {
                    s.answered.insert(server);
                }));
            }
            // Executed, and its answer lost.
            all.push(arrived);
        }
    }

    fn resolve(&self, server: usize, protocol: Protocol, all: &mut Vec<Self>) {
        let to = |reading| self.with(|s| s.resolver[server] = reading);
        // It may be ended at any time, and begin again.
        if self.resolver[server] != Reading::Idle {
            all.push(to(Reading::Idle));
        }
        let over = self.here != Here::Running;
        all.push(match self.resolver[server] {
            Reading::Idle => to(Reading::Rows {
                row: self.row[server],
            }),
            Reading::Rows { row } => to(Reading::Listed {
                row,
                there: self.there[server],
            }),
            Reading::Listed { there, .. } if protocol == Protocol::RowBeforeStatus => {
                to(Reading::Status {
                    row: self.row[server],
                    there,
                    over: false,
                })
            }
            Reading::Listed { row, there } => to(Reading::Status { row, there, over }),
            Reading::Status { row, there, over } => {
                let now = self.row[server];
                let (decided, over) = match protocol {
                    Protocol::RowBeforeStatus => (row, self.here != Here::Running),
                    Protocol::NoStatus => (now, true),
                    _ => (row || now, over),
                };
                self.with(|s| {
                    s.resolver[server] = Reading::Idle;
                    if there == There::Prepared && s.there[server] == There::Prepared {
                        if decided {
                            s.there[server] = There::Committed;
                        } else if over {
                            s.there[server] = There::RolledBack;
                        }
                    }
                    let seen = if protocol == Protocol::RemovesUnseen {
                        now
                    } else {
                        row
                    };
                    if there != There::Prepared && seen {
                        s.row[server] = false;
                    }
                })
            }
        });
    }

    /// Whether one side has what another has finally not.
    fn is_torn(&self) -> bool {
        let committed = self.there.contains(&There::Committed);
        let rolled_back = self.there.contains(&There::RolledBack);
        (self.here == Here::Committed && rolled_back)
            || (self.here == Here::Aborted && committed)
            || (committed && rolled_back)
    }

    /// Nobody but the resolver is left, and nothing is on its way.
    fn is_quiet(&self) -> bool {
        !self.alive && self.messages.is_empty()
    }

    /// What the resolver makes of a quiet state, left to itself.
    fn resolved(&self) -> Self {
        let mut state = self.clone();
        state.resolver.fill(Reading::Idle);
        for _ in 0..2 {
            for server in 0..state.servers() {
                for _ in 0..4 {
                    let mut all = Vec::new();
                    state.resolve(server, Protocol::AsItIs, &mut all);
                    state = all.pop().expect("a step");
                }
            }
        }
        state
    }

    /// In the end all have it or none has, nothing is prepared, and no decision is left.
    fn ends_well(&self) -> bool {
        let end = self.resolved();
        let expected = match end.here {
            Here::Committed => end.there.iter().all(|there| *there == There::Committed),
            _ => end
                .there
                .iter()
                .all(|t| matches!(t, There::Nothing | There::RolledBack)),
        };
        expected && !end.row.contains(&true)
    }
}

/// The first state that must not be, and how many were visited.
fn explore(servers: usize, protocol: Protocol) -> (Option<State>, usize) {
    let mut seen = HashSet::from([State::new(servers)]);
    let mut queue = VecDeque::from([State::new(servers)]);
    while let Some(state) = queue.pop_front() {
        if state.is_torn() || (state.is_quiet() && !state.ends_well()) {
            return (Some(state), seen.len());
        }
        for next in state.next(protocol) {
            if seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    (None, seen.len())
}

#[test]
fn whatever_happens_both_sides_have_the_transaction_or_neither_has() {
    for servers in [1, 2] {
        let (bad, visited) = explore(servers, Protocol::AsItIs);
        assert_eq!(bad, None, "{servers} servers");
        println!("{servers} servers: {visited} states");
        assert!(visited > 100);
    }
}

#[test]
fn the_search_finds_what_is_wrong_with_other_protocols() {
    for protocol in [
        Protocol::Early,
        Protocol::Hasty,
        Protocol::RowBeforeStatus,
        Protocol::NoStatus,
        Protocol::RemovesUnseen,
    ] {
        let (bad, _) = explore(1, protocol);
        assert!(bad.is_some(), "{protocol:?}");
    }
}
