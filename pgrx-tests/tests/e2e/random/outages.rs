//! The other side is away for seconds or a minute while eight clients go on. `cargo faults outage`
//! measures longer ones and at full speed.

use std::time::Duration;

use rowsync_harness::faults::flapping;
use rowsync_harness::faults::outage::{self, Away, Plan, Report};
use rowsync_harness::faults::rig::{Drain, Mode, Rig};

const CLIENTS: u32 = 8;

/// Client errors, a queue that does not drain and sides that differ are errors of the run itself.
fn outage(away: Away, seconds: u64, rate: u32) -> Report {
    let plan = Plan {
        away,
        drain: Drain::Worker,
        clients: CLIENTS,
        scale: 2,
        // So that what is measured is the extension and not the machine, which other tests share.
        rate: Some(rate),
        before: Duration::from_secs(4),
        outage: Duration::from_secs(seconds),
        after: Duration::from_secs(20 + seconds / 4),
    };
    let report = outage::run(plan).unwrap_or_else(|error| panic!("{error:#}"));
    println!("{report}");
    report
}

/// What of an outage was noticed: each client may meet the failure once, and wait for others that did; then nobody
/// waits any more.
fn noticed(report: &Report) -> Vec<&'static str> {
    let Report {
        before,
        during,
        draining,
        after,
        last_slow,
        ..
    } = report;
    let slow = 3 * CLIENTS as usize;
    let usual = before.median * 2 + Duration::from_millis(50);
    let conditions = [
        (during.transactions > 100, "hardly anything was written"),
        (during.slow <= slow, "many commits waited"),
        (*last_slow < Duration::from_secs(6), "commits waited late"),
        (during.median < usual, "commits were slower meanwhile"),
        (draining.slow <= slow, "commits waited for the drain"),
        (after.median < usual, "commits were slower afterwards"),
    ];
    conditions
        .into_iter()
        .filter_map(|(holds, what)| (!holds).then_some(what))
        .collect()
}

/// Tried once more where something was noticed: other tests share the machine, and may have slowed it down.
fn assert_unnoticed(away: Away, seconds: u64, rate: u32) {
    let first = outage(away, seconds, rate);
    if noticed(&first).is_empty() {
        return;
    }
    println!("{:?}", noticed(&first));
    let second = outage(away, seconds, rate);
    assert_eq!(noticed(&second), [""; 0], "{second:?}");
}

#[test]
fn a_refused_connection_slows_no_commit_but_the_first() {
    assert_unnoticed(Away::Refused, 5, 80);
}

#[test]
fn a_silent_network_slows_no_commit_but_the_first() {
    assert_unnoticed(Away::Silent, 5, 80);
}

#[test]
fn a_server_that_is_down_for_a_minute_is_caught_up_with() {
    assert_unnoticed(Away::Stopped, 60, 40);
}

#[test]
fn rows_that_everyone_updates_stay_equal_while_the_other_side_comes_and_goes() {
    let rig = Rig::start("flapping", Mode::Async, Drain::Both).expect("two clusters");
    let report =
        flapping::run(&rig, 5, Duration::from_secs(12)).unwrap_or_else(|error| panic!("{error:#}"));
    let flapping::Report {
        committed,
        outages,
        queued,
    } = report;
    println!("{committed} committed, {outages} outages, {queued} queued");
    assert!(outages > 3 && queued > 100, "the outages came to nothing");
}
