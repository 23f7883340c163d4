//! A TCP proxy that makes the network between two servers slow, silent or broken.
//!
//! Every connection has one reader and one writer thread per direction with a queue between them. A
//! chunk is stamped when it is read and written when its delay has passed, so that a delay costs
//! latency and no throughput. Frozen, the proxy neither reads nor writes, so that senders see their
//! buffers fill as behind a black hole.
//!
//! A reset must really be one: sockets get SO_LINGER 0 and the last of the four threads closes them.
//! Shutting down the read side wakes readers without putting anything on the wire.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::libc::linger;
use nix::sys::socket::{self, setsockopt, sockopt};

use crate::cluster::free_port;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// Forwards 127.0.0.1:[`port`](Proxy::port) to a port of 127.0.0.1. Ends everything when dropped.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    acceptor: Mutex<Option<Acceptor>>,
}

struct Acceptor {
    listener: Arc<TcpListener>,
    thread: JoinHandle<()>,
}

struct Shared {
    target: u16,
    state: Mutex<State>,
    changed: Condvar,
    total: AtomicU64,
    exchanges: AtomicU64,
    bytes: [AtomicU64; 2],
}

/// What happens when a certain text passes on its way to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// It does not arrive: the connection is reset.
    LoseRequest,
    /// It arrives, and nothing comes back: the connection is reset.
    LoseAnswer,
    /// It does not arrive, and from then on not a byte passes.
    Silence,
}

#[derive(Default)]
struct State {
    delay: Duration,
    frozen: bool,
    closing: bool,
    /// Cut when so many more bytes have passed in that direction.
    cut_after: Option<(Direction, u64)>,
    /// When this text passes, once.
    strike: Option<(Vec<u8>, Strike)>,
    live: Vec<Arc<Connection>>,
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    dead: AtomicBool,
    /// The direction of the last chunk read, plus one; 0 at first.
    last: AtomicU8,
    /// Nothing comes back any more.
    mute: AtomicBool,
}

impl Proxy {
    pub fn start(target_port: u16) -> Result<Proxy> {
        let shared = Arc::new(Shared {
            target: target_port,
            state: Mutex::default(),
            changed: Condvar::new(),
            total: AtomicU64::new(0),
            exchanges: AtomicU64::new(0),
            bytes: [AtomicU64::new(0), AtomicU64::new(0)],
        });
        let proxy = Proxy {
            port: free_port()?,
            shared,
            acceptor: Mutex::new(None),
        };
        proxy.accept()?;
        Ok(proxy)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on every chunk arrives that much later, in each direction.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.state().delay = delay;
    }

    /// Connections stay open and new ones are accepted, but not a byte passes.
    pub fn freeze(&self) {
        self.shared.state().frozen = true;
    }

    pub fn thaw(&self) {
        self.shared.state().frozen = false;
        self.shared.changed.notify_all();
    }

    /// Resets all connections, and returns when both ends have been told.
    pub fn cut(&self) {
        let state = self.shared.state();
        for connection in &state.live {
            connection.kill();
        }
        self.shared.changed.notify_all();
        let gone = |state: &mut State| {
            state
                .live
                .iter()
                .any(|one| one.dead.load(Ordering::Acquire))
        };
        let patience = Duration::from_secs(5);
        drop(
            self.shared
                .changed
                .wait_timeout_while(state, patience, gone),
        );
    }

    /// Stops listening, so that new connections are refused. Existing ones stay.
    pub fn refuse(&self) {
        let acceptor = self
            .acceptor
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
            .take();
        if let Some(Acceptor { listener, thread }) = acceptor {
            // Wakes the thread out of accept.
            let _ = socket::shutdown(
                std::os::fd::AsRawFd::as_raw_fd(&*listener),
                socket::Shutdown::Both,
            );
            drop(listener);
            let _ = thread.join();
        }
    }

    /// Listens again after [`refuse`](Proxy::refuse).
    pub fn accept(&self) -> Result<()> {
        let mut acceptor = self
            .acceptor
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        if acceptor.is_none() {
            let listener = Arc::new(TcpListener::bind((Ipv4Addr::LOCALHOST, self.port))?);
            let shared = self.shared.clone();
            let accepting = listener.clone();
            let thread = thread::spawn(move || {
                while let Ok((client, _)) = accepting.accept() {
                    shared.total.fetch_add(1, Ordering::Relaxed);
                    let shared = shared.clone();
                    thread::spawn(move || shared.serve(client));
                }
            });
            *acceptor = Some(Acceptor { listener, thread });
        }
        Ok(())
    }

    /// Once so many more bytes have passed in that direction, counted over all connections, resets
    /// the connection that reaches the number: byte `bytes` arrives, the next does not. With 0 the
    /// first byte already is lost.
    pub fn cut_after(&self, bytes: u64, direction: Direction) {
        self.shared.state().cut_after = Some((direction, bytes));
    }

    /// When this text passes on its way to the server, in one piece, the next time: a statement for one.
    pub fn strike(&self, text: &str, strike: Strike) {
        self.shared.state().strike = Some((text.into(), strike));
    }

    /// Nothing happens when it passes.
    pub fn forget_strike(&self) {
        self.shared.state().strike = None;
    }

    /// Whether what [`strike`](Proxy::strike) was asked for has happened.
    pub fn has_struck(&self) -> bool {
        self.shared.state().strike.is_none()
    }

    /// How many connections have been accepted, whatever became of them.
    pub fn connections_total(&self) -> u64 {
        self.shared.total.load(Ordering::Relaxed)
    }

    /// How many bytes have been delivered in that direction.
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.shared.bytes[direction as usize].load(Ordering::Relaxed)
    }

    /// How often a client spoke after its server had: round trips, unless the two talk at once.
    pub fn exchanges(&self) -> u64 {
        self.shared.exchanges.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.state().closing = true;
        self.refuse();
        self.cut();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    fn serve(self: Arc<Self>, client: TcpStream) {
        // A black hole does not tell the server that someone called.
        drop(
            self.changed
                .wait_while(self.state(), |state| state.frozen && !state.closing),
        );
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.target)) else {
            return drop(reset_on_close(&client));
        };
        for stream in [&client, &server] {
            let _ = stream.set_nodelay(true);
            // So that a writer whose peer reads nothing still notices a cut.
            let _ = stream.set_write_timeout(Some(Duration::from_millis(50)));
        }
        let dead = AtomicBool::new(false);
        let last = AtomicU8::new(0);
        let mute = AtomicBool::new(false);
        let connection = Arc::new(Connection {
            client,
            server,
            dead,
            last,
            mute,
        });
        let mut state = self.state();
        if state.closing {
            return connection.kill();
        }
        state.live.push(connection.clone());
        drop(state);
        let threads = [Direction::ToServer, Direction::ToClient].map(|direction| {
            let (sender, receiver) = channel();
            let shared = self.clone();
            let one = connection.clone();
            let reader = thread::spawn(move || shared.read(&one, direction, &sender));
            let shared = self.clone();
            let one = connection.clone();
            let writer = thread::spawn(move || shared.write(&one, direction, &receiver));
            [reader, writer]
        });
        for thread in threads.into_iter().flatten() {
            let _ = thread.join();
        }
        self.state()
            .live
            .retain(|other| !Arc::ptr_eq(other, &connection));
        drop(connection);
        self.changed.notify_all();
    }

    /// Reads until the end, which it passes on as an empty chunk.
    fn read(
        &self,
        connection: &Connection,
        direction: Direction,
        queue: &Sender<(Instant, Vec<u8>)>,
    ) {
        let mut buffer = vec![0; 64 * 1024];
        let mut source = connection.end(direction, false);
        while self.wait_until(Instant::now(), connection) {
            let length = match source.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return self.kill(connection),
            };
            if length > 0 {
                let before = connection.last.swap(direction as u8 + 1, Ordering::Relaxed);
                if direction == Direction::ToServer && before != direction as u8 + 1 {
                    self.exchanges.fetch_add(1, Ordering::Relaxed);
                }
            }
            let release = Instant::now() + self.state().delay;
            if queue.send((release, buffer[..length].to_vec())).is_err() || length == 0 {
                return;
            }
        }
    }

    fn write(
        &self,
        connection: &Connection,
        direction: Direction,
        queue: &Receiver<(Instant, Vec<u8>)>,
    ) {
        let target = connection.end(direction, true);
        while let Ok((release, chunk)) = queue.recv() {
            if !self.wait_until(release, connection) {
                return;
            }
            if chunk.is_empty() {
                let _ = target.shutdown(Shutdown::Write);
                return;
            }
            if self.strikes(direction, &chunk, connection) {
                return self.kill(connection);
            }
            if !self.wait_until(release, connection) {
                return;
            }
            let (allowed, cut) = self.allowance(direction, chunk.len());
            let sent = write_all(target, &chunk[..allowed], &connection.dead);
            self.bytes[direction as usize].fetch_add(sent as u64, Ordering::Relaxed);
            if cut || sent < allowed {
                return self.kill(connection);
            }
        }
    }

    /// Whether the connection ends before this chunk.
    fn strikes(&self, direction: Direction, chunk: &[u8], connection: &Connection) -> bool {
        if direction == Direction::ToClient {
            return connection.mute.load(Ordering::Acquire);
        }
        let mut state = self.state();
        let has = |text: &Vec<u8>| chunk.windows(text.len()).any(|part| part == text);
        match state.strike.take_if(|(text, _)| has(text)) {
            Some((_, Strike::LoseRequest)) => return true,
            Some((_, Strike::LoseAnswer)) => connection.mute.store(true, Ordering::Release),
            Some((_, Strike::Silence)) => state.frozen = true,
            None => {}
        }
        false
    }

    /// How much of a chunk may pass, and whether the connection ends there.
    fn allowance(&self, direction: Direction, length: usize) -> (usize, bool) {
        let mut state = self.state();
        match state.cut_after {
            Some((cut, left)) if cut == direction && left <= length as u64 => {
                state.cut_after = None;
                (left as usize, true)
            }
            Some((cut, left)) if cut == direction => {
                state.cut_after = Some((cut, left - length as u64));
                (length, false)
            }
            _ => (length, false),
        }
    }

    /// Waits for the time and for a thaw; false when the connection is to end.
    fn wait_until(&self, time: Instant, connection: &Connection) -> bool {
        let mut state = self.state();
        loop {
            let now = Instant::now();
            if connection.dead.load(Ordering::Acquire) {
                return false;
            }
            let patience = if state.frozen {
                Duration::from_secs(3600)
            } else if now >= time {
                return true;
            } else {
                time - now
            };
            state = match self.changed.wait_timeout(state, patience) {
                Ok((state, _)) => state,
                Err(broken) => broken.into_inner().0,
            };
        }
    }

    fn kill(&self, connection: &Connection) {
        let _state = self.state();
        connection.kill();
        self.changed.notify_all();
    }
}

impl Connection {
    /// The socket that a direction reads from or writes to.
    fn end(&self, direction: Direction, writing: bool) -> &TcpStream {
        match (direction, writing) {
            (Direction::ToServer, true) | (Direction::ToClient, false) => &self.server,
            (Direction::ToClient, true) | (Direction::ToServer, false) => &self.client,
        }
    }

    fn kill(&self) {
        self.dead.store(true, Ordering::Release);
        for stream in [&self.client, &self.server] {
            let _ = reset_on_close(stream).and_then(|()| Ok(stream.shutdown(Shutdown::Read)?));
        }
    }
}

fn reset_on_close(stream: &TcpStream) -> Result<()> {
    setsockopt(
        stream,
        sockopt::Linger,
        &linger {
            l_onoff: 1,
            l_linger: 0,
        },
    )
    .context("no SO_LINGER")
}

/// How many bytes could be written before an error or the connection's death.
fn write_all(mut target: &TcpStream, chunk: &[u8], dead: &AtomicBool) -> usize {
    let mut sent = 0;
    while sent < chunk.len() && !dead.load(Ordering::Acquire) {
        match target.write(&chunk[sent..]) {
            Ok(length) => sent += length,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => break,
        }
    }
    sent
}
