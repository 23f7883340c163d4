//! Random tests of what reads text or bytes that others have written, and of what writes SQL.
//!
//! The seed is fixed; `ROWSYNC_SEED=7 cargo test --lib fuzz` takes another, and `ROWSYNC_CASES=100000`
//! plays more cases. A failure tells its seed and the smallest case it was found to shrink to.

mod answers;
mod lexer;
mod options;
mod quoting;
mod stored;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};

/// Plays a test with random values.
pub fn check<S: Strategy>(
    cases: u32,
    values: &S,
    test: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    let number = |name| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let seed = number("ROWSYNC_SEED").unwrap_or(1);
    let config = Config {
        cases: number("ROWSYNC_CASES").map_or(cases, |cases| cases as u32),
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    };
    let played = TestRunner::new(config).run(values, test);
    played.unwrap_or_else(|failure| panic!("ROWSYNC_SEED={seed}: {failure}"));
}

/// Text with what means something to SQL, to arrays, to JSON or to a terminal, but no NUL, which
/// PostgreSQL's text cannot have.
pub fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => proptest::sample::select(PIECES.to_vec()).prop_map(str::to_owned),
        2 => "[ -~]{1,4}",
        1 => any::<char>().prop_filter("NUL", |c| *c != '\0').prop_map(String::from),
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

const PIECES: [&str; 30] = [
    "'",
    "''",
    "\"",
    "\"\"",
    "\\",
    "\\\\",
    "\\'",
    "{",
    "}",
    ",",
    "(",
    ")",
    ";",
    "--",
    "/*",
    "*/",
    "$1",
    "$$",
    "$q$",
    "NULL",
    "E'",
    "U&'",
    "\n",
    "\t",
    "\u{1}",
    "\u{e9}",
    "\u{2028}",
    "\u{10ffff}",
    "%s",
    "?",
];

/// JSON text: what the standard allows and what it does not say, such as names that come twice, numbers
/// that nothing can hold and halves of characters. Objects have these `names`, among others.
pub fn json(names: &'static [&'static str]) -> impl Strategy<Value = String> {
    let name = prop_oneof![
        6 => proptest::sample::select(names.to_vec()).prop_map(|name| format!("{name:?}")),
        1 => json_text(),
    ];
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|b| b.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        (0..3u8).prop_map(|n| n.to_string()),
        proptest::sample::select(vec![
            "-0",
            "1e400",
            "-1e-400",
            "0.1",
            "1e99999999999999999999"
        ])
        .prop_map(str::to_owned),
        (1..400usize).prop_map(|digits| "9".repeat(digits)),
        json_text(),
        name.clone(),
    ];
    leaf.prop_recursive(4, 40, 8, move |inner| {
        let pair =
            (name.clone(), inner.clone()).prop_map(|(name, value)| format!("{name}: {value}"));
        prop_oneof![
            proptest::collection::vec(inner, 0..6).prop_map(|all| format!("[{}]", all.join(","))),
            proptest::collection::vec(pair, 0..8).prop_map(|all| format!("{{{}}}", all.join(", "))),
        ]
    })
}

fn json_text() -> impl Strategy<Value = String> {
    let written = text().prop_map(|text| serde_json::Value::from(text).to_string());
    let odd = [
        r#""\u0000""#,
        r#""\ud800""#,
        r#""\ud83d\ude00""#,
        "\"\"",
        r#""\x""#,
        "\"\u{1}\"",
    ];
    prop_oneof![
        4 => written,
        1 => proptest::sample::select(odd.to_vec()).prop_map(str::to_owned),
        1 => (60..70usize).prop_map(|length| format!("{:?}", "n".repeat(length))),
    ]
}

/// A change to a text: what is put there in place of so much of it. Places are parts of its length.
#[derive(Clone, Debug)]
pub struct Edit {
    place: u16,
    length: u8,
    with: String,
}

pub fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let with = prop_oneof![
        Just(String::new()),
        "[0-9a-z{}\\[\\]:,\"\\\\-]{1,3}",
        text(),
        (1..300usize).prop_map(|depth| "[".repeat(depth)),
        (1..300usize).prop_map(|depth| "{\"a\":".repeat(depth)),
        Just("18446744073709551615".to_owned()),
        Just("-1".to_owned()),
    ];
    let edit = (any::<u16>(), 0..6u8, with).prop_map(|(place, length, with)| Edit {
        place,
        length,
        with,
    });
    proptest::collection::vec(edit, 1..4)
}

/// The text with all these changes.
pub fn edited(text: &str, edits: &[Edit]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for edit in edits {
        let at = usize::from(edit.place) * chars.len() / usize::from(u16::MAX);
        let end = (at + usize::from(edit.length)).min(chars.len());
        chars.splice(at..end, edit.with.chars());
    }
    chars.into_iter().collect()
}
