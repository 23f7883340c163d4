//! Nothing piles up in a backend that lives long. `cargo faults leaks` runs five times as many.

use rowsync_harness::faults::leaks;

#[test]
fn a_backend_holds_no_more_after_twenty_thousand_transactions_than_after_two_thousand() {
    leaks::run(20_000, &mut |holdings| println!("{holdings}"))
        .unwrap_or_else(|error| panic!("{error:#}"));
}
