//! Transaction callbacks, registered once per backend.
//!
//! Not pgrx's hooks: those live for one transaction and outlast PREPARE. An ERROR in a COMMIT or
//! ABORT event takes the whole server down, so the handlers of those return nothing and must not
//! fail; pre-commit handlers may.

use super::{compat, report};
use crate::error::{Error, Result, SqlState};
use pgrx::pg_sys;
use pgrx::prelude::pg_guard;
use std::cell::OnceCell;
use std::ffi::c_void;

/// What the crate does at the ends of (sub)transactions.
#[derive(Clone, Copy)]
pub struct Handlers {
    /// Last chance to fail the transaction. No user-defined code may run.
    pub pre_commit: fn() -> Result<()>,
    /// Before PREPARE TRANSACTION; may fail it.
    pub pre_prepare: fn() -> Result<()>,
    /// The transaction is over (committed, aborted or prepared). Must not fail.
    pub end: fn(committed: bool),
    /// A subtransaction was rolled back. Must not fail.
    pub subtransaction_abort: fn(id: u32),
    /// A subtransaction became part of its parent. Must not fail.
    pub subtransaction_commit: fn(id: u32, parent: u32),
}

/// Whether a transaction is in progress, so that catalogs may be read: a look-up outside of one is no ERROR
/// but the end of the process, and with it of every session of the cluster.
pub fn in_progress() -> bool {
    // Not pg_sys's guarded one: asked often, and it raises nothing.
    unsafe extern "C-unwind" {
        fn IsTransactionState() -> bool;
    }
    // SAFETY: plain read of transaction state.
    unsafe { IsTransactionState() }
}

/// Refuses what reads catalogs or tables outside of a transaction.
///
/// # Errors
/// 25P01.
pub fn require() -> Result<()> {
    match in_progress() {
        true => Ok(()),
        false => Err(Error::local(
            SqlState::NO_TRANSACTION,
            "tables cannot be read outside of a transaction",
        )),
    }
}

/// The same for functions that give no [`Result`]: raises 25P01.
pub(super) fn demand() {
    report::or_raise(require());
}

/// A transaction of this process, for what must not be used any more when that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transaction(u32);

impl Transaction {
    /// The one that is in progress.
    pub fn current() -> Self {
        Self(compat::local_transaction())
    }

    /// Whether it is not the one that is in progress.
    pub fn is_over(self) -> bool {
        self != Self::current()
    }
}

thread_local! {
    static HANDLERS: OnceCell<Handlers> = const { OnceCell::new() };
}

/// Registers the handlers; later calls do nothing.
pub fn register(handlers: Handlers) {
    HANDLERS.with(|cell| {
        if cell.set(handlers).is_ok() {
            // SAFETY: the callbacks are functions of this library, which is never unloaded.
            unsafe {
                pg_sys::RegisterXactCallback(Some(transaction), std::ptr::null_mut());
                pg_sys::RegisterSubXactCallback(Some(subtransaction), std::ptr::null_mut());
            }
        }
    });
}

fn handlers() -> Option<Handlers> {
    HANDLERS.with(|cell| cell.get().copied())
}

#[pg_guard]
unsafe extern "C-unwind" fn transaction(event: pg_sys::XactEvent::Type, _arg: *mut c_void) {
    use pg_sys::XactEvent::*;
    let Some(handlers) = handlers() else { return };
    match event {
        XACT_EVENT_PRE_COMMIT => report::or_raise((handlers.pre_commit)()),
        XACT_EVENT_PRE_PREPARE => report::or_raise((handlers.pre_prepare)()),
        XACT_EVENT_COMMIT | XACT_EVENT_PREPARE => (handlers.end)(true),
        XACT_EVENT_ABORT => (handlers.end)(false),
        _ => {}
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn subtransaction(
    event: pg_sys::SubXactEvent::Type,
    id: pg_sys::SubTransactionId,
    parent: pg_sys::SubTransactionId,
    _arg: *mut c_void,
) {
    use pg_sys::SubXactEvent::*;
    let Some(handlers) = handlers() else { return };
    match event {
        SUBXACT_EVENT_ABORT_SUB => (handlers.subtransaction_abort)(id),
        SUBXACT_EVENT_COMMIT_SUB => (handlers.subtransaction_commit)(id, parent),
        _ => {}
    }
}
