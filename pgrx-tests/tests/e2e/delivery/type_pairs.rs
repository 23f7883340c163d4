//! What is said of types that differ is true, pair by pair, and is what `doc/types.md` tells.

use rowsync_harness::{setup, type_pairs};

use crate::support::common::linked;

#[test]
fn what_becomes_of_values_between_types_is_as_documented() {
    let fixture = linked("typepairs");
    let rows = type_pairs::observe(&fixture).unwrap_or_else(|error| panic!("{error:#}"));
    let document =
        std::fs::read_to_string(setup::root().join(type_pairs::DOCUMENT)).expect("a file");
    let written = type_pairs::put_into(&document, &rows).expect("a place for the table");
    assert!(written == document, "cargo faults types --write");
}
