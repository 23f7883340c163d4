//! Names of prepared transactions. Pure but for [`Gid::new`].
//!
//! `pg_rowsync:<system>.<database>:<timeline>/<position>/<start>:<transaction>:<owner>:<token>` says in plain
//! text whose a transaction is: system identifier and OID of the database that decides it, where the
//! database's write-ahead log was on disk and when its server had been started, its transaction, the role
//! whose tables were written, and a random number. Neither a restore nor a clone nor a transaction number that is used again brings one back.

use crate::error::Result;
use crate::pg::{Oid, context, database, lock, wal};
use std::fmt;

/// Begins the name of every transaction that is prepared by this extension.
pub const PREFIX: &str = "pg_rowsync:";

/// The name of a transaction that is prepared on a server, in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gid {
    pub system: u64,
    pub database: u32,
    pub timeline: u32,
    /// In bytes, from the beginning of the log.
    pub position: u64,
    /// In microseconds since 1970.
    pub started: i64,
    /// With its epoch.
    pub transaction: u64,
    pub owner: u32,
    pub token: u64,
}

impl Gid {
    /// A new one for the current transaction, which gets a number if it has none. Until that ends it counts as
    /// [undecided](lock::is_undecided).
    ///
    /// # Errors
    /// As for [`context::random`] and [`wal::place`].
    pub fn new(owner: Oid) -> Result<Self> {
        let transaction = context::assigned_transaction();
        let (timeline, position) = wal::place()?;
        let token = context::random()? as u64;
        // Its number is not enough: of one that a crash has ended, it may be used again.
        lock::hold_undecided(token);
        Ok(Self {
            system: database::system_identifier(),
            database: database::current().to_u32(),
            timeline,
            position,
            started: context::cluster_start(),
            transaction,
            owner: owner.to_u32(),
            token,
        })
    }

    /// Reads a name; `None` for one that is not of this form.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix(PREFIX)?.split(':');
        let mut next = || parts.next();
        let (system, database) = next()?.split_once('.')?;
        let (timeline, position) = next()?.split_once('/')?;
        let (position, started) = position.split_once('/')?;
        let gid = Self {
            system: system.parse().ok()?,
            database: database.parse().ok()?,
            timeline: u32::from_str_radix(timeline, 16).ok()?,
            position: u64::from_str_radix(position, 16).ok()?,
            started: i64::from_str_radix(started, 16).ok()?,
            transaction: next()?.parse().ok()?,
            owner: next()?.parse().ok()?,
            token: u64::from_str_radix(next()?, 16).ok()?,
        };
        (gid.to_string() == text).then_some(gid)
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            system,
            database,
            timeline,
            position,
            started,
            transaction,
            owner,
            token,
        } = self;
        write!(
            f,
            "{PREFIX}{system}.{database}:{timeline:X}/{position:X}/{started:X}:{transaction}:{owner}:{token:016x}"
        )
    }
}

/// How the names of all that the current database has prepared begin.
pub fn own_prefix() -> String {
    format!(
        "{PREFIX}{}.{}:",
        database::system_identifier(),
        database::current().to_u32()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid() -> Gid {
        Gid {
            system: 7_576_543_210_987_654_321,
            database: 16_384,
            timeline: 3,
            position: 0x0A00_0028,
            started: 0x0006_5432_1000_ABCD,
            transaction: 4_294_967_999,
            owner: 10,
            token: 0xAB,
        }
    }

    #[test]
    fn a_name_says_whose_it_is_and_is_read_back() {
        let text = gid().to_string();
        assert_eq!(
            text,
            "pg_rowsync:7576543210987654321.16384:3/A000028/654321000ABCD:4294967999:10:00000000000000ab"
        );
        assert_eq!(Gid::parse(&text), Some(gid()));
    }

    #[test]
    fn the_longest_name_fits() {
        let all = Gid {
            system: u64::MAX,
            database: u32::MAX,
            timeline: u32::MAX,
            position: u64::MAX,
            started: i64::MAX,
            transaction: u64::MAX,
            owner: u32::MAX,
            token: u64::MAX,
        };
        // GIDSIZE of access/xact.h, with the zero byte.
        assert!(all.to_string().len() < 200);
    }

    #[test]
    fn what_is_not_quite_of_the_form_is_none_of_ours() {
        let text = gid().to_string();
        for other in [
            "",
            "pg_rowsync:",
            &text[1..],
            &format!("{text} "),
            &format!("{text}:1"),
            &text.replace("A000028", "a000028").replace(":10:", ":010:"),
            &text.replace("ab", "AB"),
            "pg_rowsync:1.2:3/4/5:6:7:8'; DROP TABLE t; --",
        ] {
            assert_eq!(Gid::parse(other), None, "{other}");
        }
    }
}
