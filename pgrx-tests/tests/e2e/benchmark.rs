//! That the benchmark measures what it is there for: so few rows that the figures mean nothing.

use rowsync_harness::bench::contender::Contender;
use rowsync_harness::bench::plan::Plan;
use rowsync_harness::bench::run::Run;
use rowsync_harness::bench::{groups, targets};

/// Every contender is measured, and what it writes arrives, directly where it promises that.
fn measures(group: &str, contenders: &[Contender]) {
    let plan = Plan {
        contenders: contenders.to_vec(),
        only: Some(group.to_owned()),
        ..Plan::quick()
    };
    let mut run = Run::start(plan).unwrap();
    groups::all(&mut run, &mut |line| println!("{line}"))
        .unwrap_or_else(|error| panic!("{error:#}"));
    for contender in contenders {
        let mut medians = run.figures.workloads().into_iter();
        let is_measured = |workload| run.figures.median(workload, *contender) > Some(0.0);
        assert!(medians.any(is_measured), "{contender}");
    }
    let judged = targets::judge(&run.figures, &run.plan);
    assert!(judged.iter().any(|verdict| verdict.found.is_some()));
}

#[test]
fn statements_of_all_modes() {
    use Contender::{Async, Atomic, Fdw, None, Queue, Recipe, Sync};
    measures("narrow", &[None, Recipe, Fdw, Async, Sync, Atomic, Queue]);
}

#[test]
fn transactions_through_a_pooler() {
    use Contender::{Async, None, Sync};
    measures("pooler", &[None, Async, Sync]);
}
