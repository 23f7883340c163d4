//! Statements that go on over a conflict, and report it.

use super::batch::BatchKind;
use super::conflicts::{ConflictReport, decision};
use super::dml::{
    delete, exists, failing_with, from_v, is_shared, same_key, taken, update, using_v,
};
use super::marks::{EXISTS_MARK, TWICE_MARK};
use super::quote::relation;
use super::reporting::{beside_v, look, reporting, v_without};
use super::upsert::{insert, update_then_insert};
use super::values::{Values, key_of};
use crate::change::{Policy, Route};
use crate::conflict::{ConflictType, Decision};

/// An INSERT that tells of the rows that were there.
pub(super) fn insert_reporting(route: &Route, values: &Values) -> String {
    let key = key_of(route, &values.new);
    // The command tag does not tell rows that were updated from those that were inserted.
    let (decided, by_tag) = match route.policy {
        Policy::Skip => (Decision::Skipped, true),
        _ => (Decision::Applied, !route.can_update()),
    };
    if values.literal || by_tag && values.from.is_none() {
        return insert(route, values, &values.from());
    }
    let report = ConflictReport {
        route,
        key: &key,
        existing: Some("p"),
        stamp: None,
    };
    let answer = report.answer(ConflictType::InsertExists, &decision(decided));
    let conflicts = format!("SELECT {answer}{}", beside_v(values, "p"));
    let mut with = vec![look(route, values, &key)];
    let insert = match route.policy {
        // Items of WITH cannot have a WITH of their own.
        Policy::Overwrite if route.key_deferrable && route.can_update() => {
            let (update, insert) = update_then_insert(route, BatchKind::Update, values);
            with.push(update);
            insert
        }
        _ => insert(route, values, &from_v(values)),
    };
    reporting(
        route,
        values,
        &with,
        ("i", format!("{insert} RETURNING 1")),
        &conflicts,
    )
}

/// An INSERT of rows that should be there, which tells of those that were not.
pub(super) fn insert_missing(route: &Route, values: &Values) -> String {
    let key = key_of(route, &values.new);
    let report = ConflictReport {
        route,
        key: &key,
        existing: None,
        stamp: None,
    };
    let answer = report.answer(ConflictType::UpdateMissing, &decision(Decision::Applied));
    if values.literal || values.from.is_none() {
        return insert(route, values, &values.from());
    }
    let insert = insert(route, values, &from_v(values));
    let conflicts = format!("SELECT {answer}{}", v_without(values, "p"));
    let look = look(route, values, &key);
    reporting(
        route,
        values,
        &[look],
        ("i", format!("{insert} RETURNING 1")),
        &conflicts,
    )
}

/// UPDATE of the rows that are there, each to a key that is free. Where the key is deferrable that may be one
/// that another of the rows gives up.
pub(super) fn update_existing(route: &Route, kind: BatchKind, values: &Values) -> String {
    let at_once = kind == BatchKind::Move && route.key_deferrable && !values.any_old.is_empty();
    let free = match kind {
        BatchKind::Move if at_once => {
            " AND NOT EXISTS (SELECT FROM x WHERE x.ord OPERATOR(pg_catalog.=) v.ord)".to_owned()
        }
        BatchKind::Move => format!(" AND NOT {}", taken(route, values)),
        _ => String::new(),
    };
    if values.literal || values.from.is_none() {
        return update(route, kind, values, values.from(), &free);
    }
    let update = update(
        route,
        kind,
        values,
        from_v(values),
        &format!("{free} RETURNING v.ord"),
    );
    let skipped = decision(Decision::Skipped);
    let new = key_of(route, &values.new);
    let by = |existing, key, kind| {
        ConflictReport {
            route,
            key,
            existing,
            stamp: None,
        }
        .answer(kind, &skipped)
    };
    // A row that is changed twice by one statement is changed once, by whichever change comes first.
    let twice = format!(
        "{} AND {}",
        exists(route, &values.old),
        is_shared(route, &values.old, &values.any_old)
    );
    let twice = format!("WHEN {twice} THEN {}", failing_with(TWICE_MARK));
    if kind == BatchKind::Update {
        let missing = by(None, &values.old[..], ConflictType::UpdateMissing);
        let conflicts = format!(
            "SELECT CASE {twice} ELSE {missing} END{}",
            v_without(values, "u")
        );
        return reporting(route, values, &[], ("u", update), &conflicts);
    }
    // A row that stays where another one of them was to go: they are moved one after the other then.
    let blocks = if at_once {
        format!(
            " WHEN {} AND {} THEN {}",
            exists(route, &values.old),
            is_shared(route, &values.old, &values.any_new),
            failing_with(EXISTS_MARK)
        )
    } else {
        String::new()
    };
    let conflicts = format!(
        "SELECT CASE {twice}{blocks} WHEN {} THEN {} ELSE {} END FROM v LEFT JOIN p ON p.ord OPERATOR(pg_catalog.=) v.ord \
         WHERE NOT EXISTS (SELECT FROM u WHERE u.ord OPERATOR(pg_catalog.=) v.ord)",
        exists(route, &values.old),
        by(Some("p"), &values.old[..], ConflictType::UpdateExists),
        by(Some("p"), &values.old[..], ConflictType::UpdateMissing)
    );
    let mut with = vec![look(route, values, &new)];
    with.extend(at_once.then(|| in_the_way(route, values, &new)));
    reporting(route, values, &with, ("u", update), &conflicts)
}

/// The changes whose new keys are held by rows that none of the changes moves, `x`.
fn in_the_way(route: &Route, values: &Values, new: &[String]) -> String {
    format!(
        "x AS MATERIALIZED (SELECT v.ord FROM v JOIN {} AS t ON {} WHERE NOT ({}) \
         AND NOT EXISTS (SELECT FROM v AS w WHERE {}))",
        relation(&route.target),
        same_key(route, "t", new),
        same_key(route, "t", &values.old),
        same_key(route, "t", &values.any_old)
    )
}

/// DELETE that tells of the rows that were not there.
pub(super) fn delete_reporting(route: &Route, values: &Values) -> String {
    if values.literal || values.from.is_none() {
        return delete(route, values, values.using(), "");
    }
    let report = ConflictReport {
        route,
        key: &values.old,
        existing: None,
        stamp: None,
    };
    let missing = report.answer(ConflictType::DeleteMissing, &decision(Decision::Skipped));
    let delete = delete(route, values, using_v(values), " RETURNING v.ord");
    let conflicts = format!("SELECT {missing}{}", v_without(values, "d"));
    reporting(route, values, &[], ("d", delete), &conflicts)
}
