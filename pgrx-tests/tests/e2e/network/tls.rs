//! Encrypted connections: who the server must prove to be, and what a client lets itself be asked.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use postgres::error::DbError;
use rowsync_harness::tls::{Authority, Certificate};
use rowsync_harness::{Cluster, Fixture, Hostile, Side, await_until};

use crate::support::common::{query, refused, rows, run};

/// The server's names, none of which resolves: the address is given beside them.
const NAME: &str = "db.rowsync.test";
const SYNC: &str = r#"{"mode": "sync"}"#;

struct World {
    authority: Authority,
    other: Authority,
    client: Certificate,
    cluster: Arc<Cluster>,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let make = || {
            let authority = Authority::new("own")?;
            let other = Authority::new("other")?;
            let names = [&format!("DNS:{NAME}")[..], "IP:127.0.0.1"];
            let certificate = authority.certify("server", &names)?;
            let client = authority.certify("client", &[])?;
            let cluster = Arc::new(authority.cluster("tls", &certificate)?);
            anyhow::Ok(World {
                authority,
                other,
                client,
                cluster,
            })
        };
        make().unwrap_or_else(|error| panic!("no cluster with TLS: {error:#}"))
    })
}

/// A table here whose changes go, in mode `sync`, to one of the same name in a cluster with TLS.
struct Case {
    fixture: Fixture,
    remote: Side,
    next: AtomicU32,
}

impl Case {
    fn new(label: &str) -> Case {
        let fixture = Fixture::new(label);
        let name = format!("{}_tls", fixture.left.user);
        let remote = Side::create(&world().cluster, &name).expect("a database with TLS");
        for side in [&fixture.left, &remote] {
            side.exec("create table t (id int primary key)");
        }
        fixture.link(&fixture.left, &remote, "dst", &[]);
        fixture.left.exec(&format!(
            "select attach_sync('t', 'dst', '{name}.t', '{SYNC}')"
        ));
        Case {
            fixture,
            remote,
            next: AtomicU32::new(1),
        }
    }

    /// Options of the server, all of them.
    fn set(&self, options: &[(&str, &str)]) {
        let Side {
            user, password, db, ..
        } = &self.remote;
        let mut list = format!("dbname '{db}'");
        if !options.iter().any(|(name, _)| *name == "port") {
            list.push_str(&format!(", port '{}'", self.remote.cluster.port()));
        }
        for (name, value) in options {
            list.push_str(&format!(", {name} '{value}'"));
        }
        let left = &self.fixture.left.user;
        self.fixture.left.exec_superuser(&format!(
            "drop server dst cascade;
             create server dst foreign data wrapper pg_rowsync options ({list});
             grant usage on foreign server dst to {left};
             create user mapping for {left} server dst
               options (user '{user}', password '{password}')"
        ));
    }

    fn insert(&self) -> String {
        format!(
            "insert into t values ({})",
            self.next.fetch_add(1, Ordering::Relaxed)
        )
    }

    #[track_caller]
    fn works(&self, options: &[(&str, &str)]) {
        self.set(options);
        self.arrives();
    }

    #[track_caller]
    fn arrives(&self) {
        let count = "select count(*) from t";
        let before: i64 = rows(&self.remote, count)[0].parse().expect("a number");
        run(&mut self.fixture.left.client(), &self.insert());
        assert_eq!(rows(&self.remote, count), [(before + 1).to_string()]);
    }

    #[track_caller]
    fn fails(&self, options: &[(&str, &str)], reason: &str) {
        self.set(options);
        self.is_refused("08001", reason);
    }

    #[track_caller]
    fn is_refused(&self, sqlstate: &str, reason: &str) -> DbError {
        let error = refused(&mut self.fixture.left.client(), &self.insert(), sqlstate);
        assert!(
            error.detail().is_some_and(|text| text.contains(reason)),
            "{error:?}"
        );
        error
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        let _ = self.remote.drop();
    }
}

#[test]
fn the_servers_certificate_is_verified_as_asked() {
    let (
        World {
            authority, other, ..
        },
        case,
    ) = (world(), Case::new("tlsverify"));
    let root = authority.root();
    let wrong = other.root();
    let root = root.to_str().expect("a path");
    let wrong = wrong.to_str().expect("a path");
    let named = |name, mode, root| {
        [
            ("host", name),
            ("hostaddr", "127.0.0.1"),
            ("sslmode", mode),
            ("sslrootcert", root),
        ]
    };
    case.works(&named(NAME, "verify-full", root));
    case.works(&named("127.0.0.1", "verify-full", root));
    case.fails(
        &named("evil.rowsync.test", "verify-full", root),
        "does not match host name",
    );
    case.works(&named("evil.rowsync.test", "verify-ca", root));
    case.fails(
        &named(NAME, "verify-full", wrong),
        "certificate verify failed",
    );
    case.fails(
        &named(NAME, "verify-ca", wrong),
        "certificate verify failed",
    );
    case.fails(&named(NAME, "verify-full", "/nowhere"), "does not exist");
    // The clusters that other tests share have no TLS.
    let plain = case.fixture.right.cluster.port().to_string();
    let options = [
        ("host", "127.0.0.1"),
        ("port", &plain),
        ("sslmode", "require"),
    ];
    case.fails(&options, "server does not support SSL");
}

#[test]
fn a_password_may_be_bound_to_the_channel() {
    let case = Case::new("tlsbind");
    let bound = ("channel_binding", "require");
    case.works(&[("host", "127.0.0.1"), ("sslmode", "require"), bound]);
    case.fails(
        &[("host", "127.0.0.1"), ("sslmode", "disable"), bound],
        "channel binding",
    );
    // One in the middle that asks for the password itself gets none.
    let reported = Arc::new(AtomicBool::new(false));
    let (hostile, port) = thief(&reported);
    case.fails(
        &[("host", "127.0.0.1"), ("port", &port), bound],
        "channel binding",
    );
    assert_eq!(hostile.connections(), 1);
    assert!(!reported.load(Ordering::Relaxed), "the password was told");
    // Without it, it does: the reason for encryption and for this option.
    case.set(&[("host", "127.0.0.1"), ("port", &port)]);
    refused(&mut case.fixture.left.client(), &case.insert(), "08001");
    assert!(reported.load(Ordering::Relaxed));
}

/// A server that wants the password in clear text, and says whether it was told.
fn thief(reported: &Arc<AtomicBool>) -> (Hostile, String) {
    let reported = reported.clone();
    let hostile = Hostile::start(move |wire| {
        wire.startup()?;
        wire.ask(3, &[])?;
        wire.read()?;
        reported.store(true, Ordering::Relaxed);
        Ok(())
    });
    let hostile = hostile.expect("a hostile server");
    let port = hostile.port().to_string();
    (hostile, port)
}

/// Known from libpq 16 on; an older one must not let its user believe that it is heeded.
#[test]
fn ways_to_log_in_may_be_restricted_where_libpq_can() {
    let case = Case::new("tlsauth");
    let reported = Arc::new(AtomicBool::new(false));
    let (_hostile, port) = thief(&reported);
    let options = [
        ("host", "127.0.0.1"),
        ("port", &port),
        ("require_auth", "scram-sha-256"),
    ];
    let known = case.fixture.left.client().batch_execute(
        "create server probe foreign data wrapper pg_rowsync options (require_auth 'password')",
    );
    match known {
        Ok(()) => {
            case.fails(&options, "authentication method requirement");
            assert!(!reported.load(Ordering::Relaxed), "the password was told");
            case.works(&[("host", "127.0.0.1"), ("require_auth", "scram-sha-256")]);
        }
        Err(error) => {
            let error = error.as_db_error().expect("an answer");
            assert_eq!(error.code().code(), "HV00D", "{error:?}");
            assert_eq!(error.message(), "invalid option \"require_auth\"");
        }
    }
}

/// How the case's role is let in from now on.
fn admit(case: &Case, how: &str) {
    static RULES: Mutex<()> = Mutex::new(());
    let _alone = RULES.lock().unwrap_or_else(|broken| broken.into_inner());
    let hba = world().cluster.dir().join("data/pg_hba.conf");
    let rules = fs::read_to_string(&hba).expect("the rules");
    let rule = format!("hostssl all {} 127.0.0.1/32 {how}\n", case.remote.user);
    fs::write(&hba, rule + &rules).expect("new rules");
    let mut client = case.remote.superuser();
    let loaded = "select pg_conf_load_time()";
    let before = query(&mut client, loaded);
    run(&mut client, "select pg_reload_conf()");
    await_until(Duration::from_secs(20), "the rules", || {
        query(&mut client, loaded) != before
    });
}

#[test]
fn a_clients_certificate_reaches_the_server() {
    let (World { client, .. }, case) = (world(), Case::new("tlsclient"));
    admit(&case, "scram-sha-256 clientcert=verify-ca");
    case.set(&[("host", "127.0.0.1"), ("sslmode", "require")]);
    case.is_refused("28000", "requires a valid client certificate");
    let certificate = client.certificate.display();
    let key = client.key.display();
    let left = &case.fixture.left.user;
    case.fixture.left.exec_superuser(&format!(
        "alter user mapping for {left} server dst
           options (add sslcert '{certificate}', add sslkey '{key}')"
    ));
    case.arrives();
}

#[test]
fn a_certificate_alone_lets_in_whom_a_superuser_allows() {
    let case = Case::new("tlscert");
    let left = &case.fixture.left.user;
    let there = &case.remote.user;
    let own = world()
        .authority
        .certify(there, &[])
        .expect("a certificate");
    let certificate = own.certificate.display();
    let key = own.key.display();
    admit(&case, "cert");
    case.set(&[("host", "127.0.0.1"), ("sslmode", "require")]);
    let owner = || case.fixture.left.client();
    let mapping = format!("alter user mapping for {left} server dst options");
    case.is_refused("28000", "requires a valid client certificate");
    // Nobody else says which certificate it is, wherever he says it.
    for option in [
        format!("sslcert '{certificate}'"),
        format!("sslkey '{key}'"),
    ] {
        refused(&mut owner(), &format!("{mapping} (add {option})"), "42501");
        let server = format!(
            "create server mine foreign data wrapper pg_rowsync options (host 'x', {option})"
        );
        refused(&mut owner(), &server, "42501");
    }
    let files = format!("sslcert '{certificate}', sslkey '{key}'");
    case.fixture.left.exec_superuser(&format!(
        "{mapping} (add {}, add sslkey '{key}'); alter user mapping for {left} server dst
           options (drop password)",
        files.split(", ").next().unwrap_or_default()
    ));
    // It opens the door, which is not enough: with no password, and with one that nobody asks for.
    let required = "Non-superusers must provide a password in the user mapping.";
    case.is_refused("2F003", required);
    case.fixture
        .left
        .exec_superuser(&format!("{mapping} (add password 'x')"));
    let asked = "Non-superuser cannot connect if the server does not request a password.";
    case.is_refused("2F003", asked);
    assert_eq!(rows(&case.remote, "select * from t"), [""; 0]);
    for change in [
        "set password 'y'",
        "add password_required 'true'",
        "set sslkey 'x'",
    ] {
        refused(&mut owner(), &format!("{mapping} ({change})"), "42501");
    }
    case.fixture
        .left
        .exec_superuser(&format!("{mapping} (add password_required 'false')"));
    case.arrives();
    case.fixture
        .left
        .exec_superuser(&format!("{mapping} (set password_required 'true')"));
    case.is_refused("2F003", asked);
    // A superuser's table needs neither password nor waiver.
    case.fixture.left.exec_superuser(&format!(
        "create user mapping for postgres server dst options (user '{there}', {files});
         alter table {left}.t owner to postgres; grant all on {left}.t to {left}"
    ));
    case.arrives();
}

/// Where nobody watches which options are set, an owner could present certificates that are not his.
#[test]
fn a_certificate_that_anybody_may_have_named_is_not_shown() {
    let (World { client, .. }, case) = (world(), Case::new("tlsunwatched"));
    let (
        left,
        Side {
            user, password, db, ..
        },
    ) = (&case.fixture.left.user, &case.remote);
    admit(&case, "scram-sha-256 clientcert=verify-ca");
    case.fixture.left.exec_superuser(&format!(
        "create foreign data wrapper anything; grant usage on foreign data wrapper anything to {left};
         drop server dst cascade"
    ));
    let certificate = client.certificate.display();
    let key = client.key.display();
    let files = format!("sslcert '{certificate}', sslkey '{key}'");
    let make = |server: &str, mapping: &str| {
        format!(
            "drop server if exists dst cascade;
             create server dst foreign data wrapper anything
               options (host '127.0.0.1', port '{}', dbname '{db}', sslmode 'require'{server});
             create user mapping for {left} server dst
               options (user '{user}', password '{password}'{mapping})",
            case.remote.cluster.port()
        )
    };
    for sql in [
        make(&format!(", {files}"), ""),
        make("", &format!(", {files}")),
    ] {
        case.fixture.left.exec(&sql);
        case.is_refused("28000", "requires a valid client certificate");
    }
    // It is shown for a superuser, who could read it.
    case.fixture.left.exec_superuser(&format!(
        "create user mapping for postgres server dst
           options (user '{user}', password '{password}', {files});
         alter server dst owner to postgres;
         alter table {left}.t owner to postgres; grant all on {left}.t to {left}"
    ));
    case.arrives();
}
