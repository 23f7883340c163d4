//! The ways to keep a table in step that are compared.

use std::fmt;
use std::str::FromStr;

use anyhow::Context;
use serde::{Deserialize, Serialize};

pub const RECIPE_GUARD: &str = "recipe_guard";
pub const FDW_GUARD: &str = "fdw_guard";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Contender {
    /// The table is not kept in step at all.
    None,
    /// A PL/pgSQL row trigger with one call of dblink for each row.
    Recipe,
    /// A PL/pgSQL row trigger that writes a foreign table of postgres_fdw.
    Fdw,
    /// Logical replication, whose commits wait for the subscriber.
    Native,
    /// Triggers and a daemon that comes later.
    Bucardo,
    /// pg_rowsync, by its modes.
    Async,
    Sync,
    Atomic,
    Queue,
}

use Contender::{Async, Atomic, Bucardo, Fdw, Native, None, Queue, Recipe, Sync};

impl Contender {
    pub const ALL: [Contender; 9] = [
        None, Recipe, Fdw, Native, Bucardo, Async, Sync, Atomic, Queue,
    ];

    pub fn name(self) -> &'static str {
        match self {
            None => "none",
            Recipe => "recipe",
            Fdw => "fdw",
            Native => "native",
            Bucardo => "bucardo",
            Async => "async",
            Sync => "sync",
            Atomic => "atomic",
            Queue => "queue",
        }
    }

    /// What the tables of the report call it.
    pub fn says(self) -> &'static str {
        match self {
            None => "no synchronisation",
            Recipe => {
                "row trigger with dblink, both ways, guard from pg_stat_activity, queue table"
            }
            Fdw => "row trigger that writes a foreign table of postgres_fdw, both ways",
            Native => {
                "logical replication, one way, commits wait for remote_apply; the subscriber flushes"
            }
            Bucardo => "Bucardo, one way: until the commit; its daemon comes later",
            Async => "pg_rowsync, both ways, mode async",
            Sync => "pg_rowsync, both ways, mode sync",
            Atomic => "pg_rowsync, both ways, mode atomic",
            Queue => "pg_rowsync, both ways, mode queue: until the commit; the worker comes later",
        }
    }

    /// The mode, for those that are pg_rowsync.
    pub fn mode(self) -> Option<&'static str> {
        matches!(self, Async | Sync | Atomic | Queue).then(|| self.name())
    }

    /// The `application_name` whose writes its trigger does not send on.
    pub fn guard(self) -> Option<&'static str> {
        match self {
            Recipe => Some(RECIPE_GUARD),
            Fdw => Some(FDW_GUARD),
            Async | Sync | Atomic | Queue => Some("pg_rowsync"),
            None | Native | Bucardo => Option::None,
        }
    }

    /// Both sides are equal when the commit has returned.
    pub fn is_direct(self) -> bool {
        !matches!(self, None | Bucardo | Queue)
    }

    /// The rig sets the way that it takes to the other side.
    pub fn is_led(self) -> bool {
        self != Bucardo
    }

    /// What it makes of `synchronous_commit`. There is a standby by name only for logical
    /// replication; for the others `local` is what `on` is without one.
    pub fn synchronous_commit(self) -> &'static str {
        if self == Native {
            "remote_apply"
        } else {
            "local"
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Contender {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Contender, anyhow::Error> {
        let found = Contender::ALL
            .into_iter()
            .find(|contender| contender.name() == name);
        found.with_context(|| format!("unknown contender \"{name}\""))
    }
}
