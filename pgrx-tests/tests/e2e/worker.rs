//! The background worker, and what it tells.

mod counters;
mod failing_records;
mod lifecycle;
mod slots;
mod status;
