//! Everything that differs between PostgreSQL majors.

use pgrx::pg_sys;

/// `CreateWaitEventSet`: 17 takes a resource owner where older majors take a memory context.
///
/// # Safety
/// Must be called in a backend, with `CurrentMemoryContext` (or the resource owner) outliving the
/// set.
pub unsafe fn create_wait_event_set(events: i32) -> *mut pg_sys::WaitEventSet {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    // SAFETY: forwarded from the caller.
    unsafe {
        pg_sys::CreateWaitEventSet(pg_sys::CurrentMemoryContext, events)
    }
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    // SAFETY: forwarded from the caller.
    unsafe {
        pg_sys::CreateWaitEventSet(pg_sys::CurrentResourceOwner, events)
    }
}

/// Creates a wait event set that lives until it is freed.
///
/// # Safety
/// Must be called in a backend.
pub unsafe fn create_lasting_wait_event_set(events: i32) -> *mut pg_sys::WaitEventSet {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    // SAFETY: forwarded from the caller; that context lives as long as the backend.
    unsafe {
        pg_sys::CreateWaitEventSet(pg_sys::TopMemoryContext, events)
    }
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    // SAFETY: forwarded from the caller; without an owner nobody frees it.
    unsafe {
        pg_sys::CreateWaitEventSet(std::ptr::null_mut(), events)
    }
}

/// `AddinShmemInitLock`, a macro in C: its number has been the same in all these majors.
///
/// # Safety
/// Shared memory must have been set up as far as the server's own locks.
pub unsafe fn addin_shmem_init_lock() -> *mut pg_sys::LWLock {
    const NUMBER: usize = 21;
    // SAFETY: one of the server's individual locks, with which the array begins.
    unsafe { &raw mut (*pg_sys::MainLWLockArray.add(NUMBER)).lock }
}

/// What one of the sessions shows of itself, by its number in this session's copy, from 1 on.
///
/// # Safety
/// Must be called in a backend.
pub unsafe fn session_status(number: i32) -> *const pg_sys::LocalPgBackendStatus {
    #[cfg(feature = "pg15")]
    // SAFETY: forwarded from the caller.
    unsafe {
        pg_sys::pgstat_fetch_stat_local_beentry(number)
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: forwarded from the caller.
    unsafe {
        pg_sys::pgstat_get_local_beentry_by_index(number)
    }
}

/// A transaction's virtual id, of which 17 has renamed the first part.
pub fn transaction_of(id: &pg_sys::VirtualTransactionId) -> (i32, u32) {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    let process = id.backendId;
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    let process = id.procNumber;
    (process, id.localTransactionId)
}

/// The virtual id of the transaction that holds a lock.
pub fn holder_of(lock: &pg_sys::LockInstanceData) -> (i32, u32) {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    let holder = (lock.backend, lock.lxid);
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    let holder = transaction_of(&lock.vxid);
    holder
}

/// A column of a row's description, by its position: 18 has put others before these.
///
/// # Safety
/// The description must be valid, and have so many columns.
pub unsafe fn attribute(
    shape: pg_sys::TupleDesc,
    position: usize,
) -> *const pg_sys::FormData_pg_attribute {
    #[cfg(not(feature = "pg18"))]
    // SAFETY: by the caller.
    unsafe {
        (*shape).attrs.as_ptr().add(position)
    }
    #[cfg(feature = "pg18")]
    // SAFETY: by the caller; the full descriptions follow the compact ones.
    unsafe {
        let full = (*shape).compact_attrs.as_ptr().add((*shape).natts as usize);
        full.cast::<pg_sys::FormData_pg_attribute>().add(position)
    }
}

/// Begins a scan of an index by so many keys.
///
/// # Safety
/// Both must be open, the index one of the table's; the snapshot must outlive the scan.
pub unsafe fn begin_index_scan(
    table: pg_sys::Relation,
    index: pg_sys::Relation,
    snapshot: pg_sys::Snapshot,
    keys: i32,
) -> pg_sys::IndexScanDesc {
    #[cfg(not(feature = "pg18"))]
    // SAFETY: by the caller.
    unsafe {
        pg_sys::index_beginscan(table, index, snapshot, keys, 0)
    }
    #[cfg(feature = "pg18")]
    // SAFETY: by the caller; nobody counts it.
    unsafe {
        let no_instrument = std::ptr::null_mut();
        pg_sys::index_beginscan(table, index, snapshot, no_instrument, keys, 0)
    }
}

/// Number of the file that stores a table's rows.
///
/// # Safety
/// The relation must be open.
pub unsafe fn file_number(relation: pg_sys::Relation) -> u32 {
    #[cfg(feature = "pg15")]
    // SAFETY: by the caller.
    unsafe {
        (*relation).rd_node.relNode.to_u32()
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: by the caller.
    unsafe {
        (*relation).rd_locator.relNumber.to_u32()
    }
}

/// Whether `transaction_timeout`, which 17 added, has run out and counts.
pub fn transaction_timed_out() -> bool {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    {
        false
    }
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    // SAFETY: plain reads of variables of this backend.
    unsafe {
        pg_sys::TransactionTimeoutPending != 0 && pg_sys::TransactionTimeout > 0
    }
}

/// The transaction that `transaction_timeout` was about is over.
///
/// # Safety
/// Must be called in a backend.
pub unsafe fn forget_transaction_timeout() {
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    // SAFETY: plain write of a flag.
    unsafe {
        pg_sys::TransactionTimeoutPending = 0;
    }
}

/// The number that this process has given to its current transaction, other than all it gave before; 0
/// outside of transactions.
pub fn local_transaction() -> u32 {
    // SAFETY: null, or this process's entry in shared memory, of which it alone writes the number.
    unsafe {
        let own = pg_sys::MyProc;
        if own.is_null() {
            return 0;
        }
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        let number = (&raw const (*own).lxid).read();
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        let number = (&raw const (*own).vxid.lxid).read();
        number
    }
}

/// `FileRead`: 15 takes `char *` and `int` where newer majors take `void *` and `size_t`.
///
/// # Safety
/// `file` must be open and `buffer` valid for writes; its length must fit an `int`.
pub unsafe fn file_read(file: pg_sys::File, buffer: &mut [u8], offset: i64) -> i64 {
    let event = pg_sys::WaitEventIO::WAIT_EVENT_BUFFILE_READ;
    // SAFETY: forwarded from the caller.
    let read = unsafe {
        pg_sys::FileRead(
            file,
            buffer.as_mut_ptr().cast(),
            buffer.len() as _,
            offset,
            event,
        )
    };
    read as i64
}

/// `FileWrite`, with the same differences; and up to 15 its buffer is not `const`, though it is
/// only read.
///
/// # Safety
/// `file` must be open; the bytes' length must fit an `int`.
pub unsafe fn file_write(file: pg_sys::File, bytes: &[u8], offset: i64) -> i64 {
    let event = pg_sys::WaitEventIO::WAIT_EVENT_BUFFILE_WRITE;
    let start = bytes.as_ptr().cast_mut().cast();
    // SAFETY: forwarded from the caller.
    let written = unsafe { pg_sys::FileWrite(file, start, bytes.len() as _, offset, event) };
    written as i64
}

/// The first number of a timeout that is an extension's, of `utils/timeout.h`: 17 added one of its own.
#[cfg(any(feature = "pg15", feature = "pg16"))]
pub const USER_TIMEOUT: i32 = 12;
#[cfg(not(any(feature = "pg15", feature = "pg16")))]
pub const USER_TIMEOUT: i32 = 13;

/// `pqsignal`: 18 has one of its own for the server, beside that of its client programs.
///
/// # Safety
/// `handler` must do nothing that a signal handler may not.
pub unsafe fn set_signal_handler(signal: i32, handler: unsafe extern "C-unwind" fn(i32)) {
    #[cfg(not(feature = "pg18"))]
    // SAFETY: forwarded from the caller.
    unsafe {
        pg_sys::pqsignal(signal, Some(handler));
    }
    #[cfg(feature = "pg18")]
    // SAFETY: forwarded from the caller.
    unsafe {
        pg_sys::pqsignal_be(signal, Some(handler));
    }
}

/// Whether a process is a background worker. From 18 on this also says yes to the server's own
/// helpers, which are connected to no database.
///
/// # Safety
/// `proc` must be an entry of the array of all processes.
pub unsafe fn is_background_worker(proc: *const pg_sys::PGPROC) -> bool {
    #[cfg(not(feature = "pg18"))]
    // SAFETY: forwarded from the caller; a plain read of what may change at any time.
    unsafe {
        (&raw const (*proc).isBackgroundWorker).read_volatile()
    }
    #[cfg(feature = "pg18")]
    // SAFETY: as above.
    unsafe {
        !(&raw const (*proc).isRegularBackend).read_volatile()
    }
}

/// Whether all places for background workers are taken, so that none can be started.
pub fn are_worker_slots_taken() -> bool {
    #[cfg(feature = "pg15")]
    // SAFETY: shared memory that every process has; a plain read of what may change at any time.
    unsafe {
        (&raw const (*pg_sys::ProcGlobal).bgworkerFreeProcs)
            .read_volatile()
            .is_null()
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as above. An empty list has no next node, or its own head as that.
    unsafe {
        let head = &raw mut (*pg_sys::ProcGlobal).bgworkerFreeProcs.head;
        let next = (&raw const (*head).next).read_volatile();
        next.is_null() || next == head
    }
}
