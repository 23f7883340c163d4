//! What becomes of the values of a type that go into a column of another one. Pure.
//!
//! A value travels as the text that its type writes and is read by the type of the column there, whose length,
//! precision and scale it then takes on. So what two types make of one text is what counts, not the cast that
//! SQL has between them. The rules are held against a server value by value, by the test that writes
//! `doc/types.md`.

use serde::Deserialize;
use std::collections::HashMap;

/// What becomes of values, from harmless to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fidelity {
    /// Each arrives as it is.
    Equal,
    /// Each arrives as it is, but the column's collation there takes some for equal that differ here. Deliveries
    /// compare as the column does.
    Collating,
    /// Each arrives as it is, but a type of an extension takes some for equal there that differ here. Deliveries,
    /// which compare as the type here does, refuse such keys.
    Folding,
    /// Each arrives as it is, but some that differ here are equal there.
    Merging,
    /// Some are refused there with an error; the others arrive as they are.
    Narrower,
    /// Some arrive written otherwise; none is lost.
    Rewritten,
    /// Nothing is known of the two types.
    Unknown,
    /// Some lose something there, without an error.
    Coarser,
    /// None arrives.
    Never,
}

impl Fidelity {
    /// Whether rows that differ here by such a column may be one there, or not be found there again.
    pub fn is_coarser_key(self) -> bool {
        matches!(self, Self::Merging | Self::Coarser | Self::Never)
    }
}

/// What becomes of values, and how: the end of a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversion {
    pub fidelity: Fidelity,
    pub why: String,
}

/// A type as the catalogs describe it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TypeFacts {
    schema: String,
    name: String,
    /// `pg_type.typtype`.
    kind: String,
    /// Of a domain.
    base: u32,
    /// Of a domain: the modifier of its base.
    modifier: i32,
    /// Of an array.
    element: u32,
    /// Of a range or multirange.
    subtype: u32,
    /// Of an enum, in order.
    labels: Vec<String>,
    /// Of a composite: name, type, modifier.
    fields: Vec<(String, u32, i32)>,
}

/// The types of a relation's columns and what they are made of, by OID.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Types(HashMap<u32, TypeFacts>);

impl Types {
    /// Whether all names pass the test.
    pub fn is_sound(&self, is_name: impl Fn(&str) -> bool) -> bool {
        self.0.values().all(|one| {
            let fields = one.fields.iter().map(|field| &field.0);
            [&one.schema, &one.name]
                .into_iter()
                .chain(&one.labels)
                .chain(fields)
                .all(|n| is_name(n))
        })
    }

    /// A type and its modifier, of a domain those that it stands for.
    fn resolve(&self, mut id: u32, mut modifier: i32) -> Option<(&TypeFacts, i32)> {
        for _ in 0..MAX_DEPTH {
            let found = self.0.get(&id)?;
            if found.kind != "d" {
                return Some((found, modifier));
            }
            modifier = found.modifier;
            id = found.base;
        }
        None
    }
}

/// Types within types, at most: a server may say anything.
const MAX_DEPTH: usize = 16;

/// What becomes of values of a type here that go into one there. Each type is an OID and a modifier.
pub fn compare(here: &Types, from: (u32, i32), there: &Types, to: (u32, i32)) -> Conversion {
    within(here, from, there, to, MAX_DEPTH)
}

fn within(
    here: &Types,
    from: (u32, i32),
    there: &Types,
    to: (u32, i32),
    depth: usize,
) -> Conversion {
    let resolved = here.resolve(from.0, from.1).zip(there.resolve(to.0, to.1));
    let Some(((source, from_modifier), (target, to_modifier))) = resolved.filter(|_| depth > 0)
    else {
        return unknown();
    };
    let inner = |from, to| within(here, from, there, to, depth - 1);
    if source.element != 0 && target.element != 0 {
        return inner(
            (source.element, from_modifier),
            (target.element, to_modifier),
        );
    }
    let kinds = (source.kind.as_str(), target.kind.as_str());
    match kinds {
        ("e", "e") => return enums(&source.labels, &target.labels),
        ("r", "r") | ("m", "m") => return inner((source.subtype, -1), (target.subtype, -1)),
        ("c", "c") if source.fields.len() != target.fields.len() => {
            return verdict(
                Fidelity::Never,
                "the two have not the same number of fields",
            );
        }
        ("c", "c") => {
            let pairs = source.fields.iter().zip(&target.fields);
            let all = pairs.map(|(one, other)| inner((one.1, one.2), (other.1, other.2)));
            return all.max_by_key(|one| one.fidelity).unwrap_or_else(equal);
        }
        _ => {}
    }
    let source = TypeKind::of(source, from_modifier, has_zone(here, source, MAX_DEPTH));
    plain(&source, &TypeKind::of(target, to_modifier, false))
}

fn enums(here: &[String], there: &[String]) -> Conversion {
    let missing: Vec<&String> = here.iter().filter(|label| !there.contains(label)).collect();
    if missing.is_empty() {
        equal()
    } else {
        let missing = super::finding::quoted(&missing);
        verdict(
            Fidelity::Narrower,
            format!("labels {missing} are not there"),
        )
    }
}

/// Whether a value's text names a time zone other than as part of the value.
fn has_zone(types: &Types, one: &TypeFacts, depth: usize) -> bool {
    let is_own = one.schema == "pg_catalog" && one.name == "timestamptz";
    let mut parts = [one.element, one.subtype, one.base]
        .into_iter()
        .chain(one.fields.iter().map(|field| field.1));
    is_own
        || (depth > 0
            && parts.any(|id| {
                let part = types.0.get(&id);
                part.is_some_and(|part| has_zone(types, part, depth - 1))
            }))
}

/// What the rules tell apart. Lengths and precisions are `None` where the type is declared without.
#[derive(Clone, Debug, PartialEq)]
enum TypeKind {
    Text,
    Varchar(Option<i32>),
    Bpchar(Option<i32>),
    Name,
    /// `"char"`.
    Byte,
    /// Bytes.
    Integer(u8),
    /// Bytes.
    Float(u8),
    /// Precision and scale.
    Numeric(Option<(i32, i32)>),
    Money,
    Oid,
    /// `regclass` and its kin.
    Object(String),
    Bit(Option<i32>),
    Varbit(Option<i32>),
    Date,
    /// Digits of a second.
    Time(i32),
    TimeTz(i32),
    Timestamp(i32),
    TimestampTz(i32),
    Interval(i32),
    Enum,
    /// Name, whether it is PostgreSQL's own, modifier, and whether it is made of points in time with a zone.
    Other {
        name: String,
        own: bool,
        modifier: i32,
        has_zone: bool,
    },
}

impl TypeKind {
    fn of(facts: &TypeFacts, modifier: i32, has_zone: bool) -> Self {
        let own = facts.schema == "pg_catalog";
        let other = || Self::Other {
            name: facts.name.clone(),
            own,
            modifier,
            has_zone,
        };
        if facts.kind == "e" {
            return Self::Enum;
        }
        if !own {
            return other();
        }
        let length = || (modifier >= 4).then(|| modifier - 4);
        let digits = if modifier < 0 { 6 } else { modifier };
        match facts.name.as_str() {
            "text" => Self::Text,
            "varchar" => Self::Varchar(length()),
            "bpchar" => Self::Bpchar(length()),
            "name" => Self::Name,
            "char" => Self::Byte,
            "int2" => Self::Integer(2),
            "int4" => Self::Integer(4),
            "int8" => Self::Integer(8),
            "float4" => Self::Float(4),
            "float8" => Self::Float(8),
            "numeric" => Self::Numeric(length().map(|packed| {
                // From utils/adt/numeric.c: the scale has 11 bits and a sign.
                (packed >> 16 & 0xffff, (packed & 0x7ff ^ 1024) - 1024)
            })),
            "money" => Self::Money,
            "oid" => Self::Oid,
            name if name.starts_with("reg") => Self::Object(name.to_owned()),
            "bit" => Self::Bit((modifier >= 0).then_some(modifier)),
            "varbit" => Self::Varbit((modifier >= 0).then_some(modifier)),
            "date" => Self::Date,
            "time" => Self::Time(digits),
            "timetz" => Self::TimeTz(digits),
            "timestamp" => Self::Timestamp(digits),
            "timestamptz" => Self::TimestampTz(digits),
            "interval" => Self::Interval(modifier),
            _ => other(),
        }
    }

    fn is_text(&self) -> bool {
        matches!(
            self,
            Self::Text | Self::Varchar(_) | Self::Bpchar(_) | Self::Name | Self::Byte
        )
    }

    fn is_other(&self, wanted: &str) -> bool {
        matches!(self, Self::Other { name, own: true, .. } if name == wanted)
    }

    /// Characters of the longest text, as far as that is known.
    fn longest(&self) -> Option<i32> {
        Some(match self {
            Self::Varchar(length) | Self::Bpchar(length) => (*length)?,
            Self::Name => 63,
            Self::Byte => 1,
            Self::Integer(2) => 6,
            Self::Integer(4) => 11,
            Self::Integer(_) => 20,
            Self::Oid => 10,
            Self::Bit(length) | Self::Varbit(length) => (*length)?,
            Self::Other {
                name, own: true, ..
            } if name == "bool" => 1,
            Self::Other {
                name, own: true, ..
            } if name == "uuid" => 36,
            _ => return None,
        })
    }

    /// Decimal digits before the point.
    fn digits(&self) -> Option<i32> {
        Some(match self {
            Self::Integer(2) => 5,
            Self::Integer(4) => 10,
            Self::Integer(_) => 19,
            _ => return None,
        })
    }
}

/// How much a key or version column must be able to hold, by type, so as not to be
/// [coarser](Fidelity::is_coarser_key).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needed {
    /// Of `pg_catalog`, or [`CITEXT`].
    pub name: &'static str,
    /// The least [`measure`]; `None`: no column of the type will do.
    pub least: Option<i32>,
}

/// What holds for columns there, of any type of which something is known, where one here is of
/// the type and modifier.
pub fn needed(name: &str, modifier: i32) -> Vec<Needed> {
    let type_of = |name: &str| TypeFacts {
        schema: "pg_catalog".to_owned(),
        name: name.to_owned(),
        kind: "b".to_owned(),
        ..TypeFacts::default()
    };
    let here = type_of(name);
    let from = TypeKind::of(
        &here,
        modifier,
        has_zone(&Types::default(), &here, MAX_DEPTH),
    );
    let needed = |name: &'static str| {
        let there = type_of(name);
        let too_coarse = |measure: &i32| {
            let to = TypeKind::of(&there, modifier_of(name, *measure), false);
            plain(&from, &to).fidelity.is_coarser_key()
        };
        let measures: Vec<i32> = match name {
            "numeric" => (-1000..=1000).chain([i32::MAX]).collect(),
            "varchar" | "bpchar" => [1]
                .into_iter()
                .chain(from.longest())
                .chain([i32::MAX])
                .collect(),
            "time" | "timetz" | "timestamp" | "timestamptz" => (0..=6).collect(),
            _ => vec![0],
        };
        let least = measures[measures.partition_point(too_coarse)..]
            .first()
            .copied();
        (least != measures.first().copied()).then_some(Needed { name, least })
    };
    let folding = from.is_text().then_some(Needed {
        name: CITEXT,
        least: None,
    });
    let plain = PLAIN_TYPES.into_iter().filter_map(needed);
    plain.chain(folding).collect()
}

/// The type of the extension of that name, in whatever schema.
pub const CITEXT: &str = "citext";

/// Types of which [`plain`] knows something, but for those whose modifiers are not a matter of
/// more or less.
const PLAIN_TYPES: [&str; 28] = [
    "text",
    "varchar",
    "bpchar",
    "name",
    "char",
    "int2",
    "int4",
    "int8",
    "float4",
    "float8",
    "numeric",
    "money",
    "oid",
    "date",
    "time",
    "timetz",
    "timestamp",
    "timestamptz",
    "bool",
    "uuid",
    "bytea",
    "inet",
    "cidr",
    "macaddr",
    "macaddr8",
    "json",
    "jsonb",
    "tsvector",
];

/// SQL for how much a column can hold, from what are expressions for its type's name and
/// modifier: digits after the point, or of a second, or characters.
pub fn measure(name: &str, modifier: &str) -> String {
    let packed = format!("({modifier} OPERATOR(pg_catalog.-) 4)");
    let unlimited = i32::MAX;
    format!(
        "CASE WHEN {name} OPERATOR(pg_catalog.=) 'numeric' AND {modifier} OPERATOR(pg_catalog.>=) 4 \
           THEN (({packed} OPERATOR(pg_catalog.&) 2047) OPERATOR(pg_catalog.#) 1024) \
             OPERATOR(pg_catalog.-) 1024 \
         WHEN {name} OPERATOR(pg_catalog.=) ANY ('{{varchar,bpchar}}'::pg_catalog.name[]) \
              AND {modifier} OPERATOR(pg_catalog.>=) 4 THEN {packed} \
         WHEN {modifier} OPERATOR(pg_catalog.>=) 0 THEN {modifier} \
         WHEN {name} OPERATOR(pg_catalog.=) \
              ANY ('{{time,timetz,timestamp,timestamptz}}'::pg_catalog.name[]) THEN 6 \
         ELSE {unlimited} END"
    )
}

/// The modifier of a type that can hold so much.
fn modifier_of(name: &str, measure: i32) -> i32 {
    match (name, measure) {
        (_, i32::MAX) => -1,
        ("numeric", scale) => (1000 << 16 | scale & 0x7ff) + 4,
        ("varchar" | "bpchar", length) => length + 4,
        ("time" | "timetz" | "timestamp" | "timestamptz", digits) => digits,
        _ => -1,
    }
}

fn verdict(fidelity: Fidelity, why: impl Into<String>) -> Conversion {
    Conversion {
        fidelity,
        why: why.into(),
    }
}

fn equal() -> Conversion {
    verdict(Fidelity::Equal, "")
}

fn unknown() -> Conversion {
    verdict(
        Fidelity::Unknown,
        "what becomes of its values is not known here",
    )
}

const TOO_LARGE: &str = "values that are too large for it are refused there";
const ROUNDED: &str = "values are rounded to what it can hold";
const OF_UTC: &str = "points in time arrive as those of the time zone UTC";
const CUT_TO_DAY: &str = "values arrive without the time of day";
const CUT_TO_TIME: &str = "values arrive without the date";

/// The rules for types that are not made of others. The first that has an answer counts.
fn plain(from: &TypeKind, to: &TypeKind) -> Conversion {
    let rules = [into_text, out_of_text, number, bits, time, other];
    let answer = rules.iter().find_map(|rule| rule(from, to));
    answer.unwrap_or_else(unknown)
}

/// Of values that become text. Spaces at the end do not count in the type char.
fn into_text(from: &TypeKind, to: &TypeKind) -> Option<Conversion> {
    use Fidelity::{Coarser, Merging, Narrower, Rewritten};
    use TypeKind::*;
    let spaces = "values that differ only in spaces at the end are equal there";
    Some(match (from, to) {
        (_, Text | Varchar(None)) if from.is_text() => equal(),
        (Bpchar(_), Bpchar(None)) => equal(),
        (_, Bpchar(None)) if from.is_text() => verdict(Merging, spaces),
        (Bpchar(Some(one)), Bpchar(Some(other))) if one <= other => equal(),
        (Bpchar(_), Bpchar(_)) => verdict(Narrower, "longer values are refused there"),
        (Name, Name) | (Byte, Byte) => equal(),
        (_, Byte) => verdict(Coarser, "values are cut to one byte"),
        (_, Name) if from.longest().is_some_and(|length| fits_name(from, length)) => equal(),
        (Enum, Name) => equal(),
        (_, Name) => verdict(Coarser, "longer values are cut to 63 bytes"),
        (_, Varchar(Some(length))) if from.is_text() => match from.longest() {
            Some(longest) if longest <= *length => equal(),
            _ => verdict(
                Coarser,
                "longer values are refused there, and longer ones that end in spaces are cut",
            ),
        },
        (_, Bpchar(Some(_))) if from.is_text() => {
            verdict(Coarser, format!("{spaces}, and longer values are refused"))
        }
        (TimestampTz(_) | Other { has_zone: true, .. }, Text | Varchar(_) | Bpchar(_)) => {
            verdict(Rewritten, OF_UTC)
        }
        (_, Text | Varchar(None) | Bpchar(None)) => equal(),
        (_, Varchar(Some(length))) if from.longest().is_some_and(|l| l <= *length) => equal(),
        (_, Varchar(_) | Bpchar(_)) => verdict(Narrower, "longer values are refused there"),
        _ => return None,
    })
}

/// Of text that becomes something else.
fn out_of_text(from: &TypeKind, to: &TypeKind) -> Option<Conversion> {
    use Fidelity::{Coarser, Folding, Narrower};
    use TypeKind::*;
    Some(match (from, to) {
        (_, Enum) if from.is_text() => {
            verdict(Narrower, "what is none of its labels is refused there")
        }
        (
            _,
            Other {
                name, own: false, ..
            },
        ) if from.is_text() && name == CITEXT => {
            verdict(Folding, "values that differ only in case are equal there")
        }
        (_, Other { own: false, .. }) if from.is_text() => unknown(),
        (_, _) if from.is_text() => verdict(
            Coarser,
            "what it cannot read is refused there, and several spellings become one value",
        ),
        _ => return None,
    })
}

/// Between numbers, OIDs, names of objects and amounts of money.
fn number(from: &TypeKind, to: &TypeKind) -> Option<Conversion> {
    use Fidelity::{Coarser, Narrower, Never, Rewritten};
    use TypeKind::*;
    Some(match (from, to) {
        (Integer(one), Integer(other)) if one <= other => equal(),
        (Integer(_), Integer(_)) => verdict(Narrower, TOO_LARGE),
        (Integer(2), Float(_)) | (Integer(4), Float(8)) => equal(),
        (Integer(_), Float(_)) => verdict(Coarser, ROUNDED),
        (Integer(_), Numeric(None)) => equal(),
        (Integer(_), Numeric(Some((_, scale)))) if *scale < 0 => verdict(Coarser, ROUNDED),
        (Integer(_), Numeric(Some((precision, scale)))) => {
            if from
                .digits()
                .is_some_and(|digits| digits <= precision - scale)
            {
                equal()
            } else {
                verdict(Narrower, TOO_LARGE)
            }
        }
        (Integer(4), Oid) => equal(),
        (Integer(2), Oid) => verdict(Rewritten, "negative numbers become large ones"),
        (Integer(_), Oid) => verdict(Coarser, "negative numbers become others"),
        (Integer(2), Object(_)) => verdict(Rewritten, "numbers become names of objects there"),
        (Integer(_), Object(_)) => verdict(Narrower, TOO_LARGE),
        (Integer(_), Money) => verdict(Rewritten, "numbers become amounts"),
        (Float(one), Float(other)) if one == other => equal(),
        (Float(4), Float(_)) => verdict(
            Rewritten,
            "the shortest decimal that stands for a value arrives, not its exact binary value",
        ),
        (Float(_), Float(_)) => verdict(Coarser, ROUNDED),
        (Float(_), Integer(_)) => verdict(
            Rewritten,
            "fractions and large values are refused there, and -0 becomes 0",
        ),
        (Float(_), Numeric(None)) => verdict(Rewritten, "-0 becomes 0"),
        (Float(_), Numeric(_)) => verdict(Coarser, ROUNDED),
        (Numeric(Some((precision, scale))), Float(bytes))
            if *scale >= 0 && *precision <= if *bytes == 8 { 15 } else { 6 } =>
        {
            equal()
        }
        (Numeric(_), Float(_)) => verdict(Coarser, ROUNDED),
        (Numeric(_), Integer(_)) => verdict(
            Narrower,
            "fractions, NaN and large values are refused there",
        ),
        (Numeric(_), Numeric(None)) => equal(),
        (Numeric(Some((p, s))), Numeric(Some((q, t)))) if s <= t => {
            if p - s <= q - t {
                equal()
            } else {
                verdict(Narrower, TOO_LARGE)
            }
        }
        (Numeric(_), Numeric(_)) => verdict(Coarser, ROUNDED),
        (Numeric(_) | Float(_), Money) => verdict(Coarser, ROUNDED),
        (Money, Integer(_) | Float(_) | Numeric(_)) => verdict(
            Never,
            "amounts are written with their currency, which is no number",
        ),
        (Oid, Integer(8)) | (Oid, Object(_)) => equal(),
        (Oid, Integer(_)) => verdict(Narrower, TOO_LARGE),
        (Object(one), Object(other)) if one == other => equal(),
        (Object(_), Oid | Integer(_)) => verdict(Narrower, "names of objects are no numbers"),
        (Object(_), Object(_)) => verdict(
            Narrower,
            "names of other kinds of objects are refused there",
        ),
        _ => return None,
    })
}

/// Between strings of bits.
fn bits(from: &TypeKind, to: &TypeKind) -> Option<Conversion> {
    use Fidelity::{Narrower, Never};
    use TypeKind::*;
    Some(match (from, to) {
        (Bit(_) | Varbit(_), Bit(None) | Varbit(None)) => equal(),
        (Bit(one), Bit(other)) if one == other => equal(),
        (Bit(Some(_)), Bit(_)) => verdict(Never, "values of another length are refused there"),
        (Bit(_) | Varbit(_), Bit(_)) => {
            verdict(Narrower, "values of another length are refused there")
        }
        (Bit(Some(one)) | Varbit(Some(one)), Varbit(Some(other))) if one <= other => equal(),
        (Bit(Some(_)), Varbit(_)) => verdict(Never, "longer values are refused there"),
        (Bit(_) | Varbit(_), Varbit(_)) => verdict(Narrower, "longer values are refused there"),
        _ => return None,
    })
}

/// Between dates, times and intervals.
fn time(from: &TypeKind, to: &TypeKind) -> Option<Conversion> {
    use Fidelity::{Coarser, Equal, Narrower, Rewritten};
    use TypeKind::*;
    Some(match (from, to) {
        (Time(one), Time(other)) | (TimeTz(one), TimeTz(other)) => seconds(*one, *other, Equal, ""),
        (Timestamp(one), Timestamp(other)) | (TimestampTz(one), TimestampTz(other)) => {
            seconds(*one, *other, Equal, "")
        }
        (Timestamp(one), TimestampTz(other)) | (TimestampTz(one), Timestamp(other)) => {
            seconds(*one, *other, Rewritten, OF_UTC)
        }
        (Date, Date) => equal(),
        (Date, Timestamp(_)) => verdict(Narrower, "days after the year 294276 are refused there"),
        (Date, TimestampTz(_)) => verdict(Rewritten, OF_UTC),
        (Timestamp(_), Date) => verdict(Coarser, CUT_TO_DAY),
        (TimestampTz(_), Date) => verdict(Coarser, format!("{CUT_TO_DAY}, as days of UTC")),
        (Timestamp(_), Time(_)) => verdict(Coarser, CUT_TO_TIME),
        (TimestampTz(_), Time(_) | TimeTz(_)) => verdict(Coarser, format!("{CUT_TO_TIME}, in UTC")),
        (Time(_), Interval(-1)) => equal(),
        (Time(one), TimeTz(other)) => {
            seconds(*one, *other, Rewritten, "times arrive as those of UTC")
        }
        (TimeTz(_), Time(_)) => verdict(Coarser, "values arrive without their time zone"),
        (Interval(_), Time(_)) => verdict(Narrower, "what is no time of day is refused there"),
        (Interval(one), Interval(other)) if one == other || *other == -1 => equal(),
        (Interval(_), Interval(_)) => verdict(Coarser, "values lose the fields that it has not"),
        _ => return None,
    })
}

/// Between types that are known by their names, and of types that stay what they are.
fn other(from: &TypeKind, to: &TypeKind) -> Option<Conversion> {
    use Fidelity::{Coarser, Narrower, Never, Rewritten};
    use TypeKind::*;
    Some(match (from, to) {
        _ if from.is_other("path") && to.is_other("polygon") => {
            verdict(Narrower, "open paths are refused there")
        }
        _ if from.is_other("polygon") && to.is_other("path") => equal(),
        _ if from.is_other("box") && to.is_other("polygon") => {
            verdict(Rewritten, "two corners become a polygon of two points")
        }
        _ if from.is_other("point") && to.is_other("box") => {
            verdict(Never, "a point is no two corners")
        }
        _ if from.is_other("macaddr") && to.is_other("macaddr8") => equal(),
        _ if from.is_other("macaddr8") && to.is_other("macaddr") => {
            verdict(Never, "eight bytes are no six")
        }
        _ if from.is_other("cidr") && to.is_other("inet") => equal(),
        _ if from.is_other("inet") && to.is_other("cidr") => verdict(
            Narrower,
            "addresses with bits to the right of the mask are refused there",
        ),
        _ if from.is_other("jsonb") && to.is_other("json") => equal(),
        _ if from.is_other("json") && to.is_other("jsonb") => verdict(
            Coarser,
            "spaces, the order of keys and keys given twice are lost",
        ),
        (
            Other {
                name: one,
                modifier: a,
                ..
            },
            Other {
                name: other,
                modifier: b,
                ..
            },
        ) if one == other && (a == b || *b == -1) => equal(),
        (Money, Money) | (Oid, Oid) => equal(),
        _ => return None,
    })
}

/// Whether no text is longer than 63 bytes.
fn fits_name(from: &TypeKind, length: i32) -> bool {
    let bytes_of_character = if matches!(from, TypeKind::Varchar(_) | TypeKind::Bpchar(_)) {
        4
    } else {
        1
    };
    length * bytes_of_character <= 63
}

/// Digits of a second here and there; `otherwise` where none are lost.
fn seconds(from: i32, to: i32, otherwise: Fidelity, why: &str) -> Conversion {
    if from <= to {
        verdict(otherwise, why)
    } else {
        verdict(Fidelity::Coarser, "fractions of a second are rounded")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(text: &str) -> Types {
        serde_json::from_str(text).expect("types")
    }

    fn own(id: u32, name: &str) -> String {
        format!(r#""{id}": {{"schema": "pg_catalog", "name": "{name}", "kind": "b"}}"#)
    }

    fn between(from: (&str, i32), to: (&str, i32)) -> Fidelity {
        let here = types(&format!("{{{}}}", own(1, from.0)));
        let there = types(&format!("{{{}}}", own(2, to.0)));
        compare(&here, (1, from.1), &there, (2, to.1)).fidelity
    }

    /// The modifier of numeric(precision, scale).
    fn of(precision: i32, scale: i32) -> i32 {
        (precision << 16 | scale & 0x7ff) + 4
    }

    #[test]
    fn lengths_precisions_and_scales_count() {
        use Fidelity::*;
        for (from, to, expected) in [
            (("numeric", of(10, 2)), ("numeric", -1), Equal),
            (("numeric", -1), ("numeric", of(10, 2)), Coarser),
            (("numeric", of(10, 2)), ("numeric", of(12, 4)), Equal),
            (("numeric", of(10, 2)), ("numeric", of(10, 4)), Narrower),
            (("numeric", of(10, 2)), ("numeric", of(20, -2)), Coarser),
            (("int4", -1), ("numeric", of(10, 0)), Equal),
            (("int4", -1), ("numeric", of(10, 2)), Narrower),
            (("int4", -1), ("numeric", of(10, -1)), Coarser),
            (("timestamptz", 3), ("timestamptz", -1), Equal),
            (("timestamptz", -1), ("timestamptz", 3), Coarser),
            (("timestamp", 3), ("timestamptz", 6), Rewritten),
            (("varchar", 14), ("varchar", 24), Equal),
            (("varchar", 24), ("varchar", 14), Coarser),
            (("bpchar", 24), ("bpchar", 14), Narrower),
            (("text", -1), ("bpchar", -1), Merging),
        ] {
            assert_eq!(between(from, to), expected, "{from:?} {to:?}");
        }
    }

    #[test]
    fn what_a_key_must_be_able_to_hold_follows_from_what_becomes_of_its_values() {
        let least = |from: (&str, i32), name: &str| {
            let all = needed(from.0, from.1);
            all.into_iter()
                .find(|one| one.name == name)
                .map(|one| one.least)
        };
        for (from, name, expected) in [
            (("timestamptz", -1), "timestamptz", Some(Some(6))),
            (("timestamptz", 3), "timestamptz", Some(Some(3))),
            (("timestamptz", 0), "timestamptz", None),
            (("timestamptz", -1), "date", Some(None)),
            (("numeric", of(10, 2)), "numeric", Some(Some(2))),
            (("numeric", -1), "numeric", Some(Some(i32::MAX))),
            (("int4", -1), "numeric", Some(Some(0))),
            (("int4", -1), "int8", None),
            (("int8", -1), "int4", None),
            (("text", -1), "varchar", Some(Some(i32::MAX))),
            (("varchar", 24), "varchar", Some(Some(20))),
            (("text", -1), "bpchar", Some(None)),
            (("text", -1), "uuid", Some(None)),
            (("uuid", -1), "uuid", None),
        ] {
            assert_eq!(least(from, name), expected, "{from:?} {name}");
        }
    }

    #[test]
    fn types_of_types_are_looked_into() {
        use Fidelity::*;
        let here = types(
            r#"{"1": {"schema": "s", "name": "mood", "kind": "e", "labels": ["a", "b"]},
                "2": {"schema": "s", "name": "price", "kind": "d", "base": 3, "modifier": -1},
                "3": {"schema": "pg_catalog", "name": "numeric", "kind": "b"},
                "4": {"schema": "pg_catalog", "name": "_numeric", "kind": "b", "element": 3},
                "5": {"schema": "s", "name": "pair", "kind": "c", "fields": [["x", 3, -1], ["y", 1, -1]]},
                "6": {"schema": "pg_catalog", "name": "text", "kind": "b"},
                "7": {"schema": "s", "name": "loop", "kind": "d", "base": 7, "modifier": -1},
                "8": {"schema": "s", "name": "one", "kind": "c", "fields": [["x", 3, -1]]}}"#,
        );
        let there = types(&format!(
            r#"{{"1": {{"schema": "t", "name": "mood", "kind": "e", "labels": ["b"]}},
                "2": {{"schema": "t", "name": "price", "kind": "d", "base": 3, "modifier": {}}},
                {}, {}, "8": {{"schema": "t", "name": "_f", "kind": "b", "element": 9}},
                "5": {{"schema": "s", "name": "pair", "kind": "c", "fields": [["x", 9, -1], ["y", 1, -1]]}}}}"#,
            of(10, 2),
            own(3, "numeric"),
            own(9, "float8"),
        ));
        let converted = |from: u32, to: u32| compare(&here, (from, -1), &there, (to, -1));
        assert_eq!(converted(1, 1).fidelity, Narrower);
        assert!(
            converted(1, 1).why.contains("\"a\""),
            "{:?}",
            converted(1, 1)
        );
        assert_eq!(
            (converted(2, 3).fidelity, converted(2, 2).fidelity),
            (Equal, Coarser)
        );
        assert_eq!(
            (converted(4, 8).fidelity, converted(5, 5).fidelity),
            (Coarser, Coarser)
        );
        assert_eq!(
            (converted(6, 1).fidelity, converted(8, 5).fidelity),
            (Narrower, Never)
        );
        assert_eq!(
            (converted(7, 3).fidelity, converted(3, 77).fidelity),
            (Unknown, Unknown)
        );
    }
}
