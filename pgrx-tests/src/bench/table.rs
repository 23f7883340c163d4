//! Figures as text: a block for each workload, a line for each contender.

use super::contender::Contender;
use super::measure::{Figure, Figures, Unit};
use super::number::grouped;

/// Whom the last columns compare with.
const PEERS: [Contender; 3] = [Contender::Recipe, Contender::Fdw, Contender::Native];

pub fn render(figures: &Figures) -> String {
    let mut text = format!(
        "{:<10} {:>12} {:>10} {:>27} {:>10} {:>12} {:>9} {:>11}\n",
        "", "median", "", "min..max", "of none", "than recipe", "than fdw", "than native"
    );
    for workload in figures.workloads() {
        text.push_str(&format!("\n{workload}\n"));
        for contender in Contender::ALL {
            if let Some(figure) = figures.figure(workload, contender) {
                text.push_str(&line(figures, figure));
            } else if figures.is_left_out(workload, contender) {
                text.push_str(&format!("  {contender:<8} {:>12}\n", "-"));
            }
        }
    }
    text
}

fn line(figures: &Figures, figure: &Figure) -> String {
    let Figure {
        workload,
        contender,
        unit,
        ..
    } = figure;
    let of_none = figures
        .figure(workload, Contender::None)
        .map(|none| format!("{:.2}x", figure.median / none.median));
    let mut text = format!(
        "  {contender:<8} {:>12} {:<10} {:>27} {:>10}",
        number(figure.median),
        unit.name(),
        format!("{}..{}", number(figure.min()), number(figure.max())),
        of_none.unwrap_or_default(),
    );
    for (peer, width) in PEERS.into_iter().zip([12, 9, 11]) {
        let better = figures
            .better(workload, *contender, peer)
            .filter(|_| peer != *contender);
        let better = better
            .map(|better| format!("{better:.2}x"))
            .unwrap_or_default();
        text.push_str(&format!(" {better:>width$}"));
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// Three digits, or all before the point.
pub fn number(value: f64) -> String {
    match value {
        value if value >= 1000.0 => grouped(value.round() as u64),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// The same with its unit.
pub fn with_unit(value: f64, unit: Unit) -> String {
    format!("{} {}", number(value), unit.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_median_spread_and_ratios() {
        let mut figures = Figures::default();
        for (contender, took) in [
            (Contender::None, [10.0, 12.0, 11.0]),
            (Contender::Recipe, [2200.0, 2100.0, 2300.0]),
            (Contender::Async, [22.0, 20.0, 30.0]),
        ] {
            for sample in took {
                figures.add("insert", contender, Unit::Milliseconds, sample);
            }
        }
        figures.leave_out("insert", Contender::Fdw);
        let text = render(&figures);
        let of = |name: &str| {
            let line = text
                .lines()
                .find(|line| line.trim_start().starts_with(name))
                .unwrap();
            line.split_whitespace().collect::<Vec<_>>()
        };
        assert_eq!(
            of("async"),
            ["async", "22.0", "ms", "20.0..30.0", "2.00x", "100.00x"]
        );
        assert_eq!(
            of("recipe"),
            ["recipe", "2,200", "ms", "2,100..2,300", "200.00x"]
        );
        assert_eq!(of("fdw"), ["fdw", "-"]);
    }
}
