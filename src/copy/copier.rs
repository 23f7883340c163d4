//! The process that copies: takes one group of copies after the other, as long as there are any to be done now.

use super::registry;
use super::steps::{StepOutcome, Steps};
use crate::error::{Error, Outlook, Result, SqlState};
use crate::pg::bgworker;
use crate::pg::spi::Extension;
use crate::pg::worker_transaction::run_in_transaction;
use crate::pg::{Oid, interrupt, report, wait};
use crate::transaction;
use std::time::{Duration, Instant};

/// Attempts after which a constraint that looks at other rows is not taken to hold some day.
const MOST_REFUSALS: i32 = 6;

/// Main function of a copier.
pub fn run(database: Oid) {
    if !bgworker::enter(database) {
        return;
    }
    while bgworker::ending().is_none() {
        interrupt::pending();
        bgworker::forget_cancel();
        bgworker::reload();
        let due = run_in_transaction(|| match Extension::look_up()? {
            Some(extension) => Ok(registry::due(&extension)?.0),
            None => Ok(Vec::new()),
        });
        let due = match due {
            Ok(due) => due,
            Err(error) => return report::log("the copies could not be read", Some(&error)),
        };
        let Some(group) = due.into_iter().find(|group| bgworker::take_copy(*group)) else {
            return;
        };
        copy(group);
        bgworker::leave_copy(group);
    }
}

/// Copies a group until it has arrived or an attempt fails.
fn copy(group: i64) {
    let mut steps = Steps::new(group);
    loop {
        bgworker::show(true, &format!("pg_rowsync: copy {group}"));
        interrupt::pending();
        if bgworker::ending().is_some() {
            return;
        }
        match steps.step() {
            Ok(StepOutcome::Done) => {
                encourage();
                return bgworker::report_statistics(true);
            }
            Ok(StepOutcome::More) => {}
            Ok(StepOutcome::Wait(time)) => pause(time),
            Ok(StepOutcome::Paused) => return,
            Err(_) if bgworker::ending().is_some() => return,
            Err(error) if steps.tries_otherwise(&error) => {}
            Err(error) => return failed(group, &error),
        }
        bgworker::report_statistics(false);
    }
}

/// Copies whose rows refer to what was missing are tried again now: it may have come.
fn encourage() {
    let noted = run_in_transaction(|| {
        transaction::wake_worker();
        Extension::look_up()?.map_or(Ok(()), |extension| registry::encourage(&extension))
    });
    if let Err(error) = noted {
        report::log(
            "copies that wait could not be told of one that is done",
            Some(&error),
        );
    }
}

/// Waits, whatever wakes the process meanwhile, but not for longer than it is to live.
fn pause(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now())
        && bgworker::ending().is_none()
    {
        wait::wait(&[], left.max(Duration::from_millis(1)));
        interrupt::pending();
        bgworker::forget_cancel();
    }
}

fn failed(group: i64, error: &Error) {
    interrupt::nothing_committed();
    let noted = run_in_transaction(|| {
        let extension = Extension::find()?;
        // Where a table was dropped meanwhile, the failure may be any.
        if registry::drop_without_table(&extension, group)? {
            transaction::wake_worker();
            return Ok(());
        }
        let copies = registry::group(&extension, group)?;
        let attempts = copies
            .iter()
            .map(|copy| copy.attempts)
            .max()
            .unwrap_or_default();
        // What is referred to may come with another copy, or from the queue.
        let may_come = error.sqlstate() == SqlState::FOREIGN_KEY_VIOLATION
            && registry::has_others(&extension, group)?;
        let lasts = lasts(error, attempts) && !may_come;
        if lasts {
            report::log(&format!("copy {group} has failed"), Some(error));
        }
        // The worker comes again when it is time.
        transaction::wake_worker();
        registry::fail(&extension, group, error, lasts)
    });
    if let Err(own) = noted {
        report::log(
            &format!("copy {group} failed, which could not be noted"),
            Some(&own),
        );
    }
}

/// Whether a failure lasts until a person does something.
fn lasts(error: &Error, attempts: i32) -> bool {
    match error {
        Error::Remote(_) if error.is_about_others() => attempts >= MOST_REFUSALS,
        Error::Remote(remote) => remote.sqlstate.outlook() == Outlook::Lasts,
        Error::Local { sqlstate, .. } => {
            sqlstate.outlook() == Outlook::Lasts && *sqlstate != SqlState::INTERNAL
                || (*sqlstate == SqlState::INTERNAL && attempts >= MOST_REFUSALS)
        }
        _ => false,
    }
}

/// Groups with something to do, and how long it is until there is more.
///
/// # Errors
/// What reading the table reports.
pub fn due(extension: &Extension) -> Result<(usize, Option<Duration>)> {
    let (due, wait) = registry::due(extension)?;
    Ok((due.len(), wait))
}
