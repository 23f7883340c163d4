//! A session whose server is hostile: it goes on, its commit succeeds in time with the change queued, its
//! memory stays small, and it works with an honest server right after.

use std::fs::{self, Permissions};
use std::io::{self, Result};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use rowsync_harness::hostile::{Hostile, Wire, message, parameter, report};
use rowsync_harness::side::Notices;
use rowsync_harness::{Fixture, Side, fails};

use crate::support::common::{both_have, deal, one_way, query, records, rows, run, warnings};

pub const TIMEOUT: Duration = Duration::from_millis(700);
/// The two timeouts, a moment for a server that is sending, and the machine's own slowness.
const LONGEST: Duration = Duration::from_secs(5);
/// The most by which a backend may grow, at any time, in kB.
pub const MOST_GROWTH: i64 = 32 * 1024;

/// A fixture whose left side is sent from one hostile server to the next.
pub struct Victim {
    pub fixture: Fixture,
    pub timeout: Duration,
    /// Whether it meets them behind a local socket, of which the kernel does not tell how much was read.
    pub local: bool,
    next: u32,
}

/// The session that met a hostile server, and what became of its change.
pub struct Met {
    pub client: Client,
    pub notices: Notices,
    /// `op|sqlstate|attempts|status` of the queue's records.
    pub records: Vec<String>,
    /// The row's number.
    pub id: u32,
}

impl Victim {
    pub fn new(label: &str) -> Victim {
        let fixture = one_way(label, "id int primary key, v text", "{}");
        Victim {
            fixture,
            timeout: TIMEOUT,
            local: false,
            next: 0,
        }
    }

    /// Lets a new session send an insert to a server that behaves so. Checks time and memory.
    #[track_caller]
    pub fn meet(
        &mut self,
        what: &str,
        behaviour: impl Fn(&mut Wire) -> Result<()> + Send + Sync + 'static,
    ) -> Met {
        let hostile = Hostile::start(behaviour).expect("a hostile server");
        lead(&self.fixture.left, hostile.port());
        if self.local {
            let directory = relay(&self.fixture.left, hostile.port()).expect("a local socket");
            self.fixture.left.exec(&format!(
                "alter server dst options (set host '{directory}')"
            ));
        }
        self.next += 1;
        let id = self.next;
        let (mut client, notices) = self.fixture.left.client_with_notices();
        let timeout = self.timeout.as_millis();
        run(
            &mut client,
            &format!(
                "set pg_rowsync.connect_timeout = {timeout};
                 set pg_rowsync.delivery_timeout = {timeout}; select sync_disconnect()"
            ),
        );
        let pid = &query(&mut client, "select pg_backend_pid()")[0];
        let before = memory(pid, "VmRSS");
        let start = Instant::now();
        run(&mut client, &format!("insert into t values ({id}, 'a')"));
        let took = start.elapsed();
        let growth = memory(pid, "VmHWM") - before;
        assert!(hostile.connections() > 0, "{what}: not called");
        assert!(took < LONGEST, "{what}: took {took:?}");
        assert!(growth < MOST_GROWTH, "{what}: grew by {growth} kB");
        println!("{what}: {took:?}, {growth} kB");
        Met {
            client,
            notices,
            records: records(&self.fixture),
            id,
        }
    }

    /// [`Victim::meet`], after which the change is in the queue under this SQLSTATE, and told of in a
    /// WARNING.
    #[track_caller]
    pub fn survives(
        &mut self,
        what: &str,
        sqlstate: &str,
        behaviour: impl Fn(&mut Wire) -> Result<()> + Send + Sync + 'static,
    ) {
        let met = self.meet(what, behaviour);
        assert_eq!(
            met.records,
            [format!("INSERT|{sqlstate}|1|pending")],
            "{what}"
        );
        let reported = warnings(&met.notices);
        assert_eq!(reported.len(), 1, "{what}: {reported:?}");
        assert_eq!(reported[0].code().code(), sqlstate, "{what}: {reported:?}");
        self.recovers(met);
    }

    /// The same session, led to the honest server: what was queued arrives, and what it writes next.
    #[track_caller]
    pub fn recovers(&mut self, mut met: Met) {
        lead(&self.fixture.left, self.fixture.right.cluster.port());
        assert!(deal(&self.fixture, "10"), "after {}", met.id);
        run(
            &mut met.client,
            &format!("update t set v = 'b' where id = {}", met.id),
        );
        let expected: Vec<String> = (1..=met.id).map(|id| format!("{id}|b")).collect();
        assert_eq!(
            rows(&self.fixture.right, "select * from t order by id"),
            expected
        );
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        if expected.len() < 10 {
            both_have(&self.fixture, "t", &expected);
        }
        assert_eq!(records(&self.fixture), [""; 0]);
    }
}

pub fn notice() -> Vec<u8> {
    message(
        b'N',
        &report(&[(b'S', b"NOTICE"), (b'C', b"00000"), (b'M', b"x")]),
    )
}

/// Up to the first change, and its answer up to where the rows or the command tag would be.
pub fn begin(wire: &mut Wire) -> Result<()> {
    wire.greet()?;
    wire.asked()?;
    wire.begun()
}

/// For [`Wire::flood_by`]: parameters with names of their own, among which libpq looks for each. They come
/// faster than they are read.
pub fn small_parameters(chunk: u64) -> Vec<u8> {
    let one = |n| message(b'S', &parameter(&format!("p{chunk}_{n}"), "x"));
    (0..1000).flat_map(one).collect()
}

pub fn lead(left: &Side, port: u16) {
    left.exec(&format!(
        "alter server dst options (set host '127.0.0.1', set port '{port}')"
    ));
}

/// A local socket of this port, whose one connection leads to 127.0.0.1. Gives back its directory.
fn relay(left: &Side, port: u16) -> Result<String> {
    let directory = left.cluster.dir();
    let path = directory.join(format!(".s.PGSQL.{port}"));
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(0o777))?;
    thread::spawn(move || -> Result<()> {
        let (client, _) = listener.accept()?;
        fs::remove_file(path)?;
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        let mut from = client.try_clone()?;
        let mut to = server.try_clone()?;
        thread::spawn(move || io::copy(&mut from, &mut to));
        // Until either hangs up, which the other then sees.
        let _ = io::copy(&mut &server, &mut &client);
        let _ = client.shutdown(Shutdown::Both);
        server.shutdown(Shutdown::Both)
    });
    Ok(directory.to_string_lossy().into_owned())
}

/// A line of `/proc/PID/status`, in kB.
pub fn memory(pid: &str, name: &str) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a live backend");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no {name} in {status}"))
}

/// What `sync` makes of it: the transaction fails, and nothing is queued.
#[test]
fn a_synchronous_commit_fails_in_time() {
    let mut victim = Victim::new("hsync");
    let hostile = Hostile::start(|wire| {
        wire.greet()?;
        wire.asked()?;
        wire.flood(&message(b'N', &report(&[(b'M', b"x")])))
    });
    let hostile = hostile.expect("a hostile server");
    crate::support::common::mirror(
        &victim.fixture,
        "u",
        "id int primary key",
        r#"{"mode": "sync"}"#,
    );
    lead(&victim.fixture.left, hostile.port());
    let mut client = victim.fixture.left.client();
    run(&mut client, "set pg_rowsync.delivery_timeout = 500");
    run(&mut client, "set pg_rowsync.connect_timeout = 500");
    let start = Instant::now();
    let error = fails(client.batch_execute("insert into u values (1)"));
    assert!(start.elapsed() < 2 * LONGEST, "took {:?}", start.elapsed());
    assert_eq!(error.code().code(), "08007", "{error:?}");
    assert_eq!(query(&mut client, "select * from u"), [""; 0]);
    assert_eq!(records(&victim.fixture), [""; 0]);
    drop(hostile);
    let met = victim.meet("closes", |wire| wire.startup().map(drop));
    victim.recovers(met);
}

/// A request to cancel is heeded while a server keeps the session busy.
#[test]
fn a_session_that_is_flooded_can_be_cancelled() {
    let mut victim = Victim::new("hend");
    for greeted in [false, true] {
        // Slowly enough to stay below every bound of its own.
        let hostile = Hostile::start(move |wire| {
            wire.log_in()?;
            if greeted {
                wire.welcome("15.0")?;
                wire.introduce()?;
                wire.asked()?;
            }
            let notice = message(b'N', &report(&[(b'M', b"x")]));
            wire.drip(&notice.repeat(100_000), Duration::from_micros(100))
        });
        let hostile = hostile.expect("a hostile server");
        lead(&victim.fixture.left, hostile.port());
        let (mut client, _) = victim.fixture.left.client_with_notices();
        let pid = query(&mut client, "select pg_backend_pid()").remove(0);
        let left = victim.fixture.left.clone();
        let canceller = thread::spawn(move || {
            thread::sleep(Duration::from_millis(500));
            left.exec(&format!("select pg_cancel_backend({pid})"));
        });
        run(&mut client, "set pg_rowsync.cancel_timeout = 500");
        let start = Instant::now();
        let result = client.batch_execute("insert into t values (1, 'a')");
        let took = start.elapsed();
        canceller.join().expect("a request to cancel");
        assert!(took < Duration::from_secs(3), "took {took:?}");
        if !greeted {
            assert_eq!(fails(result).code().code(), "57014")
        } else {
            // It may have been committed there.
            assert_eq!(records(&victim.fixture), ["INSERT|08007|1|pending"])
        }
    }
    victim.next = 1;
    let client = victim.fixture.left.client();
    let records = records(&victim.fixture);
    let notices = Notices::default();
    victim.recovers(Met {
        client,
        notices,
        records,
        id: 1,
    });
}
