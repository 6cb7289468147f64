//! `hbmalloc bench`: what allocations cost on the host, for us and for every other allocator that is
//! installed, in one run. The sources are measured in this process; the pairs by C++ programs that
//! share one set of loops, compiled here and run one after the other, a process a benchmark.

mod line;
mod peers;
mod programs;
mod sources;
mod table;

use crate::json::quoted;
use crate::kinds;
use crate::machine::Machine;
use crate::progress::Progress;
use clap::ValueEnum;
use hbmalloc::error::Error;
use hbmalloc::observe;
use hbmalloc::source::Kind;
use line::Line;
use peers::{Entry, Peers};
use programs::Programs;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Options {
    /// Print one JSON object a line instead of tables
    #[arg(long)]
    json: bool,
    /// Only these parts, separated by commas
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// Only hbmalloc, without the other allocators
    #[arg(long)]
    ours: bool,
    /// Which of hbmalloc's kinds, separated by commas [default: the pool]
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = kinds::parse)]
    kinds: Vec<Kind>,
    /// Batches a case; the median is told, and the least and the most
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    reps: u32,
    /// Length of a batch
    #[arg(long, value_name = "MS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    batch_ms: u32,
    /// Live blocks of random sizes
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    live: u32,
    /// Pairs of each source beside the driver's calls, at most
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Keep the compiled programs in this folder
    #[arg(long, value_name = "FOLDER")]
    build: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Each source beside the driver's own calls
    Sources,
    /// One block allocated and freed over and over
    Steady,
    /// 8 KiB among 5000 live blocks and 5000 holes
    Holes,
    /// 100,000 live blocks of random sizes
    Random,
    /// Allocated on one thread, freed on another
    Remote,
    /// 1 to 16 threads
    Threads,
    /// The first 1 GiB of a process
    Cold,
    /// `torch.empty` from Python
    Torch,
}

impl Part {
    /// What arguments call it.
    fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or(String::new(), |value| value.get_name().to_owned())
    }
}

impl Options {
    fn parts(&self) -> &[Part] {
        match self.only.as_slice() {
            [] => Part::value_variants(),
            named => named,
        }
    }

    fn kinds(&self) -> Vec<Kind> {
        kinds::chosen(&self.kinds)
    }
}

pub fn run(options: &Options) -> ExitCode {
    match measure(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hbmalloc bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<(), String> {
    let text = |error: Error| error.to_string();
    let process = observe::process();
    process.set_hooked(true);
    let machine = Machine::find(process).map_err(text)?;
    let driver = process.driver().map_err(text)?;
    process.device(0).map_err(text)?;
    if options.json {
        println!("{{\"machine\":true,{}}}", machine.json());
    } else {
        print_machine(&machine);
    }
    let parts: Vec<Part> = (options.parts().iter().copied())
        .filter(|part| *part != Part::Sources)
        .collect();
    if parts.len() < options.parts().len() {
        sources::measure(driver, options.pairs as usize, options.json).map_err(text)?;
    }
    if parts.is_empty() {
        return Ok(());
    }
    let peers = Peers::find(options, driver.path(), &machine)?;
    let programs = Programs::build(options.build.as_deref(), peers)?;
    for part in parts {
        if programs.entries().iter().all(|entry| !entry.takes(part)) {
            tell_skipped(part, &machine, options.json);
            continue;
        }
        let lines = measure_part(&programs, part, options);
        if options.json {
            for line in lines.iter().flat_map(|(_, lines)| lines) {
                println!("{}", line.json(part, machine.is_simulated));
            }
        } else {
            table::print(part, &lines);
        }
    }
    for (label, reason) in programs.skipped() {
        match options.json {
            true => println!(
                "{{\"allocator\":{},\"skipped\":{}}}",
                quoted(label),
                quoted(reason)
            ),
            false => println!("{label}: skipped: {reason}"),
        }
    }
    Ok(())
}

/// One part, one allocator after the other.
fn measure_part<'a>(
    programs: &'a Programs,
    part: Part,
    options: &Options,
) -> Vec<(&'a Entry, Vec<Line>)> {
    let takes = |entry: &&Entry| entry.takes(part);
    let entries: Vec<&Entry> = programs.entries().iter().filter(takes).collect();
    let mut progress = Progress::start(part.name(), entries.len());
    let mut lines = Vec::new();
    for (done, entry) in entries.into_iter().enumerate() {
        progress.at(done);
        lines.push((entry, programs.run(entry, part, options)));
    }
    progress.end("measured");
    lines
}

/// Says why nothing of a part can be measured here.
fn tell_skipped(part: Part, machine: &Machine, json: bool) {
    let reason = match (part, machine.is_simulated) {
        (Part::Torch, true) => "PyTorch does not run on the simulated driver",
        _ => "no allocator for it could be prepared; the reasons are at the end",
    };
    match json {
        true => println!(
            "{{\"bench\":\"{}\",\"skipped\":{}}}",
            part.name(),
            quoted(reason)
        ),
        false => println!("{}: skipped: {reason}\n", part.name()),
    }
}

fn print_machine(machine: &Machine) {
    println!(
        "{}, {} cores; driver {}, {}{}\n",
        machine.cpu,
        machine.cores,
        machine.version,
        machine.device,
        if machine.is_simulated {
            ": SIMULATED, so calls of the driver cost what the simulator takes"
        } else {
            ""
        }
    );
}
