//! What `attach_sync` says of a table that is sent to its target already, and of a key that cannot be sent.

use crate::support::common::{
    attach, attach_sql, both_have, linked, refused, run, superuser_with_notices, warnings,
};

#[test]
fn a_second_trigger_to_the_same_target_is_told() {
    let fixture = linked("twice");
    fixture.link(&fixture.left, &fixture.right, "again", &[]);
    let schema = &fixture.right.user;
    let user = &fixture.left.user;
    for side in [&fixture.left, &fixture.right] {
        side.exec("create table t (id int primary key); create table u (id int primary key)");
    }
    attach(&fixture, "t", "{}");
    let (mut client, notices) = superuser_with_notices(&fixture.left);
    run(&mut client, &format!("set search_path = {user}, public"));
    // By another name of the same server; another table there is another target.
    run(
        &mut client,
        &format!("select attach_sync('t', 'again', '{schema}.t')"),
    );
    let reported = warnings(&notices);
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert_eq!(reported[0].code().code(), "42710");
    assert!(
        reported[0].message().contains("00_pg_rowsync_dst_dml"),
        "{}",
        reported[0].message()
    );
    run(&mut client, "select detach_sync('t', 'again')");
    run(
        &mut client,
        &format!("select attach_sync('t', 'again', '{schema}.u')"),
    );
    assert!(warnings(&notices).is_empty());
    run(
        &mut client,
        "select detach_sync('t', 'again'); select detach_sync('t', 'dst')",
    );
    // Made by hand.
    run(
        &mut client,
        &format!(
            "create trigger mine after insert on t for each row execute function sync_dml('dst', '{schema}', 't')"
        ),
    );
    run(&mut client, &attach_sql(&fixture, "t", "{}"));
    let reported = warnings(&notices);
    assert!(
        reported
            .iter()
            .any(|reported| reported.message().contains("\"mine\"")),
        "{reported:?}"
    );
}

#[test]
fn a_generated_key_is_told_with_the_way_out() {
    let fixture = linked("generatedkey");
    let columns = "tenant int not null, no int not null, v text, \
         id int generated always as (tenant * 1000 + no) stored primary key, unique (tenant, no)";
    for side in [&fixture.left, &fixture.right] {
        side.exec(&format!("create table t ({columns})"));
    }
    let mut client = fixture.left.client();
    for options in [
        "{}",
        r#"{"columns": ["tenant", "no", "id", "v"]}"#,
        r#"{"key": ["id"]}"#,
    ] {
        let error = refused(&mut client, &attach_sql(&fixture, "t", options), "22023");
        assert!(
            error.message().contains("generated"),
            "{options}: {error:?}"
        );
        assert!(
            error.hint().is_some_and(|hint| hint.contains("\"key\"")),
            "{options}: {error:?}"
        );
    }
    run(
        &mut client,
        &attach_sql(
            &fixture,
            "t",
            r#"{"key": ["tenant", "no"], "mode": "sync"}"#,
        ),
    );
    run(
        &mut client,
        "insert into t (tenant, no, v) values (1, 2, 'a'); update t set v = 'b', no = 3",
    );
    both_have(&fixture, "t", &["1|3|b|1003"]);
}
