//! What nobody may do, see or make others do.

mod bad_input;
mod certificates;
mod guard;
mod identity;
mod injection_encodings;
mod injection_names;
mod injection_values;
mod logs;
mod mappings;
mod model;
mod own_operators;
mod owner_code;
mod owners;
mod rights;
mod roles;
mod search_path_append;
mod secrets;
mod server_environment;
mod trojan_calls;
pub mod trojan_objects;
mod trusted_install;
