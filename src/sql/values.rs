//! Where a statement takes its values from: arrays of parameters (a batch), parameters (a single row) or
//! literals (one change, for people).

use super::batch::{Batch, Elements};
use super::marks::TYPES_MARK;
use super::quote::{ident, literal, relation};
use crate::change::{Carrier, Column, Policy, Route};

/// Where a statement takes its values from.
pub struct Values {
    /// An expression per column of the route, empty for one that is not sent.
    pub new: Vec<String>,
    /// An expression per key column: the key before the change.
    pub old: Vec<String>,
    /// The key before the change, of any row of `w`, another look at `v`; empty without arrays.
    pub any_old: Vec<String>,
    /// The key after the change, of any row of `w`; empty without arrays, and of a deletion.
    pub any_new: Vec<String>,
    /// Under [`Policy::Newest`]: what the new row counts as.
    pub stamp: Option<StampOf>,
    /// Under [`Policy::Newest`]: what the deletion of the row with the old key counts as.
    pub tombstone: Option<StampOf>,
    /// The FROM item that the expressions read, named `v`, its rows numbered as `ord`; `None` without
    /// arrays.
    pub from: Option<String>,
    /// Changes that the values stand for.
    pub rows: usize,
    /// Positions of columns that an UPDATE leaves as they are.
    pub unchanged: Vec<u32>,
    /// See [`Batch::optimistic`].
    pub optimistic: bool,
    /// Literals, for people and not for the wire.
    pub literal: bool,
}

/// A [`Stamp`](crate::change::Stamp) as expressions.
pub struct StampOf {
    pub version: String,
    pub rank: String,
}

impl Values {
    /// The values of a batch, as arrays in parameters, read under the name `v`.
    pub fn of_arrays(batch: &Batch) -> Self {
        Self::of_arrays_as(batch, "v", 0)
    }

    /// The values of a batch, as arrays in parameters, read under the name `item`. The statement has `params`
    /// parameters before these.
    pub fn of_arrays_as(batch: &Batch, item: &str, params: usize) -> Self {
        let route = &batch.route;
        let mut sets: Vec<String> = Vec::new();
        let sent = |at: &usize| *at < batch.new.len() && !batch.unchanged.contains(&(*at as u32));
        let elements_sent: Vec<(&Column, String)> = (0..route.columns.len())
            .filter(sent)
            .filter(|at| route.columns[*at].carrier == Carrier::Element)
            .map(|at| (&route.columns[at], format!("n{at}")))
            .collect();
        let mut take = |column: &Column, name: String, elements: Option<&Elements>| {
            let is_text = elements.is_some_and(Elements::is_binary_text);
            let array = array_param(route, column, params + sets.len() + 1, is_text);
            sets.push(format!("pg_catalog.unnest({array}) AS {name}"));
            element(route, column, item, &name, &elements_sent)
        };
        let new: Vec<String> = (route.columns.iter().enumerate().take(batch.new.len()))
            .map(|(i, column)| {
                if batch.unchanged.contains(&(i as u32)) {
                    String::new()
                } else {
                    take(column, format!("n{i}"), batch.new.get(i))
                }
            })
            .collect();
        let old: Vec<String> = (route.key.iter().enumerate().take(batch.old.len()))
            .map(|(i, at)| take(&route.columns[*at], format!("k{i}"), batch.old.get(i)))
            .collect();
        let version = match route.policy {
            Policy::Newest(at) => Some(&route.columns[at]),
            _ => None,
        };
        let mut versions = |sent: bool, name: &str| {
            let column = version.filter(|_| sent)?;
            Some(take(column, format!("{name}v"), None))
        };
        let stamp = versions(batch.stamp.is_some(), "s");
        let tombstone = versions(batch.tombstone.is_some(), "g");
        let mut ranks = |version: Option<String>, name: &str| {
            version.map(|version| {
                let number = params + sets.len() + 1;
                sets.push(format!(
                    "pg_catalog.unnest(${number}::pg_catalog.int8[]) AS {name}r"
                ));
                StampOf {
                    version,
                    rank: format!("{item}.{name}r"),
                }
            })
        };
        let stamp = ranks(stamp, "s");
        let tombstone = ranks(tombstone, "g");
        sets.push(format!(
            "pg_catalog.generate_series(1, {}) AS ord",
            batch.rows
        ));
        // Not ROWS FROM: that stores the values of each array away before it makes rows of them.
        let from = format!("(SELECT {}) AS {item}", sets.join(", "));
        let old = if old.is_empty() {
            key_of(route, &new)
        } else {
            old
        };
        let any_new: Vec<String> = (route.key.iter().filter(|_| !new.is_empty()))
            .map(|at| element(route, &route.columns[*at], "w", &format!("n{at}"), &[]))
            .collect();
        let any_old: Vec<String> = (route.key.iter().enumerate().take(batch.old.len()))
            .map(|(i, at)| element(route, &route.columns[*at], "w", &format!("k{i}"), &[]))
            .collect();
        let any_old = if any_old.is_empty() {
            any_new.clone()
        } else {
            any_old
        };
        let unchanged = batch.unchanged.clone();
        let rows = batch.rows;
        let optimistic = batch.optimistic;
        let from = Some(from);
        let literal = false;
        Self {
            new,
            old,
            any_old,
            any_new,
            stamp,
            tombstone,
            from,
            rows,
            unchanged,
            optimistic,
            literal,
        }
    }

    /// The values of a batch of one row, a parameter for each, whose type the server infers from its place:
    /// several times cheaper there to plan than arrays. `None` where the place does not determine the type,
    /// or where the statements need the values as a FROM item.
    pub fn of_params(batch: &Batch) -> Option<Self> {
        if !single_row(batch) {
            return None;
        }
        let mut number = 0;
        let mut next = || {
            number += 1;
            format!("${number}")
        };
        let new: Vec<String> = (0..batch.new.len())
            .map(|at| {
                if batch.unchanged.contains(&(at as u32)) {
                    String::new()
                } else {
                    next()
                }
            })
            .collect();
        let old: Vec<String> = (0..batch.old.len()).map(|_| next()).collect();
        let old = if old.is_empty() {
            key_of(&batch.route, &new)
        } else {
            old
        };
        let unchanged = batch.unchanged.clone();
        let optimistic = batch.optimistic;
        let any_old = Vec::new();
        let any_new = Vec::new();
        let stamp = None;
        let tombstone = None;
        let from = None;
        let rows = 1;
        let literal = false;
        Some(Self {
            new,
            old,
            any_old,
            any_new,
            stamp,
            tombstone,
            from,
            rows,
            unchanged,
            optimistic,
            literal,
        })
    }

    /// `FROM item` or nothing.
    pub fn from(&self) -> String {
        self.from
            .as_ref()
            .map(|item| format!(" FROM {item}"))
            .unwrap_or_default()
    }

    /// `USING item` or nothing.
    pub fn using(&self) -> String {
        self.from
            .as_ref()
            .map(|item| format!(" USING {item}"))
            .unwrap_or_default()
    }
}

/// Whether a batch is one row whose values can be parameters, see [`Values::of_params`].
pub fn single_row(batch: &Batch) -> bool {
    batch.single.is_some() && batch.takes_params()
}

/// The key part of a row of expressions.
pub fn key_of(route: &Route, row: &[String]) -> Vec<String> {
    route
        .key
        .iter()
        .filter_map(|at| row.get(*at).cloned())
        .collect()
}

/// The parameter that carries a column of a batch. For elements the array takes the remote column's
/// own type, which COALESCE hands to the untyped parameter: no type is named, none can be missing.
/// One that is declared as an array of text is refused unless the column is of that type, or varchar.
fn array_param(route: &Route, column: &Column, number: usize, is_text: bool) -> String {
    let value = format!(
        "(NULL::{}).{}",
        relation(&route.target),
        ident(&column.name)
    );
    match &column.carrier {
        Carrier::Element if is_text => format!(
            "COALESCE(CASE WHEN pg_catalog.pg_typeof({value}) OPERATOR(pg_catalog.=) ANY (ARRAY[\
             'pg_catalog.text'::pg_catalog.regtype, 'pg_catalog.varchar'::pg_catalog.regtype]) \
             THEN ${number} ELSE ({} OPERATOR(pg_catalog.||) pg_catalog.pg_typeof({value}))\
             ::pg_catalog._text END, ARRAY[{value}])",
            literal(TYPES_MARK)
        ),
        Carrier::Element => format!("COALESCE(${number}, ARRAY[{value}])"),
        Carrier::Array(_) | Carrier::Record => format!("${number}::pg_catalog.text[]"),
    }
}

/// The value of a column in the current row of the values. `others`: columns of the same row, of which those
/// of a domain may have to be there for a value to be read through the row type.
fn element(
    route: &Route,
    column: &Column,
    row: &str,
    name: &str,
    others: &[(&Column, String)],
) -> String {
    match &column.carrier {
        Carrier::Element => format!("{row}.{name}"),
        Carrier::Array(array) => format!("{row}.{name}::pg_catalog.{}", ident(array)),
        Carrier::Record => {
            let others: String = others
                .iter()
                .map(|(other, name)| {
                    format!(", {}, {row}.{name}::pg_catalog.text", literal(&other.name))
                })
                .collect();
            format!(
                "(pg_catalog.json_populate_record(NULL::{}, \
                   pg_catalog.json_build_object({}, {row}.{name}{others}))).{}",
                relation(&route.target),
                literal(&column.name),
                ident(&column.name)
            )
        }
    }
}
