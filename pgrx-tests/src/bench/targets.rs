//! What pg_rowsync is to reach, in ratios of figures of the same run. Its contender is mode async
//! unless a target says otherwise.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::contender::Contender::{
    self, Async, Atomic, Fdw, Native, None as Nobody, Queue, Recipe, Sync,
};
use super::measure::Figures;
use super::number::grouped;
use super::plan::{Plan, distance, down, round_trip, transactions, updates};
use super::shape::{Operation, Shape};
use super::{copy, drain, guard, pooler, verify};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bound {
    AtLeast,
    AtMost,
    MoreThan,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub what: String,
    pub bound: Bound,
    pub limit: f64,
    pub unit: String,
    /// None: one of its figures was not measured.
    pub found: Option<f64>,
    /// About the most that there can be on this machine, where that is known. Of one client: who delivers at
    /// commit does the work of both sides one after the other, so that half of what comes of no
    /// synchronisation is left. Of several, whose commits share flushes: as much as without.
    #[serde(default)]
    pub reach: Option<f64>,
}

impl Verdict {
    pub fn is_met(&self) -> Option<bool> {
        self.found.map(|found| match self.bound {
            Bound::AtLeast => found >= self.limit,
            Bound::AtMost => found <= self.limit,
            Bound::MoreThan => found > self.limit,
        })
    }

    /// Whether nobody could meet it on this machine.
    pub fn is_out_of_reach(&self) -> bool {
        self.is_met() == Some(false) && self.reach.is_some_and(|reach| reach < self.limit)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bound, unit) = match self.bound {
            Bound::AtLeast => ("at least", &self.unit),
            Bound::AtMost => ("at most", &self.unit),
            Bound::MoreThan => ("more than", &self.unit),
        };
        let met = match self.is_met() {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "not measured",
        };
        let found = self
            .found
            .map_or("-".to_owned(), |found| format!("{}{unit}", rounded(found)));
        let wanted = format!("{bound} {}{unit}", rounded(self.limit));
        write!(f, "{met:<12}  {found:>16}  {wanted:<24}  {}", self.what)?;
        match self.reach.filter(|_| self.is_out_of_reach()) {
            Some(reach) => write!(f, " (out of reach here: about {})", rounded(reach)),
            None => Ok(()),
        }
    }
}

fn rounded(number: f64) -> String {
    if number >= 1000.0 {
        grouped(number.round() as u64)
    } else {
        format!("{number:.2}")
    }
}

struct Judge<'a> {
    figures: &'a Figures,
    plan: &'a Plan,
    verdicts: Vec<Verdict>,
}

pub fn judge(figures: &Figures, plan: &Plan) -> Vec<Verdict> {
    let mut judge = Judge {
        figures,
        plan,
        verdicts: Vec::new(),
    };
    for (shape, rows) in [
        (Shape::Narrow, plan.rows),
        (Shape::Wide, plan.rows),
        (Shape::Toast, plan.toast_rows),
    ] {
        judge.statements(shape, rows);
    }
    judge.transactions();
    judge.both_or_neither();
    judge.pooler();
    judge.distance();
    judge.many();
    judge.queue();
    judge.copies();
    judge.comparisons();
    judge.verdicts
}

impl Judge<'_> {
    fn push(&mut self, what: String, bound: Bound, limit: f64, unit: &str, found: Option<f64>) {
        let unit = unit.to_owned();
        self.verdicts.push(Verdict {
            what,
            bound,
            limit,
            unit,
            found,
            reach: None,
        });
    }

    /// With one client, see [`Verdict::reach`].
    fn faster(&mut self, workload: &str, other: Contender, bound: Bound, limit: f64) {
        self.faster_within(workload, other, bound, limit, 0.5);
    }

    /// The same where no more than that share of what comes of no synchronisation can be had.
    fn faster_within(
        &mut self,
        workload: &str,
        other: Contender,
        bound: Bound,
        limit: f64,
        share: f64,
    ) {
        let what = format!("{workload}: faster than {other}");
        let found = self.figures.better(workload, Async, other);
        let reach = self
            .figures
            .better(workload, Nobody, other)
            .map(|none| none * share);
        let unit = " times".to_owned();
        self.verdicts.push(Verdict {
            what,
            bound,
            limit,
            unit,
            found,
            reach,
        });
    }

    /// Of the time that it takes without synchronisation.
    fn cost(&mut self, workload: &str, limit: f64) {
        let found = self.figures.better(workload, Nobody, Async);
        let what = format!("{workload}: time of no synchronisation");
        self.push(what, Bound::AtMost, limit, " times", found);
    }

    /// Of the transactions that there are without synchronisation.
    fn share(&mut self, workload: &str, contender: Contender, limit: f64) {
        let found = self.figures.better(workload, contender, Nobody);
        let what = format!("{workload}: {contender}, of the rate without synchronisation");
        self.push(what, Bound::AtLeast, limit, "", found);
    }

    fn statements(&mut self, shape: Shape, rows: u32) {
        let title = |operation| shape.title(operation, rows);
        let insert = title(Operation::Insert);
        self.faster(&insert, Recipe, Bound::AtLeast, 100.0);
        self.faster(&insert, Fdw, Bound::AtLeast, 10.0);
        self.faster(&insert, Native, Bound::AtLeast, 1.0);
        self.cost(&insert, 3.5);
        for (operation, fdw) in [(Operation::Update, 8.0), (Operation::Delete, 6.0)] {
            let title = title(operation);
            self.faster(&title, Recipe, Bound::AtLeast, 80.0);
            self.faster(&title, Fdw, Bound::AtLeast, fdw);
            self.faster(&title, Native, Bound::MoreThan, 1.0);
        }
    }

    fn transactions(&mut self) {
        for (clients, recipe, fdw, share) in [(1, 2.5, 1.7, 0.5), (8, 4.0, 1.5, 1.0)] {
            for title in [transactions(1, clients), updates(clients)] {
                self.share(&title, Async, 0.45);
                self.faster_within(&title, Recipe, Bound::AtLeast, recipe, share);
                self.faster_within(&title, Fdw, Bound::AtLeast, fdw, share);
            }
        }
    }

    /// What the second phase costs.
    fn both_or_neither(&mut self) {
        for (clients, share) in [(1, 0.65), (8, 0.6)] {
            for title in [transactions(1, clients), updates(clients)] {
                let found = self.figures.better(&title, Atomic, Sync);
                let what = format!("{title}: atomic, of the rate in mode sync");
                self.push(what, Bound::AtLeast, share, "", found);
            }
        }
        let title = Shape::Narrow.title(Operation::Insert, self.plan.rows);
        let found = self.figures.better(&title, Sync, Atomic);
        let what = format!("{title}: atomic, of the time in mode sync");
        self.push(what, Bound::AtMost, 1.1, " times", found);
    }

    /// Of the rate without a pooler.
    fn pooler(&mut self) {
        for clients in pooler::CLIENTS {
            let [pooled, direct] = [true, false].map(|is_pooled| pooler::title(clients, is_pooled));
            for contender in [Async, Sync] {
                let rate = |title| self.figures.median(title, contender);
                let found = rate(&pooled).zip(rate(&direct));
                let what = format!("{pooled}: {contender}, of the rate without it");
                let found = found.map(|(pooled, direct)| pooled / direct);
                self.push(what, Bound::AtLeast, 0.8, "", found);
            }
        }
    }

    /// What a delay adds is one round trip, however many rows there are.
    fn distance(&mut self) {
        let median = |title: String, contender| self.figures.median(&title, contender);
        let far: Vec<u64> = self
            .plan
            .delays
            .iter()
            .copied()
            .filter(|delay| *delay > 0)
            .collect();
        let mut found = Vec::new();
        for delay in far {
            let round_trip =
                || Some(median(round_trip(delay), Nobody)? - median(round_trip(0), Nobody)?);
            let added = |rows| {
                Some(median(distance(rows, delay), Async)? - median(distance(rows, 0), Async)?)
            };
            for rows in [1, 100] {
                let trips = added(rows).and_then(|added| Some(added / round_trip()?));
                let what = format!("{}: what the distance adds", distance(rows, delay));
                found.push((what, 1.5, " round trips", trips));
            }
            if delay == 20 {
                let what = format!(
                    "{}: what the distance adds",
                    distance(self.plan.rows, delay)
                );
                found.push((what, 60.0, " ms", added(self.plan.rows)));
            }
        }
        for (what, limit, unit, found) in found {
            self.push(what, Bound::AtMost, limit, unit, found);
        }
    }

    fn many(&mut self) {
        let (few, many) = (self.plan.rows, self.plan.many);
        for operation in Operation::ALL {
            let [large, small] = [many, few].map(|rows| {
                let median = self
                    .figures
                    .median(&Shape::Narrow.title(operation, rows), Async)?;
                Some(median / f64::from(rows))
            });
            let what = format!("{}: a row's time", Shape::Narrow.title(operation, many));
            let unit = format!(" times that with {}", grouped(few.into()));
            let found = large.zip(small).map(|(large, small)| large / small);
            self.push(what, Bound::AtMost, 1.3, &unit, found);
        }
    }

    fn queue(&mut self) {
        for title in [transactions(1, 8), updates(8)] {
            self.share(&title, Queue, 0.75);
        }
        for clients in [1, 8] {
            self.share(&down(clients), Async, 0.7);
        }
        let drain = drain::title(self.plan);
        let found = self.figures.median(&drain, Queue);
        self.push(drain, Bound::AtLeast, 50_000.0, " records/s", found);
        self.cost(&guard::title(self.plan), 1.1);
    }
}

impl Judge<'_> {
    fn copies(&mut self) {
        for rows in [self.plan.many, self.plan.large] {
            let title = copy::title(rows);
            let found = self.figures.better(&title, Async, Native);
            self.push(
                format!("{title}: faster than native"),
                Bound::AtLeast,
                1.0,
                " times",
                found,
            );
        }
        let title = copy::title_small(self.plan);
        let found = self.figures.better(&title, Native, Async);
        self.push(
            format!("{title}: time of native"),
            Bound::AtMost,
            2.0,
            " times",
            found,
        );
        for (is_copied, limit) in [(true, 0.8), (false, 0.95)] {
            let rate = |meanwhile| {
                self.figures
                    .median(&copy::title_rate(is_copied, meanwhile), Async)
            };
            let found = rate(true)
                .zip(rate(false))
                .map(|(during, without)| during / without);
            let title = copy::title_rate(is_copied, true);
            self.push(
                format!("{title}: of the rate without"),
                Bound::AtLeast,
                limit,
                "",
                found,
            );
        }
        for (title, limit, unit) in [
            (copy::LONGEST_COMMIT, 200.0, " ms"),
            (copy::SNAPSHOT, 1_000.0, " ms"),
            (copy::MEMORY, 64.0, " MB"),
        ] {
            let found = self.figures.median(title, Async);
            self.push(title.to_owned(), Bound::AtMost, limit, unit, found);
        }
    }
}

impl Judge<'_> {
    fn comparisons(&mut self) {
        let rows = self.plan.many;
        let median = |title: &str, contender| self.figures.median(title, contender);
        let ratio = |one: Option<f64>, other: Option<f64>| Some(one? / other?);
        let equal = verify::title(rows);
        let took = median(&equal, Async);
        let scan = median(&verify::title_scan("md5", rows), Nobody);
        let few = verify::title_differing(rows, verify::FEW);
        let huge = verify::title(self.plan.huge);
        let factor = f64::from(self.plan.huge) / f64::from(rows);
        let [small, large] =
            [&equal, &huge].map(|title| median(&verify::title_memory(title), Async));
        let traffic = verify::title_traffic(&equal);
        let judged = [
            (
                format!("{equal}: time of one side's own md5"),
                1.5,
                " times".to_owned(),
                ratio(took, scan),
            ),
            (
                traffic.clone(),
                100.0,
                " kB".to_owned(),
                median(&traffic, Async),
            ),
            (
                few.clone(),
                1.2,
                " times that of equal rows".to_owned(),
                ratio(median(&few, Async), took),
            ),
            (
                format!("{huge}: a row's time"),
                1.3,
                format!(" times that with {}", grouped(rows.into())),
                ratio(median(&huge, Async), took.map(|took| took * factor)),
            ),
            (
                format!("{huge}: memory of the session's own"),
                1.5,
                format!(" times that with {}", grouped(rows.into())),
                ratio(large, small),
            ),
        ];
        for (what, limit, unit, found) in judged {
            self.push(what, Bound::AtMost, limit, &unit, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::measure::Unit;

    fn verdict(figures: &Figures, what: &str) -> Verdict {
        let verdicts = judge(figures, &Plan::full());
        let found: Vec<_> = verdicts
            .iter()
            .filter(|verdict| verdict.what == what)
            .collect();
        assert_eq!(found.len(), 1, "{what}: {verdicts:#?}");
        found[0].clone()
    }

    #[test]
    fn a_statement_is_held_against_its_peers() {
        let mut figures = Figures::default();
        for (contender, took) in [
            (Nobody, 10.0),
            (Recipe, 3600.0),
            (Native, 35.0),
            (Async, 36.0),
        ] {
            figures.add("insert 10,000 rows", contender, Unit::Milliseconds, took);
        }
        let met = |what: &str| verdict(&figures, &format!("insert 10,000 rows: {what}")).is_met();
        assert_eq!(met("faster than recipe"), Some(true));
        assert_eq!(met("faster than native"), Some(false));
        assert_eq!(met("faster than fdw"), None);
        assert_eq!(met("time of no synchronisation"), Some(false));
    }

    #[test]
    fn what_half_of_nothing_would_not_reach_is_out_of_reach() {
        for (recipe, out_of_reach) in [(1900.0, true), (2100.0, false)] {
            let mut figures = Figures::default();
            for (contender, took) in [(Nobody, 10.0), (Recipe, recipe), (Async, 36.0)] {
                figures.add("insert 10,000 rows", contender, Unit::Milliseconds, took);
            }
            let verdict = verdict(&figures, "insert 10,000 rows: faster than recipe");
            assert_eq!(verdict.is_met(), Some(false));
            assert_eq!(verdict.is_out_of_reach(), out_of_reach);
            assert_eq!(verdict.to_string().contains("about 95.00"), out_of_reach);
        }
    }

    #[test]
    fn a_rate_is_a_share_of_the_rate_of_nobody() {
        let mut figures = Figures::default();
        figures.add(&transactions(1, 8), Nobody, Unit::Transactions, 1000.0);
        figures.add(&transactions(1, 8), Queue, Unit::Transactions, 750.0);
        let what = format!(
            "{}: queue, of the rate without synchronisation",
            transactions(1, 8)
        );
        assert_eq!(verdict(&figures, &what).found, Some(0.75));
        assert_eq!(verdict(&figures, &what).is_met(), Some(true));
    }

    #[test]
    fn a_distance_counts_in_round_trips_as_measured() {
        let mut figures = Figures::default();
        for (delay, ping, took) in [(0, 0.2, 1.0), (5, 5.7, 12.0)] {
            figures.add(&round_trip(delay), Nobody, Unit::Milliseconds, ping);
            figures.add(&distance(1, delay), Async, Unit::Milliseconds, took);
        }
        let what = format!("{}: what the distance adds", distance(1, 5));
        assert_eq!(verdict(&figures, &what).found, Some(2.0));
        assert_eq!(verdict(&figures, &what).is_met(), Some(false));
    }

    #[test]
    fn many_rows_are_compared_row_by_row() {
        let mut figures = Figures::default();
        figures.add("delete 10,000 rows", Async, Unit::Milliseconds, 100.0);
        figures.add("delete 1,000,000 rows", Async, Unit::Milliseconds, 12_000.0);
        let found = verdict(&figures, "delete 1,000,000 rows: a row's time").found;
        assert!((found.unwrap() - 1.2).abs() < 1e-9, "{found:?}");
    }
}
