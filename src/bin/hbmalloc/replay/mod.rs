//! `hbmalloc replay`: recorded programs, replayed with their streams on the simulated driver or on a
//! GPU, through every backend asked for and beside them through other allocators; a process each, so
//! that peaks and calls are its own.

mod backend;
mod child;
mod clock;
mod compare;
mod figures;
mod lag;
mod memory_file;
mod options;
mod outcome;
mod peers;
mod plot;
mod points;

use crate::machine::Machine;
use crate::progress::Progress;
use crate::trace::Trace;
use figures::Figures;
use hbmalloc::observe;
use hbmalloc::source::Kind;
pub use options::Options;
use outcome::Outcome;
use peers::{Peer, Peers};
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

/// Exit status of a replay or a comparison that could not be made, as opposed to one that found
/// something wrong.
const CANNOT_RUN: u8 = 2;

const NOBODY: &str = "--compare has nothing to compare with: no other allocator";

pub fn run(options: &Options) -> ExitCode {
    let outcome = match options.child {
        Some(kind) => {
            read(&options.traces[0]).map(|trace| backend::run(kind, &trace.recording, options))
        }
        None => replay_all(options),
    };
    outcome.unwrap_or_else(|reason| {
        eprintln!("hbmalloc replay: {reason}");
        ExitCode::from(CANNOT_RUN)
    })
}

/// A recorded program and its file.
struct Program<'a> {
    path: &'a Path,
    name: String,
    recording: Trace,
}

fn read(path: &Path) -> Result<Program<'_>, String> {
    let shown = path.display().to_string();
    let file = File::open(path).map_err(|error| format!("{shown}: {error}"))?;
    let recording = Trace::read(&shown, file).map_err(|error| error.to_string())?;
    if recording.events.is_empty() {
        return Err(format!("{shown}: no events"));
    }
    Ok(Program {
        path,
        name: trace_name(path),
        recording,
    })
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

/// Everything that is replayed, and on what.
struct Plan<'a> {
    options: &'a Options,
    machine: Machine,
    peers: Peers,
}

fn replay_all(options: &Options) -> Result<ExitCode, String> {
    let text = |error: hbmalloc::error::Error| error.to_string();
    let process = observe::process();
    options.apply(process).map_err(text)?;
    let machine = Machine::find(process).map_err(text)?;
    let programs: Result<Vec<_>, String> = options.traces.iter().map(|path| read(path)).collect();
    let programs = programs?;
    if let Some(file) = &options.plot {
        plot::check(file)?;
    }
    let peers = match options.wants_peers(machine.is_simulated) {
        true => Peers::find(
            process.driver().map_err(text)?.path(),
            &machine,
            options.lag,
        ),
        false => Peers::default(),
    };
    let plan = Plan {
        options,
        machine,
        peers,
    };
    plan.check()?;
    plan.begin();
    let mut outcomes = Vec::new();
    for program in &programs {
        plan.replay(program, &mut outcomes)?;
    }
    plan.end(&programs, &outcomes)
}

impl Plan<'_> {
    /// What would only show after all replays is looked at before the first.
    fn check(&self) -> Result<(), String> {
        if !self.options.compare || !self.peers.programs.is_empty() {
            return Ok(());
        }
        for (peer, reason) in &self.peers.skipped {
            eprintln!("skipped: {peer}: {reason}");
        }
        Err(match self.peers.skipped.is_empty() {
            true => format!("{NOBODY} was asked for; add --peers"),
            false => format!("{NOBODY} can be replayed here"),
        })
    }

    /// Prints what the figures are of, and what is left out.
    fn begin(&self) {
        if !self.options.json {
            let (machine, options) = (self.machine.describe(), self.options.describe());
            println!("{machine}\n{options}\n");
        }
        for (peer, reason) in &self.peers.skipped {
            self.tell(&format!("skipped: {peer}: {reason}"));
        }
        if !self.options.json {
            println!("{}", outcome::header());
        }
    }

    /// Prints a line beside the figures.
    fn tell(&self, line: &str) {
        match self.options.json {
            true => eprintln!("{line}"),
            false => println!("{line}"),
        }
    }

    fn replay(&self, program: &Program, outcomes: &mut Vec<Outcome>) -> Result<(), String> {
        for kind in self.options.backends() {
            outcomes.push(self.ours(program, kind));
            self.print(outcomes);
        }
        if self.peers.programs.is_empty() {
            return Ok(());
        }
        let events = peers::Events::of(&program.recording).map_err(|error| error.to_string())?;
        for peer in &self.peers.programs {
            outcomes.push(self.theirs(program, peer, &events));
            self.print(outcomes);
        }
        Ok(())
    }

    /// Prints the last outcome.
    fn print(&self, outcomes: &[Outcome]) {
        let Some(outcome) = outcomes.last() else {
            return;
        };
        for problem in &outcome.problems {
            eprintln!("      {problem}");
        }
        match self.options.json {
            true => println!("{}", outcome.json(&self.machine, &self.options.json())),
            false => println!("{}", outcome.row()),
        }
    }

    fn ours(&self, program: &Program, kind: Kind) -> Outcome {
        let outcome = Outcome::new(&program.name, kind.name(), false);
        self.repeated(program, outcome, || {
            child::command(self.options, program.path, kind, &self.machine)
        })
    }

    fn theirs(&self, program: &Program, peer: &Peer, events: &peers::Events) -> Outcome {
        let outcome = Outcome::new(&program.name, peer.name, true);
        self.repeated(program, outcome, || Ok(self.peers.command(peer, events)))
    }

    /// Replays as often as asked for and takes medians.
    fn repeated(
        &self,
        program: &Program,
        mut outcome: Outcome,
        command: impl Fn() -> std::io::Result<std::process::Command>,
    ) -> Outcome {
        let mut runs = Vec::new();
        for number in 1..=self.options.repeat {
            let round = match self.options.repeat {
                1 => String::new(),
                count => format!(" {number}/{count}"),
            };
            let what = format!("{}, {}{round}", outcome.trace, outcome.backend);
            let mut progress = Progress::start(what, program.recording.events.len());
            let told = command()
                .and_then(|command| child::listen(command, &mut progress, &mut outcome.problems));
            match told {
                Err(error) => outcome.problems.push(format!("its process: {error}")),
                Ok(told) => runs.extend(told.map(|told| told.figures)),
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

    /// Says how to read it, compares and draws, as asked for.
    fn end(&self, programs: &[Program], outcomes: &[Outcome]) -> Result<ExitCode, String> {
        if !self.options.json {
            println!("\n{}", outcome::reading(&self.machine, outcomes));
        }
        if let Some(file) = &self.options.plot {
            let panels = self.panels(programs)?;
            plot::draw(file, &panels)?;
            self.tell(&format!("{} is drawn.", file.display()));
        }
        let failed = outcomes.iter().filter(|outcome| !outcome.is_good()).count();
        if !self.options.compare {
            return Ok(ExitCode::from(u8::from(failed > 0)));
        }
        if !outcomes.iter().any(|one| one.is_peer && one.is_good()) {
            return Err(format!("{NOBODY} came to its end"));
        }
        let found = compare::compare(outcomes);
        for gap in &found.gaps {
            self.tell(&format!("not compared: {gap}"));
        }
        for loss in &found.losses {
            self.tell(&format!("loss: {loss}"));
        }
        if failed + found.losses.len() > 0 {
            return Ok(ExitCode::FAILURE);
        }
        match found.gaps.is_empty() {
            true => self.tell("No loss."),
            false => self.tell("No loss in what was compared."),
        }
        Ok(ExitCode::from(match found.gaps.is_empty() {
            true => 0,
            false => CANNOT_RUN,
        }))
    }

    /// Replays once more for the picture, so that the figures are not of runs that were looked at.
    fn panels(&self, programs: &[Program]) -> Result<Vec<plot::Panel>, String> {
        let mut panels = Vec::new();
        for program in programs {
            for kind in self.options.backends() {
                let what = format!("{}, {}, drawing", program.name, kind.name());
                let mut progress = Progress::start(what, program.recording.events.len());
                let mut problems = Vec::new();
                let told = child::command(self.options, program.path, kind, &self.machine)
                    .and_then(|mut command| {
                        command.args(["--points", &plot::POINTS.to_string()]);
                        child::listen(command, &mut progress, &mut problems)
                    });
                let told = told.map_err(|error| error.to_string())?;
                progress.end(if problems.is_empty() {
                    "done"
                } else {
                    "FAILED"
                });
                panels.push(plot::Panel {
                    title: format!("{}, {}", program.name, kind.name()),
                    points: told.map(|told| told.points).unwrap_or_default(),
                });
            }
        }
        Ok(panels)
    }
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
