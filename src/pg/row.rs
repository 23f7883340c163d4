//! Rows to text: the columns of a trigger's rows through their types' output functions.

use super::large::{self, Inside, Stored};
use super::output;
use super::plain::{Plain, Room};
use super::slot::{Attribute, Slot};
use super::text;
use super::xact;
use crate::error::Result;
use pgrx::pg_sys;

/// Output functions for chosen columns of one table, looked up once. Freed on drop with whatever
/// the functions cached in their memory context.
pub struct RowReader {
    columns: Vec<Column>,
    /// That of them with the largest number.
    last: Option<Attribute>,
    context: pg_sys::MemoryContext,
}

struct Column {
    attribute: Attribute,
    output: pg_sys::FmgrInfo,
    /// What mostly spares the call of it.
    plain: Option<Plain>,
    /// Whether the type's values may be stored out of line.
    varlena: bool,
}

impl RowReader {
    /// A reader of the given columns, in the given order. PostgreSQL raises what it cannot find; 25P01
    /// outside of a transaction.
    pub fn new(attributes: &[Attribute]) -> Self {
        xact::demand();
        // SAFETY: the context lives until drop; FmgrInfo is plain data whose extras live in it.
        unsafe {
            let context = pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                c"pg_rowsync row reader".as_ptr(),
                pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
            );
            let mut reader = Self {
                columns: Vec::with_capacity(attributes.len()),
                last: attributes
                    .iter()
                    .copied()
                    .max_by_key(|attribute| attribute.number),
                context,
            };
            for attribute in attributes {
                let mut function = pg_sys::InvalidOid;
                let mut varlena = false;
                pg_sys::getTypeOutputInfo(attribute.type_oid, &mut function, &mut varlena);
                let mut output = pg_sys::FmgrInfo::default();
                pg_sys::fmgr_info_cxt(function, &mut output, context);
                let plain = Plain::of(function);
                reader.columns.push(Column {
                    attribute: *attribute,
                    output,
                    plain,
                    varlena,
                });
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

    /// The columns of a row as UTF-8 text, like [`RowReader::read`]; empty text for those at the positions
    /// that `left_out` accepts.
    ///
    /// # Errors
    /// As for [`RowReader::read`].
    pub fn read_but<'call>(
        &mut self,
        slot: Slot<'call>,
        left_out: impl Fn(usize) -> bool,
    ) -> Result<Vec<Option<&'call str>>> {
        let mut row = Vec::with_capacity(self.columns.len());
        // SAFETY: what is allocated lives as long as the call, as the context does.
        let _memory = unsafe { Inside::switch(slot.memory()) };
        let mut room = Room::new(slot, self.columns.len());
        self.fill(slot)?;
        for (position, column) in self.columns.iter_mut().enumerate() {
            let Some(value) = slot.datum(&column.attribute)? else {
                row.push(None);
                continue;
            };
            // SAFETY: a value of the column's type, whose output function this is, in a row that outlives the
            // call.
            row.push(Some(unsafe {
                if left_out(position) {
                    ""
                } else if let Some(text) = column.plain.and_then(|p| p.text(value, &mut room)) {
                    text
                } else {
                    let zoned = column.plain == Some(Plain::TimestampTz);
                    let _settings = zoned.then(output::pinned);
                    text::to_utf8(pg_sys::OutputFunctionCall(&mut column.output, value))?
                }
            }));
        }
        Ok(row)
    }
}

impl RowReader {
    /// Makes the slot's values available, all at once: one by one costs more.
    fn fill(&self, slot: Slot<'_>) -> Result<()> {
        match &self.last {
            Some(last) => slot.datum(last).map(drop),
            None => Ok(()),
        }
    }

    /// Positions of the columns whose value is stored out of line and can be read later, each with what it
    /// is read by.
    ///
    /// # Errors
    /// XX000 for a row of another table.
    pub fn stored(&self, slot: Slot<'_>) -> Result<Vec<(usize, Stored)>> {
        self.fill(slot)?;
        let mut found = Vec::new();
        for (at, column) in self.columns.iter().enumerate() {
            let stored = column.pointer_in(slot)?;
            let stored = stored.and_then(|pointer| Stored::new(column.output.fn_oid, pointer));
            found.extend(stored.map(|stored| (at, stored)));
        }
        Ok(found)
    }

    /// Positions of the columns whose value is stored out of line and is the same stored value in
    /// both rows: an UPDATE that does not touch such a column keeps its TOAST pointer.
    ///
    /// # Errors
    /// XX000 for rows of another table.
    pub fn untouched(&self, old: Slot<'_>, new: Slot<'_>) -> Result<Vec<usize>> {
        self.fill(old)?;
        self.fill(new)?;
        let mut same = Vec::new();
        for (at, column) in self.columns.iter().enumerate() {
            let pointer = column.pointer_in(new)?;
            if pointer.is_some() && column.pointer_in(old)? == pointer {
                same.push(at);
            }
        }
        Ok(same)
    }
}

impl Column {
    /// The pointer to the value of the column, if it is stored out of line.
    fn pointer_in(&self, slot: Slot<'_>) -> Result<Option<large::Pointer>> {
        if !self.varlena {
            return Ok(None);
        }
        let value = slot.datum(&self.attribute)?;
        // SAFETY: a datum of a varlena type that is not null points to at least one byte, to a whole pointer if
        // that byte and the next say so.
        Ok(value.and_then(|value| unsafe { large::pointer(value.cast_mut_ptr::<u8>()) }))
    }
}

impl Drop for RowReader {
    fn drop(&mut self) {
        // SAFETY: created by new(), deleted once; nothing else points into it.
        unsafe { pg_sys::MemoryContextDelete(self.context) }
    }
}
