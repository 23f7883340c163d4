//! Whether the server's rows are what changes lead to. Rows are compared as their types write them, so
//! that no operator of anybody is needed; what is only written differently counts as other.

use super::batch::{Batch, BatchKind};
use super::conflicts::Conflicts;
use super::dml::same_key;
use super::quote::{ident, relation};
use super::render::params;
use super::statement::Statement;
use super::values::{Values, key_of};
use crate::change::Route;

/// A query whose only row has a character for each row of a batch: `1` where the server has what the
/// change leads to (an INSERT or UPDATE: the row; a DELETE: no row), else `0`.
pub fn reached(batch: Batch) -> Statement {
    let values = Values::of_arrays(&batch);
    let route = &batch.route;
    let is_there = |key: &[String], also: &str| {
        format!(
            "EXISTS (SELECT FROM {} AS t WHERE {}{also})",
            relation(&route.target),
            same_key(route, "t", key)
        )
    };
    let reached = match batch.kind {
        BatchKind::Delete | BatchKind::Truncate => format!("NOT {}", is_there(&values.old, "")),
        _ => is_there(&key_of(route, &values.new), &is_equal(route, &values.new)),
    };
    let text = format!(
        "SELECT pg_catalog.string_agg(CASE WHEN {reached} THEN '1' ELSE '0' END, '' ORDER BY v.ord){}",
        values.from()
    );
    Statement::query(text, params(batch), Conflicts::Never)
}

fn is_equal(route: &Route, new: &[String]) -> String {
    let columns = route.columns.iter().zip(new);
    let term = |(column, new): (&crate::change::Column, &String)| {
        let there = format!("t.{}", ident(&column.name));
        format!(
            " AND CASE WHEN {there} IS DISTINCT FROM NULL THEN {new} IS DISTINCT FROM NULL AND \
             pg_catalog.concat({there}) COLLATE pg_catalog.\"C\" OPERATOR(pg_catalog.=) \
             pg_catalog.concat({new}) ELSE NOT ({new} IS DISTINCT FROM NULL) END"
        )
    };
    columns.map(term).collect()
}
