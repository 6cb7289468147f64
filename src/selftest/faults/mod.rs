//! Every driver call of every operation fails once, at each of its positions. The failure is told,
//! the next call works, and once everything is given back nothing is left: no chunk, mapping,
//! address, event or record. Needs the simulated driver, which fails on demand and counts by itself.

mod host;
pub mod process;
pub mod ranges;
mod residency;
pub mod sources;

use super::simulator::Simulator;
use crate::error;
use crate::observe;
use crate::selftest::check::ensure;
use crate::selftest::{Outcome, Stop, Suite};
use crate::sys::hip;

const OUT_OF_MEMORY: i32 = 2;
/// Out of memory, a bad value, something unknown, and not supported.
const CODES: [i32; 4] = [OUT_OF_MEMORY, 1, 999, 801];

/// What a probe takes as the last word: the driver lacks the feature.
const DEFINITE: [i32; 2] = [1, 801];

/// Calls whose failure changes nothing that a caller could see: what they undo is tried again, and an
/// error without the driver's own words is one all the same; figures stay as they were last told.
const QUIET: [&str; 6] = [
    "cuEventDestroy_v2",
    "cuCtxPopCurrent_v2",
    "cuThreadExchangeStreamCaptureMode",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuMemPoolGetAttribute",
];

/// The same while a probe tidies up behind itself.
const QUIET_IN_PROBES: &str = "cuMemUnmap";

/// With HIP, a push and a pop of a device are made of these two; what is refused once is tried again or
/// had otherwise.
const QUIET_WITH_HIP: [&str; 4] = [
    "cuCtxGetDevice",
    "cuCtxSetCurrent",
    "cuMemSetAccess",
    "cuMemAddressReserve",
];

/// Made only where the device has work left at that moment.
const MADE_BY_CHANCE: &str = "cuEventSynchronize";

/// As many failures of one operation are told.
const TOLD: usize = 12;

/// One operation, from a state of its own.
pub trait Scenario: Sized {
    /// Sets the state up, on a machine started afresh.
    fn prepare(&self) -> Result<Box<dyn Stage>, Stop>;
}

/// A state that waits for its operation.
pub trait Stage {
    /// The simulated driver.
    fn simulator(&self) -> Simulator;
    /// The operation whose calls fail.
    fn act(&mut self) -> error::Result<()>;
    /// Warnings so far.
    fn warnings(&self) -> u64;
    /// Whether the operation asks what the driver can do, so that a refusal may be the answer.
    fn probes(&self) -> bool;
    /// Whether the operation is tried again when memory has run out.
    fn retries(&self) -> bool;
    /// Whether a failure of this call may pass without a word, since what it was to undo is tried once more.
    fn tries_again(&self, _call: &str) -> bool {
        false
    }
    /// What must hold after the operation, failed or not: the next one works, and at the end nothing
    /// is left. `refused` says that the driver said it lacks something.
    fn settle(self: Box<Self>, refused: bool) -> Outcome;
}

/// The suite of faults.
pub const SUITE: Suite = Suite {
    name: "faults",
    about: "every driver call of every operation fails once, at each of its positions",
    cases: &[
        ranges::CASES,
        sources::CASES,
        process::CASES,
        residency::CASES,
        host::CASES,
    ],
};

/// Runs `scenario` once without a fault and then once for every call, position and code. The answer
/// is the number of faults tried.
pub fn exhaust(scenario: &impl Scenario) -> Result<u64, Stop> {
    exhaust_with(scenario, &CODES)
}

fn exhaust_with(scenario: &impl Scenario, codes: &[i32]) -> Result<u64, Stop> {
    let (mut tried, mut wrong) = (0, Vec::new());
    for (call, count) in calls_of(scenario)? {
        for nth in 1..=count {
            for &code in codes {
                let place = format!("{call} number {nth} of {count} answers {code}");
                match one_fault(scenario, &call, nth, code).map_err(|stop| stop.at(place)) {
                    Err(Stop::Failed(text)) => wrong.push(text),
                    outcome => outcome?,
                }
                tried += 1;
            }
        }
    }
    let first: Vec<&str> = wrong.iter().take(TOLD).map(String::as_str).collect();
    let (count, first) = (wrong.len(), first.join("\n    "));
    ensure!(wrong.is_empty(), "{count} of {tried} faults:\n    {first}");
    Ok(tried)
}

/// The driver calls of the operation when nothing fails.
fn calls_of(scenario: &impl Scenario) -> Result<Vec<(String, u64)>, Stop> {
    let mut stage = scenario.prepare()?;
    let before = stage.simulator().call_log();
    stage
        .act()
        .map_err(|error| Stop::from(error).at("without a fault"))?;
    let after = stage.simulator().call_log();
    stage
        .settle(false)
        .map_err(|stop| stop.at("without a fault"))?;
    let earlier = |name: &str| {
        let found = before.iter().find(|(other, _)| other == name);
        found.map_or(0, |(_, count)| *count)
    };
    Ok(after
        .into_iter()
        .map(|(name, count)| {
            let made = count - earlier(&name);
            (name, made)
        })
        .filter(|(_, made)| *made > 0)
        .collect())
}

/// Whether a text names a call, by the driver's name or HIP's.
fn names(text: &str, call: &str) -> bool {
    text.contains(call) || hip::name(call).is_some_and(|name| text.contains(name))
}

fn is_quiet(call: &str) -> Result<bool, Stop> {
    let is_hip = observe::process().driver()?.is_hip();
    Ok(QUIET.contains(&call) || (is_hip && QUIET_WITH_HIP.contains(&call)))
}

fn one_fault(scenario: &impl Scenario, call: &str, nth: u64, code: i32) -> Outcome {
    let mut stage = scenario.prepare()?;
    let sim = stage.simulator();
    let (warned, made) = (stage.warnings(), sim.calls(call));
    sim.fail_once(call, nth, code);
    let outcome = stage.act();
    sim.fail_clear();
    if sim.calls(call) < made + nth {
        ensure!(call == MADE_BY_CHANCE, "the call was not made");
        outcome?;
        return stage.settle(false);
    }
    let refused = stage.probes() && DEFINITE.contains(&code);
    let told = match &outcome {
        Err(error) => names(&error.to_string(), call),
        Ok(()) => {
            is_quiet(call)?
                || stage.tries_again(call)
                || (stage.probes() && call == QUIET_IN_PROBES)
        }
    };
    let retried = outcome.is_ok() && code == OUT_OF_MEMORY && stage.retries();
    if !(told || refused || retried || stage.warnings() > warned) {
        let text = outcome.map_or_else(|error| error.to_string(), |()| "success".to_owned());
        return Err(format!("no word of the failure: {text}").into());
    }
    stage.settle(refused)
}
