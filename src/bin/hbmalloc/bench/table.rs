//! The tables: one a benchmark, a row an allocator, a column a case.

use super::Part;
use super::line::{Figures, Line};
use super::peers::Entry;

/// What a cell shows of a pair's nanoseconds.
enum Unit {
    Nanoseconds,
    Microseconds,
    /// Millions of pairs a second.
    Rate,
}

fn title(part: Part) -> (&'static str, Unit) {
    match part {
        Part::Sources => ("Sources", Unit::Microseconds),
        Part::Steady => (
            "Steady pair: allocate and free one block; ns a pair",
            Unit::Nanoseconds,
        ),
        Part::Holes => (
            "8 KiB among 5000 live blocks and 5000 holes that walk; ns a pair",
            Unit::Nanoseconds,
        ),
        Part::Random => (
            "Live blocks of random sizes, 512 B to 1 MiB: free one, allocate another; ns a pair",
            Unit::Nanoseconds,
        ),
        Part::Remote => (
            "Allocated on one thread, freed on another; million pairs a second",
            Unit::Rate,
        ),
        Part::Threads => (
            "Threads, each with its own stream, sizes of 512 B to 64 KiB; million pairs a second",
            Unit::Rate,
        ),
        Part::Cold => (
            "From cold to a mapped block, a process each time; us",
            Unit::Microseconds,
        ),
        Part::Torch => (
            "torch.empty from Python, created and dropped; us",
            Unit::Microseconds,
        ),
    }
}

impl Unit {
    fn of(&self, ns: f64) -> f64 {
        match self {
            Unit::Nanoseconds => ns,
            Unit::Microseconds => ns / 1e3,
            Unit::Rate => 1e3 / ns,
        }
    }

    fn cell(&self, figures: &Figures) -> String {
        let (one, other) = (self.of(figures.least), self.of(figures.most));
        format!(
            "{} ({}-{})",
            short(self.of(figures.median)),
            short(one.min(other)),
            short(one.max(other))
        )
    }
}

/// Three digits that count, without an exponent.
fn short(value: f64) -> String {
    match value {
        value if value < 9.995 => format!("{value:.2}"),
        value if value < 99.95 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// Prints the table of one benchmark, and how far the best of the others is behind us.
pub fn print(part: Part, lines: &[(&Entry, Vec<Line>)]) {
    let (title, unit) = title(part);
    let mut cases: Vec<&str> = Vec::new();
    for line in lines.iter().flat_map(|(_, lines)| lines) {
        if line.outcome.is_ok() && !cases.contains(&line.case.as_str()) {
            cases.push(&line.case);
        }
    }
    let mut rows = vec![heading(&cases)];
    let mut refused = Vec::new();
    for (entry, lines) in lines {
        let cell =
            |case: &&str| find(lines, case).map_or("-".to_owned(), |figures| unit.cell(figures));
        if lines.iter().any(|line| line.outcome.is_ok()) {
            let cells = cases.iter().map(cell);
            rows.push([entry.label.clone()].into_iter().chain(cells).collect());
        }
        let reasons = lines.iter().filter_map(|line| line.outcome.as_ref().err());
        refused.extend(reasons.map(|reason| format!("{}: {reason}", entry.label)));
    }
    rows.extend(lead(&cases, lines));
    println!("{title}\n");
    if !cases.is_empty() {
        println!("{}", aligned(&rows));
    }
    for text in refused {
        println!("{text}");
    }
    println!();
}

fn heading(cases: &[&str]) -> Vec<String> {
    let cases = cases.iter().map(|case| (*case).to_owned());
    ["allocator".to_owned()].into_iter().chain(cases).collect()
}

fn find<'a>(lines: &'a [Line], case: &str) -> Option<&'a Figures> {
    let line = lines.iter().find(|line| line.case == case)?;
    line.outcome.as_ref().ok()
}

/// How many times the best other allocator's time is ours; ours is the first.
fn lead(cases: &[&str], lines: &[(&Entry, Vec<Line>)]) -> Option<Vec<String>> {
    let (_, ours) = lines.iter().find(|(entry, _)| entry.is_ours)?;
    let others = || (lines.iter()).filter(|(entry, _)| !entry.is_ours && !entry.is_baseline);
    others().next()?;
    let cell = |case: &&str| {
        let best = others()
            .filter_map(|(_, lines)| find(lines, case))
            .map(|figures| figures.median)
            .min_by(f64::total_cmp);
        match (best, find(ours, case)) {
            (Some(best), Some(ours)) => format!("{}x", short(best / ours.median)),
            _ => "-".to_owned(),
        }
    };
    let label = "the best other, by ours".to_owned();
    Some([label].into_iter().chain(cases.iter().map(cell)).collect())
}

/// Rows as a table of Markdown.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
            .max(3)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (cell, &width) in row.iter().zip(&widths) {
            out += &format!("| {cell:width$} ");
        }
        out += "|\n";
        if number == 0 {
            for &width in &widths {
                out += &format!("| {} ", "-".repeat(width));
            }
            out += "|\n";
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_three_digits() {
        let shown: Vec<String> = [0.1234, 9.999, 34.56, 99.99, 27380.4].map(short).into();
        assert_eq!(shown, ["0.12", "10.0", "34.6", "100", "27380"]);
    }

    #[test]
    fn rates_turn_least_and_most_around() {
        let figures = Figures::of(vec![10.0, 20.0, 50.0]).unwrap();
        assert_eq!(Unit::Rate.cell(&figures), "50.0 (20.0-100)");
        assert_eq!(Unit::Nanoseconds.cell(&figures), "20.0 (10.0-50.0)");
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [
            vec!["a".to_owned(), "longer".to_owned()],
            vec!["bb".to_owned(), "1".to_owned()],
        ];
        let expected = "| a   | longer |\n| --- | ------ |\n| bb  | 1      |\n";
        assert_eq!(aligned(&rows), expected);
    }
}
