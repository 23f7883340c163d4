//! The options of triggers.

use super::{check, edited, edits, json, text};
use crate::error::SqlState;
use crate::options::{MAX_NAME, Options, check_guard};
use proptest::prelude::*;

const NAMES: [&str; 16] = [
    "mode",
    "on_conflict",
    "version_column",
    "columns",
    "exclude",
    "rename",
    "key",
    "application_name",
    "guard_role",
    "insert_only",
    "sync",
    "queue",
    "newest",
    "skip",
    "id",
    "v",
];
const VALID: &str = r#"{"mode": "sync", "on_conflict": "newest", "version_column": "v",
    "columns": ["id", "v"], "rename": {"v": "w", "id": "k"}, "key": ["id"],
    "application_name": "guard", "guard_role": "peers"}"#;

fn read_or_refused(text: &str) -> Result<(), TestCaseError> {
    match Options::parse(text) {
        Ok(options) => {
            // Of names that come twice the last one counts, here as for jsonb.
            let value: serde_json::Value = serde_json::from_str(text).expect("JSON");
            prop_assert!(value.is_object(), "{}", text);
            let again = Options::parse(&value.to_string());
            prop_assert_eq!(again.ok(), Some(options));
        }
        Err(error) => {
            prop_assert_eq!(error.sqlstate(), SqlState::INVALID_PARAMETER, "{}", error);
            prop_assert!(error.hint().is_some(), "{}", error);
        }
    }
    Ok(())
}

#[test]
fn any_json_is_read_as_options_or_refused() {
    check(1_000, &json(&NAMES), |text| read_or_refused(&text));
}

#[test]
fn options_with_some_characters_changed_are_read_or_refused() {
    check(2_000, &edits(), |edits| {
        read_or_refused(&edited(VALID, &edits))
    });
}

#[test]
fn options_nested_too_deep_are_refused() {
    for open in ["[", "{\"columns\":", "{\"rename\":{\"v\":", "{\"a\":["] {
        for close in ["", "]", "}"] {
            let text = open.repeat(100_000) + &close.repeat(100_000);
            assert!(read_or_refused(&text).is_ok(), "{open}");
            assert!(Options::parse(&text).is_err(), "{open}");
        }
    }
}

#[test]
fn a_guard_name_is_what_a_server_keeps_as_it_is() {
    check(2_000, &prop_oneof![text(), "[ -~]{60,66}"], |name| {
        let kept = (1..=MAX_NAME).contains(&name.len())
            && name.chars().all(|c| c == ' ' || c.is_ascii_graphic());
        prop_assert_eq!(check_guard(&name).is_ok(), kept);
        Ok(())
    });
}
