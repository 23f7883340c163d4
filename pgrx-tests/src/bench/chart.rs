//! The figures that matter most as horizontal bars on a logarithmic scale, as SVG.
//!
//! Every bar says how many times more its contender costs than no synchronisation: the scale is the
//! same for times and for rates, and for every machine. The figure itself stands beside it.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;

use super::contender::Contender;
use super::plan::{transactions, updates};
use super::report::{self, Report};
use super::shape::{Operation, Shape};
use super::table::with_unit;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 690.0;
const BAR: f64 = 15.0;
const STEP: f64 = 20.0;
const TOP: f64 = 92.0;

const COLOURS: [(Contender, &str); 8] = [
    (Contender::Recipe, "#9a6b2f"),
    (Contender::Fdw, "#b58a1d"),
    (Contender::Native, "#5f7f95"),
    (Contender::Bucardo, "#b0626f"),
    (Contender::Async, "#1f9d6b"),
    (Contender::Sync, "#2f8fd0"),
    (Contender::Atomic, "#1f5fa0"),
    (Contender::Queue, "#8a6fd1"),
];

/// Readable on white and on black: whoever shows the picture says which of them it is.
const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#24292f}\
    .title{font-size:16px;font-weight:600}.group{font-weight:600}.small{font-size:12px;fill:#57606a}\
    line{stroke:#d0d7de}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9da7b3}line{stroke:#3d444d}}";

struct Bar {
    contender: Contender,
    cost: f64,
    label: String,
}

/// Writes the chart of a report into a file.
pub fn write(report: &Report, file: &Path) -> Result<()> {
    report::write(file, &render(report))
}

fn render(report: &Report) -> String {
    let groups = groups(report);
    let most = groups
        .iter()
        .flat_map(|(_, bars)| bars)
        .map(|bar| bar.cost)
        .fold(10.0, f64::max);
    let decades = most.log10().ceil().max(1.0);
    let x = |cost: f64| LEFT + cost.max(1.0).log10() / decades * (RIGHT - LEFT);
    let mut body = String::new();
    let mut y = TOP;
    for (workload, bars) in &groups {
        y += 14.0;
        text(&mut body, LEFT, y, "group", "start", workload);
        y += 8.0;
        for bar in bars {
            let width = (x(bar.cost) - LEFT).max(2.0);
            let colour = COLOURS.iter().find(|(one, _)| *one == bar.contender);
            let colour = colour.map_or("#888888", |(_, colour)| colour);
            let middle = y + BAR - 3.0;
            text(
                &mut body,
                LEFT - 8.0,
                middle,
                "",
                "end",
                bar.contender.name(),
            );
            let _ = writeln!(
                body,
                r#"<rect x="{LEFT}" y="{y:.1}" width="{width:.1}" height="{BAR}" rx="2" fill="{colour}"/>"#
            );
            text(
                &mut body,
                LEFT + width + 6.0,
                middle,
                "small",
                "start",
                &bar.label,
            );
            y += STEP;
        }
        y += 12.0;
    }
    let mut axis = String::new();
    for decade in 0..=decades as i32 {
        let cost = 10f64.powi(decade);
        let at = x(cost);
        let _ = writeln!(
            axis,
            r#"<line x1="{at:.1}" y1="{:.1}" x2="{at:.1}" y2="{y:.1}"/>"#,
            TOP - 4.0
        );
        text(
            &mut axis,
            at,
            TOP - 9.0,
            "small",
            "middle",
            &format!("{cost}×"),
        );
    }
    let mut head = String::new();
    text(
        &mut head,
        16.0,
        24.0,
        "title",
        "start",
        "What it costs to keep a table in step",
    );
    let unit =
        "times the cost of no synchronisation, logarithmic; beside the bars the median itself";
    text(&mut head, 16.0, 44.0, "small", "start", unit);
    let place = format!(
        "async, sync and queue: pg_rowsync {}; PostgreSQL {}, both servers on one machine with {} cores",
        report.machine.pg_rowsync, report.machine.postgresql, report.machine.cores
    );
    text(&mut head, 16.0, 61.0, "small", "start", &place);
    let height = y + 8.0;
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}" width="{WIDTH}" height="{height:.0}" role="img">
<title>What it costs to keep a table in step, {unit}</title>
<style>{STYLE}</style>
{head}{axis}{body}</svg>
"#
    )
}

/// Workloads that were measured without synchronisation too, and their bars.
fn groups(report: &Report) -> Vec<(String, Vec<Bar>)> {
    let statements =
        Operation::ALL.map(|operation| Shape::Narrow.title(operation, report.plan.rows));
    let rates = [1, 8].map(|clients| transactions(1, clients));
    let rates = rates.into_iter().chain([1, 8].map(updates));
    let mut groups = Vec::new();
    for workload in statements.into_iter().chain(rates) {
        let mut bars = Vec::new();
        for (contender, _) in COLOURS {
            let cost = report.figures.better(&workload, Contender::None, contender);
            let figure = report.figures.figure(&workload, contender);
            if let (Some(cost), Some(figure)) = (cost, figure) {
                let label = format!("{cost:.1}× · {}", with_unit(figure.median, figure.unit));
                bars.push(Bar {
                    contender,
                    cost,
                    label,
                });
            }
        }
        if !bars.is_empty() {
            groups.push((workload, bars));
        }
    }
    groups
}

fn text(to: &mut String, x: f64, y: f64, class: &str, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        to,
        r#"<text x="{x:.1}" y="{y:.1}" class="{class}" text-anchor="{anchor}">{words}</text>"#
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::machine::Machine;
    use crate::bench::measure::{Figures, Unit};
    use crate::bench::plan::Plan;

    fn report() -> Report {
        let mut figures = Figures::default();
        for (contender, took) in [
            (Contender::None, 10.0),
            (Contender::Recipe, 1000.0),
            (Contender::Async, 20.0),
        ] {
            figures.add("insert 10,000 rows", contender, Unit::Milliseconds, took);
        }
        let machine = Machine {
            processor: "x".into(),
            cores: 2,
            memory_gib: 4,
            kernel: "6".into(),
            flush: 0.1,
            postgresql: "15".into(),
            pg_rowsync: "0".into(),
            settings: Vec::new(),
        };
        Report::new(machine, Plan::full(), figures)
    }

    #[test]
    fn bars_grow_with_the_logarithm_of_the_cost() {
        let drawn = render(&report());
        let widths: Vec<f64> = drawn
            .lines()
            .filter_map(|line| {
                line.split_once("<rect")
                    .and_then(|(_, rest)| rest.split_once(r#" width=""#))
            })
            .filter_map(|(_, rest)| rest.split('"').next()?.parse().ok())
            .collect();
        assert_eq!(widths, [600.0, 90.3]);
        assert!(drawn.contains("100.0× · 1,000 ms"), "{drawn}");
    }

    #[test]
    fn a_report_survives_its_json() {
        let report = report();
        let text = serde_json::to_string(&report).unwrap();
        let back: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(back.figures, report.figures);
        assert_eq!(render(&back), render(&report));
    }
}
