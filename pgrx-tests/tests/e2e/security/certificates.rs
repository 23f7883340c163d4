//! Client certificates of the server's operating-system account, and servers of those who are no
//! superusers: neither lends anybody an identity.

use std::fs;
use std::sync::Arc;

use rowsync_harness::tls::{Authority, Certificate};
use rowsync_harness::{Cluster, Fixture, Side, reaper};

use crate::support::common::{
    Role, attach_sql, both_have, hand_to_superuser, passwordless, query, refused, run,
};

const COLUMNS: &str = "id int primary key";
const SYNC: &str = r#"{"mode": "sync"}"#;

/// A server that asks for the mapping's password and a certificate of its authority besides, and a
/// client of that authority.
struct Guarded {
    fixture: Fixture,
    certificate: Certificate,
}

fn guarded(label: &str) -> Guarded {
    let authority = Authority::new(label).expect("an authority");
    let own = authority
        .certify("server", &["IP:127.0.0.1"])
        .expect("a certificate");
    let certificate = authority.certify("account", &[]).expect("a certificate");
    let there = Arc::new(
        authority
            .cluster(&format!("{label}_there"), &own)
            .expect("a cluster"),
    );
    let here = Arc::new(Cluster::start(label).expect("a cluster"));
    let fixture = Fixture {
        left: Side::create(&here, &format!("local_{label}")).expect("a database"),
        right: Side::create(&there, &format!("remote_{label}")).expect("a database"),
    };
    there
        .set_rule("hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-ca")
        .expect("a rule");
    Guarded {
        fixture,
        certificate,
    }
}

impl Guarded {
    /// The SQLSTATE with which a row of `table`, which is there on both sides, cannot be sent.
    fn insert(&self, table: &str) -> Option<String> {
        let sql = format!("insert into {}.{table} values (1)", self.fixture.left.user);
        let result = self.fixture.left.superuser().batch_execute(&sql);
        let code = result
            .err()
            .and_then(|e| e.code().map(|code| code.code().to_owned()));
        let sql = format!(
            "delete from {}.{table} returning id",
            self.fixture.right.user
        );
        let there = query(&mut self.fixture.right.superuser(), &sql);
        assert_eq!(there.len(), usize::from(code.is_none()), "{table}");
        self.fixture.left.exec_superuser(&format!(
            "set session_replication_role = replica; delete from {}.{table}",
            self.fixture.left.user
        ));
        code
    }
}

#[test]
fn the_accounts_certificate_is_nobodys_but_a_superusers() {
    let guarded = guarded("account");
    let Guarded {
        fixture,
        certificate,
    } = &guarded;
    let (
        user,
        Side {
            user: there,
            password,
            db,
            cluster,
            ..
        },
    ) = (&fixture.left.user, &fixture.right);
    let port = cluster.port();
    let options = format!("host '127.0.0.1', port '{port}', dbname '{db}', sslmode 'require'");
    fixture.left.exec_superuser(&format!(
        "create extension postgres_fdw; create foreign data wrapper bare validator postgresql_fdw_validator;
         grant usage on foreign data wrapper pg_rowsync, postgres_fdw, bare to {user};
         create server waived foreign data wrapper pg_rowsync options ({options});
         grant usage on foreign server waived to {user};
         create user mapping for {user} server waived
           options (user '{there}', password '{password}', password_required 'false')"
    ));
    let file = certificate.certificate.display();
    let key = certificate.key.display();
    for (server, wrapper, more) in [
        ("ours", "pg_rowsync", String::new()),
        ("service", "pg_rowsync", ", service 'it'".to_owned()),
        (
            "theirs",
            "postgres_fdw",
            format!(", sslcert '{file}', sslkey '{key}'"),
        ),
        ("bare", "bare", String::new()),
    ] {
        fixture.left.exec(&format!(
            "create server {server} foreign data wrapper {wrapper} options ({options}{more});
             create user mapping for current_user server {server}
               options (user '{there}', password '{password}')"
        ));
    }
    let servers = ["ours", "service", "theirs", "bare", "waived"];
    for server in servers {
        for side in [&fixture.left, &fixture.right] {
            side.exec_superuser(&format!(
                "create table {0}.{server} ({COLUMNS}); alter table {0}.{server} owner to {0}",
                side.user
            ));
        }
        fixture.left.exec(&format!(
            "select attach_sync('{server}', '{server}', '{there}.{server}', '{SYNC}')"
        ));
    }
    let home = fixture.left.cluster.dir().join("home");
    let hidden = home.join(".postgresql");
    fs::create_dir_all(&hidden).expect("a directory");
    for (from, to) in [
        (&certificate.certificate, "postgresql.crt"),
        (&certificate.key, "postgresql.key"),
    ] {
        let to = hidden.join(to);
        fs::copy(from, &to).expect("a copy");
        reaper::hand_over(&to).expect("its owner");
    }
    let services = fixture.left.cluster.dir().join("services");
    fs::write(&services, format!("[it]\nsslcert={file}\nsslkey={key}\n")).expect("a file");
    let home = home.display().to_string();
    let services = services.display().to_string();
    let file = file.to_string();
    let key = key.to_string();
    for variables in [
        &[("HOME", home.as_str()), ("PGSERVICEFILE", &services)][..],
        &[
            ("PGSSLCERT", &file),
            ("PGSSLKEY", &key),
            ("PGSERVICEFILE", &services),
        ],
        &[("PGSERVICE", "it"), ("PGSERVICEFILE", &services)],
    ] {
        fixture.left.cluster.set_environment(variables);
        fixture.left.cluster.restart().expect("a restart");
        for server in servers {
            // Nor does a variable tell where one is: only a home has its usual places.
            let is_found = server == "waived" && variables[0].0 == "HOME";
            let expected = (!is_found).then(|| "28000".to_owned());
            assert_eq!(
                guarded.insert(server),
                expected,
                "{server} with {}",
                variables[0].0
            );
        }
    }
    // A superuser's, in the mapping, is shown.
    fixture.left.exec_superuser(&format!(
        "alter user mapping for {user} server ours options (add sslcert '{file}', add sslkey '{key}')"
    ));
    assert_eq!(guarded.insert("ours"), None);
}

#[test]
fn a_certificate_in_a_server_counts_where_it_is_a_superusers() {
    let guarded = guarded("watched");
    let Guarded {
        fixture,
        certificate,
    } = &guarded;
    let (
        user,
        Side {
            user: there,
            password,
            db,
            cluster,
            ..
        },
    ) = (&fixture.left.user, &fixture.right);
    let file = certificate.certificate.display();
    let key = certificate.key.display();
    let shown = format!("sslcert '{file}', sslkey '{key}'");
    let mapping = format!(
        "create user mapping for current_user server dst options (user '{there}', password '{password}'"
    );
    fixture.left.exec_superuser(&format!(
        "create foreign data wrapper bare; grant usage on foreign data wrapper bare to {user}"
    ));
    fixture.left.exec(&format!(
        "create server dst foreign data wrapper bare
           options (host '127.0.0.1', port '{}', dbname '{db}', sslmode 'require');
         {mapping}, {shown}); create table t ({COLUMNS})",
        cluster.port()
    ));
    fixture.right.exec_superuser(&format!(
        "create table {there}.t ({COLUMNS}); alter table {there}.t owner to {there}"
    ));
    fixture.left.exec(&attach_sql(fixture, "t", SYNC));
    // What an owner sets does not count, be the server a superuser's or not.
    assert_eq!(guarded.insert("t").as_deref(), Some("28000"));
    hand_to_superuser(fixture);
    assert_eq!(guarded.insert("t").as_deref(), Some("28000"));
    fixture.left.exec_superuser(&format!(
        "alter server dst options (add {})",
        shown.replace(", ", ", add ")
    ));
    fixture.left.exec(&format!(
        "drop user mapping for current_user server dst; {mapping})"
    ));
    assert_eq!(guarded.insert("t"), None);
    fixture
        .left
        .exec_superuser(&format!("alter server dst owner to {user}"));
    assert_eq!(guarded.insert("t").as_deref(), Some("28000"));
}

/// Whoever owns a server makes mappings for everyone, the superusers included, and says where it leads:
/// to the local socket, say, where nobody asks for a password.
#[test]
fn a_superusers_table_lends_its_rights_to_nobodys_server() {
    let fixture = passwordless("lent", "trust");
    let attacker = Role::create(&fixture.left, "attacker", "");
    let user = &fixture.left.user;
    let name = &attacker.name;
    fixture.right.exec(&format!("create table t ({COLUMNS})"));
    fixture.left.exec_superuser(&format!(
        "create table {user}.t ({COLUMNS}); grant all on {user}.t to {name};
         alter server dst owner to {user}; grant {user} to {name};
         create user mapping for postgres server dst options (user '{}')",
        fixture.right.user
    ));
    let mut client = attacker.client();
    run(&mut client, &attach_sql(&fixture, "t", SYNC));
    refused(&mut client, "insert into t values (1)", "2F003");
    let mut superuser = fixture.left.superuser();
    refused(
        &mut superuser,
        &format!("insert into {user}.t values (2)"),
        "2F003",
    );
    both_have(&fixture, "t", &[]);
    // A superuser's server is another matter: its owner says where it leads.
    hand_to_superuser(&fixture);
    run(&mut client, "insert into t values (3)");
    assert_eq!(
        query(&mut fixture.right.client(), "select id from t"),
        ["3"]
    );
    // And back again: the next transaction counts.
    fixture
        .left
        .exec_superuser(&format!("alter server dst owner to {user}"));
    refused(&mut client, "insert into t values (4)", "2F003");
    assert_eq!(
        query(&mut fixture.right.client(), "select id from t"),
        ["3"]
    );
}
