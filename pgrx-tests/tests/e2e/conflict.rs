//! Rows of the target that are not what a change expects, and what decides over them.

pub mod cells;
mod contended_masters;
mod existing_rows;
mod log;
mod newest;
pub mod newest_masters;
mod newest_races;
pub mod policies;
mod row_versions;
mod stamps;
mod target_triggers;
mod unique;
pub mod view;
