//! The slots in which counters lie in shared memory.

use crate::conflict::ConflictType;
use std::sync::atomic::{AtomicI64, AtomicU64};

/// The counters of a server. All zero is an empty slot; nothing in it depends on anything else, so
/// plain atomics do. Whole cache lines, so that servers do not slow each other down.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct ServerSlot {
    /// Database and server, see [`super::key_of`]; 0 when it is free.
    pub(super) key: AtomicU64,
    pub(super) delivered_transactions: AtomicU64,
    pub(super) delivered_changes: AtomicU64,
    pub(super) queued: AtomicU64,
    pub(super) conflicts: AtomicU64,
    pub(super) guarded: AtomicU64,
    pub(super) looped: AtomicU64,
    /// As PostgreSQL keeps time; 0 for never.
    pub(super) last_success: AtomicI64,
    pub(super) prepared: AtomicU64,
    pub(super) resolved: AtomicU64,
}

/// The conflicts of a local table with a server, by kind. As [`ServerSlot`] in everything else.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct ConflictSlot {
    /// The place of the server's slot, from 1 on, and the table, see [`super::pair`]; 0 when it is free. The
    /// place tells the database too: with the object identifiers of all three, the key would be none
    /// that can be claimed at once.
    pub(super) key: AtomicU64,
    pub(super) counts: [AtomicU64; ConflictType::ALL.len()],
}

/// Slots for conflicts, for each of those for servers: what so many tables in conflict with a server
/// need, or fewer with some and more with others.
pub const CONFLICT_SLOTS_PER_SERVER: usize = 16;

/// A slot of either table.
pub(super) trait Keyed {
    /// What it was claimed for; 0 when it is free.
    fn key(&self) -> &AtomicU64;
}

impl Keyed for ServerSlot {
    fn key(&self) -> &AtomicU64 {
        &self.key
    }
}

impl Keyed for ConflictSlot {
    fn key(&self) -> &AtomicU64 {
        &self.key
    }
}
