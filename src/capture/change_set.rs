//! The changes of one transaction for one user mapping and table owner, in order.

use super::descriptor::Descriptor;
use super::log::{ChangeLog, Reader, Rows};
use super::origin::{Altered, Origin, narrowed, refusal};
use super::row::Captured;
use crate::change::{Change, Op, Policy, Route};
use crate::connect::account::Account;
use crate::error::{Error, Result, SqlState};
use crate::options::Mode;
use crate::pg::context::TOP_SUBTRANSACTION;
use crate::pg::spi::Extension;
use std::rc::Rc;

/// Where a subtransaction's changes begin, and what the set was like before them.
struct Savepoint {
    subtransaction: u32,
    bytes: u64,
    large: u64,
    count: usize,
    mode: Mode,
}

/// What a transaction has changed in one owner's tables that are sent to one server.
pub struct ChangeSet {
    pub extension: Extension,
    pub account: Account,
    /// The strictest mode among the triggers that contributed.
    pub mode: Mode,
    log: ChangeLog,
    count: usize,
    /// Some change leaves columns out that the server is assumed to have.
    has_unsent: bool,
    /// Some change is a TRUNCATE.
    has_truncates: bool,
    /// Some change deletes a row, or moves it to another key.
    has_removals: bool,
    /// Some change's row was left where it is stored, in part.
    has_unread: bool,
    /// Bytes of what was left so and is to be sent.
    large: u64,
    /// Those of several partitions may be one.
    routes: Vec<Rc<Route>>,
    /// Of each route, what the descriptor of its table has for it.
    given: Vec<Rc<Route>>,
    /// Of each route, where its values were read from.
    origins: Vec<Rc<Origin>>,
    /// Of each route, whether a change is among the set that is sent as an upsert when nothing is
    /// taken for granted.
    upserts: Vec<bool>,
    savepoints: Vec<Savepoint>,
}

impl ChangeSet {
    /// An empty change set for a descriptor's account.
    pub fn new(descriptor: &Descriptor) -> Self {
        Self {
            extension: descriptor.extension.clone(),
            account: descriptor.account.clone(),
            mode: Mode::Queue,
            log: ChangeLog::default(),
            count: 0,
            has_unsent: false,
            has_truncates: false,
            has_removals: false,
            has_unread: false,
            large: 0,
            routes: Vec::new(),
            given: Vec::new(),
            origins: Vec::new(),
            upserts: Vec::new(),
            savepoints: Vec::new(),
        }
    }

    /// Appends a change that takes this route, by the descriptor's trigger, made in the given subtransaction.
    ///
    /// # Errors
    /// As for [`ChangeLog::append`].
    pub fn push(
        &mut self,
        descriptor: &Descriptor,
        route: &Rc<Route>,
        captured: &Captured<'_>,
        subtransaction: u32,
    ) -> Result<()> {
        let change = &captured.change;
        let innermost = self
            .savepoints
            .last()
            .map_or(TOP_SUBTRANSACTION, |m| m.subtransaction);
        if innermost != subtransaction {
            let bytes = self.log.len();
            let large = self.large;
            let count = self.count;
            self.savepoints.push(Savepoint {
                subtransaction,
                bytes,
                large,
                count,
                mode: self.mode,
            });
        }
        let route = self.number_of(route, &descriptor.origin);
        self.log.append(route, captured)?;
        self.mode = self.mode.max(descriptor.mode);
        self.has_unsent |= !change.unchanged.is_empty();
        self.has_truncates |= change.op == Op::Truncate;
        self.has_removals |= change.op == Op::Delete || change.moves();
        self.has_unread |= !captured.unread.is_empty();
        let sent = captured
            .unread
            .iter()
            .filter(|(at, _)| !change.unchanged.contains(at));
        self.large += sent.map(|(_, stored)| stored.size()).sum::<u64>();
        self.upserts[route as usize] |= change.is_upsert();
        self.count += 1;
        Ok(())
    }

    fn number_of(&mut self, route: &Rc<Route>, origin: &Rc<Origin>) -> u32 {
        if let Some(known) = self.given.iter().rposition(|r| Rc::ptr_eq(r, route)) {
            return known as u32;
        }
        let alike = self.routes.iter().find(|known| *known == route);
        let shared = alike.unwrap_or(route).clone();
        // Worked out anew in the middle of the transaction, and come to the same: what belongs into one
        // statement stays there.
        let same = (self.routes.iter().zip(&self.origins))
            .rposition(|(known, from)| known == route && from.is_same(origin));
        if let Some(same) = same {
            self.given[same] = route.clone();
            self.origins[same] = origin.clone();
            return same as u32;
        }
        self.routes.push(shared);
        self.given.push(route.clone());
        self.origins.push(origin.clone());
        self.upserts.push(false);
        self.routes.len() as u32 - 1
    }

    /// Changes in the set.
    pub fn len(&self) -> usize {
        self.count
    }

    /// About how many bytes there are to send.
    pub fn size(&self) -> u64 {
        self.log.len() + self.large
    }

    /// Whether there is nothing to deliver.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether some change leaves columns out, so that it cannot be written where the row is missing.
    pub fn has_unsent(&self) -> bool {
        self.has_unsent
    }

    /// Whether some change is a TRUNCATE; not if this says no.
    pub fn has_truncates(&self) -> bool {
        self.has_truncates
    }

    /// Whether rows on the server may not tell if the set was applied, or may not be brought to what it leads to
    /// by applying it again: a policy does not write over what it finds, or what was taken away may have taken
    /// other rows along.
    pub fn is_hard_to_repeat(&self) -> bool {
        self.has_truncates
            || (self.has_removals && self.count > 1)
            || (self.routes.iter()).any(|r| matches!(r.policy, Policy::Error | Policy::Skip))
    }

    /// The routes that its changes take.
    pub fn routes(&self) -> &[Rc<Route>] {
        &self.routes
    }

    /// Whether rows of some table cannot be told apart on the server.
    pub fn is_keyless(&self) -> bool {
        self.routes.iter().any(|route| route.is_keyless())
    }

    /// Those of them over which upserts are sent.
    pub fn upsert_routes(&self) -> impl Iterator<Item = &Rc<Route>> {
        self.routes
            .iter()
            .zip(&self.upserts)
            .filter(|(_, upserts)| **upserts)
            .map(|(r, _)| r)
    }

    /// The changes in order, with their routes.
    pub fn changes(&self, rows: Rows) -> Reader<'_> {
        self.log.read(&self.routes, rows)
    }

    /// Whether the storage of tables is still needed to read the changes.
    pub fn has_unread(&self) -> bool {
        self.has_unread
    }

    /// Reads what was left where it is stored, which may go away now.
    ///
    /// # Errors
    /// As for [`ChangeLog::append`]; PostgreSQL raises what cannot be read. The set is as it was then.
    pub fn read_unread(&mut self) -> Result<()> {
        let mut log = ChangeLog::default();
        let mut reader = self.log.read(&self.routes, Rows::Whole);
        let mut starts = Vec::with_capacity(self.savepoints.len());
        loop {
            while self
                .savepoints
                .get(starts.len())
                .is_some_and(|m| m.bytes == reader.position())
            {
                starts.push(log.len());
            }
            if !reader.copy_to(&mut log)? {
                break;
            }
        }
        drop(reader);
        std::mem::replace(&mut self.log, log).close();
        for (mark, start) in self.savepoints.iter_mut().zip(starts) {
            (mark.bytes, mark.large) = (start, 0);
        }
        (self.has_unread, self.has_unsent, self.large) = (false, false, 0);
        Ok(())
    }

    /// The transaction is about to commit: what its own DDL has made of tables since their changes were
    /// captured holds for these too. Columns and tables that are gone are left out, others have the names
    /// that they have now.
    ///
    /// # Errors
    /// 55000 if the extension is gone, or a table's key is another one; as for [`Origin::look_again`] and
    /// [`ChangeSet::read_unread`].
    pub fn follow_alterations(&mut self) -> Result<()> {
        if self.origins.iter().all(|origin| origin.is_current()) {
            return Ok(());
        }
        self.extension = Extension::look_up()?.ok_or_else(|| {
            let message = "extension \"pg_rowsync\" was dropped by a transaction whose changes it is to deliver";
            Error::local(SqlState::OBJECT_NOT_READY, message)
                .with_hint("Drop it in a transaction of its own.")
        })?;
        let look =
            |(route, origin): (&Rc<Route>, &Rc<Origin>)| origin.look_again(&self.extension, route);
        let altered: Vec<_> = self
            .routes
            .iter()
            .zip(&self.origins)
            .map(look)
            .collect::<Result<_>>()?;
        self.check_keys(&altered)?;
        let rewrites = |altered: &Option<Altered>| {
            matches!(altered, Some(Altered::Dropped | Altered::Narrowed(..)))
        };
        if altered.iter().any(rewrites) {
            self.rewrite(&altered)?;
        }
        for (route, altered) in self.routes.iter_mut().zip(altered) {
            if let Some(Altered::Renamed(now) | Altered::Narrowed(now, _)) = altered {
                *route = Rc::new(now);
            }
        }
        Ok(())
    }

    /// Refuses changes of rows that are told apart otherwise now. Those that were rolled back count for nothing.
    fn check_keys(&self, altered: &[Option<Altered>]) -> Result<()> {
        let is_rekeyed = |altered: &Option<Altered>| matches!(altered, Some(Altered::Rekeyed(_)));
        if !altered.iter().any(is_rekeyed) {
            return Ok(());
        }
        let mut refused = None;
        let mut reader = self.log.read(&self.routes, Rows::Keys);
        let mut look = |route: u32, change: &Change<&str>| {
            if let Some(Some(Altered::Rekeyed(why))) = altered.get(route as usize)
                && change.op != Op::Truncate
            {
                refused = Some(refusal(why));
            }
            Ok(())
        };
        while reader.next_numbered(&mut look)? {}
        refused.map_or(Ok(()), Err)
    }

    /// Writes the log anew without what is gone.
    fn rewrite(&mut self, altered: &[Option<Altered>]) -> Result<()> {
        self.read_unread()?;
        let mut log = ChangeLog::default();
        let mut count = 0;
        let mut reader = self.log.read(&self.routes, Rows::Whole);
        let mut append = |route: u32, change: &Change<&str>| {
            let change = match altered.get(route as usize) {
                Some(Some(Altered::Dropped)) => return Ok(()),
                Some(Some(Altered::Narrowed(_, kept))) => narrowed(change, kept),
                _ => change.clone(),
            };
            count += 1;
            log.append(route, &change.into())
        };
        while reader.next_numbered(&mut append)? {}
        drop(reader);
        std::mem::replace(&mut self.log, log).close();
        self.count = count;
        // Subtransactions cannot be rolled back any more.
        self.savepoints.clear();
        Ok(())
    }

    /// Gives back what it holds of the server's resources; the transaction is about to commit.
    pub fn close(self) {
        self.log.close();
    }

    /// A subtransaction was rolled back: forgets its changes and those of its children.
    pub fn abort(&mut self, subtransaction: u32) {
        if let Some(at) = self
            .savepoints
            .iter()
            .position(|m| m.subtransaction == subtransaction)
        {
            let mark = &self.savepoints[at];
            self.log.truncate(mark.bytes);
            self.large = mark.large;
            self.count = mark.count;
            self.mode = mark.mode;
            self.savepoints.truncate(at);
            // Which routes the remaining changes take is not known; none is the safe answer.
            self.upserts.fill(false);
        }
    }

    /// A subtransaction became part of its parent.
    pub fn commit(&mut self, subtransaction: u32, parent: u32) {
        let Some(at) = self
            .savepoints
            .iter()
            .rposition(|m| m.subtransaction == subtransaction)
        else {
            return;
        };
        let outer = match at {
            0 => TOP_SUBTRANSACTION,
            _ => self.savepoints[at - 1].subtransaction,
        };
        if outer == parent {
            self.savepoints.remove(at);
        } else {
            self.savepoints[at].subtransaction = parent;
        }
    }
}
