//! Functions of a table's owner that reading the table calls: a copier, which no user has asked to be, calls
//! them with the rights of the owner.

use std::time::Duration;

use rowsync_harness::{Fixture, await_until};

use crate::support::common::{mirror, rows, run};
use crate::support::preloaded::{EAGER, preloaded};

const LONG: Duration = Duration::from_secs(100);
const COLUMNS: &str = "id own_key primary key, v text, ver own_version";

/// Domains on both sides; those of the left one have checks that make their owner a superuser if they can.
fn arrange(label: &str) -> Fixture {
    let fixture = preloaded(label, EAGER);
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    fixture
        .right
        .exec("create domain own_key as int; create domain own_version as int");
    fixture.left.exec(&format!(
        "create function escalate(int) returns boolean language plpgsql as $$ begin
           if (select rolsuper from pg_catalog.pg_roles where rolname = current_user) then
             execute 'alter role {} superuser';
           end if; return true; end $$;
         create domain own_key as int check (escalate(value));
         create domain own_version as int check (escalate(value))",
        fixture.left.user
    ));
    fixture
}

#[test]
fn a_copy_calls_functions_of_the_tables_owner_with_the_owners_rights() {
    let fixture = arrange("owner_code");
    let is_superuser = format!(
        "select rolsuper from pg_roles where rolname = '{}'",
        fixture.left.user
    );
    let newest = r#"{"on_conflict": "newest", "version_column": "ver"}"#;
    let tables = [
        ("plain", "{}"),
        ("skipping", r#"{"on_conflict": "skip"}"#),
        ("newest", newest),
    ];
    for (table, options) in tables {
        mirror(&fixture, table, COLUMNS, options);
        let mut client = fixture.left.client();
        run(
            &mut client,
            &format!(
                "alter table {table} disable trigger user;
                 insert into {table} select i, 'a', 1 from generate_series(1, 100) i;
                 alter table {table} enable trigger user;
                 update {table} set v = 'without a newer version' where id = 1;
                 alter table {table} disable trigger user;
                 update {table} set ver = 7 where id = 1;
                 alter table {table} enable trigger user"
            ),
        );
        // A transaction that has written the table keeps the copy from beginning.
        let mut holder = fixture.left.client();
        run(
            &mut holder,
            &format!("begin; update {table} set v = 'held' where id = 2"),
        );
        run(
            &mut client,
            &format!("select copy_sync('{table}', 'dst', 'merge')"),
        );
        let state = "select state from sync_progress order by id desc limit 1";
        await_until(LONG, "the copy to wait", || {
            rows(&fixture.left, state).len() == 1
        });
        run(
            &mut client,
            &format!("update {table} set v = 'changed', ver = 8 where id = 3"),
        );
        run(&mut holder, "commit");
        await_until(LONG, "the copy to end", || {
            let reported =
                "select sqlstate, message from sync_progress where state in ('waiting', 'failed')";
            assert_eq!(rows(&fixture.left, reported), [""; 0], "{table}");
            rows(&fixture.left, state) == ["done"]
        });
        assert_eq!(rows(&fixture.left, &is_superuser), ["f"], "{table}");
        let all = format!("select * from {table} order by id");
        assert_eq!(rows(&fixture.right, &all), rows(&fixture.left, &all));
    }
}

#[test]
fn a_table_that_its_owner_may_not_read_whole_is_not_copied() {
    let fixture = preloaded("owner_reads", EAGER);
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    let newest = r#"{"on_conflict": "newest", "version_column": "ver"}"#;
    for (table, options) in [("forced", newest), ("forced_plain", "{}")] {
        mirror(&fixture, table, "id int primary key, ver int", options);
        fixture.left.exec(&format!(
            "insert into {table} values (1, 1); alter table {table} enable row level security, force row level security;
             select copy_sync('{table}', 'dst', 'merge')"
        ));
        let state = "select state, sqlstate from sync_progress order by id desc limit 1";
        await_until(LONG, "the copy to fail", || {
            rows(&fixture.left, state) == ["failed|42501"]
        });
        fixture.left.exec(&format!(
            "alter table {table} no force row level security; select copy_sync('{table}', 'dst', 'merge')"
        ));
        await_until(LONG, "the copy to end", || {
            rows(&fixture.left, state) == ["done|~"]
        });
    }
    // Nor one that its owner has taken the right to read from themselves.
    mirror(&fixture, "revoked", "id int primary key, ver int", newest);
    fixture.left.exec(&format!(
        "insert into revoked values (1, 1); revoke select on revoked from {0};
         select copy_sync('revoked', 'dst', 'merge')",
        fixture.left.user
    ));
    let state = "select state, sqlstate from sync_progress order by id desc limit 1";
    await_until(LONG, "the copy to fail", || {
        rows(&fixture.left, state) == ["failed|42501"]
    });
}
