//! Rounds of load with a fault each, from fixed seeds. `cargo faults rounds` runs more of them.

use rowsync_harness::PoolMode;
use rowsync_harness::faults::rig::{Drain, Mode};
use rowsync_harness::faults::rounds::{self, Plan};

fn rounds(mode: Mode, drain: Drain, seed: u64) {
    run(Plan {
        mode,
        drain,
        seed,
        from: 0,
        rounds: 8,
        fault: None,
        pooler: None,
        servers: 1,
    });
}

fn run(plan: Plan) {
    rounds::run(plan, &mut |line| println!("{line}")).unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn after_faults_in_mode_async_both_sides_are_equal() {
    rounds(Mode::Async, Drain::Worker, 1);
}

#[test]
fn after_faults_in_mode_queue_both_sides_are_equal() {
    rounds(Mode::Queue, Drain::Worker, 2);
}

#[test]
fn after_faults_in_mode_sync_only_unknown_transactions_differ() {
    rounds(Mode::Sync, Drain::Worker, 3);
}

#[test]
fn after_faults_in_mode_atomic_both_sides_have_the_same_transactions() {
    rounds(Mode::Atomic, Drain::Worker, 6);
}

/// All have a transaction or none has.
#[test]
fn after_faults_in_mode_atomic_three_servers_have_the_same_transactions() {
    run(Plan {
        mode: Mode::Atomic,
        drain: Drain::Worker,
        seed: 7,
        from: 0,
        rounds: 8,
        fault: None,
        pooler: None,
        servers: 3,
    });
}

#[test]
fn after_faults_without_a_worker_calls_make_both_sides_equal() {
    rounds(Mode::Async, Drain::Calls, 4);
}

#[test]
fn after_faults_behind_a_pooler_both_sides_are_equal() {
    let mode = Mode::Async;
    let drain = Drain::Worker;
    let pooler = Some(PoolMode::Transaction);
    run(Plan {
        mode,
        drain,
        seed: 5,
        from: 0,
        rounds: 8,
        fault: None,
        pooler,
        servers: 1,
    });
}
