//! Counters per server: what was delivered, queued, in conflict, or left alone by the loop guard.
//!
//! They lie in shared memory (see [`crate::pg::shmem`]), in a table of slots that are claimed by their
//! first event and never given back: no locks, no waiting, no failing. When all slots are taken,
//! further servers are not counted, and the answer says so. Without the area, nothing is counted.

use crate::pg::{Oid, context, shmem};
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// The counters of a server. All zero is an empty slot; nothing in it depends on anything else, so
/// plain atomics do. A cache line, so that servers do not slow each other down.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Slot {
    /// Database and server, see [`key_of`]; 0 when it is free.
    key: AtomicU64,
    delivered_transactions: AtomicU64,
    delivered_changes: AtomicU64,
    queued: AtomicU64,
    conflicts: AtomicU64,
    guarded: AtomicU64,
    /// As PostgreSQL keeps time; 0 for never.
    last_success: AtomicI64,
}

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
    /// Microseconds, as PostgreSQL counts them.
    pub last_success: Option<i64>,
}

thread_local! {
    /// The last server asked for and its slot; there is none when the table is full. Slots are never
    /// given back, so both answers stay true.
    static LAST: Cell<Option<(Oid, Option<&'static Slot>)>> = const { Cell::new(None) };
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

/// The loop guard has left a change alone. Counted at once: that nothing was captured does not depend
/// on the transaction's end.
pub fn guarded(server: Oid) {
    if let Some(slot) = slot_of(server) {
        slot.guarded.fetch_add(1, Relaxed);
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
    read(shmem::slots(), context::database())
}

fn slot_of(server: Oid) -> Option<&'static Slot> {
    match LAST.get() {
        Some((last, slot)) if last == server => slot,
        _ => {
            let slot = find(shmem::slots(), key_of(context::database(), server));
            LAST.set(Some((server, slot)));
            slot
        }
    }
}

/// One number that is 0 for no server: object identifiers are not.
fn key_of(database: Oid, server: Oid) -> u64 {
    u64::from(database.to_u32()) << 32 | u64::from(server.to_u32())
}

/// The slot of a key, claimed if need be; `None` when others have them all. Whoever looks for a key
/// goes the same way, and none on it is ever given back, so no key gets two.
fn find(slots: &[Slot], key: u64) -> Option<&Slot> {
    // Spreads neighbouring numbers; the upper half of the product is the better mixed one.
    let first = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize;
    (0..slots.len()).map(|step| &slots[(first.wrapping_add(step)) % slots.len()]).find(|slot| {
        match slot.key.compare_exchange(0, key, Relaxed, Relaxed) {
            Ok(_) => true,
            Err(holder) => holder == key,
        }
    })
}

fn read(slots: &[Slot], database: Oid) -> Vec<Counts> {
    let keys = slots.iter().map(|slot| (slot, slot.key.load(Relaxed)));
    let own = keys.clone().filter(|(_, key)| key >> 32 == u64::from(database.to_u32()));
    let rest = keys.clone().any(|(_, key)| key == 0).then(Counts::default);
    own.map(|(slot, key)| Counts {
        server: Some(Oid::from(key as u32)),
        delivered_transactions: slot.delivered_transactions.load(Relaxed),
        delivered_changes: slot.delivered_changes.load(Relaxed),
        queued: slot.queued.load(Relaxed),
        conflicts: slot.conflicts.load(Relaxed),
        guarded: slot.guarded.load(Relaxed),
        last_success: Some(slot.last_success.load(Relaxed)).filter(|time| *time != 0),
    })
    .chain(rest)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(count: usize) -> Vec<Slot> {
        (0..count).map(|_| Slot::default()).collect()
    }

    fn oid(number: u32) -> Oid {
        Oid::from(number)
    }

    #[test]
    fn a_server_keeps_its_slot_and_shares_it_with_no_other() {
        let slots = slots(8);
        let keys: Vec<u64> = (1..=8).map(|n| key_of(oid(n % 2 + 1), oid(100 + n))).collect();
        for round in 1..=3 {
            for key in &keys {
                find(&slots, *key).expect("a slot").queued.fetch_add(1, Relaxed);
            }
            assert!(slots.iter().all(|slot| slot.queued.load(Relaxed) == round));
        }
    }

    #[test]
    fn a_full_table_counts_no_further_server_and_says_so() {
        let slots = slots(2);
        find(&slots, key_of(oid(1), oid(10))).expect("a slot");
        assert_eq!(read(&slots, oid(1)).last(), Some(&Counts::default()));
        find(&slots, key_of(oid(1), oid(11))).expect("a slot");
        assert!(find(&slots, key_of(oid(1), oid(12))).is_none());
        assert!(find(&slots, key_of(oid(1), oid(10))).is_some());
        assert!(read(&slots, oid(1)).iter().all(|counts| counts.server.is_some()));
    }

    #[test]
    fn a_database_sees_its_own_servers() {
        let slots = slots(8);
        find(&slots, key_of(oid(1), oid(10))).expect("a slot").guarded.fetch_add(3, Relaxed);
        find(&slots, key_of(oid(2), oid(10))).expect("a slot").guarded.fetch_add(4, Relaxed);
        let counts = read(&slots, oid(2));
        assert_eq!(counts.len(), 2);
        assert_eq!((counts[0].server, counts[0].guarded), (Some(oid(10)), 4));
        assert_eq!(counts[0].last_success, None);
    }

    #[test]
    fn without_an_area_nothing_is_counted() {
        assert!(find(&[], 1).is_none());
        assert!(read(&[], oid(1)).is_empty());
    }

    #[test]
    fn sessions_that_claim_slots_at_once_agree() {
        let slots = slots(64);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for n in 1..=64 {
                        find(&slots, key_of(oid(1), oid(n)))
                            .expect("a slot")
                            .queued
                            .fetch_add(1, Relaxed);
                    }
                });
            }
        });
        assert!(slots.iter().all(|slot| slot.queued.load(Relaxed) == 8));
    }
}
