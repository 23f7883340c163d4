//! Rounds of copies with fixed seeds; see [`rowsync_harness::faults::copy`]. `cargo faults copy` plays more
//! of them.

use rowsync_harness::faults::copy::{self, Plan};

fn play(seed: u64) {
    let plan = Plan {
        seed,
        from: 0,
        rounds: 2,
    };
    copy::run(plan, &mut |line| println!("{line}")).unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn tables_are_equal_after_copies_in_trouble() {
    play(20);
}
