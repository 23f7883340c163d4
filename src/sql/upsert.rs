//! Statements that write a row whether it is there or not, and those that move rows to other keys.

use super::batch::BatchKind;
use super::conflicts::{ConflictReport, decision, existing_columns};
use super::dml::{
    assignments, exists, exists_new, from_v, insert_from, on_conflict, same_key, update, using_v,
    with_v,
};
use super::quote::relation;
use super::reporting::{beside_v, look, number, reporting, v_without};
use super::values::{Values, key_of};
use crate::change::{Policy, Route};
use crate::conflict::{ConflictType, Decision};

/// UPDATE in place, then INSERT of what was not there. Not one INSERT ... ON CONFLICT: that would
/// ask for every NOT NULL column of the remote table even where the row exists.
pub(super) fn upsert(route: &Route, kind: BatchKind, values: &Values) -> String {
    let (with, insert) = update_then_insert(route, kind, values);
    if values.from.is_none() {
        return format!("WITH {with} {insert}");
    }
    // What is at the new key of a row that is missing at the old one.
    let (looks, existing, from) = match kind {
        BatchKind::Move => {
            let look = look(route, values, &key_of(route, &values.new));
            (
                vec![look],
                Some("p"),
                " FROM v LEFT JOIN p ON p.ord OPERATOR(pg_catalog.=) v.ord",
            )
        }
        _ => (Vec::new(), None, " FROM v"),
    };
    let report = ConflictReport {
        route,
        key: &values.old,
        existing,
        stamp: None,
    };
    let missing = report.answer(ConflictType::UpdateMissing, &decision(Decision::Applied));
    let conflicts = format!(
        "SELECT {missing}{from} WHERE NOT EXISTS (SELECT FROM u WHERE u.ord OPERATOR(pg_catalog.=) v.ord)"
    );
    let with: Vec<String> = looks.into_iter().chain([with]).collect();
    reporting(
        route,
        values,
        &with,
        ("i", format!("{insert} RETURNING 1")),
        &conflicts,
    )
}

/// The items of an [`upsert`]'s WITH, and its INSERT.
pub(super) fn update_then_insert(
    route: &Route,
    kind: BatchKind,
    values: &Values,
) -> (String, String) {
    let returning = format!(" RETURNING {}", number(values));
    let update = update(route, kind, values, from_v(values), &returning);
    let mut with = format!("u AS ({update})");
    let mut missing = v_without(values, "u");
    // Nor may a row be inserted that has moved before: its change is being replayed.
    if kind == BatchKind::Move && route.key_deferrable {
        let set = assignments(route, BatchKind::Update, values);
        let key = key_of(route, &values.new);
        let without = |item: &str| {
            let text = v_without(values, item);
            text.trim_start_matches(" FROM v")
                .replacen(" WHERE", " AND", 1)
        };
        with.push_str(&format!(
            ", n AS (UPDATE {} AS t SET {set}{} WHERE {}{}{}{returning})",
            relation(&route.target),
            from_v(values),
            same_key(route, "t", &key),
            without("u"),
            not_moving(route, values)
        ));
        missing.push_str(&without("n"));
    }
    let insert = insert_from(route, values, &missing);
    (with, format!("{insert}{}", on_conflict(route)))
}

/// An INSERT under another policy than `newest`, with the caller's FROM. Where the remote's key may be
/// deferrable no ON CONFLICT can rely on it: rows that are there are looked for instead.
pub(super) fn insert(route: &Route, values: &Values, from: &str) -> String {
    match route.policy {
        _ if !route.key_deferrable => {
            format!("{}{}", insert_from(route, values, from), on_conflict(route))
        }
        Policy::Error => insert_from(route, values, from),
        Policy::Overwrite if route.can_update() => {
            let (with, insert) = update_then_insert(route, BatchKind::Update, values);
            format!("WITH {}{with} {insert}", with_v(route, values))
        }
        _ => {
            let free = format!("{from} WHERE NOT {}", exists_new(route, values));
            insert_from(route, values, &free)
        }
    }
}

/// The condition that the batch itself does not move the row.
fn not_moving(route: &Route, values: &Values) -> String {
    if values.any_old.is_empty() {
        return String::new();
    }
    let moving = same_key(route, "t", &values.any_old);
    format!(" AND NOT EXISTS (SELECT FROM v AS w WHERE {moving})")
}

/// Before a move: removes the row that holds the new key, where the row to move is there too and
/// is another one. Replaying a transaction that had moved a row and inserted the old key anew
/// depends on this.
///
/// Never a row that the batch itself moves: keys that only the remote's collation holds for equal
/// (a chain from "b" to "C" and from "a" to "B") are not seen as a chain here.
pub(super) fn clear_target(route: &Route, values: &Values) -> String {
    let delete = format!(
        "DELETE FROM {} AS t{} WHERE {} AND NOT ({}) AND {}{}",
        relation(&route.target),
        using_v(values),
        same_key(route, "t", &key_of(route, &values.new)),
        same_key(route, "t", &values.old),
        exists(route, &values.old),
        not_moving(route, values)
    );
    if values.literal {
        return delete;
    }
    let columns = existing_columns(route, &route.key);
    let report = ConflictReport {
        route,
        key: &values.old,
        existing: Some("d"),
        stamp: None,
    };
    let answer = report.answer(ConflictType::UpdateExists, &decision(Decision::Applied));
    let delete = format!("{delete} RETURNING v.ord, {columns}");
    reporting(
        route,
        values,
        &[],
        ("d", delete),
        &format!("SELECT {answer}{}", beside_v(values, "d")),
    )
}
