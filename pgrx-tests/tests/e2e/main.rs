//! End-to-end tests: real clients on real servers, one file per behaviour.
//!
//! What a test asserts about one side it reads through that side's own session.

mod common;
mod modes;
mod order;
mod recipe;
mod rollback;
