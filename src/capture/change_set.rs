//! The changes of one transaction for one user mapping, in order, in a compact log.

use super::descriptor::Descriptor;
use crate::change::{Change, Route};
use crate::delivery::endpoint::Account;
use crate::error::{Error, Result, SqlState};
use crate::options::Mode;
use crate::pg::context::TOP_SUBTRANSACTION;
use crate::pg::spi::Home;
use std::rc::Rc;

/// Where a subtransaction's changes begin.
struct Mark {
    subtransaction: u32,
    bytes: usize,
    count: usize,
    mode: Mode,
}

/// See the module's head.
pub struct ChangeSet {
    pub home: Home,
    pub account: Account,
    /// The strictest mode among the triggers that contributed.
    pub mode: Mode,
    /// Changes, each in postcard's encoding after the number of its route.
    log: Vec<u8>,
    count: usize,
    routes: Vec<Rc<Route>>,
    marks: Vec<Mark>,
}

impl ChangeSet {
    /// An empty change set for a descriptor's account.
    pub fn new(descriptor: &Descriptor) -> Self {
        Self {
            home: descriptor.home.clone(),
            account: descriptor.account.clone(),
            mode: Mode::Queue,
            log: Vec::new(),
            count: 0,
            routes: Vec::new(),
            marks: Vec::new(),
        }
    }

    /// Appends a change, made in the given subtransaction.
    ///
    /// # Errors
    /// 53200 when memory is out.
    pub fn push(
        &mut self,
        descriptor: &Descriptor,
        change: &Change<&str>,
        subtransaction: u32,
    ) -> Result<()> {
        let innermost = self.marks.last().map_or(TOP_SUBTRANSACTION, |m| m.subtransaction);
        if innermost != subtransaction {
            let (bytes, count) = (self.log.len(), self.count);
            self.marks.push(Mark { subtransaction, bytes, count, mode: self.mode });
        }
        self.mode = self.mode.max(descriptor.mode);
        let route = self.number_of(&descriptor.route);
        // An allocation that fails inside Rust would take the whole server down.
        self.log.try_reserve(change.encoded_size()).map_err(|_| {
            Error::local(SqlState::new("53200"), "out of memory").with_detail(format!(
                "The transaction's changes for server \"{}\" take {} bytes so far.",
                self.account.server_name,
                self.log.len()
            ))
        })?;
        let log = std::mem::take(&mut self.log);
        self.log = postcard::to_extend(&(route, change), log)
            .map_err(|e| Error::internal(format!("could not encode a change: {e}")))?;
        self.count += 1;
        Ok(())
    }

    fn number_of(&mut self, route: &Rc<Route>) -> u32 {
        let known = self.routes.iter().rposition(|r| Rc::ptr_eq(r, route));
        known.unwrap_or_else(|| {
            self.routes.push(route.clone());
            self.routes.len() - 1
        }) as u32
    }

    /// Changes in the set.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is nothing to deliver.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The changes in order, with their routes.
    pub fn iter(&self) -> impl Iterator<Item = Result<(Rc<Route>, Change<&str>)>> {
        let mut rest = self.log.as_slice();
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            match postcard::take_from_bytes::<(u32, Change<&str>)>(rest) {
                Ok(((route, change), after)) => {
                    rest = after;
                    Some(Ok((self.routes[route as usize].clone(), change)))
                }
                Err(e) => {
                    rest = &[];
                    Some(Err(Error::internal(format!("could not decode a change: {e}"))))
                }
            }
        })
    }

    /// A subtransaction was rolled back: forgets its changes and those of its children.
    pub fn abort(&mut self, subtransaction: u32) {
        if let Some(at) = self.marks.iter().position(|m| m.subtransaction == subtransaction) {
            let mark = &self.marks[at];
            self.log.truncate(mark.bytes);
            self.count = mark.count;
            self.mode = mark.mode;
            self.marks.truncate(at);
        }
    }

    /// A subtransaction became part of its parent.
    pub fn commit(&mut self, subtransaction: u32, parent: u32) {
        let Some(at) = self.marks.iter().rposition(|m| m.subtransaction == subtransaction) else {
            return;
        };
        let outer = match at {
            0 => TOP_SUBTRANSACTION,
            _ => self.marks[at - 1].subtransaction,
        };
        if outer == parent {
            self.marks.remove(at);
        } else {
            self.marks[at].subtransaction = parent;
        }
    }
}
