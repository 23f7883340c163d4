//! What a session has prepared on its server; see [`lasting`].

use crate::change::Route;
use crate::sql::{Batch, Kind, Statement, lasting};
use std::rc::Rc;

/// Statements that a session keeps at most; more are sent as they are.
const MOST: usize = 64;
/// After so many failures before its first success a statement is not tried any more. Each may have left
/// something prepared.
const PATIENCE: u8 = 8;

/// See the module's head.
#[derive(Default)]
pub struct Prepared {
    known: Vec<Known>,
    /// Number of the next name: none is used twice, since a failure leaves open what the server has.
    next: u32,
    /// The run under way has executed some.
    used: bool,
}

struct Known {
    route: Rc<Route>,
    kind: Kind,
    unchanged: Vec<u32>,
    /// None while there is none that is beyond doubt.
    name: Option<Rc<str>>,
    /// What the run under way has sent to be prepared.
    sent: Option<Rc<str>>,
    failures: u8,
}

impl Prepared {
    /// The statements for a batch: the one that was prepared, or both; the batch itself if it is to be sent
    /// as it is.
    pub fn statements(&mut self, batch: Batch) -> Result<Vec<Statement>, Batch> {
        if !lasting::can_last(&batch) {
            return Err(batch);
        }
        let same = |known: &Known| {
            known.kind == batch.kind
                && known.unchanged == batch.unchanged
                && known.route == batch.route
        };
        let at = match self.known.iter().position(same) {
            Some(at) => at,
            None if self.known.len() < MOST => {
                let (route, kind) = (batch.route.clone(), batch.kind);
                let (unchanged, name, sent) = (batch.unchanged.clone(), None, None);
                self.known.push(Known { route, kind, unchanged, name, sent, failures: 0 });
                self.known.len() - 1
            }
            None => return Err(batch),
        };
        let known = &mut self.known[at];
        if known.failures >= PATIENCE {
            return Err(batch);
        }
        let mut statements = Vec::new();
        let name = match known.name.as_ref().or(known.sent.as_ref()) {
            Some(name) => name.clone(),
            None => {
                let name: Rc<str> = format!("pg_rowsync_{}", self.next).into();
                let Some(prepare) = lasting::prepare(&batch, &name) else { return Err(batch) };
                self.next += 1;
                known.sent = Some(name.clone());
                statements.push(prepare);
                name
            }
        };
        self.used = true;
        statements.push(lasting::execute(batch, &name));
        Ok(statements)
    }

    /// The run has ended, in success or not. Says whether it has executed any.
    pub fn settle(&mut self, succeeded: bool) -> bool {
        for known in self.known.iter_mut().filter(|known| known.sent.is_some()) {
            let sent = known.sent.take();
            match succeeded {
                true => known.name = sent,
                false => known.failures += 1,
            }
        }
        std::mem::take(&mut self.used)
    }

    /// What was prepared is of no use any more.
    pub fn forget(&mut self) {
        for known in &mut self.known {
            if known.name.take().is_some() {
                known.failures += 1;
            }
        }
    }
}
