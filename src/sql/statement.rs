//! The statements themselves: one per policy and kind, over values that come either from arrays of
//! parameters (a batch) or from literals (one change).

use super::batch::{Batch, Kind, Single};
use super::conflicts::{Conflicts, Told, conflict_of, decision, met_column, single};
use super::newest;
use super::quote::{ArrayLiteral, ident, literal, relation};
use super::upsert::{clear_target, update_then_insert, upsert};
use super::values::{Values, key_of};
use crate::change::{Policy, Route};
use crate::conflict::{Decision, Kind as Met};
use std::rc::Rc;

/// Begins the text of the cast error that an `error` policy provokes when rows are missing; the
/// only way to fail a pipeline from plain SQL. Delivery turns it into P0002.
pub const MISSING_MARK: &str = "pg_rowsync: rows found: ";

/// A statement and its text-format parameters, types to be inferred by the server.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    pub text: String,
    /// `None` is NULL.
    pub params: Vec<Option<String>>,
    /// How its answer tells the conflicts.
    pub conflicts: Conflicts,
}

impl Statement {
    /// One without parameters, not about rows.
    pub fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), params: Vec::new(), conflicts: Conflicts::Never }
    }

    /// About how many bytes it takes to send.
    pub fn size(&self) -> usize {
        self.text.len() + self.params.iter().flatten().map(String::len).sum::<usize>()
    }
}

/// The statements that apply a batch, in order. `home`: the schema of the server's own extension, see
/// [`super::newest`].
pub fn of_batch(batch: Batch, home: Option<&str>) -> Vec<Statement> {
    if batch.kind == Kind::Truncate {
        return vec![Statement::plain(truncate(&batch.truncated))];
    }
    if let Some(values) = Values::of_params(&batch) {
        let Single { params, key } = batch.single.unwrap_or_default();
        let key: Vec<Option<&str>> = key.iter().map(Option::as_deref).collect();
        let statement = |(text, conflicts)| Statement { text, params: params.clone(), conflicts };
        let texts = texts(&batch.route, batch.kind, &values, home);
        let single = |(text, told)| (text, told_by_tag(&batch.route, batch.kind, told, &key));
        return texts.into_iter().map(single).map(statement).collect();
    }
    let texts = texts(&batch.route, batch.kind, &Values::of_arrays(&batch), home);
    let unchanged = batch.unchanged;
    let sent =
        |(at, array): (usize, ArrayLiteral)| (!unchanged.contains(&(at as u32))).then_some(array);
    let new = batch.new.into_iter().enumerate().filter_map(sent);
    let stamps = batch.stamp.into_iter().chain(batch.gone);
    let (versions, ranks): (Vec<_>, Vec<_>) = stamps.map(|[version, rank]| (version, rank)).unzip();
    let arrays = new.chain(batch.old).chain(versions).chain(ranks);
    let params: Vec<Option<String>> = arrays.map(|array| Some(array.into_text())).collect();
    // Only a move has several statements; all read the same arrays.
    let statement = |(text, conflicts)| Statement { text, params: params.clone(), conflicts };
    texts.into_iter().map(statement).collect()
}

/// The statements for a route and kind over the given values, and how each tells the conflicts.
pub(super) fn texts(
    route: &Rc<Route>,
    kind: Kind,
    values: &Values,
    home: Option<&str>,
) -> Vec<(String, Conflicts)> {
    let told = Conflicts::Told(route.clone());
    let failing = |text| vec![(text, Conflicts::Never)];
    match (kind, route.policy) {
        (Kind::Truncate, _) => Vec::new(),
        (_, Policy::Newest(_)) => vec![newest::statement(route, kind, values, home)],
        (Kind::Insert, Policy::Overwrite) if values.optimistic => {
            failing(insert_from(route, values, &values.from()))
        }
        (Kind::Insert, Policy::Error) => failing(insert(route, values)),
        (Kind::Insert, _) => vec![(insert_told(route, values), told)],
        // Nothing that an UPDATE could set, so nothing it could have changed: the row is to be there.
        (Kind::Update, Policy::Overwrite) if !route.can_update() => {
            vec![(insert_missing(route, values), told)]
        }
        (Kind::Update, _) if !route.can_update() => Vec::new(),
        // Columns that are not sent cannot be inserted: the row must be there.
        (Kind::Update, Policy::Overwrite) if !values.unchanged.is_empty() => {
            failing(update_all(route, kind, values))
        }
        (Kind::Update | Kind::Move, Policy::Overwrite) if values.optimistic => {
            failing(update_all(route, kind, values))
        }
        (Kind::Update, Policy::Overwrite) => vec![(upsert(route, kind, values), told)],
        (Kind::Move, Policy::Overwrite) => {
            vec![(clear_target(route, values), told.clone()), (upsert(route, kind, values), told)]
        }
        (Kind::Update | Kind::Move, Policy::Skip) => {
            vec![(update_there(route, kind, values), told)]
        }
        (Kind::Update | Kind::Move, Policy::Error) => failing(update_all(route, kind, values)),
        (Kind::Delete, Policy::Error) => {
            failing(all_found(values, &delete(route, values, using_v(values), " RETURNING 1")))
        }
        (Kind::Delete, _) => vec![(delete_told(route, values), told)],
    }
}

/// How a statement over the parameters of a single row tells: it has one conflict or none, and where
/// [`texts`] lets it, the command tag says which.
fn told_by_tag(route: &Rc<Route>, kind: Kind, told: Conflicts, key: &[Option<&str>]) -> Conflicts {
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
            let conflict = conflict_of(route, single(kind), decision, key);
            let if_affected = kind == Kind::Update && route.policy == Policy::Overwrite;
            Conflicts::Single(route.clone(), Box::new(conflict), if_affected)
        }
    }
}

/// A statement that answers with a row for each conflict. `with`: items of its WITH beside the change.
pub(super) fn telling(
    values: &Values,
    with: &[String],
    (name, change): (&str, String),
    conflicts: &str,
) -> String {
    let change = format!("{name} AS ({change})");
    let items: Vec<&str> = with.iter().map(String::as_str).chain([change.as_str()]).collect();
    format!("WITH {}{} {conflicts}", with_v(values), items.join(", "))
}

/// The rows that are there with a key of the changes, `p`.
fn look(route: &Route, values: &Values, key: &[String]) -> String {
    let columns: Vec<String> = (route.key.iter())
        .map(|at| format!("t.{} AS {}", ident(&route.columns[*at].name), met_column(*at)))
        .collect();
    let condition = same_key(route, "t", key);
    let (ord, join) = match values.from {
        Some(_) => ("v.ord, ", format!("v JOIN {} AS t ON {condition}", relation(&route.target))),
        None => ("", format!("{} AS t WHERE {condition}", relation(&route.target))),
    };
    format!("p AS MATERIALIZED (SELECT {ord}{} FROM {join})", columns.join(", "))
}

/// A FROM clause of the rows of an item that has their numbers, beside the changes they are of.
pub(super) fn beside_v(values: &Values, item: &str) -> String {
    match values.from {
        Some(_) => format!(" FROM v JOIN {item} ON {item}.ord = v.ord"),
        None => format!(" FROM {item}"),
    }
}

/// A FROM clause of the changes whose numbers an item has not.
pub(super) fn v_without(values: &Values, item: &str) -> String {
    match values.from {
        Some(_) => {
            format!(" FROM v WHERE NOT EXISTS (SELECT FROM {item} WHERE {item}.ord = v.ord)")
        }
        None => format!(" WHERE NOT EXISTS (SELECT FROM {item})"),
    }
}

/// The number of a change, for RETURNING.
pub(super) fn number(values: &Values) -> &'static str {
    if values.from.is_some() { "v.ord" } else { "1" }
}

/// An INSERT that tells of the rows that were there.
fn insert_told(route: &Route, values: &Values) -> String {
    let key = key_of(route, &values.new);
    // The command tag does not tell rows that were updated from those that were inserted.
    let (decided, by_tag) = match route.policy {
        Policy::Skip => (Decision::Skipped, true),
        _ => (Decision::Applied, !route.can_update()),
    };
    if values.literal || by_tag && values.from.is_none() {
        return insert(route, values);
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
        _ => insert(route, values),
    };
    telling(values, &with, ("i", format!("{insert} RETURNING 1")), &conflicts)
}

/// An INSERT of rows that should be there, which tells of those that were not.
fn insert_missing(route: &Route, values: &Values) -> String {
    let key = key_of(route, &values.new);
    let told = Told { route, key: &key, met: None, stamp: None };
    let answer = told.answer(Met::UpdateMissing, &decision(Decision::Applied));
    let insert = insert(route, values);
    if values.literal || values.from.is_none() {
        return insert;
    }
    let conflicts = format!("SELECT {answer}{}", v_without(values, "p"));
    let look = look(route, values, &key);
    telling(values, &[look], ("i", format!("{insert} RETURNING 1")), &conflicts)
}

/// UPDATE of the rows that are there, each to a key that is free.
fn update_there(route: &Route, kind: Kind, values: &Values) -> String {
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
    let missing = by(None, &values.old[..], Met::UpdateMissing);
    if kind == Kind::Update {
        let conflicts = format!("SELECT {missing}{}", v_without(values, "u"));
        return telling(values, &[], ("u", update), &conflicts);
    }
    let conflicts = format!(
        "SELECT CASE WHEN {} THEN {} ELSE {missing} END FROM v LEFT JOIN p ON p.ord = v.ord \
         WHERE NOT EXISTS (SELECT FROM u WHERE u.ord = v.ord)",
        exists(route, &values.old),
        by(Some("p"), &new[..], Met::UpdateExists)
    );
    telling(values, &[look(route, values, &new)], ("u", update), &conflicts)
}

/// DELETE that tells of the rows that were not there.
fn delete_told(route: &Route, values: &Values) -> String {
    if values.literal || values.from.is_none() {
        return delete(route, values, values.using(), "");
    }
    let told = Told { route, key: &values.old, met: None, stamp: None };
    let missing = told.answer(Met::DeleteMissing, &decision(Decision::Skipped));
    let delete = delete(route, values, using_v(values), " RETURNING v.ord");
    let conflicts = format!("SELECT {missing}{}", v_without(values, "d"));
    telling(values, &[], ("d", delete), &conflicts)
}

/// TRUNCATE of the routes' targets, each once.
pub(super) fn truncate(routes: &[Rc<Route>]) -> String {
    let mut tables: Vec<String> = Vec::new();
    for route in routes {
        let only = if route.truncate_children { "" } else { "ONLY " };
        let table = format!("{only}{}", relation(&route.target));
        if !tables.contains(&table) {
            tables.push(table);
        }
    }
    format!("TRUNCATE TABLE {}", tables.join(", "))
}

/// An INSERT under the route's policy. Where the remote's key may be deferrable no ON CONFLICT can
/// rely on it: rows that are there are looked for instead.
pub(super) fn insert(route: &Route, values: &Values) -> String {
    match route.policy {
        _ if !route.key_deferrable => {
            format!("{}{}", insert_from(route, values, &values.from()), on_conflict(route))
        }
        Policy::Error => insert_from(route, values, &values.from()),
        Policy::Overwrite | Policy::Newest(_) if route.can_update() => {
            let (with, insert) = update_then_insert(route, Kind::Update, values);
            format!("WITH {}{with} {insert}", with_v(values))
        }
        Policy::Skip | Policy::Overwrite | Policy::Newest(_) => {
            let free = format!("{} WHERE NOT {}", values.from(), exists_new(route, values));
            insert_from(route, values, &free)
        }
    }
}

/// Whether another row holds the new key. A key that is only written differently (1.0 and 1.00) is
/// the row's own.
pub(super) fn taken(route: &Route, values: &Values) -> String {
    format!(
        "EXISTS (SELECT FROM {} AS o WHERE {} AND NOT ({}))",
        relation(&route.target),
        same_key(route, "o", &key_of(route, &values.new)),
        same_key(route, "o", &values.old)
    )
}

pub(super) fn exists_new(route: &Route, values: &Values) -> String {
    exists(route, &key_of(route, &values.new))
}

/// An UPDATE that fails unless it finds every row.
fn update_all(route: &Route, kind: Kind, values: &Values) -> String {
    all_found(values, &update(route, kind, values, from_v(values), " RETURNING 1"))
}

pub(super) fn insert_from(route: &Route, values: &Values, from: &str) -> String {
    let columns: Vec<String> = route.columns.iter().map(|c| ident(&c.name)).collect();
    format!(
        "INSERT INTO {} AS t ({}) OVERRIDING SYSTEM VALUE SELECT {}{from}",
        relation(&route.target),
        columns.join(", "),
        values.new.join(", ")
    )
}

/// What an INSERT does with a row that is there already.
pub(super) fn on_conflict(route: &Route) -> String {
    if route.key_deferrable || route.policy == Policy::Error {
        return String::new();
    }
    let key: Vec<String> = route.key.iter().map(|at| ident(&route.columns[*at].name)).collect();
    let set: Vec<String> = route
        .settable()
        .map(|at| ident(&route.columns[at].name))
        .map(|name| format!("{name} = excluded.{name}"))
        .collect();
    let update = match route.policy {
        Policy::Overwrite if !set.is_empty() => format!("UPDATE SET {}", set.join(", ")),
        _ => "NOTHING".to_owned(),
    };
    format!(" ON CONFLICT ({}) DO {update}", key.join(", "))
}

/// UPDATE of the rows at the old key, with the caller's FROM and tail.
pub(super) fn update(
    route: &Route,
    kind: Kind,
    values: &Values,
    from: String,
    tail: &str,
) -> String {
    format!(
        "UPDATE {} AS t SET {}{from} WHERE {}{tail}",
        relation(&route.target),
        assignments(route, kind, values),
        same_key(route, "t", &values.old)
    )
}

/// What an UPDATE sets.
pub(super) fn assignments(route: &Route, kind: Kind, values: &Values) -> String {
    let at: Vec<usize> = match kind {
        Kind::Move => (0..route.columns.len()).filter(|at| !route.columns[*at].fixed).collect(),
        _ => route.settable().filter(|at| !values.unchanged.contains(&(*at as u32))).collect(),
    };
    // A table that is all key has nothing to set; setting its key to itself still finds the row.
    let at = if at.is_empty() { route.settable_key().collect() } else { at };
    let set: Vec<String> = at
        .into_iter()
        .map(|i| format!("{} = {}", ident(&route.columns[i].name), values.new[i]))
        .collect();
    set.join(", ")
}

fn delete(route: &Route, values: &Values, using: String, tail: &str) -> String {
    format!(
        "DELETE FROM {} AS t{using} WHERE {}{tail}",
        relation(&route.target),
        same_key(route, "t", &values.old)
    )
}

/// Wraps a data-modifying statement that returns a row per row it found: fails unless it found
/// every one.
fn all_found(values: &Values, inner: &str) -> String {
    format!(
        "WITH {}u AS ({inner}) SELECT CASE WHEN pg_catalog.count(*) = {} THEN 0 \
         ELSE ({} OPERATOR(pg_catalog.||) pg_catalog.count(*))::pg_catalog.int4 END FROM u",
        with_v(values),
        values.rows,
        literal(MISSING_MARK)
    )
}

pub(super) fn exists(route: &Route, key: &[String]) -> String {
    format!(
        "EXISTS (SELECT FROM {} AS o WHERE {})",
        relation(&route.target),
        same_key(route, "o", key)
    )
}

pub(super) fn same_key(route: &Route, table: &str, key: &[String]) -> String {
    let terms: Vec<String> = route
        .key
        .iter()
        .zip(key)
        .map(|(at, value)| format!("{table}.{} = {value}", ident(&route.columns[*at].name)))
        .collect();
    terms.join(" AND ")
}

pub(super) fn with_v(values: &Values) -> String {
    values
        .from
        .as_ref()
        .map(|item| format!("v AS MATERIALIZED (SELECT * FROM {item}), "))
        .unwrap_or_default()
}

pub(super) fn from_v(values: &Values) -> String {
    values.from.as_ref().map(|_| " FROM v".to_owned()).unwrap_or_default()
}

pub(super) fn using_v(values: &Values) -> String {
    values.from.as_ref().map(|_| " USING v".to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::literal;
    use super::*;
    use crate::change::{Carrier, Change, Column, Op, Relation};

    fn column(name: &str, carrier: Carrier) -> Column {
        Column {
            name: name.into(),
            carrier,
            fixed: false,
            own_equality: false,
            collated: false,
            local: None,
        }
    }

    fn route(policy: Policy) -> Rc<Route> {
        let name = |t: &str| Relation { schema: "s".into(), table: t.into() };
        Rc::new(Route {
            source: name("l"),
            target: name("t"),
            columns: vec![
                column("id", Carrier::Element),
                column("v", Carrier::Element),
                column("a", Carrier::Array("_int4".into())),
            ],
            key: vec![0],
            key_deferrable: false,
            key_exact: true,
            policy,
            truncate_children: false,
            application_name: None,
        })
    }

    fn change<'a>(op: Op, key: &[&'a str], row: &[Option<&'a str>]) -> Change<&'a str> {
        let key = key.iter().copied().map(Some).collect();
        Change {
            op,
            command: 0,
            key,
            row: row.to_vec(),
            stamp: None,
            gone: None,
            unchanged: vec![],
            stored: (0, 0),
        }
    }

    #[test]
    fn a_batch_of_inserts_is_one_upsert_over_typed_arrays() {
        let mut batch = Batch::new(route(Policy::Overwrite), Kind::Insert);
        batch.push(&change(Op::Insert, &[], &[Some("1"), Some("x"), Some("{1,2}")]));
        batch.push(&change(Op::Insert, &[], &[Some("2"), None, None]));
        let statements = of_batch(batch);
        assert_eq!(statements.len(), 1);
        assert_eq!(
            statements[0].text.replace(&format!(" WHERE {NOTE}"), ""),
            "INSERT INTO \"s\".\"t\" AS t (\"id\", \"v\", \"a\") OVERRIDING SYSTEM VALUE \
             SELECT v.n0, v.n1, v.n2::pg_catalog.\"_int4\" \
             FROM ROWS FROM (\
             pg_catalog.unnest(COALESCE($1, ARRAY[(NULL::\"s\".\"t\").\"id\"])), \
             pg_catalog.unnest(COALESCE($2, ARRAY[(NULL::\"s\".\"t\").\"v\"])), \
             pg_catalog.unnest($3::pg_catalog.text[])) WITH ORDINALITY AS v(n0, n1, n2, ord) \
             ON CONFLICT (\"id\") DO UPDATE SET \"v\" = excluded.\"v\", \"a\" = excluded.\"a\""
        );
        let params: Vec<&str> = statements[0].params.iter().flatten().map(|p| &**p).collect();
        assert_eq!(params, [r#"{"1","2"}"#, r#"{"x",NULL}"#, r#"{"{1,2}",NULL}"#]);
    }

    #[test]
    fn a_single_row_of_plain_types_needs_no_arrays() {
        let mut plain = (*route(Policy::Overwrite)).clone();
        plain.columns.pop();
        let mut batch = Batch::new(Rc::new(plain), Kind::Update);
        batch.push(&change(Op::Update, &[], &[Some("1"), None]));
        let statements = of_batch(batch.clone());
        assert_eq!(
            statements[0].text,
            "WITH u AS (UPDATE \"s\".\"t\" AS t SET \"v\" = $2 WHERE t.\"id\" = $1 RETURNING 1) \
             INSERT INTO \"s\".\"t\" AS t (\"id\", \"v\") OVERRIDING SYSTEM VALUE SELECT $1, $2 \
             WHERE NOT EXISTS (SELECT FROM u) ON CONFLICT (\"id\") DO UPDATE SET \"v\" = excluded.\"v\""
        );
        assert_eq!(statements[0].params, [Some("1".to_owned()), None]);
        batch.push(&change(Op::Update, &[], &[Some("2"), Some("x")]));
        assert!(of_batch(batch)[0].text.contains("unnest"));
    }

    #[test]
    fn a_move_clears_its_target_first_and_is_never_a_delete_of_the_row_itself() {
        let mut batch = Batch::new(route(Policy::Overwrite), Kind::Move);
        batch.push(&change(Op::Update, &["1"], &[Some("2"), Some("x"), None]));
        let statements = of_batch(batch);
        assert_eq!(statements.len(), 2);
        assert!(statements[0].text.contains("DELETE FROM \"s\".\"t\" AS t USING v WHERE"));
        assert!(statements[0].text.contains("AND NOT (t.\"id\" = v.k0)"));
        assert!(statements[1].text.contains("UPDATE \"s\".\"t\" AS t SET \"id\" = v.n0"));
        assert_eq!(statements[0].params, statements[1].params);
    }

    #[test]
    fn the_literal_of_a_change_says_what_its_batch_does() {
        let route = route(Policy::Overwrite);
        let insert = change(Op::Insert, &[], &[Some("1"), Some("it's"), None]);
        assert_eq!(
            literal::of_change(&route, &insert),
            "INSERT INTO \"s\".\"t\" AS t (\"id\", \"v\", \"a\") OVERRIDING SYSTEM VALUE \
             SELECT '1', 'it''s', NULL \
             ON CONFLICT (\"id\") DO UPDATE SET \"v\" = excluded.\"v\", \"a\" = excluded.\"a\""
        );
        let delete = change(Op::Delete, &["7"], &[]);
        assert_eq!(
            literal::of_change(&route, &delete),
            "DELETE FROM \"s\".\"t\" AS t WHERE t.\"id\" = '7'"
        );
    }

    /// How the statements of a batch of one change tell the conflicts.
    fn told(policy: Policy, change: &Change<&str>, optimistic: bool) -> Vec<Conflicts> {
        let mut batch = Batch::new(route(policy), Kind::of(change));
        batch.optimistic = optimistic;
        batch.push(change);
        of_batch(batch).into_iter().map(|s| s.conflicts).collect()
    }

    #[test]
    fn every_statement_that_lets_conflicts_pass_tells_of_them() {
        use Conflicts::{Affected, Answered, Never, Noted, Short};
        let row = [Some("2"), Some("x"), None];
        let insert = change(Op::Insert, &[], &row);
        let update = change(Op::Update, &[], &row);
        let moved = change(Op::Update, &["1"], &row);
        let delete = change(Op::Delete, &["1"], &[]);
        let newest = Policy::Newest(1);
        for (policy, change, expected) in [
            (Policy::Overwrite, &insert, vec![Noted]),
            (Policy::Overwrite, &update, vec![Affected]),
            (Policy::Overwrite, &moved, vec![Affected, Affected]),
            (Policy::Overwrite, &delete, vec![Short(1)]),
            (Policy::Skip, &insert, vec![Short(1)]),
            (Policy::Skip, &update, vec![Short(1)]),
            (Policy::Skip, &moved, vec![Short(1)]),
            (Policy::Skip, &delete, vec![Short(1)]),
            (newest, &insert, vec![Noted]),
            (newest, &update, vec![Answered]),
            (newest, &moved, vec![Short(1), Never, Never]),
            (newest, &delete, vec![Short(1)]),
            (Policy::Error, &insert, vec![Never]),
            (Policy::Error, &update, vec![Never]),
            (Policy::Error, &moved, vec![Never]),
            (Policy::Error, &delete, vec![Never]),
        ] {
            assert_eq!(told(policy, change, false), expected, "{policy:?} {change:?}");
        }
        // These fail when the row is not as expected.
        for change in [&insert, &update, &moved] {
            assert_eq!(told(Policy::Overwrite, change, true), [Never], "{change:?}");
        }
        assert_eq!(told(Policy::Overwrite, &delete, true), [Short(1)]);
    }

    #[test]
    fn only_what_is_read_is_counted_by_the_server() {
        let row = [Some("2"), Some("x"), None];
        for (change, noted) in [
            (change(Op::Insert, &[], &row), 1),
            (change(Op::Update, &[], &row), 0),
            (change(Op::Update, &["1"], &row), 0),
        ] {
            for policy in [Policy::Overwrite, Policy::Newest(1)] {
                let mut batch = Batch::new(route(policy), Kind::of(&change));
                batch.push(&change);
                let statements = of_batch(batch);
                let noting = statements.iter().filter(|s| s.text.contains(NOTE)).count();
                let asking = statements.iter().filter(|s| s.conflicts == Conflicts::Noted).count();
                assert_eq!((noting, asking), (noted, noted), "{policy:?} {change:?}");
                assert!(!literal::of_change(&route(policy), &change).contains("set_config"));
            }
        }
    }

    #[test]
    fn truncates_name_each_table_once_and_keep_only() {
        let one = route(Policy::Overwrite);
        let mut parent = (*one).clone();
        parent.target.table = "p".into();
        parent.truncate_children = true;
        assert_eq!(
            truncate(&[one.clone(), Rc::new(parent), one]),
            "TRUNCATE TABLE ONLY \"s\".\"t\", \"s\".\"p\""
        );
    }

    #[test]
    fn the_error_policy_fails_when_rows_are_missing() {
        let mut batch = Batch::new(route(Policy::Error), Kind::Delete);
        batch.push(&change(Op::Delete, &["1"], &[]));
        let text = of_batch(batch).remove(0).text;
        assert!(text.contains("CASE WHEN pg_catalog.count(*) = 1 THEN 0"));
        assert!(text.contains(MISSING_MARK));
    }
}
