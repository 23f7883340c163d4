//! How what waits is delivered.

mod assumptions;
mod backlog;
mod deferred_drains;
mod drained_backlog;
mod edges;
mod lost_drains;
mod partial;
mod set_right;
mod torn;
mod transient;
