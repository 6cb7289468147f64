//! The command `hbmalloc`.

mod doctor;

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
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Doctor => doctor::run(),
    }
}
