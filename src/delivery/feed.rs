//! Where a link takes its statements from, a batch at a time, so that encoding overlaps with the
//! server's work and memory holds one batch.

use super::plan::Planner;
use crate::change::{Change, Route};
use crate::error::Result;
use crate::sql::{self, Batch, Statement};
use std::collections::VecDeque;
use std::rc::Rc;

/// A source of statements.
pub trait Feed {
    /// The next statements, to be sent together; `None` at the end.
    ///
    /// # Errors
    /// When the source cannot be read.
    fn next(&mut self) -> Result<Option<Vec<Statement>>>;
}

/// Statements known beforehand.
pub struct Fixed(Option<Vec<Statement>>);

impl Fixed {
    /// From SQL texts without parameters.
    pub fn new<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        let one = |text: T| Statement { text: text.into(), params: Vec::new() };
        Self(Some(texts.into_iter().map(one).collect()))
    }
}

impl Feed for Fixed {
    fn next(&mut self) -> Result<Option<Vec<Statement>>> {
        Ok(self.0.take())
    }
}

/// Changes, planned into batches as they are asked for.
pub struct Changes<I> {
    source: I,
    planner: Planner,
    done: bool,
    /// The `application_name` the session has, and the one it has now inside the transaction.
    name: String,
    current: String,
    before: VecDeque<Statement>,
}

impl<I> Changes<I> {
    /// A feed of the changes of `source` for a session named `application_name`, after the
    /// statements `before`.
    pub fn new(source: I, application_name: &str, before: Vec<Statement>) -> Self {
        Self {
            source,
            planner: Planner::default(),
            done: false,
            name: application_name.to_owned(),
            current: application_name.to_owned(),
            before: before.into(),
        }
    }

    fn render(&mut self, batch: Batch) -> Vec<Statement> {
        let mut statements: Vec<Statement> = self.before.drain(..).collect();
        let wanted = batch.route.application_name.as_ref().unwrap_or(&self.name);
        if *wanted != self.current {
            statements.push(Statement {
                text: "SELECT pg_catalog.set_config('application_name', $1, true)".to_owned(),
                params: vec![wanted.clone()],
            });
            self.current = wanted.clone();
        }
        statements.extend(sql::of_batch(batch));
        statements
    }
}

impl<'a, I> Feed for Changes<I>
where
    I: Iterator<Item = Result<(Rc<Route>, Change<&'a str>)>>,
{
    fn next(&mut self) -> Result<Option<Vec<Statement>>> {
        loop {
            if let Some(batch) = self.planner.pop() {
                return Ok(Some(self.render(batch)));
            }
            if self.done {
                return Ok(None);
            }
            match self.source.next() {
                Some(item) => {
                    let (route, change) = item?;
                    self.planner.push(&route, &change);
                }
                None => {
                    self.planner.finish();
                    self.done = true;
                }
            }
        }
    }
}
