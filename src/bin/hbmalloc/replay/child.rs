//! Processes that replay, and what they tell.

use super::figures::{self, Figures, News};
use super::options::Options;
use super::points::Point;
use crate::machine::Machine;
use crate::progress::Progress;
use crate::stopped::Child;
use hbmalloc::source::Kind;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// This program again, for one backend.
pub fn command(
    options: &Options,
    trace: &Path,
    kind: Kind,
    machine: &Machine,
) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("replay")
        .arg(std::path::absolute(trace)?)
        .args(["--child", kind.name()])
        .args(["--lag", &options.lag.to_string()])
        .args(options.waste.iter().flat_map(|waste| ["--waste", waste]));
    if machine.is_fallback {
        command.env("HBMALLOC_DRIVER", "sim");
    }
    Ok(command)
}

/// What a child that came to its end has told.
#[derive(Default)]
pub struct Told {
    pub figures: Figures,
    pub points: Vec<Point>,
}

/// Runs a child and takes in what it tells; none where it did not come to its end.
pub fn listen(
    mut command: Command,
    progress: &mut Progress,
    problems: &mut Vec<String>,
) -> std::io::Result<Option<Told>> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = Child::spawn(&mut command)?;
    let lines = child.0.stdout.take().map(BufReader::new);
    let (mut told, mut is_complete) = (Told::default(), false);
    for line in lines.into_iter().flat_map(BufRead::lines) {
        match figures::hear(&line?, &mut told.figures) {
            Some(News::Progress(done)) => progress.at(done),
            Some(News::Problem(problem)) => problems.push(problem),
            Some(News::Point(point)) => told.points.push(point),
            Some(News::Done) => is_complete = true,
            None => {}
        }
    }
    let status = child.wait()?;
    if problems.is_empty() && !(status.success() && is_complete) {
        problems.push(format!("its process: {status}"));
    }
    Ok(is_complete.then_some(told))
}
