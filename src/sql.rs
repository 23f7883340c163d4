//! [`Change`](crate::change::Change) to SQL: set-based statements with bind parameters for the
//! wire, one literal statement for people. Pure; the only place that writes remote SQL about rows.

pub mod batch;
pub mod binary;
mod conflicts;
mod joined;
pub mod lasting;
pub mod literal;
mod newest;
pub mod quote;
mod reached;
mod session;
mod statement;
#[cfg(test)]
pub mod tests;
mod told;
mod upsert;
mod values;

pub use batch::{Batch, Kind};
pub use conflicts::{Conflicts, conflict_of};
pub use joined::joined;
pub use literal::look_for;
pub use newest::RACE_MARK;
pub use reached::reached;
pub use session::{
    AS_LOGGED_IN, HOME, Introduce, NODE, SESSION_MARK, end_session, introduce, micros, named,
    on_path, own_schemas, with_type_schemas,
};
pub use statement::{
    EXISTS_MARK, MISSING_MARK, Param, Statement, TWICE_MARK, Verb, ask_key, needs_key, of_batch,
    truncate_by_kind,
};
