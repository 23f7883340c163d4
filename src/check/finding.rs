//! What is found to be wrong, and how much it matters. Pure.

use crate::error::{Error, SqlState};

/// How much a finding matters; the gravest is the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Changes do not arrive, or do not stop.
    Error,
    /// Some changes do not arrive, or arrive otherwise than they were made.
    Warning,
    /// Something may surprise.
    Notice,
}

impl Severity {
    /// As `check_sync` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Notice => "notice",
        }
    }
}

/// One thing that was found. The error's message is the problem, its hint the way out.
#[derive(Clone, Debug)]
pub struct Finding {
    pub severity: Severity,
    pub problem: Error,
    /// `attach_sync` refuses to attach: what is written would be silently wrong there.
    pub refuses: bool,
}

impl Finding {
    /// Of severity `error`.
    pub fn error(sqlstate: SqlState, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::of(Severity::Error, sqlstate, problem.into(), hint.into())
    }

    /// Of severity `warning`.
    pub fn warning(
        sqlstate: SqlState,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::of(Severity::Warning, sqlstate, problem.into(), hint.into())
    }

    /// Of severity `notice`.
    pub fn notice(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::of(
            Severity::Notice,
            SqlState::new("00000"),
            problem.into(),
            hint.into(),
        )
    }

    /// The error that something ended with.
    pub fn failure(problem: Error) -> Self {
        Self {
            severity: Severity::Error,
            problem,
            refuses: false,
        }
    }

    fn of(severity: Severity, sqlstate: SqlState, problem: String, hint: String) -> Self {
        let problem = Error::local(sqlstate, problem).with_hint(hint);
        Self {
            severity,
            problem,
            refuses: false,
        }
    }

    /// This finding, for which `attach_sync` refuses to attach.
    pub fn refusing(mut self) -> Self {
        self.refuses = true;
        self
    }
}

/// Names that a finding shows at most.
const MAX_SHOWN_NAMES: usize = 8;

/// Names in double quotes, the first few of them.
pub fn quoted<S: AsRef<str>>(names: &[S]) -> String {
    let shown = names.iter().take(MAX_SHOWN_NAMES);
    let mut list: Vec<String> = shown.map(|name| format!("\"{}\"", name.as_ref())).collect();
    if names.len() > MAX_SHOWN_NAMES {
        list.push(format!("and {} more", names.len() - MAX_SHOWN_NAMES));
    }
    list.join(", ")
}
