//! Faults inside: every named point of the extension × everything that can go wrong there, in every mode and by
//! drains, one transaction each; both sides compared afterwards, and again once the queue has been drained.
//!
//! Needs an extension built with the feature `faults`, see its `src/pg/fault.rs` for what is asked of it and
//! how.

mod fixture;
mod table;

use std::fmt;

use anyhow::{Result, ensure};

use super::rig::Drain;

pub use self::fixture::PointsFixture;
pub use self::table::Table;

/// Where the tables are.
pub const DOCUMENT: &str = "doc/failures.md";

/// The points, as the extension names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    Capture,
    Connect,
    BeforeSend,
    CommitSent,
    Answered,
    BeforeCommit,
    AfterCommit,
    QueueWrite,
    Queued,
    Claimed,
    Applied,
    Removed,
    LookUp,
    BeforePrepare,
    Prepared,
    SecondPhase,
    Finished,
    Resolving,
}

impl Point {
    pub const ALL: [Point; 18] = [
        Point::Capture,
        Point::Connect,
        Point::BeforeSend,
        Point::BeforePrepare,
        Point::Prepared,
        Point::CommitSent,
        Point::Answered,
        Point::BeforeCommit,
        Point::AfterCommit,
        Point::SecondPhase,
        Point::Finished,
        Point::QueueWrite,
        Point::Queued,
        Point::Claimed,
        Point::Applied,
        Point::Removed,
        Point::LookUp,
        Point::Resolving,
    ];

    /// For people.
    fn describe(self) -> &'static str {
        match self {
            Point::Capture => "before a row's change is captured",
            Point::Connect => "before a connection is begun",
            Point::BeforeSend => "connected, before anything is sent",
            Point::CommitSent => "after COMMIT was sent",
            Point::Answered => "after the server has said that it has committed",
            Point::BeforeCommit => "before the local commit",
            Point::AfterCommit => "after the local commit",
            Point::QueueWrite => "while the queue is written",
            Point::Queued => "after the queue was written",
            Point::Claimed => "after records were taken from the queue",
            Point::Applied => "after a batch was applied",
            Point::Removed => "after records were removed from the queue",
            Point::LookUp => "when the worker has looked for work",
            Point::BeforePrepare => "before PREPARE TRANSACTION is sent",
            Point::Prepared => "after a server has said that it has prepared",
            Point::SecondPhase => "before COMMIT PREPARED is sent",
            Point::Finished => "after COMMIT PREPARED was answered",
            Point::Resolving => "when it is known what a server has prepared",
        }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Nothing: the process waits, and goes on.
    Nothing,
    Error,
    Fatal,
    /// SIGKILL to the process itself.
    Kill,
    /// No descriptor can be had to the end of the transaction.
    Files,
    /// No memory can be had to the end of the transaction.
    Memory,
    Cancel,
    Terminate,
}

impl What {
    pub const ALL: [What; 7] = [
        What::Error,
        What::Fatal,
        What::Kill,
        What::Files,
        What::Memory,
        What::Cancel,
        What::Terminate,
    ];

    /// The word that the extension knows it by.
    fn word(self) -> &'static str {
        match self {
            What::Error => "error",
            What::Fatal => "fatal",
            What::Kill => "kill",
            What::Files => "files",
            What::Memory => "memory",
            What::Nothing | What::Cancel | What::Terminate => "nothing",
        }
    }

    /// For people.
    fn describe(self) -> &'static str {
        match self {
            What::Nothing => "nothing",
            What::Error => "ERROR",
            What::Fatal => "FATAL",
            What::Kill => "SIGKILL",
            What::Files => "no descriptors",
            What::Memory => "no memory",
            What::Cancel => "cancel",
            What::Terminate => "terminate",
        }
    }

    /// Whether it can be had at that point: where a transaction has committed, no session can leave by itself.
    pub fn is_possible(self, point: Point) -> bool {
        let is_over = matches!(
            point,
            Point::AfterCommit | Point::SecondPhase | Point::Finished
        );
        !is_over || self != What::Fatal
    }
}

/// What is under way when it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// A transaction in mode `async`.
    Async,
    /// As `Async`, to a server that cannot be reached.
    Away,
    /// A transaction in mode `sync`.
    Sync,
    /// A transaction in mode `queue`.
    Queue,
    /// A transaction in mode `async` whose changes go to two servers.
    Pair,
    /// As `Pair`, where one of the two cannot be reached.
    Half,
    /// A transaction in mode `atomic`.
    Atomic,
    /// As `Atomic`, with two servers.
    AtomicPair,
    /// A call of `deal_sync_err_rec`.
    Call,
    /// A visit of the worker.
    Worker,
    /// A call of `resolve_sync_prepared` after the connection was lost in the second phase.
    Resolve,
    /// The worker, after the same.
    Resolver,
}

impl Case {
    pub const ALL: [Case; 12] = [
        Case::Async,
        Case::Away,
        Case::Sync,
        Case::Queue,
        Case::Pair,
        Case::Half,
        Case::Atomic,
        Case::AtomicPair,
        Case::Call,
        Case::Worker,
        Case::Resolve,
        Case::Resolver,
    ];

    /// Who drains the queue meanwhile.
    pub fn drain(self) -> Drain {
        if self.is_by_worker() {
            Drain::Worker
        } else {
            Drain::Calls
        }
    }

    /// Whether it is the worker that comes to the points.
    fn is_by_worker(self) -> bool {
        matches!(self, Case::Worker | Case::Resolver)
    }

    /// Whether the call of a function comes to the points.
    fn is_call(self) -> bool {
        matches!(self, Case::Call | Case::Resolve)
    }

    /// Whether what comes to the points finishes what a lost second phase has left.
    fn resolves(self) -> bool {
        matches!(self, Case::Resolve | Case::Resolver)
    }

    fn is_atomic(self) -> bool {
        matches!(self, Case::Atomic | Case::AtomicPair) || self.resolves()
    }

    /// Whether the changes go to two servers.
    fn has_two(self) -> bool {
        matches!(self, Case::Pair | Case::Half | Case::AtomicPair)
    }

    /// The server that cannot be reached meanwhile.
    fn away(self) -> Option<&'static str> {
        match self {
            Case::Away => Some("dst"),
            Case::Half => Some("dst2"),
            _ => None,
        }
    }

    fn mode(self) -> &'static str {
        match self {
            Case::Async | Case::Away | Case::Pair | Case::Half => "async",
            Case::Sync => "sync",
            Case::Queue | Case::Call | Case::Worker => "queue",
            Case::Atomic | Case::AtomicPair | Case::Resolve | Case::Resolver => "atomic",
        }
    }

    /// For people.
    fn describe(self) -> &'static str {
        match self {
            Case::Async => "Mode `async`",
            Case::Away => "Mode `async`, the server cannot be reached",
            Case::Sync => "Mode `sync`",
            Case::Queue => "Mode `queue`",
            Case::Pair => "Mode `async`, two servers",
            Case::Half => "Mode `async`, two servers, one of which cannot be reached",
            Case::Atomic => "Mode `atomic`",
            Case::AtomicPair => "Mode `atomic`, two servers",
            Case::Call => "`deal_sync_err_rec`",
            Case::Worker => "The worker",
            Case::Resolve => "`resolve_sync_prepared`",
            Case::Resolver => "The worker, in mode `atomic`",
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    pub case: Case,
    pub point: Point,
    pub what: What,
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {:?}, {:?}", self.case, self.point, self.what)
    }
}

/// What the client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reported {
    /// That it has committed.
    Success,
    /// That a drain has met a failure.
    False,
    /// An ERROR.
    Error,
    /// Nothing: the session has ended.
    Nothing,
}

/// Of the servers that a transaction's changes go to, which have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum There {
    None,
    /// One of two.
    One,
    All,
}

/// What came of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The point was come to.
    pub reached: bool,
    pub reported: Reported,
    /// The server has restarted.
    pub crashed: bool,
    /// The local transaction has committed.
    pub here: bool,
    /// Its changes are on the other side.
    pub there: There,
    /// Its changes are in the queue.
    pub queued: bool,
    /// Something is prepared on the other side.
    pub prepared: bool,
    /// Both sides are equal once the queue has been drained and what is prepared was resolved.
    pub equal: bool,
}

impl Seen {
    /// Whether that may come of the trial.
    ///
    /// # Errors
    /// What must not be.
    pub fn check(&self, trial: &Trial) -> Result<()> {
        let Seen {
            reported,
            here,
            there,
            queued,
            prepared,
            equal,
            ..
        } = *self;
        let case = trial.case;
        let direct = !case.is_call() && !case.is_by_worker();
        let never = |wrong: bool, why: &str| -> Result<()> {
            ensure!(!wrong, "{trial}: {why}: {self:?}");
            Ok(())
        };
        let is_there = there == There::All;
        never(
            direct && reported == Reported::Success && !here,
            "told to be committed, and is not",
        )?;
        never(
            direct && reported == Reported::Error && here,
            "told to have failed, and has not",
        )?;
        never(
            here && !is_there && !queued && !prepared,
            "a change is lost",
        )?;
        never(
            case == Case::Sync && here && !is_there,
            "sync, but not there",
        )?;
        never(case == Case::Sync && queued, "sync, but queued")?;
        never(case.is_atomic() && queued, "atomic, but queued")?;
        never(
            case.is_atomic() && !here && there != There::None,
            "atomic, but only there",
        )?;
        never(
            case.is_atomic() && !equal,
            "atomic, but not both or neither",
        )?;
        never(!case.is_atomic() && prepared, "not atomic, but prepared")?;
        // The one window that a single phase leaves: it is committed there, and not here yet.
        let late = [Point::CommitSent, Point::Answered, Point::BeforeCommit];
        let single = matches!(case, Case::Async | Case::Sync | Case::Pair | Case::Half);
        let window = single && late.contains(&trial.point) && !here;
        never(!equal && !window, "both sides differ")?;
        let harmless = matches!(trial.what, What::Nothing | What::Cancel);
        never(harmless && !equal, "both sides differ over nothing")?;
        never(
            trial.what == What::Terminate && !equal,
            "both sides differ over a request",
        )?;
        let is_reserved = trial.what == What::Memory
            && matches!(trial.point, Point::CommitSent | Point::Answered);
        never(
            is_reserved && !equal,
            "both sides differ over memory that was taken before",
        )?;
        never(self.crashed && trial.what != What::Kill, "a crash")
    }

    /// For people.
    fn describe(&self, &Trial { case, what, .. }: &Trial) -> String {
        if case.is_by_worker() {
            let restarts = if self.crashed {
                "server restarts, "
            } else {
                ""
            };
            return format!(
                "{restarts}{}",
                match (self.equal, case.resolves()) {
                    (true, true) => "finished",
                    (true, false) => "drained",
                    (false, _) => "**not drained**",
                }
            );
        }
        let reported = match self.reported {
            _ if self.crashed => "server restarts",
            // Whether the client is told before its session ends is a matter of moments.
            Reported::Success | Reported::Nothing if what == What::Terminate => "session ends",
            Reported::Success if case.is_call() => "true",
            Reported::Success => "commits",
            Reported::False => "false",
            Reported::Error => "fails",
            Reported::Nothing => "session ends",
        };
        let became = match (case, self.here, self.there, self.queued || self.prepared) {
            (Case::Call, _, There::All, true) => "applied, still queued",
            (Case::Call, _, There::All, false) => "applied",
            (Case::Call, ..) => "still queued",
            (Case::Resolve, _, There::All, _) => "finished",
            (Case::Resolve, ..) => "still prepared",
            (_, true, There::All, true) => "delivered and queued",
            (_, true, There::All, false) => "delivered",
            (_, true, _, _) if case.is_atomic() => "delivered later",
            (_, true, There::One, _) => "delivered to one, queued for the other",
            (_, true, There::None, _) => "queued",
            (_, false, There::None, true) if self.prepared => "nothing, once it is resolved",
            (_, false, There::None, _) => "nothing",
            (_, false, There::One, _) => "**only there**, on one",
            (_, false, There::All, _) => "**only there**",
        };
        format!("{reported}, {became}")
    }
}

/// What of all that can be tried is; everything where nothing is named.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Names of points, with a comma between two.
    pub points: Option<String>,
    /// Names of what goes wrong.
    pub whats: Option<String>,
}

impl Selection {
    fn has(names: &Option<String>, item: impl fmt::Debug) -> bool {
        let item = format!("{item:?}");
        let is_item = |name: &str| name.eq_ignore_ascii_case(&item);
        names
            .as_ref()
            .is_none_or(|names| names.split(',').any(is_item))
    }
}

/// Tries what can be tried in a case and is selected, reports each and gives the table's part.
///
/// # Errors
/// What must not be, or what keeps it from being tried.
pub fn run(
    fixture: &mut PointsFixture,
    case: Case,
    only: &Selection,
    report: &mut dyn FnMut(&Trial, &Seen),
) -> Result<Table> {
    let mut table = Table::default();
    for point in Point::ALL {
        if !Selection::has(&only.points, point) {
            continue;
        }
        let nothing = Trial {
            case,
            point,
            what: What::Nothing,
        };
        let seen = fixture.run(&nothing)?;
        seen.check(&nothing)?;
        if !seen.reached {
            continue;
        }
        let is_tried = |what: &What| what.is_possible(point) && Selection::has(&only.whats, what);
        for what in What::ALL.into_iter().filter(is_tried) {
            let trial = Trial { case, point, what };
            let seen = fixture.run(&trial)?;
            report(&trial, &seen);
            ensure!(seen.reached, "{trial}: the point was not reached");
            seen.check(&trial)?;
            table.set(&trial, seen.describe(&trial));
        }
    }
    Ok(table)
}

/// Tries one thing, which must come to what a table says of it.
///
/// # Errors
/// What must not be, or is not as the table says.
pub fn check_against(fixture: &mut PointsFixture, table: &Table, trial: &Trial) -> Result<()> {
    let seen = fixture.run(trial)?;
    ensure!(seen.reached, "{trial}: the point was not reached");
    seen.check(trial)?;
    let found = seen.describe(trial);
    let reported = table.get(trial);
    // How far the memory goes that a process has at hand is not the same every time.
    let varies = trial.what == What::Memory;
    ensure!(
        varies || reported == Some(&found),
        "{trial}: documented is {reported:?}, seen was {found:?}"
    );
    Ok(())
}
