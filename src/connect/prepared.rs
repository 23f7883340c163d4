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
pub struct Prepared {
    statements: Vec<PreparedStatement>,
    /// Begins the names: they are no other session's, should one process ever serve both.
    prefix: Option<String>,
    /// Number of the next name: none is used twice, since a failure leaves open what the server has.
    next: u32,
    /// The run under way has executed some.
    used: bool,
}

struct PreparedStatement {
    route: Rc<Route>,
    kind: BatchKind,
    unchanged: Vec<u32>,
    alone: bool,
    /// None while there is none that is beyond doubt.
    name: Option<Rc<str>>,
    /// What the run under way has sent to be prepared.
    sent: Option<Rc<str>>,
    failures: u8,
}

impl Prepared {
    /// The name under which a batch is to be executed, and what prepares it if that has not been done; `None`
    /// if the batch is to be sent as it is.
    pub fn name_for(&mut self, batch: &mut Batch) -> Option<(Option<Statement>, Rc<str>)> {
        if !prepared::can_last(batch) {
            return None;
        }
        batch.alone &= batch.kind == BatchKind::Update;
        let mut at = self.find_or_add(batch)?;
        if batch.alone && self.statements[at].failures >= MAX_FAILURES_ALONE {
            batch.alone = false;
            at = self.find_or_add(batch)?;
        }
        let statements = &mut self.statements[at];
        if statements.failures >= MAX_FAILURES {
            return None;
        }
        self.used = true;
        if let Some(name) = statements.name.as_ref().or(statements.sent.as_ref()) {
            return Some((None, name.clone()));
        }
        let prefix = match &self.prefix {
            Some(prefix) => prefix,
            None => self
                .prefix
                .insert(format!("rs_{:x}", context::random().ok()? as u32)),
        };
        let name: Rc<str> = format!("{prefix}_{}", self.next).into();
        let prepare = prepared::prepare(batch, &name)?;
        self.next += 1;
        statements.sent = Some(name.clone());
        Some((Some(prepare), name))
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
        let (route, kind, unchanged) = (batch.route.clone(), batch.kind, batch.unchanged.clone());
        self.statements.push(PreparedStatement {
            route,
            kind,
            unchanged,
            alone: batch.alone,
            name: None,
            sent: None,
            failures: 0,
        });
        Some(self.statements.len() - 1)
    }

    /// The run has ended, in success or not. Says whether it has executed any.
    pub fn settle(&mut self, succeeded: bool) -> bool {
        for statements in self
            .statements
            .iter_mut()
            .filter(|statements| statements.sent.is_some())
        {
            let sent = statements.sent.take();
            if succeeded {
                statements.name = sent
            } else {
                statements.failures += 1
            }
        }
        std::mem::take(&mut self.used)
    }

    /// What was prepared is of no use any more.
    pub fn forget(&mut self) {
        for statements in &mut self.statements {
            if statements.name.take().is_some() {
                statements.failures += 1;
            }
        }
    }
}
