//! What a transaction here does, and what is captured of it.

mod alterations;
mod cascades;
mod columns;
mod error_fields;
mod every_path;
mod filters;
mod histories;
mod insert_only;
mod large;
mod nested_triggers;
mod relations;
mod rewrites;
mod rollback;
mod serializable;
mod statements;
mod tables;
mod toast;
mod toast_kept;
mod transactions;
mod truncates;
