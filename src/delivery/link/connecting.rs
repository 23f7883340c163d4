//! A connection that is being made, under the deadline of `pg_rowsync.connect_timeout`. The server may be
//! anyone's: what it may say before it is connected is bounded.

use crate::connect::endpoint::Endpoint;
use crate::connect::session::Session;
use crate::delivery::answers::SENDS_TOO_MUCH;
use crate::error::{Error, Result, SqlState};
use crate::fault::fault_point;
use crate::guc;
use crate::pg::fd::ExternalFd;
use crate::pg::wait::{self, Interest};
use crate::pq::{Connection, Polling};
use std::rc::Rc;
use std::time::Instant;

/// Bytes that a server may send before it is connected. An honest one sends a few kB.
const MAX_GREETING_BYTES: u64 = 128 * 1024;
/// Steps of connecting at once. An honest server needs fewer altogether.
const MAX_POLLS: usize = 16;
/// The oldest PostgreSQL that has the functions which it is asked by.
const OLDEST_VERSION: u32 = 140_000;
/// How poolers refuse a start-up parameter that they do not know, `options` for one.
const REFUSED_PARAMETER: &str = "unsupported startup parameter";

/// Waits until the server has accepted the connection.
pub struct Connecting {
    connection: Connection,
    fd: ExternalFd,
    polling: Polling,
    since: Instant,
    /// When it was first found to be late.
    pub late: Option<Instant>,
}

/// What a step of connecting leads to.
#[expect(
    clippy::large_enum_variant,
    reason = "it is taken apart at once, once a connection"
)]
pub enum ConnectOutcome {
    /// The server has more to say.
    Waiting(Connecting),
    Connected(Session),
    Failed(Error),
}

impl Connecting {
    /// Begins to connect.
    ///
    /// # Errors
    /// 53000 when the backend has no descriptor to spare.
    pub fn begin(endpoint: &Endpoint) -> Result<Self> {
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
        Ok(Self {
            connection,
            fd,
            polling,
            since: Instant::now(),
            late: None,
        })
    }

    pub fn deadline(&self) -> Instant {
        self.since + guc::connect_timeout()
    }

    /// What to wait for.
    pub fn interest(&self) -> Interest {
        let read = self.polling == Polling::Read;
        Interest {
            socket: self.connection.socket(),
            read,
            write: !read,
        }
    }

    /// Goes as far as it can without waiting.
    pub fn step(mut self, endpoint: &Rc<Endpoint>) -> ConnectOutcome {
        let server = || endpoint.account.server_name.clone();
        let deadline = self.deadline();
        // PQconnectPoll must not be called before the socket is ready.
        let mut polls = 0;
        while matches!(self.polling, Polling::Read | Polling::Write) {
            // How long a poll takes is up to the server, which may have much to say.
            let is_late = polls > 0 && Instant::now() >= deadline;
            if !wait::is_ready(&self.interest()) || is_late || polls == MAX_POLLS {
                return ConnectOutcome::Waiting(self);
            }
            self.polling = self.connection.poll();
            polls += 1;
            self.connection.forget_notifications();
            if self.connection.heard() > MAX_GREETING_BYTES || self.connection.is_swollen() {
                return ConnectOutcome::Failed(Error::Connect {
                    server: server(),
                    sqlstate: SqlState::CANNOT_CONNECT,
                    reason: SENDS_TOO_MUCH.to_owned(),
                });
            }
        }
        if self.polling == Polling::Failed || !self.connection.pipelined() {
            let (sqlstate, reason) = self.connection.connect_error();
            if !endpoint.is_bare() && reason.contains(REFUSED_PARAMETER) {
                endpoint.leave_out_options();
                return self.again(endpoint);
            }
            return ConnectOutcome::Failed(Error::Connect {
                server: server(),
                sqlstate,
                reason,
            });
        }
        let version = self.connection.server_version();
        if (1..OLDEST_VERSION).contains(&version) {
            return ConnectOutcome::Failed(too_old(server(), version));
        }
        match endpoint.check_after(self.connection.used_password()) {
            Ok(()) => {
                ConnectOutcome::Connected(Session::new(self.connection, endpoint.clone(), self.fd))
            }
            Err(error) => ConnectOutcome::Failed(error),
        }
    }

    /// Begins anew within the same time.
    fn again(self, endpoint: &Endpoint) -> ConnectOutcome {
        let Self {
            connection,
            fd,
            since,
            late,
            ..
        } = self;
        // Its descriptor is given back before another is asked for.
        drop((connection, fd));
        match Self::begin(endpoint) {
            Ok(connecting) => ConnectOutcome::Waiting(Self {
                since,
                late,
                ..connecting
            }),
            Err(error) => ConnectOutcome::Failed(error),
        }
    }
}

/// A server of a version that does not know what it would be asked.
fn too_old(server: String, version: u32) -> Error {
    let major = version / 10_000;
    let minor = version % 10_000;
    let version = if major < 10 {
        format!("{major}.{}.{}", minor / 100, minor % 100)
    } else {
        format!("{major}.{minor}")
    };
    let oldest = OLDEST_VERSION / 10_000;
    Error::Connect {
        server,
        sqlstate: SqlState::CANNOT_CONNECT,
        reason: format!("It is PostgreSQL {version}; {oldest} or later is needed there."),
    }
}
