//! Units that are tried again after the others of their transaction before they are blamed.

use crate::error::Error;
use crate::queue::failed::Blockers;

/// Units of a transaction that are tried one by one after the others. Of more, the first is blamed.
pub(super) const MAX_POSTPONED: usize = 100;

/// Units of the transaction under way that were refused, and may not be once others are applied.
#[derive(Default)]
pub(super) struct Postponed {
    /// With the failure, unless they were not tried because they concern rows of others.
    pub(super) units: Vec<(usize, Option<Error>)>,
    /// What they touch.
    pub(super) writes: Blockers,
    /// Why the whole was refused of which the units are parts, if that may pass.
    pub(super) torn_over: Option<Error>,
    /// Units are postponed.
    pub(super) is_on: bool,
}

impl Postponed {
    pub(super) fn add(&mut self, batch_unit: (usize, i64), writes: &[i64], error: Option<Error>) {
        let (at, id) = batch_unit;
        self.writes.add(id, id, writes);
        self.units.push((at, error));
    }

    pub(super) fn is_full(&self) -> bool {
        self.is_on && self.units.len() >= MAX_POSTPONED
    }
}
