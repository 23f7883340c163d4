//! Samples of one contender in one workload, and what is made of them.

use std::fs;
use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::contender::Contender;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "tps")]
    Transactions,
    #[serde(rename = "records/s")]
    Records,
    #[serde(rename = "bytes/row")]
    Bytes,
    #[serde(rename = "kB")]
    Kilobytes,
    #[serde(rename = "MB")]
    Megabytes,
}

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Unit::Milliseconds => "ms",
            Unit::Transactions => "tps",
            Unit::Records => "records/s",
            Unit::Bytes => "bytes/row",
            Unit::Kilobytes => "kB",
            Unit::Megabytes => "MB",
        }
    }

    pub fn more_is_better(self) -> bool {
        matches!(self, Unit::Transactions | Unit::Records)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub workload: String,
    pub contender: Contender,
    pub unit: Unit,
    pub median: f64,
    /// In the order of the rounds.
    pub samples: Vec<f64>,
}

impl Figure {
    pub fn min(&self) -> f64 {
        self.samples.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub fn max(&self) -> f64 {
        self.samples
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max)
    }
}

/// In the order in which they were measured first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub measured: Vec<Figure>,
    /// Workload and contender that would have taken too long.
    pub left_out: Vec<(String, Contender)>,
}

impl Figures {
    pub fn add(&mut self, workload: &str, contender: Contender, unit: Unit, sample: f64) {
        let known = self
            .measured
            .iter_mut()
            .find(|one| one.workload == workload && one.contender == contender);
        match known {
            Some(figure) => {
                figure.samples.push(sample);
                figure.median = median(&figure.samples);
            }
            None => self.measured.push(Figure {
                workload: workload.to_owned(),
                contender,
                unit,
                median: sample,
                samples: vec![sample],
            }),
        }
    }

    pub fn leave_out(&mut self, workload: &str, contender: Contender) {
        if !self.is_left_out(workload, contender) {
            self.left_out.push((workload.to_owned(), contender));
        }
    }

    pub fn is_left_out(&self, workload: &str, contender: Contender) -> bool {
        self.left_out
            .iter()
            .any(|one| one.0 == workload && one.1 == contender)
    }

    pub fn median(&self, workload: &str, contender: Contender) -> Option<f64> {
        self.figure(workload, contender).map(|figure| figure.median)
    }

    pub fn figure(&self, workload: &str, contender: Contender) -> Option<&Figure> {
        self.measured
            .iter()
            .find(|one| one.workload == workload && one.contender == contender)
    }

    /// How many times better the one is than the other: less time, or more done in it.
    pub fn better(&self, workload: &str, one: Contender, other: Contender) -> Option<f64> {
        let (one, other) = (self.figure(workload, one)?, self.figure(workload, other)?);
        Some(if one.unit.more_is_better() {
            one.median / other.median
        } else {
            other.median / one.median
        })
    }

    /// The workloads, each once.
    pub fn workloads(&self) -> Vec<&str> {
        let mut workloads: Vec<&str> = Vec::new();
        for figure in &self.measured {
            if !workloads.contains(&figure.workload.as_str()) {
                workloads.push(&figure.workload);
            }
        }
        workloads
    }
}

/// The middle one, or the mean of the two in the middle.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length.is_multiple_of(2) => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}

/// What it took, in milliseconds.
pub fn time<E>(what: impl FnOnce() -> Result<(), E>) -> Result<f64, E> {
    let start = Instant::now();
    what()?;
    Ok(milliseconds(start))
}

/// MB that a process has for itself alone.
pub fn own_memory(pid: i32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let own = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(own.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

pub fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 100.0]), 3.0);
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn samples_of_one_workload_and_contender_come_together() {
        let mut figures = Figures::default();
        for sample in [3.0, 1.0, 2.0] {
            figures.add("a", Contender::None, Unit::Milliseconds, sample);
            figures.add("a", Contender::Async, Unit::Milliseconds, sample * 2.0);
        }
        let figure = figures.figure("a", Contender::None).unwrap();
        assert_eq!((figure.min(), figure.median, figure.max()), (1.0, 2.0, 3.0));
        assert_eq!(figure.samples, [3.0, 1.0, 2.0]);
        assert_eq!(figures.median("a", Contender::Async), Some(4.0));
        assert_eq!(figures.workloads(), ["a"]);
    }

    #[test]
    fn better_is_less_time_and_more_transactions() {
        let mut figures = Figures::default();
        figures.add("a", Contender::Async, Unit::Milliseconds, 10.0);
        figures.add("a", Contender::Recipe, Unit::Milliseconds, 1000.0);
        figures.add("b", Contender::Async, Unit::Transactions, 1000.0);
        figures.add("b", Contender::Recipe, Unit::Transactions, 250.0);
        assert_eq!(
            figures.better("a", Contender::Async, Contender::Recipe),
            Some(100.0)
        );
        assert_eq!(
            figures.better("b", Contender::Async, Contender::Recipe),
            Some(4.0)
        );
        assert_eq!(figures.better("b", Contender::Async, Contender::Fdw), None);
    }
}
