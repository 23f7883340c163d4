//! Statements that write a row whether it is there or not, and those that move rows to other keys.

use super::batch::Kind;
use super::conflicts::{Told, decision, met_columns};
use super::quote::relation;
use super::statement::{
    assignments, exists, from_v, insert_from, on_conflict, same_key, update, using_v,
};
use super::told::{beside_v, look, number, telling, v_without};
use super::values::{Values, key_of};
use crate::change::Route;
use crate::conflict::{Decision, Kind as Met};

/// UPDATE in place, then INSERT of what was not there. Not one INSERT ... ON CONFLICT: that would
/// ask for every NOT NULL column of the remote table even where the row exists.
pub(super) fn upsert(route: &Route, kind: Kind, values: &Values) -> String {
    let (with, insert) = update_then_insert(route, kind, values);
    if values.from.is_none() {
        return format!("WITH {with} {insert}");
    }
    // What is at the new key of a row that is missing at the old one.
    let (looks, met, from) = match kind {
        Kind::Move => {
            let look = look(route, values, &key_of(route, &values.new));
            (vec![look], Some("p"), " FROM v LEFT JOIN p ON p.ord OPERATOR(pg_catalog.=) v.ord")
        }
        _ => (Vec::new(), None, " FROM v"),
    };
    let told = Told { route, key: &values.old, met, stamp: None };
    let missing = told.answer(Met::UpdateMissing, &decision(Decision::Applied));
    let conflicts = format!(
        "SELECT {missing}{from} WHERE NOT EXISTS (SELECT FROM u WHERE u.ord OPERATOR(pg_catalog.=) v.ord)"
    );
    let with: Vec<String> = looks.into_iter().chain([with]).collect();
    telling(route, values, &with, ("i", format!("{insert} RETURNING 1")), &conflicts)
}

/// The items of an [`upsert`]'s WITH, and its INSERT.
pub(super) fn update_then_insert(route: &Route, kind: Kind, values: &Values) -> (String, String) {
    let returning = format!(" RETURNING {}", number(values));
    let update = update(route, kind, values, from_v(values), &returning);
    let mut with = format!("u AS ({update})");
    let mut missing = v_without(values, "u");
    // Nor may a row be inserted that has moved before: its change is being replayed.
    if kind == Kind::Move && route.key_deferrable {
        let (set, key) = (assignments(route, Kind::Update, values), key_of(route, &values.new));
        let without = |item: &str| {
            let text = v_without(values, item);
            text.trim_start_matches(" FROM v").replacen(" WHERE", " AND", 1)
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

/// That the batch itself does not move the row.
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
    let columns = met_columns(route, &route.key);
    let told = Told { route, key: &values.old, met: Some("d"), stamp: None };
    let answer = told.answer(Met::UpdateExists, &decision(Decision::Applied));
    let delete = format!("{delete} RETURNING v.ord, {columns}");
    telling(route, values, &[], ("d", delete), &format!("SELECT {answer}{}", beside_v(values, "d")))
}
