//! How much is measured, and what the workloads are called.

use serde::{Deserialize, Serialize};

use super::contender::Contender;
use super::number::many;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub contenders: Vec<Contender>,
    pub rounds: usize,
    /// Of each run with pgbench.
    pub seconds: u64,
    /// Of a statement: narrow and wide tables, and those with values out of line.
    pub rows: u32,
    pub toast_rows: u32,
    /// Of a large statement.
    pub many: u32,
    /// Rows of a large table that is copied; those of a smaller one are [`Plan::many`].
    #[serde(default)]
    pub large: u32,
    /// Rows of a huge table that is compared, where [`Plan::slow`] asks for it.
    #[serde(default)]
    pub huge: u32,
    /// Small tables that are copied.
    #[serde(default)]
    pub tables: u32,
    /// Rows among which transactions update one.
    pub updated: u32,
    /// Records that are drained.
    pub backlog: u32,
    /// Round trips, in milliseconds.
    pub delays: Vec<u64>,
    /// Transactions of one row whose mean is one sample, with a delay.
    pub repeats: u32,
    /// Those too that would take too long, and all with [`Plan::many`].
    pub slow: bool,
    /// Microseconds by which every flush of both servers takes longer than the disk.
    pub flush: u64,
    /// Part of a group's name.
    pub only: Option<String>,
}

impl Plan {
    /// Seconds that one statement may take by what a smaller one took.
    pub const PATIENCE: f64 = 60.0;

    pub fn full() -> Plan {
        Plan {
            contenders: Contender::ALL
                .into_iter()
                .filter(|one| *one != Contender::Bucardo)
                .collect(),
            rounds: 5,
            seconds: 2,
            rows: 10_000,
            toast_rows: 200,
            many: 1_000_000,
            large: 5_000_000,
            huge: 10_000_000,
            tables: 1_000,
            updated: 2_000,
            backlog: 100_000,
            delays: vec![0, 1, 5, 20],
            repeats: 20,
            slow: false,
            flush: 0,
            only: None,
        }
    }

    /// Everything once more, so small that its figures mean nothing.
    pub fn quick() -> Plan {
        Plan {
            rounds: 1,
            seconds: 1,
            rows: 500,
            toast_rows: 20,
            many: 5_000,
            large: 10_000,
            huge: 50_000,
            tables: 20,
            updated: 200,
            backlog: 5_000,
            delays: vec![0, 5],
            repeats: 5,
            ..Plan::full()
        }
    }

    pub fn has(&self, contender: Contender) -> bool {
        self.contenders.contains(&contender)
    }

    pub fn among(&self, some: &[Contender]) -> Vec<Contender> {
        self.contenders
            .iter()
            .copied()
            .filter(|one| some.contains(one))
            .collect()
    }
}

pub fn transactions(rows: u32, clients: u32) -> String {
    format!(
        "transactions of {}, {}",
        many(rows, "row"),
        many(clients, "client")
    )
}

pub fn updates(clients: u32) -> String {
    format!(
        "transactions that update 1 row, {}",
        many(clients, "client")
    )
}

pub fn distance(rows: u32, delay: u64) -> String {
    format!(
        "insert {} in a transaction, {delay} ms away",
        many(rows, "row")
    )
}

pub fn round_trip(delay: u64) -> String {
    format!("empty query, {delay} ms away")
}

pub fn down(clients: u32) -> String {
    format!(
        "transactions of 1 row, server down, {}",
        many(clients, "client")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_row_is_singular() {
        assert_eq!(transactions(1, 8), "transactions of 1 row, 8 clients");
    }
}
