//! The server island: the only modules that touch `pgrx::pg_sys`. Each wraps one facility in a safe
//! interface and says which hazard it handles.
//!
//! A PostgreSQL ERROR raised below unwinds as a Rust panic up to the guarded edge, so values with
//! a `Drop` clean up; FATAL leaves without unwinding, so nothing here may depend on `Drop` for
//! correctness at exit.

#![allow(unsafe_code)] // an island: each block says why it holds

pub mod append;
pub mod args;
pub mod bgworker;
pub mod callbacks;
pub mod columns;
pub mod compare;
pub mod compat;
pub mod context;
pub mod database;
pub mod ddl;
mod entry;
#[cfg(feature = "faults")]
pub mod fault;
pub mod fd;
pub mod in_place;
pub mod interrupt;
pub mod invalidation;
pub mod json;
pub mod large;
pub mod lock;
mod lock_tag;
pub mod lookup;
pub mod memory;
pub mod output;
mod plain;
pub mod progress;
pub mod query;
pub mod removal;
pub mod report;
pub mod row;
pub mod rows_of_key;
pub mod sequence;
pub mod setting;
pub mod shmem;
pub mod slot;
pub mod snapshot;
pub mod spi;
pub mod stream;
pub mod subtransaction;
mod tables;
pub mod temp_file;
pub mod text;
pub mod timer;
pub mod trigger;
pub mod utility;
pub mod value;
pub mod wait;
pub mod wal;
pub mod worker_registry;
pub mod worker_transaction;
pub mod xact;

/// Object identifier of the server's catalogs.
pub type Oid = pgrx::pg_sys::Oid;
