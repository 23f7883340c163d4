//! Changes that foreign keys refuse for now: they go once more after the others of their step.

use super::target::{CopyTarget, ROWS_PER_BATCH};
use crate::change::{Change, Route};
use crate::error::{Error, Result, SqlState};
use std::rc::Rc;

/// Changes of rows that refer to rows which are still to come, or are referred to by rows which are still to change.
#[derive(Default)]
pub struct Held {
    changes: Vec<(Rc<Route>, Change<String>)>,
    /// The last refusal.
    error: Option<Error>,
}

impl Held {
    /// Applies changes, and holds back those that are refused even by themselves by foreign keys.
    ///
    /// # Errors
    /// What the server refuses for another reason; what the connection reports.
    pub fn apply(
        &mut self,
        target: &mut CopyTarget,
        changes: &[(Rc<Route>, Change<String>)],
    ) -> Result<()> {
        match target.apply(changes.to_vec()) {
            Err(error)
                if [
                    SqlState::FOREIGN_KEY_VIOLATION,
                    SqlState::RESTRICT_VIOLATION,
                ]
                .contains(&error.sqlstate()) =>
            {
                if changes.len() < 2 {
                    self.changes.extend_from_slice(changes);
                    self.error = Some(error);
                    return Ok(());
                }
                let (one, other) = changes.split_at(changes.len() / 2);
                self.apply(target, one)?;
                self.apply(target, other)
            }
            result => result,
        }
    }

    /// Applies what was held back, as long as some of it is not refused any more.
    ///
    /// # Errors
    /// As for [`Held::apply`]; the last refusal, if all that is left is refused again.
    pub fn finish(mut self, target: &mut CopyTarget) -> Result<()> {
        while let Some(error) = self.error.take() {
            let before = std::mem::take(&mut self.changes);
            for chunk in before.chunks(ROWS_PER_BATCH) {
                self.apply(target, chunk)?;
            }
            if self.changes.len() == before.len() {
                return Err(error);
            }
        }
        Ok(())
    }
}
