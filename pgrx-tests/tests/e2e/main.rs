//! End-to-end tests: real clients on real servers, one file per behaviour.
//!
//! What a test asserts about one side it reads through that side's own session.

mod bad_input;
mod common;
mod conflicts;
mod connections;
mod encoding;
mod extension;
mod interrupts;
mod lost_sessions;
mod masters;
mod modes;
mod one_way;
mod order;
mod queue_view;
mod recipe;
mod rollback;
mod round_trips;
mod servers;
mod statements;
mod stress;
mod tables;
mod transactions;
mod values;
