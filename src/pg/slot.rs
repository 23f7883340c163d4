//! A row in a slot of the server.

use super::compat;
use crate::error::{Error, Result};
use pgrx::pg_sys;
use std::marker::PhantomData;

/// A column to read: its number (from 1) and its type.
#[derive(Clone, Copy, Debug)]
pub struct Attribute {
    pub number: i16,
    pub type_oid: pg_sys::Oid,
}

/// A row of the event, in the slot the server put it.
#[derive(Clone, Copy)]
pub struct Slot<'call> {
    slot: *mut pg_sys::TupleTableSlot,
    tuple: pg_sys::HeapTuple,
    memory: pg_sys::MemoryContext,
    _call: PhantomData<&'call ()>,
}

impl<'call> Slot<'call> {
    /// # Errors
    /// XX000 where there is no row.
    ///
    /// # Safety
    /// Slot, tuple and memory must live as long as the call, and the slot must hold the tuple.
    pub(super) unsafe fn new(
        slot: *mut pg_sys::TupleTableSlot,
        tuple: pg_sys::HeapTuple,
        memory: pg_sys::MemoryContext,
    ) -> Result<Self> {
        if slot.is_null() || tuple.is_null() {
            return Err(Error::internal("the event has no such row"));
        }
        Ok(Self {
            slot,
            tuple,
            memory,
            _call: PhantomData,
        })
    }

    /// Where the row is stored.
    pub(super) fn place(&self) -> pg_sys::ItemPointerData {
        // SAFETY: the tuple is valid for the call.
        unsafe { (*self.tuple).t_self }
    }

    /// Memory that lives as long as the call.
    pub(super) fn memory(&self) -> pg_sys::MemoryContext {
        self.memory
    }

    /// The value of a column; `None` is NULL.
    ///
    /// # Errors
    /// XX000 where the row has no such column or one of another type: it is of another table, or of the table
    /// as it was.
    #[inline]
    pub(super) fn datum(&self, column: &Attribute) -> Result<Option<pg_sys::Datum>> {
        let number = column.number;
        let position = usize::try_from(number.wrapping_sub(1)).unwrap_or(usize::MAX);
        // SAFETY: the slot is the server's, and has a row for the call; it is filled up to the column, which
        // its description has.
        unsafe {
            let shape = (*self.slot).tts_tupleDescriptor;
            if position >= (*shape).natts as usize
                || (*compat::attribute(shape, position)).atttypid != column.type_oid
            {
                return Err(unexpected_columns());
            }
            if (*self.slot).tts_nvalid < number {
                pg_sys::slot_getsomeattrs_int(self.slot, i32::from(number));
            }
            let is_null = *(*self.slot).tts_isnull.add(position);
            Ok((!is_null).then(|| *(*self.slot).tts_values.add(position)))
        }
    }

    /// Where the row is stored, as one number: block and offset. Never 0, offsets begin with 1.
    pub fn stored(&self) -> u64 {
        // SAFETY: the tuple is valid for the call.
        let id = unsafe { (*self.tuple).t_self };
        u64::from(id.ip_blkid.bi_hi) << 32
            | u64::from(id.ip_blkid.bi_lo) << 16
            | u64::from(id.ip_posid)
    }

    /// Whether the current transaction wrote this row.
    pub fn is_own(&self) -> bool {
        // SAFETY: the tuple is valid for the call.
        unsafe {
            let writer = (*(*self.tuple).t_data).t_choice.t_heap.t_xmin;
            pg_sys::TransactionIdIsCurrentTransactionId(writer)
        }
    }

    /// Whether the current transaction has deleted or replaced this row.
    fn is_ended_here(&self) -> bool {
        // SAFETY: the tuple is valid for the call; what a multixact holds is asked of the server.
        unsafe {
            let header = (*self.tuple).t_data;
            let has = |bit: u32| u32::from((*header).t_infomask) & bit != 0;
            if has(pg_sys::HEAP_XMAX_INVALID) || has(pg_sys::HEAP_XMAX_LOCK_ONLY) {
                return false;
            }
            let ended_by = if has(pg_sys::HEAP_XMAX_IS_MULTI) {
                pg_sys::HeapTupleGetUpdateXid(header)
            } else {
                (*header).t_choice.t_heap.t_xmax
            };
            pg_sys::TransactionIdIsCurrentTransactionId(ended_by)
        }
    }

    /// Number of the command that deleted or replaced this row, in its transaction.
    ///
    /// # Errors
    /// XX000 for a row that the current transaction has not deleted or replaced.
    pub fn ending_command(&self) -> Result<u32> {
        if !self.is_ended_here() {
            return Err(Error::internal(
                "the row was deleted by another transaction",
            ));
        }
        // SAFETY: the tuple is valid for the call and was deleted or replaced by this transaction,
        // which is what HeapTupleHeaderGetCmax asks for.
        Ok(unsafe { pg_sys::HeapTupleHeaderGetCmax((*self.tuple).t_data) })
    }

    /// Number of the command that wrote this row, in its transaction.
    ///
    /// # Errors
    /// XX000 for a row that the current transaction has not written.
    pub fn command(&self) -> Result<u32> {
        if !self.is_own() {
            return Err(Error::internal(
                "the row was written by another transaction",
            ));
        }
        // SAFETY: the tuple is valid for the call and was written by this transaction, which is
        // what HeapTupleHeaderGetCmin asks for.
        Ok(unsafe { pg_sys::HeapTupleHeaderGetCmin((*self.tuple).t_data) })
    }
}

/// The error of a row of another table, or of the table as it was.
#[cold]
fn unexpected_columns() -> Error {
    Error::internal("row does not have the columns that are expected")
}
