//! Conflicts: rows that were not on the server as the change expects. A statement's own answer tells
//! how many it met, at no further round trip.
//!
//! Mostly the command tag does. It does not for an upsert, which counts rows that it inserted and rows
//! that it met alike; there the server counts, in a setting of the transaction, where it resolves the
//! conflict, so that rows without one cost nothing. Not by xmax, which a view and a partitioned table
//! have not got, and not by a look beforehand, which costs an index look-up a row.

use super::statement::Statement;

/// How a statement's answer tells the conflicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conflicts {
    /// There are none: it is not about rows, or it fails instead, or another statement tells.
    #[default]
    Never,
    /// The rows in the command tag.
    Affected,
    /// What the command tag lacks to this number of rows.
    Short(u64),
    /// The number that it answers with.
    Answered,
    /// The server notes them, see [`NOTE`]: another statement, [`told`], is to ask for them.
    Noted,
}

impl Conflicts {
    /// The conflicts that an answer tells of; `answer` is its only value, if it had one.
    pub fn count(self, affected: u64, answer: Option<&str>) -> u64 {
        match self {
            Self::Never | Self::Noted => 0,
            Self::Affected => affected,
            Self::Short(rows) => rows.saturating_sub(affected),
            Self::Answered => answer.and_then(|n| n.parse().ok()).unwrap_or(0),
        }
    }
}

/// A condition that always holds and adds one to the transaction's count, which a savepoint takes back
/// with the rest. The setting's prefix must not be that of this extension, which reserves its own.
pub const NOTE: &str = "pg_catalog.set_config('rowsync_delivery.conflicts', \
     (COALESCE(NULLIF(pg_catalog.current_setting('rowsync_delivery.conflicts', true), ''), \
     '0')::pg_catalog.int8 OPERATOR(pg_catalog.+) 1)::pg_catalog.text, true) IS NOT NULL";

/// Answers with the transaction's count and begins it anew. To be sent once, after all statements that
/// note.
pub fn told() -> Statement {
    let text = "SELECT pg_catalog.current_setting('rowsync_delivery.conflicts', true), \
                pg_catalog.set_config('rowsync_delivery.conflicts', '', true)";
    Statement { conflicts: Conflicts::Answered, ..Statement::plain(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_its_statement_says() {
        assert_eq!(Conflicts::Never.count(3, Some("4")), 0);
        assert_eq!(Conflicts::Noted.count(3, None), 0);
        assert_eq!(Conflicts::Affected.count(3, None), 3);
        assert_eq!(Conflicts::Short(5).count(3, None), 2);
        // More rows than keys, where the server holds several keys for equal.
        assert_eq!(Conflicts::Short(5).count(6, None), 0);
        assert_eq!(Conflicts::Answered.count(1, Some("4")), 4);
        // Nothing was counted in this transaction, or the setting is back to what it was.
        assert_eq!(Conflicts::Answered.count(1, None), 0);
        assert_eq!(Conflicts::Answered.count(1, Some("")), 0);
    }
}
