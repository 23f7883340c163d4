//! End-to-end tests: real clients on real servers, one file per behaviour, in folders after the rooms of
//! the extension.
//!
//! What a test asserts about one side it reads through that side's own session.

mod admin;
mod benchmark;
mod capture;
mod conflict;
mod delivery;
mod drain;
mod network;
mod queue;
mod random;
mod security;
mod support;
mod worker;
