//! What `hbmalloc selftest` runs, and `cargo test` too: named cases in suites, on whatever driver is
//! in force, so that a machine without cargo can be tested by the command that was installed there.

mod check;
mod context;
pub mod driver;
pub mod faults;
pub mod machine;
pub mod pool;
pub mod process;
pub mod ranges;
pub mod residency;
pub mod simulator;
pub mod sources;
pub mod stress;

pub use context::Context;

use crate::config::Origin;
use crate::config::table::Opt;
use crate::error::{Error, Result, Status};
use crate::process::Process;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How a case ends before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// What is wrong.
    Failed(String),
    /// Why it cannot run here.
    Skipped(String),
}

impl Stop {
    /// The machine or the driver lacks what the case needs.
    pub fn skip(why: impl Into<String>) -> Stop {
        Stop::Skipped(why.into())
    }
}

impl From<String> for Stop {
    fn from(why: String) -> Stop {
        Stop::Failed(why)
    }
}

impl From<&str> for Stop {
    fn from(why: &str) -> Stop {
        Stop::Failed(why.to_owned())
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Failed(error.to_string())
    }
}

/// What a case comes to; `?` takes a text or an error of the library as a failure.
pub type Outcome = std::result::Result<(), Stop>;

/// One thing that must hold. A panic is a failure too.
pub struct Case {
    /// Its name within the suite.
    pub name: &'static str,
    /// Leaves everything as it found it, however it ends.
    pub run: fn(&Context) -> Outcome,
}

/// Cases that belong together.
pub struct Suite {
    /// By which it is chosen.
    pub name: &'static str,
    /// What it shows, in a line.
    pub about: &'static str,
    /// In the order they run.
    pub cases: &'static [&'static [Case]],
}

impl Suite {
    fn cases(&self) -> impl Iterator<Item = &'static Case> {
        self.cases.iter().copied().flatten()
    }
}

/// Every suite, in the order they run.
pub const SUITES: &[Suite] = &[
    driver::SUITE,
    ranges::SUITE,
    sources::SUITE,
    process::SUITE,
    pool::SUITE,
    residency::SUITE,
    faults::SUITE,
    stress::SUITE,
];

/// How many cases ended which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Cases that held.
    pub passed: usize,
    /// Cases that did not.
    pub failed: usize,
    /// Cases that could not run here.
    pub skipped: usize,
}

/// The suites of these names; all when there are none.
pub fn choose(names: &[String]) -> Result<Vec<&'static Suite>> {
    if names.is_empty() {
        return Ok(SUITES.iter().collect());
    }
    let named = |name: &String| {
        SUITES
            .iter()
            .find(|suite| suite.name == name)
            .ok_or_else(|| {
                let known: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
                Error::new(Status::BadOption, "selftest").detail(format!(
                    "there is no suite {name:?}; there are {}",
                    known.join(", ")
                ))
            })
    };
    names.iter().map(named).collect()
}

/// Prints the names of all cases of `suites`.
pub fn list(suites: &[&Suite]) {
    for suite in suites {
        println!("{}: {}", suite.name, suite.about);
        for case in suite.cases() {
            println!("  {}", case.name);
        }
    }
}

/// Runs `suites`, a line a case as they go. With `observe`, also what the driver answered at every
/// step of the cases that note it, to compare one driver with another.
pub fn run(suites: &[&Suite], observe: bool) -> Result<Summary> {
    quieten()?;
    let context = Context::open(observe)?;
    println!("{}", context.machine());
    let mut summary = Summary::default();
    for suite in suites {
        for case in suite.cases() {
            let name = format!("{}: {}", suite.name, case.name);
            context.begin(&name);
            match outcome(case, &context) {
                Ok(()) => {
                    summary.passed += 1;
                    println!("PASS {name}");
                }
                Err(Stop::Skipped(why)) => {
                    summary.skipped += 1;
                    println!("SKIP {name}: {why}");
                }
                Err(Stop::Failed(why)) => {
                    summary.failed += 1;
                    println!("FAIL {name}: {why}");
                }
            }
        }
    }
    println!(
        "{} passed, {} failed, {} skipped",
        summary.passed, summary.failed, summary.skipped
    );
    Ok(summary)
}

/// Cases provoke warnings, and look at how they are counted; nobody need read them.
fn quieten() -> Result<()> {
    let settings = Process::current().settings();
    if settings.describe(Opt::Log).1 == Origin::Default {
        settings.set("log", "error")?;
    }
    Ok(())
}

fn outcome(case: &Case, context: &Context) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| (case.run)(context)))
        .unwrap_or_else(|panic| Err(Stop::Failed(panic_text(&*panic))))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panic: {}", text.unwrap_or("without a text"))
}
