//! Connections that are up, and those kept between transactions.
//!
//! A session in use is taken out of the cache and put back only when its state is beyond doubt, so
//! an error or the end of the process while it waits leaves nothing behind: dropping it closes the
//! connection, and the server rolls back what was not committed.

use super::account::AccountKey;
use super::endpoint::Endpoint;
use super::prepared::PreparedStatements;
use super::shared::SharedStatements;
use crate::change::{Relation, Route};
use crate::connect::lost_session::LostSession;
use crate::connect::peer::{Introduction, Peer, PeerKind, ServerRun};
use crate::connect::settings::Pooled;
use crate::error::Result;
use crate::guc;
use crate::local::{ProcessLocal, process_local};
use crate::pg::Oid;
use crate::pg::callbacks;
use crate::pg::context;
use crate::pg::database;
use crate::pg::fd::ExternalFd;
use crate::pg::invalidation::CatalogChanges;
use crate::pg::timer;
use crate::pg::wait::{self, Interest, Waiter};
use crate::pq::Connection;
use crate::sql::{self, Conflicts, Introduce, Statement};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long a server without an extension of its own is taken to have none.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// A connection over which so many bytes have come is not kept: libpq never frees what a server says of
/// its parameters, and a server may say it for ever.
const MAX_RECEIVED_BYTES: u64 = 64 * 1024 * 1024;

/// Routes of which it is known that the server accepts upserts over them; of more, the oldest are forgotten.
const MAX_ACCEPTED: usize = 256;

/// How long the types of a target's key are taken to be as they were.
const ASK_TYPES_AGAIN: Duration = Duration::from_secs(60);

/// How often it is looked how much has come over a connection: every so many times that it is put back. A
/// run that is over with one look at the connection has read no more than libpq's buffer holds.
const LOOK_EVERY: u32 = 256;

/// An authenticated connection.
pub struct Session {
    pub endpoint: Rc<Endpoint>,
    /// Routes whose upserts the server has accepted, the latest first: its table has the unique index that
    /// they need, so a plain INSERT meets a row that is there instead of doubling it.
    accepted: VecDeque<Rc<Route>>,
    /// Routes whose keys are not coarser on the server, the latest first, and when that was asked.
    typed: VecDeque<(Rc<Route>, Instant)>,
    /// Those that the run under way asks about.
    asked_types: Vec<Rc<Route>>,
    /// The schema of the server's own extension, and when the server was asked.
    remote_schema: Option<(Option<String>, Instant)>,
    /// What the server is called in the paths of changes, once it was asked.
    node: Option<String>,
    /// Changes of the last run that were not sent because they have been there.
    pub held_back: u64,
    pub prepared: PreparedStatements,
    /// What it executes by name behind a pooler.
    pub shared: SharedStatements,
    /// Introduces all transactions but the first, once that is known.
    introduction: Option<String>,
    /// Transactions must begin in a block, since by themselves they begin otherwise than ours do.
    pub must_begin: bool,
    /// The server has refused values in binary form.
    pub only_text: bool,
    /// The server has refused TRUNCATE ONLY: which tables are partitioned is asked with each.
    pub asks_kinds: bool,
    /// Targets whose keys are checked with each row, though those here are deferrable.
    pub moves_in_waves: Vec<Relation>,
    /// The process that serves the connection, as far as is known.
    pub peer: Peer,
    /// Which server that is a process of, once it was asked.
    pub server_run: Option<ServerRun>,
    /// How the transaction under way can be known should the connection be lost.
    transaction: LostSession,
    /// When it was put back last.
    idle_since: Instant,
    /// How often it was put back.
    uses: u32,
    /// Made by the first wait. Goes before the connection, whose socket it knows.
    waiter: Option<Waiter>,
    pub connection: Connection,
    /// Counts the socket in the backend's budget; given back when the session ends.
    _fd: ExternalFd,
}

impl Session {
    /// A session over a connection that has just come up and been checked.
    pub fn new(connection: Connection, endpoint: Rc<Endpoint>, fd: ExternalFd) -> Self {
        callbacks::at_exit(|| {
            close_where(|_| true);
        });
        Self {
            endpoint,
            accepted: VecDeque::new(),
            typed: VecDeque::new(),
            asked_types: Vec::new(),
            remote_schema: None,
            node: None,
            held_back: 0,
            prepared: PreparedStatements::default(),
            shared: SharedStatements::default(),
            introduction: None,
            must_begin: false,
            only_text: false,
            asks_kinds: false,
            moves_in_waves: Vec::new(),
            peer: Peer::default(),
            server_run: None,
            transaction: LostSession::default(),
            idle_since: Instant::now(),
            uses: 0,
            waiter: None,
            connection,
            _fd: fd,
        }
    }

    /// Begins a transaction: gives the statement that introduces it to the server, where that is needed.
    /// `commits`: it ends with the run, whose answer may be lost; `in_block`: it has begun as it must.
    ///
    /// # Errors
    /// As for [`context::random`].
    pub fn begin(&mut self, commits: bool, in_block: bool) -> Result<Option<Statement>> {
        if let Some((pid, started)) = self.peer.process()
            && !self.peer.must_introduce()
        {
            self.transaction = LostSession {
                backend_pid: Some(pid),
                backend_start: started,
                ..LostSession::default()
            };
            return Ok(None);
        }
        let token = context::random()?;
        // Whoever waits for the answer has given up by then.
        let timeout = guc::delivery_timeout().as_micros() as i64;
        let clock = self.peer.clock().filter(|_| commits);
        let not_after = clock.map(|clock| clock.saturating_add(timeout));
        self.transaction = LostSession {
            token: Some(token),
            not_after,
            ..LostSession::default()
        };
        let params = sql::introduced(token, not_after, commits && !in_block);
        if self.peer.asks_settings() {
            let text = self.introduction(true);
            return Ok(Some(Statement::query(text, params, Conflicts::Never)));
        }
        let text = self
            .introduction
            .take()
            .unwrap_or_else(|| self.introduction(false));
        let name = self.shared.name_of_introduction(|| text.clone());
        let text = self.introduction.insert(text);
        Ok(Some(match name {
            Some(name) => Statement::execute(name, params),
            None => Statement::query(text.clone(), params, Conflicts::Never),
        }))
    }

    fn introduction(&self, is_first: bool) -> String {
        let endpoint = &self.endpoint;
        let only_direct = (endpoint.pooled == Pooled::Off).then(|| self.connection.backend_pid());
        sql::introduce(&Introduce {
            own: &endpoint.settings.own(),
            pinned: endpoint.settings.pinned(),
            is_first,
            only_direct,
            local: (database::current().to_u32(), context::cluster_start()),
        })
    }

    /// The server has answered to what [`Session::begin`] gave.
    pub fn introduce(&mut self, answer: &str) {
        let Some(said) = Introduction::parse(answer) else {
            return;
        };
        let pooled = self.endpoint.pooled == Pooled::On;
        self.peer
            .introduce(said, self.connection.backend_pid(), pooled);
        self.transaction = match self.peer.process() {
            Some((pid, started)) => LostSession {
                backend_pid: Some(pid),
                backend_start: started,
                ..LostSession::default()
            },
            // Its process goes on to serve others: the lock tells whether it still serves this one.
            None => LostSession {
                backend_pid: self.peer.pid(),
                not_after: None,
                ..self.transaction.clone()
            },
        };
    }

    /// How the transaction under way can be known should the connection be lost.
    pub fn transaction(&self) -> &LostSession {
        &self.transaction
    }

    /// What to wait for while something runs.
    pub fn interest(&self, write: bool) -> Interest {
        Interest {
            socket: self.connection.socket(),
            read: true,
            write,
        }
    }

    /// Waits for that, for the process latch, or for a time.
    pub fn wait(&mut self, write: bool, time: Duration) {
        let interest = self.interest(write);
        if interest.socket < 0 {
            return wait::wait(&[], time);
        }
        if self.waiter.is_none() {
            self.waiter = Waiter::new(&interest);
        }
        match &self.waiter {
            Some(waiter) => waiter.wait(&interest, time),
            None => wait::wait(&[interest], time),
        }
    }

    /// The schema of the server's own extension, as far as is known; see [`crate::conflict::versions`].
    pub fn remote_schema(&self) -> Option<&str> {
        self.remote_schema
            .as_ref()
            .and_then(|(remote_schema, _)| remote_schema.as_deref())
    }

    /// Whether the server was asked for it. One that has none may get one.
    pub fn knows_remote_schema(&self) -> bool {
        self.remote_schema
            .as_ref()
            .is_some_and(|(remote_schema, asked)| {
                remote_schema.is_some() || asked.elapsed() < ASK_AGAIN
            })
    }

    /// The server has answered.
    pub fn set_remote_schema(&mut self, remote_schema: Option<String>) {
        self.remote_schema = Some((remote_schema, Instant::now()));
    }

    /// The server's name in the paths of changes, where it was asked for it.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// The server has sent its name.
    pub fn set_node(&mut self, node: Option<String>) {
        self.node = node;
    }

    /// The server is to be asked again.
    pub fn forget_remote_schema(&mut self) {
        self.remote_schema = None;
    }

    /// Whether upserts over all these routes have succeeded here before.
    pub fn has_accepted(&self, routes: &[Rc<Route>]) -> bool {
        routes.iter().all(|route| self.is_accepted(route))
    }

    fn is_accepted(&self, route: &Rc<Route>) -> bool {
        self.accepted
            .iter()
            .any(|accepted| Rc::ptr_eq(accepted, route) || accepted == route)
    }

    /// Upserts over these routes have succeeded.
    pub fn set_accepted<'r>(&mut self, routes: impl Iterator<Item = &'r Rc<Route>>) {
        for route in routes {
            if !self.is_accepted(route) {
                self.accepted.truncate(MAX_ACCEPTED - 1);
                self.accepted.push_front(route.clone());
            }
        }
    }

    /// Whether the server is to be asked, in the run under way, if the route's key is coarser there. Says so
    /// once.
    pub fn asks_types(&mut self, route: &Rc<Route>) -> bool {
        let same = |other: &Rc<Route>| Rc::ptr_eq(other, route) || other == route;
        let known = self.typed.iter().find(|(other, _)| same(other));
        let asks = known.is_none_or(|(_, asked)| asked.elapsed() >= ASK_TYPES_AGAIN)
            && !self.asked_types.iter().any(same);
        if asks {
            self.asked_types.push(route.clone());
        }
        asks
    }

    /// The run is over.
    pub fn settle_types(&mut self, succeeded: bool) {
        for route in std::mem::take(&mut self.asked_types)
            .into_iter()
            .filter(|_| succeeded)
        {
            self.typed.retain(|(other, _)| *other != route);
            self.typed.truncate(MAX_ACCEPTED - 1);
            self.typed.push_front((route, Instant::now()));
        }
    }

    /// Whether the other side is still there, as far as can be told without asking it. A closed
    /// connection may first hand out the server's farewell, so the end shows at the second look.
    fn is_alive(&mut self) -> bool {
        let connection = &mut self.connection;
        connection.is_quiet()
            || ((0..2).all(|_| connection.consume() && !connection.is_busy()) && connection.is_up())
    }
}

process_local! {
    /// Idle sessions by account.
    static IDLE: RefCell<HashMap<AccountKey, Session>> = RefCell::default();
}

/// Takes the idle session of an endpoint. One that was made with other options (the server or the
/// mapping was altered since) or that has died is closed instead.
pub fn take(endpoint: &Rc<Endpoint>) -> Option<Session> {
    let key = endpoint.account.key();
    let mut session = IDLE.with_borrow_mut(|idle| idle.remove(&key))?;
    let same = Rc::ptr_eq(&session.endpoint, endpoint) || session.endpoint == *endpoint;
    (same && session.is_alive()).then_some(session)
}

/// Keeps a session for the next transaction; closes it if one is still open on the server, if it has
/// become too large, or if what is sent next would be read in another encoding.
pub fn put_back(mut session: Session) {
    session.uses = session.uses.wrapping_add(1);
    let connection = &mut session.connection;
    if session.uses.is_multiple_of(LOOK_EVERY) {
        connection.heard();
    }
    if !connection.is_idle()
        || connection.had_heard() > MAX_RECEIVED_BYTES
        || !connection.speaks_utf8()
    {
        return;
    }
    if !session.endpoint.keep_connections {
        return;
    }
    session.idle_since = Instant::now();
    let key = session.endpoint.account.key();
    let old = IDLE.with_borrow_mut(|idle| idle.insert(key, session));
    drop(old);
}

/// Whether an idle session of the account is kept.
pub fn is_idle(account: &AccountKey) -> bool {
    IDLE.with_borrow(|idle| idle.contains_key(account))
}

/// At the end of a transaction: closes sessions that have been idle for `pg_rowsync.idle_timeout`, and sees
/// to it that this is looked at again in time. Cannot fail.
pub fn close_idle() {
    let Some(timeout) = guc::idle_timeout() else {
        return;
    };
    let expired = |session: &Session| session.idle_since.elapsed() >= timeout;
    if timer::take_fired() {
        close_where(expired);
    }
    let oldest = IDLE.with(|idle| {
        let idle = idle.try_borrow().ok()?;
        idle.values().map(|session| session.idle_since).min()
    });
    if let Some(due) = oldest.and_then(|since| since.checked_add(timeout)) {
        timer::fire_by(due);
    }
}

/// One idle session, as `sync_connections()` shows it.
pub struct IdleSession {
    pub endpoint: Rc<Endpoint>,
    pub pid: i32,
    /// Whether the other side is still there.
    pub alive: bool,
    /// Whether it leads through a pooler; `None` before that was asked.
    pub pooled: Option<bool>,
    /// For how long it has not been used.
    pub idle: Duration,
}

/// The idle sessions.
pub fn list() -> Vec<IdleSession> {
    IDLE.with_borrow_mut(|idle| {
        idle.values_mut()
            .map(|session| IdleSession {
                endpoint: session.endpoint.clone(),
                pid: session
                    .peer
                    .pid()
                    .unwrap_or(session.connection.backend_pid()),
                alive: session.is_alive(),
                pooled: match session.peer.kind() {
                    PeerKind::Unknown => None,
                    kind => Some(kind == PeerKind::Pooled),
                },
                idle: session.idle_since.elapsed(),
            })
            .collect()
    })
}

/// Closes the idle sessions of a server, or all; says how many.
pub fn close(server: Option<Oid>) -> usize {
    close_where(|session| server.is_none_or(|oid| session.endpoint.account.server == oid))
}

/// Closes the idle sessions whose server or mapping has changed.
pub fn close_changed(changes: &CatalogChanges) {
    if !changes.is_empty() {
        close_where(|session| changes.concern(&session.endpoint.identity));
    }
}

fn close_where(test: impl Fn(&Session) -> bool) -> usize {
    let closed: Vec<Session> = IDLE.with(|idle| {
        let Ok(mut idle) = idle.try_borrow_mut() else {
            return Vec::new();
        };
        idle.extract_if(|_, session| test(session))
            .map(|(_, s)| s)
            .collect()
    });
    closed.len()
}
