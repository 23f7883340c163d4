//! Values whose text can be had without a call of the type's output function, which would say the same:
//! small ones are formatted here, text is where the row is.

use super::slot::Slot;
use super::text;
use crate::timestamp;
use pgrx::{pg_sys, varlena};

/// How a type's values become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plain {
    Int2,
    Int4,
    Int8,
    /// Where DateStyle is ISO.
    Timestamp,
    /// As in UTC, whatever the session's time zone.
    TimestampTz,
    /// text, varchar, char and json, in a database that is in UTF-8.
    Text,
}

impl Plain {
    /// What stands for an output function.
    pub fn of(output: pg_sys::Oid) -> Option<Self> {
        Some(match output.to_u32() {
            pg_sys::F_INT2OUT => Self::Int2,
            pg_sys::F_INT4OUT => Self::Int4,
            pg_sys::F_INT8OUT => Self::Int8,
            pg_sys::F_TIMESTAMP_OUT => Self::Timestamp,
            pg_sys::F_TIMESTAMPTZ_OUT => Self::TimestampTz,
            pg_sys::F_TEXTOUT | pg_sys::F_VARCHAROUT | pg_sys::F_BPCHAROUT | pg_sys::F_JSON_OUT
                if text::server_speaks_utf8() =>
            {
                Self::Text
            }
            _ => return None,
        })
    }

    /// A value as text; `None` where the output function has to be called: text that is compressed, stored
    /// out of line or not UTF-8, infinity and years of other than four digits.
    ///
    /// # Safety
    /// The value must be of the type, and live as long as `'call`.
    pub unsafe fn text<'call>(
        self,
        value: pg_sys::Datum,
        room: &mut Room<'call>,
    ) -> Option<&'call str> {
        let mut digits = itoa::Buffer::new();
        match self {
            Self::Int2 => Some(room.keep(digits.format(value.value() as i16).as_bytes())),
            Self::Int4 => Some(room.keep(digits.format(value.value() as i32).as_bytes())),
            Self::Int8 => Some(room.keep(digits.format(value.value() as i64).as_bytes())),
            Self::Timestamp | Self::TimestampTz => {
                let mut written = [0; timestamp::LONGEST];
                let length = timestamp::write(value.value() as i64, &mut written)?;
                if self == Self::Timestamp {
                    return Some(room.keep(&written[..length]));
                }
                let mut zoned = [0; LONGEST];
                zoned[..length].copy_from_slice(&written[..length]);
                let end = length + UTC.len();
                zoned[length..end].copy_from_slice(UTC);
                Some(room.keep(&zoned[..end]))
            }
            // SAFETY: a varlena by contract; one whose bytes follow its header.
            Self::Text => unsafe {
                let value = value.cast_mut_ptr::<pg_sys::varlena>();
                let is_here = varlena::varatt_is_4b_u(value)
                    || (varlena::varatt_is_1b(value) && !varlena::varatt_is_1b_e(value));
                let bytes = is_here.then(|| varlena::varlena_to_byte_slice(value))?;
                std::str::from_utf8(bytes).ok()
            },
        }
    }
}

/// Room for the formatted values of a row, that lives as long as the call that the row is of.
pub(super) struct Room<'call> {
    row: Slot<'call>,
    start: *mut u8,
    left: usize,
    /// For how many values there is to be room.
    values: usize,
}

/// How a point in time ends that was written in UTC.
const UTC: &[u8] = b"+00";

/// Bytes that a formatted value takes at most.
const LONGEST: usize = timestamp::LONGEST + UTC.len();

impl<'call> Room<'call> {
    /// Room for so many values of this row; taken when the first of them comes.
    pub fn new(row: Slot<'call>, values: usize) -> Self {
        Self {
            row,
            start: std::ptr::null_mut(),
            left: 0,
            values,
        }
    }

    /// A copy of ASCII characters.
    fn keep(&mut self, text: &[u8]) -> &'call str {
        debug_assert!(text.len() <= LONGEST && text.is_ascii());
        // SAFETY: what is allocated there lives as long as the call; a part of it is handed out once.
        unsafe {
            if self.left < text.len() {
                self.left = LONGEST * self.values.max(1);
                self.start = pg_sys::MemoryContextAlloc(self.row.memory(), self.left).cast();
            }
            let kept = self.start;
            kept.copy_from_nonoverlapping(text.as_ptr(), text.len());
            (self.start, self.left) = (kept.add(text.len()), self.left - text.len());
            std::str::from_utf8_unchecked(std::slice::from_raw_parts(kept, text.len()))
        }
    }
}
