//! What a replay measured: told by one process to another, and printed as JSON. What a replay cannot
//! know is not there, and null in JSON.

use super::points::Point;
use std::collections::BTreeMap;

/// Numbers by name: bytes, counts, and times in the unit that the name ends with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures(BTreeMap<String, f64>);

/// The names that every line of JSON has, in this order. `ratio` is derived.
const FIRST: [&str; 8] = [
    "peak_requested",
    "peak_reserved",
    "ratio",
    "pair_ns_p50",
    "pair_ns_p99",
    "host_ms",
    "driver_calls",
    "driver_ms",
];

impl Figures {
    pub fn set(&mut self, name: &str, value: f64) {
        self.0.insert(name.to_owned(), value);
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        match name {
            "ratio" => self.ratio(),
            _ => self.0.get(name).copied(),
        }
    }

    /// Bytes held at most, for each byte asked for at most.
    fn ratio(&self) -> Option<f64> {
        let (held, asked) = (self.get("peak_reserved")?, self.get("peak_requested")?);
        (asked > 0.0).then(|| held / asked)
    }

    /// Tells the parent.
    pub fn print(&self) {
        for (name, value) in &self.0 {
            println!("figure {name} {value}");
        }
        println!("done");
    }

    /// Each figure's median over several runs.
    pub fn median(runs: &[Figures]) -> Figures {
        let mut all: BTreeMap<&String, Vec<f64>> = BTreeMap::new();
        for (name, value) in runs.iter().flat_map(|run| &run.0) {
            all.entry(name).or_default().push(*value);
        }
        let medians = all.into_iter().map(|(name, mut values)| {
            values.sort_unstable_by(f64::total_cmp);
            let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
            (name.clone(), (low + high) / 2.0)
        });
        Figures(medians.collect())
    }

    /// `"name":value` for all, those that every line has first.
    pub fn json(&self) -> String {
        let others = self.0.keys().map(String::as_str);
        let others = others.filter(|name| !FIRST.contains(name));
        let entries = FIRST.into_iter().chain(others).map(|name| {
            let value = self.get(name).filter(|value| value.is_finite());
            format!("\"{name}\":{}", value.map_or("null".to_owned(), number))
        });
        entries.collect::<Vec<_>>().join(",")
    }
}

/// Counts and bytes whole, the rest with four places.
fn number(value: f64) -> String {
    match value.fract() == 0.0 && value.abs() < 1e15 {
        true => format!("{value:.0}"),
        false => format!("{value:.4}"),
    }
}

/// One thing that a replay tells its parent.
#[derive(Debug, PartialEq)]
pub enum News {
    Progress(usize),
    Problem(String),
    Point(Point),
    Done,
}

/// Takes in one line of a child; `figures` gathers what it measured.
pub fn hear(line: &str, figures: &mut Figures) -> Option<News> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "progress" => rest.parse().ok().map(News::Progress),
        "problem" => Some(News::Problem(rest.to_owned())),
        "point" => Point::parse(rest).map(News::Point),
        "done" => Some(News::Done),
        "figure" => {
            let (name, value) = rest.split_once(' ')?;
            figures.set(name, value.parse().ok()?);
            None
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(entries: &[(&str, f64)]) -> Figures {
        let mut figures = Figures::default();
        for (name, value) in entries {
            figures.set(name, *value);
        }
        figures
    }

    #[test]
    fn what_is_told_is_heard() {
        let mut figures = Figures::default();
        assert_eq!(hear("progress 12", &mut figures), Some(News::Progress(12)));
        assert_eq!(
            hear("problem a b", &mut figures),
            Some(News::Problem("a b".to_owned()))
        );
        assert_eq!(hear("figure host_ms 1.5", &mut figures), None);
        assert_eq!(hear("figure host_ms x", &mut figures), None);
        assert_eq!(hear("anything", &mut figures), None);
        assert_eq!(figures, of(&[("host_ms", 1.5)]));
        assert_eq!(hear("done", &mut figures), Some(News::Done));
    }

    #[test]
    fn a_median_is_taken_of_every_figure() {
        let runs = [1.0, 9.0, 2.0].map(|value| of(&[("host_ms", value)]));
        assert_eq!(Figures::median(&runs), of(&[("host_ms", 2.0)]));
        assert_eq!(Figures::median(&runs[..2]), of(&[("host_ms", 5.0)]));
        assert_eq!(Figures::median(&[]), Figures::default());
    }

    #[test]
    fn json_has_its_names_in_order_and_null_for_what_is_unknown() {
        let json = of(&[("peak_requested", 4.0), ("peak_reserved", 6.0), ("z", 0.25)]).json();
        assert_eq!(
            json,
            "\"peak_requested\":4,\"peak_reserved\":6,\"ratio\":1.5000,\"pair_ns_p50\":null,\
             \"pair_ns_p99\":null,\"host_ms\":null,\"driver_calls\":null,\"driver_ms\":null,\"z\":0.2500"
        );
    }
}
