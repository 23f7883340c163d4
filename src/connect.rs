//! What a connection is: how its session must be set (`settings`), which process serves it and whether
//! through a pooler (`peer`), and which remote transaction may still end after its connection was lost
//! (`lost_session`). `release` gives connections back that stand in the way. `prepared` is what a session executes
//! by names of its own, `shared` what it executes behind a pooler by names that mean the same to all.

pub mod account;
pub mod endpoint;
pub mod lost_session;
pub mod peer;
pub mod prepared;
pub mod privileges;
pub mod release;
pub mod session;
pub mod settings;
pub mod shared;
