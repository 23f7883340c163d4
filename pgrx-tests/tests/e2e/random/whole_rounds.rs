//! Rounds of random schemas and transactions with fixed seeds; see [`rowsync_harness::faults::whole`]. `cargo
//! faults whole` plays more of them.

use rowsync_harness::faults::whole::{self, Plan};

fn play(seed: u64) {
    let plan = Plan {
        seed,
        from: 0,
        rounds: 2,
    };
    whole::run(plan, &mut |line| println!("{line}")).unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn what_holds_as_a_whole_arrives_as_a_whole_in_some_rounds() {
    play(1);
}

#[test]
fn what_holds_as_a_whole_arrives_as_a_whole_in_other_rounds() {
    play(20);
}

#[test]
fn what_holds_as_a_whole_arrives_as_a_whole_in_a_third_set_of_rounds() {
    play(300);
}
