//! How large this process is: libpq says nothing of the room it makes for what a server announces.

use crate::local::{ProcessLocal, process_local};
use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The smallest there are; where they are larger, what is told is less.
const PAGE: u64 = 4096;

process_local! {
    /// Kept open, since this is asked with every step.
    static STATM: RefCell<Option<File>> = const { RefCell::new(None) };
}

/// Bytes of address space that are mapped; `None` where the system does not tell.
pub fn size() -> Option<u64> {
    STATM.with_borrow_mut(|file| {
        if file.is_none() {
            *file = File::open("/proc/self/statm").ok();
        }
        let mut text = [0; 32];
        let length = file.as_ref()?.read_at(&mut text, 0).ok()?;
        let first = std::str::from_utf8(&text[..length])
            .ok()?
            .split(' ')
            .next()?;
        Some(first.parse::<u64>().ok()? * PAGE)
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn room_counts_before_it_is_used() {
        let before = size().unwrap_or_default();
        let room: Vec<u8> = Vec::with_capacity(1 << 30);
        let grown = size().unwrap_or_default() - before;
        assert!(before > 0 && grown >= 1 << 30, "{before} {grown}");
        drop(room);
    }
}
