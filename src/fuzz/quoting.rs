//! Names and values inside the SQL that is written: whatever they are, it means the same.

use super::lexer::{Token, tokens};
use super::{check, text};
use crate::change::{Carrier, Change, Column, Op, Policy, Relation, Route, RowStorage, Stamp};
use crate::sql::quote::{ArrayLiteral, ident, literal, relation};
use crate::sql::{Batch, BatchKind, look_for, of_batch, with_type_schemas};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use std::rc::Rc;

#[test]
fn a_literal_is_read_as_the_text_it_was_made_of() {
    check(3_000, &text(), |text| {
        for conforming in [true, false] {
            // Behind a word, too, which must not become its prefix.
            let read = tokens(
                &format!("SELECT{} {}", literal(&text), ident(&text)),
                conforming,
            );
            let expected = [
                Token::Word("SELECT".into()),
                Token::Text(text.clone()),
                Token::Name(text.clone()),
            ];
            prop_assert_eq!(read.as_deref(), Some(&expected[..]));
        }
        Ok(())
    });
}

/// Reads a one-dimensional array as `array_in` does.
fn elements(array: &str) -> Option<Vec<Option<String>>> {
    let mut found = Vec::new();
    let mut rest = array.strip_prefix('{')?;
    if rest == "}" {
        return Some(found);
    }
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut element = String::new();
            let mut chars = quoted.chars();
            loop {
                match chars.next()? {
                    '\\' => element.push(chars.next()?),
                    '"' => break,
                    c => element.push(c),
                }
            }
            found.push(Some(element));
            rest = chars.as_str();
        } else {
            found.push(None);
            rest = rest.strip_prefix("NULL")?;
        }
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return (rest == "}").then_some(found),
        }
    }
}

#[test]
fn an_array_is_read_as_the_elements_it_was_made_of() {
    check(2_000, &vec(proptest::option::of(text()), 0..6), |values| {
        let mut array = ArrayLiteral::default();
        values.iter().for_each(|value| array.push(value.as_deref()));
        prop_assert_eq!(elements(&array.into_text()), Some(values));
        Ok(())
    });
}

/// What is told apart from names and values: how many columns there are and of what kind.
#[derive(Clone, Debug)]
struct Shape {
    columns: Vec<(Carrier, [bool; 3])>,
    key: usize,
    flags: [bool; 2],
    policy: Policy,
    op: Op,
    moves: bool,
    nulls: Vec<bool>,
    stamped: bool,
    rows: usize,
}

fn shape() -> impl Strategy<Value = Shape> {
    let carrier = select(vec![
        Carrier::Element,
        Carrier::Array("_int4".to_owned()),
        Carrier::Record,
    ]);
    let columns = vec((carrier, any::<[bool; 3]>()), 1..5);
    let policies = vec![
        Policy::Overwrite,
        Policy::Error,
        Policy::Skip,
        Policy::Newest(0),
    ];
    let op = select(vec![Op::Insert, Op::Update, Op::Delete, Op::Truncate]);
    let rest = (
        any::<[bool; 2]>(),
        select(policies),
        op,
        any::<bool>(),
        vec(any::<bool>(), 10..11),
    );
    (columns, 1..4usize, rest, any::<bool>(), 1..3usize).prop_map(
        |(columns, key, (flags, policy, op, moves, nulls), stamped, rows)| {
            let key = key.min(columns.len());
            Shape {
                columns,
                key,
                flags,
                policy,
                op,
                moves,
                nulls,
                stamped,
                rows,
            }
        },
    )
}

/// A route and a change of this shape, with these texts in turn as names and values.
fn filled(shape: &Shape, texts: &[String]) -> (Rc<Route>, Change<String>) {
    let mut texts = texts.iter().cycle().cloned();
    let mut next = || texts.next().unwrap_or_default();
    let name = Relation {
        schema: next(),
        table: next(),
    };
    let columns = (shape.columns.iter().enumerate())
        .map(
            |(at, (carrier, [identity_always, own_equality, collated]))| Column {
                // Some statements name columns in the order of their names.
                name: format!("{at}{}", next()),
                carrier: carrier.clone(),
                identity_always: *identity_always,
                own_equality: *own_equality,
                collated: *collated,
                local: None,
                binary: None,
                own_type: None,
            },
        )
        .collect();
    let [key_deferrable, truncate_children] = shape.flags;
    let route = Rc::new(Route {
        source: name.clone(),
        target: name,
        columns,
        key: (0..shape.key).collect(),
        key_deferrable,
        key_exact: true,
        policy: shape.policy,
        truncate_children,
        cascades_from: Vec::new(),
        application_name: None,
        path: Default::default(),
    });
    let mut nulls = shape.nulls.iter().cycle();
    let mut values = |count: usize| -> Vec<Option<String>> {
        (0..count)
            .map(|_| (!*nulls.next().unwrap_or(&false)).then(&mut next))
            .collect()
    };
    let (keys, row) = match shape.op {
        Op::Insert => (0, shape.columns.len()),
        Op::Update => (if shape.moves { shape.key } else { 0 }, shape.columns.len()),
        Op::Delete => (shape.key, 0),
        Op::Truncate => (0, 0),
    };
    let key = values(keys);
    let row = values(row);
    let stamp = |version| shape.stamped.then_some(Stamp { version, rank: 1 });
    let (stamp, tombstone) = (stamp(values(1).remove(0)), stamp(values(1).remove(0)));
    let unchanged = Vec::new();
    let stored = RowStorage::default();
    (
        route,
        Change {
            op: shape.op,
            command: 1,
            key,
            row,
            stamp,
            tombstone,
            unchanged,
            stored,
            overtaken: false,
        },
    )
}

/// All SQL about a change.
fn statements((route, change): &(Rc<Route>, Change<String>), rows: usize) -> Vec<String> {
    let mut batch = Batch::new(route.clone(), BatchKind::of(change));
    match change.op {
        Op::Truncate => batch.truncated.push(route.clone()),
        _ => (0..rows).for_each(|_| batch.push(&change.borrowed())),
    }
    let schema = &route.target.schema;
    let sent = of_batch(batch, Some(schema))
        .into_iter()
        .map(|statement| statement.text);
    let mut all = vec![
        crate::sql::literal::of_change(route, change),
        with_type_schemas([&**route], "pg_catalog"),
    ];
    all.extend(sent.chain(look_for(route, change)));
    all
}

/// Tokens without what names and texts say.
fn skeleton(sql: &str, conforming: bool) -> Option<Vec<Token>> {
    let blank = |token| match token {
        Token::Name(_) => Token::Name(String::new()),
        Token::Text(_) => Token::Text(String::new()),
        other => other,
    };
    Some(tokens(sql, conforming)?.into_iter().map(blank).collect())
}

#[test]
fn no_name_and_no_value_changes_what_a_statement_does() {
    let plain = ["p".to_owned()];
    check(800, &(shape(), vec(text(), 6..12)), |(shape, texts)| {
        let hostile = filled(&shape, &texts);
        let harmless = filled(&shape, &plain);
        let hostile = statements(&hostile, shape.rows);
        let harmless = statements(&harmless, shape.rows);
        prop_assert_eq!(hostile.len(), harmless.len());
        for (sql, like) in hostile.iter().zip(&harmless) {
            let expected = skeleton(like, true);
            prop_assert!(expected.is_some(), "{}", like);
            for conforming in [true, false] {
                prop_assert_eq!(&skeleton(sql, conforming), &expected, "{}", sql);
            }
        }
        Ok(())
    });
}

#[test]
fn every_value_and_every_name_is_in_the_statement_as_it_is() {
    check(500, &(shape(), vec(text(), 6..12)), |(shape, texts)| {
        let (route, change) = filled(&shape, &texts);
        let read = tokens(&crate::sql::literal::of_change(&route, &change), true);
        let read = read.expect("SQL");
        // Under policies that write no missing row, an UPDATE has nothing to do that may set nothing.
        prop_assume!(!read.is_empty() || route.can_update());
        let target = tokens(&relation(&route.target), true).expect("a name");
        prop_assert!(read.windows(3).any(|found| found == target));
        if change.op == Op::Insert {
            for value in change.row.iter().flatten() {
                prop_assert!(read.contains(&Token::Text(value.clone())), "{:?}", value);
            }
            for column in &route.columns {
                prop_assert!(
                    read.contains(&Token::Name(column.name.clone())),
                    "{:?}",
                    column
                );
            }
        }
        Ok(())
    });
}
