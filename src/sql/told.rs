//! Statements that tell of the conflicts they meet and go on: over arrays they answer with a row for each,
//! over the parameters of a single row by their command tag. Over literals (for people) they only do what
//! they do.

use super::batch::Kind;
use super::conflicts::{Conflicts, Told, conflict_of, decision, met_columns, single};
use super::quote::relation;
use super::statement::{
    TWICE_MARK, delete, exists, failing_with, from_v, insert, is_shared, same_key, taken, update,
    using_v, with_v,
};
use super::upsert::update_then_insert;
use super::values::{Values, key_of};
use crate::change::{Policy, Route};
use crate::conflict::{Decision, Kind as Met};
use std::rc::Rc;

/// How a statement over the parameters of a single row tells: it has one conflict or none, and where
/// [`texts`] lets it, the command tag says which.
pub(super) fn told_by_tag(
    route: &Rc<Route>,
    kind: Kind,
    told: Conflicts,
    key: &[Option<&str>],
) -> Conflicts {
    let decision = match route.policy {
        Policy::Overwrite if kind != Kind::Delete => Decision::Applied,
        _ => Decision::Skipped,
    };
    match (&told, kind, route.policy) {
        (Conflicts::Never, _, _) => told,
        // An upsert affects a row whether it was there or not, so it looks for it before.
        (_, Kind::Insert, Policy::Overwrite) if route.can_update() => told,
        // What the UPDATE does not find the INSERT that follows does affect.
        _ => {
            let mut conflict = conflict_of(route, single(kind), decision, key);
            if kind == Kind::Insert {
                conflict.server_key = conflict.key.clone();
            }
            let if_affected = kind == Kind::Update && route.policy == Policy::Overwrite;
            Conflicts::Single(route.clone(), Box::new(conflict), if_affected)
        }
    }
}

/// A statement that answers with a row for each conflict. `with`: items of its WITH beside the change.
pub(super) fn telling(
    route: &Route,
    values: &Values,
    with: &[String],
    (name, change): (&str, String),
    conflicts: &str,
) -> String {
    let change = format!("{name} AS ({change})");
    let items: Vec<&str> = with.iter().map(String::as_str).chain([change.as_str()]).collect();
    format!("WITH {}{} {conflicts}", with_v(route, values), items.join(", "))
}

/// The rows that are there with a key of the changes, `p`.
pub(super) fn look(route: &Route, values: &Values, key: &[String]) -> String {
    let columns = met_columns(route, &route.key);
    let condition = same_key(route, "t", key);
    let (ord, join) = match values.from {
        Some(_) => ("v.ord, ", format!("v JOIN {} AS t ON {condition}", relation(&route.target))),
        None => ("", format!("{} AS t WHERE {condition}", relation(&route.target))),
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

/// An INSERT that tells of the rows that were there.
pub(super) fn insert_told(route: &Route, values: &Values) -> String {
    let key = key_of(route, &values.new);
    // The command tag does not tell rows that were updated from those that were inserted.
    let (decided, by_tag) = match route.policy {
        Policy::Skip => (Decision::Skipped, true),
        _ => (Decision::Applied, !route.can_update()),
    };
    if values.literal || by_tag && values.from.is_none() {
        return insert(route, values, &values.from());
    }
    let told = Told { route, key: &key, met: Some("p"), stamp: None };
    let answer = told.answer(Met::InsertExists, &decision(decided));
    let conflicts = format!("SELECT {answer}{}", beside_v(values, "p"));
    let mut with = vec![look(route, values, &key)];
    let insert = match route.policy {
        // Items of WITH cannot have a WITH of their own.
        Policy::Overwrite if route.key_deferrable && route.can_update() => {
            let (update, insert) = update_then_insert(route, Kind::Update, values);
            with.push(update);
            insert
        }
        _ => insert(route, values, &from_v(values)),
    };
    telling(route, values, &with, ("i", format!("{insert} RETURNING 1")), &conflicts)
}

/// An INSERT of rows that should be there, which tells of those that were not.
pub(super) fn insert_missing(route: &Route, values: &Values) -> String {
    let key = key_of(route, &values.new);
    let told = Told { route, key: &key, met: None, stamp: None };
    let answer = told.answer(Met::UpdateMissing, &decision(Decision::Applied));
    if values.literal || values.from.is_none() {
        return insert(route, values, &values.from());
    }
    let insert = insert(route, values, &from_v(values));
    let conflicts = format!("SELECT {answer}{}", v_without(values, "p"));
    let look = look(route, values, &key);
    telling(route, values, &[look], ("i", format!("{insert} RETURNING 1")), &conflicts)
}

/// UPDATE of the rows that are there, each to a key that is free.
pub(super) fn update_there(route: &Route, kind: Kind, values: &Values) -> String {
    let free = match kind {
        Kind::Move => format!(" AND NOT {}", taken(route, values)),
        _ => String::new(),
    };
    if values.literal || values.from.is_none() {
        return update(route, kind, values, values.from(), &free);
    }
    let update = update(route, kind, values, from_v(values), &format!("{free} RETURNING v.ord"));
    let skipped = decision(Decision::Skipped);
    let new = key_of(route, &values.new);
    let by = |met, key, kind| Told { route, key, met, stamp: None }.answer(kind, &skipped);
    // A row that is changed twice by one statement is changed once, by whichever change comes first.
    let twice = format!(
        "{} AND {}",
        exists(route, &values.old),
        is_shared(route, &values.old, &values.any_old)
    );
    let twice = format!("WHEN {twice} THEN {}", failing_with(TWICE_MARK));
    if kind == Kind::Update {
        let missing = by(None, &values.old[..], Met::UpdateMissing);
        let conflicts = format!("SELECT CASE {twice} ELSE {missing} END{}", v_without(values, "u"));
        return telling(route, values, &[], ("u", update), &conflicts);
    }
    let conflicts = format!(
        "SELECT CASE {twice} WHEN {} THEN {} ELSE {} END FROM v LEFT JOIN p ON p.ord OPERATOR(pg_catalog.=) v.ord \
         WHERE NOT EXISTS (SELECT FROM u WHERE u.ord OPERATOR(pg_catalog.=) v.ord)",
        exists(route, &values.old),
        by(Some("p"), &values.old[..], Met::UpdateExists),
        by(Some("p"), &values.old[..], Met::UpdateMissing)
    );
    telling(route, values, &[look(route, values, &new)], ("u", update), &conflicts)
}

/// DELETE that tells of the rows that were not there.
pub(super) fn delete_told(route: &Route, values: &Values) -> String {
    if values.literal || values.from.is_none() {
        return delete(route, values, values.using(), "");
    }
    let told = Told { route, key: &values.old, met: None, stamp: None };
    let missing = told.answer(Met::DeleteMissing, &decision(Decision::Skipped));
    let delete = delete(route, values, using_v(values), " RETURNING v.ord");
    let conflicts = format!("SELECT {missing}{}", v_without(values, "d"));
    telling(route, values, &[], ("d", delete), &conflicts)
}
