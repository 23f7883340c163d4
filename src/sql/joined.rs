//! One statement for changes that are true only together: rows of several tables, or of one table that
//! refer to each other, written by one command.
//!
//! The server checks what cannot be deferred at the end of each statement, so the batches become items
//! of one WITH. All of them see the rows as they were before the statement. They are executed in the
//! order in which the outer SELECT asks for their counts. Conflicts are not reported: they were when the
//! changes were tried one batch after the other.

use super::batch::{Batch, BatchKind};
use super::conflicts::Conflicts;
use super::dml::{delete, exists_new, insert_from, on_conflict, update};
use super::marks::MISSING_MARK;
use super::quote::literal;
use super::render::params;
use super::statement::Statement;
use super::values::Values;
use crate::change::{Policy, Route};

/// The statement that applies batches at once. `None` where that cannot be one: TRUNCATE, tables
/// under `newest`, or more than one table whose keys are compared with operators of their own types.
pub fn joined(batches: Vec<Batch>) -> Option<Statement> {
    let is_simple = |batch: &Batch| {
        batch.kind != BatchKind::Truncate && !matches!(batch.route.policy, Policy::Newest(_))
    };
    let compared = |batch: &&Batch| batch.route.compared().next().is_some();
    let mut own = batches.iter().filter(compared).map(|batch| &batch.route.target);
    let first = own.next();
    if !batches.iter().all(is_simple) || own.any(|other| Some(other) != first) {
        return None;
    }
    let (mut with, mut checks, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for (at, batch) in batches.into_iter().enumerate() {
        let item = format!("v{at}");
        let values = Values::of_arrays_as(&batch, &item, all.len());
        with.push(format!("{item} AS MATERIALIZED (SELECT * FROM {})", values.from.as_ref()?));
        let (text, is_counted) = text(&batch.route, batch.kind, &values, at, &mut with);
        with.push(format!("c{at} AS ({text} RETURNING 1)"));
        let count = format!("(SELECT pg_catalog.count(*) FROM c{at})");
        checks.push(match is_counted {
            true => format!("{count} OPERATOR(pg_catalog.=) {}", values.rows),
            false => format!("{count} OPERATOR(pg_catalog.>=) 0"),
        });
        all.extend(params(batch));
    }
    let text = format!(
        "WITH {} SELECT CASE WHEN {} THEN 0 ELSE ({} OPERATOR(pg_catalog.||) \
         (SELECT pg_catalog.count(*) FROM c0))::pg_catalog.int4 END",
        with.join(", "),
        checks.join(" AND "),
        literal(MISSING_MARK)
    );
    Some(Statement::query(text, all, Conflicts::Never))
}

/// What a batch does, and whether it must find all its rows. Items that it needs go to `with`.
fn text(
    route: &Route,
    kind: BatchKind,
    values: &Values,
    at: usize,
    with: &mut Vec<String>,
) -> (String, bool) {
    let item = format!("v{at}");
    let from = format!(" FROM {item}");
    let is_error = route.policy == Policy::Error;
    let updates = matches!(kind, BatchKind::Update | BatchKind::Move);
    match kind {
        BatchKind::Delete | BatchKind::Truncate => {
            (delete(route, values, format!(" USING {item}"), ""), is_error)
        }
        _ if updates && route.policy != Policy::Overwrite => {
            (update(route, kind, values, from, ""), is_error)
        }
        // Rows that are looked for before: by their old key, or by one that may be deferrable.
        _ if route.can_update()
            && route.policy == Policy::Overwrite
            && (updates || route.key_deferrable) =>
        {
            let kind = if kind == BatchKind::Move { BatchKind::Move } else { BatchKind::Update };
            let found = update(route, kind, values, from, &format!(" RETURNING {item}.ord"));
            with.push(format!("u{at} AS ({found})"));
            let missing = format!(
                " FROM {item} WHERE NOT EXISTS (SELECT FROM u{at} \
                 WHERE u{at}.ord OPERATOR(pg_catalog.=) {item}.ord)"
            );
            (format!("{}{}", insert_from(route, values, &missing), on_conflict(route)), false)
        }
        _ if route.key_deferrable && !is_error => {
            let free = format!("{from} WHERE NOT {}", exists_new(route, values));
            (insert_from(route, values, &free), false)
        }
        _ => (format!("{}{}", insert_from(route, values, &from), on_conflict(route)), false),
    }
}
