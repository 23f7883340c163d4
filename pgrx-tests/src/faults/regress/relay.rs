//! Stands between psql and the server, statement by statement: psql splits its input and does what
//! is its own, the relay sees each statement, what became of it, and can ask the server in the same
//! session before psql gets on.

use std::collections::BTreeMap;
use std::io::{BufReader, BufWriter, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::mirror::{Mirror, Run};
use super::statement::{beginnings, commits, unlisted};

const SSL_REQUEST: i32 = 80877103;
const CANCEL_REQUEST: i32 = 80877102;
const GSS_REQUEST: i32 = 80877104;

/// How long either end may be silent in the middle of something.
const SILENCE: Duration = Duration::from_secs(300);

/// Forwards 127.0.0.1:[`port`](Relay::port) to the server of a run. Ends when dropped.
pub struct Relay {
    port: u16,
    closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What each session of the relay does.
#[derive(Clone)]
pub struct Task {
    pub run: Arc<Run>,
    /// The trigger option of the tables.
    pub mode: &'static str,
    /// Whether there is another side.
    pub is_mirrored: bool,
}

impl Relay {
    pub fn start(task: Task) -> Result<Relay> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let closing = Arc::new(AtomicBool::new(false));
        let stop = closing.clone();
        let thread = thread::spawn(move || {
            for psql in listener.incoming().flatten() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let task = task.clone();
                thread::spawn(move || {
                    if let Err(error) = serve(psql, &task) {
                        broken(&task, &error);
                    }
                });
            }
        });
        Ok(Relay {
            port,
            closing,
            thread: Some(thread),
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn broken(task: &Task, error: &anyhow::Error) {
    let mut state = task.run.state();
    let said = format!("{}: {error:#}", state.file);
    println!("{said}");
    state.tally.broken.push(said);
}

struct Message {
    kind: u8,
    body: Vec<u8>,
}

/// One end of a session.
struct Wire {
    from: BufReader<TcpStream>,
    to: BufWriter<TcpStream>,
}

impl Wire {
    fn new(stream: TcpStream) -> Result<Wire> {
        stream.set_nodelay(true)?;
        Ok(Wire {
            from: BufReader::new(stream.try_clone()?),
            to: BufWriter::new(stream),
        })
    }

    fn read(&mut self) -> Result<Message> {
        let mut head = [0; 5];
        self.from.read_exact(&mut head)?;
        let length = i32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let mut body = vec![0; usize::try_from(length - 4)?];
        self.from.read_exact(&mut body)?;
        Ok(Message {
            kind: head[0],
            body,
        })
    }

    /// A message without a kind, as at the start of a session; `None` at the end of the stream.
    fn read_start(&mut self) -> Result<Option<Vec<u8>>> {
        let mut length = [0; 4];
        if self.from.read_exact(&mut length).is_err() {
            return Ok(None);
        }
        let mut body = vec![0; usize::try_from(i32::from_be_bytes(length) - 4)?];
        self.from.read_exact(&mut body)?;
        Ok(Some(body))
    }

    fn write_start(&mut self, body: &[u8]) -> Result<()> {
        self.to
            .write_all(&(i32::try_from(body.len())? + 4).to_be_bytes())?;
        self.to.write_all(body)?;
        Ok(self.to.flush()?)
    }

    fn write(&mut self, message: &Message) -> Result<()> {
        self.to.write_all(&[message.kind])?;
        self.to
            .write_all(&(i32::try_from(message.body.len())? + 4).to_be_bytes())?;
        Ok(self.to.write_all(&message.body)?)
    }
}

struct Session<'t> {
    task: &'t Task,
    psql: Wire,
    server: Wire,
    /// `I`, `T` or `E`, as ReadyForQuery says.
    status: u8,
    mirror: Option<Mirror>,
}

fn serve(psql: TcpStream, task: &Task) -> Result<()> {
    let mut psql = Wire::new(psql)?;
    let port = task.run.here.port();
    let mut server = Wire::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port))?)?;
    server.to.get_ref().set_read_timeout(Some(SILENCE))?;
    let start = loop {
        let Some(start) = psql.read_start()? else {
            return Ok(());
        };
        let code = start.first_chunk().map(|code| i32::from_be_bytes(*code));
        match code {
            Some(SSL_REQUEST | GSS_REQUEST) => {
                psql.to.write_all(b"N")?;
                psql.to.flush()?;
            }
            Some(CANCEL_REQUEST) => return server.write_start(&start),
            _ => break start,
        }
    };
    server.write_start(&start)?;
    if !authenticate(&mut psql, &mut server)? {
        return Ok(());
    }
    let words: Vec<String> = start[4..]
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let mut settings: BTreeMap<String, String> = words
        .chunks(2)
        .filter(|pair| pair.len() == 2 && !pair[0].is_empty())
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .collect();
    let user = settings.remove("user").unwrap_or_default();
    for name in [
        "database",
        "options",
        "application_name",
        "fallback_application_name",
    ] {
        settings.remove(name);
    }
    let mirror = task
        .is_mirrored
        .then(|| Mirror::start(&task.run, &user, &settings))
        .transpose()?;
    let mut session = Session {
        task,
        psql,
        server,
        status: b'I',
        mirror,
    };
    loop {
        let Ok(message) = session.psql.read() else {
            return Ok(());
        };
        match message.kind {
            b'Q' => session.query(&message)?,
            b'X' => return session.server.write(&message),
            // The end of a pipeline, or a function call.
            b'S' | b'F' => {
                session.server.write(&message)?;
                session.answer()?;
                session.ready()?;
            }
            _ => session.server.write(&message)?,
        }
    }
}

/// Whether the server let psql in.
fn authenticate(psql: &mut Wire, server: &mut Wire) -> Result<bool> {
    loop {
        let message = server.read()?;
        psql.write(&message)?;
        psql.to.flush()?;
        let wants_answer = message.kind == b'R'
            && matches!(
                message.body.first_chunk().map(|c| i32::from_be_bytes(*c)),
                Some(3 | 5 | 10 | 11)
            );
        match message.kind {
            b'E' => return Ok(false),
            b'Z' => return Ok(true),
            _ if wants_answer => {
                let Ok(answer) = psql.read() else {
                    return Ok(false);
                };
                server.write(&answer)?;
                server.to.flush()?;
            }
            _ => {}
        }
    }
}

impl Session<'_> {
    fn query(&mut self, message: &Message) -> Result<()> {
        let text = message.body.strip_suffix(b"\0").unwrap_or(&message.body);
        let text = String::from_utf8_lossy(text).into_owned();
        self.task.run.state().tally.statements += 1;
        let sent = self.with_columns(&text)?;
        if self.status == b'T' && commits(&text) {
            self.mirrored(|mirror, ask| mirror.before_commit(ask));
        }
        match sent {
            Some(sent) => self.server.write(&query_message(&sent))?,
            None => self.server.write(message)?,
        }
        let tags = self.answer()?;
        let is_open = self.status != b'I';
        if let Some(mirror) = &mut self.mirror {
            mirror.executed(&text, &tags, is_open);
        }
        if self.status != b'E' && !is_trivial(&text) {
            let defines = tags.iter().any(|tag| {
                ["CREATE", "ALTER", "DROP", "DO", "CALL", "IMPORT"]
                    .contains(&tag.split(' ').next().unwrap_or_default())
            });
            let mode = self.task.mode;
            match self.ask(&format!("select * from rowsync.after('{mode}', {defines})")) {
                Ok(rows) => {
                    if let Some(mirror) = &mut self.mirror {
                        mirror.reported(&rows);
                    }
                }
                Err(error) => broken(self.task, &error),
            }
        }
        if self.status == b'I' {
            self.mirrored(|mirror, ask| mirror.settle(ask));
        }
        self.ready()
    }

    /// Does something on the other side, which may ask here.
    fn mirrored(
        &mut self,
        act: impl FnOnce(&mut Mirror, &mut dyn FnMut(&str) -> Result<Vec<String>>) -> Result<()>,
    ) {
        let Some(mut mirror) = self.mirror.take() else {
            return;
        };
        if let Err(error) = act(&mut mirror, &mut |sql| self.ask(sql)) {
            broken(self.task, &error);
        }
        self.mirror = Some(mirror);
    }

    /// The text with the columns that it means, if it names none and the table has a key that it
    /// does not know.
    fn with_columns(&mut self, text: &str) -> Result<Option<String>> {
        let Some(found) = unlisted(text).filter(|_| self.status != b'E') else {
            return Ok(None);
        };
        let columns = self.ask(&format!(
            "select * from rowsync.columns($n${}$n$)",
            found.relation
        ))?;
        let wanted = found.columns.unwrap_or(columns.len());
        if columns.is_empty() || wanted > columns.len() || wanted == 0 {
            return Ok(None);
        }
        let (before, behind) = text.split_at(found.at);
        Ok(Some(format!(
            "{before} ({}){behind}",
            columns[..wanted].join(", ")
        )))
    }

    /// Passes on what the server says, up to ReadyForQuery, which waits. The command tags.
    fn answer(&mut self) -> Result<Vec<String>> {
        self.server.to.flush()?;
        let mut tags = Vec::new();
        loop {
            let message = self.server.read()?;
            match message.kind {
                b'Z' => {
                    self.status = *message.body.first().context("no status")?;
                    return Ok(tags);
                }
                b'C' => {
                    let tag = String::from_utf8_lossy(&message.body);
                    let tag = tag
                        .trim_end_matches('\0')
                        .trim_end_matches(|c: char| c.is_ascii_digit());
                    tags.push(tag.trim_end().to_owned());
                }
                _ => {}
            }
            self.psql.write(&message)?;
            if message.kind == b'G' {
                self.copy_in()?;
            }
        }
    }

    fn copy_in(&mut self) -> Result<()> {
        self.psql.to.flush()?;
        loop {
            let message = self.psql.read()?;
            self.server.write(&message)?;
            match message.kind {
                b'd' | b'H' => {}
                b'c' | b'f' => return Ok(self.server.to.flush()?),
                kind => bail!("message {:?} in the middle of COPY", kind as char),
            }
        }
    }

    fn ready(&mut self) -> Result<()> {
        let status = self.status;
        self.psql.write(&Message {
            kind: b'Z',
            body: vec![status],
        })?;
        Ok(self.psql.to.flush()?)
    }

    /// Asks in psql's session, unseen by it.
    fn ask(&mut self, sql: &str) -> Result<Vec<String>> {
        self.server.write(&query_message(sql))?;
        self.server.to.flush()?;
        let mut rows = Vec::new();
        let mut refused = None;
        loop {
            let message = self.server.read()?;
            match message.kind {
                b'D' => rows.extend(first_column(&message.body)),
                b'A' => self.psql.write(&message)?,
                b'E' => refused = Some(String::from_utf8_lossy(&message.body).replace('\0', " ")),
                b'Z' => {
                    self.status = *message.body.first().context("no status")?;
                    break;
                }
                _ => {}
            }
        }
        match refused {
            None => Ok(rows),
            Some(said) => bail!("{sql}: {said}"),
        }
    }
}

fn query_message(sql: &str) -> Message {
    Message {
        kind: b'Q',
        body: [sql.as_bytes(), b"\0"].concat(),
    }
}

/// Of a DataRow.
fn first_column(body: &[u8]) -> Option<String> {
    let length = i32::from_be_bytes(*body.get(2..)?.first_chunk()?);
    let text = body.get(6..6 + usize::try_from(length).ok()?)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// Whether a text neither writes nor defines, and may have to come before anything else of its
/// transaction.
fn is_trivial(text: &str) -> bool {
    let words = [
        "begin",
        "start",
        "set",
        "show",
        "savepoint",
        "declare",
        "fetch",
        "move",
        "listen",
        "unlisten",
        "lock",
    ];
    beginnings(text)
        .iter()
        .all(|one| words.iter().any(|word| one.split(' ').next() == Some(word)))
}
