//! Servers and connections that are away, slow, shared or hostile.

mod away_targets;
mod connections;
mod crowds;
mod host_options;
pub mod hostile;
mod hostile_answers;
mod hostile_greeting;
mod hostile_local;
mod idle_connections;
mod interrupts;
mod poolers;
mod settings_there;
mod tls;
mod transaction_timeout;
