//! Rounds of planted differences with fixed seeds; see [`rowsync_harness::faults::verify`]. `cargo faults
//! verify` plays more of them.

use rowsync_harness::faults::verify::{self, Plan};

fn play(seed: u64) {
    run(Plan {
        seed,
        from: 0,
        rounds: 3,
        sweeps: false,
    });
}

fn run(plan: Plan) {
    verify::run(plan, &mut |line| println!("{line}")).unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn what_was_planted_is_told_and_repaired_in_some_rounds() {
    play(1);
}

#[test]
fn what_was_planted_is_told_and_repaired_in_other_rounds() {
    play(20);
}

/// One key and one place of those that `cargo faults verify --sweep` goes through: a target of another encoding.
#[test]
fn every_type_spoiled_in_every_way_is_told_and_repaired() {
    run(Plan {
        seed: 1,
        from: 13,
        rounds: 1,
        sweeps: true,
    });
}
