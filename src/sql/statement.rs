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
    /// How its answer reports conflicts.
    pub conflicts: Conflicts,
    /// The server is to send its answer at once, and not with those to the statements that follow.
    pub is_urgent: bool,
}

impl Statement {
    /// One without parameters, not about rows.
    pub fn plain(text: impl Into<String>) -> Self {
        Self::query(text.into(), Vec::new(), Conflicts::Never)
    }

    /// As [`Statement::plain`], and the server is to send its answer before it executes the next one.
    pub fn urgent(text: impl Into<String>) -> Self {
        Self {
            is_urgent: true,
            ..Self::plain(text)
        }
    }

    /// One that is executed at once.
    pub fn query(text: String, params: Vec<Param>, conflicts: Conflicts) -> Self {
        Self {
            verb: Verb::Query,
            text,
            params,
            conflicts,
            is_urgent: false,
        }
    }

    /// One that is prepared under a name, with parameters of the types that its text gives them.
    pub fn prepare(text: String, name: Rc<str>) -> Self {
        let params = Vec::new();
        let conflicts = Conflicts::Never;
        Self {
            verb: Verb::Prepare(name),
            text,
            params,
            conflicts,
            is_urgent: false,
        }
    }

    /// One that was prepared and answers without telling conflicts.
    pub fn execute(name: Rc<str>, params: Vec<Param>) -> Self {
        let text = String::new();
        let conflicts = Conflicts::Never;
        Self {
            verb: Verb::Execute(name),
            text,
            params,
            conflicts,
            is_urgent: false,
        }
    }

    /// Whether it begins a transaction block.
    pub fn begins_block(&self) -> bool {
        self.text.starts_with("BEGIN")
    }

    /// Whether it ends a transaction that has failed: another begins with the next statement.
    pub fn rolls_back(&self) -> bool {
        self.text == "ROLLBACK"
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
