//! What the end-to-end tests and the demo stand on: PostgreSQL clusters that start in seconds and
//! never outlive their process, a database with its role on each of two sides, and a TCP proxy that
//! makes the network between them slow, silent or broken.
//!
//! Linux only: processes are found through `/proc`. Nothing here links to PostgreSQL; clients speak
//! the protocol through the pure Rust `postgres` crate.

pub mod arguments;
#[cfg(test)]
mod arrows;
pub mod assertions;
pub mod bench;
pub mod cluster;
pub mod document;
pub mod faults;
pub mod fixture;
pub mod flag;
pub mod hostile;
pub mod package;
pub mod pooler;
pub mod proxy;
pub mod reaper;
pub mod releases;
pub mod rng;
pub mod scenario;
pub mod server_logs;
pub mod setup;
pub mod side;
pub mod tls;
pub mod type_pairs;

pub use cluster::{Cluster, Shutdown};
pub use fixture::{Fixture, await_until, fails};
pub use flag::Flag;
pub use hostile::Hostile;
pub use pooler::{IGNORE_OPTIONS, PoolMode, Pooler};
pub use proxy::{Direction, Proxy, Strike};
pub use side::Side;
