//! Rows to text: the columns of a trigger's rows through their types' output functions.

use super::context::Settings;
use super::large::{self, Stored};
use super::plain::{Plain, Room};
use super::text;
use super::trigger::Slot;
use crate::error::Result;
use pgrx::pg_sys;

/// A column to read: its number (from 1) and its type.
#[derive(Clone, Copy, Debug)]
pub struct Attribute {
    pub number: i16,
    pub type_oid: pg_sys::Oid,
}

/// Output functions for chosen columns of one table, looked up once. Freed on drop with whatever
/// the functions cached in their memory context.
pub struct RowReader {
    columns: Vec<Column>,
    context: pg_sys::MemoryContext,
}

struct Column {
    number: i16,
    output: pg_sys::FmgrInfo,
    /// What mostly spares the call of it.
    plain: Option<Plain>,
    /// Whether the type's values may be stored out of line.
    varlena: bool,
}

impl RowReader {
    /// A reader of the given columns, in the given order. PostgreSQL raises what it cannot find.
    pub fn new(attributes: &[Attribute]) -> Self {
        // SAFETY: the context lives until drop; FmgrInfo is plain data whose extras live in it.
        unsafe {
            let context = pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                c"pg_rowsync row reader".as_ptr(),
                pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
            );
            let mut reader = Self { columns: Vec::with_capacity(attributes.len()), context };
            for attribute in attributes {
                let mut function = pg_sys::InvalidOid;
                let mut varlena = false;
                pg_sys::getTypeOutputInfo(attribute.type_oid, &mut function, &mut varlena);
                let mut output = pg_sys::FmgrInfo::default();
                pg_sys::fmgr_info_cxt(function, &mut output, context);
                let (number, plain) = (attribute.number, Plain::of(function));
                reader.columns.push(Column { number, output, plain, varlena });
            }
            reader
        }
    }

    /// The columns of a row as UTF-8 text; `None` is NULL. The text lives until the call of the
    /// trigger returns. Output functions may run user-defined code, and raise.
    ///
    /// # Errors
    /// For text that is not UTF-8.
    pub fn read<'call>(&mut self, slot: Slot<'call>) -> Result<Vec<Option<&'call str>>> {
        self.read_but(slot, |_| false)
    }

    /// The same, with empty text for columns at the positions that `left_out` says.
    ///
    /// # Errors
    /// As for [`RowReader::read`].
    pub fn read_but<'call>(
        &mut self,
        slot: Slot<'call>,
        left_out: impl Fn(usize) -> bool,
    ) -> Result<Vec<Option<&'call str>>> {
        // SAFETY: the slot is the server's and filled; numbers are within its descriptor, since
        // the reader was made for this table and is re-made when the table changes. Results are
        // in the row or palloc'd in the trigger's per-row context, which both outlive the call.
        unsafe {
            self.fill(slot);
            let (values, nulls) = ((*slot.slot).tts_values, (*slot.slot).tts_isnull);
            let mut row = Vec::with_capacity(self.columns.len());
            let mut room = Room::new(self.columns.len());
            for (position, column) in self.columns.iter_mut().enumerate() {
                let at = column.number as usize - 1;
                if *nulls.add(at) {
                    row.push(None);
                    continue;
                }
                let value = *values.add(at);
                row.push(Some(if left_out(position) {
                    ""
                } else if let Some(text) = column.plain.and_then(|p| p.text(value, &mut room)) {
                    text
                } else {
                    text::to_utf8(pg_sys::OutputFunctionCall(&mut column.output, value))?
                }));
            }
            Ok(row)
        }
    }
}

impl RowReader {
    /// Makes the slot's values available.
    ///
    /// # Safety
    /// The slot must be of the table that the reader was made for.
    unsafe fn fill(&self, slot: Slot<'_>) {
        let last = self.columns.iter().map(|column| column.number).max().unwrap_or(0);
        // SAFETY: the column numbers are within the slot's descriptor.
        unsafe {
            if (*slot.slot).tts_nvalid < last {
                pg_sys::slot_getsomeattrs_int(slot.slot, i32::from(last));
            }
        }
    }

    /// Positions of the columns whose value is stored out of line and can be read later, each with what it
    /// is read by.
    pub fn stored(&self, slot: Slot<'_>) -> Vec<(usize, Stored)> {
        // SAFETY: the slot is of this table.
        unsafe {
            self.fill(slot);
            let stored =
                |column: &Column| Stored::new(column.output.fn_oid, pointer_in(slot, column)?);
            let columns = self.columns.iter().enumerate();
            columns.filter_map(|(at, column)| Some((at, stored(column)?))).collect()
        }
    }

    /// Positions of the columns whose value is stored out of line and is the same stored value in
    /// both rows: an UPDATE that does not touch such a column keeps its TOAST pointer.
    pub fn untouched(&self, old: Slot<'_>, new: Slot<'_>) -> Vec<usize> {
        // SAFETY: both slots are of this table.
        unsafe {
            self.fill(old);
            self.fill(new);
            let same = |column: &Column| {
                pointer_in(new, column).is_some_and(|new| pointer_in(old, column) == Some(new))
            };
            let columns = self.columns.iter().enumerate();
            columns.filter(|(_, column)| same(column)).map(|(at, _)| at).collect()
        }
    }
}

/// The pointer to the value of a column, if it is stored out of line.
///
/// # Safety
/// The slot must be filled up to the column, which its table has.
unsafe fn pointer_in(slot: Slot<'_>, column: &Column) -> Option<large::Pointer> {
    let at = column.number as usize - 1;
    // SAFETY: a datum of a varlena type that is not null points to at least one byte, to a whole pointer
    // if that byte and the next say so.
    unsafe {
        if !column.varlena || *(*slot.slot).tts_isnull.add(at) {
            return None;
        }
        large::pointer((*(*slot.slot).tts_values.add(at)).cast_mut_ptr::<u8>())
    }
}

impl Drop for RowReader {
    fn drop(&mut self) {
        // SAFETY: created by new(), deleted once; nothing else points into it.
        unsafe { pg_sys::MemoryContextDelete(self.context) }
    }
}

/// Output settings under which text reads back as the same value anywhere, for sessions or types
/// whose output depends on more.
pub fn canonical_output() -> Settings {
    Settings::set(&[
        (c"datestyle", c"ISO"),
        (c"intervalstyle", c"postgres"),
        (c"extra_float_digits", c"3"),
        (c"lc_monetary", c"C"),
        (c"search_path", c"pg_catalog"),
    ])
}
