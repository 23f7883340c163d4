//! Passwords are shown nowhere: not in errors and notices, views, the server's log or its list of sessions.

use std::sync::Arc;

use postgres::Client;
use rowsync_harness::cluster::TEST_SETTINGS;
use rowsync_harness::{Cluster, Fixture, Side, reaper};

use crate::support::common::{
    attach, both_have, closed_port, mirror, outage, query, queued, recover, superuser_with_notices,
};

const COLUMNS: &str = "id int primary key, v text";

/// Logs all that a server has to say, but not the statements of its clients: those hold what they hold.
fn talkative(name: &str) -> Arc<Cluster> {
    let settings = [
        ("log_min_messages", "debug1"),
        ("log_error_verbosity", "verbose"),
        ("log_connections", "on"),
        ("log_disconnections", "on"),
        ("log_min_error_statement", "panic"),
        ("log_statement", "none"),
        ("log_parameter_max_length_on_error", "-1"),
    ];
    let settings = [TEST_SETTINGS, &settings].concat();
    Arc::new(Cluster::start_with(name, &settings).expect("a cluster"))
}

/// What the client is told, in full.
fn reported(client: &mut Client, sql: &str) -> String {
    match client.simple_query(sql) {
        Ok(_) => String::new(),
        Err(error) => {
            let _ = client.batch_execute("rollback");
            format!("{error:?}")
        }
    }
}

#[test]
fn a_password_is_never_shown() {
    let left = talkative("secrets");
    let right = talkative("secrets_there");
    let fixture = Fixture {
        left: Side::create(&left, "local_secrets").expect("a database"),
        right: Side::create(&right, "remote_secrets").expect("a database"),
    };
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    mirror(&fixture, "t", COLUMNS, "{}");
    let password = fixture.right.password.clone();
    let wrong = reaper::random_hex().expect("a password");
    let mut shown = Vec::new();
    let (mut client, notices) = superuser_with_notices(&fixture.left);
    shown.push(reported(
        &mut client,
        &format!("set search_path = {}, public", fixture.left.user),
    ));
    let looks = [
        "select * from sync_connections()",
        "select * from sync_status",
        "select * from sync_err_rec",
        "select * from sync_queue",
        "select * from sync_route",
        "select * from sync_server_state",
        "select * from sync_conflicts",
        "select * from sync_progress",
        "select * from sync_lost_session",
        "select pid, query, application_name, wait_event, usename from pg_stat_activity",
        "select * from pg_prepared_statements",
        "select * from pg_cursors",
    ];
    let mapping = format!("user mapping for {} server dst", fixture.left.user);
    let there = fixture.right.cluster.port();
    let closed = closed_port();
    let as_it_was = [
        format!("alter {mapping} options (set password '{password}')"),
        format!(
            "alter server dst options (set port '{there}', set dbname '{}')",
            fixture.right.db
        ),
    ];
    for (id, broken) in [
        "select 1".to_owned(),
        format!("alter {mapping} options (set password '{wrong}')"),
        format!("alter server dst options (set port '{closed}')"),
        "alter server dst options (set port 'no port')".to_owned(),
        "alter server dst options (set dbname 'nowhere')".to_owned(),
        format!("alter {mapping} options (set password '')"),
        format!("alter {mapping} options (set user 'nobody', set password '{wrong}')"),
    ]
    .iter()
    .enumerate()
    {
        for (more, mode) in ["sync", "async"].into_iter().enumerate() {
            let id = 2 * id + more;
            let options = format!(r#"{{"mode": "{mode}"}}"#);
            fixture.left.exec("select detach_sync('t', 'dst')");
            attach(&fixture, "t", &options);
            shown.push(reported(&mut client, broken));
            shown.push(reported(
                &mut client,
                &format!("insert into t values ({id}, '{mode}')"),
            ));
            shown.push(reported(&mut client, "select deal_sync_err_rec(10)"));
            shown.extend(looks.iter().flat_map(|sql| query(&mut client, sql)));
            shown.extend(query(&mut fixture.right.superuser(), looks[8]));
            for sql in &as_it_was {
                shown.push(reported(&mut client, sql));
            }
            let user = format!(
                "alter {mapping} options (set user '{}')",
                fixture.right.user
            );
            shown.push(reported(&mut client, &user));
            while queued(&fixture) > 0 {
                assert_eq!(query(&mut client, "select deal_sync_err_rec(10)"), ["t"]);
            }
        }
    }
    // A session that is lost, and a password that libpq cannot pass on.
    outage(&fixture.right);
    shown.push(reported(&mut client, "insert into t values (100, 'x')"));
    recover(&fixture.right);
    assert_eq!(query(&mut client, "select deal_sync_err_rec(10)"), ["t"]);
    shown.extend(
        notices
            .lock()
            .expect("notices")
            .iter()
            .map(|notice| format!("{notice:?}")),
    );
    shown.extend([left.log(), right.log()]);
    for text in &shown {
        assert!(
            !text.contains(&password) && !text.contains(&wrong),
            "{text}"
        );
    }
    // It was looked for where something is.
    for part in ["28P01", "2F003", "3D000", "password authentication failed"] {
        assert!(shown.iter().any(|text| text.contains(part)), "{part}");
    }
    both_have(
        &fixture,
        "t",
        &crate::support::common::table(&fixture.left, "t")
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>(),
    );
}
