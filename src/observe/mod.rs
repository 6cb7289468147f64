//! What can be seen of the library from outside. Reads, never steers.
#![forbid(unsafe_code)]

pub mod log;

use crate::process::Process;

/// The state of the process, with its log started.
pub fn process() -> &'static Process {
    let process = Process::current();
    log::start(process);
    process
}
