//! Arrays in PostgreSQL's binary form, for types whose text takes a server long to read: a point in time
//! takes it twenty times longer than all else that it does with a small value, and of a large text it looks
//! at every character of the array for what was quoted.
//!
//! The array says which type its elements have, and the parameter is declared so: a server whose column
//! is of another type converts it without loss, as it would the text, or refuses it. For text, which can be
//! converted into too much, the statement refuses all others, see [`super::values`].
//! The form is that of `array_send` and of the types' own send functions.

use crate::change::Binary;
use crate::timestamp;

impl Binary {
    /// OID of the type, and of arrays of it (`pg_type.dat`; they never change).
    fn oids(self) -> (u32, u32) {
        match self {
            Self::Int2 => (21, 1005),
            Self::Int4 => (23, 1007),
            Self::Int8 => (20, 1016),
            Self::Timestamp => (1114, 1115),
            Self::TimestampTz => (1184, 1185),
            Self::Text => (25, 1009),
        }
    }

    /// The type with this OID.
    pub fn of_type(oid: u32) -> Option<Self> {
        const VARCHAR: u32 = 1043;
        if oid == VARCHAR {
            return Some(Self::Text);
        }
        let all = [
            Self::Text,
            Self::Int2,
            Self::Int4,
            Self::Int8,
            Self::Timestamp,
            Self::TimestampTz,
        ];
        all.into_iter().find(|one| one.oids().0 == oid)
    }

    /// Appends a value's length and bytes. `None` for text that does not follow the usual form.
    fn append(self, text: &str, to: &mut Vec<u8>) -> Option<()> {
        match self {
            Self::Int2 => append(to, text.parse::<i16>().ok()?.to_be_bytes()),
            Self::Int4 => append(to, text.parse::<i32>().ok()?.to_be_bytes()),
            Self::Int8 => append(to, text.parse::<i64>().ok()?.to_be_bytes()),
            Self::Timestamp => {
                let (time, rest) = timestamp::read(text)?;
                rest.is_empty().then(|| append(to, time.to_be_bytes()))?;
            }
            Self::TimestampTz => {
                let (time, rest) = timestamp::read(text)?;
                let time = time - timestamp::offset(rest)? * 1_000_000;
                append(to, time.to_be_bytes());
            }
            Self::Text => {
                to.extend(u32::try_from(text.len()).ok()?.to_be_bytes());
                to.extend(text.as_bytes());
            }
        }
        Some(())
    }
}

fn append<const N: usize>(to: &mut Vec<u8>, bytes: [u8; N]) {
    to.extend((N as u32).to_be_bytes());
    to.extend(bytes);
}

/// An array that is being written.
#[derive(Clone, Debug, PartialEq)]
pub struct BinaryArray {
    kind: Binary,
    elements: Vec<u8>,
    number: u32,
    has_nulls: bool,
}

impl BinaryArray {
    /// An array without elements.
    pub fn new(kind: Binary) -> Self {
        Self {
            kind,
            elements: Vec::new(),
            number: 0,
            has_nulls: false,
        }
    }

    /// Appends an element from its text; `None` is NULL. False when the text has not the form that is
    /// understood here (infinity, years before Christ or of five digits).
    pub fn push(&mut self, value: Option<&str>) -> bool {
        self.number += 1;
        match value {
            Some(text) => self.kind.append(text, &mut self.elements).is_some(),
            None => {
                self.has_nulls = true;
                self.elements.extend(u32::MAX.to_be_bytes());
                true
            }
        }
    }

    /// Whether its elements are texts, of which there is none that has not the form.
    pub fn is_text(&self) -> bool {
        self.kind == Binary::Text
    }

    /// Bytes of its elements.
    pub fn len(&self) -> usize {
        self.elements.len()
    }

    /// OID of the array's type, and its bytes: number of dimensions, whether there are NULLs, type of the
    /// elements, their number, number of the first, then length and bytes of each.
    pub fn finish(self) -> (u32, Vec<u8>) {
        let (element, array) = self.kind.oids();
        let head = [1, self.has_nulls.into(), element, self.number, 1u32];
        let bytes = head
            .into_iter()
            .flat_map(u32::to_be_bytes)
            .chain(self.elements)
            .collect();
        (array, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(kind: Binary, text: &str) -> Option<i64> {
        let mut to = Vec::new();
        kind.append(text, &mut to)?;
        let value = to[4..]
            .iter()
            .fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        Some(value as i64)
    }

    #[test]
    fn points_in_time_are_microseconds_since_2000() {
        for (text, expected) in [
            ("2000-01-01 00:00:00", Some(0)),
            ("2000-01-01 00:00:00.000001", Some(1)),
            ("1999-12-31 23:59:59.5", Some(-500_000)),
            ("2024-02-29 12:30:15.25", Some(762_525_015_250_000)),
            ("2000-03-01 00:00:00", Some(60 * 86_400_000_000)),
            ("1900-03-01 00:00:00", Some(-36_465 * 86_400_000_000)),
            ("0001-01-01 00:00:00", Some(-63_082_281_600_000_000)),
            ("9999-12-31 23:59:59.999999", Some(252_455_615_999_999_999)),
            ("infinity", None),
            ("-infinity", None),
            ("0044-03-15 00:00:00 BC", None),
            ("10000-01-01 00:00:00", None),
            ("2024-01-01", None),
            ("2024-01-01 00:00:00+00", None),
            ("2024-13-01 00:00:00", None),
            ("2024-01-01 00:00:00.", None),
            ("", None),
        ] {
            assert_eq!(bytes(Binary::Timestamp, text), expected, "{text}");
        }
    }

    #[test]
    fn offsets_count_from_greenwich() {
        let hour = 3_600_000_000;
        for (text, expected) in [
            ("2000-01-01 02:00:00+02", Some(0)),
            ("1999-12-31 20:30:00-03:30", Some(0)),
            ("2000-01-01 00:19:32+00:19:32", Some(0)),
            ("2000-01-01 00:00:00-11", Some(11 * hour)),
            ("2000-01-01 00:00:00", None),
            ("2000-01-01 00:00:00+1", None),
            ("2000-01-01 00:00:00+01:00:00:00", None),
            ("2000-01-01 00:00:00 CET", None),
        ] {
            assert_eq!(bytes(Binary::TimestampTz, text), expected, "{text}");
        }
    }

    #[test]
    fn texts_are_their_bytes() {
        let mut array = BinaryArray::new(Binary::Text);
        assert!(array.push(Some("{\"\\")) && array.push(Some("")) && array.push(None));
        let expected = [
            [0, 0, 0, 1].as_slice(),
            &[0, 0, 0, 1],
            &[0, 0, 0, 25],
            &[0, 0, 0, 3],
            &[0, 0, 0, 1],
            &[0, 0, 0, 3, b'{', b'"', b'\\'],
            &[0; 4],
            &[0xff; 4],
        ];
        assert_eq!(array.finish(), (1009, expected.concat()));
    }

    #[test]
    fn an_array_has_a_head_and_lengths() {
        let mut array = BinaryArray::new(Binary::Int2);
        assert!(array.push(Some("-2")) && array.push(None) && !array.push(Some("70000")));
        let mut array = BinaryArray::new(Binary::Int2);
        assert!(array.push(Some("-2")) && array.push(None));
        let expected = [
            [0, 0, 0, 1].as_slice(),
            &[0, 0, 0, 1],
            &[0, 0, 0, 21],
            &[0, 0, 0, 2],
            &[0, 0, 0, 1],
            &[0, 0, 0, 2, 0xff, 0xfe],
            &[0xff; 4],
        ];
        assert_eq!(array.finish(), (1005, expected.concat()));
    }
}
