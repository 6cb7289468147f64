//! What a command that is stopped would leave behind: children that run on, folders in the place of
//! temporary files. A signal that ends the command ends and removes them first.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Left {
    children: Vec<u32>,
    folders: Vec<PathBuf>,
}

static LEFT: Mutex<Left> = Mutex::new(Left {
    children: Vec::new(),
    folders: Vec::new(),
});

/// How long children may take to end, and folders to be empty.
const PATIENCE: Duration = Duration::from_secs(2);

fn left() -> MutexGuard<'static, Left> {
    watch();
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for signals from now on, those apart that whoever started the command has it ignore.
fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let all = [SIGHUP, SIGINT, SIGTERM];
        let Ok(mut signals) = Signals::new(all.into_iter().filter(|signal| !is_ignored(*signal)))
        else {
            // Then a signal ends the command as it would have.
            return;
        };
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                // Held to the end, so that nothing new begins.
                let left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
                left.end();
                let _ = emulate_default_handler(signal);
            }
        });
    });
}

/// Whether whoever started the command has it ignore the signal.
pub fn is_ignored(signal: i32) -> bool {
    // SAFETY: all zero is a valid sigaction, and a null pointer asks without changing anything.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut now) == 0
            && now.sa_sigaction == libc::SIG_IGN
    }
}

impl Left {
    /// Children end first: they write into the folders.
    fn end(&self) {
        self.kill(SIGTERM);
        let began = Instant::now();
        loop {
            let is_gone = |folder: &PathBuf| {
                let _ = std::fs::remove_dir_all(folder);
                !folder.exists()
            };
            if self
                .folders
                .iter()
                .filter(|folder| !is_gone(folder))
                .count()
                == 0
                || began.elapsed() > PATIENCE
            {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill(libc::SIGKILL);
    }

    fn kill(&self, signal: i32) {
        for child in &self.children {
            // SAFETY: sends a signal, to a child whose number is its own until it is waited for.
            unsafe { libc::kill(*child as i32, signal) };
        }
    }
}

/// A child that is ended when the command is stopped.
pub struct Child(pub std::process::Child);

impl Child {
    pub fn spawn(command: &mut Command) -> io::Result<Child> {
        let mut left = left();
        let child = command.spawn()?;
        left.children.push(child.id());
        Ok(Child(child))
    }

    /// How it ended, once it has.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        // Once it is waited for its number may be another's.
        let mut left = left();
        let status = self.0.try_wait()?;
        if status.is_some() {
            left.children.retain(|child| *child != self.0.id());
        }
        Ok(status)
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            // SAFETY: all zero is a valid siginfo_t, which the call fills in; the child stays one
            // that can be waited for.
            let answer = unsafe {
                let mut info: libc::siginfo_t = std::mem::zeroed();
                let how = libc::WEXITED | libc::WNOWAIT;
                libc::waitid(libc::P_PID, self.0.id(), &mut info, how)
            };
            if answer == 0 {
                break;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        match self.try_wait()? {
            Some(status) => Ok(status),
            None => self.0.wait(),
        }
    }
}

/// Makes a folder that is removed when the command is stopped.
pub fn make_folder(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let mut left = left();
    make(path)?;
    left.folders.push(path.to_owned());
    Ok(())
}

/// Removes a folder that [`make_folder`] made.
pub fn remove_folder(path: &Path) {
    let mut left = left();
    let _ = std::fs::remove_dir_all(path);
    left.folders.retain(|folder| folder != path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_known_until_it_was_waited_for() {
        let known = |child: &Child| left().children.contains(&child.0.id());
        let mut child = Child::spawn(Command::new("sleep").arg("60")).unwrap();
        assert!(known(&child) && child.try_wait().unwrap().is_none());
        child.0.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(!known(&child));
        assert!(Child::spawn(&mut Command::new("no such program")).is_err());
    }
}
