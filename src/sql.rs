//! [`Change`](crate::change::Change) to SQL: set-based statements with bind parameters for the
//! wire, one literal statement for people. Pure; the only place that writes remote SQL about rows.

pub mod batch;
pub mod literal;
pub mod quote;
mod statement;
mod values;

pub use batch::{Batch, Kind};
pub use statement::{MISSING_MARK, OWN_SCHEMAS, Statement, of_batch, with_type_schemas};
