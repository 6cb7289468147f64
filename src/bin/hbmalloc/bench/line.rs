//! One case of one allocator, as a program told it.

use super::Part;
use crate::json::{field, quoted};

#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub allocator: String,
    /// Empty where the whole benchmark was skipped.
    pub case: String,
    pub outcome: Result<Figures, String>,
}

/// Nanoseconds a pair, over all batches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    pub reps: u64,
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Figures {
    /// Of single measurements; `None` without any.
    pub fn of(mut ns: Vec<f64>) -> Option<Figures> {
        ns.sort_by(f64::total_cmp);
        let middle = ns.len() / 2;
        let median = match ns.len() % 2 {
            0 => (ns.get(middle.checked_sub(1)?)? + ns[middle]) / 2.0,
            _ => ns[middle],
        };
        Some(Figures {
            reps: ns.len() as u64,
            median,
            least: ns[0],
            most: ns[ns.len() - 1],
        })
    }
}

impl Line {
    pub fn skipped(allocator: &str, reason: &str) -> Line {
        Line {
            allocator: allocator.to_owned(),
            case: String::new(),
            outcome: Err(reason.to_owned()),
        }
    }

    /// `None` for a line that is not a program's answer.
    pub fn parse(text: &str) -> Option<Line> {
        let allocator = field(text, "allocator")?;
        if let Some(reason) = field(text, "skipped") {
            return Some(Line::skipped(&allocator, &reason));
        }
        let number = |name| field(text, name)?.parse().ok();
        Some(Line {
            allocator,
            case: field(text, "case")?,
            outcome: Ok(Figures {
                reps: field(text, "reps")?.parse().ok()?,
                median: number("ns_median")?,
                least: number("ns_min")?,
                most: number("ns_max")?,
            }),
        })
    }

    pub fn json(&self, part: Part, simulated: bool) -> String {
        let bench = part.name();
        let rest = match &self.outcome {
            Ok(figures) => format!(
                "\"case\":{},\"reps\":{},\"ns_median\":{:.2},\"ns_min\":{:.2},\"ns_max\":{:.2}",
                quoted(&self.case),
                figures.reps,
                figures.median,
                figures.least,
                figures.most
            ),
            Err(reason) => format!("\"skipped\":{}", quoted(reason)),
        };
        format!(
            "{{\"bench\":\"{bench}\",\"allocator\":{},\"simulated\":{simulated},{rest}}}",
            quoted(&self.allocator)
        )
    }
}

/// Several runs of a process, each with one measurement a case, as one line a case.
pub fn together(runs: &[Line]) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for run in runs {
        if lines.iter().any(|line| line.case == run.case) {
            continue;
        }
        let ns = (runs.iter())
            .filter(|other| other.case == run.case)
            .filter_map(|other| other.outcome.as_ref().ok())
            .map(|figures| figures.median);
        let outcome = Figures::of(ns.collect()).map_or(run.outcome.clone(), Ok);
        lines.push(Line {
            outcome,
            ..run.clone()
        });
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_programs() {
        let line = Line::parse(
            r#"{"allocator":"pool","bench":"steady","case":"512 B","reps":7,"pairs":9,"ns_median":2.50,"ns_min":2.00,"ns_max":3.00}"#,
        );
        let line = line.unwrap();
        assert_eq!(
            (line.allocator.as_str(), line.case.as_str()),
            ("pool", "512 B")
        );
        assert_eq!(line.outcome.as_ref().unwrap().median, 2.5);
        assert_eq!(
            line.json(Part::Steady, true),
            r#"{"bench":"steady","allocator":"pool","simulated":true,"case":"512 B","reps":7,"ns_median":2.50,"ns_min":2.00,"ns_max":3.00}"#
        );
        let refused = Line::parse(r#"{"allocator":"x","bench":"cold","skipped":"no \"memory\""}"#);
        assert_eq!(refused.unwrap().outcome, Err("no \"memory\"".to_owned()));
        assert_eq!(Line::parse("some warning"), None);
    }

    #[test]
    fn runs_of_their_own_make_one_line_a_case() {
        let run = |case: &str, ns| Line {
            allocator: "a".to_owned(),
            case: case.to_owned(),
            outcome: Ok(Figures::of(vec![ns]).unwrap()),
        };
        let lines = together(&[run("first", 4.0), run("second", 1.0), run("first", 2.0)]);
        assert_eq!(lines.len(), 2);
        let first = lines[0].outcome.clone().unwrap();
        assert_eq!(
            (first.reps, first.median, first.least, first.most),
            (2, 3.0, 2.0, 4.0)
        );
    }
}
