//! File descriptors that the server does not open itself but must count.

use pgrx::pg_sys;

/// One descriptor out of the backend's budget (`max_files_per_process`), given back on drop.
#[derive(Debug)]
pub struct ExternalFd(());

impl ExternalFd {
    /// Takes a descriptor from the budget; `None` when too many are in use.
    pub fn acquire() -> Option<Self> {
        // SAFETY: plain call, counts in backend-local memory.
        unsafe { pg_sys::AcquireExternalFD() }.then_some(Self(()))
    }
}

impl Drop for ExternalFd {
    fn drop(&mut self) {
        // SAFETY: each value stands for one successful AcquireExternalFD.
        unsafe { pg_sys::ReleaseExternalFD() }
    }
}
