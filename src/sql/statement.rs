//! The statements themselves: one per policy and kind, over values that come either from arrays of
//! parameters (a batch) or from literals (one change).

use super::batch::{Batch, Elements, Kind, Single};
use super::conflicts::Conflicts;
use super::newest;
use super::quote::{ident, literal, operator, relation};
use super::told::{delete_told, insert_missing, insert_told, told_by_tag, update_there};
use super::upsert::{clear_target, update_then_insert, upsert};
use super::values::{Values, key_of};
use crate::change::{Policy, Route};
use std::rc::Rc;

/// Begins the text of the cast error that an `error` policy provokes when rows are missing; the
/// only way to fail a pipeline from plain SQL. Delivery turns it into P0002.
pub const MISSING_MARK: &str = "pg_rowsync: rows found: ";

/// Begins the text of the cast error by which a statement fails two of whose changes are of one row there:
/// their keys differ here and are equal there. Delivery turns it into 21000 and sends them one by one.
pub const TWICE_MARK: &str = "pg_rowsync: changes of one row: ";

/// Begins the text of the cast error that an INSERT provokes which takes it that a row is not there. Delivery turns it
/// into 23505.
pub const EXISTS_MARK: &str = "pg_rowsync: row exists: ";

/// An INSERT of so many rows names the key itself; that costs as much as to ask about the key before.
const MOST_NAMED: usize = 16;

/// What is sent of a statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Verb {
    /// The text, to be executed at once.
    Query,
    /// The text, to be prepared under a name.
    Prepare(Rc<str>),
    /// The name of what was prepared.
    Execute(Rc<str>),
}

/// A parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    Null,
    /// The type is inferred by the server.
    Text(String),
    /// An array of that type.
    Binary {
        array: u32,
        bytes: Vec<u8>,
    },
}

impl From<Option<String>> for Param {
    fn from(value: Option<String>) -> Self {
        value.map_or(Self::Null, Self::Text)
    }
}

impl Param {
    fn len(&self) -> usize {
        match self {
            Self::Null => 0,
            Self::Text(text) => text.len(),
            Self::Binary { bytes, .. } => bytes.len(),
        }
    }
}

/// A statement and its parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    pub verb: Verb,
    /// Empty for one that was prepared.
    pub text: String,
    pub params: Vec<Param>,
    /// How its answer tells the conflicts.
    pub conflicts: Conflicts,
}

impl Statement {
    /// One without parameters, not about rows.
    pub fn plain(text: impl Into<String>) -> Self {
        Self::query(text.into(), Vec::new(), Conflicts::Never)
    }

    /// One that is executed at once.
    pub fn query(text: String, params: Vec<Param>, conflicts: Conflicts) -> Self {
        Self { verb: Verb::Query, text, params, conflicts }
    }

    /// Whether it begins a transaction block.
    pub fn begins_block(&self) -> bool {
        self.text.starts_with("BEGIN")
    }

    /// Whether it is executed, and not only prepared.
    pub fn is_executed(&self) -> bool {
        !matches!(self.verb, Verb::Prepare(_))
    }

    /// About how many bytes it takes to send.
    pub fn size(&self) -> usize {
        self.text.len() + self.params.iter().map(Param::len).sum::<usize>()
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
        let params: Vec<Param> = params.into_iter().map(Param::from).collect();
        let statement = |(text, conflicts)| Statement::query(text, params.clone(), conflicts);
        let texts = texts(&batch.route, batch.kind, &values, home);
        let single = |(text, told)| (text, told_by_tag(&batch.route, batch.kind, told, &key));
        return texts.into_iter().map(single).map(statement).collect();
    }
    let texts = texts(&batch.route, batch.kind, &Values::of_arrays(&batch), home);
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
    let stamps = batch.stamp.into_iter().chain(batch.gone);
    let (versions, ranks): (Vec<_>, Vec<_>) = stamps.map(|[version, rank]| (version, rank)).unzip();
    let stamps = versions.into_iter().chain(ranks).map(|array| Param::Text(array.into_text()));
    new.chain(batch.old).map(Elements::into_param).chain(stamps).collect()
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
        (_, Policy::Newest(_)) => newest::statements(route, kind, values, home),
        (Kind::Insert, Policy::Overwrite) if values.optimistic => {
            failing(insert_unless_there(route, values))
        }
        (Kind::Insert, Policy::Error) => failing(insert(route, values, &values.from())),
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
        (Kind::Delete, Policy::Error) => failing(delete_all(route, values)),
        // Of a single row the command tag tells as much.
        (Kind::Delete, Policy::Overwrite) if values.optimistic && values.from.is_some() => {
            failing(delete_all(route, values))
        }
        (Kind::Delete, _) => vec![(delete_told(route, values), told)],
    }
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

/// The same for targets of which some may be partitioned, and refuse ONLY: asked by the statement itself, of a
/// table that is locked then.
pub fn truncate_by_kind(routes: &[Rc<Route>]) -> String {
    let mut tables: Vec<(String, String)> = Vec::new();
    for route in routes {
        let table = relation(&route.target);
        let only = match route.truncate_children {
            true => "''".to_owned(),
            false => format!(
                "CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_class c \
                 WHERE c.oid OPERATOR(pg_catalog.=) {}::pg_catalog.regclass::pg_catalog.oid \
                   AND c.relkind OPERATOR(pg_catalog.=) 'p') THEN '' ELSE 'ONLY ' END",
                literal(&table)
            ),
        };
        if !tables.iter().any(|(known, _)| *known == table) {
            tables.push((table, only));
        }
    }
    let locked: Vec<String> = tables.iter().map(|(table, _)| format!("ONLY {table}")).collect();
    let concat = " OPERATOR(pg_catalog.||) ";
    let named: Vec<String> =
        (tables.iter()).map(|(table, only)| format!("{only}{concat}{}", literal(table))).collect();
    let body = format!(
        "BEGIN LOCK TABLE {} IN ACCESS EXCLUSIVE MODE; EXECUTE 'TRUNCATE TABLE '{concat}{}; END",
        locked.join(", "),
        named.join(&format!("{concat}', '{concat}"))
    );
    format!("DO LANGUAGE plpgsql {}", literal(&body))
}

/// An INSERT under another policy than `newest`, with the caller's FROM. Where the remote's key may be deferrable
/// no ON CONFLICT can rely on it: rows that are there are looked for instead.
pub(super) fn insert(route: &Route, values: &Values, from: &str) -> String {
    match route.policy {
        _ if !route.key_deferrable => {
            format!("{}{}", insert_from(route, values, from), on_conflict(route))
        }
        Policy::Error => insert_from(route, values, from),
        Policy::Overwrite if route.can_update() => {
            let (with, insert) = update_then_insert(route, Kind::Update, values);
            format!("WITH {}{with} {insert}", with_v(route, values))
        }
        _ => {
            let free = format!("{from} WHERE NOT {}", exists_new(route, values));
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
    all_found(route, values, &update(route, kind, values, values.from(), " RETURNING 1"))
}

/// A DELETE that does.
fn delete_all(route: &Route, values: &Values) -> String {
    all_found(route, values, &delete(route, values, values.using(), " RETURNING 1"))
}

pub(super) fn insert_from(route: &Route, values: &Values, from: &str) -> String {
    format!("{} SELECT {}{from}", insert_into(route), values.new.join(", "))
}

/// An INSERT that fails over a row that is there.
pub(super) fn insert_unless_there(route: &Route, values: &Values) -> String {
    let named = match values.rows {
        ..=MOST_NAMED => fail_on_conflict(route),
        _ => String::new(),
    };
    insert_from(route, values, &values.from()) + &named
}

/// A condition that fails, and looks at a value for it, so that it cannot do so before.
fn is_there(value: &str) -> String {
    format!(
        "({} OPERATOR(pg_catalog.||) pg_catalog.pg_typeof({value}))::pg_catalog.bool",
        literal(EXISTS_MARK)
    )
}

/// For an INSERT that is to fail over a row that is there. It would do so by itself, as long as there is a unique
/// index; but only where the key is named does the server say that there is none any more.
pub(super) fn fail_on_conflict(route: &Route) -> String {
    let Some(set) = route.settable().next().or_else(|| route.settable_key().next()) else {
        return String::new();
    };
    let set = ident(&route.columns[set].name);
    format!(
        " ON CONFLICT ({}) DO UPDATE SET {set} = excluded.{set} WHERE {}",
        key_columns(route),
        is_there(&format!("excluded.{set}"))
    )
}

/// Whether a batch is of INSERTs that fail over a row that is there, but do not name the key.
pub fn needs_key(batch: &Batch) -> bool {
    let is_plain =
        batch.kind == Kind::Insert && batch.optimistic && batch.route.policy == Policy::Overwrite;
    is_plain && (batch.rows > MOST_NAMED || fail_on_conflict(&batch.route).is_empty())
}

/// Fails with 42P10 unless there is a unique index on the key, and keeps it to the end of the transaction. Nothing is
/// executed, which would fire triggers.
pub fn ask_key(route: &Route) -> Statement {
    Statement::plain(format!(
        "EXPLAIN INSERT INTO {} ({key}) OVERRIDING SYSTEM VALUE \
         SELECT {key} FROM {} WHERE false ON CONFLICT ({key}) DO NOTHING",
        relation(&route.target),
        relation(&route.target),
        key = key_columns(route)
    ))
}

fn key_columns(route: &Route) -> String {
    let key: Vec<String> = route.key.iter().map(|at| ident(&route.columns[*at].name)).collect();
    key.join(", ")
}

/// An INSERT of a single row.
pub(super) fn insert_values(route: &Route, values: &Values) -> String {
    format!("{} VALUES ({})", insert_into(route), values.new.join(", "))
}

fn insert_into(route: &Route) -> String {
    let columns: Vec<String> = route.columns.iter().map(|c| ident(&c.name)).collect();
    let (target, columns) = (relation(&route.target), columns.join(", "));
    format!("INSERT INTO {target} AS t ({columns}) OVERRIDING SYSTEM VALUE")
}

/// What an INSERT does with a row that is there already.
pub(super) fn on_conflict(route: &Route) -> String {
    if route.key_deferrable || route.policy == Policy::Error {
        return String::new();
    }
    let set: Vec<String> = route
        .settable()
        .map(|at| ident(&route.columns[at].name))
        .map(|name| format!("{name} = excluded.{name}"))
        .collect();
    let update = match route.policy {
        Policy::Overwrite if !set.is_empty() => format!("UPDATE SET {}", set.join(", ")),
        _ => "NOTHING".to_owned(),
    };
    format!(" ON CONFLICT ({}) DO {update}", key_columns(route))
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

pub(super) fn delete(route: &Route, values: &Values, using: String, tail: &str) -> String {
    format!(
        "DELETE FROM {} AS t{using} WHERE {}{tail}",
        relation(&route.target),
        same_key(route, "t", &values.old)
    )
}

/// Wraps a data-modifying statement that returns a row per row it found: fails unless it found
/// every one.
fn all_found(route: &Route, values: &Values, inner: &str) -> String {
    all_found_if(route, values, inner, "")
}

/// The same under another condition.
pub(super) fn all_found_if(route: &Route, values: &Values, inner: &str, also: &str) -> String {
    format!(
        "WITH {}u AS ({inner}) SELECT CASE WHEN pg_catalog.count(*) OPERATOR(pg_catalog.=) {}{also} THEN 0 \
         ELSE ({} OPERATOR(pg_catalog.||) pg_catalog.count(*))::pg_catalog.int4 END FROM u",
        named_first(route, values),
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
        .map(|(at, value)| {
            let column = &route.columns[*at];
            format!("{table}.{} {} {value}", ident(&column.name), operator(column, "="))
        })
        .collect();
    terms.join(" AND ")
}

/// Whether a change beside that of `v` in the same statement has a key of `others`, given as of `w`, that is
/// equal there to `key`.
pub(super) fn is_shared(route: &Route, key: &[String], others: &[String]) -> String {
    let equal: Vec<String> = (route.key.iter().zip(key.iter().zip(others)))
        .map(|(at, (key, other))| format!("{other} {} {key}", operator(&route.columns[*at], "=")))
        .collect();
    format!(
        "EXISTS (SELECT FROM v AS w WHERE w.ord OPERATOR(pg_catalog.<>) v.ord AND {})",
        equal.join(" AND ")
    )
}

/// An expression of type text that fails with a mark. With something that is not known before it is executed:
/// else it fails when it is planned.
pub(super) fn failing_with(mark: &str) -> String {
    format!("({} OPERATOR(pg_catalog.||) v.ord)::pg_catalog.int4::pg_catalog.text", literal(mark))
}

/// The first item of a WITH: the table is named before the changes, since one that is missing is to be
/// reported as such, and not as the missing type of a parameter.
fn named_first(route: &Route, values: &Values) -> String {
    match values.from {
        Some(_) => format!("r AS (SELECT FROM {}), ", relation(&route.target)),
        None => String::new(),
    }
}

/// The first items of a WITH: that one, and the changes, `v`, for statements that read them repeatedly.
pub(super) fn with_v(route: &Route, values: &Values) -> String {
    let changes = |item| format!("v AS MATERIALIZED (SELECT * FROM {item}), ");
    let changes = values.from.as_ref().map(changes).unwrap_or_default();
    named_first(route, values) + &changes
}

pub(super) fn from_v(values: &Values) -> String {
    values.from.as_ref().map(|_| " FROM v".to_owned()).unwrap_or_default()
}

pub(super) fn using_v(values: &Values) -> String {
    values.from.as_ref().map(|_| " USING v".to_owned()).unwrap_or_default()
}
