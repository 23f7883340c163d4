//! Masters under policy `newest` end equal, whatever their versions say and the network does, and no
//! client notices. From fixed seeds; `cargo faults converge` runs more and longer.

use std::time::Duration;

use rowsync_harness::faults::convergence::{self, Plan, Version};
use rowsync_harness::faults::rig::{Drain, Mode};

const PLAN: Plan = Plan {
    masters: 2,
    version: Version::Clock,
    mode: Mode::Async,
    drain: Drain::Worker,
    seed: 1,
    rounds: 2,
    time: Duration::from_secs(2),
};

fn converge(plan: Plan) {
    let report = convergence::run(plan, &mut |line| println!("{line}"));
    report.unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn two_masters_with_one_time_end_equal() {
    converge(PLAN);
}

#[test]
fn two_masters_whose_versions_never_change_end_equal() {
    converge(Plan {
        version: Version::Frozen,
        seed: 2,
        ..PLAN
    });
}

#[test]
fn two_masters_whose_clocks_are_apart_end_equal() {
    converge(Plan {
        version: Version::Skewed,
        seed: 3,
        ..PLAN
    });
}

#[test]
fn two_masters_without_versions_end_equal() {
    converge(Plan {
        version: Version::Null,
        seed: 4,
        ..PLAN
    });
}

#[test]
fn two_masters_without_workers_end_equal() {
    converge(Plan {
        version: Version::Skewed,
        drain: Drain::Calls,
        seed: 5,
        ..PLAN
    });
}

#[test]
fn two_masters_that_queue_everything_end_equal() {
    converge(Plan {
        mode: Mode::Queue,
        drain: Drain::Both,
        seed: 6,
        ..PLAN
    });
}

#[test]
fn three_masters_with_one_time_end_equal() {
    converge(Plan {
        masters: 3,
        seed: 7,
        ..PLAN
    });
}

#[test]
fn three_masters_whose_versions_never_change_end_equal() {
    converge(Plan {
        masters: 3,
        version: Version::Frozen,
        drain: Drain::Both,
        seed: 8,
        ..PLAN
    });
}

#[test]
fn three_masters_whose_clocks_are_apart_end_equal() {
    converge(Plan {
        masters: 3,
        version: Version::Skewed,
        seed: 9,
        ..PLAN
    });
}
