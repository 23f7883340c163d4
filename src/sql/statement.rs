//! A statement for the server, its parameters, and how its answer reports conflicts.

use super::conflicts::Conflicts;
use super::param::Param;
use std::rc::Rc;

/// What is sent of a statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Verb {
    /// The text, to be executed at once.
    Query,
    /// The text, to be prepared under a name.
    Prepare(Rc<str>),
    /// The name of what was prepared.
    Execute(Rc<str>),
}

/// A statement and its parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    pub verb: Verb,
    /// Empty for one that was prepared.
    pub text: String,
    pub params: Vec<Param>,
    /// How its answer tells the conflicts.
    pub conflicts: Conflicts,
}

impl Statement {
    /// One without parameters, not about rows.
    pub fn plain(text: impl Into<String>) -> Self {
        Self::query(text.into(), Vec::new(), Conflicts::Never)
    }

    /// One that is executed at once.
    pub fn query(text: String, params: Vec<Param>, conflicts: Conflicts) -> Self {
        Self { verb: Verb::Query, text, params, conflicts }
    }

    /// Whether it begins a transaction block.
    pub fn begins_block(&self) -> bool {
        self.text.starts_with("BEGIN")
    }

    /// Whether it is executed, and not only prepared.
    pub fn is_executed(&self) -> bool {
        !matches!(self.verb, Verb::Prepare(_))
    }

    /// About how many bytes it takes to send.
    pub fn size(&self) -> usize {
        self.text.len() + self.params.iter().map(Param::len).sum::<usize>()
    }
}
