//! What the last drain of an owner's records was about to commit on a server. It is noted before that is done, and
//! stays noted when the local transaction is rolled back or the server crashes: the next drain asks what became
//! of the remote transaction, and knows which records are there.
//!
//! Each owner has a row for each server, made with the first records or by the first drain, and overwritten in
//! place from then on, see [`in_place`]. The drain lock of the server keeps all others away from it. Where two
//! transactions have made one at once, the note that was written last counts.

use crate::error::{Error, Result};
use crate::pg::in_place::{self, Place};
use crate::pg::spi::{self, Extension};
use crate::pg::{Oid, sequence};
use crate::sql::quote::ident;
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

const TABLE: &str = "sync_drain";

/// Bytes of the column, as `sql/tables.sql` says.
const ROOM: usize = 7_000;

/// Bytes of a note around its lists, at most.
const AROUND: usize = 4 + 4 * 8 + 2 * 3 + 8;

/// What a drain was about to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The full id of its transaction on the server.
    pub xact: i64,
    /// Where that was, see [`place_of`].
    pub place: i64,
    /// No record of the lane behind this one was applied.
    pub until: i64,
    /// The records that it has applied, from the oldest. Lists are `None` where they were too long, and their
    /// records too far apart, to be noted.
    pub applied: Option<Vec<i64>>,
    /// The records that were known to be there before, and are removed with it: if it is rolled back here, they are
    /// in the queue again.
    pub there: Option<Vec<i64>>,
}

/// Identifies a place by what is said of it, and a server that was not started since by when it was.
pub fn place_of(place: &str, started: &str) -> i64 {
    let mut hasher = SipHasher13::new();
    hasher.write(place.as_bytes());
    hasher.write_u8(0);
    hasher.write(started.as_bytes());
    hasher.finish() as i64
}

/// A row of the table.
struct Row {
    place: Place,
    /// How many notes had been written before, and the note.
    note: Option<(u64, Note)>,
}

/// The note of an owner's last drain; `None` if there is none that can be read.
///
/// # Errors
/// What reading the table reports.
pub fn read(extension: &Extension, server_name: &str, owner: &str) -> Result<Option<Note>> {
    let rows = rows(extension, server_name, owner)?;
    let notes = rows.into_iter().filter_map(|row| row.note);
    Ok(notes.max_by_key(|(count, _)| *count).map(|(_, note)| note))
}

/// Writes the note of a drain that is about to be committed. Where there is no row for it yet, the next one will
/// find one, if this transaction is committed.
///
/// # Errors
/// What reading or writing the table reports.
pub fn write(extension: &Extension, server_name: &str, owner: &str, note: &Note) -> Result<()> {
    let rows = rows(extension, server_name, owner)?;
    let before = rows.iter().filter_map(|row| row.note.as_ref());
    let count = before.map(|(count, _)| *count).max().unwrap_or_default() + 1;
    match rows.first() {
        Some(row) => {
            let bytes = encode(count, note);
            in_place::overwrite(extension, TABLE, c"note", &row.place, &bytes)?;
            Ok(())
        }
        None => insert(extension, server_name, owner),
    }
}

/// Sees to it that there is a row, for when this transaction is committed.
///
/// # Errors
/// What reading or writing the table reports.
pub fn prepare(extension: &Extension, server_name: &str, owner: Oid) -> Result<()> {
    let owner = owner.to_u32().to_string();
    let sql = format!(
        "SELECT id FROM {}.{TABLE} WHERE dst_server = $1 AND owner::oid = $2::oid LIMIT 1",
        ident(&extension.schema)
    );
    if spi::read(extension, &sql, &[Some(server_name), Some(&owner)])?.is_empty() {
        insert(extension, server_name, &owner)?;
    }
    Ok(())
}

fn insert(extension: &Extension, server_name: &str, owner: &str) -> Result<()> {
    let id = sequence::draw(extension, "sync_drain_id_seq", 1)?.to_string();
    let sql = format!(
        "INSERT INTO {}.{TABLE} (id, dst_server, owner) OVERRIDING SYSTEM VALUE \
         VALUES ($1::int8, $2, $3::oid)",
        ident(&extension.schema)
    );
    let args = [Some(&*id), Some(server_name), Some(owner)];
    spi::write(extension, &sql, &args).map(drop)
}

fn rows(extension: &Extension, server_name: &str, owner: &str) -> Result<Vec<Row>> {
    // As much of the note as there is: the rest is zeros.
    let sql = format!(
        "SELECT id, ctid::text, encode(substr(note, 1, \
            4 + (get_byte(note, 2) << 8) + get_byte(note, 3)), 'hex') \
         FROM {}.{TABLE} WHERE dst_server = $1 AND owner::oid = $2::oid ORDER BY id",
        ident(&extension.schema)
    );
    let rows: Vec<(i64, String, String)> =
        spi::select(extension, &sql, &[Some(server_name), Some(owner)])?;
    rows.into_iter()
        .map(|(id, ctid, note)| {
            Ok(Row {
                place: Place::new(&ctid, id)?,
                note: decode(&from_hex(&note)?),
            })
        })
        .collect()
}

fn from_hex(text: &str) -> Result<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| {
            let digits = std::str::from_utf8(pair).ok();
            digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())
        })
        .collect::<Option<_>>()
        .ok_or_else(|| Error::internal("malformed note of a drain"))
}

/// The forms in which ids are noted.
const UNKNOWN: u8 = 0;
/// Alternately how many ids are left out and how many follow each other, from 0 on.
const RUNS: u8 = 1;
/// The first id, then a bit for each one from there on.
const BITS: u8 = 2;

/// Four bytes of length, big-endian; count, transaction, place, last record; two lists, each with its form and its
/// length; a hash of all of this.
fn encode(count: u64, note: &Note) -> Vec<u8> {
    let mut body = Vec::new();
    for number in [count as i64, note.xact, note.place, note.until] {
        body.extend(number.to_be_bytes());
    }
    let lists = [&note.there, &note.applied].map(|list| match list {
        Some(ids) => shortest(ids),
        None => (UNKNOWN, Vec::new()),
    });
    let mut left = ROOM - AROUND;
    for (form, ids) in lists {
        let (form, ids) = if ids.len() <= left {
            (form, ids)
        } else {
            (UNKNOWN, Vec::new())
        };
        left -= ids.len();
        body.push(form);
        body.extend((ids.len() as u16).to_be_bytes());
        body.extend(ids);
    }
    body.extend(hash(&body).to_be_bytes());
    [&(body.len() as u32).to_be_bytes(), &body[..]].concat()
}

/// What [`encode`] has written; `None` for anything else.
fn decode(bytes: &[u8]) -> Option<(u64, Note)> {
    let (length, body) = bytes.split_first_chunk::<4>()?;
    let body = body.get(..u32::from_be_bytes(*length) as usize)?;
    let (body, written) = body.split_last_chunk::<8>()?;
    if hash(body) != u64::from_be_bytes(*written) {
        return None;
    }
    let (numbers, rest) = body.split_at_checked(32)?;
    let mut numbers = numbers.as_chunks::<8>().0.iter();
    let mut next = || numbers.next().map(|bytes| i64::from_be_bytes(*bytes));
    let count = next()?;
    let xact = next()?;
    let place = next()?;
    let until = next()?;
    let (there, rest) = decode_list(rest)?;
    let (applied, _) = decode_list(rest)?;
    let note = Note {
        xact,
        place,
        until,
        applied,
        there,
    };
    Some((count as u64, note))
}

/// A list and what follows it.
fn decode_list(bytes: &[u8]) -> Option<(Option<Vec<i64>>, &[u8])> {
    let ([form, high, low], rest) = bytes.split_first_chunk::<3>()?;
    let (ids, rest) = rest.split_at_checked(usize::from(*high) << 8 | usize::from(*low))?;
    let ids = match *form {
        RUNS => Some(from_runs(ids)?),
        BITS => Some(from_bits(ids)?),
        _ => None,
    };
    Some((ids, rest))
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Ids in the form that takes less room. They are positive, and in order.
fn shortest(ids: &[i64]) -> (u8, Vec<u8>) {
    let runs = runs(ids);
    match (ids.first(), ids.last()) {
        (Some(first), Some(last)) if ((last - first) / 8 + 9) < runs.len() as i64 => {
            (BITS, bits(ids, *first))
        }
        _ => (RUNS, runs),
    }
}

fn runs(ids: &[i64]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut next = 0;
    for run in ids.chunk_by(|one, other| one + 1 == *other) {
        push_number(&mut bytes, run[0] - next);
        push_number(&mut bytes, run.len() as i64);
        next = run[0] + run.len() as i64;
    }
    bytes
}

/// So many ids at most come of a note, whatever it says.
const MOST: i64 = 10_000_000;

fn from_runs(bytes: &[u8]) -> Option<Vec<i64>> {
    let mut ids = Vec::new();
    let mut next = 0i64;
    let mut bytes = bytes.iter();
    while bytes.len() > 0 {
        let first = next.checked_add(take_number(&mut bytes)?)?;
        let count = take_number(&mut bytes).filter(|count| *count <= MOST)?;
        next = first.checked_add(count)?;
        ids.extend(first..next);
    }
    Some(ids)
}

fn bits(ids: &[i64], first: i64) -> Vec<u8> {
    let mut bytes = first.to_be_bytes().to_vec();
    for id in ids {
        let at = (id - first) as usize;
        bytes.resize(bytes.len().max(8 + at / 8 + 1), 0);
        bytes[8 + at / 8] |= 1 << (at % 8);
    }
    bytes
}

fn from_bits(bytes: &[u8]) -> Option<Vec<i64>> {
    let (first, bits) = bytes.split_first_chunk::<8>()?;
    let first = i64::from_be_bytes(*first);
    let is_set = |at: &i64| bits[(at / 8) as usize] & 1 << (at % 8) != 0;
    let set = (0..bits.len() as i64 * 8).filter(is_set);
    set.map(|at| first.checked_add(at)).collect()
}

/// Seven bits a byte, from the lowest; the last byte is below 128.
fn push_number(bytes: &mut Vec<u8>, mut number: i64) {
    while number > 0x7f {
        bytes.push(0x80 | (number & 0x7f) as u8);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take_number<'b>(bytes: &mut impl Iterator<Item = &'b u8>) -> Option<i64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let byte = *bytes.next()?;
        number |= i64::from(byte & 0x7f) << shift;
        if byte <= 0x7f {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn note(there: Option<Vec<i64>>, applied: Option<Vec<i64>>) -> Note {
        Note {
            xact: 7_000_000_000,
            place: -3,
            until: i64::MAX,
            applied,
            there,
        }
    }

    fn read_back(note: &Note) -> Note {
        let bytes = encode(9, note);
        assert!(bytes.len() <= ROOM, "{}", bytes.len());
        let (count, read) = decode(&bytes).expect("a note");
        assert_eq!(count, 9);
        read
    }

    #[test]
    fn a_visit_fits_whatever_is_between_its_records() {
        for step in [1, 2, 3, 5, 10] {
            let ids: Vec<i64> = (0..5_000)
                .map(|at| i64::from(at) * step + (1 << 40))
                .collect();
            let note = note(Some(vec![1, 2, 3]), Some(ids));
            assert_eq!(read_back(&note), note, "{step}");
        }
        let all = note(Some(Vec::new()), Some((1..1_000_000).collect()));
        assert_eq!(read_back(&all), all);
    }

    #[test]
    fn what_does_not_fit_is_not_known() {
        let apart = || Some((0..9_000).map(|at| at * 1_000).collect());
        let few = || Some(vec![7, 8]);
        assert_eq!(read_back(&note(few(), apart())), note(few(), None));
        assert_eq!(read_back(&note(apart(), few())), note(None, few()));
        assert_eq!(read_back(&note(None, None)), note(None, None));
    }

    #[test]
    fn what_nobody_has_written_is_no_note() {
        assert_eq!(decode(&[0; ROOM]), None);
        let good = encode(1, &note(Some(vec![1]), Some(vec![3, 4, 9])));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(decode(&bad), None, "{at}");
            assert_eq!(decode(&good[..at]), None, "{at}");
        }
    }

    proptest! {
        #[test]
        fn any_ids_are_read_back(
            there in prop::collection::btree_set(1i64..9_000, 0..900),
            applied in prop::collection::btree_set(1i64..20_000, 0..2_000),
        ) {
            let list = |ids: std::collections::BTreeSet<i64>| Some(ids.into_iter().collect());
            let note = note(list(there), list(applied));
            prop_assert_eq!(read_back(&note), note);
        }
    }
}
