//! A server that speaks just enough of protocol 3 to be believed, and then does what a test tells it.
//!
//! What it sends without end does end, after [`ENDLESS`] or [`FLOOD`] bytes, so that a test whose
//! subject has no protection fails instead of hanging, or of taking the machine's memory.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::socket;

/// The longest that anything endless lasts.
pub const ENDLESS: Duration = Duration::from_secs(12);
/// The most that is sent of anything endless, in bytes.
pub const FLOOD: usize = 400_000_000;
/// The process ID that it gives itself.
pub const PID: i32 = 1_999_999_999;

/// Listens on 127.0.0.1:[`port`](Hostile::port). Ends everything when dropped.
pub struct Hostile {
    port: u16,
    shared: Arc<Shared>,
    listener: Arc<TcpListener>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    closing: AtomicBool,
    connections: AtomicU64,
    live: Mutex<Vec<TcpStream>>,
}

impl Hostile {
    /// Every connection gets a thread that does what `behaviour` says and then closes it.
    pub fn start(
        behaviour: impl Fn(&mut Wire) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Hostile> {
        let listener = Arc::new(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let behaviour = Arc::new(behaviour);
        let accepting = listener.clone();
        let known = shared.clone();
        let acceptor = thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                if known.closing.load(Ordering::Acquire) {
                    return;
                }
                known.connections.fetch_add(1, Ordering::Relaxed);
                let Ok(copy) = stream.try_clone() else {
                    continue;
                };
                known
                    .live
                    .lock()
                    .unwrap_or_else(|broken| broken.into_inner())
                    .push(copy);
                let behaviour = behaviour.clone();
                let mut wire = Wire {
                    stream,
                    shared: known.clone(),
                };
                // A client that hangs up is what is to be expected.
                thread::spawn(move || {
                    let _ = behaviour(&mut wire);
                    let _ = wire.stream.shutdown(Shutdown::Both);
                });
            }
        });
        Ok(Hostile {
            port,
            shared,
            listener,
            acceptor: Some(acceptor),
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&*self.listener);
        let _ = socket::shutdown(fd, socket::Shutdown::Both);
        for stream in self
            .shared
            .live
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
            .iter()
        {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// One connection, seen from the server.
pub struct Wire {
    stream: TcpStream,
    shared: Arc<Shared>,
}

/// What the client has asked for, up to a Sync.
#[derive(Debug, Default)]
pub struct Asked {
    /// How many statements are to be executed.
    pub statements: usize,
}

impl Wire {
    /// Reads the start-up packet; refuses encryption before it. Gives its parameters back as they are.
    pub fn startup(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let mut length = [0; 4];
            self.stream.read_exact(&mut length)?;
            let mut body = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4)];
            self.stream.read_exact(&mut body)?;
            match body.get(..4) {
                // SSLRequest, GSSENCRequest.
                Some([4, 0xd2, 0x16, 0x2f | 0x30]) => self.raw(b"N")?,
                _ => return Ok(body.split_off(4.min(body.len()))),
            }
        }
    }

    /// Asks for a password in clear text, takes any, and lets the client in.
    pub fn log_in(&mut self) -> io::Result<()> {
        self.startup()?;
        self.ask(3, &[])?;
        self.read()?;
        self.ask(0, &[])
    }

    /// All of an honest server's greeting, and its answer to what a new connection is asked first.
    pub fn greet(&mut self) -> io::Result<()> {
        self.log_in()?;
        self.welcome("15.0")?;
        self.introduce()
    }

    /// What an honest server answers to the first exchange over a connection.
    pub fn introduce(&mut self) -> io::Result<()> {
        self.asked()?;
        self.begun()?;
        self.send(b'T', &columns(1))?;
        let answer =
            format!("{{\"pid\": {PID}, \"started\": null, \"clock\": 0, \"unset\": null}}");
        self.send(b'D', &row(&[answer.as_bytes()]))?;
        self.send(b'C', &text("SELECT 1"))?;
        self.ready(b'I')
    }

    /// What an honest server of that version says of itself, once the client is in.
    pub fn welcome(&mut self, version: &str) -> io::Result<()> {
        for (name, value) in [
            ("server_version", version),
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO"),
        ] {
            self.send(b'S', &parameter(name, value))?;
        }
        self.send(b'K', &[PID.to_be_bytes(), 7i32.to_be_bytes()].concat())?;
        self.ready(b'I')
    }

    /// An authentication request.
    pub fn ask(&mut self, kind: i32, data: &[u8]) -> io::Result<()> {
        self.send(b'R', &[&kind.to_be_bytes(), data].concat())
    }

    /// ReadyForQuery.
    pub fn ready(&mut self, status: u8) -> io::Result<()> {
        self.send(b'Z', &[status])
    }

    /// A message.
    pub fn send(&mut self, tag: u8, body: &[u8]) -> io::Result<()> {
        self.raw(&message(tag, body))
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The same bytes over and over. Returns when the client has hung up.
    pub fn flood(&mut self, bytes: &[u8]) -> io::Result<()> {
        let chunk = bytes.repeat((64 * 1024usize).div_ceil(bytes.len().max(1)));
        self.flood_by(|_| chunk.clone())
    }

    /// Chunks, each made from its number.
    pub fn flood_by(&mut self, mut chunk: impl FnMut(u64) -> Vec<u8>) -> io::Result<()> {
        let until = Instant::now() + ENDLESS;
        let mut sent = 0;
        for number in 0.. {
            if Instant::now() > until || sent > FLOOD {
                return Ok(());
            }
            let bytes = chunk(number);
            self.raw(&bytes)?;
            sent += bytes.len();
        }
        Ok(())
    }

    /// Bytes, each some time after the one before.
    pub fn drip(&mut self, bytes: &[u8], pause: Duration) -> io::Result<()> {
        let until = Instant::now() + ENDLESS;
        for byte in bytes {
            if Instant::now() > until || self.shared.closing.load(Ordering::Acquire) {
                return Ok(());
            }
            self.raw(&[*byte])?;
            sleep(pause);
        }
        Ok(())
    }

    /// Says nothing until the client has hung up.
    pub fn silence(&mut self) -> io::Result<()> {
        self.stream.set_read_timeout(Some(ENDLESS))?;
        let mut buffer = [0; 4096];
        while self.stream.read(&mut buffer)? > 0 {}
        Ok(())
    }

    /// The next message of the client.
    pub fn read(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; length.saturating_sub(4)];
        self.stream.read_exact(&mut body)?;
        Ok((head[0], body))
    }

    /// What the client asks for next, up to a Sync.
    pub fn asked(&mut self) -> io::Result<Asked> {
        let mut asked = Asked::default();
        loop {
            match self.read()?.0 {
                b'S' => return Ok(asked),
                b'E' => asked.statements += 1,
                b'X' => return Err(ErrorKind::ConnectionAborted.into()),
                _ => {}
            }
        }
    }

    /// What an honest server answers to a statement that returns nothing.
    pub fn done(&mut self, tag: &str) -> io::Result<()> {
        self.begun()?;
        self.send(b'n', &[])?;
        self.send(b'C', &text(tag))
    }

    /// What comes before the answer proper: the statement was parsed and bound.
    pub fn begun(&mut self) -> io::Result<()> {
        self.send(b'1', &[])?;
        self.send(b'2', &[])
    }

    /// Serves as a server does that has everything under control, until the client leaves.
    pub fn serve(&mut self) -> io::Result<()> {
        loop {
            for _ in 0..self.asked()?.statements {
                self.done("INSERT 0 1")?;
            }
            self.ready(b'I')?;
        }
    }
}

/// A message as it is on the wire.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 4).to_be_bytes();
    [&[tag], &length[..], body].concat()
}

/// A text with its end.
pub fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// The body of a ParameterStatus.
pub fn parameter(name: &str, value: &str) -> Vec<u8> {
    [text(name), text(value)].concat()
}

/// The body of an ErrorResponse or a NoticeResponse.
pub fn report(fields: &[(u8, &[u8])]) -> Vec<u8> {
    let fields = fields
        .iter()
        .flat_map(|(code, value)| [&[*code], *value, &[0]].concat());
    fields.chain([0]).collect()
}

/// The body of a RowDescription with so many columns of type text.
pub fn columns(count: u16) -> Vec<u8> {
    let one = [
        text("c"),
        vec![0; 6],
        25u32.to_be_bytes().to_vec(),
        vec![0xff; 6],
        vec![0; 2],
    ];
    [&count.to_be_bytes()[..], &one.concat().repeat(count.into())].concat()
}

/// The body of a DataRow.
pub fn row(values: &[&[u8]]) -> Vec<u8> {
    let count = (values.len() as u16).to_be_bytes();
    let length = |value: &[u8]| (value.len() as u32).to_be_bytes();
    let values = values
        .iter()
        .flat_map(|value| [&length(value)[..], *value].concat());
    count.into_iter().chain(values).collect()
}
