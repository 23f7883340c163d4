//! Steps and looks that tests share.

pub mod common;
pub mod failed;
pub mod one_way;
pub mod preloaded;
pub mod reject_values;
