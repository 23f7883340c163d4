//! What follows a command: `--name value` and `--name`, in any order. And how a command ends.

use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};

/// Says what went wrong, if something did.
pub fn exit_code(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What nobody has taken yet.
pub struct Arguments(Vec<String>);

impl Arguments {
    pub fn new(words: impl IntoIterator<Item = String>) -> Arguments {
        Arguments(words.into_iter().collect())
    }

    /// The value behind `--name`, if that is given.
    pub fn take<T: FromStr>(&mut self, name: &str) -> Result<Option<T>>
    where
        T::Err: std::fmt::Display,
    {
        let Some(at) = self.position(name) else {
            return Ok(None);
        };
        let value = self
            .0
            .get(at + 1)
            .with_context(|| format!("--{name} needs a value"))?
            .clone();
        self.0.drain(at..at + 2);
        let value = T::from_str(&value);
        value
            .map(Some)
            .map_err(|error| anyhow!("--{name}: {error}"))
    }

    /// Whether `--name` is given.
    pub fn flag(&mut self, name: &str) -> bool {
        let at = self.position(name);
        at.map(|at| self.0.remove(at)).is_some()
    }

    /// What is left and is no `--name`.
    pub fn rest(&mut self) -> Vec<String> {
        let (rest, named) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|word| !word.starts_with("--"));
        self.0 = named;
        rest
    }

    /// Refuses what nobody has taken.
    pub fn end(&self, usage: &str) -> Result<()> {
        if !self.0.is_empty() {
            bail!("{}: not understood\n{usage}", self.0.join(" "));
        }
        Ok(())
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.0
            .iter()
            .position(|word| word.strip_prefix("--") == Some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(words: &str) -> Arguments {
        Arguments::new(words.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn values_and_flags_are_taken_in_any_order() {
        let mut given = arguments("--fast --rounds 7 --name x");
        assert_eq!(given.take::<String>("name").unwrap().as_deref(), Some("x"));
        assert_eq!(given.take::<u32>("rounds").unwrap(), Some(7));
        assert_eq!(given.take::<u32>("seconds").unwrap(), None);
        assert!(given.flag("fast") && !given.flag("fast"));
        given.end("").unwrap();
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert!(arguments("--rounds").take::<u32>("rounds").is_err());
        assert!(arguments("--rounds many").take::<u32>("rounds").is_err());
        let refused = arguments("--what 1")
            .end("usage: so")
            .unwrap_err()
            .to_string();
        assert_eq!(refused, "--what 1: not understood\nusage: so");
    }
}
