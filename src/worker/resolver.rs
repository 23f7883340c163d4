//! The worker's part of mode `atomic`: looks after what is prepared on servers and was left there, see
//! [`crate::atomic::resolver`]. Each account has a schedule of its own, so that a server that cannot be
//! reached keeps nobody else waiting.

use super::schedule::{Intervals, Schedule};
use crate::atomic::resolver;
use crate::delivery::link::Link;
use crate::error::{Error, Result};
use crate::guc;
use crate::pg::spi::Extension;
use crate::pg::worker_transaction::run_in_transaction;
use crate::pg::{Oid, bgworker, report};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between two looks, however often the worker is woken.
const LOOK_GAP: Duration = Duration::from_secs(1);

/// Over whose account something may be prepared: server and owner.
pub type ServerOwner = (String, u32);

/// The worker's part in finishing prepared transactions: which accounts to visit, and when.
pub struct Resolver {
    accounts: BTreeMap<ServerOwner, Schedule>,
    /// When to look which accounts there are, and at all of them.
    look_at: Instant,
    looked: Instant,
}

impl Resolver {
    pub fn new(now: Instant) -> Self {
        Self {
            accounts: BTreeMap::new(),
            look_at: now,
            looked: now,
        }
    }

    /// Some session may have left something.
    pub fn wake(&mut self) {
        if !self.accounts.is_empty() {
            self.look_at = self.look_at.min(self.looked + LOOK_GAP);
        }
    }

    /// When something is to be done next.
    pub fn next(&self) -> Instant {
        self.accounts
            .values()
            .filter_map(Schedule::due)
            .fold(self.look_at, Instant::min)
    }

    /// Looks which accounts there are, once it is time; what it failed over.
    ///
    /// # Errors
    /// What reading the catalogs reports.
    pub fn look(&mut self) -> Result<()> {
        let now = Instant::now();
        if self.look_at > now {
            return Ok(());
        }
        self.looked = now;
        self.look_at = now + guc::max_retry_interval();
        let found = run_in_transaction(|| match Extension::look_up()? {
            Some(extension) => Ok((
                resolver::accounts(&extension)?,
                resolver::has_decisions(&extension)?,
            )),
            None => Ok((Vec::new(), false)),
        });
        let (accounts, has_decisions) = found?;
        if has_decisions {
            self.look_at = now + LOOK_GAP;
        }
        let found: Vec<ServerOwner> = accounts
            .into_iter()
            .map(|(server, owner)| (server, owner.to_u32()))
            .collect();
        self.accounts.retain(|account, _| found.contains(account));
        for account in found {
            self.accounts
                .entry(account)
                .and_modify(|schedule| schedule.wake(now))
                .or_insert_with(|| Schedule::new(now));
        }
        Ok(())
    }

    /// Begins to connect for the accounts whose time has come.
    pub fn approach(&mut self) -> Vec<(ServerOwner, Link<'static>)> {
        let now = Instant::now();
        let due = self
            .accounts
            .iter_mut()
            .filter(|(_, one)| one.due().is_some_and(|due| due <= now));
        let mut links = Vec::new();
        let mut failed = Vec::new();
        for (account, schedule) in due {
            schedule.try_now();
            let (server, owner) = account;
            match run_in_transaction(|| {
                resolver::approach(&Extension::find()?, server, Oid::from(*owner))
            }) {
                Ok(link) => links.push((account.clone(), link)),
                Err(error) => failed.push((account.clone(), error)),
            }
        }
        failed
            .iter()
            .for_each(|(account, error)| self.fail(account, error));
        links
    }

    /// A link is up, or has failed to come up.
    pub fn serve(&mut self, account: &ServerOwner, link: Link<'static>) {
        let resolved = link
            .result()
            .and_then(|()| run_in_transaction(|| resolver::resolve(&Extension::find()?, link)));
        match resolved {
            Ok(remaining) => {
                let now = Instant::now();
                if let Some(schedule) = self.accounts.get_mut(account) {
                    schedule.succeed(false, now);
                }
                if remaining > 0 {
                    self.look_at = self.look_at.min(now + LOOK_GAP);
                }
            }
            Err(error) => self.fail(account, &error),
        }
    }

    fn fail(&mut self, account: &ServerOwner, error: &Error) {
        if bgworker::ending().is_some() {
            return;
        }
        let Some(schedule) = self.accounts.get_mut(account) else {
            return;
        };
        let intervals = Intervals {
            retry: guc::retry_interval(),
            max: guc::max_retry_interval(),
        };
        schedule.fail(Instant::now(), intervals);
        if schedule.failures() > 1 {
            return;
        }
        let (server, owner) = account;
        report::log(
            &format!("what is prepared on server \"{server}\" could not be finished"),
            Some(error),
        );
        let noted = run_in_transaction(|| match Extension::look_up()? {
            Some(extension) => resolver::note(&extension, server, Oid::from(*owner), error),
            None => Ok(()),
        });
        if let Err(error) = noted {
            report::log(
                "the state of prepared transactions could not be noted",
                Some(&error),
            );
        }
    }
}
