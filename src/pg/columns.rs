//! Columns of result rows, by type: a row is read into a tuple, whose parts get their names where it is taken
//! apart.

use super::Oid;
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;

/// A result row: every column as text, `None` for NULL.
pub type Row = Vec<Option<String>>;

/// What a column of a row is read into.
pub trait Column: Sized {
    /// From the column's text; `None` is NULL.
    ///
    /// # Errors
    /// XX000 for a text of another type, and for NULL where that cannot be.
    fn of_text(text: Option<String>) -> Result<Self>;
}

fn present(text: Option<String>) -> Result<String> {
    text.ok_or_else(|| Error::internal("unexpected null"))
}

impl Column for String {
    fn of_text(text: Option<String>) -> Result<Self> {
        present(text)
    }
}

impl Column for bool {
    fn of_text(text: Option<String>) -> Result<Self> {
        match present(text)?.as_str() {
            "t" => Ok(true),
            "f" => Ok(false),
            _ => Err(Error::internal("malformed boolean")),
        }
    }
}

macro_rules! number {
    ($($type:ty),*) => {$(
        impl Column for $type {
            fn of_text(text: Option<String>) -> Result<Self> {
                let number = present(text)?.parse();
                number.map_err(|_| Error::internal("malformed number"))
            }
        }
    )*};
}

number!(i16, u16, i32, i64, u32, u64);

impl Column for Oid {
    fn of_text(text: Option<String>) -> Result<Self> {
        u32::of_text(text).map(Self::from)
    }
}

impl<T: Column> Column for Option<T> {
    fn of_text(text: Option<String>) -> Result<Self> {
        text.map(|text| T::of_text(Some(text))).transpose()
    }
}

/// A column of type `json`.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> Column for Json<T> {
    fn of_text(text: Option<String>) -> Result<Self> {
        let value = serde_json::from_str(&present(text)?);
        value
            .map(Self)
            .map_err(|_| Error::internal("malformed JSON"))
    }
}

/// What a row is read into: a tuple of columns, or its only column.
pub trait Columns: Sized {
    /// Takes the row apart.
    ///
    /// # Errors
    /// As for [`Column::of_text`]; XX000 for another number of columns.
    fn of_row(row: Row) -> Result<Self>;
}

fn another_number() -> Error {
    Error::internal("unexpected number of columns")
}

impl<T: Column> Columns for T {
    fn of_row(row: Row) -> Result<Self> {
        let [only] = <[_; 1]>::try_from(row).map_err(|_| another_number())?;
        T::of_text(only)
    }
}

macro_rules! tuple {
    ($number:literal: $($type:ident $column:ident),*) => {
        impl<$($type: Column),*> Columns for ($($type,)*) {
            fn of_row(row: Row) -> Result<Self> {
                let [$($column),*] =
                    <[_; $number]>::try_from(row).map_err(|_| another_number())?;
                Ok(($($type::of_text($column)?,)*))
            }
        }
    };
}

tuple!(2: A a, B b);
tuple!(3: A a, B b, C c);
tuple!(4: A a, B b, C c, D d);
tuple!(5: A a, B b, C c, D d, E e);
tuple!(6: A a, B b, C c, D d, E e, F f);
tuple!(7: A a, B b, C c, D d, E e, F f, G g);
tuple!(8: A a, B b, C c, D d, E e, F f, G g, H h);
tuple!(10: A a, B b, C c, D d, E e, F f, G g, H h, I i, J j);
tuple!(11: A a, B b, C c, D d, E e, F f, G g, H h, I i, J j, K k);
tuple!(13: A a, B b, C c, D d, E e, F f, G g, H h, I i, J j, K k, L l, M m);

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: &[Option<&str>]) -> Row {
        columns
            .iter()
            .map(|column| column.map(str::to_owned))
            .collect()
    }

    #[test]
    fn columns_are_read_by_type() {
        type Read = (i64, String, Option<u32>, Option<bool>);
        let read = <Read as Columns>::of_row(row(&[Some("-1"), Some("a"), None, Some("t")]));
        assert_eq!(read.expect("a row"), (-1, "a".to_owned(), None, Some(true)));
        let Json(list) =
            <Json<Vec<String>> as Columns>::of_row(row(&[Some(r#"["a"]"#)])).expect("JSON");
        assert_eq!(list, ["a"]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        assert!(<i64 as Columns>::of_row(row(&[None])).is_err());
        assert!(<i64 as Columns>::of_row(row(&[Some("a")])).is_err());
        assert!(<bool as Columns>::of_row(row(&[Some("true")])).is_err());
        assert!(<i64 as Columns>::of_row(row(&[Some("1"), Some("2")])).is_err());
        assert!(<(i64, i64) as Columns>::of_row(row(&[Some("1")])).is_err());
    }
}
