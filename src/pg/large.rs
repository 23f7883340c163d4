//! Large values that are left where they are stored when a row is captured: recognised without reading
//! them, and read when they are sent or queued, if they are.

use super::xact::{self, Transaction};
use super::{output, text};
use crate::error::{Error, Result};
use pgrx::pg_sys;
use serde::{Deserialize, Serialize};

/// Two bytes of header and tag, then the pointer.
const POINTER: usize = 2 + std::mem::size_of::<pg_sys::varatt_external>();

/// The output functions of text, varchar, char, bytea, json, jsonb and xml. What they write is the same
/// under all settings, but for bytea, and they run nobody's code, so they may be called when the transaction
/// commits.
const PLAIN: [u32; 7] = [
    pg_sys::F_TEXTOUT,
    pg_sys::F_VARCHAROUT,
    pg_sys::F_BPCHAROUT,
    pg_sys::F_BYTEAOUT,
    pg_sys::F_JSON_OUT,
    pg_sys::F_JSONB_OUT,
    pg_sys::F_XML_OUT,
];

/// The bytes of a TOAST pointer to a stored value.
pub(super) type Pointer = [u8; POINTER];

/// A value that is stored out of line, and how it is written. It can be read until the transaction ends,
/// unless a statement of the transaction itself does away with the table's storage, see
/// [`super::utility`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    output: u32,
    pointer: Pointer,
}

impl Stored {
    /// The value behind a pointer, if it can be read later with this output function.
    pub(super) fn new(output: pg_sys::Oid, pointer: Pointer) -> Option<Self> {
        let output = output.to_u32();
        PLAIN.contains(&output).then_some(Self { output, pointer })
    }

    /// Whether this is what [`Stored::new`] made: what was kept elsewhere meanwhile may be anything.
    fn is_sound(&self) -> bool {
        PLAIN.contains(&self.output) && is_on_disk(&self.pointer)
    }

    /// Bytes that the value has, uncompressed.
    pub fn size(&self) -> u64 {
        // After the header and the tag, `va_rawsize` of `struct varatt_external` comes first.
        let [_, _, a, b, c, d, ..] = self.pointer;
        u64::from(u32::from_ne_bytes([a, b, c, d]))
    }
}

/// The bytes of a TOAST pointer to a stored value, if the datum is one (`VARATT_IS_EXTERNAL_ONDISK`
/// of `varatt.h`).
///
/// # Safety
/// Must point to a valid varlena.
pub(super) unsafe fn pointer(datum: *const u8) -> Option<Pointer> {
    // SAFETY: the first byte is always there, the second one if the first says "external", and the
    // whole pointer if the second says "on disk".
    unsafe {
        let head = [*datum, if *datum == EXTERNAL { *datum.add(1) } else { 0 }];
        is_on_disk(&head).then(|| std::ptr::read_unaligned(datum.cast()))
    }
}

/// The first byte of a pointer to a value that is elsewhere.
const EXTERNAL: u8 = if cfg!(target_endian = "little") {
    0x01
} else {
    0x80
};

/// Whether bytes begin as a pointer to a stored value does.
fn is_on_disk(bytes: &[u8]) -> bool {
    bytes.starts_with(&[EXTERNAL, pg_sys::vartag_external::VARTAG_ONDISK as u8])
}

/// Reads stored values, those of one row at a time. Its memory is freed on drop, or with the transaction.
#[derive(Default)]
pub struct LargeValues(Option<(Transaction, pg_sys::MemoryContext)>);

impl LargeValues {
    /// The values as UTF-8 text; those that were read before are freed. PostgreSQL raises what cannot be
    /// read.
    ///
    /// # Errors
    /// For text that is not UTF-8; XX000 for what is no pointer to a stored value; 25P01 outside of a
    /// transaction.
    pub fn read(&mut self, stored: impl Iterator<Item = Stored>) -> Result<Vec<&str>> {
        xact::require()?;
        self.0.take_if(|(of, _)| of.is_over());
        // SAFETY: the context lives until drop, and the texts in it until the next call, for which they
        // must have gone. A snapshot is what reading a stored value asks for; an ERROR in between resets
        // the stack of them.
        unsafe {
            let (_, context) = *self.0.get_or_insert_with(|| {
                let context = pg_sys::AllocSetContextCreateInternal(
                    pg_sys::TopTransactionContext,
                    c"pg_rowsync large values".as_ptr(),
                    pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
                );
                (Transaction::current(), context)
            });
            pg_sys::MemoryContextReset(context);
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            let inside = Inside::switch(context);
            let texts = stored
                .map(|one| {
                    if !one.is_sound() {
                        return Err(Error::internal("a large value is not where it was"));
                    }
                    let datum = pg_sys::Datum::from(one.pointer.as_ptr());
                    let function = pg_sys::Oid::from(one.output);
                    let escapes = one.output == pg_sys::F_BYTEAOUT && !output::bytea_is_hex();
                    let _settings = escapes.then(output::pinned);
                    text::to_utf8(pg_sys::OidOutputFunctionCall(function, datum))
                })
                .collect();
            drop(inside);
            pg_sys::PopActiveSnapshot();
            texts
        }
    }
}

/// Allocations go to a memory context while this lives.
pub(super) struct Inside(pg_sys::MemoryContext);

impl Inside {
    /// From now on.
    ///
    /// # Safety
    /// The context must live on.
    pub unsafe fn switch(to: pg_sys::MemoryContext) -> Self {
        // SAFETY: by the caller; the one that was current is made so again on drop.
        Self(unsafe { pg_sys::MemoryContextSwitchTo(to) })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // SAFETY: the context that was current before.
        unsafe { pg_sys::MemoryContextSwitchTo(self.0) };
    }
}

impl Drop for LargeValues {
    fn drop(&mut self) {
        if let Some((of, context)) = self.0
            && !of.is_over()
        {
            // SAFETY: created by read() in this transaction, deleted once; nothing else points into it.
            unsafe { pg_sys::MemoryContextDelete(context) }
        }
    }
}
