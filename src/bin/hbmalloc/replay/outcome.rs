//! How one allocator's replay of one trace ended, as a line of the table or of JSON.

use super::figures::Figures;
use crate::json::quoted;
use crate::machine::Machine;

pub struct Outcome {
    pub trace: String,
    /// The name of one of our backends, or of a peer.
    pub backend: String,
    pub is_peer: bool,
    /// None where it did not come to its end.
    pub figures: Option<Figures>,
    pub problems: Vec<String>,
}

impl Outcome {
    /// Before anything has been heard.
    pub fn new(trace: &str, backend: &str, is_peer: bool) -> Outcome {
        Outcome {
            trace: trace.to_owned(),
            backend: backend.to_owned(),
            is_peer,
            figures: None,
            problems: Vec::new(),
        }
    }

    /// One of its figures, where it is known.
    pub fn figure(&self, name: &str) -> Option<f64> {
        self.figures.as_ref()?.get(name)
    }

    /// Whether it ended and nothing was wrong.
    pub fn is_good(&self) -> bool {
        self.figures.is_some() && self.problems.is_empty()
    }

    /// `extra` is what was asked for, `"name":value`.
    pub fn json(&self, machine: &Machine, extra: &str) -> String {
        let figures = self.figures.clone().unwrap_or_default();
        let problems: Vec<String> = self.problems.iter().map(|text| quoted(text)).collect();
        format!(
            "{{\"trace\":{},\"backend\":{},\"driver\":\"{}\",{},{},{extra},\"problems\":[{}]}}",
            quoted(&self.trace),
            quoted(&self.backend),
            machine.driver,
            figures.json(),
            machine.json(),
            problems.join(",")
        )
    }

    /// A row of the table.
    pub fn row(&self) -> String {
        let cell = |name: &str, scale: f64, places: usize| match self.figure(name) {
            Some(value) => format!("{:.places$}", value / scale),
            None => "-".to_owned(),
        };
        const MIB: f64 = (1 << 20) as f64;
        format!(
            "{:12} {:16} {:>9} {:>8} {:>6} {:>8} {:>8} {:>7} {:>8} {:>9} {:>8} {:>8}{}",
            self.trace,
            self.backend,
            cell("peak_requested", MIB, 1),
            cell("peak_reserved", MIB, 1),
            cell("ratio", 1.0, 3),
            cell("pair_ns_p50", 1.0, 0),
            cell("pair_ns_p99", 1.0, 0),
            cell("pair_ns_max", 1000.0, 0),
            cell("driver_calls", 1.0, 0),
            cell("driver_ms", 1.0, 1),
            cell("host_ms", 1.0, 1),
            cell("total_ms", 1.0, 1),
            if self.is_good() { "" } else { "  FAILED" }
        )
    }
}

/// The names of the columns.
pub fn header() -> String {
    format!(
        "{:12} {:16} {:>9} {:>8} {:>6} {:>8} {:>8} {:>7} {:>8} {:>9} {:>8} {:>8}",
        "trace",
        "backend",
        "asked MiB",
        "held MiB",
        "ratio",
        "pair p50",
        "p99",
        "max us",
        "calls",
        "driver ms",
        "host ms",
        "sum ms"
    )
}

/// What the columns mean.
pub fn reading(machine: &Machine, outcomes: &[Outcome]) -> String {
    let driver = match machine.is_simulated {
        true => {
            "what the calls would have cost on an H200, by the simulator's clock; what simulating took is left out."
        }
        false => "time inside the driver, without questions that cost it next to nothing.",
    };
    let peers = told_by_peers(outcomes);
    format!(
        "How to read it. asked, held: the most bytes asked for, and taken from the device, at a time.
pair: nanoseconds of an allocation with its free, the driver's part included, the clock's own cost not.
host: time in the allocator, without the driver's.
driver: {driver}{peers}"
    )
}

/// Which other allocators tell the driver's part of their time.
fn told_by_peers(outcomes: &[Outcome]) -> String {
    let names = |tells: bool| {
        let mut names: Vec<&str> = (outcomes.iter())
            .filter(|one| one.is_peer && one.figures.is_some())
            .filter(|one| one.figure("driver_ms").is_some() == tells)
            .map(|one| one.backend.as_str())
            .collect();
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    };
    let (telling, silent) = (names(true), names(false));
    let mut text = String::new();
    if !telling.is_empty() {
        text += &format!("\nAll time of {telling} is the driver's.");
    }
    if !silent.is_empty() {
        text += &format!(
            "\nThe driver's part is not told of {silent}: it is in their host time. Compare the sums."
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_which_peers_tell_the_drivers_part() {
        let outcome = |backend: &str, is_peer, driver_ms: Option<f64>| {
            let mut figures = Figures::default();
            if let Some(time) = driver_ms {
                figures.set("driver_ms", time);
            }
            Outcome {
                figures: Some(figures),
                ..Outcome::new("train", backend, is_peer)
            }
        };
        let ours = outcome("pool", false, Some(1.0));
        assert_eq!(told_by_peers(std::slice::from_ref(&ours)), "");
        let all = [
            ours,
            outcome("torch-native", true, None),
            outcome("cudaMallocAsync", true, Some(2.0)),
            outcome("rmm-pool", true, None),
            outcome("rmm-pool", true, None),
        ];
        assert_eq!(
            told_by_peers(&all),
            "\nAll time of cudaMallocAsync is the driver's.\nThe driver's part is not told of rmm-pool, \
             torch-native: it is in their host time. Compare the sums."
        );
    }
}
