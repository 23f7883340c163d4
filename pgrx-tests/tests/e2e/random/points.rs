//! Faults inside the extension, at its named points: a part of what `cargo faults points` tries.

use std::collections::BTreeSet;
use std::path::Path;

use rowsync_harness::faults::points::{
    self, Case, DOCUMENT, Point, PointsFixture, Table, Trial, What, check_against,
};
use rowsync_harness::faults::rig::Drain;
use rowsync_harness::setup;

fn documented() -> Table {
    let document = std::fs::read_to_string(setup::root().join(DOCUMENT)).expect("the document");
    Table::of(&document)
}

fn are_as_documented(drain: Drain, trials: &[(Case, Point, What)]) {
    let table = documented();
    let mut fixture =
        PointsFixture::start(drain).unwrap_or_else(|error| panic!("no fixture: {error:#}"));
    for (case, point, what) in trials.iter().copied() {
        let trial = Trial { case, point, what };
        check_against(&mut fixture, &table, &trial).unwrap_or_else(|error| panic!("{error:#}"));
    }
}

#[test]
fn what_a_failure_inside_a_transaction_leaves_is_as_documented() {
    use {Case::*, Point::*, What::*};
    are_as_documented(
        Drain::Calls,
        &[
            (Async, Capture, Error),
            (Async, Connect, Files),
            (Async, BeforeSend, Fatal),
            (Async, BeforeSend, Memory),
            (Async, CommitSent, Terminate),
            (Async, CommitSent, Kill),
            (Async, CommitSent, Memory),
            (Async, Answered, Cancel),
            (Async, BeforeCommit, Files),
            (Async, AfterCommit, Kill),
            (Async, AfterCommit, Error),
            (Async, AfterCommit, Memory),
            (Away, QueueWrite, Error),
            (Away, Queued, Terminate),
            (Sync, Connect, Memory),
            (Sync, Connect, Files),
            (Sync, CommitSent, Cancel),
            (Sync, CommitSent, Memory),
            (Sync, Answered, Terminate),
            (Sync, BeforeCommit, Error),
            (Queue, QueueWrite, Kill),
            (Queue, Queued, Fatal),
            (Pair, CommitSent, Kill),
            (Pair, Answered, Cancel),
            (Pair, Answered, Memory),
            (Half, QueueWrite, Error),
            (Half, Queued, Terminate),
            (Half, Answered, Memory),
            (Call, Claimed, Error),
            (Call, Applied, Kill),
            (Call, Removed, Cancel),
            (Call, CommitSent, Terminate),
            (Call, Answered, Fatal),
            (Call, Answered, Memory),
            (Call, BeforeCommit, Error),
        ],
    );
}

#[test]
fn what_a_failure_inside_leaves_in_mode_atomic_is_as_documented() {
    use {Case::*, Point::*, What::*};
    are_as_documented(
        Drain::Calls,
        &[
            (Atomic, BeforePrepare, Terminate),
            (Atomic, BeforePrepare, Kill),
            (Atomic, Prepared, Fatal),
            (Atomic, Prepared, Kill),
            (Atomic, BeforeCommit, Error),
            (Atomic, AfterCommit, Kill),
            (Atomic, AfterCommit, Memory),
            (Atomic, SecondPhase, Kill),
            (Atomic, SecondPhase, Error),
            (Atomic, SecondPhase, Memory),
            (Atomic, SecondPhase, Cancel),
            (Atomic, Finished, Kill),
            (Atomic, Finished, Error),
            (Atomic, Finished, Memory),
            (AtomicPair, Prepared, Error),
            (AtomicPair, BeforeCommit, Kill),
            (AtomicPair, SecondPhase, Terminate),
            (AtomicPair, SecondPhase, Memory),
            (Resolve, Resolving, Error),
            (Resolve, Resolving, Kill),
        ],
    );
}

#[test]
fn what_a_failure_inside_the_worker_leaves_is_as_documented() {
    use {Case::*, Point::*, What::*};
    are_as_documented(
        Drain::Worker,
        &[
            (Worker, LookUp, Error),
            (Worker, LookUp, Fatal),
            (Worker, Applied, Terminate),
            (Worker, CommitSent, Error),
            (Worker, Answered, Kill),
            (Worker, BeforeCommit, Cancel),
            (Resolver, Resolving, Fatal),
            (Resolver, Resolving, Kill),
        ],
    );
}

#[test]
fn every_point_is_tried_and_documented() {
    let mut found = BTreeSet::new();
    collect(&setup::root().join("src"), &mut found);
    let known: BTreeSet<String> = Point::ALL
        .iter()
        .map(|point| format!("{point:?}"))
        .collect();
    assert_eq!(found, known);
    let table = documented();
    for point in Point::ALL {
        let is_told = |case: &Case| {
            let kill = Trial {
                case: *case,
                point,
                what: What::Kill,
            };
            table.get(&kill).is_some_and(|seen| !seen.is_empty())
        };
        assert!(
            points::Case::ALL.iter().any(is_told),
            "{point:?} is not documented"
        );
    }
}

/// The points that are named in a directory's source files.
fn collect(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, found);
            continue;
        }
        // It names one that is not there, to show that nobody looks.
        if path.ends_with("src/fault.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a source file");
        // Not in comments, which give examples.
        let code = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        for line in code.filter_map(|line| line.split_once("fault_point!(")) {
            found.extend(line.1.split([')', ' ']).next().map(str::to_owned));
        }
    }
}
