//! The tables that the masters share, and what fills their version columns.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result};

/// What a write puts into the version column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The time; all masters have the same.
    Clock,
    /// Always the same.
    Frozen,
    /// The time, by clocks that are far apart.
    Skewed,
    /// Nothing.
    Null,
}

impl Version {
    pub const ALL: [Version; 4] = [
        Version::Clock,
        Version::Frozen,
        Version::Skewed,
        Version::Null,
    ];

    /// The column's new value on that master, an expression of timestamptz.
    fn expression(self, master: usize) -> String {
        // The first master is ahead, the second behind, a third one right.
        let skew = ["1 hour", "-30 minutes", "0"];
        match self {
            Version::Clock => "clock_timestamp()".to_owned(),
            Version::Frozen => "timestamptz '2020-01-01 00:00+00'".to_owned(),
            Version::Skewed => format!("(clock_timestamp() + interval '{}')", skew[master % 3]),
            Version::Null => "null::timestamptz".to_owned(),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Version::Clock => "clock",
            Version::Frozen => "frozen",
            Version::Skewed => "skewed",
            Version::Null => "null",
        })
    }
}

impl FromStr for Version {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Version> {
        let found = Version::ALL
            .into_iter()
            .find(|version| version.to_string() == name);
        found.with_context(|| format!("unknown kind of version \"{name}\""))
    }
}

/// Rows with a key, a text `v`, a number `n` and a `version`.
pub struct Table {
    pub name: &'static str,
    columns: &'static [&'static str],
    /// The key's columns.
    pub key: &'static str,
    /// Keys are the numbers from 1 to this one.
    pub keys: u64,
    /// The key's values, for its number.
    pub value: fn(u64) -> String,
    /// The version, of an expression of timestamptz.
    version: fn(String) -> String,
}

pub const TABLES: [Table; 2] = [
    Table {
        name: "single",
        columns: &["id int", "v text", "n int", "version timestamptz"],
        key: "id",
        keys: 50,
        value: |number| number.to_string(),
        version: |time| time,
    },
    Table {
        name: "pair",
        columns: &["a int", "b text", "v text", "n int", "version text"],
        key: "a, b",
        keys: 20,
        value: |number| format!("{}, 'k{}'", number % 4, number / 4),
        version: |time| format!("to_char({time} at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS.US')"),
    },
];

impl Table {
    /// The key of that number as the server writes a row of its columns.
    pub fn text(&self, number: u64) -> String {
        format!("({})", (self.value)(number).replace([' ', '\''], ""))
    }

    /// Whether that is a key of the table, written so.
    pub fn has(&self, text: &str) -> bool {
        (1..=self.keys).any(|number| self.text(number) == text)
    }

    /// Creates the table on that master, with a trigger that versions what clients write. The columns
    /// are not in the same order everywhere.
    pub fn create(&self, master: usize, version: Version) -> String {
        let Table { name, key, .. } = self;
        let mut columns = self.columns.to_vec();
        if master % 2 == 1 {
            columns.reverse();
        }
        let expression = (self.version)(version.expression(master));
        format!(
            "create table {name} ({columns}, primary key ({key}));
             create function {name}_version() returns trigger language plpgsql as $$
             begin
               new.version := {expression};
               return new;
             end $$;
             create trigger {name}_version before insert or update on {name} for each row
               when (current_setting('application_name') <> 'pg_rowsync')
               execute function {name}_version()",
            columns = columns.join(", ")
        )
    }
}
