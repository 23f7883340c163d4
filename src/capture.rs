//! From a row event to a change in the current transaction's change sets.
//!
//! `table` reads the catalogs, `descriptor` combines them with a trigger's arguments and caches the
//! result, `row` makes a change of an event, `change_set` holds the changes in a
//! `log`, `origin` tells what DDL of the same transaction has made of their tables since.

pub mod change_set;
pub mod condition;
pub mod descriptor;
pub mod log;
pub mod mentioned;
pub mod origin;
pub mod row;
pub mod table;
