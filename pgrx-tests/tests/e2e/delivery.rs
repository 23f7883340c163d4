//! How what was captured gets there, and as what it arrives.

mod atomic;
mod binary;
mod circles;
mod coarser_keys;
mod encoding;
mod first_try;
mod german;
mod inexact_keys;
mod key_moves;
mod keys_equal_there;
mod leading_back;
mod lost_sessions;
mod masters;
mod modes;
mod order;
mod pinned_settings;
mod pooled_statements;
mod prepared;
mod recipe;
mod replays;
mod round_trips;
mod servers;
mod two_servers;
mod type_pairs;
mod types;
pub mod values;
mod whole_statements;
