//! From a batch to the statements that apply it: which one each policy takes for each kind.

use super::batch::{Batch, BatchKind, Elements, Single};
use super::conflicts::Conflicts;
use super::dml::{delete_all, insert_unless_there, update_all};
use super::newest;
use super::param::Param;
use super::reporting::by_command_tag;
use super::statement::Statement;
use super::tolerant::{delete_reporting, insert_missing, insert_reporting, update_existing};
use super::truncate::truncate;
use super::upsert::{clear_target, insert, upsert};
use super::values::Values;
use crate::change::{Policy, Route};
use std::rc::Rc;

/// The statements that apply a batch, in order. `extension`: the schema of the server's own extension, see
/// [`super::newest`].
pub fn of_batch(batch: Batch, extension: Option<&str>) -> Vec<Statement> {
    if batch.kind == BatchKind::Truncate {
        return vec![Statement::plain(truncate(&batch.truncated))];
    }
    if let Some(values) = Values::of_params(&batch) {
        let Single { params, key } = batch.single.unwrap_or_default();
        let key: Vec<Option<&str>> = key.iter().map(Option::as_deref).collect();
        let params: Vec<Param> = params.into_iter().map(Param::from).collect();
        let statement = |(text, conflicts)| Statement::query(text, params.clone(), conflicts);
        let texts = texts(&batch.route, batch.kind, &values, extension);
        let single = |(text, conflicts)| {
            (
                text,
                by_command_tag(&batch.route, batch.kind, conflicts, &key),
            )
        };
        return texts.into_iter().map(single).map(statement).collect();
    }
    let texts = texts(
        &batch.route,
        batch.kind,
        &Values::of_arrays(&batch),
        extension,
    );
    let params = params(batch);
    // Only a move has several statements; all read the same arrays.
    let statement = |(text, conflicts)| Statement::query(text, params.clone(), conflicts);
    texts.into_iter().map(statement).collect()
}

/// The arrays of a batch, in the order in which [`Values::of_arrays`] numbers them.
pub(super) fn params(batch: Batch) -> Vec<Param> {
    let unchanged = batch.unchanged;
    let sent =
        |(at, array): (usize, Elements)| (!unchanged.contains(&(at as u32))).then_some(array);
    let new = batch.new.into_iter().enumerate().filter_map(sent);
    let stamps = batch.stamp.into_iter().chain(batch.tombstone);
    let (versions, ranks): (Vec<_>, Vec<_>) = stamps.map(|[version, rank]| (version, rank)).unzip();
    let stamps = versions
        .into_iter()
        .chain(ranks)
        .map(|array| Param::Text(array.into_text()));
    new.chain(batch.old)
        .map(Elements::into_param)
        .chain(stamps)
        .collect()
}

/// The statements for a route and kind over the given values, and how each tells the conflicts.
pub(super) fn texts(
    route: &Rc<Route>,
    kind: BatchKind,
    values: &Values,
    extension: Option<&str>,
) -> Vec<(String, Conflicts)> {
    let rows = Conflicts::Rows(route.clone());
    let failing = |text| vec![(text, Conflicts::Never)];
    match (kind, route.policy) {
        (BatchKind::Truncate, _) => Vec::new(),
        (_, Policy::Newest(_)) => newest::statements(route, kind, values, extension),
        // Planned under newest only.
        (BatchKind::Swap, _) => Vec::new(),
        (BatchKind::Insert, Policy::Overwrite) if values.optimistic => {
            failing(insert_unless_there(route, values))
        }
        (BatchKind::Insert, Policy::Error) => failing(insert(route, values, &values.from())),
        (BatchKind::Insert, _) => vec![(insert_reporting(route, values), rows)],
        // Nothing that an UPDATE could set, so nothing it could have changed: the row is to be there.
        (BatchKind::Update, Policy::Overwrite) if !route.can_update() => {
            vec![(insert_missing(route, values), rows)]
        }
        (BatchKind::Update, _) if !route.can_update() => Vec::new(),
        // Columns that are not sent cannot be inserted: the row must be there.
        (BatchKind::Update, Policy::Overwrite) if !values.unchanged.is_empty() => {
            failing(update_all(route, kind, values))
        }
        (BatchKind::Update | BatchKind::Move, Policy::Overwrite) if values.optimistic => {
            failing(update_all(route, kind, values))
        }
        (BatchKind::Update, Policy::Overwrite) => vec![(upsert(route, kind, values), rows)],
        (BatchKind::Move, Policy::Overwrite) => {
            vec![
                (clear_target(route, values), rows.clone()),
                (upsert(route, kind, values), rows),
            ]
        }
        (BatchKind::Update | BatchKind::Move, Policy::Skip) => {
            vec![(update_existing(route, kind, values), rows)]
        }
        (BatchKind::Update | BatchKind::Move, Policy::Error) => {
            failing(update_all(route, kind, values))
        }
        (BatchKind::Delete, Policy::Error) => failing(delete_all(route, values)),
        // Of a single row the command tag tells as much.
        (BatchKind::Delete, Policy::Overwrite) if values.optimistic && values.from.is_some() => {
            failing(delete_all(route, values))
        }
        (BatchKind::Delete, _) => vec![(delete_reporting(route, values), rows)],
    }
}
