//! Is told of statements that may do away with what the transaction's changes refer to.

use super::report;
use crate::error::Result;
use pgrx::pg_sys;
use pgrx::prelude::pg_guard;
use std::cell::OnceCell;
use std::ffi::c_char;

/// What is called before such a statement; an error fails the statement.
type Handler = fn() -> Result<()>;

thread_local! {
    /// What is called, and the hook that was there before ours.
    static REGISTERED: OnceCell<(Handler, pg_sys::ProcessUtility_hook_type)> =
        const { OnceCell::new() };
}

/// From now on, calls the handler before every utility statement of this backend that may take the storage
/// of a table away: TRUNCATE, DROP, ALTER TABLE, CLUSTER, and whatever is not known to leave it alone. Later
/// calls do nothing.
pub fn before_storage_changes(handler: Handler) {
    REGISTERED.with(|cell| {
        // SAFETY: a variable of this backend; the hook is a function of this library, which is never
        // unloaded.
        unsafe {
            if cell.set((handler, pg_sys::ProcessUtility_hook)).is_ok() {
                pg_sys::ProcessUtility_hook = Some(process);
            }
        }
    });
}

/// Whether a statement leaves the storage of all tables alone, in a transaction block. What it runs in turn,
/// as DO and CALL may, comes by on its own.
fn is_harmless(statement: pg_sys::NodeTag) -> bool {
    use pg_sys::NodeTag::*;
    matches!(
        statement,
        T_TransactionStmt
            | T_VariableSetStmt
            | T_VariableShowStmt
            | T_ConstraintsSetStmt
            | T_DeclareCursorStmt
            | T_FetchStmt
            | T_ClosePortalStmt
            | T_PrepareStmt
            | T_ExecuteStmt
            | T_DeallocateStmt
            | T_DoStmt
            | T_CallStmt
            | T_CopyStmt
            | T_ExplainStmt
            | T_LockStmt
            | T_NotifyStmt
            | T_ListenStmt
            | T_UnlistenStmt
            | T_VacuumStmt
            | T_CreateStmt
            | T_CreateTableAsStmt
            | T_IndexStmt
            | T_GrantStmt
            | T_CommentStmt
    )
}

/// Runs the handler, for [`process`].
#[pg_guard]
unsafe extern "C-unwind" fn handle() {
    if let Some((handler, _)) = REGISTERED.with(|cell| cell.get().copied()) {
        report::or_raise(handler());
    }
}

/// The hook. What the statement raises passes over it: PostgreSQL's own functions are called without pgrx's
/// guard, which would catch an ERROR and raise it again with few of its fields. So this function has nothing
/// on its frame that would have to be dropped.
#[allow(clippy::too_many_arguments)] // as the server calls it
unsafe extern "C-unwind" fn process(
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    unsafe extern "C-unwind" {
        fn standard_ProcessUtility(
            statement: *mut pg_sys::PlannedStmt,
            text: *const c_char,
            read_only: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            params: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            receiver: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
    }
    let before = REGISTERED.with(|cell| cell.get().and_then(|(_, before)| *before));
    let next = before.unwrap_or(standard_ProcessUtility);
    // SAFETY: arguments of the server's own, handed on as they came; a utility statement has a node.
    unsafe {
        if !is_harmless((*(*statement).utilityStmt).type_) {
            handle();
        }
        next(
            statement,
            text,
            read_only,
            context,
            params,
            environment,
            receiver,
            completion,
        );
    }
}
