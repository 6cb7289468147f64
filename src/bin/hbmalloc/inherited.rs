//! Signals that this command needs otherwise than whoever started it may have left them: a closed pipe is to end it, and the
//! end of a child is to be told. Programs that it runs are to find them as it did.

use crate::stopped::is_ignored;
use libc::{SIG_DFL, SIG_IGN, SIGCHLD, SIGPIPE};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

const CHANGED: [i32; 2] = [SIGPIPE, SIGCHLD];
static WERE_IGNORED: [AtomicBool; CHANGED.len()] =
    [const { AtomicBool::new(false) }; CHANGED.len()];

/// Rust's runtime ignores SIGPIPE before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static NOTE_BEFORE_MAIN: extern "C" fn() = {
    extern "C" fn note() {
        for (signal, was_ignored) in CHANGED.into_iter().zip(&WERE_IGNORED) {
            was_ignored.store(is_ignored(signal), Ordering::Relaxed);
        }
    }
    note
};

/// No thread may run yet.
pub fn set_default() {
    for signal in CHANGED {
        // SAFETY: the default action is a valid handler.
        unsafe { libc::signal(signal, SIG_DFL) };
    }
}

/// The program is to ignore what this command was to.
pub fn pass_on(command: &mut Command) {
    let restore = || {
        for (signal, was_ignored) in CHANGED.into_iter().zip(&WERE_IGNORED) {
            if was_ignored.load(Ordering::Relaxed) {
                // SAFETY: ignoring is a valid handler.
                unsafe { libc::signal(signal, SIG_IGN) };
            }
        }
        Ok(())
    };
    // SAFETY: it calls signal only, which is allowed after fork.
    unsafe { command.pre_exec(restore) };
}
