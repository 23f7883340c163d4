//! Statements that a session prepares once and then executes for one row at a time, which spares the
//! server parsing and planning.
//!
//! Their parameters keep the types that the columns have when they are prepared, whatever becomes of
//! those: a text for what was an integer would lose its zeros. So their texts hold conditions that the server
//! checks whenever it analyses them, which it does anew after each change of the table, and never computes.

use super::batch::{Batch, BatchKind};
use super::conflicts::Conflicts;
use super::dml::{all_found_if, delete, fail_on_conflict, insert_values, key_columns, update};
use super::param::Param;
use super::quote::{ident, relation};
use super::reporting::by_command_tag;
use super::statement::{Statement, Verb};
use super::values::{Values, key_of, single_row};
use crate::change::{Policy, Route};
use std::rc::Rc;

/// Whether a batch can be sent so: a single row of which the server is taken to be as expected, with
/// nothing to report but by the command tag.
pub fn can_last(batch: &Batch) -> bool {
    let suits = match batch.kind {
        BatchKind::Insert | BatchKind::Delete => true,
        BatchKind::Update => batch.route.can_update(),
        BatchKind::Move | BatchKind::Swap | BatchKind::Truncate => false,
    };
    suits && batch.optimistic && batch.route.policy == Policy::Overwrite && single_row(batch)
}

/// Prepares the statement for batches like this one, for which [`can_last`] holds.
pub fn prepare(batch: &Batch, name: &Rc<str>) -> Option<Statement> {
    Some(Statement::prepare(text(batch)?, name.clone()))
}

/// Executes it.
pub fn execute(batch: Batch, name: &Rc<str>) -> Statement {
    let route = &batch.route;
    let kind = batch.kind;
    let single = batch.single.unwrap_or_default();
    let conflicts = match kind {
        BatchKind::Update if batch.alone => Conflicts::NoneFound,
        BatchKind::Delete => {
            let key: Vec<Option<&str>> = single.key.iter().map(Option::as_deref).collect();
            by_command_tag(route, kind, Conflicts::Rows(route.clone()), &key)
        }
        _ => Conflicts::Never,
    };
    let params = single.params.into_iter().map(Param::from).collect();
    let text = String::new();
    Statement {
        verb: Verb::Execute(name.clone()),
        text,
        params,
        conflicts,
        is_urgent: false,
    }
}

/// The text that is prepared.
pub fn text(batch: &Batch) -> Option<String> {
    let route = &batch.route;
    let kind = batch.kind;
    let mut values = Values::of_params(batch)?;
    let column = |at: usize| {
        format!(
            "(NULL::{}).{}",
            relation(&route.target),
            ident(&route.columns[at].name)
        )
    };
    let sent = (0..values.new.len()).filter(|at| !values.unchanged.contains(&(*at as u32)));
    let mut typed: Vec<(String, String)> = sent
        .map(|at| (values.new[at].clone(), column(at)))
        .collect();
    let key = match kind {
        BatchKind::Insert | BatchKind::Update => key_of(route, &values.new),
        _ => values.old.clone(),
    };
    if kind == BatchKind::Delete {
        typed = key
            .iter()
            .zip(&route.key)
            .map(|(key, at)| (key.clone(), column(*at)))
            .collect();
    }
    // An operator may want another type than the column's.
    let of_column = |(key, at): (&String, &usize)| format!("COALESCE({key}, {})", column(*at));
    values.old = key.iter().zip(&route.key).map(of_column).collect();
    Some(match kind {
        BatchKind::Insert => format!(
            "{}{} RETURNING {}",
            insert_values(route, &values),
            fail_on_conflict(route),
            analysed(&of_same_types(&typed))
        ),
        BatchKind::Update if batch.alone => {
            let holds = format!(
                "{} AND {} AND {}",
                given_types(&typed),
                of_same_types(&typed),
                has_primary_key(route)
            );
            let tail = format!(" AND {}", analysed(&holds));
            update(route, kind, &values, String::new(), &tail)
        }
        BatchKind::Update => {
            let update = update(route, kind, &values, String::new(), " RETURNING 1");
            let also = format!(" AND {}", analysed(&of_same_types(&typed)));
            all_found_if(route, &values, &update, &also)
        }
        BatchKind::Delete => {
            let tail = format!(" AND {}", analysed(&of_same_types(&typed)));
            delete(route, &values, String::new(), &tail)
        }
        BatchKind::Move | BatchKind::Swap | BatchKind::Truncate => return None,
    })
}

/// True. The server analyses the condition all the same: what is not as it says cannot be executed.
fn analysed(condition: &str) -> String {
    format!("CASE WHEN false THEN {condition} ELSE true END")
}

/// A condition that is understood where parameters have the types of their columns: arrays of other types have
/// no equality, not even where their elements have.
fn of_same_types(typed: &[(String, String)]) -> String {
    let same = typed
        .iter()
        .map(|(param, column)| format!("ARRAY[{param}] OPERATOR(pg_catalog.=) ARRAY[{column}]"));
    same.collect::<Vec<_>>().join(" AND ")
}

/// A condition that gives parameters the types of their columns, if nothing before it has.
fn given_types(typed: &[(String, String)]) -> String {
    let given = typed
        .iter()
        .map(|(param, column)| format!("COALESCE({param}, {column}) IS NULL"));
    given.collect::<Vec<_>>().join(" AND ")
}

/// A condition that is understood where the key of the route has all columns of the table's primary key: only
/// then are other columns known by it.
fn has_primary_key(route: &Route) -> String {
    format!(
        "EXISTS (SELECT k.tableoid FROM {} AS k GROUP BY {})",
        relation(&route.target),
        key_columns(route)
    )
}
