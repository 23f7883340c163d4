//! Who and where the current session is, and how long a temporary identity lasts.

use super::{Oid, setting, xact};
use crate::error::{Error, Result, SqlState};
use pgrx::{GucSetting, pg_sys};
use std::cell::Cell;
use std::ffi::{CStr, CString};

/// Whether the session's own `application_name` is this. A copy would cost too much where every row asks.
pub fn is_application_name(name: &CStr) -> bool {
    // SAFETY: a GUC variable: null before it is set, else a C string that lives until it changes, which cannot
    // happen while it is compared.
    unsafe { name == setting::text(pg_sys::application_name) }
}

/// Whether the session's own `application_name` is the value of a setting.
pub fn is_application_name_of(setting: &GucSetting<Option<CString>>) -> bool {
    // SAFETY: as above.
    unsafe { setting::is(setting, setting::text(pg_sys::application_name)) }
}

/// Whether the current user is a superuser.
pub fn is_superuser() -> bool {
    xact::demand();
    // SAFETY: a catalog look-up inside a transaction.
    unsafe { pg_sys::superuser() }
}

/// The current user.
pub fn user() -> Oid {
    // SAFETY: a plain read; every process that has a database has a user.
    unsafe { pg_sys::GetUserId() }
}

/// Who the session was authenticated as. SET ROLE and functions of other owners do not change it, and
/// only a superuser may, with SET SESSION AUTHORIZATION.
pub fn session_user() -> Oid {
    // SAFETY: as above.
    unsafe { pg_sys::GetSessionUserId() }
}

/// Whether `user` is `role` or one of its members, if by way of others. A superuser is a member of what
/// it was made one of, as for `+role` in pg_hba.conf. PostgreSQL keeps the answer until memberships
/// change.
pub fn is_member(user: Oid, role: Oid) -> bool {
    xact::demand();
    // SAFETY: catalog look-ups inside a transaction.
    unsafe { pg_sys::is_member_of_role_nosuper(user, role) }
}

/// Whether the library is being loaded by `shared_preload_libraries`.
pub fn is_preloading() -> bool {
    // SAFETY: plain read of a variable of the server.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// The time, in PostgreSQL's microseconds.
pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// Microseconds from 1970 to 2000, where PostgreSQL's time begins.
const TO_2000: i64 = 946_684_800 * 1_000_000;

/// The time, in microseconds since 1970.
pub fn clock() -> i64 {
    now() + TO_2000
}

/// When the cluster was started, in microseconds since 1970.
pub fn cluster_start() -> i64 {
    // SAFETY: a variable that the postmaster sets before there is another process.
    unsafe { pg_sys::PgStartTime + TO_2000 }
}

/// A number that nobody can guess.
///
/// # Errors
/// When the machine has no randomness to give.
pub fn random() -> Result<i64> {
    let mut bytes = [0u8; 8];
    // SAFETY: writes as many bytes as it is told.
    let done = unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) };
    if done {
        Ok(i64::from_ne_bytes(bytes))
    } else {
        Err(Error::internal("could not generate random values"))
    }
}

/// Number of the current subtransaction; the top transaction has [`TOP_SUBTRANSACTION`].
pub fn subtransaction() -> u32 {
    // SAFETY: plain read of transaction state.
    unsafe { pg_sys::GetCurrentSubTransactionId() }
}

/// The top transaction's number (`TopSubTransactionId`).
pub const TOP_SUBTRANSACTION: u32 = 1;

/// Whether the transaction is SERIALIZABLE.
pub fn is_serializable() -> bool {
    // SAFETY: plain read of a variable of this backend.
    unsafe { pg_sys::XactIsoLevel == pg_sys::XACT_SERIALIZABLE as i32 }
}

/// Whether the transaction has touched temporary tables of the session.
pub fn uses_temporary_tables() -> bool {
    // SAFETY: plain read of a variable of this backend.
    unsafe { pg_sys::MyXactFlags as u32 & pg_sys::XACT_FLAGS_ACCESSEDTEMPNAMESPACE != 0 }
}

/// Empties and drops temporary tables as their ON COMMIT says, which the server does a moment later in any
/// case. It may fail: over a foreign key between tables that are emptied and others that are not, for one. A
/// second time finds nothing left to do.
pub fn run_on_commit_actions() {
    xact::demand();
    // SAFETY: in a transaction, in which the server lets it be called again and again: subtransactions see to
    // the rest of their list. In a pre-commit callback the deferred triggers have fired and portals are
    // closed, as where the server calls it. What it raises unwinds.
    unsafe { pg_sys::PreCommit_on_commit_actions() }
}

/// Lets a SERIALIZABLE transaction fail now if it is to fail, and not after something has been
/// committed elsewhere on its behalf: the check that PostgreSQL makes at its own pre-commit a moment
/// later, after which other transactions give way to this one. PostgreSQL raises 40001.
pub fn check_serializable() {
    // pgrx has no binding for it; declared in storage/predicate.h.
    unsafe extern "C-unwind" {
        fn PreCommit_CheckForSerializationFailure();
    }
    xact::demand();
    // SAFETY: in a transaction; in a pre-commit callback PostgreSQL itself is about to call it. It may raise,
    // and the guard turns that into unwinding.
    unsafe {
        if is_serializable() {
            pg_sys::ffi::pg_guard_ffi_boundary(|| PreCommit_CheckForSerializationFailure());
        }
    }
}

/// Whether the transaction may not write.
pub fn is_read_only() -> bool {
    // SAFETY: a variable of this backend.
    unsafe { pg_sys::XactReadOnly }
}

/// Whether each statement sees what is committed when it begins.
pub fn is_read_committed() -> bool {
    // SAFETY: plain read of a variable of this backend.
    unsafe { pg_sys::XactIsoLevel < pg_sys::XACT_REPEATABLE_READ as i32 }
}

/// The commit of the current transaction waits for the disk, whatever `synchronous_commit` says.
pub fn force_flush() {
    // SAFETY: sets a variable of this backend, which the end of the transaction clears.
    unsafe { pg_sys::ForceSyncCommit() }
}

/// The current transaction, with its epoch; it gets a number if it has none.
pub fn assigned_transaction() -> u64 {
    xact::demand();
    // SAFETY: inside a transaction.
    unsafe { pg_sys::GetTopFullTransactionId().value }
}

/// The current transaction, with its epoch; 0 before it has a number.
pub fn transaction() -> u64 {
    // SAFETY: a plain read of a variable of this backend.
    unsafe { pg_sys::GetTopFullTransactionIdIfAny().value }
}

/// Checks that the current user may write a table, if only in one of the ways.
///
/// # Errors
/// 42501; 25P01 outside of a transaction.
pub fn check_may_write(relation: Oid) -> Result<()> {
    check_may(
        relation,
        pg_sys::ACL_INSERT | pg_sys::ACL_UPDATE | pg_sys::ACL_DELETE,
    )
}

/// Checks that the current user may delete rows of a table.
///
/// # Errors
/// As for [`check_may_write`].
pub fn check_may_delete(relation: Oid) -> Result<()> {
    check_may(relation, pg_sys::ACL_DELETE)
}

fn check_may(relation: Oid, rights: u32) -> Result<()> {
    xact::require()?;
    // SAFETY: catalog look-ups, which raise for a relation that is not there.
    let allowed = unsafe {
        pg_sys::pg_class_aclcheck(relation, pg_sys::GetUserId(), rights as pg_sys::AclMode)
            == pg_sys::AclResult::ACLCHECK_OK
    };
    if allowed {
        Ok(())
    } else {
        Err(Error::local(
            SqlState::INSUFFICIENT_PRIVILEGE,
            format!("permission denied for relation {}", relation.to_u32()),
        ))
    }
}

thread_local! {
    /// How many [`AsUser`] there are.
    static IDENTITIES: Cell<u32> = const { Cell::new(0) };
}

/// Whether the extension itself is at work on its tables, and not somebody's statement.
pub fn is_own_work() -> bool {
    IDENTITIES.get() > 0
}

/// Whether this process applies or copies what a subscription of logical replication brings.
pub fn is_logical_worker() -> bool {
    // SAFETY: reads a variable of this process.
    unsafe { pg_sys::IsLogicalWorker() }
}

/// Runs as another role while it lives, with the restrictions of a security-definer operation.
pub struct AsUser {
    user: Oid,
    context: i32,
}

impl AsUser {
    /// Switches to `user`.
    pub fn switch(user: Oid) -> Self {
        let mut saved = Self {
            user: Oid::INVALID,
            context: 0,
        };
        // SAFETY: reads and sets backend-local state.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&mut saved.user, &mut saved.context);
            let flags =
                pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION;
            pg_sys::SetUserIdAndSecContext(user, saved.context | flags as i32);
        }
        IDENTITIES.set(IDENTITIES.get() + 1);
        saved
    }
}

impl Drop for AsUser {
    fn drop(&mut self) {
        IDENTITIES.set(IDENTITIES.get().saturating_sub(1));
        // SAFETY: puts back what switch() found.
        unsafe { pg_sys::SetUserIdAndSecContext(self.user, self.context) }
    }
}

/// Lets a transaction that was made READ ONLY after its changes queue them all the same, while it
/// lives.
pub struct Writable(bool);

impl Writable {
    /// Lifts the restriction.
    pub fn new() -> Self {
        // SAFETY: a variable of this backend, put back by Drop.
        unsafe {
            let saved = Self(pg_sys::XactReadOnly);
            pg_sys::XactReadOnly = false;
            saved
        }
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        // SAFETY: puts back what new() found.
        unsafe { pg_sys::XactReadOnly = self.0 }
    }
}

/// Settings changed for a moment, put back on drop (also on unwinding).
pub struct Settings(i32);

impl Settings {
    /// Sets each (name, value) as a function's SET clause would.
    pub fn set(values: &[(&CStr, &CStr)]) -> Self {
        // SAFETY: the nest level is ended by Drop; names and values are C strings.
        unsafe {
            let saved = Self(pg_sys::NewGUCNestLevel());
            for (name, value) in values {
                pg_sys::set_config_option(
                    name.as_ptr(),
                    value.as_ptr(),
                    pg_sys::GucContext::PGC_USERSET,
                    pg_sys::GucSource::PGC_S_SESSION,
                    pg_sys::GucAction::GUC_ACTION_SAVE,
                    true,
                    0,
                    false,
                );
            }
            saved
        }
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        // SAFETY: ends the nest level that set() began.
        unsafe { pg_sys::AtEOXact_GUC(true, self.0) }
    }
}

/// Makes settings of this prefix that are not defined an error.
pub fn reserve_settings(prefix: &CStr) {
    // SAFETY: a C string; called once from _PG_init.
    unsafe { pg_sys::MarkGUCPrefixReserved(prefix.as_ptr()) }
}
