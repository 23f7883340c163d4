//! Encrypted connections: who the server must prove to be, and what a client lets itself be asked.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use postgres::error::DbError;
use rowsync_harness::tls::{Authority, Certificate};
use rowsync_harness::{Cluster, Hostile, Side, Testbed};

use crate::common::{refused, rows, run};

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
            let (authority, other) = (Authority::new("own")?, Authority::new("other")?);
            let names = [&format!("DNS:{NAME}")[..], "IP:127.0.0.1"];
            let certificate = authority.certify("server", &names)?;
            let client = authority.certify("client", &[])?;
            let cluster = Arc::new(authority.cluster("tls", &certificate)?);
            anyhow::Ok(World { authority, other, client, cluster })
        };
        make().unwrap_or_else(|error| panic!("no cluster with TLS: {error:#}"))
    })
}

/// A table here whose changes go, in mode `sync`, to one of the same name in a cluster with TLS.
struct Case {
    bed: Testbed,
    remote: Side,
    next: AtomicU32,
}

impl Case {
    fn new(label: &str) -> Case {
        let bed = Testbed::new(label);
        let name = format!("{}_tls", bed.left.user);
        let remote = Side::create(&world().cluster, &name).expect("a database with TLS");
        for side in [&bed.left, &remote] {
            side.exec("create table t (id int primary key)");
        }
        bed.link(&bed.left, &remote, "dst", &[]);
        bed.left.exec(&format!("select attach_sync('t', 'dst', '{name}.t', '{SYNC}')"));
        Case { bed, remote, next: AtomicU32::new(1) }
    }

    /// Options of the server, all of them.
    fn set(&self, options: &[(&str, &str)]) {
        let Side { user, password, db, .. } = &self.remote;
        let mut list = format!("dbname '{db}'");
        if !options.iter().any(|(name, _)| *name == "port") {
            list.push_str(&format!(", port '{}'", self.remote.cluster.port()));
        }
        for (name, value) in options {
            list.push_str(&format!(", {name} '{value}'"));
        }
        let left = &self.bed.left.user;
        self.bed.left.exec_superuser(&format!(
            "drop server dst cascade;
             create server dst foreign data wrapper pg_rowsync options ({list});
             grant usage on foreign server dst to {left};
             create user mapping for {left} server dst
               options (user '{user}', password '{password}')"
        ));
    }

    fn insert(&self) -> String {
        format!("insert into t values ({})", self.next.fetch_add(1, Ordering::Relaxed))
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
        run(&mut self.bed.left.client(), &self.insert());
        assert_eq!(rows(&self.remote, count), [(before + 1).to_string()]);
    }

    #[track_caller]
    fn fails(&self, options: &[(&str, &str)], reason: &str) {
        self.set(options);
        self.is_refused("08001", reason);
    }

    #[track_caller]
    fn is_refused(&self, sqlstate: &str, reason: &str) -> DbError {
        let error = refused(&mut self.bed.left.client(), &self.insert(), sqlstate);
        assert!(error.detail().is_some_and(|text| text.contains(reason)), "{error:?}");
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
    let (World { authority, other, .. }, case) = (world(), Case::new("tlsverify"));
    let (root, wrong) = (authority.root(), other.root());
    let (root, wrong) = (root.to_str().expect("a path"), wrong.to_str().expect("a path"));
    let named = |name, mode, root| {
        [("host", name), ("hostaddr", "127.0.0.1"), ("sslmode", mode), ("sslrootcert", root)]
    };
    case.works(&named(NAME, "verify-full", root));
    case.works(&named("127.0.0.1", "verify-full", root));
    case.fails(&named("evil.rowsync.test", "verify-full", root), "does not match host name");
    case.works(&named("evil.rowsync.test", "verify-ca", root));
    case.fails(&named(NAME, "verify-full", wrong), "certificate verify failed");
    case.fails(&named(NAME, "verify-ca", wrong), "certificate verify failed");
    case.fails(&named(NAME, "verify-full", "/nowhere"), "does not exist");
    // The clusters that other tests share have no TLS.
    let plain = case.bed.right.cluster.port().to_string();
    let options = [("host", "127.0.0.1"), ("port", &plain), ("sslmode", "require")];
    case.fails(&options, "server does not support SSL");
}

#[test]
fn a_password_may_be_bound_to_the_channel() {
    let case = Case::new("tlsbind");
    let bound = ("channel_binding", "require");
    case.works(&[("host", "127.0.0.1"), ("sslmode", "require"), bound]);
    case.fails(&[("host", "127.0.0.1"), ("sslmode", "disable"), bound], "channel binding");
    // One in the middle that asks for the password itself gets none.
    let told = Arc::new(AtomicBool::new(false));
    let (hostile, port) = thief(&told);
    case.fails(&[("host", "127.0.0.1"), ("port", &port), bound], "channel binding");
    assert_eq!(hostile.connections(), 1);
    assert!(!told.load(Ordering::Relaxed), "the password was told");
    // Without it, it does: the reason for encryption and for this option.
    case.set(&[("host", "127.0.0.1"), ("port", &port)]);
    refused(&mut case.bed.left.client(), &case.insert(), "08001");
    assert!(told.load(Ordering::Relaxed));
}

/// A server that wants the password in clear text, and says whether it was told.
fn thief(told: &Arc<AtomicBool>) -> (Hostile, String) {
    let told = told.clone();
    let hostile = Hostile::start(move |wire| {
        wire.startup()?;
        wire.ask(3, &[])?;
        wire.read()?;
        told.store(true, Ordering::Relaxed);
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
    let told = Arc::new(AtomicBool::new(false));
    let (_hostile, port) = thief(&told);
    let options = [("host", "127.0.0.1"), ("port", &port), ("require_auth", "scram-sha-256")];
    let known = case.bed.left.client().batch_execute(
        "create server probe foreign data wrapper pg_rowsync options (require_auth 'password')",
    );
    match known {
        Ok(()) => {
            case.fails(&options, "authentication method requirement");
            assert!(!told.load(Ordering::Relaxed), "the password was told");
            case.works(&[("host", "127.0.0.1"), ("require_auth", "scram-sha-256")]);
        }
        Err(error) => {
            let error = error.as_db_error().expect("an answer");
            assert_eq!(error.code().code(), "HV00D", "{error:?}");
            assert_eq!(error.message(), "invalid option \"require_auth\"");
        }
    }
}

#[test]
fn a_clients_certificate_reaches_the_server() {
    let (World { client, cluster, .. }, case) = (world(), Case::new("tlsclient"));
    let hba = cluster.dir().join("data/pg_hba.conf");
    let rules = fs::read_to_string(&hba).expect("the rules");
    let user = &case.remote.user;
    let rule = format!("hostssl all {user} 127.0.0.1/32 scram-sha-256 clientcert=verify-ca\n");
    fs::write(&hba, rule + &rules).expect("new rules");
    case.remote.exec_superuser("select pg_reload_conf()");
    let reloaded = format!(
        "select count(*) > 0 from pg_hba_file_rules where '{user}' = any (user_name)
           and (select pg_conf_load_time() > now() - interval '1 minute')"
    );
    assert!(case.remote.query_one::<bool>(&reloaded));
    case.set(&[("host", "127.0.0.1"), ("sslmode", "require")]);
    case.is_refused("28000", "requires a valid client certificate");
    let (certificate, key) = (client.certificate.display(), client.key.display());
    let left = &case.bed.left.user;
    case.bed.left.exec_superuser(&format!(
        "alter user mapping for {left} server dst
           options (add sslcert '{certificate}', add sslkey '{key}')"
    ));
    case.arrives();
}
