//! Parts of a table, and the questions by which they are summed up, cut and fetched. Pure.

use super::expressions::{Expressions, KeyText, VERSION};
use super::sides::Side;
use crate::error::{Error, Result};
use crate::sql::quote::literal;
use serde_json::Value;

/// Part of a table: the same rows on both sides, where they are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Rows whose key is above `after` and not above `upto`; `None` is open.
    Range {
        after: Option<KeyText>,
        upto: Option<KeyText>,
    },
    /// Rows the lowest `bits` of the hash of whose key are one of these.
    Buckets { bits: u32, values: Vec<u64> },
}

impl Part {
    /// Which rows it has.
    pub fn condition(&self, expressions: &Expressions, side: Side) -> Option<String> {
        match self {
            Self::Range { after, upto } => {
                let bounds = [(">", after), ("<=", upto)];
                let conditions: Vec<String> = bounds
                    .iter()
                    .filter_map(|(operator, key)| {
                        Some(expressions.key_compared(operator, key.as_deref()?))
                    })
                    .collect();
                (!conditions.is_empty()).then(|| conditions.join(" AND "))
            }
            Self::Buckets { bits: 0, .. } => None,
            Self::Buckets { bits, values } => Some(format!(
                "{} OPERATOR(pg_catalog.=) ANY ('{{{}}}'::pg_catalog.int8[])",
                bucket(expressions, side, *bits),
                values
                    .iter()
                    .map(u64::to_string)
                    .collect::<Vec<_>>()
                    .join(",")
            )),
        }
    }
}

/// The lowest bits of the hash of a row's key.
fn bucket(expressions: &Expressions, side: Side, bits: u32) -> String {
    let mask = (1u64 << bits) - 1;
    format!(
        "({} OPERATOR(pg_catalog.&) {mask}::pg_catalog.int8)",
        expressions.key_hash(side)
    )
}

/// How many rows there are in a part, and what their hashes add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub rows: u64,
    hashes: String,
}

/// Asks for the sums of ranges, in their order.
pub fn sums_of_ranges(expressions: &Expressions, parts: &[Part], side: Side) -> String {
    let hash = expressions.row_hash(side);
    let one = |(at, part): (usize, &Part)| {
        let condition = part.condition(expressions, side);
        let rows = expressions.rows(side, condition.as_deref().as_slice());
        format!("SELECT {at} AS n, pg_catalog.count(*) AS c, pg_catalog.sum({hash}) AS s {rows}")
    };
    let all: Vec<String> = parts.iter().enumerate().map(one).collect();
    format!(
        "SELECT pg_catalog.json_agg(pg_catalog.json_build_array(p.c, p.s::pg_catalog.text) ORDER BY p.n) \
         FROM ({}) AS p",
        all.join(" UNION ALL ")
    )
}

/// Asks for the sums of the buckets of `bits` bits within a part.
pub fn sums_of_buckets(expressions: &Expressions, within: &Part, bits: u32, side: Side) -> String {
    let condition = within.condition(expressions, side);
    format!(
        "SELECT pg_catalog.json_agg(pg_catalog.json_build_array(p.n, p.c, p.s::pg_catalog.text)) \
         FROM (SELECT {} AS n, pg_catalog.count(*) AS c, pg_catalog.sum({}) AS s {} GROUP BY 1) AS p",
        bucket(expressions, side, bits),
        expressions.row_hash(side),
        expressions.rows(side, condition.as_deref().as_slice())
    )
}

/// Asks for the key of every `step`th row of a range; of `limit` rows at most, where that is given.
pub fn bounds(
    expressions: &Expressions,
    part: &Part,
    side: Side,
    step: u64,
    limit: Option<u64>,
) -> String {
    let condition = part.condition(expressions, side);
    // Counted are rows that count; where a table is walked through, any will do.
    let rows = match limit {
        Some(_) => expressions.all_rows(side, condition.as_deref().unwrap_or("")),
        None => expressions.rows(side, condition.as_deref().as_slice()),
    };
    let limit = limit
        .map(|limit| format!(" LIMIT {limit}"))
        .unwrap_or_default();
    let (texts, order) = (expressions.key_texts().join(", "), expressions.key_order());
    format!(
        "SELECT pg_catalog.json_agg(p.k ORDER BY p.n) FROM ( \
           SELECT pg_catalog.json_build_array({texts}) AS k, new.\"row of part\" AS n \
           FROM (SELECT {order}, pg_catalog.row_number() OVER (ORDER BY {order}) AS \"row of part\" \
                 {rows} ORDER BY {order}{limit}) AS new \
           WHERE (new.\"row of part\" OPERATOR(pg_catalog.%) {step}) OPERATOR(pg_catalog.=) 0) AS p"
    )
}

/// A row as key and hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// See [`Expressions::key_matches`].
    pub matched: KeyText,
    /// See [`Expressions::key_texts`].
    pub key: KeyText,
    /// Where parts are buckets: the hash of the key.
    pub key_hash: Option<String>,
    pub state: State,
}

/// What a row is: its hash, and which version of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct State {
    pub hash: String,
    version: String,
}

/// Asks for all rows of a part.
pub fn list(expressions: &Expressions, part: &Part, side: Side) -> String {
    let condition = part.condition(expressions, side);
    let key_hash = match part {
        Part::Range { .. } => "NULL".to_owned(),
        Part::Buckets { .. } => format!("{}::pg_catalog.text", expressions.key_hash(side)),
    };
    format!(
        "SELECT pg_catalog.json_agg(pg_catalog.json_build_array({}, {key_hash})) {}",
        row_fields(expressions, side),
        expressions.rows(side, condition.as_deref().as_slice())
    )
}

/// A row with everything that is told of it.
#[derive(Clone, Debug)]
pub struct Full {
    pub listed: Listed,
    /// The hash of each column's value.
    pub columns: Vec<String>,
    pub key_json: String,
    pub row_json: Option<String>,
    /// The texts of all values.
    pub texts: Option<KeyText>,
}

/// What is asked of rows besides their key and hashes, of those with so many bytes of text at most.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    Nothing,
    /// The row as it is told to people.
    Json(usize),
    /// The texts of its values.
    Texts(usize),
}

/// Asks for everything about rows with these keys.
pub fn look_up(expressions: &Expressions, keys: &[&Listed], wanted: Wanted, side: Side) -> String {
    let hashes: Option<Vec<&str>> = keys.iter().map(|key| key.key_hash.as_deref()).collect();
    let condition = match hashes {
        None => {
            let keys: Vec<&[Option<String>]> = keys.iter().map(|key| key.key.as_slice()).collect();
            expressions.key_is_one_of(&keys)
        }
        Some(hashes) => format!(
            "{} OPERATOR(pg_catalog.=) ANY ({}::pg_catalog.int8[])",
            expressions.key_hash(side),
            literal(&format!("{{{}}}", hashes.join(",")))
        ),
    };
    let row = match wanted {
        Wanted::Nothing => "NULL".to_owned(),
        Wanted::Json(limit) => expressions.row_json(limit),
        Wanted::Texts(limit) => expressions.row_texts(limit),
    };
    format!(
        "SELECT pg_catalog.json_agg(pg_catalog.json_build_array({}, NULL, \
           pg_catalog.to_json({}), {}, {row})) {}",
        row_fields(expressions, side),
        expressions.column_hashes(side),
        expressions.key_json(),
        expressions.rows(side, &[&condition])
    )
}

fn row_fields(expressions: &Expressions, side: Side) -> String {
    format!(
        "pg_catalog.json_build_array({}), pg_catalog.json_build_array({}), {}::pg_catalog.text, {VERSION}",
        expressions.key_matches(side).join(", "),
        expressions.key_texts().join(", "),
        expressions.row_hash(side)
    )
}

/// What a side has answered that no honest one does.
fn malformed() -> Error {
    Error::internal("malformed answer to a comparison")
}

fn items(value: &Value) -> Result<&[Value]> {
    match value {
        Value::Null => Ok(&[]),
        Value::Array(items) => Ok(items),
        _ => Err(malformed()),
    }
}

fn text(value: Option<&Value>) -> Result<String> {
    value
        .and_then(Value::as_str)
        .map(str::to_owned)
        .ok_or_else(malformed)
}

fn number(value: Option<&Value>) -> Result<u64> {
    value.and_then(Value::as_u64).ok_or_else(malformed)
}

fn key(value: Option<&Value>) -> Result<KeyText> {
    let texts = items(value.ok_or_else(malformed)?)?.iter();
    texts
        .map(|text| match text {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text.clone())),
            _ => Err(malformed()),
        })
        .collect()
}

fn sum(rows: Option<&Value>, hashes: Option<&Value>) -> Result<Sum> {
    let hashes = hashes.and_then(Value::as_str).unwrap_or("0").to_owned();
    Ok(Sum {
        rows: number(rows)?,
        hashes,
    })
}

/// The answer to [`sums_of_ranges`].
pub fn read_sums(value: &Value, parts: usize) -> Result<Vec<Sum>> {
    let sums: Vec<Sum> = items(value)?
        .iter()
        .map(|item| sum(item.get(0), item.get(1)))
        .collect::<Result<_>>()?;
    if sums.len() == parts {
        Ok(sums)
    } else {
        Err(malformed())
    }
}

/// The answer to [`sums_of_buckets`].
pub fn read_buckets(value: &Value) -> Result<Vec<(u64, Sum)>> {
    let one = |item: &Value| Ok((number(item.get(0))?, sum(item.get(1), item.get(2))?));
    items(value)?.iter().map(one).collect()
}

/// The answer to [`bounds`].
pub fn read_bounds(value: &Value) -> Result<Vec<KeyText>> {
    items(value)?.iter().map(|item| key(Some(item))).collect()
}

fn listed(item: &Value) -> Result<Listed> {
    Ok(Listed {
        matched: key(item.get(0))?,
        key: key(item.get(1))?,
        state: State {
            hash: text(item.get(2))?,
            version: text(item.get(3))?,
        },
        key_hash: item.get(4).and_then(Value::as_str).map(str::to_owned),
    })
}

/// The answer to [`list`].
pub fn read_list(value: &Value) -> Result<Vec<Listed>> {
    items(value)?.iter().map(listed).collect()
}

/// The answer to [`look_up`].
pub fn read_full(value: &Value) -> Result<Vec<Full>> {
    items(value)?
        .iter()
        .map(|item| {
            let columns = items(item.get(5).ok_or_else(malformed)?)?.iter();
            Ok(Full {
                listed: listed(item)?,
                columns: columns
                    .map(|hash| text(Some(hash)))
                    .collect::<Result<_>>()?,
                key_json: text(item.get(6))?,
                row_json: item.get(7).and_then(Value::as_str).map(str::to_owned),
                texts: item
                    .get(7)
                    .filter(|row| row.is_array())
                    .map(|row| key(Some(row)))
                    .transpose()?,
            })
        })
        .collect()
}
