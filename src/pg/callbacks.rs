//! Transaction callbacks, registered once per backend.
//!
//! Not pgrx's hooks: those live for one transaction and outlast PREPARE. An ERROR in a COMMIT or
//! ABORT event takes the whole server down, so the handlers of those return nothing and must not
//! fail; pre-commit handlers may.

use super::report;
use crate::error::Result;
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
