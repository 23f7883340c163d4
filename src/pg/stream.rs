//! Rows of a query as they come, each in the forms that COPY reads.
//!
//! The query runs to its end inside of one call and holds no more than a row: whoever takes the rows sends
//! them on, and may wait for that. What is raised meanwhile, by the query or by an output function, unwinds
//! as everything does that the server raises.

use super::Oid;
use super::compat;
use super::context::{AsUser, Settings};
use super::large::Inside;
use super::output;
use super::snapshot::Snapshot;
use super::text;
use super::xact;
use crate::error::{Error, Result};
use pgrx::pg_sys::{self, Datum};
use pgrx::prelude::pg_guard;

/// How a value is written in binary form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// An integer, or something that is one, of so many bytes.
    Word(u8),
    /// The bytes as they are stored.
    Bytes,
    /// As the type's send function says.
    Sent,
}

impl Form {
    fn of(type_oid: pg_sys::Oid) -> Self {
        match type_oid {
            pg_sys::BOOLOID => Self::Word(1),
            pg_sys::INT2OID => Self::Word(2),
            pg_sys::INT4OID | pg_sys::FLOAT4OID | pg_sys::DATEOID => Self::Word(4),
            pg_sys::INT8OID | pg_sys::FLOAT8OID => Self::Word(8),
            pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID => Self::Word(8),
            pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID => Self::Bytes,
            pg_sys::BYTEAOID => Self::Bytes,
            _ => Self::Sent,
        }
    }
}

struct Column {
    form: Form,
    output: pg_sys::FmgrInfo,
    send: Option<pg_sys::FmgrInfo>,
    type_oid: pg_sys::Oid,
}

/// The row that a query has come to.
pub struct StreamedRow<'q> {
    columns: &'q mut [Column],
    values: &'q [Datum],
    nulls: &'q [bool],
    /// Where the functions live.
    context: pg_sys::MemoryContext,
}

impl StreamedRow<'_> {
    /// Appends its first columns as a tuple of COPY's binary form.
    ///
    /// # Errors
    /// XX000 where the row has not so many.
    pub fn put_binary(&mut self, columns: usize, out: &mut Vec<u8>) -> Result<()> {
        out.extend((columns as i16).to_be_bytes());
        for at in 0..columns {
            let Some(value) = self.value(at)? else {
                out.extend((-1i32).to_be_bytes());
                continue;
            };
            let column = &mut self.columns[at];
            match column.form {
                Form::Word(size) => {
                    out.extend(i32::from(size).to_be_bytes());
                    let bytes = (value.value() as u64).to_be_bytes();
                    out.extend(&bytes[8 - usize::from(size)..]);
                }
                // SAFETY: a value of a variable length type; its copy lives as long as the row.
                Form::Bytes => unsafe {
                    let plain = pg_sys::pg_detoast_datum_packed(value.cast_mut_ptr());
                    let bytes = pgrx::varlena::varlena_to_byte_slice(plain);
                    out.extend((bytes.len() as i32).to_be_bytes());
                    out.extend(bytes);
                },
                // SAFETY: a value of the type whose send function this is.
                Form::Sent => unsafe {
                    if column.send.is_none() {
                        let mut function = pg_sys::InvalidOid;
                        let mut varlena = false;
                        pg_sys::getTypeBinaryOutputInfo(
                            column.type_oid,
                            &mut function,
                            &mut varlena,
                        );
                        let mut send = pg_sys::FmgrInfo::default();
                        pg_sys::fmgr_info_cxt(function, &mut send, self.context);
                        column.send = Some(send);
                    }
                    let Some(send) = &mut column.send else {
                        continue;
                    };
                    let sent = pg_sys::SendFunctionCall(send, value);
                    let bytes = pgrx::varlena::varlena_to_byte_slice(sent);
                    out.extend((bytes.len() as i32).to_be_bytes());
                    out.extend(bytes);
                },
            }
        }
        Ok(())
    }

    /// Appends its first columns as a line of COPY's text form.
    ///
    /// # Errors
    /// As for [`StreamedRow::put_binary`], and for text that is not UTF-8.
    pub fn put_text(&mut self, columns: usize, out: &mut Vec<u8>) -> Result<()> {
        for at in 0..columns {
            if at > 0 {
                out.push(b'\t');
            }
            let Some(value) = self.value(at)? else {
                out.extend(b"\\N");
                continue;
            };
            // SAFETY: a value of the type whose output function this is; the text lives as long as the row.
            let text = unsafe {
                text::to_utf8(pg_sys::OutputFunctionCall(
                    &mut self.columns[at].output,
                    value,
                ))?
            };
            for byte in text.bytes() {
                match byte {
                    b'\\' => out.extend(b"\\\\"),
                    b'\t' => out.extend(b"\\t"),
                    b'\n' => out.extend(b"\\n"),
                    b'\r' => out.extend(b"\\r"),
                    _ => out.push(byte),
                }
            }
        }
        out.push(b'\n');
        Ok(())
    }

    /// The text of some of its columns; `None` is NULL.
    ///
    /// # Errors
    /// As for [`StreamedRow::put_text`].
    pub fn texts(&mut self, columns: impl Iterator<Item = usize>) -> Result<Vec<Option<String>>> {
        columns
            .map(|at| {
                let Some(value) = self.value(at)? else {
                    return Ok(None);
                };
                // SAFETY: as above; copied at once.
                let text = unsafe {
                    text::to_utf8(pg_sys::OutputFunctionCall(
                        &mut self.columns[at].output,
                        value,
                    ))?
                };
                Ok(Some(text.to_owned()))
            })
            .collect()
    }

    fn value(&self, at: usize) -> Result<Option<Datum>> {
        match (self.values.get(at), self.nulls.get(at)) {
            (Some(value), Some(false)) => Ok(Some(*value)),
            (Some(_), Some(true)) => Ok(None),
            _ => Err(Error::internal("a row has fewer columns than expected")),
        }
    }
}

/// Takes a row; false if no more are wanted.
type Take<'t> = &'t mut dyn FnMut(&mut StreamedRow<'_>) -> Result<bool>;

/// What the executor hands rows to. The server's part comes first: it knows no more of it.
#[repr(C)]
struct Receiver<'t> {
    server: pg_sys::DestReceiver,
    take: Take<'t>,
    columns: Vec<Column>,
    failure: Option<Error>,
    /// Of one row.
    row: pg_sys::MemoryContext,
    /// Of the query.
    context: pg_sys::MemoryContext,
}

/// The settings under which `reader` reads, while it lives.
struct AsReader {
    _settings: Settings,
    _text: Option<Settings>,
    _identity: AsUser,
}

impl AsReader {
    /// Switches to `reader`, with the restrictions of a security-definer operation.
    fn switch(reader: Oid) -> Self {
        let identity = AsUser::switch(reader);
        let text = output::pinned();
        let settings = Settings::set(&[
            (c"search_path", c"pg_catalog, pg_temp"),
            (c"enable_seqscan", c"off"),
            (c"enable_sort", c"off"),
            (c"enable_hashjoin", c"off"),
            (c"enable_mergejoin", c"off"),
            (c"jit", c"off"),
            (c"row_security", c"off"),
        ]);
        Self {
            _settings: settings,
            _text: text,
            _identity: identity,
        }
    }
}

/// Calls what reads and compares values that rows of a moment have, as [`each`] reads the rows.
///
/// # Errors
/// What `call` reports; 25P01 outside of a transaction.
pub fn among<T>(moment: &Snapshot, reader: Oid, call: impl FnOnce() -> Result<T>) -> Result<T> {
    xact::require()?;
    let _reader = AsReader::switch(reader);
    let snapshot = moment.get()?;
    // SAFETY: a registered snapshot. Functions that are called may look at tables, for which one must be active. Where
    // the call raises, the transaction's abort takes it off the stack.
    unsafe { pg_sys::PushActiveSnapshot(snapshot) }
    let result = call();
    // SAFETY: the one that was put there above: who calls functions leaves the stack as it was.
    unsafe { pg_sys::PopActiveSnapshot() }
    result
}

/// Runs a query as of a moment and hands its rows to `take` until that wants no more: all of it as `reader`,
/// with the restrictions of a security-definer operation. Plans of the query use the indexes that there are and sort
/// nothing that an index has in order.
///
/// # Errors
/// What `take` reports; 25P01 outside of a transaction. PostgreSQL raises what the query does.
pub fn each(moment: &Snapshot, reader: Oid, sql: &str, take: Take<'_>) -> Result<()> {
    xact::require()?;
    let _reader = AsReader::switch(reader);
    let source = text::to_server(sql)?;
    let snapshot = moment.get()?;
    // SAFETY: SPI calls in their order; what they raise unwinds, and the transaction's abort then cleans up
    // SPI, the snapshot stack and the memory, so only the successful path ends them here. The receiver lives
    // through the call that is told of it.
    unsafe {
        pg_sys::PushActiveSnapshot(snapshot);
        if pg_sys::SPI_connect() != pg_sys::SPI_OK_CONNECT as i32 {
            pgrx::error!("SPI_connect failed");
        }
        let context = |parent| {
            pg_sys::AllocSetContextCreateInternal(
                parent,
                c"pg_rowsync stream".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        };
        let whole = context(pg_sys::CurrentMemoryContext);
        let mut receiver = Receiver {
            server: pg_sys::DestReceiver {
                receiveSlot: Some(receive),
                rStartup: Some(startup),
                rShutdown: Some(ignore),
                rDestroy: Some(ignore),
                mydest: pg_sys::CommandDest::DestTuplestore,
            },
            take,
            columns: Vec::new(),
            failure: None,
            row: context(whole),
            context: whole,
        };
        let options = pg_sys::SPIExecuteOptions {
            read_only: true,
            dest: (&raw mut receiver).cast(),
            ..Default::default()
        };
        let code = pg_sys::SPI_execute_extended(source.as_ptr(), &options);
        if code < 0 {
            pgrx::error!("SPI_execute_extended failed: code {code}");
        }
        let failure = receiver.failure.take();
        drop(receiver);
        pg_sys::SPI_finish();
        pg_sys::PopActiveSnapshot();
        failure.map_or(Ok(()), Err)
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn startup(
    _this: *mut pg_sys::DestReceiver,
    _operation: i32,
    _shape: pg_sys::TupleDesc,
) {
}

#[pg_guard]
unsafe extern "C-unwind" fn ignore(_this: *mut pg_sys::DestReceiver) {}

#[pg_guard]
unsafe extern "C-unwind" fn receive(
    slot: *mut pg_sys::TupleTableSlot,
    this: *mut pg_sys::DestReceiver,
) -> bool {
    // SAFETY: the receiver that each() has handed to the executor, which has no other reference to it; a slot
    // of the query's, whose arrays have an element for each of its columns.
    unsafe {
        let receiver = &mut *this.cast::<Receiver<'_>>();
        pg_sys::slot_getallattrs(slot);
        let shape = (*slot).tts_tupleDescriptor;
        let number = (*shape).natts as usize;
        if receiver.columns.is_empty() {
            for at in 0..number {
                let type_oid = (*compat::attribute(shape, at)).atttypid;
                let mut function = pg_sys::InvalidOid;
                let mut varlena = false;
                pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut varlena);
                let mut output = pg_sys::FmgrInfo::default();
                pg_sys::fmgr_info_cxt(function, &mut output, receiver.context);
                let form = Form::of(type_oid);
                receiver.columns.push(Column {
                    form,
                    output,
                    send: None,
                    type_oid,
                });
            }
        }
        let taken = {
            let _memory = Inside::switch(receiver.row);
            let mut row = StreamedRow {
                columns: &mut receiver.columns,
                values: std::slice::from_raw_parts((*slot).tts_values, number),
                nulls: std::slice::from_raw_parts((*slot).tts_isnull, number),
                context: receiver.context,
            };
            (receiver.take)(&mut row)
        };
        pg_sys::MemoryContextReset(receiver.row);
        taken.unwrap_or_else(|error| {
            receiver.failure = Some(error);
            false
        })
    }
}
