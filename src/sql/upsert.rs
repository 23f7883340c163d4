//! Statements that write a row whether it is there or not, and those that move rows to other keys.

use super::batch::Kind;
use super::conflicts::Conflicts;
use super::quote::relation;
use super::statement::{
    assignments, exists, exists_new, from_v, insert, insert_from, newer, on_conflict, same_key,
    taken, update, using_v, with_v,
};
use super::values::{Values, key_of};
use crate::change::{Policy, Route};

/// UPDATE in place, then INSERT of what was not there. Not one INSERT ... ON CONFLICT: that would
/// ask for every NOT NULL column of the remote table even where the row exists.
pub(super) fn upsert(route: &Route, kind: Kind, values: &Values) -> String {
    let (with, insert) = update_then_insert(route, kind, values);
    format!("WITH {with} {insert}")
}

/// [`upsert`] where the rows that it inserts are not all that it did not find as expected: some have won,
/// or were at their new key. The command tag would not tell of those.
pub(super) fn upsert_told(route: &Route, kind: Kind, values: &Values) -> (String, Conflicts) {
    let (with, insert) = update_then_insert(route, kind, values);
    match values.from {
        Some(_) => (
            format!(
                "WITH {with}, i AS ({insert}) \
                 SELECT {} OPERATOR(pg_catalog.-) pg_catalog.count(*) FROM u",
                values.rows
            ),
            Conflicts::Answered,
        ),
        // Literals are for people.
        None => (format!("WITH {with} {insert}"), Conflicts::Never),
    }
}

/// The items of an [`upsert`]'s WITH, and its INSERT.
fn update_then_insert(route: &Route, kind: Kind, values: &Values) -> (String, String) {
    let is_newest = matches!(route.policy, Policy::Newest(_));
    let newest = match is_newest {
        true => format!(" AND {}", newer(route, &values.new)),
        false => String::new(),
    };
    let (returning, missing) = match values.from {
        Some(_) => {
            (" RETURNING v.ord", " FROM v WHERE NOT EXISTS (SELECT FROM u WHERE u.ord = v.ord)")
        }
        None => (" RETURNING 1", " WHERE NOT EXISTS (SELECT FROM u)"),
    };
    // Without ON CONFLICT a row that is there and newer must be left out here.
    let missing = match is_newest && route.key_deferrable {
        true => format!("{missing} AND NOT {}", exists_new(route, values)),
        false => missing.to_owned(),
    };
    let update = update(route, kind, values, from_v(values), &format!("{newest}{returning}"));
    let mut with = format!("{}u AS ({update})", with_v(values));
    let mut missing = missing;
    // Nor may a row be inserted that has moved before: its change is being replayed.
    if kind == Kind::Move && route.key_deferrable {
        let (set, key) = (assignments(route, Kind::Update, values), key_of(route, &values.new));
        let (and, moved) = match values.from {
            Some(_) => (
                " AND NOT EXISTS (SELECT FROM u WHERE u.ord = v.ord)",
                " AND NOT EXISTS (SELECT FROM n WHERE n.ord = v.ord)",
            ),
            None => (" AND NOT EXISTS (SELECT FROM u)", " AND NOT EXISTS (SELECT FROM n)"),
        };
        with.push_str(&format!(
            ", n AS (UPDATE {} AS t SET {set}{} WHERE {}{and}{returning})",
            relation(&route.target),
            from_v(values),
            same_key(route, "t", &key)
        ));
        missing.push_str(moved);
    }
    let insert = insert_from(route, values, &missing);
    (with, format!("{insert}{}", on_conflict(route, false)))
}

/// Before a move: removes the row that holds the new key, where the row to move is there too and
/// is another one. Replaying a transaction that had moved a row and inserted the old key anew
/// depends on this.
///
/// Never a row that the batch itself moves: keys that only the remote's collation holds for equal
/// (a chain from "b" to "C" and from "a" to "B") are not seen as a chain here.
pub(super) fn clear_target(route: &Route, values: &Values) -> String {
    let not_moving = match values.any_old.is_empty() {
        true => String::new(),
        false => {
            let moving = same_key(route, "t", &values.any_old);
            format!(" AND NOT EXISTS (SELECT FROM v AS w WHERE {moving})")
        }
    };
    let with = with_v(values);
    format!(
        "{}DELETE FROM {} AS t{} WHERE {} AND NOT ({}) AND {}{not_moving}",
        with.strip_suffix(", ").map(|v| format!("WITH {v} ")).unwrap_or_default(),
        relation(&route.target),
        using_v(values),
        same_key(route, "t", &key_of(route, &values.new)),
        same_key(route, "t", &values.old),
        exists(route, &values.old)
    )
}

/// A move under `newest`: in place where the old row is older and the new key free; else the old row
/// goes if it is older, and the new key takes the row if what it holds is older. A newer row at the
/// old key stays: on the node that wrote it, this change finds it newer too.
pub(super) fn move_newest(route: &Route, values: &Values) -> Vec<(String, Conflicts)> {
    let newer = newer(route, &values.new);
    let new_key = key_of(route, &values.new);
    let free = format!(" AND {newer} AND NOT {}", taken(route, values));
    let vacate = format!(
        "DELETE FROM {} AS t{} WHERE {} AND NOT ({}) AND {newer}",
        relation(&route.target),
        values.using(),
        same_key(route, "t", &values.old),
        same_key(route, "t", &new_key),
    );
    vec![
        // What it does not move is a conflict, whatever the others make of it.
        (
            update(route, Kind::Move, values, values.from(), &free),
            Conflicts::Short(values.rows as u64),
        ),
        (vacate, Conflicts::Never),
        (insert(route, values, false), Conflicts::Never),
    ]
}
