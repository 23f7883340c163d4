//! Conflicts: changes that did not find the server's row as expected.
//!
//! `kind` says what a conflict is and `tally` what those of a delivery came to, both without a server;
//! `log` counts them and writes them down; `versions` keeps, under `newest`, what rows and deletions
//! count as.

mod kind;
pub mod log;
mod tally;
pub mod versions;

pub use kind::{Conflict, ConflictType, Decision};
pub use tally::Tally;
