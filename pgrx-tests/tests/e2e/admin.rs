//! Attaching, copying, comparing and upgrading.

mod after_crash;
mod attach_notice;
pub mod attach_tells;
mod attached_again;
mod attached_schemas;
mod attached_tables;
mod attached_twice;
mod check_sync;
mod copies;
mod copies_by_replication;
mod copy;
mod copy_emptying;
mod copy_keyless;
mod copy_paused;
mod copy_trees;
mod documents;
mod extension;
mod joining;
pub mod lived_in;
mod majors;
mod operations;
mod physical_clones;
mod reference;
mod repair;
mod upgrade;
mod verify;
mod verify_progress;
