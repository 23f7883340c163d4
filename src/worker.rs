//! Background workers: one a database drains its queue. See `launcher` for who starts them when the
//! library is preloaded, `control` for how sessions start, stop and wake them.

mod control;
mod drainer;
mod launcher;
mod pace;
mod resolver;
mod schedule;

pub use control::{
    let_sleep, start, state, stop, transaction_ended, wake_at_commit, wake_at_end, wake_now,
};
pub use drainer::run as run_worker;
pub use launcher::run as run_launcher;

use crate::pg::{bgworker, worker_registry};

/// Called when the library is loaded: at server start, registers the launcher.
pub fn init() {
    if bgworker::preloading() {
        worker_registry::reserve();
        bgworker::register_launcher();
    }
}
