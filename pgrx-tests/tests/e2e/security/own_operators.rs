//! What a writer's search_path leads to is never used by the extension's own SQL, which runs as its
//! owner.

use crate::support::common::{both_have, deal, one_way, queued, run};

#[test]
fn operators_in_a_writers_search_path_are_never_called() {
    let fixture = one_way(
        "trojan",
        "id int primary key, v text",
        r#"{"mode": "queue"}"#,
    );
    let schema = &fixture.left.user;
    let writer = format!("{}_writer", fixture.left.user);
    fixture.left.exec_superuser(&format!(
        "create role {writer} login password 'x'; create schema {writer} authorization {writer};
         grant usage on schema {schema} to {writer}; grant insert on {schema}.t to {writer}"
    ));
    let mut client = fixture
        .left
        .cluster
        .connect(&fixture.left.db, &writer, "x")
        .expect("a session");
    for (name, operator, left, right) in [
        ("eq", "=", "text", "text"),
        ("ne", "<>", "text", "text"),
        ("eq8", "=", "bigint", "bigint"),
        ("cat", "||", "text", "text"),
    ] {
        run(
            &mut client,
            &format!(
                "create function {writer}.{name}({left}, {right}) returns boolean language plpgsql
                   as 'begin raise exception ''called as %'', current_user; end';
                 create operator {writer}.{operator}
                   (function = {writer}.{name}, leftarg = {left}, rightarg = {right})"
            ),
        );
    }
    run(
        &mut client,
        &format!("set search_path = {writer}, pg_catalog"),
    );
    run(
        &mut client,
        &format!("insert into {schema}.t values (1, 'a'), (2, 'b')"),
    );
    assert_eq!(queued(&fixture), 2);
    drop(client);
    assert!(deal(&fixture, "10"));
    both_have(&fixture, "t", &["1|a", "2|b"]);
    fixture.left.exec_superuser(&format!(
        "drop owned by {writer} cascade; drop role {writer}"
    ));
}
