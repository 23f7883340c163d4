//! What the current local transaction holds: the change sets it will deliver and the remote
//! transactions that drains keep open until it ends.
//!
//! State is taken out of its cell before anything that can wait, raise or end the process, so the
//! callbacks of an abort never find it borrowed.

use crate::capture::change_set::ChangeSet;
use crate::capture::descriptor::Descriptor;
use crate::capture::row::Captured;
use crate::change::Route;
use crate::conflict::Tally;
use crate::connect::session::{self, Session};
use crate::error::Result;
use crate::fault::fault_point;
use crate::local::{ProcessLocal, process_local};
use crate::pg::callbacks::{self, Handlers, contained};
use crate::pg::invalidation::{self, Nudged};
use crate::pg::spi::Extension;
use crate::pg::{Oid, context, interrupt, memory, utility};
use crate::{stats, worker};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::OnceLock;

/// How much a drain has applied.
#[derive(Debug)]
pub struct Drained {
    pub extension: Extension,
    pub changes: u64,
    pub conflicts: Tally,
}

/// A remote transaction with drained records applied, to be committed with the local one.
pub struct OpenDrain {
    pub server_name: String,
    /// The owner of the records.
    pub owner: Oid,
    /// `None` after it was lost, or a part of it was rolled back with a savepoint: the rest went with it.
    pub session: Option<Session>,
    pub drained: Drained,
    /// The subtransactions that drained, outermost first.
    subtransactions: Vec<u32>,
}

/// What a transaction has captured and drained so far.
#[derive(Default)]
pub struct TransactionState {
    pub sets: Vec<ChangeSet>,
    pub drains: Vec<OpenDrain>,
    /// Tried to drain: holds locks that a prepared transaction must not keep.
    pub has_drained: bool,
    /// Row versions of this transaction that a statement inside a trigger has replaced: trigger and
    /// place of the row. Those of rolled-back subtransactions stay; they are checked before use.
    superseded: HashSet<(u32, u64)>,
}

/// What is done at the end of a transaction by files that stand above this one.
pub struct Ends {
    /// Delivers and queues; may fail the transaction.
    pub pre_commit: fn() -> Result<()>,
    /// Before PREPARE TRANSACTION; may fail it.
    pub pre_prepare: fn() -> Result<()>,
    /// The transaction is over. Must not fail.
    pub end: fn(committed: bool),
}

static ENDS: OnceLock<Ends> = OnceLock::new();

/// Says what is done at the ends of transactions. Called once, when the library is loaded.
pub fn init(ends: Ends) {
    // A second call says the same.
    let _ = ENDS.set(ends);
}

thread_local! {
    /// Sessions are to be woken once the transaction has committed.
    static NUDGE: Cell<Option<Nudged>> = const { Cell::new(None) };
    /// The last record that a drain of this session has applied, while no server was sent a COMMIT of one.
    static UNCOMMITTED: Cell<Option<i64>> = const { Cell::new(None) };
}

process_local! {
    static STATE: RefCell<TransactionState> = RefCell::default();
}

/// Makes sure that the ends of transactions are heard of. Called before anything is put here.
fn listen() {
    let Some(ends) = ENDS.get() else { return };
    callbacks::register(Handlers {
        pre_commit: ends.pre_commit,
        pre_prepare: ends.pre_prepare,
        end,
        subtransaction_abort,
        subtransaction_commit,
    });
}

/// Adds a change, which takes this route, to the change set of its account.
///
/// # Errors
/// As for [`ChangeSet::push`].
pub fn add_change(
    descriptor: &Descriptor,
    route: &Rc<Route>,
    captured: &Captured<'_>,
) -> Result<()> {
    fault_point!(Capture);
    listen();
    memory::take_reserves()?;
    if !captured.unread.is_empty() {
        utility::before_storage_changes(read_unread);
    }
    let subtransaction = context::subtransaction();
    STATE.with_borrow_mut(|work| {
        let account = &descriptor.account;
        // Owners may share PUBLIC's mapping, but not what it lets each of them do.
        let same = |set: &ChangeSet| set.account.key() == account.key();
        let at = work.sets.iter().position(same);
        let at = at.unwrap_or_else(|| {
            work.sets.push(ChangeSet::new(descriptor));
            work.sets.len() - 1
        });
        work.sets[at].push(descriptor, route, captured, subtransaction)
    })
}

/// Reads what changes left where it is stored, before a statement that may take that away.
fn read_unread() -> Result<()> {
    let needed = STATE.with_borrow(|work| work.sets.iter().any(ChangeSet::has_unread));
    if !needed {
        return Ok(());
    }
    let mut out = SetsOut::take();
    out.0
        .iter_mut()
        .filter(|set| set.has_unread())
        .try_for_each(ChangeSet::read_unread)
}

/// The change sets while they are not in [`TransactionState`]; put back on drop, also on unwinding.
struct SetsOut(Vec<ChangeSet>);

impl SetsOut {
    fn take() -> Self {
        Self(STATE.with_borrow_mut(|work| std::mem::take(&mut work.sets)))
    }
}

impl Drop for SetsOut {
    fn drop(&mut self) {
        let sets = std::mem::take(&mut self.0);
        STATE.with_borrow_mut(|work| work.sets = sets);
    }
}

/// Remembers that a row version has been replaced inside a trigger, and that captured.
pub fn note_superseded(trigger: Oid, stored: u64) {
    listen();
    STATE.with_borrow_mut(|work| work.superseded.insert((trigger.to_u32(), stored)));
}

/// Whether [`note_superseded`] was called with a row version.
pub fn was_superseded(trigger: Oid, stored: u64) -> bool {
    STATE.with_borrow(|work| work.superseded.contains(&(trigger.to_u32(), stored)))
}

/// Remembers that the transaction has begun to drain.
pub fn note_drain() {
    listen();
    STATE.with_borrow_mut(|work| work.has_drained = true);
}

/// Whether the transaction has begun to drain.
pub fn has_drained() -> bool {
    STATE.with_borrow(|work| work.has_drained)
}

/// Remembers that a drain is about to apply records up to this one.
pub fn note_replay(last: i64) {
    UNCOMMITTED.set(UNCOMMITTED.get().max(Some(last)));
}

/// Whether this session has noted the record, and knows that it was not committed.
pub fn has_not_committed(last: i64) -> bool {
    UNCOMMITTED.get() == Some(last)
}

/// Servers are sent the COMMIT of what was drained: from now on it may have been committed.
pub fn commits_drains() {
    UNCOMMITTED.set(None);
}

/// Takes out everything; the transaction is about to end.
pub fn take_all() -> TransactionState {
    STATE.with_borrow_mut(std::mem::take)
}

/// Takes the session of an open drain of an owner's records, to go on with it; `Some(None)` when it is lost.
/// The drain itself stays here: if its session never comes back, the transaction cannot be committed.
pub fn take_drain(server_name: &str, owner: Oid) -> Option<Option<Session>> {
    STATE.with_borrow_mut(|work| {
        let is = |d: &&mut OpenDrain| d.server_name == server_name && d.owner == owner;
        let drain = work.drains.iter_mut().find(is)?;
        Some(drain.session.take())
    })
}

/// Whether a drain of this server's that is not this owner's is open.
pub fn has_other_drain(server_name: &str, owner: Oid) -> bool {
    let is = |drain: &OpenDrain| drain.server_name == server_name && drain.owner != owner;
    STATE.with_borrow(|work| work.drains.iter().any(is))
}

/// Keeps a drain's remote transaction, which has applied so much more, until the local one ends.
pub fn add_drain(server_name: &str, session: Session, more: Drained) {
    listen();
    let current = context::subtransaction();
    let owner = session.endpoint.account.owner;
    STATE.with_borrow_mut(|work| {
        let is = |d: &OpenDrain| d.server_name == server_name && d.owner == owner;
        let drain = match work.drains.iter().position(is) {
            Some(at) => {
                let drain = &mut work.drains[at];
                drain.drained.changes += more.changes;
                drain.drained.conflicts.merge(more.conflicts);
                drain
            }
            None => {
                let server_name = server_name.to_owned();
                let subtransactions = Vec::new();
                let session = None;
                let drained = more;
                let drain = OpenDrain {
                    server_name,
                    owner,
                    session,
                    drained,
                    subtransactions,
                };
                work.drains.push_mut(drain)
            }
        };
        drain.session = Some(session);
        if drain.subtransactions.last() != Some(&current) {
            drain.subtransactions.push(current);
        }
    });
}

/// Once the transaction has committed, the worker looks at the queue. Called before.
pub fn wake_worker() {
    listen();
    worker::wake_at_commit();
}

/// Once the transaction has committed, idle sessions learn what it has announced.
pub fn nudge_sessions(whose: Nudged) {
    listen();
    if whose == Nudged::Cluster || NUDGE.get().is_none() {
        NUDGE.set(Some(whose));
    }
}

fn end(committed: bool) {
    // One that fails keeps none of the others from being done.
    contained(|| {
        fault_point!(AfterCommit if committed);
    });
    if let Some(ends) = ENDS.get() {
        contained(|| (ends.end)(committed));
    }
    contained(|| stats::end(committed));
    contained(|| worker::transaction_ended(committed));
    // Nothing is left after a commit; after an abort the open drains' connections are closed,
    // which rolls them back.
    contained(|| {
        drop(STATE.with(|work| {
            work.try_borrow_mut()
                .ok()
                .map(|mut w| std::mem::take(&mut *w))
        }))
    });
    contained(|| {
        session::close_changed(&invalidation::take_changed());
        session::close_idle();
    });
    if let Some(whose) = NUDGE.take().filter(|_| committed) {
        contained(|| invalidation::nudge_sessions(whose));
    }
    interrupt::transaction_ended(committed);
}

fn subtransaction_abort(id: u32) {
    let closed = STATE.with(|work| {
        let mut work = work.try_borrow_mut().ok()?;
        work.sets.iter_mut().for_each(|set| set.abort(id));
        let mut closed = Vec::new();
        for drain in &mut work.drains {
            if let Some(at) = drain.subtransactions.iter().position(|s| *s == id) {
                drain.subtransactions.truncate(at);
                closed.extend(drain.session.take());
            }
        }
        // A drain of which nothing is left has done nothing.
        work.drains
            .retain(|drain| !drain.subtransactions.is_empty());
        Some(closed)
    });
    drop(closed);
}

fn subtransaction_commit(id: u32, parent: u32) {
    STATE.with(|work| {
        let Ok(mut work) = work.try_borrow_mut() else {
            return;
        };
        work.sets.iter_mut().for_each(|set| set.commit(id, parent));
        for drain in &mut work.drains {
            if drain.subtransactions.last() == Some(&id) {
                drain.subtransactions.pop();
                if drain.subtransactions.last() != Some(&parent) {
                    drain.subtransactions.push(parent);
                }
            }
        }
    });
}
