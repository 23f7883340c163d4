//! Who is no superuser gets nowhere as the server's operating-system user: without a password of the
//! mapping's own, or to a server that does not ask for it.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use postgres::Client;
use rowsync_harness::{Cluster, Fixture, Side, reaper};

use crate::support::common::{
    attach, both_have, deal, hand_to_superuser, passwordless, query, records, refused, rows, run,
    table,
};

const COLUMNS: &str = "id int primary key, v text";
const SYNC: &str = r#"{"mode": "sync"}"#;

/// A table `t` of the left side's role, whose mapping has a password, and a right side of its own.
fn asked(label: &str, method: &str, options: &str) -> Fixture {
    let fixture = passwordless(label, method);
    with_password(&fixture, &fixture.right.password);
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table t ({COLUMNS})"));
    }
    attach(&fixture, "t", options);
    fixture
}

fn with_password(fixture: &Fixture, password: &str) {
    fixture.left.exec(&format!(
        "drop user mapping if exists for public server dst;
         drop user mapping if exists for current_user server dst;
         create user mapping for current_user server dst
           options (user '{}', password '{password}')",
        fixture.right.user
    ));
}

fn authenticate(fixture: &Fixture, method: &str) {
    fixture
        .right
        .cluster
        .set_authentication(method)
        .expect("a rule");
}

#[test]
fn a_server_that_asks_for_no_password_is_left_again() {
    let fixture = asked("trusting", "trust", SYNC);
    let mut client = fixture.left.client();
    let error = refused(&mut client, "insert into t values (1, 'a')", "2F003");
    let detail = "Non-superuser cannot connect if the server does not request a password.";
    assert_eq!(error.detail(), Some(detail));
    both_have(&fixture, "t", &[]);
    assert_eq!(
        query(&mut client, "select * from sync_connections()"),
        [""; 0]
    );
}

#[test]
fn every_new_connection_must_ask_for_the_password() {
    let fixture = asked("turning", "scram-sha-256", SYNC);
    let mut client = fixture.left.client();
    run(&mut client, "insert into t values (1, 'a')");
    authenticate(&fixture, "trust");
    // The one that is up was made with the password.
    run(&mut client, "insert into t values (2, 'a')");
    let user = &fixture.right.user;
    fixture.right.exec_superuser(&format!(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = '{user}'"
    ));
    for _ in 0..2 {
        refused(&mut client, "insert into t values (3, 'a')", "2F003");
    }
    authenticate(&fixture, "scram-sha-256");
    run(&mut client, "insert into t values (3, 'a')");
    authenticate(&fixture, "trust");
    // Closed by hand, by an altered server, by a setting that goes into the connection.
    run(&mut client, "select sync_disconnect()");
    refused(&mut client, "insert into t values (4, 'a')", "2F003");
    for sql in [
        "alter server dst options (add connect_timeout '9')",
        "set pg_rowsync.lock_timeout = '2s'",
    ] {
        authenticate(&fixture, "scram-sha-256");
        run(&mut client, "update t set v = 'b'");
        authenticate(&fixture, "trust");
        run(&mut client, sql);
        refused(&mut client, "insert into t values (4, 'a')", "2F003");
    }
    // A password is asked for in clear too.
    authenticate(&fixture, "password");
    run(&mut client, "insert into t values (4, 'a')");
    both_have(&fixture, "t", &["1|b", "2|b", "3|b", "4|a"]);
}

#[test]
fn a_drain_asks_for_the_password_as_well() {
    let fixture = asked("drained", "trust", "{}");
    fixture.left.exec("insert into t values (1, 'a')");
    assert_eq!(records(&fixture), ["INSERT|2F003|1|pending"]);
    assert!(!deal(&fixture, "10"));
    assert_eq!(
        rows(&fixture.left, "select last_sqlstate from sync_status"),
        ["2F003"]
    );
    assert_eq!(table(&fixture.right, "t"), [""; 0]);
    authenticate(&fixture, "scram-sha-256");
    assert!(deal(&fixture, "10"));
    both_have(&fixture, "t", &["1|a"]);
}

/// Speaks as a server that asks for the password in clear and then says that it is starting up, upon which
/// libpq goes on to the next host.
fn greedy_server() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(greet);
        }
    });
    port
}

fn greet(mut stream: TcpStream) -> std::io::Result<()> {
    // SSLRequest and GSSENCRequest come before the start-up packet, eight bytes each.
    loop {
        let packet = packet(&mut stream)?;
        let code = packet
            .get(..4)
            .map(|code| i32::from_be_bytes([code[0], code[1], code[2], code[3]]));
        if code == Some(3 << 16) {
            break;
        }
        stream.write_all(b"N")?;
    }
    stream.write_all(b"R\0\0\0\x08\0\0\0\x03")?;
    stream.read_exact(&mut [0])?;
    packet(&mut stream)?;
    let fields = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0";
    stream.write_all(b"E")?;
    stream.write_all(&(fields.len() as u32 + 4).to_be_bytes())?;
    stream.write_all(fields)
}

/// The body of a message, by its length.
fn packet(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4)];
    stream.read_exact(&mut body)?;
    Ok(body)
}

#[test]
fn a_password_that_another_host_asked_for_does_not_count() {
    let fixture = asked("hosts", "trust", SYNC);
    let greedy = greedy_server();
    let port = fixture.right.cluster.port();
    let hosts = format!(
        "alter server dst options (set host '127.0.0.1,127.0.0.1', set port '{greedy},{port}')"
    );
    fixture.left.exec(&hosts);
    let mut client = fixture.left.client();
    refused(&mut client, "insert into t values (1, 'a')", "2F003");
    both_have(&fixture, "t", &[]);
    // That the second host is reached is seen where it asks itself.
    authenticate(&fixture, "scram-sha-256");
    run(&mut client, "insert into t values (1, 'a')");
    both_have(&fixture, "t", &["1|a"]);
}

/// A file that only the server can read.
fn private(cluster: &Cluster, name: &str, text: &str) -> String {
    let path = cluster.dir().join(name);
    fs::write(&path, text).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its permissions");
    reaper::hand_over(&path).expect("its owner");
    path.to_string_lossy().into_owned()
}

/// Whether rows of the left side's tables can be sent: of the superuser's, and of the role's.
fn reaches(fixture: &Fixture) -> (bool, Option<String>) {
    let write = |client: &mut Client, table: &str| {
        let sql = format!(
            "begin; insert into {}.{table} values (1, 'a'); commit",
            fixture.left.user
        );
        let written = client.batch_execute(&sql);
        let _ = client.batch_execute("rollback");
        written
            .err()
            .and_then(|error| error.code().map(|code| code.code().to_owned()))
    };
    fixture.right.exec("truncate s, t");
    fixture.left.exec_superuser(&format!(
        "set session_replication_role = replica; truncate {0}.s, {0}.t",
        fixture.left.user
    ));
    let mut superuser = fixture.left.superuser();
    (
        write(&mut superuser, "s").is_none(),
        write(&mut fixture.left.client(), "t"),
    )
}

#[test]
fn passwords_of_the_servers_environment_are_not_used() {
    let left = Arc::new(Cluster::start("environment").expect("a cluster"));
    let right = rowsync_harness::fixture::clusters().1;
    let fixture = Fixture {
        left: Side::create(&left, "local_environment").expect("a database"),
        right: Side::create(right, "remote_environment").expect("a database"),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    hand_to_superuser(&fixture);
    let (
        user,
        Side {
            user: there,
            password,
            db,
            ..
        },
    ) = (&fixture.left.user, &fixture.right);
    fixture.right.exec(&format!(
        "create table s ({COLUMNS}); create table t ({COLUMNS})"
    ));
    fixture.left.exec(&format!("create table t ({COLUMNS})"));
    fixture.left.exec_superuser(&format!(
        "create table {user}.s ({COLUMNS});
         create user mapping for postgres server dst options (user '{there}')"
    ));
    for table in ["s", "t"] {
        fixture.left.exec_superuser(&format!(
            "select attach_sync('{user}.{table}', 'dst', '{there}.{table}', '{SYNC}')"
        ));
    }
    let entry = format!("127.0.0.1:*:{db}:{there}:{password}\n");
    let pass_file = private(&left, ".pgpass", &entry);
    let services = private(&left, "services", &format!("[it]\npassword={password}\n"));
    let home = left.dir().to_string_lossy().into_owned();
    let own = |fixture: &Fixture, options: &str| {
        fixture.left.exec(&format!(
            "drop user mapping for current_user server dst;
             create user mapping for current_user server dst options (user '{there}'{options})"
        ));
    };
    // `superusers`: whether the superuser's table can do without a password.
    let check = |what: &str, superusers: bool| {
        own(&fixture, "");
        assert_eq!(
            reaches(&fixture),
            (superusers, Some("2F003".into())),
            "{what}"
        );
        own(&fixture, ", password ''");
        assert_eq!(reaches(&fixture).1.as_deref(), Some("2F003"), "{what}");
        own(&fixture, ", password 'wrong'");
        assert_eq!(reaches(&fixture).1.as_deref(), Some("28P01"), "{what}");
        own(&fixture, &format!(", password '{password}'"));
        assert_eq!(reaches(&fixture), (superusers, None), "{what}");
    };
    own(&fixture, "");
    assert_eq!(
        reaches(&fixture),
        (false, Some("2F003".into())),
        "without any"
    );
    // Files of the server account count for the superuser, and variables for nobody.
    for (variables, superusers) in [
        (&[("PGPASSWORD", password.as_str())][..], false),
        (&[("PGPASSFILE", &pass_file)], true),
        (&[("HOME", &home)], true),
        (&[("PGSERVICE", "it"), ("PGSERVICEFILE", &services)], false),
    ] {
        left.set_environment(variables);
        left.restart().expect("a restart");
        check(variables[0].0, superusers);
    }
    // Nor where the server's own options name the file or the service.
    left.set_environment(&[("PGSERVICEFILE", &services)]);
    left.restart().expect("a restart");
    for option in [format!("passfile '{pass_file}'"), "service 'it'".to_owned()] {
        fixture
            .left
            .exec_superuser(&format!("alter server dst options (add {option})"));
        check(&option, true);
        let name = option.split(' ').next().unwrap_or_default();
        fixture
            .left
            .exec_superuser(&format!("alter server dst options (drop {name})"));
    }
}
