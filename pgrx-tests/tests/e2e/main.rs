//! End-to-end tests: real clients on real servers, one file per behaviour.
//!
//! What a test asserts about one side it reads through that side's own session.

mod bad_input;
mod columns;
mod common;
mod conflicts;
mod connections;
mod encoding;
mod extension;
mod first_try;
mod histories;
mod interrupts;
mod large;
mod lost_sessions;
mod masters;
mod modes;
mod nested_triggers;
mod one_way;
mod order;
mod partial;
mod property;
mod queue_view;
mod recipe;
mod relations;
mod rollback;
mod round_trips;
mod servers;
mod statements;
mod stress;
mod tables;
mod toast;
mod transactions;
mod types;
mod values;
mod worker;
