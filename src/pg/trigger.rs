//! A trigger call, as the server describes it.

use super::Oid;
use super::args::Args;
use super::compat;
use super::slot::Slot;
use super::text;
use super::xact;
use crate::change::Op;
use crate::error::{Error, Result, SqlState};
use pgrx::{PgTrigger, pg_sys};
use std::ffi::{CStr, CString};

/// One call of the trigger function.
pub struct Event<'call> {
    trigger: &'call PgTrigger<'call>,
    /// Lives as long as the call.
    memory: pg_sys::MemoryContext,
}

/// Hands the event of a call of the trigger function `name` to `handle`.
///
/// # Errors
/// 39P01 when the function was not called as a trigger; what `handle` reports.
pub fn with_event<T>(
    call: &Args<'_>,
    name: &str,
    handle: impl FnOnce(&Event<'_>) -> Result<T>,
) -> Result<T> {
    // SAFETY: the server's own call information, valid until the function returns.
    let trigger = unsafe {
        call.info()
            .as_ref()
            .map(|info| PgTrigger::from_fcinfo(info))
    };
    // SAFETY: plain read; the server resets what it made current for the call after the call.
    let memory = unsafe { pg_sys::CurrentMemoryContext };
    match trigger {
        Some(Ok(trigger)) => handle(&Event {
            trigger: &trigger,
            memory,
        }),
        _ => Err(Error::local(
            SqlState::TRIGGER_PROTOCOL,
            format!("function \"{name}\" was not called by trigger manager"),
        )
        .with_hint("Use it in CREATE TRIGGER ... EXECUTE FUNCTION, or call attach_sync().")),
    }
}

/// The arguments of a table's triggers for each row that call a function; none for a table that is gone.
///
/// # Errors
/// For an argument that is not UTF-8; 25P01 outside of a transaction.
pub fn arguments_of(table: Oid, function: Oid) -> Result<Vec<Vec<String>>> {
    xact::require()?;
    let lock = pg_sys::AccessShareLock as i32;
    // SAFETY: null if the table is gone. The list is as long as it says, as are those of arguments, which are
    // C strings. All may be made anew with any look at the catalogs, which a conversion is: so they are
    // copied before.
    let found: Vec<Vec<CString>> = unsafe {
        let relation = pg_sys::try_relation_open(table, lock);
        if relation.is_null() {
            return Ok(Vec::new());
        }
        let number = (*relation)
            .trigdesc
            .as_ref()
            .map_or(0, |all| all.numtriggers as usize);
        let found = (0..number)
            .map(|at| &*(*(*relation).trigdesc).triggers.add(at))
            .filter(|trigger| {
                let kind = u32::from(trigger.tgtype as u16);
                trigger.tgfoid == function && kind & pg_sys::TRIGGER_TYPE_ROW != 0
            })
            .map(|trigger| {
                let args = (0..trigger.tgnargs as usize).map(|at| *trigger.tgargs.add(at));
                args.map(|arg| CStr::from_ptr(arg).to_owned()).collect()
            })
            .collect();
        pg_sys::relation_close(relation, lock);
        found
    };
    // SAFETY: a C string, which is copied.
    let text_of = |arg: CString| unsafe { Ok(text::to_string(arg.as_ptr())?.unwrap_or_default()) };
    found
        .into_iter()
        .map(|args| args.into_iter().map(text_of).collect())
        .collect()
}

impl<'call> Event<'call> {
    fn data(&self) -> &pg_sys::TriggerData {
        self.trigger.trigger_data()
    }

    fn trigger(&self) -> &pg_sys::Trigger {
        self.trigger.trigger()
    }

    /// OID of the trigger (of its clone, on a partition).
    pub fn trigger_oid(&self) -> Oid {
        self.trigger().tgoid
    }

    /// OID of the table, a partition where the row lives in one.
    pub fn relation_oid(&self) -> Oid {
        // SAFETY: tg_relation is open for the call.
        unsafe { (*self.data().tg_relation).rd_id }
    }

    /// Number of the file that stores the table's rows now. Whatever rewrites the table gives it another.
    pub fn file(&self) -> u32 {
        // SAFETY: tg_relation is open for the call.
        unsafe { compat::file_number(self.data().tg_relation) }
    }

    /// What happened, if the trigger's timing and level are the supported ones.
    ///
    /// # Errors
    /// 39P01 for BEFORE and INSTEAD OF, for what can be deferred, for statement level with rows and row level
    /// with TRUNCATE.
    pub fn op(&self) -> Result<Op> {
        let event = self.data().tg_event;
        let refuse = |what: &str| {
            Err(Error::local(
                SqlState::TRIGGER_PROTOCOL,
                format!("sync_dml must not be used in a trigger fired {what}"),
            )
            .with_hint(
                "Use AFTER INSERT OR UPDATE OR DELETE ... FOR EACH ROW, and AFTER TRUNCATE ... \
                 FOR EACH STATEMENT.",
            ))
        };
        match event & pg_sys::TRIGGER_EVENT_TIMINGMASK {
            pg_sys::TRIGGER_EVENT_AFTER => {}
            pg_sys::TRIGGER_EVENT_BEFORE => return refuse("BEFORE"),
            _ => return refuse("INSTEAD OF"),
        }
        // Its events would be captured after later ones of other tables.
        if self.trigger().tgdeferrable {
            return refuse("as a deferrable constraint trigger");
        }
        let by_row = event & pg_sys::TRIGGER_EVENT_ROW != 0;
        match event & pg_sys::TRIGGER_EVENT_OPMASK {
            pg_sys::TRIGGER_EVENT_TRUNCATE => Ok(Op::Truncate),
            _ if !by_row => refuse("FOR EACH STATEMENT by INSERT, UPDATE or DELETE"),
            pg_sys::TRIGGER_EVENT_INSERT => Ok(Op::Insert),
            pg_sys::TRIGGER_EVENT_UPDATE => Ok(Op::Update),
            _ => Ok(Op::Delete),
        }
    }

    /// Whether every row that is inserted or updated comes to the trigger: it has neither a condition nor a
    /// list of columns, and fires for INSERT, or another trigger like it does that has the same arguments.
    pub fn sees_every_row(&self) -> bool {
        let trigger = self.trigger();
        if !trigger.tgqual.is_null() || trigger.tgnattr > 0 {
            return false;
        }
        let inserts = |of: &pg_sys::Trigger| {
            let wanted = (pg_sys::TRIGGER_TYPE_ROW | pg_sys::TRIGGER_TYPE_INSERT) as i16;
            of.tgtype & wanted == wanted
        };
        // SAFETY: the arguments of a trigger are so many C strings; those of the table's other triggers live as
        // long as the table is open, which it is for the call.
        let args = |of: &pg_sys::Trigger| unsafe {
            let args = (0..of.tgnargs as usize).map(|at| CStr::from_ptr(*of.tgargs.add(at)));
            args.collect::<Vec<_>>()
        };
        // SAFETY: as above; there are so many, this one among them.
        let all = unsafe {
            let all = (*self.data().tg_relation).trigdesc;
            if all.is_null() {
                &[]
            } else {
                std::slice::from_raw_parts((*all).triggers, (*all).numtriggers as usize)
            }
        };
        all.iter().any(|other| {
            inserts(other)
                && other.tgqual.is_null()
                && other.tgfoid == trigger.tgfoid
                && other.tgenabled == trigger.tgenabled
                && args(other) == args(trigger)
        })
    }

    /// The trigger's arguments.
    ///
    /// # Errors
    /// For an argument that is not UTF-8.
    pub fn args(&self) -> Result<Vec<String>> {
        let trigger = self.trigger();
        (0..trigger.tgnargs as usize)
            // SAFETY: tgargs holds tgnargs C strings.
            .map(|at| unsafe { text::to_string(*trigger.tgargs.add(at)) })
            .map(|arg| Ok(arg?.unwrap_or_default()))
            .collect()
    }

    /// Whether the statement that fired the trigger was run by another trigger.
    pub fn is_nested(&self) -> bool {
        // SAFETY: returns a counter; it does not look at its arguments.
        let depth = unsafe { pg_sys::pg_trigger_depth(std::ptr::null_mut()) };
        depth.value() as i32 > 1
    }

    /// What a BEFORE trigger for each row returns to leave the row as it is: a pointer to it.
    pub fn row_to_write(&self) -> i64 {
        let data = self.data();
        let updates = data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK == pg_sys::TRIGGER_EVENT_UPDATE;
        let tuple = if updates {
            data.tg_newtuple
        } else {
            data.tg_trigtuple
        };
        tuple as i64
    }

    /// Text that lives as long as the rows of the call.
    pub fn keep(&self, text: &str) -> &'call str {
        // SAFETY: room for a copy of a str, in memory that lives as long as the call.
        unsafe {
            let copy = pg_sys::MemoryContextAlloc(self.memory, text.len().max(1)).cast::<u8>();
            copy.copy_from_nonoverlapping(text.as_ptr(), text.len());
            std::str::from_utf8_unchecked(std::slice::from_raw_parts(copy, text.len()))
        }
    }

    /// Whether the current transaction has changed or deleted a row of the event again. Locks on the row are no
    /// change, whoever has them: what a row's header says of its last writer means something else then, so the
    /// server's own rules are asked.
    pub fn is_superseded(&self, row: Slot<'call>) -> bool {
        // SAFETY: the table is open for the call; the slot is made for it and dropped, on an ERROR with the
        // resource owner. The row's place is a copy. A snapshot of this kind is a constant.
        unsafe {
            let relation = self.data().tg_relation;
            let slot = pg_sys::table_slot_create(relation, std::ptr::null_mut());
            let mut place = row.place();
            let fetch = (*(*relation).rd_tableam).tuple_fetch_row_version;
            let itself = &raw mut pg_sys::SnapshotSelfData;
            let is_there = fetch.is_some_and(|fetch| {
                pg_sys::ffi::pg_guard_ffi_boundary(|| fetch(relation, &mut place, itself, slot))
            });
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            !is_there
        }
    }

    /// The row that was inserted, deleted, or is about to be replaced.
    ///
    /// # Errors
    /// XX000 for an event without one.
    pub fn row(&self) -> Result<Slot<'call>> {
        let data = self.data();
        self.slot(data.tg_trigslot, data.tg_trigtuple)
    }

    /// The row after an UPDATE.
    ///
    /// # Errors
    /// XX000 for another event.
    pub fn new_row(&self) -> Result<Slot<'call>> {
        let data = self.data();
        self.slot(data.tg_newslot, data.tg_newtuple)
    }

    fn slot(
        &self,
        slot: *mut pg_sys::TupleTableSlot,
        tuple: pg_sys::HeapTuple,
    ) -> Result<Slot<'call>> {
        // SAFETY: the server's own for the call, if there are any.
        unsafe { Slot::new(slot, tuple, self.memory) }
    }
}
