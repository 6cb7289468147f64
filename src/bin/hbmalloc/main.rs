//! The command `hbmalloc`.

mod bench;
mod cxx;
mod demo;
mod doctor;
mod inherited;
mod json;
mod kinds;
mod machine;
mod progress;
mod python;
mod replay;
mod run;
mod selftest;
mod stopped;
mod trace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "hbmalloc",
    version,
    about = "GPU memory for deep-learning programs: what is here, does it work, what does it cost"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Says which driver and devices are here, what they can do, and which options are in force
    Doctor,
    /// Shows the library at work: trains on a GPU with PyTorch, or replays a recorded program without
    Demo(demo::Options),
    /// Replays recorded programs through the pool or other backends: memory held, host time, driver calls
    Replay(replay::Options),
    /// Measures what an allocation and its free cost, beside the driver's own calls and other allocators
    Bench(bench::Options),
    /// Runs an unmodified CUDA program on the library's pools
    Run(run::Options),
    /// Tests the library and the driver in force
    Selftest(selftest::Options),
}

fn main() -> ExitCode {
    inherited::set_default();
    match Arguments::parse().command {
        Command::Doctor => doctor::run(),
        Command::Demo(options) => demo::run(&options),
        Command::Replay(options) => replay::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Run(options) => run::run(&options),
        Command::Selftest(options) => selftest::run(&options),
    }
}
