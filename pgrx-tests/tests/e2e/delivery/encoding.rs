//! A local database in another encoding than the remote's.

use rowsync_harness::{Fixture, Side};

use crate::support::common::{outage, query, recover, rows, run};

const COLUMNS: &str = r#""schlüssel" int primary key, v text, j jsonb, a text[]"#;

/// A second database on the left in LATIN1, and the right side; the table of either has this name.
struct Mixed {
    fixture: Fixture,
    left: Side,
}

impl Mixed {
    fn new(label: &str, table: &str) -> Mixed {
        let fixture = Fixture::new(label);
        let left = Side {
            db: format!("{}_e", fixture.left.db),
            ..fixture.left.clone()
        };
        let db = &left.db;
        let user = &left.user;
        fixture.left.exec_superuser(&format!(
            "create database {db} template template0 encoding 'LATIN1' owner {user}"
        ));
        left.exec_superuser(&format!(
            "create schema authorization {user}; create extension pg_rowsync schema public;
             grant usage on foreign data wrapper pg_rowsync to {user}"
        ));
        fixture.link(&left, &fixture.right, "dst", &[]);
        for side in [&left, &fixture.right] {
            side.exec(&format!("create table {table} ({COLUMNS})"));
        }
        Mixed { fixture, left }
    }

    fn equal(&self, table: &str, expected: &[&str]) {
        for side in [&self.left, &self.fixture.right] {
            assert_eq!(
                rows(side, &format!("select * from {table} order by 1")),
                expected
            );
        }
    }
}

impl Drop for Mixed {
    fn drop(&mut self) {
        // The role that the fixture drops owns things in it.
        if let Ok(mut client) = self.left.cluster.superuser("postgres") {
            let sql = format!("drop database if exists {} with (force)", self.left.db);
            let _ = client.batch_execute(&sql);
        }
    }
}

#[test]
fn values_cross_between_encodings() {
    let mixed = Mixed::new("encval", "t");
    let Mixed { fixture, left } = &mixed;
    left.exec(&format!(
        "select attach_sync('t', 'dst', '{}.t')",
        fixture.right.user
    ));
    let mut client = left.client();
    run(
        &mut client,
        r#"insert into t values (1, 'Größe', '{"ä": "ÿ"}', '{ö,"ß ×"}')"#,
    );
    let expected = r#"1|Größe|{"ä": "ÿ"}|{ö,"ß ×"}"#;
    mixed.equal("t", &[expected]);
    outage(&fixture.right);
    run(
        &mut client,
        "update t set v = v || ' ¼'; insert into t values (2, 'é')",
    );
    recover(&fixture.right);
    assert!(left.query_one::<bool>("select deal_sync_err_rec(10)"));
    mixed.equal("t", &[&expected.replace("Größe", "Größe ¼"), "2|é|~|~"]);
}

#[test]
fn the_queue_is_readable_in_another_encoding() {
    let mixed = Mixed::new("encview", "t");
    let Mixed { fixture, left } = &mixed;
    let schema = &fixture.right.user;
    left.exec(&format!(
        r#"select attach_sync('t', 'dst', '{schema}.t', '{{"mode": "queue"}}')"#
    ));
    left.exec("insert into t values (2, 'é')");
    let queries = query(&mut left.superuser(), "select dst_query from sync_err_rec");
    assert!(
        queries[0].contains("'é'") && queries[0].contains("schlüssel"),
        "{queries:?}"
    );
    fixture.right.exec(&queries[0]);
    mixed.equal("t", &["2|é|~|~"]);
}

#[test]
fn names_of_tables_cross_between_encodings() {
    let mixed = Mixed::new("encname", r#""täble""#);
    let Mixed { fixture, left } = &mixed;
    let schema = &fixture.right.user;
    left.exec(&format!(
        r#"select attach_sync('"täble"', 'dst', '{schema}."täble"')"#
    ));
    left.exec(r#"insert into "täble" values (1, 'ü'); select detach_sync('"täble"', 'dst')"#);
    mixed.equal(r#""täble""#, &["1|ü|~|~"]);
}
