//! How a statement reports the conflicts that it meets while it goes on: over arrays it answers with a row for
//! each, over the parameters of a single row by its command tag. Over literals (for people) it does not.

use super::batch::BatchKind;
use super::conflicts::{Conflicts, conflict_of, existing_columns, single};
use super::dml::{same_key, with_v};
use super::quote::relation;
use super::values::Values;
use crate::change::{Policy, Route};
use crate::conflict::Decision;
use std::rc::Rc;

/// How a statement over the parameters of a single row tells: it has one conflict or none, and where
/// [`super::render::texts`] lets it, the command tag says which.
pub(super) fn by_command_tag(
    route: &Rc<Route>,
    kind: BatchKind,
    rows: Conflicts,
    key: &[Option<&str>],
) -> Conflicts {
    let decision = match route.policy {
        Policy::Overwrite if kind != BatchKind::Delete => Decision::Applied,
        _ => Decision::Skipped,
    };
    match (&rows, kind, route.policy) {
        (Conflicts::Never, _, _) => rows,
        // An upsert affects a row whether it was there or not, so it looks for it before.
        (_, BatchKind::Insert, Policy::Overwrite) if route.can_update() => rows,
        // What the UPDATE does not find the INSERT that follows does affect.
        _ => {
            let mut conflict = conflict_of(route, single(kind), decision, key);
            if kind == BatchKind::Insert {
                conflict.server_key = conflict.key.clone();
            }
            let if_affected = kind == BatchKind::Update && route.policy == Policy::Overwrite;
            Conflicts::Single(route.clone(), Box::new(conflict), if_affected)
        }
    }
}

/// A statement that answers with a row for each conflict. `with`: items of its WITH beside the change.
pub(super) fn reporting(
    route: &Route,
    values: &Values,
    with: &[String],
    (name, change): (&str, String),
    conflicts: &str,
) -> String {
    let change = format!("{name} AS ({change})");
    let items: Vec<&str> = with
        .iter()
        .map(String::as_str)
        .chain([change.as_str()])
        .collect();
    format!(
        "WITH {}{} {conflicts}",
        with_v(route, values),
        items.join(", ")
    )
}

/// The rows that are there with a key of the changes, `p`.
pub(super) fn look(route: &Route, values: &Values, key: &[String]) -> String {
    let columns = existing_columns(route, &route.key);
    let condition = same_key(route, "t", key);
    let (ord, join) = match values.from {
        Some(_) => (
            "v.ord, ",
            format!("v JOIN {} AS t ON {condition}", relation(&route.target)),
        ),
        None => (
            "",
            format!("{} AS t WHERE {condition}", relation(&route.target)),
        ),
    };
    format!("p AS MATERIALIZED (SELECT {ord}{columns} FROM {join})")
}

/// A FROM clause of the rows of an item that has their numbers, beside the changes they are of.
pub(super) fn beside_v(values: &Values, item: &str) -> String {
    match values.from {
        Some(_) => format!(" FROM v JOIN {item} ON {item}.ord OPERATOR(pg_catalog.=) v.ord"),
        None => format!(" FROM {item}"),
    }
}

/// A FROM clause of the changes whose numbers an item has not.
pub(super) fn v_without(values: &Values, item: &str) -> String {
    match values.from {
        Some(_) => {
            format!(
                " FROM v WHERE NOT EXISTS (SELECT FROM {item} WHERE {item}.ord OPERATOR(pg_catalog.=) v.ord)"
            )
        }
        None => format!(" WHERE NOT EXISTS (SELECT FROM {item})"),
    }
}

/// The number of a change, for RETURNING.
pub(super) fn number(values: &Values) -> &'static str {
    if values.from.is_some() { "v.ord" } else { "1" }
}
