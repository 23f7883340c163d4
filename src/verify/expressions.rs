//! The SQL of rows, hashes and keys, for either side. Pure.
//!
//! Both sides' rows are read under the name `new`, columns by their local names, so that a condition of a
//! trigger or of the caller means the same on both. Operators and functions are PostgreSQL's own, whatever
//! the search path, except in such a condition.

use super::facts::{ColumnFacts, Facts};
use super::sides::Side;
use crate::capture::table::Table;
use crate::change::{Relation, Route};
use crate::sql::quote::{ArrayLiteral, ident, literal, literal_or_null, relation};
use std::cell::Cell;

/// A column that is compared.
#[derive(Clone, Debug)]
pub struct Column {
    /// The local name.
    pub name: String,
    /// The server's name.
    there: String,
    here_type: ColumnFacts,
    there_type: ColumnFacts,
}

/// The SQL expressions by which both sides say what a row, its key and its hash are.
#[derive(Clone, Debug)]
pub struct Expressions {
    here: String,
    there: String,
    columns: Vec<Column>,
    /// Positions in `columns`.
    key: Vec<usize>,
    /// How a hash is taken.
    hash: Hash,
    /// Rows can be found by ranges of the key on both sides.
    ordered: bool,
    /// Which rows count, here and there.
    filter: [Option<String>; 2],
    reading: Reading,
}

/// How a value here is read as the type that it gets there.
#[derive(Clone, Debug, Default)]
struct Reading {
    /// The function that says whether a type can hold a text; none in a database that has not got it.
    holds: Option<String>,
    /// Every value is asked for first: there are some that their types there cannot hold.
    is_careful: Cell<bool>,
}

/// A function from text to a number of 64 bits that both sides compute alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    /// `hashtextextended`.
    Fast,
    /// The first half of the md5 of the text in UTF-8; `converts`: some side has another encoding.
    Md5 { converts: bool },
}

/// Values of the key's columns as text, or NULL.
pub type KeyText = Vec<Option<String>>;

const EQ: &str = "OPERATOR(pg_catalog.=)";
const UTF8: &str = "UTF8";

impl Expressions {
    /// For a table, its route, and what both sides' catalogs say. `filter`: which rows count. `holds`: the
    /// function here that says whether a type can hold a text.
    pub fn new(
        table: &Table,
        route: &Route,
        [here, there]: [&Facts; 2],
        filter: Option<String>,
        holds: Option<String>,
    ) -> Self {
        let columns: Vec<Column> = (route.columns.iter())
            .map(|column| {
                let name = column.local.as_ref().unwrap_or(&column.name).clone();
                let facts = |facts: &Facts, name: &str| facts.column(name).cloned();
                Column {
                    here_type: facts(here, &name).unwrap_or_default(),
                    there_type: facts(there, &column.name).unwrap_or_default(),
                    there: column.name.clone(),
                    name,
                }
            })
            .collect();
        let converts = [here, there].iter().any(|side| side.encoding != UTF8);
        let hash = if here.probe == there.probe && !converts {
            Hash::Fast
        } else {
            Hash::Md5 { converts }
        };
        let names_here: Vec<&str> = route.key.iter().map(|at| &*columns[*at].name).collect();
        let names_there: Vec<&str> = route.key.iter().map(|at| &*columns[*at].there).collect();
        let alike = |at: &usize| {
            let column = &columns[*at];
            // NULL is in no range.
            !column.here_type.nullable
                && !column.there_type.nullable
                && sort_alike(&column.here_type, &column.there_type, [here, there])
        };
        let ordered = route.key.iter().all(alike)
            && here.has_index_on(&names_here)
            && there.has_index_on(&names_there);
        Self {
            here: source_here(table, here),
            there: source_there(&route.target, &columns, there),
            key: route.key.clone(),
            columns,
            hash,
            ordered,
            filter: [filter.clone(), filter],
            reading: Reading {
                holds,
                is_careful: Cell::new(false),
            },
        }
    }

    /// From now on no value fails a question that its type there cannot hold: such a row has the value that it
    /// has here. False where it was so before, or is not possible.
    pub fn take_care(&self) -> bool {
        self.reading.holds.is_some() && !self.reading.is_careful.replace(true)
    }

    /// Whether the types there can hold a row from here.
    pub fn row_fits(&self, side: Side) -> String {
        let conditions: Vec<String> = match side {
            Side::Here => (self.columns.iter())
                .filter_map(|column| column.fits(&self.reading))
                .collect(),
            Side::There => Vec::new(),
        };
        if conditions.is_empty() {
            "true".to_owned()
        } else {
            format!("({})", conditions.join(" AND "))
        }
    }

    /// Whether rows can be found by ranges of the key on both sides.
    pub fn is_ordered(&self) -> bool {
        self.ordered
    }

    /// Whether some rows do not count.
    pub fn has_filter(&self) -> bool {
        self.filter[0].is_some()
    }

    /// These expressions with all rows of the server.
    pub fn filtered_here_only(mut self) -> Self {
        self.filter[1] = None;
        self
    }

    /// A question that fails where the condition cannot be used on the server.
    pub fn try_filter(&self) -> String {
        let rows = self.rows(Side::There, &[]);
        format!("SELECT pg_catalog.json_agg(1) FROM (SELECT 1 {rows} LIMIT 0) AS nothing")
    }

    /// The columns that are compared, in order.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// FROM and WHERE for the rows of a side that count and for which these conditions hold.
    pub fn rows(&self, side: Side, conditions: &[&str]) -> String {
        let source = match side {
            Side::Here => &self.here,
            Side::There => &self.there,
        };
        self.rows_of(source, side, conditions)
    }

    /// The same with rows that come from elsewhere.
    pub fn rows_of(&self, source: &str, side: Side, conditions: &[&str]) -> String {
        let filter = match side {
            Side::Here => &self.filter[0],
            Side::There => &self.filter[1],
        };
        let mut all: Vec<String> = conditions.iter().map(|one| format!("({one})")).collect();
        // On a line of its own: a comment in it ends there.
        all.extend(filter.as_ref().map(|filter| format!("({filter}\n)")));
        if all.is_empty() {
            format!("FROM {source}")
        } else {
            format!("FROM {source} WHERE {}", all.join(" AND "))
        }
    }

    /// Rows without the filter: where ranges of them begin does not depend on it.
    pub fn all_rows(&self, side: Side, condition: &str) -> String {
        let source = if side == Side::Here {
            &self.here
        } else {
            &self.there
        };
        if condition.is_empty() {
            format!("FROM {source}")
        } else {
            format!("FROM {source} WHERE {condition}")
        }
    }

    /// The hash of a row.
    pub fn row_hash(&self, side: Side) -> String {
        let values: Vec<String> = self
            .columns
            .iter()
            .map(|column| column.value(side, &self.reading))
            .collect();
        self.hash_of(&format!("ROW({})::pg_catalog.text", values.join(", ")))
    }

    /// The hash of a row's key.
    pub fn key_hash(&self, side: Side) -> String {
        self.hash_of(&format!(
            "ROW({})::pg_catalog.text",
            self.key_matches(side).join(", ")
        ))
    }

    /// The texts by which keys of both sides are held against each other: the same for keys that are equal.
    pub fn key_matches(&self, side: Side) -> Vec<String> {
        self.key
            .iter()
            .map(|at| &self.columns[*at])
            .map(|own| own.text_or_null(own.matched(side, &self.reading)))
            .collect()
    }

    /// The texts of the key's values, which either side reads as its own.
    pub fn key_texts(&self) -> Vec<String> {
        self.key
            .iter()
            .map(|at| {
                let own = &self.columns[*at];
                own.text_or_null(text_of(&column(&own.name)))
            })
            .collect()
    }

    /// The key's columns, for ORDER BY.
    pub fn key_order(&self) -> String {
        self.key_columns().join(", ")
    }

    fn key_columns(&self) -> Vec<String> {
        self.key
            .iter()
            .map(|at| column(&self.columns[*at].name))
            .collect()
    }

    /// Whether a row's key lies on one side of another: `operator` is one of those that order.
    pub fn key_compared(&self, operator: &str, to: &[Option<String>]) -> String {
        let to: Vec<String> = (to.iter().zip(&self.key))
            .map(|(text, at)| self.columns[*at].literal_of(text.as_deref().unwrap_or("")))
            .collect();
        match (self.key_columns().as_slice(), to.as_slice()) {
            ([column], [to]) => format!("{column} OPERATOR(pg_catalog.{operator}) {to}"),
            (columns, to) => {
                let rows = format!(
                    "ROW({}) OPERATOR(pg_catalog.{operator}) ROW({})",
                    columns.join(", "),
                    to.join(", ")
                );
                // The planner takes two bounds of rows for two conditions that have nothing to do with each other,
                // and a small range for a large part of the table. Of one column it knows better.
                let loose = if operator.starts_with('>') {
                    ">="
                } else {
                    "<="
                };
                match (columns.first(), to.first()) {
                    (Some(column), Some(to)) => {
                        format!("{column} OPERATOR(pg_catalog.{loose}) {to} AND {rows}")
                    }
                    _ => rows,
                }
            }
        }
    }

    /// Whether a row's key is one of these.
    pub fn key_is_one_of(&self, side: Side, keys: &[&[Option<String>]]) -> String {
        let columns = self.key_columns();
        let column_of = |at: usize| {
            let mut array = ArrayLiteral::default();
            keys.iter()
                .for_each(|key| array.push(key.get(at).and_then(Option::as_deref)));
            literal(&array.into_text())
        };
        // Of arrays there are no arrays.
        let is_array = |at: &usize| self.columns[*at].here_type.base.starts_with('_');
        // NULL is equal to none of an array.
        let has_null = keys.iter().any(|key| key.iter().any(Option::is_none));
        if let [column] = columns.as_slice()
            && !self.key.iter().any(is_array)
            && !has_null
        {
            let wide = self.key.first().and_then(|at| self.columns[*at].wide());
            let wide = wide.map(|own| format!("::{own}[]")).unwrap_or_default();
            return format!("{column} {EQ} ANY ({}{wide})", column_of(0));
        }
        let types: Option<Vec<String>> = (self.key.iter())
            .map(|at| &self.columns[*at])
            .map(|own| {
                let wide = own.wide().map(str::to_owned);
                wide.or_else(|| own.own_scalar(side))
            })
            .collect();
        match (columns.as_slice(), types) {
            (columns, Some(types)) if keys.len() > 1 && !has_null => {
                let arrays: Vec<String> = (types.iter().enumerate())
                    .map(|(at, own)| format!("{}::{own}[]", column_of(at)))
                    .collect();
                let names: Vec<String> = (0..columns.len()).map(|at| format!("k{at}")).collect();
                let equal: Vec<String> = (columns.iter().zip(&names))
                    .map(|(column, name)| format!("{column} {EQ} of_keys.{name}"))
                    .collect();
                format!(
                    "EXISTS (SELECT FROM ROWS FROM (pg_catalog.unnest({})) AS of_keys({}) WHERE {})",
                    arrays.join("), pg_catalog.unnest("),
                    names.join(", "),
                    equal.join(" AND ")
                )
            }
            (columns, _) => {
                let one = |key: &&[Option<String>]| {
                    let named = columns.iter().zip(&self.key);
                    let parts = named.zip(*key).map(|((column, at), text)| match text {
                        Some(text) => {
                            format!("{column} {EQ} {}", self.columns[*at].literal_of(text))
                        }
                        None => format!("{column} IS NULL"),
                    });
                    format!("({})", parts.collect::<Vec<_>>().join(" AND "))
                };
                keys.iter().map(one).collect::<Vec<_>>().join(" OR ")
            }
        }
    }

    /// Whether the value here of a column that orders versions is smaller than one from the other side. NULL
    /// is the smallest.
    pub fn is_smaller(&self, at: usize, collated: bool, than: &str) -> String {
        let (value, than) = (column(&self.columns[at].name), literal(than));
        let collate = if collated {
            " COLLATE pg_catalog.\"C\""
        } else {
            ""
        };
        format!("COALESCE({value}{collate} OPERATOR(pg_catalog.<) {than}, true)")
    }

    /// A text as a value of a column's type here.
    pub fn typed(&self, at: usize, text: Option<&str>) -> String {
        format!(
            "CAST({} AS {})",
            literal_or_null(text),
            self.columns[at].here_type.declared
        )
    }

    /// Whether a column here that is limited to some characters has room for a text, as an assignment sees it.
    pub fn has_room(&self, at: usize, text: &str) -> bool {
        let here = &self.columns[at].here_type;
        let limit = |modifier: i32| usize::try_from(modifier).ok().filter(|limit| *limit > 0);
        let (has, limit) = match here.base.as_str() {
            "varchar" | "bpchar" => (
                text.trim_end_matches(' ').chars().count(),
                limit(here.modifier - 4),
            ),
            "bit" => {
                let digits = text.chars().count();
                return limit(here.modifier).is_none_or(|limit| digits == limit);
            }
            "varbit" => (text.chars().count(), limit(here.modifier)),
            _ => return true,
        };
        !here.own || limit.is_none_or(|limit| has <= limit)
    }

    /// Hashes of each column's value.
    pub fn column_hashes(&self, side: Side) -> String {
        let hashes: Vec<String> = (self.columns.iter())
            .map(|column| {
                let value = column.value(side, &self.reading);
                let text = format!("ROW({value})::pg_catalog.text");
                format!("({})::pg_catalog.text", self.hash_of(&text))
            })
            .collect();
        // A function takes 100 arguments at most.
        let chunks: Vec<String> = hashes
            .chunks(50)
            .map(|some| format!("ARRAY[{}]", some.join(", ")))
            .collect();
        chunks.join(" OPERATOR(pg_catalog.||) ")
    }

    /// The key as JSON object, as text.
    pub fn key_json(&self) -> String {
        json_of(self.key.iter().map(|at| &self.columns[*at]))
    }

    /// The row as JSON object, as text; NULL where it has more bytes than `limit`.
    pub fn row_json(&self, limit: usize) -> String {
        self.unless_longer(limit, &json_of(self.columns.iter()))
    }

    /// The texts of all values, as JSON array; NULL where they have more bytes than `limit`.
    pub fn row_texts(&self, limit: usize) -> String {
        let texts: Vec<String> = (self.columns.iter())
            .map(|own| {
                let value = column(&own.name);
                let text = text_of(&value);
                // Not IS NULL, which holds for a composite value of nothing but NULL.
                format!("CASE WHEN pg_catalog.num_nulls({value}) {EQ} 0 THEN {text} END")
            })
            .collect();
        // A function takes 100 arguments at most.
        let chunks: Vec<String> = texts
            .chunks(50)
            .map(|some| format!("ARRAY[{}]", some.join(", ")))
            .collect();
        let all = chunks.join(" OPERATOR(pg_catalog.||) ");
        self.unless_longer(limit, &format!("pg_catalog.to_json({all})"))
    }

    fn unless_longer(&self, limit: usize, value: &str) -> String {
        let values: Vec<String> = self.columns.iter().map(|own| column(&own.name)).collect();
        format!(
            "CASE WHEN pg_catalog.octet_length(ROW({})::pg_catalog.text) \
             OPERATOR(pg_catalog.<=) {limit} THEN {value} END",
            values.join(", ")
        )
    }

    fn hash_of(&self, text: &str) -> String {
        match self.hash {
            Hash::Fast => {
                format!("pg_catalog.hashtextextended(({text}) COLLATE pg_catalog.\"C\", 0)")
            }
            Hash::Md5 { .. } => format!(
                "('x' OPERATOR(pg_catalog.||) pg_catalog.substr(pg_catalog.md5({}), 1, 16))\
                 ::pg_catalog.bit(64)::pg_catalog.int8",
                self.bytes_of(text)
            ),
        }
    }

    /// The text, or its bytes in UTF-8 where the database has them in another encoding.
    fn bytes_of(&self, text: &str) -> String {
        match self.hash {
            Hash::Md5 { converts: true } => format!("pg_catalog.convert_to({text}, 'UTF8')"),
            _ => text.to_owned(),
        }
    }
}

fn column(name: &str) -> String {
    format!("new.{}", ident(name))
}

/// What an output function writes of a value that is not NULL.
fn text_of(value: &str) -> String {
    format!("pg_catalog.format('%s', {value})")
}

fn json_of<'c>(columns: impl Iterator<Item = &'c Column>) -> String {
    let columns: Vec<String> = columns
        .map(|own| format!("{} AS {}", column(&own.name), ident(&own.name)))
        .collect();
    format!(
        "(SELECT pg_catalog.to_jsonb(r)::pg_catalog.text FROM (SELECT {}) AS r)",
        columns.join(", ")
    )
}

/// Which version of the row it is; views have none to tell.
fn version(kind: Option<&str>) -> &'static str {
    match kind {
        Some("r" | "p" | "m") => "t.xmin::pg_catalog.text",
        _ => "''::pg_catalog.text",
    }
}

/// The name of the column that tells a row's version. No user's column can be called so.
pub const VERSION: &str = "new.xmin";

fn source_here(table: &Table, facts: &Facts) -> String {
    let only = if table.partitioned { "" } else { "ONLY " };
    let version = version(facts.kind.as_deref());
    format!(
        "(SELECT t.*, {version} AS xmin FROM {only}{} AS t) AS new",
        relation(&table.name)
    )
}

fn source_there(target: &Relation, columns: &[Column], facts: &Facts) -> String {
    let columns: Vec<String> = columns
        .iter()
        .map(|own| format!("t.{} AS {}", ident(&own.there), ident(&own.name)))
        .collect();
    let version = version(facts.kind.as_deref());
    format!(
        "(SELECT {}, {version} AS xmin FROM {} AS t) AS new",
        columns.join(", "),
        relation(target)
    )
}

/// Types whose order is the same everywhere; of those with a collation, where that is.
const ORDERED: [&str; 22] = [
    "bool",
    "int2",
    "int4",
    "int8",
    "oid",
    "numeric",
    "float4",
    "float8",
    "uuid",
    "bytea",
    "date",
    "time",
    "timetz",
    "timestamp",
    "timestamptz",
    "interval",
    "inet",
    "macaddr",
    "text",
    "varchar",
    "bpchar",
    "name",
];

/// Types that are in one order together.
const NUMBERS: [&str; 4] = ["int2", "int4", "int8", "numeric"];

/// Whether values of both types are in the same order. Where that is not quite so, more is compared than need
/// be.
fn sort_alike(here: &ColumnFacts, there: &ColumnFacts, facts: [&Facts; 2]) -> bool {
    let is_number = |column: &ColumnFacts| NUMBERS.contains(&&*column.base);
    let same_type = here.base == there.base || (is_number(here) && is_number(there));
    let sorts_by = |column: &ColumnFacts, facts: &Facts| match column.collation.as_str() {
        "default" => facts.default_collation.clone(),
        other => other.to_owned(),
    };
    let same_order = sorts_by(here, facts[0]) == sorts_by(there, facts[1])
        && (here.collation.is_empty() || facts[0].encoding == facts[1].encoding);
    here.own
        && there.own
        && same_type
        && ORDERED.contains(&&*here.base)
        && here.deterministic
        && there.deterministic
        && same_order
}

impl Column {
    /// The name of its type on a side, where that is one of PostgreSQL's own of which there are arrays.
    fn own_scalar(&self, side: Side) -> Option<String> {
        let facts = match side {
            Side::Here => &self.here_type,
            Side::There => &self.there_type,
        };
        let is_scalar = facts.own && !facts.base.starts_with('_');
        is_scalar.then(|| format!("pg_catalog.{}", ident(&facts.base)))
    }

    /// The type as which a number is read that may be too large for the type of one side: one that has the
    /// numbers of both, in whose order their indexes are.
    fn wide(&self) -> Option<&'static str> {
        let (here, there) = (&self.here_type, &self.there_type);
        let is_number = |facts: &ColumnFacts| facts.own && NUMBERS.contains(&&*facts.base);
        if here.base == there.base || !is_number(here) || !is_number(there) {
            return None;
        }
        Some(match (&*here.base, &*there.base) {
            ("numeric", _) | (_, "numeric") => "pg_catalog.numeric",
            _ => "pg_catalog.int8",
        })
    }

    /// A value from either side, for either side.
    fn literal_of(&self, text: &str) -> String {
        match self.wide() {
            Some(wide) => format!("{}::{wide}", literal(text)),
            None => literal(text),
        }
    }

    /// Whether a value from here is read there as another type.
    fn is_converted(&self) -> bool {
        self.here_type.declared != self.there_type.declared && self.there_type.own
    }

    /// Whether the type there can hold the value; `None` where that goes without saying, or is not known.
    fn fits(&self, reading: &Reading) -> Option<String> {
        if !self.is_converted() {
            return None;
        }
        let (raw, there) = (column(&self.name), &self.there_type);
        let (text, length) = (text_of(&raw), there.modifier - 4);
        let fits = match there.base.as_str() {
            "varchar" | "bpchar" if length > 0 => format!(
                "pg_catalog.rtrim(pg_catalog.substr({text}, {length} OPERATOR(pg_catalog.+) 1), ' ') {EQ} ''"
            ),
            base if is_readable(base) => format!(
                "{}({text}, {}::pg_catalog.regtype, {})",
                reading.holds.as_deref()?,
                literal(&format!("pg_catalog.{}", ident(base))),
                there.modifier
            ),
            _ => return None,
        };
        Some(format!("(pg_catalog.num_nulls({raw}) {EQ} 1 OR {fits})"))
    }

    /// This text of the value as it is read there, or the text that it has here where the type there cannot hold
    /// it; `None` where that need not be asked.
    fn unless_unfit(&self, reading: &Reading, text: &str) -> Option<String> {
        // What is read with CAST is cut where an assignment refuses it.
        let is_cut = ["bit", "varbit", "_bit", "_varbit"].contains(&&*self.there_type.base);
        if !is_readable(&self.there_type.base) || !(is_cut || reading.is_careful.get()) {
            return None;
        }
        let fits = self.fits(reading)?;
        let here = text_of(&column(&self.name));
        Some(format!("CASE WHEN {fits} THEN {text} ELSE {here} END"))
    }

    /// The value as it stands there, or would stand there if it were sent; or its text.
    fn value(&self, side: Side, reading: &Reading) -> String {
        let raw = column(&self.name);
        let there = &self.there_type;
        if side == Side::There || !self.is_converted() {
            return raw;
        }
        let text = text_of(&raw);
        let unless_null = |value: String| format!("CASE WHEN {raw} IS NOT NULL THEN {value} END");
        // Of these, the modifier is the length and four bytes.
        let length = there.modifier - 4;
        match there.base.as_str() {
            // An assignment takes spaces off that are too many, and nothing else.
            "varchar" if length > 0 => unless_null(format!(
                "CASE WHEN pg_catalog.rtrim(pg_catalog.substr({text}, {length} OPERATOR(pg_catalog.+) 1), ' ') {EQ} '' \
                 THEN pg_catalog.substr({text}, 1, {length}) ELSE {text} END"
            )),
            "bpchar" if length > 0 => unless_null(format!(
                "CASE WHEN pg_catalog.char_length(pg_catalog.rtrim({text}, ' ')) OPERATOR(pg_catalog.<=) {length} \
                 THEN pg_catalog.rpad(pg_catalog.rtrim({text}, ' '), {length}, ' ') ELSE {text} END"
            )),
            "text" | "varchar" | "bpchar" | "name" | "char" => raw,
            base if is_readable(base) => {
                let cast = format!("CAST({text} AS {})", there.declared);
                let careful = self.unless_unfit(reading, &text_of(&cast));
                unless_null(careful.unwrap_or(cast))
            }
            _ => raw,
        }
    }

    /// The text of a column of the key, which is NULL where the value is.
    fn text_or_null(&self, text: String) -> String {
        if self.here_type.nullable || self.there_type.nullable {
            format!(
                "CASE WHEN pg_catalog.num_nulls({}) {EQ} 0 THEN {text} END",
                column(&self.name)
            )
        } else {
            text
        }
    }

    /// The text by which the value is held against that of the other side, in a key.
    fn matched(&self, side: Side, reading: &Reading) -> String {
        let text = self.matched_if_held(side);
        match side {
            Side::Here => self.unless_unfit(reading, &text).unwrap_or(text),
            Side::There => text,
        }
    }

    fn matched_if_held(&self, side: Side) -> String {
        let value = self.value(side, &Reading::default());
        let is_converted = value != column(&self.name);
        let (here, there) = (&self.here_type, &self.there_type);
        let of = if side == Side::There || is_converted {
            there
        } else {
            here
        };
        if !of.own {
            let text = text_of(&value);
            return if of.base == "citext" {
                format!("pg_catalog.lower({text})")
            } else {
                text
            };
        }
        match of.base.as_str() {
            "numeric" => text_of(&format!("pg_catalog.trim_scale({value})")),
            "float4" | "float8" => {
                format!(
                    "CASE WHEN {value} {EQ} '0' THEN '0' ELSE {} END",
                    text_of(&value)
                )
            }
            "bpchar" => format!("pg_catalog.rtrim({}, ' ')", text_of(&value)),
            _ => text_of(&value),
        }
    }
}

/// Types that text is read into the same way on both sides.
fn is_readable(base: &str) -> bool {
    const READABLE: [&str; 22] = [
        "bool",
        "int2",
        "int4",
        "int8",
        "float4",
        "float8",
        "numeric",
        "date",
        "time",
        "timetz",
        "timestamp",
        "timestamptz",
        "interval",
        "json",
        "jsonb",
        "uuid",
        "inet",
        "cidr",
        "macaddr",
        "bit",
        "varbit",
        "bytea",
    ];
    READABLE.contains(&base.strip_prefix('_').unwrap_or(base))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(base: &str, declared: &str, modifier: i32) -> ColumnFacts {
        let (base, declared) = (base.to_owned(), declared.to_owned());
        ColumnFacts {
            base,
            declared,
            modifier,
            own: true,
            deterministic: true,
            ..Default::default()
        }
    }

    fn both(here: ColumnFacts, there: ColumnFacts) -> Column {
        Column {
            name: "a".into(),
            there: "b".into(),
            here_type: here,
            there_type: there,
        }
    }

    #[test]
    fn a_value_is_read_as_the_type_that_it_gets_there() {
        let number = facts("numeric", "numeric(10,2)", 655_366);
        let same = both(number.clone(), number.clone());
        assert_eq!(same.value(Side::Here, &Reading::default()), "new.\"a\"");
        let other = both(facts("int4", "integer", -1), number);
        let value = other.value(Side::Here, &Reading::default());
        assert!(value.contains("AS numeric(10,2))"), "{value}");
        assert_eq!(other.value(Side::There, &Reading::default()), "new.\"a\"");
        let text = both(facts("int4", "integer", -1), facts("text", "text", -1));
        assert_eq!(text.value(Side::Here, &Reading::default()), "new.\"a\"");
    }

    /// Of a table whose key has columns of these types.
    fn keyed_by(types: &[&str]) -> Expressions {
        let columns = types.iter().enumerate().map(|(at, base)| Column {
            name: format!("k{at}"),
            ..both(facts(base, base, -1), facts(base, base, -1))
        });
        Expressions {
            here: String::new(),
            there: String::new(),
            columns: columns.collect(),
            key: (0..types.len()).collect(),
            hash: Hash::Fast,
            ordered: true,
            filter: [None, None],
            reading: Reading::default(),
        }
    }

    fn key(texts: &[&str]) -> KeyText {
        texts.iter().map(|text| Some((*text).to_owned())).collect()
    }

    #[test]
    fn a_range_of_rows_is_also_one_of_their_first_column() {
        let of_two = keyed_by(&["int4", "text"]);
        let above = of_two.key_compared(">", &key(&["5", "x"]));
        assert!(
            above.starts_with("new.\"k0\" OPERATOR(pg_catalog.>=) '5' AND ROW("),
            "{above}"
        );
        let upto = of_two.key_compared("<=", &key(&["7", "x"]));
        assert!(
            upto.starts_with("new.\"k0\" OPERATOR(pg_catalog.<=) '7' AND ROW("),
            "{upto}"
        );
    }

    #[test]
    fn many_keys_are_looked_up_by_arrays_whatever_their_columns() {
        let keys = [key(&["1", "a"]), key(&["2", "b"])];
        let keys: Vec<&[Option<String>]> = keys.iter().map(Vec::as_slice).collect();
        let of_two = keyed_by(&["int4", "text"]).key_is_one_of(Side::Here, &keys);
        assert!(
            of_two.contains("unnest('{\"1\",\"2\"}'::pg_catalog.\"int4\"[])"),
            "{of_two}"
        );
        assert!(!of_two.contains(" OR "), "{of_two}");
        // Of arrays there are no arrays.
        let of_arrays = keyed_by(&["int4", "_int4"]).key_is_one_of(Side::Here, &keys);
        assert!(of_arrays.contains(" OR "), "{of_arrays}");
    }

    #[test]
    fn numbers_that_one_side_cannot_hold_are_compared_as_a_type_that_can() {
        let pair = |here: &str, there: &str| Expressions {
            columns: vec![both(facts(here, here, -1), facts(there, there, -1))],
            key: vec![0],
            ..keyed_by(&[])
        };
        let above = |here, there| pair(here, there).key_compared(">", &key(&["70000"]));
        assert!(above("int4", "int2").ends_with("'70000'::pg_catalog.int8"));
        assert!(above("int4", "numeric").ends_with("'70000'::pg_catalog.numeric"));
        assert!(above("int4", "int4").ends_with("'70000'"));
        let keys = key(&["70000"]);
        let one = pair("int4", "int2").key_is_one_of(Side::There, &[&keys]);
        assert!(one.ends_with("::pg_catalog.int8[])"), "{one}");
    }

    #[test]
    fn only_types_that_sort_alike_are_cut_into_ranges() {
        let sides = [&Facts::default(), &Facts::default()];
        let (int4, int8) = (facts("int4", "integer", -1), facts("int8", "bigint", -1));
        assert!(sort_alike(&int4, &int8, sides));
        assert!(!sort_alike(&int4, &facts("text", "text", -1), sides));
        assert!(!sort_alike(
            &facts("jsonb", "jsonb", -1),
            &facts("jsonb", "jsonb", -1),
            sides
        ));
        let text = |collation: &str| ColumnFacts {
            collation: collation.to_owned(),
            ..facts("text", "text", -1)
        };
        assert!(sort_alike(&text("c C"), &text("c C"), sides));
        assert!(!sort_alike(&text("c C"), &text("c de_DE"), sides));
        let german = Facts {
            default_collation: "c de_DE".into(),
            ..Facts::default()
        };
        assert!(!sort_alike(
            &text("default"),
            &text("default"),
            [&Facts::default(), &german]
        ));
    }
}
