//! The libpq island: the only modules that call libpq. Connections are non-blocking and in
//! pipeline mode from the start; nothing here waits.
//!
//! libpq is linked dynamically: a static copy would bind to the server's own symbols of the same
//! names.

#![allow(unsafe_code)] // an island: each block says why it holds

pub mod connection;
mod copy;
mod environment;
pub mod keywords;
mod memory;
pub mod reply;
mod socket;
mod text;

pub use connection::{Connection, Polling};
#[cfg(feature = "faults")]
pub use memory::size as address_space;
pub use reply::{Reply, ReplyStatus};
