//! What of a table is copied, where to and how it is read: worked out from its trigger and the catalogs, anew
//! for each step, since either may be altered in between.

use crate::capture::condition;
use crate::capture::descriptor::{Arguments, Descriptor};
use crate::capture::table::Table;
use crate::change::{Policy, Relation, Route};
use crate::conflict::versions::{self, StoredVersion};
use crate::connect::account::Account;
use crate::error::{Error, Result, SqlState};
use crate::options::Mode;
use crate::pg::Oid;
use crate::pg::columns::Json;
use crate::pg::snapshot::Snapshot;
use crate::pg::spi::{self, Extension};
use crate::pg::text;
use crate::sql::quote::{ident, literal_or_null, relation};
use std::collections::HashMap;
use std::rc::Rc;

/// A key, as text in the order of the route's key.
pub type Key = Vec<Option<String>>;

/// What a copy reads and where that goes, worked out from the table and its trigger.
pub struct Plan {
    pub table: Table,
    pub route: Rc<Route>,
    pub mode: Mode,
    descriptor: Descriptor,
    /// The key's columns here, in the order of the route's key: name, type, whether its equality is
    /// PostgreSQL's.
    key: Vec<(String, String, bool)>,
    /// Which rows are sent, as a condition on the row `new`; `None` for all.
    filter: Option<String>,
    /// An index has the rows in the order of the key, so that they can be read range by range.
    pub in_ranges: bool,
    extension: Extension,
}

impl Plan {
    /// The plan of a table that a trigger sends to a server; where several do, to this target.
    ///
    /// # Errors
    /// 42704 where none does, or it is disabled; 42725 where several do to different targets; 0A000 for a
    /// trigger with a WHEN condition under `newest`; what [`Table::read`] and [`Descriptor::new`] report.
    pub fn new(
        extension: &Extension,
        rel: Oid,
        server: &str,
        target: Option<&Relation>,
    ) -> Result<Self> {
        let table = Table::read(extension, rel)?;
        let (arguments, filter) = arguments_of(extension, &table, server, target)?;
        let descriptor = Descriptor::new(extension.clone(), &table, &arguments)?;
        let route = descriptor.route.clone();
        if filter.is_some() && route.version().is_some() {
            let message = format!(
                "the trigger that sends table \"{}\" has a WHEN condition, under policy \"newest\"",
                table.name.table
            );
            return Err(Error::local(SqlState::FEATURE_NOT_SUPPORTED, message)
                .with_hint("Copy the rows that it lets pass by hand."));
        }
        let local = |at: &usize| {
            let column = &route.columns[*at];
            column.local.as_ref().unwrap_or(&column.name).clone()
        };
        let names: Vec<String> = route.key.iter().map(local).collect();
        let types = types_of(extension, rel, &names)?;
        let is_plain = |name: &String| {
            table
                .columns
                .iter()
                .any(|column| column.name == *name && !column.own_equality)
        };
        let key = names.iter().map(|name| {
            let type_name = types
                .get(name)
                .cloned()
                .ok_or(Error::internal("key without type"))?;
            Ok((name.clone(), type_name, is_plain(name)))
        });
        let key = key.collect::<Result<Vec<_>>>()?;
        let in_ranges = !key.is_empty()
            && key.iter().all(|(_, _, plain)| *plain)
            && has_index(extension, rel, &names)?;
        let mode = descriptor.mode;
        let extension = extension.clone();
        Ok(Self {
            table,
            route,
            mode,
            descriptor,
            key,
            filter,
            in_ranges,
            extension,
        })
    }

    /// The account over whose connection it is copied.
    pub fn account(&self) -> &Account {
        &self.descriptor.account
    }

    /// Rows are only added, and nothing tells one from another: what is there must not be brought again.
    pub fn is_keyless(&self) -> bool {
        self.route.key.is_empty()
    }

    /// Whether a range brings a row as it is then, whatever was brought of it before.
    pub fn comes_again(&self) -> bool {
        let policy = self.route.policy;
        matches!(policy, Policy::Overwrite | Policy::Newest(_)) && !self.route.key_deferrable
    }

    /// As whom rows are read, and what they count as is told: the table's owner, whose functions a condition, the
    /// check of a domain or the order of a type calls.
    pub fn reader(&self) -> Oid {
        self.table.owner
    }

    /// What each of some rows counts as, if that is not what its version column says: by the hashes of their keys,
    /// see [`Plan::rows_after`]. Stamps are read in our own rights, since the owner may not read them; nothing of the
    /// owner's is called for it.
    ///
    /// # Errors
    /// What reading reports.
    pub fn stamps(
        &self,
        moment: &Snapshot,
        hashes: &[&str],
    ) -> Result<HashMap<String, StoredVersion>> {
        versions::versions_at(&self.extension, moment, self.table.root, hashes)
    }

    /// The route of rows that replace what is there, unless that counts as newer.
    pub fn overwriting(&self) -> Rc<Route> {
        match self.route.policy {
            Policy::Overwrite | Policy::Newest(_) => self.route.clone(),
            Policy::Error | Policy::Skip => Rc::new(Route {
                policy: Policy::Overwrite,
                ..(*self.route).clone()
            }),
        }
    }

    /// Refuses records whose key is another one.
    ///
    /// # Errors
    /// 55000.
    pub fn check_key(&self, route: &Route) -> Result<()> {
        let names = |route: &Route| {
            let mut names: Vec<String> = names_of_key(route);
            names.sort();
            names
        };
        if names(route) == names(&self.route) {
            Ok(())
        } else {
            Err(Error::local(
                SqlState::OBJECT_NOT_READY,
                format!(
                    "the key of table \"{}\" was changed during its copy",
                    self.table.name.table
                ),
            )
            .with_hint("Call copy_sync() again."))
        }
    }

    /// A key of another route over the same columns, in the order of this one's.
    pub fn in_own_order(&self, route: &Route, key: Key) -> Key {
        let theirs = names_of_key(route);
        let place = |(name, _, _): &(String, String, bool)| theirs.iter().position(|n| n == name);
        let value = |at: usize| key.get(at).cloned().flatten();
        self.key
            .iter()
            .map(|column| place(column).and_then(value))
            .collect()
    }

    /// The columns as the target names them, for COPY.
    pub fn target_columns(&self) -> String {
        let names = self.route.columns.iter().map(|column| ident(&column.name));
        names.collect::<Vec<_>>().join(", ")
    }

    /// Types of the columns, by the names on the target.
    pub fn types(&self) -> impl Iterator<Item = (&str, u32)> + '_ {
        self.route.columns.iter().map(|column| {
            let local = column.local.as_ref().unwrap_or(&column.name);
            let found = self.table.columns.iter().find(|own| own.name == *local);
            (
                column.name.as_str(),
                found.map_or(0, |own| own.attribute.type_oid.to_u32()),
            )
        })
    }

    fn columns(&self) -> String {
        let local = self.route.columns.iter().map(|column| {
            format!(
                "new.{}",
                ident(column.local.as_ref().unwrap_or(&column.name))
            )
        });
        local.collect::<Vec<_>>().join(", ")
    }

    /// One more column under `newest`: the hash of the key, by which stamps are kept.
    fn hash(&self) -> String {
        if self.route.version().is_none() {
            return String::new();
        }
        let mut key: Vec<&String> = self.key.iter().map(|(name, _, _)| name).collect();
        key.sort();
        let key: Vec<String> = key
            .iter()
            .map(|name| format!("new.{}", ident(name)))
            .collect();
        format!(
            ", pg_catalog.hash_record_extended(ROW({}), 0)",
            key.join(", ")
        )
    }

    /// The query for rows that come after a key, in order if they are read in ranges. Under `newest` they have one more
    /// column, the hash of the key.
    pub fn rows_after(&self, position: Option<&Key>) -> String {
        let from = format!("{} AS new", self.name());
        let hash = self.hash();
        let after = position.map(|position| self.compared(">", position));
        let conditions: Vec<String> = after.into_iter().chain(self.filtered()).collect();
        let filter = if conditions.is_empty() {
            String::new()
        } else {
            format!(" WHERE {}", conditions.join(" AND "))
        };
        let order = if self.in_ranges {
            let key: Vec<_> = self
                .key
                .iter()
                .map(|(name, _, _)| format!("new.{}", ident(name)))
                .collect();
            format!(" ORDER BY {}", key.join(", "))
        } else {
            String::new()
        };
        format!("SELECT {}{hash} FROM {from}{filter}{order}", self.columns())
    }

    /// The condition on rows, if there is one.
    fn filtered(&self) -> Option<String> {
        // On a line of its own: a comment in it ends there.
        self.filter.as_ref().map(|filter| format!("({filter}\n)"))
    }

    /// The query for the rows with some keys, of those that are sent: the number of the key, whether the row
    /// is among those up to the position, and the row.
    pub fn rows_of(&self, keys: &[Key], position: Option<&Key>, complete: bool) -> String {
        let from = format!("{} AS new", self.name());
        let values = keys.iter().enumerate().map(|(at, key)| {
            let values = key
                .iter()
                .zip(&self.key)
                .map(|(value, (_, type_name, plain))| {
                    let type_name = if *plain { type_name } else { "pg_catalog.text" };
                    format!("{}::{type_name}", literal_or_null(value.as_deref()))
                });
            format!("({at}, {})", values.collect::<Vec<_>>().join(", "))
        });
        let names = (0..self.key.len()).map(|at| format!("k{at}"));
        let on = self.key.iter().enumerate().map(|(at, (name, _, plain))| {
            let cast = if *plain { "" } else { "::pg_catalog.text" };
            format!("new.{}{cast} OPERATOR(pg_catalog.=) k.k{at}", ident(name))
        });
        let on: Vec<String> = on.chain(self.filtered()).collect();
        let is_there = match (position, complete) {
            (_, true) => "true".to_owned(),
            (None, false) => "false".to_owned(),
            (Some(position), false) => self.compared("<=", position),
        };
        format!(
            "SELECT k.n, {is_there}, {} FROM (VALUES {}) AS k(n, {}) JOIN {from} ON {}",
            self.columns(),
            values.collect::<Vec<_>>().join(", "),
            names.collect::<Vec<_>>().join(", "),
            on.join(" AND ")
        )
    }

    fn name(&self) -> String {
        let only = if self.table.partitioned { "" } else { "ONLY " };
        format!("{only}{}", relation(&self.table.name))
    }

    /// Compares rows' keys to one.
    fn compared(&self, operator: &str, key: &Key) -> String {
        let names = self
            .key
            .iter()
            .map(|(name, _, _)| format!("new.{}", ident(name)));
        let values = key.iter().zip(&self.key).map(|(value, (_, type_name, _))| {
            format!("{}::{type_name}", literal_or_null(value.as_deref()))
        });
        let names = names.collect::<Vec<_>>();
        let values = values.collect::<Vec<_>>();
        match (names.as_slice(), values.as_slice()) {
            ([name], [value]) => format!("{name} OPERATOR(pg_catalog.{operator}) {value}"),
            _ => format!(
                "ROW({}) OPERATOR(pg_catalog.{operator}) ROW({})",
                names.join(", "),
                values.join(", ")
            ),
        }
    }

    /// Whether rows can go as they are, in binary form, to a table whose columns have these types.
    pub fn fits_binary(&self, types: &HashMap<String, u32>) -> bool {
        text::is_utf8()
            && self
                .types()
                .all(|(name, own)| STABLE_BINARY.contains(&own) && types.get(name) == Some(&own))
    }
}

/// Types whose binary form is the same in all supported majors: bool, bytea, int8, int2, int4, text, json,
/// float4, float8, macaddr, inet, cidr, bpchar, varchar, date, time, timestamp, timestamptz, interval,
/// timetz, bit, varbit, numeric, uuid, jsonb.
const STABLE_BINARY: [u32; 25] = [
    16, 17, 20, 21, 23, 25, 114, 700, 701, 829, 869, 650, 1042, 1043, 1082, 1083, 1114, 1184, 1186,
    1266, 1560, 1562, 1700, 2950, 3802,
];

fn names_of_key(route: &Route) -> Vec<String> {
    let local = |at: &usize| {
        let column = &route.columns[*at];
        column.local.as_ref().unwrap_or(&column.name).clone()
    };
    route.key.iter().map(local).collect()
}

/// The arguments of the trigger that sends a table's rows to a server, and which rows are sent.
fn arguments_of(
    extension: &Extension,
    table: &Table,
    server: &str,
    target: Option<&Relation>,
) -> Result<(Arguments, Option<String>)> {
    type Columns = (Json<Vec<String>>, bool, Option<String>, bool);
    let rows: Vec<Columns> = spi::select(
        extension,
        "SELECT to_json(a.args), t.tgenabled = ANY ('{O,A}'), \
            CASE WHEN t.tgqual IS NOT NULL THEN pg_get_triggerdef(t.oid) END, \
            (t.tgtype & 4::int2) \
              <> 0::int2 \
         FROM pg_trigger t \
         JOIN pg_proc p ON p.oid = t.tgfoid \
         JOIN pg_namespace n ON n.oid = p.pronamespace \
         CROSS JOIN LATERAL (SELECT array_agg(convert_from( \
             decode(u.piece, 'hex'), getdatabaseencoding()) ORDER BY u.n) \
           FROM unnest(string_to_array(regexp_replace( \
             encode(t.tgargs, 'hex'), '(..)', E'\\\\1 ', 'g'), '00 ')) \
             WITH ORDINALITY u(piece, n) WHERE u.n <= t.tgnargs) a(args) \
         WHERE t.tgrelid = $1::oid \
           AND p.proname = 'sync_dml' \
           AND n.nspname = $2::name \
           AND (t.tgtype & 1::int2) \
                 <> 0::int2 \
           AND a.args[1] = $3 ORDER BY t.tgname",
        &[
            Some(&table.oid.to_u32().to_string()),
            Some(&extension.schema),
            Some(server),
        ],
    )?;
    let name = &table.name.table;
    let missing = |what: &str| {
        let message = format!("table \"{name}\" has no {what} that sends to server \"{server}\"");
        Err(Error::local(SqlState::UNDEFINED_OBJECT, message).with_hint(
            "Call attach_sync() first: what is written during the copy is captured by it.",
        ))
    };
    let mut found: Option<Arguments> = None;
    let mut inserting: Vec<Option<String>> = Vec::new();
    for (Json(args), is_enabled, definition, inserts) in rows {
        let arguments = Arguments::parse(&args)?;
        if target.is_some_and(|target| *target != arguments.target) {
            continue;
        }
        if !is_enabled {
            return missing("enabled trigger");
        }
        if inserts {
            inserting.push(definition.as_deref().and_then(condition::in_definition));
        }
        if found
            .as_ref()
            .is_some_and(|found| found.target != arguments.target)
        {
            let message =
                format!("table \"{name}\" is sent to several tables of server \"{server}\"");
            return Err(Error::local(SqlState::new("42725"), message));
        }
        found.get_or_insert(arguments);
    }
    match found {
        Some(found) => Ok((
            found,
            condition::of_rows(inserting.iter().map(Option::as_deref)),
        )),
        None => missing("trigger"),
    }
}

/// The types of a table's columns, as SQL.
fn types_of(extension: &Extension, rel: Oid, names: &[String]) -> Result<HashMap<String, String>> {
    let rows = spi::select(
        extension,
        "SELECT a.attname, CASE WHEN a.atttypmod = -1 \
              THEN quote_ident(n.nspname) || '.' \
                || quote_ident(t.typname) \
              ELSE format_type(a.atttypid, a.atttypmod) END \
         FROM pg_attribute a \
         JOIN pg_type t ON t.oid = a.atttypid \
         JOIN pg_namespace n ON n.oid = t.typnamespace \
         WHERE a.attrelid = $1::oid \
           AND a.attnum > 0 AND NOT a.attisdropped",
        &[Some(&rel.to_u32().to_string())],
    )?;
    let wanted = rows
        .into_iter()
        .filter(|(name, _): &(String, String)| names.contains(name));
    Ok(wanted.collect())
}

/// Whether an index has all of a table's rows in the order of these columns.
fn has_index(extension: &Extension, rel: Oid, names: &[String]) -> Result<bool> {
    let rows: Vec<Json<Vec<String>>> = spi::select(
        extension,
        "SELECT (SELECT json_agg(a.attname ORDER BY k.ord) \
              FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(num, ord) \
              JOIN pg_attribute a ON a.attrelid = i.indrelid \
               AND a.attnum = k.num \
              WHERE k.ord <= i.indnkeyatts) \
         FROM pg_index i \
         JOIN pg_class c ON c.oid = i.indexrelid \
         JOIN pg_am m ON m.oid = c.relam \
         WHERE i.indrelid = $1::oid AND i.indisvalid \
           AND i.indpred IS NULL AND i.indexprs IS NULL \
           AND m.amname = 'btree' \
           AND NOT (0::int2 <> ANY (i.indoption::int2[]))",
        &[Some(&rel.to_u32().to_string())],
    )?;
    Ok(rows.iter().any(|Json(columns)| columns.starts_with(names)))
}
