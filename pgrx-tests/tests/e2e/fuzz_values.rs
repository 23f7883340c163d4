//! Types, and random values of them as SQL expressions that mean the same under all settings.

use crate::dice::Dice;

/// A type that a column may have.
pub struct Kind {
    pub name: &'static str,
    /// A key may have it.
    pub is_key: bool,
    /// Its binary form holds numbers of types that differ between databases.
    pub is_local: bool,
    value: fn(&mut Dice) -> String,
}

impl Kind {
    /// A value, now and then NULL.
    pub fn value(&self, dice: &mut Dice) -> String {
        if dice.roll(6) == 0 { "null".to_owned() } else { self.key(dice) }
    }

    /// A value that is not NULL.
    pub fn key(&self, dice: &mut Dice) -> String {
        format!("({})::{}", (self.value)(dice), self.name)
    }
}

/// What the types below need, in the owner's schema.
pub const TYPES: &str = r#"
    create type mood as enum ('sad', 'so so', 'it''s', 'a"b\c', '{,}', 'NULL', ' $1 ', '(1,2)', '');
    create type pair as (a int, "b'\""" text, d date, ts text[]);
    create domain positive as numeric check (value > 0);
    create domain tags as text[];
    create domain spot as pair;"#;

const fn key(name: &'static str, value: fn(&mut Dice) -> String) -> Kind {
    Kind { name, is_key: true, is_local: false, value }
}

const fn plain(name: &'static str, value: fn(&mut Dice) -> String) -> Kind {
    Kind { name, is_key: false, is_local: false, value }
}

const fn local(name: &'static str, value: fn(&mut Dice) -> String) -> Kind {
    Kind { name, is_key: false, is_local: true, value }
}

pub const KINDS: [Kind; 65] = [
    key("int2", |dice| one_of(dice, &["-32768", "32767", "0", "7"])),
    key("int4", |dice| one_of(dice, &["-2147483648", "2147483647", "0", "7", "8"])),
    key("int8", |dice| one_of(dice, &["-9223372036854775808", "9223372036854775807", "0"])),
    key("numeric", number),
    key("numeric(12, 4)", |dice| format!("{}.{}", dice.roll(99999), dice.roll(9999))),
    key("float4", float),
    key("float8", float),
    key("text", text),
    key(r#"text collate "C""#, text),
    key("varchar(9)", |dice| format!("left({}, 9)", text(dice))),
    key("char(5)", |dice| format!("left({}, 5)", text(dice))),
    key("name", |dice| format!("left({}, 15)", text(dice))),
    key("\"char\"", |dice| one_of(dice, &["'a'", "''", "E'\\\\'", "' '", "''''", "E'\\\\377'"])),
    key("bytea", |dice| format!("decode('{}', 'hex')", hex(dice))),
    key("bool", |dice| one_of(dice, &["true", "false"])),
    key("date", date),
    key("time", |dice| one_of(dice, &["'00:00'", "'24:00'", "'23:59:59.999999'", "'01:02:03'"])),
    key("timetz", |dice| one_of(dice, &["'00:00+15:59:59'", "'24:00-15:59'", "'12:00+05:30'"])),
    key("timestamp", moment),
    key("timestamptz", |dice| format!("{} at time zone 'UTC'", moment(dice))),
    key("interval", interval),
    key("uuid", |dice| format!("md5('{}')", dice.roll(99))),
    plain("json", |dice| {
        format!("json_build_object({}, {})::text || E'\\n '", text_key(dice), text(dice))
    }),
    plain("json", |dice| {
        one_of(dice, &["'null'", "'\"\"'", "' [1e1000,  -0.0 ]'", "'{\"b\":1, \"b\":2}'"])
    }),
    key("jsonb", |dice| {
        format!(
            "jsonb_build_array({}, {}, null, 1.{})",
            text(dice),
            number_of_json(dice),
            "0".repeat(dice.roll(3) as usize + 1)
        )
    }),
    plain("xml", |dice| {
        one_of(
            dice,
            &[
                "xmlparse(content '<a b=\"''\">&lt;x </a>')",
                "xmlparse(content 'no \\ root')",
                "xmlparse(content '')",
            ],
        )
    }),
    key("inet", |dice| one_of(dice, &["'10.0.0.1/8'", "'::1'", "'2001:db8::1/64'", "'0.0.0.0/0'"])),
    key("cidr", |dice| one_of(dice, &["'10.0.0.0/8'", "'2001:db8::/32'"])),
    key("macaddr", |dice| format!("'08:00:2b:01:02:{:02x}'", dice.roll(256))),
    key("bit(7)", |dice| format!("{}::bit(7)", dice.roll(128))),
    key("varbit", |dice| one_of(dice, &["B''", "B'1'", "B'0000000000000000000000000000000001'"])),
    plain("point", |dice| one_of(dice, &["'(-0,NaN)'", "'(Infinity,1e-300)'", "'(1.1,-2.2)'"])),
    plain("path", |dice| one_of(dice, &["'[(0,0),(1,1)]'", "'((0,0),(1,1),(2,0.1))'"])),
    plain("tsvector", |dice| format!("array_to_tsvector(array[{}, 'b'])", text_key(dice))),
    plain("tsquery", |dice| format!("phraseto_tsquery('simple', {})", text(dice))),
    key("money", |dice| format!("{}.{}::numeric::money", dice.roll(9999), dice.roll(99))),
    key("oid", |dice| one_of(dice, &["0", "4294967295"])),
    key("pg_lsn", |dice| one_of(dice, &["'0/0'", "'FFFFFFFF/FFFFFFFF'"])),
    key("xid8", |dice| one_of(dice, &["'0'", "'18446744073709551615'"])),
    key("int4range", |dice| one_of(dice, &["'[1,5)'", "'empty'", "'(,)'", "'[7,)'"])),
    key("numrange", |dice| format!("numrange(1.50, {}0, '[]')", 2 + dice.roll(9))),
    plain("tstzrange", |dice| {
        format!("tstzrange('-infinity', {} at time zone 'UTC')", moment(dice))
    }),
    plain("nummultirange", |dice| one_of(dice, &["'{}'", "'{[1,2),(3.50,)}'", "'{(,)}'"])),
    plain("datemultirange", |dice| {
        format!("datemultirange(daterange('-infinity', {}))", date(dice))
    }),
    key("int4[]", |dice| {
        one_of(dice, &["array[1, null, 3]", "'{}'", "'[0:1]={7,8}'", "array[[1, 2], [3, null]]"])
    }),
    key("text[]", texts),
    plain("text[]", |dice| {
        format!("array[[{}, null], [{}, {}]]", text(dice), text(dice), text(dice))
    }),
    plain("numeric[]", |dice| format!("array[{}, null, {}]", number(dice), number(dice))),
    plain("float8[]", |dice| format!("array[{}, null]::float8[]", float(dice))),
    plain("timestamptz[]", |dice| format!("array[{} at time zone 'UTC', null]", moment(dice))),
    plain("interval[]", |dice| format!("array[{}, {}]", interval(dice), interval(dice))),
    plain("jsonb[]", |dice| format!("array[to_jsonb({}), null, 'null']", text(dice))),
    plain("bytea[]", |dice| format!("array[decode('{}', 'hex'), null]", hex(dice))),
    plain("bool[]", |dice| one_of(dice, &["array[true, null, false]", "'{}'"])),
    key("mood", mood),
    local("mood[]", |dice| format!("array[{}, null, {}]", mood(dice), mood(dice))),
    key("pair", pair),
    local("pair[]", |dice| format!("array[{}::pair, null]", pair(dice))),
    key("positive", |dice| format!("{}.{}0", 1 + dice.roll(9), dice.roll(99))),
    local("positive[]", |dice| format!("array[1.{}0, 2]", dice.roll(99))),
    plain("tags", texts),
    plain("spot", pair),
    key("citext", |dice| format!("{}::text", text(dice))),
    local("citext[]", texts),
    plain("hstore", |dice| {
        format!("hstore(array[{}, 'k'], array[{}, null])", text(dice), text(dice))
    }),
];

fn one_of(dice: &mut Dice, values: &[&str]) -> String {
    dice.of(values).to_owned()
}

const PIECES: [&str; 26] = [
    "'", "''", "\"", "\\", "\\\\", "\\'", "{", "}", ",", "(", ")", ";", "--", "/*", "$1", "$$",
    "NULL", "E'", "\n", "\t", "\u{1}", "é", "\u{2028}", "😀", " ", "x",
];

/// What may be in any text, as a literal.
fn text(dice: &mut Dice) -> String {
    let pieces: String = (0..dice.roll(7)).map(|_| dice.of(&PIECES)).collect();
    format!("E'{}'", pieces.replace('\\', "\\\\").replace('\'', "''"))
}

/// One that is not empty.
fn text_key(dice: &mut Dice) -> String {
    format!("{} || 'k'", text(dice))
}

fn texts(dice: &mut Dice) -> String {
    match dice.roll(4) {
        0 => "'{}'".to_owned(),
        1 => format!("array[{}]", text(dice)),
        _ => format!("array[{}, null, {}, 'NULL', '']", text(dice), text(dice)),
    }
}

fn hex(dice: &mut Dice) -> String {
    (0..dice.roll(9))
        .map(|_| format!("{:02x}", dice.of(&[0, 0x27, 0x5c, 0x22, 0xff, 0x41])))
        .collect()
}

/// Equal ones that look different among them.
fn number(dice: &mut Dice) -> String {
    match dice.roll(6) {
        0 => one_of(dice, &["'NaN'::numeric", "'Infinity'::numeric", "'-Infinity'::numeric"]),
        1 => one_of(dice, &["1.0", "1.00", "1", "0.000", "-0.0"]),
        2 => format!("1e{}::numeric", dice.roll(200)),
        3 => format!("1e-{}::numeric", dice.roll(200)),
        _ => format!("{}.{}{}", dice.roll(99), dice.roll(9999), "0".repeat(dice.roll(4) as usize)),
    }
}

fn number_of_json(dice: &mut Dice) -> String {
    format!("{}.{}::numeric", dice.roll(9), dice.roll(9))
}

fn float(dice: &mut Dice) -> String {
    match dice.roll(4) {
        0 => one_of(dice, &["'-0'", "'NaN'", "'Infinity'", "'-Infinity'", "'0'"]),
        1 => one_of(dice, &["'1e-45'", "'3.4028235e38'", "'0.1'", "'1e-40'"]),
        2 => format!("{} / 7.0::float8", 1 + dice.roll(99)),
        _ => format!("'{}.{}e{}'", dice.roll(9), dice.roll(999_999_999), dice.roll(60) as i64 - 30),
    }
}

fn date(dice: &mut Dice) -> String {
    match dice.roll(4) {
        0 => one_of(dice, &["'infinity'::date", "'-infinity'::date", "'0044-03-15 BC'::date"]),
        _ => format!("'2000-01-01'::date + {}", dice.roll(1_500_000) as i64 - 700_000),
    }
}

fn moment(dice: &mut Dice) -> String {
    match dice.roll(4) {
        0 => one_of(dice, &["'infinity'::timestamp", "'0044-03-15 01:02:03 BC'::timestamp"]),
        _ => format!(
            "('2000-01-01'::timestamp + make_interval(days => {}, secs => {}.{:06}))",
            dice.roll(300_000) as i64 - 150_000,
            dice.roll(86_400),
            dice.roll(1_000_000)
        ),
    }
}

fn interval(dice: &mut Dice) -> String {
    let mut part = |most: u64| match dice.roll(3) {
        0 => 0,
        _ => dice.roll(most) as i64 - most as i64 / 2,
    };
    let (years, months, days, seconds) = (part(400), part(24), part(99), part(200_000));
    match dice.roll(6) {
        // Equal ones.
        0 => one_of(dice, &["'1 mon'::interval", "'30 days'::interval", "'720:00'::interval"]),
        _ => format!(
            "make_interval(years => {years}, months => {months}, days => {days}, \
             secs => {seconds}.{})",
            dice.roll(1_000_000)
        ),
    }
}

fn mood(dice: &mut Dice) -> String {
    one_of(
        dice,
        &[
            "'sad'::mood",
            "'it''s'::mood",
            "E'a\"b\\\\c'::mood",
            "'{,}'::mood",
            "'NULL'::mood",
            "' $1 '::mood",
            "'(1,2)'::mood",
            "''::mood",
        ],
    )
}

fn pair(dice: &mut Dice) -> String {
    match dice.roll(5) {
        0 => "row(null, null, null, null)".to_owned(),
        1 => format!("row(null, {}, null, '{{}}')", text(dice)),
        _ => format!(
            "row({}, {}, {}, {}::text[])",
            dice.roll(5),
            text(dice),
            date(dice),
            texts(dice)
        ),
    }
}
