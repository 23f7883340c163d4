//! One change as one literal statement, for people: what `sync_err_rec.dst_query` shows.

use super::batch::Kind;
use super::quote::literal_or_null;
use super::statement::{texts, truncate};
use super::values::{Values, key_of};
use crate::change::{Change, Policy, Route};
use std::rc::Rc;

/// Runnable SQL that does what delivery of the change does. A move is two statements, separated by
/// a semicolon.
pub fn of_change<S: AsRef<str>>(route: &Rc<Route>, change: &Change<S>) -> String {
    let kind = Kind::of(change);
    if kind == Kind::Truncate {
        return truncate(std::slice::from_ref(route));
    }
    let quote = |values: &[Option<S>]| -> Vec<String> {
        values.iter().map(|v| literal_or_null(v.as_ref().map(AsRef::as_ref))).collect()
    };
    let new = quote(&change.row);
    let old = if change.key.is_empty() { key_of(route, &new) } else { quote(&change.key) };
    let seen = matches!(route.policy, Policy::Newest(_))
        .then(|| literal_or_null(change.seen.as_ref().map(AsRef::as_ref)));
    let (any_old, unchanged) = (Vec::new(), Vec::new());
    let (from, rows, optimistic, literal) = (None, 1, false, true);
    let values = Values { new, old, any_old, seen, from, rows, unchanged, optimistic, literal };
    let texts: Vec<String> =
        texts(route, kind, &values).into_iter().map(|(text, _)| text).collect();
    texts.join("; ")
}
