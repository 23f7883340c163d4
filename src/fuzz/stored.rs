//! Changes as they are kept: in memory and file as postcard, in the queue as JSON.

use super::{Edit, check, edited, edits, text};
use crate::change::{Change, Op, Policy, Stamp};
use crate::error::SqlState;
use crate::queue::describe;
use crate::sql::tests::route;
use proptest::collection::vec;
use proptest::option::of as maybe;
use proptest::prelude::*;
use proptest::sample::select;

/// Any change of the type, whether or not there can be such a one.
fn change() -> impl Strategy<Value = Change<String>> {
    let op = select(vec![Op::Insert, Op::Update, Op::Delete, Op::Truncate]);
    let values = || vec(maybe(text()), 0..5);
    let stamp =
        || maybe((maybe(text()), any::<i64>()).prop_map(|(version, rank)| Stamp { version, rank }));
    let numbers = (
        any::<u32>(),
        vec(any::<u32>(), 0..4),
        any::<(u64, u64, u32)>(),
    );
    (op, values(), values(), stamp(), stamp(), numbers).prop_map(
        |(op, key, row, stamp, tombstone, (command, unchanged, stored))| Change {
            op,
            command,
            key,
            row,
            stamp,
            tombstone,
            unchanged,
            stored: stored.into(),
            overtaken: false,
        },
    )
}

#[test]
fn a_change_comes_back_as_it_was_and_takes_no_more_room_than_reserved() {
    check(1_000, &(any::<u32>(), change()), |(number, change)| {
        let bytes = postcard::to_stdvec(&(number, change.borrowed())).expect("bytes");
        prop_assert!(bytes.len() <= change.encoded_size(), "{}", bytes.len());
        let read: (u32, Change<&str>) = postcard::from_bytes(&bytes).expect("a change");
        prop_assert_eq!((read.0, read.1.owned()), (number, change.clone()));
        let json = serde_json::to_string(&change).expect("JSON");
        prop_assert_eq!(
            serde_json::from_str::<Change<String>>(&json).ok(),
            Some(change)
        );
        Ok(())
    });
}

#[test]
fn damaged_bytes_are_another_change_or_none() {
    let damage = vec((any::<usize>(), any::<u8>()), 1..4);
    check(
        2_000,
        &(change(), damage, any::<usize>()),
        |(change, damage, end)| {
            let mut bytes = postcard::to_stdvec(&(0u32, change.borrowed())).expect("bytes");
            for (at, byte) in damage {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            for part in [&bytes[..], &bytes[..end % bytes.len()]] {
                if let Ok((_, read)) = postcard::from_bytes::<(u32, Change<&str>)>(part) {
                    // Nothing of it is longer than what it was read from, whatever lengths it gives.
                    prop_assert!(
                        read.key.len() + read.row.len() + read.unchanged.len() <= part.len()
                    );
                }
            }
            Ok(())
        },
    );
}

/// Whether a record's SQL can be shown, or the reason why not told.
fn described_or_refused(route: &str, change: &str) -> Result<bool, TestCaseError> {
    match describe(route, change) {
        Ok(sql) => prop_assert!(!sql.is_empty()),
        Err(error) => {
            prop_assert_eq!(error.sqlstate(), SqlState::INTERNAL, "{}", error);
            return Ok(false);
        }
    }
    Ok(true)
}

const POLICIES: [Policy; 4] = [
    Policy::Overwrite,
    Policy::Error,
    Policy::Skip,
    Policy::Newest(1),
];

#[test]
fn a_record_that_cannot_be_is_refused() {
    check(
        1_500,
        &(select(POLICIES.to_vec()), change()),
        |(policy, change)| {
            let route = route(policy);
            let lengths = (change.key.len(), change.row.len());
            let fits = match change.op {
                Op::Insert => lengths == (0, 3),
                Op::Update => lengths == (0, 3) || lengths == (1, 3),
                Op::Delete => lengths == (1, 0),
                Op::Truncate => lengths == (0, 0),
            };
            let text = serde_json::to_string(&change).expect("JSON");
            let shown =
                described_or_refused(&serde_json::to_string(&*route).expect("JSON"), &text)?;
            prop_assert_eq!(shown, fits);
            Ok(())
        },
    );
}

#[test]
fn records_with_some_characters_changed_are_shown_or_refused() {
    let both = (
        select(POLICIES.to_vec()),
        edits(),
        edits(),
        any::<[bool; 2]>(),
    );
    check(1_500, &both, |(policy, one, other, [first, second])| {
        let route = serde_json::to_string(&*route(policy)).expect("JSON");
        let change = r#"{"op":"Update","command":0,"key":["1"],"row":["2","it's",null],
            "stamp":null,"gone":null,"unchanged":[1],"stored":[0,0,0]}"#;
        let edited = |text: &str, edits: &[Edit], done| {
            if done {
                edited(text, edits)
            } else {
                text.to_owned()
            }
        };
        described_or_refused(
            &edited(&route, &one, first),
            &edited(change, &other, second),
        )?;
        Ok(())
    });
}
