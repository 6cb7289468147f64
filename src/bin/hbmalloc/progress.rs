//! A line that moves on a terminal, and a line a second elsewhere. On standard error, so that what a
//! command prints can be piped on.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(1);
const BAR: usize = 30;

/// Shows how far something has come.
pub struct Progress {
    what: String,
    total: usize,
    started: Instant,
    shown: Instant,
    moves: bool,
}

impl Progress {
    /// Begins to show `what`, of `total` steps.
    pub fn start(what: String, total: usize) -> Progress {
        let progress = Progress {
            what,
            total,
            started: Instant::now(),
            shown: Instant::now(),
            moves: std::io::stderr().is_terminal(),
        };
        if progress.moves {
            progress.draw(0);
        }
        progress
    }

    /// So many steps are done.
    pub fn at(&mut self, done: usize) {
        if self.moves {
            self.draw(done);
        } else if self.shown.elapsed() >= EVERY {
            self.shown = Instant::now();
            eprintln!("{} {} %", self.what, self.percent(done));
        }
    }

    /// It has ended, in the way that `how` tells.
    pub fn end(self, how: &str) {
        let start = if self.moves { "\r\x1b[K" } else { "" };
        let seconds = self.started.elapsed().as_secs_f64();
        eprintln!("{start}{} {how}, {seconds:.1} s", self.what);
    }

    fn percent(&self, done: usize) -> usize {
        done * 100 / self.total.max(1)
    }

    fn draw(&self, done: usize) {
        let full = done * BAR / self.total.max(1);
        let seconds = self.started.elapsed().as_secs_f64();
        let mut out = std::io::stderr().lock();
        let _ = write!(
            out,
            "\r\x1b[K{} [{}{}] {:3} %  {seconds:.1} s",
            self.what,
            "#".repeat(full),
            " ".repeat(BAR - full.min(BAR)),
            self.percent(done)
        );
        let _ = out.flush();
    }
}
