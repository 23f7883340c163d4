//! What waits, for what and for whom, and what is seen of it.

mod arrivals;
mod busy_records;
mod ended_sessions;
mod failing_records;
mod failing_scope;
mod failing_sessions;
mod own_tables;
mod owner_troubles;
mod owners_apart;
mod owners_catch_up;
mod paused_servers;
mod stuck_records;
mod view;
mod writes;
