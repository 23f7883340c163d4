//! Lines of the security model that no other file holds: what the owners of the queue, of servers and of
//! tables can reach, and those who may only read.

use rowsync_harness::{Cluster, Fixture, Side};
use std::sync::Arc;

use crate::support::common::{
    Role, attach_sql, both_have, linked, mirror, one_way, outage, query, queued, recover, refused,
    rows, run, table,
};

const SYNC: &str = r#"{"mode": "sync"}"#;
/// What would end a name or a value that is not quoted, and go on as SQL, by what it stands for.
const NAMES: [&str; 5] = [
    r#"t" values (1, '{}'); drop table victim; --"#,
    r#"t" set id = id; drop table victim; --"#,
    r#"t"; drop table victim; --"#,
    r#"id") values (1); drop table victim; --"#,
    r#"v" = '{}'; drop table victim; --"#,
];
const VALUES: [&str; 5] = [
    "5'; drop table victim; --",
    "{7}'; drop table victim; --",
    "5', '{}'); drop table victim; --",
    "{7}'); drop table victim; --",
    r"{7}\'); drop table victim; --",
];

/// The queue holds names and values, of which statements are made: whoever could write it could say which
/// rows are written, but not have anything else executed.
#[test]
fn what_the_queue_holds_is_never_executed() {
    let fixture = one_way(
        "queue_data",
        "id int primary key, v int[]",
        r#"{"mode": "queue"}"#,
    );
    fixture.right.exec("create table victim ()");
    let mut client = fixture.left.superuser();
    let there = format!(r#""schema":"{}""#, fixture.right.user);
    let route = "update sync_route set body = replace(body, $1, $2)";
    let change = "update sync_queue set change = replace(change::text, $1, $2)::json";
    let all = "select body from sync_route union all select change::text from sync_queue";
    for (tamper, from, to, texts) in [
        (route, r#""table":"t""#, r#""table":"?""#, NAMES),
        (route, &there, r#""schema":"?""#, NAMES),
        (route, r#""name":"v""#, r#""name":"?""#, NAMES),
        (route, r#""name":"id""#, r#""name":"?""#, NAMES),
        (route, r#""_int4""#, r#""?""#, NAMES),
        (
            route,
            r#""application_name":null"#,
            r#""application_name":"?""#,
            VALUES,
        ),
        (change, r#""{7}""#, r#""?""#, VALUES),
        (change, r#""5""#, r#""?""#, VALUES),
    ] {
        for (sql, text) in [
            "delete from t; insert into t values (5, '{7}')",
            "update t set v = '{7,7}'; update t set v = '{7}'",
            "update t set id = 6; update t set id = 5",
            "delete from t where id = 5",
        ]
        .iter()
        .flat_map(|sql| texts.map(|text| (sql, text)))
        {
            fixture
                .left
                .exec("delete from t; insert into t values (5, '{7}')");
            run(&mut client, "truncate sync_queue; delete from sync_route");
            fixture.left.exec(sql);
            fixture.right.exec("insert into t values (5), (6)");
            let before = query(&mut client, all);
            let quoted = format!("\"{}\"", text.replace('\\', r"\\").replace('"', r#"\""#));
            let to = to.replace("\"?\"", &quoted);
            client.execute(tamper, &[&from, &to]).expect("a change");
            assert!(
                before != query(&mut client, all) || tamper == change || sql.starts_with("delete"),
                "{from}: {sql}"
            );
            // By hand as well as by a drain.
            for text in query(&mut client, "select dst_query from sync_err_rec") {
                let _ = fixture.right.client().batch_execute(&text);
            }
            query(&mut client, "select deal_sync_err_rec(100)");
            assert_eq!(
                rows(&fixture.right, "select count(*) from victim"),
                ["0"],
                "{to}: {sql}"
            );
            fixture.right.exec("truncate t");
        }
        fixture.left.exec("truncate t");
    }
}

/// An owner attaches and detaches, and that is all: what is queued of the table is not the owner's to read.
#[test]
fn a_tables_owner_cannot_read_or_replay_its_own_changes() {
    let fixture = linked("model_owner");
    let owner = Role::create(&fixture.left, "owner", "");
    let (
        left,
        Side {
            user: there,
            password,
            ..
        },
    ) = (&fixture.left.user, &fixture.right);
    mirror(&fixture, "t", "id int primary key", SYNC);
    fixture.left.exec("select detach_sync('t', 'dst')");
    fixture
        .left
        .exec_superuser(&format!("alter table {left}.t owner to {}", owner.name));
    let mut client = owner.client();
    let attach = attach_sql(&fixture, "t", "{}");
    // No server without USAGE, and nobody else's mapping.
    refused(&mut client, &attach, "42501");
    fixture.left.exec_superuser(&format!(
        "grant usage on foreign server dst to {}",
        owner.name
    ));
    refused(&mut client, &attach, "42704");
    run(
        &mut client,
        &format!(
            "create user mapping for current_user server dst
               options (user '{there}', password '{password}'); {attach}; insert into t values (1)"
        ),
    );
    outage(&fixture.right);
    run(&mut client, "insert into t values (2)");
    recover(&fixture.right);
    assert_eq!(queued(&fixture), 1);
    for sql in [
        "select from sync_err_rec",
        "select from sync_queue",
        "delete from sync_err_rec",
        "select from sync_status",
        "select from sync_conflicts",
        "select deal_sync_err_rec(1)",
        "select retry_sync_err_rec(1)",
    ] {
        refused(&mut client, sql, "42501");
    }
    let others = "select umoptions from pg_user_mappings where usename <> current_user";
    assert_eq!(query(&mut client, others), ["~"]);
    let own = "select umoptions from pg_user_mappings where usename = current_user";
    assert!(query(&mut client, own)[0].contains(password.as_str()));
    run(
        &mut client,
        "select detach_sync('t', 'dst'); insert into t values (3)",
    );
    assert_eq!(table(&fixture.right, "t"), ["1"]);
}

/// Whoever owns a server sends where they like what others attach to it, and gets no further than that.
#[test]
fn a_servers_owner_leads_it_elsewhere_and_gets_no_identity_for_it() {
    let fixture = one_way("model_server", "id int primary key", SYNC);
    let boss = Role::create(&fixture.left, "boss", "");
    let elsewhere = Arc::new(Cluster::start("elsewhere").expect("a cluster"));
    let Side {
        user: there,
        password,
        ..
    } = &fixture.right;
    let trap = Fixture {
        left: Side::create(&elsewhere, "trap").expect("a database"),
        right: Side::create(&elsewhere, "unused").expect("a database"),
    };
    trap.left.exec_superuser(&format!(
        "create role {there} login password '{password}'; create schema {there};
         create table {there}.t (id int primary key); alter schema {there} owner to {there};
         alter table {there}.t owner to {there}"
    ));
    fixture.left.exec_superuser(&format!(
        "alter server dst owner to {0}; grant usage on foreign server dst to {1}",
        boss.name, fixture.left.user
    ));
    let mut client = boss.client();
    let port = elsewhere.port();
    run(
        &mut client,
        &format!(
            "alter server dst options (set port '{port}', set dbname '{}')",
            trap.left.db
        ),
    );
    run(&mut fixture.left.client(), "insert into t values (1)");
    let caught = format!("select id from {there}.t");
    assert_eq!(query(&mut trap.left.superuser(), &caught), ["1"]);
    // To where nobody is asked for a password: nothing.
    elsewhere.set_authentication("trust").expect("a rule");
    refused(
        &mut fixture.left.client(),
        "insert into t values (2)",
        "2F003",
    );
    let waive = format!(
        "alter user mapping for {} server dst options (add password_required 'false')",
        fixture.left.user
    );
    refused(&mut client, &waive, "42501");
    assert_eq!(query(&mut trap.left.superuser(), &caught), ["1"]);
    // Its PUBLIC mapping's password is theirs to see, others' are not.
    run(
        &mut client,
        "create user mapping for public server dst options (user 'x', password 'y')",
    );
    let seen = "select usename, umoptions from pg_user_mappings order by 1";
    let expected = [
        format!("{}|~", fixture.left.user),
        "public|{user=x,password=y}".to_owned(),
    ];
    assert_eq!(query(&mut client, seen), expected);
    trap.right.drop().expect("dropped");
}

#[test]
fn who_only_reads_has_nothing_happen() {
    let fixture = one_way("model_reader", "id int primary key", "{}");
    let reader = Role::create(&fixture.left, "reader", "");
    fixture.left.exec("insert into t values (1)");
    fixture
        .left
        .exec(&format!("grant select on t to {}", reader.name));
    let mut client = reader.client();
    assert_eq!(query(&mut client, "select id from t"), ["1"]);
    assert_eq!(
        query(&mut client, "select count(*) from sync_connections()"),
        ["0"]
    );
    for sql in [
        "select from sync_err_rec",
        "select from sync_status",
        "select from sync_conflicts",
        "select from sync_conflict_counts",
    ] {
        refused(&mut client, sql, "42501");
    }
    // What everybody may see says nothing of passwords.
    let shown = query(
        &mut client,
        "select srvoptions::text from pg_foreign_server union all select umoptions::text from pg_user_mappings
         union all select encode(tgargs, 'escape') from pg_trigger
         union all select c::text from sync_counters() c union all select c::text from sync_conflict_counters() c
         union all select c::text from sync_comparisons() c",
    );
    assert!(
        !shown.is_empty()
            && !shown
                .iter()
                .any(|text| text.contains(&fixture.right.password))
    );
    both_have(&fixture, "t", &["1"]);
}
