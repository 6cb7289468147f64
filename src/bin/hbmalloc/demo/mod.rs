//! `hbmalloc demo`: the library at work, the pool first and the other backends beside it. On a machine
//! with a GPU and PyTorch, a training run on each; anywhere else, a recorded PyTorch program replayed on the simulated driver, a process a
//! backend, with everything that can be checked checked.
//!
//! The recording is four steps of training a 12-layer transformer with AdamW beside a program that
//! hands tensors from stream to stream, both from an H200, with sizes scaled down by
//! `scripts/shrink-trace`.

mod backend;
mod data;
mod report;
mod torch;

use crate::kinds;
use crate::progress::Progress;
use crate::trace::Trace;
use hbmalloc::config::table::Opt;
use hbmalloc::config::value::format_bytes;
use hbmalloc::observe;
use hbmalloc::source::Kind;
use report::{Figures, News, Outcome};
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

const RECORDING: &[u8] = include_bytes!("train.csv.gz");

/// Exit status of a demo that could not run, as opposed to one that found something wrong.
const CANNOT_RUN: u8 = 2;

#[derive(clap::Args)]
pub struct Options {
    /// Replay on the simulated driver, also where there is a GPU
    #[arg(long)]
    sim: bool,
    /// Print one JSON object a backend, a line each, instead of the table (implies --sim)
    #[arg(long)]
    json: bool,
    /// Replay only so many events of the recording (implies --sim)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    events: Option<u32>,
    /// Overwrite the block that is read back in N-th place, to see that the demo finds out
    #[arg(long, value_name = "N", hide = true)]
    damage: Option<u64>,
    /// Replay on one backend in this process and tell the parent
    #[arg(long, value_name = "BACKEND", hide = true, value_parser = kinds::parse)]
    replay: Option<Kind>,
}

pub fn run(options: &Options) -> ExitCode {
    let mut trace = match Trace::read("the demo's recording", RECORDING) {
        Ok(trace) => trace,
        Err(error) => return cannot_run(&error.to_string()),
    };
    if let Some(count) = options.events {
        trace.shorten(count as usize);
    }
    if let Some(kind) = options.replay {
        return backend::run(kind, &trace, options.damage);
    }
    if let Err(problem) = observe::process().settings().check() {
        return cannot_run(&problem.to_string());
    }
    match choose(options) {
        Choice::Torch(python) => {
            let error = torch::hand_over(*python);
            cannot_run(&format!("Python could not be started: {error}"))
        }
        Choice::Simulator { driver, why } => {
            eprintln!("hbmalloc demo: {why}");
            replay_all(options, &trace, &driver)
        }
        Choice::Nothing(reason) => cannot_run(&reason),
    }
}

fn cannot_run(reason: &str) -> ExitCode {
    eprintln!("hbmalloc demo: {reason}");
    ExitCode::from(CANNOT_RUN)
}

/// Which demo it will be.
enum Choice {
    Torch(Box<Command>),
    Simulator { driver: String, why: String },
    Nothing(String),
}

fn choose(options: &Options) -> Choice {
    let simulator = |why: String| Choice::Simulator {
        driver: "sim".to_owned(),
        why,
    };
    let driver = observe::process().settings().text(Opt::Driver);
    match driver.as_str() {
        path if path.contains('/') => Choice::Simulator {
            driver: driver.clone(),
            why: format!("HBMALLOC_DRIVER names the driver {driver}."),
        },
        "sim" => simulator("HBMALLOC_DRIVER asks for the simulated driver.".to_owned()),
        _ if options.sim || options.json || options.events.is_some() => {
            simulator("the simulated driver, as asked for.".to_owned())
        }
        _ => match torch::gpu_driver(&driver) {
            Err(reason) if driver == "auto" => simulator(format!(
                "no GPU driver is here ({reason}), so the simulated driver is used."
            )),
            Err(reason) => Choice::Nothing(format!("HBMALLOC_DRIVER={driver}, but {reason}")),
            Ok(()) => {
                eprintln!("hbmalloc demo: a GPU is here; looking for PyTorch ...");
                match torch::python() {
                    Ok(python) => Choice::Torch(Box::new(python)),
                    Err(reason) => simulator(format!(
                        "the demo on a GPU needs PyTorch ({reason}), so the simulated driver is used."
                    )),
                }
            }
        },
    }
}

fn replay_all(options: &Options, trace: &Trace, driver: &str) -> ExitCode {
    let (bytes, blocks) = trace.peak();
    eprintln!(
        "Replaying {} events of a recorded PyTorch program (training a transformer; tensors handed from stream to stream):\n{} blocks on {} streams, at most {} in {blocks} blocks at a time. All figures are SIMULATED.\n",
        trace.events.len(),
        trace.blocks.len(),
        trace.streams(),
        format_bytes(bytes),
    );
    let expected = data::expected(trace);
    let mut outcomes = Vec::new();
    for (index, kind) in Kind::ALL.into_iter().enumerate() {
        let what = format!("[{}/{}] {:8}", index + 1, Kind::ALL.len(), kind.name());
        let progress = Progress::start(what, trace.events.len());
        let outcome = replay(options, kind, driver, expected, progress);
        for problem in &outcome.problems {
            eprintln!("      {problem}");
        }
        if options.json {
            println!("{}", report::json(&outcome));
        }
        outcomes.push(outcome);
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.is_good()).count();
    if !options.json {
        show(trace, &outcomes, expected, failed);
    }
    ExitCode::from(u8::from(failed > 0))
}

fn show(trace: &Trace, outcomes: &[Outcome], expected: u32, failed: usize) {
    println!(
        "\nOn the simulated driver, with {} MiB asked for at most:\n",
        report::mib(trace.peak().0)
    );
    println!("{}", report::table(outcomes));
    let is_tight = observe::process().settings().text(Opt::Waste) == "tight";
    if let Some(text) = report::headline(outcomes, is_tight) {
        println!("{text}\n");
    }
    println!("{}", report::READING);
    println!("Calls that each made, cuMem*:\n{}", report::calls(outcomes));
    if failed > 0 {
        println!("{failed} of {} backends FAILED; see above.", outcomes.len());
        return;
    }
    let verified = outcomes.iter().flat_map(|outcome| &outcome.figures);
    let verified: u64 = verified.map(|figures| figures.verified).sum();
    println!(
        "All checks passed: {} MiB read back as written, CRC-32 {expected:08x} on every backend; nothing left behind.",
        report::mib(verified)
    );
}

/// Runs one backend's replay in a process of its own.
fn replay(
    options: &Options,
    kind: Kind,
    driver: &str,
    expected: u32,
    mut progress: Progress,
) -> Outcome {
    let mut outcome = Outcome::new(kind);
    match listen(options, kind, driver, &mut progress, &mut outcome) {
        Err(error) => outcome.problems.push(format!("its process: {error}")),
        Ok(status) if !status.success() && outcome.problems.is_empty() => {
            outcome.problems.push(format!("its process: {status}"));
        }
        Ok(_) => {}
    }
    if let Some(figures) = &outcome.figures {
        if figures.checksum != expected {
            outcome.problems.push(format!(
                "the checksum is {:08x} instead of {expected:08x}",
                figures.checksum
            ));
        }
    } else if outcome.problems.is_empty() {
        outcome.problems.push("it gave no figures".to_owned());
    }
    progress.end(if outcome.is_good() { "done" } else { "FAILED" });
    outcome
}

fn listen(
    options: &Options,
    kind: Kind,
    driver: &str,
    progress: &mut Progress,
    outcome: &mut Outcome,
) -> std::io::Result<std::process::ExitStatus> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["demo", "--replay", kind.name()])
        .env("HBMALLOC_DRIVER", driver)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    for (name, value) in [
        ("--events", options.events.map(u64::from)),
        ("--damage", options.damage),
    ] {
        if let Some(value) = value {
            command.args([name, &value.to_string()]);
        }
    }
    let mut child = command.spawn()?;
    let lines = child.stdout.take().map(BufReader::new);
    let mut figures = Figures::default();
    for line in lines.into_iter().flat_map(BufRead::lines) {
        match report::hear(&line?, &mut figures) {
            Some(News::Progress(done)) => progress.at(done),
            Some(News::Problem(problem)) => outcome.problems.push(problem),
            Some(News::Done) => outcome.figures = Some(std::mem::take(&mut figures)),
            None => {}
        }
    }
    child.wait()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recording_is_small_and_peaks_where_it_should() {
        assert!(RECORDING.len() <= 150 << 10);
        let trace = Trace::read("train.csv.gz", RECORDING).unwrap();
        let (bytes, _) = trace.peak();
        assert!((255 << 20..=256 << 20).contains(&bytes), "{bytes}");
        assert_eq!(trace.streams(), 5);
    }
}
