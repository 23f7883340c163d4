//! Parts of a table, and the questions by which they are summed up, cut and fetched. Pure.

use super::expressions::{Expressions, KeyText, VERSION};
use super::sides::{MAX_LIST_BYTES, Side};
use crate::error::{Error, Result};
use crate::sql::quote::literal;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

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

/// Rows with their hash.
const HASHED: &str = "hashed AS new";
/// The column that tells it. No user's column can be called so.
const HASH: &str = "new.cmin";

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
pub fn sums_of_ranges(expressions: &Expressions, parts: &[&Part], side: Side) -> String {
    let one = |(at, part): (usize, &&Part)| {
        let condition = part.condition(expressions, side);
        let rows = expressions.rows_of(HASHED, side, condition.as_deref().as_slice());
        format!("SELECT {at} AS n, pg_catalog.count(*) AS c, pg_catalog.sum({HASH}) AS s {rows}")
    };
    let all: Vec<String> = parts.iter().enumerate().map(one).collect();
    format!(
        "{} SELECT pg_catalog.json_agg(pg_catalog.json_build_array(p.c, p.s::pg_catalog.text) ORDER BY p.n) \
         FROM ({}) AS p",
        with_hashed(expressions, side),
        all.join(" UNION ALL ")
    )
}

/// What is said of each range is what most of the traffic consists of: what all have in common is said once.
fn with_hashed(expressions: &Expressions, side: Side) -> String {
    format!(
        "WITH hashed AS NOT MATERIALIZED (SELECT new.*, {} AS cmin {})",
        expressions.row_hash(side),
        expressions.all_rows(side, "")
    )
}

/// Asks for the sums of what cuts make of ranges, numbered in their order through all of them: of those that have
/// rows. A range is one scan, however often it is cut.
pub fn sums_of_cut_ranges(
    expressions: &Expressions,
    ranges: &[(&Part, &[KeyText])],
    side: Side,
) -> String {
    let mut first = 0;
    let one = |(part, cuts): &(&Part, &[KeyText])| {
        let condition = part.condition(expressions, side);
        let below: Vec<String> = (cuts.iter().enumerate())
            .map(|(at, cut)| {
                let is_below = expressions.key_compared("<=", cut);
                format!("WHEN {is_below} THEN {} ", first + at)
            })
            .collect();
        let last = first + cuts.len();
        first = last + 1;
        let number = if below.is_empty() {
            last.to_string()
        } else {
            format!("CASE {}ELSE {last} END", below.concat())
        };
        format!(
            "SELECT {number} AS n, {HASH} AS h {}",
            expressions.rows_of(HASHED, side, condition.as_deref().as_slice())
        )
    };
    let all: Vec<String> = ranges.iter().map(one).collect();
    format!(
        "{} SELECT pg_catalog.json_agg(pg_catalog.json_build_array(p.n, p.c, p.s::pg_catalog.text)) \
         FROM (SELECT r.n, pg_catalog.count(*) AS c, pg_catalog.sum(r.h) AS s \
               FROM ({}) AS r GROUP BY r.n) AS p",
        with_hashed(expressions, side),
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

/// Asks for all rows of a part; see [`is_too_long`].
pub fn list(expressions: &Expressions, part: &Part, side: Side) -> String {
    let condition = part.condition(expressions, side);
    let key_hash = match part {
        Part::Range { .. } => "NULL".to_owned(),
        Part::Buckets { .. } => format!("{}::pg_catalog.text", expressions.key_hash(side)),
    };
    unless_too_long(
        &format!(
            "pg_catalog.json_agg(pg_catalog.json_build_array({}, {key_hash}))",
            row_fields(expressions, side)
        ),
        &expressions.rows(side, condition.as_deref().as_slice()),
    )
}

/// What answers instead of what has more than [`MAX_LIST_BYTES`].
const TOO_LONG: &str = "\"too long\"";

/// Asks for a value, which may be too long for an answer: how long keys are is not known before.
fn unless_too_long(value: &str, from: &str) -> String {
    format!(
        "SELECT CASE WHEN pg_catalog.octet_length(a.t) OPERATOR(pg_catalog.>) {MAX_LIST_BYTES} \
           THEN {} ELSE a.t END FROM (SELECT {value}::pg_catalog.text AS t {from}) AS a",
        literal(TOO_LONG)
    )
}

/// Whether a side's answer to [`list`] or [`look_up`] would have been too long: less is to be asked for.
pub fn is_too_long(answers: &[Option<String>; 2]) -> bool {
    answers
        .iter()
        .any(|answer| answer.as_deref() == Some(TOO_LONG))
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
    /// See [`Expressions::row_fits`].
    pub fits: bool,
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

/// Asks for everything about rows with these keys; see [`is_too_long`].
pub fn look_up(expressions: &Expressions, keys: &[&Listed], wanted: Wanted, side: Side) -> String {
    let hashes: Option<Vec<&str>> = keys.iter().map(|key| key.key_hash.as_deref()).collect();
    let condition = match hashes {
        None => {
            let keys: Vec<&[Option<String>]> = keys.iter().map(|key| key.key.as_slice()).collect();
            expressions.key_is_one_of(side, &keys)
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
    unless_too_long(
        &format!(
            "pg_catalog.json_agg(pg_catalog.json_build_array({}, NULL, \
               pg_catalog.to_json({}), {}, {row}, {}))",
            row_fields(expressions, side),
            expressions.column_hashes(side),
            expressions.key_json(),
            expressions.row_fits(side)
        ),
        &expressions.rows(side, &[&condition]),
    )
}

/// A key has two texts; where they are the same, one is sent.
fn row_fields(expressions: &Expressions, side: Side) -> String {
    let (matches, texts) = (expressions.key_matches(side), expressions.key_texts());
    let matched = if matches == texts {
        "NULL".to_owned()
    } else {
        format!("pg_catalog.json_build_array({})", matches.join(", "))
    };
    format!(
        "{matched}, pg_catalog.json_build_array({}), {}::pg_catalog.text, {VERSION}",
        texts.join(", "),
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

/// The answer to [`sums_of_cut_ranges`], of so many parts.
pub fn read_cut_sums(value: &Value, parts: usize) -> Result<Vec<Sum>> {
    let mut sums = vec![Sum::default(); parts];
    for (number, sum) in read_buckets(value)? {
        let at = usize::try_from(number).map_err(|_| malformed())?;
        *sums.get_mut(at).ok_or_else(malformed)? = sum;
    }
    Ok(sums)
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

/// A text of an answer, which most often can stay there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Text<'de>;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a text")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> std::result::Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Texts)
    }
}

type Key<'a> = Vec<Option<Text<'a>>>;

/// A row in the answer to [`list`]: see [`row_fields`], and the hash of its key.
#[derive(Deserialize)]
struct Answered<'a>(
    #[serde(borrow)] Option<Key<'a>>,
    #[serde(borrow)] Key<'a>,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Option<Text<'a>>,
);

impl<'a> Answered<'a> {
    fn matched(&self) -> &Key<'a> {
        self.0.as_ref().unwrap_or(&self.1)
    }

    /// Its key and its hash; where both are equal, rows are the same.
    fn content(&self) -> (&Key<'a>, &Text<'a>) {
        (self.matched(), &self.2)
    }

    fn into_listed(self) -> Listed {
        let owned = |text: Text<'_>| text.0.into_owned();
        let key = |key: Key<'_>| -> KeyText { key.into_iter().map(|one| one.map(owned)).collect() };
        let Self(matched, texts, hash, version, key_hash) = self;
        let texts = key(texts);
        Listed {
            matched: matched.map_or_else(|| texts.clone(), key),
            key: texts,
            state: State {
                hash: owned(hash),
                version: owned(version),
            },
            key_hash: key_hash.map(owned),
        }
    }
}

fn answered<'a, T: Deserialize<'a>>(text: Option<&'a str>) -> Result<Vec<T>> {
    match text {
        Some(text) => serde_json::from_str(text).map_err(|_| malformed()),
        None => Ok(Vec::new()),
    }
}

/// The rows in the answers to [`list`] that are not the same on both sides.
pub fn read_unequal([here, there]: [Option<&str>; 2]) -> Result<[Vec<Listed>; 2]> {
    fn sorted(text: Option<&str>) -> Result<Vec<Answered<'_>>> {
        let mut rows: Vec<Answered<'_>> = answered(text)?;
        rows.sort_unstable_by(|one, other| {
            (one.content(), &one.3).cmp(&(other.content(), &other.3))
        });
        Ok(rows)
    }
    let (mut here, mut there) = (
        sorted(here)?.into_iter().peekable(),
        sorted(there)?.into_iter().peekable(),
    );
    let [mut only_here, mut only_there] = [Vec::new(), Vec::new()];
    loop {
        let order = match (here.peek(), there.peek()) {
            (Some(here), Some(there)) => here.content().cmp(&there.content()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return Ok([only_here, only_there]),
        };
        if order == Ordering::Equal {
            here.next();
            there.next();
        } else if order == Ordering::Less {
            only_here.extend(here.next().map(Answered::into_listed));
        } else {
            only_there.extend(there.next().map(Answered::into_listed));
        }
    }
}

/// What is told of a row besides, in an answer to [`look_up`].
#[derive(Deserialize)]
#[serde(untagged)]
enum Told {
    Json(String),
    Texts(KeyText),
}

/// A row in the answer to [`look_up`].
#[derive(Deserialize)]
struct AnsweredFull<'a>(
    #[serde(borrow)] Option<Key<'a>>,
    #[serde(borrow)] Key<'a>,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Option<Text<'a>>,
    Vec<String>,
    String,
    Option<Told>,
    bool,
);

/// The answer to [`look_up`].
pub fn read_full(text: Option<&str>) -> Result<Vec<Full>> {
    let rows: Vec<AnsweredFull<'_>> = answered(text)?;
    let full = |row: AnsweredFull<'_>| {
        let AnsweredFull(matched, key, hash, version, key_hash, columns, key_json, told, fits) =
            row;
        let (row_json, texts) = match told {
            Some(Told::Json(json)) => (Some(json), None),
            Some(Told::Texts(texts)) => (None, Some(texts)),
            None => (None, None),
        };
        Full {
            listed: Answered(matched, key, hash, version, key_hash).into_listed(),
            columns,
            key_json,
            row_json,
            texts,
            fits,
        }
    };
    Ok(rows.into_iter().map(full).collect())
}
