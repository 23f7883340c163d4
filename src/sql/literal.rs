//! One change as one literal statement, for people: what `sync_err_rec.dst_query` shows.

use super::batch::BatchKind;
use super::dml::same_key;
use super::quote::{literal_or_null, relation};
use super::render::texts;
use super::truncate::truncate;
use super::values::{StampOf, Values, key_of};
use crate::change::{Change, Route, Stamp};
use std::rc::Rc;

/// Runnable SQL that does what delivery of the change does. A move is two statements, separated by
/// a semicolon.
pub fn of_change<S: AsRef<str>>(route: &Rc<Route>, change: &Change<S>) -> String {
    let kind = BatchKind::of(change);
    if kind == BatchKind::Truncate {
        return truncate(std::slice::from_ref(route));
    }
    let quote = |values: &[Option<S>]| -> Vec<String> {
        values
            .iter()
            .map(|v| literal_or_null(v.as_ref().map(AsRef::as_ref)))
            .collect()
    };
    let new = quote(&change.row);
    let old = if change.key.is_empty() {
        key_of(route, &new)
    } else {
        quote(&change.key)
    };
    let stamp_of = |stamp: &Stamp<&str>| StampOf {
        version: literal_or_null(stamp.version),
        rank: stamp.rank.to_string(),
    };
    let borrowed = change.borrowed();
    let own = route.version().map(|at| Stamp {
        version: borrowed.row.get(at).copied().flatten(),
        rank: 0,
    });
    let stamp = borrowed.stamp.as_ref().or(own.as_ref()).map(stamp_of);
    let tombstone = borrowed.tombstone.as_ref().map(stamp_of);
    let any_old = Vec::new();
    let any_new = Vec::new();
    let unchanged = Vec::new();
    let from = None;
    let rows = 1;
    let optimistic = false;
    let literal = true;
    let values = Values {
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
    };
    let texts: Vec<String> = texts(route, kind, &values, None)
        .into_iter()
        .map(|(text, _)| text)
        .collect();
    texts.join("; ")
}

/// A query that answers with a row if there is one with the key that the change gives its row; `None` where
/// keys are compared with operators of their own.
pub fn look_for<S: AsRef<str>>(route: &Route, change: &Change<S>) -> Option<String> {
    if route.compared().next().is_some() {
        return None;
    }
    let key: Vec<String> = change
        .new_key(route)
        .into_iter()
        .map(literal_or_null)
        .collect();
    let condition = same_key(route, "t", &key);
    Some(format!(
        "SELECT 1 FROM {} AS t WHERE {condition}",
        relation(&route.target)
    ))
}
