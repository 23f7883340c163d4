//! State of this process, which has one thread: `thread_local!` without destructors.
//!
//! A destructor would be registered with the C library when the state is used first, and where there is no memory
//! for that, the library aborts the process, at which PostgreSQL restarts every session of the cluster. And it
//! would run after the server has shut itself down in the process, state by state in no order. What must be done at
//! the end of a process is done by its callbacks.

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::thread::LocalKey;

/// Declares state, each a `RefCell`. The methods of [`ProcessLocal`] are those of the standard library's.
macro_rules! process_local {
    ($($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;)*) => {
        thread_local! {$(
            $(#[$attribute])*
            static $name: std::mem::ManuallyDrop<$type> = std::mem::ManuallyDrop::new($value);
        )*}
    };
}

pub(crate) use process_local;

/// What is done with state that `process_local!` declares.
pub trait ProcessLocal<T> {
    /// Lends it.
    fn with_borrow<R>(&'static self, f: impl FnOnce(&T) -> R) -> R;

    /// Lends it to be changed.
    fn with_borrow_mut<R>(&'static self, f: impl FnOnce(&mut T) -> R) -> R;

    /// Replaces it.
    fn replace(&'static self, value: T) -> T;

    /// Sets it.
    fn set(&'static self, value: T) {
        drop(self.replace(value));
    }

    /// Takes it out; what is left is the default.
    fn take(&'static self) -> T
    where
        T: Default,
    {
        self.replace(T::default())
    }
}

impl<T> ProcessLocal<T> for LocalKey<ManuallyDrop<RefCell<T>>> {
    fn with_borrow<R>(&'static self, f: impl FnOnce(&T) -> R) -> R {
        self.with(|cell| f(&cell.borrow()))
    }

    fn with_borrow_mut<R>(&'static self, f: impl FnOnce(&mut T) -> R) -> R {
        self.with(|cell| f(&mut cell.borrow_mut()))
    }

    fn replace(&'static self, value: T) -> T {
        self.with(|cell| cell.replace(value))
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
            let path = entry.path();
            if path.is_dir() {
                sources(&path, found);
            } else {
                found.push(path);
            }
        }
    }

    #[test]
    fn no_state_of_the_process_has_a_destructor() {
        let mut files = Vec::new();
        sources(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut files,
        );
        for file in files {
            let text = std::fs::read_to_string(&file).expect("a source file");
            for (at, _) in text.match_indices("thread_local! {\n") {
                let block = &text[at..];
                let end = block.find("\n}").unwrap_or(block.len());
                // Cells of plain values have none.
                let has_one = block[..end].contains(": RefCell<");
                assert!(!has_one, "{}: {}", file.display(), &block[..end]);
            }
        }
    }
}
