//! What a session has prepared on its server; see [`prepared`].

use crate::change::Route;
use crate::pg::context;
use crate::sql::{Batch, BatchKind, Statement, prepared};
use std::rc::Rc;

/// Statements that a session keeps at most; more are sent as they are.
const MAX_STATEMENTS: usize = 64;
/// After so many failures a statement is not prepared any more: each may have left one on the server.
const MAX_FAILURES: u8 = 8;
/// As many for one that does without a look at what it has found: another does as well.
const MAX_FAILURES_ALONE: u8 = 2;

/// The statements that a session has prepared on its server.
#[derive(Default)]
pub struct PreparedStatements {
    statements: Vec<PreparedStatement>,
    questions: Vec<Question>,
    names: Names,
    /// The run under way has executed some.
    used: bool,
}

struct PreparedStatement {
    route: Rc<Route>,
    kind: BatchKind,
    unchanged: Vec<u32>,
    alone: bool,
    known: Known,
}

/// One that is always the same, without parameters.
struct Question {
    text: &'static str,
    known: Known,
}

/// Names that are given one after the other.
#[derive(Default)]
struct Names {
    /// Begins them: they are no other session's, should one process ever serve both.
    prefix: Option<String>,
    /// Number of the next: none is used twice, since a failure leaves open what the server has.
    next: u32,
}

impl Names {
    fn give(&mut self) -> Option<Rc<str>> {
        let prefix = match &self.prefix {
            Some(prefix) => prefix,
            None => self
                .prefix
                .insert(format!("rs_{:x}", context::random().ok()? as u32)),
        };
        let name = format!("{prefix}_{}", self.next).into();
        self.next += 1;
        Some(name)
    }
}

/// Under which name the server has a statement.
#[derive(Default)]
struct Known {
    /// None while there is none that is beyond doubt.
    name: Option<Rc<str>>,
    /// What the run under way has sent to be prepared.
    sent: Option<Rc<str>>,
    failures: u8,
}

impl Known {
    /// The name under which it is to be executed, and what prepares it if that has not been done; `None` if it is
    /// to be sent as it is.
    fn named(
        &mut self,
        names: &mut Names,
        prepare: impl FnOnce(&Rc<str>) -> Option<Statement>,
    ) -> Option<(Option<Statement>, Rc<str>)> {
        if self.failures >= MAX_FAILURES {
            return None;
        }
        if let Some(name) = self.name.as_ref().or(self.sent.as_ref()) {
            return Some((None, name.clone()));
        }
        let name = names.give()?;
        let prepare = prepare(&name)?;
        self.sent = Some(name.clone());
        Some((Some(prepare), name))
    }

    fn settle(&mut self, succeeded: bool) {
        let Some(sent) = self.sent.take() else {
            return;
        };
        if succeeded {
            self.name = Some(sent);
        } else {
            self.failures += 1;
        }
    }

    fn forget(&mut self) {
        if self.name.take().is_some() {
            self.failures += 1;
        }
    }
}

impl PreparedStatements {
    /// The name under which a batch is to be executed, and what prepares it if that has not been done; `None`
    /// if the batch is to be sent as it is.
    pub fn name_for(&mut self, batch: &mut Batch) -> Option<(Option<Statement>, Rc<str>)> {
        if !prepared::can_last(batch) {
            return None;
        }
        batch.alone &= batch.kind == BatchKind::Update;
        let mut at = self.find_or_add(batch)?;
        if batch.alone && self.statements[at].known.failures >= MAX_FAILURES_ALONE {
            batch.alone = false;
            at = self.find_or_add(batch)?;
        }
        let known = &mut self.statements[at].known;
        let named = known.named(&mut self.names, |name| prepared::prepare(batch, name));
        self.used |= named.is_some();
        named
    }

    /// A statement that is always the same, without parameters, as it is sent now.
    pub fn question(&mut self, text: &'static str) -> Vec<Statement> {
        let at = (self.questions.iter())
            .position(|one| one.text == text)
            .unwrap_or_else(|| {
                let known = Known::default();
                self.questions.push(Question { text, known });
                self.questions.len() - 1
            });
        let known = &mut self.questions[at].known;
        let prepare = |name: &Rc<str>| Some(Statement::prepare(text.to_owned(), name.clone()));
        let Some((prepare, name)) = known.named(&mut self.names, prepare) else {
            return vec![Statement::plain(text)];
        };
        self.used = true;
        let execute = Statement::execute(name, Vec::new());
        prepare.into_iter().chain([execute]).collect()
    }

    fn find_or_add(&mut self, batch: &Batch) -> Option<usize> {
        let same = |statements: &PreparedStatement| {
            (statements.kind, statements.alone) == (batch.kind, batch.alone)
                && statements.unchanged == batch.unchanged
                && statements.route == batch.route
        };
        if let Some(at) = self.statements.iter().position(same) {
            return Some(at);
        }
        if self.statements.len() >= MAX_STATEMENTS {
            return None;
        }
        let route = batch.route.clone();
        let kind = batch.kind;
        let unchanged = batch.unchanged.clone();
        self.statements.push(PreparedStatement {
            route,
            kind,
            unchanged,
            alone: batch.alone,
            known: Known::default(),
        });
        Some(self.statements.len() - 1)
    }

    /// The run has ended, in success or not. Says whether it has executed any.
    pub fn settle(&mut self, succeeded: bool) -> bool {
        self.all().for_each(|known| known.settle(succeeded));
        std::mem::take(&mut self.used)
    }

    /// What was prepared is of no use any more.
    pub fn forget(&mut self) {
        self.all().for_each(Known::forget);
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Known> {
        let questions = self.questions.iter_mut().map(|one| &mut one.known);
        (self.statements.iter_mut().map(|one| &mut one.known)).chain(questions)
    }
}
