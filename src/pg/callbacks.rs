//! Transaction callbacks, registered once per backend.
//!
//! Not pgrx's hooks: those live for one transaction and outlast PREPARE. An ERROR in a COMMIT or
//! ABORT event takes the whole server down, so the handlers of those return nothing and must not
//! fail; pre-commit handlers may. What is raised in there all the same, the server's own errors and
//! panics of Rust, ends here, and what ends sessions, no memory, has a reserve.

use super::{interrupt, memory, report, timer};
use crate::error::Result;
use pgrx::pg_sys;
use pgrx::prelude::pg_guard;
use std::cell::{Cell, OnceCell};
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
    static EXIT: Cell<Option<fn()>> = const { Cell::new(None) };
}

/// Registers the handlers; later calls do nothing.
pub fn register(handlers: Handlers) {
    HANDLERS.with(|cell| {
        if cell.set(handlers).is_ok() {
            timer::register();
            // Called last, since it is registered first.
            #[cfg(feature = "faults")]
            super::fault::lift_at_end();
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
        XACT_EVENT_COMMIT | XACT_EVENT_PREPARE => over(|| (handlers.end)(true)),
        XACT_EVENT_ABORT => over(|| (handlers.end)(false)),
        _ => {}
    }
}

/// Calls the handler of an end.
fn over(end: impl FnOnce()) {
    memory::with_reserve(|| contained(end));
}

/// Does something at the end of a transaction. What is raised in there ends there, and the log tells of it.
pub fn contained(body: impl FnOnce()) {
    let counters = interrupt::Counters::read();
    if let Err(error) = report::caught(|| {
        body();
        Ok(())
    }) {
        counters.put_back();
        // That may fail as well.
        let _ = report::caught(|| {
            report::log("could not tidy up after a transaction", Some(&error));
            Ok(())
        });
        counters.put_back();
    }
}

/// Has something done when the process ends, once the server has let go of what it shares with others. Later calls
/// do nothing. Ends the session where other libraries have left no room for it: not to be called at the end of a
/// transaction.
pub fn at_exit(handler: fn()) {
    if EXIT.replace(Some(handler)).is_none() {
        // SAFETY: the callback is a function of this library, which is never unloaded.
        unsafe { pg_sys::on_proc_exit(Some(exit), pg_sys::Datum::from(0usize)) }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn exit(_code: i32, _arg: pg_sys::Datum) {
    if let Some(handler) = EXIT.get() {
        contained(handler);
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
        SUBXACT_EVENT_ABORT_SUB => over(|| (handlers.subtransaction_abort)(id)),
        SUBXACT_EVENT_COMMIT_SUB => (handlers.subtransaction_commit)(id, parent),
        _ => {}
    }
}
