//! Counters per server: what was delivered, queued, in conflict, or left alone by the loop guard; and of
//! conflicts also per local table and kind.
//!
//! The counters lie in shared memory (see [`crate::pg::shmem`]), in tables of slots that are claimed by their
//! first event and never given back: no locks, no waiting, no failing. When all slots are taken,
//! further servers are not counted, and the answer says so; of further tables the conflicts are in their
//! server's sum only. Without the area, nothing is counted.

pub mod slot;

use self::slot::{ConflictSlot, Keyed, ServerSlot};
use crate::conflict::ConflictType;
use crate::local::{ProcessLocal, process_local};
use crate::pg::{Oid, context, database, shmem};
use std::cell::{Cell, RefCell};
use std::sync::atomic::Ordering::Relaxed;

/// What `sync_counters()` shows of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// `None` stands for every server without counts of its own.
    pub server: Option<Oid>,
    pub delivered_transactions: u64,
    pub delivered_changes: u64,
    pub queued: u64,
    pub conflicts: u64,
    pub guarded: u64,
    pub looped: u64,
    /// Transactions prepared for mode `atomic`.
    pub prepared: u64,
    /// Of those, finished by somebody else than the session that had prepared them.
    pub resolved: u64,
    /// Microseconds, as PostgreSQL counts them.
    pub last_success: Option<i64>,
}

/// What `sync_conflict_counters()` shows of a server, a local table and a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConflictCount {
    pub server: Oid,
    pub relation: Oid,
    pub kind: ConflictType,
    pub conflicts: u64,
}

thread_local! {
    /// The last server asked for and the place of its slot; there is none when the table is full. Slots
    /// are never given back, so both answers stay true.
    static LAST_SLOT: Cell<Option<(Oid, Option<usize>)>> = const { Cell::new(None) };
}

process_local! {
    /// Changes that the transaction has queued, by server.
    static QUEUED: RefCell<Vec<(Oid, u64)>> = const { RefCell::new(Vec::new()) };
}

/// A server has committed a transaction with this many changes.
pub fn delivered(server: Oid, changes: u64) {
    if let Some(slot) = slot_of(server) {
        slot.delivered_transactions.fetch_add(1, Relaxed);
        slot.delivered_changes.fetch_add(changes, Relaxed);
        slot.last_success.fetch_max(context::now(), Relaxed);
    }
}

/// So many of the changes that a server has committed were in conflict.
pub fn conflicts(server: Oid, changes: u64) {
    if changes > 0
        && let Some(slot) = slot_of(server)
    {
        slot.conflicts.fetch_add(changes, Relaxed);
    }
}

/// So many of them were of this kind and of this local table. Not counted in [`conflicts`], which takes
/// the sum, nor for a server that has no counters of its own.
pub fn conflicts_of(server: Oid, relation: Oid, kind: ConflictType, changes: u64) {
    let slots = shmem::conflict_slots();
    if let Some(place) = place_of(server)
        && let Some(at) = find(slots, pair(place as u32 + 1, relation.to_u32()))
    {
        slots[at].counts[kind as usize].fetch_add(changes, Relaxed);
    }
}

/// Whether there is shared memory to count in.
pub fn are_kept() -> bool {
    !shmem::slots().is_empty()
}

/// The loop guard has left a change alone. Counted at once: that nothing was captured does not depend
/// on the transaction's end.
pub fn guarded(server: Oid) {
    if let Some(slot) = slot_of(server) {
        slot.guarded.fetch_add(1, Relaxed);
    }
}

/// So many changes were on their way back to where they have been. Counted at once, as above.
pub fn looped(server: Oid, changes: u64) {
    if let Some(slot) = slot_of(server) {
        slot.looped.fetch_add(changes, Relaxed);
    }
}

/// A server has prepared a transaction. Counted at once: it has, whatever becomes of it.
pub fn prepared(server: Oid) {
    if let Some(slot) = slot_of(server) {
        slot.prepared.fetch_add(1, Relaxed);
    }
}

/// What a server had prepared was finished for the session that had not. Counted at once.
pub fn resolved(server: Oid) {
    if let Some(slot) = slot_of(server) {
        slot.resolved.fetch_add(1, Relaxed);
    }
}

/// Changes were written to the queue. Counted when the transaction commits.
pub fn queued(server: Oid, changes: u64) {
    QUEUED.with_borrow_mut(|queued| queued.push((server, changes)));
}

/// The transaction is over. Cannot fail.
pub fn end(committed: bool) {
    let queued = QUEUED.with(|cell| cell.try_borrow_mut().map(|mut q| std::mem::take(&mut *q)));
    for (server, changes) in queued.into_iter().flatten().filter(|_| committed) {
        if let Some(slot) = slot_of(server) {
            slot.queued.fetch_add(changes, Relaxed);
        }
    }
}

/// The counts of the current database's servers, and while there are free slots one of zeros for all
/// the others.
pub fn counts() -> Vec<Counts> {
    read(shmem::slots(), database::current())
}

/// The conflicts of the current database's servers; every combination that has occurred.
pub fn conflict_counts() -> Vec<ConflictCount> {
    read_conflicts(shmem::conflict_slots(), shmem::slots(), database::current())
}

fn slot_of(server: Oid) -> Option<&'static ServerSlot> {
    place_of(server).map(|at| &shmem::slots()[at])
}

fn place_of(server: Oid) -> Option<usize> {
    match LAST_SLOT.get() {
        Some((last, place)) if last == server => place,
        _ => {
            let place = find(shmem::slots(), key_of(database::current(), server));
            LAST_SLOT.set(Some((server, place)));
            place
        }
    }
}

/// One number that is 0 for no server: object identifiers are not.
fn key_of(database: Oid, server: Oid) -> u64 {
    pair(database.to_u32(), server.to_u32())
}

fn pair(upper: u32, lower: u32) -> u64 {
    u64::from(upper) << 32 | u64::from(lower)
}

/// The place of the slot of a key, claimed if need be; `None` when others have them all. Whoever looks
/// for a key goes the same way, and none on it is ever given back, so no key gets two.
fn find(slots: &[impl Keyed], key: u64) -> Option<usize> {
    // Spreads neighbouring numbers; the upper half of the product is the better mixed one.
    let first = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize;
    (0..slots.len())
        .map(|step| first.wrapping_add(step) % slots.len())
        .find(
            |at| match slots[*at].key().compare_exchange(0, key, Relaxed, Relaxed) {
                Ok(_) => true,
                Err(holder) => holder == key,
            },
        )
}

fn read(slots: &[ServerSlot], database: Oid) -> Vec<Counts> {
    let keys = slots.iter().map(|slot| (slot, slot.key.load(Relaxed)));
    let own = keys
        .clone()
        .filter(|(_, key)| key >> 32 == u64::from(database.to_u32()));
    let rest = keys.clone().any(|(_, key)| key == 0).then(Counts::default);
    own.map(|(slot, key)| Counts {
        server: Some(Oid::from(key as u32)),
        delivered_transactions: slot.delivered_transactions.load(Relaxed),
        delivered_changes: slot.delivered_changes.load(Relaxed),
        queued: slot.queued.load(Relaxed),
        conflicts: slot.conflicts.load(Relaxed),
        guarded: slot.guarded.load(Relaxed),
        looped: slot.looped.load(Relaxed),
        prepared: slot.prepared.load(Relaxed),
        resolved: slot.resolved.load(Relaxed),
        last_success: Some(slot.last_success.load(Relaxed)).filter(|time| *time != 0),
    })
    .chain(rest)
    .collect()
}

fn read_conflicts(
    slots: &[ConflictSlot],
    servers: &[ServerSlot],
    database: Oid,
) -> Vec<ConflictCount> {
    let mut found = Vec::new();
    for slot in slots {
        let key = slot.key.load(Relaxed);
        // A key that was seen says where the server's slot is, but another processor may show that one's
        // later: then it is free still, and of no database.
        let place = ((key >> 32) as usize).checked_sub(1);
        let Some(server) = place.and_then(|at| servers.get(at)) else {
            continue;
        };
        let owner = server.key.load(Relaxed);
        if owner >> 32 != u64::from(database.to_u32()) {
            continue;
        }
        for (kind, count) in ConflictType::ALL.into_iter().zip(&slot.counts) {
            let conflicts = count.load(Relaxed);
            if conflicts > 0 {
                let server = Oid::from(owner as u32);
                let relation = Oid::from(key as u32);
                found.push(ConflictCount {
                    server,
                    relation,
                    kind,
                    conflicts,
                });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots<S: Default>(count: usize) -> Vec<S> {
        (0..count).map(|_| S::default()).collect()
    }

    fn slot(slots: &[ServerSlot], key: u64) -> &ServerSlot {
        &slots[find(slots, key).expect("a slot")]
    }

    fn oid(number: u32) -> Oid {
        Oid::from(number)
    }

    #[test]
    fn a_server_keeps_its_slot_and_shares_it_with_no_other() {
        let slots: Vec<ServerSlot> = slots(8);
        let keys: Vec<u64> = (1..=8)
            .map(|n| key_of(oid(n % 2 + 1), oid(100 + n)))
            .collect();
        for round in 1..=3 {
            for key in &keys {
                slot(&slots, *key).queued.fetch_add(1, Relaxed);
            }
            assert!(slots.iter().all(|slot| slot.queued.load(Relaxed) == round));
        }
    }

    #[test]
    fn a_full_table_counts_no_further_server_and_says_so() {
        let slots: Vec<ServerSlot> = slots(2);
        slot(&slots, key_of(oid(1), oid(10)));
        assert_eq!(read(&slots, oid(1)).last(), Some(&Counts::default()));
        slot(&slots, key_of(oid(1), oid(11)));
        assert!(find(&slots, key_of(oid(1), oid(12))).is_none());
        assert!(find(&slots, key_of(oid(1), oid(10))).is_some());
        assert!(
            read(&slots, oid(1))
                .iter()
                .all(|counts| counts.server.is_some())
        );
    }

    #[test]
    fn a_database_sees_its_own_servers() {
        let slots: Vec<ServerSlot> = slots(8);
        slot(&slots, key_of(oid(1), oid(10)))
            .guarded
            .fetch_add(3, Relaxed);
        slot(&slots, key_of(oid(2), oid(10)))
            .guarded
            .fetch_add(4, Relaxed);
        let counts = read(&slots, oid(2));
        assert_eq!(counts.len(), 2);
        assert_eq!((counts[0].server, counts[0].guarded), (Some(oid(10)), 4));
        assert_eq!(counts[0].last_success, None);
    }

    #[test]
    fn without_an_area_nothing_is_counted() {
        assert!(find(&slots::<ServerSlot>(0), 1).is_none());
        assert!(read(&[], oid(1)).is_empty());
        assert!(read_conflicts(&[], &[], oid(1)).is_empty());
    }

    #[test]
    fn sessions_that_claim_slots_at_once_agree() {
        let slots: Vec<ServerSlot> = slots(64);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for n in 1..=64 {
                        slot(&slots, key_of(oid(1), oid(n)))
                            .queued
                            .fetch_add(1, Relaxed);
                    }
                });
            }
        });
        assert!(slots.iter().all(|slot| slot.queued.load(Relaxed) == 8));
    }

    #[test]
    fn conflicts_are_told_apart_by_database_server_table_and_kind() {
        let servers = slots::<ServerSlot>(4);
        let conflicts = slots::<ConflictSlot>(8);
        let count = |database, server, relation, kind: ConflictType, changes| {
            let place = find(&servers, key_of(oid(database), oid(server))).expect("a place");
            let at = find(&conflicts, pair(place as u32 + 1, relation)).expect("a slot");
            conflicts[at].counts[kind as usize].fetch_add(changes, Relaxed);
        };
        count(1, 10, 100, ConflictType::InsertExists, 3);
        count(1, 10, 100, ConflictType::MultipleUniqueConflicts, 1);
        count(1, 10, 100, ConflictType::InsertExists, 1);
        count(1, 10, 101, ConflictType::DeleteMissing, 2);
        count(1, 11, 100, ConflictType::DeleteMissing, 5);
        count(2, 10, 100, ConflictType::UpdateMissing, 7);
        let mut found: Vec<_> = read_conflicts(&conflicts, &servers, oid(1))
            .into_iter()
            .map(|c| {
                (
                    c.server.to_u32(),
                    c.relation.to_u32(),
                    c.kind as usize,
                    c.conflicts,
                )
            })
            .collect();
        found.sort_unstable();
        assert_eq!(
            found,
            [
                (10, 100, 0, 4),
                (10, 100, 6, 1),
                (10, 101, 4, 2),
                (11, 100, 4, 5)
            ]
        );
        assert_eq!(read_conflicts(&conflicts, &servers, oid(2)).len(), 1);
    }

    #[test]
    fn a_slot_takes_whole_cache_lines() {
        assert_eq!(std::mem::size_of::<ServerSlot>(), 128);
        assert_eq!(std::mem::size_of::<ConflictSlot>(), 64);
    }
}
