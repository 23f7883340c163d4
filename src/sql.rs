//! [`Change`](crate::change::Change) to SQL: set-based statements with bind parameters for the
//! wire, one literal statement for people. Pure; the only place that writes remote SQL about rows.

pub mod batch;
pub mod binary;
mod conflicts;
mod dml;
mod joined;
mod key_types;
pub mod literal;
pub mod marks;
mod newest;
mod param;
pub mod prepared;
pub mod quote;
mod reached;
mod render;
mod reporting;
mod session;
pub mod shared;
mod statement;
#[cfg(test)]
pub mod tests;
mod tolerant;
pub mod triggers;
mod truncate;
mod upsert;
mod values;

pub use batch::{Batch, BatchKind};
pub use conflicts::{Conflicts, conflict_of};
pub use dml::{ask_key, needs_key};
pub use joined::joined;
pub use key_types::ask_types;
pub use literal::look_for;
pub use param::Param;
pub use reached::reached;
pub use render::of_batch;
pub use session::{
    AS_LOGGED_IN, BEGIN_ON_PRIMARY, Introduce, MAX_PREPARED, NODE, REMOTE_SCHEMA, cancel,
    end_session, introduce, introduced, micros, named, on_path, own_schemas, with_type_schemas,
};
pub use statement::{Statement, Verb};
pub use truncate::truncate_by_kind;
