//! Clauses and plain statements that the policies put together: over values that come either from arrays of
//! parameters (a batch), from the parameters of a single row, or from literals (one change).

use super::batch::{Batch, BatchKind};
use super::marks::{EXISTS_MARK, MISSING_MARK};
use super::quote::{ident, literal, operator, relation};
use super::statement::Statement;
use super::values::{Values, key_of};
use crate::change::{Policy, Route};

/// An INSERT of so many rows names the key itself; that costs as much as to ask about the key before.
const MOST_NAMED: usize = 16;

pub(super) fn insert_from(route: &Route, values: &Values, from: &str) -> String {
    format!(
        "{} SELECT {}{from}",
        insert_into(route),
        values.new.join(", ")
    )
}

/// An INSERT of a single row.
pub(super) fn insert_values(route: &Route, values: &Values) -> String {
    format!("{} VALUES ({})", insert_into(route), values.new.join(", "))
}

fn insert_into(route: &Route) -> String {
    let columns: Vec<String> = route.columns.iter().map(|c| ident(&c.name)).collect();
    let target = relation(&route.target);
    let columns = columns.join(", ");
    format!("INSERT INTO {target} AS t ({columns}) OVERRIDING SYSTEM VALUE")
}

/// An INSERT that fails over a row that is there.
pub(super) fn insert_unless_there(route: &Route, values: &Values) -> String {
    let named = match values.rows {
        ..=MOST_NAMED => fail_on_conflict(route),
        _ => String::new(),
    };
    insert_from(route, values, &values.from()) + &named
}

/// A condition that fails, and looks at a value for it, so that it cannot do so before.
fn is_there(value: &str) -> String {
    format!(
        "({} OPERATOR(pg_catalog.||) pg_catalog.pg_typeof({value}))::pg_catalog.bool",
        literal(EXISTS_MARK)
    )
}

/// For an INSERT that is to fail over a row that is there. It would do so by itself, as long as there is a
/// unique index; but only where the key is named does the server say that there is none any more.
pub(super) fn fail_on_conflict(route: &Route) -> String {
    let Some(set) = route
        .settable()
        .next()
        .or_else(|| route.settable_key().next())
    else {
        return String::new();
    };
    let set = ident(&route.columns[set].name);
    format!(
        " ON CONFLICT ({}) DO UPDATE SET {set} = excluded.{set} WHERE {}",
        key_columns(route),
        is_there(&format!("excluded.{set}"))
    )
}

/// Whether a batch is of INSERTs that fail over a row that is there, but do not name the key.
pub fn needs_key(batch: &Batch) -> bool {
    let is_plain = batch.kind == BatchKind::Insert
        && batch.optimistic
        && batch.route.policy == Policy::Overwrite;
    is_plain && (batch.rows > MOST_NAMED || fail_on_conflict(&batch.route).is_empty())
}

/// Fails with 42P10 unless there is a unique index on the key, and keeps it to the end of the transaction.
/// Nothing is executed, which would fire triggers.
pub fn ask_key(route: &Route) -> Statement {
    Statement::plain(format!(
        "EXPLAIN INSERT INTO {} ({key}) OVERRIDING SYSTEM VALUE \
         SELECT {key} FROM {} WHERE false ON CONFLICT ({key}) DO NOTHING",
        relation(&route.target),
        relation(&route.target),
        key = key_columns(route)
    ))
}

pub(super) fn key_columns(route: &Route) -> String {
    let key: Vec<String> = route
        .key
        .iter()
        .map(|at| ident(&route.columns[*at].name))
        .collect();
    key.join(", ")
}

/// What an INSERT does with a row that is there already.
pub(super) fn on_conflict(route: &Route) -> String {
    if route.key_deferrable || route.policy == Policy::Error {
        return String::new();
    }
    let set: Vec<String> = route
        .settable()
        .map(|at| ident(&route.columns[at].name))
        .map(|name| format!("{name} = excluded.{name}"))
        .collect();
    let update = match route.policy {
        Policy::Overwrite if !set.is_empty() => format!("UPDATE SET {}", set.join(", ")),
        _ => "NOTHING".to_owned(),
    };
    format!(" ON CONFLICT ({}) DO {update}", key_columns(route))
}

/// UPDATE of the rows at the old key, with the caller's FROM and tail.
pub(super) fn update(
    route: &Route,
    kind: BatchKind,
    values: &Values,
    from: String,
    tail: &str,
) -> String {
    format!(
        "UPDATE {} AS t SET {}{from} WHERE {}{tail}",
        relation(&route.target),
        assignments(route, kind, values),
        same_key(route, "t", &values.old)
    )
}

/// An UPDATE that fails unless it finds every row.
pub(super) fn update_all(route: &Route, kind: BatchKind, values: &Values) -> String {
    all_found(
        route,
        values,
        &update(route, kind, values, values.from(), " RETURNING 1"),
    )
}

/// What an UPDATE sets.
pub(super) fn assignments(route: &Route, kind: BatchKind, values: &Values) -> String {
    let at: Vec<usize> = match kind {
        BatchKind::Move | BatchKind::Swap => (0..route.columns.len())
            .filter(|at| !route.columns[*at].identity_always)
            .collect(),
        _ => route
            .settable()
            .filter(|at| !values.unchanged.contains(&(*at as u32)))
            .collect(),
    };
    // A table that is all key has nothing to set; setting its key to itself still finds the row.
    let at = if at.is_empty() {
        route.settable_key().collect()
    } else {
        at
    };
    let set: Vec<String> = at
        .into_iter()
        .map(|i| format!("{} = {}", ident(&route.columns[i].name), values.new[i]))
        .collect();
    set.join(", ")
}

pub(super) fn delete(route: &Route, values: &Values, using: String, tail: &str) -> String {
    format!(
        "DELETE FROM {} AS t{using} WHERE {}{tail}",
        relation(&route.target),
        same_key(route, "t", &values.old)
    )
}

/// A DELETE that does.
pub(super) fn delete_all(route: &Route, values: &Values) -> String {
    all_found(
        route,
        values,
        &delete(route, values, values.using(), " RETURNING 1"),
    )
}

/// Wraps a data-modifying statement that returns a row per row it found: fails unless it found
/// every one.
fn all_found(route: &Route, values: &Values, inner: &str) -> String {
    all_found_if(route, values, inner, "")
}

/// Wraps a data-modifying statement that returns a row per row it found: fails unless it found every one, or
/// the condition `also` holds.
pub(super) fn all_found_if(route: &Route, values: &Values, inner: &str, also: &str) -> String {
    format!(
        "WITH {}u AS ({inner}) SELECT CASE WHEN pg_catalog.count(*) OPERATOR(pg_catalog.=) {}{also} THEN 0 \
         ELSE ({} OPERATOR(pg_catalog.||) pg_catalog.count(*))::pg_catalog.int4 END FROM u",
        named_first(route, values),
        values.rows,
        literal(MISSING_MARK)
    )
}

/// Whether another row holds the new key. A key that is only written differently (1.0 and 1.00) is
/// the row's own.
pub(super) fn taken(route: &Route, values: &Values) -> String {
    format!(
        "EXISTS (SELECT FROM {} AS o WHERE {} AND NOT ({}))",
        relation(&route.target),
        same_key(route, "o", &key_of(route, &values.new)),
        same_key(route, "o", &values.old)
    )
}

pub(super) fn exists_new(route: &Route, values: &Values) -> String {
    exists(route, &key_of(route, &values.new))
}

pub(super) fn exists(route: &Route, key: &[String]) -> String {
    format!(
        "EXISTS (SELECT FROM {} AS o WHERE {})",
        relation(&route.target),
        same_key(route, "o", key)
    )
}

pub(super) fn same_key(route: &Route, table: &str, key: &[String]) -> String {
    let terms: Vec<String> = route
        .key
        .iter()
        .zip(key)
        .map(|(at, value)| {
            let column = &route.columns[*at];
            format!(
                "{table}.{} {} {value}",
                ident(&column.name),
                operator(column, "=")
            )
        })
        .collect();
    terms.join(" AND ")
}

/// Whether a change beside that of `v` in the same statement has a key of `others`, given as of `w`, that is
/// equal there to `key`.
pub(super) fn is_shared(route: &Route, key: &[String], others: &[String]) -> String {
    let equal: Vec<String> = (route.key.iter().zip(key.iter().zip(others)))
        .map(|(at, (key, other))| format!("{other} {} {key}", operator(&route.columns[*at], "=")))
        .collect();
    format!(
        "EXISTS (SELECT FROM v AS w WHERE w.ord OPERATOR(pg_catalog.<>) v.ord AND {})",
        equal.join(" AND ")
    )
}

/// An expression of type text that fails with a mark. With something that is not known before it is executed:
/// else it fails when it is planned.
pub(super) fn failing_with(mark: &str) -> String {
    format!(
        "({} OPERATOR(pg_catalog.||) v.ord)::pg_catalog.int4::pg_catalog.text",
        literal(mark)
    )
}

/// The first item of a WITH: the table is named before the changes, since one that is missing is to be
/// reported as such, and not as the missing type of a parameter.
fn named_first(route: &Route, values: &Values) -> String {
    match values.from {
        Some(_) => format!("r AS (SELECT FROM {}), ", relation(&route.target)),
        None => String::new(),
    }
}

/// The first items of a WITH: that one, and the changes, `v`, for statements that read them repeatedly.
pub(super) fn with_v(route: &Route, values: &Values) -> String {
    let changes = |item| format!("v AS MATERIALIZED (SELECT * FROM {item}), ");
    let changes = values.from.as_ref().map(changes).unwrap_or_default();
    named_first(route, values) + &changes
}

pub(super) fn from_v(values: &Values) -> String {
    values
        .from
        .as_ref()
        .map(|_| " FROM v".to_owned())
        .unwrap_or_default()
}

pub(super) fn using_v(values: &Values) -> String {
    values
        .from
        .as_ref()
        .map(|_| " USING v".to_owned())
        .unwrap_or_default()
}
