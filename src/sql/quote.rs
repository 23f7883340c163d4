//! Quoting, as `quote_identifier`, `PQescapeLiteral` and `array_out` do it.

use crate::change::{Column, Relation};

/// An identifier, always in double quotes.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A schema-qualified name, both parts quoted.
pub fn relation(name: &Relation) -> String {
    format!("{}.{}", ident(&name.schema), ident(&name.table))
}

/// An operator that compares values of a column: PostgreSQL's own whatever the search_path, or that of the
/// column's type, which only the search_path can find.
pub fn operator(column: &Column, name: &str) -> String {
    if column.own_equality {
        name.to_owned()
    } else {
        format!("OPERATOR(pg_catalog.{name})")
    }
}

/// A string literal that reads the same whatever `standard_conforming_strings` says.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// A literal, or NULL.
pub fn literal_or_null(text: Option<&str>) -> String {
    text.map_or_else(|| "NULL".to_owned(), literal)
}

/// A one-dimensional array in its external form, built element by element.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArrayLiteral(String);

impl ArrayLiteral {
    /// Appends an element; `None` is NULL.
    pub fn push(&mut self, value: Option<&str>) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        let Some(value) = value else {
            self.0.push_str("NULL");
            return;
        };
        self.0.reserve(value.len() + 3);
        self.0.push('"');
        // Runs between the characters that need a backslash are copied whole.
        let mut copied = 0;
        for at in memchr::memchr2_iter(b'"', b'\\', value.as_bytes()) {
            self.0.push_str(&value[copied..at]);
            self.0.push('\\');
            copied = at;
        }
        self.0.push_str(&value[copied..]);
        self.0.push('"');
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The finished text.
    pub fn into_text(mut self) -> String {
        self.0.push_str(if self.0.is_empty() { "{}" } else { "}" });
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_always_quoted() {
        assert_eq!(ident("plain"), "\"plain\"");
        assert_eq!(ident("od\"d; --"), "\"od\"\"d; --\"");
    }

    #[test]
    fn literals_double_quotes_and_escape_backslashes() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'b"), " E'a\\\\''b'");
        assert_eq!(literal_or_null(None), "NULL");
    }

    #[test]
    fn arrays_tell_null_from_the_word_and_from_the_empty_string() {
        let mut array = ArrayLiteral::default();
        for value in [Some("NULL"), None, Some(""), Some("a\"b\\c{,}")] {
            array.push(value);
        }
        assert_eq!(array.into_text(), r#"{"NULL",NULL,"","a\"b\\c{,}"}"#);
        assert_eq!(ArrayLiteral::default().into_text(), "{}");
    }
}
