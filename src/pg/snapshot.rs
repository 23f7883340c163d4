//! What is committed at a moment, for reading the extension's own tables.
//!
//! These tables stay out of the conflicts by which PostgreSQL finds serialization failures. A SERIALIZABLE
//! transaction asks at its commit what the queue holds, and then writes there: seen as reads and writes of
//! the user's, any two such transactions at once would conflict, whatever rows they are about. No anomaly
//! follows from leaving them out. Nothing that a transaction reads there finds its way into a user's table or
//! to a client: it decides when and in which order changes are sent, and that order is kept by locks (ids are
//! drawn under the row locks, see [`crate::queue`]), not by the isolation of transactions.

use super::context;
use super::xact::{self, Transaction};
use crate::error::{Error, Result};
use pgrx::pg_sys;

/// What is committed now. One that is not released in the end is left to the transaction's abort.
pub struct Snapshot {
    registered: pg_sys::Snapshot,
    /// With its end the snapshot is gone.
    of: Transaction,
}

impl Snapshot {
    /// To be taken when the tables that are read are locked: an older one sees nothing in a table that was
    /// rewritten meanwhile. Raises 25P01 outside of a transaction.
    pub fn latest() -> Self {
        xact::demand();
        // SAFETY: in a transaction.
        let registered = unsafe { pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot()) };
        Self {
            registered,
            of: Transaction::current(),
        }
    }

    /// The server's own; it lives until it is released.
    ///
    /// # Errors
    /// XX000 when its transaction is over.
    pub(super) fn get(&self) -> Result<pg_sys::Snapshot> {
        if self.of.is_over() {
            Err(Error::internal(
                "the snapshot is one of another transaction",
            ))
        } else {
            Ok(self.registered)
        }
    }

    /// Ends it.
    pub fn release(self) {
        if !self.of.is_over() {
            // SAFETY: registered by latest(), once.
            unsafe { pg_sys::UnregisterSnapshot(self.registered) }
        }
    }

    /// What to scan a table by, whose rows are then asked about with [`Snapshot::sees`]. `whole`: rows that
    /// it does not see are to be found, too.
    ///
    /// # Safety
    /// The relation is open and locked, and stays so for the scan; the transaction is that of the snapshot.
    pub(super) unsafe fn scanned(&self, relation: pg_sys::Relation, whole: bool) -> Scanned {
        if !whole && !context::is_serializable() {
            return Scanned::ByItself(self.registered);
        }
        // Scans by a snapshot of another kind than that of transactions take no predicate locks and look for no
        // conflicts. This one passes over what nobody can see any more, so that scans mark its index entries.
        let mut data = pg_sys::SnapshotData {
            snapshot_type: pg_sys::SnapshotType::SNAPSHOT_NON_VACUUMABLE,
            ..Default::default()
        };
        // SAFETY: an open relation; a snapshot is registered.
        data.vistest = unsafe { pg_sys::GlobalVisTestFor(relation) };
        Scanned::Whole(Box::new(data))
    }

    /// Whether the snapshot sees a row that a scan has found.
    ///
    /// # Safety
    /// The slot has the row, of this relation, and holds its buffer; the transaction is that of the snapshot.
    pub(super) unsafe fn sees(
        &self,
        relation: pg_sys::Relation,
        slot: *mut pg_sys::TupleTableSlot,
    ) -> bool {
        // SAFETY: by the caller.
        unsafe { is_seen(relation, slot, self.registered) }
    }

    /// Whether the statement that runs sees it.
    ///
    /// # Safety
    /// As for [`Snapshot::sees`]; in a function that a statement calls.
    pub(super) unsafe fn statement_sees(
        relation: pg_sys::Relation,
        slot: *mut pg_sys::TupleTableSlot,
    ) -> bool {
        // SAFETY: by the caller; a statement has an active snapshot.
        unsafe { is_seen(relation, slot, pg_sys::GetActiveSnapshot()) }
    }
}

/// # Safety
/// As for [`Snapshot::sees`].
unsafe fn is_seen(
    relation: pg_sys::Relation,
    slot: *mut pg_sys::TupleTableSlot,
    snapshot: pg_sys::Snapshot,
) -> bool {
    // SAFETY: by the caller; the guard turns what is raised into unwinding.
    unsafe {
        let satisfies = (*(*relation).rd_tableam).tuple_satisfies_snapshot;
        satisfies.is_some_and(|satisfies| {
            pg_sys::ffi::pg_guard_ffi_boundary(|| satisfies(relation, slot, snapshot))
        })
    }
}

/// See [`Snapshot::scanned`].
pub(super) enum Scanned {
    /// What is found is seen.
    ByItself(pg_sys::Snapshot),
    /// All that anybody may see is found.
    Whole(Box<pg_sys::SnapshotData>),
}

impl Scanned {
    /// For the server's functions, while this lives.
    pub fn get(&mut self) -> pg_sys::Snapshot {
        match self {
            Self::ByItself(snapshot) => *snapshot,
            Self::Whole(data) => &raw mut **data,
        }
    }
}
