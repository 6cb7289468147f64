//! `hbmalloc replay`: recorded programs, replayed with their streams on the simulated driver or on a
//! GPU, through every backend asked for; a process each, so that peaks and calls are its own.

mod backend;
mod clock;
mod figures;
mod lag;
mod outcome;

use crate::json::quoted;
use crate::machine::Machine;
use crate::progress::Progress;
use crate::trace::Trace;
use figures::{Figures, News};
use hbmalloc::config::table;
use hbmalloc::error::Result;
use hbmalloc::observe;
use hbmalloc::process::Process;
use hbmalloc::source::Kind;
use outcome::Outcome;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Exit status of a replay that could not run, as opposed to one that found something wrong.
const CANNOT_RUN: u8 = 2;

#[derive(clap::Args)]
pub struct Options {
    /// Recorded programs: CSV with op,id,size,stream,t_us or RMM's log, plain or gzipped
    #[arg(required = true, value_name = "TRACE")]
    traces: Vec<PathBuf>,
    /// Which backends, separated by commas
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = backend_name)]
    backend: Vec<Kind>,
    /// Replay so many times and print medians
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Which way the pool leans: less driver time, or less memory held
    #[arg(long, value_name = "balanced|tight")]
    waste: Option<String>,
    /// Let work on the device lag N events behind the allocations, instead of none
    #[arg(long, value_name = "N", default_value_t = 0)]
    lag: u32,
    /// Print one JSON object a line instead of the table
    #[arg(long)]
    json: bool,
    /// Replay on one backend in this process and tell the parent
    #[arg(long, value_name = "BACKEND", hide = true, value_parser = backend_name)]
    child: Option<Kind>,
}

fn backend_name(name: &str) -> std::result::Result<Kind, String> {
    Kind::from_name(name).ok_or_else(|| {
        let names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        format!("no such backend; there are {}", names.join(", "))
    })
}

impl Options {
    /// Sets the library's options as asked for.
    fn apply(&self, process: &Process) -> Result<()> {
        match &self.waste {
            Some(waste) => process.settings().set("waste", waste).map(|_| ()),
            None => Ok(()),
        }
    }

    /// The value of the option `waste`, where this version has it.
    fn waste(&self) -> Option<String> {
        let spec = table::find("waste")?;
        Some(observe::process().settings().describe(spec.opt).0)
    }

    /// What the figures are of, in words.
    fn describe(&self) -> String {
        let mut text = match self.lag {
            0 => "Work on the device is done when asked for".to_owned(),
            lag => format!("Work on the device lags {lag} events behind"),
        };
        if let Some(waste) = self.waste() {
            text.push_str(&format!("; waste {waste}"));
        }
        if self.repeat > 1 {
            text.push_str(&format!("; medians of {} runs", self.repeat));
        }
        text + "."
    }

    /// The same as `"name":value` for JSON.
    fn json(&self) -> String {
        let waste = self.waste().map(|waste| quoted(&waste));
        format!(
            "\"lag\":{},\"waste\":{},\"repeat\":{}",
            self.lag,
            waste.as_deref().unwrap_or("null"),
            self.repeat
        )
    }

    fn backends(&self) -> Vec<Kind> {
        if !self.backend.is_empty() {
            return self.backend.clone();
        }
        match Kind::from_name("pool") {
            Some(pool) => vec![pool],
            None => vec![Kind::Async, Kind::Vmm],
        }
    }
}

pub fn run(options: &Options) -> ExitCode {
    match options.child {
        Some(kind) => match read(&options.traces[0]) {
            Ok(trace) => backend::run(kind, &trace, options),
            Err(reason) => cannot_run(&reason),
        },
        None => replay_all(options),
    }
}

fn cannot_run(reason: &str) -> ExitCode {
    eprintln!("hbmalloc replay: {reason}");
    ExitCode::from(CANNOT_RUN)
}

fn read(path: &Path) -> std::result::Result<Trace, String> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|error| format!("{name}: {error}"))?;
    let trace = Trace::read(&name, file).map_err(|error| error.to_string())?;
    match trace.events.is_empty() {
        true => Err(format!("{name}: no events")),
        false => Ok(trace),
    }
}

fn replay_all(options: &Options) -> ExitCode {
    let process = observe::process();
    let machine = match options.apply(process).and_then(|()| Machine::find(process)) {
        Ok(machine) => machine,
        Err(error) => return cannot_run(&error.to_string()),
    };
    let traces = options.traces.iter().map(|path| Ok((path, read(path)?)));
    let traces: std::result::Result<Vec<_>, String> = traces.collect();
    let traces = match traces {
        Ok(traces) => traces,
        Err(reason) => return cannot_run(&reason),
    };
    if !options.json {
        println!("{}\n{}\n", machine.describe(), options.describe());
        println!("{}", outcome::header());
    }
    let mut failed = 0;
    for (path, trace) in &traces {
        for kind in options.backends() {
            let outcome = replay(options, path, trace, kind, &machine);
            for problem in &outcome.problems {
                eprintln!("      {problem}");
            }
            failed += usize::from(!outcome.is_good());
            match options.json {
                true => println!("{}", outcome.json(&machine, &options.json())),
                false => println!("{}", outcome.row()),
            }
        }
    }
    if !options.json {
        println!("\n{}", outcome::reading(&machine, false));
    }
    ExitCode::from(u8::from(failed > 0))
}

/// Replays one trace on one backend, as often as asked for.
fn replay(options: &Options, path: &Path, trace: &Trace, kind: Kind, machine: &Machine) -> Outcome {
    let name = trace_name(path);
    let mut outcome = Outcome {
        trace: name.clone(),
        backend: kind.name().to_owned(),
        figures: None,
        problems: Vec::new(),
    };
    let mut runs = Vec::new();
    for number in 1..=options.repeat {
        let round = match options.repeat {
            1 => String::new(),
            count => format!(" {number}/{count}"),
        };
        let what = format!("{name}, {}{round}", kind.name());
        let mut progress = Progress::start(what, trace.events.len());
        let told = child(options, path, kind, machine)
            .and_then(|command| listen(command, &mut progress, &mut outcome.problems));
        match told {
            Err(error) => outcome.problems.push(format!("its process: {error}")),
            Ok(figures) => runs.extend(figures),
        }
        let is_good = outcome.problems.is_empty();
        progress.end(if is_good { "done" } else { "FAILED" });
        if !is_good {
            break;
        }
    }
    outcome.figures = (!runs.is_empty()).then(|| Figures::median(&runs));
    outcome
}

/// `train` for `some/where/train.csv.gz`.
fn trace_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    let name = name.to_string_lossy();
    let short = name.strip_suffix(".gz").unwrap_or(&name);
    let short = short.strip_suffix(".csv").unwrap_or(short);
    match short {
        "" => name.into_owned(),
        short => short.to_owned(),
    }
}

fn child(
    options: &Options,
    path: &Path,
    kind: Kind,
    machine: &Machine,
) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["replay", "--child", kind.name()])
        .args(["--lag", &options.lag.to_string()])
        .args(options.waste.iter().flat_map(|waste| ["--waste", waste]))
        .arg("--")
        .arg(path);
    if machine.is_fallback {
        command.env("HBMALLOC_DRIVER", "sim");
    }
    Ok(command)
}

/// Runs a child and takes in what it tells.
fn listen(
    mut command: Command,
    progress: &mut Progress,
    problems: &mut Vec<String>,
) -> std::io::Result<Option<Figures>> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = child.stdout.take().map(BufReader::new);
    let (mut figures, mut is_complete) = (Figures::default(), false);
    for line in lines.into_iter().flat_map(BufRead::lines) {
        match figures::hear(&line?, &mut figures) {
            Some(News::Progress(done)) => progress.at(done),
            Some(News::Problem(problem)) => problems.push(problem),
            Some(News::Skipped(reason)) => problems.push(reason),
            Some(News::Done) => is_complete = true,
            None => {}
        }
    }
    let status = child.wait()?;
    if problems.is_empty() && !(status.success() && is_complete) {
        problems.push(format!("its process: {status}"));
    }
    Ok(is_complete.then_some(figures))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_called_by_its_file() {
        assert_eq!(trace_name(Path::new("some/where/train.csv.gz")), "train");
        assert_eq!(trace_name(Path::new("log.dev0.csv")), "log.dev0");
        assert_eq!(trace_name(Path::new("x/.csv")), ".csv");
    }
}
