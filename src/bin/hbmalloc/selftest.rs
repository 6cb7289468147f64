//! `hbmalloc selftest`: conformance, faults and stress on the driver in force, a line a case.

use hbmalloc::error::{Error, Status};
use hbmalloc::selftest;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Options {
    /// Suites to run; all when none is named
    suites: Vec<String>,
    /// Print the names of the suites and their cases, and run none
    #[arg(long)]
    list: bool,
    /// Print also what the driver answered at each step
    #[arg(long)]
    observe: bool,
}

/// The exit status of a name or an option that does not exist.
const BAD_OPTION: u8 = 2;

pub fn run(options: &Options) -> ExitCode {
    match attempt(options) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("hbmalloc selftest: {error}");
            if error.status() == Status::BadOption {
                ExitCode::from(BAD_OPTION)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// How many cases failed.
fn attempt(options: &Options) -> Result<usize, Error> {
    let suites = selftest::choose(&options.suites)?;
    if options.list {
        selftest::list(&suites);
        return Ok(0);
    }
    Ok(selftest::run(&suites, options.observe)?.failed)
}
