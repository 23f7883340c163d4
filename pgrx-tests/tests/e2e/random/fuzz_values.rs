//! Types, and random values of them as SQL expressions that mean the same under all settings.

use rowsync_harness::rng::Rng;

/// A type that a column may have.
pub struct Kind {
    pub name: &'static str,
    /// A key may have it.
    pub is_key: bool,
    /// Its binary form holds numbers of types that differ between databases.
    pub is_local: bool,
    value: fn(&mut Rng) -> String,
}

impl Kind {
    /// A value, now and then NULL.
    pub fn value(&self, rng: &mut Rng) -> String {
        if rng.roll(6) == 0 {
            "null".to_owned()
        } else {
            self.key(rng)
        }
    }

    /// A value that is not NULL.
    pub fn key(&self, rng: &mut Rng) -> String {
        format!("({})::{}", (self.value)(rng), self.name)
    }
}

/// What the types below need, in the owner's schema.
pub const TYPES: &str = r#"
    create type mood as enum ('sad', 'so so', 'it''s', 'a"b\c', '{,}', 'NULL', ' $1 ', '(1,2)', '');
    create type pair as (a int, "b'\""" text, d date, ts text[]);
    create domain positive as numeric check (value > 0);
    create domain tags as text[];
    create domain spot as pair;"#;

const fn key(name: &'static str, value: fn(&mut Rng) -> String) -> Kind {
    Kind {
        name,
        is_key: true,
        is_local: false,
        value,
    }
}

const fn plain(name: &'static str, value: fn(&mut Rng) -> String) -> Kind {
    Kind {
        name,
        is_key: false,
        is_local: false,
        value,
    }
}

const fn local(name: &'static str, value: fn(&mut Rng) -> String) -> Kind {
    Kind {
        name,
        is_key: false,
        is_local: true,
        value,
    }
}

pub const KINDS: [Kind; 65] = [
    key("int2", |rng| one_of(rng, &["-32768", "32767", "0", "7"])),
    key("int4", |rng| {
        one_of(rng, &["-2147483648", "2147483647", "0", "7", "8"])
    }),
    key("int8", |rng| {
        one_of(rng, &["-9223372036854775808", "9223372036854775807", "0"])
    }),
    key("numeric", number),
    key("numeric(12, 4)", |rng| {
        format!("{}.{}", rng.roll(99999), rng.roll(9999))
    }),
    key("float4", float),
    key("float8", float),
    key("text", text),
    key(r#"text collate "C""#, text),
    key("varchar(9)", |rng| format!("left({}, 9)", text(rng))),
    key("char(5)", |rng| format!("left({}, 5)", text(rng))),
    key("name", |rng| format!("left({}, 15)", text(rng))),
    key("\"char\"", |rng| {
        one_of(rng, &["'a'", "''", "E'\\\\'", "' '", "''''", "E'\\\\377'"])
    }),
    key("bytea", |rng| format!("decode('{}', 'hex')", hex(rng))),
    key("bool", |rng| one_of(rng, &["true", "false"])),
    key("date", date),
    key("time", |rng| {
        one_of(
            rng,
            &["'00:00'", "'24:00'", "'23:59:59.999999'", "'01:02:03'"],
        )
    }),
    key("timetz", |rng| {
        one_of(rng, &["'00:00+15:59:59'", "'24:00-15:59'", "'12:00+05:30'"])
    }),
    key("timestamp", moment),
    key("timestamptz", |rng| {
        format!("{} at time zone 'UTC'", moment(rng))
    }),
    key("interval", interval),
    key("uuid", |rng| format!("md5('{}')", rng.roll(99))),
    plain("json", |rng| {
        format!(
            "json_build_object({}, {})::text || E'\\n '",
            text_key(rng),
            text(rng)
        )
    }),
    plain("json", |rng| {
        one_of(
            rng,
            &[
                "'null'",
                "'\"\"'",
                "' [1e1000,  -0.0 ]'",
                "'{\"b\":1, \"b\":2}'",
            ],
        )
    }),
    key("jsonb", |rng| {
        format!(
            "jsonb_build_array({}, {}, null, 1.{})",
            text(rng),
            number_of_json(rng),
            "0".repeat(rng.roll(3) as usize + 1)
        )
    }),
    plain("xml", |rng| {
        one_of(
            rng,
            &[
                "xmlparse(content '<a b=\"''\">&lt;x </a>')",
                "xmlparse(content 'no \\ root')",
                "xmlparse(content '')",
            ],
        )
    }),
    key("inet", |rng| {
        one_of(
            rng,
            &["'10.0.0.1/8'", "'::1'", "'2001:db8::1/64'", "'0.0.0.0/0'"],
        )
    }),
    key("cidr", |rng| {
        one_of(rng, &["'10.0.0.0/8'", "'2001:db8::/32'"])
    }),
    key("macaddr", |rng| {
        format!("'08:00:2b:01:02:{:02x}'", rng.roll(256))
    }),
    key("bit(7)", |rng| format!("{}::bit(7)", rng.roll(128))),
    key("varbit", |rng| {
        one_of(
            rng,
            &["B''", "B'1'", "B'0000000000000000000000000000000001'"],
        )
    }),
    plain("point", |rng| {
        one_of(rng, &["'(-0,NaN)'", "'(Infinity,1e-300)'", "'(1.1,-2.2)'"])
    }),
    plain("path", |rng| {
        one_of(rng, &["'[(0,0),(1,1)]'", "'((0,0),(1,1),(2,0.1))'"])
    }),
    plain("tsvector", |rng| {
        format!("array_to_tsvector(array[{}, 'b'])", text_key(rng))
    }),
    plain("tsquery", |rng| {
        format!("phraseto_tsquery('simple', {})", text(rng))
    }),
    key("money", |rng| {
        format!("{}.{}::numeric::money", rng.roll(9999), rng.roll(99))
    }),
    key("oid", |rng| one_of(rng, &["0", "4294967295"])),
    key("pg_lsn", |rng| {
        one_of(rng, &["'0/0'", "'FFFFFFFF/FFFFFFFF'"])
    }),
    key("xid8", |rng| {
        one_of(rng, &["'0'", "'18446744073709551615'"])
    }),
    key("int4range", |rng| {
        one_of(rng, &["'[1,5)'", "'empty'", "'(,)'", "'[7,)'"])
    }),
    key("numrange", |rng| {
        format!("numrange(1.50, {}0, '[]')", 2 + rng.roll(9))
    }),
    plain("tstzrange", |rng| {
        format!("tstzrange('-infinity', {} at time zone 'UTC')", moment(rng))
    }),
    plain("nummultirange", |rng| {
        one_of(rng, &["'{}'", "'{[1,2),(3.50,)}'", "'{(,)}'"])
    }),
    plain("datemultirange", |rng| {
        format!("datemultirange(daterange('-infinity', {}))", date(rng))
    }),
    key("int4[]", |rng| {
        one_of(
            rng,
            &[
                "array[1, null, 3]",
                "'{}'",
                "'[0:1]={7,8}'",
                "array[[1, 2], [3, null]]",
            ],
        )
    }),
    key("text[]", texts),
    plain("text[]", |rng| {
        format!(
            "array[[{}, null], [{}, {}]]",
            text(rng),
            text(rng),
            text(rng)
        )
    }),
    plain("numeric[]", |rng| {
        format!("array[{}, null, {}]", number(rng), number(rng))
    }),
    plain("float8[]", |rng| {
        format!("array[{}, null]::float8[]", float(rng))
    }),
    plain("timestamptz[]", |rng| {
        format!("array[{} at time zone 'UTC', null]", moment(rng))
    }),
    plain("interval[]", |rng| {
        format!("array[{}, {}]", interval(rng), interval(rng))
    }),
    plain("jsonb[]", |rng| {
        format!("array[to_jsonb({}), null, 'null']", text(rng))
    }),
    plain("bytea[]", |rng| {
        format!("array[decode('{}', 'hex'), null]", hex(rng))
    }),
    plain("bool[]", |rng| {
        one_of(rng, &["array[true, null, false]", "'{}'"])
    }),
    key("mood", mood),
    local("mood[]", |rng| {
        format!("array[{}, null, {}]", mood(rng), mood(rng))
    }),
    key("pair", pair),
    local("pair[]", |rng| format!("array[{}::pair, null]", pair(rng))),
    key("positive", |rng| {
        format!("{}.{}0", 1 + rng.roll(9), rng.roll(99))
    }),
    local("positive[]", |rng| format!("array[1.{}0, 2]", rng.roll(99))),
    plain("tags", texts),
    plain("spot", pair),
    key("citext", |rng| format!("{}::text", text(rng))),
    local("citext[]", texts),
    plain("hstore", |rng| {
        format!(
            "hstore(array[{}, 'k'], array[{}, null])",
            text(rng),
            text(rng)
        )
    }),
];

fn one_of(rng: &mut Rng, values: &[&str]) -> String {
    rng.of(values).to_owned()
}

const PIECES: [&str; 26] = [
    "'", "''", "\"", "\\", "\\\\", "\\'", "{", "}", ",", "(", ")", ";", "--", "/*", "$1", "$$",
    "NULL", "E'", "\n", "\t", "\u{1}", "é", "\u{2028}", "😀", " ", "x",
];

/// What may be in any text, as a literal.
fn text(rng: &mut Rng) -> String {
    let pieces: String = (0..rng.roll(7)).map(|_| rng.of(&PIECES)).collect();
    format!("E'{}'", pieces.replace('\\', "\\\\").replace('\'', "''"))
}

/// One that is not empty.
fn text_key(rng: &mut Rng) -> String {
    format!("{} || 'k'", text(rng))
}

fn texts(rng: &mut Rng) -> String {
    match rng.roll(4) {
        0 => "'{}'".to_owned(),
        1 => format!("array[{}]", text(rng)),
        _ => format!("array[{}, null, {}, 'NULL', '']", text(rng), text(rng)),
    }
}

fn hex(rng: &mut Rng) -> String {
    (0..rng.roll(9))
        .map(|_| format!("{:02x}", rng.of(&[0, 0x27, 0x5c, 0x22, 0xff, 0x41])))
        .collect()
}

/// Equal ones that look different among them.
fn number(rng: &mut Rng) -> String {
    match rng.roll(6) {
        0 => one_of(
            rng,
            &[
                "'NaN'::numeric",
                "'Infinity'::numeric",
                "'-Infinity'::numeric",
            ],
        ),
        1 => one_of(rng, &["1.0", "1.00", "1", "0.000", "-0.0"]),
        2 => format!("1e{}::numeric", rng.roll(200)),
        3 => format!("1e-{}::numeric", rng.roll(200)),
        _ => format!(
            "{}.{}{}",
            rng.roll(99),
            rng.roll(9999),
            "0".repeat(rng.roll(4) as usize)
        ),
    }
}

fn number_of_json(rng: &mut Rng) -> String {
    format!("{}.{}::numeric", rng.roll(9), rng.roll(9))
}

fn float(rng: &mut Rng) -> String {
    match rng.roll(4) {
        0 => one_of(rng, &["'-0'", "'NaN'", "'Infinity'", "'-Infinity'", "'0'"]),
        1 => one_of(rng, &["'1e-45'", "'3.4028235e38'", "'0.1'", "'1e-40'"]),
        2 => format!("{} / 7.0::float8", 1 + rng.roll(99)),
        _ => format!(
            "'{}.{}e{}'",
            rng.roll(9),
            rng.roll(999_999_999),
            rng.roll(60) as i64 - 30
        ),
    }
}

fn date(rng: &mut Rng) -> String {
    match rng.roll(4) {
        0 => one_of(
            rng,
            &[
                "'infinity'::date",
                "'-infinity'::date",
                "'0044-03-15 BC'::date",
            ],
        ),
        _ => format!(
            "'2000-01-01'::date + {}",
            rng.roll(1_500_000) as i64 - 700_000
        ),
    }
}

fn moment(rng: &mut Rng) -> String {
    match rng.roll(4) {
        0 => one_of(
            rng,
            &[
                "'infinity'::timestamp",
                "'0044-03-15 01:02:03 BC'::timestamp",
            ],
        ),
        _ => format!(
            "('2000-01-01'::timestamp + make_interval(days => {}, secs => {}.{:06}))",
            rng.roll(300_000) as i64 - 150_000,
            rng.roll(86_400),
            rng.roll(1_000_000)
        ),
    }
}

fn interval(rng: &mut Rng) -> String {
    let mut part = |most: u64| match rng.roll(3) {
        0 => 0,
        _ => rng.roll(most) as i64 - most as i64 / 2,
    };
    let years = part(400);
    let months = part(24);
    let days = part(99);
    let seconds = part(200_000);
    match rng.roll(6) {
        // Equal ones.
        0 => one_of(
            rng,
            &[
                "'1 mon'::interval",
                "'30 days'::interval",
                "'720:00'::interval",
            ],
        ),
        _ => format!(
            "make_interval(years => {years}, months => {months}, days => {days}, \
             secs => {seconds}.{})",
            rng.roll(1_000_000)
        ),
    }
}

fn mood(rng: &mut Rng) -> String {
    one_of(
        rng,
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

fn pair(rng: &mut Rng) -> String {
    match rng.roll(5) {
        0 => "row(null, null, null, null)".to_owned(),
        1 => format!("row(null, {}, null, '{{}}')", text(rng)),
        _ => format!(
            "row({}, {}, {}, {}::text[])",
            rng.roll(5),
            text(rng),
            date(rng),
            texts(rng)
        ),
    }
}
