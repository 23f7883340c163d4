//! Mode `atomic`: both databases have a transaction, or neither has.
//!
//! 1. Before the local commit every atomic server applies the changes and prepares its transaction
//!    (PREPARE TRANSACTION), under a [`gid`] that no other transaction has had or will have.
//! 2. The local transaction writes a [`decision`] for each of them. Its commit is the decision: what has a
//!    row is to be committed, what has none and whose local transaction is over is to be rolled back.
//! 3. After the local commit the session itself sends COMMIT PREPARED ([`phases`]), where nothing may
//!    fail any more. What it cannot finish is left to the [`resolver`].
//!
//! As long as a decision is not known to be carried out, nothing that concerns the same rows is sent to
//! its server: what is prepared cannot be seen there, so that a DELETE would pass an INSERT.

pub mod decision;
pub mod done;
pub mod gid;
pub mod phases;
pub mod readiness;
pub mod resolver;

#[cfg(test)]
mod model;
