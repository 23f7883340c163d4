//! What was seen, as tables in Markdown: one for each case, a row for each point, a column for each fault.

use std::fmt::Write;

use anyhow::{Context, Result};

use super::{Case, Point, Trial, What};

/// Between these lines of the documentation.
const BEGIN: &str = "<!-- seen by `cargo faults points`: -->";
const END: &str = "<!-- end -->";

/// What each trial came to.
#[derive(Default)]
pub struct Table(Vec<(Trial, String)>);

impl Table {
    pub fn set(&mut self, trial: &Trial, seen: String) {
        match self.0.iter_mut().find(|(one, _)| one == trial) {
            Some((_, before)) => *before = seen,
            None => self.0.push((*trial, seen)),
        }
    }

    pub fn get(&self, trial: &Trial) -> Option<&String> {
        self.0
            .iter()
            .find(|(one, _)| one == trial)
            .map(|(_, seen)| seen)
    }

    /// What the other one says of a trial counts.
    pub fn extend(&mut self, more: Table) {
        more.0
            .into_iter()
            .for_each(|(trial, seen)| self.set(&trial, seen));
    }

    /// The part of a document that tells of all.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for case in Case::ALL {
            let points = Point::ALL.map(|point| (point, self.row(case, point)));
            let rows: Vec<_> = points
                .iter()
                .filter_map(|(p, row)| Some((p, row.as_ref()?)))
                .collect();
            if rows.is_empty() {
                continue;
            }
            let heads = What::ALL.map(What::describe).join(" | ");
            let _ = write!(text, "\n### {}\n\n| | {heads} |\n|---", case.describe());
            text.push_str(&"|---".repeat(What::ALL.len()));
            text.push_str("|\n");
            for (point, row) in rows {
                let _ = writeln!(text, "| {} | {} |", point.describe(), row.join(" | "));
            }
        }
        text
    }

    fn row(&self, case: Case, point: Point) -> Option<Vec<String>> {
        let cells = What::ALL.map(|what| self.get(&Trial { case, point, what }).cloned());
        let is_empty = cells.iter().all(Option::is_none);
        (!is_empty).then(|| cells.map(Option::unwrap_or_default).to_vec())
    }

    /// Puts the tables into a document.
    ///
    /// # Errors
    /// When it has no place for them.
    pub fn put_into(&self, document: &str) -> Result<String> {
        let (before, rest) = document
            .split_once(BEGIN)
            .context("no place for the tables")?;
        let (_, after) = rest.split_once(END).context("no end of the tables")?;
        Ok(format!("{before}{BEGIN}\n{}\n{END}{after}", self.render()))
    }

    /// What a document tells.
    pub fn of(document: &str) -> Table {
        let mut table = Table::default();
        let mut case = None;
        for line in document.lines() {
            if let Some(title) = line.strip_prefix("### ") {
                case = Case::ALL.into_iter().find(|case| case.describe() == title);
            }
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let point = Point::ALL
                .into_iter()
                .find(|point| Some(&point.describe()) == cells.first());
            if let (Some(case), Some(point)) = (case, point) {
                for (what, seen) in What::ALL.into_iter().zip(&cells[1..]) {
                    table.set(&Trial { case, point, what }, (*seen).to_owned());
                }
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_tells_what_was_put_into_it() {
        let mut table = Table::default();
        let trial = Trial {
            case: Case::Sync,
            point: Point::Answered,
            what: What::Files,
        };
        table.set(&trial, "commits, delivered".to_owned());
        let document = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let document = table.put_into(&document).unwrap();
        assert!(
            document.starts_with("a\n") && document.ends_with("\nb\n"),
            "{document}"
        );
        assert!(!document.contains("old"));
        assert_eq!(Table::of(&document).get(&trial), table.get(&trial));
        let again = Table::of(&document).put_into(&document).unwrap();
        assert_eq!(again, document);
    }
}
