//! What servers send.

use super::{check, edited, edits, json, text};
use crate::change::Policy;
use crate::conflict::{Conflict, ConflictType, Tally};
use crate::error::SqlState;
use crate::sql::Conflicts;
use crate::sql::tests::route;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Value;

#[test]
fn any_code_is_a_sqlstate_of_a_failure() {
    let code = prop_oneof![text(), "[0-9A-Z]{5}", "00[0-9A-Z]{3}", "[0-9A-Za-z]{4,6}"];
    check(2_000, &code, |code| {
        let state = SqlState::of_failure(&code);
        let is_one = code.len() == 5
            && code
                .bytes()
                .all(|b| b.is_ascii_digit() || b.is_ascii_uppercase())
            && !code.starts_with("00");
        prop_assert_eq!(state.as_str(), if is_one { &code } else { "XX000" });
        prop_assert_eq!(SqlState::unpacked(state.packed()), state);
        Ok(())
    });
}

/// What is taken for a conflict is one that can be kept and shown. Says whether it was.
fn is_accepted(answer: &str) -> Result<bool, TestCaseError> {
    let mut tally = Tally::default();
    let conflicts = Conflicts::Rows(route(Policy::Overwrite));
    prop_assert!(conflicts.take_row(Some(answer), &mut tally));
    prop_assert!(tally.total() <= 1);
    for (_, conflict) in tally.details() {
        let written = serde_json::to_string(conflict).expect("JSON");
        let again: Option<Conflict> = serde_json::from_str(&written).ok();
        // A number in a key, which is none of ours, may lose its last digit.
        let kept = |c: &Conflict| {
            let versions = (c.version.clone(), c.server_version.clone());
            (
                c.kind,
                c.decision,
                c.key.is_some(),
                c.server_key.is_some(),
                versions,
            )
        };
        prop_assert_eq!(again.as_ref().map(kept), Some(kept(conflict)));
    }
    Ok(!tally.is_empty())
}

const NAMES: [&str; 5] = ["update_missing", "insert_exists", "applied", "failed", "id"];

#[test]
fn any_answer_about_conflicts_is_read_or_ignored() {
    check(800, &json(&NAMES), |answer| is_accepted(&answer).map(drop));
    let valid = r#"["update_missing", "applied", {"id": "1"}, {"id": "1", "b": null}, "7", null]"#;
    let mut tally = Tally::default();
    assert!(Conflicts::Rows(route(Policy::Skip)).take_row(Some(valid), &mut tally));
    assert_eq!(
        tally.details().map(|(_, c)| c.kind).collect::<Vec<_>>(),
        [ConflictType::UpdateMissing]
    );
    check(1_500, &edits(), |edits| {
        is_accepted(&edited(valid, &edits)).map(drop)
    });
}

#[test]
fn an_answer_of_the_right_shape_is_a_conflict_whatever_its_keys() {
    let names = (
        select(ConflictType::ALL.to_vec()),
        select(vec!["applied", "skipped", "failed"]),
    );
    let version = || prop_oneof![Just(Value::Null), text().prop_map(Value::from)];
    let answers = (names, json(&NAMES), json(&NAMES), version(), version());
    check(
        800,
        &answers,
        |((kind, decision), key, found, one, other)| {
            let answer = format!(
                "[{:?}, {decision:?}, {key}, {found}, {one}, {other}]",
                kind.name()
            );
            // Not JSON at all, or nested too deep where it is put.
            let is_json = serde_json::from_str::<Value>(&answer).is_ok();
            prop_assert_eq!(is_accepted(&answer)?, is_json, "{}", answer);
            Ok(())
        },
    );
}
