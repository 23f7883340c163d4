//! What the statements look like, and that none lets a conflict pass unseen.

use super::batch::{Batch, BatchKind};
use super::conflicts::Conflicts;
use super::literal;
use super::marks::MISSING_MARK;
use super::param::Param;
use super::render::of_batch;
use super::statement::Statement;
use super::truncate::truncate;
use crate::change::{Carrier, Change, Column, Op, Policy, Relation, Route, RowStorage, Stamp};
use std::rc::Rc;

fn column(name: &str, carrier: Carrier) -> Column {
    Column {
        name: name.into(),
        carrier,
        identity_always: false,
        own_equality: false,
        collated: false,
        local: None,
        binary: None,
        own_type: None,
    }
}

pub fn route(policy: Policy) -> Rc<Route> {
    let name = |t: &str| Relation {
        schema: "s".into(),
        table: t.into(),
    };
    Rc::new(Route {
        source: name("l"),
        target: name("t"),
        columns: vec![
            column("id", Carrier::Element),
            column("v", Carrier::Element),
            column("a", Carrier::Array("_int4".into())),
        ],
        key: vec![0],
        key_deferrable: false,
        key_exact: true,
        policy,
        truncate_children: false,
        cascades_from: Vec::new(),
        application_name: None,
        path: Default::default(),
    })
}

fn change<'a>(op: Op, key: &[&'a str], row: &[Option<&'a str>]) -> Change<&'a str> {
    let key = key.iter().copied().map(Some).collect();
    Change {
        op,
        command: 0,
        key,
        row: row.to_vec(),
        stamp: None,
        tombstone: None,
        unchanged: vec![],
        stored: RowStorage::default(),
        overtaken: false,
    }
}

/// Parameters, as texts that are all there.
fn texts(statement: &Statement) -> Vec<&str> {
    let mut texts = Vec::new();
    for param in &statement.params {
        let Param::Text(text) = param else {
            panic!("{param:?}")
        };
        texts.push(text.as_str());
    }
    texts
}

#[test]
fn a_batch_of_inserts_is_one_statement_over_typed_arrays() {
    let mut batch = Batch::new(route(Policy::Overwrite), BatchKind::Insert);
    batch.push(&change(
        Op::Insert,
        &[],
        &[Some("1"), Some("x"), Some("{1,2}")],
    ));
    batch.push(&change(Op::Insert, &[], &[Some("2"), None, None]));
    let upsert = of_batch(batch.clone(), None);
    batch.optimistic = true;
    let insert = of_batch(batch, None);
    assert_eq!((upsert.len(), insert.len()), (1, 1));
    let columns = "INSERT INTO \"s\".\"t\" AS t (\"id\", \"v\", \"a\") OVERRIDING SYSTEM VALUE \
                   SELECT v.n0, v.n1, v.n2::pg_catalog.\"_int4\" FROM ";
    let arrays = "(SELECT \
         pg_catalog.unnest(COALESCE($1, ARRAY[(NULL::\"s\".\"t\").\"id\"])) AS n0, \
         pg_catalog.unnest(COALESCE($2, ARRAY[(NULL::\"s\".\"t\").\"v\"])) AS n1, \
         pg_catalog.unnest($3::pg_catalog.text[]) AS n2, \
         pg_catalog.generate_series(1, 2) AS ord) AS v";
    let failing = " ON CONFLICT (\"id\") DO UPDATE SET \"v\" = excluded.\"v\" WHERE \
         ('pg_rowsync: row exists: ' OPERATOR(pg_catalog.||) \
         pg_catalog.pg_typeof(excluded.\"v\"))::pg_catalog.bool";
    assert_eq!(insert[0].text, format!("{columns}{arrays}{failing}"));
    let on_conflict =
        "ON CONFLICT (\"id\") DO UPDATE SET \"v\" = excluded.\"v\", \"a\" = excluded.\"a\"";
    for part in [
        format!("v AS MATERIALIZED (SELECT * FROM {arrays})"),
        columns.to_owned(),
        on_conflict.to_owned(),
    ] {
        assert!(upsert[0].text.contains(&part), "{}", upsert[0].text);
    }
    let params = texts(&upsert[0]);
    assert_eq!(
        params,
        [r#"{"1","2"}"#, r#"{"x",NULL}"#, r#"{"{1,2}",NULL}"#]
    );
    assert_eq!(upsert[0].params, insert[0].params);
}

#[test]
fn a_single_row_of_plain_types_needs_no_arrays() {
    let mut plain = (*route(Policy::Overwrite)).clone();
    plain.columns.pop();
    let mut batch = Batch::new(Rc::new(plain), BatchKind::Update);
    batch.push(&change(Op::Update, &[], &[Some("1"), None]));
    let statements = of_batch(batch.clone(), None);
    assert_eq!(
        statements[0].text,
        "WITH u AS (UPDATE \"s\".\"t\" AS t SET \"v\" = $2 WHERE t.\"id\" OPERATOR(pg_catalog.=) $1 RETURNING 1) \
         INSERT INTO \"s\".\"t\" AS t (\"id\", \"v\") OVERRIDING SYSTEM VALUE SELECT $1, $2 \
         WHERE NOT EXISTS (SELECT FROM u) ON CONFLICT (\"id\") DO UPDATE SET \"v\" = excluded.\"v\""
    );
    assert_eq!(
        statements[0].params,
        [Param::Text("1".to_owned()), Param::Null]
    );
    batch.push(&change(Op::Update, &[], &[Some("2"), Some("x")]));
    assert!(of_batch(batch, None)[0].text.contains("unnest"));
}

#[test]
fn a_move_clears_its_target_first_and_is_never_a_delete_of_the_row_itself() {
    let mut batch = Batch::new(route(Policy::Overwrite), BatchKind::Move);
    batch.push(&change(Op::Update, &["1"], &[Some("2"), Some("x"), None]));
    let statements = of_batch(batch, None);
    assert_eq!(statements.len(), 2);
    assert!(
        statements[0]
            .text
            .contains("DELETE FROM \"s\".\"t\" AS t USING v WHERE")
    );
    assert!(
        statements[0]
            .text
            .contains("AND NOT (t.\"id\" OPERATOR(pg_catalog.=) v.k0)")
    );
    assert!(
        statements[1]
            .text
            .contains("UPDATE \"s\".\"t\" AS t SET \"id\" = v.n0")
    );
    assert_eq!(statements[0].params, statements[1].params);
}

#[test]
fn the_literal_of_a_change_says_what_its_batch_does() {
    let route = route(Policy::Overwrite);
    let insert = change(Op::Insert, &[], &[Some("1"), Some("it's"), None]);
    assert_eq!(
        literal::of_change(&route, &insert),
        "INSERT INTO \"s\".\"t\" AS t (\"id\", \"v\", \"a\") OVERRIDING SYSTEM VALUE \
         SELECT '1', 'it''s', NULL \
         ON CONFLICT (\"id\") DO UPDATE SET \"v\" = excluded.\"v\", \"a\" = excluded.\"a\""
    );
    let delete = change(Op::Delete, &["7"], &[]);
    assert_eq!(
        literal::of_change(&route, &delete),
        "DELETE FROM \"s\".\"t\" AS t WHERE t.\"id\" OPERATOR(pg_catalog.=) '7'"
    );
}

/// How the statements of a batch of one change tell the conflicts: by rows, by the command tag, or not.
fn reported(
    policy: Policy,
    change: &Change<&str>,
    plain: bool,
    optimistic: bool,
) -> Vec<&'static str> {
    let mut route = (*route(policy)).clone();
    if plain {
        route.columns.pop();
    }
    let mut batch = Batch::new(Rc::new(route), BatchKind::of(change));
    batch.optimistic = optimistic;
    batch.push(change);
    let name = |conflicts| match conflicts {
        Conflicts::Never => "never",
        Conflicts::Rows(_) | Conflicts::RowsAfterCascade(_) => "rows",
        Conflicts::Single(..) | Conflicts::NoneFound => "tag",
    };
    of_batch(batch, None)
        .into_iter()
        .map(|s| name(s.conflicts))
        .collect()
}

#[test]
fn every_statement_that_lets_conflicts_pass_tells_of_them() {
    let row = [Some("2"), Some("x"), None];
    let insert = change(Op::Insert, &[], &row);
    let update = change(Op::Update, &[], &row);
    let moved = change(Op::Update, &["1"], &row);
    let delete = change(Op::Delete, &["1"], &[]);
    let overwrite = Policy::Overwrite;
    let newest = Policy::Newest(1);
    for (policy, change, arrays, plain) in [
        (overwrite, &insert, vec!["rows"], vec!["rows"]),
        (overwrite, &update, vec!["rows"], vec!["tag"]),
        (
            overwrite,
            &moved,
            vec!["rows", "rows"],
            vec!["rows", "rows"],
        ),
        (overwrite, &delete, vec!["rows"], vec!["tag"]),
        (Policy::Skip, &insert, vec!["rows"], vec!["tag"]),
        (Policy::Skip, &update, vec!["rows"], vec!["tag"]),
        (Policy::Skip, &moved, vec!["rows"], vec!["rows"]),
        (Policy::Skip, &delete, vec!["rows"], vec!["tag"]),
        (newest, &insert, vec!["rows"], vec!["rows"]),
        (newest, &update, vec!["rows"], vec!["rows"]),
        (newest, &moved, vec!["rows"], vec!["rows"]),
        (newest, &delete, vec!["rows"], vec!["rows"]),
        (Policy::Error, &insert, vec!["never"], vec!["never"]),
        (Policy::Error, &update, vec!["never"], vec!["never"]),
        (Policy::Error, &moved, vec!["never"], vec!["never"]),
        (Policy::Error, &delete, vec!["never"], vec!["never"]),
    ] {
        assert_eq!(
            reported(policy, change, false, false),
            arrays,
            "{policy:?} {change:?}"
        );
        assert_eq!(
            reported(policy, change, true, false),
            plain,
            "{policy:?} {change:?}"
        );
    }
    // These fail when the row is not as expected.
    for change in [&insert, &update, &moved, &delete] {
        assert_eq!(
            reported(overwrite, change, false, true),
            ["never"],
            "{change:?}"
        );
    }
    assert_eq!(reported(overwrite, &delete, true, true), ["tag"]);
}

#[test]
fn what_people_read_tells_nothing_but_what_is_done() {
    let row = [Some("2"), Some("x"), None];
    let changes = [
        change(Op::Insert, &[], &row),
        change(Op::Update, &[], &row),
        change(Op::Update, &["1"], &row),
        change(Op::Delete, &["1"], &[]),
    ];
    for policy in [
        Policy::Overwrite,
        Policy::Skip,
        Policy::Newest(1),
        Policy::Error,
    ] {
        for change in &changes {
            let text = literal::of_change(&route(policy), change);
            assert!(!text.contains("json_build_array"), "{text}");
            assert!(!text.contains('$'), "{text}");
        }
    }
}

#[test]
fn stamps_travel_with_their_rows() {
    let mut batch = Batch::new(route(Policy::Newest(1)), BatchKind::Update);
    batch.push(&change(Op::Update, &[], &[Some("1"), Some("x"), None]));
    let mut second = change(Op::Update, &[], &[Some("2"), Some("a"), None]);
    second.stamp = Some(Stamp {
        version: Some("z"),
        rank: 3,
    });
    batch.push(&second);
    let statement = of_batch(batch, Some("ext")).remove(0);
    let params = texts(&statement);
    let arrays = [
        r#"{"1","2"}"#,
        r#"{"x","a"}"#,
        "{NULL,NULL}",
        r#"{"x","z"}"#,
        r#"{"0","3"}"#,
    ];
    assert_eq!(params, arrays);
    assert!(statement.text.contains("\"ext\".sync_compare_versions("));
    assert!(statement.text.contains("\"ext\".sync_keep_version("));
}

#[test]
fn truncates_name_each_table_once_and_keep_only() {
    let one = route(Policy::Overwrite);
    let mut parent = (*one).clone();
    parent.target.table = "p".into();
    parent.truncate_children = true;
    assert_eq!(
        truncate(&[one.clone(), Rc::new(parent), one]),
        "TRUNCATE TABLE ONLY \"s\".\"t\", \"s\".\"p\""
    );
}

#[test]
fn the_error_policy_fails_when_rows_are_missing() {
    let mut batch = Batch::new(route(Policy::Error), BatchKind::Delete);
    batch.push(&change(Op::Delete, &["1"], &[]));
    let text = of_batch(batch, None).remove(0).text;
    assert!(text.contains("CASE WHEN pg_catalog.count(*) OPERATOR(pg_catalog.=) 1 THEN 0"));
    assert!(text.contains(MISSING_MARK));
}
