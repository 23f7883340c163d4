//! Statements that sessions share behind a pooler: a process of the server serves one session after the
//! other, and keeps what each has prepared. Pure.
//!
//! A statement's name is a hash of its text, so that whoever has prepared it, it can mean nothing else.

use sha2::{Digest, Sha256};
use std::rc::Rc;

/// Begins the names. They have at most 63 bytes.
const PREFIX: &str = "pg_rowsync_";
/// Hexadecimal digits of the hash, 160 bits.
const DIGITS: usize = 40;

/// The name of a statement whose parameters are of the types that its text gives them.
pub fn name_of(text: &str) -> Rc<str> {
    let digest = Sha256::digest(text.as_bytes());
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}{}", &digits[..DIGITS]).into()
}

/// Asks a process what it has: an answer of [`Found`] in each row. The text of a statement is held against its
/// name. PgBouncer gives names of its own to statements that it carries from process to process.
pub const WHAT_IS_THERE: &str = "SELECT CASE \
       WHEN NOT pg_catalog.starts_with(s.name, 'pg_rowsync_') THEN 'carried' \
       WHEN s.name OPERATOR(pg_catalog.=) pg_catalog.concat('pg_rowsync_', \
         pg_catalog.substr(pg_catalog.encode(pg_catalog.sha256( \
           pg_catalog.convert_to(s.statement, 'UTF8')), 'hex'), 1, 40)) \
       THEN pg_catalog.concat('right ', s.name) \
       ELSE pg_catalog.concat('wrong ', s.name) END \
     FROM pg_catalog.pg_prepared_statements s \
     WHERE pg_catalog.starts_with(s.name, 'pg_rowsync_') \
        OR pg_catalog.starts_with(s.name, 'PGBOUNCER_')";

/// A prepared statement of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// The pooler carries statements from process to process itself.
    Carried,
    /// The text is the one that the name says.
    Right(&'a str),
    /// It is another.
    Wrong(&'a str),
}

impl<'a> Found<'a> {
    /// Reads a row of the answer to [`WHAT_IS_THERE`].
    pub fn parse(row: &'a str) -> Option<Self> {
        match row.split_once(' ') {
            None if row == "carried" => Some(Self::Carried),
            Some(("right", name)) => Some(Self::Right(name)),
            Some(("wrong", name)) => Some(Self::Wrong(name)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_hash_of_the_text_as_the_server_computes_it() {
        let name = name_of("abc");
        assert_eq!(
            &*name,
            "pg_rowsync_ba7816bf8f01cfea414140de5dae2223b00361a3"
        );
        assert!(name.len() < 64 && WHAT_IS_THERE.contains(&format!("'{PREFIX}'")));
        assert!(WHAT_IS_THERE.contains(&format!(", 1, {DIGITS})")));
        assert_ne!(name, name_of("abd"));
    }

    #[test]
    fn what_is_found_is_read_or_left() {
        assert_eq!(Found::parse("carried"), Some(Found::Carried));
        assert_eq!(Found::parse("right a b"), Some(Found::Right("a b")));
        assert_eq!(Found::parse("wrong a"), Some(Found::Wrong("a")));
        assert_eq!((Found::parse("rightly"), Found::parse("")), (None, None));
    }
}
